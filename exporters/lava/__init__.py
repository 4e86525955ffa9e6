"""Lava netx files: writer, verifier, and a reader and runner that need NumPy alone."""

from typing import TYPE_CHECKING

from ...core.lazy import lazy

if TYPE_CHECKING:
    from .netx import Netx, embed, read_netx
    from .verifier import verify
    from .writer import LavaReport, write_netx
    from .writer import write_netx as write

__all__ = [
    "LavaReport",
    "Netx",
    "embed",
    "read_netx",
    "suffixes",
    "verify",
    "write",
    "write_netx",
]

suffixes = (".net",)
_HOME = {
    "LavaReport": "writer",
    "Netx": "netx",
    "embed": "netx",
    "read_netx": "netx",
    "verify": "verifier",
    "write": "writer:write_netx",
    "write_netx": "writer",
}
__getattr__, __dir__ = lazy(__name__, _HOME)
