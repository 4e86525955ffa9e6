"""From a trained model to a SpikingNetwork: capture, passes, calibration, planning."""

from .conversion import CheckReport, check, convert
from .lowering import Coverage
from .planning import LevelsWarning, SaturationWarning, default_schedule
from .rules import NEURONS, NotConvertible, Rule

__all__ = [
    "NEURONS",
    "CheckReport",
    "Coverage",
    "LevelsWarning",
    "NotConvertible",
    "Rule",
    "SaturationWarning",
    "check",
    "convert",
    "default_schedule",
]
