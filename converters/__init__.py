"""From a trained model to a SpikingNetwork: capture, passes, calibration, planning."""

from .comparison import FunctionsReport, FunctionsRow, compare_functions
from .conversion import CheckReport, check, convert
from .lowering import Coverage
from .planning import LevelsWarning, SaturationWarning, default_schedule
from .rules import NEURONS, NotConvertible, Rule
from .searching import allocate, search
from .tuning import Tuning, tune

__all__ = [
    "NEURONS",
    "CheckReport",
    "Coverage",
    "FunctionsReport",
    "FunctionsRow",
    "LevelsWarning",
    "NotConvertible",
    "Rule",
    "SaturationWarning",
    "Tuning",
    "allocate",
    "check",
    "compare_functions",
    "convert",
    "default_schedule",
    "search",
    "tune",
]
