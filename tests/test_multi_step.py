"""Sequences of steps by the CPU kernels: the definitions' bits, gradients, layouts, errors."""

import functools
import itertools
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from spikingjelly_signgd.errors import BackendUnavailable, InputError, KernelsWarning
from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ConstantSchedule,
    ExponentialSchedule,
    GroupNeuronParameters,
    ListSchedule,
    SignGDParameters,
    SignGDSequence,
    SignGDState,
    backends,
    group_choice,
    group_multi_step,
    group_step,
    nonlinearity,
    running_sum,
    scan,
    signgd_choice,
    signgd_multi_step,
    signgd_step,
    weighted_spike,
)
from spikingjelly_signgd.neurons import choice as choices
from spikingjelly_signgd.neurons.choice import choose
from spikingjelly_signgd.neurons.kernels import arguments, cpu, launch, operators
from spikingjelly_signgd.neurons.signgd import OUTPUTS, function_choice
from spikingjelly_signgd.neurons.surrogate import KINDS, Surrogate

SCHEDULE = ExponentialSchedule(0.5, 0.9)
LATTICE = ConstantSchedule(0.125)  # keeps v on multiples of 1/8, where it meets f(x)
TIMES = (1, 7, 33)
SHAPES = {
    "one": (1,),
    "no power of two": (3, 5, 7),
    "two blocks and a rest": (2, 3, 1733),
    "empty": (0, 4),
    "broadcast": (4, 3, 65),
}
# functions made of exactly rounded operations, and their arguments
EXACT = [
    ("identity", {}),
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.25}),
    ("prelu", {"weight": torch.tensor(0.25)}),
    ("hardswish", {}),
    ("hardsigmoid", {}),
    ("clamp", {"min": -0.5, "max": 0.75}),
    ("clamp", {"max": 0.3}),
    ("qcfs", {"v_threshold": 1.7, "levels": 4}),
    ("qcfs", {"v_threshold": 1.0, "levels": 1}),
    ("abs", {}),
    ("square", {}),
    ("rsqrt", {"floor": 0.01}),
    ("rsqrt", {}),
    ("reciprocal", {}),
    ("reciprocal", {"floor": 0.1}),
    ("maximum", {}),
    ("minimum", {}),
    ("mul", {}),
    ("div", {}),
    ("div", {"floor": 0.1}),
]
# functions that need exp, erf or tanh, or sqrt, which torch has from MKL, not exactly rounded
NEAR = [
    ("elu", {}),
    ("elu", {"alpha": 1.5, "scale": 1.2, "input_scale": 0.7}),
    ("selu", {}),
    ("celu", {"alpha": 0.3}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("sigmoid_gelu", {}),
    ("silu", {}),
    ("mish", {}),
    ("softplus", {}),
    ("softplus", {"beta": 3.0, "threshold": 10.0}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("exp", {}),
    ("sqrt", {}),
    ("sqrt", {"floor": 0.01}),
    ("divide_by_sqrt", {}),
    ("divide_by_sqrt", {"floor": 0.1}),
]
ids = functools.partial(map, lambda case: "-".join([case[0], *map(str, case[1].values())]))


def each_row(cases):
    return pytest.mark.parametrize(("name", "given_arguments"), cases, ids=list(ids(cases)))


def assert_same(got: Tensor | None, expected: Tensor | None, what: str) -> None:
    """The same bits, type and shape; NaN is equal to NaN."""
    assert got is not None and expected is not None, what
    assert got.dtype == expected.dtype and got.shape == expected.shape, (
        f"{what}: {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}"
    )
    same = (got == expected) | (got.isnan() & expected.isnan())
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} values differ"


def same_sequence(got, expected, what=""):
    """Equal results of signgd_multi_step or group_multi_step, whatever of them was kept."""
    for name, a, b in zip_longest(got._fields, got, expected):
        if name == "state":
            assert_same(a.v, b.v, f"{what} last v")
            assert a.t == b.t and a.buffer is None, f"{what} t"
        elif name == "x":
            assert len(a) == len(b), f"{what} x"
            for c, d in zip(a, b, strict=True):
                assert_same(c, d, f"{what} integrated x")
        elif a is not None or b is not None:
            assert_same(a, b, f"{what} {name}")


@dataclass
class Steps:
    """What the definition does, and the state before each step."""

    before: list[tuple[tuple[Tensor, ...] | None, SignGDState]]
    spikes: Tensor
    outputs: dict[str, Tensor]
    state: SignGDState
    x: tuple[Tensor, ...]
    ties: int

    def sequence(self, output, keep_v, keep_spikes) -> SignGDSequence:
        return SignGDSequence(
            self.outputs[output],
            self.state,
            self.x,
            self.outputs["decoded"] if keep_v else None,
            self.spikes if keep_spikes else None,
        )


def definition(x_seq, state, p, x=None) -> Steps:
    before, v_seq, spikes, signed, ties = [], [], [], [], 0
    for step in zip(*x_seq, strict=True):
        before.append((x, state))
        if x is not None:
            step = x = tuple(a + b for a, b in zip(x, step, strict=True))
        ties += int((state.v == p.target(*step)).sum())
        fires, state = signgd_step(step, state, p)
        v_seq.append(state.v)
        spikes.append(fires)
        signed.append(weighted_spike(fires, state, p))
    fires = torch.stack(spikes)
    outputs = {
        "decoded": torch.stack(v_seq),
        "signed": torch.stack(signed),
        "sigma": torch.where(fires, 1.0, -1.0),
        "fires": fires.float(),
    }
    return Steps(before, fires, outputs, state, x or (), ties)


def scales(v: Tensor):
    """No scale, a number and a value for each channel; powers of two, which keep ties."""
    channels = v.shape[1:2] if v.dim() > 1 else v.shape
    tensor = 2.0 ** torch.randint(-1, 2, (*channels, *[1] * (v.dim() - 2)))
    return {"no scale": 1.0, "number": 0.5, "tensor": tensor}


def drawn(shape, ties: bool) -> Tensor:
    """Normal values, or multiples of 1/8 from -4 to 4."""
    return torch.randint(-32, 33, shape) / 8 if ties else torch.randn(shape) * 2


def parameters(name, given_arguments, ties, scale, fires_at_tie=None):
    row = NONLINEARITIES[name]
    if fires_at_tie is not None:
        row = replace(row, fires_at_tie=fires_at_tie)
    return SignGDParameters(
        row, LATTICE if ties else SCHEDULE, scale=scale, arguments=given_arguments
    )


def inputs(arity: int, steps: int, kind: str, ties: bool):
    """x_seq, v and the integrated inputs of the spike view."""
    shapes = [SHAPES[kind]] * arity
    if kind == "broadcast":
        shapes[1] = shapes[1][1:-1] + (1,)
    x_seq = tuple(drawn((steps, *shape), ties) for shape in shapes)
    return x_seq, drawn(SHAPES[kind], ties), tuple(drawn(shape, ties) for shape in shapes)


def options(arity: int):
    """(T, shape, scale, spike view, fires at a tie): all of the last three for one T and shape,
    each T with each shape for one of them in turn."""
    product = list(
        itertools.product(("no scale", "number", "tensor"), (False, True), (False, True))
    )
    yield from ((7, "no power of two", *option) for option in product)
    kinds = [kind for kind in SHAPES if kind != "broadcast" or arity == 2]
    for i, (steps, kind) in enumerate(itertools.product(TIMES, kinds)):
        yield (steps, kind, *product[i * 5 % len(product)])
        if kind == "broadcast":
            yield (steps, kind, *product[(i * 5 + 1) % len(product)])


def test_every_row_with_code_is_compared():
    with_code = {name for name, row in NONLINEARITIES.items() if row.code}
    assert {name for name, _ in EXACT + NEAR} == with_code
    assert {name for name, _ in EXACT}.isdisjoint(name for name, _ in NEAR)


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@each_row(EXACT)
def test_exact_functions_give_the_definitions_bits(name, given_arguments, ties):
    """Every output, state and sequence, in both views, with each kind of scale and of tie."""
    met = 0
    for steps, kind, which, in_spikes, fires_at_tie in options(NONLINEARITIES[name].arity):
        x_seq, v, start = inputs(NONLINEARITIES[name].arity, steps, kind, ties)
        p = parameters(name, given_arguments, ties, scales(v)[which], fires_at_tie)
        x, state = start if in_spikes else None, SignGDState(v, 3)
        expected = definition(x_seq, state, p, x)
        met += expected.ties
        for i, output in enumerate(OUTPUTS):
            keep = {"keep_v": i % 2 == 1, "keep_spikes": i > 1}
            got = signgd_multi_step(x_seq, state, p, x=x, output=output, backend="cpu", **keep)
            what = f"T={steps}, {kind}, {which}, spike view {in_spikes}, {output}"
            same_sequence(got, expected.sequence(output, **keep), what)
    assert met or not ties, "no tie was met"


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next larger float32, as float64."""
    size = x.abs()
    return size.nextafter(torch.full_like(size, torch.inf)).double() - size.double()


def leeway(name: str, given_arguments, x: tuple[Tensor, ...], f: Tensor) -> Tensor:
    """8 ulp of f; of x / 2 for gelu, where 1 + erf or 1 + tanh cancels.

    torch's own erf on a CPU is up to 10 of these ulp off, which is added.
    """
    if name != "gelu":
        return 8 * ulp(f)
    exact = NONLINEARITIES[name](x[0].double(), **given_arguments)
    return 8 * ulp(x[0] / 2) + (f.double() - exact).abs()


def assert_near(name, given_arguments, v, x, got, expected, what) -> None:
    """(spikes, v after) of a step are the definition's, but for spikes where v is next to f(x)."""
    f = NONLINEARITIES[name](*x, **given_arguments)
    moved = got[0] != expected[0]
    far = (v.double() - f.double()).abs() > leeway(name, given_arguments, x, f)
    assert not bool((moved & far).any()), f"{what}: a spike differs where v is not next to f(x)"
    assert_same(got[1][~moved], expected[1][~moved], f"{what}: v")


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@each_row(NEAR)
def test_other_functions_differ_where_v_is_next_to_f(name, given_arguments, ties):
    """Step by step, each from the state that the definition has reached."""
    met = 0
    arity = NONLINEARITIES[name].arity
    for i, option in enumerate(options(arity)):
        steps, kind, which, in_spikes, fires_at_tie = option
        if steps == 33 and i % 2:
            continue
        x_seq, v, start = inputs(arity, steps, kind, ties)
        p = parameters(name, given_arguments, ties, scales(v)[which], fires_at_tie)
        done = definition(x_seq, SignGDState(v, 3), p, start if in_spikes else None)
        met += done.ties
        for t, (x, state) in enumerate(done.before):
            now = tuple(a[t : t + 1] for a in x_seq)
            got = signgd_multi_step(now, state, p, x=x, backend="cpu", keep_spikes=True)
            assert got.spike_seq is not None
            reached = tuple(a[0] for a in now)
            what = f"{option}, step {t}"
            if x is not None:
                reached = tuple(a + b for a, b in zip(x, reached, strict=True))
                for a, b in zip(got.x, reached, strict=True):
                    assert_same(a, b, f"{what}: x")
            assert_near(
                *(name, given_arguments, state.v, reached, (got.spike_seq[0], got.y[0])),
                (done.spikes[t], done.outputs["decoded"][t]),
                what,
            )
    without = name == "softplus" and not given_arguments  # is no multiple of 1/8 here
    assert met or not ties or without, "no tie was met"


@pytest.mark.parametrize("in_spikes", [False, True], ids=["decoded view", "spike view"])
@each_row(NEAR)
def test_a_spike_next_to_f_is_within_a_few_ulp(name, given_arguments, in_spikes):
    """v at every distance up to 30 ulp from f(x) on either side, for x over the range of f."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.linspace(-80, 30, 701)])
    for scale in (0.0, 1e-3):  # around the step and 0, where it is most delicate
        x = torch.cat([x, x[:701] * scale])
    args = (x,) if NONLINEARITIES[name].arity == 1 else (x, x.flip(0).abs() + 0.01)
    f = NONLINEARITIES[name](*args, **given_arguments)
    args, f = tuple(a[f.isfinite()] for a in args), f[f.isfinite()]
    unit = ulp(args[0] / 2) if name == "gelu" else ulp(f)
    distances = torch.arange(-30, 31)[:, None]
    v = (f.double() + distances * unit).float()
    row = replace(NONLINEARITIES[name], fires_at_tie=True)
    p = SignGDParameters(row, SCHEDULE, arguments=given_arguments)
    args = tuple(a.expand_as(v) for a in args)
    one, start = tuple(a[None] for a in args), None
    if in_spikes:
        one, start = tuple(a * 0 for a in one), args
    state = SignGDState(v)
    got = signgd_multi_step(one, state, p, x=start, backend="cpu", keep_spikes=True)
    expected = definition(one, state, p, start)
    assert got.spike_seq is not None
    spikes = (got.spike_seq[0], got.y[0]), (expected.spikes[0], expected.outputs["decoded"][0])
    assert_near(name, given_arguments, v, args, *spikes, name)
    assert bool(got.spike_seq[0, -1].all()) and not bool(got.spike_seq[0, 0].any())


@each_row(NEAR + EXACT[:2])
def test_outputs_of_one_kernel_agree(name, given_arguments):
    """What the fast path writes, what is kept, each output and a sequence cut anywhere."""
    v, scale = torch.randn(3, 1733), torch.rand(1733) + 0.5
    p = parameters(name, given_arguments, False, scale)
    arity = NONLINEARITIES[name].arity
    x_seq = tuple(torch.randn(9, 3, 1733) * 0.3 for _ in range(arity))
    for x in (None, tuple(torch.randn(3, 1733) for _ in range(arity))):
        run = functools.partial(signgd_multi_step, p=p, backend="cpu")
        whole = run(x_seq, SignGDState(v), x=x)
        assert whole.v_seq is None and whole.spike_seq is None
        for output in OUTPUTS:
            kept = run(x_seq, SignGDState(v), x=x, output=output, keep_v=True, keep_spikes=True)
            fires = kept.spike_seq
            size = torch.stack([p.schedule(t + 1) * scale for t in range(9)])[:, None]
            expected = {
                "decoded": whole.y,
                "signed": torch.where(fires, -size, size),
                "sigma": fires * 2.0 - 1,
                "fires": fires.float(),
            }[output]
            same_sequence(kept, (expected, whole.state, whole.x, whole.y, fires), output)
        state, parts = SignGDState(v), []
        for part in (slice(0, 1), slice(1, 5), slice(5, 9)):
            done = run(tuple(a[part] for a in x_seq), state, x=x)
            state, x = done.state, done.x if x is not None else None
            parts.append(done.y)
        assert_same(torch.cat(parts), whole.y, "the sequence cut into three calls")
        same_sequence(done, whole._replace(y=done.y), "the sequence cut into three calls")


# -- the rest of the signGD kernel ----------------------------------------------------------------

RELU = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE, scale=0.75)
LONG = SignGDParameters(NONLINEARITIES["maximum"], ExponentialSchedule(0.5, 0.99))


@pytest.mark.parametrize("in_spikes", [False, True], ids=["decoded view", "spike view"])
def test_sequences_longer_than_a_launch(in_spikes):
    """T = 700 takes three launches; cut into calls anywhere it is the same sequence."""
    steps, shape = 700, (3, 37)
    assert steps > 2 * arguments.STEPS
    x_seq = tuple(torch.randn(steps, *shape) * 0.1 for _ in range(2))
    x, state = tuple(torch.randn(2, *shape)) if in_spikes else None, SignGDState(torch.randn(shape))
    expected = definition(x_seq, state, LONG, x)
    for output in OUTPUTS:
        wanted = expected.sequence(output, True, True)
        run = functools.partial(
            *(signgd_multi_step,),
            p=LONG,
            output=output,
            backend="cpu",
            keep_v=True,
            keep_spikes=True,
        )
        same_sequence(run(x_seq, state, x=x), wanted, output)
        for cut in (1, 255, 256, 257, 512):
            first = run(tuple(a[:cut] for a in x_seq), state, x=x)
            carried = first.x if in_spikes else None
            rest = run(tuple(a[cut:] for a in x_seq), first.state, x=carried)
            joined = [torch.cat([getattr(a, k) for a in (first, rest)]) for k in SEQUENCES]
            same_sequence(
                rest._replace(**dict(zip(SEQUENCES, joined, strict=True))), wanted, output
            )


SEQUENCES = ("y", "v_seq", "spike_seq")


def layouts(x: Tensor) -> dict[str, Tensor]:
    """x [9, 4, 6, 10, 14] seen in other ways, of other shapes."""
    return {
        "contiguous": x[:3],
        "channels last": x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
        "time inside": x.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4),
        "transposed": x.transpose(1, 3),
        "strided": x[:, 1::2, ::3, :, 2::4],
        "every other step": x[::2],
        "the same in all steps": x[:1].expand(5, *x.shape[1:]),
        "the same for a batch": x[:, :1].expand(-1, 3, -1, -1, -1),
        "the same for channels": x[:, :, :1].expand(-1, -1, 2, -1, -1),
        "one value": x[:1, :1, :1, :1, :1].expand(3, 2, 3, 4, 5),
        "unaligned": x.flatten()[1 : 1 + 8 * 420].view(8, 3, 4, 5, 7),
        "no dimensions": x[:, 0, 0, 0, 0],
        "a row": x[:, 0, 0, 0],
    }


@pytest.mark.parametrize("kind", layouts(torch.empty(9, 4, 6, 10, 14)))
def test_inputs_and_states_of_any_layout(kind):
    x = layouts(torch.randn(9, 4, 6, 10, 14))[kind]
    other, dense = torch.randn(x.shape), torch.randn(x.shape[1:])
    channel = torch.rand(x.shape[2:3] + (1,) * (x.dim() - 3)) + 0.5 if x.dim() > 3 else 1.0
    p = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE, scale=channel)
    for x_seq, v, keep in (
        ((x, other), dense, False),
        ((other, x), x[0] * 0.5, True),
        ((other, other), x[-1], False),
        ((x, x), x[1], True),
    ):
        for start in (None, (x[0], dense)):
            state, kept = SignGDState(v), {"keep_v": keep, "keep_spikes": keep}
            got = signgd_multi_step(x_seq, state, p, x=start, backend="cpu", **kept)
            expected = definition(x_seq, state, p, start)
            same_sequence(got, expected.sequence("decoded", **kept), kind)
    q = GroupNeuronParameters(3, 1.1)
    for v in (x[0], dense):
        same_group(group_multi_step(x, v, q, backend="cpu", keep_v=True), x, v, q)
        assert_same(running_sum(x, v, "cpu"), running_sum(x, v, "torch"), "running sum")


def test_more_dimensions_than_a_kernel_steps_through():
    """Eight dimensions in several orders, none of which merge; a scale and an input with ones."""
    shape = (2, 3, 2, 3, 2, 3, 2, 3)
    assert len(shape) > arguments.DIMENSIONS

    def shuffled(*size: int) -> Tensor:
        order = torch.randperm(len(size)).tolist()
        back = [order.index(d) for d in range(len(size))]
        return torch.randn([size[d] for d in order]).permute(back)

    scale = torch.rand(1, 3, 1, 3, 1, 3, 1, 1) + 0.5
    p = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE, scale=scale)
    for start in (None, (shuffled(*shape), shuffled(*shape))):
        second = (5, *shape) if start else (5, 3, 1, 3, 1, 3, 1, 3)
        x_seq, state = (shuffled(5, *shape), shuffled(*second)), SignGDState(shuffled(*shape))
        got = signgd_multi_step(x_seq, state, p, x=start, backend="cpu", keep_v=True)
        expected = definition(x_seq, state, p, start).sequence("decoded", True, False)
        same_sequence(got, expected)
    x, v, q = shuffled(5, *shape), shuffled(*shape), GroupNeuronParameters(4, 0.7)
    same_group(group_multi_step(x, v, q, backend="cpu", keep_v=True), x, v, q)
    assert_same(running_sum(x, v, "cpu"), running_sum(x, v, "torch"), "running sum")


# the bytes of output from which a kernel fetches ahead, and from which it writes past the caches
FAR = {
    "in the caches": (2**40, 2**40),
    "fetched ahead": (1, 2**40),
    "written past the caches": (1, 1),
}


@pytest.fixture
def threads():
    """Sets torch's number of threads, back as it was at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def many(half: bool = False):
    """All kernels on work for three threads, none of the parts alike: name and result."""
    x = torch.randn(16, 7, 1801)
    v, grad = torch.randn(7, 1801), torch.randn(16, 7, 1801)
    x = x.half() if half else x
    start = (x[0].float(),)
    row = NONLINEARITIES["gelu"]
    p = SignGDParameters(row, SCHEDULE, scale=torch.rand(1801) + 0.5)
    q = GroupNeuronParameters(5, 1.3)
    for output, keep in (("decoded", False), ("signed", True)):
        options: dict[str, Any] = {"output": output, "dtype": torch.float32}
        options |= {"keep_v": keep, "keep_spikes": keep}
        yield f"decoded view {output}", signgd_multi_step((x,), SignGDState(v), p, **options)
        yield f"spike view {output}", signgd_multi_step((x,), SignGDState(v), p, x=start, **options)
    number = replace(p, scale=0.5)
    yield "no scale", signgd_multi_step((x,), SignGDState(v), number, dtype=torch.float32)
    yield "group", group_multi_step(x, v, q, dtype=torch.float32)
    yield "group with v", group_multi_step(x, v, q, counts=True, keep_v=True)
    yield "sum", (running_sum(x, v),)
    for name, run in (
        ("group", lambda a, b: group_multi_step(a, b, q, surrogate=Surrogate())[:2]),
        ("track", lambda a, b: signgd_multi_step((a,), SignGDState(b), p, surrogate=Surrogate())),
    ):
        leaves = [x.clone().requires_grad_(), v.clone().requires_grad_()]
        y = run(*leaves)[0]
        yield f"{name} gradient", torch.autograd.grad((y * grad).sum(), leaves)


def flat(result) -> list[Tensor]:
    parts = [flat(part) for part in result if isinstance(part, tuple)]
    return [a for a in result if isinstance(a, Tensor)] + list(itertools.chain(*parts))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("far", FAR)
def test_threads_and_the_way_of_writing_change_nothing(threads, monkeypatch, half, far):
    """1, 2 and 3 threads, and outputs that are written past the caches, give the same bits."""
    threads(1)
    torch.manual_seed(1)
    expected = dict(many(half))
    monkeypatch.setattr(launch, "FAR", FAR[far])
    for number in (1, 2, 3):
        threads(number)
        torch.manual_seed(1)
        for name, result in many(half):
            for a, b in zip(flat(result), flat(expected[name]), strict=True):
                assert_same(a, b, f"{name}, {number} threads")


@pytest.mark.parametrize("far", FAR)
def test_small_outputs_written_in_each_way(monkeypatch, far):
    """Rows of every alignment and length around that of a vector and of a part of a block."""
    monkeypatch.setattr(launch, "FAR", FAR[far])
    q = GroupNeuronParameters(3, 0.9)
    for neurons in (*range(1, 36), 255, 256, 257, 4095, 4096, 4097, 4113):
        x, v = torch.randn(3, neurons), torch.randn(neurons)
        state = SignGDState(v)
        got = signgd_multi_step((x,), state, RELU, backend="cpu")
        same_sequence(got, definition((x,), state, RELU).sequence("decoded", False, False))
        same_group(group_multi_step(x, v, q, backend="cpu"), x, v, q)


def test_a_tensor_parameter_of_f_is_read_like_an_input():
    """prelu with a slope for each channel, in both views, also beside inputs of half precision."""
    weight, x, v = torch.randn(5, 1), torch.randn(6, 3, 5, 7), torch.randn(3, 5, 7)
    p = SignGDParameters(NONLINEARITIES["prelu"], SCHEDULE, arguments={"weight": weight})
    for x_seq, start in itertools.product((x, x.bfloat16()), (None, (v * 0.5,))):
        run = functools.partial(signgd_multi_step, (x_seq,), SignGDState(v), p, x=start)
        same_sequence(run(backend="cpu"), run(backend="torch"))


@pytest.mark.parametrize(
    "row",
    [
        NONLINEARITIES["pow"],
        NONLINEARITIES["max_pool"],
        NONLINEARITIES["amax"],
        NONLINEARITIES["max"],
        nonlinearity(lambda x: (x - x.mean(-1, keepdim=True)).abs()),
    ],
    ids=lambda row: row.name,
)
def test_functions_without_code_are_computed_for_the_kernel(row):
    """f of other shapes too, in both views; what an input integrates comes back all the same."""
    window = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    given_arguments = {
        "pow": {"exponent": 2.0},
        "max_pool": window,
        "amax": {"dim": (-1, -2), "keepdim": True},
    }.get(row.name, {})
    p = SignGDParameters(row, SCHEDULE, arguments=given_arguments)
    x = tuple(torch.randn(7, 2, 3, 4, 6) for _ in range(3 if row.name == "max" else 1))
    v = torch.randn_like(p.target(*(a[0] for a in x)))
    assert function_choice("cpu", x[0], p).backend == "torch"
    for output, start in itertools.product(OUTPUTS, (None, tuple(a[0] for a in x))):
        keep = {"keep_v": True, "keep_spikes": True}
        got = signgd_multi_step(
            x, SignGDState(v, 2), p, x=start, output=output, backend="cpu", **keep
        )
        expected = definition(x, SignGDState(v, 2), p, start)
        same_sequence(got, expected.sequence(output, **keep), f"{output}, {start is None}")


# -- types ----------------------------------------------------------------------------------------

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("half", HALVES, ids=str)
@each_row([case for case in EXACT if case[0] in ("relu", "hardswish", "mul", "div", "rsqrt")])
def test_half_inputs_keep_float32_states(name, given_arguments, half):
    """float32 inside, outputs rounded once; in any layout, with the types of the output mixed."""
    arity = NONLINEARITIES[name].arity
    x_seq = tuple((torch.randn(7, 3, 65, 5) * 2).to(half) for _ in range(arity))
    transposed = tuple(a.transpose(1, 2).contiguous().transpose(1, 2) for a in x_seq)
    v, start = torch.randn(3, 65, 5), tuple(torch.randn(3, 65, 5) for _ in range(arity))
    p = parameters(name, given_arguments, False, torch.rand(65, 1) + 0.5)
    for x, output in itertools.product((None, start), OUTPUTS):
        for dtype in (None, torch.float32, *HALVES):
            run = functools.partial(
                signgd_multi_step, state=SignGDState(v), p=p, x=x, output=output, dtype=dtype
            )
            expected = run(x_seq, backend="torch", keep_v=True)
            assert expected.y.dtype == (dtype or half) and expected.state.v.dtype == torch.float32
            for a in (x_seq, transposed):
                same_sequence(run(a, backend="cpu", keep_v=True), expected, f"{output} {dtype}")
            assert_same(run(x_seq, backend="cpu").y, expected.y, f"{output} {dtype}")


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_group_neurons_of_half_inputs(half):
    x, v, p = torch.randn(9, 3, 65).to(half), torch.randn(3, 65), GroupNeuronParameters(6, 1.9)
    for dtype, counts in itertools.product((None, torch.float32, torch.float16), (False, True)):
        run = functools.partial(group_multi_step, x, v, p, dtype=dtype, counts=counts)
        same_sequence(run(backend="cpu"), run(backend="torch"), f"{dtype}, counts={counts}")
    assert_same(running_sum(x, v, "cpu"), running_sum(x, v, "torch"), "running sum")


def test_spikes_and_counts_in_bytes():
    """sigma is -1 or 1, fires 0 or 1, a count 0 to m: all are int8, also where the input is NaN."""
    x, v = torch.randn(9, 3, 65), torch.randn(3, 65)
    x[2, 1] = torch.nan
    for output, values in (("sigma", {-1, 1}), ("fires", {0, 1})):
        run = functools.partial(
            signgd_multi_step, (x,), SignGDState(v), RELU, output=output, dtype=torch.int8
        )
        got = run(backend="cpu")
        same_sequence(got, run(backend="torch"), output)
        assert got.y.dtype == torch.int8 and set(got.y.unique().tolist()) == values
    for members in (1, 5, 127):
        p = GroupNeuronParameters(members, 1.7)
        count = functools.partial(group_multi_step, x, v, p, counts=True, dtype=torch.int8)
        same_sequence(count(backend="cpu"), count(backend="torch"), f"{members} members")
        values = count(backend="cpu").y
        assert values.min() == 0 and values.max() == members
    with pytest.raises(ValueError, match="int8 does not hold counts up to 128"):
        group_multi_step(x, v, GroupNeuronParameters(128), counts=True, dtype=torch.int8)


def test_inputs_that_are_not_finite():
    """NaN and infinity as inputs, states and integrated inputs do what they do in torch."""
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-40, 1.0])
    x, v = (a.reshape(9, 9) for a in torch.meshgrid(odd, odd, indexing="ij"))
    x_seq = torch.stack([x, torch.randn(9, 9), x.flip(0), x.T, torch.zeros(9, 9)])
    for m, x_seq_type in itertools.product((1, 3, 255), (torch.float32, torch.bfloat16)):
        p = GroupNeuronParameters(m, 2.0)
        now = x_seq.to(x_seq_type)
        got = group_multi_step(now, v, p, backend="cpu", keep_v=True)
        same_sequence(got, group_multi_step(now, v, p, backend="torch", keep_v=True), f"m={m}")
        if m == 3:
            all_fire = group_multi_step(now, v, p, counts=True, backend="cpu").y[0]
            assert bool((all_fire[x.isnan() | v.isnan()] == 3).all())
    for name, given_arguments in EXACT:
        arity = NONLINEARITIES[name].arity
        for start in (None, (v,) * arity):
            p = parameters(name, given_arguments, False, 1.0)
            args = ((x_seq, x_seq.transpose(1, 2))[:arity], SignGDState(v), p)
            keep = {"keep_v": True, "keep_spikes": True}
            got = signgd_multi_step(*args, x=start, backend="cpu", **keep)
            same_sequence(got, definition(*args, start).sequence("decoded", **keep), name)


