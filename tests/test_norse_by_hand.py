"""Norse models by hand: what users do with Norse's LIF, done with it and with our neurons."""

import copy
import io
import pickle
import warnings

import norse.torch as norse
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.plugins.norse import (
    Encode,
    EncodeParameters,
    GroupNeuron,
    GroupNeuronCell,
    GroupNeuronParameters,
    Readout,
    ReadoutParameters,
    SignGD,
    SignGDCell,
    SignGDParameters,
    group_neuron_feed_forward_step,
    signgd_feed_forward_step,
)

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
X = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))  # [T, B, N]
SCALE = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])
# cell, layer, and the class of their parameters
FAMILIES = {
    "LIF": (norse.LIFCell, norse.LIF, norse.LIFParameters),
    "group": (GroupNeuronCell, GroupNeuron, GroupNeuronParameters),
    "signGD": (SignGDCell, SignGD, SignGDParameters),
}
OURS = {name: FAMILIES[name] for name in ("group", "signGD")}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=OURS)
def ours(request):
    return OURS[request.param]


def loop(cell: nn.Module, x_seq: Tensor) -> tuple[Tensor, object]:
    """As Norse's users write it: the state None first, then handed on."""
    state, outputs = None, []
    for x in x_seq:
        y, state = cell(x, state)
        outputs.append(y)
    return torch.stack(outputs), state


def same(a, b) -> bool:
    leaves = [torch.utils._pytree.tree_leaves(each) for each in (a, b)]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(*leaves, strict=True)
    )


# -- habits, of LIF and of ours -------------------------------------------------------------------


def test_no_arguments(family):
    cell, layer, parameters = family
    y_seq, state = layer()(X)
    assert y_seq.shape == X.shape and state.v.shape == X.shape[1:]
    assert cell()(X[0])[0].shape == X[0].shape
    assert same(layer(parameters())(X)[0], y_seq)


def test_p_and_dt(family):
    _, layer, parameters = family
    p = parameters()
    for made in (layer(p, dt=0.01), layer(p=p, dt=0.01)):
        assert made.dt == 0.01
        assert made(X)[0].shape == X.shape
    assert layer(p).dt == 0.001
    assert layer(p, record_states=True)(X)[1].v.shape == X.shape


def test_state_none_first_then_handed_on(family):
    cell, layer, _ = family
    y_seq, state = loop(cell(), X)
    assert same(layer()(X)[0], y_seq)
    first, half = layer()(X[:2])
    second, last = layer()(X[2:], half)
    assert same(torch.cat([first, second]), y_seq)
    assert same(last.v, state.v)


def test_in_sequential_state_and_lift(family):
    cell, layer, _ = family
    torch.manual_seed(0)
    first, second = nn.Linear(5, 7), nn.Linear(7, 3)
    layers = norse.SequentialState(first, layer(), second)
    cells = norse.SequentialState(first, cell(), second)
    assert layers.stateful_layers == cells.stateful_layers == [False, True, False]
    y_seq, _ = layers(X)
    assert torch.allclose(loop(cells, X)[0], y_seq, rtol=0, atol=1e-6)  # products of other sizes
    lifted, _ = norse.Lift(cell())(X)
    assert same(lifted, layer()(X)[0])


def test_a_state_of_another_batch_is_an_error(family):
    cell, _, _ = family
    _, state = cell()(X[0])
    with pytest.raises(RuntimeError if cell is norse.LIFCell else sg.InputError):
        cell()(torch.randn(3, 5), state)


def test_copied_pickled_and_saved(ours, tmp_path):
    """Of Norse's own LIF neither parameters nor module can be pickled."""
    cell, layer, _ = ours
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(norse.LIF())
    for module, x in ((cell(), X[0]), (layer(), X)):
        y, state = module(x)
        expected, _ = module(x, state)
        torch.save(module, tmp_path / "module.pt")
        torch.save(state, tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "module.pt", weights_only=False)
        kept = torch.load(tmp_path / "state.pt", weights_only=False)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
            assert same(again(x)[0], y)
            assert same(again(x, kept)[0], expected)


