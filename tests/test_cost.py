"""Operations counted by hand on tiny networks."""

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations

pytestmark = pytest.mark.spikingjelly


def converted(model, shape, steps, **options):
    x = torch.rand(8, *shape)
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
    snn.on_fire = lambda node, y: seen.setdefault(node.name, []).append(y)
    sg.run(snn, x, 3, chunk=3)
    snn.on_fire = None
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


def test_what_cannot_be_counted():
    snn, x = converted(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,), 4, method="subgradient")
    with pytest.raises(sg.InputError, match="rate-coded"):
        count_operations(snn, x)
