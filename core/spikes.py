"""What the neurons of a network sent: one stream, which whoever counts spikes listens to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..neurons.base import Node
from ..neurons.spikes import Events


class Sent(NamedTuple):
    """A block of T steps of one node: ``value`` [T, *], what it passes on (v decoded so far, the
    weighted spikes or the outputs of each step), and its ``events``, None where it sends none."""

    node: Node
    value: Tensor
    events: Events | None


@contextmanager
def listening(snn: Any, listener: Callable[[Sent], None]) -> Iterator[None]:
    """``listener`` is told what each neuron, encoder and average of a ``NetworkModule`` sent."""
    before, snn.listener = snn.listener, listener
    try:
        yield
    finally:
        snn.listener = before
