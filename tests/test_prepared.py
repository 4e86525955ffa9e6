"""Calls that find their launch prepared give what the definition gives, and nobody notices."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import signgd_multi_step
from spikingjelly_signgd.neurons.choice import running_sum
from spikingjelly_signgd.neurons.kernels import operators
from spikingjelly_signgd.neurons.signgd import SignGDState
from spikingjelly_signgd.neurons.spikes import hear, joined

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
SHAPE = (3, 4, 5)
CHANNELS = torch.linspace(0.5, 2.0, 4)[:, None]
NODES: dict[str, Callable[[], Any]] = {
    "decoded": lambda: sg.SignGDNode("relu", SCHEDULE, spikes="decoded", dead_zone=0),
    "silent": lambda: sg.SignGDNode(
        "gelu", SCHEDULE, members=4, dead_zone=2 / 3, spikes="signed", initial_input=0.0
    ),
    "channels": lambda: sg.SignGDNode(
        "relu", SCHEDULE, scale=CHANNELS, dead_zone=CHANNELS / 4, spikes="signed", initial_input=0.0
    ),
    "by torch": lambda: sg.SignGDNode(
        "layer_norm",
        SCHEDULE,
        arguments={"dims": 1, "eps": 1e-5},
        resting=0.25,
        spikes="signed",
        initial_input=0.0,
    ),
    "group": lambda: sg.GroupNode(4),
    "group by channel": lambda: sg.GroupNode(4, CHANNELS, signed=True),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "turned": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
    "half": lambda x: x.half(),
    "other T": lambda x: x[:3],
    "other batch": lambda x: x[:, :2],
}


def called(node: Any, x: Tensor) -> list[Tensor]:
    node.reset()
    node.step_mode = "m"
    return [node(x), node.v, node(x), node.v]


def same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", NODES)
def test_again_and_again_in_every_layout(name: str) -> None:
    torch.manual_seed(0)
    node, again = NODES[name](), 0
    for _ in range(3):
        for change in LAYOUTS.values():
            x = change(torch.randn(6, *SHAPE))
            definition = NODES[name]()
            definition.backend = "torch"
            known = len(node.dynamics.ready)
            same(called(node, x), called(definition, x))
            again += len(node.dynamics.ready) == known
    assert again >= 2 * len(LAYOUTS)  # the later rounds added nothing


@pytest.mark.parametrize("name", NODES)
def test_copies_and_threads(name: str) -> None:
    x = torch.randn(6, *SHAPE)
    node = NODES[name]()
    expected = called(node, x)
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert not other.dynamics.ready
        same(called(other, x), expected)
    nodes = [copy.deepcopy(node) for _ in range(4)]
    p = node.dynamics
    if name.startswith("group"):
        return
    inputs = [torch.randn(6, *SHAPE) for _ in range(8)]
    state = SignGDState(torch.zeros(SHAPE))
    with ThreadPoolExecutor(len(nodes)) as pool:  # one p, several threads
        done = list(pool.map(lambda x: signgd_multi_step((x,), state, p).y, inputs * 8))
    for x, y in zip(inputs * 8, done, strict=True):
        assert torch.equal(y, signgd_multi_step((x,), state, p).y)


def test_parameters_that_change_are_followed() -> None:
    x, node = torch.randn(6, *SHAPE), NODES["channels"]()
    called(node, x)
    node.scale.mul_(2)  # in place
    changed = sg.SignGDNode(
        "relu",
        SCHEDULE,
        scale=2 * CHANNELS,
        dead_zone=CHANNELS / 4,
        spikes="signed",
        initial_input=0.0,
    )
    same(called(node, x), called(changed, x))
    node, number = NODES["decoded"](), sg.SignGDNode("relu", SCHEDULE, spikes="decoded", scale=3.0)
    called(node, x)
    node.scale = 3.0
    number.dead_zone = 0.0
    same(called(node, x), called(number, x))
    node.resting = number.resting = 0.5
    same(called(node, x), called(number, x))


def test_who_listens_hears_the_same() -> None:
    x, node = torch.randn(6, *SHAPE), NODES["silent"]()
    node.step_mode = "m"
    told = []
    for _ in range(2):
        node.reset()
        with hear() as events:
            node(x)
        told.append(joined(events))
    assert told[0] is not None and told[1] is not None
    assert torch.equal(told[0].number, told[1].number)
    assert torch.equal(told[0].spikes, told[1].spikes)


def test_a_profiler_sees_the_operator() -> None:
    x, node = torch.randn(6, *SHAPE), NODES["decoded"]()
    called(node, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        called(node, x)
    assert any(event.key == "spikingjelly_signgd::signgd" for event in seen.key_averages())


def test_an_input_that_is_no_plain_tensor_goes_through_the_operator() -> None:
    z = torch.randn(6, 4, dtype=torch.complex64).conj()
    x, v = z.imag, torch.zeros(4)  # negated when it is read
    assert x.is_neg()
    p = sg.SignGDParameters(sg.NONLINEARITIES["relu"], SCHEDULE)
    for given in (x.resolve_neg(), x):
        got = signgd_multi_step((given,), SignGDState(v), p).y
        assert torch.equal(got, signgd_multi_step((x,), SignGDState(v), p, backend="torch").y)
    assert torch.equal(running_sum(x, v), running_sum(x.resolve_neg(), v))


def test_sums_keep_their_gradient() -> None:
    x, start = torch.randn(5, 3), torch.zeros(3)
    running_sum(x, start)
    assert operators._sums
    x.requires_grad_()
    running_sum(x, start).sum().backward()
    assert x.grad is not None and torch.equal(x.grad[:, 0], torch.arange(5.0, 0.0, -1))
