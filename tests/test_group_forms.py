"""Group neurons with thresholds by channel and signed ones, and the growth of what they sent."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import (
    GroupNeuronParameters,
    GrowthState,
    SignedGroupState,
    group_choice,
    group_initial_v,
    group_multi_step,
    group_step,
    growth_initial_state,
    growth_multi_step,
    growth_step,
    nonlinearity,
    scan,
    signed_group_step,
)

SHAPES = [(1,), (3, 5, 67), (2, 4097), (0, 4)]
LAYOUTS = {"channels last": (0, 1, 3, 4, 2), "time inside": (1, 0, 2, 3, 4)}


def assert_same(got: Tensor | None, expected: Tensor, what: object) -> None:
    assert got is not None and got.dtype == expected.dtype and got.shape == expected.shape, what
    same = (got == expected) | (got.isnan() & expected.isnan())
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} values differ"


def by_steps(x_seq, v, p, sent=None):
    """(outputs, v of each step, last v, sent) of the definition."""
    y, v_seq = [], []
    for x in x_seq:
        if sent is None:
            out, v = group_step(x, v, p)
        else:
            out, (v, sent) = signed_group_step(x, SignedGroupState(v, sent), p)
        y.append(out)
        v_seq.append(v)
    return torch.stack(y), torch.stack(v_seq), v, sent


def around(p: GroupNeuronParameters, *shape: int) -> Tensor:
    """Values on a threshold or a float next to it, of both signs."""
    at = torch.randint(1, p.members + 2, shape).float() * p.theta
    near = (at.view(torch.int32) + torch.randint(-1, 2, shape, dtype=torch.int32)).view_as(at)
    return near.view(torch.float32) * (torch.randint(0, 2, shape) * 2 - 1)


# -- kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2, 3, 8, 255])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("by_channel", [False, True], ids=["number", "by channel"])
def test_kernels_give_the_definitions_bits(by_channel, signed, members):
    on_thresholds = taken_back = 0
    for shape in SHAPES:
        p = GroupNeuronParameters(members, 1.37, 0.3, signed)
        if by_channel:
            thresholds, charges = torch.rand(2, shape[-1]) * 2 + 0.1
            p = GroupNeuronParameters(members, thresholds, charges, signed)
        lattice = torch.randint(-3 * members, 3 * members + 1, (9, *shape)) * p.theta
        for kind, x in (
            ("random", torch.randn(9, *shape) * 1.5),
            ("on thresholds", lattice),
            ("around", around(p, 9, *shape)),
        ):
            v = group_initial_v(x[0], p) if kind == "random" else torch.zeros(shape)
            sent = torch.randint(0, 2 * members, shape).float() if signed else None
            y, v_seq, last, after = by_steps(x, v, p, sent)
            if kind == "on thresholds":
                k = (x[0] / p.theta).round().clamp(1, members)
                on_thresholds += int((k * p.theta == x[0]).sum())
            taken_back += int((y < 0).sum())
            what = f"{kind} {list(shape)}"
            run = lambda p=p, x=x, v=v, sent=sent, **options: group_multi_step(  # noqa: E731
                x, v, p, sent=sent, backend="cpu", **options
            )
            for keep in (False, True):
                got = run(keep_v=keep)
                assert_same(got.y, y, what)
                assert_same(got.v, last, f"{what} v")
                if after is not None:
                    assert_same(got.sent, after, f"{what} sent")
            assert_same(got.v_seq, v_seq, f"{what} v_seq")
            n = run(counts=True)
            assert_same(n.y * p.theta, y, f"{what} counts")
            assert bool((n.y == n.y.round()).all() and (n.y.abs() <= members).all())
            slow = group_multi_step(x, v, p, sent=sent, counts=True, backend="torch")
            assert_same(slow.y, n.y, f"{what} counts by the definition")
    assert on_thresholds
    assert (taken_back > 0) == signed


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_half_inputs_and_outputs(dtype, signed):
    x = torch.randn(9, 3, 67)
    x = x if dtype == torch.int8 else x.to(dtype)
    p = GroupNeuronParameters(4, torch.rand(67) + 0.5, signed=signed)
    v = group_initial_v(x[0].float(), p)
    sent = torch.zeros_like(v) if signed else None
    options = {"sent": sent, "counts": dtype == torch.int8, "dtype": dtype}
    got = group_multi_step(x, v, p, backend="cpu", **options)
    expected = group_multi_step(x, v, p, backend="torch", **options)
    for name in ("y", "v", *(["sent"] if signed else [])):
        assert_same(getattr(got, name), getattr(expected, name), name)
    assert bool((got.y < 0).any()) == signed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_thresholds_of_channels(layout):
    """Thresholds [C, 1, 1] against an image, whose channels are last in memory or whose time is
    inside."""
    order = LAYOUTS[layout]
    dense = torch.randn([(7, 2, 3, 4, 5)[d] for d in order])
    x = dense.permute(*[order.index(d) for d in range(5)])
    p = GroupNeuronParameters(3, torch.rand(3, 1, 1) + 0.5, torch.rand(3, 1, 1), signed=True)
    v = group_initial_v(x[0], p)
    got = group_multi_step(x, v, p, sent=torch.zeros_like(v), backend="cpu")
    y, _, last, sent = by_steps(x.contiguous(), v.contiguous(), p, torch.zeros(2, 3, 4, 5))
    assert_same(got.y, y, "output")
    assert_same(got.v, last, "v")
    assert_same(got.sent, sent, "sent")


@pytest.mark.parametrize("far", [(2**40, 2**40), (0, 2**40), (0, 0)])
def test_the_way_of_writing_changes_nothing(monkeypatch, far):
    from spikingjelly_signgd.neurons.kernels import launch

    monkeypatch.setattr(launch, "FAR", far)
    x = torch.randn(5, 3, 3001)
    for signed in (False, True):
        p = GroupNeuronParameters(3, torch.rand(3001) + 0.5, signed=signed)
        v = group_initial_v(x[0], p)
        sent = torch.zeros_like(v) if signed else None
        got = group_multi_step(x, v, p, sent=sent, backend="cpu")
        assert_same(got.y, by_steps(x, v, p, sent)[0], far)
        q = sg.SignGDParameters(nonlinearity("relu"), sg.ConstantSchedule(0.3), members=3)
        state = sg.neurons.SignGDState(v)
        fast = sg.neurons.signgd_multi_step([x], state, q, backend="cpu")
        assert_same(fast.y, sg.neurons.signgd_multi_step([x], state, q, backend="torch").y, far)


def test_what_is_not_finite():
    odd = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e38, -1e38, -0.0])
    x = torch.stack([odd, odd.flip(0), torch.ones(6)])
    for threshold, signed in itertools.product((1.5, torch.full((6,), 1.5)), (False, True)):
        p = GroupNeuronParameters(3, threshold, signed=signed)
        v, sent = torch.zeros(6), torch.full((6,), 2.0) if signed else None
        got = group_multi_step(x, v, p, sent=sent, backend="cpu")
        y, _, last, after = by_steps(x, v, p, sent)
        assert_same(got.y, y, threshold)
        assert_same(got.v, last, threshold)
        if signed:
            assert_same(got.sent, after, threshold)


def test_a_tensor_of_equal_thresholds_is_the_number():
    x = torch.randn(9, 4, 6) * 2
    for members, signed in itertools.product((1, 4), (False, True)):
        found = []
        for threshold in (0.7, torch.full((6,), 0.7)):
            p = GroupNeuronParameters(members, threshold, signed=signed)
            v = group_initial_v(x[0], p)
            sent = torch.zeros_like(v) if signed else None
            found.append(group_multi_step(x, v, p, sent=sent, backend="cpu").y)
        assert torch.equal(*found)


def test_wrong_states_and_thresholds_are_refused():
    x, v = torch.randn(4, 3, 5), torch.zeros(3, 5)
    signed = GroupNeuronParameters(2, signed=True)
    with pytest.raises(ValueError, match="pass it, zeros before the first step"):
        group_multi_step(x, v, signed)
    with pytest.raises(ValueError, match="leave it out"):
        group_multi_step(x, v, GroupNeuronParameters(2), sent=v)
    with pytest.raises(sg.InputError, match="sent must match v.*Reset the neuron"):
        group_multi_step(x, v, signed, sent=torch.zeros(5))
    for backend in ("cpu", "torch"):
        with pytest.raises(sg.InputError, match=r"v_threshold is \[4, 3, 5\] and does not broad"):
            group_multi_step(x, v, GroupNeuronParameters(2, torch.ones(4, 3, 5)), backend=backend)
    for wrong in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.inf]), torch.tensor([1e-35])):
        with pytest.raises(ValueError, match="v_threshold is the largest output"):
            GroupNeuronParameters(2, wrong)


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_gradients_are_those_of_the_definition(signed):
    """Forward to the bit what the kernels do; thresholds learn too; the choice says what runs."""
    x, threshold = torch.randn(6, 3, 5) * 2, torch.rand(5) + 0.5
    p = GroupNeuronParameters(3, threshold, signed=signed)
    backend, why = group_choice("auto", x, p, sg.Surrogate())
    assert backend == "torch" and ("signed" in why if signed else "per channel" in why)
    assert group_choice("auto", x, p) == ("cpu", "")
    v = group_initial_v(x[0], p)
    sent = torch.zeros_like(v) if signed else None
    plain = group_multi_step(x, v, p, sent=sent, backend="cpu")
    leaf, theta = x.clone().requires_grad_(), threshold.clone().requires_grad_()
    learns = GroupNeuronParameters(3, theta, signed=signed)
    done = group_multi_step(leaf, v, learns, sent=sent, surrogate=sg.Surrogate("atan", 2.0))
    assert_same(done.y.detach(), plain.y, "output")
    if signed:
        assert_same(done.sent.detach(), plain.sent, "sent")
    for gradient in torch.autograd.grad(done.y.square().sum(), (leaf, theta)):
        assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0


def test_a_spike_taken_back_has_a_gradient_where_it_was_sent():
    """m = 1, straight through: 1 from the upper threshold, 1 from the lower if one was sent."""
    p = GroupNeuronParameters(1, 1.0, signed=True)
    x = torch.tensor([[-0.2, -0.2]], requires_grad=True)
    sent = torch.tensor([0.0, 1.0])
    done = group_multi_step(
        x, torch.zeros(2), p, sent=sent, surrogate=sg.Surrogate("straight_through")
    )
    assert done.y.tolist() == [[0.0, -1.0]]
    (gradient,) = torch.autograd.grad(done.y.sum(), x)
    assert gradient.tolist() == [[1.0, 2.0]]


# -- theory ---------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**20), st.booleans())
def test_without_negative_input_signed_is_unsigned(members, steps, seed, by_channel):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(steps, 40, generator=draw) * 2
    threshold = torch.rand(40, generator=draw) + 0.1 if by_channel else 0.9
    plain = GroupNeuronParameters(members, threshold)
    signed = GroupNeuronParameters(members, threshold, signed=True)
    v = group_initial_v(x[0], plain)
    a = group_multi_step(x, v, plain)
    b = group_multi_step(x, v, signed, sent=torch.zeros_like(v))
    assert torch.equal(a.y, b.y) and torch.equal(a.v, b.v)
    counts = group_multi_step(x, v, plain, counts=True).y.sum(0)
    assert torch.equal(b.sent, counts)


@given(st.integers(1, 9), st.integers(1, 16), st.integers(0, 2**20))
def test_sent_is_never_negative_and_is_the_sum_of_the_counts(members, steps, seed):
    x = torch.randn(steps, 60, generator=torch.Generator().manual_seed(seed)) * 2
    p = GroupNeuronParameters(members, 1.0, signed=True)
    v, sent = group_initial_v(x[0], p), torch.zeros(60)
    counts = torch.zeros(60)
    for one in x:
        done = group_multi_step(one[None], v, p, sent=sent, counts=True)
        v, sent = done.v, done.sent
        counts += done.y[0]
        assert bool((sent >= 0).all()) and torch.equal(sent, counts)


@pytest.mark.parametrize("members", [1, 2, 4, 8])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_mean_of_a_constant_input_is_qcfs_of_m_t_levels(members, steps):
    """Also with thresholds by channel; inputs of a lattice, so that every sum is exact."""
    x = torch.randint(-200, 400, (500,)) / 128
    threshold = 2.0 ** torch.randint(-1, 2, (500,))
    for v_threshold in (1.0, threshold):
        p = GroupNeuronParameters(members, v_threshold, signed=True)
        v = group_initial_v(x, p)
        y = group_multi_step(x.expand(steps, 500), v, p, sent=torch.zeros_like(v)).y.mean(0)
        unit = p.v_threshold / (members * steps)
        expected = torch.floor(x / unit + 0.5).clamp(0, members * steps) * unit
        assert torch.equal(y, expected)


def uneven(seed: int, steps: int, spread: float) -> Tensor:
    """Inputs whose mean is of [0, 1] but whose steps are spread around it, [T, 4000]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, 4000, generator=draw, dtype=torch.float64) * spread
    mean = torch.rand(4000, generator=draw, dtype=torch.float64)
    return mean + noise - noise.mean(0)


