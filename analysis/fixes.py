"""The fixes that the doctor tries: changes of a neuron layer, more steps; and wrong nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, log2
from typing import Any

import torch
from torch import Tensor

from ..converters import residuals
from ..converters.calibration import statistics
from ..converters.planning import (
    DEFAULT_LEVELS,
    SMALLEST_CHANNEL,
    by_quantile,
    covering,
    default_schedule,
    relative_depths,
)
from ..converters.settings import by_path
from ..converters.thresholds import fit
from ..core.module import NetworkModule
from ..core.network import (
    Constant,
    Function,
    GroupNeuron,
    Linear,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    Timed,
)
from ..core.spikes import Sent, listening
from ..core.walk import Semantics
from ..neurons.schedules import ListSchedule, Schedule, schedule_from_dict
from ..neurons.signgd.sparse import MOST_MEMBERS
from .examination import Outcome, Trial, alone

GAIN = 0.7  # of the output error: what a fix has to leave less than; plans as they are leave 0.8
FLOOR = 0.03  # output error below which nothing is looked for
ENOUGH = 0.95  # agreement from which T is called large enough
RESTORED = 0.95  # of what was lost: of the agreement by a larger T, of the squared error by a plan
CLOSE = 0.25  # the same for outputs that are no classifier's: their relative error
NEAR = 1.15  # of the least error that is possible: further trials are not worth it
SUSPECTS = 4  # layers tried for one finding
LONGEST = 128  # steps
FACTORS = 2.0**8  # at most, of a scale
FINEST_ZONE = 0.5  # the dead zone of the smallest error: f(x) is held within half a step
FEWEST_ZONE = 2 / 3  # that of the fewest spikes
ALONE = 16  # samples for a layer by itself
FAR = 1.5  # from the calibrated scale, of all scales of outputs that are close enough
ALONE_GAIN = 0.4  # of its error by itself, for fixes of several layers at once


@dataclass(frozen=True, eq=False)
class Fix:
    """``node`` in place of the one of its name. ``planned``: as planning would have made it."""

    node: Neuron
    cause: str
    planned: bool
    factor: float = 1.0
    before: Timed | None = None
    text: str = ""
    what: str = ""

    def applied(self, network: SpikingNetwork) -> SpikingNetwork:
        return network.with_nodes({self.node.name: self.node})


def adequate(outcome: Outcome) -> bool:
    if outcome.agreement is not None:
        return outcome.agreement >= ENOUGH
    return outcome.error <= CLOSE


def restored(outcome: Outcome, before: Outcome) -> bool:
    """Whether a larger T is large enough, and not only a little larger than too small."""
    if outcome.agreement is None or before.agreement is None:
        return adequate(outcome)
    lost = 1 - before.agreement
    return adequate(outcome) and outcome.agreement >= 1 - (1 - RESTORED) * lost


# -- one layer -----------------------------------------------------------------------------------


def local_fix(trial: Trial, done: Collection[str], saturated: Mapping[str, float]) -> Fix | None:
    """The change of one layer that brings the outputs closest, if that is clearly closer."""
    start = trial.start.error
    if start <= FLOOR:
        return None
    network = trial.network
    nodes = {node.name: node for node in _changeable(network) if node.name not in done}
    possible = {name: trial.rerun(exact=[name]).error for name in nodes}
    suspects = sorted(possible, key=lambda name: possible[name])
    suspects = [name for name in suspects if not possible[name] > GAIN * start][:SUSPECTS]
    best: tuple[float, Fix] | None = None
    for name in suspects:
        found = _best(trial, nodes[name], possible[name])
        if found is not None and (best is None or found[0] < best[0]):
            best = found
        if best is not None and best[0] <= NEAR * min(possible.values()):
            break
    if best is None or not best[0] <= GAIN * start:
        return None
    return _told(best[1], network, trial, saturated)


def _changeable(network: SpikingNetwork) -> list[Neuron]:
    return [node for node in network.neurons if node.sized_by]


def joint_fixes(trial: Trial, saturated: Mapping[str, float]) -> list[Fix]:
    """Several layers at once, for faults that hide each other: those which, alone and fed the
    source's values, come much closer by a change, if all these changes together help."""
    if adequate(trial.start):
        return _all_scales(trial, saturated)
    network, steps = trial.network, trial.steps
    x = trial.parts[0][:ALONE]
    values = NetworkModule(network, {}).all_activations(x)
    fixes: list[Fix] = []
    for node in _changeable(network):
        inputs, want = [values[name] for name in node.inputs], values[node.name]

        def off(changed: Neuron, inputs: list[Tensor] = inputs, want: Tensor = want) -> float:
            return float((alone(changed, inputs, steps, [steps])[steps] - want).double().norm())

        now = off(node)
        tried = [(off(fix.node), fix) for fix in planned(trial, node)]
        tried += [
            (off(m.node), m) for m in (_times(node, k) for k in range(-6, 7)) if m.factor != 1
        ]
        error, fix = min(tried, key=lambda pair: (pair[0], not pair[1].planned))
        if error <= ALONE_GAIN * now:
            usual = [pair for pair in tried if pair[1].planned and pair[0] <= ALONE_GAIN * now]
            fixes.append(min(usual, key=lambda pair: pair[0])[1] if usual else fix)
    for together in (fixes, _everywhere(trial, "scale"), _everywhere(trial, "dead zone")):
        if len(together) < 2:
            continue
        outcome = trial.rerun({fix.node.name: fix.node for fix in together})
        if outcome.error <= GAIN * trial.start.error:
            return [_told(fix, network, trial, saturated) for fix in together]
    return []


