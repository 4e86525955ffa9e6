"""A linear operation, a nonlinearity, a kind of neuron and an energy table: an import adds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikingjelly_signgd.analysis.energy import TABLES, EnergyTable
from spikingjelly_signgd.converters.lowering.tables import HANDLERS
from spikingjelly_signgd.converters.rules import NEURONS
from spikingjelly_signgd.core.checks import integer, positive
from spikingjelly_signgd.core.network import NODES, Neuron
from spikingjelly_signgd.core.operations.rows import LINEAR, Operation
from spikingjelly_signgd.exporters.hdf5.kinds import FUNCTION, KINDS, Kind
from spikingjelly_signgd.exporters.hdf5.runner_functions import FUNCTIONS
from spikingjelly_signgd.neurons import spikes
from spikingjelly_signgd.neurons.base import Code
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES, Nonlinearity

# -- a linear operation -----------------------------------------------------------------------

LINEAR["outside_cumsum"] = Operation(
    {"dim": integer},
    run=lambda x, a, w, batch, time: x[0].cumsum(a["dim"]),
    numpy=lambda x, a, w, batch: np.cumsum(x[0], a["dim"]),
)
HANDLERS[torch.ops.aten.cumsum] = lambda low, x, dim: low.linear(
    "outside_cumsum", [x], low.shape(), None, dim=dim
)

# -- a nonlinearity ---------------------------------------------------------------------------

NONLINEARITIES["outside_arctan"] = Nonlinearity("outside_arctan", torch.arctan)
FUNCTIONS["outside_arctan"] = np.arctan
NEURONS[torch.ops.aten.atan.default] = "outside_arctan"

# -- a kind of neuron -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class LeakyNeuron(Neuron):
    """v <- leak v + x; where v reaches the threshold, that is sent and taken off."""

    kind = "outside_leaky"
    spike_view = False
    decoded = False
    leak: float
    threshold: float

    def code(self) -> Code:
        return Code("binary", 1, 1)

    @property
    def unit(self) -> float:
        return self.threshold

    def start(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return torch.zeros_like(inputs[0])

    def sequence(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        sent = []
        for x in inputs[0]:
            h = self.leak * state + x
            fires = h >= self.threshold
            state = h - fires * self.threshold
            sent.append(fires)
        fires = torch.stack(sent)
        spikes.tell(fires, fires)
        return (fires * self.threshold).to(inputs[0].dtype), state


def leaky_by_numpy(node: Any, inputs: list[Any], state: Any, dtype: Any) -> tuple[Any, Any, Any]:
    (x,) = inputs
    h = node["leak"] * (np.zeros_like(x) if state is None else state) + x
    fires = h >= node["threshold"]
    return (fires * node["threshold"]).astype(dtype), fires, h - fires * node["threshold"]


NODES["outside_leaky"] = LeakyNeuron
KINDS["outside_leaky"] = Kind(
    {**FUNCTION, "leak": positive, "threshold": positive},
    inputs=1,
    neuron=True,
    numpy=leaky_by_numpy,
)

# -- an energy table --------------------------------------------------------------------------

TABLES["outside"] = EnergyTable(2.0, 0.5, "compute only", "made up for a test")
