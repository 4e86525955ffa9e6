"""From a trained model to a SpikingNetwork: capture, passes, calibration, planning."""

from .conversion import CheckReport, check, convert
from .lowering import Coverage
from .planning import default_schedule
from .rules import NEURONS, NotConvertible, Rule

__all__ = [
    "NEURONS",
    "CheckReport",
    "Coverage",
    "NotConvertible",
    "Rule",
    "check",
    "convert",
    "default_schedule",
]
