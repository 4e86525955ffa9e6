"""The backends of SpikingJelly nodes: what is chosen, told, refused, and that nothing changes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd import ExponentialSchedule, GroupNode, SignGDNode
from spikingjelly_signgd.neurons import Choice
from spikingjelly_signgd.neurons.kernels import cpu, launch
from spikingjelly_signgd.plugins.spikingjelly import build

pytestmark = pytest.mark.spikingjelly

SCHEDULE = ExponentialSchedule(0.5, 0.9)
signed = partial(SignGDNode, spikes="signed", initial_input=0.0)
NODES: dict[str, Callable[..., SignGDNode | GroupNode]] = {
    "signed": lambda **kw: signed("relu", SCHEDULE, initial_input=0.3, dead_zone=0, **kw),
    "binary": lambda **kw: signed("abs", SCHEDULE, spikes="binary", offset=0.7, **kw),
    "ternary": lambda **kw: signed("abs", SCHEDULE, spikes="ternary", scale=0.7, dead_zone=0, **kw),
    "ternary, silent": lambda **kw: signed(
        "abs", SCHEDULE, spikes="ternary", scale=0.7, dead_zone=0.5, **kw
    ),
    "silent": lambda **kw: signed("relu", SCHEDULE, members=4, dead_zone=2 / 3, **kw),
    "silent by channel": lambda **kw: signed(
        "relu", SCHEDULE, members=2, dead_zone=torch.tensor([0.0, 0.25, 0.5, 2 / 3, 0.75]), **kw
    ),
    "decoded": lambda **kw: SignGDNode("hardswish", SCHEDULE, spikes="decoded", **kw),
    "scaled": lambda **kw: signed("leaky_relu", SCHEDULE, scale=torch.rand(5) + 0.5, **kw),
    "any function": lambda **kw: signed(lambda x: x.clamp(-0.3, 0.4), SCHEDULE, **kw),
    "group": lambda **kw: GroupNode(4, 0.7, **kw),
}


def run(node: SignGDNode | GroupNode, x_seq: Tensor, step_mode: str) -> Tensor:
    functional.reset_net(node)
    functional.set_step_mode(node, step_mode)
    return node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_backend_and_step_mode_gives_the_same(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    kernel = NODES[name](store_v_seq=True)
    definition = copy.deepcopy(kernel)
    definition.backend = "torch"
    x_seq = (torch.randn(9, 3, 5) * 4).round().div(4).to(dtype)
    for step_mode in ("m", "s"):
        y = run(kernel, x_seq, step_mode)
        expected = run(definition, x_seq, step_mode)
        assert y.dtype == dtype and torch.equal(y, expected), step_mode
        assert torch.equal(kernel.v, definition.v)
        assert torch.equal(kernel.v_seq, definition.v_seq)
        if name != "group":
            assert torch.equal(kernel.spike_seq, definition.spike_seq)


def counted(name: str, function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*args, **options)

    return call


def test_auto_takes_the_kernels_where_they_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("signgd", "group"):
        monkeypatch.setattr(launch, name, counted(name, getattr(launch, name), calls))
    run(NODES["signed"](), torch.randn(4, 2, 5), "m")
    run(NODES["group"](), torch.randn(4, 2, 5), "m")
    assert calls == ["signgd", "group"]
    run(NODES["signed"](backend="torch"), torch.randn(4, 2, 5), "m")
    run(NODES["group"](), torch.randn(4, 2, 5, dtype=torch.float64), "m")
    assert calls == ["signgd", "group"]


def test_the_choice_is_told() -> None:
    node = NODES["signed"]()
    assert node.choice(torch.zeros(1)) == ("cpu", "")
    backend, why = node.choice(torch.zeros(1, dtype=torch.float64))
    assert backend == "torch" and "float64" in why
    node.backend = "torch"
    assert node.choice(torch.zeros(1)).backend == "torch"
    backend, why = SignGDNode(
        "relu", SCHEDULE, momentum=0.5, spikes="signed", initial_input=0.0
    ).choice(torch.zeros(1))
    assert backend == "torch" and "momentum" in why


def test_networks_tell_the_choice_of_each_neuron() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.GELU()).eval()
    network = sg.convert(model, torch.randn(16, 4), time_steps=8, dead_zone=0)
    x = torch.zeros(1, 4)
    assert set(build(network).choices(x).values()) == {Choice("cpu")}
    slow = build(network, kernels="torch")
    assert {choice.backend for choice in slow.choices(x).values()} == {"torch"}
    fast = sg.run(sg.build(network, kernels="cpu"), x, 8)[8]
    assert torch.allclose(fast, sg.run(slow, x, 8)[8], atol=1e-6)


@pytest.mark.parametrize("name", NODES)
def test_an_unknown_backend_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="auto, cpu, cupy, torch.*'cuda'"):
        NODES[name](backend="cuda")
    node = NODES[name]()
    with pytest.raises(ValueError, match="'lava'"):
        node.backend = "lava"
    assert node.backend == "auto"


def test_an_absent_backend_says_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    x_seq = torch.randn(4, 2, 5)
    with pytest.raises(sg.BackendUnavailable, match=r"cpu.*\.to\('cuda'\)"):
        run(NODES["group"](backend="cupy"), x_seq, "m")
    with pytest.raises(sg.BackendUnavailable, match=r"float64.*x\.float\(\)"):
        run(NODES["signed"](backend="cpu"), x_seq.double(), "m")
    monkeypatch.setattr(cpu, "missing", lambda function: "not built; install g++.")
    with pytest.raises(sg.BackendUnavailable, match="install g"):
        run(NODES["signed"](backend="cpu"), x_seq, "m")
    node = NODES["signed"]()
    assert node.choice(x_seq) == ("torch", "not built; install g++.")
    run(node, x_seq, "m")
    assert sg.backends()["cpu"] == "not built; install g++." and sg.backends()["torch"] == ""


def test_set_backend_of_the_older_spikingjelly() -> None:
    if not hasattr(functional, "set_backend"):
        pytest.skip("spikingjelly 2 has no functional.set_backend")
    net = nn.Sequential(NODES["signed"](step_mode="m"), NODES["group"](step_mode="m"))
    functional.set_backend(net, "torch")
    assert [node.backend for node in net] == ["torch", "torch"]
    functional.set_backend(net, "cupy")
    assert [node.backend for node in net] == ["cupy", "cupy"]


@pytest.mark.parametrize("spikes", ["signed", "decoded"])
@pytest.mark.parametrize(
    "step", [surrogate.Sigmoid(), surrogate.ATan(), surrogate.PiecewiseQuadratic(), sg.Surrogate()]
)
def test_signgd_trains_through_a_surrogate(spikes: str, step: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(3)
    kernel = signed("gelu", SCHEDULE, spikes=spikes, surrogate_function=step, dead_zone=0)
    definition = copy.deepcopy(kernel)
    definition.backend = "torch"
    x_seq, weight = torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    grads = []
    for node in (kernel, definition):
        x = x_seq.clone().requires_grad_()
        (run(node, x, "m") * weight).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["signed", "binary", "ternary", "silent", "decoded", "scaled"])
def test_without_a_surrogate_the_gradient_is_that_of_the_definition(name: str) -> None:
    torch.manual_seed(4)
    kernel = NODES[name]()
    definition = copy.deepcopy(kernel)
    definition.backend = "torch"
    x_seq, weight, grads = torch.randn(6, 4, 5), torch.randn(6, 4, 5), []
    for node, step_mode in ((kernel, "m"), (kernel, "s"), (definition, "m")):
        x = x_seq.clone().requires_grad_()
        (run(node, x, step_mode) * weight).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert grads[0].abs().sum() > 0
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-5, atol=1e-6)


def test_a_surrogate_needs_spikes_that_carry_a_gradient() -> None:
    for wrong in ({"spikes": "binary", "offset": 0.0}, {"spikes": "ternary"}, {"momentum": 0.5}):
        with pytest.raises(ValueError, match="leave surrogate_function out"):
            signed("relu", SCHEDULE, surrogate_function=sg.Surrogate(), **wrong)


def test_an_assigned_buffer_counts_at_once_and_a_wrong_one_never() -> None:
    node = SignGDNode("relu", SCHEDULE, scale=torch.tensor(0.5), spikes="decoded")
    x = torch.ones(2, 3)
    half = run(node, x.unsqueeze(0), "m")
    for _ in range(2):
        with pytest.raises(ValueError, match="positive"):
            node.scale = torch.tensor(-1.0)
            run(node, x.unsqueeze(0), "m")
    node.scale = torch.tensor(2.0)
    assert torch.equal(run(node, x.unsqueeze(0), "m"), 4 * half)
    node.schedule = ExponentialSchedule(0.25, 0.9)
    assert torch.equal(run(node, x.unsqueeze(0), "m"), 2 * half)
    compiled = torch.compile(node, backend="eager")
    functional.reset_net(node)
    assert torch.equal(compiled(x.unsqueeze(0)), 2 * half)
    node.scale = torch.tensor(4.0)
    functional.reset_net(node)
    assert torch.equal(compiled(x.unsqueeze(0)), 4 * half)


def test_the_choice_is_that_of_training_too() -> None:
    node = SignGDNode(
        "relu",
        SCHEDULE,
        surrogate_function=sg.Surrogate(),
        dead_zone=0,
        spikes="signed",
        initial_input=0.0,
    )
    x = torch.zeros(1, requires_grad=True)
    assert node.choice(x).backend == "cpu"
    node.store_v_seq = True
    assert node.choice(x).backend == "torch" and "v_seq" in node.choice(x).reason
    with torch.no_grad():
        assert node.choice(x).backend == "cpu"
    group = GroupNode(2, surrogate_function=surrogate.Erf())
    assert group.choice(x).backend == "torch" and "Erf" in group.choice(x).reason
    assert group.choice(x.detach()).backend == "cpu"


def test_a_node_may_move_to_the_meta_device() -> None:
    assert (
        SignGDNode("relu", SCHEDULE, scale=torch.rand(3), spikes="signed", initial_input=0.0)
        .to("meta")
        .scale.is_meta
    )
