"""Tuning: its gradient, what it promises, what it refuses; searching for steps and members."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.converters import allocate, budget, default_schedule, tunable, tuning
from spikingjelly_signgd.converters import blocks as block_tuning
from spikingjelly_signgd.converters.additions import Prices
from spikingjelly_signgd.converters.objectives import OBJECTIVES
from spikingjelly_signgd.converters.simulation import Simulation
from spikingjelly_signgd.core.network import SignGDNeuron
from spikingjelly_signgd.neurons import NONLINEARITIES, ExponentialSchedule, signgd_initial_state
from spikingjelly_signgd.neurons.scan import scan
from spikingjelly_signgd.neurons.signgd import signgd_decoded_step, sparse
from spikingjelly_signgd.neurons.signgd.dithered import SparseTrack, expected_spikes


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
    for run in (tunable._Track.apply, tracked):
        y = run(*leaves, node, static)
        found.append((y, torch.autograd.grad((y * weights).sum(), leaves)))
    assert torch.equal(found[0][0], found[1][0])
    for mine, theirs, name in zip(
        found[0][1], found[1][1], ("f", "eta", "scale", "resting"), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=lambda m, name=name: f"{name}: {m}")
        assert name == "resting" or float(theirs.abs().sum()) > 0


def sparsely_tracked(target, eta, scale, resting, theta, fan_out, node, static):
    """The equations of ``dithered``, one by one, through torch's own differentiation."""
    v, values, sent = resting.expand(target.shape if static else target.shape[1:]), [], 0.0
    still = torch.ones_like(v, dtype=torch.bool)
    m, fixed = node.members, theta.detach()
    for t in range(len(eta)):
        f, c = target if static else target[t], eta[t] * scale
        r, c_m = v - f, c * 2.0 ** (1 - m)
        code, _ = sparse.sparse_step(f.detach(), c.detach(), fixed, v.detach(), m)
        still = still & (code == 0)
        rho = torch.maximum(fixed, 1 - fixed)
        near = r.detach().abs() <= (2 - 2.0 ** (1 - m)) * c.detach() + rho * c_m.detach()
        d = sparse.levels(code, v.dtype)
        e = (r - c_m * d).detach()
        kappa = (1 / 12 + (theta - 0.5) ** 2).sqrt()
        within = f + e * (c_m / c_m.detach()) * (kappa / kappa.detach())
        within = within + torch.where(still, resting - resting.detach(), 0.0)
        x = r.abs() / (theta * c_m)
        mean = tuned_spikes(x, theta)
        n = sparse.count(code) + torch.where(near, mean - mean.detach(), 0.0)
        sent = sent + (n * fan_out).sum()
        values.append(torch.where(near, within, v - c_m * d))
        # what a neuron at rest hands on goes to the resting value once, at its own step
        v = values[-1] - torch.where(still & near, resting - resting.detach(), 0.0)
    return torch.stack(values), sent


def tuned_spikes(x, theta):
    q = torch.where(theta < 2 / 3, 1 - theta, 1 / 3 + 0 * theta)
    return x**2 / (1 + x**2) * (1 + q / 2 * torch.log2(1 + x**2))


