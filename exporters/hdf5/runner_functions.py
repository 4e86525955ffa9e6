"""The functions that neurons spike, and the step sizes, in NumPy.

Names and parameters are those of ``NONLINEARITIES`` and of the schedules in a description; the
formulas are those of torch's documentation. Nothing is taken from torch, so that a file is checked
by something that did not write it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.registry import look_up
from ...errors import FormatError, InputError

Array = NDArray[Any]
Function = Callable[..., Array]

_erf = np.frompyfunc(math.erf, 1, 1)  # C's own, right to the last place


def erf(x: Array) -> Array:
    """In double precision, rounded to the type of x."""
    return np.asarray(_erf(x.astype(np.float64)), np.float64).astype(x.dtype)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0), 6)


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    return np.where(x > 0, x, x * negative_slope)


def prelu(x: Array, weight: Array) -> Array:
    return np.where(x >= 0, x, weight * x)


def elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    below = np.expm1(np.minimum(x, 0) * input_scale) * (alpha * scale)
    return np.where(x > 0, x * scale, below)


def selu(x: Array) -> Array:
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def celu(x: Array, alpha: float = 1.0) -> Array:
    return elu(x, alpha, 1.0, 1.0 / alpha)


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * 0.5 * (1 + erf(x * math.sqrt(0.5)))


def sigmoid_gelu(x: Array) -> Array:
    return x * sigmoid(1.702 * x)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta)


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(np.minimum(x, 80))))  # beyond, tanh is 1


def hardswish(x: Array) -> Array:
    return x * relu6(x + 3) / 6


def hardsigmoid(x: Array) -> Array:
    return relu6(x + 3) / 6


def clamp(x: Array, min: float | Array | None = None, max: float | Array | None = None) -> Array:
    x = x if min is None else np.maximum(x, min)
    return x if max is None else np.minimum(x, max)


def qcfs(x: Array, v_threshold: float, levels: int) -> Array:
    theta = x.dtype.type(v_threshold) / x.dtype.type(levels)
    k = np.arange(1, levels + 1, dtype=x.dtype)
    n = np.searchsorted(k * theta, x + x.dtype.type(0.5) * theta, side="right")
    return n.astype(x.dtype) * theta


def power(x: Array, exponent: float, floor: float | None = None) -> Array:
    return np.power(clamp(x, floor), exponent)


def sqrt(x: Array, floor: float | None = None) -> Array:
    return np.sqrt(clamp(x, floor))


def rsqrt(x: Array, floor: float | None = None) -> Array:
    return 1 / np.sqrt(clamp(x, floor))


def reciprocal(x: Array, floor: float | None = None) -> Array:
    return 1 / clamp(x, floor)


def divide(x: Array, y: Array, floor: float | None = None) -> Array:
    return x / clamp(y, floor)


def divide_by_sqrt(x: Array, y: Array, floor: float | None = None) -> Array:
    return x / np.sqrt(clamp(y, floor))


def maximum_of(*arguments: Array) -> Array:
    return reduce(np.maximum, arguments)


def max_pool(
    x: Array,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> Array:
    """The largest of each window, one dimension after the other."""
    n = len(kernel_size)
    for axis in range(-n, 0):
        k, s, p, d = kernel_size[axis], stride[axis], padding[axis], dilation[axis]
        count, padded = windows(x.shape[axis], k, s, p, d, ceil_mode)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (p, max(0, padded - x.shape[axis] - p))
        x = np.pad(x, widths, constant_values=-np.inf)
        starts = np.arange(count) * s
        x = maximum_of(*(np.take(x, starts + i * d, axis) for i in range(k)))
    return x


def windows(size: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> tuple[int, int]:
    """How many windows a pooling has, and the padded size that holds them all.

    The last one begins inside the input or its left padding.
    """
    reach = d * (k - 1) + 1
    count = (size + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s + 1
    if ceil_mode and (count - 1) * s >= size + p:
        count -= 1
    return count, (count - 1) * s + reach


def parts(size: int, out: int) -> list[slice]:
    """The windows of an adaptive pooling."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def adaptive_max_pool(x: Array, output_size: Sequence[int]) -> Array:
    for axis in range(-len(output_size), 0):
        wanted = parts(x.shape[axis], output_size[axis])
        pieces = [np.moveaxis(x, axis, 0)[part].max(0) for part in wanted]
        x = np.stack(pieces, axis % x.ndim)
    return x


def amax(x: Array, dim: Sequence[int], keepdim: bool = False) -> Array:
    return np.asarray(x.max(tuple(dim) or None, keepdims=keepdim))


def exp(x: Array, ceiling: float | None = None) -> Array:
    return np.exp(clamp(x, None, ceiling))


def log(x: Array, floor: float | None = None) -> Array:
    return np.log(clamp(x, floor))


