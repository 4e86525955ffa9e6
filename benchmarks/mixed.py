"""The table of docs/method.md on methods by layer: signGD neurons alone against the mix of both.

    python benchmarks/mixed.py [--data fashion] [--networks vgg ...] [--budgets 2 4 8 12]
                               [--samples N] [--iterations N]
    python benchmarks/mixed.py --write       puts the table into docs/method.md

Both are ``sg.search`` with the same spikes; what is there in benchmarks/results/mixed.json is not
measured again (``--again`` does). Some minutes for each figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from accuracy import batches_of

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import DATA  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "mixed.json"
PAGE = Path(__file__).parent.parent / "docs" / "method.md"
BEGIN, END = "<!-- python benchmarks/mixed.py -->\n", "<!-- end of mixed -->\n"
CALIBRATION = 1280  # training images
COUNTED = 256  # test images on which spikes are counted
METHODS = {"signGD neurons alone": ("signgd",), "methods by layer": ("signgd", "group")}


def key(data: str, network: str, budget: int, methods: tuple[str, ...]) -> str:
    return f"{data} {network} {budget} {'+'.join(methods)}"


def row(
    data_name: str, name: str, budget: int, methods: tuple[str, ...], samples: int, **options: Any
) -> dict[str, Any]:
    """One search: agreement, relative output error, and spikes of a neuron, on test images."""
    data, model = DATA[data_name](), load_network(name, data_name)
    begun = time.perf_counter()
    x = data.train.images[:CALIBRATION]
    network = sg.search(model, x, spikes=budget, methods=methods, dead_zone=0.0, **options)
    seconds = round(time.perf_counter() - begun, 1)
    snn, steps = sg.build(network), network.time_steps
    found = sg.evaluate(snn, batches_of(data, samples), steps, reference=model)
    (figures,) = found.to_dict()["rows"]
    cost = count_operations(snn, data.test.images[:COUNTED], steps)
    neurons = sum(network.count().values())
    plan = {n.name: [n.kind, n.members] for n in network.neurons if n.kind != "growth"}  # type: ignore[attr-defined]
    return {
        "samples": found.samples,
        "T": steps,
        "agreement": figures["agreement"],
        "error": figures["error"],
        "spikes": cost.spikes / neurons,
        "events": cost.events / neurons,
        "synaptic": cost.synaptic,
        "plan": plan,
        "seconds": seconds,
    }


def table(rows: dict[str, Any]) -> list[str]:
    """A line for each network and kind of search, a column for each budget."""
    places = [entry.split() for entry in rows]
    budgets = sorted({int(budget) for _, _, budget, _ in places})
    lines = [
        "| spikes of a neuron, at most | " + " | ".join(map(str, budgets)) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for data, name in dict.fromkeys((data, name) for data, name, _, _ in places):
        for title, methods in METHODS.items():
            cells = [rows.get(key(data, name, budget, methods)) for budget in budgets]
            lines.append(f"| {name}, {title} | " + " | ".join(map(cell, cells)) + " |")
    samples = {found["samples"] for found in rows.values()}
    lines += ["", f"On {max(samples):,} test images, spikes and additions on {COUNTED} of them."]
    return lines if len(samples) == 1 else [*lines, f"Some on {min(samples)}."]


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return (
        f"{100 * found['agreement']:.2f} ({found['error']:.4f}); T = {found['T']}, "
        f"{found['spikes']:.2f} spikes, {found['synaptic'] / 1e6:.1f} M additions"
    )


def store(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(DATA), default="fashion")
    parser.add_argument("--networks", nargs="+", default=["vgg", "resnet"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[2, 4, 8, 12])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.write:
        head, rest = PAGE.read_text().split(BEGIN)
        store(
            PAGE, head + BEGIN + "\n" + "\n".join(table(rows)) + "\n\n" + END + rest.split(END)[1]
        )
        return
    for name in arguments.networks:
        for budget in arguments.budgets:
            for methods in METHODS.values():
                place = key(arguments.data, name, budget, methods)
                if place not in rows or arguments.again:
                    found = row(
                        arguments.data,
                        name,
                        budget,
                        methods,
                        arguments.samples,
                        iterations=arguments.iterations,
                    )
                    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
                    rows[place] = found
                    store(RESULTS, json.dumps(rows, indent=1) + "\n")
                    print(place, {k: v for k, v in found.items() if k != "plan"}, flush=True)


if __name__ == "__main__":
    main()
