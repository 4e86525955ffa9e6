"""What changes places, not values: views, permutations, slices, indices, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.operations import Size, follows_batch
from ..constants import BatchConstant
from ..rules import NotConvertible, aten
from .graph import Lowering
from .moves import moved
from .statics import picked
from .tables import handles, packets
from .values import Value, per_sample


@handles(
    *packets("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
)
@handles(*packets("view_as", "reshape_as", "squeeze_copy", "_reshape_alias"))
def _reshape(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    return low.reshape(low.name_of(x), low.shape())


@handles(*packets("expand", "expand_as", "broadcast_to"))
def _expand(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    x = low.name_of(x)
    shape = low.shape()
    if shape == low.shape_of(x):
        return x
    return low.linear("expand", [x], shape, low.channel_of(x), shape=list(shape))


@handles(aten.repeat)
def _repeat(low: Lowering, x: Value, repeats: Sequence[Any]) -> Value:
    x = low.name_of(x)
    shape = low.shape()
    old = (1,) * (len(shape) - len(low.shape_of(x))) + low.shape_of(x)
    pairs: list[tuple[Size, Size, Size]] = []  # (1, old, times)
    for size, result in zip(old, shape, strict=True):
        if follows_batch(result) and not follows_batch(size):
            times: Size = f"{int(str(result).split('*')[0]) // int(size)}*batch"
        else:
            times = per_sample(result) // max(per_sample(size), 1)
        pairs.append((1, size, times))
    split = [s for one, size, _ in pairs for s in (one, size)]
    spread = [s for _, size, times in pairs for s in (times, size)]
    value = low.linear("expand", [low.reshape(x, split)], spread, shape=list(spread))
    out = low.reshape(value, shape)
    return out


@handles(*packets("repeat_interleave"))
def _repeat_interleave(
    low: Lowering, x: Value, repeats: Any, dim: int | None = None, **_: Any
) -> Value:
    """Along the dimension of the samples each of them so many times; else by an index."""
    old, shape = low.shape_of(x), low.shape()
    if dim is None or not follows_batch(old[dim]):
        return moved(low)
    dim = dim % len(old)
    times = per_sample(shape[dim]) // per_sample(old[dim])
    split, spread = list(old), list(old)
    split.insert(dim + 1, 1)
    spread.insert(dim + 1, times)
    value = low.linear("expand", [low.reshape(x, split)], spread, shape=spread)
    return low.reshape(value, shape)


@handles(aten.permute)
def _permute(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    return low.permute(low.name_of(x), dims)


@handles(aten.transpose.int)
def _transpose(low: Lowering, x: Value, first: int, second: int) -> Value:
    x = low.name_of(x)
    dims = list(range(len(low.shape_of(x))))
    dims[first], dims[second] = dims[second], dims[first]
    return low.permute(x, dims)


@handles(aten.t, *packets("mT"))
def _t(low: Lowering, x: Value) -> Value:
    return _transpose(low, x, -1, -2)


@handles(aten.cat)
def _cat(low: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    shape = low.shape()
    return _cat_values(low, values, dim, shape)


def _cat_values(low: Lowering, values: Sequence[Value], dim: int, shape: Sequence[Size]) -> Value:
    channels = {low.channel_of(value) for value in values if isinstance(value, str)}
    channel = channels.pop() if len(channels) == 1 else None
    return low.linear("cat", list(values), shape, channel, dim=dim % len(shape) - len(shape))


@handles(aten.stack)
def _stack(low: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    shape = low.shape()
    dim = dim % len(shape)
    one = [1 if d == dim else s for d, s in enumerate(shape)]
    return _cat_values(low, [low.reshape(low.name_of(v), one) for v in values], dim, shape)


def _pieces(low: Lowering, x: Value, dim: int) -> list[Value]:
    """Slices of the sizes that the operation's results have."""
    rank = len(low.shape_of(x))
    start, pieces = 0, []
    for value in low.here.meta["val"]:
        size = low.sizes(value.shape)[dim % rank]
        if not isinstance(size, int):
            raise NotConvertible("a split through the batch; split the input before the model")
        pieces.append(low.slice(x, dim, start, start + size))
        start += size
    return pieces


@handles(*packets("split", "split_with_sizes", "chunk", "tensor_split"))
def _split(low: Lowering, x: Value, sizes: Any, dim: int = 0) -> Value:
    return _pieces(low, x, dim)


@handles(aten.unbind)
def _unbind(low: Lowering, x: Value, dim: int = 0) -> Value:
    shape = low.shape_of(x)
    dim = dim % len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("unbind over the batch; loop over the samples outside the model")
    return [_select(low, x, dim, i) for i in range(per_sample(shape[dim]))]


