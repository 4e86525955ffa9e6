r"""Tuning: step sizes, scales, resting values and dead zones learned on the calibration data.

Of every signGD neuron the T step sizes, the scale of each channel, the resting value of each
channel and, where it has one, the dead zone of the layer are chosen so that the outputs after T
steps are those of the source network, for as few additions as w asks for:

.. math::
    L = E + w A, \qquad
    E = \sum_{outputs} \frac{\lVert y(T) - y \rVert^2}{\lVert y \rVert^2}

A are the additions for each multiply-accumulate of the source (``additions.py``), counted from the
spikes that neurons send; w = 0, the objective "error", is all that there is without a dead zone.

L is made small by gradient descent (Adam, on minibatches). A spike has no gradient. Where v(t-1) is
within one step of f(x) the neuron can follow its target, so there the gradient of v(t) is handed on
to the target; where it is further away v(t) moves by a whole step whatever the target is, and
the gradient stays with v(t-1). The derivative in the step itself is exact in both cases:

.. math::
    \frac{\partial v_k}{\partial f} = [\,|v_{k-1} - f| < \eta s 2^{1-k}\,], \qquad
    \frac{\partial v_k}{\partial v_{k-1}} = 1 - \frac{\partial v_k}{\partial f}, \qquad
    \frac{\partial v_k}{\partial (\eta s)} = -2^{1-k} \sigma_k

With a dead zone the gradient is that of ``dithered.py``. Without, each neuron's steps are also
made larger and smaller as a whole between phases of the descent. What is kept is the state with the
least L on calibration samples that the descent never saw, the
untuned network among them, so tuning does not make a network worse than noise does.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.inputs import value_of
from ..core.module import NetworkModule, Signal
from ..core.network import (
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    leaves,
)
from ..core.operations import apply, apply_over_time, follows_batch, resolve
from ..core.progress import progress
from ..core.walk import Semantics, walk
from ..errors import InputError
from ..neurons.schedules import ExponentialSchedule, ListSchedule, Schedule
from ..neurons.spikes import hear
from .additions import Prices
from .calibration import Calibration, batches_of
from .dithered import MOST, SparseTrack
from .objectives import weight_of
from .planning import default_schedule, relative_depths

FEWEST = 64  # samples, a quarter of which are held out
LONGEST = 128  # steps times members from which the default is close enough
HELD_OUT = 96  # samples at most
SPARSE_HELD_OUT = 256  # with dead zones, as additions are counted there too
SEEN = 1024
BATCH = 32  # samples in one step of descent
EFFORT = 2e9  # neuron updates of a whole descent: up to a minute on two cores
RESIZING = 8e9  # of one sweep over the neurons that makes their steps larger or smaller
LOOKING = 2e8  # of one look at the held-out samples
LEAST = 8  # samples of a sweep
MEMORY = 2**31  # bytes that one step of descent may keep
RATE = 0.2  # of log step sizes
SPARSE_RATE = 0.1  # where neurons have dead zones
TAIL = 0.9  # ratio of the steps after the last tuned one
PHASES = ((1.0, 0.6), (0.25, 0.4))  # of the descent: rate over RATE, and share of the iterations
RESIZE = (0.6, 0.8, 1.25)  # after each phase, of all steps of one neuron
START = (0.5, 2.0, 4.0, 8.0)  # of all steps of all neurons with dead zones
LOOKS = 4  # at the held-out samples in each
LEARNED = ("steps", "scales", "resting", "dead_zones")  # of each neuron
RATES = (1.0, 0.5, 0.1, 0.5)  # of these, over the rate of the descent
SPARSE_RATES = (1.0, 0.5, 0.4, 0.5)  # with dead zones, resting values in finest steps


def against(network: SpikingNetwork, samples: int) -> str:
    """Why the default plan is left as it is: empty where it can be tuned."""
    neurons = network.neurons
    if not neurons:
        return "there is no spiking neuron to tune."
    signs = network.of(SignGDNeuron)
    other = [node.name for node in neurons if node not in signs]
    if other:
        return f"signGD neurons are tuned, but {other[0]!r} is none."
    if any(node.momentum for node in signs):
        return "steps with momentum are not tuned."
    if any(node.coding == "poisson" for node in network.of(Encoder)):
        return "Poisson-coded input is random, which is not tuned."
    shapes = [network[name].shape for name in leaves(network.outputs)]
    if any(s[:1] != ("1*batch",) or any(map(follows_batch, s[1:])) for s in shapes):
        return "outputs are tuned whose first dimension is the batch, but one of these has another."
    if samples < FEWEST:
        return f"tuning takes {FEWEST} calibration samples or more, but there are {samples}."
    return ""


def updates(network: SpikingNetwork) -> int:
    """Of neurons, in all steps, for one sample."""
    members = sum(node.values * node.members for node in network.of(SignGDNeuron))
    return max(1, members * network.time_steps)


def _batch(network: SpikingNetwork) -> int:
    """Samples at once: about four values of four bytes are kept for each update."""
    return max(1, min(BATCH, MEMORY // (16 * updates(network))))


@dataclass(frozen=True)
class Tuning:
    """What tuning did, JSON-able; ``print(tuning)`` shows it as a table.

    Errors are relative output errors on the ``held_out`` samples: of the network as it was, of the
    tuned one, and for each neuron of the tuned network with this neuron alone put back. Resting
    values are means over the channels, in units of the scales as they were.
    ``agreement`` is None for outputs that are not [B, classes]. ``additions``, for each
    multiply-accumulate of the source, are counted where neurons have dead zones; ``weight`` is
    what the objective made of them.
    """

    time_steps: int
    iterations: int
    samples: int
    held_out: int
    seed: int
    error: tuple[float, float]
    agreement: tuple[float, float] | None
    layers: Mapping[str, Mapping[str, float]]
    weight: float = 0.0
    additions: tuple[float, float] | None = None

    @staticmethod
    def of(network: SpikingNetwork) -> Tuning | None:
        """What was done to a network; None where it was not tuned."""
        found = network.provenance.get("tuning")
        if not isinstance(found, Mapping) or "layers" not in found:
            return None
        names = ("error", "agreement", "additions")
        pairs = {k: found[k] and tuple(found[k]) for k in names if k in found}
        return Tuning(**{**found, **pairs})

    def to_dict(self) -> dict[str, Any]:
        counted = {} if self.additions is None else {"additions": list(self.additions)}
        return {
            **({"weight": self.weight, **counted} if counted else {}),
            "time_steps": self.time_steps,
            "iterations": self.iterations,
            "samples": self.samples,
            "held_out": self.held_out,
            "seed": self.seed,
            "error": list(self.error),
            "agreement": None if self.agreement is None else list(self.agreement),
            "layers": {name: dict(values) for name, values in self.layers.items()},
        }

    def __str__(self) -> str:
        width = max(6, *map(len, self.layers))
        lines = [
            f"{'neuron':<{width}}  first step    last step     scale  resting  error if undone"
        ]
        for name, row in self.layers.items():
            lines.append(
                f"{name:<{width}}  {row['first before']:.3f} > {row['first']:.3f}"
                f" {row['last before']:.3f} > {row['last']:.3f}"
                f"  x {row['scale']:5.2f}  {row['resting']:+7.3f}  {row['without']:15.4f}"
            )
        before, after = self.error
        lines.append(
            f"output error on {self.held_out} held-out samples: {before:.4f} > {after:.4f}"
            + (
                f", agreement {100 * self.agreement[0]:.1f} > {100 * self.agreement[1]:.1f} %"
                if self.agreement
                else ""
            )
            + (
                f", additions {self.additions[0]:.3f} > {self.additions[1]:.3f} a MAC"
                if self.additions
                else ""
            )
        )
        return "\n".join(lines)


class _Track(torch.autograd.Function):
    """T steps of m signs toward targets, with the gradient of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,  # [T, ...], or [...] where it does not change
        eta: Tensor,  # [T]
        scale: Tensor,
        resting: Tensor,
        node: SignGDNeuron,
        static: bool,
    ) -> Tensor:
        steps, shape = len(eta), target.shape if static else target.shape[1:]
        v = resting.expand(shape).clone()
        y = target.new_empty(steps, *shape)
        fires, near = (
            torch.empty(steps * node.members, *shape, dtype=torch.bool, device=v.device)
            for _ in range(2)
        )
        for t in range(steps):
            f = target if static else target[t]
            for k in range(node.members):
                size = eta[t] * 2.0**-k * scale
                i = t * node.members + k
                u = v - f
                fires[i] = u >= 0 if node.function.fires_at_tie else u > 0
                near[i] = u.abs_() < size
                v += torch.where(fires[i], -size, size)
            y[t] = v
        ctx.save_for_backward(fires, near, eta, scale)
        ctx.resting = resting.shape
        ctx.members, ctx.static = node.members, static
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        fires, near, eta, scale = ctx.saved_tensors
        v = torch.zeros_like(gradient[0])
        target = torch.zeros_like(gradient[0] if ctx.static else gradient)
        d_eta, d_scale = torch.zeros_like(eta), torch.zeros_like(scale)
        for t in reversed(range(len(eta))):
            v = v + gradient[t]
            for k in reversed(range(ctx.members)):
                i = t * ctx.members + k
                moved = torch.where(fires[i], -v, v).sum_to_size(scale.shape) * 2.0**-k
                d_eta[t] += (moved * scale).sum()
                d_scale += moved * eta[t]
                followed = v * near[i]
                v = v - followed
                (target if ctx.static else target[t]).add_(followed)
        return target, d_eta, d_scale, v.sum_to_size(ctx.resting), None, None


