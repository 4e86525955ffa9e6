"""NIR files in the toolchains they are for: each reader's spikes, under what it does with IF nodes.

Norse and snnTorch are tested where they are installed.
"""

import functools
import importlib
import logging
import os
import re
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")

from reading import outputs  # noqa: E402

from spikingjelly_signgd.exporters.nir import single_step, to_graph, write_nir  # noqa: E402
from spikingjelly_signgd.exporters.nir.readers import READERS, UNABLE  # noqa: E402
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


# -- files for one reader: networks of one step, whose neurons fire at most once -------------------


class Pooled(nn.Module):
    """GELU, max pooling with padding, ReLU6, and a sum of two branches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.conv1, self.conv2 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.fc = nn.Linear(5, 7)

    def forward(self, x):
        x = nn.functional.max_pool2d(nn.functional.gelu(3 * self.conv1(x)), 3, 2, 1)
        return self.fc((nn.functional.relu6(self.conv2(x)) + x).mean((2, 3)))


ONE_STEP = {**NETWORKS, "pooled": lambda: (Pooled().eval(), torch.rand(3, 2, 8, 8))}
PLANS = {
    "group 8": {"method": "group", "members": 8},
    "signs 1": {"members": 1},
    "signs 3": {"members": 3},
    "signs 8": {"members": 8},
    "always a sign": {"members": 2, "dead_zone": 0},
}
EXTERNAL = {"sinabs": "SINABS_PYTHON"}  # readers that need an environment of their own


CASES = [
    (name, plan)
    for name in ONE_STEP
    for plan in PLANS
    if (plan == "signs 3" or name in ("mlp", "residual") or (name, plan) == ("conv", "group 8"))
]


@functools.cache
def one_step(name, plan):
    """(network, its input [64, ...], its outputs)"""
    model, x = ONE_STEP[name]()
    x = 2 * torch.rand(64, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = sg.convert(model, x, time_steps=1, tune=False, **PLANS[plan])
    return network, x.numpy(), sg.run(sg.build(network), x, 1)[1].numpy()


def computed(reader, path, x):
    """What a reader makes of x [B, ...], from a file."""
    if reader == "nir":
        return NirRunner(path).run(x, 1)["output"][0]
    if reader in EXTERNAL:
        return computed_outside(reader, {path: x})[path]
    pytest.importorskip({"spikingjelly": "nirtorch"}.get(reader, reader))
    return outputs(reader, str(path), x)


def computed_outside(reader, given):
    python = os.environ.get(EXTERNAL[reader]) or pytest.skip(f"no {EXTERNAL[reader]}")
    for path, x in given.items():
        np.save(path.with_suffix(".npy"), x)
    (folder,) = {path.parent for path in given}
    command = [python, str(Path(__file__).parent / "reading.py"), reader, str(folder)]
    subprocess.run(command, check=True, timeout=120, env={"PATH": os.environ["PATH"]})
    return {path: np.load(path.with_suffix(".out.npy")) for path in given}


def without_branches(reader, name):
    return not READERS[reader].branches and name in ("residual", "pooled")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_files_for_a_reader(tmp_path, reader):
    """Values of neurons are equal to the bit, and sums to their rounding."""
    files = {}
    for name, plan in CASES:
        network, x, _ = one_step(name, plan)
        path = tmp_path / f"{name} {plan}.nir"
        if without_branches(reader, name):
            with pytest.raises(sg.FormatError, match="branches in the wrong order"):
                write_nir(network, path, reader=reader)
            continue
        report = write_nir(network, path, reader=reader)
        assert plan == "always a sign" or not report.losses
        files[path] = (x, name, plan)
    if reader in EXTERNAL:
        have = computed_outside(reader, {path: x for path, (x, *_) in files.items()})
    else:
        have = {path: computed(reader, path, x) for path, (x, *_) in files.items()}
    for path, (_, name, plan) in files.items():
        want = one_step(name, plan)[2]
        assert len(np.unique(want)) > 5
        np.testing.assert_allclose(
            have[path], want, rtol=0, atol=1e-6 * np.abs(want).max(), err_msg=path.stem
        )


@pytest.mark.parametrize("plan", ["group 8", "signs 3"])
@pytest.mark.parametrize("reader", READERS)
def test_verifies(tmp_path, reader, plan):
    network, x, _ = one_step("residual" if READERS[reader].branches else "mlp", plan)
    write_nir(network, tmp_path / "net.nir", reader=reader)
    certificate = sg.verify(tmp_path / "net.nir", torch.from_numpy(x), network=network)
    assert certificate.ok
    assert all(check.mismatches == 0 and check.cells > 0 for check in certificate.checks)


def test_contradicted_where_the_file_is_of_another_reader(tmp_path):
    """A neuron at its threshold fires in one reader, and is silent in the other."""
    network, x, _ = one_step("mlp", "signs 3")
    graph, _ = to_graph(network, reader="nir")
    nodes = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    nodes[0].v_threshold[:] = 0.1
    nir.write(tmp_path / "net.nir", graph)
    assert not sg.verify(tmp_path / "net.nir", torch.from_numpy(x), network=network).ok


def bent(graph, what):
    """Changes one thing in the graph."""
    nodes = list(graph.nodes.values())
    if what == "weight":
        weights = [node.weight for node in nodes if isinstance(node, nir.Affine)]
        weights[2][0, 0] += 1e-3
    elif what == "bias":
        biases = [node.bias for node in nodes if isinstance(node, nir.Affine)]
        biases[1][0] = np.nextafter(biases[1][0], np.float32(9))
    elif what == "reset":
        next(node for node in nodes if isinstance(node, nir.IF)).v_reset[0] = 1
    elif what == "edge":
        graph.edges.append((list(graph.nodes)[1], list(graph.nodes)[5]))
    else:
        graph.metadata[what] = {"ties": "fire", "reader": "sinabs", "values": "{}"}[what]


@pytest.mark.parametrize("what", ["weight", "bias", "reset", "edge", "ties", "reader", "values"])
def test_what_was_changed_does_not_verify(tmp_path, what):
    network, x, _ = one_step("mlp", "signs 3")
    graph, _ = to_graph(network, reader="nir")
    nir.write(tmp_path / "as it was.nir", graph)
    assert sg.verify(tmp_path / "as it was.nir", torch.from_numpy(x), network=network).ok
    bent(graph, what)
    nir.write(tmp_path / "net.nir", graph)
    try:
        assert not sg.verify(tmp_path / "net.nir", torch.from_numpy(x), network=network).ok
    except sg.FormatError as error:
        assert what in ("edge", "values"), error


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"1": 3}', '{"1": []}', "3", "null"])
@pytest.mark.parametrize("key", ["values", "readouts"])
def test_metadata_that_are_damaged(tmp_path, key, text):
    network, x, _ = one_step("mlp", "signs 3")
    graph, _ = to_graph(network, reader="nir")
    graph.metadata[key] = text
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(sg.FormatError):
        sg.verify(tmp_path / "net.nir", torch.from_numpy(x), network=network)


@pytest.mark.parametrize("reader", READERS)
def test_ties_are_the_readers(tmp_path, reader):
    """Inputs that lie on the threshold to the last bit, and one place beside it."""
    theta = 0.7
    model = nn.Sequential(nn.Linear(1, 1, bias=False), sg.QCFS(1, theta)).eval()
    model[0].weight.data.fill_(1)
    x = torch.tensor([[theta / 2]])
    x = torch.cat([torch.nextafter(x, x - 1), x, torch.nextafter(x, x + 1), 3 * x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = sg.convert(model, 4 * x, time_steps=1, method="group", members=1)
    want = sg.run(sg.build(network), x, 1)[1].numpy()
    assert (want > 0).ravel().tolist() == [False, True, True, True]
    write_nir(network, tmp_path / "net.nir", reader=reader)
    np.testing.assert_array_equal(computed(reader, tmp_path / "net.nir", x.numpy()), want)


def test_neurons_that_never_change(tmp_path):
    """All of a layer, and one channel of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(64, 3, generator=torch.Generator().manual_seed(1))
    for bias in (torch.full((4,), -9.0), torch.tensor([-9.0, 1, 1, 1])):
        model[0].bias.data = bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = sg.convert(model, x, time_steps=1, members=2, tune=False)
        write_nir(network, tmp_path / "net.nir", reader="nir")
        want = sg.run(sg.build(network), x, 1)[1].numpy()
        have = computed("nir", tmp_path / "net.nir", x.numpy())
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-6)


