r"""Norse neurons: signGD, group and subgradient neurons, and what codes and decodes them.

As Norse has it, a neuron is a step ``x_feed_forward_step(input, state, p, dt) -> (output, state)``,
a cell that runs one step [B, ...], and a layer that runs a sequence [T, B, ...]. Both return
``(output, state)`` and start anew where no state is passed; states are returned new, never changed.
A layer hands the whole sequence to the kernels of ``neurons/``, a cell one step of it, so that both
give the same numbers, which are those of the SpikingJelly nodes. ``dt`` is taken as Norse's
neurons take it and is not used: the neurons are defined step by step.

*Ties.* Norse's neurons fire strictly above the threshold. Ours keep the rule of their definitions:
a member k of a group neuron fires at h >= k theta, and a signGD neuron sends sigma = +1 at v = f(x)
where its row of ``NONLINEARITIES`` says so. ``p.method`` and ``p.alpha`` choose the gradient of
``norse.torch.functional.threshold``, none for "heaviside"; the step stays at our ties.

The tensors of ``p`` are buffers of a cell or layer, or its parameters where they are
``nn.Parameter``: they move, are saved and are loaded. The rest of ``p`` is in ``state_dict()`` as
plain numbers and text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ...neurons import coding, group, growth, signgd, subgradient
from ...neurons.growth import growth_initial_state, selecting
from ...neurons.multi_step import (
    BACKENDS,
    Choice,
    group_choice,
    group_multi_step,
    growth_multi_step,
    signgd_choice,
    sum_choice,
)
from ...neurons.nonlinearities import Nonlinearity, nonlinearity
from ...neurons.protocol import (
    at_least_float32,
    check_protocol,
    encode_step,
    like,
    readout_sequence,
    running_mean,
    signgd_sequence,
    signgd_start,
)
from ...neurons.scan import scan
from ...neurons.schedules import ExponentialSchedule, InverseSchedule, Schedule
from ...neurons.signgd import spread
from ...neurons.surrogate import Surrogate
from .. import simulator
from .module import Cell, Layer, Neuron, stale

with simulator("norse"):
    from norse.torch.functional.threshold import threshold

METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


def _gradient_at_one(alpha: float) -> float:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(threshold(x, "super", alpha), x)
    return float(gradient)


# Norse 1.1.0 computes the gradient of "super" with alpha = 1 whatever alpha is
SUPER_HAS_ALPHA = _gradient_at_one(1.0) != _gradient_at_one(3.0)


def surrogate(method: str, alpha: float | Tensor) -> Surrogate | None:
    """The gradient of Norse's ``threshold(x, method, alpha)``, as installed; None for "heaviside".

    Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, but it is {method!r}.")
    if method == "heaviside":
        return None
    gradient = Surrogate(method, float(alpha))
    return Surrogate(method, 1.0) if method == "super" and not SUPER_HAS_ALPHA else gradient


def _trains(*values: Any) -> bool:
    """Whether a gradient is recorded for any of these tensors."""
    if not torch.is_grad_enabled():
        return False
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(value, Tensor) and value.requires_grad for value in flat)


# -- signGD ---------------------------------------------------------------------------------------


class SignGDParameters(NamedTuple):
    """Parametrization of signGD neurons.

    Parameters:
        function (str | Nonlinearity | Callable): f, a row of ``NONLINEARITIES``, its name, or a
            callable of one or several tensors
        schedule (Schedule): the step sizes eta(t); the default is the published choice
        scale (float | Tensor): unit of the steps, positive, broadcasts against v [B, ...]
        resting (float | Tensor): v(0), broadcasts against v
        initial_input (float | Tensor | tuple): x(0), the bias of the layer before, broadcasts
            against an input; a tuple for several inputs
        spikes (str): what is sent, "signed" -eta(t) scale sigma(t), "binary" scale {0, 1}, or
            "decoded" v(t) (``neurons/protocol.py``)
        offset (float | Tensor | tuple): W (scale 1) of the layer before, for "binary" alone
        arguments (Mapping): parameters of f, such as ``{"negative_slope": 0.1}``
        momentum (float): of the step, 0 in the paper
        method (str): Norse's method for the gradient of a spike in v - f(x)
        alpha (float): Norse's hyper parameter of that gradient
        backend (str): what runs the neurons, "auto", "cpu", "cupy" or "torch"
        members (int): m, the signs of one step, of sizes eta, eta / 2, ...; at most 8, without
            momentum, and the same for all neurons of a network with "binary" spikes
    """

    function: str | Nonlinearity | Callable[..., Tensor] = "relu"
    schedule: Schedule = ExponentialSchedule(0.15, 0.95)
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    initial_input: float | Tensor | tuple[float | Tensor, ...] = 0.0
    spikes: str = "signed"
    offset: float | Tensor | tuple[float | Tensor, ...] | None = None
    arguments: Mapping[str, Any] | None = None
    momentum: float = 0.0
    method: str = "super"
    alpha: float = 100.0
    backend: str = "auto"
    members: int = 1


