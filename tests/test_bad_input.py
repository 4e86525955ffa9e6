"""Bad input: a typed error that says the fix, and the user's model left as it was."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


X = torch.linspace(-1, 1, 32).reshape(8, 4)


def with_value(value):
    x = X.clone()
    x[5, 2] = value
    return x


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return sg.convert(small(), X, time_steps=8)


@pytest.fixture(scope="module")
def snn(network):
    return sg.build(network)


CALIBRATION = {
    "an empty tensor": (X[:0], "calibration data is empty; a few dozen"),
    "an empty iterable": ([], "calibration data is empty; a few dozen"),
    "an iterable of empty batches": ([X[:0], (X[:0], 1)], "calibration data is empty"),
    "a scalar": (torch.tensor(1.0), "calibration data is empty"),
    "NaN": (with_value(float("nan")), "batch 0.*NaN or infinity; remove those samples"),
    "infinity in the second batch": (
        [X, with_value(float("-inf"))],
        "batch 1.*NaN or infinity; remove those samples",
    ),
    "integers": ((X * 10).int(), r"torch.int32; convert it as in training.*x.float\(\) / 255"),
    "bytes in pairs": ([((X.abs() * 9).byte(), 0)], "torch.uint8; convert it as in training"),
    "a number": (3, "a tensor .* or an iterable of batches x or .x, y., not int"),
    "None": (None, "a tensor .* or an iterable of batches x or .x, y., not NoneType"),
    "batches of lists": ([X.tolist()], "a tensor x or a pair .x, y., not list"),
    "samples of another shape": (torch.rand(8, 5), "Sequential itself fails on a batch .8, 5."),
    "samples of two shapes": ([X, torch.rand(8, 5)], "samples differ in shape"),
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_data(name):
    data, message = CALIBRATION[name]
    with pytest.raises(sg.CalibrationError, match=f"(?s){message}"):
        sg.convert(small(), data)


@pytest.mark.parametrize("data", ["data.npy"])
def test_what_is_no_data(data):
    with pytest.raises(sg.InputError, match=f"iterable of batches .*, not {data!r}"):
        sg.convert(small(), data)


@pytest.mark.parametrize("name", ["an empty tensor", "NaN", "integers", "None", "a scalar"])
def test_check_refuses_the_same_samples(name):
    with pytest.raises(sg.CalibrationError):
        sg.check(small(), CALIBRATION[name][0])


def test_a_source_network_that_is_not_finite():
    model = small()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    with pytest.raises(sg.CalibrationError, match="model's own output is NaN"):
        sg.convert(model, X)


RUN = {
    "NaN": (with_value(float("nan")), "NaN or infinity; remove or fix"),
    "infinity": (with_value(float("inf")), "NaN or infinity; remove or fix"),
    "integers": ((X * 10).long(), r"torch.int64; convert it as in training"),
    "features": (torch.rand(8, 5), r"input is \[B, 4\], but x is \[8, 5\]"),
    "no batch": (torch.rand(4), r"input is \[B, 4\], but x is \[4\]"),
    "a scalar": (torch.tensor(1.0), r"input is \[B, 4\], but x is \[\]"),
    "a sequence": (torch.rand(8, 2, 4), "A sequence is passed as run.*sequence=True"),
    "no tensor": (None, "a tensor, not NoneType"),
}


@pytest.mark.parametrize("name", RUN)
def test_input_of_run(snn, name):
    x, message = RUN[name]
    with pytest.raises(sg.InputError, match=message):
        sg.run(snn, x, 2)
    with pytest.raises(sg.InputError, match=message):
        sg.evaluate(snn, [x], 2)


def test_a_sequence_shorter_than_the_steps_asked_for(snn):
    with pytest.raises(sg.InputError, match="has 3 steps, but time_steps asks for 4"):
        sg.run(snn, torch.rand(3, 2, 4), 4, sequence=True)
    with pytest.raises(sg.InputError, match=r"\[T, B, 4\], but x is \[2, 4\]"):
        sg.run(snn, torch.rand(2, 4), 1, sequence=True)


@pytest.mark.parametrize("time_steps", [0, -1, True, 2.0, "8", None])
def test_a_wrong_number_of_time_steps(snn, time_steps):
    if time_steps is None:  # the planner's choice
        assert sg.convert(small(), X, time_steps=None).time_steps == 1
    else:
        with pytest.raises(sg.InputError, match="time_steps is an integer of at least 1"):
            sg.convert(small(), X, time_steps=time_steps)
    # None is the T that the network was planned for
    for wrong in (time_steps, (1, time_steps))[time_steps is None :]:
        with pytest.raises(sg.InputError, match="time_steps is an integer of at least 1"):
            sg.run(snn, X, wrong)
        with pytest.raises(sg.InputError, match="time_steps is an integer of at least 1"):
            sg.evaluate(snn, [X], wrong)


def test_no_time_steps_at_all(snn):
    with pytest.raises(sg.InputError, match="time_steps"):
        sg.run(snn, X, ())


@pytest.mark.parametrize("chunk", [0, -3, True, 1.5])
def test_a_wrong_chunk(snn, chunk):
    with pytest.raises(sg.InputError, match="chunk is a number of steps"):
        sg.run(snn, X, 2, chunk=chunk)


def test_an_empty_loader(snn):
    with pytest.raises(sg.InputError, match="loader is empty"):
        sg.evaluate(snn, [], 2)


def test_a_batch_of_three(snn):
    with pytest.raises(sg.InputError, match=r"x or \(x, y\), but the loader gives 3"):
        sg.evaluate(snn, [(X, X, X)], 2)


def test_what_is_not_built_cannot_run(network):
    with pytest.raises(sg.InputError, match=r"build\(network\).*SpikingNetwork"):
        sg.run(network, X, 2)
    with pytest.raises(sg.InputError, match="Sequential"):
        sg.evaluate(small(), [X], 2)


def test_another_simulator(network):
    with pytest.raises(sg.BackendUnavailable, match="'nope'; known: spikingjelly"):
        sg.build(network, "nope")


CHOICES = {
    "method": ("rate", "signgd, group, subgradient"),
    "preset": ("icml", "paper, default"),
    "scale": ("layer", "fitted, channel, tensor"),
    "input_coding": ("latency", "exact, real, spike, poisson"),
    "resting": ("one", "zero, mean"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice(name):
    value, known = CHOICES[name]
    with pytest.raises(sg.InputError, match=f"{name} is one of {known}.*but it is '{value}'"):
        sg.convert(small(), X, **{name: value})


@pytest.mark.parametrize("schedule", [0.15, "exponential"])
def test_what_is_no_schedule(schedule):
    with pytest.raises(sg.InputError, match="schedule is .*ExponentialSchedule"):
        sg.convert(small(), X, schedule=schedule)


@pytest.mark.parametrize("method", [5, ["group"]])
def test_what_is_no_method(method):
    with pytest.raises(sg.InputError, match="method is a name or a dict"):
        sg.convert(small(), X, method=method)


def test_a_method_for_a_path_that_no_neuron_has():
    """A misspelt path would otherwise leave the neuron to the default, without a word."""
    with pytest.raises(sg.InputError, match="'layer1'.*the neurons are: 1"):
        sg.convert(small(), X, method={"layer1": "group"})


@pytest.mark.parametrize("members", [0, 1.5, True])
def test_a_wrong_number_of_members(members):
    with pytest.raises(sg.InputError, match="members is an integer of at least 1"):
        sg.convert(small(), X, method="group", members=members)


@pytest.mark.parametrize("input_scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("coding", ["spike", "poisson"])
def test_a_wrong_input_scale(input_scale, coding):
    with pytest.raises(sg.InputError, match="input_scale is positive and finite"):
        sg.convert(small(), X, input_coding=coding, input_scale=input_scale)


def test_an_unknown_method_of_one_neuron():
    with pytest.raises(sg.InputError, match="method is one of .*'rate'"):
        sg.convert(small(), X, method={"1": "rate"})


def test_a_schedule_shorter_than_the_steps(snn):
    """A user of one: how many there are, and the fix."""
    with pytest.raises(sg.InputError, match="step 5 .* but the list has 4.*longer list"):
        sg.convert(small(), X, schedule=sg.ListSchedule((0.5, 0.3, 0.2, 0.1)), time_steps=5)
    short = sg.build(
        sg.convert(small(), X, schedule=sg.ListSchedule((0.5, 0.3, 0.2, 0.1)), time_steps=4)
    )
    before = sg.run(short, X, 4)[4]
    with pytest.raises(ValueError, match="step 5 was asked for, but the list has 4.*longer list"):
        sg.run(short, X, 5)
    assert torch.equal(sg.run(short, X, 4)[4], before), "the states were reset after the error"


class Broken(nn.Module):
    """Linear, then something that cannot be captured."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)


