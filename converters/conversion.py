"""``check`` and ``convert``: from a trained model to a report, or to a spiking network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from ..core.dealing import batches
from ..core.distributed import ALONE, Distributed
from ..core.given import given, is_pair
from ..core.inputs import Batch, batch_of, call
from ..core.modes import eval_mode
from ..core.network import Function, SpikingNetwork
from ..core.progress import progress, working
from ..core.samples import is_whole
from ..errors import CalibrationError, InputError, UnsupportedOperation
from ..names import named_arguments
from ..neurons.schedules import Schedule
from .calibration import Batches, Calibration
from .capture import capture
from .carried import Carries, at, clips_with
from .clips import STILLS, Motion, batches_of_frames, clips_of, frames_of
from .lowering import Coverage, Forms, Lowering
from .passes import PASSES, Pass, fuse_batch_norm, remove_unused
from .rules import Entry, Operation
from .settings import Context, Settings
from .shared import ended
from .sizes import check_sizes


@dataclass(frozen=True)
class CheckReport:
    """What each operation of a model becomes; ``print(report)`` shows it as a table."""

    model: str
    rows: tuple[Coverage, ...]

    @property
    def blockers(self) -> tuple[Coverage, ...]:
        return tuple(row for row in self.rows if row.becomes == "unsupported")

    @property
    def ok(self) -> bool:
        return not self.blockers

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; of each row "mend" is the older name of "fix"."""
        rows = [{**asdict(row), "mend": row.fix} for row in self.rows]
        return {"model": self.model, "ok": self.ok, "rows": rows}

    def __str__(self) -> str:
        shown = [row for row in self.rows if row.becomes != "constant"]
        where = [row.path or "(model)" for row in shown]
        width = max([len(path) for path in where] + [6])
        op = max([len(row.operation) for row in shown] + [9])
        lines = [f"{'module':<{width}}  {'operation':<{op}}  becomes"]
        for path, row in zip(where, shown, strict=True):
            detail = f": {row.detail}" if row.detail else ""
            lines.append(f"{path:<{width}}  {row.operation:<{op}}  {row.becomes}{detail}")
        if self.ok:
            lines.append(f"{self.model} can be converted.")
        else:
            lines.append(f"{self.model} cannot be converted yet; {len(self.blockers)} to fix:")
            lines += [f"  {line}" for line in map(describe, self.blockers)]
        return "\n".join(lines)


def describe(row: Coverage) -> str:
    """One blocker: where, what, the fix."""
    kind = f" ({row.module})" if row.module else ""
    fix = f"; {row.fix}" if row.fix else ""
    return f"'{row.path or '(model)'}'{kind}: {row.detail}{fix}"


@named_arguments
def check(
    model: nn.Module,
    sample: Any,
    *,
    neurons: Mapping[Operation, Entry] | None = None,
    forms: Forms | None = None,
    functions: Forms | None = None,
) -> CheckReport:
    """What each operation of ``model`` becomes, all unsupported ones included.

    ``sample`` is a batch [B, ...] like those the model sees, or a dict of such tensors by the names
    of its arguments, or data as for ``convert``, of which the first batch is taken; ``neurons`` and
    ``forms`` are those of ``convert``. The model is not changed.

    Raises CaptureError where ``torch.export`` cannot follow the model at all, CalibrationError for
    a sample that is not a batch of finite numbers or that the model fails on, InputError for
    ``forms`` that are unknown.
    """
    settings = Settings(neurons=neurons, forms=_forms(forms, functions))
    x = Batches(_first(sample)).first
    return _lowered(model, x, settings)[1]


def _first(sample: Any) -> list[Any]:
    """One batch: the first, where ``sample`` is data that hold several."""
    sample = given(sample)
    if is_pair(sample) or is_whole(sample):
        return [sample]
    return [each for each, _ in zip(batches(sample), range(1), strict=False)]


