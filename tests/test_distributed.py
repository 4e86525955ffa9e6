"""Several processes: what they tell each other, and how batches are dealt to them."""

import threading
import time

import pytest
import torch
from several import several
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import faults
from spikingjelly_signgd.core.dealing import batches, deal
from spikingjelly_signgd.core.distributed import ALONE, Distributed, together

X = torch.arange(11.0)


def test_alone():
    with sg.Distributed() as world:
        for one in (world, ALONE):
            assert (one.rank, one.size, one.first, one.mine(5)) == (0, 1, True, True)
            assert one.gather("x") == ["x"] and one.broadcast("x") == "x"
            assert one.in_order({3: "c", 1: "a"}) == ["a", "c"]
            one.agree("the network", "x")
            one.post("said")
            assert one.posted() == ["said"] and one.posted() == []


def test_what_several_tell_each_other():
    def told(world):
        world.post(f"from {world.rank}")
        gathered = world.gather({"x": torch.full((world.rank,), 7.0)})
        same = world.gather(torch.full((2,), world.rank))
        mixed = world.gather(torch.ones(1) if world.first else "text")
        ordered = world.in_order({number: number for number in range(7) if world.mine(number)})
        posted = world.posted() if world.first else None
        return gathered, same, mixed, ordered, world.broadcast(world.rank), posted

    for rank, (gathered, same, mixed, ordered, first, posted) in enumerate(several(3, told)):
        assert [len(each["x"]) for each in gathered] == [0, 1, 2]
        assert [each.tolist() for each in same] == [[0, 0], [1, 1], [2, 2]]
        assert (mixed[0].tolist(), *mixed[1:]) == ([1.0], "text", "text")
        assert ordered == list(range(7)) and first == 0
        assert rank or posted == ["from 0", "from 1", "from 2"]


def test_what_fails_on_one_fails_on_all_and_they_go_on_in_step():
    """Whatever the others are about to exchange; one that is at work looks."""

    def gather(world):
        return world.gather(torch.ones(2))

    def look(world):
        while True:
            time.sleep(0.01)
            world.look()

    for work in (gather, lambda world: world.broadcast("x"), look, lambda world: None):
        for failing in range(3):

            @together
            def one(*, distributed):
                if distributed.rank == failing:  # noqa: B023
                    raise sg.FormatError("broken")
                work(distributed)  # noqa: B023

            def told(world):
                with pytest.raises(sg.FormatError) as error:
                    one(distributed=world)  # noqa: B023
                world.look()
                return str(error.value), world.gather(world.rank)

            for rank, (error, ranks) in enumerate(several(3, told)):
                assert error == ("broken" if rank == failing else f"rank {failing}: broken")
                assert ranks == [0, 1, 2]


def test_processes_at_different_places():
    with pytest.raises(sg.InputError, match="not at the same place.*rank 0: a; rank 1: b"):
        several(2, lambda world: world.agree("ab"[world.rank], "x"))


