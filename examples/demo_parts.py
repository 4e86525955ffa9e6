"""What the demo does: the networks, the measuring, the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import DATA
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from networks import load_network
from pretrained import faces, found, photograph, rnet, windows
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

torch.set_num_threads(1)  # for networks this small: several would wait for each other
NAMES = {"rnet": "R-Net", "vgg": "VGG", "resnet": "ResNet", "convnext": "ConvNeXt"}
NAMES |= {"mixer": "Mixer", "resmlp": "ResMLP", "vit": "ViT"}
PLANS: dict[str, dict[str, Any]] = {
    "8 x 1": {"members": 8, "time_steps": 1},
    "6 x 1": {"members": 6, "time_steps": 1},
    "4 x 1": {"members": 4, "time_steps": 1},
    "8 x 1 dense": {"members": 8, "time_steps": 1, "dead_zone": 0},
    "1 x 32 dense": {"members": 1, "time_steps": 32, "dead_zone": 0},
}
CALIBRATION = 256
COUNTED = 100  # samples on which spikes are counted
NO_FACE, EVERY = "coffee", 10  # a photograph of which every 10th window calibrates


@dataclass(frozen=True)
class Task:
    """A trained network, what calibrates it, and labelled samples that measure it."""

    name: str
    model: nn.Module
    calibration: Tensor  # [N, ...]
    test: tuple[Tensor, Tensor]  # samples [N, ...] and labels [N]
    unlabelled: Tensor | None = None  # [M, ...]: agreement is measured on these, too

    def source(self) -> Tensor:
        """The outputs of the trained network for the unlabelled samples."""
        with torch.no_grad():
            return self.model(self.unlabelled)


@dataclass(frozen=True)
class Row:
    """What one plan of a network gives; ``outputs`` are those for the unlabelled samples."""

    network: str
    plan: str
    source_accuracy: float
    accuracy: float
    agreement: float
    error: float
    spikes: float
    additions: float
    outputs: Tensor | None


def task_of(name: str, data_name: str, samples: int) -> Task:
    if name == "rnet":
        return face_detector()
    data, model = DATA[data_name](), load_network(name, data_name)
    test = (data.test.images[:samples], data.test.labels[:samples])
    return Task(name, model, data.train.images[:CALIBRATION], test)


def face_detector() -> Task:
    """R-Net: half of the faces calibrates, half measures; so does one photograph, and another."""
    images, labels = faces()
    calibration = torch.cat([images[::2], windows(photograph(NO_FACE)).images[::EVERY]])
    test, cut = (images[1::2], labels[1::2]), windows(photograph()).images
    return Task("rnet", rnet(), calibration, test, cut)


# -- measuring ------------------------------------------------------------------------------------


def measure(task: Task, plan: str) -> Row:
    network = sg.convert(task.model, task.calibration, tune=False, **PLANS[plan])
    snn = sg.build(network, "spikingjelly")
    batches = list(zip(*(part.split(100) for part in task.test), strict=True))
    result = sg.evaluate(snn, batches, reference=task.model)
    counted = count_operations(snn, task.test[0][:COUNTED])
    agreement, outputs = result.agreement[-1] or 0.0, None
    if task.unlabelled is not None:
        outputs = sg.run(snn, task.unlabelled, network.time_steps)[network.time_steps]
        agreement = _with_unlabelled(task, agreement, outputs)
    return Row(
        task.name,
        plan,
        result.reference_accuracy or 0.0,
        result.accuracy[-1] or 0.0,
        agreement,
        result.error[-1] or 0.0,
        counted.spikes / counted.neurons,
        counted.additions_per_mac,
        outputs,
    )


def _with_unlabelled(task: Task, agreement: float, outputs: Tensor) -> float:
    """Agreement over the labelled samples and those of ``outputs`` [M, classes]."""
    labelled, unlabelled = len(task.test[0]), len(outputs)
    alike = float((outputs.argmax(1) == task.source().argmax(1)).sum())
    return (agreement * labelled + alike) / (labelled + unlabelled)


# -- the picture ----------------------------------------------------------------------------------


def draw(rows: Sequence[Row], task: Task | None, path: Path) -> list[Path]:
    """Errors against additions, and the faces of ``task``, to ``path`` with .png and with .svg."""
    figure = Figure(figsize=(9.6, 4.2) if task else (5.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if task else 1, squeeze=False)[0]
    draw_errors(axes[-1], rows)
    if task:
        draw_faces(axes[0], task, next(row for row in rows if row.network == task.name))
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=160)
    return files


def draw_errors(axes: Any, rows: Sequence[Row]) -> None:
    """Error against additions: a line for each network, its name at the end, and on that to the
    right the plans."""
    rightmost = max(rows, key=lambda row: row.additions).network
    offset = {"xytext": (8, -3), "textcoords": "offset points"}
    for i, name in enumerate(dict.fromkeys(row.network for row in rows)):
        mine = sorted((r for r in rows if r.network == name), key=lambda row: row.additions)
        color = f"C{i}"
        axes.plot([r.additions for r in mine], [r.error for r in mine], "o-", color=color)
        for row in mine if name == rightmost else mine[-1:]:
            label = NAMES[name] if row is mine[-1] else ""
            label = ", ".join(filter(None, (label, row.plan if name == rightmost else "")))
            axes.annotate(label, (row.additions, row.error), color=color, **offset)
    axes.set(yscale="log", ylabel="relative error of the outputs")
    axes.set_xlabel("additions for each multiply-accumulate of the source")
    axes.set_xlim(0, 1.3 * max(row.additions for row in rows))
    axes.spines[["top", "right"]].set_visible(False)


def draw_faces(axes: Any, task: Task, row: Row) -> None:
    """The photograph with the windows that the source and the spiking network take for a face."""
    assert row.outputs is not None
    image = photograph()
    boxes = windows(image).boxes
    axes.imshow(image.permute(1, 2, 0).byte().numpy())
    axes.set_axis_off()
    for outputs, color, line in ((task.source(), "white", "-"), (row.outputs, "C1", "--")):
        for left, top, side in found(outputs, boxes).tolist():
            axes.add_patch(Rectangle((left, top), side, side, fill=False, ec=color, ls=line, lw=2))
    axes.set_title("face found by R-Net (white) and by the spiking R-Net (dashed)", fontsize=9)
