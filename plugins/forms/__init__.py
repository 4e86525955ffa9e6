"""Networks by hand: checked, and brought from one form into another (``neurons/protocol.py``).

The nodes of a network pass either decoded values or spikes. ``to_spikes`` and ``to_decoded``
convert one into the other; ``check`` names modules that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...converters import CheckReport
from ...converters import check as check_model
from ...converters.conversion import _forms
from ...converters.lowering import Forms
from ...converters.rules import Entry, Operation
from ...errors import InputError
from ...names import named_arguments
from .decoded import to_decoded
from .examining import HandReport, examine
from .linear import Shift
from .parts import simulator_of
from .spikes import to_spikes

__all__ = ["HandReport", "Shift", "check", "to_decoded", "to_spikes"]


@named_arguments
def check(
    model: nn.Module,
    sample: Any,
    *,
    neurons: Mapping[Operation, Entry] | None = None,
    forms: Forms | None = None,
    functions: Forms | None = None,
) -> CheckReport:
    """What each operation of a model becomes; the faults of a network built by hand.

    For a source model this is ``converters.check(model, sample, ...)``. For a network with neurons
    of this package it is a ``HandReport``, whose blockers are: a bias that every step of a spiking
    form would add, an initial input that does not fit, a missing ``Encode`` or ``Readout``, forms
    or schedules that do not fit each other, norms in training mode. ``sample`` is then an input of
    the network, [N, *], or [T, N, *] over time. The model is not changed.

    Raises InputError for a network by hand that cannot be followed, and for options of a conversion
    with one.
    """
    if simulator_of(model) is None:
        return check_model(model, sample, neurons=neurons, forms=_forms(forms, functions))
    if neurons is not None or forms is not None or functions is not None:
        raise InputError(
            f"neurons and forms are options of a conversion, but {type(model).__name__} is a "
            "network by hand, which is not converted. Leave them out."
        )
    return examine(model, sample)