def _all_scales(trial: Trial, saturated: Mapping[str, float]) -> list[Fix]:
    """Where the outputs are close enough scales are named only if all are far from the calibrated
    ones, and these come much closer; learned ones may be far, for fewer additions."""
    together = _everywhere(trial, "scale")
    off = [max(fix.factor, 1 / fix.factor) for fix in together]
    if len(off) < len(_changeable(trial.network)) or "tuning" in trial.network.provenance:
        return []
    if not off or min(off) < FAR:
        return []
    outcome = trial.rerun({fix.node.name: fix.node for fix in together})
    if outcome.error > ALONE_GAIN * trial.start.error:
        return []
    return [_told(fix, trial.network, trial, saturated) for fix in together]


def _everywhere(trial: Trial, cause: str) -> list[Fix]:
    """What is planned in all layers: scales as the calibration gives them, or dead zones of half a
    step, for networks that were planned with others."""
    nodes = trial.network.of(SignGDNeuron)
    return [fix for n in nodes for fix in planned(trial, n) if fix.cause == cause]


def _times(node: Neuron, exponent: float) -> Fix:
    """The scale or threshold of a neuron times a power of two."""
    factor = 2.0**exponent
    return Fix(node.resized(factor), node.sized_by, False, factor)


def _best(trial: Trial, node: Neuron, possible: float) -> tuple[float, Fix] | None:
    """The best change of one layer; one that is as planned wins against others nearly as good."""
    tried = [(trial.rerun({node.name: m.node}).error, m) for m in planned(trial, node)]
    tried = [(error, fix) for error, fix in tried if isfinite(error)]
    best = min(tried, key=lambda pair: pair[0], default=None)
    if best is not None:  # what was planned is preferred
        usual = [pair for pair in tried if pair[1].planned and pair[0] <= NEAR * best[0]]
        best = min(usual, key=lambda pair: pair[0], default=best)
    if best is not None and (best[0] <= NEAR * possible or _settles(best, trial)):
        return best
    free = _by_factor(trial, node)
    if best is None or (free is not None and free[0] < best[0] / NEAR):
        return free
    return best


def _settles(found: tuple[float, Fix], trial: Trial) -> bool:
    """Whether the plan brings nearly all back: a factor that does more does it for these samples.

    A network that was tuned had other values than the plan's before they were changed.
    """
    error, fix = found
    untuned = "tuning" not in trial.network.provenance
    return fix.planned and untuned and error**2 <= (1 - RESTORED) * trial.start.error**2


def planned(trial: Trial, node: Neuron) -> Iterator[Fix]:
    """The layer with one parameter as planning sets it, where it differs from that."""
    if node.kind not in PLANNED:
        return
    known = trial.network.statistics.get(node.name)
    if not known or "quantile" not in known:
        known = statistics(trial.network, trial.parts, 0)[node.name]
    yield from PLANNED[node.kind](trial.network, node, known, trial.steps)


