"""Several image sizes, or lengths of sentences, from one description: equal to converting there,
refused, by the name of a node, wherever that is not certain."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.exporters.hdf5 import Runner


def images(*shape, count=4):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_near(found, y):
    """NumPy in float64 beside torch in float32: a spike on a threshold may be another."""
    assert found.shape == tuple(y.shape)
    assert np.linalg.norm(found - y.numpy()) <= 0.01 * np.linalg.norm(y)


class Pyramid(nn.Module):
    """As MTCNN's P-Net: PReLU, pooling in ceil mode, a softmax head and one of numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.face, self.box = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        h = self.pool(self.prelu1(self.conv1(x)))
        h = self.prelu2(self.conv2(h))
        return F.softmax(self.face(h), 1), self.box(h)


def quick(model, x, **options):
    return sg.convert(model.eval(), x, tune=False, **options)


def with_plan(network, model, shape, **options):
    """The model converted at another size, with the neurons' numbers of ``network``."""
    other = quick(model, images(*shape), **options)
    planned = {n.name: replace(n, shape=other[n.name].shape) for n in network.neurons}
    return other.with_nodes(planned)


def outputs(snn, x, **options):
    return [y for at in sg.run(snn, x, **options).values() for y in at]


@pytest.fixture(scope="module")
def pyramid():
    return Pyramid().eval()


@pytest.fixture(scope="module")
def network(pyramid):
    return quick(pyramid, images(3, 16, 12), sizes=[(3, 19, 23)])


SIZES = [(3, 16, 12), (3, 19, 23), (3, 40, 31), (3, 9, 10)]


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
@pytest.mark.parametrize("spikes", ["decoded", "signed"])
def test_four_sizes_are_bit_for_bit_those_of_four_conversions(network, pyramid, simulator, spikes):
    snn = sg.build(network, simulator, spikes=spikes)
    for shape in (*SIZES, SIZES[0]):
        x = images(*shape, count=2)
        planned = sg.build(with_plan(network, pyramid, shape), simulator, spikes=spikes)
        sized = sg.build(network.at_size(*shape), simulator, spikes=spikes)
        have, want = outputs(snn, x), outputs(planned, x)
        for y, z, at in zip(have, want, outputs(sized, x), strict=True):
            assert torch.equal(y, z) and torch.equal(y, at), shape
        for y, z in zip(snn.ann(x), pyramid(x), strict=True):
            torch.testing.assert_close(y, z)
        assert snn.network is network


@pytest.mark.parametrize("method", ["group", "subgradient"])
def test_every_kind_of_neuron(method):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2, ceil_mode=True)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 3, 1), nn.ReLU())
    given = {"method": {"": "signgd", "1": method, "4": method}, "time_steps": 4}
    network = quick(model, images(1, 8, 8), sizes=[(1, 11, 14)], **given)
    snn = sg.build(network)
    for shape in ((1, 11, 14), (1, 9, 8)):
        x, planned = images(*shape), with_plan(network, model, shape, **given)
        assert torch.equal(sg.run(snn, x, 4)[4], sg.run(sg.build(planned), x, 4)[4])


def test_a_file_runs_at_every_size(network, tmp_path):
    sg.save(network, tmp_path / "pyramid.h5")
    loaded, runner = sg.load(tmp_path / "pyramid.h5"), Runner(tmp_path / "pyramid.h5")
    snn, again = sg.build(network), sg.build(loaded)
    for shape in SIZES:
        x = images(*shape)
        found = runner.run(x.numpy()).outputs[network.time_steps]
        for y, z, n in zip(outputs(snn, x), outputs(again, x), found, strict=True):
            assert torch.equal(y, z)
            assert_near(n, y)
    sg.save(loaded.at_size(3, 40, 31), tmp_path / "large.h5")
    large = sg.load(tmp_path / "large.h5")
    assert large.input.shape[1:] == (3, 40, 31) and sg.verify(tmp_path / "large.h5").ok
    x = images(3, 16, 12)
    assert torch.equal(outputs(sg.build(large), x)[0], outputs(snn, x)[0]), "and back"
    with pytest.raises(sg.InputError, match=r"\[3, 5, 5\]: it was checked at \[3, 16, 12\]"):
        runner.run(images(3, 5, 5).numpy())


