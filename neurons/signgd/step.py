r"""signGD neuron: a spike is the sign of a gradient step toward f(x), for any function f.

.. math::
    x(t) &= x(t-1) - \eta_{in}(t)\, W (s_{in}\, \sigma_{in}(t)) \\
    \sigma(t) &= +1 \text{ where } v(t-1) \ge f(x(t)), \text{ else } -1 \\
    v(t) &= v(t-1) - \eta(t)\, s\, \sigma(t)

x is the estimate of the input (one for each argument of f), v that of the output, s a scale that
is 1 in the paper, :math:`\eta` the step-size schedule. A row of the table of nonlinearities says
whether v = f(x) fires. With x(0) = W v_in(0) + b the identity x(t) = W v_in(t) + b holds, which
gives two views of the same neuron: in the decoded view a step is handed x(t) itself, in the spike
view it is handed the weighted spikes and integrates x.

A *group* of m members fires m signs in one step, against the same f(x), with binary-weighted sizes:

.. math::
    \sigma_k(t) &= +1 \text{ where } v_{k-1} \ge f(x(t)), \text{ else } -1, \qquad k = 1 \dots m \\
    v_k &= v_{k-1} - \eta(t)\, s\, 2^{1-k} \sigma_k(t), \qquad v_0 = v(t-1), \; v(t) = v_m

m = 1 is the neuron of the paper. The m signs of a step are the digits of an odd integer
:math:`d = \sum_k 2^{m-k} \sigma_k`, :math:`|d| < 2^m`, in the signed-digit code without zeros, and
v moves by :math:`-\eta(t) s 2^{1-m} d`. So a group with x held is m plain steps of sizes
:math:`\eta, \eta/2, \dots`, and it tracks as they do: a target within :math:`2 \eta(t) s` of v is
held within :math:`\eta(t) s 2^{1-m}` after the step, and a constant target within reach is held
within that for ever if :math:`\eta(t+1) \ge 2^{-m} \eta(t)` (for m = 1 the tracking lemma of plain
neurons).

Source: Oh & Lee, ICML 2024 (arXiv:2407.01645), Definition of signGD-based neuronal dynamics; the
optional momentum is that of SGD, as in the published code. Groups are ours: they unite it with the
group neuron of Lv et al., ICASSP 2024 (arXiv:2402.19061).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from .. import spikes
from ..base import Code, Factor, Neuron, spread
from ..nonlinearities import FunctionInC, Nonlinearity
from ..schedules import Schedule, name_schedule

MOST_MEMBERS = 8  # the signs of one step fit a byte


@dataclass(frozen=True, eq=False)
class SignGDParameters:
    """One neuron population.

    ``scale`` is the unit of the steps, a number or a tensor that broadcasts against v; the
    neuron reaches ``resting`` ± scale * (sum of the schedule) * (2 - 2 ** (1 - members)).
    ``arguments`` are the parameters of the function, such as ``{"negative_slope": 0.1}``.
    ``members``, m, counts the signs of one step, at most 8. ``check`` reads the scale, which makes
    a GPU wait.
    """

    function: Nonlinearity
    schedule: Schedule
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    momentum: float = 0.0
    members: int = 1
    check: InitVar[bool] = True
    schedule_name: str = field(init=False, repr=False)  # what the kernels are given for both
    in_c: FunctionInC | None = field(init=False, repr=False)

    def __post_init__(self, check: bool) -> None:
        object.__setattr__(self, "schedule_name", name_schedule(self.schedule))
        object.__setattr__(self, "in_c", self.function.in_c(self.arguments))
        # a graph that is being traced has no values
        check = check and not torch.compiler.is_compiling()
        if check and not bool((torch.as_tensor(self.scale) > 0).all()):
            raise ValueError(
                f"SignGDParameters: scale multiplies the step sizes, so it is positive, but the "
                f"smallest is {float(torch.as_tensor(self.scale).min())!r}."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"SignGDParameters: momentum is in [0, 1), but it is {self.momentum!r}."
            )
        if self.members not in range(1, MOST_MEMBERS + 1) or isinstance(self.members, bool):
            raise ValueError(
                f"SignGDParameters: members counts the signs of one step, so it is an integer from "
                f"1 to {MOST_MEMBERS}, but it is {self.members!r}."
            )
        if self.momentum and self.members > 1:
            raise ValueError(
                "SignGDParameters: momentum is that of single signs; set it to 0, or members to 1."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["schedule_name"] = name_schedule(
            self.schedule
        )  # in the process that reads it

    def target(self, *x: Tensor) -> Tensor:
        """f(x): what v moves toward."""
        return self.function(*x, **self.arguments)


class SignGDState(NamedTuple):
    """``v`` [B, ...] the decoded output, ``t`` the steps done, ``buffer`` the momentum's memory."""

    v: Tensor
    t: int = 0
    buffer: Tensor | None = None


class SignGDSpikeState(NamedTuple):
    """State of the spike view: the integrated arguments of f beside the neuron's own state."""

    x: tuple[Tensor, ...]
    neuron: SignGDState