class SignGDState(NamedTuple):
    """State of signGD neurons.

    Parameters:
        v (Tensor): decoded output [B, ...]
        t (int): steps done
        x (tuple[Tensor, ...]): the integrated inputs, None where decoded values pass
        buffer (Tensor): the momentum's memory, None without
    """

    v: Tensor
    t: int = 0
    x: tuple[Tensor, ...] | None = None
    buffer: Tensor | None = None


class _SignGD(Neuron):
    Parameters = SignGDParameters
    State = SignGDState
    numbers = ("momentum", "alpha")
    counts = ("members",)
    later = ("members",)

    @classmethod
    def check_parameters(cls, p: SignGDParameters) -> None:
        check_protocol(cls.__name__, p.spikes, p.initial_input, p.offset, p.momentum)
        _check_schedule(cls.__name__, p.schedule)
        surrogate(p.method, p.alpha)
        _check_backend(cls.__name__, p.backend)
        cls.dynamics(p, check=True)

    @classmethod
    def dynamics(cls, p: SignGDParameters, check: bool = False) -> signgd.SignGDParameters:
        """What the definition takes, made of p's tensors as they are now."""
        arguments = {key: at_least_float32(value) for key, value in (p.arguments or {}).items()}
        return signgd.SignGDParameters(
            nonlinearity(p.function),
            p.schedule,
            at_least_float32(p.scale),
            at_least_float32(p.resting),
            arguments,
            p.momentum,
            p.members,
            check=check,
        )

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: SignGDParameters) -> SignGDState:
        dynamics = cls.dynamics(p)
        _check_arity(cls, inputs, dynamics)
        initial = () if p.spikes == "decoded" else _for_each(p.initial_input, inputs, cls.__name__)
        (v, t, buffer), x = signgd_start(inputs, dynamics, p.spikes, initial)
        return SignGDState(v, t, x, buffer)

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: SignGDState) -> None:
        # ``sequence`` knows what shape v has, and how many arguments f
        for x, integrated in zip(inputs, state.x or (), strict=False):
            if x.shape != integrated.shape:
                raise stale(cls, inputs, integrated)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: SignGDState, p: SignGDParameters
    ) -> tuple[Tensor, SignGDState]:
        dynamics = cls.dynamics(p)
        _check_arity(cls, inputs, dynamics)
        if (state.x is None) != (p.spikes == "decoded"):
            raise InputError(
                f"{cls.__name__}: the state is one of a neuron that "
                f"{'takes decoded values' if state.x is None else 'integrates spikes'}, but "
                f"spikes={p.spikes!r}. Pass state=None."
            )
        if state.x is None and dynamics.function.elementwise:
            shapes = [x.shape[1:] for x in inputs]
            shape = torch.broadcast_shapes(*shapes) if len(shapes) > 1 else shapes[0]
            if shape != state.v.shape:
                raise stale(cls, [x[0] for x in inputs], state.v)
        gradient = cls._gradient(p, *inputs, *state)
        if gradient is not None and (p.spikes == "binary" or p.momentum):
            raise InputError(
                f"{cls.__name__}: a gradient passes signed spikes or decoded values without "
                'momentum. Choose spikes="signed", or method="heaviside" for no gradient.'
            )
        with torch.set_grad_enabled(gradient is not None):
            done = signgd_sequence(
                inputs,
                signgd.SignGDState(state.v, state.t, state.buffer),
                state.x,
                dynamics,
                p.spikes,
                offsets=() if p.offset is None else _for_each(p.offset, inputs, cls.__name__),
                backend=p.backend,
                surrogate=gradient,
            )
        v, t, buffer = done.state
        return done.y, SignGDState(v, t, None if state.x is None else done.x, buffer)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        return signgd_choice(self.p.backend, x, self.dynamics(self.p), self._gradient(self.p, x))

    @classmethod
    def _gradient(cls, p: SignGDParameters, *values: Any) -> Surrogate | None:
        """The surrogate, where one of these values or a tensor of p asks for a gradient."""
        arguments = tuple((p.arguments or {}).values())
        trains = _trains(*values, p.scale, p.resting, p.initial_input, arguments)
        return surrogate(p.method, p.alpha) if trains else None

    def begin(self, inputs: tuple[Tensor, ...]) -> SignGDState:
        """The state of a run whose integrated inputs begin with these values."""
        return self.start(inputs, self.p._replace(initial_input=inputs))


