"""Lava netx files: writer, and a reader and runner that need NumPy alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .netx import Netx, read_netx
    from .writer import LavaReport, write_netx

_HOME = {
    "LavaReport": "writer",
    "Netx": "netx",
    "read_netx": "netx",
    "write_netx": "writer",
}

__all__ = [
    "LavaReport",
    "Netx",
    "read_netx",
    "write_netx",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
