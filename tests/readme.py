"""README as a stranger follows it: its install line, and its blocks in an empty folder.

    python tests/readme.py install PYTHON WHEEL    what README says after `pip`, of a built wheel
    python tests/readme.py run PYTHON              its blocks and commands, outside of the checkout

The Python blocks run in their order in one namespace, the commands after them. What README shows,
under a block or as the comment of a `print`, is compared with what is printed; another processor
rounds otherwise, so measured numbers (with a decimal point, by thousands, of percent) may differ by
TOLERANCE of their value, or by LEAST.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MARK = "== the next block"
TOLERANCE, LEAST = 0.1, 0.002
NUMBER = re.compile(r"[+-]?\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\d+(?=%)")


def blocks(language: str, text: str) -> list[str]:
    return [code for found, code in FENCE.findall(text) if found == language]


def expected(text: str, comments: bool = True) -> list[str]:
    """What each Python block is shown to print: the fence after "prints", or comments of print."""
    found = []
    for part in re.split(r"^```python\n", text, flags=re.M)[1:]:
        code, after = part.split("\n```\n", 1)
        shown = re.match(r"\s*prints[^\n]*\n\n```\w*\n(.*?)^```$", after, re.M | re.S)
        lines = re.findall(r"^print\(.*\)  # (.*)$", code, re.M) if comments else []
        found.append(shown[1] if shown else "".join(f"{line}\n" for line in lines))
    return found


def same(printed: str, shown: str) -> bool:
    """Line by line, but for the width of columns and what measured numbers may differ by."""

    def frame(text: str) -> list[str]:
        return [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines()]

    def numbers(text: str) -> list[float]:
        return [float(found.replace(",", "")) for found in NUMBER.findall(text)]

    pairs = zip(numbers(printed), numbers(shown), strict=False)
    return frame(printed) == frame(shown) and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=LEAST) for a, b in pairs
    )


def run_blocks(python: str, folder: Path, text: str, environment: dict[str, str]) -> str:
    """All Python blocks of ``text`` by one process in ``folder``, and what they print compared."""
    program = f'\nprint("{MARK}")\n'.join(blocks("python", text))
    (folder / "blocks.py").write_text(program)
    done = subprocess.run(
        [python, "blocks.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for printed, shown in zip(done.stdout.split(f"{MARK}\n"), expected(text), strict=True):
        assert same(printed, shown), f"printed:\n{printed}\nshown:\n{shown}"
    return done.stdout


def run_commands(folder: Path, text: str, environment: dict[str, str]) -> None:
    for line in "".join(blocks("console", text)).splitlines():
        command = shlex.split(line.removeprefix("$ "))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stderr}"


def install_line(text: str) -> str:
    (line,) = [block.strip() for block in blocks("", text) if block.startswith("pip install ")]
    return line


def install(python: str, wheel: str) -> None:
    """README's pip line, with the wheel in place of the source directory."""
    what = install_line((ROOT / "README.md").read_text()).replace("'.[", f"'{wheel}[")
    assert wheel in what, f"README's install line names no source directory: {what}"
    command = [python, "-m", *shlex.split(what), "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, env=outside(python), check=True)


def outside(python: str) -> dict[str, str]:
    """The environment of a process that sees what was installed, and no checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"PATH": os.pathsep.join([str(Path(python).parent), kept["PATH"]])}


def run(python: str) -> None:
    text, environment, begun = (ROOT / "README.md").read_text(), outside(python), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = "import spikingjelly_signgd as sg; print(sg.__file__)"
        found = subprocess.check_output([python, "-c", where], cwd=folder, env=environment)
        home = Path(found.decode().strip()).parent
        assert home.parent.name == "site-packages" and home != ROOT, f"{home} is no installation"
        run_blocks(python, folder, text, environment)
        run_commands(folder, text, environment)
    seconds = time.monotonic() - begun
    print(f"== README's blocks and commands, outside of the checkout: {seconds:.0f} s")


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    paths = [str(Path(path).absolute()) for path in paths]
    install(*paths) if what == "install" else run(*paths)
