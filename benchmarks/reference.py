"""preset="paper" on the kinds of network whose errors are known of the published code.

    python benchmarks/reference.py

Random weights and inputs, other ones than the reference's, so sizes and trends compare, not
digits. Relative output error, reference above ours. Where the published numbers end in a high
floor (max pooling, GELU) values beyond the range of 3 saturate, which depends on their size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg

TIME_STEPS = (8, 16, 32, 64, 128)


def mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(16, 64), activation()),
        *(nn.Linear(64, 64), activation()),
        nn.Linear(64, 10),
    )


def convolutions(pool: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), pool(2)),
        *(nn.Flatten(), nn.Linear(16 * 64, 10)),
    )


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.linear = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        out: Tensor = self.linear(self.head(y + self.body(y)))
        return out


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(
            nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens)
        )
        self.channels = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(self.norm2(x))
        return out


class Mixer(nn.Module):
    """Two blocks, 16 tokens of width 32."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, stride=8)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        out: Tensor = self.head(self.norm(y).mean(1))
        return out


VECTOR, IMAGE = (64, 16), (16, 3, 32, 32)
# name: network, input shape, options, errors printed by the published code at T = 8 ... 128
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any], str]] = {
    "MLP-ReLU": (lambda: mlp(nn.ReLU), VECTOR, {}, ".370 .194 .078 .042 .038"),
    "MLP-ReLU, subgradient": (
        lambda: mlp(nn.ReLU),
        VECTOR,
        {"method": "subgradient"},
        ".242 .140 .087 .063 .053",
    ),
    "MLP-ReLU, spike coding": (
        lambda: mlp(nn.ReLU),
        VECTOR,
        {"input_coding": "spike"},
        ".344 .170 .064 .015 .006",
    ),
    "MLP-ReLU, eta = 1 / t": (
        lambda: mlp(nn.ReLU),
        VECTOR,
        {"schedule": sg.InverseSchedule(1.0)},
        ".311 .146 .079 .039 .019",
    ),
    "MLP-ReLU, momentum 0.5": (
        lambda: mlp(nn.ReLU),
        VECTOR,
        {"momentum": 0.5},
        ".303 .230 .093 .017 .001",
    ),
    "MLP-GELU": (lambda: mlp(nn.GELU), VECTOR, {}, ".659 .458 .291 .198 .178"),
    "CNN, average pooling": (
        lambda: convolutions(nn.AvgPool2d),
        IMAGE,
        {},
        ".284 .130 .059 .033 .032",
    ),
    "CNN, average pooling, subgradient": (
        lambda: convolutions(nn.AvgPool2d),
        IMAGE,
        {"method": "subgradient"},
        ".112 .067 .039 .026 .021",
    ),
    "CNN, max pooling": (
        lambda: convolutions(nn.MaxPool2d),
        IMAGE,
        {},
        ".833 .700 .564 .489 .474",
    ),
    "CNN, max pooling, inputs x 3": (
        lambda: convolutions(nn.MaxPool2d),
        IMAGE,
        {"gain": 3.0},
        ".833 .700 .564 .489 .474",
    ),
    "MLP-GELU, inputs x 3": (
        lambda: mlp(nn.GELU),
        VECTOR,
        {"gain": 3.0},
        ".659 .458 .291 .198 .178",
    ),
    "residual block": (ResidualBlock, IMAGE, {}, ".247 .098 .049 .029 .029"),
    "residual block, subgradient": (
        ResidualBlock,
        IMAGE,
        {"method": "subgradient"},
        ".113 .057 .027 .011 .003",
    ),
    "Mixer, 2 blocks": (Mixer, IMAGE, {}, ".447 .183 .072 .041 .037"),
}


def main() -> None:
    print("| network | | " + " | ".join(f"T={t}" for t in TIME_STEPS) + " |")
    print("|---|---|" + "---|" * len(TIME_STEPS))
    for name, (build, shape, options, reference) in ROWS.items():
        torch.manual_seed(0)
        options = dict(options)
        gain = options.pop("gain", 1.0)
        model, x = build().eval(), gain * torch.randn(shape)
        calibration = [gain * torch.randn(shape) for _ in range(12)]  # as many as published
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sg.SaturationWarning)  # a part of what is compared
            network = sg.convert(model, calibration, preset="paper", time_steps=128, **options)
        found = sg.evaluate(sg.build(network), [x], TIME_STEPS, reference=model).error
        ours = " | ".join(f"{error or 0:.3f}".lstrip("0") for error in found)
        print(f"| {name} | published code | {' | '.join(reference.split())} |")
        print(f'| | preset="paper" | {ours} |', flush=True)


if __name__ == "__main__":
    main()
