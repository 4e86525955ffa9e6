"""Networks in NeuroBench: its own counting of what our neurons send, against hand counts and ours.

`make neurobench` runs this with NeuroBench beside .venv; without it all but one test is skipped.
"""

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from data import digits
from networks import load_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd import plugins
from spikingjelly_signgd.analysis import count_operations

ROOT = Path(__file__).parent.parent
present = pytest.mark.skipif(
    importlib.util.find_spec("neurobench") is None or importlib.util.find_spec("snntorch") is None,
    reason="NeuroBench is not installed; make neurobench",
)


def benchmark(model, x, y=None, batch=4, static=(), workload=()):
    """The results of NeuroBench; a metric of its that fails would only print so."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations

    all_of = getattr(plugins.neurobench, "AllSynapticOperations")  # noqa: B009
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long) if y is None else y)
    metrics = [list(static), [SynapticOperations, all_of, *workload]]
    classes = [lambda out: out.argmax(1)] if y is not None else []
    return Benchmark(model, DataLoader(data, batch), [], classes, metrics).run(quiet=True)


def converted(model, x, steps, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        if options.get("method") not in ("group", "subgradient"):
            options = {"dead_zone": 0} | options
        network = sg.convert(model.eval(), x, time_steps=steps, tune=False, **options)
    return sg.build(network)


def both(snn, x, steps, **options):
    """(theirs, with what they do not see), each {"Effective_ACs": ..., ...}."""
    found = benchmark(plugins.neurobench.NeuroBenchNetwork(snn, steps), x, **options)
    return found["SynapticOperations"], found["AllSynapticOperations"]


# -- counted by hand ------------------------------------------------------------------------------


@present
@pytest.mark.parametrize("members", [1, 2])
def test_padding_and_stride(members):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU()
    )
    x = 0.1 + torch.rand(6, 1, 4, 4)
    theirs, every = both(converted(model, x, 5, members=members), x, 5)
    # along one side 2 + 3 + 3 + 2 pixels are met, with stride 2 at the outputs 0 and 1: 2 + 3
    first, second = 10 * 10 * 1 * 2, 5 * 5 * 2 * 3 * members * 5
    expected = {"Effective_MACs": first, "Effective_ACs": second, "Dense": first + second}
    assert theirs == every == expected


@present
def test_graded_spikes_and_an_average():
    """4 members: 3/4 fires 3 of them at the first step, 1/4 fires 1; each meets 3 weights."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), sg.QCFS(4, 1.0), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(1, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.tensor([[[[0.75, 0.25], [0.5, 0.0]]]])
    snn = converted(model, x, 1, method="group", members=4)
    theirs, every = both(snn, x, 1)
    assert theirs["Effective_ACs"] == every["Effective_ACs"] == (3 + 1 + 2 + 0) * 3
    assert theirs["Effective_MACs"] == 3 and theirs["Dense"] == 4 + 4 * 4 * 3  # a zero in x
    assert count_operations(snn, x, 1).synaptic == 18


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act1(self.first(x))
        x = self.act3(x + self.inner(x))
        return self.last(self.act2(x))


@present
def test_past_no_weight():
    x = 0.1 + torch.rand(6, 3)
    theirs, every = both(converted(Residual(), x, 6), x, 6)
    assert theirs["Effective_ACs"] == 6 * (25 + 10)  # inner, last
    assert every["Effective_ACs"] == 6 * (25 + 10 + 5 + 5)  # the shortcut, one neuron to the next
    assert every["Dense"] == theirs["Dense"] + 6 * 10


class Product(nn.Module):
    def forward(self, x):  # [B, 3, 4]
        a = torch.relu(x)
        return torch.relu(a @ a.transpose(1, 2))


@present
def test_products_of_two_signals():
    x = torch.rand(5, 3, 4)
    theirs, every = both(converted(Product(), x, 2), x, 2)
    assert theirs == {"Effective_MACs": 0, "Effective_ACs": 0, "Dense": 0}
    assert every == {"Effective_MACs": 2 * 9 * 4, "Effective_ACs": 2 * 33, "Dense": 2 * (36 + 33)}


