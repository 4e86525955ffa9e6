"""Real processes, started by torchrun: the table is the same, and a fault of one ends all."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg

# argv: folder, seconds for a batch, a fault
SCRIPT = """
import json, os, pathlib, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
import spikingjelly_signgd as sg

folder, pause, fault = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
data = torch.load(folder / "data.pt")

class Data(TensorDataset):
    loaded = 0

    def __getitem__(self, index):
        self.loaded += 1
        time.sleep(pause / 4)
        if self.loaded == 9 and world.rank == 1 and fault == "raise":
            raise ValueError("the image is broken")
        return super().__getitem__(index)

with sg.Distributed() as world:
    assert torch.get_num_threads() == 1
    (folder / f"pid{world.rank}").write_text(str(os.getpid()))
    gathered = world.gather(torch.tensor([world.rank], dtype=torch.bfloat16))
    assert [int(x) for x in gathered] == list(range(world.size))
    shapes = [x["x"].shape for x in world.gather({"x": torch.zeros(world.rank)})]
    assert shapes == [(rank,) for rank in range(world.size)]
    assert [x.shape for x in world.gather(torch.zeros(0, 3))] == [(0, 3)] * world.size
    assert world.broadcast({"rank": world.rank}) == {"rank": 0}
    try:
        world.agree("the rank", str(world.rank))
        assert world.size == 1
    except sg.InputError as error:
        assert "rank 1: 1" in str(error)
    world.post("x" * 9 * 2**20 + str(world.rank))  # more than an entry of the store takes
    posted = []
    while world.first and len(posted) < world.size:
        posted += [(len(x), x[-1]) for x in world.posted()]
    if world.first:
        assert sorted(posted) == [(9 * 2**20 + 1, str(rank)) for rank in range(world.size)]
    snn = sg.build(sg.load(folder / "net.h5"))
    loader = DataLoader(Data(*data), 4)
    resume = folder / "results.jsonl" if pause else None
    if fault == "first alone" and not world.first:
        sys.exit()
    table = sg.evaluate(snn, loader, reference=snn.source, distributed=world, resume=resume)
    if world.first:
        (folder / "table.json").write_text(json.dumps(table.to_dict()))
    if fault == "leave early" and world.first:
        time.sleep(3)
"""


SWEEP = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
import spikingjelly_signgd as sg

folder, failing = sys.argv[1], int(sys.argv[2])
x, y = torch.load(folder + "/data.pt")

class Broken(TensorDataset):
    def __getitem__(self, i):
        if world.rank == failing and i >= 8:
            raise ValueError("the image is broken")
        return super().__getitem__(i)

with sg.Distributed() as world:
    snn = sg.build(sg.load(folder + "/net.h5"))
    whole, found = sg.evaluate(snn, DataLoader(TensorDataset(x, y), 4)), []
    for kind in (TensorDataset, Broken, TensorDataset, Broken):
        try:
            found.append(sg.evaluate(snn, DataLoader(kind(x, y), 4), distributed=world))
        except (sg.SignGDError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
    assert found[0] == found[2] == whole
    error = "SignGDError: rank %d: " % failing if world.rank != failing else ""
    assert found[1] == found[3] == error + "ValueError: the image is broken"
"""


OWN_GROUP = """
import datetime, time
import torch
import torch.distributed as dist
import spikingjelly_signgd as sg

dist.init_process_group("cpu:gloo", timeout=datetime.timedelta(seconds=2))
for _ in range(2):
    with sg.Distributed() as world:
        time.sleep(4 * world.rank)  # longer than the group waits
        assert world.gather(world.rank) == [0, 1] and world.broadcast(world.rank) == 0
        assert [int(x) for x in world.gather(torch.tensor(world.rank))] == [0, 1]
x = torch.ones(1)
dist.all_reduce(x)
assert int(x) == 2
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    x, y = torch.randn(31, 6), torch.randint(7, (31,))
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 7)).eval()
    torch.save((x, y), folder / "data.pt")
    sg.save(sg.convert(model, x, time_steps=4, tune=False), folder / "net.h5")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "sweep.py").write_text(SWEEP)
    (folder / "own_group.py").write_text(OWN_GROUP)
    return folder


@pytest.fixture(scope="module")
def table(folder):
    """Of one process, as a document."""
    x, y = torch.load(folder / "data.pt")
    snn = sg.build(sg.load(folder / "net.h5"))
    batches = list(zip(x.split(4), y.split(4), strict=True))
    return json.loads(json.dumps(sg.evaluate(snn, batches, reference=snn.source).to_dict()))


def start(folder, size, pause=0.0, fault="none"):
    for name in ("table.json", *(f"pid{rank}" for rank in range(size))):
        (folder / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", size, folder / "script.py", folder, pause, fault]
    return run(command, folder)


def run(command, folder):
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, start_new_session=True
        )


def ended(process, folder, seconds):
    """The exit code and what was printed; nothing is left running."""
    try:
        code = process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for file in folder.glob("pid*"):
        deadline = time.monotonic() + 5
        while running(pid := int(file.read_text())) and time.monotonic() < deadline:
            time.sleep(0.1)
        if running(pid):
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{file.name} was left running")
    return code, (folder / "log.txt").read_text()


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def lines(folder):
    file = folder / "results.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(folder, table):
    """One of them waits for the other at the end."""
    code, log = ended(start(folder, 2, fault="leave early"), folder, 60)
    assert code == 0, log
    assert json.loads((folder / "table.json").read_text()) == table


def until(process, folder, count):
    """Waits for so many lines of results."""
    while lines(folder) < count and process.poll() is None:
        time.sleep(0.05)


SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", *SIGNALS])
def test_a_fault_of_one_process_ends_all(fault, folder, table):
    """And another number of processes computes the rest."""
    (folder / "results.jsonl").unlink(missing_ok=True)
    process = start(folder, 2, 0.8, fault)
    until(process, folder, 3)
    if fault in SIGNALS:
        rank = int((folder / "pid1").read_text())
        os.kill(process.pid if fault == "interrupt" else rank, SIGNALS[fault])
    began = time.monotonic()
    code, log = ended(process, folder, 60)
    assert code != 0 and time.monotonic() - began < 30, log
    assert fault != "raise" or "ValueError: the image is broken" in log
    assert fault != "stop" or "rank 1: no sign of life" in log
    assert 3 <= lines(folder) < 9
    code, log = ended(start(folder, 3, 0.01), folder, 60)
    assert code == 0, log
    assert json.loads((folder / "table.json").read_text()) == table and lines(folder) == 9


@pytest.mark.slow
def test_a_process_that_leaves_the_others_waiting_ends_all(folder):
    """As with evaluate(distributed=) under "if world.first"."""
    code, log = ended(start(folder, 2, fault="first alone"), folder, 30)
    assert code != 0 and "rank 1: left the block" in log and "if world.first" in log


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("sweep.py", 0), ("sweep.py", 1), ("own_group.py",)])
def test_a_script(arguments, folder):
    """Which catches an error of one process, or has a group of its own."""
    for file in folder.glob("pid*"):
        file.unlink()
    script, *more = arguments
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", 2, folder / script, folder, *more]
    code, log = ended(run(command, folder), folder, 60)
    assert code == 0, log
