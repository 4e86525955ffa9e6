"""tests/outside, installed by pip as a stranger's package is: what it adds works everywhere."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis.energy import TABLES, estimate_energy
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.core import registry
from spikingjelly_signgd.core.network import NODES, GroupNeuron, Linear, Node

pytest.importorskip("h5py")

ROOT = Path(__file__).parent
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
PIP = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that pip installed the package into; built from a copy, so that nothing stays."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "outside", source / "outside")
    command = [sys.executable, "-m", "pip", *PIP, "--target", str(site), str(source / "outside")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def outside(site, monkeypatch):
    """The package on the path, in this test alone; its rows are there once it is imported."""
    from spikingjelly_signgd.converters.lowering.tables import HANDLERS
    from spikingjelly_signgd.converters.rules import NEURONS
    from spikingjelly_signgd.core.operations.rows import LINEAR
    from spikingjelly_signgd.exporters.hdf5.kinds import KINDS
    from spikingjelly_signgd.exporters.hdf5.runner_functions import FUNCTIONS

    tables = (HANDLERS, NEURONS, LINEAR, KINDS, FUNCTIONS, NODES, TABLES, sg.NONLINEARITIES)
    before = [dict(table) for table in tables]
    monkeypatch.syspath_prepend(site)
    forget()
    yield importlib.import_module("signgd_outside")
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.partition(".")[0] == "signgd_outside"]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


def forget():
    registry._entry_points.cache_clear()
    registry.import_extensions.cache_clear()


class Model(nn.Module):
    """With the operation and the nonlinearity that the package adds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.atan(self.first(x)).cumsum(-1))


@pytest.fixture
def network(outside):
    importlib.import_module("signgd_outside.rows")
    torch.manual_seed(0)
    return sg.convert(Model(), X, time_steps=32, tune=False)


@pytest.fixture
def leaky(outside):
    """A network of group neurons, those replaced by the package's."""
    rows = importlib.import_module("signgd_outside.rows")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = sg.convert(model, X, method="group", time_steps=8)

    def replaced(node):
        if not isinstance(node, GroupNeuron):
            return node
        common = {k: getattr(node, k) for k in ("name", "inputs", "shape", "function", "arguments")}
        return rows.LeakyNeuron(**common, leak=0.75, threshold=0.5)

    return found.replace(nodes=tuple(replaced(node) for node in found.nodes))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=X.numpy(), y=np.zeros(len(X), np.int64))
    return tmp_path


def same(network, other, simulator="spikingjelly"):
    steps = network.time_steps
    a, b = (sg.run(sg.build(each, simulator), X, steps)[steps] for each in (network, other))
    assert torch.equal(a, b)


def test_unknown_without_it(tmp_path):
    with pytest.raises(sg.BackendUnavailable, match="called 'outside'; known: spikingjelly, norse"):
        sg.build(None, "outside")  # type: ignore[arg-type]
    with pytest.raises(sg.FormatError, match="'.outside' is not the suffix of a format"):
        sg.export(None, tmp_path / "net.outside")  # type: ignore[arg-type]


