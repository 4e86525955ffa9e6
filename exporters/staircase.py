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

from collections.abc import Callable
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
_EACH, _FAR = 64, 8  # numbers looked at in each of them, and in those of all float32
_TRIED = 4096  # random inputs
_NEAR = 2.0**-18  # relative distance at which f lies on a step, by its rounding
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

    Where the function turns is looked for between the numbers of a grid, so that a step that is
    made and taken back at once is seen; what is still unlike the neuron at random inputs is
    refused. Raises NoStaircase for that, for a neuron of several inputs, a function over a
    dimension, and one with more than ``MOST_STEPS`` steps.
    """
    _check(node)
    f = _Step(node, rank)
    grid = _with_turns(f, _grid(f.sizes()))
    first, found = _searched(f, grid, _in_parts(f, grid))
    steps = replace(_aligned(first, found, f.shape), bases=f.bases(), units=f.units())
    _compare(f, steps)
    return steps


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

    def at(self, x: Array, column: Array) -> Array:
        """y of neuron ``column[i]`` for x[i]."""
        return _of_each(self, x, column, self.count)

    def target(self, x: Array) -> Array:
        """What a neuron follows that follows something, f(x) for x [B, count]; else its y."""
        tracked = self.node.tracks
        if tracked is None:
            return self(x)
        given = torch.from_numpy(np.array(x, np.float32)).reshape(len(x), *self.shape)
        with torch.no_grad():
            y = tracked.target(given)
        return np.asarray(y.reshape(len(x), self.count).numpy())

    def sizes(self) -> Array:
        """How far each neuron reaches from 0 [count]."""
        reach = self.node.reach(1)
        if reach is None:
            return np.ones(self.count)
        ends = np.abs([self.each(end).ravel() for end in reach]).max(0).astype(np.float64)
        return np.where(np.isfinite(ends), np.maximum(ends, 2.0**-60), 1.0)


def _inner(value: Tensor, rank: int) -> Tensor:
    """Of the type that files hold, without the batch's dimension."""
    value = value.detach().cpu()
    value = value.to(torch.float32) if value.is_floating_point() else value
    return value[0] if value.dim() == rank + 1 else value


def _in_parts(f: _Step, x: Array) -> Array:
    """f of many x [B, count], a part at a time."""
    parts = np.array_split(x, max(1, x.size >> 20))
    return np.concatenate([f(part) for part in parts])


def _grid(sizes: Array) -> Array:
    """Numbers of float32 in ascending order [B, count], dense where the neurons' steps are."""
    unit = 2.0 ** np.ceil(np.log2(sizes))
    orders = 2.0 ** (np.arange(_FINEST * _EACH, _LARGEST * _EACH) / _EACH)
    even = np.arange(1, 64 * _EACH) / (16 * _EACH)
    near = np.multiply.outer(np.concatenate([orders, even]), unit)
    far = 2.0 ** (np.arange(-126 * _FAR, 128 * _FAR) / _FAR)
    far = np.broadcast_to(np.append(far, _LAST)[:, None], (len(far) + 1, len(unit)))
    above = np.concatenate([near, far]).clip(0, _LAST).astype(np.float32)
    return np.sort(np.concatenate([-above, np.zeros_like(above[:1]), above]), axis=0)


def _with_turns(f: _Step, grid: Array) -> Array:
    """The grid with each x, to the last bit, at which the function turns between its numbers."""
    y = np.concatenate([f.target(part) for part in np.array_split(grid, max(1, grid.size >> 20))])
    with np.errstate(all="ignore"):
        before, after = np.sign(y[1:-1] - y[:-2]), np.sign(y[2:] - y[1:-1])
    at, column = np.nonzero(before * after < 0)  # rounding makes turns as well, but of one place
    if not len(at):
        return grid
    low, high = _orders(grid[at, column]), _orders(grid[at + 2, column])
    sign = after[at, column]  # 1 at a minimum
    while (high - low > 2).any():
        third = (high - low) // 3
        one, two = low + third, high - third
        a, b = (sign * _of_each(f.target, _numbers(x), column, f.count) for x in (one, two))
        low, high = np.where(a > b, one, low), np.where(a > b, high, two)
    return _merged(grid, _numbers(low + 1), column)


