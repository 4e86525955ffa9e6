"""T steps of signGD neurons, by kernels (``neurons/choice.py``) or by the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import BackendUnavailable, InputError
from .. import spikes
from ..base import broadcasts
from ..choice import (
    Choice,
    against_gradient,
    against_input,
    against_types,
    check_types,
    choose,
    uncompiled,
)
from ..kernels import launch, operators
from ..kernels.prepared import Prepared, keep, layout, unwatched
from ..nonlinearities import FunctionInC
from ..surrogate import Surrogate
from .step import (
    SignGDParameters,
    SignGDState,
    levels,
    signgd_step,
    signgd_surrogate_step,
    signs,
    step_size,
)

OUTPUTS = ("decoded", "signed", "sigma", "fires")


class SignGDSequence(NamedTuple):
    """``y`` [T, *], the state after it, the integrated inputs, and what was asked to be kept."""

    y: Tensor
    state: SignGDState
    x: tuple[Tensor, ...]
    v_seq: Tensor | None = None  # [T, *]
    # [T, *] bool: where sigma is 1; of several members uint8, the bits of their sigmas; with a dead
    # zone int32 codes (sparse.py)
    spike_seq: Tensor | None = None
    # with a gradient (gradient.py): all spikes times a fan-out, and what carries that of v(0) on
    sent: Tensor | None = None
    rest: Tensor | None = None


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
    against = _against(like.dtype, p) or _against_own_gradient(surrogate, keeps, p)
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
    against = uncompiled(p.in_c.key, choice.backend)
    if against and backend != "auto":
        raise BackendUnavailable(f"backend={backend!r}: {against}")
    return Choice("torch", against) if against else choice


def _against(dtype: torch.dtype, p: SignGDParameters) -> str:
    if p.momentum:
        return "the kernels have no momentum."
    if isinstance(p.scale, Tensor) and p.scale.dtype != torch.float32:
        return f"the kernels read a float32 scale, but it is {p.scale.dtype}; pass scale.float()."
    wide = [k for k, a in p.arguments.items() if isinstance(a, Tensor) and a.dtype == torch.float64]
    if wide:
        return f"the kernels compare in float32, but {', '.join(wide)} is float64; use .float()."
    return against_input(dtype)


def _against_own_gradient(
    surrogate: Callable[[Tensor], Tensor] | None, keeps: bool, p: SignGDParameters
) -> str:
    if surrogate is not None and p.members > 1:
        return "the kernels have no gradient of several signs in a step; use backend='torch'."
    return against_gradient(surrogate, keeps, scale=p.scale, dead_zone=p.dead_zone)


class _Asked(NamedTuple):
    """What ``signgd_multi_step`` is asked to make."""

    output: str
    dtype: torch.dtype | None
    surrogate: Callable[[Tensor], Tensor] | None
    keep_v: bool
    keep_spikes: bool


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
    its code in {0 ... 2^m - 1}. With a dead zone sigma and d may be 0, d is any whole number in
    between, and there is no "fires". ``surrogate`` gives "decoded" and "signed" outputs a gradient.
    The state is float32, float64 for float64 inputs. Raises BackendUnavailable, InputError,
    ValueError.
    """
    heard = spikes.wanted()
    asked = _Asked(output, dtype, surrogate, keep_v, keep_spikes or heard)
    done = _signgd(x_seq, state, p, x, backend, asked)
    if not heard:
        return done
    assert done.spike_seq is not None
    spikes.tell(partial(signs, done.spike_seq, p.members))
    return done if keep_spikes else done._replace(spike_seq=None)


