"""Turn trained PyTorch networks into spiking networks of signGD and group neurons.

Everything is loaded on first use: importing the package needs torch alone and loads no simulator.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.registry import FORMATS, SIMULATORS

if TYPE_CHECKING:
    from . import analysis, converters, exporters, neurons, plugins
    from .analysis.over_time import costs_over_time
    from .analysis.watching import watch
    from .converters import (
        NEURONS,
        CalibrationWarning,
        CheckReport,
        FineTuned,
        LevelsWarning,
        Motion,
        PlanWarning,
        SaturationWarning,
        Tuning,
        convert,
        fine_tune,
        search,
        tune,
    )
    from .converters.additions import additions
    from .converters.stepping import step_by_step
    from .core.anytime import Exit, ExitRule, Step, calibrate_exit, early_exit, stream
    from .core.distributed import Distributed
    from .core.evaluating import Evaluation, evaluate
    from .core.events import Events
    from .core.network import SpikingNetwork
    from .core.running import build, run
    from .core.training import collect
    from .core.windows import windows
    from .errors import (
        BackendUnavailable,
        CalibrationError,
        CaptureError,
        FormatError,
        InputError,
        KernelsWarning,
        SignGDError,
        UnsupportedOperation,
    )
    from .exporters import Certificate, export, load, save, verify
    from .neurons.choice import backends
    from .neurons.group import GroupNeuronParameters
    from .neurons.nonlinearities import NONLINEARITIES, Nonlinearity
    from .neurons.qcfs import QCFS
    from .neurons.schedules import (
        ConstantSchedule,
        ExponentialSchedule,
        InverseSchedule,
        ListSchedule,
    )
    from .neurons.signgd import DEAD_ZONE, SignGDParameters, digits, levels
    from .neurons.surrogate import Surrogate
    from .plugins.forms import HandReport, check, to_decoded, to_spikes
    from .plugins.spikingjelly import (
        Encode,
        GroupNode,
        GrowthNode,
        Readout,
        SignGDNode,
        SubgradientNode,
    )

__version__ = "0.1.0"

__all__ = [
    "DEAD_ZONE",
    "NEURONS",
    "NONLINEARITIES",
    "QCFS",
    "BackendUnavailable",
    "CalibrationError",
    "CaptureError",
    "Certificate",
    "CheckReport",
    "ConstantSchedule",
    "Distributed",
    "Encode",
    "Evaluation",
    "Events",
    "Exit",
    "ExitRule",
    "ExponentialSchedule",
    "FineTuned",
    "FormatError",
    "GroupNeuronParameters",
    "GroupNode",
    "GrowthNode",
    "HandReport",
    "InputError",
    "InverseSchedule",
    "KernelsWarning",
    "LevelsWarning",
    "ListSchedule",
    "Motion",
    "Nonlinearity",
    "Readout",
    "CalibrationWarning",
    "PlanWarning",
    "SaturationWarning",
    "SignGDError",
    "SignGDNode",
    "SignGDParameters",
    "SpikingNetwork",
    "Step",
    "SubgradientNode",
    "Surrogate",
    "Tuning",
    "UnsupportedOperation",
    "additions",
    "analysis",
    "backends",
    "build",
    "calibrate_exit",
    "check",
    "collect",
    "convert",
    "converters",
    "costs_over_time",
    "digits",
    "early_exit",
    "evaluate",
    "export",
    "exporters",
    "fine_tune",
    "levels",
    "load",
    "neurons",
    "plugins",
    "run",
    "save",
    "search",
    "step_by_step",
    "stream",
    "to_decoded",
    "to_spikes",
    "tune",
    "verify",
    "watch",
    "windows",
]

_FOLDERS = ("analysis", "converters", "exporters", "neurons", "plugins")

# of this package; others bring theirs by entry points (core/registry.py)
SIMULATORS |= {name: f"{__name__}.plugins.{name}" for name in ("spikingjelly", "norse")}
FORMATS |= {name: f"{__name__}.exporters.{name}" for name in ("hdf5", "nir", "lava")}

# name -> the module it comes from; test_package.py holds this against the imports above
_HOME = {
    "costs_over_time": "analysis.over_time",
    "Exit": "core.anytime",
    "ExitRule": "core.anytime",
    "Step": "core.anytime",
    "calibrate_exit": "core.anytime",
    "early_exit": "core.anytime",
    "stream": "core.anytime",
    "NEURONS": "converters",
    "CheckReport": "converters",
    "FineTuned": "converters",
    "additions": "converters.additions",
    "fine_tune": "converters",
    "LevelsWarning": "converters",
    "Motion": "converters",
    "CalibrationWarning": "converters",
    "PlanWarning": "converters",
    "SaturationWarning": "converters",
    "Tuning": "converters",
    "search": "converters",
    "tune": "converters",
    "convert": "converters",
    "BackendUnavailable": "errors",
    "CalibrationError": "errors",
    "CaptureError": "errors",
    "FormatError": "errors",
    "InputError": "errors",
    "KernelsWarning": "errors",
    "SignGDError": "errors",
    "UnsupportedOperation": "errors",
    "Certificate": "exporters",
    "export": "exporters",
    "load": "exporters",
    "save": "exporters",
    "verify": "exporters",
    "SpikingNetwork": "core.network",
    "GroupNeuronParameters": "neurons.group",
    "backends": "neurons.choice",
    "NONLINEARITIES": "neurons.nonlinearities",
    "Nonlinearity": "neurons.nonlinearities",
    "QCFS": "neurons.qcfs",
    "ConstantSchedule": "neurons.schedules",
    "ExponentialSchedule": "neurons.schedules",
    "InverseSchedule": "neurons.schedules",
    "ListSchedule": "neurons.schedules",
    "DEAD_ZONE": "neurons.signgd",
    "SignGDParameters": "neurons.signgd",
    "digits": "neurons.signgd",
    "levels": "neurons.signgd",
    "Surrogate": "neurons.surrogate",
    "Encode": "plugins.spikingjelly",
    "GroupNode": "plugins.spikingjelly",
    "GrowthNode": "plugins.spikingjelly",
    "Readout": "plugins.spikingjelly",
    "SignGDNode": "plugins.spikingjelly",
    "SubgradientNode": "plugins.spikingjelly",
    "HandReport": "plugins.forms",
    "check": "plugins.forms",
    "to_decoded": "plugins.forms",
    "to_spikes": "plugins.forms",
    "Evaluation": "core.evaluating",
    "build": "core.running",
    "evaluate": "core.evaluating",
    "run": "core.running",
    "collect": "core.training",
    "Distributed": "core.distributed",
    "Events": "core.events",
    "step_by_step": "converters.stepping",
    "watch": "analysis.watching",
    "windows": "core.windows",
}


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        from .names import near

        known = near(name, __all__) if not name.startswith("_") else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{known}")
    folder, _, module = _HOME[name].partition(".")
    if folder == "plugins":  # by attribute, which says what to install where it is missing
        return getattr(getattr(import_module(".plugins", __name__), module), name)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
