"""The tables of docs/fine_tuning.md: converted networks before and after fine-tuning.

    python benchmarks/fine_tuning.py [PART ...] [--networks resnet ...] [--seeds 0 1 2]
    python benchmarks/fine_tuning.py --print       the tables, from the figures that are there
    python benchmarks/fine_tuning.py --write       puts them into docs/fine_tuning.md

Parts, in this order unless named:

control  the float source network, fine-tuned by the same recipe: the same images, epochs, loss,
         optimiser and seeds, every function computed as it is in the place of neurons
table    members 3 and 4, T = 1 and 2, at most 0.3 additions for each MAC of the source; where real
         values alone take more than half of that, 0.15 of spikes beside them
curve    members 3, T = 1, budgets from 0.1 to 1, and none

Fashion-MNIST. Selection is by the 5,000 validation images; the 10,000 test images are read once,
at the end; additions are counted on the first 1,000 of them. A figure goes to
benchmarks/results/fine_tuning/NETWORK.json at once, and what is there is not measured again; what
is interrupted goes on after its last epoch (--resume FOLDER). Several runs with different
--networks may go on side by side.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from accuracy import machine
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402
from data import Data, fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis import count_operations  # noqa: E402
from spikingjelly_signgd.converters.additions import Prices  # noqa: E402
from spikingjelly_signgd.converters.fine_tuning import check_budget  # noqa: E402
from spikingjelly_signgd.core.network import Function  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "fine_tuning"
PAGE = Path(__file__).parent.parent / "docs" / "fine_tuning.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
PARTS = ("control", "table", "curve")
CALIBRATION = 1280  # training images
COUNTED = 1000  # test images
BUDGET, OF_SPIKES = 0.3, 0.15
BUDGETS = (0.1, 0.15, 0.2, 0.3, 0.5, 1.0, None)
MARKS = "<!-- of benchmarks/fine_tuning.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning; ``members`` 0 is the control, ``budget`` 0 the one of the table."""

    network: str
    members: int
    steps: int
    budget: float | None
    seed: int
    epochs: int
    images: int

    @property
    def key(self) -> str:
        kind = "control" if not self.members else f"m={self.members} T={self.steps}"
        budget = "" if not self.members else f" additions={self.budget}"
        return f"{kind}{budget} seed={self.seed} epochs={self.epochs} images={self.images}"


def cells(parts: list[str], given: argparse.Namespace) -> Iterator[Cell]:
    for part in parts:
        for name in given.networks:
            for seed in given.seeds:
                course = seed, given.epochs, given.images
                if part == "control":
                    yield Cell(name, 0, 1, None, *course)
                elif part == "table":
                    for members in given.members:
                        for steps in given.time_steps:
                            yield Cell(name, members, steps, 0.0, *course)
                else:
                    for budget in BUDGETS:
                        yield Cell(name, 3, 1, budget, *course)


# -- what is measured -----------------------------------------------------------------------------


@cache
def data() -> Data:
    return fashion_mnist()


@cache
def source(name: str) -> nn.Module:
    return load_network(name, "fashion")


