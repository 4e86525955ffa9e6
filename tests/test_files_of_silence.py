"""Files of signGD neurons with a dead zone: what is written, read, run by NumPy and certified."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import test_save_load
import torch
from test_files_of_groups import changed, stored
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import Input, Linear, SignGDNeuron, SpikingNetwork
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.exporters.hdf5 import kinds, layout, runner
from spikingjelly_signgd.exporters.hdf5.definition import DefinitionNetwork, run_definition
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.exporters.hdf5.runner_signs import levels
from spikingjelly_signgd.neurons.signgd import sparse
from spikingjelly_signgd.neurons.signgd.step import MOST_MEMBERS

SHAPE, STEPS = ("1*batch", 3, 8), 5
THETAS = {
    "2/3": 2 / 3,
    "by channel": torch.tensor([0.1, 0.5, 0.9]).view(3, 1),
    "mixed": torch.tensor([0.0, 2 / 3, 0.0]).view(3, 1),
    "by neuron": torch.linspace(0, 0.99, 24).view(3, 8),
}
X = torch.randn(STEPS, 4, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network_of(members, theta, schedule=None, **fields):
    """Element by element, so that NumPy and torch round alike in float32 too."""
    neuron = {
        "schedule": schedule or sg.ExponentialSchedule(0.7, 0.6), "shape": SHAPE,
        "members": members, "dead_zone": theta, **fields,
    }  # fmt: skip
    rows, scale = sg.NONLINEARITIES, torch.tensor([1.0, 0.7, 2.3]).view(3, 1)
    minus = {"coefficients": [1.0, -0.5]}
    half = {"attributes": {"shape": list(SHAPE)}, "tensors": {"weight": torch.full((8,), 0.5)}}
    return SpikingNetwork(
        (
            Input(name="x", shape=SHAPE),
            SignGDNeuron(name="a", inputs=("x",), function=rows["relu"], scale=scale, **neuron),
            SignGDNeuron(name="b", inputs=("x",), function=rows["abs"], resting=0.3, **neuron),
            SignGDNeuron(name="c", inputs=("a", "b"), function=rows["mul"], **neuron),
            Linear(name="h", inputs=("c",), op="affine", shape=SHAPE, **half),
            Linear(name="d", inputs=("h", "x"), op="add", attributes=minus, shape=SHAPE),
            SignGDNeuron(name="y", inputs=("d",), function=rows["leaky_relu"], **neuron),
        ),
        "y",
        STEPS,
    )


def assert_same(have, want, what):
    assert have.dtype == want.dtype and have.shape == want.shape, what
    assert np.array_equal(have, want), what


def digits(code, members):
    return sparse.digits(torch.from_numpy(code), members).numpy()


# -- the NumPy runner is the definition ------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("members", [1, 3, 8, 12])
def test_every_bit_is_the_definitions(tmp_path, members, theta, wide):
    network, dtype = network_of(members, THETAS[theta]), torch.float64 if wide else torch.float32
    sg.save(network, tmp_path / "n.h5")
    numpy, x = Runner(tmp_path / "n.h5", "f8" if wide else "f4"), X[0].to(dtype)
    for view, name in (("spike", "signed"), ("decoded", "decoded")):
        want = run_definition(network, x, STEPS, spikes=name, dtype=dtype)
        found = numpy.run(x.numpy(), STEPS, view=view)
        late = numpy.run(x.numpy(), STEPS, view=view, delay=True)
        assert_same(found.outputs[STEPS], want.outputs.numpy(), view)
        assert_same(late.outputs[STEPS], want.outputs.numpy(), "with a delay")
        for neuron, fired in want.spikes.items():
            lag, code = late.lags[neuron], found.spikes[neuron]
            assert_same(code, fired.numpy(), neuron)
            assert_same(late.spikes[neuron][lag : lag + STEPS], fired.numpy(), neuron)
            assert code.dtype == np.int32 and not late.spikes[neuron][:lag].any()
            sigma = digits(code, members)
            assert set(np.unique(sigma)) == {-1, 0, 1}
            assert_same(levels(code, np.int64), sigma @ 2 ** np.arange(members)[::-1], "d")
            if theta == "mixed":
                assert sigma[..., 0::2, :, :].all() and not sigma[..., 1, :, :].all()


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("theta", ["2/3", "mixed"])
@pytest.mark.parametrize("members", [1, 8])
def test_sequences(tmp_path, members, theta, wide):
    network, dtype = network_of(members, THETAS[theta]), torch.float64 if wide else torch.float32
    module, state, fired, outputs = DefinitionNetwork(network).to(dtype), None, [], []
    for x in X.to(dtype):
        y, state = module(x, state)
        outputs.append(y.numpy())
        fired.append({name: code.numpy() for name, code in module.fired.items()})
    sg.save(network, tmp_path / "n.h5")
    numpy, steps = Runner(tmp_path / "n.h5", "f8" if wide else "f4"), range(1, STEPS + 1)
    x_seq = X.to(dtype).numpy()
    found = numpy.run(x_seq, steps, sequence=True, view="decoded", values=True)
    for t in steps:
        assert_same(found.outputs[t], outputs[t - 1], t)
    for name, code in found.spikes.items():
        assert_same(code, np.stack([step[name] for step in fired]), name)
    assert_same(found.values["y"], np.stack(outputs), "v")
    late = numpy.run(x_seq, steps, sequence=True, view="decoded", delay=True)
    assert_same(late.outputs[STEPS], outputs[-1], "with a delay")


def test_ties_are_silent(tmp_path):
    """Members of sizes 1, 1/2, 1/4 and theta = 1/2: f(x) is at the edge of each zone in turn."""
    neuron = SignGDNeuron(
        name="y", inputs=("x",), function=sg.NONLINEARITIES["relu"], members=3,
        schedule=sg.ConstantSchedule(1.0), shape=("1*batch", 5), dead_zone=0.5,
    )  # fmt: skip
    x = torch.tensor([[0.0, 0.125, 0.25, 0.5, 0.75]])
    minus, mixed = sparse._NEGATIVE, torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])
    for theta, first in ((0.5, 0), (mixed, 4 | 3 << minus)):  # without a zone: +1, -1, -1
        nodes = (Input(name="x", shape=neuron.shape), replace(neuron, dead_zone=theta))
        sg.save(SpikingNetwork(nodes, "y", 1), tmp_path / "n.h5")
        assert sg.verify(tmp_path / "n.h5", x).ok
        for dtype in (np.float32, np.float64):
            code = Runner(tmp_path / "n.h5", dtype).run(x.numpy()).spikes["y"][0, 0]
            want = [first, 0, 1 << minus, 2 << minus, 1 | 4 << minus]
            assert code.tolist() == want, dtype


def test_theta_is_a_float32(tmp_path):
    """0.3 is above itself there, so what lies between is silent in float64 too."""
    between, shape = 0.3 + 5e-9, ("1*batch", 3)
    assert 0.3 < between < float(np.float32(0.3))
    neuron = SignGDNeuron(
        name="y", inputs=("x",), function=sg.NONLINEARITIES["relu"], shape=shape,
        schedule=sg.ConstantSchedule(1.0), dead_zone=0.3,
    )  # fmt: skip
    x = torch.tensor([[0.29, between, 0.31]], dtype=torch.float64)
    for theta in (0.3, torch.full((3,), 0.3, dtype=torch.float64)):
        nodes = (Input(name="x", shape=shape), replace(neuron, dead_zone=theta))
        sg.save(SpikingNetwork(nodes, "y", 1), tmp_path / "n.h5")
        code = Runner(tmp_path / "n.h5").run(x.numpy()).spikes["y"]
        assert code.tolist() == [[[0, 0, 1 << sparse._NEGATIVE]]]


class Everything(nn.Module):
    """Attention, a norm, pooling and a product of two signals."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(1, 8, 2, 2), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        y = self.embed(x).flatten(2).transpose(1, 2)
        z = self.norm(y)
        y = y + self.attention(z, z, z, need_weights=False)[0]
        return self.head((torch.sigmoid(self.gate(y)) * y).amax(1))


