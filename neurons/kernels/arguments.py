"""The arguments of the kernels, laid out as in the C sources, made from tensors.

A kernel numbers the neurons of one step in the order in which its outputs lie in memory. Whatever
it reads is a tensor [T, *shape], or one that is constant in time, of any strides.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError

DIMENSIONS = 6
ARGUMENTS = 4
PARAMETERS = 8
STEPS = 256  # of one launch; longer sequences take several
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
OUTPUTS = ("decoded", "signed", "sigma", "fires")

_index = ctypes.c_longlong
_pointer = ctypes.c_void_p
_int = ctypes.c_int
_float = ctypes.c_float


class Space(ctypes.Structure):
    _fields_ = [("neurons", _index), ("shape", _index * DIMENSIONS), ("dimensions", _int)]


class Operand(ctypes.Structure):
    _fields_ = [
        ("data", _pointer),
        ("time_stride", _index),
        ("strides", _index * DIMENSIONS),
        ("linear", _int),
    ]


def _all(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class SignGD(ctypes.Structure):
    _fields_ = [
        ("space", Space),
        *_all(Operand * ARGUMENTS, "x x_start"),
        ("x_last", _pointer * ARGUMENTS),
        *_all(Operand, "v scale zones"),
        *_all(_pointer, "y v_seq spikes v_last"),
        *_all(_int, "steps fires_at_tie signs sparse output input_type output_type far"),
        ("zone", _float),
        ("parameters", _float * PARAMETERS),
        ("eta", _float * STEPS),
    ]


class Group(ctypes.Structure):
    _fields_ = [
        ("space", Space),
        *_all(Operand, "x v sent thetas"),
        *_all(_pointer, "y h_seq v_seq v_last sent_last"),
        *_all(_int, "steps counts input_type output_type far"),
        *_all(_float, "theta members"),
    ]


class GroupGradient(ctypes.Structure):
    _fields_ = [
        ("space", Space),
        *_all(Operand, "h y v_last"),
        *_all(_pointer, "x v"),
        *_all(_int, "steps surrogate detach_reset input_type output_type far"),
        *_all(_float, "theta members alpha"),
    ]


class TrackingGradient(ctypes.Structure):
    _fields_ = [
        ("space", Space),
        *_all(Operand, "target v_seq v scale zones y v_last"),
        *_all(_pointer, "x v_start"),
        *_all(_int, "steps surrogate sparse signed_output input_type"),
        *_all(_float, "zone alpha"),
        ("eta", _float * STEPS),
    ]


class Sum(ctypes.Structure):
    _fields_ = [
        ("space", Space),
        *_all(Operand, "x start"),
        ("y", _pointer),
        *_all(_int, "steps input_type"),
    ]


def numbered(name: str, count: int) -> list[str]:
    """The names that ``place`` knows the operands of a list by."""
    return [f"{name}.{k}" for k in range(count)]


@cache
def place(structure: type[ctypes.Structure], name: str) -> int:
    """Where a field, or "x.2", the third of a list, has its address: bytes from the beginning.

    An operand begins with it. 0 where there is no such field.
    """
    field, _, k = name.partition(".")
    found: Any = getattr(structure, field, None)
    if found is None:
        return 0
    of = found.size // ARGUMENTS if k else 0
    return int(found.offset) + of * int(k or 0)


def describe(like: Tensor, tensors: Sequence[tuple[Tensor, bool]]) -> tuple[Space, list[Operand]]:
    """The neurons of a step, in the order of ``like`` [*shape], and where each tensor has them.

    ``like`` is one step of an output, dense in memory. A tensor comes with whether its first
    dimension is time; the others broadcast to the shape. Dimensions that all step through alike are
    merged. The tensors must outlive the operands.
    """
    shape = tuple(like.shape)
    steps = [x.stride(0) if in_time else 0 for x, in_time in tensors]
    strides = [_broadcast_strides(x, in_time, shape) for x, in_time in tensors]
    order = like.stride()
    if all(s == order for s in strides):
        rows = [(like.numel(), *[1] * (1 + len(strides)))]
    else:
        rows = _merged(shape, order, strides)
    if len(rows) > DIMENSIONS:
        copies = [(_in_order_of(like, x, in_time), in_time) for x, in_time in tensors]
        space, operands = describe(like, copies)
        space.keep = copies  # type: ignore[attr-defined]
        return space, operands
    space = Space(like.numel(), tuple(row[0] for row in rows), len(rows))
    operands = []
    for k, ((x, _), step) in enumerate(zip(tensors, steps, strict=True)):
        along = tuple(row[2 + k] for row in rows)
        linear = along == tuple(row[1] for row in rows)
        operands.append(Operand(x.data_ptr(), step, along, linear))
    return space, operands


def _broadcast_strides(x: Tensor, in_time: bool, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes, strides = (x.shape[1:], x.stride()[1:]) if in_time else (x.shape, x.stride())
    if sizes == shape:
        return strides
    missing = len(shape) - len(sizes)
    if missing < 0 or any(a not in (1, b) for a, b in zip(sizes, shape[missing:], strict=True)):
        raise InputError(
            f"a tensor of {list(sizes)} for each step does not broadcast to neurons of "
            f"{list(shape)}. Reset the neuron before feeding a batch of another shape."
        )
    alone = (0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
    return (*[0] * missing, *alone)


def _merged(
    shape: tuple[int, ...], order: tuple[int, ...], strides: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """For each dimension left, from the outermost: its size, its stride in ``order``, in each."""
    rows: list[tuple[int, ...]] = []
    for d in sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -order[d]):
        row = (shape[d], order[d], *(s[d] for s in strides))
        if rows and all(a == b * shape[d] for a, b in zip(rows[-1][1:], row[1:], strict=True)):
            rows[-1] = (rows[-1][0] * shape[d], *row[1:])
        else:
            rows.append(row)
    return rows or [(1, 1, *[1] * len(strides))]


def _in_order_of(like: Tensor, x: Tensor, in_time: bool) -> Tensor:
    if not in_time:
        return torch.empty_like(like, dtype=x.dtype).copy_(x)
    ones = [1] * (1 + like.dim() - x.dim())
    size, strides = (x.shape[0], *like.shape), (like.numel(), *like.stride())
    copy = torch.empty_strided(size, strides, dtype=x.dtype, device=x.device)
    return copy.copy_(x.view(x.shape[0], *ones, *x.shape[1:]))
