"""Several inputs, token ids, padding masks, and outputs by name."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations, diagnose, record, write_report
from spikingjelly_signgd.converters import compare_functions
from spikingjelly_signgd.core.structures import leaves
from spikingjelly_signgd.exporters.hdf5 import Runner

VOCABULARY, LENGTH = 20, 6


class Encoder(nn.Module):
    """Token ids and a padding mask to hidden states and their masked mean."""

    def __init__(self, attention="sdpa"):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, 8), nn.Embedding(LENGTH, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.attention = attention

    def attend(self, q, k, v, mask):
        mask, logits = mask[:, None, None, :], q @ k.transpose(-1, -2) / 2
        if self.attention == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())
        if self.attention == "eager":
            logits = logits + (1.0 - mask.float()) * torch.finfo(torch.float32).min
        elif self.attention == "masked_fill":
            logits = logits.masked_fill(mask == 0, float("-inf"))
        elif self.attention == "where":
            logits = torch.where(mask > 0, logits, -1e9)
        return torch.softmax(logits, -1) @ v

    def forward(self, input_ids, attention_mask):
        batch, length = input_ids.shape
        x = self.before(self.tokens(input_ids) + self.places(torch.arange(length)))
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        a = self.attend(q, k, v, attention_mask)
        x = x + self.out(a.transpose(1, 2).reshape(batch, length, 8))
        x = self.after(x + self.mlp(x))
        mask = attention_mask.unsqueeze(-1)
        pooled = (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return {"hidden": x, "pooled": pooled}


def tokens(samples, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, LENGTH), generator=g)
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (samples, 1), generator=g)).long()
    return {"input_ids": ids, "attention_mask": mask}


def encoder(attention="sdpa"):
    torch.manual_seed(0)
    model = Encoder(attention).eval()
    with torch.no_grad():  # norms that scale and shift
        for norm in (model.before, model.after):
            norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-0.3, 0.3)
    return model


CALIBRATION, X = tokens(64), tokens(5, 3)
PLANS = {"8 x 1": {}, "1 x 6": {"time_steps": 6}, "local": {"time_steps": 3, "forms": "local"}}


def converted(attention="sdpa", **plan):
    return sg.convert(encoder(attention), CALIBRATION, tune=False, **plan)


@pytest.fixture(scope="module", params=PLANS)
def network(request):
    return converted(**PLANS[request.param])


@pytest.fixture(scope="module")
def one_step():
    return converted()


def assert_same(a, b, **tolerance):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **({"rtol": 0, "atol": 0} | tolerance))


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


# -- token ids and masks ---------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager", "masked_fill", "where"])
def test_a_mask_is_read_by_attention_itself(attention):
    model, network = encoder(attention), converted(attention)
    functions = [neuron.function.name for neuron in network.neurons]
    assert functions == ["layer_norm", "masked_attention", "gelu", "layer_norm", "mul", "div"]
    assert [node.name for node in network.inputs] == ["input_ids", "attention_mask"]
    snn, wanted = sg.build(network), model(**X)
    assert_same(snn.ann(X), wanted, rtol=1e-5, atol=1e-6)
    for name, value in sg.run(snn, X)[1].items():
        assert relative(value, wanted[name]) < 0.05


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(attention):
    """What is masked has weight 0: other ids there, and the same spikes everywhere else."""
    snn = sg.build(converted(attention))
    other = dict(X, input_ids=torch.where(X["attention_mask"] > 0, X["input_ids"], 7))
    assert not torch.equal(other["input_ids"], X["input_ids"])
    a, b = (sg.run(snn, x)[1] for x in (X, other))
    kept = X["attention_mask"].bool()
    assert torch.equal(a["hidden"][kept], b["hidden"][kept])
    assert torch.equal(a["pooled"], b["pooled"])


def test_padded_and_unpadded_runs_agree():
    """The same sentences of four tokens, alone and beside padding."""
    model, padded, alone = encoder(), [], []
    for data in (CALIBRATION, X):
        ids = data["input_ids"]
        mask = (torch.arange(LENGTH) < 4).long().expand(ids.shape)
        padded.append({"input_ids": ids, "attention_mask": mask})
        alone.append({name: value[:, :4] for name, value in padded[-1].items()})
    long, short = (
        sg.run(sg.build(sg.convert(model, data, tune=False)), x)[1] for data, x in (padded, alone)
    )
    assert relative(long["hidden"][:, :4], short["hidden"]) < 0.03
    assert relative(long["pooled"], short["pooled"]) < 0.03


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sentence_without_a_token(attention):
    """A row that is masked whole is 0 by torch's fused attention, and its mean by softmax."""
    x = dict(X, attention_mask=torch.zeros_like(X["attention_mask"]))
    model, snn = encoder(attention), sg.build(converted(attention))
    assert_same(snn.ann(x), model(**x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_simulators_views_and_chunks_agree(network, simulator):
    steps = network.time_steps
    wanted = sg.run(sg.build(network), X, steps)[steps]
    for view in ("decoded", "signed"):
        snn = sg.build(network, simulator, spikes=view)
        for chunk in (None, 2):
            assert_same(sg.run(snn, X, steps, chunk=chunk)[steps], wanted, rtol=1e-4, atol=1e-5)
    still = {name: x.expand(steps, *x.shape) for name, x in X.items()}
    assert_same(sg.run(sg.build(network, simulator), still, sequence=True)[steps], wanted)


def test_simulators_as_their_users_call_them(network):
    steps = network.time_steps
    wanted = sg.run(sg.build(network), X, steps)[steps]
    snn = sg.build(network)
    for _ in range(steps):
        outputs = snn(X)
    assert_same(outputs, wanted)
    norse, state = sg.build(network, "norse"), None
    for _ in range(steps):
        outputs, state = norse(X, state)
    assert_same(outputs, wanted)
    sequence = {name: x.expand(steps, *x.shape) for name, x in X.items()}
    outputs, _ = norse(sequence)
    assert_same({name: value[-1] for name, value in outputs.items()}, wanted)


def test_a_file_is_the_network(network, tmp_path):
    path, steps = tmp_path / "n.h5", network.time_steps
    sg.save(network, path)
    back = sg.load(path)
    assert_same(sg.run(sg.build(back), X)[steps], sg.run(sg.build(network), X)[steps])
    for x in (X, None):
        certificate = sg.verify(path, x, network=network)
        assert certificate.ok, str(certificate)
        # a sum next to the border of a dead zone may round to the other side
        assert max(check.mismatches for check in certificate.checks) <= 2
    found = Runner(path, np.float32).run({name: x.numpy() for name, x in X.items()})
    wanted = sg.run(sg.build(network), X)[steps]
    for name, value in found.outputs[steps].items():
        torch.testing.assert_close(torch.from_numpy(value), wanted[name], rtol=1e-4, atol=1e-5)


def test_the_format_is_newer_only_where_it_must(one_step, tmp_path):
    import h5py

    plain = sg.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(8, 3), tune=False)
    for network, version in ((one_step, "1.4"), (plain, "1.3")):
        sg.save(network, tmp_path / "n.h5")
        with h5py.File(tmp_path / "n.h5") as file:
            assert file.attrs["format_version"] == version
    assert plain.plain and plain.input.name == "input"


def test_what_is_exact_costs_nothing(one_step):
    found = count_operations(sg.build(one_step), X)
    names = {row.name for row in found.each}
    assert not names & {node.name for node in one_step.statics}
    # the norm's affine part and q, k, v are the first weights, and see spikes alone
    assert found.input_macs == 0 and found.synaptic > 0


def test_it_is_recorded_and_diagnosed(one_step):
    snn = sg.build(one_step)
    seen = record(snn, X)
    assert seen.decoded["before"].shape == (1, 5, LENGTH, 8)
    diagnosis = diagnose(snn, CALIBRATION, reference=encoder())
    assert "before" in str(diagnosis)


def test_other_searches_and_measures(tmp_path):
    model, ids = nn.Sequential(*Class().layers), CALIBRATION["input_ids"]
    model[3] = nn.ReLU()
    network = sg.convert(model, ids, method="group", time_steps=2)
    assert relative(sg.run(sg.build(network), ids)[2], model(ids)) < 0.2
    path = write_report(tmp_path / "r.html", sg.build(network), ids[:8], reference=model)
    assert "samples of [6]" in path.read_text()
    rows = compare_functions(encoder(), CALIBRATION, time_steps=2).rows
    assert [row.functions for row in rows] == ["whole", "local"]


def test_it_is_tuned():
    network = sg.convert(encoder(), CALIBRATION, tune=True)
    snn, wanted = sg.build(network), encoder()(**X)
    assert relative(sg.run(snn, X)[1]["pooled"], wanted["pooled"]) < 0.05


class Class(nn.Module):
    """Token ids alone to classes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(VOCABULARY, 8),
            nn.Flatten(),
            nn.Linear(48, 16),
            nn.GELU(),
            nn.Linear(16, 3),
        )

    def forward(self, ids):
        return self.layers(ids)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Class().eval()


def test_one_tensor_of_token_ids(classifier):
    ids, labels = CALIBRATION["input_ids"], torch.zeros(64, dtype=torch.long)
    network = sg.convert(classifier, [(ids, labels)], time_steps=8, tune=False)
    assert network.input.name == "input" and network.input.dtype == "integer"
    snn = sg.build(network)
    found = sg.evaluate(snn, [(ids, labels)], 8, reference=classifier)
    assert found.agreement[0] > 0.9 and found.accuracy[0] is not None
    left = sg.early_exit(snn, ids, 0.5)
    assert left.steps.float().mean() < 8
    assert torch.equal(
        sg.early_exit(snn, ids, float("inf")).prediction, sg.run(snn, ids)[8].argmax(1)
    )
    by_name = sg.convert(classifier, {"ids": ids}, time_steps=8, tune=False)
    assert torch.equal(sg.run(sg.build(by_name), {"ids": ids})[8], sg.run(snn, ids)[8])


def test_early_exit_of_a_dict(classifier):
    network = sg.convert(classifier, {"ids": CALIBRATION["input_ids"]}, time_steps=8, tune=False)
    snn, x = sg.build(network), {"ids": CALIBRATION["input_ids"]}
    steps = [step.outputs for step in sg.stream(snn, x)]
    found = sg.early_exit(snn, x, 0.5)
    for sample, t in enumerate(found.steps.tolist()):
        assert int(steps[t - 1][sample].argmax()) == int(found.prediction[sample])
    rule = sg.calibrate_exit(snn, [x], classifier)
    assert rule.samples == 64


# -- several tensors -------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(F.gelu(self.left(left) + self.right(right)))


def two(samples=64):
    g = torch.Generator().manual_seed(samples)
    sizes = {"left": 3, "right": 5}
    return {name: torch.randn(samples, size, generator=g) for name, size in sizes.items()}


@pytest.mark.parametrize("coding", ["exact", "real", "spike"])
def test_two_tensors(coding, tmp_path):
    torch.manual_seed(0)
    model, x = Two(), two(4)
    network = sg.convert(model, [two()], time_steps=16, tune=False, input_coding=coding)
    assert [(node.name, node.dtype) for node in network.inputs] == [
        ("left", "float"),
        ("right", "float"),
    ]
    wanted = model(**x)
    torch.testing.assert_close(sg.build(network).source(**x), wanted, rtol=1e-5, atol=1e-6)
    outputs = {
        (simulator, view): sg.run(sg.build(network, simulator, spikes=view), x)[16]
        for simulator in ("spikingjelly", "norse")
        for view in ("decoded", "signed")
    }
    for found in outputs.values():
        assert relative(found, wanted) < 0.15
        torch.testing.assert_close(found, outputs["norse", "decoded"], rtol=1e-4, atol=1e-5)
    sg.save(network, tmp_path / "n.h5")
    assert sg.verify(tmp_path / "n.h5", x, network=network).ok
    moving = {name: torch.stack([value, 2 * value]) for name, value in x.items()}
    a, b = (
        sg.run(sg.build(network, spikes=view), moving, sequence=True)
        for view in ("decoded", "signed")
    )
    torch.testing.assert_close(a[2], b[2], rtol=1e-4, atol=1e-5)


def test_a_dict_of_samples_is_split_into_batches():
    model, x = Two(), two(100)
    a, b = (
        sg.convert(model, data, tune=False)
        for data in (x, [{k: v[:64] for k, v in x.items()}, {k: v[64:] for k, v in x.items()}])
    )
    one = two(3)
    assert torch.equal(sg.run(sg.build(a), one)[1], sg.run(sg.build(b), one)[1])


class Bytes(nn.Module):
    """Images as bytes, which the model itself scales."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, pixels):
        return self.layers((pixels.float() / 255 - 0.5) / 0.25)


def test_bytes_that_the_model_scales():
    torch.manual_seed(0)
    model, x = Bytes(), torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8)
    network = sg.convert(model, x, tune=False)
    torch.testing.assert_close(sg.build(network).ann(x), model(x), rtol=1e-5, atol=1e-5)


