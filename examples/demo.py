"""Convert trained networks to spiking ones, and show their accuracy at every number of steps.

    python examples/demo.py [--data digits | fashion] [--samples N] [--plot accuracy.png]

Nothing is trained: the weights lie in examples/weights, the digits come with scikit-learn.
"""

from __future__ import annotations

import argparse

from data import Data, digits, fashion_mnist
from networks import load_network

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import plot_accuracy

SIGNGD = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
TIME_STEPS = (1, 2, 4, 8, 16)
ITERATIONS = 40  # of tuning; left to itself it takes more


def evaluate(name: str, data_name: str, data: Data, samples: int, members: int) -> sg.Evaluation:
    """One network converted and tuned anew for each T, and measured after T steps."""
    model, images = load_network(name, data_name), data.train.images[:256]
    batches = list(zip(*(part[:samples].split(100) for part in data.test), strict=True))
    result = None
    for steps in TIME_STEPS if members == 1 else TIME_STEPS[:3]:
        network = sg.convert(model, images, time_steps=steps, members=members, tune=False)
        network = sg.tune(network, images, iterations=ITERATIONS)
        snn = sg.build(network, "spikingjelly")
        row = sg.evaluate(snn, batches, steps, reference=model)
        result = row if result is None else result + row
    assert result is not None
    return result


def evaluate_group(
    name: str, levels: int, data_name: str, data: Data, samples: int
) -> sg.Evaluation:
    """A QCFS network with m T = L where T divides L."""
    model = load_network(name, data_name, qcfs=levels)
    batches = list(zip(*(part[:samples].split(100) for part in data.test), strict=True))
    result = None
    for steps in (1, 2, 4, 8):
        network = sg.convert(model, data.train.images[:256], method="group", time_steps=steps)
        row = sg.evaluate(sg.build(network, "spikingjelly"), batches, steps, reference=model)
        result = row if result is None else result + row
    assert result is not None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--samples", type=int, default=10_000, help="test images, at most")
    parser.add_argument("--plot", default="accuracy.png")
    options = parser.parse_args()
    data = digits() if options.data == "digits" else fashion_mnist()
    results = {}
    print("test accuracy (%)         source" + "".join(f"   T={t:<4}" for t in TIME_STEPS))
    for name in SIGNGD:
        label = f"{name}, signGD"
        results[label] = evaluate(name, options.data, data, options.samples, members=1)
        print_row(label, results[label])
    for name in ("vgg", "vit"):
        label = f"{name}, 4 signs a step"
        results[label] = evaluate(name, options.data, data, options.samples, members=4)
        print_row(label, results[label])
    for name in ("vgg", "resnet"):
        label = f"{name} QCFS L=8, group"
        results[label] = evaluate_group(name, 8, options.data, data, options.samples)
        print_row(label, results[label])
    plot = plot_accuracy(results)
    plot.axes.set_title(f"{options.data}: accuracy of the spiking networks (dashed: source)")
    plot.save(options.plot, dpi=130)
    print(f"\nplot: {options.plot}")


def print_row(label: str, result: sg.Evaluation) -> None:
    measured = dict(zip(result.time_steps, result.accuracy, strict=True))
    cells = "".join(
        f"   {100 * (measured[t] or 0):<6.2f}" if t in measured else "   -     " for t in TIME_STEPS
    )
    print(f"{label:<24}  {100 * (result.reference_accuracy or 0):<6.2f}{cells}", flush=True)


if __name__ == "__main__":
    main()
