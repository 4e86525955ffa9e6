"""Masks, softmax and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.operations import Size, follows_batch, resolve
from ..constants import BatchConstant, Masked, batch_constant, for_batch
from ..rules import NotConvertible, aten
from .arithmetic import add, is_number, mul, sum_of, without_infinity
from .graph import Lowering
from .products import matmul
from .statics import choose, logits_and_mask
from .tables import handles, packets
from .values import Value, compressed, fixed_size, head_channel


@handles(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(low: Lowering, condition: Value, x: Value, y: Value) -> Value:
    """x where a constant condition is True, y elsewhere: linear; -inf in one of them masks."""
    if isinstance(condition, str):
        if condition in low.exact:
            return choose(low, condition, x, y)
        if condition.startswith("unsupported"):  # already reported
            return low.placeholder()
        raise NotConvertible(
            f"the condition of {low.here.target} is computed from the input; only a constant one "
            "is linear"
        )
    chosen, otherwise = condition, _not(condition)
    total: Value = None
    masks = []
    for value, taken in ((x, chosen), (y, otherwise)):
        if is_number(value):
            value = torch.tensor(float(value), dtype=low.dtype)
        value, mask = without_infinity(low, value)
        if mask is not None:
            masks.append((mask, taken))
        if isinstance(value, Tensor) and not bool(value.any()):
            continue
        part = _taken(low, value, taken, filled=bool(masks))
        total = part if total is None else sum_of(low, total, part, 1)
    if isinstance(total, Tensor):  # the other was -inf or 0 where it is chosen
        raise NotConvertible(f"{low.here.target} does not depend on the input; make it a buffer")
    shape = low.shape()
    if low.shape_of(total) != shape:
        total = low.linear("expand", [total], shape, shape=list(shape))
    both = [_both(low, mask, taken, shape) for mask, taken in masks]
    return low.masked(total, *both)


def _taken(low: Lowering, value: Value, taken: Value, filled: bool) -> Value:
    """A value times where it is taken."""
    if isinstance(value, Tensor) and isinstance(taken, Tensor):
        return value * taken
    if filled and isinstance(value, str):  # elsewhere it is masked
        return value
    if not isinstance(taken, Tensor):
        raise NotConvertible(
            f"a mask of {low.here.target} differs along a dimension that also holds samples; "
            "give the heads a separate dimension"
        )
    return low.affine(value, taken.to(low.dtype))


def _not(mask: Value) -> Value:
    if isinstance(mask, BatchConstant):
        return mask.map(lambda one: ~one.bool())
    return ~mask.bool()


def _both(low: Lowering, mask: Value, other: Value, shape: Sequence[Size]) -> Value:
    one, two = (
        for_batch(mask, n).bool().expand(resolve(shape, n)) & for_batch(other, n).bool()
        for n in (1, 2)
    )
    return batch_constant(one, two, low.here.target)


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(low: Lowering, x: Value, mask: Value, value: Value) -> Value:
    return _where(low, mask, value, x)


@handles(aten.softmax.int, aten._softmax)
def _softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    return _softmax_over(low, x, dim)


@handles(*packets("_safe_softmax"))
def _safe_softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    return _softmax_over(low, x, dim, empty_rows=True)


def _softmax_over(low: Lowering, x: Value, dim: int, empty_rows: bool = False) -> Value:
    """Masked weights are exactly 0: their neurons, which end near 0, are multiplied by 0."""
    if isinstance(x, Tensor):
        return torch.softmax(x, dim)
    mask = x.mask if isinstance(x, Masked) else None
    x = x.value if isinstance(x, Masked) else x
    shape = low.shape_of(x)
    dim = dim % len(shape) - len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("a softmax over the batch mixes samples; apply it to each sample")
    if isinstance(mask, BatchConstant) and mask.tensor is None:  # of samples and heads together
        split = mask.split_sizes(shape)
        if dim + len(shape) <= mask.dim:
            dim -= 1
        out = _softmax_of(low, low.reshape(x, split), dim, mask.split, empty_rows)
        return low.reshape(out, shape)
    tensor = mask.tensor if isinstance(mask, BatchConstant) else mask
    return _softmax_of(low, x, dim, tensor, empty_rows)


def _softmax_of(low: Lowering, x: Value, dim: int, mask: Tensor | None, empty_rows: bool) -> Value:
    keep = empty = None
    if mask is not None and bool(mask.any()):
        mask = compressed(mask)
        keep, empty = (~mask).to(low.dtype), mask.all(dim, keepdim=True)
        if bool(empty.any()) and not empty_rows:
            raise NotConvertible(
                f"a row of the mask of {low.here.target} is -inf everywhere, where softmax is NaN; "
                "let every row keep one position"
            )
    shape = low.shape_of(x)
    channel = low.channel_of(x) if low.channel_of(x) is not None else head_channel(shape)
    if low.options.whole("softmax"):
        masked = {} if keep is None else {"keep": keep}
        inputs = logits_and_mask(low, x)
        row = "softmax" if len(inputs) == 1 else "masked_softmax"
        out = low.function(row, inputs, shape, channel, dim=dim, **masked)
        return out if keep is None else low.affine(out, keep)
    one, taken = _exponentials(low, x, dim, keep, empty)
    total = low.reduce("sum", taken, [dim], True)
    out = low.function("div", [taken, total], shape, channel)
    return out if keep is None else low.affine(out, keep)


BELOW_ALL_LOGITS = -1e30


def _exponentials(
    low: Lowering, x: Value, dim: int, keep: Tensor | None, empty: Tensor | None
) -> tuple[Value, Value]:
    """(x - max(x), its exponentials): none is above 1, and one is 1, whatever the logits are."""
    if keep is not None and empty is not None:
        keep = torch.where(empty, torch.ones_like(keep), keep)  # zeroed at the end
        x = low.affine(x, keep, (1 - keep) * BELOW_ALL_LOGITS)
    shape = low.shape_of(x)
    position = dim % len(shape)
    row = (*shape[:position], 1, *shape[position + 1 :])
    channel = low.channel_of(x) if low.channel_of(x) is not None else head_channel(shape)
    largest = low.function(
        "amax", [x], row, None if channel == dim else channel, dim=(dim,), keepdim=True
    )
    shifted = low.linear("add", [x, largest], shape, channel, coefficients=[1.0, -1.0])
    ceiling = {"ceiling": 0.0} if low.options.guard else {}
    weights = low.function("exp", [shifted], shape, channel, **ceiling)
    return shifted, weights if keep is None else low.affine(weights, keep)


@handles(aten.log_softmax.int, aten._log_softmax)
def _log_softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    if isinstance(x, Masked):
        raise NotConvertible(f"{low.here.target} of values of -inf is -inf; leave out the mask")
    shape = low.shape_of(x)
    dim = dim % len(shape) - len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("a softmax over the batch mixes samples; apply it to each sample")
    if low.options.whole("softmax"):
        return low.function("log_softmax", [x], shape, low.channel_of(x), dim=dim)
    shifted, weights = _exponentials(low, x, dim, None, None)
    total = low.reduce("sum", weights, [dim], True)
    floor = {"floor": 0.5} if low.options.guard else {}  # it is 1 or more
    logarithm = low.function("log", [total], low.shape_of(total), low.channel_of(total), **floor)
    return low.linear(
        "add", [shifted, logarithm], shape, low.channel_of(x), coefficients=[1.0, -1.0]
    )


@handles(*packets("scaled_dot_product_attention"))
def _attention(
    low: Lowering,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p > 0:
        raise NotConvertible(
            "attention with dropout that stays active in eval mode makes the source network "
            "random; pass dropout_p=self.p if self.training else 0.0"
        )
    if enable_gqa:
        heads = fixed_size(low.shape_of(q)[-3])
        k, v = _for_heads(low, k, heads), _for_heads(low, v, heads)
    scale = 1.0 / math.sqrt(fixed_size(low.shape_of(q)[-1])) if scale is None else float(scale)
    scores = matmul(low, mul(low, q, scale), _swapped(low, k))
    if is_causal:
        rows, columns = low.shape_of(scores)[-2:]
        attn_mask = torch.ones(fixed_size(rows), fixed_size(columns), dtype=torch.bool).tril()
    if isinstance(attn_mask, (Tensor, BatchConstant)):
        if for_batch(attn_mask, 1).dtype == torch.bool:
            scores = low.masked(low.name_of(scores), _not(attn_mask))
        else:
            scores = add(low, scores, attn_mask)
    elif attn_mask is not None:
        scores = add(low, scores, attn_mask)
    weights = _softmax_over(low, scores, -1, empty_rows=True)
    return matmul(low, weights, v)


def _swapped(low: Lowering, x: Value) -> Value:
    if isinstance(x, Tensor):
        return x.transpose(-1, -2)
    rank = len(low.shape_of(x))
    return low.permute(low.name_of(x), [*range(rank - 2), rank - 1, rank - 2])


def _for_heads(low: Lowering, x: Value, heads: int) -> Value:
    """[..., few, S, D] to [..., heads, S, D]: each head of keys serves several of queries."""
    shape = low.shape_of(x)
    few = fixed_size(shape[-3])
    if few == heads:
        return x
    x = low.name_of(x)
    split = (*shape[:-2], 1, *shape[-2:])
    spread = (*shape[:-2], heads // few, *shape[-2:])
    each = low.linear("expand", [low.reshape(x, split)], spread, shape=list(spread))
    return low.reshape(each, (*shape[:-3], heads, *shape[-2:]))
