"""What a new user meets first: signs of life, data in any form, and messages that name the fix."""

import inspect
import io
import pydoc
import re
import sys
import warnings
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
from spikingjelly_signgd.converters.calibration import FEWEST
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
    "labels in a list": (X, Y.tolist()),
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


# -- how much data --------------------------------------------------------------------------------

PLANNED = {"time_steps": 2, "dead_zone": 0.0, "tune_seconds": 1e-9}


@pytest.mark.parametrize("count", [63, 64])
def test_one_number_of_samples_for_all_that_learns(made, count):
    enough = count == FEWEST
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        network = sg.convert(classifier(), X[:count], **PLANNED)
        sg.fine_tune(made[0], X[:count], epochs=1)
    told = " ".join(str(each.message) for each in found)
    assert ("the plan is not tuned: tuning takes 64 calibration samples or more" in told) != enough
    assert ("fine_tune has 63 samples" in told) != enough
    assert "tuning" in network.provenance
    for taker in (
        lambda: sg.search(classifier(), X[:count], spikes=2, iterations=1),
        lambda: sg.tune(network, X[:count], iterations=1),
    ):
        if enough:
            assert taker().neurons
        else:
            with pytest.raises(sg.SignGDError, match=f"{FEWEST} calibration samples or more"):
                taker()


def test_what_is_not_tuned_for_another_reason_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the plan is not tuned")
        sg.convert(classifier(), X[:32])
        sg.convert(classifier(), X[:32], time_steps=2, dead_zone=0.0, tune=False)


def test_a_search_for_both_methods_takes_as_many():
    relu = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    found = sg.search(relu, X[:FEWEST], spikes=1, methods=("signgd", "group"), iterations=1)
    assert found.provenance["search"]["samples"] == FEWEST // 5


# -- what is printed ------------------------------------------------------------------------------


def named():
    """Every public name that can be called, with the methods of classes."""
    for module in (sg, sg.analysis, sg.converters, sg.exporters, sg.neurons):
        for name in getattr(module, "__all__", dir(module)):
            found = getattr(module, name)
            yield name, found
            for own, method in vars(found).items() if inspect.isclass(found) else ():
                if own == "__init__" or not own.startswith("_"):
                    yield f"{name}.{own}", getattr(method, "__func__", method)


def test_help_shows_no_dictionary_as_a_default():
    long, seen = [], 0
    for name, found in named():
        if not callable(found):
            continue
        try:
            parameters = inspect.signature(found).parameters.values()
        except (TypeError, ValueError):
            continue
        seen += 1
        long += [f"{name}({p.name})" for p in parameters if len(repr(p.default)) > 60]
    assert not long and seen > 150


def test_help_of_the_plugins_imports_nothing_that_is_not_there():
    assert "spikingjelly" in pydoc.plain(pydoc.render_doc(sg.plugins))


def digits_of(text):
    """Significant digits of each decimal number."""
    return {n: len(n.replace(".", "").lstrip("0")) for n in re.findall(r"\b\d+\.\d+", text)}


def test_numbers_are_printed_with_six_digits_at_most(made, tmp_path):
    network, snn, path = made
    relu = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    group = sg.convert(relu, X, method="group", time_steps=3, signed=False)
    tuned = sg.tune(sg.convert(classifier(), X, time_steps=3, dead_zone=0.0), X, iterations=2)
    stream = sg.convert(classifier(), torch.rand(6, 8, 8), stream=True)
    lava = sg.export(group, tmp_path / "net.net", calibration=X)
    shown = [
        sg.evaluate(snn, SPLIT, [1, 2], reference=classifier()),
        sg.evaluate(snn, X, 1, reference=classifier(), metric="cosine"),
        sg.Tuning.of(tuned),
        sg.verify(path),
        sg.verify(tmp_path / "net.net", network=group),
        diagnose(snn, SPLIT, reference=classifier()),
        diagnose(sg.build(group), X),
        count_operations(snn, X),
        estimate_energy(snn, X),
        sg.costs_over_time(sg.build(stream), torch.rand(5, 2, 8)),
        sg.calibrate_exit(sg.build(group), X),
        sg.fine_tune(network, X, epochs=1),
        lava,
        network,
        tuned,
        snn,
        sg.build(tuned),
        sg.build(network, trainable=True),
        network.neurons[0],
        tuned.neurons[0],
        group.neurons[0],
        network.neurons[0].parameters,
        sg.SignGDNode("gelu"),
        sg.GroupNode(members=3, v_threshold=0.1 + 0.2),
        sg.ExponentialSchedule(0.1 + 0.2, 0.95),
        sg.Surrogate(),
        sg.Motion(pixels=1 / 3),
    ]
    for value in shown:
        for text in (str(value), repr(value)):
            text = re.sub(r"doi\S+|10\.\d{4}/\S+|\w+:\w+\.\w+", "", text)
            long = {number for number, digits in digits_of(text).items() if digits > 8}
            assert not long, (type(value), long)


