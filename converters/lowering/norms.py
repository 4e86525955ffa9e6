"""Norms and variances: batch norm is affine, the others are neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.network import Linear
from ...core.operations import follows_batch
from ..rules import NotConvertible, aten
from .graph import Lowering, is_row
from .tables import handles, packets
from .values import Value, as_channels, fixed_size, head_channel, per_sample


def _by_channel(tensor: Tensor | None, rank: int) -> Tensor | None:
    return None if tensor is None else as_channels(tensor, rank)


@handles(aten._native_batch_norm_legit_no_training)
def _batch_norm_eval(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    momentum: float,
    eps: float,
) -> Value:
    deviation = torch.sqrt(var.double() + eps)
    factor = (torch.ones_like(deviation) if weight is None else weight.double()) / deviation
    shift = (0.0 if bias is None else bias.double()) - mean.double() * factor
    rank = len(low.shape_of(x))
    dtype = mean.dtype
    name = low.affine(x, as_channels(factor, rank).to(dtype), as_channels(shift, rank).to(dtype))
    return [name]


@handles(aten.batch_norm)
def _batch_norm(
    low: Lowering, x: Value, weight: Value, bias: Value, mean: Value, var: Value, *rest: Any
) -> Value:
    if mean is None or (rest and rest[0] is True):
        return _batch_norm_batch(low)
    return _batch_norm_eval(low, x, weight, bias, mean, var, 0.0, rest[-2])[0]


@handles(aten._native_batch_norm_legit)
def _batch_norm_batch(low: Lowering, *args: Any, **kwargs: Any) -> Value:
    raise NotConvertible(
        "batch norm that uses the statistics of the batch in eval mode mixes samples; train with "
        "track_running_stats=True"
    )


def _normalise(low: Lowering, center: Value, variance: Value, eps: float) -> str:
    floor = {"floor": float(eps)} if low.options.guard and eps > 0 else {}
    return low.function(
        "divide_by_sqrt",
        [center, low.affine(variance, bias=float(eps))],
        low.shape_of(center),
        low.channel_of(center),
        **floor,
    )


def _whole_norm(low: Lowering, row: str, x: Value, dims: int, eps: float) -> Value:
    shape = low.shape_of(x)
    if any(map(follows_batch, shape[-dims:])):
        raise NotConvertible("a norm over the batch mixes samples; use batch norm")
    channel = low.channel_of(x) or -1
    return low.function(row, [x], shape, channel, dims=dims, eps=float(eps))


def _scale_and_shift(low: Lowering, x: Value, weight: Value, bias: Value) -> Value:
    return x if weight is None and bias is None else low.affine(x, weight, bias)


@handles(aten.layer_norm, aten.native_layer_norm)
def _layer_norm(
    low: Lowering,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    dims = list(range(-len(normalized_shape), 0))
    if low.options.whole("norm"):
        out = _whole_norm(low, "layer_norm", x, len(dims), eps)
        return low.result(_scale_and_shift(low, out, weight, bias))
    center = low.linear(
        "add",
        [x, low.reduce("mean", x, dims, True)],
        low.shape_of(x),
        low.channel_of(x) or -1,
        coefficients=[1.0, -1.0],
    )
    square = low.function("square", [center], low.shape_of(x), low.channel_of(center))
    z = _normalise(low, center, low.reduce("mean", square, dims, True), eps)
    out = _scale_and_shift(low, z, weight, bias)
    return low.result(out)


@handles(*packets("rms_norm", "_fused_rms_norm"))
def _rms_norm(
    low: Lowering,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value = None,
    eps: float | None = None,
) -> Value:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    if low.options.whole("norm"):
        out = _whole_norm(low, "rms_norm", x, len(dims), eps)
        return low.result(_scale_and_shift(low, out, weight, None))
    square = low.function("square", [x], low.shape_of(x), low.channel_of(x))
    z = _normalise(low, x, low.reduce("mean", square, dims, True), eps)
    out = _scale_and_shift(low, z, weight, None)
    return low.result(out)


@handles(aten.group_norm)
def _group_norm(
    low: Lowering,
    x: Value,
    groups: int,
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    shape = low.shape_of(x)
    rank, channels = len(shape), shape[1]
    inner = math.prod(shape[2:])  # type: ignore[arg-type]
    channels = fixed_size(channels)
    grouped = (shape[0], groups, channels // groups * inner)
    if low.options.whole("norm"):
        flat = low.reshape(x, grouped)
        z = low.function("layer_norm", [flat], grouped, -2, dims=1, eps=float(eps))
        z = low.reshape(z, shape)
        return _scale_and_shift(low, z, *(_by_channel(t, rank) for t in (weight, bias)))
    spread = (shape[0], groups, channels // groups, 1)
    by_channel = (shape[0], channels, *[1] * (rank - 2))

    def group_mean(value: Value) -> Value:
        mean = low.reduce("mean", low.reshape(value, grouped), [-1], True)
        mean = low.reshape(mean, (shape[0], groups, 1, 1))
        if channels != groups:
            mean = low.linear("expand", [mean], spread, shape=list(spread))
        return low.reshape(mean, by_channel)

    center = low.linear("add", [x, group_mean(x)], shape, 1 - rank, coefficients=[1.0, -1.0])
    square = low.function("square", [center], shape, 1 - rank)
    z = _normalise(low, center, group_mean(square), eps)
    return _scale_and_shift(low, z, *(_by_channel(t, rank) for t in (weight, bias)))


@handles(aten.native_group_norm)
def _native_group_norm(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    n: Any,
    c: Any,
    hw: Any,
    groups: int,
    eps: float,
) -> Value:
    return [_group_norm(low, x, groups, weight, bias, eps)]


@handles(aten.instance_norm)
def _instance_norm(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Value:
    if not use_input_stats:
        return _batch_norm_eval(low, x, weight, bias, mean, var, momentum, eps)[0]
    return _group_norm(low, x, fixed_size(low.shape_of(x)[1]), weight, bias, eps)


@handles(aten.var.correction)
def _var(
    low: Lowering,
    x: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    rank = len(low.shape_of(x))
    dims = [d % rank for d in (dim if dim else range(rank))]
    sizes = [low.shape_of(x)[d] for d in dims]
    if any(follows_batch(s) for s in sizes):
        raise NotConvertible("a variance over the batch mixes samples; use running statistics")
    count = math.prod(map(per_sample, sizes))
    mean = low.reduce("mean", x, dims, True)
    center = low.linear(
        "add", [x, mean], low.shape_of(x), low.channel_of(x), coefficients=[1.0, -1.0]
    )
    square = low.function("square", [center], low.shape_of(x), low.channel_of(x))
    out = low.reduce("mean", square, dims, keepdim)
    correction = 1.0 if correction is None else float(correction)
    return out if correction == 0 else low.affine(out, count / (count - correction))


@handles(aten.var.default, aten.var.dim)
def _var_unbiased(
    low: Lowering, x: Value, dim: Any = None, unbiased: bool = True, keepdim: bool = False
) -> Value:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    return _var(low, x, dim, correction=float(unbiased), keepdim=keepdim)


@handles(aten.std.correction)
def _std(low: Lowering, x: Value, dim: Any = None, **options: Any) -> Value:
    return _root(low, _var(low, x, dim, **options))


@handles(aten.std.default, aten.std.dim)
def _std_unbiased(low: Lowering, x: Value, *args: Any, **options: Any) -> Value:
    return _root(low, _var_unbiased(low, x, *args, **options))


def _root(low: Lowering, variance: Value, **guard: float) -> Value:
    shape, channel = low.shape_of(variance), low.channel_of(variance)
    return low.function("sqrt", [variance], shape, channel, **guard)


@handles(*packets("linalg_vector_norm"))
def _vector_norm(
    low: Lowering,
    x: Value,
    order: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    """A norm over dimensions: of order 2 one neuron, of order 1 and of others what torch makes."""
    rank = len(low.shape_of(x))
    dims = sorted(d % rank for d in ([dim] if isinstance(dim, int) else dim or range(rank)))
    if any(follows_batch(low.shape_of(x)[d]) for d in dims):
        raise NotConvertible("a norm over the batch mixes samples; give its dimensions, dim=")
    if order == 2 and low.options.whole("norm"):
        channel = low.channel_without(x, dims, keepdim)
        last = tuple(d - rank for d in dims)
        return low.function("vector_norm", [x], low.shape(), channel, dim=last, keepdim=keepdim)
    return _norm_in_parts(low, x, float(order), dims, keepdim)


def _norm_in_parts(low: Lowering, x: Value, order: float, dims: list[int], keepdim: bool) -> Value:
    shape, channel = low.shape_of(x), low.channel_of(x)
    guard = {"floor": 0.0} if low.options.guard else {}
    if order == 2:
        total = low.reduce("sum", low.function("square", [x], shape, channel), dims, keepdim)
        return _root(low, total, **guard)
    size = low.function("abs", [x], shape, channel)
    if order == 1:
        return low.reduce("sum", size, dims, keepdim)
    after = low.channel_without(x, dims, keepdim)
    if order == math.inf:
        last = tuple(d - len(shape) for d in dims)
        return low.function("amax", [size], low.shape(), after, dim=last, keepdim=keepdim)
    if not 0 < order < math.inf:
        raise NotConvertible(f"a norm of order {order} has no spiking form; use 1, 2 or inf")
    power = low.function("pow", [size], shape, channel, exponent=order, **guard)
    total = low.reduce("sum", power, dims, keepdim)
    return low.function("pow", [total], low.shape(), after, exponent=1 / order, **guard)


@handles(aten.norm)
def _norm(
    low: Lowering, x: Value, order: float | None = 2, dim: Any = None, *rest: Any, **options: Any
) -> Value:
    return _vector_norm(low, x, 2 if order is None else order, dim, *rest[:1], **options)


def over_its_norm(low: Lowering, x: Value, y: Value) -> Value:
    """x over its own norm, as F.normalize writes it, as one function; None for other divisions."""
    node, eps = low.node_of(y), 0.0
    while isinstance(node, Linear) and node.op == "expand":
        node = low.node_of(node.inputs[0])
    clamp = node if is_row(node, "clamp") and node.arguments["max"] is None else None
    if clamp is not None:
        node, eps = low.node_of(clamp.inputs[0]), float(clamp.arguments["min"])
    if not is_row(node, "vector_norm") or node.inputs != (x,) or not node.arguments["keepdim"]:
        return None
    low.absorbed |= {node.name} if clamp is None else {node.name, clamp.name}
    shape, dim = low.shape_of(x), node.arguments["dim"]
    channel = low.channel_of(x) if low.channel_of(x) is not None else head_channel(shape)
    return low.function("normalize", [x], shape, channel, dim=dim, eps=eps)
