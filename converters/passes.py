"""The passes of ``convert``, in order: ``PASSES``. Each is a function from a network to a network.

The first gets the model as a network of linear operations and functions; ``plan`` makes the
functions neurons. What a pass needs besides the network is in the ``Context``; calibration
statistics are in ``network.statistics``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Inputs, call
from ..core.modes import eval_mode
from ..core.module import NetworkModule
from ..core.network import (
    Average,
    Function,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    is_affine,
    leaves,
)
from ..core.structures import plain
from ..errors import CalibrationError, InputError, SignGDError
from ..neurons.schedules import Schedule
from . import residuals, thresholds, tracking, tuning
from .budget import Budget
from .calibration import statistics
from .objectives import weight_of
from .planner import plan
from .planning import (
    CalibrationWarning,
    PlanWarning,
    by_quantile,
    covering,
    default_schedule,
)
from .settings import MEMBERS, PRESETS, Context, belongs
from .uses import used, users

Pass = Callable[[SpikingNetwork, Context], SpikingNetwork]
# of the statistics, in the network
KEPT = ("maximum", "minimum", "mean", "quantile", "tensor_quantile", "floor", "range")


def remove_unused(network: SpikingNetwork, _: Context | None = None) -> SpikingNetwork:
    """Without the nodes that no output depends on; the input stays."""
    return network.replace(nodes=used(network.nodes, network.outputs))


def fuse_batch_norm(network: SpikingNetwork, _: Context | None = None) -> SpikingNetwork:
    """Scale and shift by channel, as batch norm is, folded into the weights before them.

    The factors are applied in float64. A convolution whose output is read by others too keeps its
    weights, and so does the affine operation after anything that has none.
    """
    nodes, outputs = network.nodes, network.outputs
    count = users(nodes, outputs)
    by_name = {node.name: node for node in nodes}
    renamed: dict[str, str] = {}
    fused: dict[str, Node] = {}
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        source = fused.get(node.inputs[0]) if node.inputs else None
        if (
            is_affine(node)
            and isinstance(source, Linear)
            and count[by_name[node.name].inputs[0]] == 1
            and source.shape == node.shape
        ):
            tensors = _folded(source, node.tensors)
            if tensors is not None:
                fused[source.name] = replace(source, tensors=tensors)
                renamed[node.name] = source.name
                count[source.name] = count[node.name]
                continue
        fused[node.name] = node
    if any(name in renamed for name in leaves(outputs)):
        return network.replace(nodes=_with_output_names(outputs, renamed, fused))
    return network.replace(nodes=tuple(fused.values()))


def _with_output_names(
    outputs: Any, renamed: dict[str, str], fused: dict[str, Node]
) -> tuple[Node, ...]:
    """The fused nodes under the names that the outputs use."""
    wanted = {renamed[name]: name for name in leaves(outputs) if name in renamed}
    return tuple(
        replace(
            node,
            name=wanted.get(node.name, node.name),
            inputs=tuple(wanted.get(name, name) for name in node.inputs),
        )
        for node in fused.values()
    )


def _folded(source: Linear, affine: Any) -> dict[str, Tensor] | None:
    """The weights of ``source`` after scale and shift, or None where they cannot hold them."""
    if source.op == "conv":
        spatial = len(source.attributes["stride"])
    elif source.op == "linear":
        spatial = 0
    else:
        return None
    weight = source.tensors["weight"]
    channels = weight.shape[0]
    vectors = {}
    for name in ("weight", "bias"):
        if name in affine:
            value = affine[name].double()
            by_channel = value.dim() == 0 or value.numel() == 1
            by_channel |= tuple(value.shape) in (
                (channels, *[1] * spatial),
                (1, channels, *[1] * spatial),
            )
            if not by_channel:
                return None
            vectors[name] = value.reshape(-1).expand(channels)
    factor = vectors.get("weight", torch.ones(channels, dtype=torch.float64))
    bias = source.tensors["bias"].double() * factor if "bias" in source.tensors else None
    if "bias" in vectors:
        bias = vectors["bias"] if bias is None else bias + vectors["bias"]
    shaped = factor.reshape(-1, *[1] * (weight.dim() - 1))
    tensors = {"weight": (weight.double() * shaped).to(weight.dtype)}
    if bias is not None:
        tensors["bias"] = bias.to(weight.dtype).contiguous()
    return tensors


def check_paths(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Raises InputError for a module path that does not occur in the network."""
    settings, functions = context.settings, network.of(Function)
    _check_coding(network, settings.chosen["input_coding"])
    names = ("method", "members", "dead_zone", "scale", "keep")
    given = {name: getattr(settings, name) for name in names}
    for argument, paths in given.items():
        # what is linear is kept as it is in any case
        known = network.nodes if argument == "keep" else functions
        if argument == "dead_zone" and settings.chosen["input_coding"] == "spike":
            known = (*functions, *network.inputs)  # which get neurons
        for path in () if isinstance(paths, (str, int, float)) else paths or ():
            if path and not any(belongs(node, path) for node in known):
                raise InputError(
                    f"{argument} has an entry for {path!r}, but the neurons are: "
                    f"{', '.join(node.name for node in functions)}."
                )
    return network