@pytest.mark.parametrize("members", [1, 3, 8])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("theta", [0.3, 2 / 3, [[0.2], [0.5], [0.7]]])
def test_the_gradient_with_a_dead_zone_is_the_one_that_is_documented(members, static, theta):
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes):
        return torch.rand(sizes, generator=generator, dtype=torch.float64)

    node = neuron("relu", members, dead_zone=0.5)
    target = (draw(4, 3, 5) if static else draw(6, 4, 3, 5)) * 2 - 0.5
    zone = torch.tensor(theta, dtype=torch.float64)
    leaves = [target, draw(6) * 0.5 + 0.05, draw(3, 1) + 0.5, draw(3, 1) * 0.2, zone]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights, fan_out = draw(6, 4, 3, 5), draw(3, 5)
    found = []
    for of_spikes in (0.0, 1.0):
        y, sent = SparseTrack.apply(*leaves, fan_out, members, True, static)
        y2, sent2 = sparsely_tracked(*leaves, fan_out, node, static)
        assert torch.equal(y[0], y2[0]) or torch.allclose(y, y2, rtol=0, atol=1e-12)
        torch.testing.assert_close(sent, sent2)
        losses = (a.mul(weights).sum() + of_spikes * b for a, b in ((y, sent), (y2, sent2)))
        found.append([torch.autograd.grad(loss, leaves) for loss in losses])
    names = ("f", "eta", "scale", "resting", "theta")
    for mine, theirs in found:
        for name, a, b in zip(names, mine, theirs, strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    assert all(float(g.abs().sum()) > 0 for g in found[1][0])


@pytest.mark.parametrize("theta", [0.1, 1 / 3, 1 / 2, 2 / 3])
def test_the_error_and_the_digits_of_a_dead_zone_are_those_of_the_formulas(theta):
    """Mean square of the error and the part of digits that fire, over values of the whole reach."""
    members = 12
    r = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    zone = torch.tensor(theta, dtype=torch.float64)
    size = torch.ones((), dtype=torch.float64)
    code, e = sparse.sparse_step(torch.zeros_like(r), size, zone, r, members)
    finest = 2.0 ** (1 - members)
    assert float((e / finest).square().mean()) == pytest.approx(
        1 / 12 + (theta - 0.5) ** 2, rel=0.02
    )
    late = sparse.digits(code, members)[:, 4:].abs().double().mean()
    assert float(late) == pytest.approx(max(1 / 3, 1 - theta), rel=0.02)


@pytest.mark.parametrize("theta", [0.4, 2 / 3])
def test_the_expected_spikes_are_close_to_those_sent(theta):
    """Means over values of f spread by a half around each distance."""
    zone, members = torch.tensor(theta, dtype=torch.float64), 10
    size, finest = torch.ones((), dtype=torch.float64), 2.0 ** (1 - members)
    for x in (0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0):
        r = x * theta * finest * torch.linspace(0.5, 1.5, 4001, dtype=torch.float64)
        code, _ = sparse.sparse_step(torch.zeros_like(r), size, zone, r, members)
        sent = float(sparse.count(code).double().mean())
        assert float(expected_spikes(torch.tensor(x), zone)) == pytest.approx(sent, abs=0.5)


@pytest.mark.parametrize("members", [1, 2, 8, 12])
@pytest.mark.parametrize("theta", [0.5, 2 / 3, [[0.0], [0.6]]])
def test_the_tuned_forward_pass_is_the_definition_of_a_dead_zone(members, theta):
    zone = theta if isinstance(theta, float) else torch.tensor(theta)
    node = neuron("relu", members, scale=torch.tensor([[0.7], [1.3]]), dead_zone=zone)
    target = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).relu()
    choice = tunable.Choice.of(node, 5, target)
    exact = choice.applied(node).parameters
    given = (target, choice.eta.exp(), choice.scale.exp(), choice.resting * choice.unit)
    y, _ = SparseTrack.apply(*given, choice.dead_zone.sigmoid(), None, members, True, False)
    start = signgd_initial_state(target[0], exact)
    expected, _ = scan(signgd_decoded_step, [(x,) for x in target], start, exact)
    assert torch.equal(y, torch.as_tensor(expected))


@pytest.mark.parametrize("members", [1, 2, 8])
def test_the_tuned_forward_pass_is_the_neuron_s_definition(members):
    node = neuron("relu", members, scale=torch.tensor([[0.7], [1.3]]))
    target = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).relu()
    choice = tunable.Choice.of(node, 5, target)
    exact = choice.applied(node).parameters
    y = tunable._Track.apply(
        target, choice.eta.exp(), choice.scale.exp(), choice.resting, node, False
    )
    start = signgd_initial_state(target[0], exact)
    expected, _ = scan(signgd_decoded_step, [(x,) for x in target], start, exact)
    assert torch.equal(y, torch.as_tensor(expected))


