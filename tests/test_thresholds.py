"""The thresholds of plain ReLU networks: the search finds the best, and the network is better."""

import warnings

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import thresholds
from spikingjelly_signgd.converters.simulation import Simulation
from spikingjelly_signgd.core.network import GroupNeuron
from spikingjelly_signgd.exporters.hdf5.definition import run_definition

X = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(6))


def relu_model(pool=nn.MaxPool2d):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool(2),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(),
        nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        model(3 * X)  # running statistics
        model[1].weight.mul_(torch.linspace(0.2, 3, 8))  # channels of different range
    return model.eval()


def samples(x, y, w=None):
    return thresholds.Samples(x, y, torch.ones_like(y) if w is None else w)


def brute_force(x, y, members, steps):
    """The least squared error of theta clip(floor(T x / theta + c), 0, m T) / T on a fine grid."""
    best = float("inf")
    for theta in torch.linspace(0.01, 1.5, 400) * float(x.max()) / members:
        for c in torch.linspace(0.1, 1, 46):
            level = torch.floor(steps * x / theta + c).clamp(0, members * steps)
            best = min(best, float((level * theta / steps - y).square().mean()))
    return best


@pytest.mark.parametrize(("members", "steps"), [(8, 1), (4, 2), (1, 8), (1, 1)])
@pytest.mark.parametrize("signed", [False, True])
def test_the_search_finds_the_least_error_of_the_levels(members, steps, signed):
    """On a constant input, whose outputs are those of the quantiser of L = m T levels."""
    generator = torch.Generator().manual_seed(members)
    x = torch.randn(1, 3000, generator=generator) * torch.rand(1, 3000, generator=generator)
    y = x.relu()
    found = samples(x.expand(steps, -1, -1), y)
    theta, charge = thresholds.search(found, y.max().reshape(1, 1) / members, members, signed)
    error = float(thresholds.errors(found, theta, charge, members, signed))
    level = torch.floor(steps * x / theta + charge).clamp(0, members * steps)
    direct = float((level * theta / steps - y).square().mean())
    assert error == pytest.approx(direct, rel=1e-3)
    assert error <= 1.03 * brute_force(x, y, members, steps)
    whole = y.max().reshape(1, 1) / members
    half = torch.full_like(whole, 0.5)
    assert error < 0.8 * float(thresholds.errors(found, whole, half, members, signed))


def test_weights_decide_what_is_clipped():
    """Where large values cost nothing the threshold falls, and rises where they alone cost."""
    y = torch.rand(1, 4000, generator=torch.Generator().manual_seed(1)) ** 3
    start = torch.full((1, 1), 1 / 4)
    found = [
        float(thresholds.search(samples(y[None], y, w), start, 4, False)[0])
        for w in ((y < 0.3) + 1e-9, torch.ones_like(y), (y > 0.6) + 1e-9)
    ]
    assert found[0] < 0.5 * found[1] and found[1] < found[2], found


def test_a_channel_that_sends_nothing_keeps_its_range():
    y = torch.zeros(1, 100)
    theta, _ = thresholds.search(samples(y[None] - 1, y), torch.full((1, 1), 0.2), 4, True)
    assert float(theta) >= 0.2


def test_an_early_surplus_is_taken_back_by_signed_neurons_alone():
    """3, then -2: the ReLU of the sum is 1; unsigned neurons have sent 3 by then."""
    x = torch.tensor([3.0, -2.0]).view(2, 1, 1)
    y, theta = torch.tensor([[0.5]]), torch.ones(1, 1)
    half = torch.full((1, 1), 0.5)
    assert float(thresholds.errors(samples(x, y), theta, half, 4, True)) == 0
    assert float(thresholds.errors(samples(x, y), theta, half, 4, False)) == 1


def convert(model, time_steps=2, x=X, **options):
    return sg.convert(model, x, method="group", time_steps=time_steps, **options)


def groups(network):
    return [node for node in network.nodes if isinstance(node, GroupNeuron)]


def error(network, x, reference):
    out = run_definition(network, x, network.time_steps, dtype=torch.float32).outputs
    return float((out - reference).norm() / reference.norm())


def test_thresholds_and_charges_are_data_by_channel():
    network = convert(relu_model(), members=4)
    assert [list(n.v_threshold.shape) for n in groups(network)] == [[8, 1, 1], [12, 1, 1], [16]]
    assert [list(n.initial_charge.shape) for n in groups(network)] == [[8, 1, 1], [12, 1, 1], [16]]
    first = groups(network)[0].v_threshold.flatten()
    assert float(first.max() / first.min()) > 4, "channels of different range"
    assert all(n.signed for n in groups(network))
    assert not any(n.signed for n in groups(convert(relu_model(), 1)))
    record = network.provenance["thresholds"]
    assert record["chosen"] == "least weighted error" and record["images"] == 256
    tensor = convert(relu_model(), scale="tensor")
    assert all(isinstance(n.v_threshold, float) for n in groups(tensor))
    assert all(isinstance(n.initial_charge, float) for n in groups(tensor))


