"""The dynamics that nodes say themselves, and the one walk that asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from spikingjelly_signgd.converters.simulation import Simulation
from spikingjelly_signgd.core.module import NetworkModule
from spikingjelly_signgd.core.network import (
    Average,
    Encoder,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
)
from spikingjelly_signgd.core.walk import Semantics, Together, following, visits, walk
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


# -- the walk ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Stranger(Neuron):
    """A kind of neuron that nobody has heard of: passes its input on, negated."""

    kind = "stranger"

    def start(self, inputs: tuple[Tensor, ...]) -> None:
        return None

    def sequence(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, None]:
        return -inputs[0], None


def chain() -> SpikingNetwork:
    """x -> doubled -> stranger -> the sum of both; "aside" is read by nobody."""
    two = {"weight": torch.tensor(2.0)}
    nodes = (
        Input(name="x", shape=SHAPE),
        Linear(name="doubled", inputs=("x",), shape=SHAPE, op="affine", tensors=two,
               attributes={"shape": list(SHAPE)}),
        Stranger(name="stranger", inputs=("doubled",), shape=SHAPE, function=RELU),
        Linear(name="aside", inputs=("x",), shape=SHAPE, op="affine", tensors=two,
               attributes={"shape": list(SHAPE)}),
        Linear(name="sum", inputs=("doubled", "stranger"), shape=SHAPE, op="add",
               attributes={"coefficients": [1, 1]}),
    )  # fmt: skip
    return SpikingNetwork(nodes, "sum", 4)


class Paths(Semantics[str]):
    """What was visited, written as a formula."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def each(self, node: Node, inputs: Sequence[str] = ()) -> str:
        self.order.append(node.name)
        return f"{node.name}({', '.join(inputs)})" if inputs else node.name

    input = linear = timed = each  # type: ignore[assignment]


def test_nodes_are_visited_by_their_roles_also_those_of_a_stranger() -> None:
    values = walk(chain(), Paths(), keep=["sum"])
    assert values == {"sum": "sum(doubled(x), stranger(doubled(x)))"}
    assert set(walk(chain(), Paths())) == {"x", "doubled", "stranger", "aside", "sum"}


def test_what_is_known_is_not_visited_again() -> None:
    paths = Paths()
    values = walk(chain(), paths, keep=["sum"], known={"doubled": "d", "x": "x"})
    assert values == {"sum": "sum(d, stranger(d))"}
    assert paths.order == ["stranger", "aside", "sum"]


def test_a_value_that_nobody_needs_any_more_is_forgotten() -> None:
    values: dict[str, str] = {}
    held = {node.name: set(values) for node in visits(chain(), Paths(), values, keep=["sum"])}
    assert held["sum"] == {"doubled", "stranger"}
    assert set(values) == {"sum"}


def test_what_follows_from_a_node() -> None:
    assert following(chain(), ["doubled"]) == {"doubled", "stranger", "sum"}
    assert following(chain(), []) == set()


def test_semantics_side_by_side() -> None:
    both = walk(chain(), Together(Paths(), Paths()), keep=["sum"])["sum"]
    assert both == (walk(chain(), Paths(), keep=["sum"])["sum"],) * 2


def test_a_changed_value_is_followed_to_the_outputs() -> None:
    """ReLU(2 x) + 2 x, by the source network's functions."""
    module, x = NetworkModule(chain(), {}), torch.randn(5, 3)
    values = module.all_activations(x)
    assert torch.equal(values["sum"], (2 * x).relu() + 2 * x)
    after = module.activations_after(values, {"stranger": torch.ones(5, 3)})
    assert set(after) == {"sum"} and torch.equal(after["sum"], 2 * x + 1)


def test_a_stranger_is_simulated_by_its_definition() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(Simulation(chain()).outputs(x, 4), torch.zeros(4, 5, 3))
