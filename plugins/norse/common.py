r"""Norse neurons: signGD, group and subgradient neurons, and what codes and decodes them.

As Norse has it, a neuron is a step ``x_feed_forward_step(input, state, p, dt) -> (output, state)``,
a cell that runs one step [B, ...], and a layer that runs a sequence [T, B, ...]. Both return
``(output, state)`` and start from the initial state if none is passed; states are returned new,
never changed in place. A layer hands the whole sequence to the kernels of ``neurons/``, a cell one
step of it, so that both give the same numbers, which are those of the SpikingJelly nodes. ``dt`` is
taken as Norse's neurons take it and is not used: the neurons are defined step by step.

**Ties.* Norse's neurons fire strictly above the threshold. The neurons here keep the rule of their
definitions: a member k of a group neuron fires at h >= k theta, and a signGD neuron sends sigma =
+1 at v = f(x) where its row of ``NONLINEARITIES`` says so. ``p.method`` and ``p.alpha`` choose the
gradient of ``norse.torch.functional.threshold``, none for "heaviside"; the step stays at our ties.
signGD neurons have another one by default (``neurons/signgd/gradient.py``).

The tensors of ``p`` are buffers of a cell or layer, or its parameters where they are
``nn.Parameter``: they move, are saved and are loaded. The rest of ``p`` is in ``state_dict()`` as
plain numbers and text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...neurons.choice import BACKENDS
from ...neurons.nonlinearities import Nonlinearity
from ...neurons.scan import scan
from ...neurons.surrogate import Surrogate
from .. import simulator

with simulator("norse"):
    from norse.torch.functional.threshold import threshold

DITHERED = "dithered"  # of signGD neurons alone
METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


def _gradient_at_one(alpha: float) -> float:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(threshold(x, "super", alpha), x)
    return float(gradient)


# Norse 1.1.0 computes the gradient of "super" with alpha = 1 whatever alpha is
SUPER_HAS_ALPHA = _gradient_at_one(1.0) != _gradient_at_one(3.0)


def surrogate(method: str, alpha: float | Tensor) -> Surrogate | None:
    """The gradient of Norse's ``threshold(x, method, alpha)``, as installed; None for "heaviside".

    Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, but it is {method!r}.")
    if method == "heaviside":
        return None
    gradient = Surrogate(method, float(alpha))
    return Surrogate(method, 1.0) if method == "super" and not SUPER_HAS_ALPHA else gradient


def trains(*values: Any) -> bool:
    """Whether a gradient is recorded for any of these tensors."""
    if not torch.is_grad_enabled():
        return False
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(value, Tensor) and value.requires_grad for value in flat)


def check_backend(owner: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{owner}: backend is one of {', '.join(BACKENDS)}, not {backend!r}.")


def single(cls: type, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    if len(inputs) != 1:
        raise InputError(f"{cls.__name__}: it takes one input, but {len(inputs)} were passed.")
    return inputs  # type: ignore[return-value]


def of_arity(cls: type, inputs: tuple[Tensor, ...], function: Nonlinearity) -> Nonlinearity:
    if function.arity not in (None, len(inputs)):
        raise InputError(
            f"{cls.__name__}: {function.name!r} has {function.arity} arguments, but "
            f"{len(inputs)} inputs were passed. Pass a tuple with one tensor for each."
        )
    return function


def scan_steps(step: Callable[..., Any], x_seq: Tensor, state: Any, p: Any) -> tuple[Tensor, Any]:
    """``scan`` in the state's precision; the output has the input's type."""
    y_seq, state = scan(step, x_seq.to(state[0].dtype), state, p)
    return y_seq.to(x_seq.dtype), state
