"""What is proved of a dead zone (neurons/signgd/sparse.py), by exhaustion and by drawn examples."""

from fractions import Fraction
from math import erf, sqrt

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import settings
from spikingjelly_signgd.neurons import SignGDState, digits, levels, nonlinearity, signgd_step

THETAS = (Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(3, 4))
FINE = 24  # points of a grid between two values of d; it hits the ties of all THETAS
ALL = range(1, 9)


def rho(theta: Fraction) -> Fraction:
    return max(theta, 1 - theta)


def reach(theta: Fraction, members: int) -> int:
    """(2 - 2^(1 - m)) c_1 + rho c_m on the grid."""
    return int((2**members - 1 + rho(theta)) * FINE)


def fire(e: np.ndarray, theta: Fraction, members: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits [m, *] and what is left of whole e in units of c_m / FINE, in exact arithmetic."""
    sigma = []
    for k in range(members):
        c = FINE * 2 ** (members - 1 - k)
        sigma.append(np.sign(e) * (abs(e) * theta.denominator > theta.numerator * c))
        e = e - c * sigma[-1]
    return np.stack(sigma), e


def whole(theta: Fraction, members: int) -> np.ndarray:
    bound = reach(theta, members)
    return np.arange(-bound, bound + 1)


def number(sigma: np.ndarray) -> np.ndarray:
    return sum(2 ** (len(sigma) - 1 - k) * s for k, s in enumerate(sigma))  # type: ignore[return-value]


def fewest(members: int) -> np.ndarray:
    """The fewest nonzero digits of any code of each d, from 1 - 2^m on."""
    most = 2**members - 1
    least = np.full(2 * most + 1, members + 1)
    codes = np.stack(np.meshgrid(*[[-1, 0, 1]] * members)).reshape(members, -1)
    np.minimum.at(least, number(codes) + most, abs(codes).sum(0))
    return least


@pytest.mark.parametrize("theta", THETAS, ids=str)
@pytest.mark.parametrize("members", ALL)
def test_the_whole_reach_is_held(theta, members):
    _, left = fire(whole(theta, members), theta, members)
    assert (abs(left) <= rho(theta) * FINE).all()
    # and no more than that is: one point further is not
    _, beyond = fire(np.array([reach(theta, members) + 1]), theta, members)
    assert abs(beyond[0]) > rho(theta) * FINE


@pytest.mark.parametrize("theta", [Fraction(2, 3), Fraction(3, 4)], ids=str)
@pytest.mark.parametrize("members", ALL)
def test_the_fewest_digits_of_any_code(theta, members):
    sigma, _ = fire(whole(theta, members), theta, members)
    d = number(sigma)
    assert (abs(sigma).sum(0) == fewest(members)[d + 2**members - 1]).all()


def test_a_half_rounds_to_the_nearest_and_needs_more_digits():
    e = whole(Fraction(1, 2), 8)
    sigma, left = fire(e, Fraction(1, 2), 8)
    assert (2 * abs(left) <= FINE).all()
    assert (abs(sigma).sum(0) > fewest(8)[number(sigma) + 255]).any()


@pytest.mark.parametrize("members", ALL)
def test_no_two_neighbours_fire_within_four_thirds(members):
    theta = Fraction(2, 3)
    e = whole(theta, members)
    sigma, _ = fire(e, theta, members)
    neighbours = (sigma[:-1] * sigma[1:] != 0).any(0) if members > 1 else np.zeros(len(e), bool)
    within = 3 * abs(e) <= 4 * FINE * 2 ** (members - 1)
    assert not neighbours[within].any()
    if members == 8:
        assert abs(number(sigma))[within].max() == 170
        assert neighbours[~within].any()  # beyond, neighbours do fire


def test_ties_are_silent():
    tie = np.array([2 * FINE * 2**7 // 3])
    assert fire(tie, Fraction(2, 3), 8)[0][:, 0].tolist() == [0, 1] * 4
    just_above = fire(tie + 1, Fraction(2, 3), 8)[0][:, 0]  # 1 / 24 of c_8 further
    assert just_above.tolist() == [1, 0, -1, 0, -1, 0, -1, 0]


@pytest.mark.parametrize(("theta", "start"), [(Fraction(2, 3), 1 / 9), (Fraction(1, 2), 0.0)])
@pytest.mark.parametrize("members", ALL)
def test_expected_digits_of_uniform_values(theta, start, members):
    """Within 2 rho c_1: m / 3 + (1 - (-1/2)^m) / 9 at 2/3, m / 2 at 1/2."""
    bound = int(2 * rho(theta) * FINE * 2 ** (members - 1))
    e = np.arange(-bound, bound) + 0.5  # the middles of the grid's intervals, never a tie
    sigma, _ = fire(e, theta, members)
    share = 1 / 3 if theta == Fraction(2, 3) else 1 / 2
    expected = members * share + start * (1 - (-0.5) ** members)
    assert np.isclose(abs(sigma).sum(0).mean(), expected)


def weight(d: int) -> int:
    """Nonzero digits of the canonic signed-digit form."""
    return (3 * d ^ d).bit_count()


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("half", [False, True], ids=["gaussian", "half gaussian"])
def test_expected_digits_of_gaussian_values(sigma, half):
    """A value rounds to d from d - w to d + w, w = 1/3 for odd d and 2/3 for even ones.

    sigma in units of c_1; a ReLU's values, half of them 0, cost half as much.
    """
    members = 8
    unit = sigma * 2 ** (members - 1)
    cdf = lambda x: (1 + erf(x / unit / sqrt(2))) / 2  # noqa: E731
    width = lambda d: 1 / 3 if d % 2 else 2 / 3  # noqa: E731
    share = {d: cdf(d + width(d)) - cdf(d - width(d)) for d in range(1, 171)}
    expected = (1 if half else 2) * sum(weight(d) * p for d, p in share.items())
    x = sigma * torch.randn(
        200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = x.clamp(-1.33, 1.33)
    code, _ = signgd_step(
        (x,),
        SignGDState(torch.zeros_like(x)),
        parameters("relu" if half else "identity", 2 / 3, members),
    )
    assert float(digits(code, members).abs().sum(-1).double().mean()) == pytest.approx(
        expected, rel=0.02
    )


def parameters(name, theta, members, schedule=None):
    schedule = schedule or sg.ConstantSchedule(1.0)
    return sg.SignGDParameters(nonlinearity(name), schedule, members=members, dead_zone=theta)


@given(
    st.lists(st.integers(-(2**13), 2**13), min_size=1, max_size=40),
    st.floats(0.0625, 0.9375, width=32),
    st.integers(1, 12),
)
def test_the_step_holds_its_bound(values, theta, members):
    """In float32, exactly: c_k are powers of two and values on a grid."""
    theta32 = Fraction(float(torch.tensor(theta)))
    c_m = Fraction(1, 2 ** (members - 1))
    x = torch.tensor(values) / 2.0**12
    inside = [abs(Fraction(float(a))) <= 2 - c_m + rho(theta32) * c_m for a in x]
    code, after = signgd_step(
        (x,), SignGDState(torch.zeros_like(x)), parameters("identity", theta, members)
    )
    left = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(x, after.v, strict=True)]
    assert all(e <= rho(theta32) * c_m for e, fits in zip(left, inside, strict=True) if fits)
    sigma = digits(code, members).double()
    sizes = torch.tensor([2.0 ** (members - 1 - k) for k in range(members)]).double()
    assert torch.equal(sigma @ sizes, levels(code, members, torch.float64))
    assert torch.equal(after.v.double(), levels(code, members, torch.float64) * -float(c_m))


@given(st.data(), st.sampled_from([0.25, 0.5, 2 / 3, 0.75]), st.integers(1, 8))
def test_a_moving_target_is_tracked(data, theta, members):
    """Held within rho eta(t) s 2^(1-m), as long as it moves by no more than the reach allows."""
    schedule = sg.ExponentialSchedule(1.0, data.draw(st.floats(0.6, 1.0)))
    held, part = max(theta, 1 - theta), 2.0 ** (1 - members)
    p = parameters("identity", theta, members, schedule)
    target, state, before = torch.zeros(1, dtype=torch.float64), None, schedule(1)
    for t in range(1, 17):
        allowed = (2 - part + held * part) * schedule(t) - held * part * before
        move = data.draw(st.floats(-1, 1)) * max(0.0, allowed) * (1 - 1e-6)
        target = target + move
        state = state or SignGDState(torch.zeros_like(target))
        _, state = signgd_step((target,), state, p)
        assert abs(float(state.v - target)) <= held * part * schedule(t) * (1 + 1e-6)
        before = schedule(t)


def test_a_settled_neuron_is_silent():
    p = parameters("identity", 2 / 3, 1, sg.ExponentialSchedule(1.0, 0.9))
    state, fired = SignGDState(torch.tensor([0.0, 0.01, 0.7])), []
    for _ in range(6):
        code, state = signgd_step((torch.tensor([0.0, 0.0, 0.7]),), state, p)
        fired.append(digits(code, 1).abs().sum().item())
    assert fired == [0] * 6


@pytest.mark.parametrize(
    ("theta", "text"),
    [
        (1.0, "in \\[0, 1\\)"),
        (-0.1, "-0.1"),
        (float("nan"), "nan"),
        (torch.tensor([0.5, 1.0]), "1.0"),
    ],
    ids=str,
)
def test_dead_zones_out_of_range_are_refused(theta, text):
    with pytest.raises(ValueError, match=text):
        parameters("relu", theta, 1)


def test_a_dead_zone_that_does_not_broadcast_is_refused():
    p = parameters("relu", torch.tensor([0.5, 0.6, 0.7]), 1)
    with pytest.raises(sg.InputError, match=r"dead_zone is \[3\]"):
        signgd_step((torch.zeros(2, 4),), SignGDState(torch.zeros(2, 4)), p)


@pytest.mark.parametrize("members", [1, 3, 8])
@pytest.mark.parametrize("name", ["relu", "identity"])  # with both rules at ties
def test_elements_without_a_dead_zone_fire_as_ever(members, name):
    x = torch.randint(-24, 25, (64, 2)) / 8.0
    v = torch.randint(-24, 25, (64, 2)) / 8.0
    mixed = parameters(name, torch.tensor([0.0, 0.5]), members)
    code, after = signgd_step((x,), SignGDState(v), mixed)
    for column, theta in enumerate((0.0, 0.5)):
        alone = parameters(name, theta, members)
        c, a = signgd_step((x,), SignGDState(v), alone)
        assert torch.equal(a.v[:, column], after.v[:, column])
        assert torch.equal(
            levels(c, members, v.dtype)[:, column], levels(code, members, v.dtype)[:, column]
        )


def test_at_most_twelve_members_and_without_momentum():
    parameters("relu", 0.5, 12)
    with pytest.raises(ValueError, match="to 12"):
        parameters("relu", 0.5, 13)
    with pytest.raises(ValueError, match="to 8"):
        parameters("relu", 0.0, 9)
    with pytest.raises(ValueError, match="momentum"):
        sg.SignGDParameters(
            nonlinearity("relu"), sg.ConstantSchedule(1.0), momentum=0.5, dead_zone=0.5
        )


# -- what convert makes of it ----------------------------------------------------------------------


@pytest.fixture
def converted(monkeypatch):
    """{path: neuron} of a network converted so, and its T, where 2 / 3 is the default."""
    monkeypatch.setitem(settings.PRESETS["default"], "dead_zone", 2 / 3)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 2))
    x = torch.randn(8, 4)

    def convert(**options):
        network = sg.convert(model.eval(), [x], **{"tune": False, **options})
        return {node.name: node for node in network.neurons}, network.time_steps

    return convert


@pytest.mark.parametrize("dense", [{"preset": "paper"}, {"momentum": 0.5}], ids=str)
def test_by_path_the_others_are_as_without_it(converted, dense):
    found, _ = converted(dead_zone={"1": 0.0}, **dense)
    assert {node.dead_zone for node in found.values()} == {0.0}
    found, _ = converted(dead_zone={"1": 0.5})
    assert {name: node.dead_zone for name, node in found.items()} == {"1": 0.5, "3": 2 / 3}


def test_members_by_path_leave_the_others_those_of_one_step(converted):
    for options in ({}, {"dead_zone": {"1": 0.0}}):
        found, steps = converted(members={"1": 4}, **options)
        assert ({name: node.members for name, node in found.items()}, steps) == (
            {"1": 4, "3": settings.MEMBERS},
            1,
        )
    found, steps = converted(members={"": 1})
    assert ({node.members for node in found.values()}, steps) == ({1}, settings.TIME_STEPS)


def test_an_objective_that_nothing_reads_is_refused(converted):
    with pytest.raises(sg.InputError, match="objective='additions': tuning takes 64"):
        converted(objective="additions", tune=None)


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ({"head": 0.5}, "dead_zone has an entry for 'head', but the neurons are: 1, 3"),
        (1 - 2**-26, "in \\[0, 1\\)"),  # 1 in float32
        ({"1": None}, "in \\[0, 1\\), but it is None"),
    ],
    ids=str,
)
def test_convert_refuses_dead_zones(converted, zone, text):
    with pytest.raises(sg.InputError, match=text):
        converted(dead_zone=zone)


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
@pytest.mark.parametrize("members", [1, 3, 8])
def test_digits_read_every_code(dead_zone, members):
    """sg.digits spells sg.levels, of signs at every step as of those that may be silent."""
    p = sg.SignGDParameters(
        nonlinearity("identity"), sg.ConstantSchedule(1.0), members=members, dead_zone=dead_zone
    )
    x = torch.linspace(-3, 3, 301)
    code, _ = signgd_step((x,), SignGDState(torch.zeros_like(x)), p)
    sigma = sg.digits(code, members)
    assert sigma.dtype == torch.int8 and sigma.shape == (301, members)
    assert set(sigma.unique().tolist()) == ({-1, 0, 1} if dead_zone else {-1, 1})
    weights = 2 ** torch.arange(members - 1, -1, -1)
    assert torch.equal((sigma * weights).sum(-1), sg.levels(code, members, torch.int64))
