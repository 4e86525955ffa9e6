"""Plots; each returns the axes it drew on. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BackendUnavailable
from ..running import Evaluation


def plot_accuracy(results: Mapping[str, Evaluation], axes: Any = None) -> Any:
    """Accuracy against T, one line for each result, the source network's accuracy dashed.

    ``results`` maps a label to what ``evaluate`` returned; several evaluations of one network at
    different T are merged by the caller. Raises BackendUnavailable without matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "plots need the package 'matplotlib': pip install 'spikingjelly-signgd[plot]'"
        ) from error
    if axes is None:
        _, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for label, result in results.items():
        accuracy = [100 * (a if a is not None else float("nan")) for a in result.accuracy]
        (line,) = axes.plot(result.time_steps, accuracy, marker="o", markersize=4, label=label)
        if result.reference_accuracy is not None:
            source = 100 * result.reference_accuracy
            axes.axhline(source, color=line.get_color(), linestyle="--", linewidth=0.8, alpha=0.6)
    axes.set_xscale("log", base=2)
    ticks = sorted({t for result in results.values() for t in result.time_steps})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlabel("time steps T")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    return axes
