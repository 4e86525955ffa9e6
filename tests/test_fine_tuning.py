"""Networks that train: values, gradients, additions, the description back, and fine-tuning."""

import copy
import json
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from cli_zoo import data as cli_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.converters.fine_tuning import Course
from spikingjelly_signgd.core.network import SignGDNeuron

SIMULATORS = ("spikingjelly", "norse")


class Small(nn.Module):
    """Convolution, max pooling, layer norm and GELU, with a linear map that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        x = self.norm(x)
        return self.head(F.gelu(self.twice(F.gelu(self.twice(x)))))


def samples(n=96, seed=0):
    """Three classes by where the bright patch is."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    x = 0.3 * torch.randn(n, 1, 4, 4, generator=generator)
    for label, (row, column) in enumerate([(0, 0), (0, 2), (2, 1)]):
        x[y == label, :, row : row + 2, column : column + 2] += 1.0
    return x, y


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model, (x, y) = Small(), samples(512)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    return model.eval()


def converted(model, steps=1, **options):
    options = {"members": 3, "tune": False, **options}
    return sg.convert(model, samples(128)[0], time_steps=steps, **options)


@pytest.fixture(scope="module")
def network(model):
    return converted(model)


def group_network(steps=2, **options):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    return sg.convert(
        model.eval(), samples(64)[0], method="group", time_steps=steps, members=4, **options
    )


KINDS = {
    "by channel": lambda model: converted(model),
    "two steps": lambda model: converted(model, 2, members=2),
    "numbers": lambda model: converted(model, scale="tensor", members=4),
    "no zone": lambda model: converted(model, 3, members=1, dead_zone=0),
    "group": lambda model: group_network(),
}


def outputs(snn, x, steps):
    """With the gradient, as a user runs a block of steps."""
    with snn.for_sequences():
        y, _ = snn.advance(x, steps, {})
    return y


# -- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_before_training_values_are_those_of_the_network(model, kind, simulator):
    network, (x, _) = KINDS[kind](model), samples()
    steps = network.time_steps
    expected = sg.run(sg.build(network, simulator), x, range(1, steps + 1))
    snn, plain = (sg.build(network, simulator, trainable=trains) for trains in (True, False))
    for own, other in zip(snn.operations.values(), plain.operations.values(), strict=True):
        for name, p in own.named_parameters():  # which convolutions round by
            assert p.stride() == other.get_buffer(name).stride()
    assert torch.equal(outputs(snn, x, steps), torch.stack([*expected.values()]))
    snn.reset()
    with torch.no_grad():
        assert torch.equal(outputs(snn, x, steps)[-1], expected[steps])


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(model, kind, simulator):
    network, (x, y) = KINDS[kind](model), samples()
    snn = sg.build(network, simulator, trainable=True)
    loss = F.cross_entropy(outputs(snn, x, network.time_steps)[-1], y) + sg.additions(snn)
    loss.backward()
    without = [name for name, p in snn.named_parameters() if p.grad is None]
    assert not without
    assert all(bool(p.grad.isfinite().all()) for p in snn.parameters())
    kinds = {name.rsplit(".", 1)[-1] for name, _ in snn.named_parameters()}
    own = {"v_threshold", "v_th"} if kind == "group" else {"scale", "resting"}
    assert {"weight", "bias"} < kinds and kinds & own
    assert ("dead_zone" in kinds) == (kind not in ("group", "no zone"))


