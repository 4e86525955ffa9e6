"""The doctor names the layer that was made wrong, first, and its fix restores the agreement."""

import json
from dataclasses import replace
from functools import cache, partial

import networks
import pytest
import torch
from data import digits
from networks import load_network
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations, diagnose
from spikingjelly_signgd.analysis.doctor import Finding
from spikingjelly_signgd.analysis.examination import Trial
from spikingjelly_signgd.analysis.fixes import planned, planned_schedule
from spikingjelly_signgd.converters import residuals
from spikingjelly_signgd.converters.searching import replanned
from spikingjelly_signgd.core.network import Function, Linear
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES
from spikingjelly_signgd.neurons.schedules import ExponentialSchedule

STEPS = 16
DENSE = "signGD neurons without a dead zone fire at every step"
slow = partial(pytest.param, marks=pytest.mark.slow)
NAMES = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")


@cache
def images():
    return digits().test.images[:64]


@cache
def labels():
    return digits().test.labels[:64]


def model_of(name):
    """``vgg``, ``leaky vgg`` with the same weights, or ``resnet 8`` trained with eight levels."""
    if name == "leaky vgg":
        model = networks.vgg(8, activation=partial(nn.LeakyReLU, 0.1))
        model.load_state_dict(load_network("vgg", "digits").state_dict())
        return model.eval()
    kind, _, levels = name.partition(" ")
    return load_network(kind, "digits", int(levels) if levels else None)


@cache
def converted(name, steps=STEPS, method="signgd"):
    options = {} if method == "group" else {"tune": False, "dead_zone": 0}
    train = digits().train.images[:128]
    return sg.convert(model_of(name), train, method=method, time_steps=steps, **options)


def seeded(network, name, **changes):
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in network.nodes)
    return network.replace(nodes=nodes)


def with_tensors(network, name, **tensors):
    node = network[name]
    kept = {k: v for k, v in {**node.tensors, **tensors}.items() if v is not None}
    return seeded(network, name, tensors=kept)


def examined(network, reference=None, steps=None):
    return diagnose(sg.build(network), images(), labels(), reference=reference, time_steps=steps)


def agreement(network, source):
    """Of the network at its T with another's source network."""
    outputs = sg.run(sg.build(network), images(), network.time_steps)[network.time_steps]
    return float((outputs.argmax(1) == sg.build(source).ann(images()).argmax(1)).float().mean())


def scaled(factor, layer):
    return lambda n: seeded(n, layer, scale=n[layer].scale * factor)


SPIKING = [
    ("vgg", "2", "scale", "raise it by 20", scaled(0.05, "2")),
    ("vgg", "9", "scale", "lower it by 30", scaled(30.0, "9")),
    ("resnet", "max_pool", "scale", "raise it by 20", scaled(0.05, "max_pool")),
    ("convnext", "stage1.act", "scale", "raise it by 25", scaled(0.04, "stage1.act")),
    ("mixer", "blocks.1.norm1", "scale", "raise it by 10", scaled(0.1, "blocks.1.norm1")),
    (
        "vit",
        "blocks.0.self_attn.attention",
        "scale",
        "raise it by 10",
        scaled(0.1, "blocks.0.self_attn.attention"),
    ),
    (
        "resmlp",
        "blocks.1.mlp_channels.1",
        "scale",
        "raise it by 20",
        scaled(0.05, "blocks.1.mlp_channels.1"),
    ),
    (
        "resmlp",
        "blocks.0.mlp_channels.1",
        "resting",
        "start from 0",
        lambda n: seeded(n, "blocks.0.mlp_channels.1", resting=5.0),
    ),
    ("vgg", "13", "resting", "start from 0", lambda n: seeded(n, "13", resting=9.0)),
    (
        "resnet",
        "layer2.relu",
        "schedule",
        "take the one planned for T = 16",
        lambda n: seeded(n, "layer2.relu", schedule=ExponentialSchedule(0.02, 0.9)),
    ),
    (
        "convnext",
        "stem.1.norm",
        "schedule",
        "take the one planned for T = 16",
        lambda n: seeded(n, "stem.1.norm", schedule=ExponentialSchedule(1.0, 0.3)),
    ),
]


