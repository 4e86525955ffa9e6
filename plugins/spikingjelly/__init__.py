"""SpikingJelly: the neurons as its own node types, and converted networks made of them.

Works with spikingjelly 2.0.0 and 0.0.0.0.14; features are tested, not versions. On 2.0.0
``SignGDRecipe`` and ``GroupRecipe`` plug the conversion into its ``ann2snn.Converter``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...converters.additions import counting
from ...core.modes import having
from ...core.module import (
    NetworkModule,
    NetworkState,
    Walk,
    from_step_0,
    key,
    of_neurons,
    select,
)
from ...core.network import KEPT, Node, SpikingNetwork, Timed
from ...core.streams import is_frame, note, undone_by_errors
from ...core.training import parametrised
from .. import simulator
from .base import Kernel
from .coding import Encode, PoissonEncode, Readout, RunningMean, encode
from .generic import NeuronNode
from .group import GroupNode, group_neuron_factory
from .growth import GrowthNode
from .signgd import SignGDNode
from .subgradient import SubgradientNode

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
    "MAKERS",
    "GrowthNode",
    "NeuronNode",
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


# the node type of each kind of node, made of (node, spikes); a caller can add to it
MAKERS: dict[str, Callable[[Any, str], nn.Module]] = {
    "signgd": SignGDNode.of,
    "group": GroupNode.of,
    "growth": lambda node, spikes: GrowthNode(node.function, node.arguments),
    "subgradient": lambda node, spikes: SubgradientNode(node.scale, node.schedule),
    "average": lambda node, spikes: RunningMean(),
    "encoder": encode,
}


class SpikingJellyNetwork(NetworkModule, base.MemoryModule):
    """A converted network of SpikingJelly nodes.

    ``forward(x)``: step_mode "s": x [B, ...], one step; "m": x [T, B, ...], T steps; with
    ``mode = "ann"`` x is [B, ...] in both. It works with ``functional.set_step_mode``,
    ``functional.reset_net`` and ``monitor``; the nodes are ``module.neuron(name)``.
    ``spikingjelly_signgd.run`` runs it for many time steps at once.
    """

    def forward(self, x: Any) -> Any:
        if self.mode == "ann":
            return self.ann(x)
        run = self.step if self.step_mode == "s" else self.advance
        if torch.compiler.is_compiling() or not is_frame(self.network):
            outputs, self.state_kept = run(x, state=self.state_kept)
            return outputs
        with undone_by_errors(self):
            outputs, self.state_kept = run(x, state=self.state_kept)
            note(self, x, int(self.step_mode == "m"))
        return outputs

    def for_sequences(self) -> AbstractContextManager[None]:
        return having(self.neurons, step_mode="m")

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        y: Tensor = walk.simulated[key(node.name)](*inputs)
        return y

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        neuron = self.neuron(node.name)
        neuron.start(*inputs)  # type: ignore[operator]
        resting: float | Tensor = neuron.resting  # type: ignore[assignment]
        return resting

    def reset(self) -> None:
        super().reset()
        for module in self.neurons.values():
            module.reset()  # type: ignore[operator]

    def checkpoint(self) -> Callable[[], None]:
        restore = super().checkpoint()
        memories = [getattr(module, "_memories", {}) for module in self.neurons.values()]
        before = [dict(each) for each in memories]

        def restore_all() -> None:
            restore()
            for now, then in zip(memories, before, strict=True):
                now.update(then)

        return restore_all

    def neuron_states(self) -> dict[str, Any]:
        return {node.name: tuple(self._memory(node.name).values()) for node in self._timed}

    def set_neuron_states(self, states: Mapping[str, Any]) -> None:
        for name, state in states.items():
            module: Any = self.neuron(name)
            module._memories.update(zip(self._memory(name), state, strict=True))

    @property
    def _timed(self) -> tuple[Timed, ...]:
        return self.network.of(Timed)

    def _memory(self, node: str) -> dict[str, Any]:
        module: Any = self.neuron(node)
        return {name: value for name, value in module._memories.items() if name != "shapes"}

    def new_frame(self, state: NetworkState | None) -> NetworkState | None:
        for node in self._timed:
            module: Any = self.neuron(node.name)
            if node.frame != KEPT:
                module.reset()
                continue
            for name, value in module._memories.items():
                module._memories[name] = 0 if name == "t" else from_step_0(value)
        return state

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
    trainable: bool = False,
) -> SpikingJellyNetwork:
    """``network`` as SpikingJelly nodes; ``spikes`` as for ``SignGDNode``, "decoded" or "signed".

    ``kernels`` is the backend of the neurons: "auto", "cpu", "cupy" or "torch". With ``trainable``
    weights and what neurons learn are parameters, gradients pass, and ``additions(module)`` counts;
    ``collect(module)`` is the description back. Raises InputError where a network cannot be built
    in the view asked for.
    """
    network = parametrised(network) if trainable else network
    passed = of_neurons(network, spikes)
    neurons = {node.name: make_node(node, passed) for node in network.of(Timed)}
    module = SpikingJellyNetwork(network, neurons, spikes)
    for part in module.modules():
        if isinstance(part, base.StepModule):
            part.step_mode = step_mode
        if isinstance(part, Kernel):
            part.backend = kernels
    if trainable:
        counting(module)
    return module


def make_node(node: Timed, spikes: str = "decoded") -> nn.Module:
    """The SpikingJelly node of a network's node, by ``MAKERS``; other kinds run by their
    definition."""
    make = MAKERS.get(node.kind)
    return NeuronNode(node) if make is None else make(node, spikes)


class _Recipe(FXConversionRecipe):  # type: ignore[misc]
    """SpikingJelly's converter traces what ``before_trace`` returns and hands on ``finalize``."""

    method: str

    def __init__(self, calibration: Any, **options: Any) -> None:
        if FXConversionRecipe is object:
            from ...errors import BackendUnavailable

            raise BackendUnavailable(
                f"{type(self).__name__} plugs into ann2snn.Converter of spikingjelly 2; this "
                "spikingjelly has no recipes. Call convert(model, calibration) and build instead."
            )
        self.calibration = calibration
        self.options = {"method": self.method, **options}

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
