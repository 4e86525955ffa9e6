"""NIR files: exact ones compute the network, cell by cell; what cannot be written is refused."""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg

nir = pytest.importorskip("nir")

from spikingjelly_signgd.core.network import Constant, Function  # noqa: E402
from spikingjelly_signgd.exporters.nir import graph as nir_graph  # noqa: E402
from spikingjelly_signgd.exporters.nir import read_nir, to_graph, write_nir  # noqa: E402
from spikingjelly_signgd.exporters.nir.graph import group_subgraph, group_thresholds  # noqa: E402
from spikingjelly_signgd.exporters.nir.reader import group_parameters, to_network  # noqa: E402
from spikingjelly_signgd.exporters.nir.runner import NirRunner, convolve  # noqa: E402
from spikingjelly_signgd.neurons.group import GroupNeuronParameters, group_step  # noqa: E402


def convert(model, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)  # members are chosen here, not levels
        return sg.convert(model, x, method="group", **options)


def torch_run(network, x, time_steps):
    """What each neuron layer sends, by name, [T, B, ...], and the decoded outputs."""
    snn, seen = sg.build(network, kernels="torch"), {}

    def keep(name):
        return lambda module, inputs, out: seen.setdefault(name, []).append(out)

    for node in network.neurons:
        snn.neuron(node.name).register_forward_hook(keep(node.name))
    outputs = sg.run(snn, x, time_steps)[time_steps]
    return {name: torch.cat(blocks).numpy() for name, blocks in seen.items()}, outputs


def keys_of(graph):
    """The names that the network gave to the neuron subgraphs of a graph."""
    return {
        node.metadata["name"]: key
        for key, node in graph.nodes.items()
        if isinstance(node, nir.NIRGraph)
    }


def mismatches(network, path, x, time_steps):
    """(outputs of neurons that differ, all of them, images in which one differs, the largest
    difference of the decoded outputs)"""
    want, outputs = torch_run(network, x, time_steps)
    keys = keys_of(nir.read(path))  # nir's own reader, its type check included
    assert set(keys) == set(want) == set(network.names())
    have = NirRunner(path).run(x.numpy(), time_steps, record=keys.values())
    different = total = 0
    images = set()
    for name, key in keys.items():
        assert have[key].shape == want[name].shape and have[key].dtype == want[name].dtype
        cells = np.argwhere(have[key] != want[name])
        different += len(cells)
        images |= set(cells[:, 1])
        total += want[name].size
        assert len(np.unique(want[name])) > 1, f"{name} is silent, so nothing is compared"
    error = np.abs(have["output"].mean(0) - outputs.numpy()).max()
    return different, total, len(images), float(error)


# -- exact: the networks of the examples ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("time_steps", [1, 4])
@pytest.mark.parametrize(("name", "levels"), [("vgg", 4), ("vgg", 8), ("resnet", 4), ("resnet", 8)])
def test_exact_spikes_are_the_definitions(tmp_path, name, levels, time_steps, dtype):
    model, data = load_network(name, "digits", qcfs=levels).to(dtype), digits()
    network = convert(model, data.train.images[:64].to(dtype), time_steps=time_steps)
    write_nir(network, tmp_path / "net.nir")
    different, _, _, error = mismatches(
        network, tmp_path / "net.nir", data.test.images[:32].to(dtype), time_steps
    )
    assert different == 0 and error <= (1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("time_steps", [1, 2, 4, 8])
@pytest.mark.parametrize(("name", "levels"), [("vgg", 4), ("vgg", 8), ("resnet", 4), ("resnet", 8)])
def test_exact_on_the_whole_test_set(tmp_path, name, levels, time_steps):
    """In float32 one neuron of one image lies on its threshold to the last bit (resnet, L = 8,
    T = 8), and the later spikes of that image follow; see docs/nir.md."""
    for dtype, allowed in ((torch.float64, 0), (torch.float32, 1)):
        model, data = load_network(name, "digits", qcfs=levels).to(dtype), digits()
        network = convert(model, data.train.images[:64].to(dtype), time_steps=time_steps)
        write_nir(network, tmp_path / "net.nir")
        images = data.test.images.to(dtype)
        different, total, count, error = mismatches(
            network, tmp_path / "net.nir", images, time_steps
        )
        found = f"{different} of {total} in {count} images, {error:.1e}"
        print(f"{name} L={levels} T={time_steps} {dtype}: {found}")
        assert count <= allowed


@pytest.mark.parametrize(("name", "levels", "time_steps"), [("vgg", 8, 2), ("resnet", 4, 4)])
def test_read_back_runs_with_the_same_spikes(tmp_path, name, levels, time_steps):
    data = digits()
    network = convert(
        load_network(name, "digits", qcfs=levels), data.train.images[:64], time_steps=time_steps
    )
    write_nir(network, tmp_path / "net.nir")
    again = read_nir(tmp_path / "net.nir")
    assert again.names() == network.names() and again.time_steps == time_steps
    want, outputs = torch_run(network, data.test.images[:64], time_steps)
    have, decoded = torch_run(again, data.test.images[:64], time_steps)
    for layer in want:
        assert np.array_equal(have[layer], want[layer]), layer
    torch.testing.assert_close(decoded, outputs, rtol=0, atol=1e-5)


# -- exact: the group neuron ----------------------------------------------------------------------


def definition(x_seq, parameters):
    x_seq = torch.from_numpy(x_seq)
    v, out = torch.full_like(x_seq[0], parameters.v_initial), []
    for x in x_seq:
        y, v = group_step(x, v, parameters)
        out.append(y)
    return torch.stack(out).numpy()


def alone(x_seq, parameters):
    """The subgraph as a graph of its own, without a file."""
    graph = group_subgraph(nir, x_seq.shape[2:], parameters, x_seq.dtype, {})
    return NirRunner(graph).run(x_seq, len(x_seq), sequence=True)["output"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("members", "v_threshold"), [(1, 1.0), (2, 1.0), (4, 2.0), (3, 0.75)])
def test_ties_fire_as_in_the_definition(members, v_threshold, dtype):
    """theta, the inputs and all potentials are dyadic, so every sum is exact, and many potentials
    lie on thresholds."""
    p = GroupNeuronParameters(members, v_threshold)
    steps = np.random.default_rng(0).integers(-4 * members, 6 * members + 4, (32, 20, 50))
    x_seq = (steps * p.theta / 4).astype(dtype)
    want = definition(x_seq, p)
    h = np.cumsum(x_seq, 0) + p.v_initial - np.concatenate([0 * want[:1], np.cumsum(want, 0)[:-1]])
    assert (np.isin(h, np.arange(1, members + 1) * p.theta)).mean() > 0.03
    assert len(np.unique(want)) == members + 1
    assert np.array_equal(alone(x_seq, p), want)


@pytest.mark.parametrize("initial_charge", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("members", [1, 4, 6, 12])
def test_any_threshold_to_rounding(members, initial_charge):
    """theta is no dyadic number: float64 has no mismatch, float32 few, by rounding alone."""
    p = GroupNeuronParameters(members, 1.7, initial_charge)
    x_seq = np.random.default_rng(1).normal(0.5, 1.0, (32, 40, 250))
    assert np.array_equal(alone(x_seq, p), definition(x_seq, p))
    single = x_seq.astype(np.float32)
    assert (alone(single, p) != definition(single, p)).sum() <= 8  # of 320,000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("v_threshold", [1.0, 1.7, 3e-5, 2.9685621])
def test_thresholds_are_the_largest_numbers_below(v_threshold, dtype):
    p = GroupNeuronParameters(7, v_threshold)
    for k, threshold in enumerate(group_thresholds(p, dtype), 1):
        above = np.nextafter(threshold, dtype(np.inf))
        # float128 holds the difference of two float64 of about the same size
        bound = np.longdouble(dtype(k) * dtype(p.theta)) - np.longdouble(dtype(p.v_initial))
        assert type(threshold) is dtype and np.longdouble(threshold) < bound
        assert bound <= np.longdouble(above)


# -- exact: what stands in the file ---------------------------------------------------------------


def conv_model(levels=4):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), sg.QCFS(levels, 0.83), nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), sg.QCFS(levels, 0.31), nn.Flatten(),
        nn.Linear(24, 10), sg.QCFS(levels, 0.2), nn.Linear(10, 5),
    )  # fmt: skip
    return model.eval()


