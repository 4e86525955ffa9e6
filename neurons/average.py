"""The running mean over the steps so far: decodes what rate-coded neurons send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import Factor, Node, Value

MEAN = Factor("the number of steps")


@dataclass(frozen=True, eq=False, kw_only=True)
class Average(Node):
    """The running mean over the steps so far: decodes what rate-coded neurons send."""

    kind = "average"

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.average(self, inputs)  # type: ignore[no-any-return]
