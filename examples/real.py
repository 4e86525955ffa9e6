"""What the examples with trained weights share: photographs, measuring, one table.

The weights and the photographs come inside packages (tests/vision/), nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.core.network import leaves

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "real"
DOCS = ROOT / "docs"
PLANS = ("8x1", "9x1", "6x2", "5x1", "1x32", "group 8x1", "group 8x2")
BATCH = 8
COUNTED = 16  # samples on which spikes and additions are counted
FORKED = multiprocessing.get_context("fork")

# of skimage.data, what is a photograph, in colours or grey
OF_SKIMAGE = (
    "astronaut brick camera chelsea clock_motion coffee coins grass gravel horse "
    "hubble_deep_field ihc moon motorcycle_left motorcycle_right page retina rocket"
).split()


# -- photographs ----------------------------------------------------------------------------------


def photographs() -> dict[str, Tensor]:
    """Those of scikit-image, scikit-learn and matplotlib, [3, H, W] uint8, by name."""
    import matplotlib
    import sklearn.datasets
    from skimage import data

    folder = Path(data.__file__).parent
    images = Path(sklearn.datasets.__file__).parent / "images"
    sample_data = Path(matplotlib.get_data_path()) / "sample_data"
    files = [next(folder.glob(f"{name}.*")) for name in OF_SKIMAGE]
    files += [images / "china.jpg", images / "flower.jpg", sample_data / "grace_hopper.jpg"]
    return {file.stem: opened(file) for file in files}


def opened(file: Path) -> Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def crops(
    images: Sequence[Tensor], n: int, size: int, seed: int, smallest: int | None = None
) -> Tensor:
    """n random crops [n, 3, size, size] in 0..255, float: place, side, flip and brightness.

    The side is from ``smallest`` (half the size) to all of the image, evenly on a log scale.
    """
    generator = torch.Generator().manual_seed(seed)
    low, found = smallest or size // 2, []

    def between(a: float, b: float) -> float:
        return a + (b - a) * float(torch.rand((), generator=generator))

    for i in range(n):
        image = images[i % len(images)]
        height, width = image.shape[1:]
        side = int(math.exp(between(math.log(low), math.log(max(low, min(height, width))))))
        side = min(side, height, width)
        top, left = int(between(0, height - side)), int(between(0, width - side))
        part = image[None, :, top : top + side, left : left + side].float()
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
        part = part.flip(2) if between(0, 1) < 0.5 else part
        found.append((part * between(0.6, 1.2)).clamp(0, 255))
    return torch.stack(found)


# -- measuring ------------------------------------------------------------------------------------


def options(plan: str) -> dict[str, Any]:
    """``8x1``, members x steps, or ``group 8x1``, as arguments of ``convert``."""
    method, _, numbers = plan.rpartition(" ")
    members, steps = (int(number) for number in numbers.split("x"))
    return {"method": method or "signgd", "members": members, "time_steps": steps}


def relative(have: Any, want: Any) -> float:
    """The norm of the difference over that of ``want``, over all outputs."""
    pairs = list(zip(leaves(have), leaves(want), strict=True))
    wrong = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (wrong / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


@torch.no_grad()
def outputs(snn: Any, x: Any, batch: int = BATCH) -> Any:
    """Decoded after the steps that the network was planned for, [N, ...], of a tensor or Inputs."""
    steps = snn.network.time_steps
    parts = [sg.run(snn, part, steps)[steps] for part in x.split(batch)]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [
        torch.cat(same) for same in zip(*(list(leaves(p)) for p in parts), strict=True)
    ]  # fmt: skip


def converted(
    model: torch.nn.Module, calibration: Any, plan: str, tune: bool, **others: Any
) -> tuple[sg.SpikingNetwork, float]:
    """The network of a plan, and the CPU seconds that took; ``others`` are of ``convert``, too."""
    begun = time.process_time()
    batches = list(calibration.split(BATCH))
    network = sg.convert(model, batches, tune=tune, max_batches=None, **options(plan), **others)
    return network, time.process_time() - begun


def costs(snn: Any, x: Any) -> dict[str, float]:
    """Spikes of a neuron for a sample, and additions for each MAC of the source."""
    counts = count_operations(snn, x[:COUNTED])
    return {"spikes": counts.spikes / counts.neurons, "additions": counts.additions_per_mac}


def apart(
    function: Callable[..., Mapping[str, Any]],
    *arguments: Any,
    seconds: float = math.inf,
    gigabytes: float = math.inf,
) -> dict[str, Any]:
    """What ``function`` returns in a process of its own, its "peak" in bytes, its "cpu" seconds.

    It ends at the limits, which "stopped" tells: seconds of CPU, or ten times as many on the clock,
    and memory. It is a fork, so what the caller has loaded counts as its own.
    """
    answer, theirs = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    begun, stopped = time.monotonic(), ""
    while not answer.poll(0.2) and not stopped:
        if _worked(process.pid or 0) > seconds or time.monotonic() - begun > 10 * seconds:
            stopped = f"over {seconds:g} seconds"
        elif _resident(process.pid or 0) > gigabytes * 2**30:
            stopped = f"over {gigabytes:g} GB"
    try:
        row: dict[str, Any] = {"stopped": stopped} if stopped else answer.recv()
    except EOFError:
        process.join()
        row = {"stopped": f"its process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return row | {"wall": time.monotonic() - begun}


def _answer(pipe: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    row, used = dict(function(*arguments)), resource.getrusage(resource.RUSAGE_SELF)
    pipe.send(row | {"peak": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime})


def _worked(pid: int) -> float:
    """CPU seconds of a process, as Linux has them; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """Bytes of a process in memory, as Linux has it; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


# -- a script -------------------------------------------------------------------------------------


def options_of(doc: str | None, plans: Sequence[str], results: str) -> argparse.ArgumentParser:
    """The options that every script has; it adds its own."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--plans", nargs="+", default=list(plans), metavar="MxT")
    parser.add_argument("--tune", action="store_true", help="also tune each plan")
    parser.add_argument("--results", type=Path, default=RESULTS / results)
    parser.add_argument(
        "--print", action="store_true", help="print the results measured before and exit"
    )
    parser.add_argument(
        "--write", action="store_true", help="write them into the page of documentation"
    )
    return parser


def only_told(given: argparse.Namespace, page: str, command: str, lines: Iterable[str]) -> bool:
    """Whether what was measured was asked for alone: it is printed, and written with --write."""
    if not (given.print or given.write):
        return False
    lines = list(lines)
    print("\n".join(lines))
    if given.write:
        into(DOCS / page, f"{command} --print", lines)
    return True


def each(given: argparse.Namespace) -> Iterator[tuple[str, bool, str]]:
    """Each plan, whether it is tuned, and the name of its cell."""
    for plan in given.plans:
        for tune in (False, True) if given.tune else (False,):
            yield plan, tune, f"{plan}{' tuned' if tune else ''}"


# -- results --------------------------------------------------------------------------------------


def keep(path: Path, cell: str, row: Mapping[str, Any]) -> None:
    """Into the JSON object of a file, which is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({**cells(path), cell: dict(row)}, indent=1) + "\n")
    os.replace(partial, path)


def cells(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def into(page: Path, command: str, lines: Iterable[str]) -> None:
    """Put the lines between the page's markers for ``command``."""
    begin, end = f"<!-- python {command} -->", "<!-- end of what it prints -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end, 1)
    shown = "\n".join(lines).strip()
    page.write_text(f"{before}{begin}\n\n{shown}\n\n{end}{after}")
