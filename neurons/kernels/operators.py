"""The kernels as torch operators, ``torch.ops.spikingjelly_signgd.*``, opaque to torch.compile.

A schedule and a function travel as text, so that one graph serves every number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..schedules import named_schedule
from . import launch
from .build import Function

function_of = lru_cache(Function.from_key)


def step_sizes(schedule: str, unit: float, t: int, steps: int) -> list[float]:
    """unit * eta(t + 1), ..., unit * eta(t + steps)."""
    eta = named_schedule(schedule)
    return [eta(t + k) * unit for k in range(1, steps + 1)]


def _like(x_seq: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    return launch.step_like(x_seq, tuple(shape))


# -- inference: any function, both views ----------------------------------------------------------


def _signgd(
    x_seq: Sequence[Tensor],
    x_start: Sequence[Tensor],
    v: Tensor,
    scale: Tensor | None,
    function: str,
    parameters: Sequence[float],
    fires_at_tie: bool,
    members: int,
    schedule: str,
    unit: float,
    t: int,
    output: str,
    dtype: torch.dtype,
    keep_v: bool,
    keep_spikes: bool,
) -> list[Tensor]:
    eta = step_sizes(schedule, unit, t, x_seq[0].shape[0])
    return launch.signgd(
        x_seq,
        x_start,
        v,
        scale,
        function_of(function),
        parameters,
        fires_at_tie,
        members,
        eta,
        output,
        dtype,
        keep_v,
        keep_spikes,
    )


signgd = torch.library.custom_op(
    "spikingjelly_signgd::signgd",
    _signgd,
    mutates_args=(),
    schema="(Tensor[] x_seq, Tensor[] x_start, Tensor v, Tensor? scale, str function, "
    "float[] parameters, bool fires_at_tie, int members, str schedule, float unit, SymInt t, "
    "str output, ScalarType dtype, bool keep_v, bool keep_spikes) -> Tensor[]",
)


@signgd.register_fake
def _(
    x_seq: Sequence[Tensor],
    x_start: Sequence[Tensor],
    v: Tensor,
    scale: Tensor | None,
    function: str,
    parameters: Sequence[float],
    fires_at_tie: bool,
    members: int,
    schedule: str,
    unit: float,
    t: int,
    output: str,
    dtype: torch.dtype,
    keep_v: bool,
    keep_spikes: bool,
) -> list[Tensor]:
    like, steps = _like(x_seq, v.shape), x_seq[0].shape[0]
    return [
        launch.new_sequence(steps, like, dtype),
        torch.empty_like(like),
        *(torch.empty_like(like) for _ in x_start),
        *([launch.new_sequence(steps, like, torch.float32)] if keep_v else []),
        *([launch.new_sequence(steps, like, launch.spike_type(members))] if keep_spikes else []),
    ]


def _group(
    x_seq: Tensor,
    v: Tensor,
    sent: Tensor | None,
    thetas: Tensor | None,
    members: int,
    theta: float,
    counts: bool,
    dtype: torch.dtype,
    keep_v: bool,
) -> list[Tensor]:
    each = theta if thetas is None else thetas
    return launch.group(x_seq, v, sent, members, each, counts, dtype, False, keep_v)


group = torch.library.custom_op(
    "spikingjelly_signgd::group",
    _group,
    mutates_args=(),
    schema="(Tensor x_seq, Tensor v, Tensor? sent, Tensor? thetas, int members, float theta, "
    "bool counts, ScalarType dtype, bool keep_v) -> Tensor[]",
)


@group.register_fake
def _(
    x_seq: Tensor,
    v: Tensor,
    sent: Tensor | None,
    thetas: Tensor | None,
    members: int,
    theta: float,
    counts: bool,
    dtype: torch.dtype,
    keep_v: bool,
) -> list[Tensor]:
    like, steps = _like([x_seq], x_seq.shape[1:]), x_seq.shape[0]
    v_seq = [launch.new_sequence(steps, like, torch.float32)] if keep_v else []
    states = [torch.empty_like(like) for state in (v, sent) if state is not None]
    return [launch.new_sequence(steps, like, dtype), *states, *v_seq]


# -- training: with the gradient of a surrogate ---------------------------------------------------


def _group_train(
    x_seq: Tensor,
    v: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, v, h_seq = launch.group(x_seq, v, None, members, theta, False, x_seq.dtype, True, False)
    return y, v, h_seq


group_train = torch.library.custom_op(
    "spikingjelly_signgd::group_train",
    _group_train,
    mutates_args=(),
    schema="(Tensor x_seq, Tensor v, int members, float theta, str surrogate, float alpha, "
    "bool detach_reset) -> (Tensor, Tensor, Tensor)",
)


@group_train.register_fake
def _(
    x_seq: Tensor,
    v: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like, steps = _like([x_seq], x_seq.shape[1:]), x_seq.shape[0]
    y = launch.new_sequence(steps, like, x_seq.dtype)
    return y, torch.empty_like(like), launch.new_sequence(steps, like, torch.float32)


def _group_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    h_seq: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    x, v = launch.group_gradient(
        grad_y, grad_v, h_seq, members, theta, surrogate, alpha, detach_reset, grad_y.dtype
    )
    return x, v


group_gradient = torch.library.custom_op(
    "spikingjelly_signgd::group_gradient",
    _group_gradient,
    mutates_args=(),
    schema="(Tensor grad_y, Tensor? grad_v, Tensor h_seq, int members, float theta, str surrogate, "
    "float alpha, bool detach_reset) -> (Tensor, Tensor)",
)


@group_gradient.register_fake
def _(
    grad_y: Tensor,
    grad_v: Tensor | None,
    h_seq: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    like = h_seq[0]
    return launch.new_sequence(h_seq.shape[0], like, grad_y.dtype), torch.empty_like(like)


def _keep_group(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.constants, ctx.dtype = inputs[2:], inputs[0].dtype


def _group_backward(
    ctx: Any, grad_y: Tensor | None, grad_v: Tensor | None, _: None
) -> tuple[Any, ...]:
    (h_seq,) = ctx.saved_tensors
    grad_y = torch.zeros_like(h_seq, dtype=ctx.dtype) if grad_y is None else grad_y
    x, v = group_gradient(grad_y, grad_v, h_seq, *ctx.constants)
    return x, v, *[None] * len(ctx.constants)


group_train.register_autograd(_group_backward, setup_context=_keep_group)


def _track(
    target_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    fires_at_tie: bool,
    schedule: str,
    unit: float,
    t: int,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    eta = step_sizes(schedule, unit, t, target_seq.shape[0])
    output = "signed" if signed else "decoded"
    y, v, *kept = launch.signgd(
        [target_seq],
        [],
        v,
        scale,
        IDENTITY,
        [],
        fires_at_tie,
        1,
        eta,
        output,
        torch.float32,
        signed,
        False,
    )
    return y, v, kept[0] if signed else y.new_empty(0)


IDENTITY = Function("x", ("x",))

track = torch.library.custom_op(
    "spikingjelly_signgd::track",
    _track,
    mutates_args=(),
    schema="(Tensor target_seq, Tensor v, Tensor? scale, bool fires_at_tie, str schedule, "
    "float unit, SymInt t, bool signed, str surrogate, float alpha) -> (Tensor, Tensor, Tensor)",
)


@track.register_fake
def _(
    target_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    fires_at_tie: bool,
    schedule: str,
    unit: float,
    t: int,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    like, steps = _like([target_seq], v.shape), target_seq.shape[0]
    y = launch.new_sequence(steps, like, torch.float32)
    v_seq = launch.new_sequence(steps, like, torch.float32) if signed else y.new_empty(0)
    return y, torch.empty_like(like), v_seq


def _track_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    target_seq: Tensor,
    v_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    schedule: str,
    unit: float,
    t: int,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    eta = step_sizes(schedule, unit, t, v_seq.shape[0])
    x, v = launch.tracking_gradient(
        grad_y, grad_v, target_seq, v_seq, v, scale, eta, signed, surrogate, alpha
    )
    return x, v


track_gradient = torch.library.custom_op(
    "spikingjelly_signgd::track_gradient",
    _track_gradient,
    mutates_args=(),
    schema="(Tensor grad_y, Tensor? grad_v, Tensor target_seq, Tensor v_seq, Tensor v, "
    "Tensor? scale, str schedule, float unit, SymInt t, bool signed, str surrogate, float alpha) "
    "-> (Tensor, Tensor)",
)


@track_gradient.register_fake
def _(
    grad_y: Tensor,
    grad_v: Tensor | None,
    target_seq: Tensor,
    v_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    schedule: str,
    unit: float,
    t: int,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    like = v_seq[0]
    return launch.new_sequence(v_seq.shape[0], like, torch.float32), torch.empty_like(like)


def _keep_track(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    target_seq, v, scale, _, schedule, unit, t, signed, surrogate, alpha = inputs
    ctx.save_for_backward(target_seq, output[2] if signed else output[0], v, scale)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.constants = (schedule, unit, t, signed, surrogate, alpha)


def _track_backward(
    ctx: Any, grad_y: Tensor | None, grad_v: Tensor | None, _: None
) -> tuple[Any, ...]:
    grad_y = torch.zeros_like(ctx.saved_tensors[1]) if grad_y is None else grad_y
    x, v = track_gradient(grad_y, grad_v, *ctx.saved_tensors, *ctx.constants)
    return x, v, *[None] * 8


track.register_autograd(_track_backward, setup_context=_keep_track)


# -- the running sum ------------------------------------------------------------------------------


running_sum = torch.library.custom_op(
    "spikingjelly_signgd::running_sum",
    launch.running_sum,
    mutates_args=(),
    schema="(Tensor x_seq, Tensor start) -> Tensor",
)


@running_sum.register_fake
def _(x_seq: Tensor, start: Tensor) -> Tensor:
    return launch.new_sequence(x_seq.shape[0], _like([x_seq], x_seq.shape[1:]), torch.float32)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    later = grad.flip(0).cumsum(0)
    return later.flip(0).to(ctx.dtype), later[-1]


def _keep_sum(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


running_sum.register_autograd(_sum_backward, setup_context=_keep_sum)
