"""A trained ImageNet network of torchvision or timm as spiking networks: the table of the papers.

    python examples/imagenet/evaluate.py torchvision:resnet18 /data/imagenet
    torchrun --nproc-per-node 4 examples/imagenet/evaluate.py timm:resmlp_24_224 /data/imagenet

The folder holds ``val`` and, to calibrate on, ``train``, each with a folder of images for a class.
Without ``train`` the images to calibrate on are taken out of ``val``, and not evaluated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.converters import load_source, preprocessing

METHODS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},  # as published: one network, read at every T
    "dense": {"dead_zone": 0.0},  # signGD, m signs of each neuron in every step
    "sparse": {},  # signGD, silent near the target: the package's default
    "group": {"method": "group"},  # of ReLU networks
}
SIGNS = 64  # m x T of a plan, at most
COUNTED = 8  # images on which spikes and additions are counted
HEADS = (
    *("method", "m", "T", "source", "accuracy", "agreement", "error", "spikes", "additions"),
    *("images", "seconds", "images_per_second"),
)


class Plan(NamedTuple):
    method: str
    members: int
    steps: tuple[int, ...]  # at which the network, planned for the last, is read

    @property
    def name(self) -> str:
        return f"{self.method}_{self.members}x{self.steps[-1]}"


def plans(methods: Sequence[str], members: Sequence[int], steps: Sequence[int]) -> Iterator[Plan]:
    """A network for each m and T of at most SIGNS together; of the paper one for all T."""
    for method in methods:
        if method == "paper":
            yield Plan(method, 1, tuple(steps))
            continue
        yield from (Plan(method, m, (t,)) for m in members for t in steps if m * t <= SIGNS)


# -- data -----------------------------------------------------------------------------------------


def load_data(folder: Path, transform: Any, given: argparse.Namespace) -> tuple[Any, Any]:
    """Images to calibrate on, spread over the classes, and images to evaluate."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(folder / "val", transform)
    if (folder / "train").is_dir():
        train = ImageFolder(folder / "train", transform)
        calibration = Subset(train, spread(train.targets, given.calibration, given.seed))
        rest = torch.arange(len(images))
    else:
        chosen = spread(images.targets, given.calibration, given.seed)
        calibration = Subset(images, chosen)
        rest = torch.ones(len(images), dtype=torch.bool).index_fill(0, torch.tensor(chosen), False)
        rest = rest.nonzero().flatten()
    if given.limit is not None:
        targets = torch.tensor(images.targets)[rest].tolist()
        rest = rest[sorted(spread(targets, given.limit, given.seed + 1))]
    return calibration, Subset(images, rest.tolist())


def spread(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of ``count`` samples, as many of each class as may be, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(targets), generator=generator)
    classes = torch.randperm(max(targets) + 1, generator=generator)[torch.tensor(targets)[drawn]]
    order = classes.argsort(stable=True)
    sizes = classes.bincount()
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    turn = torch.arange(len(targets)) - begins  # its place among those of its class
    return drawn[order[turn.argsort(stable=True)]][:count].tolist()


def batches(data: Dataset[Any], given: argparse.Namespace) -> DataLoader[Any]:
    return DataLoader(data, batch_size=given.batch_size, num_workers=given.workers)


# -- a row of the table ---------------------------------------------------------------------------


def convert(model: nn.Module, calibration: Any, plan: Plan, given: Any, world: Any) -> Any:
    """The network of a plan; with --resume it is kept, and read again."""
    path = None if given.resume is None else given.resume / f"{plan.name}.h5"
    if world.broadcast(path is not None and path.exists()):
        return world.broadcast(sg.load(path) if world.first else None)
    members = {} if plan.method == "paper" else {"members": plan.members}
    network = sg.convert(
        model,
        batches(calibration, given),
        time_steps=plan.steps[-1],
        tune=None if given.tune else False,
        max_batches=None,
        seed=given.seed,
        distributed=world,
        **METHODS[plan.method],
        **members,
    )
    if path is not None and world.first:
        sg.save(network, path)
    return network


