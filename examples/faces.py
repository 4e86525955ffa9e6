"""MTCNN's P-Net and R-Net as spiking networks, and a face detector that runs with them.

    python examples/faces.py [--plans 8x1 6x2 ...] [--tune] [--samples 2000]

The weights come in the package facenet-pytorch, the photographs with scikit-image and matplotlib:
an astronaut, Grace Hopper, and 100 faces of Labeled Faces in the Wild. Others calibrate. A decision
is whether a window is a face, by MTCNN's own thresholds:

    same      share of candidates on which the spiking network decides as the source does
    recall    of the windows that the source takes for a face
    faces     whether MTCNN, with both spiking networks in place of its own, finds the same faces:
              as many, and each overlapping by at least half of the union

Each plan goes to benchmarks/results/real/faces.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import real
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg

THRESHOLDS = {"pnet": 0.6, "rnet": 0.7}  # MTCNN's own
FACTOR = 0.709  # from one image of the pyramid to the next
TESTED = ("astronaut", "grace_hopper")
WINDOW = 96  # side of the crops that P-Net is measured on; it sees windows of 12
SIZES = {"pnet": [(3, 40, 60)], "rnet": []}  # others, at which convert checks what it captured
HEAD = (
    f"{'network':<8}{'plan':<18}{'same':>10}{'recall':>9}{'error':>8}{'spikes':>8}"
    f"{'additions':>11}{'convert s':>11}"
)


def detector() -> Any:
    """MTCNN as its users have it, but that it returns all faces."""
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, device=torch.device("cpu")).eval()


def normal(x: Tensor) -> Tensor:
    """As MTCNN feeds its networks."""
    return (x - 127.5) / 128


def grid_of_faces() -> Tensor:
    """100 faces of LFW, 25 x 25 and grey, twice as large in rows of ten: [3, 500, 500] uint8."""
    from skimage import data

    faces = torch.from_numpy(data.lfw_subset()[:100]).float()
    faces = 255 * (faces / faces.amax((1, 2), keepdim=True)).clamp(0, 1)
    large = F.interpolate(faces[:, None], scale_factor=2, mode="bilinear")[:, 0]
    rows = large.reshape(10, 10, 50, 50).permute(0, 2, 1, 3).reshape(500, 500)
    return rows.round().to(torch.uint8).expand(3, -1, -1).contiguous()


# -- what the networks are shown ------------------------------------------------------------------


def candidates(mtcnn: Any, photographs: Sequence[Tensor]) -> Tensor:
    """What R-Net is shown where P-Net finds the windows, [N, 3, 24, 24], in random order."""
    seen: list[Tensor] = []
    hook = mtcnn.rnet.register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    for image in photographs:
        mtcnn.detect(image.permute(1, 2, 0).numpy())
    hook.remove()
    found = torch.cat(seen)
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


def scene(images: Sequence[Tensor], n: int, height: int, width: int, seed: int) -> Tensor:
    """n random crops of a size of the pyramid, as P-Net is shown them."""
    side = max(height, width)
    square = real.crops(images, n, side, seed, smallest=side)
    return normal(square)[..., :height, :width].contiguous()


# -- the spiking networks in the detector ---------------------------------------------------------


class Spiking(nn.Module):
    """A spiking network in place of P-Net or R-Net, for images of any size."""

    def __init__(self, source: nn.Module, network: sg.SpikingNetwork) -> None:
        super().__init__()
        self.source, self.snn = source, sg.build(network)

    def forward(self, x: Tensor) -> Any:
        boxes, probabilities = real.outputs(self.snn, x)
        return boxes, probabilities


def found_faces(mtcnn: Any, image: Tensor) -> Tensor:
    """Boxes [N, 4]."""
    boxes, _ = mtcnn.detect(image.permute(1, 2, 0).numpy())
    return torch.zeros(0, 4) if boxes is None else torch.from_numpy(boxes.astype("float64"))


def overlaps(have: Tensor, want: Tensor) -> Tensor:
    """Of each wanted box the largest intersection over union with one that there is."""
    from torchvision.ops import box_iou

    if not len(have) or not len(want):
        return torch.zeros(len(want))
    return box_iou(want, have).amax(1)


def in_detector(
    mtcnn: Any, networks: dict[str, Spiking], photographs: dict[str, Tensor]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each photograph the faces of MTCNN and of MTCNN with the spiking networks."""
    own = {name: getattr(mtcnn, name) for name in networks}
    for name, image in photographs.items():
        want = found_faces(mtcnn, image)
        try:
            for part, network in networks.items():
                setattr(mtcnn, part, network)
            have = found_faces(mtcnn, image)
        finally:
            for part, network in own.items():
                setattr(mtcnn, part, network)
        shared = overlaps(have, want)
        least = float(shared.min()) if len(shared) else 1.0
        row = {"faces": len(want), "found": len(have), "least_overlap": least}
        yield name, row | {"same": len(have) == len(want) and least >= 0.5}


