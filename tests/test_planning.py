"""How a layer is planned: sketches of its values, ranges of the least expected error, step sizes
measured step by step, and the warnings of plans and calibrations that are not enough."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import fitting, residuals, sketch
from spikingjelly_signgd.converters.calibration import statistics
from spikingjelly_signgd.converters.conversion import source_network
from spikingjelly_signgd.converters.settings import Settings
from spikingjelly_signgd.neurons.signgd.sparse import sparse_step


def values(channels=3, n=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-2, 2, channels).unsqueeze(1)
    return torch.randn(channels, n, generator=generator) * spread


# -- sketches --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4999), max_size=5), st.randoms(use_true_random=False))
def test_sketches_of_parts_in_any_order_add_up_to_that_of_the_whole(cuts, random):
    x = values()
    edges = [0, *sorted(set(cuts)), x.shape[1]]
    parts = [x[:, a:b] for a, b in zip(edges, edges[1:], strict=False)]
    random.shuffle(parts)
    assert torch.equal(sum(sketch.counts(part) for part in parts), sketch.counts(x))


def test_a_value_is_in_the_bin_that_begins_at_it():
    edge = sketch.edges()
    counts = sketch.counts(edge[:-1].float().unsqueeze(1))
    assert torch.equal(counts[:, 0].argmax(1), torch.arange(sketch.BINS))
    assert bool((counts.sum((1, 2)) == 1).all())
    below = torch.nextafter(edge[1:-1].float(), torch.tensor(0.0))
    assert torch.equal(
        sketch.counts(below.unsqueeze(1))[:, 0].argmax(1), torch.arange(sketch.BINS - 1)
    )
    negative = sketch.counts(torch.tensor([[-1.0, -(2.0**30), 1e-20, 0.0]]))
    assert int(negative[0, 1].sum()) == 2 and int(negative[0, 1, -1]) == 1
    assert int(negative[0, 0, 0]) == 2  # what is smaller than all bins counts as zero


@pytest.mark.parametrize("share", [0.5, 0.9, 0.9995])
def test_quantiles_are_within_a_bin_of_the_exact_ones(share):
    x = values(n=20_000)
    found = sketch.quantile(sketch.counts(x), share, x.abs().amax(1))
    exact = x.abs().double().quantile(share, 1)
    assert bool(((found / exact - 1).abs() < 1 / sketch.OCTAVE).all())
    assert torch.equal(
        sketch.quantile(sketch.counts(x[:, :9]), share, x[:, :9].abs().amax(1))
        <= x[:, :9].abs().amax(1),
        torch.ones(3, dtype=torch.bool),
    )


def test_the_statistics_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 8), nn.GELU()
    )
    x = torch.randn(24, 1, 32, 32)
    network = source_network(model.eval(), x[:2], Settings())
    one = statistics(network, [x])
    for batches in ([*x.split(5)], [*reversed(x.split(7))]):
        other = statistics(network, batches)
        for name, seen in one.items():
            assert torch.equal(seen["counts"], other[name]["counts"])
            assert torch.equal(seen["maximum"], other[name]["maximum"])
            assert torch.equal(seen["quantile"], other[name]["quantile"])
            torch.testing.assert_close(seen["mean"], other[name]["mean"])
    counted = one[network.neurons[0].name if network.neurons else next(iter(one))]["counts"]
    assert int(counted[0].sum()) == 24 * min(900, 4096 // 4)  # of each channel and sample


# -- ranges ----------------------------------------------------------------------------------------


def code_error(x, reach, members, theta):
    """The mean squared error of the neuron's code itself."""
    size = torch.tensor(reach / (2 - 2.0 ** (1 - members)), dtype=x.dtype)
    left = (
        sparse_step(x, size, torch.tensor(theta, dtype=x.dtype), torch.zeros_like(x), members)[1]
        - x
    )
    return float(left.square().mean())


def node_of(function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), function).eval()
    network = source_network(model, torch.randn(4, 4), Settings())
    return next(n for n in network.nodes if n.kind == "function")


