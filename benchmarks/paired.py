"""Whether a change made anything slower: two trees in turn, pair by pair, in one run.

    python benchmarks/paired.py --base REV [--seconds 60] [--only SUBSTRING]

A process for each tree holds the same neurons and networks; the two are asked in turn, A B B A,
so that a machine that slows down slows both. A time is the processor's, of one thread. Printed are
the median of the ratios new / old, and its 95 % interval by bootstrap over the pairs.
"""

from __future__ import annotations

import argparse
import inspect
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spikingjelly_signgd"


def cases() -> dict[str, Callable[[], object]]:
    """By name what is timed, in the tree that this process sees; public names alone."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(os.environ["PAIRED_TREE"]) / "examples"))
    from data import digits
    from networks import load_network

    import spikingjelly_signgd as sg

    torch.manual_seed(0)
    schedule = sg.ExponentialSchedule(0.5, 0.9)
    known = "dead_zone" in inspect.signature(sg.convert).parameters  # older trees have none
    dense: dict[str, Any] = {"dead_zone": 0.0} if known else {}
    found: dict[str, Callable[[], object]] = {}

    def node(name: str, made: nn.Module, shape: tuple[int, ...]) -> None:
        x = torch.randn(shape)

        def call() -> None:
            made.reset()  # type: ignore[operator]
            made(x)

        found[f"neurons/{name} {list(shape)}"] = call

    for shape in ((32, 8, 4, 4), (32, 8, 64, 32)):
        for function in ("relu", "gelu"):
            made = sg.SignGDNode(function, schedule, spikes="decoded", step_mode="m", **dense)
            node(f"signgd {function}", made, shape)
        node("group of 4", sg.GroupNode(4, 1.0, step_mode="m"), shape)

    x = digits().train.images[:96]
    plans: dict[str, dict[str, Any]] = {
        "signgd 1 x 16": {"time_steps": 16, "members": 1},
        "signgd 8 x 1": {"time_steps": 1, "members": 8},
    }
    for name in ("vgg", "convnext", "mixer"):
        model = load_network(name, "digits")
        for plan, options in plans.items():
            network = sg.convert(model, x, tune=False, **dense, **options)
            for view in ("decoded", "signed"):
                snn = sg.build(network, "spikingjelly", spikes=view)
                steps = options["time_steps"]
                found[f"networks/{name} {plan} {view}"] = partial(sg.run, snn, x[:32], (steps,))
    model = load_network("vgg", "digits")
    found["conversion/vgg signgd"] = lambda: sg.convert(
        model, x, time_steps=16, tune=False, **dense
    )
    found["conversion/vgg group"] = lambda: sg.convert(
        model, x[:64], method="group", time_steps=2, members=4, scale="unit", tune=False
    )
    network = sg.convert(model, x, time_steps=4, tune=False, **dense)
    found["tuning/vgg 4 iterations"] = lambda: sg.tune(network, x, iterations=4)
    return found


def serve() -> None:
    """Answers a case's name by the seconds that one call of it takes."""
    known = cases()
    print(*known, sep="\t", flush=True)
    for line in sys.stdin:
        call = known[line.strip()]
        start = time.process_time()
        call()
        print(time.process_time() - start, flush=True)


class Tree:
    def __init__(self, root: Path, folder: Path) -> None:
        (folder / PACKAGE).symlink_to(root)
        seen = {**os.environ, "PYTHONPATH": str(folder), "PAIRED_TREE": str(root)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=seen | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.names = self._answer().split("\t")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process ended; --serve shows why")
        return line.rstrip("\n")

    def time(self, name: str) -> float:
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        return float(self._answer())


# kernels are those of their tree, whose setup knows what the library is called there
BUILD = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(tree), revision],
            cwd=ROOT, check=True,
        )  # fmt: skip
        try:
            if any((ROOT / "neurons" / "kernels").glob("_cpu*.so")):
                subprocess.run(BUILD, cwd=tree, check=True)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT)


def interval(ratios: list[float]) -> tuple[float, float]:
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[25], medians[974]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", metavar="REV", help="the commit to compare with")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve()
    with checked_out(given.base) as tree, tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("old", "new")]
        for place in places:
            place.mkdir()
        old, new = Tree(tree, places[0]), Tree(ROOT, places[1])
        print("| case | new / old | 95 % interval | pairs |\n|---|---:|---|---:|")
        for name in old.names:
            if given.only not in name:
                continue
            for each in (old, new, old, new):  # caches, kernels of functions
                each.time(name)
            ratios: list[float] = []
            end = time.monotonic() + given.seconds
            while len(ratios) < 10 or (time.monotonic() < end and len(ratios) < 2000):
                a = old.time(name)
                b, c = new.time(name), new.time(name)
                d = old.time(name)
                ratios.append((b + c) / (a + d))
            low, high = interval(ratios)
            print(f"| {name} | {median(ratios):.3f} | {low:.3f} to {high:.3f} | {len(ratios)} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
