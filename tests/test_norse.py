"""Norse's cells and layers of signGD and group neurons: their numbers, and Norse's contracts."""

import copy
import io
import pickle
import sys

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.threshold import threshold
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import Choice, group, group_multi_step, signgd
from spikingjelly_signgd.neurons.scan import scan
from spikingjelly_signgd.plugins import norse as plugin
from spikingjelly_signgd.plugins.norse import (
    Encode,
    EncodeCell,
    EncodeParameters,
    GroupNeuron,
    GroupNeuronCell,
    GroupNeuronParameters,
    GroupNeuronState,
    Growth,
    GrowthCell,
    GrowthParameters,
    PoissonEncode,
    PoissonEncodeCell,
    PoissonEncodeParameters,
    Readout,
    ReadoutCell,
    ReadoutParameters,
    RunningMean,
    RunningMeanCell,
    SignGD,
    SignGDCell,
    SignGDParameters,
    SignGDState,
    Subgradient,
    SubgradientCell,
    SubgradientParameters,
    group_neuron_feed_forward_step,
    signgd_feed_forward_step,
)
from spikingjelly_signgd.plugins.norse.common import METHODS, surrogate

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
X = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))  # [T, B, N]


def signed(*arguments, **options):
    """Parameters of neurons that take and send spikes, with nothing integrated before."""
    given = {"spikes": "signed", "initial_input": 0.0, **options}
    return SignGDParameters(*arguments, **given)


SCALE = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])
THETA = torch.tensor([0.0, 0.25, 0.5, 2 / 3, 0.75])

# every kind of cell with its layer, its parameters, and how many inputs it takes
KINDS = {
    "signGD gelu": (SignGDCell, SignGD, signed("gelu", SCHEDULE, dead_zone=0), 1),
    "signGD relu, scales": (
        SignGDCell,
        SignGD,
        signed("relu", SCHEDULE, SCALE, dead_zone=0),
        1,
    ),
    "signGD mul": (
        SignGDCell,
        SignGD,
        signed("mul", SCHEDULE, 0.7, 0.1, dead_zone=0),
        2,
    ),
    "signGD decoded": (
        SignGDCell,
        SignGD,
        signed("tanh", SCHEDULE, resting=SCALE, spikes="decoded", dead_zone=0),
        1,
    ),
    "signGD silent": (
        SignGDCell,
        SignGD,
        signed("gelu", SCHEDULE, SCALE, members=4, dead_zone=2 / 3),
        1,
    ),
    "signGD silent by channel": (
        SignGDCell,
        SignGD,
        signed("mul", SCHEDULE, 0.7, dead_zone=THETA, spikes="decoded"),
        2,
    ),
    "signGD ternary": (
        SignGDCell,
        SignGD,
        signed("relu", SCHEDULE, SCALE, spikes="ternary", method="heaviside", dead_zone=0.5),
        1,
    ),
    "signGD binary": (
        SignGDCell,
        SignGD,
        signed("relu", SCHEDULE, spikes="binary", offset=SCALE, method="heaviside"),
        1,
    ),
    "signGD momentum": (
        SignGDCell,
        SignGD,
        signed("relu", SCHEDULE, momentum=0.5, method="heaviside"),
        1,
    ),
    "signGD prelu": (
        SignGDCell,
        SignGD,
        signed(
            "prelu",
            SCHEDULE,
            initial_input=SCALE,
            arguments={"weight": SCALE},
            dead_zone=0,
        ),
        1,
    ),
    "group": (GroupNeuronCell, GroupNeuron, GroupNeuronParameters(4, 0.8), 1),
    "group, one member": (GroupNeuronCell, GroupNeuron, GroupNeuronParameters(1), 1),
    "signGD, several signs": (
        SignGDCell,
        SignGD,
        signed("gelu", SCHEDULE, SCALE, members=3, dead_zone=0),
        1,
    ),
    "signGD binary, several signs": (
        SignGDCell,
        SignGD,
        signed("relu", SCHEDULE, spikes="binary", offset=SCALE, method="heaviside", members=2),
        1,
    ),
    "group by channel": (
        GroupNeuronCell,
        GroupNeuron,
        GroupNeuronParameters(4, SCALE, SCALE / 3),
        1,
    ),
    "group, signed": (GroupNeuronCell, GroupNeuron, GroupNeuronParameters(4, 0.3, signed=True), 1),
    "growth": (GrowthCell, Growth, GrowthParameters("maximum"), 2),
    "growth of a window": (
        GrowthCell,
        Growth,
        GrowthParameters("amax", {"dim": (-1,), "keepdim": True}),
        1,
    ),
    "subgradient": (SubgradientCell, Subgradient, SubgradientParameters(SCALE), 1),
    "encode": (EncodeCell, Encode, EncodeParameters(SCHEDULE, 0.3), 1),
    "poisson": (PoissonEncodeCell, PoissonEncode, PoissonEncodeParameters(2.0, 7), 1),
    "read-out": (ReadoutCell, Readout, ReadoutParameters(SCALE), 1),
    "running mean": (RunningMeanCell, RunningMean, None, 1),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def sequence(inputs: int, x: Tensor = X):
    """What a layer takes: x, or a tuple of as many tensors as it has inputs."""
    return x if inputs == 1 else tuple(x * (k + 1) for k in range(inputs))


def at(x, t):
    return tuple(a[t] for a in x) if isinstance(x, tuple) else x[t]


def assert_same_state(a, b):
    assert type(a) is type(b)
    for field, left, right in zip(a._fields, a, b, strict=True):
        assert_same(left, right, field)


def assert_same(a, b, what: str):
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), what
    elif isinstance(a, tuple):
        for k, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{what}[{k}]")
    else:
        assert a == b, what


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu", "square"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_signgd_step_is_the_definition(name, backend):
    """Weighted spikes in, weighted spikes out, with inputs that reach ties."""
    x_seq = torch.randint(-4, 5, X.shape).float() / 4
    p = signed(name, sg.ConstantSchedule(0.25), backend=backend, dead_zone=0)
    q = signgd.SignGDParameters(sg.NONLINEARITIES[name], sg.ConstantSchedule(0.25))
    v = torch.zeros(x_seq.shape[1:])
    start = signgd.SignGDSpikeState((v.clone(),), signgd.SignGDState(v))
    expected, last = scan(signgd.signgd_spike_step, [(x,) for x in x_seq], start, q)
    outputs, state = [], None
    for x in x_seq:
        y, state = signgd_feed_forward_step(x, state, p)
        outputs.append(y)
    assert_same(torch.stack(outputs), expected, "spikes")
    assert_same((state.v, state.t, state.x), (last.neuron.v, last.neuron.t, last.x), "state")