# -- outputs ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    extra: object = None


class Returns(nn.Module):
    def __init__(self, extra=None):
        super().__init__()
        self.layer, self.extra = nn.Linear(3, 4), extra

    def forward(self, x):
        return Output(self.layer(x).relu(), extra=self.extra)


def test_a_dataclass_is_a_dict_of_its_tensors():
    x, model = torch.rand(8, 3), Returns()
    network = sg.convert(model, x, tune=False)
    assert network.outputs == {"logits": leaves_of(network)}
    torch.testing.assert_close(sg.build(network).ann(x)["logits"], model(x).logits)
    assert "forward" not in vars(model)


def leaves_of(network):
    return network.nodes[-1].name


class DynamicCache:
    pass


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (3, "returns int among its outputs .'extra'.; return tensors"),
        (DynamicCache(), "cache of keys and values, 'extra'.*use_cache = False"),
    ],
)
def test_what_a_network_does_not_return(extra, message):
    with pytest.raises(sg.CaptureError, match=message):
        sg.convert(Returns(extra), torch.rand(8, 3))


# -- bad input -------------------------------------------------------------------------------------

IDS, MASK = X["input_ids"], X["attention_mask"]
RUN = {
    "an id beyond the vocabulary": (
        dict(X, input_ids=IDS + 15),
        "ids at 'tokens' reach .*vocabulary has 20 entries, 0 to 19; use the tokenizer",
    ),
    "a negative id": (dict(X, input_ids=IDS - 1), "ids at 'tokens' reach -1"),
    "a mask of another length": (
        dict(X, attention_mask=MASK[:, :4]),
        r"input 'attention_mask' is \[B, 6\], but x is \[5, 4\]",
    ),
    "a mask of other samples": (
        dict(X, attention_mask=MASK[:4]),
        r"differ in their number of samples: .*'input_ids': \[5\], 'attention_mask': \[4\]",
    ),
    "no mask": ({"input_ids": IDS}, "takes {'input_ids': ..., 'attention_mask': ...}"),
    "one tensor": (IDS, "has 2 inputs, but x is Tensor; pass a dict"),
    "vectors": (dict(X, input_ids=IDS.float()), "'input_ids' holds integer values.*tokenizer"),
    "a list": (dict(X, input_ids=IDS.tolist()), "'input_ids' is a tensor, not list"),
}


