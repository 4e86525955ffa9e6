"""The spikes sent by the neurons of a trainable network, counted with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .network import Node, SpikingNetwork


class Tally:
    """What the neurons of a module that trains sent since its run began, with a gradient.

    ``fan_out`` by node, the connections that each of its spikes meets; ``sent`` by node, spikes
    times connections of all ``samples`` in ``steps`` steps.
    """

    def __init__(self, network: SpikingNetwork, fan_out: dict[str, Tensor]) -> None:
        self.network, self.fan_out = network, fan_out
        self.sent: dict[str, Tensor] = {}
        self.samples = self.steps = 0

    def run(self, network: SpikingNetwork, begins: bool, samples: int, steps: int) -> None:
        """So many steps more, of a run that ``begins`` or goes on; none at another size."""
        if begins or network is not self.network:
            self.sent, self.samples, self.steps = {}, samples, 0
        self.steps += steps if network is self.network else 0

    def add(self, name: str, sent: Sequence[Tensor]) -> None:
        for each in sent:
            self.sent[name] = self.sent[name] + each if name in self.sent else each

    def settle(self, before: dict[str, Tensor]) -> None:
        """Without a gradient what was sent up to sums ``before``, where nothing was added since."""
        for name, sent in before.items():
            if self.sent.get(name) is sent:
                self.sent[name] = sent.detach()

    def of(self, node: Node, like: Tensor) -> Tensor | None:
        """The connections of a node, where ``like`` is; None of one that sends nothing."""
        fan_out = self.fan_out.get(node.name)
        if fan_out is not None and fan_out.device != like.device:
            fan_out = self.fan_out[node.name] = fan_out.to(like.device)
        return fan_out

    def __getstate__(self) -> dict[str, Any]:
        """Without what hangs in a graph, which cannot be copied."""
        return {**self.__dict__, "sent": {}, "samples": 0, "steps": 0}