def everything():
    torch.manual_seed(1)
    return Everything()


@pytest.mark.parametrize(
    ("make", "members", "steps"), [(test_save_load.image_model, 8, 2), (everything, 1, 12)]
)
def test_converted_networks_are_verified(tmp_path, make, members, steps):
    x = test_save_load.X
    options = {"members": members, "time_steps": steps, "tune": False, "dead_zone": 2 / 3}
    network = sg.convert(make(), x, **options)
    sg.save(network, tmp_path / "n.h5")
    certificate = sg.verify(tmp_path / "n.h5", x, network=network)
    assert certificate.ok, certificate
    content, exact, late, single = certificate.checks
    assert content.equal and exact.spikes == late.spikes and single.cells == exact.cells
    fired = run_definition(network, x, steps).spikes
    assert {code.dtype for code in fired.values()} == {torch.int32}
    sent = sum(int(sparse.count(code).sum()) for code in fired.values())
    assert 0 < exact.spikes == sent < 0.6 * members * exact.cells


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
@pytest.mark.parametrize("view", ["decoded", "signed"])
@pytest.mark.parametrize("theta", ["2/3", "mixed"])
def test_the_simulators_fire_what_the_definition_does(simulator, view, theta):
    pytest.importorskip(simulator)
    network = network_of(8, THETAS[theta])
    want = run_definition(network, X[0].float(), STEPS, spikes=view, dtype=torch.float32)
    told = {}
    snn = sg.build(network, simulator, spikes=view)
    with listening(snn, lambda sent: told.setdefault(sent.node.name, []).append(sent.events.fires)):
        outputs = sg.run(snn, X[0].float(), STEPS)
    assert torch.equal(outputs[STEPS], want.outputs)
    for name, fired in want.spikes.items():
        assert torch.equal(torch.cat(told[name]), fired), name


