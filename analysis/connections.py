"""The connections that spikes meet on their way through a network, and what each node costs.

A spike meets a weight that is not zero, inside the border of the image, in its own group of
channels. Connections are counted exactly, by the operations themselves with ones for the weights
that are not zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
    values_of,
)
from ..core.operations import LINEAR, connections, resolve

FOLDS, MEAN = "folds into the weights", "the number of steps"
STEP = SignGDNeuron.kind  # a step of known size is added or subtracted, never multiplied

Series = dict[str, Tensor]  # by node, a number for each step [steps]


def per_step(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1) if value.dim() > 1 else value


class Signal(NamedTuple):
    """Where something is in a value, and how much, each [T or 1, B, ...] or None for nothing.

    ``spikes`` counts those that pass here without having met a weight, ``sums`` is 1 where a real
    value changes at every step, ``static`` where one follows from the input.
    """

    spikes: Tensor | None = None
    sums: Tensor | None = None
    static: Tensor | None = None


class Walk:
    """Spikes, sums and static values passed through the network, and the connections they meet.

    By node: ``synaptic`` and ``sums`` [steps], ``static`` once.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        spikes: Mapping[str, Tensor],
        batch: int,
        source: bool = False,
    ) -> None:
        self.network, self.spikes, self.batch, self.source = network, spikes, batch, source
        self.steps = max((s.shape[0] for s in spikes.values()), default=1)
        self.synaptic: Series = {}
        self.sums: Series = {}
        self.static: dict[str, float] = {}
        self.moving: set[str] = set()  # functions whose arguments change with time

    def run(self) -> Walk:
        values: dict[str, Signal] = {}
        for node in self.network.nodes:
            values[node.name] = self._value(node, [values[name] for name in node.inputs])
        return self

    def _ones(self, node: Node, steps: int = 1) -> Tensor:
        return torch.ones(steps, *resolve(node.shape, self.batch), dtype=torch.double)

    def _value(self, node: Node, inputs: list[Signal]) -> Signal:
        if isinstance(node, Input):
            return Signal(static=self._ones(node))
        if isinstance(node, Constant):
            return Signal()
        if isinstance(node, Linear):
            return self._linear(node, inputs)
        if self.source:
            return Signal(static=self._ones(node))
        if isinstance(node, Encoder):
            if node.coding == "poisson":
                return Signal(spikes=self.spikes.get(node.name))
            return Signal(sums=self._ones(node, self.steps))
        if isinstance(node, Average):
            return inputs[0]
        assert isinstance(node, Function)
        arriving = [per_step(s.spikes) for s in inputs if s.spikes is not None]
        if arriving:
            self.synaptic[node.name] = sum(arriving[1:], arriving[0]).cpu()
        moves = any(s.spikes is not None or s.sums is not None for s in inputs)
        if type(node) is Function:  # kept real-valued
            if not moves:
                return Signal(static=self._ones(node))
            self.moving.add(node.name)
            return Signal(sums=self._ones(node, self.steps))
        self.moving.add(node.name)
        return Signal(spikes=self.spikes.get(node.name))

    def _linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        by_kind = {kind: [getattr(s, kind) for s in inputs] for kind in Signal._fields}
        found = {
            kind: self._connections(node, parts)
            for kind, parts in by_kind.items()
            if any(part is not None for part in parts)
        }
        spikes, sums, static = (found.get(kind) for kind in Signal._fields)
        if not LINEAR[node.op].weighted:
            return Signal(spikes, _mask(sums), _mask(static))
        if spikes is not None:
            self.synaptic[node.name] = per_step(spikes)
        if sums is not None:
            self.sums[node.name] = per_step(sums)
        if static is not None:
            self.static[node.name] = float(static.sum())
        changes = [part for part in (spikes, sums) if part is not None]
        return Signal(sums=_mask(sum(changes[1:], changes[0]) if changes else None),
                      static=_mask(static))  # fmt: skip

    def _connections(self, node: Linear, parts: list[Tensor | None]) -> Tensor:
        """How much arrives at each output, every connection being one."""
        shapes = [self._shape(name) for name in node.inputs]
        steps = max(part.shape[0] for part in parts if part is not None)
        values = [
            torch.zeros(steps, *shape, dtype=torch.double)
            if part is None
            else part.cpu().expand(steps, *part.shape[1:])
            for part, shape in zip(parts, shapes, strict=True)
        ]
        tensors = {name: value.cpu() for name, value in node.tensors.items()}
        return connections(node.op, values, node.attributes, tensors, self.batch)

    def _shape(self, name: str) -> list[int]:
        return resolve(self.network[name].shape, self.batch)


