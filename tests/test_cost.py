"""Operations counted by hand on tiny networks."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations, record
from spikingjelly_signgd.neurons.coding import PoissonCodingParameters, poisson_spikes
from spikingjelly_signgd.neurons.subgradient import SubgradientState, subgradient_step

pytestmark = pytest.mark.spikingjelly


def converted(model, shape, steps, **options):
    """Of signGD neurons without a dead zone, unless it is asked for."""
    x = torch.rand(8, *shape)
    if options.get("method") not in ("group", "subgradient"):
        options = {"dead_zone": 0} | options
    network = sg.convert(model.eval(), x, time_steps=steps, tune=False, **options)
    return sg.build(network), x


def test_padding_and_stride():
    """4 x 4 to 4 x 4 by 3 x 3 with a border of one, then to 2 x 2 with stride 2."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU()
    )
    snn, x = converted(model, (1, 4, 4), 5, members=2)
    found = count_operations(snn, x)
    # along one side 2 + 3 + 3 + 2 pixels are met, with stride 2 at the outputs 0 and 1: 2 + 3
    first, second = 10 * 10 * 1 * 2, 5 * 5 * 2 * 3
    assert found.input_macs == first and found.source_macs == first + second
    assert found.synaptic == second * 2 * 5 and found.synaptic_events == second * 5
    assert found.spikes == (32 + 12) * 2 * 5 and found.events == (32 + 12) * 5
    assert found.evaluations == (32 + 12) * 5
    assert found.sum_macs == 0 and found.multiplies == 0
    assert found.state_bytes == 4 * 2 * (32 + 12)
    assert count_operations(snn, x, 1).synaptic == second * 2


