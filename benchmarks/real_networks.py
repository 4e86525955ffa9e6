"""Seconds and memory of convert, tune and run, by the size of a network: docs/real_networks.md.

    python benchmarks/real_networks.py --sizes [NETWORK ...] [--steps convert run tune] [--again]
    python benchmarks/real_networks.py --print     the table, of the networks that are there
    python benchmarks/real_networks.py --write     puts it into docs/real_networks.md

MTCNN's R-Net has its weights; torchvision's MobileNetV2, ResNet-18, ResNet-50 and ViT-B/16 have
random ones (zoo.py), which take as long. The default plan, one thread, --samples images calibrate
and as many tune, --images run. Each step is a process of its own, which reads what the one before
wrote, so that its peak memory is its own; it ends at --seconds of CPU or --gigabytes. A cell goes
to benchmarks/results/real/sizes.json and is not measured again unless --again.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import zoo

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402

RESULTS = real.RESULTS / "sizes.json"
PAGE = real.DOCS / "real_networks.md"
STEPS = ("convert", "run", "tune")


def rnet() -> zoo.Case:
    from facenet_pytorch.models.mtcnn import RNet

    return zoo.Case("R-Net", RNet().eval(), zoo.images(3, 24, 24))


def of_torchvision(name: str) -> Callable[[], zoo.Case]:
    def case() -> zoo.Case:
        from torchvision import models

        torch.manual_seed(0)
        made = zoo.Case(name, models.get_model(name, weights=None), zoo.images(3, 224, 224))
        zoo.wake(made.model, torch.Generator().manual_seed(0))
        zoo.settle(made.model, made.sample(8, torch.Generator().manual_seed(0)))
        return made

    return case


NETWORKS: dict[str, Callable[[], zoo.Case]] = {
    "R-Net": rnet,
    "MobileNetV2": of_torchvision("mobilenet_v2"),
    "ResNet-18": of_torchvision("resnet18"),
    "ResNet-50": of_torchvision("resnet50"),
    "ViT-B/16": of_torchvision("vit_b_16"),
}


# -- the steps ------------------------------------------------------------------------------------


def inputs(case: zoo.Case, n: int, seed: int) -> list[torch.Tensor]:
    x = case.sample(n, torch.Generator().manual_seed(seed))
    return list(x.split(real.BATCH))


def convert(name: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    case = NETWORKS[name]()
    images = inputs(case, given.samples, 1)
    begun = time.process_time()
    network = sg.convert(case.model, images, tune=False, max_batches=None)
    seconds = time.process_time() - begun
    sg.save(network, file)
    return {
        "seconds": seconds,
        "samples": given.samples,
        "parameters": sum(p.numel() for p in case.model.parameters()),
        "neurons": sum(network.count().values()),
    }


def tune(name: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    network, images = sg.load(file), inputs(NETWORKS[name](), given.samples, 1)
    begun = time.process_time()
    tuned = sg.tune(network, images, max_batches=None)
    seconds = time.process_time() - begun
    report = sg.Tuning.of(tuned)
    return {"seconds": seconds, "error": None if report is None else list(report.error)}


def run(name: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one image."""
    snn, images = sg.build(sg.load(file)), inputs(NETWORKS[name](), given.images, 2)
    sg.run(snn, images[0])  # buffers and kernels are made once
    begun = time.process_time()
    for x in images:
        sg.run(snn, x)
    return {"seconds": (time.process_time() - begun) / given.images}


WORK: dict[str, Callable[[str, Path, argparse.Namespace], dict[str, Any]]] = {
    "convert": convert,
    "tune": tune,
    "run": run,
}


def measure(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    limits = {"seconds": given.seconds, "gigabytes": given.gigabytes}
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.h5"
            for step in STEPS:
                needed = step == "convert" and not file.exists()  # what the others read
                wanted = step in given.steps and (
                    given.again or f"{name} {step}" not in real.cells(RESULTS)
                )
                others = any(
                    given.again or f"{name} {s}" not in real.cells(RESULTS) for s in given.steps
                )
                if not (wanted or (needed and others)):
                    continue
                row = real.apart(WORK[step], name, file, given, **limits)
                real.keep(RESULTS, f"{name} {step}", row)
                print(name, step, brief(row), flush=True)
                if step == "convert" and "stopped" in row:
                    break


def brief(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if "stopped" in row:
        return str(row["stopped"])
    seconds = row["seconds"]
    return f"{seconds:.3g} s, {row['peak'] / 2**30:.1f} GB"


# -- the table ------------------------------------------------------------------------------------


def table() -> Iterator[str]:
    found = real.cells(RESULTS)
    yield "| network | parameters, M | neurons, M | convert | run, an image | tune |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name in NETWORKS:
        made = found.get(f"{name} convert")
        if made and "parameters" in made:
            sizes = f"{made['parameters'] / 1e6:.1f} | {made['neurons'] / 1e6:.2f}"
            steps = " | ".join(brief(found.get(f"{name} {step}")) for step in STEPS)
            yield f"| {name} | {sizes} | {steps} |"
    for of in ("parameters", "neurons"):
        shown = " | ".join(exponents(found, step, of) for step in STEPS)
        yield f"| exponents by {of}: seconds, memory | | | {shown} |"


def exponents(found: dict[str, Any], step: str, of: str) -> str:
    points = [
        (found[f"{name} convert"][of], row["seconds"], row["peak"])
        for name in NETWORKS
        if "seconds" in (row := found.get(f"{name} {step}") or {})
    ]
    if len(points) < 3:
        return "–"
    sizes, seconds, peaks = zip(*points, strict=True)
    return f"{slope(sizes, seconds):.2f}, {slope(sizes, peaks):.2f}"


def slope(sizes: tuple[float, ...], values: tuple[float, ...]) -> float:
    """k of values ~ sizes^k, by least squares of the logarithms."""
    x, y = ([math.log(v) for v in each] for each in (sizes, values))
    middle, level = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return over / sum((a - middle) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=NETWORKS, dest="networks", default=None)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="the table into docs/")
    given = parser.parse_args()
    if given.write:
        real.into(PAGE, "benchmarks/real_networks.py --print", table())
    elif given.print or given.networks is None:
        print("\n".join(table()))
    else:
        given.networks = given.networks or list(NETWORKS)
        measure(given)


if __name__ == "__main__":
    main()
