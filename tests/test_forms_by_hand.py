"""Networks by hand: one form into another, and what ``check`` says of them."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("norse")

from norse.torch import LICell, LIFCell, Lift, SequentialState
from spikingjelly.activation_based import base, functional, layer, neuron

import spikingjelly_signgd as sg
from spikingjelly_signgd import Encode, GroupNode, Readout, SignGDNode
from spikingjelly_signgd.plugins import norse
from spikingjelly_signgd.plugins.forms import Shift
from spikingjelly_signgd.plugins.forms.parts import simulator_of

pytestmark = pytest.mark.spikingjelly

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
HALVES = sg.ListSchedule((1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125))
FORMS = ("signed", "ternary", "binary")
STEPS = 6
IMAGE: Tensor = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def node(function: str = "relu", schedule: Any = SCHEDULE, **options: Any) -> SignGDNode:
    return SignGDNode(function, schedule, **{"spikes": "decoded", "dead_zone": 0.0, **options})


def batch_norm(make: Any, features: int) -> nn.Module:
    norm = make(features)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def mlp(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        layer.Linear(6, 8), node("gelu", **options), layer.Linear(8, 7), node("silu", **options),
        layer.Linear(7, 3),
    )  # fmt: skip


def cnn() -> nn.Module:
    """Convolutions, norms, pooling, resting values and scales by channel."""
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1),
        batch_norm(layer.BatchNorm2d, 4),
        node("gelu", scale=torch.rand(4, 1, 1) + 0.5, resting=torch.randn(4, 1, 1)),
        layer.AvgPool2d(2),
        layer.ConvTranspose2d(4, 2, 2, stride=2),
        node("relu", resting=0.25),
        layer.Dropout(0.5),
        layer.Flatten(),
        layer.Linear(2 * 36, 5),
    ).eval()


class Residual(nn.Module):
    """A branch, a position that is added, a gain that is multiplied, a sum, a concatenation."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.first, self.act = layer.Linear(features, features), node("tanh", resting=0.5)
        self.second = nn.Sequential(layer.Linear(features, features), node("relu"))
        self.third = layer.Linear(2 * features, 4)
        self.position = nn.Parameter(torch.randn(features))
        self.gain = nn.Parameter(torch.rand(features))
        self.last = node("sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x) + self.position + 1.5)
        y = x + self.gain * self.second(y) - 0.25
        both = torch.cat([y, self.position.expand(y.shape)], -1)
        return self.last(self.third(both).reshape(both.shape[:-1] + (2, 2)))


class Product(nn.Module):
    """A node of two arguments, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = layer.Linear(6, 5), layer.Linear(6, 5), layer.Linear(5, 2)
        self.product = node("mul", scale=2.0)

    def forward(self, x: Tensor) -> dict[str, Any]:
        product = self.product(self.a(x), self.b(x))
        return {"logits": self.c(product), "features": (product,)}


class Gain(nn.Module):
    """A node of which an argument is a constant."""

    def __init__(self, expanded: bool = True) -> None:
        super().__init__()
        self.layer, self.product = layer.Linear(6, 5), node("mul", scale=2.0)
        self.gain, self.expanded = nn.Parameter(torch.rand(5)), expanded

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.product(y, self.gain.expand_as(y) if self.expanded else self.gain)


class Shapes(nn.Module):
    """Sizes of the input are used behind a node."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.last = layer.Linear(6, 8), node(resting=0.5), layer.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.layer(x))
        return self.last(y.view(x.shape[:-1] + (2, 4)) * x.shape[-1] / 6)


class Square(nn.Module):
    """A node of which both arguments are one value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.product = layer.Linear(6, 5), node("mul", scale=2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.product(y, y)


class Loop(nn.Module):
    """Time within forward: sound in every form, but its nodes are called several times."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.net(x) for _ in range(STEPS)) / STEPS  # type: ignore[no-any-return]


class OverTime(nn.Module):
    """As SpikingJelly's own examples: repeated T times at the input, the mean at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = layer.Flatten()
        self.net = nn.Sequential(layer.Linear(4, 6), node("gelu"), layer.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = (x / 2).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)
        return self.net(self.flatten(x)).mean(0)


class Attention(nn.Module):
    """Scores, softmax and mixture by nodes, with positions added and heads split."""

    def __init__(self, features: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.q, self.k, self.v = (layer.Linear(features, features) for _ in range(3))
        self.out, self.heads = layer.Linear(features, 3), heads
        self.position = nn.Parameter(torch.randn(5, features))
        self.norm = node("layer_norm", arguments={"dims": 1, "eps": 1e-5})
        self.scores, self.mixture = node("matmul", scale=2.0), node("matmul")
        self.share = node("softmax", arguments={"dim": -1}, resting=0.2, scale=0.5)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        y = self.norm(x)
        q, k, v = self.split(self.q(y)), self.split(self.k(y)), self.split(self.v(y))
        scores = self.scores(q, k.transpose(-1, -2)) / 3**0.5
        y = self.mixture(self.share(scores), v).transpose(-3, -2).flatten(-2)
        return self.out(x + y).mean(-2)


POOL = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}


class ByStep(nn.Module):
    """A layer without steps, by flattening and by SpikingJelly's container; pooled by a node."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.act = node("silu", scale=torch.rand(4, 1, 1) + 0.5, resting=0.125)
        self.pool = node("max_pool", arguments=POOL)
        self.second = layer.SeqToANNContainer(nn.Conv2d(4, 3, 2), batch_norm(nn.BatchNorm2d, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.second(self.pool(x)).flatten(2)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.act = nn.Sequential(mlp(), nn.Identity()), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.net(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "several members": (lambda: mlp(members=3), (6,)),
    "cnn": (cnn, (1, 6, 6)),
    "residual": (Residual, (6,)),
    "two arguments": (Product, (6,)),
    "a constant argument": (Gain, (6,)),
    "one value as two arguments": (Square, (6,)),
    "sizes of the input": (Shapes, (6,)),
    "ends with a node": (lambda: nn.Sequential(layer.Linear(6, 4), node("gelu")), (6,)),
    "a node alone": (lambda: node("gelu", resting=0.25), (6,)),
    "begins with a node": (lambda: nn.Sequential(node("gelu"), layer.Linear(6, 2)), (6,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(mlp(), node()), nn.Linear(3, 2)), (6,)),
    "without biases": (
        lambda: nn.Sequential(nn.Linear(6, 4, bias=False), node(), nn.Linear(4, 2, bias=False)),
        (6,),
    ),
    "softmax at the end": (Softmax, (6,)),
    "attention": (Attention, (5, 6)),
    "mean at the end": (lambda: nn.Sequential(mlp(), plugin().RunningMean()), (6,)),
}  # fmt: skip


def plugin() -> Any:
    from spikingjelly_signgd.plugins import spikingjelly

    return spikingjelly


def leaves(y: Any) -> list[Tensor]:
    if isinstance(y, Tensor):
        return [y]
    return [leaf for item in (y.values() if isinstance(y, dict) else y) for leaf in leaves(item)]


def forms_of(net: nn.Module) -> set[str]:
    """What the modules of ours send."""
    parts = [simulator_of(net).part(m) for m in net.modules()]  # type: ignore[union-attr]
    return {part.spikes for part in parts if part is not None}


@torch.no_grad()
def steps(net: nn.Module, x: Tensor, mode: str = "s") -> list[Tensor]:
    """Each output over time, [T, N, *]."""
    functional.set_step_mode(net, mode)
    functional.reset_net(net)
    x_seq = x.expand(STEPS, *x.shape)
    if mode == "m":
        found = leaves(net(x_seq))
    else:
        found = [torch.stack(y) for y in zip(*[leaves(net(x)) for x in x_seq], strict=True)]
    functional.reset_net(net)
    return found


def assert_close(got: list[Tensor], wanted: list[Tensor], atol: float = 1e-12) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
        assert a.std() > 1e-3


def coded(net: nn.Module, spikes: str) -> nn.Module:
    """The decoded network, with the coding of the input that these spikes have."""
    return net if spikes == "signed" else nn.Sequential(Encode(SCHEDULE, spikes="decoded"), net)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("spikes", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_forms_agree_at_every_step(name: str, spikes: str, mode: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    functional.set_step_mode(net, mode)
    example = x if mode == "s" else x.expand(2, *x.shape)
    if name == "several members" and spikes == "ternary":
        with pytest.raises(sg.InputError, match=r"'1' \(SignGDNode\) has members=3"):
            sg.to_spikes(net, example, spikes)
        return
    spiking = sg.to_spikes(net, example, spikes)
    assert forms_of(spiking) == {spikes}
    assert str(sg.check(spiking, example)).endswith("is sound.")
    decoded = sg.to_decoded(spiking, example)
    assert sg.check(decoded, example).ok and sg.check(net, example).ok
    wanted = steps(coded(net, spikes), x, mode)
    assert_close(steps(spiking, x, mode), wanted)
    assert_close(steps(decoded, x, mode), wanted)
    assert forms_of(decoded) == {"decoded"}


def test_values_of_halves_are_the_same_to_the_bit() -> None:
    """Sizes, weights, biases and inputs are whole numbers of 2 ** -6: nothing is ever rounded."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(6, 8), node("relu", HALVES, resting=0.5), layer.Linear(8, 8),
        node("relu", HALVES, members=2, scale=0.5), layer.Linear(8, 3),
    )  # fmt: skip
    for parameter in net.parameters():
        parameter.data = parameter.data.mul(64).round() / 64
    x = torch.randn(4, 6).mul(64).round() / 64
    spiking = sg.to_spikes(net, x)
    decoded = sg.to_decoded(spiking, x)
    for mode in ("s", "m"):
        ((wanted,), (one,), (two,)) = (steps(n, x, mode) for n in (net, spiking, decoded))
        assert torch.equal(one, wanted) and torch.equal(two, wanted) and wanted.std() > 0.1
    for name, parameter in net.state_dict().items():
        assert torch.equal(parameter, decoded.state_dict()[name]), name


def test_spikes_are_what_reaches_the_layers() -> None:
    """Behind the coding: whole numbers of the step size, or silence."""
    torch.manual_seed(0)
    net, x = mlp(members=2), torch.randn(4, 6)
    seen: list[Tensor] = []
    for spikes in ("signed", "binary"):
        spiking = sg.to_spikes(net, x, spikes)
        layers = [m for m in spiking.modules() if isinstance(m, nn.Linear)]
        assert [m.bias for m in layers] == [None] * 3
        for module in layers[1:]:
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for t in range(1, STEPS + 1):
            seen.clear()
            spiking(x)
            unit = -SCHEDULE(t) / 2 if spikes == "signed" else 1.0
            for y in seen:
                d = y / unit
                torch.testing.assert_close(d, d.round())
                assert 1 < len(d.round().unique()) <= 4


def test_additions_are_counted_for_spikes() -> None:
    """SpikingJelly's counter finds accumulates alone behind the neurons."""
    op_counter = pytest.importorskip("spikingjelly_signgd.plugins.op_counter", exc_type=ImportError)
    torch.manual_seed(0)
    net, x = mlp(), torch.randn(1, 6)
    spiking = sg.to_spikes(net, x)
    spiking = nn.Sequential(*list(spiking.children())[2:])  # from the first neuron on
    with op_counter.Spikes(spiking) as spikes:
        ac = op_counter.ACCounter(spikes.rules_of(op_counter.ACCounter))
        mac = op_counter.MACCounter(spikes.rules_of(op_counter.MACCounter))
        with torch.no_grad(), op_counter.DispatchCounterMode([spikes, ac, mac]):
            spiking(torch.randn(1, 8))
    assert mac.get_total() == 0
    assert ac.get_total() == 8 * 7 + 7 * 3  # a sign from every neuron, no silence


def test_repeated_over_time_and_averaged_as_in_spikingjellys_examples() -> None:
    torch.manual_seed(0)
    net, x = OverTime().double(), torch.randn(4, 1, 2, 2, dtype=torch.float64)
    functional.set_step_mode(net, "m")
    spiking = sg.to_spikes(net, x)
    assert isinstance(spiking, fx.GraphModule)
    calls = [str(call.target) for call in spiking.graph.nodes if call.op == "call_module"]
    assert calls == ["flatten", "encode", "net.0", "net.1", "net.2", "readout"]
    decoded = sg.to_decoded(spiking, x)
    assert sg.check(spiking, x).ok and sg.check(decoded, x).ok and sg.check(net, x).ok
    wanted = net(x).detach()
    assert_close([spiking(x).detach()], [wanted])
    assert_close([decoded(x).detach()], [wanted])


# -- Norse ----------------------------------------------------------------------------------------


def norse_node(over_time: bool, function: str = "relu", **options: Any) -> nn.Module:
    p = norse.SignGDParameters(
        function, SCHEDULE, **{"spikes": "decoded", "dead_zone": 0.0, **options}
    )
    return norse.SignGD(p) if over_time else norse.SignGDCell(p)


def norse_mlp(over_time: bool, **options: Any) -> nn.Module:
    return SequentialState(
        nn.Linear(6, 8), norse_node(over_time, "gelu", **options), nn.Linear(8, 7),
        norse_node(over_time, "silu", **options), nn.Linear(7, 3),
    )  # fmt: skip


def norse_cnn(over_time: bool) -> nn.Module:
    """Modules by step in Lift, a sequence within the sequence, resting values by channel."""
    lift = Lift if over_time else nn.Sequential
    resting = torch.randn(4, 1, 1)
    return SequentialState(
        lift(nn.Conv2d(1, 4, 3)),
        lift(batch_norm(nn.BatchNorm2d, 4)),
        norse_node(over_time, "gelu", resting=resting, scale=torch.rand(4, 1, 1) + 0.5),
        lift(nn.AvgPool2d(2)),
        nn.Flatten(2 if over_time else 1),
        SequentialState(nn.Linear(16, 5), norse_node(over_time)),
        nn.Linear(5, 3),
    ).eval()


NORSE: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "mlp": (norse_mlp, (6,)),
    "several members": (lambda over_time: norse_mlp(over_time, members=3), (6,)),
    "cnn": (norse_cnn, (1, 6, 6)),
}


@torch.no_grad()
def norse_steps(net: nn.Module, x: Tensor, over_time: bool) -> list[Tensor]:
    if over_time:
        return [net(x.expand(STEPS, *x.shape))[0]]
    outputs, state = [], None
    for _ in range(STEPS):
        y, state = net(x, state)
        outputs.append(y)
    return [torch.stack(outputs)]


@pytest.mark.parametrize("over_time", [True, False], ids=["layers", "cells"])
@pytest.mark.parametrize("spikes", FORMS)
@pytest.mark.parametrize("name", NORSE)
def test_both_forms_agree_in_norse(name: str, spikes: str, over_time: bool) -> None:
    torch.manual_seed(0)
    make, shape = NORSE[name]
    net, x = make(over_time).double(), torch.randn(4, *shape, dtype=torch.float64)
    example = x.expand(2, *x.shape) if over_time else x
    if name == "several members" and spikes == "ternary":
        with pytest.raises(sg.InputError, match=r"'1' \(SignGD(Cell)?\) has members=3"):
            sg.to_spikes(net, example, spikes)
        return
    spiking = sg.to_spikes(net, example, spikes)
    assert type(spiking) is SequentialState and forms_of(spiking) == {spikes}
    decoded = sg.to_decoded(spiking, example)
    assert forms_of(decoded) == {"decoded"}
    assert all(sg.check(n, example).ok for n in (net, spiking, decoded))
    if spikes != "signed":
        make_code = norse.Encode if over_time else norse.EncodeCell
        code = make_code(norse.EncodeParameters(SCHEDULE, spikes="decoded"))
        net = SequentialState(code, net)
    wanted = norse_steps(net, x, over_time)
    assert_close(norse_steps(spiking, x, over_time), wanted)
    assert_close(norse_steps(decoded, x, over_time), wanted)


class Total(nn.Module):
    """The sum over time so far."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


@pytest.mark.parametrize("over_time", [True, False], ids=["layers", "cells"])
def test_a_layer_that_stands_twice_in_norse_is_called_twice(over_time: bool) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    gelu, relu = norse_node(over_time, "gelu"), norse_node(over_time)
    net = SequentialState(shared, gelu, shared, relu, nn.Linear(6, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    example = x.expand(2, *x.shape) if over_time else x
    spiking = sg.to_spikes(net, example)
    decoded = sg.to_decoded(spiking, example)
    assert len(spiking._modules) == 7 and all(
        sg.check(n, example).ok for n in (net, spiking, decoded)
    )
    wanted = norse_steps(net, x, over_time)
    assert_close(norse_steps(spiking, x, over_time), wanted)
    assert_close(norse_steps(decoded, x, over_time), wanted)


def test_a_layer_of_norse_that_takes_values_and_spikes_is_refused() -> None:
    shared = nn.Linear(6, 6)
    net = SequentialState(shared, Total(), shared, norse_node(True))
    with pytest.raises(sg.InputError, match=r"'0' \(Linear\) is called with increments and with"):
        sg.to_spikes(net, torch.randn(3, 4, 6))


# -- faults ---------------------------------------------------------------------------------------


def hand(simulator: str, *modules: Any) -> nn.Module:
    """A network of texts and modules: "8 6" is a layer without bias, "8 6 bias" one with it."""
    made = []
    for module in modules:
        if isinstance(module, str):
            into, out, *bias = module.split()
            made.append(nn.Linear(int(into), int(out), bias=bool(bias)))
        else:
            made.append(module(simulator))
    return nn.Sequential(*made) if simulator == "spikingjelly" else SequentialState(*made)


def fires(spikes: str, schedule: Any = SCHEDULE, **options: Any) -> Callable[[str], nn.Module]:
    options = {"spikes": spikes, "dead_zone": 0.0, **options}
    if spikes != "decoded":
        options.setdefault("initial_input", 0.1)

    def make(simulator: str) -> nn.Module:
        if simulator == "spikingjelly":
            return SignGDNode("gelu", schedule, **options)
        return norse.SignGDCell(norse.SignGDParameters("gelu", schedule, **options))

    return make


def encode(spikes: str, schedule: Any = SCHEDULE) -> Callable[[str], nn.Module]:
    def make(simulator: str) -> nn.Module:
        if simulator == "spikingjelly":
            return Encode(schedule, spikes=spikes)
        return norse.EncodeCell(norse.EncodeParameters(schedule, spikes=spikes))

    return make


def readout(spikes: str, **options: Any) -> Callable[[str], nn.Module]:
    if spikes != "decoded":
        options = {"initial": 0.1, **options}

    def make(simulator: str) -> nn.Module:
        if simulator == "spikingjelly":
            return Readout(spikes=spikes, **options)
        return norse.ReadoutCell(norse.ReadoutParameters(spikes=spikes, **options))

    return make


OTHER = sg.ExponentialSchedule(0.5, 0.8)
TERNARY = {"schedule": SCHEDULE}
# the modules, the path that is named, what is said of it
FAULTS: dict[str, tuple[list[Any], str, str]] = {
    "a bias before a spiking neuron": (
        [encode("signed"), "6 8 bias", fires("signed"), "8 3", readout("signed")],
        "1",
        "adds its bias at every step to signed spikes, before '2'",
    ),
    "a bias before the read-out": (
        [encode("signed"), "6 8", fires("signed"), "8 3 bias", readout("signed")],
        "3",
        "adds its bias at every step to signed spikes, before '4'",
    ),
    "Encode left out": (
        ["6 8", fires("signed"), "8 3", readout("signed")],
        "1",
        "takes signed spikes, and no Encode before it",
    ),
    "Readout left out": (
        [encode("signed"), "6 8", fires("signed"), "8 3"],
        "3",
        "is an output of signed spikes, which no Readout decodes",
    ),
    "a decoded neuron before a spiking one": (
        ["6 8 bias", fires("decoded"), "8 8", fires("signed"), "8 3", readout("signed")],
        "3",
        "takes signed spikes, and '1' .* sends decoded values",
    ),
    "a spiking neuron before a decoded one": (
        [encode("signed"), "6 8", fires("signed"), "8 8", fires("decoded"), "8 3 bias"],
        "4",
        "takes decoded values, and '2' .* sends signed spikes",
    ),
    "Encode of signed spikes before decoded neurons": (
        [encode("signed"), "6 8 bias", fires("decoded"), "8 3 bias"],
        "0",
        "sends signed spikes to '2' .*, which takes decoded values",
    ),
    "Readout of signed spikes behind decoded neurons": (
        ["6 8 bias", fires("decoded"), "8 3 bias", readout("signed", initial=0.0)],
        "3",
        "takes signed spikes, and '1' .* sends decoded values",
    ),
    "another schedule": (
        [encode("ternary"), "6 8", fires("ternary"), "8 8", fires("ternary", OTHER), "8 3",
         readout("ternary", **TERNARY)],
        "4",
        "has schedule=Exponential.*0.8.*, and the others .*0.9",
    ),
    "another number of members": (
        [encode("binary"), "6 8", fires("binary", offset=0.0), "8 8",
         fires("binary", offset=0.0, members=2), "8 3",
         readout("binary", schedule=SCHEDULE, offset=0.0)],
        "4",
        "has members=2, and the others 1",
    ),
    "an offset that is not the layer's": (
        [encode("binary"), "6 8", fires("binary", offset=0.0), "8 3",
         readout("binary", schedule=SCHEDULE, offset=0.0)],
        "2 4",
        "has an offset other than W scale 1",
    ),
    "resting values forgotten": (
        [encode("signed"), "6 8", fires("signed", resting=0.5), "8 8",
         fires("signed", initial_input=0.0), "8 3", readout("signed")],
        "4",
        "has initial_input 0, but the resting values",
    ),
    "an initial input of another shape": (
        [encode("signed"), "6 8", fires("signed", initial_input=torch.ones(7)), "8 3",
         readout("signed")],
        "2",
        r"has initial_input of \[7\], which does not broadcast to .* \[8\]",
    ),
    "a norm in training mode": (
        ["6 8 bias", lambda s: nn.BatchNorm1d(8), fires("decoded"), "8 3 bias"],
        "1",
        "is in training mode",
    ),
    "a dropout in training mode": (
        ["6 8 bias", fires("decoded"), lambda s: nn.Dropout(0.5), "8 3 bias"],
        "2",
        "is in training mode",
    ),
    "an activation between spiking neurons": (
        [encode("signed"), "6 8", lambda s: nn.ReLU(), fires("signed"), "8 3", readout("signed")],
        "2",
        "is not linear, and it receives signed spikes",
    ),
    "a pooling of maxima between spiking neurons": (
        [encode("signed"), "6 8", fires("signed"), lambda s: nn.MaxPool1d(2), "4 3",
         readout("signed")],
        "3",
        "is not linear, and it receives signed spikes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_by_name(name: str, simulator: str) -> None:
    modules, path, said = FAULTS[name]
    torch.manual_seed(0)
    net, x = hand(simulator, *modules), torch.randn(4, 6)
    training = name.endswith("in training mode")
    net.train(training)
    before = copy.deepcopy([*net.parameters(), *net.buffers()])
    report = sg.check(net, x)
    assert not report.ok
    assert [fault.path for fault in report.blockers] == path.split()
    for fault in report.blockers:
        assert fault.module == type(net.get_submodule(fault.path)).__name__
        (line,) = [r for r in str(report).splitlines() if r.startswith(f"  '{fault.path}'")]
        assert re.search(said, line) and line.endswith(fault.fix), line
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    after = [*net.parameters(), *net.buffers()]
    assert all(map(torch.equal, after, before)) and (net.training == training)
    change, said = (sg.to_decoded, "to_decoded: [A-Za-z]* has . fault")
    if training:  # of a network in the decoded form, which needs no way there
        change, said = (sg.to_spikes, f"'{path}' .* is in training mode")
    with pytest.raises(sg.InputError, match=said):
        change(net, x)


def test_a_constant_that_every_step_adds_is_found_where_it_stands() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Sequential(Encode(SCHEDULE), nn.Linear(6, 8, bias=False))
            self.act, self.read = node(initial_input=0.0, spikes="signed"), Readout()

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.act(self.before(x) + 1.0))

    (fault,) = sg.check(Adds(), IMAGE).blockers
    assert (fault.path, fault.module) == ("add", "add")
    assert fault.detail.startswith("adds a constant at every step to signed spikes, before 'act'")
    assert fault.fix.startswith("leave the constant out")


def test_a_bias_before_a_spiking_neuron_is_wrong_and_to_spikes_right() -> None:
    """The trial of a new user: relative error at the last of 50 steps."""
    torch.manual_seed(0)
    schedule = sg.ExponentialSchedule(0.5, 0.9)
    x = torch.randn(32, 16)

    def net(spikes: str) -> nn.Sequential:
        torch.manual_seed(1)
        act = SignGDNode("gelu", schedule, spikes=spikes, initial_input=0.0)
        return nn.Sequential(nn.Linear(16, 32), act, nn.Linear(32, 8))

    faulty = nn.Sequential(Encode(schedule), *net("signed"), Readout())
    sound = sg.to_spikes(net("decoded"), x)
    first, _, last = net("decoded")
    wanted = last(nn.functional.gelu(first(x)))

    @torch.no_grad()
    def error(module: nn.Module) -> float:
        for _ in range(50):
            y = module(x)
        return float((y - wanted).norm() / wanted.norm())

    assert error(faulty) > 10 and error(sound) < 0.02
    assert {row.path for row in sg.check(faulty, x).blockers} == {"1", "3"}
    assert sg.check(sound, x).ok


def readme() -> nn.Module:
    """Written in the signed form by hand: no biases in layers, they are where the run begins."""
    return nn.Sequential(
        Encode(SCHEDULE),
        layer.Linear(6, 8, bias=False),
        node("gelu", initial_input=torch.randn(8), spikes="signed"),
        layer.Linear(8, 3, bias=False),
        Readout(initial=torch.randn(3)),
    )


def by_the_protocol(spikes: str, members: int = 1) -> nn.Module:
    """Offsets and initial inputs by their formulas, with scales and resting values."""
    first, last = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)
    scale, resting, b1, b2 = torch.rand(8) + 0.5, torch.randn(8), torch.randn(8), torch.randn(3)
    w1, w2 = first.weight.detach(), last.weight.detach()
    binary = spikes == "binary"
    act = node(
        "gelu", scale=scale, resting=resting, initial_input=b1, members=members,
        spikes=spikes, offset=w1.sum(1) if binary else None,
    )  # fmt: skip
    read = Readout(
        w2 @ resting + b2, schedule=SCHEDULE, members=members, spikes=spikes,
        offset=w2 @ scale if binary else None,
    )  # fmt: skip
    return nn.Sequential(Encode(SCHEDULE, spikes=spikes, members=members), first, act, last, read)


SOUND: dict[str, Callable[[], nn.Module]] = {
    "signed, as the README": readme,
    "signed by the protocol": lambda: by_the_protocol("signed"),
    "ternary by the protocol": lambda: by_the_protocol("ternary"),
    "binary by the protocol": lambda: by_the_protocol("binary"),
    "binary, several members": lambda: by_the_protocol("binary", 3),
    "a coding and a read-out of decoded values": lambda: nn.Sequential(
        Encode(SCHEDULE, spikes="decoded"), mlp(), Readout(spikes="decoded")
    ),
    "activations between decoded neurons": lambda: nn.Sequential(
        nn.Linear(6, 8), node(), nn.MaxPool1d(2), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)
    ),
    "schedules of their own, signed": lambda: sg.to_spikes(
        nn.Sequential(nn.Linear(6, 8), node(), nn.Linear(8, 4), node(schedule=OTHER)), IMAGE
    ),
    "momentum": lambda: sg.to_spikes(nn.Sequential(nn.Linear(6, 8), node(momentum=0.5)), IMAGE),
    "neurons of SpikingJelly behind": lambda: nn.Sequential(
        mlp(), nn.Linear(3, 4), neuron.IFNode(), nn.Linear(4, 2), GroupNode(2)
    ),
    "neurons of Norse before and behind": lambda: SequentialState(
        nn.Linear(6, 8), LIFCell(), nn.Linear(8, 4), norse_node(False), nn.Linear(4, 4), LIFCell()
    ),
    "Poisson coding of decoded values": lambda: nn.Sequential(
        plugin().PoissonEncode(averaged=True), mlp()
    ),
    "in training, without dropout": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.0), node()
    ).train(),
    "read out before a softmax": lambda: nn.Sequential(readme(), nn.Softmax(-1)),
    "a loop over time": lambda: Loop(readme()),
    "a loop over time, decoded": lambda: Loop(mlp()),
    "a node alone": lambda: node(),
    "rate-coded": lambda: nn.Sequential(nn.Linear(6, 8), GroupNode(4), nn.Linear(8, 2)),
}


@pytest.mark.parametrize("name", SOUND)
def test_no_false_alarm(name: str) -> None:
    torch.manual_seed(0)
    net = SOUND[name]()
    report = sg.check(net, IMAGE)
    assert report.ok and report.blockers == (), str(report)
    assert str(report).endswith("is sound.")
    part = simulator_of(net).part  # type: ignore[union-attr]
    ours = [path or "0" for path, m in net.named_modules() if part(m) is not None]
    assert [row.path for row in report.rows] == ours


def test_a_source_model_is_checked_as_before() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    report = sg.check(model, IMAGE, forms="local")
    assert isinstance(report, sg.CheckReport) and report.ok
    with pytest.raises(sg.InputError, match="forms are options of a conversion, but Sequential"):
        sg.check(mlp(), IMAGE, forms="local")


def test_the_command_checks_networks_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    from spikingjelly_signgd.cli import main

    assert main(["check", "test_forms_by_hand:mlp", "--input", "6"]) == 0
    assert capsys.readouterr().out.endswith("Sequential is sound.\n")


# -- what is refused ------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = node()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(6, 6), node()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(self.act(x)))


class TwoPlaces(nn.Module):
    """One node in two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.last = nn.Linear(6, 6), nn.Linear(6, 6), node(), node()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.a(x)) + self.act(self.b(x)))


def mixed_modes(simulator: str) -> nn.Module:
    """Of three neurons the first takes a step, and the others all of time."""
    if simulator == "norse":
        first, second = norse_node(False, "gelu"), norse_node(True)
        return SequentialState(nn.Linear(6, 8), first, nn.Linear(8, 7), second, norse_node(True))
    net: Any = nn.Sequential(*mlp(), node())
    functional.set_step_mode(net, "m")
    net[1].step_mode = "s"
    return net


def test_a_network_of_norse_may_end_with_a_neuron_of_norse() -> None:
    torch.manual_seed(0)
    net = SequentialState(nn.Linear(6, 8), norse_node(False), nn.Linear(8, 4), LICell()).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    spiking = sg.to_spikes(net, x)
    assert isinstance(spiking, SequentialState)
    assert_close(norse_steps(spiking, x, False), norse_steps(net, x, False))


def test_a_neuron_that_keeps_its_state_back_is_found() -> None:
    net = SequentialState(nn.Sequential(nn.Linear(6, 8), norse_node(False)), nn.Linear(8, 2))
    with pytest.raises(sg.InputError, match="Put that into the SequentialState"):
        sg.check(net, IMAGE)


@pytest.mark.parametrize("make", [Twice, TwoPlaces])
def test_a_node_at_two_places_is_found(make: Any) -> None:
    (row,) = sg.check(make(), IMAGE).blockers
    assert row.path == "act" and "is called 2 times in one forward" in row.detail


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_mixed_step_modes_are_found(simulator: str) -> None:
    (row,) = sg.check(mixed_modes(simulator), IMAGE.expand(3, 4, 6)).blockers
    assert row.path == "1" and re.match(
        "has another step_mode|takes single steps where", row.detail
    )


class Gated(nn.Module):
    """A product of two values, as a plain operation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 6), node()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.a(x) * self.b(x))


class AddOne(nn.Module):
    """A constant that is no bias of torch's layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0


def sequence(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "relu": (
        lambda: sequence(nn.Linear(6, 8), node(), nn.ReLU(), nn.Linear(8, 2), node()),
        "signed",
        r"'2' \(ReLU\) is not linear.*Use a signGD node of that function",
    ),
    "relu before a last layer": (
        lambda: sequence(nn.Linear(6, 8), node(), nn.ReLU(), nn.Linear(8, 2)),
        "signed",
        r"'2' \(ReLU\) is not linear",
    ),
    "max pool": (
        lambda: sequence(nn.Linear(6, 8), node(), nn.MaxPool1d(2), node()),
        "signed",
        r"'2' \(MaxPool1d\) is not linear",
    ),
    "layer norm": (
        lambda: sequence(nn.Linear(6, 8), nn.LayerNorm(8), node()),
        "signed",
        r"'1' \(LayerNorm\) is not linear",
    ),
    "a clamp with wide bounds": (
        lambda: sequence(nn.Linear(6, 8), nn.Hardtanh(-50.0, 50.0), node()),
        "signed",
        r"'1' \(Hardtanh\) is not linear",
    ),
    "a product in forward": (Gated, "signed", r"'mul' is not linear"),
    "a neuron of SpikingJelly": (
        lambda: sequence(nn.Linear(6, 8), neuron.IFNode(), node()),
        "signed",
        r"'1' \(IFNode\) has a state of its own",
    ),
    "a neuron of Norse": (
        lambda: SequentialState(nn.Linear(6, 8), LIFCell(), norse_node(False)),
        "signed",
        r"'1' \(LIFCell\) has a state of its own",
    ),
    "a neuron in a module of torch": (
        lambda: SequentialState(nn.Sequential(nn.Linear(6, 8), norse_node(False)), nn.Linear(8, 2)),
        "signed",
        r"'0' \(Sequential\) holds a SignGDCell and does not return its state",
    ),
    "a layer of neurons in Lift": (
        lambda: SequentialState(nn.Linear(6, 8), Lift(norse_node(False))),
        "signed",
        r"'1' \(Lift\) holds a SignGDCell and does not return its state",
    ),
    "a group neuron": (
        lambda: sequence(nn.Linear(6, 8), GroupNode(4), node()),
        "signed",
        r"'1' \(GroupNode\) has a state of its own",
    ),
    "group neurons only": (
        lambda: sequence(nn.Linear(6, 8), GroupNode(4)),
        "signed",
        "Sequential has no signGD neurons, and other neurons have only one form",
    ),
    "no neurons of this package": (
        lambda: sequence(nn.Linear(6, 8), neuron.IFNode()),
        "signed",
        r"Sequential has no neurons of this package.*convert\(model, calibration\)",
    ),
    "a branch": (Branches, "signed", "Branches cannot be traced by torch.fx: TraceError.*branches"),
    "a loop over time": (
        lambda: Loop(mlp()),
        "signed",
        r"'net.1' \(SignGDNode\) is called 6 times.*leave the loop over time",
    ),
    "a node called twice": (Twice, "signed", r"'act' \(SignGDNode\) is called 2 times"),
    "step modes": (
        lambda: mixed_modes("spikingjelly"),
        "signed",
        r"'1' \(SignGDNode\) has another step_mode than the others; call functional.set_step",
    ),
    "cells and layers": (
        lambda: mixed_modes("norse"),
        "signed",
        r"'1' \(SignGDCell\) takes single steps where others .*of layers only, or of cells",
    ),
    "training": (
        lambda: sequence(nn.Linear(6, 8), nn.BatchNorm1d(8), node()),
        "signed",
        r"'1' \(BatchNorm1d\) is in training mode.*net.eval\(\)",
    ),
    "dropout in training": (
        lambda: sequence(layer.Linear(6, 8), layer.Dropout(0.5), node()),
        "signed",
        r"'1' \(Dropout\) is in training mode.*net.eval\(\)",
    ),
    "another schedule": (
        lambda: sequence(nn.Linear(6, 8), node(), nn.Linear(8, 2), node(schedule=OTHER)),
        "ternary",
        r"'3' \(SignGDNode\) has the schedule .*0.8.*, and '1' .*0.9",
    ),
    "another schedule of the coding": (
        lambda: sequence(Encode(OTHER, spikes="decoded"), nn.Linear(6, 8), node()),
        "binary",
        r"'0' \(Encode\) has the schedule .*0.8",
    ),
    "other members": (
        lambda: sequence(nn.Linear(6, 8), node(), nn.Linear(8, 2), node(members=2)),
        "binary",
        r"'3' \(SignGDNode\) has members=2, and '1' \(SignGDNode\) has 1",
    ),
    "several signs": (
        lambda: sequence(nn.Linear(6, 8), node(members=2)),
        "ternary",
        r"'1' \(SignGDNode\) has members=2, and a ternary spike is one sign",
    ),
    "a dead zone": (
        lambda: sequence(nn.Linear(6, 8), node(dead_zone=0.5)),
        "binary",
        r"'1' \(SignGDNode\) has a dead zone.*dead_zone=0",
    ),
    "momentum": (
        lambda: sequence(nn.Linear(6, 8), node(momentum=0.5)),
        "ternary",
        r"'1' \(SignGDNode\) has momentum=0.5",
    ),
    "a constant without samples": (
        lambda: Gain(expanded=False),
        "signed",
        r"'product' \(SignGDNode\) is called with \[\[4, 5\], \[5\]\].*expand_as",
    ),
    "an unknown form": (mlp, "graded", "spikes is one of signed, binary, ternary"),
    "decoded": (mlp, "decoded", "spikes is one of signed, binary, ternary"),
    "two simulators": (
        lambda: sequence(mlp(), norse_node(False)),
        "signed",
        "Sequential has nodes of spikingjelly and norse",
    ),
    "Norse without SequentialState": (
        lambda: sequence(nn.Linear(6, 8), norse_node(False)),
        "signed",
        "Build the network as a SequentialState",
    ),
    "Norse, hidden values returned": (
        lambda: SequentialState(nn.Linear(6, 8), norse_node(False), return_hidden=True),
        "signed",
        "without return_hidden",
    ),
    "a constant that is not the bias": (
        lambda: SequentialState(nn.Sequential(nn.Linear(6, 8), AddOne()), norse_node(False)),
        "signed",
        r"'0' \(Sequential\) adds a constant that is not the bias of a torch layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_changed_is_refused_by_name(name: str) -> None:
    make, spikes, said = REFUSED[name]
    with pytest.raises(sg.InputError, match=said):
        sg.to_spikes(make(), IMAGE, spikes)


def test_examples_that_do_not_fit_are_refused() -> None:
    net = mlp()
    with pytest.raises(sg.InputError, match="Sequential fails on the example: RuntimeError"):
        sg.to_spikes(net, torch.randn(4, 5))
    functional.set_step_mode(net, "m")
    with pytest.raises(sg.InputError, match=r"is \[1, 4, 6\]. Pass at least two rows"):
        sg.to_spikes(net, torch.randn(1, 4, 6))


def test_a_built_network_is_refused_with_the_way() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    snn = sg.build(sg.convert(model, IMAGE, tune=False), "spikingjelly")
    for change in (sg.to_spikes, sg.to_decoded, sg.check):
        with pytest.raises(sg.InputError, match='is a network made by build.*spikes="signed"'):
            change(snn, IMAGE)


# -- the network that is handed in ----------------------------------------------------------------


@pytest.mark.parametrize("change", [sg.to_spikes, sg.to_decoded, sg.check])
@pytest.mark.parametrize("make", [cnn, Residual])
def test_the_network_is_left_as_it_was(make: Any, change: Any) -> None:
    torch.manual_seed(0)
    net, x = make(), torch.randn(4, *((1, 6, 6) if make is cnn else (6,)))
    with torch.no_grad():
        net(x)
    nodes = [m for m in net.modules() if isinstance(m, SignGDNode)]
    before = copy.deepcopy((net.state_dict(), [(m.v, m.t) for m in nodes], repr(net)))
    other = change(net, x)
    after = (net.state_dict(), [(m.v, m.t) for m in nodes], repr(net))
    torch.testing.assert_close(after[:2], before[:2])
    assert after[2] == before[2]
    if isinstance(other, nn.Module):
        mine = {id(p) for p in [*net.parameters(), *net.buffers()]}
        assert not mine & {id(p) for p in [*other.parameters(), *other.buffers()]}
        assert all(m.t == 0 for m in other.modules() if isinstance(m, SignGDNode))


def test_settings_of_nodes_and_layers_stay() -> None:
    options: dict[str, Any] = {"store_v_seq": True, "backend": "torch", "members": 2}
    act = node("leaky_relu", arguments={"negative_slope": 0.2}, scale=torch.ones(8), **options)
    net = nn.Sequential(layer.Linear(6, 8), act, layer.Linear(8, 2))
    functional.set_step_mode(net, "m")
    spiking = sg.to_spikes(net, torch.randn(2, 3, 6))
    for other in (spiking, sg.to_decoded(spiking, torch.randn(2, 3, 6))):
        (new,) = [m for m in other.modules() if isinstance(m, SignGDNode)]
        for name in ("store_v_seq", "backend", "members", "schedule", "arguments", "dead_zone"):
            assert getattr(new, name) == getattr(act, name), name
        assert torch.equal(new.scale, act.scale) and new.step_mode == "m"
        modes = {m.step_mode for m in other.modules() if isinstance(m, base.StepModule)}
        assert modes == {"m"}


def test_layers_without_steps_in_networks_over_time() -> None:
    torch.manual_seed(0)
    net, x = ByStep().double().eval(), torch.randn(STEPS, 3, 1, 6, 6, dtype=torch.float64)
    functional.set_step_mode(net, "m")
    spiking = sg.to_spikes(net, x[:2])
    decoded = sg.to_decoded(spiking, x[:2])
    assert sg.check(spiking, x).ok and sg.check(decoded, x).ok
    with torch.no_grad():
        wanted = net(x)
        assert_close([spiking(x)], [wanted])
        assert_close([decoded(x)], [wanted])


def test_token_ids_are_looked_up_before_the_coding() -> None:
    torch.manual_seed(0)
    table = nn.Sequential(nn.Embedding(9, 6), mlp()).double()
    ids = torch.randint(9, (4, 5))
    spiking = sg.to_spikes(table, ids)
    assert sg.check(spiking, ids).ok and sg.check(table, ids).ok
    assert_close(steps(spiking, ids), steps(table, ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = mlp().to(dtype), torch.randn(4, 6, dtype=dtype)
    spiking = sg.to_spikes(net, x)
    assert sg.check(spiking, x).ok
    # a spike may move where values are rounded so
    (a,), (b,) = steps(spiking, x), steps(net, x)
    assert float((a - b).abs().mean()) < 0.15 and a.dtype == dtype


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_result_is_saved_and_loaded(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    x = torch.randn(4, *shape)
    net = sg.to_spikes(make(), x)
    torch.save(net, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    assert all(map(torch.equal, steps(loaded, x), steps(net, x)))
    torch.manual_seed(1)
    other = sg.to_spikes(make(), x)
    other.load_state_dict(net.state_dict())
    assert all(map(torch.equal, steps(other, x), steps(net, x)))


def test_a_read_out_that_begins_at_a_number_is_saved_and_loaded() -> None:
    """As of a bias of one value."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    nets: list[Any] = [mlp(), mlp()]
    for value, net in enumerate(nets):
        nn.init.constant_(net[4].bias, 3.0 * value)
        net[1].resting = net[3].resting = 0.0
    one, other = (sg.to_spikes(net, x) for net in nets)
    other.load_state_dict(one.state_dict())
    assert all(map(torch.equal, steps(other, x), steps(one, x)))


def test_parameters_of_nodes_stay_and_train() -> None:
    torch.manual_seed(0)
    act = node("gelu", resting=nn.Parameter(torch.rand(8)), learnable=("scale", "dead_zone"))
    net, x = nn.Sequential(layer.Linear(6, 8), act, layer.Linear(8, 3)), torch.randn(4, 6)
    net(x).sum().backward()  # leaves a graph in the state
    spiking = sg.to_spikes(net, x)
    decoded = sg.to_decoded(spiking, x)
    assert type(spiking) is type(decoded) is nn.Sequential
    learned = {"1.scale", "1.resting", "1.dead_zone"}
    assert {*dict(spiking.named_parameters())} == {"0.weight", "2.weight", *learned}
    assert {*dict(decoded.named_parameters())} == {*dict(net.named_parameters())}
    decoded(x).square().sum().backward()
    assert all(p.grad is not None for p in decoded.parameters())
    assert not any(a is b for a in decoded.parameters() for b in spiking.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_what_was_learned_beyond_its_range_is_taken_into_it(
    simulator: str, dtype: torch.dtype
) -> None:
    learnable = ("scale", "dead_zone")
    act: Any = SignGDNode("gelu", learnable=learnable)
    if simulator == "norse":
        act = norse.SignGDCell(norse.SignGDParameters("gelu"), learnable=learnable)
    net: Any = (SequentialState if simulator == "norse" else nn.Sequential)(nn.Linear(6, 4), act)
    net, x = net.to(dtype), torch.randn(4, 6, dtype=dtype)
    with torch.no_grad():
        for value, name in ((0.7, "dead_zone"), (-1.0, "scale")):
            (parameter,) = (p for key, p in net.named_parameters() if name in key)
            sg.to_spikes(net, x)
            parameter.fill_(value)
            spiking = sg.to_spikes(net, x)
            assert float(parameter) == torch.tensor(value, dtype=dtype).item()
    assert sg.check(spiking, x).ok and sg.check(sg.to_decoded(spiking, x), x).ok


@pytest.mark.parametrize("simulator", ["spikingjelly", "norse"])
def test_initial_inputs_that_were_learned_are_biases_again(simulator: str) -> None:
    torch.manual_seed(0)
    learned = nn.Parameter(torch.randn(8))
    act = fires("signed", initial_input=learned)
    net = hand(simulator, encode("signed"), "6 8", act, "8 3", readout("signed"))
    assert sg.check(net, IMAGE).ok
    decoded = sg.to_decoded(net, IMAGE)
    bias = dict(decoded.named_parameters())["1.bias"]
    assert bias.is_leaf and torch.equal(bias, learned) and bias is not learned


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_large_and_small_values_are_no_obstacle(size: float) -> None:
    """Beside a large bias little of the rest is left in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), batch_norm(nn.BatchNorm1d, 8), node(), nn.Linear(8, 3))
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name in ("0.bias", "1.running_mean", "1.bias", "3.weight"):
                value.mul_(size)
    spiking = sg.to_spikes(net.eval(), IMAGE)
    assert sg.check(spiking, IMAGE).ok
    decoded = sg.to_decoded(spiking, IMAGE)
    ((a,), (b,), (c,)) = (steps(n, IMAGE) for n in (net, spiking, decoded))
    for y in (b, c):
        torch.testing.assert_close(y, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def test_biases_that_are_zero_leave_too_lest_they_are_learned() -> None:
    net = cnn()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    names = dict(sg.to_spikes(net, torch.randn(2, 1, 6, 6)).named_parameters())
    assert [name for name, p in names.items() if "bias" in name and p.requires_grad] == []


def test_a_bias_beside_a_weight_that_does_not_train_trains() -> None:
    net, x = mlp(), torch.randn(4, 6)
    net[0].weight.requires_grad_(False)
    decoded = sg.to_decoded(sg.to_spikes(net, x), x)
    trains = {name: p.requires_grad for name, p in decoded.named_parameters()}
    assert not trains["0.weight"] and trains["0.bias"] and trains["2.weight"]


def test_one_spiking_form_into_another() -> None:
    torch.manual_seed(0)
    net, x = mlp().double(), torch.randn(4, 6, dtype=torch.float64)
    direct = sg.to_spikes(nn.Sequential(Encode(SCHEDULE, spikes="decoded"), net), x, "signed")
    around = sg.to_spikes(sg.to_spikes(direct, x, "binary"), x, "signed")
    assert_close(steps(around, x), steps(direct, x))


def test_initial_inputs_fit_images_of_other_sizes_where_neurons_rest_at_zero() -> None:
    """One value for each channel, as a bias is."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), node(), nn.Conv2d(4, 2, 3), node("gelu"), nn.Conv2d(2, 1, 1)
    ).double()
    spiking = sg.to_spikes(net, torch.randn(2, 1, 6, 6).double())
    nodes = [m for m in spiking.modules() if isinstance(m, SignGDNode)]
    assert [list(m.initial_input.shape) for m in nodes] == [[4, 1, 1], [2, 1, 1]]
    x = torch.randn(3, 1, 9, 5).double()
    assert_close(steps(spiking, x), steps(net, x))


def test_what_no_layer_can_hold_as_its_bias_is_added_by_itself() -> None:
    """The border of a padded layer behind a resting value is not one value for each channel."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), node(resting=0.5), nn.Conv2d(4, 2, 3, padding=1),
    ).double()  # fmt: skip
    x = torch.randn(2, 1, 6, 6).double()
    decoded = sg.to_decoded(sg.to_spikes(net, x), x)
    modules = dict(decoded.named_children())
    assert list(modules) == ["0", "1", "bias", "2", "3"]
    assert isinstance(modules["bias"], Shift) and repr(modules["bias"]) == "Shift(bias=[4, 1, 1])"
    torch.testing.assert_close(modules["3"].bias, net[3].bias)
    assert_close(steps(sg.to_spikes(decoded, x), x), steps(net, x))


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/by_hand_forms.md"""
    page = (Path(__file__).parent.parent / "docs" / "by_hand_forms.md").read_text()
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, scope)
    printed = re.sub(r"SignGDNode\(gelu, .*\)", "SignGDNode(gelu, ...)", capsys.readouterr().out)
    assert printed == "".join(re.findall(r"```\n((?:Seq|mod).*?)```", page, re.S))
