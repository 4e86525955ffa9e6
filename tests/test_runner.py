"""The NumPy runner is the torch definition, cell by cell, and needs no torch."""

import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import test_save_load
import torch
from data import digits
from networks import load_network

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import Constant, Function, Input, Linear, SignGDNeuron
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.exporters.hdf5.content import Record
from spikingjelly_signgd.exporters.hdf5.layout import read
from spikingjelly_signgd.exporters.hdf5.runner import Runner
from spikingjelly_signgd.neurons import PoissonCodingParameters, poisson_spikes

SIGNGD: list[tuple[str, int | None, int]] = [
    (name, None, 32) for name in ("vgg", "resnet", "convnext", "mixer", "resmlp")
]
GROUP: list[tuple[str, int | None, int]] = [
    (name, levels, steps) for name in ("vgg", "resnet") for levels in (4, 8) for steps in (1, 4)
]
IMAGES = {"mixer": 8, "resmlp": 8}  # of the others 20


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runner")


@cache
def converted(name, levels, time_steps):
    model = load_network(name, "digits", qcfs=levels)
    # a dead zone is in test_files_of_silence.py
    options = {"method": "group"} if levels else {"method": "signgd", "dead_zone": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        images = digits().train.images[:128]
        return sg.convert(model, images, time_steps=time_steps, tune=False, **options)


def defined(network, x, steps, spikes="decoded"):
    """By SpikingJelly's nodes and the torch definition: outputs of every step, spikes, v."""
    snn = sg.build(network, spikes=spikes, kernels="torch").to(x.dtype)
    fired, v, names = {}, {}, {node.name for node in network.neurons}

    def keep(sent):
        if sent.node.name in names:
            events = sent.events
            fired[sent.node.name] = (
                events.number if events.fires is None else events.fires
            ).numpy()

    for name in names:
        snn.neuron(name).store_v_seq = True
    with torch.no_grad(), snn.for_sequences(), listening(snn, keep):
        outputs, _ = snn.advance(x, steps)
    for name in names:
        v[name] = snn.neuron(name).v_seq.numpy()
    return outputs, fired, v


def mismatches(have, want):
    assert have.keys() == want.keys()
    assert all(have[name].shape == want[name].shape for name in want)
    return sum(int((have[name] != want[name]).sum()) for name in want)


def leaves_of(structure):
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, (list, tuple)):
        return [leaf for item in structure for leaf in leaves_of(item)]
    return [np.asarray(structure)]


def assert_close(have, want, tolerance=1e-10):
    for a, b in zip(leaves_of(have), leaves_of(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "levels", "steps"), SIGNGD + GROUP)
def test_every_spike_of_the_examples_is_the_definitions(data, folder, name, levels, steps):
    network = converted(name, levels, steps)
    path = folder / f"{name}{levels}{steps}.h5"
    sg.save(network, path)
    test_save_load.assert_equal_networks(sg.load(path), network)
    view = "signed" if levels is None else "decoded"
    x = data.test.images[: IMAGES.get(name, 20)]
    outputs, fired, v = defined(network, x.double(), steps, view)
    result = Runner(path).run(x.double(), range(1, steps + 1), values=True)
    assert mismatches(result.spikes, fired) == 0
    for t in range(1, steps + 1):
        assert_close(result.outputs[t], outputs[t - 1])
    for neuron in v:
        np.testing.assert_allclose(result.values[neuron], v[neuron], rtol=0, atol=1e-10)

    outputs, fired, _ = defined(network, x, steps, view)
    single = Runner(path, np.float32).run(x, steps)
    wrong, cells = mismatches(single.spikes, fired), sum(v.size for v in fired.values())
    # sums of products round differently; a spike that moves by it moves others after it
    print(f"{name} {levels} T={steps} float32: {wrong} of {cells} spikes differ")
    assert wrong <= (0.02 if levels is None else 1e-4) * cells
    assert single.outputs[steps].dtype == np.float32
    assert_close(single.outputs[steps], outputs[-1], 0.1 if wrong else 1e-5)


