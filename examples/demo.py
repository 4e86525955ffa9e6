"""Trained networks as spiking networks: how well they agree with their sources, and what they add.

    python examples/demo.py [--networks rnet vgg vit ...] [--plans "8 x 1" ...] [--plot demo]

R-Net, the second stage of the face detector MTCNN, has the weights that others trained; the other
networks are examples of this repository. Nothing is trained, tuned or downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo_parts import Row, Task

BEGUN = time.monotonic()
NETWORKS = ("rnet", "vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
PLANS = ("8 x 1", "6 x 1", "4 x 1", "8 x 1 dense", "1 x 32 dense")
HEAD = (
    f"{'network':<10}{'neurons':<14}{'source':>9}{'spiking':>10}{'agreement':>12}{'error':>9}"
    f"{'spikes':>8}{'additions':>11}"
)
LEGEND = """
neurons    members x time steps: so many signs at most for a sample; those that are not needed
           are left out, or all are sent (dense)
source     accuracy of the trained network, on test samples
spiking    accuracy of the spiking network, on the same
agreement  how often both decide alike; of R-Net also on the windows of a photograph
error      of the outputs, relative
spikes     of a neuron for a sample
additions  for each multiply-accumulate of the trained network"""
NEXT = (
    ("examples/quickstart.py", "check, convert, evaluate and save a network"),
    ("examples/report.py", "report.html: where a network errs, what it costs"),
    ("-m spikingjelly_signgd --help", "the same from the command line"),
)


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGUN:>5.1f} s  {text}", flush=True)


def python() -> str:
    """This interpreter, as it is called from the working folder: no environment need be active."""
    path = Path(sys.executable)
    inside = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)


def next_commands() -> str:
    commands = [(f"{python()} {command}", what) for command, what in NEXT]
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"  {command:<{width}}  {what}" for command, what in commands)


def measured(options: argparse.Namespace) -> tuple[list[Row], Task | None]:
    """A row for each plan of each network, and the task that has a photograph."""
    from demo_parts import NAMES, measure, task_of

    rows, photographed = [], None
    for name in options.networks:
        task = task_of(name, options.data, options.samples)
        photographed = task if task.unlabelled is not None else photographed
        parameters = sum(p.numel() for p in task.model.parameters())
        say(f"{NAMES[name]}, {parameters:,} parameters")
        for plan in options.plans:
            rows.append(measure(task, plan))
            say(f"  {plan}: {100 * rows[-1].agreement:.2f} % agreement")
    return rows, photographed


def table(rows: Sequence[Row]) -> str:
    from demo_parts import NAMES

    lines = [HEAD]
    for row in rows:
        accuracy = f"{100 * row.source_accuracy:>7.1f} %{100 * row.accuracy:>8.1f} %"
        told = f"{100 * row.agreement:>10.2f} %{row.error:>9.4f}"
        costs = f"{row.spikes:>8.2f}{row.additions:>11.2f}"
        lines.append(f"{NAMES[row.network]:<10}{row.plan:<14}{accuracy}{told}{costs}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = parser.add_argument
    given("--networks", nargs="+", choices=NETWORKS, default=["rnet", "vgg", "vit"])
    given("--plans", nargs="+", choices=PLANS, default=list(PLANS[:3]), help="members x time steps")
    given("--data", choices=("digits", "fashion"), default="digits", help="of the examples")
    given("--samples", type=int, default=10_000, help="test images of the examples, at most")
    given("--plot", type=Path, default=Path("demo"), help="the picture, without .png and .svg")
    options = parser.parse_args()
    say("loading torch and SpikingJelly")
    for category in (DeprecationWarning, FutureWarning):  # for the authors of what is imported
        warnings.filterwarnings("ignore", category=category)
    from demo_parts import draw, sg

    if missing := sg.backends()["cpu"]:
        say(f"slower than it could be: {missing}")
        warnings.filterwarnings("ignore", category=sg.KernelsWarning)  # says the same
    rows, photographed = measured(options)
    say("drawing")
    files = draw(rows, photographed, options.plot)
    print(f"\n{table(rows)}\n{LEGEND}\n\npicture: {files[0]}, {files[1]}\n")
    print(f"Try next:\n{next_commands()}")


if __name__ == "__main__":
    main()
