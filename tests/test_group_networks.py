"""Group networks: a QCFS network bit for bit at T = 1, and what happens away from m T = L."""

import warnings

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.core.network import GroupNeuron

pytestmark = pytest.mark.spikingjelly

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(6))


def qcfs_model(levels=8, batch_norm=False, seed=3):
    """Convolutions, average pooling, a linear layer; thresholds that clip some of the values."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8) if batch_norm else nn.Identity(),
        sg.QCFS(levels, 0.83),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3),
        sg.QCFS(levels, 0.31),
        nn.Flatten(),
        nn.Linear(32, 16),
        sg.QCFS(levels, 0.2),
        nn.Linear(16, 10),
    )
    if batch_norm:
        with torch.no_grad():
            model[1].running_mean.uniform_(-0.3, 0.3)
            model[1].running_var.uniform_(0.5, 2.0)
            model[1].weight.uniform_(0.5, 1.5)
            model[1].bias.uniform_(-0.3, 0.3)
    return model.eval()


def outputs(model, x=X, time_steps=1, **options):
    network = sg.convert(model, x, method="group", time_steps=time_steps, **options)
    with torch.no_grad():
        return sg.run(sg.build(network), x, time_steps)[time_steps], model(x)


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_one_step_of_l_members_is_the_qcfs_network_to_the_bit(levels):
    have, want = outputs(qcfs_model(levels))
    assert torch.equal(have, want)
    assert len(want.unique(dim=0)) > 16, "the samples differ"


def test_every_neuron_of_one_step_is_its_activation():
    """All of them spike, none is stuck at one level: the bits above are no accident."""
    model = qcfs_model(4)
    snn = sg.build(sg.convert(model, X, method="group", time_steps=1))
    seen, expected = [], []
    for node in snn.neurons.values():
        node.register_forward_hook(lambda module, inputs, out: seen.append(out[0]))
    for module in model.modules():
        if isinstance(module, sg.QCFS):
            module.register_forward_hook(lambda module, inputs, out: expected.append(out))
    with torch.no_grad():
        sg.run(snn, X, 1), model(X)
    neurons = [out for out, node in zip(seen, snn.neurons.values(), strict=True)
               if isinstance(node, sg.GroupNode)]  # fmt: skip
    assert len(neurons) == len(expected) == 3
    for have, want in zip(neurons, expected, strict=True):
        assert torch.equal(have, want) and len(want.unique()) == 5


def test_batch_norm_folds_to_rounding():
    """Folded weights round elsewhere, so an activation on a tie may move by one level, no more."""
    model = qcfs_model(8, batch_norm=True)
    have, want = outputs(model)
    same = (have - want).abs().amax(1) <= 1e-5
    assert same.double().mean() >= 30 / 32, f"{int((~same).sum())} samples moved by a tie"
    assert (have.argmax(1) == want.argmax(1)).double().mean() >= 31 / 32
    in_double, source = outputs(model.double(), X.double())
    torch.testing.assert_close(in_double, source, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("time_steps", "members"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_members_times_steps_are_the_levels_by_default(time_steps, members):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = sg.convert(qcfs_model(8), X, method="group", time_steps=time_steps)
    assert [node.members for node in network.neurons] == [members] * 3
    thresholds = torch.tensor([node.v_threshold for node in network.neurons])
    torch.testing.assert_close(thresholds, torch.tensor([0.83, 0.31, 0.2]))


@pytest.mark.parametrize(
    ("time_steps", "members", "made"), [(3, None, 3), (16, None, 1), (1, 4, 4), (8, 8, 8)]
)
def test_another_number_of_levels_is_told(time_steps, members, made):
    with pytest.warns(sg.LevelsWarning) as caught:
        network = sg.convert(
            qcfs_model(8), X, method="group", time_steps=time_steps, members=members
        )
    assert [node.members for node in network.neurons] == [made] * 3
    messages = [str(w.message) for w in caught]
    assert len(messages) == 3
    for message, path in zip(messages, ("'2", "'5", "'8"), strict=True):
        assert message.startswith(path) and "L = 8 levels" in message
        assert f"= {made * time_steps};" in message and "Choose time_steps" in message


@pytest.mark.parametrize(("time_steps", "members"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_constant_input_is_quantised_to_members_times_steps_levels(time_steps, members):
    """Identity I2, at the first layer, whose input is the same at each step."""
    model = qcfs_model(8).double()
    snn = sg.build(sg.convert(model, X.double(), method="group", time_steps=time_steps))
    first, seen = snn.network.neurons[0].name, []
    snn.neuron(first).register_forward_hook(lambda module, inputs, out: seen.append(out))
    sg.run(snn, X.double(), time_steps)
    with torch.no_grad():
        current = model[0](X.double())
        expected = model[2](current)
    assert seen[0].shape[0] == time_steps
    torch.testing.assert_close(seen[0].mean(0), expected, rtol=0, atol=1e-12)
    assert bool((current < 0).any()) and bool((current > 0.83).any()), "both ends are met"


def test_one_member_is_an_integrate_and_fire_neuron():
    """Soft reset, v(0) = v_threshold / 2, spikes of v_threshold: SpikingJelly's own IFNode."""
    from spikingjelly.activation_based import functional, neuron

    model = qcfs_model(8).double()
    network = sg.convert(model, X.double(), method="group", time_steps=8)
    x, thresholds = X.double(), [node.v_threshold for node in network.neurons]
    nodes = [neuron.IFNode(v_threshold=1.0, v_reset=None) for _ in thresholds]
    total = torch.zeros(32, 10, dtype=torch.float64)
    for node in nodes:
        node.v = 0.5
    with torch.no_grad():
        for _ in range(8):
            y, remaining = x, list(zip(nodes, thresholds, strict=True))
            for layer in model:
                if isinstance(layer, sg.QCFS):
                    node, threshold = remaining.pop(0)
                    y = node(y / threshold) * threshold
                else:
                    y = layer(y)
            total += y
    have = sg.run(sg.build(network), x, 8)[8]
    torch.testing.assert_close(have, total / 8, rtol=0, atol=1e-9)
    functional.reset_net(nn.ModuleList(nodes))


