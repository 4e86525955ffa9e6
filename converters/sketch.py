"""Histograms on fixed bins: the summary of a distribution that calibration keeps.

Bins are those of float32 itself: sign, exponent and the first three bits of the mantissa, eight to
an octave, from 2^-32 to 2^16; what is smaller counts as zero, what is larger in the last bin. So
binning is exact, counts are integers, and the sketch of two sets is the sum of their sketches,
whatever their order. A value is known from its bin to an eighth of its octave: within 12.5 %, and
within 6.3 % of the bin's middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

OCTAVE = 8  # bins
_SHIFT = 20  # of the 23 bits of a mantissa, all but three
_LOWEST, _HIGHEST = -32, 16  # exponents of two
_FIRST = (_LOWEST + 127) * OCTAVE
BINS = (_HIGHEST - _LOWEST) * OCTAVE + 1  # the first one is zero


def edges(like: Tensor | None = None) -> Tensor:
    """Where each bin begins, and the last ends: [BINS + 1] in float64."""
    device = None if like is None else like.device
    bits = torch.arange(_FIRST, _FIRST + BINS, dtype=torch.int32, device=device) << _SHIFT
    return torch.cat([torch.zeros(1, device=device), bits.view(torch.float32)]).double()


def counts(values: Tensor) -> Tensor:
    """Of values [C, n]: how many of each channel are in each bin, int64 [C, 2, BINS], the positive
    ones first, then the negative ones. Float64 is counted as float32."""
    bits = values.float().contiguous().view(torch.int32)
    bins = (((bits & 0x7FFFFFFF) >> _SHIFT) - (_FIRST - 1)).clamp_(0, BINS - 1)
    channels = torch.arange(len(values), device=values.device).unsqueeze(1) * 2
    places = (channels + (bits < 0)) * BINS + bins
    counted = torch.bincount(places.flatten(), minlength=len(values) * 2 * BINS)
    return counted.reshape(len(values), 2, BINS)


def absolute(counts: Tensor) -> Tensor:
    """[C, BINS] of |values|."""
    return counts.sum(1)


def quantile(counts: Tensor, share: float, largest: Tensor) -> Tensor:
    """Of |values|, [C] in float64: the value that this share is not above, counts being spread
    evenly over their bin, up to the ``largest`` [C]; that itself where less than one is above."""
    amount = absolute(counts).double()
    below = amount.cumsum(1)
    everything = below[:, -1:]
    wanted = (share * everything).clamp(min=1e-9)
    place = torch.searchsorted(below, wanted).clamp(max=BINS - 1)
    inside = amount.gather(1, place)
    part = (wanted - (below.gather(1, place) - inside)) / inside.clamp(min=1.0)
    edge, largest = edges(counts), largest.double().reshape(-1, 1)
    low, high = edge[place], torch.minimum(edge[place + 1], largest)
    found = torch.where(place == 0, 0.0, low + part.clamp(0, 1) * (high - low).clamp(min=0))
    return torch.where((1 - share) * everything < 1, largest, found)[:, 0]


def moments(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of |values| at or above where each bin begins: their number, sum and sum of squares,
    [C, BINS] in float64 each, counts being spread evenly over their bin."""
    amount, edge = absolute(counts).double(), edges(counts)
    low, high = edge[:-1].clone(), edge[1:].clone()
    high[0] = 0.0  # what is counted as zero is zero
    powers = torch.ones_like(low), (low + high) / 2, (low * low + low * high + high * high) / 3
    one, two, three = ((amount * power).flip(1).cumsum(1).flip(1) for power in powers)
    return one, two, three
