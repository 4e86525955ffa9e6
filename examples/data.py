"""Two small image sets, each split once and for all into train, validation and test.

Validation chooses (epochs, step sizes, scales); test is read once, at the end.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SPLIT_SEED = 0
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60,000 training images, in [0, 1]
FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "~/datasets/fashion-mnist")


class Split(NamedTuple):
    images: Tensor  # [N, 1, H, W] float32
    labels: Tensor  # [N] int64


class Data(NamedTuple):
    train: Split
    validation: Split
    test: Split


def digits() -> Data:
    """The 1,797 digits of scikit-learn in [0, 1], 8 x 8, stratified about 60/15/25."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.tensor(source.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(source.target, dtype=torch.int64)

    def split(rows: Tensor, size: float) -> tuple[Tensor, Tensor]:
        rest, part = train_test_split(
            rows.numpy(), test_size=size, random_state=SPLIT_SEED, stratify=labels[rows].numpy()
        )
        return torch.from_numpy(rest), torch.from_numpy(part)

    rest, test = split(torch.arange(len(labels)), 0.25)
    train, validation = split(rest, 0.2)
    return Data(*(Split(images[rows], labels[rows]) for rows in (train, validation, test)))


def fashion_mnist(folder: str | Path | None = None) -> Data:
    """Fashion-MNIST (Xiao et al., 2017), 28 x 28, less FASHION_MEAN, over FASHION_STD.

    Validation is the last 5,000 of a seeded permutation of the 60,000; test the official 10,000.
    The four IDX files lie in ``folder``, else in $FASHION_MNIST, else in FASHION_FOLDERS.
    """
    found = _find_fashion(folder)
    images, labels = _read_fashion(found, "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, validation = order[:-5000], order[-5000:]
    return Data(
        Split(images[train], labels[train]),
        Split(images[validation], labels[validation]),
        Split(*_read_fashion(found, "t10k")),
    )


DATA = {"digits": digits, "fashion": fashion_mnist}


def _find_fashion(folder: str | Path | None) -> Path:
    asked = folder or os.environ.get("FASHION_MNIST")
    candidates = [Path(p).expanduser() for p in ((asked,) if asked else FASHION_FOLDERS)]
    for candidate in candidates:
        if (candidate / "train-images-idx3-ubyte.gz").is_file():
            return candidate
    raise FileNotFoundError(
        f"fashion_mnist: no train-images-idx3-ubyte.gz in {', '.join(map(str, candidates))}. "
        f"Run `apt-get install dataset-fashion-mnist`, or name the folder of the four .gz files "
        f"by the argument `folder` or by the environment variable FASHION_MNIST."
    )


def _read_fashion(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    pixels = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    images = (pixels.unsqueeze(1).float() / 255 - FASHION_MEAN) / FASHION_STD
    return images, labels.long()


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """IDX of unsigned bytes: 0, 0, type 8, dimensions; big-endian sizes; the values."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(
            f"fashion_mnist: {path} begins with {bytes(content[:4])!r}, which is not IDX of "
            f"unsigned bytes in {dimensions} dimensions. Fetch the file again."
        )
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape)
