"""Planning one layer: the neuron that computes a function, with its scale, threshold and schedule.

``METHODS`` holds one function for each method; the walk that calls them is in ``planner``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..core.network import (
    Function,
    GroupNeuron,
    Growth,
    Neuron,
    Node,
    SignGDNeuron,
    SubgradientNeuron,
)
from ..errors import InputError
from ..neurons.group import group_ceiling
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.schedules import ExponentialSchedule, InverseSchedule, Schedule
from ..neurons.signgd import DEAD_ZONE, MOST_MEMBERS, MOST_SPARSE
from .calibration import with_quantiles
from .fitting import bound_of, fitted_range
from .rules import NotConvertible

SMALLEST_CHANNEL = 0.02  # of the whole tensor's scale
DEFAULT_LEVELS = 8  # m T for a ReLU that was not trained with levels
AVERAGING = InverseSchedule(1.0, delay=1.0)  # a running mean

Kind = TypeVar("Kind", bound=Neuron)


class SaturationWarning(UserWarning):
    """Neurons whose values lie beyond what the schedule can reach."""


class CalibrationWarning(UserWarning):
    """The calibration data are too few or leave many channels silent."""


class PlanWarning(UserWarning):
    """A network whose plan has too few signs or steps to follow its source."""


class LevelsWarning(UserWarning):
    """Group neurons whose m T is not the L that the network was trained with."""


def default_schedule(
    time_steps: int, depth: float = 1.0, members: int = 1, dead_zone: float = 0.0
) -> ExponentialSchedule:
    """Step sizes for T steps, in units of a neuron's scale, at a relative depth in [0, 1].

    The last neurons decay to 1.1 / T of their first step in T steps, but by no more than 0.895 a
    step: few steps are better spent nearly equal. From T = 16 on the first neurons decay so in
    half the time, since a layer can settle only after the layers before it. The steps add up to
    one scale at T = 4 and to two from T = 32 on: range costs resolution. Several members reach
    nearly twice the step, and settle faster the more they are. The numbers were chosen on
    validation images of the example networks.

    With a dead zone a neuron holds its target within theta of its step, not the whole of it, and
    range costs no spikes: the steps decay further, and add up to more.
    """
    if dead_zone:
        return _sparse_schedule(time_steps, depth, members, dead_zone)
    if members > 1:
        decay = max(0.3, 1 - 0.125 * members, 0.02 ** (1 / max(1, time_steps - 1)))
        return ExponentialSchedule(0.52 if time_steps == 1 else 0.42, decay)
    if time_steps == 1:
        return ExponentialSchedule(0.5, 0.5)
    last = max(1.1 / time_steps, 0.895 ** (time_steps - 1))
    return _decaying(time_steps, depth, last, min(2.0, 1.0 + math.log2(time_steps / 4) / 3))


def covering(members: int) -> ExponentialSchedule:
    """One step of several members whose reach is the scale."""
    return ExponentialSchedule(1 / (2 - 2.0 ** (1 - members)), 0.5)


def _decaying(time_steps: int, depth: float, last: float, total: float) -> ExponentialSchedule:
    """Steps that add up to ``total`` and decay to ``last`` of the first, sooner in the front."""
    ahead = 0.5 * min(1.0, max(0.0, (time_steps - 8) / 8))
    settled = max(2.0, time_steps * (1 - ahead * (1 - depth)))
    decay = last ** (1.0 / (settled - 1))
    return ExponentialSchedule(total * (1 - decay) / (1 - decay**time_steps), decay)


def _sparse_schedule(
    time_steps: int, depth: float, members: int, dead_zone: float
) -> ExponentialSchedule:
    """A second step of m members begins about where the finest of the first ended."""
    if time_steps == 1:
        return ExponentialSchedule(0.6 if members > 6 else 0.52, 0.5)
    if members > 1:
        decay = max(0.02 ** (1 / (time_steps - 1)), min(0.375, 2.0 ** (2 - members)))
        return ExponentialSchedule(0.75 if members > 5 else 0.55, decay)
    last = 1.1 / time_steps
    if dead_zone > 0.7:  # a wide zone holds moving targets by larger steps alone
        last = max(last, 0.86 ** (time_steps - 1))
    doublings = math.log2(time_steps / 4)
    total = min(2.1, 1.0 + doublings * (0.55 if doublings > 0 else 1 / 3))
    return _decaying(time_steps, depth, min(0.9, last), total)


def relative_depths(nodes: Sequence[Node]) -> dict[str, float]:
    """For each node the most neurons on a way to it from the input, over the most of any."""
    depths: dict[str, int] = {}
    for node in nodes:
        before = max((depths[name] for name in node.inputs), default=-1)
        depths[node.name] = before + isinstance(node, Function)
    deepest = max(1, *depths.values())
    return {name: max(depth, 0) / deepest for name, depth in depths.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """A function to be planned: ``node``, what calibration saw of it, and what is asked for it.

    ``seen`` is its entry of ``calibration.statistics``, ``depth`` its relative depth; ``mixed``
    says whether the network has neurons of several methods. The others are as in ``Settings``,
    ``schedule`` and ``members`` None where the method chooses.
    """

    node: Function
    seen: Mapping[str, Tensor]
    depth: float
    mixed: bool
    time_steps: int
    schedule: Schedule | None
    scale: str | float
    resting: str
    momentum: float
    members: int | None
    signed: bool | None
    gelu: str
    guard: bool
    dead_zone: float = DEAD_ZONE

    def make(self, kind: type[Kind], **more: Any) -> Kind:
        """A neuron for the function."""
        return kind(**_common(self.node), **more)

    def guarded(self) -> Layer:
        """With a floor under arguments that are positive in the source network.

        Decoded, they may be negative or near zero for some steps, where roots and quotients have
        no value, or one so large that the neuron cannot come back.
        """
        floor = self.seen.get("floor")
        if not self.guard or floor is None or "floor" in self.node.arguments:
            return self
        arguments = {**self.node.arguments, "floor": float(floor)}
        return replace(self, node=replace(self.node, arguments=arguments))

    def steps(self, members: int = 1) -> Schedule:
        """The schedule asked for, or the default one."""
        if self.schedule is not None:
            return self.schedule
        if self.scale == "fitted" and self.time_steps == 1 and members > 1:
            return covering(members)
        return default_schedule(self.time_steps, self.depth, members, self.dead_zone)

    def unit(self, members: int = 1) -> float | Tensor:
        """The scale of a neuron that decodes: a number, or by channel or element."""
        if isinstance(self.scale, (int, float)):
            return float(self.scale)
        if self.scale == "unit":
            return 1.0
        if self.scale == "fitted":
            return self.fitted(members)
        if self.scale == "published":
            if self.node.function.name != "relu":
                return 1.0
            maximum = self.seen["element_maximum"]
            return maximum.where(maximum > 1e-5, 1.0)
        # a channel that calibration hardly saw may still wake up
        if self.scale.startswith("channel"):
            return by_quantile(self._seen_at_share())
        return float(self._seen_at_share()["tensor_quantile"]) or 1.0

    def _seen_at_share(self) -> Mapping[str, Tensor]:
        """With the quantiles that "channel:0.999" and the like ask for."""
        assert isinstance(self.scale, str)
        share = self.scale.partition(":")[2]
        return with_quantiles(self.seen, float(share)) if share else self.seen

    def fitted(self, members: int) -> float | Tensor:
        """The range of the least expected error: ``fitting``."""
        seen, bound = self.seen, bound_of(self.node)
        largest = torch.maximum(seen["maximum"].abs(), seen["minimum"].abs())
        if members == 1 and (math.isinf(bound) or float(largest.max()) < bound / 2):
            return by_quantile(seen)  # the default steps of single signs are made for it
        # of all its signs; the steps after the first are made for what is left
        finest = 1.0 / (2.0 ** min(24, max(members, 5) * self.time_steps) - 1)
        samples = int(seen["samples"])
        found = fitted_range(self.node, seen["counts"], largest, finest, self.dead_zone, samples)
        return found.to(largest.dtype).reshape(largest.shape)

    def threshold(self) -> float | Tensor:
        """Of a group neuron: where the search of ``thresholds.fit`` begins."""
        if isinstance(self.scale, (int, float)):
            return float(self.scale)
        if self.scale == "unit":
            return 1.0
        seen = self.seen if self.scale == "fitted" else self._seen_at_share()
        whole = float(seen["tensor_quantile"]) or 1.0
        by_channel = self.scale.startswith(("fitted", "channel")) and self.node.channel is not None
        return seen["quantile"].clamp(min=SMALLEST_CHANNEL * whole) if by_channel else whole

    def start(self) -> float | Tensor:
        """The resting value."""
        return self.seen["mean"] if self.resting == "mean" else 0.0


def by_quantile(seen: Mapping[str, Tensor]) -> float | Tensor:
    """By channel the 99.95 % quantile, no less than a fiftieth of the tensor's."""
    whole = float(seen["tensor_quantile"])
    return seen["quantile"].clamp(min=SMALLEST_CHANNEL * whole) if whole else 1.0


