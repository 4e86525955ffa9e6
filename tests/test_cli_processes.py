"""Commands under torchrun: what several processes do, and what they refuse."""

import pytest

from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.options import build_parser
from spikingjelly_signgd.cli.processes import SEVERAL

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


def test_usage_is_said_once_a_machine(second, monkeypatch, capsys):
    for local, said in ((1, False), (0, True)):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "--frobnicate"])
        assert ("usage: " in capsys.readouterr().err) == said
