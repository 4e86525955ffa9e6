"""Data specs: what is read, and what is refused with a fix."""

import gzip
import struct
import sys
from pathlib import Path

import cli_zoo
import numpy as np
import pytest
import torch

import spikingjelly_signgd as sg
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.data import load_data
from spikingjelly_signgd.cli.preparation import Preparation

X, Y = cli_zoo.data()
PIXELS = (torch.arange(2 * 3 * 4 * 5) % 256).reshape(2, 3, 4, 5).to(torch.uint8)


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_all(data, x=X, y=Y):
    assert torch.equal(data.x, x) and data.x.dtype == torch.float32
    assert data.y is None if y is None else torch.equal(data.y, y)


def idx(array, code):
    shape = array.shape
    return (
        bytes((0, 0, code, len(shape))) + struct.pack(f">{len(shape)}i", *shape) + array.tobytes()
    )


# -- what is read ---------------------------------------------------------------------------------


def test_npz():
    np.savez("a.npz", x=X.numpy(), y=Y.numpy(), other=1)
    assert_all(load_data("a.npz"))
    np.savez("b.npz", images=X.double().numpy(), labels=Y.numpy().astype(np.uint8))
    assert_all(load_data("b.npz:images,labels"))
    assert_all(load_data("b.npz:images"), y=None)
    np.savez_compressed("c.npz", x=X.numpy().astype(">f4"))
    assert_all(load_data("c.npz"), y=None)
    assert_all(load_data("c.npz", labels="a.npz"))
    assert_all(load_data("c.npz", labels="b.npz:labels"))


def test_npy():
    np.save("x.npy", X.numpy())
    np.save("y.npy", Y.numpy())
    assert_all(load_data("x.npy"), y=None)
    assert_all(load_data("x.npy", labels="y.npy"))


