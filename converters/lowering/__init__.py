"""Lowering: the captured ATen graph to the nodes of a network, nonlinearities still functions.

Every operation is classified as linear, neuron, constant or unsupported; nothing is assumed to be
linear without a check. ``HANDLERS`` holds one function for each linear or compound operation,
``rules.NEURONS`` the nonlinearities. A compound operation becomes linear parts and neuron
functions, as ``Options.forms`` says: LayerNorm one neuron for an output and an affine operation, or
mean, difference, square, mean, x / sqrt(y).

Minus infinity, with which masks are written, never becomes a value: ``Masked`` carries the mask to
the softmax that it is meant for.
"""

from . import (  # noqa: F401
    arithmetic,
    attention,
    linear,
    moves,
    norms,
    places,
    pooling,
    products,
    separable,
)
from .graph import Lowering
from .options import FORMS, Coverage, Forms, Options, forms
from .tables import HANDLERS

__all__ = ["FORMS", "HANDLERS", "Coverage", "Forms", "Lowering", "Options", "forms"]
