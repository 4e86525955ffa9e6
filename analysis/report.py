"""``write_report``: the analysis of a converted network as one self-contained HTML file.

Coverage, accuracy, the doctor's findings, operations and energy, pictures of the neurons,
certificates of exports, and how it was made. What was not measured is listed as such.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ctypes import string_at
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.dealing import batches
from ..core.evaluating import Evaluation, evaluate
from ..core.inputs import Batch, Inputs, batch_of, call
from ..core.metrics import squared_distance, squared_norm
from ..core.modes import eval_mode
from ..core.module import NetworkModule
from ..core.network import SpikingNetwork, each_leaf, values_of
from ..core.progress import working
from ..core.running import check_run, check_steps, planned_steps, run, steps_of
from ..core.samples import Data, Spread, is_whole, joined, labelled, labels_of, pair_of
from ..core.streams import completed
from ..core.structures import leaves, plain
from ..errors import BackendUnavailable, FormatError, InputError, SignGDError
from ..exporters.files import write_whole
from ..exporters.verification import CONTRADICTED, NOT_CHECKED, VERIFIED, shown_state
from ..names import named_arguments
from . import plots
from .markup import (
    INK,
    PAPER,
    Html,
    facts,
    join,
    kept,
    page,
    paragraphs,
    picture,
    section,
    table,
    tag,
)
from .plots import Plot

if TYPE_CHECKING:
    from ..converters import CheckReport
    from ..exporters import Certificate
    from .cost import LayerOperations, Operations
    from .doctor import Diagnosis
    from .energy import EnergyEstimate
    from .over_time import CostsOverTime
    from .recording import Recording

R = TypeVar("R")
BATCH = 100
ANATOMY = (16, 4, 1)  # samples whose spikes are drawn, as many as can be kept
LONG = 300  # letters of a value of the provenance
_STATES = {VERIFIED: "good", CONTRADICTED: "bad", NOT_CHECKED: ""}  # classes of the page's style
DRAWN = 2  # layers whose neurons are drawn
ANIMATED = 48  # frames of an animation
INKED: dict[Any, Any] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
) | {"legend.facecolor": PAPER, "legend.framealpha": 0.9}
KINDS = {"signgd": "signGD"}
MEMBERS = {"signgd": "signs that a neuron sends in one step", "group": "members of a group neuron"}
SPIKES = {  # what a spike of a kind of neuron does
    "signgd": "A spike of +1 lowers the decoded value, one of −1 raises it.",
    "group": "A spike adds one threshold to the output of its neuron.",
}
TAKEN_BACK = {"group": " A negative one takes a threshold back."}
RAN = {"cpu": "CPU kernels", "cupy": "CUDA kernels", "torch": "torch, the definitions"}


@dataclass
class Missing:
    """Why something is not in the report."""

    why: str


@dataclass
class Stream:
    """What a clip [F, B, ...] costs frame by frame, and how far each frame is from the source."""

    clip: Batch
    costs: CostsOverTime
    errors: list[float]
    sound: bool


@dataclass
class _Report:
    """What was measured."""

    snn: NetworkModule
    steps: tuple[int, ...]
    samples: int
    few: int  # samples of the doctor, the energy
    described: bool  # the reference is the source network as the description holds it
    labelled: bool
    check: CheckReport | None
    certificates: Sequence[Certificate]
    evaluation: Evaluation | Missing
    diagnosis: Diagnosis | Missing
    energy: EnergyEstimate | Missing
    recording: Recording | Missing
    stream: Stream | Missing | None  # None where no clip was given
    facts: Mapping[str, Any]

    @property
    def network(self) -> SpikingNetwork:
        return self.snn.network

    @property
    def last(self) -> int:
        return max(self.steps)


@named_arguments
def write_report(
    path: str | os.PathLike[str],
    snn: NetworkModule,
    x: Data,
    y: Tensor | None = None,
    *,
    reference: nn.Module | None = None,
    check: CheckReport | None = None,
    time_steps: int | Sequence[int] | None = None,
    certificates: Iterable[Certificate] = (),
    command: str | None = None,
    title: str | None = None,
    samples: int = 64,
    clip: Tensor | Mapping[str, Tensor] | None = None,
    sound: bool = False,
) -> Path:
    """Measures ``snn`` and writes one self-contained HTML file.

    x is [B, ...], static inputs; y [B] their class indices, without which there is no accuracy.
    ``reference`` is the source network; without it, agreement is with the one stored in the
    description. ``check`` is the result of ``sg.check(model, x)``, ``certificates`` those of
    ``sg.verify``, ``command`` the command that made the network. ``time_steps`` are by default 1,
    2, 4, ... up to those that the network was planned for. All of x is used for the accuracy, the
    first ``samples`` for the doctor and the energy. x may also be data of any length, a
    ``Dataset``, a DataLoader or batches x or (x, y), which are read once, for the accuracy, one
    batch at a time; the ``samples`` are then spread evenly over them, and y is omitted.

    With ``clip`` [F, B, ...], frames one after another, there is a section on the cost of each
    frame with the state kept, under the clip's pictures (``plot_over_time``), and an animation of
    the spikes. Of a dict of inputs the first floating-point one is drawn. With ``sound`` its values
    are samples of sound.

    Without matplotlib the report says so in place of its pictures. An existing file is replaced
    only when the new one is complete. Raises InputError, and FormatError if the file cannot be
    written.
    """
    target = Path(path)
    _check_target(target)
    steps = _check_numbers(snn, time_steps, samples)
    given = _check_given(check, certificates)
    x, y = labelled(x, y)
    data = _OneBatch(snn, x, y, samples) if is_whole(x) else _ManyBatches(snn, x, y, samples)
    report = _measure(snn, data, reference, check, steps, given)
    if clip is not None:
        report.stream = _try(lambda: _streamed(snn, clip, reference or snn.source, sound))
    report.facts = _facts(report, data.x, command)
    with working("drawing the report"):
        page = _page(report, title)
    write_whole(target, page.encode("utf-8", "backslashreplace"))
    return target


def _check_target(path: Path) -> None:
    """Before anything is measured: it takes a while."""
    if not path.parent.is_dir():
        raise FormatError(f"cannot write '{path}': the folder '{path.parent}' does not exist.")
    if path.is_dir():
        raise FormatError(f"cannot write '{path}': it is a folder; name a file in it.")


class _OneBatch:
    """x [N, ...] and labels: ``batches`` of all, the ``few`` first."""

    def __init__(self, snn: NetworkModule, x: Any, y: Tensor | None, count: int) -> None:
        self.x = x = check_run("write_report", snn, x, 1, False)
        self.y = y
        if len(x) == 0:
            raise InputError("write_report measures at least one sample, but x is empty.")
        if y is not None and (not isinstance(y, Tensor) or y.shape != x.shape[:1]):
            raise InputError(
                f"labels are class indices [B], one for each sample, but x is {list(x.shape)} and "
                f"y is {list(y.shape) if isinstance(y, Tensor) else type(y).__name__}."
            )
        self.samples = len(x)
        self.few, self.few_y = x[:count], None if y is None else y[:count]

    def batches(self) -> Iterable[Any]:
        parts: list[Any] = list(self.x.split(BATCH))
        return parts if self.y is None else list(zip(parts, self.y.split(BATCH), strict=True))


class _ManyBatches:
    """Data of any length, gone through once by ``batches``; then the ``few`` are known."""

    def __init__(self, snn: NetworkModule, data: Any, y: Tensor | None, count: int) -> None:
        if y is not None:
            raise InputError(
                "y is the labels of one batch x, but x is a data set; give them in its batches "
                "(x, y)."
            )
        self.snn, self.kept = snn, Spread(count)
        self.given = iter(batches(data, BATCH))
        first = next(self.given, None)
        if first is None:
            raise InputError("write_report measures at least one sample, but the data are empty.")
        self.first = self._looked_at(0, first)

    def _looked_at(self, number: int, batch: Any) -> Any:
        x, y = pair_of(batch)
        x, labels = check_run("write_report", self.snn, x, 1, False), labels_of(y)
        self.kept.add(number, (x, labels))
        return batch if y is None or labels is not None else x

    def batches(self) -> Iterator[Any]:
        yield self.first
        for number, batch in enumerate(self.given, 1):
            yield self._looked_at(number, batch)

    @property
    def samples(self) -> int:
        return self.kept.seen

    @cached_property
    def pair(self) -> tuple[Any, Tensor | None]:
        if not self.kept.seen:
            raise InputError("write_report measures at least one sample, but the data are empty.")
        return joined(self.kept.batches())  # type: ignore[no-any-return]

    @property
    def few(self) -> Any:
        return self.pair[0]

    x = few

    @property
    def few_y(self) -> Tensor | None:
        return self.pair[1]


def _check_numbers(snn: NetworkModule, time_steps: Any, samples: int) -> tuple[int, ...]:
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise InputError(f"samples is an integer of at least 1, but it is {samples!r}.")
    if time_steps is None:
        planned = planned_steps(snn)
        time_steps = [2**k for k in range(planned.bit_length())] + [planned]
    return tuple(sorted(set(check_steps(time_steps))))


def _check_given(check: Any, certificates: Any) -> tuple[Certificate, ...]:
    from ..converters import CheckReport
    from ..exporters import Certificate

    given = tuple(certificates) if isinstance(certificates, Iterable) else (None,)
    if not all(isinstance(each, Certificate) for each in given):
        raise InputError("certificates is a list of what verify(path, ...) returned.")
    if check is not None and not isinstance(check, CheckReport):
        raise InputError(f"check is what check(model, x) returned, not {type(check).__name__}.")
    return given


def _measure(
    snn: NetworkModule,
    data: _OneBatch | _ManyBatches,
    reference: nn.Module | None,
    check: CheckReport | None,
    steps: tuple[int, ...],
    certificates: Sequence[Certificate],
) -> _Report:
    from .doctor import diagnose
    from .energy import estimate_energy

    source = reference or snn.source
    evaluation = _try(lambda: evaluate(snn, data.batches(), steps, reference=source))
    few, few_y = data.few, data.few_y
    diagnosis = _try(lambda: diagnose(snn, few, few_y, reference=reference, time_steps=steps))
    return _Report(
        snn=snn,
        steps=steps,
        samples=data.samples,
        few=len(few),
        described=reference is None,
        labelled=few_y is not None,
        check=check,
        certificates=certificates,
        evaluation=evaluation,
        diagnosis=diagnosis,
        energy=_try(lambda: estimate_energy(snn, few, steps)),
        recording=_record(snn, data.x, max(steps), _interesting(snn.network.names(), diagnosis)),
        stream=None,
        facts={},
    )


def _try(of: Callable[[], R]) -> R | Missing:
    """What does not suit this network is missing, and the report says why."""
    try:
        return of()
    except SignGDError as error:
        return Missing(str(error))


def _record(snn: NetworkModule, x: Tensor, steps: int, names: list[str]) -> Recording | Missing:
    """Of all layers, of few samples where many are too much to keep, else of ``names`` alone."""
    from .recording import record

    found: Recording | Missing = Missing("")
    for count in (*ANATOMY, 0):
        chosen = None if count else names
        found = _try(partial(record, snn, x[: max(1, count)], steps, chosen))
        if not isinstance(found, Missing):
            break
    return found


def _streamed(snn: NetworkModule, clip: Any, reference: nn.Module, sound: bool) -> Stream:
    """The clip with the state kept, frame by frame beside the source."""
    from .over_time import costs_over_time

    clip = batch_of(clip)
    costs = costs_over_time(snn, clip)
    steps = snn.network.time_steps
    have = run(snn, clip, steps, sequence=True, keep_state=True)[steps]
    snn.reset()
    with torch.no_grad(), eval_mode(reference):
        wanted = _in_turn(snn.network, reference, completed(snn, clip, 1))
    shown = [each_leaf(have, itemgetter(k)) for k in range(len(wanted))]
    errors = list(map(_distance, shown, wanted))
    return Stream(clip, costs, errors, sound)


def _in_turn(network: SpikingNetwork, reference: nn.Module, frames: Batch) -> list[Any]:
    """The source's outputs of one frame after the other; what the network feeds itself is here the
    source's own output of the frame before."""
    names, fed, found = leaves(network.outputs), dict[str, Tensor](), []
    if inner := [name for name in network.carries.values() if name not in names]:
        raise InputError(
            f"{inner[0]!r} is carried into the next frame, but is no output, so that the source "
            "cannot be run frame after frame."
        )
    for k in range(len(frames)):
        x: Any = frames[k].clone()
        found.append(plain(call(reference, Inputs({**x.tensors, **fed}) if fed else x)))
        outputs = dict(zip(names, leaves(found[-1]), strict=False))
        fed = {name: outputs[of] for name, of in network.carries.items()}
    return found


