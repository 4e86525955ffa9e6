"""A network by the definitions, one node at a time: all T steps of a node before the next node.

So the input of a neuron is known for all steps before its parameters are chosen. Torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.module import NetworkModule, NetworkState, Signal, Walk, key
from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
    leaves,
)
from ..neurons import spikes
from ..neurons.coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_step,
)
from ..neurons.growth import growth_initial_state, growth_step
from ..neurons.protocol import encode_step, running_mean, signgd_sequence, signgd_start
from ..neurons.scan import scan
from ..neurons.subgradient import SubgradientState, subgradient_step


class Visit(NamedTuple):
    """A neuron before its parameters are used: ``inputs``, each with whether it leads with time,
    and what the source network has there, before (``source_inputs``) and after (``source``)."""

    node: GroupNeuron
    inputs: list[Signal]
    source_inputs: list[Tensor]
    source: Tensor


class Simulation(NetworkModule):
    """Whole sequences from rest. ``group`` holds the group neurons' nodes, which may be replaced
    while a run is at them."""

    def __init__(self, network: SpikingNetwork) -> None:
        timed = (Neuron, Encoder, Average)
        super().__init__(
            network, {n.name: nn.Identity() for n in network.nodes if isinstance(n, timed)}
        )
        self.group = {n.name: n for n in network.nodes if isinstance(n, GroupNeuron)}

    def changed(self) -> SpikingNetwork:
        """The network with the group neurons as they are now."""
        nodes = tuple(self.group.get(node.name, node) for node in self.network.nodes)
        return self.network.replace(nodes=nodes)

    @torch.no_grad()
    def outputs(self, x: Tensor, steps: int) -> Any:
        """What is decoded after each step of one input x [B, ...]: [steps, B, ...]."""
        return self.advance(self.check_input(x), steps, {})[0]

    @torch.no_grad()
    def visits(self, x: Tensor, steps: int) -> Iterator[Visit]:
        """Runs both networks on x [B, ...] side by side, and stops before every group neuron."""
        walk = Walk(x, steps, {}, NetworkState({}))
        values: dict[str, Signal] = {}
        source: dict[str, Tensor] = {}
        kept = set(leaves(self.network.outputs))
        for node in self.network.nodes:
            before = [source[name] for name in node.inputs]
            source[node.name] = self._source(node, before, x)
            if isinstance(node, GroupNeuron):
                inputs = [values[name] for name in node.inputs]
                yield Visit(node, inputs, before, source[node.name])
            values[node.name] = self._value(node, values, walk)
            for name in set(self._last_use.get(node.name, ())) - kept:
                del values[name], source[name]

    def _source(self, node: Node, inputs: list[Tensor], x: Tensor) -> Tensor:
        if isinstance(node, Input):
            return x
        if isinstance(node, Constant):
            return self.operations[key(node.name)].value  # type: ignore[return-value]
        if isinstance(node, Linear):
            return self.operations[key(node.name)](*inputs, batch=x.shape[0])  # type: ignore[no-any-return]
        if isinstance(node, Function):
            return self.functions[key(node.name)](*inputs)  # type: ignore[no-any-return]
        return inputs[0]

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        (x, *_), first = inputs, tuple(x_seq[0] for x_seq in inputs)
        if isinstance(node, GroupNeuron):
            return group_outputs(x, self.group[node.name])
        if isinstance(node, Growth):
            function = partial(node.function, **node.arguments)
            steps = list(zip(*inputs, strict=True))
            return scan(growth_step, steps, growth_initial_state(first, function), function)[0]
        if isinstance(node, SignGDNeuron):
            p = node.parameters
            state, _ = signgd_start(first, p)
            return signgd_sequence(inputs, state, None, p).y
        if isinstance(node, Average):
            return running_mean(x, torch.zeros_like(x[0]), 0)[0]
        return scan(_STEPS[type(node)], x, None, node)[0]


def _subgradient(x: Tensor, state: Any, node: Any) -> tuple[Tensor, SubgradientState]:
    state = SubgradientState(torch.zeros_like(x)) if state is None else state
    state = subgradient_step(x, state, node.parameters)[1]
    return state.v, state


def _encoder(x: Tensor, state: Any, node: Any) -> tuple[Tensor, CodingState]:
    state = CodingState(torch.zeros_like(x)) if state is None else state
    if node.coding == "poisson":
        sent, state = poisson_step(x, state, PoissonCodingParameters(node.scale, node.seed))
        return (sent if node.per_step else state.v), state
    return encode_step(x, state, RealCodingParameters(node.schedule, node.momentum), "decoded")


_STEPS: dict[type[Node], Callable[[Tensor, Any, Any], tuple[Tensor, Any]]] = {
    SubgradientNeuron: _subgradient,
    Encoder: _encoder,
}


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
