"""The dynamics that nodes say themselves, and the one walk that asks them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikingjelly_signgd.core.network import (
    Average,
    Encoder,
    GroupNeuron,
    Growth,
    Node,
    SignGDNeuron,
    SubgradientNeuron,
)
from spikingjelly_signgd.neurons import ExponentialSchedule, InverseSchedule
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES
from spikingjelly_signgd.neurons.signgd import signgd_spike_step
from spikingjelly_signgd.neurons.spikes import hear, joined

SCHEDULE = ExponentialSchedule(0.5, 0.8)
RELU, MAXIMUM = NONLINEARITIES["relu"], NONLINEARITIES["maximum"]
SHAPE = ("1*batch", 3)
CHANNELS = torch.tensor([0.5, 1.0, 2.0])
TIMED: dict[str, Node] = {
    "signgd": SignGDNeuron(name="n", shape=SHAPE, function=RELU, schedule=SCHEDULE, scale=CHANNELS),
    "several signs": SignGDNeuron(
        name="n", shape=SHAPE, function=RELU, schedule=SCHEDULE, members=3, resting=0.25
    ),
    "momentum": SignGDNeuron(name="n", shape=SHAPE, function=RELU, schedule=SCHEDULE, momentum=0.5),
    "two arguments": SignGDNeuron(
        name="n", inputs=("a", "b"), shape=SHAPE, function=MAXIMUM, schedule=SCHEDULE
    ),
    "group": GroupNeuron(name="n", shape=SHAPE, function=RELU, members=4, v_threshold=CHANNELS),
    "signed": GroupNeuron(
        name="n", shape=SHAPE, function=RELU, members=4, v_threshold=1.0, signed=True
    ),
    "growth": Growth(name="n", inputs=("a", "b"), shape=SHAPE, function=MAXIMUM),
    "subgradient": SubgradientNeuron(
        name="n", shape=SHAPE, function=RELU, schedule=InverseSchedule(1.0, delay=1.0), scale=2.0
    ),
    "real": Encoder(name="n", shape=SHAPE, coding="real", schedule=SCHEDULE, momentum=0.5),
    "poisson": Encoder(name="n", shape=SHAPE, coding="poisson", scale=2.0, seed=3),
    "poisson spikes": Encoder(name="n", shape=SHAPE, coding="poisson", per_step=True),
    "average": Average(name="n", shape=SHAPE),
}


def series(node: Node) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(7, 5, 3, generator=draw) for _ in range(max(1, len(node.inputs))))


@pytest.mark.parametrize("kind", TIMED)
def test_a_sequence_is_its_steps(kind: str) -> None:
    node: Any = TIMED[kind]
    inputs = series(node)
    start = node.start(tuple(x[0] for x in inputs))
    with hear() as told:
        whole, last = node.sequence(inputs, start)
    first, state = node.sequence(tuple(x[:3] for x in inputs), start)
    rest, _ = node.sequence(tuple(x[3:] for x in inputs), state)
    assert torch.equal(torch.cat([first, rest]), whole)
    outputs, state = [], start
    with hear() as told_by_step:
        for t in range(7):
            y, state = node.step(tuple(x[t] for x in inputs), state)
            outputs.append(y)
    assert torch.equal(torch.stack(outputs), whole)
    have, want = joined(told_by_step), joined(told)
    assert (want is None) == (kind in ("growth", "real", "average"))
    if want is not None:
        assert have is not None
        assert torch.equal(have.number, want.number) and torch.equal(have.spikes, want.spikes)


@pytest.mark.parametrize("kind", [name for name, node in TIMED.items() if node.kind == "signgd"])
def test_the_spike_view_of_a_node_is_that_of_the_definition(kind: str) -> None:
    node = TIMED[kind]
    assert isinstance(node, SignGDNeuron)
    inputs = series(node)
    state = expected = node.spike_start(tuple(torch.zeros(5, 3) for _ in inputs))
    for step in zip(*inputs, strict=True):
        y, state = node.spike_step(step, state)
        want, expected = signgd_spike_step(step, expected, node.parameters)
        assert torch.equal(y, want) and torch.equal(state.neuron.v, expected.neuron.v)


def test_real_coding_sends_its_increments_in_the_spike_view() -> None:
    node = TIMED["real"]
    assert isinstance(node, Encoder)
    (x_seq,) = series(node)
    decoded, _ = node.sequence((x_seq,), node.start((x_seq[0],)))
    state, before = node.start((x_seq[0],)), torch.zeros(5, 3)
    for x, v in zip(x_seq, decoded, strict=True):
        y, state = node.spike_step((x,), state)
        assert torch.equal(y, v - before)
        before = v