def test_evaluate_takes_batches_of_several_sizes(network, pyramid):
    loader = [images(*shape) for shape in SIZES]
    found = sg.evaluate(sg.build(network), loader, reference=pyramid)
    assert found.samples == 16 and found.outputs["0"]["agreement"][0] > 0.9
    assert found.error[0] < 0.2


def test_spikes_are_told_at_the_size_that_runs(network):
    """Pooling's, too, whose size is that of what it pools."""
    x, told = images(3, 21, 17), {}
    for snn in (sg.build(network), sg.build(network.at_size(3, 21, 17))):
        sent = told[snn] = []
        with listening(snn, lambda each, sent=sent: sent.append(each)):
            sg.run(snn, x)
    one, two = told.values()
    assert [s.node.name for s in one] == [n.name for n in network.neurons]
    for a, b in zip(one, two, strict=True):
        assert a.node.shape == b.node.shape
        assert (a.events is None) == (b.events is None)
        if a.events is not None:
            assert torch.equal(a.events.spikes, b.events.spikes)


def test_the_analysis_is_of_one_size(network):
    x = images(3, 19, 23)
    with pytest.raises(sg.InputError, match=r"the input is \[B, 3, 16, 12\]"):
        count_operations(sg.build(network), x)
    sized = count_operations(sg.build(network.at_size(3, 19, 23)), x)
    assert sized.neurons == sum(network.at_size(3, 19, 23).count().values())


def test_steps_of_another_size_need_a_reset(network):
    snn, x, y = sg.build(network), images(3, 16, 12), images(3, 19, 23)
    snn(x)
    with pytest.raises(sg.InputError, match="[Rr]eset"):
        snn(y)
    snn.reset()
    assert snn(y)[0].shape[2:] == (7, 9)


# -- what runs at any size ------------------------------------------------------------------------


