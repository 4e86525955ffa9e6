"""What nodes of a network description share, and what every kind of neuron says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor

from .nonlinearities import Nonlinearity

Size = int | str  # 49, or "3*batch"
Value = TypeVar("Value")


def resolve(shape: Sequence[Size], batch: int) -> list[int]:
    """``["3*batch", 16]`` to ``[3 * batch, 16]``."""
    return [s if isinstance(s, int) else int(s.split("*")[0]) * batch for s in shape]


def follows_batch(size: Size) -> bool:
    return not isinstance(size, int)


def values_of(shape: Sequence[Size]) -> int:
    """How many values there are for one input."""
    return prod(resolve(shape, 1))


class Code(NamedTuple):
    """An event of a neuron: "binary" (0 or 1), "sign" (-1 or 1) or "graded" (a whole number),
    the ``bits`` that tell its values apart, and the ``most`` that its size can be."""

    kind: str
    bits: int
    most: int


class Factor(NamedTuple):
    """What spikes are still to be multiplied by, equal where ``name`` is. With ``adds`` a step of a
    known size is added or subtracted where no weight is met, and nothing is multiplied."""

    name: str
    adds: bool = False


FOLDS = Factor("folds into the weights")


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """``name`` is unique in its network; ``inputs`` are names of nodes before it.

    ``shape`` is that of the value the node makes at one step, ``("4*batch", 16)`` for instance.
    """

    kind: ClassVar[str] = ""
    name: str
    inputs: tuple[str, ...] = ()
    shape: tuple[Size, ...] = ()

    @property
    def values(self) -> int:
        """How many values the node makes for one input."""
        return values_of(self.shape)

    @property
    def code(self) -> Code | None:
        """What an event of the node is; None where it sends none, or passes on those of others."""
        return None

    @property
    def most_spikes(self) -> int:
        """The most spikes that one value sends in a step."""
        return 1

    @property
    def unit(self) -> float | Tensor | None:
        """The size of one spike in what passes, where that is the same in every step."""
        return None

    @property
    def factor(self) -> Factor | None:
        """What its spikes are still to be multiplied by."""
        return None

    @property
    def steady(self) -> bool:
        """Whether every step sends the same number of spikes, whatever the input."""
        return True

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        """The node's value by ``semantics`` (``core/walk.py``), of those of its inputs."""
        raise NotImplementedError


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

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.function(self, inputs)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False, kw_only=True)
class Neuron(Function):
    """A function that spikes. A kind of neuron is a subclass with all that is particular to it."""

    # what passes: v, decoded so far, or what one step adds to a sum
    decoded: ClassVar[bool] = True
    # whether it passes weighted spikes in the spike view, each receiver integrating its own input
    spike_view: ClassVar[bool] = False

    @property
    def finest(self) -> float:
        """The smallest spike of a step beside its largest."""
        return 1.0

    def numbers(self, arguments: int) -> int:
        """The float32 numbers kept from one step to the next; ``arguments`` are the values of f's
        arguments that are not constant."""
        return self.values + arguments

    def additions(self, arguments: int) -> int:
        """Additions and comparisons of one update of all neurons, f and arrivals apart."""
        return self.values + arguments

    @property
    def products(self) -> int:
        """Multiplications of one update of all neurons, by numbers that change with time."""
        return 0

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.neuron(self, inputs)  # type: ignore[no-any-return]
