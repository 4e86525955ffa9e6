"""The tables of docs/support.md, made from what the code holds and does.

    python docs/tables.py [--check]

Rewrites what lies between the markers of the page; with --check says whether it would change, exit
code 1. Each row of "Conversion of each operation" was passed to ``sg.check``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters.capture import capture
from spikingjelly_signgd.converters.lowering import HANDLERS, Coverage, Lowering, Options, forms
from spikingjelly_signgd.converters.rules import as_rule
from spikingjelly_signgd.exporters.hdf5.runner_functions import FUNCTIONS

GROUPS = ("relu", "relu6", "clamp", "qcfs")  # clamp where its lower bound is 0

PAGE = Path(__file__).parent / "support.md"
IMAGE = (1, 4, 8, 8)  # samples, channels, height, width
TOKENS = (1, 6, 8)


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


Sample = tuple[str, Callable[[], nn.Module], tuple[int, ...]]


def called(name: str, function: Callable[[Tensor], Tensor], shape: Sequence[int] = IMAGE) -> Sample:
    return name, lambda: Calls(function), tuple(shape)


def samples() -> dict[str, list[Sample]]:
    """The operations passed to ``check``, by the heading of its table."""
    order = torch.arange(7, -1, -1)
    matrix = torch.ones(8, 8)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    return {
        "Weights": [
            ("`nn.Conv1d`", lambda: nn.Conv1d(6, 4, 3), TOKENS),
            ("`nn.Conv2d`, grouped, strided, dilated, padded", lambda: nn.Conv2d(
                4, 8, 3, stride=2, padding=2, dilation=2, groups=2), IMAGE),
            ("`nn.Conv3d`", lambda: nn.Conv3d(1, 2, 3), (1, 1, 4, 8, 8)),
            ("`nn.ConvTranspose2d`", lambda: nn.ConvTranspose2d(4, 2, 2, 2), IMAGE),
            ("`nn.Linear`", lambda: nn.Linear(8, 4), TOKENS),
            called("`x @ weights`", lambda x: x @ matrix, TOKENS),
            ("`nn.LSTM`, unrolled over its sequence",
             lambda: nn.LSTM(8, 4, batch_first=True), TOKENS),
            ("`nn.GRU`, unrolled over its sequence",
             lambda: nn.GRU(8, 4, batch_first=True), TOKENS),
            called("`torch.cumsum`", lambda x: torch.cumsum(x, 1), TOKENS),
            called("`torch.einsum` with weights",
                   lambda x: torch.einsum("btc,cd->btd", x, matrix), TOKENS),
        ],
        "Activations": [
            *((f"`nn.{kind.__name__}`", kind, IMAGE) for kind in (
                nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
                nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
                nn.Sigmoid, nn.Tanh)),
            ("`sg.QCFS(8)`", lambda: sg.QCFS(8), IMAGE),
            ("`nn.GLU`", lambda: nn.GLU(1), IMAGE),
            *(called(f"`torch.{f.__name__}`", f) for f in (
                torch.abs, torch.exp, torch.exp2, torch.expm1, torch.square, torch.sqrt,
                torch.rsqrt, torch.reciprocal)),
            called("`x ** 3`", lambda x: x**3),
            called("`x.clamp(-1, 2)`", lambda x: x.clamp(-1, 2)),
        ],
        "Norms and statistics": [
            ("`nn.BatchNorm2d` after a convolution",
             lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), IMAGE),
            ("`nn.LayerNorm`", lambda: nn.LayerNorm(8), TOKENS),
            ("`nn.RMSNorm`", lambda: nn.RMSNorm(8), TOKENS),
            ("`nn.GroupNorm`", lambda: nn.GroupNorm(2, 4), IMAGE),
            ("`nn.InstanceNorm2d`", lambda: nn.InstanceNorm2d(4), IMAGE),
            called("`F.normalize`", lambda x: F.normalize(x, dim=-1), TOKENS),
            called("`torch.linalg.vector_norm`",
                   lambda x: torch.linalg.vector_norm(x, dim=(2, 3))),
            called("`x.mean((2, 3))`", lambda x: x.mean((2, 3))),
            called("`x.sum(1)`", lambda x: x.sum(1)),
            called("`x.var(-1)`", lambda x: x.var(-1), TOKENS),
            called("`x.std(-1)`", lambda x: x.std(-1), TOKENS),
        ],
        "Pooling and resizing": [
            ("`nn.MaxPool2d`", lambda: nn.MaxPool2d(2), IMAGE),
            ("`nn.AdaptiveMaxPool2d`", lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
            called("`x.amax((2, 3))`", lambda x: x.amax((2, 3))),
            ("`nn.AvgPool2d`", lambda: nn.AvgPool2d(2), IMAGE),
            ("`nn.AdaptiveAvgPool2d`", lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
            called("`F.interpolate`, nearest", lambda x: F.interpolate(x, scale_factor=2)),
            called("`F.interpolate`, bilinear",
                   lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
            called("`F.interpolate`, nearest-exact",
                   lambda x: F.interpolate(x, size=6, mode="nearest-exact")),
            called("`F.interpolate`, bicubic or antialiased",
                   lambda x: F.interpolate(x, size=6, mode="bicubic")),
            called("`F.fold` of windows that overlap",
                   lambda x: F.fold(x.flatten(2)[..., :9], 4, 2)),
        ],
        "Operations on two values": [
            called("`F.relu(x) + x`", lambda x: F.relu(x) + x),
            called("`F.relu(x) - x`", lambda x: F.relu(x) - x),
            called("`F.relu(x) * torch.sigmoid(x)`", lambda x: F.relu(x) * torch.sigmoid(x)),
            called("`F.relu(x) / torch.sigmoid(x)`", lambda x: F.relu(x) / torch.sigmoid(x)),
            called("`torch.maximum(x, x.flip(1))`", lambda x: torch.maximum(x, x.flip(1))),
            called("`torch.minimum(x, x.flip(1))`", lambda x: torch.minimum(x, x.flip(1))),
            called("`torch.cat([x, F.relu(x)], 1)`", lambda x: torch.cat([x, F.relu(x)], 1)),
            called("`torch.stack([x, F.relu(x)], 1)`", lambda x: torch.stack([x, F.relu(x)], 1)),
        ],
        "Attention": [
            called("`F.relu(x) @ x.mT`", lambda x: F.relu(x) @ x.mT, TOKENS),
            called("`F.softmax`", lambda x: F.softmax(x, -1), TOKENS),
            called("`F.log_softmax`", lambda x: F.log_softmax(x, -1), TOKENS),
            called("`F.scaled_dot_product_attention`",
                   lambda x: F.scaled_dot_product_attention(x, x, x), (1, 2, 6, 8)),
            called("the same with a constant mask",
                   lambda x: F.scaled_dot_product_attention(x, x, x, causal), (1, 2, 6, 8)),
            ("`nn.MultiheadAttention`", Attends, TOKENS),
            ("`nn.TransformerEncoderLayer`",
             lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
        ],
        "Moving values": [
            called("reshape, flatten, squeeze", lambda x: x.flatten(1).unsqueeze(1)),
            called("permute, transpose", lambda x: x.permute(0, 2, 3, 1).transpose(1, 2)),
            called("split, chunk, unbind", lambda x: x.chunk(2, 1)[0]),
            called("slices and indices", lambda x: x[:, 1:3, ::2]),
            called("constant index tensors", lambda x: x[:, :, order]),
            called("flip, roll", lambda x: x.flip(2).roll(1, 3)),
            called("`unfold`, `gather`, pixel shuffles: whatever only moves values",
                   lambda x: F.pixel_shuffle(x.unfold(2, 3, 1).flatten(3), 2)),
            called("slices that are written into",
                   lambda x: torch.slice_scatter(x, x[:, :1] * 2, 1, 1, 2)),
            called("`F.pad`: zeros, reflect, replicate",
                   lambda x: F.pad(F.pad(x, (1, 1)), (1, 1, 1, 1), "reflect")),
            called("expand, repeat", lambda x: x.repeat(1, 2, 1, 1)),
            ("`nn.Dropout`, in eval mode", nn.Dropout, IMAGE),
            called("`x * 0.5 + 1`, `x - constants`", lambda x: x * 0.5 + 1 - matrix),
        ],
        "Refused": [
            called("`torch.sort`", lambda x: torch.sort(x, -1).values),
            called("`torch.topk`", lambda x: torch.topk(x, 2).values),
            called("`x.argmax(1)`", lambda x: x.argmax(1)),
            called("`torch.where(x > 0, x, y)`", lambda x: torch.where(x > 0, x, x.flip(1))),
            called("`torch.sin`, without an entry of yours", torch.sin),
            called("`torch.rand_like`", lambda x: x + torch.rand_like(x)),
            ("`nn.BatchNorm2d` without running statistics",
             lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
        ],
    }  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def becomes(module: nn.Module, shape: tuple[int, ...]) -> tuple[list[Coverage], list[Coverage]]:
    """What ``check`` finds, with ``forms="whole"`` and "local", for one capture."""
    torch.manual_seed(0)
    captured = capture(module.eval(), torch.rand(shape) + 0.5)
    whole, local = (
        Lowering(captured, sg.NEURONS, Options(forms(functions))).coverage
        for functions in ("whole", "local")
    )
    return list(whole), list(local)


def kinds(rows: Sequence[Coverage]) -> str:
    """Each kind once, in order: "neuron: softmax, matmul; linear: scale"."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.becomes in ("linear", "neuron"):
            names = found.setdefault(row.becomes, {})
            names.update(dict.fromkeys(row.detail.split(", ") if row.detail else []))
    return "; ".join(
        f"{kind}: {', '.join(names)}" if any(names) else kind for kind, names in found.items()
    )


