"""What a recording holds is what run computes, and the spikes add up to it."""

import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import record
from spikingjelly_signgd.analysis import recording as module

pytestmark = pytest.mark.spikingjelly
STEPS = 6


@pytest.fixture(scope="module")
def x():
    return digits().test.images[:5]


@pytest.fixture(scope="module")
def vit():
    options = {"time_steps": STEPS, "tune": False, "input_coding": "spike", "dead_zone": 0}
    return sg.convert(load_network("vit", "digits"), digits().train.images[:32], **options)


def stepwise(network, snn):
    """The step sizes of every neuron, with which its spikes are weighted."""
    return {
        node.name: [node.schedule(t) * torch.as_tensor(node.scale) for t in range(1, STEPS + 1)]
        for node in network.neurons
    }


@pytest.mark.parametrize("view", ["decoded", "signed"])
def test_signgd(vit, x, view):
    """sigma is a sign, and v(t) what the weighted signs add up to; the source is snn.ann's."""
    snn = sg.build(vit, spikes=view)
    recording = record(snn, x)
    assert recording.time_steps == STEPS and list(recording.decoded) == vit.names()
    for name, sizes in stepwise(vit, snn).items():
        sigma, v = recording.spikes[name], recording.decoded[name]
        assert sigma.shape == v.shape == (STEPS, *recording.source[name].shape)
        assert set(sigma.unique().tolist()) <= {-1.0, 1.0}
        total = torch.zeros_like(v[0])
        for t in range(STEPS):
            total = total - sizes[t] * sigma[t]
            torch.testing.assert_close(v[t], total, rtol=1e-5, atol=1e-5)
    source = snn.activations(x, keep=vit.names())
    assert all(torch.equal(recording.source[name], source[name]) for name in vit.names())


def test_decoded_is_what_run_computes(x):
    """The layer before the last one decodes to the very numbers behind run's outputs."""
    network = sg.convert(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU()), x, time_steps=STEPS, tune=False
    )
    snn = sg.build(network)
    outputs = sg.run(snn, x, (1, STEPS))
    recording = record(snn, x)
    for t, y in outputs.items():
        assert torch.equal(recording.decoded["2"][t - 1], y)


def test_chunks_make_no_difference(vit, x, monkeypatch):
    snn = sg.build(vit)
    whole = record(snn, x)
    monkeypatch.setattr(module, "default_chunk", lambda *_: 2)
    parts = record(snn, x)
    for name in vit.names():
        assert torch.equal(whole.decoded[name], parts.decoded[name])
        assert torch.equal(whole.spikes[name], parts.spikes[name])


@pytest.mark.parametrize(("momentum", "dead_zone"), [(0.0, 0), (0.5, 0), (0.0, 2 / 3)])
def test_several_signs_and_momentum(x, momentum, dead_zone):
    members = 1 if momentum else 3
    network = sg.convert(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU()),
        x,
        time_steps=STEPS,
        members=members,
        momentum=momentum,
        tune=False,
        dead_zone=dead_zone,
    )
    recording = record(sg.build(network), x)
    node, sigma = network["2"], recording.spikes["2"]
    between = 1 if dead_zone else 2  # d is odd unless digits may be silent
    levels = {d * 2.0 ** (1 - members) for d in range(1 - 2**members, 2**members, between)}
    assert set(sigma.unique().tolist()) <= levels
    sent = recording.sent["2"]
    assert torch.equal(sent > 0, sigma != 0) and int(sent.max()) <= members
    assert bool((sent == members).all()) == (dead_zone == 0)
    v, buffer = torch.zeros_like(sigma[0]), torch.zeros_like(sigma[0])
    for t in range(STEPS):
        buffer = momentum * buffer + sigma[t] if t else sigma[t]
        v = v - node.schedule(t + 1) * torch.as_tensor(node.scale) * buffer
        torch.testing.assert_close(recording.decoded["2"][t], v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_group_neurons(x, signed):
    """Whole numbers of spikes; decoded is their mean times theta; pooling passes its growth."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    network = sg.convert(model, x, method="group", time_steps=4, members=3, signed=signed)
    snn = sg.build(network)
    recording = record(snn, x)
    for name in ("1", "2"):
        n = recording.spikes[name]
        assert torch.equal(n, n.round()) and float(n.abs().max()) <= 3 * 4
        theta = network["1"].parameters.theta
        mean = (n * theta).cumsum(0) / torch.arange(1, 5).view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(recording.decoded[name], mean, rtol=1e-5, atol=1e-6)
    assert float(recording.spikes["1"].abs().sum()) > 0
    assert bool((recording.spikes["1"] >= 0).all()) or signed
    last = sg.run(snn, x, 4)[4]
    torch.testing.assert_close(recording.decoded["2"][-1].flatten(1), last)


def test_baseline(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    network = sg.convert(model, x, method="subgradient", time_steps=STEPS)
    recording = record(sg.build(network), x)
    rate = recording.spikes["2"].cumsum(0)[-1] / (STEPS + 1) * torch.as_tensor(network["2"].scale)
    assert set(recording.spikes["2"].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(recording.decoded["2"][-1], rate)


def test_names_and_states(vit, x):
    snn = sg.build(vit)
    name = vit.names()[3]
    heard = []
    snn.listener = lambda sent: heard.append(sent.node.name)
    first = record(snn, x, 2, [name])
    assert list(first.decoded) == [name] and first.time_steps == 2 and not heard
    sg.run(snn, x[:1], 1)
    assert heard  # the listener is back
    assert torch.equal(record(snn, x, 2, name).decoded[name], first.decoded[name])


def test_refusals(vit, x, monkeypatch):
    snn = sg.build(vit)
    with pytest.raises(sg.errors.InputError, match="no neuron is called 'nothing'"):
        record(snn, x, names=["nothing"])
    with pytest.raises(sg.errors.InputError, match="record takes the module"):
        record(vit, x)
    with pytest.raises(sg.errors.InputError, match="at least 1"):
        record(snn, x, 0)
    with pytest.raises(sg.errors.InputError, match="NaN"):
        record(snn, x * float("nan"))
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(sg.errors.InputError, match="Choose layers by names"):
        record(snn, x)