class DataDependentIf(Broken):
    def forward(self, x):
        y = self.layer(x)
        return y.relu() if y.sum() > 0 else y


class FixedBatch(Broken):
    def forward(self, x):
        return self.layer(x).relu().reshape(8, 2, 2)


class TwoInputs(Broken):
    def forward(self, x, y):
        return self.layer(x) + y


class ReturnsText(Broken):
    def forward(self, x):
        return self.layer(x).relu(), "logits"


class ReturnsNothing(Broken):
    def forward(self, x):
        self.layer(x)


class ReturnsNumberedDict(Broken):
    def forward(self, x):
        return {0: self.layer(x).relu()}


class CountsItsCalls(Broken):
    def forward(self, x):
        self.calls += 1
        return self.layer(x).relu()


class ThroughNumPy(Broken):
    def forward(self, x):
        return torch.from_numpy(self.layer(x).detach().numpy()).relu()


class Raises(Broken):
    def forward(self, x):
        self.seen = self.layer(x)
        self.calls += 1
        raise ValueError("the model's own complaint")


class KeepsValues(Broken):
    """Converts, although its forward sets attributes."""

    steps = 0

    def forward(self, x):
        self.seen = self.layer(x)
        self.steps = self.steps + 1
        return self.seen.relu()


CAPTURE = {
    DataDependentIf: "control flow depends on values.*torch.where",
    FixedBatch: r"fixes the batch size.*x.shape\[0\]",
    TwoInputs: "does not take one tensor.*'y'.*Wrap it in a module",
    ReturnsText: "returns str among its outputs; return tensors",
    ReturnsNothing: "returns NoneType among its outputs; return tensors",
    ReturnsNumberedDict: "dict whose keys are not strings",
    CountsItsCalls: "changes its own state in forward .calls.*Compute it outside forward",
    ThroughNumPy: r"torch.export.export\(model, \(x,\), strict=False\) must succeed",
}


