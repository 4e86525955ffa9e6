"""Converted networks in Norse: every spike and read-out is that of the SpikingJelly build."""

import copy
import pickle
import sys
from pathlib import Path

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.module import NetworkModule, NetworkState
from spikingjelly_signgd.plugins.norse import GroupNeuron, GroupNeuronParameters, NorseNetwork

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import digits  # noqa: E402
from networks import load_network  # noqa: E402

# group neurons are run at every T, also where m T is not the levels of the source
pytestmark = pytest.mark.filterwarnings("ignore::spikingjelly_signgd.LevelsWarning")
DATA = digits()
X = DATA.test.images[:12]
STEPS = (1, 2, 4, 8, 16, 32)
NETWORKS = {name: None for name in ("vgg", "resnet", "convnext", "mixer", "resmlp")}
QCFS = {f"{name} qcfs{levels}": levels for name in ("vgg", "resnet") for levels in (4, 8)}


def convert(name: str, time_steps: int, **options) -> sg.SpikingNetwork:
    """An example network by its default method: QCFS networks become group neurons."""
    levels = (NETWORKS | QCFS)[name]
    model = load_network(name.split()[0], "digits", qcfs=levels)
    method = "signgd" if levels is None else "group"
    return sg.convert(
        *(model, DATA.train.images[:64]),
        **{"method": method, "time_steps": time_steps, "tune": False, **options},
    )


def both(network: sg.SpikingNetwork, **options) -> tuple[NetworkModule, NorseNetwork]:
    snn = sg.build(network, "norse", **options)
    assert isinstance(snn, NorseNetwork)
    options.pop("record_states", None)
    return sg.build(network, "spikingjelly", **options), snn


def views(network: sg.SpikingNetwork) -> tuple[str, ...]:
    return ("decoded",) if network.neurons[0].kind == "group" else ("decoded", "signed")


def assert_equal(actual, expected, what: str) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), what
    else:
        assert type(actual) is type(expected) and len(actual) == len(expected)
        items = expected.items() if isinstance(expected, dict) else enumerate(expected)
        for key, value in items:
            assert_equal(actual[key], value, f"{what}[{key!r}]")


@pytest.mark.parametrize("time_steps", STEPS)
@pytest.mark.parametrize("name", [*NETWORKS, *QCFS])
def test_read_outs_and_spikes_are_equal(name, time_steps):
    """Planned for each T; sequence form, all neurons' v at every step, and so every spike."""
    network = convert(name, time_steps)
    for spikes in views(network):
        theirs, ours = both(network, spikes=spikes, record_states=True)
        for neuron in theirs.neurons.values():
            if hasattr(neuron, "store_v_seq"):
                neuron.store_v_seq = True
                neuron.step_mode = "m"
        for module in theirs.modules():
            if hasattr(module, "step_mode"):
                module.step_mode = "m"
        x_seq = X.expand(time_steps, *X.shape)
        expected = theirs(x_seq)
        y, states = ours(x_seq)
        assert torch.equal(y, expected), spikes
        for node in network.neurons:
            v_seq = theirs.neuron(node.name).v_seq
            assert torch.equal(states.neurons[node.name].v, v_seq), (spikes, node.name)
            assert v_seq.shape[0] == time_steps


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg", {"dead_zone": 2 / 3}),
        ("convnext", {"dead_zone": 2 / 3, "members": 8, "time_steps": 1}),
        ("mixer", {"dead_zone": {"": 0.5, "blocks.1": 0.0}, "members": 4, "time_steps": 2}),
    ],
    ids=["vgg", "convnext", "mixer"],
)
def test_networks_of_silent_neurons_are_equal(name, options, spikes):
    """Read-outs, rasters and every v; a step at a time and a sequence."""
    options = {"time_steps": 4, **options}
    network = convert(name, **options)
    steps = options["time_steps"]
    theirs, ours = both(network, spikes=spikes, record_states=True)
    silent = 0
    assert len({node.dead_zone for node in network.neurons}) == (2 if name == "mixer" else 1)
    for node in network.neurons:
        theirs.neuron(node.name).store_v_seq = True
    expected = torch.stack([theirs(X) for _ in range(steps)])
    y, states = ours(X.expand(steps, *X.shape))
    assert torch.equal(y, expected)
    for node in network.neurons:
        neuron = theirs.neuron(node.name)
        assert torch.equal(states.neurons[node.name].v, neuron.v_seq), node.name
        assert neuron.spike_seq.shape == neuron.v_seq.shape
        silent += int((neuron.spike_seq == 0).sum()) if node.parameters.sparse else 0
    assert silent > 0
    single, state = [], None
    for _ in range(steps):
        out, state = ours(X, state)
        single.append(out)
    assert torch.equal(torch.stack(single), expected)


