"""``export`` and ``verify``: files are replayed, differences are found, certificates stay."""

import json
import os
import sys
from pathlib import Path

import export_table
import h5py
import numpy as np
import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.exporters import verification
from spikingjelly_signgd.exporters.hdf5 import runner
from spikingjelly_signgd.exporters.hdf5.definition import run_definition
from spikingjelly_signgd.exporters.lava import remote as lava_remote

ROOT = Path(__file__).parent.parent
DATA = digits()
X = DATA.test.images[:4]
NETWORKS = [("vgg", None), ("resnet", None), ("convnext", None), ("mixer", None), ("resmlp", None)]
QCFS = [("vgg", 4), ("vgg", 8), ("resnet", 4), ("resnet", 8)]


def convert(name: str, levels: int | None, time_steps: int = 4) -> sg.SpikingNetwork:
    model = load_network(name, "digits", qcfs=levels)
    method = "signgd" if levels is None else "group"
    return sg.convert(
        model, DATA.train.images[:64], method=method, time_steps=time_steps, tune=False
    )


@pytest.fixture(scope="module")
def group():
    return convert("vgg", 4)


# -- the definitions that files are compared with -------------------------------------------------


@pytest.mark.spikingjelly
@pytest.mark.parametrize(("name", "levels"), [("vgg", None), ("convnext", None), ("vgg", 4)])
def test_definitions_are_the_simulators(name, levels):
    network = convert(name, levels, 8 if levels is None else 4)
    for view in ("decoded",) if levels else ("decoded", "signed"):
        found = run_definition(network, X, network.time_steps, spikes=view, dtype=torch.float32)
        snn = sg.build(network, spikes=view, kernels="torch")
        for _ in range(network.time_steps):
            expected = snn(X)
        assert torch.equal(found.outputs, expected), view


# -- export ---------------------------------------------------------------------------------------


def test_the_suffix_names_the_format(group, tmp_path):
    assert sg.export(group, tmp_path / "net.h5") is None
    assert sg.load(tmp_path / "net.h5").names() == group.names()
    assert sg.export(group, tmp_path / "net.nir").losses == ()
    calibration = DATA.train.images[:64]
    assert sg.export(group, tmp_path / "net.net", calibration=calibration).time_steps == 4
    assert sg.export(group, tmp_path / "other", format="nir").mode == "exact"


@pytest.mark.parametrize("name", ["net.onnx", "net"])
def test_unknown_formats_are_refused(group, tmp_path, name):
    with pytest.raises(sg.FormatError, match=r"\(hdf5\).*\(nir\).*\(lava\)"):
        sg.export(group, tmp_path / name)
    with pytest.raises(sg.FormatError, match=r"\.h5 .*\.hdf5 .*\.nir .*\.net "):
        sg.verify(tmp_path / name)
    assert not list(tmp_path.iterdir())


# -- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "levels"), [*NETWORKS, *QCFS])
def test_descriptions_of_the_examples(name, levels, tmp_path):
    network = convert(name, levels)
    sg.export(network, tmp_path / "net.h5")
    certificate = sg.verify(tmp_path / "net.h5", X[:2], network=network)
    assert certificate.ok, certificate
    exact = [check for check in certificate.checks if check.required]
    assert len(exact) == 3 and all(check.mismatches == 0 for check in exact)
    cells = sum(network.count(2).values()) * network.time_steps
    assert all(check.cells == cells for check in certificate.checks[1:])
    assert all(check.spikes > 0 for check in certificate.checks[1:])
    single = [check for check in certificate.checks if "float32" in check.what]
    for check in single:  # the count is stated; rounding may move spikes of signGD neurons
        assert check.mismatches <= (0.02 * cells if levels is None else 0)


