"""Runs kernels on tensors of one device: makes outputs, checks inputs, fills in the arguments.

Each function is an operator's one signature (``operators.py``): a generator that first yields the
outputs, which is all that a graph without values needs, and then has the kernel fill them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailable, InputError
from ..schedules import named_schedule
from ..surrogate import KINDS
from . import arguments, cpu, gpu
from .arguments import ARGUMENTS, OUTPUTS, PARAMETERS, STEPS, TYPES, numbered, place
from .build import Function
from .prepared import Output, Prepared

PROVIDERS = {"cpu": cpu, "cuda": gpu}  # by the type of device
# bytes of output from which a CPU fetches inputs ahead, and from which its caches do not keep the
# output for the reader
FAR = (4 * 2**20, 8 * 2**20)
IDENTITY = Function("x", ("x",))
Count = int  # of steps: changes from call to call of one graph

function_of = lru_cache(Function.from_key)


@lru_cache(maxsize=256)
def step_sizes(schedule: str, unit: float, t: int, steps: int) -> tuple[float, ...]:
    """unit * eta(t + 1), ..., unit * eta(t + steps)."""
    eta = named_schedule(schedule)
    return tuple([eta(t + k) * unit for k in range(1, steps + 1)])


@lru_cache(maxsize=1024)
def packed_step_sizes(schedule: str, unit: float, t: int, steps: int) -> bytes:
    """The same as a kernel's arguments hold them."""
    return bytes((ctypes.c_float * steps)(*step_sizes(schedule, unit, t, steps)))


# -- inference: any function, both views ----------------------------------------------------------


def signgd(
    x_seq: Sequence[Tensor],
    x_start: Sequence[Tensor],
    v: Tensor,
    scale: Tensor | None,
    zone: Tensor | None,
    theta: float,
    function: str,
    parameters: Sequence[float],
    fires_at_tie: bool,
    members: int,
    schedule: str,
    unit: float,
    t: Count,
    output: str,
    dtype: torch.dtype,
    keep_v: bool,
    keep_spikes: bool,
    ready: list[Prepared] | None = None,
) -> Iterator[list[Tensor]]:
    """[y_seq, v, *x, v_seq if keep_v, spikes if keep_spikes]; schedule and function are texts.

    x_seq are [T, ...], then come tensors that are parameters of the function, also as [T, ...]. The
    first of them are integrated from ``x_start`` on, if there are any. The dead zone is the tensor
    ``zone``, else ``theta``, 0 for none. Spikes are bool, of several members their code in uint8,
    with a dead zone the int32 codes of ``signgd/sparse.py``. Into ``ready`` goes the launch for
    tensors like [*x_seq, *x_start, v, scale, zone], where it can be kept.
    """
    steps, like = x_seq[0].shape[0], step_like(x_seq, v.shape)
    y = new_sequence(steps, like, dtype)
    v_last = torch.empty_like(like)
    x_last = [torch.empty_like(like) for _ in x_start]
    v_seq = [new_sequence(steps, like, torch.float32)] if keep_v else []
    sparse = _sparse(zone, theta)
    kind = torch.int32 if sparse else spike_type(members)
    spikes = [new_sequence(steps, like, kind)] if keep_spikes else []
    outputs = [y, v_last, *x_last, *v_seq, *spikes]
    yield outputs
    scales, zones = ([] if each is None else [each] for each in (scale, zone))
    _check("signgd", x_seq, [*x_start, v, *scales, *zones])
    input_type = _one_type("signgd", x_seq)
    if len(x_seq) > ARGUMENTS or len(parameters) > PARAMETERS:
        raise InputError(
            f"signgd: a kernel takes {ARGUMENTS} tensors and {PARAMETERS} numbers, but "
            f"the function has {len(x_seq)} and {len(parameters)}."
        )
    eta, in_c = step_sizes(schedule, unit, t, steps), function_of(function)
    done = 0
    while done < steps and like.numel():
        part = eta[done : done + STEPS]
        here = [(x[done : done + STEPS], True) for x in x_seq]
        before = (v, x_start) if done == 0 else (v_last.clone(), [x.clone() for x in x_last])
        constant = [(x, False) for x in (*before[1], before[0], *scales, *zones)]
        space, found = arguments.describe(like, [*here, *constant])
        a = arguments.SignGD(space=space)
        a.x[: len(here)] = found[: len(here)]
        for k, x in enumerate(x_last):
            a.x_start[k] = found[len(here) + k]
            a.x_last[k] = x.data_ptr()
        a.v, *rest = found[len(here) + len(x_last) :]
        if scale is not None:
            a.scale = rest[0]
        if zone is not None:
            a.zones = rest[-1]
        a.zone, a.sparse = theta, sparse
        a.y, a.v_last = y[done:].data_ptr(), v_last.data_ptr()
        a.v_seq = v_seq[0][done:].data_ptr() if keep_v else None
        a.spikes = spikes[0][done:].data_ptr() if keep_spikes else None
        a.steps, a.fires_at_tie, a.output = len(part), fires_at_tie, OUTPUTS.index(output)
        a.signs = members
        a.input_type, a.output_type, a.far = input_type, TYPES[dtype], _far(y)
        a.parameters[: len(parameters)] = parameters
        a.eta[: len(part)] = part
        _provider(v).run(in_c, a, v.device)
        done += len(part)
    if ready is not None and 0 < done <= STEPS and not hasattr(space, "keep"):
        names = [*numbered("x", len(x_seq)), *numbered("x_start", len(x_last)), "v"]
        names += ["scale"] * len(scales) + ["zones"] * len(zones)
        made = ["y", "v_last", *numbered("x_last", len(x_last))]
        made += ["v_seq"] * keep_v + ["spikes"] * keep_spikes
        ready += _prepared(in_c, a, names, zip(made, outputs, strict=True))


