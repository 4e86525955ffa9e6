"""How long ``make demo`` takes in a fresh clone, and what it shows.

    python benchmarks/demo_seconds.py [--folder FOLDER] [--write]

The clone is of the last commit. Counted from the end of the installation: seconds on the clock, CPU
seconds, the first line and the longest silence. --write puts the screen into docs/demo.txt.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCREEN = ROOT / "docs" / "demo.txt"


class Shown(NamedTuple):
    """The lines of a command, when each came, and what the command took, all in seconds."""

    lines: list[str]
    times: list[float]
    seconds: float
    cpu: float

    @property
    def longest(self) -> float:
        """The longest time without a line."""
        times = [0.0, *self.times, self.seconds]
        return max(b - a for a, b in zip(times, times[1:], strict=False))


def shown(command: list[str], folder: Path) -> Shown:
    """Standard output and standard error, which are no terminal. Raises CalledProcessError."""
    lines, times, begun, before = [], [], time.monotonic(), _cpu()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            times.append(time.monotonic() - begun)
            print(line, end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Shown(lines, times, time.monotonic() - begun, _cpu() - before)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(folder: Path) -> Shown:
    clone = folder / "spikingjelly_signgd"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    installed = shown(["make", f"{clone}/.venv/.demo"], clone)
    demo = shown(["make", "demo"], clone)
    print(f"\ninstallation  {installed.seconds:>6.1f} s {installed.cpu:>6.1f} CPU s")
    print(f"demo          {demo.seconds:>6.1f} s {demo.cpu:>6.1f} CPU s")
    print(f"first line    {demo.times[0]:>6.1f} s\nlongest pause {demo.longest:>6.1f} s")
    return demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the clone there")
    parser.add_argument("--write", action="store_true", help="the screen into docs/demo.txt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        demo = measured(options.folder or Path(scratch))
    if options.write:
        SCREEN.write_text("\n".join(["$ make demo", *demo.lines]) + "\n")


if __name__ == "__main__":
    main()