IMAGES = 2 * torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def conv_network(**options):
    return convert(conv_model(), IMAGES, **({"time_steps": 2} | options))


def test_layout(tmp_path):
    report = write_nir(conv_network(), tmp_path / "net.nir")
    assert report.losses == () and "no losses" in str(report) and "mean" in str(report)
    graph = nir.read(tmp_path / "net.nir")
    names = list(graph.nodes)
    assert names == sorted(names) and names[0] == "input" and names[-1] == "output"
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == [
        "Input", "Conv2d", "NIRGraph", "AvgPool2d", "Conv2d", "NIRGraph", "Flatten", "Affine",
        "NIRGraph", "Affine", "Output",
    ]  # fmt: skip
    assert all("/" not in name and "." not in name for name in names)
    for node in graph.nodes.values():
        for array in vars(node).values():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                assert array.dtype == np.float32
    conv, neurons, flatten = (graph.nodes[names[i]] for i in (1, 2, 6))
    assert not conv.bias.any() and conv.bias.shape == (4,)
    assert (flatten.start_dim, flatten.end_dim) == (-3, -1)
    assert list(neurons.nodes) == [
        "input", "integrator", "member_001", "member_002", "output", "scale_inhibit",
        "scale_output",
    ]  # fmt: skip
    for name, node in neurons.nodes.items():
        arrays = [v for v in vars(node).values() if isinstance(v, np.ndarray)]
        assert all(a.shape == (4, 8, 8) for a in arrays), name
    into = [source for source, target in neurons.edges if target == "integrator"]
    assert into == ["scale_inhibit", "input"], "the feedback first, and it alone"
    metadata = graph.metadata
    assert metadata["mode"] == "exact" and metadata["time_steps"] == 2 and metadata["losses"] == ""
    assert json.loads(metadata["readouts"])[0]["readout"] == "mean"
    assert neurons.metadata["name"] == "1.qcfs"


