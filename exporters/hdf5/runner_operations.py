"""The linear operations of a description in NumPy (``docs/format.md`` has the list).

``apply`` computes an operation, ``apply_linear`` its linear part: without bias, and without the
value of a padding. Sizes that follow the batch, ``"3*batch"``, are resolved when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from ...core.operations.rows import LINEAR
from ...errors import FormatError
from .runner_functions import Array, parts, windows

Attributes = Mapping[str, Any]
Tensors = Mapping[str, Array]
Form = Callable[[Sequence[Array], Attributes, Tensors, int], Array]


def resolve(shape: Sequence[int | str], batch: int) -> list[int]:
    """``["3*batch", 16]`` to ``[3 * batch, 16]``."""
    return [s if isinstance(s, int) else int(s.split("*")[0]) * batch for s in shape]


def _images(run: Callable[[Array], Array], x: Array, spatial: int) -> Array:
    """``run`` of [N, C, *spatial]; whatever leads the channels is folded into N."""
    lead = x.shape[: x.ndim - spatial - 1]
    out = run(x.reshape(math.prod(lead), *x.shape[len(lead) :]))
    return out.reshape(*lead, *out.shape[1:])


def _padded(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """Zeros around the last dimensions; negative widths crop."""
    lead = [(0, 0)] * (x.ndim - len(before))
    x = np.pad(x, [*lead, *((max(0, b), max(0, a)) for b, a in zip(before, after, strict=True))])
    return _cropped(x, before, after)


def _cropped(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    cut = [
        slice(max(0, -b), x.shape[i - len(before)] - max(0, -a))
        for i, (b, a) in enumerate(zip(before, after, strict=True))
    ]
    index: tuple[Any, ...] = (..., *cut)
    return x[index]


def _conv(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return _images(lambda v: _convolved(v, a, w), x[0], len(a["stride"]))


def _convolved(x: Array, a: Attributes, w: Tensors) -> Array:
    """[N, C, *] to [N, O, *]: every window a row of a matrix product."""
    weight, groups, n = w["weight"], a["groups"], len(a["stride"])
    kernel = weight.shape[2:]
    if a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(a["dilation"], kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = [0] * n if a["padding"] == "valid" else list(a["padding"])
    x = _padded(x, before, after)
    reach = [d * (k - 1) + 1 for d, k in zip(a["dilation"], kernel, strict=True)]
    axes = tuple(range(2, 2 + n))
    rows = np.lib.stride_tricks.sliding_window_view(x, reach, axes)  # [N, C, *out, *reach]
    strides = [slice(None, None, s) for s in a["stride"]]
    rows = rows[
        (slice(None), slice(None), *strides, *(slice(None, None, d) for d in a["dilation"]))
    ]
    size = rows.shape[2 : 2 + n]
    rows = np.moveaxis(rows, 1, 1 + n)  # [N, *out, C, *kernel]
    fan_in = math.prod(weight.shape[1:])
    rows = rows.reshape(len(x) * math.prod(size), groups, fan_in).swapaxes(0, 1)
    columns = weight.reshape(groups, weight.shape[0] // groups, fan_in).swapaxes(1, 2)
    out = (rows @ columns).swapaxes(0, 1).reshape(len(x), *size, weight.shape[0])
    return _with_bias(np.moveaxis(out, -1, 1), w, n)


def _with_bias(out: Array, w: Tensors, spatial: int) -> Array:
    return out + w["bias"].reshape(-1, *[1] * spatial) if "bias" in w else out


def _conv_transpose(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return _images(lambda v: _spread(v, a, w), x[0], len(a["stride"]))


def _spread(x: Array, a: Attributes, w: Tensors) -> Array:
    """[N, C, *] to [N, O, *]: every value adds its multiple of the kernel to a window."""
    weight, groups, n = w["weight"], a["groups"], len(a["stride"])
    kernel, size = weight.shape[2:], x.shape[2:]
    fan_out = weight.shape[1] * groups
    values = x.reshape(len(x), groups, x.shape[1] // groups, math.prod(size)).swapaxes(2, 3)
    matrix = weight.reshape(groups, x.shape[1] // groups, -1)
    spread = (values @ matrix).reshape(len(x), groups, *size, weight.shape[1], *kernel)
    spread = np.moveaxis(spread, 2 + n, 2).reshape(len(x), fan_out, *size, *kernel)
    geometry = list(
        zip(
            size, a["stride"], a["dilation"], kernel, a["padding"], a["output_padding"], strict=True
        )
    )
    whole = [(i - 1) * s + d * (k - 1) + 1 + o for i, s, d, k, _, o in geometry]
    out = np.zeros((len(x), fan_out, *whole), x.dtype)
    for offsets in product(*map(range, kernel)):
        window = [
            slice(at * d, at * d + (i - 1) * s + 1, s)
            for at, (i, s, d, *_) in zip(offsets, geometry, strict=True)
        ]
        weighted: tuple[Any, ...] = (..., *offsets)
        out[(slice(None), slice(None), *window)] += spread[weighted]
    widths = [-p for *_, p, _ in geometry]
    return _with_bias(_cropped(out, widths, widths), w, n)


def _linear(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    out = x[0] @ w["weight"].T
    return out + w["bias"] if "bias" in w else out


def _matmul(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.asarray(w["weight"] @ x[0] if a["side"] == "left" else x[0] @ w["weight"])


def _einsum(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    operands = [x[0], w["weight"]] if a["position"] == 0 else [w["weight"], x[0]]
    return np.asarray(np.einsum(a["equation"].replace(" ", ""), *operands))


def _affine(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    # without its bias the linear part still has the broadcast shape
    out = np.broadcast_to(x[0], resolve(a["shape"], batch))
    out = out * w["weight"] if "weight" in w else out
    return out + w["bias"] if "bias" in w else out


def _add(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    first, second = a["coefficients"]
    return np.asarray(first * x[0] + second * x[1])


def _avg_pool(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    """Sums of windows over their number of values: what is padded counts if so asked."""
    out, counts = x[0], []
    n = len(a["kernel_size"])
    for axis in range(-n, 0):
        k, s, p = (a[name][axis] for name in ("kernel_size", "stride", "padding"))
        size = out.shape[axis]
        count, padded = windows(size, k, s, p, 1, a["ceil_mode"])
        starts = np.arange(count) * s
        widths = [(0, 0)] * out.ndim
        widths[axis] = (p, max(0, padded - size - p))
        out = np.pad(out, widths)
        out = reduce(np.add, [np.take(out, starts + i, axis) for i in range(k)])
        ends = np.minimum(starts + k, size + 2 * p)
        if not a["count_include_pad"]:
            starts, ends = np.maximum(starts, p), np.minimum(ends, size + p)
        counts.append((ends - starts).reshape(-1, *[1] * (-axis - 1)))
    divisor = a.get("divisor_override")
    divisors = reduce(np.multiply, counts) if divisor is None else np.asarray(divisor)
    return np.asarray(out / divisors.astype(out.dtype))


def _adaptive_avg_pool(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    out, counts = x[0], []
    for axis in range(-len(a["output_size"]), 0):
        wanted = parts(out.shape[axis], a["output_size"][axis])
        sums = [np.moveaxis(out, axis, 0)[part].sum(0) for part in wanted]
        out = np.stack(sums, axis % out.ndim)
        counts.append(np.array([p.stop - p.start for p in wanted]).reshape(-1, *[1] * (-axis - 1)))
    return np.asarray(out / reduce(np.multiply, counts).astype(out.dtype))


def _mean(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.asarray(x[0].mean(tuple(a["dim"]), keepdims=a["keepdim"])) if a["dim"] else x[0]


def _sum(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.asarray(x[0].sum(tuple(a["dim"]), keepdims=a["keepdim"])) if a["dim"] else x[0]


def _reshape(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return x[0].reshape(resolve(a["shape"], batch))


def _expand(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.broadcast_to(x[0], resolve(a["shape"], batch))


def _permute(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return x[0].transpose([d % x[0].ndim for d in a["dims"]])


def _cat(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.concatenate(list(x), a["dim"])


def _slice(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    index = [slice(None)] * x[0].ndim
    start, stop = resolve([a["start"], a["stop"]], batch)
    index[a["dim"]] = slice(start, stop, a["step"])
    return x[0][tuple(index)]


def _index(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    return np.take(x[0], w["index"], a["dim"])


def _pad(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    """``pad`` is (before, after) of the last dimension, then of the one before it, ..."""
    before, after = a["pad"][-2::-2], a["pad"][::-2]
    widths = [(0, 0)] * (x[0].ndim - len(before))
    widths += [(max(0, b), max(0, c)) for b, c in zip(before, after, strict=True)]
    if a["mode"] == "constant":
        out = np.pad(x[0], widths, constant_values=a["value"])
    else:
        mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[a["mode"]]
        out = np.pad(x[0], widths, mode=mode)  # type: ignore[call-overload]
    return _cropped(out, before, after)


def _upsample(x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    out = x[0]
    for axis in range(-len(a["size"]), 0):
        new = a["size"][axis]
        if a["mode"] == "nearest":
            out = np.take(out, _nearest(out.shape[axis], new), axis)
        else:
            out = _interpolated(out, axis, new, bool(a.get("align_corners")))
    return out


def _nearest(old: int, new: int) -> Array:
    """The sample to the left of each new one; its place is computed in single precision."""
    places = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    return np.minimum(np.floor(places).astype(int), old - 1)


def _interpolated(x: Array, axis: int, new: int, align: bool) -> Array:
    old, number = x.shape[axis], x.dtype.type
    index = np.arange(new, dtype=x.dtype)
    if align:
        places = index * (number(old - 1) / number(new - 1) if new > 1 else number(0))
    else:
        places = np.maximum((index + number(0.5)) * (number(old) / number(new)) - number(0.5), 0)
    left = np.minimum(places.astype(int), old - 1)
    right = np.minimum(left + 1, old - 1)
    weight = np.clip(places - left, 0, 1).reshape(-1, *[1] * (-axis - 1)).astype(x.dtype)
    return np.asarray((1 - weight) * np.take(x, left, axis) + weight * np.take(x, right, axis))


OPERATIONS: dict[str, Form] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "affine": _affine,
    "add": _add,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "sum": _sum,
    "reshape": _reshape,
    "expand": _expand,
    "permute": _permute,
    "cat": _cat,
    "slice": _slice,
    "index": _index,
    "pad": _pad,
    "upsample": _upsample,
}


def _form(op: str) -> Form:
    """As the operation's row says, if a caller's does."""
    form = LINEAR[op].numpy or OPERATIONS.get(op)
    if form is None:
        raise FormatError(f"the operation {op!r} has no NumPy form; give its row one, numpy=.")
    return form


def apply(op: str, x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    """The operation ``op`` on its inputs, one time step."""
    return _form(op)(x, a, w, batch)


def apply_linear(op: str, x: Sequence[Array], a: Attributes, w: Tensors, batch: int) -> Array:
    """The linear part of ``op``: what weighted spikes pass through."""
    w = {name: value for name, value in w.items() if name != "bias"}
    return _form(op)(x, {**a, "value": 0.0} if "value" in a else a, w, batch)
