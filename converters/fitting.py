r"""The range of a neuron: where the expected error of its code is least.

A code of range R has steps of :math:`\delta = R \rho` and is silent for values within
:math:`\theta\delta`. The error of a value v is

.. math::
    e^2(v) = \min(v^2, \kappa\delta^2) \text{ for } |v| \le R, \qquad
    e^2(v) = (|v| - R)^2 \text{ beyond},

with :math:`\kappa = 1/12 + (\theta - 1/2)^2 / 3`, that of a value anywhere between two digits
(5/54 at theta = 2/3, 1/12 at 1/2), and 1/3 for a neuron that fires at every step, whose digits are
two steps apart. R minimises the expectation over the observed and the unobserved values.

***Unobserved values.** After N samples the next one has an unobserved value with a probability of
about 1 / (N + 1) (Laplace's rule of succession). Unobserved values of a channel are assumed to be
distributed as in all channels, each in units of its own size, at the size of this channel. That
size is shrunk toward the size of the tensor: its logarithm is weighted by k / (k + 1), where k of
the N samples have values other than zero. So a channel that was silent in calibration gets the
range of its tensor, and one with enough samples keeps its own, with the tail of the other channels.

The range of a bounded function (ReLU6, clamp, sigmoid, softmax) ends at the bound, and if more than
half of it is needed, the bound itself is a code: values that saturate in the source network do so
in the neuron, without an error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..neurons.base import Function
from . import sketch

BEYOND = 8  # bins above the largest value seen that are looked at
BOUNDED = {
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "masked_softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
}


def bound_of(node: Function) -> float:
    """The largest absolute value of a function; infinity where it has none."""
    if node.function.name == "clamp":
        least, most = node.arguments.get("min"), node.arguments.get("max")
        return math.inf if least is None or most is None else max(abs(least), abs(most))
    least, most = BOUNDED.get(node.function.name, (-math.inf, math.inf))
    return max(-least, most)


def rounding(theta: float) -> float:
    """kappa."""
    return 1 / 12 + (theta - 0.5) ** 2 / 3 if theta else 1 / 3


def expected_error(
    counts: Tensor, resolution: float, theta: float, samples: int
) -> tuple[Tensor, Tensor]:
    """Of the sketch [C, 2, BINS]: candidates for R [BINS], and the expected squared error of a
    value at each of them [C, BINS]; ``resolution`` is delta / R."""
    edge = sketch.edges(counts)[:-1]
    own, new = sketch.moments(counts), 1.0 / (samples + 1)
    prior = sketch.moments(neighbours(counts, samples).unsqueeze(1))
    mixed = [
        (1 - new) * a / own[0][:, :1].clamp(min=1) + new * b / prior[0][:, :1].clamp(min=1e-30)
        for a, b in zip(own, prior, strict=True)
    ]
    number, total, square = mixed
    beyond = square - 2 * edge * total + edge * edge * number
    floor = math.sqrt(rounding(theta)) * resolution * edge  # below it a value is its own error
    place = torch.searchsorted(edge, floor).clamp(max=sketch.BINS - 1)
    small = square[:, :1] - square[:, place]
    inside = (number[:, place] - number).clamp(min=0)
    return edge, small + inside * floor.square() + beyond.clamp(min=0)


def neighbours(counts: Tensor, samples: int) -> Tensor:
    """For each channel what all channels are like at its size, shares [C, BINS] in float64."""
    amount, moments = sketch.absolute(counts).double(), sketch.moments(counts)
    active = amount[:, 1:].sum(1)
    size = (moments[2][:, 0] / active.clamp(min=1)).sqrt()  # rms of what is not zero
    whole = (moments[2][:, 0].sum() / active.sum().clamp(min=1)).sqrt().clamp(min=1e-30)
    seen = samples * active / moments[0][:, 0].clamp(min=1)
    own, common = torch.where(size > 0, size, whole).log2(), whole.log2()
    shrunk = (own - common) * seen / (seen + 1)
    shape = _shifted(amount, (common - own).round().long()).sum(0, keepdim=True)
    shape = shape / shape.sum().clamp(min=1e-30)
    return _shifted(shape.expand_as(amount), shrunk.round().long())


def _shifted(amount: Tensor, octaves: Tensor) -> Tensor:
    """Of values 2 ** octaves as large, by channel; zero stays."""
    bins = torch.arange(sketch.BINS, device=amount.device)
    place = (bins + sketch.OCTAVE * octaves.unsqueeze(1)).clamp(1, sketch.BINS - 1)
    place[:, 0] = 0
    return torch.zeros_like(amount).scatter_add_(1, place, amount)


def fitted_range(
    node: Function, counts: Tensor, largest: Tensor, resolution: float, theta: float, samples: int
) -> Tensor:
    """R of each channel, float64 [C]; 1 where no channel was ever seen to have a value."""
    edge, error = expected_error(counts, resolution, theta, samples)
    most = float(largest.max())
    if most <= 0.0:
        return torch.ones(len(counts), dtype=torch.float64, device=counts.device)
    last = int(torch.searchsorted(edge, torch.tensor(most, dtype=edge.dtype, device=edge.device)))
    error = error[:, : min(sketch.BINS, last + BEYOND)]
    best = error[:, 1:].argmin(1) + 1
    found = edge[best]
    own = largest.double().flatten().expand_as(found)
    # a range that ends in the bin of the largest value ends with that
    found = torch.where((found >= own) & (found <= own * (1 + 1 / sketch.OCTAVE)), own, found)
    bound = bound_of(node)
    if math.isinf(bound):
        return found
    return torch.where(found > bound / 2, bound, found)
