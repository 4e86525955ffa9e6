"""Events of cameras: what they are read from, what is refused, and what a network makes of them."""

import struct
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import event_additions

FIELDS = [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")]
ROWS = [(3, 1, 10, 1), (0, 0, 10, 0), (3, 1, 25, 1), (2, 1, 31, 0), (3, 1, 39, 0)]
SIZE = (2, 4)


def events(rows=ROWS, **options):
    return sg.Events.of(np.array(rows, FIELDS), SIZE, **options)


# -- steps -----------------------------------------------------------------------------------------


def test_steps_count_what_became_brighter_less_what_became_darker():
    counts = events().counts(10)
    assert counts.shape == (3, 1, 2, 4)
    assert counts[0, 0, 1, 3] == 1
    assert counts[0, 0, 0, 0] == -1
    assert counts[1, 0, 1, 3] == 1
    assert counts[2].sum() == -2
    assert counts.abs().sum() == len(ROWS)


def test_two_channels_keep_darker_and_brighter_apart():
    found = events()
    two = found.counts(10, channels=2)
    assert two.shape == (3, 2, 2, 4)
    assert two.sum() == len(ROWS)
    assert torch.equal(two[:, 1:] - two[:, :1], found.counts(10))


def test_the_window_says_which_events_count():
    assert len(events().counts(10, start=0)) == 4
    assert events().counts(10, 2, start=20).abs().sum() == 3
    assert events().counts(1000).shape[0] == 1
    assert not sg.Events.of(np.zeros(0, FIELDS), SIZE).counts(5, 3).any()


def test_the_input_is_the_running_sum():
    found = events()
    sums = found.sums(10, theta=0.25, first=torch.full(SIZE, 0.5))
    assert torch.equal(sums[0], 0.5 + 0.25 * found.counts(10)[0])
    assert torch.equal(sums.diff(dim=0), 0.25 * found.counts(10)[1:])
    many = sg.Events.of(np.array([(0, 0, t, t % 3 > 0) for t in range(3 * 10**5)], FIELDS), (1, 1))
    last = many.sums(1000, theta=0.1)[-1]
    assert last.item() == pytest.approx(10**5 * 0.1, rel=1e-6)  # whole numbers do not drift


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(4, 0, 1, 1)], "event 0 is at x = 4"),
        ([(0, 0, 1, 1), (0, 2, 1, 1)], "event 1 is at y = 2"),
        ([(-1, 0, 1, 1)], "x = -1"),
        ([(0, 0, 5, 1), (0, 0, 4, 1)], "event 1 is at 4 us, .* sort=True"),
    ],
)
def test_events_outside_or_out_of_order_are_refused(rows, said):
    with pytest.raises(sg.InputError, match=said):
        events(rows)


def test_events_out_of_order_are_sorted_where_asked():
    mixed = [ROWS[i] for i in (4, 0, 2, 1, 3)]
    assert torch.equal(events(mixed, sort=True).counts(10), events().counts(10))