def _check_coding(network: SpikingNetwork, coding: str) -> None:
    """Raises InputError for an input coding that applies to no input, or randomly to several."""
    coded = sum(node.coded for node in network.inputs)
    if coding != "exact" and coded == 0:
        raise InputError(
            f"input_coding is {coding!r}, but {', '.join(n.name for n in network.inputs)} hold "
            "whole numbers, which are processed exactly; leave it out."
        )
    if coding == "poisson" and coded > 1:
        raise InputError(
            f"Poisson coding supports one input, but the model has {coded} of floating-point "
            'numbers; choose input_coding="spike".'
        )


CHECKED = 16  # samples
TOLERANCE = 1e-4  # of the largest output; float32 networks come out near 1e-6
HALF_TOLERANCE = 5e-2  # half precision models are converted in float32


@torch.no_grad()
def check_against(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Raise SignGDError unless the network computes what the model does on the first samples.

    A QCFS activation is a step function: an input on a step may round to the other side, which
    moves single samples, so there the median sample is held against the tolerance.
    """
    model, x = context.model, context.first[:CHECKED]
    with eval_mode(model):
        expected = plain(call(model, x.clone()))  # which may work in place on its input
    actual = NetworkModule(network, {}).ann(x)
    stepped = any(n.function.name == "qcfs" for n in network.of(Function))
    for have, want in zip(leaves(actual), leaves(expected), strict=True):
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
    return network


SILENT, MANY_SILENT = 0.05, 16  # of all channels, from where a calibration is warned of


def calibrate(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """With what each function's values are like on the calibration data, in ``statistics``.

    Warns if many channels were silent: their range is then not known.
    """
    seen = statistics(network, context.data, context.settings.seed)
    silent = {
        name: (int(((one["maximum"] == 0) & (one["minimum"] == 0)).sum()), one["maximum"].numel())
        for name, one in seen.items()
    }
    few, every = (sum(pair[i] for pair in silent.values()) for i in (0, 1))
    if few > SILENT * every and few >= MANY_SILENT:
        worst = sorted(silent, key=lambda name: -silent[name][0])[:3]
        where = ", ".join(f"'{name}' ({silent[name][0]} of {silent[name][1]})" for name in worst)
        warnings.warn(
            f"{few} of {every} channels were silent on all {context.samples} calibration "
            f"samples, most of them at {where}: their ranges are estimated from the other "
            "channels. Calibrate with more samples, or with samples of every kind.",
            CalibrationWarning,
            stacklevel=4,
        )
    return network.replace(statistics=seen)


def fit_thresholds(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """With thresholds and initial charges of group neurons for ReLUs chosen: ``thresholds``."""
    if context.settings.chosen["scale"] in ("published", "unit"):
        return network
    settings = context.settings
    budget = None if settings.tune is False else Budget(settings.tune_seconds, context.distributed)
    return thresholds.fit(network, network.statistics, context.batches, settings.seed, budget)


def fit_steps(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Chooses the plan with the smallest error if several are possible: step sizes of several
    members, and scales of coarse codes (``residuals``)."""
    if context.settings.streams:
        return tracking.fit(network, context)
    signs = [n for n in network.of(SignGDNeuron) if n.name in network.statistics]
    if context.settings.chosen["scale"] != "fitted":
        return network
    if signs and _compares(context):
        usual = {
            n.name: replace(
                n, scale=by_quantile(network.statistics[n.name]), schedule=_usual_steps(n)
            )
            for n in signs
        }
        network = residuals.fit(network, network.with_nodes(usual), _some(context))
    ranges = {n.name: {"range": torch.as_tensor(network[n.name].scale)} for n in signs}  # type: ignore[attr-defined]
    seen = {name: {**one, **ranges.get(name, {})} for name, one in network.statistics.items()}
    return network.replace(statistics=seen)


def _usual_steps(node: SignGDNeuron) -> Schedule:
    """For a scale that is a quantile: one step that covers a range becomes the default one."""
    if node.schedule != covering(node.members):
        return node.schedule
    return default_schedule(1, 1.0, node.members, node.widest_dead_zone)


# members of one step, up to which rounding weighs as much as range: with dead zones, and without,
# where 0 is no code
COARSE, COARSE_SIGNS = 6, 8


def _compares(context: Context) -> bool:
    """Whether plans are compared."""
    settings, chosen = context.settings, context.settings.chosen
    m = settings.members
    most = COARSE if settings.chosen["dead_zone"] != 0 else COARSE_SIGNS
    coarse = isinstance(m, int) and 1 < m <= most
    default = chosen["schedule"] is None and chosen["scale"] == "fitted"
    return default and not settings.momentum and (settings.steps > 1 or coarse)


OFF = 0.2  # of the outputs, from where a plan is warned of
# Calibration samples up to which a plan may fit these alone: from an error of DOUBTFUL on it is
# looked for where half of them are some, and these being fewer, so many times the error shows it
FEWEST, FEW, DOUBTFUL, FARTHER = 16, 32, 0.05, 5


def check_plan(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Warns if the network's outputs are far from the model's, naming the worst neurons."""
    if context.settings.preset == "paper" or not network.neurons:
        return network
    if network.stream:
        return _check_followed(network, context)
    x = _some(context)[: residuals.samples_for(network)]
    steps, error = residuals.run(network, x)
    said = {"error": error, "samples": len(x)}
    network = network.replace(provenance={**network.provenance, "planned": said})
    if error <= OFF:
        _check_unseen(network, context, error)
        return network
    off = {name: (a / b) ** 0.5 for name, (a, b) in steps.off.items() if b}
    worst = sorted(off, key=lambda name: -off[name])[:3]
    where = ", ".join(f"'{name}' ({100 * off[name]:.0f} % off its target)" for name in worst)
    warnings.warn(
        f"after {network.time_steps} step(s) the outputs are {100 * error:.0f} % off those of "
        f"{type(context.model).__name__} on {len(x)} calibration samples. Largest errors: "
        f"{where}. Choose more members or time_steps, or tune=True; analysis.diagnose finds the "
        "causes.",
        PlanWarning,
        stacklevel=4,
    )
    return network


def _check_unseen(network: SpikingNetwork, context: Context, seen: float) -> None:
    """Warns of too few samples: a plan from one half of them is tested on the other half."""
    # what plans of these add to the network, averages and coded inputs, is not taken out again
    coded = context.settings.chosen["input_coding"] != "exact" or bool(network.of(Average))
    if seen <= DOUBTFUL or coded or not FEWEST <= context.samples <= FEW:
        return
    x = torch.cat(list(context.batches))
    half = replace(context, batches=[x[::2]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that half of the samples are even fewer
        for make in (calibrate, plan, fit_thresholds, fit_steps):
            unplanned = network if make is not calibrate else _of_functions(network)
            network = make(unplanned, half)
    _, error = residuals.run(network, x[1::2])
    if error > max(OFF, FARTHER * seen):
        warnings.warn(
            f"the plan has an error of {100 * seen:.0f} % on its {context.samples} calibration "
            f"samples, but a plan from half of them has an error of {100 * error:.0f} % on the "
            "other half: these are too few samples. Calibrate with more samples.",
            PlanWarning,
            stacklevel=5,
        )


def _of_functions(network: SpikingNetwork) -> SpikingNetwork:
    """The network before it was planned."""
    names = [each.name for each in fields(Function)]
    functions = {n.name: Function(**{k: getattr(n, k) for k in names}) for n in network.neurons}
    return network.with_nodes(functions).replace(statistics={})


def _check_followed(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    found = tracking.followed(network, context)
    said = {"error": found.error, "first": found.first, "frames": found.frames,
            "samples": found.clips}  # fmt: skip
    if found.error > OFF:
        worst = sorted(found.off, key=lambda name: -found.off[name])[:3]
        where = ", ".join(f"'{name}' ({100 * found.off[name]:.0f} %)" for name in worst)
        warnings.warn(
            f"over {found.frames} frames the outputs are {100 * found.error:.0f} % off those of "
            f"{type(context.model).__name__} on {found.clips} calibration clips. Largest errors: "
            f"{where}. {_closer(network, context)}, or more clips.",
            PlanWarning,
            stacklevel=5,
        )
    return network.replace(provenance={**network.provenance, "planned": said})


def _closer(network: SpikingNetwork, context: Context) -> str:
    """How a plan for streams can be made more accurate."""
    price = network.provenance["stream"]["weight"] / 4
    lower = f"a lower price of additions, such as objective={price:.2g}"
    asked = any(context.settings.members_of(node) for node in network.of(SignGDNeuron))
    return f"Choose more members than were asked for, or {lower}" if asked else f"Choose {lower}"


def _some(context: Context) -> Tensor | Inputs:
    """Calibration samples spread over the batches, as many as the passes here use."""
    batches = [x[: 2 * residuals.MOST] for x in context.batches]
    among = sum(map(len, batches))
    wanted = torch.linspace(0, among - 1, min(among, 2 * residuals.MOST)).long()
    found, begin = [], 0
    for x in batches:  # which are not copied as a whole
        inside = wanted[(wanted >= begin) & (wanted < begin + len(x))] - begin
        found.append(x[inside.to(x.device)])
        begin += len(x)
    return torch.cat(found)


def tune(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Tunes the network if requested, or by default if possible: ``tuning``."""
    wanted, objective = context.settings.tune, context.settings.objective
    if wanted is False or network.stream:
        return network
    asked = "tune=True" if wanted else f"objective={objective!r}" if weight_of(objective) else ""
    reason, few = tuning.against(network), tuning.too_few(context.samples)
    may = not reason and not asked and context.settings.tune_seconds is None
    better = _better_not(network, context) if may else ""
    if few and not (reason or better or asked):
        warnings.warn(
            f"the plan is not tuned: {few} Pass more samples, or tune=False.",
            CalibrationWarning,
            stacklevel=4,
        )
    reason = reason or few or better
    if not reason:
        options: dict[str, Any] = {"objective": objective, "seconds": context.settings.tune_seconds}
        batches, seed = list(context.batches), context.settings.seed
        options |= {"max_batches": None, "seed": seed, "distributed": context.distributed}
        return tuning.tune(network, batches, **options)
    if asked:
        raise InputError(f"{asked}: {reason}")
    return network.replace(provenance={**network.provenance, "tuning": {"none": reason}})


def _better_not(network: SpikingNetwork, context: Context) -> str:
    """Why a network is not tuned by default although it could be."""
    default = PRESETS["default"]
    usual = {name: default[name] for name in ("schedule", "scale", "resting")}
    usual["preset"] = "default"
    asked = {name: getattr(context.settings, name) for name in usual}
    given = [name for name, value in asked.items() if value not in (None, usual[name])]
    if given:
        return f"{' and '.join(given)} was given, which tuning would change."
    most = max(node.members for node in network.of(SignGDNeuron))
    if most * network.time_steps >= tuning.LONGEST:
        return f"m T is {tuning.LONGEST} or more, where the default is close; tune=True tunes."
    fine = all(n.parameters.sparse and n.members >= MEMBERS for n in network.of(SignGDNeuron))
    if fine and network.time_steps == 1:
        return (
            f"one step of {MEMBERS} members with dead zones is close, and less error takes more "
            "additions; tune=True makes it less, objective='additions' saves additions."
        )
    if tuning.updates(network) >= tuning.LARGE:
        return (
            "a network of this size takes minutes; tune=True tunes it, tune_seconds=300 in so many "
            "seconds."
        )
    return ""


def describe(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Adds ``provenance``, how the network was made, and the statistics to keep."""
    settings, chosen = context.settings, context.settings.chosen
    method, schedule = settings.method, chosen["schedule"]
    seen = {
        name: {k: v for k, v in values.items() if k in KEPT}
        for name, values in network.statistics.items()
    }
    made = {
        "model": type(context.model).__name__,
        "method": method if isinstance(method, str) else dict(method),
        "preset": settings.preset or "default",
        "input_coding": chosen["input_coding"],
        "scale": dict(scale) if isinstance(scale := chosen["scale"], Mapping) else scale,
        "functions": chosen["forms"],
        "schedule": schedule.to_dict() if schedule else "default",
        "seed": settings.seed,
        "calibration_samples": context.samples,
        "torch": torch.__version__.split("+")[0],
    }
    if context.data.skipped:
        made["calibration_skipped"] = context.data.skipped
    return network.replace(statistics=seen, provenance={**network.provenance, **made})


PASSES: tuple[Pass, ...] = (
    remove_unused,
    fuse_batch_norm,
    check_paths,
    check_against,
    calibrate,
    plan,
    fit_thresholds,
    fit_steps,
    tune,
    check_plan,
    describe,
)
