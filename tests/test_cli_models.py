"""Model specs: zoos, exported programs, weights; and that a file cannot run code."""

import io
import json
import logging
import os
import pickle
import sys
import zipfile
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import cli_zoo
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.data import load_data
from spikingjelly_signgd.cli.models import load_model
from spikingjelly_signgd.cli.preparation import Preparation
from spikingjelly_signgd.converters import sources

X = cli_zoo.images(6)
BATCH = ({0: torch.export.Dim("batch")},)


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# -- exported programs ----------------------------------------------------------------------------


class Net(nn.Module):
    """Named modules, a branch, and a size that depends on the batch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.GELU(approximate="tanh")
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        y = self.act(self.norm(self.stem(x)))
        return self.head(y.reshape(x.shape[0], -1) + y.reshape(-1, 64))


def exported(path="net.pt2", model=None, dynamic=BATCH, **files):
    torch.manual_seed(0)
    model = (model or Net()).eval()
    torch.export.save(torch.export.export(model, (X,), dynamic_shapes=dynamic), path, **files)
    return model


def test_an_exported_program():
    model = exported()
    loaded = load_model("net.pt2")
    for count in (1, 2, 9):
        x = cli_zoo.images(count)
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
    network = sg.convert(loaded, X, time_steps=4, tune=False)
    assert network.names() == ["act"], "modules keep their names"
    want = sg.build(sg.convert(model, X, time_steps=4, tune=False))
    have = sg.build(network)
    assert torch.allclose(sg.run(have, X, 4)[4], sg.run(want, X, 4)[4], atol=1e-5)


def test_an_exported_program_by_command(capsys):
    exported(extra_files={"readme.txt": "of mine"})
    assert main(["check", "net.pt2", "--input", "1", "4", "4"]) == 0
    assert "neuron: gelu" in capsys.readouterr().out
    assert main(["check", "net.pt2", "--input", "1", "5", "5"]) == 2
    assert "itself fails on a batch [2, 1, 5, 5]" in capsys.readouterr().err


def rewritten(change, source="net.pt2", target="bad.pt2"):
    """A copy of an archive in which ``change(records)`` changed names and contents."""
    with zipfile.ZipFile(source) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


class Danger:
    def __reduce__(self):
        return os.mkdir, ("danger",)


def pickled():
    buffer = io.BytesIO()
    torch.save(((Danger(),), {}), buffer)  # as sample inputs are
    return buffer.getvalue()


def in_json(name, change):
    def apply(records):
        (path,) = [path for path in records if path.endswith(name)]
        data = json.loads(records[path])
        change(data)
        records[path] = json.dumps(data).encode()

    return apply


def in_graph(change):
    return in_json("models/model.json", lambda data: change(data["graph_module"]["graph"], data))


def record(name, content):
    return lambda records: records.update({f"net/{name}": content})


def first_payload(**values):
    return in_json(
        "model_weights_config.json", lambda d: next(iter(d["config"].values())).update(values)
    )


CODE = "__import__('pathlib').Path('danger').touch()"


def rename_input(graph, data):
    name = graph["inputs"][-1]["as_tensor"]["name"]
    text = json.dumps(data).replace(f'"{name}"', json.dumps(f"x=({CODE})"))
    data.clear()
    data.update(json.loads(text))


def size_as_code(graph, data):
    found = json.dumps(graph)
    assert "expr_str" in found
    for value in graph["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = CODE


def size_as_call(graph, data):
    for value in graph["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = "exec(chr(49))"


UNSAFE = {
    "a pickled weight": first_payload(use_pickle=True),
    "weights as a pickle": record("data/weights/model.pt", pickled()),
    "constants as a pickle": record("data/constants/model.pt", pickled()),
    "an opaque object": record("data/constants/opaque_obj_0", pickle.dumps(Danger())),
    "native code": record("data/aotinductor/model/a.so", b"\x7fELF"),
    "a name as code": in_graph(rename_input),
    "a size as code": in_graph(size_as_code),
    "a size as a call": in_graph(size_as_call),
    "a function of torch": in_graph(
        lambda graph, data: graph["nodes"][0].update(target="torch.os.system")
    ),
    "a file as a tensor": in_graph(
        lambda graph, data: graph["nodes"][0].update(target="torch.ops.aten.from_file.default")
    ),
    "an operation that writes a file": in_graph(
        lambda graph, data: graph["nodes"][0].update(target="torch.ops.aten.save.default")
    ),
    "an operator": in_graph(
        lambda graph, data: graph["nodes"][0].update(target="_operator.methodcaller")
    ),
    "a class of its own": in_json(
        "models/model.json",
        lambda data: data["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "os.PathLike", "context": "null", "children_spec": []}]'
        ),
    ),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_would_run_code_is_refused(case):
    exported()
    rewritten(UNSAFE[case])
    with pytest.raises(sg.FormatError, match="torch.export.save"):
        load_model("bad.pt2")
    assert not Path("danger").exists()


def test_pickles_that_are_not_needed_are_not_read():
    """torch.export.load reads them, and runs what they say."""
    model = exported()

    def change(records):
        records["net/data/sample_inputs/model.pt"] = pickled()

    rewritten(change)
    logging.disable()  # torch cannot format what it says of it
    torch.export.load("bad.pt2")
    logging.disable(logging.NOTSET)
    assert Path("danger").exists(), "this test no longer tests anything"
    Path("danger").rmdir()
    assert torch.allclose(load_model("bad.pt2")(X), model(X), atol=1e-6)
    assert not Path("danger").exists()


def test_conditions_given_as_code_are_dropped():
    model = exported()
    rewritten(in_json("models/model.json", lambda data: data.update(guards_code=[CODE])))
    assert torch.allclose(load_model("bad.pt2")(X), model(X), atol=1e-6)
    assert not Path("danger").exists()


def truncated(records):
    (name,) = [name for name in records if name.endswith("weights/weight_0")]
    records[name] = records[name][:-4]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: None, "No such file"),
        (lambda: Path("bad.pt2").write_bytes(b"no zip"), "not a file of torch.export.save"),
        (lambda: Path("bad.pt2").write_bytes(pickled()), "not an archive of an exported program"),
        (lambda: exported("bad.pt2", dynamic=None), "exported for batches of 6 alone"),
        (lambda: (exported(), rewritten(truncated)), "cannot read 'bad.pt2'"),
        (lambda: (exported(), rewritten(first_payload(path_name="weight_99"))), "cannot read"),
    ],
)
def test_a_file_that_is_no_program(make, text, capsys):
    make()
    with pytest.raises(sg.FormatError, match=text):
        load_model("bad.pt2")
    assert main(["check", "bad.pt2", "--input", "1", "4", "4"]) == 2
    assert "Traceback" not in capsys.readouterr().err


# -- zoos -----------------------------------------------------------------------------------------


KNOWN = ["tiny", "tinier"]


def timm(name, pretrained=True):
    if pretrained:
        raise OSError("no route to the hub")
    return cli_zoo.tiny()


class TinyWeights(Enum):
    IMAGENET1K_V1 = "the first"
    DEFAULT = IMAGENET1K_V1

    @property
    def url(self):
        return "https://somewhere/tiny.pth"


def torchvision(name, weights="DEFAULT"):
    if weights is not None:
        raise OSError("no route to somewhere")
    return cli_zoo.tiny()


@pytest.fixture
def zoos(monkeypatch):
    own = {
        "create_model": timm,
        "list_models": lambda: KNOWN,
        "is_model": KNOWN.__contains__,
        "list_pretrained": lambda pattern: ["tiny.a1_in1k"],
    }
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(**own))
    own = {
        "get_model": torchvision,
        "list_models": lambda: KNOWN,
        "get_model_weights": lambda name: TinyWeights,
    }
    models = SimpleNamespace(**own)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.parametrize("zoo", ["timm", "torchvision"])
def test_a_zoo(zoo, zoos, capsys):
    arguments = ["--input", "1", "4", "4", "--json"]
    assert main(["check", f"{zoo}:tiny", *arguments]) == 0
    out, err = capsys.readouterr()
    (warning,) = json.loads(out)["warnings"]
    assert "RANDOM weights" in warning and "RANDOM weights" in err
    save_file(cli_zoo.other().state_dict(), "other.safetensors")
    assert main(["check", f"{zoo}:tiny", "--weights", "other.safetensors", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    assert main(["check", f"{zoo}:tinyer", *arguments]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == f"{zoo} has no model 'tinyer'. Similar names: tinier, tiny."
    assert main(["check", f"{zoo}:", *arguments]) == 2


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("torchvision:tiny:DEFAULT", "no route to somewhere.*Download https://somewhere/tiny.pth"),
        ("torchvision:tiny:V1", "no weights of tiny 'V1'"),
        ("timm:tiny:DEFAULT", "no route to the hub.*--weights FILE.safetensors"),
        ("timm:tiny:a1_in1k", "no route to the hub"),
        ("timm:tiny:a1_in2k", "no weights of tiny 'a1_in2k'. Similar names: a1_in1k"),
    ],
)
def test_weights_of_a_zoo_that_cannot_be_had(spec, text, zoos):
    with pytest.raises(sg.InputError, match=text):
        load_model(spec)


@pytest.mark.parametrize(
    ("zoo", "package"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")]
)
def test_a_zoo_that_is_not_installed(zoo, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(sg.BackendUnavailable, match=rf"pip install {package} torch==\d"):
        load_model(f"{zoo}:resnet18")


# -- preprocessing --------------------------------------------------------------------------------


@pytest.fixture
def makers(monkeypatch, tmp_path):
    """A model whose makers halved the brightness, and a folder of two images of other sizes."""
    preparations = {**sources.PREPARATIONS, "timm": lambda source: halved}
    monkeypatch.setattr(sources, "PREPARATIONS", preparations)
    for name, size in (("a", (6, 4)), ("b", (4, 5))):
        Image.new("RGB", size, (200, 100, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def halved(images):
    if isinstance(images, list):
        images = torch.stack(
            [torch.from_numpy(np.array(i)).view(i.height, i.width, -1) for i in images]
        )
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] != 3:
        raise ValueError("three channels are wanted")
    return images[..., :4, :4].float() / 510


def test_preprocessing_of_the_makers(makers):
    data = load_data(str(makers), prepare=Preparation(model="timm:tiny"))
    assert data.x.shape == (2, 3, 4, 4)
    assert torch.equal(data.x[:, 0], torch.full((2, 4, 4), 200 / 510))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--scale-pixels", "--mean", "0.5"], "leave --scale-pixels, --mean out"),
        (["--channels", "1"], "three channels are wanted. Grey images for a model of colours"),
    ],
)
def test_preprocessing_that_does_not_fit(options, text, makers, capsys):
    given = ["check", "cli_zoo:tiny", "--data", str(makers), "--preprocess", "timm:tiny"]
    assert main([*given, *options]) == 2
    assert text in capsys.readouterr().err


def test_preprocessing_is_of_images(makers, capsys):
    np.save("x.npy", np.zeros((2, 3, 4, 4), np.float32))
    assert main(["check", "cli_zoo:tiny", "--data", "x.npy", "--preprocess", "timm:tiny"]) == 2
    assert "images [N, C, H, W] of 8 bits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "cli_zoo:tiny", "--input", "1", "--preprocess", "timm:tiny"])
    assert "--preprocess is of --data" in capsys.readouterr().err


# -- weights --------------------------------------------------------------------------------------


def test_weights():
    save_file(cli_zoo.other().state_dict(), "other.safetensors")
    model = load_model("cli_zoo:tiny", "other.safetensors")
    assert torch.equal(model(X), cli_zoo.other()(X))


def test_weights_that_are_shared(monkeypatch):
    """A parameter with two names is written once."""

    def shared():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    source = shared()
    save_file({k: v for k, v in source.state_dict().items() if k != "2.weight"}, "s.safetensors")
    monkeypatch.setattr(cli_zoo, "shared", shared, raising=False)
    model = load_model("cli_zoo:shared", "s.safetensors")
    assert torch.equal(model(torch.ones(1, 4)), source(torch.ones(1, 4)))


def of_another():
    save_file(cli_zoo.wide().state_dict(), "w.safetensors")
    return "w.safetensors"


def of_another_size():
    state = cli_zoo.tiny().state_dict() | {"4.bias": torch.zeros(5)}
    save_file(state, "w.safetensors")
    return "w.safetensors"


def a_pickle():
    torch.save(cli_zoo.tiny().state_dict(), "w.pt")
    return "w.pt"


def damaged():
    Path("w.safetensors").write_bytes(b"\xff" * 20)
    return "w.safetensors"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (of_another, "0.weight is missing.*1.bias is not the model's"),
        (of_another_size, r"4.bias is \[5\], but the model's is \[3\]"),
        (a_pickle, "which can run code. Write one with safetensors"),
        (damaged, "not a complete safetensors file"),
        (lambda: "absent.safetensors", "there is no file"),
    ],
)
def test_weights_that_are_refused(make, text, capsys):
    name = make()
    with pytest.raises(sg.SignGDError, match=text):
        load_model("cli_zoo:tiny", name)
    assert main(["check", "cli_zoo:tiny", "--weights", name, "--input", "1", "4", "4"]) == 2


def test_weights_of_an_exported_program():
    exported()
    with pytest.raises(sg.InputError, match="leave --weights out"):
        load_model("net.pt2", "w.safetensors")


def test_weights_without_safetensors(monkeypatch):
    name = of_another()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(sg.BackendUnavailable, match="pip install safetensors"):
        load_model("cli_zoo:tiny", name)