def test_compiles(ours):
    _, layer, _ = ours
    torch.compiler.reset()
    module = layer()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, state = module(X)
        y, _ = compiled(X)
        assert same(y, expected)
        assert same(compiled(X, state)[0], module(X, state)[0])


# torch.compile of a module with a torch.autograd.Function warns of itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("neuron", ["group", "signGD", "signGD that learns"])
def test_compiles_while_it_trains(neuron):
    """In one graph: values are those of the model as it is; gradients, too, but for the order of
    sums, which uncompiled go through memory in parts."""
    torch.compiler.reset()
    torch.manual_seed(0)
    learnable = ("scale", "resting", "dead_zone") if "learns" in neuron else ()
    middle = GroupNeuron(3) if neuron == "group" else SignGD("gelu", learnable=learnable)
    model = norse.SequentialState(nn.Linear(5, 7), middle, nn.Linear(7, 3))
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        y, _ = run(X)
        model.zero_grad()
        y.square().sum().backward()
        found.append((y.detach(), *[p.grad.clone() for p in model.parameters()]))
    (y, *gradients), (compiled, *others) = found
    assert same(y, compiled)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_gradient_reaches_the_layer_before(family):
    _, layer, _ = family
    torch.manual_seed(0)
    before = nn.Linear(5, 5)
    y, _ = norse.SequentialState(before, layer())(3 * X)
    (y * torch.randn(y.shape)).sum().backward()
    assert float(before.weight.grad.abs().sum()) > 0
    assert float(before.bias.grad.abs().sum()) > 0


def test_repr_is_norses(family):
    cell, layer, parameters = family
    for module in (cell(), layer()):
        name = type(module).__name__
        assert repr(module).startswith(f"{name}(p={parameters.__name__}(")
        assert "dt=0.001" in repr(module) and "method=" in repr(module)


def test_functional_forms(ours):
    cell, _, parameters = ours
    step = signgd_feed_forward_step if cell is SignGDCell else group_neuron_feed_forward_step
    expected, last = loop(cell(), X)
    for p in (None, parameters()):
        state, outputs = None, []
        for x in X:
            y, state = step(x, state, p, dt=0.001)
            outputs.append(y)
        assert same(torch.stack(outputs), expected)
        assert same(state, last)


def test_the_first_field_in_the_place_of_p():
    for three in (3, torch.tensor(3), np.int64(3)):
        for module in (GroupNeuron(three), GroupNeuron(p=three)):
            assert module.p == GroupNeuronParameters(3) and type(module.p.members) is int
        assert type(SignGD("gelu", members=three).p.members) is int
    given = SignGD(SignGDParameters("gelu")).p
    for module in (SignGD("gelu"), SignGD(sg.NONLINEARITIES["gelu"])):
        assert module.p._replace(function="gelu") == given
    assert GroupNeuron(3, v_th=0.5).p == GroupNeuronParameters(3, 0.5)
    assert GroupNeuronCell(v_th=0.5).p == GroupNeuronParameters(v_th=0.5)
    assert SignGD("gelu", members=3).p == SignGD(SignGDParameters("gelu", members=3)).p
    with pytest.raises(TypeError, match="'v_threshold'; its parameters are members, v_th"):
        GroupNeuron(3, v_threshold=0.5)
    assert GroupNeuronCell(GroupNeuronParameters(3), 0.01).dt == 0.01
    with pytest.raises(TypeError, match=r"GroupNeuron\(3, v_th=...\)"):  # not taken for dt
        GroupNeuron(3, 0.5)
    with pytest.raises(TypeError, match=r"SignGDCell\('gelu', schedule=...\)"):
        SignGDCell("gelu", SCHEDULE)
    assert Encode(SCHEDULE, spikes="decoded").p == EncodeParameters(SCHEDULE, spikes="decoded")
    assert same(Readout(SCALE)(X)[0], Readout(ReadoutParameters(SCALE))(X)[0])
    torch.manual_seed(0)
    y, _ = SignGDCell(nn.Softplus())(X[0])
    assert same(y, SignGDCell("softplus")(X[0])[0])


# -- wrong parameters -----------------------------------------------------------------------------


