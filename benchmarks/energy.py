"""The tables of docs/energy.md: what the example networks would cost, by published tables.

    python benchmarks/energy.py [--data fashion digits] [--networks vgg ...]
    python benchmarks/energy.py --print      the tables, from the figures that are there
    python benchmarks/energy.py --write      puts them into docs/energy.md

Nothing is tuned: what signGD costs does not depend on learned values. Group neurons are counted on
test images, their thresholds come from calibration. Figures go to benchmarks/results/energy.json as
they are measured; what is there is not measured again (``--again`` does).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from accuracy import machine

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
COUNTED = 32  # test images
FIRST, MOVED = "45 nm fp32", "45 nm fp32 + memory"  # the tables whose energies are shown


class Way(NamedTuple):
    """One way of converting a network, and the T at which its energy is shown."""

    method: str
    members: int
    time_steps: tuple[int, ...]
    label: str

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"time_steps": self.time_steps[-1], "tune": False}
        if self.method == "signgd":
            return options | {"members": self.members}
        if self.method == "group":
            return options | {"method": "group", "members": self.members, "signed": True}
        return options | {"method": "group"}


WAYS = (
    Way("signgd", 1, (8, 16, 32), "signGD"),
    Way("signgd", 8, (1,), "signGD, groups of 8"),
    Way("group", 8, (2,), "group neurons"),
    Way("qcfs", 8, (1,), "group neurons, trained"),
)


def possible(data: str, name: str) -> list[Way]:
    """Group neurons are for ReLU, trained ones where there are weights."""
    return [
        way
        for way in WAYS
        if way.method == "signgd"
        or (name in RELU and way.method == "group")
        or (way.method == "qcfs" and weights_path(name, data, way.members).is_file())
    ]


def measure(data: str, name: str, way: Way) -> dict[str, Any]:
    """The figures of one network converted in one way, by T."""
    images = DATA[data]()
    model = load_network(name, data, qcfs=way.members if way.method == "qcfs" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # saturation, which costs nothing
        network = sg.convert(model, images.train.images[:CALIBRATION], **way.options)
    found = estimate_energy(sg.build(network), images.test.images[:COUNTED], way.time_steps)
    rows = {}
    for t, c in found.operations.items():
        counts = ("spikes", "events", "rate", "synaptic", "synaptic_events", "macs", "input_macs",
                  "neurons", "bits_moved", "source_macs", "source_multiplies")  # fmt: skip
        rows[str(t)] = {
            **{count: getattr(c, count) for count in counts},
            "bits": found.bits[t],
            **{
                what: {table: getattr(found, what)[table][t] for table in found.tables}
                for what in ("total", "whole", "quantised")
            },
        }
    return {
        "rows": rows,
        "source": dict(found.source),
        "break_even": dict(found.break_even),
        "break_even_whole": dict(found.break_even_whole),
        "limit": found.limit,
    }


# -- figures and tables --------------------------------------------------------------------------


def key(data: str, name: str, way: Way) -> str:
    return f"{data} {name} {way.method} m={way.members}"


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


def energy_table(data: str) -> list[str]:
    heads = ["network", "neurons", "m x T", "rate", "synaptic", "by event", "MACs left", "nJ",
             "of the source", "of b bits", "whole, of the source", "with memory",
             "bits moved"]  # fmt: skip
    lines = []
    for name in NETWORKS:
        for way in possible(data, name):
            found = figures().get(key(data, name, way))
            if found is None:
                continue
            for t, row in found["rows"].items():
                source, total = found["source"], row["total"]
                whole = "" if way.members == 1 else times(row["whole"][FIRST] / source[FIRST])
                lines.append([
                    name, way.label, f"{way.members} x {t}", f"{row['rate']:.2f}",
                    thousands(row["synaptic"]), thousands(row["synaptic_events"]),
                    thousands(row["macs"]), f"{total[FIRST] / 1e3:,.0f}",
                    times(total[FIRST] / source[FIRST]),
                    f"{times(total[FIRST] / row['quantised'][FIRST])} ({row['bits']})",
                    whole, times(total[MOVED] / source[MOVED]), thousands(row["bits_moved"]),
                ])  # fmt: skip
    return lines_of(heads, lines)


def break_even_table(data: str) -> list[str]:
    heads = ["network", "neurons", "m", "source MACs", *TABLES]
    lines = []
    for name in NETWORKS:
        for way in possible(data, name):
            found = figures().get(key(data, name, way))
            if found is None:
                continue
            row = next(iter(found["rows"].values()))
            macs = thousands(row["source_macs"] + row["source_multiplies"])
            cells = []
            for table in TABLES:
                each = shown(found["break_even"][table], found["limit"])
                whole = shown(found["break_even_whole"][table], found["limit"])
                cells.append(each if way.members == 1 else f"{each} ({whole})")
            lines.append([name, way.label, str(way.members), macs, *cells])
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["fashion", "digits"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
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
            for way in possible(data, name):
                if options.again or key(data, name, way) not in figures():
                    keep(key(data, name, way), measure(data, name, way))
                    print(key(data, name, way), file=sys.stderr, flush=True)
    for data in options.data:
        for part, make in PARTS.items():
            print(f"\n{part}, {data}\n")
            print("\n".join(make(data)))


if __name__ == "__main__":
    main()