def test_additions_for_each_mac():
    """Of the source 200 MACs on the input, 150 behind; each spike is met as often as its weight."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2, padding=1)
    )
    snn, x = converted(model, (1, 4, 4), 5, members=2, dead_zone=0)
    found = count_operations(snn, x)
    by_hand = {"spikes": 150 * 10, "sums": 0, "products": 0, "input": 200}
    assert found.parts_per_mac == pytest.approx({k: n / 350 for k, n in by_hand.items()})
    assert found.additions_per_mac == pytest.approx(1700 / 350)
    assert found.to_dict()["additions_per_mac"] == found.additions_per_mac
    assert "additions per MAC of the source: 4.86 (spikes 4.29, sums 0, " in str(found)
    snn, x = converted(Product(), (3, 4), 2, dead_zone=0)
    parts = {"spikes": 2 * (12 + 12 + 9), "sums": 0, "products": 72, "input": 0}
    found = count_operations(snn, x).parts_per_mac
    assert found == pytest.approx({k: n / 36 for k, n in parts.items()})
    snn, x = converted(nn.Sequential(nn.ReLU(), nn.GELU()), (3,), 2, dead_zone=0)
    assert count_operations(snn, x).additions_per_mac == math.inf  # of a source without weights
    snn, x = converted(nn.Sequential(nn.ReLU()), (3,), 2, dead_zone=0)
    assert count_operations(snn, x).additions_per_mac == 0


def test_depthwise_and_weights_of_zero():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[0].weight[0] = 0
    snn, x = converted(model, (1, 3, 3), 4)
    found = count_operations(snn, x)
    assert found.input_macs == 3 * 9
    assert found.synaptic == 4 * (7 * 7) * 4  # 2 + 3 + 2 along one side
    assert found.sum_macs == 4 * 9 * 4 * 2  # what leaves one convolution enters the next
    assert found.state_bytes == 4 * 2 * 36


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act1(self.first(x))
        x = self.act3(x + self.inner(x))
        return self.last(self.act2(x))


def test_residual():
    snn, x = converted(Residual(), (3,), 6)
    found = count_operations(snn, x)
    # inner, the shortcut, one neuron to the next, last
    assert found.synaptic == 6 * (25 + 5 + 5 + 10)
    assert found.layers == {"inner": 150, "act3": 30, "act2": 30, "last": 60}


@pytest.mark.parametrize("signed", [False, True])
def test_group_neurons_spike_by_spike(signed):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip
    snn, x = converted(model, (1, 4, 4), 3, method="group", members=4, signed=signed)
    seen = {}
    snn.listener = lambda sent: seen.setdefault(sent.node.name, []).append(sent.value)
    sg.run(snn, x, 3, chunk=3)
    snn.listener = None
    spikes, events, arrived, pooled = 0.0, 0.0, 0.0, 0.0
    pool = snn.network.names()[1]
    first = snn.network.neurons[0]
    for node in snn.network.neurons:
        (y,) = seen[node.name]
        owner = node if node.kind == "group" else first
        n = (y / owner.parameters.theta).abs().round()
        if node.name == pool:
            pooled += float(n.sum())
        else:
            spikes += float(n.sum())
            events += float((n > 0).sum())
            arrived += float(n.sum()) * (1 if node is first else 3)
    found = count_operations(snn, x, 3)
    assert found.spikes == pytest.approx(spikes / 8) and found.events == pytest.approx(events / 8)
    assert found.synaptic == pytest.approx((arrived + 6 * pooled) / 8)
    assert found.synaptic_events <= found.synaptic and found.input_macs == 32
    assert found.state_bytes == 4 * ((32 + 6) * (1 + signed) + 32 + 8)
    streamed = sum(float(step.spikes.sum()) for step in sg.stream(snn, x, 3))
    assert found.spikes == pytest.approx(streamed / 8)


class Product(nn.Module):
    def forward(self, x):  # [B, 3, 4]
        a = torch.relu(x)
        return torch.relu(a @ a.transpose(1, 2))


def test_products_of_two_signals():
    snn, x = converted(Product(), (3, 4), 2)
    found = count_operations(snn, x)
    assert found.multiplies == 2 * 9 * 4 and found.source_multiplies == 36
    assert found.synaptic == 2 * (12 + 12 + 9)


def test_pooling_belongs_to_the_weights_behind_it():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    snn, x = converted(model, (1, 4, 4), 2)
    assert count_operations(snn, x).synaptic == 2 * 32 * 3


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act1(self.first(x))
        return self.last(self.act2(x + self.inner(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.out = nn.ReLU(), nn.Linear(4, 2)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):  # [B, 3, 4]
        x = self.act(x)
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def image(rows, columns, outputs):
    """[1, rows, columns]: the outputs that each pixel reaches, from those along each side."""
    return outputs * torch.outer(torch.tensor(rows), torch.tensor(columns)).unsqueeze(0)


# by hand: the model, its input, for each receiver the neurons that reach it (by their place) with
# the connections of one spike, source MACs, MACs of the input, products of two signals, neurons,
# sums that a step size multiplies
NETWORKS = {
    "padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1)),
        (1, 4, 5),
        {"2": {0: image([2, 3, 3, 2], [2, 3, 3, 3, 2], 3)}},
        (40 + 10 * 13 * 2 * 3, 40, 0, 40, 60),
    ),
    "stride": (  # the outputs see pixels 0 to 2 and 2 to 4
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2)),
        (1, 6, 6),
        {"2": {0: image([1, 1, 2, 1, 1, 0], [1, 1, 2, 1, 1, 0], 3)}},
        (72 + 36 * 2 * 3, 72, 0, 72, 12),
    ),
    "depthwise, grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(),
            nn.Conv2d(4, 6, 1, groups=2),
        ),
        (1, 3, 3),
        {"2": {0: image([2, 3, 2], [2, 3, 2], 1)}, "4": {1: image([1, 1, 1], [1, 1, 1], 3)}},
        (36 + 7 * 7 * 4 + 9 * 4 * 3, 36, 0, 72, 36 + 54),
    ),
    "residual": (
        Shortcut,
        (3,),
        {"inner": {0: torch.tensor(5)}, "act2": {0: torch.tensor(1)}, "last": {1: torch.tensor(2)}},
        (15 + 25 + 10, 15, 0, 10, 5 + 2),
    ),
    "attention": (  # 3 queries and keys of 4 numbers, 3 x 4 sums of 3 products
        Attention,
        (3, 4),
        {name: {0: torch.tensor(4)} for name in "qkv"} | {"out": {1: torch.tensor(2)}},
        (3 * 3 * 16 + 3 * 8, 0, 36 + 36, 24, 3 * 12 + 6),
    ),
}  # fmt: skip


def sent(snn, x, steps):
    """The spikes of each neuron at each step, [T, B, ...], as the neurons themselves tell."""
    found = []

    def listen(sent):
        node, y = sent.node, sent.value
        if node.kind == "signgd":
            found.append(torch.full(y.shape, float(node.members)))
        elif node.kind == "group":
            found.append((y / node.parameters.theta).abs().round())

    snn.listener = listen
    sg.run(snn, x, steps, chunk=steps)
    snn.listener = None
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"members": 3},
        {"method": "group", "members": 4, "signed": True},
    ],
    ids=["signgd", "signgd m=3", "group, signed"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_by_hand(name, options):
    build, shape, fan_out, (macs, input_macs, products, neurons, sums) = NETWORKS[name]
    group = options.get("method") == "group"
    if group and name == "attention":
        pytest.skip("attention is no ReLU")
    snn, x = converted(build(), shape, 4, **options)
    spikes = sent(snn, x, 4)
    for steps, found in count_operations(snn, x, (1, 3, 4)).items():
        arrived, events = {}, {}
        for layer, senders in fan_out.items():
            pairs = [(spikes[i][:steps], fan) for i, fan in senders.items()]
            arrived[layer] = sum(float((n * fan).sum()) for n, fan in pairs) / 8
            events[layer] = sum(float(((n > 0) * fan).sum()) for n, fan in pairs) / 8
        assert found.layers == pytest.approx(arrived)
        assert found.synaptic == pytest.approx(sum(arrived.values()))
        assert found.synaptic_events == pytest.approx(sum(events.values()))
        assert found.spikes == pytest.approx(sum(float(n[:steps].sum()) for n in spikes) / 8)
        assert found.source_macs == macs and found.source_multiplies == products
        assert found.input_macs == input_macs and found.sum_macs == 0
        assert found.multiplies == steps * products
        assert found.neurons == neurons and found.updates == found.evaluations == steps * neurons
        # the averages of rate-coded outputs are made once
        outputs = 2 if name == "residual" else 54 if "grouped" in name else sums
        assert found.scalings == (outputs if group else steps * sums)
        m = options.get("members", 1)
        each = 2 * m + 3 if group else 2 * m
        assert found.update_additions == steps * neurons * each
        check_rows(found)


# -- with a dead zone: what the decoded values say has changed ------------------------------------


class Chain(nn.Module):
    """Queries and keys of one layer, weights of two linear layers in a row, a residual input."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 5), nn.Linear(4, 5)
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):  # [B, 3, 4]
        a = torch.relu(x)
        scores = self.q(a) @ self.k(a).transpose(1, 2)
        return scores, self.last(x + self.second(self.first(a)))


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("steps", [1, 5])
def test_what_does_not_change_costs_nothing(members, steps):
    """By hand from the values that are decoded: an operand that stays multiplies nothing."""
    torch.manual_seed(0)
    snn, x = converted(Chain(), (3, 4), steps, members=members, dead_zone=2 / 3)
    x = x - 0.5  # ReLUs at rest are silent
    recording, found = record(snn, x), count_operations(snn, x)
    a, product = snn.network.neurons
    assert product.function.name == "matmul" and product.name not in found.layers
    sent = recording.sent[a.name].double()
    assert 0 < float((sent == 0).double().mean()) < 1  # both happen
    v = torch.cat([torch.as_tensor(a.resting).expand(1, 8, 3, 4), recording.decoded[a.name]])
    moved = v[1:] != v[:-1]  # [T, B, 3, 4]
    assert torch.equal(moved, sent > 0)
    row = moved.any(-1)  # [T, B, 3]: a position, of which all five queries and keys change
    pairs = (row.unsqueeze(-1) | row.unsqueeze(-2)).sum() * 5
    assert found.multiplies == pytest.approx(float(pairs) / 8)
    # of each row that changes 5 + 5 + 6 sums by eta(t)
    assert found.scalings == pytest.approx(16 * float(row.sum()) / 8)
    # six sums of a row that changes to four, four to two; the first step of the latter is that of
    # the input, which meets the same weights
    later = float(row.sum()) * (6 * 4 + 4 * 2) - float(row[0].sum()) * 4 * 2
    assert found.input_macs == 3 * 4 * 2 and found.sum_macs == pytest.approx(later / 8)
    assert found.synaptic == pytest.approx((float(sent.sum()) * 16) / 8)
    events = float((sent > 0).sum()) / 8
    assert found.synaptic_events == pytest.approx(16 * events)
    every = float((recording.sent[product.name] > 0).sum()) / 8
    assert found.events == pytest.approx(events + every) and not found.dense
    assert found.updates == steps * (12 + 9) == found.evaluations
    check_rows(found)


