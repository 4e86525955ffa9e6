"""SpikingJelly's op_counter with the rules for signs and graded spikes, against hand counts."""

import importlib
import importlib.util
import sys
import warnings

import pytest
import torch
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd import plugins
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.neurons.spikes import hear, joined

pytestmark = pytest.mark.spikingjelly
OP_COUNTER = "spikingjelly.activation_based.op_counter"
present = pytest.mark.skipif(
    importlib.util.find_spec(OP_COUNTER) is None, reason="this spikingjelly has no op_counter"
)


def counted(net, x, **options):
    """(SynOps, ACs, MACs) with our rules, and the SynOps and MACs without."""
    theirs, ours = importlib.import_module(OP_COUNTER), plugins.op_counter
    with torch.no_grad(), ours.Spikes(net, **options) as spikes:
        kinds = (theirs.SynOpCounter, theirs.ACCounter, theirs.MACCounter)
        counters = [kind(spikes.rules_of(kind)) for kind in kinds]
        plain = [theirs.SynOpCounter(), theirs.MACCounter()]
        with theirs.DispatchCounterMode([spikes, *counters, *plain]):
            net(x)
    return [c.get_total() for c in counters], [c.get_total() for c in plain]


@present
def test_graded_spikes_of_a_linear_layer():
    """theta is 1/4 and v(0) is 1/8: 0.5, 0.25 and 0 fire 2, 1 and 0 members."""
    net = nn.Sequential(sg.GroupNode(4), nn.Linear(3, 5))
    x = torch.tensor([[0.5, 0.25, 0.0]])
    assert counted(net, x) == ([(2 + 1) * 5, (2 + 1) * 5, 0], [0, 3 * 5])
    net[0].reset()
    assert counted(net, x, events=True) == ([2 * 5, 2 * 5, 0], [0, 3 * 5])


@present
def test_a_threshold_for_each_channel_and_spikes_taken_back():
    node = sg.GroupNode(2, torch.tensor([[1.0], [8.0]]), signed=True, step_mode="m")
    net = nn.Sequential(node, nn.Linear(2, 3, bias=False))
    x = torch.tensor([[[[0.5, 1.0], [4.0, 0.0]]], [[[-0.5, 0.0], [0.0, 8.0]]]])  # [T, N, C, 2]
    assert counted(net, x) == ([(1 + 2 + 1 + 1 + 2) * 3, 7 * 3, 0], [0, 8 * 3])


@present
@pytest.mark.parametrize("members", [1, 2])
def test_signs(members):
    """The image is real, and its convolution a MAC; 2 x 3 x 3 neurons send signs at each step."""
    schedule = sg.InverseSchedule(1.0, 1.0)
    node = sg.SignGDNode(
        "relu",
        schedule,
        members=members,
        step_mode="m",
        dead_zone=0,
        spikes="signed",
        initial_input=0.0,
    )
    net = nn.Sequential(node, nn.Flatten(0, 1), nn.Conv2d(2, 4, 3, padding=1))
    x = torch.randn(5, 1, 2, 3, 3)
    connections = 7 * 7 * 4 * members  # 2 + 3 + 2 along one side, of either channel
    (synops, acs, macs), (plain, dense) = counted(net, x)
    assert synops == acs == 5 * 2 * connections and macs == 0
    assert plain == 0 and dense == 5 * 9 * 9 * 2 * 4  # the border, too


@present
@pytest.mark.parametrize(("members", "spikes"), [(1, "ternary"), (1, "signed"), (5, "signed")])
def test_signs_that_are_silent_add_nothing(members, spikes):
    node = sg.SignGDNode("relu", sg.InverseSchedule(1.0, 1.0), members=members, step_mode="m",
                         spikes=spikes, initial_input=0.0, dead_zone=2 / 3)  # fmt: skip
    net = nn.Sequential(node, nn.Linear(6, 7))
    x = torch.randn(8, 1, 6) / 4
    with torch.no_grad(), hear() as told:
        node(x)
    node.reset()
    sent = int(joined(told).spikes.sum())
    assert 0 < sent < 8 * 6 * members
    (synops, _, macs), _ = counted(net, x)
    assert (synops, macs) == (sent * 7, 0)


