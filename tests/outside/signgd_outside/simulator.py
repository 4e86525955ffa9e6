"""A simulator: every node by its own definition, a step at a time, its states in a plain dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikingjelly_signgd.core.module import NetworkModule, NetworkState, Walk
from spikingjelly_signgd.core.network import Node, SpikingNetwork
from spikingjelly_signgd.neurons.base import Timed


class Held(nn.Module):
    def __init__(self, node: Timed) -> None:
        super().__init__()
        self.node = node


class OutsideNetwork(NetworkModule):
    def forward(self, x: Tensor, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        return self.step(x, state)

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        assert isinstance(node, Timed)
        one = walk.steps is None
        x_seq = tuple(x.unsqueeze(0) if one else x for x in inputs)
        state = walk.before.neurons.get(node.name)
        state = node.start(tuple(x[0] for x in x_seq)) if state is None else state
        y_seq, walk.neurons[node.name] = node.sequence(x_seq, state)
        return y_seq[0] if one else torch.as_tensor(y_seq)


def build(network: SpikingNetwork) -> OutsideNetwork:
    return OutsideNetwork(network, {node.name: Held(node) for node in network.of(Timed)})
