"""The cost of an event camera's events: the connections that each meets in the first layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.network import Constant, Input, Linear, Node, SpikingNetwork, Timed
from ..core.operations import LINEAR, resolve
from ..core.walk import Semantics, walk
from ..errors import InputError

Events = Tensor | None  # that have met no weight yet, [F, B, ...]


def event_additions(network: SpikingNetwork, events: Tensor) -> Tensor:
    """Additions of weights for the events of each frame, [F], of all streams together.

    ``events`` says how many there are at each value of the input, [F, B, ...], whatever their sign:
    each is one addition at every connection from its pixel to a neuron, and one at a neuron or a
    function that reads the input itself. Raises InputError for what is not finite or not of the
    input's shape.
    """
    if not isinstance(network, SpikingNetwork):
        raise InputError(
            "event_additions takes the description that convert returns (snn.network of a built "
            f"network), but it is given {type(network).__name__}."
        )
    if not isinstance(events, Tensor):
        raise InputError(
            "events are a tensor [F, B, ...] of the number of events at each value of the input, "
            f"as Events.counts(dt).unsqueeze(1) gives, but they are {type(events).__name__}."
        )
    expected = network.input.shape[1:]
    if tuple(events.shape[2:]) != expected or events.dim() != len(expected) + 2:
        raise InputError(
            f"events are [F, B, {', '.join(map(str, expected))}], as the frames that the network "
            f"takes, but they are {list(events.shape)}."
        )
    if not bool(events.isfinite().all()):
        raise InputError("events are event counts, but some are NaN or infinite.")
    arriving = _Arriving(network, events.abs().double())
    walk(network, arriving, keep=())
    return arriving.additions


class _Arriving(Semantics[Events]):
    """Events passed on to the weights that they meet."""

    def __init__(self, network: SpikingNetwork, events: Tensor) -> None:
        self.network, self.events, self.batch = network, events, events.shape[1]
        self.additions = torch.zeros(len(events), dtype=torch.double)

    def _meet(self, value: Events) -> None:
        if value is not None:
            self.additions += value.flatten(1).sum(1)

    def input(self, node: Input) -> Events:
        return self.events if node is self.network.input else None

    def constant(self, node: Constant) -> Events:
        return None

    def linear(self, node: Linear, inputs: list[Events]) -> Events:
        if all(value is None for value in inputs):
            return None
        shapes = [resolve(self.network[name].shape, self.batch) for name in node.inputs]
        values = [
            torch.zeros(len(self.events), *shape, dtype=torch.double) if value is None else value
            for value, shape in zip(inputs, shapes, strict=True)
        ]
        arrived = node.arriving(values, self.batch)
        if not LINEAR[node.op].weighted:
            return arrived
        self._meet(arrived)
        return None

    def function(self, node: Node, inputs: list[Events]) -> Events:
        for value in inputs:
            self._meet(value)
        return None

    def timed(self, node: Timed, inputs: list[Events]) -> Events:
        return self.function(node, inputs)
