"""Tiny models and data that the tests of the command line name as cli_zoo:..."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def tiny(pool: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    """[B, 1, 4, 4] to 3 logits."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        pool or nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model.eval()


def other() -> nn.Module:
    return tiny(seed=1)


def pooled() -> nn.Module:
    """Max pooling, which neither NIR nor Lava has."""
    return tiny(nn.MaxPool2d(2))


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))


def dense() -> nn.Module:
    """[B, 1, H, W] to a map of two classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def cosine() -> nn.Module:
    class Cosine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos()

    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), Cosine())


def loud() -> nn.Module:
    print("building the model")
    return tiny()


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


def images(count: int = 96) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def data() -> tuple[Tensor, Tensor]:
    """Labelled by ``tiny``."""
    x = images()
    return x, tiny()(x).argmax(1)


def unlabelled() -> Tensor:
    return images()


def dataset() -> TensorDataset:
    return TensorDataset(*data())


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return list(zip(x.split(40), y.split(40), strict=True))


def endless() -> Iterator[Tensor]:
    while True:
        yield images(10)


def failing() -> Iterator[Tensor]:
    yield images(10)
    raise OSError("the disk is gone")


def uneven() -> list[Tensor]:
    return [torch.rand(2, 3), torch.rand(2, 4)]


def half_labelled() -> list[object]:
    x, y = data()
    return [(x, y), x]


def triples() -> list[tuple[Tensor, Tensor, Tensor]]:
    x, y = data()
    return [(x, y, y)]


def nothing() -> list[Tensor]:
    return []


number = 3
