"""The tables of docs/energy.md: what the example networks would cost, by published tables.

    python benchmarks/energy.py [--data fashion digits] [--networks vgg ...]
        [--plans 1x16 8x1 ...] [--dead-zones 0 2/3 ...] [--tuned] [--images 1000]
    python benchmarks/energy.py --print      the tables, from the figures that are there
    python benchmarks/energy.py --write      puts them into docs/energy.md

Plans are m x T of signGD networks; with ``--plans``, ``--dead-zones`` or ``--tuned`` those alone
are measured, every plan with every dead zone, otherwise the plans of ``WAYS``. Spikes are counted
on test images. Figures go to benchmarks/results/energy.json as they are measured; what is there is
not measured again (``--again`` does).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from accuracy import machine
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import DATA as LOADERS  # noqa: E402
from networks import load_network, weights_path  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import TABLES, estimate_energy  # noqa: E402
from spikingjelly_signgd.analysis.energy import shown  # noqa: E402

DATA = {name: cache(load) for name, load in LOADERS.items()}
FIGURES = Path(__file__).parent / "results" / "energy.json"
PAGE = Path(__file__).parent.parent / "docs" / "energy.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
RELU = ("vgg", "resnet")
CALIBRATION = 256  # training images
COUNTED = 32  # test images whose spikes are counted
JUDGED = 1000  # test images whose predictions are compared with the source's
# the tables whose energies are shown
FIRST, MOVED, SHORT = "45 nm fp32", "45 nm fp32 + memory", "45 nm int8"
LABELS = {"signgd": "signGD", "group": "group neurons", "qcfs": "group neurons, trained"}


class Way(NamedTuple):
    """One way of converting a network: m members, T steps."""

    method: str
    members: int
    time_steps: int
    dead_zone: float = 0.0
    tuned: bool = False

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"time_steps": self.time_steps}
        if self.method == "signgd":
            chosen = {"members": self.members, "dead_zone": self.dead_zone}
            return options | chosen | {"tune": self.tuned}
        if self.method == "group":
            return options | {"method": "group", "members": self.members, "signed": True}
        return options | {"method": "group"}

    @property
    def label(self) -> str:
        zone = f", dead zone {self.dead_zone:.3g}" if self.dead_zone else ""
        return LABELS[self.method] + zone + ", tuned" * self.tuned


WAYS = (
    Way("signgd", 1, 16),
    Way("signgd", 8, 1),
    Way("signgd", 1, 16, 2 / 3),
    Way("signgd", 4, 2, 2 / 3),
    Way("signgd", 5, 1, 2 / 3),
    Way("signgd", 6, 1, 2 / 3),
    Way("signgd", 8, 1, 2 / 3),
    Way("group", 8, 2),
    Way("qcfs", 8, 1),
)


def possible(data: str, name: str, way: Way) -> bool:
    """Group neurons are for ReLU, trained ones where there are weights."""
    if way.method == "qcfs":
        return weights_path(name, data, way.members).is_file()
    return way.method == "signgd" or name in RELU


def measure(data: str, name: str, way: Way, judged: int = JUDGED) -> dict[str, Any]:
    """The figures of one network converted in one way."""
    images = DATA[data]()
    model = load_network(name, data, qcfs=way.members if way.method == "qcfs" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # saturation
        network = sg.convert(model, images.train.images[:CALIBRATION], **way.options)
    snn, t = sg.build(network), way.time_steps
    found = estimate_energy(snn, images.test.images[:COUNTED], t)
    c = found.operations[t]
    counts = ("spikes", "events", "rate", "synaptic", "synaptic_events", "macs", "input_macs",
              "neurons", "bits_moved", "source_macs", "source_multiplies", "additions_per_mac",
              "parts_per_mac")  # fmt: skip
    by_step = ("total", "whole", "quantised", "break_even", "break_even_int8")
    return {
        "way": way._asdict(),
        "agreement": agreement(snn, model, images.test.images[:judged]),
        "judged": judged,
        **{count: getattr(c, count) for count in counts},
        "bits": found.bits[t],
        "source": dict(found.source),
        "int8": dict(found.int8),
        **{k: {name: by[t] for name, by in getattr(found, k).items()} for k in by_step},
    }


def agreement(snn: Any, model: Any, x: Tensor) -> float | None:
    """The share of equal predictions; None where none are compared."""
    if not len(x):
        return None
    found = sg.evaluate(snn, x.split(100), snn.network.time_steps, reference=model)
    return found.agreement[-1]


# -- figures and tables --------------------------------------------------------------------------


def key(data: str, name: str, way: Way) -> str:
    return f"{data} {name} {way.members}x{way.time_steps} {way.label}"


def rows(data: str) -> Iterator[tuple[str, Way, dict[str, Any]]]:
    """What is there of a data set: the network, the way and the figures."""
    for name in NETWORKS:
        for where, found in figures().items():
            if where.startswith(f"{data} {name} "):
                yield name, Way(**found["way"]), found


def figures() -> dict[str, Any]:
    found = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {"results": {}}
    results: dict[str, Any] = found["results"]
    return results


def keep(name: str, row: dict[str, Any]) -> None:
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    partial = FIGURES.with_suffix(f".{os.getpid()}.partial")
    content = {"machine": machine(), "results": {**figures(), name: row}}
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, FIGURES)


def lines_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def thousands(value: float) -> str:
    return "0" if not value else f"{value / 1e3:,.1f}" if value < 1e5 else f"{value / 1e3:,.0f}"


def times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def energy_table(data: str) -> list[str]:
    heads = ["network", "neurons", "m x T", "agreement", "spikes", "additions per MAC",
             "MACs left", "nJ", "of the source", "of int8", "of b bits", "whole, of the source",
             "with memory, of the source", "of int8", "in int8, of int8"]  # fmt: skip
    lines = []
    for name, way, row in rows(data):
        source, int8, total = row["source"], row["int8"], row["total"]
        lines.append([
            name, way.label, f"{way.members} x {way.time_steps}", share(row["agreement"]),
            f"{row['spikes'] / row['neurons']:.2f}", times(row["additions_per_mac"]),
            thousands(row["macs"]), f"{total[FIRST] / 1e3:,.0f}",
            times(total[FIRST] / source[FIRST]), times(total[FIRST] / int8[FIRST]),
            f"{times(total[FIRST] / row['quantised'][FIRST])} ({row['bits']:.3g})",
            "" if way.members == 1 else times(row["whole"][FIRST] / source[FIRST]),
            times(total[MOVED] / source[MOVED]), times(total[MOVED] / int8[MOVED]),
            times(total[SHORT] / int8[SHORT]),
        ])  # fmt: skip
    return lines_of(heads, lines)


def break_even_table(data: str) -> list[str]:
    heads = ["network", "neurons", "m x T", "source MACs", "additions per MAC", *TABLES]
    lines = []
    for name, way, row in rows(data):
        macs = thousands(row["source_macs"] + row["source_multiplies"])
        cells = [
            f"{shown(row['break_even'][each])} ({shown(row['break_even_int8'][each])})"
            for each in TABLES
        ]
        lines.append([name, way.label, f"{way.members} x {way.time_steps}", macs,
                      times(row["additions_per_mac"]), *cells])  # fmt: skip
    return lines_of(heads, lines)


PARTS = {"energy": energy_table, "break-even": break_even_table}


def page(text: str) -> str:
    """The page with every table made anew."""
    for data in ("fashion", "digits"):
        for part, make in PARTS.items():
            begin = f"<!-- python benchmarks/energy.py {part} {data} -->\n"
            end = f"<!-- end of {part} {data} -->\n"
            if begin not in text:
                continue
            head, rest = text.split(begin)
            made = "\n".join(make(data))
            text = f"{head}{begin}\n{made}\n\n{end}{rest.split(end)[1]}"
    return text


def plan(text: str) -> tuple[int, int]:
    """``8x1``: m members, T steps."""
    members, steps = text.split("x")
    return int(members), int(steps)


def chosen(options: argparse.Namespace) -> tuple[Way, ...]:
    if not (options.plans or options.dead_zones or options.tuned):
        return WAYS
    plans = options.plans or [(way.members, way.time_steps) for way in WAYS if way.dead_zone]
    zones = [float(Fraction(zone)) for zone in options.dead_zones or ["2/3"]]
    return tuple(Way("signgd", m, t, z, options.tuned) for m, t in plans for z in zones)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["fashion", "digits"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--plans", nargs="+", type=plan, help="m x T of signGD networks: 8x1 1x16")
    parser.add_argument("--dead-zones", nargs="+", help="numbers or fractions: 0 2/3")
    parser.add_argument("--tuned", action="store_true", help="tune the networks")
    parser.add_argument("--images", type=int, default=JUDGED, help="whose predictions are compared")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    parser.add_argument("--write", action="store_true", help="write docs/energy.md")
    options = parser.parse_args(arguments)
    if options.write:
        partial = PAGE.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(page(PAGE.read_text()))
        os.replace(partial, PAGE)
        return
    for data in [] if options.print else options.data:
        for name in options.networks:
            for way in chosen(options):
                where = key(data, name, way)
                if possible(data, name, way) and (options.again or where not in figures()):
                    keep(where, measure(data, name, way, options.images))
                    print(where, file=sys.stderr, flush=True)
    for data in options.data:
        for part, make in PARTS.items():
            print(f"\n{part}, {data}\n")
            print("\n".join(make(data)))


if __name__ == "__main__":
    main()
