"""Accuracy that is kept against additions, ours beside what others published: README's picture.

    python benchmarks/additions.py            measures the cells that are absent, in minutes
    python benchmarks/additions.py --print    the tables of docs/method.md
    python benchmarks/additions.py --write    puts them there, docs/additions.svg and .png beside it

Ours are the example networks, converted and not tuned, on the 10,000 test images of Fashion-MNIST
and the 450 of the digits. EfficientNet-Lite0 has no labelled images here, so of it there is the
agreement of benchmarks/results/real/efficientnet_lite.json, which bounds what accuracy it loses.
Others' figures are those of their papers, on their networks: results/additions/published.json.
Their additions are the energy ratio that a paper prints, times 4.6 / 0.9, the price of a
multiply-accumulate over that of an addition, by which they were computed (H-MT: equation 31).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402
from data import DATA, Data  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "additions"
LITE = Path(__file__).parent / "results" / "real" / "efficientnet_lite.json"
DOCS = Path(__file__).parent.parent / "docs"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
CALIBRATION, COUNTED, BATCH = 1280, 256, 250
PLANS: dict[str, dict[str, dict[str, Any]]] = {
    "fashion": {f"{m}x1": {"members": m, "time_steps": 1} for m in (4, 5, 6, 8)},
    "digits": {
        "8x1": {"members": 8, "time_steps": 1},
        "8x1 dense": {"members": 8, "time_steps": 1, "dead_zone": 0},
        "1x32 dense": {"members": 1, "time_steps": 32, "dead_zone": 0},
    },
}
HEADS = "8x1, the default", "8x1, a sign at every step", "1x32, a sign at every step"
MAC_OVER_ADDITION = 4.6 / 0.9  # pJ, 45 nm, fp32 (Horowitz 2014)

data = cache(lambda name: DATA[name]())


def measured(name: str, on: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, agreement and error on the test images, spikes and additions on 256 of them."""
    parts: Data = data(on)
    model, x = load_network(name, on), parts.train.images[:CALIBRATION]
    network = sg.convert(model, x, tune=False, max_batches=None, **plan)
    batches = list(zip(*(part.split(BATCH) for part in parts.test), strict=True))
    found = sg.evaluate(sg.build(network), batches, network.time_steps, reference=model)
    counts = count_operations(sg.build(network), parts.test.images[:COUNTED])
    return {
        "images": found.samples,
        "source": found.reference_accuracy,
        "accuracy": found.accuracy[0],
        "agreement": found.agreement[0],
        "error": found.error[0],
        "spikes": counts.spikes / counts.neurons,
        "additions": counts.additions_per_mac,
    }


def run() -> None:
    for on, plans in PLANS.items():
        path = RESULTS / f"{on}.json"
        for name in NETWORKS:
            for plan, options in plans.items():
                if f"{name} {plan}" not in real.cells(path):
                    real.keep(path, f"{name} {plan}", measured(name, on, options))
                    print(on, name, plan, real.cells(path)[f"{name} {plan}"], flush=True)


# -- what is shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """``change`` is of the accuracy, in points; of a bound the least that it can be."""

    method: str
    network: str
    plan: str
    data: str
    additions: float
    change: float

    @property
    def name(self) -> str:
        return f"{self.network}, {self.plan}"


def ours() -> list[Point]:
    found = []
    for cell, v in real.cells(RESULTS / "fashion.json").items():
        network, plan = cell.split()
        change = 100 * (v["accuracy"] - v["source"])
        found.append(Point("ours", network, plan, "Fashion-MNIST", v["additions"], change))
    return found


def bounds() -> list[Point]:
    """Of EfficientNet-Lite0, tuned: were all disagreements errors, it would lose so much."""
    cells = json.loads(LITE.read_text())
    return [
        Point("ours, bound", "EfficientNet-Lite0", f"{plan} tuned", "200 crops", v["additions"],
              100 * (v["agreement"] - 1))
        for plan in ("8x1", "6x2")
        for v in [cells[f"{plan} tuned"]]
    ]  # fmt: skip


def published() -> list[Point]:
    found = json.loads((RESULTS / "published.json").read_text())
    return [
        Point(method, row["network"], f"T = {row['T']}", paper["data"],
              row["energy_ratio"] * MAC_OVER_ADDITION, row["accuracy"] - row["source"])
        for method, paper in found.items()
        for row in paper["rows"]
    ]  # fmt: skip


def table() -> Iterator[str]:
    """A row for each network: additions per MAC, and the accuracy in points from the source's."""
    yield "| method | network | data | m x T or T: additions, accuracy |"
    yield "|---|---|---|---|"
    rows: dict[tuple[str, str, str], list[str]] = {}
    for p in (*ours(), *bounds(), *published()):
        least = "≥ " if p.method == "ours, bound" else ""
        each = rows.setdefault((p.method, p.network, p.data), [])
        each.append(f"{p.plan}: {p.additions:.2f}, {least}{p.change:+.2f}")
    for row, each in rows.items():
        yield f"| {' | '.join(row)} | {'; '.join(each)} |"


