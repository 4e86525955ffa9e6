"""Networks with a memory of their own: what they feed themselves, and models step by step."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.converters.carried import at, clips_with, unrolled
from spikingjelly_signgd.exporters.hdf5.runner import Runner

# -- windows of a signal ---------------------------------------------------------------------------


def test_windows_slide_by_the_hop():
    x = torch.arange(20.0).reshape(2, 10)
    frames = sg.windows(x, 4, 2)
    assert frames.shape == (4, 2, 4)
    assert torch.equal(frames[3, 1], x[1, 6:10])


@pytest.mark.parametrize(("dim", "shape"), [(1, (3, 10, 5)), (2, (3, 5, 10)), (-2, (3, 10, 5))])
def test_windows_in_any_dimension(dim, shape):
    x = torch.randn(shape)
    frames = sg.windows(x, 3, 1, dim=dim)
    assert len(frames) == 8
    for f, frame in enumerate(frames):
        assert torch.equal(frame, x.narrow(dim, f, 3))


def test_the_tail_is_padded_dropped_or_refused():
    x = torch.arange(1.0, 12.0).reshape(1, 11)
    assert len(sg.windows(x, 4, 2, tail="drop")) == 4
    padded = sg.windows(x, 4, 2, tail="pad")
    assert padded[-1, 0].tolist() == [9, 10, 11, 0]
    assert sg.windows(x, 4, 4, lead=2, tail="pad")[0, 0].tolist() == [0, 0, 1, 2]
    with pytest.raises(sg.InputError, match="1 are missing"):
        sg.windows(x, 4, 2)
    assert sg.windows(x[:, :3], 4, tail="pad")[0, 0].tolist() == [1, 2, 3, 0]
    with pytest.raises(sg.InputError, match="longer signal"):
        sg.windows(x[:, :3], 4, tail="drop")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 0}, "size is a number of samples"),
        ({"size": 4, "hop": 0}, "hop is a number"),
        ({"size": 4, "dim": 0}, "not the first"),
        ({"size": 4, "tail": "wrap"}, "tail is one of"),
    ],
)
def test_windows_that_are_none_are_refused(given, said):
    with pytest.raises(sg.InputError, match=said):
        sg.windows(torch.zeros(1, 8), **given)


# -- models step by step ---------------------------------------------------------------------------


class Tagger(nn.Module):
    """[B, L, 5] to [B, L, 3], or to [B, 3] of the end."""

    def __init__(self, layer, last=False):
        super().__init__()
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        self.into, self.layer, self.out = nn.Linear(5, 6), layer, nn.Linear(width, 3)
        self.last = last

    def forward(self, x):
        x = self.into(x).relu()
        y, _ = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        y = y if self.layer.batch_first else y.transpose(0, 1)
        return self.out(y[:, -1] if self.last else y)


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Chomp(nn.Module):
    def forward(self, x):
        return x[..., :-4]


def tcn(kind):
    """[B, 5, L] to [B, 3, L], of a kernel of 3 with dilation 2."""
    given = {"kernel_size": 3, "dilation": 2}
    first = {
        "chomp": lambda: [nn.Conv1d(5, 6, padding=4, **given), Chomp()],
        "pad": lambda: [nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(5, 6, **given)],
        "class": lambda: [Causal(5, 6, **given)],
        "symmetric": lambda: [nn.Conv1d(5, 6, padding=2, **given)],
        "none": lambda: [nn.Conv1d(5, 6, **given)],
        "replicate": lambda: [
            nn.Conv1d(5, 6, padding=4, padding_mode="replicate", **given),
            Chomp(),
        ],
        "later": lambda: [nn.ConstantPad1d((2, 2), 0.0), nn.Conv1d(5, 6, **given)],
        "norm": lambda: [Causal(5, 6, **given), nn.GroupNorm(1, 6)],
        "strided": lambda: [nn.ConstantPad1d((1, 0), 0.0), nn.Conv1d(5, 6, 3, stride=2)],
    }
    return nn.Sequential(*first[kind](), nn.BatchNorm1d(6), nn.ReLU(), Causal(6, 3, 2)).eval()


class Loop(nn.Module):
    """A cell that is called for every step, from zeros of the model's own."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        outputs = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


