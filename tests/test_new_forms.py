"""The new forms as nodes of both simulators, and in a network: the numbers of the definitions."""

import copy
import io
import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
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
    levels,
    nonlinearity,
    scan,
    signed_group_step,
    signgd_decoded_step,
    signgd_initial_state,
    signgd_step,
    weighted_spike,
)
from spikingjelly_signgd.neurons.signgd import digits

pytestmark = pytest.mark.spikingjelly

SCHEDULE = sg.ExponentialSchedule(0.5, 0.8)
THRESHOLDS = torch.tensor([0.5, 1.0, 1.5, 2.0, 0.7])
CHARGES = torch.tensor([0.5, 0.25, 0.0, 0.5, 1.0])
X = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(3))  # [T, B, N]
SCALES = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])
CHANNELS = torch.tensor([0.25, 0.5, 2 / 3, 0.75, 0.1])
MIXED = torch.tensor([0.0, 0.5, 2 / 3, 0.0, 0.9])


signed = partial(sg.SignGDNode, spikes="signed", initial_input=0.0)


def nodes(**options) -> dict[str, nn.Module]:
    return {
        "several signs": signed("tanh", SCHEDULE, scale=SCALES, members=3, dead_zone=0, **options),
        "several signs, decoded": sg.SignGDNode(
            "relu", SCHEDULE, spikes="decoded", members=5, dead_zone=0, **options
        ),
        "several signs, binary": signed(
            "relu", SCHEDULE, spikes="binary", offset=SCALES, members=2, **options
        ),
        "silent": signed("relu", SCHEDULE, dead_zone=2 / 3, **options),
        "several signs, silent by channel": signed(
            "relu", SCHEDULE, scale=SCALES, members=3, dead_zone=MIXED, **options
        ),
        "silent, ternary": signed(
            "abs", SCHEDULE, spikes="ternary", scale=SCALES, dead_zone=0.5, **options
        ),
        "group by channel": sg.GroupNode(4, THRESHOLDS, initial_charge=CHARGES, **options),
        "group, signed": sg.GroupNode(4, 0.3, signed=True, **options),
        "group, signed by channel": sg.GroupNode(
            2, THRESHOLDS, initial_charge=CHARGES, signed=True, **options
        ),
        "growth": sg.GrowthNode("amax", {"dim": (-1,)}, **options),
    }


