"""The HDF5 description: writer, reader, and a runner that needs NumPy alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .definition import run_definition
    from .description import load, save
    from .layout import seal
    from .runner import Runner

_HOME = {
    "Runner": "runner",
    "load": "description",
    "run_definition": "definition",
    "save": "description",
    "seal": "layout",
}

__all__ = [
    "Runner",
    "load",
    "run_definition",
    "save",
    "seal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
