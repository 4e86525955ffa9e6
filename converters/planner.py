"""The pass ``plan``: every function becomes a neuron, and linear operations read their values."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    fill,
    leaves,
)
from ..core.walk import Semantics, walk
from ..errors import UnsupportedOperation
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.schedules import InverseSchedule
from .planning import (
    AVERAGING,
    METHODS,
    Layer,
    SaturationWarning,
    default_schedule,
    relative_depths,
)
from .rules import NotConvertible
from .settings import Context


def plan(network: SpikingNetwork, context: Context) -> SpikingNetwork:
    """Every function replaced by a neuron; running means where rate meets value.

    Raises UnsupportedOperation naming every function that its method has no neuron for. Warns of
    neurons whose values are beyond the reach of a given schedule.
    """
    planner = _Planner(network, context)
    held = walk(network, planner)
    if planner.blockers:
        raise UnsupportedOperation(
            "these cannot be converted by the chosen method:\n  "
            + "\n  ".join(planner.blockers)
            + f"\n{planner.advice()}",
            blockers=planner.blockers,
        )
    decoded = {name: planner.decoded(held[name]) for name in leaves(network.outputs)}
    outputs = fill(network.outputs, decoded)
    planned = network.replace(nodes=tuple(planner.nodes), outputs=outputs)
    given = context.settings.chosen["schedule"] is not None and not network.stream
    if given:  # the default one is made for the scale
        _check_range(planned)
    return planned


class _Planner(Semantics[str]):
    """A value of the source network is the name of the node that holds it in the new one."""

    def __init__(self, network: SpikingNetwork, context: Context) -> None:
        self.context, self.settings = context, context.settings
        self.seen = network.statistics
        self.nodes: list[Node] = []
        self.names = {node.name for node in network.nodes}
        self.means: dict[str, str] = {}  # a rate to the running mean of it
        self.coding: dict[str, str] = {}  # "static" | "decoded" | "rate"
        self.blockers: list[str] = []
        self.blocked: list[str] = []  # their names
        self.depths = relative_depths(network.nodes)

    def advice(self) -> str:
        """What to write so that everything is converted."""
        given = self.settings.method
        others = {"": given} if isinstance(given, str) else given
        methods = dict.fromkeys(self.blocked, "signgd") | {
            path: method for path, method in others.items() if path not in self.blocked
        }
        return (
            f"Convert them by method={methods}, keep them real-valued with keep={self.blocked}, "
            "or train without them."
        )

    def _emit(self, node: Node, coding: str) -> str:
        self.nodes.append(node)
        self.coding[node.name] = coding
        return node.name

    def decoded(self, name: str) -> str:
        """The value itself; a rate is averaged first."""
        if self.coding[name] != "rate":
            return name
        if name not in self.means:
            mean = self._unique(f"{name}.mean")
            shape = next(node.shape for node in self.nodes if node.name == name)
            average = Average(name=mean, inputs=(name,), shape=shape)
            self.means[name] = self._emit(average, "decoded")
        return self.means[name]

    def _unique(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def input(self, node: Input) -> str:
        self._emit(node, "static")
        settings, coding = self.settings, self.settings.chosen["input_coding"]
        # what is carried comes from neurons: their spikes, a frame later
        if coding == "exact" or not node.coded or node.name in settings.carries:
            return node.name
        name = self._unique("input.encode")
        common: dict[str, Any] = dict(name=name, inputs=(node.name,), shape=node.shape)
        schedule, momentum = settings.chosen["schedule"], settings.momentum
        if coding == "real":
            # unless told otherwise a running mean, which has the whole input from step 1 on
            schedule = schedule or InverseSchedule(1.0)
            encoder = Encoder(**common, coding="real", schedule=schedule, momentum=momentum)
            return self._emit(encoder, "decoded")
        scale = self.context.input_scale
        if coding == "poisson":
            rate, seed = settings.method == "group", settings.seed
            coder = Encoder(**common, coding="poisson", scale=scale, seed=seed, per_step=rate)
            return self._emit(coder, "rate" if rate else "decoded")
        neuron = SignGDNeuron(
            **common,
            function=NONLINEARITIES["identity"],
            schedule=AVERAGING,
            scale=scale,
            momentum=momentum,
        )
        zone = settings.dead_zone_of(neuron)
        steps = schedule or default_schedule(settings.steps, self.depths[node.name], 1, zone)
        return self._emit(replace(neuron, dead_zone=zone, schedule=steps), "decoded")

    def constant(self, node: Constant) -> str:
        return self._emit(node, "static")

    def linear(self, node: Linear, inputs: list[str]) -> str:
        codings = {self.coding[name] for name in inputs}
        if {"decoded", "rate"} <= codings:
            inputs = [self.decoded(name) for name in inputs]
            codings = {"decoded"}
        coding = next((c for c in ("decoded", "rate") if c in codings), "static")
        return self._emit(replace(node, inputs=tuple(inputs)), coding)

    def function(self, node: Function, inputs: list[str]) -> str:
        if self.settings.keeps(node):
            return self._kept(node, inputs)
        try:
            neuron = METHODS[self.settings.method_of(node)].plan(self._layer(node))
        except NotConvertible as problem:
            self.blockers.append(str(problem))
            self.blocked.append(node.name)
            return self._emit(replace(node, inputs=tuple(inputs)), "decoded")
        if not neuron.decoded:
            return self._emit(replace(neuron, inputs=tuple(inputs)), "rate")
        return self._emit(replace(neuron, inputs=tuple(map(self.decoded, inputs))), "decoded")

    def neuron(self, node: Neuron, inputs: list[str]) -> str:
        """One that a pass before made is left as it is."""
        inputs = [self.decoded(name) for name in inputs] if node.decoded else inputs
        coding = "decoded" if node.decoded else "rate"
        return self._emit(replace(node, inputs=tuple(inputs)), coding)

    def _kept(self, node: Function, inputs: list[str]) -> str:
        """The function as it is, of what its inputs decode to so far."""
        names = tuple(self.decoded(name) for name in inputs)
        coding = "decoded" if any(self.coding[name] == "decoded" for name in names) else "static"
        return self._emit(replace(self._layer(node).guarded().node, inputs=names), coding)

    def _layer(self, node: Function) -> Layer:
        settings = self.settings
        names = ("schedule", "resting", "gelu", "guard")
        return Layer(
            node=node,
            seen=self.seen[node.name],
            depth=self.depths[node.name],
            mixed=not isinstance(settings.method, str),
            time_steps=settings.steps,
            momentum=settings.momentum,
            members=settings.members_of(node),
            scale=settings.scale_of(node),
            dead_zone=settings.dead_zone_of(node),
            signed=settings.signed,
            **{name: settings.chosen[name] for name in names},
        )


NEARLY = 1.05  # of its reach a neuron may need without a warning


def _check_range(network: SpikingNetwork) -> None:
    saturated = []
    for neuron in network.of(SignGDNeuron):
        if neuron.name not in network.statistics:
            continue
        seen = network.statistics[neuron.name]
        largest = float(torch.maximum(seen["maximum"].abs(), seen["minimum"].abs()).max())
        total = sum(neuron.schedule(t) for t in range(1, network.time_steps + 1))
        total *= 2 - 2.0 ** (1 - neuron.members)
        reach = total * float(torch.as_tensor(neuron.scale).max())
        if largest > NEARLY * reach:
            saturated.append(
                f"{neuron.function.name} at '{neuron.name}' reaches {largest:.3g}, but its steps "
                f"add up to {reach:.3g}"
            )
    if saturated:
        warnings.warn(
            "the step sizes add up to less than these neurons' values: "
            + "; ".join(saturated)
            + ". They saturate. Choose scale='channel' or 'tensor', or a longer schedule.",
            SaturationWarning,
            stacklevel=4,
        )
