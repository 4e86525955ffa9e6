"""The results file of evaluate: a row for each T, written whole, and what it does not replace."""

import csv
import json
import shlex

import cli_zoo
import pytest
import torch

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.results import COLUMNS, one_or_range
from spikingjelly_signgd.core.samples import some

EVALUATE = ["evaluate", "net.h5", "--data", "cli_zoo:data", "--quiet"]
STEPS = ["--time-steps", "4", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    x, _ = cli_zoo.data()
    sg.save(sg.convert(cli_zoo.tiny(), x, time_steps=8, tune=False), folder / "net.h5")
    sg.save(sg.convert(cli_zoo.dense(), x, time_steps=2, tune=False), folder / "dense.h5")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def read(name):
    with open(name, newline="") as file:
        return json.load(file) if name.endswith("json") else list(csv.DictReader(file))


def test_a_row_for_each_t(folder):
    arguments = [*EVALUATE, *STEPS, "--counted", "5", "--results-file", "a.json"]
    assert main(arguments) == 0
    rows = read("a.json")
    x, y = cli_zoo.data()
    snn = sg.build(sg.load("net.h5"))
    want = sg.evaluate(
        snn, zip(x.split(64), y.split(64), strict=True), (1, 4), reference=snn.source
    )
    assert [row["T"] for row in rows] == [1, 4] and all(tuple(row) == COLUMNS for row in rows)
    assert [row["agreement"] for row in rows] == list(want.agreement)
    assert [row["top1"] for row in rows] == list(want.accuracy)
    assert [row["output_error"] for row in rows] == list(want.error)
    sent = count_operations(snn, some(x, 5).x, (1, 4))
    for row in rows:
        counts = sent[row["T"]]
        assert row["spikes"] == counts.spikes / 64
        assert row["additions_per_mac"] == counts.additions_per_mac
        assert (row["images"], row["skipped"], row["counted"]) == (96, 0, 5)
        assert (row["members"], row["processes"], row["source"]) == (1, 1, "Sequential")
        assert row["dead_zone"] == pytest.approx(sg.DEAD_ZONE) and row["source_top1"] == 1
        assert row["images_per_second"] == pytest.approx(96 / row["seconds"])
        assert (row["version"], row["torch"]) == (sg.__version__, torch.__version__)
        assert shlex.split(row["command"])[1:] == arguments


def test_images_that_cannot_be_read_are_counted(folder, capsys):
    image = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir()
    for i in range(8):
        image.new("L", (4, 4), 30 * i).save(folder / "images" / f"{i}.png")
    (folder / "images" / "5.png").write_bytes(b"no image")
    command = ["evaluate", "net.h5", "--data", "images", "--scale-pixels", "--batch-size", "3"]
    command += ["--results-file", "i.csv"]
    assert main(command) == 2
    assert "images/5.png" in capsys.readouterr().err and not (folder / "i.csv").exists()
    assert main([*command, "--skip-bad", "1"]) == 0
    assert "images/5.png" in capsys.readouterr().out, "in the table"
    assert {(row["images"], row["skipped"]) for row in read("i.csv")} == {("7", "1")}


def test_csv_has_the_same(folder):
    for name in ("b.json", "b.csv"):
        assert main([*EVALUATE, "--counted", "0", "--results-file", name]) == 0
    for of_json, of_csv in zip(read("b.json"), read("b.csv"), strict=True):
        assert list(of_csv) == list(of_json) == list(COLUMNS)
        for name in ("T", "agreement", "top1", "output_error", "images"):
            assert float(of_csv[name]) == of_json[name], name
        assert of_csv["spikes"] == of_csv["counted"] == "" and of_json["spikes"] is None


def test_outputs_of_other_tasks_stand_behind(folder):
    arguments = ["dense.h5", "--data", "cli_zoo:images", "--results-file", "d.csv", "--quiet"]
    assert main(["evaluate", *arguments, "--metric", "r2"]) == 0
    rows = read("d.csv")
    assert [float(row["output r2"]) < 1 for row in rows] == [True, True]
    assert rows[0]["agreement"] == "" and float(rows[0]["output_error"]) > 0


def test_what_is_replaced(folder, capsys):
    (folder / "c.csv").touch()
    for steps in ("1", "2"):
        assert main([*EVALUATE, "--time-steps", steps, "--results-file", "c.csv"]) == 0
    assert [row["T"] for row in read("c.csv")] == ["2"], "whole, and not added to"
    (folder / "other.json").write_text('{"T": 1}')
    (folder / "other.csv").write_text("T,accuracy\n1,0.5\n")
    (folder / "numbers.json").write_text("[1, 2]")
    (folder / "folder.json").mkdir()
    before = sorted(folder.iterdir())
    for name, text in {
        "other.json": "not a results file",
        "other.csv": "not a results file",
        "numbers.json": "not a results file",
        "folder.json": "is a folder",
        "a.txt": "it ends in .json or .csv",
        "absent/a.csv": "the folder 'absent' does not exist",
    }.items():
        assert main(["evaluate", "absent.h5", *EVALUATE[2:], "--results-file", name]) == 2
        assert text in capsys.readouterr().err, "before the network is read"
    assert (folder / "other.csv").read_text() == "T,accuracy\n1,0.5\n"
    assert sorted(folder.iterdir()) == before


def test_layers_that_differ():
    assert one_or_range([8, 8]) == 8 and one_or_range([]) is None
    assert one_or_range([4, 1, 8]) == "1 to 8" and one_or_range([0.0, 0.25]) == "0 to 0.25"
