"""One CNN trained from scratch with every kind of neuron: accuracy, spikes, additions, time.

    python benchmarks/from_scratch.py [--neurons IFNode ...] [--seeds 0 1 2] [--epochs 3]
    python benchmarks/from_scratch.py --surrogates
    python benchmarks/from_scratch.py --print | --write     --write of 3 epochs

The network and the recipe are those of ``examples/train_from_scratch.py``, for all the same. Each
cell is one training on Fashion-MNIST, read on all 10,000 test images; a cell that is there is not
computed again. Additions are counted for all in one way: each spike at each weight that it meets,
borders left out. What the first convolution makes of the image is real-valued, the same for all,
and counted by itself. Time is CPU time of one thread, of training steps taken in turns with
IFNode's.

``--surrogates`` trains signGD neurons on digits by the dithered gradient and by surrogates.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import real  # noqa: E402
from data import digits, fashion_mnist  # noqa: E402
from train import accuracy, batches  # noqa: E402
from train_from_scratch import (  # noqa: E402
    BATCH,
    CNN,
    EPOCHS,
    NEURONS,
    EachStep,
    SpikingJellyCNN,
    make_model,
    make_optimizer,
    train,
    train_step,
)

RESULTS = ROOT / "benchmarks/results/from_scratch"
PAGE = ROOT / "docs/tutorials/training.md"
SEEDS = (0, 1, 2)
CONTROL = "IFNode"
COUNTED = 1000  # test images, in batches of 250
STEPS = 40  # timed, after 5


def spiking(model: CNN) -> CNN:
    """The model as it is run: QCFS activations become the group neurons that compute the same.

    In a new body: SpikingJelly remembers which modules of the old one it resets.
    """
    from spikingjelly_signgd import QCFS, GroupNode

    def run_as(part: nn.Module) -> nn.Module:
        if not isinstance(part, QCFS):
            return part
        return GroupNode(part.levels, part.v_threshold.item(), step_mode="m")

    if any(isinstance(part, QCFS) for part in model.body):
        model.body = nn.Sequential(*map(run_as, model.body))
    return model


@torch.no_grad()
def counted(model: CNN, images: Tensor) -> dict[str, float]:
    """Spikes and additions of all steps, and the multiply-accumulates of the image and of the
    network without spikes, of one image."""
    reset(model)
    current = model.stem(images)
    x = current.expand(model.time_steps, *current.shape)
    macs = float(meetings(model.stem, images[0]).sum())
    total = {"neurons": 0.0, "spikes": 0.0, "additions": 0.0, "input_macs": macs, "macs": macs}
    parts = list(model.body)
    for neuron, behind in zip(parts[::2], parts[1::2], strict=True):
        sent, x = heard(neuron, x)
        each = meetings(behind, x[0, 0])
        total["neurons"] += sent[0, 0].numel()
        total["spikes"] += float(sent.sum()) / len(images)
        total["additions"] += float((sent * each).sum()) / len(images)
        total["macs"] += float(each.sum())
        x = behind(x)
    return total


def heard(neuron: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The spikes that neurons send, [T, B, ...], each digit or member one, and what they pass on.

    Ours tell what they send; those of other libraries pass on 0 or 1.
    """
    from spikingjelly_signgd.neurons.spikes import hear, joined

    with hear() as told:
        y = neuron(x)
    y = y[0] if isinstance(y, tuple) else y  # Norse's come with their state
    events = joined(told)
    return (y != 0 if events is None else events.spikes).double(), y