def test_verifies_inputs_of_bfloat16(tmp_path):
    model, _ = mlp()
    x = torch.rand(64, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    network = sg.convert(model.bfloat16(), x, time_steps=1, members=3, tune=False)
    write_nir(network, tmp_path / "net.nir", reader="norse")
    assert sg.verify(tmp_path / "net.nir", x, network=network).ok


def test_platform_files_of_one_step_name_the_way_out(tmp_path):
    network, _, _ = one_step("mlp", "group 8")
    with pytest.raises(sg.FormatError, match=r'it has 8 members, .* reader="norse"'):
        write_nir(network, tmp_path / "no.nir", mode="platform")


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x):
        x = self.body(x)
        return self.one(x), self.two(x)


def test_several_outputs(tmp_path):
    """Some tools never end with such a graph, and others give the last output alone."""
    x = torch.rand(32, 6, generator=torch.Generator().manual_seed(1))
    network = sg.convert(TwoOutputs().eval(), x, time_steps=1, members=3, tune=False)
    write_nir(network, tmp_path / "net.nir", reader="nir")
    assert sg.verify(tmp_path / "net.nir", x, network=network).ok
    for reader in set(READERS) - {"nir"}:
        with pytest.raises(sg.FormatError, match="graphs of one output"):
            write_nir(network, tmp_path / "no.nir", reader=reader)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_one_dimension(tmp_path, reader):
    """What a tool cannot import is refused, and not left to it to fail."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(32, 2, 6)
    network = sg.convert(model.eval(), x, time_steps=1, members=3, tune=False)
    if not READERS[reader].conv1d:
        with pytest.raises(sg.FormatError, match="does not import nir.Conv1d.* H = 1"):
            write_nir(network, tmp_path / "net.nir", reader=reader)
        return
    write_nir(network, tmp_path / "net.nir", reader=reader)
    have, want = computed(reader, tmp_path / "net.nir", x.numpy()), sg.run(sg.build(network), x, 1)
    np.testing.assert_allclose(have, want[1], rtol=0, atol=1e-6 * np.abs(want[1]).max())


def test_pools_of_many_comparisons_are_refused(tmp_path, monkeypatch):
    """Before the matrix is made: 510 comparisons of each channel would be pooled by one of GiB."""
    monkeypatch.setattr(single_step, "LARGEST_WEIGHT", 5000)
    network, _, _ = one_step("pooled", "signs 3")
    with pytest.raises(sg.FormatError, match=r"comparisons are pooled .* fewer members"):
        write_nir(network, tmp_path / "no.nir", reader="spikingjelly")


def test_what_no_file_for_a_reader_holds(tmp_path):
    network, x, _ = one_step("conv", "signs 3")

    def refused(match, network=network, **options):
        with pytest.raises(sg.FormatError, match=match):
            write_nir(network, tmp_path / "no.nir", **options)
        assert not list(tmp_path.iterdir())

    refused("reader is one of nir, norse", reader="nest")
    for name, why in UNABLE.items():
        refused(re.escape(why), reader=name)
    refused("leave these out", reader="norse", mode="platform")
    model, _ = conv_net()
    options = {"method": "group", "members": 4, "time_steps": 2}
    refused("time_steps=1", sg.convert(model, torch.from_numpy(x), **options), reader="norse")
    norm = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Softmax(-1)).eval()
    normed = sg.convert(norm, torch.rand(64, 6), time_steps=1, members=2, tune=False)
    with pytest.raises(sg.FormatError) as error:
        write_nir(normed, tmp_path / "no.nir", reader="nir")
    assert "layer_norm" in str(error.value)
    refused("time_steps=1", time_steps=4, reader="nir")