def _mask(value: Tensor | None) -> Tensor | None:
    return None if value is None else (value > 0).double()


# -- of each node, whatever it is sent -------------------------------------------------------------


def multiplies(network: SpikingNetwork, node: Function) -> int:
    """The products of two signals in one evaluation of all neurons of a node."""
    name = node.function.name
    constants = {n.name for n in network.nodes if isinstance(n, Constant)}
    if any(i in constants for i in node.inputs) or name not in ("mul", "matmul", "attention"):
        return 0
    if name == "mul":
        return values_of(node.shape)
    depth = values_of(network[node.inputs[0]].shape[-1:])
    if name == "matmul":
        return values_of(node.shape) * depth
    keys = values_of(network[node.inputs[1]].shape[-1:])
    queries = values_of(network[node.inputs[0]].shape[:-1])
    return queries * keys * depth + values_of(node.shape) * keys


def _arguments(network: SpikingNetwork, node: Node) -> int:
    """The values of a neuron's arguments that are not constant."""
    inputs = (network[name] for name in node.inputs)
    return sum(values_of(n.shape) for n in inputs if not isinstance(n, Constant))


def numbers(network: SpikingNetwork, node: Node) -> int:
    """The float32 numbers that the neurons of a node keep from one step to the next."""
    own = values_of(node.shape)
    if isinstance(node, SignGDNeuron):
        return own * (2 if node.momentum else 1) + _arguments(network, node)
    if isinstance(node, GroupNeuron):
        return own * (2 if node.signed else 1)
    # pooling: what came from each input, and what was passed on; rate-coded: decoded input, and v
    return own + _arguments(network, node)


def additions(network: SpikingNetwork, node: Node) -> int:
    """Additions and comparisons of one update of all neurons of a node, f and arrivals apart."""
    own = values_of(node.shape)
    if isinstance(node, SignGDNeuron):  # against f(x), and a step: for each sign
        return own * (2 * node.members + (1 if node.momentum else 0))
    if isinstance(node, GroupNeuron):  # charge, compare with each threshold, reset
        return own * (2 * node.members + 3 if node.signed else node.members + 2)
    if isinstance(node, SubgradientNeuron):
        return 2 * own
    return own + _arguments(network, node)


def scalings(network: SpikingNetwork) -> dict[str, tuple[int, int]]:
    """Multiplications by numbers that change with time: at every step, and once."""
    carried: dict[str, set[str]] = {}  # what the spikes that pass a node are still to be scaled by
    sums: dict[str, bool] = {}
    users = {name for node in network.nodes for name in node.inputs}
    found: dict[str, tuple[int, int]] = {}
    for node in network.nodes:
        arriving = set().union(*(carried[name] for name in node.inputs))
        summed = any(sums[name] for name in node.inputs)
        values = values_of(node.shape)
        leaving: set[str] = set()
        if isinstance(node, Function):  # a rate that no weight meets is scaled where it arrives
            rates = [
                n for n in node.inputs if any(not k.startswith(STEP) for k in carried[n] - {FOLDS})
            ]
            scaled = sum(values_of(network[name].shape) for name in rates)
        if isinstance(node, (SignGDNeuron, SubgradientNeuron)):
            leaving = {f"{node.kind} {json.dumps(node.schedule.to_dict(), sort_keys=True)}"}
            if isinstance(node, SubgradientNeuron) or node.momentum:
                scaled += values  # v
            summed = False
        elif isinstance(node, (GroupNeuron, Growth)):
            leaving, summed = {FOLDS}, False
        elif isinstance(node, Encoder):
            if node.coding == "poisson":
                leaving = {FOLDS if node.per_step else MEAN}
            else:
                summed = True
                found[node.name] = values, 0
        elif isinstance(node, Average):
            leaving = {MEAN} if arriving else set()
            if node.name not in users:  # an output, read once
                found[node.name] = 0, values
            elif summed:
                found[node.name] = values, 0
        elif isinstance(node, Linear) and LINEAR[node.op].weighted:
            different = len(arriving - {FOLDS})
            if different:
                found[node.name] = different * values, 0
            summed = summed or bool(arriving)
        elif isinstance(node, Linear):
            leaving = arriving
        elif isinstance(node, Function):
            summed = summed or bool(arriving)
        if isinstance(node, Function) and scaled:
            found[node.name] = scaled, 0
        carried[node.name], sums[node.name] = leaving, summed
    return found
