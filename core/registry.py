"""Extension points: what another package can add without changing a file here.

A simulator or a file format is an entry point of the package that provides it, or an entry of
``SIMULATORS`` or ``FORMATS``::

    [project.entry-points."spikingjelly_signgd.simulators"]
    mine = "my_package.simulator"

A *simulator* is a module, or any object, with ``build(network, **options) -> NetworkModule``. A
*format* has ``suffixes`` and ``write(network, path, **options)`` and may have ``read(path,
**options)``, ``verify(request)`` and ``embed(data, certificate)`` (``exporters/formats.py``).

Kinds of neurons (``NODES``), nonlinearities (``NONLINEARITIES``), linear operations (``LINEAR``),
energy tables (``TABLES``) and metrics (``METRICS``) are dicts, which an import extends. A file or a
command may name such a row before its package was imported, so modules named under
``spikingjelly_signgd.extensions`` are imported when a row is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BackendUnavailable
from ..names import near, spelled

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

K = TypeVar("K")
V = TypeVar("V")


class Registry(dict[str, Any]):
    """Objects by name, or ``"package.module"`` texts that are imported on first use.

    Entries of the dict take precedence over entry points of ``group``. Those of this package are
    entries, too, since the metadata of an editable install may be outdated.
    """

    def __init__(self, group: str, what: str) -> None:
        super().__init__()
        self.group, self.what = group, what

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self, *_entry_points(self.group)]))

    def find(self, name: str) -> Any:
        """Raises BackendUnavailable, listing the known names, for an unknown one."""
        name = spelled(name, self.names())
        if name in self:
            found = self[name]
            return import_module(found) if isinstance(found, str) else found
        if name not in _entry_points(self.group):
            raise BackendUnavailable(
                f"no {self.what} is called {name!r}; known: {', '.join(self.names())}."
                f"{near(name, self.names())} Install the package that provides it through an "
                f"entry point of the group '{self.group}'."
            )
        return _loaded(_entry_points(self.group)[name], self.what)


def look_up(table: Mapping[K, V], key: K) -> V | None:
    """``table[key]``; where it is missing, extensions, which may add it, are imported first."""
    if key not in table:
        import_extensions()
    return table.get(key)


@cache
def import_extensions() -> None:
    for point in _entry_points("spikingjelly_signgd.extensions").values():
        _loaded(point, "extension")


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # which takes longer than all of this package

    return {point.name: point for point in entry_points(group=group)}


def _loaded(point: EntryPoint, what: str) -> Any:
    try:
        return point.load()
    except BackendUnavailable:
        raise
    except Exception as error:  # whatever the package raises on import
        package = point.dist.name if point.dist else point.value
        raise BackendUnavailable(
            f"the {what} {point.name!r} of the package '{package}' cannot be loaded: "
            f"{type(error).__name__}: {error}. Fix the package, or uninstall it."
        ) from error


SIMULATORS = Registry("spikingjelly_signgd.simulators", "simulator")
FORMATS = Registry("spikingjelly_signgd.formats", "file format")