@pytest.mark.parametrize(("members", "steps"), [(1, 8), (2, 4), (4, 4), (2, 16)])
def test_signed_neurons_undo_unevenness(members, steps):
    """Against QCFS of m T levels of the mean input half of the squared error is left: what came
    too early is taken back, what comes too late, as often here, no neuron can have sent."""
    x = uneven(members, steps, 0.5)
    levels = members * steps
    expected = torch.floor(x.mean(0) * levels + 0.5).clamp(0, levels) / levels
    errors = {}
    for signed in (False, True):
        p = GroupNeuronParameters(members, 1.0, signed=signed)
        v = group_initial_v(x[0], p)
        sent = torch.zeros_like(v) if signed else None
        y = group_multi_step(x, v, p, sent=sent).y.mean(0)
        errors[signed] = float((y - expected).square().mean())
    assert errors[True] < 0.6 * errors[False], errors


def test_after_uneven_input_a_signed_neuron_is_exact():
    """What came too early is taken back: 1 + 1 - 1 + 0 leaves one spike, the unsigned two."""
    x = torch.tensor([[1.0], [1.0], [-1.0], [0.0]])
    counts = {}
    for signed in (False, True):
        p = GroupNeuronParameters(1, 1.0, signed=signed)
        v = group_initial_v(x[0], p)
        sent = torch.zeros_like(v) if signed else None
        counts[signed] = group_multi_step(x, v, p, sent=sent).y.flatten().tolist()
    assert counts == {False: [1.0, 1.0, 0.0, 0.0], True: [1.0, 1.0, -1.0, 0.0]}