@pytest.mark.parametrize("members", [1, 3, 8])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_group_step_is_the_definition(members, backend):
    q = group.GroupNeuronParameters(members, 1.3)
    x_seq = torch.randint(-8, 9, X.shape).float() * q.theta / 2  # half of them on thresholds
    p = GroupNeuronParameters(members, 1.3, backend=backend)
    expected, last = scan(group.group_step, x_seq, torch.full_like(x_seq[0], q.v_initial), q)
    outputs, state = [], None
    for x in x_seq:
        y, state = group_neuron_feed_forward_step(x, state, p)
        outputs.append(y)
    assert_same(torch.stack(outputs), expected, "output")
    assert_same(state.v, last, "v")


def test_numbers_of_a_short_train():
    """By hand: theta 0.5, v(0) 0.25, so that h is 0.5, 1.25, 0.25, 1.25, clipped to 2 members."""
    p = GroupNeuronParameters(members=2, v_th=1.0)
    y, state = GroupNeuron(p)(torch.tensor([[0.25], [1.25], [0.0], [2.0]]))
    assert y.flatten().tolist() == [0.5, 1.0, 0.0, 1.0]
    assert state.v.tolist() == [1.25]


def test_ties_fire_where_norse_does_not():
    v_th, x = torch.tensor(1.0), torch.tensor([0.5])
    assert threshold(x + 0.5 - v_th, "super", 100.0).item() == 0
    y, _ = group_neuron_feed_forward_step(x, None, GroupNeuronParameters(1))  # h = 1 = theta
    assert y.item() == 1
    for name, sigma in (("relu", 1.0), ("abs", -1.0)):  # v = f(x) = 0: rows differ
        dense = signed(name, SCHEDULE, dead_zone=0)
        y, _ = signgd_feed_forward_step(torch.zeros(1), None, dense)
        assert y.item() == -0.5 * sigma


@pytest.mark.spikingjelly
@pytest.mark.parametrize("inputs", [1, 2])
def test_numbers_are_those_of_the_spikingjelly_nodes(inputs):
    function = "gelu" if inputs == 1 else "div"
    x = sequence(inputs, X.abs() + 1)
    arguments = {
        "signed": {"initial_input": SCALE if inputs == 1 else (SCALE, 0.5)},
        "binary": {"offset": SCALE if inputs == 1 else (SCALE, 1.0)},
        "decoded": {},
    }
    for spikes, options in arguments.items():
        node = sg.SignGDNode(
            function, SCHEDULE, scale=SCALE, spikes=spikes, **{"initial_input": 0.0, **options}
        )
        node.step_mode = "m"
        p = signed(function, SCHEDULE, SCALE, spikes=spikes, **options)
        if spikes == "binary":
            p = p._replace(method="heaviside")
        y, state = SignGD(p)(x)
        assert_same(y, node(*x) if inputs == 2 else node(x), spikes)
        assert_same(state.v, node.v, spikes)
    node = sg.GroupNode(3, 0.9, step_mode="m")
    y, state = GroupNeuron(GroupNeuronParameters(3, 0.9))(X)
    assert_same((y, state.v), (node(X), node.v), "group")


@pytest.mark.spikingjelly
def test_a_network_by_hand_is_that_of_spikingjelly():
    from spikingjelly.activation_based import functional, layer

    first, second = torch.randn(16, 5), torch.randn(3, 16)
    b1, b2 = torch.randn(16), torch.randn(3)
    theirs = nn.Sequential(
        sg.Encode(SCHEDULE),
        layer.Linear(5, 16, bias=False),
        sg.SignGDNode("gelu", SCHEDULE, initial_input=b1, spikes="signed"),
        layer.Linear(16, 3, bias=False),
        sg.Readout(initial=b2),
    )
    ours = norse.SequentialState(
        Encode(EncodeParameters(SCHEDULE)),
        nn.Linear(5, 16, bias=False),
        SignGD(signed("gelu", SCHEDULE, initial_input=b1)),
        nn.Linear(16, 3, bias=False),
        Readout(ReadoutParameters(b2)),
    )
    with torch.no_grad():
        for model in (theirs, ours):
            model[1].weight.copy_(first)
            model[3].weight.copy_(second)
        functional.set_step_mode(theirs, "m")
        assert_same(ours(X)[0], theirs(X), "outputs")