def test_a_float64_network_keeps_its_type(tmp_path):
    write_nir(convert(conv_model().double(), IMAGES.double(), time_steps=1), tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")
    assert graph.nodes["n01_0"].weight.dtype == np.float64


def test_read_back_is_equal(tmp_path):
    network = conv_network()
    write_nir(network, tmp_path / "net.nir", time_steps=4)
    again = read_nir(tmp_path / "net.nir")
    assert again.time_steps == 4 and again.outputs == network.outputs
    assert again.provenance == network.provenance
    assert [node.name for node in again.nodes] == [node.name for node in network.nodes]
    for have, want in zip(again.neurons, network.neurons, strict=True):
        for name in ("members", "v_threshold", "initial_charge", "signed", "arguments"):
            assert getattr(have, name) == getattr(want, name)
        assert (have.function, have.module, have.channel, have.shape) == (
            want.function, want.module, want.channel, want.shape,
        )  # fmt: skip
    snn, ann = sg.build(network), sg.build(again)
    assert torch.equal(sg.run(snn, IMAGES, 2)[2], sg.run(ann, IMAGES, 2)[2])
    assert torch.equal(snn.ann(IMAGES), ann.ann(IMAGES))


def test_relu_networks_are_read_back(tmp_path):
    """Thresholds from calibration; the function of the source stays ReLU."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 2)).eval()
    network = convert(model, IMAGES, members=3, time_steps=5)
    write_nir(network, tmp_path / "net.nir")
    again = read_nir(tmp_path / "net.nir")
    (have,), (want,) = again.neurons, network.neurons
    for name in ("v_threshold", "initial_charge"):
        assert torch.equal(*(torch.as_tensor(getattr(node, name)) for node in (have, want)))
    assert (have.members, have.signed) == (3, want.signed) and have.function.name == "relu"
    snn, read = sg.build(network), sg.build(again)
    assert torch.equal(snn.ann(IMAGES), read.ann(IMAGES))
    assert torch.equal(sg.run(snn, IMAGES, 5)[5], sg.run(read, IMAGES, 5)[5])


# -- exact: operations ----------------------------------------------------------------------------


class Module(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        torch.manual_seed(7)
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module())

    def forward(self, x):
        return self.function(self, x)


def q(v_threshold=0.4):
    return lambda: sg.QCFS(4, v_threshold)


def c(*arguments, **options):
    return lambda: nn.Conv2d(*arguments, **options)


# thresholds of no common measure: means of spikes would lie on each other's, where rounding decides
TWO = dict(
    c1=c(2, 4, 3, padding=1), a1=q(), c2=c(4, 4, 3, padding=1), a2=q(0.37), a3=q(0.33)
)  # fmt: skip
SCALE = torch.tensor([0.5, 1.5, -1.0, 2.0]).reshape(4, 1, 1)
CASES = {
    "grouped": lambda: Module(
        lambda m, x: m.a2(m.c2(m.a1(m.c1(x)))), **(TWO | {"c2": c(4, 8, 3, groups=2)})
    ),
    "depth-wise": lambda: Module(
        lambda m, x: m.a2(m.c2(m.a1(m.c1(x)))), **(TWO | {"c2": c(4, 4, 3, groups=4)})
    ),
    "kernel 1 x 3, dilated, strided": lambda: Module(
        lambda m, x: m.a1(m.c1(x)),
        a1=q(),
        c1=c(2, 4, (1, 3), stride=(1, 2), padding=(0, 2), dilation=(2, 3)),
    ),
    "residual": lambda: Module(lambda m, x: m.a2(m.c2(m.a1(m.c1(x))) + m.c1(x)), **TWO),
    "sums that are read twice": lambda: Module(
        lambda m, x: (lambda s: m.a3(m.c2(m.a2(s)) + s))(m.a1(m.c1(x)) + m.c1(x)), **TWO
    ),
    "the same value twice": lambda: Module(lambda m, x: (lambda y: m.a2(y + y))(m.c1(x)), **TWO),
    "a difference": lambda: Module(lambda m, x: m.a2(m.c2(m.a1(m.c1(x))) - 0.5 * m.c1(x)), **TWO),
    "a sum at the output": lambda: Module(lambda m, x: m.a1(m.c1(x)) + m.c1(x), **TWO),
    "scaled channels": lambda: Module(lambda m, x: m.a2(m.a1(m.c1(x)) * SCALE), **TWO),
    "scaled and shifted channels": lambda: Module(
        lambda m, x: m.a2(m.a1(m.c1(x)) * SCALE + 0.1 * SCALE), **TWO
    ),
    "mean over the image": lambda: Module(
        lambda m, x: m.fc(m.a1(m.c1(x)).mean((2, 3))), fc=lambda: nn.Linear(4, 3), **TWO
    ),
    "sum over the image": lambda: Module(lambda m, x: m.a1(m.c1(x)).sum((2, 3), True), **TWO),
    "adaptive pooling": lambda: Module(
        lambda m, x: m.a2(nn.functional.adaptive_avg_pool2d(m.a1(m.c1(x)), (4, 2))), **TWO
    ),
    "pooling with padding": lambda: Module(
        lambda m, x: m.a2(nn.functional.avg_pool2d(m.a1(m.c1(x)), (3, 2), (2, 1), 1)), **TWO
    ),
    "a product with a matrix": lambda: Module(
        lambda m, x: m.a1(x.flatten(1)) @ m.fc.weight.T, a1=q(), fc=lambda: nn.Linear(128, 3)
    ),
    "part of the dimensions flattened": lambda: Module(
        lambda m, x: m.a2(m.c2(m.a1(m.c1(x)).flatten(2))),
        **(TWO | {"c2": lambda: nn.Conv1d(4, 6, 5, stride=2, padding=1, groups=2)}),
    ),
    "one dimension pooled": lambda: Module(
        lambda m, x: m.a2(nn.functional.avg_pool1d(m.a1(m.c1(x)).flatten(2), 4, 3)).mean(2), **TWO
    ),
    "two outputs": lambda: Module(
        lambda m, x: (lambda y: {"early": y, "late": [m.c2(y)]})(m.a1(m.c1(x))), **TWO
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operations(tmp_path, case):
    """Cell by cell in float64, by the runner and by the network read back."""
    model, x = CASES[case]().double().eval(), IMAGES.double() - 0.5
    network = convert(model, x, time_steps=4, members=2)
    write_nir(network, tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")  # with its type check
    want, outputs = torch_run(network, x, 4)
    keys = keys_of(graph)
    have = NirRunner(tmp_path / "net.nir").run(x.numpy(), 4, record=keys.values())
    assert set(keys) == set(want) and keys
    for name, key in keys.items():
        assert np.array_equal(have[key], want[name]) and len(np.unique(want[name])) > 1, name
    again, decoded = torch_run(read_nir(tmp_path / "net.nir"), x, 4)
    for name in want:
        assert np.array_equal(again[name], want[name]), name
    if case == "two outputs":
        assert list(outputs) == list(decoded) and isinstance(decoded["late"], list)
        pairs = [("output_0", "early"), ("output_1", "late")]
        outputs = {k: v[0] if isinstance(v, list) else v for k, v in outputs.items()}
        decoded = {k: v[0] if isinstance(v, list) else v for k, v in decoded.items()}
    else:
        pairs, outputs, decoded = [("output", 0)], {0: outputs}, {0: decoded}
    for key, name in pairs:
        np.testing.assert_allclose(have[key].mean(0), outputs[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(decoded[name], outputs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [name for name in CASES if name != "two outputs"])
def test_platform_files_compute_the_same_under_soft_reset(tmp_path, case):
    """With the reset and the ties that are meant, and no initial potential: all amplitudes are in
    the weights, so nothing but the listed losses is lost."""
    model, x = CASES[case]().eval(), IMAGES - 0.5
    network = convert(model, x, time_steps=8, members=1)
    network = network.replace(nodes=tuple(without_charge(node) for node in network.nodes))
    report = write_nir(network, tmp_path / "net.nir", mode="platform")
    assert not any("v_init" in loss for loss in report.losses)
    runner = NirRunner(tmp_path / "net.nir", ties="fire", reset="subtract")
    have = runner.run(x.numpy(), 8)["output"].mean(0)
    _, outputs = torch_run(network, x, 8)
    off = np.abs(have - outputs.numpy()) > 1e-4
    assert off.mean() <= 0.01, "beyond a spike moved by rounding"


def without_charge(node):
    return dataclasses.replace(node, initial_charge=0.0) if node.kind == "group" else node


# -- platform -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["nir", "legacy", "lif"])
def test_platform_layout(tmp_path, dialect):
    network = conv_network(members=1, time_steps=4)
    report = write_nir(network, tmp_path / "net.nir", mode="platform", dialect=dialect)
    lost = "\n".join(report.losses)
    for part in ("reset subtracts", "v_init", "at v = v_threshold", "amplitude of spikes"):
        assert part in lost
    assert "'1.qcfs', '4.qcfs', '7.qcfs'" in lost and "4 losses" in str(report)
    graph = nir.read(tmp_path / "net.nir")
    assert graph.metadata["losses"] == lost
    kind = nir.LIF if dialect == "lif" else nir.IF
    neurons = {k: node for k, node in graph.nodes.items() if isinstance(node, kind)}
    assert [node.v_threshold.shape for node in neurons.values()] == [(4, 8, 8), (6, 2, 2), (10,)]
    meant = json.loads(graph.metadata["neurons"])
    for (key, node), source in zip(neurons.items(), network.neurons, strict=True):
        assert np.unique(node.v_threshold) == np.float32(source.v_threshold)
        assert meant[key]["reset"] == "subtract" and meant[key]["amplitude"] == source.v_threshold
        assert meant[key]["v_init"] == source.v_threshold / 2
        if dialect != "legacy":
            assert node.metadata["reset"] == "subtract" and node.metadata["name"] == source.name
    import h5py

    with h5py.File(tmp_path / "net.nir") as file:
        written = [node for node in file["node/nodes"].values() if "v_threshold" in node]
        assert all(("v_reset" in node) == (dialect != "legacy") for node in written)
        assert all(("metadata" in node) == (dialect != "legacy") for node in written)


def test_pools_as_convolutions(tmp_path):
    network = conv_network(members=1, time_steps=4)
    write_nir(network, tmp_path / "pool.nir", mode="platform")
    write_nir(network, tmp_path / "conv.nir", mode="platform", pooling="conv")
    kinds = [type(node).__name__ for node in nir.read(tmp_path / "conv.nir").nodes.values()]
    assert "AvgPool2d" not in kinds and kinds.count("Conv2d") == 3
    pool, conv = (
        NirRunner(tmp_path / f"{name}.nir").run(IMAGES.numpy(), 4)["output"]
        for name in ("pool", "conv")
    )
    np.testing.assert_allclose(pool, conv, rtol=0, atol=1e-5)
    assert len(np.unique(pool)) > 20


def test_strict_refuses_losses(tmp_path):
    write_nir(conv_network(), tmp_path / "net.nir", strict=True)
    with pytest.raises(sg.FormatError, match="nothing may be lost(.|\n)*reset subtracts"):
        write_nir(conv_network(members=1), tmp_path / "p.nir", mode="platform", strict=True)
    assert not (tmp_path / "p.nir").exists()


def test_float64_is_told_where_it_is_rounded():
    network = convert(conv_model().double(), IMAGES.double(), time_steps=4, members=1)
    _, report = to_graph(network, mode="platform")
    assert any("float64 to float32" in loss for loss in report.losses)


# -- what is refused ------------------------------------------------------------------------------


def refused(network, tmp_path, *parts, **options):
    with pytest.raises(sg.FormatError) as caught:
        write_nir(network, tmp_path / "net.nir", **options)
    for part in parts:
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_signgd_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    network = sg.convert(model, torch.rand(8, 4), time_steps=4)
    refused(network, tmp_path, "'1'", "signgd gelu", 'method="group"', 'reader="norse"', "HDF5")


def test_subgradient_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    network = sg.convert(model, torch.rand(8, 4), method="subgradient", time_steps=4)
    refused(network, tmp_path, "'1'", "subgradient relu", 'method="group"')


def test_max_pooling_and_products_are_refused_all_at_once(tmp_path):
    """Mixed methods: each signGD neuron is named, none hides another."""

    def forward(m, x):
        pooled = nn.functional.max_pool2d(m.a1(m.c1(x)), 2)
        y = m.a2(m.c1(x)).flatten(2)
        return pooled, (y @ y.transpose(1, 2)) @ y  # attention's products, without its softmax

    model = Module(forward, **TWO).eval()
    method = {"": "signgd", "a1": "group", "a2": "group"}
    network = sg.convert(model, IMAGES, method=method, time_steps=2, members=2)
    kinds = {node.name: node.kind for node in network.nodes}
    assert "group" in kinds.values()
    refused(network, tmp_path, "(average)", "running mean inside")


def test_max_pooling_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)).eval()
    network = sg.convert(model, IMAGES, time_steps=2)
    refused(network, tmp_path, "(signgd max_pool)", "average")


def test_attention_is_refused(tmp_path):
    """The square, and the product of queries and keys."""
    model = nn.Sequential(nn.Flatten(), Module(lambda m, x: x * x)).eval()
    network = sg.convert(model, IMAGES, time_steps=2)
    refused(network, tmp_path, "(signgd square)")
    tokens = Module(lambda m, x: torch.matmul(x, x.transpose(1, 2))).eval()
    network = sg.convert(tokens, IMAGES[:, 0], time_steps=2)
    refused(network, tmp_path, "NIR cannot express", "(permute)")


REFUSED = {
    "cat": (lambda m, x: torch.cat([m.a1(m.c1(x)), m.a2(m.c1(x))], 1), "(cat)"),
    "slice": (lambda m, x: m.a1(m.c1(x))[:, :2], "(slice)"),
    "upsample": (lambda m, x: nn.functional.interpolate(m.a1(m.c1(x)), scale_factor=2.0), "upsamp"),
    "permute": (lambda m, x: m.a1(m.c1(x)).permute(0, 2, 3, 1), "channels first"),
    "expanded": (lambda m, x: m.a1(m.c1(x)).mean((2, 3), True).expand(-1, -1, 2, 2), "expand"),
    "added by broadcasting": (
        lambda m, x: m.a2(m.c1(x)) + m.a1(m.c1(x)).mean((2, 3), True), "equal shapes",
    ),
    "mean over channels": (lambda m, x: m.a1(m.c1(x)).mean(1), "pools over all those after"),
    "reshaped otherwise": (lambda m, x: m.a1(m.c1(x)).reshape(-1, 8, 32), "merges dimensions"),
    "adaptive, uneven": (
        lambda m, x: nn.functional.adaptive_avg_pool2d(m.a1(m.c1(x)), 3), "differ in size",
    ),
    "ceil_mode": (
        lambda m, x: nn.functional.avg_pool2d(m.a1(m.c1(x)), 3, ceil_mode=True), "ceil_mode",
    ),
    "padding not counted": (
        lambda m, x: nn.functional.avg_pool2d(m.a1(m.c1(x)), 2, 2, 1, count_include_pad=False),
        "count_include_pad",
    ),
    "linear over the last of several": (
        lambda m, x: nn.functional.linear(m.a1(m.c1(x)), torch.ones(3, 8)), "one dimension",
    ),
    "a matrix from the left": (lambda m, x: torch.ones(3, 8) @ m.a1(m.c1(x)), "nn.Linear"),
    "a bias for each pixel": (
        lambda m, x: m.a2(m.a1(m.c1(x)) + torch.arange(64.0).reshape(8, 8)), "within a channel",
    ),
    "kernel 2 x 3": (
        lambda m, x: nn.functional.conv2d(m.a1(m.c1(x)), torch.ones(2, 4, 2, 3)), "2 x 3",
    ),
    "batch folded away": (lambda m, x: m.a1(m.c1(x)).flatten(0, 1), "batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_operations_that_nir_lacks(tmp_path, case):
    forward, message = REFUSED[case]
    network = convert(Module(forward, **TWO).eval(), IMAGES, time_steps=1)
    refused(network, tmp_path, "NIR cannot express this network", message)


def test_three_dimensions_are_refused(tmp_path):
    model = nn.Sequential(nn.Conv3d(2, 3, 3), sg.QCFS(4, 0.5)).eval()
    network = convert(model, torch.rand(4, 2, 5, 5, 5), time_steps=1)
    refused(network, tmp_path, "'0' (conv)", "one or two dimensions")


def test_every_reason_is_told_at_once(tmp_path):
    model = Module(
        lambda m, x: (m.a1(m.c1(x))[:, :1], torch.cat([m.a2(m.c1(x)), x], 1)), **TWO
    ).eval()
    refused(convert(model, IMAGES, time_steps=1), tmp_path, "(slice)", "(cat)")


def changed(network, name, **changes):
    """The network with one node's fields, or with another node in its place."""
    nodes = [
        changes.get("node", None) or dataclasses.replace(n, **changes) if n.name == name else n
        for n in network.nodes
    ]
    return network.replace(nodes=tuple(nodes))


def test_functions_and_constants_are_refused(tmp_path):
    network = conv_network()
    neuron = network["4.qcfs"]
    plain = Function(
        name=neuron.name, inputs=neuron.inputs, shape=neuron.shape, function=neuron.function
    )
    refused(changed(network, "4.qcfs", node=plain), tmp_path, "'4.qcfs' (function qcfs)", "Replace")
    constant = Constant(name="3", shape=network["3"].shape, value=torch.ones(1, 6, 2, 2))
    refused(changed(network, "3", node=constant), tmp_path, "'3' (constant)", "Make it the bias")


@pytest.mark.parametrize(("mode", "members"), [("exact", 2), ("platform", 1)])
def test_thresholds_below_float32_are_refused(tmp_path, mode, members):
    network = changed(conv_network(members=members), "4.qcfs", v_threshold=1e-60)
    refused(network, tmp_path, "'4.qcfs'", "not a positive float32", mode=mode)


def test_what_overflows_at_an_output_is_refused(tmp_path):
    """The amplitude of the last spikes, written as a convolution of its own."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), sg.QCFS(4, 0.5)).eval()
    network = changed(convert(model, IMAGES, time_steps=4, members=1), "1.qcfs", v_threshold=1e30)
    write_nir(network, tmp_path / "net.nir", mode="platform")
    (tmp_path / "net.nir").unlink()
    network = changed(network, "1.qcfs", v_threshold=1e60)
    refused(network, tmp_path, "'1.qcfs'", "float32", mode="platform")


def test_groups_that_grow_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nir_graph, "LARGEST_WEIGHT", 1000)
    network = convert(CASES["depth-wise"]().eval(), IMAGES, time_steps=2)
    write_nir(network, tmp_path / "net.nir")
    (tmp_path / "net.nir").unlink()
    monkeypatch.setattr(nir_graph, "LARGEST_WEIGHT", 100)
    refused(network, tmp_path, "'c2' (conv)", "zeros between its 4 groups it has 144")


def test_input_coding_is_refused(tmp_path):
    network = convert(conv_model(), IMAGES / 2, time_steps=4, input_coding="poisson")
    refused(network, tmp_path, "'input.encode' (encoder)", 'input_coding="exact"')


def test_members_are_refused_on_platforms(tmp_path):
    refused(conv_network(), tmp_path, "'1.qcfs'", "2 members", "members=1", mode="platform")


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    network = conv_network()
    path = tmp_path / "net.nir"
    write_nir(network, path)
    before = path.read_bytes()
    for value in (float("nan"), float("inf")):
        network["3"].tensors["weight"][0, 0, 0, 0] = value
        with pytest.raises(sg.FormatError, match="'3' .conv.: weight holds NaN or infinity"):
            write_nir(network, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.nir"]


def test_float64_beyond_float32_is_refused(tmp_path):
    network = convert(conv_model().double(), IMAGES.double(), time_steps=4, members=1)
    network["3"].tensors["weight"][0, 0, 0, 0] = 1e300
    refused(network, tmp_path, "'3'", "infinity as float32", mode="platform")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode is one of exact, platform"),
        ({"dialect": "old", "mode": "platform"}, "dialect is one of"),
        ({"pooling": "max"}, "pooling is one of"),
        ({"dialect": "lif"}, 'mode "exact" has none'),
        ({"time_steps": 0}, "at least 1"),
        ({"time_steps": 2.5}, "an integer"),
    ],
)
def test_options(tmp_path, options, message):
    refused(conv_network(), tmp_path, message, **options)


def test_only_networks_are_written(tmp_path):
    refused(sg.build(conv_network()), tmp_path, "module.network")


def test_unwritable_paths(tmp_path):
    network = conv_network()
    with pytest.raises(sg.FormatError, match="folder .* does not exist"):
        write_nir(network, tmp_path / "absent" / "net.nir")
    with pytest.raises(sg.FormatError, match="it is a folder"):
        write_nir(network, tmp_path)
    with pytest.raises(sg.FormatError, match="cannot write"):
        write_nir(network, "/proc/net.nir")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(sg.FormatError, match="No space left"):
        write_nir(conv_network(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.nir"]


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    before = path.read_bytes()
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from spikingjelly_signgd.exporters.nir import read_nir, write_nir
network = read_nir({str(path)!r}, time_steps=9)
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
write_nir(network, {str(path)!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert path.read_bytes() == before
    assert len(os.listdir(tmp_path)) == 2, "it was killed in the middle"


def test_without_nir(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    (tmp_path / "net.nir").write_bytes(b"")
    for call in (
        lambda: write_nir(conv_network(), tmp_path / "net.nir"),
        lambda: read_nir(tmp_path / "net.nir"),
        lambda: NirRunner(tmp_path / "net.nir"),
    ):
        with pytest.raises(
            sg.BackendUnavailable, match=r"pip install 'spikingjelly-signgd\[nir\]'"
        ):
            call()


# -- the reader -----------------------------------------------------------------------------------

GROUP = GroupNeuronParameters(3, 0.7)


def subgraph(change=None, parameters=GROUP, rename=None, order=None):
    """The nodes and edges of a group neuron, changed, as a graph without metadata."""
    graph = group_subgraph(nir, (2, 3), parameters, np.float32, {})
    nodes, edges = dict(graph.nodes), list(graph.edges)
    if change is not None:
        change(nodes, edges)
    names = {name: f"{rename}{i}" if rename else name for i, name in enumerate(nodes)}
    nodes = {names[name]: node for name, node in nodes.items()}
    edges = [(names[a], names[b]) for a, b in edges]
    if order is not None:
        random.Random(order).shuffle(edges)
        nodes = dict(sorted(nodes.items(), key=lambda item: hash((order, item[0]))))
    return nir.NIRGraph(nodes, edges, type_check=False)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("parameters", [GROUP, GroupNeuronParameters(1, 1.3, 0.0)])
def test_neurons_are_recognised_by_structure(parameters, order):
    found, shape = group_parameters("n", subgraph(None, parameters, "x", order))
    assert shape == (2, 3) and found.members == parameters.members
    assert found.theta == pytest.approx(parameters.theta, rel=1e-7)
    assert found.initial_charge == pytest.approx(parameters.initial_charge, abs=1e-6)
    have, want = (group_thresholds(p, np.float32) for p in (found, parameters))
    assert np.array_equal(have, want)


def _scale_by(name, factor):
    def change(nodes, edges):
        nodes[name] = nir.Scale(nodes[name].scale * np.float32(factor))

    return change


def _threshold(value):
    def change(nodes, edges):
        array = nodes["member_002"].threshold.copy()
        array[value] += np.float32(0.05)
        nodes["member_002"] = nir.Threshold(array)

    return change


NOT_GROUPS = {
    "another inhibition": (_scale_by("scale_inhibit", 0.5), "subtracts from"),
    "excitation": (_scale_by("scale_inhibit", -1.0), "subtracts from"),
    "an edge less": (lambda nodes, edges: edges.pop(), "edges differ"),
    "an edge more": (lambda nodes, edges: edges.append(("input", "output")), "edges differ"),
    "an edge twice": (lambda nodes, edges: edges.append(edges[0]), "edges differ"),
    "no feedback": (lambda nodes, edges: edges.pop(0), "edges differ"),
    "uneven thresholds": (_threshold(slice(None)), "spaced by theta"),
    "a threshold of its own": (_threshold((0, 0)), "spaced by theta"),
    "a node more": (
        lambda nodes, edges: nodes.update(more=nir.Scale(np.ones((2, 3), np.float32))), "Scale",
    ),
    "a Delay": (
        lambda nodes, edges: nodes.update(more=nir.Delay(np.ones((2, 3), np.float32))), "Delay",
    ),
    "leaky resistance": (
        lambda nodes, edges: nodes.update(integrator=nir.I(np.full((2, 3), 0.9, np.float32))),
        "r is not 1",
    ),
    "no members": (
        lambda nodes, edges: [nodes.pop(f"member_00{k}") for k in (1, 2, 3)] and edges.clear(),
        "0 Threshold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_GROUPS)
def test_other_subgraphs_are_named(case):
    change, message = NOT_GROUPS[case]
    with pytest.raises(sg.FormatError, match=message) as caught:
        group_parameters("hidden", subgraph(change))
    assert "'hidden'" in str(caught.value) and "NirRunner" in str(caught.value)


def test_metadata_that_contradict_the_arrays_are_not_believed():
    graph = subgraph()
    graph.metadata = {"v_threshold": 9.0, "initial_charge": 0.1, "members": 7, "function": "relu",
                      "arguments": "nonsense"}  # fmt: skip
    found, _ = group_parameters("n", graph)
    assert found.members == 3 and found.v_threshold == pytest.approx(0.7)


def single(node, shape=(3,), edges=None, **more):
    nodes = {"input": nir.Input(np.array(shape)), "node": node, **more}
    nodes["output"] = nir.Output(np.array(shape))
    edges = edges or [("input", "node"), ("node", "output")]
    return nir.NIRGraph(nodes, edges, type_check=False)


ONE = np.ones(3, np.float32)
FOREIGN = {
    "IF": (single(nir.IF(ONE, ONE)), "'node' is a nir.IF.*subtract their threshold"),
    "LIF": (single(nir.LIF(ONE, ONE, ONE, ONE)), "'node' is a nir.LIF"),
    "Delay": (single(nir.Delay(ONE)), "'node' is a nir.Delay"),
    "Threshold alone": (single(nir.Threshold(ONE)), "'node' is a nir.Threshold"),
    "a cycle": (
        single(nir.Scale(ONE), edges=[("input", "node"), ("node", "node"), ("node", "output")]),
        "cycle",
    ),
    "an edge to nowhere": (
        single(nir.Scale(ONE), edges=[("input", "node"), ("node", "absent")]), "'absent'",
    ),
    "an orphan": (single(nir.Scale(ONE), other=nir.Scale(ONE)), "'other' has no input"),
    "another shape": (single(nir.Scale(np.ones(4, np.float32))), "'node' .nir.Scale."),
    "NaN": (single(nir.Scale(ONE * np.nan)), "'node' .nir.Scale.*NaN"),
    "a matrix that does not fit": (
        single(nir.Linear(np.ones((3, 4), np.float32))), "'node' .nir.Linear. does not fit",
    ),
    "a bank of matrices": (single(nir.Linear(np.ones((2, 3, 3), np.float32))), "only matrices"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_network_has_no_equal_for_is_named(case):
    graph, message = FOREIGN[case]
    with pytest.raises(sg.FormatError, match=message):
        to_network(graph, time_steps=4)


def test_foreign_linear_graphs_are_read():
    """Several edges add up in their order; names are those of the file."""
    graph = single(
        nir.Affine(np.eye(3, dtype=np.float32), ONE), scale=nir.Scale(2 * ONE),
        edges=[("input", "node"), ("input", "scale"), ("node", "output"), ("scale", "output")],
    )  # fmt: skip
    with pytest.raises(sg.FormatError, match="time_steps=..."):
        to_network(graph)
    network = to_network(graph, time_steps=1)
    assert [node.name for node in network.nodes] == ["input", "node", "scale", "output.sum"]
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(sg.build(network).ann(x), 3 * x + 1)


def test_files_that_are_none(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    with pytest.raises(FileNotFoundError):
        read_nir(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(sg.FormatError, match="not a whole NIR file"):
        read_nir(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(sg.FormatError, match="no group /node"):
        read_nir(path)
    nir.write(path, nir.Scale(ONE))
    with pytest.raises(sg.FormatError, match="single node"):
        read_nir(path)


def test_seal(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    with open(path, "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(sg.FormatError, match="is damaged: its bytes are not those"):
        read_nir(path)
    write_nir(conv_network(), path)
    with h5py.File(path, "r+") as file:  # changed on purpose
        del file["node/metadata/notes"]
    assert read_nir(path).names() == conv_network().names()


def test_unknown_types_are_named_where_nir_says_nothing(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    with h5py.File(path, "r+") as file:
        group = file["node/nodes/n02_1_qcfs/nodes/integrator"]
        del group["type"]
        group["type"] = "Dendrite"
    with pytest.raises(AssertionError):
        nir.read(path)
    with pytest.raises(sg.FormatError, match="'n02_1_qcfs/integrator' .* type 'Dendrite'"):
        read_nir(path)


def test_huge_arrays_are_refused_before_they_are_read(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n01_0/weight"]
        file.create_dataset("node/nodes/n01_0/weight", (2**20, 2**20), "f4", chunks=(1, 1024))
    with pytest.raises(sg.FormatError, match="declares arrays of more"):
        read_nir(path)


def test_groups_in_a_circle_are_refused(tmp_path):
    import h5py

    path = tmp_path / "net.nir"
    write_nir(conv_network(), path)
    with h5py.File(path, "r+") as file:
        file["node/nodes/n02_1_qcfs/nodes/again"] = file["node/nodes/n02_1_qcfs"]
    started = time.monotonic()
    with pytest.raises(sg.FormatError, match="without an end"):
        read_nir(path)
    assert time.monotonic() - started < 1


def test_damaged_files_are_read_or_refused(tmp_path):
    """Bytes at random places, in a process of its own: no crash, no other error, no hang.

    Those that are read were overwritten by the byte that was there.
    """
    write_nir(conv_network(), tmp_path / "net.nir")
    script = f"""
import random, resource, sys, time, warnings
sys.path[:0] = {sys.path!r}
import spikingjelly_signgd as sg
from spikingjelly_signgd.exporters.nir import read_nir
whole, path = open({str(tmp_path / "net.nir")!r}, "rb").read(), {str(tmp_path / "damaged.nir")!r}
read_nir({str(tmp_path / "net.nir")!r})
warnings.simplefilter("ignore")
chance, seen, longest = random.Random(0), [0, 0], 0.0
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(1000):
    data = bytearray(whole)
    for _ in range(chance.choice((1, 4, 32))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)):]
    open(path, "wb").write(data)
    started = time.monotonic()
    try:
        read_nir(path)
        seen[0] += 1
    except sg.FormatError:
        seen[1] += 1
    longest = max(longest, time.monotonic() - started)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
