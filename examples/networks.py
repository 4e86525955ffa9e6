"""Seven small networks, [B, 1, size, size] to 10 logits, size 8 or 28, in plain torch.

They are written in the different ways that networks are found in: modules and functionals,
channels first and last, parameters used in plain arithmetic. Each has fewer than 95,000
parameters and, for size 28, at most about 4 million multiply-accumulates and 30,000 ReLU or GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Pool = Literal["max", "avg"]

WEIGHTS = Path(__file__).parent / "weights"
SIZES = {"digits": 8, "fashion": 28}


def vgg(
    size: int, activation: Callable[[], nn.Module] = nn.ReLU, pool: Pool = "max"
) -> nn.Sequential:
    """Five blocks of convolution, batch norm and activation (Simonyan & Zisserman, 2015)."""
    pooling = nn.MaxPool2d if pool == "max" else nn.AvgPool2d

    def block(fan_in: int, fan_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            activation(),
        ]

    return nn.Sequential(
        *block(1, 16),
        pooling(2),
        *block(16, 32),
        *block(32, 32),
        pooling(2),
        *block(32, 64),
        pooling(2) if size >= 28 else nn.Identity(),
        *block(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def functional_relu() -> Activation:
    return F.relu


class InvertedResidual(nn.Module):
    """MobileNet v2: wider by a 1 x 1 convolution, depthwise, narrow again, without activation."""

    def __init__(self, width: int, out: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        inner = width * expansion
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.adds = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.adds else out


class MobileNet(nn.Module):
    """MobileNet v2 in small, ReLU6 throughout; ``size`` is the image's, one channel."""

    def __init__(self, size: int, widths: Sequence[int] = (16, 24, 32), classes: int = 10) -> None:
        super().__init__()
        first, *_, last = widths
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 2 if size >= 28 else 1, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU6(),
        )
        blocks: list[nn.Module] = []
        for before, width in zip((first, *widths), widths, strict=False):
            blocks.append(InvertedResidual(before, width, 1 if before == width else 2))
            blocks.append(InvertedResidual(width, width, 1))
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(
            nn.Conv2d(last, 2 * last, 1, bias=False), nn.BatchNorm2d(2 * last), nn.ReLU6()
        )
        self.head = nn.Linear(2 * last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; a 1 x 1 convolution on it where the shape changes."""

    def __init__(
        self, fan_in: int, fan_out: int, stride: int, activation: Callable[[], Activation]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.act2 = activation()
        self.downsample: nn.Module | None = None
        if stride != 1 or fan_in != fan_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.act2(out)


class ResNet(nn.Module):
    """A stem with pooling and three basic blocks (He et al., 2016)."""

    def __init__(
        self,
        size: int,
        activation: Callable[[], Activation] = functional_relu,
        pool: Pool = "max",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = activation()
        self.pool = F.max_pool2d if pool == "max" else F.avg_pool2d
        self.layer1 = BasicBlock(16, 16, 1, activation)
        self.layer2 = BasicBlock(16, 32, 2, activation)
        self.layer3 = BasicBlock(32, 64, 2, activation)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act1(self.bn1(self.conv1(x))), 2)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class ChannelsFirstNorm(nn.Module):
    """Layer norm over C of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int, layer_scale: float = 0.1) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches of 2 x 2, one block of 16 channels and two of 48 (Liu et al., 2022)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 2, stride=2), ChannelsFirstNorm(16))
        self.stage1 = ConvNeXtBlock(16)
        self.downsample = nn.Sequential(ChannelsFirstNorm(16), nn.Conv2d(16, 48, 2, stride=2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(48), ConvNeXtBlock(48))
        self.norm = nn.LayerNorm(48, eps=1e-6)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.downsample(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class MixerMlp(nn.Module):
    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixing = MixerMlp(tokens, 48)
        self.norm2 = nn.LayerNorm(channels)
        self.channel_mixing = MixerMlp(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    """Patches (4 x 4 of 28, 2 x 2 of 8) and three mixer blocks (Tolstikhin et al., 2021)."""

    def __init__(self, size: int, channels: int = 64, depth: int = 3) -> None:
        super().__init__()
        patch = _patch(size)
        self.stem = nn.Conv2d(1, channels, patch, stride=patch)
        tokens = (size // patch) ** 2
        self.blocks = nn.ModuleList(MixerBlock(tokens, channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)  # [B, tokens, channels]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Affine(nn.Module):
    """``alpha * x + beta`` for each channel: ResMLP's stand-in for a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class ResMlpBlock(nn.Module):
    """A linear map over tokens, then a GELU MLP over channels, each with its layer scale."""

    def __init__(self, tokens: int, channels: int, layer_scale: float = 0.1) -> None:
        super().__init__()
        self.norm1 = Affine(channels)
        self.linear_tokens = nn.Linear(tokens, tokens)
        self.gamma1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.norm2 = Affine(channels)
        self.mlp_channels = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )
        self.gamma2 = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.gamma1 * y
        return x + self.gamma2 * self.mlp_channels(self.norm2(x))


class ResMlp(nn.Module):
    """Patches (4 x 4 of 28, 2 x 2 of 8) and four ResMLP blocks (Touvron et al., 2021)."""

    def __init__(self, size: int, channels: int = 64, depth: int = 4) -> None:
        super().__init__()
        patch = _patch(size)
        self.stem = nn.Conv2d(1, channels, patch, stride=patch)
        tokens = (size // patch) ** 2
        self.blocks = nn.Sequential(*(ResMlpBlock(tokens, channels) for _ in range(depth)))
        self.norm = Affine(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(0, 2, 1)  # [B, tokens, channels]
        return self.head(self.norm(self.blocks(x)).mean(1))


class ViT(nn.Module):
    """Patches (4 x 4 of 28, 2 x 2 of 8), a class token and three pre-norm transformer blocks of
    torch's own (Dosovitskiy et al., 2021)."""

    def __init__(self, size: int, channels: int = 48, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        patch = _patch(size)
        self.stem = nn.Conv2d(1, channels, patch, stride=patch)
        tokens = 1 + (size // patch) ** 2
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, channels))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels,
                heads,
                3 * channels,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)  # [B, tokens, channels]
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg": vgg,
    "resnet": ResNet,
    "convnext": ConvNeXt,
    "mixer": Mixer,
    "resmlp": ResMlp,
    "vit": ViT,
    "mobilenet": MobileNet,
}
QCFS_NETWORKS = ("vgg", "resnet")


def make_network(name: str, data: str, qcfs: int | None = None) -> nn.Module:
    """An untrained network; ``qcfs`` levels instead of ReLU, with average pooling."""
    if qcfs is None:
        return NETWORKS[name](SIZES[data])
    if name not in QCFS_NETWORKS:
        raise ValueError(
            f"make_network: QCFS stands in for ReLU, and {name} has none; "
            f"with qcfs={qcfs} choose one of {', '.join(QCFS_NETWORKS)}."
        )
    from spikingjelly_signgd.neurons.qcfs import QCFS

    return NETWORKS[name](SIZES[data], activation=partial(QCFS, qcfs), pool="avg")


def weights_path(name: str, data: str, qcfs: int | None = None) -> Path:
    return WEIGHTS / f"{name}_{data}{'' if qcfs is None else f'_qcfs{qcfs}'}.safetensors"


def load_network(name: str, data: str, qcfs: int | None = None) -> nn.Module:
    """A network of ``train.py`` with its trained weights, in eval mode."""
    from safetensors.torch import load_file

    path = weights_path(name, data, qcfs)
    if not path.is_file():
        levels = "" if qcfs is None else f" --qcfs {qcfs}"
        raise FileNotFoundError(
            f"load_network: {path} is absent. "
            f"Run `python examples/train.py {name} --data {data}{levels}`."
        )
    network = make_network(name, data, qcfs)
    network.load_state_dict(load_file(path))
    return network.eval()


def _patch(size: int) -> int:
    return 4 if size >= 28 else 2