def test_wider_types_run_the_definition():
    """float64 inputs keep float64 states; a type that no kernel writes is returned all the same."""
    x, v = torch.randn(5, 7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    got = signgd_multi_step((x,), SignGDState(v), RELU)
    assert got.y.dtype == got.state.v.dtype == torch.float64
    assert_same(got.y, definition((x,), SignGDState(v), RELU).outputs["decoded"], "float64")
    assert group_multi_step(x, v, GroupNeuronParameters(2)).v.dtype == torch.float64
    assert running_sum(x, v).dtype == torch.float64
    x, v = x.float(), v.float()
    fires = signgd_multi_step((x,), SignGDState(v), RELU, output="fires", dtype=torch.bool)
    kernel = signgd_multi_step((x,), SignGDState(v), RELU, output="fires", backend="cpu")
    assert_same(fires.y, kernel.y.bool(), "fires as bool")
    wide = signgd_multi_step((x,), SignGDState(v), replace(RELU, scale=torch.tensor(0.1).double()))
    expected = definition((x,), SignGDState(v), replace(RELU, scale=torch.tensor(0.1).double()))
    assert_same(wide.y, expected.outputs["decoded"], "a float64 scale")


def test_autocast_leaves_states_in_float32():
    weight, x = torch.randn(6, 6), torch.randn(5, 3, 6)
    p = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE, scale=torch.rand(6) + 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        current = torch.nn.functional.linear(x, weight)
        start = (torch.zeros(3, 6),) * 2
        inside = signgd_multi_step((current, current), SignGDState(torch.zeros(3, 6)), p, x=start)
        group = group_multi_step(current, torch.zeros(3, 6), GroupNeuronParameters(3))
        sums = running_sum(current, torch.zeros(3, 6))
    assert current.dtype == inside.y.dtype == group.y.dtype == torch.bfloat16
    assert {a.dtype for a in (inside.state.v, *inside.x, group.v, sums)} == {torch.float32}
    state = SignGDState(torch.zeros(3, 6))
    outside = signgd_multi_step((current, current), state, p, x=start, backend="torch")
    same_sequence(inside, outside)
    q = GroupNeuronParameters(3)
    same_sequence(group, group_multi_step(current, torch.zeros(3, 6), q, backend="torch"))


# -- group neurons --------------------------------------------------------------------------------


def same_group(got, x_seq, v, p, what=""):
    y, last = scan(group_step, x_seq, v, p)
    assert_same(got.y, y, f"{what} output")
    assert_same(got.v, last, f"{what} v")
    if got.v_seq is not None:
        v_seq, _ = scan(lambda x, v, p: (group_step(x, v, p)[1],) * 2, x_seq, v, p)
        assert_same(got.v_seq, v_seq, f"{what} v_seq")


@pytest.mark.parametrize("members", [1, 2, 3, 8, 16, 255])
@pytest.mark.parametrize("v_threshold", [1.0, 0.37, 3.3])
def test_group_neurons_give_the_definitions_bits(members, v_threshold):
    p = GroupNeuronParameters(members, v_threshold)
    on_thresholds = 0
    for (kind, shape), steps in itertools.product(SHAPES.items(), TIMES):
        random = torch.randn(steps, *shape) * v_threshold, torch.full(shape, p.v_initial)
        # k theta as the definition rounds it: v is 0 in the first step, often a multiple later
        k = torch.randint(-2, members + 3, (steps, *shape)).float()
        k[1:] -= torch.randint(0, 2, (1,))
        ties = k * p.theta, torch.zeros(shape)
        on_thresholds += int(torch.isin(ties[0][0], p.thresholds(ties[1])).sum())
        for x, v in (random, ties):
            got = group_multi_step(x, v, p, backend="cpu", keep_v=True)
            same_group(got, x, v, p, f"{kind}, T={steps}")
            assert_same(group_multi_step(x, v, p, backend="cpu").y, got.y, f"{kind} without v_seq")
            n = group_multi_step(x, v, p, backend="cpu", counts=True)
            assert_same(n.y * p.theta, got.y, f"{kind} counts")
            assert_same(n.v, got.v, f"{kind} counts")
            assert bool(((n.y == n.y.round()) & (n.y >= 0) & (n.y <= members)).all())
    assert on_thresholds, "no input was on a threshold"


def test_inputs_around_every_threshold():
    """The 64 floats on either side of every k theta, where a quotient would round to another k."""
    for members, v_threshold in (
        (1, 0.7),
        (3, 1.1),
        (7, 0.1),
        (100, 1.0),
        (255, 5.7),
        (2**15, 3.3),
    ):
        p = GroupNeuronParameters(members, v_threshold)
        thresholds = p.thresholds(torch.zeros(()))[:: max(1, members // 300)]
        bits = thresholds.view(torch.int32)[:, None] + torch.arange(-64, 65, dtype=torch.int32)
        x = bits.view(torch.float32)[None]
        got = group_multi_step(x, torch.zeros(x.shape[1:]), p, backend="cpu")
        same_group(got, x, torch.zeros(x.shape[1:]), p, f"m={members}")


@given(st.data())
def test_group_neurons_on_a_lattice_are_integer_arithmetic(data):
    """With theta 1 or 1/2 and multiples of it everything is exact, so integers are the oracle."""
    members = data.draw(st.sampled_from([1, 2, 3, 8, 255]))
    theta = data.draw(st.sampled_from([1.0, 0.5]))
    steps, neurons = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    values = st.integers(-2 * members, 2 * members)
    x = data.draw(st.lists(values, min_size=steps * neurons, max_size=steps * neurons))
    v = data.draw(st.lists(values, min_size=neurons, max_size=neurons))
    p = GroupNeuronParameters(members, members * theta)
    x_seq = (torch.tensor(x, dtype=torch.float32) * theta).view(steps, neurons)
    got = group_multi_step(x_seq, torch.tensor(v) * theta, p, counts=True, backend="cpu")
    counts = []
    for t in range(steps):
        h = [a + b for a, b in zip(v, x[t * neurons : (t + 1) * neurons], strict=True)]
        counts.append([min(max(a, 0), members) for a in h])
        v = [a - n for a, n in zip(h, counts[-1], strict=True)]
    assert got.y.tolist() == counts
    assert got.v.tolist() == [a * theta for a in v]


# -- gradients ------------------------------------------------------------------------------------


def assert_gradients(run, leaves, what=""):
    """run(backend, *leaves) gives outputs: the same values, and gradients to rtol 1e-5."""
    found = {}
    for backend in ("torch", "cpu"):
        copies = [a.clone().requires_grad_() for a in leaves]
        outputs = run(backend, *copies)
        generator = torch.Generator().manual_seed(7)
        weights = [torch.randn(a.shape, generator=generator) for a in outputs]
        loss = sum((a.float() * w).sum() for a, w in zip(outputs, weights, strict=True))
        found[backend] = outputs, torch.autograd.grad(loss, copies)
    for i, (a, b) in enumerate(zip(found["cpu"][0], found["torch"][0], strict=True)):
        assert_same(a, b, f"{what}: output {i}")
    for i, (a, b) in enumerate(zip(found["cpu"][1], found["torch"][1], strict=True)):
        assert a.dtype == b.dtype
        tolerance = 1e-5 if a.dtype == torch.float32 else 1e-2
        size = tolerance * float(b.abs().max())
        torch.testing.assert_close(
            *(a, b),
            rtol=tolerance,
            atol=size,
            msg=lambda m, i=i: f"{what}: gradient of leaf {i}: {m}",
        )
        assert float(b.abs().max()) > 0


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_group_neurons(kind, detach_reset):
    """Of the input and of the first potential, through output and last potential."""
    for members, steps, shape in (
        (1, 7, (3, 5)),
        (8, 33, (2, 3, 17)),
        (3, 1, (1,)),
        (2, 300, (9,)),
    ):
        p = GroupNeuronParameters(members, 0.9)
        surrogate = Surrogate(kind, 3.0)

        def run(backend, x, v, p=p, surrogate=surrogate):
            done = group_multi_step(
                *(x, v, p), backend=backend, surrogate=surrogate, detach_reset=detach_reset
            )
            return done.y, done.v

        assert_gradients(run, (torch.randn(steps, *shape), torch.randn(shape)), f"m={members}")


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_gradients_of_group_neurons_with_half_inputs(half):
    """The gradient of the input is rounded to its type, that of v is float32."""
    p = GroupNeuronParameters(4, 1.2)

    def run(backend, x, v):
        done = group_multi_step(x, v, p, backend=backend, surrogate=Surrogate("atan", 2.0))
        return done.y, done.v

    assert_gradients(run, (torch.randn(9, 3, 5).to(half), torch.randn(3, 5)), str(half))


@pytest.mark.parametrize("in_spikes", [False, True], ids=["decoded view", "spike view"])
@pytest.mark.parametrize("output", ["decoded", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_signgd_neurons(kind, output, in_spikes):
    """Of both arguments, the first v and the first integrated inputs; with and without a scale."""
    for steps, shape, scaled in ((7, (3, 5), True), (33, (2, 3, 17), False), (300, (11,), True)):
        scale = torch.rand(shape[-1]) + 0.3 if scaled else 0.7
        p = SignGDParameters(NONLINEARITIES["mul"], ExponentialSchedule(0.4, 0.97), scale=scale)

        def run(backend, a, b, v, *start, p=p):
            done = signgd_multi_step(
                *((a, b), SignGDState(v, 2), p),
                x=start or None,
                output=output,
                backend=backend,
                surrogate=Surrogate(kind, 2.0),
            )
            return (done.y, done.state.v, *done.x)

        factor = 0.1 if in_spikes else 1.0
        leaves = [torch.randn(steps, *shape) * factor for _ in range(2)]
        leaves += [torch.randn(shape) for _ in range(3 if in_spikes else 1)]
        assert_gradients(run, leaves, f"T={steps}")


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_gradients_of_signgd_neurons_with_half_inputs(half):
    p = SignGDParameters(NONLINEARITIES["tanh"], SCHEDULE)

    def run(backend, x, v, *start):
        done = signgd_multi_step(
            (x,), SignGDState(v), p, x=start or None, backend=backend, surrogate=Surrogate()
        )
        return (done.y, done.state.v, *done.x)

    leaves = torch.randn(9, 3, 5).to(half), torch.randn(3, 5), torch.randn(3, 5)
    assert_gradients(run, leaves[:2], "decoded view")
    assert_gradients(run, leaves, "spike view")


def test_gradients_of_what_is_kept_and_of_functions_without_code():
    """v_seq has the gradient too; max pooling passes it on to the largest of a window."""
    window = {"kernel_size": (2,), "stride": (2,), "padding": (0,), "dilation": (1,)}
    p = SignGDParameters(NONLINEARITIES["max_pool"], SCHEDULE, arguments=window)

    def run(backend, x, v, output):
        done = signgd_multi_step(
            *((x,), SignGDState(v), p),
            output=output,
            backend="auto" if backend == "cpu" else backend,
            surrogate=Surrogate("atan"),
            keep_v=True,
        )
        return done.y, done.v_seq

    for output in OUTPUTS[:2]:
        once = functools.partial(run, output=output)
        assert_gradients(once, (torch.randn(5, 3, 8), torch.randn(3, 4)), output)


def test_gradients_where_a_parameter_of_f_has_more_dimensions_than_x():
    """The first dimension of a slope [2, 3] is no time, also where T is 2."""
    p = SignGDParameters(NONLINEARITIES["prelu"], SCHEDULE, arguments={"weight": torch.randn(2, 3)})

    def run(backend, x, v):
        return (
            signgd_multi_step((x,), SignGDState(v), p, backend=backend, surrogate=Surrogate()).y,
        )

    assert_gradients(run, (torch.randn(2, 3), torch.randn(2, 3)))


def test_a_gradient_that_the_kernels_lack_is_refused_where_they_are_asked_for():
    x, v, group = torch.randn(5, 3), torch.zeros(3), GroupNeuronParameters(2)
    step = signgd_multi_step
    refused = {
        "lambda": lambda: group_multi_step(x, v, group, backend="cpu", surrogate=lambda u: u >= 0),
        "v_seq": lambda: group_multi_step(
            x, v, group, backend="cpu", surrogate=Surrogate(), keep_v=True
        ),
        "spikes": lambda: step(
            (x,), SignGDState(v), RELU, backend="cpu", surrogate=Surrogate(), keep_spikes=True
        ),
    }
    for name, call in refused.items():
        with pytest.raises(BackendUnavailable, match="backend='cpu': the kernels"):
            call()
            pytest.fail(name)


def test_without_a_surrogate_no_gradient_is_recorded():
    x, v = torch.randn(5, 3, requires_grad=True), torch.zeros(3)
    for backend in ("auto", "torch"):
        assert not group_multi_step(x, v, GroupNeuronParameters(2), backend=backend).v.requires_grad
        done = signgd_multi_step((x,), SignGDState(v), RELU, backend=backend)
        assert not done.y.requires_grad


def test_schedules_that_tell_the_same_of_themselves_are_kept_apart():
    class Vague:
        def __init__(self, eta):
            self.eta = eta

        def __call__(self, t):
            return self.eta

        def to_dict(self):
            return {"kind": "vague"}

    x, v = torch.ones(1, 1), torch.zeros(1)
    for eta in (0.5, 0.25):
        p = SignGDParameters(RELU.function, Vague(eta))
        assert signgd_multi_step((x,), SignGDState(v), p).y.item() == eta


def test_any_callable_serves_as_surrogate():
    """It runs the definition, with the gradient that the callable has."""
    x, v = torch.randn(5, 3), torch.zeros(3)
    named = Surrogate("sigmoid", 3.0)
    grads = []
    for surrogate in (named, lambda x: named(x)):
        a = x.clone().requires_grad_()
        y = signgd_multi_step((a,), SignGDState(v), RELU, surrogate=surrogate).y.sum()
        b = x.clone().requires_grad_()
        y = y + group_multi_step(b, v, GroupNeuronParameters(2), surrogate=surrogate).y.sum()
        grads.append(torch.autograd.grad(y, (a, b)))
    torch.testing.assert_close(grads[0], grads[1])
    for output in OUTPUTS[2:]:
        with pytest.raises(ValueError, match="no gradient"):
            signgd_multi_step((x,), SignGDState(v), RELU, output=output, surrogate=named)
    with pytest.raises(ValueError, match="no gradient"):
        group_multi_step(x, v, GroupNeuronParameters(2), counts=True, surrogate=named)


@pytest.mark.spikingjelly
@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_surrogates_are_spikingjellys(alpha):
    """Step and derivative, on both sides of each kink."""
    from spikingjelly.activation_based import surrogate

    for kind, theirs in (
        ("sigmoid", surrogate.Sigmoid(alpha)),
        ("atan", surrogate.ATan(alpha)),
        ("piecewise_quadratic", surrogate.PiecewiseQuadratic(alpha)),
    ):
        x = torch.linspace(-3, 3, 1201, requires_grad=True)
        steps = [f(x) for f in (Surrogate(kind, alpha), theirs)]
        assert_same(*steps, f"{kind} forward")
        mine, expected = (torch.autograd.grad(y.sum(), x)[0] for y in steps)
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6, msg=kind)
    with pytest.raises(ValueError, match="kind is one of sigmoid, atan"):
        Surrogate("rectangle")
    with pytest.raises(ValueError, match="alpha is positive"):
        Surrogate("atan", 0.0)


# -- what runs, and what is refused ---------------------------------------------------------------

X, V = torch.zeros(3, 4), torch.zeros(4)
GROUP = GroupNeuronParameters(2)


def test_a_choice_says_what_runs_and_why():
    assert backends()["torch"] == "" and backends()["cpu"] == ""
    assert signgd_choice("auto", X, RELU) == ("cpu", "")
    assert signgd_choice("torch", X, RELU).backend == "torch"
    for dtype, p, reason in (
        (torch.float64, RELU, r"float32 states, but the input is torch.float64; pass x.float\(\)"),
        (torch.float32, replace(RELU, momentum=0.5), "no momentum"),
        (torch.float32, replace(RELU, scale=torch.ones(1).half()), r"pass scale.float\(\)"),
    ):
        choice = signgd_choice("auto", X.to(dtype), p)
        assert choice.backend == "torch"
        with pytest.raises(BackendUnavailable, match=f"backend='cpu': .*{reason}"):
            signgd_choice("cpu", X.to(dtype), p)
        with pytest.raises(BackendUnavailable, match=reason):
            signgd_multi_step((X.to(dtype),), SignGDState(V), p, backend="cpu")
    for p in (GroupNeuronParameters(2**15 + 1), GroupNeuronParameters(1, 2.0**-101)):
        assert "32768 members" in group_choice("auto", X, p).reason
        with pytest.raises(BackendUnavailable, match="32768 members"):
            group_multi_step(X, V, p, backend="cpu")
    for run in (
        lambda backend: signgd_multi_step((X,), SignGDState(V), RELU, backend=backend),
        lambda backend: group_multi_step(X, V, GROUP, backend=backend),
        lambda backend: running_sum(X, V, backend),
    ):
        with pytest.raises(ValueError, match="one of auto, cpu, cupy, torch, but it is 'numpy'"):
            run("numpy")
        with pytest.raises(BackendUnavailable, match=r"runs on cuda .* on cpu. Move it with .to"):
            run("cupy")


def test_momentum_runs_the_definition():
    p = replace(RELU, momentum=0.5)
    got = signgd_multi_step((torch.randn(5, 4),), SignGDState(V), p)
    assert got.state.buffer is not None


def test_states_of_another_type_are_refused():
    """A float16 state read as float32 would be memory that is not there."""
    for dtype in HALVES:
        with pytest.raises(InputError, match=f"states are float32.*{dtype}"):
            signgd_multi_step((X,), SignGDState(V.to(dtype)), RELU)
        with pytest.raises(InputError, match=f"states are float32.*{dtype}"):
            signgd_multi_step((X,), SignGDState(V), RELU, x=(V.to(dtype),))
        with pytest.raises(InputError, match=f"states are float32.*{dtype}"):
            group_multi_step(X, V.to(dtype), GROUP)
        assert running_sum(X.to(dtype), V.to(dtype)).dtype == dtype
    for backend in ("auto", "torch"):
        wide = signgd_multi_step((X,), SignGDState(V.double()), RELU, backend=backend)
        assert wide.state.v.dtype == torch.float64
    for run in (
        lambda: signgd_multi_step((X,), SignGDState(V.double()), RELU, backend="cpu"),
        lambda: signgd_multi_step((X,), SignGDState(V), RELU, x=(V.double(),), backend="cpu"),
        lambda: group_multi_step(X, V.double(), GROUP, backend="cpu"),
    ):
        with pytest.raises(BackendUnavailable, match="float32 states.*reset the neuron"):
            run()
    operator = torch.ops.spikingjelly_signgd
    for state in (V.double(), V.half()):
        with pytest.raises(InputError, match="read states and scales in float32"):
            operator.group(X, state, None, None, 2, 0.5, False, torch.float32, False)
        with pytest.raises(InputError, match="read states and scales in float32"):
            operator.running_sum(X, state)
    with pytest.raises(InputError, match="inputs of one type, float32, float16 or bfloat16"):
        operator.running_sum(X.double(), V)


def test_types_that_are_no_numbers_of_a_neuron_are_refused():
    for dtype in (torch.int64, torch.int8, torch.bool):
        with pytest.raises(InputError, match=rf"floating-point, but one is {dtype}; use x.float"):
            signgd_multi_step((X.to(dtype),), SignGDState(V), RELU)
        with pytest.raises(InputError, match=rf"floating-point, but one is {dtype}; use x.float"):
            group_multi_step(X.to(dtype), V, GROUP)
    for run in (
        lambda: signgd_multi_step((X,), SignGDState(V), RELU, dtype=torch.int32, backend="cpu"),
        lambda: group_multi_step(X, V, GROUP, counts=True, dtype=torch.int32, backend="cpu"),
    ):
        with pytest.raises(BackendUnavailable, match="write float32, .*but dtype is torch.int32"):
            run()


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu"])
def test_shapes_that_do_not_fit_are_refused(backend):
    product = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE)
    own = SignGDParameters(nonlinearity(lambda x: x), SCHEDULE)
    run = functools.partial(signgd_multi_step, backend=backend)
    for x_seq, v, p, x, match in (
        ((), V, RELU, None, "has 1 arguments, but there are 0"),
        ((X[:0],), V, RELU, None, r"\[T, \*\] with T >= 1.*\[\[0, 4\]\]"),
        ((torch.tensor(1.0),), V, RELU, None, "T >= 1"),
        ((X, X[:2]), V, product, None, r"the same T, but they have \[3, 2\]"),
        ((X,), V, product, None, "'mul' has 2 arguments, but there are 1"),
        ((X,), V[:3], RELU, None, r"do not fit a state v of \[3\]. Reset the neuron"),
        ((X,), torch.zeros(1), RELU, None, r"do not fit a state v of \[1\]. Reset"),
        ((X,), torch.zeros(()), RELU, None, r"do not fit a state v of \[\]. Reset"),
        ((X,), V[:3], own, None, "Reset the neuron|match the size"),
        ((X,), V, RELU, (V[:3],), r"x is \[\[3\]\]. Reset the neuron"),
        ((X,), V, RELU, (), r"x is \[\]. Reset the neuron"),
    ):
        with pytest.raises((InputError, RuntimeError), match=match):
            run(x_seq, SignGDState(v), p, x=x)
    for x_seq, v in ((X[:0], V), (X, V[:3]), (torch.tensor(1.0), V), (X, torch.zeros(1))):
        with pytest.raises(InputError, match=r"x_seq is \[T, \*v.shape\] with T >= 1"):
            group_multi_step(x_seq, v, GROUP, backend=backend)
    with pytest.raises(ValueError, match="output is one of decoded, signed, sigma, fires"):
        run((X,), SignGDState(V), RELU, output="spikes")
    short = replace(RELU, schedule=ListSchedule((0.5, 0.25)))
    with pytest.raises(ValueError, match="step 3 was asked for"):
        run((X,), SignGDState(V), short)


def test_a_state_that_f_does_not_fill_is_refused():
    """A callable's f may have any shape: [1] or [4] for a state [4], never [3, 4]."""
    p = SignGDParameters(nonlinearity(lambda x: x.expand(3, 4)), SCHEDULE)
    for backend in ("torch", "cpu"):
        with pytest.raises(InputError, match="Reset the neuron"):
            signgd_multi_step((X,), SignGDState(V), p, backend=backend)


def test_devices_are_one():
    """No kernels for a device: the definition runs there, and says so; two devices are an error."""
    x, v = X.to("meta"), V.to("meta")
    assert choose("auto", "meta") == ("torch", "there are no kernels for meta")
    assert signgd_multi_step((x,), SignGDState(v), RELU).y.is_meta
    assert running_sum(x, v).is_meta
    with pytest.raises(BackendUnavailable, match="runs on cpu tensors, but the input is on meta"):
        signgd_multi_step((x,), SignGDState(v), RELU, backend="cpu")
    for run in (
        lambda: signgd_multi_step((X,), SignGDState(v), RELU),
        lambda: signgd_multi_step((x,), SignGDState(V), RELU),
        lambda: signgd_multi_step((X,), SignGDState(V), RELU, x=(v,)),
        lambda: group_multi_step(x, V, GROUP),
    ):
        with pytest.raises(InputError, match="cpu.*meta|meta.*cpu"):
            run()


def test_where_f_is_computed():
    for name, given_arguments, backend, reason in (
        ("relu", {}, "cpu", ""),
        ("pow", {"exponent": 2.0}, "torch", "the row 'pow' has no C code."),
        ("clamp", {"min": torch.zeros(4)}, "torch", "'clamp' has no C code for its arguments min"),
        ("prelu", {"weight": 0.5}, "torch", "no C code for its arguments weight"),
    ):
        p = SignGDParameters(NONLINEARITIES[name], SCHEDULE, arguments=given_arguments)
        choice = function_choice("auto", X, p)
        assert choice.backend == backend and reason in choice.reason
    assert function_choice("auto", X.double(), RELU).backend == "torch"


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """The package as it is where there was no compiler."""
    cpu.library.cache_clear()
    for known in (RELU.ready, GROUP.ready, operators._sums):  # of a process that has it
        known.clear()
    choices._warn.cache_clear()
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    yield cpu.LIBRARY
    choices._warn.cache_clear()
    cpu.library.cache_clear()


def test_without_the_library_the_definition_runs_and_says_so(no_library):
    x, v = torch.randn(5, 4), torch.randn(4)
    for choice in (signgd_choice("auto", x, RELU), group_choice("auto", x, GROUP)):
        assert choice.backend == "torch"
        assert "not built: when the package was installed" in choice.reason
    assert "Install g++" in backends()["cpu"]
    got = signgd_multi_step((x,), SignGDState(v), RELU, backend="auto")
    same_sequence(got, definition((x,), SignGDState(v), RELU).sequence("decoded", False, False))
    same_group(group_multi_step(x, v, GROUP), x, v, GROUP)
    for run in (
        lambda: signgd_multi_step((x,), SignGDState(v), RELU, backend="cpu"),
        lambda: group_multi_step(x, v, GROUP, backend="cpu"),
        lambda: running_sum(x, v, "cpu"),
    ):
        with pytest.raises(
            BackendUnavailable, match=r"Install g\+\+ or clang\+\+ and run .*neurons\.kernels`"
        ):
            run()


def test_a_library_that_cannot_be_loaded_counts_as_missing(no_library):
    no_library.write_bytes(b"not a library")
    assert "cannot be loaded" in signgd_choice("auto", X, RELU).reason
    with pytest.raises(BackendUnavailable, match="_cpu.so cannot be loaded.*Build it again with"):
        signgd_multi_step((X,), SignGDState(V), RELU, backend="cpu")


def test_without_the_library_that_is_said_once(no_library):
    with pytest.warns(KernelsWarning, match=r"slower.*Install g.*run `python -m .*\.kernels`"):
        signgd_multi_step((X,), SignGDState(V), RELU)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        signgd_multi_step((X,), SignGDState(V), RELU)
        group_multi_step(X, V, GROUP)
        assert signgd_choice("torch", X, RELU).backend == "torch"
    assert not told


def test_what_is_asked_for_is_not_warned_of(no_library):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        signgd_multi_step((X,), SignGDState(V), RELU, backend="torch")
        assert "missing: the CPU kernels are not built" in repr(backends())
        assert choices.runs("auto") == "auto (torch)" and choices.runs("torch") == "torch"
    assert not told


# -- what a fresh reading found --------------------------------------------------------------------


def test_a_float64_argument_is_compared_in_float64_by_the_definition():
    weight = torch.tensor([0.1], dtype=torch.float64)
    p = SignGDParameters(NONLINEARITIES["prelu"], SCHEDULE, arguments={"weight": weight})
    x, v = torch.full((1, 1), -1.0), torch.full((1,), -0.1)
    assert "float64" in signgd_choice("auto", x, p).reason
    with pytest.raises(BackendUnavailable, match="weight is float64"):
        signgd_multi_step((x,), SignGDState(v), p, backend="cpu")


def test_a_scale_that_learns_is_left_to_the_definition():
    scale = torch.tensor(0.5, requires_grad=True)
    p = SignGDParameters(RELU.function, SCHEDULE, scale=scale)
    x, v = torch.randn(4, 3), torch.zeros(3)
    signgd_multi_step((x,), SignGDState(v), p, surrogate=Surrogate()).y.sum().backward()
    assert scale.grad is not None and scale.grad != 0
    with pytest.raises(BackendUnavailable, match="no gradient of the scale"):
        signgd_multi_step((x,), SignGDState(v), p, surrogate=Surrogate(), backend="cpu")


def test_parameters_run_in_a_process_that_only_unpickled_them(tmp_path):
    p = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE, scale=torch.tensor(0.7))
    (tmp_path / "p").write_bytes(pickle.dumps(p))
    code = (
        "import pickle, sys, torch\n"
        "from spikingjelly_signgd.neurons import SignGDState, signgd_multi_step\n"
        "p = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print(signgd_multi_step((torch.ones(3, 1),), SignGDState(torch.zeros(1)), p).y.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here = signgd_multi_step((torch.ones(3, 1),), SignGDState(torch.zeros(1)), p).y.tolist()
    assert done.stdout.strip() == str(here)


def test_what_is_kept_beside_a_gradient_is_not_the_output():
    x, v = torch.randn(4, 3, requires_grad=True), torch.zeros(3)
    done = signgd_multi_step((x,), SignGDState(v), RELU, surrogate=Surrogate(), keep_v=True)
    assert done.v_seq.data_ptr() != done.y.data_ptr()


@pytest.mark.parametrize("levels", [7, 2**16, 2**21])
def test_qcfs_counts_any_number_of_levels(levels):
    p = SignGDParameters(
        NONLINEARITIES["qcfs"], SCHEDULE, arguments={"v_threshold": 1.0, "levels": levels}
    )
    x = torch.rand(1, 20_000)
    target = p.target(x[0])
    for v in (target, torch.nextafter(target, torch.tensor(-1.0))):
        got = signgd_multi_step((x,), SignGDState(v), p, output="fires").y
        assert torch.equal(got, (v >= target).float().unsqueeze(0))


def test_a_gradient_under_autocast():
    w = torch.randn(3, 3)
    x, v = torch.randn(4, 2, 3, requires_grad=True), torch.zeros(2, 3)
    p = SignGDParameters(nonlinearity(lambda a: a @ w), SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        y = signgd_multi_step((x,), SignGDState(v), p, surrogate=Surrogate()).y
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
