"""Commands under torchrun: what several processes do, and what they refuse."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cli_zoo
import numpy as np
import pytest
import scaling
from PIL import Image
from several import several

import spikingjelly_signgd as sg
from spikingjelly_signgd import converters
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.commands import COMMANDS
from spikingjelly_signgd.cli.options import build_parser
from spikingjelly_signgd.cli.processes import SEVERAL
from spikingjelly_signgd.core.dealing import deal

# of every command arguments that can be parsed, of things that are not there
ARGUMENTS = {
    "check": ["absent:model", "--input", "3"],
    "convert": ["absent:model", "--data", "absent.npz", "-o", "net.h5"],
    "search": ["absent:model", "--data", "absent.npz", "--additions", "1", "-o", "net.h5"],
    "fine-tune": ["absent.h5", "--data", "absent.npz", "-o", "net.h5"],
    "evaluate": ["absent.h5", "--data", "absent.npz"],
    "doctor": ["absent.h5", "--data", "absent.npz"],
    "export": ["absent.h5", "-o", "net.nir"],
    "verify": ["absent.h5"],
    "energy": ["absent.h5", "--data", "absent.npz"],
    "bench": ["absent.h5", "--data", "absent.npz"],
    "report": ["absent.h5", "--data", "absent.npz", "-o", "a.html"],
}


@pytest.fixture
def second(monkeypatch):
    """As the second process of torchrun's two."""
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_commands_that_would_only_run_several_times_refuse(name, second, monkeypatch, capsys):
    assert main([name, *ARGUMENTS[name]]) == 2
    out, err = capsys.readouterr()
    refused = f"{name}: rank 1: {name} runs in one process, but torchrun started 2" in err
    # those that may run go on to look for the other processes
    assert refused == (name not in SEVERAL) and refused == ("MASTER_ADDR" not in err)
    assert not out and set(ARGUMENTS) == set(build_parser()[1])


def test_one_process_of_torchruns_is_like_none(monkeypatch, capsys):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["verify", "absent.h5"]) == 2
    assert "there is no file 'absent.h5'" in capsys.readouterr().err


def test_a_rank_of_nobody_is_not_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert main(["verify", "absent.h5"]) == 2
    assert "RANK 3, but WORLD_SIZE 1" in capsys.readouterr().err


def test_usage_is_said_once_a_machine(second, monkeypatch, capsys):
    for local, said in ((1, False), (0, True)):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "--frobnicate"])
        assert ("usage: " in capsys.readouterr().err) == said


# -- resumed --------------------------------------------------------------------------------------

