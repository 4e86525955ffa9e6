r"""T steps of signGD neurons with the dithered gradient: forward ``signgd_multi_step`` to the bit.

With a dead zone the derivatives are those of ``dithered.py``. Without one, a member that is within
its step of the target follows it, whatever its value was before; the others move by their full
step:

.. math::
    |v_{k-1} - f| < c_k: \quad \frac{\partial v_k}{\partial f} = 1, \; \frac{\partial v_k}{\partial
    v_{k-1}} = 0; \qquad \text{else} \quad 0, \; 1; \qquad
    \frac{\partial v_k}{\partial \log c} = -c_k \sigma_k ,

so what a step's size moves is what the last member within reach and those after it moved. f(x) is
computed by torch, whose autograd leads on to x and the parameters of f. What is sent has the
gradient of what it adds to v: "signed" :math:`v(t) - v(t-1)`, and sigma, or the code of binary
spikes, that in units of the step. There is none with momentum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import InputError
from ..choice import running_sum
from . import sparse
from .chunked import Given, gradients
from .dithered import SMALLEST, slopes
from .sequence import SignGDSequence, signgd_multi_step, target_over_time
from .step import SignGDParameters, SignGDState, dead_zone

_FARTHEST = 1e7  # x = r / (theta c_m), beyond what is within reach of any neuron


def trains(p: SignGDParameters, *tensors: Tensor | None) -> bool:
    """Whether one of these, or a parameter of the neurons, asks for a gradient."""
    if not torch.is_grad_enabled():
        return False
    if any(x is not None and x.requires_grad for x in (*tensors, *p.tensors)):
        return True
    f = p.function.function
    return isinstance(f, nn.Module) and any(a.requires_grad for a in f.parameters())


def dithered_multi_step(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    *,
    x: Sequence[Tensor] | None = None,
    output: str = "decoded",
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    keep_v: bool = False,
    keep_spikes: bool = False,
    rest: Tensor | None = None,
    fan_out: Tensor | None = None,
) -> SignGDSequence:
    """``signgd_multi_step`` with gradients of x, ``state.v``, and the scale, zone and arguments.

    ``rest`` carries the gradient of v(0) from one call to the next, for neurons that have been
    silent since the start: what the last call returned, None before the first. ``fan_out``
    broadcasts against v: then ``sent``, the sum of all spikes times it, has a gradient too.
    Calls of one step each give the gradients of a call of all, but for the order of sums. With
    momentum there is no gradient: backward raises InputError. Raises as ``signgd_multi_step``.
    """
    if p.momentum:
        return _without(x_seq, state, p, x, output, dtype, backend, keep_v, keep_spikes)
    before = state.v if rest is None else state.v + (rest - rest.detach())
    rest = state.v.view_as(state.v) if rest is None and state.t == 0 else rest
    rest = rest if rest is not None and p.sparse and rest.requires_grad else None
    coded = keep_spikes or not p.sparse or rest is not None or fan_out is not None
    with torch.no_grad():
        done = signgd_multi_step(
            x_seq,
            state,
            p,
            x=x,
            output=output,
            dtype=dtype,
            backend=backend,
            keep_v=True,
            keep_spikes=coded,
        )
        quiet = None if rest is None else _quiet(done.spike_seq, state.v.dtype)
    sums = x_seq if x is None else [running_sum(a, b) for a, b in zip(x_seq, x, strict=True)]
    v_seq, v, sent = _tracked(sums, state, p, done, rest, quiet, fan_out)
    return SignGDSequence(
        _passed(v_seq, before, done, state.t, p, output),
        SignGDState(v, done.state.t),
        () if x is None else tuple(a[-1].clone() for a in sums),
        v_seq.clone() if keep_v else None,
        done.spike_seq if keep_spikes else None,
        None if fan_out is None else sent,
        None if rest is None or quiet is None else rest * quiet[-1],
    )


def _without(
    x_seq: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    x: Sequence[Tensor] | None,
    output: str,
    dtype: torch.dtype | None,
    backend: str,
    keep_v: bool,
    keep_spikes: bool,
) -> SignGDSequence:
    """With momentum, which has no gradient: the values, and an error if a gradient is requested."""
    options: dict[str, Any] = {"output": output, "dtype": dtype, "backend": backend}
    with torch.no_grad():
        done = signgd_multi_step(
            x_seq, state, p, x=x, **options, keep_v=keep_v, keep_spikes=keep_spikes
        )
    y: Tensor = _Refused.apply(done.y, p.momentum, *x_seq, state.v, *p.tensors)  # type: ignore[no-untyped-call]
    return done._replace(y=y)


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, momentum: float, *asking: Tensor) -> Tensor:
        ctx.momentum = momentum
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise InputError(
            f"signGD neurons: there is no gradient with momentum={ctx.momentum}. Set it to 0, or "
            "run them under torch.no_grad()."
        )


def _quiet(codes: Tensor | None, dtype: torch.dtype) -> Tensor:
    """1 where nothing was sent up to each step [T, ...], else 0."""
    assert codes is not None
    silent = torch.eq(codes, 0, out=torch.empty_like(codes, dtype=dtype))
    return silent if len(silent) == 1 else silent.cumprod(0)


def _tracked(
    sums: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    done: SignGDSequence,
    rest: Tensor | None,
    quiet: Tensor | None,
    fan_out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """v_seq with its gradient, the last v, and the spikes times ``fan_out``."""
    v, v_seq = state.v, done.v_seq
    assert v_seq is not None
    steps = [p.schedule(t) for t in range(state.t + 1, done.state.t + 1)]
    eta = v.new_tensor(steps).view(-1, *[1] * v.dim())
    target = target_over_time(sums, p).to(v.dtype)
    scale = torch.as_tensor(p.scale, dtype=v.dtype, device=v.device)
    theta = dead_zone(v, p)
    made: tuple[Tensor, Tensor, Tensor]
    if fan_out is None and not (scale.requires_grad or theta.requires_grad):
        with torch.no_grad():
            near = _near(target, v, v_seq, eta * scale, theta, p)
        last = v_seq[-1].clone()
        # inside of a tuple they are no inputs, which a function would have to copy
        values = (v_seq.clone(), last.clone()) if torch.compiler.is_compiling() else (v_seq, last)
        y, v = _Following.apply(target, v, rest, values, near, quiet)  # type: ignore[no-untyped-call]
        return y, v, v_seq.new_zeros(())
    options = eta, p.members, p.sparse
    made = _Dithered.apply(  # type: ignore[no-untyped-call]
        target, v, rest, scale, theta, fan_out, v_seq, done.spike_seq, quiet, *options
    )
    return made


def _near(
    target: Tensor, v: Tensor, v_seq: Tensor, c_1: Tensor, theta: Tensor, p: SignGDParameters
) -> Tensor:
    """1 where a step reaches its target [T, ...], else 0: there all members move v alike.

    As numbers, in place, which torch multiplies several times as fast as it does by bools.
    """
    r = torch.empty_like(v_seq)
    torch.sub(v, target[0], out=r[0])
    torch.sub(v_seq[:-1], target[1:], out=r[1:])
    r.abs_()
    finest = 2.0 ** (1 - p.members)
    if not p.sparse:
        return r.lt_((2 - finest) * c_1)
    reach = (2 - finest + torch.maximum(theta, 1 - theta) * finest) * c_1
    if theta.dim() == 0 and not isinstance(p.dead_zone, Tensor):
        return r.le_(reach)
    return torch.where(theta > 0, r <= reach, r < (2 - finest) * c_1).to(r.dtype)


def _passed(
    v_seq: Tensor,
    before: Tensor,
    done: SignGDSequence,
    t: int,
    p: SignGDParameters,
    output: str,
) -> Tensor:
    """What is sent after step t, with the gradient of what it adds to v, ``before`` at first."""
    if output == "decoded":
        return v_seq.to(done.y.dtype)
    soft = v_seq - torch.cat([before.unsqueeze(0), v_seq[:-1]])
    if output != "signed":  # d, of which binary codes count half
        steps = range(t + 1, done.state.t + 1)
        eta = soft.new_tensor([p.schedule(t) for t in steps]).view(-1, *[1] * before.dim())
        unit = eta * torch.as_tensor(p.scale, dtype=soft.dtype, device=soft.device)
        part = 0.5 if output == "fires" else 1.0
        soft = -soft * (part * 2.0 ** (p.members - 1)) / unit
    y: Tensor = _Valued.apply(soft, done.y)  # type: ignore[no-untyped-call]
    return y


class _Valued(torch.autograd.Function):
    """The second, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = soft.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _Following(torch.autograd.Function):
    """v [T, ...] and the last of it as computed, with the gradient of the target and the start:
    ``_Dithered`` where no more is asked for, at a fraction of its time and memory."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,  # [T, ...]
        start: Tensor,
        rest: Tensor | None,
        made: tuple[Tensor, Tensor],  # [T, ...] and [...]
        near: Tensor,  # [T, ...], 1 or 0
        quiet: Tensor | None,  # [T, ...]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(near, quiet)
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_v: Tensor | None, carried: Tensor | None) -> Any:
        near, quiet = ctx.saved_tensors
        if of_v is None and carried is None:
            return None, None, None, None, None, None
        to_target = torch.empty_like(near)
        first = 0 if ctx.needs_input_grad[1] else 1
        for t in reversed(range(len(near))):
            g = _sum(None if of_v is None else of_v[t], carried)
            assert g is not None
            torch.mul(g, near[t], out=to_target[t])
            carried = g - to_target[t] if t >= first else None
        of_rest = None if quiet is None or of_v is None else (of_v * quiet).sum(0)
        return to_target, carried, of_rest, None, None, None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Dithered(torch.autograd.Function):
    """v [T, ...] and the last of it as computed, and what was sent, with its gradient.

    The last one is returned separately for the steps that follow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,  # [T, ...]
        start: Tensor,
        rest: Tensor | None,
        scale: Tensor,
        theta: Tensor,
        fan_out: Tensor | None,
        v_seq: Tensor,  # [T, ...]
        codes: Tensor | None,  # [T, ...], without a dead zone and for ``sent``
        quiet: Tensor | None,  # [T, ...]
        eta: Tensor,  # [T, 1, ...]
        members: int,
        zones: bool,  # whether there are dead zones
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(target, start, scale, theta, fan_out, v_seq, codes, quiet, eta)
        ctx.members, ctx.zones = members, zones
        sent = target.new_zeros(())
        if fan_out is not None and codes is not None:
            spikes = (
                sparse.count(codes) if zones else torch.full_like(codes, members, dtype=torch.int16)
            )
            sent = (spikes * fan_out).sum()
        return v_seq.clone(), v_seq[-1].clone(), sent

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_v: Tensor, of_last: Tensor, of_sent: Tensor) -> Any:
        target, start, scale, theta, fan_out, v_seq, codes, quiet, eta = ctx.saved_tensors
        in_parts = ctx.zones and not v_seq.is_cuda and not torch.compiler.is_compiling()
        if in_parts and bool((theta > 0).all()):
            priced = None if fan_out is None or not bool(of_sent) else of_sent * fan_out
            given = Given(target, v_seq, start, scale, theta, priced)
            found = gradients(given, eta.flatten().tolist(), ctx.members, of_v, of_last)
            of_rest = None if quiet is None else (of_v * quiet).sum(0)
            return *found[:2], of_rest, *found[2:], *[None] * 7
        before = torch.cat([start.unsqueeze(0), v_seq[:-1]])
        near, by_step, by_zone = _slopes_of(
            target, before, v_seq, codes, eta * scale, theta, ctx.members, ctx.zones
        )
        counted = fan_out is not None and ctx.zones
        price = (of_sent * fan_out) * (near & (theta > 0)) if counted else None
        c_m = eta * 2.0 ** (1 - ctx.members) * scale
        moved, resized, zoned = _spikes_of(before - target, c_m, theta, price)
        g, carried = _through_time(of_v, of_last, near, moved)
        by_log = g * by_step if resized is None else g * by_step + resized
        by_theta = g * by_zone if zoned is None else g * by_zone + zoned
        to_target = g * near if moved is None else g * near - moved
        return (
            to_target,
            carried,
            None if quiet is None else (of_v * quiet).sum(0),
            (by_log.sum(0) / scale).sum_to_size(scale.shape),
            by_theta.sum(0).sum_to_size(theta.shape),
            *[None] * 7,
        )


