"""What a new user meets first: signs of life, data in any form, and messages that name the fix."""

import io
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import (
    count_operations,
    diagnose,
    estimate_energy,
    record,
    write_report,
)
from spikingjelly_signgd.converters.fine_tuning import fingerprint
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


# -- data in any form -----------------------------------------------------------------------------


class Split(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


class Data(NamedTuple):
    train: Split
    validation: Split
    test: Split


@dataclass
class Parts:
    train: object
    test: object


SPLIT = Split(X, Y)
SET = TensorDataset(X, Y)
FORMS = {
    "a pair": (X, Y),
    "a list of both": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "a named pair": SPLIT,
    "a Dataset": SET,
    "a DataLoader": DataLoader(SET, 64),
    "batches": [(X[:64], Y[:64]), (X[64:], Y[64:])],
    "batches of arrays": [(X[:64].numpy(), Y[:64].numpy()), (X[64:].numpy(), Y[64:].numpy())],
    "samples": [SET[i] for i in range(100)],
}
WITHOUT = {"a tensor": X, "an array": X.numpy(), "batches of x": [X[:64], X[64:]]}
PARTS = {
    "a NamedTuple": (Data(SPLIT, SPLIT, SPLIT), "Data of train, validation, test.*data.train"),
    "a dict": ({"train": SPLIT, "test": SPLIT}, r"data\['train'\]"),
    "a dict of tensors": ({"train": X, "test": X}, r"data\['train'\]"),
    "a dict of Datasets": ({"val": SET, "test": SET}, r"data\['val'\]"),
    "a dataclass": (Parts(SET, SET), "data.train"),
    "an object": (SimpleNamespace(train=X, test=X), "data.train"),
    "a list of Datasets": ([SET, SET], r"data\[0\]"),
    "pairs of train and test": (((X, Y), (X[:9], Y[:9])), r"data\[0\]; batches are a list"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    network = sg.convert(classifier(), X)
    path = tmp_path_factory.mktemp("made") / "net.h5"
    sg.save(network, path)
    return network, sg.build(network), path


def outcomes(made, data):
    """Of everything that takes data."""
    _, snn, _ = made
    return {
        "converted": fingerprint(sg.convert(classifier(), data)),
        "run": sg.run(snn, data, 1)[1],
        "error": sg.evaluate(snn, data, 1, reference=classifier()).error,
        "diagnosed": diagnose(snn, data, reference=classifier()).to_dict()["layers"],
        "counted": count_operations(snn, data).to_dict(),
        "energy": estimate_energy(snn, data).to_dict(),
        "checked": str(sg.check(classifier(), data)),
    }


@pytest.fixture(scope="module")
def wanted(made):
    return outcomes(made, X)


@pytest.mark.parametrize("form", [*FORMS, *WITHOUT])
def test_every_form_of_data_gives_the_same(made, wanted, form):
    found = outcomes(made, {**FORMS, **WITHOUT}[form])
    assert torch.equal(found.pop("run"), wanted["run"])
    assert found == {name: value for name, value in wanted.items() if name != "run"}


@pytest.mark.parametrize("form", FORMS)
def test_labels_come_with_every_form(made, form):
    snn = made[1]
    accuracy = sg.evaluate(snn, SET, 1).accuracy
    assert accuracy[0] is not None
    assert sg.evaluate(snn, FORMS[form], 1).accuracy == accuracy
    assert diagnose(snn, FORMS[form]).accuracy[1] == accuracy[0]


TAKERS = {
    "convert": lambda made, data: sg.convert(classifier(), data),
    "check": lambda made, data: sg.check(classifier(), data),
    "tune": lambda made, data: sg.tune(made[0], data),
    "search": lambda made, data: sg.search(classifier(), data, spikes=2.0),
    "fine_tune": lambda made, data: sg.fine_tune(made[0], data),
    "evaluate": lambda made, data: sg.evaluate(made[1], data, 1),
    "run": lambda made, data: sg.run(made[1], data, 1),
    "diagnose": lambda made, data: diagnose(made[1], data),
    "count_operations": lambda made, data: count_operations(made[1], data),
    "estimate_energy": lambda made, data: estimate_energy(made[1], data),
    "write_report": lambda made, data: write_report(made[2].with_suffix(".html"), made[1], data),
    "record": lambda made, data: record(made[1], data),
    "verify": lambda made, data: sg.verify(made[2], data),
    "calibrate_exit": lambda made, data: sg.calibrate_exit(made[1], data),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("parts", PARTS)
def test_several_data_sets_are_refused(made, taker, parts):
    """Test samples among those of a calibration are wrong, and nobody sees it."""
    data, said = PARTS[parts]
    with pytest.raises(sg.SignGDError, match=f"several data sets .*{said}"):
        TAKERS[taker](made, data)


def test_two_tensors_alike_are_batches(made):
    assert sg.evaluate(made[1], X.split(50), 1).samples == 100
    assert sg.evaluate(made[1], [X[:50], X[50:]], 1).samples == 100


def test_arrays_of_float64_are_of_torch_s_type(made, wanted):
    """Which NumPy gives unless asked."""
    found = sg.convert(classifier(), X.double().numpy())
    assert fingerprint(found) == wanted["converted"]


def test_what_keeps_one_batch_says_so(made):
    with pytest.raises(sg.InputError, match=r"record takes one batch .*next\(iter\(loader\)\)"):
        record(made[1], DataLoader(SET, 8))
    with pytest.raises(sg.InputError, match="one tensor"):
        sg.run(made[1], DataLoader(SET, 8), 1, sequence=True)


@pytest.mark.parametrize("form", [*FORMS, *WITHOUT])
def test_fine_tuning_takes_every_form(made, form):
    data = {**FORMS, **WITHOUT}[form]
    assert sg.fine_tune(made[0], data, epochs=1, lr=1e-5).network.time_steps == 1
