"""The tables of RESULTS.md: how close the spiking networks are to their sources.

    python benchmarks/accuracy.py signgd [--data fashion] [--networks vgg ...] [--samples N]
    python benchmarks/accuracy.py group [--data fashion]

Figures go to benchmarks/results/*.json, tables to standard output; ``--print`` prints the tables
from the figures that are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import Data, digits, fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp")
TIME_STEPS = (1, 2, 4, 8, 16, 32, 64)
MEMBERS = GROUP_STEPS = (1, 2, 4, 8)
CALIBRATION = 256  # training images
BATCH = 100


def batches_of(data: Data, samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = data.test
    return list(zip(images[:samples].split(BATCH), labels[:samples].split(BATCH), strict=True))


def signgd(name: str, data_name: str, data: Data, samples: int) -> Iterator[dict[str, Any]]:
    """One source network as published, and with step sizes planned for each T but nothing learned
    (benchmarks/tuned.py has that); norms are made of neurons of one and two arguments in both."""
    model = load_network(name, data_name)
    batches, calibration = batches_of(data, samples), data.train.images[:CALIBRATION]
    result: dict[str, Any] = {"network": name, "samples": samples, "default": {}}
    for steps in reversed(TIME_STEPS):
        network = sg.convert(
            model, calibration, time_steps=steps, forms={"norm": "local"}, dead_zone=0.0, tune=False
        )
        row = sg.evaluate(sg.build(network), batches, steps, reference=model)
        result["default"][str(steps)] = row.to_dict()["rows"][0]
        result["source"] = row.reference_accuracy
        result["neurons"] = sum(network.count().values())
        yield result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.SaturationWarning)  # that is how it was published
        paper = sg.convert(model, calibration, preset="paper", time_steps=max(TIME_STEPS))
    rows = sg.evaluate(sg.build(paper), batches, TIME_STEPS, reference=model).to_dict()["rows"]
    result["paper"] = {str(row["T"]): row for row in rows}
    result["neurons, paper"] = sum(paper.count().values())
    yield result


def group(name: str, levels: int, data_name: str, data: Data, samples: int) -> dict[str, Any]:
    """A QCFS network with every (m, T) on ``samples`` images; m = L, T = 1 on the whole test set.

    Ties are outputs that differ although m = L, T = 1.
    """
    model = load_network(name, data_name, qcfs=levels)
    batches, calibration = batches_of(data, samples), data.train.images[:CALIBRATION]
    rows = []
    for members in MEMBERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # m T away from L is what this table is about
            network = sg.convert(
                model, calibration, method="group", members=members, time_steps=max(GROUP_STEPS)
            )
        found = sg.evaluate(sg.build(network), batches, GROUP_STEPS, reference=model)
        reference = found.reference_accuracy
        rows += [{"m": members, **row} for row in found.to_dict()["rows"]]
    network = sg.convert(model, calibration, method="group", members=levels, time_steps=1)
    snn = sg.build(network)
    differing = unequal = 0
    with torch.no_grad():
        for x, _ in batches_of(data, len(data.test.labels)):
            ours, theirs = sg.run(snn, x, 1)[1], model(x)
            differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
            unequal += int((ours - theirs).abs().amax(1).gt(1e-4 * theirs.abs().max()).sum())
    return {
        "network": name,
        "levels": levels,
        "samples": samples,
        "reference_accuracy": reference,
        "rows": rows,
        "m = L, T = 1": {"predictions that differ": differing, "images with a tie": unequal},
    }


def print_signgd(results: list[dict[str, Any]]) -> None:
    for preset in ("paper", "default"):
        for what, digits_ in (("accuracy", 2), ("agreement", 2), ("error", 4)):
            print(f"\n{preset}, {what}" + (" (%)" if what != "error" else " (relative, output)"))
            print("| network | source |" + "".join(f" T={t} |" for t in TIME_STEPS))
            print("|---|---|" + "---|" * len(TIME_STEPS))
            for result in results:
                scale = 1 if what == "error" else 100
                rows = [result.get(preset, {}).get(str(t)) for t in TIME_STEPS]
                cells = [f" {scale * row[what]:.{digits_}f} |" if row else " |" for row in rows]
                source = 100 * result["source"]
                print(f"| {result['network']} | {source:.2f} |" + "".join(cells))


def print_group(results: list[dict[str, Any]]) -> None:
    for result in results:
        source = 100 * result["reference_accuracy"]
        print(
            f"\n{result['network']}, L = {result['levels']}, source {source:.2f} %, "
            f"{result['samples']} images: accuracy (%)"
        )
        print("| m |" + "".join(f" T={t} |" for t in GROUP_STEPS))
        print("|---|" + "---|" * len(GROUP_STEPS))
        for members in MEMBERS:
            cells = [f" {100 * r['accuracy']:.2f} |" for r in result["rows"] if r["m"] == members]
            label = "1 (IF)" if members == 1 else str(members)
            print(f"| {label} |" + "".join(cells))
        exact = ", ".join(f"{key}: {n}" for key, n in result["m = L, T = 1"].items())
        print(f"\nm = L, T = 1, whole test set: {exact}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("signgd", "group"))
    parser.add_argument("--data", choices=("digits", "fashion"), default="fashion")
    parser.add_argument("--networks", nargs="+", default=None)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--levels", type=int, nargs="+", default=(4, 8), help="of group")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    options = parser.parse_args()
    path = RESULTS / f"{options.what}_{options.data}.json"
    known = json.loads(path.read_text())["results"] if path.exists() else {}
    if not options.print:
        data = digits() if options.data == "digits" else fashion_mnist()
        samples = min(options.samples, len(data.test.labels))
        names = options.networks or (NETWORKS if options.what == "signgd" else ("vgg", "resnet"))
        for name in names:
            start = time.perf_counter()
            if options.what == "signgd":
                parts = ((name, part) for part in signgd(name, options.data, data, samples))
            else:
                parts = (
                    (f"{name} {levels}", group(name, levels, options.data, data, samples))
                    for levels in options.levels
                )
            for key, part in parts:
                known[key] = part
                RESULTS.mkdir(exist_ok=True)
                path.write_text(json.dumps({"machine": machine(), "results": known}, indent=1))
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    order = [key for key in (*NETWORKS, *known) if key in known]
    chosen = [known[key] for key in dict.fromkeys(order)]
    print_signgd(chosen) if options.what == "signgd" else print_group(chosen)


def machine() -> dict[str, str]:
    return {
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
