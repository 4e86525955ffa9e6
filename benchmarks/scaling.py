"""``evaluate`` in several processes: the same table for every number of them, and after faults.

    python benchmarks/scaling.py table [--network vgg] [--processes 1 2 3 4]
    python benchmarks/scaling.py faults [--network vgg] [--seed 0]

The first 1,003 test images of Fashion-MNIST, in batches of 64, the last of 43, on CPUs over gloo.

``table`` runs the command alone, under torchrun with N processes, with two torchrun of one process
each that meet over loopback, and, where the system lets it, with these in network namespaces of
their own, joined by a virtual cable. Every column that is measured is compared with the first row's
to the last bit.

``faults`` starts two processes with --resume, disturbs them, measures how long all take to end, and
goes on where they stopped, with another number of processes: kill -9 of one at five random times,
an exception in the data of one, a file of an image that is damaged, Ctrl-C, and kill -9 of torchrun
itself. The table is then compared with an undisturbed one to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

HERE = Path(__file__).resolve().parent
IMAGES, BATCH = 1003, 64
STEPS = ("1", "2", "4", "8", "16", "32", "64")
# what is measured, and not how fast
MEASURED = (
    "T agreement top1 top5 source_top1 output_error images skipped spikes additions_per_mac counted"
).split()
PIXELS = ["--scale-pixels", "--mean", "0.286", "--std", "0.353"]
OWN = ["--data", "scaling:Images"]
FOLDER = ["--data", "images", *PIXELS]
LIMIT = 600  # seconds for a run
# two machines, as far as their network goes: a namespace in which the second sleeps
NAMESPACES = """
ip link set lo up
unshare -n sleep 1000 & other=$!
sleep 0.5
ip link add left type veth peer name right netns $other
ip addr add 10.77.0.1/24 dev left && ip link set left up
nsenter -t $other -n sh -c 'ip link set lo up
    ip addr add 10.77.0.2/24 dev right && ip link set right up'
GLOO_SOCKET_IFNAME=left {first} & one=$!
GLOO_SOCKET_IFNAME=right nsenter -t $other -n {second}
wait $one; code=$?
kill $other
exit $code
"""


class Images(Dataset[Any]):
    """Images and labels of ``images.pt`` here; the one of SCALING_RAISES cannot be loaded."""

    def __init__(self) -> None:
        self.x, self.y = torch.load("images.pt")
        self.raises = int(os.environ.get("SCALING_RAISES", -1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        if row == self.raises:
            Path("raised").touch()
            raise RuntimeError(f"sample {row} is not there")
        return self.x[row], int(self.y[row])


def prepare(network: str) -> None:
    """net.h5, images.pt and a folder images/ of the same, here."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    from data import FASHION_MEAN, FASHION_STD, fashion_mnist
    from networks import load_network
    from PIL import Image

    import spikingjelly_signgd as sg

    data = fashion_mnist()
    model = load_network(network, "fashion")
    made = sg.convert(model, data.train.images[:256], time_steps=int(STEPS[-1]), tune=False)
    sg.save(made, "net.h5")
    x, y = data.test.images[:IMAGES], data.test.labels[:IMAGES]
    torch.save((x, y), "images.pt")
    pixels = ((x * FASHION_STD + FASHION_MEAN) * 255).round().byte()
    for i, (image, label) in enumerate(zip(pixels, y.tolist(), strict=True)):
        folder = Path("images", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i:04}.png")


# -- runs -----------------------------------------------------------------------------------------


def launched(processes: int, *more: str) -> list[str]:
    """A command line under torchrun; with 0 processes without it."""
    if not processes:
        return [sys.executable, "-m", "spikingjelly_signgd"]
    run = [sys.executable, "-m", "torch.distributed.run", *(more or ["--standalone"])]
    return [*run, f"--nproc-per-node={processes}", "-m", "spikingjelly_signgd"]


def evaluating(data: Sequence[str], *more: str) -> list[str]:
    sizes = ["--batch-size", str(BATCH), "--time-steps", *STEPS]
    return ["evaluate", "net.h5", *data, *sizes, "--results-file", "results.json", *more]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run(command: Sequence[str], **more: str) -> float:
    """Seconds of a command that ends well; what it says where it does not."""
    begun = time.perf_counter()
    done = subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=LIMIT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - begun