def _distance(have: Any, want: Any) -> float:
    """The relative error of the outputs of a frame, NaN where the source's are zero."""
    norm = squared_norm(want)
    return float((squared_distance(have, want) / norm) ** 0.5) if norm else float("nan")


def _facts(report: _Report, x: Batch, command: str | None) -> dict[str, Any]:
    from .. import __version__

    simulator = type(report.snn).__module__.rpartition(".")[2]
    given = list(x.tensors.values()) if isinstance(x, Inputs) else [x]
    # read as they lie: NumPy knows no bfloat16
    inputs = [value.detach().cpu().contiguous() for value in given]
    read = b"".join(string_at(value.data_ptr(), value.nbytes) for value in inputs)
    digest = hashlib.sha256(read).hexdigest()
    shapes = " and ".join(str(list(value.shape[1:])) for value in given)
    few = f" of {len(x)} of them" if len(x) < report.samples else ""
    ran = sorted({RAN[choice.backend] for choice in report.snn.choices(x[:1]).values()})
    packages = [name for name in (simulator, "numpy", "matplotlib") if name]
    return {
        "command": command,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "inputs": f"{report.samples} samples of {shapes}, sha256{few} {digest[:16]}",
        "simulator": simulator,
        "neurons run by": ", ".join(ran) or "the simulator",
        "device": str(x.device),
        "platform": platform.platform(),
        "versions": {
            "spikingjelly_signgd": __version__,
            "Python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in packages},
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


# -- the page ------------------------------------------------------------------------------------

SECTIONS = {
    "accuracy": "Accuracy",
    "coverage": "Coverage",
    "network": "Network",
    "doctor": "Doctor",
    "energy": "Operations and energy",
    "neurons": "Neurons at work",
    "exports": "Export certificates",
    "provenance": "Command and versions",
}
STREAM = {"stream": "A clip, frame by frame"}


def _sections(report: _Report) -> dict[str, str]:
    """That of a stream where a clip was given, behind the energy."""
    if report.stream is None:
        return SECTIONS
    before = list(SECTIONS)[: list(SECTIONS).index("energy") + 1]
    return {name: SECTIONS[name] for name in before} | STREAM | SECTIONS


def _page(report: _Report, title: str | None) -> str:
    sections = _sections(report)
    model = str(report.network.provenance.get("model", "network"))
    title = title or f"{model} as a spiking network"
    parts = {
        "accuracy": _accuracy,
        "coverage": _coverage,
        "network": _network,
        "doctor": _doctor,
        "energy": _energy,
        "stream": _stream,
        "neurons": _neurons,
        "exports": _exports,
        "provenance": _provenance,
    }
    links = join(tag("li", tag("a", text, href=f"#{anchor}")) for anchor, text in sections.items())
    return page(
        title,
        tag("header", tag("h1", title), tag("p", _summary(report), class_="lead"), _cards(report)),
        tag("nav", tag("ul", links), aria_label="Contents"),
        tag("p", "Wide tables and pictures scroll sideways.", class_="note narrow"),
        tag(
            "main",
            *(section(name, title, parts[name](report)) for name, title in sections.items()),
        ),
    )


def _summary(report: _Report) -> str:
    network = report.network
    kinds = dict.fromkeys(KINDS.get(node.kind, node.kind) for node in network.neurons)
    named = " and ".join(kinds) or "no"
    named = named if named.startswith("signGD") else named[0].upper() + named[1:]
    return (
        f"{named} neurons, {_number(len(network.neurons), 'layer')} with "
        f"{sum(network.count().values()):,} neurons for one input, planned for T = "
        f"{network.time_steps}. Measured {report.facts['made']} on {_count(report.samples)}."
    )


def _cards(report: _Report) -> Html:
    cards: list[tuple[str, str]] = []
    found = report.evaluation
    if isinstance(found, Evaluation):
        at = found.time_steps.index(report.last)
        if found.accuracy[at] is not None:
            cards.append((_percent(found.accuracy[at]), f"accuracy at T = {report.last}"))
        if found.reference_accuracy is not None:
            cards.append((_percent(found.reference_accuracy), "accuracy of the source"))
        if found.agreement[at] is not None or not found.outputs:
            cards.append((_percent(found.agreement[at]), f"agreement at T = {report.last}"))
        cards.append((_figures(found.error[at]), "relative output error"))
    if not isinstance(report.energy, Missing):
        cards += _energy_cards(report)
    if report.certificates:
        good = sum(c.ok for c in report.certificates)
        cards.append((f"{good} of {len(report.certificates)}", "exported files verified"))
    return tag(
        "div", join(tag("div", tag("b", a), tag("span", kept(b)), class_="card") for a, b in cards),
        class_="cards",
    )  # fmt: skip


def _accuracy(report: _Report) -> Html:
    found = report.evaluation
    if isinstance(found, Missing):
        return _missing("Accuracy and agreement", found)
    source = "the source network as the description holds it, since no reference was given"
    notes = [
        f"On {_count(found.samples)}, static inputs. All T are read out of one run of a network "
        f"planned for T = {report.network.time_steps}; one planned for a smaller T is another "
        "network.",
        "Agreement is the share of equal predictions, output error the norm of the difference of "
        "the outputs over the norm of the reference's; the reference is "
        + (source if report.described else "the source network")
        + ".",
    ]
    if not report.labelled:
        notes.insert(0, "No labels were given: accuracy was not measured.")
    if found.outputs:
        return _outputs(found, notes)
    rows = [
        [t, _percent(a), _percent(g), _figures(e)]
        for t, a, g, e in zip(
            found.time_steps, found.accuracy, found.agreement, found.error, strict=True
        )
    ]
    if found.reference_accuracy is not None:
        rows.append(["source", _percent(found.reference_accuracy), "", ""])
    return join(
        [
            paragraphs(*notes),
            table(["T", "accuracy", "agreement", "output error"], rows),
            _draw(lambda: plots.plot_accuracy(found), "accuracy", "Accuracy and agreement with "
                  "the source network after T steps."),
        ]
    )  # fmt: skip


def _outputs(found: Evaluation, notes: Sequence[str]) -> Html:
    """Of a network that is no classifier: each output by the metrics of its shape."""
    names = list(dict.fromkeys(name for own in found.outputs.values() for name in own))
    rows = [
        [row["T"], row["output"], *(_figures(row.get(name)) for name in names)]
        for row in found.to_dict()["outputs"]
    ]
    return join([paragraphs(*notes), table(["T", "output", *names], rows, text=(1,))])


def _coverage(report: _Report) -> Html:
    if report.check is None:
        return _note(
            "The coverage of the source network was not given: pass check=check(model, x)."
        )
    shown = [row for row in report.check.rows if row.becomes != "constant"]
    counts = {kind: sum(row.becomes == kind for row in shown) for kind in ("linear", "neuron")}
    blockers = report.check.blockers
    verdict = tag(
        "p",
        tag(
            "span",
            f"{report.check.model} "
            + ("can be converted." if report.check.ok else "cannot be converted."),
            class_="good" if report.check.ok else "bad",
        ),
        f" {len(shown)} operations: {counts['linear']} linear, {counts['neuron']} with neurons, "
        f"{len(blockers)} unsupported.",
    )
    rows = [
        [
            row.path or "(model)",
            row.operation,
            row.becomes,
            row.detail + (f"; {row.fix}" if row.fix else ""),
        ]
        for row in shown
    ]
    unsupported = [i for i, row in enumerate(shown) if row.becomes == "unsupported"]
    heads = ["module", "operation", "becomes", "as"]
    whole = table(heads, rows, text=range(4), marked=unsupported)
    return join([verdict, whole if len(rows) <= 60 else _folded(f"All {len(rows)} rows", whole)])


def _network(report: _Report) -> Html:
    network = report.network
    rows = []
    for node in network.neurons:
        members = getattr(node, "members", None)
        kind, count = KINDS.get(node.kind, node.kind), f"{values_of(node.shape):,}"
        m = "" if members is None else members
        rows.append([node.name, kind, node.function.name, count, m])
    meant = dict.fromkeys(MEMBERS[n.kind] for n in network.neurons if n.kind in MEMBERS)
    said = f"; m is the number of {', or '.join(meant)}" if meant else ""
    heads = ["layer", "neuron", "function", "neurons", "m"]
    parts = [table(heads, rows, text=(0, 1, 2), caption=f"Neurons for one input{said}.")]
    kept = network.kept()
    if kept:
        names = ", ".join(f"{name} ({count:,})" for name, count in kept.items())
        parts.append(_note(f"Not spiking, computed as they are at every step: {names}."))
    return join(parts)


def _doctor(report: _Report) -> Html:
    found = report.diagnosis
    if isinstance(found, Missing):
        return _missing("The error layer by layer", found)
    t = max(found.time_steps)
    parts = [
        paragraphs(
            f"Measured on {_count(report.few)}. Isolated: the neurons fed what the source network "
            "feeds them. Cumulative: fed by the spiking network. Read-out: what this layer alone "
            "does to the output. All relative to the norm of the source's values."
        ),
        tag("h3", f"Findings at T = {t}"),
        _findings(found),
        tag("h3", f"Layers at T = {t}"),
    ]
    header = ["layer", "neurons", "isolated", "cumulative", "read-out", "cosine", "bias",
              "saturated", "dead"]  # fmt: skip
    blamed = {finding.layer for finding in found.findings}
    rows = [
        [
            layer.name,
            f"{layer.neurons:,}",
            *(_figures(getattr(layer, what).get(t)) for what in ("isolated", "cumulative")),
            _figures(layer.readout.get(t)),
            _fixed(layer.cosine.get(t)),
            _figures(layer.bias.get(t), signed=True),
            _percent(layer.saturated.get(t)),
            _percent(layer.dead.get(t)),
        ]
        for layer in found.layers
    ]
    marked = [i for i, layer in enumerate(found.layers) if layer.name in blamed]
    parts.append(table(header, rows, caption="Marked: the layers that a finding names."
                       if marked else None, marked=marked))  # fmt: skip
    pictures = [
        _draw(partial(plots.plot_errors, found, which), f"errors-{which}", caption)
        for which, caption in (
            ("cumulative", "Error of each layer in the spiking network, by T."),
            ("isolated", "Error of each layer fed by the source network, by T: what its own "
             "neurons lack."),
        )
    ]  # fmt: skip
    parts.append(_pair(pictures))
    return join(parts)


def _findings(found: Diagnosis) -> Html:
    notes = join(_note(f"Note: {note}") for note in found.notes)
    if not found.findings:
        return join([paragraphs("Nothing to fix was found."), notes])
    items = [
        tag("li", tag("b", f"{finding.layer}: ") if finding.layer not in finding.text else None,
            finding.text, tag("span", f" (blame {finding.blame:.0%})", class_="lead"))
        for finding in found.findings
    ]  # fmt: skip
    if any(finding.applicable for finding in found.findings):
        error, agreement = found.fixed
        same = "" if agreement is None else f", agreement {_percent(agreement)}"
        after = (
            f"Fixed, at T = {found.network.time_steps}: output error {_figures(error)}{same} on "
            "the same samples. Diagnosis.apply() gives that network."
        )
    else:
        after = "None of these is fixed by Diagnosis.apply()."
    lead = "Blame is the share of the squared output error that goes with the fix."
    return join([paragraphs(lead), tag("ol", join(items), class_="findings"), paragraphs(after),
                 notes])  # fmt: skip


def _energy_cards(report: _Report) -> list[tuple[str, str]]:
    found = report.energy
    assert not isinstance(found, Missing)
    table = next(iter(found.tables))
    return [
        (
            f"{found.ratio(table, report.last):.3g} ×",
            f"the source's energy (estimate, {table})",
        )
    ]


def _energy(report: _Report) -> Html:
    from .cost import DENSE, additions_line

    found = report.energy
    if isinstance(found, Missing):
        return _missing("What the network costs", found)
    t = max(found.time_steps)
    last = found.operations[t]
    steps = [f"T = {t}" for t in found.time_steps]
    said = [f"{found.sentence(t, name)}." for name in found.tables]
    honest = [
        f"At T = {t}, {additions_line(last)}.",
        "Estimates, by published energies of single operations, of one inference; nothing was "
        "measured on hardware. Compare within one table, never across.",
        f"Not priced: {last.evaluations:,.0f} evaluations of neuron functions (source: "
        f"{last.source_values:,.0f}), addresses of events, control, leakage.",
    ]
    if last.dense:
        honest.insert(1, DENSE[0].upper() + DENSE[1:])
    rows = [
        [name, each.covers, _picojoules(found.source[name])]
        + [_picojoules(found.total[name][t]) for t in found.time_steps]
        for name, each in found.tables.items()
    ]
    parts = [
        paragraphs(*honest),
        tag("ul", join(tag("li", each[0].upper() + each[1:]) for each in said)),
        table(["table", "covers", "source", *steps], rows, text=(0, 1),
              caption="Energy of one inference."),
        _break_even(found, t),
        _by_step(
            "The source network with activations quantised to so many bits, as many levels as "
            "the spikes of T steps distinguish.", found, found.quantised,
                 [f"T = {t}: {found.bits[t]:.3g} bit" for t in found.time_steps]),
    ]  # fmt: skip
    if last.members > 1:
        parts.append(
            _by_step(
                "The spiking network where all spikes of a step are sent as one integer, which "
                "multiplies the weight.", found, found.whole, steps)
        )  # fmt: skip
    first = next(iter(found.tables))
    parts += [
        _pair([
            _draw(lambda: plots.plot_energy(found), "energy",
                  f"Energy by layer at T = {t} by the table {first}, and its share in all."),
            _draw(lambda: plots.plot_frontier(_evaluated(report), found), "frontier",
                  f"{'Accuracy' if report.labelled else 'Agreement'} against energy by the table "
                  f"{first}; left of the dashed line spiking costs less. Dotted: the source in "
                  "fewer bits, of which only the energy is known."),
        ]),
        tag("h3", f"Operations at T = {t}"),
        _operations(last),
        tag("h3", "Tables"),
        facts((name, each.source) for name, each in found.tables.items()),
    ]  # fmt: skip
    return join(parts)


def _break_even(found: EnergyEstimate, t: int) -> Html:
    from .energy import shown

    rows = [
        [name, each.covers, f"{found.operations[t].additions_per_mac:.2f}"]
        + [shown(by[name][t]) for by in (found.break_even, found.break_even_int8)]
        for name, each in found.tables.items()
    ]
    heads = ["table", "covers", "additions per MAC", "source in float", "source in int8"]
    return table(
        heads, rows, text=(0, 1),
        caption=f"Break-even, at T = {t}: the network makes so many additions for each "
        "multiply-accumulate of its source, and would cost as much as its source at so many (all "
        "else as counted), by whether the source computes as the table says or in 8 bits.",
    )  # fmt: skip


def _evaluated(report: _Report) -> Evaluation:
    if isinstance(report.evaluation, Missing):
        raise InputError(report.evaluation.why)
    return report.evaluation


def _by_step(
    caption: str,
    found: EnergyEstimate,
    values: Mapping[str, Mapping[int, float]],
    heads: Sequence[str],
) -> Html:
    rows = [
        [name, *(_picojoules(values[name][t]) for t in found.time_steps)] for name in found.tables
    ]
    return table(["table", *heads], rows, caption=caption)


def _operations(found: Operations) -> Html:
    heads = ["layer", "kind", "source MACs", "neurons", "events", "rate", "synaptic",
             "MACs left", "updates", "state (B)"]  # fmt: skip

    def row(name: str, kind: str, each: Operations | LayerOperations, sends: bool) -> list[str]:
        counts = (each.source_macs + each.source_multiplies, each.neurons, each.events)
        more = (each.synaptic, each.macs, each.updates, each.state_bytes)
        kind = KINDS.get(kind, kind)
        return [name, kind, *map(_amount, counts), f"{each.rate:.3f}" if sends else "",
                *map(_amount, more)]  # fmt: skip

    rows = [row(each.name, each.kind, each, bool(each.coding)) for each in found.each]
    rows.append(row("in all", "", found, True))
    kinds = ", ".join(f"{n:,.0f} {kind}" for kind, n in found.kinds.items() if n) or "none"
    return join(
        [
            table(heads, rows, text=(0, 1), marked=[len(rows) - 1],
                  caption="Of one inference, "
                  + ("the same for every input" if found.dense and found.samples == 1 else
                     f"means of {_count(found.samples)}")
                  + ". Rate is events for each neuron and step, synaptic the spikes at each "
                  "connection that they meet."),
            paragraphs(
                f"Events: {kinds}. MACs left: {found.input_macs:,.0f} of the input, once; in all "
                f"steps together {found.sum_macs:,.0f} of sums, {found.multiplies:,.0f} of "
                f"products of two signals, {found.scalings:,.0f} of step sizes. Bits moved: "
                f"{found.event_bits:,.0f} of events, {found.state_bits:,.0f} of state, "
                f"{found.weight_bits:,.0f} of weights."
            ),
        ]
    )  # fmt: skip


def _stream(report: _Report) -> Html:
    found = report.stream
    if not isinstance(found, Stream):
        return _missing("The clip", found or Missing("no clip was given"))
    costs, length = found.costs, len(found.costs)
    later = f"; {costs.mean(1):.3f} after the first" if length > 1 else ""
    return join(
        [
            paragraphs(
                f"{_number(length, 'frame')}, {_number(report.network.time_steps, 'step')} a "
                "frame, the state kept. "
                f"Additions for each multiply-accumulate of the source, which computes every frame "
                f"in full: {costs.mean():.3f} in the mean of all frames{later}; the most in frame "
                f"{costs.peak}, {costs.additions_per_mac[costs.peak]:.3f}. What is still "
                "multiplied counts where an operand changed."
            ),
            _draw(partial(plots.plot_over_time, costs, found.clip, sound=found.sound), "over-time",
                  "Additions of each frame under the clip; dashed is the source network."),
            _animation(report.snn, found),
            _folded("Every frame", _frames(found)),
        ]
    )  # fmt: skip


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _animation(snn: NetworkModule, found: Stream) -> Html:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spikes.gif"
            drawn = plots.animate_spikes(snn, steps_of(found.clip, 0, ANIMATED), path)
            data = base64.b64encode(path.read_bytes()).decode()
    except (BackendUnavailable, InputError) as error:
        return _note(f"No animation: {error}")
    layers = _number(len(drawn["layers"]), "layer")
    caption = f"Spikes of each frame in {layers}, all channels of a place together."
    image = tag("img", src=f"data:image/gif;base64,{data}", alt=caption)
    return tag("figure", tag("div", image, class_="drawn"), tag("figcaption", caption))


def _frames(found: Stream) -> Html:
    costs = found.costs
    name = next(iter(costs.energy))
    rows = [
        [k, _amount(a), f"{m:.3f}", f"{f.spikes / max(f.neurons, 1):.3f}", _figures(e),
         _picojoules(costs.energy[name][k])]
        for k, (f, a, m, e) in enumerate(
            zip(costs.frames, costs.additions, costs.additions_per_mac, found.errors, strict=True)
        )
    ]  # fmt: skip
    source = [_amount(costs.source_macs), "1", "", "", _picojoules(costs.source_energy[name])]
    heads = ["frame", "additions", "per MAC", "spikes a neuron", "output error", name]
    return table(heads, [*rows, ["source", *source]], marked=[len(rows)])


def _neurons(report: _Report) -> Html:
    found = report.recording
    if isinstance(found, Missing):
        return _missing("What the neurons send", found)
    if not found.spikes:
        return _note("The network has no neurons.")
    chosen = _interesting(list(found.spikes), report.diagnosis)
    worst = chosen[0]
    first = next(iter(found.source.values()))
    decoded = [
        _draw(partial(plots.plot_decoded, found, name), f"decoded-{i}",
              f"What receivers decoded of layer “{name}”, against the source network's activation.")
        for i, name in enumerate(chosen)
    ]  # fmt: skip
    drawn = (
        "last layers"
        if isinstance(report.diagnosis, Missing)
        else "layers with the largest cumulative error"
    )
    return join(
        [
            paragraphs(f"{_count(len(first))}, T = {found.time_steps}. Drawn are the {drawn}."),
            _pair(decoded),
            _pair([
                _draw(lambda: plots.plot_trace(found, worst), "trace",
                      f"One neuron of layer “{worst}” on its way to the value of the source "
                      "network; chosen by the size of its activation, not by its error."),
                _draw(lambda: plots.plot_raster(found, worst), "raster",
                      f"Spikes of layer “{worst}” for one sample. {_meaning(report, worst)}"),
                _draw(lambda: plots.plot_spikes(found, worst), "spikes",
                      f"Neurons of layer “{worst}” by the spikes that they send for one sample."),
                _draw(lambda: plots.plot_rates(found), "rates",
                      "Neurons of each layer by the mean of their spikes, and the share of steps "
                      "in which they send a spike."),
            ]),
        ]
    )  # fmt: skip


def _meaning(report: _Report, name: str) -> str:
    """What a spike of this layer's neurons does."""
    assert not isinstance(report.recording, Missing)
    kind = {node.name: node.kind for node in report.network.neurons}[name]
    negative = bool((report.recording.spikes[name] < 0).any())
    return SPIKES.get(kind, "") + (TAKEN_BACK.get(kind, "") if negative else "")


def _interesting(names: list[str], diagnosis: Diagnosis | Missing) -> list[str]:
    """The layers to draw: those with the largest error, else the last."""
    if isinstance(diagnosis, Missing):
        return names[::-1][:DRAWN]
    t = max(diagnosis.time_steps)
    error = {layer.name: layer.cumulative.get(t) or 0.0 for layer in diagnosis.layers}
    return sorted(names, key=lambda name: -error.get(name, 0.0))[:DRAWN]


def _exports(report: _Report) -> Html:
    if not report.certificates:
        return _note("No certificate was given: that an exported file computes the same was not "
                     "verified. Pass certificates=[verify(path, network=network)].")  # fmt: skip
    whose = "Shown as passed to the report, which does not check that they belong to this network."
    return join([_note(whose), *(_certificate(found) for found in report.certificates)])


def _certificate(found: Certificate) -> Html:
    rows = [
        [
            check.what,
            "equal" if check.equal else "NOT EQUAL" if check.required else "differs",
            "yes" if check.required else "no",
            f"{check.cells:,}",
            f"{check.mismatches:,}",
            f"{check.spikes:,}" if check.spikes else "",
            "" if check.readout_error is None else f"{check.readout_error:.2g}",
        ]
        for check in found.checks
    ]
    notes = [tag("p", f"Note: {note}.", class_="note") for note in found.notes]
    return join(
        [
            tag("h3", found.path, " ", tag("span", shown_state(found.state),
                                           class_=_STATES[found.state])),
            table(["compared", "verdict", "required", "cells", "differ", "spikes",
                   "largest read-out error"], rows, text=(0, 1, 2)),
            *notes,
            facts([
                ("format", found.format),
                ("replayed", f"{_count(found.samples)} ({found.inputs}), T = {found.time_steps}"),
                ("content", tag("code", found.content)),
                ("versions", ", ".join(f"{k} {v}" for k, v in found.versions.items())),
            ]),
        ]
    )  # fmt: skip


def _provenance(report: _Report) -> Html:
    known = dict(report.facts)
    command, versions = known.pop("command"), known.pop("versions")
    shown = tag("pre", command) if command else _note("The command was not given.")
    conversion = [(key, _in_words(value)) for key, value in report.network.provenance.items()]
    return join(
        [
            shown,
            facts(known.items()),
            tag("h3", "Versions"),
            facts(versions.items()),
            tag("h3", "Conversion"),
            facts(conversion) if conversion else _note("The description does not say."),
        ]
    )


# -- pieces --------------------------------------------------------------------------------------


def _draw(of: Callable[[], Plot], name: str, caption: str) -> Html:
    """The picture, or why there is none."""
    try:
        plots.need_matplotlib()
        import matplotlib

        with matplotlib.rc_context(INKED):
            return picture(of().figure, name, caption)
    except (BackendUnavailable, InputError) as error:
        return _note(f"No picture ({caption.rstrip('.')}): {error}")


def _pair(pictures: Iterable[Html]) -> Html:
    """Two beside each other where there is room."""
    return tag("div", *pictures, class_="pair")


def _missing(what: str, found: Missing) -> Html:
    return _note(f"{what}: not measured. {found.why[:1].upper()}{found.why[1:]}")


def _note(text: str) -> Html:
    return tag("p", text, class_="note")


def _folded(title: str, inner: Html) -> Html:
    return tag("details", tag("summary", title), inner)


def _count(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples:,} samples"


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.2f} %"


def _fixed(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"


def _figures(value: float | None, signed: bool = False) -> str:
    if value is None or value != value:
        return "–"
    if value and abs(value) < 1e-4:
        return f"{value:+.1e}" if signed else f"{value:.1e}"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def _amount(value: float) -> str:
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"


def _picojoules(value: float) -> str:
    unit, scale = plots.unit_of(value)
    return f"{value / scale:.3g} {unit}"


def _in_words(value: Any) -> Any:
    """As words, fractions to four digits; what is long is folded."""
    words = _spoken(value)
    if len(words) <= LONG:
        return words
    return _folded("shown on request", tag("pre", json.dumps(value, indent=1, default=str)))


def _spoken(value: Any, inner: bool = False) -> str:
    if isinstance(value, Mapping):
        between = "; " if any(isinstance(item, Mapping) for item in value.values()) else ", "
        said = between.join(f"{key}: {_spoken(item, True)}" for key, item in value.items())
        return f"({said})" if inner else said or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_spoken(item, True) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
