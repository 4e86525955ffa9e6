"""Tuning: its gradient, what it promises, what it refuses; searching for steps and members."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import allocate, default_schedule, tuning
from spikingjelly_signgd.core.network import SignGDNeuron
from spikingjelly_signgd.neurons import NONLINEARITIES, ExponentialSchedule, signgd_initial_state
from spikingjelly_signgd.neurons.scan import scan
from spikingjelly_signgd.neurons.signgd import signgd_decoded_step


class Small(nn.Module):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.LayerNorm(64)
        self.fc1 = nn.Linear(64, hidden)
        self.fc2 = nn.Linear(hidden, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def neuron(function="identity", members=1, **changes):
    given = {
        "name": "n",
        "function": NONLINEARITIES[function],
        "schedule": ExponentialSchedule(0.5, 0.7),
        "members": members,
    }
    return SignGDNeuron(**{**given, **changes})


def tracked(target, eta, scale, resting, node, static):
    """The docstring's derivatives, one by one, through torch's own differentiation."""
    v = resting.expand(target.shape if static else target.shape[1:])
    values = []
    for t in range(len(eta)):
        f = target if static else target[t]
        for k in range(node.members):
            size = eta[t] * 2.0**-k * scale
            u = (v - f).detach()
            fires = u >= 0 if node.function.fires_at_tie else u > 0
            sigma = fires.to(u.dtype) * 2 - 1
            near = (u.abs() < size.detach()).to(u.dtype)
            follows = near * (f - f.detach()) + (1 - near) * (v - v.detach())
            v = (v - size * sigma).detach() + follows - (size - size.detach()) * sigma
        values.append(v)
    return torch.stack(values)


@pytest.mark.parametrize("function", ["relu", "gelu"])  # which fires at a tie, and which does not
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(), (3, 1), (1,)])
def test_the_gradient_is_the_one_that_is_documented(function, members, static, shape):
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes):
        return torch.rand(sizes, generator=generator, dtype=torch.float64)

    node = neuron(function, members)
    target = (draw(4, 3, 5) if static else draw(6, 4, 3, 5)) * 2 - 0.5
    leaves = [target, draw(6) * 0.5 + 0.05, draw(*shape) + 0.5, draw(*shape) * 0.2]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights = draw(6, 4, 3, 5)
    found = []
    for run in (tuning._Track.apply, tracked):
        y = run(*leaves, node, static)
        found.append((y, torch.autograd.grad((y * weights).sum(), leaves)))
    assert torch.equal(found[0][0], found[1][0])
    for mine, theirs, name in zip(
        found[0][1], found[1][1], ("f", "eta", "scale", "resting"), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=lambda m, name=name: f"{name}: {m}")
        assert name == "resting" or float(theirs.abs().sum()) > 0


@pytest.mark.parametrize("members", [1, 2, 8])
def test_the_tuned_forward_pass_is_the_neuron_s_definition(members):
    node = neuron("relu", members, scale=torch.tensor([[0.7], [1.3]]))
    target = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).relu()
    choice = tuning.Choice.of(node, 5, target)
    exact = choice.applied(node).parameters
    y = tuning._Track.apply(
        target, choice.eta.exp(), choice.scale.exp(), choice.resting, node, False
    )
    start = signgd_initial_state(target[0], exact)
    expected, _ = scan(signgd_decoded_step, [(x,) for x in target], start, exact)
    assert torch.equal(y, torch.as_tensor(expected))


def test_what_is_tuned_is_what_is_simulated(model, images):
    """The simulation under a gradient, without one, and SpikingJelly's: the same to the bit."""
    network = sg.convert(model, images, time_steps=6, members={"": 2, "gelu": 1}, tune=False)
    samples = tuning.samples_of(network, images[:7])
    choices = tuning.default_choices(network, samples)
    simulation = tuning.Tunable(network, 6)
    with torch.enable_grad():
        (trained,) = simulation.outputs(images[:7], choices)
    with torch.no_grad():
        (without,) = simulation.outputs(images[:7], choices)
    tuned = network.replace(
        nodes=tuple(
            choices[n.name].applied(n) if isinstance(n, SignGDNeuron) else n for n in network.nodes
        )
    )
    run = sg.run(sg.build(tuned), images[:7], 6)[6]
    torch.testing.assert_close(trained.detach(), without, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(without, run, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("steps", "members"), [(4, 1), (8, 1), (2, 3)])
def test_tuning_lowers_the_error_on_images_that_it_never_saw(model, images, steps, members):
    given = images[:128]
    plain = sg.convert(model, given, time_steps=steps, members=members, tune=False)
    tuned = sg.tune(plain, given, iterations=40)
    before, after = (
        sg.evaluate(sg.build(n), [images[128:]], steps, reference=model) for n in (plain, tuned)
    )
    assert after.error[0] < 0.9 * before.error[0]
    report = sg.Tuning.of(tuned)
    assert report is not None and report.error[1] < report.error[0]
    assert report.samples == 96 and report.held_out == 32 and report.iterations == 40


def test_the_same_seed_gives_the_same_network(model, images):
    plain = sg.convert(model, images, time_steps=4, tune=False)
    first, second, other = (sg.tune(plain, images, iterations=8, seed=s) for s in (0, 0, 1))
    assert [n.schedule.values for n in first.neurons] == [n.schedule.values for n in second.neurons]
    assert all(
        torch.equal(a.scale, b.scale) for a, b in zip(first.neurons, second.neurons, strict=True)
    )
    assert first.provenance["tuning"] == second.provenance["tuning"]
    assert first.provenance["tuning"]["error"] != other.provenance["tuning"]["error"]


def test_a_descent_that_goes_astray_changes_nothing(model, images, monkeypatch):
    plain = sg.convert(model, images, time_steps=8, tune=False)

    def astray(self, start, rate, iterations):
        for i in range(3):
            choices = {name: choice.copy() for name, choice in start.items()}
            for choice in choices.values():
                choice.scale.add_(3.0 + i)
            yield i, choices

    monkeypatch.setattr(tuning._Tuner, "_descend", astray)
    monkeypatch.setattr(tuning, "_starts", lambda network: [])
    tuned = sg.tune(plain, images, iterations=3)
    assert tuned.nodes == plain.nodes
    report = sg.Tuning.of(tuned)
    assert report is not None and report.error[0] == report.error[1]


def test_a_time_limit_stops_the_descent(model, images):
    plain = sg.convert(model, images, time_steps=4, tune=False)
    limited = sg.tune(plain, images, iterations=5000, seconds=0.2)
    assert 1 <= sg.Tuning.of(limited).iterations < 3000


def test_the_report_is_plain_data_and_a_table(model, images, tmp_path):
    network = sg.convert(model, images, time_steps=4, tune=True)
    report = sg.Tuning.of(network)
    text = str(report)
    assert all(name in text for name in network.names()) and "held-out" in text
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    sg.save(network, tmp_path / "net.h5")
    loaded = sg.load(tmp_path / "net.h5")
    assert sg.Tuning.of(loaded) == report
    x = images[:5]
    # the list of steps goes on beyond those that were tuned
    for steps in (4, 7):
        assert torch.equal(
            sg.run(sg.build(loaded), x, steps)[steps], sg.run(sg.build(network), x, steps)[steps]
        )


def test_a_neuron_put_back_alone_is_what_the_report_says(model, images):
    plain = sg.convert(model, images, time_steps=4, tune=False)
    tuned = sg.tune(plain, images, iterations=20)
    name = tuned.names()[0]
    generator = torch.Generator().manual_seed(0)
    held_out = images[torch.randperm(len(images), generator=generator)][:40]
    undone = tuned.replace(
        nodes=tuple(plain[name] if node.name == name else node for node in tuned.nodes)
    )
    found = sg.evaluate(sg.build(undone), [held_out], 4, reference=model)
    assert found.error[0] == pytest.approx(sg.Tuning.of(tuned).layers[name]["without"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "group"}, "none"),
        ({"momentum": 0.5}, "momentum"),
        ({"input_coding": "poisson"}, "Poisson"),
        ({"max_batches": 1}, "64 calibration samples"),
    ],
)
def test_what_cannot_be_tuned_says_why(options, why):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    images = list(torch.rand(160, 1, 8, 8).split(32))
    network = sg.convert(model, images, time_steps=4, **options)
    assert why in network.provenance["tuning"]["none"] and sg.Tuning.of(network) is None
    with pytest.raises(sg.InputError, match=why):
        sg.convert(model, images, time_steps=4, tune=True, **options)


