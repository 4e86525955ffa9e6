r"""Tuning: step sizes, scales, resting values and dead zones learned on the calibration data.

Of every signGD neuron the T step sizes, the scale of each channel, the resting value of each
channel and, where it has one, the dead zone of the layer are chosen so that the outputs after T
steps are those of the source network, for as few additions as w asks for:

.. math::
    L = E + w A, \qquad
    E = \sum_{outputs} \frac{\lVert y(T) - y \rVert^2}{\lVert y \rVert^2}

A are the additions per multiply-accumulate of the source (``additions.py``), counted from the
spikes that neurons send; without a dead zone w = 0, the objective "error", is the only choice.

L is minimised by gradient descent (Adam, on minibatches). A spike has no gradient. If v(t-1) is
within one step of f(x) the neuron can follow its target, so the gradient of v(t) is passed to the
target; if it is further away v(t) moves by a whole step whatever the target is, and the gradient is
passed to v(t-1). The derivative in the step itself is exact in both cases:

.. math::
    \frac{\partial v_k}{\partial f} = [\,|v_{k-1} - f| < \eta s 2^{1-k}\,], \qquad
    \frac{\partial v_k}{\partial v_{k-1}} = 1 - \frac{\partial v_k}{\partial f}, \qquad
    \frac{\partial v_k}{\partial (\eta s)} = -2^{1-k} \sigma_k

Large networks are tuned block by block first (``blocks.py``).

With a dead zone the gradient is that of ``dithered.py``. Without, each neuron's steps are also
made larger and smaller as a whole between phases of the descent. The result is the state with the
least L on held-out calibration samples, the untuned network included, so tuning does not make a
network worse beyond sampling noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import Distributed, together
from ..core.network import Encoder, SignGDNeuron, SpikingNetwork, leaves
from ..core.operations import follows_batch
from ..core.progress import announce, progress
from ..errors import InputError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from ..neurons.schedules import ExponentialSchedule, Schedule
from .additions import Prices
from .blocks import SEEN as MOST_SEEN
from .blocks import Block, BlockTuner, Task, iterations_of, outputs_of
from .budget import Budget, TimeUp
from .calibration import FEWEST, Calibration
from .descent import LEARNED, START, Descent
from .objectives import weight_of
from .planning import default_schedule, relative_depths
from .shared import agreed, ended, samples
from .tunable import (
    Choice,
    Choices,
    Found,
    Measure,
    Samples,
    Tunable,
    batch_of,
    default_choices,
    loss_of,
    samples_of,
    updates,
)

LONGEST = 128  # steps times members from which the default is close enough
HELD_OUT = 96  # samples at most
SPARSE_HELD_OUT = 256  # with dead zones, as additions are counted there too
SEEN = 1024
EFFORT = 2e9  # neuron updates of a whole descent: up to a minute on two cores
RESIZING = 8e9  # of one sweep over the neurons that makes their steps larger or smaller
LOOKING = 2e8  # of one look at the held-out samples
LEAST = 8  # samples of a sweep
LARGE = 2e7  # updates for one sample from which a network is tuned block by block
BLOCKS_HELD_OUT = 64  # samples at most, then
TOGETHER = 0.4  # of the seconds, for all blocks together after each by itself
TOGETHER_RATE = 0.01
TOGETHER_ITERATIONS = 0.5  # of those of a block
TOGETHER_BATCH = 16
PIECE = 4  # of these, whose graph is held at once
REPORTING = 1.6e10  # of the errors if undone
REPORT = 0.1  # of the seconds, at most, for these
MEASURED = 2  # steps of descent, after which it is told what all will take
RATE = 0.2  # of log step sizes
SPARSE_RATE = 0.1  # where neurons have dead zones
PHASES = ((1.0, 0.6), (0.25, 0.4))  # of the descent: rate over RATE, and share of the iterations
RESIZE = (0.6, 0.8, 1.25)  # after each phase, of all steps of one neuron
LOOKS = 4  # at the held-out samples in each


def against(network: SpikingNetwork) -> str:
    """Why the default plan is not tuned; empty if it can be."""
    neurons = network.neurons
    if not neurons:
        return "there is no spiking neuron to tune."
    if network.stream:
        return (
            "the step sizes of a plan for streams are chosen on clips, not learned; convert the "
            "model again with another price of additions, such as objective=0.016."
        )
    signs = network.of(SignGDNeuron)
    other = [node.name for node in neurons if node not in signs]
    if other:
        return f"only signGD neurons can be tuned, but {other[0]!r} is not one."
    if any(node.momentum for node in signs):
        return "steps with momentum are not tuned."
    if any(node.coding == "poisson" for node in network.of(Encoder)):
        return "Poisson-coded input is random, which is not tuned."
    shapes = [network[name].shape for name in leaves(network.outputs)]
    if any(s[:1] != ("1*batch",) or any(map(follows_batch, s[1:])) for s in shapes):
        return "only outputs whose first dimension is the batch can be tuned, but one has another."
    return ""


def too_few(samples: int) -> str:
    """Why so few samples are not tuned on; empty where they are enough."""
    if samples >= FEWEST:
        return ""
    return f"tuning takes {FEWEST} calibration samples or more, but there are {samples}."


@dataclass(frozen=True)
class Tuning(Rounded):
    """The result of tuning, JSON-able; ``print(tuning)`` shows it as a table.

    Errors are relative output errors on the ``held_out`` samples: of the network as it was, of the
    tuned one, and for each neuron of the tuned network with this neuron alone put back. Resting
    values are means over the channels, in units of the scales as they were.
    ``agreement`` is None for outputs that are not [B, classes]. ``additions``, for each
    multiply-accumulate of the source, are counted where neurons have dead zones; ``weight`` is
    what the objective made of them. "without", the error with a neuron put back, is left out in
    large networks, and where there was no time. Of a network tuned block by block ``blocks`` has
    the loss of each on the held-out samples (``converters/blocks.py``), as it was found and as it
    was left, by the block's last neuron.
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
    blocks: Mapping[str, list[float]] = field(default_factory=dict)

    @staticmethod
    def of(network: SpikingNetwork) -> Tuning | None:
        """The tuning of a network; None if it was not tuned."""
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
            **({"blocks": dict(self.blocks)} if self.blocks else {}),
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
                f"  x {row['scale']:5.2f}  {row['resting']:+7.3f}  {_shown(row.get('without'))}"
            )
        if self.blocks:
            lines.append(f"tuned in {len(self.blocks)} blocks")
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


