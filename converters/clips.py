"""Clips that calibrate a plan for streams: frames [F, N, ...] of N streams, or moving stills."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.dealing import deal
from ..core.distributed import ALONE, Distributed
from ..core.given import one_batch
from ..core.inputs import Batch, Inputs, batch_of, samples_of
from ..errors import CalibrationError, InputError
from ..neurons.rounding import Rounded

FEWEST = 4  # frames: a start, and changes
BATCH = 64  # frames that are one batch of a calibration


@dataclass(frozen=True)
class Motion(Rounded):
    """The assumed motion if stills [N, C, H, W] calibrate a plan for streams: ``clips(stills)``.

    Each image moves back and forth along a line of random direction, ``pixels`` per frame and at
    most ``reach`` pixels (``reach`` >= ``pixels``) from its position, by bilinear interpolation
    with repeated borders; ``noise`` is the standard deviation of the sensor noise of every pixel
    and frame, in units of the input. Raises InputError for numbers that are out of range.
    """

    pixels: float = 0.2
    noise: float = 0.0
    frames: int = 8
    reach: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pixels", "noise", "reach"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise InputError(f"Motion: {name} is a number from 0 on, but it is {value!r}.")
        whole = isinstance(self.frames, int) and not isinstance(self.frames, bool)
        if not whole or self.frames < FEWEST:
            raise InputError(
                f"Motion: frames is an integer of at least {FEWEST}, but it is {self.frames!r}."
            )
        if self.pixels > self.reach:
            raise InputError(
                f"Motion: an image that stays within {self.reach:g} pixels of its place cannot "
                f"move {self.pixels:g} pixels per frame; choose reach >= pixels."
            )

    @torch.no_grad()
    def clips(self, stills: Tensor) -> Tensor:
        """Frames [F, N, C, H, W] of images [N, C, H, W]. Raises CalibrationError."""
        if not isinstance(stills, Tensor) or stills.dim() != 4 or not stills.is_floating_point():
            shown = list(stills.shape) if isinstance(stills, Tensor) else type(stills).__name__
            raise CalibrationError(
                f"Motion moves images [N, C, H, W] of floating-point numbers, but these are "
                f"{shown}. Pass clips [F, N, ...] with stream=True."
            )
        if not stills.numel():
            raise CalibrationError(
                f"there is no image to move: the stills are {list(stills.shape)}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        frames = [self._moved(stills, by) for by in self._path(len(stills), generator)]
        clip = torch.stack(frames)
        if self.noise:
            drawn = torch.randn(clip.shape, generator=generator)
            clip = clip + self.noise * drawn.to(clip)
        return clip

    def _path(self, number: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Where each image is in each frame, [N, 2] in pixels."""
        angle = 2 * math.pi * torch.rand(number, generator=generator)
        begun = 4 * self.reach * torch.rand(number, generator=generator)
        for frame in range(self.frames):
            way = (begun + frame * self.pixels) % (4 * self.reach or 1.0)
            at = torch.minimum(way - self.reach, 3 * self.reach - way)
            yield torch.stack([at * angle.cos(), at * angle.sin()], 1)

    @staticmethod
    def _moved(stills: Tensor, by: Tensor) -> Tensor:
        size = torch.tensor([stills.shape[-1], stills.shape[-2]])
        moved = torch.cat([torch.eye(2).expand(len(by), 2, 2), (2 * by / size).unsqueeze(2)], 2)
        grid = F.affine_grid(moved.to(stills), list(stills.shape), align_corners=False)
        return F.grid_sample(stills, grid, padding_mode="border", align_corners=False)


