"""Runs netx files and signGD networks in a Python environment with Lava, from one without it.

Lava's processes may hang or stay behind after an error and keep files locked. So a run is a process
group of its own in a folder of its own, on a copy of the file: an error in any worker ends it, a
timeout ends it in any case, and the group is cleared away. POSIX only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendUnavailable, SignGDError
from .netx import read_netx

PACKAGE = Path(__file__).parents[2]
VARIABLE = "LAVA_PYTHON"
WORKER = f"{__package__.partition('.')[0]}.plugins.lava.worker"  # which needs Lava itself


class LavaError(SignGDError, RuntimeError):
    """lava-dl's reader refused a file, or Lava failed or hung while running it."""


def lava_python(python: str | os.PathLike[str] | None = None) -> str:
    """The interpreter that has Lava: ``python``, else the environment variable LAVA_PYTHON."""
    asked = python or os.environ.get(VARIABLE)
    found = shutil.which(asked) if asked else None
    if found is None:
        where = f"there is no interpreter {asked}" if asked else f"{VARIABLE} is not set"
        raise BackendUnavailable(
            f"Lava runs in an environment of its own, but {where}; make one with "
            f"tests/lava/install.sh FOLDER and set {VARIABLE}=FOLDER/bin/python."
        )
    return os.path.abspath(found)


def run_netx(
    path: str | os.PathLike[str],
    spikes: NDArray[Any],
    *,
    python: str | os.PathLike[str] | None = None,
    timeout: float = 600.0,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Input spikes [B, channels, T] to each layer's spikes [B, out, T] and what the read-out added.

    What ``plugins.lava.run_netx`` returns, computed there. Raises LavaError with the end of Lava's
    output, BackendUnavailable without an interpreter.
    """
    found = run_remotely("netx", path, {"spikes": np.asarray(spikes)}, python, timeout)
    return _layers(found), found["membrane"]


@dataclass(frozen=True)
class NetxCheck:
    """Lava against the integer runner, cell by cell: (sample, neuron, step).

    ``cells`` and ``wrong`` are of each layer with neurons, ``readouts_wrong`` counts read-outs that
    differ. ``sha256`` is the file's.
    """

    path: str
    profile: str
    samples: int
    time_steps: int
    layers: tuple[str, ...]
    cells: tuple[int, ...]
    wrong: tuple[int, ...]
    spikes: tuple[int, ...]
    readouts_wrong: int
    accuracy: float | None  # of Lava's read-outs
    sha256: str
    versions: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not any(self.wrong) and not self.readouts_wrong

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"'{name}': {wrong} of {cells} cells differ, {spikes} spikes"
            for name, wrong, cells, spikes in zip(
                self.layers, self.wrong, self.cells, self.spikes, strict=True
            )
        ]
        lines.append(f"{self.readouts_wrong} of {self.samples} read-outs differ")
        lines.append(f"{', '.join(self.versions)}: {'equal' if self.ok else 'NOT equal'}")
        return "\n".join(lines)


def verify_netx(
    path: str | os.PathLike[str],
    x: NDArray[Any],
    labels: NDArray[Any] | None = None,
    *,
    python: str | os.PathLike[str] | None = None,
    timeout: float = 600.0,
) -> NetxCheck:
    """Inputs x [B, ...] through the file in Lava and in the integer runner, compared.

    Raises FormatError, LavaError, BackendUnavailable.
    """
    netx = read_netx(path)
    spikes = netx.encode(x)
    expected = netx.run_spikes(spikes)
    found = run_remotely("netx", path, {"spikes": spikes}, python, timeout)
    membrane = found["membrane"]
    pairs = list(zip(_layers(found), expected.spikes, strict=True))
    accuracy = None
    if labels is not None:
        accuracy = float((netx.outputs(membrane).argmax(1) == np.asarray(labels)).mean())
    return NetxCheck(
        str(path),
        netx.profile,
        len(spikes),
        netx.time_steps,
        tuple(layer.name for layer in netx.layers[:-1]),
        tuple(have.size for have, _ in pairs),
        tuple(int((have != want).sum()) for have, want in pairs),
        tuple(int(have.sum()) for have, _ in pairs),
        int((membrane != expected.membrane).any(1).sum()),
        accuracy,
        hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        tuple(map(str, found["versions"])),
    )


def run_signgd(
    path: str | os.PathLike[str],
    x: NDArray[Any],
    *,
    time_steps: int,
    keep_state: bool = False,
    python: str | os.PathLike[str] | None = None,
    timeout: float = 600.0,
) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """A saved signGD network on x [B, ...]: spikes [B, N, T] of each layer, outputs [B, out, T].

    Spikes are as the NumPy runner's (``hdf5.runner.Result``). With ``keep_state`` x is a clip
    [F, B, ...] of ``time_steps`` steps a frame, and T are the steps of all frames.
    """
    given = {"x": np.asarray(x), "time_steps": np.array(time_steps)}
    if keep_state:
        given["keep_state"] = np.array(1)
    found = run_remotely("signgd", path, given, python, timeout)
    return _layers(found), found["outputs"]


def _layers(found: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [found[f"spikes_{i}"] for i in range(int(found["layers"]))]


def run_remotely(
    what: str,
    path: str | os.PathLike[str],
    given: dict[str, NDArray[Any]],
    python: str | os.PathLike[str] | None,
    timeout: float,
) -> dict[str, NDArray[Any]]:
    """The arrays that ``plugins.lava.worker`` makes of a file and of the arrays given."""
    interpreter = lava_python(python)
    with tempfile.TemporaryDirectory(prefix="lava_") as name:
        folder = Path(name)
        shutil.copyfile(path, folder / "file")
        np.savez(folder / "given.npz", **given)  # type: ignore[arg-type]
        # the package by its name, whatever the checkout is called and installed or not
        (folder / "modules").mkdir()
        (folder / "modules" / __name__.split(".")[0]).symlink_to(PACKAGE)
        environment = {**os.environ, "PYTHONPATH": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
        worker = [interpreter, "-W", "ignore", "-m", WORKER]
        files = [str(folder / file) for file in ("file", "given.npz", "found.npz")]
        status = _run_group([*worker, what, *files], environment, folder, timeout)
        log = (folder / "log").read_text(errors="replace").splitlines()
        if status != 0 or not (folder / "found.npz").is_file():
            ended = f"no result after {timeout:.0f} s" if status is None else "Lava failed"
            raise LavaError(f"'{path}': {ended}. Its output ends:\n" + "\n".join(log[-25:]))
        with np.load(folder / "found.npz", allow_pickle=False) as arrays:
            return dict(arrays)


def _run_group(
    command: list[str], environment: dict[str, str], folder: Path, timeout: float
) -> int | None:
    """The exit status, None after a timeout."""
    with (folder / "log").open("w") as log:  # a pipe would wait for workers that stay behind
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _clear(process)


def _clear(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the group; first kindly, so that shared memory is given back."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        for _ in range(20):
            process.poll()
            time.sleep(0.05)
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def available(python: str | os.PathLike[str] | None = None) -> bool:
    """Whether an interpreter with Lava is known."""
    try:
        lava_python(python)
    except BackendUnavailable:
        return False
    return sys.platform != "win32"
