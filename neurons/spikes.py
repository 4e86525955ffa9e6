"""The spikes that neurons send, reported by the code that runs the neurons.

A spike carries a sign, and those of one neuron and step are one event: of m signs, or of n members
that fire. The event is a whole number, ``number``, made of so many ``spikes``:

=====================  ==========================================  ==============================
neuron                 ``number``                                  ``spikes``
=====================  ==========================================  ==============================
signGD, one sign       sigma in {-1, +1}                           1
signGD, m signs        d = sum of 2 ** (m - k) sigma_k, odd        m
signGD, a dead zone    d, any whole number, 0 in silence           the digits that are not 0
group                  n, the members that fired; negative where   the size of n
                       for negative spikes
rate-coded baseline    0 or 1                                      0 or 1
Poisson coding         -1, 0 or 1                                  0 or 1
=====================  ==========================================  ==============================

The functions that run neurons (``signgd_multi_step``, ``group_multi_step`` and the steps of the
others) tell the innermost ``hear``, from the codes of the kernels; outside of one nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import NamedTuple

import torch
from torch import Tensor


class Events(NamedTuple):
    """What was sent in T steps, [T, *]: the ``number`` of each event, and its ``spikes``.

    ``fires`` are those of ``signgd_step``: which signs an event is of, which d and their number do
    not tell where members may be silent. None of other neurons.
    """

    number: Tensor
    spikes: Tensor
    fires: Tensor | None = None


Told = list[Callable[[], Events]]  # made when somebody looks


class _Hearers(local):
    def __init__(self) -> None:
        self.stack: list[Told] = []
        self.prices: list[tuple[Tensor, list[Tensor]]] = []


_hearers = _Hearers()


@contextmanager
def hear() -> Iterator[Told]:
    """``with hear() as told``: what neurons run in this block and thread tell, in order."""
    told: Told = []
    _hearers.stack.append(told)
    try:
        yield told
    finally:
        _hearers.stack.pop()


def wanted() -> bool:
    """Whether a listener is active."""
    return not torch.compiler.is_compiling() and bool(_hearers.stack)


def tell(events: Callable[[], Events]) -> None:
    """Sends events [T, *] to the active listener, if any; they are computed when they are read."""
    if wanted():
        _hearers.stack[-1].append(events)


@contextmanager
def pricing(fan_out: Tensor) -> Iterator[list[Tensor]]:
    """``with pricing(fan_out) as sent``: of the neurons run in this block all spikes, each times
    what it meets (broadcasting against v), with a gradient: a number for each call."""
    sent: list[Tensor] = []
    _hearers.prices.append((fan_out, sent))
    try:
        yield sent
    finally:
        _hearers.prices.pop()


def price() -> tuple[Tensor | None, list[Tensor]]:
    """What ``pricing`` was given, and where what was sent goes."""
    return _hearers.prices[-1] if _hearers.prices else (None, [])


def joined(told: Told) -> Events | None:
    """All that was told as one, None where nothing was."""
    if not told:
        return None
    if len(told) == 1:
        return told[0]()
    parts = [events() for events in told]
    fires = [each.fires for each in parts if each.fires is not None]
    return Events(
        torch.cat([each.number for each in parts]),
        torch.cat([each.spikes for each in parts]),
        torch.cat(fires) if len(fires) == len(parts) else None,
    )
