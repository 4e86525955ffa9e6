"""Frames a second of a network that watches, by how much of the image changes: docs/silence.md.

    python benchmarks/silence.py [NETWORK ...] [--seconds 2]
    python benchmarks/silence.py --print | --write     the tables; into docs/silence.md

One stream, one thread of the CPU. In every frame a square of so many per cent of the pixels, at
another place each time, takes the values of another image, so that each of its pixels changes;
"scattered" are as many pixels anywhere. Three are asked frame by frame, in an order drawn anew: the
source network in torch (eval, no_grad, in the faster of torch's two memory formats),
``sg.watch(snn)`` and ``sg.watch(snn, silent=True)`` of a plan with 6 members, a dead zone of 2/3
and one step a frame. A time is the processor's, of one thread; ratios are medians over the frames,
with 95 % intervals by bootstrap. The image networks are those of examples/networks.py for
Fashion-MNIST, 28 x 28; "camera" and "mobile" take 3 x 128 x 128 and have seeded weights. A figure
goes to benchmarks/results/silence.json at once, and is not measured again; --again does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accuracy import machine
from paired import interval
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core.module import Walk  # noqa: E402
from spikingjelly_signgd.core.network import SignGDNeuron  # noqa: E402
from spikingjelly_signgd.core.silence import SilentSession  # noqa: E402
from spikingjelly_signgd.core.silent_steps import Program  # noqa: E402
from spikingjelly_signgd.core.walk import visits  # noqa: E402
from spikingjelly_signgd.neurons.kernels.silence import runner  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "silence.json"
PAGE = Path(__file__).parent.parent / "docs" / "silence.md"
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit", "camera", "mobile")
SHARES = (0.0, 1.0, 5.0, 20.0, 100.0)  # per cent of the pixels
MEMBERS, DEAD_ZONE = 6, 2 / 3
WAYS = ("source", "dense", "silent")
WARM = 10  # frames: caches, kernels, neurons that settle


# -- networks --------------------------------------------------------------------------------------


def camera() -> nn.Module:
    """Six convolutions, 156 million multiply-accumulates."""
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1),
                                    (64, 128, 2), (128, 128, 1)):  # fmt: skip
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Inverted(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * fan_in
        self.skip = stride == 1 and fan_in == fan_out
        self.layers = nn.Sequential(
            *(nn.Conv2d(fan_in, wide, 1), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6()),
            nn.Conv2d(wide, fan_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def mobile() -> nn.Module:
    """Six inverted residual blocks, 34 million multiply-accumulates."""
    blocks = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1))
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6()),
        *(Inverted(*block) for block in blocks),
        *(nn.Conv2d(40, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(128, 10),
    )


def seeded(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
    return model


def smooth_images(count: int) -> Tensor:
    """Noise of several sizes, [count, 3, 128, 128] in [0, 1]."""
    parts = [
        nn.functional.interpolate(torch.rand(count, 3, n, n), 128, mode="bilinear")
        for n in (4, 8, 16, 32)
    ]
    return torch.stack(parts).mean(0)


def named(name: str) -> tuple[nn.Module, Tensor]:
    """A network, and images that it is for."""
    if name in ("camera", "mobile"):
        model = seeded(camera() if name == "camera" else mobile())
        torch.manual_seed(1)
        return model.eval(), smooth_images(32)
    return load_network(name, "fashion").eval(), fashion_mnist().train.images[:64]


def planned(model: nn.Module, images: Tensor) -> sg.SpikingNetwork:
    """A plan of one step a frame, every frame's like the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few samples
        network = sg.convert(
            model, images, time_steps=1, members=MEMBERS, dead_zone=DEAD_ZONE,
            input_coding="spike", tune=False,
        )  # fmt: skip
    nodes = {
        node.name: replace(node, schedule=sg.ConstantSchedule(node.schedule(1)), members=MEMBERS)
        for node in network.of(SignGDNeuron)
    }
    return network.with_nodes(nodes).replace(stream=True)


# -- frames ----------------------------------------------------------------------------------------


