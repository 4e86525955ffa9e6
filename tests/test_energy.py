"""Energies are counts times tables, by hand; the page of the examples is what is counted."""

import json
from argparse import Namespace
from dataclasses import replace
from fractions import Fraction
from itertools import product

import energy as bench
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import TABLES, EnergyTable, estimate_energy
from spikingjelly_signgd.analysis.energy import activation_bits, shown
from spikingjelly_signgd.core.network import Encoder, GroupNeuron, SignGDNeuron

FP32, MEMORY, STORED = "45 nm fp32", "45 nm fp32 + memory", "45 nm fp32 + stored sums"
BIT = 20 / 64  # pJ


def converted(model, shape, steps, **options):
    x = torch.rand(8, *shape)
    network = sg.convert(model.eval(), x, time_steps=steps, tune=False, **options)
    return sg.build(network), x


def strided():
    """Counts by hand, see test_cost: 200 MACs of the input, then 150, of 32 neurons and 12."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU()
    )


def test_signgd_by_hand():
    """m = 2, T = 5: every one of 150 connections is met ten times; 12 sums, five times."""
    snn, x = converted(strided(), (1, 4, 4), 5, members=2, dead_zone=0, scale="channel")
    found = estimate_energy(snn, x, 5)
    macs, synaptic, updates = 200 + 12 * 5, 150 * 2 * 5, 44 * 2 * 2 * 5
    compute = 4.6 * macs + 0.9 * (synaptic + updates)
    assert found.total[FP32][5] == pytest.approx(compute)
    assert found.source[FP32] == pytest.approx(4.6 * 350)
    assert found.ratio(FP32, 5) == pytest.approx(compute / (4.6 * 350))
    # two signs of steps 1, 3/4, ... reach 4.58, the finest is 0.158: 29 values are twice that apart
    assert found.bits == {5: 5}
    short = 0.9 + 3.7 * 5 / 24
    assert found.quantised[FP32][5] == pytest.approx(4.6 * 200 + short * 150)
    # 750 events of two bits, each times a weight
    whole = 4.6 * macs + 0.9 * (750 + updates) + 3.7 * 2 / 24 * 750
    assert found.whole[FP32][5] == pytest.approx(whole)
    # a weight and a spike; factors of the input; v and x of each neuron, read and written; events
    kept = 64 * 200 + 64 * 88 * 5 + 44 * 5 * 2
    assert found.total[MEMORY][5] == pytest.approx(compute + BIT * (33 * synaptic + kept))
    assert found.total[STORED][5] == pytest.approx(compute + BIT * (96 * synaptic + kept))
    assert found.whole[MEMORY][5] == pytest.approx(whole + BIT * (34 * 750 + kept))
    assert found.whole[STORED][5] == pytest.approx(whole + BIT * (96 * 750 + kept))
    source = 4.6 * 350 + BIT * 32 * (2 * 350 + 44)
    assert found.source[MEMORY] == found.source[STORED] == pytest.approx(source)
    # in integers of 8 bits: no word is longer
    assert found.int8[FP32] == pytest.approx(0.23 * 350)
    assert found.int8[MEMORY] == pytest.approx(0.23 * 350 + BIT * 8 * (2 * 350 + 44))
    small = 4.6 * 200 + short * 150 + BIT * (64 * 200 + 37 * 150 + 5 * 44)
    assert found.quantised[MEMORY][5] == pytest.approx(small)
    assert found.total["45 nm int8"][5] == pytest.approx(0.23 * macs + 0.03 * (synaptic + updates))


def signs(members, dead_zone, schedule):
    f = sg.NONLINEARITIES["relu"]
    node = dict(name="n", shape=("batch",), function=f, schedule=schedule, scale=0.3)
    return SignGDNeuron(members=members, dead_zone=dead_zone, **node)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
@pytest.mark.parametrize("decay", ["equal", "whole", "faster"])
def test_values_that_spikes_tell_apart_by_exhaustion(members, dead_zone, steps, decay):
    """All codes, added up: equal steps, steps of which the next goes on where one ends, and steps
    that decay faster, where gaps stay."""
    ratio = {"equal": 1.0, "whole": 2.0**-members, "faster": 2.0 ** (-members - 2)}[decay]
    neuron = signs(members, dead_zone, sg.ExponentialSchedule(0.7, ratio))
    digits = range(1 - 2**members, 2**members, 1 if dead_zone else 2)
    assert len(digits) == (2 ** (members + 1) - 1 if dead_zone else 2**members)
    sums = {
        sum(Fraction(d) * Fraction(ratio) ** t for t, d in enumerate(code))
        for code in product(digits, repeat=steps)
    }
    assert neuron.distinguishable(steps) == len(sums)


def test_values_where_codes_overlap():
    """2 ** 16 codes, but within reach only as many values as are two of the finest steps apart."""
    steps = [0.8**t for t in range(16)]
    values = signs(1, 0, sg.ListSchedule(tuple(steps))).distinguishable(16)
    assert values == 1 + int(sum(steps) / steps[-1]) == 139
    small = signs(1, 0, sg.ExponentialSchedule(1.0, 0.1)).distinguishable(2000)
    assert small == 2**2000  # of which the last are nothing


def test_bits_are_a_mean_over_neurons():
    """One step of 8 signs has 256 values, 511 with silence; of 3 members by 2 steps seven."""
    network = sg.convert(
        strided().eval(), torch.rand(8, 1, 4, 4), members=8, time_steps=1, tune=False
    )
    assert activation_bits(network, 1) == 9
    dense = sg.convert(
        strided().eval(), torch.rand(8, 1, 4, 4), members=8, time_steps=1, tune=False, dead_zone=0
    )
    assert activation_bits(dense, 1) == 8
    first, last = dense.neurons
    assert (first.values, last.values) == (32, 12)
    mixed = dense.with_nodes({last.name: replace(last, members=2)})
    assert activation_bits(mixed, 1) == pytest.approx((32 * 8 + 12 * 2) / 44)
    group = GroupNeuron(name="n", function=sg.NONLINEARITIES["relu"], members=3, v_threshold=1.0)
    assert group.distinguishable(2) == 7
    assert Encoder(name="n", coding="poisson").distinguishable(2) == 5


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, n) for n in (4, 4, 4, 2))

    def forward(self, x):  # [B, 3, 4]
        x = F.relu(x)
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def test_products_stay_products():
    snn, x = converted(Attention(), (3, 4), 3, dead_zone=0)
    found = estimate_energy(snn, x, (1, 3))
    for t in (1, 3):
        # 12 spikes to 12 sums each, 12 to two; 72 products; 36 + 6 sums; 24 neurons
        by_hand = t * (0.9 * (144 + 24 + 48) + 4.6 * (72 + 42))
        assert found.total[FP32][t] == pytest.approx(by_hand)
    assert found.source[FP32] == pytest.approx(4.6 * (144 + 24 + 72))
    two = 0.9 + 3.7 * 2 / 24
    assert found.bits == {1: 1, 3: 2}
    both = 0.9 + 3.7 * (2 / 24) ** 2
    assert found.quantised[FP32][3] == pytest.approx(two * 168 + both * 72)


@pytest.mark.parametrize("signed", [False, True])
def test_group_neurons_by_hand(signed):
    snn, x = converted(strided(), (1, 4, 4), 2, method="group", members=3, signed=signed)
    side = torch.tensor([1, 2, 1, 1])  # outputs see -1 to 1 and 1 to 3
    fan = 3 * torch.outer(side, side)
    spikes = []
    snn.listener = lambda sent: (
        spikes.append((sent.value / sent.node.parameters.theta).abs().round())
        if sent.node.kind == "group"
        else None
    )
    sg.run(snn, x, 2, chunk=2)
    snn.listener = None
    met = float((spikes[0] * fan).sum()) / 8
    updates = 2 * 44 * (9 if signed else 5)
    events = sum(float((n > 0).sum()) for n in spikes) / 8
    found = estimate_energy(snn, x, 2)
    averages = 12  # of the outputs, once
    compute = 4.6 * (200 + averages) + 0.9 * (met + updates)
    assert found.total[FP32][2] == pytest.approx(compute)
    bits = 3 if signed else 2
    kept = 64 * 200 + 64 * 44 * (2 if signed else 1) * 2 + bits * events
    assert found.total[MEMORY][2] == pytest.approx(compute + BIT * (33 * met + kept))
    whole = float(((spikes[0] > 0) * fan).sum()) / 8
    price = 0.9 + 3.7 * bits / 24
    assert found.whole[FP32][2] == pytest.approx(
        4.6 * (200 + averages) + 0.9 * updates + price * whole
    )


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_break_even_is_where_both_cost_the_same(dead_zone):
    """With as many additions as are said the network is as dear as its source, by every table."""
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40))
    snn, x = converted(model, (6,), 2, dead_zone=dead_zone)
    found = estimate_energy(snn, x)
    assert found.time_steps == (1, 2)
    macs = 6 * 40 + 40 * 40
    for t, c in found.operations.items():
        assert c.source_macs == macs and c.dense == (dead_zone == 0)
        for name, table in TABLES.items():
            for energies, even in ((found.source, found.break_even),
                                   (found.int8, found.break_even_int8)):  # fmt: skip
                most = even[name][t]
                rest = table.spiking(replace(c, synaptic=0.0))
                if most is None:
                    assert rest > energies[name]
                    continue
                there = replace(c, synaptic=c.synaptic + (most - c.additions_per_mac) * macs)
                assert there.additions_per_mac == pytest.approx(most)
                assert table.spiking(there) == pytest.approx(energies[name])
    # 4.6 (1600 - 2 * 40 sums), 0.9 for each addition less the updates of 40 neurons
    by_hand = found.operations[2]
    left = (4.6 * (1600 - by_hand.scalings) - 0.9 * by_hand.update_additions) / 0.9
    assert found.break_even[FP32][2] == pytest.approx((left + 240) / macs)
    assert "break-even at" in str(found) and shown(found.break_even[FP32][2]) in str(found)


def test_where_nothing_breaks_even():
    snn, x = converted(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)), (6,), 8)
    dear = EnergyTable(1.0, 1.0, "compute only", "of this test", memory=1.0)
    free = EnergyTable(1.0, 0.0, "no additions", "of this test")
    found = estimate_energy(snn, x, 8, tables={"dear": dear, "free": free})
    assert found.break_even == {"dear": {8: None}, "free": {8: None}}  # states; any number
    assert found.int8 == {"dear": None, "free": None} and shown(None) == "none"
    assert found.break_even_int8["dear"][8] is None and shown(1.234) == "1.23"


def test_everything_says_estimate():
    snn, x = converted(strided(), (1, 4, 4), 4, members=2, dead_zone=0)
    found = estimate_energy(snn, x)
    assert found.estimate is True and found.to_dict()["estimate"] is True
    again = json.loads(json.dumps(found.to_dict()))
    assert again["total"][FP32]["4"] == found.total[FP32][4]
    assert all("estimate" in line for line in again["sentences"])
    assert all(table["source"] and table["covers"] for table in again["tables"].values())
    text = str(found)
    assert text.startswith("estimated energy") and "not measured" in text
    assert "signGD neurons without a dead zone send a spike in every step" in text
    assert (
        f"T=4: additions per MAC of the source: {found.operations[4].additions_per_mac:.3g}" in text
    )
    silent, x = converted(strided(), (1, 4, 4), 4, members=2, dead_zone=2 / 3)
    assert "nothing here is sparse" not in str(estimate_energy(silent, x))
    ratio = found.total[FP32][4] / found.source[FP32]
    said = (
        f"at T=4 this network costs {ratio:.2g} times its source (compute only, {FP32}, estimate)"
    )
    assert found.sentence() == found.sentence(4, FP32) == said and said in text
    for t in found.time_steps:
        for name in TABLES:
            total = sum(layer[name] for layer in found.layers[t].values())
            assert total == pytest.approx(found.total[name][t])


def test_a_table_of_ones_own():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    snn, x = converted(model, (6,), 8, dead_zone=0)
    mine = EnergyTable(1.0, 1.0, "neuron functions too", "of this test", function=10.0)
    found = estimate_energy(snn, x, 2, tables=TABLES | {"mine": mine})
    assert found.total["mine"][2] == pytest.approx(60 + 2 * (60 + 4) + 10 * 20)
    assert found.source["mine"] == pytest.approx(100 + 10 * 10)
    for wrong in ({}, {"mine": (4.6, 0.9)}):
        with pytest.raises(sg.InputError, match="at least one"):
            estimate_energy(snn, x, tables=wrong)
    with pytest.raises(sg.InputError, match="no less than an accumulate"):
        EnergyTable(0.9, 4.6, "", "")
    with pytest.raises(sg.InputError, match="build"):
        estimate_energy(snn.network, x)


def test_widths_of_multipliers():
    """Horowitz' 8 and 32 bit integers bear the rule out, to what two digits tell."""
    integer = EnergyTable(3.2, 0.1, "", "", significand=32)
    assert integer.multiply_two(8) - 0.1 == pytest.approx(0.2, abs=0.01)
    assert integer.multiply(32) == integer.multiply(40) == pytest.approx(3.2)
    assert TABLES["45 nm int8"].multiply(8) == pytest.approx(0.23)