@pytest.mark.parametrize("suffix", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx"])
def test_idx(suffix):
    image = idx(PIXELS[:, 0].contiguous().numpy(), 8)
    labels = idx(np.array([3, 1], dtype=np.uint8), 8)
    pack = gzip.compress if suffix.endswith("gz") else bytes
    for name, content in (("images", image), ("labels", labels)):
        with open(name + suffix, "wb") as file:
            file.write(pack(content))
    scaled = Preparation(scale_pixels=True)
    data = load_data("images" + suffix, labels="labels" + suffix, prepare=scaled)
    assert_all(data, PIXELS[:, :1].float() / 255, torch.tensor([3, 1]))


@pytest.mark.parametrize(("code", "dtype"), [(13, ">f4"), (14, ">f8")])
def test_idx_of_floats(code, dtype):
    with open("x.idx", "wb") as file:
        file.write(idx(X.numpy().astype(dtype), code))
    assert_all(load_data("x.idx"), y=None)


@pytest.mark.parametrize("name", ["data", "dataset", "batches"])
def test_a_loader(name):
    assert_all(load_data(f"cli_zoo:{name}"))
    data = load_data(f"cli_zoo:{name}", samples=50)
    assert_all(data, X[:50], Y[:50])


def test_a_loader_without_labels_or_end():
    assert_all(load_data("cli_zoo:unlabelled"), y=None)
    assert len(load_data("cli_zoo:endless", samples=25).x) == 25


def test_samples_are_drawn_with_the_seed():
    """Files are often sorted by class."""
    np.savez("a.npz", x=X.numpy(), y=Y.numpy())
    some, same, others = (load_data("a.npz", samples=20, seed=s) for s in (0, 0, 1))
    assert torch.equal(some.x, same.x) and not torch.equal(some.x, others.x)
    rows = [int((X == x).flatten(1).all(1).nonzero()) for x in some.x]
    assert rows == sorted(set(rows)) and torch.equal(some.y, Y[rows])
    assert_all(load_data("a.npz", samples=1000))


def folder_of_images(size=(5, 4), mode="L", classes=("cat", "dog")):
    image = pytest.importorskip("PIL.Image")
    found = []
    for i, name in enumerate(classes):
        for k in range(2):
            (folder := Path("images") / name).mkdir(parents=True, exist_ok=True)
            channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
            array = ((np.arange(size[0] * size[1] * channels) * (i + 2 * k + 1)) % 256).astype("u1")
            array = array.reshape(*size, channels)
            image.fromarray(array.squeeze() if channels == 1 else array).save(folder / f"{k}.png")
            found.append(torch.from_numpy(array).permute(2, 0, 1))
    return torch.stack(found)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_images(mode):
    want = folder_of_images(mode=mode)
    data = load_data("images", prepare=Preparation(scale_pixels=True))
    assert_all(data, want.float() / 255, torch.tensor([0, 0, 1, 1]))
    assert data.class_names == ("cat", "dog")
    bare = load_data("images/cat", prepare=Preparation(scale_pixels=True))
    assert_all(bare, want[:2].float() / 255, None)
    assert len(load_data("images", samples=3, prepare=Preparation(scale_pixels=True)).x) == 3


def test_class_names_reach_the_network():
    folder_of_images(size=(4, 4))
    arguments = ["--data", "images", "--scale-pixels", "--no-tune", "-o", "net.h5"]
    assert main(["convert", "cli_zoo:tiny", *arguments]) == 0
    assert sg.load("net.h5").provenance["class_names"] == ["cat", "dog"]


def test_what_is_done_with_pixels():
    np.savez("a.npz", x=PIXELS.numpy())
    scaled = PIXELS.float() / 255
    done = load_data(
        "a.npz", prepare=Preparation(True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    ).x
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    assert torch.allclose(done, (scaled - mean) / std)
    assert torch.allclose(load_data("a.npz", prepare=Preparation(True, mean=[0.5])).x, scaled - 0.5)
    grey = load_data("a.npz", prepare=Preparation(True, channels=1)).x
    assert torch.allclose(
        grey[:, 0], 0.299 * scaled[:, 0] + 0.587 * scaled[:, 1] + 0.114 * scaled[:, 2]
    )
    np.savez("b.npz", x=grey.numpy())
    assert torch.equal(
        load_data("b.npz", prepare=Preparation(channels=3)).x, grey.expand(2, 3, 4, 5)
    )
    flat = torch.full((2, 3, 8, 8), 0.25)
    np.savez("c.npz", x=flat.numpy())
    assert torch.allclose(
        load_data("c.npz", prepare=Preparation(resize=(4, 2))).x, flat[..., :4, :2]
    )


# -- what is refused ------------------------------------------------------------------------------


def npz(**arrays):
    def write():
        np.savez("a.npz", **arrays)
        return "a.npz", {}

    return write


def spec(name, **options):
    return lambda: (name, options)


def written(name, content, **options):
    def write():
        with open(name, "wb") as file:
            file.write(content)
        return name, options

    return write


def images(mode="L", extra=None, **options):
    def write():
        folder_of_images(mode=mode)
        if extra is not None:
            extra()
        return "images", {"prepare": Preparation(**{"scale_pixels": True, **options})}

    return write


def larger_image():
    from PIL import Image

    Image.new("L", (9, 9)).save("images/dog/9.png")


def colour_image():
    from PIL import Image

    Image.new("RGB", (4, 5)).save("images/dog/9.png")


def broken_image():
    with open("images/dog/9.png", "wb") as file:
        file.write(b"no image")


def stray_image():
    from PIL import Image

    Image.new("L", (4, 5)).save("images/9.png")


def empty_class():

    Path("images/fox").mkdir()


NUMBERS = X.numpy()
OBJECTS = np.array([None, 3], dtype=object)
REFUSED = {
    "no file": (spec("absent.npz"), "there is no file 'absent.npz'"),
    "no form": (spec("absent"), "is not one of: a file .npz"),
    "unknown file": (written("a.csv", b"1,2"), "'a.csv' is not one of"),
    "damaged npz": (written("a.npz", b"PK no zip"), "cannot read 'a.npz'"),
    "damaged npy": (written("a.npy", b"\x93NUMPY"), "cannot read 'a.npy'"),
    "objects": (npz(x=OBJECTS), "allow_pickle=False"),
    "words": (npz(x=np.array(["a", "b"])), "arrays of numbers"),
    "complex": (npz(x=NUMBERS + 1j), "arrays of numbers"),
    "booleans": (npz(x=NUMBERS > 0), "real numbers"),
    "other names": (npz(images=NUMBERS, labels=Y.numpy()), "a.npz:images,labels"),
    "absent name": (lambda: (npz(x=NUMBERS)()[0] + ":image", {}), "not image"),
    "three names": (lambda: (npz(x=NUMBERS)()[0] + ":x,x,x", {}), "names 3 arrays"),
    "pixels": (npz(x=PIXELS.numpy()), "--scale-pixels"),
    "large pixels": (
        lambda: (npz(x=np.array([[300]]))()[0], {"prepare": Preparation(True)}), "from 300 to 300",
    ),
    "floats as pixels": (
        lambda: (npz(x=NUMBERS)()[0], {"prepare": Preparation(True)}), "leave it out",
    ),
    "NaN": (npz(x=np.array([[0.0], [np.nan]])), "NaN or infinity in 1 of the 2"),
    "nothing": (npz(x=np.zeros((0, 3))), "holds no samples"),
    "a number": (npz(x=np.array(1.0)), "holds no samples"),
    "few labels": (npz(x=NUMBERS, y=Y[:5].numpy()), "there are 96 samples"),
    "one-hot labels": (npz(x=NUMBERS, y=np.eye(96, dtype=int)), "one for each sample"),
    "real labels": (npz(x=NUMBERS, y=Y.double().numpy()), "class indices, integers"),
    "negative labels": (npz(x=NUMBERS, y=-1 - Y.numpy()), "from 0 on"),
    "wrong means": (
        lambda: (npz(x=NUMBERS)()[0], {"prepare": Preparation(mean=[0.1, 0.2, 0.3])}),
        "--mean has 3 values",
    ),
    "resized vectors": (
        lambda: (npz(x=NUMBERS[:, 0, 0])()[0], {"prepare": Preparation(resize=[8, 8])}),
        "--resize is for images",
    ),
    "grey vectors": (
        lambda: (npz(x=NUMBERS[:, 0, 0])()[0], {"prepare": Preparation(channels=1)}),
        "--channels is for images",
    ),
    "no IDX": (written("a-ubyte", b"\0\0\1\1"), "which is not IDX"),
    "short IDX": (written("a-ubyte", idx(np.zeros(4, "u1"), 8)[:-1]), "but there are 3"),
    "long IDX": (written("a-ubyte", idx(np.zeros(4, "u1"), 8) + b"0"), "but there are more"),
    "no gzip": (written("a-ubyte.gz", b"no gzip"), "cannot read 'a-ubyte.gz'"),
    "sizes of images": (images(extra=larger_image), r"make them alike with --resize"),
    "colours of images": (images(extra=colour_image), r"--channels 1 or 3"),
    "transparent images": (images(mode="RGBA"), "has transparency"),
    "integers of images": (images(scale_pixels=False), "--scale-pixels"),
    "a damaged image": (images(extra=broken_image), "cannot read the image"),
    "a stray image": (images(extra=stray_image), "beside folders"),
    "an empty class": (images(extra=empty_class), "holds no images"),
    "labels of a folder": (
        lambda: (images()()[0], {"labels": "y.npy"}), "are the names of its folders",
    ),
    "an empty folder": (spec("."), "holds no images"),
    "absent loader": (spec("cli_zoo:absent"), "cannot load 'cli_zoo:absent'"),
    "a number for a loader": (spec("cli_zoo:number"), "cannot load|gives int"),
    "a failing loader": (spec("cli_zoo:failing"), "OSError: the disk is gone"),
    "an uneven loader": (spec("cli_zoo:uneven"), "samples of other shapes"),
    "a half labelled loader": (spec("cli_zoo:half_labelled"), "and batches without"),
    "triples": (spec("cli_zoo:triples"), "there are 3 values"),
    "an empty loader": (spec("cli_zoo:nothing"), "gives no batches"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, text = REFUSED[case]
    name, options = make()
    with pytest.raises(sg.SignGDError, match=text):
        list(load_data(name, **options).loader())


def test_labels_beyond_the_classes(capsys):
    np.savez("a.npz", x=NUMBERS, y=Y.numpy() + 5)
    sg.save(sg.convert(cli_zoo.tiny(), X, time_steps=2, tune=False), "net.h5")
    assert main(["evaluate", "net.h5", "--data", "a.npz"]) == 2
    assert "has 3 classes, 0 to 2, but 'a.npz' has the label 7" in capsys.readouterr().err


def test_pickled_objects_are_not_run():
    class Danger:
        def __reduce__(self):
            return open, ("danger", "w")

    np.savez("a.npz", x=np.array([Danger()], dtype=object))
    with pytest.raises(sg.FormatError):
        load_data("a.npz")
    np.save("a.npy", np.array([Danger()], dtype=object))
    with pytest.raises(sg.FormatError):
        load_data("a.npy")
    assert not Path("danger").exists()


def test_without_pillow(monkeypatch):
    folder_of_images()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(sg.BackendUnavailable, match="pip install pillow"):
        load_data("images", prepare=Preparation(True))