def signgd(layer: Layer) -> SignGDNeuron:
    """For any function."""
    node, members = layer.node, layer.members or 1
    most = MOST_SPARSE if layer.dead_zone else MOST_MEMBERS
    if members > most:
        raise InputError(
            f"signGD neurons send at most {most} signs per step, but members is {members} at "
            f"'{node.name}'."
        )
    if members > 1 and layer.momentum:
        raise InputError(
            f"momentum is defined for one sign per step, but members is {members} at "
            f"'{node.name}'; leave one of them out."
        )
    if layer.gelu == "sigmoid" and node.function.name == "gelu":
        node = replace(node, function=NONLINEARITIES["sigmoid_gelu"], arguments={})
    return (
        replace(layer, node=node)
        .guarded()
        .make(
            SignGDNeuron,
            schedule=layer.steps(members),
            scale=layer.unit(members),
            resting=layer.start(),
            momentum=layer.momentum,
            members=members,
            dead_zone=layer.dead_zone,
        )
    )


def group(layer: Layer) -> GroupNeuron | Growth:
    """For QCFS, ReLU, ReLU6 and clamps at 0; what selects passes counts of spikes."""
    node = layer.node
    if node.function.selects:
        return layer.make(Growth)
    most = group_ceiling(node)
    if most is None:
        raise NotConvertible(
            f"{node.function.name} at '{node.name}': group neurons compute only QCFS, ReLU, "
            "ReLU6, clamp(x, 0, b), and functions that select an input, such as max pooling"
        )
    trained, signed = node.arguments.get("v_threshold"), layer.signed
    if signed is None:  # a network trained for group neurons gets those it was trained for
        signed = trained is None and layer.time_steps > 1
    neuron = layer.make(
        GroupNeuron,
        members=_group_members(layer, node.arguments.get("levels")),
        v_threshold=1.0 if trained is None else trained,
        signed=signed,
    )
    return neuron if trained is not None else neuron.fitted(layer.threshold(), 0.5)