def _signgd(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    backend: str,
    asked: _Asked,
) -> SignGDSequence:
    output, dtype, surrogate = asked[:3]
    key = _key(x_seq, state, p, x, backend, asked)
    if key is not None and (known := p.ready.get(key)) is not None:
        done = known(x_seq, state, p, x, asked)
        if done is not None:
            return done  # type: ignore[no-any-return]
    given, x_seq = x_seq, _checked(x_seq, state.v, x, p)
    if output not in OUTPUTS:
        raise ValueError(f"output is one of {', '.join(OUTPUTS)}, but it is {output!r}.")
    if surrogate is not None and output not in OUTPUTS[:2]:
        raise ValueError(f"output={output!r} has no gradient; leave surrogate out.")
    if output == "fires" and p.sparse:
        raise ValueError(
            "signgd_multi_step: output='fires' is 0 or 1, which cannot say that a neuron with a "
            "dead zone is silent; use output='sigma', or dead_zone=0."
        )
    dtype = x_seq[0].dtype if dtype is None else dtype
    asked = asked._replace(dtype=dtype)
    if output in OUTPUTS[2:]:
        _check_holds(dtype, p.members)
    against = (
        _against(x_seq[0].dtype, p)
        or against_types((state.v, *(x or ())), dtype)
        or _against_own_gradient(
            surrogate, asked.keep_spikes or (asked.keep_v and output == "signed"), p
        )
    )
    choice = choose(backend, x_seq[0].device.type, against)
    if choice.backend == "torch":
        return _signgd_by_definition(x_seq, state, p, x, asked)
    if surrogate is not None:
        return _signgd_with_gradient(x_seq, state, p, x, asked)
    found = p.in_c if _function_choice(backend, choice, p).backend != "torch" else None
    inside = x is None or (found is not None and all(a.shape == state.v.shape for a in x))
    again = key is not None and all(map(is_, given, x_seq)) and _as_read(x_seq, p)
    ready: list[Prepared] | None = [] if again else None
    with torch.no_grad():
        sums, last = (x_seq, ()) if inside else _summed(x_seq, x)
        target = None if found is not None else target_over_time(sums, p)
        within = (x or ()) if inside else ()
        done = _signgd_by_kernel(sums, within, state, p, target, asked, ready)
    for each in ready or ():
        _remember(p, key, each, target, not inside)
    return done if inside else done._replace(x=last)


def _remember(
    p: SignGDParameters, key: Any, launched: Prepared, target: Tensor | None, sums: bool
) -> None:
    unit = 1.0 if isinstance(p.scale, Tensor) else float(p.scale)
    if target is None:
        keep(p.ready, key, _Known(launched, unit, None, sums))
    elif target.dtype == torch.float32 and (lies := layout([target])) is not None:
        keep(p.ready, key, _Known(launched, unit, lies, sums))


def _as_read(x_seq: Sequence[Tensor], p: SignGDParameters) -> bool:
    """Whether the kernels read these tensors and those of p as they are."""
    given = (*p.tensors, *(x_seq if p.read else ()))
    return all(each.dtype == torch.float32 for each in given)


