"""What each linear operation is: attributes, tensors, inputs, and what it does to values.

An operation is affine in all its inputs together. Its linear part, which weighted spikes and
increments pass through, is what is left without the tensor "bias" and with 0 for the attribute
"value". Attributes are JSON-able; a size that follows the batch is written ``"3*batch"`` and
resolved when the operation runs, so the batch may lie in any dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checks import (
    Check,
    counts,
    each,
    either,
    flag,
    integer,
    integers,
    natural,
    naturals,
    number,
    optional,
    size,
    sizes,
    text,
)

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """A row of ``LINEAR``. To add an operation is to add a row::

        LINEAR["scaled"] = Operation(tensors=("scale",), run=scaled, numpy=scaled_by_numpy)

    ``run(inputs, attributes, tensors, batch, time)`` computes it by torch; with ``time`` 1 every
    input leads with a time axis [K, ...]. ``numpy(inputs, attributes, tensors, batch)`` is the same
    for one step, for files and the NumPy runner. ``connections(inputs, attributes, tensors,
    batch)`` counts, for inputs [T, ...] that lead with time, how much arrives at each output where
    every connection is one; by default the linear part with 1 for every weight that is not 0.
    """

    attributes: Mapping[str, Check] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # tensors that may be absent
    inputs: int | None = 1  # None: one or more
    weighted: bool = False  # every output is a sum over weights: spikes meet synapses
    # every output is one of the inputs' values, as it is, or the value of a border
    moves: bool | Callable[[Attributes], bool] = False
    run: Callable[..., Any] | None = None
    numpy: Callable[..., Any] | None = None
    connections: Callable[..., Any] | None = None


def moves(op: str, attributes: Attributes) -> bool:
    """Whether every value of the result is one of the inputs' values, or that of a border."""
    row = LINEAR[op]
    return row.moves(attributes) if callable(row.moves) else row.moves


_CONV: dict[str, Check] = {
    "stride": counts,
    "padding": either("same", "valid", naturals),
    "dilation": counts,
    "groups": natural,
}
_CONV_TRANSPOSE: dict[str, Check] = {
    "stride": counts,
    "padding": naturals,
    "output_padding": naturals,
    "groups": natural,
    "dilation": counts,
}
_POOL: dict[str, Check] = {
    "kernel_size": counts,
    "stride": counts,
    "padding": naturals,
    "ceil_mode": flag,
    "count_include_pad": flag,
    "divisor_override": optional(integer),
}
_SLICE: dict[str, Check] = {
    "dim": integer,
    "start": size,
    "stop": size,
    "step": lambda v: natural(v) and v > 0,
}
_PAD: dict[str, Check] = {
    "pad": integers,
    "mode": either("constant", "reflect", "replicate", "circular"),
    "value": number,
}
_UPSAMPLE: dict[str, Check] = {
    "size": counts,
    "mode": either("nearest", "linear", "bilinear", "trilinear"),
}
_REDUCE: dict[str, Check] = {"dim": integers, "keepdim": flag}
_SHAPE: dict[str, Check] = {"shape": sizes}
_DIM: dict[str, Check] = {"dim": integer}


def _weighted(bias: bool = False, **attributes: Check) -> Operation:
    return Operation(attributes, ("weight",), ("bias",) if bias else (), weighted=True)


def _two_numbers(value: Any) -> bool:
    return each(number)(value) and len(value) == 2


LINEAR: dict[str, Operation] = {
    "conv": _weighted(True, **_CONV),
    "conv_transpose": _weighted(True, **_CONV_TRANSPOSE),
    "linear": _weighted(True),
    "matmul": _weighted(side=either("left", "right")),
    "einsum": _weighted(equation=text, position=either(0, 1)),
    "affine": Operation(_SHAPE, (), ("weight", "bias")),
    "add": Operation({"coefficients": _two_numbers}, inputs=2),
    "avg_pool": Operation(_POOL),
    "adaptive_avg_pool": Operation({"output_size": counts}),
    "mean": Operation(_REDUCE),
    "sum": Operation(_REDUCE),
    "reshape": Operation(_SHAPE, moves=True),
    "expand": Operation(_SHAPE, moves=True),
    "permute": Operation({"dims": integers}, moves=True),
    "cat": Operation(_DIM, inputs=None, moves=True),
    "slice": Operation(_SLICE, moves=True),
    "index": Operation(_DIM, ("index",), moves=True),
    "pad": Operation(_PAD, moves=True),
    "upsample": Operation(_UPSAMPLE, moves=lambda a: a["mode"] == "nearest"),
}
