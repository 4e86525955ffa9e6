"""Anytime read-out: the stream is the run, leaving early changes no answer, the rule keeps its
word."""

import json
import math

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import anytime

pytestmark = [
    pytest.mark.spikingjelly,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # one member of a group for eight levels
]

X = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def model(activation=nn.GELU):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), activation(), nn.Conv2d(6, 8, 3), activation(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


def make(method, backend="spikingjelly", dead_zone=0.0, **options):
    if backend == "norse":
        pytest.importorskip("norse")
    if method == "signgd":
        network = sg.convert(model(), X, time_steps=16, dead_zone=dead_zone)
    else:
        network = sg.convert(
            model(lambda: sg.QCFS(8, 0.6)), X, method="group", members=1, time_steps=8
        )
    return sg.build(network, backend, **options)


BUILDS = [
    ("signgd", "spikingjelly", {}),
    ("signgd", "spikingjelly", {"spikes": "signed"}),
    ("signgd", "spikingjelly", {"dead_zone": 2 / 3}),
    ("group", "spikingjelly", {}),
    ("signgd", "norse", {}),
    ("signgd", "norse", {"spikes": "signed"}),
    ("group", "norse", {}),
]


@pytest.mark.parametrize(("method", "backend", "options"), BUILDS)
def test_every_step_is_that_of_the_run(method, backend, options):
    snn = make(method, backend, **options)
    steps = list(sg.stream(snn, X[:7]))
    assert [step.t for step in steps] == list(range(1, snn.network.time_steps + 1))
    run = sg.run(snn, X[:7], range(1, snn.network.time_steps + 1), chunk=1)
    for step in steps:
        assert torch.equal(step.outputs, run[step.t]), f"T = {step.t}"
        assert torch.equal(step.prediction, run[step.t].argmax(1))
        first, second = run[step.t].topk(2, 1).values.T
        torch.testing.assert_close(step.margin, step.t * (first - second))


def test_a_sequence_is_streamed_as_it_is_run():
    snn, x_seq = make("signgd"), torch.stack([X[:5] * (1 + 0.1 * t) for t in range(6)])
    steps = list(sg.stream(snn, x_seq, sequence=True))
    run = sg.run(snn, x_seq, range(1, 7), sequence=True, chunk=1)
    assert len(steps) == 6 and all(torch.equal(s.outputs, run[s.t]) for s in steps)
    assert not torch.equal(steps[-1].outputs, sg.run(snn, x_seq[0], 6)[6])


def test_breaking_off_resets_the_network_and_its_step_mode():
    snn = make("signgd")
    want = sg.run(snn, X[:3], 4)[4]
    for step in sg.stream(snn, X[:9]):
        assert snn.step_mode == "s", "as before, also within the loop"
        if step.t == 3:
            break
    del step
    assert torch.equal(sg.run(snn, X[:3], 4)[4], want)
    stream = sg.stream(snn, X[:9])
    next(stream)
    stream.close()
    assert all(torch.is_tensor(n.v) is False for n in snn.neurons.values()), "states are reset"
    assert snn.listener is None


def test_spikes_are_counted():
    """One sign for each signGD neuron and step; the members of a group neuron that fire."""
    snn = make("signgd")
    neurons = sum(snn.network.count().values())
    assert all((s.spikes == neurons).all() for s in sg.stream(snn, X[:3]))
    snn, fired = make("group"), torch.zeros(3)

    def count(node, inputs, y):
        fired.add_((y[0] > 0).flatten(1).sum(1))

    for node in snn.neurons.values():
        if isinstance(node, sg.GroupNode):
            node.register_forward_hook(count)
    for step in sg.stream(snn, X[:3]):
        torch.testing.assert_close(step.spikes, fired)
        fired.zero_()


@pytest.mark.parametrize(("method", "backend", "options"), BUILDS)
def test_leaving_early_gives_the_answer_of_that_step(method, backend, options):
    """Also for the samples that stay in a batch that others leave."""
    snn = make(method, backend, **options)
    steps = list(sg.stream(snn, X))
    margins = torch.stack([step.margin for step in steps])
    margin = float(margins[len(steps) // 2].median())
    found = sg.early_exit(snn, X, margin)
    done = margins >= margin
    done[-1] = True
    at = done.int().argmax(0)
    assert len(at.unique()) > 3, "samples leave at several steps"
    assert torch.equal(found.steps, at + 1)
    predictions = torch.stack([step.prediction for step in steps])
    assert torch.equal(found.prediction, predictions.gather(0, at[None])[0])
    torch.testing.assert_close(found.margin, margins.gather(0, at[None])[0])
    sent = torch.stack([step.spikes for step in steps]).cumsum(0).gather(0, at[None])[0]
    torch.testing.assert_close(found.spikes, sent)
    assert found.mean_steps == float((at + 1).double().mean())
    json.dumps(found.to_dict())


def test_samples_that_are_done_cost_nothing_more():
    snn, sizes = make("signgd"), []
    snn.neuron(snn.network.neurons[0].name).register_forward_hook(
        lambda module, inputs, y: sizes.append(y.shape[1])
    )
    margin = float(torch.cat([s.margin for s in sg.stream(snn, X)]).median())
    sizes.clear()
    found = sg.early_exit(snn, X, margin)
    assert sizes[0] == len(X) and sizes == sorted(sizes, reverse=True) and sizes[-1] < len(X)
    assert sizes == [int((found.steps >= t).sum()) for t in range(1, len(sizes) + 1)]
    sizes.clear()
    assert sg.early_exit(snn, X, -1.0).mean_steps == 1 and sizes == [len(X)]
    late = sg.early_exit(snn, X, math.inf, max_steps=5)
    assert set(late.steps.tolist()) == {5} and late.steps_saved == 0


def test_a_batch_folded_into_another_dimension_stays():
    """Windows of the image go through as a batch of their own: answers are early all the same."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x):
            parts = x.reshape(-1, 4, 16).reshape(-1, 16)
            return self.head(torch.relu(self.first(parts)).reshape(-1, 4, 12).mean(1))

    snn = sg.build(sg.convert(Windows().eval(), X, time_steps=8))
    assert not anytime.shrinks(snn.network)
    steps = list(sg.stream(snn, X))
    margins = torch.stack([s.margin for s in steps])
    found = sg.early_exit(snn, X, float(margins.median()))
    at = found.steps[None] - 1
    assert len(found.steps.unique()) > 2
    assert torch.equal(
        found.prediction, torch.stack([s.prediction for s in steps]).gather(0, at)[0]
    )


def test_the_rule_is_the_least_margin_that_keeps_the_agreement():
    snn = make("signgd")
    rule = sg.calibrate_exit(snn, [(X[:30], torch.zeros(30)), X[30:]], agreement=0.95)
    assert rule.samples == 60 and rule.agreement >= 0.95 and rule.max_steps == 16
    found = sg.early_exit(snn, X, rule)
    same = found.prediction == snn.ann(X).argmax(1)
    assert float(same.double().mean()) == pytest.approx(rule.agreement)
    assert found.mean_steps == pytest.approx(rule.mean_steps) and rule.mean_steps < 16
    assert rule.spikes_saved == pytest.approx(rule.steps_saved), "a sign for a step"
    assert json.loads(json.dumps(rule.to_dict()))["note"] == rule.note and rule.note in str(rule)
    strict = sg.calibrate_exit(snn, X.split(30), agreement=1.0, reference=model())
    assert strict.margin >= rule.margin and strict.mean_steps >= rule.mean_steps


def test_a_target_out_of_reach_is_said():
    """Outputs of the first steps agree seldom: nobody leaves, and the note says why."""
    snn = make("signgd")
    rule = sg.calibrate_exit(snn, [X], agreement=1.0, max_steps=2)
    assert rule.full_agreement < 1 and rule.margin == math.inf and rule.mean_steps == 2
    assert "no sample exits early" in rule.note and json.dumps(rule.to_dict(), allow_nan=False)


def test_a_rule_that_is_chosen_at_random_is_not_confident():
    """Margins without meaning: on the other half of the samples the agreement is not kept."""
    generator = torch.Generator().manual_seed(0)
    margins = torch.rand(8, 400, generator=generator)
    same = torch.rand(8, 400, generator=generator) < torch.linspace(0.5, 1.0, 8)[:, None]
    rule = anytime._rule(margins, same, torch.ones(8, 400), 0.95)
    assert rule.agreement >= 0.95 and rule.lower_bound < rule.held_out_agreement
    assert rule.lower_bound == pytest.approx(anytime.wilson(rule.held_out_agreement, 400))
    assert "more samples" in rule.note


def test_the_interval_is_wilsons():
    """Brown, Cai & DasGupta, 2001: the end solves (p_hat - p)^2 = z^2 p (1 - p) / n."""
    for share, n in ((0.99, 100), (1.0, 50), (0.5, 1000)):
        p = anytime.wilson(share, n)
        assert (share - p) ** 2 == pytest.approx(1.645**2 * p * (1 - p) / n) and p < share


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda snn: sg.stream(nn.Identity(), X), "build"),  # type: ignore[arg-type]
        (lambda snn: sg.stream(snn, X, 0), "time_steps"),
        (lambda snn: sg.stream(snn, X[:, :, :3]), "the input is"),
        (lambda snn: sg.stream(snn, X[None], 3, sequence=True), "1 steps"),
        (lambda snn: sg.calibrate_exit(snn, []), "fewer than two"),
        (lambda snn: sg.calibrate_exit(snn, [X], agreement=99), "agreement"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(call, message):
    with pytest.raises(sg.InputError, match=message):
        call(make("signgd"))


def test_margins_are_those_of_classifiers():
    snn = sg.build(sg.convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), X, time_steps=4))
    step = next(sg.stream(snn, X))
    with pytest.raises(sg.InputError, match="classifiers"):
        _ = step.margin
    with pytest.raises(sg.InputError, match="classifiers"):
        sg.early_exit(snn, X, 1.0)
