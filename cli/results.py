"""The results file of ``evaluate``, JSON or CSV, a row for each T; timm's ``validate.py`` has such.

Fractions are from 0 to 1. What was not measured is ``null``, in CSV an empty field.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..analysis.cost import count_operations
from ..core.evaluating import Evaluation
from ..core.module import NetworkModule
from ..core.network import SpikingNetwork
from ..errors import InputError
from ..exporters.files import write_whole
from .data import Data

COLUMNS = (
    "network",  # the file
    "source",  # the class of the model that was converted, or what --reference names
    "T",
    "members",  # m: signs or neurons of a group; "1 to 8" where layers differ, as below
    "dead_zone",  # of a step
    "agreement",
    "top1",
    "top5",
    "source_top1",
    "output_error",  # relative
    "spikes",  # of a neuron, in T steps
    "additions_per_mac",  # of the source
    "counted",  # the samples on which these two were counted
    "images",
    "skipped",  # files that could not be read
    "seconds",  # of this command, without loading the network and without what is counted
    "images_per_second",  # empty where --resume left some of them out
    "data",
    "simulator",
    "processes",
    "threads",  # of each
    "version",
    "torch",
    "simulator_version",
    "command",
)
SUFFIXES = (".json", ".csv")
Row = Mapping[str, Any]


def check_results_file(path: Path) -> None:
    """InputError for what is not to be replaced: anything but a results file, or an empty one."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--results-file '{path}': it ends in {' or '.join(SUFFIXES)}.")
    if path.exists() and not _is_ours(path):
        raise InputError(
            f"--results-file '{path}' exists and is not a results file, so it is not replaced; "
            "choose another name, or remove it."
        )


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return False
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            names = next(csv.reader(io.StringIO(text)), [])
            return not names or set(COLUMNS) <= set(names)
        there = json.loads(text) if text.strip() else []
    except (OSError, ValueError, csv.Error):
        return False
    return isinstance(there, list) and all(
        isinstance(row, dict) and set(COLUMNS) <= set(row) for row in there
    )


def write_results(path: Path, written: Sequence[Row]) -> None:
    """The whole file or none; raises FormatError where it cannot be written."""
    write_whole(path, FORMATS[path.suffix.lower()](written).encode())


def _json(written: Sequence[Row]) -> str:
    return json.dumps(list(written), indent=2, allow_nan=False) + "\n"


def _csv(written: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(written[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(written)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {".json": _json, ".csv": _csv}


def rows(table: Evaluation, of_all: Row, sent: Mapping[int, Row]) -> list[dict[str, Any]]:
    """A row for each T of an ``Evaluation``; ``of_all`` is the same in each, ``sent`` is by T.

    What metrics say of other tasks' outputs stands behind, as ``OUTPUT METRIC``.
    """
    found = []
    for i, t in enumerate(table.time_steps):
        measured = {
            "T": t,
            "agreement": table.agreement[i],
            "top1": table.accuracy[i],
            "top5": table.top5[i],
            "source_top1": table.reference_accuracy,
            "output_error": table.error[i],
            "images": table.samples,
            "skipped": len(table.skipped),
        }
        row = {**dict.fromkeys(COLUMNS), **of_all, **measured, **sent.get(t, {})}
        for output, metrics in table.outputs.items():
            row |= {f"{output} {name}": values[i] for name, values in metrics.items()}
        found.append({name: _finite(value) for name, value in row.items()})
    return found


def _finite(value: Any) -> Any:
    """None of infinity and NaN, which JSON has not."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- what is not in the table ---------------------------------------------------------------------


def said(
    options: argparse.Namespace, network: SpikingNetwork, seconds: float, images: int | None
) -> dict[str, Any]:
    """What every row says; ``images`` are those evaluated in so many seconds, None if not all."""
    zones = [torch.as_tensor(each) for each in _each(network, "dead_zone")]
    return {
        "network": options.network,
        "source": options.reference or network.provenance.get("model"),
        "members": one_or_range(_each(network, "most_spikes")),
        "dead_zone": one_or_range([float(end) for z in zones for end in (z.min(), z.max())]),
        "seconds": seconds,
        "images_per_second": None if images is None else images / seconds,
        "data": options.data,
        "simulator": options.simulator,
        "processes": options.world.size,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch": torch.__version__,
        "simulator_version": _version(options.simulator),
        "command": shlex.join(["spikingjelly-signgd", *options.arguments]),
    }


def _each(network: SpikingNetwork, name: str) -> list[Any]:
    """An attribute of all neurons that send spikes and have it."""
    senders = [node for node in network.neurons if node.code is not None]
    return [getattr(node, name) for node in senders if hasattr(node, name)]


def one_or_range(values: Sequence[float]) -> float | str | None:
    """``8``, or ``"1 to 8"`` where they differ; None of none."""
    low, high = min(values, default=None), max(values, default=None)
    return low if low == high else f"{low:g} to {high:g}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a simulator of another name than its package
        return None


def counted(
    snn: NetworkModule, data: Data, steps: Sequence[int], samples: int
) -> dict[int, dict[str, Any]]:
    """By T, what the network sends for so many samples that are spread over the data.

    Nothing where none are to be counted, and of clips, whose frames ``energy`` counts.
    """
    if not samples or data.clip or not snn.network.neurons:
        return {}
    x = data.some(samples)
    return {
        t: {
            "spikes": each.spikes / each.neurons if each.neurons else None,
            "additions_per_mac": each.additions_per_mac,
            "counted": len(x),
        }
        for t, each in count_operations(snn, x, steps).items()
    }
