"""The new forms as nodes of both simulators, and in a network: the numbers of the definitions."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import network as description
from spikingjelly_signgd.neurons import (
    GroupNeuronParameters,
    SignedGroupState,
    group_initial_v,
    growth_initial_state,
    growth_step,
    nonlinearity,
    scan,
    signed_group_step,
    signgd_decoded_step,
    signgd_initial_state,
)

pytestmark = pytest.mark.spikingjelly

SCHEDULE = sg.ExponentialSchedule(0.5, 0.8)
THRESHOLDS = torch.tensor([0.5, 1.0, 1.5, 2.0, 0.7])
CHARGES = torch.tensor([0.5, 0.25, 0.0, 0.5, 1.0])
X = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))  # [T, B, N]
SCALES = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])


def nodes(**options) -> dict[str, nn.Module]:
    return {
        "several signs": sg.SignGDNode(
            "tanh", SCHEDULE, scale=SCALES, members=3, dead_zone=0, **options
        ),
        "several signs, decoded": sg.SignGDNode(
            "relu", SCHEDULE, spikes="decoded", members=5, dead_zone=0, **options
        ),
        "several signs, binary": sg.SignGDNode(
            "relu", SCHEDULE, spikes="binary", offset=SCALES, members=2, **options
        ),
        "group by channel": sg.GroupNode(4, THRESHOLDS, initial_charge=CHARGES, **options),
        "group, signed": sg.GroupNode(4, 0.3, signed=True, **options),
        "group, signed by channel": sg.GroupNode(
            2, THRESHOLDS, initial_charge=CHARGES, signed=True, **options
        ),
        "growth": sg.GrowthNode("amax", {"dim": (-1,)}, **options),
    }


@pytest.fixture(params=nodes())
def name(request) -> str:
    return request.param


def run(node: Any, x_seq: Tensor, step_mode: str) -> Tensor:
    from spikingjelly.activation_based import functional

    functional.reset_net(node)
    node.step_mode = step_mode
    return node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])


def test_step_modes_and_backends_give_the_same(name):
    """Outputs, v_seq and spike_seq in both step modes, by kernels and by the definition."""
    from spikingjelly.activation_based import functional

    found = []
    for backend in ("cpu", "torch"):
        node = nodes(backend=backend, store_v_seq=True)[name]
        assert node.choice(X[0]).backend == backend
        for step_mode in ("m", "s"):
            y = run(node, X, step_mode)
            found.append((y, node.v_seq, node.spike_seq, node.v))
        with torch.no_grad():
            functional.reset_net(node)
            node.step_mode = "m"
            cut = torch.cat([node(X[:2]), node(X[2:])])
        assert torch.equal(cut, found[0][0])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a is b
    if name.startswith("several"):
        assert found[0][2].dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(name, dtype):
    node = nodes()[name]
    y = run(node, X.to(dtype), "m")
    assert y.dtype == dtype
    assert node.v.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if name.endswith("signed"):
        assert node.sent.dtype == node.v.dtype


def test_copied_pickled_saved_and_moved(name):
    node = nodes()[name]
    expected = run(node, X, "m")
    file = io.BytesIO()
    torch.save(node.state_dict(), file)
    file.seek(0)
    other = nodes()[name]
    for buffer in other.buffers():
        buffer.fill_(3.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(node), pickle.loads(pickle.dumps(node)), other]
    for each in copies:
        assert torch.equal(run(each, X, "m"), expected)
        mine = {id(buffer) for buffer in node.buffers()}
        assert not mine & {id(buffer) for buffer in each.buffers()}
    wide = copy.deepcopy(node).double()
    assert all(buffer.dtype == torch.float64 for buffer in wide.buffers())
    assert run(wide, X.double(), "m").dtype == torch.float64
    assert "members" in repr(node) or name == "growth"
    assert nodes()[name].to("meta") is not None


def test_thresholds_are_buffers_of_the_node_that_count_at_once():
    given = THRESHOLDS.clone()
    node = sg.GroupNode(2, given, initial_charge=CHARGES)
    assert set(node.state_dict()) == {"v_threshold", "initial_charge"}
    before = run(node, X, "m")
    given.fill_(9.0)
    assert torch.equal(run(node, X, "m"), before)
    node.v_threshold = THRESHOLDS * 2
    p = GroupNeuronParameters(2, THRESHOLDS * 2, CHARGES)
    expected = sg.neurons.group_multi_step(X, group_initial_v(X[0], p), p).y
    assert torch.equal(run(node, X, "m"), expected)
    with pytest.raises(ValueError, match="v_threshold"):
        node.v_threshold = -THRESHOLDS
        run(node, X, "m")
    with pytest.raises(sg.InputError, match="broadcast"):
        run(sg.GroupNode(2, torch.ones(3, 4, 5)), X, "m")


def test_a_signed_node_counts_what_it_sent_and_forgets_it_on_reset():
    from spikingjelly.activation_based import functional

    node = sg.GroupNode(2, 1.0, signed=True, step_mode="m")
    y = node(X)
    assert torch.equal(node.sent, (y / 0.5).sum(0)) and bool((node.sent >= 0).all())
    assert bool((y < 0).any())
    functional.reset_net(node)
    assert node.sent is None and node.v == 0.25
    assert torch.equal(node(X), y)
    x = X.clone().requires_grad_()
    functional.reset_net(node)
    node(x).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    assert node.choice(x).backend == "torch" and "signed" in node.choice(x).reason


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="selects one of its inputs.*max_pool.*'gelu'"):
        sg.GrowthNode("gelu")
    with pytest.raises(ValueError, match="from 1 to 8"):
        sg.SignGDNode("relu", SCHEDULE, members=9, dead_zone=0)
    with pytest.raises(ValueError, match="momentum is that of single signs"):
        sg.SignGDNode("relu", SCHEDULE, members=2, momentum=0.5)
    with pytest.raises(sg.InputError, match="one input for each argument"):
        sg.GrowthNode("maximum")(X[0])


def test_compiles_in_one_graph(name):
    from spikingjelly.activation_based import functional

    node = nodes(step_mode="m")[name]
    expected = node(X)
    functional.reset_net(node)
    torch.compiler.reset()
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X), expected)
    functional.reset_net(node)
    assert torch.equal(compiled(X), expected)
    torch.compiler.reset()


# -- in a network ---------------------------------------------------------------------------------


def signgd_network() -> description.SpikingNetwork:
    """8 -> 6 tanh neurons of 3 signs -> 4 gelu neurons of 2."""
    torch.manual_seed(1)
    tensors = [
        {"weight": torch.randn(6, 8) / 3, "bias": torch.randn(6) / 3},
        {"weight": torch.randn(4, 6) / 2, "bias": torch.randn(4) / 3},
    ]
    nodes = (
        description.Input(name="x", shape=("1*batch", 8)),
        _linear("l1", "x", tensors[0]),
        description.SignGDNeuron(
            name="n1",
            inputs=("l1",),
            function=nonlinearity("tanh"),
            scale=torch.rand(6) + 0.5,
            members=3,
            schedule=SCHEDULE,
            shape=("1*batch", 6),
        ),
        _linear("l2", "n1", tensors[1]),
        description.SignGDNeuron(
            name="n2",
            inputs=("l2",),
            function=nonlinearity("relu"),
            members=2,
            schedule=SCHEDULE,
            shape=("1*batch", 4),
        ),
    )
    return description.SpikingNetwork(nodes, "n2", 8)


def _linear(name: str, source: str, tensors: dict[str, Tensor]) -> description.Linear:
    size = tensors["weight"].shape[0]
    return description.Linear(
        name=name, inputs=(source,), shape=("1*batch", size), op="linear", tensors=tensors
    )


def group_network() -> description.SpikingNetwork:
    """8 -> 6 signed neurons with thresholds by channel -> growth of pairs' maximum -> mean."""
    torch.manual_seed(1)
    tensors = {"weight": torch.randn(6, 8) / 3, "bias": torch.randn(6) / 3}
    nodes = (
        description.Input(name="x", shape=("1*batch", 8)),
        _linear("l1", "x", tensors),
        description.GroupNeuron(
            name="n1",
            inputs=("l1",),
            shape=("1*batch", 6),
            function=nonlinearity("relu"),
            members=3,
            v_threshold=torch.rand(6) + 0.5,
            initial_charge=torch.rand(6),
            signed=True,
        ),
        description.Growth(
            name="pool",
            inputs=("n1",),
            shape=("1*batch",),
            function=nonlinearity("amax"),
            arguments={"dim": (-1,)},
        ),
        description.Average(name="mean", inputs=("pool",), shape=("1*batch",)),
    )
    return description.SpikingNetwork(nodes, {"mean": "mean", "pool": "pool"}, 8)


