"""SpikingJelly: the neurons as its own node types, and converted networks made of them.

Works with spikingjelly 2.0.0 and 0.0.0.0.14; features are tested, not versions. On 2.0.0
``SignGDRecipe`` and ``GroupRecipe`` plug the conversion into its ``ann2snn.Converter``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ...core.module import NetworkModule, NetworkState, Walk, select
from ...core.network import (
    Average,
    Encoder,
    GroupNeuron,
    Growth,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
)
from .. import simulator
from .nodes import (
    Encode,
    GroupNode,
    GrowthNode,
    PoissonEncode,
    Readout,
    RunningMean,
    SignGDNode,
    SubgradientNode,
    group_neuron_factory,
)

with simulator("spikingjelly"):
    from spikingjelly.activation_based import base

try:  # the recipes of 2.0.0; 0.0.0.0.14 has no such extension point
    from spikingjelly.activation_based.ann2snn import FXConversionRecipe
except ImportError:
    FXConversionRecipe = object

__all__ = [
    "Encode",
    "GroupNode",
    "GroupRecipe",
    "GrowthNode",
    "PoissonEncode",
    "Readout",
    "RunningMean",
    "SignGDNode",
    "SignGDRecipe",
    "SpikingJellyNetwork",
    "SubgradientNode",
    "build",
    "group_neuron_factory",
]


class SpikingJellyNetwork(NetworkModule, base.MemoryModule):
    """A converted network of SpikingJelly nodes.

    ``forward(x)``: step_mode "s": x [B, ...], one step; "m": x [T, B, ...], T steps; with
    ``mode = "ann"`` x is [B, ...] in both. At home in ``functional.set_step_mode``,
    ``functional.reset_net`` and ``monitor``; the nodes are ``module.neuron(name)``.
    ``spikingjelly_signgd.run`` runs it for many time steps at once.
    """

    _state: NetworkState | None = None  # of the spike view

    def forward(self, x: Tensor) -> Any:
        if self.mode == "ann":
            return self.ann(x)
        run = self.step if self.step_mode == "s" else self.advance
        outputs, self._state = run(x, state=self._state)
        return outputs

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        y: Tensor = self.neuron(node.name)(*inputs)
        return y

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        neuron = self.neuron(node.name)
        neuron.start(*inputs)  # type: ignore[operator]
        resting: float | Tensor = neuron.resting  # type: ignore[assignment]
        return resting

    def reset(self) -> None:
        self._state = None
        for module in self.neurons.values():
            module.reset()  # type: ignore[operator]

    def select(self, index: Tensor, batch: int) -> None:
        for module in self.neurons.values():
            memories = getattr(module, "_memories", {})
            memories.update(select(memories, index, batch))


def build(
    network: SpikingNetwork,
    *,
    spikes: str = "decoded",
    step_mode: str = "s",
    kernels: str = "auto",
) -> SpikingJellyNetwork:
    """``network`` as SpikingJelly nodes; ``spikes`` as for ``SignGDNode``, "decoded" or "signed".

    ``kernels`` is the backend of the neurons: "auto", "cpu", "cupy" or "torch". Raises ValueError
    where a network cannot be built in the view asked for.
    """
    neurons = {
        node.name: made for node in network.nodes if (made := make_node(node, spikes)) is not None
    }
    module = SpikingJellyNetwork(network, neurons, spikes)
    for part in module.modules():
        if isinstance(part, base.StepModule):
            part.step_mode = step_mode
        if isinstance(part, (SignGDNode, GroupNode, GrowthNode)):
            part.backend = kernels
    return module


def make_node(node: Node, spikes: str = "decoded") -> nn.Module | None:
    """The SpikingJelly node of a network's node; None for those that are not neurons."""
    if isinstance(node, SignGDNeuron):
        return SignGDNode(
            node.function,
            node.schedule,
            scale=node.scale,
            resting=node.resting,
            spikes=spikes,
            arguments=node.arguments,
            momentum=node.momentum,
            members=node.members,
        )
    if isinstance(node, GroupNeuron):
        return GroupNode(
            node.members,
            node.v_threshold,
            initial_charge=node.initial_charge,
            signed=node.signed,
        )
    if isinstance(node, Growth):
        return GrowthNode(node.function, node.arguments)
    if isinstance(node, SubgradientNeuron):
        return SubgradientNode(node.scale, node.schedule)
    if isinstance(node, Average):
        return RunningMean()
    if isinstance(node, Encoder):
        if node.coding == "poisson":
            return PoissonEncode(node.scale, seed=node.seed, averaged=not node.per_step)
        assert node.schedule is not None
        return Encode(node.schedule, momentum=node.momentum, spikes=spikes)
    return None


class _Recipe(FXConversionRecipe):  # type: ignore[misc]
    """SpikingJelly's converter traces what ``before_trace`` returns and hands on ``finalize``."""

    method: str

    def __init__(self, calibration: Any, *, time_steps: int = 32, **options: Any) -> None:
        if FXConversionRecipe is object:
            from ...errors import BackendUnavailable

            raise BackendUnavailable(
                f"{type(self).__name__} plugs into ann2snn.Converter of spikingjelly 2; this "
                "spikingjelly has no recipes. Call convert(model, calibration) and build instead."
            )
        self.calibration = calibration
        self.options = {"method": self.method, "time_steps": time_steps, **options}

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        from ...converters import convert

        self._converted = build(convert(ann, self.calibration, **self.options))
        return nn.Identity()  # the model is captured already, there is nothing left to trace

    def finalize(self, converter: Any, fx_model: fx.GraphModule) -> nn.Module:
        converted = self._converted.to(converter.device)
        del self._converted
        return converted


class SignGDRecipe(_Recipe):
    """``Converter(SignGDRecipe(data, time_steps=32)).convert(model)``: see ``convert``."""

    method = "signgd"


class GroupRecipe(_Recipe):
    """``Converter(GroupRecipe(data, time_steps=1)).convert(qcfs_model)``: see ``convert``."""

    method = "group"
