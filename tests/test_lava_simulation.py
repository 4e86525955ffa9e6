"""The real Lava against this package; LAVA_PYTHON names an interpreter with it (`make lava`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import lava_digits
import numpy as np
import pytest
import torch
from data import digits
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import GroupNeuron, SignGDNeuron
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.exporters.lava import remote as lava_remote
from spikingjelly_signgd.exporters.lava import write_netx
from spikingjelly_signgd.exporters.lava.netx import read_netx

pytestmark = pytest.mark.skipif(
    not lava_remote.available(), reason="LAVA_PYTHON names no interpreter; run `make lava`"
)

DATA = digits()
IMAGES, LABELS = DATA.test
SAMPLES = 20


def write(path: Path, name: str, profile: str, members: int, steps: int) -> Any:
    network = sg.convert(
        lava_digits.load(name),
        DATA.train.images[:64],
        method="group",
        members=members,
        time_steps=steps,
    )
    return write_netx(
        network,
        path,
        profile=profile,
        input_levels=16,
        calibration=DATA.train.images[:64],
        samples=(IMAGES[:SAMPLES], LABELS[:SAMPLES]),
    )


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("profile", "members", "steps"),
    [
        ("group", 4, 1),
        ("group", 2, 2),
        ("if-soft", 1, 4),
        ("if-hard", 1, 4),
        ("group-graded", 2, 2),
    ],
)
def test_every_spike(name, profile, members, steps, tmp_path):
    report = write(tmp_path / "a.net", name, profile, members, steps)
    check = lava_remote.verify_netx(
        tmp_path / "a.net", IMAGES[:SAMPLES].numpy(), LABELS[:SAMPLES].numpy()
    )
    assert check.ok, str(check)
    assert check.wrong == (0, 0) and check.readouts_wrong == 0 and check.samples == SAMPLES
    assert min(check.spikes) > SAMPLES
    assert check.accuracy == report.accuracy_integer
    assert check.versions[:2] == ("lava-nc 0.10.0", "lava-dl 0.6.0")


@pytest.mark.parametrize(
    ("profile", "members", "steps"),
    [("group", 2, 2), ("if-soft", 1, 4), ("if-hard", 1, 4), ("group-graded", 2, 2)],
)
def test_thresholds_and_charges_by_channel(profile, members, steps, tmp_path):
    network = sg.convert(
        lava_digits.load("conv"),
        DATA.train.images[:64],
        method="group",
        members=members,
        time_steps=steps,
    )
    generator, nodes = torch.Generator().manual_seed(0), []
    for node in network.nodes:
        if isinstance(node, GroupNeuron):
            factor, charge = torch.rand(2, node.shape[1], 1, 1, generator=generator)
            node = replace(
                node,
                v_threshold=node.v_threshold * (0.6 + factor),
                initial_charge=0.25 + 0.5 * charge,
            )
        nodes.append(node)
    network = network.replace(nodes=tuple(nodes))
    images = DATA.train.images[:64]
    sg.export(network, tmp_path / "a.net", profile=profile, input_levels=16, calibration=images)
    certificate = sg.verify(tmp_path / "a.net", IMAGES[:8], network=network)
    assert certificate.ok, certificate
    content, lava, _ = certificate.checks
    assert content.equal and lava.mismatches == 0 and lava.spikes > 1000


def test_another_network_is_told_apart(tmp_path, monkeypatch):
    """Weights changed for the runner alone: the comparison must see it."""
    write(tmp_path / "a.net", "mlp", "group", 4, 1)
    shutil.copyfile(tmp_path / "a.net", tmp_path / "b.net")
    with h5py.File(tmp_path / "b.net", "r+") as file:
        weight = file["layer/1/weight"]
        weight[:, 192:256] = -weight[:, 192:256]
    monkeypatch.setattr(lava_remote, "read_netx", lambda path: read_netx(tmp_path / "b.net"))
    check = lava_remote.verify_netx(tmp_path / "a.net", IMAGES[:3].numpy())
    assert not check.ok and check.wrong[0] > 0 and "NOT equal" in str(check)


def test_wrapping_is_the_runners(tmp_path):
    """u beyond 24 bits, which write_netx refuses: the runner wraps as Lava does."""
    write(tmp_path / "a.net", "mlp", "if-soft", 1, 4)
    with h5py.File(tmp_path / "a.net", "r+") as file:
        weight = np.full(file["layer/1/weight"].shape, -246, dtype=np.int32)
        weight[0, 0] = 2
        file["layer/1/weight"][...] = weight
    netx = read_netx(tmp_path / "a.net")
    spikes = np.ones((2, netx.coding.channels, 6), dtype=np.int64)
    run = netx.run_spikes(spikes)
    assert run.lowest[0] < -(1 << 17) and run.spikes[0].any()
    found, membrane = lava_remote.run_netx(tmp_path / "a.net", spikes)
    for have, want in zip(found, run.spikes, strict=True):
        assert (have == want).all()
    assert (membrane == run.membrane).all()


def convolutions() -> nn.Sequential:
    """Scales, resting values and a parameter by channel; pooling between."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.PReLU(3, 0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


