"""Every kernel against its definition: what ``python -m benchmarks.gpu`` runs on a GPU.

The definition is the torch step on the CPU. Where f is made of exactly rounded operations all bits
are compared, else each step by itself: a spike may differ only where v is within LEEWAY ulp of
f(x). The tests run the same checks on the GPU path compiled for a CPU (tests/cuda_on_host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ConstantSchedule,
    ExponentialSchedule,
    GroupNeuronParameters,
    GrowthState,
    SignGDParameters,
    SignGDState,
    Surrogate,
    group_initial_v,
    group_multi_step,
    growth_multi_step,
    running_sum,
    signgd_multi_step,
)
from spikingjelly_signgd.neurons.surrogate import KINDS

LEEWAY = 8  # ulp
GRADIENT = 2e-5  # of the largest value: sums over T steps in another order
STEPS = 16
SCHEDULE = ExponentialSchedule(0.5, 0.9)
LATTICE = ConstantSchedule(0.125)  # keeps v on multiples of 1/8, where it meets f(x)
SHAPES = ((1,), (3, 5, 67), (0, 4))
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
EXACT: list[tuple[str, dict[str, Any]]] = [
    ("identity", {}),
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {"negative_slope": 0.1}),
    ("prelu", {"weight": torch.tensor([[0.25], [0.1], [0.0], [1.5], [-1.0]])}),
    ("hardswish", {}),
    ("hardsigmoid", {}),
    ("clamp", {"min": -0.5, "max": 0.75}),
    ("qcfs", {"v_threshold": 1.7, "levels": 5}),
    ("abs", {}),
    ("square", {}),
    ("rsqrt", {}),
    ("reciprocal", {"floor": 0.1}),
    ("maximum", {}),
    ("minimum", {}),
    ("mul", {}),
    ("div", {"floor": 0.1}),
]
NEAR: list[tuple[str, dict[str, Any]]] = [
    ("elu", {"alpha": 1.5, "scale": 1.2, "input_scale": 0.7}),
    ("selu", {}),
    ("celu", {"alpha": 0.3}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("sigmoid_gelu", {}),
    ("silu", {}),
    ("mish", {}),
    ("softplus", {"beta": 3.0, "threshold": 10.0}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("exp", {}),
    ("sqrt", {"floor": 0.01}),  # on CPUs torch has MKL's, an ulp off for one number in five
    ("divide_by_sqrt", {}),
]


class Skipped(Exception):
    """Why a check cannot be made here."""


@dataclass(frozen=True)
class Place:
    """Where the kernels run: "cuda" by CuPy, or "cpu" where that path runs on the host."""

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def to(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, SignGDState):
            return SignGDState(value.v.to(self.device), value.t)
        if isinstance(value, SignGDParameters):
            given = {name: self.to(argument) for name, argument in value.arguments.items()}
            scale, zone = self.to(value.scale), self.to(value.dead_zone)
            return replace(value, scale=scale, dead_zone=zone, arguments=given)
        if isinstance(value, GroupNeuronParameters):
            return replace(value, v_threshold=self.to(value.v_threshold))
        if isinstance(value, GrowthState):
            return GrowthState(self.to(value.totals), value.last.to(self.device))
        if isinstance(value, (list, tuple)):
            return type(value)(self.to(part) for part in value)
        return value

    def signgd(self, x_seq: Any, state: SignGDState, p: SignGDParameters, **options: Any) -> Any:
        """By the kernels, the result on the CPU."""
        options = {name: self.to(value) for name, value in options.items()}
        return _home(
            signgd_multi_step(
                self.to(x_seq), self.to(state), self.to(p), backend=self.backend, **options
            )
        )

    def group(self, x_seq: Tensor, v: Tensor, p: GroupNeuronParameters, **options: Any) -> Any:
        options = {name: self.to(value) for name, value in options.items()}
        return _home(
            group_multi_step(
                self.to(x_seq), self.to(v), self.to(p), backend=self.backend, **options
            )
        )

    @property
    def backend(self) -> str:
        return "cupy" if self.on_gpu else "cpu"


def _home(result: Any) -> Any:
    """The same with its tensors on the CPU."""
    if isinstance(result, Tensor):
        return result.cpu()
    if isinstance(result, tuple):
        parts = [_home(part) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result


def assert_same(got: Any, expected: Any, what: str) -> None:
    """Equal to the bit, except that any NaN equals any NaN."""
    if isinstance(expected, Tensor):
        assert got.dtype == expected.dtype and got.shape == expected.shape, (
            f"{what}: {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}"
        )
        same = (got == expected) | (got.isnan() & expected.isnan())
        assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} values differ"
    elif isinstance(expected, tuple):
        names = getattr(expected, "_fields", range(len(expected)))
        assert len(got) == len(expected), what
        for name, a, b in zip(names, got, expected, strict=True):
            assert_same(a, b, f"{what}, {name}")
    else:
        assert got == expected, f"{what}: {got!r}, not {expected!r}"


def assert_close(got: Tensor, expected: Tensor, what: str, leeway: float = GRADIENT) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype, what
    if expected.numel():
        difference = float((got.double() - expected.double()).abs().max())
        limit = leeway * float(expected.double().abs().max())
        assert difference <= limit, f"{what}: differs by {difference:.3g}, more than {limit:.3g}"


def drawn(shape: Iterable[int], ties: bool) -> Tensor:
    """Normal numbers, or ones of a lattice on which v meets f(x)."""
    if not ties:
        return torch.randn(*shape) * 2
    return torch.randint(-24, 25, tuple(shape)) * 0.125


# -- signGD ---------------------------------------------------------------------------------------


def cases(name: str, given: dict[str, Any], shape: tuple[int, ...], ties: bool) -> Any:
    """Inputs, a state, parameters, options: decoded view, and spike view with a tensor as scale.

    Without ties also the decoded view with v that stays within 12 ulp of f(x).
    """
    row = NONLINEARITIES[name]
    assert row.arity is not None
    schedule = LATTICE if ties else SCHEDULE
    x_seq = [drawn((STEPS, *shape), ties) for _ in range(row.arity)]
    if "weight" in given and shape[-2:-1] != given["weight"].shape[:1]:
        given = {"weight": given["weight"][0, 0]}
    for in_spikes in (False, True):
        p = SignGDParameters(row, schedule, 1.0 if ties else 0.7, 0.0, given)
        options: dict[str, Any] = {"keep_v": True, "keep_spikes": True}
        if in_spikes:
            scale = torch.ones(shape[-1]) if ties else torch.rand(shape[-1]) + 0.5
            p = replace(p, scale=scale)
            x_seq = [x / 4 if not ties else x for x in x_seq]
            start = tuple(drawn(shape, ties) for _ in x_seq)
            options |= {"output": "signed", "x": start}
        yield x_seq, SignGDState(drawn(shape, ties), 3), p, options
    if not ties:
        p = SignGDParameters(row, ConstantSchedule(1e-38), 1.0, 0.0, given)
        x_seq = [x[:1].expand(STEPS, *shape) for x in x_seq]
        f = p.target(*(x[0] for x in x_seq)).contiguous()
        beside = f.view(torch.int32) + torch.randint(-12, 13, shape, dtype=torch.int32)
        v = torch.where(f.abs() > 1e-30, beside.view(torch.float32), f)
        yield x_seq, SignGDState(v, 3), p, {"keep_v": True, "keep_spikes": True}


def exact(name: str, given: dict[str, Any], place: Place) -> None:
    for shape in SHAPES:
        for ties in (False, True):
            for x_seq, state, p, options in cases(name, given, shape, ties):
                got = place.signgd(x_seq, state, p, **options)
                expected = signgd_multi_step(x_seq, state, p, backend="torch", **options)
                assert_same(got, expected, f"{list(shape)}, ties {ties}")


def near(name: str, given: dict[str, Any], place: Place) -> None:
    for shape in SHAPES:
        for ties in (False, True):
            for x_seq, state, p, options in cases(name, given, shape, ties):
                got = place.signgd(x_seq, state, p, **options)
                by_definition = signgd_multi_step(x_seq, state, p, backend="torch", **options)
                what = f"{list(shape)}, ties {ties}"
                assert_same(got.x, by_definition.x, f"{what}, x")
                if "x" in options:
                    starts = zip(options["x"], x_seq, strict=True)
                    x_seq = [running_sum(x, start, "torch") for start, x in starts]
                each_step(name, x_seq, state, p, got, what)


def each_step(
    name: str, x_seq: list[Tensor], state: SignGDState, p: SignGDParameters, got: Any, what: str
) -> None:
    """Each step of what was kept, from the v before it."""
    assert got.v_seq is not None and got.spike_seq is not None
    v = state.v
    for t in range(STEPS):
        x = x_seq[0][t]
        f = p.target(*(a[t] for a in x_seq))
        fires = v >= f if p.function.fires_at_tie else v > f
        spike = got.spike_seq[t]
        unit = ulp(x / 2) if name == "gelu" else ulp(f).maximum(x.abs().double() * 2.0**-149)
        distance = (v.double() - f.double()).abs() / unit
        far = (spike != fires) & (distance > LEEWAY)
        worst = float(distance[spike != fires].max()) if bool((spike != fires).any()) else 0.0
        assert not bool(far.any()), f"{what}, step {t}: a spike differs {worst:.1f} ulp from f(x)"
        size = torch.as_tensor(p.schedule(state.t + t + 1) * p.scale, dtype=torch.float32)
        v = torch.where(spike, v - size, v + size)
        assert_same(got.v_seq[t], v, f"{what}, v of step {t}")
    assert_same(got.state.v, v, f"{what}, last v")


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the float32 before it, as float64."""
    size = x.abs().clamp(2.0**-126, 3e38)
    before = (size.view(torch.int32) - 1).view(torch.float32)
    return (size.double() - before.double()).clamp(min=2.0**-149)


