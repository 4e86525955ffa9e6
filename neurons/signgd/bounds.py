"""What is learned of signGD neurons stays where it may be, however far an optimiser goes.

A parameter is used within its bounds, scales from ``SMALLEST`` on and dead zones in [0, ``MOST``],
as far as kernels know the code in closed form. Beyond a bound its gradient leads back alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .dithered import MOST
from .step import SignGDParameters

SMALLEST = 2.0**-100  # of a scale: a normal number in float32, also times the finest step


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value < low, value > high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        (g,) = gradients
        further = (below & (g > 0)) | (above & (g < 0))
        return g.masked_fill(further, 0.0), None, None


def _within(value: Any, low: float, high: float) -> Any:
    """A parameter within its bounds, anything else as it is."""
    if not isinstance(value, nn.Parameter):
        return value
    made: Tensor = _Within.apply(value, low, high)  # type: ignore[no-untyped-call]
    return made


def bounded(p: SignGDParameters) -> SignGDParameters:
    """The neurons with parameters within their bounds; the same where none are learned."""
    if not (isinstance(p.scale, nn.Parameter) or isinstance(p.dead_zone, nn.Parameter)):
        return p
    scale = _within(p.scale, SMALLEST, torch.inf)
    return replace(p, scale=scale, dead_zone=_within(p.dead_zone, 0.0, MOST), check=False)
