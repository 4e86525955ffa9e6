"""Searching with group neurons: the mix wins where it must, keeps to its budget, and runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.converters import mixing
from spikingjelly_signgd.converters.mixing import Choices, Option, joined, real
from spikingjelly_signgd.converters.searching import replanned
from spikingjelly_signgd.converters.simulation import Simulation
from spikingjelly_signgd.converters.tuning import samples_of
from spikingjelly_signgd.core.network import Average, Function, GroupNeuron, Growth, SignGDNeuron

BOTH = ("signgd", "group")


class Sparse(nn.Module):
    """A ReLU that is seldom above zero, pooled, beside a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.fc1 = nn.Linear(96, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x) - 0.3), 2).flatten(1)
        return self.fc2(F.gelu(self.fc1(x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Sparse().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mixed(model, images):
    """Of neurons that send a sign at every step: what a group saves is told exactly."""
    return sg.search(model, images, spikes=4, methods=BOTH, iterations=8, dead_zone=0)


def plain(model, x, dead_zone=0, **options):
    return sg.convert(model, x, time_steps=1, tune=False, dead_zone=dead_zone, **options)


def compared(network):
    """The rows of "tried" that are compared with one another: (signGD alone, mixed ones)."""
    rows = [row for row in network.provenance["search"]["tried"] if "method" in row]
    return rows[0], rows[1:]


def test_a_sparse_relu_becomes_a_group_and_a_gelu_does_not(mixed):
    record = mixed.provenance["search"]
    assert {node.name: node.kind for node in mixed.neurons} == {
        "relu": "group", "max_pool": "growth", "gelu": "signgd",
    }  # fmt: skip
    assert list(record["changed"]) == ["relu"]
    assert record["changed"]["relu"]["members"] == mixed["relu"].members
    alone, (row, *_) = compared(mixed)
    assert set(alone["method"].values()) == {"signgd"} and alone["spikes"] == 4
    assert row["error"] < alone["error"] / 2 and row["spikes"] < 4, (alone, row)
    assert not [r for r in record["layers"] if r["method"] == "group" and r["layer"] != "relu"]
    json.dumps(mixed.provenance)


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_it_sends_what_it_may_as_count_operations_counts(mixed, model, images, dead_zone):
    if dead_zone:
        mixed = sg.search(model, images, spikes=4, methods=BOTH, iterations=8)
        zones = [torch.as_tensor(n.dead_zone).max() for n in mixed.of(SignGDNeuron)]
        assert zones and all(zones), "the default is that they may be silent"
    neurons = sum(mixed.count().values())
    found = count_operations(sg.build(mixed), images, mixed.time_steps).spikes / neurons
    assert found <= 4
    assert found == pytest.approx(mixed.provenance["search"]["sent"], rel=1e-6)


def test_its_tuning_is_kept_where_it_belongs(mixed):
    assert sg.Tuning.of(mixed) is None, "the network as it is was not tuned"
    assert list(mixed.provenance["search"]["tuning"]["layers"]) == ["gelu"]


@pytest.mark.spikingjelly
def test_both_simulators_and_the_file_give_its_outputs(mixed, images, tmp_path):
    steps, x = mixed.time_steps, images[:16]
    expected = Simulation(mixed).outputs(x, steps)[-1]
    sg.save(mixed, tmp_path / "mixed.h5")
    loaded = sg.load(tmp_path / "mixed.h5")
    found = sg.run(sg.build(mixed), x, steps)[steps]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(sg.run(sg.build(loaded), x, steps)[steps], found)
    assert loaded.provenance["search"] == mixed.provenance["search"]
    pytest.importorskip("norse")
    norse = sg.run(sg.build(mixed, "norse"), x, steps)[steps]
    torch.testing.assert_close(norse, expected, atol=1e-5, rtol=1e-5)


def test_it_is_the_same_for_a_seed(model, images, mixed):
    options = {"methods": BOTH[::-1], "iterations": 8, "dead_zone": 0}
    again = sg.search(model, images, spikes=4, **options)
    assert again.provenance["search"] == mixed.provenance["search"]
    x = images[:16]
    assert torch.equal(Simulation(again).outputs(x, 1), Simulation(mixed).outputs(x, 1))


def test_a_qcfs_activation_is_exact_as_a_group_of_its_levels():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 32), sg.QCFS(4, 1.0), nn.Linear(32, 16), nn.Tanh(),
                        nn.Linear(16, 3)).eval()  # fmt: skip
    x = torch.randn(120, 6)
    network = sg.search(net, x, spikes=3, methods=BOTH, iterations=8, dead_zone=0)
    group, tanh = network.neurons
    assert isinstance(group, GroupNeuron) and isinstance(tanh, SignGDNeuron)
    assert (group.members, network.time_steps) == (4, 1)
    (row,) = [r for r in network.provenance["search"]["layers"] if r["method"] == "group"]
    assert row["error"] < 1e-6 and row["spikes"] < 3, "exact, and other m are other functions"
    alone, others = compared(network)
    assert min(r["error"] for r in others) < alone["error"]


def test_a_network_without_candidates_stays_as_it_is(images):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    network = sg.search(net, images, spikes=2, methods=BOTH, iterations=4, dead_zone=0)
    assert network.provenance["search"]["changed"] == {}
    assert network.provenance["search"]["sent"] == 2
    assert all(isinstance(node, SignGDNeuron) for node in network.neurons)


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_an_agreement_is_reached_with_groups_too(model, images, dead_zone):
    options = {"methods": BOTH, "iterations": 4, "dead_zone": dead_zone}
    network = sg.search(model, images, agreement=0.9, **options)
    record = network.provenance["search"]
    assert record["agreement"] >= 0.9 and record["sent"] <= record["spikes"] <= 4


def test_what_contradicts_is_refused(model, images):
    for methods in ("group", ("group",), ("signgd", "signgd"), None, ("signgd", "subgradient")):
        with pytest.raises(sg.InputError, match="methods is"):
            sg.search(model, images, spikes=4, methods=methods)
    with pytest.raises(sg.InputError, match="method"):
        sg.search(model, images, spikes=4, methods=BOTH, dead_zone=0, method="group")
    with pytest.raises(sg.InputError, match="search chooses objective itself"):
        sg.search(model, images, additions=1.0, objective="additions", dead_zone=2 / 3)
    with pytest.raises(sg.CalibrationError, match="takes 64"):
        sg.search(model, images[:63], spikes=2, methods=BOTH, dead_zone=0)


# -- the parts -----------------------------------------------------------------------------------


def test_pooling_goes_with_the_one_layer_whose_spikes_it_selects():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            a, b = F.relu(self.a(x)), F.relu(self.b(x))
            own = F.max_pool2d(a.permute(0, 1, 3, 2), 2)  # of one layer, as it is
            both = F.max_pool2d(torch.cat([a, b], 1), 2)  # of two
            summed = F.max_pool2d(self.a(x), 2)  # of no spikes
            return own.mean((2, 3)), both.mean((2, 3)), F.gelu(summed).mean((2, 3))

    torch.manual_seed(0)
    network = plain(Pools().eval(), torch.rand(64, 1, 8, 8))
    assert [tuple(node.name for node in unit) for unit in mixing.units(network)] == [
        ("relu", "max_pool"), ("relu_2",), ("max_pool_2",), ("max_pool_3",), ("gelu",),
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 3])
def test_an_isolated_error_is_that_of_the_network_with_all_else_real(model, images, steps):
    network = replanned(plain(model, images), steps, 1)
    choices = Choices(network, images, steps, 0)
    found = {"signgd": 0, "group": 0}
    for unit in choices.units:
        for option in (unit[0], unit[-1]):
            (first, *pools) = option.nodes.values()
            if any(isinstance(node, SignGDNeuron) for node in pools):
                continue  # a sum of two
            others = {n for n in network.names() if n not in option.nodes}
            alone = real(network, sorted(others))
            alone = joined(alone, option.nodes).replace(time_steps=steps)
            error, _ = mixing.measured(alone, choices.samples)
            assert error**2 == pytest.approx(option.error, rel=1e-2, abs=1e-9), option
            sent = mixing.spikes_sent(alone, choices.samples.x)
            assert sent == pytest.approx(option.spikes, rel=1e-2)
            found[first.kind] += 1
    assert min(found.values()) > 0, "both methods were checked"