@given(st.integers(1, 6), st.integers(0, 2**20))
def test_steps_that_follow_give_a_signed_neuron_time_to_be_exact(members, seed):
    """Any input, then m T steps of none: N is floor(sum / theta + 1/2), not below 0, if the rest
    of the steps can make up for it."""
    steps = 6
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-3 * 16, 3 * 16 + 1, (steps, 50), generator=draw) / 16
    x = torch.cat([x, torch.zeros(3 * steps * members + 1, 50)]) / members
    p = GroupNeuronParameters(members, 1.0, signed=True)
    x = x * members * p.theta
    v = torch.full((50,), 0.5) * p.theta
    done = group_multi_step(x.double(), v.double(), p, sent=torch.zeros(50, dtype=torch.float64))
    wanted = torch.floor(x.double().sum(0) / p.theta + 0.5).clamp(min=0)
    # up to rounding of theta = 1 / m: on the thresholds themselves
    off = (done.sent - wanted).abs()
    tie = ((x.double().sum(0) / p.theta + 0.5) % 1 - 0.5).abs() > 0.5 - 1e-6
    assert bool(((off == 0) | (tie & (off <= 1))).all())


# -- growth ---------------------------------------------------------------------------------------

POOLS = {
    "max_pool": (
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 1)},
        1,
    ),
    "adaptive_max_pool": ({"output_size": (2, 2)}, 1),
    "amax": ({"dim": (-1,)}, 1),
    "maximum": ({}, 2),
    "max": ({}, 3),
}