def _summed(
    x_seq: Sequence[Tensor], x: Sequence[Tensor] | None
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What inputs integrate, where torch needs it, or several neurons share it, and the last."""
    sums = [operators.running_sum(a, b) for a, b in zip(x_seq, x or (), strict=True)]
    return sums, tuple(a[-1].clone() for a in sums)


def _key(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    backend: str,
    asked: _Asked,
) -> Any:
    """What decides how these tensors are run; None where more may."""
    if asked.surrogate is not None or state.buffer is not None or not unwatched():
        return None
    found = layout((*x_seq, *(x or ()), state.v, *p.tensors))
    return None if found is None else (found, len(x_seq), x is None, backend, asked)


class _Known(NamedTuple):
    """Inputs of a layout that was found fit for the kernels: they are run again."""

    launch: Prepared
    unit: float
    target: Any  # the layout of f(x) where torch computes it
    sums: bool  # whether the inputs are summed up before

    def __call__(
        self,
        x_seq: Sequence[Tensor],
        state: SignGDState,
        p: SignGDParameters,
        x: Sequence[Tensor] | None,
        asked: _Asked,
    ) -> SignGDSequence | None:
        """None where f(x) lies in memory in another way than it did."""
        last: tuple[Tensor, ...] = ()
        steps, within = x_seq[0].shape[0], x or ()
        if self.target is not None or self.sums:
            with torch.no_grad():
                if self.sums:
                    (x_seq, last), within = _summed(x_seq, x), ()
                if self.target is not None:
                    x_seq = (target_over_time(x_seq, p),)
                    if layout(x_seq) != self.target:
                        return None
        given = (*x_seq, *(p.read if self.target is None else ()), *within, state.v, *p.sizes)
        sizes = launch.packed_step_sizes(p.schedule_name, self.unit, state.t, steps)
        done = _sequence(self.launch(given, sizes), len(within), state.t + steps, asked)
        return done._replace(x=last) if self.sums else done


def _sequence(made: list[Tensor], inputs: int, t: int, asked: _Asked) -> SignGDSequence:
    """Of what a kernel made for neurons that integrate so many inputs; t are the steps done."""
    y, v, *rest = made
    return SignGDSequence(
        y,
        SignGDState(v, t),
        tuple(rest[:inputs]),
        rest[inputs] if asked.keep_v else None,
        rest[-1] if asked.keep_spikes else None,
    )


# the most members whose d a type holds
HOLDS = {torch.int8: 7, torch.bfloat16: 8, torch.float16: 11}


def _check_holds(dtype: torch.dtype, members: int) -> None:
    if members > HOLDS.get(dtype, members):
        wider = next((t for t, most in HOLDS.items() if members <= most), torch.float32)
        wider = torch.float16 if wider == torch.bfloat16 else wider
        raise ValueError(
            f"signgd_multi_step: {str(dtype).removeprefix('torch.')} cannot represent the sum of "
            f"{members} signs in a step; use dtype={wider}."
        )


def _checked(
    x_seq: Sequence[Tensor], v: Tensor, x: Sequence[Tensor] | None, p: SignGDParameters
) -> list[Tensor]:
    check_types("signgd_multi_step", x_seq, (v, *(x or ())))
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
    if p.function.elementwise and not all(broadcasts(a.shape[1:], v.shape) for a in x_seq):
        raise _other_shape(f"inputs of {[list(a.shape[1:]) for a in x_seq]} for each step", v)
    dtype = x_seq[0].dtype
    for a in x_seq[1:]:
        dtype = torch.promote_types(dtype, a.dtype)
    return [a.to(dtype) for a in x_seq]


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
    asked: _Asked,
) -> SignGDSequence:
    output, dtype, surrogate, keep_v, keep_spikes = asked
    y, v_seq, spike_seq = [], [], []
    carried = None if x is None else tuple(x)
    for step in zip(*x_seq, strict=True):
        arguments = tuple(a.to(state.v.dtype) for a in step)
        if carried is not None:
            carried = arguments = tuple(a + b for a, b in zip(carried, arguments, strict=True))
        before = state
        if surrogate is None or keep_spikes:
            with torch.no_grad():
                fires, state = signgd_step(arguments, before, p)
            sigma = levels(fires, p.members, state.v.dtype)
        if surrogate is not None:
            sigma, state = signgd_surrogate_step(arguments, before, p, surrogate)
        y.append(_passed(sigma, state, p, output).to(dtype))
        if keep_v:
            v_seq.append(state.v)
        if keep_spikes:
            spike_seq.append(fires)
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
    target: Tensor | None,
    asked: _Asked,
    ready: list[Prepared] | None,
) -> SignGDSequence:
    """``target`` is f(x) where torch has computed it; into ``ready`` goes what was launched."""
    found = p.in_c
    if target is not None or found is None:
        assert target is not None
        x_seq = [_fitting(target, state.v).to(torch.float32)]
        found = FunctionInC(launch.IDENTITY.key, (), ())
    steps = x_seq[0].shape[0]
    if found.tensors:  # a kernel reads all arguments of f in one type
        x_seq = [a.to(torch.float32) for a in x_seq]
    tensors = [t.to(torch.float32).expand(steps, *t.shape) for t in found.tensors]
    scale, unit = _scale(p, state.v)
    assert asked.dtype is not None
    given = (
        [*x_seq, *tensors],
        list(x),
        state.v,
        scale,
        *_dead_zone(p, state.v),
        found.key,
        list(found.numbers),
        p.function.fires_at_tie,
        p.members,
        p.schedule_name,
        unit,
        state.t,
        asked.output,
        asked.dtype,
        asked.keep_v,
        asked.keep_spikes,
    )
    if ready is None:
        made = operators.signgd(*given)
    else:
        made = operators.filled(launch.signgd(*given, ready=ready))
    return _sequence(made, len(x), state.t + steps, asked)


def _scale(p: SignGDParameters, v: Tensor) -> tuple[Tensor | None, float]:
    """The scale as a tensor that broadcasts against v, or as a number that goes into the steps."""
    if isinstance(p.scale, Tensor):
        return p.scale.to(device=v.device, dtype=torch.float32), 1.0
    return None, float(p.scale)


def _dead_zone(p: SignGDParameters, v: Tensor) -> tuple[Tensor | None, float]:
    """The dead zone as a tensor that broadcasts against v, or as a number."""
    if isinstance(p.dead_zone, Tensor):
        return p.dead_zone.to(device=v.device, dtype=torch.float32), 0.0
    return None, float(p.dead_zone)


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
    asked: _Asked,
) -> SignGDSequence:
    output, dtype, surrogate, keep_v, _ = asked
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
        *_dead_zone(p, state.v),
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