def test_what_is_tuned_is_what_is_simulated(model, images):
    """The simulation under a gradient, without one, and SpikingJelly's: the same to the bit."""
    network = sg.convert(model, images, time_steps=6, members={"": 2, "gelu": 1}, tune=False)
    samples = tunable.samples_of(network, images[:7])
    choices = tunable.default_choices(network, samples)
    simulation = tunable.Tunable(network, 6)
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
@pytest.mark.parametrize(("dead_zone", "iterations"), [(0, 40), (2 / 3, 120)])
def test_tuning_lowers_the_error_on_images_that_it_never_saw(
    model, images, steps, members, dead_zone, iterations
):
    """With dead zones the error is half as large to begin with, and falls more slowly."""
    given, options = images[:128], {"time_steps": steps, "members": members}
    plain = sg.convert(model, given, dead_zone=dead_zone, tune=False, **options)
    tuned = sg.tune(plain, given, iterations=iterations)
    before, after = (
        sg.evaluate(sg.build(n), [images[128:]], steps, reference=model) for n in (plain, tuned)
    )
    assert after.error[0] < 0.9 * before.error[0]
    report = sg.Tuning.of(tuned)
    assert report is not None and report.error[1] < report.error[0]
    assert report.samples == 96 and report.held_out == 32
    assert report.iterations == iterations


def test_the_same_seed_gives_the_same_network(model, images):
    plain = sg.convert(model, images, time_steps=4, tune=False)
    first, second, other = (sg.tune(plain, images, iterations=8, seed=s) for s in (0, 0, 1))
    assert [n.schedule.values for n in first.neurons] == [n.schedule.values for n in second.neurons]
    assert all(
        torch.equal(a.scale, b.scale) for a, b in zip(first.neurons, second.neurons, strict=True)
    )
    assert first.provenance["tuning"] == second.provenance["tuning"]
    assert first.provenance["tuning"]["error"] != other.provenance["tuning"]["error"]


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_a_descent_that_goes_astray_changes_nothing(model, images, monkeypatch, dead_zone):
    plain = sg.convert(model, images, time_steps=8, dead_zone=dead_zone, tune=False)

    def astray(self, start, rate, iterations):
        for i in range(3):
            choices = {name: choice.copy() for name, choice in start.items()}
            for choice in choices.values():
                choice.scale.add_(3.0 + i)
            yield choices

    monkeypatch.setattr(tuning._Tuner, "_descend", astray)
    monkeypatch.setattr(tuning, "_starts", lambda network: [])
    # what is tried besides, where steps are learned
    monkeypatch.setattr(tuning._Tuner, "_resize", lambda self, choices: None)
    tuned = sg.tune(plain, images, iterations=3)
    assert tuned.nodes == plain.nodes
    report = sg.Tuning.of(tuned)
    assert report is not None and report.error[0] == report.error[1]


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
        ({"method": "group"}, "only signGD neurons"),
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
    assert plain.neurons[-1].schedule == default_schedule(2, 1.0, dead_zone=2 / 3)
    plain = sg.convert(model, images[:64], time_steps=2, dead_zone=0, tune=False)
    assert plain.neurons[-1].schedule == default_schedule(2, 1.0)


def test_the_default_plan_is_not_tuned_unless_asked(model, images):
    plain = sg.convert(model, images)
    assert plain.neurons[0].members == 8 and plain.time_steps == 1
    assert "tune=True" in plain.provenance["tuning"]["none"]
    for asked in ({"tune": True}, {"objective": "additions"}, {"tune_seconds": 60.0}):
        assert sg.Tuning.of(sg.convert(model, images[:64], **asked)) is not None
    for changed in ({"members": 4, "time_steps": 1}, {"time_steps": 2, "members": 8}):
        assert sg.Tuning.of(sg.convert(model, images[:64], **changed)) is not None