def _check_arity(cls: type, inputs: tuple[Tensor, ...], dynamics: signgd.SignGDParameters) -> None:
    _of_arity(cls, inputs, dynamics.function)


def _of_arity(cls: type, inputs: tuple[Tensor, ...], function: Nonlinearity) -> Nonlinearity:
    if function.arity not in (None, len(inputs)):
        raise InputError(
            f"{cls.__name__}: {function.name!r} has {function.arity} arguments, but {len(inputs)} "
            "inputs came in. Pass a tuple with one tensor for each."
        )
    return function


def _for_each(value: Any, inputs: tuple[Tensor, ...], owner: str) -> tuple[float | Tensor, ...]:
    """One value for each input; a single number counts for all."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) == 1 and not isinstance(values[0], Tensor):
        values *= len(inputs)
    if len(values) != len(inputs):
        raise InputError(
            f"{owner}: {len(inputs)} inputs came in, but initial_input or offset has "
            f"{len(values)} values. Pass a tuple with one for each input."
        )
    return values


def _check_schedule(owner: str, schedule: Any) -> None:
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"{owner}: schedule is one such as ExponentialSchedule(0.5, 0.9), but it is "
            f"{schedule!r}."
        )


def _check_backend(owner: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{owner}: backend is one of {', '.join(BACKENDS)}, not {backend!r}.")


def signgd_feed_forward_step(
    input_tensor: Tensor | tuple[Tensor, ...],
    state: SignGDState | None,
    p: SignGDParameters | None = None,
    dt: float = 0.001,
) -> tuple[Tensor, SignGDState]:
    r"""One step of signGD neurons, with the sign of a gradient step toward f(x) as spike.

    .. math::
        x(t) &= x(t-1) + I(t) \\
        \sigma(t) &= +1 \text{ where } v(t-1) \ge f(x(t)), \text{ else } -1 \\
        v(t) &= v(t-1) - \eta(t)\, s\, \sigma(t)

    The output is :math:`-\eta(t)\, s\, \sigma(t)` unless ``p.spikes`` says otherwise, and I(t) what
    a layer without bias makes of such outputs; whether v = f(x) fires is a property of f's row.
    With ``p.members`` m > 1 m signs follow on each other, of which each halves the step, and
    :math:`-\eta(t)\, s\, 2^{1-m} d(t)` is sent, d(t) the odd integer that they are the digits of.
    Source: Oh & Lee, ICML 2024 (arXiv:2407.01645).

    Parameters:
        input_tensor (Tensor): I(t) [B, ...] (x(t) with decoded spikes); a tuple for several
            arguments of f
        state (SignGDState): the state, None before the first step
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility

    Raises InputError where the state is one of another batch, BackendUnavailable where
    ``p.backend`` cannot run.

    Example:
        >>> p = SignGDParameters("gelu", ExponentialSchedule(0.5, 0.9))
        >>> spikes, state = signgd_feed_forward_step(torch.randn(8, 64), None, p)
    """
    return SignGDCell.feed_forward_step(input_tensor, state, p, dt)


class SignGDCell(_SignGD, Cell):
    """signGD neurons, one step [B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility

    Example:
        >>> cell = SignGDCell(SignGDParameters("gelu"))
        >>> spikes, state = cell(torch.randn(8, 64))
        >>> spikes, state = cell(torch.randn(8, 64), state)
    """


class SignGD(_SignGD, Layer):
    """signGD neurons, T steps [T, B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility
        record_states (bool): return the states after each step, with t as a tensor [T]

    Example:
        >>> layer = SignGD(SignGDParameters("gelu"))
        >>> spikes, state = layer(torch.randn(32, 8, 64))
    """


# -- group neurons --------------------------------------------------------------------------------


class GroupNeuronParameters(NamedTuple):
    """Parametrization of group neurons.

    Parameters:
        members (int): m; member k fires at k v_th / m
        v_th (float | Tensor): the largest output of one step, broadcasts against v [B, ...]
        initial_charge (float | Tensor): v(0) as a fraction of v_th / m; 1/2 rounds to the nearest
            level; broadcasts against v
        method (str): Norse's method for the gradient of a member's spike in h - k v_th / m
        alpha (float): Norse's hyper parameter of that gradient
        backend (str): what runs the neurons, "auto", "cpu", "cupy" or "torch"
        signed (bool): the neurons may take back, by negative spikes, what they have sent
    """

    members: int = 4
    v_th: float | Tensor = 1.0
    initial_charge: float | Tensor = 0.5
    method: str = "super"
    alpha: float = 100.0
    backend: str = "auto"
    signed: bool = False


class GroupNeuronState(NamedTuple):
    """State of group neurons.

    Parameters:
        v (Tensor): membrane potential [B, ...], which all members share
    """

    v: Tensor


class SignedGroupNeuronState(NamedTuple):
    """State of signed group neurons.

    Parameters:
        v (Tensor): membrane potential [B, ...], which all members share
        sent (Tensor): spikes sent so far [B, ...], the negative ones taken off
    """

    v: Tensor
    sent: Tensor


class _GroupNeuron(Neuron):
    Parameters = GroupNeuronParameters
    State = (GroupNeuronState, SignedGroupNeuronState)
    numbers = ("alpha",)
    counts = ("members",)
    later = ("signed",)

    @classmethod
    def _normal(cls, p: Any) -> Any:
        p = super()._normal(p)
        given = {name: getattr(p, name) for name in ("v_th", "initial_charge")}
        return p._replace(**{name: _one_number(value) for name, value in given.items()})

    @classmethod
    def check_parameters(cls, p: GroupNeuronParameters) -> None:
        surrogate(p.method, p.alpha)
        _check_backend(cls.__name__, p.backend)
        cls.dynamics(p, check=True)

    @classmethod
    def dynamics(cls, p: GroupNeuronParameters, check: bool = False) -> group.GroupNeuronParameters:
        """What the definition takes, made of p's tensors as they are now."""
        v_th, charge = at_least_float32(p.v_th), at_least_float32(p.initial_charge)
        return group.GroupNeuronParameters(p.members, v_th, charge, p.signed, check)

    @classmethod
    def start(
        cls, inputs: tuple[Tensor, ...], p: GroupNeuronParameters
    ) -> GroupNeuronState | SignedGroupNeuronState:
        v = group.group_initial_v(inputs[0], cls.dynamics(p))
        return SignedGroupNeuronState(v, torch.zeros_like(v)) if p.signed else GroupNeuronState(v)

    @classmethod
    def sequence(
        cls,
        inputs: tuple[Tensor, ...],
        state: GroupNeuronState | SignedGroupNeuronState,
        p: GroupNeuronParameters,
    ) -> tuple[Tensor, GroupNeuronState | SignedGroupNeuronState]:
        (x_seq,) = _single(cls, inputs)
        sent = state.sent if isinstance(state, SignedGroupNeuronState) else None
        if (sent is not None) != p.signed:
            raise InputError(
                f"{cls.__name__}: the state is one of neurons that are "
                f"{'not ' if p.signed else ''}signed. Pass state=None."
            )
        trains = _trains(x_seq, state.v, p.v_th, p.initial_charge)
        done = group_multi_step(
            x_seq,
            state.v,
            cls.dynamics(p),
            sent=sent,
            backend=p.backend,
            surrogate=surrogate(p.method, p.alpha) if trains else None,
        )
        if done.sent is None:
            return done.y, GroupNeuronState(done.v)
        return done.y, SignedGroupNeuronState(done.v, done.sent)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        p = self.p
        trains = _trains(x, p.v_th, p.initial_charge)
        gradient = surrogate(p.method, p.alpha) if trains else None
        return group_choice(p.backend, x, self.dynamics(p), gradient)


def _one_number(value: float | Tensor) -> float | Tensor:
    """A tensor of one element that is not trained, as Norse's parameters are, as a number."""
    if not isinstance(value, Tensor) or value.numel() != 1 or value.requires_grad or value.is_meta:
        return value
    return float(value.item())


def _single(cls: type, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    if len(inputs) != 1:
        raise InputError(f"{cls.__name__}: it has one input, but {len(inputs)} came in.")
    return inputs  # type: ignore[return-value]


def group_neuron_feed_forward_step(
    input_tensor: Tensor,
    state: GroupNeuronState | SignedGroupNeuronState | None,
    p: GroupNeuronParameters | None = None,
    dt: float = 0.001,
) -> tuple[Tensor, GroupNeuronState | SignedGroupNeuronState]:
    r"""One step of group neurons: m integrate-and-fire members that share one potential.

    .. math::
        h(t) &= v(t-1) + x(t) \\
        n(t) &= \textstyle\sum_{k=1}^{m} \Theta(h(t) - k\theta), \qquad \theta = v_{th} / m \\
        v(t) &= h(t) - n(t)\,\theta

    The output is :math:`n(t)\,\theta`. With ``p.signed`` n(t) may be negative, down to minus the
    spikes sent so far. Unlike Norse's step :math:`\Theta(0) = 1`: at a tie, which
    quantised inputs reach, member k fires.
    Source: Lv et al., ICASSP 2024 (arXiv:2402.19061).

    Parameters:
        input_tensor (Tensor): membrane current x(t) [B, ...]
        state (GroupNeuronState | SignedGroupNeuronState): the state, None before the first step
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class
        dt (float): not used, for compatibility

    Raises InputError where the state is one of another batch, BackendUnavailable where
    ``p.backend`` cannot run.

    Example:
        >>> p = GroupNeuronParameters(members=8)
        >>> spikes, state = group_neuron_feed_forward_step(torch.randn(8, 64), None, p)
    """
    return GroupNeuronCell.feed_forward_step(input_tensor, state, p, dt)


class GroupNeuronCell(_GroupNeuron, Cell):
    """Group neurons, one step [B, ...]: see :func:`group_neuron_feed_forward_step`.

    Parameters:
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class
        dt (float): not used, for compatibility

    Example:
        >>> cell = GroupNeuronCell(GroupNeuronParameters(members=8))
        >>> spikes, state = cell(torch.randn(8, 64))
        >>> spikes, state = cell(torch.randn(8, 64), state)
    """


class GroupNeuron(_GroupNeuron, Layer):
    """Group neurons, T steps [T, B, ...]: see :func:`group_neuron_feed_forward_step`.

    Parameters:
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class
        dt (float): not used, for compatibility
        record_states (bool): return the potentials after each step, [T, B, ...]

    Example:
        >>> layer = GroupNeuron(GroupNeuronParameters(members=8))
        >>> spikes, state = layer(torch.randn(32, 8, 64))
    """


# -- pooling of spikes that count -----------------------------------------------------------------


class GrowthParameters(NamedTuple):
    """Parametrization of pooling of spikes that count.

    Parameters:
        function (str | Nonlinearity): a row of ``NONLINEARITIES`` of which an output is one of the
            inputs, or its name: "max_pool", "amax", "maximum" and others
        arguments (Mapping): its parameters, such as ``{"kernel_size": 2}``
        backend (str): what sums up, "auto", "cpu", "cupy" or "torch"
    """

    function: str | Nonlinearity = "maximum"
    arguments: Mapping[str, Any] | None = None
    backend: str = "auto"


class GrowthState(NamedTuple):
    """State of pooling of spikes that count.

    Parameters:
        last (Tensor): the function of the totals [B, ...], the sum of what was sent
        totals (tuple[Tensor, ...]): the sum of each input so far [B, ...]
    """

    last: Tensor
    totals: tuple[Tensor, ...]


class _Growth(Neuron):
    Parameters = GrowthParameters
    State = GrowthState

    @classmethod
    def check_parameters(cls, p: GrowthParameters) -> None:
        selecting(cls.__name__, p.function)
        _check_backend(cls.__name__, p.backend)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: GrowthParameters) -> GrowthState:
        row = _of_arity(cls, inputs, nonlinearity(p.function))
        totals, last = growth_initial_state(inputs, partial(row, **(p.arguments or {})))
        return GrowthState(last, totals)

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: GrowthState) -> None:
        for x, total in zip(inputs, state.totals, strict=False):
            if x.shape != total.shape:
                raise stale(cls, inputs, total)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: GrowthState, p: GrowthParameters
    ) -> tuple[Tensor, GrowthState]:
        row = _of_arity(cls, inputs, nonlinearity(p.function))
        if _trains(*inputs, *state):
            raise InputError(
                f"{cls.__name__}: the growth of sums has no gradient, and what stands before it "
                "would not be trained. Run it under torch.no_grad()."
            )
        before = growth.GrowthState(state.totals, state.last)
        done = growth_multi_step(inputs, before, row, p.arguments, backend=p.backend)
        return done.y, GrowthState(done.state.last, done.state.totals)

    def choice(self, x: Tensor) -> Choice:
        """What sums up inputs of the type and on the device of x, and why if it is the definition.
        Raises BackendUnavailable."""
        return sum_choice(self.p.backend, x)


