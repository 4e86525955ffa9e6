"""Fashion-MNIST in motion: what networks cost whose state is kept from frame to frame.

    python benchmarks/streams.py [--networks vgg ...] [--prices 0.008 ...] [--clips 128]
    python benchmarks/streams.py --print    the tables, of the cells that are there
    python benchmarks/streams.py --write    puts them into docs/stream_plans.md

A network is converted for streams once for each price of an addition, of 64 training images that
move 0.2 pixels a frame (``sg.Motion``); "noise" is the plan of such clips with a noise of 2 %, at
the price of 0.008, and "ranges" has six members everywhere, whose steps cover the range of each
channel, as plans for stills have them. All but the first are measured at 0.2 pixels alone.

Test images then move 0, 0.05, 0.2 and 1 pixel a frame on lines of random directions, 4 pixels to
either side, in clips of 24 frames, without noise and with noise of 2 % of the range of a pixel.
"kept" keeps the state; "anew" forgets it before each frame. Agreement and error are those of the
frames after the first, against the source network on the same frame, and the additions of a frame
for each multiply-accumulate of the source are counted on 16 clips: spikes at every connection, and
sums and products where an operand changed (``analysis``); the source, run densely, has 1 in each
frame. A still image has to send nothing after two frames.

A cell goes to benchmarks/results/streams/NETWORK.json when it is measured, and is not measured
again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402
from data import FASHION_STD, fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis.connections import Connections  # noqa: E402
from spikingjelly_signgd.core.spikes import listening  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "streams"
PAGE = Path(__file__).parent.parent / "docs" / "stream_plans.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
PRICES = ("0.008", "0.004", "0.012", "noise", "ranges")
MOTIONS = (0.0, 0.05, 0.2, 1.0)
NOISES = (0.0, 0.02)  # of the range of a pixel
FRAMES, CALIBRATION, COUNTED, BATCH = 24, 64, 16, 32
SETTLED = 2  # frames

data = cache(fashion_mnist)


@cache
def source(network: str) -> nn.Module:
    return load_network(network, "fashion")


@cache
def planned(name: str, price: str) -> sg.SpikingNetwork:
    noise = NOISES[1] / FASHION_STD if price == "noise" else 0.0
    options: dict[str, Any] = {"stream": sg.Motion(pixels=0.2, noise=noise)}
    if price == "ranges":
        options |= {"scale": "channel", "members": 6}
    elif price != "noise":
        options["objective"] = float(price)
    return sg.convert(source(name), data().train.images[:CALIBRATION], **options)


def moving(clips: int, pixels: float, noise: float) -> Tensor:
    """Test images in motion, [F, N, 1, 28, 28]."""
    motion = sg.Motion(pixels=pixels, noise=noise / FASHION_STD, frames=FRAMES, seed=1)
    return motion.clips(data().test.images[:clips])


@torch.no_grad()
def outputs(network: sg.SpikingNetwork, frames: Tensor, kept: bool) -> Tensor:
    """[F, N, classes]."""
    snn, found = sg.build(network), []
    for clip in frames.split(BATCH, 1):
        if kept:
            found.append(sg.run(snn, clip, sequence=True, keep_state=True)[1])
            snn.reset()
        else:
            y = sg.run(snn, clip.flatten(0, 1))[1]
            found.append(y.unflatten(0, clip.shape[:2]))
    return torch.cat(found, 1)


def counted(network: sg.SpikingNetwork, frames: Tensor, kept: bool) -> dict[str, list[float]]:
    """Of each frame the digits of a neuron, and for each MAC of the source the additions of spikes,
    and the sums and products with an operand that changed."""
    parts: dict[str, Tensor] = {}
    sent = _sent(network, frames, kept)
    own = {name: s for name, s in sent.items() if network[name].code is not None}
    neurons = sum(network[name].values for name in own)
    parts["digits"] = torch.stack([s.flatten(1).sum(1) for s in own.values()]).sum(0) / neurons
    met = Connections(network, sent, frames.shape[1], first=False).run()
    dense = Connections(network, {}, 1, source=True).run().static
    macs = sum(dense.values()) + sum(network.products(n) for n in network.neurons)
    for name, series in {
        "spikes": met.synaptic,
        "sums": met.sums,
        "products": met.products,
    }.items():
        every = [s.expand(len(frames)) for s in series.values()]
        parts[name] = torch.stack(every).sum(0) / macs if every else torch.zeros(len(frames))
    clips = frames.shape[1]
    return {name: rounded(values / clips) for name, values in parts.items()}


def rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _sent(network: sg.SpikingNetwork, frames: Tensor, kept: bool) -> dict[str, Tensor]:
    """Spikes [F, N, ...] by node."""
    heard: dict[str, list[Tensor]] = {}

    def hear(sent: Any) -> None:
        if sent.events is not None:
            heard.setdefault(sent.node.name, []).append(sent.events.spikes.double())

    snn = sg.build(network)
    with torch.no_grad(), listening(snn, hear):
        if kept:
            sg.run(snn, frames, sequence=True, keep_state=True)
        for frame in () if kept else frames:
            sg.run(snn, frame)
    return {name: torch.cat(parts) for name, parts in heard.items()}


@torch.no_grad()
def measured(name: str, price: str, clips: int, pixels: float, noise: float) -> dict[str, Any]:
    network, frames = planned(name, price), moving(clips, pixels, noise)
    want = torch.stack([source(name)(frame) for frame in frames])
    ways: dict[str, Any] = {}
    for way in ("kept", "anew"):
        have = outputs(network, frames, way == "kept")
        same = (have.argmax(2) == want.argmax(2)).double().mean(1)
        error = (have - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
        counts = counted(network, frames[:, :COUNTED], way == "kept")
        ways[way] = {"agreement": rounded(same), "error": rounded(error), **counts}
    return {"clips": clips, "frames": FRAMES, "members": _members(network), **ways}


def _wanted(price: str, pixels: float, noise: float) -> bool:
    """One plan is measured everywhere, the others at 0.2 pixels a frame."""
    return price == PRICES[0] or (pixels == 0.2 and (noise > 0) is (price == "noise"))


def _members(network: sg.SpikingNetwork) -> list[int]:
    return [getattr(node, "members", 0) for node in network.neurons]


def key(price: str, pixels: float, noise: float) -> str:
    return f"{price} {pixels:g} {noise:g}"


def run(given: argparse.Namespace) -> None:
    for price in given.prices:
        for name in given.networks:
            path = RESULTS / f"{name}.json"
            for pixels in MOTIONS:
                for noise in NOISES:
                    cell = key(price, pixels, noise)
                    if cell in real.cells(path) or not _wanted(price, pixels, noise):
                        continue
                    values = measured(name, price, given.clips, pixels, noise)
                    real.keep(path, cell, values)
                    print(name, cell, *summary(values["kept"], pixels, noise), flush=True)


# -- tables ----------------------------------------------------------------------------------------


def later(values: list[float], begin: int = 1) -> float:
    return sum(values[begin:]) / len(values[begin:])


def additions(way: Mapping[str, list[float]], begin: int = 1) -> float:
    return sum(later(way[part], begin) for part in ("spikes", "sums", "products"))


def begun(pixels: float, noise: float) -> int:
    """From which frame on additions are those of a settled network."""
    return SETTLED if not (pixels or noise) else 1


def summary(way: Mapping[str, list[float]], pixels: float, noise: float) -> tuple[str, ...]:
    """Agreement, error, digits, additions and of these those of spikes."""
    first = begun(pixels, noise)
    return (
        f"{100 * later(way['agreement']):.2f}",
        f"{later(way['error']):.4f}",
        f"{later(way['digits'], first):.3f}",
        f"{additions(way, first):.3f}",
        f"{later(way['spikes'], first):.3f}",
    )


def table(price: str) -> Iterator[str]:
    yield "| network | pixels, noise | kept: agreement, error | digits | additions | of spikes | first frame | anew: agreement, error | digits | additions |"  # noqa: E501
    yield "|---|---|---|---:|---:|---:|---:|---|---:|---:|"
    for name in NETWORKS:
        cells = real.cells(RESULTS / f"{name}.json")
        for pixels in MOTIONS:
            for noise in NOISES:
                values = cells.get(key(price, pixels, noise))
                if values is None:
                    continue
                kept, anew = (summary(values[way], pixels, noise) for way in ("kept", "anew"))
                first = sum(values["kept"][part][0] for part in ("spikes", "sums", "products"))
                yield (
                    f"| {name} | {pixels:g}, {100 * noise:g} % | {kept[0]}, {kept[1]} | {kept[2]} "
                    f"| **{kept[3]}** | {kept[4]} | {first:.2f} | {anew[0]}, {anew[1]} | {anew[2]} "
                    f"| {anew[3]} |"
                )


def tables(price: str) -> list[str]:
    found = list(table(price))
    cells = [c for n in NETWORKS for c in real.cells(RESULTS / f"{n}.json").values()]
    clips = sorted({c["clips"] for c in cells})
    said = f"{' or '.join(map(str, clips))} clips of {FRAMES} frames; additions of 16 of them."
    return [said, "", *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--prices", nargs="+", choices=PRICES, default=PRICES)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="tables into docs/stream_plans.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.print and not given.write:
        run(given)
    for price in given.prices if given.print or given.write else ():
        if given.write:
            real.into(PAGE, f"benchmarks/streams.py --print --prices {price}", tables(price))
        else:
            print("\n".join(tables(price)))


if __name__ == "__main__":
    main()
