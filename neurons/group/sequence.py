"""T steps of group neurons, by kernels (``neurons/choice.py``) or by the definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from .. import spikes
from ..base import broadcasts
from ..choice import Choice, against_gradient, against_input, against_types, check_types, choose
from ..kernels import launch, operators
from ..kernels.prepared import Prepared, keep, layout, unwatched
from ..surrogate import Surrogate
from .step import (
    SMALLEST_THETA,
    GroupNeuronParameters,
    SignedGroupState,
    group_step,
    group_surrogate_step,
    signed_group_step,
    signed_group_surrogate_step,
)


class GroupSequence(NamedTuple):
    """``y`` [T, *], the potential after it, v_seq [T, *] if requested, and for signed neurons the
    spikes sent so far."""

    y: Tensor
    v: Tensor
    v_seq: Tensor | None = None
    sent: Tensor | None = None


def group_choice(
    backend: str,
    like: Tensor,
    p: GroupNeuronParameters,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    keeps: bool = False,
) -> Choice:
    """As ``signgd_choice``."""
    against = _against(like.dtype, p) or _against_own_gradient(surrogate, keeps, p)
    return choose(backend, like.device.type, against)


def _against(dtype: torch.dtype, p: GroupNeuronParameters) -> str:
    # of a tensor it was seen to when the parameters were made
    if p.members > 2**15 or not (isinstance(p.theta, Tensor) or p.theta >= SMALLEST_THETA):
        return "the kernel supports up to 32768 members and thresholds of at least 2**-100."
    return against_input(dtype)


def _against_own_gradient(
    surrogate: Callable[[Tensor], Tensor] | None, keeps: bool, p: GroupNeuronParameters
) -> str:
    if surrogate is not None and p.signed:
        return "the kernels have no gradient of signed neurons; use backend='torch'."
    if surrogate is not None and isinstance(p.v_threshold, Tensor):
        return "the kernels have no gradient with thresholds per channel; use backend='torch'."
    return against_gradient(surrogate, keeps)


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

    x_seq [T, ...] are membrane currents, v [...] the potential, and ``sent`` [...], for signed
    neurons, the spikes sent so far (``scan(signed_group_step, ...)``). The output is n theta, or n
    itself with ``counts``, in ``dtype``, by default that of the input; states are float32, float64
    for float64 inputs. ``surrogate`` gives it a gradient. Raises BackendUnavailable, InputError,
    ValueError.
    """
    key = None
    if surrogate is None and unwatched() and not spikes.wanted():
        key = _key(x_seq, v, sent, p, counts, dtype, backend, keep_v)
        if (known := p.ready.get(key)) is not None:
            given = (x_seq, v, sent, _thetas(p, v)[1])
            return _sequence(known([a for a in given if a is not None]), p, keep_v)
    if (sent is not None) != p.signed:
        raise ValueError(
            "group_multi_step: sent, the spikes sent so far, is the state of signed neurons; "
            + ("pass it, zeros before the first step." if p.signed else "leave it out.")
        )
    states = [v] if sent is None else [v, sent]
    check_types("group_multi_step", [x_seq], states)
    if x_seq.dim() == 0 or x_seq.shape[0] == 0 or x_seq.shape[1:] != v.shape:
        raise InputError(
            f"group_multi_step: x_seq is [T, *v.shape] with T >= 1, but x_seq is "
            f"{list(x_seq.shape)} and v is {list(v.shape)}. Reset the neuron before feeding a "
            "batch of another shape."
        )
    if any(s.shape != v.shape or s.dtype != v.dtype or s.device != v.device for s in states):
        raise InputError(
            f"group_multi_step: sent must match v, which is {v.dtype} {list(v.shape)} on "
            f"{v.device}. Reset the neuron."
        )
    if isinstance(p.theta, Tensor) and not broadcasts(p.theta.shape, v.shape):
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
        _against(x_seq.dtype, p)
        or against_types(states, dtype)
        or _against_own_gradient(surrogate, keep_v, p)
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
    output = v.dtype if heard else dtype
    arguments = (x_seq, v, sent, thetas, p.members, theta, counts or heard, output, keep_v)
    with torch.no_grad():
        if key is None:
            made = operators.group(*arguments)
        else:
            ready: list[Prepared] = []
            made = operators.filled(launch.group(*arguments, ready=ready))
            for each in ready:
                keep(p.ready, key, each)
    done = _sequence(made, p, keep_v)
    return _told(done, p, counts, dtype) if heard else done


def _key(
    x_seq: Tensor, v: Tensor, sent: Tensor | None, p: GroupNeuronParameters, *options: Any
) -> Any:
    """What decides how these tensors are run; None where more may."""
    given = (x_seq, v, sent, p.v_threshold)
    found = layout([a for a in given if isinstance(a, Tensor)])
    return None if found is None else (found, sent is None, options)


def _sequence(made: list[Tensor], p: GroupNeuronParameters, keep_v: bool) -> GroupSequence:
    y, v, *kept = made
    return GroupSequence(y, v, kept[-1] if keep_v else None, kept[0] if p.signed else None)


def _told(
    done: GroupSequence, p: GroupNeuronParameters, counts: bool, dtype: torch.dtype
) -> GroupSequence:
    """Reports the counts of group neurons, and passes the output on unchanged."""
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
