"""Networks trained from scratch: QCFS, and the neurons of SpikingJelly, Norse and ours."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs/tutorials"


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


def read(page):
    """The Python blocks of a tutorial, one after the other in one namespace."""
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (TUTORIALS / page).read_text(), flags=re.S):
        exec(code, scope)
    return scope


# -- QCFS ---------------------------------------------------------------------------------------


def levels_model(first=4, second=8):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), sg.QCFS(first, 0.7)),
        *(nn.Linear(24, 16), sg.QCFS(second, 0.4), nn.Linear(16, 3)),
    ).eval()


X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_levels_plan_themselves():
    """Each layer its own, in one step, without a warning."""
    model = levels_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = sg.convert(model, X, method="group")
    assert network.time_steps == 1 and [node.members for node in network.neurons] == [4, 8]
    (out,) = sg.run(sg.build(network), X).values()
    with torch.no_grad():
        torch.testing.assert_close(out, model(X), rtol=1e-5, atol=1e-5)


def test_members_that_are_the_levels_plan_one_step_too():
    network = sg.convert(levels_model(4, 4), X, method="group", members=4)
    assert network.time_steps == 1


@pytest.mark.parametrize("given", [2, 4])
def test_time_steps_that_are_given_win(given):
    network = sg.convert(levels_model(4, 8), X, method="group", time_steps=given)
    assert network.time_steps == given
    assert [node.members for node in network.neurons] == [4 // given, 8 // given]


def test_without_levels_the_plan_is_as_before():
    relu = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert sg.convert(relu, X, method="group", tune=False).time_steps == 32
    model = levels_model(32, 32)
    mixed = {"": "group", "3": "signgd"}  # signs need their steps
    assert sg.convert(model, X, method=mixed, tune=False).time_steps == 32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Poisson input is far off in so few steps
        assert sg.convert(model, X, method="group", input_coding="poisson").time_steps == 32


@pytest.mark.spikingjelly
def test_a_trained_qcfs_network_keeps_its_accuracy(monkeypatch, capsys):
    run("train_qcfs.py", monkeypatch, "--data", "digits", "--epochs", "6")
    printed = capsys.readouterr().out
    (accuracy, agreement) = re.findall(r"^ +1 +([\d.]+) % +([\d.]+) %", printed, flags=re.M)[0]
    (source,) = re.findall(r"^source +([\d.]+) %", printed, flags=re.M)
    assert float(accuracy) > 90 and float(agreement) > 99.5
    assert abs(float(accuracy) - float(source)) < 0.5
    assert "T = 1, m = 4:" in printed


@pytest.mark.spikingjelly
def test_the_tutorial_of_qcfs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = read("qcfs.md")
    assert "1 [4, 4]" in capsys.readouterr().out
    assert scope["table"].agreement[0] > 0.995 and scope["table"].accuracy[0] > 0.95
    assert scope["certificate"].ok and scope["counted"].additions_per_mac > 0
