"""benchmarks/tuned.py runs, goes on where it was, and docs/method.md is what its figures make."""

import json

import pytest
import torch
import tuned
from data import digits
from networks import load_network
from tuned import Way

import spikingjelly_signgd as sg


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "RESULTS", tmp_path / "figures")
    monkeypatch.setattr(tuned, "PAGE", tmp_path / "method.md")
    monkeypatch.setattr(tuned, "PLOT", tmp_path / "method.png")
    return tmp_path


def run(*arguments):
    tuned.main([*arguments, "--data", "digits"])


QUICK = ("--samples", "50", "--iterations", "2", "--epochs", "1")


def test_a_part_measured_once(results, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "SPLITS", {2: ((1, 2), (2, 1))})
    monkeypatch.setattr(tuned, "ONE_STEP", (2,))
    run("union", "--networks", "vgg", *QUICK)
    first = capsys.readouterr()
    assert first.err.count("digits vgg") == 3
    assert "| m T = 2 | 1 x 2 | 2 x 1 | by layer |" in first.out
    assert "- vgg, 2 spikes: T = " in first.out
    run("union", "--networks", "vgg", *QUICK)
    assert "digits vgg" not in capsys.readouterr().err
    (path,) = (results / "figures").iterdir()
    rows = json.loads(path.read_text())["results"]
    row = rows[Way("digits", "vgg", 1, members=2, learn=tuned.ALL).key]
    assert row["samples"] == 50 and row["agreement"] > 0.3
    assert row["cost"]["spikes"] == row["neurons"] * 2
    run("union", "--networks", "vgg", "--print")
    assert capsys.readouterr().out == first.out


@pytest.mark.slow
def test_more_samples_are_measured_again(results, monkeypatch):
    monkeypatch.setattr(tuned, "GROUPS", ((2, 8),))
    way = Way("digits", "vgg", 2, "group", members=8)
    for samples, kept in ((20, 20), (30, 30), (20, 30)):
        tuned.measure(["group"], "digits", ["vgg"], tuned.Bench(samples, 2, 1), again=False)
        row = tuned.known(way)
        assert row is not None and row["samples"] == kept
    assert 0 < row["cost"]["events"] <= row["cost"]["spikes"]
    assert tuned.PARTS["group"]("digits", "mixer") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg", "mixer", "vit"])
def test_every_part(results, name, monkeypatch, capsys):
    fewer = {"BLOCKS": (1, 2), "BUDGETS": (2, 4), "SPLITS": {4: ((1, 4), (2, 2))},
             "ONE_STEP": (4,), "GROUPS": ((1, 8), (2, 8)), "PAPER_STEPS": (8, 16),
             "DEFAULT_STEPS": (4, 8), "TUNED_STEPS": (4, 8), "EXIT_STEPS": (8,)}  # fmt: skip
    for constant, value in fewer.items():
        monkeypatch.setattr(tuned, constant, value)
    run("--networks", name, *QUICK)
    capsys.readouterr()
    run("--missing", "--networks", name)
    assert capsys.readouterr().out == ""
    (results / "method.md").write_text((tuned.DOCS / "method.md").read_text())
    run("--write")
    assert (results / "method.png").stat().st_size > 1000
    text = (results / "method.md").read_text()
    assert text == tuned.page(text, "digits")
    assert f"| {name} | source network | | 100 |".replace("| |", "|  |") in text


def test_the_page_is_made_from_the_figures():
    text = tuned.PAGE.read_text()
    assert text == tuned.page(text, "fashion"), "run python benchmarks/tuned.py --write"


def test_the_exponent_of_a_power():
    points = [(blocks, 0.01 * blocks**0.7) for blocks in (1, 2, 4, 8)]
    assert tuned.exponent(points) == pytest.approx(0.7)
    assert tuned.exponent(points[:1]) is None


def test_the_cheapest_is_the_one_of_fewest_spikes():
    def row(spikes, agreement):
        return {"cost": {"spikes": spikes}, "agreement": agreement}

    ways = [Way("digits", "vgg", t) for t in (1, 2, 3)]
    found = list(zip(ways, [row(8.0, 0.991), row(4.0, 0.992), row(4.0, 0.995)], strict=True))
    assert tuned.cheapest(found) == found[2]


@pytest.mark.parametrize(
    ("learn", "dead_zone"),
    [(learn, zone) for learn in ("steps", "scales", "resting", "dead_zones") for zone in (0, 2 / 3)
     if zone or learn != "dead_zones"],
)  # fmt: skip
def test_what_is_not_learned_stays_as_planned(learn, dead_zone):
    x, model = digits().train.images[:64], load_network("resmlp", "digits")
    given = {"time_steps": 3, "dead_zone": dead_zone, "scale": "channel"}
    network = sg.convert(model, x, tune=False, **given)
    found = sg.tune(network, x, iterations=12, learn=[learn])
    values = [
        {
            "steps": torch.tensor([node.schedule(t) for t in (1, 2, 3)]),
            "scales": torch.as_tensor(node.scale),
            "resting": torch.as_tensor(node.resting).expand(torch.as_tensor(node.scale).shape),
            "dead_zones": torch.as_tensor(node.dead_zone),
        }
        for node in (network.neurons[0], found.neurons[0])
    ]
    assert sg.Tuning.of(found).error[1] < sg.Tuning.of(found).error[0]
    for kind in values[0]:
        same = torch.allclose(values[0][kind], values[1][kind], rtol=1e-5)
        assert same == (kind != learn)


def test_learn_names_what_there_is():
    x, model = digits().train.images[:64], load_network("resmlp", "digits")
    network = sg.convert(model, x, time_steps=3, tune=False)
    for learn in ("steps", [], ["step"]):
        with pytest.raises(sg.InputError, match="learn names some of steps, scales, resting"):
            sg.tune(network, x, learn=learn)
