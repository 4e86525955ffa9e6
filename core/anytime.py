"""Reading the outputs of a network while it runs: step by step, with early exit for each sample."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons.rounding import Rounded
from .dealing import batches
from .inputs import Inputs, batch_of, call, samples_of
from .modes import eval_mode
from .module import NetworkModule, NetworkState, select
from .network import SpikingNetwork, each_leaf
from .operations import follows_batch
from .progress import progress, samples_in
from .running import check_run, check_steps, length_of, steps_of
from .spikes import Sent, listening


@dataclass(frozen=True, eq=False)
class Step:
    """A run after step ``t``: the decoded ``outputs`` so far, and ``spikes`` [B] sent in this step.

    signGD neurons send ``members`` signs in every step, with a dead zone those of them that are not
    silent, group neurons one spike for each member that fires, negative ones included, the
    rate-coded baseline and Poisson coding their spikes (the mean of all samples where a layer folds
    the batch into another dimension). ``prediction`` and ``margin`` are those of classifiers, whose
    output is one tensor [B, classes].
    """

    t: int
    outputs: Any
    spikes: Tensor

    @property
    def prediction(self) -> Tensor:
        """The class of the largest output, [B]."""
        return _classes(self.outputs).argmax(1)

    @property
    def margin(self) -> Tensor:
        """t times the largest output less the second largest, [B].

        The rates of group neurons have an error of about 1 / t, hence the factor t. For signGD
        neurons this is empirical: of the measures tried (of the outputs, of their softmax, over
        their deviation, with and without t) this one separates correct from wrong predictions in
        the fewest steps.
        """
        first, second = _classes(self.outputs).topk(2, dim=1).values.unbind(1)
        return self.t * (first - second)


def _classes(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1:
        return outputs
    raise InputError(
        "predictions and margins are those of classifiers, whose output is one tensor "
        "[B, classes]; read step.outputs for other networks."
    )


def stream(
    snn: NetworkModule, x: Any, time_steps: int | None = None, *, sequence: bool = False
) -> Generator[Step]:
    """``for step in stream(snn, x)``: a ``Step`` after each time step, until you break.

    x is [B, ...], one static input, or [T, B, ...] with ``sequence=True``; ``time_steps`` are those
    the network was planned for, or those of the sequence, unless given. States are reset before,
    and after: when the loop ends, or the iterator is closed or deleted. One stream at a time: the
    states are the module's. Raises InputError.
    """
    started = _Run("stream", snn, x, time_steps, sequence)
    return started.steps()


class _Run:
    """A run one step at a time, from which samples can be dropped (``keep``)."""

    def __init__(
        self, name: str, snn: NetworkModule, x: Any, time_steps: int | None, sequence: bool
    ) -> None:
        if time_steps is None and isinstance(snn, NetworkModule):
            time_steps = snn.network.time_steps
            if sequence:
                time_steps = length_of(x) or time_steps
        (self.last,) = check_steps(1 if time_steps is None else (time_steps,))
        self.x = check_run(name, snn, x, self.last, sequence)
        self.snn, self.sequence = snn, sequence
        self.static: dict[str, Tensor] = {}
        self.state: NetworkState | None = None
        self.spikes = torch.zeros(0)

    @property
    def batch(self) -> int:
        return samples_of(self.x, int(self.sequence))

    @torch.no_grad()
    def steps(self) -> Generator[Step]:
        self.snn.reset()
        try:
            for t in range(1, self.last + 1):
                self.spikes = torch.zeros(self.batch, device=self.x.device)
                with self.snn.for_sequences(), listening(self.snn, self._count):
                    if self.sequence:
                        now = steps_of(self.x, t - 1, t)
                        block, self.state = self.snn.advance(now, state=self.state)
                    else:
                        block, self.state = self.snn.advance(self.x, 1, self.static, self.state)
                yield Step(t, each_leaf(block, _first), self.spikes)
        finally:
            self.snn.reset()

    def _count(self, sent: Sent) -> None:
        if sent.events is None or sent.node.code is None:  # pooling passes on spikes of others
            return
        spikes, shape = sent.events.spikes, sent.node.shape
        along = [dim for dim, size in enumerate(shape, 1) if follows_batch(size)]
        if [shape[dim - 1] for dim in along] == ["1*batch"]:
            self.spikes += spikes.transpose(0, along[0]).flatten(1).sum(1)
        else:  # the batch is folded into another dimension: the mean of the samples
            self.spikes += spikes.sum() / max(self.batch, 1)

    def keep(self, index: Tensor) -> None:
        """Goes on with these samples alone."""
        batch, network = self.batch, self.snn.network
        self.x = self.x.index_select(int(self.sequence), index)
        if isinstance(self.x, Inputs):
            self.x = self.snn.check_input(self.x.tensors, int(self.sequence))
        led = {n.name for n in network.nodes if n.shape[:1] == ("1*batch",)}
        self.static = {k: v[index] if k in led else v for k, v in self.static.items()}
        self.state = select(self.state, index, batch)
        self.snn.select(index, batch)


def _first(values: Tensor) -> Tensor:
    return values[0].clone()


def shrinks(network: SpikingNetwork) -> bool:
    """Whether samples can leave a running batch: the batch leads every value, unfolded."""
    sizes = [node.shape for node in network.nodes if any(map(follows_batch, node.shape))]
    return all(shape[0] == "1*batch" and not any(map(follows_batch, shape[1:])) for shape in sizes)


@dataclass(frozen=True, eq=False)
class Exit(Rounded):
    """For each sample [B] the ``prediction``, after how many ``steps`` it was made, its ``margin``
    then, and the ``spikes`` sent until then."""

    prediction: Tensor
    steps: Tensor
    margin: Tensor
    spikes: Tensor
    max_steps: int

    @property
    def mean_steps(self) -> float:
        return float(self.steps.double().mean()) if len(self.steps) else 0.0

    @property
    def steps_saved(self) -> float:
        """The fraction of ``max_steps`` that was not needed."""
        return 1 - self.mean_steps / self.max_steps

    def to_dict(self) -> dict[str, Any]:
        lists = {name: getattr(self, name).tolist() for name in ("prediction", "steps", "spikes")}
        return {
            **lists,
            "margin": self.margin.tolist(),
            "max_steps": self.max_steps,
            "mean_steps": self.mean_steps,
            "steps_saved": self.steps_saved,
        }


@dataclass(frozen=True)
class ExitRule(Rounded):
    """The rule by which ``early_exit`` stops, and its measured effect, from ``calibrate_exit``.

    A sample exits at the first step at which its margin is ``margin`` or more, at the latest at
    ``max_steps``. ``agreement`` is the fraction of ``samples`` whose prediction is then that of the
    reference, ``full_agreement`` the fraction without early exit. ``held_out_agreement`` is that of
    each half of the samples with the margin of the other half, ``lower_bound`` the end of its
    one-sided 95 % Wilson interval.
    """

    margin: float
    max_steps: int
    target: float
    agreement: float
    full_agreement: float
    held_out_agreement: float
    lower_bound: float
    mean_steps: float
    steps_saved: float
    spikes_saved: float
    samples: int

    @property
    def note(self) -> str:
        """The statistical reliability of ``agreement``."""
        if self.full_agreement < self.target:
            return (
                f"the network agrees with its source on {self.full_agreement:.2%} of the samples "
                f"at {self.max_steps} steps, below the target of {self.target:.2%}: no sample "
                "exits early."
            )
        sure = self.lower_bound >= self.target
        return (
            f"{self.agreement:.2%} of {self.samples} samples agree, held out "
            f"{self.held_out_agreement:.2%}, with 95 % confidence at least {self.lower_bound:.2%}"
            + (
                "."
                if sure
                else f"; more samples are needed to show {self.target:.2%} with this confidence."
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a margin that nothing reaches is None."""
        found = {**asdict(self), "note": self.note}
        return {**found, "margin": self.margin if math.isfinite(self.margin) else None}

    def __str__(self) -> str:
        return (
            f"margin {self.margin:.4g}: {self.mean_steps:.2f} of {self.max_steps} steps on average "
            f"({self.steps_saved:.1%} saved, and {self.spikes_saved:.1%} of the spikes); "
            f"{self.note}"
        )