@pytest.mark.parametrize("more", ["x", "y", "t", "p"])
@pytest.mark.parametrize("sort", [False, True])
def test_columns_of_one_length_are_sorted_and_none_is_cut(more, sort):
    columns = {"x": [1, 2], "y": [0, 1], "t": [5, 3], "p": [1, 0]}
    for other in ([0, 1, 1], [1], 1):
        with pytest.raises(sg.InputError, match="are .N. each, but they are"):
            sg.Events.of({**columns, more: other}, SIZE, sort=sort)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("t", [0.5, float("nan")], "t of event 0 is 0.5"),
        ("t", [1.0, float("nan")], "t of event 1 is nan"),
        ("t", [1.0, float("inf")], "infinite"),
        ("x", [0.0, 0.25], "x of event 1"),
        ("p", [0, 2], "p is 0 or 1"),
        ("p", [0.0, float("nan")], "p is 0 or 1"),
        ("t", [0], "are .N. each"),
        ("x", ["a", "b"], "x of events must be numbers"),
        ("p", np.array([None, 1]), "p of events must be numbers"),
        ("t", np.array([1j, 2]), "t of events must be real numbers"),
        ("t", [0, 2**70], "t of events must be numbers"),
        ("t", np.array([0, 2**63], "<u8"), "t of some events is 2.63 or more"),
        ("t", torch.tensor([0, 2**63], dtype=torch.uint64), "t of some events is 2.63 or more"),
        ("t", [0.0, 1e30], "t of some events is 2.63 or more"),
    ],
)
def test_numbers_that_are_none_are_refused(column, values, said, sort):
    columns = {"x": [0, 1], "y": [0, 1], "t": [0, 1], "p": [0, 1]}
    with pytest.raises(sg.InputError, match=said):
        sg.Events.of({**columns, column: values}, SIZE, sort=sort)


def test_whole_numbers_may_be_those_of_numpy():
    found = sg.Events.of(np.array(ROWS, FIELDS), [np.int64(2), np.uint8(4)])
    assert found.size == SIZE
    assert torch.equal(found.counts(np.int64(10), np.int16(3)), events().counts(10, 3))
    assert torch.equal(found.counts(10, start=np.int32(20)), events().counts(10, start=20))


@pytest.mark.parametrize("size", [(0, 4), (4,), 4, (2.0, 4)])
def test_a_sensor_has_a_size(size):
    with pytest.raises(sg.InputError, match="the size of a sensor"):
        sg.Events.of(np.array(ROWS, FIELDS), size)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e.counts(0), "dt is a whole number"),
        (lambda e: e.counts(10, 0), "steps is a whole number"),
        (lambda e: e.counts(10, channels=3), "channels is 1 or 2"),
        (lambda e: e.counts(10, start=1.5), "start is a whole number of microseconds"),
        (lambda e: e.sums(10, theta=None), "theta is a step"),
        (lambda e: e.sums(10, theta=float("nan")), "theta is a step"),
        (lambda e: e.sums(10, theta=-1), "theta is a step"),
        (lambda e: e.sums(10, theta=1, first=torch.zeros(4, 2)), r"\[2, 4\], but it is \[4, 2\]"),
        (lambda e: e.sums(10, theta=1, first=torch.zeros(3, 1, 2, 4)), "first is the log"),
        (lambda e: e.sums(10, theta=1, first=float("nan")), "but it is not finite"),
    ],
)
def test_steps_that_are_none_are_refused(call, said):
    with pytest.raises(sg.InputError, match=said):
        call(events())


def test_columns_that_are_missing_are_named():
    with pytest.raises(sg.FormatError, match="'t' is missing; there are x, y, p"):
        sg.Events.of({"x": [0], "y": [0], "p": [0]}, SIZE)
    with pytest.raises(sg.FormatError, match="'x' is missing"):
        sg.Events.of(np.zeros((3, 4)), SIZE)


# -- files -----------------------------------------------------------------------------------------


def same(a, b):
    return a.size == b.size and all(torch.equal(getattr(a, k), getattr(b, k)) for k in "xytp")


def test_numpy_files(tmp_path):
    array = np.array(ROWS, FIELDS)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", array)
    np.savez(tmp_path / "c.npz", **{name: array[name] for name in array.dtype.names})
    for name in ("a.npy", "b.npz", "c.npz"):
        assert same(sg.Events.read(tmp_path / name, SIZE), events())
    with pytest.raises(sg.InputError, match=r"pass size=\(height, width\)"):
        sg.Events.read(tmp_path / "a.npy")


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], object), allow_pickle=True)
    with pytest.raises(sg.FormatError, match="could run code"):
        sg.Events.read(tmp_path / "a.npy", SIZE)
    np.savez(tmp_path / "b.npz", np.array([{"x": 1}], object))
    with pytest.raises(sg.FormatError, match="not an array of events"):
        sg.Events.read(tmp_path / "b.npz", SIZE)


