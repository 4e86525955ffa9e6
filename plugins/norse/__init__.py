"""Norse: the neurons as Norse's own cells and layers, and converted networks made of them.

Works with norse 1.1; each kind of neuron has its file, and ``common.py`` says what
they share.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ...converters.additions import counting
from ...core.modes import having
from ...core.module import NetworkModule, NetworkState, Walk, key, of_neurons
from ...core.network import Node, SpikingNetwork, Timed
from ...core.training import parametrised
from ...errors import InputError
from .coding import (
    Encode,
    EncodeCell,
    EncodeParameters,
    EncodeState,
    PoissonEncode,
    PoissonEncodeCell,
    PoissonEncodeParameters,
    PoissonEncodeState,
    Readout,
    ReadoutCell,
    ReadoutParameters,
    ReadoutState,
    RunningMean,
    RunningMeanCell,
    RunningMeanState,
    encode_layer,
)
from .generic import NodeLayer, NodeParameters, NodeState
from .group import (
    GroupNeuron,
    GroupNeuronCell,
    GroupNeuronParameters,
    GroupNeuronState,
    SignedGroupNeuronState,
    group_layer,
    group_neuron_feed_forward_step,
)
from .growth import Growth, GrowthCell, GrowthParameters, GrowthState
from .module import Layer
from .signgd import (
    SignGD,
    SignGDCell,
    SignGDParameters,
    SignGDState,
    signgd_feed_forward_step,
    signgd_layer,
)
from .subgradient import Subgradient, SubgradientCell, SubgradientParameters, SubgradientState

__all__ = [
    "Encode",
    "EncodeCell",
    "EncodeParameters",
    "EncodeState",
    "GroupNeuron",
    "GroupNeuronCell",
    "GroupNeuronParameters",
    "GroupNeuronState",
    "Growth",
    "GrowthCell",
    "GrowthParameters",
    "GrowthState",
    "MAKERS",
    "NodeLayer",
    "NodeParameters",
    "NodeState",
    "NorseNetwork",
    "PoissonEncode",
    "PoissonEncodeCell",
    "PoissonEncodeParameters",
    "PoissonEncodeState",
    "Readout",
    "ReadoutCell",
    "ReadoutParameters",
    "ReadoutState",
    "RunningMean",
    "RunningMeanCell",
    "RunningMeanState",
    "SignGD",
    "SignGDCell",
    "SignGDParameters",
    "SignGDState",
    "SignedGroupNeuronState",
    "Subgradient",
    "SubgradientCell",
    "SubgradientParameters",
    "SubgradientState",
    "build",
    "group_neuron_feed_forward_step",
    "signgd_feed_forward_step",
]


# the layer of each kind of node, made of (node, spikes, kernels); a caller can add to it. A network
# that was converted has no gradient, so thresholds are Norse's "heaviside" but where it learns
MAKERS: dict[str, Callable[[Any, str, str], Layer]] = {
    "signgd": signgd_layer,
    "group": group_layer,
    "growth": lambda node, spikes, kernels: Growth(
        GrowthParameters(node.function, node.arguments, kernels)
    ),
    "subgradient": lambda node, spikes, kernels: Subgradient(
        SubgradientParameters(node.scale, node.schedule)
    ),
    "average": lambda node, spikes, kernels: RunningMean(),
    "encoder": encode_layer,
}


class NorseNetwork(NetworkModule):
    """A converted network of Norse layers: ``forward(x, state=None) -> (output, state)``.

    x is a sequence [T, B, ...] or one step [B, ...], distinguished by the number of dimensions,
    which the network knows, or a dict of such; outputs are decoded, in the structure that the
    source network returns. The state is a ``NetworkState``, whose ``neurons`` are the states of the
    layers by name; None starts from the initial state. It works in ``SequentialState`` and
    ``Lift``; the layers are ``module.neuron(name)``. ``spikingjelly_signgd.run`` runs it for many
    time steps at once. With ``mode = "ann"`` the output is the source network's, x is [B, ...], and
    the state is returned unchanged.
    """

    def forward(self, x: Any, state: NetworkState | None = None) -> tuple[Any, Any]:
        if self.mode == "ann":
            return self.ann(x), state
        if self.is_step(x):
            return self.step(x, self._checked(state))
        return self.advance(x, state=self._checked(state))

    def for_sequences(self) -> AbstractContextManager[None]:
        return having(self.neurons, record_states=False)

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        layer: Layer = walk.simulated[key(node.name)]  # type: ignore[assignment]
        run = layer.step if walk.steps is None else layer
        y, state = run(tuple(inputs), walk.before.neurons.get(node.name))
        walk.neurons[node.name] = state
        return y  # type: ignore[no-any-return]

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        layer: SignGD = self.neuron(node.name)  # type: ignore[assignment]
        state.neurons[node.name] = layer.begin(tuple(inputs))
        return layer.p.resting  # type: ignore[no-any-return]

    def _checked(self, state: Any) -> NetworkState | None:
        if state is None:
            return None
        if not isinstance(state, NetworkState) or set(map(key, state.neurons)) != set(self.neurons):
            raise InputError(
                "the state is what an earlier call of this network returned, or None, but it is "
                f"that of another network or no state: {type(state).__name__}."
            )
        return state


def build(
    network: SpikingNetwork,
    *,
    spikes: str = "decoded",
    kernels: str = "auto",
    record_states: bool = False,
    trainable: bool = False,
) -> NorseNetwork:
    """``network`` as Norse layers; ``spikes`` as for ``SignGDParameters``, "decoded" or "signed".

    ``kernels`` is the backend of the neurons: "auto", "cpu", "cupy" or "torch". With
    ``record_states`` a call with a sequence returns the states after each step, as Norse's layers
    do. With ``trainable`` weights and what neurons learn are parameters, gradients pass, and
    ``additions(module)`` counts; ``collect(module)`` is the description back. Raises InputError
    where a network cannot be built in the view asked for.
    """
    network = parametrised(network) if trainable else network
    passed = of_neurons(network, spikes)
    layers = {node.name: make_layer(node, passed, kernels) for node in network.of(Timed)}
    for layer in layers.values():
        layer.record_states = record_states
    module = NorseNetwork(network, layers, spikes)
    if trainable:
        counting(module)
    return module


def make_layer(node: Timed, spikes: str = "decoded", kernels: str = "auto") -> Layer:
    """The Norse layer of a network's node, by ``MAKERS``; other kinds run by their definition."""
    make = MAKERS.get(node.kind)
    return NodeLayer.of(node) if make is None else make(node, spikes, kernels)
