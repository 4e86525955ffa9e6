"""examples/imagenet: training with QCFS that is resumed, and the table of ImageNet on a dry run."""

import csv
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import spikingjelly_signgd as sg

FOLDER = Path(__file__).parent.parent / "examples/imagenet"
README = (FOLDER / "README.md").read_text()


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"imagenet_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evaluate, train_qcfs, synthetic = map(script, ("evaluate", "train_qcfs", "synthetic"))


def commands(name: str) -> list[list[str]]:
    """The arguments of each command of the README that runs ``name``.py."""
    text = re.sub(r"\\\n\s*", "", README)
    lines = re.findall(rf"examples/imagenet/{name}\.py ([^\n`|]+)", text)
    return [shlex.split(line.split("  #")[0]) for line in lines]


@pytest.mark.parametrize("name", ["evaluate", "train_qcfs"])
def test_the_commands_of_the_readme_are_understood(name):
    found = [globals()[name].parser().parse_args(arguments) for arguments in commands(name)]
    assert len(found) >= 4


# -- training -------------------------------------------------------------------------------------

SMALL = "resnet20 --synthetic 64 --batch-size 32 --epochs 2 --workers 0 --levels 4".split()


def train(*arguments: str) -> None:
    train_qcfs.main([*SMALL, *arguments])


@pytest.mark.slow
def test_a_training_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    """Bit for bit, in mixed precision; then the table, in which T = 1 is exact."""
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    with monkeypatch.context() as patched:
        patched.setattr(train_qcfs, "table", lambda *_: None)
        train("--amp", "--checkpoint", str(whole))
        train("--amp", "--checkpoint", str(halves), "--stop-after", "1")
        torch.manual_seed(5)  # whatever else was drawn
        train("--amp", "--checkpoint", str(halves))
    one, two = (torch.load(path, weights_only=True) for path in (whole, halves))
    assert one["epoch"] == 2 and one["recipe"] == two["recipe"]
    momentum = [
        [each["momentum_buffer"] for each in state["optimizer"]["state"].values()]
        for state in (one, two)
    ]
    for a, b in zip([*one["model"].values(), *momentum[0]],
                    [*two["model"].values(), *momentum[1]], strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] in (
        ["whole.pt", "halves.pt"],
        ["halves.pt", "whole.pt"],
    )
    capsys.readouterr()
    train("--amp", "--checkpoint", str(whole))
    printed = capsys.readouterr().out
    assert "epoch" not in printed
    rows = re.findall(r"^ +(\d) +[\d.]+ % +([\d.]+) % +([\d.]+)$", printed, flags=re.M)
    assert [int(t) for t, *_ in rows] == [1, 2, 4, 8]
    assert float(rows[0][1]) > 90 and float(rows[0][2]) < 0.05  # values on a border may fall aside
    assert float(rows[0][2]) < float(rows[-1][2])


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train_qcfs, "table", lambda *_: None)
    train("--checkpoint", str(tmp_path / "a.pt"), "--stop-after", "1")
    with pytest.raises(sg.InputError, match="of a training with {'lr': 0.1}; give these"):
        train("--checkpoint", str(tmp_path / "a.pt"), "--lr", "0.2")


def test_a_batch_that_processes_cannot_share():
    with pytest.raises(sg.InputError, match="at most the number of images"):
        train("--batch-size", "65")


