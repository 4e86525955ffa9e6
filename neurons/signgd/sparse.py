r"""One step of signGD neurons with a dead zone, and its spikes as an integer code.

.. math::
    r_0 &= v(t-1) - f(x(t)), \qquad c_k = \eta(t)\, s\, 2^{1-k} \\
    \sigma_k &= \mathrm{sign}(r_{k-1}) \text{ where } |r_{k-1}| > \theta c_k, \text{ else } 0,
    \qquad r_k = r_{k-1} - c_k \sigma_k, \qquad k = 1 \dots m \\
    v(t) &= v(t-1) - c_m d, \qquad d = \sum_k 2^{m-k} \sigma_k, \quad |d| < 2^m

A tie, :math:`|r| = \theta c_k`, is silent. Every backend and reader of files rounds alike, after
each of these operations and nowhere else, without fused multiply-add: theta is a float32,
:math:`c_1 = \mathrm{fl}(\eta(t) s)`, :math:`\theta c_k = \mathrm{fl}(\theta c_1) 2^{1-k}`,
:math:`r_0 = \mathrm{fl}(v - f)`, :math:`r_k = \mathrm{fl}(r_{k-1} - c_k \sigma_k)`,
:math:`v \leftarrow \mathrm{fl}(v - \mathrm{fl}(c_m d))`.

**Bound.** With :math:`\rho = \max(\theta, 1 - \theta)`, a target within
:math:`(2 - 2^{1-m}) c_1 + \rho c_m` of v is held within :math:`\rho c_m` after the step. By
induction over m: in units of :math:`c_m` the members after the first reach
:math:`2^{m-1} - 1 + \rho`. A silent first one leaves at most :math:`\theta 2^{m-1}`, within that
since :math:`1 - \rho \le 1 - \theta`; one that fires leaves between
:math:`-(1 - \theta) 2^{m-1}`, within it since :math:`1 - \rho \le \theta`, and the reach less
:math:`2^{m-1}`, which is theirs exactly. So theta = 1/2
rounds to the nearest d; at theta = 2/3 d has the fewest nonzero digits among the codes of m
digits, and no two neighbours fire for :math:`|r_0| \le 4/3\, c_1` (the canonic signed-digit form:
having fired, :math:`|r| \le c_k / 3 = (2/3) c_{k+1}`).

What fired is an int32 *code*: the members with +1 in its low 16 bits, those with -1 in the high
ones, the first member's bit the highest of m.

The dead zone is new here. The neuron without one is that of Oh & Lee, ICML 2024 (arXiv:2407.01645);
related to it are the canonic signed-digit form (Reitwiesner 1960), ternary gradients (Wen et al.,
NeurIPS 2017) and sigma-delta neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

MOST_MEMBERS = 12
CODE = torch.int32
_NEGATIVE = 16  # where the bits of -1 begin


def sparse_step(
    target: Tensor, size: Tensor, theta: Tensor, v: Tensor, members: int
) -> tuple[Tensor, Tensor]:
    """The definition: f(x), c_1 and theta > 0, and v, which they broadcast to: (code, v after)."""
    r, bound = v - target, theta * size
    code = torch.zeros_like(v, dtype=CODE)
    for k in range(members):
        c_k, h_k = size * 2.0**-k, bound * 2.0**-k
        up, down = r > h_k, r < -h_k
        r = r - c_k * (up.to(r.dtype) - down.to(r.dtype))  # the product is exact
        code = code + ((up.to(CODE) | down.to(CODE) << _NEGATIVE) << (members - 1 - k))
    return code, v - size * 2.0 ** (1 - members) * levels(code, v.dtype)


def dense_step(
    target: Tensor, size: Tensor, v: Tensor, members: int, fires_at_tie: bool
) -> tuple[Tensor, Tensor]:
    """``signgd_step`` without a dead zone, to the code of this file."""
    code = torch.zeros_like(v, dtype=CODE)
    for k in range(members):
        up = v >= target if fires_at_tie else v > target
        v = torch.addcmul(v, up.to(v.dtype).mul_(2).sub_(1), size * 2.0**-k, value=-1)
        code = code + ((up.to(CODE) | (~up).to(CODE) << _NEGATIVE) << (members - 1 - k))
    return code, v


def surrogate_step(
    target: Tensor,
    size: Tensor,
    theta: Tensor,
    v: Tensor,
    members: int,
    surrogate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """``sparse_step`` to (d, v after), with sigma's gradient: that of H(r - h) + H(r + h) - 1."""
    r, bound, d = v - target, theta * size, torch.zeros_like(v)
    for k in range(members):
        c_k, h_k = size * 2.0**-k, bound * 2.0**-k
        soft = surrogate(r - h_k) + surrogate(r + h_k)
        sigma = (r > h_k).to(r.dtype) - (r < -h_k).to(r.dtype) + (soft - soft.detach())
        r = r - c_k * sigma
        d = 2 * d + sigma
    return d, v - size * 2.0 ** (1 - members) * d


def masks(code: Tensor) -> tuple[Tensor, Tensor]:
    """The members that fired +1 and those that fired -1, as numbers of m bits, int32."""
    return code & 0xFFFF, code >> _NEGATIVE


def levels(code: Tensor, dtype: torch.dtype) -> Tensor:
    """d = sum of 2 ** (m - k) sigma_k."""
    plus, minus = masks(code)
    return (plus - minus).to(dtype)


def count(code: Tensor) -> Tensor:
    """How many members fired, int16: the spikes of the step."""
    fired = (code >> _NEGATIVE).bitwise_or_(code).bitwise_and_(0xFFFF)
    if fired.is_cpu and not torch.compiler.is_compiling():  # a table is ten times as fast
        found = _bits().index_select(0, fired.reshape(-1)).view(fired.shape)
        return found
    return _bits_of(fired)


def _bits_of(n: Tensor) -> Tensor:
    n = n - (n >> 1 & 0x5555)  # in pairs of bits, then in fours, eights, sixteens
    n = (n & 0x3333) + (n >> 2 & 0x3333)
    n = n + (n >> 4) & 0x0F0F
    return (n + (n >> 8) & 0x1F).to(torch.int16)


@cache
def _bits() -> Tensor:
    with torch.inference_mode(False):
        return _bits_of(torch.arange(2**16, dtype=CODE))


def digits(code: Tensor, members: int) -> Tensor:
    """sigma_1 ... sigma_m of each code [...] in a last dimension, int8 [..., m]."""
    plus, minus = masks(code.unsqueeze(-1))
    at = torch.arange(members - 1, -1, -1, device=code.device, dtype=CODE)
    return ((plus >> at & 1) - (minus >> at & 1)).to(torch.int8)
