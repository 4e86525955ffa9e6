"""What converts, and how close: every operation, every trap that other converters fall into."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.module import NetworkModule


class Elementwise(nn.Module):
    """Linear, a function of one or two values, Linear."""

    def __init__(self, function, arity=1):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(16, 32) for _ in range(arity))
        self.head = nn.Linear(32, 10)
        self.function = function

    def forward(self, x):
        return self.head(self.function(*(layer(x) for layer in self.inputs)))


class OnImage(nn.Module):
    """Convolution, a module under test, fully connected layer."""

    def __init__(self, module, channels=8, shape=(1, 6, 6)):
        super().__init__()
        conv = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        self.stem = conv(1, channels, 3, padding=1)
        self.under_test = module
        with torch.no_grad():
            size = self.under_test(self.stem(torch.rand(2, *shape))).flatten(1).shape[1]
        self.head = nn.Linear(size, 10)

    def forward(self, x):
        return self.head(self.under_test(self.stem(x)).flatten(1))


def relative_error(model, x, time_steps=128, **options):
    network = sg.convert(model, x, time_steps=time_steps, **options)
    model.eval()
    expected = model(x).detach()
    output = sg.run(sg.build(network), x, time_steps)[time_steps]
    assert output.shape == expected.shape
    return float((output - expected).norm() / expected.norm()), network


UNARY = {
    "relu": F.relu,
    "tensor method": lambda a: a.relu(),
    "inplace": lambda a: F.relu(a, inplace=True),
    "relu6": lambda a: F.relu6(4 * a),
    "leaky_relu": F.leaky_relu,
    "leaky_relu 0.3": lambda a: F.leaky_relu(a, 0.3),
    "elu": lambda a: F.elu(a, 0.7),
    "selu": F.selu,
    "celu": lambda a: F.celu(a, 0.7),
    "gelu": F.gelu,
    "gelu tanh": lambda a: F.gelu(a, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": lambda a: F.softplus(a, 2.0),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "clamp": lambda a: a.clamp(-0.3, 0.5),
    "clamp from below": lambda a: a.clamp(min=-0.1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "exp2": torch.exp2,
    "a power of two": lambda a: 2.0**a,
    "square": lambda a: a**2,
    "times itself": lambda a: a * a,
    "cube": lambda a: a**3,
    "sqrt": lambda a: (a.square() + 1).sqrt(),
    "rsqrt": lambda a: (a.square() + 1).rsqrt(),
    "reciprocal": lambda a: 1 / (a.square() + 1),
    "a number divided": lambda a: 3.0 / (a.square() + 1),
    "softsign": lambda a: a / (1 + a.abs()),
    "rational": lambda a: a / (a * a + 1),
    "variance": lambda a: a / torch.sqrt(a.var(-1, keepdim=True) + 0.1),
    "standard deviation": lambda a: a / (a.std(-1, keepdim=True, unbiased=False) + 0.1),
}
BINARY = {
    "gate a b": lambda a, b: a * b,
    "glu": lambda a, b: F.glu(torch.cat([a, b], -1)),
    "swiglu": lambda a, b: F.silu(a) * b,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "division": lambda a, b: a / (1 + b.exp()),
    "amax": lambda a, b: torch.stack([a, b, -a], -1).amax(-1),
    "max over a dimension": lambda a, b: torch.stack([a, b], 1).max(1).values,
    "a @ b": lambda a, b: (a.view(-1, 4, 8) @ b.view(-1, 8, 4)).flatten(1).repeat(1, 2),
    "bmm": lambda a, b: torch.bmm(a.view(-1, 4, 8), b.view(-1, 8, 4)).flatten(1).repeat(1, 2),
    "smaller operand first": lambda a, b: a[:, :1] * b,
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.spikingjelly
def test_functions_of_one_value(name):
    error, network = relative_error(Elementwise(UNARY[name]), torch.randn(32, 16))
    assert error <= 0.005, f"relative output error {error:.4f}"
    assert network.neurons


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.spikingjelly
def test_functions_of_several_values(name):
    error, network = relative_error(Elementwise(BINARY[name], 2), torch.randn(32, 16))
    assert error <= 0.005, f"relative output error {error:.4f}"
    assert network.neurons


def batch_norm_in_use(module):
    with torch.no_grad():
        for shift in (0.3, -0.2):
            module(torch.randn(16, 8, 6, 6) * 2 + shift)
        module.weight.uniform_(0.5, 1.5)
        module.bias.uniform_(-0.5, 0.5)
    return module


def prelu_per_channel():
    module = nn.PReLU(8)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.3, 0.7, 8))
    return module


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


NORMS_AND_POOLS = {
    "BatchNorm2d after conv": lambda: nn.Sequential(
        batch_norm_in_use(nn.BatchNorm2d(8)), nn.ReLU()
    ),
    "BatchNorm2d after ReLU": lambda: nn.Sequential(
        nn.ReLU(), batch_norm_in_use(nn.BatchNorm2d(8))
    ),
    "LayerNorm, three dimensions": lambda: nn.LayerNorm((8, 6, 6)),
    "LayerNorm, last dimension": lambda: nn.LayerNorm(6),
    "LayerNorm without affine": lambda: nn.LayerNorm((6, 6), elementwise_affine=False),
    "LayerNorm without bias": lambda: nn.LayerNorm(6, bias=False),
    "GroupNorm": lambda: nn.GroupNorm(4, 8),
    "GroupNorm without affine": lambda: nn.GroupNorm(8, 8, affine=False),
    "InstanceNorm": lambda: nn.InstanceNorm2d(8, affine=True),
    "RMSNorm": lambda: nn.RMSNorm(6),
    "RMSNorm eps, two dimensions": lambda: nn.RMSNorm((6, 6), eps=1e-4),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "PReLU": lambda: nn.PReLU(),
    "PReLU for each channel": prelu_per_channel,
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "MaxPool2d of tuples": lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0)),
    "MaxPool2d ceil_mode": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "MaxPool2d ceil_mode, no padding": lambda: nn.MaxPool2d((4, 3), 2, ceil_mode=True),
    "MaxPool2d dilation": lambda: nn.MaxPool2d(3, 1, 1, dilation=2),
    "MaxPool2d all options": lambda: nn.MaxPool2d((3, 2), (2, 3), (1, 1), (2, 1), ceil_mode=True),
    "F.max_pool2d": lambda: Function(lambda x: F.max_pool2d(x, 2)),
    "max pooling of negative values": lambda: Function(lambda x: F.max_pool2d(-x.abs() - 3, 2)),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d((2, 3)),
    "AdaptiveAvgPool2d": lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((2, 3))),
    "AvgPool2d": lambda: nn.Sequential(
        nn.ReLU(), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
    ),
    "ConvTranspose2d": lambda: nn.Sequential(
        nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    ),
    "depthwise, dilated": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8), nn.GELU()
    ),
    "reflect padding": lambda: nn.Sequential(nn.GELU(), nn.ReflectionPad2d(1)),
    "constant padding": lambda: Function(lambda x: F.pad(F.gelu(x), (1, 2, 0, 1), value=0.7)),
    "upsampling": lambda: nn.Sequential(nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear")),
    "flip and roll": lambda: Function(lambda x: F.gelu(x).flip(-1).roll(2, 2)),
    "pixel positions": lambda: Function(lambda x: F.gelu(x)[:, :, ::2, 1:5].unbind(-1)[2]),
}


@pytest.mark.parametrize("name", NORMS_AND_POOLS)
def test_modules_on_images(name):
    error, _ = relative_error(OnImage(NORMS_AND_POOLS[name]()), torch.randn(32, 1, 6, 6))
    assert error <= 0.005, f"relative output error {error:.4f}"


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool1d(3, 2, 1), nn.BatchNorm1d(8)), (1, 16)),
        (nn.Sequential(nn.ReLU(), nn.AvgPool1d(2), nn.ConvTranspose1d(8, 4, 3)), (1, 16)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 4, 2)), (1, 6, 6, 6)),
        (nn.Sequential(nn.ReLU(), nn.AvgPool3d(2), nn.BatchNorm3d(8)), (1, 6, 6, 6)),
    ],
)
def test_one_and_three_dimensions(module, shape):
    model = OnImage(module, shape=shape)
    error, _ = relative_error(model, torch.randn(16, *shape))
    assert error <= 0.005, f"relative output error {error:.4f}"


class TokensInBatch(nn.Module):
    """Tokens are folded into the batch, as in Swin's windows."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x):
        batch = x.shape[0]
        y = self.norm(F.gelu(self.embed(x.reshape(batch * 4, 4))))
        return self.head(F.silu(y)).reshape(batch, 4, 10).mean(1)


