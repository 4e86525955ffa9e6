"""The objective of tuning: L = E + w A, the squared relative error of the outputs plus w times the
additions per multiply-accumulate of the source."""

from __future__ import annotations

import math

from ..errors import InputError

# w of "additions": about 99 % agreement of the example networks
OBJECTIVES: dict[str, float] = {"error": 0.0, "additions": 0.008}


def weight_of(objective: str | float) -> float:
    """w. Raises InputError."""
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective]
    number = isinstance(objective, (int, float)) and not isinstance(objective, bool)
    if not number or not 0 <= float(objective) < math.inf:
        names = " or ".join(map(repr, OBJECTIVES))
        raise InputError(
            f"objective is {names}, or a weight of at least 0, the squared relative error that "
            "one addition per multiply-accumulate of the source is worth, but it is "
            f"{objective!r}."
        )
    return float(objective)
