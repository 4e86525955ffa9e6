"""The tables of docs/method.md: tuned networks, groups of signs, group neurons without training.

    python benchmarks/tuned.py [PART ...] [--data fashion] [--networks vgg ...] [--samples N]
    python benchmarks/tuned.py --print       the tables, from the figures that are there
    python benchmarks/tuned.py --write       puts them, and the plot, into docs/

Parts, in this order unless named: plain, learned, union, group, cost, ablation, depth, worse,
attention. What is measured is one way of converting one network (a ``Way``); its figures go to
benchmarks/results/tuned/DATA_NETWORK.json at once, and what is there is not measured again
(``--again`` does). So parts share figures, an interrupted run goes on where it was, and several
runs with different --networks may go on side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from accuracy import batches_of, machine
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import DATA as LOADERS  # noqa: E402
from data import Data  # noqa: E402
from networks import SIZES, Mixer, ResMlp, load_network, weights_path  # noqa: E402
from train import Recipe, fit  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402
from spikingjelly_signgd.analysis.drawing import Name, name_lines  # noqa: E402
from spikingjelly_signgd.core.network import SignGDNeuron  # noqa: E402

DATA = {name: cache(load) for name, load in LOADERS.items()}
RESULTS = Path(__file__).parent / "results" / "tuned"
DOCS = Path(__file__).parent.parent / "docs"
PAGE, PLOT = DOCS / "method.md", DOCS / "method.png"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
RELU = ("vgg", "resnet")
CALIBRATION = 1280  # training images
COUNTED = 256  # test images on which the spikes of group neurons are counted
ALL = "steps scales resting"  # what tuning learns

SPLITS = {8: ((1, 8), (2, 4), (4, 2), (8, 1)), 12: ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2))}
ONE_STEP = (4, 5, 6, 7, 8)
GROUPS = ((1, 8), (2, 4), (4, 2), (8, 1), (2, 8), (4, 4), (4, 8), (8, 4))  # (T, m)
PAPER_STEPS = (16, 32, 64, 128)
DEFAULT_STEPS = (4, 8, 16, 24, 32, 64)
TUNED_STEPS = (4, 8, 12, 16, 24, 32)
EXIT_STEPS = (16, 32)
EXIT_IMAGES = 2000  # validation images
BLOCKS = (1, 2, 4, 8, 16)
DEEP: dict[str, Callable[..., nn.Module]] = {"resmlp": ResMlp, "mixer": Mixer}
BUDGETS = (4, 8, 12, 16)
ENOUGH = 0.99
FEWER = "†"  # behind figures of fewer than the 10,000 test images of Fashion-MNIST
SURE = 0.993  # asked of an exit, so that other images agree in 99 %


@dataclass(frozen=True)
class Way:
    """One way of converting one network; ``key`` names its figures.

    ``steps`` is T, for kind "search" the spikes a neuron may send. ``learn`` is what tuning learns,
    "" for the plan as it is.
    """

    data: str
    network: str
    steps: int
    kind: str = "signgd"  # paper, signgd, search, exit, repeat, group, qcfs
    members: int = 1
    learn: str = ""
    functions: str = "whole"
    scale: str = "channel"
    signed: bool = True
    blocks: int = 0  # of a network trained here

    @property
    def key(self) -> str:
        parts = [self.kind, f"m={self.members}", f"T={self.steps}"]
        parts += [f"learn={self.learn}"] * bool(self.learn)
        parts += [f"functions={self.functions}"] * (self.functions != "whole")
        parts += [f"scale={self.scale}"] * (self.scale != "channel")
        parts += ["unsigned"] * (not self.signed) + [f"blocks={self.blocks}"] * bool(self.blocks)
        return " ".join(parts)


# -- what is measured ----------------------------------------------------------------------------


def source(way: Way, epochs: int) -> nn.Module:
    if way.blocks:
        return deep(way.network, way.data, way.blocks, epochs)
    return load_network(way.network, way.data, qcfs=8 if way.kind == "qcfs" else None)


@lru_cache(maxsize=2)  # ways that differ in what is measured follow one another
def converted(way: Way, iterations: int | None, epochs: int) -> sg.SpikingNetwork:
    model, x = source(way, epochs), DATA[way.data]().train.images[:CALIBRATION]
    if way.kind == "search":
        return sg.search(model, x, spikes=way.steps, dead_zone=0, iterations=iterations)
    options: dict[str, Any] = {"time_steps": way.steps, "tune": False}
    if way.kind == "paper":
        options["preset"] = "paper"
    elif way.kind == "qcfs":
        options["method"] = "group"
    elif way.kind == "group":
        options |= {"method": "group", "members": way.members, "signed": way.signed, "tune": None}
    else:
        options |= {"members": way.members, "forms": way.functions, "scale": way.scale}
        options["dead_zone"] = 0  # every sign is sent: energy.py measures the others
    network = sg.convert(model, x, **options)
    if not way.learn:
        return network
    return sg.tune(network, x, iterations=iterations, learn=way.learn.split())


@dataclass(frozen=True)
class Bench:
    samples: int
    iterations: int | None  # of every tuning; by default its own
    epochs: int

    def rows(self, way: Way) -> dict[Way, dict[str, Any]]:
        """The figures of a way, and of others that the same run gives."""
        if way.kind != "paper":
            return {way: self.row(way)}
        # one schedule whatever T is: one run gives all
        steps = sorted({*BUDGETS, *PAPER_STEPS, way.steps})
        data, model = DATA[way.data](), source(way, self.epochs)
        snn = sg.build(converted(replace(way, steps=steps[-1]), None, self.epochs))
        found = sg.evaluate(snn, batches_of(data, self.samples), steps, reference=model)
        rows = {}
        for row in found.to_dict()["rows"]:
            row |= {"samples": found.samples, "neurons": sum(snn.network.count().values())}
            row["cost"] = cost_of(snn, data.test.images[:1], row["T"])
            rows[replace(way, steps=row["T"])] = row
        return rows

    def row(self, way: Way) -> dict[str, Any]:
        data, model = DATA[way.data](), source(way, self.epochs)
        plan = replace(way, kind="signgd") if way.kind in ("exit", "repeat") else way
        begun = time.perf_counter()
        network = converted(plan, self.iterations, self.epochs)
        row: dict[str, Any] = {"seconds": round(time.perf_counter() - begun, 1)}
        if way.kind == "repeat":
            second = converted.__wrapped__(plan, self.iterations, self.epochs)
            return {**row, "equal": _same(network, second), "samples": len(data.test.labels)}
        snn = sg.build(network)
        batches = batches_of(data, self.samples)
        if way.kind == "exit":
            return row | self.exit(snn, model, data, batches)
        found = sg.evaluate(snn, batches, network.time_steps, reference=model)
        row |= found.to_dict()["rows"][0] | {"samples": found.samples, "T": network.time_steps}
        row["neurons"] = sum(network.count().values())
        row["cost"] = cost_of(snn, data.test.images[:COUNTED], network.time_steps)
        if way in learned(way.data, way.network):
            row["steps"] = {
                node.name: [node.schedule(t) for t in range(1, way.steps + 1)]
                for node in network.neurons
                if isinstance(node, SignGDNeuron)
            }
        if way.kind == "search":
            row["members"] = [n.members for n in network.neurons if isinstance(n, SignGDNeuron)]
        return row

    def exit(self, snn: Any, model: nn.Module, data: Data, batches: list[Any]) -> dict[str, Any]:
        """Agreement and mean steps of leaving early, by a margin found on validation images."""
        images = data.validation.images[:EXIT_IMAGES]
        rule = sg.calibrate_exit(snn, images.split(100), model, agreement=SURE)
        same, taken = 0, 0.0
        for x, _ in batches:
            left = sg.early_exit(snn, x, rule)
            with torch.no_grad():
                same += int((left.prediction == model(x).argmax(1)).sum())
            taken += float(left.steps.sum())
        samples = sum(len(x) for x, _ in batches)
        full = snn.network.time_steps
        cost = cost_of(snn, data.test.images[:1], full)
        per_step = ("spikes", "events", "synaptic", "synaptic_events", "sum_macs", "multiplies",
                    "evaluations")  # fmt: skip
        mean = taken / samples
        cost |= {name: cost[name] * mean / full for name in per_step}
        margin = rule.to_dict()["margin"]
        return {
            "agreement": same / samples,
            "error": None,
            "samples": samples,
            "steps": mean,
            "margin": margin,
            "neurons": sum(snn.network.count().values()),
            "cost": cost,
        }


def cost_of(snn: Any, x: torch.Tensor, time_steps: int) -> dict[str, Any]:
    """What the tables show, of one run: no layers, and no levels of which there may be hundreds."""
    found = count_operations(snn, x, time_steps).to_dict()
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _same(a: sg.SpikingNetwork, b: sg.SpikingNetwork) -> bool:
    """Whether two networks have equal neurons, to the bit."""
    for one, other in zip(a.neurons, b.neurons, strict=True):
        assert isinstance(one, SignGDNeuron) and isinstance(other, SignGDNeuron)
        pairs = [(one.scale, other.scale), (one.resting, other.resting)]
        if one.schedule.to_dict() != other.schedule.to_dict():
            return False
        if not all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs):
            return False
    return True


@cache
def deep(name: str, data_name: str, blocks: int, epochs: int) -> nn.Module:
    """A network of so many blocks, trained here from seed 0."""
    torch.manual_seed(0)
    model = DEEP[name](SIZES[data_name], depth=blocks)
    recipe = Recipe(epochs, 3e-3, 0.05, 32, shift=1, flip=False)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(model, DATA[data_name](), recipe, name)
    return model.eval()


# -- which ways, for each part -------------------------------------------------------------------


def plain(data: str, name: str) -> list[Way]:
    steps = (8, 16, 32, 64) if name == "vit" else (8, 16, 32)
    return [Way(data, name, t, learn=learn) for t in steps for learn in ("", ALL)]


def learned(data: str, name: str) -> list[Way]:
    """The network whose step sizes are shown."""
    return [Way(data, "vgg", 16, learn=ALL)] if name == "vgg" else []


def union(data: str, name: str) -> list[Way]:
    splits = [split for of in SPLITS.values() for split in of]
    splits += [(m, 1) for m in ONE_STEP if (m, 1) not in splits]
    ways = [Way(data, name, t, members=m, learn=ALL) for m, t in splits]
    return ways + [Way(data, name, budget, "search") for budget in SPLITS]


def group(data: str, name: str) -> list[Way]:
    return [
        Way(data, name, t, "group", members=m, signed=signed)
        for t, m in GROUPS
        for signed in (False, True)
        if name in RELU
    ]


def cost(data: str, name: str) -> list[Way]:
    ways = [way for ways in methods(data, name).values() for way in ways]
    exits = {replace(way, kind="signgd"): way for way in ways if way.kind == "exit"}
    pairs = [(way, exits.get(way)) for way in ways if way.kind != "exit"]
    return [way for pair in pairs for way in pair if way]


def methods(data: str, name: str) -> dict[str, list[Way]]:
    """The grid of each method of the cost table, cheapest first."""
    found = {
        "as published": [Way(data, name, t, "paper") for t in PAPER_STEPS],
        "default": [Way(data, name, t) for t in DEFAULT_STEPS],
        "tuned": [Way(data, name, t, learn=ALL) for t in TUNED_STEPS],
        "tuned, early exit": [Way(data, name, t, "exit", learn=ALL) for t in EXIT_STEPS],
        "groups of signs": sorted(
            [w for w in union(data, name) if w.kind == "signgd" and w.members > 1],
            key=lambda w: w.members * w.steps,
        ),
        "members by layer": [Way(data, name, b, "search") for b in SPLITS],
    }
    if name in RELU:
        ways = [way for way in group(data, name) if way.signed or way.steps == 1]
        found["group neurons"] = sorted(ways, key=lambda w: w.members * w.steps)
        if weights_path(name, data, 8).is_file():
            found["group neurons, trained"] = [Way(data, name, 1, "qcfs", members=8)]
    return found


# what is added, one after the other, to the published network; T or m T is the budget
IDEAS: dict[str, Callable[[str, str, int], list[Way]]] = {
    "as published": lambda d, n, b: [Way(d, n, b, "paper")],
    "exact input and GELU, scales from quantiles, steps by T and depth": lambda d, n, b: [
        Way(d, n, b, functions="local", scale="tensor")
    ],
    "+ one neuron for one output": lambda d, n, b: [Way(d, n, b, scale="tensor")],
    "+ scales by channel": lambda d, n, b: [Way(d, n, b)],
    "+ step sizes learned": lambda d, n, b: [Way(d, n, b, learn="steps")] * (b != 12),
    "+ scales learned": lambda d, n, b: [Way(d, n, b, learn="steps scales")] * (b != 12),
    "+ resting values learned": lambda d, n, b: [Way(d, n, b, learn=ALL)],
    **{
        f"+ groups of {m} signs": lambda d, n, b, m=m: (  # type: ignore[misc]
            [] if b % m else [Way(d, n, b // m, members=m, learn=ALL)]
        )
        for m in (2, 4, 8)
    },
    "+ members by layer": lambda d, n, b: [Way(d, n, b, "search")] if b < 16 else [],
}


# what is left out of a tuned network of one sign a step
WITHOUT: dict[str, dict[str, Any]] = {
    "all of it": {},
    "without learned step sizes": {"learn": "scales resting"},
    "without learned scales": {"learn": "steps resting"},
    "without learned resting values": {"learn": "steps scales"},
    "without scales by channel": {"scale": "tensor"},
    "without one neuron for one output": {"functions": "local"},
}
LEFT_OUT_STEPS = (8, 16)


def ablation(data: str, name: str) -> list[Way]:
    if name not in ("vgg", "convnext"):
        return []
    ways = [
        way for idea in IDEAS.values() for budget in BUDGETS for way in idea(data, name, budget)
    ]
    return ways + [
        Way(data, name, t, **{"learn": ALL, **changes})
        for t in LEFT_OUT_STEPS
        for changes in WITHOUT.values()
    ]


def depth(data: str, name: str) -> list[Way]:
    """Always on digits, on which the networks are trained in a moment."""
    return [
        Way("digits", name, steps, members=m, learn=learn, blocks=blocks)
        for blocks in BLOCKS
        for m, steps in ((1, 16), (4, 2))
        for learn in ("", ALL)
        if name in DEEP
    ]


def worse(data: str, name: str) -> list[Way]:
    ways = [
        Way(each, name, t, learn=learn)
        for each in DATA
        for t in (4, 8, 16)
        for learn in ("", ALL)
        if data == "fashion" or each == data
    ]
    again = Way("digits", name, 8, "repeat", learn=ALL)
    return [way for w in ways for way in (w, *[again] * (replace(again, kind="signgd") == w))]


def attention(data: str, name: str) -> list[Way]:
    """The vit on both sets of images."""
    if name != "vit":
        return []
    both = DATA if data == "fashion" else (data,)
    return [way for each in both for way in (*plain(each, name), *union(each, name))]


PARTS: dict[str, Callable[[str, str], list[Way]]] = {
    part.__name__: part
    for part in (plain, learned, union, group, cost, ablation, depth, worse, attention)
}


# -- figures -------------------------------------------------------------------------------------


def figures_path(way: Way) -> Path:
    return RESULTS / f"{way.data}_{way.network}.json"


def known(way: Way) -> dict[str, Any] | None:
    path = figures_path(way)
    rows = json.loads(path.read_text())["results"] if path.is_file() else {}
    found: dict[str, Any] | None = rows.get(way.key)
    return found


def keep(way: Way, row: Mapping[str, Any]) -> None:
    path = figures_path(way)
    rows = json.loads(path.read_text())["results"] if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    content = {"machine": machine(), "results": {**rows, way.key: row}}
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)


def measure(
    parts: Sequence[str],
    data: str,
    names: Sequence[str],
    bench: Bench,
    again: bool = False,
    skip: Sequence[str] = (),
) -> None:
    ways = [way for part in parts for name in names for way in PARTS[part](data, name)]
    ways = list(dict.fromkeys(way for way in ways if _present(way) and way.kind not in skip))
    for i, way in enumerate(ways, 1):
        row = known(way)
        most = min(bench.samples, len(DATA[way.data]().test.labels))
        if row is not None and not again and row["samples"] >= most:
            if row["iterations"] in (None, bench.iterations):
                continue
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # saturation and levels are what is measured
            found = bench.rows(way)
        for each, row in found.items():
            keep(each, {**row, "iterations": bench.iterations})
        row = found[way]
        took = time.perf_counter() - begun
        label = f"{i}/{len(ways)} {way.data} {way.network} {way.key}"
        shown = "" if row.get("agreement") is None else f" {100 * row['agreement']:.2f} %"
        print(f"{label}:{shown} ({took:.0f} s)", file=sys.stderr, flush=True)


def _present(way: Way) -> bool:
    return bool(way.blocks) or weights_path(way.network, way.data).is_file()


# -- tables --------------------------------------------------------------------------------------


def percent(row: Mapping[str, Any] | None, error: bool = False) -> str:
    if row is None or row.get("agreement") is None:
        return "–"
    shown = f"{100 * row['agreement']:.2f}" + FEWER * (row["samples"] in range(500, 10_000))
    return f"{shown} ({row['error']:.3f})" if error and row["error"] is not None else shown


def lines_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def plain_table(data: str) -> list[str]:
    steps = (8, 16, 32, 64)
    heads = ["network"] + [f"T={t}{what}" for t in steps for what in ("", ", tuned")]
    return lines_of(
        heads,
        [
            [name]
            + [
                percent(known(Way(data, name, t, learn=learn)), error=True)
                for t in steps
                for learn in ("", ALL)
            ]
            for name in NETWORKS
        ],
    )


def learned_table(data: str) -> list[str]:
    shown = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
    row = known(learned(data, "vgg")[0])
    steps = row["steps"] if row else {}
    return lines_of(
        ["neuron", *(f"t={t}" for t in shown)],
        [[name, *(f"{sizes[t - 1]:.3f}" for t in shown)] for name, sizes in steps.items()],
    )


def union_table(data: str) -> list[str]:
    lines: list[str] = []
    for budget, splits in SPLITS.items():
        columns = {
            f"{m} x {t}": [known(Way(data, n, t, members=m, learn=ALL)) for n in NETWORKS]
            for m, t in splits
        }
        searched = [known(Way(data, name, budget, "search")) for name in NETWORKS]
        if any(searched):
            columns["by layer"] = searched
        heads = [f"m T = {budget}", *columns]
        rows = [
            [name, *(percent(of[i], error=True) for of in columns.values())]
            for i, name in enumerate(NETWORKS)
        ]
        lines += [*lines_of(heads, rows), ""]
    heads = ["T = 1", *(f"m = {m}" for m in ONE_STEP)]
    rows = [
        [name, *(percent(known(Way(data, name, 1, members=m, learn=ALL)), True) for m in ONE_STEP)]
        for name in NETWORKS
    ]
    lines += [*lines_of(heads, rows), ""]
    for budget in SPLITS:
        for name in NETWORKS:
            row = known(Way(data, name, budget, "search"))
            if row is not None:
                members = ", ".join(map(str, row["members"]))
                lines.append(
                    f"- {name}, {budget} spikes: T = {row['T']}, members {members}; "
                    f"{row['cost']['spikes'] / row['neurons']:.1f} spikes a neuron"
                )
    return lines


def group_table(data: str) -> list[str]:
    heads = ["(T, m)"]
    heads += [f"{name}, {kind}" for name in RELU for kind in ("unsigned", "signed")]
    rows = []
    for t, m in GROUPS:
        cells = []
        for name in RELU:
            for signed in (False, True):
                row = known(Way(data, name, t, "group", members=m, signed=signed))
                spikes = "" if row is None else f", {row['cost']['spikes'] / 1e3:.1f} k"
                cells.append(percent(row, error=True) + spikes)
        rows.append([f"({t}, {m})", *cells])
    return lines_of(heads, rows)


def thousands(value: float) -> str:
    return "0" if not value else f"{value / 1e3:,.1f}" if value < 1e5 else f"{value / 1e3:,.0f}"


def cost_table(data: str) -> list[str]:
    heads = ["network", "method", "m x T", "agreement", "spikes", "synaptic", "by event",
             "MACs of sums", "products", "input MACs", "state"]  # fmt: skip
    rows = []
    for name in NETWORKS:
        shown = False
        for method, ways in methods(data, name).items():
            found = [(way, row) for way in ways if (row := known(way)) is not None]
            if not found:
                continue
            enough = [pair for pair in found if pair[1]["agreement"] >= ENOUGH]
            way, row = cheapest(enough) if enough else max(found, key=lambda p: p[1]["agreement"])
            c = row["cost"]
            if not shown:
                source = thousands(c["source_macs"])
                more = thousands(c["source_multiplies"])
                rows.append([name, "source network", "", "100", "", f"{source} MACs", "", "",
                             more, "", ""])  # fmt: skip
                shown = True
            rows.append(
                ["", method, setting(way, row), percent(row) + ("" if enough else " (the best)")]
                + [thousands(c[k]) for k in ("spikes", "synaptic", "synaptic_events", "sum_macs",
                                             "multiplies", "input_macs", "state_bytes")]
            )  # fmt: skip
    return lines_of(heads, rows)


def cheapest(found: list[tuple[Way, dict[str, Any]]]) -> tuple[Way, dict[str, Any]]:
    """The fewest spikes; of as many, the best agreement."""
    return min(found, key=lambda pair: (round(pair[1]["cost"]["spikes"]), -pair[1]["agreement"]))


def setting(way: Way, row: Mapping[str, Any]) -> str:
    if way.kind == "search":
        least, most = min(row["members"]), max(row["members"])
        return f"{least if least == most else f'{least}–{most}'} x {row['T']}"
    if way.kind == "exit":
        return f"1 x {row['steps']:.1f} of {way.steps}"
    return f"{way.members} x {way.steps}"


def ablation_table(data: str) -> list[str]:
    lines: list[str] = []
    for name in ("vgg", "convnext"):
        rows = []
        for idea, ways_of in IDEAS.items():
            cells = []
            for budget in BUDGETS:
                ways = ways_of(data, name, budget)
                cells.append(percent(known(ways[0]), error=True) if ways else "")
            if {*cells} - {"–", ""}:
                rows.append([idea, *cells])
        heads = [f"{name}: spikes of each neuron", *map(str, BUDGETS)]
        lines += [*lines_of(heads, rows), ""]
    heads = [""] + [f"{name}, T = {t}" for name in ("vgg", "convnext") for t in LEFT_OUT_STEPS]
    rows = []
    for what, changes in WITHOUT.items():
        ways = [
            Way(data, name, t, **{"learn": ALL, **changes})
            for name in ("vgg", "convnext")
            for t in LEFT_OUT_STEPS
        ]
        rows.append([what, *(percent(known(way), error=True) for way in ways)])
    return lines + lines_of(heads, rows)


def depth_table() -> list[str]:
    rows, slopes = [], []
    heads = ["network", "m x T", "", *(f"{blocks} blocks" for blocks in BLOCKS), "p"]
    for name in DEEP:
        for m, t in ((1, 16), (4, 2)):
            for learn in ("", ALL):
                found = [
                    known(Way("digits", name, t, members=m, learn=learn, blocks=blocks))
                    for blocks in BLOCKS
                ]
                errors = [row["error"] if row else None for row in found]
                slope = exponent([(b, e) for b, e in zip(BLOCKS, errors, strict=True) if e])
                cells = [
                    "–" if row is None else f"{row['error']:.4f} ({100 * row['agreement']:.1f})"
                    for row in found
                ]
                rows.append([name, f"{m} x {t}", "tuned" if learn else "default", *cells,
                             "–" if slope is None else f"{slope:.2f}"])  # fmt: skip
                slopes.append(slope)
    return lines_of(heads, rows)


def exponent(points: list[tuple[int, float]]) -> float | None:
    """p of error = c blocks ** p, by least squares of the logarithms."""
    if len(points) < 2:
        return None
    x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def worse_table() -> list[str]:
    heads = ["data", "network", *(f"T={t}: tuned - default" for t in (4, 8, 16)), "again"]
    rows = []
    for data in ("fashion", "digits"):
        for name in NETWORKS:
            cells = []
            for t in (4, 8, 16):
                before, after = (known(Way(data, name, t, learn=learn)) for learn in ("", ALL))
                if before is None or after is None:
                    cells.append("–")
                    continue
                a, b = before["agreement"], after["agreement"]
                spread = math.sqrt(a * (1 - a) / before["samples"] + b * (1 - b) / after["samples"])
                cells.append(f"{100 * (b - a):+.2f} ± {100 * spread:.2f}")
            repeat = known(Way(data, name, 8, "repeat", learn=ALL))
            cells.append("–" if repeat is None else "equal" if repeat["equal"] else "differs")
            rows.append([data, name, *cells])
    return lines_of(heads, rows)


def attention_table() -> list[str]:
    rows = []
    for data in ("fashion", "digits"):
        ways = {f"m = 1, T = {t}": Way(data, "vit", t) for t in (8, 16, 32, 64)}
        ways |= {f"m = 1, T = {t}, tuned": Way(data, "vit", t, learn=ALL) for t in (8, 16, 32, 64)}
        for m, t in dict.fromkeys(split for splits in SPLITS.values() for split in splits):
            if m > 1:
                ways[f"m = {m}, T = {t}, tuned"] = Way(data, "vit", t, members=m, learn=ALL)
        rows.append({what: percent(known(way), error=True) for what, way in ways.items()})
    shown = [[k, *(row[k] for row in rows)] for k in rows[0]]
    return lines_of(["vit", "fashion", "digits"], [r for r in shown if r[1:] != ["–", "–"]])


TABLES: dict[str, Callable[[str], list[str]]] = {
    "plain": plain_table,
    "learned": learned_table,
    "union": union_table,
    "group": group_table,
    "cost": cost_table,
    "ablation": ablation_table,
    "depth": lambda data: depth_table(),
    "worse": lambda data: worse_table(),
    "attention": lambda data: attention_table(),
}


def page(text: str, data: str) -> str:
    """The page with every table made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- python benchmarks/tuned.py {name} -->\n", f"<!-- end of {name} -->\n"
        head, rest = text.split(begin)
        text = head + begin + "\n" + "\n".join(table(data)).strip() + "\n\n" + end
        text += rest.split(end)[1]
    return text


