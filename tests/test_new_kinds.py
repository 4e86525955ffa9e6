"""A kind of neuron from outside the package: by its definition alone it runs in both simulators."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import Neuron, SpikingNetwork
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.neurons import spikes

SIMULATORS = ("spikingjelly", "norse")


class LeakyState(NamedTuple):
    v: Tensor
    sent: Tensor  # int64
    t: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Leaky(Neuron):
    """v <- leak v + x; where v >= threshold it is sent and taken off."""

    kind = "leaky"
    decoded = False
    leak: float
    threshold: float | Tensor

    def start(self, inputs: tuple[Tensor, ...]) -> LeakyState:
        (x,) = inputs
        return LeakyState(torch.zeros_like(x), torch.zeros(x.shape, dtype=torch.int64), 0)

    def sequence(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        v, sent, t = state
        fired = []
        for x in inputs[0]:
            h = self.leak * v + x
            fires = h >= self.threshold
            v = h - fires * self.threshold
            fired.append(fires)
        all_fires = torch.stack(fired)
        spikes.tell(lambda: spikes.Events(all_fires, all_fires))
        sent = sent + all_fires.sum(0)
        return all_fires * self.threshold, LeakyState(v, sent, t + len(fired))


def network() -> SpikingNetwork:
    """A converted network of group neurons, those replaced by leaky ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    found = sg.convert(model, torch.randn(32, 6), method="group", time_steps=8)
    nodes = []
    for k, node in enumerate(found.nodes):
        if isinstance(node, Neuron):
            threshold = 0.5 if k % 2 else torch.linspace(0.25, 0.75, node.shape[-1])  # type: ignore[arg-type]
            nodes.append(
                Leaky(
                    name=node.name,
                    inputs=node.inputs,
                    shape=node.shape,
                    function=node.function,
                    channel=node.channel,
                    leak=0.75,
                    threshold=threshold,
                )
            )
        else:
            nodes.append(node)  # type: ignore[arg-type]
    return found.replace(nodes=tuple(nodes))


X = torch.randn(7, 4, 6, generator=torch.Generator().manual_seed(1))


def by_hand(found: SpikingNetwork, x_seq: Tensor) -> Tensor:
    """The same network step by step: what its last layer makes of the spikes, averaged."""
    snn = sg.build(found)
    values: dict[str, Tensor] = {}
    for node in found.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Leaky):
            values[node.name] = node.sequence(tuple(inputs), node.start((inputs[0][0],)))[0]
        elif node.kind == "average":
            steps = torch.arange(1, len(x_seq) + 1).view(-1, 1, 1)
            values[node.name] = inputs[0].cumsum(0) / steps
        elif node.kind == "linear":
            module = snn.operations[node.name.replace(".", "/")]
            values[node.name] = torch.stack([module(x, batch=4) for x in inputs[0]])
        else:
            values[node.name] = x_seq
    return values[found.outputs]


def in_steps(snn: Any, x_seq: Tensor, simulator: str) -> Tensor:
    if simulator == "spikingjelly":
        snn.reset()
        return torch.stack([snn(x) for x in x_seq])
    state, outputs = None, []
    for x in x_seq:
        y, state = snn(x, state)
        outputs.append(y)
    return torch.stack(outputs)


def in_one(snn: Any, x_seq: Tensor, simulator: str) -> Tensor:
    if simulator == "norse":
        return snn(x_seq)[0]
    snn.reset()
    for module in snn.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "m"
    y = snn(x_seq)
    for module in snn.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "s"
    return y


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_it_runs_by_its_definition(simulator: str) -> None:
    pytest.importorskip(simulator)
    found = network()
    snn = sg.build(found, simulator)
    expected = by_hand(found, X)
    for y in (in_one(snn, X, simulator), in_steps(snn, X, simulator)):
        torch.testing.assert_close(y, expected)
    again = copy.deepcopy(snn)
    assert torch.equal(in_one(again, X, simulator), in_one(snn, X, simulator))
    runs = sg.run(snn, X[0], [1, 4])
    torch.testing.assert_close(runs[4], by_hand(found, X[:1].expand(4, -1, -1))[-1])


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_what_it_sends_is_heard(simulator: str) -> None:
    pytest.importorskip(simulator)
    found = network()
    snn = sg.build(found, simulator)
    heard: dict[str, list[Any]] = {}
    with listening(snn, lambda sent: heard.setdefault(sent.node.name, []).append(sent)):
        in_one(snn, X, simulator)
    for node in found.of(Leaky):
        (sent,) = heard[node.name]
        assert sent.events is not None and sent.events.spikes.any()
        assert torch.equal(sent.events.number * node.threshold, sent.value)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_it_moves_saves_and_loads(simulator: str) -> None:
    pytest.importorskip(simulator)
    found = network()
    snn = sg.build(found, simulator)
    tensor = next(node for node in found.of(Leaky) if isinstance(node.threshold, Tensor))
    expected = in_one(snn, X, simulator)
    other = sg.build(found, simulator)
    with torch.no_grad():
        other.neuron(tensor.name).get_buffer(
            "threshold" if simulator == "spikingjelly" else "tensors_threshold"
        ).mul_(2)
    assert not torch.equal(in_one(other, X, simulator), expected)
    file = io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    if simulator == "spikingjelly":
        for each in (snn, other):
            each.reset()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(in_one(other, X, simulator), expected)
    snn.double()
    assert in_one(snn, X.double(), simulator).dtype == torch.float64
    assert {b.dtype for b in snn.neuron(tensor.name).buffers()} == {torch.float64}


def test_spikingjelly_refuses_another_batch_till_it_is_reset() -> None:
    plugin = pytest.importorskip("spikingjelly_signgd.plugins.spikingjelly")
    node = network().of(Leaky)[0]
    neuron = plugin.make_node(node)
    assert type(neuron) is plugin.NeuronNode
    neuron(torch.zeros(4, 8))
    with pytest.raises(sg.InputError, match="Reset the neuron"):
        neuron(torch.zeros(5, 8))
    state = neuron.state
    assert type(state) is LeakyState and state.sent.dtype == torch.int64 and state.t == 1
    neuron.reset()
    assert neuron.state is None
    assert neuron(torch.ones(5, 8).half()).dtype == torch.float16


def test_norse_takes_its_state_and_refuses_another_batch() -> None:
    plugin = pytest.importorskip("spikingjelly_signgd.plugins.norse")
    layer = plugin.make_layer(network().of(Leaky)[0])
    x = torch.randn(6, 4, 8)
    whole, last = layer(x)
    first, state = layer(x[:2])
    rest, after = layer(x[2:], state)
    assert torch.equal(torch.cat([first, rest]), whole)
    assert torch.equal(after.state.v, last.state.v) and after.state.t == 6
    with pytest.raises(sg.InputError, match="Pass state=None"):
        layer(x[:, :3], state)
    layer.record_states = True
    _, recorded = layer(x)
    assert recorded.state.v.shape == x.shape and recorded.state.sent.shape == x.shape


def test_a_maker_of_the_callers_wins() -> None:
    plugin = pytest.importorskip("spikingjelly_signgd.plugins.spikingjelly")

    class Silent(plugin.NeuronNode):  # type: ignore[misc, name-defined]
        pass

    plugin.MAKERS["leaky"] = lambda node, spikes: Silent(node)
    try:
        assert type(plugin.make_node(network().of(Leaky)[0])) is Silent
    finally:
        del plugin.MAKERS["leaky"]