# -- what certificates see -------------------------------------------------------------------------


def test_another_code_of_the_same_number_is_found_out(tmp_path, monkeypatch):
    """+1 of the last member is +1 of the one before it and -1: d and all outputs are the same."""
    network = network_of(3, 2 / 3)
    sg.save(network, tmp_path / "n.h5")
    assert sg.verify(tmp_path / "n.h5", X[0]).ok
    right = runner.sparse_step

    def wrong(*given):
        code, v = right(*given)
        return np.where(code == 1, 2 | 1 << sparse._NEGATIVE, code), v

    monkeypatch.setattr(runner, "sparse_step", wrong)
    certificate = sg.verify(tmp_path / "n.h5", X[0])
    check = certificate.checks[0]
    assert not certificate.ok and check.mismatches > 0 == check.readout_error


# -- descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", THETAS)
def test_a_dead_zone_is_read_back(tmp_path, theta):
    network = network_of(12, THETAS[theta])
    sg.save(network, tmp_path / "n.h5")
    test_save_load.assert_equal_networks(sg.load(tmp_path / "n.h5"), network)
    certificate = sg.verify(tmp_path / "n.h5", X[0], network=network)
    assert certificate.ok and certificate.checks[0].equal
    other = replace(network["y"], dead_zone=0.3)
    other = network.replace(nodes=(*network.nodes[:-1], other))
    assert not sg.verify(tmp_path / "n.h5", X[0], network=other).ok


def root(path):
    with h5py.File(path) as file:
        return dict(file.attrs)


def test_a_file_is_of_the_version_that_it_needs(tmp_path):
    """Without dead zones nothing in it tells that this release knows of them."""
    for theta, members, kind in ((0.0, 1, "signgd"), (0, 1, "signgd"), (0.0, 8, "signgd 1.2")):
        network = network_of(members, theta)
        sg.save(network, tmp_path / "n.h5")
        assert root(tmp_path / "n.h5")["format_version"] == "1.2"
        assert stored(tmp_path / "n.h5")["y"] == kind
        assert b"dead_zone" not in (tmp_path / "n.h5").read_bytes()
        assert sg.load(tmp_path / "n.h5")["y"].dead_zone == 0.0
        assert sg.verify(tmp_path / "n.h5", X[0], network=network).ok
    one = network.replace(nodes=(*network.nodes[:-1], replace(network["y"], dead_zone=0.5)))
    sg.save(one, tmp_path / "n.h5")
    assert root(tmp_path / "n.h5")["format_version"] == "1.3"
    assert "sigma in {-1, 0, +1}" in root(tmp_path / "n.h5")["spikes"]
    kinds_of = stored(tmp_path / "n.h5")
    assert (kinds_of["y"], kinds_of["a"]) == ("signgd 1.3", "signgd 1.2")
    test_save_load.assert_equal_networks(sg.load(tmp_path / "n.h5"), one)


