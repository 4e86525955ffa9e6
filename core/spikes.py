"""The spikes sent by the neurons of a network: one stream of events for all counters.

Neurons report what they send (``neurons/spikes.py``). Pooling passes on spikes of others, as sums
of outputs: how many spikes a value represents follows from the *unit*, the size of one spike, which
is followed from the senders to each place where it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..neurons.base import Code, Function, Neuron, Node, follows_batch, resolve
from ..neurons.spikes import Events
from .network import Constant, Input, Linear, SpikingNetwork
from .operations import apply, moves
from .walk import Semantics, walk

REAL = Code("graded", 32, 1)  # sums of weighted spikes: no small integers


@dataclass(frozen=True, eq=False)
class Sent:
    """A block of T steps of one node: ``value`` [T, *], what it passes on (v decoded so far, the
    weighted spikes or the outputs of each step), and its ``events``, None where it sends none.

    Pooling passes on as many spikes as the value is units; where those that it selects from differ
    in size an event counts as one spike.
    """

    node: Node
    value: Tensor
    told: Callable[[], Events | None]

    @cached_property
    def events(self) -> Events | None:
        return self.told()


@contextmanager
def listening(snn: Any, listener: Callable[[Sent], None]) -> Iterator[None]:
    """``listener`` is told what each neuron, encoder and average of a ``NetworkModule`` sent."""
    pooling = Pooling(snn)
    before, snn.listener = snn.listener, lambda sent: listener(pooling(sent))
    try:
        yield
    finally:
        snn.listener = before


# -- spikes of others ------------------------------------------------------------------------------


class Unit(NamedTuple):
    """What passes at a place: the ``size`` [B, *] of one spike, 0 where nothing ever passes and NaN
    where it is no spike of one size, and the ``code`` of the events."""

    size: Tensor
    code: Code | None = None


class Units(Semantics[Unit]):
    """The units of the values of one step, for a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def _all(self, node: Node, size: float | Tensor | None) -> Tensor:
        size = torch.as_tensor(nan if size is None else size, device="cpu", dtype=torch.double)
        return size.expand(resolve(node.shape, self.batch))

    def input(self, node: Input) -> Unit:
        return Unit(self._all(node, None))

    def constant(self, node: Constant) -> Unit:
        return Unit(torch.where(node.value.cpu() == 0, 0.0, nan).double())

    def linear(self, node: Linear, inputs: list[Unit]) -> Unit:
        if not moves(node.op, node.attributes):
            return Unit(self._all(node, None))
        attributes, tensors = dict(node.attributes), {k: v.cpu() for k, v in node.tensors.items()}
        if attributes.get("value"):
            attributes["value"] = nan
        size = apply(node.op, [unit.size for unit in inputs], attributes, tensors, self.batch)
        return Unit(size, widest(inputs))

    def function(self, node: Function, inputs: list[Unit]) -> Unit:
        return Unit(self._all(node, None))

    def timed(self, node: Node, inputs: list[Unit]) -> Unit:
        return Unit(self._all(node, node.unit), node.code)

    def neuron(self, node: Neuron, inputs: list[Unit]) -> Unit:
        if node.code is not None:
            return self.timed(node, inputs)
        size = selected(lambda *x: node.function(*x, **node.arguments), [u.size for u in inputs])
        return Unit(size, REAL if bool(size.isnan().any()) else widest(inputs))


def widest(inputs: list[Unit]) -> Code | None:
    return max((u.code for u in inputs if u.code), key=lambda code: code.bits, default=None)


def selected(function: Callable[..., Tensor], sizes: list[Tensor]) -> Tensor:
    """The unit of what a function selects: that of all it may take, NaN where they differ."""
    found = torch.full((), nan)
    for nothing in (0.0, inf, -inf):  # which is never the one that is selected
        most, least = (
            sign * function(*(torch.where(size == 0, nothing, sign * size) for size in sizes))
            for sign in (1, -1)
        )
        agreed = torch.where((least == most) & most.isfinite(), most, nan)
        found = torch.where(found.isnan(), agreed, found)
    return found


def passed(value: Tensor, unit: Tensor) -> Events:
    """The events of a value that is made of units; where there is none each is one spike."""
    number = torch.where(unit > 0, (value.double() / unit).round(), value.sign().double())
    return Events(number, number.abs())


class Pooling:
    """Completes what pooling sent by its events."""

    def __init__(self, snn: Any) -> None:
        self.snn = snn  # whose network is that of another size while it runs one
        self.names = [node.name for node in snn.network.neurons if node.code is None]
        self.units: dict[Any, dict[str, Tensor]] = {}

    def __call__(self, sent: Sent) -> Sent:
        if sent.node.name not in self.names:
            return sent
        network = self.snn.network
        return replace(sent, told=lambda: passed(sent.value, self._unit(sent, network)))

    def _unit(self, sent: Sent, network: SpikingNetwork) -> Tensor:
        shape, made = sent.node.shape, sent.value.shape[1:]
        sizes = zip(shape, made, resolve(shape, 1), strict=True)
        batch = next((n // one for size, n, one in sizes if follows_batch(size)), 1)
        device = sent.value.device
        key = batch, device, network.input.shape
        if key not in self.units:
            found = walk(network, Units(batch), keep=self.names)
            self.units = {key: {k: unit.size.to(device) for k, unit in found.items()}}
        return self.units[key][sent.node.name]


def codes(network: SpikingNetwork) -> dict[str, Code]:
    """How each node that sends spikes codes them; pooling as those it pools."""
    found = {node.name: node.code for node in network.nodes if node.code is not None}
    pooling = [node.name for node in network.neurons if node.code is None]
    if pooling:
        units = walk(network, Units(1), keep=pooling)
        found |= {name: unit.code or REAL for name, unit in units.items()}
    return {node.name: found[node.name] for node in network.nodes if node.name in found}
