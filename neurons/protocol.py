"""What passes between the neurons of a network, and how a neuron takes it in and sends it on.

I = W y is what the linear layer before a neuron makes of what reaches it; decoded values agree to
rounding in all three:

==========  ==============================  ===================================================
"signed"    -eta(t) scale sigma(t)          x += I; layers without bias, x(0) = initial_input
"binary"    scale s(t), s in {0, 1}         x -= eta(t) (2 I - offset), offset = W scale 1; the
                                            protocol of the published code, one common schedule
"decoded"   v(t)                            x = I; layers keep their bias
==========  ==============================  ===================================================

Neurons of m members send -eta(t) scale 2^(1-m) d(t) as "signed" spikes. As "binary" ones they send
scale s(t) with a number s of m bits, the members' spikes, x -= eta(t) 2^(1-m) (2 I - (2^m - 1)
offset), with one common m as with one common schedule.

Everything here is pure, [T, ...] to [T, ...]; simulators hold the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import spread
from .choice import running_sum
from .coding import CodingState, RealCodingParameters, real_step
from .schedules import Schedule
from .signgd import (
    SignGDParameters,
    SignGDSequence,
    SignGDState,
    from_binary,
    signgd_initial_state,
    signgd_multi_step,
)

SPIKES = ("signed", "binary", "decoded")


def check_protocol(
    owner: str, spikes: str, initial: Any, offset: Any, momentum: float = 0.0
) -> None:
    """Raises ValueError where the options of a neuron contradict each other."""
    if spikes not in SPIKES:
        raise ValueError(f"{owner}: spikes is one of {', '.join(SPIKES)}, but it is {spikes!r}.")
    if spikes == "decoded" and not _is_zero(initial):
        raise ValueError(
            f"{owner}: with spikes='decoded' the input is x(t) itself, so an initial value would "
            "be ignored. Leave the bias in the layer before, or choose spikes='signed'."
        )
    if spikes == "binary" and offset is None:
        raise ValueError(
            f"{owner}: with spikes='binary' the offset W (scale 1) is needed: what the layer "
            "before makes of a spike from every neuron. Pass offset=weight.sum(1) for a "
            "fully connected layer and scale 1."
        )
    if spikes == "binary" and momentum != 0.0:
        raise ValueError(
            f"{owner}: a binary spike cannot carry momentum. Choose spikes='signed', or momentum=0."
        )
    if spikes != "binary" and offset is not None:
        raise ValueError(
            f"{owner}: only spikes='binary' has an offset, but spikes is {spikes!r}. Leave it out."
        )


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def state_dtype(inputs: Sequence[Tensor]) -> torch.dtype:
    """float32, float64 if an input is, whatever else the inputs are."""
    dtype = torch.float32
    for x in inputs:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def like(value: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def at_least_float32(value: Any) -> Any:
    """A tensor of a module cast to half counts with its rounded value, in float32."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value


def signgd_start(
    inputs: Sequence[Tensor],
    p: SignGDParameters,
    spikes: str = "decoded",
    initial: Sequence[float | Tensor] = (),
) -> tuple[SignGDState, tuple[Tensor, ...] | None]:
    """The state before a first step with these inputs [...], and the integrated inputs x(0).

    ``initial`` is x(0) for each input, which broadcasts; with "decoded" nothing is integrated.
    """
    x = tuple(inputs)
    if spikes != "decoded":
        x = tuple(
            spread(like(a, b), b.shape, "initial_input")
            for a, b in zip(initial, inputs, strict=True)
        )
    target = p.target(*x).to(inputs[0].dtype)  # of another shape where f pools or broadcasts
    return signgd_initial_state(target, p), None if spikes == "decoded" else x


def signgd_sequence(
    inputs: Sequence[Tensor],
    state: SignGDState,
    x: tuple[Tensor, ...] | None,
    p: SignGDParameters,
    spikes: str = "decoded",
    *,
    offsets: Sequence[float | Tensor] = (),
    backend: str = "auto",
    surrogate: Callable[[Tensor], Tensor] | None = None,
    keep: bool = False,
) -> SignGDSequence:
    """``signgd_multi_step`` of what passes; ``keep`` keeps v_seq and spike_seq.

    ``x`` are the integrated inputs, None with "decoded"; ``offsets`` one for each input, "binary".
    """
    dtype, wide = inputs[0].dtype, state.v.dtype
    if spikes == "binary":
        inputs = [x_seq.to(state_dtype(inputs)) for x_seq in inputs]
        inputs = [
            increments(x_seq, state.t, p.schedule, offset, p.members)
            for x_seq, offset in zip(inputs, offsets, strict=True)
        ]
    done = signgd_multi_step(
        inputs,
        state,
        p,
        x=x,
        output="fires" if spikes == "binary" else spikes,
        dtype=wide if spikes == "binary" else dtype,
        backend=backend,
        surrogate=surrogate,
        keep_v=keep,
        keep_spikes=keep,
    )
    if spikes == "binary":
        done = done._replace(y=(like(p.scale, done.y) * done.y).to(dtype))
    return done


def increments(
    x_seq: Tensor, t: int, schedule: Schedule, offset: float | Tensor, members: int = 1
) -> Tensor:
    """Currents [T, ...] of the binary spikes after step t to increments (``from_binary``)."""
    offset = spread(like(offset, x_seq), x_seq.shape[1:], "offset")
    eta = [schedule(t + k) for k in range(1, x_seq.shape[0] + 1)]
    sizes = zip(x_seq, eta, strict=True)
    return torch.stack([from_binary(i, offset, size, members) for i, size in sizes])


def encode_step(
    x: Tensor,
    state: CodingState,
    p: RealCodingParameters,
    spikes: str = "signed",
    members: int = 1,
) -> tuple[Tensor, CodingState]:
    """Real-valued coding: sends the increments of v, v itself, or (1 + v - x) / 2 ("binary").

    "binary" to neurons of m members (2^m - 1 + 2^(m-1) (v - x)) / 2, of which they make the same.
    """
    v, after = real_step(x, state, p)
    if spikes == "signed":
        return v - state.v, after
    if spikes == "decoded":
        return v, after
    return (2**members - 1 + 2 ** (members - 1) * (state.v - x)) / 2, after


def readout_sequence(
    current: Tensor,
    y: Tensor,
    t: int,
    spikes: str,
    schedule: Schedule | None = None,
    offset: float | Tensor = 0.0,
    members: int = 1,
) -> tuple[Tensor, Tensor]:
    """What the last layer makes of steps t + 1, ... [T, ...], decoded, and the last of it.

    "binary" needs the senders' ``schedule`` and ``members``.
    """
    dtype = current.dtype
    if spikes == "decoded":
        return current.clone(), current[-1].to(y.dtype)
    if spikes == "binary":
        assert schedule is not None
        current = increments(current.to(y.dtype), t, schedule, offset, members)
    y_seq = running_sum(current, y)
    return y_seq.to(dtype), y_seq[-1].clone()


def running_mean(x_seq: Tensor, total: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The mean of all inputs up to each step t + 1, ... [T, ...], and their sum in the end."""
    sums = running_sum(x_seq, total)
    steps = torch.arange(t + 1, t + x_seq.shape[0] + 1, device=sums.device, dtype=sums.dtype)
    y_seq = sums / steps.view(-1, *[1] * (sums.dim() - 1))
    return y_seq.to(x_seq.dtype), sums[-1].clone()