@pytest.mark.parametrize("members", [3, 5, 8])
@pytest.mark.parametrize("theta", [0.5, 2 / 3])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_range_is_nearly_the_best_for_the_code_itself(members, theta, heavy):
    x = values(1, 20_000).double()[0] * 100
    if heavy:
        x = x.sign() * x.abs() ** 2
    samples, counts = 10**9, sketch.counts(x.unsqueeze(0))
    found = fitting.fitted_range(
        node_of(nn.GELU()), counts, x.abs().max()[None], 1 / (2**members - 1), theta, samples
    )
    errors = [
        code_error(x, float(x.abs().max()) * 2 ** (-i / 8), members, theta) for i in range(-4, 40)
    ]
    assert code_error(x, float(found), members, theta) < 1.25 * min(errors)


def test_a_silent_channel_has_the_range_of_its_tensor_and_one_seen_well_its_own():
    x = values(4, 4000)
    x[0] = 0.0
    found = fitting.fitted_range(
        node_of(nn.GELU()), sketch.counts(x), x.abs().amax(1), 1 / 255, 2 / 3, 10_000
    )
    largest = x.abs().amax(1)
    assert float(found[0]) > 0.5 * float(largest.max())
    assert 0.5 * float(largest[1]) < float(found[1]) < 0.05 * float(largest.max())


@pytest.mark.parametrize("samples", [10, 10_000])
def test_the_fewer_samples_the_nearer_is_a_quiet_channel_to_its_tensor(samples):
    x = values(2, 4000)
    ranges = [
        float(
            fitting.fitted_range(
                node_of(nn.GELU()), sketch.counts(x), x.abs().amax(1), 1 / 255, 2 / 3, n
            )[0]
        )
        for n in (samples, 10 * samples)
    ]
    assert ranges[0] >= ranges[1]


BOUNDS = [
    (nn.ReLU6(), 6.0),
    (nn.Hardtanh(-2, 3), 3.0),
    (nn.Sigmoid(), 1.0),
    (nn.Tanh(), 1.0),
    (nn.GELU(), float("inf")),
]


@pytest.mark.parametrize(("function", "bound"), BOUNDS)
def test_a_function_that_has_a_range_ends_there(function, bound):
    node = node_of(function)
    assert fitting.bound_of(node) == bound
    if bound == float("inf"):
        return
    for part, want in ((0.9, bound), (0.1, None)):
        x = torch.rand(1, 4000) * part * bound
        found = float(
            fitting.fitted_range(node, sketch.counts(x), x.amax(1), 1 / 255, 2 / 3, 10**6)
        )
        assert found == want if want else found < 0.2 * bound