def inputs_of(arity: int, steps: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What group neurons send: multiples of theta, also negative ones."""
    return tuple((torch.randint(-2, 5, (steps, 2, 3, 4, 6)) * 0.37).to(dtype) for _ in range(arity))


@pytest.mark.parametrize("name", POOLS)
def test_growth_is_its_step_and_adds_up(name):
    """To the bit that of the steps; the outputs add up to f of the sums; cut anywhere."""
    arguments, arity = POOLS[name]
    row = nonlinearity(name)

    def function(*x: Tensor) -> Tensor:
        return row(*x, **arguments)

    x_seq = inputs_of(arity, 7)
    start = growth_initial_state(tuple(x[0] for x in x_seq), function)
    y, last = scan(growth_step, list(zip(*x_seq, strict=True)), start, function)
    for backend in ("cpu", "torch", "auto"):
        run = lambda x_seq, state, backend=backend, **more: growth_multi_step(  # noqa: E731
            x_seq, state, row, arguments, backend=backend, **more
        )
        whole = run(x_seq, start, keep_last=True)
        assert_same(whole.y, y, backend)
        assert_same(whole.state.last, last.last, backend)
        assert_same(whole.last_seq[-1], last.last, backend)
        for a, b in zip(whole.state.totals, last.totals, strict=True):
            assert_same(a, b, backend)
        first = run([x[:3] for x in x_seq], start)
        rest = run([x[3:] for x in x_seq], first.state)
        assert_same(torch.cat([first.y, rest.y]), y, f"{backend}, cut")
    exact = growth_multi_step(
        [x.double() for x in x_seq],
        GrowthState(tuple(a.double() for a in start.totals), start.last.double()),
        row,
        arguments,
    )
    sums = function(*(x.double().sum(0) for x in x_seq))
    torch.testing.assert_close(exact.y.sum(0), sums, rtol=0, atol=1e-12)
    one = growth_multi_step([x[:1] for x in x_seq], start, row, arguments)
    assert_same(one.y[0], function(*(x[0] for x in x_seq)), "T = 1 is f")
    for dtype in (torch.float16, torch.bfloat16):
        half = growth_multi_step([x.to(dtype) for x in x_seq], start, row, arguments)
        assert half.y.dtype == dtype and half.state.last.dtype == torch.float32


def test_the_maximum_of_single_steps_would_be_too_large():
    """Two inputs that spike in turn: each sends 2 in 4 steps, and so does their maximum."""
    x_seq = torch.tensor([[[1.0], [0.0]] * 2, [[0.0], [1.0]] * 2])
    start = GrowthState((torch.zeros(1),) * 2, torch.zeros(1))
    grown = growth_multi_step(list(x_seq), start, nonlinearity("maximum"))
    assert grown.y.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]
    assert torch.maximum(*x_seq).sum() == 4


def test_growth_of_another_batch_is_refused():
    row, start = nonlinearity("maximum"), GrowthState((torch.zeros(3),) * 2, torch.zeros(3))
    for wrong in ([torch.zeros(4, 5)] * 2, [torch.zeros(4, 3)], [torch.zeros(0, 3)] * 2):
        with pytest.raises(sg.InputError, match="growth_multi_step: inputs are"):
            growth_multi_step(wrong, start, row)
