"""Kernels of signGD neurons with a dead zone: the bits of ``signgd_step``, whatever is asked."""

import itertools
from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import (
    Nonlinearity,
    SignGDState,
    levels,
    nonlinearity,
    signgd_choice,
    signgd_multi_step,
    signgd_step,
    weighted_spike,
)
from spikingjelly_signgd.neurons.kernels import build, cpu, launch

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
MEMBERS = range(1, 13)
OUTPUTS = ("decoded", "signed", "sigma")
SHAPES = [(1,), (3, 5, 67), (2, 4097), (0, 4)]
TWO = Nonlinearity("without code", torch.maximum, arity=2, fires_at_tie=False, elementwise=True)
# by channel: some have none, and one rounds to none
MIXED = torch.tensor([0.0, 0.3, 0.5, 2 / 3, 0.75, 0.99, 1e-50])
ZONES = {"1/4": 0.25, "1/2": 0.5, "2/3": 2 / 3, "7/10": 0.7, "tiny": 1e-50, "channels": MIXED}


def drawn(ties: bool, *shape: int) -> Tensor:
    return torch.randint(-24, 25, shape) / 8 if ties else torch.randn(shape) * 2


def zone_of(zone: float | Tensor, shape: tuple[int, ...]) -> float | Tensor:
    return zone.repeat(shape[-1] // 7 + 1)[: shape[-1]] if isinstance(zone, Tensor) else zone


def by_steps(x_seq, state, p, x=None):
    """What ``signgd_step`` does: outputs by name, codes of each step, state and x."""
    v_seq, codes, signed = [], [], []
    for step in zip(*x_seq, strict=True):
        if x is not None:
            step = x = tuple(a + b for a, b in zip(x, step, strict=True))
        code, state = signgd_step(step, state, p)
        v_seq.append(state.v)
        codes.append(code)
        signed.append(weighted_spike(code, state, p))
    fires = torch.stack(codes)
    outputs = {
        "decoded": torch.stack(v_seq),
        "signed": torch.stack(signed),
        "sigma": levels(fires, p.members, torch.float32),
    }
    return outputs, fires, state, x or ()


def assert_same(got: Tensor | None, expected: Tensor, what: object) -> None:
    """To the bit, the sign of a zero too, except that any NaN equals any NaN."""
    assert got is not None and got.dtype == expected.dtype and got.shape == expected.shape, what
    same = (got == expected) & (got.signbit() == expected.signbit())
    same |= got.isnan() & expected.isnan()
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} values differ"


def assert_kernels(x_seq, state, p, x, what: str) -> None:
    """Every output, beside it every second time all that can be kept."""
    outputs, fires, after, integrated = by_steps(x_seq, state, p, x)
    for keep, output in itertools.product((False, True), OUTPUTS):
        got = signgd_multi_step(
            *(x_seq, state, p),
            x=x, output=output, backend="cpu", keep_v=keep, keep_spikes=keep,
        )  # fmt: skip
        assert_same(got.y, outputs[output], f"{what} {output}, keep {keep}")
        assert_same(got.state.v, after.v, f"{what} {output}, keep {keep}: v")
        for a, b in zip(got.x, integrated, strict=True):
            assert_same(a, b, f"{what}: x")
        if keep:
            assert_same(got.v_seq, outputs["decoded"], f"{what}: v_seq")
            assert_same(got.spike_seq, fires, f"{what}: spikes")


@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("zone", ZONES.values(), ids=ZONES)
def test_kernels_give_the_definitions_bits(zone, members):
    """Both views, each kind of scale and of tie, functions with and without code."""
    at_ties = 0
    for ties, (name, shape) in itertools.product(
        (False, True),
        (("relu", SHAPES[1]), ("mul", SHAPES[1]), (TWO, SHAPES[0]), ("abs", SHAPES[3])),
    ):
        row = nonlinearity(name)
        schedule = sg.ConstantSchedule(2.0 ** (members - 2)) if ties else SCHEDULE
        channels = 2.0 ** torch.randint(-1, 2, shape[-1:]) * (1 if ties else 0.7)
        for scale, in_spikes in ((0.5, False), (channels, True)):
            p = sg.SignGDParameters(
                row, schedule, scale, members=members, dead_zone=zone_of(zone, shape)
            )
            x_seq = [drawn(ties, 5, *shape) for _ in range(row.arity or 1)]
            state = SignGDState(drawn(ties, *shape), 2)
            x = tuple(drawn(ties, *shape) for _ in x_seq) if in_spikes else None
            first = [
                a[0] if x is None else a[0] + b for a, b in zip(x_seq, x or x_seq, strict=True)
            ]
            r = (state.v - p.target(*first)).abs() / (schedule(3) * torch.as_tensor(scale))
            theta = torch.as_tensor(p.dead_zone)
            at_ties += sum(int((r * 2.0**k == theta).sum()) for k in range(members))
            assert_kernels(x_seq, state, p, x, f"{row.name} ties {ties} spikes {in_spikes}")
    assert at_ties or zone in (2 / 3, 0.7, 1e-50), "no tie was met"


