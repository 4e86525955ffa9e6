"""Operations that only move values are found by trying them, and nothing else is taken for one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters.capture import capture
from spikingjelly_signgd.converters.lowering import Lowering, Options, graph
from spikingjelly_signgd.core.network import Linear
from spikingjelly_signgd.core.operations import moves
from spikingjelly_signgd.exporters.hdf5 import Runner

pytestmark = pytest.mark.spikingjelly

FIXED = torch.tensor([[0, 3], [2, 1]])


class On(nn.Module):
    """``f`` between two layers of neurons, [B, 8, 4, 4]."""

    def __init__(self, f):
        super().__init__()
        self.f, self.conv = f, nn.Conv2d(2, 8, 3, padding=1)
        self.register_buffer("index", FIXED)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return torch.relu(self.f(x)).flatten(1)


def written(x):
    y = x.clone()
    y[:, :, 1] = 3 * x[:, :, 0]
    y[:, 0] = 0.25
    return y


MOVES = {
    "Tensor.unfold": lambda x: x.unfold(2, 3, 1),
    "F.unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
    "F.fold": lambda x: F.fold(x.flatten(2)[:, :, :4], (4, 4), 2, stride=2),
    "slice_scatter": lambda x: torch.slice_scatter(x, 2 * x[:, :, :1], 2, 1, 2),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, 0], 1, 2),
    "diagonal_scatter": lambda x: torch.diagonal_scatter(x, x[:, :, 0], 0, 2, 3),
    "written": written,
    "as_strided": lambda x: x.as_strided((x.shape[0], 2, 3), (128, 3, 7), 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "gather": lambda x: x.gather(3, torch.ones(x.shape[0], 8, 2, 2, dtype=torch.long)),
    "diagonal": lambda x: x.diagonal(1, 2, 3),
    "diag_embed": lambda x: torch.diag_embed(x, 1),
    "tile": lambda x: x.tile(1, 2, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "tril": lambda x: x.tril(-1),
    "two indices": lambda x: x[:, FIXED, FIXED],
    "samples not first": lambda x: x.transpose(0, 1).unfold(2, 2, 2).transpose(0, 1),
    "hstack": lambda x: torch.hstack([x, 2 * x, x]),
    "flipped": lambda x: x.fliplr(),
}
SPATIAL = pytest.mark.parametrize("f", MOVES.values(), ids=MOVES)


@SPATIAL
def test_what_only_moves_values_converts_without_a_handler(f, tmp_path):
    torch.manual_seed(0)
    model, x = On(f), torch.randn(6, 2, 4, 4)
    network = sg.convert(model, x, tune=False, time_steps=8)
    added = [node for node in network.of(Linear) if node.op not in ("conv", "affine")]
    assert all(moves(node.op, node.attributes) for node in added)
    snn = sg.build(network)
    snn.mode = "ann"
    for batch in (6, 1, 4):
        torch.testing.assert_close(snn(x[:batch]), model(x[:batch]), rtol=0, atol=1e-6)
    snn.mode = "snn"
    path = tmp_path / "network.h5"
    sg.save(network, path)
    want = sg.run(snn, x, 8)[8]
    assert torch.equal(sg.run(sg.build(sg.load(path)), x, 8)[8], want)
    have = Runner(path, dtype="float32").run(x.numpy(), 8).outputs[8]
    assert (np.abs(have - want.numpy()) < 1e-4).mean() > 0.99


CHANNELS = {
    "Tensor.unfold": -4, "F.unfold": -2, "slice_scatter": -3, "pixel_shuffle": None,
    "pixel_unshuffle": -3, "channel_shuffle": -3, "repeat_interleave": -3, "diagonal": -2,
    "tril": -3, "tile": -3, "flipped": -3,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_found_where_they_went(name):
    """Each channel after it is one of those before it; where none is, the layer has one scale."""
    network = sg.convert(On(MOVES[name]), torch.randn(6, 2, 4, 4), tune=False, scale="channel")
    after = network.neurons[-1]
    assert after.channel == CHANNELS[name]
    if after.channel is not None:
        scale = torch.as_tensor(after.scale)
        assert scale.shape[after.channel] == after.shape[after.channel]


def alone(f, x, monkeypatch):
    """What an operation becomes where no handler and no rule is known."""

    class Alone(nn.Module):
        def forward(self, x):
            return f(x)

    monkeypatch.setattr(graph, "HANDLERS", {})
    return {row.becomes for row in Lowering(capture(Alone(), x), {}, Options()).coverage}


NO_MOVES = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(max=3e38),
    "clamp_min": lambda x: x.clamp(min=-3e38),
    "hardshrink": lambda x: F.hardshrink(x, 1e-30),
    "softshrink": lambda x: F.softshrink(x, 1e-30),
    "threshold": lambda x: F.threshold(x, -1e30, 0.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.999),
    "abs": torch.abs,
    "neg": torch.neg,
    "round": torch.round,
    "floor": torch.floor,
    "frac": torch.frac,
    "fmod": lambda x: x.fmod(3e38),
    "nan_to_num": lambda x: x.nan_to_num(),
    "sign": torch.sign,
    "heaviside": lambda x: torch.heaviside(x, torch.zeros(())),
    "times": lambda x: x * (1 + 1e-15),
    "plus": lambda x: x + 1e-30,
    "cumsum": lambda x: x.cumsum(1),
    "cummax": lambda x: x.cummax(1)[0],
    "sort": lambda x: x.sort(1)[0],
    "sort over samples": lambda x: x.sort(0)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "median": lambda x: x[:, :3].median(1)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "amin": lambda x: x.amin(1),
    "max_pool": lambda x: F.max_pool1d(x, 2),
    "avg_pool": lambda x: F.avg_pool1d(x, 2),
    "overlapping fold": lambda x: F.fold(x[:, :4].reshape(-1, 4, 6), (3, 4), 2),
    "mean": lambda x: x.mean(1),
    "softmax": lambda x: x.softmax(1),
    "flip of samples": lambda x: x.flip(0),
    "roll of samples": lambda x: x.roll(1, 0),
    "roll of all": lambda x: x.roll(1),
    "samples folded": lambda x: x.reshape(-1, 3),
    "random": lambda x: F.dropout(x, 0.5, True),
    "uninitialised": torch.empty_like,
    "constant": torch.zeros_like,
}


@pytest.mark.parametrize("f", NO_MOVES.values(), ids=NO_MOVES)
def test_what_computes_or_chooses_is_no_move(f, monkeypatch):
    assert "unsupported" in alone(f, torch.randn(4, 4, 6), monkeypatch)


@pytest.mark.parametrize("f", MOVES.values(), ids=MOVES)
def test_one_operation_more_is_no_move(f, monkeypatch):
    assert "unsupported" in alone(lambda x: torch.relu(f(x)), torch.randn(4, 8, 4, 4), monkeypatch)


def test_a_map_too_large_for_an_index_is_refused():
    class Large(nn.Module):
        def forward(self, x):
            return F.unfold(x, 32)

    with pytest.raises(sg.UnsupportedOperation, match="im2col"):
        sg.convert(Large(), torch.zeros(2, 1, 128, 128))