@named_arguments
@together
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
    blocks: bool | None = None,
    distributed: Distributed | None = None,
) -> SpikingNetwork:
    """``network`` with the step sizes, scales, resting values and dead zones that fit T steps best.

    Parameters
    ----------
    network
        Of signGD neurons, planned for ``network.time_steps`` steps.
    calibration
        As for ``convert``; 64 samples or more, of which a quarter (at most 96,
        with dead zones 256) choose between the states of the descent.
    iterations
        Steps of descent, by default 20 to 250, of each block 10 to 60: up to a
        minute on two cores for the networks of ``examples/``. The same number,
        seed, machine and threads give the same result.
    seconds
        A limit, of everything that is done here, kept but for one batch of each
        kind of work; the result then depends on the speed of the machine.
    learn
        Which of "steps", "scales", "resting" and "dead_zones" are; the others stay as planned.
    objective
        "error", of the outputs; "additions", which weighs them against that, for
        neurons with dead zones, as suits an agreement of 99 %; or a weight: the squared relative
        error that one addition per multiply-accumulate of the source is worth.
    blocks
        Whether parts of the network are tuned one after the other, each toward
        the source network's own values at its end (``converters/blocks.py``), in
        memory that does not grow with the depth; by default where neurons make
        20 million updates for one input.
    distributed
        Processes that share each batch, cut into four pieces that are added in
        their order: any number of them (of equal threads), one among them,
        gives the same network bit for bit. Without it batches are not cut,
        which rounds differently. ``seconds`` are those of the first process.

    Returns a new network whose ``provenance["tuning"]`` says what was done: ``Tuning.of(network)``
    prints it. Raises InputError where the network cannot be tuned, CalibrationError.
    """
    if not isinstance(network, SpikingNetwork):
        raise InputError(
            f"tune takes the SpikingNetwork that convert returned, not {type(network).__name__}."
        )
    x = samples(calibration, max_batches, distributed)
    reason = against(network) or too_few(len(x))
    if reason:
        raise InputError(f"tune: {reason}")
    return tuned(
        network,
        x,
        iterations=iterations,
        seconds=seconds,
        learn=learn,
        objective=objective,
        seed=seed,
        blocks=blocks,
        distributed=distributed,
    )


