r"""The gradient of signGD neurons with a dead zone, and of the spikes that they send.

A step (``neurons/signgd/sparse.py``) is a rounding of r_0 = v(t-1) - f to a multiple of the finest
step :math:`c_m`: :math:`v = f + e`, and over values of f spread over many steps e behaves like a
new random number each time (*dithered*). Within the reach :math:`|r_0| \le (2 - 2^{1-m}) c_1 + \rho
c_m`,
:math:`\rho = \max(\theta, 1 - \theta)`, the derivative is that of the mean over such draws: v
follows its target, whatever it was before, and the error grows with the step and the zone,

.. math::
    \frac{\partial v}{\partial f} = 1, \qquad \frac{\partial v}{\partial v(t-1)} = 0, \qquad
    \frac{\partial v}{\partial \log c} = e, \qquad
    \frac{\partial v}{\partial \theta} = e\, \frac{\kappa'(\theta)}{\kappa(\theta)}, \qquad
    \kappa^2 = \frac{\mathrm{E}[e^2]}{c_m^2} = \frac{1}{12} + (\theta - \tfrac12)^2 .

:math:`\kappa` follows from e modulo :math:`c_m`, which is uniform: theta = 1/2 takes the nearer of
two multiples; another theta takes the further one half of the time that either is possible, which
adds :math:`\int_{1-\rho}^{1/2} (1 - 2u)\,du = (\rho - 1/2)^2` (exact for :math:`\theta \le 2/3`,
beyond a bound). Out of reach v moves by the whole reach whatever f is:

.. math::
    \frac{\partial v}{\partial f} = \frac{\partial v}{\partial \theta} = 0, \qquad
    \frac{\partial v}{\partial v(t-1)} = 1, \qquad
    \frac{\partial v}{\partial \log c} = -c_m d .

One case is not covered by this distribution: a neuron that has been silent since the start is at
its resting value, :math:`\partial v(t) / \partial v(0) = 1`, beside following f as above.

**Spikes.** With :math:`x = |r_0| / (\theta c_m)` a neuron is silent for x < 1, from there on fires
once, and once more for a part q of the digits behind the first one, of which there are
:math:`\log_2 x`:

.. math::
    \mathrm{E}[n] \approx S(x) = \frac{x^2}{1 + x^2} \bigl(1 + \tfrac{q}{2} \log_2 (1 + x^2)\bigr),
    \qquad q = \max(\tfrac13, 1 - \theta) .

Spikes are counted exactly; their derivative is that of S, by r_0, the step and theta, within reach.
q is the mean of :math:`\sigma^2` over members late in the chain, exact for
:math:`\theta \le 4/5`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..nonlinearities import NONLINEARITIES
from ..schedules import ListSchedule
from . import sparse
from .sequence import signgd_multi_step
from .step import SignGDParameters, SignGDState

# of theta, where it is learned: kernels know the code of a step in closed form as far as that
MOST = 2 / 3
_IDENTITY = NONLINEARITIES["identity"]
SMALLEST = 1e-3  # of theta, in x


class SparseTrack(torch.autograd.Function):
    """T steps toward targets: (v [T, ...], the spikes of all, each times its ``fan_out``)."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,  # [T, ...], or [...] where it does not change
        eta: Tensor,  # [T]
        scale: Tensor,
        resting: Tensor,
        theta: Tensor,
        fan_out: Tensor | None,
        members: int,
        fires_at_tie: bool,
        static: bool,
    ) -> tuple[Tensor, Tensor]:
        steps, shape = len(eta), target.shape if static else target.shape[1:]
        f_seq = target.expand(steps, *shape) if static else target
        start = resting.expand(shape)
        codes, y = _sequence(f_seq, eta, scale, theta, start, members, fires_at_tie)
        before = torch.cat([start.unsqueeze(0), y[:-1]]) - f_seq
        silent = codes == 0
        quiet = silent if steps == 1 else silent.cumprod(0).bool()
        sent = target.new_zeros(())
        if fan_out is not None:
            for code in codes:
                sent = sent + (sparse.count(code) * fan_out).sum()
        ctx.save_for_backward(target, y, before, quiet, eta, scale, theta, fan_out)
        ctx.resting, ctx.members, ctx.static = resting.shape, members, static
        return y, sent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_sent: Tensor) -> Any:  # type: ignore[override]
        target, y, before, quiet, eta, scale, theta, fan_out = ctx.saved_tensors
        carried = torch.zeros_like(gradient[0])
        d_resting = torch.zeros_like(gradient[0])
        d_target = torch.zeros_like(target)
        d_theta, d_scale, d_eta = (torch.zeros_like(a) for a in (theta, scale, eta))
        finest, rho = 2.0 ** (1 - ctx.members), torch.maximum(theta, 1 - theta)
        by_zone = (theta - 0.5) / (1 / 12 + (theta - 0.5).square())  # kappa' / kappa
        for t in reversed(range(len(eta))):
            c_m, r = eta[t] * finest * scale, before[t]
            error = y[t] - (target if ctx.static else target[t])
            near = r.abs() <= (2 / finest - 1 + rho) * c_m
            g = gradient[t] + carried
            d_resting += gradient[t] * quiet[t]
            by_error = g * error * near
            carried = g.where(~near, 0.0)
            d_target_t = g * near
            d_step = by_error + carried * (error - r)  # by log c; error - r is -c_m d
            d_theta += (by_error * by_zone).sum_to_size(theta.shape)
            if fan_out is not None:
                zone = theta.clamp(min=SMALLEST)
                x = r.abs() / (zone * c_m)
                slope, by_density = slopes(x, theta)
                price = (of_sent * fan_out) * near
                moved = price * slope * r.sign() / (zone * c_m)
                carried = carried + moved
                d_target_t = d_target_t - moved
                d_step = d_step - price * slope * x
                by_density = by_density * torch.where(theta < 2 / 3, -1.0, 0.0)
                d_theta += (price * (by_density - slope * x / zone)).sum_to_size(theta.shape)
            (d_target if ctx.static else d_target[t]).add_(d_target_t)
            d_eta[t] = d_step.sum() / eta[t]
            d_scale += (d_step / scale).sum_to_size(scale.shape)
        d_resting = (d_resting + carried).sum_to_size(ctx.resting)
        return d_target, d_eta, d_scale, d_resting, d_theta, None, None, None, None


