"""The only loop over the nodes of a network; values and what nodes compute are exchangeable.

``Semantics`` says what the nodes do: compute the source network, decoded values, weighted spikes,
gradients, the connections that spikes meet, the nodes of a file. Each node calls the method of its
role, so a kind of node from another package works like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ..neurons.average import Average
from ..neurons.base import Function, Neuron, Node, Timed
from ..neurons.coding import Encoder
from .network import Constant, Input, Linear, SpikingNetwork, Static

Value = TypeVar("Value")


class Semantics(Generic[Value]):
    """What each node makes of the values of its inputs. Neurons, encoders and averages are timed:
    unless a subclass tells them apart, ``timed`` computes all three."""

    def input(self, node: Input) -> Value:
        raise NotImplementedError

    def exact(self, node: Static, inputs: list[Value]) -> Value:
        """What is computed of whole numbers alone: to all that reads it an input."""
        return self.input(node)

    def constant(self, node: Constant) -> Value:
        raise NotImplementedError

    def linear(self, node: Linear, inputs: list[Value]) -> Value:
        raise NotImplementedError

    def function(self, node: Function, inputs: list[Value]) -> Value:
        """A nonlinearity that is computed as it is."""
        raise NotImplementedError

    def timed(self, node: Timed, inputs: list[Value]) -> Value:
        raise NotImplementedError

    def neuron(self, node: Neuron, inputs: list[Value]) -> Value:
        return self.timed(node, inputs)

    def encoder(self, node: Encoder, inputs: list[Value]) -> Value:
        return self.timed(node, inputs)

    def average(self, node: Average, inputs: list[Value]) -> Value:
        return self.timed(node, inputs)


def walk(
    network: SpikingNetwork,
    semantics: Semantics[Value],
    keep: Iterable[str] | None = None,
    known: Mapping[str, Value] | None = None,
) -> dict[str, Value]:
    """The values of the nodes ``keep``, of all unless given; ``known`` are not computed again.

    A value that is no longer needed is released.
    """
    values: dict[str, Value] = {}
    for _ in visits(network, semantics, values, keep, known):
        pass
    return values


def visits(
    network: SpikingNetwork,
    semantics: Semantics[Value],
    values: dict[str, Value],
    keep: Iterable[str] | None = None,
    known: Mapping[str, Value] | None = None,
) -> Iterator[Node]:
    """``walk`` that stops before each node; ``values`` holds what its inputs are."""
    kept = {node.name for node in network.nodes} if keep is None else set(keep)
    known = known or {}
    for node in network.nodes:
        yield node
        if node.name in known:
            values[node.name] = known[node.name]
        else:
            values[node.name] = node.visit(semantics, [values[name] for name in node.inputs])
        for name in network.last_uses.get(node.name, ()):
            if name not in kept:
                del values[name]


def following(network: SpikingNetwork, names: Iterable[str]) -> set[str]:
    """The nodes ``names`` and all that their values reach."""
    found = set(names)
    for node in network.nodes:
        if not found.isdisjoint(node.inputs):
            found.add(node.name)
    return found


class Together(Semantics[tuple[Any, ...]]):
    """Several semantics side by side: a value is what each of them makes."""

    def __init__(self, *semantics: Semantics[Any]) -> None:
        self.semantics = semantics

    def each(self, node: Node, inputs: Sequence[tuple[Any, ...]] = ()) -> tuple[Any, ...]:
        return tuple(
            node.visit(one, [value[i] for value in inputs]) for i, one in enumerate(self.semantics)
        )

    input = constant = linear = function = timed = each  # type: ignore[assignment]