@handles(aten.slice)
def _slice(
    low: Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    x = low.name_of(x)
    first = start if isinstance(start, int) else 0
    if start is not None and not isinstance(start, int):
        raise NotConvertible("a slice whose start depends on the batch; use fixed positions")
    last = end if isinstance(end, int) else 2**63 - 1
    size = low.shape_of(x)[dim]
    if follows_batch(size) and low.shape()[dim] != size:
        raise NotConvertible("a slice cuts through the batch; cut the input before the model")
    return low.slice(x, dim, first, last, step)


@handles(aten.select.int)
def _select(low: Lowering, x: Value, dim: int, index: int) -> Value:
    x = low.name_of(x)
    shape = low.shape_of(x)
    dim = dim % len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("one sample of the batch is selected; select it outside the model")
    index = index % per_sample(shape[dim])
    piece = low.slice(x, dim, index, index + 1)
    return low.reshape(piece, shape[:dim] + shape[dim + 1 :])


def take(low: Lowering, x: Value, dim: int, index: Tensor) -> Value:
    shape = list(low.shape_of(x))
    if follows_batch(shape[dim]):
        raise NotConvertible("samples of the batch are reordered; do it outside the model")
    size = per_sample(shape[dim])
    shape[dim] = index.numel()
    return low.linear(
        "index",
        [x],
        shape,
        low.channel_of(x),
        {"index": index.reshape(-1) % size},
        dim=dim % len(shape) - len(shape),
    )


@handles(aten.index_select)
def _index_select(low: Lowering, x: Value, dim: int, index: Value) -> Value:
    if not isinstance(index, Tensor):
        raise NotConvertible("indices that depend on the input; only fixed ones can be converted")
    return take(low, x, dim, index)


@handles(aten.index.Tensor)
def _index(low: Lowering, x: Value, indices: Sequence[Value]) -> Value:
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if (
        isinstance(x, str)
        and x not in low.exact
        and any(i in low.exact for _, i in used if isinstance(i, str))
    ):
        return picked(low, x, indices)
    if len(used) != 1 or not isinstance(used[0][1], Tensor) or used[0][1].dtype == torch.bool:
        return moved(
            low,
            "indexing with several tensors, a mask, or one that depends on the input; use "
            "index_select with fixed indices, one dimension at a time",
        )
    dim, index = used[0]
    return low.reshape(take(low, x, dim, index), low.shape())


@handles(aten.gather)
def _gather(low: Lowering, x: Value, dim: int, index: Value, **_: Any) -> Value:
    """By indices that are the same for each sample, in whose dimension heads may lie too."""
    index = index.tensor if isinstance(index, BatchConstant) else index
    size, *inner = low.shape_of(x) or (1,)
    own = size == "1*batch" or not follows_batch(size) or any(map(follows_batch, inner))
    if own or not isinstance(index, Tensor) or len(index) != 1:
        return moved(low)
    places = torch.arange(math.prod(map(per_sample, inner))).view(1, *inner)  # type: ignore[arg-type]
    flat = low.reshape(x, (size, places.numel()))
    taken = take(low, flat, 1, places.gather(dim, index).flatten())
    return low.reshape(taken, low.shape())


@handles(aten.flip)
def _flip(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        size = low.shape_of(x)[dim]
        x = take(low, x, dim, torch.arange(per_sample(size) - 1, -1, -1))
    return x


@handles(aten.roll)
def _roll(low: Lowering, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        return moved(low, "roll over the flattened tensor; name its dimensions")
    for shift, dim in zip(shifts, dims, strict=True):
        x = take(low, x, dim, (torch.arange(per_sample(low.shape_of(x)[dim])) - shift))
    return x


@handles(aten.constant_pad_nd)
def _constant_pad(low: Lowering, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    return padded(low, x, pad, "constant", value)


@handles(aten.pad)
def padded(
    low: Lowering,
    x: Value,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    attributes = {"pad": list(pad), "mode": mode, "value": float(value or 0.0)}
    shape = list(low.shape_of(x))
    for i in range(len(pad) // 2):
        size = shape[-1 - i]
        if follows_batch(size):
            if pad[2 * i] or pad[2 * i + 1]:
                raise NotConvertible("padding of the batch; pad the input before the model")
        else:
            shape[-1 - i] = per_sample(size) + pad[2 * i] + pad[2 * i + 1]
    return low.linear("pad", [x], shape, low.channel_of(x), **attributes)


@handles(*packets("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"))
def _reflect(low: Lowering, x: Value, pad: Sequence[int]) -> Value:
    return padded(low, x, pad, "reflect")


@handles(*packets("replication_pad1d", "replication_pad2d", "replication_pad3d"))
def _replicate(low: Lowering, x: Value, pad: Sequence[int]) -> Value:
    return padded(low, x, pad, "replicate")