@present
def test_binary_spikes_of_two_signs_count_their_ones():
    schedule, w = sg.InverseSchedule(1.0, 1.0), torch.ones(1, 6)
    node = sg.SignGDNode("relu", schedule, spikes="binary", members=2, step_mode="m", offset=w,
                         dead_zone=0, initial_input=0.0)  # fmt: skip
    net = nn.Sequential(node, nn.Linear(6, 7))
    x = 4 * torch.randn(8, 1, 6)
    with torch.no_grad():
        y = node(x)
    node.reset()
    ones = sum(int((y == s).sum()) * bits for s, bits in ((1, 1), (2, 1), (3, 2)))
    assert 0 < ones < 2 * y.numel() and set(y.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    (synops, _, macs), _ = counted(net, x)  # ACCounter sees additions inside the neuron, too
    assert (synops, macs) == (ones * 7, 0)


class Pools(nn.Module):
    """n spikes at each of 4 x 4 places, of which one channel is averaged away."""

    def __init__(self, pool):
        super().__init__()
        self.node, self.pool, self.last = sg.GroupNode(4), pool, nn.LazyLinear(3)

    def forward(self, x):
        return self.last(self.pool(self.node(x)).flatten(1))


@present
@pytest.mark.parametrize(
    ("pool", "line"),  # how often a spike at each place of one side is met
    [
        (nn.AvgPool2d(2), [1, 1, 1, 1]),
        (nn.AvgPool2d(3, 1), [1, 2, 2, 1]),
        (nn.AvgPool2d(3, 2, 1), [1, 2, 1, 1]),
        (nn.AdaptiveAvgPool2d(1), [1, 1, 1, 1]),
        (nn.AdaptiveAvgPool2d(3), [1, 2, 2, 1]),
        (nn.ZeroPad2d(1), [1, 1, 1, 1]),
        (nn.Upsample(scale_factor=2), [2, 2, 2, 2]),
        (nn.Upsample(scale_factor=2, mode="bilinear"), [3, 4, 4, 3]),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 16))), [1, 1, 1, 1]),
    ],
)
def test_spikes_are_followed(pool, line):
    net = Pools(pool)
    x = torch.rand(2, 2, 4, 4)
    with torch.no_grad():
        n = 4 * net.node(x)
        net(x)  # makes the lazy layer
    net.node.reset()
    expected = float((n * torch.tensor(line) * torch.tensor(line)[:, None]).sum()) * 3
    (synops, _, macs), (plain, _) = counted(net, x)
    assert (synops, macs, plain) == (expected, 0, 0) and expected > 0


class Changes(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.node, self.change, self.last = sg.GroupNode(4), change, nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.change(self.node(x)))


ONES = [1] * 6


@present
@pytest.mark.parametrize(
    ("change", "met"),  # how often a spike of each neuron is met, None where it is one no more
    [
        (lambda y: 2 * y, ONES),
        (lambda y: -y / 3, ONES),
        (lambda y: y + y, [2] * 6),
        (lambda y: y * torch.tensor([0.0, 1, 1, 1, 1, 1]), [0, 1, 1, 1, 1, 1]),
        (lambda y: torch.cat([y[:, 3:], y[:, 3:]], 1), [0, 0, 0, 2, 2, 2]),
        (lambda y: y.double().float(), ONES),
        (lambda y: y + 0.3, None),
        (lambda y: y + torch.full((6,), 0.3), None),
        (lambda y: torch.tanh(y), None),
        (lambda y: y.mul_(2.0), None),
        (lambda y: torch.cat([y[:, 3:], torch.full((2, 3), 0.3)], 1), None),
    ],
)
def test_what_is_no_spike_any_more_is_a_mac(change, met):
    net = Changes(change)
    x = torch.rand(2, 6)
    with torch.no_grad():
        n = 4 * net.node(x)
    net.node.reset()
    (synops, _, macs), _ = counted(net, x)
    if met is None:
        assert (synops, macs) == (0, 2 * 6 * 3)
    else:
        assert (synops, macs) == (float((n * torch.tensor(met)).sum()) * 3, 0)
        assert len(n.unique()) > 2


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = sg.GroupNode(4), sg.GroupNode(2)

    def forward(self, x):
        return self.left(x) @ self.right(x).transpose(1, 2)


@present
def test_a_product_of_spikes_adds_where_both_fire():
    net = Product()
    x = torch.rand(2, 3, 5)
    with torch.no_grad():
        left, right = 4 * net.left(x), 2 * net.right(x)
    net.left.reset(), net.right.reset()
    pairs = sum(
        left[b, i, k] * right[b, j, k]
        for b in range(2)
        for i in range(3)
        for j in range(3)
        for k in range(5)
    )
    assert counted(net, x) == ([int(pairs), int(pairs), 0], [0, 2 * 3 * 3 * 5]) and pairs > 0


@present
def test_an_image_of_few_values_is_no_spikes():
    net = nn.Sequential(nn.Linear(4, 3), sg.GroupNode(4), nn.Linear(3, 2))
    x = torch.tensor([[0.25, 0.5, 0.0, 0.75]])
    (_, _, macs), _ = counted(net, x)
    assert macs == 4 * 3


# -- networks of build ----------------------------------------------------------------------------