def test_the_search_lowers_the_error_on_other_images():
    model, other = relu_model(), torch.randn(200, 1, 8, 8)
    with torch.no_grad():
        reference = model(other)
    ratios = []
    for steps, members in ((1, 4), (2, 4), (4, 2)):
        network = convert(model, steps, members=members)
        plain = network.replace(
            nodes=tuple(
                n if not isinstance(n, GroupNeuron) else quantile(network, n) for n in network.nodes
            )
        )
        ratios.append(error(network, other, reference) / error(plain, other, reference))
    assert max(ratios) < 1 and min(ratios) < 0.95, ratios


def quantile(network, node):
    from dataclasses import replace

    threshold = network.statistics[node.name]["quantile"].clamp(min=1e-3)
    return replace(node, v_threshold=threshold, initial_charge=0.5)


def test_the_choice_is_the_same_for_a_seed_and_the_source_stays():
    model = relu_model()
    a, b, c = (convert(model, seed=seed) for seed in (0, 0, 1))
    for one, two in zip(groups(a), groups(b), strict=True):
        assert torch.equal(one.v_threshold, two.v_threshold)
        assert torch.equal(one.initial_charge, two.initial_charge)
    assert any(
        not torch.equal(one.v_threshold, two.v_threshold)
        for one, two in zip(groups(a), groups(c), strict=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(Simulation(a).ann(X), model(X), rtol=1e-4, atol=1e-5)


def test_trained_thresholds_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), sg.QCFS(8, 0.7), nn.Linear(16, 4))
    (node,) = groups(convert(model.eval(), 2))
    assert node.v_threshold == pytest.approx(0.7) and node.initial_charge == 0.5 and not node.signed
    (node,) = groups(convert(model, 2, signed=True))
    assert node.signed and node.v_threshold == pytest.approx(0.7)


@pytest.mark.parametrize("signed", [False, True])
def test_the_simulation_is_the_definition(signed):
    """Of a network of everything: group and signGD neurons, pooling, a kept function, a mean."""
    model = relu_model().double()
    x = X[:8].double()
    network = convert(
        model, 3, x, members={"2": 2, "": 4}, signed=signed, keep=["8"], input_coding="poisson"
    )
    have = Simulation(network).outputs(x, 3)[-1]
    want = run_definition(network, x, 3).outputs
    assert (have - want).abs().max() < 1e-9 * want.abs().max()
    mixed = sg.convert(
        model, x, method={"5": "signgd", "8": "subgradient", "": "group"}, time_steps=3,
        input_coding="real",
    )  # fmt: skip
    have = Simulation(mixed).outputs(x, 3)[-1]
    want = run_definition(mixed, x, 3).outputs
    assert (have - want).abs().max() < 1e-5 * want.abs().max()


def test_pooled_counts_approach_the_source():
    """Max pooling of single steps would stay off for any T; the growth of the counts does not."""
    model = relu_model()
    with torch.no_grad():
        reference = model(X)
    errors = [error(convert(model, steps, members=4), X, reference) for steps in (1, 4, 16)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.02, errors


def test_few_images_and_outputs_of_several_parts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
            self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 2)

        def forward(self, x):
            y = self.body(x)
            return {"a": self.a(y), "b": [self.b(y)]}

    for images in (1, 2, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network = sg.convert(Two().eval(), X[:images], method="group", time_steps=2)
        (node,) = groups(network)
        assert bool(node.v_threshold.isfinite().all()) and bool((node.v_threshold > 0).all())


def test_refining_lowers_the_error_of_the_outputs_and_moves_nothing_trained():
    from spikingjelly_signgd.converters import refinement

    model = relu_model()
    network = convert(model)
    plain = network.replace(
        nodes=tuple(
            quantile(network, n) if isinstance(n, GroupNeuron) else n for n in network.nodes
        )
    )
    some = [node.name for node in groups(network)][:2]
    refined = refinement.refine(plain, X, some, 0)
    before, after = (thresholds.output_errors(n, X).mean() for n in (plain, refined))
    assert float(after) < 0.97 * float(before)
    for a, b in zip(groups(plain), groups(refined), strict=True):
        assert torch.equal(a.v_threshold, b.v_threshold) == (a.name not in some)


def test_refinement_keeps_to_its_seconds_and_to_what_was_asked(monkeypatch):
    """A second for every step: so many steps, none with tune=False, and none where all of them
    would take too long."""
    from spikingjelly_signgd.converters import budget, refinement

    steps, loss = [], refinement._loss

    def counted(*given):
        steps.append(None)
        return loss(*given)

    monkeypatch.setattr(refinement, "_loss", counted)
    monkeypatch.setattr(budget, "now", lambda: float(len(steps)))

    def converted(**options):
        steps.clear()
        given = {"method": "group", "members": 4, "time_steps": 2, **options}
        return sg.convert(relu_model().eval(), X, **given)

    plain = converted(tune=False)
    assert not steps
    limited = converted(tune_seconds=7.0)
    assert len(steps) == 7
    whole = converted()
    assert len(steps) == min(refinement.MOST, refinement.STEPS // 2)
    thetas = [n.neurons[0].v_threshold for n in (plain, limited, whole)]
    assert not torch.equal(thetas[0], thetas[1]) and not torch.equal(thetas[1], thetas[2])
    monkeypatch.setattr(refinement, "EFFORT", 100)
    untouched = converted()
    assert not steps and torch.equal(untouched.neurons[0].v_threshold, thetas[0])
