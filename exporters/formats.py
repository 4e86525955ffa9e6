"""``export``: one network, the formats it can be written to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.network import SpikingNetwork
from ..errors import FormatError

SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".nir": "nir", ".net": "lava"}


def export(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    format: str | None = None,
    **options: Any,
) -> Any:
    """Write ``network`` for another tool; returns the writer's report, None for "hdf5".

    ``format`` is "hdf5" (``save``), "nir" (``write_nir``) or "lava" (``write_netx``), by default
    what the suffix .h5, .nir or .net says; ``options`` are the writer's. Raises FormatError for
    what the format cannot express, before anything is written.
    """
    format = SUFFIXES.get(Path(path).suffix.lower(), "") if format is None else format
    if format not in WRITERS:
        raise FormatError(
            f"cannot export '{path}': format is one of {', '.join(WRITERS)}, not {format!r}. Name "
            f"one, or end the file in {', '.join(SUFFIXES)}."
        )
    return WRITERS[format](network, path, **options)


def _hdf5(network: SpikingNetwork, path: Any, **options: Any) -> None:
    from .hdf5.description import save

    save(network, path, **options)


def _nir(network: SpikingNetwork, path: Any, **options: Any) -> Any:
    from .nir import write_nir

    return write_nir(network, path, **options)


def _lava(network: SpikingNetwork, path: Any, **options: Any) -> Any:
    from .lava import write_netx

    return write_netx(network, path, **options)


WRITERS: dict[str, Callable[..., Any]] = {"hdf5": _hdf5, "nir": _nir, "lava": _lava}