@named_arguments
def convert(
    model: nn.Module,
    calibration: Calibration,
    *,
    method: str | Mapping[str, str] = "signgd",
    time_steps: int | None = None,
    preset: str | None = None,
    schedule: Schedule | None = None,
    input_coding: str | None = None,
    input_scale: float | None = None,
    scale: str | float | Mapping[str, str | float] | None = None,
    resting: str | None = None,
    momentum: float = 0.0,
    members: int | Mapping[str, int] | None = None,
    signed: bool | None = None,
    keep: Sequence[str] = (),
    forms: Forms | None = None,
    dead_zone: float | Mapping[str, float] | None = None,
    tune: bool | None = None,
    tune_seconds: float | None = None,
    objective: str | float = "error",
    neurons: Mapping[Operation, Entry] | None = None,
    sizes: Sequence[Sequence[int]] = (),
    stream: bool | Motion = False,
    noise: float = 0.0,
    max_batches: int | None = 32,
    seed: int = 0,
    carries: Carries | None = None,
    passes: Sequence[Pass] | None = None,
    functions: Forms | None = None,
    distributed: Distributed | None = None,
) -> SpikingNetwork:
    """Converts a trained model to a spiking network; the model itself is not changed.

    ``model`` takes a tensor [B, ...], or several by keyword, and returns
    tensors, in lists, tuples, dicts or dataclasses. ``calibration`` is a tensor
    or array [N, ...], a ``Dataset``, a pair (x, y) or batches of either; of a model with several
    arguments x is a dict, ``{"input_ids": ids, "attention_mask": mask}``, whose integers stay
    exact. It is read once: statistics use all samples, and some are kept (``Settings``). None
    leaves the choice to the preset::

        method        "signgd", "group", "subgradient", or a dict by module path
        time_steps    T that the network is planned for, by default 1 or 32
        preset        "paper": what the published implementation computes
        schedule      step sizes, in units of each neuron's scale
        input_coding  "exact", "real", "spike", "poisson"; input_scale
        scale         "fitted", "channel", "tensor", "published", "unit", ...
        resting       v(0): "zero" or "mean"; momentum: of the steps, in [0, 1)
        members       m of signGD and group neurons; also by module path
        dead_zone     of signGD neurons, in [0, 1): 0 fires at every step
        signed        whether group neurons may fire negative spikes
        keep          module paths whose nonlinearities stay real-valued
        forms         "whole" or "local": pooling, norms, attention
        tune          whether steps, scales, ... are learned; tune_seconds
        objective     of that: "error", "additions" or a weight of these
        neurons       which operation is which neuron: sg.NEURONS | {...}
        sizes         other shapes of samples that it is to run at
        stream        True: of clips [F, N, ...]; sg.Motion(): of moving stills;
                      noise: of its sensor, which the input is silent at
        max_batches   at most, None: all; seed: of what is drawn
        carries       inputs that are outputs of the frame before: {"h": 1}
        passes        in place of converters.PASSES; functions: see forms
        distributed   processes that share the calibration; all get
                      the same network, whatever their number

    Raises UnsupportedOperation naming every operation that cannot be converted, CaptureError,
    CalibrationError, InputError, SignGDError if the captured network differs from the model.
    Sources: Oh & Lee, ICML 2024 (arXiv:2407.01645); Lv et al., ICASSP 2024 (arXiv:2402.19061).
    """
    settings = Settings(
        method=method,
        time_steps=time_steps,
        preset=preset,
        schedule=schedule,
        input_coding=input_coding,
        input_scale=input_scale,
        scale=scale,
        resting=resting,
        momentum=momentum,
        members=members,
        dead_zone=dead_zone,
        signed=signed,
        keep=keep,
        forms=_forms(forms, functions),
        tune=tune,
        tune_seconds=tune_seconds,
        objective=objective,
        neurons=neurons,
        sizes=sizes,
        stream=stream,
        noise=noise,
        max_batches=max_batches,
        seed=seed,
        carries=carries or {},
    )
    # what is learned has gradients
    with (distributed or ALONE).together(), torch.inference_mode(False):
        if carries:
            calibration = _carrying(model, settings, calibration)
        context = _context(model, settings, calibration, distributed)
        network = _lower_first(model, context)
        if time_steps is None and _says_levels(network, settings):
            context = replace(context, settings=replace(settings, time_steps=1))
            network = network.replace(time_steps=1)
        if settings.sizes:
            network = _at_sizes(network, context)
        asked = PASSES if passes is None else passes
        for one in progress(asked, _told_of_pass, len(asked)):
            network = one(network, context)
        if carries:
            found = {name: at(network.outputs, path, name) for name, path in carries.items()}
            network = network.replace(carries=found)
        return ended("convert", network, distributed)


def _carrying(model: nn.Module, settings: Settings, calibration: Calibration) -> Calibration:
    """Clips with the carried values; their frames, if the plan is not one for streams."""
    if settings.motion is not None:
        raise InputError(
            "a network with carries= is calibrated on clips, not on moving stills; pass "
            "stream=True and clips [F, N, ...], such as stream.clips(stills)."
        )
    clips = clips_with(model, calibration, settings.carries)
    return clips if settings.streams else map(frames_of, map(batch_of, clips))


