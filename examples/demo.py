"""Convert trained networks to spiking ones: how often they agree, and what they add for it.

    python examples/demo.py [--data digits | fashion] [--samples N] [--plot accuracy.png]

Nothing is trained, and so that it takes a minute nothing is tuned: the weights lie in
examples/weights, the digits come with scikit-learn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from data import Data, digits, fashion_mnist
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
CALIBRATION = 256
COUNTED = 100  # images on which spikes are counted
DRAWN = ("vgg", "convnext", "vit")
MEMBERS = (4, 6, 8)  # of the picture, all in one step
PLANS: dict[str, dict[str, Any]] = {
    "a sign or silence (default)": {},
    "always a sign, 8 in a step": {"dead_zone": 0, "time_steps": 1, "members": 8},
    "always a sign, 1 in a step": {"dead_zone": 0, "time_steps": 32},
}
HEAD = (
    f"{'network':<10}{'neurons':<29}{'m x T':>6}{'agreement':>12}{'error':>9}"
    f"{'spikes':>8}{'additions':>11}"
)


@dataclass(frozen=True)
class Row:
    """``spikes`` of one neuron and ``additions`` for each MAC of the source, means of an image."""

    evaluation: sg.Evaluation
    spikes: float
    additions: float


def measure(model: nn.Module, data: Data, samples: int, **plan: Any) -> Row:
    network = sg.convert(model, data.train.images[:CALIBRATION], tune=False, **plan)
    snn = sg.build(network, "spikingjelly")
    batches = list(zip(*(part[:samples].split(100) for part in data.test), strict=True))
    counted = count_operations(snn, data.test.images[: min(samples, COUNTED)])
    spikes = counted.spikes / counted.neurons
    return Row(sg.evaluate(snn, batches, reference=model), spikes, counted.additions_per_mac)


def print_row(network: str, neurons: str, plan: str, row: Row) -> None:
    agreement = 100 * (row.evaluation.agreement[-1] or 0)
    told = f"{agreement:>10.2f} %{row.evaluation.error[-1]:>9.4f}"
    sent = f"{row.spikes:>8.2f}{row.additions:>11.2f}"
    print(f"{network:<10}{neurons:<29}{plan:>6}{told}{sent}", flush=True)


def signgd_rows(name: str, data_name: str, data: Data, samples: int) -> None:
    model = load_network(name, data_name)
    for neurons, plan in PLANS.items():
        row = measure(model, data, samples, **plan)
        steps = row.evaluation.time_steps[-1]
        print_row(name, neurons, f"{8 if steps == 1 else 1} x {steps}", row)


def group_row(name: str, data_name: str, data: Data, samples: int) -> None:
    """A source network that was trained with QCFS activations of 8 levels, held against itself."""
    model = load_network(name, data_name, qcfs=8)
    row = measure(model, data, samples, method="group", time_steps=1)
    print_row(name, "group, trained for it", "8 x 1", row)


def draw(data_name: str, data: Data, samples: int, path: str) -> None:
    """Output error against additions, 4 to 8 signs in one step, with a dead zone and without."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, name in zip(("C0", "C1", "C2"), DRAWN, strict=True):
        model = load_network(name, data_name)
        for label, zone in (("a sign or silence", None), ("always a sign", 0.0)):
            plans = [{"time_steps": 1, "members": m, "dead_zone": zone} for m in MEMBERS]
            rows = [measure(model, data, samples, **plan) for plan in plans]
            line, fill = ("o-", color) if zone is None else ("s--", "none")
            x, y = [row.additions for row in rows], [row.evaluation.error[-1] or 0 for row in rows]
            axes.plot(x, y, line, color=color, mfc=fill, label=f"{name}, {label}")
    axes.set(xlim=(0, 8.5), yscale="log", ylabel="relative output error", title=(
        f"{data_name}: {', '.join(map(str, MEMBERS))} signs in one step, not tuned"))  # fmt: skip
    axes.set_xlabel("additions for each multiply-accumulate of the source")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--samples", type=int, default=10_000, help="test images, at most")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--plot", default="accuracy.png")
    options = parser.parse_args()
    data = digits() if options.data == "digits" else fashion_mnist()
    print("agreement: of the predictions with the source's; error: of the outputs, relative;")
    print("spikes: of one neuron for one image; additions: for each MAC of the source\n")
    print(HEAD)
    for name in options.networks:
        signgd_rows(name, options.data, data, options.samples)
    for name in ("vgg", "resnet"):
        group_row(name, options.data, data, options.samples)
    draw(options.data, data, options.samples, options.plot)
    print(f"\nplot: {options.plot}")


if __name__ == "__main__":
    main()
