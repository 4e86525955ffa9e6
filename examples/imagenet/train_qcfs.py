"""CIFAR-10 as the group neurons' paper has it: train with QCFS activations, convert, one table.

    torchrun --nproc-per-node 4 examples/imagenet/train_qcfs.py vgg16 --data /data/cifar10 --amp
    python examples/imagenet/train_qcfs.py resnet20 --synthetic 512 --epochs 2

After each epoch all that training needs is in --checkpoint. The same command resumes from there, as
if it had not been interrupted. No epoch is chosen: test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STEPS = (1, 2, 4, 8)
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pool

# -- networks of 32 x 32 images, with average pooling ----------------------------------------------


def convolution(fan_in: int, fan_out: int, stride: int = 1, size: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(fan_out)]


def vgg16(levels: int, classes: int = 10) -> nn.Module:
    parts: list[nn.Module] = []
    width = 3
    for wide in VGG16:
        if not wide:
            parts.append(nn.AvgPool2d(2))
            continue
        parts += [*convolution(width, wide), sg.QCFS(levels)]
        width = wide
    parts.append(nn.Flatten())
    for _ in range(2):
        parts += [nn.Dropout(0.1), nn.Linear(512, 512), sg.QCFS(levels)]
    return nn.Sequential(*parts, nn.Linear(512, classes))


class Block(nn.Module):
    """Two convolutions and a shortcut; a 1 x 1 convolution on it where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, levels: int) -> None:
        super().__init__()
        first, second = convolution(fan_in, fan_out, stride), convolution(fan_out, fan_out)
        self.body = nn.Sequential(*first, sg.QCFS(levels), *second)
        same = stride == 1 and fan_in == fan_out
        change = [] if same else convolution(fan_in, fan_out, stride, 1)
        self.shortcut, self.act = nn.Sequential(*change), sg.QCFS(levels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.shortcut(x))
        return y


def resnet(
    levels: int, blocks: Sequence[int], widths: Sequence[int], classes: int = 10
) -> nn.Module:
    parts: list[nn.Module] = [*convolution(3, widths[0]), sg.QCFS(levels)]
    before = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for i in range(count):
            parts.append(Block(before, width, 2 if stage and not i else 1, levels))
            before = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg16": vgg16,
    "resnet18": partial(resnet, blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512)),
    "resnet20": partial(resnet, blocks=(3, 3, 3), widths=(16, 32, 64)),
    "resnet34": partial(resnet, blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512)),
}

# -- data -----------------------------------------------------------------------------------------


def cifar10(folder: Path) -> tuple[Dataset[Any], Dataset[Any]]:
    """Training images as the paper alters them, and test images; nothing is downloaded."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    altered = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
        *to_tensor,
        transforms.Lambda(cutout),
    ]
    train = CIFAR10(str(folder), train=True, transform=transforms.Compose(altered))
    return train, CIFAR10(str(folder), train=False, transform=transforms.Compose(to_tensor))


def cutout(image: Tensor, size: int = 16) -> Tensor:
    """Zeros in a square anywhere on the image, of which a part may lie outside."""
    y, x = torch.randint(0, 32, (2,)).tolist()
    image[:, max(0, y - size // 2) : y + size // 2, max(0, x - size // 2) : x + size // 2] = 0
    return image


def synthetic(count: int) -> tuple[Dataset[Any], Dataset[Any]]:
    """Noise around a coarse pattern for each class, to train on and half as many to test on."""
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(10, 3, 4, 4, generator=generator), 32)

    def drawn(number: int) -> Dataset[Any]:
        labels = torch.arange(number) % 10
        noise = torch.randn(number, 3, 32, 32, generator=generator)
        return TensorDataset(patterns[labels] + noise, labels)

    return drawn(count), drawn(count // 2)


# -- training -------------------------------------------------------------------------------------


class Training:
    """What training changes; ``state`` and ``restore`` are what a checkpoint holds."""

    def __init__(self, model: nn.Module, given: argparse.Namespace, world: sg.Distributed) -> None:
        kind = world.device.type
        self.model, self.world, self.given, self.epoch = model.to(world.device), world, given, 0
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]  # thresholds among them
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": given.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, given.lr, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, given.epochs, eta_min=1e-6
        )
        # on GPUs float16, whose gradients are scaled; on CPUs bfloat16, which needs no scale
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        self.autocast = partial(torch.autocast, kind, dtype, enabled=given.amp)
        self.scaler = torch.amp.GradScaler(kind, enabled=given.amp and kind == "cuda")
        ids = [world.device.index] if kind == "cuda" else None
        self.parallel = (
            DistributedDataParallel(model, device_ids=ids) if world.size > 1 else self.model
        )

    def one_epoch(self, data: Dataset[Any]) -> float:
        """The mean loss. What is drawn follows from seed, epoch and rank alone."""
        given, world = self.given, self.world
        if given.batch_size % world.size or len(data) < given.batch_size:  # type: ignore[arg-type]
            raise sg.InputError(
                f"--batch-size {given.batch_size} is of all processes together: a multiple of "
                f"their number, {world.size}, and at most the number of images."
            )
        torch.manual_seed(hash((given.seed, self.epoch, world.rank)) % 2**63)
        order: DistributedSampler[Any] = DistributedSampler(
            data, world.size, world.rank, seed=given.seed, drop_last=True
        )
        order.set_epoch(self.epoch)
        loader: DataLoader[Any] = DataLoader(
            data,
            given.batch_size // world.size,
            sampler=order,
            num_workers=given.workers,
            drop_last=True,
        )
        self.parallel.train()
        losses = [self.one_step(*batch) for batch in loader]
        self.schedule.step()
        self.epoch += 1
        mean = torch.stack(losses).double().mean().item()
        return sum(world.gather(mean)) / world.size

    def one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.autocast():
            outputs = self.parallel(images.to(self.world.device))
            loss = F.cross_entropy(outputs, labels.to(self.world.device))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        parts = ("model", "optimizer", "schedule", "scaler")
        return {"epoch": self.epoch} | {part: getattr(self, part).state_dict() for part in parts}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        for part in ("model", "optimizer", "schedule", "scaler"):
            getattr(self, part).load_state_dict(state[part])


RECIPE = ("network", "levels", "epochs", "batch_size", "lr", "weight_decay", "seed", "amp")


def keep(path: Path, training: Training, recipe: dict[str, Any]) -> None:
    """The file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(training.state() | {"recipe": recipe}, partial_file)
    os.replace(partial_file, path)