@pytest.mark.parametrize(("name", "levels"), QCFS)
def test_exact_nir_files_of_the_examples(name, levels, tmp_path):
    network = convert(name, levels)
    sg.export(network, tmp_path / "net.nir")
    certificate = sg.verify(tmp_path / "net.nir", X, network=network)
    assert certificate.ok, certificate
    assert [check.mismatches for check in certificate.checks] == [0, 0, 0]
    assert certificate.versions["nir"]


def test_platform_files_tell_what_they_cost(tmp_path):
    network = convert("vgg", 4, 4)
    sg.export(network, tmp_path / "net.nir", mode="platform")
    with pytest.raises(sg.FormatError, match="network="):
        sg.verify(tmp_path / "net.nir")
    certificate = sg.verify(tmp_path / "net.nir", X, network=network)
    assert not certificate.ok
    content, replayed = certificate.checks
    assert content.equal and replayed.mismatches > 0 and not replayed.required
    assert any("reset" in note for note in certificate.notes)


def test_netx_files_without_lava_are_not_called_verified(group, tmp_path, monkeypatch):
    monkeypatch.delenv("LAVA_PYTHON", raising=False)
    sg.export(group, tmp_path / "net.net", calibration=DATA.train.images[:64], input_levels=16)
    certificate = sg.verify(tmp_path / "net.net", X, network=group)
    lowered, rounded = certificate.checks
    assert not certificate.ok and lowered.required and lowered.equal and lowered.cells > 10_000
    assert certificate.state == certificate.to_dict()["state"] == "not checked"
    assert "not checked in full" in str(certificate) and "CONTRADICTED" not in str(certificate)
    assert 0 < rounded.mismatches < 0.1 * rounded.cells and not rounded.required
    assert "not run in Lava" in str(certificate)
    assert not sg.verify(tmp_path / "net.net", samples=2).checks
    with pytest.raises(sg.InputError, match="T = 4"):
        sg.verify(tmp_path / "net.net", X, time_steps=5)


@pytest.mark.skipif(not lava_remote.available(), reason="LAVA_PYTHON names no Lava")
def test_netx_files_in_lava(group, tmp_path):
    sg.export(group, tmp_path / "net.net", calibration=DATA.train.images[:64], input_levels=16)
    certificate = sg.verify(tmp_path / "net.net", X[:2])
    assert certificate.ok and certificate.checks[0].cells > 0
    assert "lava" in certificate.versions


def test_inputs_are_drawn_by_a_seed(group, tmp_path):
    sg.export(group, tmp_path / "net.h5")
    first, again = (sg.verify(tmp_path / "net.h5", samples=3, seed=5) for _ in range(2))
    assert first == again and first.samples == 3
    assert first.inputs == "uniform in [0, 1), seed 5"
    assert sg.verify(tmp_path / "net.h5", samples=3, seed=6).checks != first.checks
    longer = sg.verify(tmp_path / "net.h5", samples=1, time_steps=7)
    assert longer.ok and longer.time_steps == 7
    with pytest.raises(sg.InputError, match="samples"):
        sg.verify(tmp_path / "net.h5", samples=0)
    for wrong in (torch.rand(2, 1, 7, 8), torch.rand(0, 1, 8, 8), torch.rand(1, 8, 8)):
        with pytest.raises(sg.InputError, match="takes inputs"):
            sg.verify(tmp_path / "net.h5", wrong)


def changed(network, name, **fields):
    """The network with other fields of one node."""
    nodes = tuple(
        type(node)(**{**vars(node), **fields}) if node.name == name else node
        for node in network.nodes
    )
    return network.replace(nodes=nodes)


def write(network, path):
    options = {"calibration": DATA.train.images[:64]} if path.suffix == ".net" else {}
    sg.export(network, path, **options)


