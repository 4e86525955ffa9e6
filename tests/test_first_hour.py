"""What a new user meets first: signs of life, data in any form, and messages that name the fix."""

import io
import sys

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import progress as shown
from spikingjelly_signgd.core.progress import announce, progress, working


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


X = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(100) % 4


# -- progress -------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass where the test says so."""
    now = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shown, "_SCREEN", shown._Screen())
    return now


def worked(clock, items, seconds, label="working", total=None):
    for _ in progress(range(items), label, total):
        clock[0] += seconds


@pytest.fixture(params=["auto", "lines"])
def log(request, monkeypatch, capsys):
    """Standard error, which is no terminal."""
    monkeypatch.setenv("SIGNGD_PROGRESS", request.param)
    return Log(capsys)


class Log:
    def __init__(self, capsys):
        self.capsys, self.text = capsys, ""

    def getvalue(self):
        self.text += self.capsys.readouterr().err
        return self.text


def test_lines_in_a_log(clock, log):
    """Standard error is a file: a line now and then, with what is left."""
    worked(clock, 40, 1.0, "calibrating", 40)
    lines = log.getvalue().splitlines()
    assert lines[0] == "calibrating 5/40, 35 s left" and 3 <= len(lines) <= 4
    assert "\r" not in log.getvalue()


def test_no_line_of_what_is_short(clock, log):
    worked(clock, 4, 1.0)
    announce("tuning 20 steps", 3.0)
    assert log.getvalue() == ""


def test_what_it_takes_is_told_at_the_start(clock, log):
    announce("tuning 250 steps of descent", 95.0)
    assert log.getvalue() == "tuning 250 steps of descent, about 1 min 35 s\n"


class Notebook(io.StringIO):
    """As standard error is in a notebook: no terminal."""


Notebook.__module__ = "ipykernel.iostream"


def test_one_line_in_a_notebook(clock, monkeypatch):
    notebook = Notebook()
    monkeypatch.setattr(sys, "stderr", notebook)
    monkeypatch.setenv("SIGNGD_PROGRESS", "auto")
    worked(clock, 8, 1.0, "calibrating", 8)
    text = notebook.getvalue()
    assert "\rcalibrating 3/8, 5 s left" in text and "\n" not in text
    assert text.endswith("\r") and not text.rsplit("\r", 2)[1].strip()  # it is erased


@pytest.mark.parametrize("switch", ["off", "0", "OFF"])
def test_one_switch(clock, log, monkeypatch, switch):
    monkeypatch.setenv("SIGNGD_PROGRESS", switch)
    worked(clock, 40, 1.0)
    announce("tuning", 95.0)
    assert log.getvalue() == ""


def test_of_several_processes_the_first_alone(clock, log, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    worked(clock, 40, 1.0)
    assert log.getvalue() == ""


def test_the_outer_and_the_inner_work(clock, log):
    for _ in progress(range(3), "evaluating", 3):
        worked(clock, 12, 1.0, "simulating", 12)
    assert "evaluating 1/3, " in log.getvalue() and " > simulating " in log.getvalue()


def test_what_an_error_ended_is_not_told_again(clock, log):
    try:
        for _ in progress(range(3), "evaluating", 3):
            raise ValueError  # whose traceback keeps the loop
    except ValueError as error:
        kept = error
    worked(clock, 40, 1.0, "tuning")
    assert kept.__traceback__ and "tuning" in log.getvalue()
    assert "evaluating" not in log.getvalue()


def test_a_long_call(log, monkeypatch):
    for seconds in (shown.AFTER, shown.EVERY):
        monkeypatch.setitem(seconds, "lines", 0.0)
    with working("capturing ResNet"):
        for _ in range(500):
            shown.time.sleep(0.01)
            if log.getvalue():
                break
    assert log.getvalue().startswith("capturing ResNet, ")


def test_every_part_of_a_conversion_says_what_it_does(log, monkeypatch):
    for seconds in (shown.AFTER, shown.EVERY):
        monkeypatch.setitem(seconds, "lines", 0.0)
    sg.convert(classifier(), X, tune=True, time_steps=2)
    for part in ("converting: calibrate (", "calibrating 1/2", "tuning ", " steps of descent, abo"):
        assert part in log.getvalue(), part
