"""Averages over windows, max pooling as published, upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rules import NotConvertible, aten
from .graph import Lowering
from .places import padded
from .tables import LOCAL, handles, packets
from .values import Value, per_sample, spread


@handles(*packets("avg_pool1d", "avg_pool2d", "avg_pool3d"))
def _avg_pool(
    low: Lowering,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    packet = str(low.here.target.overloadpacket)  # type: ignore[union-attr]
    n = int(packet[-2])
    kernel = spread(kernel_size, n)
    return low.linear(
        "avg_pool",
        [x],
        low.shape(),
        low.channel_of(x),
        kernel_size=kernel,
        stride=spread(stride, n) if stride else kernel,
        padding=spread(padding, n),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


@handles(*packets("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"))
@handles(*packets("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"))
def _adaptive_avg_pool(low: Lowering, x: Value, output_size: Sequence[int]) -> Value:
    return low.linear(
        "adaptive_avg_pool",
        [x],
        low.shape(),
        low.channel_of(x),
        output_size=[int(s) for s in output_size],
    )


PUBLISHED_PADDING = -200.0  # the published max pooling pads with it


def _max_chain(
    low: Lowering,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Value:
    """Max pooling as a chain of two-argument maxima, last dimension last, as published."""
    n = len(kernel_size)
    target = low.shape()
    for axis in range(-n, 0):
        k, s = kernel_size[axis], stride[axis]
        p, d = padding[axis], dilation[axis]
        size, out = low.shape_of(x)[axis], target[axis]
        assert isinstance(size, int) and isinstance(out, int)
        right = max(0, (out - 1) * s + (k - 1) * d + 1 - size - p)
        if p or right:
            pad = [0] * (2 * -axis)
            pad[-2:] = [p, right]
            x = padded(low, x, pad, "constant", PUBLISHED_PADDING)
        stop = (out - 1) * s + 1
        best = low.slice(x, axis, 0, stop, s)
        for i in range(1, k):
            other = low.slice(x, axis, i * d, i * d + stop, s)
            best = low.function("maximum", [best, other], low.shape_of(best), low.channel_of(x))
        x = best
    return x


LOCAL["max_pool"] = _max_chain


@handles(*packets("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"))
def _upsample_nearest(low: Lowering, x: Value, size: Any = None, *scales: Any) -> Value:
    check_whole_factors(low, x, scales)
    return _upsample(low, x, "nearest", None)


@handles(aten.upsample_bilinear2d, aten.upsample_linear1d, aten.upsample_trilinear3d)
def _upsample_linear(low: Lowering, x: Value, size: Any, align: bool, *scales: Any) -> Value:
    check_whole_factors(low, x, scales)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(low.shape())]
    return _upsample(low, x, mode, bool(align))


def check_whole_factors(low: Lowering, x: Value, scales: Sequence[Any]) -> None:
    """A factor that gives no whole size places its samples by the factor, not by the size."""
    flat = [
        f for s in scales for f in (s if isinstance(s, (list, tuple)) else [s]) if f is not None
    ]
    sizes = zip(low.shape_of(x)[2:], low.shape()[2:], flat, strict=False)
    if any(per_sample(old) * factor != per_sample(new) for old, new, factor in sizes):
        raise NotConvertible(
            f"upsampling by {flat} does not give a whole size; pass size= instead of scale_factor="
        )


def _upsample(low: Lowering, x: Value, mode: str, align: bool | None) -> Value:
    shape = low.shape()
    attributes: dict[str, Any] = {"size": list(shape[2:]), "mode": mode}
    if align is not None:
        attributes["align_corners"] = align
    return low.linear("upsample", [x], shape, low.channel_of(x), **attributes)