@pytest.mark.spikingjelly
@pytest.mark.parametrize("method", ["signgd", "group"])
def test_simulator(outside, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    network = sg.convert(model, X, method=method, time_steps=8, tune=False)
    snn = sg.build(network, "outside")
    assert type(snn).__name__ == "OutsideNetwork"
    ours = sg.run(sg.build(network), X)
    for t, outputs in sg.run(snn, X).items():
        assert torch.equal(outputs, ours[t])
    a, b = (sg.analysis.count_operations(each, X) for each in (snn, sg.build(network)))
    assert a == b


@pytest.mark.spikingjelly
def test_operation_and_nonlinearity(network, tmp_path):
    assert "outside_cumsum" in {node.op for node in network.of(Linear)}
    assert "outside_arctan" in {node.function.name for node in network.neurons}
    snn = sg.build(network)
    expected = snn.ann(X)
    torch.testing.assert_close(sg.run(snn, X, 32)[32], expected, atol=0.2, rtol=0)
    assert sg.analysis.count_operations(snn, X).synaptic_events > 0
    sg.save(network, tmp_path / "net.h5")
    same(network, sg.load(tmp_path / "net.h5"))
    assert sg.verify(tmp_path / "net.h5", X, network=network).ok


@pytest.mark.spikingjelly
def test_kind_of_neuron(leaky, tmp_path):
    for simulator in ("spikingjelly", "outside"):
        same(leaky, leaky, simulator)
    sg.save(leaky, tmp_path / "net.h5")
    same(leaky, sg.load(tmp_path / "net.h5"))
    certificate = sg.verify(tmp_path / "net.h5", X, network=leaky)
    assert certificate.ok and certificate.checks[1].spikes > 0, certificate
    with pytest.raises(sg.FormatError, match="outside_leaky"):
        sg.export(leaky, tmp_path / "net.nir")


@pytest.mark.spikingjelly
@pytest.mark.skipif(not hasattr(Node, "code"), reason="costs do not ask the node yet")
def test_costs_of_the_neuron(leaky):
    counted = sg.analysis.count_operations(sg.build(leaky), X)
    assert counted.spikes > 0 and counted.synaptic_events > 0


@pytest.mark.spikingjelly
@pytest.mark.parametrize("which", ["network", "leaky"])
def test_format(which, request, tmp_path):
    network, path = request.getfixturevalue(which), tmp_path / "net.outside"
    assert sg.export(network, path).endswith("nodes as text")
    same(network, sg.load(path))
    before = path.read_bytes()
    certificate = sg.verify(path, X, network=network)
    assert certificate.ok and certificate.format == "outside" and path.read_bytes() == before
    assert (
        sg.verify(path, X, network=network.replace(time_steps=7)).time_steps == network.time_steps
    )
    sg.verify(path, X, embed=True)
    assert json.loads(path.read_text())["certificate"]["ok"]
    same(network, sg.load(path))


@pytest.mark.spikingjelly
def test_energy_table(leaky):
    found = estimate_energy(sg.build(leaky), X, 4)
    assert found.total["outside"][4] > 0


@pytest.mark.spikingjelly
def test_command_line(leaky, folder, capsys):
    sg.save(leaky, "net.h5")
    data = ["--data", "data.npz"]
    assert main(["export", "net.h5", "-o", "net.txt", "--format", "outside"]) == 0
    assert main(["export", "net.h5", "-o", "net.outside"]) == 0
    assert main(["verify", "net.outside", "--network", "net.h5"]) == 0
    assert main(["export", "net.h5", "-o", "net.outside", "--mode", "exact"]) == 2
    assert "--mode: not of the format outside" in capsys.readouterr().err
    arguments = [*data, "--time-steps", "4", "--simulator", "outside", "--json"]
    assert main(["evaluate", "net.outside", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["simulator"] == "outside"
    assert main(["energy", "net.h5", *data, "--time-steps", "4", "--table", "outside"]) == 0


@pytest.mark.spikingjelly
def test_command_line_imports_it(network, site, folder):
    """A process in which nobody imported the package: the file names its rows."""
    sg.save(network, "net.h5")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "spikingjelly_signgd.cli", "energy", "net.h5"]
    command += ["--data", "data.npz", "--time-steps", "4", "--table", "outside"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "outside" in done.stdout


@pytest.mark.spikingjelly
def test_one_that_cannot_be_imported(outside, site, monkeypatch):
    monkeypatch.setitem(sys.modules, "signgd_outside.simulator", None)
    with pytest.raises(sg.BackendUnavailable, match="'outside' of the package 'signgd-outside'"):
        sg.build(None, "outside")  # type: ignore[arg-type]


@pytest.mark.spikingjelly
def test_at_run_time(leaky):
    from spikingjelly_signgd.plugins import spikingjelly

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SIMULATORS, "mine", spikingjelly)
        same(leaky, leaky, "mine")
