"""The protocols between neurons: what a neuron sends, and how a receiver integrates it.

I = W y is the output of the linear layer before a neuron; decoded values agree to rounding in all
four protocols:

==========  ==============================  ===================================================
"signed"    -eta(t) scale sigma(t)          x += I; layers without bias, x(0) = initial_input
"binary"    scale s(t), s in {0, 1}         x -= eta(t) (2 I - offset), offset = W scale 1; the
                                            protocol of the published code, one common schedule
"ternary"   scale sigma(t), in {-1, 0, 1}   x -= eta(t) I, no offset: silence delivers nothing; one
                                            common schedule, x(0) = initial_input
"decoded"   v(t)                            x = I; layers keep their bias
==========  ==============================  ===================================================

Neurons of m members send -eta(t) scale 2^(1-m) d(t) as "signed" spikes. As "binary" ones they send
scale s(t) with a number s of m bits, the members' spikes, x -= eta(t) 2^(1-m) (2 I - (2^m - 1)
offset), with one common m as with one common schedule. "ternary" ones are those of one member.
With a dead zone a neuron may be silent, which "binary" spikes cannot represent.

Everything here is pure, [T, ...] to [T, ...]; simulators hold the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..names import near
from .base import spread
from .choice import running_sum
from .coding import CodingState, RealCodingParameters, real_step
from .schedules import Schedule
from .signgd import (
    DEAD_ZONE,
    SignGDParameters,
    SignGDSequence,
    SignGDState,
    check_dead_zone_fits,
    dithered_multi_step,
    from_binary,
    levels,
    signgd_multi_step,
    signgd_start_state,
    trains,
)
from .spikes import hear, price, tell

SPIKES = ("signed", "binary", "ternary", "decoded")
# what signgd_multi_step is asked for, where that has another name; scale is multiplied here
_FIRED = {"binary": "fires", "ternary": "sigma"}


def chosen_dead_zone(given: float | Tensor | None, spikes: str, momentum: float) -> float | Tensor:
    """theta of a neuron by hand: ``DEAD_ZONE`` unless given, 0 where no dead zone is possible."""
    if given is not None:
        return given
    return 0.0 if spikes == "binary" or momentum else DEAD_ZONE


def has_gradient(spikes: str, momentum: float) -> bool:
    """Whether a surrogate gradient passes what is sent."""
    return spikes not in _FIRED and not momentum


def check_protocol(
    owner: str,
    spikes: str,
    initial: Any,
    offset: Any,
    momentum: float = 0.0,
    members: int = 1,
    dead_zone: Any = 0.0,
) -> None:
    """Raises ValueError if the options of a neuron contradict each other."""
    check_spikes(owner, spikes)
    if spikes == "decoded" and not _is_zero(initial):
        raise ValueError(
            f"{owner}: with spikes='decoded' the input is x(t) itself, so an initial value would "
            "be ignored. Keep the bias in the preceding layer, or choose spikes='signed'."
        )
    if spikes == "binary" and offset is None:
        raise ValueError(
            f"{owner}: with spikes='binary' the offset W (scale 1) is required: the output of "
            "the preceding layer for one spike from every neuron. Pass offset=weight.sum(1) for "
            "a fully connected layer and scale 1."
        )
    if spikes in _FIRED and momentum != 0.0:
        raise ValueError(
            f"{owner}: {spikes} spikes cannot represent momentum. Choose spikes='signed', or "
            "momentum=0."
        )
    if spikes == "ternary":
        _check_single(owner, members)
    if spikes == "binary" and not _is_zero(dead_zone):
        raise ValueError(
            f"{owner}: binary spikes (0 or 1) cannot represent the silence of a neuron with a "
            "dead zone. Choose spikes='ternary' or 'signed', or dead_zone=0."
        )
    if spikes != "binary" and offset is not None:
        raise ValueError(
            f"{owner}: only spikes='binary' has an offset, but spikes is {spikes!r}. Leave it out."
        )


def check_spikes(owner: str, spikes: Any) -> None:
    if spikes not in SPIKES:
        raise ValueError(
            f"{owner}: spikes is one of {', '.join(SPIKES)}, but it is {spikes!r}."
            f"{near(spikes, SPIKES)}"
        )


def _check_single(owner: str, members: int) -> None:
    if members > 1:
        raise ValueError(
            f"{owner}: a ternary spike is one sign or silence, but with members={members} a step "
            "has several signs. Choose spikes='signed', or members=1."
        )


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def state_dtype(inputs: Sequence[Tensor]) -> torch.dtype:
    """float32, float64 if an input is, whatever else the inputs are."""
    dtype = torch.float32
    for x in inputs:
        if x.dtype is not dtype:
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
    return signgd_start_state(x, inputs[0], p), None if spikes == "decoded" else x


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
    rest: Tensor | None = None,
    fan_out: Tensor | None = None,
) -> SignGDSequence:
    """``signgd_multi_step`` of what passes; ``keep`` keeps v_seq and spike_seq (``recorded``).

    ``x`` are the integrated inputs, None with "decoded"; ``offsets`` one for each input, "binary".
    Without a ``surrogate`` the gradient is the dithered one (``dithered_multi_step``, which also
    says what ``rest`` and ``fan_out`` are), the values are the same to the bit, and nothing is
    recorded if no gradient is required. With momentum there is none: backward raises.
    """
    fan_out, priced = price() if fan_out is None else (fan_out, [])
    check_dead_zone_fits(p, state.v)
    dtype, wide = inputs[0].dtype, state.v.dtype
    fired = _FIRED.get(spikes)
    if fired is not None:
        inputs = _received(inputs, state.t, p, spikes, offsets)
    asked: dict[str, Any] = {
        **{"x": x, "output": fired or spikes, "dtype": wide if fired else dtype},
        **{"backend": backend, "keep_v": keep, "keep_spikes": keep},
    }
    if surrogate is None and trains(p, *inputs, state.v, *(x or ()), rest):
        done = dithered_multi_step(inputs, state, p, **asked, rest=rest, fan_out=fan_out)
    else:
        done = _without_graph(inputs, state, p, asked, surrogate, fan_out)
    if done.sent is not None:
        priced.append(done.sent)
    if fired is not None:
        done = done._replace(y=(like(p.scale, done.y) * done.y).to(dtype))
    return done._replace(spike_seq=recorded(done.spike_seq, p)) if keep else done


def _without_graph(
    inputs: Sequence[Tensor],
    state: SignGDState,
    p: SignGDParameters,
    asked: dict[str, Any],
    surrogate: Callable[[Tensor], Tensor] | None,
    fan_out: Tensor | None,
) -> SignGDSequence:
    if fan_out is None:
        return signgd_multi_step(inputs, state, p, **asked, surrogate=surrogate)
    with hear() as told:
        done = signgd_multi_step(inputs, state, p, **asked, surrogate=surrogate)
    tell(told[0])
    return done._replace(sent=(told[0]().spikes * fan_out).sum())


def recorded(spike_seq: Tensor | None, p: SignGDParameters) -> Tensor | None:
    """What a raster plot shows for the codes of neurons with a dead zone: sigma int8, or d int16.

    Codes of other neurons are unchanged: where sigma is 1, bool, or the m bits, uint8.
    """
    if spike_seq is None or not p.sparse:
        return spike_seq
    return levels(spike_seq, p.members, torch.int8 if p.members == 1 else torch.int16)


def _received(
    inputs: Sequence[Tensor],
    t: int,
    p: SignGDParameters,
    spikes: str,
    offsets: Sequence[float | Tensor],
) -> list[Tensor]:
    """What comes in as "binary" or "ternary" spikes after step t, as increments."""
    wide = [x_seq.to(state_dtype(inputs)) for x_seq in inputs]
    if spikes == "ternary":
        _check_single("signgd_sequence", p.members)
        return [of_ternary(x_seq, t, p.schedule) for x_seq in wide]
    return [
        increments(x_seq, t, p.schedule, offset, p.members)
        for x_seq, offset in zip(wide, offsets, strict=True)
    ]


def increments(
    x_seq: Tensor, t: int, schedule: Schedule, offset: float | Tensor, members: int = 1
) -> Tensor:
    """Currents [T, ...] of the binary spikes after step t to increments (``from_binary``)."""
    offset = spread(like(offset, x_seq), x_seq.shape[1:], "offset")
    steps = _with_sizes(x_seq, t, schedule)
    return torch.stack([from_binary(i, offset, size, members) for i, size in steps])


def of_ternary(x_seq: Tensor, t: int, schedule: Schedule) -> Tensor:
    """Currents [T, ...] of the ternary spikes after step t to increments, -eta(t) I."""
    return torch.stack([-size * i for i, size in _with_sizes(x_seq, t, schedule)])


def _with_sizes(x_seq: Tensor, t: int, schedule: Schedule) -> Iterator[tuple[Tensor, float]]:
    """Each step after step t with its eta."""
    return zip(x_seq, [schedule(t + k) for k in range(1, x_seq.shape[0] + 1)], strict=True)


def check_readout(owner: str, spikes: str, schedule: Schedule | None) -> None:
    """Raises ValueError if a read-out could not decode the spikes."""
    if spikes in _FIRED and schedule is None:
        raise ValueError(
            f"{owner}: {spikes} spikes are decoded with the step sizes of the presynaptic "
            "neurons. Pass schedule=... ."
        )


def encode_step(
    x: Tensor,
    state: CodingState,
    p: RealCodingParameters,
    spikes: str = "signed",
    members: int = 1,
) -> tuple[Tensor, CodingState]:
    """Real-valued coding: sends the increments of v, v itself, v - x ("ternary"), or
    (1 + v - x) / 2 ("binary").

    "binary" to neurons of m members (2^m - 1 + 2^(m-1) (v - x)) / 2, which they decode to the same
    value.
    """
    v, after = real_step(x, state, p)
    if spikes == "signed":
        return v - state.v, after
    if spikes == "decoded":
        return v, after
    if spikes == "ternary":
        return state.v - x, after
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
    """The decoded outputs of the last layer after steps t + 1, ... [T, ...], and the last of them.

    "binary" needs the senders' ``schedule`` and ``members``, "ternary" the schedule.
    """
    dtype = current.dtype
    if spikes == "decoded":
        return current.clone(), current[-1].to(y.dtype)
    if spikes == "binary":
        assert schedule is not None
        current = increments(current.to(y.dtype), t, schedule, offset, members)
    if spikes == "ternary":
        assert schedule is not None
        current = of_ternary(current.to(y.dtype), t, schedule)
    y_seq = running_sum(current, y)
    return y_seq.to(dtype), y_seq[-1].clone()


def running_mean(x_seq: Tensor, total: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """The mean of all inputs up to each step t + 1, ... [T, ...], and their sum in the end."""
    sums = running_sum(x_seq, total)
    steps = torch.arange(t + 1, t + x_seq.shape[0] + 1, device=sums.device, dtype=sums.dtype)
    y_seq = sums / steps.view(-1, *[1] * (sums.dim() - 1))
    return y_seq.to(x_seq.dtype), sums[-1].clone()
