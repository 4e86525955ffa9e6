"""What each file format holds of each kind of network, found by writing and verifying files.

    python benchmarks/export_table.py [--check]

Rewrites the table in docs/exports.md; with --check says whether it would change, exit code 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import digits  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.neurons.qcfs import QCFS  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "exports.md"
BEGIN, END = "<!-- made by benchmarks/export_table.py -->\n", "<!-- end -->\n"
SAMPLES = 2


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), activation(), nn.Linear(24, 24), activation(),
        nn.Linear(24, 10),
    )  # fmt: skip


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.act_left, self.act_right, self.head = QCFS(4), QCFS(4), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.act_left(self.left(x)), self.act_right(self.right(x))], 1)
        return self.head(both.flatten(1))


def qcfs() -> nn.Module:
    return QCFS(4)


def example(name: str, levels: int | None = None) -> Callable[[], nn.Module]:
    return lambda: load_network(name, "digits", qcfs=levels)


GROUP: dict[str, Any] = {"method": "group"}
# what is converted, how, and for how many steps
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "signGD, MLP of GELU": (lambda: mlp(nn.GELU), {}, 4),
    "signGD, vgg with max pooling": (example("vgg"), {}, 4),
    "signGD, resnet": (example("resnet"), {}, 4),
    "signGD, convnext": (example("convnext"), {}, 4),
    "signGD, mixer": (example("mixer"), {}, 4),
    "signGD, resmlp": (example("resmlp"), {}, 4),
    "signGD, input as Poisson spikes": (
        lambda: mlp(nn.GELU),
        {"input_coding": "poisson"},
        4,
    ),
    "signGD, 3 signs in a step, MLP of GELU": (lambda: mlp(nn.GELU), {"members": 3}, 2),
    "signGD, 8 signs or silence, MLP of GELU": (
        lambda: mlp(nn.GELU),
        {"members": 8, "dead_zone": 2 / 3},
        1,
    ),
    "group m = 4, MLP": (lambda: mlp(qcfs), GROUP, 1),
    "group m = 4, vgg with average pooling": (example("vgg", 4), GROUP, 1),
    "group m = 4, resnet": (example("resnet", 4), GROUP, 1),
    "group m = 4, concatenation": (Concatenated, GROUP, 1),
    "IF (m = 1), MLP": (lambda: mlp(qcfs), GROUP, 4),
    "IF (m = 1), vgg with average pooling": (example("vgg", 4), GROUP, 4),
    "IF (m = 1), resnet": (example("resnet", 4), GROUP, 4),
    "group m = 4, thresholds by channel, MLP of ReLU": (
        lambda: mlp(nn.ReLU),
        {**GROUP, "members": 4, "signed": False},
        2,
    ),
    "group m = 4, signed, MLP of ReLU": (
        lambda: mlp(nn.ReLU),
        {**GROUP, "members": 4, "signed": True},
        2,
    ),
    "group m = 4, vgg with max pooling": (example("vgg"), {**GROUP, "members": 4}, 2),
    "subgradient, MLP of ReLU": (lambda: mlp(nn.ReLU), {"method": "subgradient"}, 4),
    "group and signGD mixed": (
        lambda: mlp(qcfs),
        {"method": {"": "group", "4": "signgd"}},
        4,
    ),
}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "HDF5": ("x.h5", {}),
    "NIR exact": ("x.nir", {"mode": "exact"}),
    "NIR platform": ("x.nir", {"mode": "platform"}),
    "Lava group": ("x.net", {"profile": "group"}),
    "Lava if-soft": ("x.net", {"profile": "if-soft"}),
    "Lava if-hard": ("x.net", {"profile": "if-hard"}),
}


def outcome(network: sg.SpikingNetwork, images: Tensor, form: str) -> tuple[str, list[str]]:
    """A word for the cell, and what is lost or why it is refused."""
    name, options = FORMATS[form]
    if name.endswith(".net"):
        options = {**options, "calibration": images, "input_levels": 16}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        try:
            report = sg.export(network, path, **options)
        except sg.FormatError as error:
            return "refused", [general(str(error))]
        found = sg.verify(path, images[:SAMPLES], network=network, embed=False)
    assert found.checks[0].equal, found  # what the file holds is this network
    if name.endswith(".net"):
        lost = ["weights, thresholds and biases are rounded to 8-bit integers of one layer"]
        if form == "Lava if-hard":
            lost.append("the reset to zero drops what exceeds the threshold")
        return "integers", lost
    losses = list(getattr(report, "losses", ()))
    if losses:
        return "lossy", [general(loss) for loss in losses]
    assert found.ok, found
    return "exact", []


def general(text: str) -> str:
    """A message without the names of nodes: the first of several, names as *."""
    text = re.sub(r"^NIR cannot express this network:\n *", "", text).splitlines()[0]
    text = re.sub(r" \('[^)]*\)$", "", text)  # the nodes that lose something
    text = re.sub(r"^('[^']*') \(\w+ \w+\)", r"\1", text)
    return re.sub(r"'[^']*'", "`*`", text)


def table() -> str:
    images = digits().train.images[:64]
    notes: dict[str, int] = {}
    lines = ["| | " + " | ".join(FORMATS) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    for kind, (model, options, steps) in NETWORKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # levels and ranges are not the matter here
            dense = {"dead_zone": 0.0} if options.get("method", "signgd") == "signgd" else {}
            network = sg.convert(
                model().eval(), images, time_steps=steps, tune=False, **dense | options
            )
        cells = []
        for form in FORMATS:
            word, why = outcome(network, images, form)
            numbers = [notes.setdefault(text, len(notes) + 1) for text in why]
            marks = ", ".join(map(str, numbers))
            cells.append(f"{word} ({marks})" if marks else word)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {text}" for text, number in notes.items())]
    return "\n".join(lines) + "\n"


def page(made: str) -> str:
    head, rest = PAGE.read_text().split(BEGIN)
    return f"{head}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = page(table())
    if options.check:
        same = text == PAGE.read_text()
        print("docs/exports.md is up to date" if same else "docs/exports.md has to be made anew")
        return 0 if same else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
