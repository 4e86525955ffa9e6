r"""Thresholds and initial charges of group neurons for networks trained with ReLU or ReLU6.

A group neuron that has received the charge :math:`S = \sum_t x(t)` in T steps, evenly, sends

.. math::
    N = \operatorname{clip}(\lfloor S / \theta + c \rfloor, 0, mT), \qquad
    y = N \theta / T, \qquad \theta = v_{th} / m, \qquad c = v(0) / \theta

in place of the ReLU's output. A small :math:`\theta` clips, a large one rounds. :math:`\theta` and
c are chosen for each channel, layer after layer from the input on, to minimise

.. math::
    E(\theta, c) = \textstyle\sum_i g_i^2 \, (y_i(\theta, c) - f_i)^2

:math:`f_i` is the value of the source network at that neuron and sample, :math:`y_i` the output of
the neuron when it runs for T steps on the actual output of the layers before it, whose thresholds
are chosen already: so a layer also compensates for errors of those before it, for unevenly
distributed spikes, and, by c, for their mean. :math:`g_i^2`, the squared gradient of the outputs of
the source network, is the cost of an error: to second order E is the squared error of the outputs,
if errors are independent. The gradients of all outputs enter through random signs r, as :math:`g_i
= \partial (r \cdot \text{out}) / \partial f_i`, whose squares are on average the sum over the
outputs.

Then all are refined together (``refinement``), unless tuning is turned off. This uses three
quarters of the images; the rest measures the result. The quantiles of the calibration as
thresholds, with c = 1/2, are kept if their output error there is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.network import GroupNeuron, SpikingNetwork, leaves, values_of
from ..core.progress import progress
from .budget import Budget
from .calibration import channel_shape
from .refinement import refine
from .simulation import Simulation, Visit, count

IMAGES = 256  # at most, to choose by
REFINED = 1024  # others at most, to refine by
STEPS = 4096  # images times T, at most, but for LEAST images
LEAST = 16
SAMPLES = 4096  # of a channel
VALUES = 2**28 // 4  # of the largest node in all steps of all images
PROJECTIONS = 8
RANGE = (1.5, 0.08)  # thresholds searched, as a fraction of the largest values


Statistics = Mapping[str, Mapping[str, Tensor]]


class Samples(NamedTuple):
    """What a layer's neurons get, x [T, C, S], should send, y, and what errors cost, w, [C, S]."""

    x: Tensor
    y: Tensor
    w: Tensor


def fit(
    network: SpikingNetwork,
    seen: Statistics,
    batches: Sequence[Tensor],
    seed: int,
    refining: Budget | None = None,
) -> SpikingNetwork:
    """``network`` with the thresholds and initial charges of group neurons for ReLUs chosen.

    They are refined together within ``refining``, not at all without.

    ``seen`` is what ``calibration.statistics`` saw. Deterministic for a seed.
    ``provenance["thresholds"]`` is the choice, and the relative error of the outputs on held-out
    images of both.
    """
    fitted = [n.name for n in network.of(GroupNeuron) if not n.trained]
    if not fitted:
        return network
    read = [network[name] for name in (*fitted, *leaves(network.outputs))]
    if any(node.shape[:1] != ("1*batch",) for node in read):
        reason = "the batch is not the first dimension of every group neuron and output"
        why = {"chosen": "quantile", "reason": reason}
        return network.replace(provenance={**network.provenance, "thresholds": why})
    images, held, more = images_of(network, batches, seed)
    part = images[: len(images) - held]
    rest = images[len(part) :] if held else images  # too few to hold any out
    errors = output_errors(network, rest)
    fitted_network = choose(network, seen, part, more, fitted, seed, refining)
    change = output_errors(fitted_network, rest) - errors
    mean = float(change.mean())
    accepted = mean <= 0
    record = {
        "chosen": "least weighted error" if accepted else "quantile",
        "held-out error, quantile": float(errors.mean()) ** 0.5,
        "held-out error, least weighted error": (float(errors.mean()) + mean) ** 0.5,
        "images": len(images),
        "held out": held,
    }
    best = fitted_network if accepted else network
    return best.replace(provenance={**network.provenance, "thresholds": record})


