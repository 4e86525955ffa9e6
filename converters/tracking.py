r"""Step sizes for streams: if a neuron's state is kept, its steps encode changes.

In a plan for streams every neuron that is left with a last step :math:`c` holds its target within
:math:`\rho c` and sends digits where this moved (docs/stream_plans.md). Finer steps mean less error
and more additions. For each channel i both are known before the network runs: the source network's
own values on clips are tracked by the neuron alone, for steps of :data:`SIZES` of the range, and

.. math::
    E_i(c) = \mathrm{mean}\Big(\sum_p \frac{\partial y}{\partial v_p}\, e_p(c)\Big)^2 / |y|^2,
    \qquad A_i(c) = F_i\, n_i(c)

are its part of the squared relative error of the outputs, to first order (:math:`e` is what the
neuron is off at its positions p, summed with its signs; the square is the expectation over random
projections of y), and of the additions of a frame after the first: n digits sent, each met by F
weights for each multiply-accumulate of the source. The last step of channel i makes :math:`E_i + w
A_i` least: so all channels trade error against additions at one price, w. The statistics of a
channel that hardly moved are unreliable: the mean of its tensor's channels is added with a weight
of 1 / (N + 1), N the number of clips.

**No drift.** c has 12 significant bits and resting values are whole numbers of c, so v = resting +
n c and every weighted spike are exact in float32 for :math:`|n| < 2^{12}`: twice the largest value
of its tensor in the calibration, since c is at least 1 / 2047 of it. The method is new here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Batch, samples_of
from ..core.module import NetworkModule, Source
from ..core.network import Function, Neuron, SignGDNeuron, SpikingNetwork, leaves
from ..core.operations import follows_batch, resolve
from ..core.walk import walk
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.schedules import ConstantSchedule
from ..neurons.signgd import SignGDParameters, SignGDState, signgd_multi_step
from ..neurons.signgd.sparse import count
from . import residuals
from .additions import Prices
from .calibration import at_once, channel_shape
from .clips import frames_of, segments
from .objectives import OBJECTIVES, weight_of
from .settings import MEMBERS, Context

EVERY = ConstantSchedule(1.0)  # the scale is the first member's step
MOST = 11  # members; 2 ** 11 - 1 last steps reach the largest value
BITS = 12  # significant ones of a step
SIZES = tuple(2.0 ** (-1 - i / 2) for i in range(20))  # last steps, of the largest value
USUAL = 2.0**-6  # where no gradient says what an error matters
FRAMES, CLIPS = 8, 32  # at most, that steps are chosen by
WORK, FEW = 2 * 10**9, 4  # values in all of them, but for so many clips
VALUES = 2**26  # at most, that are kept
FEWEST = 16  # positions of a channel
QUIET, DEVIATIONS = 0.9, 2.0  # of an input that is silent at the sensor's noise


def exact(step: Tensor) -> Tensor:
    """Rounded to 12 significant bits."""
    mantissa, exponent = torch.frexp(step)
    return torch.ldexp((mantissa * 2**BITS).round() / 2**BITS, exponent)


@torch.inference_mode(False)
def fit(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Scales, members and resting values of every signGD neuron, chosen on the context's clips."""
    signs = network.of(SignGDNeuron)
    known = network.statistics  # of all but coded inputs
    scale_of = context.settings.scale_of
    chosen = [n for n in signs if n.name not in known or scale_of(n) == "fitted"]
    found = {n.name: _given(n, context) for n in signs if n not in chosen}
    weight = weight_of(context.settings.objective) or OBJECTIVES["additions"]
    error = additions = 0.0
    if chosen:
        seen = Observed.of(network, _pieces(network, context), chosen)
        for node in chosen:
            choice = _choose(node, seen, known.get(node.name), context, weight)
            found[node.name] = choice.node
            error, additions = error + choice.error, additions + choice.additions
    said = {"weight": weight, "expected": {"error": error**0.5, "additions": additions}}
    return network.with_nodes(found).replace(provenance={**network.provenance, "stream": said})


