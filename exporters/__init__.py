"""Writers and readers of files; the runners among them load no torch."""

from typing import TYPE_CHECKING

from ..core.lazy import lazy

if TYPE_CHECKING:
    from . import hdf5, lava, nir
    from .formats import export, load
    from .hdf5.description import save
    from .hdf5.runner import Runner
    from .lava import LavaReport, write_netx
    from .lava.netx import Netx, read_netx
    from .nir import NirReport, read_nir, to_graph, write_nir
    from .nir.runner import NirRunner
    from .verification import Certificate, verify

__all__ = [
    "Certificate",
    "LavaReport",
    "Netx",
    "NirReport",
    "NirRunner",
    "Runner",
    "export",
    "hdf5",
    "lava",
    "load",
    "nir",
    "read_netx",
    "read_nir",
    "save",
    "to_graph",
    "verify",
    "write_netx",
    "write_nir",
]

_HOME = {
    "Certificate": "verification",
    "LavaReport": "lava.writer",
    "Netx": "lava.netx",
    "NirReport": "nir.writer",
    "NirRunner": "nir.runner",
    "Runner": "hdf5.runner",
    "export": "formats",
    "hdf5": "",
    "lava": "",
    "load": "formats",
    "nir": "",
    "read_netx": "lava.netx",
    "read_nir": "nir.writer",
    "save": "hdf5.description",
    "to_graph": "nir.writer",
    "verify": "verification",
    "write_netx": "lava.writer",
    "write_nir": "nir.writer",
}
__getattr__, __dir__ = lazy(__name__, _HOME)