def test_layer_is_the_looped_cell(kind):
    cell_class, layer_class, p, inputs = kind
    x, cell, layer = sequence(inputs), cell_class(p), layer_class(p)
    state, outputs = None, []
    for t in range(len(X)):
        y, state = cell(at(x, t), state)
        outputs.append(y)
    y_seq, last = layer(x)
    assert_same(y_seq, torch.stack(outputs), "output")
    assert_same_state(last, state)
    first, half = layer(at(x, slice(2)))  # resumed
    second, last = layer(at(x, slice(2, None)), half)
    assert_same(torch.cat([first, second]), y_seq, "resumed")
    assert_same_state(last, state)


def test_recorded_states(kind):
    cell_class, layer_class, p, inputs = kind
    x = sequence(inputs)
    y, recorded = layer_class(p, record_states=True)(x)
    assert_same(y, layer_class(p)(x)[0], "output")
    cell, state = cell_class(p), None
    for t in range(len(X)):
        _, state = cell(at(x, t), state)
        for field, value, all_of_it in zip(state._fields, state, recorded, strict=True):
            if isinstance(value, int):
                assert all_of_it[t] == value and all_of_it.dtype == torch.int64
            elif value is None:
                assert all_of_it is None
            else:
                assert_same(at(all_of_it, t), value, field)


def test_norse_own_sequence_runs_the_step():
    """Norse's SNN around the step function, as its users write neurons."""
    from norse.torch.module.snn import SNN

    p = GroupNeuronParameters(3)
    layer = SNN(group_neuron_feed_forward_step, GroupNeuron(p).initial_state, p, record_states=True)
    y, states = layer(X)
    expected, recorded = GroupNeuron(p, record_states=True)(X)
    assert_same((y, states.v), (expected, recorded.v), "SNN")


def test_dt_is_not_used(kind):
    _, layer_class, p, inputs = kind
    x = sequence(inputs)
    assert_same(layer_class(p, dt=1.0)(x)[0], layer_class(p)(x)[0], "dt")


# -- at home in Norse -----------------------------------------------------------------------------


def mixed() -> norse.SequentialState:
    torch.manual_seed(0)
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 3)),
        GroupNeuron(GroupNeuronParameters(4)),
        norse.Lift(nn.AvgPool2d(2)),
        norse.Lift(nn.Conv2d(4, 4, 2)),
        norse.LIF(norse.LIFParameters(v_th=torch.as_tensor(0.05))),
        nn.Flatten(2),
        nn.Linear(16, 5),
        SignGD(signed("tanh", SCHEDULE)),
    )


