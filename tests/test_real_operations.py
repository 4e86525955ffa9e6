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
        x[:, None], x[:, None], x[:, None], by_index(x)
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


# -- norms -----------------------------------------------------------------------------------------


def grn(x):
    """Global response normalisation of ConvNeXt V2, of [B, H, W, C]."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return x + 0.7 * x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))


def cosine(x):
    """Attention of Swin V2: the scores are cosines."""
    q, k = (F.normalize(part, dim=-1) for part in x.chunk(2, -1))
    return (14.3 * q @ k.mT).softmax(-1) @ x


NORMS = {
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "vector norm of all": lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3)),
    "norm": lambda x: torch.norm(x, dim=1, keepdim=True),
    "order 1": lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
    "order inf": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=(1, 2)),
    "order 3": lambda x: torch.linalg.vector_norm(x, 3.0, dim=-1),
    "normalize": lambda x: F.normalize(x),
    "normalize, order 1": lambda x: F.normalize(x, p=1.0, dim=-1),
    "over its norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "over another's norm": lambda x: x / x.flip(-1).norm(dim=1, keepdim=True),
    "half by norm": lambda x: x / (x.norm(dim=-1) + 1).unsqueeze(-1),
    "GRN": grn,
    "cosine attention": cosine,
}
WHOLE = {
    "vector norm": ["vector_norm"],
    "normalize": ["normalize"],
    "over its norm": ["normalize"],
    "over another's norm": ["vector_norm", "div"],
    "cosine attention": ["normalize", "normalize", "attention"],
    "GRN": ["vector_norm", "div", "mul"],
}


@pytest.mark.parametrize("forms", ["whole", "local"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, forms):
    torch.manual_seed(0)
    network = network_of(Functional(NORMS[name], 4), torch.randn(3, 2, 3, 4), forms=forms)
    if name in WHOLE:
        parts = {"normalize", "vector_norm", "attention"} & set(functions(network))
        assert functions(network)[1:] == WHOLE[name] if forms == "whole" else not parts


@pytest.mark.spikingjelly
def test_norms_run_and_are_saved(tmp_path):
    class All(nn.Module):
        def forward(self, x):
            return {name: torch.tanh(NORMS[name](x)) for name in WHOLE}

    torch.manual_seed(0)
    x, path = torch.randn(24, 2, 3, 4), tmp_path / "network.h5"
    network = sg.convert(All(), x, members=8, time_steps=2, tune=False, scale="channel")
    outputs = sg.run(sg.build(network), x, 2)[2]
    for name, out in outputs.items():
        assert (out - torch.tanh(NORMS[name](x))).abs().mean() < 0.05, name
    sg.save(network, path)
    assert sg.verify(path, x[:4], network=network, time_steps=2).ok


# -- resampling, windows, products -----------------------------------------------------------------


def interpolated(mode, antialias=False, align_corners=None):
    return lambda x: F.interpolate(
        x, size=(5, 9), mode=mode, antialias=antialias, align_corners=align_corners
    )


def outlook(x):
    """Outlook attention of VOLO: windows weighted, and added up where they overlap."""
    windows = F.unfold(x, 3, padding=1, stride=2).unflatten(1, (x.shape[1], 9))
    weighted = windows * windows.softmax(2)
    return F.fold(weighted.flatten(1, 2), x.shape[2:], 3, padding=1, stride=2)


def queries_of_windows(x):
    """One query of an image to each of its windows, as GCViT has it."""
    windows = x.unflatten(3, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    query = x.mean(3, keepdim=True)
    return windows * query.repeat_interleave(windows.shape[0] // query.shape[0], dim=0)


def relative(x):
    """Scores by relative position as DeBERTa gathers them: heads lie with the samples."""
    scores = x.flatten(0, 1) @ torch.linspace(-1, 1, 54).view(6, 9)
    places = torch.arange(4)[:, None] - torch.arange(4) + 4
    return scores.gather(-1, places.expand(scores.shape[0], 4, 4)).view(-1, 4, 4, 4)


class CondConv(nn.Module):
    """Kernels mixed by each sample's own weights: samples are groups of one convolution."""

    def __init__(self, groups, kernel, bias=True, **options):
        super().__init__()
        self.groups, self.options, self.out = groups, options, 8
        self.weight = nn.Parameter(torch.randn(3, 8 * (4 // groups) * kernel**2))
        self.bias = nn.Parameter(torch.randn(3, 8)) if bias else None
        self.routing, self.kernel = nn.Linear(4, 3), kernel

    def forward(self, x):
        mix = self.routing(x.mean((2, 3))).sigmoid()
        batch, channels, height, width = x.shape
        weight = (mix @ self.weight).view(-1, channels // self.groups, self.kernel, self.kernel)
        bias = None if self.bias is None else (mix @ self.bias).flatten()
        x = x.reshape(1, batch * channels, height, width)
        out = F.conv2d(x, weight, bias, groups=batch * self.groups, **self.options)
        return out.view(batch, self.out, *out.shape[2:])


RESAMPLED = {
    "bicubic": interpolated("bicubic"),
    "bicubic, corners aligned": interpolated("bicubic", align_corners=True),
    "bicubic, antialiased": interpolated("bicubic", antialias=True),
    "bilinear, antialiased": interpolated("bilinear", antialias=True),
    "nearest-exact": interpolated("nearest-exact"),
    "nearest-exact, 1d": lambda x: F.interpolate(x.flatten(2), size=35, mode="nearest-exact"),
    "nearest-exact, 3d": lambda x: F.interpolate(x[:, None], size=(3, 9, 2), mode="nearest-exact"),
    "by a factor": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic"),
    "cumsum": lambda x: x.cumsum(1) + x.cumsum(-1) + x.cumsum(2),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :6], (3, 4), 2),
    "fold, all options": lambda x: F.fold(
        x.flatten(2)[:, :, :9], (8, 9), 2, dilation=2, padding=1, stride=3
    ),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "roll": lambda x: x.roll((1, -1), (1, 2)),
}


@pytest.mark.parametrize("name", RESAMPLED)
def test_what_is_linear_along_each_dimension(name):
    torch.manual_seed(0)
    network = network_of(Functional(RESAMPLED[name], 6), torch.randn(3, 4, 4, 6))
    assert functions(network) == ["tanh"]
    assert ("matmul" in operations(network)) == (
        "linear" in name or "cubic" in name or name in ("cumsum", "by a factor")
    )


COMPUTED = {
    "outlook attention": Functional(outlook, 6),
    "queries of windows": Functional(queries_of_windows, 6),
    "relative positions": Functional(relative, 6),
    "CondConv": CondConv(1, 3, padding=1),
    "CondConv, strided": CondConv(2, 3, padding=(1, 2), stride=2, dilation=(1, 2)),
    "CondConv, depthwise": CondConv(4, 2, bias=False),
    "CondConv of one pixel": CondConv(1, 1),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_windows_with_weights_of_their_own(name):
    torch.manual_seed(0)
    network_of(COMPUTED[name], torch.randn(3, 4, 4, 6))


def test_a_convolution_by_one_computed_weight_is_refused_with_the_fix():
    def mixed(x):
        return F.conv2d(x, x.mean(0, keepdim=True)[:, :, :2, :2])

    with pytest.raises(sg.UnsupportedOperation, match="CondConv, where each sample is a group"):
        source_network(Functional(mixed, 6), torch.randn(2, 4, 4, 6), Settings())


# -- attention -------------------------------------------------------------------------------------

CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False, False, False, True, True]])