@pytest.mark.parametrize("name", [*NETWORKS, *QCFS])
def test_single_steps_and_states_between_calls(name):
    """One step at a time, and sequences cut in two, against SpikingJelly's."""
    network = convert(name, 8)
    for spikes in views(network):
        theirs, ours = both(network, spikes=spikes)
        expected, state = [], None
        for step in range(8):
            expected.append(theirs(X))
            y, state = ours(X, state)
            assert torch.equal(y, expected[-1]), (spikes, step)
        whole = torch.stack(expected)
        x_seq = X.expand(8, *X.shape)
        for cut in (1, 3, 7):
            first, state = ours(x_seq[:cut])
            kept = copy.deepcopy(state)
            second, last = ours(x_seq[cut:], state)
            assert torch.equal(torch.cat([first, second]), whole), (spikes, cut)
            again, _ = ours(x_seq[cut:], kept)  # the state that was passed is as it was
            assert torch.equal(again, second)
        y, _ = ours(X, last)  # from a sequence to a step
        assert torch.equal(y, theirs(X))


@pytest.mark.spikingjelly
@pytest.mark.parametrize("name", ["vgg", "convnext", "vgg qcfs4"])
def test_run_and_evaluate(name):
    network = convert(name, 16)
    theirs, ours = both(network)
    expected, actual = sg.run(theirs, X, STEPS[:5]), sg.run(ours, X, STEPS[:5])
    assert_equal(actual, expected, "run")
    assert_equal(sg.run(ours, X, STEPS[:5], chunk=3), expected, "chunks")
    x_seq = torch.rand(5, *X.shape)
    expected = sg.run(theirs, x_seq, 5, sequence=True)
    assert_equal(sg.run(ours, x_seq, 5, sequence=True), expected, "sequence")
    batches = [(DATA.test.images[:40], DATA.test.labels[:40])]
    assert sg.evaluate(ours, batches, (4, 16)) == sg.evaluate(theirs, batches, (4, 16))
    assert_equal(ours.ann(X), theirs.ann(X), "ann")
    ours.mode = "ann"
    y, state = ours(X)
    assert state is None and torch.equal(y, theirs.ann(X))
    with pytest.raises(sg.InputError, match="mode"):
        sg.run(ours, X, 4)


def test_inputs_that_change_with_time():
    """Also in the spike view, which sees the input's increments."""
    network = convert("resnet", 8)
    x_seq = torch.rand(8, *X.shape)
    for spikes in ("decoded", "signed"):
        theirs, ours = both(network, spikes=spikes)
        for module in theirs.modules():
            if hasattr(module, "step_mode"):
                module.step_mode = "m"
        assert torch.equal(ours(x_seq)[0], theirs(x_seq)), spikes