def outputs_of_signgd(place: Place) -> None:
    x_seq, shape = [drawn((STEPS, 3, 5, 67), True)], (3, 5, 67)
    state = SignGDState(drawn(shape, True), 3)
    for scale in (0.75, torch.rand(5, 1) + 0.5):
        p = SignGDParameters(NONLINEARITIES["relu"], LATTICE, scale)
        for output in ("decoded", "signed", "sigma", "fires"):
            for dtype in (*FLOATS, *((torch.int8,) if output in ("sigma", "fires") else ())):
                options: dict[str, Any] = {"output": output, "dtype": dtype}
                got = place.signgd(x_seq, state, p, **options)
                expected = signgd_multi_step(x_seq, state, p, backend="torch", **options)
                assert_same(got, expected, f"{output} {dtype}")


def several_signs(members: int, place: Place) -> None:
    shape = (3, 5, 67)
    for name, given in (EXACT[1], EXACT[4], EXACT[15]):
        row = NONLINEARITIES[name]
        for ties in (False, True):
            schedule = ConstantSchedule(0.125 * 2 ** (members - 1)) if ties else SCHEDULE
            state = SignGDState(drawn(shape, ties), 3)
            for scale in (0.75 if not ties else 1.0, 2.0 ** torch.randint(-1, 2, (5, 1))):
                p = SignGDParameters(row, schedule, scale, 0.0, given, members=members)
                for output in ("decoded", "signed", "sigma", "fires"):
                    x_seq = [drawn((STEPS, *shape), ties) / 2 for _ in range(row.arity or 1)]
                    options: dict[str, Any] = {"output": output, "dtype": torch.float32}
                    if output != "decoded":
                        options |= {"keep_v": True, "keep_spikes": True, "dtype": torch.bfloat16}
                        options["x"] = tuple(drawn(shape, ties) for _ in x_seq)
                    got = place.signgd(x_seq, state, p, **options)
                    expected = signgd_multi_step(x_seq, state, p, backend="torch", **options)
                    assert_same(got, expected, f"{name} {output}, ties {ties}")


