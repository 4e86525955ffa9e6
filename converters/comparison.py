"""The effect of ``convert(..., forms=)`` on the number of neurons and on the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.inputs import call
from ..core.modes import eval_mode
from ..core.network import leaves
from ..core.structures import plain
from .calibration import Calibration, batches_of
from .conversion import convert
from .lowering import FORMS
from .settings import check_time_steps
from .simulation import Simulation


@dataclass(frozen=True)
class FunctionsRow:
    """``error``: of the outputs after T steps, relative to the source network's, for each T."""

    functions: str
    layers: int
    neurons: int  # for one input
    error: Mapping[int, float]


@dataclass(frozen=True)
class FunctionsReport:
    """What ``compare_functions`` measured: ``report["whole"]`` is a row; ``print`` shows them."""

    rows: tuple[FunctionsRow, ...]

    def __getitem__(self, functions: str) -> FunctionsRow:
        return {row.functions: row for row in self.rows}[functions]

    def __str__(self) -> str:
        steps = list(self.rows[0].error)
        lines = ["functions  layers  neurons" + "".join(f"  {f'T={t}':>8}" for t in steps)]
        for row in self.rows:
            errors = "".join(f"  {row.error[t]:8.4f}" for t in steps)
            lines.append(f"{row.functions:<9}  {row.layers:6d}  {row.neurons:7d}{errors}")
        return "\n".join(lines)


@torch.no_grad()
def compare_functions(
    model: nn.Module,
    calibration: Calibration,
    time_steps: int = 32,
    *,
    samples: int = 32,
    **options: Any,
) -> FunctionsReport:
    """Neurons and output error with ``forms="whole"`` and with "local".

    Each is converted for ``time_steps`` with the other ``options`` of ``convert``, and run by the
    definitions on the first ``samples`` of the calibration data, of much data of those that
    ``convert`` keeps. Raises what ``convert`` raises.
    """
    check_time_steps(time_steps)
    batches = batches_of(calibration, options.get("max_batches", 32))
    x = torch.cat(batches)[:samples]
    with eval_mode(model):
        expected = leaves(plain(call(model, x.clone())))
    steps = [t for t in (1, 2, 4, 8, 16, 32, 64, 128) if t < time_steps] + [time_steps]
    rows = []
    for form in FORMS:
        plan = {"time_steps": time_steps, "tune": False, **options, "max_batches": None}
        network = convert(model, batches, forms=form, **plan)
        outputs = leaves(Simulation(network).outputs(x, time_steps))
        error = {t: _relative([y[t - 1] for y in outputs], expected) for t in steps}
        counts = network.count()
        rows.append(FunctionsRow(form, len(counts), sum(counts.values()), error))
    return FunctionsReport(tuple(rows))


def _relative(outputs: list[Tensor], expected: list[Tensor]) -> float:
    pairs = list(zip(outputs, expected, strict=True))
    wrong = sum(float((y - z).double().square().sum()) for y, z in pairs)
    return float((wrong / sum(float(z.double().square().sum()) for _, z in pairs)) ** 0.5)
