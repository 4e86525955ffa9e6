"""Train a network of ``networks.py``; the epoch is chosen on validation, test is read once.

python examples/train.py vgg --data fashion --seed 0
python examples/train.py vgg --data fashion --qcfs 4
python examples/train.py --all

A QCFS network starts from the weights of its ReLU network, which is trained first; its
thresholds start from a percentile of the activations.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from data import DATA, Data, Split
from networks import NETWORKS, QCFS_NETWORKS, load_network, make_network, weights_path
from safetensors.torch import save
from torch import Tensor, nn

LABEL_SMOOTHING = 0.1
THRESHOLD_QUANTILE = 0.997


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up of a tenth and a cosine down to 0."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch: int
    shift: int  # pixels, each way
    flip: bool


def recipe(name: str, data: str, qcfs: int | None) -> Recipe:
    convolutional = name in ("vgg", "resnet", "mobilenet")
    rate = 4e-3 if convolutional else 2e-3 if name == "vit" else 3e-3
    if qcfs is not None:
        rate /= 2
    if data == "digits":
        return Recipe(60 if qcfs is None else 40, rate, 0.05, 32, shift=1, flip=False)
    epochs = 6 if qcfs is not None else 14 if convolutional else 10 if name == "vit" else 16
    return Recipe(epochs, rate, 0.05, 128, shift=2, flip=True)


def augment(images: Tensor, shift: int, flip: bool) -> Tensor:
    """[B, 1, H, W], each image shifted (and half of them mirrored) on its own."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, value=float(images.amin())).squeeze(1)
    top, left = torch.randint(0, 2 * shift + 1, (2, batch, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(split.labels)).split(size):
        yield split.images[rows], split.labels[rows]


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """Percent."""
    network.eval()
    hits = sum(
        int((network(images).argmax(1) == labels).sum())
        for images, labels in zip(split.images.split(1000), split.labels.split(1000), strict=True)
    )
    return 100 * hits / len(split.labels)


@torch.no_grad()
def start_from_relu(network: nn.Module, name: str, data: str, images: Tensor) -> None:
    """Takes over the ReLU network's weights and sets each threshold from its own input."""
    from spikingjelly_signgd.neurons.qcfs import QCFS

    missing = network.load_state_dict(load_network(name, data).state_dict(), strict=False)
    assert not missing.unexpected_keys, missing

    def set_threshold(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, QCFS)
        positive = inputs[0][inputs[0] > 0].sort().values  # torch.quantile stops at 2^24 values
        module.set_threshold(float(positive[int(THRESHOLD_QUANTILE * (len(positive) - 1))]))

    hooks = [
        module.register_forward_pre_hook(set_threshold)
        for module in network.modules()
        if isinstance(module, QCFS)
    ]
    network.train()(images)  # batch statistics: those of the ReLU network had max pooling
    for hook in hooks:
        hook.remove()


def make_optimizer(network: nn.Module, r: Recipe) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels alone: no norm, bias, layer scale or threshold."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": r.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=r.learning_rate,
    )


def fit(network: nn.Module, data: Data, r: Recipe, label: str) -> tuple[int, float]:
    """Trains in place; returns the chosen epoch, whose weights it leaves, and its accuracy."""
    optimizer = make_optimizer(network, r)
    steps = r.epochs * -(-len(data.train.labels) // r.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, r.learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    best, best_epoch, best_state = -1.0, 0, {}
    for epoch in range(1, r.epochs + 1):
        network.train()
        total = torch.zeros(())
        for images, labels in batches(data.train, r.batch):
            logits = network(augment(images, r.shift, r.flip))
            loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(labels)
        validation = accuracy(network, data.validation)
        loss_mean = total.item() / len(data.train.labels)
        print(f"{label} epoch {epoch}/{r.epochs} loss {loss_mean:.4f} validation {validation:.2f}")
        if validation >= best:  # a later epoch of equal accuracy has the smaller step size
            best, best_epoch = validation, epoch
            best_state = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return best_epoch, best


def train(name: str, data_name: str, qcfs: int | None, seed: int, epochs: int | None) -> None:
    """Trains one network and writes its file."""
    r = recipe(name, data_name, qcfs)
    if epochs is not None:
        r = Recipe(epochs, r.learning_rate, r.weight_decay, r.batch, r.shift, r.flip)
    path = weights_path(name, data_name, qcfs)
    data = DATA[data_name]()
    torch.manual_seed(seed)
    network = make_network(name, data_name, qcfs)
    if name == "vgg":  # half as fast again on a CPU
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if qcfs is not None:
        start_from_relu(network, name, data_name, data.train.images[:512])
    epoch, validation = fit(network, data, r, path.stem)
    test = accuracy(network, data.test)
    print(f"{path.stem} epoch {epoch} validation {validation:.2f} test {test:.2f}")

    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    levels = "" if qcfs is None else f" --qcfs {qcfs}"
    command = f"python examples/train.py {name} --data {data_name} --seed {seed}{levels}"
    metadata = {
        "command": f"{command} --epochs {r.epochs}",
        "seed": str(seed),
        "epochs": str(r.epochs),
        "chosen_epoch": str(epoch),
        "validation_accuracy": f"{validation:.2f}",
        "test_accuracy": f"{test:.2f}",
        "torch": torch.__version__,
    }
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    partial.write_bytes(save(tensors, metadata))
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=NETWORKS)
    parser.add_argument("--data", choices=DATA, default="fashion")
    parser.add_argument("--qcfs", type=int, metavar="LEVELS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--all", action="store_true", help="every network on both data sets")
    args = parser.parse_args()
    if args.all == (args.name is not None):
        parser.error("give the name of one network, or --all")

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if not args.all:
        return train(args.name, args.data, args.qcfs, args.seed, args.epochs)
    for data in ("fashion", "digits"):
        for name in NETWORKS:
            train(name, data, None, args.seed, args.epochs)
        for name in QCFS_NETWORKS:
            for levels in (4, 8):
                train(name, data, levels, args.seed, args.epochs)


if __name__ == "__main__":
    main()
