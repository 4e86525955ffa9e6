"""Silero's voice detection as a spiking network that listens frame after frame.

    python examples/voice.py [--folder .../silero_vad] [--streams 8] [--keep vector_norm]

A frame is 512 samples at 16 kHz behind the 64 of the frame before; the two states of the LSTM cell
are what the network feeds itself. The weights come in the package silero-vad (MIT licence), whose
folder is found without importing it; voices are synthetic. Printed are the probabilities of the
TorchScript model of the package, of the module here and of the spiking network.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikingjelly_signgd as sg

RATE, HOP, CONTEXT = 16_000, 512, 64
CARRIES = {"h": 1, "c": 2}
VOICE = 0.5  # the probability from which on a frame is voice

# the first three formants of vowels, Hz, and how wide they are (Peterson & Barney, 1952, rounded)
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
WIDTHS = (80, 100, 140)


class Detector(nn.Module):
    """One frame [B, 64 + 512] and the state to (probability of voice [B, 1], h, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(
        self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stft_conv(F.pad(x, (0, 64), "reflect").unsqueeze(1))
        x = torch.linalg.vector_norm(x.unflatten(1, (2, 129)), dim=1)  # of real and imaginary parts
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), None if h is None else (h, c))
        return self.final_conv(h.relu().unsqueeze(-1)).sigmoid().squeeze(-1), h, c


def folder_of(given: str | None) -> Path:
    """Where the package keeps its weights."""
    found = importlib.util.find_spec("silero_vad") if given is None else None
    if given is None and (found is None or found.origin is None):
        raise SystemExit("pip install --no-deps silero-vad, or name its folder by --folder.")
    folder = Path(given) if given is not None else Path(str(found and found.origin)).parent
    if not (folder / "data" / "silero_vad.jit").is_file():
        raise SystemExit(
            f"{folder} is not the folder of silero-vad 6.2: it has no data/silero_vad.jit"
        )
    return folder


def published(folder: Path) -> Any:
    """The package's own model, TorchScript."""
    return torch.jit.load(str(folder / "data" / "silero_vad.jit"))


# of the TorchScript model, here (after the package's own tinygrad_model.py)
NAMES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    "decoder.rnn": "lstm_cell",
    "decoder.decoder.2": "final_conv",
    **{f"encoder.{i}.reparam_conv": f"conv{i + 1}" for i in range(4)},
}


def load_model(folder: Path) -> Detector:
    """With the weights of the TorchScript model (those of silero_vad_16k.safetensors in 6.2.3 are
    of another training)."""
    weights = published(folder)._model.state_dict()
    for theirs, ours in NAMES.items():
        weights = {name.replace(theirs, ours): value for name, value in weights.items()}
    model = Detector()
    model.load_state_dict(weights)
    return model.eval()


def theirs(model: Any, waves: Tensor) -> Tensor:
    """The probabilities [F, B, 1] of the package's own model, of whole frames of waves [B, N]."""
    model.reset_states()
    frames = waves.split(HOP, 1)
    return torch.stack([model(frame, RATE) for frame in frames if frame.shape[1] == HOP])


def frames_of(waves: Tensor) -> Tensor:
    """[F, B, 576] of waves [B, N]: each frame begins with the end of the one before."""
    return sg.windows(waves, CONTEXT + HOP, HOP, lead=CONTEXT, tail="pad")


def source(model: Detector, frames: Tensor) -> Tensor:
    """The probabilities [F, B, 1] of the model."""
    h = c = None
    found = []
    for frame in frames:
        p, h, c = model(frame, h, c)
        found.append(p)
    return torch.stack(found)


# -- synthetic voices ------------------------------------------------------------------------------