def dead_zones(members: int, place: Place) -> None:
    """A number with all that is plain; by channel, some with none, with all that can be kept."""
    shape = (3, 7, 67)
    mixed = torch.tensor([0.0, 0.3, 0.5, 2 / 3, 0.75, 0.99, 1e-30])[:, None]
    for ties in (False, True):
        schedule = ConstantSchedule(0.125 * 2 ** (members - 1)) if ties else SCHEDULE
        state = SignGDState(drawn(shape, ties), 3)
        x_seq = [drawn((STEPS, *shape), ties) / 2]
        kept = {"keep_v": True, "keep_spikes": True, "x": (drawn(shape, ties),)}
        for zone, scale, options in (
            (2 / 3, 1.0, {}),
            (0.5, 2.0 ** torch.randint(-1, 2, (7, 1)), {"output": "sigma", "keep_spikes": True}),
            (mixed, 1.0, {"output": "signed", "dtype": torch.bfloat16, **kept}),
        ):
            given: dict[str, Any] = dict(options)  # type: ignore[call-overload]
            p = SignGDParameters(
                NONLINEARITIES["relu"], schedule, scale, members=members, dead_zone=zone
            )
            got = place.signgd(x_seq, state, p, **given)
            expected = signgd_multi_step(x_seq, state, p, backend="torch", **given)
            assert_same(got, expected, f"theta {zone if zone is not mixed else 'mixed'}, {ties}")