@dataclass(frozen=True, eq=False)
class Choice:
    """What is tuned of one neuron: log step sizes [T], log scale, resting in units of ``unit``, the
    scale or, with a dead zone, the finest step, and the zone's logit, -inf where there is none."""

    eta: Tensor
    scale: Tensor
    resting: Tensor
    dead_zone: Tensor
    unit: Tensor

    @staticmethod
    def of(node: SignGDNeuron, steps: int, like: Tensor) -> Choice:
        eta = like.new_tensor([node.schedule(t) for t in range(1, steps + 1)])
        scale = torch.as_tensor(node.scale).to(like).clone()
        # the finest step is what a silent neuron's resting value is seen by
        unit = scale * (float(eta[-1]) * node.finest if node.parameters.sparse else 1.0)
        resting = torch.as_tensor(node.resting).to(like) / unit
        theta = torch.as_tensor(node.dead_zone).to(like)
        return Choice(eta.log(), scale.log(), resting, theta.logit(), unit)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.eta, self.scale, self.resting, self.dead_zone

    def copy(self) -> Choice:
        eta, scale, resting, dead_zone = (a.detach().clone() for a in self.tensors())
        return Choice(eta, scale, resting, dead_zone, self.unit)

    def resized(self, factor: float) -> Choice:
        """With all steps so much larger."""
        choice = self.copy()
        choice.eta.add_(math.log(factor))
        return choice

    def applied(self, node: SignGDNeuron) -> SignGDNeuron:
        sizes = tuple(float(size) for size in self.eta.detach().exp())
        return replace(
            node,
            schedule=ListSchedule(sizes, TAIL),
            scale=self.scale.detach().exp(),
            resting=(self.resting * self.unit).detach(),
            dead_zone=self._theta(),
        )

    def _theta(self) -> float | Tensor:
        theta = self.dead_zone.detach().sigmoid()
        return float(theta) if theta.dim() == 0 else theta


