"""Plots: the numbers that are drawn, what they say, and that it can be read."""

import io
import itertools
import json
import math
import subprocess
import sys

import matplotlib
import pytest
import torch
from data import digits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import (
    Plot,
    Recording,
    diagnose,
    estimate_energy,
    plot_accuracy,
    plot_decoded,
    plot_energy,
    plot_errors,
    plot_frontier,
    plot_raster,
    plot_rates,
    plot_spikes,
    plot_trace,
    plots,
    record,
)

STEPS = (1, 2, 4, 8)


class Measured:
    """A converted network and all that can be drawn of it."""

    def __init__(self, snn, x, y, steps):
        batches = [(x, y)]
        self.snn = snn
        self.evaluation = sg.evaluate(snn, batches, steps, reference=_ann(snn))
        self.diagnosis = diagnose(snn, x, y, time_steps=steps)
        self.energy = estimate_energy(snn, x, steps)
        self.recording = record(snn, x[:8], max(steps))
        self.layer = snn.network.names()[1]


def _ann(snn):
    class Source(nn.Module):
        def forward(self, x):
            return snn.ann(x)

    return Source()


@pytest.fixture(scope="module", params=["signgd", "dead zone", "group"])
def measured(request):
    torch.manual_seed(0)
    data = digits()
    x, y, images = data.test.images[:24], data.test.labels[:24], data.train.images[:64]
    if request.param == "group":
        model, options = load_network("vgg", "digits", qcfs=8), {"method": "group"}
    else:
        model = load_network("convnext", "digits")
        dense = request.param == "signgd"
        options = {"members": 1, "dead_zone": 0} if dense else {"members": 3, "dead_zone": 2 / 3}
    network = sg.convert(model, images, time_steps=STEPS[-1], tune=False, **options)
    return Measured(sg.build(network), x, y, STEPS)


def drawings(m):
    yield "accuracy", plot_accuracy(m.evaluation)
    yield "accuracies", plot_accuracy({f"network {i}": m.evaluation for i in range(9)})
    for which in plots.LEVELS:
        yield which, plot_errors(m.diagnosis, which)
    yield "decoded", plot_decoded(m.recording, m.layer)
    yield "trace", plot_trace(m.recording, m.layer)
    yield "raster", plot_raster(m.recording, m.layer)
    yield "rates", plot_rates(m.recording)
    yield "rates of one layer", plot_rates(m.recording, m.layer)
    yield "spikes", plot_spikes(m.recording, m.layer)
    yield "energy", plot_energy(m.energy)
    yield "frontier", plot_frontier(m.evaluation, m.energy)