def test_what_several_must_agree_on():
    def refused(world):
        with pytest.raises(sg.InputError, match="threads differs .* .rank 0, 1: 1; rank 2: 2"):
            world.agree("threads", str(1 + world.rank // 2))
        with pytest.raises(sg.InputError, match="same number"):
            world.in_order({0: "mine"})

    several(3, refused)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("RANK", "one", "RANK must be an integer"),
        ("RANK", "3", "RANK 3, but WORLD_SIZE 1"),
        ("WORLD_SIZE", "0", "RANK 0, but WORLD_SIZE 0"),
        ("WORLD_SIZE", "2", "RANK and MASTER_ADDR and MASTER_PORT is not set"),
    ],
)
def test_an_environment_that_is_not_torchruns(name, value, text, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(sg.InputError, match=text), sg.Distributed():
        pass


def test_a_group_that_is_there(monkeypatch):
    """Made with rank= and world_size=, of which the environment says nothing."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    world = sg.Distributed(device="cpu")
    assert (world.rank, world.size, world.first) == (1, 2, False)


def test_used_within_itself():
    with (
        sg.Distributed(threads=1) as world,
        pytest.raises(sg.InputError, match="already entered"),
        world,
    ):
        pass
    with world:
        pass


def test_not_connected(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(sg.InputError, match="with sg.Distributed"):
        sg.Distributed().gather(1)


def test_threads_come_back(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    before = torch.get_num_threads()
    for threads in (None, 2):
        with sg.Distributed(threads=threads):
            assert torch.get_num_threads() == (threads or 1)
        assert torch.get_num_threads() == before


# -- batches --------------------------------------------------------------------------------------

LOADERS = {
    "tensor": lambda: batches(X, 3),
    "dataset": lambda: batches(TensorDataset(X), 3),
    "loader": lambda: DataLoader(TensorDataset(X), 3),
    "list": lambda: [X[:5], X[5:6], X[6:]],
    "generator": lambda: (X[i : i + 4] for i in range(0, 11, 4)),
    "shuffled": lambda: DataLoader(
        TensorDataset(X), 3, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
}


def values(batch):
    return (batch[0] if isinstance(batch, (tuple, list)) else batch).tolist()


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_batch_is_dealt_once_and_whole(kind, size):
    whole = dict(enumerate(map(values, LOADERS[kind]())))
    dealt = several(size, lambda world: [*deal(LOADERS[kind](), world)])
    found = {number: values(batch) for share in dealt for number, batch in share}
    assert found == whole and sum(map(len, dealt)) == len(whole)
    left = several(size, lambda world: [*deal(LOADERS[kind](), world, done={1, 2})])
    found = {number: values(batch) for share in left for number, batch in share}
    assert found == {n: batch for n, batch in whole.items() if n not in (1, 2)}


def test_batches_of_several_inputs():
    found = list(batches({"a": X, "b": X + 1}, 4))
    assert [len(each["a"]) for each in found] == [4, 4, 3]
    assert all((each["b"] - each["a"]).eq(1).all() for each in found)


def test_a_shuffling_loader_is_the_same_for_every_number():
    def first(size):
        torch.manual_seed(5)
        loader = DataLoader(TensorDataset(X), 3, shuffle=True)
        return dict(
            pair for share in several(size, lambda world: [*deal(loader, world)]) for pair in share
        )

    assert {n: values(b) for n, b in first(1).items()} == {
        n: values(b) for n, b in first(3).items()
    }


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_dealing_draws_as_many_random_numbers_as_a_loader(rank, generator, monkeypatch):
    def after(go_through):
        torch.manual_seed(5)
        if generator is not None:
            generator.manual_seed(6)
        go_through(DataLoader(TensorDataset(X), 3, shuffle=True, generator=generator))
        return torch.rand(1), None if generator is None else torch.rand(1, generator=generator)

    world = Distributed.__new__(Distributed)._place(rank, 2)
    monkeypatch.setattr(world, "broadcast", lambda value: value or [[0, 1], [2, 3]])
    assert after(list) == after(lambda loader: list(deal(loader, world)))


def test_a_process_loads_only_its_own():
    class Counting(TensorDataset):
        loaded = 0

        def __getitem__(self, index):
            self.loaded += 1
            return super().__getitem__(index)

    def count(world):
        data = Counting(X)
        return sum(1 for _ in deal(DataLoader(data, 3), world)), data.loaded

    assert several(2, count) == [(2, 6), (2, 5)]


def test_what_cannot_be_dealt():
    data = TensorDataset(X)

    def sharded(world):
        sampler = DistributedSampler(data, num_replicas=2, rank=world.rank)
        list(deal(DataLoader(data, 3, sampler=sampler), world))

    with pytest.raises(sg.InputError, match="DistributedSampler.*whole data set"):
        several(2, sharded)
    with pytest.raises(sg.InputError, match="number of batches differs"):
        several(2, lambda world: list(deal([X] * (world.rank + 2), world)))
    for data in ([X, X + 1], [(X, X)], [{"a": X}]):
        # such as one that shuffles by the seed of its process
        with pytest.raises(sg.InputError, match="first batch of the data, .* in the same order"):
            several(2, lambda world, data=data: list(deal(data if world.first else [X + 1], world)))
    with pytest.raises(sg.InputError, match="first batch of the data.*rank 0: none"):
        several(2, lambda world: list(deal([X] * world.rank, world)))


def test_who_leaves_while_others_wait_is_named(monkeypatch):
    """All processes meet in every exchange; one that left before it never comes."""
    ended = []
    monkeypatch.setattr(faults, "BEAT", 0.01)
    monkeypatch.setattr(faults, "GRACE", 0.01)
    monkeypatch.setattr(faults, "end", ended.append)
    store = torch.distributed.HashStore()
    first, second = faults.Watch(store, 0, 2), faults.Watch(store, 1, 2)
    with first.waiting(), second.waiting():
        pass
    leaving = threading.Thread(target=second.goodbye)
    leaving.start()
    deadline = time.monotonic() + 10
    while not store.check(["done/1"]):
        time.sleep(0.01)
    time.sleep(0.05)
    assert not ended, "nobody waits"
    with first.waiting():
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended[0].startswith("rank 1: left the block")
    store.set("done/0", "1")
    leaving.join(10)
    for watch in first, second:
        watch._stop()


def test_an_error_that_is_no_text_is_told():
    """As of a file whose name is no UTF-8."""
    store = torch.distributed.HashStore()
    watch = faults.Watch(store, 0, 1)
    watch.tell(OSError("cannot read caf\udce9.jpg"))
    assert store.get("error").decode() == r"rank 0: OSError: cannot read caf\udce9.jpg"


def test_the_end_where_nobody_reads(monkeypatch):
    """Standard error may be a pipe whose reader is gone, or closed."""

    def gone(stream, text):
        raise BrokenPipeError

    ended = []
    monkeypatch.setattr(faults.os, "write", gone)
    monkeypatch.setattr(faults.os, "_exit", ended.append)
    faults.end("rank 1: killed")
    assert ended == [1]