@pytest.mark.parametrize("model", CAPTURE)
def test_a_model_that_cannot_be_captured(model):
    for call in (sg.convert, sg.check):
        made = model()
        before = snapshot(made)
        with pytest.raises(sg.CaptureError, match=f"(?s)({model.__name__}|It).*{CAPTURE[model]}"):
            call(made, X)
        assert_unchanged(made, before)


@pytest.mark.parametrize("what", ["text", None, torch.relu])
def test_what_is_not_a_module(what):
    with pytest.raises(sg.CaptureError, match="a torch.nn.Module can be converted, not"):
        sg.convert(what, X)


def snapshot(model):
    """Everything that a caller could find changed."""
    found = {"names": [name for name, _ in model.named_modules()]}
    found["state"] = {k: v.clone() for k, v in model.state_dict(keep_vars=True).items()}
    found["tensors"] = {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}
    found["gradients"] = [(p.requires_grad, p.grad) for p in model.parameters()]
    found["training"] = [m.training for m in model.modules()]
    found["attributes"] = [
        {k: copy.copy(v) if isinstance(v, (dict, set)) else v for k, v in vars(m).items()}
        for m in model.modules()
    ]
    return found


def assert_unchanged(model, before):
    after = snapshot(model)
    state, expected = after.pop("state"), before["state"]
    assert list(state) == list(expected)
    for name in state:
        assert torch.equal(state[name], expected[name]), f"{name} changed"
    have = after.pop("attributes")
    for old, new in zip(before["attributes"], have, strict=True):  # hooks are among them
        assert list(old) == list(new), "an attribute came or went"
        for key in old:
            same = old[key] == new[key] if not isinstance(old[key], torch.Tensor) else True
            assert same or old[key] is new[key], f"{key} changed"
    assert after == {k: v for k, v in before.items() if k not in ("state", "attributes")}


