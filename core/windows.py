"""Frames of a signal: windows that slide by a hop, such as those of a waveform."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

TAILS = ("refuse", "drop", "pad")


def windows(
    x: Tensor,
    size: int,
    hop: int | None = None,
    *,
    dim: int = -1,
    lead: int = 0,
    tail: str = "refuse",
) -> Tensor:
    """Windows of ``size`` samples of x [B, ..., L, ...], each ``hop`` after the one before.

    They are the frames [F, B, ..., size, ...] of a stream. Time is the dimension ``dim`` of x, and
    unless given the hop is the size.

    ``lead`` zeros are put before the signal, where a network sees some of the window before. For a
    remainder shorter than a window, ``tail`` says whether to "drop" it, to "pad" it with zeros, or
    to "refuse" such a length. Raises InputError.
    """
    hop = size if hop is None else hop
    _check(x, size, hop, dim, lead, tail)
    x = x.movedim(dim, -1)
    rest = (x.shape[-1] + lead - size) % hop if x.shape[-1] + lead >= size else None
    more = size - lead - x.shape[-1] if rest is None else -rest % hop
    if more and tail == "refuse":
        raise InputError(
            f"{x.shape[-1]} samples after {lead} zeros are not a whole number of windows of "
            f"{size} with a hop of {hop}: {more} are missing. Pass tail='pad' to append as many "
            "zeros, or tail='drop' to drop the remainder."
        )
    x = F.pad(x, (lead, more if tail == "pad" else 0))
    if x.shape[-1] < size:
        raise InputError(
            f"a window has {size} samples, but the signal has {x.shape[-1]}. Pass tail='pad', or "
            "a longer signal."
        )
    frames = x.unfold(-1, size, hop)  # [B, ..., F, size]
    return frames.movedim(-2, 0).movedim(-1, dim if dim < 0 else dim + 1).contiguous()


def _check(x: Tensor, size: int, hop: int, dim: int, lead: int, tail: str) -> None:
    if not isinstance(x, Tensor) or not -x.dim() < dim < x.dim() or dim == 0:
        raise InputError(
            "windows takes a signal [B, ..., L, ...] with time in dimension dim, which is not "
            f"the first, but x is {list(getattr(x, 'shape', ())) or type(x).__name__} and dim "
            f"{dim!r}. Write x.unsqueeze(0) for a single signal."
        )
    for name, value, least in (("size", size, 1), ("hop", hop, 1), ("lead", lead, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} is a number of samples, at least {least}, not {value!r}.")
    if tail not in TAILS:
        raise InputError(f"tail is one of {', '.join(TAILS)}, but it is {tail!r}.")