print(*seen, round(longest, 2), more // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, refused_, longest, megabytes = map(float, done.stdout.split())
    assert refused_ >= 980 and longest < 1 and megabytes < 100, done.stdout


def test_structurally_wrong_files_are_read_or_refused(tmp_path):
    """Parts removed, of another type or size, edges that lead elsewhere: h5py reads all of it."""
    import h5py

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), sg.QCFS(4, 0.5), nn.Flatten(), nn.Linear(108, 2))
    x = IMAGES.numpy()
    write_nir(convert(model.eval(), IMAGES, time_steps=2), tmp_path / "whole.nir")
    chance, path, seen = random.Random(0), tmp_path / "wrong.nir", {"run": 0, "refused": 0}
    for _ in range(150):
        path.write_bytes((tmp_path / "whole.nir").read_bytes())
        with h5py.File(path, "r+") as file:
            names = []
            file["node"].visit(names.append)
            name = f"node/{chance.choice(names)}"
            before = file[name][()] if isinstance(file[name], h5py.Dataset) else None
            del file[name]
            kind = chance.choice(
                ("absent", "text", "number", "list", "huge", "negative", "shuffled")
            )
            if kind == "text":
                file[name] = chance.choice(("Scale", "LIF", "IF", "", "absent"))
            elif kind == "number":
                file[name] = chance.choice((0, 1, 7, 2**40, float("nan")))
            elif kind == "list":
                file[name] = np.arange(chance.choice((0, 1, 3, 5)), dtype="f4")
            elif kind == "huge":
                file[name] = np.array(chance.choice(([2**40] * 2, [50_000] * 3)))
            elif kind == "negative" and np.asarray(before).dtype.kind in "iuf":
                file[name] = -np.asarray(before, float)
            elif kind == "shuffled" and name.endswith("edges"):
                file[name] = np.roll(before, 1, axis=chance.choice((0, 1)))
        started = time.monotonic()
        try:
            read_nir(path)
            runner = NirRunner(path)
            seen["run"] += 1
            if runner.nodes["input"].input_type["input"].tolist() == [2, 8, 8]:
                runner.run(x, 2)
        except (sg.FormatError, sg.InputError):
            seen["refused"] += 1
        assert time.monotonic() - started < 2, (name, kind)
    assert min(seen.values()) > 10