def digits_table() -> Iterator[str]:
    """Error of the outputs, spikes of a neuron, additions per MAC."""
    yield f"| digits | {' | '.join(HEADS)} |"
    yield "|---|---|---|---|"
    cells = real.cells(RESULTS / "digits.json")
    for name in NETWORKS:
        each = (cells[f"{name} {plan}"] for plan in PLANS["digits"])
        shown = (f"{v['error']:.4f}, {v['spikes']:.2f}, {v['additions']:.2f}" for v in each)
        yield f"| {name} | {' | '.join(shown)} |"


# -- the picture ----------------------------------------------------------------------------------

OURS, BOUND, OTHERS = "#1f5fa8", "#1b8173", "#c24a2f"
# where the names of others' points stand: three of them lie close together, among our lines
NAMES = {
    ("VGG-16", "T = 2"): (1.02, 0.29, "center"),
    ("ResNet-18", "T = 2"): (1.44, 0.29, "center"),
    ("ResNet-34", "T = 2"): (1.88, 0.29, "center"),
}


def draw(folder: Path) -> list[Point]:
    """additions.svg and additions.png, readable at a width of 700 pixels; what is in them."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8)
    draw_ours(axes)
    draw_bounds(axes)
    draw_published(axes)
    axes.set(xlim=(0.35, 2.65), ylim=(-2.2, 0.4))
    axes.set_xlabel("additions for each multiply-accumulate of the source network")
    axes.set_ylabel("accuracy, points from the source's")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "additions"}):  # the same file each time
        figure.savefig(folder / "additions.svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(folder / "additions.png", dpi=200, facecolor="white")
    return [*ours(), *bounds(), *published()]


def draw_ours(axes: Any) -> None:
    """A line for each network, from few members to many, named at its beginning."""
    for name in NETWORKS:
        points = [p for p in ours() if p.network == name]
        x, y = [p.additions for p in points], [p.change for p in points]
        axes.plot(x, y, "o-", color=OURS, markersize=4, linewidth=1)
        axes.annotate(name, (x[0], y[0]), (4, -4), textcoords="offset points",
                      va="top", color=OURS)  # fmt: skip
    axes.text(0.37, -1.35, "ours: six small networks,\nFashion-MNIST, 4, 5, 6 and 8\n"
              "signs in one step, not tuned", color=OURS, weight="bold", va="top")  # fmt: skip


def draw_bounds(axes: Any) -> None:
    """From the bound up: the accuracy is somewhere on the line, or above it."""
    for p in bounds():
        axes.plot([p.additions] * 2, [p.change, 0], color=BOUND, linewidth=1, linestyle=":")
        axes.plot(p.additions, p.change, "^", color=BOUND, markersize=7)
        axes.annotate("" if p.plan.startswith("8x1") else "Lite0", (p.additions, p.change), (7, 0),
                      textcoords="offset points", va="center", color=BOUND)  # fmt: skip
    first, _ = bounds()
    axes.annotate(
        "ours: EfficientNet-Lite0, weights of ImageNet,\ntuned: loses at most this (200 crops)",
        (first.additions, first.change), (9, 0), textcoords="offset points",
        va="center", color=BOUND, weight="bold",
    )  # fmt: skip


def draw_published(axes: Any) -> None:
    for p in published():
        axes.plot(p.additions, p.change, "s", color=OTHERS, markersize=6, zorder=3)
        if (p.network, p.plan) in NAMES:
            x, y, side = NAMES[p.network, p.plan]
            axes.annotate(p.name, (p.additions, p.change), (x, y), ha=side, color=OTHERS,
                          arrowprops={"arrowstyle": "-", "color": OTHERS, "lw": 0.7})  # fmt: skip
        else:
            axes.annotate(p.name, (p.additions, p.change), (0, -6), ha="center", va="top",
                          textcoords="offset points", color=OTHERS)  # fmt: skip
    axes.text(2.64, -1.35, "published, ImageNet:\nH-MT; EVA: ECMT", color=OTHERS,
              weight="bold", ha="right", va="top")  # fmt: skip


def page(text: str) -> str:
    """docs/method.md with the tables of what is measured."""
    for name, lines in (("published", table()), ("digits", digits_table())):
        begin, end = f"<!-- python benchmarks/additions.py: {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        shown = "\n".join(lines)
        text = f"{before}{begin}\n\n{shown}\n\n{end}{after}"
    return text


def write() -> None:
    path = DOCS / "method.md"
    path.write_text(page(path.read_text()))
    draw(DOCS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="tables and picture into docs/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.print:
        print("\n".join((*table(), "", *digits_table())))
    elif given.write:
        write()
    else:
        run()


if __name__ == "__main__":
    main()
