"""``--version``: this package, what runs it, and whether its kernels are compiled."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from ..core.registry import SIMULATORS


class Version(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(text())
        parser.exit()


def text() -> str:
    """A line each for the package, Python, torch, simulators that are installed, and kernels."""
    from .. import __version__
    from ..neurons.choice import backends  # torch, which --help does without

    simulators = [name for name in SIMULATORS.names() if _version(name)]
    rows = {
        "spikingjelly-signgd": __version__,
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "simulators": ", ".join(f"{name} {_version(name)}" for name in simulators)
        or "none installed",
        "kernels": backends()["cpu"] or "compiled",
    }
    return "\n".join(f"{name:<21}{value}" for name, value in rows.items())


def _version(package: str) -> str:
    from importlib import metadata  # which takes longer than all of this package

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
