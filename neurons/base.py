"""What the nodes of a network description share, and the properties of every kind of neuron.

A kind from another package is a subclass of ``Neuron`` with ``start`` and ``sequence``, its
definition in torch, and an entry ``NODES[kind]`` (``core/network.py``). It then runs in every
simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, prod
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from torch import Tensor

from ..errors import InputError
from .nonlinearities import Nonlinearity
from .rounding import Rounded

Size = int | str  # 49, or "3*batch"
Value = TypeVar("Value")
GUARDS = ("floor", "ceiling")  # arguments that only keep f where it is defined
KEPT, ANEW = "kept", "anew"  # what a new frame of a stream does to a state


def resolve(shape: Sequence[Size], batch: int) -> list[int]:
    """``["3*batch", 16]`` to ``[3 * batch, 16]``."""
    return [s if isinstance(s, int) else int(s.split("*")[0]) * batch for s in shape]


def follows_batch(size: Size) -> bool:
    return not isinstance(size, int)


def values_of(shape: Sequence[Size]) -> int:
    """How many values there are for one input."""
    return prod(resolve(shape, 1))


def spread(value: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """``value`` broadcast to ``shape``, or an InputError."""
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise InputError(
            f"{name} is {list(value.shape)} and does not broadcast to a step of {list(shape)}."
        ) from error


def broadcasts(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    behind = zip(reversed(sizes), reversed(shape), strict=False)
    return len(sizes) <= len(shape) and all(a in (1, b) for a, b in behind)


def each_tensor(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A state, a tensor or a tuple of states, with ``fn`` applied to its tensors."""
    if isinstance(value, tuple):
        items = [each_tensor(item, fn) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return fn(value) if isinstance(value, Tensor) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(value, Tensor):
        yield value
    for item in value if isinstance(value, tuple) else ():
        yield from tensors_in(item)


class Code(NamedTuple):
    """An event of a neuron: "binary" (0 or 1), "sign" (-1 or 1) or "graded" (a whole number),
    the ``bits`` that tell its values apart, and the ``most`` that its size can be."""

    kind: str
    bits: int
    most: int


class Factor(NamedTuple):
    """The factor that spikes still have to be multiplied by; factors of equal ``name`` are equal.
    With ``adds`` a step of a known size is added or subtracted where no weight is applied, and
    nothing is multiplied."""

    name: str
    adds: bool = False


FOLDS = Factor("folds into the weights")
MEAN = Factor("the number of steps")


class Learned(NamedTuple):
    """How a value is learned: of neurons in steps of a ``unit``, None of weights, times the value
    itself where that is ``relative``; it stays from ``low`` to ``high``."""

    unit: float | Tensor | None = None
    low: float = -inf
    high: float = inf
    relative: bool = False


Make = Callable[[Any, Learned], Any]  # of a tensor or a number


@dataclass(frozen=True, eq=False, kw_only=True)
class Node(Rounded):
    """``name`` is unique in its network; ``inputs`` are names of nodes before it.

    ``shape`` is that of the value the node makes at one step, ``("4*batch", 16)`` for instance.
    """

    kind: ClassVar[str] = ""
    # whether the node has its place in the spike view, where increments and weighted spikes pass
    spike_view: ClassVar[bool] = True
    name: str
    inputs: tuple[str, ...] = ()
    shape: tuple[Size, ...] = ()

    @property
    def values(self) -> int:
        """How many values the node makes for one input."""
        return values_of(self.shape)

    @property
    def code(self) -> Code | None:
        """The kind of event that the node sends; None if it sends none, or passes on those of
        others."""
        return None

    @property
    def most_spikes(self) -> int:
        """The most spikes that one value sends in a step."""
        return 1

    def distinguishable(self, steps: int) -> int:
        """The number of values that the spikes of so many steps distinguish, silence included."""
        return self.most_spikes * steps + 1

    @property
    def unit(self) -> float | Tensor | None:
        """The size of one spike in what passes, where that is the same in every step."""
        return None

    @property
    def factor(self) -> Factor | None:
        """The factor that its spikes still have to be multiplied by."""
        return None

    @property
    def steady(self) -> bool:
        """Whether every step sends the same number of spikes, whatever the input."""
        return True

    def taking(self, other: Node) -> Node | None:
        """The node with the contents of ``other``; None if that has another role."""
        return None

    def learning(self, make: Make) -> Self:
        """The node with each trained value replaced by ``make(value, learned)``."""
        return self

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        """The node's value by ``semantics`` (``core/walk.py``), of those of its inputs."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class Timed(Node):
    """A node that keeps a state from one step to the next: its dynamics."""

    def start(self, inputs: tuple[Tensor, ...]) -> Any:
        """The state before a first step with these inputs, [B, ...] each.

        A state is a tensor, a number, None, or a tuple of states.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it starts")

    def sequence(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """The definition: T steps of inputs [T, B, ...] to (what passes [T, B, ...], state).

        It reports what it sends by ``tell`` (``neurons/spikes.py``).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it runs")

    @property
    def frame(self) -> str:
        """The effect of a new frame of a stream on the state: ``KEPT``, except for the count of
        steps, which restarts at 0, or reset (``ANEW``); otherwise the reason why the node cannot
        run on streams."""
        return ANEW

    @property
    def even(self) -> bool:
        """Whether all steps are alike, whatever their number: kept frames then run as one block."""
        return False

    def step(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """One step in torch alone: inputs [B, ...] to (what passes, state)."""
        y_seq, state = self.sequence(tuple(x.unsqueeze(0) for x in inputs), state)
        return y_seq[0], state

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The node's tensors by name, those of f's arguments as ``argument_*``."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        given: Mapping[str, Any] = values.get("arguments", {})
        values |= {f"argument_{key}": value for key, value in given.items()}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The node with its tensors replaced by these ``tensors``."""
        own: dict[str, Any] = {k: v for k, v in tensors.items() if not k.startswith("argument_")}
        given: Mapping[str, Any] = getattr(self, "arguments", {})
        if given:
            own["arguments"] = {k: tensors.get(f"argument_{k}", v) for k, v in given.items()}
        return replace(self, **own)


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(Node):
    """A nonlinearity of the source network that is computed exactly: not yet, or never, a neuron.

    ``channel`` is the dimension of the channels, counted from the end; None where there is none.
    ``module`` is the path of the source network's module that computed it.
    """

    kind = "function"
    spike_view = False
    function: Nonlinearity
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channel: int | None = None
    module: str = ""

    def taking(self, other: Node) -> Node | None:
        """It keeps the guards of its arguments if it already computes the same function."""
        if not isinstance(other, Function):
            return None
        arguments = dict(other.arguments)
        if self.function.name == other.function.name:
            arguments |= {k: v for k, v in self.arguments.items() if k in GUARDS}
        return replace(self, shape=other.shape, function=other.function, arguments=arguments)

    def learning(self, make: Make) -> Self:
        made = {
            key: make(value, Learned())
            for key, value in self.arguments.items()
            if isinstance(value, Tensor) and key not in GUARDS
        }
        return replace(self, arguments={**self.arguments, **made}) if made else self

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.function(self, inputs)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False, kw_only=True)
class Neuron(Function, Timed):
    """A function computed by spiking neurons. Each kind of neuron is a subclass."""

    # what passes: v, decoded so far, or what one step adds to a sum
    decoded: ClassVar[bool] = True
    # what the size of every spike is proportional to, if it can be ``resized``
    sized_by: ClassVar[str] = ""

    @property
    def finest(self) -> float:
        """The smallest spike of a step beside its largest."""
        return 1.0

    @property
    def tracks(self) -> Any:
        """Of neurons whose v moves toward f(x), the parameters of ``signgd_step``; else None."""
        return None

    def numbers(self, arguments: int) -> int:
        """The float32 numbers kept from one step to the next; ``arguments`` are the values of f's
        arguments that are not constant."""
        return self.values + arguments

    def additions(self, arguments: int) -> int:
        """Additions and comparisons of one update of all neurons, without f and arriving spikes."""
        return self.values + arguments

    @property
    def products(self) -> int:
        """Multiplications of one update of all neurons, by numbers that change with time."""
        return 0

    def resized(self, factor: float) -> Self:
        """The neuron with spikes of ``factor`` times the size."""
        raise NotImplementedError(f"{type(self).__name__} does not say how large its spikes are")

    def reach(self, steps: int) -> tuple[float | Tensor, float | Tensor] | None:
        """The range that it can decode after so many steps; None if there is no limit."""
        return None

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.neuron(self, inputs)  # type: ignore[no-any-return]