@pytest.mark.parametrize("members", [1, 4, 8, 9])
def test_around_every_boundary(members):
    """r within a few ulp of where a digit changes, beyond the reach, and what is not finite."""
    for theta in (0.25, 0.5, 0.6, 2 / 3, 0.7):
        top = 2.0 ** (members - 1)
        d = torch.arange(-2.0 * top - 2, 2 * top + 3)
        at = torch.cat([d + s * torch.tensor(theta) for s in (-1.0, 1.0)])
        at = torch.cat(
            [at, torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, 0.0, -0.0])]
        )
        for size in (1.0, 0.7, 1e-30, 1e30, 3e-43):
            beside = (at * torch.tensor(size)).view(torch.int32) + torch.arange(-4, 5)[:, None]
            v = beside.to(torch.int32).view(torch.float32)
            p = sg.SignGDParameters(
                *(nonlinearity("identity"), sg.ConstantSchedule(size * top)),
                members=members, dead_zone=theta,
            )  # fmt: skip
            assert_kernels([torch.zeros(2, *v.shape)], SignGDState(v), p, None, f"{theta} {size}")


@given(
    members=st.integers(1, 12),
    theta=st.fractions(0, Fraction(2, 3)).filter(bool),
    q=st.fractions(-5000, 5000),
)
def test_the_closed_form_is_the_members(members, theta, q):
    """What sparse.cuh proves, in exact numbers: members in turn, and the even number next to q."""
    r, d = q, 0
    for k in reversed(range(members)):
        sigma = (r > theta * 2**k) - (r < -theta * 2**k)
        r, d = r - sigma * 2**k, 2 * d + sigma
    held = max(min(q, Fraction(2**members - 1)), Fraction(1 - 2**members))
    even = 2 * round(held / 2)
    s = held - even
    assert d == even + (abs(s) > theta) * (1 if s > 0 else -1)


