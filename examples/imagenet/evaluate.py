"""A trained ImageNet network of torchvision or timm as spiking networks: the table of the papers.

    python examples/imagenet/evaluate.py torchvision:resnet18 /data/imagenet
    torchrun --nproc-per-node 4 examples/imagenet/evaluate.py timm:resmlp_24_224 /data/imagenet

The folder holds ``val`` and, to calibrate on, ``train``, each with a folder of images for a class.
Without ``train`` the images to calibrate on are taken out of ``val``, and not evaluated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.cli.results import (
    check_results_file,
    one_or_range,
    rows,
    write_results,
)
from spikingjelly_signgd.converters import load_source, preprocessing
from spikingjelly_signgd.exporters.files import write_whole

METHODS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},  # as published: one network, read at every T
    "dense": {"dead_zone": 0.0},  # signGD, m signs of each neuron in every step
    "sparse": {},  # signGD, silent near the target: the package's default
    "group": {"method": "group"},  # of ReLU networks
}
SIGNS = 64  # m x T of a plan, at most
COUNTED = 8  # images on which spikes and additions are counted
HEAD = "method    m   T   source % accuracy %   agrees %   error  spikes additions images images/s"


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


# -- a part of the table --------------------------------------------------------------------------


class Run(NamedTuple):
    """What all parts share."""

    given: argparse.Namespace
    world: sg.Distributed
    model: nn.Module
    calibration: list[Tensor]
    images: Dataset[Any]

    def file(self, plan: Plan, suffix: str) -> Path | None:
        """Of a plan, with --resume."""
        return None if self.given.resume is None else self.given.resume / f"{plan.name}{suffix}"

    def network(self, plan: Plan) -> sg.SpikingNetwork:
        """Converted; with --resume it is kept, and read again."""
        path = self.file(plan, ".h5")
        there = sg.load(path) if self.world.first and path is not None and path.exists() else None
        network: sg.SpikingNetwork | None = self.world.broadcast(there)
        if network is not None:
            return network
        members: dict[str, Any] = {} if plan.method == "paper" else {"members": plan.members}
        network = sg.convert(
            self.model,
            self.calibration,
            time_steps=plan.steps[-1],
            tune=None if self.given.tune else False,
            max_batches=None,
            seed=self.given.seed,
            distributed=self.world,
            **METHODS[plan.method],
            **members,
        )
        if path is not None and self.world.first:
            sg.save(network, path)
        return network

    def rows(self, plan: Plan) -> list[dict[str, Any]]:
        """One for each T of a plan, as ``spikingjelly-signgd evaluate --results-file`` has them."""
        given, world = self.given, self.world
        snn = sg.build(self.network(plan)).to(world.device)
        finished = self.file(plan, ".jsonl")
        anew = finished is None or not finished.exists()
        began = time.perf_counter()
        found = sg.evaluate(
            snn,
            loader(self.images, given),
            plan.steps,
            reference=self.model,
            distributed=world,
            resume=finished,
        )
        seconds = time.perf_counter() - began
        zones = [
            torch.as_tensor(node.dead_zone, dtype=torch.float64)
            for node in snn.network.neurons
            if hasattr(node, "dead_zone")
        ]
        of_all = {
            "network": plan.method,
            "source": f"{given.model}:{given.weights}",
            "members": plan.members,
            "dead_zone": one_or_range([float(end) for z in zones for end in (z.min(), z.max())]),
            "seconds": seconds,
            "images_per_second": found.samples / seconds if anew else None,
            "data": str(given.data),
            "simulator": "spikingjelly",
            "processes": world.size,
            "threads": torch.get_num_threads(),
            "version": sg.__version__,
            "torch": torch.__version__,
            "command": shlex.join(sys.argv),
        }
        return rows(found, of_all, self.costs(snn, plan) if world.first else {})

    def costs(self, snn: Any, plan: Plan) -> dict[int, dict[str, Any]]:
        """By T, on a few images: spikes of a neuron, additions for each MAC of the source."""
        some = self.calibration[0][:COUNTED]
        return {
            t: {
                "spikes": each.spikes / each.neurons,
                "additions_per_mac": each.additions_per_mac,
                "counted": len(some),
            }
            for t, each in count_operations(snn, some, plan.steps).items()
        }


def loader(images: Dataset[Any], given: argparse.Namespace) -> DataLoader[Any]:
    return DataLoader(images, batch_size=given.batch_size, num_workers=given.workers)


def line(row: Mapping[str, Any]) -> str:
    shares = "".join(f"{100 * row[name]:>11.2f}" for name in ("source_top1", "top1", "agreement"))
    speed = "-" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}"
    return (
        f"{row['network']:<7}{row['members']:>4}{row['T']:>4}{shares}{row['output_error']:>8.4f}"
        f"{row['spikes']:>8.2f}{row['additions_per_mac']:>10.2f}{row['images']:>7}{speed:>9}"
    )


# -- the script -----------------------------------------------------------------------------------


def same_run(folder: Path, given: argparse.Namespace) -> None:
    """Raises where the folder is of a run with other options, whose networks are others."""
    names = "model weights data calibration tune limit batch_size seed".split()
    asked = {name: getattr(given, name) for name in names} | {"data": str(given.data)}
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "run.json"
    if not kept.exists():
        write_whole(kept, json.dumps(asked).encode())
    before = json.loads(kept.read_text())
    other = [f"{name} was {before.get(name)}" for name in asked if asked[name] != before.get(name)]
    if other:
        raise sg.InputError(
            f"{folder} is of another run: {', '.join(other)}. Give --resume another folder."
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
    parser.add_argument("--resume", type=Path, help="a folder to resume from, or a new one")
    parser.add_argument("--results", type=Path, help="a file, .csv or .json")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with sg.Distributed() as world:
        if world.first and given.results is not None:
            check_results_file(given.results)
        if world.first and given.resume is not None:
            same_run(given.resume, given)
        torch.manual_seed(given.seed)  # of random weights
        spec = given.model if given.weights == "none" else f"{given.model}:{given.weights}"
        model, prepare = load_source(spec).to(world.device), preprocessing(spec)
        chosen, images = load_data(given.data, lambda image: prepare([image])[0], given)
        calibration = [x.to(world.device) for x, _ in loader(chosen, given)]
        run = Run(given, world, model, calibration, images)
        if world.first:
            print(f"{given.model}, weights {given.weights}: {len(images)} images\n\n{HEAD}")
        table: list[dict[str, Any]] = []
        for plan in plans(given.methods, given.members, given.steps):
            found = run.rows(plan)
            table += found
            if world.first:
                print(*map(line, found), sep="\n", flush=True)
            if world.first and given.results is not None:
                write_results(given.results, table)


if __name__ == "__main__":
    main()