@pytest.mark.parametrize("name", [n for n in test_save_load.NETWORKS if "poisson" not in n])
@pytest.mark.spikingjelly
def test_every_option_of_a_conversion(folder, name):
    """Per-channel scales, resting values, momentum, real and spike coding, lists, mixed methods."""
    make, options = test_save_load.NETWORKS[name]
    x = test_save_load.X.double()
    network = sg.convert(make(), test_save_load.X, **{"time_steps": 16, **options})
    sg.save(network, folder / "n.h5")
    steps = network.time_steps
    runner = Runner(folder / "n.h5")
    views = {"decoded": "decoded"} | ({"signed": "spike"} if runner.view == "spike" else {})
    assert (runner.view == "spike") == (name not in ("group", "mixed"))
    for spikes, view in views.items():
        outputs, fired, _ = defined(network, x, steps, spikes)
        result = runner.run(x.numpy(), (steps, 1), view=view)
        assert mismatches(result.spikes, fired) == 0, view
        assert list(result.outputs) == [steps, 1]
        for t in (1, steps):
            last = leaves_of(outputs)
            assert_close(result.outputs[t], [out[t - 1] for out in last])


def test_resting_values(folder):
    model = test_save_load.image_model()
    x = test_save_load.X
    network = sg.convert(model, x, time_steps=8, resting="mean", scale="tensor")
    sg.save(network, folder / "n.h5")
    outputs, fired, _ = defined(network, x.double(), 8, "signed")
    result = Runner(folder / "n.h5").run(x.double(), 8)
    assert mismatches(result.spikes, fired) == 0
    assert_close(result.outputs[8], [out[-1] for out in leaves_of(outputs)])
    assert isinstance(result.outputs[8]["parts"], tuple)


@pytest.mark.parametrize("name", ["poisson", "group, poisson"])
def test_poisson_spikes_are_given(folder, name):
    make, options = test_save_load.NETWORKS[name]
    x = test_save_load.X
    network = sg.convert(make(), x, **{"time_steps": 8, **options, "resting": "zero"})
    sg.save(network, folder / "n.h5")
    runner = Runner(folder / "n.h5")
    with pytest.raises(sg.FormatError, match="torch's generator.*input_spikes"):
        runner.run(x.numpy(), 8)
    (encoder,) = [node for node in network.nodes if node.kind == "encoder"]
    p = PoissonCodingParameters(encoder.scale, encoder.seed)
    coded = torch.stack([poisson_spikes(x.double(), t, p) for t in range(1, 9)])
    outputs, fired, _ = defined(network, x.double(), 8)
    result = runner.run(x.double(), 8, input_spikes=coded)
    assert mismatches(result.spikes, fired) == 0
    assert_close(result.outputs[8], [out[-1] for out in leaves_of(outputs)])
    with pytest.raises(sg.InputError, match=r"input_spikes are \[T, B, ...\] with T >= 8"):
        runner.run(x.numpy(), 8, input_spikes=coded[:7])


@pytest.mark.parametrize("name", ["signgd", "paper", "momentum", "group", "mixed"])
@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.spikingjelly
def test_a_sequence_of_inputs(folder, name, delay):
    make, options = test_save_load.NETWORKS[name]
    network = sg.convert(make(), test_save_load.X, **{"time_steps": 16, **options})
    sg.save(network, folder / "n.h5")
    x_seq = torch.rand(7, *test_save_load.X.shape, dtype=torch.float64)
    snn = sg.build(network, kernels="torch").double()
    wanted = sg.run(snn, x_seq, (3, 7), sequence=True)
    result = Runner(folder / "n.h5").run(x_seq, (3, 7), sequence=True, delay=delay)
    for t in (3, 7):
        assert_close(result.outputs[t], wanted[t])


@pytest.mark.parametrize(("name", "levels", "steps"), [*SIGNGD, GROUP[1], GROUP[-1]])
def test_one_step_of_delay_a_layer_shifts_and_changes_nothing(data, folder, name, levels, steps):
    sg.save(converted(name, levels, steps), folder / "n.h5")
    runner = Runner(folder / "n.h5")
    x = data.test.images[:5].numpy()
    steps = min(steps, 12)
    times = range(1, steps + 1)
    at_once = runner.run(x, times, values=True)
    later = runner.run(x, times, delay=True, values=True)
    assert later.output_lag == max(later.lags.values()) + 1
    assert later.steps == steps + later.output_lag and at_once.steps == steps
    assert set(at_once.lags.values()) == {0} and at_once.output_lag == 0
    for t in times:
        assert_close(later.outputs[t], at_once.outputs[t], 0)
    for kind in ("spikes", "values"):
        for neuron, values in getattr(at_once, kind).items():
            shifted, lag = getattr(later, kind)[neuron], later.lags[neuron]
            assert np.array_equal(shifted[lag : lag + steps], values)
            assert not shifted[:lag].any() and not shifted[lag + steps :].any()


