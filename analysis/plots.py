"""Plots. Each returns a ``Plot``: the matplotlib axes it drew on, and the numbers drawn.

Without ``axes`` a figure of its own is made that pyplot does not know, for any backend:
``plot_accuracy(result).save("accuracy.svg")`` (or .png, .pdf), and a notebook shows it by itself.
With ``axes``, those of the caller are drawn on, and the names of the lines are in a legend instead
of beside them. Without matplotlib they raise BackendUnavailable.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core.evaluating import Evaluation
from ..core.inputs import Batch, Inputs, batch_of
from ..core.running import length_of
from ..core.spikes import codes
from ..errors import BackendUnavailable, InputError
from ..exporters.files import write_whole
from .drawing import (
    COLORS,
    DOWN,
    GREY,
    MARKERS,
    SILENT,
    UP,
    Name,
    name_lines,
    percent_limits,
    plain_ticks,
    shades,
    short_number,
)
from .over_time import PARTS

if TYPE_CHECKING:
    from ..core.module import NetworkModule
    from .doctor import Diagnosis
    from .energy import EnergyEstimate
    from .over_time import CostsOverTime
    from .recording import Recording

WIDTH = 6.4  # inches
ROWS = 40  # of layers in one picture; the least interesting are left out and counted
BARS = 20  # layers of an energy plot; the others are added up in one bar
COMPONENTS = {  # each lighter than the one before
    "accumulates": "#00507F",
    "multiply-accumulates": "#D55E00",
    "neuron updates": "#5DA9D6",
    "memory": "#C4C4C4",
}
PART_COLORS = dict(zip(PARTS, ("#00507F", "#D55E00", "#5DA9D6", "#C4C4C4"), strict=True))
THUMBNAILS = 10
ANIMATED = 4  # layers of an animation at most
FEW_CELLS = 80
LEVELS_SHOWN, BINS = 9, 48
RASTER, DENSE_RASTER = 100, 12  # neurons of a raster; of one whose neurons send in most steps
DENSE_STEPS = 48  # steps of the latter
LEVELS = {  # of plot_errors: what is drawn, and on which scale
    "isolated": ("Relative error, isolated", "log"),
    "cumulative": ("Relative error, cumulative", "log"),
    "readout": ("Relative error of the output, this layer alone", "log"),
    "cosine": ("Cosine of decoded and source values", "cosine"),
    "bias": ("Bias, relative to the mean size of a value", "signed"),
    "saturated": ("Share of saturated values", "linear"),
}


class Plot(NamedTuple):
    """``axes`` of matplotlib, and ``numbers``: what was drawn, JSON-able."""

    axes: Any
    numbers: dict[str, Any]

    @property
    def figure(self) -> Any:
        return self.axes.figure

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """To a file in the format of its suffix; ``options`` are those of ``savefig``."""
        format = options.pop("format", os.path.splitext(path)[1][1:] or "png")
        image = io.BytesIO()
        self.figure.savefig(image, format=format, **({"dpi": 150} | options))
        write_whole(path, image.getvalue())

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.figure.savefig(image, format="png", dpi=110)
        return image.getvalue()


def need_matplotlib() -> None:
    """Raises BackendUnavailable without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "plots need the package 'matplotlib': pip install 'spikingjelly-signgd[plot]'"
        ) from error


def plot_accuracy(
    results: Evaluation | Mapping[str, Evaluation],
    axes: Any = None,
    *,
    agreement: bool | None = None,
) -> Plot:
    """Accuracy, and agreement with the source, against T; the source's accuracy is dashed.

    ``results`` is what ``evaluate`` returned, or several such by their labels; evaluations of one
    network at different T are added up first. ``agreement`` draws the agreement, dotted; by default
    where there is one result, or no accuracy. Raises InputError where nothing was measured.
    """
    named = {"": results} if isinstance(results, Evaluation) else dict(results)
    measured = any(a is not None for r in named.values() for a in r.accuracy)
    if agreement is None:
        agreement = len(named) == 1 or not measured
    if not measured and not any(g is not None for r in named.values() for g in r.agreement):
        raise InputError(
            "plot_accuracy: neither accuracy nor agreement was measured; evaluate on (x, y) or "
            "with reference=model."
        )
    own, axes = axes is None, _axes(axes, (WIDTH, 3.8))
    names: list[Name] = []
    for i, (label, result) in enumerate(named.items()):
        names += _lines(axes, i, label, result, agreement)
    names += _sources(axes, named)
    _time_axis(axes, sorted({t for result in named.values() for t in result.time_steps}))
    axes.set_ylabel(_accuracy_label(measured, agreement) + " (%)")
    axes.grid(alpha=0.25)
    percent_limits(axes, [float(v) for line in axes.get_lines() for v in line.get_ydata()])
    if own:
        name_lines(axes, names)
    else:
        axes.legend(fontsize="small")
    return Plot(axes, {name: result.to_dict() for name, result in named.items()})


def _lines(axes: Any, i: int, label: str, result: Evaluation, agreement: bool) -> list[Name]:
    """Draws one result; returns the names of its lines."""
    color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
    names = []
    if any(a is not None for a in result.accuracy):
        steps, values = _ordered(result.time_steps, result.accuracy)
        axes.plot(steps, values, color=color, marker=marker, markersize=5,
                  label=label or "accuracy")  # fmt: skip
        names.append(Name(steps[-1], values[-1], _short(label) or "accuracy", color))
    if agreement and any(g is not None for g in result.agreement):
        steps, values = _ordered(result.time_steps, result.agreement)
        color = color if label else COLORS[1]
        said = f"{label}: agreement with the source" if label else "agreement with the source"
        axes.plot(steps, values, color=color, marker=marker, markersize=5, linestyle=":",
                  markerfacecolor="none", label=said)  # fmt: skip
        shown = f"{_short(label)}: agreement" if label else "agreement with\nthe source"
        names.append(Name(steps[-1], values[-1], shown, color))
    return names