def texts(figure):
    """The texts that are drawn and where, [x0, y0, x1, y1] in pixels."""
    found = []
    draw = matplotlib.text.Text.draw

    def listen(text, renderer, *more):
        if text.get_visible() and text.get_text().strip():
            # of the text alone, without the line that leads to it
            box = matplotlib.text.Text.get_window_extent(text, renderer)
            found.append((text.get_text(), box.x0, box.y0, box.x1, box.y1))
        draw(text, renderer, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", listen)
        FigureCanvasAgg(figure).draw()
    return list(dict.fromkeys(found))


def assert_readable(figure):
    """No text on another, none outside the picture."""
    drawn = texts(figure)
    assert drawn
    width, height = figure.bbox.width, figure.bbox.height
    for text, x0, y0, x1, y1 in drawn:
        inside = x0 >= -1 and y0 >= -1 and x1 <= width + 1 and y1 <= height + 1
        assert inside, f"{text!r} leaves the picture"
    for a, b in itertools.combinations(drawn, 2):
        apart = a[3] <= b[1] + 1 or b[3] <= a[1] + 1 or a[4] <= b[2] + 1 or b[4] <= a[2] + 1
        assert apart, f"{a[0]!r} lies on {b[0]!r}"


def test_texts_that_overlap_are_seen():
    axes = Figure().add_subplot()
    axes.text(0.5, 0.5, "one")
    assert_readable(axes.figure)
    axes.text(0.52, 0.5, "other")
    with pytest.raises(AssertionError, match="lies on"):
        assert_readable(axes.figure)


def settings():
    return {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}


def test_every_plot(measured):
    before = settings()
    for name, drawn in drawings(measured):
        assert isinstance(drawn, Plot), name
        axes, numbers = drawn
        json.dumps(numbers, allow_nan=False)
        assert axes.get_xlabel() and (axes.get_ylabel() or axes.get_yticklabels()), name
        assert_readable(drawn.figure)
    assert settings() == before


def test_pyplot_is_left_alone(tmp_path):
    """Nor is it imported: it would choose a backend, and keep the figure."""
    code = """
import sys, spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import plot_accuracy
drawn = plot_accuracy(sg.Evaluation((1, 2), (0.5, 0.75), (0.5, 0.75), (0.5, 0.25), 0.8, 4))
drawn.save("a.png"); drawn.save("a.svg")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


def evaluation(accuracy=(0.5, 0.75), agreement=(0.25, 1.0), reference=0.875):
    return sg.Evaluation((1, 4), accuracy, agreement, (0.5, 0.1), reference, 8)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_accuracy_and_agreement():
    axes, numbers = plot_accuracy(evaluation())
    drawn = lines(axes)
    assert list(drawn["accuracy"].get_ydata()) == [50, 75]
    assert list(drawn["agreement with the source"].get_ydata()) == [25, 100]
    assert list(drawn["source network, 87.50 %"].get_ydata()) == [87.5, 87.5]
    assert numbers == {"": evaluation().to_dict()}


def test_several_results_show_no_agreement_unless_asked():
    results = {"a": evaluation(), "b": evaluation()}
    assert not any("agreement" in name for name in lines(plot_accuracy(results).axes))
    drawn = lines(plot_accuracy(results, agreement=True).axes)
    assert {"a: agreement with the source", "b: agreement with the source"} <= set(drawn)


def test_without_labels_agreement_is_drawn():
    axes, _ = plot_accuracy(evaluation(accuracy=(None, None), reference=None))
    assert axes.get_ylabel() == "agreement (%)" and len(axes.get_lines()) == 1
    with pytest.raises(sg.InputError, match="neither accuracy nor agreement"):
        plot_accuracy(evaluation((None, None), (None, None), None))


def test_the_callers_axes_are_used():
    mine = Figure().add_subplot()
    axes, _ = plot_accuracy(evaluation(), axes=mine)
    assert axes is mine and len(mine.get_lines()) == 3


def recording(decoded, spikes, source):
    """Of one layer 'a' with values [T, B, *]."""
    return Recording(len(decoded), {"a": decoded}, {"a": spikes}, {"a": source})


def test_decoded_values():
    source = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    decoded = torch.stack([torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [-1.5, 1.5]])])
    axes, numbers = plot_decoded(recording(decoded, decoded, source), "a")
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[1, 1], [2, 2], [-3, -1.5], [4, 1.5]]
    assert axes.get_xlim() == axes.get_ylim()  # the diagonal is one
    assert numbers["relative_error"] == pytest.approx(math.sqrt((1.5**2 + 2.5**2) / 30))
    assert numbers["source_range"] == [-3, 4] and numbers["decoded_range"] == [-1.5, 2]


def test_many_decoded_values_are_counted():
    source = torch.randn(50, 100)
    decoded = (source + 0.1 * torch.randn(50, 100)).clamp(-1, 1)[None]
    drawn = plot_decoded(recording(decoded, decoded, source), "a")
    (image,) = drawn.axes.images
    counts = image.get_array()
    assert counts.sum() == 5000 and drawn.numbers["decoded_range"] == [-1, 1]
    flat = (decoded == 1).sum()  # what saturates lies in one row
    assert counts.sum(axis=1).max() >= flat > 500


def test_quantised_values_are_points():
    source = torch.arange(4.0).repeat(700)[None]
    decoded = source.where(source < 3, 2.0)
    drawn = plot_decoded(recording(decoded[None], decoded[None], source), "a")
    (points,) = drawn.axes.collections
    cell = (drawn.axes.get_xlim()[1] - drawn.axes.get_xlim()[0]) / 90
    at = torch.tensor(points.get_offsets().tolist())
    expected = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 2]])
    assert (at - expected).abs().max() <= cell and points.get_array().tolist() == [700] * 4


def test_trace_of_a_neuron():
    decoded, spikes = torch.rand(5, 2, 3, 4), torch.rand(5, 2, 3, 4).sign()
    source = torch.rand(2, 3, 4)
    axes, numbers = plot_trace(recording(decoded, spikes, source), "a", (1, 2, 3))
    assert numbers["index"] == [1, 2, 3]
    assert numbers["decoded"] == pytest.approx(decoded[:, 1, 2, 3].tolist())
    assert numbers["spikes"] == spikes[:, 1, 2, 3].tolist()
    assert numbers["source"] == pytest.approx(float(source[1, 2, 3]))
    assert any(list(line.get_ydata()) == [numbers["source"]] * 2 for line in axes.get_lines())
    for index in ((1, 2), (2, 0, 0), (0, 0, -1)):
        with pytest.raises(sg.InputError, match="index is"):
            plot_trace(recording(decoded, spikes, source), "a", index)


def test_the_neuron_of_a_trace_is_chosen_by_its_activation():
    source = torch.arange(11.0).reshape(1, 11) - 20  # |.| from 20 down to 10
    decoded = torch.rand(3, 1, 11)
    numbers = plot_trace(recording(decoded, decoded, source), "a").numbers
    assert numbers["index"] == [0, 1] and numbers["source"] == -19


def test_raster():
    spikes = torch.tensor([[1, 0, -2, 0], [0, 0, 1, 0], [1, 1, 1, 0]]).float()[:, None]
    drawn = plot_raster(recording(spikes, spikes, spikes[0]), "a")
    assert drawn.numbers["spikes"] == spikes[:, 0].T.tolist()
    assert drawn.numbers["active"] == 0.5
    image = drawn.axes.images[0]
    below, above = (to_hex(image.cmap(image.norm(v))) for v in (-2.0, 1.0))
    assert below == plots.UP.lower() and len({below, above, plots.SILENT.lower()}) == 3
    few = plot_raster(recording(spikes, spikes, spikes[0]), "a", neurons=2)
    assert few.numbers["neurons"] == [0, 3] and few.axes.get_ylabel() == "neuron, 2 of 4"


@pytest.mark.parametrize("levels", [(-1, 0, 1), range(-7, 8)])
def test_a_raster_shows_both_signs_and_silence(levels):
    """Three colours, also where there is a shade for each of many levels."""
    sent = [*levels, *(0 for _ in levels)]  # most are silent
    spikes = torch.tensor(sent).float().reshape(1, 1, -1)
    drawn = plot_raster(recording(spikes, spikes, spikes[0]), "a")
    image, (ground,) = drawn.axes.images[0], drawn.axes.patches
    (column,) = image.get_array().T
    assert column.mask.tolist() == [v == 0 for v in sent]
    assert to_hex(ground.get_facecolor()) == plots.SILENT.lower()  # is seen where nothing is sent
    shown = {v: to_hex(c) for v, c in zip(sent, image.cmap(image.norm(column)), strict=True) if v}
    assert shown[levels[0]] == plots.UP.lower() and shown[levels[-1]] == plots.DOWN.lower()
    assert plots.SILENT.lower() not in shown.values()
    assert drawn.numbers["active"] == pytest.approx((len(levels) - 1) / len(sent))


def test_rows_of_a_raster_are_at_the_numbers_of_their_neurons():
    spikes = torch.zeros(2, 1, 512)
    spikes[1, 0, 511] = 1
    drawn = plot_raster(recording(spikes, spikes, spikes[0]), "a", neurons=3)
    right, bottom, top = drawn.axes.images[0].get_extent()[1:]
    middles = [top + (bottom - top) * (k + 0.5) / 3 for k in range(3)]
    assert middles == pytest.approx([0, 255.5, 511]) and right == 2.5
    assert drawn.numbers["neurons"] == [0, 256, 511]


def test_a_raster_of_neurons_that_send_in_every_step_is_no_carpet():
    """A few of them, for a while, each sign a bar up or down."""
    spikes = torch.randn(200, 1, 300).sign()
    drawn = plot_raster(recording(spikes, spikes, spikes[0]), "a")
    chosen = drawn.numbers["neurons"]
    assert len(chosen) == plots.DENSE_RASTER and not drawn.axes.images
    wanted = spikes[: plots.DENSE_STEPS, 0, chosen].T
    assert drawn.numbers["spikes"] == wanted.tolist()
    bars = [patch.get_data() for patch in drawn.axes.patches]
    heights = torch.tensor([[b.baseline - v for v in b.values] for b in bars])
    both = heights[0::2] + heights[1::2]  # what goes up and what goes down
    assert torch.allclose(both / both.abs().max(), wanted.double())
    assert drawn.axes.get_xlabel() == "time step t, the first 48 of 200"
    assert (
        len(plot_raster(recording(spikes, spikes, spikes[0]), "a", neurons=20).axes.patches) == 40
    )


def test_histogram_of_spikes():
    """Of three neurons, two samples: none, one and three; none, none and five."""
    sent = torch.tensor([[[0, 1, 2], [0, 0, 4]], [[0, 0, 1], [0, 0, 1]]], dtype=torch.int16)
    found = Recording(2, {"a": sent.float()}, {"a": sent.float()}, {"a": sent[0].float()},
                      {"a": sent})  # fmt: skip
    drawn = plot_spikes(found, "a")
    assert drawn.numbers["counts"] == [3, 1, 0, 1, 0, 1]
    assert drawn.numbers["mean"] == pytest.approx(9 / 6) and drawn.numbers["silent"] == 0.5
    heights = [bar.get_height() for bar in drawn.axes.patches]
    assert heights == pytest.approx([50, 100 / 6, 0, 100 / 6, 0, 100 / 6])
    many = found.sent["a"] * 100
    drawn = plot_spikes(Recording(2, found.decoded, found.spikes, found.source, {"a": many}), "a")
    assert len(drawn.axes.patches) == plots.BINS
    assert sum(bar.get_height() for bar in drawn.axes.patches) == pytest.approx(100)


def test_rates():
    spikes = torch.tensor([[1, 1, -1, 0], [1, -1, -1, 0], [1, 1, -1, 0], [1, -1, 1, 0]]).float()
    numbers = plot_rates(recording(spikes[:, None], spikes[:, None], spikes[:1]), "a").numbers
    middle = [(a + b) / 2 for a, b in itertools.pairwise(numbers["edges"])]
    found = {round(m, 6): s for m, s in zip(middle, numbers["share"]["a"], strict=True) if s}
    assert found == {-0.5: 0.25, 0: 0.5, 1: 0.25}
    assert numbers["active"]["a"] == 0.75 and numbers["mean_size"]["a"] == 0.75


def test_signgd_without_a_dead_zone_is_seen_to_be_dense(measured):
    numbers = plot_rates(measured.recording).numbers
    dense = [name for name, share in numbers["active"].items() if share == 1.0]
    steady = all(node.steady for node in measured.snn.network.neurons)
    assert dense == (list(measured.recording.spikes) if steady else [])


def test_errors_are_those_of_the_diagnosis(measured):
    numbers = plot_errors(measured.diagnosis, "isolated").numbers
    assert numbers["time_steps"] == list(STEPS)
    for layer, row in zip(measured.diagnosis.layers, numbers["values"], strict=True):
        assert row == [layer.isolated[t] for t in STEPS]
    with pytest.raises(sg.InputError, match="which is one of"):
        plot_errors(measured.diagnosis, "worst")


@pytest.mark.parametrize("table", ["45 nm fp32", "45 nm fp32 + memory"])
def test_energy_by_layer_adds_up(measured, table):
    axes, numbers = plot_energy(measured.energy, 4, table)
    layers = numbers["picojoules"]
    for name, parts in layers.items():
        assert sum(parts.values()) == pytest.approx(measured.energy.layers[4][name][table])
    assert numbers["total"] == pytest.approx(measured.energy.total[table][4])
    assert any(parts["memory"] for parts in layers.values()) is ("memory" in table)
    unit = dict(plots.UNITS)[axes.get_xlabel().split("(")[1].split(")")[0]]
    assert sum(bar.get_width() for bar in axes.patches) * unit == pytest.approx(numbers["total"])
    with pytest.raises(sg.InputError, match="T = 3 was not estimated"):
        plot_energy(measured.energy, 3)


def test_legends_stay_within_the_callers_axes(measured):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    plot_energy(measured.energy, axes=left)
    plot_frontier(measured.evaluation, measured.energy, axes=right)
    assert figure.legends == [] and left.get_legend() and right.get_legend()


def test_frontier(measured):
    numbers = plot_frontier(measured.evaluation, measured.energy).numbers
    table = next(iter(measured.energy.total))
    assert numbers["table"] == table and numbers["time_steps"] == list(STEPS)
    assert numbers["picojoules"] == [measured.energy.total[table][t] for t in STEPS]
    assert numbers["percent"] == [100 * a for a in measured.evaluation.accuracy]
    assert numbers["break_even"] == measured.energy.break_even[table][STEPS[-1]]
    with pytest.raises(sg.InputError, match="no table"):
        plot_frontier(measured.evaluation, measured.energy, "mine")


def test_axes_name_a_quantity_and_its_unit(measured):
    for name, drawn in drawings(measured):
        for label in (drawn.axes.get_xlabel(), drawn.axes.get_ylabel()):
            assert len(label) <= 50, f"{name}: {label!r} is a caption, not the name of an axis"
    assert plot_energy(measured.energy).axes.get_xlabel() in ("energy (nJ)", "energy (µJ)")


def test_texts_are_large_enough_to_be_read(measured):
    """9 pixels where the picture is shown a quarter smaller than it is, 96 pixels an inch."""
    for name, drawn in drawings(measured):
        for text in drawn.figure.findobj(matplotlib.text.Text):
            pixels = text.get_fontsize() / 72 * 96 * 0.82
            assert pixels >= 9 or not text.get_text(), f"{name}: {text.get_text()!r}"


def test_layers_that_cost_little_are_one_bar():
    layers = {f"l{i}": dict.fromkeys(plots.COMPONENTS, 0.0) for i in range(30)}
    for i, parts in enumerate(layers.values()):
        parts["memory"] = 100.0 if i < 3 else 0.5
    bars = plots._bars(layers, {name: sum(parts.values()) for name, parts in layers.items()})
    assert list(bars) == ["l0", "l1", "l2", "27 other layers"]
    assert bars["27 other layers"]["memory"] == 13.5


def test_names_of_lines_are_moved_apart():
    from spikingjelly_signgd.analysis.drawing import apart

    assert apart([0.2, 0.8], [0.1, 0.1]) == [0.2, 0.8]
    found = apart([0.99, 0.2, 0.98, 0.99], [0.1, 0.1, 0.2, 0.1])
    assert found == pytest.approx([0.85, 0.2, 0.7, 0.95])


@pytest.mark.parametrize(
    ("value", "fine", "text"),
    [(0.0, True, "0"), (3e-8, True, "<0.001"), (0.0123, True, "0.012"), (0.1571664, True, "0.16"),
     (-0.004, False, "0"), (-0.31, False, "−0.31"), (math.nan, True, "–")],
)  # fmt: skip
def test_numbers_of_a_heat_map(value, fine, text):
    from spikingjelly_signgd.analysis.drawing import short_number

    assert short_number(value, fine) == text


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_picture_is_saved_in_the_format_of_its_suffix(tmp_path, suffix, start):
    plot_accuracy(evaluation()).save(tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)


def test_unknown_layer(measured):
    for draw in (plot_decoded, plot_trace, plot_raster, plot_rates, plot_spikes):
        with pytest.raises(sg.InputError, match="'nobody'"):
            draw(measured.recording, "nobody")


def test_hostile_names_are_drawn():
    name = "a$x^{$<b>&" + 60 * "y"
    values = torch.rand(3, 1, 4)
    found = Recording(3, {name: values}, {name: values.sign()}, {name: values[0]})
    for drawn in (plot_decoded(found, name), plot_trace(found, name), plot_raster(found, name),
                  plot_rates(found)):  # fmt: skip
        drawn.figure.savefig(io.BytesIO(), format="svg")
        assert_readable(drawn.figure)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(sg.BackendUnavailable, match=r"spikingjelly-signgd\[plot\]"):
        plot_accuracy(evaluation())


def test_a_notebook_shows_the_plot():
    assert plot_accuracy(evaluation())._repr_png_().startswith(b"\x89PNG")


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_of_the_first_lines_differ_for_the_colour_blind(kind):
    rgb = torch.tensor([matplotlib.colors.to_rgb(c) for c in (*plots.COLORS[:3], plots.DOWN)])
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ torch.tensor(BLINDNESS[kind]).T).clamp(0, 1) ** (1 / 2.2)
    assert torch.pdist(seen).min() > 0.15
    # what two ordinary greens and reds would not pass
    red, green = torch.tensor([0.8, 0.2, 0.2]), torch.tensor([0.35, 0.5, 0.1])
    pair = (torch.stack([red, green]) ** 2.2 @ torch.tensor(BLINDNESS[kind]).T).clamp(0, 1)
    assert torch.pdist(pair ** (1 / 2.2)).min() < 0.35


def lightness(color):
    """L* of CIELAB, what is left of a colour on a printer without colours."""
    rgb = torch.tensor(matplotlib.colors.to_rgb(color))
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * float(linear @ torch.tensor([0.2126, 0.7152, 0.0722])) ** (1 / 3) - 16


@pytest.mark.parametrize("colors", [plots.COMPONENTS, plots.PART_COLORS])
def test_stacked_colours_differ_in_grey(colors):
    found = sorted(map(lightness, colors.values()))
    assert min(b - a for a, b in itertools.pairwise(found)) > 8
    with_old = sorted(map(lightness, ("#0072B2", "#D55E00", "#56B4E9", "#999999")))
    assert min(b - a for a, b in itertools.pairwise(with_old)) < 8
