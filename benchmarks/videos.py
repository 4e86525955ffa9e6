"""Networks that watch videos, beside DeltaCNN's rule at equal error: docs/videos.md.

    python benchmarks/videos.py [--networks efficientnet ...] [--clips carphone ...] [--frames 12]
    python benchmarks/videos.py --print     the tables of what was measured
    python benchmarks/videos.py --write     puts them into docs/videos.md

EfficientNet-Lite0, and P-Net and R-Net of MTCNN (R-Net on eight windows that stay where P-Net was
surest in the first frame), run on three real clips (examples/clips.py), frame after frame with
their state kept, one step a frame. "coded" is EfficientNet-Lite0 with a neuron behind each block,
where it has linear layers one after another. Each plan is converted once for all clips, whichever
are measured, and calibrated on frames of all behind those that it is measured on. Errors are of the
outputs of all frames, relative to the source; additions and MACs are for each multiply-accumulate
of the source, energies ("45 nm fp32", compute only) beside that of the source.

"stream" plans are those of convert(stream=True), by the price of an addition; of others all neurons
have so many members.

DeltaCNN (Parger et al., CVPR 2022, arXiv:2203.03996) is written here from the paper: what enters
the network or passes a nonlinearity passes on as its difference from what passed before. Where that
is not above a threshold nothing passes, and the difference stays, to be part of the next one. A
pixel passes with all its channels where one of them is above the threshold, and MACs left are those
that they meet ("pixel", what the paper's kernels compute). Two are finer than the paper: the zeros
among the differences of a pixel left out ("nonzero"), and each value by itself ("value"). The
threshold is in deviations of the layer's values ("deviation") on all frames that calibrate, or the
same number for all ("number"), which is not in the table of equal errors.

A cell, one plan or one threshold on one clip, goes to benchmarks/results/videos/ by a name that
says how many frames it was measured on, and of how many clips and frames of each it was calibrated.
It is not measured again unless --again. Without options the cells are those of the page.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import clips  # noqa: E402
import real  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.analysis.over_time import Changing  # noqa: E402
from spikingjelly_signgd.core.module import NetworkModule, Source  # noqa: E402
from spikingjelly_signgd.core.network import Input, Linear, Neuron, SignGDNeuron, leaves  # noqa: E402
from spikingjelly_signgd.core.operations import LINEAR  # noqa: E402
from spikingjelly_signgd.core.walk import walk  # noqa: E402

RESULTS = real.ROOT / "benchmarks" / "results" / "videos"
PAGE = "videos.md"
BEHIND = 16  # frames of each clip, behind those that are measured, that calibrate
GAP = 40  # frames between them
MOST = 0.05  # errors that are compared
RULES = ("pixel", "nonzero", "value")  # what of DeltaCNN's rule is counted
SCENE = (108, 132)  # P-Net's image: a face of 20 pixels in one of 176 x 144 is a window of 12
WINDOWS = 8
UNITS = ("deviation", "number")  # of thresholds; the first is compared
PLAN = re.compile(r"(stream \d[\d.e-]*|\d+)( exact)?")
TABLE = "45 nm fp32"
UPDATE = 4  # additions of a value that DeltaCNN keeps: input and output, the change, its comparison


# -- networks and what they watch ------------------------------------------------------------------


@dataclass
class Case:
    """A network, how it sees a clip [F, 3, H, W]: [F, B, ...], and what is measured of it."""

    name: str
    load: Callable[[], nn.Module]
    see: Callable[[Tensor], Tensor]
    agree: Callable[[Any, Any], Tensor]
    plans: Sequence[str] = ("stream 0.03", "stream 0.1", "5 exact", "5", "6 exact", "6", "7")
    thresholds: Sequence[float] = (0.02, 0.05, 0.1, 0.2)
    rules: Sequence[str] = RULES

    @cached_property
    def model(self) -> nn.Module:
        return self.load().eval()


def efficientnet() -> nn.Module:
    import efficientnet_lite

    return efficientnet_lite.load_model()


class Bounded(nn.Module):
    """A block whose output is a signal of its own: between linear layers, where no function is."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.block(x, **options).clamp(-1e4, 1e4)  # type: ignore[no-any-return]


def efficientnet_coded() -> nn.Module:
    model = efficientnet()
    blocks: Any = model.get_submodule("_blocks")
    for k, block in enumerate(blocks):
        blocks[k] = Bounded(block)
    return model