def _context(
    model: nn.Module, settings: Settings, calibration: Calibration, distributed: Distributed | None
) -> Context:
    world = distributed or ALONE
    if distributed is not None:
        started = f"{torch.__version__}, {torch.get_num_threads()} threads"
        distributed.agree("torch", started)
        distributed.agree("an option of convert", _told(settings))
    if not settings.streams:
        data = Batches(calibration, settings.max_batches, world)
        return Context(model, settings, data, distributed=distributed)
    clips = clips_of(calibration, settings.motion, settings.max_batches, world)
    return Context(model, settings, Batches(batches_of_frames(clips)), clips, distributed)


def _told_of_pass(one: Pass) -> str:
    return f"converting: {getattr(one, '__name__', type(one).__name__).replace('_', ' ')}"


def _told(settings: Settings) -> str:
    """The settings that are no defaults, the same in every process."""
    given = {each.name: getattr(settings, each.name) for each in fields(settings)}
    usual = vars(Settings())
    shown = ", ".join(f"{k}={v!r}" for k, v in given.items() if v != usual[k])
    return re.sub(r" at 0x[0-9a-f]+", "", shown)


def _lower_first(model: nn.Module, context: Context) -> SpikingNetwork:
    """The network for the first batch; the error for stills passed as a clip names the fix."""
    settings = context.settings
    try:
        return lower(model, context.first, settings).replace(stream=settings.streams)
    except CalibrationError as error:
        if not context.clips or settings.motion is not None or not _takes(model, context.clips[0]):
            raise
        raise CalibrationError(
            f"stream=True takes clips [F, N, ...], whose frames [N, ...] the model is called with: "
            f"{error} {STILLS}"
        ) from error


@torch.no_grad()
def _takes(model: nn.Module, x: Batch) -> bool:
    """Whether the model runs on a clip as if it were a batch, which shows that it is one."""
    with eval_mode(model):
        try:
            call(model, x)
        except Exception:  # whatever a model of the user's own raises
            return False
    return True


def _says_levels(network: SpikingNetwork, settings: Settings) -> bool:
    """Whether group neurons stand for activations trained with levels: m = L at T = 1."""
    exact = settings.chosen["input_coding"] == "exact"
    trained = any("levels" in node.arguments for node in network.of(Function))
    return settings.method == "group" and exact and trained


def _forms(forms: Forms | None, functions: Forms | None) -> Forms | None:
    if functions is None:
        return forms
    if forms is not None:
        raise InputError("functions is the older name of forms; leave it out.")
    warnings.warn(
        "functions= of convert and check is called forms= now, and will be removed in the next "
        "release.",
        DeprecationWarning,
        stacklevel=4,
    )
    return functions


def lower(model: nn.Module, sample: Any, settings: Settings) -> SpikingNetwork:
    """The model as a network of linear operations and functions, before any pass.

    Raises UnsupportedOperation, CaptureError, CalibrationError.
    """
    lowering, report = _lowered(model, sample, settings)
    if not report.ok:
        lines = [describe(row) for row in report.blockers]
        raise UnsupportedOperation(
            f"{report.model} has {len(lines)} operation(s) that cannot be converted:\n  "
            + "\n  ".join(lines),
            blockers=report.blockers,
        )
    return SpikingNetwork(tuple(lowering.nodes), lowering.outputs, settings.steps)


def _lowered(model: nn.Module, sample: Any, settings: Settings) -> tuple[Lowering, CheckReport]:
    with working(f"capturing {type(model).__name__}"):
        lowering = Lowering(capture(model, sample), settings.rows, settings.options)
    return lowering, CheckReport(type(model).__name__, tuple(lowering.coverage))


def _at_sizes(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """With what other sizes of the input change, in its provenance."""
    model, settings = context.model, context.settings
    source = fuse_batch_norm(remove_unused(network))
    found = check_sizes(
        source,
        model,
        context.first,
        settings.sizes,
        lambda x: source_network(model, x, settings),
    )
    return network.replace(provenance={**network.provenance, "sizes": found})


def source_network(model: nn.Module, sample: Any, settings: Settings) -> SpikingNetwork:
    """The model as a network whose nonlinearities are still functions."""
    return fuse_batch_norm(remove_unused(lower(model, sample, settings)))