@present
def test_other_weighted_operations():
    """A transposed convolution: each of 3 x 3 pixels meets 2 x 2 weights of 4 channels."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 4, 2), nn.ReLU()
    )  # fmt: skip
    x = 0.1 + torch.rand(3, 1, 3, 3)
    snn = converted(model, x, 3)
    theirs, every = both(snn, x, 3)
    assert theirs["Effective_ACs"] == 0
    assert every["Effective_ACs"] == 3 * 2 * 9 * 4 * 4 == count_operations(snn, x, 3).synaptic


@present
@pytest.mark.parametrize(("mode", "met"), [("nearest", 2 + 2 + 2), ("bilinear", 3 + 4 + 3)])
def test_interpolation(mode, met):
    """3 pixels to 6: each is one of their 2 values, or weighs in up to 4."""
    up = nn.Upsample(scale_factor=2, mode=mode)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), up, nn.Conv2d(2, 3, 1))
    x = 0.1 + torch.rand(2, 1, 3, 3)
    snn = converted(model, x, 4)
    _, every = both(snn, x, 4)
    assert every["Effective_ACs"] == 4 * 2 * met**2 * 3
    assert every["Effective_ACs"] == count_operations(snn, x, 4).synaptic


@present
def test_real_values_between_two_layers():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1, groups=4),
                          nn.Conv2d(4, 2, 1))  # fmt: skip
    x = 0.1 + torch.rand(4, 1, 3, 3)
    theirs, every = both(converted(model, x, 4), x, 4)
    assert every["Effective_MACs"] == theirs["Effective_MACs"] == 4 * 9 + 4 * 9 * 4 * 2
    assert every["Effective_ACs"] == 4 * (7 * 7) * 4


# -- trained networks -----------------------------------------------------------------------------


def unmet(x, weight, **options):
    """The MACs of pixels of zero: NeuroBench leaves them out, as it does weights of zero."""
    dark = (x == 0).double()
    return float(nn.functional.conv2d(dark, (weight != 0).double(), **options).sum()) / len(x)


@present
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet", {}), ("resnet", {"method": "group", "members": 4}), ("vgg", {"members": 2}),
     ("vit", {}), ("convnext", {}), ("vit", {"members": 6, "dead_zone": 2 / 3})],
)  # fmt: skip
def test_a_network_of_digits(name, options):
    """Every number of theirs from ours, and what differs from first principles."""
    data, steps = digits(), 3
    snn = converted(load_network(name, "digits"), data.train.images[:64], steps, **options)
    x, y = data.test.images[:12], data.test.labels[:12]
    found = count_operations(snn, x, steps)
    # a sum rounds otherwise in another batch, which may set off a sign that is near its dead zone
    batch = len(x) if "dead_zone" in options else 5
    theirs, every = both(snn, x, steps, y=y, batch=batch)
    network = snn.network
    assert every["Effective_ACs"] == pytest.approx(found.synaptic, rel=1e-12)
    arrivals = sum(v for k, v in found.layers.items() if network[k].kind != "linear")
    assert theirs["Effective_ACs"] == pytest.approx(found.synaptic - arrivals, rel=1e-12)

    (first,) = [n for n in network.nodes if n.kind == "linear" and n.inputs == ("input",)]
    a = first.attributes
    geometry = {"stride": a["stride"], "padding": a["padding"]}
    zeros = unmet(x, first.tensors["weight"], **geometry)
    macs = found.input_macs + found.sum_macs
    assert zeros > 0 and theirs["Effective_MACs"] == pytest.approx(macs - zeros, rel=1e-12)
    multiplied = theirs["Effective_MACs"] + found.multiplies
    assert every["Effective_MACs"] == pytest.approx(multiplied, rel=1e-12)
    if not {"method", "dead_zone"} & set(options):  # every signGD neuron sends at every step
        assert every["Dense"] == pytest.approx(macs + found.synaptic + found.multiplies, rel=1e-12)


@present
def test_the_other_metrics():
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy

    data, steps = digits(), 4
    model = load_network("resnet", "digits")
    snn = converted(model, data.train.images[:64], steps, method="group", members=2)
    x, y = data.test.images[:30], data.test.labels[:30]
    adapter = plugins.neurobench.NeuroBenchNetwork(snn, steps)
    found = benchmark(
        adapter, x, y, 10, (ParameterCount, Footprint, ConnectionSparsity),
        (ActivationSparsity, ClassificationAccuracy),
    )  # fmt: skip
    linear = [n for n in snn.network.nodes if n.kind == "linear"]
    tensors = [t for n in linear for t in n.tensors.values()]
    weights = sum(t.numel() for t in tensors if t.is_floating_point())
    assert found["ParameterCount"] == weights and found["Footprint"] == 4 * weights
    assert found["ConnectionSparsity"] == 0.0
    right = (sg.run(snn, x, steps)[steps].argmax(1) == y).float().mean()
    assert found["ClassificationAccuracy"] == pytest.approx(float(right)) and right > 0.5
    events = count_operations(snn, x, steps).events
    neurons = sum(n for name, n in snn.network.count().items() if snn.network[name].kind == "group")
    assert found["ActivationSparsity"] == pytest.approx(1 - events / (steps * neurons))
    assert not any(hook.inputs for hook in adapter.connection_hooks)  # kept for one batch alone


@present
def test_batches_make_no_difference():
    data = digits()
    snn = converted(load_network("resnet", "digits"), data.train.images[:64], 3, method="group",
                    members=4)  # fmt: skip
    x, before = data.test.images[:5], snn.listener
    assert both(snn, x, 2, batch=5) == both(snn, x, 2, batch=3) == both(snn, x, 2, batch=1)
    assert snn.listener is before


@present
def test_what_neurobench_reads_without_the_adapter():
    """Graded spikes are MACs, unregistered neurons silent, converted networks without layers."""
    from neurobench.metrics.workload import ActivationSparsity
    from neurobench.models import TorchModel

    net = nn.Sequential(nn.Flatten(), sg.GroupNode(4), nn.Linear(4, 3))
    x = torch.tensor([[0.5, 0.25, 0.0, 0.75]])
    plain = benchmark_plain(TorchModel(net), x, ActivationSparsity)
    assert plain["SynapticOperations"]["Effective_ACs"] == 0
    assert plain["SynapticOperations"]["Effective_MACs"] == 3 * 3  # three values are not 0
    assert plain["ActivationSparsity"] == 0.0  # one of four is
    snn = converted(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), x, 4)
    snn.step_mode = "s"
    plain = benchmark_plain(TorchModel(snn), x, ActivationSparsity)
    nothing = {"Effective_MACs": 0, "Effective_ACs": 0, "Dense": 0}
    assert plain["SynapticOperations"] == nothing


def benchmark_plain(model, x, *metrics):
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations

    data = TensorDataset(x, torch.zeros(len(x)))
    bench = Benchmark(model, DataLoader(data), [], [], [[], [SynapticOperations, *metrics]])
    return bench.run(quiet=True)


@present
@pytest.mark.parametrize(
    "options",
    [{"method": "subgradient"}, {"input_coding": "poisson"},
     {"input_coding": "poisson", "method": "group", "members": 3}],
)  # fmt: skip
def test_the_baseline_and_poisson_coding(options):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    x = 0.1 + torch.rand(5, 3)
    snn = converted(model, x, 6, **options)
    _, every = both(snn, x, 6, batch=5)  # in which a step draws
    found = count_operations(snn, x, 6)
    assert every["Effective_ACs"] == pytest.approx(found.synaptic, rel=1e-12) and found.synaptic
    assert every["Effective_MACs"] == pytest.approx(found.input_macs, rel=1e-12)


@present
def test_what_is_no_such_network():
    adapter = plugins.neurobench.NeuroBenchNetwork
    with pytest.raises(sg.InputError, match="build"):
        adapter(nn.Linear(2, 2))
    x = torch.rand(4, 3)
    snn = converted(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), x, 4)
    with pytest.raises(sg.InputError, match="at least 1"):
        adapter(snn, 0)
    with pytest.raises(sg.InputError, match="NaN"):
        adapter(snn, 4)(x / 0 * 0)


@present
def test_the_page(capsys):
    page = (ROOT / "docs" / "counters.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, {})
    assert "Effective_ACs" in capsys.readouterr().out


# -- absent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["neurobench", "snntorch"])
def test_where_neurobench_is_not_installed(monkeypatch, missing):
    name = "spikingjelly_signgd.plugins.neurobench"
    if missing == "snntorch" and importlib.util.find_spec("neurobench") is None:
        pytest.skip("neurobench comes first")
    for module in list(sys.modules):
        if module.partition(".")[0] in ("neurobench", missing) or module == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(plugins), "neurobench", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(sg.BackendUnavailable, match=r"pip install '.*\[neurobench\]' torch=="):
        importlib.import_module(name)
