"""Peak memory of ``evaluate`` on the command line, by how many images there are.

    python benchmarks/memory.py

Writes folders of seeded JPEGs of 64 x 64, converts a small residual network with random weights,
and evaluates it on each in a process of its own, at T = 1 with batches of 64. Prints megabytes
(10^6 bytes): the most that the process held (VmHWM of /proc, as getrusage tells of a process that
another started the other's as well), and the largest of its workers (ru_maxrss), which shares most
of that with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COUNTS = (1_000, 20_000)
CLASSES = 10
OPTIONS = ["--scale-pixels", "--resize", "32", "32"]
RUN = """
import json, resource, sys, time
from spikingjelly_signgd.cli import main
before = time.perf_counter()
code = main(sys.argv[1:])
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
seconds = time.perf_counter() - before
print(json.dumps({"held": held * 1024, "workers": workers * 1024, "seconds": seconds}))
sys.exit(code)
"""


def network() -> Any:
    """[B, 3, 32, 32] to ten classes: a stem and two residual blocks, with random weights."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(channels, channels, 3, padding=1)
            self.second = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.second(torch.relu(self.first(x))))

    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return nn.Sequential(stem, nn.ReLU(), Block(8), Block(8), *head).eval()


def write_images(folder: Path, count: int) -> None:
    """``count`` JPEGs in ten classes, of coarse noise."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(count)
    for i in range(count):
        kind = folder / f"class {i % CLASSES}"
        kind.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=numpy.uint8))
        coarse.resize((64, 64), Image.Resampling.BILINEAR).save(kind / f"{i:06}.jpg", quality=90)


def command(*arguments: str) -> dict[str, Any]:
    """What the process says of itself after the command, and what the command printed."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--json", "--threads", "1"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
    printed, _, told = done.stdout.rstrip().rpartition("\n")
    return json.loads(told) | {"document": json.loads(printed)}


def measure(folder: Path, count: int, workers: int) -> dict[str, Any]:
    data = folder / str(count)
    if not data.is_dir():
        write_images(data, count)
    given = ["--data", str(data), *OPTIONS, "--time-steps", "1", "--workers", str(workers)]
    found = command("evaluate", str(folder / "net.h5"), *given)
    if found["document"]["samples"] != count:
        raise SystemExit(f"{found['document']['samples']} of {count} images were evaluated.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 2))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "calibration", 128)
        given = ["--data", str(folder / "calibration"), *OPTIONS, "--no-tune"]
        command("convert", "memory:network", *given, "-o", str(folder / "net.h5"))
        print("| images | workers | process, MB | largest worker, MB | seconds |")
        print("|---:|---:|---:|---:|---:|")
        for workers in options.workers:
            rows = [measure(folder, count, workers) for count in options.images]
            for count, row in zip(options.images, rows, strict=True):
                worker = f"{row['workers'] / 1e6:.1f}" if workers else "-"
                held, seconds = f"{row['held'] / 1e6:.1f}", f"{row['seconds']:.1f}"
                print(f"| {count:,} | {workers} | {held} | {worker} | {seconds} |")
            change = 100 * (rows[-1]["held"] / rows[0]["held"] - 1)
            print(f"| change | {workers} | {change:+.2f} % | | |")


if __name__ == "__main__":
    main()
