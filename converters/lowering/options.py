"""What a conversion chooses for compound operations, and a row of the report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InputError


@dataclass(frozen=True)
class Coverage:
    """What one operation of the source network becomes: a row of the report."""

    path: str  # module path
    operation: str  # aten.gelu.default
    module: str  # torch.nn.GELU
    becomes: str  # "linear" | "neuron" | "exact" | "constant" | "unsupported"
    detail: str = ""  # the neuron functions, or why not
    fix: str = ""

    @property
    def mend(self) -> str:
        """The older name of ``fix``."""
        warnings.warn("Coverage.mend is called fix now.", DeprecationWarning, stacklevel=2)
        return self.fix


COMPOUND = ("max_pool", "norm", "softmax", "matmul", "attention")


FORMS = ("whole", "local")


Forms = str | Mapping[str, str]


def forms(wanted: Forms, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The form of each compound operation; a mapping changes ``base``, by default "whole".

    Raises InputError for other names.
    """
    if isinstance(wanted, str):
        wanted = dict.fromkeys(COMPOUND, wanted)
    if not isinstance(wanted, Mapping):
        raise InputError(
            f"forms is one of {', '.join(FORMS)}, or a dict from {', '.join(COMPOUND)} to "
            f"these, but it is {wanted!r}."
        )
    for name, form in wanted.items():
        if name not in COMPOUND:
            raise InputError(f"forms has an entry for {name!r}; known are {', '.join(COMPOUND)}.")
        if form not in FORMS:
            raise InputError(f"forms is one of {', '.join(FORMS)}, but it is {form!r}.")
    return {**dict.fromkeys(COMPOUND, "whole"), **(base or {}), **wanted}


@dataclass(frozen=True)
class Options:
    """``forms`` "whole": one neuron for an output of max pooling, a norm, softmax, a product of
    two values, and attention (softmax and both products at once, where these are whole too).

    "local": the published decompositions into neurons of one and two arguments. A mapping chooses
    for each of ``COMPOUND``. ``guard`` keeps x / sqrt(y) finite while a decoded y is below the
    norm's eps, and exp(x - max) below 1.
    """

    forms: Forms = "whole"
    guard: bool = True

    def whole(self, compound: str) -> bool:
        return forms(self.forms)[compound] == "whole"