class GrowthCell(_Growth, Cell):
    """One step [B, ...] of pooling of spikes that count: the growth of f of the inputs' sums.

    Parameters:
        p (GrowthParameters): what is pooled, and how
        dt (float): not used, for compatibility

    Example:
        >>> cell = GrowthCell(GrowthParameters("max_pool", {"kernel_size": 2}))
        >>> pooled, state = cell(torch.randn(8, 3, 4, 4))
    """


class Growth(_Growth, Layer):
    """T steps [T, B, ...] of pooling of spikes that count: see ``GrowthCell``."""


# -- the rate-coded baseline ----------------------------------------------------------------------


class SubgradientParameters(NamedTuple):
    """Parametrization of the rate-coded baseline for ReLU (``neurons/subgradient.py``).

    Parameters:
        scale (float | Tensor): the largest output, broadcasts against v
        schedule (Schedule): the step sizes, 1 / (t + 1)
    """

    scale: float | Tensor = 1.0
    schedule: Schedule = InverseSchedule(1.0, delay=1.0)


class SubgradientState(NamedTuple):
    """``v`` [B, ...] the decoded rate, ``t`` the steps done."""

    v: Tensor
    t: int = 0


class _Subgradient(Neuron):
    Parameters = SubgradientParameters
    State = SubgradientState

    @classmethod
    def check_parameters(cls, p: SubgradientParameters) -> None:
        _check_schedule(cls.__name__, p.schedule)
        subgradient.SubgradientParameters(p.scale, p.schedule)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any) -> SubgradientState:
        return SubgradientState(torch.zeros_like(inputs[0]))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: SubgradientState, p: SubgradientParameters
    ) -> tuple[Tensor, SubgradientState]:
        if _trains(*inputs, *state, p.scale):
            raise InputError(
                f"{cls.__name__}: the rate-coded baseline has no gradient, and what stands before "
                "it would not be trained. Run it under torch.no_grad(), or take SignGD."
            )
        dynamics = subgradient.SubgradientParameters(
            at_least_float32(p.scale), p.schedule, check=False
        )

        def step(
            x: Tensor, state: SubgradientState, p: subgradient.SubgradientParameters
        ) -> tuple[Tensor, SubgradientState]:
            _, after = subgradient.subgradient_step(x, subgradient.SubgradientState(*state), p)
            return after.v, SubgradientState(*after)

        return _scan(step, _single(cls, inputs)[0], state, dynamics)