def test_silence_costs_nothing():
    """Nothing arrives at ReLUs whose input is below zero: neither messages nor weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias.fill_(-10), model[2].bias.fill_(-10)
    snn, x = converted(model, (3,), 4, members=3, dead_zone=1 / 2, scale="tensor", resting=None)
    found = count_operations(snn, x)
    assert found.spikes == found.events == found.synaptic == found.scalings == 0
    assert found.event_bits == found.levels.get(0, 0) == 0 and found.weight_bits == 32 * 12
    assert found.updates == 4 * 9 and found.state_bits > 0  # which stay
    assert found.additions_per_mac == pytest.approx(12 / (12 + 20 + 10))


def check_rows(found):
    """The layers add up to the whole, the levels to the events."""
    for what in ("spikes", "events", "event_bits", "synaptic", "synaptic_events", "synaptic_bits",
                 "graded_bits", "input_macs", "sum_macs", "multiplies", "scalings", "evaluations",
                 "updates", "update_additions", "state_bytes", "source_macs", "state_bits",
                 "weight_bits", "bits_moved"):  # fmt: skip
        total = sum(getattr(row, what) for row in found.each)
        assert total == pytest.approx(getattr(found, what)), what
    assert sum(found.kinds.values()) == pytest.approx(found.events)
    assert sum(found.levels.values()) == pytest.approx(found.kinds["graded"])
    for row in found.each:
        if row.coding:
            assert sum(row.levels.values()) == pytest.approx(row.events)
            assert 0 <= row.rate <= 1
    plain = json.loads(json.dumps(found.to_dict()))
    full = json.loads(json.dumps(found.to_dict(each=True)))
    assert full.pop("each")[0]["name"] == found.each[0].name and full == plain
    assert plain["time_steps"] == found.time_steps and plain["layers"] == dict(found.layers)


@pytest.mark.parametrize(
    ("options", "kind", "bits"),
    [
        ({}, "sign", 1),
        ({"members": 3}, "graded", 3),  # seven odd numbers and their signs: eight values
        ({"method": "group", "members": 1, "signed": False}, "binary", 1),
        ({"method": "group", "members": 1, "signed": True}, "sign", 1),
        ({"method": "group", "members": 5, "signed": False}, "graded", 3),
        ({"method": "group", "members": 5, "signed": True}, "graded", 4),
    ],
)
def test_kinds_of_events_and_bits_moved(options, kind, bits):
    snn, x = converted(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,), 4,
                       **options)  # fmt: skip
    (spikes,) = sent(snn, x, 4)
    found = count_operations(snn, x)
    events = float((spikes > 0).sum()) / 8
    assert {k: n for k, n in found.kinds.items() if n} == {kind: pytest.approx(events)}
    assert found.event_bits == pytest.approx(bits * events)
    assert found.rate == pytest.approx(events / 16)
    assert found.synaptic_bits == pytest.approx(bits * 2 * events)
    assert found.graded_bits == (found.synaptic_bits if kind == "graded" else 0)
    numbers = 4 * (2 if found.dense or options.get("signed") else 1)
    assert found.state_bits == 2 * 32 * numbers * 4
    assert found.weight_bits == pytest.approx(32 * (2 * float(spikes.sum()) / 8 + 12))
    assert found.bits_moved == found.event_bits + found.state_bits + found.weight_bits
    assert found.dense == (options.get("method") != "group")
    assert ("in every step" in str(found)) == found.dense
    if kind == "graded" and not found.dense:
        by_hand = {k: float((spikes == k).sum()) / 8 for k in range(1, 6)}
        assert found.levels == pytest.approx({k: n for k, n in by_hand.items() if n})


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.parametrize("m", [2, 5])
def test_what_several_signs_spell(m, spikes):
    """Far from v all signs are one: 2^m - 1. At f(x) = v(0) they are +1, -1, -1, ...: 1."""
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    network = sg.convert(model.eval(), torch.rand(8, 1), time_steps=2, tune=False, members=m,
                         scale="tensor", resting=False, dead_zone=0)  # fmt: skip
    snn = sg.build(network, spikes=spikes)
    found = count_operations(snn, torch.full((3, 1), 1e3), (1, 2))
    assert found[1].levels == {1: 1.0, 2**m - 1: 3.0}
    assert found[2].events == 8 and sum(found[2].levels.values()) == 8
    assert found[1].samples == 3


def test_levels_that_floats_do_not_show():
    """Steps too small beside v: the neurons say what they sent."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    snn, x = converted(model, (1,), 4, members=8)
    small = sg.ExponentialSchedule(1.0, 1e-4)
    (node,) = snn.network.neurons
    tiny = sg.SpikingNetwork(
        tuple(n if n is not node else _with(n, schedule=small) for n in snn.network.nodes),
        snn.network.outputs, 4,
    )  # fmt: skip
    found = count_operations(sg.build(tiny), 5 + x, 4)
    assert sum(found.levels.values()) == found.events == 8
    assert all(size % 2 == 1 and size < 2**8 for size in found.levels)


