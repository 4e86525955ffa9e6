"""What a dead zone costs: the kernels of neurons with one over those of the dense neuron.

    python benchmarks/dead_zone.py [--seconds 4]

The two are called in turn, A B B A, in one process and one thread; a time is the processor's.
Printed are the median of the ratios, its 95 % interval by bootstrap, and what a call takes.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ExponentialSchedule,
    SignGDParameters,
    SignGDState,
    signgd_multi_step,
)

sys.path.insert(0, str(Path(__file__).parent))

from paired import interval  # noqa: E402

SCHEDULE = ExponentialSchedule(1.0, 0.9)
NEURONS = 2**19  # 2.1 MB of float32 in all steps together
FORMS = ((32, 1), (16, 1), (2, 4), (1, 6), (1, 8))  # T and m
ZONES = (2 / 3, 0.5, 0.75)


def call(
    function: str, steps: int, members: int, zone: float, by_channel: bool, v: float
) -> Callable[[], object]:
    """One call with inputs as a network has them: v at rest, a scale for each channel."""
    torch.manual_seed(0)
    shape = (64, NEURONS // steps // 64)
    scale = torch.rand(64, 1) + 1.0 if by_channel else 1.0
    p = SignGDParameters(NONLINEARITIES[function], SCHEDULE, scale, members=members, dead_zone=zone)
    x, start = [torch.randn(steps, *shape)], SignGDState(torch.tensor(v).expand(shape))
    return lambda: signgd_multi_step(x, start, p, backend="cpu")


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compared(dense: Callable[[], object], sparse: Callable[[], object], limit: float) -> str:
    ratios: list[float] = []
    times: list[tuple[float, float]] = []
    end = time.monotonic() + limit
    while len(ratios) < 10 or time.monotonic() < end:
        a, b, c, d = seconds(dense), seconds(sparse), seconds(sparse), seconds(dense)
        ratios.append((b + c) / (a + d))
        times.append(((a + d) / 2, (b + c) / 2))
    low, high = interval(ratios)
    took = " | ".join(f"{1e6 * median(each):.0f}" for each in zip(*times, strict=True))
    return f"{median(ratios):.3f} | {low:.3f} to {high:.3f} | {took}"


def keep_memory() -> None:
    """Of glibc: what is freed is handed out again. Else new pages are most of some calls' time."""
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(option, 2**30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case")
    parser.add_argument("--only", default="", help="cases whose line has this in it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print("| neuron, m x T | scale | theta | over dense | 95 % interval | dense, us | us |")
    print("|---|---|---:|---:|---|---:|---:|")
    for steps, members in FORMS:
        for function in ("relu", "gelu"):
            for by_channel in (False, True):
                for zone in ZONES:
                    name = f"| {function}, {members} x {steps} | "
                    name += f"{'channels' if by_channel else 'number'} | {zone:.3g} |"
                    if given.only not in name:
                        continue
                    dense, sparse = (
                        call(function, steps, members, z, by_channel, 0.0) for z in (0.0, zone)
                    )
                    print(f"{name} {compared(dense, sparse, given.seconds)} |", flush=True)


if __name__ == "__main__":
    main()
