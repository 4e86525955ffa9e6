"""Analysis of a network: errors by layer, operation counts, energy, plots, and one report."""

from ..core.metrics import METRICS, Metric
from .arriving import event_additions
from .cost import LayerOperations, Operations, count_operations
from .doctor import Diagnosis, Finding, LayerErrors, diagnose
from .energy import TABLES, EnergyEstimate, EnergyTable, estimate_energy
from .over_time import CostsOverTime
from .plots import (
    Plot,
    animate_spikes,
    plot_accuracy,
    plot_decoded,
    plot_energy,
    plot_errors,
    plot_frontier,
    plot_over_time,
    plot_raster,
    plot_rates,
    plot_spikes,
    plot_trace,
)
from .recording import Recording, record
from .report import write_report
from .watching import FrameOperations, Watch

__all__ = [
    "METRICS",
    "TABLES",
    "CostsOverTime",
    "Diagnosis",
    "EnergyEstimate",
    "EnergyTable",
    "Finding",
    "FrameOperations",
    "LayerErrors",
    "LayerOperations",
    "Metric",
    "Operations",
    "Plot",
    "Recording",
    "Watch",
    "animate_spikes",
    "count_operations",
    "diagnose",
    "estimate_energy",
    "event_additions",
    "plot_accuracy",
    "plot_decoded",
    "plot_energy",
    "plot_errors",
    "plot_frontier",
    "plot_over_time",
    "plot_raster",
    "plot_rates",
    "plot_spikes",
    "plot_trace",
    "record",
    "write_report",
]
