"""Who reads NIR files, and what each of them makes of an integrate-and-fire neuron.

A file for one of ``READERS`` holds a network of one step, in which every neuron fires at most once
(``exporters/staircase.py``): what is left to know of a reader is when a neuron at its threshold
fires, which nodes it imports, and what it wants to be told. Each row is of the version named in it,
and tested with it (tests/test_nir_readers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import FormatError


@dataclass(frozen=True)
class Reader:
    """``ties`` says whether a neuron at its threshold fires ("fire") or not ("strict")."""

    name: str
    version: str
    ties: str
    how: str  # to read the file, and run one input
    dialect: str = "nir"
    pooling: str = "pool"
    branches: bool = True
    outputs: bool = False  # several: some give one of them alone, some never end
    conv1d: bool = True


READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "nir",
            "1.0.8",
            "strict",
            "by NIR's own definition: v' = R I, and a spike where v > v_threshold",
            outputs=True,
        ),
        Reader(
            "norse",
            "1.1.0",
            "strict",
            'norse.torch.from_nir(nir.read("net.nir"), dt=1.0), then y, _ = model(x)',
            pooling="conv",  # pools are left out without a word
            branches=False,  # runs in the wrong order
            conv1d=False,  # leaves it out, which fails
        ),
        Reader(
            "spikingjelly",
            "2.0.0",
            "fire",
            'nir_exchange.import_from_nir("net.nir", dt=1.0, step_mode="s"), then y, _ = model(x)',
            pooling="conv",
        ),
        Reader(
            "snntorch",
            "1.0.0",
            "strict",
            'import_from_nir(nir.read("net.nir")), then y, _ = model(x); load it again, or reset '
            "its neurons, for each input",
            dialect="lif",  # a nir.IF becomes a leaky neuron
            pooling="conv",  # the padding of pools is left out
        ),
        Reader(
            "sinabs",
            "3.1.3",
            "fire",
            "sinabs.nir.from_nir(graph, batch_size=B), then of each sinabs.layers.StatefulLayer "
            "spike_fn = SingleSpike and min_v_mem = None, and y = model(x)",
            dialect="legacy",
            pooling="conv",
            branches=False,  # right for some residual networks, and wrong for others
            conv1d=False,  # fails on its bias
        ),
    )
}

# why no file can be right in them
UNABLE = {
    "spyx": "Spyx 1.0.0 compares the potential of the step before, so each layer is a step late "
    "and adds its input up meanwhile",
    "rockpool": "Rockpool 3.1.0 imports no nir.IF and no convolution, and nir.LIF fails in it "
    "(node.tau_mem); it reads nir.CubaLIF, which has two leaks",
    "lava": "lava-dl reads no NIR in the versions that are published; write a netx file, "
    'export(network, "net.net")',
    "spinnaker2": "py-spinnaker2 is not published as a package, so nothing could be tested with it",
}


def find_reader(name: str) -> Reader:
    """The row of a reader; FormatError for one that is unknown, or cannot be served."""
    key = str(name).lower()
    if key in UNABLE:
        raise FormatError(f"reader={name!r}: {UNABLE[key]}.")
    if key not in READERS:
        raise FormatError(f"reader is one of {', '.join(READERS)}, not {name!r}.")
    return READERS[key]
