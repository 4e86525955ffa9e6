"""Linear operations of one dimension after the other, found by trying them on unit vectors.

Bicubic and antialiased resampling and running sums are products with a matrix for each dimension;
where each row of it picks one value, as that of the nearest, an index. Overlapping windows that are
added up again (``F.fold``) are a transposed convolution by ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.operations import follows_batch
from ..rules import NotConvertible, aten
from .graph import Lowering
from .moves import moved
from .pooling import check_whole_factors
from .tables import handles, packets
from .values import Value, fixed_size


def matrix_of(low: Lowering, run: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """[n, m] of a linear function from [n, 1, n] to [n, 1, m]."""
    unit = torch.eye(size, dtype=torch.float64).unsqueeze(1)
    return run(unit).squeeze(1).to(low.dtype)


def along(low: Lowering, x: Value, dim: int, matrix: Tensor) -> Value:
    """x times a matrix [n, m] along a dimension, counted from the end."""
    chosen = matrix.argmax(0)
    if torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)[:, chosen]):
        shape = list(low.shape_of(x))
        shape[dim] = len(chosen)
        return low.linear("index", [x], shape, low.channel_of(x), {"index": chosen}, dim=dim)
    shape, rank = list(low.shape_of(x)), len(low.shape_of(x))
    order = [d for d in range(rank) if d != dim % rank] + [dim % rank]
    side, weight = ("left", matrix.T.contiguous()) if dim == -2 else ("right", matrix)
    if dim in (-1, -2):
        shape[dim] = matrix.shape[1]
        return low.linear("matmul", [x], shape, low.channel_of(x), {"weight": weight}, side=side)
    turned = along(low, low.permute(x, order), -1, matrix)
    return low.permute(turned, [order.index(d) for d in range(rank)])


# -- resampling ------------------------------------------------------------------------------------


@handles(*packets("_upsample_nearest_exact1d", "_upsample_nearest_exact2d"))
@handles(*packets("_upsample_nearest_exact3d"))
def _nearest_exact(low: Lowering, x: Value, size: Any = None, *scales: Any) -> Value:
    check_whole_factors(low, x, scales)
    operation = aten._upsample_nearest_exact1d.default
    return _resampled(low, x, lambda v, new: operation(v, [new]))


@handles(*packets("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"))
def _smooth(low: Lowering, x: Value, size: Any, align: bool, *scales: Any) -> Value:
    check_whole_factors(low, x, scales)
    packet: Any = low.here.target.overloadpacket  # type: ignore[union-attr]

    def run(value: Tensor, new: int) -> Tensor:  # torch 2.13 antialiases a width of 1 wrongly
        twice = value.unsqueeze(-1).repeat(1, 1, 1, 2)
        return packet.default(twice, [new, 2], align)[..., 0]

    return _resampled(low, x, run)


def _resampled(low: Lowering, x: Value, run: Callable[[Tensor, int], Tensor]) -> Value:
    """Of images; ``run`` resamples [n, 1, old] to [n, 1, new]."""
    for dim, new in enumerate(low.shape()[2:], 2 - len(low.shape())):
        old, size = fixed_size(low.shape_of(x)[dim]), fixed_size(new)
        x = along(low, x, dim, matrix_of(low, lambda v, size=size: run(v, size), old))  # type: ignore[misc]
    return x


# -- sums ------------------------------------------------------------------------------------------


@handles(aten.cumsum)
def _cumsum(low: Lowering, x: Value, dim: int, *, dtype: Any = None) -> Value:
    shape = low.shape_of(x)
    dim = dim % len(shape) - len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("a running sum over the batch mixes samples; sum within each sample")
    return along(low, x, dim, matrix_of(low, lambda v: v.cumsum(-1), fixed_size(shape[dim])))


@handles(*packets("col2im"))
def _fold(
    low: Lowering,
    x: Value,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Windows [B, C k k, L] added up in an image: each of ones where it came from."""
    try:
        return moved(low)  # where none overlap
    except NotConvertible:
        pass
    each = list(zip(size, kernel, dilation, padding, stride, strict=True))
    windows = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in each]
    whole = [(w - 1) * s - 2 * p + d * (k - 1) + 1
             for w, (_, k, d, p, s) in zip(windows, each, strict=True)]  # fmt: skip
    channels = fixed_size(low.shape_of(x)[-2])
    one = torch.eye(math.prod(kernel), dtype=low.dtype).view(-1, 1, *kernel)
    groups = channels // math.prod(kernel)
    image = low.reshape(x, (*low.shape_of(x)[:-1], *windows))
    return low.linear(
        "conv_transpose",
        [image],
        low.shape(),
        -3,
        {"weight": one.repeat(groups, 1, 1, 1)},
        stride=list(stride),
        padding=list(padding),
        output_padding=[n - w for n, w in zip(size, whole, strict=True)],
        groups=groups,
        dilation=list(dilation),
    )
