"""The dithered gradient of signGD neurons: values the same to the bit, gradients of the parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikingjelly_signgd.converters.tunable import _Track
from spikingjelly_signgd.errors import InputError
from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ExponentialSchedule,
    Nonlinearity,
    SignGDParameters,
    SignGDSequence,
    SignGDState,
)
from spikingjelly_signgd.neurons.nonlinearities import nonlinearity
from spikingjelly_signgd.neurons.protocol import signgd_sequence, signgd_start
from spikingjelly_signgd.neurons.signgd import SignGDNeuron
from spikingjelly_signgd.neurons.signgd.dithered import SparseTrack
from spikingjelly_signgd.neurons.spikes import hear

SCHEDULE = ExponentialSchedule(0.7, 0.8)
ZONES: dict[str, Any] = {
    "none": 0.0,
    "half": 0.5,
    "mixed": torch.tensor([0.0, 0.3, 0.5, 2 / 3, 0.0]),
}
FORMS = [
    (spikes, members, zone)
    for spikes in ("decoded", "signed", "ternary", "binary")
    for members in (1, 3)
    for zone in ZONES
    if (spikes != "ternary" or members == 1) and (spikes != "binary" or zone == "none")
]


def parameters(
    function: str | Nonlinearity | Callable[..., Tensor] = "gelu", **options: Any
) -> SignGDParameters:
    options = {"scale": torch.linspace(0.5, 1.5, 5), **options}
    return SignGDParameters(nonlinearity(function), SCHEDULE, **options)


def run(
    x_seq: Tensor, p: SignGDParameters, spikes: str = "decoded", **options: Any
) -> SignGDSequence:
    wide = x_seq[0].to(torch.promote_types(x_seq.dtype, torch.float32))
    state, x = signgd_start((wide.detach(),), p, spikes, (0.1,))
    offsets = (0.2,) if spikes == "binary" else ()
    return signgd_sequence((x_seq,), state, x, p, spikes, offsets=offsets, **options)


def near(actual: Tensor | None, expected: Tensor | None, name: str) -> None:
    assert actual is not None and expected is not None, name
    tolerance = 1e-6 * float(expected.detach().abs().max()) + 1e-7
    torch.testing.assert_close(
        actual, expected, rtol=1e-5, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize(("spikes", "members", "zone"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("steps", [1, 6])
def test_values_are_those_without_a_gradient(
    spikes: str, members: int, zone: str, dtype: torch.dtype, steps: int
) -> None:
    torch.manual_seed(0)
    p = parameters(members=members, dead_zone=ZONES[zone])
    x_seq = torch.randn(steps, 4, 5).to(dtype)
    with torch.no_grad():
        expected = run(x_seq, p, spikes, keep=True)
    actual = run(x_seq.requires_grad_(), p, spikes, keep=True)
    assert actual.y.requires_grad and actual.y.dtype == expected.y.dtype
    for name in ("y", "v_seq", "spike_seq", "x", "state"):
        pair = getattr(actual, name), getattr(expected, name)
        if not isinstance(pair[0], tuple):
            pair = (pair[0],), (pair[1],)
        for a, b in zip(*pair, strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
            assert same, name


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("counted", [False, True])
def test_with_a_dead_zone_it_is_that_of_tuning(members: int, counted: bool) -> None:
    torch.manual_seed(1)
    x_seq, weight = torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    fan_out = torch.rand(5) if counted else None
    leaves = [torch.linspace(0.2, 1.5, 5), torch.randn(5), torch.linspace(0.1, 0.66, 5)]
    found = []
    for ours in (True, False):
        x, scale, resting, theta = (a.clone().requires_grad_() for a in (x_seq, *leaves))
        if ours:
            p = parameters(scale=scale, resting=resting, dead_zone=theta, members=members)
            done = run(x, p, fan_out=fan_out)
            y, sent = done.y, done.sent
        else:
            eta = torch.tensor([SCHEDULE(t) for t in range(1, 7)])
            f = NONLINEARITIES["gelu"](x)
            rest = fan_out, members, False, False
            y, sent = SparseTrack.apply(f, eta, scale, resting, theta, *rest)
        loss = (y * weight).sum()
        if fan_out is not None:
            assert sent is not None
            loss = loss + 0.3 * sent
        loss.backward()
        found.append([y, x.grad, scale.grad, resting.grad, theta.grad])
    names = ("y", "x", "scale", "resting", "dead zone")
    for name, actual, expected in zip(names, *found, strict=True):
        near(actual, expected, name)


@pytest.mark.parametrize("members", [1, 3])
def test_without_a_dead_zone_a_member_follows_within_its_step(members: int) -> None:
    torch.manual_seed(2)
    x_seq, weight = 2 * torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    leaves = [torch.linspace(0.2, 1.5, 5), torch.randn(5)]
    found = []
    for ours in (True, False):
        x, scale, resting = (a.clone().requires_grad_() for a in (x_seq, *leaves))
        if ours:
            y = run(x, parameters("relu", scale=scale, resting=resting, members=members)).y
        else:
            eta = torch.tensor([SCHEDULE(t) for t in range(1, 7)])
            row = NONLINEARITIES["relu"]
            node = SignGDNeuron(name="f", function=row, schedule=SCHEDULE, members=members)
            y = _Track.apply(row(x), eta, scale, resting, node, False)
        (y * weight).sum().backward()
        found.append([y, x.grad, scale.grad, resting.grad])
    for name, actual, expected in zip(("y", "x", "scale", "resting"), *found, strict=True):
        near(actual, expected, name)


@pytest.mark.parametrize(("spikes", "members", "zone"), [f for f in FORMS if f[0] != "decoded"])
def test_spikes_have_the_gradient_of_what_they_add(spikes: str, members: int, zone: str) -> None:
    torch.manual_seed(3)
    x_seq, weight = torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    eta = torch.tensor([SCHEDULE(t) for t in range(1, 7)]).view(-1, 1, 1)
    found = []
    for form in ("decoded", spikes):
        x = x_seq.clone().requires_grad_()
        scale = torch.linspace(0.5, 1.5, 5).requires_grad_()
        resting = torch.randn(5, generator=torch.Generator().manual_seed(4)).requires_grad_()
        p = parameters(scale=scale, resting=resting, members=members, dead_zone=ZONES[zone])
        steps = torch.cat([x[:1] - 0.1, x[1:] - x[:-1]])  # the increments that lead to x
        if form == "decoded":
            y = run(x, p).y
            added = y - torch.cat([resting.expand(1, 4, 5), y[:-1]])
        elif form == "signed":
            added = run(steps, p, "signed").y
        elif form == "ternary":
            added = -eta * run(-steps / eta, p, "ternary").y
        else:
            most, unit = 2**members - 1, eta * 2.0 ** (1 - members)
            y = run((most * 0.2 - steps / unit) / 2, p, "binary").y
            added = -unit * (2 * y - most * scale)
        (added * weight).sum().backward()
        found.append([added, x.grad, scale.grad, resting.grad])
    for name, actual, expected in zip(("added", "x", "scale", "resting"), *found, strict=True):
        near(actual, expected, name)


@pytest.mark.parametrize(("spikes", "members", "zone"), FORMS)
@pytest.mark.parametrize("steps", [1, 6])
def test_inputs_have_the_same_gradient_where_scales_have_none(
    spikes: str, members: int, zone: str, steps: int
) -> None:
    torch.manual_seed(6)
    x_seq, weight = torch.randn(steps, 4, 5), torch.randn(steps, 4, 5)
    found = []
    for learned in (False, True):
        x, resting = x_seq.clone().requires_grad_(), torch.zeros(5).requires_grad_()
        scale = torch.linspace(0.5, 1.5, 5).requires_grad_(learned)
        p = parameters(scale=scale, resting=resting, members=members, dead_zone=ZONES[zone])
        done = run(x, p, spikes)
        ((done.y * weight).sum() + done.state.v.sum()).backward()
        found.append([x.grad, resting.grad])
    near(found[0][0], found[1][0], "x")
    near(found[0][1], found[1][1], "resting")


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.parametrize("counted", [False, True])
def test_step_by_step_it_is_that_of_all_steps(zone: str, spikes: str, counted: bool) -> None:
    torch.manual_seed(5)
    x_seq, weight = 0.5 * torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    fan_out = torch.rand(5) if counted else None
    found = []
    for chunk in (6, 1, 4):
        x = x_seq.clone().requires_grad_()
        scale, resting = torch.full((5,), 0.8).requires_grad_(), torch.zeros(5).requires_grad_()
        p = parameters(scale=scale, resting=resting, members=2, dead_zone=ZONES[zone])
        state, carried = signgd_start((x[0],), p, spikes, (0.1,))
        loss, rest, ys = torch.zeros(()), None, []
        for part in x.split(chunk):
            done = signgd_sequence((part,), state, carried, p, spikes, rest=rest, fan_out=fan_out)
            state, rest = done.state, done.rest
            carried = None if carried is None else done.x
            loss = loss + (0.0 if done.sent is None else 0.3 * done.sent)
            ys.append(done.y)
        y = torch.cat(ys)
        (loss + (y * weight).sum()).backward()
        found.append([y, x.grad, scale.grad, resting.grad])
    (values, *_), (in_steps, *_) = found[:2]
    assert values is not None and in_steps is not None and torch.equal(values, in_steps)
    names = ("y", "x", "scale", "resting")
    for other in found[1:]:
        for name, actual, expected in zip(names, other, found[0], strict=True):
            near(actual, expected, name)


def test_it_leads_through_f_to_its_parameters() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * self.gain

    x = torch.randn(1, 4, 5)
    module, slope = Gained(), nn.Parameter(torch.full((5,), 0.3))
    for p, parameter in (
        (parameters(module, members=4, dead_zone=0.5), module.gain),
        (
            parameters("prelu", arguments={"weight": slope}, members=8, scale=4.0, dead_zone=0.5),
            slope,
        ),
    ):
        y = run(x, p).y
        assert float((y - p.target(x)).detach().abs().max()) < 0.2  # within reach
        (actual,) = torch.autograd.grad(y.sum(), parameter)
        (expected,) = torch.autograd.grad(p.target(x).sum(), parameter)
        near(actual, expected, "parameter of f")


def test_several_arguments_and_functions_of_whole_vectors() -> None:
    x, y = (torch.randn(1, 4, 5, requires_grad=True) for _ in range(2))
    for name, inputs, arguments in (
        ("mul", (x, y), {}),
        ("softmax", (x,), {"dim": -1}),
        ("layer_norm", (x,), {"dims": 1, "eps": 1e-5}),
    ):
        p = parameters(name, arguments=arguments, members=6, dead_zone=0.5, scale=4.0)
        state, _ = signgd_start(tuple(a[0].detach() for a in inputs), p)
        weight = torch.randn(1, 4, 5)
        actual = signgd_sequence(inputs, state, None, p).y
        gradients = torch.autograd.grad((actual * weight).sum(), inputs)
        expected = torch.autograd.grad((p.target(*inputs) * weight).sum(), inputs)
        for a, b in zip(gradients, expected, strict=True):
            near(a, b, name)


def test_nothing_is_recorded_where_nothing_asks() -> None:
    x = torch.randn(3, 4, 5)
    p = parameters(dead_zone=0.5)
    assert run(x, p).y.grad_fn is None
    with torch.no_grad():
        assert run(x.clone().requires_grad_(), p).y.grad_fn is None
    resting = nn.Parameter(torch.zeros(5))
    assert run(x, parameters(resting=resting)).y.requires_grad
    assert run(x, parameters(scale=nn.Parameter(torch.ones(5)))).y.requires_grad


def test_momentum_has_no_gradient_and_says_so() -> None:
    p = parameters("relu", momentum=0.5)
    x = torch.randn(3, 4, 5, requires_grad=True)
    y = run(x, p).y
    assert torch.equal(y, run(x.detach(), p).y)
    with pytest.raises(InputError, match=r"momentum=0.5.*torch.no_grad"):
        y.sum().backward()


@pytest.mark.parametrize("zone", ZONES)
def test_what_was_sent_is_counted_and_heard_alike(zone: str) -> None:
    x, fan_out = torch.randn(6, 4, 5), torch.rand(5)
    p = parameters(members=3, dead_zone=ZONES[zone])
    for given in (x, x.clone().requires_grad_()):
        with hear() as told:
            sent = run(given, p, fan_out=fan_out).sent
        assert sent is not None and len(told) == 1
        near(sent.detach(), (told[0]().spikes * fan_out).sum(), "sent")


def test_outputs_and_state_can_be_changed_in_place() -> None:
    """As layers with inplace=True do: the gradient stays."""
    x = torch.randn(4, 3, 5, requires_grad=True)
    p = parameters(dead_zone=0.5)
    done = run(x, p, keep=True)
    (expected,) = torch.autograd.grad(done.y.sum() + done.state.v.sum(), x, retain_graph=True)
    y = torch.relu_(done.y * 1)
    assert y.requires_grad
    done.y.mul_(1.0)
    v = done.state.v
    (actual,) = torch.autograd.grad(done.y.sum() + v.sum(), x)
    assert torch.equal(actual, expected)
    assert isinstance(done.state, SignGDState)
