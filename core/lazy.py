"""Packages whose names are imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, home: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package. ``home``: name -> the module it comes from,
    ``"module:name"`` where it is called otherwise there, or "" for a module itself."""

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not home[name]:
            return import_module(f".{name}", package)
        module, _, other = home[name].partition(":")
        return getattr(import_module(f".{module}", package), other or name)

    return get, lambda: sorted(home)