def test_more_steps_at_fixed_levels_cost_accuracy_only_by_unevenness():
    """m T = L all along: T = 1 is exact, and the error grows as members are traded for steps."""
    model = qcfs_model(8)
    errors = []
    for time_steps in (1, 2, 4, 8):
        have, want = outputs(model, time_steps=time_steps)
        errors.append(float((have - want).norm() / want.norm()))
    assert errors[0] == 0.0 and all(e < 1.0 for e in errors), errors
    assert errors[1] < errors[3], errors


def test_read_outs_before_t_are_means_so_far():
    """The decoded output at T is the mean of the steps up to T."""
    snn = sg.build(sg.convert(qcfs_model(8).double(), X.double(), method="group", time_steps=8))
    read = sg.run(snn, X.double(), range(1, 9))
    first_two = sg.run(snn, X.double(), 2, chunk=1)[2]
    torch.testing.assert_close(read[2], first_two, rtol=0, atol=1e-12)
    assert not torch.equal(read[1], read[8])


def relu_model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def test_a_plain_relu_network_converges():
    """Thresholds from calibration, m T = 8 for want of trained levels; the rest is clipping."""
    model = relu_model()
    network = sg.convert(model, X, method="group", members=4, time_steps=128)
    assert [node.members for node in network.neurons] == [4, 4]
    out = sg.run(sg.build(network), X, (2, 16, 128))
    with torch.no_grad():
        errors = [float((out[t] - model(X)).norm() / model(X).norm()) for t in (2, 16, 128)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.01, errors
    default = sg.convert(model, X, method="group", time_steps=2)
    assert [node.members for node in default.neurons] == [4, 4]


@pytest.mark.parametrize("coding", ["exact", "real", "spike", "poisson"])
def test_every_input_coding_runs_with_group_neurons(coding):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()
    schedule = None if coding in ("exact", "poisson") else sg.InverseSchedule(1.0, 1.0)
    network = sg.convert(
        model, X[:8], method="group", members=4, time_steps=400, input_coding=coding,
        schedule=schedule,
    )  # fmt: skip
    out = sg.run(sg.build(network), X[:8], 400)[400]
    with torch.no_grad():
        error = float((out - model(X[:8])).norm() / model(X[:8]).norm())
    assert error < (0.2 if coding == "poisson" else 0.05), f"relative output error {error:.4f}"


def test_residuals_and_concatenation_pass_rates():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first = nn.Linear(64, 16), sg.QCFS(4, 0.7)
            self.body, self.second = nn.Linear(16, 16), sg.QCFS(4, 0.9)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            y = self.first(self.stem(x.flatten(1)))
            z = self.second(y + self.body(y))
            return self.head(torch.cat([y, z], 1))

    torch.manual_seed(3)
    have, want = outputs(Residual().eval())
    assert torch.equal(have, want)


UNFIT = {"GELU": nn.GELU(), "Hardtanh": nn.Hardtanh(), "Sigmoid": nn.Sigmoid()}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_neither_qcfs_nor_relu_is_refused(name):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), UNFIT[name], nn.Flatten(), nn.LazyLinear(5)
    )
    model(X)
    with pytest.raises(sg.UnsupportedOperation, match="at '2'") as caught:
        sg.convert(model, X, method="group", time_steps=8)
    assert "only QCFS, ReLU, ReLU6, clamp(x, 0, b)" in str(caught.value)
    for fix in ("method={'2': 'signgd', '': 'group'}", "keep=['2']"):
        assert fix in str(caught.value)
    fixed = sg.convert(model, X, method={"2": "signgd", "": "group"}, time_steps=8)
    kinds = {node.name: node.kind for node in fixed.neurons}
    assert kinds == {"1": "group", "2": "signgd"}
    kept = sg.convert(model, X, method="group", keep=["2"], time_steps=8)
    assert [node.kind for node in kept.neurons] == ["group"] and kept.kept() == {"2": 4 * 36}