# what spike_seq is of
RECORDED = {
    "several signs": torch.uint8,
    "several signs, decoded": torch.uint8,
    "several signs, binary": torch.uint8,
    "several signs, silent by channel": torch.int16,
    "silent": torch.int8,
    "silent, ternary": torch.int8,
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
    for backend in ("auto", "torch"):
        node = nodes(backend=backend, store_v_seq=True)[name]
        if "silent" not in name:
            assert node.choice(X[0]).backend == backend.replace("auto", "cpu")
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
    if name in RECORDED:
        assert found[0][2].dtype == RECORDED[name]


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
    assert "members" in repr(node) or name in ("growth", "silent", "silent, ternary")
    assert ("dead_zone=" in repr(node)) == ("silent" in name)
    assert nodes()[name].to("meta") is not None


def test_thresholds_are_buffers_of_the_node_that_count_at_once():
    given = THRESHOLDS.clone()
    node = sg.GroupNode(2, given, initial_charge=CHARGES)
    assert set(dict(node.named_buffers())) == {"v_threshold", "initial_charge"}
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
        sg.SignGDNode("relu", SCHEDULE, members=9, dead_zone=0, spikes="signed", initial_input=0.0)
    with pytest.raises(ValueError, match="momentum is defined for one sign per step"):
        sg.SignGDNode("relu", SCHEDULE, members=2, momentum=0.5, spikes="signed", initial_input=0.0)
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


# -- silence --------------------------------------------------------------------------------------

THETAS = {"number": 2 / 3, "channels": CHANNELS, "some zero": MIXED}
DTYPES = [torch.float32, torch.float64, torch.float16]


def by_hand(inputs, p, spikes):
    """Outputs, v, d of each step and the number of spikes, by ``signgd_step`` and the words of the
    protocol."""
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    x = tuple(torch.zeros_like(a[0], dtype=wide) for a in inputs)
    state, outputs, fired, total = signgd_initial_state(p.target(*x), p), [], [], 0
    for t in range(len(inputs[0])):
        current = tuple(a[t].to(wide) for a in inputs)
        if spikes == "decoded":
            x = current
        else:
            eta = p.schedule(t + 1) if spikes == "ternary" else -1.0
            x = tuple(a - eta * b for a, b in zip(x, current, strict=True))
        code, state = signgd_step(x, state, p)
        sent = {
            "decoded": state.v,
            "signed": weighted_spike(code, state, p),
            "ternary": torch.as_tensor(p.scale, dtype=wide) * levels(code, p.members, wide),
        }
        outputs.append(sent[spikes].to(inputs[0].dtype))
        fired.append(levels(code, p.members, torch.int16))
        total += int(digits(code, p.members).abs().sum())
    return torch.stack(outputs), state.v, torch.stack(fired), total


@pytest.mark.parametrize("function", ["relu", "mul"])
@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize(
    ("spikes", "members"),
    [("ternary", 1), *((s, m) for s in ("signed", "decoded") for m in (1, 3, 8, 12))],
)
def test_both_simulators_run_the_definition_of_silence(function, theta, spikes, members):
    """Outputs, v and rasters, by steps and by sequences, of every type, ties among the inputs."""
    norse = pytest.importorskip("spikingjelly_signgd.plugins.norse")
    options = {"scale": SCALES, "members": members, "dead_zone": THETAS[theta], "spikes": spikes}
    options["initial_input"] = 0.0
    p = sg.SignGDParameters(
        *(nonlinearity(function), SCHEDULE, SCALES),
        **{"members": members, "dead_zone": THETAS[theta]},
    )
    for dtype in DTYPES:
        x_seq = torch.cat([X[:3], (X[3:] * 4).round() / 4]).to(dtype)
        inputs = [x_seq] if function == "relu" else [x_seq, x_seq.flip(1)]
        y, v, fired, sent = by_hand(inputs, p, spikes)
        assert 0 < sent < members * fired.numel(), "somebody spoke, somebody was silent"
        for backend in ("auto", "torch"):
            node = signed(
                *(function, SCHEDULE), backend=backend, store_v_seq=True, step_mode="m", **options
            )
            layer = norse.SignGD(
                norse.SignGDParameters(
                    function, SCHEDULE, method="heaviside", backend=backend, **options
                )
            )
            assert torch.equal(node(*inputs), y) and torch.equal(node.v, v)
            assert torch.equal(node.spike_seq, fired.to(node.spike_seq.dtype))
            assert node.spike_seq.dtype == (torch.int8 if members == 1 else torch.int16)
            node.reset()
            node.step_mode = "s"
            steps = torch.stack([node(*step) for step in zip(*inputs, strict=True)])
            assert torch.equal(steps, y) and torch.equal(node.v, v)
            assert torch.equal(node.spike_seq, fired.to(node.spike_seq.dtype))
            y_seq, state = layer(tuple(inputs))
            assert torch.equal(y_seq, y) and torch.equal(state.v, v) and y_seq.dtype == dtype
            cell, state, outputs = norse.SignGDCell(layer.p), None, []
            for step in zip(*inputs, strict=True):
                out, state = cell(step, state)
                outputs.append(out)
            assert torch.equal(torch.stack(outputs), y) and torch.equal(state.v, v)


def test_ternary_spikes_are_scale_and_sign_or_silence():
    node = sg.SignGDNode(
        "relu", SCHEDULE, spikes="ternary", scale=SCALES, dead_zone=0.5, initial_input=0.0
    )
    y = run(node, X, "m") / SCALES
    assert sorted(y.unique().tolist()) == [-1.0, 0.0, 1.0]
    dense = sg.SignGDNode("relu", SCHEDULE, spikes="ternary", dead_zone=0, initial_input=0.0)
    assert sorted(run(dense, X, "m").unique().tolist()) == [-1.0, 1.0]


def test_what_ternary_spikes_deliver():
    """x -= eta I, of one step and of the next, and no more; silence delivers nothing."""
    node = sg.SignGDNode("relu", SCHEDULE, spikes="ternary", initial_input=0.25, dead_zone=0.5)
    node(torch.full((1, 2), 2.0))
    assert node.x[0].tolist() == [[0.25 - 0.5 * 2.0] * 2]
    node(torch.zeros(1, 2))
    assert node.x[0].tolist() == [[-0.75] * 2]


def two_layers(simulator: str, spikes: str, members: int, theta: float, dtype: torch.dtype) -> Any:
    """8 -> 16 -> 4, coded, with a read-out, by the modules of one simulator."""
    torch.manual_seed(3)
    first, second = torch.randn(16, 8) / 3, torch.randn(4, 16) / 4
    b1, b2 = torch.randn(16) / 4, torch.randn(4) / 4
    decoded = spikes == "decoded"
    initial = {} if decoded else {"initial_input": b1.to(dtype)}
    options: dict[str, Any] = {"spikes": spikes, "members": members}
    neuron = {"dead_zone": theta, **initial, **options}
    linears = [nn.Linear(8, 16, bias=decoded), nn.Linear(16, 4, bias=decoded)]
    for linear, weight, bias in zip(linears, (first, second), (b1, b2), strict=True):
        linear.weight.data = weight
        if decoded:
            linear.bias.data = bias
    end = 0.0 if decoded else b2.to(dtype)
    if simulator == "spikingjelly":
        parts: list[Any] = [
            sg.Encode(SCHEDULE, **options),
            signed("gelu", SCHEDULE, **neuron),
            sg.Readout(end, schedule=SCHEDULE, **options),
        ]
    else:
        from spikingjelly_signgd.plugins import norse

        parts = [
            norse.Encode(norse.EncodeParameters(SCHEDULE, **options)),
            norse.SignGD(norse.SignGDParameters("gelu", SCHEDULE, method="heaviside", **neuron)),
            norse.Readout(norse.ReadoutParameters(end, schedule=SCHEDULE, **options)),
        ]
    return nn.ModuleList([parts[0], linears[0], parts[1], linears[1], parts[2]]).to(dtype)


def through(parts: nn.ModuleList, x_seq: Tensor) -> Tensor:
    """One module after the other, each for all steps."""
    for part in parts:
        if hasattr(part, "step_mode"):
            part.step_mode = "m"  # type: ignore[assignment]
        with torch.no_grad():
            y = part(x_seq)
        x_seq = y[0] if isinstance(y, tuple) else y
    return x_seq


@pytest.mark.parametrize(("members", "theta"), [(1, 2 / 3), (1, 0.3), (4, 0.5), (12, 2 / 3)])
def test_two_layers_decode_alike_in_every_form_and_simulator(members, theta):
    x_seq = torch.randn(5, 8, dtype=torch.float64).expand(24, 5, 8)
    decoded = through(two_layers("spikingjelly", "decoded", members, theta, torch.float64), x_seq)
    assert float(decoded[-1].std()) > 0.1
    for spikes in ("decoded", "signed", "ternary")[: 3 if members == 1 else 2]:
        for dtype in (torch.float64, torch.float32):
            x = x_seq.to(dtype)
            theirs = through(two_layers("spikingjelly", spikes, members, theta, dtype), x)
            ours = through(two_layers("norse", spikes, members, theta, dtype), x)
            assert torch.equal(theirs, ours), (spikes, dtype)
            if dtype == torch.float64:
                torch.testing.assert_close(theirs, decoded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"members": 4, "time_steps": 3}], ids=["1 x 16", "4 x 3"])
