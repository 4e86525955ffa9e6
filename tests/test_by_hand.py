"""Nodes by hand, with the habits of a user of SpikingJelly: one test for each."""

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd import ExponentialSchedule, GroupNode, InputError, SignGDNode
from spikingjelly_signgd.errors import FormatError
from spikingjelly_signgd.neurons import ListSchedule
from spikingjelly_signgd.neurons.by_hand import MEMBERS, SINGLE, default_schedule
from spikingjelly_signgd.neurons.choice import runs

pytestmark = pytest.mark.spikingjelly

FAST = ExponentialSchedule(1.0, 0.8)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def network(**options: Any) -> Any:
    return nn.Sequential(layer.Linear(64, 128), SignGDNode(**options), layer.Linear(128, 10))


def run(net: nn.Module, x_seq: Tensor, step_mode: str = "m") -> Tensor:
    functional.reset_net(net)
    functional.set_step_mode(net, step_mode)
    y: Tensor = net(x_seq) if step_mode == "m" else torch.stack([net(x) for x in x_seq])
    return y


def source(net: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    y: Tensor = net[2](function(net[0](x)))
    return y


# ---------------------------------------------------------------------------- works as written


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(("name", "function"), [("gelu", F.gelu), ("relu", F.relu)])
@pytest.mark.parametrize(("steps", "most"), [(1, 0.05), (4, 0.015), (50, 0.015)])
def test_it_works_as_written(
    step_mode: str, name: str, function: Callable[[Tensor], Tensor], steps: int, most: float
) -> None:
    """No schedule, no Encode, no Readout, biases on: the last output and the mean are near f."""
    net, x = network(function=name), torch.randn(32, 64)
    with torch.no_grad():
        y_seq = run(net, x.expand(steps, -1, -1), step_mode)
        expected = source(net, x, function)
    for y in (y_seq[-1], y_seq.mean(0)):
        assert float((y - expected).norm() / expected.norm()) < most


def test_an_input_that_changes_is_followed() -> None:
    net, x = network(function="gelu"), torch.randn(5, 32, 64)
    with torch.no_grad():
        y = run(net, x.repeat_interleave(3, 0))[2::3]
        expected = source(net, x, F.gelu)
    assert float((y - expected).norm() / expected.norm()) < 0.015


def test_no_arguments() -> None:
    node = SignGDNode()
    assert node.function.name == "relu" and node.spikes == "decoded"
    assert node.schedule == default_schedule(MEMBERS) and node.members == MEMBERS
    assert node.dead_zone == sg.DEAD_ZONE
    assert GroupNode().members == 1 and GroupNode().v_threshold == 1.0
    x = torch.randn(4, 5)
    assert_near(node(x), x.relu(), 0.04)
    assert torch.equal(sg.Encode()(x), x)


def test_what_is_left_out_fits_what_is_said() -> None:
    assert SignGDNode("relu", FAST).members == 1  # as ever, where steps are chosen
    assert SignGDNode("relu", members=4).schedule == ListSchedule((2.0, 0.5), tail=1.0)
    assert SignGDNode("relu", members=1).schedule == SINGLE
    assert SignGDNode("relu", spikes="ternary", initial_input=0.0).members == 1
    assert SignGDNode("relu", momentum=0.5).schedule == SINGLE
    assert SignGDNode("relu", spikes="signed", initial_input=0.0).members == MEMBERS


@pytest.mark.parametrize("spikes", ["signed", "ternary", "binary"])
def test_the_forms_of_spikes_ask_for_the_bias(spikes: str) -> None:
    offset: dict[str, Any] = {"offset": 0.0} if spikes == "binary" else {}
    with pytest.raises(InputError, match=r"Pass initial_input=bias.*sg.to_spikes\(net, example\)"):
        SignGDNode("gelu", spikes=spikes, **offset)
    SignGDNode("gelu", spikes=spikes, initial_input=0.0, **offset)


def test_the_decoded_form_ignores_an_initial_input_and_says_so() -> None:
    with pytest.warns(UserWarning, match="initial_input is ignored"):
        node = SignGDNode("gelu", initial_input=torch.ones(5))
    assert node.initial_input == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SignGDNode("gelu", initial_input=0.0)


# ----------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_gradients_by_default(step_mode: str) -> None:
    """Within reach the layer before has the gradient that the source network has."""
    net, x = network(function="gelu"), torch.randn(32, 64)
    target = torch.randn(32, 10)
    F.mse_loss(run(net, x.expand(4, -1, -1), step_mode)[-1], target).backward()
    actual = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    F.mse_loss(source(net, x, F.gelu), target).backward()
    expected = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(actual) == len(expected) == 4
    for a, b in zip(actual, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02


@pytest.mark.parametrize("spikes", ["signed", "ternary"])
def test_gradients_of_spikes(spikes: str) -> None:
    linear = nn.Linear(5, 4, bias=False)
    node: Any = SignGDNode("gelu", spikes=spikes, initial_input=nn.Parameter(torch.zeros(4)))
    run(nn.Sequential(linear, node), torch.randn(6, 3, 5)).square().sum().backward()
    for parameter in (linear.weight, node.initial_input):
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0


def test_nothing_is_recorded_without_a_gradient() -> None:
    net, x = network(), torch.randn(3, 8, 64)
    with torch.no_grad():
        assert not run(net, x).requires_grad and not net[1].v.requires_grad
    assert not run(net[1], torch.randn(3, 8, 5)).requires_grad


def test_a_network_learns() -> None:
    """x -> sin(3 x), over time steps and updates, the state reset as always."""
    net = nn.Sequential(layer.Linear(1, 32), SignGDNode("tanh", members=4), layer.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x = torch.linspace(-1, 1, 64)[:, None]
    losses = []
    for _ in range(150):
        loss = F.mse_loss(run(net, x.expand(4, -1, -1))[-1], torch.sin(3 * x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.3 and sum(losses[-10:]) / 10 < 0.03


def test_truncated_backpropagation_through_time() -> None:
    net, x = network(function="gelu"), torch.randn(8, 64)
    functional.set_step_mode(net, "s")
    for _ in range(3):
        net(x).square().mean().backward()
        functional.detach_net(net)
    assert float(net[0].weight.grad.norm()) > 0


# ---------------------------------------------------------------------------------- parameters


def test_a_parameter_stays_one() -> None:
    scale, resting = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))
    node = SignGDNode("gelu", scale=scale, resting=resting, dead_zone=torch.full((5,), 0.5))
    assert node.scale is scale and dict(node.named_parameters()).keys() == {"scale", "resting"}
    slope = nn.Parameter(torch.full((5,), 0.25))
    prelu = SignGDNode("prelu", arguments={"weight": slope})
    assert prelu.argument_weight is slope
    threshold = nn.Parameter(torch.tensor(0.8))
    assert GroupNode(2, threshold).v_threshold is threshold
    bias = nn.Parameter(torch.ones(5))
    assert SignGDNode("gelu", spikes="signed", initial_input=bias).initial_input is bias


def test_learnable_makes_parameters() -> None:
    node = SignGDNode("gelu", FAST, learnable=("scale", "resting", "dead_zone"))
    group = GroupNode(4, learnable=("v_threshold", "initial_charge"))
    signed = SignGDNode("gelu", spikes="signed", initial_input=torch.ones(5), scale=2.0, members=2,
                        learnable=("initial_input", "scale"))  # fmt: skip
    prelu = SignGDNode("prelu", arguments={"weight": torch.full((5,), 0.2)}, learnable="weight")
    for module, names in (
        (node, {"scale", "resting", "dead_zone"}),
        (group, {"v_threshold", "initial_charge"}),
        (signed, {"initial_input", "scale"}),
        (prelu, {"argument_weight"}),
    ):
        parameters = dict(module.named_parameters())
        assert parameters.keys() == names
        (run(module, torch.randn(4, 3, 5)) - 1).square().sum().backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
    with pytest.raises(InputError, match="'tau' is not one"):
        SignGDNode("gelu", learnable=("tau",))
    with pytest.raises(InputError, match="no initial input to learn"):
        SignGDNode("gelu", learnable="initial_input")


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_changed_parameter_counts_at_once_and_stays_in_its_range(step_mode: str) -> None:
    node: Any = SignGDNode("relu", FAST, scale=1.0, dead_zone=0.5, learnable=("scale", "dead_zone"))
    group: Any = GroupNode(2, 1.0, learnable="v_threshold")
    x = torch.randn(4, 3, 5)
    for scale, theta, used_scale, used_theta in (
        (0.3, 0.25, 0.3, 0.25),
        (-1.0, -0.5, 1e-6, 0.0),
        (2.0, 0.9, 2.0, 2 / 3),
    ):
        with torch.no_grad():
            node.scale.fill_(scale)
            node.dead_zone.fill_(theta)
            group.v_threshold.fill_(scale)
        p = node.dynamics
        assert_near(p.scale, torch.tensor(used_scale), 1e-7)
        assert_near(p.dead_zone, torch.tensor(used_theta), 1e-7)
        plain = SignGDNode(
            "relu", FAST, scale=p.scale.detach(), dead_zone=p.dead_zone.detach().clone()
        )
        assert torch.equal(run(node, x, step_mode), run(plain, x, step_mode))
        assert_near(group.dynamics.v_threshold, torch.tensor(used_scale), 1e-7)
    with pytest.raises(InputError, match=r"a learned dead_zone must stay in \[0, 0.6667\]"):
        SignGDNode("relu", dead_zone=0.9, learnable="dead_zone")
    with pytest.raises(InputError, match="a learned scale must stay in"):
        SignGDNode("relu", scale=nn.Parameter(torch.tensor(-1.0)))


def test_a_parameter_out_of_its_range_finds_back() -> None:
    node: Any = SignGDNode("relu", FAST, learnable="scale")
    with torch.no_grad():
        node.scale.fill_(-0.1)
    for sign, moves in ((-1.0, True), (1.0, False)):
        node.zero_grad()
        (sign * node.dynamics.scale).backward()
        assert bool(node.scale.grad != 0) is moves


def test_a_tensor_that_hangs_on_a_graph_is_refused() -> None:
    with pytest.raises(InputError, match="nn.Parameter to train it"):
        SignGDNode("gelu", scale=torch.ones(5, requires_grad=True) * 2)


# ---------------------------------------------------------------------------------- state dicts


def saved(module: nn.Module) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def test_a_state_dict_holds_what_defines_a_node() -> None:
    given: list[tuple[nn.Module, nn.Module]] = [
        (SignGDNode("gelu", scale=2.0, resting=0.5, dead_zone=0.25), SignGDNode("gelu")),
        (SignGDNode("gelu", dead_zone=0.0), SignGDNode("gelu")),
        (SignGDNode("gelu", learnable="scale"), SignGDNode("gelu", scale=3.0, learnable="scale")),
        (GroupNode(4, 0.7, initial_charge=0.25), GroupNode(4)),
        (
            SignGDNode("relu", FAST, spikes="signed", initial_input=0.5),
            SignGDNode("relu", FAST, spikes="signed", initial_input=0.0),
        ),
        (sg.Readout(0.5), sg.Readout()),
        (sg.Readout(torch.rand(5)), sg.Readout(torch.zeros(5))),
        (
            sg.Readout(0.5, spikes="binary", schedule=FAST, offset=2.0),
            sg.Readout(0.0, spikes="binary", schedule=FAST, offset=1.0),
        ),
    ]
    x = torch.randn(4, 3, 5)
    for node, other in given:
        assert all(isinstance(value, Tensor) for value in node.state_dict().values())
        assert not other.load_state_dict(saved(node)).missing_keys
        assert torch.equal(run(other, x), run(node, x))


@pytest.mark.parametrize(
    ("node", "other", "message"),
    [
        (lambda: SignGDNode("gelu"), lambda: SignGDNode("relu"), "function='gelu', this one 'relu"),
        (
            lambda: SignGDNode("relu", FAST, members=8),
            lambda: SignGDNode("relu", FAST, members=4),
            "members=8, this one 4",
        ),
        (lambda: SignGDNode(), lambda: SignGDNode("relu", FAST, members=8), "schedule=.*0.8"),
        (
            lambda: SignGDNode("relu", members=2),
            lambda: SignGDNode("relu", members=2, spikes="signed", initial_input=0.0),
            "spikes='decoded', this one 'signed'",
        ),
        (
            lambda: SignGDNode("leaky_relu", arguments={"negative_slope": 0.1}),
            lambda: SignGDNode("leaky_relu"),
            "arguments=.*negative_slope",
        ),
        (lambda: GroupNode(4), lambda: GroupNode(2), "members=4, this one 2"),
        (lambda: sg.Encode(), lambda: sg.Encode(FAST), "Encode: .* schedule="),
        (lambda: sg.Encode(), lambda: sg.Encode(spikes="decoded"), "spikes='signed', this one"),
        (lambda: sg.Encode(momentum=0.5), lambda: sg.Encode(), "schedule=|momentum=0.5"),
        (
            lambda: sg.Readout(spikes="ternary", schedule=FAST),
            lambda: sg.Readout(spikes="ternary", schedule=ExponentialSchedule(1.0, 0.5)),
            "Readout: .* schedule=",
        ),
        (lambda: GroupNode(4), lambda: GroupNode(4, signed=True), "signed=False, this one True"),
    ],
)
def test_another_neuron_is_refused_by_name(
    node: Callable[[], nn.Module], other: Callable[[], nn.Module], message: str
) -> None:
    state = nn.Sequential(nn.Linear(5, 5), node()).state_dict()
    with pytest.raises(FormatError, match=message):
        nn.Sequential(nn.Linear(5, 5), other()).load_state_dict(state)


def test_a_state_dict_of_an_earlier_version_is_loaded() -> None:
    node = SignGDNode("relu", FAST, scale=torch.rand(5) + 0.5)
    old = {k: v for k, v in node.state_dict().items() if k != "_extra_state"}
    other = SignGDNode("relu", FAST, scale=torch.ones(5))
    assert not other.load_state_dict(old).missing_keys
    assert torch.equal(other.scale, node.scale)
    group = GroupNode(4, torch.rand(5) + 0.5)
    GroupNode(4, torch.ones(5)).load_state_dict({"v_threshold": group.v_threshold})
    readout = sg.Readout(torch.zeros(5))
    readout.load_state_dict({"initial": torch.ones(5)})
    assert torch.equal(readout.initial, torch.ones(5))
    sg.Encode().load_state_dict({})


# -------------------------------------------------------------------------------------- habits


signgd: Any = SignGDNode  # to be called with what mypy would find
group: Any = GroupNode
encode: Any = sg.Encode


def test_keywords_of_the_if_node() -> None:
    same: dict[str, Any] = {
        **{"v_reset": None, "detach_reset": False, "step_mode": "m", "backend": "torch"},
        **{"store_v_seq": True, "surrogate_function": surrogate.ATan()},
    }
    for node in (SignGDNode("relu", members=1, **same), GroupNode(v_threshold=0.8, **same)):
        assert node.step_mode == "m" and node.backend == "torch" and node.store_v_seq
    assert GroupNode(detach_reset=True).detach_reset


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: signgd(v_threshold=1.0), "has no threshold; .*scale="),
        (lambda: signgd(v_reset=0.0), "never set back"),
        (lambda: signgd(detach_reset=True), "no reset"),
        (lambda: signgd(tau=2.0), "does not leak"),
        (lambda: group(v_reset=0.0), "soft reset"),
        (lambda: group(tau=2.0), "LIFNode"),
        (lambda: group(scale=2.0), "v_threshold="),
        (lambda: group(1.0), r"members is the number .*1.0, of type float"),
        (lambda: signgd(members=2.0), r"members is the number .*2.0, of type float"),
        (lambda: signgd(members="4"), "'4', of type str"),
        (lambda: signgd(members=True), "True, of type bool"),
        (lambda: group("4"), "'4', of type str"),
        (lambda: group(True), "True, of type bool"),
        (lambda: signgd("relu", 0.5), r"ConstantSchedule\(0.5\)"),
        (lambda: signgd("relu", ExponentialSchedule), "schedule gives the step size"),
        (lambda: encode(0.5), r"ConstantSchedule\(0.5\)"),
        (lambda: signgd("rely"), "no nonlinearity is called 'rely'"),
        (lambda: signgd(3), "a row's name, a Nonlinearity or a callable"),
        (lambda: signgd(nn.GELU), r"is the class GELU.* Pass an instance, GELU\(\)"),
        (lambda: signgd(FAST), "the first argument is the function.* Pass schedule="),
        (lambda: signgd(scale=[1.0, 2.0]), r"scale is .*list. Pass torch.tensor\(scale\)"),
        (lambda: signgd(scale="2"), "scale is a number or a tensor, but it is '2', of type str"),
        (lambda: signgd(scale=None), "scale is .*NoneType"),
        (lambda: signgd(resting="a"), "resting is .*'a'"),
        (lambda: signgd(momentum="a"), "momentum is .*'a'"),
        (lambda: signgd(spikes="signed", initial_input=[1.0]), "initial_input is .*list"),
        (lambda: signgd(spikes="signed", initial_input=(0.0, "a")), "initial_input is .*'a'"),
        (lambda: group(v_threshold=None), "v_threshold is .*NoneType"),
        (lambda: group(v_threshold="1"), "v_threshold is .*'1'"),
        (lambda: group(initial_charge="1"), "initial_charge is .*'1'"),
        (lambda: signgd(momentum=0.5, learnable="dead_zone"), "momentum=0.5 .*no dead zone"),
        (
            lambda: signgd(spikes="binary", initial_input=0.0, offset=1.0, learnable="dead_zone"),
            "spikes='binary' .*no dead zone",
        ),
    ],
)
def test_what_is_meant_otherwise_is_told_at_construction(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_unknown_keyword_is_pythons_error() -> None:
    for node in (signgd, group):
        with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
            node(treshold=1.0)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_group_node_of_one_member_is_the_if_node(step_mode: str, detach_reset: bool) -> None:
    """Outputs and v to the bit; gradients, which kernels sum in another order."""
    shared: dict[str, Any] = {"v_reset": None, "detach_reset": detach_reset}
    ours, theirs = GroupNode(initial_charge=0.0, **shared), neuron.IFNode(**shared)
    x_seq, weight, grads = torch.randn(9, 4, 50), torch.randn(9, 4, 50), []
    outputs = []
    for node in (ours, theirs):
        x = x_seq.clone().requires_grad_()
        y = run(node, x, step_mode)
        (y * weight).sum().backward()
        outputs.append(y)
        grads.append(x.grad)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(ours.v, theirs.v)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_monitors() -> None:
    net: Any = nn.Sequential(layer.Linear(5, 4), SignGDNode(store_v_seq=True))
    outputs = monitor.OutputMonitor(net, SignGDNode)
    spikes = monitor.AttributeMonitor("spike_seq", False, net, SignGDNode)
    y_seq = run(net, torch.randn(6, 3, 5))
    assert torch.equal(outputs["1"][0], y_seq)
    assert spikes["1"][0].dtype == torch.int16 and spikes["1"][0].shape == (6, 3, 4)
    assert torch.equal(net[1].v_seq, y_seq)


def test_repr_is_in_their_style() -> None:
    assert repr(SignGDNode("gelu")) == (
        "SignGDNode(gelu, ListSchedule(values=(4.0, 1.0), tail=1.0), scale=1.0, resting=0.0, "
        "members=8, dead_zone=0.666667, spikes='decoded', step_mode=s, "
        f"backend={runs('auto')})"
    )
    text = repr(GroupNode(4, 0.7, backend="torch", step_mode="m"))
    assert "v_threshold=0.7" in text and "step_mode=m, backend=torch" in text
    assert re.search(r"\(surrogate_function\): Sigmoid\(alpha=4.0", text)


@pytest.mark.parametrize("learnable", [(), ("scale", "dead_zone")])
def test_copies(learnable: tuple[str, ...]) -> None:
    net, x = network(function="gelu", learnable=learnable), torch.randn(2, 8, 64)
    run(net, x).sum().backward()
    functional.reset_net(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(run(other, x), run(net, x))
        assert [n for n, _ in other.named_parameters()] == [n for n, _ in net.named_parameters()]
        run(other, x).sum().backward()
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=False)[1].members == MEMBERS


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # of torch, by torch
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("options", [{}, {"learnable": ("scale", "dead_zone")}], ids=str)
def test_compiled_it_is_the_same(step_mode: str, options: dict[str, Any]) -> None:
    net: Any = nn.Sequential(layer.Linear(6, 5), SignGDNode("gelu", **options))
    functional.set_step_mode(net, step_mode)
    x = torch.randn(3, 4, 6) if step_mode == "m" else torch.randn(4, 6)
    found = []
    for call in (net, torch.compile(net, backend="aot_eager")):
        functional.reset_net(net)
        net.zero_grad()
        y = call(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    torch._dynamo.reset()
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_data_parallel() -> None:
    """On a CPU it calls the module; on GPUs it calls such replicas."""
    net, x = network(function="gelu", learnable=("scale", "dead_zone")), torch.randn(2, 8, 64)
    assert torch.equal(run(nn.DataParallel(net), x), run(net, x))
    functional.reset_net(net)
    node, expected = net[1], run(net[1], x)
    replica = node._replicate_for_data_parallel()
    replica._parameters = {}
    copies = {name: p.clone() for name, p in node.named_parameters()}
    for name, value in copies.items():
        setattr(replica, name, value)
    actual = run(replica, x)
    assert torch.equal(actual, expected)
    actual.sum().backward()
    assert float(node.scale.grad.abs()) > 0 and node.v is not replica.v


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions_train(dtype: torch.dtype) -> None:
    net = network(function="gelu", learnable=("scale", "dead_zone")).to(dtype)
    y = run(net, torch.randn(2, 8, 64, dtype=dtype))
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        run(network(), torch.randn(2, 8, 64)).float().square().mean().backward()


def test_the_page_of_nodes_by_hand() -> None:
    page = (Path(__file__).parents[1] / "docs/by_hand.md").read_text()
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, scope)
    assert float(scope["loss"].detach()) < 1.0 and scope["same"]
    assert scope["names"] == ["scale", "resting", "dead_zone", "v_threshold", "initial_charge"]


def assert_near(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=atol)
