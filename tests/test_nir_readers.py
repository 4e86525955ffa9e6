"""NIR files in the toolchains they are for: each reader's spikes, under what it does with IF nodes.

Norse and snnTorch are tested where they are installed.
"""

import importlib
import logging
import warnings
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")

from spikingjelly_signgd.exporters.nir import write_nir  # noqa: E402
from spikingjelly_signgd.exporters.nir.runner import NirRunner  # noqa: E402

TIME_STEPS = 24


def conv_net():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), sg.QCFS(8, 0.83), nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), sg.QCFS(8, 0.31), nn.Flatten(),
        nn.Linear(24, 10), sg.QCFS(8, 0.2),
    )  # fmt: skip
    return model.eval(), 2 * torch.rand(3, 2, 8, 8)


def mlp():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Linear(12, 32), sg.QCFS(8, 0.83), nn.Linear(32, 16), sg.QCFS(8, 0.31), nn.Linear(16, 10)
    )
    return model.eval(), 2 * torch.rand(3, 12)


class Residual(nn.Module):
    """A depth-wise convolution, a sum of spikes and currents, a mean over the image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.act1 = sg.QCFS(8, 0.83)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.act2 = sg.QCFS(8, 0.5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.act1(self.conv1(x))
        return self.fc(self.act2(self.conv2(x) + x).mean((2, 3)))


def residual():
    return Residual().eval(), 2 * torch.rand(3, 2, 8, 8)


NETWORKS = {"conv": conv_net, "mlp": mlp, "residual": residual}


@pytest.fixture(params=NETWORKS)
def case(request, tmp_path):
    """(name, folder with the files of one network, input)"""
    model, x = NETWORKS[request.param]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        network = sg.convert(model, x, method="group", members=1, time_steps=TIME_STEPS)
    for dialect in ("nir", "lif"):
        write_nir(network, tmp_path / f"{dialect}.nir", mode="platform", dialect=dialect)
    write_nir(network, tmp_path / "conv.nir", mode="platform", pooling="conv")
    return request.param, tmp_path, x


def expected(folder, x, **semantics):
    return NirRunner(folder / "nir.nir", **semantics).run(x.numpy(), TIME_STEPS)["output"]


def steps(model, x):
    """A reader's module that returns (output, state), step by step from no state."""
    outputs, state = [], None
    with torch.no_grad():
        for _ in range(TIME_STEPS):
            y, state = model(x, state)
            outputs.append(y.numpy())
    return np.stack(outputs)


def assert_same(name, have, want):
    """Spikes are equal; what a linear layer makes of them is, to the order of its sums."""
    assert have.shape == want.shape
    if name == "conv":
        assert set(np.unique(have.round(4))) == {0.0, np.float32(0.2)}
    assert len(np.unique(want)) > 1
    np.testing.assert_allclose(have, want, rtol=0, atol=2e-5)


def probe(reader, dialect="nir"):
    """The spikes of one neuron of threshold 1 at the steps at which readers differ."""
    one = np.ones(1, np.float32)
    made = nir.LIF(1e5 * one, 1e9 * one, 0 * one, one) if dialect == "lif" else nir.IF(one, one)
    nodes = {"input": nir.Input(np.array([1])), "linear": nir.Affine(one[:, None], 0 * one)}
    nodes |= {"neuron": made, "output": nir.Output(np.array([1]))}
    edges = [("input", "linear"), ("linear", "neuron"), ("neuron", "output")]
    model, state, spikes = reader(nir.NIRGraph(nodes, edges)), None, ""
    for value in [0.25] * 9 + [0.75, 1.5, 0.25, 0.25, 0.5]:
        x = torch.full((1, 1), value)
        out = model(x, state) if state is not None else model(x)
        z, state = out if isinstance(out, tuple) else (out, None)
        spikes += str(int(z))
    return spikes


# -- SpikingJelly: fires at v >= v_threshold, resets to v_reset -----------------------------------


@pytest.fixture
def spikingjelly():
    try:
        module = importlib.import_module("spikingjelly.activation_based.nir_exchange")
        return module.import_from_nir
    except ImportError as error:
        pytest.skip(f"SpikingJelly without NIR: {error}")


