"""Files of plans for streams: what is written, replayed by NumPy with the state kept, certified."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from test_save_load import assert_equal_networks
from test_streams import STREAMS, Small, clip, for_streams, generator, halving
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import Encoder
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.exporters.hdf5 import kinds, runner
from spikingjelly_signgd.exporters.hdf5.definition import run_clip_by_definition
from spikingjelly_signgd.exporters.hdf5.layout import seal
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES
from spikingjelly_signgd.neurons.qcfs import QCFS

FRAMES = 8
IMAGES = torch.randn(32, 2, 6, 6, generator=generator(7))
KEPT = {"sequence": True, "keep_state": True}
VIEWS = {"decoded": "decoded", "spike": "signed"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    options = {"time_steps": 1, "members": 7, "tune": False, "input_coding": "spike"}
    model = Small().eval().requires_grad_(False)
    return for_streams(sg.convert(model, IMAGES, **options))


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("streams") / "n.h5"
    sg.save(network, path)
    return path


@pytest.fixture(scope="module")
def x():
    """Streams that move, then a cut, then one that stands still."""
    frames = clip(frames=FRAMES).clone()
    frames[5:] = clip(seed=9, frames=1)
    return frames


def simulated(network, x, simulator, spikes):
    """Outputs [F, B, ...], and what fired [F T, B, ...]."""
    snn, fired = sg.build(network, simulator, spikes=spikes), {}

    def keep(sent):
        events = sent.events
        if events is not None:
            codes = events.number if events.fires is None else events.fires
            fired.setdefault(sent.node.name, []).append(codes)

    with listening(snn, keep):
        outputs = sg.run(snn, x, sequence=True, keep_state=True)[network.time_steps]
    return outputs, {name: torch.cat(codes).numpy() for name, codes in fired.items()}


def assert_equal(have, want):
    assert have.keys() == want.keys()
    for name in want:
        a, b = np.asarray(have[name]), np.asarray(want[name])
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), name


def assert_close(have, want, tolerance=1e-10):
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0, atol=tolerance, err_msg=name)


# -- one clip in all programs ----------------------------------------------------------------------


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_float32_is_the_simulators_bit_for_bit(path, x, simulator):
    """In the spike view: weighted spikes are summed in float64, and rounded once before f."""
    outputs, fired = simulated(sg.load(path), x, simulator, "signed")
    found = Runner(path, np.float32).run(x.numpy(), **KEPT)
    assert_equal(found.spikes, fired)
    assert_equal(found.outputs[1], outputs)
    quiet = [np.mean(codes[-1] == 0) for codes in found.spikes.values()]
    busy = [np.mean(codes[5] == 0) for codes in found.spikes.values()]
    assert min(quiet) == 1 and max(busy) < 0.9  # silence where nothing changes, none at the cut


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_the_decoded_view_has_the_same_spikes(path, x, simulator):
    network = sg.load(path)
    outputs, fired = simulated(network, x, simulator, "decoded")
    found = Runner(path, np.float32).run(x.numpy(), view="decoded", **KEPT)
    assert_equal(found.spikes, fired)
    assert_close(found.outputs[1], outputs, 1e-6)  # sums of products round differently


@pytest.mark.parametrize("sequence", [False, True])
def test_what_is_no_stream_runs_as_ever(path, x, sequence):
    """A plan for streams on stills, and on a sequence of steps, begun anew."""
    snn = sg.build(sg.load(path), spikes="signed")
    given = x if sequence else x[0]
    want = sg.run(snn, given, (1, 4), sequence=sequence)
    found = Runner(path, np.float32).run(given.numpy(), (1, 4), sequence=sequence)
    for t in (1, 4):
        assert_equal(found.outputs[t], want[t])


@pytest.mark.parametrize("view", VIEWS)
def test_several_steps_a_frame_are_the_definitions(network, x, view, tmp_path):
    """t is counted anew at every frame: the schedule of this plan halves its steps."""
    plan = halving(network)
    sg.save(plan, tmp_path / "n.h5")
    runner = Runner(tmp_path / "n.h5")
    found = runner.run(x.double().numpy(), (1, 3), view=view, values=True, **KEPT)
    wanted = run_clip_by_definition(plan, x, 3, spikes=VIEWS[view])
    assert_equal(found.spikes, {name: codes.numpy() for name, codes in wanted.spikes.items()})
    assert_close(found.outputs[3], wanted.outputs)
    assert found.outputs[1]["map"].shape == (FRAMES, STREAMS, 6, 6, 6)
    assert found.steps == 3 * FRAMES == len(found.values["mul"])
    assert not np.array_equal(found.outputs[1]["map"], found.outputs[3]["map"])
    late = Runner(tmp_path / "n.h5").run(x.double().numpy(), 3, view=view, delay=True, **KEPT)
    for name, lag in late.lags.items():
        assert np.array_equal(late.spikes[name][lag:][: 3 * FRAMES], found.spikes[name]), name
    assert_close(late.outputs[3], found.outputs[3])


@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_calls_go_on_until_a_reset(path, x, view, delay):
    runner, x = Runner(path), x.numpy()
    whole = runner.run(x, view=view, **KEPT).outputs[1]
    runner.reset()
    parts = [runner.run(part, view=view, delay=delay, **KEPT) for part in (x[:1], x[1:6], x[6:])]
    for name in whole:
        assert np.array_equal(np.concatenate([p.outputs[1][name] for p in parts]), whole[name])
    runner.run(x[0])  # another run, which neither takes nor leaves the state of the stream
    again = runner.run(x[-1:], view=view, **KEPT)
    assert not any(codes.any() for codes in again.spikes.values())
    runner.reset()
    assert_equal(runner.run(x, view=view, **KEPT).outputs[1], whole)


def test_a_failed_call_leaves_the_stream_as_it_was(network, x, tmp_path):
    row = sg.Nonlinearity("mine", NONLINEARITIES["relu"].function)
    gelu = replace(network["gelu"], function=row, arguments={})
    sg.save(network.with_nodes({"gelu": gelu}), tmp_path / "n.h5")
    fails = [False]

    def mine(v):
        if fails[0]:
            raise ValueError("no")
        return np.maximum(v, 0)

    runner, frames = Runner(tmp_path / "n.h5", functions={"mine": mine}), x.numpy()
    whole = runner.run(frames, **KEPT).outputs[1]["map"]
    runner.reset()
    runner.run(frames[:3], **KEPT)
    fails[0] = True
    with pytest.raises(sg.FormatError, match="gelu"):
        runner.run(frames[3:], **KEPT)
    fails[0] = False
    assert np.array_equal(runner.run(frames[3:], **KEPT).outputs[1]["map"], whole[3:])


def test_streams_of_another_size(tmp_path):
    torch.manual_seed(3)
    options = {"time_steps": 1, "members": 7, "tune": False, "input_coding": "spike"}
    model = Small().eval().requires_grad_(False)
    network = for_streams(sg.convert(model, IMAGES, sizes=[(2, 8, 8)], **options))
    sg.save(network, tmp_path / "n.h5")
    x = clip(shape=(2, 8, 8), frames=4)
    outputs, fired = simulated(network, x, "spikingjelly", "signed")
    runner = Runner(tmp_path / "n.h5", np.float32)
    found = [runner.run(part.numpy(), **KEPT) for part in (x[:1], x[1:])]
    for name in fired:
        assert np.array_equal(np.concatenate([part.spikes[name] for part in found]), fired[name])
    assert np.array_equal(
        np.concatenate([part.outputs[1]["map"] for part in found]), outputs["map"]
    )
    with pytest.raises(sg.InputError, match=r"are \[3, 2, 8, 8\], but these are \[3, 2, 6, 6\]"):
        runner.run(clip(frames=2).numpy(), **KEPT)


# -- what starts anew, and what the network feeds itself -------------------------------------------


def of_groups(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), QCFS(4), nn.Linear(8, 5), QCFS(4), nn.Linear(5, 3)
    ).eval()
    stills = torch.rand(32, 6, generator=generator(1))
    return sg.convert(model, stills, method="group", **{"members": 2, "time_steps": 2, **options})


def test_group_neurons_start_anew(tmp_path):
    sg.save(of_groups().replace(stream=True), tmp_path / "n.h5")
    frames = torch.rand(4, 3, 6, generator=generator(2)).double().numpy()
    found = Runner(tmp_path / "n.h5").run(frames, **KEPT)
    for i, frame in enumerate(frames):
        alone = Runner(tmp_path / "n.h5").run(frame)
        assert np.array_equal(found.outputs[2][i], alone.outputs[2])
        for name, counts in alone.spikes.items():
            assert np.array_equal(found.spikes[name][2 * i : 2 * i + 2], counts)


def remembering():
    """h <- tanh(A x + B h), y = C h: h of the frame before is an input."""
    torch.manual_seed(1)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.take, self.keep, self.say = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, h):
            return self.say(torch.tanh(self.take(x) + self.keep(h)))

    stills = {name: torch.randn(64, n, generator=generator(n)) for name, n in (("x", 3), ("h", 4))}
    stills["h"] = stills["h"].tanh()
    found = sg.convert(
        Cell().eval(), stills, time_steps=1, members=8, tune=False, input_coding="spike"
    )
    plan, (tanh,) = for_streams(found), [n for n in found.neurons if n.function.name == "tanh"]
    return plan.replace(carries={"h": tanh.name})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_network_feeds_itself(tmp_path, view, dtype):
    network = remembering()
    sg.save(network, tmp_path / "n.h5")
    assert sg.load(tmp_path / "n.h5").carries == network.carries
    frames = torch.randn(9, 2, 3, generator=generator(5)).to(dtype)
    runner = Runner(tmp_path / "n.h5", str(dtype).removeprefix("torch."))
    given = {"x": frames.numpy()}
    found = runner.run(given, view=view, **KEPT)
    wanted = run_clip_by_definition(network, {"x": frames}, 1, spikes=VIEWS[view], dtype=dtype)
    assert_equal(found.spikes, {name: codes.numpy() for name, codes in wanted.spikes.items()})
    np.testing.assert_allclose(found.outputs[1], wanted.outputs.numpy(), rtol=0, atol=1e-6)
    snn = sg.build(network, spikes=VIEWS[view]).to(dtype)
    same = sg.run(snn, {"x": frames}, sequence=True, keep_state=True)[1]
    np.testing.assert_allclose(found.outputs[1], same.numpy(), rtol=0, atol=1e-6)
    runner.reset()
    parts = [
        runner.run({"x": part}, view=view, **KEPT) for part in (given["x"][:4], given["x"][4:])
    ]
    assert np.array_equal(np.concatenate([p.outputs[1] for p in parts]), found.outputs[1])
    with pytest.raises(sg.InputError, match="are not available yet with a delay"):
        runner.run(given, delay=True, **KEPT)
    begun = {"x": frames[:1], "h": torch.rand(1, 2, 4, dtype=dtype)}
    snn.reset()
    same = sg.run(snn, begun, sequence=True, keep_state=True)[1]
    both = {name: value.numpy() for name, value in begun.items()}
    with pytest.raises(sg.InputError, match="feeds 'h' itself"):
        runner.run(both, view=view, **KEPT)
    runner.reset()
    first = runner.run(both, view=view, **KEPT).outputs[1]
    np.testing.assert_allclose(first, same.numpy(), rtol=0, atol=1e-6)
    assert not np.array_equal(first[0], found.outputs[1][0])
    certificate = sg.verify(tmp_path / "n.h5", network=network)
    assert certificate.ok and certificate.frames == 6, certificate
    assert sg.verify(tmp_path / "n.h5", {"x": frames.float()}).ok
    forgets = sg.verify(tmp_path / "n.h5", network=network.replace(carries={}))
    assert not forgets.ok and not forgets.checks[0].equal


def test_a_kind_says_what_a_frame_does(path, x, monkeypatch):
    runner = Runner(path)
    for frame, told in (("kept", None), ("anew", None), ("it forgets nothing", "forgets nothing")):
        row = replace(kinds.KINDS["signgd"], frame=lambda record, frame=frame: frame)
        monkeypatch.setitem(kinds.KINDS, "signgd", row)
        runner.reset()
        if told:
            with pytest.raises(sg.InputError, match=told):
                runner.run(x.numpy(), view="decoded", **KEPT)
        else:
            run = runner.run(x.numpy(), view="decoded", **KEPT)
            again = [codes[-1].any() for codes in run.spikes.values()]
            assert any(again) == (frame == "anew")


# -- the file --------------------------------------------------------------------------------------


def test_the_file_says_that_it_is_of_streams(network, path):
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == "1.5"
        assert json.loads(file.attrs["stream"]) is True and json.loads(file.attrs["carries"]) == {}
    again = sg.load(path)
    assert again.stream and repr(again) == repr(network)
    assert_equal_networks(again, network)


def test_the_file_says_what_a_network_feeds_itself(tmp_path):
    network = remembering().replace(stream=False)
    sg.save(network, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5") as file:
        assert file.attrs["format_version"] == "1.5"
        assert json.loads(file.attrs["carries"]) == dict(network.carries)


def test_files_of_other_plans_are_as_they_were(network, tmp_path):
    sg.save(network.replace(stream=False), tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5") as file:
        assert file.attrs["format_version"] == "1.3"
        assert "stream" not in file.attrs and "carries" not in file.attrs
    assert sg.load(tmp_path / "n.h5").stream is False
    certificate = sg.verify(tmp_path / "n.h5", network=network.replace(stream=False), samples=2)
    assert certificate.ok and certificate.frames is None
    assert "frames" not in certificate.to_dict() and "frames" not in str(certificate)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("stream", '"yes"', "stream is true or false"),
        ("carries", '["input"]', "carries is an object"),
        ("carries", '{"input": "nothing"}', "'input' is fed by 'nothing'"),
        ("carries", '{"gelu": "mul"}', "'gelu' is fed by 'mul'"),
        ("carries", '{"input": "mul"}', "the shapes are"),
    ],
)
def test_damaged_files(path, tmp_path, name, value, error):
    shutil.copyfile(path, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        file.attrs[name] = value
    seal(tmp_path / "n.h5")
    with pytest.raises(sg.FormatError, match=error):
        sg.load(tmp_path / "n.h5")


# -- certificates ----------------------------------------------------------------------------------


def test_a_certificate_replays_a_clip(network, path, x, tmp_path):
    sg.save(network, tmp_path / "n.h5")
    drawn = sg.verify(tmp_path / "n.h5", network=network, samples=2)
    assert drawn.ok and (drawn.frames, drawn.samples, drawn.time_steps) == (6, 2, 1)
    assert "6 frames of 2 streams" in str(drawn) and "a cut at frame 4" in drawn.inputs
    content, wide, delayed, single = drawn.checks
    assert content.equal and wide.equal and delayed.equal and single.mismatches == 0
    assert wide.cells == delayed.cells == sum(network.count(2 * 6).values()) and wide.spikes > 1000
    given = sg.verify(tmp_path / "n.h5", x, network=network, embed=True)
    assert given.ok and given.frames == FRAMES
    with h5py.File(tmp_path / "n.h5") as file:
        assert json.loads(file.attrs["certificate"])["frames"] == FRAMES
    assert sg.load(tmp_path / "n.h5").stream


def test_a_file_of_another_plan_is_told_apart(network, path, x):
    other = sg.verify(path, x, network=network.replace(stream=False))
    assert not other.ok and other.checks[0].mismatches == 1


def test_a_runner_whose_steps_go_on_is_told_apart(network, x, tmp_path, monkeypatch):
    sg.save(halving(network), tmp_path / "n.h5")
    assert sg.verify(tmp_path / "n.h5", x).ok
    monkeypatch.setattr(runner._Run, "_new_frame", lambda run, node: None)
    broken = sg.verify(tmp_path / "n.h5", x)
    assert not broken.ok and broken.checks[0].mismatches > 0


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (torch.zeros(1, 2, 2, 6, 6), "a clip of one frame keeps no state"),
        (torch.zeros(4, 2, 2, 6, 7), r"takes clips \[F, B, 2, 6, 6\], but 'input' is"),
        (torch.zeros(2, 2, 6, 6), r"takes clips \[F, B, 2, 6, 6\]"),
        (torch.zeros(0, 2, 2, 6, 6), r"takes clips \[F, B, 2, 6, 6\]"),
        ({"x": torch.zeros(4, 2, 2, 6, 6)}, "takes clips of input, but x holds x"),
    ],
)
def test_certificates_refuse(path, frames, error):
    with pytest.raises(sg.InputError, match=error):
        sg.verify(path, frames)


# -- what the runner refuses -----------------------------------------------------------------------


def test_refusals(path, network, tmp_path):
    runner, frames = Runner(path), np.zeros((2, 3, 2, 6, 6))
    with pytest.raises(sg.InputError, match="pass sequence=True"):
        runner.run(frames, keep_state=True)
    for empty in (frames[:0], frames[:, :0]):
        with pytest.raises(sg.InputError, match="at least one frame"):
            runner.run(empty, **KEPT)
    runner.run(frames, **KEPT)
    for other in (frames[:, :2], frames[..., :5]):
        with pytest.raises(sg.InputError, match=r"are \[3, 2, 6, 6\], but these are .*reset\(\)"):
            runner.run(other, **KEPT)
    with pytest.raises(sg.InputError, match="the stream began in the view 'spike'"):
        runner.run(frames, view="decoded", **KEPT)
    runner.reset()
    runner.run(frames[:, :2], view="decoded", **KEPT)
    for view in ("Spike", "signed"):
        with pytest.raises(sg.InputError, match=f"view is one of spike, decoded, .* {view!r}"):
            runner.run(frames[:, :2], view=view, **KEPT)
    with pytest.raises(sg.InputError, match="those of a Poisson encoder, but"):
        runner.run(frames[:, :2], input_spikes=frames, **KEPT)
    sg.save(network.replace(stream=False), tmp_path / "n.h5")
    with pytest.raises(sg.InputError, match="drift apart from frame to frame"):
        Runner(tmp_path / "n.h5").run(frames, view="spike", **KEPT)
    Runner(tmp_path / "n.h5").run(frames, **KEPT)


def test_the_spike_view_is_of_signgd_neurons_alone(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    grouped = sg.convert(model, torch.rand(16, 4), time_steps=2, tune=False, method="group")
    sg.save(grouped.replace(stream=True), tmp_path / "n.h5")
    with pytest.raises(sg.InputError, match="the spike view requires signGD neurons only"):
        Runner(tmp_path / "n.h5").run(torch.rand(2, 1, 4).numpy(), view="spike", **KEPT)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"momentum": 0.5, "dead_zone": 0.0}, "momentum"),
        ({"input_coding": "poisson"}, "Poisson"),
        ({"method": "subgradient"}, "a mean over all steps"),
    ],
)
def test_what_runs_on_no_streams(tmp_path, options, error):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    network = sg.convert(model, torch.rand(16, 4), time_steps=2, tune=False, **options)
    sg.save(network, tmp_path / "n.h5")
    with pytest.raises(sg.InputError, match=f"cannot run on streams.*{error}"):
        Runner(tmp_path / "n.h5").run(torch.rand(2, 1, 4).numpy(), **KEPT)


def test_real_valued_coding_goes_on(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    network = sg.convert(model, torch.rand(16, 4), time_steps=4, tune=False, input_coding="real")
    assert network.of(Encoder)
    sg.save(network.replace(stream=True), tmp_path / "n.h5")
    certificate = sg.verify(tmp_path / "n.h5", network=network.replace(stream=True))
    assert certificate.ok, certificate


# -- other formats ---------------------------------------------------------------------------------


def test_nir_files_of_streams(tmp_path):
    network = of_groups().replace(stream=True)
    frames = torch.rand(3, 4, 6, generator=generator(2))
    report = sg.export(network, tmp_path / "n.nir", mode="exact")
    assert any("reset all states before each" in note for note in report.notes)
    assert sg.load(tmp_path / "n.nir").stream
    certificate = sg.verify(tmp_path / "n.nir", frames, network=network)
    assert certificate.ok and certificate.samples == 12, certificate
    assert any("each frame is replayed separately" in note for note in certificate.notes)
    assert not sg.verify(tmp_path / "n.nir", frames, network=network.replace(stream=False)).ok
    with pytest.raises(sg.FormatError, match="one floating-point tensor"):
        sg.export(remembering(), tmp_path / "m.nir", mode="exact")


def test_netx_files_of_streams(tmp_path):
    """Group neurons start anew at every frame: each is a sample of the file."""
    network = of_groups().replace(stream=True)
    frames = torch.rand(3, 4, 6, generator=generator(2))
    sg.export(network, tmp_path / "n.net", calibration=frames.flatten(0, 1))
    certificate = sg.verify(tmp_path / "n.net", frames, network=network)
    assert certificate.checks[0].equal and certificate.samples == 12
    with pytest.raises(sg.FormatError, match="one chain of layers"):
        sg.export(remembering(), tmp_path / "m.net", input_range=(-1, 1))
