"""The doctor: the layers that cause the error of a spiking network, the causes, and the fixes.

Errors of the description are distinguished from errors of the spikes. With the source model
(``reference=``) every node is given the source's inputs and must compute the source's value; a
difference shows a wrong weight, a norm that was not folded, another slope or function. The
remaining error is due to spikes: each neuron layer in turn is replaced by its function in the
spiking network, which gives the largest possible improvement there. If that is large, its scale,
schedule, resting value, dead zone, threshold, initial charge and members are set as planned, or
changed by factors, and the network is run again. A finding is a change that brings the outputs
clearly closer to the source's; so parameters that tuning chose are not reported merely because they
are unusual. If the outputs are still far off, T is too small, and larger ones are tried.

The source's lowering, the default plans and the simulation are those of ``converters``, which does
not depend on the doctor.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..converters.rules import NEURONS, Entry, Operation
from ..core.module import NetworkModule
from ..core.network import (
    Encoder,
    Neuron,
    SpikingNetwork,
    SubgradientNeuron,
    leaves,
    values_of,
)
from ..core.operations import follows_batch
from ..core.progress import working
from ..core.running import check_run, check_steps, run
from ..core.samples import Data, examined
from ..errors import InputError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from .examination import (
    Comparison,
    Outcome,
    Sums,
    Trial,
    alone,
    classes,
    compare,
    lower,
    parts,
    relative,
)
from .fixes import (
    Longer,
    adequate,
    describe,
    joint_fixes,
    local_fix,
    longer,
    silenced,
)
from .recording import LARGEST, record

EXAMINED = 256  # at most, of data that are not given as one batch
SAMPLES = 128  # at most, that trials are made with
FEW = 16  # below this a note says that they are few
MOST = 4  # layers whose spikes are fixed one after the other


@dataclass(frozen=True)
class LayerErrors(Rounded):
    """One neuron layer; the dicts are by T.

    ``isolated``
        The relative error of what it has decoded if it alone spikes, fed the source's values.
    ``cumulative``
        The same as the network runs, fed by the spiking neurons before it.
    ``readout``
        The relative error of the outputs where only this layer spikes.
    ``cosine``, ``bias``
        As the network runs: the cosine between decoded values and the source's, and the mean
        difference over the mean size of the source's values.
    ``saturated``
        The share of the source's values that lie beyond what the neurons can decode in T steps.
    ``dead``
        The share of units that decode the same for all samples though the source's values differ.
    """

    name: str
    module: str
    kind: str
    neurons: int
    isolated: dict[int, float]
    cumulative: dict[int, float]
    readout: dict[int, float]
    cosine: dict[int, float]
    bias: dict[int, float]
    saturated: dict[int, float]
    dead: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Finding(Rounded):
    """A cause of the error. ``blame``: the fraction of the squared output error that the fix
    removes.

    ``cause`` is "weights", "norm", "function", "slope", "constant", "wiring" (errors of the
    description), "scale", "schedule", "resting", "dead zone", "threshold", "charge", "members", or
    "steps".
    ``applicable``: whether ``Diagnosis.apply`` does it.
    """

    layer: str
    cause: str
    text: str
    fix: str
    blame: float
    applicable: bool

    @property
    def mend(self) -> str:
        """The older name of ``fix``."""
        warnings.warn("Finding.mend is called fix now.", DeprecationWarning, stacklevel=2)
        return self.fix

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; "mend" is the older name of "fix"."""
        return {**vars(self), "mend": self.fix}