def group_network(members, threshold=1.0):
    """QCFS of threshold 1 before IF neurons: what they send is 0 or 1."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), sg.QCFS(8, threshold),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), sg.QCFS(8, threshold),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), sg.QCFS(8, threshold), nn.Flatten(),
        nn.Linear(54, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for k in (0, 2, 4):
            model[k].weight.mul_(3.0)
    x = torch.rand(4, 1, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        return sg.convert(model, x, method="group", members=members, time_steps=8), x


@present
def test_binary_spikes_are_counted_as_spikingjelly_does():
    """Its own counter, none of our rules: accumulates are equal, borders too; the image's MACs are
    those of a convolution that multiplies with its border."""
    theirs = importlib.import_module(OP_COUNTER)
    network, x = group_network(1)
    snn = sg.build(network)
    synops, macs = theirs.SynOpCounter(), theirs.MACCounter()
    with theirs.DispatchCounterMode([synops, macs]):
        sg.run(snn, x, 8, chunk=8)
    found = count_operations(snn, x, 8)
    assert synops.get_total() == found.synaptic * len(x) > 0
    assert macs.get_total() == len(x) * 4 * 25 * 9 and found.input_macs == 4 * (2 + 3 * 3 + 2) ** 2
    assert plugins.op_counter.count(snn, x, 8) == (found.synaptic, macs.get_total() / len(x))


@present
@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_group_networks(threshold):
    theirs = importlib.import_module(OP_COUNTER)
    network, x = group_network(4, threshold)
    snn = sg.build(network)
    found = count_operations(snn, x, 8)
    assert plugins.op_counter.count(snn, x, 8).synaptic == found.synaptic > found.synaptic_events
    assert plugins.op_counter.count(snn, x, 8, events=True).synaptic == found.synaptic_events
    plain = theirs.SynOpCounter()
    with theirs.DispatchCounterMode([plain]):
        sg.run(snn, x, 8)
    assert plain.get_total() == 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.inner(x))
        return self.last(self.pool(x).mean((2, 3)))


@present
@pytest.mark.parametrize(
    "options",
    [{"members": 1, "dead_zone": 0}, {"members": 3, "dead_zone": 0},
     {"members": 1, "dead_zone": 2 / 3}, {"members": 8, "dead_zone": 1 / 2},
     {"method": "group", "members": 4},
     {"method": "group", "members": 4, "signed": True}],
)  # fmt: skip
def test_residual_and_pooling(options):
    """What arrives at a neuron past no weight is an addition that op_counter does not look for."""
    x = torch.rand(4, 1, 4, 4)
    network = sg.convert(Residual().eval(), x, time_steps=5, tune=False, **options)
    snn = sg.build(network, spikes="decoded" if "method" in options else "signed")
    found = count_operations(snn, x, 5)
    weighted = sum(found.layers.get(name, 0.0) for name in ("inner", "last"))
    assert 0 < weighted < found.synaptic
    counted = plugins.op_counter.count(snn, x, 5)
    assert counted.synaptic == pytest.approx(weighted, rel=1e-12)
    assert counted.macs == 16 * 9 * 4  # the image, once


@present
def test_real_values_stay_multiplications():
    """What leaves one convolution enters the next: 4 x 4 neurons with 3 x 3 weights, border too."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.GELU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1, groups=2)
    )
    x = torch.rand(3, 1, 4, 4)
    network = sg.convert(model.eval(), x, time_steps=6, tune=False, dead_zone=0)
    found = count_operations(sg.build(network), x, 6)
    counted = plugins.op_counter.count(sg.build(network, spikes="signed"), x, 6)
    assert counted.synaptic == found.synaptic == 6 * 16 * 2 * 2
    assert counted.macs == 16 * 2 + 6 * 16 * 2 * 9
    assert found.input_macs + found.sum_macs == 16 * 2 + 6 * 2 * (2 + 3 + 3 + 2) ** 2


@present
def test_decoded_values_are_no_spikes():
    network = sg.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(8, 3), tune=False)
    with pytest.raises(sg.InputError, match='spikes="signed"'):
        plugins.op_counter.count(sg.build(network), torch.rand(2, 3), 4)
    theirs = importlib.import_module(OP_COUNTER)
    with pytest.raises(sg.InputError, match="MACCounter, not for"):
        plugins.op_counter.Spikes(nn.ReLU()).rules_of(theirs.FlopCounter)


def test_where_spikingjelly_has_no_op_counter(monkeypatch):
    """0.0.0.0.14 as it is, 2.0.0 without it."""
    name = "spikingjelly_signgd.plugins.op_counter"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(vars(plugins), "op_counter", raising=False)
    if importlib.util.find_spec(OP_COUNTER) is not None:
        monkeypatch.setitem(sys.modules, OP_COUNTER, None)
    with pytest.raises(sg.BackendUnavailable, match=r"pip install 'spikingjelly>=2' torch=="):
        importlib.import_module(name)