class SubgradientCell(_Subgradient, Cell):
    """One step [B, ...] of the baseline: decoded x(t) in, v(t) out."""


class Subgradient(_Subgradient, Layer):
    """T steps [T, B, ...] of the baseline: decoded x(t) in, v(t) out."""


def _scan(step: Callable[..., Any], x_seq: Tensor, state: Any, p: Any) -> tuple[Tensor, Any]:
    """``scan`` in the state's precision; the output has the input's type."""
    y_seq, state = scan(step, x_seq.to(state[0].dtype), state, p)
    return y_seq.to(x_seq.dtype), state


# -- coding and decoding --------------------------------------------------------------------------


class EncodeParameters(NamedTuple):
    """Parametrization of real-valued input coding (``neurons/coding.py``).

    Parameters:
        schedule (Schedule): the step sizes, those of the first layer
        momentum (float): of the step
        spikes (str): what is sent, "signed" increments of v, "decoded" v, or "binary"
            (1 + v - x) / 2, as published
        members (int): of the neurons that take "binary" spikes
    """

    schedule: Schedule = ExponentialSchedule(0.15, 0.95)
    momentum: float = 0.0
    spikes: str = "signed"
    members: int = 1


class EncodeState(NamedTuple):
    """``v`` [B, ...] the decoded input, ``t`` the steps done, ``buffer`` the momentum's memory."""

    v: Tensor
    t: int = 0
    buffer: Tensor | None = None