def operations() -> str:
    """One table for each heading."""
    text = ""
    for heading, rows in samples().items():
        text += f"\n### {heading}\n\n"
        cells = []
        for name, make, shape in rows:
            whole, local = becomes(make(), shape)
            blockers = [row for row in whole if row.becomes == "unsupported"]
            if bool(blockers) != (heading == "Refused"):
                raise SystemExit(f"{name} stands under {heading!r}, but is {kinds(whole)}")
            if blockers:
                (first, *_) = blockers
                why = f"{first.detail}{'; ' + first.fix if first.fix else ''}"
                cells.append([name, why.replace("|", "\\|")])
            else:
                parts = kinds(local)
                cells.append([name, kinds(whole), parts if parts != kinds(whole) else "same"])
        if heading == "Refused":
            text += table(["operation", "what `check` says"], cells)
        elif any(row[2] != "same" for row in cells):
            text += table(["operation", "becomes", 'with `forms="local"`'], cells)
        else:
            text += table(["operation", "becomes"], [row[:2] for row in cells])
    return text + "\n"


def aten() -> str:
    """Every operation there is an entry for."""
    names = {str(key).removeprefix("aten.").partition(".")[0] for key in [*HANDLERS, *sg.NEURONS]}
    names = {name for name in names if not name.startswith(("_", "spikingjelly_signgd"))}
    return "\n" + ", ".join(f"`{name}`" for name in sorted(names)) + "\n\n"