def frames(images: Tensor, share: float, scattered: bool, seed: int = 0) -> Iterator[Tensor]:
    """Frames [1, C, H, W] without end."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    now = images[:1].clone()
    height, width = now.shape[2:]
    side = [min(n, max(1, round(n * (share / 100) ** 0.5))) for n in (height, width)]
    while True:
        if share:
            other = images[rng.randrange(len(images))]
            other = (other + 0.1 * torch.rand(other.shape, generator=noise)).clamp(0, 1.1)
            where = torch.zeros(height, width, dtype=torch.bool)
            if scattered:
                count = round(height * width * share / 100)
                where.view(-1)[torch.randperm(height * width, generator=noise)[:count]] = True
            else:
                top, left = rng.randint(0, height - side[0]), rng.randint(0, width - side[1])
                where[top : top + side[0], left : left + side[1]] = True
            now = torch.where(where, other, now)
        yield now


# -- measuring -------------------------------------------------------------------------------------


@torch.no_grad()
def faster_format(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The source network in the faster of contiguous and channels_last."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = model.to(memory_format=layout)  # type: ignore[call-overload]
        times = []
        for _ in range(20):
            start = time.process_time()
            laid(x)
            times.append(time.process_time() - start)
        found.append((median(times), layout))
    best = min(found, key=lambda each: each[0])[1]
    return model.to(memory_format=best)  # type: ignore[call-overload,no-any-return]


class Case:
    """A network three ways, each a function of a frame."""

    def __init__(self, name: str) -> None:
        model, self.images = named(name)
        self.name, self.network = name, planned(model, self.images)
        self.source = faster_format(model, self.images[:1])

    def ways(self) -> tuple[dict[str, Callable[[Tensor], Tensor]], SilentSession]:
        dense = sg.watch(sg.build(self.network, "spikingjelly"))
        silent = sg.watch(sg.build(self.network, "spikingjelly"), silent=True)
        assert silent.silence is not None
        return {"source": self.source, "dense": dense, "silent": silent}, silent.silence


@torch.no_grad()
def measured(case: Case, share: float, scattered: bool, seconds: float) -> dict[str, Any]:
    ways, session = case.ways()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    errors, by_torch, rng = [], [], random.Random(1)
    stream, end, seen = frames(case.images, share, scattered), 0.0, 0
    while seen < WARM + 20 or (time.monotonic() < end and seen < 2000):
        frame, found = next(stream), {}
        for way in rng.sample(WAYS, 3):
            start = time.process_time()
            found[way] = ways[way](frame)
            if seen >= WARM:
                times[way].append(time.process_time() - start)
        seen += 1
        if seen == WARM:
            end = time.monotonic() + seconds
        errors.append(float((found["silent"] - found["source"]).norm() / found["source"].norm()))
        by_torch.append(len(session.by_torch))
    ratios = {
        way: [b / s for b, s in zip(times[way], times["silent"], strict=True)]
        for way in ("source", "dense")
    }
    return {
        "frames": len(times["silent"]),
        "microseconds": {way: median(each) * 1e6 for way, each in times.items()},
        "faster_than": {way: [median(each), *interval(each)] for way, each in ratios.items()},
        "error": median(errors),
        "steps": len(session.shares),
        "by_torch": median(by_torch),
    }


@torch.no_grad()
def by_kind(case: Case, share: float, times: int = 20) -> dict[str, float]:
    """Microseconds of a silent frame by the kind of step, each run on its own; medians."""
    session = SilentSession(sg.build(case.network, "spikingjelly"))
    stream, found = frames(case.images, share, False), []
    for _ in range(WARM):
        session(next(stream))
    assert session.plan is not None
    for _ in range(times):
        session.plan.given.fresh.copy_(next(stream))
        found.append(_one_by_one(session.plan.program))
    return {kind: median([each[kind] for each in found]) * 1e6 for kind in found[0]}


def _one_by_one(program: Program) -> dict[str, float]:
    run, taken = runner(), dict.fromkeys([step.kind for step in program.steps], 0.0)
    for i, (step, struct) in enumerate(zip(program.steps, program.structs, strict=True)):
        start = time.process_time()
        if run(program.structs, i, i + 1, 0) == i:
            step.by_torch(struct)
            run(program.structs, i, i + 1, 1)
        taken[step.kind] += time.process_time() - start
    return taken


@torch.no_grad()
def dense_by_kind(case: Case, times: int = 20) -> dict[str, float]:
    """Microseconds of a frame of the dense path by kind of node; medians."""
    snn, found = sg.build(case.network, "spikingjelly"), []
    frame = case.images[:1]
    sg.run(snn, frame.unsqueeze(0), 1, sequence=True, keep_state=True)
    for _ in range(times):
        state = snn.new_frame(snn.state_kept)
        assert state is not None
        found.append(_node_by_node(snn, Walk(snn, frame, None, {}, state)))
    return {kind: median([each[kind] for each in found]) * 1e6 for kind in found[0]}


def _node_by_node(snn: Any, semantics: Walk) -> dict[str, float]:
    taken: dict[str, float] = {}
    values: dict[str, Any] = {}
    before, start = "", 0.0
    for node in visits(snn.network, semantics, values):
        now = time.process_time()
        if before:
            taken[before] = taken.get(before, 0.0) + now - start
        before, start = getattr(node, "op", node.kind), time.process_time()
    taken[before] = taken.get(before, 0.0) + time.process_time() - start
    return taken


def cells() -> Iterator[tuple[float, bool]]:
    for share in SHARES:
        yield share, False
        if 0 < share < 100:
            yield share, True


def found() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # type: ignore[no-any-return]


def key(share: float, scattered: bool) -> str:
    return f"{share:g} %{' scattered' if scattered else ''}"


def run(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in given.networks or NETWORKS:
        case = Case(name)
        results = found()
        of = results.setdefault("networks", {}).setdefault(name, {})
        for share, scattered in cells():
            if key(share, scattered) not in of or given.again:
                of[key(share, scattered)] = measured(case, share, scattered, given.seconds)
                print(name, key(share, scattered), of[key(share, scattered)], flush=True)
        session = case.ways()[1]
        for frame in case.images[:3]:
            session(frame[None])
        of["break_even"] = session.break_evens
        of["kinds"] = {"dense": dense_by_kind(case)}
        of["kinds"] |= {key(share, False): by_kind(case, share) for share in (0.0, 5.0)}
        RESULTS.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")


# -- tables ----------------------------------------------------------------------------------------


def times_table(networks: dict[str, Any]) -> list[str]:
    """How many times as fast as the source network, and in brackets as our own dense path."""
    columns = [key(*cell) for cell in cells()]
    rows = [f"| network | source, us | {' | '.join(columns)} |", "|---|---:|" + "---:|" * 8]
    for name, of in networks.items():
        source = median([of[column]["microseconds"]["source"] for column in columns])
        shown = []
        for column in columns:
            ratio, low, high = of[column]["faster_than"]["source"]
            mark = "**" if low > 1 else ""
            dense = of[column]["faster_than"]["dense"][0]
            shown.append(f"{mark}{ratio:.2f}{mark} ({dense:.1f})")
        rows.append(f"| {name} | {source:,.0f} | {' | '.join(shown)} |")
    return rows


def seconds_table(networks: dict[str, Any]) -> list[str]:
    """Frames a second of the silent path, and in how many of its steps torch computes all."""
    columns = [key(*cell) for cell in cells()]
    rows = [f"| network | steps | {' | '.join(columns)} |", "|---|---:|" + "---:|" * 8]
    for name, of in networks.items():
        shown = [
            f"{1e6 / of[c]['microseconds']['silent']:,.0f} ({of[c]['by_torch']:.0f})"
            for c in columns
        ]
        rows.append(f"| {name} | {of['0 %']['steps']} | {' | '.join(shown)} |")
    return rows


def break_even_table(networks: dict[str, Any]) -> list[str]:
    rows = ["| network | steps with an update | never whole | least | median |",
            "|---|---:|---:|---:|---:|"]  # fmt: skip
    for name, of in networks.items():
        known = sorted(of["break_even"].values())
        below = [share for share in known if share < 1]
        least = f"{below[0]:.0%}" if below else "-"
        middle = f"{median(below):.0%}" if below else "-"
        rows.append(f"| {name} | {len(known)} | {len(known) - len(below)} | {least} | {middle} |")
    return rows


def kinds_table(networks: dict[str, Any]) -> list[str]:
    rows = ["| network | frame | us by kind |", "|---|---|---|"]
    for name in ("vgg", "convnext", "camera", "mobile"):
        for frame, kinds in networks.get(name, {}).get("kinds", {}).items():
            most = sorted(kinds.items(), key=lambda each: -each[1])[:6]
            shown = ", ".join(f"{kind} {us:,.0f}" for kind, us in most if us >= 0.5)
            title = "dense path" if frame == "dense" else f"silent path, {frame}"
            rows.append(f"| {name} | {title} | {shown} |")
    return rows


def tables() -> dict[str, list[str]]:
    networks = {n: of for n, of in found().get("networks", {}).items() if "kinds" in of}
    return {
        "faster": times_table(networks),
        "frames a second": seconds_table(networks),
        "break-even": break_even_table(networks),
        "kinds": kinds_table(networks),
    }


def page(text: str) -> str:
    for name, rows in tables().items():
        begin, end = f"<!-- benchmarks/silence.py: {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = "\n".join([before + begin, "", *rows, "", end + rest.split(end)[1]])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each cell")
    parser.add_argument("--again", action="store_true", help="also what was measured")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="the tables into docs/silence.md")
    given = parser.parse_args()
    if given.write:
        PAGE.write_text(page(PAGE.read_text()))
    elif given.print:
        for name, rows in tables().items():
            print(f"\n{name}\n", *rows, sep="\n")
    else:
        run(given)


if __name__ == "__main__":
    main()