def test_hdf5_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    array = np.array(ROWS, FIELDS)
    with h5py.File(tmp_path / "columns.h5", "w") as file:
        for name, there in zip("xytp", ("x", "y", "ts", "polarity"), strict=True):
            file[f"events/{there}"] = array[name].astype("u8")
        file["events/ms_to_idx"] = [0]
        file["events"].attrs.update(height=2, width=4)
    with h5py.File(tmp_path / "compound.hdf5", "w") as file:
        file["CD/events"] = array
        file["other"] = array[:2]
    assert same(sg.Events.read(tmp_path / "columns.h5"), events())
    assert same(sg.Events.read(tmp_path / "compound.hdf5", SIZE), events())
    assert len(sg.Events.read(tmp_path / "compound.hdf5", SIZE, key="other")) == 2
    with pytest.raises(sg.FormatError, match="has no 'none'; it has CD, other"):
        sg.Events.read(tmp_path / "compound.hdf5", SIZE, key="none")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".aedat4"])
def test_a_file_that_is_missing_is_named(tmp_path, suffix):
    with pytest.raises(sg.InputError, match=f"there is no file '.*none{suffix}'"):
        sg.Events.read(tmp_path / f"none{suffix}", SIZE)


def test_damaged_numpy_files_are_refused(tmp_path):
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "whole.npz", events=np.array(ROWS, FIELDS))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.npy", "cut.npz"):
        with pytest.raises(sg.FormatError, match="is not a readable NumPy file"):
            sg.Events.read(tmp_path / name, SIZE)
    np.save(tmp_path / "plain.npy", np.array(ROWS, FIELDS))
    with pytest.raises(sg.FormatError, match="holds one unnamed array, but no 'CD/events'"):
        sg.Events.read(tmp_path / "plain.npy", SIZE, key="CD/events")


@pytest.mark.parametrize("height", ["big", [2, 3]])
def test_a_file_that_says_no_size_takes_another(tmp_path, height):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = np.array(ROWS, FIELDS)
        file["events"].attrs.update(height=height, width=4)
    assert same(sg.Events.read(tmp_path / "a.h5", SIZE), events())
    with pytest.raises(sg.InputError, match="the size of a sensor is"):
        sg.Events.read(tmp_path / "a.h5")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.h5").write_text("not an HDF5")
    with pytest.raises(sg.FormatError, match="is not an HDF5 file"):
        sg.Events.read(tmp_path / "a.h5", SIZE)
    with pytest.raises(sg.FormatError, match=r"read from .npy.* not .txt"):
        sg.Events.read(tmp_path / "a.txt", SIZE)


def decoder(packets):
    """As the package aedat has it: packets of several streams."""

    class Decoder:
        def __init__(self, path):
            self.path = path

        def id_to_stream(self):
            frames = {"type": "frame", "width": 4, "height": 2}
            return {0: frames, 1: {**frames, "type": "events"}}

        def __iter__(self):
            yield {"stream_id": 0, "frame": {}}
            yield from ({"stream_id": 1, "events": part} for part in packets)

    return types.SimpleNamespace(Decoder=Decoder)


def test_aedat_files(tmp_path, monkeypatch):
    """The layout that the package aedat says it returns: unsigned numbers, on titled p."""
    layout = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")]
    array = np.array([(t, x, y, p) for x, y, t, p in ROWS], layout)
    monkeypatch.setitem(sys.modules, "aedat", decoder([array[:2], array[2:]]))
    (tmp_path / "a.aedat4").touch()
    assert same(sg.Events.read(tmp_path / "a.aedat4"), events())
    with pytest.raises(sg.FormatError, match="no stream of events 5"):
        sg.Events.read(tmp_path / "a.aedat4", key=5)