def signgd_initial_state(like: Tensor, p: SignGDParameters) -> SignGDState:
    """v at rest, with the shape, device and float type of ``like``, which is f(x)."""
    resting = torch.as_tensor(p.resting, dtype=like.dtype, device=like.device)
    return SignGDState(spread(resting, like.shape, "resting"))


def _same_shape(after: Tensor, before: Tensor) -> Tensor:
    if after.shape != before.shape:
        raise InputError(
            f"signGD neurons: with this scale a state v of {list(before.shape)} would become "
            f"{list(after.shape)}. The scale broadcasts against v; give it v's shape or a part."
        )
    return after


def signgd_fires(x: tuple[Tensor, ...], v: Tensor, p: SignGDParameters) -> Tensor:
    """Where the (first) spike is +1: v is not below f(x), bool [B, ...]."""
    return _above(v, _target(x, v, p), p)


def _target(x: tuple[Tensor, ...], v: Tensor, p: SignGDParameters) -> Tensor:
    """f(x), which must not broadcast against v: that is another batch than the state's."""
    target = p.target(*x)
    if target.shape != v.shape:
        raise InputError(
            f"signGD neurons: values of f of {list(target.shape)} do not fit a state v of "
            f"{list(v.shape)}. Reset the neuron, or pass state=None, before feeding a batch of "
            "another shape."
        )
    return target


def signgd_step(
    x: tuple[Tensor, ...], state: SignGDState, p: SignGDParameters
) -> tuple[Tensor, SignGDState]:
    """The definition, decoded view: arguments of f [B, ...] to (fires [B, ...], state).

    ``fires`` is bool, or with several members uint8: the bits of a number, the first member's the
    highest, 1 where its sign is +1.
    """
    t = state.t + 1
    target = _target(x, state.v, p)
    size = step_size(state.v, t, p)
    if p.momentum:
        fires = _above(state.v, target, p)
        sigma = fires.to(state.v.dtype).mul_(2).sub_(1)
        buffer = sigma if state.buffer is None else p.momentum * state.buffer + sigma
        return fires, SignGDState(_same_shape(state.v - size * buffer, state.v), t, buffer)
    v, code = state.v, None
    for k in range(p.members):
        fires = _above(v, target, p)
        sigma = fires.to(v.dtype).mul_(2).sub_(1)
        # sigma is 1 or -1, so the product is exact and v - size or v + size is rounded once
        v = torch.addcmul(v, sigma, size * 2.0**-k, value=-1)
        code = fires if p.members == 1 else (2 * code if code is not None else 0) + fires.byte()
    assert code is not None
    return code, SignGDState(_same_shape(v, state.v), t)


def step_size(v: Tensor, t: int, p: SignGDParameters) -> Tensor:
    """eta(t) s, the first member's, in the type of v."""
    return torch.as_tensor(p.schedule(t) * p.scale, dtype=v.dtype, device=v.device)


def _above(v: Tensor, target: Tensor, p: SignGDParameters) -> Tensor:
    return v >= target if p.function.fires_at_tie else v > target


def levels(fires: Tensor, members: int, dtype: torch.dtype) -> Tensor:
    """d = sum of 2 ** (m - k) sigma_k, odd and at most 2 ** m - 1, of what ``signgd_step`` fired.

    With one member sigma itself.
    """
    return 2 * fires.to(dtype) - (2**members - 1)


def signs(fires: Tensor, members: int) -> spikes.Events:
    """What neurons sent in steps [T, *] that fired so: every sign is a spike."""
    number = levels(fires, members, torch.int16)
    return spikes.Events(number, torch.full_like(number, members))


def signgd_surrogate_step(
    x: tuple[Tensor, ...],
    state: SignGDState,
    p: SignGDParameters,
    surrogate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, SignGDState]:
    """``signgd_step``, the same to the bit, with sigma's gradient in v - f(x).

    Returns (``levels``, state). ``surrogate`` is a step function with a gradient of its own, of
    which the gradient alone is used. Without momentum.
    """
    if p.momentum:
        raise ValueError("signgd_surrogate_step: there is no gradient with momentum; set it to 0.")
    t = state.t + 1
    target = _target(x, state.v, p)
    size = step_size(state.v, t, p)
    v, level = state.v, torch.zeros_like(state.v)
    for k in range(p.members):
        fires = _above(v, target, p)
        soft = surrogate(v - target)
        sigma = fires.to(v.dtype).mul_(2).sub_(1) + 2 * (soft - soft.detach())
        v = torch.addcmul(v, sigma, size * 2.0**-k, value=-1)
        level = sigma if p.members == 1 else 2 * level + sigma
    return level, SignGDState(_same_shape(v, state.v), t)


def signgd_decoded_step(
    x: tuple[Tensor, ...], state: SignGDState, p: SignGDParameters
) -> tuple[Tensor, SignGDState]:
    """``signgd_step`` whose output is the decoded value v(t)."""
    _, state = signgd_step(x, state, p)
    return state.v, state


