"""``check`` and ``convert``: the list of passes from a trained model to a SpikingNetwork."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, InputError, SignGDError, UnsupportedOperation
from ..network import Function, SpikingNetwork
from ..network_module import NetworkModule
from ..neurons.schedules import ExponentialSchedule, InverseSchedule, Schedule
from .calibration import Calibration, batches_of, statistics
from .capture import capture, eval_mode
from .lowering import Coverage, Lowering, Options
from .passes import fuse_batch_norm, remove_unused
from .planning import CODINGS, METHODS, SCALES, Plan, belongs, plan
from .rules import NEURONS, Entry, Operation

PRESETS: dict[str, dict[str, Any]] = {
    # what the published implementation computes (snn_signgd, its example configuration)
    "paper": {
        "schedule": ExponentialSchedule(0.15, 0.95),
        "input_coding": "real",
        "scale": "published",
        "gelu": "sigmoid",
        "max_pool": "chain",
        "guard": False,
        "resting": "zero",
        "input_scale": 1.0,
    },
    "default": {
        "schedule": None,
        "input_coding": "exact",
        "scale": "channel",
        "gelu": "source",
        "max_pool": "window",
        "guard": True,
        "resting": "zero",
        "input_scale": None,
    },
}


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
        return {"model": self.model, "ok": self.ok, "rows": [asdict(row) for row in self.rows]}

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
            lines.append(f"{self.model} cannot be converted yet; {len(self.blockers)} to mend:")
            lines += [f"  {line}" for line in map(describe, self.blockers)]
        return "\n".join(lines)


def describe(row: Coverage) -> str:
    """One blocker: where, what, the mend."""
    kind = f" ({row.module})" if row.module else ""
    mend = f"; {row.mend}" if row.mend else ""
    return f"'{row.path or '(model)'}'{kind}: {row.detail}{mend}"


def check(
    model: nn.Module, sample: Tensor, *, neurons: Mapping[Operation, Entry] = NEURONS
) -> CheckReport:
    """What each operation of ``model`` becomes, all unsupported ones included.

    ``sample`` is a batch [B, ...] like those the model sees. Raises CaptureError where
    ``torch.export`` cannot follow the model at all.
    """
    (x,) = batches_of([sample])
    lowering = Lowering(capture(model, x), neurons, Options())
    return CheckReport(type(model).__name__, tuple(lowering.coverage))


def convert(
    model: nn.Module,
    calibration: Calibration,
    *,
    method: str | Mapping[str, str] = "signgd",
    time_steps: int = 32,
    preset: str | None = None,
    schedule: Schedule | None = None,
    input_coding: str | None = None,
    input_scale: float | None = None,
    scale: str | None = None,
    resting: str | None = None,
    momentum: float = 0.0,
    members: int | None = None,
    neurons: Mapping[Operation, Entry] = NEURONS,
    max_batches: int | None = 32,
    seed: int = 0,
) -> SpikingNetwork:
    """A trained model to a spiking network; the model handed in is left as it was.

    Parameters
    ----------
    model
        Takes one tensor [B, ...] and returns tensors, in lists, tuples or dicts. Its mode does
        not matter: it is converted as in ``eval()``.
    calibration
        A tensor [N, ...] or an iterable of batches x or (x, y), of which ``max_batches`` are used.
    method
        "signgd", "group" (for QCFS and ReLU) or "subgradient" (the rate-coded baseline for ReLU),
        or a dict from module paths to these; the entry "" is the default of the others.
    time_steps
        T that the network is planned for: the default schedule and the members follow it.
    preset
        "paper" computes what the published implementation does (learning rate 0.15, decay 0.95,
        real-valued input, ReLU scaled by its maximum, sigmoid GELU, chained max pooling). Every
        other argument that is given overrides it.
    schedule
        Step sizes in units of each neuron's scale, one schedule for all neurons. The default
        depends on ``time_steps`` and on each neuron's depth: ``converters.default_schedule``.
    input_coding
        "exact": the first layers see the input itself; "real": real-valued increments;
        "spike": signs, within ``input_scale`` times the sum of the schedule; "poisson".
    input_scale
        Amplitude of coded inputs; by default the largest absolute input of the calibration.
    scale
        "channel" or "tensor": the 99.95 % quantile of the calibration; "published"; "unit".
    resting
        v(0): "zero" or the calibration's "mean".
    momentum
        Of the step rule, for signGD neurons and their coding.
    members
        m of the group neurons; by default m T = L.
    neurons
        Which operation is which neuron; the caller's entries win (``NEURONS | {...}``).

    Raises UnsupportedOperation naming every operation that cannot be converted, CaptureError,
    CalibrationError, InputError, and SignGDError if the captured network does not compute what
    the model computes.

    Sources: Oh & Lee, ICML 2024 (arXiv:2407.01645); Lv et al., ICASSP 2024 (arXiv:2402.19061).
    """
    check_time_steps(time_steps)
    if isinstance(method, Mapping) and list(method) == [""]:
        method = method[""]
    _check_choices(method, preset, input_coding, scale, resting)
    _check_numbers(schedule, time_steps, members, input_scale)
    _check_range("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
    _check_range("max_batches", max_batches, max_batches is None or max_batches >= 1, "at least 1")
    _check_range("seed", seed, isinstance(seed, int), "an integer")
    chosen = dict(PRESETS[preset or "default"])
    given = {
        "schedule": schedule,
        "input_coding": input_coding,
        "input_scale": input_scale,
        "scale": scale,
        "resting": resting,
    }
    chosen.update({name: value for name, value in given.items() if value is not None})
    batches = batches_of(calibration, max_batches)
    options = Options(max_pool=chosen.pop("max_pool"), guard=chosen["guard"])
    source = source_network(model, batches[0], neurons, options, time_steps)
    _check_paths(method, source)
    check_against(source, model, batches[0])
    found = statistics(source, batches, seed)
    if schedule is None and method == "subgradient":
        chosen["schedule"] = InverseSchedule(1.0, delay=1.0)  # a running mean
    if chosen["input_scale"] is None:
        chosen["input_scale"] = max(float(x.abs().max()) for x in batches) or 1.0
    planned = plan(
        source,
        found,
        Plan(
            method=method,
            time_steps=time_steps,
            momentum=momentum,
            members=members,
            seed=seed,
            **chosen,
        ),
    )
    kept = ("maximum", "minimum", "mean", "quantile", "tensor_quantile", "floor")
    return planned.replace(
        statistics={
            name: {k: v for k, v in values.items() if k in kept} for name, values in found.items()
        },
        provenance={
            "model": type(model).__name__,
            "method": method if isinstance(method, str) else dict(method),
            "preset": preset or "default",
            "input_coding": chosen["input_coding"],
            "scale": chosen["scale"],
            "schedule": chosen["schedule"].to_dict() if chosen["schedule"] else "default",
            "seed": seed,
            "calibration_samples": sum(len(x) for x in batches),
            "torch": torch.__version__.split("+")[0],
        },
    )


def check_time_steps(time_steps: Any) -> None:
    if not isinstance(time_steps, int) or isinstance(time_steps, bool) or time_steps < 1:
        raise InputError(f"time_steps is an integer of at least 1, but it is {time_steps!r}.")


def _check_choices(
    method: str | Mapping[str, str],
    preset: str | None,
    input_coding: str | None,
    scale: str | None,
    resting: str | None,
) -> None:
    if not isinstance(method, (str, Mapping)):
        raise InputError(
            f"method is a name or a dict from module paths to names, but it is {method!r}."
        )
    methods = [method] if isinstance(method, str) else list(method.values())
    choices = [
        *(("method", m, METHODS) for m in methods),
        ("preset", preset or "default", tuple(PRESETS)),
        ("input_coding", input_coding or "exact", CODINGS),
        ("scale", scale or "channel", SCALES),
        ("resting", resting or "zero", ("zero", "mean")),
    ]
    for name, value, known in choices:
        if value not in known:
            raise InputError(f"{name} is one of {', '.join(known)}, but it is {value!r}.")


def _check_numbers(schedule: Any, time_steps: int, members: Any, input_scale: float | None) -> None:
    if schedule is not None and not isinstance(schedule, Schedule):
        raise InputError(
            f"schedule is ExponentialSchedule(0.15, 0.95) or another schedule, not {schedule!r}."
        )
    try:
        if schedule is not None:
            schedule(time_steps)
    except ValueError as error:
        raise InputError(f"the schedule ends before time_steps = {time_steps}: {error}") from error
    if members is not None and (not isinstance(members, int) or members is True or members < 1):
        raise InputError(f"members is an integer of at least 1, but it is {members!r}.")
    if input_scale is not None and not 0 < input_scale < math.inf:
        raise InputError(f"input_scale is positive and finite, but it is {input_scale!r}.")


def _check_range(name: str, value: Any, fits: bool, range_: str) -> None:
    if not fits:
        raise InputError(f"{name} is {range_}, but it is {value!r}.")


def _check_paths(method: str | Mapping[str, str], source: SpikingNetwork) -> None:
    """A path in ``method`` that no neuron has is a misspelt one."""
    functions = [node for node in source.nodes if isinstance(node, Function)]
    names = [node.name for node in functions]
    for path in () if isinstance(method, str) else method:
        if path and not any(belongs(node, path) for node in functions):
            raise InputError(
                f"method has an entry for {path!r}, but the neurons are: {', '.join(names)}."
            )


def source_network(
    model: nn.Module,
    sample: Tensor,
    neurons: Mapping[Operation, Entry],
    options: Options,
    time_steps: int,
) -> SpikingNetwork:
    """The model as a network whose nonlinearities are still functions."""
    lowering = Lowering(capture(model, sample), neurons, options)
    report = CheckReport(type(model).__name__, tuple(lowering.coverage))
    if not report.ok:
        lines = [describe(row) for row in report.blockers]
        raise UnsupportedOperation(
            f"{report.model} has {len(lines)} operation(s) that cannot be converted:\n  "
            + "\n  ".join(lines),
            blockers=report.blockers,
        )
    nodes = remove_unused(tuple(lowering.nodes), lowering.outputs)
    nodes = fuse_batch_norm(nodes, lowering.outputs)
    return SpikingNetwork(nodes, lowering.outputs, time_steps)


TOLERANCE = 1e-4  # of the largest output; float32 networks come out near 1e-6
HALF_TOLERANCE = 5e-2  # half precision models are converted in float32


@torch.no_grad()
def check_against(source: SpikingNetwork, model: nn.Module, x: Tensor) -> None:
    """Raise SignGDError unless the captured network computes what the model computes on x.

    A QCFS activation is a step function: an input on a step may round to the other side, which
    moves single samples, so there the median sample is held against the tolerance.
    """
    with eval_mode(model):
        expected = model(x.clone())  # which may work in place on its input
    actual = NetworkModule(source, {}).ann(x)
    stepped = any(isinstance(n, Function) and n.function.name == "qcfs" for n in source.nodes)
    for have, want in zip(_tensors(actual), _tensors(expected), strict=True):
        if have.shape != want.shape:
            raise SignGDError(
                f"the captured network returns {list(have.shape)} where {type(model).__name__} "
                f"returns {list(want.shape)}; please report it with the model."
            )
        if not bool(want.isfinite().all()):
            raise CalibrationError(
                "the model's own output is NaN or infinite on the calibration data."
            )
        tolerance = HALF_TOLERANCE if want.element_size() < 4 else TOLERANCE
        error = (have - want.to(have.dtype)).abs()
        if stepped and error.dim():
            error = error.flatten(1).amax(1).median() if error.dim() > 1 else error.median()
        worst = float(error.max()) if error.numel() else 0.0
        allowed = tolerance * (float(want.abs().max()) if want.numel() else 1.0) + 1e-7
        if worst > allowed:
            raise SignGDError(
                f"the captured network differs from {type(model).__name__} by {worst:.3g} on the "
                f"calibration data (allowed: {allowed:.3g}). If the model is deterministic in "
                "eval mode this is a bug of the converter; please report it with the model."
            )


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    items = structure.values() if isinstance(structure, Mapping) else structure
    return [tensor for item in items for tensor in _tensors(item)]