@torch.inference_mode(False)
def tuned(
    network: SpikingNetwork,
    x: Any,
    *,
    iterations: int | None = None,
    seconds: float | None = None,
    learn: Collection[str] = LEARNED,
    objective: str | float = "error",
    seed: int = 0,
    blocks: bool | None = None,
    distributed: Distributed | None = None,
) -> SpikingNetwork:
    """``tune`` on samples x [N, ...], however few they are; the caller has counted all."""
    reason = against(network)
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
            f"objective={objective!r} weighs additions, but those of neurons without a dead zone "
            "do not depend on what is learned; convert with dead_zone=2 / 3, or tune the error."
        )
    given = {"iterations": iterations, "seconds": seconds, "learn": sorted(learn), "seed": seed}
    if distributed is not None:
        agreed("tune", network, given | {"weight": weight, "blocks": blocks}, distributed)
    tuner = _Tuner(network, x, iterations, seconds, seed, learn, weight, blocks, distributed)
    return ended("tune", tuner.run(), distributed)


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
        blocks: bool | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        self.whole_budget = Budget(seconds, distributed)
        self.budget = self.whole_budget.share(1 - REPORT)
        self.weight, self.seconds = weight, seconds
        self.network, self.seed, self.learn = network, seed, learn
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
        self.blocks = amount >= LARGE if blocks is None else blocks
        most = SPARSE_HELD_OUT if self.sparse else HELD_OUT
        held_out = min(most, len(x) // 4, max(16, int(LOOKING / amount)))
        if self.blocks:
            held_out = min(BLOCKS_HELD_OUT, len(x) // 4)
        self.x = x[:held_out], x[held_out : held_out + (MOST_SEEN if self.blocks else SEEN)]
        seen = len(self.x[1])
        self.batch = min(batch_of(network), seen)
        self.piece = self.budget.size_of(self.batch)
        if self.blocks:
            self.piece, self.batch = PIECE, TOGETHER_BATCH
        # samples that neurons are resized on
        tries = len(RESIZE) * len(self._neurons())
        self.few = min(held_out, int(RESIZING / (amount * tries)))
        planned = int(EFFORT / (amount * self.batch))
        self.iterations = iterations or min(250, max(20, planned))
        self.given = iterations
        self.done, self.block_errors = 0, dict[str, list[float]]()
        self.parts: list[Block] = []

    def _neurons(self) -> tuple[SignGDNeuron, ...]:
        return self.simulation.neurons

    def run(self) -> SpikingNetwork:
        try:
            held_out, seen = self.x
            self.held_out = samples_of(self.network, held_out, self.budget)
            self.measure = Measure(self.simulation, self.held_out, self.budget)
            self.default = default_choices(self.network, self.held_out, self.blocks)
            self.best = self.default
            self.before = self.found = self.measure(self.default)
            self.seen = samples_of(self.network, seen, self.budget)
        except TimeUp:
            reason = f"{self.seconds:g} seconds were over before the outputs were evaluated once."
            return self.network.replace(
                provenance={**self.network.provenance, "tuning": {"none": reason}}
            )
        with suppress(TimeUp):
            if self.blocks:
                self._by_blocks()
            else:
                self._as_a_whole()
        tuned = self.network if self.best is self.default else self._applied(self.best)
        report = self._report()
        return tuned.replace(provenance={**tuned.provenance, "tuning": report.to_dict()})

    def _report(self) -> Tuning:
        before, found = self.before, self.found
        return Tuning(
            self.steps,
            self.done,
            len(self.seen),
            len(self.held_out),
            self.seed,
            (before.error, found.error),
            _pair(before.agreement, found.agreement),
            self._layers(),
            self.weight,
            _pair(before.additions, found.additions),
            self.block_errors,
        )

    def _consider(self, choices: Choices) -> None:
        """Kept where they are better on the held-out samples."""
        found = self.measure(choices)
        if self._better(found, self.found, self.before):
            self.best, self.found = {k: c.copy() for k, c in choices.items()}, found

    def _by_blocks(self) -> None:
        """Each block by itself, then all together from there; time for looks is left."""
        prices = self.simulation.prices or Prices.of(self.network, self.steps)
        budget = self.budget.share(1 - TOGETHER).less(self._look())
        task = Task(
            self.learn,
            self.weight,
            self.sparse,
            self.given or iterations_of(self.network, prices.source),
            budget,
            self.seed,
        )
        tuner = BlockTuner(self.simulation, self.default, self.seen, self.held_out, task)
        self.parts = tuner.blocks
        choices = tuner.run()
        self.done, self.block_errors = task.iterations * len(tuner.errors), tuner.errors
        self._consider(choices)
        together = max(1, round(TOGETHER_ITERATIONS * task.iterations))
        for choices in self._descend(self.best, TOGETHER_RATE, together):
            self._consider(choices)

    def _look(self) -> float:
        """Seconds of a look at the held-out samples."""
        return 1.1 * self.measure.pieces * self.budget.longest.get("look", 0.0)

    def _as_a_whole(self) -> None:
        self._begin()
        for relative, share in PHASES:
            part = max(1, round(share * self.iterations))
            for choices in self._descend(self.best, self.rate * relative, part):
                self._consider(choices)
            if self._late():
                break
            if "steps" in self.learn and self.few >= LEAST and not self.sparse:
                self._resize(self.best)

    def _better(self, found: Found, best: Found, before: Found) -> bool:
        if self.weight:
            return found.loss(self.weight) < best.loss(self.weight)
        return found.error < best.error and not _worse(found, before, len(self.held_out))

    def _resize(self, start: Choices) -> None:
        """All steps of a neuron larger or smaller, one neuron after the other, where it helps.

        The descent does not see that smaller steps round less: within reach the rounding of a value
        is as often up as down, so the derivative of the error in the step is zero on average.
        """
        budget = self.budget.less(self._look())
        measure = Measure(self.simulation, self.seen.pick(slice(0, self.few)), budget)
        best = start
        with suppress(TimeUp):
            least = measure(start).loss(self.weight)
            for name in progress(list(start), "resizing", len(start)):
                for factor in RESIZE:
                    tried = {**best, name: best[name].resized(factor)}
                    found = measure(tried).loss(self.weight)
                    if found < least:
                        best, least = tried, found
        self._consider(best)

    def _begin(self) -> None:
        """From the best of a few plain schedules, as far as held-out samples tell."""
        apart = self.seen.pick(slice(0, len(self.held_out)))
        measure = Measure(self.simulation, apart, self.budget)
        default, candidates = self.default, [self.default]
        if self.sparse:
            # leading zeros cost nothing, and fine digits do
            factors = START if self.weight and "steps" in self.learn else ()
            candidates += [{k: c.resized(f) for k, c in default.items()} for f in factors]
        else:
            for schedule_of in _starts(self.network) if "steps" in self.learn else []:
                like = self.held_out.targets[0]
                nodes = [replace(n, schedule=schedule_of(n)) for n in self._neurons()]
                candidates.append({n.name: Choice.of(n, self.steps, like) for n in nodes})
        if len(candidates) > 1:
            self._consider(min(candidates, key=lambda choices: measure(choices).loss(self.weight)))

    def _late(self) -> bool:
        """Whether a step of descent and a look would end too late."""
        pieces = self.budget.rounds(-(-self.batch // self.piece))
        return not self.budget.less(self._look()).fits("descent", pieces)

    def _descend(self, start: Choices, rate: float, iterations: int) -> Iterator[Choices]:
        """Yields choices now and then, and at the end."""
        descent = Descent(start, self.learn, rate, iterations, self.sparse)
        looks = {math.ceil(iterations * k / LOOKS) for k in range(1, LOOKS + 1)}
        for i in progress(range(1, iterations + 1), "tuning", iterations):
            if self._late():
                return
            pick = torch.randperm(len(self.seen), generator=self.generator)[: self.batch]
            samples = self.seen.pick(pick.to(self.seen.x.device))
            descent.step(self._losses(samples, descent.choices), self.budget)
            self.done += 1
            if self.done == MEASURED and not self.parts:
                self._announce()
            if i in looks or self._late():
                yield descent.choices

    def _announce(self) -> None:
        """What all of the tuning will take, by what its first steps took."""
        longest = self.budget.longest
        look = self._look()
        seconds = self.iterations * longest.get("descent", 0.0) + len(PHASES) * LOOKS * look
        if "steps" in self.learn and self.few >= LEAST and not self.sparse:
            tries = len(RESIZE) * len(self._neurons())
            seconds += len(PHASES) * tries * look * self.few / len(self.held_out)
        limit = math.inf if self.seconds is None else self.seconds
        announce(f"tuning {self.iterations} steps of descent", min(seconds, limit))

    def _losses(self, samples: Samples, choices: Choices) -> list[Callable[[], Tensor]]:
        """In pieces whose graph fits in memory."""
        whole = samples if self.blocks else samples.together()

        def loss(begin: int) -> Tensor:
            part = whole.pick(slice(begin, begin + self.piece))
            return len(part) / len(whole) * self._loss(part, choices)

        return [partial(loss, begin) for begin in range(0, len(whole), self.piece)]

    def _loss(self, samples: Samples, choices: Choices) -> Tensor:
        given = samples.x, choices, bool(self.weight)
        if self.parts:
            outputs, additions = outputs_of(self.simulation, self.parts, *given)
        else:
            outputs, additions = self.simulation.run(*given)
        loss = loss_of(outputs, samples)
        return loss if additions is None else loss + self.weight * additions

    def _applied(self, choices: Choices) -> SpikingNetwork:
        changed = {node.name: choices[node.name].applied(node) for node in self._neurons()}
        return self.network.with_nodes(changed)

    def _layers(self) -> dict[str, Any]:
        layers, without = {}, self._without()
        for node in self._neurons():
            old, new = self.default[node.name], self.best[node.name]
            layers[node.name] = {
                "first before": float(old.eta[0].exp()),
                "first": float(new.eta[0].detach().exp()),
                "last before": float(old.eta[-1].exp()),
                "last": float(new.eta[-1].detach().exp()),
                "scale": float((new.scale - old.scale).detach().mean().exp()),
                "resting": float((new.resting.detach() * new.unit / old.scale.exp()).mean()),
            }
            if node.name in without:
                layers[node.name]["without"] = without[node.name]
            if node.parameters.sparse:
                zones = old.dead_zone.sigmoid().mean(), new.dead_zone.detach().sigmoid().mean()
                layers[node.name] |= {"zone before": float(zones[0]), "zone": float(zones[1])}
        return layers

    def _without(self) -> dict[str, float]:
        """The error with each neuron alone put back, of all neurons or, in large networks and
        where there is no time, of none."""
        if self.best is self.default:
            return {node.name: self.found.error for node in self._neurons()}
        looks = len(self._neurons()) * len(self.held_out)
        if looks * updates(self.network) > REPORTING:
            return {}
        measure = Measure(self.simulation, self.held_out, self.whole_budget)
        measure.budget.longest = self.budget.longest
        if not measure.budget.fits("look", len(self._neurons()) * measure.pieces):
            return {}
        found = {}
        with suppress(TimeUp):
            for node in progress(self._neurons(), "reporting", len(self._neurons())):
                undone = {**self.best, node.name: self.default[node.name]}
                found[node.name] = measure(undone).error
        return found


def _shown(error: float | None) -> str:
    return f"{'-':>15}" if error is None else f"{error:15.4f}"


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