@torch.no_grad()
def early_exit(
    snn: NetworkModule,
    x: Any,
    margin: float | ExitRule,
    max_steps: int | None = None,
    *,
    sequence: bool = False,
) -> Exit:
    """The prediction for each sample of x [B, ...] as soon as its margin reaches ``margin``.

    Samples that are done leave the batch and cost no further computation. (If the network folds the
    batch into another dimension they stay to the end, and only their prediction is early.) An
    ``ExitRule`` has its own ``max_steps``. ``max_steps`` and ``sequence`` are as for ``stream``.
    Raises InputError.
    """
    if not isinstance(margin, ExitRule) and not margin == margin:
        raise InputError("margin is a number, but it is NaN.")
    if isinstance(margin, ExitRule):
        max_steps, margin = max_steps or margin.max_steps, margin.margin
    started = _Run("early_exit", snn, x, max_steps, sequence)
    left = torch.arange(started.batch, device=started.x.device)
    prediction, taken = torch.zeros_like(left), torch.zeros_like(left)
    margins = torch.zeros(len(left), device=left.device)
    spikes = torch.zeros_like(margins)
    leaves_batch = shrinks(snn.network)
    here = left  # where in the batch that still runs those are that are left
    steps = started.steps()
    try:
        for step in steps:
            spikes[left] += step.spikes[here]
            found = step.margin[here].float()
            done = (found >= margin) | (step.t == started.last)
            out = left[done]
            prediction[out], taken[out] = step.prediction[here][done], step.t
            margins[out] = found[done]
            left, here = left[~done], here[~done]
            if not len(left):
                break
            if leaves_batch and bool(done.any()):
                started.keep(here)
                here = torch.arange(len(left), device=left.device)
    finally:
        steps.close()
    return Exit(prediction, taken, margins, spikes, started.last)


