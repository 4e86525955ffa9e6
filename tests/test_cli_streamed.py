"""Data on the command line are read batch by batch, to the same values as when all are read."""

import json
import os
import pickle
import sys
import types
from pathlib import Path
from threading import Event, Thread

import cli_zoo
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd import core
from spikingjelly_signgd.cli import main
from spikingjelly_signgd.cli.data import Reading, load_data
from spikingjelly_signgd.cli.datasets import Together, Unread, label_of
from spikingjelly_signgd.cli.preparation import Preparation, pixels
from spikingjelly_signgd.core.progress import progress, samples_in

X, Y = cli_zoo.data()
N = 11
PIXELS = torch.randint(0, 256, (N, 3, 6, 5), generator=torch.Generator().manual_seed(3)).byte()
LABELS = torch.arange(N) % 3
SCALED = Preparation(scale_pixels=True)
ALL = Preparation(True, channels=1, resize=(4, 4), mean=[0.3], std=[0.7])


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_zoo, "made", None, raising=False)
    return tmp_path


def assert_streams(data, x, y, size):
    """Batches of ``size`` of x and y, the same again, and no others."""
    for _ in range(2):
        got = list(data.loader(size))
        want = (
            list(x.split(size))
            if y is None
            else list(zip(x.split(size), y.split(size), strict=True))
        )
        assert len(got) == len(want)
        for have, one in zip(got, want, strict=True):
            pairs = [(have, one)] if y is None else zip(have, one, strict=True)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert torch.equal(data.x, x) and data.total == len(x)
    assert torch.equal(data.first(3), x[:3])


def folder(name="images", bad=(), count=N):
    """Of images in two classes; those of ``bad`` are cut off."""
    for i in range(count):
        kind = Path(name) / ("cat" if i < 6 else "dog")
        kind.mkdir(parents=True, exist_ok=True)
        file = kind / f"{i:02}.png"
        Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()).save(file)
        if i in bad:
            file.write_bytes(file.read_bytes()[:60])
    return name


CLASSES = torch.tensor([0] * 6 + [1] * 5)


# -- the same values ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("prepare", [SCALED, ALL], ids=["scaled", "resized"])
def test_files(size, prepare):
    want = prepare.apply(PIXELS, "all")
    np.savez("a.npz", x=PIXELS.numpy(), y=LABELS.numpy())
    np.save("a.npy", PIXELS.numpy())
    assert_streams(load_data("a.npz", prepare=prepare), want, LABELS, size)
    assert_streams(load_data("a.npy", prepare=prepare), want, None, size)
    assert_streams(load_data("a.npy", labels="a.npz", prepare=prepare), want, LABELS, size)
    assert_streams(load_data(folder(), prepare=prepare), want, CLASSES, size)


def test_which_samples():
    np.savez("a.npz", x=X.numpy(), y=Y.numpy())
    assert_streams(load_data("a.npz", limit=20), X[:20], Y[:20], 8)
    drawn = load_data("a.npz", limit=20, samples=5)
    rows = [int((X == x).flatten(1).all(1).nonzero()) for x in drawn.x]
    assert rows == sorted(set(rows)) and len(rows) == 5 and rows[-1] < 20 and rows != [*range(5)]
    assert_streams(load_data("cli_zoo:dataset", limit=20, samples=30), X[:20], Y[:20], 8)
    assert_streams(load_data("cli_zoo:batches", limit=50), X[:50], Y[:50], 8)


def test_some_are_spread_evenly(monkeypatch):
    for found in (TensorDataset(X), list(X.split(10)), lambda: iter(X.split(7))):
        some = own(found, monkeypatch).some(5)
        rows = [int((X == x).flatten(1).all(1).nonzero()) for x in some]
        assert rows == sorted(rows) and max(map(int.__sub__, rows[1:], rows)) < 50
        assert torch.equal(own(found, monkeypatch).some(500), X)
    files = load_data(folder(bad=[5]), prepare=SCALED, reading=Reading(skip_bad=1))
    assert torch.equal(files.some(N), SCALED.apply(PIXELS, "")[[i for i in range(N) if i != 5]])


def test_nothing_is_read_before_its_turn(monkeypatch):
    from spikingjelly_signgd.cli import datasets

    read = []
    before = datasets.opened
    monkeypatch.setattr(datasets, "opened", lambda f, name: read.append(name) or before(f, name))
    data = load_data(folder(), prepare=SCALED)
    assert len(read) == 1
    next(iter(data.loader(3)))
    assert len(read) == 4
    np.save("a.npy", PIXELS.numpy())
    rows = load_data("a.npy", prepare=SCALED).dataset.x
    assert isinstance(rows.array, np.memmap) and len(pickle.dumps(rows)) < 500


