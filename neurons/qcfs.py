r"""QCFS: the quantised clip-floor-shift activation, a ReLU with L levels and a learned upper bound.

.. math::
    h = x + \theta / 2, \qquad
    n = \textstyle\sum_{k=1}^{L} \Theta(h - k\theta), \qquad
    \text{out} = n\,\theta, \qquad \theta = v_{th} / L

This is the paper's :math:`\theta\, \mathrm{clip}(\lfloor x / \theta + 1/2 \rfloor, 0, L)`
counted by comparison as in ``group_step``: a group neuron of L members returns the same bits in
its first step.

Backward, the floor has slope 1. For x: 1 where 0 <= x <= v_th, else 0. For v_th: n/L - x/v_th
there, 1 above, 0 below, summed and scaled by 1 / sqrt(N L) with N the units of one sample
(Esser et al., ICLR 2020), so that the bound changes no faster than a weight.

Source: Bu et al., ICLR 2022 (arXiv:2303.04347).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST_THRESHOLD = 2.0**-20  # keeps the ceiling positive where softplus underflows


def _qcfs(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    threshold = threshold.to(x.dtype)
    theta = threshold / levels
    k = torch.arange(1, levels + 1, device=x.device, dtype=x.dtype)
    h = (x + 0.5 * theta).contiguous()
    n = torch.bucketize(h, k * theta, right=True, out_int32=True)
    return torch.mul(n, theta, out=torch.empty_like(x))  # in the memory format of x


qcfs = torch.library.custom_op(
    "spikingjelly_signgd::qcfs",
    _qcfs,
    mutates_args=(),
    schema="(Tensor x, Tensor threshold, int levels) -> Tensor",
)


@qcfs.register_fake
def _(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, threshold, ctx.levels = inputs
    ctx.save_for_backward(x, threshold, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, threshold, out = ctx.saved_tensors
    inside = (x >= 0) & (x <= threshold)
    slope = torch.where(inside, (out - x) / threshold, (x > threshold).to(x.dtype))
    units = x.numel() // x.shape[0] if x.ndim > 1 and x.shape[0] else x.numel()
    scale = torch.sym_sqrt(max(1, units) * ctx.levels)
    grad_threshold = (grad * slope).sum().to(threshold.dtype) / scale
    return grad * inside, grad_threshold.reshape(threshold.shape), None


qcfs.register_autograd(_backward, setup_context=_setup_context)


class QCFS(nn.Module):
    """x of any shape to ``levels`` + 1 values from 0 to ``v_threshold``, one learned scalar.

    The parameter is ``raw_threshold``; exclude it from weight decay, which pulls v_threshold to
    0.69.
    """

    def __init__(self, levels: int, v_threshold: float = 1.0) -> None:
        super().__init__()
        if levels < 1 or int(levels) != levels:
            raise ValueError(f"QCFS: levels is an integer >= 1, but it is {levels!r}.")
        self.levels = int(levels)
        self.raw_threshold = nn.Parameter(torch.zeros(()))
        self.set_threshold(v_threshold)

    @property
    def v_threshold(self) -> Tensor:
        """The largest output, [], positive whatever the optimizer did."""
        return F.softplus(self.raw_threshold) + LOWEST_THRESHOLD

    @torch.no_grad()
    def set_threshold(self, v_threshold: float) -> None:
        """Sets the largest output, to the rounding of softplus."""
        above = v_threshold - LOWEST_THRESHOLD
        if not 0 < above < math.inf:
            raise ValueError(
                f"QCFS: v_threshold is the largest output, so it is finite and above "
                f"{LOWEST_THRESHOLD:.1e}, but it is {v_threshold!r}."
            )
        # the inverse of softplus: log(e^y - 1) = y + log(1 - e^-y)
        self.raw_threshold.fill_(above + math.log(-math.expm1(-above)))

    def forward(self, x: Tensor) -> Tensor:
        return qcfs(x, self.v_threshold, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, v_threshold={self.v_threshold.item():.4g}"