def test_spikingjelly(case, spikingjelly):
    name, folder, x = case
    want = expected(folder, x, ties="fire")
    assert_same(name, steps(spikingjelly(str(folder / "nir.nir"), dt=1.0), x), want)
    multi = spikingjelly(str(folder / "nir.nir"), dt=1.0, step_mode="m")
    with torch.no_grad():
        y_seq, _ = multi(x.expand(TIME_STEPS, *x.shape))
    assert_same(name, y_seq.numpy(), want)
    assert_same(name, steps(spikingjelly(str(folder / "lif.nir")), x), want)
    assert np.abs(expected(folder, x, ties="fire", reset="subtract") - want).max() > 0.01


def test_spikingjelly_probe(spikingjelly):
    assert probe(lambda graph: spikingjelly(graph, dt=1.0)) == "00010001011001"


# -- Norse: fires at v > v_threshold, resets to zero ----------------------------------------------


@pytest.fixture
def norse(caplog):
    module = pytest.importorskip("norse.torch")
    caplog.set_level(logging.ERROR)
    return lambda graph: module.from_nir(graph, dt=1.0)


@pytest.mark.filterwarnings("ignore:nirtorch.load is being deprecated:DeprecationWarning")
def test_norse(case, norse):
    name, folder, x = case
    if name == "residual" and version("norse") == "1.1.0":
        pytest.skip("Norse 1.1.0 runs branches in the wrong order (docs/nir.md)")
    model = norse(nir.read(folder / "conv.nir"))
    assert_same(name, steps(model, x), expected(folder, x, ties="strict"))


@pytest.mark.filterwarnings("ignore:nirtorch.load is being deprecated:DeprecationWarning")
def test_norse_probe(norse):
    assert probe(norse) == "00001000011000"


# -- snnTorch: LIF nodes; fires at v > v_threshold, resets to zero --------------------------------


@pytest.fixture
def snntorch():
    pytest.importorskip("snntorch")
    return importlib.import_module("snntorch.import_nir").import_from_nir


def test_snntorch(case, snntorch):
    name, folder, x = case
    model = snntorch(nir.read(folder / "lif.nir"))
    outputs = []
    with torch.no_grad():
        for _ in range(TIME_STEPS):  # its neurons keep their own state
            outputs.append(model(x)[0].numpy())
    assert_same(name, np.stack(outputs), expected(folder, x, ties="strict"))


def test_snntorch_probe(snntorch):
    def reader(graph):
        model = snntorch(graph)
        return lambda x: model(x)[0]

    assert probe(reader, "lif") == "00001000011000"


# -- nirtorch: runs exact files, given what three primitives are ----------------------------------


class Integrator(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.register_buffer("r", torch.from_numpy(node.r))

    def forward(self, x, state=None):
        v = x * self.r if state is None else state + x * self.r
        return v, v


class Elementwise(nn.Module):
    def __init__(self, function, parameter):
        super().__init__()
        self.function = function
        self.register_buffer("parameter", torch.from_numpy(parameter))

    def forward(self, x):
        return self.function(x, self.parameter)


def affine(node):
    linear = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    linear.weight.data = torch.from_numpy(node.weight)
    linear.bias.data = torch.from_numpy(node.bias)  # nirtorch 2.6's own map loses it
    return linear


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_nirtorch_runs_exact_files(tmp_path, name, members):
    model, x = NETWORKS[name]()
    model, x = model.double(), x.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        network = sg.convert(model, x, method="group", members=members, time_steps=TIME_STEPS)
    write_nir(network, tmp_path / "net.nir")
    node_map = {
        nir.I: Integrator,
        nir.Threshold: lambda n: Elementwise(lambda x, t: (x > t).to(x), n.threshold),
        nir.Scale: lambda n: Elementwise(torch.mul, n.scale),
        nir.Affine: affine,
    }
    graph = nir.read(tmp_path / "net.nir")
    module = nirtorch.nir_to_torch(graph, node_map, dtype=torch.float64)
    have = steps(module, x).mean(0)
    want = sg.run(sg.build(network), x, TIME_STEPS)[TIME_STEPS].numpy()
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)
    assert len(np.unique(want)) > 2