# -- the runner -----------------------------------------------------------------------------------

PROBE = [0.25] * 9 + [0.75, 1.5, 0.25, 0.25, 0.5]  # steps at which readers of a nir.IF differ


@pytest.mark.parametrize(
    ("ties", "reset", "spikes"),
    [
        ("strict", "v_reset", "00001000011000"),
        ("fire", "v_reset", "00010001011001"),
        ("fire", "subtract", "00010001011010"),
        ("strict", "subtract", "00001000101101"),
    ],
)
def test_integrate_and_fire(ties, reset, spikes):
    """Worked out by hand: threshold 1, v += x, then the choice of each kind of reader."""
    one = np.ones(1, np.float32)
    x_seq = np.array(PROBE, np.float32).reshape(-1, 1, 1)
    for node in (nir.IF(one, one), nir.LIF(1e5 * one, 1e9 * one, 0 * one, one)):
        graph = single(node, (1,))
        graph.metadata = {"dt": 1e-4 if isinstance(node, nir.LIF) else 1.0}
        runner = NirRunner(graph, ties=ties, reset=reset)
        out = runner.run(x_seq, len(x_seq), sequence=True)["output"]
        assert "".join(str(int(z)) for z in out.ravel()) == spikes


def test_leaky_integrator():
    """v += dt / tau ((v_leak - v) + r x), three steps by hand."""
    node = nir.LI(2 * ONE, 3 * ONE, 1 * ONE)
    out = NirRunner(single(node), dt=0.5).run(np.ones((1, 3), np.float32), 3)["output"]
    assert out[:, 0, 0].tolist() == [1.0, 1.75, 2.3125]


