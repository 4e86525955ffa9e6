"""The examples for Norse: a model trained by gradients, and a converted ConvNeXt."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


def percent(text: str, what: str) -> float:
    return float(re.findall(rf"{what} +([\d.]+) %", text)[-1])


@pytest.mark.slow
def test_a_mixed_model_learns(monkeypatch, capsys, tmp_path):
    """Four epochs are not enough, but far from chance."""
    run("norse_digits.py", monkeypatch, "--epochs", "4", "--save", str(tmp_path / "model.pt"))
    assert percent(capsys.readouterr().out, "test") > 60
    import torch
    from norse_digits import accuracy, digits, make_model

    model = make_model()
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert accuracy(model, digits().test) > 60


@pytest.mark.slow
def test_a_mixed_model_reaches_what_the_readme_says(monkeypatch, capsys):
    run("norse_digits.py", monkeypatch, "--seed", "0")
    assert percent(capsys.readouterr().out, "test") >= 95


def test_convnext_in_norse(monkeypatch, capsys):
    run("norse_convnext.py", monkeypatch, "--samples", "100")
    printed = capsys.readouterr().out
    assert percent(printed, "100 images:") >= 98
    assert "states of 9 layers" in printed
