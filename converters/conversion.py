"""``check`` and ``convert``: the list of passes from a trained model to a SpikingNetwork."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modes import eval_mode
from ..core.module import NetworkModule
from ..core.network import Function, SignGDNeuron, SpikingNetwork
from ..errors import CalibrationError, InputError, SignGDError, UnsupportedOperation
from ..neurons.schedules import ExponentialSchedule, InverseSchedule, Schedule
from ..neurons.signgd import MOST_MEMBERS
from . import thresholds, tuning
from .calibration import Calibration, batches_of, statistics
from .capture import capture
from .lowering import Coverage, Functions, Lowering, Options, forms
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
        "functions": forms("local"),
        "guard": False,
        "resting": "zero",
        "input_scale": 1.0,
    },
    "default": {
        "schedule": None,
        "input_coding": "exact",
        "scale": "channel",
        "gelu": "source",
        "functions": forms("whole"),
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
    model: nn.Module,
    sample: Tensor,
    *,
    neurons: Mapping[Operation, Entry] = NEURONS,
    functions: Functions = "whole",
) -> CheckReport:
    """What each operation of ``model`` becomes, all unsupported ones included.

    ``sample`` is a batch [B, ...] like those the model sees; ``neurons`` and ``functions`` are
    those of ``convert``. Raises CaptureError where
    ``torch.export`` cannot follow the model at all.
    """
    (x,) = batches_of([sample])
    lowering = Lowering(capture(model, x), neurons, Options(forms(functions)))
    return CheckReport(type(model).__name__, tuple(lowering.coverage))


@torch.inference_mode(False)  # what is learned has gradients
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
    members: int | Mapping[str, int] | None = None,
    signed: bool | None = None,
    keep: Sequence[str] = (),
    functions: Functions | None = None,
    tune: bool | None = None,
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
        real-valued input, ReLU scaled by its maximum, sigmoid GELU, local functions). Every
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
        "channel" or "tensor": the 99.95 % quantile of the calibration, for group neurons of a ReLU
        the thresholds of the least error (``converters/thresholds.py``); "published"; "unit".
    resting
        v(0): "zero" or the calibration's "mean".
    momentum
        Of the step rule, for signGD neurons and their coding.
    members
        m of signGD neurons, the signs of one step, 1 to 8, by default 1; and of group neurons, by
        default m T = L, with L = 8 for a ReLU that was trained without levels. Also a dict from
        module paths to m; the entry "" is the default of the others.
    signed
        Whether group neurons may take spikes back (``neurons/group.py``). By default those of a
        ReLU do where T > 1, those of a QCFS activation do not.
    keep
        Module paths whose nonlinearities stay real-valued, computed at every step of what has been
        decoded; ``network.kept()`` says what they cost.
    functions
        "whole": one neuron for an output of max pooling, a norm, softmax, a matrix product of two
        values or attention; "local": their published decompositions into neurons of one and two
        arguments; or a dict from "max_pool", "norm", "softmax", "matmul" and "attention" to these.
        By default "whole" ("local" with ``preset="paper"``). ``converters.compare_functions``
        measures both.
    tune
        Whether step sizes, scales and resting values of signGD neurons are learned on the
        calibration data (``converters.tune``), up to a minute for the example networks. By
        default they are where nothing speaks against it: at least 64 samples, m T below 128, and
        neither ``schedule`` nor ``resting``, ``scale`` nor ``preset`` given.
        ``provenance["tuning"]`` says what was done, or why nothing.
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
    _check_range("tune", tune, tune in (None, True, False), "True, False or None")
    _check_range("signed", signed, signed in (None, True, False), "True, False or None")
    keep = _check_keep(keep)
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
    _check_used(
        method,
        chosen["input_coding"],
        schedule=schedule is not None,
        momentum=momentum != 0,
        resting=resting == "mean",
        members=members is not None,
        signed=signed is not None,
    )
    batches = batches_of(calibration, max_batches)
    chosen_forms = forms({} if functions is None else functions, chosen.pop("functions"))
    options = Options(chosen_forms, guard=chosen["guard"])
    source = source_network(model, batches[0], neurons, options, time_steps)
    _check_paths("method", method, source)
    _check_paths("members", members, source)
    _check_paths("keep", dict.fromkeys(keep), source)
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
            signed=signed,
            keep=keep,
            seed=seed,
            **chosen,
        ),
    )
    _check_members(planned)
    kept = ("maximum", "minimum", "mean", "quantile", "tensor_quantile", "floor")
    if chosen["scale"] in ("channel", "tensor"):
        planned = thresholds.fit(planned, found, batches, seed)
    given = {"schedule": schedule, "scale": scale, "resting": resting, "preset": preset}
    defaults = (None, "channel", "zero", "default")
    changed = [
        k for (k, v), usual in zip(given.items(), defaults, strict=True) if v not in (None, usual)
    ]
    planned = _tuned(planned, batches, tune, changed, seed)
    return planned.replace(
        statistics={
            name: {k: v for k, v in values.items() if k in kept} for name, values in found.items()
        },
        provenance={
            **planned.provenance,
            "model": type(model).__name__,
            "method": method if isinstance(method, str) else dict(method),
            "preset": preset or "default",
            "input_coding": chosen["input_coding"],
            "scale": chosen["scale"],
            "functions": chosen_forms,
            "schedule": chosen["schedule"].to_dict() if chosen["schedule"] else "default",
            "seed": seed,
            "calibration_samples": sum(len(x) for x in batches),
            "torch": torch.__version__.split("+")[0],
        },
    )


def _tuned(
    network: SpikingNetwork,
    batches: list[Tensor],
    wanted: bool | None,
    given: list[str],
    seed: int,
) -> SpikingNetwork:
    """Tuned where it is wanted, or may be and nothing speaks against it."""
    if wanted is False:
        return network
    reason = tuning.against(network, sum(len(x) for x in batches))
    if not reason and wanted is None:
        most = max(n.members for n in network.neurons if isinstance(n, SignGDNeuron))
        if given:
            reason = f"{' and '.join(given)} was given, which tuning would change."
        elif most * network.time_steps >= tuning.LONGEST:
            reason = (
                f"m T is {tuning.LONGEST} or more, where the default is close; tune=True tunes."
            )
    if not reason:
        return tuning.tune(network, batches, max_batches=None, seed=seed)
    if wanted:
        raise InputError(f"tune=True: {reason}")
    return network.replace(provenance={**network.provenance, "tuning": {"none": reason}})


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
    for m in members.values() if isinstance(members, Mapping) else (members,):
        if m is not None and (not isinstance(m, int) or m is True or m < 1):
            raise InputError(
                "members is an integer of at least 1, or a dict from module paths to such, but it "
                f"is {members!r}."
            )
    if input_scale is not None and not 0 < input_scale < math.inf:
        raise InputError(f"input_scale is positive and finite, but it is {input_scale!r}.")


def _check_members(network: SpikingNetwork) -> None:
    for node in network.neurons:
        if isinstance(node, SignGDNeuron) and node.members > MOST_MEMBERS:
            raise InputError(
                f"signGD neurons fire at most {MOST_MEMBERS} signs a step, but members is "
                f"{node.members} at '{node.name}'."
            )
        if isinstance(node, SignGDNeuron) and node.members > 1 and node.momentum:
            raise InputError(
                f"momentum is that of single signs, but members is {node.members} at "
                f"'{node.name}'; leave one of them out."
            )


def _check_used(method: str | Mapping[str, str], input_coding: str, **given: bool) -> None:
    """An argument that no neuron of the chosen methods reads is a misunderstanding."""
    methods = {method} if isinstance(method, str) else {"signgd", *method.values()}
    if not isinstance(method, str) and "" in method:
        methods = set(method.values())
    stepped = {"input"} if input_coding in ("real", "spike") else set()
    readers = {
        "schedule": {"signgd", "subgradient"} | stepped,
        "momentum": {"signgd"} | stepped,
        "resting": {"signgd"},
        "members": {"signgd", "group"},
        "signed": {"group"},
    }
    for name, is_given in given.items():
        if is_given and not readers[name] & (methods | stepped):
            raise InputError(
                f"{name} has no meaning for method={method!r} with input_coding="
                f"{input_coding!r}; it is read by "
                f"{' and '.join(sorted(readers[name] - stepped))} neurons. Leave it out."
            )


def _check_range(name: str, value: Any, fits: bool, range_: str) -> None:
    if not fits:
        raise InputError(f"{name} is {range_}, but it is {value!r}.")


def _check_keep(keep: Sequence[str]) -> tuple[str, ...]:
    if isinstance(keep, str) or not all(isinstance(path, str) and path for path in keep):
        raise InputError(f"keep is a list of module paths, such as ['head'], but it is {keep!r}.")
    return tuple(keep)


def _check_paths(argument: str, paths: Any, source: SpikingNetwork) -> None:
    """A path in a dict of paths that nothing in the network has is a misspelt one."""
    functions = [node for node in source.nodes if isinstance(node, Function)]
    names = [node.name for node in functions]
    # what is linear is kept as it is in any case
    known = source.nodes if argument == "keep" else functions
    for path in paths if isinstance(paths, Mapping) else ():
        if path and not any(belongs(node, path) for node in known):
            raise InputError(
                f"{argument} has an entry for {path!r}, but the neurons are: {', '.join(names)}."
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