@pytest.mark.parametrize("name", train_qcfs.NETWORKS)
def test_networks_of_cifar(name):
    """From [B, 3, 32, 32] to 10 classes by QCFS activations alone, and convertible."""
    with torch.device("meta"):
        model = train_qcfs.NETWORKS[name](8)
        assert model.eval()(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    kinds = [type(module).__name__ for module in model.modules()]
    counts = {"vgg16": 15, "resnet18": 17, "resnet20": 19, "resnet34": 33}
    assert kinds.count("QCFS") == counts[name]
    assert not {"ReLU", "MaxPool2d"} & set(kinds)


# -- the table of ImageNet ------------------------------------------------------------------------


def test_samples_are_spread_over_classes():
    targets = [0] * 50 + [1] * 3 + [2] * 20
    chosen = evaluate.spread(targets, 12, seed=0)
    assert len(set(chosen)) == 12
    assert (
        sorted(targets[i] for i in chosen) == [0] * 5 + [1] * 3 + [2] * 4
        or sorted(targets[i] for i in chosen) == [0] * 4 + [1] * 3 + [2] * 5
    )
    assert chosen == evaluate.spread(targets, 12, seed=0) != evaluate.spread(targets, 12, seed=1)
    assert sorted(evaluate.spread(targets, 100, seed=0)) == list(range(73))
    # fewer than classes: not the first ones
    many = {tuple(targets[i] for i in evaluate.spread(targets, 1, seed)) for seed in range(9)}
    assert len(many) > 1


def test_batches_go_where_the_network_is(monkeypatch):
    """A loader's are on the CPU; "meta" stands for a GPU."""
    from spikingjelly_signgd.core import evaluating

    class Arrived(Exception):
        pass

    def run(snn, x, *_, **__):
        raise Arrived(x.device.type)

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.rand(8, 4)
    snn = sg.build(sg.convert(model.eval(), x, time_steps=1, members=4, tune=False))
    monkeypatch.setattr(evaluating, "run", run)
    for device in ("cpu", "meta"):
        with pytest.raises(Arrived, match=device):
            sg.evaluate(snn.to(device), [(x, torch.zeros(8, dtype=torch.long))])


def test_plans():
    found = list(evaluate.plans(["paper", "sparse"], [1, 8], [1, 8, 64]))
    assert [plan.name for plan in found] == [
        "paper_1x64", "sparse_1x1", "sparse_1x8", "sparse_1x64", "sparse_8x1", "sparse_8x8",
    ]  # fmt: skip
    assert found[0].steps == (1, 8, 64)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    synthetic.make_folder(folder, images=40, classes=5, train=20)
    return folder


@pytest.mark.vision
@pytest.mark.filterwarnings("default")  # the libraries' are many
def test_every_network_of_the_readme_is_known():
    """To its library, with those weights."""
    timm = pytest.importorskip("timm")
    models = pytest.importorskip("torchvision.models")
    for arguments in commands("evaluate"):
        given = evaluate.parser().parse_args(arguments)
        library, _, name = given.model.partition(":")
        if library == "timm":
            assert f"{name}.{given.weights}" in timm.list_pretrained(f"{name}.*")
        elif given.weights != "none":
            assert given.weights in [*models.get_model_weights(name).__members__, "DEFAULT"]


@pytest.mark.vision
@pytest.mark.filterwarnings("default")
def test_the_dry_run_of_the_readme(jpegs, tmp_path, capsys):
    """From JPEGs of several sizes, one of them grey, to the table; again from what was kept."""
    pytest.importorskip("torchvision")
    (line,) = [each for each in commands("evaluate") if "jpegs" in each]
    line = [str(jpegs) if part == "jpegs" else part.replace("jpegs/", f"{tmp_path}/")
            for part in line] + ["--calibration", "10", "--steps", "1"]  # fmt: skip
    evaluate.main(line)
    printed = capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["network"], row["members"], row["T"]) for row in table] == [
        ("sparse", "8", "1"),
        ("group", "8", "1"),
    ]
    assert all(row["images"] == "40" and row["source"] == table[0]["source"] for row in table)
    assert 0 < float(table[0]["output_error"]) < 0.02 and 0 < float(table[1]["output_error"]) < 0.5
    assert all(0 < float(row["spikes"]) < 8 for row in table)
    assert len(re.findall(r"^(?:sparse|group) .* 40 ", printed, flags=re.M)) == 2

    evaluate.main(line)  # nothing is left to do
    with (tmp_path / "table.csv").open() as file:
        again = list(csv.DictReader(file))
    alike = [name for name in table[0] if name not in ("seconds", "images_per_second")]
    assert [[row[n] for n in alike] for row in again] == [[row[n] for n in alike] for row in table]
    assert {row["images_per_second"] for row in again} == {""}
    with pytest.raises(sg.InputError, match="of another run: seed was 0"):
        evaluate.main([*line, "--seed", "1"])


@pytest.mark.vision
@pytest.mark.filterwarnings("default")
def test_images_of_calibration_are_not_evaluated(jpegs, tmp_path):
    pytest.importorskip("torchvision")
    shutil.copytree(jpegs / "val", tmp_path / "val")
    given = evaluate.parser().parse_args(["torchvision:resnet18", str(tmp_path)])
    given.calibration = 10
    chosen, rest = evaluate.load_data(tmp_path, None, given)
    assert len(rest) == 30 and not set(chosen.indices) & set(rest.indices)
    assert {chosen.dataset.targets[i] for i in chosen.indices} == set(range(5))
    chosen, rest = evaluate.load_data(jpegs, None, given)
    assert (len(chosen), len(rest)) == (10, 40)
    assert Path(chosen.dataset.root).name == "train"
    given.limit = 5
    rest = evaluate.load_data(jpegs, None, given)[1]
    assert {rest.dataset.targets[i] for i in rest.indices} == set(range(5))
