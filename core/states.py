"""The state that a network keeps between two frames of a stream, as plain data.

It holds tensors, numbers, texts, lists and dicts alone, so that ``torch.save`` and
``torch.load(weights_only=True)`` write and read it, and fits the same network in either simulator::

    {"version": 1, "network": sha256 of the description, "view": "decoded" or "stream",
     "frames": 120, "shapes": {"input": [1, 3, 96, 96]}, "whole": {},
     "neurons": {"layer1.act": [v]},               # of kinds whose state is kept
     "previous": {}, "exact": {}, "readouts": {}, "sums": {}, "sent": {},    # of the spike view
     "carried": {}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..neurons.base import each_tensor, tensors_in
from .inputs import Batch, Inputs
from .module import NetworkModule, NetworkState, Seen, held, key
from .network import KEPT, Node, SpikingNetwork, Timed

VERSION = 1
FIELDS = (  # each a dict
    *("shapes", "whole", "neurons", "previous", "exact"),
    *("readouts", "sums", "sent", "carried"),
)
OF_NEURONS = ("scale", "resting", "dead_zone")


@torch.no_grad()
def state_of(snn: NetworkModule) -> dict[str, Any]:
    """``NetworkModule.state``."""
    if snn.seen is None or snn.state_kept is None:
        raise InputError(
            "state: no frame of a stream has been processed yet. Run some with run(snn, frames, "
            "sequence=True, keep_state=True) or sg.watch(snn)."
        )
    state, seen = snn.state_kept, snn.seen
    previous = state.previous
    several = isinstance(previous, Inputs)
    own = {name: list(tensors_in(each)) for name, each in snn.neuron_states().items()}
    found: dict[str, Any] = {
        "version": VERSION,
        "network": digest(snn),
        "view": snn.view,
        "frames": seen.frames,
        "shapes": {name: list(shape) for name, shape in seen.shapes.items()},
        "whole": seen.whole,
        "neurons": {name: own[name] for name in _kept(snn.network) if name in own},
        "previous": previous.tensors if several else {} if previous is None else {"": previous},  # type: ignore[union-attr]
        "exact": (previous.exact or {}) if several else {},  # type: ignore[union-attr]
        **{name: getattr(state, name) or {} for name in ("readouts", "sent", "carried")},
        "sums": {name: list(each) for name, each in (state.sums or {}).items()},
    }
    return _copied(found)  # type: ignore[no-any-return]


def _kept(network: SpikingNetwork) -> list[str]:
    return [node.name for node in network.of(Timed) if node.frame == KEPT]


def _copied(value: Any) -> Any:
    """No memory in common with the module."""
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


@torch.no_grad()
def load_state(snn: NetworkModule, given: Any) -> None:
    """``NetworkModule.load_state``."""
    _check(snn, given)
    given, restore = _copied(given), snn.checkpoint()
    snn.reset()
    try:
        state = _any_state(snn, given)
        snn.seen = Seen(given["frames"], given["shapes"], given["whole"])
        snn.state_kept = state._replace(
            previous=_previous(state.previous, given),
            sums=_filled(state.sums, given["sums"]),
            **{k: _filled(getattr(state, k), given[k]) for k in ("readouts", "sent", "carried")},
        )
        names = _kept(snn.network)
        own = {
            name: each
            for name, each in snn.neuron_states().items()
            if name in names and list(tensors_in(each))
        }
        snn.set_neuron_states(_filled(own, given["neurons"]))
    except (AttributeError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        restore()
        raise InputError(
            "load_state: the state is incomplete, or its tensors are not those of this network. "
            "Pass what snn.state() returned, unchanged."
        ) from error


def _check(snn: NetworkModule, given: Any) -> None:
    if not isinstance(given, Mapping) or given.get("version") != VERSION:
        raise InputError(
            "load_state takes what snn.state() returned, a dict of version "
            f"{VERSION}, but it is {_told(given)}."
        )
    dicts = [name for name in FIELDS if isinstance(given.get(name), Mapping)]
    if missing := {"network", "view", "frames", *FIELDS} - {*given} | {*FIELDS} - {*dicts}:
        raise InputError(
            "load_state: the state is incomplete: not a dict, or missing: "
            f"{', '.join(map(repr, sorted(missing)))}. Pass what snn.state() returned, unchanged."
        )
    if given["network"] != digest(snn):
        raise InputError(
            "load_state: the state is that of another network, or of this one with other weights "
            "or another plan. Load it into the network that it was saved from, or start again "
            "with snn.reset()."
        )
    if given["view"] != snn.view:
        views = {"decoded": "decoded", "stream": "signed", "signed": "signed"}
        raise InputError(
            f'load_state: the state is one of spikes="{views.get(str(given["view"]))}", but this '
            f'network was built with spikes="{views.get(snn.view)}". Build it as the other was.'
        )
    frames = given["frames"]
    if type(frames) is not int or frames < 1:
        raise InputError(
            f"load_state: frames is the number of frames processed, at least 1, not {frames!r}. "
            "Pass what snn.state() returned, unchanged."
        )
    _check_tensors(given)


def _check_tensors(given: Mapping[str, Any]) -> None:
    for name, value in _tensors(given):
        if value.is_floating_point() and bool(value.isnan().any()):
            raise InputError(
                f"load_state: {name!r} of the state holds NaN. Start again with snn.reset(), or "
                "load an earlier state."
            )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each with the name of the field that it is in."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for k, each in pairs:
            yield from _tensors(each, name or str(k))


def _told(given: Any) -> str:
    if isinstance(given, Mapping) and "version" in given:
        return f"one of version {given['version']!r}"
    return type(given).__name__


def _any_state(snn: NetworkModule, given: Mapping[str, Any]) -> NetworkState:
    """The state after one frame of zeros: of the form that this simulator has it in."""
    like = torch.zeros((), dtype=snn.floating, device=_device(snn))
    tensors = {
        name: given["whole"][name].to(like.device)
        if name in given["whole"]
        else like.expand(tuple(shape))
        for name, shape in given["shapes"].items()
    }
    plain = snn.network.plain
    with snn.for_sequences():
        state = snn.advance(next(iter(tensors.values())) if plain else tensors, 1, {}, None)[1]
    snn.state_kept = state
    return state


def _device(snn: NetworkModule) -> torch.device:
    held: Iterator[Tensor] = iter([*snn.parameters(), *snn.buffers()])
    return next((tensor.device for tensor in held), torch.device("cpu"))


def _filled(now: Any, given: Mapping[str, Any]) -> Any:
    """States by name with the tensors that were given in the place of their own."""
    if now is None:
        return None
    return {name: _with(each, _listed(given[name])) for name, each in now.items()}


def _listed(value: Any) -> Iterable[Tensor]:
    return value if isinstance(value, list) else [value]


def _with(state: Any, tensors: Iterable[Tensor]) -> Any:
    left = iter(tensors)
    found = each_tensor(state, lambda mine: _like(mine, next(left)))
    if next(left, None) is not None:
        raise RuntimeError("more tensors than the state has")
    return found


def _like(mine: Tensor, given: Tensor) -> Tensor:
    if given.shape != mine.shape:
        raise RuntimeError(f"{list(given.shape)} for {list(mine.shape)}")
    return given.to(mine.device, mine.dtype)


def _previous(now: Batch | None, given: Mapping[str, Any]) -> Batch | None:
    if isinstance(now, Inputs):
        tensors = _filled(now.tensors, given["previous"])
        return Inputs(tensors, _filled(now.exact, given["exact"]), now.compute)
    return None if now is None else _like(now, given["previous"][""])


# -- which network ---------------------------------------------------------------------------------


def digest(snn: NetworkModule) -> str:
    """Of all that a state depends on: the nodes with their numbers, the tensors as ``snn`` has them
    now, and the outputs."""
    seen, network = hashlib.sha256(), snn.network
    for node in network.nodes:
        now = _values_now(snn, node)
        for each in fields(node):
            _put(seen, each.name, _as_now(getattr(node, each.name), each.name, now))
    _put(seen, "outputs", network.outputs)
    _put(seen, "carries", dict(network.carries))
    return seen.hexdigest()


def _values_now(snn: NetworkModule, node: Node) -> dict[str, Any]:
    """The tensors that compute a node, by their names, and of neurons its numbers."""
    found: dict[str, Any] = {}
    for modules in (snn.operations, snn.functions):
        if key(node.name) in modules:
            found.update(held(modules[key(node.name)]))
    if key(node.name) in snn.neurons:
        module: Any = snn.neuron(node.name)
        values = getattr(module, "p", module)  # Norse's layers have them there
        found.update({k: getattr(values, k) for k in OF_NEURONS if hasattr(values, k)})
    return found


def _as_now(value: Any, name: str, now: Mapping[str, Any]) -> Any:
    """The value of a field with what is in its place now, in the type that the node has it in."""
    if isinstance(value, Mapping):
        return {k: _as_now(each, k, now) for k, each in value.items()}
    mine = now.get(name)
    if isinstance(value, Tensor) and isinstance(mine, Tensor):
        return mine.to(value.dtype)
    return mine if isinstance(value, float) and isinstance(mine, float) else value


def _put(seen: Any, name: str, value: Any) -> None:
    """The same for what a file gives back: mappings in any order, lists as tuples."""
    seen.update(f"{name}:".encode())
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        seen.update(f"{value.dtype} {list(value.shape)};".encode())
        seen.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _put(seen, str(key), value[key])
    elif isinstance(value, (list, tuple)):
        for k, each in enumerate(value):
            _put(seen, str(k), each)
    elif hasattr(value, "to_dict"):
        _put(seen, "of", value.to_dict())
    else:
        seen.update(f"{getattr(value, 'name', value)!r};".encode())
