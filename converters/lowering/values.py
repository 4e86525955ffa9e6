"""Values and sizes while a graph is lowered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...core.operations import Size, follows_batch
from ..constants import BatchConstant, Masked
from ..rules import NotConvertible


class Name(str):
    """A node's name, of another type than the strings among an operation's arguments."""


# Name: a node's;  Masked: a node's with -inf in places;  Tensor, BatchConstant: a constant;
# list: of values; else a Python number
Value = Any


def spread(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def as_channels(tensor: Tensor, rank: int) -> Tensor:
    """[C] to [C, 1, ...], which broadcasts against [B, C, ...] of that rank."""
    return tensor.reshape(-1, *[1] * (rank - 2))


def fixed_size(size: Size) -> int:
    if not isinstance(size, int):
        raise NotConvertible(f"a dimension of {size} samples where channels are expected")
    return size


def per_sample(size: Size) -> int:
    return size if isinstance(size, int) else int(size.split("*")[0])


def broadcast(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...]:
    """The shape two shapes broadcast to; a size that follows the batch meets 1 or itself."""
    rank = max(len(a), len(b))
    a = (1,) * (rank - len(a)) + tuple(a)
    b = (1,) * (rank - len(b)) + tuple(b)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def head_channel(shape: Sequence[Size]) -> int:
    """The channel of [B, heads, rows, columns]: the heads; of other products the columns."""
    return -3 if len(shape) > 3 and not follows_batch(shape[-3]) and shape[-3] != 1 else -1


def reduced(dims: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple((d % rank) - rank for d in (dims or range(rank)))


def flat(tree: Any) -> Iterator[Any]:
    """What lists, tuples and dicts hold."""
    if isinstance(tree, (list, tuple, Mapping)):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from flat(value)
    else:
        yield tree


def holds(kind: Any, tree: Any) -> bool:
    return any(isinstance(value, kind) for value in flat(tree))


def has_node(tree: Any) -> bool:
    return holds((Name, Masked), tree)


def one_for_all_samples(value: Any) -> Any:
    """A constant of every sample as a tensor that broadcasts to them."""
    tensor = value.tensor if isinstance(value, BatchConstant) else None
    return value if tensor is None else tensor


def compressed(value: Tensor) -> Tensor:
    """Size 1 along every dimension in which the values do not differ."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            first = value.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(value), value):
                value = first
    return value.clone()


def map_structure(structure: Any, function: Callable[[fx.Node], str]) -> Any:
    if isinstance(structure, fx.Node):
        return function(structure)
    if isinstance(structure, dict):
        return {k: map_structure(v, function) for k, v in structure.items()}
    return type(structure)(map_structure(v, function) for v in structure)