def _sources(axes: Any, named: Mapping[str, Evaluation]) -> list[Name]:
    """A dashed line for the accuracy of each source network, one for those that are equal."""
    found: dict[float, list[str]] = {}
    for label, result in named.items():
        if result.reference_accuracy is not None:
            found.setdefault(100 * result.reference_accuracy, []).append(label)
    names = []
    for source, labels in found.items():
        of = f" of {_short(labels[0])}" if len(found) > 1 else ""
        axes.axhline(source, color=GREY, linestyle="--", linewidth=1,
                     label=f"source network{of}, {source:.2f} %")  # fmt: skip
        names.append(Name(None, source, f"source{of or ' network'},\n{source:.2f} %", GREY))
    return names


def _accuracy_label(measured: bool, agreement: bool) -> str:
    return (
        "accuracy, agreement" if measured and agreement else "accuracy" if measured else "agreement"
    )


def plot_errors(diagnosis: Diagnosis, which: str = "cumulative", axes: Any = None) -> Plot:
    """Heat map of an error, layer by layer, at each T of ``diagnose``.

    ``which`` is one of "isolated", "cumulative", "readout", "cosine", "bias" and "saturated".
    Raises InputError for another, and where there are no neurons.
    """
    if which not in LEVELS:
        raise InputError(f"which is one of {', '.join(LEVELS)}, not {which!r}.")
    if not diagnosis.layers:
        raise InputError("plot_errors: the network has no neurons whose error could be drawn.")
    layers, steps = diagnosis.layers, tuple(diagnosis.time_steps)
    found = [[_number(getattr(layer, which).get(t)) for t in steps] for layer in layers]
    shown = _most(range(len(layers)), lambda i: -_largest(found[i]))
    rows = [found[i] for i in shown]
    axes = _axes(axes, (WIDTH, max(2.6, 1.2 + 0.29 * len(shown))))
    label, scale = LEVELS[which]
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", **_colors(rows, scale))
    axes.set_xticks(range(len(steps)), [str(t) for t in steps])
    axes.set_yticks(range(len(shown)), [_short(layers[i].name) for i in shown], fontsize="small")
    axes.set_xlabel("time steps T")
    axes.set_ylabel("layer")
    if len(steps) <= 10:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                color = _readable(image.cmap(image.norm(value))) if math.isfinite(value) else None
                axes.text(x, y, short_number(value, scale != "signed"), color=color,
                          ha="center", va="center", fontsize="small")  # fmt: skip
    else:
        axes.figure.colorbar(image, ax=axes, aspect=_slender(len(shown)))
    left_out = len(layers) - len(shown)
    axes.set_title(f"{label}{f' ({left_out} layers with less left out)' if left_out else ''}",
                   fontsize="medium", loc="left")  # fmt: skip
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return Plot(
        axes,
        {
            "which": which,
            "time_steps": list(steps),
            "layers": [layer.name for layer in layers],
            "values": [[v if math.isfinite(v) else None for v in row] for row in found],
        },
    )


def plot_decoded(recording: Recording, name: str, axes: Any = None) -> Plot:
    """What receivers decoded after the last step against the source's activation, value by value.

    On the diagonal they are equal. A flat end is saturation: values that the steps do not reach.
    Up to 2,000 values are drawn one by one, more as a histogram in two dimensions.
    Raises InputError for a layer that is not there or holds no finite value.
    """
    decoded = _layer(recording, recording.decoded, name)[-1].double().flatten().cpu()
    source = recording.source[name].double().flatten().cpu()
    finite = decoded.isfinite() & source.isfinite()
    if not bool(finite.any()):
        raise InputError(f"plot_decoded: '{name}' holds no finite value.")
    x, y = source[finite], decoded[finite]
    axes = _axes(axes, (4.8, 4.2))
    low = min(float(x.min()), float(y.min()))
    high = max(float(x.max()), float(y.max()))
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    if len(x) <= 2000:
        axes.scatter(x.tolist(), y.tolist(), s=9, color=COLORS[0], alpha=0.6, linewidths=0)
    else:
        _count_bar(axes, _histogram(axes, x, y, low, high))
    axes.plot([low, high], [low, high], color=COLORS[1], linewidth=1, linestyle="--")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    norm = float(x.norm())
    error = float((y - x).norm()) / norm if norm else None
    axes.set_xlabel("activation of the source network")
    axes.set_ylabel(f"decoded after {recording.time_steps} steps")
    off = "" if error is None else f"\nrelative error {error:.3g}; dashed: equal"
    axes.set_title(f"layer {_short(name, 40)}{off}", fontsize="medium")
    axes.grid(alpha=0.2)
    return Plot(
        axes,
        {
            "layer": name,
            "time_steps": recording.time_steps,
            "values": len(x),
            "relative_error": error,
            "source_range": [float(x.min()), float(x.max())],
            "decoded_range": [float(y.min()), float(y.max())],
            "not_finite": int((~finite).sum()),
        },
    )