def clips_of(
    calibration: Any, motion: Motion | None, most: int | None = None, world: Distributed = ALONE
) -> list[Batch]:
    """Clips [F, N, ...] of a tensor, of a dict of tensors by input, or of an iterable of such or of
    pairs (clip, target); with ``motion`` of stills [N, ...].

    Each of several inputs is [F, N, ...]; integers and booleans are the same in all frames of a
    stream. All processes of ``world`` get all clips, each of which one of them has loaded. Raises
    CalibrationError.
    """
    given = batch_of(one_batch(calibration))
    one = isinstance(given, (Tensor, Inputs))
    if not one and not isinstance(given, Iterable):
        raise CalibrationError(
            f"clips are a tensor [F, N, ...] or an iterable of such, not {type(given).__name__}."
        )
    dealt = [(0, given)] if one else deal(given, world, most=most)
    found = {number: _clip(item, motion) for number, item in dealt}
    if world.size > 1 and not one:  # of a view the whole would travel
        found = {number: clip.clone() for number, clip in found.items()}
    clips = [found[0]] if one else world.in_order(found)
    if not clips:
        raise CalibrationError(
            "the calibration data contain no clip; a few clips of a dozen frames each are enough."
        )
    return clips


def _clip(item: Any, motion: Motion | None) -> Batch:
    x = batch_of(item[0] if isinstance(item, (tuple, list)) else item)
    if motion is not None:
        if isinstance(x, Inputs):
            raise CalibrationError(
                f"Motion moves the images of a model with one input, but there are {x}. Pass "
                "clips with stream=True."
            )
        x = motion.clips(x)
    inputs = list(x.tensors.values()) if isinstance(x, Inputs) else [x]
    for value in x.floats if isinstance(x, Inputs) else inputs:
        _check(value)
    for name, value in x.tensors.items() if isinstance(x, Inputs) else ():
        _check_whole(name, value)
    if len({value.shape[:2] for value in inputs}) != 1:
        raise CalibrationError(
            "the inputs of a clip must have the same numbers of frames and of streams, but they "
            f"are {x}."
        )
    return x


def _check(clip: Any) -> None:
    if not isinstance(clip, Tensor) or clip.dim() < 3:
        shown = list(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
        raise CalibrationError(
            f"a clip is [F, N, ...], F frames of N streams, but one is {shown}. {STILLS}"
        )
    if len(clip) < FEWEST:
        raise CalibrationError(
            f"a clip has {len(clip)} frames, but changes are measured from the second frame on: "
            f"{FEWEST} or more are needed. Pass longer clips [F, N, ...]. {STILLS}"
        )
    if not clip.numel() or not bool(clip.isfinite().all()):
        raise CalibrationError("a clip is empty, or holds NaN or infinity.")


def _check_whole(name: str, value: Tensor) -> None:
    """Integers and booleans (token ids, masks) must be the same in all frames."""
    if not value.is_floating_point() and not bool((value == value[:1]).all()):
        raise CalibrationError(
            f"the input {name!r} of a clip holds integers or booleans, which must be the same in "
            "all frames of a stream, but they change. Pass one frame for all, "
            "x[:1].expand_as(x), or let them differ between clips only."
        )


STILLS = "For stills [N, C, H, W], pass stream=sg.Motion(pixels=0.2), which sets how they move."


def frames_of(clip: Batch) -> Batch:
    """All frames [F * N, ...], stream beside stream."""
    return _each(clip, lambda x: x.flatten(0, 1))


def _each(clip: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(clip, Tensor):
        return change(clip)
    return Inputs({name: change(x) for name, x in clip.tensors.items()})


def batches_of_frames(clips: Iterable[Batch]) -> list[Batch]:
    """Batches [B, ...] for what looks at one frame at a time."""
    return [part for clip in clips for part in frames_of(clip).split(BATCH)]


def segments(clips: Sequence[Batch], frames: int, most: int) -> Batch:
    """At most ``most`` pieces [frames, ...] of the clips, side by side; of longer clips several.

    Shorter where a clip is.
    """
    length = min([frames, *map(len, clips)])
    parts = [
        clip[start : start + length]
        for clip in clips
        for start in range(0, len(clip) - length + 1, length)
    ]
    streams = sum(samples_of(part, 1) for part in parts)
    every = max(1, -(-streams // most))
    return _each(_beside(parts), lambda x: x[:, ::every])


def _beside(parts: Sequence[Any]) -> Batch:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), 1)
    return Inputs({k: torch.cat([p.tensors[k] for p in parts], 1) for k in parts[0].tensors})