def _with(node, **changes):
    from dataclasses import replace

    return replace(node, **changes)


def test_rate_coded_baseline():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    snn, x = converted(model, (3,), 12, method="subgradient")
    (node,) = snn.network.neurons
    with torch.no_grad():
        current, state = model[0](x), SubgradientState(torch.zeros(8, 4))
    fired = []
    for _ in range(12):
        fires, state = subgradient_step(current, state, node.parameters)
        fired.append(float(fires.sum()) / 8)
    found = count_operations(snn, x, (5, 12))
    for steps in (5, 12):
        assert found[steps].spikes == pytest.approx(sum(fired[:steps]))
        assert found[steps].synaptic == pytest.approx(2 * sum(fired[:steps]))
        assert found[steps].kinds["binary"] == found[steps].events == found[steps].spikes
        assert found[steps].scalings == steps * (4 + 2)  # v, and the sums behind it
    assert 0 < found[12].rate < 1


@pytest.mark.parametrize("method", ["signgd", "group"])
def test_poisson_input(method):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    snn, x = converted(model, (3,), 6, method=method, input_coding="poisson",
                       **({"signed": False} if method == "group" else {}))  # fmt: skip
    encoder = next(node for node in snn.network.nodes if node.kind == "encoder")
    p = PoissonCodingParameters(encoder.scale, encoder.seed)
    drawn = sum(float((poisson_spikes(x, t, p) != 0).sum()) for t in range(1, 7)) / 8
    found = count_operations(snn, x, 6)
    assert found.layers["0"] == pytest.approx(4 * drawn) and found.input_macs == 0
    (row,) = (row for row in found.each if row.kind == "encoder")
    assert row.spikes == row.events == pytest.approx(drawn) and row.neurons == 3
    assert found.kinds["sign"] == pytest.approx(drawn + (24 if method == "signgd" else 0))
    assert found.events == pytest.approx(sum(found.kinds.values()))
    assert not found.dense


