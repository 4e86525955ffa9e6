"""NIR files: writer, reader, and a runner that needs NumPy alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .graph import NirReport
    from .reader import read_graph
    from .runner import NirRunner
    from .writer import read_nir, to_graph, write_nir

_HOME = {
    "NirReport": "graph",
    "NirRunner": "runner",
    "read_graph": "reader",
    "read_nir": "writer",
    "to_graph": "writer",
    "write_nir": "writer",
}

__all__ = [
    "NirReport",
    "NirRunner",
    "read_graph",
    "read_nir",
    "to_graph",
    "write_nir",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