@pytest.mark.parametrize("spatial", [1, 2])
def test_convolutions_are_torchs(spatial):
    random_state = random.Random(spatial)
    for trial in range(30):
        groups = random_state.choice((1, 2, 4))
        stride, padding, dilation, kernel = (
            [random_state.randint(low, 3) for _ in range(spatial)] for low in (1, 0, 1, 1)
        )
        torch.manual_seed(trial)
        x = torch.randn(3, 4, *[11, 9][:spatial], dtype=torch.float64)
        weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64)
        bias = torch.randn(8, dtype=torch.float64)
        conv = (nn.functional.conv1d, nn.functional.conv2d)[spatial - 1]
        want = conv(x, weight, bias, stride, padding, dilation, groups).numpy()
        have = convolve(
            x.numpy(), weight.numpy(), bias.numpy(), stride, [(p, p) for p in padding], dilation,
            groups,
        )  # fmt: skip
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words(padding):
    weight = np.random.default_rng(0).normal(size=(2, 2, 4, 3))
    node = nir.Conv2d((6, 5), weight, 1, padding, (1, 2), 1, np.zeros(2))
    graph = nir.NIRGraph(
        {
            "input": nir.Input(np.array([2, 6, 5])),
            "node": node,
            "output": nir.Output(np.array([2])),
        },
        [("input", "node"), ("node", "output")],
        type_check=False,
    )
    x = np.random.default_rng(1).normal(size=(2, 2, 6, 5))
    have = NirRunner(graph).run(x, 1)["output"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch pads an even kernel by a copy, and says so
        want = nn.functional.conv2d(
            torch.from_numpy(x), torch.from_numpy(weight), padding=padding, dilation=(1, 2)
        )
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)


