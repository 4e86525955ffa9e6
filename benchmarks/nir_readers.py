"""Which tool computes what a network computes, of its NIR file: the table of docs/nir.md.

    python benchmarks/nir_readers.py [--python READER=PYTHON ...] [--write]

Each network runs one step, untuned, and its file is written for each reader, ``write_nir(...,
reader=...)``. The reader runs in a process of its own: in this environment, or in one that
``--python sinabs=.../bin/python`` names. A cell says

exact           all outputs of all 64 inputs are equal to the bit
rounding        they differ by less than 1e-6 of the largest output, as sums in another order do
OTHER           in how many of the inputs outputs differ by more
refused (n)     nothing is written; the reason stands below the table
not run         the reader is not there
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "examples")]

from data import digits  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.exporters.nir import NirRunner, write_nir  # noqa: E402
from spikingjelly_signgd.exporters.nir.readers import READERS, UNABLE  # noqa: E402

PAGE = ROOT / "docs" / "nir.md"
MARKS = "<!-- of benchmarks/nir_readers.py -->", "<!-- end -->"
PLANS: dict[str, dict[str, Any]] = {
    "group, m = 1": {"method": "group", "members": 1},
    "group, m = 4": {"method": "group", "members": 4},
    "group, m = 8": {"method": "group", "members": 8},
    "a sign or silence, m = 1": {"members": 1},
    "a sign or silence, m = 3": {"members": 3},
}
ROUNDING = 1e-6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.one(x))
        return self.head(nn.functional.relu(self.two(x) + x).mean((2, 3)))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    relu6 = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU6(),
        nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip
    made: dict[str, nn.Module] = {
        "MLP, ReLU": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        "MLP, GELU": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10)),
        "convolution, average pooling": pooled,
        "convolutions, ReLU6": relu6,
        "residual, depth-wise": Residual(),
        "vgg of the examples, max pooling": load_network("vgg", "digits"),
        "resnet of the examples, QCFS": load_network("resnet", "digits", qcfs=8),
    }
    return {name: model.eval() for name, model in made.items()}


def converted(model: nn.Module, images: Tensor, plan: dict[str, Any]) -> sg.SpikingNetwork | str:
    """The network, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sg.convert(model, images, time_steps=1, tune=False, **plan)
        except sg.SignGDError as error:
            return str(error)


def read(reader: str, folder: Path, python: str) -> None:
    """Runs the files of a folder in their reader; what comes of it lies beside each."""
    if reader == "nir":
        for path in folder.glob("*.nir"):
            y = NirRunner(path).run(np.load(path.with_suffix(".npy")), 1)["output"][0]
            np.save(path.with_suffix(".out.npy"), y)
        return
    command = [python, str(ROOT / "tests" / "reading.py"), reader, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def cell(path: Path, want: np.ndarray) -> str:
    failed = path.with_suffix(".error")
    if failed.exists():
        return failed.read_text().splitlines()[0]
    y = np.load(path.with_suffix(".out.npy"))
    if y.shape != want.shape:
        return f"another shape, {list(y.shape)}"
    if np.array_equal(y, want):
        return "exact"
    other = (np.abs(y - want) > ROUNDING * np.abs(want).max()).any(1)
    return f"{int(other.sum())} of {len(want)}" if other.any() else "rounding"


def there(reader: str, pythons: dict[str, str]) -> bool:
    return reader in ("nir", *pythons) or find_spec(reader) is not None


def column(reader: str, made: dict[str, Any], x: Tensor, pythons: dict[str, str]) -> dict[str, str]:
    """A reader's cells, by row; of what is refused the reason, with "refused: " before it."""
    cells: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        paths = {row: Path(name) / f"{i:03}.nir" for i, row in enumerate(made)}
        for row, network in made.items():
            try:
                write_nir(network, paths[row], reader=reader)
                np.save(paths[row].with_suffix(".npy"), x.numpy())
            except sg.FormatError as error:
                cells[row] = f"refused: {reason(error)}"
        if not there(reader, pythons):
            return cells | {row: "not run" for row in made if row not in cells}
        read(reader, Path(name), pythons.get(reader, sys.executable))
        for row, network in made.items():
            if row not in cells:
                want = sg.run(sg.build(network), x, 1)[1].numpy()
                cells[row] = cell(paths[row], want)
    return cells


def reason(error: Exception) -> str:
    first = str(error).splitlines()[1].strip()
    return first.split(": ", 1)[1]


def table(pythons: dict[str, str]) -> str:
    data = digits()
    images, x = data.train.images[:256], data.test.images[:64]
    made: dict[str, Any] = {}
    left_out: dict[str, list[str]] = {}
    for name, model in networks().items():
        for plan_name, plan in PLANS.items():
            network = converted(model, images, plan)
            if isinstance(network, str):
                left_out.setdefault(name, []).append(plan_name)
            else:
                made[f"{name}; {plan_name}"] = network
    columns = {reader: column(reader, made, x, pythons) for reader in READERS}
    reasons: list[str] = []

    def shown(text: str) -> str:
        if not text.startswith("refused: "):
            return text
        if text not in reasons:
            reasons.append(text)
        return f"refused ({1 + reasons.index(text)})"

    heads = [f"{reader.name} {reader.version}" for reader in READERS.values()]
    lines = ["| network; neurons | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    lines += [
        f"| {row} | " + " | ".join(shown(columns[reader][row]) for reader in READERS) + " |"
        for row in made
    ]
    lines += ["", *(f"{i}. {text[9:]}" for i, text in enumerate(reasons, 1)), ""]
    for name, plans in left_out.items():
        lines.append(f"{name} has no plan for {', '.join(plans)}: group neurons are of ReLU.")
    lines += ["", "No file is written for", ""]
    lines += [f"- {name}: {why}." for name, why in UNABLE.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", action="append", default=[], metavar="READER=PYTHON")
    parser.add_argument("--write", action="store_true", help="put the table into docs/nir.md")
    given = parser.parse_args()
    text = table(dict(item.split("=", 1) for item in given.python))
    print(text)
    if given.write:
        before, rest = PAGE.read_text().split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