def test_a_signgd_network_by_hand_is_the_definition():
    """SpikingJelly decoded and by spikes, Norse, and the steps one after the other."""
    network = signgd_network()
    x = torch.randn(5, 8)
    by_name = {node.name: node for node in network.nodes}
    first, second = by_name["n1"].parameters, by_name["n2"].parameters
    current = nn.functional.linear(x, **by_name["l1"].tensors)
    start = signgd_initial_state(current, first)
    v1, _ = scan(signgd_decoded_step, [(current,)] * 8, start, first)
    currents = [nn.functional.linear(v, **by_name["l2"].tensors) for v in v1]
    start = signgd_initial_state(currents[0], second)
    expected, _ = scan(signgd_decoded_step, [(c,) for c in currents], start, second)
    for target in ("spikingjelly", "norse"):
        found = sg.run(sg.build(network, target), x, [1, 4, 8])
        slow = sg.run(sg.build(network, target, kernels="torch"), x, [1, 4, 8])
        for t in (1, 4, 8):
            assert torch.equal(found[t], slow[t])
            torch.testing.assert_close(found[t], expected[t - 1], rtol=0, atol=1e-5)
        spikes = sg.run(sg.build(network, target, spikes="signed"), x, [1, 4, 8])
        for t in (1, 4, 8):
            torch.testing.assert_close(spikes[t], found[t], rtol=0, atol=1e-5)
    assert torch.equal(
        sg.run(sg.build(network, "norse"), x, 8)[8],
        sg.run(sg.build(network, "spikingjelly"), x, 8)[8],
    )
    ann = torch.relu(nn.functional.linear(torch.tanh(current), **by_name["l2"].tensors))
    assert float((found[8] - ann).abs().max()) < 0.15


