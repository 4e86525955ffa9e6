"""From a trained model to a SpikingNetwork: capture, passes, calibration, planning."""

from .clips import Motion
from .comparison import FunctionsReport, FunctionsRow, compare_functions
from .conversion import CheckReport, check, convert
from .fine_tuning import FineTuned, fine_tune
from .lowering import Coverage
from .passes import PASSES, Pass
from .planning import (
    METHODS,
    CalibrationWarning,
    Layer,
    LevelsWarning,
    Method,
    PlanWarning,
    SaturationWarning,
    default_schedule,
)
from .rules import NEURONS, NotConvertible, Rule
from .searching import allocate, search
from .settings import Context, Settings
from .sources import Preprocessing, Source, load_source, preprocessing
from .tuning import Tuning, tune

__all__ = [
    "METHODS",
    "NEURONS",
    "PASSES",
    "CheckReport",
    "Context",
    "Coverage",
    "FineTuned",
    "FunctionsReport",
    "FunctionsRow",
    "Layer",
    "LevelsWarning",
    "Method",
    "Motion",
    "NotConvertible",
    "Pass",
    "Preprocessing",
    "Rule",
    "CalibrationWarning",
    "PlanWarning",
    "SaturationWarning",
    "Settings",
    "Source",
    "Tuning",
    "allocate",
    "check",
    "compare_functions",
    "convert",
    "default_schedule",
    "fine_tune",
    "load_source",
    "preprocessing",
    "search",
    "tune",
]
