"""Netx files: what is written, what the integer runner computes with it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import lava_digits
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data import digits
from networks import load_network
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import GroupNeuron
from spikingjelly_signgd.exporters.lava import chains as lava_lowering
from spikingjelly_signgd.exporters.lava import remote as lava_remote
from spikingjelly_signgd.exporters.lava import write_netx
from spikingjelly_signgd.exporters.lava.netx import (
    LARGEST_U,
    InputCoding,
    Netx,
    NetxLayer,
    exact,
    read_netx,
)
from spikingjelly_signgd.neurons.qcfs import QCFS

DATA = digits()
IMAGES, LABELS = DATA.test


@cache
def group_network(name: str, members: int, steps: int) -> sg.SpikingNetwork:
    return sg.convert(
        lava_digits.load(name),
        DATA.train.images[:64],
        method="group",
        members=members,
        time_steps=steps,
    )


def convert(model: nn.Module, x: Tensor, members: int = 2, steps: int = 2) -> sg.SpikingNetwork:
    return sg.convert(model.eval(), x, method="group", members=members, time_steps=steps)


def mlp(*sizes: int, levels: int = 4, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [QCFS(levels)] * (i > 0) + [nn.Linear(fan_in, fan_out, bias=bias)]
    return nn.Sequential(*layers)


# -- the runner against what was measured on Lava ---------------------------------------------


def by_hand(layers: list[NetxLayer], features: int, steps: int) -> Netx:
    coding = InputCoding(features, 0.0, 1.0, 1)
    return Netx("by hand", "group", steps, coding, tuple(layers), 1.0, {})


def soft(weight: Any, theta: int, charge: int, members: int = 1) -> NetxLayer:
    """A layer of group neurons as the format has it, each row repeated for its members."""
    weight = np.repeat(np.array(weight), members, axis=0)
    groups = len(weight) // members
    rec = np.kron(np.eye(groups, dtype=int), np.full((members, members), -theta))
    bias = np.tile(charge - theta * np.arange(members), groups)
    return NetxLayer("soft", weight, rec, bias, True, theta - 1, True, members, groups)


def readout(weight: Any) -> NetxLayer:
    weight = np.array(weight)
    bias = np.zeros(len(weight), dtype=int)
    return NetxLayer("out", weight, None, bias, False, 0, True, 1, len(weight))


def rows(*texts: str) -> np.ndarray:
    return np.array([[int(c) for c in text] for text in texts])


def test_soft_reset_as_lava_computes_it():
    layers = [
        soft([[-1, 12], [1, 7], [-4, 7]], 10, 5),
        soft([[7, 7, -9], [9, -2, 0]], 10, 5),
        readout([[2, -1], [-3, 4]]),
    ]
    run = by_hand(layers, 2, 8).run_spikes(rows("11011001", "00101111")[None])
    assert (run.spikes[0][0] == rows("00101111", "00101101", "00000101")).all()
    assert (run.spikes[1][0] == rows("00101111", "00100111")).all()
    assert run.membrane.tolist() == [[6, 1]]


def test_group_neurons_as_lava_computes_them():
    layers = [
        soft([[14, 24], [15, -5]], 10, 5, members=3),
        soft([[11, 11, 11, -8, -8, -8]], 10, 5, members=3),
        readout([[1, 1, 1], [-2, -2, -2]]),
    ]
    netx = by_hand(layers, 2, 8)
    run = netx.run_spikes(rows("11100011", "01000100")[None])
    first, second = netx.counts(run)
    assert (first[0] == rows("13300212", "21100012")).all()
    assert (second[0] == rows("02300201")).all()
    assert (run.spikes[0][0, :3] == rows("11100111", "01100101", "01100000")).all()
    assert run.membrane.tolist() == [[8, -16]]


def test_u_wraps_beyond_24_bits():
    """-19,800 a step: false spikes from step 7 on, as measured on Lava."""
    weight = np.full((1, 100), -198)
    run = by_hand([soft(weight, 100, 50), readout([[1]])], 100, 9).run_spikes(
        np.ones((1, 100, 9), dtype=int)
    )
    assert run.spikes[0][0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("matrices", "same"),
    [
        (([[1, -1]],), True),
        (([[0, 0]],), False),
        (([[255, 0]],), True),
        (([[256, 0]],), False),
        (([[254, -256]],), True),
        (([[255, -1]],), False),
        (([[3, -257]],), False),
        (([[-255, -1]],), True),
        (([[-256, -1]],), False),
        (([[-129, 0]],), False),
        (([[-128, 0]],), False),
        (([[126, -64]], [[-64, 0]]), True),
        (([[32, -16]], [[-64, 0]]), False),  # V = 64, which no weight exceeds
        (([[127, -3]], [[-100, 0]]), True),
        (([[129, -3]], [[-100, 0]]), False),  # an odd value beyond 127
        (([[254, -2]], [[-254, 0]]), True),
        (([[254, -2]], [[-256, 0]]), False),
    ],
)
def test_exact(matrices, same):
    assert exact(*(np.array(m) for m in matrices)) == same


# -- lowering ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize(("members", "steps"), [(4, 1), (2, 2), (1, 4)])
def test_unrolled_maps_are_the_network(name, members, steps):
    model = lava_digits.load(name).double()
    x = IMAGES[:50].double()
    network = sg.convert(
        model, DATA.train.images[:64].double(), method="group", members=members, time_steps=steps
    )
    maps = lava_lowering.affine_maps(network, GroupNeuron, 2**20)
    have = lava_lowering.float_outputs(maps, x.flatten(1).numpy(), steps)
    want = sg.run(sg.build(network, "spikingjelly"), x, steps)[steps]
    # an input on a threshold may round to the other side: single samples
    error = np.abs(have - want.numpy()).max(1)
    assert np.median(error) < 1e-12 and (error < 1e-9).mean() >= 0.96


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("profile", "members", "steps"),
    [("group", 4, 1), ("group", 2, 2), ("group-graded", 2, 2), ("if-soft", 1, 4)],
)
def test_file_is_the_lowered_network(name, profile, members, steps, tmp_path, monkeypatch):
    """Spikes and outputs of the file equal the integer recurrence without delays and relays."""
    lowered = []
    original = lava_lowering.quantise

    def keep(*args: Any) -> Any:
        lowered.append((args, original(*args)))
        return lowered[-1][1]

    monkeypatch.setattr("spikingjelly_signgd.exporters.lava.writer.quantise", keep)
    write_netx(
        group_network(name, members, steps),
        tmp_path / "a.net",
        profile=profile,
        input_levels=16,
        input_range=(0, 1),
        calibration=DATA.train.images[:64],
    )
    (_, layers), *_ = lowered
    netx = read_netx(tmp_path / "a.net")
    x = IMAGES[:64].numpy()
    run = netx.run(x)
    p = (x.reshape(64, -1) * 16).astype(int)
    planes = np.concatenate([p >> b & 1 for b in range(5)], axis=1)
    counts, sums = lava_lowering.integer_counts(layers, planes, steps)
    for have, want in zip(netx.counts(run), counts, strict=True):
        assert (have == want).all() and want.any()
    assert (run.membrane == sums).all()
    assert (netx.outputs(run.membrane) == sums / layers[-1].scale / steps).all()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_hard_reset_by_the_formula(name, tmp_path):
    """Every integer of the file through v <- 0 where v >= V, a layer at a time."""
    write_netx(
        group_network(name, 1, 4),
        tmp_path / "a.net",
        profile="if-hard",
        input_levels=16,
        calibration=DATA.train.images[:64],
    )
    netx = read_netx(tmp_path / "a.net")
    run = netx.run(IMAGES[:20].numpy())
    spikes = netx.encode(IMAGES[:20].numpy()).astype(int)
    for layer, have in zip(netx.layers, run.spikes, strict=False):
        assert layer.weight_rec is None and not layer.bias.any()
        v = np.zeros((20, len(layer.weight)), dtype=int)
        sent = []
        for t in range(4):
            v = v + spikes[:, :, t] @ layer.weight.T
            sent.append(v >= layer.threshold + 1)
            v[sent[-1]] = 0
        spikes = np.stack(sent, -1).astype(int)
        assert (have == spikes).all() and spikes.any()
    assert (run.membrane == spikes.sum(-1) @ netx.layers[-1].weight.T).all()


@pytest.mark.parametrize(
    ("profile", "members", "steps"), [("group", 4, 1), ("if-soft", 1, 4), ("group-graded", 4, 1)]
)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_accuracy(name, profile, members, steps, tmp_path):
    network = group_network(name, members, steps)
    report = write_netx(
        network,
        tmp_path / "a.net",
        profile=profile,
        input_levels=16,
        calibration=DATA.train.images,
        samples=(IMAGES, LABELS),
    )
    assert report.agreement is not None and report.agreement >= 0.985
    assert report.accuracy_float is not None and report.accuracy_integer is not None
    assert report.accuracy_integer >= report.accuracy_float - 0.01
    assert report.input_error == 0.0
    assert all(layer.weight_error < 0.035 for layer in report.layers)
    assert all(layer.spike_error in (0.0, None) for layer in report.layers)
    row = sg.evaluate(sg.build(network), [(IMAGES, LABELS)], steps)
    assert row.accuracy[0] == pytest.approx(report.accuracy_float, abs=0.005)
    assert f"{100 * report.accuracy_integer:.2f} % in integers" in str(report)
    json.dumps(report.to_dict())


def test_hard_reset_is_reported_as_lossy(tmp_path):
    report = write_netx(
        group_network("mlp", 1, 4), tmp_path / "a.net", profile="if-hard", samples=IMAGES
    )
    errors = [layer.spike_error for layer in report.layers[:-1]]
    assert all(error is not None and error > 0.05 for error in errors)


@pytest.mark.parametrize("bits", [8, 5, 3, 2])
def test_fewer_bits_cost_more(bits, tmp_path):
    network = group_network("mlp", 4, 1)
    report = write_netx(
        network, tmp_path / "a.net", weight_bits=bits, input_levels=16, samples=IMAGES
    )
    layers = read_netx(tmp_path / "a.net").layers
    for layer, about in zip(layers, report.layers, strict=True):
        data = layer.weight[: layer.groups * layer.members, : 64 if about.theta else 256]
        assert (data % 2 ** (9 - bits) == 0).all()
        assert len(np.unique(data)) <= 2**bits - 1
    expected = {8: 0.03, 5: 0.2, 3: 0.8, 2: 1.0}[bits]
    assert expected / 6 < report.layers[1].weight_error < expected


def test_large_biases_come_in_several_channels(tmp_path):
    model = mlp(6, 5, 4, 3)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.bias.copy_(torch.linspace(-9, 9, len(layer.bias)))
    x = torch.rand(40, 6)
    network = convert(model, x)
    for profile in ("group", "group-graded"):
        report = write_netx(network, tmp_path / "a.net", profile=profile, samples=x)
        netx = read_netx(tmp_path / "a.net")
        assert report.coding.constants > 1
        assert max(abs(layer.weight).max() for layer in netx.layers) <= 254
        assert all(layer.bias_error < 0.01 for layer in report.layers)
        assert report.output_error is not None and report.output_error < 0.05


def test_no_bias_needs_no_constants(tmp_path):
    x = torch.rand(40, 6)
    report = write_netx(convert(mlp(6, 5, 3, bias=False), x), tmp_path / "a.net", samples=x)
    netx = read_netx(tmp_path / "a.net")
    assert report.coding.constants == 0 and netx.coding.channels == 6 * 8
    assert [len(layer.weight) for layer in netx.layers] == [10, 3]


def test_unbounded_readout_is_measured(tmp_path):
    """u that some input could bring beyond 24 bits needs inputs to be measured on."""
    network = group_network("conv", 4, 1)
    options = dict(input_levels=16, input_range=(0, 1))
    with pytest.raises(sg.FormatError, match=r"'9.mean': u of Lava has 24 bits.*calibration="):
        write_netx(network, tmp_path / "a.net", **options)
    report = write_netx(network, tmp_path / "a.net", **options, calibration=DATA.train.images)
    assert report.layers[-1].u_bound > LARGEST_U
    assert report.layers[-1].u_seen is not None and 2 * report.layers[-1].u_seen < LARGEST_U


def test_bound_holds(tmp_path):
    """Random input spikes, all on included, stay within what the report promises."""
    report = write_netx(
        group_network("mlp", 2, 2), tmp_path / "a.net", input_levels=16, input_range=(0, 1)
    )
    netx = read_netx(tmp_path / "a.net")
    spikes = np.random.default_rng(0).random((50, netx.coding.channels, 2)) < 0.5
    for s in (spikes, np.ones_like(spikes)):
        run = netx.run_spikes(s)
        for layer, low, high in zip(report.layers, run.lowest, run.highest, strict=True):
            assert max(-low, high) <= layer.u_bound


# -- input ------------------------------------------------------------------------------------


def test_bit_planes():
    coding = InputCoding(2, -1.0, 0.25, 10, constants=1, starts=1)
    assert coding.bits == 4 and coding.channels == 10
    spikes = coding.encode(np.array([[-1.0, 1.5], [0.13, 9.0], [-5.0, 0.25]]), 3)
    assert spikes.shape == (3, 10, 3)
    worth = 2 ** np.arange(4)
    p = np.einsum("nbjt,b->njt", spikes[:, :8].reshape(3, 4, 2, 3).astype(int), worth)
    assert (p == np.array([[0, 10], [5, 10], [0, 5]])[:, :, None]).all()
    assert (spikes[:, 8] == 1).all()
    assert (spikes[:, 9] == [1, 0, 0]).all()


@pytest.mark.parametrize("x", [np.zeros((3, 3)), np.zeros(2), np.full((1, 2), np.nan)])
def test_input_that_does_not_fit(x):
    with pytest.raises(sg.InputError):
        InputCoding(2, 0.0, 1.0, 1).encode(x, 1)


def test_spikes_that_do_not_fit():
    netx = by_hand([soft([[1, 2]], 10, 5), readout([[1]])], 2, 3)
    with pytest.raises(sg.InputError, match=r"\[B, 2, T\]"):
        netx.run_spikes(np.zeros((1, 3, 3), dtype=int))


# -- the file ---------------------------------------------------------------------------------


def test_layout(tmp_path):
    write_netx(group_network("mlp", 2, 2), tmp_path / "a.net", input_levels=16, samples=IMAGES[:10])
    with h5py.File(tmp_path / "a.net") as file:
        assert set(file) == {"layer"} and set(file["layer"]) == set("0123")
        assert file.attrs["profile"] == "group" and file.attrs["time_steps"] == 2
        assert file.attrs["steps"] == 5 and file.attrs["requires_process"] == ""
        assert json.loads(file.attrs["provenance"])["method"] == "group"
        for layer in file["layer"].values():
            assert layer["type"].dtype == "S10" and layer["type"].shape == (1,)
            assert layer["shape"].dtype == np.int64
            assert not {"delay", "messageBits"} & set(layer)
        assert set(file["layer/0"]) == {"type", "shape"}
        middle = file["layer/1"]
        assert middle["type"][0] == b"dense_rec" and middle["shape"][0] == 129
        for name, shape in (("weight", (129, 321)), ("weight_rec", (129, 129)), ("bias", (129,))):
            assert middle[name].dtype == np.int32 and middle[name].shape == shape
        assert middle["inFeatures"][()] == 321 and middle["outFeatures"][()] == 129
        neuron = {name: value[()] for name, value in middle["neuron"].items()}
        assert neuron.pop("type") == b"CUBA"
        theta = json.loads(file.attrs["layers"])[0]["theta"]
        assert neuron == {
            "iDecay": 0, "vDecay": 4096, "vThMant": theta - 1, "refDelay": 1, "gradedSpike": False
        }  # fmt: skip
        assert theta & (theta - 1) and theta % 2 == 0
        weights = middle["weight"][()], middle["weight_rec"][()]
        assert (weights[0] % 2 == 0).all() and exact(*weights)
        assert (weights[1][:2, :3] == [[-theta, -theta, 0]] * 2).all()
        assert middle["bias"][:3].tolist() == [theta // 2, -theta // 2, theta // 2]
        assert set(file["layer/3"]) == {"type", "shape", "weight", "inFeatures", "outFeatures"}


def test_graded_file_is_marked(tmp_path):
    write_netx(
        group_network("mlp", 4, 1), tmp_path / "a.net", profile="group-graded",
        samples=IMAGES[:10],
    )  # fmt: skip
    with h5py.File(tmp_path / "a.net") as file:
        assert file.attrs["requires_process"] == "GROUP"
        assert file["layer/1/neuron/type"][()] == b"GROUP"
        assert file["layer/1/neuron/members"][:64].tolist() == [4] * 64


def test_same_bytes_for_the_same_network(tmp_path):
    for name in ("a.net", "b.net"):
        write_netx(group_network("mlp", 4, 1), tmp_path / name, samples=IMAGES[:10])
    assert (tmp_path / "a.net").read_bytes() == (tmp_path / "b.net").read_bytes()


# -- refusals of the writer -------------------------------------------------------------------


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(8, 3)
        self.act1, self.act2 = QCFS(4), QCFS(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.first(x))
        return self.second(torch.cat([h, self.act2(h - 0.5)], 1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(4, 3)
        self.act = QCFS(4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(-1, (2, 3)).expand(-1, 2, 3)
        return self.out(self.act((rows @ rows.transpose(1, 2)).flatten(1)))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 4), nn.Linear(4, 3), QCFS(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(self.first(x))
        return self.second(h), h


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 8), nn.Linear(4, 3), QCFS(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.max_pool1d(self.act(self.first(x)).unsqueeze(1), 2).squeeze(1))


SAMPLE = torch.rand(16, 6, generator=torch.Generator().manual_seed(0))


def mixed(model: nn.Module, **methods: str) -> sg.SpikingNetwork:
    paths = {path.replace("_", "."): method for path, method in methods.items()}
    return sg.convert(model.eval(), SAMPLE, method={"": "signgd", **paths}, time_steps=4)


@cache
def small_network() -> sg.SpikingNetwork:
    torch.manual_seed(0)
    return convert(mlp(6, 4, 3), SAMPLE)


REFUSED: dict[str, tuple[Callable[[], sg.SpikingNetwork], str]] = {
    "residual": (
        lambda: sg.convert(
            load_network("resnet", "digits", 4), IMAGES[:8], method="group", time_steps=4
        ),
        r"is a residual sum of .*one chain of layers",
    ),
    "concatenation": (
        lambda: convert(Concatenation(), SAMPLE), r"is a concatenation of .*one chain",
    ),
    "attention": (lambda: mixed(Attention(), act="group"), r"is a \w+ of .*one chain"),
    "two outputs": (lambda: convert(TwoOutputs(), SAMPLE), r"netx has one output.*one tensor"),
    "max pooling": (
        lambda: mixed(Pooled(), act="group"),
        r"a signGD neuron of max_pool.*train with average pooling",
    ),
    "signGD": (
        lambda: sg.convert(nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)), SAMPLE),
        r"'1' is a signGD neuron of gelu.*custom Lava process",
    ),
    "subgradient": (
        lambda: sg.convert(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), SAMPLE, method="subgradient"
        ),
        r'subgradient neuron.*method="group"',
    ),
    "poisson": (
        lambda: sg.convert(
            mlp(6, 4, 3), SAMPLE, method="group", time_steps=4, input_coding="poisson"
        ),
        r'codes the input.*input_coding="exact"',
    ),
    "real coding": (
        lambda: sg.convert(
            mlp(6, 4, 3), SAMPLE, method="group", time_steps=4, input_coding="real"
        ),
        r'codes the input.*input_coding="exact"',
    ),
    "no neurons": (
        lambda: sg.convert(nn.Linear(6, 3), SAMPLE, method="group"), r"no spiking neurons"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    make, message = REFUSED[case]
    network = make()
    with pytest.raises(sg.FormatError, match=f"(?s){message}"):
        write_netx(network, tmp_path / "a.net", calibration=network_sample(network))
    assert not any(tmp_path.iterdir())


def network_sample(network: sg.SpikingNetwork) -> Tensor:
    return IMAGES[:8] if len(network.input.shape) == 4 else SAMPLE


def broken(network: sg.SpikingNetwork, name: str, **tensors: Tensor) -> sg.SpikingNetwork:
    """The network with other weights in one linear node."""
    nodes = tuple(
        dataclasses.replace(node, tensors={**node.tensors, **tensors})  # type: ignore[attr-defined, call-arg]
        if node.name == name
        else node
        for node in network.nodes
    )
    return network.replace(nodes=nodes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_not_finite(value, tensor, tmp_path):
    network = small_network()
    shape = (3, 4) if tensor == "weight" else (3,)
    filled = torch.zeros(shape)
    filled.view(-1)[1] = value
    with pytest.raises(sg.FormatError, match=r"hold NaN or infinity.*fix the model"):
        write_netx(broken(network, "2", **{tensor: filled}), tmp_path / "a.net", calibration=SAMPLE)
    assert not any(tmp_path.iterdir())


LIMITS: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "zero layer": ({"weight": torch.zeros(4, 6)}, {}, r"'1.qcfs': all weights are zero"),
    "outlying weight": (
        {"weight": torch.full((4, 6), 1e4)}, {}, r"no integer threshold .*larger v_threshold"
    ),
    "members": ({}, {"profile": "if-soft"}, r"has 2 members.*members=1"),
    "memory": ({}, {"max_weights": 10}, r"unrolled weights would be 4 x 6.*max_weights"),
    "feedback": ({}, {"max_weights": 24}, r"10 x 49 weights are more than max_weights = 24"),
    "u on the inputs": (
        {"bias": torch.full((4,), -40.0)}, {"time_steps": 2000}, r"u of Lava has 24 bits.*your inp"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
def test_limit(case, tmp_path):
    tensors, options, message = LIMITS[case]
    network = broken(small_network(), "0", **tensors)
    (tmp_path / "a.net").write_bytes(b"old")
    with pytest.raises(sg.FormatError, match=f"(?s){message}"):
        write_netx(network, tmp_path / "a.net", calibration=SAMPLE, **options)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a.net", b"old")]


def test_too_many_members(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    network = convert(model, SAMPLE, members=4000, steps=1)
    with pytest.raises(sg.FormatError, match="4000 members.*fewer members"):
        write_netx(network, tmp_path / "a.net", calibration=SAMPLE)
    with pytest.raises(sg.FormatError, match="more than a spike of 8 bits"):
        write_netx(network, tmp_path / "a.net", calibration=SAMPLE, profile="group-graded")


@pytest.mark.parametrize("charge", [-0.5, 1.0, 3.0])
def test_initial_charge(charge, tmp_path):
    network = small_network()
    nodes = tuple(
        dataclasses.replace(n, initial_charge=charge) if isinstance(n, GroupNeuron) else n
        for n in network.nodes
    )
    with pytest.raises(sg.FormatError, match="initial_charge"):
        write_netx(network.replace(nodes=nodes), tmp_path / "a.net", calibration=SAMPLE)


def test_mixed_batch(tmp_path):
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Linear(3, 4), nn.Linear(4, 2), QCFS(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(x.reshape(-1, 3))))

    network = convert(Mixing(), SAMPLE)
    with pytest.raises(sg.FormatError, match="mixes the samples of a batch"):
        write_netx(network, tmp_path / "a.net", calibration=SAMPLE)


def test_built_module_is_refused(tmp_path):
    snn = sg.build(small_network())
    with pytest.raises(sg.FormatError, match=r"module\.network"):
        write_netx(snn, tmp_path / "a.net", calibration=SAMPLE)


def test_missing_folder():
    with pytest.raises(sg.FormatError, match="does not exist"):
        write_netx(small_network(), "/no/such/folder/a.net", calibration=SAMPLE)


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "lif"},
        {"time_steps": 0},
        {"weight_bits": 9},
        {"weight_bits": 1},
        {"input_levels": 0},
        {"input_levels": 2.5},
        {"input_range": (1.0, 0.0)},
        {"input_range": (0.0, float("inf"))},
        {"calibration": None},
        {"calibration": SAMPLE * float("nan")},
        {"calibration": SAMPLE[0]},
        {"samples": (SAMPLE, torch.zeros(3))},
    ],
    ids=lambda options: "-".join(options),
)
def test_arguments(options, tmp_path):
    with pytest.raises(sg.InputError):
        write_netx(small_network(), tmp_path / "a.net", **{"calibration": SAMPLE, **options})
    assert not any(tmp_path.iterdir())


# -- refusals of the reader -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("netx") / "a.net"
    write_netx(small_network(), path, calibration=SAMPLE)
    return path.read_bytes()


def replace(name: str, data: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = data

    return change


def remove(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def huge(file: h5py.File) -> None:
    del file["layer/1/weight"]
    file.create_dataset("layer/1/weight", shape=(2**20, 2**20), dtype="i4", chunks=(1, 1024))


BAD_FILES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "another format": (attribute("format", "else"), "not a netx file of this package"),
    "newer": (attribute("format_version", "2.0"), "newer spikingjelly-signgd"),
    "unknown profile": (attribute("profile", "lif"), "unknown profile"),
    "no steps": (attribute("time_steps", 0), "cannot be"),
    "coding": (attribute("coding", '{"features": 6}'), "not a whole netx file"),
    "step size": (
        attribute("coding", '{"features": 6, "low": 0, "step": 0, "levels": 255}'),
        "not a whole netx file",
    ),
    "not JSON": (attribute("layers", "{"), "not a whole netx file"),
    "a gap": (lambda file: file.move("layer/2", "layer/3"), "has the layers"),
    "no input": (replace("layer/0/type", "dense"), "not the input"),
    "unknown layer": (replace("layer/1/type", "softmax"), "type 'softmax'"),
    "trailing blank": (replace("layer/1/type", "dense "), "type 'dense '"),
    "no weights": (remove("layer/1/weight"), "not a whole netx file"),
    "float weights": (replace("layer/2/weight", np.full((3, 10), 1.5)), "netx truncates"),
    "huge weights": (huge, "not a matrix"),
    "a vector": (replace("layer/1/weight", np.ones(9, dtype=int)), "not a matrix"),
    "widths": (replace("layer/2/weight", np.full((3, 8), [2] * 4 + [-2] * 4)), "arrive"),
    "no power of two": (
        lambda file: (replace("layer/1/weight_rec", -64 * np.eye(10, dtype=int))(file),
                      replace("layer/1/weight", 32 * np.ones((10, 49), dtype=int))(file))[0],
        "other weights",
    ),
    "weights beyond 8 bits": (replace("layer/2/weight", np.full((3, 10), 300)), "other weights"),
    "all zero": (replace("layer/2/weight", np.zeros((3, 10), dtype=int)), "other weights"),
    "feedback": (replace("layer/1/weight_rec", -6 * np.eye(3, dtype=int)), "weight_rec is"),
    "bias length": (replace("layer/1/bias", np.zeros(3, dtype=int)), "bias is not"),
    "bias of 14 bits": (replace("layer/1/bias", np.full(10, 5000)), "bias is not"),
    "float threshold": (replace("layer/1/neuron/vThMant", 49.0), "netx truncates"),
    "threshold": (replace("layer/1/neuron/vThMant", 131072), "outside 0..131071"),
    "leak": (replace("layer/1/neuron/iDecay", 128), "decays"),
    "neuron type": (replace("layer/1/neuron/type", "ALIF"), "ALIF"),
    "no neuron": (remove("layer/1/neuron"), "only the last layer"),
    "shape": (replace("layer/1/shape", np.array([7])), "shape is 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case, small, tmp_path):
    change, message = BAD_FILES[case]
    path = tmp_path / "a.net"
    path.write_bytes(small)
    read_netx(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(sg.FormatError, match=message):
        read_netx(path)


def test_files_that_are_not_hdf5(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_netx(tmp_path / "a.net")
    (tmp_path / "a.net").write_bytes(b"nothing")
    with pytest.raises(sg.FormatError, match="not a whole netx file"):
        read_netx(tmp_path / "a.net")


def test_damaged_bytes(small, tmp_path):
    """Read or refused, never anything else, and quickly."""
    random = np.random.default_rng(0)
    path = tmp_path / "a.net"
    begin = time.monotonic()
    for _ in range(300):
        damaged = bytearray(small)
        for i in random.integers(0, len(small), 3):
            damaged[i] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            netx = read_netx(path)
        except sg.FormatError:
            continue
        assert netx.layers
    assert time.monotonic() - begin < 60


def test_truncated(small, tmp_path):
    path = tmp_path / "a.net"
    for size in range(0, len(small) - 1, 997):
        path.write_bytes(small[:size])
        with pytest.raises(sg.FormatError):
            read_netx(path)


# -- Lava's environment -----------------------------------------------------------------------


def test_plugin_without_lava():
    with pytest.raises(sg.BackendUnavailable, match=r"lava-nc 0.10.0.*tests/lava/install.sh"):
        import spikingjelly_signgd.plugins.lava  # noqa: F401


def test_no_interpreter(monkeypatch, tmp_path):
    monkeypatch.delenv("LAVA_PYTHON", raising=False)
    assert not lava_remote.available()
    with pytest.raises(sg.BackendUnavailable, match="LAVA_PYTHON is not set.*install.sh"):
        lava_remote.run_netx(tmp_path / "a.net", np.zeros((1, 1, 1)))
    with pytest.raises(sg.BackendUnavailable, match="no interpreter /no/python"):
        lava_remote.lava_python("/no/python")


def interpreter(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_failure_is_shown(small, tmp_path):
    (tmp_path / "a.net").write_bytes(small)
    python = interpreter(tmp_path, "echo what Lava says; exit 3")
    with pytest.raises(lava_remote.LavaError, match="(?s)Lava failed.*what Lava says"):
        lava_remote.verify_netx(tmp_path / "a.net", SAMPLE.numpy(), python=python)


def test_timeout_ends_everything(small, tmp_path):
    (tmp_path / "a.net").write_bytes(small)
    python = interpreter(tmp_path, f"sleep 100 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(lava_remote.LavaError, match="no result after 1 s"):
        lava_remote.run_netx(tmp_path / "a.net", np.zeros((1, 49, 2)), python=python, timeout=1.0)
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # what nobody waits for stays, as a zombie
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_runner_needs_no_lava():
    code = "import sys; import spikingjelly_signgd.exporters.lava.netx; "
    code += "assert not [m for m in sys.modules if m.startswith('lava.')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_documentation(tmp_path, monkeypatch, capsys):
    """The example runs and prints what it says, but for rounding on other machines."""
    text = (lava_remote.PACKAGE / "docs" / "lava.md").read_text()
    monkeypatch.chdir(tmp_path)
    scope = {}
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(code, scope)
    shown = re.findall(r"prints\n\n```\n(.*?)```", text, flags=re.DOTALL)[0].splitlines()
    printed = capsys.readouterr().out.splitlines()
    assert shown[:5] == printed[:5]
    accuracy = (scope["outputs"].argmax(1) == LABELS[:20].numpy()).mean()
    assert accuracy >= 0.9 and len(printed) == len(shown)