def inputs_of_every_type(place: Place) -> None:
    """Halves are read exactly and written rounded to nearest even, subnormal and infinite ones too.

    Steps are small here, so that v stays near what it starts from.
    """
    odd = [0.0, -0.0, 1e-40, -1e-40, 1e-7, 6.1e-5, 1.0, 65504.0, 65519.9, 65520.0, 1e30, -3e38]
    start = torch.tensor([*odd, float("inf"), float("-inf"), float("nan")] * 67)
    v = start + torch.randn(start.shape) * start.abs() * 0.01
    for dtype in FLOATS:
        x_seq = [drawn((STEPS, *v.shape), False).to(dtype), torch.cat([start] * STEPS).to(dtype)]
        x_seq[1] = x_seq[1].view(STEPS, -1)
        for output in FLOATS:
            p = SignGDParameters(NONLINEARITIES["maximum"], ConstantSchedule(1e-9))
            given = x_seq, SignGDState(v), p
            got = place.signgd(*given, dtype=output)
            expected = signgd_multi_step(*given, dtype=output, backend="torch")
            assert_same(got, expected, f"{dtype} to {output}")


def layouts(place: Place) -> None:
    """Strides of any kind in what is read: the neurons are numbered as the output lies."""
    kinds: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
        "channels last": ((4, 10, 14, 6), lambda x: x.permute(0, 1, 4, 2, 3)),
        "transposed": ((14, 10, 6, 4), lambda x: x.permute(0, 4, 3, 2, 1)),
        "sliced": ((4, 6, 10, 28), lambda x: x[..., ::2]),
        "broadcast": ((1, 6, 1, 1), lambda x: x.expand(-1, 4, 6, 10, 14)),
        "every second step": ((4, 6, 10, 14), lambda x: x[::2]),
        "seven dimensions": ((4, 3, 2, 5, 2, 7, 2), lambda x: x[:, ::2, :, :, ::2]),
    }
    for kind, (shape, view) in kinds.items():
        dense = drawn((STEPS, *shape), False)
        x, there = view(dense), view(place.to(dense))  # moving a view would change its strides
        assert x.stride() == there.stride()
        state = SignGDState(drawn(x.shape[1:], False))
        p = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE, torch.rand(*x.shape[2:]) + 0.5)
        options: dict[str, Any] = {"keep_v": True}
        got = signgd_multi_step(
            [there], place.to(state), place.to(p), backend=place.backend, **options
        )
        expected = signgd_multi_step([x], state, p, backend="torch", **options)
        assert_same(_home(got), expected, kind)
    a, b = drawn((STEPS, 4, 1, 10, 1), False), drawn((STEPS, 6, 1, 14), False)
    state = SignGDState(torch.tensor(0.5).expand(4, 6, 10, 14))
    p = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE)
    expected = signgd_multi_step([a, b], state, p, backend="torch")
    assert_same(place.signgd([a, b], state, p), expected, "two that broadcast")


