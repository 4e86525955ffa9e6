"""A neuron of one step as a sum of comparisons: equal to the definition for every float32."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikingjelly_signgd.core.network import GroupNeuron, SignGDNeuron
from spikingjelly_signgd.exporters import staircase as module
from spikingjelly_signgd.exporters.staircase import NoStaircase, of_largest, staircase
from spikingjelly_signgd.neurons import NONLINEARITIES
from spikingjelly_signgd.neurons.nonlinearities import Nonlinearity
from spikingjelly_signgd.neurons.schedules import ConstantSchedule


def signgd(function="relu", *, inputs=("x",), **options):
    options = {"schedule": ConstantSchedule(0.5), "members": 3, "dead_zone": 2 / 3} | options
    return SignGDNeuron(
        name="n", inputs=inputs, function=NONLINEARITIES[function], channel=-1, **options
    )


def decoded(node, x):
    """y of one step by the definition, for x [B, ...]."""
    given = torch.from_numpy(x)
    return node.sequence((given.unsqueeze(0),), node.start((given,)))[0][0].numpy()


def near_steps(steps):
    """[B, ...]: each b, and the numbers beside it."""
    b = np.where(np.isfinite(steps.below), steps.below, 0).astype(np.float32)
    sides = [np.nextafter(b, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([sides[0], b, sides[1]])


FUNCTIONS = ("relu", "gelu", "silu", "sigmoid", "tanh", "abs", "square", "exp")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FUNCTIONS),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.4, 2 / 3]),
    st.floats(2**-10, 2**10, width=32),
    st.floats(-2, 2, width=32),
)
def test_equals_the_definition(function, members, dead_zone, scale, resting):
    node = signgd(function, members=members, dead_zone=dead_zone, scale=scale, resting=resting)
    steps = staircase(node, 1)
    far = scale * 3 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).numpy()
    for x in (far, near_steps(steps), np.float32([[-3e38], [0.0], [-0.0], [3e38]])):
        np.testing.assert_array_equal(steps(x), decoded(node, x))


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1)])
def test_channels_differ(shape):
    generator = torch.Generator().manual_seed(1)
    scale, resting = (torch.rand(shape, generator=generator) + 0.1 for _ in range(2))
    node = signgd(scale=scale, resting=resting, members=4)
    steps = staircase(node, len(shape))
    assert steps.below.shape[1:] == shape and len(np.unique(steps.below[0])) == 5
    x = torch.randn(300, *shape, generator=generator).numpy()
    np.testing.assert_array_equal(steps(x), decoded(node, x))


@pytest.mark.parametrize("charge", [0.0, 0.5])
@pytest.mark.parametrize("signed", [False, True])
def test_group_neurons(charge, signed):
    node = GroupNeuron(
        name="n", inputs=("x",), function=NONLINEARITIES["relu"], members=6,
        v_threshold=1.7, initial_charge=charge, signed=signed,
    )  # fmt: skip
    steps = staircase(node, 1)
    assert steps.below.shape == (6, 1)
    x = np.concatenate([near_steps(steps), np.linspace(-3, 3, 999, dtype=np.float32)[:, None]])
    np.testing.assert_array_equal(steps(x), decoded(node, x))


@pytest.mark.parametrize(("members", "dead_zone"), [(1, 0.0), (1, 2 / 3), (3, 0.5), (8, 2 / 3)])
def test_codes_are_whole_numbers_and_their_decoding_is_exact(members, dead_zone):
    scale = torch.rand(7, generator=torch.Generator().manual_seed(2)) + 0.1
    steps = staircase(signgd("gelu", scale=scale, members=members, dead_zone=dead_zone), 1)
    code = steps.whole()
    assert np.array_equal(code.number, np.rint(code.number))
    product = (code.number * code.unit).astype(np.float32)
    np.testing.assert_array_equal(product + code.base, steps.values)


def test_values_without_a_unit_have_no_code():
    values = np.float32([[0.0], [0.3], [1.0], [1.1237]])
    assert module.Staircase(np.float32([[0], [1], [2]]), values).whole() is None


def test_max_pooling_is_of_the_largest():
    node = signgd("max_pool", scale=0.7)
    node = module.replace(node, arguments={"kernel_size": (2, 2)})
    steps = staircase(of_largest(node), 1)
    x = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]
    identity = module.replace(node, function=NONLINEARITIES["clamp"], arguments={})
    np.testing.assert_array_equal(steps(x), decoded(identity, x))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (signgd("mul", inputs=("x", "y")), "several inputs"),
        (signgd("softmax"), "several values together"),
        (signgd("max_pool"), "several values together"),
    ],
)
def test_what_is_no_staircase(node, why):
    with pytest.raises(NoStaircase, match=why):
        staircase(node, 1)


def dip(at, width, depth=1.0):
    """A function that is 0 but near ``at``."""
    return Nonlinearity("dip", lambda x: -depth / (1 + ((x - at) / width) ** 2))


@pytest.mark.parametrize("members", [3, 8])
def test_steps_that_are_made_and_taken_back(members):
    """The turn of a function reaches a little beyond a step, between two numbers of the grid."""
    lowest = float(dip(0.30017, 1).function(torch.tensor(0.30017)))
    node = module.replace(signgd(members=members, scale=0.3), function=dip(0.30017, 0.05))
    step = max(b for b in staircase(signgd("identity", members=members, scale=0.3), 1).below.ravel()
               if b < -0.1)  # fmt: skip
    node = module.replace(node, function=dip(0.30017, 0.05, step / lowest * (1 + 1e-6)))
    steps = staircase(node, 1)
    x = np.linspace(0.3, 0.3004, 100001, dtype=np.float32)[:, None]
    assert len(np.unique(decoded(node, x))) == 2
    assert (steps(x) == decoded(node, x)).mean() > 0.999


def test_functions_that_change_too_fast_are_refused():
    node = module.replace(signgd(), function=Nonlinearity("ripple", lambda x: torch.sin(1e5 * x)))
    with pytest.raises(NoStaircase, match="ripple changes too fast|more than"):
        staircase(node, 1)


def test_channels_of_very_different_sizes():
    scale = torch.logspace(-6, 6, 13)
    node = signgd("gelu", scale=scale, members=5)
    steps = staircase(node, 1)
    for size in (0.5, 1.0, 3.0):
        x = size * scale.numpy() * np.random.default_rng(0).normal(size=(4000, 13))
        x = x.astype(np.float32)
        assert (steps(x) == decoded(node, x)).mean() > 0.9999


def test_many_channels_take_little_time():
    scale = torch.rand(96, generator=torch.Generator().manual_seed(3)) + 0.1
    before = time.process_time()
    staircase(signgd("gelu", scale=scale, members=6), 1)
    assert time.process_time() - before < 5


def test_too_many_steps(monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 5)
    with pytest.raises(NoStaircase, match="more than 5 steps"):
        staircase(signgd(members=3), 1)
