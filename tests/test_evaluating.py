"""evaluate over several processes, and going on with what a results file holds."""

import contextlib
import errno
import json
import os
import threading
from io import FileIO

import pytest
import torch
from several import several
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import results
from spikingjelly_signgd.core.results import Record

CLASSES, STEPS = 7, (1, 4)
X = torch.randn(31, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(CLASSES, (31,), generator=torch.Generator().manual_seed(2))
EVERY = [
    "error", "max_abs", "mean_abs", "abs_rel", "r2", "agreement", "cosine", "worst_cosine",
    "rank_correlation", lambda have, want: (have - want).mean(),
]  # fmt: skip


class Skipping(tuple):
    """A batch (x, y) of which some samples could not be read."""

    skipped = ()

    def __new__(cls, x, y, *skipped):
        batch = super().__new__(cls, (x, y))
        batch.skipped = skipped
        return batch


def skipping(x, y):
    """Batches of 4 that lack a sample, the last of 3; one lacks all."""
    for number, (some, labels) in enumerate(zip(x.split(4), y.split(4), strict=True)):
        if number == 2:
            yield Skipping(some[:0], labels[:0], *(f"{number}{i}.jpg" for i in range(4)))
        elif number % 3 == 1:
            yield Skipping(some[1:], labels[1:], f"{number}0.jpg")
        else:
            yield some, labels


DATA = {
    "a loader": lambda: DataLoader(TensorDataset(X, LABELS), 4),
    "no labels": lambda: list(X.split(4)),
    "a generator": lambda: ((X[i : i + 4], LABELS[i : i + 4]) for i in range(0, 31, 4)),
    "skipped samples": lambda: skipping(X, LABELS),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture(scope="module")
def snn(model):
    return sg.build(sg.convert(model, X, time_steps=4, tune=False))


@pytest.fixture
def evaluated(snn, model):
    """evaluate with these defaults; ``size`` processes if given, each with a network of its own."""

    def call(data="a loader", size=None, metric=None, **options):
        source = DATA[data] if isinstance(data, str) else data
        if size is None:
            return sg.evaluate(snn, source(), STEPS, reference=model, metric=metric, **options)

        def of(world):
            own = sg.build(snn.network)
            return sg.evaluate(
                own, source(), STEPS, reference=model, metric=metric, distributed=world, **options
            )

        tables = several(size, of)
        assert all(table == tables[0] for table in tables)
        return tables[0]

    return call


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_table_is_the_same_for_every_number_of_processes(evaluated, data, size):
    for metric in (None, EVERY):
        assert evaluated(data, size, metric) == evaluated(data, None, metric)


def test_tensors_and_data_sets_are_cut_into_batches(evaluated):
    x, y = X.repeat(3, 1), LABELS.repeat(3)
    pairs = list(zip(x.split(64), y.split(64), strict=True))
    assert evaluated(lambda: TensorDataset(x, y), 2) == evaluated(lambda: pairs)
    assert evaluated(lambda: x, 2) == evaluated(lambda: x.split(64))


def test_top_5(evaluated, snn, model):
    found, outputs = evaluated(), sg.run(snn, X, STEPS)
    for i, t in enumerate(STEPS):
        among = (outputs[t].topk(5).indices == LABELS[:, None]).any(1)
        assert found.top5[i] == float(among.double().mean()) > found.accuracy[i]
    among = (model(X).topk(5).indices == LABELS[:, None]).any(1)
    assert found.reference_top5 == float(among.double().mean())
    assert [row["top5"] for row in found.to_dict()["rows"]] == list(found.top5)
    unlabelled = evaluated("no labels")
    assert unlabelled.top5 == (None, None) and "top5" not in unlabelled.to_dict()["rows"][0]
    assert (found + found).top5 == found.top5 * 2


def test_samples_that_could_not_be_read_are_named_and_not_counted(evaluated):
    found = evaluated("skipped samples")
    names = ("10.jpg", "20.jpg", "21.jpg", "22.jpg", "23.jpg", "40.jpg", "70.jpg")
    assert found.skipped == names and found.samples == 31 - len(names)
    assert found.to_dict()["skipped"] == list(names)
    assert str(found).endswith(f"skipped  7: {', '.join(names)}")
    assert "skipped" not in str(evaluated()) and "skipped" not in evaluated().to_dict()


# -- a results file -------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.jsonl"


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("metric", [None, EVERY], ids=["usual", "every metric"])
def test_a_cut_at_every_line(evaluated, file, data, metric):
    """Also within a line, with another number of processes, and once more when all is done."""
    want = evaluated(data, None, metric)
    assert evaluated(data, 2, metric, resume=file) == want
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 8
    for kept in range(len(lines) + 1):
        torn = lines[kept][:-5] if kept < len(lines) else b""
        file.write_bytes(b"".join(lines[:kept]) + torn)
        assert evaluated(data, 1 + kept % 3, metric, resume=file) == want
        again = file.read_bytes().splitlines(keepends=True)
        assert sorted(again) == sorted(lines), "every batch once, and no torn line"
    assert evaluated(data, None, metric, resume=file) == want


def test_what_is_finished_is_not_computed_again(evaluated, file, model):
    seen = []

    class Counted(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return model(x)

    evaluated(resume=file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:6]))
    # of another class it is another reference, unless the file says so
    text = file.read_text().replace(
        results.model_digest(model), results.model_digest(counted := Counted())
    )
    file.write_text(text)
    snn = sg.build(sg.convert(model, X, time_steps=4, tune=False))
    sg.evaluate(snn, DATA["a loader"](), STEPS, reference=counted, resume=file)
    assert seen == [4, 4, 3]


def other(snn, **changes):
    return sg.build(snn.network.replace(**changes))


REFUSED = {
    "T": ({"time_steps": (1, 3)}, r"time_steps was \[1, 4\] there and is \[1, 3\] now"),
    "network": ({"snn": "other"}, "the network was '.*' there"),
    "reference": ({"reference": nn.Sequential(nn.Linear(6, CLASSES))}, "the reference was"),
    "activation": (
        {"reference": lambda model: nn.Sequential(model[0], nn.Tanh(), model[2])},
        "the reference was",
    ),
    "its number": (
        {"reference": lambda model: nn.Sequential(model[0], nn.GELU("tanh"), model[2])},
        "the reference was",
    ),
    "no reference": ({"reference": None}, "the reference was '.*' there and is None now"),
    "view": ({"snn": "signed"}, "the simulator was"),
    "metric": ({"metric": "r2"}, "the metrics was None there and is 'r2' now"),
    "chunk": ({"chunk": 2}, "chunk was None there and is 2 now"),
    "what the caller says": ({"data": "test.npz"}, "the data was None there and is 'test.npz'"),
    "fewer": ({"loader": DataLoader(TensorDataset(X[:20], LABELS[:20]), 4)}, "number of batches"),
    "other images": ({"loader": DataLoader(TensorDataset(X + 1, LABELS), 4)}, "of different data"),
    "other labels": ({"loader": DataLoader(TensorDataset(X, 6 - LABELS), 4)}, "of different data"),
    "a shorter iterable": ({"loader": None}, "the number of batches was"),
    "a stream": ({"keep_state": True}, "do not pass distributed= or resume="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_something_else_is_refused(name, snn, model, file):
    changes, message = REFUSED[name]
    options = {"time_steps": STEPS, "reference": model}
    sg.evaluate(snn, DATA["a loader"](), **options, resume=file)
    held = file.read_bytes()
    options |= {"snn": snn, "loader": DATA["a loader"](), "resume": file} | changes
    if options["loader"] is None:
        options["loader"] = ((X[i : i + 4], LABELS[i : i + 4]) for i in range(0, 8, 4))
    if name in ("activation", "its number"):  # of the same weights
        options["reference"] = changes["reference"](model)
    if options["snn"] == "other":
        options["snn"] = sg.build(sg.convert(model, X, time_steps=5, tune=False))
    if options["snn"] == "signed":
        options["snn"] = sg.build(snn.network, spikes="signed")
    with pytest.raises(sg.InputError, match=message):
        sg.evaluate(options.pop("snn"), options.pop("loader"), **options)
    assert file.read_bytes() == held


def test_threads_are_part_of_what_is_asked(evaluated, file, monkeypatch):
    evaluated(resume=file)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(sg.InputError, match="the number of torch's threads was .* is 77 now"):
        evaluated(resume=file)


def test_an_iterable_that_is_shorter_now(evaluated, file):
    def length(count):
        return lambda: ((X[i : i + 4], LABELS[i : i + 4]) for i in range(0, 4 * count, 4))

    evaluated(length(5), resume=file)
    with pytest.raises(sg.InputError, match="batch 4 was already evaluated, but .* 3 batches"):
        evaluated(length(3), resume=file)
    # also where all that was finished is loaded again, to be compared
    head, *records = file.read_bytes().splitlines(keepends=True)
    for kept in (1, 4):
        file.write_bytes(head + records[kept])
        with pytest.raises(sg.InputError, match=f"batch {kept} was already evaluated.*1 batches"):
            evaluated(length(1), resume=file)


DAMAGED = {
    "a line within": (lambda lines: lines[:3] + [lines[3][:20] + b"\n"] + lines[4:], "line 4"),
    "a number": (
        lambda lines: [
            *lines[:2],
            lines[2].replace(b'"samples": 4', b'"samples": "4"'),
            *lines[3:],
        ],
        "line 3: .*stands where int is expected",
    ),  # fmt: skip
    "a field": (lambda lines: [*lines[:2], lines[2].replace(b'"norm"', b'"nrm"')], "line 3"),
    "twice": (lambda lines: [*lines, lines[-1]], "line 10: batch . occurs twice"),
    "another file": (lambda lines: [b"time,error\n", b"1,2"], "not a results file"),
    "one line of another": (lambda lines: [b"weights"], "not a results file"),
    "another document": (lambda lines: [b'{"rows": []}\n'], "not a results file"),
    "a later version": (
        lambda lines: [lines[0].replace(b'"version": 1', b'"version": 2'), *lines[1:]],
        "of version 2",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_and_left_as_it_is(name, evaluated, file):
    damage, message = DAMAGED[name]
    evaluated(resume=file)
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    held = file.read_bytes()
    with pytest.raises(sg.FormatError, match=message):
        evaluated(size=2, resume=file)
    assert file.read_bytes() == held


def test_a_file_that_another_run_writes(evaluated, file):
    def batches():
        yield X[:4]
        with pytest.raises(sg.InputError, match="is being written by another run"):
            evaluated("no labels", resume=file)
        yield X[4:]

    assert evaluated(batches, resume=file) == evaluated(lambda: [X[:4], X[4:]])
    assert len(file.read_bytes().splitlines()) == 1 + 2


def test_a_file_that_a_process_forked_off_holds_open(evaluated, file):
    """As the workers of a loader with persistent_workers, which outlive the run."""
    handles = []

    def batches():
        for number in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                if os.path.samefile(f"/dev/fd/{number}", file):
                    handles.append(os.dup(int(number)))
        yield X[:4]

    try:
        evaluated(batches, resume=file)
        assert handles
        evaluated(lambda: iter([X[:4]]), resume=file)
    finally:
        for handle in handles:
            os.close(handle)


def test_a_file_that_cannot_be_written(evaluated, file):
    with pytest.raises(sg.InputError, match="cannot be written .No such file"):
        evaluated(size=2, resume=file.parent / "absent" / file.name)


@pytest.mark.parametrize("short", [False, True])
def test_a_disk_that_fills_up(short, evaluated, file, monkeypatch, tmp_path):
    """What was whole by then is gone on with."""
    whole = evaluated()

    class Full(FileIO):
        lines = 0

        def write(self, data):
            self.lines += 1
            if self.lines < 4:
                return super().write(data)
            if short:
                return super().write(data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "FileIO", Full)
    with pytest.raises(sg.InputError, match="cannot be written .No space left.*make room"):
        evaluated(resume=file)
    monkeypatch.undo()
    assert file.read_bytes().count(b"\n") == 3
    assert evaluated(resume=file) == whole


@pytest.mark.parametrize("data", [None, 3, "images.npz", object()])
def test_what_are_no_data(data, evaluated):
    with pytest.raises(sg.InputError, match=r"data are a tensor or array \[N, ...\].*, not "):
        evaluated(lambda: data)


def test_records_come_back_to_the_last_bit():
    parts = [
        torch.tensor([0.1, float("nan"), float("inf"), -0.0], dtype=dtype).reshape(2, 2)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    parts += [torch.tensor([True]), torch.tensor(2**62), torch.empty(0, 3)]
    record = Record(3, 4, ("a.jpg",), norm=1 / 3, squared=(0.1, 2e-320), parts={"y": {"m": parts}})
    back = Record.from_json(record.to_json())
    assert (back.squared, back.norm, back.skipped) == (record.squared, 1 / 3, ("a.jpg",))
    for one, other in zip(back.parts["y"]["m"], parts, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.untyped_storage().tolist() == other.untyped_storage().tolist()


def test_a_line_that_is_too_long(evaluated, file, monkeypatch):
    monkeypatch.setattr(results, "MOST", 3000)
    evaluated(resume=file)
    file.unlink()
    with pytest.raises(sg.InputError, match="rank_correlation and functions keep all outputs"):
        evaluated(metric=EVERY, resume=file)


def test_each_line_is_there_when_its_batch_is_finished(evaluated, file):
    held = []

    def data():
        for i in range(0, 31, 4):
            held.append(len(file.read_bytes().splitlines()))
            yield X[i : i + 4], LABELS[i : i + 4]

    evaluated(data, resume=file)
    assert held == list(range(1, 9))
    header, *records = map(json.loads, file.read_text().splitlines())
    assert header["format"] == results.FORMAT and set(results.ASKED) < set(header)
    assert [record["batch"] for record in records] == list(range(8))


def test_a_traced_reference_is_its_code(model):
    traced = torch.fx.symbolic_trace(model)
    before = results.model_digest(traced)
    assert results.model_digest(torch.fx.symbolic_trace(model)) == before
    (gelu,) = (node for node in traced.graph.nodes if node.target == "1")
    gelu.replace_all_uses_with(gelu.args[0])
    traced.recompile()
    assert results.model_digest(traced) != before


# -- faults in one of several ---------------------------------------------------------------------


def test_processes_with_different_networks_or_options(snn, model):
    def of(world):
        own = sg.build(snn.network if world.first else snn.network.replace(time_steps=3))
        return sg.evaluate(own, DATA["a loader"](), distributed=world)

    with pytest.raises(sg.InputError, match="time_steps differs between the processes .rank 0"):
        several(2, of)

    networks = [snn.network, sg.convert(model, X + 1, time_steps=4, tune=False)]

    def changed(world):
        return sg.evaluate(sg.build(networks[world.rank]), DATA["a loader"](), distributed=world)

    with pytest.raises(sg.InputError, match="the network differs between the processes"):
        several(2, changed)


def test_an_error_on_rank_0_reaches_all(snn, model):
    """One that only shows when all is added up."""
    errors = []

    def of(world):
        with pytest.raises(sg.InputError, match="must be a number, but it is Tensor") as error:
            sg.evaluate(
                sg.build(snn.network),
                DATA["a loader"](),
                STEPS,
                reference=model,
                metric=lambda have, want: have - want,
                distributed=world,
            )
        errors.append(str(error.value))

    several(3, of)
    assert len(errors) == 3 and len(set(errors)) == 1


def test_an_evaluation_after_one_that_failed_on_all(evaluated, snn, model):
    """What the others posted of the first one is no part of the second."""
    over = threading.Event()

    def unequal(world):
        for i in range(0, 12 + 4 * world.rank, 4):
            if i and not world.first:  # the first batch is compared
                assert over.wait(10), "rank 0 has looked for posts for the last time"
            yield X[i : i + 4] + 1, LABELS[i : i + 4]
        over.set()

    def twice(world):
        own = sg.build(snn.network)
        with pytest.raises(sg.InputError, match="number of batches differs"):
            sg.evaluate(own, unequal(world), STEPS, reference=model, distributed=world)
        data = DATA["a generator"]()
        return sg.evaluate(own, data, STEPS, reference=model, distributed=world)

    assert several(2, twice) == [evaluated("a generator")] * 2


def test_a_bad_batch_on_one_process_ends_all(evaluated):
    def data():
        for i in range(0, 31, 4):
            yield X[i : i + 4] * (float("nan") if i == 12 else 1), LABELS[i : i + 4]

    with pytest.raises(sg.InputError, match="NaN or infinity"):
        evaluated(data, 3)


@pytest.mark.parametrize("data", ["a loader", "a generator"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_script_that_catches_an_error_of_one_process_goes_on(
    failing, data, evaluated, snn, model
):
    """As in a sweep; the others may wait for that one, or be at work."""

    class Broken(TensorDataset):
        def __getitem__(self, i):
            if i == 4 * (3 + failing) + 1:  # in the second batch of one process
                raise ValueError("the image is broken")
            return super().__getitem__(i)

    def broken(rank):
        if data == "a loader":
            return DataLoader(Broken(X, LABELS), 4)
        return (
            (X[i : i + 4], LABELS[i : i + 4] if i < 12 or rank != failing else LABELS[:1])
            for i in range(0, 31, 4)
        )

    def sweep(world):
        own, found = sg.build(snn.network), []
        for one in (DATA["a loader"](), broken(world.rank), DATA["a loader"]()):
            try:
                found.append(
                    sg.evaluate(own, one, STEPS, reference=model, distributed=world).to_dict()
                )
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    whole = evaluated().to_dict()
    for rank, (first, error, last) in enumerate(several(3, sweep)):
        assert first == last == whole
        assert (f"rank {failing}: " in error) == (rank != failing)
        text = "labels are class indices" if data == "a generator" else "the image is broken"
        assert text in error


def test_what_is_no_network(model, file):
    with pytest.raises(
        sg.InputError, match="evaluate takes the module that build.network. returns"
    ):
        sg.evaluate(model, [X], 4, resume=file)
    assert not file.exists()


def test_a_resume_on_one_process_alone(evaluated, snn, file):
    def of(world):
        resume = file if world.first else None
        sg.evaluate(sg.build(snn.network), [X], 4, distributed=world, resume=resume)

    with pytest.raises(sg.InputError, match="whether there is resume= differs"):
        several(2, of)
    assert not file.exists()


@pytest.mark.parametrize("metric", [None, EVERY], ids=["usual", "every metric"])
def test_an_empty_batch_adds_nothing(evaluated, metric):
    whole = [(X[:4], LABELS[:4]), (X[4:8], LABELS[4:8])]
    empty = (X[:0], LABELS[:0])
    assert evaluated(lambda: [empty, *whole, empty], 2, metric) == evaluated(
        lambda: whole, None, metric
    )


def test_an_empty_loader(evaluated):
    with pytest.raises(sg.InputError, match="the loader is empty"):
        evaluated(lambda: [], 2)
