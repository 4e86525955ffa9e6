r"""A neuron of one step as a sum of comparisons.

In its only step a neuron of one input is a function of that input with few values, whatever its
kind, its number of members and its function:

.. math::
    y(x) = y_0 + \sum_{k=1}^{K} (y_k - y_{k-1}) \, [x > b_k]

Each comparison is an integrate-and-fire neuron that begins at rest. It fires at most once, so how
it is reset does not matter, and tools that reset in different ways agree. The :math:`b_k` are
numbers of float32, found by bisection on the neuron's definition: :math:`b_k` is the largest x
before the step from :math:`y_{k-1}` to :math:`y_k`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.network import Neuron
from ..neurons.nonlinearities import Nonlinearity

Array = NDArray[Any]

MOST_STEPS = 1024  # of one neuron; 8 members with a dead zone make 510
_FINEST, _LARGEST = -24, 24  # binary orders of magnitude around the neuron's own in which to look
_EACH = 64  # numbers looked at in each of them, and between whole units
_LAST = np.float32(np.finfo(np.float32).max)


class NoStaircase(Exception):
    """The neuron is no such function; the message says why, and the fix."""


class WholeCode(NamedTuple):
    """y = fl(fl(unit number) + base), with ``number`` [K + 1, ...] whole; ``unit`` and ``base`` are
    [...]. ``fused`` says that fl(unit number + base) are the same."""

    number: Array
    unit: Array
    base: Array
    fused: bool


class _Tried:
    """For each neuron the first unit and base that give its values back."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.unit = np.ones(values.shape[1:], np.float32)
        self.base = np.zeros(values.shape[1:], np.float32)
        self.done = np.zeros(values.shape[1:], bool)

    def number(self, base: Array, unit: Array) -> Array:
        return np.rint((self.values.astype(np.float64) - base) / unit)

    def take(self, base: Array, unit: Array) -> None:
        product = (self.number(base, unit) * unit).astype(np.float32)
        fits = np.all(product + base == self.values, axis=0) & ~self.done
        self.unit, self.base = np.where(fits, unit, self.unit), np.where(fits, base, self.base)
        self.done |= fits

    def found(self) -> WholeCode | None:
        if not self.done.all():
            return None
        number = self.number(self.base, self.unit)
        fused = (number * self.unit + self.base).astype(np.float32)  # exact in float64 up to 2**29
        return WholeCode(number, self.unit, self.base, np.array_equal(fused, self.values))


@dataclass(frozen=True, eq=False)
class Staircase:
    """``below`` [K, ...] and ``values`` [K + 1, ...], float32, for each neuron of the shape [...]
    (of a number of neurons that are alike, 1 in that dimension).

    A neuron with fewer steps than K has b = infinity in the others, and its last value again.
    ``bases`` are values that the code may count from, such as the one at rest, and ``units`` sizes
    that its steps may have.
    """

    below: Array
    values: Array
    bases: tuple[Array, ...] = ()
    units: tuple[Array, ...] = ()

    @property
    def finest(self) -> Array:
        """The smallest difference between two values [...], in float64; 1 where there is one."""
        jumps = np.abs(np.diff(self.values.astype(np.float64), axis=0, prepend=np.nan))
        least = np.nanmin(np.where(jumps > 0, jumps, np.inf), axis=0)
        return np.where(np.isfinite(least), least, 1.0)

    def __call__(self, x: Array) -> Array:
        """y of x [B, ...]."""
        made = (x[:, None] > self.below).sum(1)  # b ascends, so the steps made are the first ones
        found = np.broadcast_to(self.values[:, None], (len(self.values), *x.shape))
        return np.take_along_axis(found, made[None], 0)[0]

    def whole(self) -> WholeCode | None:
        """y as whole numbers and their decoding, equal to the bit; None where there is no such.

        Sizes are rounded, so the unit is looked for among their neighbours as well.
        """
        best = _Tried(self.values)
        for base in (*self.bases, *self.values[:: max(1, len(self.values) - 1)]):
            far = np.abs(self.values.astype(np.float64) - base).max(0)
            for size in (*self.units, *(self.finest / part for part in (1, 2, 3, 4))):
                number = np.rint(far / size)
                unit = np.where(number > 0, far / np.maximum(number, 1), 1.0).astype(np.float32)
                for ulps in (0, 1, -1, 2, -2, 3, -3):
                    best.take(base, (unit.view(np.int32) + np.int32(ulps)).view(np.float32))
        return best.found()


def staircase(node: Neuron, rank: int) -> Staircase:
    """The neuron's in its first and only step, for values of ``rank`` dimensions after the batch.

    Raises NoStaircase for a neuron of several inputs, a function over a dimension, and one with
    more than ``MOST_STEPS`` steps.
    """
    _check(node)
    f = _Step(node, rank)
    grid = _grid(f.size())
    y = np.concatenate([f(part) for part in np.array_split(grid, 64)])
    found = [_steps(f, at, grid, y[:, at]) for at in range(f.count)]
    return replace(_aligned(found, f.shape), bases=f.bases(), units=f.units())


def of_largest(node: Neuron) -> Neuron:
    """For a neuron of max pooling, the one that has the largest value of its window as its input.

    That largest value is above b where any of the values is.
    """
    same = Nonlinearity("identity", torch.clone, fires_at_tie=node.function.fires_at_tie)
    return replace(node, function=same, arguments={})