class Clamped(nn.Module):
    def forward(self, x):
        return x.clamp(0, 0.7)


# with their ceilings
BOUNDED = {
    "relu6": (nn.ReLU6(), 6.0),
    "hardtanh": (nn.Hardtanh(0, 0.5), 0.5),
    "clamp": (Clamped(), 0.7),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("time_steps", [1, 4])
def test_members_saturate_where_the_function_does(name, time_steps):
    function, ceiling = BOUNDED[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), function, nn.Linear(32, 5)).eval()
    with torch.no_grad():
        model[1].weight.mul_(6 * ceiling)  # a good part is clipped
    network = sg.convert(model, X, method="group", time_steps=time_steps, members=32)
    (node,) = network.of(GroupNeuron)
    assert float(torch.as_tensor(node.v_threshold).max()) <= ceiling
    wild = 50 * X  # the source saturates beyond all that calibration saw, and so do the neurons
    have = sg.run(sg.build(network), wild, time_steps)[time_steps]
    with torch.no_grad():
        want = model(wild)
    assert float((have - want).norm() / want.norm()) < 0.1


def test_all_that_groups_cannot_be_is_asked_for_at_once():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU6(), nn.Linear(16, 5), nn.Sigmoid(),
        nn.Linear(5, 5), nn.Softmax(-1),
    )  # fmt: skip
    with pytest.raises(sg.UnsupportedOperation) as caught:
        sg.convert(model, X, method="group", time_steps=8)
    advice = "method={'4': 'signgd', '6': 'signgd', '': 'group'}"
    assert advice in str(caught.value) and len(caught.value.blockers) == 2
    network = sg.convert(model, X, method=eval(advice.removeprefix("method=")), time_steps=8)
    assert [node.kind for node in network.neurons] == ["group", "signgd", "signgd"]


@pytest.mark.parametrize("backend", ["spikingjelly", "norse"])
@pytest.mark.parametrize("time_steps", [1, 4])
def test_pooled_spikes_are_the_growth_of_the_pooled_counts(backend, time_steps):
    """The mean of what passes is the pooled mean; pooling the single steps is more than that."""
    if backend == "norse":
        pytest.importorskip("norse")
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    ).double()
    x = X.double()
    network = sg.convert(model.eval(), x, method="group", time_steps=time_steps, members=2)
    assert [node.kind for node in network.neurons] == ["group", "group", "growth"]
    assert network.count()["4"] == 16
    snn, seen = sg.build(network, backend), {}
    snn.listener = lambda sent: seen.setdefault(sent.node.name, []).append(sent.value)
    out = sg.run(snn, x, time_steps)[time_steps]
    spikes = torch.cat(seen["3"])
    torch.testing.assert_close(out, nn.MaxPool2d(2)(spikes.mean(0)).flatten(1))
    single = torch.stack([nn.MaxPool2d(2)(step) for step in spikes]).mean(0).flatten(1)
    assert (time_steps == 1) == torch.allclose(single, out), "it does matter"


