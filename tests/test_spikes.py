"""Whoever counts spikes counts the same: costs, NeuroBench, op_counter, recording, early exit."""

import importlib
import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from random_networks import random_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd import plugins
from spikingjelly_signgd.analysis import count_operations, record

pytestmark = pytest.mark.spikingjelly
OP_COUNTER = importlib.util.find_spec("spikingjelly.activation_based.op_counter") is not None
ADAPTER = "spikingjelly_signgd.plugins.neurobench"


@pytest.fixture
def adapter(monkeypatch):
    """``plugins.neurobench``; where NeuroBench is not installed with empty classes for its own,
    whose counting is not used here."""
    if importlib.util.find_spec("neurobench") and importlib.util.find_spec("snntorch"):
        return plugins.neurobench
    empty = {"SynapticOperations": "neurobench.metrics.workload",
             "NeuroBenchModel": "neurobench.models"}  # fmt: skip
    for name in ("neurobench", "neurobench.metrics", *empty.values()):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for cls, name in empty.items():
        made = type(cls, (), {"add_activation_module": lambda self, module: None})
        setattr(sys.modules[name], cls, made)
    monkeypatch.delitem(vars(plugins), "neurobench", raising=False)
    monkeypatch.setitem(sys.modules, ADAPTER, None)
    monkeypatch.delitem(sys.modules, ADAPTER)
    return importlib.import_module(ADAPTER)


def met_in_neurobench(adapter, snn, x, steps):
    """The spikes of a sample at each weight, and where they arrive past none; and the products."""
    network, met = adapter.NeuroBenchNetwork(snn, steps), [0.0]
    network.connection_hooks, network.activation_hooks = [None], []

    def count(layer, inputs):
        (spikes,) = inputs
        if bool(((spikes == 0) | (spikes == 1)).all()):
            weight, bias = layer.weight, layer.bias
            layer.weight = nn.Parameter((weight != 0).double(), requires_grad=False)
            layer.bias = None
            met[0] += float(layer.forward(spikes).sum())
            layer.weight, layer.bias = weight, bias

    for layer in network.connection_layers():
        layer.register_forward_pre_hook(count)
    network(x)
    return (met[0] + network.unseen.accumulates) / len(x), network.unseen.multiplies / len(x)


def differences(adapter, network, x):
    """What is not counted alike on x, each by whom and how often."""
    steps, found = network.time_steps, []

    def compare(what, a, b):
        if a != pytest.approx(b, rel=1e-6):
            found.append(f"{what}: {a} for {b}")

    snn = sg.build(network)
    each = count_operations(snn, x, range(1, steps + 1))
    costs = each[steps]
    stream = list(sg.stream(snn, x))
    streamed = [float(step.spikes.sum()) for step in stream]
    for t in range(1, steps + 1):
        compare(f"stream to {t}", sum(streamed[:t]) / len(x), each[t].spikes)
    if stream[0].outputs.dim() == 2:
        left = sg.early_exit(snn, x, float("inf"))
        compare("early exit", float(left.spikes.sum()) / len(x), costs.spikes)
    recording, rows = record(snn, x), {row.name: row for row in costs.each}
    for node in network.neurons:
        if node.name in rows and rows[node.name].coding:
            sent, number = recording.spikes[node.name], recording.sent[node.name].double()
            if node.kind != "signgd":
                assert torch.equal(number, sent.abs().double())
            elif not node.dead_zone:
                assert bool((number == node.members).all())
            compare(f"record {node.name}", float(number.sum()) / len(x), rows[node.name].spikes)
            events = float((sent != 0).sum()) / len(x)
            compare(f"record {node.name}, events", events, rows[node.name].events)
    met, products = met_in_neurobench(adapter, snn, x, steps)
    compare("NeuroBench", met, costs.synaptic)
    compare("NeuroBench, products", products, costs.multiplies)
    if OP_COUNTER:
        kinds = {node.kind for node in network.neurons}
        if kinds == {"signgd"} and not any(n.kind == "encoder" for n in network.nodes):
            snn = sg.build(network, spikes="signed")  # of which sums are rounded otherwise
            costs = count_operations(snn, x)
        if snn.spikes == "signed" or "signgd" not in kinds:
            weighted = [costs.layers.get(n.name, 0) for n in network.nodes if n.kind == "linear"]
            compare("op_counter", plugins.op_counter.count(snn, x, steps).synaptic, sum(weighted))
    return found


