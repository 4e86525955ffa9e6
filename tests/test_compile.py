"""torch.compile of built networks: all in one graph, equal spikes, any T and batch."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_cache

import spikingjelly_signgd as sg

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from networks import load_network  # noqa: E402

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
# more than 15 images in flight: torch's convolutions choose another kernel below, another graph
SIZES = ((8, 6), (5, 4), (12, 3), (4, 5))


def sequence(steps: int, batch: int) -> Tensor:
    return X[:batch].unsqueeze(0).expand(steps, batch, 1, 8, 8)


@torch.no_grad()
def outputs(snn: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    found = []
    for steps, batch in SIZES:
        snn.reset()  # type: ignore[operator]
        found.append(run(sequence(steps, batch)))
    return found


def assert_compiles(snn: nn.Module, backend: str) -> None:
    expected = outputs(snn, snn)
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    actual = outputs(snn, torch.compile(snn, fullgraph=True, backend=counter))
    for size, a, b in zip(SIZES, actual, expected, strict=True):
        assert torch.equal(a, b), f"(T, batch) = {size}"
    assert counter.frame_count <= 2, "one graph for the first sizes, one for all others"


# its functions of one and of many arguments are no matter of SpikingJelly's version
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vgg", marks=pytest.mark.spikingjelly),
        pytest.param("convnext", marks=pytest.mark.slow),
    ],
)
def test_signgd_network(name: str) -> None:
    network = sg.convert(load_network(name, "digits"), X, time_steps=8)
    assert_compiles(sg.build(network, step_mode="m"), "aot_eager")


@pytest.mark.slow
@pytest.mark.spikingjelly
def test_spike_view() -> None:
    network = sg.convert(load_network("vgg", "digits"), X, time_steps=8)
    assert_compiles(sg.build(network, spikes="signed", step_mode="m"), "aot_eager")


@pytest.mark.spikingjelly
def test_group_network() -> None:
    model = load_network("vgg", "digits", qcfs=4)
    network = sg.convert(model, X, method="group", time_steps=4)
    assert_compiles(sg.build(network, step_mode="m"), "aot_eager")


@pytest.fixture(scope="module")
def own_cache() -> Iterator[None]:
    """In the common one lies what another process was stopped in the middle of writing."""
    with fresh_cache():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", ["vgg", "resnet", "convnext", "mixer", "resmlp"])
def test_inductor(name: str) -> None:
    network = sg.convert(load_network(name, "digits"), X, time_steps=8)
    assert_compiles(sg.build(network, step_mode="m"), "inductor")