@pytest.mark.parametrize("members", [2, 3, 8])
def test_several_signs(members, tmp_path):
    """As below; the layers fire different numbers of signs, and what they send are their bits."""
    steps = 6
    network = sg.convert(
        convolutions().double(),
        DATA.train.images[:128].double(),
        time_steps=steps,
        schedule=sg.ExponentialSchedule(0.5, 0.6),
        resting="mean",
        dead_zone=0,
    )
    counts = iter((members, members - 1))
    nodes = tuple(
        replace(node, members=next(counts)) if isinstance(node, SignGDNeuron) else node
        for node in network.nodes
    )
    sg.save(network.replace(nodes=nodes), tmp_path / "a.h5")
    x = IMAGES[:8].double()
    spikes, outputs = lava_remote.run_signgd(tmp_path / "a.h5", x.numpy(), time_steps=steps)
    result = Runner(tmp_path / "a.h5").run(x.numpy(), range(1, steps + 1), delay=True)
    expected = np.stack([result.outputs[t] for t in range(1, steps + 1)], -1)
    assert np.abs(outputs - expected).max() < 1e-9 and expected.std() > 0.01
    for depth, (have, name) in enumerate(zip(spikes, result.spikes, strict=True)):
        want = result.spikes[name][depth : depth + steps].reshape(steps, len(x), -1)
        assert have.dtype == want.dtype == (bool if members - depth == 1 else np.uint8)
        assert (have == want.transpose(1, 2, 0)).all() and len(np.unique(have)) > 1


@pytest.mark.parametrize("members", [1, 8])
def test_silence(members, tmp_path):
    """A number and a tensor with zeros as dead zones: codes of both, and nothing sent for d = 0."""
    steps = 6
    network = sg.convert(
        convolutions().double(), DATA.train.images[:128].double(), time_steps=steps, tune=False,
        members=members, schedule=sg.ExponentialSchedule(0.5, 0.6), resting="mean",
    )  # fmt: skip
    zones = iter((2 / 3, torch.tensor([0.0, 0.5, 0.9, 0.3]).view(4, 1, 1)))
    nodes = tuple(
        replace(node, dead_zone=next(zones)) if isinstance(node, SignGDNeuron) else node
        for node in network.nodes
    )
    sg.save(network.replace(nodes=nodes), tmp_path / "a.h5")
    x = IMAGES[:4].double()
    spikes, outputs = lava_remote.run_signgd(tmp_path / "a.h5", x.numpy(), time_steps=steps)
    result = Runner(tmp_path / "a.h5").run(x.numpy(), range(1, steps + 1), delay=True)
    expected = np.stack([result.outputs[t] for t in range(1, steps + 1)], -1)
    assert np.abs(outputs - expected).max() < 1e-9 and expected.std() > 0.01
    for depth, (have, name) in enumerate(zip(spikes, result.spikes, strict=True)):
        want = result.spikes[name][depth : depth + steps].reshape(steps, len(x), -1)
        assert have.dtype == want.dtype == np.int32
        assert (have == want.transpose(1, 2, 0)).all()
        assert 0.1 < (have == 0).mean() < 1 and len(np.unique(have)) > 2


@pytest.mark.parametrize("case", ["gelu", "convolutions"])
def test_signgd(case, tmp_path):
    """Outputs at every step are torch's, spikes those of the runner with a step for each layer."""
    steps = 16
    model = lava_digits.load("gelu") if case == "gelu" else convolutions()
    options = {"dead_zone": 0} | ({} if case == "gelu" else {"resting": "mean"})
    network = sg.convert(
        model.double(), DATA.train.images[:128].double(), time_steps=steps, tune=False, **options
    )
    sg.save(network, tmp_path / "a.h5")
    x = IMAGES[:SAMPLES].double()
    spikes, outputs = lava_remote.run_signgd(tmp_path / "a.h5", x.numpy(), time_steps=steps)
    found = sg.run(sg.build(network, "spikingjelly"), x, tuple(range(1, steps + 1)))
    expected = torch.stack([found[t] for t in range(1, steps + 1)], -1).numpy()
    assert outputs.shape == expected.shape == (SAMPLES, 10, steps)
    assert np.abs(outputs - expected).max() < 1e-9
    result = Runner(tmp_path / "a.h5").run(x.numpy(), steps, delay=True)
    for depth, (have, name) in enumerate(zip(spikes, result.spikes, strict=True)):
        assert result.lags[name] == depth
        want = result.spikes[name][depth : depth + steps].reshape(steps, SAMPLES, -1)
        assert (have == want.transpose(1, 2, 0)).all()
    assert expected.std() > 0.01 and [len(s) for s in spikes] == [SAMPLES] * 2
    assert all(0.2 < s.mean() < 0.8 for s in spikes)