@pytest.mark.parametrize("theta", [0.3, 0.5, 2 / 3])
@pytest.mark.parametrize("each", [False, True], ids=["number", "channels"])
def test_where_the_closed_form_is_in_doubt(each, theta):
    """r around the boundaries at distances of a rounding to many, where it must not be trusted."""
    for members in (3, 8, 10):
        size = 0.1 * 2.0 ** (members - 1)
        p = sg.SignGDParameters(
            *(nonlinearity("identity"), sg.ConstantSchedule(1.0)),
            torch.full((999,), size) if each else size, members=members, dead_zone=theta,
        )  # fmt: skip
        d = torch.randint(-(2**members), 2**members + 1, (3, 999))
        away = 2.0 ** (members - 26 + 7 * torch.rand(3, 999)) * (
            2 * torch.randint(0, 2, d.shape) - 1
        )
        side = 2 * torch.randint(0, 2, d.shape) - 1
        v = 0.1 * (d + side * theta + away)
        assert_kernels([torch.zeros(1, 3, 999)], SignGDState(v), p, None, f"{members}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_half_inputs_and_outputs(dtype):
    x = torch.randn(9, 3, 67)
    inputs = x if dtype == torch.int8 else x.to(dtype)
    for members, output in itertools.product((1, 2, 7, 8), OUTPUTS):
        most = {torch.int8: 7, torch.bfloat16: 8, torch.float16: 11}[dtype]
        if members > most or (dtype == torch.int8 and output != "sigma"):
            continue
        p = sg.SignGDParameters(
            nonlinearity("relu"), SCHEDULE, 0.7, members=members, dead_zone=2 / 3
        )
        given = [inputs], SignGDState(x[0]), p
        got = signgd_multi_step(*given, output=output, dtype=dtype, backend="cpu")
        expected = signgd_multi_step(*given, output=output, dtype=dtype, backend="torch")
        assert_same(got.y, expected.y, (members, output))
        assert_same(got.state.v, expected.state.v, (members, output))


def test_what_is_not_finite_is_silent():
    odd = torch.tensor([0.0, -0.0, 1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    v, x = (each.flatten() for each in torch.meshgrid(odd, odd, indexing="ij"))
    for members, schedule, zone in itertools.product(
        (1, 8), (1.0, 1e-38, 1e-44, 2e38), (0.5, 2 / 3, torch.tensor(2 / 3))
    ):
        p = sg.SignGDParameters(
            *(nonlinearity("identity"), sg.ConstantSchedule(schedule)),
            members=members, dead_zone=zone,
        )  # fmt: skip
        assert_kernels([x.expand(2, -1)], SignGDState(v), p, None, f"{members} {schedule}")
        odd_scale = replace(p, scale=torch.tensor([1.0, torch.inf, 1e-44, 3.0]).repeat(16))
        assert_kernels([x.expand(2, -1)], SignGDState(v), odd_scale, None, f"{members} {schedule}")


@pytest.mark.parametrize("members", [1, 3, 8])
def test_a_learned_zone_that_is_not_above_0_is_none(members):
    """Below 0, where learning may take it, and NaN: as the definition has it."""
    for zone in (
        torch.linspace(-0.3, 0.9, 40),
        torch.full((40,), -0.1),
        torch.tensor([torch.nan, 0.5, 0.6, 0.7]).repeat(10),
    ):
        p = sg.SignGDParameters(
            nonlinearity("relu"), SCHEDULE, members=members, dead_zone=zone, check=False
        )
        x = drawn(True, 6, 3, 40)
        assert_kernels([x], SignGDState(torch.zeros(3, 40)), p, None, f"{members} {zone}")


@pytest.mark.parametrize(
    "far", [(2**40, 2**40), (1, 2**40), (1, 1)], ids=["near", "far", "streamed"]
)
@pytest.mark.parametrize("zone", [2 / 3, MIXED], ids=["number", "channels"])
def test_long_sequences_many_neurons_and_each_way_of_writing(zone, far, monkeypatch):
    monkeypatch.setattr(launch, "FAR", far)
    for steps, shape, members in ((300, (3, 37), 3), (3, (2, 4097), 8), (3, (2, 4097), 1)):
        p = sg.SignGDParameters(
            nonlinearity("relu"), sg.ExponentialSchedule(0.5, 0.99),
            members=members, dead_zone=zone_of(zone, shape),
        )  # fmt: skip
        x = torch.randn(steps, *shape)
        state = SignGDState(torch.randn(shape))
        expected = signgd_multi_step([x], state, p, backend="torch", keep_spikes=True)
        for layout in (x, x.transpose(-1, -2).contiguous().transpose(-1, -2)):
            got = signgd_multi_step([layout], state, p, backend="cpu")
            assert_same(got.y, expected.y, (shape, members))
            kept = signgd_multi_step([layout], state, p, backend="cpu", keep_spikes=True)
            assert_same(kept.spike_seq, expected.spike_seq, (shape, members))
            assert_same(kept.state.v, expected.state.v, (shape, members))


INSTRUCTIONS = {name: (name, flags, "true") for name, flags, _ in build.SETS_X86[1:]}
INSTRUCTIONS["any"] = build.SET_ANY


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "instructions",
    [pytest.param(k, marks=pytest.mark.slow) if k == "any" else k for k in INSTRUCTIONS],
)
def test_every_set_of_instructions(instructions, tmp_path, monkeypatch):
    """The tests above run the best set of this machine."""
    if instructions != "any" and "avx2" not in cpu._processor():
        pytest.skip("this machine has no such instructions")
    monkeypatch.setattr(build, "SETS_X86", ())
    monkeypatch.setattr(build, "SET_ANY", INSTRUCTIONS[instructions])
    rows = [nonlinearity(name).in_c({}) for name in ("relu", "identity")]
    keys = [row.key for row in rows if row is not None]
    build.build(tmp_path / "kernels.so", map(build.Function.from_key, keys))
    own = cpu.Library(tmp_path / "kernels.so")
    monkeypatch.setattr(cpu, "library", lambda: own)
    for members, zone in itertools.product((1, 3, 8, 12), (0.5, 2 / 3, 0.8, MIXED)):
        shape = (3, 5, 67)
        p = sg.SignGDParameters(
            *(nonlinearity("relu"), SCHEDULE), members=members, dead_zone=zone_of(zone, shape)
        )
        state = SignGDState(torch.randn(shape))
        assert_kernels([torch.randn(3, *shape)], state, p, None, f"{members} {zone}")
    test_around_every_boundary(8)


def test_a_number_is_read_in_float32_whatever_the_default_is():
    v, x = torch.arange(-4000, 4000) * 2.0**-12, torch.zeros(1, 8000)
    p = sg.SignGDParameters(nonlinearity("relu"), SCHEDULE, members=3, dead_zone=2 / 3)
    before = torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            ran = [
                signgd_multi_step([x], SignGDState(v), p, backend=name) for name in ("torch", "cpu")
            ]
        finally:
            torch.set_default_dtype(before)
        assert_same(ran[0].y, ran[1].y, str(dtype))


def test_a_number_of_0_is_the_neuron_without_a_dead_zone():
    p = sg.SignGDParameters(nonlinearity("relu"), SCHEDULE, members=4, dead_zone=0.0)
    x, state = torch.randn(5, 3, 67), SignGDState(torch.randn(3, 67))
    got = signgd_multi_step([x], state, p, backend="cpu", keep_spikes=True, output="fires")
    assert got.spike_seq is not None and got.spike_seq.dtype == torch.uint8
    zeros = replace(p, dead_zone=torch.zeros(67))
    sparse = signgd_multi_step([x], state, zeros, backend="cpu", keep_spikes=True)
    assert sparse.spike_seq is not None
    assert_same(levels(sparse.spike_seq, 4, x.dtype), levels(got.spike_seq, 4, x.dtype), "d")
    assert_same(sparse.state.v, got.state.v, "v")


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sigmoid", "atan", "straight_through", "triangle"])
@pytest.mark.parametrize("zone", [2 / 3, MIXED[:6]], ids=["number", "channels"])
def test_the_gradient_of_single_signs_is_the_definitions(zone, kind):
    """The forward pass to the bit, gradients to 2e-5 of the largest: sums in another order."""
    shape = (5, 66)
    channels = torch.rand(66) + 0.5
    for output, in_spikes, scale in itertools.product(
        ("decoded", "signed"), (False, True), (0.7, channels)
    ):
        p = sg.SignGDParameters(
            nonlinearity("gelu"), SCHEDULE, scale,
            dead_zone=zone.repeat(11) if isinstance(zone, Tensor) else zone,
        )  # fmt: skip
        x, v = torch.randn(7, *shape) / (4 if in_spikes else 1), torch.randn(shape)
        found = {}
        for backend in ("cpu", "torch"):
            leaves = [x.clone().requires_grad_(), v.clone().requires_grad_()]
            start = (v / 2,) if in_spikes else None
            done = signgd_multi_step(
                leaves[:1], SignGDState(leaves[1]), p, x=start,
                output=output, backend=backend, surrogate=sg.Surrogate(kind, 2.0),
            )  # fmt: skip
            weights = torch.cos(torch.arange(done.y.numel()) * 0.7).view(done.y.shape)
            total = (done.y * weights).sum() + (done.state.v**2).sum()
            found[backend] = done.y.detach(), *torch.autograd.grad(total, leaves)
        (y, *got), (expected_y, *expected) = found["cpu"], found["torch"]
        assert_same(y, expected_y, output)
        for name, a, b in zip(("x", "v"), got, expected, strict=True):
            assert float(b.abs().max()) > 0
            difference = float((a - b).abs().max() / b.abs().max())
            assert difference < 2e-5, f"{name}, {output}, spikes {in_spikes}: {difference}"


def test_what_the_kernels_lack_is_said():
    p = sg.SignGDParameters(nonlinearity("relu"), SCHEDULE, dead_zone=torch.full((3,), 0.5))
    x = torch.zeros(2, 3)
    assert signgd_choice("auto", x, p) == ("cpu", "")
    assert signgd_choice("auto", x, p, sg.Surrogate()) == ("cpu", "")
    learned = replace(p, dead_zone=torch.full((3,), 0.5, requires_grad=True))
    assert (
        "no gradient of the dead zone" in signgd_choice("auto", x, learned, sg.Surrogate()).reason
    )
    several = replace(p, members=2)
    assert "several signs" in signgd_choice("auto", x, several, sg.Surrogate()).reason
    with pytest.raises(sg.InputError, match="does not broadcast"):
        signgd_multi_step([x], SignGDState(x[0]), replace(p, dead_zone=torch.full((2,), 0.5)))