def long_sequences(place: Place) -> None:
    """More steps than one launch takes."""
    x_seq, state = [drawn((300, 5, 67), True)], SignGDState(drawn((5, 67), True))
    p = SignGDParameters(NONLINEARITIES["relu"], LATTICE)
    options: dict[str, Any] = {"keep_v": True, "keep_spikes": True}
    for x in (None, (drawn((5, 67), True),)):
        got = place.signgd(x_seq, state, p, x=x, **options)
        expected = signgd_multi_step(x_seq, state, p, x=x, backend="torch", **options)
        assert_same(got, expected, f"x {x is not None}")
    group_given = x_seq[0], state.v, GroupNeuronParameters(4, 1.3)
    assert_same(place.group(*group_given), group_multi_step(*group_given, backend="torch"), "group")


def sums(place: Place) -> None:
    for shape in SHAPES:
        for dtype in FLOATS:
            x, start = drawn((300, *shape), False).to(dtype), drawn(shape, False)
            got = running_sum(place.to(x), place.to(start), place.backend).cpu()
            assert_same(got, running_sum(x.float(), start, "torch"), f"{list(shape)} {dtype}")


# -- group neurons --------------------------------------------------------------------------------


def group(members: int, place: Place) -> None:
    for v_threshold in (1.0, 0.37):
        p = GroupNeuronParameters(members, v_threshold)
        for shape in SHAPES:
            v = group_initial_v(torch.empty(shape), p)
            lattice = torch.randint(-2 * members, 3 * members + 1, (STEPS, *shape)) * (p.theta / 2)
            for x in (
                torch.randn(STEPS, *shape) * v_threshold,
                lattice,
                around(p, (STEPS, *shape)),
            ):
                for options in ({}, {"keep_v": True}, {"counts": True, "dtype": torch.float16}):
                    got = place.group(x, v, p, **options)
                    expected = group_multi_step(x, v, p, backend="torch", **options)
                    assert_same(got, expected, f"v_threshold {v_threshold} {list(shape)} {options}")


def forms_of_group(members: int, place: Place) -> None:
    """Thresholds and charges by channel, and signed neurons, which start with some spikes sent."""
    for shape, signed, by_channel in product(SHAPES, (False, True), (False, True)):
        thresholds, charges = torch.rand(2, *shape[-1:]) + 0.1
        p = GroupNeuronParameters(members, 1.37, 0.5, signed)
        if by_channel:
            p = GroupNeuronParameters(members, thresholds, charges, signed)
        lattice = torch.randint(-3 * members, 3 * members + 1, (STEPS, *shape)) * (p.theta / 2)
        both = around(p, (STEPS, *shape)) * (torch.randint(0, 2, (STEPS, *shape)) * 2 - 1)
        for x in (torch.randn(STEPS, *shape) * 1.5, lattice, both):
            v = group_initial_v(x[0], p) if x is not lattice else torch.zeros(shape)
            given: dict[str, Any] = {"sent": torch.randint(0, 4, shape).float()} if signed else {}
            for options in ({}, {"keep_v": True}, {"counts": True, "dtype": torch.float16}):
                got = place.group(x, v, p, **given, **options)
                expected = group_multi_step(x, v, p, backend="torch", **given, **options)
                assert_same(got, expected, f"signed {signed}, by channel {by_channel} {options}")


