"""Products of matrices: by weights linear, of two values a neuron; einsum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.network import is_affine
from ...core.operations import Size, follows_batch
from ..rules import NotConvertible, aten
from .arithmetic import add
from .graph import Lowering, is_row
from .tables import handles, packets
from .values import Name, Value, broadcast, head_channel, one_for_all_samples, per_sample


@handles(aten.matmul, aten.mm, aten.bmm)
def matmul(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x @ y
    if isinstance(y, Tensor):
        channel = -1 if y.dim() > 1 else None
        shape = _matmul_shape(low.shape_of(x), tuple(y.shape))
        return low.linear("matmul", [x], shape, channel, {"weight": y}, side="right")
    if isinstance(x, Tensor):
        channel = -2 if len(low.shape_of(y)) > 1 else None
        shape = _matmul_shape(tuple(x.shape), low.shape_of(y))
        return low.linear("matmul", [y], shape, channel, {"weight": x}, side="left")
    a, b = low.shape_of(x), low.shape_of(y)
    if len(a) < 2 or len(b) < 2:
        raise NotConvertible(
            "a matrix product of a vector that depends on the input; add a dimension of size 1"
        )
    if follows_batch(a[-1]) or follows_batch(b[-2]):
        raise NotConvertible("a matrix product that sums over the batch mixes samples; use means")
    out = _whole_attention(low, x, y)
    if out is not None:
        return out
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    x, y = low.reshape(x, a), low.reshape(y, b)
    if low.options.whole("matmul"):
        shape = _matmul_shape(a, b)
        return low.function("matmul", [x, y], shape, head_channel(shape))
    # every product of scalars is a neuron, their sum is linear
    left = low.reshape(x, (*a, 1))
    right = low.reshape(y, (*b[:-2], 1, *b[-2:]))
    shape = broadcast((*a, 1), (*b[:-2], 1, *b[-2:]))
    return low.reduce("sum", low.function("mul", [left, right], shape), [-2], False)


def _matmul_shape(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...]:
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*broadcast(a[:-2], b[:-2]), *rows, *columns)


def _whole_attention(low: Lowering, weights: Value, v: Value) -> Value:
    """The product of softmax(scale q k + bias) with v, as one function of the three.

    The neurons for the logits and for the weights stay where others use them, and are removed with
    all that is unused where not.
    """
    if not low.options.whole("attention") or not isinstance(weights, str):
        return None
    softmax = low.node_of(weights)
    if is_affine(softmax):  # zeros where it is masked
        masked = low.node_of(softmax.inputs[0])
        keep = getattr(masked, "arguments", {}).get("keep")
        if keep is None or set(softmax.tensors) != {"weight"}:
            return None
        if not torch.equal(softmax.tensors["weight"], keep) or masked.shape != softmax.shape:
            return None
        softmax = masked
    if not is_row(softmax, "softmax", "masked_softmax") or softmax.arguments["dim"] != -1:
        return None
    scale, bias = 1.0, None
    logits = low.node_of(softmax.inputs[0])
    while is_affine(logits):
        factor, shift = logits.tensors.get("weight"), logits.tensors.get("bias")
        before = low.node_of(logits.inputs[0])
        if before.shape != logits.shape or (factor is not None and factor.numel() != 1):
            return None
        if shift is not None:
            bias = scale * shift if bias is None else bias + scale * shift
        scale, logits = scale * (1.0 if factor is None else float(factor)), before
    v_shape, rank = low.shape_of(v), len(logits.shape)
    if not is_row(logits, "matmul") or len(v_shape) > rank:
        return None
    low.absorbed |= {logits.name, softmax.name}
    v = low.reshape(v, (1,) * (rank - len(v_shape)) + v_shape)
    shape = _matmul_shape(softmax.shape, low.shape_of(v))
    arguments = {"bias": bias, "keep": softmax.arguments.get("keep")}
    given = {name: value for name, value in arguments.items() if value is not None}
    inputs = [*map(Name, logits.inputs), v]
    for mask in map(Name, softmax.inputs[1:]):
        ones = (1,) * (rank - len(low.shape_of(mask)))
        inputs.append(low.reshape(mask, ones + low.shape_of(mask)))
    row = "attention" if is_row(softmax, "softmax") else "masked_attention"
    return low.function(row, inputs, shape, head_channel(shape), scale=scale, **given)


@handles(aten.addmm)
def _addmm(
    low: Lowering, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1
) -> Value:
    product = matmul(low, x, y)
    product = product if alpha == 1 else low.affine(product, float(alpha))
    return add(low, product, bias, alpha=beta)


@handles(*packets("baddbmm"))
def _baddbmm(
    low: Lowering, start: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1
) -> Value:
    return _addmm(low, start, x, y, beta, alpha)


@handles(aten.einsum)
def _einsum(low: Lowering, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    operands = [one_for_all_samples(value) for value in operands]
    fixed = [isinstance(value, Tensor) for value in operands]
    if len(operands) == 2 and not any(fixed):
        return _einsum_of_two(low, equation, operands[0], operands[1])
    if len(operands) != 2 or sum(fixed) != 1:
        raise NotConvertible(
            f"einsum '{equation}' of values that all depend on the input; write it as products of "
            "two"
        )
    position = fixed.index(False)
    return low.linear(
        "einsum",
        [operands[position]],
        low.shape(),
        None,
        {"weight": operands[1 - position]},
        equation=equation,
        position=position,
    )


def _einsum_of_two(low: Lowering, equation: str, x: Value, y: Value) -> Value:
    """As one matrix product: what both have and the result keeps leads, what it lacks is summed."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    a, comma, b = terms.partition(",")
    if not arrow or "." in equation or any(len(set(t)) < len(t) for t in (a, b, out)):
        raise NotConvertible(
            f"einsum '{equation}' of two values that depend on the input; write each index once "
            "in every term, the result after ->, without an ellipsis, or use @"
        )
    x, a = _summed(low, x, a, b + out)
    y, b = _summed(low, y, b, a + out)
    sizes = dict(zip(a + b, low.shape_of(x) + low.shape_of(y), strict=True))
    lead = [c for c in out if c in a and c in b]
    inner = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in out if c not in b], [c for c in out if c not in a]

    def as_matrices(value: Value, term: str, first: list[str], second: list[str]) -> Value:
        value = low.permute(value, [term.index(c) for c in (*lead, *first, *second)])
        merged = [_product([sizes[c] for c in group], equation) for group in (first, second)]
        return low.reshape(value, (*(sizes[c] for c in lead), *merged))

    product = matmul(low, as_matrices(x, a, rows, inner), as_matrices(y, b, inner, columns))
    order = (*lead, *rows, *columns)
    product = low.reshape(product, [sizes[c] for c in order])
    return low.permute(product, [order.index(c) for c in out])


def _summed(low: Lowering, x: Value, term: str, others: str) -> tuple[Value, str]:
    """Without the indices that nothing else has."""
    x = low.name_of(x)
    dims = [d for d, c in enumerate(term) if c not in others]
    if not dims:
        return x, term
    return low.reduce("sum", x, dims, False), "".join(c for c in term if c in others)


def _product(sizes: Sequence[Size], equation: str) -> Size:
    if sum(map(follows_batch, sizes)) > 1:
        raise NotConvertible(f"einsum '{equation}' has a product of samples with samples; use @")
    number = math.prod(map(per_sample, sizes))
    return f"{number}*batch" if any(map(follows_batch, sizes)) else number