def test_converted_networks_run_in_both_simulators_and_views(options):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6), nn.ReLU()).double()
    x = torch.randn(64, 8, dtype=torch.float64)
    options = {"time_steps": 16, "tune": False, "dead_zone": 2 / 3, **options}
    network = sg.convert(model, x, **options)
    assert all(node.dead_zone == 2 / 3 for node in network.neurons)
    steps = [1, options["time_steps"]]
    decoded = sg.run(sg.build(network, "spikingjelly"), x, steps)
    for simulator in ("spikingjelly", "norse"):
        for spikes in ("decoded", "signed"):
            found = sg.run(sg.build(network, simulator, spikes=spikes), x, steps)
            for t in steps:
                torch.testing.assert_close(found[t], decoded[t], rtol=0, atol=1e-10)
    dense = sg.convert(model, x, **{**options, "dead_zone": 0})
    errors = [
        float((sg.run(sg.build(n, "norse"), x, steps)[steps[1]] - model(x).detach()).norm())
        for n in (network, dense)
    ]
    assert errors[0] < errors[1]


def test_the_default_is_one_constant_but_none_where_there_can_be_none(monkeypatch):
    from spikingjelly_signgd.neurons import protocol, signgd
    from spikingjelly_signgd.plugins import norse

    assert protocol.DEAD_ZONE is signgd.DEAD_ZONE
    monkeypatch.setattr(protocol, "DEAD_ZONE", 0.6)
    for given, theta in (
        ({}, 0.6),
        ({"spikes": "ternary", "initial_input": 0.0}, 0.6),
        ({"dead_zone": 0.0}, 0.0),
        ({"spikes": "binary", "offset": 0.0, "initial_input": 0.0}, 0.0),
        ({"momentum": 0.5}, 0.0),
    ):
        node = signed("relu", SCHEDULE, **given)
        layer = norse.SignGD(norse.SignGDParameters("relu", SCHEDULE, **given))
        assert node.dead_zone == layer.p.dead_zone == node.dynamics.dead_zone == theta
        assert layer.get_extra_state()["dead_zone"] == theta
    p = norse.SignGDParameters("relu", SCHEDULE)  # also where no module holds it
    y, _ = norse.signgd_feed_forward_step(X[0], None, p)
    assert torch.equal(y, sg.SignGDNode("relu", SCHEDULE, dead_zone=0.6, spikes="decoded")(X[0]))


