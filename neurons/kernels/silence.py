"""The steps of ``silence.h``: a network whose values are kept, each step touching what changed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from ...errors import BackendUnavailable
from .build import Function
from .cpu import library, library_for

KINDS = ("settle", "conv", "move", "sum", "affine", "add", "neuron", "largest", "norm", "hop")

_index = ctypes.c_longlong
_pointer = ctypes.c_void_p
_int = ctypes.c_int


class Kept(ctypes.Structure):
    _fields_ = [
        *[(name, _pointer) for name in ("data", "places", "before")],
        *[(name, _index) for name in ("size", "changed")],
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *[(name, _pointer) for name in ("inputs", "out", "fresh", "sums", "marks", "columns")],
        *[(name, _pointer) for name in ("weight", "shift", "starts", "ends", "sources", "factors")],
        *[(name, _pointer) for name in ("range", "arguments", "arguments_of_some")],
        *[(name, _pointer) for name in ("some", "far", "near")],
        *[(name, _index) for name in ("limit", "work")],
        *[(name, ctypes.c_float) for name in ("first", "second")],
        ("epsilon", ctypes.c_double),
        *[(name, _int) for name in ("kind", "count", "read", "awake")],
        *[(name, _int) for name in ("channels", "outputs", "groups")],
        *[(name, _int) for name in ("height", "width", "out_height", "out_width")],
        *[(name, _int * 2) for name in ("kernel", "stride", "padding", "dilation")],
    ]


Run = Callable[[ctypes.Array[Step], int, int, int], int]


@cache
def runner() -> Run:
    """``run(steps, first, count, settle)``: runs steps from ``first`` on, of which torch has
    computed that one if ``settle``; returns the next that is for torch, or ``count``.

    Raises BackendUnavailable.
    """
    face = library().face
    size = getattr(face, "silence_size", None)  # an earlier version's library has none
    if size is not None:
        size.restype = ctypes.c_ulong
    if size is None or size() != ctypes.sizeof(Step):
        raise BackendUnavailable(
            "the library of CPU kernels was built from other sources than this package's. Build "
            "it again with pip install."
        )
    run = face.silence_run
    run.restype, run.argtypes = _index, (_pointer, _index, _index, _int)
    return run  # type: ignore[no-any-return]


def range_of(function: Function) -> int:
    """The address of the kernel of neurons with this function, for a part of them. Raises
    BackendUnavailable."""
    found = library_for(function)
    found.face.kernel_range.restype = _pointer
    return found.face.kernel_range(found.kernels[function.key])  # type: ignore[no-any-return]
