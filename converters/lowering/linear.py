"""Convolutions and linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...core.operations import Size, follows_batch
from ..rules import NotConvertible, aten
from .arithmetic import add
from .graph import Lowering
from .places import padded, take
from .products import matmul
from .tables import handles, packets
from .values import Value, fixed_size, per_sample, spread


@handles(*packets("conv1d", "conv2d", "conv3d"))
def _conv(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    if isinstance(weight, str):
        return _conv_of_each(low, x, weight, bias, stride, padding, dilation, groups)
    weight, bias = low.constant(weight, "the weight"), low.constant(bias, "the bias")
    n = weight.dim() - 2
    return low.linear(
        "conv",
        [x],
        low.shape(),
        -n - 1,
        {"weight": weight, "bias": bias},
        stride=spread(stride, n),
        padding=padding if isinstance(padding, str) else spread(padding, n),
        dilation=spread(dilation, n),
        groups=groups,
    )


def _conv_of_each(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> Value:
    """A convolution by weights of each sample's own: their matrix product with its windows.

    As CondConv writes it, the samples are groups: x [1, B C, *], weights [B O, C / g, *].
    """
    sizes = low.shape_of(weight)
    if not (isinstance(groups, fx.Node) and follows_batch(sizes[0])) or isinstance(padding, str):
        raise NotConvertible(
            f"the weight of {low.here.target} is computed from the input; only weights that are "
            "fixed after training can be converted, or those of CondConv, where each sample is a "
            "group: x.reshape(1, B * C, H, W), weights [B * O, C, k, k], padding as a number"
        )
    n, out = len(sizes) - 2, low.shape()
    kernel = [fixed_size(k) for k in sizes[2:]]
    groups = low.number(groups.meta["val"], 1)
    options = (spread(option, n) for option in (stride, padding, dilation))
    x = low.reshape(x, ("1*batch", per_sample(low.shape_of(x)[1]), *low.shape_of(x)[2:]))
    x = _windows(low, x, kernel, out[2:], *options)
    rows, inner = per_sample(sizes[0]) // groups, fixed_size(sizes[1]) * math.prod(kernel)
    x = low.reshape(x, ("1*batch", groups, inner, math.prod(map(fixed_size, out[2:]))))
    value = matmul(low, low.reshape(weight, ("1*batch", groups, rows, inner)), x)
    value = low.reshape(value, out)
    if bias is None:
        return value
    return add(low, value, low.reshape(low.name_of(bias), (1, out[1], *[1] * n)))


def _windows(
    low: Lowering,
    x: Value,
    kernel: Sequence[int],
    out: Sequence[Size],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Value:
    """[B, C, *] to [B, C, *kernel, *out]: by an index for each dimension."""
    n = len(kernel)
    if any(padding):
        x = padded(low, x, [p for p in reversed(padding) for _ in (0, 1)])
    sizes = [fixed_size(size) for size in out]
    for dim, (k, m, s, d) in enumerate(zip(kernel, sizes, stride, dilation, strict=True), -n):
        places = torch.arange(k)[:, None] * d + torch.arange(m) * s
        x = take(low, x, dim, places.flatten())
    batch, channels = low.shape_of(x)[:2]
    pairs = [size for pair in zip(kernel, sizes, strict=True) for size in pair]
    x = low.reshape(x, (batch, channels, *pairs))
    return low.permute(x, [0, 1, *range(2, 2 + 2 * n, 2), *range(3, 2 + 2 * n, 2)])


@handles(*packets("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
def _conv_transpose(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    weight, bias = low.constant(weight, "the weight"), low.constant(bias, "the bias")
    n = weight.dim() - 2
    return low.linear(
        "conv_transpose",
        [x],
        low.shape(),
        -n - 1,
        {"weight": weight, "bias": bias},
        stride=spread(stride, n),
        padding=spread(padding, n),
        output_padding=spread(output_padding, n),
        groups=groups,
        dilation=spread(dilation, n),
    )


@handles(aten.convolution)
def _convolution(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed:
        return _conv_transpose(
            low, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _conv(low, x, weight, bias, stride, padding, dilation, groups)


@handles(aten.linear)
def _linear(low: Lowering, x: Value, weight: Value, bias: Value = None) -> Value:
    if isinstance(weight, str):
        rank = len(low.shape_of(weight))
        out = matmul(low, x, low.permute(weight, [*range(rank - 2), rank - 1, rank - 2]))
        return out if bias is None else add(low, out, bias)
    bias = low.constant(bias, "the bias")
    return low.linear("linear", [x], low.shape(), -1, {"weight": weight, "bias": bias})