def test_parameters_of_another_class_are_told_apart():
    """Two classes are named GroupNeuronParameters, and two SignGDParameters."""
    dynamics = sg.SignGDParameters(sg.NONLINEARITIES["relu"], SCHEDULE)
    for make, p in (
        (GroupNeuron, sg.GroupNeuronParameters(4)),
        (GroupNeuronCell, norse.LIFParameters()),
        (GroupNeuron, SignGDParameters()),
        (GroupNeuron, GroupNeuronParameters),
        (SignGD, dynamics),
        (SignGDCell, norse.LIFParameters()),
        (SignGD, GroupNeuronParameters()),
        (SignGD, SignGDParameters),
        (lambda p: group_neuron_feed_forward_step(X[0], None, p), sg.GroupNeuronParameters(4)),
        (lambda p: signgd_feed_forward_step(X[0], None, p), dynamics),
    ):
        with pytest.raises(sg.InputError, match="import (GroupNeuron|SignGD)Parameters") as caught:
            make(p)
        kind = p if isinstance(p, type) else type(p)
        assert kind.__module__ in str(caught.value)
    for step, p, kind in (
        (lambda p: sg.neurons.group_step(X[0], X[0], p), GroupNeuronParameters(), "GroupNeuron"),
        (
            lambda p: sg.neurons.signgd_step((X[0],), sg.neurons.SignGDState(X[0]), p),
            SignGDParameters(),
            "SignGD",
        ),
    ):
        with pytest.raises(AttributeError, match=rf"plugins\.norse\..* take sg\.{kind}Parameters"):
            step(p)
    cell = GroupNeuronCell()
    with pytest.raises(sg.InputError, match="plugins.norse.GroupNeuronParameters"):
        cell.p = sg.GroupNeuronParameters(4)
    assert cell.p == GroupNeuronParameters()


@pytest.mark.parametrize("members", [2.0, "4", True, 2.5])
def test_members_are_a_whole_number(members):
    for make in (
        lambda: GroupNeuron(GroupNeuronParameters(members)),
        lambda: SignGD(SignGDParameters("relu", members=members)),
        lambda: SignGDCell(SignGDParameters("relu", members=members, dead_zone=0)),
    ):
        with pytest.raises(sg.InputError, match=rf"members .*integer.* {members!r}"):
            make()
    with pytest.raises(sg.InputError, match=rf"members .*integer.* {members!r}"):
        GroupNeuron(members)


@pytest.mark.parametrize("schedule", [0.5, 1, "exponential", (0.5, 0.25)])
def test_a_schedule_is_one(schedule):
    for make in (SignGD, SignGDCell):
        with pytest.raises(sg.InputError, match=r"schedule .* such as .*Schedule\(") as caught:
            make(SignGDParameters("relu", schedule))
        assert repr(schedule) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignGD(nn.GELU), r"is the class GELU.* Pass an instance, GELU\(\)"),
        (lambda: SignGD(SignGDParameters(nn.GELU)), "is the class GELU"),  # type: ignore[arg-type]
        (lambda: SignGD(SCHEDULE), "the first argument is the function.* Pass schedule="),
        (lambda: SignGD(spikes="foo"), "spikes is one of .*'foo'"),
        (lambda: SignGD(scale=[1.0, 2.0]), r"scale is .*list. Pass torch.tensor\(scale\)"),
        (lambda: SignGD(scale="2"), "scale is .*'2'"),
        (lambda: SignGDCell(resting=None), "resting is .*NoneType"),
        (lambda: SignGDCell(momentum="a"), "momentum is .*'a'"),
        (lambda: GroupNeuron(4, v_th=None), "v_th is .*NoneType"),
        (lambda: GroupNeuron(4, initial_charge="1"), "initial_charge is .*'1'"),
        (lambda: SignGD(momentum=0.5, learnable="dead_zone"), "no dead zone"),
        (
            lambda: SignGD(spikes="binary", initial_input=0.0, offset=1.0, learnable="dead_zone"),
            "spikes='binary' .*no dead zone",
        ),
    ],
)
def test_what_is_meant_otherwise_is_told_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- it works as written --------------------------------------------------------------------------


def network(neuron: nn.Module) -> norse.SequentialState:
    torch.manual_seed(1)
    return norse.SequentialState(nn.Linear(64, 128), neuron, nn.Linear(128, 10))


