"""The linear operations of a network description, and how torch computes each.

An operation is affine in all its inputs together: ``apply`` computes the whole, ``apply_linear``
its linear part (without bias, padding value or constant), which is what weighted spikes and
increments pass through. Attributes are JSON-able; a size that follows the batch is written
``"3*batch"`` and resolved when the operation runs, so the batch may lie in any dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = int | str  # 49, or "3*batch"


def resolve(shape: Sequence[Size], batch: int) -> list[int]:
    """``["3*batch", 16]`` to ``[3 * batch, 16]``."""
    return [s if isinstance(s, int) else int(s.split("*")[0]) * batch for s in shape]


def follows_batch(size: Size) -> bool:
    return not isinstance(size, int)


Apply = Callable[[Sequence[Tensor], Mapping[str, Any], Mapping[str, Tensor], int], Tensor]


def _conv(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], batch: int) -> Tensor:
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(a["stride"]) - 1]
    out: Tensor = conv(
        x[0],
        w["weight"],
        w.get("bias"),
        a["stride"],
        a["padding"],
        a["dilation"],
        a["groups"],
    )
    return out


def _conv_transpose(
    x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], batch: int
) -> Tensor:
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(a["stride"]) - 1]
    return conv(
        x[0],
        w["weight"],
        w.get("bias"),
        a["stride"],
        a["padding"],
        a["output_padding"],
        a["groups"],
        a["dilation"],
    )


def _linear(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return F.linear(x[0], w["weight"], w.get("bias"))


def _matmul(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return w["weight"] @ x[0] if a["side"] == "left" else x[0] @ w["weight"]


def _einsum(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    operands = [x[0], w["weight"]] if a["position"] == 0 else [w["weight"], x[0]]
    out: Tensor = torch.einsum(a["equation"], *operands)
    return out


def _affine(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    out = x[0]
    if "weight" in w:
        out = out * w["weight"]
    if "bias" in w:
        out = out + w["bias"]
    # without its bias the linear part still has the broadcast shape
    return out.expand(torch.broadcast_shapes(out.shape, resolve(a["shape"], b)))


def _add(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    first, second = a["coefficients"]
    left = x[0] if first == 1 else x[0] * first
    return torch.add(left, x[1], alpha=second)


def _avg_pool(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    kernel, stride, padding = a["kernel_size"], a["stride"], a["padding"]
    ceil_mode, include = a["ceil_mode"], a["count_include_pad"]
    if len(kernel) == 1:
        return F.avg_pool1d(x[0], kernel, stride, padding, ceil_mode, include)
    pool = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    out: Tensor = pool(x[0], kernel, stride, padding, ceil_mode, include, a.get("divisor_override"))
    return out


def _adaptive_avg_pool(
    x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int
) -> Tensor:
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    out: Tensor = pool[len(a["output_size"]) - 1](x[0], a["output_size"])
    return out


def _mean(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].mean(a["dim"], a["keepdim"])


def _sum(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].sum(a["dim"], a["keepdim"])


def _reshape(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].reshape(resolve(a["shape"], b))


def _expand(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].expand(resolve(a["shape"], b))


def _permute(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].permute(a["dims"])


def _cat(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return torch.cat(list(x), a["dim"])


def _slice(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    index = [slice(None)] * x[0].dim()
    start, stop = resolve([a["start"], a["stop"]], b)
    index[a["dim"]] = slice(start, stop, a["step"])
    return x[0][tuple(index)]


def _index(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return x[0].index_select(a["dim"], w["index"])


def _pad(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    if a["mode"] == "constant":
        return F.pad(x[0], a["pad"], value=a["value"])
    return F.pad(x[0], a["pad"], mode=a["mode"])


def _upsample(x: Sequence[Tensor], a: Mapping[str, Any], w: Mapping[str, Tensor], b: int) -> Tensor:
    return F.interpolate(x[0], size=a["size"], mode=a["mode"], align_corners=a.get("align_corners"))


LINEAR: dict[str, Apply] = {
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


def apply(
    op: str,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    batch: int,
) -> Tensor:
    """The operation ``op`` on its inputs, one time step."""
    return LINEAR[op](inputs, attributes, tensors, batch)


def apply_linear(
    op: str,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    batch: int,
) -> Tensor:
    """The linear part of ``op``: what increments pass through."""
    tensors = {name: value for name, value in tensors.items() if name != "bias"}
    if "value" in attributes:
        attributes = {**attributes, "value": 0.0}
    return LINEAR[op](inputs, attributes, tensors, batch)