IMAGES = torch.rand(30, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_sequential_state_with_norse_neurons():
    model = mixed()
    assert model.stateful_layers == [False, True, False, False, True, False, False, True]
    y, state = model(IMAGES)
    assert y.shape == (30, 3, 5)
    assert isinstance(state[1], GroupNeuronState) and isinstance(state[7], SignGDState)
    first, half = model(IMAGES[:2])
    second, last = model(IMAGES[2:], half)
    torch.testing.assert_close(torch.cat([first, second]), y, rtol=0, atol=0)
    assert_same_state(last[7], state[7])


def test_gradients_reach_every_layer():
    model = mixed()
    y, _ = model(IMAGES)
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_hooks_and_cells_in_a_loop():
    seen = []
    model = norse.SequentialState(nn.Linear(5, 7), GroupNeuronCell(), nn.Linear(7, 2), SignGDCell())
    model.register_forward_state_hooks(lambda module, inputs, output: seen.append(type(output[1])))
    state = None
    for x in X:
        y, state = model(x, state)
    assert y.shape == (4, 2)
    assert seen == [GroupNeuronState, SignGDState] * len(X)


def test_lift_of_a_cell():
    y, state = norse.Lift(GroupNeuronCell())(X)
    expected, last = GroupNeuron()(X)
    assert_same((y, state.v), (expected, last.v), "lifted")
    model = norse.SequentialState(norse.Lift(GroupNeuronCell()), norse.Lift(SignGDCell()))
    with pytest.raises(sg.InputError, match="directly into SequentialState"):
        model(X)  # Norse hands the first cell's state to the second


def test_recurrent_sequential():
    model = norse.RecurrentSequential(nn.Linear(5, 5), GroupNeuronCell())
    y, state = model(X[0])
    y, state = model(X[1], state)
    assert y.shape == (4, 5)


# -- contracts ------------------------------------------------------------------------------------


def run_twice(module, x):
    y, state = module(x)
    return module(x, state)


def make(kind):
    """Cell and layer of a kind, each with its input."""
    cell_class, layer_class, p, inputs = kind
    x = sequence(inputs)
    return [(cell_class(p), at(x, 0)), (layer_class(p), x)]


def test_copied_and_pickled(kind):
    for module, x in make(kind):
        expected, state = run_twice(module, x)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            y, last = run_twice(again, x)
            assert_same(y, expected, "output")
            assert_same_state(last, state)
            ours = {id(t) for t in module.state_dict(keep_vars=True).values()}
            assert not ours & {id(t) for t in again.state_dict(keep_vars=True).values()}
        assert_same_state(pickle.loads(pickle.dumps(state)), state)
        assert type(pickle.loads(pickle.dumps(module.p))) is type(module.p)
        file = io.BytesIO()
        torch.save(state, file)


def others(p):
    """Parameters of the same neuron with other numbers, as a state dict may change them."""
    changes = {}
    for name, value in p._asdict().items():
        if name == "dead_zone":
            changes[name] = value * 0.5
        elif isinstance(value, Tensor):
            changes[name] = value + 1.0
        elif isinstance(value, dict):
            changes[name] = {
                key: item + 1.0 if isinstance(item, Tensor) else item for key, item in value.items()
            }
        elif name == "seed":
            changes[name] = value + 1
        elif name in ("scale", "v_th"):
            changes[name] = value + 0.7
    return p._replace(**changes)


# without a number that a state dict may change
ALL_DEFINING = (RunningMean, RunningMeanCell, Growth, GrowthCell, Encode, EncodeCell)


def test_state_dict_holds_every_parameter(kind):
    cell_class, layer_class, p, inputs = kind
    file = io.BytesIO()
    for module, x in make(kind):
        file.seek(0)
        file.truncate()
        torch.save(module.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = type(module)(others(module.p))
        if type(module) not in ALL_DEFINING:
            assert not torch.equal(run_twice(other, x)[0], run_twice(module, x)[0])
        other.load_state_dict(saved)
        assert_same(run_twice(other, x)[0], run_twice(module, x)[0], "output")


def test_numbers_are_loaded():
    """A neuron with other numbers becomes the saved one, or says why not."""
    listed = sg.ListSchedule((0.5, 0.25, 0.1, 0.1, 0.1, 0.1))
    saved = SignGD(signed("relu", listed, 2.0))
    other = SignGD(signed("relu", listed, 1.0))
    other.load_state_dict(saved.state_dict())
    assert other.p == saved.p
    assert_same(other(X)[0], saved(X)[0], "output")
    with pytest.raises(sg.FormatError, match="schedule=.*'list'.*, this one .*'exponential'"):
        SignGD(signed("relu", SCHEDULE)).load_state_dict(saved.state_dict())
    group_saved, group_other = GroupNeuron(GroupNeuronParameters(8, 0.7)), GroupNeuron(8)
    group_other.load_state_dict(group_saved.state_dict())
    assert group_other.p == group_saved.p
    scaled = SignGD(signed("relu", SCHEDULE, SCALE))
    other = SignGD(signed("relu", SCHEDULE, torch.ones(5)))
    other.load_state_dict(scaled.state_dict())
    assert_same(other(X)[0], scaled(X)[0], "scale")
    starts = SignGD(signed("mul", SCHEDULE, initial_input=(0.1, 0.9)))
    other = SignGD(signed("mul", SCHEDULE, initial_input=(0.0, 0.0)))
    other.load_state_dict(starts.state_dict())
    assert other.p == starts.p and type(other.p.initial_input) is tuple
    other = SignGD(signed("gelu", SCHEDULE, torch.ones(5)))
    with pytest.raises(sg.FormatError, match="function='relu', this one 'gelu'"):
        other.load_state_dict(scaled.state_dict())
    assert torch.equal(other.p.scale, torch.ones(5)), "nothing is half loaded"
    negative = scaled.state_dict()
    negative["scale"] = -SCALE
    other = SignGD(signed("relu", SCHEDULE, torch.ones(5)))
    with pytest.raises(ValueError, match="positive"):
        other.load_state_dict(negative)
    assert torch.equal(other.p.scale, torch.ones(5))
    with pytest.raises((sg.FormatError, RuntimeError), match="scale"):
        SignGD(signed("relu", SCHEDULE)).load_state_dict(scaled.state_dict())
    lacking = saved.state_dict()
    del lacking["_extra_state"]["schedule"]
    with pytest.raises(sg.FormatError, match="schedule"):
        SignGD(signed("relu", SCHEDULE)).load_state_dict(lacking)


def test_parameters_move(kind):
    for module, x in make(kind):
        wide = tuple(a.double() for a in x) if isinstance(x, tuple) else x.double()
        module.double()
        tensors = [t for t in module.state_dict().values() if isinstance(t, Tensor)]
        assert all(t.dtype == torch.float64 for t in tensors)
        y, state = run_twice(module, wide)
        assert y.dtype == state[0].dtype == torch.float64
        module.to("meta")
        assert all(t.is_meta for t in module.state_dict().values() if isinstance(t, Tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_keep_float32_states(kind, dtype):
    for module, x in make(kind):
        half = tuple(a.to(dtype) for a in x) if isinstance(x, tuple) else x.to(dtype)
        y, state = run_twice(module, half)
        assert y.dtype == dtype and state[0].dtype == torch.float32


def test_parameters_are_assigned_anew():
    cell = SignGDCell(signed("relu", SCHEDULE, SCALE))
    cell.p = cell.p._replace(scale=2.0, arguments=None)
    assert not [k for k in cell.state_dict() if k != "_extra_state"]
    assert_same(cell(X[0])[0], SignGDCell(signed("relu", SCHEDULE, 2.0))(X[0])[0], "y")
    lost = torch.ones(5, requires_grad=True).exp()  # its gradient would be
    for wrong in ({"scale": -1.0}, {"method": "nope"}, {"scale": [1.0]}, {"resting": lost}):
        before = cell.p
        with pytest.raises(ValueError):
            cell.p = cell.p._replace(**wrong)
        assert cell.p == before
        cell(X[0])


def test_a_trained_scale():
    """nn.Parameter in p is the module's parameter; optimisers and functional_call reach it."""
    layer = SignGD(signed("tanh", SCHEDULE, nn.Parameter(SCALE.clone())))
    assert [name for name, _ in layer.named_parameters()] == ["scale"]
    assert layer.p.scale is layer.scale
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = layer(X)[0]
    before.sum().backward()
    assert layer.scale.grad.abs().sum() > 0
    optimizer.step()
    assert not torch.equal(layer(X)[0], before)
    other = torch.func.functional_call(layer, {"scale": torch.ones(5)}, (X,))[0]
    expected = SignGD(signed("tanh", SCHEDULE))(X)[0]
    assert_same(other.detach(), expected, "functional_call")
    copy.deepcopy(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_training_moves_a_cast_scale(dtype):
    layer = SignGD(signed("tanh", SCHEDULE, nn.Parameter(SCALE.clone()))).to(dtype)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    outputs = []
    for _ in range(3):
        y, _ = layer(X)
        outputs.append(y.sum().item())
        optimizer.zero_grad()
        y.sum().backward()
        optimizer.step()
    assert len(set(outputs)) == 3
    copy.deepcopy(layer)


def test_trained_arguments_and_inputs_have_a_gradient():
    weight, start = nn.Parameter(SCALE.clone()), nn.Parameter(SCALE.clone())
    p = signed("prelu", SCHEDULE, initial_input=start, arguments={"weight": weight})
    layer = SignGD(p._replace(dead_zone=0))
    assert layer.choice(X).backend == "cpu"
    layer(X - 1)[0].sum().backward()
    assert weight.grad.abs().sum() > 0 and start.grad.abs().sum() > 0


def test_a_module_is_made_on_meta_and_filled():
    with torch.device("meta"):
        layer = SignGD(signed("relu", SCHEDULE, torch.ones(5)))
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(SignGD(signed("relu", SCHEDULE, SCALE)).state_dict())
    expected = SignGD(signed("relu", SCHEDULE, SCALE))(X)[0]
    assert_same(layer(X)[0], expected, "filled")


def test_initial_states_are_no_view_of_parameters():
    layer = SignGD(signed("relu", SCHEDULE, resting=SCALE, initial_input=SCALE))
    state = layer.initial_state(X)
    state.v.zero_()
    state.x[0].zero_()
    assert torch.equal(layer.p.resting, SCALE) and torch.equal(layer.p.initial_input, SCALE)


def defined(module) -> bool:
    return isinstance(module, (SignGD, SignGDCell)) and module.choice(X).backend == "torch"


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiles_in_one_graph(kind, backend):
    """Cells as often as one calls them: the step is no constant of the graph."""
    for module, x in make(kind):
        if isinstance(module, (PoissonEncode, PoissonEncodeCell)):
            pytest.skip("torch.compile makes no torch.Generator")
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        state = last = None
        # where the definition runs the step is a constant of the graph
        for _ in range(2 if defined(module) else 12):
            y, state = compiled(x, state)
            expected, last = module(x, last)
            assert_same(y, expected, "output")
        assert_same_state(state, last)


def test_steps_compile_in_one_graph():
    torch.compiler.reset()
    for step, p in (
        (signgd_feed_forward_step, signed("gelu", SCHEDULE, SCALE)),
        (group_neuron_feed_forward_step, GroupNeuronParameters(3)),
    ):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        state = other = None
        for x in X[:3]:
            y, state = compiled(x, state, p)
            expected, other = step(x, other, p)
            assert_same(y, expected, "output")


def test_a_compiled_layer_trains():
    torch.compiler.reset()
    layer = GroupNeuron(GroupNeuronParameters(2))
    grads = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = X.clone().requires_grad_()
        run(x)[0].square().sum().backward()
        grads.append(x.grad)
    assert_same(grads[0], grads[1], "gradient")
    assert grads[0].abs().sum() > 0


@pytest.mark.parametrize("batch", [0, 1])
def test_batch_of_one_and_empty_batch(kind, batch):
    _, _, _, inputs = kind
    cell, layer = (module for module, _ in make(kind))
    x = sequence(inputs, X[:, :batch])
    y, state = run_twice(layer, x)
    width = 1 if getattr(layer.p, "function", "") == "amax" else 5
    assert y.shape == (6, batch, width) and state[0].shape == (batch, width)
    y, state = run_twice(cell, at(x, 0))
    assert y.shape == (batch, width) and state[0].shape == (batch, width)


def test_a_stale_state_is_an_error(kind):
    """Also a batch of one, which would broadcast."""
    _, _, _, inputs = kind
    for batch, other in ((4, 1), (1, 4), (4, 3), (4, 0)):
        x = torch.randn(6, max(batch, other), 5)
        for module, cut in zip((m for m, _ in make(kind)), (1, 6), strict=True):
            before, now = (sequence(inputs, x[:cut, :size]) for size in (batch, other))
            if cut == 1:
                before, now = at(before, 0), at(now, 0)
            _, state = module(before)
            with pytest.raises(sg.InputError, match="state=None"):
                module(now, state)


def test_a_stale_state_of_a_function_that_pools():
    p = signed("amax", SCHEDULE, spikes="decoded", arguments={"dim": (-1,)})
    layer = SignGD(p)
    _, state = layer(X)
    for other in (X[:, :1], X[:, :3]):
        with pytest.raises(sg.InputError, match="state"):
            layer(other, state)


def test_states_of_others_are_refused():
    layer = SignGD(signed("relu", SCHEDULE))
    _, decoded = SignGD(signed("relu", SCHEDULE, spikes="decoded"))(X)
    with pytest.raises(sg.InputError, match="takes decoded values"):
        layer(X, decoded)
    for wrong in (torch.zeros(4, 5), {}, (), (1, 2)):
        with pytest.raises(sg.InputError, match="what an earlier call returned"):
            layer(X, wrong)
    with pytest.raises(sg.InputError, match="on meta"):
        layer(X, SignGDState(torch.zeros(4, 5, device="meta")))


def test_wrong_inputs():
    layer, cell = GroupNeuron(), GroupNeuronCell()
    for wrong, match in (
        (X.long(), r"int64.*x\.float"),
        (X.to_sparse(), r"sparse.*to_dense"),
        ([1.0], "list"),
        (torch.empty(0, 4, 5), "T >= 1"),
        (torch.tensor(1.0), "GroupNeuronCell"),
        ((X, X), "one input"),
    ):
        with pytest.raises(sg.InputError, match=match):
            layer(wrong)
    with pytest.raises(sg.InputError, match="int64"):
        cell(X[0].long())
    with pytest.raises(sg.InputError, match="2 arguments|one for each"):
        SignGD(signed("mul", SCHEDULE))(X)
    with pytest.raises(sg.InputError, match="tuple with one"):
        SignGD(signed("mul", SCHEDULE, initial_input=(0.0, 0.0, 0.0)))((X, X))


def test_wrong_parameters():
    for wrong, match in (
        (lambda: GroupNeuron(GroupNeuronParameters(0)), "members"),
        (lambda: GroupNeuron(GroupNeuronParameters(v_th=-1.0)), "v_threshold"),
        (lambda: GroupNeuron(GroupNeuronParameters(method="sigmoid")), "heaviside, super"),
        (lambda: GroupNeuron(GroupNeuronParameters(backend="numpy")), "backend"),
        (lambda: GroupNeuron(GroupNeuronParameters(alpha=0.0)), "alpha is positive"),
        (lambda: GroupNeuron(GroupNeuronParameters(v_th=torch.tensor([1.0, -1.0]))), "v_threshold"),
        (
            lambda: Growth(GrowthParameters("relu")),
            "selects one of its inputs .*max_pool.* 'relu'",
        ),
        (lambda: SignGD(signed("relu", SCHEDULE, members=9, dead_zone=0)), "from 1 to 8"),
        (lambda: SignGD(signed("relu", SCHEDULE, momentum=0.5, members=2)), "momentum"),
        (lambda: SignGD(signed("no such row", SCHEDULE)), "no such row"),
        (lambda: SignGD(signed("relu", SCHEDULE, -SCALE)), "positive"),
        (lambda: SignGD(signed("relu", SCHEDULE, spikes="graded")), "spikes is one"),
        (lambda: SignGD(signed("relu", SCHEDULE, spikes="binary")), "offset"),
        (lambda: SignGD(signed("relu", SCHEDULE, dead_zone=1.0)), r"in \[0, 1\)"),
        (lambda: SignGD(signed("relu", SCHEDULE, dead_zone=-THETA)), r"in \[0, 1\)"),
        (
            lambda: SignGD(signed("relu", SCHEDULE, momentum=0.5, dead_zone=0.5)),
            "momentum or dead_zone to 0",
        ),
        (
            lambda: SignGD(signed("relu", SCHEDULE, spikes="binary", offset=0.0, dead_zone=THETA)),
            "SignGD: binary spikes .* spikes='ternary' or 'signed', or dead_zone=0",
        ),
        (
            lambda: SignGD(signed("relu", SCHEDULE, spikes="ternary", members=3)),
            "SignGD: a ternary spike .* spikes='signed', or members=1",
        ),
        (
            lambda: SignGD(signed("relu", SCHEDULE, spikes="ternary", momentum=0.5)),
            "ternary spikes cannot represent momentum",
        ),
        (lambda: Readout(ReadoutParameters(spikes="ternary")), "ternary spikes .* schedule"),
        (lambda: Encode(EncodeParameters(spikes="ternary", members=2)), "members=1"),
        (lambda: SignGD(signed("relu", SCHEDULE, momentum=1.0)), "momentum"),
        (lambda: Readout(ReadoutParameters(spikes="binary", offset=1.0)), "schedule"),
        (lambda: Encode(EncodeParameters(spikes="none")), "spikes is one"),
        (lambda: Encode(EncodeParameters(schedule=0.5)), "schedule gives the step size"),
        (lambda: SignGD(signed("relu", 0.5)), "schedule gives the step size"),
        (lambda: SignGD(4), r"p is plugins\.norse\.SignGDParameters\(...\), but it is 4"),
        (lambda: GroupNeuron(SignGDParameters()), r"p is plugins\.norse\.GroupNeuronParameters"),
        (lambda: GroupNeuron(GroupNeuronParameters(2.5)), "members .*integer"),
        (lambda: SignGD(signed("mul", SCHEDULE, initial_input=[0.0, 1.0])), "a tuple"),
        (lambda: group_neuron_feed_forward_step(X, None, GroupNeuronParameters(0)), "members"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
            pytest.fail(match)


def test_parameters_come_as_tensors_as_in_norse():
    p = GroupNeuronParameters(v_th=torch.as_tensor(0.5), alpha=torch.as_tensor(100.0))
    assert GroupNeuron(p).p == GroupNeuronParameters(v_th=0.5)
    assert GroupNeuron(GroupNeuronParameters(members=torch.as_tensor(4))).p.members == 4
    y, _ = group_neuron_feed_forward_step(X, None, p)
    assert_same(y, GroupNeuronCell(p)(X)[0], "step")


def test_parameters_of_a_larger_batch_are_refused():
    x = X[:, :1]
    for module in (
        SignGD(signed("relu", SCHEDULE, torch.ones(3, 5), backend="torch")),
        SignGD(signed("relu", SCHEDULE, torch.ones(3, 5))),
        SignGD(signed("relu", SCHEDULE, resting=torch.ones(3, 5))),
        SignGD(signed("relu", SCHEDULE, initial_input=torch.ones(3, 5))),
        SignGD(signed("relu", SCHEDULE, dead_zone=torch.full((3, 5), 0.5))),
        GroupNeuron(GroupNeuronParameters(4, torch.ones(3, 5))),
        Subgradient(SubgradientParameters(torch.ones(3, 5))),
        Readout(ReadoutParameters(torch.ones(3, 5))),
        Readout(ReadoutParameters(spikes="binary", schedule=SCHEDULE, offset=torch.ones(3, 5))),
    ):
        with pytest.raises(sg.InputError, match="broadcast"):
            module(x)


def test_recorded_states_are_not_taken_for_states():
    layer = SignGD(signed("relu", SCHEDULE), record_states=True)
    _, recorded = layer(X)
    with pytest.raises(sg.InputError, match="take the last"):
        layer(X, recorded)


def test_defaults_hold_no_tensors_and_nothing_is_shared():
    for p in (SignGDParameters(), GroupNeuronParameters(), EncodeParameters(), ReadoutParameters()):
        assert not any(isinstance(value, Tensor) for value in p)
        assert type(p).__doc__ and ".plugins.norse." in type(p).__module__
    given = SCALE.clone()
    layer = SignGD(signed("relu", SCHEDULE, given))
    given.zero_()
    assert_same(layer(X)[0], SignGD(signed("relu", SCHEDULE, SCALE))(X)[0], "own copy")


def test_nothing_is_written_to_inputs_states_or_parameters(kind):
    for module, x in make(kind):
        _, state = module(x)
        kept = copy.deepcopy((x, state, module.p))
        module(x, state)
        for a, b in zip(kept, (x, state, module.p), strict=True):
            if not isinstance(a, Tensor) and a is not None:
                flat = zip(
                    torch.utils._pytree.tree_leaves(a),
                    torch.utils._pytree.tree_leaves(b),
                    strict=True,
                )
                assert all(not isinstance(s, Tensor) or torch.equal(s, t) for s, t in flat)
            elif a is not None:
                assert torch.equal(a, b)
        leaves = torch.utils._pytree.tree_leaves((state, module.p))
        assert not any(t.requires_grad for t in leaves if isinstance(t, Tensor))


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 1.0, 100.0])
@pytest.mark.parametrize("method", METHODS[1:])
def test_gradient_is_that_of_norse_threshold(method, alpha):
    """As installed, the alpha that Norse 1.1.0 ignores included; the step at 0 is ours."""
    x = torch.cat([torch.linspace(-2, 2, 401), torch.tensor([1.0, -1.0])]).requires_grad_()
    mine = surrogate(method, alpha)
    assert mine is not None
    (expected,) = torch.autograd.grad(threshold(x, method, alpha).sum(), x)
    (actual,) = torch.autograd.grad(mine(x).sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)
    assert torch.equal(mine(x), torch.where(x == 0, 1.0, threshold(x, method, alpha)))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_gradients_of_sequences(method, backend):
    """Against Norse's threshold through time, in plain torch, away from ties."""
    p = GroupNeuronParameters(3, 0.9, method=method, alpha=2.0, backend=backend)
    x = X.clone().requires_grad_()
    y, state = GroupNeuron(p)(x)
    weight = torch.randn(y.shape)
    ((y * weight).sum() + state.v.sum()).backward()
    other, theta = X.clone().requires_grad_(), 0.3
    v, loss = torch.full((4, 5), 0.5 * theta), torch.zeros(())
    for t in range(len(X)):
        h = v + other[t]
        out = sum(threshold(h - k * theta, method, torch.as_tensor(2.0)) for k in (1, 2, 3)) * theta
        v, loss = h - out, loss + (out * weight[t]).sum()
    (loss + v.sum()).backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["super", "triangle", "tanh"])
def test_gradients_of_signgd_sequences(method):
    """As above, of the sign of v - f(x), through v and through the integrated input."""
    p = signed("tanh", SCHEDULE, 0.8, method=method, alpha=2.0, dead_zone=0)
    x = X.clone().requires_grad_()
    y, state = SignGD(p)(x)
    weight = torch.randn(y.shape)
    ((y * weight).sum() + state.v.sum()).backward()
    other = X.clone().requires_grad_()
    v, integrated, loss = torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(())
    for t in range(len(X)):
        integrated = integrated + other[t]
        soft = threshold(v - torch.tanh(integrated), method, torch.as_tensor(2.0))
        out = -SCHEDULE(t + 1) * 0.8 * (2 * soft - 1)
        v, loss = v + out, loss + (out * weight[t]).sum()
    (loss + v.sum()).backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_gradient_passes_states_between_calls():
    layer = GroupNeuron(GroupNeuronParameters(2))
    grads = []
    for cut in (3, len(X)):
        x = X.clone().requires_grad_()
        y, state = layer(x[:cut])
        if cut < len(X):
            y, state = layer(x[cut:], state)
        (y[-1].sum() + state.v.sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
    cut = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, state)
    assert not cut.v.requires_grad and type(cut) is GroupNeuronState


def test_heaviside_and_what_carries_no_gradient():
    x = X.clone().requires_grad_()
    for module in (
        GroupNeuron(GroupNeuronParameters(method="heaviside")),
        SignGD(signed("relu", SCHEDULE, method="heaviside")),
    ):
        assert not module(x)[0].requires_grad
    with pytest.raises(sg.InputError, match="no gradient"):
        Subgradient()(x)
    for p in (
        signed("relu", SCHEDULE, spikes="binary", offset=1.0, method="super"),
        signed("relu", SCHEDULE, spikes="ternary", method="super"),
        signed("relu", SCHEDULE, momentum=0.5, method="super"),
    ):
        with pytest.raises(sg.InputError, match="heaviside"):
            SignGD(p)(x)
        with torch.no_grad():
            SignGD(p)(x)
    y, _ = SignGD(signed("relu", SCHEDULE, momentum=0.5))(x)  # values it has
    with pytest.raises(sg.InputError, match="momentum"):
        y.sum().backward()


def test_choice_says_what_runs():
    layer = SignGD(signed("gelu", SCHEDULE, dead_zone=0))
    assert layer.choice(X) == Choice("cpu")
    assert layer.choice(X.clone().requires_grad_()) == Choice("cpu")
    momentum = SignGD(signed("gelu", SCHEDULE, momentum=0.5, method="heaviside"))
    assert "momentum" in momentum.choice(X).reason
    assert GroupNeuron(GroupNeuronParameters(backend="torch")).choice(X).backend == "torch"
    with pytest.raises(sg.BackendUnavailable, match="cuda"):
        GroupNeuron(GroupNeuronParameters(backend="cupy")).choice(X)
    with pytest.raises(sg.BackendUnavailable, match="cuda"):
        GroupNeuron(GroupNeuronParameters(backend="cupy"))(X)


def test_a_converted_network_without_spikingjelly():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 3))
    network = sg.convert(model, X.flatten(0, 1), time_steps=64)
    kernels, definition = (sg.build(network, "norse", kernels=k) for k in ("auto", "torch"))
    y = sg.run(kernels, X[0], 64)[64]
    torch.testing.assert_close(y, model(X[0]).detach(), rtol=0, atol=0.01)
    torch.testing.assert_close(sg.run(definition, X[0], 64)[64], y, rtol=0, atol=1e-3)
    y, state = kernels(X[0])
    y, state = kernels(X[1], state)
    assert y.shape == (4, 3)


def test_the_simulator_is_not_imported_with_the_package():
    import subprocess

    code = (
        "import sys, spikingjelly_signgd as sg; sg.GroupNeuronParameters; sg.neurons; sg.plugins;"
        "assert 'norse' not in sys.modules; sg.plugins.norse; assert 'norse' in sys.modules;"
        "assert 'spikingjelly' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    for name in plugin.__all__:
        assert getattr(plugin, name).__doc__, name


def test_thresholds_that_learn():
    """Parameters are the module's own, get a gradient, and count at once after a step."""
    layer = GroupNeuron(GroupNeuronParameters(3, nn.Parameter(SCALE.clone()), method="super"))
    assert [name for name, _ in layer.named_parameters()] == ["v_th"]
    before, _ = layer(X)
    before.sum().backward()
    assert float(layer.v_th.grad.abs().sum()) > 0
    assert layer.choice(X).backend == "torch" and "per channel" in layer.choice(X).reason
    with torch.no_grad():
        assert layer.choice(X).backend == "cpu"
        assert torch.equal(layer(X)[0], before)
        layer.v_th *= 2
        p = group.GroupNeuronParameters(3, layer.v_th)
        expected = group_multi_step(X, group.group_initial_v(X[0], p), p)
        assert torch.equal(layer(X)[0], expected.y)


def test_a_signed_state_is_not_one_of_others():
    signed = GroupNeuron(GroupNeuronParameters(3, signed=True))
    _, state = signed(X)
    assert type(state) is plugin.SignedGroupNeuronState and bool((state.sent >= 0).all())
    with pytest.raises(sg.InputError, match="one of neurons that are not signed"):
        signed(X, GroupNeuronState(state.v))
    with pytest.raises(sg.InputError, match="one of neurons that are signed"):
        GroupNeuron(GroupNeuronParameters(3))(X, state)


def test_saved_before_there_were_several_signs():
    """What earlier versions did not save is what there was: one sign a step, unsigned neurons."""
    for module, fields in (
        (SignGD(signed("relu", SCHEDULE, dead_zone=0)), ["members", "dead_zone"]),
        (GroupNeuron(GroupNeuronParameters(3)), ["signed"]),
        (Readout(ReadoutParameters(SCALE)), ["members"]),
    ):
        state = module.state_dict()
        for name in fields:
            del state["_extra_state"][name]
        other = type(module)(module.p)
        other.load_state_dict(state)
        assert_same(other(X)[0], module(X)[0], "output")


def test_saved_before_there_was_a_dead_zone():
    """Whatever the default is today, a layer of an earlier version fires at every step."""
    dense = SignGD(signed("relu", SCHEDULE, dead_zone=0))
    saved = dense.state_dict()
    del saved["_extra_state"]["dead_zone"]
    for theta in (None, 0.0, 0.5):
        other = SignGD(signed("relu", SCHEDULE, dead_zone=theta))
        other.load_state_dict(saved)
        assert other.p.dead_zone == 0
        assert_same(other(X)[0], dense(X)[0], "output")
    with pytest.raises(sg.FormatError, match="dead_zone=0.0, this one"):
        SignGD(signed("relu", SCHEDULE, dead_zone=THETA)).load_state_dict(saved)