class _Encode(Neuron):
    Parameters = EncodeParameters
    State = EncodeState
    numbers = ("momentum",)
    counts = ("members",)
    later = ("members",)

    @classmethod
    def check_parameters(cls, p: EncodeParameters) -> None:
        offset = 0.0 if p.spikes == "binary" else None
        check_protocol(cls.__name__, p.spikes, 0.0, offset, p.momentum)
        _check_schedule(cls.__name__, p.schedule)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any) -> EncodeState:
        return EncodeState(torch.zeros_like(inputs[0]))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: EncodeState, p: EncodeParameters
    ) -> tuple[Tensor, EncodeState]:
        def step(
            x: Tensor, state: EncodeState, q: coding.RealCodingParameters
        ) -> tuple[Tensor, EncodeState]:
            y, after = encode_step(x, coding.CodingState(*state), q, p.spikes, p.members)
            return y, EncodeState(*after)

        q = coding.RealCodingParameters(p.schedule, p.momentum)
        return _scan(step, _single(cls, inputs)[0], state, q)


class EncodeCell(_Encode, Cell):
    """One step of real-valued coding: the input [B, ...] to what a signGD layer takes."""


class Encode(_Encode, Layer):
    """T steps of real-valued coding: inputs [T, B, ...] to what a signGD layer takes."""


