"""Tuning by 1, 2 and 4 processes over gloo, and without ``distributed``: are networks the same?

    python benchmarks/distributed_tuning.py [--network vgg] [--processes 1 2 4] [--plans ...]

An example network for Fashion-MNIST, 512 training images for calibration, three plans: a sign or
silence tuned as a whole, the same block by block for fewer additions, and signs alone over four
steps. Each process has
one thread. "network" begins the sha256 of all that describes the tuned network; error and agreement
are those of 1,000 test images beside the source network, with one standard error of the mean. The
processor's seconds are those of the busiest process, within ``sg.tune``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import NETWORKS, load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.converters.fine_tuning import fingerprint  # noqa: E402

PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1 x 8, a sign or silence": ({"time_steps": 1, "members": 8}, {"iterations": 40}),
    "1 x 8, block by block, for additions": (
        {"time_steps": 1, "members": 8},
        {"iterations": 40, "blocks": True, "objective": "additions"},
    ),
    "4 x 2, signs": ({"time_steps": 4, "members": 2, "dead_zone": 0}, {"iterations": 20}),
}
CALIBRATION, TEST = 512, 1000


def measured(name: str, plans: Sequence[str], world: sg.Distributed | None) -> dict[str, Any]:
    """By plan: which network it is, what it does, and the seconds of ``sg.tune``."""
    model, data, found = load_network(name, "fashion"), fashion_mnist(), {}
    x, test = data.train.images[:CALIBRATION], data.test.images[:TEST]
    for plan in plans:
        options, given = PLANS[plan]
        network = sg.convert(model, x, tune=False, **options)
        begun, wall = time.process_time(), time.time()
        tuned = sg.tune(network, x, distributed=world, **given)
        seconds, wall = time.process_time() - begun, time.time() - wall
        if world is not None:
            seconds = max(world.gather(seconds))
        row = {"network": fingerprint(tuned), "cpu": seconds, "wall": wall}
        if world is None or world.first:
            steps = network.time_steps
            seen = sg.evaluate(sg.build(tuned), test.split(100), steps, reference=model)
            row |= {"error": seen.error[0], "agreement": seen.agreement[0]}
        found[plan] = row
    return found


def run(name: str, plans: Sequence[str], processes: int) -> dict[str, Any]:
    """``measured`` by so many processes of their own; 0: one, without ``distributed``."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(["-m", *torchrun] if processes else []), __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--network", name, "--one", "--plans", *plans],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=1800,
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def table(name: str, plans: Sequence[str], processes: Sequence[int]) -> None:
    found = {n: run(name, plans, n) for n in (0, *processes)}
    print("| plan | processes | network | error | agreement (%) | processor s | wall s |")
    print("|---|---|---|---|---|---|---|")
    for plan in plans:
        for n, rows in found.items():
            row = rows[plan]
            spread = (row["agreement"] * (1 - row["agreement"]) / TEST) ** 0.5
            print(
                f"| {plan} | {n or 'without'} | {row['network'][:12]} | {row['error']:.6f} "
                f"| {100 * row['agreement']:.1f} ± {100 * spread:.1f} "
                f"| {row['cpu']:.1f} | {row['wall']:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="vgg")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--one", action="store_true", help="as a process that the others start")
    options = parser.parse_args()
    if not options.one:
        table(options.network, options.plans, options.processes)
        return
    warnings.simplefilter("ignore", sg.PlanWarning)
    if "RANK" not in os.environ:
        torch.set_num_threads(1)
        print(json.dumps(measured(options.network, options.plans, None)))
        return
    with sg.Distributed() as world:
        found = measured(options.network, options.plans, world)
        if world.first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