@torch.enable_grad()
def meetings(layers: nn.Module, like: Tensor) -> Tensor:
    """How many weights each value of an image meets in these layers: the gradient of their sums,
    all weights one."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)  # folded into the weights
    kept = [copy.deepcopy(part) for part in layers.children() if not isinstance(part, norms)]
    for part in kept:
        for parameter in part.parameters():
            nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    x = torch.zeros(1, *like.shape, requires_grad=True)
    (each,) = torch.autograd.grad(nn.Sequential(*kept)(x).sum(), x)
    return each[0]


def reset(model: CNN) -> None:
    from spikingjelly.activation_based import functional

    functional.reset_net(model.body)


def trained(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """A cell: one training, measured on the test images."""
    data = fashion_mnist()
    torch.manual_seed(seed)
    model = make_model(name)
    began = time.process_time()
    train(model, data.train, epochs)
    seconds = time.process_time() - began
    model = spiking(model)
    reached = accuracy(model, data.test)
    parts = [counted(model, part) for part in data.test.images[:COUNTED].split(250)]
    means = {key: statistics.fmean(part[key] for part in parts) for key in parts[0]}
    return {"accuracy": reached, "epochs": epochs, "seconds": seconds, **means}


def timed(name: str) -> dict[str, Any]:
    """CPU seconds of a training step, and those of IFNode's, taken in turns."""
    split = fashion_mnist().train
    torch.manual_seed(0)
    given = [(model, make_optimizer(model)) for model in (make_model(name), make_model(CONTROL))]
    pairs = []
    for (images, labels), _ in zip(batches(split, BATCH), range(STEPS + 5), strict=False):
        pairs.append([step_seconds(*each, images, labels) for each in given])
    own, control = zip(*pairs[5:], strict=True)
    ratio = statistics.median(a / b for a, b in zip(own, control, strict=True))
    return {
        "step": statistics.median(own),
        "control": statistics.median(control),
        "ratio": ratio,
        "batch": BATCH,
    }


def step_seconds(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    began = time.process_time()
    train_step(model, optimizer, images, labels)
    return time.process_time() - began


def cell_of(seed: int, epochs: int) -> str:
    """Of ``EPOCHS`` they are called by the seed alone."""
    return f"seed {seed}" if epochs == EPOCHS else f"seed {seed} epochs {epochs}"


def cells(name: str) -> dict[str, Any]:
    return real.cells(RESULTS / f"{name}.json")


def keep(name: str, cell: str, values: Mapping[str, Any]) -> None:
    real.keep(RESULTS / f"{name}.json", cell, values)


def run(names: Sequence[str], seeds: Sequence[int], epochs: int) -> None:
    """The cells that are not there."""
    for seed in seeds:
        for name in names:
            cell = cell_of(seed, epochs)
            if cell not in cells(name):
                keep(name, cell, trained(name, seed, epochs))
                print(name, cell, json.dumps(cells(name)[cell]), flush=True)
    for name in names:
        if "time" not in cells(name):
            keep(name, "time", timed(name))
            print(name, "time", json.dumps(cells(name)["time"]), flush=True)


def table(epochs: int = EPOCHS) -> Iterator[str]:
    heads = ("neuron", "simulator", "T", "test accuracy, %", "spikes of an image", "additions")
    yield f"| {' | '.join(heads)} | to IFNode's | training step, ms | to IFNode's |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    control = seeds_of(CONTROL, epochs)
    for name, row in NEURONS.items():
        if found := seeds_of(name, epochs):
            timing = cells(name).get("time")
            shown = f"{1000 * timing['step']:.1f} | {timing['ratio']:.2f}" if timing else "– | –"
            yield (
                f"| {row.title} | {row.simulator} | {row.time_steps} | {spread(found)} | "
                f"{costs(found, control, row.spikes)} | {shown} |"
            )


def seeds_of(name: str, epochs: int) -> list[dict[str, Any]]:
    """Of a training of so many epochs."""
    found = [(cell.split(), values) for cell, values in cells(name).items()]
    return [
        values
        for words, values in found
        if words[0] == "seed" and " ".join(words) == cell_of(int(words[1]), epochs)
    ]


def spread(found: Sequence[Mapping[str, Any]]) -> str:
    """The mean, and the range of several seeds."""
    values = [each["accuracy"] for each in found]
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def costs(
    found: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]], spikes: bool
) -> str:
    if not spikes:
        return "– | – | –"
    mean = {k: statistics.fmean(each[k] for each in found) for k in ("spikes", "additions")}
    ratio = "–"
    if control:
        ratio = f"{mean['additions'] / statistics.fmean(e['additions'] for e in control):.2f}"
    return f"{mean['spikes']:,.0f} | {mean['additions']:,.0f} | {ratio}"