def test_what_is_large_is_not_tuned_unless_asked(model, images, monkeypatch):
    monkeypatch.setattr(tuning, "LARGE", 500)
    plain = sg.convert(model, images[:64], time_steps=2)
    assert "tune_seconds" in plain.provenance["tuning"]["none"]
    assert sg.Tuning.of(sg.convert(model, images[:64], time_steps=2, tune=True)) is not None


@pytest.mark.parametrize(
    "given",
    [{"tune_seconds": 0}, {"tune_seconds": True}, {"tune_seconds": float("inf")},
     {"tune_seconds": 5.0, "tune": False}],
)  # fmt: skip
def test_seconds_that_say_nothing_are_refused(model, images, given):
    with pytest.raises(sg.InputError, match="tune_seconds"):
        sg.convert(model, images[:64], **given)


class Clock:
    """A second for every walk through a network, or a block of one."""

    def __init__(self, monkeypatch, *modules):
        self.seconds = 0.0
        monkeypatch.setattr(budget, "now", lambda: self.seconds)
        for module in modules:
            walk = module.walk
            monkeypatch.setattr(module, "now", lambda: self.seconds, raising=False)
            monkeypatch.setattr(module, "walk", lambda *given, w=walk: self.walked(w, *given))

    def walked(self, walk, *given):
        self.seconds += 1
        return walk(*given)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("seconds", [1, 7, 40, 150])
@pytest.mark.parametrize(("steps", "dead_zone"), [(3, 0), (1, 2 / 3)])
def test_a_limit_is_kept_by_all_that_is_done(
    model, images, monkeypatch, blocks, seconds, steps, dead_zone
):
    """Descent, resizing, looks and report, but for one piece of each kind of work."""
    plan = {"time_steps": steps, "members": 2, "dead_zone": dead_zone}
    plain = sg.convert(model, images, tune=False, **plan)
    clock = Clock(monkeypatch, tunable, block_tuning)
    given = {"iterations": 1000, "blocks": blocks}
    tuned = sg.tune(plain, images, seconds=seconds, **given)
    assert clock.seconds <= seconds + 5
    report = tuned.provenance["tuning"]
    assert seconds < (150 if blocks else 40) or report["iterations"] > 0
    if not blocks and seconds == 150:
        assert clock.seconds > 100, "and used"


def test_what_is_over_before_it_began_is_left_as_it_was(model, images, monkeypatch):
    plain = sg.convert(model, images, tune=False, time_steps=2)
    clock = Clock(monkeypatch, tunable)
    monkeypatch.setattr(tunable, "batch_of", lambda network: 1)
    tuned = sg.tune(plain, images, seconds=5)
    assert clock.seconds <= 5 and tuned.nodes == plain.nodes
    assert "5 seconds were over" in tuned.provenance["tuning"]["none"]