INFO = """<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">
<node name="0" path="/mainloop/Recorder/outInfo/0/">
<attr key="compression" type="string">NONE</attr>
<attr key="originalModuleName" type="string">capture</attr>
<attr key="originalOutputName" type="string">events</attr>
<attr key="typeDescription" type="string">Array of events.</attr>
<attr key="typeIdentifier" type="string">EVTS</attr>
<node name="info" path="/mainloop/Recorder/outInfo/0/info/">
<attr key="sizeX" type="int">4</attr><attr key="sizeY" type="int">2</attr>
</node></node></node></dv>"""


def aedat4(packets):
    """A file: its magic bytes, a header and packets, flatbuffers IOHE and EVTS by hand."""
    text = INFO.encode()
    header = struct.pack("<I4s5H2xiiqII", 20, b"IOHE", 10, 20, 4, 8, 16, 12, 0, -1, 4, len(text))
    header += text + b"\0"
    found = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    for rows in packets:
        body = struct.pack("<I4s3H2xiI4xI", 16, b"EVTS", 6, 8, 4, 8, 8, len(rows))
        body += b"".join(struct.pack("<qhh?3x", t, x, y, bool(p)) for x, y, t, p in rows)
        found += struct.pack("<iiI", 0, len(body) + 4, len(body)) + body
    return found


def test_aedat_files_by_the_package_itself(tmp_path):
    pytest.importorskip("aedat")
    (tmp_path / "a.aedat4").write_bytes(aedat4([ROWS[:2], ROWS[2:]]))
    assert same(sg.Events.read(tmp_path / "a.aedat4"), events())


def test_what_is_no_aedat_is_refused(tmp_path):
    pytest.importorskip("aedat")
    (tmp_path / "a.aedat4").write_bytes(b"#!AER-DAT3.1\r\n")
    with pytest.raises(sg.FormatError, match="not an AEDAT4 file"):
        sg.Events.read(tmp_path / "a.aedat4")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.aedat4").touch()
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(sg.BackendUnavailable, match="pip install aedat"):
        sg.Events.read(tmp_path / "a.aedat4")


def test_what_tonic_returns_are_events():
    transforms = pytest.importorskip("tonic.transforms")
    array = np.array(ROWS, [("x", int), ("y", int), ("t", int), ("p", int)])
    flipped = transforms.RandomFlipLR(sensor_size=(4, 2, 2), p=1.0)(array.copy())
    found = sg.Events.of(flipped, SIZE)
    assert torch.equal(found.counts(10), events().counts(10).flip(-1))
    frames = transforms.ToFrame(sensor_size=(4, 2, 2), time_window=10)(array)
    assert torch.equal(torch.as_tensor(frames[:2]).float(), events().counts(10, channels=2)[:2])


# -- the simulated camera --------------------------------------------------------------------------


def moving(frames=12, side=10):
    """A bright bar that moves, in some light."""
    video = torch.full((frames, side, side), 0.2)
    for f in range(frames):
        place = torch.arange(side) - 0.6 * f
        video[f] += torch.exp(-(place**2))
    return video


@pytest.mark.parametrize("theta", [0.05, 0.2, 0.7])
def test_the_sum_of_events_stays_within_theta_of_the_light(theta):
    video = moving()
    found = sg.Events.simulated(video, theta, interval=500, floor=0.01)
    light = (video + 0.01).log()
    sums = found.sums(500, len(video) - 1, theta=theta, start=0, first=light[0])[:, 0]
    assert float((sums - light[1:]).abs().max()) < theta + 1e-5
    assert found.p.any()
    assert not found.p.all()


def test_events_are_where_the_light_crosses():
    video = torch.tensor([1.0, 2.7183]).reshape(2, 1, 1)  # log light from 0 to 1
    found = sg.Events.simulated(video, 0.25, interval=1000, floor=0.0)
    assert found.t.tolist() == pytest.approx([250, 500, 750, 999], abs=1)
    assert found.p.all()


