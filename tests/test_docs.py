"""The code of the documentation runs, block after block, and shows what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


def run_blocks(path: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(code, scope)
    return scope


def test_norse():
    scope = run_blocks(ROOT / "docs/norse.md")
    assert scope["error"] < 0.006
    assert len(scope["state"].neurons) == 9
    assert torch.equal(scope["outputs"][32], scope["output"][-1])
    data = scope["data"]
    hits = (scope["prediction"] == data.test.labels[:100]).float().mean()
    assert hits >= 0.95


def test_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = run_blocks(ROOT / "docs/exports.md")
    assert "verified" in capsys.readouterr().out
    assert scope["certificate"].ok
    assert {path.name for path in tmp_path.iterdir()} == {"net.h5", "net.nir", "net.net"}


def test_method(monkeypatch, capsys):
    scope = run_blocks(ROOT / "docs/method.md")
    printed = capsys.readouterr().out
    assert "error if undone" in printed and "functions  layers  neurons" in printed
    before, after = scope["sg"].Tuning.of(scope["tuned"]).error
    assert after < before
    operations, neurons = scope["operations"], sum(scope["union"].count().values())
    assert operations.spikes == 8 * neurons
    assert scope["rule"].agreement >= 0.99 and scope["left"].mean_steps < 16


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
