"""SpikingNetwork: the one description of a spiking network, simulator-independent plain data.

A list of nodes in topological order, named after the modules of the source network. What is
simulated is what is saved and exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .neurons.group import GroupNeuronParameters
from .neurons.nonlinearities import Nonlinearity
from .neurons.schedules import Schedule
from .neurons.signgd import SignGDParameters
from .neurons.subgradient import SubgradientParameters
from .operations import Size


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """``name`` is unique in its network; ``inputs`` are names of nodes before it.

    ``shape`` is that of the value the node makes at one step, ``("4*batch", 16)`` for instance.
    """

    kind: ClassVar[str] = ""
    name: str
    inputs: tuple[str, ...] = ()
    shape: tuple[Size, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The network's input [batch, ...]."""

    kind = "input"


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    kind = "constant"
    value: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """A linear operation of ``operations.LINEAR``: no state, affine in its inputs together."""

    kind = "linear"
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(Node):
    """A nonlinearity of the source network, computed as it is: not yet, or never, a neuron.

    ``channel`` is the dimension of the channels, counted from the end; None where there is none.
    ``module`` is the path of the source network's module that computed it.
    """

    kind = "function"
    function: Nonlinearity
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channel: int | None = None
    module: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class SignGDNeuron(Function):
    kind = "signgd"
    schedule: Schedule
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    momentum: float = 0.0
    members: int = 1  # signs of one step, of sizes eta, eta / 2, ...

    @property
    def parameters(self) -> SignGDParameters:
        return SignGDParameters(
            self.function,
            self.schedule,
            self.scale,
            self.resting,
            self.arguments,
            self.momentum,
            self.members,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupNeuron(Function):
    """Stands for a QCFS activation or for a ReLU; its output is per step, not decoded."""

    kind = "group"
    members: int
    v_threshold: float | Tensor
    initial_charge: float | Tensor = 0.5
    signed: bool = False

    @property
    def parameters(self) -> GroupNeuronParameters:
        return GroupNeuronParameters(
            self.members, self.v_threshold, self.initial_charge, self.signed
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Growth(Function):
    """The growth of a function that selects, such as max pooling, of what group neurons sent.

    Its output is per step; see ``neurons/growth.py``.
    """

    kind = "growth"


@dataclass(frozen=True, eq=False, kw_only=True)
class SubgradientNeuron(Function):
    """The rate-coded baseline, for ReLU."""

    kind = "subgradient"
    schedule: Schedule
    scale: float | Tensor = 1.0

    @property
    def parameters(self) -> SubgradientParameters:
        return SubgradientParameters(self.scale, self.schedule)


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoder(Node):
    """Real-valued ("real", with its schedule) or "poisson" input coding."""

    kind = "encoder"
    coding: str
    schedule: Schedule | None = None
    momentum: float = 0.0
    scale: float = 1.0
    seed: int = 0
    per_step: bool = False  # poisson: the spikes themselves (rate-coded networks), or their mean


@dataclass(frozen=True, eq=False, kw_only=True)
class Average(Node):
    """The running mean over the steps so far: decodes what rate-coded neurons send."""

    kind = "average"


NODES: dict[str, type[Node]] = {
    cls.kind: cls
    for cls in (
        Input,
        Constant,
        Linear,
        Function,
        SignGDNeuron,
        GroupNeuron,
        Growth,
        SubgradientNeuron,
        Encoder,
        Average,
    )
}
NEURON_NODES = (SignGDNeuron, GroupNeuron, Growth, SubgradientNeuron)


@dataclass(frozen=True, eq=False)
class SpikingNetwork:
    """Nodes in topological order, and the structure of the output.

    ``outputs`` is a node's name, or a list, tuple or dict (also nested) of such structures.
    ``statistics`` holds for each neuron what calibration saw; ``provenance`` is JSON-able.
    """

    nodes: tuple[Node, ...]
    outputs: Any
    time_steps: int
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            assert not missing and node.name not in seen, (node.name, missing)
            seen.add(node.name)
        assert all(name in seen for name in leaves(self.outputs))

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node is called {name!r}; the neurons are: {', '.join(self.names())}")

    @property
    def input(self) -> Input:
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def neurons(self) -> tuple[Node, ...]:
        """The spiking nodes, in order."""
        return tuple(node for node in self.nodes if isinstance(node, NEURON_NODES))

    def names(self) -> list[str]:
        return [node.name for node in self.neurons]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the network's tensors."""
        for tensor in self._tensors():
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    def _tensors(self) -> Iterator[Tensor]:
        for node in self.nodes:
            if isinstance(node, Linear):
                yield from node.tensors.values()
            elif isinstance(node, Constant):
                yield node.value

    def count(self, batch: int = 1) -> dict[str, int]:
        """How many neurons each spiking node holds for one input."""
        return {node.name: values_of(node.shape) * batch for node in self.neurons}

    def kept(self, batch: int = 1) -> dict[str, int]:
        """The functions that do not spike, and how many values each computes at every step."""
        seen = [node for node in self.nodes if type(node) is Function]
        return {node.name: values_of(node.shape) * batch for node in seen}

    def replace(self, **changes: Any) -> SpikingNetwork:
        return replace(self, **changes)

    def __repr__(self) -> str:
        kinds: dict[str, int] = {}
        for node in self.neurons:
            kinds[node.kind] = kinds.get(node.kind, 0) + 1
        layers = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"
        kept = self.kept()
        values = f"{len(kept)} not spiking, {sum(kept.values())} values a step; " if kept else ""
        return (
            f"SpikingNetwork({len(self.nodes)} nodes; neuron layers: {layers}; "
            f"{sum(self.count().values())} neurons for one input; {values}"
            f"time_steps={self.time_steps})"
        )


def values_of(shape: tuple[Size, ...]) -> int:
    """How many values there are for one input."""
    return prod(s if isinstance(s, int) else int(s.split("*")[0]) for s in shape)


def leaves(structure: Any) -> list[str]:
    """The node names in a structure of outputs, in order."""
    if isinstance(structure, str):
        return [structure]
    items = structure.values() if isinstance(structure, Mapping) else structure
    return [name for item in items for name in leaves(item)]


def fill(structure: Any, values: Mapping[str, Any]) -> Any:
    """The structure with each name replaced by its value."""
    if isinstance(structure, str):
        return values[structure]
    if isinstance(structure, Mapping):
        return {key: fill(item, values) for key, item in structure.items()}
    return type(structure)(fill(item, values) for item in structure)
