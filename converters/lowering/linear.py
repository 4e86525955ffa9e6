"""Convolutions and linear layers."""

from __future__ import annotations

from typing import Any

from ..rules import aten
from .arithmetic import add
from .graph import Lowering
from .products import matmul
from .tables import handles, packets
from .values import Value, spread


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