def test_a_group_network_by_hand_is_the_definition():
    network = group_network()
    x = torch.randn(5, 8)
    by_name = {node.name: node for node in network.nodes}
    p = by_name["n1"].parameters
    current = nn.functional.linear(x, **by_name["l1"].tensors)
    state = SignedGroupState(group_initial_v(current, p), torch.zeros_like(current))
    sent, _ = scan(signed_group_step, [current] * 8, state, p)

    def pool(a: Tensor) -> Tensor:
        return a.amax(-1)

    pooled, _ = scan(
        growth_step, [(s,) for s in sent], growth_initial_state((sent[0],), pool), pool
    )
    for target in ("spikingjelly", "norse"):
        snn = sg.build(network, target)
        assert {choice.backend for choice in snn.choices(x).values()} == {"cpu"}
        assert set(snn.choices(x)) == {"n1", "pool"}
        found = sg.run(snn, x, [1, 4, 8])
        slow = sg.run(sg.build(network, target, kernels="torch"), x, [1, 4, 8])
        for t in (1, 4, 8):
            assert torch.equal(found[t]["pool"], slow[t]["pool"])
            assert torch.equal(found[t]["pool"], pooled[t - 1])
            torch.testing.assert_close(found[t]["mean"], pooled[:t].mean(0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="n1, pool, mean are not"):
        sg.build(network, "spikingjelly", spikes="signed")