Choices = Mapping[str, Choice]


class Tunable:
    """A network of signGD neurons in the decoded view, run with choices in place of its own."""

    def __init__(self, network: SpikingNetwork, steps: int) -> None:
        self.network, self.steps = network, steps
        self.neurons = network.of(SignGDNeuron)
        self.prices: Prices | None = None  # where additions are counted
        self.every_step = {node.name for node in self.neurons}  # needed at, not at the last alone
        for node in reversed(network.nodes):
            if node.name in self.every_step:
                self.every_step.update(node.inputs)

    def count_additions(self) -> None:
        self.prices = Prices.of(self.network, self.steps)

    def outputs(self, x: Tensor, choices: Choices) -> list[Tensor]:
        """Each output after the last step [B, ...]; by the kernels where no gradient is wanted."""
        return self.run(x, choices)[0]

    def run(self, x: Tensor, choices: Choices) -> tuple[list[Tensor], Tensor | None]:
        """``outputs`` and the additions of a sample for each MAC, where these are counted."""
        names = leaves(self.network.outputs)
        semantics = _Differentiable(self, x, choices)
        values = walk(self.network, semantics, names)
        outputs = [value[-1] if led else value for value, led in map(values.__getitem__, names)]
        if self.prices is None:
            return outputs, None
        return outputs, self.prices.per_mac(torch.stack(semantics.sent).sum() / len(x))