def _check(node: Neuron) -> None:
    if len(node.inputs) != 1 or node.function.arity != 1:
        raise NoStaircase(
            "it has several inputs, and an integrate-and-fire neuron compares one sum. Use average "
            "pooling, ReLU and the like in the source network."
        )
    if not node.function.elementwise:
        raise NoStaircase(
            f"{node.function.name} is of several values together, and an integrate-and-fire neuron "
            "compares one sum. Replace it in the source network."
        )


class _Step:
    """y of the neurons, which are ``count`` different ones, for x [B] or [B, count]."""

    def __init__(self, node: Neuron, rank: int) -> None:
        tensors = {name: _inner(value, rank) for name, value in node.tensors.items()}
        self.node = node.with_tensors(tensors)
        sizes = [(1,) * (rank - value.dim()) + tuple(value.shape) for value in tensors.values()]
        self.shape = np.broadcast_shapes((1,) * rank, *sizes)
        self.count = int(np.prod(self.shape))

    def __call__(self, x: Array) -> Array:
        x = np.broadcast_to(x.reshape(len(x), -1), (len(x), self.count))
        given = torch.from_numpy(np.array(x, np.float32, order="C"))
        given = given.reshape(len(x), *self.shape)
        with torch.no_grad():
            y, _ = self.node.sequence((given.unsqueeze(0),), self.node.start((given,)))
        return np.asarray(y[0].reshape(len(x), self.count).numpy())

    def bases(self) -> tuple[Array, ...]:
        """The value at rest, where the neuron has one, and 0."""
        return self.each(getattr(self.node, "resting", 0.0)), self.each(0.0)

    def units(self) -> tuple[Array, ...]:
        """One spike of the smallest size, from how far all of them reach, to one side or both."""
        reach = self.node.reach(1)
        if reach is None or self.node.code is None:
            return ()
        whole = (self.each(reach[1]) - self.each(reach[0])) / self.node.code.most
        return whole / 2, whole

    def each(self, value: float | Tensor) -> Array:
        array = torch.as_tensor(value, dtype=torch.float32).cpu().numpy()
        return np.broadcast_to(array, self.shape)

    def size(self) -> float:
        """How far the neurons reach from 0, at most."""
        reach = self.node.reach(1)
        ends = [1.0] if reach is None else [float(torch.as_tensor(e).abs().max()) for e in reach]
        return max(*ends, 2.0**-60) if np.isfinite(ends).all() else 1.0


def _inner(value: Tensor, rank: int) -> Tensor:
    """Of the type that files hold, without the batch's dimension."""
    value = value.detach().cpu()
    value = value.to(torch.float32) if value.is_floating_point() else value
    return value[0] if value.dim() == rank + 1 else value


def _grid(size: float) -> Array:
    """Numbers of float32 in ascending order, dense where the neuron's steps are."""
    unit = 2.0 ** np.ceil(np.log2(size))
    orders = unit * 2.0 ** (np.arange(_FINEST * _EACH, _LARGEST * _EACH) / _EACH)
    even = unit * np.arange(1, 64 * _EACH) / (16 * _EACH)
    above = np.concatenate([orders, even, [_LAST]]).astype(np.float32)
    return np.unique(np.concatenate([-above, [np.float32(0)], above]))


def _steps(f: _Step, at: int, grid: Array, y: Array) -> tuple[list[Any], list[Any]]:
    """(b, y) of one neuron: where y changes on the grid, to the last bit."""
    below: list[Any] = []
    values = [y[0]]
    for i in np.flatnonzero(y[1:] != y[:-1]):
        low, high = _order(grid[i]), _order(grid[i + 1])
        while values[-1] != y[i + 1]:
            low = _last_equal(f, at, values[-1], low, high)
            below.append(_number(low))
            values.append(_value(f, at, _number(low + 1)))
            if len(below) > MOST_STEPS:
                raise NoStaircase(
                    f"it has more than {MOST_STEPS} steps. Convert with fewer members."
                )
            low += 1
    return below, values


def _last_equal(f: _Step, at: int, value: Any, low: int, high: int) -> int:
    """The last number from ``low`` on that has this value, if it has it up to one place only."""
    while high - low > 1:
        middle = (low + high) // 2
        if _value(f, at, _number(middle)) == value:
            low = middle
        else:
            high = middle
    return low


def _value(f: _Step, at: int, x: Any) -> Any:
    return f(np.array([x], np.float32))[0, at]


def _order(x: Any) -> int:
    """Whole numbers in the order of float32; 0 and -0 are one."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _number(order: int) -> Any:
    return np.float32(np.int32(abs(order)).view(np.float32) * (1 if order >= 0 else -1))


def _aligned(found: list[tuple[list[Any], list[Any]]], shape: tuple[int, ...]) -> Staircase:
    most = max(1, *(len(below) for below, _ in found))
    below = np.full((most, len(found)), np.inf, np.float32)
    values = np.empty((most + 1, len(found)), np.float32)
    for at, (b, y) in enumerate(found):
        below[: len(b), at] = b
        values[: len(y), at] = y
        values[len(y) :, at] = y[-1]
    return Staircase(below.reshape(most, *shape), values.reshape(most + 1, *shape))
