"""What the documentation shows is so: its code runs, its commands, links and names exist."""

import importlib
import importlib.util
import inspect
import re
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
FENCE = re.compile(
    r"(?:<!-- *(not run: [^\n]*?) *-->\n\n?)?^```(\{[\w-]+\}|\w*)\n(.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: str
    note: str  # why it is not run
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(page, *found) for found in FENCE.findall(PAGES[page])]


def python(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


# -- code ---------------------------------------------------------------------------------------

NOT_RUN = {
    ("docs/migration.md", "not run: sinabs, for comparison"),
    ("docs/migration.md", "not run: lava-dl, for comparison"),
    ("docs/migration.md", "not run: snnTorch, for comparison"),
    ("docs/migration.md", "not run: snntoolbox, for comparison"),
    ("docs/tutorials/lava.md", "not run: needs Lava"),
    ("docs/tutorials/resnet.md", "not run: downloads weights"),
}
# pages whose code other tests run, and where
ELSEWHERE = {
    "docs/by_hand.md": "test_by_hand.py",
    "docs/by_hand_forms.md": "test_forms_by_hand.py",
    "docs/command-line.md": "test_cli_docs.py",
    "docs/counters.md": "test_neurobench.py",
    "docs/lava.md": "test_lava.py",
    "docs/nir.md": "test_nir.py",
    "docs/reference/convert.md": "test_passes.py",
    "docs/report.md": "test_report.py",
    "docs/tutorials/qcfs.md": "test_training_examples.py",
    "docs/tutorials/training.md": "test_training_examples.py",
}


def test_nothing_else_is_left_out():
    marked = {(block.page, block.note) for page in PAGES for block in blocks(page) if block.note}
    assert marked == NOT_RUN
    assert not [b for page in PAGES for b in blocks(page) if b.note and b.language != "python"]


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_code_that_is_run_elsewhere(page, test):
    text = (ROOT / "tests" / test).read_text()
    assert Path(page).name in text and re.search(r"exec\(code|subprocess", text)


def run(page: str, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    """The Python blocks of a page one after the other, in one namespace."""
    scope = {} if scope is None else scope
    for number, block in enumerate(python(page), 1):
        if not block.note:
            exec(compile(block.code, f"{page}, block {number}", "exec"), scope)
    return scope


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_newcomers_path(folder, capsys):
    """From install to an exported, verified file in at most ten lines."""
    text = PAGES["docs/index.md"]
    path = text.split("<!-- the newcomer's path -->")[1].split("<!-- end of the newcomer's path")[0]
    fenced = [code for _, _, code in FENCE.findall(path)]
    lines = [line for code in fenced for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10 and lines[0].startswith("pip install")
    scope = run("docs/index.md")
    printed = capsys.readouterr().out
    assert "net.h5 (hdf5): verified" in printed
    assert scope["network"].provenance["tuning"]
    assert sg.verify(folder / "net.h5", network=scope["network"]).ok


def test_quickstart(folder, capsys):
    scope = run("docs/quickstart.md")
    assert scope["certificate"].ok and scope["again"].names() == scope["network"].names()
    assert list(scope["outputs"]) == [4, 8, 16] and scope["outputs"][16].shape == (50, 10)
    assert scope["cost"].spikes < 4 * scope["cost"].neurons, "silence is free"
    assert "can be converted" in capsys.readouterr().out


def test_mathematics(folder):
    scope = run("docs/mathematics.md")
    assert scope["error"] <= 0.5 * 0.8**23


def test_resnet(folder, capsys):
    scope = run("docs/tutorials/resnet.md")
    printed = capsys.readouterr().out
    shown = PAGES["docs/tutorials/resnet.md"].split("prints\n\n```\n")[1].split("```")[0]
    for line in shown.splitlines()[1:-1]:  # another processor rounds otherwise
        t, accuracy, *_ = line.split()
        (found,) = [row for row in printed.splitlines() if row.startswith(line[:6] + " ")][:1]
        assert abs(float(found.split()[1]) - float(accuracy)) <= 3, (t, found)
    assert "100.00 %" in printed and "verified" in printed
    assert scope["exact"].time_steps == 1


@pytest.mark.slow
def test_convnext(folder, capsys):
    scope = run("docs/tutorials/convnext.md")
    printed = capsys.readouterr().out
    count = {name: sum(scope[name].count().values()) for name in ("whole", "local")}
    assert count["local"] > count["whole"]
    assert "convnext.h5 (hdf5): verified" in printed and "NIR cannot express" in printed
    assert scope["kept"].kept() and scope["left"].mean_steps < 8


def test_activation(folder):
    scope = run("docs/tutorials/activation.md")
    assert not sg.check(scope["model"], scope["images"][:2]).ok  # without the entry
    assert scope["certificate"].ok
    assert [node.function.name for node in scope["again"].neurons] == ["softsign"]
    assert scope["same"] > 0.999


def test_norse_tutorial(folder):
    scope = run("docs/tutorials/norse.md")
    assert scope["accuracy"] >= 0.9 and scope["agreement"] >= 0.9
    assert scope["potentials"].shape == (16, 50, 10)


def test_lava_tutorial(folder, capsys, monkeypatch):
    monkeypatch.delenv("LAVA_PYTHON", raising=False)
    scope = run("docs/tutorials/lava.md")
    printed = capsys.readouterr().out
    assert "'layer1.add' is a residual sum" in printed and "not run in Lava" in printed
    assert not scope["certificate"].ok and scope["hits"] >= 0.9


def test_doctor(folder, capsys):
    scope = run("docs/tutorials/doctor.md")
    printed = capsys.readouterr().out.splitlines()
    shown = PAGES["docs/tutorials/doctor.md"].split("prints\n\n```\n")[1].split("```")[0]
    heads = [line.split()[0] for line in shown.splitlines()]
    assert heads == [line.split()[0] for line in printed[: len(heads)]]
    (first, *_) = scope["diagnosis"].findings
    assert (first.layer, first.cause, first.applicable) == ("layer2.relu", "scale", True)
    assert first.blame > 0.5
    assert any("T = 2 is too small" in line for line in printed[len(heads) :])
    errors = [sg.evaluate(sg.build(scope[n]), scope["test"], 16, reference=scope["model"]).error
              for n in ("fixed", "network")]  # fmt: skip
    assert errors[0] < errors[1]


def test_the_page_of_the_doctor():
    scope = run("docs/doctor.md")
    (first, *_) = scope["diagnosis"].findings
    assert (first.layer, first.cause) == ("stage1.act", "scale")
    assert first.text in PAGES["docs/doctor.md"]
    assert [node.name for node in scope["fixed"].neurons] == [
        node.name for node in scope["network"].neurons
    ]


def test_metrics():
    found = run("docs/metrics.md")["found"]
    assert list(found.outputs) == ["classes", "depth"]
    assert found.outputs["classes"]["mean_iou"][0] > 0.9
    assert found.outputs["depth"]["error"][0] < 0.1


def test_sizes():
    scope = run("docs/sizes.md")
    assert scope["network"].provenance["sizes"]["between"] and scope["large"].input.shape[2] == 120
    found = sg.evaluate(scope["snn"], [scope["x"]], reference=scope["model"])
    assert found.error[0] < 0.1


def test_streams(folder):
    scope = run("docs/streams.md")
    assert scope["outputs"].shape == (24, 2, 4) and scope["y"].shape == (2, 4)
    assert scope["state"]["frames"] == 12 and scope["spikes"] > 0
    assert torch.equal(scope["later"], scope["outputs"][12:])


def test_stream_inputs(folder, capsys):
    scope = run("docs/stream_inputs.md")
    assert scope["y"].shape == (24, 8, 3) and scope["h"].shape == (24, 8, 16)
    assert scope["error"] < 0.02
    assert "'layer.h': (1, 16)" in capsys.readouterr().out


def test_events_tutorial(folder, capsys):
    scope = run("docs/tutorials/events.md")
    printed = capsys.readouterr().out.splitlines()
    shown = PAGES["docs/tutorials/events.md"].split("prints\n\n```\n")[1].split("```")[0]
    assert printed[0] == shown.splitlines()[0]
    assert len([line for line in printed if line.startswith("step ")]) == 12
    assert scope["right"] >= 0.6


def test_scaling(capsys):
    scope = run("docs/scaling.md")
    printed = capsys.readouterr().out
    shown = PAGES["docs/scaling.md"].split("left out:\n\n```\n")[1].split("```")[0]
    assert printed.endswith(shown)
    assert scope["table"].samples == 200 and scope["table"].error[0] < 0.1


def test_silence():
    scope = run("docs/silence.md")
    assert scope["y"].shape == (10,) and scope["spikes"] > 0


def test_fine_tuning(folder, capsys):
    scope = run("docs/fine_tuning.md")
    history = scope["tuned"].history
    assert history[scope["tuned"].best].accuracy >= history[0].accuracy
    assert "tuned.h5 (hdf5): verified" in capsys.readouterr().out
    x = scope["x"]
    pair = [sg.run(sg.build(scope["collected"]), x)[1], sg.run(scope["snn"], x)[1]]
    assert torch.equal(*pair)


def test_energy(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # the page finds the examples there
    scope = run("docs/energy.md")
    (shown,) = re.findall(r"```text\n(at T=.*)\n```", PAGES["docs/energy.md"])
    assert scope["energy"].sentence(1) == shown
    assert list(scope["costs"]) == [2, 4, 8] and "estimate" in capsys.readouterr().out


@pytest.mark.slow
def test_migration(folder, capsys):
    scope = run("docs/migration.md")
    for name in ("theirs", "snn"):
        assert isinstance(scope[name], nn.Module)
    labels = scope["data"].test.labels[:100]
    assert (scope["prediction"] == labels).float().mean() >= 0.9
    assert all((folder / name).exists() for name in ("cnn.h5", "mlp.net"))
    assert all(p.grad is not None and p.grad.any() for p in scope["net"].parameters())


class Detector(nn.Module):
    """Boxes and probabilities of windows, as P-Net's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.boxes, self.faces = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 2, 3),
        )

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.boxes(x), self.faces(x).softmax(1)


def test_tutorial_of_a_video(folder, capsys):
    clip = torch.rand(4, 1, 3, 8, 9)
    scope = {"model": Detector().eval(), "behind": torch.rand(4, 1, 3, 8, 9), "clip": clip}
    run("docs/tutorials/video.md", scope)
    assert len(scope["costs"]) == 4 and scope["probabilities"].shape == (1, 2, 4, 5)
    assert "frame 3: " in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"video.png", "video.html"}
    assert 'id="stream"' in (folder / "video.html").read_text()


def test_format(folder):
    first = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), act1=nn.ReLU()))
    model = nn.Sequential(OrderedDict(layer1=first, flat=nn.Flatten(), head=nn.Linear(144, 10)))
    images = torch.rand(8, 1, 8, 8)
    sg.save(sg.convert(model, images, method="group", time_steps=8), "network.h5")
    scope = run("docs/format.md", {"x": images.numpy()})
    assert scope["result"].outputs[8].shape == (8, 10)
    assert scope["stream"].outputs[8].shape == (1, 8, 10)


def test_stream_plans():
    assert run("docs/stream_plans.md")["y"].shape == (24, 8, 10)


def test_norse():
    scope = run("docs/norse.md")
    assert scope["error"] < 0.006
    assert scope["quiet_error"] < 0.006 and scope["silent"] > 0.5
    assert set(scope["sigma"].unique().tolist()) == {-1.0, 0.0, 1.0}
    assert len(scope["state"].neurons) == 9
    assert torch.equal(scope["outputs"][32], scope["output"][-1])
    data = scope["data"]
    hits = (scope["prediction"] == data.test.labels[:100]).float().mean()
    assert hits >= 0.95


def test_exports(folder, capsys):
    scope = run("docs/exports.md")
    assert "verified" in capsys.readouterr().out
    assert scope["certificate"].ok
    assert {path.name for path in folder.iterdir()} == {"net.h5", "net.nir", "net.net"}


@pytest.mark.slow
def test_method(capsys):
    scope = run("docs/method.md")
    printed = capsys.readouterr().out
    assert "error if undone" in printed and "functions  layers  neurons" in printed
    before, after = scope["sg"].Tuning.of(scope["tuned"]).error
    assert after < before
    operations, neurons = scope["operations"], sum(scope["union"].count().values())
    assert operations.spikes < 2 * neurons, "of eight signs most are left out"
    assert scope["dense"].spikes == 8 * neurons
    assert scope["rule"].agreement >= 0.99 and scope["left"].mean_steps < 16


def test_every_page_with_code_has_a_test():
    source = Path(__file__).read_text()
    run_here = set(re.findall(r'run\("([\w./-]+)"', source)) | {"README.md"}
    with_code = {page for page in PAGES if python(page)}
    assert with_code == (run_here & with_code) | ELSEWHERE.keys()


# README: test_examples.py runs the quick start and the nodes by hand; the other blocks are given
# what their text says they work on.


def in_readme(starts: str) -> str:
    (code,) = [b.code for b in python("README.md") if starts in b.code]
    return code


README_BLOCKS = {
    "quick start": "load_network(",
    "by hand": "SignGDNode(",
    "norse": "norse.SequentialState",
    "files": "sg.verify(",
    "own": "aten.sin",
    "in C": "softsign",
    "streams": "sg.watch(",
    "fewer": "sg.search(",
    "what happened": "write_report(",
}


def test_readme_has_no_other_code():
    assert sorted(in_readme(key) for key in README_BLOCKS.values()) == sorted(
        block.code for block in python("README.md")
    )


def test_readme_streams(capsys):
    from data import digits
    from networks import load_network

    scope = {"sg": sg, "data": digits(), "model": load_network("vgg", "digits")}
    exec(in_readme(README_BLOCKS["streams"]), scope)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("frame 0: 3,") and last.startswith("frame 9: 0 spikes"), (first, last)
    assert "0 additions, 0.000" in last


def test_readme_norse():
    scope: dict[str, Any] = {}
    exec(in_readme(README_BLOCKS["norse"]), scope)
    assert scope["y"].shape == (16, 4, 10)


def test_readme_files(folder, capsys):
    from data import digits
    from lava_digits import load

    images = digits().train.images[:64]
    network = sg.convert(load("mlp"), images, method="group", time_steps=1)
    exec(in_readme(README_BLOCKS["files"]), {"sg": sg, "network": network, "images": images})
    assert "verified" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"net.h5", "net.nir", "net.net"}


def test_readme_functions():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    scope = {
        "sg": sg,
        "torch": torch,
        "model": nn.Sequential(nn.Linear(8, 4), Sine()),
        "data": torch.rand(32, 8),
    }
    exec(in_readme(README_BLOCKS["own"]), scope)
    exec(in_readme(README_BLOCKS["in C"]), scope)
    assert scope["softsign"](torch.tensor([3.0])) == 0.75


def test_readme_what_happened(folder, capsys):
    from data import digits
    from networks import load_network

    data, model = digits(), load_network("vgg", "digits")
    network = sg.convert(model, data.train.images[:64], time_steps=1, members=1, tune=False)
    scope = {
        "snn": sg.build(network),
        "model": model,
        "images": data.test.images[:16],
        "labels": data.test.labels[:16],
    }
    exec(in_readme(README_BLOCKS["what happened"]), scope)
    out = capsys.readouterr().out
    assert "output error" in out and "break-even at" in out
    (found,) = scope["diagnosis"].findings
    assert found.cause == "steps" and scope["network"].time_steps > 1, "one sign is too few"
    assert scope["diagnosis"].fixed[0] < 0.5 * scope["diagnosis"].error[1]
    assert {path.name for path in folder.iterdir()} == {"report.html"}


@pytest.mark.slow
def test_readme_fewer_steps(capsys):
    from data import digits
    from networks import load_network

    data, model = digits(), load_network("vgg", "digits")
    images, x = data.train.images[:128], data.test.images[:20]
    scope = {
        "sg": sg,
        "model": model,
        "relu_model": model,
        "images": images,
        "x": x,
        "loader": [(data.validation.images, data.validation.labels)],
    }
    code = in_readme(README_BLOCKS["fewer"])
    conversions, stopping = code.split("for step in sg.stream", 1)
    exec(conversions, scope)
    assert scope["network"].time_steps == 2
    scope["snn"] = sg.build(sg.convert(model, images, time_steps=8, tune=False))
    exec("for step in sg.stream" + stopping, scope)
    assert "error if undone" in capsys.readouterr().out


# -- commands -----------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Command lines in blocks without a language and in the running text."""
    for page, text in PAGES.items():
        prose = FENCE.sub("", text)
        lines = [code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)]
        for block in blocks(page):
            if block.language in ("", "sh", "bash", "console"):
                lines += re.sub(r"\\\n\s*", "", block.code).splitlines()
        for line in lines:
            line = line.split("  #")[0].strip().removeprefix("$ ")
            if re.match(r"(python|make|pip install|spikingjelly-signgd|tests/\S+\.sh) ", line):
                yield page, line


def test_commands_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    seen = 0
    for page, line in commands():
        words, where = line.split(), f"{page}: {line}"
        seen += 1
        if words[0] == "make":
            assert words[1] in targets, where
        elif words[0] == "pip":
            for extras in re.findall(r"\.\[([\w,-]+)\]", line):
                missing = set(extras.split(",")) - project["optional-dependencies"].keys()
                assert not missing, where
        elif words[0] == "spikingjelly-signgd":
            assert words[0] in project["scripts"], where
        else:
            script = ROOT / words[0] if words[0] != "python" else None
            if words[0] == "python" and words[1] == "-m":
                name = words[2].removeprefix("spikingjelly_signgd.").replace(".", "/")
                script = ROOT / f"{name}.py"
                script = script if script.exists() else ROOT / name / "__main__.py"
            elif words[0] == "python":
                script = ROOT / words[1]
            assert script is not None and script.exists(), where
            source = script.read_text()
            for option in re.findall(r"(?<!\w)--[a-z][\w-]*", line):
                assert option in source, where
    assert seen > 20


# -- links --------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Those of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = (ROOT / page).parent
    for target, _, anchor in re.findall(
        r"\]\(([^)#:\s]*)(#([^)\s]+))?\)", FENCE.sub("", PAGES[page])
    ):
        found = here / target if target else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text()), f"{target}#{anchor}"


def in_toctrees(page: str) -> Iterator[str]:
    """A page and what its toctrees lead to, as docs/ names pages."""
    yield page
    found = blocks(f"docs/{page}.md") if f"docs/{page}.md" in PAGES else []
    for block in [block for block in found if block.language == "{toctree}"]:
        for name in re.findall(r"^(?:[^:\n].* <)?([\w/-]+)>?$", block.code, re.M):
            yield from in_toctrees((Path(page).parent / name).as_posix())


def test_every_page_is_in_the_navigation():
    pages = script("extensions/pages")
    files = [*DOCS.rglob("*.md"), *(ROOT / name for name in pages.ELSEWHERE)]
    assert sorted(in_toctrees("index")) == sorted(
        pages.place(path).removesuffix(".md") for path in files
    ), "each page is in one toctree"


def test_links_of_the_sites_pages_lead_to_the_same_files(tmp_path):
    """To pages outside docs/ and to what is no page; code stays as it is."""
    page, copy = DOCS / "tutorials" / "resnet.md", tmp_path / "tutorials" / "resnet.md"
    text = (
        "[a](../index.md#install) [b](../../CHANGELOG.md) [c](../../README.md) [d](gone.md)\n"
        "![e](../method.png) [f](../../examples/data.py)\n```\n[g](../../CHANGELOG.md)\n```\n"
    )
    found = script("extensions/pages").moved(text, page, copy)
    assert "[a](../index.md#install) [b](../CHANGELOG.md) [c](../index.md) [d](gone.md)" in found
    assert "![e](../method.png)" in found and "[g](../../CHANGELOG.md)" in found
    (data,) = re.findall(r"\[f\]\((.*?)\)", found)
    assert (copy.parent / data).resolve() == ROOT / "examples" / "data.py"


# -- reference ----------------------------------------------------------------------------------


def entries() -> list[str]:
    return [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.M)
    ]


def test_every_public_name_is_in_the_reference():
    listed = {name.rpartition(".")[2] for name in entries()}
    members = re.findall(r"^   :members: (.+)$", "".join(PAGES.values()), re.M)
    listed |= {name for group in members for name in group.split(", ")}
    missing = {n for n in sg.__all__ if n not in listed and not inspect.ismodule(getattr(sg, n))}
    assert not missing


def test_every_name_of_the_analysis_is_in_the_reference():
    listed = {
        n.rpartition(".")[2] for n in entries() if n.startswith("spikingjelly_signgd.analysis.")
    }
    assert listed == set(sg.analysis.__all__)


def test_every_entry_of_the_reference_exists():
    for name in entries():
        parts, found = name.split("."), None
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            except sg.BackendUnavailable:  # a simulator that is not installed here
                found = ROOT.joinpath(*parts[1:length])
                places = found.with_suffix(".py"), found / "__init__.py"
                assert any(place.exists() for place in places) and length == len(parts), name
            break
        for part in parts[length:]:
            found = getattr(found, part)
        assert getattr(found, "__doc__", None), name


def test_the_gallery_shows_every_picture():
    pictures = [p for p in DOCS.rglob("*") if p.suffix in (".png", ".svg")]
    shown = re.findall(r"!\[[^]]+\]\((\S+?)\.\w+\)", PAGES["docs/gallery.md"])  # SVG or PNG
    assert {p.relative_to(DOCS).with_suffix("").as_posix() for p in pictures} == set(shown)


# -- pages that scripts make ----------------------------------------------------------------------


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"docs_{name.replace('/', '_')}", DOCS / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def between(name: str) -> str:
    begin, end = f"<!-- python docs/tables.py: {name} -->\n", f"<!-- end of {name} -->"
    return PAGES["docs/support.md"].split(begin)[1].split(end)[0]


@pytest.mark.parametrize("name", ["aten", "functions", "parameters"])
def test_support_tables_are_current(name):
    assert between(name) == script("tables").TABLES[name](), "run python docs/tables.py"


def test_a_table_of_operations_is_current():
    """That of attention; `make docs` compares them all."""
    tables = script("tables")
    samples = {"Attention": tables.samples()["Attention"][:4]}
    tables.samples = lambda: samples
    for row in tables.operations().splitlines()[4:]:
        assert row in between("operations"), "run python docs/tables.py"


def test_pictures_show_what_the_page_says(tmp_path):
    pictures = script("pictures")
    assert {p.name for p in pictures.FOLDER.iterdir()} == {f"{n}.svg" for n in pictures.PICTURES}
    drawn = {name: pictures.draw(name, tmp_path) for name in pictures.PICTURES}
    assert all((tmp_path / f"{name}.svg").stat().st_size < 100_000 for name in drawn)

    for label, (values, target, steps) in drawn["convergence"].items():
        reach = sum(steps) >= abs(target)
        assert reach == ("too short" not in label)
        if reach:
            assert abs(values[-1] - target) <= steps[-1] * (1 + 1e-6)

    bound = drawn["bound"]
    close = bound["error"] <= bound["eta"][:, None] * (1 + 1e-5)
    assert bool((close[1:] | ~close[:-1]).all())  # once near, always near
    assert not bool(close[4].all()) and bool(close[5:].all())  # from step 6 on, says the page

    signs = drawn["signs"]
    left = (signs["path"][1:] - signs["target"]).abs()
    assert bool((left <= signs["size"]).all())
    for members, error in signs["errors"].items():
        near = signs["f"].abs() <= 2 * signs["eta"]
        assert error[near].max() <= signs["eta"] * 2.0 ** (1 - members) * (1 + 1e-5)

    stairs = drawn["staircase"]
    assert torch.equal(stairs["group"], stairs["qcfs"])
    assert torch.allclose(stairs["if"], stairs["qcfs"], atol=0.26)

    uneven = drawn["unevenness"]
    assert torch.equal(uneven["signed"][1:], uneven["ideal"])
    assert uneven["plain"][-1] == 4 and uneven["signed"][-1] == 1  # three taken back
