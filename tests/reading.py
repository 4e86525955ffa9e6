"""NIR files in the tools that read them, without this package: one step of an input [B, ...].

    python tests/reading.py READER FOLDER      FOLDER/*.nir with *.npy to *.out.npy, or *.error

Run as a script in an environment of the reader's own where it needs one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]


def norse(path: str) -> Run:
    import nir
    import norse.torch

    model = norse.torch.from_nir(nir.read(path), dt=1.0)
    return lambda x: model(x)[0]


def spikingjelly(path: str) -> Run:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    model = import_from_nir(path, dt=1.0, step_mode="s")
    return lambda x: model(x)[0]


def snntorch(path: str) -> Run:
    import nir
    from snntorch.import_nir import import_from_nir

    model = import_from_nir(nir.read(path))
    return lambda x: model(x)[0]


def sinabs(path: str) -> Run:
    import nir
    import sinabs.activation
    import sinabs.layers
    import sinabs.nir

    def run(x: Any) -> Any:
        model = sinabs.nir.from_nir(nir.read(path), batch_size=len(x))
        for layer in model.modules():
            if isinstance(layer, sinabs.layers.StatefulLayer):
                layer.spike_fn, layer.min_v_mem = sinabs.activation.SingleSpike, None
        return model(x)

    return run


READ: dict[str, Callable[[str], Run]] = {
    each.__name__: each for each in (norse, spikingjelly, snntorch, sinabs)
}


def outputs(reader: str, path: str, x: np.ndarray) -> np.ndarray:
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        y = READ[reader](path)(torch.from_numpy(x))
    return np.asarray((y[0] if isinstance(y, tuple) else y).numpy())


def main(reader: str, folder: str) -> None:
    for path in sorted(Path(folder).glob("*.nir")):
        try:
            y = outputs(reader, str(path), np.load(path.with_suffix(".npy")))
        except Exception as error:  # of whatever kind: it is the result
            path.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        else:
            np.save(path.with_suffix(".out.npy"), y)


if __name__ == "__main__":
    main(*sys.argv[1:])
