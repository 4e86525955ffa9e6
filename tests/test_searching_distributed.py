"""Searching by several processes: trials are dealt, and the network is that of one process."""

from __future__ import annotations

import threading

import pytest
import torch
from several import several
from test_tuning import Small
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import allocate, conversion, mixing, searching, tuning
from spikingjelly_signgd.converters.fine_tuning import fingerprint
from spikingjelly_signgd.core.distributed import ALONE


@pytest.fixture(scope="module")
def images():
    return torch.rand(110, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def captured(make, images, monkeypatch):
    """The model, captured beforehand: torch.export is of one thread."""
    model = make()
    program = conversion.capture(model, images[:4])
    monkeypatch.setattr(conversion, "capture", lambda *_: program)
    return model


def gelus():
    torch.manual_seed(0)
    return Small().eval()


def relus():
    torch.manual_seed(2)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 12)
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(12, 5)).eval()


class Branches(nn.Module):
    """The first is worth more members than the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, x):
        x = x.flatten(1)
        return self.a(x).relu() + 1e-3 * self.b(x).relu()


MIXED = ("signgd", "group")


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        pytest.param(gelus, {"additions": 1.7}, marks=pytest.mark.slow),
        pytest.param(gelus, {"agreement": 0.4, "dead_zone": 0}, marks=pytest.mark.slow),
        (relus, {"spikes": 4, "methods": MIXED}),
    ],
    ids=["additions", "agreement", "mixed"],
)
def test_any_number_of_processes_finds_the_same_network(images, make, asked, monkeypatch):
    model = captured(make, images, monkeypatch)

    def found(world):
        return sg.search(model, images, iterations=4, distributed=world, **asked)

    def said(network):
        return fingerprint(network), network.provenance["search"], network.provenance["tuning"]

    networks = [found(ALONE), *several(2, found), *several(3, found)]
    assert all(said(one) == said(networks[0]) for one in networks)
    plain = sg.search(model, images, iterations=4, **asked).provenance["search"]
    for mine, theirs in zip(networks[0].provenance["search"]["tried"], plain["tried"], strict=True):
        assert mine["error"] == pytest.approx(theirs["error"], rel=0.1)


def test_trials_are_dealt(images, monkeypatch):
    """Of the four splits of a budget two are tried by each of two processes; likewise choices."""
    model, tried = captured(relus, images, monkeypatch), {"tune": [], "fitted": []}
    tune, fitted = tuning.tuned, mixing.Choices._fitted

    def watched(*given, **options):
        if options["iterations"] == 3 and "distributed" not in options:
            tried["tune"].append(threading.get_ident())
        return tune(*given, **options)

    def watched_choice(self, *given):
        tried["fitted"].append(threading.get_ident())
        return fitted(self, *given)

    monkeypatch.setattr(searching, "QUICK", 3)
    monkeypatch.setattr(searching, "tuned", watched)
    monkeypatch.setattr(mixing.Choices, "_fitted", watched_choice)
    given = {"spikes": 8, "methods": MIXED, "iterations": 5}
    several(2, lambda world: sg.search(model, images, distributed=world, **given))
    assert len(tried["tune"]) == 4
    for who in tried.values():
        first, second = (who.count(one) for one in set(who))
        assert first == second


def test_members_are_exchanged_alike(images):
    network = sg.convert(Branches().eval(), images, time_steps=2, members=3, tune=False)
    expected = allocate(network, images)
    assert fingerprint(expected) != fingerprint(network)
    for found in several(3, lambda world: allocate(network, images, distributed=world)):
        assert fingerprint(found) == fingerprint(expected)