def plot_trace(
    recording: Recording, name: str, index: Sequence[int] | None = None, axes: Any = None
) -> Plot:
    """How one neuron comes to the value of the source network, step by step.

    ``index`` is (sample, *position in the layer); unless given, of the first sample the neuron
    whose activation is larger than nine tenths of the layer's, whatever its error.
    """
    decoded = _layer(recording, recording.decoded, name)
    source = recording.source[name]
    place = _typical(source) if index is None else _checked(index, source, name)
    at: tuple[Any, ...] = (Ellipsis, *place)
    trace = decoded[at].double().tolist()
    spikes = recording.spikes[name][at].double().tolist()
    goal = float(source[place])
    own, axes = axes is None, _axes(axes, (WIDTH, 3.2))
    steps = list(range(1, len(trace) + 1))
    axes.axhline(goal, color=COLORS[1], linestyle="--", linewidth=1.2, label="source network")
    axes.plot(steps, trace, color=COLORS[0], linewidth=1.2, drawstyle="steps-mid")
    axes.plot(steps, trace, color=COLORS[0], linestyle="none", marker="o", markersize=3.5,
              label="decoded")  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_xlabel("time step t")
    axes.set_ylabel("decoded value")
    axes.set_title(f"layer {_short(name, 40)}, neuron ({', '.join(map(str, place[1:]))}), "
                   f"sample {place[0]}", fontsize="medium")  # fmt: skip
    axes.set_xlim(0.5, len(trace) + 0.5)
    _whole_steps(axes)
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    if own:
        wanted = Name(None, goal, f"source network,\n{goal:.4g}", COLORS[1])
        reached = Name(steps[-1], trace[-1], f"decoded,\n{trace[-1]:.4g}", COLORS[0])
        name_lines(axes, [wanted, reached])
    else:
        axes.legend(fontsize="small")
    return Plot(
        axes,
        {
            "layer": name,
            "index": list(place),
            "source": goal,
            "decoded": trace,
            "spikes": spikes,
        },
    )


def plot_raster(
    recording: Recording, name: str, axes: Any = None, *, neurons: int | None = None
) -> Plot:
    """The spikes of one layer for the first sample: time across, some neurons of it downwards.

    They are evenly spaced among the layer's. Where they are silent in most steps, up to 100
    ``neurons`` are drawn, a mark for each spike. Where they send in most steps, which as marks
    would be a carpet, 12 ``neurons`` and the first 48 steps are drawn, as bars: up for spikes above
    0, down for those below, as high as their sum in the step. Of signGD neurons +1 lowers the
    decoded value and -1 raises it; of group neurons it is the number of members that fire, negative
    where it has fired too often.
    """
    spikes = _layer(recording, recording.spikes, name)[:, 0].flatten(1)  # [T, N]
    if neurons is not None and neurons < 1:
        raise InputError(f"neurons is at least 1, not {neurons}.")
    active = float((spikes != 0).double().mean())
    dense = active > 0.5
    total = spikes.shape[1]
    count = min(neurons or (DENSE_RASTER if dense else RASTER), total)
    chosen = torch.linspace(0, total - 1, count).round().long()
    shown = spikes[:, chosen].T.double().cpu()  # [N, T]
    if dense:
        shown = shown[:, :DENSE_STEPS]
    said = f"layer {_short(name, 40)}, sample 0"
    if dense:
        axes = _axes(axes, (WIDTH, 1.3 + 0.24 * count))
        said += _waves(axes, shown, chosen.tolist())
    else:
        axes = _axes(axes, (WIDTH, min(4.4, 1.4 + 0.06 * count)))
        said += _marks(axes, shown, chosen.tolist())
    axes.set_title(said, fontsize="medium")
    cut = "" if shown.shape[1] == len(spikes) else f", the first {shown.shape[1]} of {len(spikes)}"
    axes.set_xlabel(f"time step t{cut}")
    axes.set_ylabel("neuron" + ("" if count == total else f", {count} of {total}"))
    _whole_steps(axes)
    return Plot(
        axes,
        {
            "layer": name,
            "neurons": chosen.tolist(),
            "of": total,
            "spikes": shown.tolist(),
            "active": active,
        },
    )


def _marks(axes: Any, shown: Tensor, chosen: Sequence[int]) -> str:
    """A mark for each spike, in a colour for each number of them; returns what they mean."""
    from matplotlib.ticker import MaxNLocator

    half = max(chosen[-1] / (2 * (len(chosen) - 1)), 0.5) if len(chosen) > 1 else 0.5
    levels = sorted({float(v) for v in shown.unique().tolist() if v}) or [1.0]
    axes.axhspan(-half, chosen[-1] + half, color=SILENT, linewidth=0, zorder=-1)
    image = axes.imshow(
        shown.masked_fill(shown == 0, math.nan).numpy(),
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, shown.shape[1] + 0.5, chosen[-1] + half, -half),
        **_spike_colors(levels),
    )
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(levels) == 1:  # one colour, which needs no key
        return f", a mark for {levels[0]:+g}".replace("-", "−")
    bar = axes.figure.colorbar(image, ax=axes, label="spikes in the step", fraction=0.05)
    if len(levels) <= LEVELS_SHOWN:
        bar.set_ticks(levels, labels=[f"{v:+g}".replace("-", "−") for v in levels])
        bar.ax.tick_params(length=0)
    return ", grey where silent"


def _waves(axes: Any, shown: Tensor, chosen: Sequence[int]) -> str:
    """Each neuron as a row of bars, up and down; returns what they mean."""
    bound = float(shown.abs().max())
    edges = [t + 0.5 for t in range(shown.shape[1] + 1)]
    for row, values in enumerate(shown / (2.2 * bound)):
        for color, part in ((DOWN, values.clamp(min=0)), (UP, values.clamp(max=0))):
            axes.stairs((row - part).tolist(), edges, baseline=row, fill=True, color=color,
                        linewidth=0)  # fmt: skip
        axes.axhline(row, color=GREY, linewidth=0.6)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks(range(len(shown)), list(map(str, chosen)), fontsize="small")
    axes.tick_params(axis="y", length=0)
    to = "" if bool((shown.abs() == bound).all()) else " to"
    return f", up{to} +{bound:g}, down{to} −{bound:g}"


