"""Sums over what adaptive averages and interpolations take their values from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_sum(x: Tensor, size: Sequence[int]) -> Tensor:
    """The sums over the windows whose means adaptive pooling to ``size`` takes."""
    for dim, out in enumerate(size, x.dim() - len(size)):
        n, o = x.shape[dim], torch.arange(out)
        i = torch.arange(n).unsqueeze(1)
        x = _sums(x, dim, (i >= o * n // out) & (i < -((o + 1) * n // -out)))
    return x


def interpolated_sum(x: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    """The sums of all that each interpolated value depends on, of ``operations.LINEAR``'s node."""
    size, mode = attributes["size"], attributes["mode"]
    mode = "bilinear" if mode in ("linear", "trilinear") else mode
    for dim, out in enumerate(size, x.dim() - len(size)):
        n = x.shape[dim]
        one = torch.eye(n, dtype=torch.double).reshape(n, 1, n, 1)
        corners = attributes.get("align_corners")
        found = F.interpolate(one, size=(out, 1), mode=mode, align_corners=corners)
        x = _sums(x, dim, found.reshape(n, out).abs() > 1e-12)
    return x


def _sums(x: Tensor, dim: int, window: Tensor) -> Tensor:
    """``window`` [n, out] says which of the n values of a dimension each sum takes."""
    return torch.tensordot(x, window.to(x), dims=([dim], [0])).movedim(-1, dim)  # type: ignore[arg-type]
