"""Some samples of a data set: which, in what order, and in how much memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from several import several
from torch.utils.data import DataLoader, Dataset, IterableDataset

from spikingjelly_signgd.core.inputs import Inputs
from spikingjelly_signgd.core.samples import LEAST, Spread, inputs_of, joined, some
from spikingjelly_signgd.errors import InputError


class Numbers(Dataset):
    """Sample i is ([i], i), and which were loaded is known."""

    def __init__(self, length):
        self.length, self.loaded = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        self.loaded.append(i)
        return torch.tensor([float(i)]), i


class Stream(IterableDataset):
    def __init__(self, size=None):
        self.size = size  # of batches, which it may make itself

    def __iter__(self):
        if self.size is not None:
            return iter(torch.arange(1000.0).reshape(-1, 1).split(self.size))
        return (torch.tensor([float(i)]) for i in range(1000))


def batches(length, size=7):
    x = torch.arange(float(length)).reshape(-1, 1)
    return [(x[i : i + size].clone(), x[i : i + size, 0].long()) for i in range(0, length, size)]


@pytest.mark.parametrize("length", [101, 1000, 4096])
def test_what_is_kept_is_spread_evenly(length):
    x, _ = some(torch.arange(float(length)), 100)
    assert len(x) == 100
    assert torch.equal(x, x.sort().values)
    between = x.diff(prepend=torch.tensor([-1.0]), append=torch.tensor([float(length)]))
    assert between.max() <= 3.0 * length / 100 + 1


@pytest.mark.parametrize("period", [2, 8, 10, 16, 100])
def test_classes_in_turn_are_kept_alike(period):
    found, _ = some(torch.arange(20_000) % period, 1000)
    counts = torch.bincount(found, minlength=period)
    assert counts.min() >= 0.8 * 1000 / period


def test_every_form_of_data_gives_the_same_samples():
    data = Numbers(1000)
    x, y = some(data, 60)
    assert len(x) == 60
    assert sorted(data.loaded) == y.tolist()  # and no other was loaded
    assert torch.equal(x[:, 0].long(), y)
    everything = torch.arange(1000.0).reshape(-1, 1)
    assert torch.equal(some(everything, 60).x, x)
    assert torch.equal(some({"x": everything}, 60).x.tensors["x"], x)
    loader = Numbers(1000)
    found = some(DataLoader(loader, 33), 60)
    assert torch.equal(found.x, x)
    assert torch.equal(found.y, y)
    assert sorted(loader.loaded) == y.tolist()
    assert torch.equal(some(iter(batches(1000)), 60).y, y)
    assert torch.equal(some(DataLoader(Stream(), 33), 60).x, x)
    assert torch.equal(some(Stream(50), 60).x, x)
    assert [len(each) for each in inputs_of(Stream(400))] == [400, 400, 200]


def test_few_samples_are_all_of_them_in_order():
    x, y = some(iter(batches(50)), 50)
    assert torch.equal(y, torch.arange(50))
    given = torch.rand(50, 2)
    assert some(given, 50).x is given
    found, y = some([{"a": given[:30]}, {"a": given[30:]}], 64)
    assert isinstance(found, Inputs)
    assert torch.equal(found.tensors["a"], given)
    assert y is None


SHAPES = [torch.zeros(2, 3), torch.zeros(2, 4)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3, "not int"),
        ([], "no sample"),
        ([torch.zeros(0, 3)], "no sample"),
        ([(1, 2, 3)], "3 values"),
        (SHAPES, r"some are \[\[3\]\] and others \[\[4\]\]"),
    ],
)
def test_what_is_no_data_is_an_error(data, says):
    with pytest.raises(InputError, match=says):
        some(data, 3)


def test_the_memory_of_what_is_left_out_is_free():
    alive = weakref.WeakSet()
    most = 0
    spread = Spread(64)
    for number in range(100):
        x = torch.full((10, 3), float(number))
        alive.add(x)
        spread.add(number, x)
        most = max(most, len(alive))
        assert sum(map(len, (spread.whole or {}).values())) + len(spread.single) <= 64
        del x
    assert most <= 8  # batches, 64 samples and one more batch
    assert len(joined(spread.batches())) == 64


def test_large_samples_are_fewer():
    spread = Spread(4096, size=100 * 4)
    for number in range(20):
        spread.add(number, torch.rand(50, 1))
    assert sum(map(len, spread.batches())) == 100
    spread = Spread(4096, size=100)
    spread.add(0, torch.rand(1000, 50))
    assert sum(map(len, spread.batches())) == LEAST


@pytest.mark.parametrize("length", [60, 64, 65, 500])
def test_processes_keep_what_one_keeps(length):
    given = [x for x, _ in batches(length)]

    def kept(world):
        spread = Spread(64)
        spread.begin(given[0])
        for number, batch in enumerate(given):
            if world.mine(number):
                spread.add(number, batch)
        spread.gather(world)
        return spread.batches()

    alone = several(1, kept)[0]
    for each in [*several(2, kept), *several(3, kept)]:
        assert len(each) == len(alone)
        assert all(map(torch.equal, each, alone))
