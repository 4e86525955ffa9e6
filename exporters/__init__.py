"""Writers and readers of files; the runners among them load no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .formats import export
    from .hdf5.description import load, save
    from .hdf5.runner import Runner
    from .lava import LavaReport, write_netx
    from .lava.netx import Netx, read_netx
    from .nir import NirReport, read_nir, to_graph, write_nir
    from .nir.runner import NirRunner
    from .verification import Certificate, verify

_HOME = {
    "Certificate": "verification",
    "LavaReport": "lava.writer",
    "Netx": "lava.netx",
    "NirReport": "nir.writer",
    "NirRunner": "nir.runner",
    "Runner": "hdf5.runner",
    "export": "formats",
    "load": "hdf5.description",
    "read_netx": "lava.netx",
    "read_nir": "nir.writer",
    "save": "hdf5.description",
    "to_graph": "nir.writer",
    "verify": "verification",
    "write_netx": "lava.writer",
    "write_nir": "nir.writer",
}

__all__ = [
    "Certificate",
    "LavaReport",
    "Netx",
    "NirReport",
    "NirRunner",
    "Runner",
    "export",
    "load",
    "read_netx",
    "read_nir",
    "save",
    "to_graph",
    "verify",
    "write_netx",
    "write_nir",
]


def __getattr__(name: str) -> Any:
    if name in ("hdf5", "lava", "nir"):
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