def test_a_feedback_edge_carries_the_step_before():
    """x + half of what was sent before: 1, 1.5, 1.75. Inner graphs are passed through."""
    one, half = np.ones(1, np.float32), np.full(1, 0.5, np.float32)
    inner = single(nir.Scale(half), (1,))
    graph = single(
        nir.Scale(one), (1,), back=inner,
        edges=[("input", "node"), ("node", "back"), ("back", "node"), ("node", "output")],
    )  # fmt: skip
    runner = NirRunner(graph)
    kept = runner.run(np.ones((1, 1), np.float32), 3, record=["back", "node"])
    assert kept["output"].ravel().tolist() == [1.0, 1.5, 1.75]
    assert kept["back"].ravel().tolist() == [0.5, 0.75, 0.875]
    with pytest.raises(KeyError, match="no node is called 'absent'"):
        runner.run(np.ones((1, 1), np.float32), 1, record=["absent"])


def test_loops_within_loops():
    """Each loop is cut where it is entered, the inner one within the outer."""
    one = np.ones(1, np.float32)
    nodes = {"input": nir.Input(np.array([1])), "output": nir.Output(np.array([1]))}
    nodes |= {name: nir.Scale(0.5 * one) for name in "abc"}
    edges = [("input", "a"), ("a", "b"), ("b", "c"), ("c", "b"), ("c", "a"), ("c", "output")]
    out = NirRunner(nir.NIRGraph(nodes, edges, type_check=False)).run(np.ones((1, 1)), 2)
    # c1 = 1/8; then a = (1 + c1) / 2, b = (a + c1) / 2, c = b / 2
    assert out["output"].ravel().tolist() == [0.125, (0.5 * 1.125 + 0.125) / 4]


