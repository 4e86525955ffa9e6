"""Networks trained from scratch: QCFS, and the neurons of SpikingJelly, Norse and ours."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import from_scratch
import pytest
import torch
import train_from_scratch
from data import Split, fashion_mnist
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

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


# -- one CNN, every neuron ----------------------------------------------------------------------


SMALL = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(2))
NAMES = list(train_from_scratch.NEURONS)


@pytest.mark.spikingjelly
@pytest.mark.parametrize("name", NAMES)
def test_every_neuron_trains_every_weight(name):
    torch.manual_seed(0)
    model = train_from_scratch.make_model(name)
    optimizer = train_from_scratch.make_optimizer(model)
    labels = torch.arange(6)
    losses = [train_from_scratch.train_step(model, optimizer, SMALL, labels) for _ in range(12)]
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key
    assert losses[-1] < 0.9 * losses[0], losses


def test_the_example_reaches_more_than_chance(monkeypatch, capsys):
    """Twenty steps of 64 images."""
    data = images_of_fashion()
    few = data._replace(
        train=Split(data.train.images[:1280], data.train.labels[:1280]),
        test=Split(data.test.images[:1000], data.test.labels[:1000]),
    )
    monkeypatch.setattr(train_from_scratch, "fashion_mnist", lambda: few)
    monkeypatch.setattr(sys, "argv", ["train_from_scratch.py", "SignGD-4", "--epochs", "1"])
    train_from_scratch.main()
    (reached,) = re.findall(r"SignGD-4: test ([\d.]+) %", capsys.readouterr().out)
    assert float(reached) > 40


def images_of_fashion():
    try:
        return fashion_mnist()
    except FileNotFoundError:
        pytest.skip("needs Debian's package dataset-fashion-mnist")


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_meetings_are_the_weights_that_a_value_meets(kind):
    """By setting one value after the other: how many outputs change."""
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    layers = (
        nn.Sequential(conv) if kind == "conv" else nn.Sequential(nn.Flatten(), nn.Linear(50, 7))
    )
    each = from_scratch.meetings(layers, torch.zeros(2, 5, 5))
    inputs = torch.eye(50).reshape(50, 2, 5, 5)
    with torch.no_grad():
        changed = (layers(inputs) != layers(torch.zeros(1, 2, 5, 5))).flatten(1).sum(1)
    assert torch.equal(each.flatten(), changed.float())


def test_spikes_are_heard_of_every_kind():
    from spikingjelly.activation_based import neuron

    x = 2 * torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(3))
    node = sg.SignGDNode(members=1, step_mode="m", store_v_seq=True)
    sent, y = from_scratch.heard(node, x)
    assert torch.equal(sent, node.spike_seq.abs().double()) and 0 < sent.mean() < 1
    assert torch.equal(y, node.v_seq)
    sent, y = from_scratch.heard(sg.GroupNode(4, step_mode="m"), x)
    assert torch.equal(sent / 4, y.double()) and sent.max() == 4
    sent, y = from_scratch.heard(neuron.IFNode(step_mode="m"), x)
    assert torch.equal(sent, y.double()) and 0 < sent.mean() < 1


def test_additions_are_those_of_the_counter():
    """The same network of QCFS activations, converted and counted by the package."""
    torch.manual_seed(0)
    model = train_from_scratch.make_model("QCFS-4")
    model(SMALL)  # statistics of batch norms
    model.eval()
    plain = nn.Sequential(*model.stem, *(p for part in model.body for p in parts_of(part)))
    snn = sg.build(sg.convert(plain, SMALL, method="group"))
    expected = count_operations(snn, SMALL)
    model = from_scratch.spiking(model)
    from_scratch.counted(model, SMALL[:2])  # another batch, which is forgotten
    found = from_scratch.counted(model, SMALL)
    assert found["neurons"] == expected.neurons and found["input_macs"] == expected.input_macs
    assert found["macs"] == expected.source_macs
    # folding batch norms rounds: a spike in thousands may differ
    assert found["spikes"] == pytest.approx(expected.spikes, rel=1e-3)
    assert found["additions"] == pytest.approx(expected.synaptic, rel=1e-3)


def parts_of(part):
    return list(part) if isinstance(part, train_from_scratch.EachStep) else [part]


def test_tables_are_written_where_the_tutorial_has_them(tmp_path, monkeypatch):
    """Of cells of three seeds; what was there before goes."""
    monkeypatch.setattr(from_scratch, "RESULTS", tmp_path)
    for name, factor in (("IFNode", 1.0), ("SignGD-4", 0.5)):
        for seed in range(3):
            values = {"accuracy": 90.0 + seed, "spikes": 3000.0, "additions": 1e5 * factor}
            from_scratch.keep(name, f"seed {seed}", values)
    for seed in range(2):  # shorter trainings are a table of their own
        values = {"accuracy": 50.0, "spikes": 1.0, "additions": 1.0}
        from_scratch.keep("SignGD-4", from_scratch.cell_of(seed, 1), values)
    assert any("| 50.00 (50.00 to 50.00) |" in line for line in from_scratch.table(1))
    from_scratch.keep("SignGD-4", "time", {"step": 0.01, "ratio": 0.4})
    written = from_scratch.page((TUTORIALS / "training.md").read_text())
    rows = [line for line in written.splitlines() if line.startswith("| ") and " 91.00 " in line]
    assert [row.split(" | ", 3)[3] for row in rows] == [
        "91.00 (90.00 to 92.00) | 3,000 | 100,000 | 1.00 | – | – |",
        "91.00 (90.00 to 92.00) | 3,000 | 50,000 | 0.50 | 10.0 | 0.40 |",
    ]
    assert from_scratch.page(written) == written


def test_a_cell_is_of_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(from_scratch, "RESULTS", tmp_path)
    monkeypatch.setattr(from_scratch, "trained", lambda *given: {"given": given})
    from_scratch.keep("IFNode", "time", {})
    for epochs in (from_scratch.EPOCHS, 1, from_scratch.EPOCHS):
        from_scratch.run(["IFNode"], [0], epochs)
    assert from_scratch.cells("IFNode") == {
        "time": {},
        "seed 0": {"given": ["IFNode", 0, 3]},
        "seed 0 epochs 1": {"given": ["IFNode", 0, 1]},
    }


def test_the_tutorial_of_training():  # on 2.0.0: before, BatchNorm1d takes no [T, N, C]
    scope = read("training.md")
    assert all(reached > 0.95 for reached in scope["found"].values()), scope["found"]
    assert scope["norse_accuracy"] > 0.9