def test_torch_draws_the_same_as_without():
    np.save("a.npy", X.numpy())
    before = torch.get_rng_state()
    list(load_data("a.npy").loader(16))
    assert torch.equal(torch.get_rng_state(), before)


# -- workers --------------------------------------------------------------------------------------


def test_workers_read_the_same():
    reading = Reading(workers=2)
    np.save("a.npy", PIXELS.numpy())
    assert_streams(load_data("a.npy", prepare=ALL, reading=reading), ALL.apply(PIXELS, ""), None, 4)
    files = load_data(folder(bad=[7]), prepare=SCALED, reading=reading)
    with pytest.raises(sg.FormatError) as told:
        list(files.loader(2))
    assert str(told.value).startswith("cannot read the image 'images/dog/07.png':")


def test_what_workers_get_is_pickled(monkeypatch):
    """As start methods other than fork do."""
    monkeypatch.setattr(cli_zoo, "made", TensorDataset(X, Y), raising=False)
    np.save("a.npy", X.numpy())
    for data in (
        load_data(folder(), prepare=ALL, reading=Reading(skip_bad=2)),
        load_data("a.npy", samples=7),
        load_data("cli_zoo:made"),
    ):
        dataset, together = pickle.loads(pickle.dumps((data.dataset, data.together)))
        have = next(iter(DataLoader(dataset, 5, collate_fn=together)))
        want = next(iter(data.loader(5)))
        assert torch.equal(have[0], want[0])


# -- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_left_out(workers):
    """Also where all of a batch, or the first of all, is damaged."""
    name = folder(bad=[0, 4, 5])
    data = load_data(name, prepare=SCALED, reading=Reading(workers=workers, skip_bad=3))
    want = SCALED.apply(PIXELS, "")
    batches = [list(data.loader(2)) for _ in range(2)][1]
    bad = [("images/cat/00.png",), (), ("images/cat/04.png", "images/cat/05.png"), (), (), ()]
    assert [getattr(batch, "skipped", ()) for batch in batches] == bad
    assert [len(x) for x, _ in batches] == [1, 2, 0, 2, 2, 1]
    kept = [1, 2, 3, 6, 7, 8, 9, 10]
    assert torch.equal(torch.cat([x for x, _ in batches]), want[kept])
    assert torch.equal(torch.cat([y for _, y in batches]), CLASSES[kept])


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_damaged_images(allowed):
    data = load_data(folder(bad=[2, 4, 7]), prepare=SCALED, reading=Reading(skip_bad=allowed))
    with pytest.raises(sg.FormatError) as told:
        list(data.loader(4))
    names = ["cat/02.png"] if not allowed else ["cat/02.png", "cat/04.png", "dog/07.png"]
    assert all(f"images/{name}" in str(told.value) for name in names)
    assert ("--skip-bad" in str(told.value)) == bool(allowed)


def test_workers_count_one_after_the_other(monkeypatch):
    """The second begins to count while the first writes its name."""
    data = load_data(folder(), prepare=SCALED, reading=Reading(workers=2, skip_bad=1))
    together, second, refused = data.together, Event(), []

    def count(name):
        try:
            together([Unread(name, "cut off")])
        except sg.FormatError:
            refused.append(name)

    def left_out(self):
        found = NAMES(self)
        if not second.is_set():  # of the first: time for the other
            second.set()
            other.start()
            other.join(0.3)
        return found

    NAMES = Together.left_out.fget
    other = Thread(target=count, args=("b.png",))
    monkeypatch.setattr(Together, "left_out", property(left_out))
    count("a.png")
    other.join()
    assert together.left_out == ["a.png"] and refused == ["b.png"]


def test_names_that_are_no_text_or_long():
    for name in (os.fsdecode(b"\xff.png"), "x" + "ä" * 300 + ".png"):
        together = Together("images")
        together.allowing(1, 0)
        assert together([Unread(name, "")]).skipped == (name,)
        (kept,) = together.left_out
        assert name.endswith(kept[1:])
        with pytest.raises(sg.FormatError, match=r"1 of --skip-bad"):
            together([Unread("another", "")])


def test_none_can_be_read():
    name = folder(bad=range(N))
    with pytest.raises(sg.FormatError, match="none of 'images' can be read"):
        load_data(name, prepare=SCALED, reading=Reading(skip_bad=N))


