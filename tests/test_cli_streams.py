"""Plans for streams on the command line: clips [F, N, ...] in, what each frame costs out."""

import json
import re

import cli_zoo
import numpy as np
import pytest
import torch
from test_stream_files import remembering
from test_streams import for_streams, generator

import spikingjelly_signgd as sg
from spikingjelly_signgd.cli import main

pytestmark = pytest.mark.spikingjelly
FRAMES, STREAMS = 5, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network for streams, one for stills, and clips."""
    folder = tmp_path_factory.mktemp("streams")
    x, y = cli_zoo.data()
    options = {"time_steps": 1, "members": 7, "tune": False, "input_coding": "spike"}
    network = sg.convert(cli_zoo.tiny(), x, **options)
    sg.save(for_streams(network), folder / "stream.h5")
    sg.save(network, folder / "stills.h5")
    noise = torch.randn(FRAMES, STREAMS, *x.shape[1:], generator=generator(0))
    clip = (x[:STREAMS] + 0.02 * noise.cumsum(0)).numpy()
    clip[-1] = clip[-2]
    np.savez(folder / "clip.npz", x=clip, y=y[:STREAMS].numpy())
    np.save(folder / "clip.npy", clip)
    np.save(folder / "pixels.npy", (clip.clip(0, 1) * 255).astype(np.uint8))
    np.save(folder / "labels.npy", y[:STREAMS].expand(FRAMES, STREAMS).numpy())
    np.savez(folder / "stills.npz", x=x.numpy(), y=y.numpy())
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def document(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def run_by_hand():
    snn = sg.build(sg.load("stream.h5"))
    clip = torch.from_numpy(np.load("clip.npy"))
    return clip, snn, sg.run(snn, clip, sequence=True, keep_state=True)[1]


def test_evaluate(capsys):
    found = document(capsys, "evaluate", "stream.h5", "--data", "clip.npz")
    clip, snn, outputs = run_by_hand()
    want = torch.stack([snn.ann(frame) for frame in clip])
    error = float((outputs - want).norm() / want.norm())
    (row,) = found["rows"]
    assert (found["samples"], found["frames"]) == (FRAMES * STREAMS, FRAMES)
    assert row["error"] == pytest.approx(error, rel=1e-5) and row["T"] == 1
    same = (outputs.argmax(-1) == want.argmax(-1)).double().mean()
    assert row["agreement"] == pytest.approx(float(same))
    y = torch.from_numpy(np.load("clip.npz")["y"])
    assert row["accuracy"] == pytest.approx(float((outputs.argmax(-1) == y).double().mean()))
    anew = torch.stack([sg.run(snn, frame)[1] for frame in clip])
    assert float((anew - want).norm() / want.norm()) != pytest.approx(error, rel=1e-3)


def test_labels_of_each_frame_and_a_reference(capsys):
    given = ["--labels", "labels.npy", "--reference", "cli_zoo:tiny"]
    found = document(capsys, "evaluate", "stream.h5", "--data", "clip.npy", *given)
    again = document(capsys, "evaluate", "stream.h5", "--data", "clip.npz")
    assert found["rows"][0]["accuracy"] == again["rows"][0]["accuracy"]
    assert found["rows"][0]["error"] == pytest.approx(again["rows"][0]["error"], rel=1e-4)
    assert main(["evaluate", "stream.h5", "--data", "clip.npz"]) == 0
    assert "5 frames of 3 streams of clip.npz" in capsys.readouterr().out


def test_some_streams_and_pixels(capsys):
    given = ["--data", "pixels.npy", "--scale-pixels", "--samples", "2"]
    assert document(capsys, "evaluate", "stream.h5", *given)["samples"] == 2 * FRAMES


def test_python_evaluates_the_frames_of_a_stream():
    clip, snn, outputs = run_by_hand()
    found = sg.evaluate(snn, list(clip), reference=snn.source, keep_state=True)
    again = sg.evaluate(snn, list(clip), reference=snn.source, keep_state=True)
    assert found == again and found.samples == FRAMES * STREAMS and snn.seen is None
    assert found != sg.evaluate(snn, list(clip), reference=snn.source)


def test_convert_for_streams(capsys):
    clips = ["--data", "clip.npz", "--stream"]
    found = document(capsys, "convert", "cli_zoo:tiny", *clips, "-o", "a.h5")
    network = sg.load("a.h5")
    assert network.stream and network.time_steps == 1 and found["calibration_samples"] == STREAMS
    cost = found["cost"]
    assert cost["frames"] == FRAMES and cost["samples"] == STREAMS
    assert cost["additions_per_mac"] < cost["first_frame"]["additions_per_mac"]
    energy = document(capsys, "energy", "a.h5", "--data", "clip.npz")
    assert energy["later_additions_per_mac"] == pytest.approx(cost["additions_per_mac"])
    x = torch.from_numpy(np.load("clip.npy"))
    by_hand = sg.convert(cli_zoo.tiny(), x, stream=True)
    outputs = [
        sg.run(sg.build(plan), x, sequence=True, keep_state=True)[1] for plan in (network, by_hand)
    ]
    assert torch.equal(*outputs)
    assert document(capsys, "verify", "a.h5", "--data", "clip.npz")["ok"]


def test_convert_for_stills_that_move(capsys):
    moving = ["--data", "stills.npz", "--stream", "--motion", "0.1", "--noise", "0.01"]
    found = document(capsys, "convert", "cli_zoo:tiny", *moving, "-o", "b.h5")
    assert sg.load("b.h5").stream and found["calibration_samples"] == 96
    assert found["cost"]["frames"] == sg.Motion().frames
    with pytest.raises(SystemExit) as ended:
        main(["convert", "cli_zoo:tiny", "--data", "stills.npz", "--motion", "0.1", "-o", "b.h5"])
    assert ended.value.code == 2 and "--stream" in capsys.readouterr().err
    stills = ["--data", "stills.npz:x", "--stream", "-o", "b.h5"]
    found = document(capsys, "convert", "cli_zoo:tiny", *stills, code=2)
    assert "clips [F, N, ...]" in found["error"], found


@pytest.mark.parametrize("network", [[], ["--network", "stream.h5"]])
def test_verify(capsys, network):
    found = document(capsys, "verify", "stream.h5", "--data", "clip.npy", *network)
    assert found["ok"] and (found["frames"], found["samples"]) == (FRAMES, STREAMS)
    found = document(capsys, "verify", "stream.h5", "--samples", "2", *network)
    assert found["ok"] and (found["frames"], found["samples"]) == (6, 2)


def test_energy(capsys):
    found = document(capsys, "energy", "stream.h5", "--data", "clip.npy")
    spikes = found["spikes"]
    assert len(spikes) == FRAMES and spikes[0] > spikes[1] > 0 == spikes[-1]
    assert found["later_additions_per_mac"] == pytest.approx(
        np.mean(found["additions_per_mac"][1:])
    )
    priced = ["energy", "stream.h5", "--data", "clip.npy", "--table", "45 nm fp32"]
    joules = document(capsys, *priced)["energy"]
    assert list(joules) == ["45 nm fp32"] and len(joules["45 nm fp32"]) == FRAMES
    assert main(priced) == 0
    out = capsys.readouterr().out
    assert f"the mean of {FRAMES} frames" in out and "energy: 45 nm fp32, estimate" in out


@pytest.mark.parametrize("stream", [True, False])  # whether the plan is one for streams
def test_networks_that_feed_themselves(capsys, folder, stream):
    sg.save(remembering().replace(stream=stream), folder / "memory.h5")
    np.save("sound.npy", torch.randn(6, 2, 3, generator=generator(4)).numpy())
    data = ["memory.h5", "--data", "sound.npy"]
    for more in ([], ["--network", "memory.h5"], ["--network", "memory.h5", "--samples", "1"]):
        found = document(capsys, "verify", *data, *more)
        assert found["ok"] and (found["frames"], found["samples"]) == (6, 1 if more[2:] else 2)
    found = document(capsys, "energy", *data)
    assert len(found["additions"]) == 6 and found["samples"] == 2
    assert document(capsys, "evaluate", *data)["rows"][0]["error"] < 0.3
    found = document(capsys, "evaluate", *data, "--reference", "cli_zoo:tiny", code=2)
    assert "run with its own memory" in found["error"]
    found = document(capsys, "bench", *data, code=2)
    assert "feeds h itself, so that it runs only on clips [F, N, ...]" in found["error"]
    np.save("flat.npy", np.zeros((6, 3), np.float32))
    found = document(capsys, "energy", "memory.h5", "--data", "flat.npy", code=2)
    assert "streams are clips [F, N, ...]" in found["error"]


def test_networks_of_stills_read_stills(capsys):
    found = document(capsys, "evaluate", "stills.h5", "--data", "stills.npz")
    assert found["samples"] == 96 and "frames" not in found


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["evaluate", "stream.h5", "--data", "stills.npz"], r"with class indices \[F, N\]"),
        (["evaluate", "stream.h5", "--data", "stills.npz:x"], r"takes clips \[F, N, 1, 4, 4\]"),
        (["evaluate", "stills.h5", "--data", "clip.npy"], r"takes samples \[1, 4, 4\]"),
        (["verify", "stream.h5", "--data", "stills.npz:x"], r"takes clips \[F, B, 1, 4, 4\]"),
        (["evaluate", "stream.h5", "--data", "clip.npy", "--labels", "short.npy"], r"\[F, N\]"),
        (["evaluate", "stream.h5", "--data", "words.txt"], "clips .* are read from"),
        (["evaluate", "stream.h5", "--data", "flat.npy"], r"x\[:, None\]"),
        (["report", "stream.h5", "--data", "clip.npy", "-o", "r.html"], "one of streams, but this"),
        (["bench", "stream.h5", "--data", "clip.npy"], "one of streams, but this"),
        (["evaluate", "stream.h5", "--data", "nan.npy"], "NaN or infinity"),
    ],
)
def test_bad_input(capsys, folder, arguments, error):
    clip = np.load("clip.npy")
    np.save("short.npy", np.zeros(2, int))
    np.save("flat.npy", clip[0, :, 0, 0])
    clip[1, 0] = np.nan
    np.save("nan.npy", clip)
    (folder / "words.txt").write_text("a word\n")
    found = document(capsys, *arguments, code=2)
    assert re.search(error, found["error"]), found["error"]