def test_several_steps_from_one_run():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(8, 3))  # fmt: skip
    snn, x = converted(model, (1, 6, 6), 8, method="group", members=3)
    several = count_operations(snn, x, (2, 8, 5))
    assert list(several) == [2, 8, 5]
    for steps, found in several.items():
        assert found == count_operations(snn, x, steps)
    assert count_operations(snn, x) == several[8]
    with pytest.raises(sg.InputError, match="no samples"):
        count_operations(snn, x[:0])
    with pytest.raises(sg.InputError, match="at least 1"):
        count_operations(snn, x, (2, 0))


def test_blocks_and_parts_make_no_difference(monkeypatch):
    from spikingjelly_signgd.analysis import cost

    snn, x = converted(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,), 5,
                       method="group", members=4, signed=True)  # fmt: skip
    whole = count_operations(snn, x, (3, 5))
    monkeypatch.setattr(cost, "BATCH", 3)
    monkeypatch.setattr(cost, "BLOCK_BYTES", 8 * 4 * 3 * 2)  # two steps
    assert count_operations(snn, x, (3, 5)) == whole


@pytest.mark.parametrize(("mode", "reached"), [("nearest", 4), ("bilinear", 6)])
def test_upsampling_reaches_every_output_it_is_part_of(mode, reached):
    """From 2 to 4 along a side: bilinear outputs see 1, 2, 2, 1 inputs."""
    corners = {} if mode == "nearest" else {"align_corners": False}
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Upsample(size=(4, 4), mode=mode, **corners),
        nn.Conv2d(1, 3, 1),
    )  # fmt: skip
    snn, x = converted(model, (1, 2, 2), 2)
    assert count_operations(snn, x).synaptic == 2 * reached**2 * 3


def test_two_kinds_in_one_network():
    """Signs meet weights as signs, what signed groups of four send as numbers of three bits."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
    snn, x = converted(
        model, (3,), 3, method={"1": "group", "3": "signgd"}, members={"1": 4, "3": 1}
    )
    found = count_operations(snn, x)
    group, signs = (row for row in found.each if row.coding)
    assert (group.kind, group.bits, signs.kind, signs.bits) == ("group", 3, "signgd", 1)
    assert found.graded_bits == pytest.approx(3 * 5 * group.events) and signs.events == 15
    assert found.synaptic_bits == pytest.approx(3 * 5 * group.events + 2 * 15)
    assert found.scalings == 3 * (5 + 2)  # means of what was sent so far, and step sizes
    check_rows(found)


def test_spikes_that_half_precision_does_not_show():
    """Decoded values of 8 bits after 64 steps: the neurons say whether they fired."""
    snn, x = converted(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,), 4, method="subgradient")
    found = count_operations(snn.bfloat16(), x, 64)
    rate = found.spikes / 65 * float(torch.as_tensor(snn.network.neurons[0].scale).max())
    decoded = sg.run(snn, x, 64)[64].double().sum() / len(x)
    assert found.spikes > 0 and 0.5 * float(decoded) < rate < 2 * float(decoded)