def group(
    x_seq: Tensor,
    v: Tensor,
    sent: Tensor | None,
    thetas: Tensor | None,
    members: int,
    theta: float,
    counts: bool,
    dtype: torch.dtype,
    keep_v: bool,
    keep_h: bool = False,
    ready: list[Prepared] | None = None,
) -> Iterator[list[Tensor]]:
    """[y_seq, v, sent if given, h_seq if keep_h, v_seq if keep_v]; y the counts if ``counts``.

    ``sent`` makes the neurons signed; ``thetas`` are by channel, in the place of ``theta``. h is
    kept where theta is a number and nothing is taken back.
    """
    steps, like = x_seq.shape[0], step_like([x_seq], x_seq.shape[1:])
    given = [tensor for tensor in (sent, thetas) if tensor is not None]
    assert not keep_h or not given
    y = new_sequence(steps, like, dtype)
    v_last = torch.empty_like(like)
    sent_last = [] if sent is None else [torch.empty_like(like)]
    h_seq = [new_sequence(steps, like, torch.float32)] if keep_h else []
    v_seq = [new_sequence(steps, like, torch.float32)] if keep_v else []
    outputs = [y, v_last, *sent_last, *h_seq, *v_seq]
    yield outputs
    _check("group", [x_seq], [v, *given])
    input_type = _one_type("group", [x_seq])
    if not like.numel():
        return
    constant = [(tensor, False) for tensor in (v, *given)]
    space, (x, start, *others) = arguments.describe(like, [(x_seq, True), *constant])
    a = arguments.Group(space=space, x=x, v=start)
    if sent is not None:
        a.sent, a.sent_last = others[0], sent_last[0].data_ptr()
    if thetas is not None:
        a.thetas = others[-1]
    else:
        a.theta = theta
    a.y, a.v_last = y.data_ptr(), v_last.data_ptr()
    a.h_seq = h_seq[0].data_ptr() if keep_h else None
    a.v_seq = v_seq[0].data_ptr() if keep_v else None
    a.steps, a.counts, a.members = steps, counts, members
    a.input_type, a.output_type, a.far = input_type, TYPES[dtype], _far(y)
    _provider(v).run("group", a, v.device)
    if ready is not None and not hasattr(space, "keep"):
        names = ["x", "v", *["sent"] * len(sent_last), *["thetas"] * (thetas is not None)]
        made = ["y", "v_last", *["sent_last"] * len(sent_last), *["h_seq"] * keep_h]
        made += ["v_seq"] * keep_v
        ready += _prepared("group", a, names, zip(made, outputs, strict=True))


# -- training: with the gradient of a surrogate ---------------------------------------------------