def test_the_page_is_made_from_the_figures():
    text = bench.PAGE.read_text()
    assert text == bench.page(text), "run python benchmarks/energy.py --write"
    for part in ("energy fashion", "break-even fashion", "break-even digits"):
        table = text.split(f"<!-- python benchmarks/energy.py {part} -->")[1]
        assert (
            "| vit | signGD, dead zone 0.667 | 8 x 1" in table.split(f"<!-- end of {part} -->")[0]
        )


@pytest.mark.parametrize("way", bench.WAYS[:2], ids=lambda way: f"{way.members}x{way.time_steps}")
def test_the_figures_are_what_is_counted(way):
    """Of signs at every step nothing depends on values, so the figures are the same anywhere."""
    kept = bench.figures()[bench.key("digits", "resmlp", way)]
    fresh = bench.measure("digits", "resmlp", way, judged=0)
    assert json.loads(json.dumps(fresh)) == kept | {"agreement": None, "judged": 0}


def test_measured_once_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "FIGURES", tmp_path / "energy.json")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "energy.md")
    monkeypatch.setattr(bench, "COUNTED", 2)
    run = ["--data", "digits", "--networks", "resmlp", "--images", "4"]
    run += ["--plans", "8x1", "--dead-zones", "2/3"]
    bench.main(run)
    first = capsys.readouterr()
    assert "| resmlp | signGD, dead zone 0.667 | 8 x 1 |" in first.out and first.err
    bench.main(run)
    assert capsys.readouterr() == (first.out, "")
    begin, end = (
        "<!-- python benchmarks/energy.py energy digits -->\n",
        "<!-- end of energy digits -->\n",
    )
    (tmp_path / "energy.md").write_text(f"before\n{begin}{end}after\n")
    bench.main(["--write"])
    text = (tmp_path / "energy.md").read_text()
    assert "| resmlp | signGD, dead zone 0.667 |" in text and text.endswith(f"{end}after\n")
    assert list(tmp_path.iterdir()) != [] and not list(tmp_path.glob("*.partial"))
    ways = bench.chosen(Namespace(plans=[(8, 1)], dead_zones=["0", "2/3"], tuned=True))
    assert [(way.dead_zone, way.options["tune"]) for way in ways] == [(0, True), (2 / 3, True)]
    assert bench.chosen(Namespace(plans=None, dead_zones=None, tuned=False)) == bench.WAYS