def test_graphs_that_do_not_run_are_refused():
    two_ways = [("input", "a"), ("input", "b"), ("a", "b"), ("b", "a"), ("b", "output")]
    nodes = {"input": nir.Input(np.array([1])), "output": nir.Output(np.array([1]))}
    nodes |= {name: nir.Scale(np.ones(1, np.float32)) for name in "ab"}
    with pytest.raises(sg.FormatError, match="entered at 2 nodes"):
        NirRunner(nir.NIRGraph(nodes, two_ways, type_check=False))
    for node, message in (
        (nir.Delay(ONE), "'node' is a nir.Delay"),
        (nir.Scale(ONE * np.inf), "'node' holds NaN or infinity in scale"),
    ):
        with pytest.raises(sg.FormatError, match=message):
            NirRunner(single(node))
    with pytest.raises(sg.FormatError, match="'node' .nir.Scale. does not fit"):
        NirRunner(single(nir.Scale(np.ones(4)))).run(np.ones((1, 3)), 1)
    with pytest.raises(sg.InputError, match=r"the input is \[B, 3\]"):
        NirRunner(single(nir.Scale(ONE))).run(np.ones((1, 4)), 1)
    with pytest.raises(ValueError, match="ties is"):
        NirRunner(single(nir.Scale(ONE)), ties="maybe")


# -- the documentation ----------------------------------------------------------------------------


def test_documentation(tmp_path, monkeypatch, capsys):
    """The code of docs/nir.md runs, block after block, and says what stands there."""
    pytest.importorskip("nirtorch")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs/nir.md").read_text()
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(code, scope)
    np.testing.assert_allclose(scope["read_out"], scope["decoded"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scope["total"] / 2, scope["decoded"], rtol=0, atol=1e-4)
    hits = scope["decoded"].argmax(1) == scope["data"].test.labels[:100]
    assert hits.float().mean() > 0.9
    printed = capsys.readouterr().out
    for line in re.findall(r"```\n(NIR, mode .*?)```", text, flags=re.DOTALL)[0].splitlines():
        assert line in printed
    assert "mode exact, dialect nir: no losses" in printed