# -- pooling of spikes that were moved before ------------------------------------------------------


class Moved(nn.Module):
    """Neurons of four channels, moved, pooled by 2 x 2, and weights behind."""

    def __init__(self, move):
        super().__init__()
        self.first, self.act, self.move = nn.Conv2d(1, 4, 1), nn.ReLU(), move
        with torch.no_grad():  # channels of different thresholds
            self.first.weight[:] = torch.tensor([1.0, 0.1, 3.0, 0.5]).view(4, 1, 1, 1)
            self.first.bias.zero_()
        self.pool, self.last = nn.MaxPool2d(2), nn.LazyConv2d(5, 1)

    def forward(self, x):
        return self.last(self.pool(self.move(self.act(self.first(x)))))


def moved(move):
    torch.manual_seed(3)
    model, x = Moved(move).eval(), torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        model(x)
    options = {"method": "group", "time_steps": 4, "members": 3, "signed": False}
    return sg.convert(model, x, tune=False, **options), x


# which leave each window to one channel
MOVES = {
    "nothing": lambda x: x,
    "flip": lambda x: x.flip(3),
    "flipped channels": lambda x: x.flip(1),
    "roll": lambda x: torch.roll(x, 1, 2),
    "index": lambda x: x[:, [2, 0, 3, 1]],
    "transposed": lambda x: x.transpose(2, 3),
    "half": lambda x: x[:, 1:3],
    "folded": lambda x: x.reshape(-1, 1, 4, 4),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "border": lambda x: F.pad(x, (1, 1, 0, 0)),
    "twice": lambda x: torch.cat([x, x.flip(1)], 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_spikes_are_pooled_as_those_they_were(adapter, name):
    """All that was passed on in T steps is the largest sum of a window, whatever was moved."""
    network, x = moved(MOVES[name])
    assert network["act"].v_threshold.unique().numel() == 4
    assert differences(adapter, network, x) == []
    for dtype, steps in ((torch.float32, 4), (torch.float32, 1), (torch.bfloat16, 4)):
        snn, x = sg.build(network).to(dtype), x.to(dtype)
        spikes = {k: v.float() for k, v in record(snn, x, steps).spikes.items()}
        pooled = F.max_pool2d(MOVES[name](spikes["act"].sum(0)), 2)
        assert torch.equal(spikes["pool"].sum(0), pooled)
        met = 5 * float(spikes["pool"].abs().sum()) / len(x)
        assert count_operations(snn, x, steps).layers["last"] == pytest.approx(met) and met > 0


def test_a_flip_changes_no_count(adapter):
    """A flip, and one back behind the pooling, is no other network."""

    class Flipped(nn.Module):
        def __init__(self, flips):
            super().__init__()
            torch.manual_seed(1)
            self.flips, self.act, self.pool = flips, nn.ReLU(), nn.MaxPool2d(2)
            self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            x = self.act(self.first(x))
            return self.last(self.pool(x.flip(1)).flip(1) if self.flips else self.pool(x))

    x, found = torch.rand(8, 1, 4, 4), []
    for flips in (False, True):
        network = sg.convert(Flipped(flips).eval(), x, method="group", members=4, time_steps=3)
        snn = sg.build(network)
        found.append((met_in_neurobench(adapter, snn, x, 3)[0], count_operations(snn, x).synaptic))
    assert found[0] == found[1] and found[0][0] == pytest.approx(found[0][1])


class Two(nn.Module):
    """Two layers of group neurons, of other thresholds, of which ``join`` makes one."""

    def __init__(self, join):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)
        self.act1, self.act2, self.join = sg.QCFS(4, 1.0), sg.QCFS(4, 8.0), join
        self.pool, self.last = nn.MaxPool2d(2), nn.LazyConv2d(2, 1)

    def forward(self, x):
        return self.last(self.pool(self.join(self.act1(self.one(x)), self.act2(self.two(x)))))


def two(join):
    model, x = Two(join).eval(), torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        model(x)
        model.one.weight.fill_(0.7), model.two.weight.fill_(5.0)
    network = sg.convert(model, x, method="group", members=4, time_steps=1, tune=False)
    return network, x


def test_a_maximum_of_two_thresholds_counts_events(adapter):
    """A spike of 1/4 or of 2: what passes is of no one size, so an event is one spike."""
    network, x = two(torch.maximum)
    recording = record(sg.build(network), x)
    (largest,) = [name for name in network.names() if "maximum" in name or "join" in name]
    assert set(recording.spikes[largest].unique().tolist()) <= {0.0, 1.0}
    rows = count_operations(sg.build(network), x)
    events = float((recording.spikes["pool"] != 0).sum()) / len(x)
    assert rows.layers["last"] == pytest.approx(2 * events) and events > 0
    assert differences(adapter, network, x) == []


def test_two_thresholds_beside_each_other(adapter):
    """Along channels each keeps its own."""
    network, x = two(lambda a, b: torch.cat([a, b], 1))
    spikes = record(sg.build(network), x).spikes
    both = torch.cat([spikes["act1.qcfs"], spikes["act2.qcfs"]], 2)
    assert torch.equal(spikes["pool"][0], F.max_pool2d(both[0], 2)) and len(both.unique()) > 3
    assert differences(adapter, network, x) == []


@pytest.mark.parametrize("dims", [(1, 2), (1, 3)])
def test_channels_of_several_thresholds_in_one_window(adapter, dims):
    network, x = moved(lambda x: x.transpose(*dims))
    assert set(record(sg.build(network), x).spikes["pool"].unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert differences(adapter, network, x) == []


@pytest.mark.parametrize(
    "options",
    [{"method": "subgradient"}, {"input_coding": "poisson"},
     {"method": "group", "members": 2, "input_coding": "poisson"}],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_early_exit_counts_every_kind(options, dtype):
    """The rate-coded baseline and Poisson coding, which were not counted."""
    x = torch.rand(6, 5)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    snn = sg.build(sg.convert(model, x, time_steps=5, tune=False, **options)).to(dtype)
    x = x.to(dtype)
    spikes = count_operations(snn, x).spikes * len(x)
    assert sum(float(step.spikes.sum()) for step in sg.stream(snn, x)) == pytest.approx(spikes)
    assert float(sg.early_exit(snn, x, float("inf")).spikes.sum()) == pytest.approx(spikes)
    assert spikes > 0


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("view", ["decoded", "signed"])
def test_views_and_simulators_tell_the_same(simulator, view, members):
    if simulator == "norse":
        pytest.importorskip("norse")
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(3, 2)).eval()  # fmt: skip
    x = torch.rand(5, 2, 4, 4)
    network = sg.convert(model, x, time_steps=4, tune=False, members=members)
    told = record(sg.build(network, simulator, spikes=view), x).spikes
    expected = record(sg.build(network, kernels="torch"), x).spikes
    same = sum(int((told[name] == expected[name]).sum()) for name in told)
    assert same >= 0.99 * sum(each.numel() for each in expected.values())  # sums are rounded


class Attention(nn.Module):
    """Queries that see the keys before them, a gate of the input, two linear layers in a row."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x):  # [B, 3, 4]
        a = torch.relu(x)
        seen = F.scaled_dot_product_attention(self.q(a), self.k(a), self.v(a), is_causal=True)
        b = x * torch.sigmoid(seen) + self.second(self.first(a))
        return torch.relu(b @ b.transpose(1, 2))


@pytest.mark.parametrize("forms", ["whole", "local"])
@pytest.mark.parametrize(("members", "dead_zone"), [(1, 2 / 3), (8, 2 / 3), (3, 0.0)])
def test_products_are_counted_alike(adapter, forms, members, dead_zone):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4)
    network = sg.convert(Attention().eval(), x, time_steps=4, tune=False, forms=forms,
                         members=members, dead_zone=dead_zone)  # fmt: skip
    assert differences(adapter, network, x) == []


# -- of random networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_all_count_the_same(adapter, seed):
    assert differences(adapter, *random_network(seed)) == []


@pytest.mark.slow
def test_all_count_the_same_on_many(adapter):
    found = {seed: differences(adapter, *random_network(seed)) for seed in range(24, 200)}
    assert {seed: each for seed, each in found.items() if each} == {}