def of_mtcnn(name: str) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        import faces

        part: nn.Module = getattr(faces.detector(), name)
        return part

    return load


def large(clip: Tensor) -> Tensor:
    return ((clips.fitted(clip, 224, 224) - 127) / 128).unsqueeze(1)


def scene(clip: Tensor) -> Tensor:
    return ((clips.fitted(clip, *SCENE) - 127.5) / 128).unsqueeze(1)


def windows(clip: Tensor) -> Tensor:
    """[F, WINDOWS, 3, 24, 24]: windows of P-Net's image of twice the size, where it is surest."""
    with torch.no_grad():
        sure = CASES["pnet"].model(scene(clip[:1])[0])[1][0, 1]
    twice = (clips.fitted(clip, 2 * SCENE[0], 2 * SCENE[1]) - 127.5) / 128
    places = sure.flatten().argsort(descending=True)[:WINDOWS].tolist()
    corners = [(4 * (p // sure.shape[1]), 4 * (p % sure.shape[1])) for p in places]
    return torch.stack([twice[..., y : y + 24, x : x + 24] for y, x in corners], 1)


def same_class(have: Tensor, want: Tensor) -> Tensor:
    return have.argmax(1) == want.argmax(1)


def same_faces(threshold: float) -> Callable[[Any, Any], Tensor]:
    def same(have: Any, want: Any) -> Tensor:
        mine, theirs = (list(leaves(out))[1][:, 1] > threshold for out in (have, want))
        return mine == theirs

    return same


LARGE: dict[str, Any] = {"thresholds": (0.005, 0.01, 0.02, 0.05)}
CASES = {
    case.name: case
    for case in (
        Case("efficientnet", efficientnet, large, same_class,
             plans=("stream 0.008", "stream 0.03", "stream 0.06", "7", "8", "9"), **LARGE),
        Case("efficientnet coded", efficientnet_coded, large, same_class,
             plans=("stream 0.008", "stream 0.03", "7", "8", "9"), rules=RULES[1:], **LARGE),
        Case("pnet", of_mtcnn("pnet"), scene, same_faces(0.6)),
        Case("rnet", of_mtcnn("rnet"), windows, same_faces(0.7)),
    )
}  # fmt: skip


def watched(name: str, frames: int, folder: str | None) -> tuple[Tensor, Tensor]:
    """Frames to measure, and frames behind them to calibrate: [F, 3, H, W] each."""
    behind = frames + GAP
    clip = clips.frames(name, behind + BEHIND, folder)
    return clip[:frames], clip[behind:]


# -- ours ------------------------------------------------------------------------------------------


def planned(case: Case, behind: Sequence[Tensor], cell: str) -> sg.SpikingNetwork:
    """ "stream" and the price of an addition, or members of every neuron, and "exact" where the
    input is fed as it is; ``behind`` are clips [F, B, ...]."""
    word, *more = cell.split(" ")
    coding = None if "exact" in more else "spike"
    if word == "stream":
        weight = next(float(each) for each in more if each != "exact")
        return sg.convert(case.model, behind, stream=True, objective=weight,
                          input_coding="exact" if coding is None else None)  # fmt: skip
    frames = torch.cat([clip.flatten(0, 1) for clip in behind]).split(real.BATCH)
    network = sg.convert(case.model, list(frames), members=int(word), time_steps=1, tune=False,
                         input_coding=coding)  # fmt: skip
    coded = [node for node in network.of(SignGDNeuron) if node.name.endswith(".encode")]
    return network.with_nodes({node.name: reaching(node, int(word)) for node in coded})


def reaching(node: SignGDNeuron, members: int) -> SignGDNeuron:
    """What codes the input, which is from -1 to 1, reaches it in one step."""
    size = 1 / (2 - 2.0 ** (1 - members))
    return replace(node, schedule=sg.ConstantSchedule(size), scale=1.0, members=members)


def outputs(snn: NetworkModule, clip: Tensor) -> Any:
    """Of every frame, [F * B, ...] each."""
    found = sg.run(snn, clip, 1, sequence=True, keep_state=True)[1]
    snn.reset()
    flat = [value.flatten(0, 1) for value in leaves(found)]
    return flat[0] if len(flat) == 1 else flat


def joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [torch.cat(same) for same in zip(*(list(leaves(p)) for p in parts), strict=True)]


def ours(case: Case, network: sg.SpikingNetwork, clip: Tensor) -> dict[str, Any]:
    snn = sg.build(network)
    costs = sg.costs_over_time(snn, clip)
    have, want = outputs(snn, clip), wanted(case, clip)
    source = costs.source_energy[TABLE]
    energy = [each / source for each in costs.energy[TABLE]]
    return row(case, have, want, list(costs.additions_per_mac), energy) | {
        "digits": [frame.spikes / frame.neurons for frame in costs.frames],
        "parts": {k: sum(each) / len(costs) / costs.source_macs
                  for k, each in costs.to_dict()["parts"].items()},
    }  # fmt: skip


def wanted(case: Case, clip: Tensor) -> Any:
    with torch.no_grad():
        return joined([case.model(frame) for frame in clip])


def row(
    case: Case, have: Any, want: Any, costs: list[float], energy: list[float]
) -> dict[str, Any]:
    """``later`` are means of all frames but the first, in which the state is built."""
    return {
        "error": real.relative(have, want),
        "agreement": float(case.agree(have, want).double().mean()),
        "frames": costs,
        "later": mean(costs[1:]),
        "energy": energy,
        "later_energy": mean(energy[1:]),
    }


# -- DeltaCNN's rule -------------------------------------------------------------------------------


class Delta(Source):
    """The source network on one frame, where differences pass.

    ``sent`` by node is what has passed so far, f of what the receiver has added up; where the
    difference from it is not above the threshold it stays, and what is not sent adds up.
    """

    def __init__(self, snn: NetworkModule, x: Tensor, sent: dict[str, Tensor],
                 thresholds: Mapping[str, float], rule: str) -> None:  # fmt: skip
        super().__init__(snn, x)
        self.sent, self.thresholds, self.rule = sent, thresholds, rule
        self.passed: dict[str, Tensor] = {}

    def input(self, node: Input) -> Tensor:
        return self._pass(node.name, super().input(node))

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        return self._pass(node.name, super().neuron(node, inputs))

    def _pass(self, name: str, y: Tensor) -> Tensor:
        before = self.sent.get(name)
        if before is None:
            self.sent[name], self.passed[name] = y, torch.ones_like(y, dtype=torch.bool)
            return y
        above = (y - before).abs() > self.thresholds[name]
        if self.rule != "value":
            above = above.any(1, keepdim=True).expand_as(y)
        self.passed[name] = above if self.rule == "pixel" else above & (y != before)
        self.sent[name] = torch.where(above, y, before)
        return self.sent[name]


def delta(
    case: Case, snn: NetworkModule, spread: Mapping[str, float], cell: str, clip: Tensor
) -> dict[str, Any]:
    """``spread`` is that of ``deviations``."""
    rule, unit, threshold = cell.split(" ")
    limits = thresholds(snn.network, spread, float(threshold), unit == "deviation")
    sent: dict[str, Tensor] = {}
    have, macs = [], []
    with torch.no_grad():
        for frame in clip:
            semantics = Delta(snn, frame, sent, limits, rule)
            names = list(leaves(snn.network.outputs))
            found = walk(snn.network, semantics, names)
            have.append([found[name] for name in names])
            macs.append(left(snn.network, semantics.passed, len(frame)))
    source = macs[0]  # the first frame passes whole
    joint = joined(have)
    whole = joint[0] if len(joint) == 1 else joint
    updates = UPDATE * sum(node.values for node in (*snn.network.inputs, *snn.network.neurons))
    table, values = sg.analysis.TABLES[TABLE], len(clip[0]) * updates
    energy = [(table.mac * n + table.accumulate * values) / (table.mac * source) for n in macs]
    return row(case, whole, wanted(case, clip), [n / source for n in macs], energy)


def deviations(snn: NetworkModule, calibration: Tensor) -> dict[str, float]:
    """By node, the standard deviation of its values on all that calibrates."""
    sums: dict[str, Tensor] = {}
    for batch in calibration.split(real.BATCH):
        for name, value in snn.all_activations(batch).items():
            x = value.double()
            found = torch.stack([x.new_tensor(x.numel()), x.sum(), x.square().sum()])
            sums[name] = sums.get(name, 0) + found
    return {name: float(((squares - total**2 / n) / (n - 1)).clamp(min=0).sqrt())
            for name, (n, total, squares) in sums.items()}  # fmt: skip


def thresholds(
    network: sg.SpikingNetwork, spread: Mapping[str, float], threshold: float, relative: bool
) -> dict[str, float]:
    """By node; 0 of pooling, which adds up what it is sent, and of outputs."""
    read = {name for node in network.nodes for name in node.inputs}
    return {
        node.name: threshold * (spread[node.name] if relative else 1.0)
        if node.name in read and (isinstance(node, Input) or node.code is not None)
        else 0.0
        for node in (*network.inputs, *network.neurons)
    }


def left(network: sg.SpikingNetwork, passed: Mapping[str, Tensor], batch: int) -> float:
    """The MACs that differences meet: of each at its weights, of sums of them where one arrives."""
    spikes = {name: mask.unsqueeze(0).double() for name, mask in passed.items()}
    given = {node.name: passed[node.name] for node in network.inputs}
    sent = {name: s for name, s in spikes.items() if name not in given}
    found = Changing(network, sent, batch)
    found.changed = given
    found.run()
    weighted = {node.name for node in network.of(Linear) if LINEAR[node.op].weighted}
    parts = [(found.synaptic, weighted), (found.sums, weighted), (found.products, None)]
    return sum(
        float(value.sum())
        for part, names in parts
        for name, value in part.items()
        if names is None or name in names
    )


# -- cells -----------------------------------------------------------------------------------------


def cells_asked(given: argparse.Namespace, case: Case) -> tuple[list[str], list[str]]:
    """Plans, and thresholds of the rule: those of the page, unless others are asked for."""
    plans, limits, rules = (
        getattr(case if getattr(given, name) is None else given, name)
        for name in ("plans", "thresholds", "rules")
    )
    units = given.units
    return list(plans), [f"{r} {unit} {t:g}" for r in rules for unit in units for t in limits]


def key(cell: str, clip: str, frames: int) -> str:
    return f"{cell}, {clip}, {frames} frames, calibrated on {len(clips.CLIPS)} x {BEHIND}"


def measure(given: argparse.Namespace, name: str) -> None:
    case, path = CASES[name], RESULTS / f"{name.replace(' ', '_')}.json"
    frames = given.frames
    seen = {clip: watched(clip, frames, given.folder) for clip in clips.CLIPS}
    shown = {clip: case.see(seen[clip][0]) for clip in given.clips}
    behind = [case.see(frames) for _, frames in seen.values()]
    calibration = torch.cat([clip.flatten(0, 1) for clip in behind])
    plain: NetworkModule | None = None
    spread: Mapping[str, float] = {}
    plans, rules = cells_asked(given, case)
    for cell in [*plans, *rules]:
        keys = {c: key(cell, c, frames) for c in shown}
        missing = [c for c in shown if given.again or keys[c] not in real.cells(path)]
        if not missing:
            continue
        if cell in rules and plain is None:
            plain = sg.build(functions_of(case, calibration))
            spread = deviations(plain, calibration)
        network = None if cell in rules else planned(case, behind, cell)
        for clip in missing:
            found = (
                delta(case, plain, spread, cell, shown[clip])
                if plain is not None and network is None
                else ours(case, network, shown[clip])  # type: ignore[arg-type]
            )
            real.keep(path, keys[clip], found)
            print(f"{name:<20}{cell:<24}{clip:<10}{found['error']:>8.4f}"
                  f"{100 * found['agreement']:>8.1f} %{found['frames'][0]:>8.3f}"
                  f"{found['later']:>8.3f}", flush=True)  # fmt: skip


def functions_of(case: Case, calibration: Tensor) -> sg.SpikingNetwork:
    """A description whose source network DeltaCNN's rule is of: of any plan, inputs as they are."""
    return sg.convert(case.model, list(calibration[: real.BATCH].split(real.BATCH)), members=8,
                      time_steps=1, tune=False)  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What was measured of a plan or a threshold on a clip."""

    name: str
    clip: str
    frames: int
    row: dict[str, Any]


def cells_of(name: str) -> list[Cell]:
    """Of the most frames that a network was measured on, clip by clip; of one plan or threshold
    that was calibrated in several ways the one measured last."""
    found = {}
    for key, each in real.cells(RESULTS / f"{name.replace(' ', '_')}.json").items():
        cell, clip, frames, _ = key.split(", ")
        one = Cell(cell, clip, int(frames.split()[0]), each)
        found[one[:3]] = one
    most: dict[str, int] = {}
    for each in found.values():
        most[each.clip] = max(each.frames, most.get(each.clip, 0))
    return [c for c in found.values() if c.frames == most[c.clip]]


def is_rule(cell: Cell) -> bool:
    return cell.name.startswith(RULES)


def best(cells: Sequence[Cell], clip: str) -> Cell | None:
    """The plan of the fewest additions whose error is small enough."""
    small = [c for c in cells if c.clip == clip and not is_rule(c) and c.row["error"] <= MOST]
    return min(small, key=lambda c: c.row["later"], default=None)


def at_error(cells: Sequence[Cell], clip: str, rule: str, error: float, key: str) -> float | None:
    """What a rule costs at an error: between the two thresholds around it, by log(error)."""
    points = sorted((c.row["error"], c.row[key]) for c in cells
                    if c.clip == clip and c.name.startswith(f"{rule} {UNITS[0]} "))  # fmt: skip
    for (low, first), (high, second) in pairwise(points):
        if low <= error <= high:
            share = math.log(error / low) / math.log(high / low)
            return first + share * (second - first)
    return None


def compared() -> Iterator[str]:
    """Each network and clip: the best plan, and what the rule leaves at the same error."""
    yield (
        "| network | clip | frames | plan | error | top-1 | first frame | additions | "
        "MACs, pixel | nonzero | value | energy | pixel | nonzero | value |"
    )
    yield "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in CASES:
        cells = cells_of(name)
        for clip in clips.CLIPS:
            found = best(cells, clip)
            if found is None:
                continue
            r = found.row
            theirs = [
                shown(at_error(cells, clip, rule, r["error"], key))
                for key in ("later", "later_energy")
                for rule in RULES
            ]
            yield (
                f"| {name} | {clip} | {found.frames} | {found.name} | {r['error']:.4f} | "
                f"{100 * r['agreement']:.1f} % | {r['frames'][0]:.2f} | {r['later']:.3f} | "
                f"{' | '.join(theirs[:3])} | {r['later_energy']:.3f} | {' | '.join(theirs[3:])} |"
            )


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def swept() -> Iterator[str]:
    """Everything that was measured: error and cost, clip by clip."""
    yield "| network | plan, or rule and threshold | " + " | ".join(clips.CLIPS) + " |"
    yield "|---|---|" + "---|" * len(clips.CLIPS)
    for name in CASES:
        cells = cells_of(name)
        for cell in dict.fromkeys(c.name for c in cells):
            rows = {c.clip: c.row for c in cells if c.name == cell}
            parts = [f"{rows[c]['error']:.4f}: {rows[c]['later']:.3f}" if c in rows else ""
                     for c in clips.CLIPS]  # fmt: skip
            yield f"| {name} | {cell.replace(' deviation', '')} | {' | '.join(parts)} |"


def told(given: argparse.Namespace) -> bool:
    """Whether the tables alone were asked for."""
    if not (given.print or given.write):
        return False
    for option, table in (("--print", compared), ("--print, all", swept)):
        lines = list(table())
        print("\n".join([*lines, ""]))
        if given.write:
            real.into(real.DOCS / PAGE, f"benchmarks/videos.py {option}", lines)
    return True


def plan(text: str) -> str:
    if PLAN.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no plan; see --help")
    return text


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--clips", nargs="+", choices=clips.CLIPS, default=list(clips.CLIPS))
    parser.add_argument("--frames", type=int, default=48, help="of each clip, 48 unless given")
    parser.add_argument("--plans", nargs="*", type=plan, metavar="PLAN",
                        help="'stream 0.03', '5', each also with ' exact'")  # fmt: skip
    parser.add_argument("--thresholds", nargs="*", type=float)
    parser.add_argument("--rules", nargs="*", choices=RULES)
    parser.add_argument("--units", nargs="*", choices=UNITS, default=list(UNITS[:1]))
    parser.add_argument("--folder", help="that of the clips; of the installed package unless given")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--print", action="store_true", help="what was measured, and nothing else")
    parser.add_argument("--write", action="store_true", help="that into docs/videos.md")
    return parser


def main() -> None:
    given = options().parse_args()
    if told(given):
        return
    torch.set_num_threads(1)
    for name in given.networks:
        measure(given, name)


if __name__ == "__main__":
    main()
