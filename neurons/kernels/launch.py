"""Runs a kernel on tensors of one device: checks them, makes outputs, fills in the arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailable, InputError
from ..surrogate import KINDS
from . import arguments, cpu, gpu
from .arguments import ARGUMENTS, OUTPUTS, PARAMETERS, STEPS, TYPES
from .build import Function

PROVIDERS = {"cpu": cpu, "cuda": gpu}  # by the type of device
# bytes of output from which a CPU fetches inputs ahead, and from which its caches do not keep the
# output for the reader
FAR = (4 * 2**20, 8 * 2**20)


def signgd(
    x_seq: Sequence[Tensor],
    x_start: Sequence[Tensor],
    v: Tensor,
    scale: Tensor | None,
    function: Function,
    parameters: Sequence[float],
    fires_at_tie: bool,
    members: int,
    eta: Sequence[float],
    output: str,
    dtype: torch.dtype,
    keep_v: bool,
    keep_spikes: bool,
) -> list[Tensor]:
    """[y_seq, v, *x, v_seq if keep_v, spikes if keep_spikes] of ``len(eta)`` steps.

    x_seq are [T, ...], then come tensors that are parameters of the function, also as [T, ...]. The
    first of them are integrated from ``x_start`` on, if there are any. Spikes are bool, of several
    members their code in uint8.
    """
    _check("signgd", x_seq, [*x_start, v, *([] if scale is None else [scale])])
    input_type = _one_type("signgd", x_seq)
    if len(x_seq) > ARGUMENTS or len(parameters) > PARAMETERS:
        raise InputError(
            f"signgd: a kernel takes {ARGUMENTS} tensors and {PARAMETERS} numbers, but "
            f"the function has {len(x_seq)} and {len(parameters)}."
        )
    like = step_like(x_seq, tuple(v.shape))
    y = new_sequence(len(eta), like, dtype)
    v_last = torch.empty_like(like, dtype=torch.float32)
    x_last = [torch.empty_like(like, dtype=torch.float32) for _ in x_start]
    v_seq = [new_sequence(len(eta), like, torch.float32)] if keep_v else []
    spikes = [new_sequence(len(eta), like, spike_type(members))] if keep_spikes else []
    done = 0
    while done < len(eta) and like.numel():
        part = eta[done : done + STEPS]
        here = [x[done : done + STEPS] for x in x_seq]
        before = (v, x_start) if done == 0 else (v_last.clone(), [x.clone() for x in x_last])
        operands = [
            *((x, True) for x in here),
            *((x, False) for x in before[1]),
            (before[0], False),
        ]
        space, found = arguments.describe(
            like, operands if scale is None else [*operands, (scale, False)]
        )
        a = arguments.SignGD(space=space)
        for k in range(len(here)):
            a.x[k] = found[k]
        for k, x in enumerate(x_last):
            a.x_start[k] = found[len(here) + k]
            a.x_last[k] = x.data_ptr()
        a.v = found[len(here) + len(x_last)]
        if scale is not None:
            a.scale = found[-1]
        a.y, a.v_last = y[done:].data_ptr(), v_last.data_ptr()
        a.v_seq = v_seq[0][done:].data_ptr() if keep_v else None
        a.spikes = spikes[0][done:].data_ptr() if keep_spikes else None
        a.steps, a.fires_at_tie, a.output = len(part), fires_at_tie, OUTPUTS.index(output)
        a.signs = members
        a.input_type, a.output_type = input_type, TYPES[dtype]
        a.far = sum(y.nbytes >= bound for bound in FAR)
        a.parameters[: len(parameters)] = parameters
        a.eta[: len(part)] = part
        _provider(v).run(function, a, v.device)
        done += len(part)
    return [y, v_last, *x_last, *v_seq, *spikes]


def group(
    x_seq: Tensor,
    v: Tensor,
    sent: Tensor | None,
    members: int,
    theta: float | Tensor,
    counts: bool,
    dtype: torch.dtype,
    keep_h: bool,
    keep_v: bool,
) -> list[Tensor]:
    """[y_seq, v, sent if given, h_seq if keep_h, v_seq if keep_v]; y the counts if ``counts``.

    ``sent`` makes the neurons signed. h is kept where theta is a number and nothing is taken back.
    """
    given = [] if sent is None else [sent]
    thetas = [theta] if isinstance(theta, Tensor) else []
    _check("group", [x_seq], [v, *given, *thetas])
    assert not keep_h or not (given or thetas)
    input_type = _one_type("group", [x_seq])
    steps = x_seq.shape[0]
    like = step_like([x_seq], tuple(x_seq.shape[1:]))
    y = new_sequence(steps, like, dtype)
    v_last = torch.empty_like(like, dtype=torch.float32)
    sent_last = [torch.empty_like(like) for _ in given]
    h_seq = [new_sequence(steps, like, torch.float32)] if keep_h else []
    v_seq = [new_sequence(steps, like, torch.float32)] if keep_v else []
    if like.numel():
        constant = [(tensor, False) for tensor in (v, *given, *thetas)]
        space, (x, start, *others) = arguments.describe(like, [(x_seq, True), *constant])
        a = arguments.Group(space=space, x=x, v=start)
        if sent is not None:
            a.sent, a.sent_last = others[0], sent_last[0].data_ptr()
        if isinstance(theta, Tensor):
            a.thetas = others[-1]
        else:
            a.theta = theta
        a.y, a.v_last = y.data_ptr(), v_last.data_ptr()
        a.h_seq = h_seq[0].data_ptr() if keep_h else None
        a.v_seq = v_seq[0].data_ptr() if keep_v else None
        a.steps, a.counts = steps, counts
        a.input_type, a.output_type = input_type, TYPES[dtype]
        a.far = sum(y.nbytes >= bound for bound in FAR)
        a.members = members
        _provider(v).run("group", a, v.device)
    return [y, v_last, *sent_last, *h_seq, *v_seq]


def group_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    h_seq: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of [x_seq, v], x_seq's with ``dtype``."""
    given = [] if grad_v is None else [grad_v]
    _check("group_gradient", [grad_y], [h_seq, *given])
    like = h_seq[0]
    x = new_sequence(h_seq.shape[0], like, dtype)
    v = torch.empty_like(like)
    if like.numel():
        operands = [(h_seq, True), (grad_y, True), *((v, False) for v in given)]
        space, found = arguments.describe(like, operands)
        a = arguments.GroupGradient(space, *found)
        a.x, a.v, a.steps = x.data_ptr(), v.data_ptr(), h_seq.shape[0]
        a.surrogate, a.detach_reset = KINDS.index(surrogate), detach_reset
        a.input_type, a.output_type = _one_type("group_gradient", [grad_y]), TYPES[dtype]
        a.theta, a.members, a.alpha = theta, members, alpha
        a.far = sum(x.nbytes >= bound for bound in FAR)
        _provider(like).run("group_gradient", a, v.device)
    return [x, v]


