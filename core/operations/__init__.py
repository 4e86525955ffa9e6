"""The linear operations of a network description: one row for each, which a caller can add to.

``rows`` says what an operation is and loads no torch; ``forms`` computes it by torch. The NumPy
forms, an independent witness, are ``exporters/hdf5/runner_operations.py``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .rows import LINEAR, Operation, moves

if TYPE_CHECKING:
    from ...neurons.base import Size, follows_batch, resolve
    from .forms import apply, apply_linear, apply_over_time, connections

__all__ = [
    "LINEAR",
    "Operation",
    "Size",
    "apply",
    "apply_linear",
    "apply_over_time",
    "connections",
    "follows_batch",
    "moves",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".forms", __name__), name)