@pytest.mark.parametrize("suffix", ["h5", "nir", "net"])
def test_another_network_is_found_out(group, tmp_path, suffix):
    """A threshold, weights behind neurons that are silent, the number of steps."""
    neuron, path = group[group.names()[0]], tmp_path / f"net.{suffix}"
    last = [node for node in group.nodes if node.kind == "linear"][-1]
    weight = last.tensors["weight"].clone()
    weight[0, 0] *= 1.5
    for other in (
        changed(group, neuron.name, v_threshold=neuron.v_threshold * 1.01),
        changed(group, last.name, tensors={**last.tensors, "weight": weight}),
    ):
        write(other, path)
        certificate = sg.verify(path, X, network=group)
        assert not certificate.ok and certificate.checks[0].mismatches > 0
        assert (
            certificate.state == "contradicted"
            and "CONTRADICTED" in str(certificate)
            and "NOT EQUAL" in str(certificate)
        )
        assert sg.verify(path, X, network=other).checks[0].equal
    write(group.replace(time_steps=2), path)
    certificate = sg.verify(path, X, network=group)
    if suffix == "h5":
        assert not certificate.ok
    else:  # which may be written for another T on purpose
        assert "the file is for T = 2, the network for T = 4" in certificate.notes


@pytest.mark.parametrize("suffix", ["h5", "nir", "net"])
def test_networks_of_other_layers_and_inputs_are_refused_or_found_out(group, tmp_path, suffix):
    write(group, tmp_path / f"net.{suffix}")
    for other in (convert("vgg", 4).replace(nodes=group.nodes[:-1], outputs=group.nodes[-2].name),):
        try:
            assert not sg.verify(tmp_path / f"net.{suffix}", X, network=other).ok
        except sg.FormatError:
            pass
    with pytest.raises(sg.InputError, match="SpikingNetwork"):
        sg.verify(tmp_path / f"net.{suffix}", X, network=sg.build(group))


def test_comparisons_do_not_broadcast_or_swallow_nan():
    ones, nan = np.ones((3, 2)), np.full((3, 2), np.nan)
    same = verification.compare("c", {"a": ones}, {"a": ones}, ones, ones, 0.0, True)
    assert same.equal
    assert not verification.compare("c", {}, {}, [ones, nan], [ones, ones], 0.0, True).equal
    assert not verification.compare(
        "c", {}, {}, [ones, ones * 1.1], [ones * 1e4, ones], 0.01, True
    ).equal
    for wrong in (
        ({"a": ones[:, :1]}, {"a": ones}, ones, ones),
        ({"a": ones, "b": ones}, {"a": ones}, ones, ones),
        ({}, {}, ones[:, :1], ones),
    ):
        with pytest.raises(sg.FormatError, match="c: "):
            verification.compare("c", *wrong, 0.0, True)


def test_a_runner_that_errs_is_found_out(group, tmp_path, monkeypatch):
    """A tie that does not fire, a reset too few: the check can fail."""
    sg.export(group, tmp_path / "net.h5")
    right = runner._Run._group

    def wrong(self, node, inputs):
        out, count = right(self, node, inputs)
        count = count.copy()
        count.flat[0] += 1
        return out, count

    monkeypatch.setitem(runner._NEURONS, "group", wrong)
    certificate = sg.verify(tmp_path / "net.h5", X)
    assert not certificate.ok
    assert certificate.checks[0].mismatches == group.time_steps * len(group.names())


def test_read_outs_are_compared_too(group, tmp_path, monkeypatch):
    sg.export(group, tmp_path / "net.h5")
    right = runner._Run._average
    monkeypatch.setitem(runner._OTHERS, "average", lambda *node: right(*node) * 1.001)
    certificate = sg.verify(tmp_path / "net.h5", X)
    assert not certificate.ok and certificate.checks[0].mismatches == 0
    assert certificate.checks[0].readout_error == pytest.approx(1e-3, rel=0.01)