EVALUATE = ["evaluate", "net.h5", "--data", "slow:Data", "--batch-size", "20", "--threads", "1"]
RESUME = [*EVALUATE, "--resume", "done.jsonl"]
DATA = '''
import os
import time

import cli_zoo
from torch.utils.data import TensorDataset


class Data(TensorDataset):
    """Takes its time, and fails at a sample, where it is told to."""

    def __init__(self):
        super().__init__(*cli_zoo.data())

    def __getitem__(self, row):
        time.sleep(float(os.environ.get("SLOW_SECONDS", 0)))
        if row == int(os.environ.get("SLOW_FAILS", -1)):
            raise RuntimeError(f"sample {row} is not there")
        return super().__getitem__(row)


class Other(Data):
    def __getitem__(self, row):
        return super().__getitem__(len(self) - 1 - row)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    x, _ = cli_zoo.data()
    for name, method in {"net.h5": "signgd", "other.h5": "group"}.items():
        sg.save(
            sg.convert(cli_zoo.tiny(), x, time_steps=4, method=method, tune=False), folder / name
        )
    (folder / "slow.py").write_text(DATA)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A folder with two networks and data, from which commands are typed."""
    for file in made.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    return tmp_path


def measured(name="results.json"):
    return scaling.measured(json.loads(Path(name).read_text()))


def test_what_is_finished_is_left_out(folder, monkeypatch, capsys):
    arguments = [*RESUME, "--results-file", "results.json", "--counted", "0", "--json"]
    assert main(arguments) == 0
    whole, document = measured(), capsys.readouterr().out
    lines = Path("done.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 5, "a head and five batches"
    Path("done.jsonl").write_text("".join(lines[:4]) + lines[4][:9])
    loaded = []
    monkeypatch.setattr(slow_data(), "__getitem__", counting(loaded))
    assert main(arguments) == 0
    assert measured() == whole and capsys.readouterr().out == document
    assert set(range(60, 96)) <= set(loaded) and not set(range(20, 60)) & set(loaded)
    rows = json.loads(Path("results.json").read_text())
    assert all(row["images_per_second"] is None and row["images"] == 96 for row in rows)


def slow_data():
    return importlib.import_module("slow").Data


def counting(loaded):
    whole = slow_data().__getitem__
    return lambda self, row: [loaded.append(row), whole(self, row)][1]


def test_what_is_not_gone_on_with(folder, capsys):
    assert main([*RESUME, "--quiet"]) == 0
    before = Path("done.jsonl").read_bytes()
    for was, now, text in [
        ("net.h5", "other.h5", "the network"),
        ("slow:Data", "slow:Data --samples 90", "the data"),
        ("slow:Data", "slow:Other", "the data"),  # of as many samples
        ("20", "48", "the number of batches"),
        ("--threads 1", "--threads 2", "the number of torch's threads"),
    ]:
        assert main(" ".join(RESUME).replace(was, now).split()) == 2
        assert (
            f"done.jsonl contains results of another evaluation: {text}" in capsys.readouterr().err
        )
    assert main([*RESUME, "--time-steps", "2"]) == 2
    assert "time_steps was [1, 2, 4] there and is [2] now" in capsys.readouterr().err
    assert main([*EVALUATE, "--resume", "net.h5"]) == 2
    assert "net.h5" in capsys.readouterr().err
    assert Path("done.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["convert", "search"])
def test_what_may_be_left_out_is_of_all_processes(name, folder, monkeypatch):
    """Two files that cannot be read, in batches of different processes."""
    for row in range(100):
        Path("images/cat").mkdir(parents=True, exist_ok=True)
        file = Path(f"images/cat/{row:03}.png")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(file)
        if row in (3, 70):
            file.write_bytes(b"")

    def reads(model, data, *, distributed, **_):
        list(deal(data, distributed))

    monkeypatch.setattr(converters, name, reads)
    given = ["--data", "images", "--scale-pixels", "--skip-bad", "1", "-o", "net.h5", "--quiet"]
    more = ["--additions", "3"] if name == "search" else []

    def command(world):
        arguments = [name, "cli_zoo:tiny", *given, *more]
        options = build_parser()[0].parse_args(arguments)
        options.world = options.distributed = world
        with pytest.raises(sg.FormatError, match="than the 1 of --skip-bad: .*003.png, .*070.png"):
            COMMANDS[name](options)

    several(2, command)


# -- real processes -------------------------------------------------------------------------------


def typed(processes, *arguments, **more):
    return subprocess.run(
        [*scaling.launched(processes), *arguments],
        env=surroundings(**more), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def surroundings(**more):
    return {**scaling.environment(**more), "PYTHONPATH": os.pathsep.join(sys.path)}


def test_two_processes_give_the_table_of_one(folder):
    done = typed(2, *RESUME, "--results-file", "results.json", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["samples"] == 96 and measured()[0][0] == 1
    rows = json.loads(Path("results.json").read_text())
    assert {row["processes"] for row in rows} == {2} and {row["threads"] for row in rows} == {1}
    assert main([*EVALUATE, "--results-file", "alone.json", "--quiet"]) == 0
    assert measured("alone.json") == measured()
    assert main([*RESUME, "--results-file", "alone.json", "--quiet"]) == 0, "another number"
    assert measured("alone.json") == measured()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "search"])
def test_two_processes_write_the_file_of_one(name, folder, monkeypatch):
    more = ["--tune", "--members", "2"] if name == "convert" else ["--additions", "3"]
    command = [name, "cli_zoo:tiny", "--data", "slow:Data", *more, "-o", "made.h5"]
    done = typed(2, *command)
    assert done.returncode == 0 and done.stdout.count("written to made.h5") == 1, done.stderr
    made = Path("made.h5").read_bytes()
    for variable, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(variable, str(value))
    assert main(command) == 0
    assert Path("made.h5").read_bytes() == made


@pytest.mark.slow
def test_an_exception_in_one_process_ends_all(folder):
    begun = time.monotonic()
    done = typed(2, *RESUME, SLOW_FAILS="30")
    assert done.returncode == 1 and not done.stdout
    assert "rank 1: 'slow:Data' fails: RuntimeError: sample 30 is not there" in done.stderr
    assert time.monotonic() - begun < 40
    assert main([*RESUME, "--quiet"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "torchrun", "Ctrl-C"])
def test_a_process_that_is_killed_ends_all(victim, folder, monkeypatch):
    assert main([*EVALUATE, "--results-file", "results.json", "--quiet"]) == 0
    whole = measured()
    numbers = {"rank 0": 0, "rank 1": 1, "torchrun": -1, "Ctrl-C": -2}
    for name, value in surroundings(SLOW_SECONDS="0.1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scaling, "environment", lambda **_: dict(os.environ))
    command = [*scaling.launched(2), *RESUME]
    code, seconds, left = scaling.disturbed(scaling.killing(1, numbers[victim]), command)
    said = Path("said.txt").read_text()
    assert code != 0 and left == 0 and seconds < 30, said
    monkeypatch.setenv("SLOW_SECONDS", "0")
    assert main([*RESUME, "--results-file", "results.json", "--quiet"]) == 0
    assert measured() == whole


def test_exit_codes_come_through_where_torchrun_lets_them(folder, monkeypatch):
    """It ends with 1, and prints those of the processes."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert main([*EVALUATE, "--time-steps", "1", "--min-agreement", "1", "--quiet"]) == 5