# -- measuring ------------------------------------------------------------------------------------


def measured(
    name: str, source: nn.Module, network: sg.SpikingNetwork, test: Tensor
) -> dict[str, Any]:
    """Boxes and probabilities of all candidates: of P-Net these are all windows of its crops."""
    with torch.no_grad():
        want = source(test)
    snn = sg.build(network)
    have = real.outputs(snn, test, batch=64)
    mine, theirs = (out[1][:, 1] > THRESHOLDS[name] for out in (have, want))
    return {
        "same": float((mine == theirs).double().mean()),
        "recall": float(mine[theirs].double().mean()),
        "error": real.relative(have, want),
        **real.costs(snn, test),
        "candidates": mine.numel(),
        "faces": int(theirs.sum()),
    }


def shown(name: str, plan: str, row: dict[str, Any]) -> str:
    return (
        f"{name:<8}{plan:<18}{100 * row['same']:>8.2f} %{100 * row['recall']:>7.1f} %"
        f"{row['error']:>8.4f}{row['spikes']:>8.2f}{row['additions']:>11.2f}{row['seconds']:>11.1f}"
    )


def table(results: Path) -> Iterator[str]:
    """What was measured, as Markdown."""
    yield "| plan | network | same | recall | error | spikes | additions | faces in photographs |"
    yield "|---|---|---:|---:|---:|---:|---:|---|"
    for cell, row in real.cells(results).items():
        faces = [f"{r['found']} of {r['faces']}" for r in row.values() if "least_overlap" in r]
        for name in ("rnet", "pnet"):
            r = row[name]
            yield (
                f"| {cell} | {name} | {100 * r['same']:.2f} % | {100 * r['recall']:.1f} % | "
                f"{r['error']:.4f} | {r['spikes']:.2f} | {r['additions']:.2f} | "
                f"{', '.join(faces)} |"
            )
            faces = []


def main() -> None:
    parser = real.options_of(__doc__, ["8x1", "9x1", "6x2", "5x1"], "faces.json")
    parser.add_argument("--samples", type=int, default=2000, help="candidates of R-Net")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--no-detector", action="store_true", help="only the networks")
    given = parser.parse_args()
    if real.only_told(given, "tutorials/faces.md", "examples/faces.py", table(given.results)):
        return
    torch.set_num_threads(1)
    mtcnn = detector()
    photographs = real.photographs()
    tested = {name: photographs.pop(name) for name in TESTED} | {"100 of LFW": grid_of_faces()}
    others, theirs = list(photographs.values()), list(tested.values())
    # R-Net is shown what P-Net takes for a face: of photographs without faces, too
    shown_to_rnet = candidates(mtcnn, others)[: given.calibration]
    sets = {
        "rnet": (shown_to_rnet, candidates(mtcnn, theirs)[: given.samples]),
        "pnet": (
            scene(others, given.calibration // 4, WINDOW, WINDOW, 0),
            scene(theirs, 60, WINDOW, WINDOW, 1),
        ),
    }
    print(f"{len(sets['rnet'][1])} candidates of R-Net, all windows of 60 crops of P-Net\n\n{HEAD}")
    for plan, tune, cell in real.each(given):
        rows: dict[str, Any] = {}
        networks = {}
        for name, (calibration, test) in sets.items():
            source = getattr(mtcnn, name)
            made = real.converted(source, calibration, plan, tune, sizes=SIZES[name])
            rows[name] = measured(name, source, made[0], test) | {"seconds": made[1]}
            networks[name] = Spiking(source, made[0])
            print(shown(name, cell, rows[name]), flush=True)
        if not given.no_detector:
            for name, row in in_detector(mtcnn, networks, tested):
                rows[name] = row
                print(f"  {name}: {row['found']} of {row['faces']} faces, least overlap "
                      f"{row['least_overlap']:.2f}", flush=True)  # fmt: skip
        real.keep(given.results, cell, rows)


if __name__ == "__main__":
    main()
