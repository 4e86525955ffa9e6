"""Train a network of QCFS activations from scratch, convert it, and hold both against each other.

    python examples/train_qcfs.py [--data digits] [--levels 4] [--epochs 3] [--seed 0]

An activation of L levels is a group neuron of L members in one step, so the spiking network answers
at T = 1 what the trained one answers. No epoch is chosen: test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from data import DATA
from torch import nn
from train_from_scratch import train

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

EPOCHS = {"digits": 30, "fashion": 3}


def make_model(size: int, levels: int = 4) -> nn.Sequential:
    """[B, 1, size, size] to [B, 10].

    Batch norm folds into the weights. Convolutions have a stride instead of pooling: a maximum
    would be another neuron, and a spike that an average shares out meets more weights.
    """
    qcfs = partial(sg.QCFS, levels)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), qcfs()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), qcfs()),
        nn.Flatten(),
        *(nn.Linear(32 * (size // 4) ** 2, 128, bias=False), nn.BatchNorm1d(128), qcfs()),
        nn.Linear(128, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="fashion")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    data = DATA[options.data]()
    images, labels = data.test
    model = make_model(images.shape[-1], options.levels)
    began = time.perf_counter()
    train(model, data.train, options.epochs or EPOCHS[options.data])
    print(f"trained in {time.perf_counter() - began:.0f} s")

    network = sg.convert(model.eval(), data.train.images[:256], method="group")
    snn = sg.build(network)
    test = list(zip(images.split(500), labels.split(500), strict=True))
    print(sg.evaluate(snn, test, reference=model))
    counted = count_operations(snn, images[:200])
    print(
        f"T = {network.time_steps}, m = {counted.members}: {counted.spikes:.0f} spikes "
        f"of {counted.neurons} neurons for an image, {counted.additions_per_mac:.2f} additions for "
        "each multiply-accumulate of the source"
    )


if __name__ == "__main__":
    main()
