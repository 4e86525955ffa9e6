r"""signGD neuron: a spike is the sign of a gradient step toward f(x), for any function f.

.. math::
    x(t) &= x(t-1) - \eta_{in}(t)\, W (s_{in}\, \sigma_{in}(t)) \\
    \sigma(t) &= +1 \text{ where } v(t-1) \ge f(x(t)), \text{ else } -1 \\
    v(t) &= v(t-1) - \eta(t)\, s\, \sigma(t)

x is the estimate of the input (one for each argument of f), v that of the output, s a scale that
is 1 in the paper, :math:`\eta` the step-size schedule. A row of the table of nonlinearities says
whether v = f(x) fires. With x(0) = W v_in(0) + b the identity x(t) = W v_in(t) + b holds, which
gives two views of the same neuron: in the decoded form a step receives x(t) itself, in the spike
form it receives the weighted spikes and integrates x.

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

With a *dead zone* :math:`\theta` in (0, 1) a member may be silent (``sparse.py``):

.. math::
    \sigma_k(t) = \mathrm{sign}(r_{k-1}) \text{ where } |r_{k-1}| > \theta c_k, \text{ else } 0,
    \qquad r_k = r_{k-1} - c_k \sigma_k, \qquad c_k = \eta(t) s 2^{1-k}

with :math:`r_0 = v(t-1) - f(x(t))` and :math:`v(t) = v(t-1) - c_m d`, where d may be even, and 0.

Source: Oh & Lee, ICML 2024 (arXiv:2407.01645), Definition of signGD-based neuronal dynamics; the
optional momentum is that of SGD, as in the published code. Groups of signs are new here: they
combine it with the group neuron of Lv et al., ICASSP 2024 (arXiv:2402.19061).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from .. import spikes
from ..base import broadcasts, spread
from ..kernels.prepared import keep, unwatched
from ..nonlinearities import FunctionInC, Nonlinearity
from ..rounding import Rounded
from ..schedules import Schedule, name_schedule
from . import sparse

# theta of ``convert`` and of nodes built by hand where none is given
DEAD_ZONE = 2 / 3
MOST_MEMBERS = 8  # of neurons without a dead zone: the signs of one step fit a byte


@dataclass(frozen=True, eq=False)
class SignGDParameters(Rounded):
    """One neuron population.

    ``scale`` is the unit of the steps, a number or a tensor that broadcasts against v; the
    neuron reaches ``resting`` ± scale * (sum of the schedule) * (2 - 2 ** (1 - members)).
    ``arguments`` are the parameters of the function, such as ``{"negative_slope": 0.1}``.
    ``members``, m, counts the signs of one step, at most 8, with a dead zone 12. ``dead_zone``,
    theta in [0, 1), is a number or a tensor that broadcasts against v, both read in float32: a
    member is silent where v is within theta of its step of f(x); 0 is the paper's neuron, which
    fires at every step. ``check`` reads the values of scale and dead zone, which synchronises a
    GPU.
    """

    function: Nonlinearity
    schedule: Schedule
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    momentum: float = 0.0
    members: int = 1
    dead_zone: float | Tensor = 0.0
    check: InitVar[bool] = True
    schedule_name: str = field(init=False, repr=False)  # what the kernels are given for both
    in_c: FunctionInC | None = field(init=False, repr=False)
    tensors: tuple[Tensor, ...] = field(init=False, repr=False)  # but ``resting``
    # what ``sequence.py`` has found out for inputs of some layout
    ready: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self, check: bool) -> None:
        object.__setattr__(self, "schedule_name", name_schedule(self.schedule))
        object.__setattr__(self, "in_c", self.function.in_c(self.arguments))
        given = (*self.arguments.values(), self.scale, self.dead_zone)
        object.__setattr__(self, "tensors", tuple(a for a in given if isinstance(a, Tensor)))
        check_dead_zone_type("SignGDParameters", self.dead_zone)
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
        if check:
            check_dead_zone("SignGDParameters", self.dead_zone)
        most = sparse.MOST_MEMBERS if self.sparse else MOST_MEMBERS
        if self.members not in range(1, most + 1) or isinstance(self.members, bool):
            raise ValueError(
                "SignGDParameters: members is the number of signs in one step, an integer from 1 "
                f"to {MOST_MEMBERS}, with a dead zone to {sparse.MOST_MEMBERS}, but it is "
                f"{self.members!r}."
            )
        if self.momentum and self.members > 1:
            raise ValueError(
                "SignGDParameters: momentum is defined for one sign per step only; set momentum "
                "to 0, or members to 1."
            )
        if self.momentum and self.sparse:
            raise ValueError(
                "SignGDParameters: momentum accumulates the signs of all steps, some of which a "
                "dead zone suppresses; set momentum or dead_zone to 0."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ready": {}}  # which is of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"ready": {}, **state})
        self.__dict__["schedule_name"] = name_schedule(
            self.schedule
        )  # in the process that reads it

    @property
    def sparse(self) -> bool:
        """Whether a member may be silent."""
        return isinstance(self.dead_zone, Tensor) or self.dead_zone > 0

    @property
    def read(self) -> tuple[Tensor, ...]:
        """The tensors that a kernel reads with the arguments of f."""
        return () if self.in_c is None else self.in_c.tensors

    @property
    def sizes(self) -> tuple[Tensor, ...]:
        """Scale and dead zone, where they are tensors."""
        return tuple([a for a in (self.scale, self.dead_zone) if isinstance(a, Tensor)])

    def target(self, *x: Tensor) -> Tensor:
        """f(x): what v moves toward."""
        return self.function(*x, **self.arguments)


def check_dead_zone(owner: str, theta: float | Tensor) -> None:
    """Raises InputError unless theta is in [0, 1) everywhere."""
    check_dead_zone_type(owner, theta)
    value = torch.as_tensor(theta, dtype=torch.float32)  # whatever torch's default is
    if not bool(((value >= 0) & (value < 1)).all()):
        shown = theta if value.dim() == 0 else [float(value.min()), float(value.max())]
        raise InputError(
            f"{owner}: dead_zone is a fraction of the step size, in [0, 1), but it is {shown!r}. "
            "Choose 2 / 3 for the fewest spikes, 1 / 2 for the smallest error, 0 for a sign at "
            "every step."
        )


def check_dead_zone_type(owner: str, theta: Any) -> None:
    """Raises InputError where theta is neither a number nor a tensor."""
    if isinstance(theta, (Real, Tensor)):
        return
    listed = isinstance(theta, (list, tuple)) or hasattr(theta, "__array__")
    fix = "torch.tensor(dead_zone)" if listed else "sg.DEAD_ZONE, which is 2 / 3"
    raise InputError(
        f"{owner}: dead_zone is a number or a tensor, but it is {theta!r}, of type "
        f"{type(theta).__name__}. Pass {fix}."
    )


def check_dead_zone_fits(p: SignGDParameters, v: Tensor) -> None:
    """Raises InputError where theta does not broadcast against v."""
    theta = p.dead_zone
    if isinstance(theta, Tensor) and not broadcasts(theta.shape, v.shape):
        raise InputError(
            f"signGD neurons: dead_zone is {list(theta.shape)} and does not broadcast to a step v "
            f"of {list(v.shape)}. Pass a number, or a tensor of v's shape without the batch."
        )


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


def signgd_start_state(x: Sequence[Tensor], like: Tensor, p: SignGDParameters) -> SignGDState:
    """v at rest before a first step with x, the arguments of f, in the float type of ``like``.

    f(x), of which the shape is needed, is computed once for arguments of some shape.
    """
    if not unwatched():
        return signgd_initial_state(p.target(*x).to(like.dtype), p)
    key = (like.dtype, like.device, torch.is_inference_mode_enabled(), *[a.shape for a in x])
    if (state := p.ready.get(key)) is None:
        with torch.no_grad():
            at = torch.empty((), dtype=like.dtype, device=like.device).expand(p.target(*x).shape)
            state = signgd_initial_state(at, p)
        if _anew(at, p):
            state = state._replace(v=at)
        keep(p.ready, key, state)
    return signgd_initial_state(state.v, p) if _anew(state.v, p) else state


def _anew(v: Tensor, p: SignGDParameters) -> bool:
    """Whether each start has a v of its own: else it is one number, expanded, which cannot be
    changed in place, except for a v of one element."""
    return isinstance(p.resting, Tensor) or v.numel() == 1


def _same_shape(after: Tensor, before: Tensor) -> Tensor:
    if after.shape != before.shape:
        raise InputError(
            f"signGD neurons: with this scale a state v of {list(before.shape)} would become "
            f"{list(after.shape)}. The scale must broadcast to the shape of v."
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
    highest, 1 where its sign is +1. With a dead zone it is an int32 code of ``sparse.py``.
    """
    t = state.t + 1
    target = _target(x, state.v, p)
    size = step_size(state.v, t, p)
    if p.sparse:
        return _sparse_step(target, size, state, p)
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


