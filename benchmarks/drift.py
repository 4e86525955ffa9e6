"""Whether a network that runs for a very long time stays where it should be.

    python benchmarks/drift.py [--steps 1000000] [--compared 10000] [--network resnet]
    python benchmarks/drift.py --chunks       frames one by one against blocks of frames
    python benchmarks/drift.py [--chunks] --write         puts the table into docs/streams.md

One stream of digits that move by 0.2 pixels a frame, one step a frame: in each 10,000 frames, the
same ones again and again, four cuts to another image, a flash of one frame, and a camera that is
frozen for 2,000. Rows:

spike view, streams   ``spikes="signed"`` of a plan for streams: exact v, x summed in float64
spike view, float32   the same network as a plan of its own, v and x summed in float32 each
decoded view          ``spikes="decoded"``, where x is computed anew of v at every frame

Errors are |y - source| / |source| on the same frame, medians of the moving frames of 10,000: of the
first, the last, and the largest of all. A dead zone makes the state depend on the past, so that the
same frames settle in one of several ways; the decoded view shows how far that alone moves errors.
x - (W v + b) is the largest difference, over all neurons, of what a neuron has integrated and what
its senders are decoded to: after 1,000 steps, and the largest at the end of each 1,000 of the last
10,000. Frames to recover are those after a cut or the flash until the error is at most one and a
half times the one before it. v is in units of the farthest that one step moves it; memory is the
most that the process holds in the last tenth of the steps, over that in the second; times are of
the CPU, with those of the source network and of making the frames.

``--chunks`` runs 500 frames of six networks one by one, and as blocks: the largest difference of
outputs, over the largest output, and how many events differ, of all.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import digits  # noqa: E402
from networks import load_network  # noqa: E402
from real import into  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core.inputs import Batch, value_of  # noqa: E402
from spikingjelly_signgd.core.module import NetworkModule, Source, key, wide  # noqa: E402
from spikingjelly_signgd.core.network import (  # noqa: E402
    Constant,
    Input,
    Linear,
    Neuron,
    SignGDNeuron,
    SpikingNetwork,
    leaves,
)
from spikingjelly_signgd.core.spikes import Sent, listening  # noqa: E402
from spikingjelly_signgd.core.walk import walk  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "streams.md"
PERIOD, BLOCK, SPEED, REACH = 10_000, 1_000, 0.2, 2.0
CUTS, FLASH, FROZEN = (0, 2_500, 5_000, 7_000), 6_000, range(8_000, 10_000)


def frames(images: Tensor, start: int, stop: int) -> Tensor:
    """Frames [F, 1, C, H, W] of the endless clip."""
    at = [t - max(0, t % PERIOD - FROZEN.start) for t in range(start, stop)]  # of frozen ones
    which = [sum(c <= t % PERIOD for c in CUTS) - 1 for t in at]
    place = torch.tensor([SPEED * t for t in at]).double()
    turn = (place / (2 * REACH)) % 2
    shift = (REACH * (2 * (1 - (turn - 1).abs()) - 1)).float()
    size = images.shape[-1]
    theta = torch.eye(2, 3).repeat(len(at), 1, 1)
    theta[:, 0, 2], theta[:, 1, 2] = 2 * shift / size, shift / size
    moved = images[torch.tensor(which)]
    grid = F.affine_grid(theta, list(moved.shape), align_corners=False)
    moved = F.grid_sample(moved, grid, align_corners=False)
    for t in range(start, stop):
        if t % PERIOD == FLASH:
            moved[t - start] = images.max()
    return moved.unsqueeze(1)


def exact(network: SpikingNetwork) -> SpikingNetwork:
    """A plan of one step a frame whose v is exact in float32: constant steps, scales of 12 bits,
    resting values of whole c_m."""
    return network.with_nodes({n.name: _exact(n) for n in network.of(SignGDNeuron)})


def _exact(node: SignGDNeuron) -> SignGDNeuron:
    node = replace(node, members=8)
    size = torch.as_tensor(node.scale, dtype=torch.double) * node.schedule(1)
    bits = 2.0 ** (size.log2().floor() - 11)
    size = (size / bits).round() * bits
    finest = size * node.finest
    resting = (torch.as_tensor(node.resting, dtype=torch.double) / finest).round() * finest
    steps = sg.ConstantSchedule(1.0)
    return replace(node, schedule=steps, scale=size.float(), resting=resting.float())


# -- what neurons have integrated, and what they should have --------------------------------------


class Affine(Source):
    """W v + b in float64 of what each neuron is decoded to: the ``arguments`` of each."""

    def __init__(self, module: NetworkModule, x: Batch, v: dict[str, Tensor]) -> None:
        super().__init__(module, x)
        self.v, self.arguments = v, {}  # type: ignore[var-annotated]

    def input(self, node: Input) -> Tensor:
        return wide(value_of(self.x, node.name))

    def constant(self, node: Constant) -> Tensor:
        return wide(super().constant(node))

    def linear(self, node: Linear, inputs: list[Tensor]) -> Tensor:
        operation = self.operations[key(node.name)]
        return operation(*inputs, batch=self.batch, wide=True)  # type: ignore[no-any-return]

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        self.arguments[node.name] = tuple(inputs)
        return wide(self.v[node.name])


def distance(snn: NetworkModule, x: Tensor) -> float:
    """The largest |x - (W v + b)| after a frame x [B, ...], 0 in the decoded view."""
    state = snn.state_kept
    if snn.spikes == "decoded" or state is None:
        return 0.0
    nodes: dict[str, Any] = {n.name: snn.neuron(n.name) for n in snn.network.neurons}
    v = {k: node.v for k, node in nodes.items()} if state.sent is None else state.sent
    sums = {k: node.x for k, node in nodes.items()} if state.sums is None else state.sums
    affine = Affine(snn, x, v)
    walk(snn.network, affine, keep=())
    pairs = [(a, b) for k in nodes for a, b in zip(sums[k], affine.arguments[k], strict=True)]
    return max(float((wide(a) - b).abs().max()) for a, b in pairs)


def largest(snn: NetworkModule) -> float:
    """The largest |v|, in units of the farthest that one step moves it."""
    found = 0.0
    for node in snn.network.of(SignGDNeuron):
        module: Any = snn.neuron(node.name)
        scale = torch.as_tensor(node.scale) * node.schedule(1) * (2 - node.finest)
        found = max(found, float((module.v.abs() / scale).max()))
    return found


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


# -- one row ---------------------------------------------------------------------------------------


@dataclass
class Row:
    name: str
    errors: Tensor  # of every frame
    off: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # spikes of each block
    most: float = 0.0
    seconds: float = 0.0

    def cells(self) -> list[str]:
        back = self.recovered()
        summed = any(self.off)
        return [
            self.name,
            f"{len(self.errors):,}",
            f"{self.of_motion(0):.4f}",
            f"{self.of_motion(len(self.errors) - PERIOD):.4f}",
            f"{max(map(self.of_motion, range(0, len(self.errors), PERIOD))):.4f}",
            f"{self.off[0]:.1e}" if summed else "-",
            f"{max(self.off[-PERIOD // BLOCK :]):.1e}" if summed else "-",
            f"{sorted(back)[len(back) // 2]} ({max(back)})",
            f"{self.most:.2f}",
            f"{self.grown():+.1f}",
            f"{1e3 * self.seconds / len(self.errors):.2f}",
        ]

    def grown(self) -> float:
        """MiB."""
        held, tenth = torch.tensor(self.memory), max(1, len(self.memory) // 10)
        return float(held[-tenth:].max() - held[tenth : 2 * tenth].max())

    def of_motion(self, start: int) -> float:
        """The median error of the moving frames of the period that begins there."""
        return float(self.errors[start + 100 : start + FROZEN.start].median())

    def recovered(self) -> list[int]:
        """Frames after each cut and flash until the error is as before."""
        jumps = [c for c in (*CUTS, FLASH + 1) if c]
        begins = range(0, len(self.errors), PERIOD)
        return [self._back(begin + jump) for begin in begins for jump in jumps]

    def _back(self, jump: int) -> int:
        usual = float(self.errors[jump - 201 : jump - 1].median())
        after = self.errors[jump : jump + 400] <= 1.5 * usual
        return int(after.nonzero()[0]) if bool(after.any()) else len(after)


@torch.no_grad()
def measure(name: str, snn: NetworkModule, images: Tensor, count: int) -> Row:
    row = Row(name, torch.zeros(count))
    snn.reset()
    begun = time.process_time()
    sent: list[int] = []

    def listen(each: Sent) -> None:
        sent[-1] += 0 if each.events is None else int(each.events.spikes.sum())

    with snn.for_sequences(), listening(snn, listen):
        for start in range(0, count, BLOCK):
            sent.append(0)
            x = frames(images, start, start + BLOCK)
            y = outputs(snn, x)
            source = snn.ann(x.flatten(0, 1))
            row.errors[start : start + BLOCK] = (y - source).norm(dim=1) / source.norm(dim=1)
            row.off.append(distance(snn, x[-1]))
            row.memory.append(resident())
            row.most = max(row.most, largest(snn))
    row.seconds, row.sent = time.process_time() - begun, sent
    assert bool(row.errors.isfinite().all())
    return row


def outputs(snn: NetworkModule, x: Tensor) -> Tensor:
    """[F, classes] of frames x [F, 1, ...], the state kept."""
    if snn.view != "signed":
        return sg.run(snn, x, sequence=True, keep_state=True)[1].flatten(0, 1)
    y, snn.state_kept = snn.advance(x, state=snn.state_kept)
    return y.flatten(0, 1)  # type: ignore[no-any-return]


@torch.no_grad()
def differing(network: SpikingNetwork, images: Tensor, count: int) -> tuple[int, int]:
    """The events of the spike view of streams that are others than the decoded view's, of all."""
    builds = [sg.build(network, spikes=view) for view in ("decoded", "signed")]
    differ = total = 0
    for start in range(0, count, BLOCK):
        x = frames(images, start, start + BLOCK)
        one, other = (sent_by(snn, x)[1] for snn in builds)
        differ, total = differ + unequal(one, other), total + sum(n.numel() for n in one.values())
    return differ, total