class Attends(nn.Module):
    """nn.MultiheadAttention of 5 tokens with themselves, or of a probe with them."""

    def __init__(self, call, mask=None, padding=None, probe=False, **options):
        super().__init__()
        self.call, self.mask, self.padding = call, mask, padding
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.probe = nn.Parameter(torch.randn(1, 3, 8)) if probe else None

    def forward(self, x):
        given = dict(self.call)
        if self.mask is not None:
            given["attn_mask"] = self.mask
        if self.padding is not None:
            given["key_padding_mask"] = self.padding.expand(x.shape[0], -1)
        q = x if self.probe is None else self.probe.repeat(x.shape[0], 1, 1)
        if not self.attention.batch_first:
            x, q = x.transpose(0, 1), q.transpose(0, 1)
        k, v = x[..., : self.attention.kdim], x[..., : self.attention.vdim]
        out, weights = self.attention(q, k, v, **given)
        return out if weights is None else (out, weights)


FORMS = {
    "as it is": {},
    "batch first": {"batch_first": True},
    "bias of keys and values": {"add_bias_kv": True},
    "a zero more": {"add_zero_attn": True},
    "keys of another size": {"kdim": 4, "vdim": 6, "batch_first": True},
    "without bias": {"bias": False},
    "causal": {"mask": CAUSAL},
    "causal, added": {"mask": torch.zeros(5, 5).masked_fill(CAUSAL, float("-inf"))},
    "padded": {"padding": PADDED},
    "padded and causal": {"padding": PADDED, "mask": CAUSAL, "batch_first": True},
    "probe": {"probe": True, "batch_first": True},
    "probe, padded": {"probe": True, "padding": PADDED},
    "bias, padded": {"add_bias_kv": True, "padding": PADDED},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_multi_head_attention_in_every_form(name, weights):
    torch.manual_seed(0)
    model = Attends({"need_weights": weights}, **FORMS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = network_of(model, torch.randn(3, 5, 8))
    assert ("softmax" in functions(network)) == weights


# -- capture ---------------------------------------------------------------------------------------


class Hooked(nn.Module):
    """As transformers collects hidden states: by hooks that the first forward pass registers."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), []

    def forward(self, x):
        if not hasattr(self, "installed"):
            self.layer.register_forward_hook(lambda module, args, out: self.seen.append(out))
            self.installed = True
        self.seen.clear()
        self.layer(x)
        return torch.cat(self.seen, -1)


def test_hooks_that_a_forward_pass_registers_are_registered_once():
    network_of(Hooked(), torch.randn(3, 4))


# -- recurrent layers ------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A layer's whole sequence and last state, or a cell called at every step."""

    def __init__(self, layer, turned=False):
        super().__init__()
        self.layer, self.turned = layer, turned

    def forward(self, x):
        if isinstance(self.layer, nn.RNNBase):
            out, state = self.layer(x.transpose(0, 1) if self.turned else x)
            state = state if isinstance(state, tuple) else (state,)
            return out, *state
        state = None
        for step in x.unbind(1):
            state = self.layer(step, state)
        return state


LAYERS = {
    "LSTM": lambda: nn.LSTM(4, 3, batch_first=True),
    "LSTM of two layers, both ways": lambda: nn.LSTM(
        4, 3, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5
    ),
    "LSTM, projected": lambda: nn.LSTM(4, 6, proj_size=3, batch_first=True),
    "LSTM, sequence first": lambda: nn.LSTM(4, 3),
    "GRU both ways": lambda: nn.GRU(4, 3, bidirectional=True, batch_first=True),
    "GRU without bias": lambda: nn.GRU(4, 3, bias=False, batch_first=True),
    "RNN": lambda: nn.RNN(4, 3, batch_first=True),
    "RNN of ReLU": lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True),
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "GRUCell": lambda: nn.GRUCell(4, 3),
    "RNNCell": lambda: nn.RNNCell(4, 3),
    "RNNCell of ReLU, without bias": lambda: nn.RNNCell(4, 3, bias=False, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_are_unrolled(name):
    torch.manual_seed(0)
    model = Recurrent(LAYERS[name](), turned="first" in name)
    network = network_of(model, torch.randn(3, 5, 4))
    assert set(functions(network)) <= {"sigmoid", "tanh", "relu", "mul"}


def test_a_size_that_equals_the_batch_of_the_sample_is_not_taken_for_it():
    """torch.export's decompositions fix a batch of 2: 2 samples of 2 heads are as many as 4."""
    model = Attends({"need_weights": False}, **FORMS["keys of another size"])
    network = network_of(model, torch.randn(3, 5, 8))
    assert str(network[network.outputs].shape[0]).endswith("batch")


class Detector(nn.Module):
    """As torchvision's: features in a dict, a head, and what depends on the scores."""

    class Backbone(nn.Conv2d):
        def forward(self, x):
            return {"0": super().forward(x).relu()}

    class Head(nn.Conv2d):
        def forward(self, features):
            return [super(Detector.Head, self).forward(x) for x in features]

    def __init__(self, head="head"):
        super().__init__()
        self.backbone = self.Backbone(3, 8, 3)
        self.rpn = nn.ModuleDict({"head": self.Head(8, 5, 1)})
        if head == "head":
            self.head = self.rpn["head"]

    def forward(self, x):
        (scores,) = self.rpn["head"](list(self.backbone(x).values()))
        kept = scores[scores[:, :1].expand_as(scores) > 0]
        return kept if len(kept) > 4 else kept[:0]


@pytest.mark.parametrize("head", ["head", "rpn.head"])
def test_a_detector_says_what_of_it_to_convert(head):
    with pytest.raises(sg.CaptureError, match="post-processing") as error:
        sg.check(Detector(head), torch.randn(2, 3, 8, 8))
    assert f"model.{head}(list(model.backbone(x).values()))" in str(error.value)