@pytest.mark.parametrize("function", [False, True])
def test_constants_and_functions_that_are_no_neurons(folder, function):
    schedule = sg.ExponentialSchedule(0.5, 0.8)
    shape, rows = ("1*batch", 6), sg.NONLINEARITIES
    add = {"op": "add", "attributes": {"coefficients": [1.0, -0.5]}, "shape": shape}
    after = Function if function else partial(SignGDNeuron, schedule=schedule, resting=0.25)
    nodes = (
        Input(name="x", shape=shape),
        Constant(name="c", value=torch.linspace(-1, 1, 6), shape=(6,)),
        Linear(name="sum", inputs=("x", "c"), **add),
        SignGDNeuron(
            name="a", inputs=("sum",), shape=shape, function=rows["tanh"], schedule=schedule
        ),
        after(name="b", inputs=("a",), shape=shape, function=rows["exp"]),
        Linear(name="y", inputs=("b", "c"), **add),
    )
    network = sg.SpikingNetwork(nodes, ["y", "c"], 5)
    sg.save(network, folder / "n.h5")
    runner, x = Runner(folder / "n.h5"), torch.randn(3, 6, dtype=torch.float64)
    assert runner.view == ("decoded" if function else "spike")
    spikes = "decoded" if function else "signed"
    outputs, fired, _ = defined(network, x, 5, spikes)
    for delay in (False, True):
        result = runner.run(x, range(1, 6), delay=delay)
        for t in range(1, 6):
            for have, want in zip(result.outputs[t], outputs, strict=True):
                np.testing.assert_allclose(have, want[t - 1].expand(have.shape), atol=1e-12)
        if not delay:
            assert mismatches(result.spikes, fired) == 0


class Fork(torch.nn.Module):
    """A shortcut past two neurons, and outputs of different depth."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(36, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        y = torch.relu(self.a(x.flatten(1)))
        z = torch.relu(self.b(torch.relu(y))) + y
        return {"deep": torch.nn.functional.gelu(z), "shallow": y}


@pytest.mark.parametrize("method", ["signgd", {"": "signgd", "relu": "group"}])
def test_a_shorter_branch_is_held_back(folder, method):
    torch.manual_seed(2)
    network = sg.convert(Fork(), test_save_load.X, method=method, time_steps=6)
    sg.save(network, folder / "n.h5")
    runner = Runner(folder / "n.h5")
    by_kind = {network[name].function.name: lag for name, lag in runner.lags.items()
               if name in network.names()}  # fmt: skip
    assert list(runner.lags.values())[0] == 0
    assert sorted(runner.lags[name] for name in network.names()) == [0, 1, 2, 3]
    assert by_kind["gelu"] == 3 and runner.output_lag == 4
    x = test_save_load.X.numpy()
    at_once = runner.run(x, range(1, 7))
    later = runner.run(x, range(1, 7), delay=True)
    for t in range(1, 7):
        assert_close(later.outputs[t], at_once.outputs[t], 0)


def test_a_neuron_of_the_users_own(folder):
    aten = torch.ops.aten
    row = sg.Nonlinearity("wave", torch.sin, arity=1, fires_at_tie=False)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 8), test_save_load.Sine(), torch.nn.Linear(8, 3)
    )
    x = test_save_load.X
    network = sg.convert(model, x, neurons=sg.NEURONS | {aten.sin.default: row}, time_steps=8)
    sg.save(network, folder / "wave.h5")
    with pytest.raises(sg.FormatError, match=r"'2.wave' uses the nonlinearity 'wave'.*functions="):
        Runner(folder / "wave.h5")
    runner = Runner(folder / "wave.h5", functions={"wave": np.sin})
    outputs, fired, _ = defined(network, x.double(), 8, "signed")
    result = runner.run(x.double(), 8)
    assert mismatches(result.spikes, fired) == 0
    assert_close(result.outputs[8], outputs[-1])


WITHOUT_TORCH = """
import sys

