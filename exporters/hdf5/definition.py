"""A network by the pure-torch definitions, without a simulator: what files are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.module import NetworkModule, NetworkState, Walk, key
from ...core.network import (
    Average,
    Encoder,
    GroupNeuron,
    Growth,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
)
from ...core.running import map_tensors
from ...neurons.coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_step,
)
from ...neurons.group import (
    GroupNeuronParameters,
    SignedGroupState,
    group_initial_v,
    group_step,
    signed_group_step,
)
from ...neurons.growth import growth_initial_state, growth_step
from ...neurons.protocol import encode_step, like, running_mean
from ...neurons.signgd import (
    SignGDParameters,
    SignGDState,
    signgd_initial_state,
    signgd_step,
    weighted_spike,
)
from ...neurons.subgradient import SubgradientParameters, SubgradientState, subgradient_step


class _Tensors(nn.Module):
    """The tensors of a neuron, so that they move and are cast with the network."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        for name in ("scale", "resting", "v_threshold", "initial_charge"):
            value = getattr(node, name, None)
            if isinstance(value, Tensor):
                self.register_buffer(name, value.clone())
            else:
                setattr(self, name, value)


class DefinitionNetwork(NetworkModule):
    """Runs one step at a time; ``fired`` is what each neuron did in the last one, [B, ...].

    bool where sigma or s is 1; of several signs in a step the uint8 that ``signgd_step`` returns,
    whose bits they are; int64 counts of members for group neurons, negative where spikes are taken
    back; the output itself for growth, which is a difference of sums and no count.
    """

    def __init__(self, network: SpikingNetwork, spikes: str = "decoded") -> None:
        neurons = {
            node.name: _Tensors(node)
            for node in network.nodes
            if isinstance(node, (Neuron, Encoder, Average))
        }
        super().__init__(network, neurons, spikes)
        self.fired: dict[str, Tensor] = {}

    def forward(self, x: Tensor, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        return self.step(x, state)

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        p = self._dynamics(node)
        start = signgd_initial_state(p.target(*inputs), p)
        state.neurons[node.name] = start, tuple(inputs)
        return p.resting

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        state = walk.before.neurons.get(node.name)
        steps = {
            SignGDNeuron: self._signgd,
            GroupNeuron: self._group,
            Growth: self._growth,
            SubgradientNeuron: self._subgradient,
            Encoder: self._encoder,
            Average: self._average,
        }
        y, walk.neurons[node.name] = steps[type(node)](node, inputs, state)
        return y

    def _dynamics(self, node: Node) -> SignGDParameters:
        assert isinstance(node, SignGDNeuron)
        held: Any = self.neuron(node.name)
        function: Any = self.functions[key(node.name)]
        arguments = {**function.arguments, **dict(function.named_buffers())}
        return SignGDParameters(
            node.function,
            node.schedule,
            held.scale,
            held.resting,
            arguments,
            node.momentum,
            node.members,
        )

    def _signgd(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        p = self._dynamics(node)
        if state is None:
            state = signgd_initial_state(p.target(*inputs), p), ()
        neuron, integrated = state
        x = tuple(inputs)
        if integrated:
            x = integrated = tuple(a + b for a, b in zip(integrated, inputs, strict=True))
        fires, after = signgd_step(x, neuron, p)
        self.fired[node.name] = fires
        y = weighted_spike(fires, after, p) if integrated else after.v
        return y, (SignGDState(*after), integrated)

    def _group(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        (x,) = inputs
        held: Any = self.neuron(node.name)
        p = GroupNeuronParameters(node.members, held.v_threshold, held.initial_charge, node.signed)
        if state is None:
            state = group_initial_v(x, p)
            state = SignedGroupState(state, torch.zeros_like(x)) if p.signed else state
        out, state = signed_group_step(x, state, p) if p.signed else group_step(x, state, p)
        self.fired[node.name] = (out / p.theta).round().long()
        return out, state

    def _growth(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        x, f = tuple(inputs), self.functions[key(node.name)]
        out, state = growth_step(x, growth_initial_state(x, f) if state is None else state, f)
        self.fired[node.name] = out
        return out, state

    def _subgradient(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        held: Any = self.neuron(node.name)
        p = SubgradientParameters(held.scale, node.schedule)
        state = SubgradientState(torch.zeros_like(inputs[0])) if state is None else state
        self.fired[node.name], state = subgradient_step(inputs[0], state, p)
        return state.v, state

    def _encoder(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        (x,) = inputs
        state = CodingState(torch.zeros_like(x)) if state is None else state
        if node.coding == "poisson":
            spikes, state = poisson_step(x, state, PoissonCodingParameters(node.scale, node.seed))
            return (spikes if node.per_step else state.v), state
        assert node.schedule is not None
        p = RealCodingParameters(node.schedule, node.momentum)
        return encode_step(x, state, p, self.spikes)

    def _average(self, node: Any, inputs: list[Tensor], state: Any) -> tuple[Tensor, Any]:
        total, t = (torch.zeros_like(inputs[0]), 0) if state is None else state
        y_seq, total = running_mean(inputs[0].unsqueeze(0), total, t)
        return y_seq[0], (total, t + 1)


@dataclass(frozen=True, eq=False)
class DefinitionRun:
    """``spikes``: what each neuron ``fired``, [T, B, ...]; ``outputs`` after the last step, as the
    network's."""

    spikes: Mapping[str, Tensor]
    outputs: Any


@torch.no_grad()
def run_definition(
    network: SpikingNetwork,
    x: Tensor,
    time_steps: int,
    *,
    spikes: str = "decoded",
    dtype: torch.dtype = torch.float64,
) -> DefinitionRun:
    """``time_steps`` steps of x [B, ...] in ``dtype``, by the definitions."""
    module = DefinitionNetwork(network, spikes).to(dtype)
    state, kept = None, {name: [] for name in network.names()}  # type: ignore[var-annotated]
    outputs: Any = None
    for _ in range(time_steps):
        outputs, state = module(like(x, torch.empty(0, dtype=dtype)), state)
        for name, seen in kept.items():
            seen.append(module.fired[name])
    found = {name: torch.stack(seen) for name, seen in kept.items()}
    return DefinitionRun(found, map_tensors(outputs, Tensor.clone))
