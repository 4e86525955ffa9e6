"""Constants whose shape follows the batch: what a model makes of its weights and the batch size.

A class token expanded to every sample and a padding mask are such. They are computed for one sample
and for two, which shows where the samples lie in them and that all have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.operations import Size
from .rules import NotConvertible


@dataclass(frozen=True, eq=False)
class BatchConstant:
    """``one`` is the value in a batch of one sample, ``two`` in a batch of two; ``dim`` follows it.

    ``inner`` says how ``dim`` counts: the sample changes fastest (k, batch), or slowest (batch, k).
    """

    one: Tensor
    two: Tensor
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
        return self.one if samples == 1 else self.two


def batch_constant(one: Tensor, two: Tensor, what: Any) -> Tensor | BatchConstant:
    """From the values for one and for two samples. Raises NotConvertible where samples differ."""
    if one.shape == two.shape and torch.equal(one, two):
        return one
    dims = [d for d, (a, b) in enumerate(zip(one.shape, two.shape, strict=False)) if a != b]
    if one.dim() == two.dim() and len(dims) == 1:
        (dim,) = dims
        k = one.shape[dim]
        if two.shape[dim] == 2 * k:
            for inner in (False, True):
                pairs = two.unflatten(dim, (k, 2) if inner else (2, k))
                if torch.equal(pairs, one.unsqueeze(dim + inner).expand_as(pairs)):
                    return BatchConstant(one, two, dim, inner)
    raise NotConvertible(
        f"{what} makes values out of the size of the batch that are not the same for every sample; "
        "compute them outside the model"
    )


@dataclass(frozen=True, eq=False)
class Uneven:
    """A constant that numbers the samples, as arange(batch) does: for indices alone, ``why``."""

    one: Tensor
    two: Tensor
    why: str

    def batch_of(self, samples: int) -> Tensor:
        return self.one if samples == 1 else self.two


def of_the_batch(one: Tensor, two: Tensor, what: Any) -> Tensor | BatchConstant | Uneven:
    """``batch_constant``, or what numbers the samples."""
    try:
        return batch_constant(one, two, what)
    except NotConvertible as problem:
        return Uneven(one, two, str(problem))


@dataclass(frozen=True, eq=False)
class Masked:
    """A node's value where ``mask``, of its shape, is False, and -inf where it is True.

    Infinity never becomes a value of the spiking network: a softmax takes the mask as its own.
    """

    value: str
    mask: Tensor | BatchConstant


def for_batch(value: Any, samples: int) -> Any:
    """The value in a batch of one or of two samples; of a masked one the mask."""
    if isinstance(value, Masked):
        value = value.mask
    return value.batch_of(samples) if isinstance(value, (BatchConstant, Uneven)) else value