def _planned_signgd(
    network: SpikingNetwork, node: SignGDNeuron, known: Mapping[str, Tensor], steps: int
) -> Iterator[Fix]:
    schedule = planned_schedule(network, node, network.time_steps)
    now, then = ([s(t) for t in range(1, steps + 1)] for s in (node.schedule, schedule))
    if any(abs(a - b) > 1e-3 * b for a, b in zip(now, then, strict=True)):
        yield Fix(replace(node, schedule=schedule), "schedule", True)
    scale = calibrated_scale(network, node, known)
    if _differ(node.scale, scale):
        factor = float((torch.as_tensor(scale) / torch.as_tensor(node.scale).to(scale)).median())
        asked = "range" in known or asked_scale(network, node) in ("channel", "tensor")
        yield Fix(replace(node, scale=scale), "scale", asked, factor)
    if _differ(node.resting, 0.0):
        yield Fix(replace(node, resting=0.0), "resting", True)
    if "mean" in known and _differ(node.resting, known["mean"]):
        yield Fix(replace(node, resting=known["mean"]), "resting", False)
    zone = torch.as_tensor(node.dead_zone)
    if bool((zone > FINEST_ZONE).any()):
        narrow = zone.clamp(max=FINEST_ZONE) if zone.dim() else FINEST_ZONE
        yield Fix(replace(node, dead_zone=narrow), "dead zone", True)