def images_of(
    network: SpikingNetwork, batches: Sequence[Tensor], seed: int
) -> tuple[Tensor, int, Tensor]:
    """As many images as time and memory allow, in random order, and how many are held out; and
    others, for the refinement, which takes them in small batches."""
    x = torch.cat(list(batches))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    steps = network.time_steps
    largest = max(values_of(node.shape) for node in network.nodes)
    most = min(IMAGES, max(LEAST, STEPS // steps), max(1, VALUES // (largest * steps)))
    order = order.to(x.device)
    return x[order[:most]], len(order[:most]) // 4, x[order[most : most + REFINED]]


@torch.no_grad()
def output_errors(network: SpikingNetwork, x: Tensor) -> Tensor:
    """For each image of x [B, ...] the squared error of the outputs after T steps, over the mean
    square of the outputs of the source network, all outputs together, [B] float64."""
    simulation = Simulation(network)
    squared = torch.zeros(len(x), dtype=torch.float64)
    norm = torch.zeros(len(x), dtype=torch.float64)
    for part in torch.arange(len(x)).split(64):
        have = leaves(simulation.outputs(x[part], network.time_steps))
        want = leaves(simulation.ann(x[part]))
        for a, b in zip(have, want, strict=True):
            # an output need not lead with the batch; one error is then that of all
            rows = len(part) if b.shape[:1] == part.shape else 1
            a, b = a[-1].double().reshape(rows, -1), b.double().reshape(rows, -1)
            squared[part] += (a - b).square().sum(1).cpu()
            norm[part] += b.square().sum(1).cpu()
    return squared / norm.mean().clamp(min=torch.finfo(torch.float64).tiny)


def weights(
    simulation: Simulation, x: Tensor, names: Sequence[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """For each neuron the mean squared gradient of random signs times the outputs."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    ends = list(dict.fromkeys(leaves(simulation.network.outputs)))
    for part in x.split(64):
        with torch.enable_grad():
            part = simulation.check_input(part).detach().clone().requires_grad_()
            values = simulation.activations(part, keep=[*names, *ends])
            squares = {name: torch.zeros_like(values[name]) for name in names}
            for _ in range(PROJECTIONS):
                total = sum((_signs(values[end], generator) * values[end]).sum() for end in ends)
                if not isinstance(total, Tensor) or not total.requires_grad:
                    return {}  # a function of the user's that has no gradient
                gradients = torch.autograd.grad(
                    total, [values[name] for name in names], retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        squares[name] += gradient.square()
        for name, weight in squares.items():
            parts[name].append(weight.detach())
    return {name: torch.cat(weights) for name, weights in parts.items()}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return signs.to(like)


@torch.no_grad()
def choose(
    network: SpikingNetwork,
    seen: Statistics,
    x: Tensor,
    more: Tensor,
    names: Sequence[str],
    seed: int,
    refining: Budget | None = None,
) -> SpikingNetwork:
    """The neurons ``names`` chosen one after the other, each on what those before it send, then all
    together, on ``more`` images too, within ``refining``."""
    generator = torch.Generator().manual_seed(seed)
    costs = weights(Simulation(network), x, names, generator)
    simulation = Simulation(network)
    visits = simulation.visits(simulation.check_input(x), network.time_steps)
    for visit in progress(visits, "choosing thresholds", len(network.of(GroupNeuron))):
        node = visit.node
        if node.name not in names:
            continue
        samples = layer_samples(visit, costs.get(node.name), network.time_steps, generator)
        samples = with_largest(samples, seen[node.name]["maximum"])
        start = torch.as_tensor(node.v_threshold).to(samples.y).reshape(-1, 1)
        theta, charge = search(samples, start / node.members, node.members, node.signed)
        shape = channel_shape(node) if theta.numel() > 1 else ()
        simulation.changes[node.name] = node.fitted(
            per_channel(theta * node.members, shape), per_channel(charge, shape)
        )
    chosen = network.with_nodes(simulation.changes)
    if refining is None:
        return chosen
    return refine(chosen, torch.cat([x, more]), names, seed, refining)


def per_channel(value: Tensor, shape: tuple[int, ...]) -> float | Tensor:
    """[C, 1] in the shape that broadcasts against the layer; a number where it is one for all."""
    return value.reshape(shape).clone() if shape else float(value)


def layer_samples(
    visit: Visit, weight: Tensor | None, steps: int, generator: torch.Generator
) -> Samples:
    node = visit.node
    one = not isinstance(node.v_threshold, Tensor) or node.v_threshold.numel() == 1
    ((x, in_time),) = visit.inputs

    def rows(value: Tensor, leading: int = 0) -> Tensor:  # [C, S] behind the leading dimensions
        if one or node.channel is None:
            return value.reshape(*value.shape[:leading], 1, -1)
        return value.movedim(node.channel, leading).flatten(leading + 1)

    x = rows(x, 1) if in_time else rows(x).unsqueeze(0).expand(steps, -1, -1)
    y = rows(visit.source)
    w = torch.ones_like(y) if weight is None else rows(weight)
    most = max(256, SAMPLES * min(1, 8 / steps)) * (8 if one else 1)
    if y.shape[1] > most:
        pick = torch.randint(y.shape[1], (int(most),), generator=generator).to(y.device)
        x, y, w = x[:, :, pick], y[:, pick], w[:, pick]
    # what costs nothing on these samples may cost something on others
    return Samples(x, y, w + 1e-3 * w.mean() + torch.finfo(w.dtype).tiny)


def with_largest(samples: Samples, largest: Tensor) -> Samples:
    """And, evenly, the largest value of all images, so that many levels do not clip it."""
    y = largest.reshape(-1, 1).to(samples.y).clamp(min=0)
    y = y if len(y) == len(samples.y) else y.max().reshape(1, 1)
    x = y.expand(len(samples.x), -1, -1)
    w = samples.w.mean(1, keepdim=True)
    return Samples(
        torch.cat([samples.x, x], 2), torch.cat([samples.y, y], 1), torch.cat([samples.w, w], 1)
    )


def search(samples: Samples, start: Tensor, members: int, signed: bool) -> tuple[Tensor, Tensor]:
    """(theta, c) [C, 1] of the least E: grids that narrow, theta and c in turn.

    ``start`` [C, 1] is the theta that reaches the largest values in one step; of thetas that are
    equally good the largest is taken, so channels that send nothing here keep a wide range.
    """

    def least(theta: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
        theta, charge = torch.broadcast_tensors(theta, charge)
        at = errors(samples, theta, charge, members, signed).argmin(1, keepdim=True)
        return theta.gather(1, at), charge.gather(1, at)

    def grid(first: float, last: float, points: int) -> Tensor:
        return torch.linspace(first, last, points, dtype=start.dtype, device=start.device)

    low, high = (torch.tensor(v).log() for v in RANGE)
    charge = torch.full_like(start, 0.5)
    theta, _ = least(start * grid(float(low), float(high), 28).exp(), charge)
    for width in (0.15, 0.04):
        # c = 1 rounds up, c = 0 down
        near = grid(0.1, 1.0, 19) if width > 0.1 else charge + grid(-0.05, 0.05, 9)
        _, charge = least(theta, near.expand(len(start), -1))
        theta, _ = least(theta * grid(1 + width, 1 - width, 21), charge)
    return theta, charge


def errors(samples: Samples, theta: Tensor, charge: Tensor, members: int, signed: bool) -> Tensor:
    """E [C, K] of K pairs (theta, c) [C, K] for each channel, over the sum of the weights."""
    steps, channels, size = samples.x.shape
    together = max(1, 2**22 // (theta.shape[1] * size))
    parts = []
    for c in range(0, channels, together):
        part = slice(c, c + together)
        x, y, w = samples.x[:, part, None], samples.y[part, None], samples.w[part, None]
        one = theta[part].unsqueeze(-1)
        v = charge[part].unsqueeze(-1) * one + torch.zeros_like(y)
        sent = torch.zeros_like(v)
        for t in range(steps):
            v, sent, _ = count(v + x[t], sent, one, members, signed)
        error = (sent * one / steps - y).square()
        parts.append((w * error).sum(-1) / w.sum(-1))
    return torch.cat(parts)
