"""Random networks, by a seed: pooling, permutations, flips, concatenation, residuals, upsampling,
batches folded into channels, and neurons of one or several methods, with and without dead zones."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg

SIZE, BATCH = 4, 3
METHODS = ("signgd", "group", "mixed", "subgradient")
DEAD_ZONES = (0.0, 1 / 3, 1 / 2, 2 / 3, 2 / 3, 0.9)


class RandomNetwork(nn.Module):
    """[B, 2, 4, 4] to [B, 3]; a layer is a function of x [B, C, H, W] and its own modules.

    With ``selects`` some take the largest of several values.
    """

    def __init__(self, seed: int, selects: bool = True) -> None:
        super().__init__()
        self.random, self.selects = random.Random(seed), selects
        self.parts = nn.ModuleList()
        self.steps: list[Callable[[Tensor], Tensor]] = []
        self.shape: tuple[int, ...] = (2, SIZE, SIZE)
        self._add(self._neurons())
        for _ in range(self.random.randint(2, 5)):
            self._add(getattr(self, "_" + self.random.choice(LAYERS + SELECTING * selects))())
        self.head = nn.Linear(torch.Size(self.shape).numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x.flatten(1))

    def _add(self, step: Callable[[Tensor], Tensor]) -> None:
        self.steps.append(step)
        with torch.no_grad():
            self.shape = tuple(step(torch.zeros(2, *self.shape)).shape[1:])

    def _part(self, *modules: nn.Module) -> Any:
        self.parts.append(nn.Sequential(*modules))
        return self.parts[-1]

    def _neurons(self, out: int | None = None) -> Any:
        out, size = out or self.random.choice((2, 3, 4)), self.random.choice((1, 3))
        return self._part(nn.Conv2d(self.shape[0], out, size, padding=size // 2), nn.ReLU())

    def _move(self) -> Callable[[Tensor], Tensor]:
        channels = list(range(self.shape[0]))
        self.random.shuffle(channels)
        order, by = torch.tensor(channels), self.random.choice((1, 2))
        back = self.random.choice((-1, 1))
        return self.random.choice(
            (
                lambda x: x.flip(1),
                lambda x: x.flip(2, 3),
                lambda x: x.transpose(2, 3),
                lambda x: x[:, order],
                lambda x: torch.roll(x, by, back),
                lambda x: x.transpose(1, 2),
                lambda x: x[:, :, 1:] if x.shape[2] > 2 else x.flip(2),
            )
        )

    def _pool(self) -> Callable[[Tensor], Tensor]:
        if not self.selects:
            return nn.AvgPool2d(3, 1, 1)
        if min(self.shape[1:]) < 2:
            return lambda x: F.max_pool2d(x, 3, 1, 1)
        return self.random.choice(
            (
                nn.MaxPool2d(2),
                nn.MaxPool2d(2, 1),
                nn.MaxPool2d(3, 2, 1),
                nn.AvgPool2d(2),
                nn.AdaptiveMaxPool2d(1),
                lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0)), 2, 2),
                lambda x: x.amax(1, keepdim=True),
            )
        )

    def _cat(self) -> Callable[[Tensor], Tensor]:
        one, dim = self._neurons(), self.random.choice((1, 1, 2, 3))
        two = self._neurons(None if dim == 1 else one[0].out_channels)
        return lambda x: torch.cat([one(x), two(x)], dim)

    def _maximum(self) -> Callable[[Tensor], Tensor]:
        one = self._neurons()
        two = self._neurons(one[0].out_channels)
        return lambda x: torch.maximum(one(x), two(x))

    def _residual(self) -> Callable[[Tensor], Tensor]:
        inner = nn.Conv2d(self.shape[0], self.shape[0], 3, padding=1)
        part = self._part(inner, nn.ReLU())
        return lambda x: part[1](x + part[0](x))

    def _upsample(self) -> Callable[[Tensor], Tensor]:
        if max(self.shape) > SIZE:
            return self._pool()
        mode = self.random.choice(("nearest", "nearest", "bilinear"))
        return lambda x: F.interpolate(x, scale_factor=2, mode=mode)

    def _fold(self) -> Callable[[Tensor], Tensor]:
        channels, *size = self.shape
        pool = nn.MaxPool2d(3, 1, 1) if self.selects else nn.AvgPool2d(3, 1, 1)
        part = self._part(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), pool)
        return lambda x: part(x.reshape(-1, 1, *size)).reshape(-1, channels, *size)


LAYERS = ("neurons", "move", "move", "pool", "cat", "residual", "upsample", "fold")
SELECTING = ("move", "pool", "maximum")


def options(seed: int, network: RandomNetwork) -> dict[str, Any]:
    """Of ``convert``, other ones for each seed."""
    rng, method = random.Random(seed), METHODS[seed % len(METHODS)]
    found: dict[str, Any] = {"method": method, "time_steps": rng.choice((1, 2, 3, 5))}
    if method == "signgd":
        found["members"] = rng.choice((1, 1, 3))
    if method == "group":
        found |= {"members": rng.choice((1, 2, 4)), "signed": rng.random() < 0.5}
    if method == "mixed":
        paths = [name for name, part in network.named_modules() if isinstance(part, nn.ReLU)]
        found["method"] = {"": "signgd"} | {p: rng.choice(("signgd", "group")) for p in paths}
        found["members"] = {"": 1} | {p: 3 for p, m in found["method"].items() if m == "group"}
    if rng.random() < 0.2:
        found["input_coding"] = "poisson"
    if method in ("signgd", "mixed"):
        found["dead_zone"] = rng.choice(DEAD_ZONES)
        if method == "signgd" and found["dead_zone"]:
            found["members"] = rng.choice((1, 3, 8, 10))
    return found


def random_network(seed: int) -> tuple[sg.SpikingNetwork, Tensor]:
    """A converted network, and an input [3, 2, 4, 4]."""
    torch.manual_seed(seed)
    model = RandomNetwork(seed, selects=METHODS[seed % len(METHODS)] != "subgradient").eval()
    x = torch.rand(8, 2, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = sg.convert(model, x, tune=False, **options(seed, model))
    return network, x[:BATCH]
