"""The demo and the steps of its installation: what is on the screen."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the demo of one network prints, and where its pictures are."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--networks", "vgg"]
    command += ["--plans", "8 x 1", "4 x 1", "--samples", "100", "--plot", str(folder / "demo")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_nothing_stray_is_on_the_screen(shown):
    done, _ = shown
    stray = [line for line in done.stderr.splitlines() if not re.fullmatch(r".*, \d+ s.*", line)]
    assert not stray and "arning" not in done.stdout + done.stderr


def test_progress_has_a_line_for_each_step(shown):
    steps = re.findall(r"^ *[\d.]+ s  (.*)$", shown[0].stdout, re.M)
    assert steps[0].startswith("loading")
    told = [step.split(":")[0].strip() for step in steps[1:] if "slower" not in step]
    assert told == ["VGG, 70,330 parameters", "8 x 1", "4 x 1", "drawing"]


def test_the_table_has_a_row_for_each_plan(shown):
    head, *rows = re.findall(r"^(?:network|VGG  ).*$", shown[0].stdout, re.M)
    assert head.split()[2:] == "source spiking agreement error spikes additions".split()
    names, found = head.split()[2:], []
    for row in rows:
        numbers = [float(number) for number in re.findall(r"[\d.]+", row)[2:]]
        found.append(dict(zip(names, numbers, strict=True)))
    large, small = found  # of eight signs and of four
    assert small["spikes"] < large["spikes"] and small["error"] > large["error"]
    assert large["source"] >= 95 and large["agreement"] >= 97


def test_pictures_are_where_it_says(shown):
    done, folder = shown
    for ending in ("png", "svg"):
        assert (folder / f"demo.{ending}").stat().st_size > 1000
        assert str(folder / f"demo.{ending}") in done.stdout


def test_it_ends_with_three_commands_that_work_as_printed(shown):
    """Also where no environment is active, as after make demo."""
    *_, first, second, third = (line.split("  ")[1] for line in shown[0].stdout.splitlines()[-3:])
    for command, ends in ((first, "quickstart.py"), (second, "report.py")):
        python, script = command.split()
        assert script.endswith(ends) and (ROOT / script).is_file()
        assert subprocess.run([python, "-c", "import torch"], env={"PATH": ""}).returncode == 0
    assert third.endswith(" -m spikingjelly_signgd --help")


def test_the_interpreter_of_an_environment_here_is_named_briefly(monkeypatch, tmp_path):
    import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    lines = demo.next_commands().splitlines()
    assert lines[0].startswith("  .venv/bin/python examples/quickstart.py  ")
    assert len({line.index(what) for line, (_, what) in zip(lines, demo.NEXT, strict=True)}) == 1


@pytest.mark.skipif(
    not (find_spec("facenet_pytorch") and find_spec("skimage")),
    reason="needs the weights of facenet-pytorch and the images of scikit-image",
)
def test_the_spiking_face_detector_decides_as_its_source():
    from demo_parts import face_detector, measure
    from pretrained import found, photograph, windows

    task = face_detector()
    row = measure(task, "8 x 1")
    assert row.source_accuracy >= 0.98 and row.accuracy >= 0.98 and row.agreement >= 0.99
    assert row.spikes < 3 and row.additions < 3
    assert row.outputs is not None
    boxes = windows(photograph()).boxes
    (face,) = found(row.outputs, boxes).tolist()
    left, top, side = face
    assert left < 225 < left + side and top < 115 < top + side, "the astronaut's nose"


def test_absent_weights_say_how_they_are_installed(monkeypatch):
    import pretrained

    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps facenet-pytorch scikit-im"):
        pretrained.rnet()


def test_windows_are_cut_where_their_boxes_say():
    from pretrained import SIDE, _shown, windows

    image = 255 * torch.rand(3, 260, 300, generator=torch.Generator().manual_seed(0))
    cut = windows(image)
    for i in range(0, len(cut.boxes), 7):
        left, top, side = cut.boxes[i].tolist()
        part = _shown(image[None, :, top : top + side, left : left + side])
        assert cut.images[i].shape == (3, SIDE, SIDE)
        torch.testing.assert_close(cut.images[i], part[0])


# -- the installation -----------------------------------------------------------------------------


def step(*command):
    done = subprocess.run(
        [str(ROOT / "tests" / "step.sh"), "a package", *command], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_step_shows_its_own_lines_alone():
    code, out, err = step("sh", "-c", "echo noise; echo warning >&2")
    assert code == 0 and err == ""
    assert re.fullmatch(r" +a package\n +\d+ s  a package *\n", out)


def test_a_failed_step_shows_what_was_printed():
    code, out, err = step("sh", "-c", "echo why; exit 3")
    assert code == 3 and "a package: failed" in out and err == "why\n"


def test_plain_make_lists_every_target():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = " ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M))
    parts = {"help", "environments", "lava-environment"}  # of other targets
    assert set(names.split()) - parts == set(re.findall(r"^make ([\w-]+)", listed, re.M))