def test_signgd_refusals(tmp_path):
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)).eval()
    sg.save(sg.convert(model, x, momentum=0.5, time_steps=4), tmp_path / "a.h5")
    with pytest.raises(lava_remote.LavaError, match="momentum 0.5"):
        lava_remote.run_signgd(tmp_path / "a.h5", x.numpy(), time_steps=4)
    normed = nn.Sequential(model, nn.LayerNorm(3))
    for functions, why in (
        ("local", "one chain of layers"),
        ("whole", "not a function of one value"),
    ):
        network = sg.convert(normed, x, time_steps=4, forms=functions)
        sg.save(network, tmp_path / "a.h5")
        with pytest.raises(lava_remote.LavaError, match=why):
            lava_remote.run_signgd(tmp_path / "a.h5", x.numpy(), time_steps=4)


EXACT = """
import numpy as np
from spikingjelly_signgd.plugins import lava  # makes Lava importable
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
from spikingjelly_signgd.exporters.lava.netx import exact

def computed(matrices):
    joint, bits, exponent, _ = optimize_weight_bits(np.hstack(matrices))
    cuts = np.cumsum([m.shape[1] for m in matrices])[:-1]
    for m, part in zip(matrices, np.hsplit(joint, cuts)):
        mode = determine_sign_mode(part)
        part = truncate_weights(clip_weights(part, mode, num_bits=8), mode, bits)
        wanted = np.left_shift(m, -exponent) if exponent <= 0 else np.right_shift(m, exponent)
        if not np.array_equal(part, wanted):
            return False
    return True

random, seen = np.random.default_rng(0), [0, 0]
for _ in range(4000):
    high = int(random.choice([4, 16, 64, 127, 128, 254, 256, 300]))
    step = int(random.choice([1, 2, 4, 16]))
    low = int(random.choice([-high, 0, -1, -high // 2]))
    m = random.integers(low, high + 1, (2, 3)) // step * step * int(random.choice([1, -1]))
    matrices = [m]
    if random.random() < 0.5:
        v = int(random.choice([6, 32, 64, 100, 128, 250, 254, 256]))
        matrices.append(-v * np.eye(2, dtype=int))
    try:
        same = computed(matrices)
    except (OverflowError, ZeroDivisionError):
        same = False
    assert same == exact(*matrices), (matrices, same)
    seen[same] += 1
assert min(seen) > 500, seen
"""


def run_there(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in Lava's environment, in a process group of its own."""
    (folder / "spikingjelly_signgd").symlink_to(lava_remote.PACKAGE)
    return subprocess.run(
        [lava_remote.lava_python(), "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )


def test_exact_is_what_lava_computes(tmp_path):
    done = run_there(EXACT, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


FAILING = """
import os
import torch
import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import SignGDNeuron
from spikingjelly_signgd.plugins import lava
from spikingjelly_signgd.plugins.lava import environment

environment.end_with_workers()
here = os.getpid()

def fails(x):
    if os.getpid() != here:
        raise RuntimeError("a worker's error")
    return x.relu()

x = torch.rand(4, 3)
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
network = sg.convert(model, x, time_steps=4)
row = sg.Nonlinearity("fails", fails)
nodes = tuple(
    __import__("dataclasses").replace(n, function=row) if isinstance(n, SignGDNeuron) else n
    for n in network.nodes
)
lava.SignGDNetwork(network.replace(nodes=nodes)).run(x)
"""


def test_an_error_of_a_worker_ends_the_run(tmp_path):
    """Lava by itself may wait for ever."""
    done = run_there(FAILING, tmp_path)
    assert done.returncode == -signal.SIGTERM and "a worker's error" in done.stderr


@pytest.mark.parametrize("steps", [1, 3])
def test_streams(steps, tmp_path):
    """A clip in Lava, a frame right after the other: the runner's codes at every step."""
    network = sg.convert(
        convolutions().double(), DATA.train.images[:128].double(), time_steps=steps, tune=False,
        members=6, schedule=sg.ExponentialSchedule(1.0, 0.5), input_coding="spike",
    )  # fmt: skip
    sg.save(network.replace(stream=True), tmp_path / "a.h5")
    clip = IMAGES[:2].double().expand(8, 2, 1, 8, 8).clone()
    clip[1:4] += 0.05 * torch.rand(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clip[4:] = IMAGES[2:4]  # a cut; then it stands still
    spikes, outputs = lava_remote.run_signgd(
        tmp_path / "a.h5", clip.numpy(), time_steps=steps, keep_state=True
    )
    found = Runner(tmp_path / "a.h5").run(
        clip.numpy(), range(1, steps + 1), sequence=True, keep_state=True
    )
    expected = np.stack([found.outputs[t] for t in range(1, steps + 1)], 1)  # [F, T, B, 10]
    expected = expected.reshape(8 * steps, 2, -1).transpose(1, 2, 0)
    assert np.abs(outputs - expected).max() < 1e-9 and expected.std() > 0.01
    for have, want in zip(spikes, found.spikes.values(), strict=True):
        want = want.reshape(8 * steps, 2, -1).transpose(1, 2, 0)
        assert have.dtype == want.dtype == np.int32 and (have == want).all()
        assert not have[..., -steps:].any() and (have[..., 4 * steps] != 0).mean() > 0.1
    with pytest.raises(lava_remote.LavaError, match=r"the input is \[F, B, 1, 8, 8\]"):
        lava_remote.run_signgd(tmp_path / "a.h5", clip[0].numpy(), time_steps=1, keep_state=True)