@pytest.mark.parametrize(
    ("name", "layer", "cause", "fix", "seed"),
    [slow(*case) if case[0] == "vit" else case for case in SPIKING],
    ids=[f"{s[0]} {s[2]} {s[1]}" for s in SPIKING],
)
def test_spikes(name, layer, cause, fix, seed):
    """A fault of one layer's neurons, of a network that is right without it."""
    healthy = converted(name)
    bad = seed(healthy)
    diagnosis = examined(bad, healthy)
    first = diagnosis.findings[0]
    assert (first.layer, first.cause) == (layer, cause), str(diagnosis)
    assert fix in first.fix and first.fix in first.text and first.applicable
    assert f"'{first.layer}'" in first.text, "a name of digits reads as a count"
    assert first.blame > 0.9
    before, want = diagnosis.agreement[STEPS], agreement(healthy, healthy)
    after = agreement(diagnosis.apply(), healthy)
    assert before < want, "the fault costs nothing"
    assert (after - before) >= 0.95 * (want - before)
    assert diagnosis.fixed[1] == pytest.approx(after)
    ((changed, _),) = [
        (a, b) for a, b in zip(diagnosis.apply().nodes, bad.nodes, strict=True) if a is not b
    ]
    assert changed.name == layer


@pytest.mark.parametrize(
    ("name", "steps"), [("vgg", 2), ("resnet", 3), ("convnext", 4), ("mixer", 4)]
)
def test_too_few_steps(name, steps):
    healthy = converted(name)
    diagnosis = examined(replanned(healthy, steps, 1))
    assert [f.cause for f in diagnosis.findings] == ["steps"], str(diagnosis)
    fixed = diagnosis.apply()
    assert f"T >= {fixed.time_steps}" in diagnosis.findings[0].fix and fixed.time_steps > steps
    worst = max(diagnosis.layers, key=lambda row: row.readout[steps])
    assert diagnosis.findings[0].layer == worst.name
    before, want = diagnosis.agreement[steps], agreement(healthy, healthy)
    assert agreement(fixed, healthy) - before >= 0.95 * (want - before) > 0


