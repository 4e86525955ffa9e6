"""Analyses of data of any length: a loader, a data set, or batches that come once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import (
    count_operations,
    diagnose,
    doctor,
    estimate_energy,
    write_report,
)
from spikingjelly_signgd.converters import compare_functions
from spikingjelly_signgd.core.samples import some
from spikingjelly_signgd.errors import InputError


@pytest.fixture(scope="module")
def images():
    return torch.rand(100, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.fixture(scope="module")
def snn(model, images):
    return sg.build(sg.convert(model, images, time_steps=4, members=4, tune=False))


def forms(x, y):
    """The same data in every form, with labels where the form has them."""
    pairs = list(zip(x.split(32), y.split(32), strict=True))
    return [
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), 32),
        pairs,
        iter(pairs),
        iter(x.split(32)),
        ({"input": part} for part in x.split(32)),
    ]


@pytest.mark.parametrize("form", range(5))
def test_operations_are_those_of_all_samples(snn, images, form):
    data = forms(images, images.argmax(1))[form]
    found, wanted = count_operations(snn, data, [1, 4]), count_operations(snn, images, [1, 4])
    for t in (1, 4):
        assert found[t].samples == 100
        assert found[t].synaptic == pytest.approx(wanted[t].synaptic, rel=1e-12)
        assert found[t].levels == pytest.approx(wanted[t].levels, rel=1e-12)


def test_energy_is_that_of_all_samples(snn, images):
    found = estimate_energy(snn, DataLoader(TensorDataset(images), 33))
    wanted = estimate_energy(snn, images)
    for name, by in wanted.total.items():
        assert found.total[name] == pytest.approx(by, rel=1e-12)


def test_nothing_to_count_is_an_error(snn):
    with pytest.raises(InputError, match="no samples"):
        count_operations(snn, [])
    with pytest.raises(InputError, match="no samples"):
        count_operations(snn, iter([torch.zeros(0, 6)]))


@pytest.mark.parametrize("form", range(4))
def test_the_doctor_examines_some_of_much(snn, model, images, monkeypatch, form):
    monkeypatch.setattr(doctor, "EXAMINED", 40)
    y = model(images).argmax(1)
    found = diagnose(snn, forms(images, y)[form], reference=model)
    x, _ = some(images, 40)
    wanted = diagnose(snn, x, model(x).argmax(1), reference=model)
    assert found.to_dict() == wanted.to_dict()
    assert found.samples == 40
    assert found.source_accuracy == 1.0


def test_the_doctor_of_few_samples_sees_all_of_them(snn, images):
    wanted = diagnose(snn, images).to_dict()
    assert diagnose(snn, iter(images.split(7))).to_dict() == wanted
    # targets that are no classes are none of its labels
    assert diagnose(snn, TensorDataset(images, images)).to_dict() == wanted


def test_labels_are_given_once(snn, images):
    y = images.argmax(1)
    with pytest.raises(InputError, match="in(to)? its batches"):
        diagnose(snn, TensorDataset(images), y)
    with pytest.raises(InputError, match="in(to)? its batches"):
        write_report("unwritten.html", snn, TensorDataset(images), y)


def test_a_report_goes_through_the_data_once(snn, model, images, tmp_path):
    passed = []

    def batches():
        for part in images.split(30):
            passed.append(len(part))
            yield part, model(part).argmax(1)

    path = write_report(tmp_path / "report.html", snn, batches(), samples=20, reference=model)
    text = path.read_text("utf-8")
    assert passed == [30, 30, 30, 10]
    assert "100 samples" in text
    assert "sha256 of 20 of them" in text
    assert "Measured on 20 samples" in text


def test_a_report_without_data_is_an_error(snn, tmp_path):
    for data in ([], iter([torch.zeros(0, 6)])):
        with pytest.raises(InputError, match="empty"):
            write_report(tmp_path / "report.html", snn, data)


def test_forms_are_compared_on_a_data_set(model, images):
    found = compare_functions(model, TensorDataset(images), 2)
    assert found == compare_functions(model, images, 2)