@pytest.mark.parametrize("name", RUN)
def test_inputs_of_a_run(one_step, name):
    x, message = RUN[name]
    with pytest.raises(sg.InputError, match=message):
        sg.run(sg.build(one_step), x)


def test_a_sequence_whose_ids_change(one_step):
    x = {name: torch.stack([value, value.flip(0)]) for name, value in X.items()}
    with pytest.raises(sg.InputError, match="'input_ids' holds integer values.*every step"):
        sg.run(sg.build(one_step), x, sequence=True)


def test_the_runner_refuses_the_same(one_step, tmp_path):
    sg.save(one_step, tmp_path / "n.h5")
    runner, x = Runner(tmp_path / "n.h5"), {name: value.numpy() for name, value in X.items()}
    with pytest.raises(sg.InputError, match="ids at 'tokens' reach"):
        runner.run(dict(x, input_ids=x["input_ids"] + 15))
    with pytest.raises(sg.InputError, match=r"'attention_mask' is \[B, 6\], but x is \[5, 4\]"):
        runner.run(dict(x, attention_mask=x["attention_mask"][:, :4]))
    with pytest.raises(sg.InputError, match="takes input_ids, attention_mask"):
        runner.run(x["input_ids"])


def test_coding():
    with pytest.raises(sg.InputError, match="input_ids, attention_mask hold whole numbers"):
        converted(input_coding="spike", time_steps=8)
    with pytest.raises(
        sg.InputError, match="Poisson coding supports one input, but the model has 2"
    ):
        sg.convert(Two(), two(), input_coding="poisson", time_steps=8)


