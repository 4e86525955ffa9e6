"""Live streams on a CPU, frame by frame, in which what does not change costs next to nothing.

Every value of the network is kept with the places where the last frame changed it. The next frame
runs a list of steps (``silent_steps``): convolutions, linear layers and sums add what changed times
its weights, moves and affine maps pass it on, and functions and neurons run where an argument
changed. A step of which more inputs changed than its *break-even*, measured on this machine once,
is computed whole by torch, as is whatever has no update of its own, and only if an input changed.

The steps are planned by a walk of the first frame (``SilentWalk``), and run by one call of the
kernels, so that a frame of a small network takes microseconds, not an operator call for each node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..neurons.choice import choose
from .module import NetworkModule, key
from .network import ANEW, KEPT, Neuron, Timed, fill, leaves
from .silent_steps import SilentStep
from .silent_walk import SilentWalk
from .walk import walk


def against(module: NetworkModule) -> str:
    """Why the silent path is not for a network; empty where it is."""
    network = module.network
    reasons = [n.frame for n in network.of(Timed) if n.frame not in (KEPT, ANEW)]
    rates = [n.name for n in network.of(Neuron) if not n.decoded]
    device = next((t.device.type for t in module.buffers()), "cpu")
    checks = {
        "it is for the decoded view": module.spikes != "decoded",
        f"a frame is shown for one step, here for {network.time_steps}": network.time_steps != 1,
        "it takes one floating-point input": not network.plain or bool(network.carries),
        "rate-coded neurons send anew in every frame": bool(rates),
        f"it computes in float32, here is {module.floating}": module.floating != torch.float32,
        f"it is for CPUs, but the network is on {device}": device != "cpu",
        "it has no gradient": module.trainable,
        f"a neuron runs on no stream: {next(iter(reasons), '')}": bool(reasons),
    }
    return next((reason for reason, holds in checks.items() if holds), "")


class SilentSession:
    """``session(frame)``: the decoded output after one more frame [B, ...], the state kept.

    ``break_even`` is the share of changed inputs from which torch computes a layer whole; measured
    for each unless given, 0 for always, 1 for never. ``backend`` "torch" runs the definition. The
    state is taken from ``module`` at the first frame, and ``give_back`` puts it there. Raises
    InputError where the silent path is not for the network (``against``), BackendUnavailable.
    """

    def __init__(
        self, module: NetworkModule, *, break_even: float | None = None, backend: str = "auto"
    ) -> None:
        if reason := against(module):
            raise InputError(
                f"this network does not run on the silent path: {reason}. Run it with "
                "run(..., sequence=True, keep_state=True), or convert with stream=True."
            )
        if break_even is not None and not 0 <= break_even <= 1:
            raise InputError(f"break_even is a share of inputs, in [0, 1], not {break_even!r}.")
        self.kernels = backend != "torch" and choose(backend, "cpu").backend == "cpu"
        self.module, self.break_even = module, break_even
        self.plan: SilentWalk | None = None

    @torch.no_grad()
    def __call__(self, frame: Any) -> Any:
        x: Tensor = self.module.check_input(frame)
        if self.plan is None:
            self.plan = self._planned(x)
        else:
            self.plan.show(x)
        outputs = {name: self.plan.outputs[name].tensor.clone() for name in self._names}
        return fill(self.module.network.outputs, outputs)

    @property
    def _names(self) -> list[str]:
        return leaves(self.module.network.outputs)

    def _planned(self, x: Tensor) -> SilentWalk:
        """The first frame, dense, which makes the steps of those after it."""
        plan = SilentWalk(self.module, x, states_of(self.module), self.kernels)
        plan.outputs = walk(self.module.network, plan, self._names)
        plan.finish(self.break_even)
        return plan

    def reset(self) -> None:
        """Forget the stream, here and in the module."""
        self.plan = None
        self.module.reset()

    def give_back(self) -> None:
        """Puts the state into the module, where ``run(..., keep_state=True)`` goes on."""
        if self.plan is not None:
            put_states(self.module, self.plan.states())

    @property
    def shares(self) -> dict[str, float]:
        """For each step that has inputs, the share of them that the last frame changed."""
        steps = self.plan.program.steps if self.plan else []
        return {s.name: _changed(s) / max(1, sum(x.size for x in s.inputs)) for s in steps}

    @property
    def break_evens(self) -> dict[str, float]:
        """For each step the share of changed inputs above which torch computes it whole."""
        steps = self.plan.program.steps if self.plan else []
        sizes = {s.name: max(1, sum(x.size for x in s.inputs)) for s in steps}
        return {s.name: min(1.0, s.limit / sizes[s.name]) for s in steps if s.kind != "settle"}


def _changed(step: SilentStep) -> int:
    return sum(each.struct.changed for each in step.inputs)


# -- states of the simulators ----------------------------------------------------------------------


def states_of(module: NetworkModule) -> dict[str, Any]:
    """What ``module`` keeps of neurons that go on, by name: a state, or v alone."""
    kept = {} if module.state_kept is None else module.state_kept.neurons
    nodes = [node.name for node in module.network.of(Timed) if node.frame == KEPT]
    own = {name: getattr(module.neurons[key(name)], "v", None) for name in nodes}
    found = {name: kept.get(name, own[name]) for name in nodes}
    return {name: value for name, value in found.items() if not isinstance(value, float | None)}


def put_states(module: NetworkModule, states: Mapping[str, Any]) -> None:
    """The opposite of ``states_of``, for a module that has run a frame."""
    kept = {} if module.state_kept is None else module.state_kept.neurons
    for name, state in states.items():
        if name in kept:
            kept[name] = kept[name]._replace(v=state.v.clone())
        else:
            module.neurons[key(name)].v = state.v.clone()