def growths(place: Place) -> None:
    """The growth of a maximum, of inputs of which now one, now the other leads."""
    row, start = NONLINEARITIES["maximum"], drawn((2, 5, 67), False)
    state = GrowthState(tuple(start), torch.maximum(*start))
    for dtype in FLOATS:
        x_seq = drawn((2, STEPS, 5, 67), False).to(dtype)
        got = growth_multi_step(
            place.to(list(x_seq)), place.to(state), row, backend=place.backend, keep_last=True
        )
        expected = growth_multi_step(list(x_seq), state, row, backend="torch", keep_last=True)
        assert_same(_home(got), expected, f"{dtype}")


def around(p: GroupNeuronParameters, shape: tuple[int, ...]) -> Tensor:
    """Currents that lead from 0 to a threshold, or to a float next to it."""
    k = torch.randint(-1, p.members + 2, shape)
    at = k.float() * p.theta
    return (
        (at.view(torch.int32) + torch.randint(-1, 2, shape, dtype=torch.int32))
        .view(torch.float32)
        .where(k > 0, at)
    )


def types_of_group(place: Place) -> None:
    p = GroupNeuronParameters(5, 1.7)
    v = group_initial_v(torch.empty(3, 5, 67), p)
    for dtype in FLOATS:
        x = (torch.randn(STEPS, 3, 5, 67) * 2).to(dtype)
        for counts, outputs in ((False, FLOATS), (True, (torch.float32, torch.int8))):
            for output in outputs:
                got = place.group(x, v, p, counts=counts, dtype=output)
                expected = group_multi_step(x, v, p, counts=counts, dtype=output, backend="torch")
                assert_same(got, expected, f"{dtype} to {output}, counts {counts}")


# -- gradients ------------------------------------------------------------------------------------


def gradients_of(
    run: Callable[..., Any], inputs: list[Tensor], place: Place | None
) -> list[Tensor]:
    """Gradients, on the CPU, of a fixed weighting of the tensors that ``run`` returns."""
    moved = [x if place is None else x.to(place.device) for x in inputs]
    leaves = [x.detach().clone().requires_grad_() for x in moved]
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    for k, y in enumerate(y for y in run(*leaves) if y is not None):
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64) * (0.7 + k)).view(y.shape)
        total = total + (y.double() * weights.to(y.device)).sum()
    total.backward()
    return [x.grad.cpu() for x in leaves if x.grad is not None]


def gradient_of_group(kind: str, place: Place) -> None:
    for members, detach in ((1, False), (4, True), (4, False)):
        p = GroupNeuronParameters(members, 1.3)
        run = partial(group_multi_step, p=p, surrogate=Surrogate(kind, 2.0), detach_reset=detach)
        for dtype in FLOATS:
            x = torch.randn(STEPS, 5, 67).to(dtype)
            given = [x, group_initial_v(torch.empty(5, 67), p)]
            got = gradients_of(partial(run, backend=place.backend), given, place)
            expected = gradients_of(partial(run, backend="torch"), given, None)
            leeway = GRADIENT if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
            for name, a, b in zip(("x", "v"), got, expected, strict=True):
                assert_close(a, b, f"gradient of {name}, m = {members}, {dtype}", leeway)


def gradient_of_signgd(kind: str, place: Place) -> None:
    for output, in_spikes, steps in (
        *(("decoded", False, 300), ("decoded", True, STEPS)),
        *(("signed", False, STEPS), ("signed", True, STEPS)),
    ):
        given = [torch.randn(steps, 5, 67) / (4 if in_spikes else 1), torch.randn(5, 67)]
        start = torch.randn(5, 67) if in_spikes else None
        run = partial(track, start=start, output=output, surrogate=Surrogate(kind, 2.0))
        got = gradients_of(partial(run, backend=place.backend), given, place)
        expected = gradients_of(partial(run, backend="torch"), given, None)
        for name, a, b in zip(("x", "v"), got, expected, strict=True):
            assert_close(a, b, f"gradient of {name}, {output}, spikes {in_spikes}, T = {steps}")