def sent_by(snn: NetworkModule, x: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs of frames, and the events of each node [F, ...]."""
    parts: dict[str, list[Tensor]] = {}

    def listen(each: Sent) -> None:
        assert each.events is not None
        parts.setdefault(each.node.name, []).append(each.events.number)

    with listening(snn, listen):
        y = sg.run(snn, x, sequence=True, keep_state=True, **options)[1]
    return y, {name: torch.cat(each) for name, each in parts.items()}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    return sum(int((one[name] != other[name]).sum()) for name in one)


NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")


def chunks(images: Tensor, calibration: Tensor, count: int = 500) -> list[str]:
    """Frames one by one against blocks of frames, of each network and view."""
    lines = ["| network | view | outputs | events that differ | of |", "|---|---|---:|---:|---:|"]
    for name in NETWORKS:
        plan = exact(planned(name, calibration)).replace(stream=True)
        for view, title in (("decoded", "decoded"), ("signed", "spike")):
            snn = sg.build(plan, spikes=view)
            x = frames(images, 0, count)
            y, numbers = sent_by(snn, x)
            snn.reset()
            single, others = sent_by(snn, x, chunk=1)
            off = float((y - single).abs().max() / y.abs().max())
            total = sum(n.numel() for n in numbers.values())
            lines.append(
                f"| {name} | {title} | {off:.1e} | {unequal(numbers, others):,} | {total:,} |"
            )
    return lines


def planned(name: str, calibration: Tensor) -> SpikingNetwork:
    """One step, eight signs, not tuned."""
    options: dict[str, Any] = {"time_steps": 1, "members": 8, "tune": False}
    return sg.convert(load_network(name, "digits"), calibration, input_coding="spike", **options)


HEADS = ["", "steps", "error, first", "last", "largest", "x - (W v + b), first", "last",
         "frames to recover: median (most)", "largest v", "memory, MiB", "ms a step"]  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    lines = ["| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    return lines + ["| " + " | ".join(row.cells()) + " |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each row")
    parser.add_argument("--compared", type=int, default=10_000, help="frames, event by event")
    parser.add_argument("--network", default="resnet")
    parser.add_argument("--chunks", action="store_true")
    parser.add_argument("--write", action="store_true", help="the table into docs/streams.md")
    given = parser.parse_args()
    if any(n < PERIOD or n % PERIOD for n in (given.steps, given.compared)):
        parser.error(f"--steps and --compared are multiples of {PERIOD:,}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", sg.PlanWarning)  # of the plan before ``exact``
    lines = chunks(*data()) if given.chunks else drift(given)
    print("\n".join(lines))
    if given.write:
        into(PAGE, f"benchmarks/drift.py{' --chunks' if given.chunks else ''}", lines)


def data() -> tuple[Tensor, Tensor]:
    """Images of the clip, and those of the calibration."""
    found = digits()
    return found.test.images, found.train.images[:256]


def drift(given: argparse.Namespace) -> list[str]:
    images, calibration = data()
    plan = planned(given.network, calibration)
    assert len(leaves(plan.outputs)) == 1
    stream = exact(plan).replace(stream=True)
    constant = plan.with_nodes({n.name: _constant(n) for n in plan.of(SignGDNeuron)})
    rows = [
        measure("spike view, streams", sg.build(stream, spikes="signed"), images, given.steps),
        measure("spike view, float32", sg.build(constant, spikes="signed"), images, given.steps),
        measure("decoded view", sg.build(stream), images, given.steps),
    ]
    quiet = [row.sent[k] for row in rows for k in range(9, len(row.sent), PERIOD // BLOCK)]
    differ, total = differing(stream, images, given.compared)
    lines = [
        *table(rows),
        "",
        f"Spikes in the last 1,000 frames of all frozen cameras together: {sum(quiet)}. Events of "
        f"the spike view of streams that are others than the decoded view's: {differ:,} of "
        f"{total:,} in {given.compared:,} frames.",
    ]
    return lines


def _constant(node: SignGDNeuron) -> SignGDNeuron:
    """One step a frame, members and scale as planned."""
    steps = sg.ConstantSchedule(node.schedule(1))
    return replace(node, schedule=steps, members=8)


if __name__ == "__main__":
    main()