def _merged(grid: Array, x: Array, column: Array) -> Array:
    row = _rows(column)
    more = np.broadcast_to(grid[-1], (row.max() + 1, grid.shape[1])).copy()
    more[row, column] = x
    return np.sort(np.concatenate([grid, more]), axis=0)


class _Steps(NamedTuple):
    """The steps of all neurons: below[i] is of neuron column[i], and value[i] what follows."""

    column: Array
    below: Array
    value: Array


def _searched(f: _Step, grid: Array, y: Array) -> tuple[Array, _Steps]:
    """The values of the first step, and where y changes on the grid, to the last bit."""
    at, column = np.nonzero(y[1:] != y[:-1])
    low, high = _orders(grid[at, column]), _orders(grid[at + 1, column])
    left, right = y[at, column], y[at + 1, column]
    found: list[_Steps] = []
    number = np.zeros(f.count, int)
    while len(column):
        low = _last_equal(f, column, left, low, high)
        value = np.where(low + 1 < high, f.at(_numbers(low + 1), column), right)
        found.append(_Steps(column, _numbers(low), value))
        number += np.bincount(column, minlength=f.count)
        if number.max() > MOST_STEPS:
            raise NoStaircase(f"it has more than {MOST_STEPS} steps. Convert with fewer members.")
        more = value != right
        low, high, column = low[more] + 1, high[more], column[more]
        left, right = value[more], right[more]
    if not found:
        found.append(_Steps(column, np.zeros(0, np.float32), right))
    return y[0], _Steps(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _last_equal(f: _Step, column: Array, value: Array, low: Array, high: Array) -> Array:
    """The last numbers from ``low`` on that have these values, if each has it up to one place."""
    while (high - low > 1).any():
        middle = (low + high) // 2
        same = f.at(_numbers(middle), column) == value
        same |= middle == low
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return low


def _of_each(fn: Callable[[Array], Array], x: Array, column: Array, count: int) -> Array:
    """fn, of [B, count], of x[i] in column[i]."""
    row = _rows(column)
    table = np.zeros((row.max() + 1, count), np.float32)
    table[row, column] = x
    return fn(table)[row, column]


def _rows(column: Array) -> Array:
    """For each its place among those of its column."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    row = np.empty(len(column), int)
    row[order] = np.arange(len(column)) - np.searchsorted(ordered, ordered)
    return row


def _orders(x: Array) -> Array:
    """Whole numbers in the order of float32; 0 and -0 are one."""
    bits = x.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _numbers(orders: Array) -> Array:
    size = np.abs(orders).astype(np.int32).view(np.float32)
    return np.where(orders >= 0, size, -size)


def _aligned(first: Array, steps: _Steps, shape: tuple[int, ...]) -> Staircase:
    order = np.lexsort((steps.below, steps.column))
    column, row = steps.column[order], _rows(steps.column[order])
    number = np.bincount(column, minlength=len(first))
    most = max(1, number.max())
    below = np.full((most, len(first)), np.inf, np.float32)
    values = np.repeat(first[None], most + 1, 0)
    below[row, column], values[row + 1, column] = steps.below[order], steps.value[order]
    last = np.take_along_axis(values, number[None], 0)
    values = np.where(np.arange(most + 1)[:, None] > number, last, values)
    return Staircase(below.reshape(most, *shape), values.reshape(most + 1, *shape))


def _compare(f: _Step, steps: Staircase) -> None:
    """Raises NoStaircase where they differ at random inputs, but for the rounding of f."""
    rng, size = np.random.default_rng(0), f.sizes()
    count = max(16, min(_TRIED, (1 << 24) // steps.below.size))
    far = 2.0 ** rng.uniform(-20, 20, (count, f.count)) * rng.choice([-1, 1], (count, f.count))
    x = (np.concatenate([far, rng.uniform(-4, 4, (count, f.count))]) * size).astype(np.float32)
    unlike = steps(x.reshape(-1, *f.shape)).reshape(x.shape) != f(x)
    inner = f if f.node.tracks is None else _Step(of_largest(f.node), len(f.shape))
    target = x if inner is f else f.target(x)
    away = _NEAR * (np.abs(target) + size)
    with np.errstate(all="ignore"):
        unlike &= np.equal(*(inner((target + side).astype(np.float32)) for side in (-away, away)))
    if unlike.any():
        raise NoStaircase(
            f"{f.node.function.name} changes too fast to be looked through, near "
            f"{float(x[unlike][0]):.6g} for instance. Use a smoother function."
        )