class _Differentiable(Semantics[Signal]):
    """All steps of x [B, ...] at once, with a gradient in the choices."""

    def __init__(self, tunable: Tunable, x: Tensor, choices: Choices) -> None:
        self.steps, self.every_step = tunable.steps, tunable.every_step
        self.x, self.choices, self.prices = x, choices, tunable.prices
        self.sent: list[Tensor] = []  # by each neuron: spikes times connections

    def input(self, node: Input) -> Signal:
        return value_of(self.x, node.name), False

    def constant(self, node: Constant) -> Signal:
        return node.value, False

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        x = value_of(self.x, node.inputs[0])
        x_seq = x.expand(self.steps, *x.shape)
        return node.sequence((x_seq,), node.start((x,)))[0], True

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        values, led = self._needed(node, inputs)
        given, batch = (node.attributes, node.tensors), len(self.x)
        if any(led):
            return apply_over_time(node.op, values, led, *given, batch), True
        return apply(node.op, values, *given, batch), False

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        values, led = self._needed(node, inputs)
        if not any(led):
            return node.function(*values, **node.arguments), False
        return node.function.over_time(*self._series(values, led), **node.arguments), True

    def neuron(self, node: SignGDNeuron, inputs: list[Signal]) -> Signal:  # type: ignore[override]
        choice = self.choices[node.name]
        fan_out = None if self.prices is None else self.prices.fan_out[node.name]
        if torch.is_grad_enabled():
            return self._with_gradient(node, inputs, choice, fan_out)
        tried, x_seq = choice.applied(node), self._series(*zip(*inputs, strict=True))
        start = tried.start(tuple(x[0] for x in x_seq))
        if fan_out is None:
            return tried.sequence(x_seq, start)[0], True
        with hear() as told:
            v = tried.sequence(x_seq, start)[0]
        events = told[0]()
        assert events is not None
        self.sent.append((events.spikes * fan_out).sum())
        return v, True

    def _with_gradient(
        self, node: SignGDNeuron, inputs: list[Signal], choice: Choice, fan_out: Tensor | None
    ) -> Signal:
        target, led = self.function(node, inputs)
        tuned = choice.eta.exp(), choice.scale.exp(), choice.resting * choice.unit
        if node.parameters.sparse:
            rest = fan_out, node.members, node.function.fires_at_tie, not led
            v, sent = SparseTrack.apply(target, *tuned, choice.dead_zone.sigmoid(), *rest)  # type: ignore[no-untyped-call]
            self.sent.append(sent)
            return v, True
        if fan_out is not None:  # every sign is a spike
            each = fan_out.expand(resolve(node.shape, len(self.x)))
            self.sent.append(each.sum() * (node.members * self.steps))
        return _Track.apply(target, *tuned, node, not led), True  # type: ignore[no-untyped-call]

    def _needed(self, node: Node, inputs: list[Signal]) -> tuple[list[Tensor], list[bool]]:
        """What the node needs of its inputs: every step, or what they are in the end."""
        if node.name not in self.every_step:
            inputs = [(value[-1] if led else value, False) for value, led in inputs]
        return [value for value, _ in inputs], [led for _, led in inputs]

    def _series(self, values: Sequence[Tensor], led: Sequence[bool]) -> tuple[Tensor, ...]:
        pairs = zip(values, led, strict=True)
        return tuple(v if in_time else v.expand(self.steps, *v.shape) for v, in_time in pairs)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs [N, ...] and what the source network makes of them, one tensor for each output."""

    x: Tensor
    targets: list[Tensor]
    least: tuple[float, ...]  # of the mean squares of the targets, whatever samples are picked

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, index: Any) -> Samples:
        return Samples(self.x[index], [target[index] for target in self.targets], self.least)


@torch.no_grad()
def samples_of(network: SpikingNetwork, x: Tensor) -> Samples:
    """x [N, ...] with the outputs of the source network."""
    module = NetworkModule(network, {})
    x = module.check_input(x)
    names = leaves(network.outputs)
    parts = [module.activations(part) for part in x.split(BATCH)]
    targets = [torch.cat([part[name] for part in parts]) for name in names]
    squares = [float(target.square().mean()) for target in targets]
    # an output that is nearly silent, or silent in some samples, does not outweigh the others
    least = tuple(max(0.1 * square, 1e-4 * max(squares), 1e-30) for square in squares)
    return Samples(x, targets, least)


def default_choices(network: SpikingNetwork, samples: Samples) -> Choices:
    """The network as it is."""
    like = samples.targets[0]
    nodes = network.of(SignGDNeuron)
    return {node.name: Choice.of(node, network.time_steps, like) for node in nodes}


def loss_of(outputs: Sequence[Tensor], samples: Samples) -> Tensor:
    """E of the module's docstring."""
    parts = [
        (y - target).square().mean() / target.square().mean().clamp(min=least)
        for y, target, least in zip(outputs, samples.targets, samples.least, strict=True)
    ]
    return torch.stack(parts).sum()


