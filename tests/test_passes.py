"""Passes of convert: what each does, one of one's own among them, settings checked at birth."""

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import METHODS, PASSES, Context, Settings, conversion, passes
from spikingjelly_signgd.core.network import Function, Linear, SignGDNeuron

pytestmark = pytest.mark.spikingjelly


def trained_batch_norm(channels, kind=nn.BatchNorm2d):
    norm = kind(channels)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    return norm


class TwoReaders(nn.Module):
    """The convolution's output is read twice: its weights must stay as they are."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), trained_batch_norm(4)

    def forward(self, x):
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


class NormIsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), trained_batch_norm(4)

    def forward(self, x):
        return self.norm(self.conv(x))


CASES = {
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), trained_batch_norm(4), nn.ReLU()),
        0,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), trained_batch_norm(8)
        ),
        0,
    ),
    "linear": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 5), trained_batch_norm(5, nn.BatchNorm1d), nn.ReLU()
        ),
        0,
    ),
    "conv read twice": (TwoReaders, 1),
    "norm is the output": (NormIsOutput, 0),
    "before the convolution": (
        lambda: nn.Sequential(trained_batch_norm(1), nn.Conv2d(1, 4, 3), nn.ReLU()),
        1,
    ),
    "after ReLU": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), trained_batch_norm(4)),
        1,
    ),
    "after a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 4, 3), trained_batch_norm(4), nn.ReLU()),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_batch_norm(name):
    build, left = CASES[name]
    model, x = build().eval(), torch.randn(6, 1, 8, 8)
    network = sg.convert(model, x)
    affine = [n for n in network.nodes if isinstance(n, Linear) and n.op == "affine"]
    assert len(affine) == left
    snn = sg.build(network)
    torch.testing.assert_close(snn.ann(x), model(x), rtol=1e-5, atol=1e-5)


# -- a pass and a method of one's own -------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "convert.md"


@pytest.fixture(scope="module")
def page():
    """What the page of the reference does, in one namespace; methods are as before afterwards."""
    before, scope = dict(METHODS), {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        exec(code, scope)
    yield scope
    METHODS.clear()
    METHODS.update(before)


def test_a_pass_of_ones_own_takes_its_place(page):
    weights = [n.tensors["weight"] for n in page["network"].of(Linear)]
    assert len(weights) == 2 and all(w.unique().numel() <= 127 for w in weights)
    plain = sg.convert(page["model"], page["x"])
    seen, exact = (n.statistics["1"]["mean"] for n in (page["network"], plain))
    assert not torch.equal(seen, exact), "calibration saw what the pass had made"


def test_a_method_of_ones_own_plans_its_neurons(page):
    (neuron,) = page["digits"].neurons
    assert isinstance(neuron, SignGDNeuron) and neuron.schedule(3) == 0.125
    assert page["digits"].provenance["method"] == "halving"
    with pytest.raises(sg.InputError, match="signed has no meaning.*applies to group neurons"):
        sg.convert(page["model"], page["x"], method="halving", signed=True)


def test_the_page_names_every_pass_in_order():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M)
    assert listed == [one.__name__ for one in PASSES]


def test_every_pass_takes_a_network_to_a_network():
    model, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.randn(16, 8)
    settings = Settings(tune=False)
    network = conversion.lower(model, x, settings)
    for one in PASSES:
        given, nodes = network, network.nodes
        network = one(given, Context(model, settings, [x]))
        assert isinstance(network, sg.SpikingNetwork) and given.nodes is nodes
    have = sg.convert(model, x, tune=False)
    assert network.provenance == have.provenance and network.names() == have.names()


def test_without_planning_the_functions_stay():
    model, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.randn(16, 8)
    network = sg.convert(model, x, passes=PASSES[: PASSES.index(passes.plan)])
    assert not network.neurons and [n.name for n in network.of(Function)] == ["1"]


# -- settings -------------------------------------------------------------------------------------


def test_settings_are_frozen_and_checked_at_birth():
    settings = Settings(preset="paper", scale="tensor", keep=["a"], method={"": "group"})
    assert settings.method == "group" and settings.keep == ("a",)
    assert settings.chosen["scale"] == "tensor" and settings.chosen["input_coding"] == "real"
    assert set(settings.chosen["forms"].values()) == {"local"}
    with pytest.raises(FrozenInstanceError):
        settings.scale = "unit"
    assert replace(settings, time_steps=4).chosen == settings.chosen
    with pytest.raises(sg.InputError, match="time_steps is an integer of at least 1"):
        replace(settings, time_steps=0)


SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({}, (1, 8, 2 / 3)),
        ({"members": 5}, (1, 5, 2 / 3)),
        ({"members": {"1": 3, "": 6}}, (1, 3, 2 / 3)),
        ({"dead_zone": 0.5}, (1, 8, 0.5)),
        ({"members": 1}, (32, 1, 2 / 3)),
        ({"time_steps": 16}, (16, 1, 2 / 3)),
        ({"time_steps": 2, "members": 4}, (2, 4, 2 / 3)),
        ({"schedule": SCHEDULE}, (32, 1, 2 / 3)),
        ({"input_coding": "real"}, (32, 1, 2 / 3)),
        ({"dead_zone": 0}, (32, 1, 0)),
        ({"dead_zone": {"": 0}}, (32, 1, 0)),
        ({"dead_zone": {"1": 0}}, (1, 8, 0)),  # other neurons may be silent
        ({"momentum": 0.5}, (32, 1, 0)),
        ({"preset": "paper"}, (32, 1, 0)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::spikingjelly_signgd.SaturationWarning")
def test_steps_members_and_dead_zone_that_are_not_given(options, plan):
    """One step of eight members where silence is free and range is the planner's."""
    model, x = nn.Sequential(nn.Linear(8, 4), nn.GELU()).eval(), torch.randn(16, 8)
    network = sg.convert(model, x, **options)
    (neuron,) = network.neurons
    assert (network.time_steps, neuron.members, neuron.dead_zone) == plan


@pytest.mark.parametrize("other", [{"preset": "paper"}, {"momentum": 0.5}])
@pytest.mark.parametrize("theta", [0.5, {"": 0.5, "1": 0}])
def test_neurons_that_fire_at_every_step_are_given_no_dead_zone(theta, other):
    """Those that a dict does not name have none by default."""
    with pytest.raises(sg.InputError, match="fire at every step"):
        Settings(dead_zone=theta, **other)
    assert Settings(dead_zone=0, **other).chosen["dead_zone"] == 0
    for none in ({"": 0}, {"1": 0}):
        assert Settings(dead_zone=none, **other).steps == 32


def test_functions_is_the_older_name_of_forms():
    model, x = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)).eval(), torch.randn(16, 8)
    with pytest.warns(DeprecationWarning, match="forms=") as caught:
        old = sg.convert(model, x, functions="local", tune=False)
    assert caught[0].filename == __file__
    assert old.names() == sg.convert(model, x, forms="local", tune=False).names()
    with pytest.warns(DeprecationWarning, match="forms=") as caught:
        assert len(sg.check(model, x, functions="local").rows) > 1
    assert caught[0].filename == __file__
    with pytest.raises(sg.InputError, match="older name of forms"):
        sg.check(model, x, forms="whole", functions="local")


def test_mend_is_the_older_name_of_fix():
    row = sg.check(nn.Softmin(1), torch.randn(2, 8)).rows[-1]
    with pytest.warns(DeprecationWarning, match="fix"):
        assert row.mend == row.fix