def gradient_of_dead_zones(place: Place) -> None:
    given = [torch.randn(STEPS, 5, 67), torch.randn(5, 67)]
    for zone in (2 / 3, torch.linspace(0.0, 0.9, 67)):
        run = partial(track, start=None, output="signed", zone=zone, surrogate=Surrogate("atan"))
        got = gradients_of(partial(run, backend=place.backend), given, place)
        expected = gradients_of(partial(run, backend="torch"), given, None)
        for name, a, b in zip(("x", "v"), got, expected, strict=True):
            assert_close(a, b, f"gradient of {name}, by channel {isinstance(zone, Tensor)}")


def track(
    x: Tensor,
    v: Tensor,
    *,
    start: Tensor | None,
    output: str,
    zone: float | Tensor = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    scale = torch.linspace(0.5, 1.5, x.shape[-1]).to(x.device)
    zone = zone.to(x.device) if isinstance(zone, Tensor) else zone
    p = SignGDParameters(NONLINEARITIES["gelu"], SCHEDULE, scale, dead_zone=zone)
    before = None if start is None else (start.to(x.device),)
    got = signgd_multi_step([x], SignGDState(v), p, x=before, output=output, **options)
    return got.y, got.state.v


# -- torch around the kernels ---------------------------------------------------------------------


def compiled(place: Place) -> None:
    x, v = place.to(torch.randn(STEPS, 5, 67)), place.to(torch.zeros(5, 67))
    p = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE)
    q = GroupNeuronParameters(4)

    def step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        a = signgd_multi_step([x * 2], SignGDState(v), p, backend=place.backend).y
        return a, group_multi_step(a + 1, v, q, backend=place.backend).y

    by_torch = torch.compile(step, fullgraph=True, backend="inductor" if place.on_gpu else "eager")
    assert_same(_home(by_torch(x, v)), _home(step(x, v)), "torch.compile")


def as_the_cpu_kernels(place: Place) -> None:
    """Same source, same bits, also where f needs exp, erf or tanh."""
    reason = _cpu_kernels_missing()
    if reason:
        raise Skipped(reason)
    for name, given in NEAR:
        for x_seq, state, p, options in cases(name, given, (3, 5, 67), False):
            got = place.signgd(x_seq, state, p, **options)
            with _cpu_kernels():
                expected = signgd_multi_step(x_seq, state, p, backend="cpu", **options)
            assert_same(got, expected, f"{name} {given}")


def _cpu_kernels_missing() -> str:
    from spikingjelly_signgd.neurons.kernels import cpu

    return cpu.missing(None)


def _cpu_kernels() -> Any:
    from unittest.mock import patch

    from spikingjelly_signgd.neurons.kernels import cpu, launch

    return patch.dict(launch.PROVIDERS, {"cpu": cpu})


def _only_on_gpu(place: Place) -> None:
    if not place.on_gpu:
        raise Skipped("it needs a GPU")


def graph(place: Place) -> None:
    """Recorded once, replayed with other inputs in the same memory."""
    _only_on_gpu(place)
    p, q = SignGDParameters(NONLINEARITIES["gelu"], SCHEDULE), GroupNeuronParameters(4)
    x, v = torch.randn(300, 4097, device=place.device), torch.zeros(4097, device=place.device)

    def step() -> tuple[Tensor, Tensor]:
        a = signgd_multi_step([x], SignGDState(v), p, backend="cupy").y
        return a, group_multi_step(a, v, q, backend="cupy").y

    side = torch.cuda.Stream(place.device)
    side.wait_stream(torch.cuda.current_stream(place.device))
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream(place.device).wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        outputs = step()
    for seed in range(3):
        torch.manual_seed(seed)
        x.normal_()
        recorded.replay()
        assert_same(_home(outputs), _home(step()), f"replay {seed}")