def plot_spikes(recording: Recording, name: str, axes: Any = None) -> Plot:
    """How many spikes the neurons of one layer send in all steps: the histogram, all samples.

    Of m signs those that are not silent, of group neurons the members that fire or are taken back.
    Raises InputError for a recording of an earlier version, without the number of its spikes.
    """
    sent = _layer(recording, recording.sent, name).long().sum(0).flatten().cpu()
    counts = torch.bincount(sent)
    edges = torch.linspace(0, len(counts), min(len(counts), BINS) + 1).round().long()
    heights = [int(counts[a:b].sum()) for a, b in zip(edges, edges[1:], strict=False)]
    mean, silent = float(sent.double().mean()), float((sent == 0).double().mean())
    axes = _axes(axes, (WIDTH, 3.0))
    width = edges.diff().double()
    colors = [SILENT if int(end) == 1 else COLORS[0] for end in edges[1:]]
    axes.bar((edges[:-1] - 0.5 + width / 2).tolist(), [100 * h / len(sent) for h in heights],
             width=(0.85 * width).tolist(), color=colors, edgecolor="#999999")  # fmt: skip
    plural = "s" * (recording.time_steps > 1)
    axes.set_xlabel(f"spikes of a neuron in {recording.time_steps} step{plural}")
    axes.set_ylabel("neurons (%)")
    axes.set_title(f"layer {_short(name, 30)}: {mean:.2f} spikes per neuron, "
                   f"{100 * silent:.0f} % silent", fontsize="medium")  # fmt: skip
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    _whole_steps(axes)
    numbers = {"layer": name, "time_steps": recording.time_steps, "mean": mean, "silent": silent}
    return Plot(axes, numbers | {"counts": counts.tolist()})


def plot_rates(recording: Recording, name: str | None = None, axes: Any = None) -> Plot:
    """How often neurons send, and to which side: the histogram of their mean spikes a step.

    All samples together. Of one layer ``name`` as bars, of all layers as one strip each, with the
    share of steps in which its neurons send anything at the right. The mean of signGD neurons tells
    the side: -1 raises the decoded value, +1 lowers it. Without a dead zone they send at every
    step.
    """
    names = list(recording.spikes) if name is None else [name]
    if not names:
        raise InputError("plot_rates: no neuron was recorded.")
    rates = {n: _layer(recording, recording.spikes, n).double().mean(0).flatten() for n in names}
    active = {n: float((recording.spikes[n] != 0).double().mean()) for n in names}
    low, high, bins = _bins(torch.cat([r.cpu() for r in rates.values()]))
    from matplotlib.ticker import MaxNLocator

    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    counts = {n: torch.histc(r.cpu(), bins, low, high).tolist() for n, r in rates.items()}
    share = {n: [c / max(sum(row), 1) for c in row] for n, row in counts.items()}
    if name is not None:
        axes = _axes(axes, (WIDTH, 3.0))
        width = (high - low) / bins
        axes.bar([edge + width / 2 for edge in edges[:-1]], [100 * s for s in share[name]],
                 width=0.85 * width, color=COLORS[0])  # fmt: skip
        axes.set_ylabel("neurons (%)")
        axes.set_title(f"layer {_short(name, 30)}: a spike in {100 * active[name]:.1f} % of the "
                       "steps", fontsize="medium")  # fmt: skip
        axes.grid(alpha=0.25, axis="y")
        axes.set_axisbelow(True)
    else:
        shown = names[:ROWS]
        axes = _axes(axes, (WIDTH, max(2.6, 1.4 + 0.27 * len(shown))))
        rows = [[100 * s if s else math.nan for s in share[n]] for n in shown]
        from matplotlib.colors import LogNorm

        image = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap=shades("counts"),
                            norm=LogNorm(vmin=0.1, vmax=100),
                            extent=(low, high, len(shown) - 0.5, -0.5))  # fmt: skip
        bar = axes.figure.colorbar(
            image, ax=axes, label="neurons (%)", pad=0.16, aspect=_slender(len(shown))
        )
        bar.set_ticks([0.1, 1, 10, 100], labels=["0.1", "1", "10", "100"])
        bar.minorticks_off()
        axes.set_yticks(range(len(shown)), [_short(n) for n in shown], fontsize="small")
        axes.set_ylabel("layer")
        for y, n in enumerate(shown):
            axes.annotate(f"{100 * active[n]:.0f} %", (1.01, y), xytext=(3, 0), va="center",
                          xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                          fontsize="small", annotation_clip=False)  # fmt: skip
        axes.set_title("steps with a spike", loc="right", fontsize="small", x=1.2)
        axes.tick_params(axis="y", length=0)
        _left_out(axes, len(names) - len(shown), "later layers")
    signed = any(bool((r < 0).any()) for r in rates.values())
    axes.set_xlabel(f"mean spikes per step of a neuron{', with their signs' if signed else ''}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return Plot(
        axes,
        {
            "time_steps": recording.time_steps,
            "edges": edges,
            "share": share,
            "active": active,
            "mean_size": {n: float(recording.spikes[n].double().abs().mean()) for n in names},
        },
    )


