"""One network, converted and tuned by several processes: the same for any number of them.

    torchrun --nproc-per-node 2 benchmarks/distributed_conversion.py [--network resnet]
             [--data digits] [--samples 1003] [--batch-size 64] [--steps 4] [--members 2]
             [--iterations 0]

``convert`` goes through training images of ``examples/`` in batches that are dealt to the processes
(the last one is smaller), ``tune`` (with ``--iterations``, steps of descent) shares each minibatch.
The rows: the hash of the network, and what it is like on the test images, of which each process
runs all.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import DATA  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.converters.fine_tuning import fingerprint  # noqa: E402


def row(
    what: str, network: sg.SpikingNetwork, x: Tensor, model: torch.nn.Module, seconds: float
) -> str:
    table = sg.evaluate(sg.build(network), list(x.split(64)), reference=model)
    (error,), (agreement,) = table.error, table.agreement
    return (
        f"{what:8} {fingerprint(network)}  error {error:.6f}  agreement {agreement:.4f}  "
        f"{seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet")
    parser.add_argument("--data", default="digits", choices=tuple(DATA))
    for name, usual in (("samples", 1003), ("batch-size", 64), ("steps", 4), ("members", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--iterations", type=int, default=0)
    given = parser.parse_args()
    data = DATA[given.data]()
    model = load_network(given.network, given.data).eval()
    images = data.train.images[: given.samples]
    loader = DataLoader(TensorDataset(images), given.batch_size)
    plan = {"time_steps": given.steps, "members": given.members}
    with sg.Distributed() as world:
        begun = time.perf_counter()
        network = sg.convert(model, loader, tune=False, max_batches=None, distributed=world, **plan)
        rows = [row("convert", network, data.test.images, model, time.perf_counter() - begun)]
        if given.iterations:
            begun = time.perf_counter()
            network = sg.tune(network, images, iterations=given.iterations, distributed=world)
            rows.append(row("tune", network, data.test.images, model, time.perf_counter() - begun))
        if world.first:
            print(f"{world.size} process(es), {len(images)} images, {len(data.test.images)} test")
            print("\n".join(rows))


if __name__ == "__main__":
    main()
