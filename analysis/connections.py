"""The connections that spikes meet on their way through a network, and the operations of each node.

A connection is what ``core.operations.connections`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from ..neurons.nonlinearities import softmax

Series = dict[str, Tensor]  # by node, a number for each step [steps]
Arriving = Mapping[Factor | None, Tensor]  # spikes by what they are still to be multiplied with


def per_step(value: Tensor) -> Tensor:
    return value.double().flatten(1).sum(1) if value.dim() > 1 else value.double()


class Signal(NamedTuple):
    """Where something is in a value, and how much, each [T or 1, B, ...] or None for nothing.

    ``spikes`` counts those that pass here without having met a weight, ``sums`` is 1 where a real
    value changes in a step, ``static`` where one follows from the input. With ``rates`` the value
    is made of means over the steps so far, which change in every step.
    """

    spikes: Arriving = {}
    sums: Tensor | None = None
    static: Tensor | None = None
    rates: bool = False

    @property
    def moves(self) -> bool:
        return bool(self.spikes) or self.sums is not None


class Connections(Semantics[Signal]):
    """Spikes, sums and static values passed through the network, and the connections they meet.

    By node: ``synaptic``, ``sums``, ``products`` and ``scaled`` [steps], ``static`` once. The first
    of the steps is that of the run if ``first``: what is static is met in it.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        spikes: Mapping[str, Tensor],
        batch: int,
        source: bool = False,
        first: bool = True,
    ) -> None:
        self.network, self.spikes, self.batch, self.source = network, spikes, batch, source
        self.steps, self.first = max((s.shape[0] for s in spikes.values()), default=1), first
        self.shapes = {node.name: resolve(node.shape, batch) for node in network.nodes}
        self.synaptic: Series = {}
        self.sums: Series = {}
        self.products: Series = {}
        self.scaled: Series = {}
        self.static: dict[str, float] = {}
        self.moving: set[str] = set()  # functions whose arguments change with time

    def run(self) -> Connections:
        walk(self.network, self, keep=())
        return self

    def _ones(self, node: Node, steps: int = 1) -> Tensor:
        return torch.ones(steps, *self.shapes[node.name], dtype=torch.double)

    def _sent(self, node: Node) -> Signal:
        """What a node sends: of steps that add up, or of rates."""
        sent, factor = self.spikes.get(node.name), node.factor
        rates = factor is None or not factor.adds
        return Signal({} if sent is None else {factor: sent}, rates=rates)

    def input(self, node: Input) -> Signal:
        return Signal(static=self._ones(node))

    def constant(self, node: Constant) -> Signal:
        return Signal()

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        if self.source:
            return Signal(static=self._ones(node))
        if node.code is not None:
            return self._sent(node)
        return Signal(sums=self._ones(node, self.steps))

    def average(self, node: Average, inputs: list[Signal]) -> Signal:
        return Signal(static=self._ones(node)) if self.source else inputs[0]._replace(rates=True)

    def neuron(self, node: Neuron, inputs: list[Signal]) -> Signal:
        if self.source:
            return Signal(static=self._ones(node))
        self._arrive(node, inputs)
        return self._sent(node)

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        """Kept real-valued."""
        if self.source or not any(s.moves for s in inputs):
            return Signal(static=self._ones(node))
        changed = self._arrive(node, inputs)
        return Signal(sums=reached(node, changed).double())

    def _arrive(self, node: Function, inputs: list[Signal]) -> list[Tensor]:
        """Where the arguments change."""
        parts = [per_step(n) for s in inputs for n in s.spikes.values()]
        if parts:
            self.synaptic[node.name] = sum(parts[1:], parts[0]).cpu()
        self.moving.add(node.name)
        changed = [
            self._changed(self.shapes[name], signal)
            for name, signal in zip(node.inputs, inputs, strict=True)
        ]
        if self.network.products(node):
            self.products[node.name] = products(node, changed)
        return changed

    def _changed(self, shape: Sequence[int], signal: Signal) -> Tensor:
        parts = [*signal.spikes.values(), signal.sums]
        return changes(shape, self.steps, parts, signal.static if self.first else None,
                       signal.rates and signal.moves)  # fmt: skip

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        factors = dict.fromkeys(factor for signal in inputs for factor in signal.spikes)
        spikes = {f: self._connections(node, [s.spikes.get(f) for s in inputs]) for f in factors}
        sums = self._passing(node, [s.sums for s in inputs])
        static = self._passing(node, [s.static for s in inputs])
        rates = any(signal.rates for signal in inputs)
        if not LINEAR[node.op].weighted:
            return Signal(spikes, _mask(sums), _mask(static), rates)
        if spikes:
            self.synaptic[node.name] = per_step(sum(spikes.values(), torch.zeros(())))
        scaled = [per_step(n > 0) for f, n in spikes.items() if f is not None and f.adds]
        if scaled:
            self.scaled[node.name] = sum(scaled[1:], scaled[0])
        if sums is not None:
            self.sums[node.name] = per_step(sums)
        if static is not None:
            self.static[node.name] = float(static.sum())
        if sums is not None and static is not None and self.first:
            self.sums[node.name][0] -= self._both(node, inputs)
        changed = [*spikes.values(), *([] if sums is None else [sums])]
        return Signal({}, _mask(sum(changed[1:], changed[0]) if changed else None), _mask(static),
                      rates)  # fmt: skip

    def _both(self, node: Linear, inputs: list[Signal]) -> float:
        """The connections that what is static and a sum meet together in the first step."""
        both = [
            None if s.sums is None or s.static is None else s.sums[:1].cpu() * s.static.cpu()
            for s in inputs
        ]
        met = self._passing(node, both)
        return 0.0 if met is None else float(met.sum())

    def _passing(self, node: Linear, parts: list[Tensor | None]) -> Tensor | None:
        return None if all(p is None for p in parts) else self._connections(node, parts)

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


