"""README is short, its blocks run and print what it shows, its figures are the measured ones.

`make test-readme` runs the same blocks in an environment that README's own install line made.
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import additions
import pytest
import readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REAL = ROOT / "benchmarks" / "results" / "real"


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert not [line for line in lines if len(line) > 110 and not re.match(r"\||!\[", line)]


def test_the_script_is_the_ten_lines():
    script = (ROOT / "examples/quickstart.py").read_text()
    lines = [line for line in script.split('"""', 2)[2].splitlines() if line]
    shown = "".join(readme.blocks("python", README)[:2]).splitlines()
    assert sorted(lines) == sorted(line for line in shown if line)
    ten = [line for line in readme.blocks("python", README)[1].splitlines() if line]
    assert len([line for line in ten if not re.match("import|from", line)]) <= 10


@pytest.mark.spikingjelly
def test_every_block_runs_and_prints_what_it_shows(tmp_path):
    readme.run_blocks(sys.executable, tmp_path, README, dict(os.environ))
    assert {"digits.h5", "net.nir", "net.net", "test.npz"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("printed", "shown", "equal"),
    [
        ("T 93.63 %\n", "T  93.80 %\n", True),
        ("T 93.63 %\n", "T 83.63 %\n", False),
        ("True\n", "False\n", False),
        ("a\nb\n", "a\n", False),
        ("1 of 2\n", "1 of 3\n", False),
    ],
)
def test_what_is_the_same(printed, shown, equal):
    assert readme.same(printed, shown) == equal


def test_what_is_shown_belongs_to_its_block():
    page = "```python\nprint(1)\n```\n\nprints\n\n```\n1\n```\n\n```python\nprint(2)  # 2\n```\n"
    assert readme.expected(page) == ["1\n", "2\n"]


# -- figures --------------------------------------------------------------------------------------


def cells(row: str) -> list[str]:
    (line,) = [line for line in README.splitlines() if line.startswith("|") and row in line]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def measured(file: str, cell: str, key: str = "agreement") -> list[str]:
    """Agreement, error, additions and spikes of a stored result, as the table shows them."""
    v = json.loads((REAL / f"{file}.json").read_text())
    for part in cell.split("/"):
        v = v[part]
    shares = {"agreement": "{:.1%}", "same": "{:.2%}", "cosine": "cosine {:.4f}"}
    share = shares[key].format(v[key]).replace("%", " %")
    return [share, f"{v['error']:.3f}", f"{v['additions']:.2f}", f"{v['spikes']:.2f}"]


@pytest.mark.parametrize(
    ("row", "plan", "stored"),
    [
        ("[EfficientNet-Lite0]", "8 x 1", ("efficientnet_lite", "8x1")),
        ("the same, tuned", "6 x 2", ("efficientnet_lite", "6x2 tuned")),
        ("[MiniLM-L6]", "8 x 1", ("sentence_encoder", "8x1", "cosine")),
        ("R-Net]", "8 x 1", ("faces", "8x1/rnet", "same")),
        ("P-Net]", "8 x 1", ("faces", "8x1/pnet", "same")),
    ],
)
def test_the_table_of_real_networks(row: str, plan: str, stored: Any):
    assert cells(row) == [plan, *measured(*stored)]


def test_the_video_in_the_table():
    page = (ROOT / "docs/tutorials/video.md").read_text()
    _, share, _, a_frame, _ = cells("watching a video")
    assert f"decided as the source does: {share}" in page
    (after,) = re.findall(r"after the first (\d\.\d+)", page)
    assert a_frame == f"{float(after):.2f} a frame"


def test_the_models_that_convert():
    page = (ROOT / "docs/coverage.md").read_text()
    rows = [re.findall(rf"^\| {name} \| (\d+) \| (\d+) ", page, re.M)[0]
            for name in ("torchvision", "transformers")]  # fmt: skip
    tried, converted = (sum(int(row[i]) for row in rows) for i in (0, 1))
    assert f"{converted} of {tried} models" in README


# -- the picture ----------------------------------------------------------------------------------


def test_additions_by_the_papers_own_equation():
    """H-MT, equation 31, without multiplications: the ratio of energies is 0.9 / 4.6 additions per
    MAC. ResNet-34 at T = 2 has 0.2986."""
    (point,) = [p for p in additions.published() if p.name == "ResNet-34, T = 2"]
    assert point.additions == pytest.approx(0.2986 * 4.6 / 0.9)
    assert point.change == pytest.approx(76.276 - 76.42) and point.data == "ImageNet"


def test_ours_are_those_of_the_grid():
    """Measured by two scripts: the same predictions and additions."""
    grid = ROOT / "benchmarks" / "results" / "dead_zone"
    for point in additions.ours():
        cell = json.loads((grid / f"{point.network}.json").read_text()).get(
            f"{point.plan} 0.667 untuned"
        )
        if cell:
            assert point.additions == pytest.approx(cell["additions"])
            assert abs(point.change) <= 100 * (1 - cell["agreement"]) + 1e-9


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="draws")
def test_the_picture_and_the_page_show_the_data(tmp_path):
    points = additions.draw(tmp_path)
    assert {p.method for p in points} >= {"ours", "ours, bound", "H-MT (AAAI 2026)"}
    drawn = (tmp_path / "additions.svg").read_text()
    for name in (*additions.NETWORKS, "ResNet-34, T = 2", "Fashion-MNIST", "ImageNet"):
        assert f"<!-- {name}" in drawn or name in drawn
    assert (tmp_path / "additions.png").stat().st_size < 300_000
    page = (ROOT / "docs" / "method.md").read_text()
    assert page == additions.page(page), "run python benchmarks/additions.py --write"