def _group_members(layer: Layer, levels: int | None) -> int:
    """m with m T = L, or the m asked for; a network away from L is told so."""
    steps = layer.time_steps
    members = layer.members or max(1, round((levels or DEFAULT_LEVELS) / steps))
    if levels is not None and members * steps != levels:
        warnings.warn(
            f"'{layer.node.name}' was trained with L = {levels} levels, but m T = {members} x "
            f"{steps} = {members * steps}; the group neuron then computes another function. "
            f"Choose time_steps that divide {levels}, or members with members * time_steps "
            f"= {levels}.",
            LevelsWarning,
            stacklevel=9,
        )
    return members


def subgradient(layer: Layer) -> SubgradientNeuron:
    """The rate-coded baseline, for ReLU."""
    if layer.node.function.name != "relu":
        raise NotConvertible(
            f"{layer.node.function.name} at '{layer.node.name}': the rate-coded baseline "
            "computes only ReLU"
        )
    schedule = None if layer.mixed else layer.schedule
    return layer.make(SubgradientNeuron, schedule=schedule or AVERAGING, scale=layer.unit())


class Method(NamedTuple):
    """``plan`` makes the neuron, or raises NotConvertible with why and the fix; ``reads`` names
    the arguments of ``convert`` that it uses, among schedule, momentum, resting, members,
    dead_zone and signed.
    """

    plan: Callable[[Layer], Neuron]
    reads: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "signgd": Method(signgd, ("schedule", "momentum", "resting", "members", "dead_zone")),
    "group": Method(group, ("members", "signed")),
    "subgradient": Method(subgradient, ("schedule",)),
}


def _common(node: Function) -> dict[str, Any]:
    """The fields that a function and the neuron for it share."""
    return {f.name: getattr(node, f.name) for f in fields(Function)}
