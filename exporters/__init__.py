"""Writers and readers of files; the runners among them load no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .description import load, save
    from .formats import export
    from .lava import LavaReport, write_netx
    from .netx_runner import Netx, read_netx
    from .nir import NirReport, read_nir, to_graph, write_nir
    from .nir_runner import NirRunner
    from .runner import Runner
    from .verification import Certificate, verify

_HOME = {
    "Certificate": "verification",
    "LavaReport": "lava",
    "Netx": "netx_runner",
    "NirReport": "nir",
    "NirRunner": "nir_runner",
    "Runner": "runner",
    "export": "formats",
    "load": "description",
    "read_netx": "netx_runner",
    "read_nir": "nir",
    "save": "description",
    "to_graph": "nir",
    "verify": "verification",
    "write_netx": "lava",
    "write_nir": "nir",
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
    if name == "hdf5":  # seal
        return import_module(".hdf5", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