def signgd_spike_step(
    increments: tuple[Tensor, ...], state: SignGDSpikeState, p: SignGDParameters
) -> tuple[Tensor, SignGDSpikeState]:
    """Spike view: weighted spikes -eta_in(t) W sigma_in [B, ...] to (-eta(t) s sigma, state)."""
    x = tuple(a + b for a, b in zip(state.x, increments, strict=True))
    fires, neuron = signgd_step(x, state.neuron, p)
    return weighted_spike(fires, neuron, p), SignGDSpikeState(x, neuron)


def weighted_spike(fires: Tensor, after: SignGDState, p: SignGDParameters) -> Tensor:
    """-eta(t) s 2 ** (1 - m) d, for one member -eta(t) s sigma(t): the spikes of the step that led
    to ``after``, as a synapse delivers them."""
    size = step_size(after.v, after.t, p)
    if after.buffer is not None:
        return -size * after.buffer
    if p.members == 1:
        return torch.where(fires, -size, size)
    return -(size * 2.0 ** (1 - p.members)) * levels(fires, p.members, after.v.dtype)


def from_binary(s: Tensor, offset: Tensor | float, eta: float, members: int = 1) -> Tensor:
    """Current I = W s of binary spikes, or of numbers of ``members`` bits, to an increment.

    -eta 2 ** (1 - m) (2 I - (2 ** m - 1) offset), offset = W 1.
    """
    if members == 1:
        return -eta * (2 * s - offset)
    return -eta * 2.0 ** (1 - members) * (2 * s - (2**members - 1) * offset)


@dataclass(frozen=True, eq=False, kw_only=True)
class SignGDNeuron(Neuron):
    kind = "signgd"
    spike_view = True
    schedule: Schedule
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    momentum: float = 0.0
    members: int = 1  # signs of one step, of sizes eta, eta / 2, ...

    def reach(self, steps: int) -> tuple[float | Tensor, float | Tensor]:
        total, buffer = 0.0, 0.0
        for t in range(1, steps + 1):  # all signs alike, which momentum adds up
            buffer = self.momentum * buffer + 2 - 2.0 ** (1 - self.members)
            total += self.schedule(t) * buffer
        return self.resting - total * self.scale, self.resting + total * self.scale

    @property
    def code(self) -> Code:
        m = self.members
        return Code("sign" if m == 1 else "graded", m, 2**m - 1)

    @property
    def most_spikes(self) -> int:
        return self.members

    @property
    def factor(self) -> Factor:
        return Factor(f"{self.kind} {name_schedule(self.schedule)}", adds=True)

    @property
    def finest(self) -> float:
        return 2.0 ** (1 - self.members)

    def numbers(self, arguments: int) -> int:
        return self.values * (2 if self.momentum else 1) + arguments

    def additions(self, arguments: int) -> int:
        """Against f(x), and a step: for each sign."""
        return self.values * (2 * self.members + (1 if self.momentum else 0))

    @property
    def products(self) -> int:
        return self.values if self.momentum else 0  # of v's memory

    @property
    def parameters(self) -> SignGDParameters:
        return SignGDParameters(
            self.function,
            self.schedule,
            self.scale,
            self.resting,
            self.arguments,
            self.momentum,
            self.members,
        )

    def start(self, inputs: tuple[Tensor, ...]) -> SignGDState:
        p = self.parameters
        return signgd_initial_state(p.target(*inputs).to(inputs[0].dtype), p)

    def sequence(
        self, inputs: tuple[Tensor, ...], state: SignGDState
    ) -> tuple[Tensor, SignGDState]:
        """T steps [T, B, ...] to (v [T, B, ...], state), by the kernels where there are any."""
        from .sequence import signgd_multi_step

        done = signgd_multi_step(inputs, state, self.parameters, dtype=inputs[0].dtype)
        return done.y, done.state

    def step(self, inputs: tuple[Tensor, ...], state: SignGDState) -> tuple[Tensor, SignGDState]:
        fires, state = signgd_step(inputs, state, self.parameters)
        self._tell(fires)
        return state.v, state

    def spike_start(self, inputs: tuple[Tensor, ...]) -> SignGDSpikeState:
        """The state before a first step in the spike view, where the inputs are x(0)."""
        return SignGDSpikeState(inputs, self.start(inputs))

    def spike_step(
        self, inputs: tuple[Tensor, ...], state: SignGDSpikeState
    ) -> tuple[Tensor, SignGDSpikeState]:
        """One step of the spike view in torch alone: (weighted spikes, state) of such spikes."""
        p = self.parameters
        x = tuple(a + b for a, b in zip(state.x, inputs, strict=True))
        fires, after = signgd_step(x, state.neuron, p)
        self._tell(fires)
        return weighted_spike(fires, after, p), SignGDSpikeState(x, after)

    def _tell(self, fires: Tensor) -> None:
        spikes.tell(lambda: signs(fires.unsqueeze(0), self.members))