@pytest.mark.parametrize(
    "options",
    [{"scale": "tensor"}, {"resting": "mean"}, {"preset": "paper"}, {"time_steps": 128}],
)
@pytest.mark.filterwarnings("ignore::spikingjelly_signgd.SaturationWarning")
def test_what_the_caller_chose_is_left_alone_unless_asked(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(96, 1, 8, 8)
    options = {"time_steps": 4, **options}
    assert sg.Tuning.of(sg.convert(model, images, **options)) is None
    if options["time_steps"] == 4 and "preset" not in options:
        assert sg.Tuning.of(sg.convert(model, images, tune=True, **options)) is not None


def test_tuned_by_default_and_not_when_told(model, images):
    assert sg.Tuning.of(sg.convert(model, images[:64], time_steps=2)) is not None
    plain = sg.convert(model, images[:64], time_steps=2, tune=False)
    assert "tuning" not in plain.provenance
    assert all(n.schedule == default_schedule(2, 1.0) for n in plain.neurons[-1:])


@pytest.mark.parametrize("given", [{"iterations": 0}, {"seconds": -1.0}])
def test_nonsense_is_refused(model, images, given):
    network = sg.convert(model, images, time_steps=2, tune=False)
    with pytest.raises(sg.InputError, match=next(iter(given))):
        sg.tune(network, images, **given)


class Several(nn.Module):
    """Not a classifier: a dict of an image and a vector, of an input coded in time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        y = torch.tanh(self.conv(x))
        return {"image": y, "rest": [self.fc(y.mean(1).flatten(1)).relu()]}


@pytest.mark.parametrize(
    "options", [{"input_coding": "real"}, {"input_coding": "spike"}, {"keep": ["fc"]}]
)
def test_outputs_of_any_structure_and_coded_inputs(images, options):
    torch.manual_seed(2)
    model = Several().eval()
    plain = sg.convert(model, images, time_steps=6, tune=False, **options)
    tuned = sg.tune(plain, images, iterations=25)
    report = sg.Tuning.of(tuned)
    assert report.agreement is None and report.error[1] < report.error[0]
    errors = []
    with torch.no_grad():
        target = model(images[:16])
    for network in (plain, tuned):
        y = sg.run(sg.build(network), images[:16], 6)[6]
        pairs = [(y["image"], target["image"]), (y["rest"][0], target["rest"][0])]
        errors.append(sum(float((a - b).square().mean() / b.square().mean()) for a, b in pairs))
    assert errors[1] < errors[0]


# -- members by layer -----------------------------------------------------------------------------


def spikes_of(network):
    count = network.count()
    return network.time_steps * sum(count[n.name] * n.members for n in network.neurons)


def test_members_are_exchanged_for_less_error_at_no_more_spikes(model, images):
    network = sg.tune(
        sg.convert(model, images, time_steps=2, members=3, tune=False), images, iterations=20
    )
    changed = allocate(network, images)
    assert spikes_of(changed) <= spikes_of(network)
    if changed is not network:
        members = [n.members for n in changed.neurons]
        assert members != [3] * len(members)
        errors = []
        for candidate in (network, changed):
            found = sg.evaluate(sg.build(candidate), [images[:128]], 2, reference=model)
            errors.append(found.error[0])
        assert errors[1] < errors[0]


def test_a_layer_that_hardly_matters_pays(images):
    """Two branches, one of them a thousandth of the sum: its members go to the other."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 16), nn.Linear(64, 16)

        def forward(self, x):
            x = x.flatten(1)
            return self.a(x).relu() + 1e-3 * self.b(x).relu()

    torch.manual_seed(0)
    network = sg.convert(Branches().eval(), images, time_steps=2, members=3, tune=False)
    changed = allocate(network, images)
    first, second = (n.members for n in changed.neurons)
    assert first > 3 > second and spikes_of(changed) <= spikes_of(network)


def test_search_keeps_to_its_budget(model, images):
    network = sg.search(model, images, spikes=4)
    record = network.provenance["search"]
    splits = [(row["members"], row["time_steps"]) for row in record["tried"][:3]]
    assert splits == [(1, 4), (2, 2), (4, 1)]
    assert spikes_of(network) <= 4 * sum(network.count().values())
    assert record["samples"] == 32 and 0 <= record["agreement"] <= 1
    json.dumps(network.provenance)


def test_search_for_an_agreement(model, images):
    network = sg.search(model, images, agreement=0.9)
    assert network.provenance["search"]["agreement"] >= 0.9
    assert network.provenance["search"]["spikes"] <= 16


def test_search_refuses_what_contradicts(model, images):
    with pytest.raises(sg.InputError, match="one of them"):
        sg.search(model, images)
    with pytest.raises(sg.InputError, match="time_steps"):
        sg.search(model, images, spikes=4, time_steps=3)
    with pytest.raises(sg.InputError, match="fraction"):
        sg.search(model, images, agreement=99)
    with pytest.raises(sg.CalibrationError, match="79"):
        sg.search(model, images[:70], spikes=2)
    regression = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU())
    with pytest.raises(sg.InputError, match="classes"):
        sg.search(regression, images, agreement=0.5)


def test_members_beyond_a_byte_are_refused(model, images):
    with pytest.raises(sg.InputError, match="at most 8"):
        sg.convert(model, images, members=9, tune=False)
    network = sg.convert(model, images, members={"": 2, "gelu": 8}, time_steps=3, tune=False)
    by_name = {n.name: n.members for n in network.neurons}
    assert sorted(set(by_name.values())) == [2, 8]
    assert replace(network.neurons[0], members=8).parameters.members == 8
