"""Sums, products, powers and what is made of them; constants of the shape of a value."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core.operations import resolve
from ..constants import BatchConstant, Masked, batch_constant
from ..rules import NotConvertible, aten, power
from .graph import Lowering
from .norms import over_its_norm
from .tables import HANDLERS, handles, packets
from .values import Value, as_channels, broadcast, fixed_size


def is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sum_channel(low: Lowering, x: Value, y: Value) -> int | None:
    channel = low.channel_of(x)
    return low.channel_of(y) if channel is None else channel


@handles(aten.add)
def add(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    """x + alpha y; where a constant of them is -inf the sum is masked."""
    if alpha != 1 and (is_number(y) or isinstance(y, (Tensor, BatchConstant))):
        y, alpha = _times(y, alpha), 1
    if isinstance(y, Masked) and alpha <= 0:
        raise NotConvertible(f"{low.here.target} subtracts -inf; add masks to the logits")
    (x, mask), (y, other) = without_infinity(low, x), without_infinity(low, y)
    return low.masked(sum_of(low, x, y, alpha), mask, other)


def sum_of(low: Lowering, x: Value, y: Value, alpha: float) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x + alpha * y
    if is_number(y) or isinstance(y, Tensor):
        return low.affine(x, bias=y)
    if is_number(x) or isinstance(x, Tensor):
        return low.affine(y, None if alpha == 1 else float(alpha), x)
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.linear(
        "add", [x, y], shape, _sum_channel(low, x, y), coefficients=[1.0, float(alpha)]
    )


def _times(value: Value, factor: float) -> Value:
    if isinstance(value, BatchConstant):
        return value.map(lambda one: one * factor)
    return value * factor


def without_infinity(low: Lowering, value: Value) -> tuple[Value, Value]:
    """A value without its -inf, and where they are (None: nowhere)."""
    if isinstance(value, Masked):
        return value.value, value.mask
    if isinstance(value, BatchConstant):
        one, mask = without_infinity(low, value.one)
        return (
            (value, None) if mask is None else (replace(value, one=one), replace(value, one=mask))
        )
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value, None
    mask = value == -math.inf
    finite = value.masked_fill(mask, 0.0)
    if not bool(finite.isfinite().all()):
        raise NotConvertible(
            f"a constant of {low.here.target} holds NaN or +inf; only -inf is supported, in masks"
        )
    return (finite, mask) if bool(mask.any()) else (value, None)


@handles(aten.sub)
def _sub(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    return add(low, x, y, alpha=-alpha)


@handles(aten.rsub)
def _rsub(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    return add(low, y, x, alpha=-alpha)


@handles(aten.neg)
def _neg(low: Lowering, x: Value) -> Value:
    return low.affine(x, -1.0)


def _positive(low: Lowering, factor: Value) -> Value:
    if is_number(factor) and factor > 0:
        return factor
    if isinstance(factor, Tensor) and bool((factor > 0).all()):
        return factor
    raise NotConvertible(
        f"{low.here.target} of values of -inf; scale the logits, by a positive constant, before "
        "they are masked"
    )


@handles(aten.mul)
def mul(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Masked):
        return low.masked(mul(low, x.value, _positive(low, y)), x.mask)
    if isinstance(y, Masked):
        return mul(low, y, x)
    if is_number(y) or isinstance(y, Tensor):
        return low.affine(x, y)
    if is_number(x) or isinstance(x, Tensor):
        return low.affine(y, x)
    if x == y:
        return low.function("square", [x], low.shape_of(x), low.channel_of(x))
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.function("mul", [x, y], shape, _sum_channel(low, x, y))


@handles(aten.addcmul)
def _addcmul(low: Lowering, x: Value, first: Value, second: Value, value: float = 1) -> Value:
    fixed = isinstance(first, Tensor) and isinstance(second, Tensor)
    product = first * second if fixed else mul(low, first, second)
    return add(low, x, product, alpha=value)


@handles(aten.div.Tensor, aten.div.Scalar, aten.true_divide)
def _div(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Masked):
        return low.masked(_div(low, x.value, _positive(low, y)), x.mask)
    if isinstance(y, Masked):
        raise NotConvertible(f"{low.here.target} by values of -inf; mask after the division")
    if isinstance(y, (int, float, Tensor)):
        return low.affine(x, 1.0 / y)
    if isinstance(x, (int, float)):
        inverse = low.function("reciprocal", [y], low.shape_of(y), low.channel_of(y))
        return inverse if x == 1 else low.affine(inverse, x)
    normalized = over_its_norm(low, x, y) if isinstance(x, str) and isinstance(y, str) else None
    if normalized is not None:
        return normalized
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.function("div", [x, y], shape, _sum_channel(low, x, y))


@handles(aten.pow.Tensor_Scalar)
def _pow(low: Lowering, x: Value, exponent: float) -> Value:
    if exponent == 1:
        return x
    rule = power(exponent)
    return low.function(rule.row, [x], low.shape_of(x), low.channel_of(x), **rule.arguments())


@handles(aten.pow.Scalar)
def _pow_base(low: Lowering, base: float, x: Value) -> Value:
    if base <= 0:
        raise NotConvertible(f"{base} ** x is not real for every x; use a positive base")
    return _exp_of(low, low.affine(x, math.log(base)))


def _exp_of(low: Lowering, x: Value) -> Value:
    return low.function("exp", [x], low.shape_of(x), low.channel_of(x))


@handles(aten.exp2)
def _exp2(low: Lowering, x: Value) -> Value:
    return _exp_of(low, low.affine(x, math.log(2.0)))


@handles(aten.expm1)
def _expm1(low: Lowering, x: Value) -> Value:
    return low.affine(_exp_of(low, x), bias=-1.0)


@handles(aten.prelu, *packets("_prelu_kernel"))
def _prelu(low: Lowering, x: Value, weight: Value) -> Value:
    weight = low.constant(weight, "the slope")
    rank = len(low.shape_of(x))
    if weight.dim() == 1 and rank > 1 and weight.numel() > 1:
        weight = as_channels(weight, rank)
    return low.function("prelu", [x], low.shape(), low.channel_of(x), weight=weight)


@handles(aten.glu)
def _glu(low: Lowering, x: Value, dim: int = -1) -> Value:
    size = fixed_size(low.shape_of(x)[dim])
    a, b = low.slice(x, dim, 0, size // 2), low.slice(x, dim, size // 2, size)
    gate = low.function("sigmoid", [b], low.shape_of(b), low.channel_of(b))
    return mul(low, a, gate)


@handles(aten.mean)
def _mean(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return low.reduce("mean", x, _dims(dim), keepdim)


@handles(aten.sum)
def _sum(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return low.reduce("sum", x, _dims(dim), keepdim)


def _dims(dim: Any) -> list[int] | None:
    return [dim] if isinstance(dim, int) else (list(dim) if dim is not None else None)


@handles(aten.fill, aten.full_like, aten.zeros_like, aten.ones_like)
@handles(*packets("new_full", "new_zeros", "new_ones"))
def _full(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A constant of the shape of a value."""
    name = str(low.here.target.overloadpacket).split(".")[-1]  # type: ignore[union-attr]
    fill = args[-1] if "full" in name or "fill" in name else float("ones" in name)
    if isinstance(fill, (str, Tensor)):
        fill = float(low.constant(fill, "the value"))  # type: ignore[arg-type]
    dtype, shape = low.here.meta["val"].dtype, low.shape()
    one, two = (torch.full(resolve(shape, n), fill, dtype=dtype) for n in (1, 2))
    return batch_constant(one, two, low.here.target)


@handles(aten.dropout, *packets("native_dropout", "alpha_dropout", "feature_dropout"))
def _dropout(low: Lowering, x: Value, p: float, train: bool = True) -> Value:
    if train and p > 0:
        raise NotConvertible(
            "dropout that stays active in eval mode makes the source network random; pass "
            "training=self.training to F.dropout"
        )
    return x


def _qcfs(low: Lowering, x: Value, threshold: Value, levels: int) -> Value:
    threshold = low.constant(threshold, "the threshold")
    return low.function(
        "qcfs",
        [x],
        low.shape(),
        low.channel_of(x),
        v_threshold=float(threshold),
        levels=int(levels),
    )


HANDLERS[torch.ops.spikingjelly_signgd.qcfs] = _qcfs