class Found(NamedTuple):
    error: float
    agreement: float | None
    additions: float | None = None

    def loss(self, weight: float) -> float:
        """In the order of L; without a weight the error itself."""
        if not weight or self.additions is None:
            return self.error
        return self.error**2 + weight * self.additions


class Measure:
    """Error, agreement and additions of choices on samples, without a gradient."""

    def __init__(self, simulation: Tunable, samples: Samples) -> None:
        self.simulation, self.samples = simulation, samples
        self.batch = _batch(simulation.network)
        first = samples.targets[0]
        self.classifies = len(samples.targets) == 1 and first.dim() == 2 and first.shape[1] > 1

    @torch.no_grad()
    def __call__(self, choices: Choices) -> Found:
        parts = self.samples.x.split(self.batch)
        ran, made = zip(*(self.simulation.run(part, choices) for part in parts), strict=True)
        outputs = [torch.cat(part) for part in zip(*ran, strict=True)]
        error = float(loss_of(outputs, self.samples)) ** 0.5
        additions = self._mean(parts, made)
        if not self.classifies:
            return Found(error, None, additions)
        same = outputs[0].argmax(1) == self.samples.targets[0].argmax(1)
        return Found(error, float(same.double().mean()), additions)

    def _mean(self, parts: Sequence[Tensor], made: Sequence[Tensor | None]) -> float | None:
        counted = [float(a) * len(x) for x, a in zip(parts, made, strict=True) if a is not None]
        return sum(counted) / len(self.samples) if counted else None


