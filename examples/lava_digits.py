"""Small digits networks for Lava: train, convert, write netx files, print the table of accuracies.

    python examples/lava_digits.py [--lava PYTHON] [--samples N] [--folder DIR]
    python examples/lava_digits.py --train

With ``--lava``, the Python of an environment that ``tests/lava/install.sh`` made (or LAVA_PYTHON),
the files also run in Lava, and their spikes are compared with the integer runner's, cell by cell.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from data import Data, digits
from networks import WEIGHTS
from torch import nn

LEVELS = 4
SEEDS = {"mlp": 0, "conv": 0, "gelu": 0}
# profile, members, time steps: m T = L, and the reset to zero with and without time to even out
PROFILES = (
    ("group", 4, 1),
    ("group", 2, 2),
    ("group-graded", 4, 1),
    ("if-soft", 1, 4),
    ("if-hard", 1, 4),
    ("if-hard", 1, 16),
)


def make(name: str) -> nn.Module:
    """[B, 1, 8, 8] to 10 logits: "mlp" and "conv" with QCFS, "gelu" for signGD neurons."""
    from spikingjelly_signgd.neurons.qcfs import QCFS

    qcfs = partial(QCFS, LEVELS)
    if name == "conv":
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), qcfs()),
            nn.AvgPool2d(2),
            *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), qcfs()),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    activation = nn.GELU if name == "gelu" else qcfs
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        activation(),
        nn.Linear(64, 64),
        activation(),
        nn.Linear(64, 10),
    )


def weights_path(name: str) -> Path:
    return WEIGHTS / f"lava_{name}_digits.safetensors"


def load(name: str) -> nn.Module:
    """The trained network, in eval mode."""
    from safetensors.torch import load_file

    path = weights_path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"load: {path} is absent. Run `python examples/lava_digits.py --train`."
        )
    network = make(name)
    network.load_state_dict(load_file(path))
    return network.eval()


def train(name: str, data: Data) -> None:
    """Trains one network and writes its file; the epoch is chosen on validation."""
    from safetensors.torch import save
    from train import Recipe, accuracy, fit

    torch.manual_seed(SEEDS[name])
    network = make(name)
    r = Recipe(epochs=40, learning_rate=4e-3, weight_decay=0.05, batch=32, shift=0, flip=False)
    epoch, validation = fit(network, data, r, name)
    test = accuracy(network, data.test)
    print(f"{name} epoch {epoch} validation {validation:.2f} test {test:.2f}")
    path = weights_path(name)
    metadata = {
        "command": "python examples/lava_digits.py --train",
        "seed": str(SEEDS[name]),
        "chosen_epoch": str(epoch),
        "validation_accuracy": f"{validation:.2f}",
        "test_accuracy": f"{test:.2f}",
    }
    partial_path = path.with_suffix(f".{os.getpid()}.partial")
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    partial_path.write_bytes(save(tensors, metadata))
    os.replace(partial_path, path)


def table(data: Data, folder: Path, python: str | None, samples: int) -> None:
    """One row for each network and profile: the same test images in four computations.

    "spiking" is the network that ``convert`` returned, in floating point; "integer" the file, by
    the integer runner; "Lava" the first ``samples`` of the images, and "cells" how many of their
    (neuron, step) spikes differ between the two.
    """
    import spikingjelly_signgd as sg
    from spikingjelly_signgd.exporters.lava import write_netx
    from spikingjelly_signgd.plugins.lava_remote import verify_netx

    images, labels = data.test
    print(
        f"test accuracy (%)               source  spiking  integer  agree  Lava ({samples})   cells"
    )
    for name in ("mlp", "conv"):
        model = load(name)
        for profile, members, steps in PROFILES:
            network = sg.convert(
                model, data.train.images, method="group", members=members, time_steps=steps
            )
            path = folder / f"{name}_{profile}_m{members}_T{steps}.net"
            # digits have 17 grey levels, so the input is exact
            report = write_netx(
                network,
                path,
                profile=profile,
                input_levels=16,
                calibration=data.train.images,
                samples=(images, labels),
            )
            measured = sg.evaluate(
                sg.build(network, "spikingjelly"), [(images, labels)], steps, reference=model
            )
            row = [measured.reference_accuracy, measured.accuracy[0], report.accuracy_integer]
            cells = "".join(f"{100 * (value or 0):>9.2f}" for value in [*row, report.agreement])
            found = "        -         -"
            if python is not None:
                check = verify_netx(
                    path,
                    images[:samples].numpy(),
                    labels[:samples].numpy(),
                    python=python,
                    timeout=60 + 5 * samples,
                )
                accuracy = 100 * (check.accuracy or 0)
                found = f"{accuracy:>9.2f}  {sum(check.wrong)} of {sum(check.cells)}"
            label = f"{name} {profile} m={members} T={steps}"
            print(f"{label:<29}{cells}{found}", flush=True)


def signgd(data: Data, python: str, samples: int, folder: Path) -> None:
    """A network of GELU as Lava processes, its outputs against torch at every step."""
    import spikingjelly_signgd as sg
    from spikingjelly_signgd.plugins.lava_remote import run_signgd

    model = load("gelu").double()
    images, labels = data.test.images[:samples].double(), data.test.labels[:samples]
    network = sg.convert(model, data.train.images.double(), time_steps=32, tune=False)
    sg.save(network, folder / "gelu.h5")
    _, outputs = run_signgd(
        folder / "gelu.h5",
        images.numpy(),
        time_steps=32,
        python=python,
        timeout=60 + 5 * samples,
    )
    steps = tuple(range(1, 33))
    found = sg.run(sg.build(network, "spikingjelly"), images, steps)
    error = max(
        float((found[t] - torch.from_numpy(outputs[..., t - 1])).abs().max()) for t in steps
    )
    right = float((torch.from_numpy(outputs[..., -1]).argmax(1) == labels).double().mean())
    source = float((model(images).argmax(1) == labels).double().mean())
    print(
        f"gelu signGD T=32, {samples} images: source {100 * source:.2f}, Lava {100 * right:.2f}; "
        f"largest difference from torch at any step {error:.1e}"
    )


def main() -> None:
    import spikingjelly_signgd as sg

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train the networks again")
    parser.add_argument("--lava", metavar="PYTHON", default=os.environ.get("LAVA_PYTHON"))
    parser.add_argument("--samples", type=int, default=20, help="test images that run in Lava")
    parser.add_argument(
        "--folder", type=Path, help="where the files are kept; by default they are not"
    )
    options = parser.parse_args()
    data = digits()
    if options.train:
        for name in SEEDS:
            train(name, data)
        return
    warnings.simplefilter("ignore", sg.LevelsWarning)  # one row has m T other than L on purpose
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table(data, folder, options.lava, options.samples)
        if options.lava is not None:
            signgd(data, options.lava, options.samples, folder)


if __name__ == "__main__":
    main()
