"""What is saved is read back equal; what is no description is refused."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.network import leaves

pytestmark = pytest.mark.spikingjelly

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


def test_an_interrupted_save_leaves_the_old_file(networks, tmp_path, monkeypatch):
    from spikingjelly_signgd.exporters import description

    path = tmp_path / "network.h5"
    sg.save(networks["group"], path)
    before = path.read_bytes()

    def interrupted(tensor):
        raise KeyboardInterrupt

    monkeypatch.setattr(description, "_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sg.save(networks["signgd"], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["network.h5"]


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