@torch.inference_mode(False)
def tune(
    network: SpikingNetwork,
    calibration: Calibration,
    *,
    iterations: int | None = None,
    seconds: float | None = None,
    learn: Collection[str] = LEARNED,
    objective: str | float = "error",
    max_batches: int | None = 32,
    seed: int = 0,
) -> SpikingNetwork:
    """``network`` with the step sizes, scales, resting values and dead zones that fit T steps best.

    Parameters
    ----------
    network
        Of signGD neurons, planned for ``network.time_steps`` steps; parts that stay real-valued
        may be among them.
    calibration
        A tensor [N, ...] or batches x or (x, y); 64 samples or more, of which a quarter (at most
        96, with dead zones 256) choose between the states that the descent on the others passes
        through.
    iterations
        Steps of descent; by default as many as take up to a minute on two cores for the networks of
        ``examples/`` on 28 x 28 pixels, 20 to 250. The same number, seed, machine and threads give
        the same result.
    seconds
        Stop after about that long; the result then depends on the speed of the machine.
    learn
        Which of "steps", "scales", "resting" and "dead_zones" are; the others stay as planned.
    objective
        "error", of the outputs; "additions", which weighs them against that, for neurons with dead
        zones, as 99 % of agreement takes; or a weight of one's own: what an addition for each
        multiply-accumulate of the source may cost of the squared relative error.

    Returns a new network whose ``provenance["tuning"]`` says what was done: ``Tuning.of(network)``
    prints it. Raises InputError where the network cannot be tuned, CalibrationError.
    """
    batches = batches_of(calibration, max_batches)
    x = torch.cat(batches)
    reason = against(network, len(x))
    if reason:
        raise InputError(f"tune: {reason}")
    for name, value in (("iterations", iterations), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is positive, but it is {value!r}.")
    if isinstance(learn, str) or not learn or not set(learn) <= set(LEARNED):
        raise InputError(f"learn names some of {', '.join(LEARNED)}, but it is {learn!r}.")
    weight = weight_of(objective)
    if weight and not _sparse(network):
        raise InputError(
            f"objective={objective!r} weighs additions, but neurons without a dead zone make the "
            "same whatever is learned; convert with dead_zone=2 / 3, or tune the error."
        )
    return _Tuner(network, x, iterations, seconds, seed, learn, weight).run()


def _sparse(network: SpikingNetwork) -> bool:
    return any(node.parameters.sparse for node in network.of(SignGDNeuron))


class _Tuner:
    def __init__(
        self,
        network: SpikingNetwork,
        x: Tensor,
        iterations: int | None,
        seconds: float | None,
        seed: int,
        learn: Collection[str] = LEARNED,
        weight: float = 0.0,
    ) -> None:
        self.weight = weight
        self.network, self.seconds, self.seed, self.learn = network, seconds, seed, learn
        self.begun = time.monotonic()
        self.steps = network.time_steps
        self.simulation = Tunable(network, self.steps)
        self.sparse = _sparse(network)
        self.rate = SPARSE_RATE if self.sparse else RATE
        if self.sparse:
            self.simulation.count_additions()
        self.generator = torch.Generator().manual_seed(seed)
        # on samples in any order, which may come sorted by class
        x = x[torch.randperm(len(x), generator=self.generator).to(x.device)]
        amount = updates(network)
        most = SPARSE_HELD_OUT if self.sparse else HELD_OUT
        held_out = min(most, len(x) // 4, max(16, int(LOOKING / amount)))
        self.held_out = samples_of(network, x[:held_out])
        self.seen = samples_of(network, x[held_out : held_out + SEEN])
        self.batch = min(_batch(network), len(self.seen))
        # samples that neurons are resized on
        tries = len(RESIZE) * len(self._neurons())
        self.few = min(held_out, int(RESIZING / (amount * tries)))
        planned = int(EFFORT / (amount * self.batch))
        self.iterations = iterations or min(250, max(20, planned))

    def _neurons(self) -> tuple[SignGDNeuron, ...]:
        return self.simulation.neurons

    def run(self) -> SpikingNetwork:
        measure = Measure(self.simulation, self.held_out)
        default = default_choices(self.network, self.held_out)
        before = measure(default)
        best, best_found = default, before
        start, begun = self._begin(default)
        if self._better(begun, best_found, before):
            best, best_found = start, begun
        done = 0
        for relative, share in PHASES:
            iterations, part = 0, max(1, round(share * self.iterations))
            for i, choices in self._descend(best, self.rate * relative, part):
                iterations = i
                found = measure(choices)
                if self._better(found, best_found, before):
                    best, best_found = {k: c.copy() for k, c in choices.items()}, found
            done += iterations
            if self._late():
                break
            if "steps" in self.learn and self.few >= LEAST and not self.sparse:
                resized = self._resize(best)
                found = measure(resized)
                if self._better(found, best_found, before):
                    best, best_found = resized, found
        tuned = self.network if best is default else self._applied(best)
        report = Tuning(
            self.steps,
            done,
            len(self.seen),
            len(self.held_out),
            self.seed,
            (before.error, best_found.error),
            _pair(before.agreement, best_found.agreement),
            self._layers(default, best, measure),
            self.weight,
            _pair(before.additions, best_found.additions),
        )
        return tuned.replace(provenance={**tuned.provenance, "tuning": report.to_dict()})

    def _better(self, found: Found, best: Found, before: Found) -> bool:
        if self.weight:
            return found.loss(self.weight) < best.loss(self.weight)
        return found.error < best.error and not _worse(found, before, len(self.held_out))

    def _resize(self, start: Choices) -> Choices:
        """All steps of a neuron larger or smaller, one neuron after the other, where it helps.

        The descent does not see that smaller steps round less: within reach the rounding of a value
        is as often up as down, so the derivative of the error in the step is zero on average.
        """
        measure = Measure(self.simulation, self.seen.pick(slice(0, self.few)))
        best, least = start, measure(start).loss(self.weight)
        for name in progress(list(start), "resizing", len(start)):
            for factor in RESIZE if not self._late() else ():
                tried = {**best, name: best[name].resized(factor)}
                found = measure(tried).loss(self.weight)
                if found < least:
                    best, least = tried, found
        return best

    def _begin(self, default: Choices) -> tuple[Choices, Found]:
        """The best of a few plain schedules, as far as held-out samples tell."""
        measure = Measure(self.simulation, self.seen.pick(slice(0, len(self.held_out))))
        candidates = [default]
        if self.sparse:
            # leading zeros cost nothing, and fine digits do
            factors = START if self.weight and "steps" in self.learn else ()
            candidates += [{k: c.resized(f) for k, c in default.items()} for f in factors]
            best = min(candidates, key=lambda choices: measure(choices).loss(self.weight))
            return best, Measure(self.simulation, self.held_out)(best)
        for schedule_of in _starts(self.network) if "steps" in self.learn else []:
            like = self.held_out.targets[0]
            nodes = [replace(n, schedule=schedule_of(n)) for n in self._neurons()]
            candidates.append({n.name: Choice.of(n, self.steps, like) for n in nodes})
        best = min(candidates, key=lambda choices: measure(choices).loss(self.weight))
        return best, Measure(self.simulation, self.held_out)(best)

    def _late(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.begun > self.seconds

    def _descend(
        self, start: Choices, rate: float, iterations: int
    ) -> Iterator[tuple[int, Choices]]:
        """Yields (iterations done, choices) now and then, and at the end."""
        choices = {name: choice.copy() for name, choice in start.items()}
        groups: list[list[Tensor]] = [[] for _ in LEARNED]
        for choice in choices.values():
            for kind, group, tensor in zip(LEARNED, groups, choice.tensors(), strict=True):
                if kind in self.learn and bool(tensor.isfinite().any()):
                    group.append(tensor.requires_grad_())
        relative = SPARSE_RATES if self.sparse else RATES
        rates = [rate * one for one in relative]
        settings = [{"params": g, "lr": r} for g, r in zip(groups, rates, strict=True) if g]
        optimizer = torch.optim.Adam(settings, betas=(0.8, 0.95))
        course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, rate / 50)
        parameters = [tensor for group in groups for tensor in group]
        looks = {math.ceil(iterations * k / LOOKS) for k in range(1, LOOKS + 1)}
        for i in progress(range(1, iterations + 1), "tuning", iterations):
            pick = torch.randperm(len(self.seen), generator=self.generator)[: self.batch]
            samples = self.seen.pick(pick.to(self.seen.x.device))
            with torch.enable_grad():
                outputs, additions = self.simulation.run(samples.x, choices)
                loss = loss_of(outputs, samples)
                if additions is not None and self.weight:
                    loss = loss + self.weight * additions
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if bool(norm.isfinite()):
                optimizer.step()
                for logit in groups[-1]:
                    logit.data.clamp_(max=math.log(MOST / (1 - MOST)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a step that was left out is no mistake
                course.step()
            if i in looks or self._late():
                yield i, choices
            if self._late():
                return

    def _applied(self, choices: Choices) -> SpikingNetwork:
        changed = {node.name: choices[node.name].applied(node) for node in self._neurons()}
        return self.network.with_nodes(changed)

    def _layers(self, default: Choices, best: Choices, measure: Measure) -> dict[str, Any]:
        layers = {}
        for node in self._neurons():
            old, new = default[node.name], best[node.name]
            changed = new is not old
            layers[node.name] = {
                "first before": float(old.eta[0].exp()),
                "first": float(new.eta[0].detach().exp()),
                "last before": float(old.eta[-1].exp()),
                "last": float(new.eta[-1].detach().exp()),
                "scale": float((new.scale - old.scale).detach().mean().exp()),
                "resting": float((new.resting.detach() * new.unit / old.scale.exp()).mean()),
                "without": measure({**best, node.name: old} if changed else best).error,
            }
            if node.parameters.sparse:
                zones = old.dead_zone.sigmoid().mean(), new.dead_zone.detach().sigmoid().mean()
                layers[node.name] |= {"zone before": float(zones[0]), "zone": float(zones[1])}
        return layers


def _pair(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None else (before, after or 0.0)


def _worse(found: Found, before: Found, samples: int) -> bool:
    """Whether predictions agree less often than before, by more than chance."""
    if found.agreement is None or before.agreement is None:
        return False
    usual = before.agreement
    spread = math.sqrt(max(usual * (1 - usual), 1 / samples) / samples)
    return found.agreement < usual - spread


def _starts(network: SpikingNetwork) -> list[Callable[[SignGDNeuron], Schedule]]:
    """Schedules to begin the descent from, beside the default."""
    steps = network.time_steps
    depths = relative_depths(network.nodes)
    if any(n.members > 1 for n in network.of(SignGDNeuron)) or steps == 1:
        pairs = [(0.5, 1.0), (0.5, 1.5), (0.7, 0.7), (0.7, 1.0)]
        return [
            lambda n, a=first, b=faster: ExponentialSchedule(  # type: ignore[misc]
                a, default_schedule(steps, depths[n.name], n.members).decay ** b
            )
            for first, faster in pairs
        ]
    return [
        lambda n, a=total, b=last: _shifted(steps, a, b, depths[n.name])  # type: ignore[misc]
        for total, last in ((1.0, 0.2), (1.4, 0.2), (1.0, 0.1), (1.8, 0.05))
    ]


def _shifted(steps: int, total: float, last: float, depth: float) -> ExponentialSchedule:
    """Steps that decay to ``last`` of the first, the first neurons' in 0.6 of the time."""
    settled = max(2.0, steps * (1 - 0.4 * (1 - depth)))
    decay = last ** (1 / (settled - 1))
    return ExponentialSchedule(total * (1 - decay) / (1 - decay**steps), decay)
