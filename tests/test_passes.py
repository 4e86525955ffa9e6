"""Batch norm is folded where the weights can hold it, and only there."""

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import Linear

pytestmark = pytest.mark.spikingjelly


def trained_batch_norm(channels, kind=nn.BatchNorm2d):
    norm = kind(channels)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-1, 1)
    return norm


class TwoReaders(nn.Module):
    """The convolution's output is read twice: its weights must stay as they are."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), trained_batch_norm(4)

    def forward(self, x):
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


class NormIsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), trained_batch_norm(4)

    def forward(self, x):
        return self.norm(self.conv(x))


CASES = {
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), trained_batch_norm(4), nn.ReLU()),
        0,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), trained_batch_norm(8)
        ),
        0,
    ),
    "linear": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 5), trained_batch_norm(5, nn.BatchNorm1d), nn.ReLU()
        ),
        0,
    ),
    "conv read twice": (TwoReaders, 1),
    "norm is the output": (NormIsOutput, 0),
    "before the convolution": (
        lambda: nn.Sequential(trained_batch_norm(1), nn.Conv2d(1, 4, 3), nn.ReLU()),
        1,
    ),
    "after ReLU": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), trained_batch_norm(4)),
        1,
    ),
    "after a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 4, 3), trained_batch_norm(4), nn.ReLU()),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_batch_norm(name):
    build, left = CASES[name]
    model, x = build().eval(), torch.randn(6, 1, 8, 8)
    network = sg.convert(model, x)
    affine = [n for n in network.nodes if isinstance(n, Linear) and n.op == "affine"]
    assert len(affine) == left
    snn = sg.build(network)
    torch.testing.assert_close(snn.ann(x), model(x), rtol=1e-5, atol=1e-5)