def tracking_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    target_seq: Tensor,
    v_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    eta: Sequence[float],
    signed: bool,
    surrogate: str,
    alpha: float,
) -> list[Tensor]:
    """Gradients of [target_seq, v] of neurons that track targets, by their v_seq [T, ...]."""
    given = [] if scale is None else [scale]
    after = [] if grad_v is None else [grad_v]
    _check("tracking_gradient", [grad_y], [target_seq, v_seq, v, *given, *after])
    steps, like = v_seq.shape[0], v_seq[0]
    x = new_sequence(steps, like, torch.float32)
    v_start = torch.empty_like(like)
    if not like.numel():
        return [x, v_start]
    carried = grad_v
    for last in range(steps, 0, -STEPS):
        first = max(0, last - STEPS)
        part = slice(first, last)
        start = v if first == 0 else v_seq[first - 1]
        operands = [(target_seq[part], True), (v_seq[part], True), (start, False)]
        operands += [(grad_y[part], True), *((s, False) for s in given)]
        operands += [] if carried is None else [(carried, False)]
        space, found = arguments.describe(like, operands)
        a = arguments.TrackingGradient(space=space, target=found[0], v_seq=found[1], v=found[2])
        a.y = found[3]
        if scale is not None:
            a.scale = found[4]
        if carried is not None:
            a.v_last = found[-1]
        a.x, a.v_start = x[first:].data_ptr(), v_start.data_ptr()
        a.steps, a.surrogate, a.signed_output = last - first, KINDS.index(surrogate), signed
        a.input_type, a.alpha = _one_type("tracking_gradient", [grad_y]), alpha
        a.eta[: last - first] = eta[part]
        _provider(v).run("tracking_gradient", a, v.device)
        carried = v_start.clone() if first else carried
    return [x, v_start]


def running_sum(x_seq: Tensor, start: Tensor) -> Tensor:
    """y(t) = y(t - 1) + x(t), y(0) = start: [T, ...], float32."""
    _check("sum", [x_seq], [start])
    like = step_like([x_seq], tuple(x_seq.shape[1:]))
    y = new_sequence(x_seq.shape[0], like, torch.float32)
    if like.numel():
        space, (x, first) = arguments.describe(like, [(x_seq, True), (start, False)])
        a = arguments.Sum(space, x, first, y.data_ptr(), x_seq.shape[0])
        a.input_type = _one_type("sum", [x_seq])
        _provider(start).run("sum", a, start.device)
    return y


def _provider(like: Tensor) -> Any:
    if like.device.type not in PROVIDERS:
        raise BackendUnavailable(
            f"there are kernels for {' and '.join(PROVIDERS)}, but the tensors are on "
            f"{like.device}. Use backend='torch'."
        )
    return PROVIDERS[like.device.type]


def _check(name: str, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    devices = {t.device for t in (*inputs, *states)}
    if len(devices) > 1:
        raise InputError(
            f"{name}: all tensors are on one device, but they are on "
            f"{', '.join(sorted(map(str, devices)))}. Move them with .to(device), a neuron's state "
            "by resetting it."
        )
    types = {t.dtype for t in states} - {torch.float32}
    if types:
        raise InputError(
            f"{name}: kernels read states and scales in float32, but here is "
            f"{', '.join(sorted(map(str, types)))}. Convert it with .float(), a neuron's state by "
            "resetting it."
        )


def _one_type(name: str, tensors: Sequence[Tensor]) -> int:
    types = {t.dtype for t in tensors}
    if len(types) != 1 or not types <= {torch.float32, torch.float16, torch.bfloat16}:
        raise InputError(
            f"{name}: kernels read inputs of one type, float32, float16 or bfloat16, but these are "
            f"{', '.join(sorted(map(str, types)))}. Convert them, or use backend='torch'."
        )
    return TYPES[types.pop()]


def spike_type(members: int) -> torch.dtype:
    return torch.bool if members == 1 else torch.uint8


def step_like(x_seq: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """An empty step [*shape], dense, with its dimensions in the order of an input's."""
    for x in x_seq:
        if tuple(x.shape[1:]) == shape:
            return torch.empty_like(x[0], dtype=torch.float32)
    return torch.empty(shape, dtype=torch.float32, device=x_seq[0].device)


def new_sequence(steps: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty [steps, *like.shape] of steps that lie in memory as ``like`` does."""
    size = (steps, *like.shape)
    return torch.empty_strided(
        size, (like.numel(), *like.stride()), dtype=dtype, device=like.device
    )