def _sparse_step(
    target: Tensor, size: Tensor, state: SignGDState, p: SignGDParameters
) -> tuple[Tensor, SignGDState]:
    theta = dead_zone(state.v, p)
    code, v = sparse.sparse_step(target, size, theta, state.v, p.members)
    if isinstance(p.dead_zone, Tensor):  # elements without one fire at every step
        dense, other = sparse.dense_step(target, size, state.v, p.members, p.function.fires_at_tie)
        code, v = code.where(theta > 0, dense), v.where(theta > 0, other)
    return code, SignGDState(_same_shape(v, state.v), state.t + 1)


def dead_zone(v: Tensor, p: SignGDParameters) -> Tensor:
    """theta, rounded to float32, in the type of v."""
    check_dead_zone_fits(p, v)
    return torch.as_tensor(p.dead_zone, dtype=torch.float32, device=v.device).to(v.dtype)


def step_size(v: Tensor, t: int, p: SignGDParameters) -> Tensor:
    """eta(t) s, the first member's, in the type of v."""
    return torch.as_tensor(p.schedule(t) * p.scale, dtype=v.dtype, device=v.device)


def _above(v: Tensor, target: Tensor, p: SignGDParameters) -> Tensor:
    return v >= target if p.function.fires_at_tie else v > target