@pytest.mark.parametrize("backend", ["spikingjelly", "norse"])
@pytest.mark.parametrize("method", ["group", "signgd"])
def test_what_is_kept_is_computed_of_decoded_values(backend, method, tmp_path):
    if backend == "norse":
        pytest.importorskip("norse")

    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3), nn.Sigmoid())

        def forward(self, x):
            return self.head(self.body(x))

    torch.manual_seed(3)
    model = Headed().eval()
    network = sg.convert(model, X, method=method, keep=["head"], time_steps=4)
    assert [node.name for node in network.neurons] == ["body.2"]
    assert network.kept() == {"head.1": 8, "head.3": 3}
    assert network.kept(5) == {"head.1": 40, "head.3": 15}
    assert "2 not spiking, 11 values a step" in repr(network)
    snn, decoded = sg.build(network, backend), []
    run = sg.run(snn, X, (1, 2, 3, 4))
    kinds = ("average", "signgd")
    snn.listener = lambda sent: decoded.append(sent.value) if sent.node.kind in kinds else None
    sg.run(snn, X, 4, chunk=4)
    for t in (1, 2, 3, 4):
        # rates pass the linear layer before the function that wants them decoded
        y = decoded[-1][t - 1]
        torch.testing.assert_close(run[t], (model.head[1:] if method == "group" else model.head)(y))
    sg.save(network, tmp_path / "kept.h5")
    loaded = sg.load(tmp_path / "kept.h5")
    assert loaded.kept() == network.kept()
    assert torch.equal(sg.run(sg.build(loaded, backend), X, 4)[4], run[4])


def test_all_may_be_kept_and_linear_parts_are_anyway():
    model = relu_model()
    kept = sg.convert(model, X, keep=["1", "3", "4", "6"], time_steps=4)
    assert kept.neurons == () and kept.kept() == {"1": 8 * 64, "4": 32}
    with torch.no_grad():
        torch.testing.assert_close(sg.run(sg.build(kept), X, 2)[2], model(X))


def test_members_may_differ_by_module():
    network = sg.convert(
        relu_model(), X, method="group", time_steps=2, members={"4": 3, "": 5}
    )  # fmt: skip
    assert {node.name: node.members for node in network.neurons} == {"1": 5, "4": 3}
    network = sg.convert(relu_model(), X, method="group", time_steps=2, members={"4": 3})
    assert {node.name: node.members for node in network.neurons} == {"1": 4, "4": 3}


def test_signed_neurons_are_closer_at_the_same_budget():
    """One member and eight steps: what came too early is taken back."""
    model = qcfs_model(8)
    plain, want = outputs(model, time_steps=8)
    signed, _ = outputs(model, time_steps=8, signed=True)
    errors = [float((have - want).norm() / want.norm()) for have in (plain, signed)]
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["heads"]}, "keep has an entry for 'heads'"),
        ({"keep": "1"}, "keep is a list"),
        ({"keep": [""]}, "keep is a list"),
        ({"members": {"layer": 2}}, "members has an entry for 'layer'"),
        ({"members": {"": 0}}, "members is an integer"),
        ({"method": "subgradient", "members": 4}, "members has no meaning"),
        ({"method": "signgd", "signed": True}, "signed has no meaning"),
        ({"signed": "yes"}, "signed is"),
        ({"schedule": sg.InverseSchedule(1.0)}, "schedule has no meaning"),
        ({"momentum": 0.5}, "momentum has no meaning"),
        ({"resting": "mean"}, "resting has no meaning"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options, message):
    with pytest.raises(sg.InputError, match=message):
        sg.convert(relu_model(), X, **{"method": "group", "time_steps": 2, **options})


def test_the_signed_view_is_refused_for_group_neurons():
    network = sg.convert(qcfs_model(8), X, method="group", time_steps=1)
    with pytest.raises(ValueError, match='spikes="signed".*decoded'):
        sg.build(network, spikes="signed")


def test_training_a_qcfs_network_and_converting_it():
    """Thresholds move, stay positive, and the trained network is the converted one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), sg.QCFS(4), nn.Linear(16, 2)
    )  # fmt: skip
    labels = (X.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    before = float(model[2].v_threshold.detach())
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(X), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 and float(model[2].v_threshold.detach()) != before
    have, want = outputs(model.eval())
    assert torch.equal(have, want)