def group_train(
    x_seq: Tensor,
    v: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(y_seq, v, h_seq)."""
    for y, after, *kept in group(
        x_seq, v, None, None, members, theta, False, x_seq.dtype, False, keep_h=True
    ):
        yield y, after, kept[0]


def group_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    h_seq: Tensor,
    members: int,
    theta: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients of (x_seq, v), x_seq's in the type of y's."""
    steps, like = h_seq.shape[0], h_seq[0]
    x, v = new_sequence(steps, like, grad_y.dtype), torch.empty_like(like)
    yield x, v
    after = [] if grad_v is None else [grad_v]
    _check("group_gradient", [grad_y], [h_seq, *after])
    if not like.numel():
        return
    operands = [(h_seq, True), (grad_y, True), *((v, False) for v in after)]
    space, found = arguments.describe(like, operands)
    a = arguments.GroupGradient(space, *found)
    a.x, a.v, a.steps = x.data_ptr(), v.data_ptr(), steps
    a.surrogate, a.detach_reset = KINDS.index(surrogate), detach_reset
    a.input_type, a.output_type = _one_type("group_gradient", [grad_y]), TYPES[grad_y.dtype]
    a.theta, a.members, a.alpha, a.far = theta, members, alpha, _far(x)
    _provider(like).run("group_gradient", a, v.device)


def _sparse(zone: Tensor | None, theta: float) -> int:
    """What a kernel is told of the dead zone: 0 there is none, 1 it is a number, 2 a tensor."""
    return int(theta > 0) if zone is None else 2


def track(
    target_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    zone: Tensor | None,
    theta: float,
    fires_at_tie: bool,
    schedule: str,
    unit: float,
    t: Count,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(y_seq, v, v_seq) of neurons that are handed f(x); v_seq is empty where it is y_seq."""
    run = signgd(
        *([target_seq], [], v, scale, zone, theta, IDENTITY.key, []),
        *(fires_at_tie, 1, schedule, unit, t),
        *("signed" if signed else "decoded", torch.float32, signed, False),
    )
    for y, after, *kept in run:
        yield y, after, kept[0] if signed else y.new_empty(0)


def track_gradient(
    grad_y: Tensor,
    grad_v: Tensor | None,
    target_seq: Tensor,
    v_seq: Tensor,
    v: Tensor,
    scale: Tensor | None,
    zone: Tensor | None,
    theta: float,
    schedule: str,
    unit: float,
    t: Count,
    signed: bool,
    surrogate: str,
    alpha: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients of (target_seq, v) of neurons that track targets, by their v_seq [T, ...]."""
    steps, like = v_seq.shape[0], v_seq[0]
    x, v_start = new_sequence(steps, like, torch.float32), torch.empty_like(like)
    yield x, v_start
    scales, zones, after = ([] if each is None else [each] for each in (scale, zone, grad_v))
    _check("tracking_gradient", [grad_y], [target_seq, v_seq, v, *scales, *zones, *after])
    if not like.numel():
        return
    eta = step_sizes(schedule, unit, t, steps)
    carried = grad_v
    for last in range(steps, 0, -STEPS):
        first = max(0, last - STEPS)
        part = slice(first, last)
        start = v if first == 0 else v_seq[first - 1]
        operands = [(target_seq[part], True), (v_seq[part], True), (start, False)]
        operands += [(grad_y[part], True), *((s, False) for s in (*scales, *zones))]
        operands += [] if carried is None else [(carried, False)]
        space, found = arguments.describe(like, operands)
        a = arguments.TrackingGradient(space=space, target=found[0], v_seq=found[1], v=found[2])
        a.y = found[3]
        if scale is not None:
            a.scale = found[4]
        if zone is not None:
            a.zones = found[4 + len(scales)]
        a.zone, a.sparse = theta, _sparse(zone, theta)
        if carried is not None:
            a.v_last = found[-1]
        a.x, a.v_start = x[first:].data_ptr(), v_start.data_ptr()
        a.steps, a.surrogate, a.signed_output = last - first, KINDS.index(surrogate), signed
        a.input_type, a.alpha = _one_type("tracking_gradient", [grad_y]), alpha
        a.eta[: last - first] = eta[part]
        _provider(v).run("tracking_gradient", a, v.device)
        carried = v_start.clone() if first else carried


# -- the running sum ------------------------------------------------------------------------------


def running_sum(
    x_seq: Tensor, start: Tensor, ready: list[Prepared] | None = None
) -> Iterator[Tensor]:
    """y(t) = y(t - 1) + x(t), y(0) = start: [T, ...], float32."""
    steps, like = x_seq.shape[0], step_like([x_seq], x_seq.shape[1:])
    y = new_sequence(steps, like, torch.float32)
    yield y
    _check("sum", [x_seq], [start])
    if not like.numel():
        return
    space, (x, first) = arguments.describe(like, [(x_seq, True), (start, False)])
    a = arguments.Sum(space, x, first, y.data_ptr(), steps)
    a.input_type = _one_type("sum", [x_seq])
    _provider(start).run("sum", a, start.device)
    if ready is not None and not hasattr(space, "keep"):
        ready += _prepared("sum", a, ["x", "start"], [("y", y)])


def _prepared(
    name: str | Function,
    a: ctypes.Structure,
    inputs: Sequence[str],
    made: Iterable[tuple[str, Tensor]],
) -> list[Prepared]:
    """The launch with these arguments again, or nothing where it is not one on the CPU."""
    outputs = [(x, place(type(a), each)) for each, x in made]
    if any(x.device.type != "cpu" for x, _ in outputs):
        return []
    kept = tuple(Output(tuple(x.shape), x.stride(), x.dtype, at) for x, at in outputs)
    places = tuple(place(type(a), each) for each in inputs)
    return [cpu.prepared(name, a, places, kept, place(type(a), "eta"))]


def _far(y: Tensor) -> int:
    return sum(y.nbytes >= bound for bound in FAR)


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


def step_like(x_seq: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """An empty step [*shape], dense, with its dimensions in the order of an input's."""
    for x in x_seq:
        if x.shape[1:] == shape:
            return torch.empty_like(x[0], dtype=torch.float32)
    return torch.empty(tuple(shape), dtype=torch.float32, device=x_seq[0].device)


def new_sequence(steps: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty [steps, *like.shape] of steps that lie in memory as ``like`` does."""
    size = (steps, *like.shape)
    return torch.empty_strided(
        size, (like.numel(), *like.stride()), dtype=dtype, device=like.device
    )
