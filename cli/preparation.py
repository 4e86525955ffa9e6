"""The preparation of images, texts and arrays that the options specify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..converters.sources import Preprocessing, preprocessing, takes_texts
from ..core.inputs import Inputs
from ..errors import InputError
from .files import numpy_

MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # of Pillow, to what they are read as
GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


@dataclass(frozen=True)
class Preparation:
    """What the options say is done with the values, in this order."""

    scale_pixels: bool = False
    channels: int | None = None
    resize: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    model: str | None = None  # whose own preprocessing takes the place of all others
    tokens: int | None = None  # of a text

    def __post_init__(self) -> None:
        given = {
            "--scale-pixels": self.scale_pixels or None,
            "--resize": self.resize,
            "--mean": self.mean,
            "--std": self.std,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if self.model is not None and wrong:
            raise InputError(
                f"--preprocess {self.model} does all that the model's makers did with images; "
                f"leave {', '.join(wrong)} out."
            )

    @cached_property
    def _own(self) -> Preprocessing:
        assert self.model is not None
        return preprocessing(self.model, self.tokens)

    def __getstate__(self) -> dict[str, Any]:
        """Without a library's own transform: a new worker makes it again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def texts(self, lines: Sequence[str], source: str) -> Inputs:
        """Token ids and masks."""
        if self.model is None:
            raise InputError(
                f"'{source}' holds texts; --preprocess hf:PATH_OR_NAME says whose tokenizer makes "
                "token ids of them."
            )
        if not takes_texts(self.model):
            raise InputError(f"--preprocess {self.model} is of images, but '{source}' holds texts.")
        return Inputs(self._own(lines))

    def apply(self, x: Tensor, source: str) -> Tensor:
        if self.model is not None:
            return self._as_its_makers_did(x, source)
        x = self._floats(x, source)
        if self.channels is not None:
            x = _with_channels(x, self.channels, source)
        if self.resize is not None:
            if x.dim() != 4:
                raise InputError(
                    f"--resize is for images [N, C, H, W], but those of '{source}' are "
                    f"{list(x.shape)}."
                )
            x = torch.nn.functional.interpolate(
                x, size=tuple(self.resize), mode="bilinear", antialias=True, align_corners=False
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            number = torch.tensor(values, dtype=x.dtype)
            if len(values) > 1 and (x.dim() < 2 or x.shape[1] != len(values)):
                raise InputError(
                    f"--{name} has {len(values)} values, one for each channel, but the samples of "
                    f"'{source}' are {list(x.shape[1:])}."
                )
            number = number.reshape(-1, *[1] * max(x.dim() - 2, 0))
            x = x - number if name == "mean" else x / number
        return x

    def picture(self, image: Any, source: str) -> Tensor:
        """A PIL image as [C, H, W]; by its makers' transform as they validate, from RGB."""
        if self.model is None:
            return self.apply(pixels(image, source)[None], source)[0]
        if image.mode[0] in "IF":  # of which Pillow's conversion makes 255 of all that is more
            raise InputError(
                f"'{source}' has the mode {image.mode!r}; save it with 8 bits a channel, grey or "
                "in colours."
            )
        image = image.convert("L" if self.channels == 1 else "RGB")
        return self._by_makers([image], [len(image.getbands()), image.height, image.width], source)[
            0
        ]

    def _as_its_makers_did(self, x: Tensor, source: str) -> Tensor:
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise InputError(
                f"--preprocess is for images [N, C, H, W] of 8 bits, but those of '{source}' are "
                f"{list(x.shape)} of {x.dtype}."
            )
        if self.channels is not None:
            x = _with_channels(x, self.channels, source).to(x.dtype)
        return self._by_makers(x, list(x.shape[1:]), source)

    def _by_makers(self, images: Any, shape: list[int], source: str) -> Tensor:
        own = self._own
        try:
            found: Tensor = own(images)
        except (ValueError, RuntimeError, TypeError) as error:  # of the model's library
            raise InputError(
                f"--preprocess {self.model} fails on images {shape} of '{source}': "
                f"{error}. Grey images for a model of colours need --channels 3."
            ) from error
        return found

    def _floats(self, x: Tensor, source: str) -> Tensor:
        if x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"'{source}' holds {x.dtype}; a network takes real numbers.")
        if x.is_floating_point():
            if self.scale_pixels:
                raise InputError(
                    f"--scale-pixels divides integers from 0 to 255 by 255, but '{source}' holds "
                    f"{x.dtype}; leave it out."
                )
            return x.float()
        if not self.scale_pixels:
            raise InputError(
                f"'{source}' holds integers ({x.dtype}), and what they were in training cannot be "
                "known. Say --scale-pixels (x / 255; --mean and --std apply after it), or save "
                "the samples as floats as in training."
            )
        if x.numel() and (int(x.min()) < 0 or int(x.max()) > 255):
            raise InputError(
                f"--scale-pixels takes integers from 0 to 255, but those of '{source}' go from "
                f"{int(x.min())} to {int(x.max())}."
            )
        return x.float() / 255


def _with_channels(x: Tensor, channels: int, source: str) -> Tensor:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise InputError(
            f"--channels is for images [N, 1 or 3, H, W], but those of '{source}' are "
            f"{list(x.shape)}."
        )
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return (x * torch.tensor(GREY).reshape(3, 1, 1)).sum(1, keepdim=True)


def pixels(image: Any, source: str) -> Tensor:
    """A PIL image as [C, H, W] uint8, with one channel or three."""
    mode, transparent = image.mode, "transparency" in image.info
    if mode not in MODES or transparent:
        what = "transparency" if transparent or "A" in mode else f"the mode {mode!r}"
        raise InputError(
            f"'{source}' has {what}; save it with 8 bits a channel, grey or in colours, opaque."
        )
    tensor = torch.from_numpy(numpy_().array(image.convert(MODES[mode])))
    return tensor[None] if tensor.dim() == 2 else tensor.permute(2, 0, 1).contiguous()
