"""Operations as real models write them: the captured network computes what the model does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters.conversion import source_network
from spikingjelly_signgd.converters.settings import Settings
from spikingjelly_signgd.core.module import NetworkModule
from spikingjelly_signgd.core.network import Function, Linear, leaves


class Functional(nn.Module):
    """A function between two linear layers' worth of values: what it is called with is no input."""

    def __init__(self, function, width):
        super().__init__()
        self.function, self.first = function, nn.Linear(width, width)

    def forward(self, x):
        return self.function(torch.tanh(self.first(x)))


def network_of(model, x, **options):
    """The source network, which computes what the model does in batches of 1, 2 and 3."""
    model.eval()
    network = source_network(model, x[:2], Settings(**options))
    for batch in (1, 2, 3):
        with torch.no_grad():
            want = model(x[:batch])
        have = NetworkModule(network, {}).ann(x[:batch])
        for a, b in zip(leaves(have), leaves(want), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    return network


def functions(network):
    return [node.function.name for node in network.of(Function)]


def operations(network):
    return [node.op for node in network.of(Linear)]


# -- what is computed from sizes alone -------------------------------------------------------------


def by_index(x):
    """As transformers makes masks: by the numbers of samples, heads, queries and keys."""
    batch, length = x.shape[0], x.shape[1]
    b = torch.arange(batch)[:, None, None, None]
    q, k = torch.arange(length)[:, None], torch.arange(length)
    padding = torch.ones(batch, length, dtype=torch.bool)
    window = (q - k < 3).logical_or(k.eq(0))
    mask = (k <= q) & window & padding[b, k]
    return mask.expand(batch, 1, length, length)


def positions(x):
    mask = torch.ones(x.shape[:2], dtype=torch.long)
    return (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)


TABLE = torch.randn(9, 4, generator=torch.Generator().manual_seed(5))
SIZES = {
    "attention": lambda x: F.scaled_dot_product_attention(
        *[x.unflatten(2, (2, 2)).transpose(1, 2)] * 3, by_index(x)
    ),
    "softmax": lambda x: (x @ x.mT).masked_fill(~by_index(x)[:, 0], float("-inf")).softmax(-1) @ x,
    "added": lambda x: ((x @ x.mT) + torch.where(by_index(x)[:, 0], 0.0, -1e4)).softmax(-1) @ x,
    "positions": lambda x: x + F.embedding(positions(x), TABLE),
    "rotary": lambda x: x * torch.einsum("bl,d->bld", positions(x).float(), TABLE[0]).cos(),
    "triu": lambda x: x * torch.full((x.shape[0], 5, 4), 2.0).triu(-1),
    "sizes of the input": lambda x: x * torch.full_like(x, 2.0).cumsum(1),
    "probe": lambda x: F.linear(TABLE[None, :5].expand(x.shape[0], -1, -1), TABLE[:4]) + x,
    "view": lambda x: (
        x + TABLE[:5].T[None].expand(x.shape[0], -1, -1).transpose(1, 2).view(-1, 5, 4)
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_depends_on_no_value_is_folded(name):
    torch.manual_seed(0)
    network = network_of(Functional(SIZES[name], 4), torch.randn(3, 5, 4))
    assert set(functions(network)) <= {"tanh", "matmul", "softmax", "attention"}


DIFFERENT = {
    "the number of the sample": lambda x: x + torch.arange(x.shape[0])[:, None, None],
    "a mean over the batch": lambda x: x / x.shape[0],
    "the first two samples": lambda x: x * (torch.arange(x.shape[0]) < 2)[:, None, None],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_from_sample_to_sample_is_refused(name):
    with pytest.raises(sg.UnsupportedOperation, match="batch.*outside the model"):
        source_network(Functional(DIFFERENT[name], 4), torch.randn(2, 5, 4), Settings())