def plot_energy(
    energy: EnergyEstimate,
    time_steps: int | None = None,
    table: str | None = None,
    axes: Any = None,
) -> Plot:
    """Estimated energy by layer and by what it goes to; ``time_steps`` are by default the largest.

    Accumulates are synaptic operations; multiply-accumulates are those that are left; memory is
    what the table prices of it. The parts of all layers add up to the network's estimate.
    Raises InputError for a T or a table that was not estimated.
    """
    t = max(energy.time_steps) if time_steps is None else time_steps
    if t not in energy.operations:
        raise InputError(
            f"T = {t} was not estimated; known: {', '.join(map(str, energy.time_steps))}."
        )
    table = _table(energy, table)
    prices = energy.tables[table]
    layers: dict[str, dict[str, float]] = {}
    for row in energy.operations[t].each:
        parts = {
            "accumulates": prices.accumulate * row.synaptic,
            "multiply-accumulates": prices.mac * row.macs,
            "neuron updates": prices.accumulate * row.update_additions
            + prices.function * row.evaluations,
        }
        rest = energy.layers[t][row.name][table] - sum(parts.values())
        layers[row.name] = parts | {"memory": max(0.0, rest)}
    total = {name: sum(parts.values()) for name, parts in layers.items()}
    if not total:
        raise InputError("plot_energy: nothing in the network costs anything.")
    whole = sum(total.values())
    bars = _bars(layers, total)
    unit, scale = unit_of(max(sum(parts.values()) for parts in bars.values()))
    own, axes = axes is None, _axes(axes, (WIDTH, 1.4 + 0.25 * len(bars)))
    places = range(len(bars))
    left = [0.0] * len(bars)
    drawn = [p for p in COMPONENTS if any(parts[p] for parts in layers.values())]
    for part in drawn:
        width = [parts[part] / scale for parts in bars.values()]
        axes.barh(places, width, 0.75, left=left, label=part, color=COMPONENTS[part])
        left = [a + b for a, b in zip(left, width, strict=True)]
    for y, end in enumerate(left):
        axes.annotate(_share(end * scale, whole), (end, y), xytext=(4, 0), va="center",
                      textcoords="offset points", fontsize="small")  # fmt: skip
    axes.set_yticks(places, [_short(name) for name in bars], fontsize="small")
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"energy ({unit})")
    axes.set_ylabel("layer")
    axes.set_title(f"{_energy(whole)} per sample at T = {t} (estimate, {table})",
                   fontsize="medium", loc="left")  # fmt: skip
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    if drawn:
        _legend(axes, own, len(drawn))
    return Plot(axes, {"table": table, "time_steps": t, "picojoules": layers, "total": whole})