class Absent:
    names = {"torch", "scipy", "spikingjelly", "safetensors"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
from spikingjelly_signgd.exporters.hdf5.runner import Runner

x = np.load("x.npy")
for name in ("vgg", "group", "mixed"):
    result = Runner(f"{name}.h5").run(x, 4)
    np.savez(f"{name}.npz", output=result.outputs[4], **result.spikes)
assert "torch" not in sys.modules
"""


def test_it_runs_where_there_is_no_torch(data, tmp_path):
    x = data.test.images[:4].double().numpy()
    networks = {
        "vgg": converted("vgg", None, 4),
        "group": converted("vgg", 4, 4),
        "mixed": sg.convert(
            load_network("vgg", "digits", qcfs=8), data.train.images[:64],
            method={"": "group", "17": "signgd"}, time_steps=8,
        ),
    }  # fmt: skip
    np.save(tmp_path / "x.npy", x)
    for name, network in networks.items():
        sg.save(network, tmp_path / f"{name}.h5")
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, check=True, timeout=120)
    for name in networks:
        found = np.load(tmp_path / f"{name}.npz")
        result = Runner(tmp_path / f"{name}.h5").run(x, 4)
        assert np.array_equal(found["output"], result.outputs[4])
        assert all(np.array_equal(found[key], result.spikes[key]) for key in result.spikes)


WRONG_INPUTS = [
    (np.zeros((2, 1, 7, 8)), {}, r"the input is \[B, 1, 8, 8\], but x is \[2, 1, 7, 8\]"),
    (np.zeros((2, 1, 8, 8), int), {}, "floating-point, but it is int64; use x / 255.0"),
    (np.full((2, 1, 8, 8), np.nan), {}, "NaN or infinity"),
    (np.zeros((3, 2, 1, 8, 8)), {"sequence": True}, "3 steps, but time_steps asks for 4"),
    (np.zeros((2, 1, 8, 8)), {"view": "rate"}, "view is one of spike, decoded"),
    (np.zeros((2, 1, 8, 8)), {"view": "spike"}, 'requires signGD neurons only.*view="decoded"'),
    (np.zeros((2, 1, 8, 8)), {"input_spikes": 0.0}, "Poisson encoder, but"),
]


@pytest.fixture(scope="module")
def group_runner(folder):
    sg.save(converted("vgg", 4, 4), folder / "group.h5")
    return Runner(folder / "group.h5")


@pytest.mark.parametrize(("x", "options", "message"), WRONG_INPUTS)
def test_wrong_inputs(group_runner, x, options, message):
    with pytest.raises(sg.InputError, match=message):
        group_runner.run(x, 4, **options)


def test_wrong_numbers(group_runner, folder):
    for steps in (0, (), 1.5, (1, True)):
        with pytest.raises(sg.InputError, match="integers >= 1"):
            group_runner.run(np.zeros((1, 1, 8, 8)), steps)
    with pytest.raises(sg.InputError, match="float32 or float64, not in float16"):
        Runner(folder / "group.h5", np.float16)
    schedule = sg.ListSchedule((1.0, 0.6))
    network = sg.convert(
        test_save_load.relu_model(), test_save_load.X, schedule=schedule, time_steps=2
    )
    sg.save(network, folder / "list.h5")
    with pytest.raises(sg.InputError, match="step 3 .* 2 step sizes"):
        Runner(folder / "list.h5").run(test_save_load.X.numpy(), 3)


def test_what_is_kept_is_what_was_asked_for(group_runner):
    x = np.random.default_rng(0).random((2, 1, 8, 8))
    result = group_runner.run(x, 4, record=False)
    assert not result.spikes and not result.values
    result = group_runner.run(x, 4)
    assert {v.dtype for v in result.spikes.values()} == {np.dtype(np.int32)}
    assert max(int(v.max()) for v in result.spikes.values()) > 0 and not result.values


def test_a_content_read_before_runs_too(group_runner, folder):
    x = np.random.default_rng(0).random((2, 1, 8, 8))
    content = read(folder / "group.h5")
    assert np.array_equal(Runner(content).run(x, 4).outputs[4], group_runner.run(x, 4).outputs[4])


def test_a_description_that_contradicts_itself(group_runner):
    content, x = group_runner.content, np.zeros((1, 1, 8, 8))
    (conv, *_) = (n for n in content.nodes if n.kind == "linear" and n["op"] == "conv")
    for changes in (
        {"tensors": {"weight": np.zeros((4, 3, 3, 3))}},
        {"attributes": {**conv["attributes"], "groups": 0}},
        {"attributes": {**conv["attributes"], "padding": [2**40, 2**40]}},
        {"attributes": {**conv["attributes"], "dilation": [99, 99]}},
    ):
        wrong = Record("linear", {**conv.fields, **changes})
        nodes = tuple(wrong if node is conv else node for node in content.nodes)
        with pytest.raises(sg.FormatError, match=f"node '{conv.name}' cannot be computed"):
            Runner(replace(content, nodes=nodes)).run(x, 1)


def test_batches_of_one_and_of_none(group_runner):
    assert group_runner.run(np.zeros((1, 1, 8, 8)), 2).outputs[2].shape == (1, 10)
    assert group_runner.run(np.zeros((0, 1, 8, 8)), 2).outputs[2].shape == (0, 10)
