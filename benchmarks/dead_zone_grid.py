"""Agreement, error, spikes and additions of networks with dead zones: the grid of docs/method.md.

    python benchmarks/dead_zone_grid.py [--networks vgg ...] [--ways untuned ...] [--plans 8x1 ...]
                                        [--zones 0 0.667 ...] [--images 10000]
    python benchmarks/dead_zone_grid.py --print    the tables, of the cells that are there
    python benchmarks/dead_zone_grid.py --best     the cheapest cells that reach 99 and 99.9 %
    python benchmarks/dead_zone_grid.py --write    puts both, and the picture, into docs/

A cell is one network, converted with m x T, a dead zone and a way: "untuned"; "error", tuned for
the error of its outputs; "additions", or a number, tuned with that weight of additions.
1,280 training images calibrate and tune. Of each cell are measured the agreement of its predictions
with the source network's and the relative error of the outputs on Fashion-MNIST's test images, the
agreement on 5,000 validation images, by which --best chooses, and on 256 test images what is sent.

A cell goes to benchmarks/results/dead_zone/NETWORK.json when it is measured, and is not measured
again. So an interrupted run goes on where it was, and several, each with networks of its own, may
go on side by side.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402
from data import Data, fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "dead_zone"
PAGE = Path(__file__).parent.parent / "docs" / "method.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
ZONES = (0.0, 0.5, 2 / 3, 0.75)
PLANS = ((5, 1), (6, 1), (8, 1), (4, 2), (6, 2), (1, 16), (1, 32))  # m x T
WAYS = ("untuned", "error", "additions")
TITLES = {
    "untuned": "Not tuned",
    "error": "Tuned for the error",
    "additions": 'Tuned with `objective="additions"`',
}
CALIBRATION = 1280
COUNTED = 256
BATCH = 250
TARGETS = (0.99, 0.999)

data = cache(fashion_mnist)


@cache
def source(network: str) -> nn.Module:
    return load_network(network, "fashion")


@cache
@torch.no_grad()
def expected(network: str, split: str) -> Tensor:
    images = getattr(data(), split).images
    return torch.cat([source(network)(part) for part in images.split(BATCH)])


def converted(name: str, zone: float, members: int, steps: int, way: str) -> sg.SpikingNetwork:
    data_: Data = data()
    x = data_.train.images[:CALIBRATION]
    network = sg.convert(
        source(name), x, time_steps=steps, members=members, dead_zone=zone, tune=False,
        max_batches=None,
    )  # fmt: skip
    if way == "untuned":
        return network
    objective = way if way in ("error", "additions") else float(way)
    return sg.tune(network, x, objective=objective, max_batches=None)


@torch.no_grad()
def outputs(network: sg.SpikingNetwork, images: Tensor) -> Tensor:
    snn, steps = sg.build(network), network.time_steps
    return torch.cat([sg.run(snn, part, steps)[steps] for part in images.split(BATCH)])


def measured(
    name: str, zone: float, members: int, steps: int, way: str, images: int
) -> dict[str, Any]:
    begun = time.monotonic()
    network = converted(name, zone, members, steps, way)
    tuned = time.monotonic() - begun
    have, want = outputs(network, data().test.images[:images]), expected(name, "test")[:images]
    few = outputs(network, data().validation.images)
    same = (have.argmax(1) == want.argmax(1)).double().mean()
    chosen = (few.argmax(1) == expected(name, "validation").argmax(1)).double().mean()
    counts = count_operations(sg.build(network), data().test.images[:COUNTED], steps)
    return {
        "images": images,
        "agreement": float(same),
        "validation": float(chosen),
        "error": float((have - want).norm() / want.norm()),
        "spikes": counts.spikes / counts.neurons,
        "additions": counts.additions_per_mac,
        "parts": dict(counts.parts_per_mac),
        "seconds": tuned,
    }


def key(zone: float, members: int, steps: int, way: str) -> str:
    return f"{members}x{steps} {zone:.3f} {way}"


def cells(name: str) -> dict[str, Any]:
    return real.cells(RESULTS / f"{name}.json")


def keep(name: str, cell: str, values: Mapping[str, Any]) -> None:
    real.keep(RESULTS / f"{name}.json", cell, values)


def run(given: argparse.Namespace) -> None:
    for name in given.networks:
        for way in given.ways:
            for members, steps in given.plans:
                for zone in given.zones:
                    cell = key(zone, members, steps, way)
                    if cell in cells(name) or (way not in WAYS[:2] and not zone):
                        continue
                    values = measured(name, zone, members, steps, way, given.images)
                    keep(name, cell, values)
                    print(name, cell, row(values), flush=True)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def row(values: Mapping[str, Any]) -> str:
    low, high = wilson(values["agreement"], values["images"])
    return (
        f"{100 * values['agreement']:.2f} ({100 * low:.2f} to {100 * high:.2f}) | "
        f"{values['error']:.4f} | {values['spikes']:.2f} | {values['additions']:.2f}"
    )


def parts(values: Mapping[str, Any]) -> str:
    return " + ".join(f"{part:.2f}" for part in values["parts"].values())


def tables() -> Iterator[str]:
    """For each way a table: networks and plans down, dead zones across."""
    for way in WAYS:
        zones = [zone for zone in ZONES if way in WAYS[:2] or zone]
        names = [name for name in NETWORKS if any(c.endswith(f" {way}") for c in cells(name))]
        if not names:
            continue
        yield f"\n{TITLES[way]}: agreement in %, error, spikes of a neuron, additions per MAC.\n"
        yield "| network | m x T | " + " | ".join(f"theta = {zone:.3g}" for zone in zones) + " |"
        yield "|---" * (2 + len(zones)) + "|"
        for name in names:
            for members, steps in PLANS:
                each = [cells(name).get(key(zone, members, steps, way)) for zone in zones]
                if any(each):
                    shown = " | ".join(_short(values) if values else "–" for values in each)
                    yield f"| {name} | {members} x {steps} | {shown} |"


def _short(values: Mapping[str, Any]) -> str:
    few = "" if values["images"] == 10_000 else "†"
    return (
        f"{100 * values['agreement']:.2f}{few}, {values['error']:.4f}, {values['spikes']:.2f}, "
        f"{values['additions']:.2f}"
    )


def best() -> Iterator[str]:
    """The fewest additions among the cells that reach a target on the validation images."""
    heads = "network", "target", "cell", "agreement on test (95 %)", "error", "spikes", "additions"
    yield f"| {' | '.join(heads)} | of spikes + sums + products + input |"
    yield "|---|---|---|---|---:|---:|---:|---|"
    for target in TARGETS:
        for name in NETWORKS:
            reach = {c: v for c, v in cells(name).items() if v["validation"] >= target}
            if reach:
                cell = min(reach, key=lambda c: reach[c]["additions"])
                values = reach[cell]
                yield f"| {name} | {100 * target:g} % | {cell} | {row(values)} | {parts(values)} |"


def plot(path: Path) -> None:
    """Output error against additions per MAC, a panel for each network, a colour for each code."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file from the same numbers

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, name in zip(axes.flat, NETWORKS, strict=True):
        for label, (chosen, marker, color) in LINES.items():
            found = ((v["additions"], v["error"]) for c, v in cells(name).items() if chosen(c))
            if points := sorted(found):
                axis.plot(*zip(*points, strict=True), marker, markersize=6, color=color,
                          label=label)  # fmt: skip
        for published in PUBLISHED:
            axis.axvline(published, color="#707070", linewidth=1, linestyle=":")
        axis.set(title=name, xscale="log", yscale="log")
        axis.set_xticks((1, 2, 5, 10), ("1", "2", "5", "10"))
        axis.set_yticks((0.002, 0.01, 0.05, 0.2), ("0.002", "0.01", "0.05", "0.2"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {text: handle for axis in axes.flat
               for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("additions per multiply-accumulate of the source")
    figure.supylabel("relative error of the outputs")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    figure.savefig(path.with_suffix(".png"), dpi=110, facecolor="white")


LINES: dict[str, tuple[Callable[[str], bool], str, str]] = {
    "a sign at every step": (lambda c: c.endswith("0.000 untuned"), "s", "#707070"),
    "dead zone 2/3": (lambda c: c.endswith("0.667 untuned"), "o", "#56B4E9"),
    "tuned for the error": (lambda c: c.endswith("0.667 error"), "^", "#D55E00"),
    "tuned for additions": (lambda c: c.split()[2] not in WAYS[:2], "D", "#00507F"),
}
PUBLISHED = (1.24, 1.53)  # H-MT (AAAI 2026) on ImageNet, ReLU alone: VGG-16, ResNet-34


def page(text: str) -> str:
    """The page with the tables of the cells that are there."""
    for name, lines in (("--print", tables()), ("--best", best())):
        begin = f"<!-- python benchmarks/dead_zone_grid.py {name} -->"
        end = f"<!-- end of {name.strip('-')} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        shown = "\n".join(lines).strip()
        text = f"{before}{begin}\n\n{shown}\n\n{end}{after}"
    return text


def plan(text: str) -> tuple[int, int]:
    members, steps = text.split("x")
    return int(members), int(steps)


def zone(text: str) -> float:
    return next((z for z in ZONES if abs(z - float(text)) < 1e-3), float(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--plans", nargs="+", type=plan, default=PLANS, metavar="MxT")
    parser.add_argument("--zones", nargs="+", type=zone, default=ZONES)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--write", action="store_true", help="tables and picture into docs/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.write:
        PAGE.write_text(page(PAGE.read_text()))
        plot(PAGE.with_name("dead_zone.svg"))
    elif given.print or given.best:
        print("\n".join(best() if given.best else tables()))
    else:
        run(given)


if __name__ == "__main__":
    main()