def softmax(x: Array, dim: int, keep: Array | None = None) -> Array:
    """exp of x less its maximum, over their sum; 0 where ``keep`` is 0."""
    taken = np.ones_like(x) if keep is None else np.broadcast_to(keep != 0, x.shape).astype(x.dtype)
    largest = np.max(x, dim, keepdims=True, where=taken != 0, initial=-np.inf)
    shifted = np.where(taken != 0, x, -np.inf) - np.where(np.isfinite(largest), largest, 0)
    weights = np.exp(shifted)
    total = weights.sum(dim, keepdims=True)
    return np.asarray(weights / np.where(total == 0, x.dtype.type(1), total))


def log_softmax(x: Array, dim: int) -> Array:
    shifted = x - x.max(dim, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(dim, keepdims=True)))


def layer_norm(x: Array, dims: int, eps: float) -> Array:
    axes = tuple(range(-dims, 0))
    center = x - x.mean(axes, keepdims=True)
    variance = np.square(center).mean(axes, keepdims=True)
    return np.asarray(center / np.sqrt(variance + x.dtype.type(eps)))


def rms_norm(x: Array, dims: int, eps: float) -> Array:
    square = np.square(x).mean(tuple(range(-dims, 0)), keepdims=True)
    return np.asarray(x / np.sqrt(square + x.dtype.type(eps)))


def vector_norm(x: Array, dim: Sequence[int], keepdim: bool = False) -> Array:
    return np.asarray(np.sqrt(np.square(x).sum(tuple(dim), keepdims=keepdim)))


def normalize(x: Array, dim: Sequence[int], eps: float) -> Array:
    return np.asarray(x / np.maximum(vector_norm(x, dim, True), x.dtype.type(eps)))


def attention(
    x: Array,
    y: Array,
    z: Array,
    scale: float = 1.0,
    bias: Array | None = None,
    keep: Array | None = None,
) -> Array:
    logits = np.matmul(x, y) * x.dtype.type(scale)
    return np.matmul(softmax(logits if bias is None else logits + bias, -1, keep), z)


def masked_softmax(x: Array, bias: Array, dim: int, keep: Array | None = None) -> Array:
    """-inf in ``bias`` masks."""
    taken = (bias != -np.inf).astype(x.dtype)
    return softmax(x + bias, dim, taken if keep is None else taken * (keep != 0))


def masked_attention(
    x: Array,
    y: Array,
    z: Array,
    mask: Array,
    scale: float = 1.0,
    bias: Array | None = None,
    keep: Array | None = None,
) -> Array:
    logits = np.matmul(x, y) * x.dtype.type(scale)
    logits = logits if bias is None else logits + bias
    return np.matmul(masked_softmax(logits, mask, -1, keep), z)


FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "gelu": gelu,
    "sigmoid_gelu": sigmoid_gelu,
    "silu": silu,
    "mish": mish,
    "softplus": softplus,
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
    "clamp": clamp,
    "qcfs": qcfs,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "abs": np.abs,
    "exp": exp,
    "log": log,
    "square": np.square,
    "pow": power,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "reciprocal": reciprocal,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mul": np.multiply,
    "div": divide,
    "divide_by_sqrt": divide_by_sqrt,
    "max": maximum_of,
    "max_pool": max_pool,
    "adaptive_max_pool": adaptive_max_pool,
    "amax": amax,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "vector_norm": vector_norm,
    "normalize": normalize,
    "matmul": np.matmul,
    "attention": attention,
    "masked_softmax": masked_softmax,
    "masked_attention": masked_attention,
}


def find_function(
    row: Mapping[str, Any], functions: Mapping[str, Function], where: str
) -> Function:
    """The caller's function before this module's. Raises FormatError where there is none."""
    name = row["name"]
    found = functions.get(name) or (None if row["own"] else look_up(FUNCTIONS, name))
    if found is None:
        raise FormatError(
            f"'{where}' uses the nonlinearity {name!r}, which is not one of this package's; pass "
            f"Runner(path, functions={{{name!r}: your_function_of_arrays}})."
        )
    return found


def step_size(schedule: Mapping[str, Any], t: int) -> float:
    """eta(t), t = 1, 2, ..."""
    kind = schedule["kind"]
    if kind == "exponential":
        return float(schedule["initial"] * schedule["decay"] ** (t - 1))
    if kind == "inverse":
        return float(schedule["initial"] / (t + schedule["delay"]))
    if kind == "constant":
        return float(schedule["initial"])
    assert kind == "list"
    values = schedule["values"]
    if t > len(values) and values and schedule.get("tail") is not None:
        return float(values[-1] * schedule["tail"] ** (t - len(values)))
    if t > len(values):
        raise InputError(f"step {t} was asked for, but the schedule has {len(values)} step sizes.")
    return float(values[t - 1])
