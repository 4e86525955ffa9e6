"""evaluate(metric=): each metric against numbers by hand and other libraries; a row per output."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score, max_error, mean_absolute_error, r2_score
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import METRICS, Metric
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.core.metrics import Comparison, usual


def measured(name, have, want, parts=1):
    """The metric of have [N, ...] beside want, which come in so many batches."""
    comparison = Comparison([1], name)
    for x, y in zip(have.chunk(parts), want.chunk(parts), strict=True):
        comparison.add({1: x}, y)
    ((values,),) = (own.values() for own in comparison.result().values())
    return values[0]


BY_HAND = {
    "error": ([[3.0, 8.0], [5.0, 4.0]], [[0.0, 12.0], [5.0, 0.0]], (9 + 16 + 16) ** 0.5 / 13),
    "max_abs": ([[1.0, -2.0], [0.5, 0.0]], [[1.0, 2.0], [0.0, 0.0]], 4.0),
    "mean_abs": ([[1.0, -2.0], [0.5, 0.0]], [[1.0, 2.0], [0.0, 0.0]], 4.5 / 4),
    # of 2, -4 and 1; 0 has no relative error
    "abs_rel": ([[3.0, -2.0], [1.0, 9.0]], [[2.0, -4.0], [1.0, 0.0]], (0.5 + 0.5 + 0.0) / 3),
    # the columns: 1 - 0 / 2 and 1 - 8 / 2
    "r2": ([[0.0, 0.0], [2.0, 2.0]], [[0.0, 2.0], [2.0, 4.0]], (1.0 - 3.0) / 2),
    "agreement": ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [3.0, 1.0]], 0.5),
    "token_agreement": (
        [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]],
        [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]],
        0.75,
    ),
    # two pixels of each of two images: classes 0 1, 1 1 where the source says 0 0, 1 1;
    # 1 of 2 and 2 of 3, and nobody says 2
    "mean_iou": (
        [[[1.0, 0.0], [0.0, 1.0], [-1, -1]], [[0.0, 0.0], [1.0, 1.0], [-1, -1]]],
        [[[1.0, 1.0], [0.0, 0.0], [-1, -1]], [[0.0, 0.0], [1.0, 1.0], [-1, -1]]],
        (1 / 2 + 2 / 3) / 2,
    ),
    "cosine": ([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [3.0, -3.0]], 0.5),
    "worst_cosine": ([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [3.0, -3.0]], 0.0),
    # the pairs 01, 02, 03, 12, 13, 23 have cosines 1, 0, 0, 0, 0, 1 and 1, 0, 0, 0, 0, 0
    "rank_correlation": (
        [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]],
        [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        # ranks less 3.5: 2, -1, -1, -1, -1, 2 and 2.5, -0.5 five times: 7.5 - 1.5
        6 / (12 * 7.5) ** 0.5,
    ),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", METRICS)
def test_by_hand(name, parts):
    have, want, value = BY_HAND[name]
    have, want = torch.tensor(have), torch.tensor(want)
    assert measured(name, have, want, parts) == pytest.approx(value, rel=1e-12, abs=1e-12)


def test_against_other_libraries():
    """Also where values are equal, as those of spiking networks often are."""
    generator = torch.Generator().manual_seed(0)
    want = torch.randn(40, 6, generator=generator)
    have = (want + 0.3 * torch.randn(want.shape, generator=generator)).mul(4).round() / 4
    assert measured("r2", have, want, 3) == pytest.approx(r2_score(want, have))
    assert measured("mean_abs", have, want) == pytest.approx(mean_absolute_error(want, have))
    most = max_error(want.flatten(), have.flatten())
    assert measured("max_abs", have, want) == pytest.approx(most)
    pairs = np.triu_indices(40, 1)
    similar = [
        np.array([[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x])
        for x in (have.double().numpy(), want.double().numpy())
    ]
    rank = spearmanr(*(each.round(12)[pairs] for each in similar)).statistic
    assert measured("rank_correlation", have, want, 4) == pytest.approx(rank, rel=1e-9)
    maps, source = torch.randn(2, 5, 7, 8, 9, generator=generator)
    maps = source + maps
    iou = jaccard_score(source.argmax(1).flatten(), maps.argmax(1).flatten(), average="macro")
    assert measured("mean_iou", maps, source, 2) == pytest.approx(iou)


def test_a_constant_target_counts_as_scikit_learn_counts_it():
    want = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    for have in (want.clone(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])):
        assert measured("r2", have, want) == pytest.approx(r2_score(want, have))


@pytest.mark.parametrize("name", ["error", "abs_rel", "rank_correlation"])
def test_without_a_meaning_there_is_no_value(name):
    assert measured(name, torch.ones(2, 3), torch.zeros(2, 3)) is None


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((8, 10), ["error", "agreement"]),
        ((8, 1), ["error", "mean_abs", "max_abs", "r2"]),
        ((8,), ["error", "mean_abs", "max_abs", "r2"]),
        ((8, 16, 32), ["error", "cosine", "worst_cosine"]),
        ((8, 1, 12, 12), ["error", "mean_abs", "max_abs", "abs_rel"]),
        ((8, 21, 12, 12), ["error", "agreement", "mean_iou"]),
    ],
)
def test_what_is_usual_fits(shape, names):
    assert list(usual(shape)) == names
    assert all(METRICS[name].fits(shape) for name in names)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    comparison = Comparison([4])
    comparison.add({4: x}, x)
    zero = {"error", "mean_abs", "max_abs", "abs_rel"}
    found = comparison.result()["output"]
    assert found == {n: (pytest.approx(0.0 if n in zero else 1.0),) for n in names}


# -- networks -----------------------------------------------------------------------------------


class Heads(nn.Module):
    """[B, 4] to a dict of scores [B, 3], and a tuple of a number [B, 1] and a map [B, 2, 4, 4]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.scores, self.size, self.map = nn.Linear(16, 3), nn.Linear(16, 1), nn.Linear(16, 32)

    def forward(self, x):
        h = self.body(x)
        return {"scores": self.scores(h), "more": (self.size(h), self.map(h).view(-1, 2, 4, 4))}


X = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return Heads().eval()


@pytest.fixture(scope="module")
def snn(model):
    return sg.build(sg.convert(model, X, time_steps=8, tune=False))


def test_a_row_for_each_output(snn, model):
    found = sg.evaluate(snn, [X[:5], X[5:]], (1, 8), reference=model)
    outputs, want = sg.run(snn, X, (1, 8)), snn.ann(X)
    assert {name: list(own) for name, own in found.outputs.items()} == {
        "scores": ["error", "agreement"],
        "more.0": ["error", "mean_abs", "max_abs", "r2"],
        "more.1": ["error", "agreement", "mean_iou"],
    }
    for i, t in enumerate((1, 8)):
        pairs = [
            (outputs[t]["scores"], want["scores"]),
            *zip(outputs[t]["more"], want["more"], strict=True),
        ]
        for own, (y, z) in zip(found.outputs.values(), pairs, strict=True):
            assert own["error"][i] == pytest.approx(float((y - z).norm() / z.norm()), rel=1e-5)
        squares = [sum(float(z.square().sum()) for z in each)
                   for each in ([y - z for y, z in pairs], [z for _, z in pairs])]  # fmt: skip
        assert found.error[i] == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-5)
    assert found.agreement == found.accuracy == (None, None)
    rows = found.to_dict()["outputs"]
    assert [(row["T"], row["output"]) for row in rows] == [
        (t, name) for t in (1, 8) for name in ("scores", "more.0", "more.1")
    ]
    text = str(found).splitlines()
    assert len(text) == 7 and text[0].split()[:3] == ["T", "output", "error"]
    assert text[2].split()[:2] == ["1", "more.0"]


def test_metrics_of_one_output_and_functions_of_the_caller(snn, model):
    def bias(have, want):
        return (have - want).mean()

    chosen = {"scores": ["cosine", bias], "more.0": lambda have, want: len(have)}
    found = sg.evaluate(snn, [X[:5], X[5:]], 8, reference=model, metric=chosen).outputs
    assert list(found["scores"]) == ["cosine", "bias"] and list(found["more.0"]) == ["<lambda>"]
    assert found["more.0"]["<lambda>"] == (12.0,), "of all samples, not of a batch"
    off = float(bias(sg.run(snn, X, 8)[8]["scores"], model(X)["scores"].detach()))
    assert found["scores"]["bias"] == (pytest.approx(off, rel=1e-5),)
    assert list(found["more.1"]) == ["error", "agreement", "mean_iou"], "the usual ones"
    twice = sg.evaluate(snn, [X], 8, reference=model, metric=[lambda h, w: 1, lambda h, w: 2])
    assert list(twice.outputs["scores"].values()) == [(1.0,), (2.0,)]


