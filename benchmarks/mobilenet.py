"""A MobileNet with ReLU6: group neurons, whose members saturate by themselves, beside signGD.

    python benchmarks/mobilenet.py [--images 10000] [--methods group signgd]

1,280 training images calibrate, nothing is tuned. Agreement with the source network's predictions
and relative error of the outputs on Fashion-MNIST's test images, what is sent on 256 of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402

CALIBRATION = 1280
COUNTED = 256
BATCH = 250
WAYS: list[dict[str, Any]] = [
    *({"method": "group", "members": m, "time_steps": t} for m, t in
      ((8, 1), (16, 1), (32, 1), (64, 1))),
    *({"method": "signgd", "members": m, "time_steps": t, "dead_zone": 2 / 3, "tune": False}
      for m, t in ((6, 1), (8, 1))),
]  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--methods", nargs="+", default=("group", "signgd"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, data = load_network("mobilenet", "fashion"), fashion_mnist()
    images, labels = (part[: given.images] for part in data.test)
    want = torch.cat([model(part) for part in images.split(BATCH)])
    right = 100 * float((want.argmax(1) == labels).double().mean())
    print(f"source {right:.2f} %, {len(images)} images\n")
    print("| neurons, m x T | accuracy | agreement | error | spikes a neuron | additions per MAC |")
    print("|---|---:|---:|---:|---:|---:|")
    for way in (way for way in WAYS if way["method"] in given.methods):
        network = sg.convert(model, data.train.images[:CALIBRATION], **way)
        snn, steps = sg.build(network), network.time_steps
        have = torch.cat([sg.run(snn, part, steps)[steps] for part in images.split(BATCH)])
        counts = count_operations(snn, images[:COUNTED], steps)
        same = 100 * float((have.argmax(1) == want.argmax(1)).double().mean())
        right = 100 * float((have.argmax(1) == labels).double().mean())
        error = float((have - want).norm() / want.norm())
        name = f"{way['method']}, {way['members']} x {way['time_steps']}"
        spikes = f"{counts.spikes / counts.neurons:.2f} | {counts.additions_per_mac:.2f}"
        print(f"| {name} | {right:.2f} | {same:.2f} | {error:.4f} | {spikes} |", flush=True)


if __name__ == "__main__":
    main()
