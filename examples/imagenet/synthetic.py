"""Make a folder of JPEGs in the layout of ImageNet, for dry runs: coarse random patterns.

    python examples/imagenet/synthetic.py FOLDER [--images 200] [--classes 10] [--train 64]

Sides differ from image to image, and the first image of ``val`` is grey.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image


def make_folder(folder: Path, images: int, classes: int, train: int, seed: int = 0) -> None:
    """``val/class_0/0.jpg`` and so on: class by class as evenly as may be; ``train`` likewise."""
    generator = torch.Generator().manual_seed(seed)
    for part, count in (("val", images), ("train", train)):
        for i in range(count):
            path = folder / part / f"class_{i % classes}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = pattern(generator)
            grey = part == "val" and i == 0
            (image.convert("L") if grey else image).save(path, quality=90)


def pattern(generator: torch.Generator) -> Image.Image:
    """8 x 8 random colours, enlarged to sides of 160 to 320 pixels."""
    colours = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator)
    width, height = torch.randint(160, 321, (2,), generator=generator).tolist()
    return Image.fromarray(colours.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--train", type=int, default=64, help="images to calibrate on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_folder(given.folder, given.images, given.classes, given.train, given.seed)


if __name__ == "__main__":
    main()
