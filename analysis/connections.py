"""The connections that spikes meet on their way through a network, and what each node costs.

A connection is what ``core.operations.connections`` counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
)
from ..core.operations import LINEAR, resolve
from ..core.walk import Semantics, walk
from ..neurons.base import FOLDS, MEAN, Factor

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


class Connections(Semantics[Signal]):
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
        self.shapes = {node.name: resolve(node.shape, batch) for node in network.nodes}
        self.synaptic: Series = {}
        self.sums: Series = {}
        self.static: dict[str, float] = {}
        self.moving: set[str] = set()  # functions whose arguments change with time

    def run(self) -> Connections:
        walk(self.network, self, keep=())
        return self

    def _ones(self, node: Node, steps: int = 1) -> Tensor:
        return torch.ones(steps, *self.shapes[node.name], dtype=torch.double)

    def input(self, node: Input) -> Signal:
        return Signal(static=self._ones(node))

    def constant(self, node: Constant) -> Signal:
        return Signal()

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        if self.source:
            return Signal(static=self._ones(node))
        if node.code is not None:
            return Signal(spikes=self.spikes.get(node.name))
        return Signal(sums=self._ones(node, self.steps))

    def average(self, node: Average, inputs: list[Signal]) -> Signal:
        return Signal(static=self._ones(node)) if self.source else inputs[0]

    def neuron(self, node: Neuron, inputs: list[Signal]) -> Signal:
        if self.source:
            return Signal(static=self._ones(node))
        self._arrive(node, inputs)
        self.moving.add(node.name)
        return Signal(spikes=self.spikes.get(node.name))

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        """Kept real-valued."""
        if self.source or not any(s.spikes is not None or s.sums is not None for s in inputs):
            return Signal(static=self._ones(node))
        self._arrive(node, inputs)
        self.moving.add(node.name)
        return Signal(sums=self._ones(node, self.steps))

    def _arrive(self, node: Function, inputs: list[Signal]) -> None:
        parts = [per_step(s.spikes) for s in inputs if s.spikes is not None]
        if parts:
            self.synaptic[node.name] = sum(parts[1:], parts[0]).cpu()

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
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
        shapes = [self.shapes[name] for name in node.inputs]
        steps = max(part.shape[0] for part in parts if part is not None)
        values = [
            torch.zeros(steps, *shape, dtype=torch.double)
            if part is None
            else part.cpu().expand(steps, *part.shape[1:])
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return node.arriving(values, self.batch)


def _mask(value: Tensor | None) -> Tensor | None:
    return None if value is None else (value > 0).double()


# -- of each node, whatever it is sent -------------------------------------------------------------


def arguments(network: SpikingNetwork, node: Node) -> int:
    """The values of a neuron's arguments that are not constant."""
    constants = {n.name for n in network.of(Constant)}
    return sum(network[name].values for name in node.inputs if name not in constants)


class Carried(NamedTuple):
    """What the spikes that pass are still to be multiplied by, and whether real values pass."""

    factors: frozenset[Factor] = frozenset()
    summed: bool = False


class Scalings(Semantics[Carried]):
    """Multiplications by numbers that change with time: by node at every step, and once."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.network = network
        self.read = {name for node in network.nodes for name in node.inputs}
        self.found: dict[str, tuple[int, int]] = {}

    def _put(self, node: Node, every: int, once: int = 0) -> None:
        if every or once:
            self.found[node.name] = every, once

    def input(self, node: Input) -> Carried:
        return Carried()

    def constant(self, node: Constant) -> Carried:
        return Carried()

    def linear(self, node: Linear, inputs: list[Carried]) -> Carried:
        together = _together(inputs)
        if not LINEAR[node.op].weighted:
            return together
        self._put(node, len(together.factors - {FOLDS}) * node.values)
        return Carried(summed=together.summed or bool(together.factors))

    def function(self, node: Function, inputs: list[Carried]) -> Carried:
        self._put(node, self._rates(node, inputs))
        together = _together(inputs)
        return Carried(summed=together.summed or bool(together.factors))

    def neuron(self, node: Neuron, inputs: list[Carried]) -> Carried:
        self._put(node, self._rates(node, inputs) + node.products)
        return Carried(_one(node.factor))

    def _rates(self, node: Function, inputs: list[Carried]) -> int:
        """Of rates that no weight meets, which are scaled where they arrive."""
        scaled = [any(not f.adds for f in carried.factors - {FOLDS}) for carried in inputs]
        return sum(
            self.network[name].values for name, s in zip(node.inputs, scaled, strict=True) if s
        )

    def encoder(self, node: Encoder, inputs: list[Carried]) -> Carried:
        if node.code is None:  # real values, of its own step size
            self._put(node, node.values)
            return Carried(summed=True)
        return Carried(_one(node.factor))

    def average(self, node: Average, inputs: list[Carried]) -> Carried:
        together = _together(inputs)
        if node.name not in self.read:  # an output, read once
            self._put(node, 0, node.values)
        elif together.summed:
            self._put(node, node.values)
        return Carried(_one(MEAN) if together.factors else frozenset(), together.summed)


def _one(factor: Factor | None) -> frozenset[Factor]:
    return frozenset() if factor is None else frozenset([factor])


def _together(inputs: list[Carried]) -> Carried:
    factors = frozenset().union(*(carried.factors for carried in inputs))
    return Carried(factors, any(carried.summed for carried in inputs))


def scalings(network: SpikingNetwork) -> dict[str, tuple[int, int]]:
    """By node the multiplications by numbers that change with time: at every step, and once."""
    semantics = Scalings(network)
    walk(network, semantics, keep=())
    return semantics.found