class SequenceFirst(nn.Module):
    """[L, B, C] inside, then [L * B, C], with a learned position for each place."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 10)
        self.position = nn.Parameter(torch.randn(4, 1, 16))

    def forward(self, x):
        y = self.embed(x.reshape(-1, 4, 4).transpose(0, 1)) + self.position
        y = F.silu(self.norm(F.gelu(y)).flatten(0, 1))
        return self.head(y).reshape(4, -1, 10).mean(0)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 16), nn.Linear(16, 10)
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x):
        y = self.embed(x.reshape(-1, 4, 4))
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1)
        return self.head(F.gelu(y)[:, 0] + F.gelu(y)[:, 1:].sum(1))


class Shared(nn.Module):
    """One Linear and one GELU, reached by two names, each used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 10)
        self.alias = self.act

    def forward(self, x):
        return self.head(self.alias(self.a(self.act(self.a(x)))))


class Residual(nn.Module):
    """Residual, concatenation, scaling by a parameter, dropout, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 10)
        self.gamma = nn.Parameter(torch.full((16,), 0.3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = F.gelu(self.a(x))
        keep = torch.rand(x.shape[0], 1) > 0.5 if self.training else 1.0
        y = y + keep * self.gamma * self.drop(F.relu(self.b(y)))
        return self.head(torch.cat([y, F.tanh(y - x)], -1) / 2)


@pytest.mark.parametrize("model", [TokensInBatch, SequenceFirst, ClassToken, Shared, Residual])
def test_structures(model):
    error, _ = relative_error(model(), torch.randn(32, 16))
    assert error <= 0.005, f"relative output error {error:.4f}"


@pytest.mark.parametrize("model", [TokensInBatch, SequenceFirst, ClassToken, Shared, Residual])
def test_structures_with_the_published_choices(model):
    """Its GELU is another function, which leaves an error of a few percent."""
    options = {"preset": "paper", "input_coding": "exact", "scale": "tensor"}
    error, _ = relative_error(model(), torch.randn(32, 16), **options)
    assert error <= 0.06, f"relative output error {error:.4f}"


def test_a_range_that_ends_too_early_is_told():
    model, x = Elementwise(lambda a: F.softplus(20 * a)), torch.randn(8, 16)
    with pytest.warns(sg.SaturationWarning, match="softplus.*reach"):
        sg.convert(model, x, preset="paper")


@pytest.mark.spikingjelly
def test_a_batch_of_another_size_and_one_of_one():
    model = SequenceFirst()
    x = torch.randn(32, 16)
    snn = sg.build(sg.convert(model, x, time_steps=128))
    model.eval()
    for part in (x[:1], x[:5], x):
        torch.testing.assert_close(sg.run(snn, part, 128)[128], model(part), atol=0.01, rtol=0.01)


def test_each_sample_is_computed_as_if_alone():
    model, x = TokensInBatch(), torch.randn(8, 16)
    snn = sg.build(sg.convert(model.double(), x.double(), time_steps=16))
    together = sg.run(snn, x.double(), 16)[16]
    alone = torch.cat([sg.run(snn, x[i : i + 1].double(), 16)[16] for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


class ManyOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        y = F.gelu(self.a(x))
        return {"logits": self.b(y), "features": (y, [y.sum(-1)])}


def test_outputs_keep_their_structure():
    model, x = ManyOutputs(), torch.randn(8, 16)
    out = sg.run(sg.build(sg.convert(model, x, time_steps=64)), x, (8, 64))[64]
    expected = model(x)
    assert set(out) == {"logits", "features"} and isinstance(out["features"], tuple)
    torch.testing.assert_close(out["logits"], expected["logits"], atol=0.02, rtol=0.02)
    torch.testing.assert_close(
        out["features"][1][0], expected["features"][1][0], atol=0.05, rtol=0.02
    )


UNSUPPORTED = {
    "sorting": (lambda a: a.sort(-1).values, "aten.sort"),
    "sin": (torch.sin, "aten.sin"),
    "argmax": (lambda a: a * a.argmax(-1, keepdim=True), "argmax"),
    "always-on dropout": (lambda a: F.dropout(a, 0.5), "dropout"),
    "cumulative product": (lambda a: a.cumprod(-1), "cumprod"),
    "rounding": (lambda a: a.round(), "round"),
    "comparison": (lambda a: a * (a > 0), "gt"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_converted_is_refused(name):
    function, what = UNSUPPORTED[name]
    model = nn.Sequential(nn.Linear(16, 16), Elementwise(function))
    with pytest.raises(sg.UnsupportedOperation, match=what) as caught:
        sg.convert(model, torch.randn(8, 16))
    assert "'1'" in str(caught.value), "the module path is named"


def test_batch_statistics_in_eval_mode_are_refused():
    model = OnImage(nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(sg.UnsupportedOperation, match="under_test.*track_running_stats"):
        sg.convert(model, torch.randn(8, 1, 6, 6))


def test_the_callers_neuron_wins():
    aten = torch.ops.aten
    model, x = Elementwise(torch.sin), torch.randn(32, 16)
    error, network = relative_error(model, x, neurons=sg.NEURONS | {aten.sin.default: torch.sin})
    assert error <= 0.005 and network.neurons[0].function.name == "sin"
    row = sg.Nonlinearity("my_relu", lambda a: a.clamp(min=0), fires_at_tie=False)
    network = sg.convert(Elementwise(F.relu), x, neurons=sg.NEURONS | {aten.relu.default: row})
    assert network.neurons[0].function is row


def test_more_steps_than_the_published_code_can_take():
    error, _ = relative_error(Elementwise(F.gelu), torch.randn(4, 16), time_steps=1100)
    assert error <= 1e-3


def test_ann_mode_is_the_source_network():
    for model in (Residual(), SequenceFirst(), OnImage(nn.GroupNorm(4, 8))):
        x = torch.randn(8, *((1, 6, 6) if isinstance(model, OnImage) else (16,)))
        snn = sg.build(sg.convert(model, x))
        snn.mode = "ann"
        model.eval()
        torch.testing.assert_close(snn(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_dishonest_capture_is_noticed(monkeypatch):
    """The converter holds what it captured against the model before it goes on."""
    from spikingjelly_signgd.core.operations import LINEAR, forms

    row, honest = LINEAR["linear"], forms.FORMS["linear"]
    monkeypatch.setitem(LINEAR, "linear", replace(row, run=lambda *a: 1.01 * honest(*a)))
    with pytest.raises(sg.SignGDError, match="differs from Elementwise"):
        sg.convert(Elementwise(F.gelu), torch.randn(8, 16))


@pytest.mark.parametrize("model", [Residual, SequenceFirst, Shared, ClassToken, TokensInBatch])
@pytest.mark.spikingjelly
def test_the_two_views_agree(model):
    """Spikes through the linear parts alone, integrated, are the decoded values."""
    model, x = model().double(), torch.randn(6, 16, dtype=torch.float64)
    network = sg.convert(model, x, time_steps=64)
    steps = (1, 2, 7, 64)
    decoded = sg.run(sg.build(network), x, steps, chunk=5)
    spikes = sg.run(sg.build(network, spikes="signed"), x, steps, chunk=7)
    for t in steps:
        torch.testing.assert_close(spikes[t], decoded[t], rtol=0, atol=1e-11)


def test_the_two_views_agree_on_images():
    model = OnImage(nn.Sequential(nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.GroupNorm(4, 8))).double()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    for options in (
        {},
        {"preset": "paper", "scale": "tensor"},
        {"input_coding": "spike", "resting": "mean"},
    ):
        network = sg.convert(model, x, time_steps=32, **options)
        decoded = sg.run(sg.build(network), x, (1, 32))
        spikes = sg.run(sg.build(network, spikes="signed"), x, (1, 32))
        for t in (1, 32):
            torch.testing.assert_close(spikes[t], decoded[t], rtol=0, atol=1e-11)


@pytest.mark.spikingjelly
def test_chunks_and_step_modes_give_the_same_numbers():
    from spikingjelly.activation_based import functional

    model, x = Residual().double(), torch.randn(6, 16, dtype=torch.float64)
    snn = sg.build(sg.convert(model, x, time_steps=16))
    whole = sg.run(snn, x, range(1, 17), chunk=16)
    chunked = sg.run(snn, x, range(1, 17), chunk=3)
    sequence = sg.run(snn, x.expand(16, -1, -1), range(1, 17), sequence=True, chunk=5)
    functional.reset_net(snn)
    functional.set_step_mode(snn, "s")
    single = [snn(x) for _ in range(16)]
    functional.reset_net(snn)
    functional.set_step_mode(snn, "m")
    multi = snn(x.expand(16, -1, -1))
    for t in range(1, 17):
        for other in (chunked[t], sequence[t], single[t - 1], multi[t - 1]):
            torch.testing.assert_close(other, whole[t], rtol=0, atol=1e-12)


def test_a_network_without_neurons_runs():
    model, x = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), torch.randn(3, 16)
    out = sg.run(sg.build(sg.convert(model, x)), x, (1, 3))
    torch.testing.assert_close(out[3], model(x))


def test_statistics_do_not_depend_on_the_global_seed():
    model, x = OnImage(nn.GELU()), torch.randn(200, 1, 6, 6)
    torch.manual_seed(1)
    first = sg.convert(model, x, seed=3, tune=False)
    torch.manual_seed(2)
    second = sg.convert(model, x, seed=3, tune=False)
    for a, b in zip(first.neurons, second.neurons, strict=True):
        assert torch.equal(a.scale, b.scale)


def test_the_ann_of_a_network_needs_no_simulator():
    model, x = Residual().eval(), torch.randn(3, 16)
    network = sg.convert(model, x)
    torch.testing.assert_close(NetworkModule(network, {}).ann(x), model(x), rtol=1e-5, atol=1e-5)


# arguments that touch zero: decoded they are negative or nearly zero for some steps
AT_THE_EDGE = {
    "sqrt of relu": lambda a: F.relu(a).sqrt(),
    "relu ** 1.5": lambda a: F.relu(a) ** 1.5,
    "norm": lambda a: F.relu(a).pow(2).sum(-1, keepdim=True).sqrt() * a,
    "standard deviation": lambda a: a * F.relu(a).std(-1, keepdim=True),
    "normalised by the sum": lambda a: F.relu(a) / (F.relu(a).sum(-1, keepdim=True) + 0.1),
    "reciprocal": lambda a: 1 / (F.relu(a) + 0.05),
}


@pytest.mark.parametrize("name", AT_THE_EDGE)
def test_roots_and_quotients_near_zero(name):
    error, _ = relative_error(Elementwise(AT_THE_EDGE[name]), torch.randn(32, 16))
    assert error <= 0.02, f"relative output error {error:.4f}"


class Names(nn.Module):
    """Modules called as torch's and our own parts are, and one called twice."""

    def __init__(self):
        super().__init__()
        self.values, self.update = nn.Linear(16, 8), nn.ReLU()
        self.relu = Function(lambda x: x.mean(-1, keepdim=True))
        self.input = nn.ModuleDict({"encode": nn.Linear(8, 8)})

    def forward(self, x):
        y = F.relu(self.values(x))
        return self.update(self.input["encode"](self.update(y))) + self.relu(y)


