"""Several processes that compute one result: ``torchrun``'s, over gloo on CPUs and nccl on GPUs."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from ..errors import InputError, SignGDError
from .faults import Watch

if TYPE_CHECKING:
    from torch.distributed import Store

RENDEZVOUS = timedelta(minutes=10)  # for the processes of all machines to come
# a collective may wait as long as another process computes: faults are found by the watch
COLLECTIVE = timedelta(days=7)
PIECE = 2**20  # characters of a text in one entry of the store, which takes 8 MiB
Function = TypeVar("Function", bound=Callable[..., Any])
_entered = itertools.count()  # how often in this process; a name of its own in the store for each


class Distributed:
    """The processes that ``torchrun`` started; without it one process alone. ::

        with sg.Distributed() as world:
            table = sg.evaluate(snn, loader, distributed=world)
            if world.first:
                print(table)

    Every process runs the same lines, and all get the same results. ``rank`` of ``size`` is this
    one, ``first`` is rank 0, ``device`` where it computes: its own GPU (``local_rank``) where there
    are some, else the CPU; ``device="cpu"`` leaves GPUs alone. ``threads`` are torch's within the
    block, by default 1 where torchrun started the process: last bits depend on them, and so every
    number of processes gives the same ones. The group is made by the environment (``RANK``,
    ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``). Where torch.distributed has a
    group, as in a script that trains with DDP, the processes are those of the group, which is left
    as it is: exchanges go over one of their own.

    What takes ``distributed=`` fails on all processes where it fails on one: the others raise its
    error with the rank, and a script that catches it goes on in all of them. An exception that
    leaves the block on one process is printed by the others, which end with code
    1, and so do all within half a minute when one is killed, is stopped or loses its machine.
    Raises InputError where the environment is incomplete or there are fewer GPUs than processes.
    """

    def __init__(
        self, *, threads: int | None = None, device: str | torch.device | None = None
    ) -> None:
        rank, size = _rank_and_size()
        if threads is None and ("RANK" in os.environ or size > 1):
            threads = 1
        self._place(rank, size, threads)
        self.local_rank = _variable("LOCAL_RANK", self.rank)
        self.device = _device(self.local_rank) if device is None else torch.device(device)

    def _place(self, rank: int, size: int, threads: int | None = None) -> Self:
        self.rank, self.size, self.local_rank = rank, size, rank
        self.device = torch.device("cpu")
        self._threads = threads
        self._threads_before: int | None = None
        self._watch: Watch | None = None
        self._store: Store | None = None
        self._owns_group, self._inside = False, False
        self._group: Any = None  # beside a group that was there; None is the one of our own
        self._own_posts: list[str] = []
        self._sent, self._read = 0, [0] * size
        self._together, self._begun, self._in_step = False, 0, True
        return self

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Self:
        if self._inside:
            raise InputError(
                "this sg.Distributed is already entered; use one with block, or create another one."
            )
        if self.size > 1:
            self._connect()
        self._inside = True
        if self._threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
        return self

    def _connect(self) -> None:
        import torch.distributed as dist

        needed = [*([] if dist.is_initialized() else ["RANK"]), "MASTER_ADDR", "MASTER_PORT"]
        missing = [name for name in needed if name not in os.environ]
        if missing:
            raise InputError(
                f"there are {self.size} processes, but {' and '.join(missing)} is not set; start "
                "the program with torchrun, or set the rank and the address of rank 0."
            )
        name = f"signgd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_entered)}"
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            store, _, _ = next(dist.rendezvous("env://", timeout=RENDEZVOUS))
        address, port = os.environ["MASTER_ADDR"], _variable("MASTER_PORT", 0)
        # connections of our own: the group's may wait, and would hold up who asks beside it
        watched, posts = (
            dist.PrefixStore(
                name, dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
            )
            for _ in range(2)
        )
        self._store, self._watch = posts, Watch(watched, self.rank, self.size)
        # plain data go over gloo on GPUs, too
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if not self._owns_group:  # its own time limit is for steps that take equally long on all
            self._group = dist.new_group(backend=backend, timeout=COLLECTIVE)
            return
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"{name}/group", store),
            rank=self.rank,
            world_size=self.size,
            timeout=COLLECTIVE,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside = False
        if self._watch is not None:
            self._leave(self._watch, error)
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)

    def _leave(self, watch: Watch, error: BaseException | None) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            try:
                watch.goodbye()
            except BaseException as interruption:
                watch.tell(interruption)
                raise
        else:
            watch.tell(error)  # and leaves the group as it is, which may be in a collective
            return
        self._watch = self._store = None
        torch.distributed.destroy_process_group(self._group)  # None is all
        self._group = None

    # -- what fails on one fails on all ------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do together: where it fails on one of them, that one raises its error,
        and the others raise it at their next exchange or ``look``; so that all leave it in step."""
        if self.size == 1 or self._together:
            yield
            return
        self._together, self._in_step = True, True
        self._begun += 1
        try:
            yield
            self._met(None)
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._together = False

    def look(self) -> None:
        """Raises the error of a process that failed in what all do ``together``, if one did; does
        not wait."""
        if self._together and self._store is not None and self._store.check([self._failed]):
            self._met(None)

    @property
    def _failed(self) -> str:
        return f"failed/{self._begun}"

    def _met(self, value: Any) -> list[Any]:
        """Plain data of all processes. Raises the error of one that failed before it came here."""
        self._in_step = False  # where this raises, the others know or are gone
        found = self._all(value)
        for rank, each in enumerate(found):
            if isinstance(each, _Failure):
                raise each.kind(f"rank {rank}: {each.text}")
        self._in_step = True
        return found

    def _fail(self, error: Exception) -> None:
        if not self._in_step or self._store is None:
            return
        self._store.set(self._failed, "")
        with suppress(RuntimeError):  # of torch.distributed: another process is gone
            self._all(_Failure.of(error))

    # -- what the processes tell each other --------------------------------------------------------

    def mine(self, number: int) -> bool:
        """Whether the piece of work ``number`` is this process's: pieces are assigned in turn."""
        return number % self.size == self.rank

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, on all of them.

        Tensors may differ in shape; those on a GPU come back on this process's own.
        """
        if self.size == 1:
            return [value]
        found = self._met(_Kind.of(value) or _packed(value))
        kinds = {each for each in found if isinstance(each, _Kind)}
        if len(kinds) == 1 and all(isinstance(each, _Kind) for each in found):
            return self._all_tensors(value)
        if kinds:
            found = self._all(_packed(value))
        return [self._unpacked(each) for each in found]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all processes; what the others pass is not looked at."""
        if self.size == 1:
            return value
        packed = _packed(value) if self.first else None
        self._met(None)
        found = self._firsts(packed)
        return value if self.first else self._unpacked(found)

    def in_order(self, found: Mapping[int, Any]) -> list[Any]:
        """The values of all processes by number, in order of number, on all processes.

        Raises InputError where two processes hold the same number.
        """
        parts = self.gather(dict(found))
        merged = {number: value for part in parts for number, value in part.items()}
        if len(merged) != sum(map(len, parts)):
            raise InputError(
                "two processes have a result with the same number; numbers must be unique."
            )
        return [merged[number] for number in sorted(merged)]

    def agree(self, what: str, value: str) -> None:
        """Raises InputError on all processes, with the value of each rank, if ``value`` differs."""
        found = self.gather((what, value))
        if len({asked for asked, _ in found}) > 1:
            shown = "; ".join(f"rank {rank}: {asked}" for rank, (asked, _) in enumerate(found))
            raise InputError(
                f"the processes are not at the same place, but compare different things ({shown}). "
                "All of them run the same lines, also after an error that a script catches."
            )
        values = [value for _, value in found]
        if len(set(values)) > 1:
            shown = "; ".join(
                f"rank {', '.join(str(r) for r, v in enumerate(values) if v == each)}: {each}"
                for each in dict.fromkeys(values)
            )
            raise InputError(
                f"{what} differs between the processes ({shown}); "
                "start all processes with the same one."
            )

    def post(self, text: str) -> None:
        """Hands ``text`` to rank 0, which reads it by ``posted`` soon after; no process waits."""
        if self._store is None or self.first:
            self._own_posts.append(text)
            return
        key = f"post/{self.rank}/{self._sent}"
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{key}/{number}", piece)
        self._store.set(key, str(len(pieces)))  # the last: then all of it is there
        self._sent += 1

    def posted(self) -> list[str]:
        """On rank 0, what all processes posted since the last call; of each in its order."""
        found, self._own_posts = self._own_posts, []
        for rank in range(1, self.size):
            assert self._store is not None
            while self._store.check([key := f"post/{rank}/{self._read[rank]}"]):
                pieces = [f"{key}/{number}" for number in range(int(self._taken(key)))]
                found.append("".join(map(self._taken, pieces)))
                self._read[rank] += 1
        return found

    def _taken(self, key: str) -> str:
        assert self._store is not None
        text = self._store.get(key).decode()
        self._store.delete_key(key)
        return text

    def _all(self, value: Any) -> list[Any]:
        """Plain data of all processes."""
        found: list[Any] = [None] * self.size
        with self._joined().waiting():
            torch.distributed.all_gather_object(found, value, group=self._group)
        return found

    def _all_tensors(self, value: Tensor) -> list[Tensor]:
        """Tensors of one kind; as bytes, which every backend takes of every type."""
        if not value.numel():
            return [value.clone() for _ in range(self.size)]
        mine = value.detach().contiguous().reshape(-1).view(torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._joined().waiting():
            torch.distributed.all_gather(found, mine, group=self._group)
        return [each.view(value.dtype).reshape(value.shape) for each in found]

    def _firsts(self, value: Any) -> Any:
        found = [value]
        with self._joined().waiting():
            torch.distributed.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def _joined(self) -> Watch:
        if self._watch is None:
            raise InputError(
                "the processes are not connected; call this inside of "
                "`with sg.Distributed() as world:`."
            )
        return self._watch

    def _unpacked(self, data: bytes) -> Any:
        def place(storage: Any, location: str) -> Any:
            of_gpu = location != "cpu" and self.device.type == "cuda"
            return storage.cuda(self.device.index) if of_gpu else storage

        # of our own processes, not of a file
        return torch.load(io.BytesIO(data), map_location=place, weights_only=False)


def together(function: Function) -> Function:
    """A function with ``distributed=`` that fails on all processes where it fails on one."""

    @wraps(function)
    def called(*given: Any, **options: Any) -> Any:
        with (options.get("distributed") or ALONE).together():
            return function(*given, **options)

    return called  # type: ignore[return-value]


class _Failure(NamedTuple):
    """An error of one process, as the others raise it."""

    kind: type[SignGDError]
    text: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        """Of our own errors those that every process can make; of others the text says which."""
        kinds = (k for k in type(error).__mro__ if k.__module__ == SignGDError.__module__)
        if (kind := next(kinds, None)) is not None:
            return cls(kind, str(error))
        return cls(SignGDError, f"{type(error).__name__}: {error}")


class _Kind(tuple[Any, ...]):
    """Shape, type and kind of device of a tensor: where all are equal they travel as they are."""

    @classmethod
    def of(cls, value: Any) -> _Kind | None:
        plain = isinstance(value, Tensor) and value.layout == torch.strided
        return cls((tuple(value.shape), value.dtype, value.device.type)) if plain else None


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _rank_and_size() -> tuple[int, int]:
    """Of the process group where there is one, which knows better than the environment."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, size = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    if rank >= size:
        raise InputError(
            f"the environment has RANK {rank}, but WORLD_SIZE {size}; start several processes "
            "with torchrun, or unset RANK."
        )
    return rank, size


def _variable(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdigit():
        raise InputError(f"the environment variable {name} must be an integer, but it is {text!r}.")
    return int(text)


def _device(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        return torch.device("cpu")
    if local_rank >= gpus:
        raise InputError(
            f"process {local_rank} of this machine has no GPU of its own: there are {gpus}; start "
            f"at most {gpus} here (--nproc-per-node {gpus}), set LOCAL_RANK if another launcher "
            'did not, or pass device="cpu".'
        )
    return torch.device("cuda", local_rank)


# one process, whatever the environment says: for ``distributed or ALONE``
ALONE = Distributed.__new__(Distributed)._place(0, 1)
