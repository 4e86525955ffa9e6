"""Runs in the environment that has Lava; ``lava_remote`` starts it, and a user may.

    python -m spikingjelly_signgd.plugins.lava.worker netx FILE.net GIVEN.npz FOUND.npz
    python -m spikingjelly_signgd.plugins.lava.worker signgd FILE.h5 GIVEN.npz FOUND.npz

GIVEN.npz holds ``spikes`` [B, channels, T], or ``x`` [B, ...] and ``time_steps``, of a clip
``x`` [F, B, ...] and ``keep_state`` 1. FOUND.npz is
written whole or not at all: ``layers``, ``spikes_0`` ... of the layers with neurons, ``membrane``
or ``outputs``, and ``versions``. Exit status 0, or 1 with the error on the way out.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def work(what: str, path: Path, source: Path) -> dict[str, Any]:
    from .. import lava
    from . import environment

    environment.end_with_workers()
    with np.load(source, allow_pickle=False) as arrays:
        given = dict(arrays)
    if what == "netx":
        run = lava.run_netx(path, given["spikes"])
        return _numbered(run.spikes) | {"membrane": run.membrane}
    import torch

    from ...exporters import load

    network = lava.SignGDNetwork(load(path))
    keep = bool(given.get("keep_state", False))
    x, steps = torch.from_numpy(given["x"]), int(given["time_steps"])
    decoded = network.run(x, steps, sequence=keep, keep_state=keep)
    return _numbered(decoded.spikes) | {"outputs": decoded.outputs}


def _numbered(spikes: tuple[Any, ...]) -> dict[str, Any]:
    names = ("lava-nc", "lava-dl", "numpy", "torch")
    versions = np.array([f"{name} {version(name)}" for name in names])
    numbered = {f"spikes_{i}": s for i, s in enumerate(spikes)}
    return numbered | {"layers": len(spikes), "versions": versions}


def main() -> None:
    if len(sys.argv) != 5 or sys.argv[1] not in ("netx", "signgd"):
        sys.exit(__doc__)
    path, source, target = map(Path, sys.argv[2:])
    if os.getpgrp() != os.getpid():
        os.setsid()  # what ends on an error of a worker is this group, and nothing else
    try:
        found = work(sys.argv[1], path, source)
        part = target.with_name(f".{target.name}.{os.getpid()}.npz")
        np.savez(part, **found)
        os.replace(part, target)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an ordinary exit would wait for Lava's processes


if __name__ == "__main__":
    main()