def plot(data: str, path: Path) -> None:
    """Agreement against the spikes of each neuron, a line for each idea of DRAWN; .png and .svg."""
    import matplotlib
    from matplotlib.figure import Figure

    ticks = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90)  # what does not agree, on a log scale
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "font.size": 11}):
        figure = Figure(figsize=(9.4, 4.4), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(both, ("vgg", "convnext"), strict=True):
            axes.axhline(0, color="#707070", linewidth=1, linestyle=":")
            axes.set_yscale("symlog", linthresh=0.1, linscale=0.3)
            axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
            axes.set_ylim(95, -0.04)
            axes.set_xticks(BUDGETS)
            axes.set_xlim(min(BUDGETS) - 1, max(BUDGETS) + 1)
            axes.minorticks_off()
            axes.set(title=name, xlabel="spikes per neuron, m T")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            names = [n for idea in DRAWN if (n := _line(axes, data, name, idea)) is not None]
            name_lines(axes, names)
        both[0].set_ylabel("agreement with the source (%)")
        for suffix in (".png", ".svg"):
            options = {"metadata": {"Date": None}} if suffix == ".svg" else {"dpi": 130}
            figure.savefig(path.with_suffix(suffix), facecolor="white", **options)


def _line(axes: Any, data: str, name: str, idea: str) -> Name | None:
    """Draws what is known of an idea; its name, if not yet written beside a single point."""
    label, color, style = DRAWN[idea]
    points = [
        (row["cost"]["spikes"] / row["neurons"], 100 * (1 - row["agreement"]))
        for budget in BUDGETS
        for way in IDEAS[idea](data, name, budget)
        if (row := known(way)) is not None
    ]
    if not points:
        return None
    axes.plot(*zip(*points, strict=True), style, markersize=5, color=color)
    if len(points) == 1:
        axes.annotate(label.removeprefix("+ "), points[0], (-8, 0), fontsize="small",
                      textcoords="offset points", ha="right", va="center")  # fmt: skip
        return None
    return Name(*points[-1], label, color)


DRAWN = {  # of IDEAS, those of the picture: what they are called there, colour and style
    "as published": ("as published", "#707070", "o-"),
    "+ scales by channel": ("planned", "#56B4E9", "o-"),
    "+ resting values learned": ("planned and tuned", "#0072B2", "o-"),
    "+ groups of 2 signs": ("+ groups of 2", "#E69F00", "s--"),
    "+ groups of 4 signs": ("+ groups of 4", "#D55E00", "s--"),
    "+ groups of 8 signs": ("+ groups of 8", "#8F3B00", "s--"),
}


def missing(parts: Sequence[str], data: str, names: Sequence[str]) -> Iterator[Way]:
    ways = [way for part in parts for name in names for way in PARTS[part](data, name)]
    return (way for way in dict.fromkeys(ways) if _present(way) and known(way) is None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", choices=DATA, default="fashion")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, help="of each tuning, to try the script")
    parser.add_argument("--epochs", type=int, default=16, help="of the networks of part depth")
    parser.add_argument("--skip", nargs="+", default=(), metavar="KIND", help="of ways: search, …")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    parser.add_argument("--write", action="store_true", help="write docs/method.md, method.png")
    parser.add_argument("--missing", action="store_true", help="list what is not measured yet")
    options = parser.parse_args(arguments)
    parts = options.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"no part is called {part!r}; known: {', '.join(PARTS)}")
    if options.missing:
        for way in missing(parts, options.data, options.networks):
            print(way.data, way.network, way.key)
        return
    if not (options.print or options.write):
        bench = Bench(options.samples, options.iterations, options.epochs)
        measure(parts, options.data, options.networks, bench, options.again, options.skip)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(), options.data))
        plot(options.data, PLOT)
        return
    for part in parts:
        print(f"\n{part}, {options.data}\n")
        print("\n".join(TABLES[part](options.data)))


if __name__ == "__main__":
    main()
