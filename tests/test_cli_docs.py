"""The page of the command line: its commands are run, and print what it shows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spikingjelly_signgd.cli.options import build_parser, parse

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/command-line.md").read_text()
MARK = "@@@ next command"
TOLERANCE = 0.1  # of a number shown: the last digits differ from machine to machine


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def session() -> list[tuple[str, list[str]]]:
    """Each command and the lines that it is shown to print."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def shows(want: list[str], have: list[str]) -> bool:
    """``...`` stands for any lines, or for any text in a line; numbers may differ a little."""
    if not want:
        return not have
    if want[0] == "...":
        return any(shows(want[1:], have[i:]) for i in range(len(have) + 1))
    return bool(have) and same_line(want[0], have[0]) and shows(want[1:], have[1:])


def same_line(want: str, have: str) -> bool:
    number = r"[-+]?\d[\d,]*(?:\.\d+)?"
    pattern = re.escape(" ".join(want.split())).replace(r"\.\.\.", ".*")
    pattern = re.sub(r"(?:\\[-+])?\d[\d,]*(?:\\\.\d+)?", lambda _: f"({number})", pattern)
    found = re.fullmatch(pattern, " ".join(have.split()))
    if found is None:
        return False
    numbers = [float(n.replace(",", "")) for n in re.findall(number, want)]
    pairs = zip(numbers, (float(n.replace(",", "")) for n in found.groups()), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), 0.1) for a, b in pairs)


def test_what_counts_as_shown():
    assert shows(["a  1.00 %", "...", "b"], ["a 1.05 %", "x", "y", "b"])
    assert shows(["...", "..."], []) and shows(["1. ... done"], ["1. all is done"])
    assert not shows(["a 1.00"], ["a 1.5"]) and not shows(["a"], ["a", "b"])
    assert not shows(["a"], []) and not shows(["..", "b"], ["a", "b"])


@pytest.mark.slow  # a minute: each command is a process
def test_the_session(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    module, program = blocks("python")
    (tmp_path / "zoo.py").write_text(module)
    commands = session()
    script = "\n".join(f"echo '{MARK}'\n{command}" for command, _ in commands)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    legacy = os.environ.get("PYTHONPATH", "")
    script = script.replace("PYTHONPATH=examples", f"PYTHONPATH=examples:{legacy}")
    done = subprocess.run(
        ["bash", "-c", f"{script}\npython -c '{program}'"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    printed = [part.splitlines()[1:] for part in done.stdout.split(MARK)[1:]]
    assert len(printed) == len(commands), done.stdout
    for (command, want), have in zip(commands[:-1], printed[:-1], strict=True):
        assert shows(want, have), "\n".join([f"$ {command}", *have, "-- but shown is:", *want])
    assert shows([*commands[-1][1], "..."], printed[-1]), printed[-1]
    files = {"net.h5", "fixed.h5", "group.nir", "report.html", "vgg.pt2"}
    assert files <= {file.name for file in tmp_path.iterdir()}, done.stdout


def test_every_command_has_a_row_and_an_example():
    _, known = build_parser()
    assert re.findall(r"^\| `([\w-]+) ", PAGE, flags=re.MULTILINE)[: len(known)] == list(known)
    shown = " ".join(command for command, _ in session())
    assert all(f"spikingjelly-signgd {name} " in shown for name in known)


def test_the_toml_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("toml")
    (tmp_path / "net.toml").write_text(text)
    options = parse(["convert", "--config", "net.toml"])
    assert options.model == tomllib.loads(text)["convert"]["model"] == "zoo:vgg"
    assert options.data == "zoo:train" and options.tune is False and options.time_steps == 8
    assert parse(["evaluate", "net.h5", "--config", "net.toml"]).data == "zoo:test"


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", PAGE))))
def test_options_exist(option):
    _, known = build_parser()
    names = {o for c in known.values() for action in c._actions for o in action.option_strings}
    assert option in names