@torch.no_grad()
def calibrate_exit(
    snn: NetworkModule,
    loader: Iterable[Any],
    reference: nn.Module | None = None,
    agreement: float = 0.99,
    max_steps: int | None = None,
) -> ExitRule:
    """The ``ExitRule`` of the smallest margin that reaches an agreement with ``reference``.

    It is reached on all samples and on each half of them. ``loader`` yields batches x or (x, y),
    which are part of neither the calibration nor the test data: a margin chosen on the calibration
    data is too small. ``reference`` is the source network of the conversion unless given;
    ``max_steps`` is as for ``stream``. Raises InputError.
    """
    if not 0 < agreement <= 1:
        raise InputError(f"agreement is a fraction in (0, 1], but it is {agreement!r}.")
    margins, same, spikes = [], [], []
    loader = batches(loader)
    for batch in progress(loader, "calibrating the exit", samples_in(loader), images=_samples):
        x = batch_of(batch[0] if isinstance(batch, (tuple, list)) else batch)
        if reference is None:
            target = snn.ann(x)
        else:
            with eval_mode(reference):
                target = call(reference, x.clone())  # which may work in place on its input
        wanted = _classes(target).argmax(1)
        steps = list(stream(snn, x, max_steps))
        margins.append(torch.stack([step.margin.float() for step in steps]))
        same.append(torch.stack([step.prediction == wanted for step in steps]))
        spikes.append(torch.stack([step.spikes for step in steps]))
    if sum(part.shape[1] for part in margins) < 2:
        raise InputError("the loader holds fewer than two samples; nothing can be calibrated.")
    return _rule(torch.cat(margins, 1), torch.cat(same, 1), torch.cat(spikes, 1), agreement)


def _samples(batch: Any) -> int:
    return len(batch_of(batch[0] if isinstance(batch, (tuple, list)) else batch))


def _rule(margins: Tensor, same: Tensor, spikes: Tensor, target: float) -> ExitRule:
    """Arguments are [T, samples]."""
    last, samples = margins.shape
    halves = [torch.arange(samples) % 2 == half for half in (0, 1)] if samples > 1 else []
    of_halves = [_least(margins[:, half], same[:, half], target) for half in halves]
    margin = max([_least(margins, same, target), *of_halves])
    right = 0.0
    for half, other in zip(halves, reversed(of_halves), strict=True):
        at = exit_steps(margins[:, half], other)
        right += float(same[:, half].gather(0, at).sum()) / samples
    at, sent = exit_steps(margins, margin), spikes.double().cumsum(0)
    mean, total = float(at.double().mean()) + 1, float(sent[-1].sum())
    return ExitRule(
        margin=margin,
        max_steps=last,
        target=target,
        agreement=float(same.gather(0, at).double().mean()),
        full_agreement=float(same[-1].double().mean()),
        held_out_agreement=right,
        lower_bound=wilson(right, samples),
        mean_steps=mean,
        steps_saved=1 - mean / last,
        spikes_saved=1 - float(sent.gather(0, at).sum()) / total if total else 0.0,
        samples=samples,
    )


def _least(margins: Tensor, same: Tensor, target: float) -> float:
    """The least margin that keeps the agreement, as all larger ones do; infinity if none does."""
    seen = margins.flatten().sort(descending=True).values
    ranks = torch.linspace(0, len(seen) - 1, min(len(seen), CANDIDATES)).long()
    found = math.inf
    for margin in seen[ranks].unique().flip(0).tolist():
        if float(same.gather(0, exit_steps(margins, margin)).double().mean()) < target:
            break
        found = margin
    return found


CANDIDATES = 1000


def exit_steps(margins: Tensor, margin: float) -> Tensor:
    """The index of the step at which each sample leaves, [1, samples], of margins [T, samples]."""
    done = margins >= margin
    done[-1] = True
    return done.to(torch.uint8).argmax(0, keepdim=True)


def wilson(share: float, samples: int, z: float = 1.645) -> float:
    """The lower end of the Wilson interval of a share seen in so many samples."""
    centre = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    return max(0.0, (centre - spread) / (1 + z * z / samples))
