"""Costs over time: each frame of a clip counted by the rules of ``count_operations``."""

import json
from dataclasses import replace

import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import TABLES, count_operations
from spikingjelly_signgd.core.network import Linear
from spikingjelly_signgd.core.spikes import listening

COUNTS = ("spikes", "events", "synaptic", "synaptic_events", "synaptic_bits", "sum_macs",
          "multiplies", "input_macs", "scalings", "evaluations", "updates", "update_additions",
          "event_bits")  # fmt: skip


def steady(network):
    """With steps that stay what the first one is."""
    nodes = tuple(
        replace(node, schedule=sg.ConstantSchedule(node.schedule(1)))
        if hasattr(node, "schedule")
        else node
        for node in network.nodes
    )
    return replace(network, nodes=nodes)


def streaming(model, calibration, **options):
    return sg.build(steady(sg.convert(model, calibration, time_steps=1, tune=False, **options)))


@pytest.fixture(scope="module", params=["resnet", "convnext", "vit"])
def snn(request):
    images = digits().train.images[:64]
    return streaming(load_network(request.param, "digits"), images, members=6)


def moving(frames=4, samples=2):
    """Digits that move by a pixel a frame."""
    images = digits().test.images[:samples]
    return torch.stack([images.roll(k, -1) for k in range(frames)])


def test_sum_of_a_still_clip(snn):
    """A clip that stands still is a static input of as many steps."""
    images = digits().test.images[:3]
    costs = sg.costs_over_time(snn, images.expand(5, *images.shape))
    whole = count_operations(snn, images, 5)
    for name in COUNTS:
        total = sum(getattr(frame, name) for frame in costs.frames)
        assert total == pytest.approx(getattr(whole, name)), name
    macs = whole.source_macs + whole.source_multiplies
    assert costs.source_macs == macs
    assert sum(costs.additions) == pytest.approx(whole.additions_per_mac * macs)
    assert costs.additions[-1] == 0  # nothing changes any more


def test_each_frame_of_a_moving_clip(snn):
    """The spikes of each frame are those of the run of all, and each meets its connections."""
    clip = moving()
    sent = {}
    with listening(snn, lambda s: sent.setdefault(s.node.name, []).append(s.events.spikes)):
        sg.run(snn, clip, range(1, len(clip) + 1), sequence=True)
    costs = sg.costs_over_time(snn, clip)
    spikes = {name: torch.cat(parts).double() for name, parts in sent.items()}
    by_frame = sum(s.flatten(1).sum(1) for s in spikes.values()) / clip.shape[1]
    assert [f.spikes for f in costs.frames] == pytest.approx(by_frame.tolist())
    for node in snn.network.of(Linear):
        if node.name in costs.nodes and set(node.inputs) <= set(spikes):
            met = node.arriving([spikes[name] for name in node.inputs], clip.shape[1])
            assert costs.of(node.name) == pytest.approx((met.flatten(1).sum(1) / 2).tolist())


class Kept(nn.Module):
    """A first layer fed exactly, a neuron, and a product with the input itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))[:, :4] * x)


def test_what_is_still_multiplied_where_an_operand_changed():
    snn = streaming(Kept(), torch.randn(32, 4), members=8)
    first = torch.tensor([[0.5, -1.0, 0.3, 0.8]])
    second = first + torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # one value of four
    costs = sg.costs_over_time(snn, torch.stack([first, first, first, first, second]))
    inputs = [frame.input_macs for frame in costs.frames]
    assert inputs == [24.0, 0.0, 0.0, 0.0, 6.0]
    assert costs.frames[0].multiplies == 4.0
    assert 1.0 <= costs.frames[4].multiplies <= 4.0


def test_numbers_and_text(snn):
    clip = moving()
    costs = sg.costs_over_time(snn, clip)
    assert len(costs) == len(clip)
    assert costs.additions[costs.peak] == max(costs.additions)
    assert costs.mean(1) == pytest.approx(sum(costs.additions_per_mac[1:]) / (len(clip) - 1))
    assert sum(map(sum, (costs.of(name) for name in costs.nodes))) == pytest.approx(
        sum(costs.additions)
    )
    for name, table in TABLES.items():
        assert costs.energy[name] == tuple(table.spiking(f) for f in costs.frames)
        assert costs.source_energy[name] == table.network(costs.frames[0])
    found = json.loads(json.dumps(costs.to_dict(each=True)))
    assert found["additions"] == list(costs.additions)
    assert set(found["nodes"]) == set(costs.nodes)
    lines = str(costs).splitlines()
    assert lines[0].split()[:2] == ["frame", "additions"]
    assert [line.split()[0] for line in lines[1:6]] == ["0", "1", "2", "3", "source"]
    assert f"{costs.mean(1):.3f}" in lines[-2]


def test_no_dead_zone_sends_in_every_frame():
    snn = streaming(load_network("resnet", "digits"), digits().train.images[:64], members=4,
                    dead_zone=0.0)  # fmt: skip
    images = digits().test.images[:2]
    costs = sg.costs_over_time(snn, images.expand(3, *images.shape))
    assert [f.spikes for f in costs.frames] == [4 * costs.frames[0].neurons] * 3


def test_refused(snn):
    clip = moving()
    with pytest.raises(sg.InputError, match="build"):
        sg.costs_over_time(snn.network, clip)
    with pytest.raises(sg.InputError, match="shape|input"):
        sg.costs_over_time(snn, clip[..., :7])
    with pytest.raises(sg.InputError, match="no samples"):
        sg.costs_over_time(snn, clip[:, :0])
    with pytest.raises(sg.InputError, match="at least one step"):
        sg.costs_over_time(snn, clip[:0])
    shrinking = sg.convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(8, 4),
                           time_steps=4, tune=False)  # fmt: skip
    with pytest.raises(sg.InputError, match="ConstantSchedule"):
        sg.costs_over_time(sg.build(shrinking), torch.randn(3, 1, 4))
    costs = sg.costs_over_time(snn, clip)
    with pytest.raises(sg.InputError, match="frames 0 to 3"):
        costs.mean(4)
    with pytest.raises(sg.InputError, match="nothing"):
        costs.of("nothing")