def relative_error(model: norse.SequentialState, function, x: Tensor, steps: int = 50) -> float:
    first, second = model[0], model[2]
    with torch.no_grad():
        expected = second(function(first(x)))
        state = None
        for _ in range(steps):
            y, state = model(x, state)
        return float((y - expected).norm() / expected.norm())


def test_a_network_as_written_is_near_its_function():
    """Biases on, no schedule, no Encode, no Readout."""
    x = torch.randn(32, 64)
    functions = {"relu": torch.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh}
    for name, function in functions.items():
        assert relative_error(network(SignGDCell(name)), function, x) < 0.01, name
    assert relative_error(network(SignGDCell()), torch.relu, x) < 0.01
    model = network(SignGD("gelu"))
    with torch.no_grad():
        y, _ = model(x.expand(50, 32, 64))
        expected = model[2](nn.functional.gelu(model[0](x)))
    assert float((y[-1] - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("spikes", ["signed", "ternary", "binary"])
def test_spikes_need_their_initial_input(spikes):
    offset = 0.0 if spikes == "binary" else None
    p = SignGDParameters("relu", SCHEDULE, spikes=spikes, offset=offset)
    for make in (SignGD, SignGDCell, lambda p: signgd_feed_forward_step(X[0], None, p)):
        with pytest.raises(sg.InputError, match=r"initial_input.*sg\.to_spikes"):
            make(p)
    SignGD(p._replace(initial_input=0.0))(X)


def test_decoded_values_need_none():
    """It is ignored, not added, and said so once."""
    with pytest.warns(UserWarning, match="initial_input is ignored"):
        layer = SignGD(SignGDParameters("gelu", SCHEDULE, initial_input=SCALE))
    assert layer.p.initial_input == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(layer(X)[0], SignGD(SignGDParameters("gelu", SCHEDULE))(X)[0])
        layer.p = layer.p._replace(scale=2.0)
        SignGD(SignGDParameters("gelu", SCHEDULE, initial_input=0.0))


def test_decoded_and_signed_forms_agree():
    """The same network in both forms: what its read-out decodes at each step is the same."""
    torch.manual_seed(2)
    first, second = nn.Linear(5, 8), nn.Linear(8, 3)
    decoded = norse.SequentialState(first, SignGD(SignGDParameters("gelu", SCHEDULE)), second)
    p = SignGDParameters("gelu", SCHEDULE, spikes="signed", initial_input=first.bias.detach())
    signed = norse.SequentialState(
        Encode(EncodeParameters(sg.ConstantSchedule(1.0))),
        nn.Linear(5, 8, bias=False),
        SignGD(p),
        nn.Linear(8, 3, bias=False),
        Readout(ReadoutParameters(second.bias.detach())),
    )
    with torch.no_grad():
        signed[1].weight.copy_(first.weight)
        signed[3].weight.copy_(second.weight)
        x = X[:1].expand(40, 4, 5)  # decoded at once by steps of 1
        torch.testing.assert_close(signed(x)[0], decoded(x)[0], rtol=0, atol=1e-5)


# -- parameters -----------------------------------------------------------------------------------

LEARN = {
    "signGD": (SignGDParameters("gelu", SCHEDULE), ("scale", "resting", "dead_zone")),
    "signGD, spikes": (
        SignGDParameters("gelu", SCHEDULE, spikes="signed", initial_input=SCALE / 5),
        ("scale", "resting", "initial_input", "dead_zone"),
    ),
    "group": (GroupNeuronParameters(3), ("v_th", "initial_charge")),
}


def module_of(p, cell: bool, **options) -> nn.Module:
    if isinstance(p, SignGDParameters):
        return (SignGDCell if cell else SignGD)(p, **options)
    return (GroupNeuronCell if cell else GroupNeuron)(p, **options)


@pytest.mark.parametrize("cell", [True, False], ids=["cell", "layer"])
@pytest.mark.parametrize("kind", LEARN)
def test_what_is_learnable_learns(kind, cell):
    """Numbers and tensors become parameters, all get a gradient, and a step counts at once."""
    p, names = LEARN[kind]
    module, plain = module_of(p, cell, learnable=names), module_of(p, cell)
    assert [name for name, _ in module.named_parameters()] == list(names)
    assert not list(plain.parameters())
    run = (lambda: loop(module, X)[0]) if cell else (lambda: module(X)[0])
    before = run()
    expected = loop(plain, X)[0] if cell else plain(X)[0]
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-6)
    (before * torch.randn(X.shape)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
    torch.optim.SGD(module.parameters(), 0.05).step()
    assert not same(run(), before)


def test_parameters_handed_in_stay():
    scale, start = nn.Parameter(SCALE.clone()), nn.Parameter(torch.tensor(0.1))
    layer = SignGD(SignGDParameters("gelu", scale=scale, resting=start))
    assert [p is q for p, q in zip(layer.parameters(), (scale, start), strict=True)] == [True] * 2
    assert layer.p.scale is scale
    frozen = nn.Parameter(torch.tensor(0.7), requires_grad=False)
    group = GroupNeuron(GroupNeuronParameters(2, frozen))
    assert list(group.parameters()) == [frozen] and isinstance(group.p.v_th, nn.Parameter)
    activation = nn.PReLU(5)
    layer = SignGD(activation)
    assert [p is activation.weight for p in layer.parameters()] == [True]
    layer(X)[0].sum().backward()
    assert float(activation.weight.grad.abs().sum()) > 0
    assert "function_module.weight" in layer.state_dict()


def test_arguments_and_read_outs_learn():
    prelu = SignGD("prelu", arguments={"weight": 0.25}, learnable="weight")
    model = norse.SequentialState(
        nn.Linear(5, 5), prelu, nn.Linear(5, 3), Readout(learnable="initial")
    )
    assert [name for name, _ in model[1].named_parameters()] == ["arguments_weight"]
    assert [name for name, _ in model[3].named_parameters()] == ["initial"]
    model(X)[0].square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())
    offset = nn.Parameter(torch.zeros(5))
    SignGD(spikes="binary", initial_input=0.0, offset=offset)(X)[0].sum().backward()
    assert float(offset.grad.abs().sum()) > 0
    restored = SignGD("prelu", arguments={"weight": 0.1}, learnable="weight")
    restored.load_state_dict(saved(prelu))
    assert same(restored(X)[0], prelu(X)[0])


def test_only_some_names_can_be_learned():
    for make, names in (
        (SignGD, ("members",)),
        (SignGD, "no such"),
        (SignGD, "initial_input"),  # of decoded values there is none
        (GroupNeuron, ("scale",)),
    ):
        with pytest.raises(sg.InputError, match="learn"):
            make(learnable=names)
    assert [name for name, _ in SignGD(learnable="scale").named_parameters()] == ["scale"]


def saved(module: nn.Module) -> dict:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("function", {"function": "relu"}),
        ("members", {"members": 2}),
        ("schedule", {"schedule": sg.ConstantSchedule(0.1)}),
        ("spikes", {"spikes": "signed", "initial_input": 0.0}),
    ],
)
def test_a_state_dict_is_of_one_neuron(name, change):
    """Another function, number of members, schedule or code is refused, by name and place."""
    p = SignGDParameters("gelu", SCHEDULE, SCALE, members=3)
    state = saved(nn.Sequential(nn.Identity(), SignGD(p)))
    other = nn.Sequential(nn.Identity(), SignGD(p._replace(**{**change, "scale": SCALE + 1})))
    before = other[1].p
    with pytest.raises(sg.FormatError, match=rf"SignGD at '1': .* {name}="):
        other.load_state_dict(state)
    assert all(a is b or a == b for a, b in zip(other[1].p, before, strict=True))
    again = nn.Sequential(nn.Identity(), SignGD(p._replace(scale=SCALE + 1)))
    again.load_state_dict(state)
    assert same(again[1](X)[0], SignGD(p)(X)[0])


