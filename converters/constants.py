"""Constants whose shape depends on the batch, computed from weights and the batch size.

A class token expanded to every sample and a causal mask are such. They are computed for one sample,
for two and for three, which shows where the samples lie in them and that all have the same. On the
way there a constant may differ from sample to sample, as their numbers 0, 1, 2, ... do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.operations import Size
from .rules import NotConvertible

SAMPLES = (1, 2, 3)  # what is made of the size of the batch is computed for


@dataclass(frozen=True, eq=False)
class BatchConstant:
    """``one`` is the value in a batch of one sample; its dimension ``dim`` follows the batch.

    ``inner`` says how ``dim`` counts: the sample changes fastest (k, batch), or slowest (batch, k).
    """

    one: Tensor
    dim: int
    inner: bool

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(f"{s}*batch" if d == self.dim else s for d, s in enumerate(self.one.shape))

    @property
    def tensor(self) -> Tensor | None:
        """It with 1 in place of ``dim``; None where that holds different values for a sample."""
        first = self.one.narrow(self.dim, 0, 1)
        return first if torch.equal(first.expand_as(self.one), self.one) else None

    @property
    def split(self) -> Tensor:
        """It with ``dim`` in two, the one of the samples of size 1."""
        return self.one.unsqueeze(self.dim + self.inner)

    def split_sizes(self, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        """Sizes with the same ``dim`` likewise: ("8*batch", 5) to ("1*batch", 8, 5)."""
        k: list[Size] = ["1*batch", self.one.shape[self.dim]]
        pair = reversed(k) if self.inner else k
        return (*sizes[: self.dim], *pair, *sizes[self.dim + 1 :])

    def batch_of(self, samples: int) -> Tensor:
        axis = self.dim + self.inner
        repeated = self.split.expand(
            *self.split.shape[:axis], samples, *self.split.shape[axis + 1 :]
        )
        return repeated.flatten(self.dim, self.dim + 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> BatchConstant:
        """``function``, which acts on each element, of it."""
        return replace(self, one=function(self.one))


@dataclass(frozen=True, eq=False)
class Unsettled:
    """A constant that differs from sample to sample: its values in batches of ``SAMPLES``.

    Operations on constants accept it, and as an index it selects a position of each sample; a
    network cannot hold it, so any that remains is refused.
    """

    values: tuple[Tensor, ...]
    what: str

    def refusal(self) -> NotConvertible:
        return NotConvertible(
            f"{self.what} computes values from the batch size that differ between samples; "
            "compute them outside the model"
        )


def of_batches(values: Sequence[Any], what: Any) -> Any:
    """From the values for ``SAMPLES``: a tensor, a BatchConstant or what is Unsettled."""
    one, two, three = values
    if not isinstance(one, Tensor):
        if one == two == three:
            return one
        raise Unsettled((), str(what)).refusal()
    found = _settled(one, two)
    if found is None or not _same(for_batch(found, SAMPLES[-1]), three):
        return Unsettled(tuple(values), str(what))
    return found


def batch_constant(one: Tensor, two: Tensor, what: Any) -> Tensor | BatchConstant:
    """From the values for one and for two samples. Raises NotConvertible where samples differ."""
    found = _settled(one, two)
    if found is None:
        raise Unsettled((one, two), str(what)).refusal()
    return found


def _settled(one: Tensor, two: Tensor) -> Tensor | BatchConstant | None:
    if _same(one, two):
        return one
    dims = [d for d, (a, b) in enumerate(zip(one.shape, two.shape, strict=False)) if a != b]
    if one.dim() == two.dim() and len(dims) == 1:
        for inner in (False, True):
            constant = BatchConstant(one, dims[0], inner)
            if _same(constant.batch_of(2), two):
                return constant
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Floating-point values up to rounding: a product of matrices rounds by their size."""
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    finite = a[a.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * size, equal_nan=True)


@dataclass(frozen=True, eq=False)
class Masked:
    """A node's value where ``mask``, of its shape, is False, and -inf where it is True.

    Infinity never becomes a value of the spiking network: a softmax takes the mask as its own.
    """

    value: str
    mask: Tensor | BatchConstant


def for_batch(value: Any, samples: int) -> Any:
    """The value in a batch of so many samples; of a masked one the mask."""
    if isinstance(value, Masked):
        value = value.mask
    if isinstance(value, Unsettled):
        return value.values[SAMPLES.index(samples)]
    return value.batch_of(samples) if isinstance(value, BatchConstant) else value