def _bars(
    layers: Mapping[str, dict[str, float]], total: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The layers that cost most, and those of less than 1 % added up in one."""
    least = sorted(total.values(), reverse=True)[:BARS][-1]
    floor = max(least, 0.01 * sum(total.values()))
    small = [name for name, cost in total.items() if cost < floor]
    if len(small) < 3 and len(layers) <= BARS:
        return dict(layers)
    bars = {name: parts for name, parts in layers.items() if name not in small}
    rest = {part: sum(layers[name][part] for name in small) for part in COMPONENTS}
    return bars | {f"{len(small)} other layers": rest}


def _share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return "<1 %" if 0 < percent < 0.5 else f"{percent:.0f} %"


def plot_frontier(
    evaluation: Evaluation, energy: EnergyEstimate, table: str | None = None, axes: Any = None
) -> Plot:
    """Accuracy against the estimated energy of one sample, T by T, and the source network.

    Left of the line through the source the spiking network costs less. ``break_even`` of the
    numbers is at how many additions for each multiply-accumulate of the source, counted at the
    largest T, both cost the same. Agreement where there were no labels. ``table`` is by default the
    first. Only the T that both measured.
    Raises InputError where there is none.
    """
    table = _table(energy, table)
    labelled = any(a is not None for a in evaluation.accuracy)
    values = evaluation.accuracy if labelled else evaluation.agreement
    quality = {t: 100 * v for t, v in zip(evaluation.time_steps, values, strict=True)
               if v is not None}  # fmt: skip
    steps = sorted(set(quality) & set(energy.total[table]))
    if not steps:
        raise InputError(
            "plot_frontier: no T was both evaluated and estimated; evaluate (with labels or a "
            f"reference) and estimate_energy at the same T: they have {sorted(quality)} and "
            f"{sorted(energy.total[table])}."
        )
    own, axes = axes is None, _axes(axes, (WIDTH, 4.0))
    unit, scale = unit_of(max([energy.source[table], *(energy.total[table][t] for t in steps)]))
    cost = [energy.total[table][t] / scale for t in steps]
    source = energy.source[table] / scale
    quantised = energy.quantised[table].get(steps[-1])
    axes.plot(cost, [quality[t] for t in steps], color=COLORS[0], marker="o", markersize=5,
              label="spiking network, T at the points")  # fmt: skip
    for t, x in zip(steps, cost, strict=True):
        axes.annotate(f"T = {t}" if t == steps[0] else str(t), (x, quality[t]), xytext=(6, -12),
                      textcoords="offset points", fontsize="small")  # fmt: skip
    even = energy.break_even[table][steps[-1]]
    best = (
        100 * evaluation.reference_accuracy if evaluation.reference_accuracy is not None else None
    )
    goal = best if labelled else 100.0
    said = [(source, f"source network,\n{_energy(energy.source[table])}")]
    axes.axvline(source, color=COLORS[1], linestyle="--", linewidth=1, label="source network")
    if goal is not None:
        axes.plot([source], [goal], color=COLORS[1], marker="*", markersize=13, linestyle="none")
    if quantised is not None:
        bits = f"{energy.bits[steps[-1]]:.2g} bits"
        said.append((quantised / scale, f"source in {bits},\n{_energy(quantised)}"))
        axes.axvline(quantised / scale, color=COLORS[2], linestyle=":", linewidth=1.4,
                     label=f"source in {bits}, accuracy not measured")  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08)
    percent_limits(axes, [*(quality[t] for t in steps), *([] if goal is None else [goal])])
    plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel(f"energy per sample ({unit})")
    axes.set_ylabel(("accuracy" if labelled else "agreement with the source") + " (%)")
    axes.grid(alpha=0.25)
    if own:
        axes.figure.suptitle(f"Estimate of the energy, {table}", fontsize="medium")
        _over(axes, sorted(said))
    else:
        axes.legend(fontsize="small")
    return Plot(
        axes,
        {
            "table": table,
            "time_steps": steps,
            "picojoules": [energy.total[table][t] for t in steps],
            "quality": "accuracy" if labelled else "agreement",
            "percent": [quality[t] for t in steps],
            "source_picojoules": energy.source[table],
            "source_percent": goal,
            "quantised_picojoules": quantised,
            "break_even": even,
        },
    )


def _over(axes: Any, said: Sequence[tuple[float, str]]) -> None:
    """Writes above the axes what the vertical lines are; two that are close lean apart."""
    at = [float(axes.transAxes.inverted().transform(axes.transData.transform((x, 1)))[0])
          for x, _ in said]  # fmt: skip
    close = len(at) == 2 and at[1] - at[0] < 0.32
    sides = ("right", "left") if close else ("center", "center")
    for x, (_, text), side in zip(at, said, sides, strict=False):
        axes.annotate(text, (x, 1.0), xycoords="axes fraction", xytext=(0, 4), ha=side,
                      textcoords="offset points", va="bottom", fontsize="small",
                      annotation_clip=False)  # fmt: skip


def plot_over_time(
    costs: CostsOverTime,
    clip: Batch | Mapping[str, Tensor] | None = None,
    axes: Any = None,
    *,
    sound: bool = False,
) -> Plot:
    """Additions of each frame, by what they are of, under the clip; the source's line is dashed.

    Of ``clip`` [F, B, ...], what ``costs_over_time`` was given, the first sample is drawn:
    thumbnails of images [C, H, W] or [H, W], columns of features [N], which with ``sound`` are
    samples of sound, drawn as their spectrum; of a dict the first floating-point input. Raises
    InputError where the clip has another number of frames, or of dimensions.
    """
    shown = None if clip is None else _pictures(clip, len(costs), sound)
    own, axes = axes is None, _axes(axes, (WIDTH, 3.0 if shown is None else 4.2))
    names = _additions(axes, costs)
    if own:
        name_lines(axes, names)
    else:
        axes.legend(fontsize="small")
    if shown is not None:
        _strip(axes.inset_axes((0, 1.03, 1, 0.3)), shown, len(costs))
    return Plot(axes, costs.to_dict())


def _additions(axes: Any, costs: CostsOverTime) -> list[Name]:
    """Draws the additions of each frame; returns the names of the parts and of the source."""
    unit, scale = _thousands(max(costs.source_macs, *costs.additions))
    edges, below = [k - 0.5 for k in range(len(costs) + 1)], [0.0] * len(costs)
    parts = costs.to_dict()["parts"]
    for name in (name for name in PART_COLORS if any(parts[name])):
        above = [a + n / scale for a, n in zip(below, parts[name], strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=PART_COLORS[name],
                    linewidth=0, label=name)  # fmt: skip
        below = above
    source = costs.source_macs / scale
    axes.axhline(source, color=GREY, linestyle="--", linewidth=1.4,
                 label="source network, every frame")  # fmt: skip
    axes.set_xlim(-0.5, len(costs) - 0.5)
    axes.set_ylim(bottom=0)
    _whole_steps(axes)
    axes.set_xlabel("frame")
    axes.set_ylabel(f"additions{unit}")
    axes.grid(alpha=0.25)
    return _columns(parts, scale, source)


def _columns(parts: Mapping[str, Sequence[float]], scale: float, source: float) -> list[Name]:
    """The names of the parts at the middle of their heights in the last frame, and the source's."""
    names, below = [Name(None, source, "source network,\nevery frame", GREY)], 0.0
    for name in (name for name in PART_COLORS if any(parts[name])):
        height = parts[name][-1] / scale
        names.append(Name(None, below + height / 2, name, PART_COLORS[name]))
        below += height
    return names


def _pictures(clip: Any, frames: int, sound: bool) -> Tensor:
    """Of the first sample in 0..1: images [F, H, W] or [F, H, W, 3], or columns [F, N]."""
    clip = _drawn(clip)
    drawable = isinstance(clip, Tensor) and clip.dim() in (3, 4, 5) and clip.numel() > 0
    if not drawable or len(clip) != frames:
        raise InputError(
            f"the clip is [F, B, ...] with images or features of {frames} frames, as it was "
            f"counted, but it is {list(clip.shape) if isinstance(clip, Tensor) else type(clip)}."
        )
    first = clip[:, 0].detach().double().cpu()
    if sound:
        first = spectrogram(first.flatten(1))
    if first.dim() == 4:  # colours, or the mean of what are none
        first = first.movedim(1, -1) if first.shape[1] == 3 else first.mean(1)
    low, high = float(first.min()), float(first.max())
    return (first - low) / ((high - low) or 1.0)


def _drawn(clip: Any) -> Any:
    """Of several inputs the first of real values."""
    clip = batch_of(clip)
    return next(iter(clip.floats), None) if isinstance(clip, Inputs) else clip


def spectrogram(samples: Tensor) -> Tensor:
    """Frames of sound [F, N] as decibels by frequency, [F, N // 2 + 1], 80 below the loudest."""
    window = torch.hann_window(samples.shape[1], dtype=samples.dtype)
    power = torch.fft.rfft(samples * window).abs().square()
    return 10 * (power / power.max().clamp(min=1e-20)).clamp(min=1e-8).log10()


def _strip(axes: Any, shown: Tensor, frames: int) -> None:
    """The clip above the curve: columns, or as many thumbnails as there is room for."""
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_axis_off()
    if shown.dim() == 2:
        axes.imshow(shown.T.numpy(), aspect="auto", origin="lower", cmap="magma",
                    extent=(-0.5, frames - 0.5, 0, 1))  # fmt: skip
        return
    count = min(frames, THUMBNAILS)
    for k in range(count):
        left = -0.5 + frames * k / count
        at = int(frames * (k + 0.5) / count)
        axes.imshow(shown[at].numpy(), aspect="auto", cmap="gray", vmin=0, vmax=1,
                    extent=(left, left + 0.94 * frames / count, 0, 1))  # fmt: skip
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_ylim(0, 1)


def _thousands(value: float) -> tuple[str, float]:
    """The unit of counts of this size, and how many they are."""
    units = ((" (thousands)", 1e3), (" (millions)", 1e6), (" (billions)", 1e9))
    return max((u for u in units if u[1] <= value), key=lambda u: u[1], default=("", 1.0))


def animate_spikes(
    snn: NetworkModule,
    clip: Batch | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    fps: int = 12,
) -> dict[str, Any]:
    """A GIF of the spikes of each frame of a clip [F, B, ...], the state kept; returns the numbers.

    Beside the first sample's frame the spikes of up to four ``layers`` (unless named, those evenly
    spaced through the network), all channels of a place and all steps of the frame together, and
    below the additions of all samples. Raises InputError for a clip that cannot be drawn, a layer
    that sends nothing, and more than four.
    """
    from .energy import TABLES
    from .over_time import FrameCounts, check_clip, costs_of, spikes_by_frame

    need_matplotlib()
    given = check_clip(snn, clip)
    shown = _pictures(clip, length_of(clip), False)
    chosen = _animated(list(codes(snn.network)), layers)
    _check_rate(fps)
    counts, frames, maps = FrameCounts(snn.network), [], []
    for block, changed in spikes_by_frame(snn, given):
        frames.append(counts.frame(block, changed))
        maps.append({name: _place(block.spikes[name][:, 0].sum(0)) for name in chosen})
    costs = costs_of(frames, TABLES)
    most = {name: max(1.0, max(float(m[name].max()) for m in maps)) for name in chosen}
    write_whole(path, _gif(costs, shown, [{n: m[n] / most[n] for n in chosen} for m in maps], fps))
    return {"layers": chosen, "most": most, **costs.to_dict()}


def _check_rate(fps: Any) -> None:
    number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
    if not number or not 0 < fps < math.inf:
        raise InputError(f"fps is a number of frames a second above 0, but it is {fps!r}.")


def _animated(names: list[str], layers: Sequence[str] | None) -> list[str]:
    if isinstance(layers, str) or len(layers or ()) > ANIMATED:
        raise InputError(f"layers is a list of up to {ANIMATED} names, but it is {layers!r}.")
    unknown = [name for name in layers or () if name not in names]
    if unknown:
        raise InputError(f"{unknown[0]!r} sends no spikes; those that do: {', '.join(names)}.")
    if layers is not None:
        return list(layers)
    count = min(ANIMATED, len(names))
    return [names[int((k + 0.5) * len(names) / count)] for k in range(count)]


def _place(spikes: Tensor) -> Tensor:
    """Spikes of one sample as a picture: channels [C, H, W] added up, others in rows.

    Of two equal sides before another number it is [H, W, C].
    """
    if spikes.dim() == 3 and spikes.shape[0] == spikes.shape[1] != spikes.shape[2]:
        return spikes.sum(2)
    if spikes.dim() >= 3:
        return spikes.sum(0).flatten(1)
    flat = spikes.flatten()
    wide = math.ceil(math.sqrt(len(flat)))
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % wide)])
    return spikes if spikes.dim() == 2 else padded.view(-1, wide)