# -- what changes ----------------------------------------------------------------------------------


def changes(
    shape: Sequence[int],
    steps: int,
    parts: Iterable[Tensor | None],
    static: Tensor | None,
    always: bool = False,
) -> Tensor:
    """Where a value changes, bool [steps, *shape]: the definition.

    A value changes in a step where an event arrives at it in that step: a spike, or what a spike
    became on its way through weights and functions. In the spike view that is where an increment
    arrives, in the decoded view where v of a sender moved; events that cancel are a change. What is
    ``static``, of the input alone, changes once, in the first step; what a network starts from
    (resting values, biases) is known before it and never does. Means over the steps so far
    (``always``) change in every step.
    """
    if always:
        return torch.ones(steps, *shape, dtype=torch.bool)
    changed = torch.zeros(steps, *shape, dtype=torch.bool)
    for part in parts:
        if part is not None:
            changed |= part.cpu() > 0
    if static is not None:
        changed[0] |= static.cpu().expand(1, *shape)[0] != 0
    return changed


def reached(node: Function, changed: list[Tensor]) -> Tensor:
    """Where f changes if its arguments do there, bool [steps, *]: NaN spreads as a change does."""
    probe = [torch.full(c.shape, 0.5).masked_fill(c, torch.nan) for c in changed]
    return node.function.over_time(*probe, **node.arguments).isnan()


def products(node: Function, changed: list[Tensor]) -> Tensor:
    """The products of two signals, [steps], of which a factor changes: all but those of two that
    do not. Of attention those of queries and keys, and of weights and values."""
    if node.function.name == "mul":
        return per_step(reached(node, changed))
    if node.function.name == "matmul":
        return _of_matrices(*changed)
    x, y, z = changed[:3]  # and a mask, which is no factor
    logits = x.any(-1, keepdim=True) | y.any(-2, keepdim=True)
    keep = node.arguments.get("keep")
    weights = softmax(torch.zeros(logits.shape).masked_fill(logits, torch.nan), -1, keep).isnan()
    return _of_matrices(x, y) + _of_matrices(weights, z)


def _of_matrices(x: Tensor, y: Tensor) -> Tensor:
    one = torch.ones((), dtype=torch.double)
    every = torch.matmul(one.expand(x.shape), one.expand(y.shape))
    return per_step(every - torch.matmul((~x).double(), (~y).double()))


# -- of each node, whatever it is sent -------------------------------------------------------------


def arguments(network: SpikingNetwork, node: Node) -> int:
    """The values of a neuron's arguments that are not constant, nor computed of masks alone."""
    constants = {n.name for n in (*network.of(Constant), *network.statics)}
    return sum(network[name].values for name in node.inputs if name not in constants)


class Carried(NamedTuple):
    """What the spikes that pass are still to be multiplied by, and whether real values pass."""

    factors: frozenset[Factor] = frozenset()
    summed: bool = False


class Scalings(Semantics[Carried]):
    """Multiplications by numbers that change with time: by node at every step, and once.

    Those of step sizes, only where spikes arrive, are ``Connections.scaled``.
    """

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
        rates = [f for f in together.factors - {FOLDS} if not f.adds]
        self._put(node, len(rates) * node.values)
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