def levels(fires: Tensor, members: int, dtype: torch.dtype) -> Tensor:
    """d = sum of 2 ** (m - k) sigma_k, at most 2 ** m - 1, of what ``signgd_step`` fired [...].

    Odd without a dead zone. With one member sigma itself.
    """
    if fires.dtype == sparse.CODE:
        return sparse.levels(fires, dtype)
    return 2 * fires.to(dtype) - (2**members - 1)


def digits(fires: Tensor, members: int) -> Tensor:
    """sigma_1 ... sigma_m of each value [...] of what ``signgd_step`` fired, int8 [..., m]: -1, 1,
    and 0 where a member with a dead zone was silent."""
    if fires.dtype == sparse.CODE:
        return sparse.digits(fires, members)
    at = torch.arange(members - 1, -1, -1, device=fires.device, dtype=torch.uint8)
    return 2 * (fires.to(torch.uint8).unsqueeze(-1) >> at & 1).to(torch.int8) - 1


def signs(fires: Tensor, members: int) -> spikes.Events:
    """What neurons sent in steps [T, *] that fired so: every sign is a spike, silence is not."""
    if fires.dtype == sparse.CODE:
        return spikes.Events(sparse.levels(fires, torch.int16), sparse.count(fires), fires)
    number = levels(fires, members, torch.int16)
    return spikes.Events(number, torch.full_like(number, members), fires)


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
    if p.sparse:
        level, v = _sparse_surrogate_step(target, size, state.v, p, surrogate)
    else:
        level, v = _dense_surrogate_step(target, size, state.v, p, surrogate)
    return level, SignGDState(_same_shape(v, state.v), t)


def _sparse_surrogate_step(
    target: Tensor,
    size: Tensor,
    v: Tensor,
    p: SignGDParameters,
    surrogate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """sigma is the sum of two step functions, one at each end of the dead zone, less one."""
    theta = dead_zone(v, p)
    level, after = sparse.surrogate_step(target, size, theta, v, p.members, surrogate)
    if isinstance(p.dead_zone, Tensor):
        dense, other = _dense_surrogate_step(target, size, v, p, surrogate)
        level, after = level.where(theta > 0, dense), after.where(theta > 0, other)
    return level, after


def _dense_surrogate_step(
    target: Tensor,
    size: Tensor,
    v: Tensor,
    p: SignGDParameters,
    surrogate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    level = torch.zeros_like(v)
    for k in range(p.members):
        fires = _above(v, target, p)
        soft = surrogate(v - target)
        sigma = fires.to(v.dtype).mul_(2).sub_(1) + 2 * (soft - soft.detach())
        v = torch.addcmul(v, sigma, size * 2.0**-k, value=-1)
        level = sigma if p.members == 1 else 2 * level + sigma
    return level, v


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
    if p.members == 1 and not p.sparse:
        return torch.where(fires, -size, size)
    return -(size * 2.0 ** (1 - p.members)) * levels(fires, p.members, after.v.dtype)


def from_binary(s: Tensor, offset: Tensor | float, eta: float, members: int = 1) -> Tensor:
    """Current I = W s of binary spikes, or of numbers of ``members`` bits, to an increment.

    -eta 2 ** (1 - m) (2 I - (2 ** m - 1) offset), offset = W 1.
    """
    if members == 1:
        return -eta * (2 * s - offset)
    return -eta * 2.0 ** (1 - members) * (2 * s - (2**members - 1) * offset)
