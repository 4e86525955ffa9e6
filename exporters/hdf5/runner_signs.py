"""The signs of one step of signGD neurons in NumPy, as the equations stand in ``docs/format.md``.

What fired is a number. Of neurons without a dead zone its m bits are 1 where a sign is +1, the
first sign's the highest. Of neurons with one it is an int32 *code*: such bits of the members that
fired +1 in its low 16 bits, of those that fired -1 in the high ones.

Products by powers of two are exact in the type of v; NumPy before 2 would go on in float64.
"""

from __future__ import annotations

import numpy as np

from .runner_functions import Array

_NEGATIVE = 16  # where the bits of -1 begin


def dense_step(
    v: Array, target: Array, size: Array, members: int, fires_at_tie: bool
) -> tuple[Array, Array]:
    """Signs against f(x), of sizes c_1, c_1 / 2, ...: (their bits, int32, v after)."""
    bits = np.zeros(target.shape, np.int32)
    for k in range(members):
        fires = v >= target if fires_at_tie else v > target
        v = v - np.asarray(size * 2.0**-k, v.dtype) * np.where(fires, 1, -1).astype(v.dtype)
        bits = 2 * bits + fires
    return bits, v


def sparse_step(
    v: Array, target: Array, size: Array, theta: Array, members: int
) -> tuple[Array, Array]:
    """The same with a dead zone theta > 0, in the type of v: (code, v after)."""
    r, bound = v - target, np.asarray(theta * size, v.dtype)
    code = np.zeros(r.shape, np.int32)
    for k in range(members):
        h_k = np.asarray(bound * 2.0**-k, v.dtype)
        sigma = (r > h_k).astype(np.int32) - (r < -h_k)
        r = r - np.asarray(size * 2.0**-k, v.dtype) * sigma.astype(v.dtype)
        code = 2 * code + ((sigma > 0) | (sigma < 0).astype(np.int32) << _NEGATIVE)
    return code, v - np.asarray(size * 2.0 ** (1 - members), v.dtype) * levels(code, v.dtype)


def mixed_step(
    v: Array, target: Array, size: Array, theta: Array, members: int, fires_at_tie: bool
) -> tuple[Array, Array]:
    """``sparse_step`` where theta > 0; the others fire at every step: (code, v after)."""
    code, after = sparse_step(v, target, size, theta, members)
    bits, dense = dense_step(v, target, size, members, fires_at_tie)
    all_fire = bits | ((2**members - 1) & ~bits) << _NEGATIVE
    return np.where(theta > 0, code, all_fire), np.where(theta > 0, after, dense)


def levels(code: Array, dtype: np.dtype) -> Array:
    """d = sum of 2 ** (m - k) sigma_k."""
    return np.asarray((code & 0xFFFF) - (code >> _NEGATIVE), dtype)