def test_a_still_camera_is_silent():
    assert len(sg.Events.simulated(torch.rand(1, 4, 4).expand(6, -1, -1), 0.1)) == 0


@pytest.mark.parametrize(
    ("video", "options", "said"),
    [
        (torch.ones(3, 4), {}, "a video is"),
        (torch.ones(3, 2, 2), {"theta": 0.0}, "theta is a step"),
        (torch.ones(3, 2, 2), {"interval": 1}, "interval"),
        (-torch.ones(3, 2, 2), {}, "above -floor"),
    ],
)
def test_videos_that_are_none_are_refused(video, options, said):
    with pytest.raises(sg.InputError, match=said):
        sg.Events.simulated(video, **options)


# -- networks --------------------------------------------------------------------------------------


def network_of(side=10):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side * side, 3)
    )
    return model, sg.convert(model, torch.randn(32, 1, side, side) - 1)


@torch.no_grad()
def test_events_run_as_increments_are_the_frames_they_sum_to():
    """In the spike view the first layer is fed nothing but the events of each step."""
    model, network = network_of()
    found = sg.Events.simulated(moving(), 0.25, interval=500, floor=0.05)
    first = (moving()[0] + 0.05).log()
    x = found.sums(500, 11, theta=0.25, start=0, first=first).unsqueeze(1)
    runs = {}
    for spikes in ("decoded", "signed"):
        snn = sg.build(network.replace(stream=True), spikes=spikes)
        runs[spikes] = sg.run(snn, x, sequence=True, keep_state=True)[1]
    torch.testing.assert_close(runs["decoded"], runs["signed"], atol=1e-4, rtol=1e-4)
    want = torch.stack([model(frame) for frame in x])
    assert (runs["decoded"] - want).norm() / want.norm() < 0.05


def test_an_event_costs_its_connections():
    _, network = network_of()
    one = torch.zeros(3, 1, 1, 10, 10)
    one[0, 0, 0, 5, 5] = 1  # in the middle: 9 places of 4 channels
    one[1, 0, 0, 0, 0] = -2  # in a corner, twice
    assert event_additions(network, one).tolist() == [36, 2 * 16, 0]
    with pytest.raises(sg.InputError, match=r"events are \[F, B, 1, 10, 10\]"):
        event_additions(network, one[0])
    with pytest.raises(sg.InputError, match="a tensor .F, B, .* but they are NoneType"):
        event_additions(network, None)
    with pytest.raises(sg.InputError, match=r"snn\.network of a built network\), but it is given"):
        event_additions(nn.Identity(), one)
    with pytest.raises(sg.InputError, match="some are NaN"):
        event_additions(network, one / 0)


def test_events_that_neurons_read_themselves_cost_one():
    model = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(4, 2))
    network = sg.convert(model, torch.randn(16, 1, 2, 2))
    assert event_additions(network, torch.ones(1, 1, 1, 2, 2)).tolist() == [4]


def test_the_example_of_a_camera():
    """A small network on few digits: what moves costs, what stands still does not."""
    import events as example

    x, labels = example.images("digits", "train")
    model = example.train(x, labels, 10)
    calibration = example.seen(example.videos(x[-8:], 6, 0.5, seed=1), 0.2)
    assert float((calibration.sums - calibration.light).abs().max()) < 0.2 + 1e-4
    spiking = sg.convert(model, calibration.sums.flatten(0, 1))
    rows = [
        example.measured(model, spiking, example.seen(example.videos(x[:8], 8, v), 0.2), labels[:8])
        for v in (0.0, 0.5)
    ]
    assert rows[0]["events"] == rows[0]["first"] == 0
    assert rows[0]["all"] < 0.02 < rows[1]["all"]
    assert min(row["same"] for row in rows) > 0.9
    assert rows[1]["spiking"] > 0.5
