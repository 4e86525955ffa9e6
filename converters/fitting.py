r"""The range of a neuron: where the expected error of its code is least.

A code of range R has steps of :math:`\delta = R \rho` and is silent for values within
:math:`\theta\delta`. Of a value v it makes an error of

.. math::
    e^2(v) = \min(v^2, \kappa\delta^2) \text{ for } |v| \le R, \qquad
    e^2(v) = (|v| - R)^2 \text{ beyond},

with :math:`\kappa = 1/12 + (\theta - 1/2)^2 / 3`, that of a value anywhere between two digits
(5/54 at theta = 2/3, 1/12 at 1/2), and 1/3 for a neuron that fires at every step, whose digits are
two steps apart. R is where the expectation over the values seen, and over those not seen, is least.

**What was not seen.** After N samples the next one shows something new with a probability of about
1 / (N + 1) (Laplace's rule of succession). What is new in a channel is taken to be like the whole
tensor: a channel that was silent in calibration has the range of its tensor, one that was seen well
keeps its own. A function that has a range itself (ReLU6, clamp, sigmoid, softmax) ends there, and
where more than half of it is needed its end is a code: values that saturate in the source network
do so in the neuron, without an error.
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
    own = sketch.moments(counts)
    whole = sketch.moments(counts.sum(0, keepdim=True))
    new = 1.0 / (samples + 1)
    mixed = [
        (1 - new) * a / own[0][:, :1].clamp(min=1) + new * b / whole[0][:, :1].clamp(min=1)
        for a, b in zip(own, whole, strict=True)
    ]
    number, total, square = mixed
    beyond = square - 2 * edge * total + edge * edge * number
    floor = math.sqrt(rounding(theta)) * resolution * edge  # below it a value is its own error
    place = torch.searchsorted(edge, floor).clamp(max=sketch.BINS - 1)
    small = square[:, :1] - square[:, place]
    inside = (number[:, place] - number).clamp(min=0)
    return edge, small + inside * floor.square() + beyond.clamp(min=0)


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