def _planned_group(
    network: SpikingNetwork, node: GroupNeuron, known: Mapping[str, Tensor], _: int
) -> Iterator[Fix]:
    steps = network.time_steps
    levels, trained = (node.arguments.get(name) for name in ("levels", "v_threshold"))
    if trained is not None and _differ(node.v_threshold, trained):
        factor = float(torch.as_tensor(trained / torch.as_tensor(node.v_threshold)).median())
        yield Fix(replace(node, v_threshold=trained), "threshold", True, factor)
    if levels is not None and node.members * steps != levels and levels % steps == 0:
        yield Fix(replace(node, members=levels // steps), "members", True)
    if _differ(node.initial_charge, 0.5):
        yield Fix(replace(node, initial_charge=0.5), "charge", True)
    if trained is None and "quantile" in known:
        whole = float(known["tensor_quantile"]) or 1.0
        threshold = known["quantile"].clamp(min=SMALLEST_CHANNEL * whole)
        if _differ(node.v_threshold, threshold):
            ratio = threshold / torch.as_tensor(node.v_threshold).to(threshold)
            changed = replace(node, v_threshold=threshold)
            yield Fix(changed, "threshold", True, float(ratio.median()))


PLANNED: dict[str, Callable[[SpikingNetwork, Any, Mapping[str, Tensor], int], Iterator[Fix]]] = {
    "signgd": _planned_signgd,
    "group": _planned_group,
}


def calibrated_scale(
    network: SpikingNetwork, node: SignGDNeuron, known: Mapping[str, Tensor]
) -> Tensor:
    """The scale that was planned, or that the calibration gives."""
    if "range" in known:
        return known["range"]
    whole = known["tensor_quantile"]
    if float(whole) == 0.0:
        return torch.ones_like(whole)
    kind = str(asked_scale(network, node)).partition(":")[0]
    if kind == "tensor" or (kind == "channel" and isinstance(node.scale, float)):
        return whole
    return known["quantile"].clamp(min=SMALLEST_CHANNEL * float(whole))


def asked_scale(network: SpikingNetwork, node: SignGDNeuron) -> str | float:
    """The ``scale`` of ``convert`` for this layer; old files may lack it."""
    told: Any = network.provenance.get("scale", "channel")
    if isinstance(told, Mapping):
        told = by_path({"": "fitted", **told}, node)
    return told  # type: ignore[no-any-return]


def planned_schedule(network: SpikingNetwork, node: SignGDNeuron, steps: int) -> Schedule:
    """The schedule asked for in ``convert``, the one it measured, or the default of this depth.

    Measured steps are kept in the neurons alone; so a list of as many is taken to be them.
    """
    told = network.provenance.get("schedule")
    if isinstance(told, Mapping):
        return schedule_from_dict(dict(told))
    chosen = _chosen(network) if steps == network.time_steps else ""
    own = node.schedule
    if "measured steps" in chosen and isinstance(own, ListSchedule) and len(own.values) == steps:
        return own
    fitted = asked_scale(network, node) == "fitted" and "quantile scales" not in chosen
    if fitted and steps == 1 and node.members > 1:
        return covering(node.members)
    depth = relative_depths(network.nodes)[node.name]
    return default_schedule(steps, depth, node.members, node.widest_dead_zone)


def _chosen(network: SpikingNetwork) -> str:
    """Which of several plans ``convert`` took, in the words of ``residuals.fit``; "" of a network
    that was tuned since, or where there was one alone."""
    plan: Any = network.provenance.get("plan") or {}
    return "" if "tuning" in network.provenance else str(plan.get("chosen", ""))


def _differ(a: float | Tensor, b: float | Tensor) -> bool:
    first, second = (torch.as_tensor(v).detach().double().cpu() for v in (a, b))
    try:
        difference = (first - second).abs()
    except RuntimeError:
        return True
    return bool((difference > 1e-3 * second.abs() + 1e-12).any())


def _by_factor(trial: Trial, node: Neuron) -> tuple[float, Fix] | None:
    """The scale or threshold times the best factor: powers of two, then finer ones near by."""
    errors: dict[float, float] = {0.0: trial.start.error}

    def error(exponent: float) -> float:
        if exponent not in errors:
            found = trial.rerun({node.name: _times(node, exponent).node}).error
            errors[exponent] = found if isfinite(found) else float("inf")
        return errors[exponent]

    for direction in (1.0, -1.0):
        best, exponent = errors[0.0], direction
        while abs(exponent) <= log2(FACTORS):
            now = error(exponent)
            if now > 1.3 * best:
                break
            best, exponent = min(best, now), exponent + direction
    for width in (0.5, 0.25, 0.12):
        at = min(errors, key=lambda e: errors[e])
        error(at - width), error(at + width)
    at = min(errors, key=lambda e: errors[e])
    if at == 0.0:
        return None
    return errors[at], _times(node, at)


def _told(fix: Fix, network: SpikingNetwork, trial: Trial, saturated: Mapping[str, float]) -> Fix:
    """The fix with its verdict line."""
    name = fix.node.name
    before: Any = network[name]
    after: Any = fix.node
    share = saturated.get(name, 0.0)
    if fix.cause == before.sized_by:
        up = fix.factor > 1
        what = f"{'raise' if up else 'lower'} it by {fix.factor if up else 1 / fix.factor:.2g}"
        if fix.cause == "threshold" and fix.planned and "v_threshold" in after.arguments:
            what += ", to the one that the network was trained with"
        why = (
            f"{share:.0%} of values saturate"
            if up and share >= 0.005
            else ("its steps are too small" if up else "its steps are too large")
        )
        if fix.cause == "threshold" and not (up and share >= 0.005):
            why = "its levels do not fit the values"
        later = _or_longer(before, after, trial) if up and hasattr(before, "schedule") else None
        if later is not None:
            what += f", or T >= {later}"
        return replace(
            fix, before=before, text=f"{fix.cause} of '{name}': {why}; {what}", what=what
        )
    if fix.cause == "schedule":
        kind = "default" if "measured steps" in _chosen(network) else "one planned"
        what = f"take the {kind} for T = {network.time_steps}"
        why = "its step sizes are not those planned for this depth"
    elif fix.cause == "resting":
        what = "start from 0" if fix.planned else "start from the mean of the calibration"
        value = float(torch.as_tensor(before.resting).double().mean())
        why = f"v(0) is {value:.3g} on average, which the steps do not compensate for"
    elif fix.cause == "dead zone":
        value = before.widest_dead_zone
        more = _or_members(before, after, trial)
        what = f"lower it to {FINEST_ZONE:g}" + ("" if more is None else f", or members >= {more}")
        why = f"values within {value:.3g} of its last step are not sent"
    elif fix.cause == "charge":
        value = float(torch.as_tensor(before.initial_charge).double().mean())
        what, why = "set it to 0.5 of theta", f"v(0) is {value:.3g} theta on average"
    else:
        what = f"set them to {after.members}, so that m T = L = {after.arguments['levels']}"
        why = f"m T is {before.members} x {network.time_steps}"
    label = {"resting": "resting value", "charge": "initial charge"}.get(fix.cause, fix.cause)
    return replace(fix, before=before, text=f"{label} of '{name}': {why}; {what}", what=what)


def _or_longer(before: SignGDNeuron, after: SignGDNeuron, trial: Trial) -> int | None:
    """The least T, doubled, at which the layer as it is comes as close alone as fixed."""
    steps, network = trial.steps, trial.network
    off = _by_itself(trial, before)
    aim = 1.1 * off(after, steps)
    t = 2 * steps
    while t <= LONGEST:
        node = replace(before, schedule=planned_schedule(network, before, t))
        if off(node, t) <= aim:
            return t
        t *= 2
    return None


def _or_members(before: SignGDNeuron, after: SignGDNeuron, trial: Trial) -> int | None:
    """The fewest members with which the layer as it is comes as close alone as fixed."""
    off = _by_itself(trial, before)
    aim = 1.1 * off(after, trial.steps)
    for members in range(before.members + 1, MOST_MEMBERS + 1):
        if off(replace(before, members=members), trial.steps) <= aim:
            return members
    return None


def _by_itself(trial: Trial, node: Neuron) -> Callable[[Neuron, int], float]:
    """The error of neurons in the place of ``node`` fed the source's values, after t steps."""
    x = trial.parts[0][:ALONE]
    values = NetworkModule(trial.network, {}).all_activations(x)
    inputs, want = [values[name] for name in node.inputs], values[node.name]

    def off(changed: Neuron, t: int) -> float:
        return float((alone(changed, inputs, t, [t])[t] - want).double().norm())

    return off


# -- silence -------------------------------------------------------------------------------------


def silenced(network: SpikingNetwork, x: Tensor, steps: int) -> str | None:
    """What a dead zone would make of signGD neurons that fire at every step, measured; None where
    there are none, or the paper's are asked for."""
    dense = [n for n in network.of(SignGDNeuron) if n.steady and not n.momentum]
    if not dense or network.provenance.get("preset") == "paper":
        return None
    trial, sent = Trial(network, x, steps), 0.0
    changes = {n.name: replace(n, dead_zone=FEWEST_ZONE) for n in dense}

    def listen(told: Sent) -> None:
        nonlocal sent
        if told.node.name in changes and told.events is not None:
            sent += float(told.events.spikes.double().sum())

    with listening(trial, listen):
        after = trial.rerun(changes)
    neurons = sum(n.values for n in dense)
    spikes = sum(n.values * n.members for n in dense) * steps
    return (
        "signGD neurons without a dead zone fire at every step, whatever their value: with "
        f"dead_zone=2/3 one sends {sent / len(x) / neurons:.2f} spikes instead of "
        f"{spikes / neurons:.2f}, and the output error is {after.error:.4f} instead of "
        f"{trial.start.error:.4f}; convert(..., dead_zone=2/3)."
    )


# -- more steps ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Longer:
    network: SpikingNetwork
    outcome: Outcome
    what: str


def longer(network: SpikingNetwork, x: Tensor, steps: int, now: Outcome) -> Longer | None:
    """The network planned for the least T, doubled, that is large enough; None where none is.

    Run longer as it is, if it was planned for more steps than it was run for.
    """
    if network.time_steps > steps:
        outcome = Trial(network, x, network.time_steps).start
        if adequate(outcome):
            t = least(network, x, steps)
            return Longer(network, outcome, f"T >= {t}: it was planned for {network.time_steps}")
    tried: list[Longer] = []
    for t in _lengths(network, steps):
        changed = with_steps(network, t, x)
        outcome = Trial(changed, x, t).start
        what = f"T >= {t}, replanned" if t > steps else f"T = {t}, replanned"
        tried.append(Longer(changed, outcome, what))
        if restored(outcome, now):
            return tried[-1]
    best = min(tried, key=lambda found: found.outcome.error, default=None)
    if best is None or not best.outcome.error <= GAIN * now.error:
        return None
    return best


def least(network: SpikingNetwork, x: Tensor, steps: int) -> int:
    """The least T, doubled from ``steps``, at which a network planned for more is close enough."""
    t = steps
    while t < network.time_steps:
        if adequate(Trial(network, x, t).start):
            return t
        t *= 2
    return network.time_steps


def _lengths(network: SpikingNetwork, steps: int) -> list[int]:
    found = [steps * 2**k for k in range(1, 8) if steps * 2**k <= LONGEST]
    levels = [node.arguments.get("levels") for node in network.of(GroupNeuron)]
    if levels and all(levels) and len(levels) == len(network.neurons):
        # at T = 1 the network computes what it was trained to compute
        return [1] if steps > 1 else []
    return found


def with_steps(network: SpikingNetwork, steps: int, x: Tensor) -> SpikingNetwork:
    """The network planned for other steps: schedules, members and thresholds of ReLUs, and where
    scales were fitted for its T the better ones of these and the quantiles, as ``convert`` does."""
    nodes: dict[str, Node] = {}
    for node in network.of(SignGDNeuron):
        nodes[node.name] = replace(node, schedule=planned_schedule(network, node, steps))
    for group in network.of(GroupNeuron):
        levels = group.arguments.get("levels") or DEFAULT_LEVELS
        signed = group.signed if group.trained else steps > 1
        members = max(1, round(levels / steps))
        nodes[group.name] = replace(group, members=members, signed=signed)
    changed = _fitted(network.with_nodes(nodes).replace(time_steps=steps), x)
    if all(node.trained for node in network.of(GroupNeuron)):
        return changed
    known = network.statistics
    if any(n.name not in known for n in changed.neurons):
        known = statistics(network, [x], 0)
    return fit(changed, known, [x], 0)


def _fitted(network: SpikingNetwork, x: Tensor) -> SpikingNetwork:
    """With the scales and step sizes of the least error on x, if they were chosen so before."""
    known = network.statistics
    signs = [n for n in network.of(SignGDNeuron) if "range" in known.get(n.name, ())]
    free = not isinstance(network.provenance.get("schedule"), Mapping)
    if not free or not signs or "tuning" in network.provenance or any(n.momentum for n in signs):
        return network
    usual = {n.name: replace(n, scale=by_quantile(known[n.name])) for n in signs}
    network = residuals.fit(network, network.with_nodes(usual), x)
    scales = {n.name: torch.as_tensor(n.scale) for n in network.of(SignGDNeuron)}
    seen = {k: {**v, "range": scales[k]} if k in usual else v for k, v in known.items()}
    return network.replace(statistics=seen)


# -- the description -----------------------------------------------------------------------------


Told = tuple[str, str, str]  # cause, what is wrong, the fix


def describe(node: Node, true: Node | None) -> Told:
    """The finding for a node that does not compute what the reference does."""
    where = f"'{node.name}'"
    if true is None:
        return (
            "wiring",
            f"wiring of {where}: its type or its inputs differ from the source",
            "convert the model again",
        )
    return node.visit(_Beside(true), [])


class _Beside(Semantics[Told]):
    """``describe`` of a node beside the ``true`` one, which is of the same role."""

    def __init__(self, true: Any) -> None:
        self.true = true

    def constant(self, node: Constant) -> Told:
        what = f"constant '{node.name}' differs from the source"
        return "constant", what, "take the source's value"

    def linear(self, node: Linear, inputs: list[Any]) -> Told:
        return _linear(node, self.true)

    def function(self, node: Function, inputs: list[Any]) -> Told:
        return _function(node, self.true)

    neuron = function


def _function(node: Function, true: Function) -> Told:
    where = f"'{node.name}'"
    ours, theirs = node.function.name, true.function.name
    if ours != theirs:
        return (
            "function",
            f"function of {where}: it is {ours}, the source has {_call(true)}",
            f"take {_call(true)}",
        )
    names = [
        name
        for name in dict.fromkeys([*node.arguments, *true.arguments])
        if name not in ("floor", "ceiling")
        and not _same(node.arguments.get(name), true.arguments.get(name))
    ]
    cause = "function"
    if {"negative_slope", "weight"} & set(names):
        cause = "slope"
    elif "norm" in ours:
        cause = "norm"
    pairs = [f"{k} = {_value(node.arguments.get(k))}" for k in names]
    right = ", ".join(f"{k} = {_value(true.arguments.get(k))}" for k in names)
    return (
        cause,
        f"{cause} of {where}: {ours} with {', '.join(pairs)}, the source has {right}",
        f"take {right}",
    )


def _call(node: Function) -> str:
    """``gelu(approximate='tanh')``."""
    told = [f"{k}={v!r}" for k, v in node.arguments.items() if isinstance(v, (int, float, str))]
    return f"{node.function.name}({', '.join(told)})" if told else node.function.name


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of mean {float(value.double().mean()):.4g}"
    return "its default" if value is None else repr(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        return a.shape == b.shape and bool(torch.equal(a.cpu(), b.cpu()))
    return bool(a == b)


def _linear(node: Linear, true: Linear) -> Told:
    where, take = f"'{node.name}'", "take the source's"
    if node.op != true.op or dict(node.attributes) != dict(true.attributes):
        told = node.op if node.op != true.op else f"{node.op} with other options"
        return (
            "weights",
            f"operation {where}: it is {told}, the source has {true.op}",
            "take the source's operation",
        )
    have, want = (n.tensors.get("weight") for n in (node, true))
    shift = not _close(node.tensors.get("bias"), true.tensors.get("bias"))
    if have is None or want is None or have.shape != want.shape:
        if have is None and want is None and shift:
            return "norm", f"shift of {where} differs from the source", f"{take} bias"
        return "weights", f"weights of {where} have another shape", f"{take} weights"
    dim = 1 if node.op == "conv_transpose" and want.dim() > 1 else 0
    if node.op == "affine" or want.dim() < 2:
        a, b = (w.detach().double().reshape(-1, 1) for w in (have, want))
    else:
        a, b = (w.detach().double().movedim(dim, 0).flatten(1) for w in (have, want))
    if _close(a, b):
        return (
            "norm",
            f"norm or bias of {where}: the weights are the source's, the offsets of the channels "
            "are not",
            f"{take} bias",
        )
    factor = (a * b).sum(1) / b.square().sum(1).clamp(min=1e-300)
    if _close(a, factor.unsqueeze(1) * b):
        low, high = float(factor.min()), float(factor.max())
        if high - low <= 1e-3 * max(abs(low), abs(high)):
            told = (
                "the source's with the opposite sign"
                if abs(low + 1) < 1e-3
                else (f"{low:.4g} times the source's")
            )
            return "weights", f"weights of {where} are {told}", f"{take} weights"
        if bool((factor.abs() - 1).abs().max() < 1e-3):
            turned = int((factor < 0).sum())
            return (
                "weights",
                f"weights of {where}: {turned} of {len(factor)} channels have the opposite sign",
                f"{take} weights",
            )
        return (
            "norm",
            f"norm of {where}: its channels are {low:.4g} to {high:.4g} times the source's, as "
            "after a norm that was folded wrongly or not at all",
            f"{take} weights and bias",
        )
    told = "are not the source's" if _order(a, b) is None else str(_order(a, b))
    if told == "are not the source's":
        if have.dim() > 1 and have.shape == have.mT.shape and _close(have.mT, want):
            told = "are transposed"
        elif have.dim() > 1 and not dim:
            moved = _order(*(w.detach().double().movedim(1, 0).flatten(1) for w in (have, want)))
            told = told if moved is None else moved.replace("channels", "input channels")
    if told == "are not the source's":
        off = float((a - b).norm() / b.norm().clamp(min=1e-300))
        told = f"differ from the source's by {off:.2g} of their norm"
    return "weights", f"weights of {where} {told}", f"{take} weights"


def _order(a: Tensor, b: Tensor) -> str | None:
    """Whether the rows of a are those of b in another order."""
    if len(a) < 2 or len(a) > 4096:
        return None
    near = torch.cdist(a, b).argmin(1)
    moved = int((near != torch.arange(len(near), device=near.device)).sum())
    if moved and len(near.unique()) == len(near) and _close(a, b[near]):
        return f"have {moved} of {len(near)} channels in another order"
    return None


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        some = a if b is None else b
        return some is None or not bool(some.any())
    if a.shape != b.shape:
        return False
    first, second = a.detach().double(), b.detach().double()
    return float((first - second).norm()) <= 1e-4 * float(second.norm())