def _gif(costs: CostsOverTime, shown: Tensor, maps: list[dict[str, Tensor]], fps: int) -> bytes:
    """One picture for each frame."""
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 1 + len(maps[0]), height_ratios=(1.0, 0.9))
    first = figure.add_subplot(grid[0, 0])
    picture = first.imshow(_image(shown[0]).numpy(), cmap="gray", vmin=0, vmax=1)
    first.set_title("frame", fontsize="small")
    others = {name: figure.add_subplot(grid[0, 1 + k]) for k, name in enumerate(maps[0])}
    sent = {name: axes.imshow(maps[0][name].numpy(), cmap="magma", vmin=0, vmax=1)
            for name, axes in others.items()}  # fmt: skip
    for name, axes in others.items():
        axes.set_title(_short(name, 12), fontsize="small")
    for axes in (first, *others.values()):
        axes.set_axis_off()
    curve = figure.add_subplot(grid[1, :])
    curve.spines[["top", "right"]].set_visible(False)
    name_lines(curve, _additions(curve, costs))
    line = curve.axvline(0, color="black", linewidth=1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # as it is from here on
    with tempfile.TemporaryDirectory() as folder:
        made, writer = os.path.join(folder, "spikes.gif"), PillowWriter(fps=fps)
        with writer.saving(figure, made, dpi=90):
            for k, each in enumerate(maps):
                picture.set_data(_image(shown[k]).numpy())
                line.set_xdata([k, k])
                for name, image in sent.items():
                    image.set_data(each[name].numpy())
                writer.grab_frame()
        with open(made, "rb") as file:
            return file.read()


def _image(shown: Tensor) -> Tensor:
    """Features of a frame as a column."""
    return shown.unsqueeze(1) if shown.dim() == 1 else shown


UNITS = (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9), ("J", 1e12))


def unit_of(picojoules: float) -> tuple[str, float]:
    """The unit in which it is a short number, and how many picojoules that is."""
    return max((u for u in UNITS if u[1] <= picojoules), key=lambda u: u[1], default=UNITS[0])


def _energy(picojoules: float) -> str:
    unit, scale = unit_of(picojoules)
    return f"{picojoules / scale:.3g} {unit}"


def _table(energy: EnergyEstimate, table: str | None) -> str:
    if table is None:
        return next(iter(energy.total))
    if table not in energy.total:
        raise InputError(f"no table is called {table!r}; known: {', '.join(energy.total)}.")
    return table


def _axes(axes: Any, size: tuple[float, float]) -> Any:
    """The caller's axes, or those of a new figure that pyplot does not know."""
    need_matplotlib()
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _legend(axes: Any, own: bool, columns: int) -> None:
    """Above the axes in a figure of our own; the caller's figure may hold other axes."""
    if own:
        axes.figure.legend(fontsize="small", loc="outside upper left", frameon=False,
                           ncols=columns, columnspacing=1.2)  # fmt: skip
    else:
        axes.legend(fontsize="small")


