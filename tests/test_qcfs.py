from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from spikingjelly_signgd.neurons.group import GroupNeuronParameters, group_initial_v, group_step
from spikingjelly_signgd.neurons.qcfs import QCFS, qcfs

LEVELS = (1, 2, 4, 6, 8, 16)
THRESHOLDS = (1.0, 0.3, 2.7182817, 17.0, 1e-3)


def inputs(kind: str, p: GroupNeuronParameters, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.randn(shape, generator=generator) * 2 * p.v_threshold
    # the numbers next to, at and after the ties x + theta / 2 = k theta
    k = torch.randint(-2, p.members + 3, shape, generator=generator)
    x = (k - 0.5) * p.theta
    step = torch.randint(-1, 2, shape, generator=generator)
    return torch.where(step == 0, x, torch.nextafter(x, x + step))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 257), (0, 8)])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("kind", ["random", "on ties"])
def test_equals_the_first_step_of_a_group_neuron(
    kind: str, levels: int, shape: tuple[int, ...]
) -> None:
    for v_threshold in THRESHOLDS:
        activation = QCFS(levels, v_threshold)
        p = GroupNeuronParameters(levels, activation.v_threshold.item())
        x = inputs(kind, p, shape)
        expected, _ = group_step(x, group_initial_v(x, p), p)
        torch.testing.assert_close(activation(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("levels", LEVELS)
def test_equals_the_formula_of_the_paper(levels: int) -> None:
    threshold = torch.tensor(0.75, dtype=torch.float64)
    x = torch.linspace(-1, 2, 10_007, dtype=torch.float64)  # meets no tie
    n = torch.floor(x * levels / threshold + 0.5).clamp(0, levels)
    torch.testing.assert_close(qcfs(x, threshold, levels), n * threshold / levels)


@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 8, 8), (0, 3)])
@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_are_those_of_a_clip_then_a_straight_through_floor(
    levels: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)

    z = (x / threshold).clamp(0, 1)
    n = torch.floor(z * levels + 0.5) / levels
    expected_out = (z + (n - z).detach()) * threshold
    expected_x, expected_threshold = torch.autograd.grad(
        expected_out, (x, threshold), grad_outputs=weights
    )
    units = max(1, math.prod(shape[1:]) if len(shape) > 1 and shape[0] else math.prod(shape))

    out = qcfs(x, threshold, levels)
    grad_x, grad_threshold = torch.autograd.grad(out, (x, threshold), grad_outputs=weights)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(grad_x, expected_x, msg=lambda m: f"gradient of x: {m}")
    torch.testing.assert_close(
        grad_threshold,
        expected_threshold / math.sqrt(units * levels),
        msg=lambda m: f"gradient of the threshold: {m}",
    )


def test_gradients_at_the_ends_of_the_range() -> None:
    x = torch.tensor([-0.1, 0.0, 1.0, 1.1], requires_grad=True)
    (grad_x,) = torch.autograd.grad(qcfs(x, torch.ones(()), 4).sum(), x)
    assert grad_x.tolist() == [0, 1, 1, 0]


def test_export_keeps_one_node_with_a_positive_threshold() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.act = QCFS(4, 1.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(x))

    net, x = Net().eval(), torch.randn(3, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=False)
    op = torch.ops.spikingjelly_signgd.qcfs.default
    (node,) = (n for n in exported.graph.nodes if n.target is op)
    assert node.args[1].meta["val"].shape == ()
    assert node.args[2] == 4
    assert "act" in "".join(node.meta["nn_module_stack"])
    torch.testing.assert_close(exported.module()(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_the_threshold_stays_positive_and_finite_after_a_huge_step(step: float) -> None:
    activation = QCFS(4, 0.5)
    optimizer = torch.optim.SGD(activation.parameters(), lr=abs(step))
    # above the ceiling the output grows with it
    (math.copysign(1, -step) * activation(torch.full((64,), 9.0))).sum().backward()
    before = activation.v_threshold.item()
    optimizer.step()
    after = activation.v_threshold.item()
    assert 0 < after < math.inf
    assert (after > before) == (step > 0)
    p = GroupNeuronParameters(4, after)
    x = inputs("on ties", p, (1000,))
    expected, _ = group_step(x, group_initial_v(x, p), p)
    torch.testing.assert_close(activation(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("v_threshold", [2e-6, 1e-3, 0.7, 1.0, 30.0, 1e4])
def test_set_threshold_is_read_back(v_threshold: float) -> None:
    assert QCFS(4, v_threshold).v_threshold.item() == pytest.approx(v_threshold, rel=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4, 4),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 3).T,
        torch.randn(5, dtype=torch.float64),
        torch.randn(0, 3),
    ],
    ids=["4d", "channels last", "transposed", "float64", "empty"],
)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(x: Tensor, grad: bool) -> None:
    threshold = torch.tensor(0.9, requires_grad=grad)
    torch.library.opcheck(qcfs, (x.detach().requires_grad_(grad), threshold, 4))


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="levels is an integer >= 1, but it is 0"):
        QCFS(0)
    with pytest.raises(ValueError, match="v_threshold is the largest output"):
        QCFS(4, -1.0)


def test_compiled_training_serves_every_batch_size_with_one_graph() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, example_inputs)

    net = nn.Sequential(nn.Linear(6, 5), QCFS(4))
    compiled = torch.compile(net, backend=backend, dynamic=True)
    parameters = list(net.parameters())
    for batch in (4, 5, 33):
        x = torch.randn(batch, 6)
        expected = torch.autograd.grad(net(x).sum(), parameters)
        actual = torch.autograd.grad(compiled(x).sum(), parameters)
        torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1
