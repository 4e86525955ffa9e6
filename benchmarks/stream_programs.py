"""Whether a clip is the same clip in every program: the state kept, spike by spike.

    python benchmarks/stream_programs.py [--networks vgg gelu]
    LAVA_PYTHON=... python benchmarks/stream_programs.py --write    the table into docs/exports.md

Digits that move by 0.1 pixels a frame for eight frames, are cut to others, move on for four and
stand still for four, two streams side by side; plans of ``convert(model, clips, stream=True)`` for
other digits that move. A cell is one neuron of one stream in one frame. Columns:

Norse         cells and outputs that are others than SpikingJelly's, in the spike view
runner        the same of the NumPy runner on the saved file, float32
decoded       cells of the runner's decoded view that are others than SpikingJelly's, in float32 and
              in float64
certificate   cells of ``sg.verify`` that differ, its checks together
Lava          cells of Lava's processes that are others than the runner's in float64, where
              LAVA_PYTHON names an interpreter with it and the network is one chain
still         spikes in the last two frames of the still camera
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import lava_digits  # noqa: E402
from data import digits  # noqa: E402
from networks import load_network  # noqa: E402
from real import into  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core.network import SpikingNetwork  # noqa: E402
from spikingjelly_signgd.core.spikes import listening  # noqa: E402
from spikingjelly_signgd.exporters.hdf5.runner import Result, Runner  # noqa: E402
from spikingjelly_signgd.exporters.lava import remote  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "exports.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit", "gelu")
IN_LAVA = ("gelu",)
HEADS = ["network", "cells", "spikes", "Norse", "runner", "decoded", "certificate", "Lava", "still"]
Codes = dict[str, np.ndarray]


def the_clip(images: Tensor) -> Tensor:
    """[16, 2, 1, 8, 8]"""
    motion = sg.Motion(pixels=0.1, frames=8)
    first, second = motion.clips(images[:2]), motion.clips(images[2:4])[:4]
    return torch.cat([first, second, second[-1:].expand(4, *second.shape[1:])])


def simulated(
    network: SpikingNetwork, clip: Tensor, simulator: str, view: str
) -> tuple[Any, Codes]:
    """Outputs, and what fired, [F, B, ...] each."""
    snn = sg.build(network, simulator, spikes=view).to(clip.dtype)
    fired: dict[str, list[Tensor]] = {}

    def keep(sent: Any) -> None:
        events = sent.events
        codes = events.number if events.fires is None else events.fires
        fired.setdefault(sent.node.name, []).append(codes)

    with listening(snn, keep):
        outputs = sg.run(snn, clip, sequence=True, keep_state=True)[1]
    return outputs.numpy(), {name: torch.cat(codes).numpy() for name, codes in fired.items()}


def differing(have: Codes, want: Codes) -> int:
    assert have.keys() == want.keys()
    return sum(int((have[name] != want[name]).sum()) for name in want)


def replayed(path: Path, clip: Tensor, dtype: Any, view: str) -> Result:
    x = clip.numpy().astype(dtype)
    return Runner(path, dtype).run(x, sequence=True, keep_state=True, view=view)


def in_lava(path: Path, clip: Tensor, expected: Codes) -> int:
    """Cells that are others there."""
    spikes, _ = remote.run_signgd(path, clip.numpy(), time_steps=1, keep_state=True)
    frames, streams = clip.shape[:2]
    wrong = 0
    for have, want in zip(spikes, expected.values(), strict=True):
        wrong += int((have != want.reshape(frames, streams, -1).transpose(1, 2, 0)).sum())
    return wrong


def row(name: str, images: Tensor, clip: Tensor, folder: Path) -> list[str]:
    model = lava_digits.load(name) if name in IN_LAVA else load_network(name, "digits")
    network = sg.convert(model, images, stream=sg.Motion(pixels=0.1))
    path = folder / f"{name}.h5"
    sg.save(network, path)
    outputs, fired = simulated(network, clip, "spikingjelly", "signed")
    others, norse = simulated(network, clip, "norse", "signed")
    single = replayed(path, clip, np.float32, "spike")
    decoded = []
    for wide, dtype in ((clip, np.float32), (clip.double(), np.float64)):
        _, want = simulated(network, wide, "spikingjelly", "decoded")
        decoded.append(differing(replayed(path, clip, dtype, "decoded").spikes, want))
    certificate = sg.verify(path, clip, network=network)
    sent = [np.unpackbits(codes.view(np.uint8), axis=-1) for codes in fired.values()]
    lava = "-"
    if name in IN_LAVA and remote.available():
        lava = f"{in_lava(path, clip, replayed(path, clip, np.float64, 'spike').spikes)}"
    return [
        name,
        f"{sum(codes.size for codes in fired.values()):,}",
        f"{sum(int(bits.sum()) for bits in sent):,}",
        f"{differing(norse, fired)}, {int((others != outputs).sum())}",
        f"{differing(single.spikes, fired)}, {int((single.outputs[1] != outputs).sum())}",
        ", ".join(map(str, decoded)),
        f"{sum(check.mismatches for check in certificate.checks)}",
        lava,
        f"{sum(int(bits[-2:].sum()) for bits in sent)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--write", action="store_true", help="the table into docs/exports.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    clip = the_clip(data.test.images)
    lines = [f"| {' | '.join(HEADS)} |", "|---|" + "---:|" * (len(HEADS) - 1)]
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks:
            cells = row(name, data.train.images[:64], clip, Path(folder))
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    lines += ["", f"{len(clip)} frames of {clip.shape[1]} streams."]
    print("\n".join(lines))
    if given.write:
        into(PAGE, "benchmarks/stream_programs.py", lines)


if __name__ == "__main__":
    main()
