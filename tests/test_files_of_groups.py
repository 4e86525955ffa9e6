"""Files of groups: several signs in a step, signed groups, thresholds by channel, growth.

Networks are built by hand, so that every field has a value of its own.
"""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import (
    Average,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    SignGDNeuron,
    SpikingNetwork,
)
from spikingjelly_signgd.exporters.hdf5 import layout as hdf5
from spikingjelly_signgd.exporters.hdf5.definition import DefinitionNetwork, run_definition
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.neurons import levels

ROWS = sg.NONLINEARITIES
IMAGE, POOLED = ("1*batch", 4, 6, 6), ("1*batch", 4, 3, 3)
WINDOWS = {
    "kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1),
    "ceil_mode": False,
}  # fmt: skip
X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))
BY_CHANNEL = {
    "v_threshold": torch.tensor([0.3, 1.0, 0.77, 1.9]).view(4, 1, 1),
    "initial_charge": torch.tensor([0.5, 0.0, 0.31, 0.9]).view(4, 1, 1),
}


def network_of(first, pool, second, readout=(), time_steps=6):
    """conv, ``first``, ``pool``, conv, ``second``, linear: nodes without names and inputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return 0.4 * torch.randn(*shape, generator=generator)

    def conv(inputs, shape):
        geometry = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
        tensors = {"weight": random(4, inputs, 3, 3), "bias": random(4)}
        return Linear(name="", op="conv", attributes=geometry, tensors=tensors, shape=shape)

    flat = ("1*batch", 36)
    linear = {"weight": random(5, 36), "bias": random(5)}
    named = {
        "x": Input(name="", shape=("1*batch", 2, 6, 6)),
        "c1": conv(2, IMAGE),
        "n1": dataclasses.replace(first, shape=IMAGE),
        "pool": dataclasses.replace(pool, shape=POOLED),
        "c2": conv(4, POOLED),
        "n2": dataclasses.replace(second, shape=POOLED),
        "flat": Linear(name="", op="reshape", attributes={"shape": list(flat)}, shape=flat),
        "y": Linear(name="", op="linear", tensors=linear, shape=("1*batch", 5)),
        **{f"out{i}": node for i, node in enumerate(readout)},
    }
    names = list(named)
    nodes = [
        dataclasses.replace(node, name=name, inputs=tuple(names[i - 1 : i]) if i else ())
        for i, (name, node) in enumerate(named.items())
    ]
    return SpikingNetwork(tuple(nodes), names[-1], time_steps)


def group_network(pooling="growth", time_steps=6, **fields):
    neuron = {"members": 3, "v_threshold": 0.7, **fields}
    group = GroupNeuron(name="", function=ROWS["relu"], channel=-3, **neuron)
    pools = {
        "growth": Growth(name="", function=ROWS["max_pool"], arguments=WINDOWS),
        "average": Linear(
            name="",
            op="avg_pool",
            attributes={
                "kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil_mode": False,
                "count_include_pad": True, "divisor_override": None,
            },
        ),
    }  # fmt: skip
    average = Average(name="", shape=("1*batch", 5))
    return network_of(group, pools[pooling], group, [average], time_steps)


def signgd_network(members, time_steps=6):
    neuron = {"schedule": sg.ExponentialSchedule(0.5, 0.6), "members": members}
    scale = torch.tensor([0.3, 1.0, 0.7, 2.0]).view(4, 1, 1)
    return network_of(
        SignGDNeuron(name="", function=ROWS["gelu"], scale=scale, **neuron),
        SignGDNeuron(
            name="", function=ROWS["max_pool"], arguments=WINDOWS, resting=0.2137, **neuron
        ),
        SignGDNeuron(name="", function=ROWS["relu"], **neuron),
        time_steps=time_steps,
    )


NETWORKS = {
    "growth": group_network(),
    "signed": group_network(signed=True),
    "by channel": group_network(**BY_CHANNEL),
    "charges by channel": group_network(initial_charge=BY_CHANNEL["initial_charge"]),
    "signed by channel": group_network(signed=True, **BY_CHANNEL),
    **{f"{m} signs": signgd_network(m) for m in (1, 2, 3, 8)},
}


def with_field(network, name, **changes):
    nodes = [dataclasses.replace(n, **changes) if n.name == name else n for n in network.nodes]
    return network.replace(nodes=tuple(nodes))


def double(network):
    def wide(value):
        if isinstance(value, Tensor):
            return value.double()
        if isinstance(value, dict):
            return {key: wide(item) for key, item in value.items()}
        return value

    nodes = [
        dataclasses.replace(n, **{f.name: wide(getattr(n, f.name)) for f in dataclasses.fields(n)})
        for n in network.nodes
    ]
    return network.replace(nodes=tuple(nodes))


# -- the definitions, step by step ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_each_kind_fires(dtype):
    signed = run_definition(NETWORKS["signed by channel"], X, 6, dtype=dtype)
    assert (signed.spikes["n1"] >= 0).all(), "the input is the same at each step"
    n = signed.spikes["n2"]
    assert n.dtype == torch.int64 and n.min() < 0 and n.max() == 3
    assert (n.cumsum(0) >= 0).all(), "no more is taken back than was sent"
    total = (signed.spikes["n1"] * BY_CHANNEL["v_threshold"].to(dtype) / 3).cumsum(0)
    pooled = torch.stack([ROWS["max_pool"](step, **WINDOWS) for step in total])
    torch.testing.assert_close(signed.spikes["pool"].cumsum(0), pooled)
    unsigned = run_definition(NETWORKS["by channel"], X, 6, dtype=dtype).spikes["n2"]
    assert unsigned.min() == 0
    signs = run_definition(NETWORKS["3 signs"], X, 6, dtype=dtype).spikes["n1"]
    assert signs.dtype == torch.uint8 and signs.max() <= 7 and len(signs.unique()) > 5
    assert set(levels(signs, 3, torch.int64).unique().tolist()) <= {-7, -5, -3, -1, 1, 3, 5, 7}


@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_that_change(tmp_path, name, delay):
    """Signed groups take back all that they sent, and m at once; NumPy and torch agree."""
    x_seq = 3 * torch.randn(6, *X.shape, generator=torch.Generator().manual_seed(4)).double()
    module, state, fired = DefinitionNetwork(NETWORKS[name]).double(), None, []
    for x in x_seq:
        outputs, state = module(x, state)
        fired.append({key: value.numpy() for key, value in module.fired.items()})
    sg.save(NETWORKS[name], tmp_path / "n.h5")
    runner = Runner(tmp_path / "n.h5")
    found = runner.run(x_seq.numpy(), 6, sequence=True, view="decoded", delay=delay)
    np.testing.assert_allclose(found.outputs[6], outputs.numpy(), rtol=0, atol=1e-12)
    for neuron, have in found.spikes.items():
        lag = found.lags[neuron]
        assert np.array_equal(have[lag : lag + 6], np.stack([step[neuron] for step in fired]))
    if "signed" in name:
        n = found.spikes["n1"]
        assert set(np.unique(n)) == set(range(-3, 4)) and n.cumsum(0).min() == 0


def test_both_views_of_several_signs_agree():
    for name in ("2 signs", "3 signs", "8 signs"):
        decoded, signed = (
            run_definition(NETWORKS[name], X, 6, spikes=view) for view in ("decoded", "signed")
        )
        torch.testing.assert_close(decoded.outputs, signed.outputs, rtol=0, atol=1e-12)
        for neuron, fired in decoded.spikes.items():
            assert torch.equal(fired, signed.spikes[neuron])


@pytest.mark.parametrize("name", ["growth", "signed"])
def test_there_is_no_spike_view_of_growth(name):
    with pytest.raises(ValueError, match="n1, pool, n2, out0 are not"):
        run_definition(NETWORKS[name], X, 2, spikes="signed")


# -- descriptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_descriptions_are_verified(name, tmp_path):
    """Content, NumPy against torch in float64 and with a delay: no cell differs."""
    network = NETWORKS[name]
    sg.save(network, tmp_path / "n.h5")
    certificate = sg.verify(tmp_path / "n.h5", X, network=network)
    assert certificate.ok, certificate
    content, exact, late, single = certificate.checks
    cells = 6 * sum(network.count(len(X)).values())
    assert exact.cells == late.cells == cells and exact.spikes > 0.05 * cells
    assert late.readout_error == 0 and exact.readout_error < 1e-12
    assert single.mismatches <= (0.02 * cells if "signs" in name else 0), single


@pytest.mark.parametrize("name", NETWORKS)
def test_every_field_is_read_back(name, tmp_path):
    network = NETWORKS[name]
    sg.save(network, tmp_path / "n.h5")
    again = sg.load(tmp_path / "n.h5")
    for have, want in zip(again.nodes, network.nodes, strict=True):
        assert type(have) is type(want)
        for field in dataclasses.fields(want):
            a, b = getattr(have, field.name), getattr(want, field.name)
            if isinstance(b, Tensor):
                assert a.dtype == b.dtype and torch.equal(a, b), field.name
            elif field.name not in ("tensors", "attributes"):
                assert a == b and type(a) is type(b), field.name
    sg.save(again, tmp_path / "again.h5")
    assert hdf5.read(tmp_path / "again.h5").checksum == hdf5.read(tmp_path / "n.h5").checksum


IN_A_FRESH_PROCESS = """
import sys
import torch
import spikingjelly_signgd as sg
from spikingjelly_signgd.exporters.hdf5.definition import run_definition