def rows_of_functions() -> str:
    """The table of nonlinearities: one line for each row."""
    used: dict[str, list[str]] = {}
    for key, entry in sg.NEURONS.items():
        used.setdefault(as_rule(entry).row.name, []).append(str(key).removeprefix("aten."))
    kernels = {True: "f and step", False: "step; f by torch"}
    lava = {True: "yes", False: "refused"}
    cells = [
        [
            f"`{name}`",
            "any" if row.arity is None else str(row.arity),
            "fires" if row.fires_at_tie else "does not",
            kernels[bool(row.code)],
            "yes" if name in FUNCTIONS else "refused",
            lava[row.arity == 1 and row.elementwise],
            "as a group neuron" if name in GROUPS else "refused",
        ]
        for name, row in sg.NONLINEARITIES.items()
    ]
    head = ["row", "arguments", "at v = f(x)", "kernels compute", "HDF5 and its runner",
            "Lava process", "NIR, netx"]  # fmt: skip
    return "\n" + table(head, cells) + "\n"


def parameters() -> str:
    """What a row takes besides its arguments."""

    def shown(values: Mapping[str, Any]) -> str:
        return ", ".join(
            f"`{k}`" if v is None else f"`{k}` = {v[0] if isinstance(v, tuple) else v}"
            for k, v in values.items()
        )

    cells = [
        [f"`{name}`", shown(row.parameters), f"`{row.code}`"]
        for name, row in sg.NONLINEARITIES.items()
        if row.parameters
    ]
    return "\n" + table(["row", "parameters and defaults", "in C"], cells) + "\n"


TABLES = {
    "operations": operations,
    "aten": aten,
    "functions": rows_of_functions,
    "parameters": parameters,
}


def page() -> str:
    """docs/support.md as it should be."""
    text = PAGE.read_text()
    for name, make in TABLES.items():
        begin, end = f"<!-- python docs/tables.py: {name} -->\n", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{PAGE} has no place for {name}: {begin.strip()} ... {end}")
        made = make()
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, made=made, begin=begin, end=end: f"{begin}{made}{end}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    options = parser.parse_args()
    wanted = page()
    if wanted == PAGE.read_text():
        return 0
    if options.check:
        print(f"{PAGE.name} is not what the code makes it: python docs/tables.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