class Branches(nn.Module):
    """Products, maxima, a batch that moves, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        a, b = torch.relu(self.a(x)), torch.sigmoid(self.b(x)) + self.bias
        gated = a * b
        return {"gated": gated, "both": (torch.maximum(a, b), [gated.T.exp().T])}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_coding": "spike"},
        {"input_coding": "real"},
        {"input_coding": "poisson"},
        {"preset": "paper"},
        {"schedule": sg.ExponentialSchedule(0.3, 0.95), "momentum": 0.4},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::spikingjelly_signgd.SaturationWarning")
def test_branches_structures_and_codings(options):
    torch.manual_seed(2)
    model, x = Branches(), torch.randn(9, 6)
    network = sg.convert(model, x, time_steps=8, **options)
    theirs, ours = both(network)
    assert_equal(sg.run(ours, x, (1, 3, 8)), sg.run(theirs, x, (1, 3, 8)), str(options))
    first, state = ours(x)
    second, _ = ours(x, state)
    assert_equal(first, theirs(x), "step 1")
    assert_equal(second, theirs(x), "step 2")


@pytest.mark.parametrize(
    "method", ["group", "subgradient", {"": "group", "3": "signgd"}], ids=["group", "sub", "mixed"]
)
@pytest.mark.parametrize("coding", ["exact", "poisson"])
def test_other_methods(method, coding):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(9, 6)
    network = sg.convert(model, x, method=method, time_steps=8, input_coding=coding)
    theirs, ours = both(network)
    assert_equal(sg.run(ours, x, (1, 3, 8)), sg.run(theirs, x, (1, 3, 8)), str(method))
    single, state = ours(x)
    assert_equal(single, theirs(x), "step")


# -- at home in Norse, and its contracts ----------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return convert("vgg", 8)


def test_in_sequential_state_and_lift(network):
    snn = sg.build(network, "norse")
    x_seq = X.expand(6, *X.shape)
    expected, state = snn(x_seq)
    model = norse.SequentialState(
        nn.Identity(), snn, GroupNeuron(GroupNeuronParameters(method="heaviside"))
    )
    assert model.stateful_layers == [False, True, True]
    y, states = model(x_seq)
    again, states = model(x_seq, states)
    assert y.shape == again.shape == (6, 12, 10) and isinstance(states[1], NetworkState)
    lifted, last = norse.Lift(snn)(x_seq)
    assert torch.equal(lifted, expected)
    assert_equal(
        [last.neurons[name].v for name in network.names()],
        [state.neurons[name].v for name in network.names()],
        "states",
    )


def test_recorded_states_are_those_of_every_step(network):
    snn = sg.build(network, "norse", record_states=True)
    _, recorded = snn(X.expand(4, *X.shape))
    plain, state = sg.build(network, "norse"), None
    for step in range(4):
        _, state = plain(X, state)
        for name in network.names():
            assert torch.equal(recorded.neurons[name].v[step], state.neurons[name].v)
            assert recorded.neurons[name].t[step] == step + 1


def test_copied_pickled_moved_and_loaded(network):
    snn = sg.build(network, "norse")
    expected, state = snn(X)
    for again in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(again(X, pickle.loads(pickle.dumps(state)))[0], snn(X, state)[0])
    other = sg.build(convert("vgg", 8, scale="channel:0.9"), "norse")
    assert not torch.equal(other(X)[0], expected)
    other.load_state_dict(snn.state_dict())  # weights and scales
    assert torch.equal(other(X)[0], expected)
    with pytest.raises(sg.FormatError, match="schedule="):  # planned for other step sizes
        sg.build(convert("vgg", 4), "norse").load_state_dict(snn.state_dict())
    snn.double()
    y, state = snn(X.double())
    assert y.dtype == torch.float64
    assert all(s.v.dtype == torch.float64 for s in state.neurons.values())


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.parametrize("batch", [0, 1])
def test_batch_of_one_and_empty_batch(network, spikes, batch):
    snn = sg.build(network, "norse", spikes=spikes)
    y, state = snn(X[:batch])
    assert y.shape == (batch, 10)
    y, state = snn(X[:batch].expand(3, batch, *X.shape[1:]), state)
    assert y.shape == (3, batch, 10)


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.parametrize("name", ["vgg", "convnext"])
def test_a_stale_state_is_an_error(name, spikes):
    snn = sg.build(convert(name, 8), "norse", spikes=spikes)
    for batch, other in ((4, 1), (1, 4), (4, 3)):
        _, state = snn(X[:batch])
        with pytest.raises(sg.InputError, match="state"):
            snn(X[:other], state)
    for wrong in (X, {}, [None], NetworkState({}), NetworkState({"other": None})):
        with pytest.raises(sg.InputError, match="what an earlier call"):
            snn(X, wrong)


def test_wrong_inputs(network):
    snn = sg.build(network, "norse")
    for wrong in (X[0], X.long(), X[:, :, :4], X.expand(2, 2, *X.shape), [1.0]):
        with pytest.raises(sg.InputError, match="input"):
            snn(wrong)
    with pytest.raises(sg.BackendUnavailable, match="cuda"):
        sg.build(network, "norse", kernels="cupy")(X)
    with pytest.raises(sg.BackendUnavailable, match="spikingjelly, norse"):
        sg.build(network, "brian")
    with pytest.raises(ValueError, match="for signGD"):
        sg.build(convert("vgg qcfs4", 4), "norse", spikes="signed")


def test_choices():
    x = X.double()
    network = convert("vgg", 8, dead_zone=0)
    for snn in both(network):
        assert {c.backend for c in snn.choices(X).values()} == {"cpu"}
        assert {c.backend for c in snn.choices(x).values()} == {"torch"}
        assert list(snn.choices(X)) == network.names()


@pytest.mark.parametrize(
    ("name", "spikes"),
    [
        pytest.param("vgg", "decoded", marks=pytest.mark.slow),
        pytest.param("vgg", "signed", marks=pytest.mark.slow),
        ("vgg qcfs4", "decoded"),
    ],
)
def test_compiles_in_one_graph(name, spikes):
    """State in, state out; one graph for the first sizes, one for all others."""
    options = {} if "qcfs" in name else {"dead_zone": 0}
    snn = sg.build(convert(name, 16, **options), "norse", spikes=spikes)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(snn, fullgraph=True, backend=counter)
    with torch.no_grad():
        for steps, batch in ((8, 6), (5, 4), (12, 3)):
            x_seq = X[:batch].expand(steps, batch, *X.shape[1:])
            assert torch.equal(compiled(x_seq)[0], snn(x_seq)[0]), (steps, batch)
        assert counter.frame_count <= 2
        y, state = compiled(x_seq)
        y, state = compiled(x_seq, state)
        other, last = snn(x_seq, snn(x_seq)[1])
        assert torch.equal(y, other)
        for name in snn.network.names():
            assert torch.equal(state.neurons[name].v, last.neurons[name].v)


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.relu(self.linear(x))


def test_no_gradient_is_recorded(network):
    """A converted network is not trained; past its neurons the gradient would be a wrong one."""
    shortcut = sg.convert(Shortcut(), torch.randn(9, 6), time_steps=4)
    for converted, x in ((network, X), (shortcut, torch.randn(9, 6))):
        theirs, ours = both(converted)
        y, state = ours(x.clone().requires_grad_())
        assert not y.requires_grad
        assert not any(s.v.requires_grad for s in state.neurons.values())
        assert not theirs(x.clone().requires_grad_()).requires_grad


def test_run_does_not_record(network):
    plain = sg.build(network, "norse")
    snn = sg.build(network, "norse", record_states=True)
    assert_equal(sg.run(snn, X, 8, chunk=3), sg.run(plain, X, 8), "run")
    assert all(layer.record_states for layer in snn.neurons.values())


def test_a_loaded_network_is_the_saved_one_in_ann_mode_too():
    """Parameters of functions are loaded for neurons and for the source network."""
    x = torch.randn(9, 6)
    saved, other = (
        sg.convert(nn.Sequential(nn.Linear(6, 4), nn.PReLU(init=a)), x, time_steps=4)
        for a in (0.1, 0.9)
    )
    for simulator in ("norse", "spikingjelly"):
        a, b = sg.build(saved, simulator), sg.build(other, simulator)
        b.load_state_dict(a.state_dict())
        assert torch.equal(b.ann(x), a.ann(x)), simulator
        assert_equal(sg.run(b, x, 4), sg.run(a, x, 4), simulator)


def test_no_steps(network):
    for spikes in ("decoded", "signed"):
        with pytest.raises(sg.InputError, match="at least one step"):
            sg.build(network, "norse", spikes=spikes)(X.expand(0, *X.shape))