def test_run_for_fewer_steps_than_planned():
    network = converted("resnet")
    diagnosis = examined(network, steps=(2, STEPS // 4))
    assert diagnosis.time_steps == (2, 4)
    assert [f.cause for f in diagnosis.findings] == ["steps"]
    assert "it was planned for 16" in diagnosis.findings[0].fix
    assert diagnosis.apply().time_steps == STEPS


def weights(name, change):
    return lambda n: with_tensors(n, name, weight=change(n[name].tensors["weight"]))


def folded_wrongly(n):
    factor = torch.linspace(0.2, 3.0, 64)
    tensors = n["11"].tensors
    weight = tensors["weight"] * factor.view(-1, 1, 1, 1)
    return with_tensors(n, "11", weight=weight, bias=tensors["bias"] * factor)


DESCRIPTION = [
    ("vgg", "11", "norm", "folded wrongly or not at all", folded_wrongly),
    (
        "vgg",
        "7",
        "norm",
        "the offsets of the channels are not",
        lambda n: with_tensors(n, "7", bias=None),
    ),
    ("resnet", "layer1.conv1", "weights", "the opposite sign", weights("layer1.conv1", torch.neg)),
    (
        "resnet",
        "fc",
        "weights",
        "channels in another order",
        weights("fc", lambda w: w.flip(0)),
    ),
    (
        "mixer",
        "blocks.0.channel_mixing.fc1",
        "weights",
        "input channels in another order",
        weights("blocks.0.channel_mixing.fc1", lambda w: w.flip(1)),
    ),
    (
        "leaky vgg",
        "9",
        "slope",
        "negative_slope = 0.5, the source has negative_slope = 0.1",
        lambda n: seeded(n, "9", arguments={"negative_slope": 0.5}),
    ),
    (
        "convnext",
        "stage2.0.act",
        "function",
        "it is relu, the source has gelu",
        lambda n: seeded(n, "stage2.0.act", function=NONLINEARITIES["relu"], arguments={}),
    ),
    (
        "resmlp",
        "blocks.2.mlp_channels.1",
        "function",
        "'tanh', the source has approximate = 'none'",
        lambda n: seeded(n, "blocks.2.mlp_channels.1", arguments={"approximate": "tanh"}),
    ),
    (
        "vit",
        "blocks.1.norm1",
        "norm",
        "layer_norm with eps = 0.5",
        lambda n: seeded(
            n, "blocks.1.norm1", arguments={**n["blocks.1.norm1"].arguments, "eps": 0.5}
        ),
    ),
]


@pytest.mark.parametrize(
    ("name", "layer", "cause", "text", "seed"),
    [slow(*case) if case[0] == "vit" else case for case in DESCRIPTION],
    ids=[f"{s[0]} {s[2]} {s[1]}" for s in DESCRIPTION],
)
def test_description(name, layer, cause, text, seed):
    """A node that is not the source's is named alone, and taken from the reference."""
    healthy = converted(name)
    diagnosis = examined(seed(healthy), healthy)
    assert [(f.layer, f.cause) for f in diagnosis.findings] == [(layer, cause)], str(diagnosis)
    assert text in diagnosis.findings[0].text
    assert f"'{layer}'" in diagnosis.findings[0].text, "a name of digits reads as a count"
    x = images()[:8]
    fixed, right = (sg.run(sg.build(n), x, STEPS)[STEPS] for n in (diagnosis.apply(), healthy))
    assert torch.equal(fixed, right)


def test_reference_is_the_model():
    """The model itself as the reference: its lowering has the nodes of the network."""
    model = model_of("resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bad = weights("layer3.conv2", torch.neg)(converted("resnet"))
    bad = seeded(bad, "relu", scale=bad["relu"].scale * 0.05)
    diagnosis = examined(bad, model)
    found = {f.layer: f.cause for f in diagnosis.findings}
    assert found == {"layer3.conv2": "weights", "relu": "scale"}
    assert all(note.startswith(DENSE) for note in diagnosis.notes)
    assert agreement(diagnosis.apply(), converted("resnet")) >= 0.98
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_scales_that_hide_each_other():
    healthy = converted("vgg")
    bad = scaled(0.1, "13")(scaled(0.05, "3")(healthy))
    diagnosis = examined(bad)
    assert {(f.layer, f.cause) for f in diagnosis.findings} == {("3", "scale"), ("13", "scale")}
    assert agreement(diagnosis.apply(), healthy) == agreement(healthy, healthy)


def test_scales_that_were_never_calibrated():
    """Too small everywhere, by little each: the same T is enough with the calibrated ones."""
    train = digits().train.images[:128]
    bad = sg.convert(model_of("vgg"), train, time_steps=8, scale="unit", tune=False, dead_zone=0)
    diagnosis = examined(bad, bad)
    assert {(f.layer, f.cause) for f in diagnosis.findings} == {(n, "scale") for n in bad.names()}
    assert diagnosis.apply().time_steps == 8 and diagnosis.error[8] > 0.5
    lost = 1 - diagnosis.agreement[8]
    assert lost > 0.1 and 1 - agreement(diagnosis.apply(), bad) <= 0.1 * lost


@pytest.mark.parametrize("name", ["vgg", "convnext"])
def test_scales_that_are_all_too_large(name):
    """Eight signs hide a factor of 4: the agreement is whole, the error four times as large."""
    healthy = sg.convert(model_of(name), digits().train.images[:128], tune=False)
    assert not examined(healthy, healthy).findings
    bad = healthy.with_nodes({n.name: n.resized(4.0) for n in healthy.neurons})
    diagnosis = examined(bad, healthy)
    assert diagnosis.agreement[1] >= 0.95
    assert {(f.layer, f.cause) for f in diagnosis.findings} == {(n, "scale") for n in bad.names()}
    assert all("lower it by 4" in f.text for f in diagnosis.findings)
    for node, want in zip(diagnosis.apply().neurons, healthy.neurons, strict=True):
        assert torch.allclose(torch.as_tensor(node.scale), torch.as_tensor(want.scale))
    learned = bad.replace(provenance={**bad.provenance, "tuning": {}})
    assert not examined(learned, healthy).findings, "they may be large for fewer additions"


@pytest.mark.parametrize("name", [slow(n) if n == "vit" else n for n in NAMES])
def test_healthy(name):
    diagnosis = examined(converted(name), converted(name))
    assert not diagnosis.findings, str(diagnosis)
    assert "nothing to fix" in str(diagnosis)
    assert diagnosis.apply().nodes == converted(name).nodes


@pytest.mark.parametrize("name", [slow("vgg"), slow("convnext"), slow("mixer"), "resmlp"])
def test_tuned(name):
    """Learned scales, resting values and steps are unusual, and no fault; a wrong scale is."""
    network = sg.tune(replanned(converted(name), 8, 1), digits().train.images[:128], iterations=40)
    assert "layers" in network.provenance["tuning"]
    diagnosis = examined(network, converted(name))
    assert not [f for f in diagnosis.findings if f.cause != "steps"], str(diagnosis)
    layer = network.names()[1]
    bad = examined(scaled(0.05, layer)(network))
    assert (bad.findings[0].layer, bad.findings[0].cause) == (layer, "scale"), str(bad)
    assert bad.fixed[1] >= diagnosis.agreement[8] - 0.05


def threshold(factor):
    return lambda node: {"v_threshold": node.v_threshold * factor}


GROUP = [
    ("vgg 8", 4, "9.qcfs", "threshold", threshold(4.0)),
    ("vgg 8", 4, "9.qcfs", "charge", lambda node: {"initial_charge": -1.5}),
    ("resnet 8", 1, "layer2.act1.qcfs", "threshold", threshold(0.2)),
    ("resnet 8", 1, "layer1.act2.qcfs", "members", lambda node: {"members": 1}),
]


@pytest.mark.parametrize(("name", "steps", "layer", "cause", "change"), GROUP)
def test_group(name, steps, layer, cause, change):
    healthy = converted(name, steps, "group")
    assert not examined(healthy, healthy).findings
    diagnosis = examined(seeded(healthy, layer, **change(healthy[layer])), healthy)
    assert [(f.layer, f.cause) for f in diagnosis.findings] == [(layer, cause)], str(diagnosis)
    want = sg.run(sg.build(healthy), images(), steps)[steps]
    assert torch.equal(sg.run(sg.build(diagnosis.apply()), images(), steps)[steps], want)


def test_signed_group_neurons_of_relus():
    """Thresholds that were searched are no fault; one that was changed is."""
    healthy = converted("vgg", 4, "group")
    assert not examined(healthy, healthy).findings
    factor = 0.1
    bad = seeded(healthy, "9", v_threshold=healthy["9"].v_threshold * factor)
    diagnosis = examined(bad)
    assert (diagnosis.findings[0].layer, diagnosis.findings[0].cause) == ("9", "threshold")
    before, want = diagnosis.agreement[4], agreement(healthy, healthy)
    assert agreement(diagnosis.apply(), healthy) - before >= 0.95 * (want - before) > 0
    rows = {row.name: row for row in diagnosis.layers}
    assert rows["3"].kind == "growth" and rows["3"].isolated[4] < 1e-5


class Odd(nn.Module):
    """Two outputs that are no classes, several arguments, a function that is kept."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x):
        y = torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))
        return {"y": self.c(y), "all": [y.sum((1, 2)), torch.softmax(self.c(y), -1)]}


@pytest.mark.parametrize(
    "options", [{}, {"members": 2}, {"keep": ["sigmoid"]}, {"input_coding": "real"}]
)
def test_other_outputs(options):
    model, x = Odd().double(), torch.randn(40, 3, 6, dtype=torch.float64)
    network = sg.convert(model, x, time_steps=24, tune=False, dead_zone=0, **options)
    diagnosis = diagnose(sg.build(network), x, reference=model)
    assert not diagnosis.findings, str(diagnosis)
    assert all(note.startswith(DENSE) for note in diagnosis.notes)
    assert diagnosis.agreement == {24: None} == diagnosis.accuracy
    layer = next(n.name for n in network.neurons if n.function.name == "mul")
    bad = scaled(0.02, layer)(network)
    found = diagnose(sg.build(bad), x, reference=model)
    assert (found.findings[0].layer, found.findings[0].cause) == (layer, "scale")
    assert found.fixed[0] < 1.2 * diagnosis.error[24] + 0.01


def test_mixed_methods_and_the_spike_view():
    model = load_network("vgg", "digits")
    train = digits().train.images[:64]
    method = {"": "signgd", "2": "group"}
    mixed = sg.convert(model, train, method=method, time_steps=STEPS, tune=False)
    assert {row.kind for row in examined(mixed).layers} == {"group", "signgd"}
    network = scaled(0.05, "2")(converted("vgg"))
    found = [
        diagnose(sg.build(network, spikes=view), images()[:32], time_steps=(4, STEPS))
        for view in ("decoded", "signed")
    ]
    ((one,), (other,)) = (diagnosis.findings for diagnosis in found)
    assert (one.layer, one.text) == (other.layer, other.text) and one.layer == "2"
    assert one.blame == pytest.approx(other.blame, abs=0.02)
    for row, twin in zip(found[0].layers, found[1].layers, strict=True):
        for t in (4, STEPS):  # the views round otherwise
            assert row.cumulative[t] == pytest.approx(twin.cumulative[t], rel=0.02)
    assert "T = 4: " in str(found[0])


def test_errors_of_a_layer_by_hand():
    """One layer: isolated and cumulative are the same, and the read-out is that of its values."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    network = sg.convert(model, images(), time_steps=8, tune=False)
    network = seeded(network, "2", scale=network["2"].scale * 0.3)
    diagnosis = diagnose(sg.build(network), images(), time_steps=(2, 8))
    (row,) = diagnosis.layers
    snn = sg.build(network)
    want = snn.ann(images())
    for t, have in sg.run(snn, images(), (2, 8)).items():
        error = float((have - want).norm() / want.norm())
        for kind in (row.isolated, row.cumulative, row.readout, diagnosis.error):
            assert kind[t] == pytest.approx(error, rel=1e-4)
        node = network["2"]
        reach = sum(node.schedule(k) for k in range(1, t + 1)) * node.scale
        assert row.saturated[t] == pytest.approx(float((want > reach).double().mean()))
        cosine = torch.nn.functional.cosine_similarity(have.flatten(), want.flatten(), 0)
        assert row.cosine[t] == pytest.approx(float(cosine), rel=1e-4)
        bias = float((have - want).mean() / want.abs().mean())
        assert row.bias[t] == pytest.approx(bias, rel=1e-3)
        still = (have.amax(0) == have.amin(0)) & (want.amax(0) > want.amin(0))
        assert row.dead[t] == pytest.approx(float(still.double().mean()))
    assert row.neurons == 9 and row.module == "2" and row.kind == "signgd"


@pytest.mark.parametrize(
    ("options", "dead_zone"),
    [({}, 0), ({}, 2 / 3), ({"momentum": 0.5}, 0), ({"members": 3}, 0), ({"members": 3}, 2 / 3)],
)
def test_reach(options, dead_zone):
    """What is called saturated is what a neuron cannot decode, not what it can."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    network = sg.convert(model, images(), time_steps=6, tune=False, dead_zone=dead_zone)
    network = seeded(network, "2", **options)
    far = sg.run(sg.build(network), 1e4 * images(), 6)[6].amax(0)  # as far as it goes
    top = network["2"].reach(6)[1]
    assert torch.allclose(far, torch.as_tensor(top).expand_as(far), rtol=1e-4)


def test_without_a_reference_the_text_says_so():
    bad = weights("layer1.conv1", torch.neg)(converted("resnet"))
    diagnosis = examined(bad)
    assert not any(f.layer == "layer1.conv1" for f in diagnosis.findings)
    assert "without reference=" in str(diagnosis)


def test_another_reference():
    """Nodes that cannot be compared are named; another model is called another one."""
    healthy = converted("vgg")
    fresh = networks.make_network("vgg", "digits").eval()
    text = str(examined(healthy, fresh))
    assert "is it the model that was converted" in text
    with pytest.raises(sg.errors.InputError, match="the reference is another network"):
        examined(healthy, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    renamed = healthy.replace(
        nodes=tuple(
            replace(
                n,
                name={"9": "nine"}.get(n.name, n.name),
                inputs=tuple({"9": "nine"}.get(i, i) for i in n.inputs),
            )
            for n in healthy.nodes
        )
    )
    notes = examined(renamed, healthy).notes
    assert "not compared" in notes[0] and notes[0].endswith(": nine")
    assert notes[1].endswith("lacks: 9")


# -- dead zones --------------------------------------------------------------------------------


def test_neurons_that_are_never_silent():
    """What a dead zone would do is measured: the spikes are those of the network that has one."""
    healthy = converted("resnet", 8)
    (note,) = [note for note in examined(healthy, healthy).notes if note.startswith(DENSE)]
    silent = healthy.with_nodes({n.name: replace(n, dead_zone=2 / 3) for n in healthy.neurons})
    costs = count_operations(sg.build(silent), images())
    assert f"one sends {costs.spikes / costs.neurons:.2f} spikes instead of 8.00" in note
    diagnosis = examined(silent, silent)
    assert f"error is {diagnosis.error[8]:.4f} instead of {examined(healthy).error[8]:.4f}" in note
    assert not any(DENSE in each for each in diagnosis.notes)
    paper = healthy.replace(provenance={**healthy.provenance, "preset": "paper"})
    assert not any(DENSE in each for each in examined(paper, paper).notes)


@pytest.mark.parametrize("plan", [(1, 2), (1, 4), (1, 8), (2, 4), (8, 1)], ids=str)
@pytest.mark.parametrize("scale", ["fitted", {"layer1": 3.0}, "tensor:0.99"], ids=str)
def test_what_was_planned_with_a_dead_zone_is_no_fault(plan, scale):
    steps, members = plan
    train = digits().train.images[:128]
    network = sg.convert(model_of("resnet"), train, time_steps=steps, members=members, tune=False,
                         dead_zone=2 / 3, scale=scale)  # fmt: skip
    assert_as_planned(network)


def assert_as_planned(network):
    trial = Trial(network, images()[:4], network.time_steps)
    for node in network.neurons:
        assert planned_schedule(network, node, network.time_steps) == node.schedule
        causes = {fix.cause for fix in planned(trial, node) if fix.planned}
        assert causes == {"dead zone"}, "that is lowered to half a step"


@pytest.mark.parametrize(
    ("plan", "chosen"),
    [
        ((steps, 4), f"{scale} scales, {kind} steps")
        for steps, kinds in ((1, ["default"]), (2, ["default", "measured"]))
        for kind in kinds
        for scale in ("fitted", "quantile")
    ],
    ids=str,
)
def test_whichever_plan_was_chosen_is_no_fault(plan, chosen, monkeypatch):
    """Each of those that are compared, as if it had the least error."""
    steps, members = plan
    order = [f"{scale} scales, {kind} steps" for scale in ("fitted", "quantile")
             for kind in ("default", "measured")[:steps]]  # fmt: skip
    errors = [float(name != chosen) for name in order]
    run = residuals.run

    def as_if(network, x, choosing=()):
        found, error = run(network, x, choosing)
        return found, errors.pop(0) if errors and not choosing else error

    monkeypatch.setattr(residuals, "run", as_if)
    train = digits().train.images[:128]
    network = sg.convert(model_of("resnet"), train, time_steps=steps, members=members, tune=False)
    assert network.provenance["plan"]["chosen"] == chosen and not errors
    assert_as_planned(network)


def test_a_schedule_that_was_measured():
    """Another one in its place is a fault, and the fix does not call the default one planned."""
    train = digits().train.images[:128]
    healthy = sg.convert(model_of("resnet"), train, time_steps=2, members=4, tune=False)
    assert "measured steps" in healthy.provenance["plan"]["chosen"]
    assert not examined(healthy, healthy).findings
    bad = seeded(healthy, "layer2.relu", schedule=ExponentialSchedule(0.02, 0.9))
    diagnosis = examined(bad, healthy)
    (found,) = diagnosis.findings
    assert (found.layer, found.cause) == ("layer2.relu", "schedule"), str(diagnosis)
    assert "take the default for T = 2" in found.text
    assert diagnosis.fixed[0] < 0.1 * diagnosis.error[2]


def test_more_steps_than_scales_were_fitted_for():
    """What is planned anew is planned with the scales for more steps, as ``convert`` plans it."""
    train = digits().train.images[:128]
    early = sg.convert(model_of("vgg"), train, time_steps=1, members=1, tune=False)
    diagnosis = examined(early)
    (found,) = diagnosis.findings
    steps = diagnosis.apply().time_steps
    assert found.cause == "steps" and steps > 1
    later = sg.convert(model_of("vgg"), train, time_steps=steps, members=1, tune=False)
    outputs = sg.run(sg.build(later), images(), steps)[steps]
    want = sg.build(later).ann(images())
    assert diagnosis.fixed[0] <= 1.2 * float((outputs - want).norm() / want.norm())
    for node in diagnosis.apply().neurons:
        assert planned_schedule(diagnosis.apply(), node, steps) == node.schedule


def test_a_dead_zone_that_is_too_wide():
    """Of one layer: half a step, or more members."""
    train = digits().train.images[:128]
    healthy = sg.convert(model_of("resnet"), train, time_steps=1, members=6, tune=False,
                         dead_zone=1 / 2)  # fmt: skip
    diagnosis = examined(seeded(healthy, "relu", dead_zone=0.98, members=2))
    (found,) = diagnosis.findings
    assert (found.layer, found.cause, found.applicable) == ("relu", "dead zone", True)
    assert "within 0.98 of its last step are not sent; lower it to 0.5, or members >= 3" in str(
        found
    )
    assert diagnosis.fixed[0] < 0.7 * diagnosis.error[1]
    assert diagnosis.apply()["relu"].dead_zone == 0.5


def test_dead_zones_that_are_too_wide_everywhere():
    train = digits().train.images[:128]
    wide = sg.convert(model_of("resnet"), train, time_steps=1, members=2, tune=False,
                      dead_zone=0.98)  # fmt: skip
    diagnosis = examined(wide)
    assert {f.cause for f in diagnosis.findings} == {"dead zone"}
    assert len(diagnosis.findings) > 1  # those where it costs most
    assert diagnosis.fixed[0] < 0.7 * diagnosis.error[1] and diagnosis.apply().time_steps == 1


def test_to_dict():
    diagnosis = examined(scaled(0.05, "2")(converted("vgg")), converted("vgg"), (4, STEPS))
    told = json.loads(json.dumps(diagnosis.to_dict()))
    assert told["findings"][0]["layer"] == "2" and told["layers"][0]["isolated"].keys() == {
        "4",
        "16",
    }
    assert told["accuracy"]["16"] < told["source_accuracy"] <= 1
    assert isinstance(diagnosis.findings[0], Finding)
    assert diagnosis.apply().provenance["doctor"] == [diagnosis.findings[0].text]
    (row, *_) = (r for r in diagnosis.layers if r.name == "2")
    assert row.saturated[STEPS] > 0.2
    assert told["findings"][0]["mend"] == told["findings"][0]["fix"]
    assert told["mended"] == told["fixed"]
    with pytest.warns(DeprecationWarning, match=r"Finding\.mend is called fix"):
        assert diagnosis.findings[0].mend == diagnosis.findings[0].fix
    with pytest.warns(DeprecationWarning, match=r"Diagnosis\.mended is called fixed"):
        assert diagnosis.mended == diagnosis.fixed


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"input_coding": "poisson"}, "Poisson-coded input"),
        ({"method": "subgradient"}, "rate-coded baseline"),
        ({"keep": ["2"]}, "the network has none that spikes"),
    ],
)
def test_refusals(options, match):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    snn = sg.build(sg.convert(model, images(), time_steps=4, **options))
    with pytest.raises(sg.errors.InputError, match=match):
        diagnose(snn, images())


def test_bad_input():
    network = converted("vgg")
    snn = sg.build(network)
    with pytest.raises(sg.errors.InputError, match="diagnose takes the module"):
        diagnose(network, images())
    with pytest.raises(sg.errors.InputError, match="at least 1"):
        diagnose(snn, images(), time_steps=0)
    with pytest.raises(sg.errors.InputError, match="empty batch"):
        diagnose(snn, images()[:0])
    with pytest.raises(sg.errors.InputError, match="one for each sample"):
        diagnose(snn, images(), labels()[:3])
    with pytest.raises(sg.errors.InputError, match="integers from 0 on"):
        diagnose(snn, images(), labels().float())
    with pytest.raises(sg.errors.InputError, match="a label is 10, but the outputs are of 10"):
        diagnose(snn, images(), labels().clamp(min=9) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.05, 0.1, 10.0, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer(name, factor):
    """Wherever a wrong scale costs agreement it is named first, and restored."""
    healthy = converted(name)
    want = agreement(healthy, healthy)
    for layer in healthy.names():
        bad = scaled(factor, layer)(healthy)
        before = agreement(bad, healthy)
        if before > want - 0.05:
            continue
        diagnosis = examined(bad)
        assert (diagnosis.findings[0].layer, diagnosis.findings[0].cause) == (layer, "scale")
        assert diagnosis.fixed[1] - before >= 0.95 * (want - before), str(diagnosis)


def test_every_kind_of_node_is_seen():
    """The seeds above are of nodes that are there."""
    for name, layer, *_ in (*SPIKING, *DESCRIPTION):
        assert isinstance(converted(name)[layer], (Function, Linear))