def _through_time(
    of_v: Tensor, carried: Tensor, near: Tensor, moved: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of v(t), with what later steps ask of it, and that of the start."""
    g = torch.empty_like(of_v)
    for t in reversed(range(len(of_v))):
        g[t] = of_v[t] + carried
        carried = g[t].masked_fill(near[t], 0.0)
        if moved is not None:
            carried = carried + moved[t]
    return g, carried


def _slopes_of(
    target: Tensor,
    before: Tensor,
    v_seq: Tensor,
    codes: Tensor | None,
    c_1: Tensor,
    theta: Tensor,
    members: int,
    zones: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each step [T, ...]: whether v follows, and its derivatives by log c and theta."""
    if not zones:
        return *_dense(target, before, v_seq, codes, c_1, members), torch.zeros_like(v_seq)
    error, finest = v_seq - target, 2.0 ** (1 - members)
    reach = (2 / finest - 1 + torch.maximum(theta, 1 - theta)) * finest * c_1
    near = (before - target).abs() <= reach
    by_step = error.where(near, v_seq - before)
    kappa = (theta - 0.5) / (1 / 12 + (theta - 0.5).square())  # kappa' / kappa
    by_zone = error * near * kappa
    if theta.dim() and codes is not None and not bool((theta > 0).all()):
        follows, by_size = _dense(target, before, v_seq, codes, c_1, members)
        near, by_step = near.where(theta > 0, follows), by_step.where(theta > 0, by_size)
        by_zone = by_zone.where(theta > 0, 0.0)
    return near, by_step, by_zone


def _dense(
    target: Tensor,
    before: Tensor,
    v_seq: Tensor,
    codes: Tensor | None,
    c_1: Tensor,
    members: int,
) -> tuple[Tensor, Tensor]:
    """``_slopes_of`` neurons that fire at every step, but for theta's, which they have not."""
    assert codes is not None
    plus = sparse.masks(codes)[0] if codes.dtype == sparse.CODE else codes.to(torch.uint8)
    near, by_step, v = torch.zeros_like(v_seq, dtype=torch.bool), v_seq - before, before
    for k in range(members):
        c_k = c_1 * 2.0**-k
        follows = (v - target).abs() < c_k
        near, by_step = near | follows, torch.where(follows, v_seq - v, by_step)
        v = v - c_k * (2 * (plus >> (members - 1 - k) & 1).to(v.dtype) - 1)
    return near, by_step


def _spikes_of(
    r: Tensor, c_m: Tensor, theta: Tensor, price: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives of the spikes sent, each at its ``price``: by r, log c and theta."""
    if price is None:
        return None, None, None
    zone = theta.clamp(min=SMALLEST)
    x = (r.abs() / (zone * c_m)).clamp(max=_FARTHEST)  # of tiny steps: infinity has no slope
    slope, by_density = slopes(x, theta)
    by_density = by_density * torch.where(theta < 2 / 3, -1.0, 0.0)
    return (
        price * slope * r.sign() / (zone * c_m),
        -price * slope * x,
        price * (by_density - slope * x / zone),
    )
