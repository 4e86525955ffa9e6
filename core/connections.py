"""The connections that a linear operation makes, counted exactly.

A spike meets a weight that is not zero, inside the border of the image, in its own group of
channels: the operation itself, with ones for the weights that are not zero, counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Linear
from .operations import apply_over_time


def arriving(node: Linear, values: list[Tensor], batch: int) -> Tensor:
    """How much of ``values``, float64 [T, B, ...] each, arrives at each output, every connection
    being one."""
    if node.op == "upsample":
        return _upsampled(values[0], node.attributes)
    device = values[0].device
    tensors = {
        name: (value.to(device) != 0).double() if name == "weight" else value.to(device)
        for name, value in node.tensors.items()
    }
    op, attributes, grown = _counting(node, values[0])
    in_time = [True] * len(values)
    return apply_over_time(op, values, in_time, attributes, tensors, batch, True) * grown


def _counting(node: Linear, x: Tensor) -> tuple[str, dict[str, Any], float | Tensor]:
    """An operation whose connections are ones: averages become sums, or are multiplied up."""
    a = dict(node.attributes)
    if node.op == "mean":
        return "sum", a, 1.0
    if node.op == "add":
        return "add", {**a, "coefficients": (1, 1)}, 1.0
    if node.op == "avg_pool":
        if len(a["kernel_size"]) > 1:
            return "avg_pool", {**a, "divisor_override": 1}, 1.0
        return "avg_pool", {**a, "count_include_pad": True}, float(prod(a["kernel_size"]))
    if node.op == "adaptive_avg_pool":
        size = torch.ones((), dtype=torch.double, device=x.device)
        for out, n in zip(a["output_size"], x.shape[-len(a["output_size"]) :], strict=True):
            i = torch.arange(out, device=x.device)
            ends = (i + 1) * n
            one = -(-ends // out) - i * n // out
            size = size.unsqueeze(-1) * one
        return "adaptive_avg_pool", a, size
    return node.op, a, 1.0


def _upsampled(x: Tensor, a: Mapping[str, Any]) -> Tensor:
    """Every input that an output takes anything of, one dimension after the other."""
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(a["mode"], a["mode"])
    corners = a.get("align_corners")
    for dim, out in enumerate(a["size"], -len(a["size"])):
        one = torch.eye(x.shape[dim], dtype=torch.double, device=x.device).unsqueeze(1)
        found = F.interpolate(one, size=out, mode=mode, align_corners=corners)
        x = (x.movedim(dim, -1) @ (found.squeeze(1).abs() > 1e-12).double()).movedim(-1, dim)
    return x