@dataclass(frozen=True, eq=False)
class Diagnosis(Rounded):
    """The result of ``diagnose`` at ``time_steps``; ``findings`` are for the largest, worst first.

    ``agreement`` and ``accuracy`` are fractions by T, None for outputs that are not [B, classes]
    and without labels; ``error`` is that of the outputs, ``fixed`` (error, agreement) of the fixed
    network at its T on the same samples. ``notes`` list what could not be examined.
    """

    time_steps: tuple[int, ...]
    samples: int
    layers: tuple[LayerErrors, ...]
    findings: tuple[Finding, ...]
    agreement: dict[int, float | None]
    accuracy: dict[int, float | None]
    error: dict[int, float]
    source_accuracy: float | None
    fixed: tuple[float, float | None]
    notes: tuple[str, ...]
    network: SpikingNetwork = field(repr=False)

    def apply(self) -> SpikingNetwork:
        """A new network with every applicable finding fixed; the diagnosed one is not changed."""
        return self.network

    @property
    def mended(self) -> tuple[float, float | None]:
        """The older name of ``fixed``."""
        warnings.warn("Diagnosis.mended is called fixed now.", DeprecationWarning, stacklevel=2)
        return self.fixed

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, but for the fixed network; "mended" is the older name of "fixed"."""

        def keyed(values: Mapping[int, Any]) -> dict[str, Any]:
            return {str(t): value for t, value in values.items()}

        layers = [
            {k: keyed(v) if isinstance(v, dict) else v for k, v in row.to_dict().items()}
            for row in self.layers
        ]
        fixed = {
            "time_steps": self.network.time_steps,
            "error": self.fixed[0],
            "agreement": self.fixed[1],
        }
        return {
            "time_steps": list(self.time_steps),
            "samples": self.samples,
            "layers": layers,
            "findings": [finding.to_dict() for finding in self.findings],
            "agreement": keyed(self.agreement),
            "accuracy": keyed(self.accuracy),
            "error": keyed(self.error),
            "source_accuracy": self.source_accuracy,
            "fixed": fixed,
            "mended": fixed,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        last = max(self.time_steps)
        width = max(5, *(len(row.name) for row in self.layers))
        head = ("isolated", "cumulative", "read-out", "cosine", "bias", "saturated", "dead")
        lines = [f"T = {last}, {self.samples} samples"]
        lines.append(f"{'layer':<{width}}  " + "  ".join(f"{name:>10}" for name in head))
        for row in self.layers:
            cells = [
                f"{row.isolated[last]:.4f}",
                f"{row.cumulative[last]:.4f}",
                f"{row.readout[last]:.4f}",
                f"{row.cosine[last]:.4f}",
                f"{row.bias[last]:+.4f}",
                f"{100 * row.saturated[last]:.1f} %",
                f"{100 * row.dead[last]:.1f} %",
            ]
            lines.append(f"{row.name:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
        for t in self.time_steps:
            lines.append(f"T = {t}: " + _outcome(self.error[t], self.agreement[t]))
        if not self.findings:
            lines.append("nothing to fix")
        for i, finding in enumerate(self.findings, 1):
            lines.append(f"{i}. {finding.text} (blame {finding.blame:.0%})")
        if any(finding.applicable for finding in self.findings):
            lines.append(f"fixed, T = {self.network.time_steps}: " + _outcome(*self.fixed))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _outcome(error: float, agreement: float | None) -> str:
    same = "" if agreement is None else f", agreement {agreement:.1%}"
    return f"output error {error:.4f}{same}"


@torch.no_grad()
@named_arguments
def diagnose(
    snn: NetworkModule,
    x: Data,
    y: Tensor | None = None,
    *,
    reference: nn.Module | SpikingNetwork | None = None,
    time_steps: int | Sequence[int] | None = None,
    neurons: Mapping[Operation, Entry] | None = None,
) -> Diagnosis:
    """Finds what is wrong in a converted network, layer by layer, and how to fix it.

    Parameters
    ----------
    x, y
        One batch [B, ...] of representative samples, 64 are enough; labels [B] if there are any. Or
        data of any length, a ``Dataset``, a DataLoader or batches x or (x, y), of which 256 samples
        from all over are examined; y is then omitted, and targets that are not class indices [B]
        are not used as labels.
    reference
        The model that was converted, or a correct description of it, which is faster: its layers
        are compared with those of the network. Without it the description is assumed to be correct,
        and only errors of the spikes are found.
    time_steps
        T, or several, at which errors are reported; findings are for the largest. By default the T
        that the network was planned for.
    neurons
        As ``convert`` was given it, for the reference.

    Takes about one run of the network for each neuron layer, and some tens more if something is
    wrong; trials use 128 samples at most. For signGD and group neurons; raises InputError for the
    rate-coded baseline, for Poisson-coded input and for what ``run`` refuses, and what ``convert``
    raises for a reference that it cannot follow.
    """
    network = snn.network if isinstance(snn, NetworkModule) else None
    if time_steps is None:
        time_steps = network.time_steps if network else 1
    steps = tuple(sorted(set(check_steps(time_steps))))
    few, labels = examined(x, y, EXAMINED)
    few = check_run("diagnose", snn, few, steps[-1], False)
    assert network is not None
    _check(network, few, labels)
    with working(f"examining {len(network.neurons)} layers of neurons"):
        return _diagnosed(
            snn, few, labels, reference, steps, NEURONS if neurons is None else neurons
        )


def _diagnosed(
    snn: NetworkModule,
    x: Tensor,
    y: Tensor | None,
    reference: nn.Module | SpikingNetwork | None,
    steps: tuple[int, ...],
    neurons: Mapping[Operation, Entry],
) -> Diagnosis:
    network = snn.network
    notes: list[str] = []
    findings: list[Finding] = []
    source = network
    if reference is None:
        notes.append(
            "without reference= the description is assumed to be correct: wrong weights, norms "
            "and functions are not searched for."
        )
    else:
        true = (
            reference
            if isinstance(reference, SpikingNetwork)
            else lower(network, reference, x, neurons)
        )
        compared = compare(network, true, x)
        source = compared.fixed
        notes += _not_compared(compared)
    errors, agreement, accuracy, own = _outcomes(snn, source, x, y, steps)
    layers = _layers(snn, source, x, steps)
    last = steps[-1]
    few = x[:SAMPLES]
    whole = max(errors[last] ** 2, 1e-12)
    if reference is not None:
        for name, squared in _at_readout(compared, x).items():
            cause, text, fix = describe(compared.own[name], compared.right[name])
            blame = min(1.0, squared / whole)
            can = compared.right[name] is not None
            findings.append(Finding(name, cause, f"{text}; {fix}", fix, blame, can))
    if len(x) < FEW:
        notes.append(
            f"{len(x)} sample{'s' * (len(x) > 1)}: a fix chosen on so few may not hold for others."
        )
    silence = silenced(source, few, last)
    notes += [] if silence is None else [silence]
    of_spikes, fixed, outcome = _of_spikes(source, few, last, whole, layers)
    ordered = sorted(findings + of_spikes, key=lambda f: -f.blame)
    if ordered:
        texts = [finding.text for finding in ordered if finding.applicable]
        known = fixed.provenance.get("doctor", [])
        fixed = fixed.replace(provenance={**fixed.provenance, "doctor": [*known, *texts]})
    return Diagnosis(
        steps,
        len(x),
        layers,
        tuple(ordered),
        agreement,
        accuracy,
        errors,
        own,
        outcome,
        tuple(notes),
        fixed,
    )


def _check(network: SpikingNetwork, x: Tensor, y: Tensor | None) -> None:
    for node in network.of(Encoder):
        if node.coding == "poisson":
            raise InputError(
                f"diagnose examines signGD and group neurons, but '{node.name}' is Poisson-coded "
                "input. Convert with another input_coding."
            )
    for neuron in network.of(SubgradientNeuron):
        raise InputError(
            f"diagnose examines signGD and group neurons, but '{neuron.name}' is a neuron of the "
            "rate-coded baseline. Convert with another method, or compare what run returns."
        )
    if not network.neurons:
        raise InputError("diagnose examines neurons, but the network has none that spikes.")
    if len(x) == 0:
        raise InputError("x is an empty batch; a few dozen representative samples are enough.")
    if y is not None and y.shape != x.shape[:1]:
        raise InputError(
            f"labels are class indices [B], one for each sample, but x is {list(x.shape)} and "
            f"y is {list(y.shape)}."
        )
    if y is not None and (y.is_floating_point() or y.dtype == torch.bool or int(y.min()) < 0):
        raise InputError(f"labels are class indices, integers from 0 on, but y is {y.dtype}.")
    if x.device.type != "cpu":
        raise InputError(
            f"diagnose runs on the CPU, but x is on {x.device}: diagnose(snn.cpu(), x.cpu(), ...)."
        )


def _not_compared(compared: Comparison) -> list[str]:
    notes = []
    if compared.missing:
        notes.append(
            "not compared, since the reference has no node of that name: "
            + ", ".join(compared.missing)
        )
    if compared.unmet:
        notes.append("nodes of the reference that the network lacks: " + ", ".join(compared.unmet))
    if len(compared.wrong) > max(3, len(compared.own) // 2, len(compared.fixed.nodes) // 3):
        notes.append(
            f"{len(compared.wrong)} of {len(compared.fixed.nodes)} nodes differ from the "
            "reference: is it the model that was converted, with the same weights?"
        )
    return notes


def _outcomes(
    snn: NetworkModule, source: SpikingNetwork, x: Tensor, y: Tensor | None, steps: tuple[int, ...]
) -> tuple[dict[int, float], dict[int, float | None], dict[int, float | None], float | None]:
    """By T the output error, agreement and accuracy, and the accuracy of the source."""
    ends = list(dict.fromkeys(leaves(source.outputs)))
    sums = {t: [Sums() for _ in ends] for t in steps}
    same, right = dict.fromkeys(steps, 0), dict.fromkeys(steps, 0)
    own, judged = 0, False
    true = NetworkModule(source, {})
    for start, part in _placed(source, x, steps[-1]):
        outputs = run(snn, part, steps)
        values = true.activations(part, keep=ends)
        for t in steps:
            have = dict(zip(leaves(source.outputs), leaves(outputs[t]), strict=True))
            for each, name in zip(sums[t], ends, strict=True):
                each.add(have[name], values[name])
            want = values[ends[0]]
            judged = classes(source, want)
            if not judged:
                continue
            if y is not None and int(y.max()) >= want.shape[1]:
                raise InputError(
                    f"a label is {int(y.max())}, but the outputs are of {want.shape[1]} classes."
                )
            prediction = outputs[t].argmax(1)
            same[t] += int((prediction == want.argmax(1)).sum())
            if y is not None:
                labels = y[start : start + len(part)].to(prediction.device)
                right[t] += int((prediction == labels).sum())
                own += int((want.argmax(1) == labels).sum()) if t == steps[0] else 0
    labelled = judged and y is not None
    return (
        {t: relative(sums[t]) for t in steps},
        {t: same[t] / len(x) if judged else None for t in steps},
        {t: right[t] / len(x) if labelled else None for t in steps},
        own / len(x) if labelled else None,
    )


def _placed(network: SpikingNetwork, x: Tensor, steps: int) -> list[tuple[int, Tensor]]:
    found, start = [], 0
    for part in parts(network, x, steps):
        found.append((start, part))
        start += len(part)
    return found


def _layers(
    snn: NetworkModule, source: SpikingNetwork, x: Tensor, steps: tuple[int, ...]
) -> tuple[LayerErrors, ...]:
    network, last = snn.network, steps[-1]
    nodes = network.neurons
    kinds = ("isolated", "cumulative")
    sums = {(n.name, kind, t): Sums() for n in nodes for kind in kinds for t in steps}
    ends = list(dict.fromkeys(leaves(source.outputs)))
    outputs = {(n.name, t): [Sums() for _ in ends] for n in nodes for t in steps}
    beyond = {(n.name, t): 0 for n in nodes for t in steps}
    seen = dict.fromkeys((n.name for n in nodes), 0)
    spread: dict[tuple[str, int], _Spread] = {}
    true = NetworkModule(source, {})
    for part in parts(network, x, last):
        values = true.all_activations(part)
        for group in _groups(nodes, len(part), last):
            recording = record(snn, part, last, [node.name for node in group])
            for node in group:
                name, want = node.name, values[node.name]
                inputs = [values[i] for i in node.inputs]
                found = alone(node, inputs, last, steps)
                seen[name] += want.numel()
                for t in steps:
                    have = recording.decoded[name][t - 1]
                    sums[name, "isolated", t].add(found[t], want)
                    sums[name, "cumulative", t].add(have, want)
                    ahead = true.activations_after(values, {name: found[t]})
                    for each, end in zip(outputs[name, t], ends, strict=True):
                        each.add(ahead[end], values[end])
                    beyond[name, t] += _saturated(node, want, t)
                    spread.setdefault((name, t), _Spread(node)).add(have, want)
    return tuple(
        LayerErrors(
            node.name,
            node.module or node.name,
            node.kind,
            values_of(node.shape),
            isolated={t: sums[node.name, "isolated", t].error for t in steps},
            cumulative={t: sums[node.name, "cumulative", t].error for t in steps},
            readout={t: relative(outputs[node.name, t]) for t in steps},
            cosine={t: sums[node.name, "cumulative", t].cosine for t in steps},
            bias={t: sums[node.name, "cumulative", t].bias for t in steps},
            saturated={t: beyond[node.name, t] / max(1, seen[node.name]) for t in steps},
            dead={t: spread[node.name, t].dead for t in steps},
        )
        for node in nodes
    )


def _groups(nodes: Sequence[Neuron], batch: int, steps: int) -> list[list[Neuron]]:
    """Layers that can be recorded together."""
    groups: list[list[Neuron]] = []
    room = 0
    for node in nodes:
        size = 16 * steps * batch * values_of(node.shape)  # decoded and sent, at most float64
        if not groups or size > room:
            groups.append([])
            room = LARGEST // 4
        groups[-1].append(node)
        room -= size
    return groups


def _saturated(node: Neuron, want: Tensor, steps: int) -> int:
    limits = node.reach(steps)
    if limits is None:
        return 0
    low, high = (torch.as_tensor(limit).to(want) for limit in limits)
    return int(((want > high) | (want < low)).sum())


class _Spread:
    """Whether units differ from sample to sample, as decoded and in the source network."""

    def __init__(self, node: Neuron) -> None:
        self.led = bool(node.shape) and follows_batch(node.shape[0])
        self.limits: list[tuple[Tensor, Tensor]] | None = None

    def add(self, have: Tensor, want: Tensor) -> None:
        if not self.led:
            return
        now = [(v.amin(0), v.amax(0)) for v in (have, want)]
        if self.limits is not None:
            pairs = zip(self.limits, now, strict=True)
            now = [(torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])) for a, b in pairs]
        self.limits = now

    @property
    def dead(self) -> float:
        if self.limits is None:
            return 0.0
        (low, high), (least, most) = self.limits
        return float(((low == high) & (least < most)).double().mean())


def _at_readout(compared: Comparison, x: Tensor) -> dict[str, float]:
    """For each wrong node the squared output error where it alone is wrong, and nothing spikes."""
    if not compared.wrong:
        return {}
    own = NetworkModule(compared.fixed, {})
    ends = list(dict.fromkeys(leaves(compared.fixed.outputs)))
    found: dict[str, float] = {}
    for name in compared.wrong:
        wrong = NetworkModule(compared.fixed.with_nodes({name: compared.own[name]}), {})
        sums = [Sums() for _ in ends]
        for part in parts(compared.fixed, x, 1):
            want = own.activations(part, keep=ends)
            try:
                have = wrong.activations(part, keep=ends)
            except (RuntimeError, IndexError):  # of another shape
                found[name] = float("inf")
                break
            for each, end in zip(sums, ends, strict=True):
                each.add(have[end], want[end])
        found.setdefault(name, relative(sums) ** 2)
    return found


def _of_spikes(
    network: SpikingNetwork,
    x: Tensor,
    steps: int,
    whole: float,
    layers: tuple[LayerErrors, ...],
) -> tuple[list[Finding], SpikingNetwork, tuple[float, float | None]]:
    """Findings about neurons, the network with those fixed, and its outcome on x."""
    saturated = {row.name: row.saturated[steps] for row in layers}
    findings: list[Finding] = []
    trial = Trial(network, x, steps)
    if steps < network.time_steps and not adequate(trial.start):
        found = longer(network, x, steps, trial.start)
        if found is not None and adequate(found.outcome):  # it has not had its time yet
            won = (trial.start.error**2 - found.outcome.error**2) / whole
            finding = _too_few(layers, steps, trial.start, found, won)
            return [finding], found.network, (found.outcome.error, found.outcome.agreement)
    done: set[str] = set()
    for _ in range(MOST):
        before = trial.start
        fix = local_fix(trial, done, saturated)
        if fix is None:
            break
        done.add(fix.node.name)
        network = fix.applied(network)
        trial = Trial(network, x, steps)
        won = (before.error**2 - trial.start.error**2) / whole
        findings.append(
            Finding(fix.node.name, fix.cause, fix.text, fix.what, max(0.0, min(1.0, won)), True)
        )
    together = joint_fixes(trial, saturated)
    if together:
        start = trial.start.error
        for fix in together:
            network = fix.applied(network)
        trial = Trial(network, x, steps)
        undone = [  # what is lost where one of them is left out
            trial.rerun({m.node.name: m.before or m.node}).error ** 2 - trial.start.error**2
            for m in together
        ]
        won, total = (start**2 - trial.start.error**2) / whole, sum(max(0.0, u) for u in undone)
        for fix, lost in zip(together, undone, strict=True):
            share = max(0.0, lost) / total if total else 1 / len(together)
            blame = max(0.0, min(1.0, won * share))
            name = fix.node.name
            findings.append(Finding(name, fix.cause, fix.text, fix.what, blame, True))
    outcome = trial.start
    if not adequate(outcome):
        found = longer(network, x, steps, outcome)
        won, short = 0.0, outcome
        if found is not None:
            won = (outcome.error**2 - found.outcome.error**2) / whole
            network, outcome = found.network, found.outcome
        findings.append(_too_few(layers, steps, short, found, won))
    return findings, network, (outcome.error, outcome.agreement)


def _too_few(
    layers: tuple[LayerErrors, ...],
    steps: int,
    start: Outcome,
    found: Longer | None,
    won: float,
) -> Finding:
    """T is too small; the layer is the one that spoils the outputs most."""
    worst = max(layers, key=lambda row: row.readout[steps]).name
    state = _outcome(start.error, start.agreement)
    if found is None:
        fix = "tune, choose members > 1, or keep the layers with the largest read-out error"
        text = f"T = {steps} leaves {state}, and no larger T that was tried fixes it; {fix}"
    else:
        fix = found.what
        text = f"T = {steps} is too small ({state}); {fix}"
    return Finding(worst, "steps", text, fix, max(0.0, min(1.0, won)), found is not None)


__all__ = ["Diagnosis", "Finding", "LayerErrors", "diagnose"]