def _sequence(
    f_seq: Tensor,
    eta: Tensor,
    scale: Tensor,
    theta: Tensor,
    v: Tensor,
    members: int,
    fires_at_tie: bool,
) -> tuple[Tensor, Tensor]:
    """Codes and v after each step [T, ...]: by the kernels, thirty times as fast, in float32 and
    where every element has a zone."""
    if f_seq.dtype == torch.float32 and bool((theta > 0).all()):
        sizes = ListSchedule(tuple(map(float, eta)), 1.0)
        zone = theta if theta.dim() else float(theta)
        given = SignGDParameters(_IDENTITY, sizes, scale, members=members, dead_zone=zone)
        state = SignGDState(v.contiguous())
        done = signgd_multi_step((f_seq,), state, given, keep_spikes=True)
        assert done.spike_seq is not None
        return done.spike_seq, done.y
    codes, values = [], []
    for f, size in zip(f_seq, eta, strict=True):
        code, v = _step(f, size * scale, theta, v, members, fires_at_tie)
        codes.append(code)
        values.append(v)
    return torch.stack(codes), torch.stack(values)


def _step(
    f: Tensor, size: Tensor, theta: Tensor, v: Tensor, members: int, fires_at_tie: bool
) -> tuple[Tensor, Tensor]:
    code, after = sparse.sparse_step(f, size, theta, v, members)
    if theta.dim() and not bool((theta > 0).all()):  # elements without a zone fire at every step
        dense, other = sparse.dense_step(f, size, v, members, fires_at_tie)
        code, after = code.where(theta > 0, dense), after.where(theta > 0, other)
    return code, after


def expected_spikes(x: Tensor, theta: Tensor) -> Tensor:
    """S(x) of the module's docstring."""
    q = (1 - theta).clamp(min=1 / 3)
    return x.square() / (1 + x.square()) * (1 + q / 2 * torch.log2(1 + x.square()))


def slopes(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """S'(x), and the derivative of S by q."""
    q = (1 - theta).clamp(min=1 / 3)
    more = 1 + x.square()
    bits = torch.log2(more) / 2
    slope = 2 * x / more.square() * (1 + q * bits)
    slope = slope + x.square() / more * q / math.log(2) * x / more
    return slope, x.square() / more * bits
