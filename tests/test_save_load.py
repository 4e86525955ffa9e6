"""What is saved is read back equal; what is no description is refused."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import NODES, Function, leaves
from spikingjelly_signgd.core.operations import LINEAR
from spikingjelly_signgd.exporters import files as exporters_files
from spikingjelly_signgd.exporters.hdf5 import layout as hdf5
from spikingjelly_signgd.exporters.hdf5.kinds import KINDS, SCHEDULES

STEPS = (1, 5, 16)


class Image(nn.Module):
    """Every kind of tensor a network holds, a residual connection and nested outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.prelu, self.pool = nn.PReLU(6), nn.MaxPool2d((3, 2), 2, (1, 0))
        self.mix, self.act = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.GELU()
        self.layer_norm, self.head = nn.LayerNorm((6, 3, 3)), nn.Linear(54, 5)
        self.gamma = nn.Parameter(torch.full((6, 1, 1), 0.3))
        self.clamp = nn.Hardtanh(-0.3, 0.6)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        y = self.pool(self.prelu(self.norm(self.conv(x))))
        y = y + self.gamma * self.act(self.mix(y))
        z = self.layer_norm(self.clamp(y)).flatten(1)
        return {"logits": self.head(z), "parts": (z, [y.flip(-1)[:, :, ::2].mean(1)])}


def image_model():
    torch.manual_seed(1)
    return Image()


def qcfs_model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), sg.QCFS(8, 0.9), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def relu_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())


X = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))
ETA = sg.ListSchedule(tuple(0.3 * 0.9**t for t in range(16)))
NETWORKS = {
    "signgd": (image_model, {}),
    "paper": (image_model, {"preset": "paper", "scale": "tensor"}),
    "poisson": (image_model, {"input_coding": "poisson", "seed": 5, "resting": "mean"}),
    "list": (image_model, {"schedule": ETA, "input_coding": "spike", "scale": "channel"}),
    "momentum": (image_model, {"schedule": sg.InverseSchedule(0.8, 1.0), "momentum": 0.1}),
    "group": (qcfs_model, {"method": "group", "members": 2, "time_steps": 4}),
    "group, poisson": (
        qcfs_model,
        {"method": "group", "time_steps": 8, "input_coding": "poisson"},
    ),
    "mixed": (relu_model, {"method": {"2": "group", "4": "subgradient"}, "time_steps": 8}),
}


@pytest.fixture(scope="module")
def networks():
    return {
        name: sg.convert(make(), X, **{"time_steps": 16, **options})
        for name, (make, options) in NETWORKS.items()
    }


