"""SpikingNetwork: the one description of a spiking network, simulator-independent plain data.

A list of nodes in topological order, named after the modules of the source network. The description
that is simulated is also saved and exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Self, TypeGuard, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..neurons.average import Average
from ..neurons.base import (
    ANEW,
    KEPT,
    Function,
    Learned,
    Make,
    Neuron,
    Node,
    Size,
    Timed,
    Value,
    values_of,
)
from ..neurons.coding import Encoder
from ..neurons.group import GroupNeuron
from ..neurons.growth import Growth
from ..neurons.signgd import SignGDNeuron
from ..neurons.subgradient import SubgradientNeuron
from .operations import connections
from .structures import each_leaf, fill, leaves

__all__ = [
    "ANEW",
    "KEPT",
    "NODES",
    "Average",
    "Constant",
    "Encoder",
    "Function",
    "GroupNeuron",
    "Growth",
    "Input",
    "Linear",
    "Neuron",
    "Node",
    "SignGDNeuron",
    "Size",
    "SpikingNetwork",
    "Static",
    "SubgradientNeuron",
    "Timed",
    "each_leaf",
    "fill",
    "is_affine",
    "leaves",
    "values_of",
]


AnyNode = TypeVar("AnyNode", bound=Node)
ATTENTION = ("attention", "masked_attention")  # rows of nonlinearities


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """An input of the network [batch, ...]: "input", or by the names of the model's arguments.

    ``dtype`` is "float", "integer" (int64: token ids, masks) or "boolean". What is not "float" is
    constant over time, and never spikes.
    """

    kind = "input"
    given: ClassVar[bool] = True
    dtype: str = "float"

    @property
    def coded(self) -> bool:
        """Whether input coding is of it."""
        return self.given and self.dtype == "float"

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.input(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False, kw_only=True)
class Static(Input):
    """Computed exactly, once a run, of inputs that are not "float", constants and others like it.

    ``op`` is a row of ``operations.statics.STATIC``; to all that reads it, it is an input.
    """

    kind = "static"
    given = False
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def taking(self, other: Node) -> Node | None:
        if not isinstance(other, Static):
            return None
        return replace(other, name=self.name, inputs=self.inputs)

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.exact(self, inputs)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    kind = "constant"
    value: Tensor

    def taking(self, other: Node) -> Node | None:
        if not isinstance(other, Constant):
            return None
        return replace(self, shape=other.shape, value=other.value)

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.constant(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """A linear operation of ``operations.LINEAR``: no state, affine in its inputs together."""

    kind = "linear"
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def taking(self, other: Node) -> Node | None:
        if not isinstance(other, Linear):
            return None
        return replace(other, name=self.name, inputs=self.inputs)

    def learning(self, make: Make) -> Self:
        tensors = {name: make(value, Learned()) for name, value in self.tensors.items()}
        return replace(self, tensors=tensors)

    def arriving(self, values: list[Tensor], batch: int) -> Tensor:
        """How much of ``values``, float64 [T, B, ...] each, arrives at each output, every
        connection being one."""
        tensors = {name: value.to(values[0].device) for name, value in self.tensors.items()}
        return connections(self.op, values, self.attributes, tensors, batch)

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.linear(self, inputs)  # type: ignore[no-any-return]


NODES: dict[str, type[Node]] = {
    cls.kind: cls
    for cls in (
        Input,
        Static,
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


def is_affine(node: Node) -> TypeGuard[Linear]:
    """Whether the node scales and shifts by channel, as batch norm does."""
    return isinstance(node, Linear) and node.op == "affine"


@dataclass(frozen=True, eq=False)
class SpikingNetwork:
    """Nodes in topological order, and the structure of the output.

    ``outputs`` is a node's name, or a list, tuple or dict (also nested) of such structures.
    ``statistics`` holds the calibration statistics of each neuron; ``provenance`` is JSON-able.

    ``stream``: the plan is one for streams, whose state is kept from frame to frame. ``carries``
    names, for each input that is fed back, the node that feeds it with its decoded value of the
    previous frame; zeros before the first frame.
    """

    nodes: tuple[Node, ...]
    outputs: Any
    time_steps: int
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    carries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            assert not missing and node.name not in seen, (node.name, missing)
            seen.add(node.name)
        assert all(name in seen for name in leaves(self.outputs))
        for name, of in self.carries.items():
            self._check_carried(name, of, seen)

    def _check_carried(self, name: str, of: str, seen: set[str]) -> None:
        """Raises InputError unless ``name`` is an input that the node ``of`` can feed."""
        given = {node.name: node for node in self.inputs}
        if name not in given or of not in seen:
            missing = f"no node is called {of!r}" if name in given else f"no input is {name!r}"
            raise InputError(
                f"carries={{{name!r}: {of!r}}}: the key must be an input ({', '.join(given)}), "
                f"the value the node that feeds it, but {missing}."
            )
        if not given[name].coded or given[name].shape != self[of].shape:
            raise InputError(
                f"carries={{{name!r}: {of!r}}}: a floating-point input takes the values of a "
                f"node of the same shape, but the input is {given[name].dtype} "
                f"{list(given[name].shape)} and {of!r} is {list(self[of].shape)}. Name the node "
                "whose value it is."
            )

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node is called {name!r}; the neurons are: {', '.join(self.names())}")

    @property
    def input(self) -> Input:
        """The first one."""
        return self.inputs[0]

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What the network is fed, in order."""
        return tuple(node for node in self.of(Input) if node.given)

    @cached_property
    def statics(self) -> tuple[Static, ...]:
        """What is computed of whole numbers alone, in order."""
        return self.of(Static)

    @cached_property
    def plain(self) -> bool:
        """Whether it takes one floating-point tensor, and nothing else."""
        return len(self.inputs) == 1 and self.input.coded and not self.statics

    @property
    def takes_clips(self) -> bool:
        """Whether what it is run on are clips [F, B, ...]: the plan is one for streams, or the
        network feeds itself."""
        return self.stream or bool(self.carries)

    @cached_property
    def last_uses(self) -> dict[str, list[str]]:
        """For each node the values that are not needed after it, its own if it is not read."""
        last = {node.name: node.name for node in self.nodes}
        last |= {name: node.name for node in self.nodes for name in node.inputs}
        uses: dict[str, list[str]] = {}
        for value, user in last.items():
            uses.setdefault(user, []).append(value)
        return uses

    @cached_property
    def most_values(self) -> int:
        """The most values that a node makes for one input, attention's logits among them."""
        functions = self.of(Function)
        attention = [node for node in functions if node.function.name in ATTENTION]
        pairs = [[self[name].shape for name in node.inputs[:2]] for node in attention]
        logits = [values_of((*queries[:-1], keys[-1])) for queries, keys in pairs]
        return max([*(node.values for node in self.nodes), *logits])

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The spiking nodes, in order."""
        return self.of(Neuron)

    def of(self, kind: type[AnyNode]) -> tuple[AnyNode, ...]:
        """The nodes of a kind, in order."""
        return tuple(node for node in self.nodes if isinstance(node, kind))

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
            if isinstance(node, (Linear, Static)):
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

    def products(self, node: Function) -> int:
        """The products of two signals in one evaluation of all neurons of a node."""
        name = node.function.name
        inputs, constants = [self[each] for each in node.inputs], self.of(Constant)
        if name not in ("mul", "matmul", *ATTENTION) or any(x in constants for x in inputs):
            return 0
        if name == "mul":
            return node.values
        depth = values_of(inputs[0].shape[-1:])
        if name == "matmul":
            return node.values * depth
        keys = values_of(inputs[1].shape[-1:])
        return inputs[0].values * keys + node.values * keys

    def at_size(self, *sample: Any) -> SpikingNetwork:
        """The network for samples of another shape, ``at_size(3, 96, 80)``: the same nodes, with
        all shapes recomputed. Several inputs are a dict of shapes by the name of the input.

        Constants in a graph may depend on the size at which it was captured. Raises InputError,
        naming the node, if one fixes the size, or if ``convert(sizes=)`` did not check this size
        against the model.
        """
        resizing = import_module(".resizing", __package__)  # which walks networks
        return resizing.at_size(self, sample)  # type: ignore[no-any-return]

    def with_nodes(self, nodes: Mapping[str, Node]) -> SpikingNetwork:
        """The network with the nodes of these names replaced."""
        return replace(self, nodes=tuple(nodes.get(node.name, node) for node in self.nodes))

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
            f"time_steps={self.time_steps}{', for streams' if self.stream else ''})"
        )