class PoissonEncodeParameters(NamedTuple):
    """Parametrization of Poisson input coding (``neurons/coding.py``).

    Parameters:
        scale (float): the amplitude of a spike
        seed (int): of the draws, which depend on (seed, t) alone
        averaged (bool): send the mean of the spikes so far
    """

    scale: float = 1.0
    seed: int = 0
    averaged: bool = False


class PoissonEncodeState(NamedTuple):
    """``v`` [B, ...] the mean of the spikes so far, ``t`` the steps done."""

    v: Tensor
    t: int = 0


class _PoissonEncode(Neuron):
    Parameters = PoissonEncodeParameters
    State = PoissonEncodeState
    numbers = ("scale",)
    counts = ("seed",)

    @classmethod
    def check_parameters(cls, p: PoissonEncodeParameters) -> None:
        coding.PoissonCodingParameters(p.scale, p.seed)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any) -> PoissonEncodeState:
        return PoissonEncodeState(torch.zeros_like(inputs[0]))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: PoissonEncodeState, p: PoissonEncodeParameters
    ) -> tuple[Tensor, PoissonEncodeState]:
        def step(
            x: Tensor, state: PoissonEncodeState, q: coding.PoissonCodingParameters
        ) -> tuple[Tensor, PoissonEncodeState]:
            spikes, after = coding.poisson_step(x, coding.CodingState(*state), q)
            return after.v if p.averaged else spikes, PoissonEncodeState(after.v, after.t)

        q = coding.PoissonCodingParameters(p.scale, p.seed)
        return _scan(step, _single(cls, inputs)[0], state, q)