def results() -> list[dict[str, Any]]:
    """Of the run before; the next one writes its own."""
    rows: list[dict[str, Any]] = json.loads(Path("results.json").read_text())
    os.unlink("results.json")
    return rows


def measured(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Floats as JSON has them: the shortest text that only this one is read from."""
    return [[row[name] for name in MEASURED] for row in rows]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


# -- the same table for every number --------------------------------------------------------------


def table(network: str, processes: Sequence[int]) -> None:
    prepare(network)
    ways: dict[str, Callable[[], float]] = {
        f"torchrun, {number}" if number else "alone": partial(
            run, [*launched(number), *evaluating(OWN)]
        )
        for number in (0, *processes)
    }
    ways |= {"two torchrun of 1, loopback": two_nodes, "the same, network namespaces": namespaces}
    print("| processes | seconds in all | of these evaluating | images per second | equal |")
    print("|---|---|---|---|---|")
    first: list[list[Any]] = []
    for name, way in ways.items():
        try:
            seconds = way()
        except Unavailable as reason:
            print(f"| {name} | {reason} | | | |")
            continue
        rows = results()
        first = first or measured(rows)
        equal = "every bit" if measured(rows) == first else "NO"
        evaluated, speed = rows[0]["seconds"], rows[0]["images_per_second"]
        print(f"| {name} | {seconds:.1f} | {evaluated:.1f} | {speed:.0f} | {equal} |", flush=True)
    print(f"\n{network}: the table of all of them\n")
    print("| T | top-1 | agreement | output error | additions per MAC |\n|---|---|---|---|---|")
    for row in (dict(zip(MEASURED, values, strict=True)) for values in first):
        print(
            "| {T} | {top1!r} | {agreement!r} | {output_error!r} | {additions_per_mac!r} |".format(
                **row
            )
        )


class Unavailable(Exception):
    """What this system does not let anybody do."""


def node(endpoint: str, *more: str) -> list[str]:
    nodes = [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        "--rdzv-id=scaling",
    ]
    return [*launched(1, *nodes, *more), *evaluating(OWN)]


def two_nodes() -> float:
    """Two torchrun, as on two machines."""
    endpoint, begun = f"localhost:{free_port()}", time.perf_counter()
    other = subprocess.Popen(
        node(endpoint), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        run(node(endpoint))
        other.wait(LIMIT)
    finally:
        other.kill()
    return time.perf_counter() - begun


def namespaces() -> float:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"]).returncode:
        raise Unavailable("not allowed here")
    endpoint = "10.77.0.1:29477"
    first = node(endpoint, "--local-addr=10.77.0.1", "--rdzv-conf=is_host=1")
    second = node(endpoint, "--local-addr=10.77.0.2", "--rdzv-conf=is_host=0")
    script = NAMESPACES.format(first=" ".join(first), second=" ".join(second))
    return run(["unshare", "-rn", "bash", "-c", script])


# -- faults ---------------------------------------------------------------------------------------


@dataclass
class Running:
    """torchrun with its processes, in a group of its own as a shell would start it."""

    torchrun: subprocess.Popen[bytes]

    def ranks(self) -> dict[int, int]:
        """Process ids by rank; empty while they are not started."""
        found = {}
        for pid in children(self.torchrun.pid):
            rank = dict(
                pair.split("=", 1) for pair in read(pid, "environ").split("\0") if "=" in pair
            ).get("RANK")
            if rank is not None:
                found[int(rank)] = pid
        return found


@contextmanager
def running(command: Sequence[str], **more: str) -> Iterator[Running]:
    with open("said.txt", "w") as said:
        process = subprocess.Popen(
            command, env=environment(**more), stdout=said, stderr=said, start_new_session=True
        )
        found = Running(process)
        try:
            yield found
        finally:
            for pid in (*found.ranks().values(), process.pid):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            process.wait(LIMIT)


def read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it is gone
        return ""


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        found += map(int, read(pid, f"task/{thread.name}/children").split())
    return found


def alive(pid: int) -> bool:
    """Whether it runs; what is dead and was not waited for does not."""
    state = read(pid, "stat").rpartition(")")[2].split()
    return bool(state) and state[0] != "Z"


def disturbed(fault: Any, command: Sequence[str], **more: str) -> tuple[int, float, int]:
    """Of two processes: exit code, seconds from the fault to the end of all, and how many do not
    end."""
    with running(command, **more) as run:
        while len(ranks := run.ranks()) < 2:
            time.sleep(0.02)
        since = fault(run, ranks)
        code = run.torchrun.wait(LIMIT)
        while any(map(alive, ranks.values())) and time.perf_counter() - since < 60:
            time.sleep(0.05)
        return code, time.perf_counter() - since, sum(map(alive, ranks.values()))


def killing(seconds: float, victim: int) -> Any:
    """kill -9 of a rank, of torchrun where it is -1; Ctrl-C where it is -2; so many seconds after
    the first batch is finished."""

    def fault(run: Running, ranks: dict[int, int]) -> float:
        while not finished() and run.torchrun.poll() is None:
            time.sleep(0.02)
        time.sleep(seconds)
        if victim == -2:
            os.killpg(run.torchrun.pid, signal.SIGINT)
        else:
            os.kill(run.torchrun.pid if victim < 0 else ranks[victim], signal.SIGKILL)
        return time.perf_counter()

    return fault


def by_itself(run: Running, ranks: dict[int, int]) -> float:
    """A fault of the data: from the exception on, or from what is said of it."""
    while run.torchrun.poll() is None and not Path("raised").exists():
        if "cannot read" in Path("said.txt").read_text():
            break
        time.sleep(0.02)
    Path("raised").unlink(missing_ok=True)
    return time.perf_counter()


def finished() -> int:
    """Batches in the file of --resume, behind its head."""
    file = Path("done.jsonl")
    return max(0, len(file.read_bytes().splitlines()) - 1) if file.is_file() else 0


def faults(network: str, seed: int) -> None:
    prepare(network)
    undisturbed = {}
    for name, data in (("own", OWN), ("folder", FOLDER)):
        run([*launched(2), *evaluating(data)])
        rows = results()
        undisturbed[name] = measured(rows)
    seconds = rows[0]["seconds"]
    print(f"undisturbed: {seconds:.1f} s of evaluating, {-(-IMAGES // BATCH)} batches\n")
    print("| fault | exit code | seconds to the end of all | left | batches done | "
          "gone on with | equal |\n|---|---|---|---|---|---|---|")  # fmt: skip
    generator = random.Random(seed)
    after = iter((1, 2, 3, 4) * 3)

    def row(what: str, fault: Any, name: str = "own", repair: Any = None, **more: str) -> None:
        Path("done.jsonl").unlink(missing_ok=True)
        data = OWN if name == "own" else FOLDER
        command = [*launched(2), *evaluating(data, "--resume", "done.jsonl")]
        code, end, left = disturbed(fault, command, **more)
        done, number = finished(), next(after)
        if repair is not None:
            repair()
        run([*launched(number), *evaluating(data, "--resume", "done.jsonl")])
        equal = "every bit" if measured(results()) == undisturbed[name] else "NO"
        print(f"| {what} | {code} | {end:.1f} | {left} | {done} | {number} | {equal} |", flush=True)

    for _ in range(5):
        at, victim = generator.uniform(0, 0.8) * seconds, generator.randrange(2)
        row(f"kill -9 of rank {victim} after {at:.1f} s", killing(at, victim))
    row("kill -9 of torchrun", killing(0.4 * seconds, -1))
    row("Ctrl-C", killing(0.4 * seconds, -2))
    row("exception in the data of one rank", by_itself, SCALING_RAISES=str(IMAGES - 20))
    image = sorted(Path("images/9").iterdir())[-1]
    whole = image.read_bytes()
    image.write_bytes(whole[:60] + bytes(len(whole) - 60))
    row("a damaged image", by_itself, "folder", lambda: image.write_bytes(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("table", "faults"))
    parser.add_argument("--network", default="vgg")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if options.what == "table":
            table(options.network, options.processes)
        else:
            faults(options.network, options.seed)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
