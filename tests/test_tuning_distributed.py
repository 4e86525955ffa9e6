"""Tuning by several processes: the same network for any number of them, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
import torch
from several import several
from test_block_tuning import Residual, converted
from test_searching_distributed import relus
from test_tuning import Small
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import blocks, budget, descent, refinement, shared, tunable
from spikingjelly_signgd.converters.fine_tuning import fingerprint
from spikingjelly_signgd.core.distributed import ALONE
from spikingjelly_signgd.core.network import GroupNeuron

# of the error, or the loss, that is left, over that of tuning whose minibatches are not cut: a
# choice that falls otherwise, by a rounding, leads a descent elsewhere; block by block, where other
# signs say what errors cost, further
TOLERANCE = {False: 0.1, True: 0.25}


@pytest.fixture(scope="module")
def images():
    return torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    small = Small().eval()
    torch.manual_seed(4)
    return {False: small, True: Residual().eval()}


def said(network):
    return fingerprint(network), network.provenance["tuning"]


SIGNS = {"time_steps": 3, "members": 2, "dead_zone": 0}
ONE_STEP = {"time_steps": 1, "members": 8, "dead_zone": 2 / 3}
STEPS = {"time_steps": 2, "members": 3, "dead_zone": 2 / 3}
CASES = [
    (SIGNS, False, "error"),
    (ONE_STEP, False, "error"),
    (STEPS, False, "additions"),
    (SIGNS, True, "error"),
    pytest.param(STEPS, True, "additions", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("plan", "by_blocks", "objective"), CASES)
def test_any_number_of_processes_tunes_the_same_network(
    models, images, plan, by_blocks, objective, monkeypatch
):
    monkeypatch.setattr(blocks, "LAYERS", 4)
    network = converted(models[by_blocks], images, **plan)
    given = {"iterations": 3 if by_blocks else 6, "blocks": by_blocks, "objective": objective}

    def tuned(world):
        return sg.tune(network, images, distributed=world, **given)

    found = [tuned(ALONE), *several(2, tuned), *several(4, tuned)]
    assert all(said(one) == said(found[0]) for one in found)
    assert said(found[0]) != said(network.replace(provenance={"tuning": None}))
    mine, plain = (sg.Tuning.of(one) for one in (found[0], sg.tune(network, images, **given)))
    assert mine.iterations == plain.iterations
    assert mine.error[0] == pytest.approx(plain.error[0], rel=1e-5)
    losses = [
        tunable.Found(one.error[1], None, (one.additions or (0, 0))[1]).loss(one.weight)
        for one in (mine, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE[by_blocks])
    assert mine.agreement == pytest.approx(plain.agreement, abs=1 / plain.held_out)
    assert bool(plain.blocks) == by_blocks


@pytest.mark.parametrize("by_blocks", [False, True])
def test_each_piece_is_one_process_s(models, images, by_blocks, monkeypatch):
    """Of a minibatch of four pieces one, of two processes, has half of the samples."""
    network = converted(models[by_blocks], images)
    signals, seen = tunable.Tunable.signals, {True: {}, False: {}}

    def watch(self, x, *given, **options):
        who = seen[torch.is_grad_enabled()].setdefault(threading.get_ident(), [])
        who.append(len(x))
        return signals(self, x, *given, **options)

    monkeypatch.setattr(tunable.Tunable, "signals", watch)
    given = {"iterations": 3, "blocks": by_blocks, "learn": ["scales"]}
    sg.tune(network, images, distributed=ALONE, **given)
    alone = {learning: sum(next(iter(by.values()))) for learning, by in seen.items()}
    for by in seen.values():
        by.clear()
    several(2, lambda world: sg.tune(network, images, distributed=world, **given))
    for learning, by in seen.items():
        first, second = (sum(sizes) for sizes in by.values())
        assert first + second == alone[learning]
        assert not learning or first == second
        assert min(first, second) > 0.3 * alone[learning]


def test_gradients_are_added_in_the_order_of_their_pieces(models, images):
    """As one process adds them, whatever the number of those that they come from."""
    network = converted(models[False], images)
    samples = tunable.samples_of(network, images[:12])
    simulation = tunable.Tunable(network, network.time_steps)
    start = tunable.default_choices(network, samples)

    def gradients(world, step=descent.Descent.step):
        one = descent.Descent(start, ("scales", "dead_zones"), 0.1, 5, True)
        parts = [samples.pick(slice(i, i + 4)) for i in (0, 4, 8)]

        def loss(part, weight):
            values, _ = simulation.run(part.x, one.choices)
            return weight * tunable.loss_of(values, part)

        losses = [lambda p=p, w=w: loss(p, w) for p, w in zip(parts, (1e-3, 1.0, 1e3), strict=True)]
        one.adam.step = lambda: None
        if world is None:
            with torch.enable_grad():
                for each in losses:
                    each().backward()
            torch.nn.utils.clip_grad_norm_(one.parameters, 1.0)
        else:
            step(one, losses, budget.Budget(None, world))
        return [p.grad for p in one.parameters]

    expected = gradients(None)
    assert len(expected) > 2 and any(bool(each.any()) for each in expected)
    for found in (gradients(ALONE), *several(2, gradients), *several(4, gradients)):
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)


def test_thresholds_are_refined_alike(images, monkeypatch):
    """Of group neurons; each minibatch in pieces, whose errors are relative to the whole."""
    monkeypatch.setattr(refinement, "MOST", 12)
    network = converted(relus(), images, method="group", time_steps=2, members=4)
    names = [node.name for node in network.of(GroupNeuron)]
    sizes, loss = {}, refinement._loss

    def watched(simulation, x, *given):
        sizes.setdefault(threading.get_ident(), []).append(len(x))
        return loss(simulation, x, *given)

    monkeypatch.setattr(refinement, "_loss", watched)

    def refined(world):
        return refinement.refine(network, images, names, 0, budget.Budget(None, world))

    alone = refined(ALONE)
    (all_of_them,) = sizes.values()
    for size in (2, 4):
        sizes.clear()
        assert {fingerprint(one) for one in several(size, refined)} == {fingerprint(alone)}
        assert len(sizes) == size and sum(map(sum, sizes.values())) == sum(all_of_them)
    assert max(all_of_them) == refinement.BATCH // 4
    before, after, plain = (n.neurons[0].v_threshold for n in (network, alone, refined(None)))
    assert not torch.allclose(after, before, rtol=1e-3)
    torch.testing.assert_close(after, plain, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_the_clock_of_the_first_process_is_that_of_all(models, images, monkeypatch):
    """Others may be faster or slower: all stop at one place."""
    clocks = threading.local()

    def now():
        if not hasattr(clocks, "steps"):
            clocks.steps, clocks.pace = count(), 1.0
        return clocks.pace * next(clocks.steps)

    for module in (budget, blocks):
        monkeypatch.setattr(module, "now", now)
    for by_blocks in (False, True):
        network = converted(models[by_blocks], images)

        def tuned(world, network=network, by_blocks=by_blocks):
            clocks.steps, clocks.pace = count(), (1.0, 50.0, 0.01)[world.rank]
            given = {"seconds": 300.0, "iterations": 1000, "blocks": by_blocks}
            return sg.tune(network, images, distributed=world, **given)

        found = several(3, tuned)
        assert all(said(one) == said(found[0]) for one in found)
        assert 0 < sg.Tuning.of(found[0]).iterations < 1000 or by_blocks


@pytest.mark.parametrize("kind", ["loader", "iterable"])
def test_processes_share_what_a_loader_gives(models, images, kind):
    network, taken = converted(models[False], images), {}

    class Counted(TensorDataset):
        def __getitem__(self, index):
            who = threading.get_ident()
            taken[who] = taken.get(who, 0) + 1
            return super().__getitem__(index)

    def tuned(world):
        data = DataLoader(Counted(images), 24) if kind == "loader" else iter(images.split(24))
        return sg.tune(network, data, iterations=2, distributed=world)

    found = several(2, tuned)
    assert kind == "iterable" or list(taken.values()) == [48, 48]
    assert said(found[0]) == said(found[1])
    assert said(found[0]) == said(sg.tune(network, images, iterations=2, distributed=ALONE))


def test_processes_that_differ_stop(models, images):
    network = converted(models[False], images)
    other = converted(models[False], images, members=3)

    def refused(match, data=lambda rank: images, **options):
        def run(world):
            given = {key: value(world.rank) for key, value in options.items()}
            given = {"network": network, "iterations": 2, **given}
            with pytest.raises(sg.InputError, match=match):
                sg.tune(given.pop("network"), data(world.rank), distributed=world, **given)

        several(2, run)

    refused("the samples differs .*rank 0: 96, sha256", data=lambda rank: images[rank:] * 1.0)
    refused("the network given to tune differs", network=lambda rank: (network, other)[rank])
    refused("the options of tune differs .* seed=1", seed=lambda rank: rank)
    refused("number of batches differs", data=lambda rank: iter(images[: 72 + 24 * rank].split(24)))


def test_processes_that_round_differently_are_told_in_the_end(models, images, monkeypatch):
    network, made, odd = converted(models[False], images), shared.fingerprint, set()

    def rounded(one):
        return made(one) + ("" if one is network or threading.get_ident() not in odd else "!")

    monkeypatch.setattr(shared, "fingerprint", lambda one: rounded(one)[-16:])

    def run(world):
        odd.update([] if world.first else [threading.get_ident()])
        with pytest.raises(sg.InputError, match="the network made by tune differs"):
            sg.tune(network, images, iterations=2, distributed=world)

    several(2, run)


PROGRAM = """
import spikingjelly_signgd as sg
from test_tuning_distributed import processed

with sg.Distributed() as world:
    print("\\n".join(f"{world.size} {each}" for each in processed(world)), flush=True)
"""


def processed(world):
    """What processes of their own do, and one alone."""
    x = torch.rand(110, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model, plan = relus(), {"time_steps": 1, "members": 8}
    networks = [
        sg.tune(converted(model, x, **plan), x, iterations=4, blocks=by, distributed=world)
        for by in (False, True)
    ]
    given = {"spikes": 4, "methods": ("signgd", "group"), "iterations": 4}
    networks.append(sg.search(model, x, distributed=world, **given))
    networks.append(sg.convert(model, x, method="group", time_steps=2, distributed=world))
    return [fingerprint(network) for network in networks]


@pytest.mark.slow
def test_two_processes_of_torchrun_s():
    """Over gloo, which the tests above do without."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *torchrun, sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [f"2 {each}" for each in processed(ALONE)]
    torch.set_num_threads(threads)
    assert sorted(done.stdout.split("\n")[:-1]) == sorted(2 * expected)
