r"""The dithered gradient of neurons with dead zones, part by part in the caches of a CPU.

The definition is ``_Dithered.backward`` in ``gradient.py``, which makes some fifty tensors as large
as v. Here the parts of v are small, and made in place. With
:math:`x = |r| / (\theta c_m)` and :math:`M = 1 + x^2` the derivative of the spikes is

.. math::
    S'(x) = \frac{x}{M^2} \Bigl(2 + q \log_2 M + \frac{q}{\ln 2} x^2\Bigr), \qquad
    \frac{\partial S}{\partial q} = \frac{x^2}{2 M} \log_2 M .
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .dithered import SMALLEST

PART = 2**17  # elements of v: fewer cost more in calls, more do not fit a cache
FARTHEST = 1e7  # x, beyond what is within reach of any neuron


class Slopes(NamedTuple):
    """By the target [T, ...], the start, the scale and theta."""

    target: Tensor
    start: Tensor
    scale: Tensor
    theta: Tensor


class Given(NamedTuple):
    """What was computed: v_seq and its target [T, ...], all else broadcasts against v [...]."""

    target: Tensor
    v_seq: Tensor
    start: Tensor
    scale: Tensor
    theta: Tensor
    fan_out: Tensor | None  # times the gradient of what was sent; None where there is none

    def part(self, where: slice) -> Given:
        target, v_seq = self.target[:, where], self.v_seq[:, where]
        rank = self.start.dim()
        rest = (
            a[where] if a is not None and a.dim() == rank and len(a) > 1 else a for a in self[2:]
        )
        return Given(target, v_seq, *rest)  # type: ignore[arg-type]


def gradients(
    given: Given, eta: list[float], members: int, of_v: Tensor, of_last: Tensor
) -> Slopes:
    """The gradients, where every theta is above 0; of_v [T, ...] is that of v_seq."""
    start, scale, theta = given.start, given.scale, given.theta
    d_scale, d_theta = torch.zeros_like(scale), torch.zeros_like(theta)
    d_target, d_start = torch.empty_like(given.target), torch.empty_like(given.v_seq[0])
    whole = start.dim() == 0 or any(a.dim() == start.dim() and len(a) > 1 for a in (scale, theta))
    n = 1 if start.dim() == 0 else len(start)
    each = n if whole else max(1, PART * n // max(1, start.numel()))
    for first in range(0, n, each):
        where = slice(first, first + each) if start.dim() else ...
        part = given.part(where) if start.dim() else given  # type: ignore[arg-type]
        asked = of_v[:, where] if start.dim() else of_v
        carried = of_last[where].clone()
        by_scale, by_theta = _part(
            part, eta, members, asked, carried, d_target[:, where] if start.dim() else d_target
        )
        d_start[where] = carried
        d_scale += by_scale
        d_theta += by_theta
    return Slopes(d_target, d_start, d_scale, d_theta)


def _part(
    given: Given,
    eta: list[float],
    members: int,
    of_v: Tensor,
    carried: Tensor,
    d_target: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills ``d_target``, and ``carried`` with the gradient of the start; by scale and theta."""
    target, v_seq, start, scale, theta, fan_out = given
    finest = 2.0 ** (1 - members)
    rho = torch.maximum(theta, 1 - theta)
    kappa = (theta - 0.5) / (1 / 12 + (theta - 0.5).square())
    by_log, by_theta = torch.zeros_like(scale), torch.zeros_like(theta)
    r, g, x, near, error = (torch.empty_like(carried) for _ in range(5))
    for t in reversed(range(len(eta))):
        c_m = eta[t] * finest * scale
        torch.sub(start if t == 0 else v_seq[t - 1], target[t], out=r)
        torch.abs(r, out=x)
        torch.le(x, (2 / finest - 1 + rho) * c_m, out=near)
        torch.sub(v_seq[t], target[t], out=error)
        torch.add(of_v[t], carried, out=g)
        followed = torch.mul(g, near, out=d_target[t])
        torch.sub(g, followed, out=carried)
        by_log += torch.addcmul((r - error).mul_(carried).neg_(), followed, error).sum_to_size(
            scale.shape
        )
        by_theta += error.mul_(followed).sum_to_size(theta.shape) * kappa
        if fan_out is not None:
            near.mul_(fan_out)
            zone = theta.clamp(min=SMALLEST)
            sizes = zone * c_m
            x.div_(sizes).clamp_(max=FARTHEST)
            price, density = _spikes(x, theta, near)
            if density is not None:
                by_theta -= density.sum_to_size(theta.shape)
            resized = torch.mul(price, x, out=error)
            by_log -= resized.sum_to_size(scale.shape)
            by_theta -= (resized / zone).sum_to_size(theta.shape)
            moved = torch.copysign(price.div_(sizes), r, out=x)
            d_target[t].sub_(moved)
            carried.add_(moved)
    return by_log / scale, by_theta


def _spikes(x: Tensor, theta: Tensor, price: Tensor) -> tuple[Tensor, Tensor | None]:
    """S'(x) times the price, and the derivative by q times it where q follows theta."""
    q = (1 - theta).clamp(min=1 / 3)
    square = x.square()
    more = square + 1
    bits = torch.log2(more)
    density = None
    if bool((theta < 2 / 3).any()):
        density = square / more
        density.mul_(bits).mul_(price).mul_((theta < 2 / 3) * 0.5)
    bits.mul_(q).addcmul_(square, q / math.log(2)).add_(2).mul_(x).mul_(price)
    return bits.div_(more).div_(more), density