def stream(place: Place) -> None:
    """On a side stream that is late with its input, and without waiting for anything."""
    _only_on_gpu(place)
    p, v = GroupNeuronParameters(4), torch.zeros(2**20, device=place.device)
    x = torch.randn(STEPS, 2**20, device=place.device)
    expected = group_multi_step(x, v, p, backend="cupy").y
    late = torch.zeros_like(x)
    torch.cuda.synchronize(place.device)
    side = torch.cuda.Stream(place.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            late.copy_(x)
            got = group_multi_step(late, v, p, backend="cupy").y
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not side.query(), "the kernel was waited for"
    side.synchronize()
    assert_same(got.cpu(), expected.cpu(), "side stream")


def other_devices(place: Place) -> None:
    _only_on_gpu(place)
    if torch.cuda.device_count() < 2:
        raise Skipped("it needs two GPUs")
    assert torch.cuda.current_device() == 0
    group(4, Place(torch.device("cuda", 1)))
    assert torch.cuda.current_device() == 0


def many(place: Place) -> None:
    """More than 2^31 elements: the first, the middle and the last neurons of all steps."""
    _only_on_gpu(place)
    neurons, steps = 2**25 + 129, 64
    free = torch.cuda.mem_get_info(place.device)[0]
    if free < 9 * 2**30:
        raise Skipped(f"it needs 9 GiB, but {free / 2**30:.1f} GiB are free")
    x = torch.randn(steps, neurons, dtype=torch.float16, device=place.device)
    v = torch.full((neurons,), 0.1, device=place.device)
    p = GroupNeuronParameters(4, 1.3)
    got = group_multi_step(x, v, p, counts=True, dtype=torch.int8, backend="cupy")
    for first in (0, neurons // 2, neurons - 1001):
        part = slice(first, first + 1001)
        given = x[:, part].cpu(), v[part].cpu(), p
        expected = group_multi_step(*given, counts=True, dtype=torch.int8, backend="torch")
        assert_same(got.y[:, part].cpu(), expected.y, f"counts from neuron {first}")
        assert_same(got.v[part].cpu(), expected.v, f"v from neuron {first}")


def _named(name: str, given: dict[str, Any]) -> str:
    return " ".join([name, *(str(v) for v in given.values() if not isinstance(v, Tensor))])


CHECKS: dict[str, Callable[[Place], None]] = {
    **{_named(name, given): partial(exact, name, given) for name, given in EXACT},
    **{_named(name, given): partial(near, name, given) for name, given in NEAR},
    "outputs of signGD": outputs_of_signgd,
    "inputs of every type": inputs_of_every_type,
    "layouts": layouts,
    "long sequences": long_sequences,
    "running sums": sums,
    **{f"signs m = {m}": partial(several_signs, m) for m in (2, 3, 8)},
    **{f"dead zones m = {m}": partial(dead_zones, m) for m in (1, 4, 12)},
    **{f"group m = {m}": partial(group, m) for m in (1, 3, 8, 255)},
    **{f"forms of group m = {m}": partial(forms_of_group, m) for m in (1, 3, 8)},
    "growth": growths,
    "types of group": types_of_group,
    **{f"gradient of group, {kind}": partial(gradient_of_group, kind) for kind in KINDS},
    **{f"gradient of signGD, {kind}": partial(gradient_of_signgd, kind) for kind in KINDS},
    "gradient of dead zones": gradient_of_dead_zones,
    "as the CPU kernels": as_the_cpu_kernels,
    "torch.compile": compiled,
    "CUDA graph": graph,
    "side stream": stream,
    "another device": other_devices,
    "more than 2^31 elements": many,
}