def test_the_joints_are_those_of_convert_by_hand(model, images):
    method = {"": "signgd", "relu": "group", "max_pool": "group"}
    options = {"method": method, "members": 2, "dead_zone": 0, "tune": False, "scale": "channel"}
    byhand = sg.convert(model, images, time_steps=2, **options)
    chosen = {n.name: n for n in byhand.nodes if isinstance(n, (GroupNeuron, Growth))}
    network = joined(replanned(plain(model, images, scale="channel"), 2, 2), chosen)
    assert [(n.kind, n.inputs) for n in network.nodes] == [(n.kind, n.inputs) for n in byhand.nodes]
    assert any(isinstance(node, Average) for node in network.nodes)
    x = images[:8]
    assert torch.equal(Simulation(network).outputs(x, 2), Simulation(byhand).outputs(x, 2))


def test_what_a_method_gets_from_the_other(images):
    """signGD neurons get the mean of what groups sent; groups the mean of what was decoded."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(),
                        nn.Linear(8, 8), nn.GELU()).eval()  # fmt: skip
    network = plain(net, images, method={"": "signgd", "4": "group"}, members={"": 6, "4": 200})
    for steps in (1, 4):
        network = network.replace(time_steps=steps)
        made, snn = {}, Simulation(network)
        snn.listener = lambda sent, made=made: made.update({sent.node.name: sent.value})
        snn.outputs(images[:16], steps)
        seen = F.linear(made["2"], net[3].weight, net[3].bias)  # of each step
        theta = float(torch.as_tensor(network["4"].v_threshold).max()) / 200
        assert (made["4"].mean(0) - F.relu(seen.mean(0))).abs().max() < theta
        sent = F.linear(made["4"].mean(0), net[5].weight, net[5].bias)
        torch.testing.assert_close(made["5.mean"][-1], sent)


def test_a_hull_is_convex_and_begins_with_the_fewest_spikes():
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(60, 2, generator=generator).tolist()
    options = [Option(s, e, {}) for s, e in points]
    found = mixing.hull(options)
    assert found[0].spikes == min(o.spikes for o in options)
    assert found[-1].error == min(o.error for o in options)
    rates = [mixing._rate(a, b) for a, b in zip(found, found[1:], strict=False)]
    assert rates == sorted(rates, reverse=True) and min(rates) > 0
    for option in options:  # nothing lies below
        for a, b in zip(found, found[1:], strict=False):
            if a.spikes <= option.spikes <= b.spikes:
                line = a.error - mixing._rate(a, b) * (option.spikes - a.spikes)
                assert option.error >= line - 1e-9


def test_a_plan_is_within_its_budget_and_better_the_larger_that_is(model, images):
    choices = Choices(plain(model, images), images, 1, 0)
    least = sum(unit[0].spikes for unit in choices.units)
    assert choices.within(least * 0.99) is None
    last = float("inf")
    for budget in (least, 1.5 * least, 3 * least):
        nodes = choices.within(budget)
        network = joined(plain(model, images), nodes)
        assert mixing.spikes_sent(network, choices.samples.x) <= 1.02 * budget
        error, _ = mixing.measured(network, choices.samples)
        assert error < last
        last = error
    ends = choices.within(1e9)
    assert all(node is unit[-1].nodes[name] for unit in choices.units
               for name, node in ends.items() if name in unit[-1].nodes)  # fmt: skip


def test_between_two_groups_lies_one_of_some_members_more(model, images):
    node = GroupNeuron(**mixing._common(plain(model, images)["relu"]), members=8, v_threshold=1.0)
    few, many = (Option(s, e, {"relu": replace(node, members=m)}) for s, e, m in
                 ((10.0, 0.4, 8), (20.0, 0.2, 16)))  # fmt: skip
    half = mixing._between(few, many, 5.0)
    assert (half.nodes["relu"].members, half.spikes) == (12, 15.0)
    assert mixing._between(few, many, 0.5) is few
    signs = Option(4.0, 0.6, {"relu": plain(model, images)["relu"]})
    assert mixing._between(signs, many, 5.0) is signs


def test_only_what_is_a_relu_or_qcfs_of_a_batch_may_be_a_group(model, images):
    network = plain(model, images)
    assert [node.name for node in network.neurons if mixing.may_be_group(node)] == ["relu"]
    assert not mixing.may_be_group(replace(network["relu"], shape=(4, "1*batch")))
    source = real(network, network.names())
    assert all(type(source[name]) is Function for name in network.names())
    assert samples_of(source, images).targets[0].equal(samples_of(network, images).targets[0])