class Residual(nn.Module):
    """A classifier: strides, batch norm that is not folded, squeeze and excitation, mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.body, self.gate = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.squeeze, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        h = self.stem(x)
        y = F.silu(self.norm(h)) + h
        y = self.body(y) * self.gate(self.squeeze(y)).sigmoid()
        return self.head(F.relu(y).mean((2, 3)))


class Doubled(nn.Module):
    """Upsampling by a factor, as in a decoder; the factor is a number of the model."""

    def __init__(self, mode="nearest"):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up, self.mode = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 4, 1), mode

    def forward(self, x):
        h = F.gelu(self.down(x))
        return self.up(F.interpolate(h, scale_factor=2, mode=self.mode))


@pytest.mark.parametrize(
    "model", [Residual(), Doubled(), Doubled("bilinear")], ids=["residual", "nearest", "bilinear"]
)
def test_any_size(model, tmp_path):
    network = quick(model, images(3, 16, 12), sizes=[(3, 20, 30)])
    assert network.provenance["sizes"]["between"], "proved by torch.export"
    snn = sg.build(network)
    sg.save(network, tmp_path / "n.h5")
    runner = Runner(tmp_path / "n.h5")
    for shape in ((3, 20, 30), (3, 31, 17), (3, 64, 66)):
        x, planned = images(*shape), with_plan(network, model, shape)
        y = sg.run(snn, x)[1]
        assert torch.equal(y, sg.run(sg.build(planned), x)[1])
        torch.testing.assert_close(snn.ann(x), model(x))
        assert_near(runner.run(x.numpy()).outputs[1], y)


# -- what runs at the sizes that were asked for ---------------------------------------------------


class Dense(nn.Module):
    """A segmentation network, whose maps are as large as its input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        h = self.head(self.body(x).relu())
        return {"out": F.interpolate(h, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class Sentence(nn.Module):
    """Vectors of words to one of the sentence, with a table of positions."""

    def __init__(self, longest=12):
        super().__init__()
        torch.manual_seed(0)
        self.positions = nn.Parameter(torch.randn(1, longest, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x + self.positions[:, : x.shape[1]]).mean(1)


LISTED = {
    "interpolate": (Dense(), (3, 16, 12), [(3, 20, 24), (3, 9, 9)], (3, 21, 24)),
    "positions": (Sentence(), (12, 8), [(7, 8), (4, 8)], (5, 8)),
}


@pytest.mark.parametrize("name", LISTED)
def test_sizes_that_were_asked_for_and_no_others(name, tmp_path):
    model, base, sizes, other = LISTED[name]
    network = quick(model, images(*base), sizes=sizes)
    assert network.provenance["sizes"]["between"] is None
    sg.save(network, tmp_path / "n.h5")
    loaded, runner = sg.load(tmp_path / "n.h5"), Runner(tmp_path / "n.h5")
    snn = sg.build(loaded)
    for shape in sizes:
        x, planned = images(*shape), with_plan(network, model, shape)
        y, z = (sg.run(each, x)[1] for each in (snn, sg.build(planned)))
        y, z, s, w = (v["out"] if isinstance(v, dict) else v for v in (y, z, snn.ann(x), model(x)))
        assert torch.equal(y, z)
        torch.testing.assert_close(s, w)
        found = runner.run(x.numpy()).outputs[1]
        found = found["out"] if isinstance(found, dict) else found
        assert_near(found, y)
    for run in (lambda: sg.run(snn, images(*other)), lambda: loaded.at_size(*other)):
        with pytest.raises(sg.InputError, match="does not run on samples") as told:
            run()
        assert "convert(..., sizes=[...])" in str(told.value) or "fixes the size" in str(told.value)


def test_tables_follow_the_module_to_another_type():
    """The table of positions is cut from the module's own buffer, not from the description."""
    model = Sentence().double()
    network = quick(Sentence(), images(12, 8), sizes=[(7, 8)])
    snn = sg.build(network).double()
    x = images(7, 8).double()
    torch.testing.assert_close(snn.ann(x), model(x), rtol=1e-5, atol=1e-5)
    assert snn.ann(x).dtype == torch.float64


# -- refusals -------------------------------------------------------------------------------------


def flattened():
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)]
    return nn.Sequential(*parts)


class Averaged(nn.Module):
    """A mean by hand: the number of pixels is a number in the graph."""

    def forward(self, x):
        return x.relu().sum((2, 3)) / (x.shape[2] * x.shape[3])


class Branch(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.when, self.conv = when, nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).relu() if self.when(x.shape) else self.conv(x).relu() * 2


class Padded(nn.Module):
    """To even sizes, as "same" padding does: at even sizes nothing of it is seen."""

    def forward(self, x):
        return F.avg_pool2d(F.pad(x.relu(), (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)


class Square(nn.Module):
    def forward(self, x):
        return x.relu() + x.transpose(2, 3)


@pytest.mark.parametrize(
    ("model", "base", "sizes", "message"),
    [
        (flattened(), (1, 8, 8), [(1, 10, 10)], r"'2' \(reshape\) fixes the size"),
        (Sentence(), (7, 8), [(12, 8)], r"fixes the size \(its table .* convert at the largest"),
        (Sentence(7), (7, 8), [(12, 8)], "fixes the size"),
        (Averaged(), (3, 8, 6), [(3, 9, 9)], "has another .* at this size, computed from it"),
        (Branch(lambda s: s[2] > 8), (3, 8, 6), [(3, 9, 9)], "computes another function"),
        (Pyramid(), (3, 16, 12), [(3, 5, 5)], r"'conv2' \(conv\) fixes the size"),
        (Pyramid(), (3, 16, 12), [(3, 0, 5)], "a size is the shape of one sample"),
        (Pyramid(), (3, 16, 12), ["large"], "a size is the shape of one sample"),
    ],
)
def test_refused_by_convert(model, base, sizes, message):
    with pytest.raises(sg.InputError, match=message):
        quick(model, images(*base), sizes=sizes)


@pytest.mark.parametrize(
    ("model", "base", "asked", "other"),
    [
        # alike at the sizes asked for, other at the one that follows
        (Padded(), (3, 8, 6), (3, 10, 12), (3, 9, 6)),
        (Branch(lambda s: s[2] % 2 == 0), (3, 8, 6), (3, 10, 12), (3, 9, 6)),
        (Branch(lambda s: s[2] < 50), (3, 8, 6), (3, 10, 12), (3, 50, 12)),
        (Branch(lambda s: s[2] < 4 * s[3]), (3, 8, 6), (3, 10, 12), (3, 64, 6)),
        (Square(), (3, 8, 8), (3, 10, 10), (3, 8, 10)),
    ],
    ids=["padding", "parity", "large", "wide", "square"],
)
def test_what_two_sizes_do_not_show(model, base, asked, other):
    network = quick(model, images(*base), sizes=[asked])
    snn, x = sg.build(network), images(*asked)
    torch.testing.assert_close(snn.ann(x), model(x))
    with pytest.raises(sg.InputError, match="does not run on samples"):
        sg.run(snn, images(*other))


def test_a_threshold_on_the_size_bounds_what_is_proved():
    model = Branch(lambda s: s[2] < 50)
    network = quick(model, images(3, 8, 6), sizes=[(3, 10, 12)])
    bounds = network.provenance["sizes"]["between"]["input"]
    assert bounds[0] == [3, 3] and bounds[1][1] == 49
    x = images(3, 49, 80)
    torch.testing.assert_close(sg.build(network).ann(x), model(x))


def test_without_a_check_nothing_runs_elsewhere():
    network = quick(Pyramid(), images(3, 16, 12))
    assert "sizes" not in network.provenance
    with pytest.raises(sg.InputError, match=r"the input is \[B, 3, 16, 12\]"):
        sg.run(sg.build(network), images(3, 19, 23))
    with pytest.raises(sg.InputError, match=r"converted for one size\. .*sizes=\[\.\.\.\]"):
        network.at_size(3, 19, 23)
    assert network.at_size(3, 16, 12) is network
    linear = quick(flattened(), images(1, 8, 8))
    with pytest.raises(sg.InputError, match=r"'2' \(reshape\) fixes the size"):
        linear.at_size(1, 10, 10)
    with pytest.raises(sg.InputError, match="a size is the shape of one sample"):
        linear.at_size(1, 10.5, 10)


def test_a_scale_for_each_place_fixes_the_size(network):
    (first, *_) = network.neurons
    one = replace(first, scale=torch.ones(1, 14, 10))
    with pytest.raises(sg.InputError, match=f"'{first.name}' .*its scale .* for each position"):
        network.with_nodes({first.name: one}).at_size(3, 19, 23)


# -- token ids and masks --------------------------------------------------------------------------


class Tokens(nn.Module):
    """Token ids and a padding mask to the vector of a sentence."""

    def __init__(self, longest):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(longest, 8)
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.places(torch.arange(length))
        q, k, v = self.qkv(x).view(-1, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = attention_mask[:, None, None, :].bool()
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm(x + F.gelu(a.transpose(1, 2).reshape(-1, length, 8)))
        return (x * attention_mask.unsqueeze(-1)).sum(1)


def sentences(length, count=16):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(20, (count, length), generator=generator)
    ends = torch.randint(2, length + 1, (count, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < ends).long()}


def both(length):
    return {"input_ids": (length,), "attention_mask": (length,)}


def test_token_ids_of_several_lengths(tmp_path):
    model = Tokens(12).eval()
    network = quick(model, sentences(12), sizes=[both(7), both(5)])
    sg.save(network, tmp_path / "n.h5")
    loaded, runner = sg.load(tmp_path / "n.h5"), Runner(tmp_path / "n.h5")
    for simulator in ("spikingjelly", "norse"):
        snn = sg.build(loaded, simulator)
        for length in (12, 7, 5, 12):
            x, other = sentences(length), quick(model, sentences(length))
            planned = {n.name: replace(n, shape=other[n.name].shape) for n in network.neurons}
            y = sg.run(snn, x)[1]
            assert torch.equal(y, sg.run(sg.build(other.with_nodes(planned), simulator), x)[1])
            torch.testing.assert_close(snn.ann(x), model(**x).detach(), rtol=1e-4, atol=1e-5)
            at = sg.build(loaded.at_size(both(length)), simulator)
            assert torch.equal(y, sg.run(at, x)[1])
            arrays = {name: value.numpy() for name, value in x.items()}
            assert_near(runner.run(arrays).outputs[1], y)
        with pytest.raises(sg.InputError, match=r"does not run on samples .*\[6\]"):
            sg.run(snn, sentences(6))
    with pytest.raises(sg.InputError, match="for the inputs input_ids, attention_mask"):
        loaded.at_size(7)
