"""Planning: functions become neurons, with their scales, resting values and schedules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..core.network import (
    Average,
    Encoder,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
    leaves,
)
from ..errors import UnsupportedOperation
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.schedules import ExponentialSchedule, InverseSchedule, Schedule

METHODS = ("signgd", "group", "subgradient")
CODINGS = ("exact", "real", "spike", "poisson")
SCALES = ("channel", "tensor", "published", "unit")
Statistics = Mapping[str, Mapping[str, Tensor]]


class SaturationWarning(UserWarning):
    """Neurons whose values lie beyond what the schedule can reach."""


class LevelsWarning(UserWarning):
    """Group neurons whose m T is not the L that the network was trained with."""


@dataclass(frozen=True)
class Plan:
    """What ``convert`` decides on; see there for the meaning of each field."""

    method: str | Mapping[str, str]
    time_steps: int
    schedule: Schedule | None  # None: the default, which depends on the depth
    input_coding: str
    input_scale: float
    scale: str
    resting: str
    momentum: float
    members: int | Mapping[str, int] | None
    gelu: str
    guard: bool
    seed: int
    signed: bool | None = None
    keep: tuple[str, ...] = ()


def default_schedule(time_steps: int, depth: float = 1.0, members: int = 1) -> ExponentialSchedule:
    """Step sizes for T steps, in units of a neuron's scale, at a relative depth in [0, 1].

    The last neurons decay to 1.1 / T of their first step in T steps, but by no more than 0.895 a
    step: few steps are better spent nearly equal. From T = 16 on the first neurons decay so in
    half the time, since a layer can settle only after the layers before it. The steps add up to
    one scale at T = 4 and to two from T = 32 on: range costs resolution. Several members reach
    nearly twice the step, and settle faster the more they are. The numbers were chosen on
    validation images of the example networks.
    """
    if members > 1:
        decay = max(0.3, 1 - 0.125 * members, 0.02 ** (1 / max(1, time_steps - 1)))
        return ExponentialSchedule(0.52 if time_steps == 1 else 0.42, decay)
    if time_steps == 1:
        return ExponentialSchedule(0.5, 0.5)
    ahead = 0.5 * min(1.0, max(0.0, (time_steps - 8) / 8))
    settled = max(2.0, time_steps * (1 - ahead * (1 - depth)))
    last = max(1.1 / time_steps, 0.895 ** (time_steps - 1))
    decay = last ** (1.0 / (settled - 1))
    total = min(2.0, 1.0 + math.log2(time_steps / 4) / 3)
    return ExponentialSchedule(total * (1 - decay) / (1 - decay**time_steps), decay)


def relative_depths(nodes: Sequence[Node]) -> dict[str, float]:
    """For each node the most neurons on a way to it from the input, over the most of any."""
    depths: dict[str, int] = {}
    for node in nodes:
        before = max((depths[name] for name in node.inputs), default=-1)
        depths[node.name] = before + isinstance(node, Function)
    deepest = max(1, *depths.values())
    return {name: max(depth, 0) / deepest for name, depth in depths.items()}


def plan(network: SpikingNetwork, found: Statistics, p: Plan) -> SpikingNetwork:
    """Every function of ``network`` replaced by a neuron; running means where rate meets value."""
    return _Planner(network, found, p).run()


class _Planner:
    def __init__(self, network: SpikingNetwork, found: Statistics, p: Plan) -> None:
        self.network, self.found, self.p = network, found, p
        self.nodes: list[Node] = []
        self.names = {node.name for node in network.nodes}
        self.means: dict[str, str] = {}  # a rate to the running mean of it
        self.coding: dict[str, str] = {}  # "static" | "decoded" | "rate"
        self.now: dict[str, str] = {}  # a source value to the node that holds it here
        self.blockers: list[str] = []
        self.saturated: list[str] = []
        self.depths = relative_depths(network.nodes)

    def run(self) -> SpikingNetwork:
        for node in self.network.nodes:
            if isinstance(node, Input):
                self._input(node)
            elif isinstance(node, Linear):
                self._linear(node)
            elif isinstance(node, Function):
                self._neuron(node)
            else:
                self._emit(node, "static")
        if self.blockers:
            raise UnsupportedOperation(
                "these cannot be converted by the chosen method:\n  " + "\n  ".join(self.blockers),
                blockers=self.blockers,
            )
        if self.saturated:
            warnings.warn(
                "the step sizes add up to less than these neurons' values: "
                + "; ".join(self.saturated)
                + ". They saturate. Choose scale='channel' or 'tensor', or a longer schedule.",
                SaturationWarning,
                stacklevel=4,
            )
        outputs = _renamed(self.network.outputs, lambda name: self._decoded(self.now[name]))
        assert leaves(outputs)
        return self.network.replace(nodes=tuple(self.nodes), outputs=outputs)

    def _schedule(self, name: str, members: int = 1) -> Schedule:
        if self.p.schedule is not None:
            return self.p.schedule
        return default_schedule(self.p.time_steps, self.depths[name], members)

    def _emit(self, node: Node, coding: str, holds: str | None = None) -> str:
        self.nodes.append(node)
        self.coding[node.name] = coding
        self.now[holds or node.name] = node.name
        return node.name

    def _decoded(self, name: str) -> str:
        """The value itself; a rate is averaged first."""
        if self.coding[name] != "rate":
            return name
        if name not in self.means:
            mean = self.means[name] = self._unique(f"{name}.mean")
            shape = next(node.shape for node in self.nodes if node.name == name)
            self.nodes.append(Average(name=mean, inputs=(name,), shape=shape))
            self.coding[mean] = "decoded"
        return self.means[name]

    def _unique(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _input(self, node: Input) -> None:
        p = self.p
        self._emit(node, "static")
        if p.input_coding == "exact":
            return
        name = self._unique("input.encode")
        common: dict[str, Any] = dict(name=name, inputs=("input",), shape=node.shape)
        if p.input_coding == "real":
            # unless told otherwise a running mean, which has the whole input from step 1 on
            schedule = p.schedule or InverseSchedule(1.0)
            encoder: Node = Encoder(**common, coding="real", schedule=schedule, momentum=p.momentum)
            self._emit(encoder, "decoded", "input")
        elif p.input_coding == "poisson":
            rate = p.method == "group"
            encoder = Encoder(
                **common, coding="poisson", scale=p.input_scale, seed=p.seed, per_step=rate
            )
            self._emit(encoder, "rate" if rate else "decoded", "input")
        elif p.input_coding == "spike":
            encoder = SignGDNeuron(
                **common,
                function=NONLINEARITIES["identity"],
                schedule=self._schedule("input"),
                scale=p.input_scale,
                momentum=p.momentum,
            )
            self._emit(encoder, "decoded", "input")

    def _linear(self, node: Linear) -> None:
        names = [self.now[name] for name in node.inputs]
        codings = {self.coding[name] for name in names}
        if {"decoded", "rate"} <= codings:
            names = [self._decoded(name) for name in names]
            codings = {"decoded"}
        coding = next((c for c in ("decoded", "rate") if c in codings), "static")
        self._emit(replace(node, inputs=tuple(names)), coding)

    def _method(self, node: Function) -> str:
        method = self.p.method
        if isinstance(method, str):
            return method
        found: str | None = by_path(method, node)
        return found or "signgd"

    def members_of(self, node: Function) -> int | None:
        """The m asked for at a neuron, None where the choice is ours."""
        members = self.p.members
        if members is None or isinstance(members, int):
            return members
        found: int | None = by_path(members, node)
        return found

    def _neuron(self, node: Function) -> None:
        names = [self.now[name] for name in node.inputs]
        if any(belongs(node, path) for path in self.p.keep):
            self._keep(node)
            return
        method = self._method(node)
        if method == "group":
            self._group(replace(node, inputs=tuple(names)))
            return
        node = replace(node, inputs=tuple(self._decoded(name) for name in names))
        if method == "subgradient":
            self._subgradient(node)
        else:
            self._signgd(node)

    def _keep(self, node: Function) -> None:
        """The function as it is, of what its inputs decode to so far."""
        names = tuple(self._decoded(self.now[name]) for name in node.inputs)
        coding = "decoded" if any(self.coding[name] == "decoded" for name in names) else "static"
        self._emit(self._guarded(replace(node, inputs=names)), coding)

    def _signgd(self, node: Function) -> None:
        row = node.function
        if self.p.gelu == "sigmoid" and row.name == "gelu":
            row, node = NONLINEARITIES["sigmoid_gelu"], replace(node, arguments={})
        members = self.members_of(node) or 1
        neuron = SignGDNeuron(
            **_common(self._guarded(replace(node, function=row))),
            schedule=self._schedule(node.name, members),
            scale=self._scale(node),
            resting=self._resting(node),
            momentum=self.p.momentum,
            members=members,
        )
        self._emit(neuron, "decoded")
        if self.p.schedule is not None:  # the default one is made for the scale
            self._check_range(neuron)

    def _guarded(self, node: Function) -> Function:
        """The function with a floor under arguments that are positive in the source network.

        Decoded, they may be negative or near zero for some steps, where roots and quotients have
        no value, or one so large that the neuron cannot come back.
        """
        floor = self.found[node.name].get("floor")
        if not self.p.guard or floor is None or "floor" in node.arguments:
            return node
        return replace(node, arguments={**node.arguments, "floor": float(floor)})

    def _check_range(self, neuron: SignGDNeuron) -> None:
        found = self.found[neuron.name]
        largest = torch.maximum(found["maximum"].abs(), found["minimum"].abs()).max()
        total = sum(neuron.schedule(t) for t in range(1, self.p.time_steps + 1))
        total *= 2 - 2.0 ** (1 - neuron.members)
        reach = total * float(torch.as_tensor(neuron.scale).max())
        if float(largest) > reach:
            self.saturated.append(
                f"{neuron.function.name} at '{neuron.name}' is up to {float(largest):.3g}, its "
                f"reach {reach:.3g}"
            )

    def _scale(self, node: Function) -> float | Tensor:
        found = self.found[node.name]
        if self.p.scale == "unit":
            return 1.0
        if self.p.scale == "published":
            if node.function.name != "relu":
                return 1.0
            maximum = found["element_maximum"]
            return torch.where(maximum <= 1e-5, torch.ones_like(maximum), maximum)
        whole = found["tensor_quantile"]
        if float(whole) == 0.0:
            return 1.0
        if self.p.scale == "tensor":
            return float(whole)
        # a channel that calibration hardly saw may still wake up
        return found["quantile"].clamp(min=SMALLEST_CHANNEL * float(whole))

    def _resting(self, node: Function) -> float | Tensor:
        if self.p.resting == "mean":
            return self.found[node.name]["mean"]
        return 0.0

    def _group(self, node: Function) -> None:
        name = node.function.name
        if node.function.selects:
            self._emit(Growth(**_common(node)), "rate")
            return
        if name not in ("relu", "qcfs"):
            self.blockers.append(
                f"{name} at '{node.name}': group neurons stand for QCFS and ReLU alone, and pass "
                "what selects, such as max pooling; convert this one by "
                f"method={{'{node.name}': 'signgd', '': 'group'}}, leave it as it is by "
                f"keep=['{node.name}'], or train without it"
            )
            self._emit(node, "rate")
            return
        trained = node.arguments.get("v_threshold")
        signed = self.p.signed
        if signed is None:  # a network trained for group neurons gets those it was trained for
            signed = trained is None and self.p.time_steps > 1
        neuron = GroupNeuron(
            **_common(node),
            members=self._members(node, node.arguments.get("levels")),
            v_threshold=self._threshold(node) if trained is None else trained,
            signed=signed,
        )
        self._emit(neuron, "rate")

    def _threshold(self, node: Function) -> float | Tensor:
        """Where the search of ``thresholds.fit`` begins."""
        whole = float(self.found[node.name]["tensor_quantile"]) or 1.0
        if self.p.scale == "unit":
            return 1.0
        if self.p.scale != "channel" or node.channel is None:
            return whole
        return self.found[node.name]["quantile"].clamp(min=SMALLEST_CHANNEL * whole)

    def _members(self, node: Function, levels: int | None) -> int:
        """m with m T = L, or the m asked for; a network away from L is told so."""
        steps = self.p.time_steps
        wanted = levels or DEFAULT_LEVELS
        members = self.members_of(node) or max(1, round(wanted / steps))
        if levels is not None and members * steps != levels:
            warnings.warn(
                f"'{node.name}' was trained with L = {levels} levels, but m T = {members} x "
                f"{steps} = {members * steps}; the group neuron then computes another function. "
                f"Choose time_steps that divide {levels}, or members with members * time_steps "
                f"= {levels}.",
                LevelsWarning,
                stacklevel=7,
            )
        return members

    def _subgradient(self, node: Function) -> None:
        if node.function.name != "relu":
            self.blockers.append(
                f"{node.function.name} at '{node.name}': the rate-coded baseline tracks ReLU "
                "alone; use method='signgd'"
            )
            self._emit(node, "decoded")
            return
        neuron = SubgradientNeuron(
            **_common(node),
            schedule=(self.p.schedule if self.p.method == "subgradient" else None) or AVERAGING,
            scale=self._scale(node),
        )
        self._emit(neuron, "decoded")


AVERAGING = InverseSchedule(1.0, delay=1.0)


def belongs(node: Node, path: str) -> bool:
    """Whether a neuron is at, or below, a module path; a module called twice has several."""
    places = (node.name, node.module) if isinstance(node, Function) else (node.name,)
    return bool(path) and any(where == path or where.startswith(f"{path}.") for where in places)


def by_path(entries: Mapping[str, Any], node: Function) -> Any:
    """The entry of the longest module path that a neuron belongs to, else that of ""; or None."""
    matches = [path for path in entries if belongs(node, path)]
    return entries[max(matches, key=len)] if matches else entries.get("")


SMALLEST_CHANNEL = 0.02  # of the whole tensor's scale
DEFAULT_LEVELS = 8  # m T for a ReLU that was not trained with levels


def _common(node: Function) -> dict[str, Any]:
    """The fields that a function and the neuron for it share."""
    return {f.name: getattr(node, f.name) for f in fields(Function)}


def _renamed(structure: Any, name_of: Any) -> Any:
    if isinstance(structure, str):
        return name_of(structure)
    if isinstance(structure, Mapping):
        return {k: _renamed(v, name_of) for k, v in structure.items()}
    return type(structure)(_renamed(v, name_of) for v in structure)