def test_an_ordinary_loop_in_spikingjelly(network):
    from spikingjelly.activation_based import functional

    snn = sg.build(network, "spikingjelly", trainable=True)
    functional.set_step_mode(snn, "m")
    adam, (x, y) = torch.optim.Adam(snn.parameters(), 3e-3), samples(256)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(snn(x.expand(2, *x.shape))[-1], y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        functional.reset_net(snn)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_step_by_step_is_as_all_at_once(model):
    from spikingjelly.activation_based import functional

    network, (x, y) = KINDS["two steps"](model), samples()
    grads, spent = [], []
    for mode in "sm":
        snn = sg.build(network, trainable=True, step_mode=mode)
        out = snn(x.expand(2, *x.shape))[-1] if mode == "m" else [snn(x) for _ in range(2)][-1]
        spent.append(sg.additions(snn))
        (F.cross_entropy(out, y) + spent[-1]).backward()
        grads.append([p.grad for p in snn.parameters()])
        functional.reset_net(snn)
    torch.testing.assert_close(spent[0], spent[1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_an_ordinary_loop_in_norse(network):
    snn = sg.build(network, "norse", trainable=True)
    adam, (x, y) = torch.optim.Adam(snn.parameters(), 3e-3), samples(256)
    losses = []
    for _ in range(25):
        out, _ = snn(x.expand(2, *x.shape))
        loss = F.cross_entropy(out[-1], y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_shared_is_one_parameter(network):
    snn = sg.build(network, trainable=True)
    twice = [p for name, p in snn.named_parameters(remove_duplicate=False) if "twice" in name]
    weights = [p for p in twice if p.shape == (16, 16)]
    assert len(weights) == 2 and weights[0] is weights[1]
    found = sg.collect(snn)
    tensors = [node.tensors["weight"] for node in found.nodes if "twice" in node.name and
               getattr(node, "op", "") == "linear"]  # fmt: skip
    assert tensors[0] is tensors[1] and not isinstance(tensors[0], nn.Parameter)


def test_what_is_not_shared_is_several_parameters():
    """Also where tensors are made on the way, one after the other in the same memory."""
    layers = [part for _ in range(6) for part in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), *layers, nn.Linear(32, 3)).eval()
    network = converted(model)
    for k in range(30):
        nodes = sg.build(network, trainable=True).network.of(SignGDNeuron)
        own = {id(p) for node in nodes for p in (node.scale, node.resting, node.dead_zone)}
        torch.randn(64 * k + 1)  # so that memory is handed out in other orders
        assert len(own) == 3 * len(nodes)


def test_the_description_is_left_as_it_was(network):
    before = [p.clone() for node in network.nodes for p in getattr(node, "tensors", {}).values()]
    trained(network)
    after = [p for node in network.nodes for p in getattr(node, "tensors", {}).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_network_without_it_passes_no_gradient(network):
    snn, (x, _) = sg.build(network), samples()
    assert not list(snn.parameters()) and not outputs(snn, x.requires_grad_(), 1).requires_grad


def test_it_is_copied_saved_and_loaded_as_a_module(network, tmp_path):
    snn, (x, y) = sg.build(network, trainable=True), samples()
    F.cross_entropy(outputs(snn, x, 1)[-1], y).backward()
    snn.reset()
    other = copy.deepcopy(snn)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.01)
    assert not torch.equal(sg.run(snn, x)[1], sg.run(other, x)[1])
    torch.save(other.state_dict(), tmp_path / "state.pt")
    snn.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(sg.run(snn, x)[1], sg.run(other, x)[1])
    assert torch.equal(sg.run(sg.build(sg.collect(other)), x)[1], sg.run(other, x)[1])


def test_it_trains_decoded_values_alone(network):
    with pytest.raises(ValueError, match="passes decoded values"):
        sg.build(network, trainable=True, spikes="signed")
    snn = sg.build(network, trainable=True)
    with pytest.raises(sg.InputError, match="holds parameters"):
        sg.build(snn.network, trainable=True)


# -- additions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("kind", ["by channel", "numbers"])
def test_additions_are_those_that_are_counted(model, kind, simulator):
    network, (x, _) = KINDS[kind](model), samples()
    snn = sg.build(network, simulator, trainable=True)
    outputs(snn, x, network.time_steps)
    counted = count_operations(sg.build(network), x).additions_per_mac
    assert float(sg.additions(snn).detach()) == pytest.approx(counted, rel=1e-5)


@pytest.mark.parametrize("kind", ["two steps", "no zone", "group"])
def test_additions_of_several_steps_are_at_least_those_that_are_counted(model, kind):
    """What is still multiplied is taken to change in every step, spikes are as they are."""
    network, (x, _) = KINDS[kind](model), samples()
    snn = sg.build(network, trainable=True)
    outputs(snn, x, network.time_steps)
    counted, tally = count_operations(sg.build(network), x), snn.tally
    sent = sum(float(each.detach()) for each in tally.sent.values()) / len(x)
    assert sent == pytest.approx(counted.synaptic, rel=1e-5)
    assert float(sg.additions(snn).detach()) >= counted.additions_per_mac * (1 - 1e-5)


@pytest.mark.parametrize("kind", ["by channel", "group"])
def test_additions_alone_come_down_along_their_gradient(model, kind):
    network, (x, _) = KINDS[kind](model), samples()
    snn, steps = sg.build(network, trainable=True), network.time_steps
    adam, spent = torch.optim.Adam(snn.parameters(), 3e-3), []
    for _ in range(20):
        outputs(snn, x, steps)
        loss = sg.additions(snn)
        adam.zero_grad()
        loss.backward()
        adam.step()
        snn.reset()
        spent.append(loss.item())
    assert spent[-1] < 0.95 * spent[0]


def test_additions_begin_anew_after_a_reset(network):
    snn, (x, _) = sg.build(network, trainable=True), samples()
    found = []
    for part in (x[:32], x, x[:32]):
        with torch.no_grad():
            outputs(snn, part, 1)
        found.append(float(sg.additions(snn)))
        snn.reset()
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("mode", ["s", "m", "norse"])
def test_additions_of_a_run_in_parts(model, mode):
    """With states detached in between: all count, those since the last backward with a gradient."""
    from spikingjelly.activation_based import functional

    network, (x, y) = KINDS["two steps"](model), samples()
    simulator, options = ("norse", {}) if mode == "norse" else ("spikingjelly", {"step_mode": mode})
    whole, parts = (sg.build(network, simulator, trainable=True, **each) for each in ({}, options))
    outputs(whole, x, 4)
    state, grads = None, []
    for _ in range(2):
        if mode == "s":
            out = [parts(x) for _ in range(2)][-1]
        elif mode == "m":
            out = parts(x.expand(2, *x.shape))[-1]
        else:
            out, state = parts(x.expand(2, *x.shape), state)
            out, state = out[-1], torch.utils._pytree.tree_map(detached, state)
        spent = sg.additions(parts)
        parts.zero_grad()
        (F.cross_entropy(out, y) + spent).backward()
        grads.append([p.grad for p in parts.parameters() if p.grad is not None])
        if mode != "norse":
            functional.detach_net(parts)
    torch.testing.assert_close(spent, sg.additions(whole))
    assert len(grads[1]) > len(grads[0]) / 2 and all(bool(g.isfinite().all()) for g in grads[1])


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def test_additions_and_collect_refuse(network):
    with pytest.raises(sg.InputError, match="call the network first"):
        sg.additions(sg.build(network, trainable=True))
    for ask in (sg.additions, sg.collect):
        with pytest.raises(sg.InputError, match="trainable=True"):
            ask(sg.build(network))
        with pytest.raises(sg.InputError, match="not Linear"):
            ask(nn.Linear(2, 2))


def test_additions_refuse_neurons_that_tell_nothing():
    relu = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    network = sg.convert(relu, samples(64)[0], method="subgradient", time_steps=2)
    snn = sg.build(network, trainable=True)
    outputs(snn, samples()[0], 2)
    with pytest.raises(sg.InputError, match="have no gradient"):
        sg.additions(snn)


def test_parameters_are_not_written_for_their_values(network, tmp_path):
    """Their values are used in a range, which files do not know of."""
    snn = sg.build(network, trainable=True)
    with pytest.raises(sg.FormatError, match=r"Pass collect\(module\)"):
        sg.save(snn.network, tmp_path / "net.h5")
    group = sg.build(group_network(), trainable=True).network
    with pytest.raises(sg.FormatError, match=r"Pass collect\(module\)"):
        sg.export(group, tmp_path / "net.nir")
    with pytest.raises(sg.FormatError, match=r"Pass collect\(module\)"):
        sg.export(group, tmp_path / "net.net", time_steps=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(sg.FormatError, match=r"from a trainable one by collect\(module\)"):
        sg.save(snn, tmp_path / "net.h5")


# -- the description back -------------------------------------------------------------------------


def trained(network, simulator="spikingjelly", rate=1e-2, iterations=3):
    snn, (x, y) = sg.build(network, simulator, trainable=True), samples()
    adam = torch.optim.Adam(snn.parameters(), rate)
    for _ in range(iterations):
        loss = F.cross_entropy(outputs(snn, x, network.time_steps)[-1], y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        snn.reset()
    return snn


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_collected_it_is_the_same_network(model, kind, simulator, tmp_path):
    """Trained, collected, saved, loaded: the same to the bit in both simulators and by NumPy."""
    network, (x, _) = KINDS[kind](model), samples(32, seed=5)
    snn = trained(network, simulator)
    steps = range(1, network.time_steps + 1)
    expected, found = sg.run(snn, x, steps), sg.collect(snn)
    assert not torch.equal(expected[steps[-1]], sg.run(sg.build(network), x)[steps[-1]])
    assert found.provenance["trained"]
    path = tmp_path / "trained.h5"
    sg.save(found, path)
    for each in (found, sg.load(path)):
        for other in SIMULATORS:
            actual = sg.run(sg.build(each, other), x, steps)
            assert all(torch.equal(actual[t], expected[t]) for t in steps), other
    certificate = sg.verify(path, x, network=found)
    assert certificate.ok, certificate


def test_it_holds_no_memory_of_the_module(network):
    snn = sg.build(network, trainable=True)
    found, (x, _) = sg.collect(snn), samples()
    before = sg.run(sg.build(found), x)[1]
    with torch.no_grad():
        for p in snn.parameters():
            p.add_(1.0)
    assert torch.equal(sg.run(sg.build(found), x)[1], before)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_parameters_that_were_replaced_are_not_collected(network, simulator):
    snn = sg.build(network, simulator, trainable=True)
    state = {name: 1.01 * p.detach() for name, p in snn.named_parameters()}
    snn.load_state_dict(state, strict=False, assign=True)
    with pytest.raises(sg.InputError, match="parameters of the module were replaced"):
        sg.collect(snn)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_scales_and_zones_stay_where_they_may_be(network, simulator):
    """However far an optimiser goes, also in the description."""
    snn, (x, _) = sg.build(network, simulator, trainable=True), samples()
    with torch.no_grad():
        for name, p in snn.named_parameters():
            if name.endswith("scale"):
                p.view(-1)[0] = -1.0
            if name.endswith("dead_zone"):
                p.view(-1)[0], p.view(-1)[1] = -0.1, 1.5
    outputs(snn, x, 1).sum().backward()
    snn.reset()
    found = sg.collect(snn)
    for node in found.of(SignGDNeuron):
        assert bool((node.scale > 0).all())
        assert bool(((node.dead_zone >= 0) & (node.dead_zone <= 2 / 3 + 1e-7)).all())
    assert torch.equal(sg.run(sg.build(found, simulator), x)[1], sg.run(snn, x)[1])


# -- fine_tune ------------------------------------------------------------------------------------


def accuracy(network):
    x, y = samples(512, seed=9)
    return sg.evaluate(sg.build(network), [(x, y)]).accuracy[-1]


@pytest.fixture(scope="module")
def coarse(model):
    """With few spikes, too large and far from their targets: errors to learn from."""
    plan = converted(model, members=1)
    nodes = {node.name: node.resized(2.5) for node in plan.of(SignGDNeuron)}
    return plan.with_nodes(nodes)


def test_fine_tuning_helps(coarse):
    found = sg.fine_tune(coarse, samples(512), epochs=6, lr=5e-3)
    before, best = found.history[0], found.history[found.best]
    assert best.accuracy > before.accuracy and best.loss < found.history[1].loss
    assert accuracy(found.network) > accuracy(coarse)
    assert found.network.provenance["fine_tuning"]["epochs"] == 6
    assert "<- kept" in str(found) and json.dumps(found.to_dict(), allow_nan=False)


def test_without_labels_it_follows_the_source(coarse):
    x, _ = samples(512)
    found = sg.fine_tune(coarse, x, epochs=6, lr=5e-3)
    assert all(row.accuracy is None for row in found.history)
    assert found.history[found.best].agreement > found.history[0].agreement


@pytest.mark.parametrize("part", [0.6, 0.8])
def test_a_budget_of_additions_is_kept(network, part):
    (x, y), held_out = samples(1024), samples(256, seed=3)
    before = sg.fine_tune(network, (x, y), validation=held_out, epochs=1).history[0].additions
    found = sg.fine_tune(
        network, (x, y), validation=held_out, additions=part * before, epochs=12, lr=5e-3
    )
    assert found.history[found.best].additions <= part * before
    counted = count_operations(sg.build(found.network), samples(256, seed=9)[0])
    assert counted.additions_per_mac <= 1.1 * part * before
    assert accuracy(found.network) > accuracy(network) - 0.02


def test_a_budget_that_is_not_reached_is_said(network):
    with pytest.warns(UserWarning, match=r"more than additions=0\.45"):
        sg.fine_tune(network, samples(64), additions=0.45, epochs=1, lr=1e-5)


def test_an_interrupted_course_goes_on_to_the_same_network(coarse, tmp_path, monkeypatch):
    given = {"epochs": 3, "lr": 3e-3, "additions": 1.0, "resume": tmp_path / "course.pt"}
    whole = sg.fine_tune(coarse, samples(256), **{**given, "resume": None})

    def stop(self, path, save=sg.converters.fine_tuning._Tuner._save):
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sg.converters.fine_tuning._Tuner, "_save", stop)
        sg.fine_tune(coarse, samples(256), **given)
    resumed = sg.fine_tune(coarse, samples(256), **given)
    x, _ = samples()
    assert [row[:-1] for row in resumed.history] == [row[:-1] for row in whole.history]
    assert torch.equal(
        sg.run(sg.build(resumed.network), x)[1], sg.run(sg.build(whole.network), x)[1]
    )
    again = sg.fine_tune(coarse, samples(256), **given)  # nothing is left to do
    assert len(again.history) == len(whole.history)


def test_a_resume_file_of_something_else_is_refused(coarse, network, tmp_path):
    path = tmp_path / "course.pt"
    sg.fine_tune(coarse, samples(64), epochs=1, resume=path)
    assert [file.name for file in tmp_path.iterdir()] == ["course.pt"]
    with pytest.raises(sg.InputError, match="is of another network"):
        sg.fine_tune(network, samples(64), epochs=1, resume=path)
    with pytest.raises(sg.InputError, match=r"is of a training with epochs=1"):
        sg.fine_tune(coarse, samples(64), epochs=2, resume=path)
    course, x = {"epochs": 1, "resume": path}, samples(64)[0]
    for data, other, text in (
        (samples(64, seed=1), {}, "samples='58 of"),
        (samples(96), {}, "samples='58 of"),
        (x, {}, "samples='58 of"),
        (samples(64), {"labels": False}, "labels=None"),
        (samples(64), {"batch_size": 8}, "batch_size=64"),
        (samples(64), {"validation": x}, "validation='6 of"),
        (samples(64), {"simulator": "norse"}, "simulator='spikingjelly'"),
        ([samples(64)], {}, "samples='58 of"),
    ):
        with pytest.raises(sg.InputError, match=f"is of a training with .*{text}"):
            sg.fine_tune(coarse, data, **course, **other)
    assert len(sg.fine_tune(coarse, samples(64), **course).history) == 2
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(sg.FormatError, match="was not written by fine_tune"):
        sg.fine_tune(coarse, samples(64), epochs=1, resume=path)


def test_a_pickle_in_its_place_is_not_run(coarse, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"of": Evil()}, tmp_path / "course.pt")
    with pytest.raises(sg.FormatError):
        sg.fine_tune(coarse, samples(64), epochs=1, resume=tmp_path / "course.pt")
    assert not (tmp_path / "run").exists()


DAMAGES = {
    "a list": lambda found: [],
    "numbers": lambda found: {**found, "epoch": "one"},
    "the best": lambda found: {**found, "best": 7},
    "history": lambda found: {**found, "history": [[1]]},
    "a shape": lambda found: {**found, "parameters": [p[:1] for p in found["parameters"]]},
    "what is kept": lambda found: {**found, "kept": [p[..., None] for p in found["kept"]]},
    "too few": lambda found: {**found, "kept": found["kept"][1:]},
    "Adam": lambda found: {**found, "adam": {"state": {}, "param_groups": []}},
    "the generator": lambda found: {**found, "rng": torch.zeros(3)},
} | {f"no {key}": lambda found, key=key: {k: v for k, v in found.items() if k != key}
     for key in ("of", "course", "adam", "history", "spent")}  # fmt: skip


@pytest.fixture(scope="module")
def course_file(coarse, tmp_path_factory):
    path = tmp_path_factory.mktemp("course") / "course.pt"
    sg.fine_tune(coarse, samples(64), epochs=1, resume=path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_resume_file_is_refused(coarse, course_file, tmp_path, name):
    torch.save(DAMAGES[name](course_file), tmp_path / "course.pt")
    with pytest.raises(sg.FormatError, match="was not written by fine_tune"):
        sg.fine_tune(coarse, samples(64), epochs=1, resume=tmp_path / "course.pt")


def test_where_no_resume_file_can_be_is_said_before_training(coarse, tmp_path, monkeypatch):
    monkeypatch.setattr(sg.converters.fine_tuning._Tuner, "_train", None)  # is not reached
    for path in (tmp_path, tmp_path / "nowhere/course.pt"):
        with pytest.raises(sg.InputError, match="resume must be a file"):
            sg.fine_tune(coarse, samples(64), epochs=1, resume=path)


def test_a_disk_that_does_not_take_it_is_said(coarse, tmp_path, monkeypatch):
    def full(*given):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(sg.FormatError, match="cannot be written .*the disk is full"):
        sg.fine_tune(coarse, samples(64), epochs=1, resume=tmp_path / "course.pt")


def test_numbers_of_numpy_are_gone_on_from(coarse, tmp_path):
    given = {"lr": numpy.float64(1e-3), "epochs": 1, "resume": tmp_path / "course.pt"}
    for _ in range(2):
        assert len(sg.fine_tune(coarse, samples(64), **given).history) == 2


def test_loaders_and_tensors(coarse):
    x, y = samples(128)
    loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    found = sg.fine_tune(coarse, loader, validation=[(x[:32], y[:32])], epochs=1)
    assert found.history[1].accuracy is not None
    last = sg.fine_tune(coarse, loader, epochs=2)
    assert last.best == 2 and last.history[1].accuracy is None
    assert sg.fine_tune(coarse, [x[:32], (x[32:64],)], epochs=1).history[1].loss > 0
    unlabelled = sg.fine_tune(coarse, (x, y), labels=False, epochs=1)
    assert unlabelled.history[1].accuracy is None


def test_the_same_seed_gives_the_same_network_and_leaves_torch_as_it_was(coarse):
    state = torch.get_rng_state()
    one, two, other = (sg.fine_tune(coarse, samples(128), epochs=1, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    x, _ = samples()
    a, b, c = (sg.run(sg.build(each.network), x)[1] for each in (one, two, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_mixed_precision_leaves_a_network_of_float32(coarse):
    found = sg.fine_tune(coarse, samples(256), epochs=3, lr=3e-3, amp=True)
    tensors = [p for node in found.network.nodes for p in getattr(node, "tensors", {}).values()]
    assert {p.dtype for p in tensors if p.is_floating_point()} == {torch.float32}
    assert found.history[found.best].accuracy >= found.history[0].accuracy


def test_time_is_kept(coarse):
    found = sg.fine_tune(coarse, samples(512), epochs=10_000, seconds=1.0)
    assert found.history[-1].seconds < 20 and len(found.history) > 1


def test_norse_and_group_networks_are_fine_tuned(coarse):
    norse = sg.fine_tune(coarse, samples(128), epochs=1, simulator="norse")
    spikingjelly = sg.fine_tune(coarse, samples(128), epochs=1)
    x, _ = samples()
    both = [sg.run(sg.build(each.network), x)[1] for each in (norse, spikingjelly)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)
    group = group_network(1)
    found = sg.fine_tune(group, samples(512), epochs=5, lr=1e-2, distill=0)
    assert found.history[found.best].accuracy > found.history[0].accuracy


def test_outputs_of_another_task_follow_the_source(model):
    torch.manual_seed(0)
    regression = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 1)).eval()
    network = converted(regression, members=1)
    found = sg.fine_tune(network, samples(256)[0], epochs=12, lr=1e-2)
    assert found.history[-1].loss < 0.7 * found.history[1].loss
    with pytest.raises(sg.InputError, match="a single output"):
        sg.fine_tune(network, samples(64), epochs=1)


def test_what_held_out_samples_find_worse_is_not_kept():
    """Where no classes are counted, by the distance from the source's outputs."""
    torch.manual_seed(0)
    regression = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 1)).eval()
    network, held_out = converted(regression, members=3), samples(64, seed=3)[0]
    found = sg.fine_tune(network, samples(256)[0], validation=held_out, epochs=2, lr=10.0)
    assert found.best == 0 and min(row.distance for row in found.history[1:]) > 0.1
    ways = {"accuracy": None, "agreement": None}
    assert all(ways.items() <= row._asdict().items() for row in found.history)
    y, want = (sg.run(sg.build(each), held_out)[1] for each in (found.network, network))
    assert torch.equal(y, want)
    source = regression(held_out).detach()
    expected = (y - source).square().mean() / source.square().mean()
    assert found.history[0].distance == pytest.approx(float(expected), rel=1e-4)


X, Y = samples(32)
WRONG = {
    "labels": (((X, Y + 1),), {}, "labels are from 0 to 2"),
    "negative": (((X, Y - 1),), {}, "labels are from 0 to 2"),
    "one-hot": (((X, F.one_hot(Y, 3)),), {}, r"labels are class indices \[B\]"),
    "float": (((X, Y.float()),), {}, r"y is torch.float32"),
    "absent": ((X,), {"labels": True}, "a batch has none"),
    "empty": (([],), {}, "no batches"),
    "no samples": (((X[:0], Y[:0]),), {}, "with N >= 1"),
    "lengths": (((X, Y[:3]),), {}, "samples, but y has 3 labels"),
    "no loader": ((3,), {}, "a loader gives batches"),
    "three": (([(X, Y, Y)],), {}, "gives 3 values"),
    "held out": (((X, Y),), {"validation": []}, "no batches"),
    "additions": (((X, Y),), {"additions": 0}, "additions is a positive number"),
    "unreachable": (((X, Y),), {"additions": 1e-3}, "cannot be reached"),
    "no lr": (((X, Y),), {"lr": None}, "lr is a positive number"),
    "seed": (((X, Y),), {"seed": "a"}, "seed is an integer"),
    "lists": (([(X, Y.tolist())],), {}, "labels are a tensor of class indices .*not list"),
    "lists of numbers": (([X.tolist()],), {}, "the loader gives .* values"),
    "no classes": (((X, Y),), {"temperature": None}, "with a temperature"),
    "epochs": (((X, Y),), {"epochs": 0}, "epochs is an integer"),
    "half": (((X, Y),), {"epochs": 0.5}, "epochs is an integer"),
    "seconds": (((X, Y),), {"seconds": -1}, "seconds is a positive number"),
    "lr": (((X, Y),), {"lr": math.nan}, "lr is a positive number"),
    "temperature": (((X, Y),), {"temperature": True}, "temperature is a positive number"),
    "distill": (((X, Y),), {"distill": -1}, "distill is a number of at least 0"),
    "nothing": ((X,), {"distill": 0}, "nothing to learn"),
    "batch": (((X, Y),), {"batch_size": 0}, "batch_size is an integer"),
    "shape": (((X[:, :, :2], Y),), {}, "the input is"),
    "nan": (((X * math.nan, Y),), {"epochs": 1}, "the loss is nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(coarse, name):
    arguments, options, text = WRONG[name]
    with pytest.raises(sg.InputError, match=text):
        sg.fine_tune(coarse, *arguments, **options)


def test_only_a_description_is_fine_tuned(network):
    for given, name in ((sg.build(network, trainable=True), "Network"), ("net.h5", "str")):
        with pytest.raises(sg.InputError, match=f"not .*{name}; get it from a file by load"):
            sg.fine_tune(given, (X, Y), epochs=1)


def test_without_gradients_of_its_caller_it_learns_the_same(coarse):
    expected = sg.fine_tune(coarse, (X, Y), epochs=1)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = sg.fine_tune(coarse, (X, Y), epochs=1)
        assert [row[:-1] for row in found.history] == [row[:-1] for row in expected.history]


def test_a_seed_is_that_of_the_cpu_alone(coarse, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", None)  # which seeds each GPU
    sg.fine_tune(coarse, (X, Y), epochs=1, seed=5)


def test_numbers_that_are_no_classes_follow_the_source_by_their_square():
    torch.manual_seed(0)
    regression = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    network, x = converted(regression, members=1), samples(256)[0]
    options = {"epochs": 2, "lr": 1e-3, "validation": x[:64]}
    found = sg.fine_tune(network, x, temperature=None, **options)
    assert all(row.agreement is None for row in found.history)
    y, want = sg.run(sg.build(network), x[:64])[1], regression(x[:64]).detach()
    expected = (y - want).square().mean() / want.square().mean()
    assert found.history[0].distance == pytest.approx(float(expected), rel=1e-4)
    assert sg.fine_tune(network, x, **options).history[0].agreement is not None


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, u, w):
        return self.head(F.gelu(self.one(u) + self.two(w)))


def test_several_inputs_are_samples_by_name(tmp_path):
    torch.manual_seed(0)
    x, y = {"u": torch.randn(64, 6), "w": torch.randn(64, 4)}, torch.arange(64) % 3
    network = sg.convert(Both().eval(), x, time_steps=1, members=2, tune=False)
    options = {"epochs": 1, "resume": tmp_path / "course.pt"}
    found = sg.fine_tune(network, (x, y), **options)
    assert found.history[1].accuracy is not None
    with pytest.raises(sg.InputError, match="samples='58 of"):
        sg.fine_tune(network, ({**x, "w": x["w"] + 1}, y), **options)
    assert sg.fine_tune(network, x, epochs=1).history[1].agreement is not None
    with pytest.raises(sg.InputError, match="with N >= 1"):
        sg.fine_tune(network, ({**x, "w": x["w"][:9]}, y), epochs=1)


def relus(method, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    options = {"time_steps": steps, "input_coding": "poisson" if method == "signgd" else "real"}
    return sg.convert(model, samples(64)[0].abs(), method=method, tune=False, **options)


def max_pooled_groups():
    parts = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    model = nn.Sequential(*parts, nn.Linear(16, 3)).eval()
    return sg.convert(model, samples(64)[0], method="group", time_steps=2, members=4)


UNCOUNTED = {
    "Poisson": lambda: relus("signgd", 2),
    "subgradients": lambda: relus("subgradient", 2),
    "maxima": max_pooled_groups,
}


@pytest.mark.parametrize("kind", UNCOUNTED)
def test_what_has_no_count_of_additions_is_trained_without_a_budget(kind):
    network = UNCOUNTED[kind]()
    x, y = samples(64)
    found = sg.fine_tune(network, (x.abs(), y), epochs=1)
    assert [row.additions for row in found.history] == [None, None] and str(found)
    with pytest.raises(sg.InputError, match="additions"):
        sg.fine_tune(network, (x.abs(), y), epochs=1, additions=1e3)


def test_a_generator_is_used_up(coarse):
    with pytest.raises(sg.InputError, match="no batches"):
        sg.fine_tune(coarse, ((x, y) for x, y in [samples(32)]), validation=[samples(8)], epochs=2)


def test_the_rate_goes_up_and_down_in_one_cycle():
    rates = [Course(1, None, 1.0, 1.0, 2.0, None, False, 0).rate(k / 100) for k in range(101)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0) and rates[0] < 0.1 and rates[-1] < 1e-6
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_does_what_fine_tune_does(tmp_path, monkeypatch, capsys):
    from cli_zoo import tiny

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x, y = cli_data()
    network = sg.convert(tiny(), x, time_steps=1, members=2, tune=False)
    sg.save(network, "net.h5")
    options = ["--data", "cli_zoo:data", "--epochs", "2", "--lr", "0.002", "--seed", "3"]
    code = main(["fine-tune", "net.h5", *options, "-o", "tuned.h5", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0 and report["ok"] and len(report["fine_tuning"]["history"]) == 3
    expected = sg.fine_tune(sg.load("net.h5"), (x, y), epochs=2, lr=0.002, seed=3)
    found = sg.load("tuned.h5")
    assert torch.equal(sg.run(sg.build(found), x)[1], sg.run(sg.build(expected.network), x)[1])
    assert found.provenance["command"].startswith("spikingjelly-signgd fine-tune net.h5")
    assert sg.verify("tuned.h5").ok


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--additions", "1e-4"], "cannot be reached"),
        (["--additions", "0"], "positive number"),
        (["--validation-labels", "y.npy"], "--validation-labels is of --validation"),
    ],
)
def test_the_command_refuses(options, text, tmp_path, monkeypatch, capsys):
    from cli_zoo import tiny

    monkeypatch.chdir(tmp_path)
    x, _ = cli_data()
    sg.save(sg.convert(tiny(), x, time_steps=1, members=2, tune=False), "net.h5")
    given = ["fine-tune", "net.h5", "--data", "cli_zoo:data", "-o", "tuned.h5", "--json", *options]
    try:
        code = main(given)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and text in capsys.readouterr().out
    assert not (tmp_path / "tuned.h5").exists()
