"""Sequences of steps, by kernels where there are any for the device, else by the definitions.

``backend`` is one of

=========  ====================================================================================
"auto"     the device's kernels; the definition where they are missing or do not apply.
           ``choose`` tells which it is, and why
"cpu"      the compiled kernels, for tensors on the CPU
"cupy"     the same sources compiled by CuPy, for tensors on a GPU
"torch"    the definition, step by step
=========  ====================================================================================

An explicit choice that cannot be had raises BackendUnavailable. Kernels keep float32 states and
return what the definition returns to the bit where f is made of exactly rounded operations. Where
f needs exp, erf, tanh or sqrt (which torch rounds its own way on a CPU) the two are a few ulp
apart, so a spike differs only where v is that close to f(x).
Of functions without C code the kernels are handed f(x), computed by torch for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BackendUnavailable, InputError
from . import spikes
from .group import (
    SMALLEST_THETA,
    GroupNeuronParameters,
    SignedGroupState,
    group_step,
    group_surrogate_step,
    signed_group_step,
    signed_group_surrogate_step,
)
from .growth import GrowthState, growth_step
from .kernels import launch, operators
from .nonlinearities import FunctionInC, Nonlinearity
from .signgd import (
    MOST_MEMBERS,
    SignGDParameters,
    SignGDState,
    levels,
    signgd_step,
    signgd_surrogate_step,
    step_size,
)
from .surrogate import Surrogate

BACKENDS = ("auto", "cpu", "cupy", "torch")
OUTPUTS = ("decoded", "signed", "sigma", "fires")
DEVICES = {"cpu": "cpu", "cupy": "cuda"}  # of the kernels of each backend
HALF = (torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """``backend`` "cpu", "cupy" or "torch", and why it is the definition that runs, if it is."""

    backend: str
    reason: str = ""


class SignGDSequence(NamedTuple):
    """``y`` [T, *], the state after it, the integrated inputs, and what was asked to be kept."""

    y: Tensor
    state: SignGDState
    x: tuple[Tensor, ...]
    v_seq: Tensor | None = None  # [T, *]
    # [T, *] bool: where sigma is 1; of several members uint8, the bits of their sigmas
    spike_seq: Tensor | None = None


class GroupSequence(NamedTuple):
    """``y`` [T, *], the potential after it, v_seq [T, *] if it was asked for, and of signed neurons
    the spikes sent so far."""

    y: Tensor
    v: Tensor
    v_seq: Tensor | None = None
    sent: Tensor | None = None


class GrowthSequence(NamedTuple):
    """``y`` [T, *], the state after it, and f of the sums after each step if it was asked for."""

    y: Tensor
    state: GrowthState
    last_seq: Tensor | None = None  # [T, *]


def _constant(function: Callable[..., str]) -> Callable[..., str]:
    """torch.compiler.assume_constant_result, which itself would import the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def choose(backend: str, device: str, against: str = "") -> Choice:
    """What runs for ``backend`` on a type of device. Raises BackendUnavailable, ValueError.

    ``against`` is why kernels do not apply, empty if they do.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, but it is {backend!r}.")
    if backend == "torch":
        return Choice("torch", "it was asked for")
    name = next((name for name, home in DEVICES.items() if home == device), "")
    if backend not in ("auto", name):
        raise BackendUnavailable(
            f"backend={backend!r} runs on {DEVICES[backend]} tensors, but the input is on "
            f"{device}. Move it with .to({DEVICES[backend]!r}), or use backend='auto'."
        )
    against = against or (_missing(name) if name else f"there are no kernels for {device}")
    if not against:
        return Choice(name)
    if backend == "auto":
        return Choice("torch", against)
    raise BackendUnavailable(f"backend={backend!r}: {against}")


def backends() -> dict[str, str]:
    """Each backend, and why it is not there: empty where it is."""
    return {"torch": "", **{name: _missing(name) for name in DEVICES}}


@_constant
def _missing(backend: str) -> str:
    return launch.PROVIDERS[DEVICES[backend]].missing(None)


@_constant
def _uncompiled(function: str, backend: str) -> str:
    """Why the C code of a function cannot be run, empty if it can."""
    return launch.PROVIDERS[DEVICES[backend]].missing(operators.function_of(function))


def signgd_choice(
    backend: str,
    like: Tensor,
    p: SignGDParameters,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    keeps: bool = False,
) -> Choice:
    """What runs neurons with inputs of the type and on the device of ``like``.

    ``keeps``: whether v_seq and spikes are kept, which with a surrogate the definition does.
    """
    against = _signgd_against(like.dtype, p) or _against_signgd_gradient(surrogate, keeps, p)
    return choose(backend, like.device.type, against)


def function_choice(backend: str, like: Tensor, p: SignGDParameters) -> Choice:
    """Where f is computed: in the kernel, or by torch for it, and why. Raises BackendUnavailable.

    An explicit backend that lacks what it takes to compile the C code of f is refused.
    """
    choice = signgd_choice(backend, like, p)
    return choice if choice.backend == "torch" else _function_choice(backend, choice, p)


def _function_choice(backend: str, choice: Choice, p: SignGDParameters) -> Choice:
    if p.in_c is None:
        given = f" for its arguments {', '.join(p.arguments)}" if p.function.code else ""
        return Choice("torch", f"the row {p.function.name!r} has no C code{given}.")
    tensors, numbers = (p.function.arity or 0) + len(p.in_c.tensors), len(p.in_c.numbers)
    if tensors > launch.ARGUMENTS or numbers > launch.PARAMETERS:
        return Choice(
            "torch",
            f"a kernel takes {launch.ARGUMENTS} tensors and {launch.PARAMETERS} numbers, but the "
            f"row {p.function.name!r} has {tensors} and {numbers}.",
        )
    against = _uncompiled(p.in_c.key, choice.backend)
    if against and backend != "auto":
        raise BackendUnavailable(f"backend={backend!r}: {against}")
    return Choice("torch", against) if against else choice


def group_choice(
    backend: str,
    like: Tensor,
    p: GroupNeuronParameters,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    keeps: bool = False,
) -> Choice:
    """As ``signgd_choice``."""
    against = _group_against(like.dtype, p) or _against_group_gradient(surrogate, keeps, p)
    return choose(backend, like.device.type, against)


def sum_choice(backend: str, like: Tensor) -> Choice:
    """What sums up inputs of the type and on the device of ``like``, as ``signgd_choice``."""
    return choose(backend, like.device.type, _against(like.dtype))


def _against(dtype: torch.dtype) -> str:
    if dtype not in (torch.float32, *HALF):
        return f"the kernels keep float32 states, but the input is {dtype}; pass x.float()."
    return ""


def _signgd_against(dtype: torch.dtype, p: SignGDParameters) -> str:
    if p.momentum:
        return "the kernels have no momentum."
    if isinstance(p.scale, Tensor) and p.scale.dtype != torch.float32:
        return f"the kernels read a float32 scale, but it is {p.scale.dtype}; pass scale.float()."
    wide = [k for k, a in p.arguments.items() if isinstance(a, Tensor) and a.dtype == torch.float64]
    if wide:
        return f"the kernels compare in float32, but {', '.join(wide)} is float64; use .float()."
    return _against(dtype)


def _group_against(dtype: torch.dtype, p: GroupNeuronParameters) -> str:
    # of a tensor it was seen to when the parameters were made
    if p.members > 2**15 or not (isinstance(p.theta, Tensor) or p.theta >= SMALLEST_THETA):
        return "the kernel counts up to 32768 members, of thresholds from 2**-100 on."
    return _against(dtype)


def _against_types(states: Sequence[Tensor], output: torch.dtype) -> str:
    if any(a.dtype != torch.float32 for a in states):
        return "the kernels keep float32 states, but these are float64; reset the neuron."
    if output not in launch.TYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in launch.TYPES)
        return f"the kernels write {names}, but dtype is {output}."
    return ""


def _against_signgd_gradient(
    surrogate: Callable[[Tensor], Tensor] | None, keeps: bool, p: SignGDParameters
) -> str:
    if surrogate is not None and p.members > 1:
        return "the kernels have no gradient of several signs in a step; use backend='torch'."
    return _against_gradient(surrogate, keeps, "scale", p.scale)


def _against_group_gradient(
    surrogate: Callable[[Tensor], Tensor] | None, keeps: bool, p: GroupNeuronParameters
) -> str:
    if surrogate is not None and p.signed:
        return "the kernels have no gradient of signed neurons; use backend='torch'."
    if surrogate is not None and isinstance(p.v_threshold, Tensor):
        return "the kernels have no gradient beside thresholds by channel; use backend='torch'."
    return _against_gradient(surrogate, keeps)


def _against_gradient(
    surrogate: Callable[[Tensor], Tensor] | None,
    keeps: bool,
    name: str = "",
    value: float | Tensor = 1.0,
) -> str:
    if surrogate is None:
        return ""
    if not isinstance(surrogate, Surrogate):
        kind = type(surrogate).__name__
        return f"the kernels have the gradients of Surrogate, not of {kind}; use backend='torch'."
    if isinstance(value, Tensor) and value.requires_grad:
        return f"the kernels have no gradient of the {name}; use backend='torch'."
    if keeps:
        return (
            "the kernels record no v_seq or spikes beside a gradient; use backend='torch', or do "
            "without them."
        )
    return ""


def _check_types(name: str, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    for a in inputs:
        if not a.is_floating_point():
            raise InputError(
                f"{name}: inputs are floating-point, but one is {a.dtype}; use x.float()."
            )
    for a in states:
        if a.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{name}: states are float32, or float64 for float64 inputs, but one is {a.dtype}. "
                "Convert it with .float(), or reset the neuron."
            )


# -- signGD ---------------------------------------------------------------------------------------


def signgd_multi_step(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    *,
    x: Sequence[Tensor] | None = None,
    output: str = "decoded",
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    surrogate: Callable[[Tensor], Tensor] | None = None,
    keep_v: bool = False,
    keep_spikes: bool = False,
) -> SignGDSequence:
    """T steps of signGD neurons; same contract as ``scan(signgd_step, ...)``.

    ``x_seq``: for each argument of f its decoded values [T, ...], or with ``x``, the integrated
    inputs so far, the weighted spikes that they integrate. ``output``: "decoded" v(t), "signed"
    -eta(t) scale sigma(t), "sigma" in {-1, 1} or "fires" in {0, 1}, in ``dtype``, by default that
    of the input; of m members -eta(t) scale 2^(1-m) d(t), d in {1 - 2^m, 3 - 2^m ... 2^m - 1}, or
    its code in {0 ... 2^m - 1}. ``surrogate`` gives "decoded" and "signed" outputs a gradient. The
    state is float32, float64 for float64 inputs. Raises BackendUnavailable, InputError, ValueError.
    """
    heard = spikes.wanted()
    done = _signgd(
        x_seq, state, p, x, output, dtype, backend, surrogate, keep_v, keep_spikes or heard
    )
    if heard:
        assert done.spike_seq is not None
        spikes.tell(partial(_signs, done.spike_seq, p.members))
    return done if keep_spikes else done._replace(spike_seq=None)


def _signs(spike_seq: Tensor, members: int) -> spikes.Events:
    number = levels(spike_seq, members, torch.int16)
    return spikes.Events(number, torch.full_like(number, members))


def _signgd(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    output: str,
    dtype: torch.dtype | None,
    backend: str,
    surrogate: Callable[[Tensor], Tensor] | None,
    keep_v: bool,
    keep_spikes: bool,
) -> SignGDSequence:
    x_seq = _checked(x_seq, state.v, x, p)
    if output not in OUTPUTS:
        raise ValueError(f"output is one of {', '.join(OUTPUTS)}, but it is {output!r}.")
    if surrogate is not None and output not in OUTPUTS[:2]:
        raise ValueError(f"output={output!r} has no gradient; leave surrogate out.")
    dtype = x_seq[0].dtype if dtype is None else dtype
    if dtype == torch.int8 and p.members == MOST_MEMBERS and output in OUTPUTS[2:]:
        raise ValueError(
            f"signgd_multi_step: int8 does not hold what {p.members} signs make of a step; use "
            "dtype=torch.float16."
        )
    against = (
        _signgd_against(x_seq[0].dtype, p)
        or _against_types((state.v, *(x or ())), dtype)
        or _against_signgd_gradient(surrogate, keep_spikes or (keep_v and output == "signed"), p)
    )
    choice = choose(backend, x_seq[0].device.type, against)
    if choice.backend == "torch":
        return _signgd_by_definition(
            x_seq, state, p, x, output, dtype, surrogate, keep_v, keep_spikes
        )
    if surrogate is not None:
        return _signgd_with_gradient(x_seq, state, p, x, output, dtype, surrogate, keep_v)
    found = p.in_c if _function_choice(backend, choice, p).backend != "torch" else None
    with torch.no_grad():
        if x is None or (found is not None and all(a.shape == state.v.shape for a in x)):
            return _signgd_by_kernel(
                x_seq, x or (), state, p, found, output, dtype, keep_v, keep_spikes
            )
        # what an input integrates is needed by torch, or shared by several neurons
        x_seq = [operators.running_sum(a, b) for a, b in zip(x_seq, x, strict=True)]
        result = _signgd_by_kernel(x_seq, (), state, p, found, output, dtype, keep_v, keep_spikes)
        return result._replace(x=tuple(a[-1].clone() for a in x_seq))


def _checked(
    x_seq: Sequence[Tensor], v: Tensor, x: Sequence[Tensor] | None, p: SignGDParameters
) -> list[Tensor]:
    _check_types("signgd_multi_step", x_seq, (v, *(x or ())))
    if p.function.arity not in (None, len(x_seq)):
        raise InputError(
            f"signgd_multi_step: {p.function.name!r} has {p.function.arity} arguments, but there "
            f"are {len(x_seq)} inputs."
        )
    if not x_seq or any(a.dim() == 0 or a.shape[0] == 0 for a in x_seq):
        raise InputError(
            f"signgd_multi_step: an input is [T, *] with T >= 1, but the inputs are "
            f"{[list(a.shape) for a in x_seq]}."
        )
    if any(a.shape[0] != x_seq[0].shape[0] for a in x_seq):
        raise InputError(
            f"signgd_multi_step: all inputs have the same T, but they have "
            f"{[a.shape[0] for a in x_seq]}."
        )
    devices = {a.device for a in (*x_seq, v, *(x or ()))}
    if len(devices) > 1:
        raise InputError(
            f"signgd_multi_step: inputs and state are on one device, but they are on "
            f"{', '.join(sorted(map(str, devices)))}. Reset the neuron after moving it."
        )
    if x is not None and [a.shape[1:] for a in x_seq] != [a.shape for a in x]:
        raise InputError(
            f"signgd_multi_step: an input is [T, *x.shape], but the inputs are "
            f"{[list(a.shape) for a in x_seq]} and x is {[list(a.shape) for a in x]}. Reset the "
            "neuron before feeding a batch of another shape."
        )
    if p.function.elementwise and not all(_broadcasts(a.shape[1:], v.shape) for a in x_seq):
        raise _other_shape(f"inputs of {[list(a.shape[1:]) for a in x_seq]} for each step", v)
    dtype = x_seq[0].dtype
    for a in x_seq[1:]:
        dtype = torch.promote_types(dtype, a.dtype)
    return [a.to(dtype) for a in x_seq]


def _broadcasts(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    behind = zip(reversed(sizes), reversed(shape), strict=False)
    return len(sizes) <= len(shape) and all(a in (1, b) for a, b in behind)


def _other_shape(what: str, v: Tensor) -> InputError:
    return InputError(
        f"signgd_multi_step: {what} do not fit a state v of {list(v.shape)}. Reset the neuron, or "
        "pass state=None, before feeding a batch of another shape."
    )


def _signgd_by_definition(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    output: str,
    dtype: torch.dtype,
    surrogate: Callable[[Tensor], Tensor] | None,
    keep_v: bool,
    keep_spikes: bool,
) -> SignGDSequence:
    y, v_seq, spike_seq = [], [], []
    carried = None if x is None else tuple(x)
    for step in zip(*x_seq, strict=True):
        arguments = tuple(a.to(state.v.dtype) for a in step)
        if carried is not None:
            carried = arguments = tuple(a + b for a, b in zip(carried, arguments, strict=True))
        if surrogate is None:
            with torch.no_grad():
                fires, state = signgd_step(arguments, state, p)
            sigma = levels(fires, p.members, state.v.dtype)
        else:
            sigma, state = signgd_surrogate_step(arguments, state, p, surrogate)
        y.append(_passed(sigma, state, p, output).to(dtype))
        if keep_v:
            v_seq.append(state.v)
        if keep_spikes:
            spike_seq.append(bits(sigma, p.members))
    return SignGDSequence(
        torch.stack(y),
        state,
        carried or (),
        torch.stack(v_seq) if keep_v else None,
        torch.stack(spike_seq) if keep_spikes else None,
    )


def _passed(sigma: Tensor, after: SignGDState, p: SignGDParameters, output: str) -> Tensor:
    """What a neuron passes on after a step that fired sigma."""
    if output == "decoded":
        return after.v
    if output == "sigma":
        return sigma
    if output == "fires":
        return bits(sigma, p.members).to(sigma.dtype)
    size = step_size(after.v, after.t, p) * 2.0 ** (1 - p.members)
    return -size * (sigma if after.buffer is None else after.buffer)


def bits(level: Tensor, members: int) -> Tensor:
    """The fires of ``signgd_step`` that these ``levels`` are of: bool, or uint8 for several."""
    return level > 0 if members == 1 else ((level.detach() + (2**members - 1)) / 2).to(torch.uint8)


def _signgd_by_kernel(
    x_seq: Sequence[Tensor],
    x: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    found: FunctionInC | None,
    output: str,
    dtype: torch.dtype,
    keep_v: bool,
    keep_spikes: bool,
) -> SignGDSequence:
    if found is None:
        x_seq = [_fitting(target_over_time(x_seq, p), state.v).to(torch.float32)]
        found = FunctionInC(operators.IDENTITY.key, (), ())
    steps = x_seq[0].shape[0]
    if found.tensors:  # a kernel reads all arguments of f in one type
        x_seq = [a.to(torch.float32) for a in x_seq]
    tensors = [t.to(torch.float32).expand(steps, *t.shape) for t in found.tensors]
    scale, unit = _scale(p, state.v)
    y, v, *rest = operators.signgd(
        [*x_seq, *tensors],
        list(x),
        state.v,
        scale,
        found.key,
        list(found.numbers),
        p.function.fires_at_tie,
        p.members,
        p.schedule_name,
        unit,
        state.t,
        output,
        dtype,
        keep_v,
        keep_spikes,
    )
    x_last, rest = tuple(rest[: len(x)]), rest[len(x) :]
    return SignGDSequence(
        y,
        SignGDState(v, state.t + steps),
        x_last,
        rest[0] if keep_v else None,
        rest[-1] if keep_spikes else None,
    )


def _scale(p: SignGDParameters, v: Tensor) -> tuple[Tensor | None, float]:
    """The scale as a tensor that broadcasts against v, or as a number that goes into the steps."""
    if isinstance(p.scale, Tensor):
        return p.scale.to(device=v.device, dtype=torch.float32), 1.0
    return None, float(p.scale)


def target_over_time(x_seq: Sequence[Tensor], p: SignGDParameters) -> Tensor:
    """f of every step [T, *], in float32 also of half inputs."""
    steps = [a.to(torch.promote_types(a.dtype, torch.float32)) for a in x_seq]
    return p.function.over_time(*steps, **p.arguments)


def _fitting(target_seq: Tensor, v: Tensor) -> Tensor:
    if target_seq.shape[1:] != v.shape:
        raise _other_shape(f"values of f of {list(target_seq.shape[1:])}", v)
    return target_seq


def _signgd_with_gradient(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    output: str,
    dtype: torch.dtype,
    surrogate: Callable[[Tensor], Tensor],
    keep_v: bool,
) -> SignGDSequence:
    assert isinstance(surrogate, Surrogate)
    carried: tuple[Tensor, ...] = ()
    if x is not None:
        x_seq = [operators.running_sum(a, b) for a, b in zip(x_seq, x, strict=True)]
        carried = tuple(a[-1].clone() for a in x_seq)
    scale, unit = _scale(p, state.v)
    y, v, _ = operators.track(
        _fitting(target_over_time(x_seq, p), state.v).to(torch.float32),
        state.v,
        scale,
        p.function.fires_at_tie,
        p.schedule_name,
        unit,
        state.t,
        output == "signed",
        surrogate.kind,
        surrogate.alpha,
    )
    after = SignGDState(v, state.t + x_seq[0].shape[0])
    return SignGDSequence(y.to(dtype), after, carried, y.clone() if keep_v else None)


# -- group neurons --------------------------------------------------------------------------------


def group_multi_step(
    x_seq: Tensor,
    v: Tensor,
    p: GroupNeuronParameters,
    *,
    sent: Tensor | None = None,
    counts: bool = False,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    surrogate: Callable[[Tensor], Tensor] | None = None,
    detach_reset: bool = False,
    keep_v: bool = False,
) -> GroupSequence:
    """T steps of group neurons; same contract as ``scan(group_step, ...)``.

    x_seq [T, ...] are membrane currents, v [...] the potential, and ``sent`` [...] of signed
    neurons the spikes sent so far (``scan(signed_group_step, ...)``). The output is n theta, or n
    itself with ``counts``, in ``dtype``, by default that of the input; states are float32, float64
    for float64 inputs. ``surrogate`` gives it a gradient. Raises BackendUnavailable, InputError,
    ValueError.
    """
    if (sent is not None) != p.signed:
        raise ValueError(
            "group_multi_step: sent, the spikes sent so far, is the state of signed neurons; "
            + ("pass it, zeros before the first step." if p.signed else "leave it out.")
        )
    states = [v] if sent is None else [v, sent]
    _check_types("group_multi_step", [x_seq], states)
    if x_seq.dim() == 0 or x_seq.shape[0] == 0 or x_seq.shape[1:] != v.shape:
        raise InputError(
            f"group_multi_step: x_seq is [T, *v.shape] with T >= 1, but x_seq is "
            f"{list(x_seq.shape)} and v is {list(v.shape)}. Reset the neuron before feeding a "
            "batch of another shape."
        )
    if any(s.shape != v.shape or s.dtype != v.dtype or s.device != v.device for s in states):
        raise InputError(
            f"group_multi_step: sent is as v, which is {v.dtype} {list(v.shape)} on {v.device}. "
            "Reset the neuron."
        )
    if isinstance(p.theta, Tensor) and not _broadcasts(p.theta.shape, v.shape):
        raise InputError(
            f"group_multi_step: v_threshold is {list(p.theta.shape)} and does not broadcast to a "
            f"step of {list(v.shape)}."
        )
    if x_seq.device != v.device:
        raise InputError(
            f"group_multi_step: x_seq is on {x_seq.device}, v on {v.device}. Reset the neuron "
            "after moving it."
        )
    if surrogate is not None and counts:
        raise ValueError("group_multi_step: counts have no gradient; leave surrogate out.")
    dtype = x_seq.dtype if dtype is None else dtype
    if counts and dtype == torch.int8 and p.members > 127:
        raise ValueError(
            f"group_multi_step: int8 does not hold counts up to {p.members}; use int16."
        )
    against = (
        _group_against(x_seq.dtype, p)
        or _against_types(states, dtype)
        or _against_group_gradient(surrogate, keep_v, p)
    )
    heard = spikes.wanted() and surrogate is None
    if choose(backend, x_seq.device.type, against).backend == "torch":
        state = v if sent is None else SignedGroupState(v, sent)
        done = _group_by_definition(
            x_seq, state, p, counts or heard, v.dtype if heard else dtype, surrogate, detach_reset,
            keep_v,
        )  # fmt: skip
        return _told(done, p, counts, dtype) if heard else done
    theta, thetas = _thetas(p, v)
    if surrogate is not None:
        assert isinstance(surrogate, Surrogate)
        y, v, _ = operators.group_train(
            x_seq, v, p.members, theta, surrogate.kind, surrogate.alpha, detach_reset
        )
        return GroupSequence(y.to(dtype), v)
    with torch.no_grad():
        y, v, *kept = operators.group(
            x_seq,
            v,
            sent,
            thetas,
            p.members,
            theta,
            counts or heard,
            v.dtype if heard else dtype,
            keep_v,
        )
    done = GroupSequence(y, v, kept[-1] if keep_v else None, kept[0] if p.signed else None)
    return _told(done, p, counts, dtype) if heard else done


def _told(
    done: GroupSequence, p: GroupNeuronParameters, counts: bool, dtype: torch.dtype
) -> GroupSequence:
    """What group neurons counted is told, and passed on as it would be otherwise."""
    n = done.y
    spikes.tell(lambda: spikes.Events(n, n.abs()))
    theta = p.theta.to(n) if isinstance(p.theta, Tensor) else p.theta
    return done._replace(y=(n if counts else n * theta).to(dtype))


def _thetas(p: GroupNeuronParameters, v: Tensor) -> tuple[float, Tensor | None]:
    """Theta as a number, or as a tensor that broadcasts against v."""
    if isinstance(p.theta, Tensor):
        return 0.0, p.theta.detach().to(device=v.device, dtype=torch.float32)
    return p.theta, None


def _group_by_definition(
    x_seq: Tensor,
    state: Tensor | SignedGroupState,
    p: GroupNeuronParameters,
    counts: bool,
    dtype: torch.dtype,
    surrogate: Callable[[Tensor], Tensor] | None,
    detach_reset: bool,
    keep_v: bool,
) -> GroupSequence:
    step: Callable[..., tuple[Tensor, Any]] = signed_group_step if p.signed else group_step
    if surrogate is not None:
        step = signed_group_surrogate_step if p.signed else group_surrogate_step
        step = partial(step, surrogate=surrogate, detach_reset=detach_reset)
    y, v_seq = [], []
    v, sent = state if isinstance(state, SignedGroupState) else (state, None)
    theta = p.theta.to(v) if isinstance(p.theta, Tensor) else p.theta
    for x in x_seq:
        with torch.set_grad_enabled(surrogate is not None and torch.is_grad_enabled()):
            out, state = step(x.to(v.dtype), state, p)
        v, sent = state if isinstance(state, SignedGroupState) else (state, None)
        y.append((out / theta).round().to(dtype) if counts else out.to(dtype))
        if keep_v:
            v_seq.append(v)
    return GroupSequence(torch.stack(y), v, torch.stack(v_seq) if keep_v else None, sent)


def running_sum(x_seq: Tensor, start: Tensor, backend: str = "auto") -> Tensor:
    """y(t) = y(t - 1) + x(t), y(0) = start: [T, ...] in the type of start, step by step."""
    against = _against(x_seq.dtype)
    if start.dtype != torch.float32 or x_seq.shape[1:] != start.shape:
        against = "the kernel sums into a float32 start of the shape of a step."
    if choose(backend, x_seq.device.type, against).backend != "torch":
        return operators.running_sum(x_seq, start)
    sums = []
    for x in x_seq:
        start = start + x
        sums.append(start)
    return torch.stack(sums)


# -- pooling of spikes that count -----------------------------------------------------------------


def growth_multi_step(
    x_seq: Sequence[Tensor],
    state: GrowthState,
    function: Nonlinearity,
    arguments: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    keep_last: bool = False,
) -> GrowthSequence:
    """T steps of the growth of ``function``; same contract as ``scan(growth_step, ...)``.

    ``x_seq``: [T, ...] for each of its arguments. ``keep_last`` keeps f of the sums after each
    step. The output is in ``dtype``, by default that of the input; states are float32, float64 for
    float64 inputs. Raises BackendUnavailable, InputError.
    """
    _check_types("growth_multi_step", x_seq, [*state.totals, state.last])
    shapes, wanted = [x.shape[1:] for x in x_seq], [total.shape for total in state.totals]
    if shapes != wanted or not x_seq or any(len(x) != len(x_seq[0]) or not len(x) for x in x_seq):
        raise InputError(
            f"growth_multi_step: inputs are [T, *totals.shape] with one T >= 1, but they are "
            f"{[list(x.shape) for x in x_seq]} and the totals {[list(a) for a in wanted]}. Reset "
            "the neuron before feeding a batch of another shape."
        )
    given, dtype = arguments or {}, x_seq[0].dtype if dtype is None else dtype
    if choose(backend, x_seq[0].device.type, _against_sums(x_seq, state)).backend == "torch":
        y, seen = [], []
        for step in zip(*x_seq, strict=True):
            wide = tuple(a.to(b.dtype) for a, b in zip(step, state.totals, strict=True))
            out, state = growth_step(wide, state, partial(function, **given))
            y.append(out.to(dtype))
            seen.append(state.last)
        return GrowthSequence(torch.stack(y), state, torch.stack(seen) if keep_last else None)
    sums = [operators.running_sum(a, b) for a, b in zip(x_seq, state.totals, strict=True)]
    after = function.over_time(*sums, **given)
    y_seq = after - torch.cat([state.last.unsqueeze(0), after[:-1]])
    last = GrowthState(tuple(a[-1].clone() for a in sums), after[-1].clone())
    return GrowthSequence(y_seq.to(dtype), last, after if keep_last else None)


def _against_sums(x_seq: Sequence[Tensor], state: GrowthState) -> str:
    reasons = [_against(x.dtype) for x in x_seq]
    reasons.append(_against_types(state.totals, torch.float32))
    return next((reason for reason in reasons if reason), "")