def model_in_use():
    """Train mode, one part in eval mode, one frozen, a gradient, a hook."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)
    )
    model(X).sum().backward()
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *args: None)
    return model


def test_a_model_in_train_mode_is_converted_as_in_eval_mode():
    model = model_in_use()
    before = snapshot(model)
    snn = sg.build(sg.convert(model, X))
    assert_unchanged(model, before)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    snn.mode = "ann"
    model.eval()
    torch.testing.assert_close(snn(X), model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"method": "group", "members": 8}])
def test_running_does_not_change_the_model_either(options):
    """The network's tensors are its own: they do not move with the model's."""
    model = model_in_use()
    before = snapshot(model)
    network = sg.convert(model, X, **options)
    snn = sg.build(network)
    first = sg.run(snn, X, 4)[4]
    sg.evaluate(snn, [(X, torch.zeros(8, dtype=torch.long))], 4, reference=model)
    snn.double()
    assert_unchanged(model, before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(sg.run(sg.build(network), X, 4)[4], first)


def test_attributes_that_forward_sets_are_not_left_behind():
    model = KeepsValues()
    before = snapshot(model)
    sg.convert(model, X)
    assert_unchanged(model, before)
    assert not hasattr(model, "seen") and model.steps == 0


def failing_half_way():
    model = model_in_use()
    model.append(Raises())
    model[5].dropout.eval()
    model[5].layer = nn.Linear(3, 3)
    return model


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


FAILURES = {
    "in the model itself": (failing_half_way, {}, sg.CalibrationError),
    "unsupported": (lambda: model_in_use().append(Sorted()), {}, sg.UnsupportedOperation),
    "method": (
        lambda: model_in_use().append(nn.GELU()),
        {"method": "group"},
        sg.UnsupportedOperation,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.filterwarnings("ignore::spikingjelly_signgd.LevelsWarning")
def test_the_model_is_left_as_it_was_when_conversion_fails(name):
    make, options, error = FAILURES[name]
    model = make()
    before = snapshot(model)
    with pytest.raises(error):
        sg.convert(model, X, **options)
    assert_unchanged(model, before)


def test_the_model_is_left_as_it_was_when_a_batch_fails_later():
    model = model_in_use()
    before = snapshot(model)
    with pytest.raises(sg.CalibrationError):
        sg.convert(model, [X, with_value(float("nan"))])
    assert_unchanged(model, before)


class Unsupported(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


THREE = {
    "first": ("cos", torch.cos),
    "second.inner": ("cumprod", lambda x: x.cumprod(-1)),
    "third": ("sin", torch.sin),
}


def test_all_unsupported_operations_are_named_at_once():
    model = nn.Sequential()
    model.add_module("first", Unsupported(THREE["first"][1]))
    model.add_module("second", nn.Sequential())
    model.second.add_module("inner", Unsupported(THREE["second.inner"][1]))
    model.add_module("third", Unsupported(THREE["third"][1]))
    before = snapshot(model)
    with pytest.raises(sg.UnsupportedOperation) as caught:
        sg.convert(model, X)
    assert_unchanged(model, before)
    assert [row.path for row in caught.value.blockers] == list(THREE)
    text = str(caught.value)
    for row, (path, (operation, _)) in zip(caught.value.blockers, THREE.items(), strict=True):
        assert operation in row.operation and row.fix
        assert f"'{path}'" in text and row.fix in text
    report = sg.check(model, X)
    assert not report.ok and report.blockers == tuple(caught.value.blockers)
    assert re.search(r"cannot be converted yet; 3 to fix", str(report))


def test_group_lists_all_neurons_that_it_cannot_stand_for():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3), nn.ReLU()
    )
    with pytest.raises(sg.UnsupportedOperation) as caught:
        sg.convert(model, X, method="group", time_steps=8)
    assert len(caught.value.blockers) == 2
    assert "gelu at '1'" in str(caught.value) and "tanh at '3'" in str(caught.value)


def test_every_error_is_one_of_this_packages():
    for name in sg.__all__:
        value = getattr(sg, name)
        if isinstance(value, type) and issubclass(value, Exception) and name.endswith("Error"):
            assert issubclass(value, sg.SignGDError), name


def test_hardly_any_data_is_enough():
    model = Unsupported(F.relu)
    out = sg.run(sg.build(sg.convert(model, X[:1])), X, 32)[32]
    assert out.shape == (8, 4) and bool(out.isfinite().all())


def test_no_samples_give_no_outputs(snn):
    assert sg.run(snn, X[:0], 2)[2].shape == (0, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_beyond_the_classes(snn, label):
    """Counted as wrong predictions they would be an accuracy near 0."""
    classes = sg.run(snn, X, 2)[2].shape[1]
    labels = torch.zeros(len(X), dtype=torch.long)
    labels[2] = label if label < 0 else classes
    with pytest.raises(sg.InputError, match=f"from 0 to {classes - 1}.*but y has"):
        sg.evaluate(snn, [(X, labels)], 2)
