"""What is computed of whole numbers alone, exactly and once a run, in NumPy (``docs/format.md``).

The rows are those of ``core/operations/statics.py``: values are int64, bool, or of the runner's
floating-point type, as the node's ``dtype`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...core.operations.statics import ARITHMETIC, COMPARISONS, LOGIC, MOVING, check_ids
from .kinds import Record
from .runner_functions import Array
from .runner_operations import apply

_UFUNCS: dict[str, Callable[..., Any]] = {
    **dict(zip(COMPARISONS, (np.equal, np.not_equal, np.less, np.less_equal, np.greater,
                             np.greater_equal), strict=True)),
    **dict(zip(LOGIC, (np.logical_and, np.logical_or, np.logical_xor), strict=True)),
    **dict(zip(ARITHMETIC, (np.add, np.subtract, np.multiply, np.divide, np.minimum, np.maximum),
               strict=True)),
}  # fmt: skip
_FORMS: dict[str, Callable[..., Any]] = {
    **_UFUNCS,
    "cast": lambda x: x,
    "not": np.logical_not,
    "bias": lambda mask: np.where(mask, 0.0, -np.inf),
    "where": lambda mask, x, y: np.where(mask.astype(bool), x, y),
    "argmax": lambda x, dim, keepdim: np.argmax(x, dim, keepdims=keepdim),
    "cumsum": lambda x, dim: np.cumsum(x, dim),
    "sum": lambda x, dim, keepdim: np.sum(x, tuple(dim), keepdims=keepdim),
    "any": lambda x, dim, keepdim: np.any(x, tuple(dim), keepdims=keepdim),
    "all": lambda x, dim, keepdim: np.all(x, tuple(dim), keepdims=keepdim),
}


def compute(node: Record, inputs: Sequence[Array], batch: int, floating: Any) -> Array:
    """The value of a static node; ``floating`` is the runner's type."""
    op, dtype = node["op"], {"integer": np.int64, "boolean": np.bool_}.get(node["dtype"], floating)
    if op == "embedding":
        (ids,), weight = inputs, node["tensors"]["weight"]
        if ids.size:
            check_ids(node.name, int(ids.max()), int(ids.min()), len(weight))
        return np.asarray(weight[ids], dtype)
    if op in MOVING:
        return np.asarray(apply(op, inputs, node["attributes"], node["tensors"], batch), dtype)
    if op in COMPARISONS and any(x.dtype.kind == "f" for x in inputs):
        inputs = [x.astype(floating) for x in inputs]
    if op in ARITHMETIC:
        inputs = [x.astype(dtype) for x in inputs]
    return np.asarray(_FORMS[op](*inputs, **node["attributes"]), dtype)