def test_a_dead_zone_that_does_not_broadcast_says_the_shapes():
    from spikingjelly_signgd.plugins import norse

    for shape in ((3,), (3, 4, 5), (3, 5)):
        theta = torch.full(shape, 0.5)
        for backend in ("auto", "torch"):
            for spikes in ("signed", "ternary", "decoded"):
                options = {"dead_zone": theta, "backend": backend, "spikes": spikes}
                options["initial_input"] = 0.0
                layer = norse.SignGD(norse.SignGDParameters("relu", SCHEDULE, **options))
                node = signed("relu", SCHEDULE, **options)
                for run_it in (lambda f=layer: f(X), lambda f=node: run(f, X, "m")):
                    with pytest.raises(sg.InputError) as error:
                        run_it()
                    for part in (str(list(shape)), "[4, 5]", "Pass a number"):
                        assert part in str(error.value)


LISTED = r"torch.tensor\(dead_zone\)"
WRONG = [
    *((wrong, LISTED) for wrong in ([0.5], (0.5, 0.5), np.array([0.5] * 5))),
    *((wrong, "sg.DEAD_ZONE") for wrong in ("0.5", {"a": 0.5})),
    *((wrong, "2 / 3") for wrong in (1.0, -0.1, float("nan"), True)),
]


@pytest.mark.parametrize(("wrong", "fix"), WRONG, ids=repr)
def test_a_dead_zone_of_another_type_is_a_typed_error(wrong, fix):
    from spikingjelly_signgd.plugins import norse

    for make in (
        lambda: sg.SignGDNode(
            "relu", SCHEDULE, dead_zone=wrong, spikes="signed", initial_input=0.0
        ),
        lambda: norse.SignGD(norse.SignGDParameters("relu", SCHEDULE, dead_zone=wrong)),
        lambda: sg.SignGDParameters(sg.NONLINEARITIES["relu"], SCHEDULE, dead_zone=wrong),
    ):
        with pytest.raises(sg.InputError, match=fix) as error:
            make()
        assert "dead_zone is a" in str(error.value)


def network_of(**options):
    return nn.Sequential(nn.Linear(5, 5), signed("relu", SCHEDULE, **options))


def test_a_dead_zone_is_saved_and_loaded_with_a_node():
    """As a layer of Norse does: what was saved counts, whatever a node is made with."""
    for theta, options in ((0.5, {}), (2 / 3, {"dead_zone": 0.25}), (0.5, {"dead_zone": 0})):
        saved = network_of(dead_zone=theta)
        other = network_of(**options)
        other.load_state_dict(torch.load(stored(saved), weights_only=True))
        assert other[1].dead_zone == other[1].dynamics.dead_zone == theta
        assert torch.equal(run(other, X, "m"), run(saved, X, "m"))
    binary = network_of(spikes="binary", offset=0.0)
    with pytest.raises(sg.FormatError, match="spikes='signed', this one 'binary'"):
        binary.load_state_dict(network_of().state_dict())


def stored(network):
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    return file


