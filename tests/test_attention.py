"""Attention, softmax, norms and products: one neuron for an output, or their decompositions."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import compare_functions
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.exporters.hdf5.runner_functions import FUNCTIONS
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import digits  # noqa: E402
from networks import load_network, make_network  # noqa: E402

FORMS = ("whole", "local")
L, E, H = 6, 8, 2


# -- the rows -------------------------------------------------------------------------------------

KEEP = torch.ones(5, 7).tril()
EMPTY = torch.cat([KEEP[:4], torch.zeros(1, 7)])
ROWS = {
    "exp below a ceiling": ("exp", [(4, 5)], {"ceiling": 0.25}),
    "log above a floor": ("log", [(4, 5)], {"floor": 0.5}),
    "softmax": ("softmax", [(3, 5, 7)], {"dim": -1}),
    "softmax of rows": ("softmax", [(3, 5, 7)], {"dim": -2}),
    "softmax, masked": ("softmax", [(3, 5, 7)], {"dim": -1, "keep": KEEP}),
    "softmax, a row without any": ("softmax", [(3, 5, 7)], {"dim": -1, "keep": EMPTY}),
    "log_softmax": ("log_softmax", [(3, 5, 7)], {"dim": -1}),
    "layer_norm": ("layer_norm", [(3, 5, 7)], {"dims": 2, "eps": 1e-5}),
    "rms_norm": ("rms_norm", [(3, 5, 7)], {"dims": 1, "eps": 1e-6}),
    "vector_norm": ("vector_norm", [(3, 5, 7)], {"dim": (-2, -1), "keepdim": True}),
    "normalize": ("normalize", [(3, 5, 7)], {"dim": (-2,), "eps": 1e-12}),
    "matmul": ("matmul", [(3, 5, 4), (3, 4, 7)], {}),
    "matmul, broadcast": ("matmul", [(1, 2, 5, 4), (3, 1, 4, 7)], {}),
    "attention": ("attention", [(3, 5, 4), (3, 4, 7), (3, 7, 6)], {"scale": 0.5}),
    "attention, masked": (
        "attention",
        [(3, 5, 4), (3, 4, 7), (3, 7, 6)],
        {"scale": 0.5, "bias": torch.linspace(-1, 1, 35).reshape(5, 7), "keep": EMPTY},
    ),
}


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("case", ROWS)
def test_rows_are_the_same_in_numpy(case, size):
    name, shapes, given = ROWS[case]
    x = [torch.randn(shape, dtype=torch.float64) * size for shape in shapes]
    given = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in given.items()}
    expected = NONLINEARITIES[name](*x, **given)
    found = FUNCTIONS[name](*(a.numpy() for a in x), **arrays)
    assert bool(expected.isfinite().all()) and found.dtype == np.float64
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", ROWS)
def test_rows_take_time_in_front(case):
    name, shapes, given = ROWS[case]
    x = [torch.randn(6, *shape) for shape in shapes]
    row = NONLINEARITIES[name]
    each = torch.stack([row(*step, **given) for step in zip(*x, strict=True)])
    torch.testing.assert_close(row.over_time(*x, **given), each)


def test_what_selects_one_of_its_inputs():
    selecting = {name for name, row in NONLINEARITIES.items() if row.selects}
    assert selecting == {"max_pool", "adaptive_max_pool", "amax", "maximum", "minimum", "max"}


def test_a_masked_weight_is_exactly_zero():
    x = torch.randn(3, 5, 7)
    weights = NONLINEARITIES["softmax"](x, dim=-1, keep=EMPTY)
    assert bool((weights[:, EMPTY == 0] == 0).all())
    expected = x.masked_fill(EMPTY == 0, -math.inf).softmax(-1).nan_to_num(0)
    torch.testing.assert_close(weights, expected)


# -- networks -------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """[B, L, E] to queries, keys and values, an attention under test, a linear layer."""

    def __init__(self, attention, heads=H, key_heads=H, **buffers):
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        width = E // H
        self.q, self.k, self.v = (nn.Linear(E, n * width) for n in (heads, key_heads, key_heads))
        self.head = nn.Linear(heads * width, 5)
        self.attention = attention
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        def split(y, heads):
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        k, v = split(self.k(x), self.key_heads), split(self.v(x), self.key_heads)
        out = self.attention(self, split(self.q(x), self.heads), k, v)
        return self.head(out.transpose(1, 2).flatten(2))


def sdpa(**options):
    return lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def by_hand(m, q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v


def causal_by_hand(m, q, k, v):
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    logits = logits.masked_fill(~m.mask, -math.inf)
    return logits.softmax(-1) @ v


def padded(m, q, k, v):
    """A padding mask that a buffer holds, expanded to the batch."""
    mask = m.mask.expand(q.shape[0], -1)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def for_each_head(m, q, k, v):
    """Samples and heads in one dimension, and a mask for each head."""
    q, k, v = (a.flatten(0, 1) for a in (q, k, v))
    mask = m.mask.repeat(q.shape[0] // H, 1, 1)
    return ((q @ k.mT + mask).softmax(-1) @ v).unflatten(0, (-1, H))


def by_einsum(m, q, k, v):
    weights = torch.einsum("bhld,bhsd->bhls", q, k).softmax(-1)
    return torch.einsum("bhls,bhsd->bhld", weights, v)


def where(m, q, k, v):
    logits = torch.where(m.mask, q @ k.transpose(2, 3), torch.tensor(-math.inf))
    return torch.nn.functional.softmax(logits, dim=-1) @ v


BOOL = torch.ones(L, L, dtype=torch.bool).tril(1)
NONE_KEPT = BOOL.clone()
NONE_KEPT[2] = False
FLOAT = torch.zeros(L, L).masked_fill(~BOOL, -math.inf) + torch.linspace(-1, 1, L)
SLOPES = torch.stack([FLOAT, 0.3 * FLOAT.clamp(min=-5)])
SDPA = {
    "plain": lambda: Tokens(sdpa()),
    "bool mask": lambda: Tokens(sdpa(attn_mask=BOOL)),
    "float mask": lambda: Tokens(sdpa(attn_mask=FLOAT)),
    "a row that is masked whole": lambda: Tokens(sdpa(attn_mask=NONE_KEPT)),
    "causal": lambda: Tokens(sdpa(is_causal=True)),
    "scale": lambda: Tokens(sdpa(scale=0.3)),
    "grouped queries": lambda: Tokens(sdpa(enable_gqa=True), heads=4, key_heads=2),
    "padding": lambda: Tokens(padded, mask=torch.arange(L)[None] < 4),
    "by hand": lambda: Tokens(by_hand),
    "causal by hand": lambda: Tokens(causal_by_hand, mask=torch.ones(L, L).tril().bool()),
    "a large number for infinity": lambda: Tokens(
        lambda m, q, k, v: (q @ k.mT + m.mask).softmax(-1) @ v, mask=FLOAT.clamp(min=-1e9)
    ),
    "a mask for each head": lambda: Tokens(for_each_head, mask=SLOPES),
    "einsum": lambda: Tokens(by_einsum),
    "where": lambda: Tokens(where, mask=BOOL),
    "softmax over queries": lambda: Tokens(lambda m, q, k, v: (q @ k.mT).softmax(-2) @ v),
    "a bias of the input": lambda: Tokens(
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=q @ q.mT)
    ),
}


class Multihead(nn.Module):
    def __init__(self, cross=False, call=None, sequence_first=False, **options):
        super().__init__()
        other = {"kdim": 5, "vdim": 7} if cross else {}
        self.m = nn.MultiheadAttention(E, H, batch_first=not sequence_first, **{**other, **options})
        self.k, self.v = nn.Linear(E, other.get("kdim", E)), nn.Linear(E, other.get("vdim", E))
        self.cross, self.call, self.sequence_first = cross, call or {}, sequence_first
        self.register_buffer("padding", torch.arange(L) >= 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x):
        call = dict(self.call)
        if call.pop("padded", False):
            call["key_padding_mask"] = self.padding.expand(x.shape[0], -1)
        x = x.transpose(0, 1) if self.sequence_first else x
        out, weights = (
            self.m(x, self.k(x), self.v(x), **call) if self.cross else self.m(x, x, x, **call)
        )
        return out if weights is None else (out, weights)


MULTIHEAD = {
    "as it comes": {},
    "sequence first": {"sequence_first": True},
    "no weights": {"call": {"need_weights": False}},
    "weights of each head": {"call": {"average_attn_weights": False}},
    "attn_mask": {"call": {"attn_mask": ~BOOL, "need_weights": False}},
    "attn_mask, weights": {"call": {"attn_mask": FLOAT}},
    "causal": {"call": {"attn_mask": ~BOOL.tril(), "is_causal": True, "need_weights": False}},
    "padding": {"call": {"padded": True, "need_weights": False}},
    "padding, weights": {"call": {"padded": True}},
    "padding and attn_mask": {"call": {"padded": True, "attn_mask": ~BOOL}},
    "cross": {"cross": True},
    "cross, no weights": {"cross": True, "call": {"need_weights": False}},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "call": {"need_weights": False}},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "call": {"padded": True}},
    "no bias": {"bias": False},
}


def layer(**options):
    return nn.TransformerEncoderLayer(
        E, H, 12, dropout=0.1, batch_first=options.pop("batch_first", True), **options
    )


class Masked(nn.Module):
    def __init__(self, inner, **masks):
        super().__init__()
        self.inner, self.masks = inner, masks
        self.register_buffer("padding", torch.arange(L) >= 4)

    def forward(self, x):
        masks = dict(self.masks)
        if masks.pop("padded", False):
            masks["src_key_padding_mask"] = self.padding.expand(x.shape[0], -1)
        return self.inner(x, **masks)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(L)
ENCODERS = {
    "post-norm, relu": layer,
    "pre-norm, gelu": lambda: layer(norm_first=True, activation="gelu"),
    "src_mask": lambda: Masked(layer(), src_mask=CAUSAL, is_causal=True),
    "padding": lambda: Masked(layer(norm_first=True), padded=True),
    "encoder": lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False),
    "encoder, norm, mask": lambda: Masked(
        nn.TransformerEncoder(
            layer(norm_first=True), 2, nn.LayerNorm(E), enable_nested_tensor=False
        ),
        mask=CAUSAL,
    ),
    "encoder that nests": lambda: Masked(nn.TransformerEncoder(layer(), 2), padded=True),
}
MODELS = {
    **{f"sdpa: {name}": make for name, make in SDPA.items()},
    **{
        f"multihead: {name}": (lambda options=options: Multihead(**options))
        for name, options in MULTIHEAD.items()
    },
    **{f"encoder: {name}": make for name, make in ENCODERS.items()},
}


def flat(structure):
    return [structure] if isinstance(structure, Tensor) else list(structure)


def source(model, x):
    """Operation by operation: torch's fused attention gives zeros where it is padded."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return flat(model.eval()(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def error(outputs, expected):
    pairs = list(zip(flat(outputs), expected, strict=True))
    assert all(y.shape == z.shape for y, z in pairs)
    return max(float((y - z).norm() / z.norm()) for y, z in pairs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("functions", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_form_converts(name, functions):
    model, x = MODELS[name](), torch.randn(16, L, E)
    network = sg.convert(model, x, time_steps=64, forms=functions)
    assert torch.backends.mha.get_fastpath_enabled()
    expected = source(model, x)
    snn = sg.build(network)
    snn.mode = "ann"
    for have, want in zip(flat(snn(x)), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    snn.mode = "snn"
    found = sg.run(snn, x, (4, 16, 64))
    errors = [error(found[t], expected) for t in (4, 16, 64)]
    assert errors[0] > errors[2], errors
    assert errors[2] <= (0.03 if functions == "whole" else 0.1), errors
    assert all(bool(y.isfinite().all()) for t in found for y in flat(found[t]))
    one = sg.run(snn, x[:1], 64)[64]
    assert error(one, source(model, x[:1])) <= 2 * max(errors[2], 0.03)


@pytest.mark.parametrize("functions", FORMS)
@pytest.mark.parametrize(
    "name", ["sdpa: float mask", "sdpa: a mask for each head", "multihead: both"]
)
def test_the_two_views_agree(name, functions):
    model, x = MODELS[name]().double(), torch.randn(3, L, E, dtype=torch.float64)
    if hasattr(model, "mask"):
        model.mask = model.mask.double()
    network = sg.convert(model, x, time_steps=32, forms=functions)
    decoded = sg.run(sg.build(network), x, (1, 7, 32), chunk=5)
    spikes = sg.run(sg.build(network, spikes="signed"), x, (1, 7, 32))
    for t in (1, 7, 32):
        for have, want in zip(flat(spikes[t]), flat(decoded[t]), strict=True):
            torch.testing.assert_close(have, want, rtol=0, atol=1e-10)


class Weights(nn.Module):
    """Logits of a size, masked, to weights; the values of the neurons themselves are read."""

    def __init__(self, size, mask):
        super().__init__()
        self.layer = nn.Linear(E, L)
        self.size = size
        self.register_buffer("mask", mask)

    def forward(self, x):
        return (self.layer(x) * self.size).masked_fill(~self.mask, -math.inf).softmax(-1)


@pytest.mark.parametrize("functions", FORMS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, -1e4])
def test_masked_weights_are_zero_and_all_are_finite_at_every_step(size, functions):
    x, mask = torch.randn(8, L, E), torch.ones(L, L).tril().bool()
    model = Weights(size, mask)
    snn = sg.build(sg.convert(model, x, time_steps=64, forms=functions))
    found = sg.run(snn, x, tuple(range(1, 65)))
    for t, weights in found.items():
        assert bool(weights.isfinite().all()), t
        assert bool((weights[:, ~mask] == 0).all()), t
    if functions == "whole" or abs(size) <= 1:  # a maximum of 1e4 is decoded to hundreds
        assert error(found[64], source(model, x)) <= (0.02 if functions == "whole" else 0.1)


# -- neuron counts --------------------------------------------------------------------------------


def test_neuron_counts_are_those_computed_by_hand():
    x, d = torch.randn(8, L, E), E // H
    model = Tokens(sdpa(attn_mask=FLOAT))

    def counts(functions):
        network = sg.convert(model, x, time_steps=4, forms=functions)
        return {
            n.function.name + str(i): c
            for i, (n, c) in enumerate(zip(network.neurons, network.count().values(), strict=True))
        }

    assert counts("whole") == {"attention0": H * L * d}
    parts = {"matmul0": H * L * L, "softmax1": H * L * L, "matmul2": H * L * d}
    assert counts({"attention": "local"}) == parts
    assert list(counts({"matmul": "local"}).values())[0] == H * L * L * d
    assert counts("local") == {
        "mul0": H * L * L * d,
        "amax1": H * L,
        "exp2": H * L * L,
        "div3": H * L * L,
        "mul4": H * L * L * d,
    }
    assert sum(counts("whole").values()) < sum(parts.values()) < sum(counts("local").values())


def test_weights_that_are_returned_have_neurons_of_their_own():
    network = sg.convert(Multihead(), torch.randn(8, L, E), time_steps=4)
    assert [n.function.name for n in network.neurons] == ["matmul", "softmax", "attention"]
    assert list(network.count().values()) == [H * L * L, H * L * L, H * L * (E // H)]


def test_the_report_names_what_becomes_a_neuron():
    x = torch.randn(8, L, E)
    rows = {row.operation: row for row in sg.check(Tokens(by_hand), x).rows}
    assert rows["aten.softmax.int"].detail == "part of attention"
    report = str(sg.check(Tokens(sdpa()), x))
    assert "neuron: attention" in report and "matmul, softmax" not in report
    assert "mul, amax, exp, div, mul" in str(sg.check(Tokens(sdpa()), x, forms="local"))


# -- the choice -----------------------------------------------------------------------------------


def norms():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(72)
    )


def test_the_choice_of_functions_is_recorded():
    x = torch.randn(8, 1, 8, 8)
    names = lambda n: [neuron.function.name for neuron in n.neurons]  # noqa: E731
    whole = sg.convert(norms(), x, time_steps=4)
    assert names(whole) == ["layer_norm", "max_pool", "layer_norm"]
    assert set(whole.provenance["functions"].values()) == {"whole"}
    assert whole.names()[-1] == "4"
    local = sg.convert(norms(), x, time_steps=4, forms="local")
    pairs = ["square", "divide_by_sqrt"]
    assert names(local) == [*pairs, "maximum", "maximum", *pairs]
    assert local.provenance["functions"]["norm"] == "local"
    mixed = sg.convert(norms(), x, time_steps=4, forms={"norm": "local"})
    assert names(mixed) == [*pairs, "max_pool", *pairs]
    whole_norm, wide = {"norm": "whole"}, sg.ExponentialSchedule(0.9, 0.95)
    paper = sg.convert(
        norms(),
        x,
        time_steps=4,
        preset="paper",
        scale="tensor",
        schedule=wide,
        forms=whole_norm,
    )
    assert names(paper) == ["layer_norm", "maximum", "maximum", "layer_norm"]


@pytest.mark.parametrize(
    ("functions", "what"),
    [
        ("both", "whole, local.*'both'"),
        ({"norm": "window"}, "whole, local.*'window'"),
        ({"pool": "whole"}, "'pool'; known are max_pool, norm, softmax, matmul, attention"),
        (3, "whole, local.*3"),
    ],
)
def test_wrong_functions_are_input_errors(functions, what):
    with pytest.raises(sg.InputError, match=what):
        sg.convert(norms(), torch.randn(4, 1, 8, 8), forms=functions)
    with pytest.raises(sg.InputError, match=what):
        sg.check(norms(), torch.randn(4, 1, 8, 8), forms=functions)


def test_the_difference_is_reported():
    report = compare_functions(layer(), torch.randn(16, L, E), 32)
    whole, local = report["whole"], report["local"]
    assert whole.neurons < local.neurons and whole.layers == 4 < local.layers
    assert list(whole.error) == [1, 2, 4, 8, 16, 32]
    assert whole.error[32] < 0.05 and whole.error[32] < local.error[32]
    assert str(whole.neurons) in str(report) and "T=32" in str(report)


# -- what is refused ------------------------------------------------------------------------------


REFUSED = {
    "a mask of the input": (
        lambda m, q, k, v: (q @ k.mT).masked_fill(q @ k.mT < 0, -math.inf).softmax(-1) @ v,
        "aten.lt.*computed from the input.*buffer",
    ),
    "-inf elsewhere": (
        lambda m, q, k, v: (q @ k.mT).masked_fill(~m.mask, -math.inf).sigmoid() @ v,
        "-inf reach aten.sigmoid.*softmax",
    ),
    "-inf returned": (
        lambda m, q, k, v: (q @ k.mT).masked_fill(~m.mask, -math.inf)[..., : q.shape[-1]],
        "-inf",
    ),
    "a row of -inf alone": (
        lambda m, q, k, v: (q @ k.mT).masked_fill(m.mask.any(), -math.inf).softmax(-1) @ v,
        "-inf everywhere.*keep one",
    ),
    "softmax over the batch": (lambda m, q, k, v: (q @ k.mT).softmax(0) @ v, "mixes samples"),
    "dropout that stays": (sdpa(dropout_p=0.5), "dropout_p"),
    "einsum of three": (
        lambda m, q, k, v: torch.einsum("bhld,bhsd,bhse->bhle", q, k, v),
        "products of two",
    ),
    "einsum over the batch": (
        lambda m, q, k, v: torch.einsum("bhld,bhsd->hls", q, k)[None] @ v,
        "mixes samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    attention, what = REFUSED[name]
    model = Tokens(attention, mask=BOOL)
    with pytest.raises(sg.UnsupportedOperation, match=f"(?s){what}"):
        Tokens.forward(model, torch.randn(2, L, E))  # it runs
        sg.convert(model, torch.randn(8, L, E))


@pytest.mark.parametrize("equation", ["bld,bsd->bls", "bld,bsd->bsl", "bld,bsd->bl", "bld,bl->bd",
                                      "bld,be->blde", "bld,bld->b"])  # fmt: skip
def test_einsum_of_two_values(equation):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(E, 4), nn.Linear(E, 4)

        def forward(self, x):
            b = self.b(x)
            term = equation.split(",")[1].split("->")[0]
            b = b if len(term) == 3 else b.mean(-1 if term == "bl" else 1)
            return torch.einsum(equation, self.a(x), b)

    model, x = Product(), torch.randn(16, L, E)
    for functions in FORMS:
        network = sg.convert(model, x, time_steps=64, forms=functions)
        assert error(sg.run(sg.build(network), x, 64)[64], source(model, x)) <= 0.03


# -- files and simulators -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMS)
def tiny(request):
    torch.manual_seed(1)
    x = torch.randn(16, L, E)
    model = nn.Sequential(Masked(layer(norm_first=True), src_mask=CAUSAL), nn.Linear(E, 3))
    return sg.convert(model, x, time_steps=16, forms=request.param), x


@pytest.mark.spikingjelly
def test_saved_loaded_and_replayed(tiny, tmp_path):
    network, x = tiny
    sg.save(network, tmp_path / "net.h5")
    loaded = sg.load(tmp_path / "net.h5")
    assert torch.equal(sg.run(sg.build(loaded), x, 16)[16], sg.run(sg.build(network), x, 16)[16])
    assert dict(loaded.provenance["functions"]) == dict(network.provenance["functions"])
    replayed = Runner(tmp_path / "net.h5", dtype=np.float64).run(x[:4].numpy(), 16)
    from spikingjelly_signgd.exporters.hdf5.definition import run_definition

    expected = run_definition(network, x[:4], 16)
    for name, spikes in expected.spikes.items():
        assert np.array_equal(replayed.spikes[name], spikes.numpy()), name
    np.testing.assert_allclose(replayed.outputs[16], expected.outputs.numpy(), atol=1e-10)
    sg.export(network, tmp_path / "net2.h5")
    assert sg.verify(tmp_path / "net2.h5", network=network).ok


def test_norse_gives_the_same_spikes(tiny):
    network, x = tiny
    for view in ("decoded", "signed"):
        jelly, norse = (sg.build(network, name, spikes=view) for name in ("spikingjelly", "norse"))
        expected = sg.run(jelly, x, (1, 7, 16))
        for t, output in sg.run(norse, x, (1, 7, 16)).items():
            assert torch.equal(output, expected[t]), (view, t)


# -- the example ----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["digits", "fashion"])
def test_the_vit_is_small(data):
    assert sum(p.numel() for p in make_network("vit", data).parameters()) < 95_000


@pytest.mark.slow
def test_the_vit_of_digits_agrees_with_its_source():
    data, model = digits(), load_network("vit", "digits")
    test = [(data.test.images, data.test.labels)]
    network = sg.convert(model, data.train.images[:256], time_steps=64, tune=False)
    assert len(network.neurons) == 13
    report = sg.evaluate(sg.build(network), test, time_steps=(64,), reference=model)
    assert report.agreement[0] >= 0.99