class Own(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def test_own_functions_and_codings(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Own(), nn.Linear(8, 3))
    x = torch.randn(9, 6)
    rows = sg.NEURONS | {torch.ops.aten.sin.default: torch.sin}
    for coding in ("exact", "poisson", "real"):
        network = sg.convert(model, x, neurons=rows, time_steps=6, input_coding=coding)
        sg.save(network, tmp_path / "net.h5")
        certificate = sg.verify(tmp_path / "net.h5", x, functions={"sin": torch.sin})
        assert certificate.ok, certificate
        with pytest.raises(sg.FormatError, match="sin"):
            sg.verify(tmp_path / "net.h5", x)


# -- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5", "nir", "net"])
def test_the_certificate_goes_into_the_file(group, tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    options = {"calibration": DATA.train.images[:64]} if suffix == "net" else {}
    sg.export(group, path, **options)
    before = path.read_bytes()
    plain = sg.verify(path, X)
    assert path.read_bytes() == before, "nobody asked for it"
    certificate = sg.verify(path, X, embed=True)
    with h5py.File(path, "r") as file:
        stored = json.loads(file.attrs["certificate"])
    assert stored == json.loads(json.dumps(certificate.to_dict()))
    assert stored["ok"] is certificate.ok and stored["versions"]["torch"] == torch.__version__
    again = sg.verify(path, X, embed=True)  # the file is still whole, and what it holds the same
    assert plain == certificate == again
    readers = {"h5": sg.load, "nir": sg.exporters.read_nir, "net": sg.exporters.read_netx}
    assert readers[suffix](path) is not None


@pytest.mark.parametrize("suffix", ["nir", "net"])
def test_the_hash_is_of_what_the_file_holds(group, tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    options = {"calibration": DATA.train.images[:64]} if suffix == "net" else {}
    sg.export(group, path, **options)
    before = verification.content_hash(path)
    names: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visititems(
            lambda name, item: (
                names.append(name)
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "if" and item.size
                else None
            )
        )
        data = file[names[-1]]
        data[...] = np.asarray(data[...]) + 1
    assert verification.content_hash(path) != before


@pytest.mark.parametrize("suffix", ["h5", "nir", "net"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_certificate_that_cannot_be_written_leaves_the_file(
    group, tmp_path, monkeypatch, suffix, failing
):
    path = tmp_path / f"net.{suffix}"
    write(group, path)
    before, calls, right = path.read_bytes(), [0], os.fsync

    def full(handle):
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(28, "No space left on device")
        right(handle)

    monkeypatch.setattr("os.fsync", full)
    certificate = sg.verify(path, X, embed=True)
    if failing == 1:
        assert "not written into the file" in str(certificate) and "No space" in str(certificate)
        assert path.read_bytes() == before
    readers = {"h5": sg.load, "nir": sg.exporters.read_nir, "net": sg.exporters.read_netx}
    readers[suffix](path)


@pytest.mark.parametrize("suffix", ["h5", "nir", "net"])
def test_links_and_modes_stay_as_they_are(group, tmp_path, suffix):
    target, link = tmp_path / f"target.{suffix}", tmp_path / f"net.{suffix}"
    write(group, target)
    target.chmod(0o600)
    link.symlink_to(target)
    sg.verify(link, X, embed=True)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o600
    with h5py.File(target, "r") as file:
        assert "certificate" in file.attrs
    if suffix == "h5":  # a change on purpose takes the certificate along
        sg.exporters.hdf5.seal(target)
        with h5py.File(target, "r") as file:
            assert "certificate" not in file.attrs


def test_a_byte_of_a_netx_file_is_missed(group, tmp_path):
    path = tmp_path / "net.net"
    write(group, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(sg.FormatError, match="damaged"):
        sg.exporters.read_netx(path)


def test_missing_and_damaged_files(group, tmp_path):
    for suffix in ("h5", "nir", "net"):
        path = tmp_path / f"net.{suffix}"
        with pytest.raises(FileNotFoundError):
            sg.verify(path)
        path.write_bytes(b"not a file of any kind" * 100)
        with pytest.raises(sg.FormatError):
            sg.verify(path)


@pytest.mark.slow
def test_the_table_of_the_documentation_is_what_the_code_does(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_table.py", "--check"])
    assert export_table.main() == 0, "run python benchmarks/export_table.py"