x = torch.load("x.pt", weights_only=True)
for i in range(int(sys.argv[1])):
    run = run_definition(sg.load(f"{i}.h5"), x, 6, dtype=torch.float32)
    torch.save((dict(run.spikes), run.outputs), f"{i}.pt")
"""


def test_a_fresh_process_computes_the_same_bits(tmp_path):
    torch.save(X, tmp_path / "x.pt")
    for i, network in enumerate(NETWORKS.values()):
        sg.save(network, tmp_path / f"{i}.h5")
    script = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(len(NETWORKS))]
    subprocess.run(script, cwd=tmp_path, check=True, timeout=300)
    for i, network in enumerate(NETWORKS.values()):
        spikes, outputs = torch.load(tmp_path / f"{i}.pt", weights_only=True)
        want = run_definition(network, X, 6, dtype=torch.float32)
        assert torch.equal(outputs, want.outputs)
        assert all(torch.equal(spikes[name], fired) for name, fired in want.spikes.items())


def test_values_of_the_runner(tmp_path):
    sg.save(NETWORKS["signed"], tmp_path / "n.h5")
    result = Runner(tmp_path / "n.h5").run(X.double().numpy(), (2, 6), values=True)
    grown = result.spikes["pool"].cumsum(0)
    np.testing.assert_allclose(result.values["pool"], grown, rtol=0, atol=1e-12)
    assert result.spikes["n2"].min() < 0 and result.spikes["n2"].dtype == np.int32
    assert result.values["n1"].shape == result.spikes["n1"].shape
    sg.save(NETWORKS["3 signs"], tmp_path / "n.h5")
    runner = Runner(tmp_path / "n.h5", np.float32)
    assert runner.view == "spike"
    spike, decoded = (runner.run(X.numpy(), 6, view=v, values=True) for v in ("spike", "decoded"))
    assert spike.spikes["n1"].dtype == np.uint8 and spike.values["n1"].dtype == np.float32
    assert (spike.spikes["n1"] != decoded.spikes["n1"]).mean() < 0.01


def test_ties_of_signed_groups(tmp_path):
    """Dyadic numbers: potentials on 0 and on thresholds below it, where floor counts."""
    network = group_network(signed=True, members=4, v_threshold=2.0)
    network = with_field(
        network,
        "c1",
        tensors={
            "weight": torch.zeros(4, 2, 3, 3).index_fill_(2, torch.tensor(1), 0.25),
            "bias": torch.tensor([-0.5, 0.0, 0.25, -1.0]),
        },
    )
    sg.save(network, tmp_path / "n.h5")
    x = torch.randint(-4, 5, (64, 2, 6, 6), generator=torch.Generator().manual_seed(2)).float()
    certificate = sg.verify(tmp_path / "n.h5", x, network=network)
    assert certificate.ok and all(check.mismatches == 0 for check in certificate.checks)


def test_growth_of_currents_is_compared_within_rounding(tmp_path):
    """Pooled before the neuron the growth is of sums that NumPy and torch round differently."""
    network = NETWORKS["growth"]
    pool = dataclasses.replace(network["pool"], inputs=("c1",))
    nodes = [pool if n is network["pool"] else n for n in network.nodes if n.name != "n1"]
    sg.save(network.replace(nodes=tuple(nodes)), tmp_path / "n.h5")
    certificate = sg.verify(tmp_path / "n.h5", X)
    assert certificate.ok, certificate


def test_a_growth_that_errs_is_found_out(tmp_path, monkeypatch):
    from spikingjelly_signgd.exporters.hdf5 import runner

    sg.save(NETWORKS["growth"], tmp_path / "n.h5")
    right = runner._Run._growth

    def wrong(self, node, inputs):
        out, seen = right(self, node, inputs)
        seen = seen.copy()
        seen.flat[0] += 1e-6
        return out, seen

    monkeypatch.setitem(runner._NEURONS, "growth", wrong)
    certificate = sg.verify(tmp_path / "n.h5", X)
    assert not certificate.ok and certificate.checks[0].mismatches == 6


def test_lists_with_a_tail(tmp_path):
    """Steps beyond the last of the list, in both views, and releases that cannot know of them."""
    network = with_field(
        NETWORKS["2 signs"], "n1", schedule=sg.ListSchedule((0.6, 0.3), tail=0.7), members=1
    )
    sg.save(network, tmp_path / "n.h5")
    assert stored(tmp_path / "n.h5")["n1"] == "signgd 1.2"
    assert sg.load(tmp_path / "n.h5")["n1"].schedule == network["n1"].schedule
    certificate = sg.verify(tmp_path / "n.h5", X, network=network)
    assert certificate.ok and certificate.time_steps == 6, certificate
    for value in ("0", "null", '"x"'):
        schedule = f'{{"kind": "list", "values": [0.5], "tail": {value}}}'
        changed(tmp_path / "n.h5", "n1", schedule=schedule)
        with pytest.raises(sg.FormatError, match="n1': schedule = .* does not fit"):
            sg.load(tmp_path / "n.h5")


# -- versions -------------------------------------------------------------------------------------


def stored(path):
    with h5py.File(path) as file:
        return {
            json.loads(group.attrs["name"]): group.attrs["kind"] for group in file["nodes"].values()
        }


def test_older_releases_refuse_what_they_would_ignore(tmp_path):
    """A kind that they do not know: their own message says that the release is newer."""
    kinds = {}
    for name, network in NETWORKS.items():
        sg.save(network, tmp_path / "n.h5")
        kinds[name] = stored(tmp_path / "n.h5")
        old = {"input", "linear", "function", "signgd", "group", "subgradient", "average"}
        assert (set(kinds[name].values()) <= old) == (name == "1 signs")
    assert kinds["signed"]["n1"] == kinds["by channel"]["n1"] == "group 1.2"
    assert kinds["charges by channel"]["n1"] == "group 1.2"
    assert kinds["growth"]["n1"] == "group" and kinds["growth"]["pool"] == "growth"
    assert kinds["2 signs"]["n1"] == "signgd 1.2" and kinds["1 signs"]["n1"] == "signgd"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("name", ["1 signs", "group"])
def test_files_of_older_versions_take_the_defaults(tmp_path, version, name):
    network = NETWORKS["1 signs"] if name == "1 signs" else group_network("average")
    sg.save(network, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        file.attrs["format_version"] = version
        for node in file["nodes"].values():
            if node.attrs["kind"] in ("signgd", "group"):
                del node.attrs["members" if node.attrs["kind"] == "signgd" else "signed"]
                row = json.loads(node.attrs["function"])
                del row["selects"]
                node.attrs["function"] = json.dumps(row)
    hdf5.seal(tmp_path / "n.h5")
    again = sg.load(tmp_path / "n.h5")
    node = again["n1"]
    assert (node.members, hdf5.read(tmp_path / "n.h5").version) == (network["n1"].members,) + (
        tuple(map(int, version.split("."))),
    )
    assert node.kind == "signgd" or node.signed is False
    assert sg.verify(tmp_path / "n.h5", X).ok


def changed(path, node, **attributes):
    with h5py.File(path, "r+") as file:
        group = next(g for g in file["nodes"].values() if json.loads(g.attrs["name"]) == node)
        for name, value in attributes.items():
            if value is None:
                del group.attrs[name]
            elif isinstance(value, np.ndarray):
                if name in group:
                    del group[name]
                group[name] = value
            else:
                group.attrs[name] = value
    hdf5.seal(path)


WRONG = [
    ("signed", "n1", {"kind": "group 1.5"}, "of kind 'group 1.5'.*newer release; install one"),
    ("signed", "n1", {"kind": "lif 1.2"}, "of kind 'lif 1.2'.*newer release"),
    ("signed", "n1", {"signed": None}, "field 'signed' of a group node is missing"),
    ("signed", "n1", {"signed": "1"}, "node 'n1': signed = 1 does not fit"),
    ("2 signs", "n1", {"members": None}, "field 'members' of a signgd node is missing"),
    ("2 signs", "n1", {"members": "9"}, "node 'n1': members = 9 does not fit"),
    ("2 signs", "n1", {"members": "0"}, "node 'n1': members = 0 does not fit"),
    ("2 signs", "n1", {"members": "2.0"}, "node 'n1': members = 2.0 does not fit"),
    ("2 signs", "n1", {"momentum": "0.5"}, "node 'n1': members = 2 and momentum = 0.5 exclude"),
    ("by channel", "n1", {"v_threshold": np.ones(3, "f4")}, r"n1': v_threshold is \[3\].*\[C"),
    ("by channel", "n1", {"v_threshold": np.ones((1, 1, 4, 6, 6))}, "does not broadcast to its"),
    ("by channel", "n1", {"initial_charge": np.ones((5, 1, 1))}, r"charge is \[5, 1, 1\] and does"),
    ("by channel", "n1", {"v_threshold": np.full((4, 1, 1), np.nan)}, "v_threshold holds NaN"),
    ("by channel", "n1", {"v_threshold": np.zeros((4, 1, 1))}, "v_threshold = an array .* not fit"),
    ("by channel", "n1", {"v_threshold": np.ones((4, 1, 1), int)}, "v_threshold = an array .*int"),
    ("by channel", "n1", {"initial_charge": np.full(6, np.inf)}, "initial_charge holds NaN or inf"),
]


@pytest.mark.parametrize(("name", "node", "attributes", "message"), WRONG)
def test_nonsense_in_a_file(tmp_path, name, node, attributes, message):
    sg.save(NETWORKS[name], tmp_path / "n.h5")
    changed(tmp_path / "n.h5", node, **attributes)
    with pytest.raises(sg.FormatError, match=message):
        sg.load(tmp_path / "n.h5")
    with pytest.raises(sg.FormatError, match=message):
        Runner(tmp_path / "n.h5")


WRONG_FIELDS = [
    ("growth", "n1", {"v_threshold": float("nan")}, "v_threshold holds NaN"),
    ("growth", "n1", {"v_threshold": -1.0}, "v_threshold = -1.0 does not fit"),
    ("growth", "n1", {"v_threshold": torch.ones(3, 1, 1)}, r"v_threshold is \[3, 1, 1\]"),
    ("growth", "n1", {"initial_charge": torch.full((4, 1, 1), torch.nan)}, "charge holds NaN"),
    ("growth", "pool", {"function": ROWS["relu"], "arguments": {}}, "'relu' does not select one"),
    ("growth", "pool", {"inputs": ("n1", "c1")}, "'pool' has 2 inputs; it takes 1"),
    ("2 signs", "n1", {"members": 9}, "members = 9 does not fit"),
]


@pytest.mark.parametrize(("name", "node", "fields", "message"), WRONG_FIELDS)
def test_nonsense_is_not_saved(tmp_path, name, node, fields, message):
    with pytest.raises(sg.FormatError, match=f"node '{node}'.*{message}|{message}"):
        sg.save(with_field(NETWORKS[name], node, **fields), tmp_path / "n.h5")
    assert not list(tmp_path.iterdir())


def test_a_selecting_function_of_the_users_own(tmp_path):
    row = sg.Nonlinearity("first", lambda x: x[..., :3, :3], elementwise=False, selects=True)
    network = with_field(NETWORKS["growth"], "pool", function=row, arguments={})
    sg.save(network, tmp_path / "n.h5")
    assert sg.load(tmp_path / "n.h5", functions={"first": row})["pool"].function is row
    bare = sg.load(tmp_path / "n.h5", functions={"first": row.function})["pool"].function
    assert bare == row and bare.selects
    certificate = sg.verify(tmp_path / "n.h5", X, network=network, functions={"first": row})
    assert certificate.ok
    other = dataclasses.replace(row, selects=False)
    with pytest.raises(sg.FormatError, match="selects"):
        sg.load(tmp_path / "n.h5", functions={"first": other})


def test_growth_of_several_inputs(tmp_path):
    """max(x, y) of two layers of groups, the second negated."""
    base = group_network(signed=True, **BY_CHANNEL)
    minus = {"coefficients": [0.5, -1.0]}
    extra = [
        Linear(name="d", inputs=("n1", "c1"), op="add", attributes=minus, shape=IMAGE),
        dataclasses.replace(base["n1"], name="n3", inputs=("d",)),
        Growth(name="m", inputs=("n1", "n3"), function=ROWS["maximum"], shape=IMAGE),
        dataclasses.replace(base["pool"], inputs=("m",)),
    ]
    nodes = []
    for node in base.nodes:
        nodes += extra if node.name == "pool" else [node]
    network = base.replace(nodes=tuple(nodes))
    sg.save(network, tmp_path / "n.h5")
    certificate = sg.verify(tmp_path / "n.h5", X, network=network)
    assert certificate.ok, certificate
    runner = Runner(tmp_path / "n.h5")
    assert [runner.lags[name] for name in ("n1", "n3", "m", "pool", "n2")] == [0, 1, 2, 3, 4]


# -- NIR ------------------------------------------------------------------------------------------

nir = pytest.importorskip("nir")

from spikingjelly_signgd.exporters.nir import read_nir, write_nir  # noqa: E402
from spikingjelly_signgd.exporters.nir.graph import group_subgraph  # noqa: E402
from spikingjelly_signgd.exporters.nir.reader import group_parameters  # noqa: E402
from spikingjelly_signgd.exporters.nir.runner import NirRunner  # noqa: E402
from spikingjelly_signgd.neurons import (  # noqa: E402
    GroupNeuronParameters,
    SignedGroupState,
    group_initial_v,
    group_step,
    signed_group_step,
)

FORMS = {
    "signed": {"signed": True},
    "by channel": BY_CHANNEL,
    "charges by channel": {"initial_charge": BY_CHANNEL["initial_charge"]},
    "signed by channel": {"signed": True, **BY_CHANNEL},
    "signed, one member": {"signed": True, "members": 1, "initial_charge": 0.25},
    "by neuron": {"v_threshold": 0.5 + torch.rand(4, 1, 1).expand(1, 4, 1, 1)},
}


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_exact_nir_files(tmp_path, form, wide):
    network = group_network("average", time_steps=8, **FORMS[form])
    network = double(network) if wide else network
    report = write_nir(network, tmp_path / "n.nir", strict=True)
    assert report.losses == ()
    certificate = sg.verify(tmp_path / "n.nir", X, network=network)
    assert certificate.ok and [c.mismatches for c in certificate.checks] == [0, 0, 0], certificate
    again = read_nir(tmp_path / "n.nir")
    for name in ("n1", "n2"):
        for field in ("members", "v_threshold", "initial_charge", "signed"):
            have, want = (getattr(n[name], field) for n in (again, network))
            assert torch.equal(torch.as_tensor(have), torch.as_tensor(want).squeeze(0)), field


def by_definition(x_seq, p):
    x_seq = torch.from_numpy(x_seq)
    state = group_initial_v(x_seq[0], p)
    state = SignedGroupState(state, torch.zeros_like(state)) if p.signed else state
    step, out = signed_group_step if p.signed else group_step, []
    for x in x_seq:
        y, state = step(x, state, p)
        out.append(y)
    return torch.stack(out).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("members", "charge"), [(1, 0.5), (2, 0.0), (4, 0.5), (3, 0.25)])
def test_signed_ties_in_nir(members, charge, dtype):
    """All sums are exact, and many potentials lie on 0 and on thresholds of both signs."""
    v_threshold = members * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1)
    v_threshold = v_threshold.to(torch.float32 if dtype == np.float32 else torch.float64)
    p = GroupNeuronParameters(members, v_threshold, charge, signed=True)
    steps = np.random.default_rng(0).integers(-7 * members, 7 * members + 4, (48, 20, 3, 50))
    x_seq = (steps * p.theta.numpy() / 4).astype(dtype)
    graph = group_subgraph(nir, x_seq.shape[2:], p, dtype, {})
    found = NirRunner(graph).run(x_seq, len(x_seq), sequence=True)["output"]
    want = by_definition(x_seq, p)
    assert np.array_equal(found, want)
    counts = np.rint(want / p.theta.numpy())
    assert set(np.unique(counts)) == set(range(-members, members + 1))
    assert (counts.cumsum(0) == 0).any() and (counts < 0).mean() > 0.1


def test_any_signed_threshold_to_rounding():
    p = GroupNeuronParameters(6, 1.7, 0.3, signed=True)
    x_seq = np.random.default_rng(1).normal(0.1, 1.0, (32, 40, 250))
    graph = group_subgraph(nir, (250,), p, np.float64, {})
    found = NirRunner(graph).run(x_seq, 32, sequence=True)["output"]
    assert np.array_equal(found, by_definition(x_seq, p))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by_channel", [False, True])
def test_graphs_without_metadata_are_recognised(signed, by_channel):
    v_threshold = torch.tensor([0.7, 1.3]).view(2, 1) if by_channel else 0.7
    p = GroupNeuronParameters(3, v_threshold, 0.5, signed)
    found, shape = group_parameters("n", group_subgraph(nir, (2, 3), p, np.float32, {}))
    assert shape == (2, 3) and found.signed is signed and found.initial_charge == 0.5
    assert isinstance(found.v_threshold, Tensor) is by_channel
    wanted = torch.as_tensor(v_threshold, dtype=torch.float32).expand(2, 3)
    have = torch.as_tensor(found.v_threshold, dtype=torch.float32).expand(2, 3)
    torch.testing.assert_close(have, wanted)


def test_a_signed_graph_that_counts_otherwise_is_named():
    p = GroupNeuronParameters(2, 1.0, signed=True)
    for name, node in (
        ("number_mirror", nir.Scale(np.ones((3,), np.float32))),
        ("number_under_002", nir.Threshold(np.full((3,), 2.5, np.float32))),
        ("negative_sum", nir.Scale(np.full((3,), -2, np.float32))),
    ):
        graph = group_subgraph(nir, (3,), p, np.float32, {})
        graph.nodes[name] = node
        with pytest.raises(sg.FormatError, match="does not count what it has sent"):
            group_parameters("n", graph)
    graph = group_subgraph(nir, (3,), p, np.float32, {})
    graph.nodes["negative_002"] = nir.Threshold(np.full((3,), 0.4, np.float32))
    with pytest.raises(sg.FormatError, match="not spaced by theta"):
        group_parameters("n", graph)
    graph = group_subgraph(nir, (3,), p, np.float32, {})
    graph.edges.remove(("negative_sum", "number"))
    with pytest.raises(sg.FormatError, match="its nodes are .*'I': 2.* 6 Threshold"):
        group_parameters("n", graph)


def test_platform_files_of_thresholds_by_channel(tmp_path):
    network = group_network("average", time_steps=8, members=1, **BY_CHANNEL)
    report = write_nir(network, tmp_path / "n.nir", mode="platform")
    assert any("reset subtracts" in loss for loss in report.losses)
    graph = nir.read(tmp_path / "n.nir")
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert np.array_equal(neurons[0].v_threshold[:, 0, 0], BY_CHANNEL["v_threshold"].flatten())
    assert json.loads(neurons[0].metadata["amplitude"])["shape"] == [4, 1, 1]
    # under soft reset from the right potential it is the network
    key = {node.metadata["name"]: name for name, node in graph.nodes.items()
           if isinstance(node, nir.IF)}  # fmt: skip
    runner = NirRunner(graph, ties="fire", reset="subtract")
    p = network["n1"].parameters
    runner.state[key["n1"]] = group_initial_v(torch.zeros(5, *IMAGE[1:]), p).numpy()
    sent = runner.step(X.numpy())[key["n1"]]
    want = run_definition(network, X, 1, dtype=torch.float32).spikes["n1"][0]
    assert np.array_equal(sent, want.numpy())


REFUSED = {
    "growth": (group_network(), "exact", "'pool' .growth max_pool.*no primitive for a maximum"),
    "signs": (NETWORKS["2 signs"], "exact", 'method="group"'),
    "signed": (group_network("average", signed=True, members=1), "platform", "Set signed=False"),
    "broadcast": (
        group_network("average", v_threshold=torch.ones(5, 1, 1)),
        "exact",
        r"v_threshold is \[5, 1, 1\], which does not broadcast",
    ),
    "within a channel": (
        group_network("average", members=1, v_threshold=1 + torch.rand(1, 3, 1).repeat(4, 1, 1)),
        "platform",
        "does not broadcast|differ within a channel",
    ),
    "too small": (
        double(group_network("average", v_threshold=torch.full((4, 1, 1), 1e-60))),
        "platform",
        "members|positive float32",
    ),
    "nan": (
        group_network("average", v_threshold=torch.tensor([1, 1, torch.nan, 1]).view(4, 1, 1)),
        "exact",
        "threshold nan is not a positive float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_refuses(tmp_path, case):
    network, mode, message = REFUSED[case]
    with pytest.raises(sg.FormatError, match=message):
        write_nir(network, tmp_path / "n.nir", mode=mode)
    assert not list(tmp_path.iterdir())


# -- Lava -----------------------------------------------------------------------------------------

LAVA_REFUSED = {
    "signed": (group_network("average", signed=True), "'n1' is signed.*set signed=False"),
    "growth": (group_network(), "'pool' is the growth of max_pool.*average pooling"),
    "signs": (NETWORKS["2 signs"], "'n1' is a signGD neuron of gelu.*SignGDNetwork"),
    "charge": (
        group_network("average", initial_charge=torch.tensor([0.5, 1.5, 0, 0]).view(4, 1, 1)),
        "'n1' starts with a membrane potential of 1.5 thresholds.*initial_charge",
    ),
}


@pytest.mark.parametrize("case", LAVA_REFUSED)
def test_what_netx_refuses(tmp_path, case):
    network, message = LAVA_REFUSED[case]
    with pytest.raises(sg.FormatError, match=message):
        sg.export(network, tmp_path / "n.net", calibration=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("profile", "members"), [("group", 3), ("group-graded", 3), ("if-soft", 1), ("if-hard", 1)]
)
def test_thresholds_by_channel_in_netx(tmp_path, profile, members):
    """Scaled inputs and thresholds of a channel change no integer but the next layer's columns."""
    plain = group_network("average", members=members, initial_charge=0.25)
    factor = torch.tensor([0.5, 2.0, 1.0, 4.0])
    conv, after = plain["c1"].tensors, plain["c2"].tensors
    scaled = with_field(
        plain,
        "c1",
        tensors={
            "weight": conv["weight"] * factor.view(-1, 1, 1, 1),
            "bias": conv["bias"] * factor,
        },
    )
    scaled = with_field(
        scaled,
        "c2",
        tensors={"weight": after["weight"] / factor.view(-1, 1, 1), "bias": after["bias"]},
    )
    scaled = with_field(
        scaled,
        "n1",
        v_threshold=plain["n1"].v_threshold * factor.view(4, 1, 1),
        initial_charge=torch.full((4, 1, 1), 0.25),
    )
    files = SimpleNamespace(plain=tmp_path / "plain.net", scaled=tmp_path / "scaled.net")
    options = {"profile": profile, "calibration": X, "samples": X}
    reports = [
        sg.export(network, path, **options)
        for network, path in ((plain, files.plain), (scaled, files.scaled))
    ]
    assert isinstance(reports[0].layers[0].scale, float)
    wide = factor.view(4, 1, 1).expand(4, 6, 6).flatten()
    np.testing.assert_allclose(
        np.array(reports[1].layers[0].scale) * wide.numpy(), reports[0].layers[0].scale, rtol=1e-6
    )
    netx = [sg.exporters.read_netx(path) for path in (files.plain, files.scaled)]
    for a, b in zip(netx[0].layers, netx[1].layers, strict=True):
        assert np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
    assert reports[0].output_error == pytest.approx(reports[1].output_error, rel=1e-3)
    certificate = sg.verify(files.scaled, X, network=scaled)
    assert certificate.checks[0].equal