def _histogram(axes: Any, x: Tensor, y: Tensor, low: float, high: float) -> Any:
    """Counts of (x, y) by colour: as cells, or as points where few cells hold anything."""
    from matplotlib.colors import LogNorm

    cells = 90
    place = [((v - low) / (high - low) * cells).long().clamp(0, cells - 1) for v in (x, y)]
    count = torch.bincount(place[0] * cells + place[1], minlength=cells**2).double()
    norm = LogNorm(1, max(2.0, float(count.max())))
    held = count.nonzero().flatten()
    if len(held) <= FEW_CELLS:  # of quantised values
        middle = [
            low + (high - low) * (i.double() + 0.5) / cells for i in (held // cells, held % cells)
        ]
        return axes.scatter(*(m.tolist() for m in middle), c=count[held].tolist(), s=22,
                            cmap=shades("counts"), norm=norm, zorder=3)  # fmt: skip
    grid = count.reshape(cells, cells).T.masked_fill(count.reshape(cells, cells).T == 0, math.nan)
    return axes.imshow(grid.numpy(), origin="lower", extent=(low, high, low, high),
                       interpolation="nearest", cmap=shades("counts"), norm=norm)  # fmt: skip


def _count_bar(axes: Any, image: Any) -> None:
    """A colour bar of counts, in plain numbers."""
    bar = axes.figure.colorbar(image, ax=axes, label="number of values")
    plain_ticks(bar.ax.yaxis, image.norm.vmin, image.norm.vmax)


def _ordered(steps: Sequence[int], values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """In order of T, in percent; what was not measured is left out."""
    pairs = sorted((t, 100 * v) for t, v in zip(steps, values, strict=True) if v is not None)
    return [t for t, _ in pairs], [v for _, v in pairs]


def _time_axis(axes: Any, steps: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    ticks: list[int] = []
    for t in steps:  # as many as do not touch
        if not ticks or t / ticks[-1] > 1.25:
            ticks.append(t)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time steps T")


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))


def _layer(recording: Recording, kept: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in kept:
        raise InputError(
            f"no neuron called {name!r} was recorded; recorded are: {', '.join(kept) or 'none'}."
        )
    if kept[name].numel() == 0:
        raise InputError(f"the recording of '{name}' is empty; record at least one sample.")
    return kept[name]


def _typical(source: Tensor) -> tuple[int, ...]:
    """Of the first sample, where |value| is larger than nine tenths of the others."""
    flat = source[0].abs().flatten()
    place = int(flat.argsort(stable=True)[int(0.9 * (len(flat) - 1))])
    return (0, *(int(i) for i in torch.unravel_index(torch.tensor(place), source.shape[1:])))


def _checked(index: Sequence[int], source: Tensor, name: str) -> tuple[int, ...]:
    place = tuple(int(i) for i in index)
    if len(place) != source.dim() or not all(
        0 <= i < size for i, size in zip(place, source.shape, strict=True)
    ):
        raise InputError(
            f"index is (sample, *position) in '{name}', whose recording is "
            f"{list(source.shape)}, but it is {place}."
        )
    return place


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _largest(values: Iterable[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def _most(items: Iterable[int], key: Any) -> list[int]:
    """The ROWS first by key, in their own order."""
    return sorted(sorted(items, key=key)[:ROWS])


def _left_out(axes: Any, count: int, what: str) -> None:
    if count:
        axes.set_title(f"{count} {what} are not drawn", fontsize="small", loc="left")


def _short(name: str, length: int = 28) -> str:
    """Long names lose their middle; a $ is no mathematics."""
    if len(name) > length:
        name = f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"
    return name.replace("$", r"\$")


def _slender(rows: int) -> float:
    """The colour bar's height over its width, which is to be the same for any number of rows."""
    return 20 * max(1.0, rows / 12)


def _spike_colors(levels: Sequence[float]) -> dict[str, Any]:
    """One colour for each level where they are few, else shades; blue below 0, orange above."""
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap, Normalize

    shades = LinearSegmentedColormap.from_list(
        "spikes", [(0, UP), (0.5, "#BFDDF0"), (0.5, "#FBE3B0"), (1, DOWN)]
    )
    bound = max(map(abs, levels))
    if len(levels) > LEVELS_SHOWN:
        return {"cmap": shades, "norm": Normalize(-bound, bound)}
    between = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)]
    ends = [levels[0] - 0.5, *between, levels[-1] + 0.5]
    colors = [shades((v / bound + 1) / 2) for v in levels]
    return {"cmap": ListedColormap(colors), "norm": BoundaryNorm(ends, len(levels))}


def _bins(rates: Tensor) -> tuple[float, float, int]:
    """From, to and number: one bin for each rate that T steps allow, where these are few."""
    values = rates.unique()
    low, high = min(0.0, float(values[0])), max(0.0, float(values[-1]))
    if low == high:
        return -0.5, 0.5, 1
    gaps = values.diff()
    gaps = gaps[gaps > 1e-6]
    gap = float(gaps.min()) if len(gaps) else high - low
    count = round((high - low) / gap) + 1
    if count > BINS:
        return low, high, BINS
    return low - gap / 2, high + gap / 2, count


def _colors(rows: Sequence[Sequence[float]], scale: str) -> dict[str, Any]:
    """Dark is a large error."""
    from matplotlib.colors import LogNorm, Normalize

    finite = [v for row in rows for v in row if math.isfinite(v)]
    if scale == "signed":
        bound = _largest(finite) or 1.0
        return {"cmap": "PuOr", "norm": Normalize(-bound, bound)}
    if scale == "log":
        positive = [v for v in finite if v > 0]
        high = max(positive, default=1.0)
        low = max(min(positive, default=0.1), high / 1e3)
        norm = LogNorm(low, high if high > low else 10 * low, clip=True)
        return {"cmap": shades("error"), "norm": norm}
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    map = shades("error").reversed() if scale == "cosine" else shades("error")
    return {"cmap": map, "norm": Normalize(low, high if high > low else low + 1)}


def _readable(color: Sequence[float]) -> str:
    red, green, blue = color[:3]
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"