@pytest.mark.spikingjelly
def test_names_that_others_use_too():
    model, x = Names(), torch.rand(16, 16)
    for options in ({}, {"input_coding": "real"}, {"method": "group", "members": 16}):
        error, network = relative_error(model, x, **options)
        assert error <= 0.05, (options, error)
        assert len({node.name for node in network.nodes}) == len(network.nodes)


def test_a_method_is_chosen_for_every_call_of_a_module():
    network = sg.convert(Names(), torch.rand(16, 16), method={"update": "group"})
    kinds = {node.name: node.kind for node in network.neurons}
    assert kinds == {"relu": "signgd", "update": "group", "update_2": "group"}
    with pytest.raises(sg.InputError, match="updaet"):
        sg.convert(Names(), torch.rand(16, 16), method={"updaet": "group"})


def test_one_method_for_all_may_be_written_as_a_dict():
    x = torch.rand(8, 16)
    options = {"time_steps": 4, "input_coding": "poisson"}
    one = sg.convert(Names(), x, method={"": "group"}, **options)
    other = sg.convert(Names(), x, method="group", **options)
    assert [n.kind for n in one.nodes] == [n.kind for n in other.nodes]


class Scalars(nn.Module):
    """Numbers and fresh tensors come first."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x):
        y = torch.relu(self.a(x * 2) - 0.1)
        mixed = torch.maximum(y, torch.zeros(16, dtype=torch.long))
        return (
            mixed
            + torch.zeros(x.shape[0], 16, dtype=x.dtype)
            + torch.einsum("ij,ij->j", self.a.weight, self.a.weight)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.spikingjelly
def test_other_precisions(dtype):
    model, x = Scalars().to(dtype).eval(), torch.randn(8, 16).to(dtype)
    network = sg.convert(model, x, time_steps=64)
    assert network.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    out = sg.run(sg.build(network), x, 64)[64]
    expected = model(x).to(out.dtype)
    assert (out - expected).norm() <= 0.02 * expected.norm()
    if dtype == torch.float64:  # 0.1 is the float64 0.1
        torch.testing.assert_close(sg.build(network).ann(x), expected, rtol=0, atol=1e-13)


def test_a_function_of_two_tensors_is_one_entry():
    aten = torch.ops.aten
    model, x = Elementwise(lambda a, b: torch.hypot(a, b), 2), torch.randn(16, 16)
    error, _ = relative_error(model, x, neurons=sg.NEURONS | {aten.hypot.default: torch.hypot})
    assert error <= 0.005


def test_a_model_that_works_in_place_on_its_input():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 4)), torch.randn(8, 16)
    before = x.clone()
    snn = sg.build(sg.convert(model, x, time_steps=64))
    sg.evaluate(snn, [x], 64, reference=model)
    assert torch.equal(x, before)
    expected = model(before.clone())
    assert (sg.run(snn, x, 64)[64] - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda a: F.interpolate(a[:, None, :5], scale_factor=1.5, mode="linear")[:, 0], "size="),
        (lambda a: a / a.shape[0], "batch is used as a number"),
        (lambda a: a.max(-1, keepdim=True).indices * a, "indices|positions"),
    ],
)
def test_what_would_be_wrong_is_refused(function, what):
    model = nn.Sequential(nn.Linear(16, 16), Function(function))
    with pytest.raises(sg.UnsupportedOperation, match=what):
        sg.convert(model, torch.randn(8, 16))


class InputAmongOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.token = nn.Linear(16, 16), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x, self.a(F.relu(self.a(x))), self.token * 2


def test_the_input_and_a_constant_as_outputs():
    model, x = InputAmongOutputs().double().eval(), torch.randn(4, 16, dtype=torch.float64)
    network = sg.convert(model, x, time_steps=32)
    decoded, spikes = sg.build(network), sg.build(network, spikes="signed")
    for t, chunk in ((1, 1), (32, 5)):
        for ours, theirs in zip(
            sg.run(spikes, x, t, chunk=chunk)[t], sg.run(decoded, x, t)[t], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(sg.run(spikes, x, 3)[3][0], x)


@pytest.mark.parametrize("spikes", ["decoded", "signed"])
@pytest.mark.spikingjelly
def test_a_batch_of_another_size_needs_a_reset(spikes):
    model, x = Residual(), torch.randn(6, 16)
    snn = sg.build(sg.convert(model, x), spikes=spikes)
    snn(x)
    for other in (x[:1], x[:2]):
        with pytest.raises(sg.InputError, match="[Rr]eset"):
            snn(other)
    snn.reset()
    assert snn(x[:2]).shape == (2, 10)


def test_spikes_are_not_simulated_in_ann_mode():
    model, x = Residual(), torch.randn(6, 16)
    snn = sg.build(sg.convert(model, x))
    snn.mode = "ann"
    with pytest.raises(sg.InputError, match="mode"):
        sg.run(snn, x, 4)


def test_real_valued_coding_reaches_the_input():
    error, _ = relative_error(Elementwise(F.gelu), torch.randn(16, 16), input_coding="real")
    assert error <= 0.005


def test_a_schedule_that_is_too_short_in_reach_is_told():
    with pytest.warns(sg.SaturationWarning, match="gelu"):
        sg.convert(
            Elementwise(F.gelu), torch.randn(8, 16), schedule=sg.ExponentialSchedule(0.01, 0.5)
        )