def test_releases_before_refuse_it_by_name(tmp_path, monkeypatch):
    sg.save(network_of(1, 0.5), tmp_path / "n.h5")
    monkeypatch.setattr(layout, "READ", ("1.2",))
    with pytest.raises(sg.FormatError, match="'signgd 1.3'; known: .*written by a newer release"):
        sg.load(tmp_path / "n.h5")


def test_a_dead_zone_is_not_lost(tmp_path):
    """Neither taken out of the node, nor with the versions that ask for it set back."""
    sg.save(network_of(1, 0.5), tmp_path / "n.h5")
    changed(tmp_path / "n.h5", "y", kind="signgd")
    assert sg.load(tmp_path / "n.h5")["y"].dead_zone == 0.5
    changed(tmp_path / "n.h5", "y", kind="signgd 1.3", dead_zone=None)
    for version in ("1.3", "1.2", "1.7"):
        with h5py.File(tmp_path / "n.h5", "r+") as file:
            file.attrs["format_version"] = version
        layout.seal(tmp_path / "n.h5")
        with pytest.raises(sg.FormatError, match="'dead_zone' of a signgd node is missing"):
            Runner(tmp_path / "n.h5")


WRONG = [
    ({"dead_zone": 1.0}, "node 'y': dead_zone = 1.0 does not fit"),
    ({"dead_zone": 1 - 1e-9}, "node 'y': dead_zone = 0.999999999 does not fit"),
    ({"dead_zone": -0.1}, "node 'y': dead_zone = -0.1 does not fit"),
    ({"dead_zone": float("nan")}, "node 'y': dead_zone holds NaN"),
    ({"dead_zone": torch.tensor([0.5, 1.0])}, "node 'y': dead_zone = an array .*does not fit"),
    ({"dead_zone": torch.full((2, 1), 0.5)}, r"node 'y': dead_zone is \[2, 1\] and does not bro"),
    ({"dead_zone": torch.tensor([1])}, "node 'y': dead_zone = an array .* of int64 does not fit"),
    ({"members": 13}, "node 'y': members = 13 does not fit"),
    ({"members": 9, "dead_zone": 0.0}, "node 'y': members = 9 .*at most 8 signs .*with one 12"),
    (
        {"members": 1, "momentum": 0.5},
        "node 'y': momentum = 0.5 accumulates the signs of all steps, .* a dead zone",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_nonsense_is_neither_saved_nor_read(tmp_path, fields, message):
    network = network_of(2, 0.5)
    wrong = network.replace(nodes=(*network.nodes[:-1], replace(network["y"], **fields)))
    with pytest.raises(sg.FormatError, match=message):
        sg.save(wrong, tmp_path / "n.h5")
    sg.save(network, tmp_path / "n.h5")
    written = {
        key: value.numpy() if isinstance(value, torch.Tensor) else json.dumps(value)
        for key, value in fields.items()
    }
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        group = next(g for g in file["nodes"].values() if json.loads(g.attrs["name"]) == "y")
        if isinstance(written.get("dead_zone"), np.ndarray):
            del group.attrs["dead_zone"]
    changed(tmp_path / "n.h5", "y", **written)
    with pytest.raises(sg.FormatError, match=message):
        Runner(tmp_path / "n.h5")


def test_limits_are_those_of_the_neurons():
    assert (kinds.MOST_SIGNS, kinds.MOST_SPARSE) == (MOST_MEMBERS, sparse.MOST_MEMBERS)
