"""The errors of this package: each says what, where and the fix."""

from collections.abc import Iterable
from typing import Any


class SignGDError(Exception):
    """Every error raised on purpose here; the subclasses say what kind."""


class UnsupportedOperation(SignGDError):
    """The model contains operations that no linear map and no neuron computes.

    ``blockers`` lists all of them, not only the first.
    """

    def __init__(self, message: str, blockers: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.blockers: list[Any] = list(blockers)


class CalibrationError(SignGDError, ValueError):
    """The calibration data are empty, not finite, or do not fit the model."""


class FormatError(SignGDError, ValueError):
    """A file is not what it claims to be, or a target cannot express the network."""


class BackendUnavailable(SignGDError, ImportError):
    """A simulator, format library or kernel backend that was asked for is not installed."""


class KernelsWarning(UserWarning):
    """The compiled kernels cannot be used, so the definitions run in torch, which takes longer."""


class CaptureError(SignGDError, RuntimeError):
    """torch.export cannot capture the model."""


class InputError(SignGDError, ValueError):
    """An input, a shape, or a number of time steps that cannot be run."""