def test_saved_before_there_was_a_dead_zone():
    """Such a node had none, and is saved without one today, too."""
    dense = network_of(dead_zone=0)
    assert set(dense.state_dict()) == {"0.weight", "0.bias", "1._extra_state"}
    scaled = network_of(dead_zone=0, scale=torch.ones(5))
    for network, other in ((dense, network_of()), (scaled, network_of(scale=torch.ones(5)))):
        saved = network.state_dict()
        earlier = {k: v for k, v in saved.items() if k != "1._extra_state"}  # as 0.1.0 saved it
        with pytest.warns(UserWarning, match="no '1.dead_zone'.*=0.6667.*dead_zone=0"):
            other.load_state_dict(earlier)
        other.load_state_dict(saved)
        assert torch.equal(run(other, X, "m"), run(network, X, "m"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = network_of(dead_zone=0, scale=2 * torch.ones(5))
        again.load_state_dict(scaled.state_dict())
    assert torch.equal(run(again, X, "m"), run(scaled, X, "m"))


def test_a_dead_zone_is_a_buffer_that_counts_at_once():
    given = CHANNELS.clone()
    node = sg.SignGDNode("relu", SCHEDULE, dead_zone=given, spikes="signed", initial_input=0.0)
    assert set(dict(node.named_buffers())) == {"dead_zone"}
    assert "dead_zone=Tensor[5]" in repr(node)
    before = run(node, X, "m")
    given.zero_()
    assert torch.equal(run(node, X, "m"), before)
    node.dead_zone = torch.zeros(5)
    assert torch.equal(
        run(node, X, "m"),
        run(
            sg.SignGDNode("relu", SCHEDULE, dead_zone=0, spikes="signed", initial_input=0.0), X, "m"
        ),
    )
    node.load_state_dict({"dead_zone": CHANNELS})
    assert torch.equal(run(node, X, "m"), before)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        node.load_state_dict({"dead_zone": 2 * CHANNELS})
    number = sg.SignGDNode("relu", SCHEDULE, dead_zone=0.5, spikes="ternary", initial_input=0.0)
    assert number.state_dict()["dead_zone"] == 0.5 and "dead_zone=0.5" in repr(number)
    number.members = 2
    with pytest.raises(ValueError, match="members=1"):
        run(number, X, "m")


def test_a_dead_zone_in_half_counts_with_its_rounded_value():
    from spikingjelly_signgd.plugins import norse

    node = sg.SignGDNode("relu", SCHEDULE, dead_zone=CHANNELS, spikes="decoded").half()
    layer = norse.SignGD(
        norse.SignGDParameters("relu", SCHEDULE, dead_zone=CHANNELS, spikes="decoded")
    ).half()
    rounded = CHANNELS.half().float()
    expected = run(
        sg.SignGDNode("relu", SCHEDULE, dead_zone=rounded, spikes="decoded"), X.half(), "m"
    )
    assert node.dead_zone.dtype == layer.p.dead_zone.dtype == torch.float16
    assert torch.equal(run(node, X.half(), "m"), expected)
    assert torch.equal(layer(X.half())[0], expected)
    assert node.v.dtype == torch.float32


def tangents(x_seq, dx_seq, p, surrogate, dscale, dtheta):
    """How v(t) moves with x, scale and theta: the chain rule of the equations, by hand."""
    v, dv, moves = torch.zeros_like(x_seq[0]), torch.zeros_like(x_seq[0]), []
    theta = torch.as_tensor(p.dead_zone).float().to(v.dtype)
    for t, (x, dx) in enumerate(zip(x_seq, dx_seq, strict=True)):
        eta = p.schedule(t + 1)
        r, dr = v - torch.tanh(x), dv - (1 - torch.tanh(x) ** 2) * dx
        d, dd = torch.zeros_like(v), torch.zeros_like(v)
        for k in range(p.members):
            c, dc = eta * p.scale * 2.0**-k, eta * dscale * 2.0**-k
            h, dh = theta * c, dtheta * c + theta * dc
            sigma = torch.where(r.abs() > h, r.sign(), 0.0)
            dsigma = surrogate.derivative(r - h) * (dr - dh) + surrogate.derivative(r + h) * (
                dr + dh
            )
            r, dr = r - c * sigma, dr - dc * sigma - c * dsigma
            d, dd = 2 * d + sigma, 2 * dd + dsigma
        last, dlast = (a * 2.0 ** (1 - p.members) for a in (eta * p.scale, eta * dscale))
        v, dv = v - last * d, dv - dlast * d - last * dd
        moves.append(dv)
    return torch.stack(moves)


@pytest.mark.parametrize("theta", [0.5, CHANNELS.clamp(max=0.6)], ids=["number", "channels"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("spikes", ["decoded", "signed"])
def test_gradients_are_the_chain_rule_with_a_smooth_step(spikes, members, theta):
    """To the inputs, the scale and the dead zone, in both simulators, against tangents by hand.

    Signed spikes are what v moves by, and their receivers integrate them.
    """
    from spikingjelly_signgd.plugins import norse

    surrogate = sg.Surrogate("tanh", 2.0)
    x_seq, dx, weight = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    dscale, dtheta = torch.randn(2, 5, dtype=torch.float64)
    scale = nn.Parameter(SCALES.double())
    zone = nn.Parameter(torch.as_tensor(theta, dtype=torch.float32).expand(5).double())
    p = norse.SignGDParameters(
        *("tanh", SCHEDULE, scale),
        **{"spikes": spikes, "method": "tanh", "alpha": 2.0, "members": members},
        dead_zone=zone,
        initial_input=0.0,
    )
    layer, x = norse.SignGD(p), x_seq.clone().requires_grad_()
    y, _ = layer(x)
    (y * weight).sum().backward()
    q = sg.SignGDParameters(
        nonlinearity("tanh"), SCHEDULE, SCALES.double(), members=members, dead_zone=theta
    )
    nothing = torch.zeros(5, dtype=torch.float64)
    for gradient, direction, given in (
        (x.grad, dx, (dx, nothing, nothing)),
        (scale.grad, dscale, (torch.zeros_like(dx), dscale, nothing)),
        (zone.grad, dtheta, (torch.zeros_like(dx), nothing, dtheta)),
    ):
        values, moved = x_seq, given[0]
        if spikes == "signed":
            values, moved = x_seq.cumsum(0), moved.cumsum(0)
        moves = tangents(values, moved, q, surrogate, *given[1:])
        if spikes == "signed":
            moves = moves.diff(dim=0, prepend=torch.zeros_like(moves[:1]))
        expected = (moves * weight).sum()
        assert abs(float(expected)) > 1e-3
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)
    node = signed(
        *("tanh", SCHEDULE),
        **{"scale": SCALES.double(), "spikes": spikes, "members": members, "dead_zone": theta},
        surrogate_function=surrogate,
    )
    other = x_seq.clone().requires_grad_()
    (run(node, other, "m") * weight).sum().backward()
    torch.testing.assert_close(other.grad, x.grad, rtol=1e-9, atol=1e-12)


def test_elements_without_a_dead_zone_have_the_gradient_of_dense_neurons():
    options = {"spikes": "signed", "surrogate_function": sg.Surrogate("tanh", 2.0)}
    grads = []
    for theta in (MIXED, 0.0):
        x = X.clone().requires_grad_()
        node = signed("tanh", SCHEDULE, members=2, dead_zone=theta, **options)
        run(node, x, "m").cumsum(0).square().sum().backward()
        grads.append(x.grad)
    zero = MIXED == 0
    torch.testing.assert_close(grads[0][..., zero], grads[1][..., zero], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(grads[0][..., ~zero], grads[1][..., ~zero])


def test_a_dead_zone_is_trained():
    """As a scale is: a parameter of the layer, reached by optimisers; none is lost in a cast."""
    from spikingjelly_signgd.plugins import norse

    p = norse.SignGDParameters("tanh", SCHEDULE, spikes="signed", initial_input=0.0)
    p = p._replace(dead_zone=nn.Parameter(CHANNELS.clamp(max=0.6)))
    layer = norse.SignGD(p._replace(method="tanh", alpha=1.0))
    assert [name for name, _ in layer.named_parameters()] == ["dead_zone"]
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    before = layer(X)[0].detach()
    layer(X)[0].square().sum().backward()
    assert float(layer.dead_zone.grad.abs().min()) > 0
    optimizer.step()
    assert not torch.equal(layer(X)[0], before)
    assert torch.equal(copy.deepcopy(layer)(X)[0], layer(X)[0])
    plain = norse.SignGD(p._replace(dead_zone=CHANNELS))
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(X)[0], layer(X)[0])


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