def test_by_command(capsys):
    folder(bad=[3])
    given = ["--data", "images", "--scale-pixels", "--resize", "4", "4", "--channels", "1"]
    convert = ["convert", "cli_zoo:tiny", *given, "-o", "net.h5", "--no-tune"]
    assert main(convert) == 2 and "images/cat/03.png" in capsys.readouterr().err
    assert main([*convert, "--skip-bad", "1", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "net.h5", *given, "--skip-bad", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == N - 1
    assert main(["evaluate", "net.h5", *given, "--skip-bad", "1"]) == 0
    shown = capsys.readouterr().out
    assert "skipped  1: images/cat/03.png" in shown and "10 samples of images" in shown
    assert main(["evaluate", "net.h5", *given, "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3


def test_a_sample_that_is_not_finite_is_named():
    x = X.clone()
    x[70, 0, 1, 1] = torch.inf
    np.save("a.npy", x.numpy())
    with pytest.raises(sg.InputError, match="in 1 of the 8 samples read together .the first: 70"):
        list(load_data("a.npy").loader(8))


# -- the user's own -------------------------------------------------------------------------------


def own(found, monkeypatch, **options):
    monkeypatch.setattr(cli_zoo, "made", found, raising=False)
    return load_data("cli_zoo:made", **options)


def test_a_loader_keeps_its_batches(monkeypatch):
    """Also drawn ones, whose order is then one and the same."""
    loader = DataLoader(TensorDataset(X, Y), 7, shuffle=True, drop_last=True)
    data = own(loader, monkeypatch)
    batches = list(data.loader(64))
    assert [len(x) for x, _ in batches] == [7] * 13 and data.total == 91
    assert isinstance(data.loader(64), DataLoader) and samples_in(data.loader(64)) == 91
    again = list(data.loader(64))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, again, strict=True))
    assert not torch.equal(data.x, X[:91])
    assert [len(x) for x, _ in own(loader, monkeypatch, limit=10).loader()] == [7, 3]


class Endless:
    """Draws batches for ever, as samplers for training do."""

    def __iter__(self):
        while True:
            yield list(range(10))


def test_a_batch_sampler_without_an_end(monkeypatch):
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=Endless())
    with pytest.raises(sg.InputError, match="'cli_zoo:made' does not end.*--limit"):
        own(loader, monkeypatch)
    assert len(own(loader, monkeypatch, limit=25).x) == 25


def test_what_makes_an_iterator_is_asked_again(monkeypatch):
    data = own(lambda: iter(X.split(10)), monkeypatch)
    assert data.total is None
    assert_streams(data, X, None, 16)
    assert data.total == len(X)
    assert_streams(own(iter(X.split(10)), monkeypatch), X, None, 16)
    assert_streams(own(cli_zoo.endless(), monkeypatch, limit=9), cli_zoo.images(10)[:9], None, 4)


def test_an_iterable_data_set(monkeypatch):
    class Samples(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    assert_streams(own(Samples(), monkeypatch), X, Y, 40)


def test_a_data_set_of_pictures(monkeypatch):
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in PIXELS]
    dataset = list(zip(images, LABELS.tolist(), strict=True))
    found = type("Pictures", (torch.utils.data.Dataset,), {
        "__len__": lambda self: N, "__getitem__": lambda self, i: dataset[i],
    })()  # fmt: skip
    data = own(found, monkeypatch, prepare=ALL)
    assert_streams(data, ALL.apply(PIXELS, ""), LABELS, 4)


def test_labels_of_another_file(monkeypatch):
    np.save("y.npy", Y.numpy())
    for found in (TensorDataset(X), list(X.split(10)), [X]):
        assert_streams(own(found, monkeypatch, labels="y.npy"), X, Y, 16)
    np.save("y.npy", Y[:50].numpy())
    for found in (TensorDataset(X), list(X.split(10))):
        with pytest.raises(sg.InputError, match="one for each sample, but"):
            list(own(found, monkeypatch, labels="y.npy").loader())


# -- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints():
    np.savez("a.npz", x=PIXELS.numpy(), y=LABELS.numpy())
    folder()

    def of(spec, **options):
        return load_data(spec, **{"prepare": SCALED, **options}).fingerprint

    first, second = of("a.npz"), of("images")
    assert first == of("a.npz") and second == of("images", reading=Reading(workers=1))
    others = [
        of("a.npz", prepare=ALL), of("a.npz", limit=4), of("a.npz", samples=4),
        of("a.npz", samples=4, seed=1), of("images", samples=4), of("images", limit=5),
    ]  # fmt: skip
    changed = PIXELS.clone()
    changed[-1, 0, 0, 0] ^= 1
    np.savez("a.npz", x=changed.numpy(), y=LABELS.numpy())
    others.append(of("a.npz"))
    Path("images/dog/10.png").rename("images/dog/11.png")
    others.append(of("images"))
    assert len({first, second, *others}) == 2 + len(others)
    assert of("cli_zoo:batches", prepare=None) == of("cli_zoo:batches", prepare=None)


# -- data sets of libraries -----------------------------------------------------------------------


class Fake:
    """As torchvision's: (PIL image, class index) by number."""

    classes = ["a", "b", "c"]

    def __init__(self, root, train=True, download=False):
        if not Path(root, "fake").exists() and not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        Path(root, "fake").touch()
        self.rows = range(0, 6) if train else range(6, N)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        image = Image.fromarray(PIXELS[self.rows[i]].permute(1, 2, 0).numpy())
        return image, int(LABELS[self.rows[i]])


class Split(Fake):
    def __init__(self, root, split="train"):
        super().__init__(root, split == "train", True)


def test_torchvision(monkeypatch):
    module = types.ModuleType("torchvision.datasets")
    module.Fake, module.Split, module.__all__ = Fake, Split, ("Fake", "Split")
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    with pytest.raises(sg.InputError, match="Nothing is downloaded without --download"):
        load_data("torchvision:Fake:.", prepare=SCALED)
    scaled = SCALED.apply(PIXELS, "")
    fetched = load_data("torchvision:Fake", prepare=SCALED, reading=Reading(download=True))
    assert_streams(fetched, scaled[6:], LABELS[6:], 4)
    assert fetched.class_names == ("a", "b", "c")
    train = load_data("torchvision:Fake:.", prepare=SCALED, reading=Reading(split="train"))
    assert_streams(train, scaled[:6], LABELS[:6], 4)
    with pytest.raises(sg.InputError, match="--split NAME, such as train"):
        load_data("torchvision:Split", prepare=SCALED)
    with pytest.raises(sg.InputError, match="no data set 'Flake'. Similar names: Fake"):
        load_data("torchvision:Flake")


class Reader:
    """As timm's: (file, label)."""

    def __init__(self, name):
        self.files = sorted(str(file) for file in Path(name).rglob("*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return open(self.files[i], "rb"), i % 3

    def filename(self, i):
        return self.files[i]


def test_timm(monkeypatch):
    """Its readers' files are opened here: timm itself gives another image for a damaged one."""

    def create_dataset(name, root, split, input_img_mode, **options):
        assert options == {} and split == "validation"
        if name == "wds/web":
            return Web()
        return types.SimpleNamespace(reader=Reader(root), __getitem__=None)

    class Web(IterableDataset):
        reader = types.SimpleNamespace(dist_rank=1, dist_num_replicas=2)
        left_out = 0

        def __len__(self):
            return N

        def __iter__(self):
            assert self.reader.dist_num_replicas == 1
            images = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in PIXELS]
            return iter(list(zip(images, LABELS.tolist(), strict=True))[self.left_out :])

    module = types.ModuleType("timm.data")
    module.create_dataset = create_dataset
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.data", module)
    scaled = SCALED.apply(PIXELS, "")
    assert_streams(load_data("wds/web:.", prepare=SCALED), scaled, LABELS, 4)
    monkeypatch.setattr(Web, "left_out", 2)
    with pytest.raises(sg.FormatError, match="has 11 samples, but timm gave 9"):
        list(load_data("wds/web:.", prepare=SCALED).loader())
    data = load_data(f"hfds/some/set:{folder(bad=[7])}", prepare=SCALED)
    with pytest.raises(sg.FormatError, match="dog/07.png"):
        list(data.loader())
    with pytest.raises(sg.InputError, match="fetched from elsewhere, which --download allows"):
        load_data("wds/web:https://somewhere/a.tar")


@pytest.mark.parametrize("spec", ["torchvision:CIFAR10", "torch/cifar10", "HFDS/mnist"])
def test_libraries_that_are_not_installed(spec, monkeypatch):
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(sg.BackendUnavailable, match=r"spikingjelly-signgd\[vision\]' torch==\d"):
        load_data(spec)


def test_splits_of_a_folder():
    folder("all/val")
    data = load_data("all", prepare=SCALED, reading=Reading(split="validation"))
    assert_streams(data, SCALED.apply(PIXELS, ""), CLASSES, 4)
    assert len(load_data("folder:all/val", prepare=SCALED)) == N
    with pytest.raises(sg.InputError, match="no folder 'train'; it has val"):
        load_data("all", reading=Reading(split="train"))
    with pytest.raises(sg.InputError, match="has no splits"):
        load_data("cli_zoo:data", reading=Reading(split="train"))


# -- progress -------------------------------------------------------------------------------------


def test_links_in_a_folder():
    """Those to folders are followed, as torchvision does; one to where it is adds nothing, and one
    to nothing cannot be read."""
    name = folder(count=N - 1)
    Path("more").mkdir()
    Path("more/10.png").write_bytes(Path("images/dog/09.png").read_bytes())
    Path("images/dog/more").symlink_to(Path("more").resolve())
    Path("images/dog/again").symlink_to(Path("images/dog").resolve())
    data = load_data(name, prepare=SCALED)
    assert len(data) == N and torch.equal(data.x[-1], data.x[-2])
    Path("images/dog/gone.png").symlink_to("nowhere.png")
    data = load_data(name, prepare=SCALED, reading=Reading(skip_bad=1))
    assert len(data.fingerprint) == 16 and len(data.x) == N


def test_a_bar_of_images(monkeypatch, capsys):
    monkeypatch.setenv("SIGNGD_PROGRESS", "bar")
    for seconds in (core.progress.AFTER, core.progress.EVERY):
        monkeypatch.setitem(seconds, "bar", 0.0)
    assert list(progress(X.split(40), "evaluating", 96, images=len))[2].shape[0] == 16
    shown = capsys.readouterr().err
    assert "evaluating" in shown and "/96" in shown and " images/s" in shown


def test_how_many_samples():
    assert samples_in(DataLoader(TensorDataset(X), 7)) == 96
    assert samples_in([X]) is None and samples_in(X) is None


def test_pixels_are_of_eight_bits():
    with pytest.raises(sg.InputError, match="the mode 'I;16'"):
        pixels(Image.fromarray(np.zeros((2, 2), np.uint16)), "a.png")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_bits_are_not_cut_off_for_a_models_own_preparation(kind):
    image = Image.fromarray(np.full((2, 2), 300, kind))
    with pytest.raises(sg.InputError, match="'a.png' has the mode '.*8 bits a channel"):
        Preparation(model="timm:tiny").picture(image, "a.png")


@pytest.mark.parametrize("label", [-2, 1.7, float("nan"), torch.tensor([1, 2]), np.ones(2), "cat"])
def test_what_is_no_class_index(label):
    with pytest.raises(sg.InputError, match="labels are class indices, integers.*'images' has"):
        label_of(label, "images")


def test_class_indices_of_every_library():
    for three in (3, 3.0, np.int64(3), torch.tensor(3), torch.tensor([3])):
        assert label_of(three, "images") == 3
    assert label_of(None, "images") is label_of(-1, "images") is None


@pytest.mark.slow
def test_modules_of_the_working_folder_in_workers_that_start_anew(inside, monkeypatch):
    """As by default on macOS, and from Python 3.14 on."""
    Path("mine.py").write_text(
        "import torch\n"
        "class Mine(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 5\n"
        "    def __getitem__(self, i): return torch.full((2,), float(i))\n"
        "data = Mine()\n"
        "def together(samples): return torch.stack(samples) + 1\n"
        "loader = torch.utils.data.DataLoader(data, 2, collate_fn=together)\n"
    )
    for spec, more in (("mine:data", 0), ("mine:loader", 1)):
        data = load_data(spec, reading=Reading(workers=1))
        loader = DataLoader(
            data.dataset, 5, collate_fn=data.together, num_workers=1,
            multiprocessing_context="spawn",
        )  # fmt: skip
        assert next(iter(loader))[:, 0].tolist() == [i + more for i in range(5)]


def test_samples_of_one_number_are_checked():
    np.save("a.npy", np.array([0.5, np.nan, 1.0], dtype=np.float32))
    with pytest.raises(sg.InputError, match="the first: 1"):
        list(load_data("a.npy").loader(3))


@pytest.mark.parametrize(
    "given", [{"split": "val"}, {"skip_bad": 1}, {"workers": 1}, {"download": True}], ids=str
)
def test_clips_are_read_as_they_are(given):
    np.save("clip.npy", np.zeros((3, 2, 4), dtype=np.float32))
    with pytest.raises(
        sg.InputError, match=f"--{[*given][0].replace('_', '-')}: does not apply to clips"
    ):
        load_data("clip.npy", clip=True, reading=Reading(**given))


def test_the_seed_is_of_the_data_where_samples_are_drawn():
    np.save("a.npy", X.numpy())
    options = {"limit": 10, "samples": 20}
    one, other = (load_data("a.npy", seed=seed, **options).fingerprint for seed in (0, 1))
    assert one == other != load_data("a.npy", limit=10, samples=5).fingerprint