class PoissonEncodeCell(_PoissonEncode, Cell):
    """One step of Poisson coding, [B, ...]."""


class PoissonEncode(_PoissonEncode, Layer):
    """T steps of Poisson coding, [T, B, ...]."""


class ReadoutParameters(NamedTuple):
    """Parametrization of the read-out of signGD networks.

    Parameters:
        initial (float | Tensor): y(0), the bias of the last layer, broadcasts against its output
        spikes (str): what the last layer was handed, "signed", "binary" or "decoded"
        schedule (Schedule): the step sizes of the senders, for "binary"
        offset (float | Tensor): W (scale 1) of the last layer, for "binary" alone
        members (int): of the senders, for "binary"
    """

    initial: float | Tensor = 0.0
    spikes: str = "signed"
    schedule: Schedule | None = None
    offset: float | Tensor | None = None
    members: int = 1


class ReadoutState(NamedTuple):
    """``y`` [B, ...] the decoded output, ``t`` the steps done."""

    y: Tensor
    t: int = 0


class _Readout(Neuron):
    Parameters = ReadoutParameters
    State = ReadoutState
    counts = ("members",)
    later = ("members",)

    @classmethod
    def check_parameters(cls, p: ReadoutParameters) -> None:
        check_protocol(cls.__name__, p.spikes, p.initial, p.offset)
        if p.spikes == "binary" and p.schedule is None:
            raise ValueError(
                f"{cls.__name__}: binary spikes are decoded with the step sizes of their senders. "
                "Pass schedule=... ."
            )
        if p.schedule is not None:
            _check_schedule(cls.__name__, p.schedule)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: ReadoutParameters) -> ReadoutState:
        (current,) = _single(cls, inputs)
        return ReadoutState(spread(like(p.initial, current), current.shape, "initial"))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: ReadoutState, p: ReadoutParameters
    ) -> tuple[Tensor, ReadoutState]:
        (current,) = _single(cls, inputs)
        offset = 0.0 if p.offset is None else p.offset
        y_seq, y = readout_sequence(
            current, state.y, state.t, p.spikes, p.schedule, offset, p.members
        )
        return y_seq, ReadoutState(y, state.t + current.shape[0])


class ReadoutCell(_Readout, Cell):
    """One step of the read-out: what the last layer makes of spikes [B, ...], decoded."""


class Readout(_Readout, Layer):
    """T steps of the read-out: what the last layer makes of spikes [T, B, ...], decoded."""


class RunningMeanParameters(NamedTuple):
    """The running mean has no parameters."""


class RunningMeanState(NamedTuple):
    """``total`` [B, ...] the sum of the inputs so far, ``t`` the steps done."""

    total: Tensor
    t: int = 0


class _RunningMean(Neuron):
    Parameters = RunningMeanParameters
    State = RunningMeanState

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any) -> RunningMeanState:
        return RunningMeanState(torch.zeros_like(inputs[0]))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: RunningMeanState, p: Any
    ) -> tuple[Tensor, RunningMeanState]:
        (x_seq,) = _single(cls, inputs)
        y_seq, total = running_mean(x_seq, state.total, state.t)
        return y_seq, RunningMeanState(total, state.t + x_seq.shape[0])


class RunningMeanCell(_RunningMean, Cell):
    """One step of the read-out of rate-coded networks: the mean of the inputs so far."""


class RunningMean(_RunningMean, Layer):
    """T steps of the read-out of rate-coded networks: the mean of the inputs so far."""
