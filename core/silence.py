"""Live streams on a CPU, frame by frame, at a cost that depends on how much of the input changes.

Every value of the network is kept with the places where the last frame changed it. The next frame
runs a list of steps (``silent_steps``): convolutions, linear layers and sums add what changed times
its weights, moves and affine maps pass it on, and functions and neurons run where an argument
changed. A step of which more inputs changed than its *break-even*, measured on this machine once,
is computed whole by torch, as is whatever has no update of its own, and only if an input changed.

The first frame is computed as usual; a walk of it plans the steps (``silent_walk``). They run by
one call of the kernels, so that a frame takes microseconds, not an operator call for each node.
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendUnavailable, InputError
from ..neurons.base import each_tensor, tensors_in
from ..neurons.choice import choose
from ..neurons.kernels.silence import runner
from .module import NetworkModule, Seen, given_to
from .network import KEPT, Neuron, Timed, each_leaf, fill, leaves
from .running import check_run
from .silent_walk import WHOLE_BY_TORCH, SilentWalk
from .sizing import at_its_size
from .spikes import Pooling, Sent, listening
from .streams import check_goes_on, check_stream, next_frame
from .walk import walk


def against(module: NetworkModule, backend: str = "auto") -> str:
    """The reason why a network that runs on streams has no silent path; empty if it has one.

    Without kernels the definition runs, which is many times slower than the dense path.
    """
    network, missing = module.network, _missing()
    device = next((tensor.device.type for tensor in module.buffers()), "cpu")
    checks = {
        "it requires the decoded form": module.spikes != "decoded",
        "it requires a single floating-point input": not network.plain or bool(network.carries),
        "group neurons, and other rate-coded neurons, send their spikes again in every frame": any(
            not node.decoded for node in network.of(Neuron)
        ),
        f"it computes in float32, but the network is {module.floating}": module.floating
        != torch.float32,
        f"it runs on CPUs only, but the network is on {device}": device != "cpu",
        "it has no gradient": module.trainable,
        f"it needs compiled kernels ({missing})": backend == "auto" and bool(missing),
    }
    return next((reason for reason, holds in checks.items() if holds), "")


def _missing() -> str:
    """What the compiled kernels lack."""
    reason = choose("auto", "cpu").reason
    if reason:
        return reason
    try:
        runner()
    except BackendUnavailable as error:
        return str(error)
    return ""


def _refused(reason: str) -> str:
    return (
        f"this network has no silent path: {reason}. Watch it with silent=False, or run it "
        "with run(..., sequence=True, keep_state=True)."
    )


class SilentSession:
    """``session(frame)``: the decoded output after one more frame [B, ...], shown for one step.

    Starts with the state of ``module``, if it has processed frames; ``give_back`` writes the state
    back. ``break_even`` is the fraction of changed inputs above which torch computes a whole step:
    measured unless given, 1 for never. ``backend`` "torch" runs the definition, slowly. Raises
    InputError where the network does not run so (``against``), BackendUnavailable.
    """

    def __init__(
        self, module: NetworkModule, *, break_even: float | None = None, backend: str = "auto"
    ) -> None:
        check_stream("silence", module)
        if reason := against(module, backend):
            raise InputError(_refused(reason))
        if break_even is not None and not 0 <= break_even <= 1:
            raise InputError(f"break_even is a share of inputs, in [0, 1], not {break_even!r}.")
        if backend not in ("auto", "cpu", "torch"):
            raise InputError(f"backend is 'auto', 'cpu' or 'torch', not {backend!r}.")
        self.kernels = choose(backend, "cpu").backend == "cpu"
        self.module, self.break_even = module, break_even
        self.plan: SilentWalk | None = None
        self.seen: Seen | None = None  # of the module, when the plan had its last frame
        self.whole = True  # whether that frame came to its end
        self.first: list[Sent] = []  # what the module sent in its own frame

    @torch.no_grad()
    def __call__(self, frame: Any) -> Any:
        if self.module.floating != torch.float32:
            raise InputError(_refused(against(self.module)))
        # where others have run or reset the module, or loaded a state, it goes on from there
        if self.plan is None or self.seen is not self.module.seen:
            return each_leaf(_first_frame(self.module, frame, self), lambda y: y[0, 0])
        plan = self._plan_after_a_whole_frame(self.plan)
        if not isinstance(frame, Tensor):
            frame = given_to(self.module.network, frame)[self.module.network.input.name]
        self._show(plan, _checked(frame, plan.x))
        if self.module.listener is not None:
            for each in plan.sent():
                self.module.listener(each)
        outputs = {name: kept.tensor.clone() for name, kept in plan.outputs.items()}
        return fill(plan.network.outputs, outputs)

    def _show(self, plan: SilentWalk, frame: Tensor) -> None:
        seen: Any = self.seen
        self.first, self.whole = [], False
        plan.show(frame)
        self.seen = self.module.seen = seen._replace(frames=seen.frames + 1)
        self.whole = True

    def _plan_after_a_whole_frame(self, plan: SilentWalk) -> SilentWalk:
        """Raises InputError where a frame was interrupted: what changed is lost to some steps."""
        if not self.whole:
            raise InputError(
                "the last frame was interrupted, so that only a part of the network has "
                "processed it. Reset the watch (w.reset()), or continue from a state that was "
                "saved before (snn.load_state(state))."
            )
        return plan

    @torch.inference_mode(False)  # what is planned is written to in frames that may be outside it
    @torch.no_grad()  # which inference_mode(False) undoes
    def begin(self, x: Tensor) -> None:
        """Plans the frames after x, which the module has run."""
        states = self.module.neuron_states()
        kept = [node.name for node in self.module.network.of(Timed) if node.frame == KEPT]
        v = {name: next(tensors_in(states[name])) for name in kept}
        plan = SilentWalk(self.module, x, v, self.kernels)
        plan.outputs = walk(plan.network, plan, leaves(plan.network.outputs))
        plan.finish(self.break_even)
        self.plan, self.seen, self.whole = plan, self.module.seen, True

    def reset(self) -> None:
        """Forget the stream, here and in the module."""
        self.plan, self.seen, self.whole, self.first = None, None, True, []
        self.module.reset()

    def give_back(self) -> None:
        """Puts the state into the module, from which ``run(..., keep_state=True)`` goes on.

        Not where others have changed the module's since: that is the newer one. Raises InputError
        after a frame that was interrupted.
        """
        if self.plan is None or self.seen is not self.module.seen:
            return
        plan = self._plan_after_a_whole_frame(self.plan)
        states, found = self.module.neuron_states(), plan.states()
        given = {name: each_tensor(states[name], partial(_instead, v)) for name, v in found.items()}
        self.module.set_neuron_states(given)

    @torch.no_grad()
    def sent(self) -> list[Sent]:
        """What each neuron sent in the last frame, computed again from what it saw. Raises
        InputError after a frame that was interrupted."""
        if self.first or self.plan is None:
            return self.first
        pooling = Pooling(self.module)
        return [pooling(each) for each in self._plan_after_a_whole_frame(self.plan).sent()]

    @property
    def shares(self) -> dict[str, float]:
        """For each step the share of its inputs that the last frame changed."""
        steps = self.plan.program.steps if self.plan else []
        return {s.name: s.changed / s.size for s in steps if s.size}

    @property
    def by_torch(self) -> list[str]:
        """The steps that torch computed whole in the last frame."""
        if self.plan is None or not self.kernels:
            return []
        program = self.plan.program
        pairs = zip(program.steps, program.structs, strict=True)
        return [step.name for step, struct in pairs if struct.work < 0]

    @property
    def break_evens(self) -> dict[str, float]:
        """The share of changed inputs above which torch computes a step whole, of those it may."""
        steps = self.plan.program.steps if self.plan else []
        return {s.name: min(1.0, s.limit / s.size) for s in steps if s.kind in WHOLE_BY_TORCH}


@at_its_size(lambda *_, **__: False)
def _first_frame(module: NetworkModule, frame: Any, session: SilentSession) -> Any:
    """The module's own frame: outputs [1, 1, B, ...]."""
    x = check_run("silence", module, frame, 1, False)
    check_goes_on(module, x)
    session.first, others = [], module.listener
    with module.for_sequences(), listening(module, session.first.append):
        y = next_frame(module, x, 1)
    if others is not None:
        for each in session.first:
            others(each)
    session.begin(x)
    return y


def _checked(frame: Any, like: Tensor) -> Tensor:
    """A frame after the first. Raises InputError."""
    if not isinstance(frame, Tensor):
        raise InputError(f"a frame is a tensor, not {type(frame).__name__}.")
    if frame.shape != like.shape:
        raise InputError(
            f"a frame is {list(frame.shape)} now, but the state kept is that of frames of "
            f"{list(like.shape)}. Reset before frames of another size or another number of streams."
        )
    if not frame.is_floating_point():
        raise InputError(f"a frame is {frame.dtype}; pass it in the dtype of the first frame.")
    if not isfinite(float(frame.sum())) and not bool(frame.isfinite().all()):
        raise InputError("the frame holds NaN or infinity; skip it, or remove them first.")
    return frame


def _instead(v: Tensor, _: Tensor) -> Tensor:
    return v.clone()