def test_state_dicts_of_other_kinds():
    for a, b, name in (
        (GroupNeuron(3), GroupNeuron(4), "members"),
        (GroupNeuron(3), GroupNeuron(GroupNeuronParameters(3, signed=True)), "signed"),
        (Encode(EncodeParameters(SCHEDULE)), Encode(), "schedule"),
        (Readout(), Readout(ReadoutParameters(spikes="decoded")), "spikes"),
    ):
        with pytest.raises(sg.FormatError, match=rf"{name}="):
            b.load_state_dict(saved(a))


def test_numbers_are_loaded():
    p = SignGDParameters("gelu", SCHEDULE, 2.0, 0.3, dead_zone=0.25)
    other = SignGD(SignGDParameters("gelu", SCHEDULE))
    other.load_state_dict(saved(SignGD(p)))
    assert other.p == SignGD(p).p
    learned = SignGD(p, learnable=("scale", "dead_zone"))
    again = SignGD(SignGDParameters("gelu", SCHEDULE), learnable=("scale", "dead_zone"))
    again.load_state_dict(saved(learned))
    assert same(again(X)[0], learned(X)[0])
    with pytest.raises(sg.FormatError, match="scale=a tensor"):
        SignGD(SignGDParameters("gelu", SCHEDULE)).load_state_dict(saved(learned))


