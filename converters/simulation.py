"""A network by the definitions, one node at a time: all T steps of a node before the next node.

So the input of a neuron is known for all steps before its parameters are chosen. Torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.module import NetworkModule, NetworkState, Signal, Source, Walk
from ..core.network import GroupNeuron, Node, SpikingNetwork, Timed, leaves
from ..core.walk import Together, visits
from ..neurons import spikes


class Visit(NamedTuple):
    """A neuron before its parameters are used: ``inputs``, each with whether it leads with time,
    and what the source network has there, before (``source_inputs``) and after (``source``)."""

    node: GroupNeuron
    inputs: list[Signal]
    source_inputs: list[Tensor]
    source: Tensor


class Simulation(NetworkModule):
    """Whole sequences from rest. ``changes`` are nodes in the places of those of their names, which
    may be replaced while a run is at them."""

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__(network, {node.name: nn.Identity() for node in network.of(Timed)})
        self.changes: dict[str, Timed] = {}

    @torch.no_grad()
    def outputs(self, x: Tensor, steps: int) -> Any:
        """What is decoded after each step of one input x [B, ...]: [steps, B, ...]."""
        return self.advance(self.check_input(x), steps, {})[0]

    @torch.no_grad()
    def visits(self, x: Tensor, steps: int) -> Iterator[Visit]:
        """Runs both networks on x [B, ...] side by side, and stops before every group neuron."""
        source = Source(self, x)
        both = Together(source, Walk(self, x, steps, {}, NetworkState({})))
        groups = {node.name: node for node in self.network.of(GroupNeuron)}
        values: dict[str, tuple[Any, ...]] = {}
        for node in visits(self.network, both, values, leaves(self.network.outputs)):
            if node.name in groups:
                before, inputs = zip(*(values[name] for name in node.inputs), strict=True)
                made = node.visit(source, list(before))
                yield Visit(groups[node.name], list(inputs), list(before), made)

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        return sequence(self.changes.get(node.name, node), inputs)  # type: ignore[arg-type]


def sequence(node: Timed, inputs: list[Tensor]) -> Tensor:
    """What a node makes of all steps [T, ...] from rest; group neurons by ``group_outputs``."""
    if isinstance(node, GroupNeuron):
        return group_outputs(inputs[0], node)
    y, _ = node.sequence(tuple(inputs), node.start(tuple(x[0] for x in inputs)))
    return y


def group_outputs(x_seq: Tensor, node: GroupNeuron) -> Tensor:
    """The outputs of group neurons, [T, ...] to [T, ...]; the floor may round on a threshold."""
    theta = torch.as_tensor(node.v_threshold).to(x_seq) / node.members
    charge = torch.as_tensor(node.initial_charge).to(x_seq)
    counts, sent = [], torch.zeros_like(x_seq[0])
    v = charge * theta + sent
    for x in x_seq:
        v, sent, n = count(v + x, sent, theta, node.members, node.signed)
        counts.append(n)
    number = torch.stack(counts)
    spikes.tell(lambda: spikes.Events(number, number.abs()))
    return number * theta


def count(
    h: Tensor, sent: Tensor, theta: Tensor, members: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(v, spikes sent so far, spikes of this step) of a step, all as floating-point numbers."""
    n = torch.floor(h / theta)
    if signed:
        n = torch.maximum(n.clamp(max=members), -sent.clamp(max=members))
    else:
        n = n.clamp(0, members)
    return h - n * theta, sent + n, n
