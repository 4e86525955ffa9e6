"""Tuning block by block: where a network is cut, what a block is tuned toward, what it may see."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import blocks, tunable, tuning
from spikingjelly_signgd.core.module import NetworkModule, Source
from spikingjelly_signgd.core.network import SignGDNeuron
from spikingjelly_signgd.core.walk import following, walk


class Residual(nn.Module):
    """A stem, three bottlenecks with a sum behind each, a head: a ResNet in small."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, 3, 1) for _ in range(3))
        self.outer = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = F.relu(x + outer(F.relu(inner(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Each layer sees all before it, and a layer that is narrow ends each of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 4 * (i % 3), 4, 3, padding=1) for i in range(6))
        self.narrow = nn.ModuleList(nn.Conv2d(16, 4, 1) for _ in range(2))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = x.expand(-1, 4, -1, -1)
        for block in range(2):
            seen = [x]
            for layer in self.layers[3 * block : 3 * block + 3]:
                seen.append(F.relu(layer(torch.cat(seen, 1))))
            x = self.narrow[block](torch.cat(seen, 1))
        return self.head(F.relu(x).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x.flatten(1, 2)).mean(1))


@pytest.fixture(scope="module")
def images():
    return torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(model, images, **options):
    torch.manual_seed(0)
    given = {"time_steps": 1, "members": 8, "tune": False, **options}
    return sg.convert(model.eval(), images, **given)


@pytest.fixture(scope="module")
def residual(images):
    torch.manual_seed(4)
    return converted(Residual(), images)


@pytest.mark.parametrize("model", [Residual, Dense, Transformer])
def test_blocks_are_the_network_cut_where_few_values_are_alive(images, model, monkeypatch):
    monkeypatch.setattr(blocks, "LAYERS", 4)
    torch.manual_seed(4)
    network = converted(model(), images)
    parts = blocks.divided(network)
    assert [n.name for part in parts for n in part.neurons] == network.names()
    assert len(parts) > 1 and parts[0].inputs == ()
    for before, after in zip(parts, parts[1:], strict=False):
        assert tuple(before.outputs) == after.inputs and 0 < len(after.inputs) <= blocks.FEW
    # what comes behind a cut follows from it alone
    moving = following(network, [network.input.name])
    for part in parts:
        inside = {node.name for node in part.network.nodes}
        for node in part.network.nodes:
            read = set(node.inputs) & moving if node.name not in part.inputs else set()
            assert read <= inside
    source, x = NetworkModule(network, {}), images[:3]
    known = {}
    for part in parts:
        known = walk(part.network, Source(source, x), part.outputs, known)
    torch.testing.assert_close(known[network.outputs], source.ann(x))


def test_a_residual_network_is_cut_between_its_blocks(residual, monkeypatch):
    """Where one value is alive, not inside of a block, where the sum waits for a second one."""
    monkeypatch.setattr(blocks, "LAYERS", 2)
    cuts = [part.inputs for part in blocks.divided(residual)[1:]]
    assert all(len(names) == 1 for names in cuts) and len(cuts) >= 2
    count = [len(names) for names in blocks.alive(residual)]
    assert max(count) == 2  # inside


def test_a_dense_network_is_cut_where_it_is_narrow(images, monkeypatch):
    monkeypatch.setattr(blocks, "LAYERS", 4)
    monkeypatch.setattr(blocks, "PARTS", 1)
    torch.manual_seed(4)
    network = converted(Dense(), images)
    (first,) = blocks.divided(network)[1].inputs
    assert "narrow" in first and len(blocks.divided(network)) == 2


def test_a_transformer_is_cut_at_its_residual_stream(images, monkeypatch):
    monkeypatch.setattr(blocks, "LAYERS", 6)
    monkeypatch.setattr(blocks, "PARTS", 1)
    torch.manual_seed(4)
    network = converted(Transformer(), images)
    parts = blocks.divided(network)
    assert len(parts) > 1
    for part in parts[1:]:
        assert [network[name].shape[-1] for name in part.inputs] == [8] * len(part.inputs)


def test_a_value_in_which_samples_are_mixed_is_no_cut(images):
    class Windows(nn.Module):
        """Four windows of each image in the batch's dimension, as in Swin."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(64, 5)

        def forward(self, x):
            x = F.relu(self.a(x.reshape(-1, 16)))
            return self.c(F.relu(self.b(x)).reshape(-1, 64))

    torch.manual_seed(4)
    network = converted(Windows(), images)
    (only,) = blocks.divided(network)
    assert len(only.neurons) == 2


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dead_zone", [0, 2 / 3])
def test_the_checkpointed_run_is_the_run(images, steps, dead_zone, monkeypatch):
    """Outputs, additions and every gradient, with blocks in between or without."""
    monkeypatch.setattr(blocks, "LAYERS", 2)
    torch.manual_seed(4)
    network = converted(Residual(), images, time_steps=steps, members=2, dead_zone=dead_zone)
    simulation = tunable.Tunable(network, steps)
    simulation.count_additions()
    samples, parts = tunable.samples_of(network, images[:4]), blocks.divided(network)
    assert len(parts) > 2
    found = []
    for run in (
        simulation.run,
        lambda *given: blocks.outputs_of(simulation, parts, *given, counted=True),
    ):
        choices = {k: c.copy() for k, c in tunable.default_choices(network, samples).items()}
        leaves = [t.requires_grad_() for c in choices.values() for t in (c.eta, c.scale, c.resting)]
        with torch.enable_grad():
            outputs, additions = run(samples.x, choices)
            loss = tunable.loss_of(outputs, samples) + 0.1 * additions
        given = torch.autograd.grad(loss, leaves)
        found.append((outputs[0].detach(), additions.detach(), *given))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def tuner_of(network, images, **changes):
    simulation = tunable.Tunable(network, network.time_steps)
    seen, held_out = (tunable.samples_of(network, x) for x in (images[:96], images[96:]))
    task = {"learn": tuning.LEARNED, "weight": 0.0, "sparse": True, "iterations": 30, "seed": 0}
    given = blocks.Task(**{**task, "budget": blocks.Budget(), **changes})
    choices = tunable.default_choices(network, held_out, True)
    return blocks.BlockTuner(simulation, choices, seen, held_out, given), choices


def test_a_block_sees_what_the_blocks_before_it_send(residual, images, monkeypatch):
    """Its inputs are the spiking network's, tuned so far; its aim is the source network's value."""
    monkeypatch.setattr(blocks, "LAYERS", 2)
    seen = []
    begun = blocks._Part.begun

    def watch(self, flow, choices):
        seen.append((self.block, flow))
        return begun(self, flow, choices)

    monkeypatch.setattr(blocks._Part, "begun", watch)
    tuner, _ = tuner_of(residual, images)
    choices = tuner.run()
    changed = {n.name: choices[n.name].applied(n) for n in residual.of(SignGDNeuron)}
    values = sg.analysis.record(sg.build(residual.with_nodes(changed)), images[96:], 1)
    source = NetworkModule(residual, {}).all_activations(images[96:])
    names = set(residual.names())
    compared = 0
    for block, flow in seen:
        for name in block.outputs:
            torch.testing.assert_close(flow.source[name], source[name])
        for name in set(block.inputs) & names:
            torch.testing.assert_close(
                flow.spiking[name][0].reshape(-1), values.decoded[name][-1].reshape(-1)
            )
            compared += 1
    assert len(seen) == len(tuner.blocks) and compared > 0


def test_the_error_of_the_last_block_is_that_of_the_outputs(residual, images):
    """What g weighs is the relative error of the outputs, to the floor for what costs nothing."""
    tuner, choices = tuner_of(residual, images)
    tuner.run()
    before, after = list(tuner.errors.values())[-1]
    measure = tunable.Measure(tuner.tunable, tunable.samples_of(residual, images[96:]))
    assert after**0.5 == pytest.approx(measure(tuner.choices).error, rel=0.2)
    assert after < before


@pytest.mark.parametrize(
    ("steps", "members", "dead_zone"), [(1, 4, 2 / 3), (3, 2, 2 / 3), (4, 2, 0)]
)
def test_block_by_block_lowers_the_error_on_images_that_it_never_saw(
    images, steps, members, dead_zone
):
    torch.manual_seed(4)
    model = Residual().eval()
    given = images[:128]
    plain = converted(model, given, time_steps=steps, members=members, dead_zone=dead_zone)
    tuned = sg.tune(plain, given, blocks=True, iterations=40)
    before, after = (
        sg.evaluate(sg.build(n), [images[128:]], steps, reference=model).error[0]
        for n in (plain, tuned)
    )
    assert after < 0.95 * before
    report = sg.Tuning.of(tuned)
    assert report.blocks and list(report.blocks)[-1] == plain.names()[-1]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert "without" in report.layers[plain.names()[0]]


def test_nothing_is_learned_on_what_is_held_out(residual, images, monkeypatch):
    """Whatever carries a gradient is of the other samples."""
    taught = []
    loss = blocks._Part._loss

    def watch(self, flow, choices):
        if torch.is_grad_enabled():
            taught.append(flow.x)
        return loss(self, flow, choices)

    whole = tuning._Tuner._loss
    monkeypatch.setattr(blocks._Part, "_loss", watch)
    monkeypatch.setattr(
        tuning._Tuner,
        "_loss",
        lambda self, samples, choices: (taught.append(samples.x), whole(self, samples, choices))[1],
    )
    sg.tune(residual, images, blocks=True, iterations=6)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out = {tuple(x.flatten().tolist()) for x in images[order][:40]}
    learned = {tuple(x.flatten().tolist()) for part in taught for x in part}
    assert len(learned) > 30 and not learned & held_out


def test_the_same_seed_gives_the_same_blocks(residual, images):
    first, second, other = (
        sg.tune(residual, images, blocks=True, iterations=6, seed=s) for s in (0, 0, 1)
    )
    assert first.provenance["tuning"] == second.provenance["tuning"]
    assert all(
        torch.equal(a.scale, b.scale) for a, b in zip(first.neurons, second.neurons, strict=True)
    )
    assert first.provenance["tuning"]["error"] != other.provenance["tuning"]["error"]


def test_no_block_is_left_worse_than_it_was_found(residual, images, monkeypatch):
    """A descent that goes astray changes nothing, in a block or in the network."""

    def astray(self, losses, budget):
        for choice in self.choices.values():
            choice.scale.data.add_(3.0)

    monkeypatch.setattr(blocks.Descent, "step", astray)
    tuned = sg.tune(residual, images, blocks=True, iterations=4)
    assert tuned.nodes == residual.nodes
    report = sg.Tuning.of(tuned)
    assert report.error[0] == report.error[1]
    assert all(before == after for before, after in report.blocks.values())


def test_a_size_decides_unless_told(residual, images, monkeypatch):
    assert not sg.Tuning.of(sg.tune(residual, images, iterations=2)).blocks
    monkeypatch.setattr(tuning, "LARGE", 100)
    assert sg.Tuning.of(sg.tune(residual, images, iterations=2)).blocks
    assert not sg.Tuning.of(sg.tune(residual, images, iterations=2, blocks=False)).blocks


def test_additions_are_weighed_in_blocks(residual, images):
    reports = [
        sg.Tuning.of(sg.tune(residual, images, blocks=True, iterations=20, objective=w))
        for w in (0.0, 0.1)
    ]
    assert reports[1].additions[1] < reports[0].additions[1]
    assert reports[1].additions[1] < reports[1].additions[0]


def test_a_function_without_a_gradient_is_weighed_by_its_size(images):
    """A source of steps, as QCFS activations are, says nothing of what an error costs."""
    torch.manual_seed(4)
    network = converted(Residual(), images)
    tuner, _ = tuner_of(network, images)
    names = tuner.blocks[0].outputs
    none = {
        name: blocks.Cost(torch.zeros(shape[1:]), torch.zeros(shape[1:]), ())
        for name, shape in ((name, network[name].shape) for name in names)
    }
    part = blocks._Part(tuner, tuner.blocks[0], none, blocks.Budget())
    flow = part.aimed(tuner.held_out)
    part.begun(flow, tuner.choices)
    (value,) = flow.source.values()
    relative = part.costs[names[0]].of(value.unsqueeze(0)) / len(flow)
    assert float(relative) == pytest.approx(1, rel=0.1)
