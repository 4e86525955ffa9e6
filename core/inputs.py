"""The inputs of a network: one tensor, or several by the names of the model's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

KINDS = ("float", "integer", "boolean")  # of an input's numbers


def kind_of(dtype: torch.dtype) -> str:
    """Of ``KINDS``."""
    if dtype == torch.bool:
        return "boolean"
    return "float" if dtype.is_floating_point else "integer"


class Inputs:
    """A batch of several tensors by name, each [B, ...], of a sequence [T, B, ...].

    Users write a dict of keyword arguments. Where batches are handled it is like a tensor: it has a
    length (B), is indexed by samples, split, moved, and joined by ``torch.cat``. ``exact`` holds
    what a network computes of whole numbers alone (``NetworkModule.check_input``), which
    ``compute`` computes again for some of the samples.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.tensors = dict(tensors)
        self.exact = None if exact is None else dict(exact)
        self.compute = compute

    def __getitem__(self, index: Any) -> Inputs:
        """Some samples."""
        return self._other({name: x[index] for name, x in self.tensors.items()})

    def _other(self, tensors: Mapping[str, Tensor]) -> Inputs:
        return Inputs(tensors, None, self.compute)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __repr__(self) -> str:
        shown = (f"{name} {list(x.shape)}" for name, x in self.tensors.items())
        return f"Inputs({', '.join(shown)})"

    def value(self, name: str) -> Tensor:
        """Of an input, or of what is computed of them exactly."""
        found = self.tensors.get(name)
        if found is None:
            if self.exact is None:
                assert self.compute is not None
                self.exact = dict(self.compute(self))
            found = self.exact[name]
        return found

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def element_size(self) -> int:
        """Bytes of the widest value."""
        return max(x.element_size() for x in [*self.tensors.values(), *(self.exact or {}).values()])

    @property
    def floats(self) -> list[Tensor]:
        return [x for x in self.tensors.values() if x.is_floating_point()]

    def of_step(self, t: int) -> Inputs:
        """One step of a sequence, [B, ...]; what is exact is the same at every step."""
        return Inputs({name: x[t] for name, x in self.tensors.items()}, self.exact, self.compute)

    def steps(self, start: int, stop: int) -> Inputs:
        """Steps of a sequence, [stop - start, B, ...]."""
        return Inputs(
            {name: x[start:stop] for name, x in self.tensors.items()}, self.exact, self.compute
        )

    def index_select(self, dim: int, index: Tensor) -> Inputs:
        return self._other({name: x.index_select(dim, index) for name, x in self.tensors.items()})

    def split(self, size: int) -> tuple[Inputs, ...]:
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def clone(self) -> Inputs:
        return Inputs(
            {name: x.clone() for name, x in self.tensors.items()}, self.exact, self.compute
        )

    def detach(self) -> Inputs:
        return self

    def requires_grad_(self) -> Inputs:
        """With gradients of all that is floating-point, also of what ids look up."""

        def watched(x: Tensor) -> Tensor:
            return x.detach().clone().requires_grad_() if x.is_floating_point() else x

        exact = None if self.exact is None else {k: watched(x) for k, x in self.exact.items()}
        tensors = {name: watched(x) for name, x in self.tensors.items()}
        return Inputs(tensors, exact, self.compute)

    def to(self, *where: Any) -> Inputs:
        """Moved; only floating-point tensors take another floating-point type."""

        def moved(x: Tensor) -> Tensor:
            given = [w for w in where if x.is_floating_point() or not isinstance(w, torch.dtype)]
            return x.to(*given) if given else x

        exact = None if self.exact is None else {k: moved(x) for k, x in self.exact.items()}
        return Inputs({name: moved(x) for name, x in self.tensors.items()}, exact, self.compute)

    def cpu(self) -> Inputs:
        return self.to("cpu")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Inputs:
        """``torch.cat`` of batches, and nothing else."""
        if function is not torch.cat or kwargs or len(args) != 1:
            return NotImplemented
        names = args[0][0].tensors
        return cls({name: torch.cat([x.tensors[name] for x in args[0]]) for name in names})


Compute = Callable[[Inputs], Mapping[str, Tensor]]
Batch = Tensor | Inputs


def tensor_of(x: Any) -> Any:
    """A NumPy array, or what makes itself one, as a tensor, float64 as torch's default type, since
    NumPy computes in it unless asked; anything else as it is."""
    if isinstance(x, Tensor) or not hasattr(x, "__array__"):
        return x
    array = x.__array__()
    try:
        tensor = torch.as_tensor(array if array.flags.writeable else array.copy())
    except TypeError as error:
        raise InputError(f"an array of {array.dtype} is not a tensor: {error}") from error
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def batch_of(x: Any) -> Any:
    """A dict of keyword arguments as ``Inputs``, an array as a tensor; anything else as it is."""
    if isinstance(x, Mapping):
        return Inputs({name: tensor_of(value) for name, value in x.items()})
    return tensor_of(x)


def samples_of(x: Batch, leading: int = 0) -> int:
    """B; ``leading`` is 1 for a sequence [T, B, ...]."""
    if isinstance(x, Inputs):
        return next(iter(x.tensors.values())).shape[leading]
    return x.shape[leading]


def value_of(x: Batch, name: str) -> Tensor:
    """The tensor of the input ``name``; of a network that takes one tensor that one."""
    return x.value(name) if isinstance(x, Inputs) else x


def call(model: Any, x: Any) -> Any:
    """A model on a batch: its one argument, or keyword arguments by name."""
    x = batch_of(x)
    return model(**x.tensors) if isinstance(x, Inputs) else model(x)
