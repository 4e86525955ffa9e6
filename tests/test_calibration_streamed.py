"""Calibration on data of any length, in bounded memory, and by several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from several import several
from torch import nn
from torch.utils.data import DataLoader, Dataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import calibration, conversion
from spikingjelly_signgd.converters.calibration import Batches
from spikingjelly_signgd.converters.fine_tuning import fingerprint
from spikingjelly_signgd.errors import CalibrationError, InputError

PLAN = {"time_steps": 4, "members": 2, "tune": False, "max_batches": None}


def image(i):
    return torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(i)) * (1 + i % 7)


class Images(Dataset):
    """Made when they are asked for; how many are alive at most is known."""

    def __init__(self, length):
        self.length, self.alive, self.most = length, weakref.WeakSet(), 0

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        x = image(i)
        self.alive.add(x)
        return x, i % 10

    def batched(self, items):
        batch = torch.stack([x for x, _ in items])
        del items
        self.alive.add(batch)
        self.most = max(self.most, sum(1 for x in self.alive if x.dim() == 4))
        return batch, torch.zeros(len(batch))


class Names(tuple):
    """A batch that says what it left out."""

    skipped = ("a.jpg", "b.jpg")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.GELU()
    ).eval()


@pytest.fixture
def one_capture(model, monkeypatch):
    """torch.export is of one thread: of the model it is done once, beforehand."""
    program = conversion.capture(model, torch.stack([image(i) for i in range(4)]))
    monkeypatch.setattr(conversion, "capture", lambda *_: program)


def said(network):
    """All that a network is, hashed, and what is known of its values, to the bit."""
    seen = {
        name: {key: value.tolist() for key, value in one.items()}
        for name, one in network.statistics.items()
    }
    return fingerprint(network), seen, network.provenance


def test_every_form_of_data_calibrates_the_same(model):
    images = torch.stack([image(i) for i in range(150)])
    data = {
        "tensor": images,
        "dataset": Images(150),
        "loader": DataLoader(Images(150), 64),
        "list": list(images.split(64)),
        "generator": iter(images.split(64)),
    }
    found = [said(sg.convert(model, each, **PLAN)) for each in data.values()]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("length", [150, 1003])
def test_any_number_of_processes_makes_the_same_network(model, one_capture, monkeypatch, length):
    monkeypatch.setattr(calibration, "SAMPLES", 300)  # of 1003 samples not all are kept
    monkeypatch.setattr(calibration, "EVERY", 2)
    data = Images(length)

    def converted(world):
        return sg.convert(model, DataLoader(data, 32), distributed=world, **PLAN)

    alone = said(sg.convert(model, DataLoader(data, 32), **PLAN))
    assert alone[2]["calibration_samples"] == length
    for size in (1, 2, 3):
        for network in several(size, converted):
            assert said(network) == alone


def test_each_process_loads_its_own_samples_alone(model, one_capture):
    loaded = {}

    class Counted(Images):
        def __getitem__(self, i):
            loaded[self.rank].append(i)
            return super().__getitem__(i)

    def converted(world):
        data = Counted(100)
        data.rank = world.rank
        loaded[world.rank] = []
        return sg.convert(model, DataLoader(data, 10), distributed=world, **PLAN)

    several(2, converted)
    assert sorted(loaded[0] + loaded[1]) == list(range(100))


@pytest.mark.parametrize("make", [lambda: iter([]), lambda: iter([torch.zeros(0, 3, 6, 6)])])
def test_no_data_is_the_error_of_all_processes(model, make):
    with pytest.raises(CalibrationError, match="empty"):
        several(2, lambda world: sg.convert(model, make(), distributed=world))


def test_more_processes_than_batches_and_empty_ones(model, one_capture):
    images = torch.stack([image(i) for i in range(20)])
    given = [images[:0], images[:12], images[:0], images[12:]]

    def converted(world):
        return sg.convert(model, iter(given), distributed=world, **PLAN)

    networks = [converted(None), *several(3, converted), *several(5, converted)]
    assert all(said(network) == said(networks[0]) for network in networks)


@pytest.mark.parametrize("count", [1, 3])
def test_processes_plan_the_same_stream(model, one_capture, count):
    frames = torch.stack([image(i) for i in range(5 * 2 * count)]).reshape(5, 2 * count, 3, 6, 6)
    clips = frames.split(2, 1)

    def converted(world):
        given = {"stream": True, "max_batches": None, "distributed": world}
        return sg.convert(model, clips if count > 1 else frames, **given)

    networks = [converted(None), *several(2, converted)]
    assert all(said(network) == said(networks[0]) for network in networks)


def test_an_option_that_differs_is_the_error_of_all(model):
    with pytest.raises(InputError, match=r"option of convert differs.*members=2.*members=3"):
        several(2, lambda w: sg.convert(model, image(0)[None], members=2 + w.rank, distributed=w))


@pytest.mark.parametrize("failing", [0, 1])
def test_nan_on_one_process_is_the_error_of_all(model, one_capture, failing):
    """And a script that catches it goes on in all of them."""

    class Invalid(Images):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x * (float("nan") if i == 4 * (2 + failing) else 1), y

    def converted(world):
        try:
            sg.convert(model, DataLoader(Invalid(30), 4), distributed=world, **PLAN)
        except CalibrationError as error:
            return str(error), said(sg.convert(model, Images(30), distributed=world, **PLAN))

    found = several(2, converted)
    assert all("NaN" in error for error, _ in found)
    assert found[1 - failing][0].startswith(f"rank {failing}: ")
    assert found[0][1] == found[1][1]


def test_samples_alive_do_not_grow_with_the_data(model, monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 128)
    most = {}
    for length in (320, 1280):
        data = Images(length)
        loader = DataLoader(data, 16, collate_fn=data.batched)
        network = sg.convert(model, loader, **PLAN)
        assert network.provenance["calibration_samples"] == length
        most[length] = data.most
    # the batches of 128 samples, and a few on the way
    assert most[1280] == most[320] <= 12


def test_statistics_see_what_is_not_kept(model, monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 64)
    images = [image(i)[None] for i in range(500)]
    images[77] = images[77] * 100  # the largest, wherever it is
    kept = Batches(iter(images))
    assert sum(map(len, kept)) == 64
    assert kept.samples == 500
    assert kept.reach == {"": float(images[77].abs().max())}
    network = sg.convert(model, iter(images), **PLAN)
    (first, *_) = network.statistics.values()
    with torch.no_grad():
        largest = model[:3](images[77]).amax((0, 2, 3))
    assert torch.allclose(first["maximum"].flatten(), largest)


def test_samples_of_another_shape_are_named_wherever_they_come(model, monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 4)
    given = [image(0)[None]] * 10 + [torch.rand(1, 3, 7, 7)]
    with pytest.raises(CalibrationError, match=r"differ in shape.*\(3, 6, 6\), \(3, 7, 7\)"):
        sg.convert(model, given, **PLAN)


def test_what_batches_left_out_is_counted(model):
    given = [Names((image(0)[None], torch.zeros(1))), Names((torch.zeros(0, 3, 6, 6), []))]
    network = sg.convert(model, given, **PLAN)
    assert network.provenance["calibration_skipped"] == 4
    assert network.provenance["calibration_samples"] == 1
    assert "calibration_skipped" not in sg.convert(model, given[0][0], **PLAN).provenance


def test_a_pass_that_reads_what_is_read_once_is_told(model, monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 4)

    def reads(network, context):
        assert len(context.batches) == 1
        return network

    passes = (reads, *sg.converters.PASSES)
    images = [image(i)[None] for i in range(9)]
    assert sg.convert(model, images, passes=passes, **PLAN).provenance["calibration_samples"] == 9
    with pytest.raises(CalibrationError, match="only once"):
        sg.convert(model, iter(images), passes=passes, **PLAN)


@pytest.mark.slow
def test_real_processes_make_the_network_of_one():
    script = Path(sg.__file__).parent / "benchmarks" / "distributed_conversion.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    found = {}
    for size in (1, 2):
        command = [sys.executable, *run, str(size), str(script), "--samples", "1003"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith("convert")]
        found[size] = [row[:-2] for row in rows]  # all but the seconds
    assert found[1] == found[2] != []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["signgd", "group"])
def test_processes_that_convert_also_tune(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    given = {"method": method, "time_steps": 4, "members": 2, "max_batches": None}
    given["tune"] = True if method == "signgd" else None  # thresholds are refined

    def converted(world):
        return sg.convert(model, DataLoader(Images(100), 32), distributed=world, **given)

    with pytest.MonkeyPatch.context() as patch:
        program = conversion.capture(model, torch.stack([image(i) for i in range(4)]))
        patch.setattr(conversion, "capture", lambda *_: program)
        alone, *others = several(1, converted) + several(2, converted)
    assert {"signgd": "tuning", "group": "thresholds"}[method] in alone.provenance
    assert all(said(network) == said(alone) for network in others)
