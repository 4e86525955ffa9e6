"""The command line: what it prints, and the exit code that a script sees."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

import spikingjelly_signgd as sg
from spikingjelly_signgd.cli import commands, main
from spikingjelly_signgd.neurons import choice

MODELS = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, function=torch.relu):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def good():
    return nn.Sequential(nn.Flatten(), Net(), nn.Linear(6, 3))


def three():
    """Three operations that no neuron computes, in three places."""
    model = nn.Sequential()
    model.add_module("stem", Net(torch.cos))
    model.add_module("block", nn.Sequential(Net(lambda x: x.cumprod(-1)), nn.ReLU()))
    model.add_module("head", Net(torch.sin))
    return model


class Branch(Net):
    def forward(self, x):
        y = self.layer(x)
        return y.relu() if y.sum() > 0 else y


ready = good()
number = 3


def text():
    return "no model"


def needs(size):
    return nn.Linear(size, size)


def leaves():
    raise SystemExit(0)


def breaks():
    raise RuntimeError("weights.pt is missing")
'''


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(MODELS)
    (package / "syntax.py").write_text("def factory(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "spikingjelly_signgd.cli", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


BLOCKERS = [
    ("stem", "aten.cos.default"),
    ("block.0", "aten.cumprod.default"),
    ("head", "aten.sin.default"),
]


def test_three_unsupported_operations_are_all_listed():
    done = command("check", "my_package.models:three", "--input", "6")
    assert done.returncode == 3, done.stderr
    text = done.stdout[done.stdout.index("3 to fix") :]
    lines = text.splitlines()[1:]
    assert len(lines) == 3
    for line, (path, operation) in zip(lines, BLOCKERS, strict=True):
        assert f"'{path}'" in line, "the module path"
        assert operation.split(".")[1] in line, "the operation"
        what, _, fix = line.partition("; ")
        assert what and len(fix) > 10, f"the fix is missing: {line}"
    assert "neuron: relu" in done.stdout, "what can be converted is listed too"


def test_the_same_as_json(capsys):
    assert main(["check", "my_package.models:three", "--input", "6", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "Sequential" and report["ok"] is False
    blockers = [row for row in report["rows"] if row["becomes"] == "unsupported"]
    assert [(row["path"], row["operation"]) for row in blockers] == BLOCKERS
    assert all(row["detail"] and row["fix"] == row["mend"] != "" for row in blockers)


@pytest.mark.parametrize("spec", ["my_package.models:good", "my_package.models:ready"])
def test_a_model_that_converts(spec, capsys):
    assert main(["check", spec, "--input", "2", "3"]) == 0
    out, err = capsys.readouterr()
    assert "Sequential can be converted." in out and "neuron: relu" in out and not err
    assert main(["check", spec, "--input", "2", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and {row["becomes"] for row in report["rows"]} >= {"neuron"}


WRONG = {
    "my_package.models": "write package.module:factory",
    ":good": "write package.module:factory",
    "my_package.models:": "write package.module:factory",
    "my_package.absent:good": "cannot load .* No module named 'my_package.absent'",
    "absent.models:good": "cannot load .* No module named 'absent'",
    "my_package.models:absent": "cannot load .* no attribute 'absent'",
    "my_package.models:text": "gives str, not a torch.nn.Module",
    "my_package.models:number": "cannot load .*'int' object is not callable",
    "my_package.models:needs": "cannot load .*missing 1 required positional argument: 'size'",
    "my_package.models:leaves": "cannot load .*SystemExit: 0",
    "my_package.models:breaks": "cannot load .*RuntimeError: weights.pt is missing",
    "my_package.syntax:factory": "cannot load .*SyntaxError",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_spec_is_a_matter_of_usage(spec, capsys):
    path = list(sys.path)
    assert main(["check", spec, "--input", "6"]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    assert_matches(WRONG[spec], err)
    assert main(["check", spec, "--input", "6", "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["ok"] is False and not err
    assert_matches(WRONG[spec], report["error"])
    assert sys.path == path


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


def test_a_wrong_spec_as_a_user_types_it():
    done = command("check", "my_package.models:absent", "--input", "6")
    assert done.returncode == 2 and not done.stdout
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_input_that_the_model_does_not_take(capsys):
    assert main(["check", "my_package.models:good", "--input", "3", "32", "32"]) == 2
    assert_matches(r"itself fails on a batch \[2, 3, 32, 32\]", capsys.readouterr().err)


def test_a_model_that_cannot_be_captured(capsys):
    """It cannot be converted as it is, which is exit code 3."""
    assert main(["check", "my_package.models:Branch", "--input", "6"]) == 3
    assert_matches("control flow depends on values", capsys.readouterr().err)
    assert main(["check", "my_package.models:Branch", "--input", "6", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and "torch.where" in report["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["convince"],
        ["check"],
        ["check", "my_package.models:good"],
        ["check", "my_package.models:good", "--input"],
        ["check", "my_package.models:good", "--input", "six"],
        ["check", "my_package.models:good", "--input", "0"],
        ["check", "my_package.models:good", "--input", "-3"],
        ["check", "my_package.models:good", "--input", "6", "--frobnicate"],
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: spikingjelly-signgd" in capsys.readouterr().err


def test_help_names_every_exit_code(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == commands.OK
    (codes,) = re.findall(r"exit codes: (.*)", capsys.readouterr().out, re.S)
    names = ("OK", "USAGE", "UNSUPPORTED", "UNVERIFIED", "BELOW", "UNCHECKED", "INTERRUPTED")
    found = [int(code) for code in re.findall(r"(?:^|, )(\d+)\s", codes.replace("\n", " "))]
    assert found == [getattr(commands, name) for name in names]


@pytest.mark.parametrize("missing", ["", "the CPU kernels are not built."])
def test_version_tells_what_is_installed(missing, monkeypatch, capsys):
    monkeypatch.setattr(choice, "_missing", lambda _: missing)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["spikingjelly-signgd"] == sg.__version__
    assert told["torch"] == metadata.version("torch")
    assert f"norse {metadata.version('norse')}" in told["simulators"]
    assert told["kernels"] == (missing or "compiled")