def test_a_bounded_function_that_saturates_does_so_without_an_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU6(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight.mul_(20)
    x = torch.randn(64, 8)
    network = sg.convert(model, x, tune=False)
    v = residuals.run(network, x)[0].states[network.neurons[0].name].v
    full = model[:2](x) == 6.0
    assert bool(full.any())
    torch.testing.assert_close(v[full], torch.full_like(v[full], 6.0), rtol=1e-6, atol=0)


# -- steps -----------------------------------------------------------------------------------------


class Deep(nn.Module):
    """A residual network of so many blocks whose values grow, as trained ones do."""

    def __init__(self, blocks, width=24):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("blocks", [30, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("members", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_measured_steps_hold_in_deep_networks(blocks, members):
    torch.manual_seed(0)
    model, x = Deep(blocks).eval(), torch.randn(768, 24)
    network = sg.convert(model, x[:512], members=members, time_steps=2, tune=False)
    before = sg.convert(model, x[:512], members=members, time_steps=2, tune=False, scale="channel")
    error = [residuals.run(one, x[512:])[1] for one in (network, before)]
    assert error[0] <= 2 * error[1] and error[0] < (0.12 if members == 4 else 0.03)
    said = network.provenance["plan"]
    assert set(said["errors"]) == {
        f"{scale} scales, {steps} steps"
        for scale in ("fitted", "quantile")
        for steps in ("default", "measured")
    }
    assert said["errors"][said["chosen"]] == min(said["errors"].values())


def test_a_size_is_the_one_that_leaves_least():
    torch.manual_seed(0)
    network = sg.convert(Deep(1).eval(), torch.randn(64, 24), members=4, time_steps=2, tune=False)
    node, left = network.neurons[0], torch.randn(4000)
    ones = torch.ones_like(left)
    found = residuals.best_size(node, left, ones, 1.0)
    assert code_error(left, found * (2 - 2**-3), 4, 2 / 3) < 1.5 * min(
        code_error(left, s * (2 - 2**-3), 4, 2 / 3) for s in torch.linspace(0.2, 4, 60).tolist()
    )
    assert residuals.best_size(node, torch.zeros(5), torch.ones(5), 0.7) == 0.7


def test_the_error_of_a_run_is_that_of_the_simulator():
    torch.manual_seed(0)
    model, x = Deep(3).eval(), torch.randn(64, 24)
    network = sg.convert(model, x, members=4, time_steps=3, tune=False)
    have, want = sg.run(sg.build(network), x, 3)[3], model(x).detach()
    assert residuals.run(network, x)[1] == pytest.approx(
        float((have - want).norm() / want.norm()), rel=1e-4
    )


# -- what is asked for, and warnings ---------------------------------------------------------------


def test_scales_by_path_by_number_and_by_quantile():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU()
    )
    x = torch.randn(512, 8)
    plain = sg.convert(model, x, tune=False, scale="channel:0.5")
    usual = sg.convert(model, x, tune=False)
    network = sg.convert(model, x, tune=False, scale={"1": 3.0, "3": "channel:0.5"})
    first, second, third = (node.scale for node in network.neurons)
    assert first == 3.0
    assert torch.equal(second, plain.neurons[1].scale)
    assert torch.equal(third, usual.neurons[2].scale)
    values = model[:4](x).abs().quantile(0.5, 0)
    assert bool(((second / values - 1).abs() < 1 / 8).all())


@pytest.mark.parametrize(
    "scale", ["layer", "channel:2", "fitted:0.9", -1.0, 0, True, {"1": "layer"}]
)
def test_scales_that_are_none(scale):
    model = nn.Sequential(nn.Linear(8, 6), nn.GELU())
    with pytest.raises(sg.InputError, match="scale is one of fitted, channel"):
        sg.convert(model, torch.randn(4, 8), scale=scale)
    with pytest.raises(sg.InputError, match="scale has an entry for 'nowhere'"):
        sg.convert(model, torch.randn(4, 8), scale={"nowhere": 1.0})


def test_a_plan_that_is_far_off_is_warned_of_by_layer_and_number():
    torch.manual_seed(0)
    model, x = Deep(8).eval(), torch.randn(64, 24)
    with pytest.warns(
        sg.PlanWarning, match=r"outputs are \d+ % off .* 'blocks\.\d\.1' \(\d+ % off"
    ):
        network = sg.convert(model, x, members=1, time_steps=1, tune=False)
    assert network.provenance["planned"]["error"] > 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sg.convert(model, x, tune=False).provenance["planned"]["error"] < 0.2


def test_a_plan_of_too_few_samples_is_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
    alike = torch.randn(16, 16)
    of_two_sizes = torch.where(torch.arange(16).remainder(2).bool().unsqueeze(1), 30.0, 1.0) * alike
    with pytest.warns(
        sg.PlanWarning, match=r"its 16 calibration samples, .* half of them has an error of \d+ %"
    ):
        network = sg.convert(model, of_two_sizes, members=4, tune=False)
    assert network.provenance["planned"]["error"] < 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.convert(model, alike, members=4, tune=False)


def test_channels_that_calibration_leaves_silent_are_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 80), nn.ReLU(), nn.Linear(80, 2))
    with torch.no_grad():
        model[0].bias[:30] = -100.0
    with pytest.warns(sg.CalibrationWarning, match=r"30 of 80 channels .* 64 .* '1' \(30 of 80\)"):
        network = sg.convert(model, torch.randn(64, 4), tune=False)
    scale = network.neurons[0].scale
    assert bool((scale[:30] > 0.5 * scale[30:].max()).all())