MODELS = {
    "GRU": (lambda: Tagger(nn.GRU(6, 7, batch_first=True)), 1, {"layer.h": (1, 7)}),
    "GRU, the end": (lambda: Tagger(nn.GRU(6, 7, batch_first=True), True), 1, {"layer.h": (1, 7)}),
    "LSTM of two layers": (
        lambda: Tagger(nn.LSTM(6, 7, 2)),
        1,
        {"layer.h": (2, 7), "layer.c": (2, 7)},
    ),
    "RNN": (lambda: Tagger(nn.RNN(6, 7)), 1, {"layer.h": (1, 7)}),
    "LSTMCell": (lambda: Loop(nn.LSTMCell(5, 4)), 1, {"cell.h": (4,), "cell.c": (4,)}),
    "GRUCell": (lambda: Loop(nn.GRUCell(5, 4)), 1, {"cell.h": (4,)}),
    "padding cut off": (lambda: tcn("chomp"), 2, {"0": (5, 4), "4": (6, 1)}),
    "pad before": (lambda: tcn("pad"), 2, {"1": (5, 4), "4": (6, 1)}),
    "class of its own": (lambda: tcn("class"), 2, {"0": (5, 4), "3": (6, 1)}),
}


def step_through(step, frames):
    state, outputs = None, []
    for frame in frames:
        y, state = step(frame, state)
        outputs.append(y)
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("hop", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_frame_by_frame_a_model_is_what_it_is_on_the_sequence(name, hop):
    torch.manual_seed(0)
    make, dim, parts = MODELS[name]
    model, x = make(), torch.randn(3, 12, 5)
    x = x if dim == 1 else x.transpose(1, 2)
    step = sg.step_by_step(model, x[:, :, :8] if dim == 2 else x[:, :8], hop=hop, dim=dim)
    assert step.parts == parts
    outputs = step_through(step, x.split(hop, dim))
    want = model(x)
    have = outputs[-1] if outputs[-1].shape == want.shape else torch.cat(outputs, dim)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_strides_take_hops_that_they_divide():
    torch.manual_seed(0)
    model, x = tcn("strided"), torch.randn(2, 5, 16)
    step = sg.step_by_step(model, x, hop=4, dim=2)
    have = torch.cat(step_through(step, x.split(4, 2)), 2)
    torch.testing.assert_close(have, model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        sg.UnsupportedOperation, match="'1' .*a hop that is a multiple of the strides"
    ):
        sg.step_by_step(model, x, hop=3, dim=2)


class Padded(nn.Module):
    """A convolution after ``left`` zeros, and ``cut`` of its outputs cut off."""

    def __init__(self, conv, left, cut):
        super().__init__()
        self.conv, self.left, self.cut = conv, left, cut

    def forward(self, x):
        y = self.conv(F.pad(x, (self.left, 0)))
        return y[..., : y.shape[-1] - self.cut]


@torch.no_grad()
@pytest.mark.parametrize("by_padding", [False, True])
@pytest.mark.parametrize("hop", [1, 2, 3, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (2, 3), (3, 2), (5, 1)])
def test_causal_convolutions_of_all_sizes(kernel, dilation, stride, hop, by_padding):
    """That of the newest hop is that of the sequence, or it is refused."""
    torch.manual_seed(0)
    reach = (kernel - 1) * dilation
    conv = nn.Conv1d(2, 3, kernel, stride, reach if by_padding else 0, dilation)
    model = Padded(conv, 0 if by_padding else reach, -(-reach // stride) if by_padding else 0)
    x = torch.randn(2, 2, 24)
    if hop % stride or not reach:
        with pytest.raises(sg.UnsupportedOperation):
            sg.step_by_step(model, x[..., :18], hop=hop, dim=2)
        return
    step = sg.step_by_step(model, x[..., :18], hop=hop, dim=2)
    have = torch.cat(step_through(step, x.split(hop, 2)), 2)
    torch.testing.assert_close(have, model(x), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was_and_its_weights_are_shared():
    model = Tagger(nn.GRU(6, 7, batch_first=True))
    step = sg.step_by_step(model, torch.randn(2, 5, 5))
    assert type(model.layer) is nn.GRU
    assert step.model.layer.layer.weight_hh_l0 is model.layer.weight_hh_l0


REFUSED = {
    "both directions": (
        lambda: Tagger(nn.GRU(6, 7, bidirectional=True, batch_first=True)),
        "'layer' .*reads the sequence in both directions",
    ),
    "symmetric": (lambda: tcn("symmetric"), "'0' .*looks 2 input.* ahead"),
    "no padding": (lambda: tcn("none"), "'0' .*Pad 4 zeros to the left"),
    "replicate": (lambda: tcn("replicate"), "padding_mode='replicate'"),
    "padded on the right": (lambda: tcn("later"), "not causal: its output at frame 0"),
    "norm over time": (lambda: tcn("norm"), "not causal"),
    "nothing kept": (lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU()), "treats all steps alike"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_causal_is_refused_by_name(name):
    make, said = REFUSED[name]
    model, x = make(), torch.randn(3, 9, 5)
    dim = 2 if isinstance(model, nn.Sequential) and name != "nothing kept" else 1
    with pytest.raises(sg.UnsupportedOperation, match=said):
        sg.step_by_step(model, x if dim == 1 else x.transpose(1, 2), dim=dim)


class Means(nn.Module):
    """A mean over the steps so far, which nothing here keeps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(5, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0].mean(1)


class Started(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(5, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x, torch.ones(1, len(x), 4))[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [(Means(), "depends on earlier frames"), (Started(), "'layer' .*a non-zero state")],
)
def test_other_memories_are_refused(model, said):
    with pytest.raises(sg.UnsupportedOperation, match=said):
        sg.step_by_step(model, torch.randn(3, 9, 5))


class Forgetful(Loop):
    """Clears its state in the ninth step."""

    def forward(self, x):
        begun = super().forward(x[:, :8])
        return torch.cat([begun, super().forward(x[:, 8:])], 1) if x.shape[1] > 8 else begun


class End(nn.Module):
    def forward(self, y):
        return y[:, -1]


class Over(nn.Module):
    """A layer over the dimension that it takes for time, as it is given."""

    def __init__(self, batch_first):
        super().__init__()
        self.layer = nn.GRU(5, 4, batch_first=batch_first)

    def forward(self, x):
        return self.layer(x)[0]


def test_all_frames_of_the_sample_are_compared():
    torch.manual_seed(0)
    model, x = Forgetful(nn.GRUCell(5, 4)), torch.randn(3, 12, 5)
    sg.step_by_step(model, x[:, :8])  # which does not show it
    with pytest.raises(sg.UnsupportedOperation, match="another output at frame 8 than"):
        sg.step_by_step(model, x)
    ends = nn.Sequential(model, End())
    with pytest.raises(sg.UnsupportedOperation, match="another output at frame 11 than"):
        sg.step_by_step(ends, x)


def test_a_layer_over_streams_is_told_from_one_over_time():
    sg.step_by_step(Over(True), torch.randn(3, 9, 5))
    with pytest.raises(sg.UnsupportedOperation, match="'layer' .*Build it with batch_first=True"):
        sg.step_by_step(Over(False), torch.randn(3, 9, 5))


@pytest.mark.parametrize(
    ("stride", "dim", "said"),
    [
        (
            2,
            2,
            "has 3 inputs in a frame and a stride of 2, .* hop that is a multiple of the strides",
        ),
        (1, 2, "makes 2 outputs fewer than its frames require, .* Pad 2 zeros to the left"),
        (1, 1, "for any number of frames: its time dimension is the last"),
    ],
)
def test_what_a_convolution_lacks_is_said(stride, dim, said):
    conv = nn.Conv1d(5, 4, 3, stride=stride)
    model = conv if dim == 2 else nn.Sequential(nn.Identity(), conv)
    if dim == 1:
        model[0].forward = lambda x: x[:, :5]
    with pytest.raises(sg.UnsupportedOperation, match=said):
        sg.step_by_step(model, torch.randn(3, 18, 18)[:, : 5 if dim == 2 else 18], hop=3, dim=dim)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dim": 0}, "not the first"),
        ({"hop": 0}, "hop is a number"),
        ({"hop": 4}, "at least 3 frames"),
    ],
)
def test_samples_that_are_no_sequences_are_refused(given, said):
    with pytest.raises(sg.InputError, match=said):
        sg.step_by_step(Tagger(nn.GRU(6, 7)), torch.randn(3, 9, 5), **given)


# -- what is carried -------------------------------------------------------------------------------


class Cell(nn.Module):
    """forward(x, h) -> {"y", "memory": (h,)}, x [B, 5]."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(5, 4), nn.Linear(4, 2)

    def forward(self, x, h):
        h = self.cell(x, h)
        return {"y": self.out(h), "memory": (h,)}


CARRIES = {"h": ("memory", 0)}


def clip_of(frames=24, streams=8):
    torch.manual_seed(1)
    walk = torch.randn(frames, streams, 5).cumsum(0)
    return walk / walk.abs().amax() * 3


def test_the_source_is_run_over_the_clip():
    torch.manual_seed(0)
    model, clip = Cell(), clip_of(6)
    found = unrolled(model, {"x": clip, "h": torch.zeros(8, 4)}, CARRIES)
    h = torch.zeros(8, 4)
    for frame in range(6):
        assert torch.equal(found["h"][frame], h)
        h = model(clip[frame], h)["memory"][0].detach()


def test_several_clips_are_run_one_by_one():
    model, zeros = Cell(), torch.zeros(8, 4)
    pairs = [({"x": clip_of(n), "h": zeros}, torch.zeros(n)) for n in (4, 6)]
    found = clips_with(model, iter(pairs), CARRIES)
    assert [len(clip["h"]) for clip in found] == [4, 6]
    assert torch.equal(found[1]["h"], unrolled(model, pairs[1][0], CARRIES)["h"])
    with pytest.raises(sg.CalibrationError, match="contain no clip"):
        clips_with(model, [], CARRIES)


def test_a_default_of_none_says_the_shape():
    step = sg.step_by_step(Tagger(nn.GRU(6, 7, batch_first=True)), torch.randn(2, 5, 5))
    found = unrolled(step, torch.randn(4, 2, 1, 5), step.carries)
    assert found["state"].shape == (4, 2, 7)
    assert not found["state"][0].any()
    assert found["state"][3].any()


class Ones(Cell):
    """Whose default is not zeros."""

    def forward(self, x, h=None):
        return super().forward(x, x.new_ones(len(x), 4) if h is None else h)


class Plain(Cell):
    """forward(x, h=None) -> y, h, (y,)."""

    def forward(self, x, h=None):
        h = self.cell(x, h)
        return self.out(h), h, (self.out(h),)


@pytest.mark.parametrize(
    ("model", "clip", "carries", "error", "said"),
    [
        (Cell(), clip_of(), {"state": 1}, sg.InputError, "names 'state', but forward of Cell"),
        (Cell(), clip_of(), CARRIES, sg.InputError, "does not run without"),
        (
            Cell(),
            {"x": clip_of(), "h": torch.zeros(8, 4)},
            {"h": "out"},
            sg.InputError,
            "no such output",
        ),
        (
            Cell(),
            {"x": clip_of(), "h": torch.ones(8, 4)},
            CARRIES,
            sg.InputError,
            "starts with zeros in 'h'",
        ),
        (Ones(), clip_of(), CARRIES, sg.InputError, "starts from non-zero values"),
        (Plain(), clip_of(), "h", sg.InputError, "a dict from the argument .* but it is 'h'"),
        (Plain(), clip_of(), ["h"], sg.InputError, "a dict from the argument"),
        (Plain(), clip_of(), {"x": 0, "h": 1}, sg.InputError, "none is left for the clip"),
        (Plain(), clip_of(), {"h": None}, sg.InputError, "'h': None, which is not a position"),
        (Plain(), clip_of(), {"h": ()}, sg.InputError, "which is not a position"),
        (Plain(), clip_of(), {"h": (1, 0)}, sg.InputError, r"fails on a frame .*'h': \[4\]"),
        (Plain(), clip_of(), {"h": 0}, sg.InputError, r"'h': \[8, 2\].*that is its next value"),
        (Plain(), clip_of(), {"h": 2}, sg.InputError, "'h': 2, but that output is not a tensor"),
        (
            Plain(),
            {"x": clip_of(), "h": torch.zeros(8, 4)},
            {"h": 0},
            sg.InputError,
            r"that output is \[8, 2\], and 'h' is \[8, 4\]",
        ),
        (
            Plain(),
            {"x": clip_of(), "h": torch.zeros(2, 4)},
            {"h": 1},
            sg.InputError,
            r"zeros \[N, ...\] of 8 streams, but it is \[2, 4\]",
        ),
        (
            Plain(),
            {"x": clip_of(), "q": clip_of()},
            {"h": 1},
            sg.CalibrationError,
            "takes x, h, but the calibration has 'q'",
        ),
        (
            Plain(),
            {"h": torch.zeros(8, 4), "y": clip_of()},
            {"h": 1},
            sg.CalibrationError,
            "the calibration has 'y'",
        ),
        (Cell(), torch.zeros(3), CARRIES, sg.CalibrationError, "is a clip"),
        (
            Cell(),
            {"x": torch.zeros(0, 8, 5), "h": torch.zeros(8, 4)},
            CARRIES,
            sg.CalibrationError,
            "at least 1",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(model, clip, carries, error, said):
    with pytest.raises(error, match=said):
        sg.convert(model, clip, carries=carries)


def test_paths_lead_into_structures():
    structure = {"y": 1, "memory": (2, {"c": 3})}
    assert at(structure, ("memory", 1, "c"), "c") == 3
    assert at((1, 2), 1, "h") == 2


# -- networks that feed themselves -----------------------------------------------------------------


def of_streams(frames, dim):
    """Frames of one step [F, B, 1, 5] as sequences, [B, F, 5] or [B, 5, F]."""
    return frames.movedim(0, 1).squeeze(2) if dim == 1 else frames.permute(1, 3, 0, 2).squeeze(3)


NETWORKS = {
    "GRU": (lambda: Tagger(nn.GRU(6, 7, batch_first=True)), 1),
    "LSTM": (lambda: Tagger(nn.LSTM(6, 7)), 1),
    "TCN": (lambda: tcn("class"), 2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_spiking_network_that_feeds_itself_follows_the_source(name):
    torch.manual_seed(0)
    make, dim = NETWORKS[name]
    model, clip = make().eval(), clip_of(frames=30).unsqueeze(2)
    clip = clip if dim == 1 else clip.transpose(2, 3)
    sequence = of_streams(clip if dim == 1 else clip.transpose(2, 3), dim)
    step = sg.step_by_step(model, sequence[:2, :6] if dim == 1 else sequence[:2, :, :6], dim=dim)
    network = sg.convert(step, clip, carries=step.carries)
    assert set(network.carries) == {"state"}
    assert network["state"].shape == network[network.carries["state"]].shape

    want = model(sequence).movedim(dim, 0).unsqueeze(1 + dim)
    have = sg.run(sg.build(network), clip, sequence=True, keep_state=True)[1][0]
    error = (have - want).flatten(1).norm(dim=1) / want.norm() * len(want) ** 0.5
    assert error.max() < 0.03
    assert error[-10:].mean() < 2 * error[5:15].mean()  # what is fed back does not add up
    assert 0 < error.max()  # it is a spiking network


@torch.no_grad()
def test_a_plan_for_streams_carries_too():
    torch.manual_seed(0)
    model, clip = Cell(), clip_of(24)
    given = {"x": clip, "h": torch.zeros(8, 4)}
    network = sg.convert(model, given, carries=CARRIES, stream=True, objective=1e-4)
    assert network.stream
    assert list(network.carries) == ["h"]
    assert not [n for n in network.neurons if "h" in n.inputs]
    have = sg.run(sg.build(network), clip, sequence=True, keep_state=True)[1]["y"]
    want, h = [], torch.zeros(8, 4)
    for frame in clip:
        returned = model(frame, h)
        want.append(returned["y"])
        (h,) = returned["memory"]
    want = torch.stack(want)
    assert (have - want).norm() / want.norm() < 0.03
    with pytest.raises(sg.InputError, match="not on moving stills"):
        sg.convert(model, given, carries=CARRIES, stream=sg.Motion())


@torch.no_grad()
def test_both_simulators_carry_alike_and_a_reset_forgets():
    torch.manual_seed(0)
    model, clip = Cell(), clip_of(10)
    given = {"x": clip, "h": torch.zeros(8, 4)}
    network = sg.convert(model, given, carries=CARRIES)
    runs = []
    for simulator in ("spikingjelly", "norse"):
        snn = sg.build(network, simulator)
        first = sg.run(snn, clip, sequence=True, keep_state=True)[1]
        again = sg.run(snn, clip, sequence=True, keep_state=True)[1]
        snn.reset()
        anew = sg.run(snn, clip, sequence=True, keep_state=True)[1]
        assert torch.equal(first["y"], anew["y"])
        assert not torch.equal(first["y"][0], again["y"][0])  # it remembers the first pass
        runs.append(first["y"])
    assert torch.equal(*runs)
    assert torch.equal(first["memory"][0][-1], first["memory"][0][9])


class Two(nn.Module):
    """forward(x, u, h) -> (y, h)."""

    def __init__(self):
        super().__init__()
        self.into, self.keep, self.out = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, u, h):
        h = torch.tanh(self.into(x) + self.into(u) + self.keep(h))
        return self.out(h), h


def test_an_input_that_is_missing_is_told_without_those_that_are_fed(tmp_path):
    torch.manual_seed(0)
    x = clip_of(6)
    given = {"x": x, "u": x, "h": torch.zeros(8, 4)}
    with pytest.raises(sg.CalibrationError, match="the calibration lacks 'u'"):
        sg.convert(Two().eval(), {"x": x, "h": given["h"]}, carries={"h": 1})
    network = sg.convert(Two().eval(), given, carries={"h": 1}, tune=False)
    snn, stream = sg.build(network), {"sequence": True, "keep_state": True}
    with pytest.raises(sg.InputError, match=r"takes {'x': ..., 'u': ...}, but the dict holds x;"):
        sg.run(snn, {"x": x}, **stream)
    with pytest.raises(sg.InputError, match=r"has 2 inputs, .* pass a dict, {'x': ..., 'u': ...}"):
        sg.run(snn, x[0])
    frame = {"x": x[0], "u": x[0]}
    for call in (sg.run, lambda snn, x: snn(x), count_operations):
        with pytest.raises(sg.InputError, match="feeds 'h' back to itself .* keep_state=True"):
            call(snn, frame)
    sg.save(network, tmp_path / "n.h5")
    runner = Runner(tmp_path / "n.h5")
    with pytest.raises(sg.InputError, match="keep_state=True it feeds the rest itself"):
        runner.run({name: value.numpy() for name, value in frame.items()})
    with pytest.raises(sg.InputError, match="takes x, u, but x holds x; pass a dict of these.$"):
        runner.run({"x": x.numpy()}, **stream)
    sg.run(snn, {"x": x, "u": x}, **stream)


@pytest.mark.parametrize("coding", ["exact", "spike"])
def test_what_is_carried_is_not_coded_again(coding):
    """Its spikes are those of the neurons it comes from, a frame later."""
    given = {"x": clip_of(), "h": torch.zeros(8, 4)}
    network = sg.convert(
        Cell(), given, carries=CARRIES, input_coding=coding, time_steps=1, members=8
    )
    readers = {name for node in network.nodes for name in node.inputs}
    coded = [node.name for node in network.neurons if {"x", "h"} & set(node.inputs)]
    assert "h" in readers
    assert len(coded) == (coding == "spike")


# -- voice detection -------------------------------------------------------------------------------


@torch.no_grad()
def test_voice_detection_frame_after_frame():
    """With the package's weights where it is installed, else with random ones."""
    import voice

    spec = importlib.util.find_spec("silero_vad")
    torch.manual_seed(0)
    model = voice.load_model(voice.folder_of(None)) if spec else voice.Detector().eval()
    frames = voice.frames_of(voice.voices(4, 1.5))
    want = voice.source(model, frames)
    if spec:
        own = voice.theirs(voice.published(voice.folder_of(None)), voice.voices(4, 1.5))
        torch.testing.assert_close(want[: len(own)], own, atol=1e-5, rtol=1e-5)
        assert (want > voice.VOICE).float().mean() > 0.2  # somebody speaks
    calibration = voice.frames_of(voice.voices(4, 1.5, seed=1))
    snn = sg.build(voice.converted(model, calibration))
    have = sg.run(snn, frames, sequence=True, keep_state=True)[1][0]
    assert (have - want).norm() / want.norm() < 0.05
    assert ((have > voice.VOICE) == (want > voice.VOICE)).float().mean() > 0.97