def measured(
    model: nn.Module, network: Any, images: Any, plan: Plan, given: Any, world: Any
) -> list[dict[str, Any]]:
    """A row for each T of a plan."""
    snn = sg.build(network).to(world.device)
    began = time.perf_counter()
    found = sg.evaluate(
        snn,
        batches(images, given),
        plan.steps,
        reference=model,
        distributed=world,
        resume=None if given.resume is None else given.resume / f"{plan.name}.jsonl",
    )
    seconds = time.perf_counter() - began
    some = default_collate([images[i][0] for i in range(min(COUNTED, len(images)))])
    costs = count_operations(snn, some.to(world.device), plan.steps)
    return [
        {
            "method": plan.method,
            "m": plan.members,
            "T": t,
            "source": found.reference_accuracy,
            "accuracy": found.accuracy[i],
            "agreement": found.agreement[i],
            "error": found.error[i],
            "spikes": costs[t].spikes / costs[t].neurons,
            "additions": costs[t].additions_per_mac,
            "images": found.samples,
            "seconds": seconds,
            "images_per_second": found.samples / seconds,
        }
        for i, t in enumerate(plan.steps)
    ]


def line(row: Mapping[str, Any]) -> str:
    shares = "".join(f"{100 * row[name]:>11.2f}" for name in ("source", "accuracy", "agreement"))
    return (
        f"{row['method']:<8}{row['m']:>3}{row['T']:>4}{shares}{row['error']:>9.4f}"
        f"{row['spikes']:>8.2f}{row['additions']:>11.2f}{row['images']:>8}"
        f"{row['images_per_second']:>10.1f}"
    )


HEAD = (
    f"{'method':<8}{'m':>3}{'T':>4}{'source %':>11}{'accuracy %':>11}{'agrees %':>11}{'error':>9}"
    f"{'spikes':>8}{'additions':>11}{'images':>8}{'images/s':>10}"
)


# -- results --------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """As JSON, or as CSV with ``about`` in every row; the file is whole at any time."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("w", newline="") as file:
        if path.suffix == ".json":
            json.dump({**about, "rows": list(rows)}, file, indent=1)
        else:
            table = csv.DictWriter(file, [*about, *HEADS])
            table.writeheader()
            table.writerows({**about, **row} for row in rows)
    os.replace(partial, path)


def same_run(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises where the folder is of a run with other options, whose networks are others."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "run.json"
    if not kept.exists():
        return write(kept, (), about)
    before = json.loads(kept.read_text())
    other = [name for name in about if about[name] != before.get(name)]
    if other:
        raise sg.InputError(
            f"{folder} is of another run: "
            + ", ".join(f"{name} was {before.get(name)}, now {about[name]}" for name in other)
            + ". Give --resume another folder."
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="torchvision:NAME or timm:NAME")
    parser.add_argument("data", type=Path, help="the folder with val, and train")
    parser.add_argument("--weights", default="DEFAULT", help="the library's name; none: random")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["sparse"])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="quicker, less exact")
    parser.add_argument("--limit", type=int, help="images evaluated, spread over the classes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=4, help="that load images, for each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="a folder to go on from, or to begin")
    parser.add_argument("--results", type=Path, help="a file, .csv or .json")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    about = {
        "model": given.model,
        "weights": given.weights,
        "data": str(given.data),
        "calibration": given.calibration,
        "tune": given.tune,
        "limit": given.limit,
        "batch_size": given.batch_size,
        "seed": given.seed,
        "torch": torch.__version__,
    }
    with sg.Distributed() as world:
        torch.manual_seed(given.seed)  # of random weights
        spec = given.model if given.weights == "none" else f"{given.model}:{given.weights}"
        model, prepare = load_source(spec).to(world.device), preprocessing(spec)
        calibration, images = load_data(given.data, lambda image: prepare([image])[0], given)
        if given.resume is not None and world.first:
            same_run(given.resume, about)
        rows: list[dict[str, Any]] = []
        if world.first:
            print(f"{given.model}, weights {given.weights}: {len(images)} images\n\n{HEAD}")
        for plan in plans(given.methods, given.members, given.steps):
            network = convert(model, calibration, plan, given, world)
            found = measured(model, network, images, plan, given, world)
            rows += found
            if world.first:
                print(*map(line, found), sep="\n", flush=True)
            if world.first and given.results is not None:
                write(given.results, rows, about | {"command": shlex.join(sys.argv)})


if __name__ == "__main__":
    main()