def test_calibration():
    with pytest.raises(sg.CalibrationError, match="'tokens', a vocabulary of 20 .*largest id is 3"):
        sg.convert(encoder(), dict(CALIBRATION, input_ids=CALIBRATION["input_ids"] + 15))
    with pytest.raises(sg.CaptureError, match="Encoder does not take input_ids .*attention_mask"):
        sg.convert(encoder(), {"input_ids": CALIBRATION["input_ids"]})
    with pytest.raises(
        sg.CaptureError, match="does not take one tensor.*dicts keyed by the names of"
    ):
        sg.check(encoder(), CALIBRATION["input_ids"])
    with pytest.raises(sg.CalibrationError, match="have the same number of samples"):
        sg.convert(encoder(), dict(CALIBRATION, input_ids=CALIBRATION["input_ids"][:3]))


def test_weights_without_values():
    with pytest.raises(sg.CaptureError, match="'layer.weight' of Returns .*'meta'.*to_empty"):
        sg.convert(Returns().to("meta"), torch.rand(8, 3))


def test_a_quantised_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(sg.CaptureError, match="'0.weight' of Sequential is quantised; convert the"):
        sg.convert(model, torch.rand(8, 3))


def test_other_formats_refuse(one_step, tmp_path):
    pytest.importorskip("nir")
    with pytest.raises(sg.FormatError, match="one floating-point tensor"):
        sg.export(one_step, tmp_path / "n.nir")