def test_a_report_without_time_says_so(model, images, monkeypatch):
    monkeypatch.setattr(tuning, "REPORTING", 0)
    plain = sg.convert(model, images, time_steps=4, dead_zone=0, tune=False)
    tuned = sg.tune(plain, images, iterations=20)
    report = sg.Tuning.of(tuned)
    assert all("without" not in row for row in report.layers.values())
    assert " -\n" in str(report) and json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_additions_are_those_that_are_counted(model, images):
    """What tuning weighs, from fan-outs, is what ``count_operations`` finds in a run."""
    for steps, members in ((1, 4), (3, 2)):
        network = sg.convert(
            model, images, time_steps=steps, members=members, dead_zone=0.6, tune=False
        )
        simulation = tunable.Tunable(network, steps)
        simulation.count_additions()
        samples = tunable.samples_of(network, images[:20])
        choices = tunable.default_choices(network, samples)
        found = tunable.Measure(simulation, samples)(choices)
        counted = count_operations(Simulation(network), images[:20], steps)
        assert simulation.prices.source == counted.source_macs + counted.source_multiplies
        synaptic = found.additions * simulation.prices.source - simulation.prices.fixed
        assert synaptic == pytest.approx(counted.synaptic, rel=1e-4)
        with torch.enable_grad():
            trained = simulation.run(images[:20], choices)[1]
        assert float(trained) == pytest.approx(found.additions, rel=1e-4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, n) for n in (4, 4, 4, 2))

    def forward(self, x):
        x = F.relu(x)
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Shortcut(nn.Module):
    """The last 12 weights meet a sum of spikes and the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, n) for n in (4, 4, 3))

    def forward(self, x):
        return self.c(self.b(F.relu(self.a(x))) + x)


def sums():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))


@pytest.mark.parametrize(("steps", "members"), [(1, 4), (3, 2)])
@pytest.mark.parametrize(("make", "shape"), [(Attention, (3, 4)), (sums, (4,)), (Shortcut, (4,))])
def test_what_is_still_multiplied_is_planned_as_if_all_changed(make, shape, steps, members):
    """Of neurons that fire at every step exactly what is counted, but that over several steps what
    is static and what moves are two where they meet one weight; of others never less."""
    torch.manual_seed(0)
    model, x, beyond = make().eval(), torch.randn(90, *shape), []
    for theta in (0, 0.6):
        options = {"time_steps": steps, "members": members, "dead_zone": theta, "tune": False}
        network = sg.convert(model, x[:70], **options)
        counted = count_operations(Simulation(network), x[70:], steps)
        left = counted.sum_macs + counted.multiplies + counted.input_macs
        beyond.append(Prices.of(network, steps).fixed - left)
    dense, silent = beyond
    assert dense == (12 if make is Shortcut and steps > 1 else 0)
    assert silent >= dense
    assert silent > dense or (make is Shortcut and steps == 1), "some sums did not change"


def test_the_objective_trades_additions_for_error(model, images):
    plain = sg.convert(model, images, time_steps=1, members=8, dead_zone=2 / 3, tune=False)
    reports = []
    for objective in ("error", 0.003, 0.1):
        tuned = sg.tune(plain, images, objective=objective, iterations=30)
        reports.append(sg.Tuning.of(tuned))
    assert reports[0].error[1] < reports[0].error[0]
    additions, errors = ([getattr(r, k)[1] for r in reports] for k in ("additions", "error"))
    assert additions[0] > additions[1] > additions[2] and errors[0] < errors[1] < errors[2]
    assert reports[2].weight == 0.1 and "a MAC" in str(reports[2])
    zones = {node.dead_zone for node in tuned.neurons}
    # no wider than kernels know in closed form
    assert all(0 < zone <= torch.tensor(2 / 3) for zone in zones)


def test_a_dead_zone_that_was_asked_for_may_be_wide(model, images):
    plain = sg.convert(
        model, images, time_steps=1, members=6, dead_zone=0.8, scale="channel", tune=False
    )
    tuned = sg.tune(plain, images, iterations=6, objective=0.05)
    zones = [node.dead_zone for node in tuned.neurons]
    assert max(zones) <= 0.8 + 1e-6 and max(zones) > 0.7 and min(zones) < 0.8


def test_dead_zones_stay_where_they_are_not_learned(model, images):
    plain = sg.convert(
        model, images, time_steps=1, members=6, dead_zone=0.6, scale="channel", tune=False
    )
    tuned = sg.tune(plain, images, iterations=10, learn=["scales"], objective=0.01)
    assert {round(node.dead_zone, 6) for node in tuned.neurons} == {0.6}
    assert all(
        not torch.equal(a.scale, b.scale) for a, b in zip(plain.neurons, tuned.neurons, strict=True)
    )


def test_convert_takes_an_objective(model, images):
    options = {"time_steps": 1, "members": 6, "dead_zone": 2 / 3}
    network = sg.convert(model, images, objective="additions", **options)
    report = sg.Tuning.of(network)
    assert report.weight == OBJECTIVES["additions"] and report.additions[1] < report.additions[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"objective": "spikes", "dead_zone": 0.5}, "'error' or 'additions'"),
        ({"objective": -1.0, "dead_zone": 0.5}, "at least 0"),
        ({"objective": float("nan"), "dead_zone": 0.5}, "at least 0"),
        ({"objective": True, "dead_zone": 0.5}, "at least 0"),
        ({"objective": "additions", "dead_zone": 0}, "dead_zone=2 / 3"),
        ({"objective": 0.1, "dead_zone": 0.5, "tune": False}, "tune is False"),
    ],
)
def test_an_objective_that_says_nothing_is_refused(model, images, options, why):
    with pytest.raises(sg.InputError, match=why):
        sg.convert(model, images, time_steps=2, **options)
    if not options["dead_zone"]:
        network = sg.convert(model, images, time_steps=2, dead_zone=0, tune=False)
        with pytest.raises(sg.InputError, match=why):
            sg.tune(network, images, objective="additions")


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
    network = sg.search(model, images, spikes=4, dead_zone=0)
    record = network.provenance["search"]
    splits = [(row["members"], row["time_steps"]) for row in record["tried"][:3]]
    assert splits == [(1, 4), (2, 2), (4, 1)]
    assert spikes_of(network) <= 4 * sum(network.count().values())
    assert record["samples"] == 32 and 0 <= record["agreement"] <= 1
    json.dumps(network.provenance)


@pytest.mark.parametrize(("name", "budget"), [("spikes", 1.5), ("additions", 1.5)])
def test_search_keeps_to_what_is_really_sent(model, images, name, budget):
    """The default neurons: one step of eight members, of which most may be silent."""
    network = sg.search(model, images, iterations=6, **{name: budget})
    record = network.provenance["search"]
    assert network.time_steps == 1 and {n.members for n in network.neurons} == {8}
    assert record[name] <= budget < record["tried"][0][name], "the plain network sends more"
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    counted = count_operations(sg.build(network), images[order][:32], 1)
    found = {
        "spikes": counted.spikes / sum(network.count().values()),
        "additions": counted.additions_per_mac,
    }
    assert found[name] == pytest.approx(record[name], rel=1e-4)


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_search_for_an_agreement(model, images, dead_zone):
    network = sg.search(model, images, agreement=0.9, dead_zone=dead_zone)
    assert network.provenance["search"]["agreement"] >= 0.9
    assert network.provenance["search"]["spikes"] <= 16


def test_search_refuses_what_contradicts(model, images):
    with pytest.raises(sg.InputError, match="either a budget"):
        sg.search(model, images)
    with pytest.raises(sg.InputError, match="time_steps"):
        sg.search(model, images, spikes=4, time_steps=3)
    with pytest.raises(sg.InputError, match="fraction"):
        sg.search(model, images, agreement=99)
    with pytest.raises(sg.CalibrationError, match="64"):
        sg.search(model, images[:63], spikes=2)
    regression = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU())
    with pytest.raises(sg.InputError, match="classes"):
        sg.search(regression, images, agreement=0.5)


def test_members_beyond_a_byte_are_refused(model, images):
    with pytest.raises(sg.InputError, match="at most 8"):
        sg.convert(model, images, members=9, dead_zone=0, tune=False)
    with pytest.raises(sg.InputError, match="at most 12"):
        sg.convert(model, images, members=13, tune=False)
    network = sg.convert(model, images, members={"": 2, "gelu": 8}, time_steps=3, tune=False)
    by_name = {n.name: n.members for n in network.neurons}
    assert sorted(set(by_name.values())) == [2, 8]
    assert replace(network.neurons[0], members=8).parameters.members == 8


# -- neurons with dead zones ----------------------------------------------------------------------

THETA = {"dead_zone": 2 / 3, "iterations": 12}


@pytest.fixture(scope="module")
def thrifty(model, images):
    return sg.search(model, images, additions=0.9, **THETA)


def test_search_keeps_to_additions(model, images, thrifty):
    """On samples that it was not tuned on, as they are counted in a run."""
    record = thrifty.provenance["search"]
    apart = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][:32]
    found = count_operations(Simulation(thrifty), apart, thrifty.time_steps)
    made = found.synaptic + found.sum_macs + found.multiplies + found.input_macs
    assert made / (found.source_macs + found.source_multiplies) <= 0.9 * (1 + 1e-5)
    assert found.spikes / sum(thrifty.count().values()) == pytest.approx(record["spikes"], rel=1e-5)
    assert record["tried"][0]["additions"] > 0.9 >= record["additions"]
    tried = {row["weight"]: row["additions"] for row in record["tried"]}
    assert len(tried) >= 3 and record["additions"] in tried.values()
    json.dumps(thrifty.provenance)


def test_search_counts_the_digits_that_are_sent(model, images, thrifty):
    budget = 1.2 * thrifty.provenance["search"]["spikes"]
    record = sg.search(model, images, spikes=budget, **THETA).provenance["search"]
    assert record["spikes"] <= budget < record["tried"][0]["spikes"]
    assert all(row["members"] == 8 and row["time_steps"] == 1 for row in record["tried"])


def test_a_target_takes_the_fewest_additions_that_reach_it(model, images):
    record = sg.search(model, images, agreement=0.9, **THETA).provenance["search"]
    enough = [row["additions"] for row in record["tried"] if row["agreement"] >= 0.9]
    assert record["agreement"] >= 0.9 and len(enough) > 1
    assert record["additions"] < record["tried"][0]["additions"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"additions": 0.5, "dead_zone": 0}, "dead_zone=2 / 3"),
        ({"additions": 0.5, "dead_zone": 0.6, "methods": ("signgd", "group")}, "methods"),
        ({"additions": 0.5, "spikes": 2}, "either a budget"),
        ({"additions": -1.0, "dead_zone": 0.6}, "positive"),
        ({"spikes": True}, "positive"),
        ({"spikes": 2.5, "dead_zone": 0}, "an integer"),
        ({"additions": 1e-9, "dead_zone": 0.6, "iterations": 1}, "cannot be reached"),
    ],
)
def test_search_refuses_what_dead_zones_cannot(model, images, options, why):
    with pytest.raises(sg.InputError, match=why):
        sg.search(model, images, **options)


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({"dead_zone": 0.6}, (8, 1)),
        ({"dead_zone": 0.6, "members": 5}, (5, 1)),
        ({"dead_zone": 0.6, "time_steps": 4}, (1, 4)),
        ({"dead_zone": 0.6, "members": 1}, (1, 32)),
        ({"dead_zone": 0}, (1, 32)),
        ({"dead_zone": 0, "members": 2}, (2, 32)),
        ({"preset": "paper"}, (1, 32)),
        ({"dead_zone": 0.6, "input_coding": "spike"}, (1, 32)),
    ],
)
@pytest.mark.filterwarnings("ignore::spikingjelly_signgd.SaturationWarning")
def test_the_default_plan(model, images, options, plan):
    network = sg.convert(model, images[:64], tune=False, **options)
    assert (network.neurons[-1].members, network.time_steps) == plan


@pytest.mark.parametrize("members", [1, 4, 8])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_planned_steps_reach_the_scale_with_a_dead_zone(members, steps):
    """As far as the neuron's values, whose scale is 1, at 1, 2 and 16 steps, but for few signs."""
    schedule = default_schedule(steps, 1.0, members, 2 / 3)
    sizes = [schedule(t) for t in range(1, steps + 1)]
    reach = sum(sizes) * (2 - 2.0 ** (1 - members)) + 2 / 3 * sizes[-1] * 2.0 ** (1 - members)
    assert reach >= (1 if members > 1 or steps > 2 else 0.6)
    assert all(a >= b for a, b in zip(sizes, sizes[1:], strict=False))
    if members == 1 and steps > 2:  # the next step can hold what this one left
        assert all(2 / 3 * a <= (1 + 2 / 3) * b for a, b in zip(sizes, sizes[1:], strict=False))
