"""SpikingJelly 2's own ways: recipes of its converter, and a converted network among its tools."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import ann2snn, base, functional, monitor
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.plugins.spikingjelly import GroupRecipe, SignGDRecipe, SpikingJellyNetwork

pytestmark = pytest.mark.spikingjelly

HAS_RECIPES = hasattr(ann2snn, "FXConversionRecipe")
with_recipes = pytest.mark.skipif(
    not HAS_RECIPES, reason="conversion recipes came with spikingjelly 2.0.0"
)

X = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(8))


def model_of(activation):
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation, nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip


RECIPES = {
    "signgd": (SignGDRecipe, lambda: model_of(nn.GELU()), {"time_steps": 32}),
    "paper": (SignGDRecipe, lambda: model_of(nn.ReLU()), {"preset": "paper", "scale": "tensor"}),
    "group": (GroupRecipe, lambda: model_of(sg.QCFS(8, 1.5)), {"time_steps": 1}),
}


@with_recipes
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_convert_and_build_give(name):
    recipe, make, options = RECIPES[name]
    model = make()
    state = copy.deepcopy(model.state_dict())
    snn = ann2snn.Converter(recipe(X, **options)).convert(model)
    assert isinstance(snn, SpikingJellyNetwork)
    network = sg.convert(model, X, method=recipe.method, **options)
    expected = sg.run(sg.build(network), X, (1, 8))
    for t, output in sg.run(snn, X, (1, 8)).items():
        assert torch.equal(output, expected[t])
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert isinstance(model[1], nn.BatchNorm2d) and not isinstance(model, base.MemoryModule)


@with_recipes
def test_a_recipe_serves_twice():
    converter = ann2snn.Converter(SignGDRecipe(X, time_steps=8))
    first, second = (converter.convert(model_of(nn.ReLU())) for _ in range(2))
    assert first is not second
    assert torch.equal(sg.run(first, X, 8)[8], sg.run(second, X, 8)[8])


@with_recipes
def test_a_recipe_names_what_cannot_be_converted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.LogSigmoid())
    with pytest.raises(sg.UnsupportedOperation, match="log_sigmoid"):
        ann2snn.Converter(SignGDRecipe(X)).convert(model)
    with pytest.raises(sg.InputError, match="time_steps"):
        ann2snn.Converter(SignGDRecipe(X, time_steps=0)).convert(model_of(nn.ReLU()))


@pytest.mark.skipif(HAS_RECIPES, reason="spikingjelly 2 has conversion recipes")
@pytest.mark.parametrize("recipe", [SignGDRecipe, GroupRecipe])
def test_without_recipes_the_fix_is_named(recipe):
    with pytest.raises(sg.BackendUnavailable, match="spikingjelly 2;.*convert.*build"):
        recipe(X)


@pytest.fixture(scope="module")
def network():
    return sg.convert(model_of(nn.GELU()), X, time_steps=16)


@pytest.fixture(scope="module")
def expected(network):
    return sg.run(sg.build(network), X, (3, 16))


@pytest.fixture
def snn(network):
    return sg.build(network)


def test_reset_net_and_step_modes(snn, expected):
    """No warning (pytest makes each an error), every node reached, the same numbers in both."""
    functional.set_step_mode(snn, "s")
    single = [snn(X) for _ in range(3)][-1]
    functional.reset_net(snn)
    functional.set_step_mode(snn, "m")
    assert {m.step_mode for m in snn.modules() if isinstance(m, base.StepModule)} == {"m"}
    multi = snn(X.expand(3, *X.shape))
    assert multi.shape == (3, 16, 5)
    functional.reset_net(snn)
    for output in (single, multi[-1]):
        torch.testing.assert_close(output, expected[3], rtol=0, atol=1e-6)
    assert all(node.t == 0 for node in snn.modules() if isinstance(node, sg.SignGDNode))


def test_reset_net_of_a_network_within_a_network(network, expected):
    outer = nn.Sequential(nn.Identity(), sg.build(network))
    functional.set_step_mode(outer, "s")
    for _ in range(2):
        for _ in range(3):
            output = outer(X)
        torch.testing.assert_close(output, expected[3], rtol=0, atol=1e-6)
        functional.reset_net(outer)


def test_reset_net_in_the_spike_view(network, expected):
    snn = sg.build(network, spikes="signed")
    for _ in range(2):
        for _ in range(3):
            output = snn(X)
        torch.testing.assert_close(output, expected[3], rtol=0, atol=1e-5)
        functional.reset_net(snn)


@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_spikes_pass_in_the_spike_view(network, expected, dead_zone):
    """Each neuron sends eta(t) scale times a sign, or is silent, and nothing else."""
    if not dead_zone:
        network = sg.convert(model_of(nn.GELU()), X, time_steps=16, dead_zone=0)
        expected = sg.run(sg.build(network), X, (3, 16))
    snn = sg.build(network, spikes="signed")
    (name,) = network.names()
    node, sent = snn.neuron(name), []
    node.register_forward_hook(lambda module, inputs, output: sent.append(output))
    out = sg.run(snn, X, (3, 16), chunk=4)
    for t in (3, 16):
        torch.testing.assert_close(out[t], expected[t], rtol=0, atol=1e-5)
    increments = torch.cat(sent)
    assert increments.shape[0] == 16
    fired = increments != 0
    assert (bool(fired.any()), bool(fired.all())) == (True, not dead_zone)
    for t in range(16):
        size = torch.as_tensor(network[name].schedule(t + 1) * network[name].scale)
        size = size.expand_as(increments[t])[fired[t]]
        torch.testing.assert_close(increments[t][fired[t]].abs(), size, rtol=1e-5, atol=1e-8)


def test_copies_are_equal_and_independent(snn, expected):
    snn(X)
    twin = copy.deepcopy(snn)
    torch.testing.assert_close(twin(X), snn(X), rtol=0, atol=0)
    snn(X)
    functional.reset_net(twin)
    assert torch.equal(sg.run(twin, X, 16)[16], expected[16])


def test_pickle_and_torch_save(snn, expected):
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(snn)), torch.load(file, weights_only=False)):
        assert isinstance(other, SpikingJellyNetwork)
        assert torch.equal(sg.run(other, X, 16)[16], expected[16])


def test_double(network, expected):
    snn = sg.build(network).double()
    out = sg.run(snn, X.double(), (3, 16))
    assert out[16].dtype == torch.float64
    assert all(b.dtype != torch.float32 for b in snn.buffers())
    closest = (out[3] - expected[3]).abs().median()
    assert float(closest) < 1e-5, "spikes on a tie may differ, most do not"
    assert sg.run(snn, X, 3)[3].dtype == torch.float64, "the network's type, whatever the input's"


def test_state_dict(network, expected):
    """Weights, scales and slopes are in it; another build of the network takes them."""
    snn, other = sg.build(network), sg.build(network)
    state = copy.deepcopy(snn.state_dict())
    assert any("scale" in key for key in state) and any("weight" in key for key in state)
    for buffer in other.buffers():
        buffer.zero_()
    missing, unexpected = other.load_state_dict(state)
    assert not missing and not unexpected
    assert torch.equal(sg.run(other, X, 16)[16], expected[16])
    for key, value in snn.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_built_module_does_not_write_into_its_description():
    network = sg.convert(model_of(nn.PReLU(4)), X, time_steps=8)
    expected = sg.run(sg.build(network), X, 8)[8]
    snn = sg.build(network)
    with torch.no_grad():
        for buffer in snn.buffers():
            buffer.zero_()
    assert torch.equal(sg.run(sg.build(network), X, 8)[8], expected)


def test_output_monitor(snn):
    """SpikingJelly's monitor records each neuron of the converted network by type."""
    records = monitor.OutputMonitor(snn, sg.SignGDNode)
    out = sg.run(snn, X, 6, chunk=2)[6]
    assert len(records.records) == 3 and records.records[0].shape[:2] == (2, 16)
    (name,) = records.monitored_layers
    assert len(records[name]) == 3
    records.remove_hooks()
    assert torch.equal(sg.run(snn, X, 6)[6], out) and len(records.records) == 3


@pytest.mark.parametrize(("dead_zone", "dtype"), [(0, torch.bool), (2 / 3, torch.int8)])
def test_store_v_seq_of_a_converted_network(dead_zone, dtype):
    network = sg.convert(model_of(nn.GELU()), X, time_steps=16, tune=False, dead_zone=dead_zone)
    snn, (name,) = sg.build(network), network.names()
    node = snn.neuron(name)
    node.store_v_seq = True
    functional.set_step_mode(snn, "m")
    snn(X.expand(4, *X.shape))
    assert node.v_seq.shape[:2] == (4, 16) and node.spike_seq.dtype == dtype
    functional.reset_net(snn)
    assert node.v_seq is None