def test_a_rounded_repr_is_that_of_a_dataclass():
    schedule = sg.ExponentialSchedule(0.15, 0.95)
    assert repr(schedule) == "ExponentialSchedule(initial=0.15, decay=0.95)"
    assert eval(repr(schedule), vars(sg) | {"ExponentialSchedule": sg.ExponentialSchedule})
    assert repr(sg.ListSchedule((1 / 3,))) == "ListSchedule(values=(0.333333,), tail=None)"


# -- messages -------------------------------------------------------------------------------------


def test_names_in_another_case_are_the_same_names(made):
    network = made[0]
    assert sg.convert(classifier(), X, method="signGD").names() == network.names()
    relu = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    assert sg.convert(relu, X, method={"1": "Group"}, time_steps=2)["1"].kind == "group"
    sg.convert(classifier(), X, scale="Channel", input_coding="Exact", resting="Zero")
    assert type(sg.build(network, "SpikingJelly")).__name__ == "SpikingJellyNetwork"
    assert sg.SignGDNode("GELU").function.name == "gelu"


MISTAKES = {
    "a method": (lambda _: sg.convert(classifier(), X, method="grouop"), "'group'"),
    "a scale": (lambda _: sg.convert(classifier(), X, scale="publishe"), "'published'"),
    "a simulator": (lambda made: sg.build(made[0], "spikingjely"), "'spikingjelly'"),
    "a function": (lambda _: sg.SignGDNode("gellu"), "'gelu'"),
    "a form": (lambda _: sg.SignGDNode("gelu", spikes="bin"), "'binary'"),
    "a metric": (
        lambda made: sg.evaluate(made[1], X, 1, reference=classifier(), metric="cosin"),
        "'cosine'",
    ),
    "an argument of convert": (
        lambda _: getattr(sg, "convert")(classifier(), X, timesteps=4),  # noqa: B009
        "'time_steps'",
    ),
    "an argument of evaluate": (
        lambda made: getattr(sg, "evaluate")(made[1], X, ref=made[1]),  # noqa: B009
        "'reference'",
    ),
    "an argument of a simulator": (lambda made: sg.build(made[0], kernel="cpu"), "'kernels'"),
    "an argument of a writer": (lambda made: sg.export(made[0], made[2], clas_names=()), "'class_"),
    "a public name": (lambda _: sg.evalute, "'evaluate'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_was_meant_is_named(made, mistake):
    make, meant = MISTAKES[mistake]
    errors = (sg.SignGDError, TypeError, ValueError, AttributeError)
    with pytest.raises(errors, match=f"Did you mean {meant}"):
        make(made)


def test_suffixes_that_are_none_of_ours(made, tmp_path):
    with pytest.raises(
        sg.FormatError, match=r"'.onnx' is not .*End the file in \.h5 .*torch.onnx.export"
    ):
        sg.export(made[0], tmp_path / "net.onnx")
    with pytest.raises(sg.FormatError, match="it has no suffix. End the file in"):
        sg.export(made[0], tmp_path / "net")
    with pytest.raises(sg.FormatError, match=r"save writes HDF5.*nir.*export\(network, path\)"):
        sg.save(made[0], tmp_path / "net.nir")
    assert not list(tmp_path.iterdir())


def test_labels_that_are_not_as_many_as_the_samples(made):
    with pytest.raises(sg.InputError, match="x has 100 samples, but y has 99 labels"):
        sg.evaluate(made[1], (X, Y[:99]), 1)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_samples_and_labels_of_two_data_sets(made, order):
    """As train_test_split has them, and as they are written out."""
    parts = [(X[:80], Y[:80], X[80:], Y[80:])[i] for i in order]
    for data in (parts, tuple(part.numpy() for part in parts)):
        with pytest.raises(sg.InputError, match=rf"\(data\[0\], data\[{order.index(1)}\]\)"):
            sg.convert(classifier(), data)
        with pytest.raises(sg.InputError, match="labels of two data sets"):
            sg.evaluate(made[1], data, 1)


@pytest.mark.parametrize("labels", [Y, Y.numpy()])
def test_labels_as_an_argument_of_their_own(made, labels):
    with pytest.raises(sg.InputError, match=r"it is a \w+\. .*pass the pair \(x, y\)\.$"):
        sg.evaluate(made[1], X, labels)


@pytest.mark.parametrize(
    ("name", "fix"), [("net.onnx", "PyTorch model"), ("net.PT", r"convert\(model, data\)")]
)
def test_a_file_of_a_model_is_not_loaded(made, tmp_path, name, fix):
    (tmp_path / name).write_bytes(b"of another library")
    with pytest.raises(sg.FormatError, match=fix):
        sg.load(tmp_path / name)
    (tmp_path / name).write_bytes(made[2].read_bytes())  # whatever it is called
    assert sg.load(tmp_path / name).names() == made[0].names()


def test_one_sample_without_a_batch():
    with pytest.raises(sg.CaptureError, match=r"pass x.unsqueeze\(0\)"):
        sg.convert(classifier(), X[0])


def test_samples_in_a_list_without_labels():
    with pytest.raises(sg.CaptureError, match=r"pass torch.stack\(samples\)"):
        sg.convert(classifier(), list(X))


def test_what_was_trained_with_levels_is_planned_for_them():
    trained = nn.Sequential(nn.Linear(8, 16), sg.QCFS(4), nn.Linear(16, 4))
    network = sg.convert(trained, X, method="group")
    assert network.time_steps == 1 and [node.members for node in network.neurons] == [4]


def test_what_is_no_network_says_what_to_do(made):
    with pytest.raises(sg.InputError, match=r"build\(convert\(model, data\)\)"):
        sg.build(classifier())
    with pytest.raises(sg.InputError, match="the SpikingNetwork that convert returned"):
        sg.tune(classifier(), X)


def test_a_nir_file_of_others_says_how_it_is_read(tmp_path):
    nir = pytest.importorskip("nir")
    import numpy as np

    nodes = {
        "input": nir.Input({"input": np.array([8])}),
        "w": nir.Linear(np.ones((4, 8), "f4")),
        "output": nir.Output({"output": np.array([4])}),
    }
    nir.write(tmp_path / "own.nir", nir.NIRGraph(nodes, [("input", "w"), ("w", "output")]))
    with pytest.raises(sg.FormatError, match=r"pass load\(path, time_steps=...\)"):
        sg.load(tmp_path / "own.nir")


def blocked():
    """What stops each format in several places."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Softmax(-1)
    )


@pytest.mark.parametrize("suffix", ["nir", "net"])
@pytest.mark.parametrize("keep", [(), ("1", "2")])
def test_all_blockers_of_a_format_at_once(tmp_path, suffix, keep):
    """With a fix, and also those behind the first, whatever they are."""
    if suffix == "nir":
        pytest.importorskip("nir")
    network = sg.convert(blocked(), X, keep=keep)
    options = {"calibration": X} if suffix == "net" else {}
    with pytest.raises(sg.FormatError) as error:
        sg.export(network, tmp_path / f"net.{suffix}", **options)
    text = str(error.value)
    assert all(f"'{name}'" in text for name in ("1", "2", "4", "5")), text
    assert 'method="group"' in text


def test_a_network_that_nir_refuses_is_written_for_the_reader_that_is_named(made, tmp_path):
    """What the message says works."""
    pytest.importorskip("nir")
    with pytest.raises(sg.FormatError, match='reader="norse"'):
        sg.export(made[0], tmp_path / "net.nir")
    sg.export(made[0], tmp_path / "net.nir", reader="norse")
    assert sg.verify(tmp_path / "net.nir", X[:4], network=made[0]).ok
