"""The golden record's own logic: what is a difference, what may be one, what a row is made of."""

import json

import golden
import numpy as np
import pytest
import torch

import spikingjelly_signgd as sg

ROWS = {"digits/vgg/a/spikes": "1", "digits/vgg/a/readout": "2", "digits/vgg/b/readout": "3"}


def test_equal_records_have_no_differences():
    assert golden.differences(ROWS, dict(ROWS), {}) == []


@pytest.mark.parametrize("excepted", [False, True])
def test_differences_are_found_and_exceptions_honoured(excepted):
    current = {"digits/vgg/a/spikes": "1", "digits/vgg/a/readout": "9", "digits/vgg/c": "4"}
    exceptions = {"digits/vgg/a/": "another read-out"} if excepted else {}
    found = golden.differences(ROWS, current, exceptions)
    why = exceptions.get("digits/vgg/a/", "")
    assert found == [
        golden.Difference("digits/vgg/a/readout", "differs", why),
        golden.Difference("digits/vgg/b/readout", "missing"),
        golden.Difference("digits/vgg/c", "new"),
    ]


def test_what_differs_is_told_with_both_values():
    base, current = golden.Record(), golden.Record()
    base.add("a", torch.tensor([1.0, 2.0]))
    current.add("a", torch.tensor([1.0, 3.0]))
    found = golden.differences(base.rows, current.rows, {})
    assert list(golden.told(found, base, current)) == [
        "differs   a",
        "          base [1.0, 2.0]",
        "          here [1.0, 3.0]",
    ]


@pytest.mark.parametrize(("allowed", "status"), [({}, 1), ({"digits/vgg/a": "moved"}, 0)])
def test_compare_fails_on_a_difference_that_is_not_allowed(monkeypatch, tmp_path, allowed, status):
    base, current = golden.Record(dict(ROWS)), golden.Record(ROWS | {"digits/vgg/a/spikes": "5"})
    monkeypatch.setattr(golden, "baseline", lambda revision, only, jobs: (base, tmp_path))
    monkeypatch.setattr(golden, "recorded", lambda *given: current)
    monkeypatch.setattr(golden, "EXCEPTIONS", allowed)
    assert golden.compare("HEAD", "", 1, None) == status


VALUES = [
    0.0,
    -0.0,
    "0.0",
    None,
    [],
    [[]],
    {},
    torch.zeros(2),
    torch.zeros(2).neg(),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros(2, 1),
    [0.0, 0.0],
]


def test_a_digest_tells_values_types_and_shapes_apart():
    assert len({golden.digest(value) for value in VALUES}) == len(VALUES)
    assert golden.digest({"a": 1, "b": 2}) == golden.digest({"b": 2, "a": 1})
    assert golden.digest(torch.ones(3)) == golden.digest(np.ones(3, np.float32))


def test_a_refusal_and_a_crash_are_rows():
    record = golden.Record()
    with record.attempt("a"):
        raise sg.FormatError("not this")
    with record.attempt("b"):
        raise KeyError("a bug")
    assert record.values == {"a/refused": "FormatError", "b/crashed": "KeyError"}
    assert len(record.notes) == 1


def test_a_file_is_its_content_without_dates(tmp_path):
    h5py = pytest.importorskip("h5py")

    def write(name, torch_version, value, certificate):
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["provenance"] = json.dumps({"seed": 0, "torch": torch_version})
            file.attrs["certificate"] = certificate
            file["nodes/0/scale"] = np.array([value])
        return golden.digest(golden.file_content(tmp_path / name))

    first = write("a.h5", "2.6", 1.0, "on Monday")
    assert first == write("b.h5", "2.7", 1.0, "on Tuesday")
    assert first != write("c.h5", "2.6", 1.5, "on Monday")


def test_every_name_inside_is_there_and_every_case_has_its_own():
    optional = {"NeuroBenchNetwork", "AllSynapticOperations", "count"}  # not on every simulator
    for name in set(golden.INSIDE) - optional:
        assert golden.inside(name) is not None
    names = [name for model in golden.MODELS for name in golden.cases_of(model)]
    assert len(names) == len(set(names)) > 100
    assert set(golden.DIAGNOSED) <= set(names)


def test_one_case_is_recorded_twice_alike_and_another_scale_is_seen(tmp_path):
    def rows(folder):
        folder.mkdir()
        case = "digits/lava_mlp/group-m2-T2"
        return golden.work(["digits/lava_mlp"], case, folder, folder)

    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert first.rows == second.rows and not [n for n in first.notes if "crashed" in n]
    assert any(name.startswith("replay/") for name in first.rows)
    assert any("/spikes/" in name for name in first.rows)