# as version 0.9 saved SignGD(SignGDParameters("relu", ExponentialSchedule(0.5, 0.9), 0.7))
EARLIER = {
    **{"dt": 0.001, "function": "relu", "scale": 0.7, "resting": 0.0, "initial_input": 0.0},
    "schedule": {"kind": "exponential", "initial": 0.5, "decay": 0.9},
    **{"spikes": "signed", "offset": None, "arguments": None, "momentum": 0.0},
    **{"method": "super", "alpha": 100.0, "members": 1, "dead_zone": 2 / 3},
}


@pytest.mark.parametrize("spikes", ["signed", "decoded"])
def test_state_dicts_of_earlier_versions(spikes):
    p = SignGDParameters("relu", SCHEDULE, members=1, spikes=spikes)
    p = p._replace(initial_input=0.0) if spikes == "signed" else p
    layer = SignGD(p)
    layer.load_state_dict({"_extra_state": {**EARLIER, "spikes": spikes}})
    assert (layer.p.scale, layer.p.method) == (0.7, "super")
    assert same(layer(X)[0], SignGD(p._replace(scale=0.7))(X)[0])
    layer.p = layer.p._replace(scale=0.5)
    copy.deepcopy(layer)


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"members": 1, "dead_zone": 0}, {"spikes": "signed"}])
@pytest.mark.parametrize("cell", [True, False], ids=["cell", "layer"])
def test_values_with_a_gradient_are_those_without(cell, options):
    if "spikes" in options:
        options = {**options, "initial_input": SCALE}
    p = SignGDParameters("gelu", SCHEDULE, SCALE, **options)
    module = module_of(p, cell, learnable=("scale", "resting", "dead_zone"))
    run = (lambda x: loop(module, x)) if cell else module
    y, state = run(X.clone().requires_grad_())
    assert y.requires_grad and state.v.requires_grad
    with torch.no_grad():
        other, last = run(X)
    assert same(y, other) and same(state.v, last.v) and same(state.x, last.x)