def go_on(path: Path, training: Training, recipe: dict[str, Any], world: sg.Distributed) -> None:
    """From where rank 0's file says, if there is one. Raises where it is of another training."""
    state = None
    if world.first and path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = world.broadcast(state)
    if state is None:
        return
    other = {name: was for name, was in state["recipe"].items() if was != recipe[name]}
    if other:
        raise sg.InputError(
            f"{path} is of a training with {other}; give these, or another --checkpoint."
        )
    training.restore(state)


# -- the table ------------------------------------------------------------------------------------


def table(model: nn.Module, train: Any, test: Any, given: Any, world: sg.Distributed) -> None:
    """Accuracy at each T of one network for each m; without --members m = L, exact at T = 1."""
    some = torch.stack([train[i][0] for i in range(min(256, len(train)))]).to(world.device)
    some = world.broadcast(some)  # as rank 0 altered them
    loader: DataLoader[Any] = DataLoader(test, 100, num_workers=given.workers)
    for members in given.members or [given.levels]:
        network = sg.convert(model, some, method="group", members=members)
        snn = sg.build(network).to(world.device)
        found = sg.evaluate(snn, loader, STEPS, reference=model, distributed=world)
        costs = count_operations(snn, some[:16], STEPS)
        if world.first:
            added = ", ".join(f"{costs[t].additions_per_mac:.2f}" for t in STEPS)
            print(f"\nm = {members}\n{found}\nadditions per MAC at T = 1, 2, 4, 8: {added}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="the folder of torchvision's CIFAR10")
    data.add_argument("--synthetic", type=int, metavar="N", help="N images, for a dry run")
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--members", nargs="+", type=int, help="m, by default the levels")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--workers", type=int, default=2, help="that load images, for each process")
    parser.add_argument("--checkpoint", type=Path, help="a file to resume from, or a new one")
    parser.add_argument("--stop-after", type=int, help="epochs; the schedule is for --epochs")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with sg.Distributed() as world:
        train, test = synthetic(given.synthetic) if given.synthetic else cifar10(given.data)
        torch.manual_seed(given.seed)
        model = NETWORKS[given.network](given.levels)
        training = Training(model, given, world)
        recipe = {name: getattr(given, name) for name in RECIPE} | {"processes": world.size}
        if given.checkpoint is not None:
            go_on(given.checkpoint, training, recipe, world)
        while training.epoch < min(given.epochs, given.stop_after or given.epochs):
            began = time.perf_counter()
            loss = training.one_epoch(train)
            if world.first:
                seconds = time.perf_counter() - began
                print(f"epoch {training.epoch}: loss {loss:.6f}, {seconds:.0f} s", flush=True)
            if world.first and given.checkpoint is not None:
                keep(given.checkpoint, training, recipe)
        model.load_state_dict(world.broadcast(model.state_dict()))  # statistics of batch norms
        table(model.eval(), train, test, given, world)


if __name__ == "__main__":
    main()