def voices(streams: int, seconds: float, seed: int = 0) -> Tensor:
    """Waves [B, N] at 16 kHz in which a speaker says vowels, with pauses, and with noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([_speaker(seconds, generator) for _ in range(streams)])


def _speaker(seconds: float, generator: torch.Generator) -> Tensor:
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    pitch, left = between(90, 220), int(seconds * RATE)
    parts: list[Tensor] = []
    while left > 0:
        if parts and between(0, 1) < 0.3:
            parts.append(torch.zeros(int(between(0.4, 1.2) * RATE)))
        else:
            names = list(VOWELS)
            first, last = (names[int(between(0, len(names)))] for _ in range(2))
            spoken = pitch * between(0.85, 1.2)
            parts.append(_syllable(first, last, spoken, between(0.15, 0.35)))
        left -= len(parts[-1])
    wave = torch.cat(parts)[: int(seconds * RATE)]
    noise = torch.randn(len(wave), generator=generator)
    return between(0.05, 0.3) * wave + between(1e-4, 3e-3) * noise


def _syllable(first: str, last: str, pitch: float, seconds: float) -> Tensor:
    """From one vowel to another, harmonics of a falling pitch weighted by the formants."""
    n = int(seconds * RATE)
    along = torch.linspace(0, 1, n)
    hz = pitch * (1.05 - 0.15 * along) * (1 + 0.02 * torch.sin(2 * math.pi * 5 * along * seconds))
    phase = 2 * math.pi * (hz / RATE).cumsum(0)
    wave = torch.zeros(n)
    for k in range(1, int(4000 / pitch)):
        gain = torch.ones(n)
        for a, b, width in zip(VOWELS[first], VOWELS[last], WIDTHS, strict=True):
            formant = a + (b - a) * along
            gain = gain / ((k * hz / formant) ** 2 - 1).square().add((width / formant) ** 2).sqrt()
        wave += gain / k * torch.sin(k * phase)  # a glottal pulse falls by 12 dB an octave
    rise = torch.minimum(along, 1 - along).mul(12).clamp(max=1)
    return wave / wave.abs().max() * rise


# -- measured --------------------------------------------------------------------------------------


def converted(
    model: Detector, frames: Tensor, members: int = 12, keep: Sequence[str] = ()
) -> sg.SpikingNetwork:
    """A plan whose neurons reach twice what they were seen at in one step, from one end of their
    range to the other: voices begin and end within a frame."""
    plan: dict[str, Any] = {"time_steps": 1, "schedule": sg.ConstantSchedule(1.0), "keep": keep}
    return sg.convert(model, frames, carries=CARRIES, members=members, **plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="of the package silero-vad")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--streams", type=int, default=8, help="speakers that are listened to")
    parser.add_argument("--members", type=int, default=12)
    parser.add_argument("--keep", nargs="*", default=[], help="modules that stay real-valued")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = folder_of(given.folder)
    model = load_model(folder)
    calibration = frames_of(voices(given.streams, 4, seed=1))
    waves = voices(given.streams, given.seconds)
    frames = frames_of(waves)
    with torch.no_grad():
        want = source(model, frames)
        own = theirs(published(folder), waves)
    off = float((want[: len(own)] - own).abs().max())
    print(f"the module here and the package's own: {off:.1e} at most, on {len(own)} frames")
    snn, found, additions = (
        sg.build(converted(model, calibration, given.members, given.keep)),
        [],
        [],
    )
    with sg.watch(snn) as w:
        for frame in frames:
            found.append(w(frame)[0])
            additions.append(w.operations.additions_per_mac)
    have = torch.stack(found)
    same = ((have > VOICE) == (want > VOICE)).float().mean()
    error = float((have - want).norm() / want.norm())
    each = ((have - want).norm(dim=0) / want.norm(dim=0)).flatten().tolist()
    print(f"voice in {100 * float((want > VOICE).float().mean()):.0f} % of the frames")
    print(f"spiking: same decision in {100 * float(same):.2f} % of the frames")
    print(f"error {error:.4f}, of a speaker from {min(each):.4f} to {max(each):.4f}")
    print(f"spikes make {sum(additions) / len(additions):.3f} additions for each MAC of the source")
    print("second  source  spiking, first speaker")
    for f in range(0, len(frames), max(1, len(frames) // 24)):
        p, q = float(want[f, 0]), float(have[f, 0])
        print(f"{f * HOP / RATE:6.2f}  {p:6.3f}  {q:7.3f}  {'#' * round(30 * q)}")


if __name__ == "__main__":
    main()