# -- gradients of signGD neurons on digits --------------------------------------------------------

GRADIENTS = ("dithered", "Sigmoid", "ATan", "PiecewiseQuadratic", "Erf", "SoftSign")
FORMS = {"members=1, T = 4": (1, 4), "members=4, T = 1": (4, 1), "default, T = 1": (None, 1)}
DIGITS_EPOCHS = 10
DEPTH, WIDTH = 6, 32


def digits_model(gradient: str, members: int | None, time_steps: int) -> CNN:
    """[B, 1, 8, 8] to [B, 10], DEPTH layers of signGD neurons; ``gradient`` is the default or a
    surrogate of SpikingJelly by name, with its own default width."""
    from spikingjelly.activation_based import surrogate

    from spikingjelly_signgd import SignGDNode

    def neuron() -> nn.Module:
        function = None if gradient == "dithered" else getattr(surrogate, gradient)()
        return SignGDNode(members=members, surrogate_function=function, step_mode="m")

    def dense(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)]

    hidden = [part for _ in range(DEPTH - 1) for part in (neuron(), EachStep(*dense(WIDTH)))]
    body = nn.Sequential(*hidden, neuron(), EachStep(nn.Linear(WIDTH, 10)))
    model = SpikingJellyCNN(body, time_steps, last=True)
    model.stem = nn.Sequential(nn.Flatten(), *dense(64))
    return model


def run_surrogates(seeds: Sequence[int]) -> None:
    data = digits()
    for seed in seeds:
        for gradient in GRADIENTS:
            for form, (members, time_steps) in FORMS.items():
                cell = f"{gradient}, {form}, seed {seed}"
                if cell in cells("surrogates"):
                    continue
                torch.manual_seed(seed)
                model = digits_model(gradient, members, time_steps)
                with contextlib.redirect_stdout(None):
                    train(model, data.train, DIGITS_EPOCHS)
                keep("surrogates", cell, {"accuracy": accuracy(model, data.test)})
                print(cell, cells("surrogates")[cell], flush=True)


def surrogate_table() -> Iterator[str]:
    yield "| gradient | " + " | ".join(FORMS) + " |"
    yield "|---" * (1 + len(FORMS)) + "|"
    for gradient in GRADIENTS:
        row = []
        for form in FORMS:
            begins = f"{gradient}, {form}, seed"
            found = [v for cell, v in cells("surrogates").items() if cell.startswith(begins)]
            row.append(spread(found) if found else "–")
        yield f"| {gradient} | {' | '.join(row)} |"


def page(text: str) -> str:
    """The page with the tables of the cells that are there."""
    for name, lines in (("--print", table()), ("--print --surrogates", surrogate_table())):
        begin = f"<!-- python benchmarks/from_scratch.py {name} -->"
        end = f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        shown = "\n".join(lines)
        text = f"{before}{begin}\n\n{shown}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--neurons", nargs="+", choices=NEURONS, default=list(NEURONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--surrogates", action="store_true", help="gradients on digits")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="tables into docs/tutorials/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.write:
        PAGE.write_text(page(PAGE.read_text()))
    elif given.print:
        print("\n".join(surrogate_table() if given.surrogates else table(given.epochs)))
    elif given.surrogates:
        run_surrogates(given.seeds)
    else:
        run(given.neurons, given.seeds, given.epochs)


if __name__ == "__main__":
    main()