def test_a_metric_of_the_caller_in_the_registry(snn, model, monkeypatch):
    row = Metric(lambda have, want: (have > want).double().flatten(1), torch.mean, percent=True)
    monkeypatch.setitem(METRICS, "above", row)
    found = sg.evaluate(snn, [X], 8, reference=model, metric="above")
    above = (sg.run(snn, X, 8)[8]["scores"] > model(X)["scores"]).double().mean()
    assert found.outputs["scores"]["above"] == (float(above),) and " %" in str(found)


def test_a_classifier_is_measured_as_ever_and_by_more():
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3)).eval()
    snn, labels = sg.build(sg.convert(model, X, time_steps=8, tune=False)), model(X).argmax(1)
    plain = sg.evaluate(snn, [(X, labels)], 8, reference=model)
    more = sg.evaluate(snn, [(X, labels)], 8, reference=model, metric=["agreement", "cosine"])
    assert plain.outputs == {} and "outputs" not in plain.to_dict()
    assert (more.accuracy, more.agreement, more.error) == (
        plain.accuracy, plain.agreement, plain.error)  # fmt: skip
    assert more.outputs["output"]["agreement"] == plain.agreement
    assert str(plain) in str(more)
    targets = sg.evaluate(snn, [(X, model(X).detach())], 8, reference=model, metric="r2")
    assert targets.accuracy == (None,), "targets of regression are no labels"
    both = more + sg.evaluate(snn, [X], 4, reference=model, metric=["agreement", "cosine"])
    assert len(both.outputs["output"]["cosine"]) == 2 and both.time_steps == (8, 4)


BAD = {
    "absent": ("absent", "no metric is called 'absent'; known: error, max_abs"),
    "shape": (
        "mean_iou",
        r"for maps of classes .*'scores' is \[B, 3\]; metrics for that shape: error",
    ),
    "tokens": ({"more.1": "cosine"}, r"for vectors .*'more.1' is \[B, 2, 4, 4\]"),
    "one class": ({"more.0": "agreement"}, r"'more.0' is \[B, 1\]"),
    "output": ({"boxes": "error"}, "there is no output 'boxes'; .*: scores, more.0, more.1"),
    "no function": ([3], "a name or a function"),
    "no number": (
        lambda have, want: have - want,
        "'<lambda>' .* must be a number, but it is Tensor",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(snn, model, name):
    metric, message = BAD[name]
    with pytest.raises(sg.InputError, match=message):
        sg.evaluate(snn, [X], 8, reference=model, metric=metric)


def test_a_metric_needs_the_source(snn):
    with pytest.raises(sg.InputError, match="pass reference=model, or reference=snn.source"):
        sg.evaluate(snn, [X], 8, metric="error")
    assert sg.evaluate(snn, [X], 8, metric="error", reference=snn.source).outputs


def test_a_reference_of_other_outputs(snn):
    with pytest.raises(sg.InputError, match=r"returns \{'output': \[12, 3\]\} where the network"):
        sg.evaluate(snn, [X], 8, reference=nn.Linear(4, 3))


def test_the_command_line(model, snn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sg.save(snn.network, "heads.h5")
    np.save("x.npy", X.numpy())
    command = ["evaluate", "heads.h5", "--data", "x.npy", "--time-steps", "8"]
    chosen = ["--metric", "scores=agreement", "--metric", "more.0=r2", "--metric", "more.1=error"]
    assert main([*command, *chosen, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["outputs"]
    assert [set(row) - {"T", "output"} for row in rows] == [{"agreement"}, {"r2"}, {"error"}]
    assert main([*command, "--min-agreement", "1"]) in (0, 5)
    assert "more.1" in capsys.readouterr().out
    assert main([*command, "--metric", "r2", "--min-agreement", "1"]) == 2
    assert "no output was measured so" in capsys.readouterr().err
    assert main([*command, "--metric", "r2", "--metric", "scores=error"]) == 2
    assert "not both" in capsys.readouterr().err
