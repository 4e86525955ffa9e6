"""Frames a second of a network that watches, by how much of the image changes: docs/silence.md.

    python benchmarks/silence.py [NETWORK ...] [--shares 0 1 5 20 100] [--seconds 4]
    python benchmarks/silence.py --print | --write     the tables; into docs/silence.md

One stream, one thread of the CPU. In every frame a square of so many per cent of the pixels, at
another place each time, takes the values of another image, so that each of its pixels changes;
"scattered" are as many pixels anywhere. Three are asked frame by frame in turn, in an order drawn
anew: the source network in torch (eval, no_grad, in the faster of torch's two memory formats),
``sg.watch(snn)`` and ``sg.watch(snn, silent=True)`` of a plan with 6 members, a dead zone of 2/3
and one step a frame. Ratios are medians over frames, with 95 % intervals by bootstrap. The image
networks are those of examples/networks.py for Fashion-MNIST, 28 x 28; "camera" and "mobile" take
3 x 128 x 128 and have seeded weights. A figure goes to benchmarks/results/silence.json at once.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accuracy import machine
from paired import interval
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core.network import SignGDNeuron  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "silence.json"
PAGE = Path(__file__).parent.parent / "docs" / "silence.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit", "camera", "mobile")
SHARES = (0.0, 1.0, 5.0, 20.0, 100.0)  # per cent of the pixels
MEMBERS, DEAD_ZONE = 6, 2 / 3
WAYS = ("source", "dense", "silent")


# -- networks --------------------------------------------------------------------------------------


def camera() -> nn.Module:
    """Six convolutions, 156 million multiply-accumulates."""
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1),
                                    (64, 128, 2), (128, 128, 1)):  # fmt: skip
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Inverted(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * fan_in
        self.skip = stride == 1 and fan_in == fan_out
        self.layers = nn.Sequential(
            *(nn.Conv2d(fan_in, wide, 1), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6()),
            nn.Conv2d(wide, fan_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def mobile() -> nn.Module:
    """Six inverted residual blocks, 34 million multiply-accumulates."""
    blocks = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1))
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6()),
        *(Inverted(*block) for block in blocks),
        *(nn.Conv2d(40, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(128, 10),
    )


def seeded(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.05)
    return model


def smooth_images(count: int) -> Tensor:
    """Noise of several sizes, [count, 3, 128, 128] in [0, 1]."""
    parts = [
        nn.functional.interpolate(torch.rand(count, 3, n, n), 128, mode="bilinear")
        for n in (4, 8, 16, 32)
    ]
    return torch.stack(parts).mean(0)


def named(name: str) -> tuple[nn.Module, Tensor]:
    """A network, and images that it is for."""
    if name in ("camera", "mobile"):
        model = seeded(camera() if name == "camera" else mobile())
        torch.manual_seed(1)
        return model.eval(), smooth_images(32)
    return load_network(name, "fashion").eval(), fashion_mnist().train.images[:64]


def planned(model: nn.Module, images: Tensor) -> sg.SpikingNetwork:
    """A plan of one step a frame, every frame's like the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few samples
        network = sg.convert(
            model, images, time_steps=1, members=MEMBERS, dead_zone=DEAD_ZONE,
            input_coding="spike", tune=False,
        )  # fmt: skip
    nodes = {
        node.name: replace(node, schedule=sg.ConstantSchedule(node.schedule(1)), members=MEMBERS)
        for node in network.of(SignGDNeuron)
    }
    return network.with_nodes(nodes).replace(stream=True)


# -- frames ----------------------------------------------------------------------------------------


def frames(images: Tensor, share: float, scattered: bool, seed: int = 0) -> Iterator[Tensor]:
    """Frames [1, C, H, W] without end."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    now = images[:1].clone()
    height, width = now.shape[2:]
    side = [min(n, max(1, round(n * (share / 100) ** 0.5))) for n in (height, width)]
    while True:
        if share:
            other = images[rng.randrange(len(images))]
            other = (other + 0.1 * torch.rand(other.shape, generator=noise)).clamp(0, 1.1)
            where = torch.zeros(height, width, dtype=torch.bool)
            if scattered:
                count = round(height * width * share / 100)
                where.view(-1)[torch.randperm(height * width, generator=noise)[:count]] = True
            else:
                top, left = rng.randint(0, height - side[0]), rng.randint(0, width - side[1])
                where[top : top + side[0], left : left + side[1]] = True
            now = torch.where(where, other, now)
        yield now


# -- measuring -------------------------------------------------------------------------------------


def faster_format(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The source network in the faster of contiguous and channels_last."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = model.to(memory_format=layout)  # type: ignore[call-overload]
        times = []
        for _ in range(20):
            start = time.perf_counter()
            laid(x)
            times.append(time.perf_counter() - start)
        found.append((median(times), layout))
    best = min(found, key=lambda each: each[0])[1]
    return model.to(memory_format=best)  # type: ignore[call-overload,no-any-return]


@torch.no_grad()
def measured(name: str, share: float, scattered: bool, seconds: float) -> dict[str, Any]:
    model, images = named(name)
    network = planned(model, images)
    source = faster_format(model, images[:1])
    dense = sg.watch(sg.build(network, "spikingjelly"))
    silent = sg.watch(sg.build(network, "spikingjelly"), silent=True)
    ways = {"source": source, "dense": dense, "silent": silent}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    errors, rng = [], random.Random(1)
    stream, end, seen = frames(images, share, scattered), 0.0, 0
    while seen < 30 or (time.monotonic() < end and seen < 2000):
        frame = next(stream)
        found = {}
        for way in rng.sample(WAYS, 3):
            start = time.perf_counter()
            found[way] = ways[way](frame)
            if seen >= 10:
                times[way].append(time.perf_counter() - start)
        if seen == 9:  # caches, kernels, neurons that settle
            end = time.monotonic() + seconds
        seen += 1
        error = (found["silent"] - found["source"]).norm() / found["source"].norm()
        errors.append(float(error))
    assert silent.silence is not None
    ratios = {
        way: [b / s for b, s in zip(times[way], times["silent"], strict=True)]
        for way in ("source", "dense")
    }
    return {
        "network": name,
        "share": share,
        "scattered": scattered,
        "frames": len(times["silent"]),
        "microseconds": {way: median(each) * 1e6 for way, each in times.items()},
        "faster_than": {way: [median(each), *interval(each)] for way, each in ratios.items()},
        "error": median(errors),
        "changed": silent.silence.shares,
        "break_even": silent.silence.break_evens,
        "by_torch": silent.silence.by_torch,
        "machine": machine(),
    }


def cells(names: list[str], shares: list[float]) -> Iterator[tuple[str, float, bool]]:
    for name in names:
        for share in shares:
            yield name, share, False
            if 0 < share < 100:
                yield name, share, True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each cell")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, share, scattered in cells(given.networks, given.shares):
        cell = measured(name, share, scattered, given.seconds)
        print(name, share, scattered, {k: round(v) for k, v in cell["microseconds"].items()},
              {k: [round(x, 2) for x in v] for k, v in cell["faster_than"].items()}, cell["frames"],
              round(cell["error"], 4), cell["by_torch"], flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