@pytest.fixture(scope="module")
def files(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    for name, network in networks.items():
        sg.save(network, folder / f"{name}.h5")
    return folder


def assert_equal(have, want, where):
    """The same type and value at every depth; floating-point numbers to the bit."""
    if isinstance(want, sg.Nonlinearity):
        assert have is want, where
    elif isinstance(want, Tensor):
        assert isinstance(have, Tensor), where
        assert (have.dtype, have.shape) == (want.dtype, want.shape), where
        assert torch.equal(have, want), where
    elif isinstance(want, dict):
        assert isinstance(have, dict) and set(have) == set(want), where
        for key in want:
            assert_equal(have[key], want[key], f"{where}.{key}")
    elif isinstance(want, (list, tuple)):
        assert type(have) is type(want) and len(have) == len(want), (where, have, want)
        for i, (a, b) in enumerate(zip(have, want, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert type(have) is type(want) and have == want, (where, have, want)


def assert_equal_networks(have, want):
    assert [n.name for n in have.nodes] == [n.name for n in want.nodes]
    for a, b in zip(have.nodes, want.nodes, strict=True):
        assert type(a) is type(b)
        for field in fields(b):
            assert_equal(getattr(a, field.name), getattr(b, field.name), f"{b.name}.{field.name}")
    assert_equal(have.outputs, want.outputs, "outputs")
    assert leaves(have.outputs) == leaves(want.outputs), "the order of a dict's outputs"
    assert_equal(have.time_steps, want.time_steps, "time_steps")
    assert_equal(dict(have.statistics), dict(want.statistics), "statistics")
    assert dict(have.provenance) == json.loads(json.dumps(dict(want.provenance)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_field_is_read_back(networks, files, name):
    network = networks[name]
    assert network.neurons and network.statistics and network.provenance
    assert_equal_networks(sg.load(files / f"{name}.h5"), network)


def test_the_networks_between_them_hold_every_kind_of_node(networks):
    kinds = {node.kind for network in networks.values() for node in network.nodes}
    assert kinds >= {"input", "linear", "signgd", "group", "subgradient", "encoder", "average"}
    assert isinstance(networks["signgd"]["prelu"].arguments["weight"], Tensor)
    assert isinstance(networks["signgd"]["pool"].arguments["kernel_size"], tuple)


IN_A_FRESH_PROCESS = """
import sys
import torch
import spikingjelly_signgd as sg

torch.use_deterministic_algorithms(True)
folder, steps, names = sys.argv[1], [int(t) for t in sys.argv[2].split(",")], sys.argv[3:]
x = torch.load(f"{folder}/x.pt", weights_only=True)
for name in names:
    outputs = sg.run(sg.build(sg.load(f"{folder}/{name}.h5")), x, steps)
    torch.save(outputs, f"{folder}/{name}.pt")
assert not any("test_save_load" in module for module in sys.modules)
"""


def test_a_fresh_process_computes_the_same_bits(networks, files, tmp_path):
    """Without the model's code; the structure of the outputs included."""
    torch.save(X, files / "x.pt")
    (tmp_path / "script.py").write_text(IN_A_FRESH_PROCESS)
    steps = ",".join(map(str, STEPS))
    subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(files), steps, *networks],
        cwd=tmp_path, check=True, timeout=300,
    )  # fmt: skip
    for name, network in networks.items():
        read = torch.load(files / f"{name}.pt", weights_only=True)
        expected = sg.run(sg.build(network), X, STEPS)
        assert_equal(read, expected, name)
        assert len(leaves(network.outputs)) == (3 if NETWORKS[name][0] is image_model else 1)


def test_the_spike_view_and_the_ann_mode_of_a_loaded_network(networks, files):
    network, loaded = networks["signgd"], sg.load(files / "signgd.h5")
    for spikes in ("signed", "decoded"):
        have = sg.run(sg.build(loaded, spikes=spikes), X, STEPS)
        assert_equal(have, sg.run(sg.build(network, spikes=spikes), X, STEPS), spikes)
    snn = sg.build(loaded)
    snn.mode = "ann"
    expected = image_model().eval()(X)
    torch.testing.assert_close(snn(X)["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


def test_a_second_round_trip_changes_nothing(networks, files, tmp_path):
    sg.save(sg.load(files / "paper.h5"), tmp_path / "again.h5")
    assert_equal_networks(sg.load(tmp_path / "again.h5"), networks["paper"])


def test_float64_scalars_and_empty_tensors(networks, tmp_path):
    network = networks["group"]
    values = {
        "scalar": torch.tensor(1 / 3, dtype=torch.float64),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor([2**40]),
        "mask": torch.tensor([True, False]),
        "strided": torch.arange(6.0).reshape(2, 3).T,
    }
    sg.save(network.replace(statistics={"a": values}), tmp_path / "n.h5")
    assert_equal(dict(sg.load(tmp_path / "n.h5").statistics), {"a": values}, "statistics")


def test_long_schedules_and_provenance(networks, tmp_path):
    """An HDF5 attribute ends at 64 kB."""
    eta = sg.ListSchedule(tuple(1 / (3 + t) for t in range(6000)))
    network = sg.convert(relu_model(), X, schedule=eta, time_steps=6000)
    sg.save(network, tmp_path / "long.h5")
    assert_equal_networks(sg.load(tmp_path / "long.h5"), network)


def test_nothing_in_a_file_is_an_object(files):
    """Numbers and text alone: nothing can be pickled in there."""

    def look(name, item):
        for key, value in item.attrs.items():
            assert isinstance(value, str) or value.dtype.kind in "iuf", f"{name}: {key}"
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind in "iufb", f"{name} is of {item.dtype}"

    for path in files.glob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(look)
            assert file.attrs["format"] == "spikingjelly_signgd"
            assert json.loads(file.attrs["outputs"])


class Cannot:
    def __repr__(self):
        return "Cannot()"


def test_a_failing_save_leaves_the_old_file(networks, tmp_path):
    path = tmp_path / "network.h5"
    sg.save(networks["group"], path)
    before = path.read_bytes()
    network = networks["signgd"]
    for wrong in (
        network.replace(provenance={"by": Cannot()}),
        network.replace(statistics={"prelu": {"mean": torch.zeros(1, dtype=torch.bfloat16)}}),
    ):
        with pytest.raises(sg.FormatError, match="provenance = .*Cannot|bfloat16.*model.float"):
            sg.save(wrong, path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["network.h5"], "nothing else is left behind"
    sg.save(network, path)
    assert_equal_networks(sg.load(path), network)
    assert os.listdir(tmp_path) == ["network.h5"]


def interrupted(handle):
    raise KeyboardInterrupt


def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("event", "error"), [(interrupted, KeyboardInterrupt), (full, OSError)])
def test_an_interrupted_save_leaves_the_old_file(networks, tmp_path, monkeypatch, event, error):
    path = tmp_path / "network.h5"
    sg.save(networks["group"], path)
    before = path.read_bytes()
    monkeypatch.setattr(exporters_files.os, "fsync", event)
    with pytest.raises(sg.FormatError if error is OSError else error) as raised:
        sg.save(networks["signgd"], path)
    if error is OSError:
        assert "No space left on device" in str(raised.value) and str(path) in str(raised.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["network.h5"]


SAVES_A_LARGER_ONE = """
import os, resource, signal, sys
import spikingjelly_signgd as sg
from spikingjelly_signgd.exporters import files

class HalfWay:
    def __init__(self, handle, mode):
        self.file = open(handle, mode)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

event, source, path = sys.argv[1:]
network = sg.load(source)
if event == "killed half way":
    files.os.fdopen = HalfWay
elif event == "killed before the rename":
    files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
else:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    sg.save(network, path)
except sg.FormatError as error:
    assert "cannot write" in str(error), error
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("killed half way", -signal.SIGKILL),
        ("killed before the rename", -signal.SIGKILL),
        ("the disk takes no more than 20,000 bytes", 3),
    ],
)
def test_what_ends_a_save_leaves_the_old_file(networks, files, tmp_path, event, code):
    path = tmp_path / "network.h5"
    sg.save(networks["group"], path)
    before = path.read_bytes()
    assert (files / "signgd.h5").stat().st_size > 30_000
    script = [sys.executable, "-c", SAVES_A_LARGER_ONE, event, files / "signgd.h5", path]
    assert subprocess.run(script, timeout=120).returncode == code
    assert path.read_bytes() == before
    assert_equal_networks(sg.load(path), networks["group"])
    left = [name for name in os.listdir(tmp_path) if name != "network.h5"]
    assert all(name.endswith(".part") for name in left) and len(left) == (code != 3)


def test_what_cannot_be_written_to(networks, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.FormatError, match="folder .*file' does not exist"):
        sg.save(networks["group"], tmp_path / "file" / "n.h5")
    with pytest.raises(sg.FormatError, match="it is a folder; name a file in it"):
        sg.save(networks["group"], tmp_path)

    def denied(*args, **kwargs):  # as any folder that is not the user's; root may write to all
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(exporters_files.tempfile, "mkstemp", denied)
    with pytest.raises(sg.FormatError, match="cannot write .*n.h5.*Permission denied. Choose"):
        sg.save(networks["group"], tmp_path / "n.h5")
    assert os.listdir(tmp_path) == ["file"]


def test_a_saved_file_has_the_usual_permissions(networks, tmp_path):
    sg.save(networks["group"], tmp_path / "network.h5")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "network.h5").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_no_network_is_not_saved(networks, tmp_path):
    with pytest.raises(sg.FormatError, match="takes the SpikingNetwork.*module.network"):
        sg.save(sg.build(networks["group"]), tmp_path / "n.h5")
    with pytest.raises(sg.FormatError, match="folder .* does not exist"):
        sg.save(networks["group"], tmp_path / "absent" / "n.h5")


def test_a_schedule_of_the_users_own_is_refused_at_once(tmp_path):
    class Own:
        def __call__(self, t):
            return 0.5 / t

        def to_dict(self):
            return {"kind": "own"}

    network = sg.convert(relu_model(), X, schedule=Own(), time_steps=4)
    with pytest.raises(sg.FormatError, match="'2' has the schedule.*ListSchedule"):
        sg.save(network, tmp_path / "n.h5")


def truncated(path, tmp_path, keep):
    data = path.read_bytes()
    (tmp_path / "bad.h5").write_bytes(data[: int(len(data) * keep)])


def overwritten(path, tmp_path, name, value):
    """Changed on purpose, and sealed again."""
    bad = tmp_path / "bad.h5"
    bad.write_bytes(path.read_bytes())
    with h5py.File(bad, "r+") as file:
        where, _, attribute = name.partition("@")
        if value is None and attribute:
            del file[where or "/"].attrs[attribute]
        elif value is None:
            del file[where]
        else:
            file[where or "/"].attrs[attribute] = value
    hdf5.seal(bad)


DAMAGE = {
    "empty": lambda p, t: truncated(p, t, 0.0),
    "half": lambda p, t: truncated(p, t, 0.5),
    "nearly whole": lambda p, t: truncated(p, t, 0.99),
    "text": lambda p, t: (t / "bad.h5").write_text("format = spikingjelly_signgd\n"),
    "no version": lambda p, t: overwritten(p, t, "@format_version", None),
    "version of words": lambda p, t: overwritten(p, t, "@format_version", "new"),
    "no outputs": lambda p, t: overwritten(p, t, "@outputs", None),
    "outputs that do not exist": lambda p, t: overwritten(p, t, "@outputs", '"nobody"'),
    "outputs that are no JSON": lambda p, t: overwritten(p, t, "@outputs", "{"),
    "outputs of a kind of their own": lambda p, t: overwritten(p, t, "@outputs", '{"set": []}'),
    "outputs that are a number": lambda p, t: overwritten(p, t, "@outputs", "3"),
    "no nodes": lambda p, t: overwritten(p, t, "nodes", None),
    "a node is missing": lambda p, t: overwritten(p, t, "nodes/00003", None),
    "a field is missing": lambda p, t: overwritten(p, t, "nodes/00001@op", None),
    "an unknown kind": lambda p, t: overwritten(p, t, "nodes/00001@kind", "quantum"),
    "an unknown schedule": lambda p, t: overwritten(
        p, t, "nodes/00002@schedule", '{"kind": "secret"}'
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused(files, tmp_path, name):
    DAMAGE[name](files / "signgd.h5", tmp_path)
    with pytest.raises(sg.FormatError, match="bad.h5' is not a whole|newer release|bad.h5"):
        sg.load(tmp_path / "bad.h5")


def test_one_changed_byte_is_reported(files, tmp_path):
    data = bytearray((files / "group.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.h5").write_bytes(data)
    with pytest.raises(sg.FormatError, match="bad.h5': .* damaged or was changed.*Copy it again"):
        sg.load(tmp_path / "bad.h5")


def unsealed(path, to):
    """The HDF5 data alone, as other tools would write it."""
    to.write_bytes(path.read_bytes()[hdf5.SEAL_BYTES :])
    return to


def test_a_repacked_file_is_checked_by_its_content(files, networks, tmp_path):
    bare = unsealed(files / "signgd.h5", tmp_path / "bare.h5")
    assert_equal_networks(sg.load(bare), networks["signgd"])
    with h5py.File(bare) as old, h5py.File(tmp_path / "repacked.h5", "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            old.copy(name, new)
    assert (tmp_path / "repacked.h5").read_bytes() != bare.read_bytes()
    assert_equal_networks(sg.load(tmp_path / "repacked.h5"), networks["signgd"])
    with h5py.File(tmp_path / "repacked.h5", "r+") as file:
        file["nodes/00001/tensors.weight"][0, 0, 0, 0] += 1e-7
    with pytest.raises(sg.FormatError, match="its content has the sha256:.* is written"):
        sg.load(tmp_path / "repacked.h5")
    hdf5.seal(tmp_path / "repacked.h5")
    assert sg.load(tmp_path / "repacked.h5").names() == networks["signgd"].names()


def test_the_checksum_names_the_content(networks, files, tmp_path):
    for name in ("group", "signgd"):
        sg.save(networks[name], tmp_path / "again.h5")
        assert (tmp_path / "again.h5").read_bytes() == (files / f"{name}.h5").read_bytes()
        sg.save(sg.load(files / f"{name}.h5"), tmp_path / "again.h5")
        assert hdf5.read(tmp_path / "again.h5").checksum == hdf5.read(files / f"{name}.h5").checksum
    checksums = {hdf5.read(path).checksum for path in files.glob("*.h5")}
    assert len(checksums) == len(NETWORKS)
    data = (files / "group.h5").read_bytes()
    written = data[: hdf5.SEAL_BYTES].split(b"\n")[1].decode()
    assert written == hashlib.sha256(data[hdf5.SEAL_BYTES :]).hexdigest()


def test_files_of_version_1_0_are_read(files, networks, tmp_path):
    """They have neither checksums nor what the attributes of 1.1 say."""
    for name, network in networks.items():
        old = unsealed(files / f"{name}.h5", tmp_path / "old.h5")
        with h5py.File(old, "r+") as file:
            file.attrs["format_version"] = "1.0"
            for attribute in ("checksum", "spikes", "delay", "input_coding"):
                del file.attrs[attribute]
        assert_equal_networks(sg.load(old), network)
        assert hdf5.read(old).version == (1, 0)


def test_what_the_root_says(files, tmp_path):
    with h5py.File(files / "paper.h5") as file:
        assert file.attrs["format_version"] == "1.2"
        assert "zero: within a time step" in file.attrs["delay"]
        assert "sigma in {-1, +1}" in file.attrs["spikes"]
        assert file.attrs["checksum"].startswith("sha256:")
    coding = {}
    for path in files.glob("*.h5"):
        with h5py.File(path) as file:
            coding[path.stem] = file.attrs["input_coding"]
            assert (
                file.attrs["input_coding"] == json.loads(file.attrs["provenance"])["input_coding"]
            )
    assert set(coding.values()) == {"exact", "real", "poisson", "spike"}


def test_class_names(networks, tmp_path):
    names = ["zero", "eins", "二"]
    sg.save(networks["group"], tmp_path / "n.h5", class_names=names)
    loaded = sg.load(tmp_path / "n.h5")
    assert loaded.provenance["class_names"] == names
    sg.save(loaded, tmp_path / "again.h5")
    assert hdf5.read(tmp_path / "again.h5").class_names == tuple(names)
    with pytest.raises(sg.FormatError, match="class_names is a list of strings"):
        sg.save(networks["group"], tmp_path / "n.h5", class_names="zero")
    with pytest.raises(sg.FormatError, match="class_names is a list of strings"):
        sg.save(networks["group"], tmp_path / "n.h5", class_names=[0, 1])


def test_a_certificate_does_not_change_the_checksum(files, tmp_path):
    before = hdf5.read(files / "group.h5")
    certified = hdf5.embed((files / "group.h5").read_bytes(), '{"mismatches": 0}')
    (tmp_path / "bad.h5").write_bytes(certified)
    after = hdf5.read(tmp_path / "bad.h5")
    assert after.certificate == {"mismatches": 0} and before.certificate is None
    assert after.checksum == before.checksum


def changed(network, name, **changes):
    nodes = [replace(node, **changes) if node.name == name else node for node in network.nodes]
    return network.replace(nodes=tuple(nodes))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(networks, tmp_path, value):
    network = networks["signgd"]
    linear = next(n for n in network.nodes if n.kind == "linear" and "weight" in n.tensors)
    weight = linear.tensors["weight"].clone()
    weight.flatten()[3] = value
    scale = torch.full((6, 1, 1), value)
    for broken, where in (
        (changed(network, linear.name, tensors={"weight": weight}), f"'{linear.name}'.*s.weight"),
        (changed(network, "prelu", scale=scale), "'prelu': scale"),
        (changed(network, "prelu", resting=value), "'prelu': resting"),
        (changed(network, "prelu", arguments={"weight": scale}), "'prelu': arguments.weight"),
    ):
        with pytest.raises(sg.FormatError, match=f"node {where} holds NaN or infinity"):
            sg.save(broken, tmp_path / "n.h5")
    assert not os.listdir(tmp_path)


def test_a_clamp_may_be_open(networks, tmp_path):
    arguments = {"min": -float("inf"), "max": 0.5}
    network = changed(networks["signgd"], "clamp", arguments=arguments)
    sg.save(network, tmp_path / "n.h5")
    assert_equal_networks(sg.load(tmp_path / "n.h5"), network)


def test_large_tensors_are_chunked_and_compressed(networks, tmp_path, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.ReLU(), nn.Linear(300, 5))
    network = sg.convert(model, X, time_steps=4)
    monkeypatch.setattr(hdf5, "LARGEST_CHUNK", 20_000)
    sg.save(network, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5") as file:
        weight = file["nodes/00002/tensors.weight"]
        assert (weight.compression, weight.shuffle, weight.chunks) == ("gzip", True, (138, 36))
        assert weight.id.get_storage_size() < 0.95 * weight.nbytes
        assert file["nodes/00002/tensors.bias"].chunks is None, "1,200 bytes"
    assert_equal_networks(sg.load(tmp_path / "n.h5"), network)


def test_fields_are_those_of_the_nodes():
    for kind, node in NODES.items():
        assert set(KINDS[kind].fields) == {field.name for field in fields(node)}
    assert set(KINDS) == set(NODES)


def read_or_refused(path):
    """Whether it was read; nothing else but a FormatError within a second is allowed."""
    begun = time.process_time()
    try:
        hdf5.read(path)
        return True
    except sg.FormatError as error:
        assert str(path) in str(error)
        return False
    finally:
        assert time.process_time() - begun < 1


def test_a_thousand_damaged_files(files, tmp_path):
    whole = (files / "signgd.h5").read_bytes()
    chance = random.Random(0)
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 16))):
            data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        (tmp_path / "bad.h5").write_bytes(data)
        assert not read_or_refused(tmp_path / "bad.h5")


def give(name, value):
    def edit(file, node):
        node.attrs[name] = value

    return edit


def take(name):
    def edit(file, node):
        del node.attrs[name]

    return edit


def put(name, **options):
    def edit(file, node):
        if name in node:
            del node[name]
        node.create_dataset(name, **options)

    return edit


def link(name, target):
    def edit(file, node):
        if name in node:
            del node[name]
        node[name] = file[target] if isinstance(target, str) else target

    return edit


def itself(file, node):
    node.attrs["inputs"] = f"[{node.attrs['name']}]"


def stored_elsewhere(file, node):
    node.create_dataset("scale", shape=(8,), dtype="f4", external=[("/etc/passwd", 0, 32)])


def seen_through(file, node):
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "a", (8,))
    node.create_virtual_dataset("scale", layout)


# edits of a node that make the file none, whatever the node is
FATAL = {
    "no name": take("name"),
    "no kind": take("kind"),
    "a number for a kind": give("kind", 7),
    "a kind of several numbers": give("kind", [1.0, 2.0]),
    "a later node as input": give("inputs", '["nobody"]'),
    "itself as input": itself,
    "inputs that are a number": give("inputs", "3"),
    "a shape below zero": give("shape", "[-1]"),
    "a shape of words": give("shape", '["many"]'),
    "a shape of fractions": give("shape", "[1.5]"),
    "a name that is a number": give("name", "3"),
    "JSON cut short": give("shape", "[1, "),
    "JSON a hundred thousand deep": put("shape.json", data=np.full(100_000, 91, "u1")),
    "a number of ten thousand digits": give("shape", f"[{'9' * 10_000}]"),
    "no finite number": give("shape", "[1e999]"),
    "a group for a tensor": lambda file, node: node.create_group("shape"),
    "text for a tensor": put("name", data="text", dtype=h5py.string_dtype()),
    "records for a tensor": put("shape", data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "a loop of groups": link("loop", "/nodes"),
    "a loop to the root": link("loop", "/"),
    "a soft link": link("more", h5py.SoftLink("/nodes")),
    "a link to another file": link("more", h5py.ExternalLink("/etc/passwd", "/")),
    "values in another file": stored_elsewhere,
    "a view of another file": seen_through,
    "a huge tensor": put("huge", shape=(2**40,), dtype="f8"),
    "a huge tensor in chunks": put("huge", shape=(2**40,), dtype="f8", chunks=(2**16,)),
    "a huge tensor, compressed": put("huge", shape=(2**33,), dtype="f8", compression="gzip"),
    "a tensor without a shape": put("huge", data=h5py.Empty("f4")),
}  # fmt: skip
VALUES = [
    *("null", "true", "-1", "1e999", "NaN", "[]", "{}", '"x"', "[[]]", "", "7", "[1, 2, 3, 4, 5]"),
    *('{"kind": 1}', '{"kind": "list", "values": [0.5, NaN]}'),
]


def structurally_wrong(path, to, edit, node):
    """Without checksums, so that nothing but the structure stands in the way."""
    unsealed(path, to)
    with h5py.File(to, "r+") as file:
        file.attrs["format_version"] = "1.0"
        edit(file, file["nodes"][node])


@pytest.mark.parametrize("edit", FATAL)
def test_a_structurally_wrong_file_is_refused(files, tmp_path, edit):
    for node in ("00000", "00003", "00006"):
        structurally_wrong(files / "group.h5", tmp_path / "bad.h5", FATAL[edit], node)
        tracemalloc.start()
        try:
            assert not read_or_refused(tmp_path / "bad.h5"), node
            assert tracemalloc.get_traced_memory()[1] < 2**20, "of a file of 10 kB"
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_a_thousand_structurally_wrong_files(files, tmp_path, seed):
    chance = random.Random(seed)
    read = 0
    for trial in range(250):
        name = chance.choice(["group", "mixed", "group, poisson"])

        def edit(file, node):
            keys = [*(f"@{key}" for key in node.attrs), *node]
            key = chance.choice(keys)  # noqa: B023
            if key[0] != "@":
                del node[key]
                if chance.random() < 0.7:  # noqa: B023
                    shape = chance.choice([(), (0,), (3,), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1)])  # noqa: B023
                    dtype = chance.choice(["f4", "i8", "f2", "u1", "?"])  # noqa: B023
                    node.create_dataset(key, data=np.ones(shape, dtype))
            elif chance.random() < 0.2:  # noqa: B023
                del node.attrs[key[1:]]
            else:
                node.attrs[key[1:]] = chance.choice([*VALUES, 3, 1.5, [1, 2]])  # noqa: B023

        structurally_wrong(files / f"{name}.h5", tmp_path / "bad.h5", edit, f"{trial % 6:05}")
        read += read_or_refused(tmp_path / "bad.h5")
    assert read < 90, "most edits matter; a seed or a module's path may be anything"


@pytest.mark.parametrize("edit", ["a loop of groups", "a huge tensor", "values in another file"])
def test_what_is_refused_is_not_sealed_either(files, tmp_path, edit):
    structurally_wrong(files / "group.h5", tmp_path / "bad.h5", FATAL[edit], "00003")
    with pytest.raises(sg.FormatError):
        hdf5.seal(tmp_path / "bad.h5")


def test_another_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2, 3]
    with pytest.raises(sg.FormatError, match="an HDF5 file, but not a spiking-network description"):
        sg.load(tmp_path / "other.h5")


def test_a_newer_version(files, tmp_path):
    overwritten(files / "group.h5", tmp_path, "@format_version", "2.0")
    with pytest.raises(sg.FormatError, match="version 2.0.*up to 1.x; install a newer"):
        sg.load(tmp_path / "bad.h5")


def test_a_newer_minor_version_is_read(files, networks, tmp_path):
    overwritten(files / "group.h5", tmp_path, "@format_version", "1.7")
    overwritten(tmp_path / "bad.h5", tmp_path, "nodes/00001@remark", "from a later release")
    assert_equal_networks(sg.load(tmp_path / "bad.h5"), networks["group"])


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5"):
        sg.load(tmp_path / "absent.h5")
    with pytest.raises(FileNotFoundError):
        sg.load(tmp_path)


def test_a_nonlinearity_of_the_users_own(tmp_path):
    """It is asked for by name, and its tie rule comes from the file."""
    aten = torch.ops.aten
    row = sg.Nonlinearity("wave", torch.sin, arity=1, fires_at_tie=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), Sine(), nn.Linear(8, 3))
    network = sg.convert(model, X, neurons=sg.NEURONS | {aten.sin.default: row}, time_steps=16)
    path = tmp_path / "wave.h5"
    sg.save(network, path)
    with pytest.raises(sg.FormatError, match="'2.wave' uses the nonlinearity 'wave'.*functions="):
        sg.load(path)
    expected = sg.run(sg.build(network), X, 16)[16]
    for given in (row, torch.sin):
        loaded = sg.load(path, functions={"wave": given})
        assert loaded["2.wave"].function == row
        assert torch.equal(sg.run(sg.build(loaded), X, 16)[16], expected)
    other = sg.Nonlinearity("wave", torch.sin, fires_at_tie=True)
    with pytest.raises(sg.FormatError, match="fires_at_tie"):
        sg.load(path, functions={"wave": other})


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


def test_a_row_of_the_users_own_does_not_hide_behind_a_known_name(tmp_path):
    aten = torch.ops.aten
    row = sg.Nonlinearity("relu", lambda x: x.clamp(min=0), fires_at_tie=True)
    network = sg.convert(relu_model(), X, neurons=sg.NEURONS | {aten.relu: row}, time_steps=4)
    sg.save(network, tmp_path / "n.h5")
    with pytest.raises(sg.FormatError, match="nonlinearity 'relu'"):
        sg.load(tmp_path / "n.h5")
    assert sg.load(tmp_path / "n.h5", functions={"relu": row})["2"].function is row


@pytest.mark.parametrize("call", [lambda n, p: sg.save(n, p), lambda n, p: sg.load(p)])
def test_without_h5py(networks, tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(sg.BackendUnavailable, match=r"pip install 'spikingjelly-signgd\[hdf5\]'"):
        call(networks["group"], tmp_path / "n.h5")
    assert not list(Path(tmp_path).iterdir())


DOCUMENT = (Path(__file__).parent.parent / "docs" / "format.md").read_text()


def table(heading):
    """The rows of the table under a heading of the document, as cells."""
    part = DOCUMENT.split(f"\n{heading}\n")[1].split("\n#")[0]
    rows = [line.replace("\\|", "/") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(cell):
    return re.findall("`([a-z_]+)`", cell)


def test_the_documented_example_runs(networks, tmp_path):
    code = DOCUMENT.split("```python\n")[2].split("```")[0]
    assert 10 <= len(code.strip().splitlines()) <= 16
    assert not re.search("torch|numpy|spikingjelly", code)
    for name in ("group", "paper"):
        sg.save(networks[name], tmp_path / "network.h5")
        script = [sys.executable, "-c", code]
        told = subprocess.run(script, cwd=tmp_path, check=True, capture_output=True, text=True)
        for node in networks[name].nodes:
            assert f"{node.name} {node.kind} of " in told.stdout
    assert "'tensors.weight': (6, 1, 3, 3)" in told.stdout


def test_every_field_is_documented():
    found = {}
    for kind, field, *_ in table("### Nodes"):
        found.setdefault(kind, set()).update(quoted(field))
    every, function = found.pop("every"), found["function"]
    assert set(found) == set(NODES)
    for kind, node in NODES.items():
        inherited = function if issubclass(node, Function) else set()
        assert every | inherited | found[kind] == {field.name for field in fields(node)}, kind


def test_every_operation_schedule_and_function_is_documented(files):
    rows = {op: (quoted(attributes), quoted(tensors))
            for op, attributes, tensors, _ in table("### Linear operations")}  # fmt: skip
    assert set(rows) == set(LINEAR)
    for op, row in LINEAR.items():
        assert set(rows[op][0]) - {"align_corners"} == set(row.attributes), op
        assert set(rows[op][1]) == {*row.tensors, *row.optional}, op
    schedules = {kind: set(quoted(parameters)) for kind, parameters, _ in table("### Schedules")}
    assert schedules == {kind: set(checks) for kind, checks in SCHEDULES.items()}
    functions = {row[0]: row for row in table("### Functions")}
    assert set(functions) == set(sg.NONLINEARITIES)
    for name, row in sg.NONLINEARITIES.items():
        assert functions[name][-1] == ("+1" if row.fires_at_tie else "−1"), name
        arity = None if functions[name][1] == "any number" else len(functions[name][1].split(","))
        assert arity == row.arity, name
    sg.save(sg.load(files / "group.h5").replace(stream=True), files / "of streams.h5")
    with h5py.File(files / "of streams.h5") as file, h5py.File(files / "group.h5") as other:
        documented = {name for row in table("### Root") for name in quoted(row[0])}
        assert documented == {*file.attrs, "class_names", "certificate"}
        assert set(file.attrs) - set(other.attrs) == {"stream", "carries"}


def test_the_documented_checksum(files):
    """Computed as the document says, by other code."""

    def announced(*header, data=b""):
        return json.dumps([*header, len(data)]).encode() + b"\n" + data

    def array(name, values):
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        shape = list(values.shape)
        return announced("array", name, little.dtype.str, shape, data=little.tobytes())

    def content(path, item):
        is_group = isinstance(item, h5py.Group)
        found = announced("group" if is_group else "dataset", path)
        for name in sorted(item.attrs):
            value = item.attrs[name]
            if path == "/" and name in ("checksum", "certificate"):
                continue
            text = isinstance(value, str)
            found += announced("text", name, data=value.encode()) if text else array(name, value)
        if not is_group:
            return found + array("", np.asarray(item[()]))
        below = (content(f"{path.rstrip('/')}/{name}", item[name]) for name in sorted(item))
        return found + b"".join(below)

    with h5py.File(files / "signgd.h5") as file:
        digest = hashlib.sha256(content("/", file["/"])).hexdigest()
        assert file.attrs["checksum"] == f"sha256:{digest}"