@pytest.mark.parametrize("learn", [(), ("scale", "resting", "dead_zone")])
def test_gradients_of_cells_and_layers_are_the_same(learn):
    p = SignGDParameters("gelu", SCHEDULE, SCALE)
    gradients = []
    for cell in (True, False):
        module = module_of(p, cell, learnable=learn)
        x = X.clone().requires_grad_()
        y = loop(module, x)[0] if cell else module(x)[0]
        y.square().sum().backward()
        gradients.append([x.grad, *[q.grad for q in module.parameters()]])
    for a, b in zip(*gradients, strict=True):
        assert float(a.abs().sum()) > 0
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_default_gradient_is_the_dithered_one():
    """dv / df = 1 within reach: at the last step dy / dx is f'(x)."""
    x = (0.5 * X).requires_grad_()
    y, _ = SignGD(SignGDParameters("gelu", sg.ConstantSchedule(1.0), 2.0))(x)
    (actual,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(nn.functional.gelu(x).sum(), x)
    torch.testing.assert_close(actual, expected)
    assert SignGDParameters().method == "dithered"
    y, _ = SignGD(SignGDParameters("gelu", sg.ConstantSchedule(1.0), 2.0, method="triangle"))(x)
    (other,) = torch.autograd.grad(y.sum(), x)
    assert not torch.allclose(other, expected, atol=0.1)


def test_methods_are_named():
    for layer, known in ((SignGD, "dithered, heaviside, super"), (GroupNeuron, "heaviside, super")):
        p = layer().p
        with pytest.raises(ValueError, match=f"method is one of {known}"):
            layer(p._replace(method="sigmoid"))


def test_recorded_states_of_what_learns():
    p = SignGDParameters("gelu", SCHEDULE)
    layer = SignGD(p, record_states=True, learnable=("resting", "scale"))
    y, states = layer(X)
    assert states.rest.shape == X.shape and same(states.v, y)
    y.square().sum().backward()
    other = SignGD(p, learnable=("resting", "scale"))
    other(X)[0].square().sum().backward()
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_nothing_is_recorded_where_nothing_asks(ours):
    cell, layer, _ = ours
    for module, x in ((cell(), X[0]), (layer(), X)):
        y, state = module(x)
        assert not y.requires_grad and not state.v.requires_grad
        with torch.no_grad():
            y, state = module(x.clone().requires_grad_())
        assert not y.requires_grad and not state.v.requires_grad


def test_spikes_of_all_forms_have_the_default_gradient():
    for spikes, options in (("signed", {}), ("ternary", {}), ("binary", {"offset": 0.0})):
        p = SignGDParameters("gelu", SCHEDULE, spikes=spikes, members=1, initial_input=0.0)
        x = X.clone().requires_grad_()
        SignGD(p._replace(**options))(x)[0].sum().backward()
        assert float(x.grad.abs().sum()) > 0
        with (
            pytest.raises(sg.InputError, match="dithered")
            if spikes != "signed"
            else warnings.catch_warnings()
        ):
            SignGD(p._replace(**options, method="super"))(x)


def test_a_network_by_hand_learns():
    """A class by the sign of a product, which no linear map knows; the layer before trains."""
    torch.manual_seed(4)
    x = torch.rand(256, 2) * 2 - 1
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = norse.SequentialState(nn.Linear(2, 32), SignGD("gelu"), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        y, _ = model(x.expand(4, *x.shape))
        loss = nn.functional.cross_entropy(y[-1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    y, _ = model(x.expand(4, *x.shape))
    assert float((y[-1].argmax(1) == labels).float().mean()) > 0.9


@pytest.mark.spikingjelly
def test_defaults_are_those_of_spikingjelly():
    node = sg.SignGDNode(step_mode="m")
    p = SignGD().p
    assert (p.function, p.schedule, p.members) == ("relu", node.schedule, node.members)
    assert (p.scale, p.resting, p.spikes) == (node.scale, node.resting, node.spikes)
    assert p.dead_zone == node.dead_zone
    assert same(SignGD()(X)[0], node(X))
    for spikes in ("signed", "ternary", "decoded"):
        p = Encode(spikes=spikes).p
        assert p.schedule == sg.Encode(spikes=spikes).dynamics.schedule
        assert Encode(p).p == p


@pytest.mark.parametrize("cell", [True, False], ids=["cell", "layer"])
def test_what_is_learned_stays_in_its_range(cell):
    """Whatever an optimiser makes of it: scales and thresholds positive, zones in [0, 2/3]."""
    given = SignGDParameters("gelu", scale=SCALE, dead_zone=SCALE / 4)
    module = module_of(given, cell, learnable=("scale", "dead_zone"))
    group = module_of(GroupNeuronParameters(3, SCALE), cell, learnable="v_th")
    with torch.no_grad():
        module.scale[:2] = torch.tensor([-1.0, 0.0])
        module.dead_zone[:3] = torch.tensor([-0.5, 1.5, 0.9])
        group.v_th[:2] = torch.tensor([-1.0, 0.0])
    x = X[0] if cell else X
    for each in (module, group):
        y, _ = each(x)
        assert bool(y.isfinite().all())
        y.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in each.parameters())
        copy.deepcopy(each)
    p = module.dynamics(module.p)
    assert bool((p.scale > 0).all()) and bool((p.dead_zone >= 0).all())
    assert bool((p.dead_zone <= sg.DEAD_ZONE).all())
    assert bool((group.dynamics(group.p).v_threshold > 0).all())