@cache
def converted(name: str, members: int, steps: int) -> sg.SpikingNetwork:
    x = data().train.images[:CALIBRATION]
    options: dict[str, Any] = {"members": members or 3, "time_steps": steps, "tune": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few spikes are far off is what is measured
        network = sg.convert(source(name), x, **options)
    return network if members else real_valued(network)


def real_valued(network: sg.SpikingNetwork) -> sg.SpikingNetwork:
    """The source network: every neuron's function as it is."""
    names = [each.name for each in fields(Function)]
    kept = {n.name: Function(**{k: getattr(n, k) for k in names}) for n in network.neurons}
    return network.with_nodes(kept)


def budget_of(cell: Cell, network: sg.SpikingNetwork) -> float | None:
    """The table's: beside what is multiplied whatever neurons send."""
    if cell.budget != 0.0:
        return cell.budget
    prices = Prices.of(network, cell.steps)
    left = prices.fixed / prices.source
    return BUDGET if left <= BUDGET / 2 else left + OF_SPIKES


def unreachable(cell: Cell) -> str | None:
    """Why, where the budget is below what is multiplied whatever neurons send."""
    network = converted(cell.network, cell.members, cell.steps)
    try:
        check_budget(network, budget_of(cell, network))
    except sg.InputError as error:
        return str(error)
    return None


def measure(cell: Cell, resume: Path | None) -> dict[str, Any]:
    network = converted(cell.network, cell.members, cell.steps)
    train, held_out = data().train, data().validation
    file = None
    if resume is not None:
        resume.mkdir(parents=True, exist_ok=True)
        file = resume / f"{cell.network} {cell.key}.pt"
    budget = budget_of(cell, network)
    begun = time.process_time()
    found = sg.fine_tune(
        network,
        (train.images[: cell.images], train.labels[: cell.images]),
        validation=(held_out.images, held_out.labels),
        additions=budget,
        epochs=cell.epochs,
        seed=cell.seed,
        resume=file,
    )
    took = time.process_time() - begun
    return {
        "budget": budget,
        "seconds": took,
        "before": figures(network, cell),
        "after": figures(found.network, cell),
        "history": [each._asdict() for each in found.history],
        "machine": machine(),
    }


def figures(network: sg.SpikingNetwork, cell: Cell) -> dict[str, Any]:
    images, labels = data().test
    snn = sg.build(network)
    batches = list(zip(images.split(500), labels.split(500), strict=True))
    found = sg.evaluate(snn, batches, cell.steps, reference=source(cell.network))
    counted = count_operations(snn, images[:COUNTED], cell.steps)
    return {
        "accuracy": found.accuracy[0],
        "agreement": found.agreement[0],
        "source": found.reference_accuracy,
        "additions": counted.additions_per_mac if cell.members else None,
        "parts": counted.parts_per_mac if cell.members else None,
        "spikes": counted.spikes / counted.neurons if counted.neurons else None,
    }


def stored(name: str) -> dict[str, Any]:
    return real.cells(RESULTS / f"{name}.json")


def store(cell: Cell, found: dict[str, Any]) -> None:
    real.keep(RESULTS / f"{cell.network}.json", cell.key, found)


# -- the tables -----------------------------------------------------------------------------------


def tables(given: argparse.Namespace) -> str:
    return "\n\n".join(["\n".join(main_table(given)), "\n".join(curve(given))])


def main_table(given: argparse.Namespace) -> Iterator[str]:
    yield (
        "| network | source | control | m | T | before: accuracy, agreement, additions per MAC "
        "| after: accuracy, agreement, additions per MAC (of spikes) | against the control |"
    )
    yield "|---|---:|---:|---:|---:|---|---|---:|"
    for name in given.networks:
        control = [row["after"] for row in found(name, 0, 1, None, given)]
        for members in given.members:
            for steps in given.time_steps:
                rows = found(name, members, steps, 0.0, given)
                if rows:
                    yield line(name, members, steps, rows, control, len(given.seeds))


def found(
    name: str, members: int, steps: int, budget: float | None, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of all seeds that were measured."""
    rows = stored(name)
    course = given.epochs, given.images
    keys = [Cell(name, members, steps, budget, seed, *course).key for seed in given.seeds]
    return [rows[key] for key in keys if key in rows]


def line(
    name: str,
    members: int,
    steps: int,
    rows: list[dict[str, Any]],
    control: list[dict[str, Any]],
    seeds: int,
) -> str:
    before, after = rows[0]["before"], [row["after"] for row in rows]
    floats = [row["accuracy"] for row in control]
    accuracy = [row["accuracy"] for row in after]
    against = "-"
    if floats:
        against = f"{100 * (statistics.mean(accuracy) - statistics.mean(floats)):+.2f}"
    spikes = statistics.mean(row["parts"]["spikes"] for row in after)
    return (
        f"| {name} | {100 * before['source']:.2f} | {spread(floats, seeds) if floats else '-'} "
        f"| {members} | {steps} | {100 * before['accuracy']:.2f}, {100 * before['agreement']:.2f}, "
        f"{before['additions']:.2f} | **{spread(accuracy, seeds)}**, "
        f"{spread([row['agreement'] for row in after], seeds)}, "
        f"{statistics.mean(row['additions'] for row in after):.2f} ({spikes:.2f}) | {against} |"
    )


def spread(values: list[float], seeds: int) -> str:
    """Percent: the mean, the standard deviation, and of how many where not all seeds are there."""
    shown = f"{100 * statistics.mean(values):.2f}"
    if len(values) > 1:
        shown += f" ± {100 * statistics.stdev(values):.2f}"
    return shown if len(values) == seeds else f"{shown} (n = {len(values)})"


def curve(given: argparse.Namespace) -> Iterator[str]:
    heads = [f"{budget:g}" if budget else "no budget" for budget in BUDGETS]
    lines = [f"| accuracy (additions per MAC) | {' | '.join(heads)} |"]
    lines.append(f"|---|{'---|' * len(heads)}")
    for name in given.networks:
        each = [found(name, 3, 1, budget, given) for budget in BUDGETS]
        if any(each):
            shown = " | ".join(point(rows, len(given.seeds)) for rows in each)
            lines.append(f"| {name} | {shown} |")
    yield from lines if len(lines) > 2 else []


def point(rows: list[dict[str, Any]], seeds: int) -> str:
    if not rows:
        return "-"
    after = [row["after"] for row in rows]
    additions = statistics.mean(row["additions"] for row in after)
    return f"{spread([row['accuracy'] for row in after], seeds)} ({additions:.2f})"


def write(text: str) -> None:
    begin, end = MARKS
    page = PAGE.read_text()
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--members", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--time-steps", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=55_000, help="of training, of which it has")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="of files written each epoch")
    parser.add_argument("--print", action="store_true", dest="only_print")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    wrong = [part for part in given.parts if part not in PARTS]
    if wrong:
        parser.error(f"there is no part {wrong[0]!r}; known: {', '.join(PARTS)}")
    if not (given.only_print or given.write):
        for cell in cells(given.parts or list(PARTS), given):
            if cell.key in stored(cell.network):
                continue
            reason = unreachable(cell)
            if reason is not None:
                print(f"{cell.network} {cell.key}: {reason}", flush=True)
                continue
            result = measure(cell, given.resume)
            store(cell, result)
            after = {k: v for k, v in result["after"].items() if k != "parts"}
            print(f"{cell.network} {cell.key}: {after}, {result['seconds']:.0f} s", flush=True)
    text = tables(given)
    if given.write:
        write(text)
    print(text)


if __name__ == "__main__":
    main()