def _given(node: SignGDNeuron, context: Context) -> SignGDNeuron:
    """Steps that reach the range that was asked for."""
    members = context.settings.members_of(node) or MEMBERS
    last = torch.as_tensor(node.scale, dtype=torch.float32) / (2.0**members - 1)
    return _with_steps(node, exact(last), members)


def _with_steps(node: SignGDNeuron, last: Tensor, members: int) -> SignGDNeuron:
    """Of the last steps ``last``, exact ones, as the neuron's scale broadcasts."""
    resting = torch.as_tensor(node.resting, dtype=torch.float32)
    rounded = (resting / last).round() * last
    return replace(
        node,
        scale=_number(last * 2.0 ** (members - 1)),
        resting=_number(rounded) if bool(rounded.any()) else 0.0,
        members=members,
        schedule=EVERY,
    )


def _number(value: Tensor) -> float | Tensor:
    return value if value.dim() else float(value)


# -- what the clips show ---------------------------------------------------------------------------


def _pieces(network: SpikingNetwork, context: Context) -> Batch:
    """Short clips: as many as a network of this size has time for."""
    values = sum(n.values for n in network.of(SignGDNeuron))
    there_is_time_for = max(FEW, WORK // max(1, FRAMES * values))
    return segments(context.clips, FRAMES, min(CLIPS, there_is_time_for))


@dataclass(frozen=True, eq=False)
class Observed:
    """By neuron the source's values and the gradients of a random projection of its outputs there,
    [C, F, N, P] of P of its ``positions`` each; ``fan_out`` of each channel [C], for each
    multiply-accumulate of the source."""

    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    positions: Mapping[str, int]
    fan_out: Mapping[str, Tensor]
    clips: int

    @staticmethod
    @torch.enable_grad()
    def of(network: SpikingNetwork, clip: Batch, nodes: list[SignGDNeuron]) -> Observed:
        frames = frames_of(clip)
        streams = samples_of(clip, 1)
        most = _most(nodes, len(frames))
        module, generator = NetworkModule(network, {}), torch.Generator().manual_seed(0)
        kept: dict[str, list[tuple[Tensor, Tensor]]] = {n.name: [] for n in nodes}
        for part in frames.split(min(at_once(network), len(frames))):
            source = _Graded(module, module.check_input(part), kept)
            outputs = walk(network, source, leaves(network.outputs))
            values = [outputs[name] for name in leaves(network.outputs)]
            _projected(values, len(part), generator).backward()  # type: ignore[no-untyped-call]
            for node in nodes:
                value = source.kept[node.name]
                grad = torch.zeros_like(value) if value.grad is None else value.grad
                pair = (_places(node, value.detach(), len(part), most),
                        _places(node, grad, len(part), most))  # fmt: skip
                kept[node.name].append(pair)
        joined = {
            name: tuple(torch.cat(side, 1) for side in zip(*pairs, strict=True))
            for name, pairs in kept.items()
        }
        shaped = {
            name: [x.view(len(x), -1, streams, x.shape[2]) for x in pair]
            for name, pair in joined.items()
        }
        prices = Prices.of(network, 1)
        return Observed(
            {name: pair[0] for name, pair in shaped.items()},
            {name: pair[1] for name, pair in shaped.items()},
            {n.name: _positions(n) for n in nodes},
            {n.name: _fan_out(n, prices) for n in nodes},
            streams,
        )


class _Graded(Source):
    """The source network; the values of neurons are kept with their gradients."""

    def __init__(self, module: NetworkModule, x: Batch, names: Mapping[str, Any]) -> None:
        super().__init__(module, x)
        self.names, self.kept = names, dict[str, Tensor]()

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        value = super().neuron(node, inputs)
        if node.name in self.names:
            value = value if value.requires_grad else value.detach().clone().requires_grad_()
            value.retain_grad()
            self.kept[node.name] = value
        return value


def _projected(outputs: list[Tensor], samples: int, generator: torch.Generator) -> Tensor:
    """A random sign for each value, of outputs whose mean square is one of each sample."""
    total = torch.zeros((), device=outputs[0].device)
    for y in outputs:
        sign = 2.0 * torch.randint(0, 2, y.shape, generator=generator).to(y) - 1
        size = (y.detach().double().square().sum() / samples * len(outputs)).sqrt()
        total = total + (sign * y).sum() / size.clamp(min=1e-30).to(y)
    return total


def _most(nodes: list[SignGDNeuron], frames: int) -> int:
    """Positions of a channel that are kept, where there are so many."""
    most = max(_positions(n) for n in nodes)
    while most > FEWEST and frames * _kept(nodes, most) > VALUES:
        most = max(FEWEST, most * 3 // 4)
    return most


def _kept(nodes: list[SignGDNeuron], most: int) -> int:
    return sum(n.values * min(most, _positions(n)) // max(1, _positions(n)) for n in nodes)


def _positions(node: Function) -> int:
    """Of a channel in one sample."""
    channels = 1 if node.channel is None else resolve(node.shape, 1)[node.channel]
    return node.values // max(1, channels)


def _channels(node: Function, value: Tensor, samples: int) -> Tensor:
    """[C, B, P] of a value [B, ...]."""
    first = value.unsqueeze(0) if node.channel is None else value.movedim(node.channel, 0)
    return first.reshape(len(first), samples, -1)


def _by_sample(node: Function) -> bool:
    """Whether what a sample has lies together, in front."""
    return bool(node.shape) and follows_batch(node.shape[0]) and node.channel != -len(node.shape)


def _places(node: Function, value: Tensor, samples: int, most: int) -> Tensor:
    """[C, B, P] of some positions, the same in every frame."""
    each = _channels(node, value, samples)
    if each.shape[2] <= most:
        return each
    pick = torch.randperm(each.shape[2], generator=torch.Generator().manual_seed(0))[:most]
    return each[..., pick.sort().values.to(each.device)]


def _fan_out(node: SignGDNeuron, prices: Prices) -> Tensor:
    fan = prices.fan_out[node.name].expand(resolve(node.shape, 1))
    return _channels(node, fan, 1).sum((1, 2)) / max(1.0, prices.source)


# -- the choice ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Choice:
    """A neuron with its steps, and its parts of the squared error and of the additions."""

    node: SignGDNeuron
    error: float
    additions: float


def _choose(
    node: SignGDNeuron,
    seen: Observed,
    statistics: Mapping[str, Tensor] | None,
    context: Context,
    weight: float,
) -> Choice:
    is_input, floor, asked = statistics is None, 0.0, context.settings.members_of(node)
    if is_input:  # it follows at once, whatever members others have
        asked = None
    if is_input and context.settings.noise:
        node, floor = _quiet(node, context.settings.noise)
    largest, each = _largest(node, statistics)
    values, gradients = seen.values[node.name], seen.gradients[node.name]
    fan_out = seen.fan_out[node.name]
    more = seen.positions[node.name] / values.shape[3]
    rows = []
    for size in SIZES:
        last = max(largest * size, floor)
        digits, error = tracked(node, values, gradients, last, more, asked or MOST)
        rows.append(torch.stack([error, fan_out.to(digits) * digits]))
    error, added = torch.stack(rows, 1)  # [sizes, C]
    cost = error + weight * added
    best = (cost + cost.mean(1, keepdim=True) / (seen.clips + 1)).argmin(0)
    last = (largest * torch.tensor(SIZES).to(cost)[best]).clamp(min=floor)
    if not bool(gradients.any()) or not _by_sample(node):
        last = torch.full_like(last, max(largest * USUAL, floor))
    last = exact(last.float()).reshape(channel_shape(node))
    return Choice(
        _with_steps(node, last, asked or _members(last, each)),
        float(error.gather(0, best.unsqueeze(0)).sum()),
        float(added.gather(0, best.unsqueeze(0)).sum()),
    )


def _quiet(node: SignGDNeuron, noise: float) -> tuple[SignGDNeuron, float]:
    """An input that noise does not set off, and its least last step: noise of an amplitude of
    (theta - 1/2) of it is silent, so a wide dead zone lets steps be fine."""
    theta = max(QUIET, node.widest_dead_zone)
    return replace(node, dead_zone=theta), DEVIATIONS * noise / (theta - 0.5)


def _largest(node: SignGDNeuron, seen: Mapping[str, Tensor] | None) -> tuple[float, Tensor]:
    """The largest value of a neuron, and of each of its channels."""
    if seen is None:  # an input
        each = torch.as_tensor(node.scale, dtype=torch.float32)
    else:
        each = torch.maximum(seen["maximum"].abs(), seen["minimum"].abs())
    each = (each - torch.as_tensor(node.resting).to(each)).abs()
    return float(each.max()) or 1.0, each


def _members(last: Tensor, each: Tensor) -> int:
    """As many as reach the largest value in one frame."""
    needed = math.ceil(math.log2(float((each / last).max()) + 1))
    return min(MOST, max(1, needed))


@torch.no_grad()
def tracked(
    node: SignGDNeuron,
    values: Tensor,
    gradients: Tensor,
    last: float,
    more: float = 1.0,
    members: int = MOST,
) -> tuple[Tensor, Tensor]:
    """What a neuron of ``members`` with the last step ``last`` sends and misses that follows
    ``values`` [C, F, N, P] from rest: digits of a position in a frame after the first [C], and the
    squared error [C] of ``gradients`` times what it is off, summed over ``more`` times the P
    positions."""
    resting = torch.as_tensor(node.resting).to(values).reshape(-1, 1, 1, 1)
    theta = node.widest_dead_zone
    identity = NONLINEARITIES["identity"]
    scale = last * 2.0 ** (members - 1)
    p = SignGDParameters(identity, EVERY, scale, members=members, dead_zone=theta)
    x = (values - resting).transpose(0, 1).contiguous()
    done = signgd_multi_step((x,), SignGDState(torch.zeros_like(x[0])), p, keep_spikes=True)
    assert done.spike_seq is not None
    digits = count(done.spike_seq[1:]).double().mean((0, 2, 3))
    off = ((done.y - x) * gradients.transpose(0, 1)).double()
    apart = off.square().sum(3).mean((0, 2))
    together = off.sum(3).square().mean((0, 2)) - apart  # what errors of one sign add
    if more > 1:  # by some pairs of positions, one in more ** 2, which may err below 0
        together = together.clamp(min=0)
    return digits, more * apart + more**2 * together


# -- the plan, run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Followed:
    """Of a plan on clips: the relative error of the outputs in all frames and in the first, and how
    far each neuron is from its target."""

    error: float
    first: float
    off: Mapping[str, float]
    frames: int
    clips: int


@torch.no_grad()
def followed(network: SpikingNetwork, context: Context) -> Followed:
    """The network's frames, with its state kept, against the source's."""
    clip = segments(context.clips, FRAMES, residuals.samples_for(network))
    module, names = NetworkModule(network, {}), leaves(network.outputs)
    steps: residuals.Steps | None = None
    squares: list[float] = []
    for frame in range(len(clip)):
        x = module.check_input(clip[frame])
        steps = steps or residuals.Steps(x)
        steps.x = x
        values: dict[str, Tensor] = {}
        for _ in range(network.time_steps):
            values = walk(network, steps, names)
        wanted = module.activations(x, keep=names)
        off = sum(_square(values[n] - wanted[n]) / max(_square(wanted[n]), 1e-30) for n in names)
        squares.append(off / len(names))
    assert steps is not None
    error = (sum(squares) / len(squares)) ** 0.5
    away = {name: (a / b) ** 0.5 for name, (a, b) in steps.off.items() if b}
    return Followed(error, squares[0] ** 0.5, away, len(squares), samples_of(clip, 1))


def _square(value: Tensor) -> float:
    return float(value.double().square().sum())
