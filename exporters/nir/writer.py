"""NIR files: networks of group neurons for neuromorphic toolchains (docs/nir.md).

``write_nir`` writes ``mode="exact"``, every neuron as a subgraph of NIR's primitives, or
``mode="platform"``, plain IF or LIF nodes that chips and simulators map, with all that is lost in
the report and in the file. ``read_nir`` reads exact files back; ``nir_runner.NirRunner`` runs any.
"""

from __future__ import annotations

import io
import os
from typing import Any

from ...core.network import SpikingNetwork
from ...core.training import check_collected
from ...errors import FormatError
from ..files import write_whole
from .graph import DIALECTS, MODES, POOLING, GraphWriter, NirReport
from .reader import SEAL, import_nir, read_graph, to_network
from .readers import find_reader
from .single_step import SingleStepWriter

__all__ = ["NirReport", "read_graph", "read_nir", "to_graph", "write_nir"]


def to_graph(
    network: SpikingNetwork,
    *,
    mode: str = "exact",
    dialect: str = "nir",
    pooling: str = "pool",
    time_steps: int | None = None,
    strict: bool = False,
    reader: str | None = None,
) -> tuple[Any, NirReport]:
    """The network as a ``nir.NIRGraph``, and what is lost; raises as ``write_nir`` does."""
    nir = import_nir()
    if not isinstance(network, SpikingNetwork):
        raise FormatError(
            "NIR files are written from the SpikingNetwork that convert returned, not from "
            f"{type(network).__name__}; get it from a built module as module.network, from a "
            "trainable one by collect(module)."
        )
    check_collected(network)
    choices = (("mode", mode, MODES), ("dialect", dialect, DIALECTS), ("pooling", pooling, POOLING))
    for name, value, known in choices:
        if value not in known:
            raise FormatError(f"{name} is one of {', '.join(known)}, not {value!r}.")
    if mode == "exact" and dialect != "nir":
        raise FormatError(
            f'dialect {dialect!r} says how IF nodes are written, and mode "exact" has none; write '
            'mode="platform", or leave the dialect out.'
        )
    if time_steps is not None and (not isinstance(time_steps, int) or time_steps < 1):
        raise FormatError(f"time_steps is an integer of at least 1, but it is {time_steps!r}.")
    if reader is None:
        writer = GraphWriter(nir, network, mode, dialect, pooling, time_steps)
    else:
        writer = _for_reader(nir, network, reader, (mode, dialect, pooling), time_steps)
    graph, report = writer.write()
    if strict and report.losses:
        losses = "\n".join(f"  {loss}" for loss in report.losses)
        raise FormatError(
            f"with strict=True nothing may be lost, but this is:\n{losses}\n"
            'Write mode="exact", or strict=False.'
        )
    return graph, report


def _for_reader(
    nir: Any,
    network: SpikingNetwork,
    name: str,
    chosen: tuple[str, str, str],
    time_steps: int | None,
) -> GraphWriter:
    reader = find_reader(name)
    if chosen != ("exact", "nir", "pool"):
        raise FormatError("reader=... chooses mode, dialect and pooling; leave these out.")
    if (time_steps or network.time_steps) != 1 or network.time_steps != 1:
        raise FormatError(
            f"files for {reader.name} hold networks of one step, and this one runs "
            f"{network.time_steps}: readers of NIR reset a neuron that fires, each in its own way, "
            "where these neurons subtract. Convert with time_steps=1 and more members."
        )
    if network.stream:
        raise FormatError(
            f"files for {reader.name} are reset for each input, and the plan of this network is "
            "for streams. Convert without stream=True."
        )
    return SingleStepWriter(nir, network, reader)


def write_nir(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    *,
    mode: str = "exact",
    dialect: str = "nir",
    pooling: str = "pool",
    time_steps: int | None = None,
    strict: bool = False,
    reader: str | None = None,
) -> NirReport:
    """Write the network as a NIR file; an old file is replaced only by a whole new one.

    ``mode="exact"``: group neurons as subgraphs of I, Threshold and Scale with one feedback edge.
    ``mode="platform"``: one nir.IF for each neuron, of one member; ``dialect="legacy"`` leaves
    out v_reset and the metadata of nodes, which nir 1.0.4 refuses, ``"lif"`` writes LIF nodes
    whose leak is below rounding.
    ``pooling="conv"`` writes pools as convolutions, for readers that know no pools (Norse 1.1.0).
    ``time_steps`` stands in the metadata, by default the network's. ``strict`` refuses any loss.

    ``reader`` names the tool that shall read the file (``readers.READERS``): "nir", "norse",
    "spikingjelly", "snntorch" or "sinabs". The network is one of one step, ``convert(...,
    time_steps=1)``, of group or signGD neurons of any number of members; each is written as nir.IF
    (or nir.LIF) nodes that fire at most once, in the form that this reader imports with the same
    meaning.

    Raises FormatError for what NIR cannot express (each node by name, with the fix) and for
    what cannot be written; BackendUnavailable without the package nir.
    """
    graph, report = to_graph(
        network,
        mode=mode,
        dialect=dialect,
        pooling=pooling,
        time_steps=time_steps,
        strict=strict,
        reader=reader,
    )
    image = io.BytesIO()  # a full disk meets plain bytes, no library in the middle of a tree
    import_nir().write(image, graph)
    if report.dialect == "legacy":
        _for_older_readers(image)
    write_whole(path, SEAL.on(image.getvalue()))
    return report


def read_nir(path: str | os.PathLike[str], *, time_steps: int | None = None) -> SpikingNetwork:
    """A network from a NIR file: linear nodes, and group neurons recognised by their structure.

    ``time_steps`` is needed where the file does not say. Raises FormatError for a file that is
    damaged or holds other nodes, each by name; FileNotFoundError; BackendUnavailable.
    """
    return to_network(read_graph(path), time_steps)


def _for_older_readers(image: io.BytesIO) -> None:
    """nir 1.0.4 knows neither v_reset nor metadata of nodes, and refuses a file with either."""
    import h5py

    with h5py.File(image, "r+") as file:
        for node in file["node/nodes"].values():
            for key in ("v_reset", "metadata"):
                if key in node:
                    del node[key]