def test_check_says_what_is_exact():
    report = sg.check(encoder(), CALIBRATION)
    rows = {row.path: (row.becomes, row.detail) for row in report.rows}
    assert report.ok and rows["tokens"] == ("exact", "embedding")


class Padded(nn.Module):
    """torch's own encoder, of ids of which 0 is padding; the mean of what is none."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids):
        padding = ids == 0
        x = self.encoder(self.tokens(ids), src_key_padding_mask=padding)
        x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.head(x.sum(1) / (~padding).sum(1, keepdim=True))


class LastToken(nn.Module):
    """Positions counted from the mask, a causal mask beside it, and the last token picked."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, 8), nn.Embedding(LENGTH + 2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.register_buffer("kinds", torch.arange(LENGTH).view(1, -1) % 2)
        self.kind = nn.Embedding(2, 8)

    def forward(self, input_ids, attention_mask):
        batch, length = input_ids.shape
        places = attention_mask.cumsum(1) * attention_mask + 1
        kinds = self.kinds.expand(batch, -1).gather(1, (places - 2).clamp(min=0))
        x = self.tokens(input_ids) + self.places(places) + self.kind(kinds)
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        a, weights = self.attention(x, x, x, key_padding_mask=attention_mask == 0, attn_mask=causal)
        return self.head((x + a)[torch.arange(batch), attention_mask.sum(1) - 1]), weights


@pytest.mark.parametrize("name", ["padded", "last token"])
def test_masks_as_models_write_them(name, tmp_path):
    torch.manual_seed(0)
    model, data, x = LastToken().eval(), CALIBRATION, X
    if name == "padded":
        model = Padded().eval()
        data, x = ({"ids": d["input_ids"] * d["attention_mask"]} for d in (CALIBRATION, X))
    network = sg.convert(model, data, tune=False)
    wanted, found = leaves(model(**x)), sg.run(sg.build(network), x)[1]
    for have, want in zip(leaves(found), wanted, strict=True):
        assert relative(have, want) < 0.05
    signed = sg.run(sg.build(network, spikes="signed"), x)[1]
    for a, b in zip(leaves(found), leaves(signed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    sg.save(network, tmp_path / "n.h5")
    assert sg.verify(tmp_path / "n.h5", x, network=network).ok


def test_one_place_of_each_sample_only():
    class Reordered(Class):
        def forward(self, ids):
            x = self.layers[0](ids)
            return x[torch.arange(ids.shape[0]).flip(0), ids.sum(1).clamp(max=LENGTH - 1)]

    with pytest.raises(sg.UnsupportedOperation, match="x.torch.arange.len.x.., index. picks one"):
        sg.convert(Reordered(), CALIBRATION["input_ids"])
