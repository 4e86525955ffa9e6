"""Streams: the state is kept from frame to frame, in both simulators and views, bit for bit."""

import copy
import io
import json
from dataclasses import fields, replace

import drift
import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import cost
from spikingjelly_signgd.core.network import Average, Encoder, Neuron, SignGDNeuron, Timed
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.core.streams import in_blocks
from spikingjelly_signgd.neurons.base import ANEW, KEPT
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES

pytestmark = pytest.mark.spikingjelly

SIMULATORS = [
    "spikingjelly",
    "norse",
]
VIEWS = ("decoded", "signed")
FRAMES, STREAMS = 12, 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def clip(seed=1, shape=(2, 6, 6), frames=FRAMES, change=0.1):
    """Frames [F, B, ...] of streams that move."""
    still = torch.randn(1, STREAMS, *shape, generator=generator(seed))
    moves = torch.randn(frames, STREAMS, *shape, generator=generator(seed + 1))
    return still + change * moves.cumsum(0)


class Small(nn.Module):
    """Convolutions, a product of two signals, two outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = nn.functional.gelu(self.first(x))
        x = x * torch.sigmoid(self.second(x))
        return {"classes": self.last(x.mean((2, 3))), "map": x}


def for_streams(network):
    """A plan whose v is exact: constant steps, scales of 12 bits, resting values of whole c_m."""
    nodes = {}
    for node in network.of(SignGDNeuron):
        node = replace(node, members=7)  # as all, also what codes the input
        size = torch.as_tensor(node.scale, dtype=torch.double) * node.schedule(1)
        bits = 2.0 ** (size.log2().floor() - 11)
        size = (size / bits).round() * bits
        finest = size * node.finest
        resting = (torch.as_tensor(node.resting, dtype=torch.double) / finest).round() * finest
        one = sg.ConstantSchedule(1.0)
        nodes[node.name] = replace(
            node, schedule=one, scale=size.float(), resting=resting.float(), dead_zone=2 / 3
        )
    return network.with_nodes(nodes).replace(stream=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(model):
    images = torch.randn(32, 2, 6, 6, generator=generator(7))
    options = {"time_steps": 1, "members": 7, "tune": False, "input_coding": "spike"}
    return for_streams(sg.convert(model, images, **options))


@pytest.fixture(scope="module")
def x():
    return clip()


def kept(snn, x, *steps, **options):
    found = sg.run(snn, x, steps or None, sequence=True, keep_state=True, **options)
    return found if steps else next(iter(found.values()))


def assert_same(have, want, what=""):
    assert have.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(have[name], want[name], rtol=0, atol=0, msg=f"{what} {name}")


def assert_close(have, want, tolerance):
    for name in want:
        error = float((have[name] - want[name]).abs().max())
        assert error <= tolerance, f"{name}: {error}"


def stacked(found):
    """{t: outputs} of the steps 1, 2, ... as outputs [T, ...]."""
    return {name: torch.stack([y[name] for y in found.values()]) for name in found[1]}


# -- one semantics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_constant_plan_is_the_sequence_of_its_frames(network, x, simulator):
    snn = sg.build(network, simulator)
    sequence = stacked(sg.run(snn, x, range(1, FRAMES + 1), sequence=True))
    assert_same(kept(snn, x), sequence)


@pytest.mark.parametrize("view", VIEWS)
def test_simulators_agree_bit_for_bit(network, x, view):
    one, other = (sg.build(network, name, spikes=view) for name in ("spikingjelly", "norse"))
    assert_same(kept(one, x), kept(other, x))


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_it_tracks_the_source(network, model, x, simulator):
    y = kept(sg.build(network, simulator), x)
    want = model(x.flatten(0, 1))
    for name, source in want.items():
        error = (y[name].flatten(0, 1) - source).norm() / source.norm()
        assert error < 0.05, name


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("cut", [1, 5])
def test_calls_go_on_where_the_last_one_ended(network, x, simulator, view, cut):
    snn = sg.build(network, simulator, spikes=view)
    whole = kept(snn, x, chunk=1)
    snn.reset()
    parts = [kept(snn, part, chunk=1) for part in (x[:cut], x[cut:7], x[7:])]
    assert snn.seen.frames == FRAMES
    assert_same({k: torch.cat([part[k] for part in parts]) for k in whole}, whole)


@pytest.mark.parametrize("view", VIEWS)
def test_chunks_of_frames_are_single_frames(network, x, view):
    """Bit-equal where torch computes a layer of several frames as that of one, as it does here."""
    snn = sg.build(network, spikes=view)
    assert in_blocks(network)
    whole = kept(snn, x)
    for chunk in (1, 5):
        snn.reset()
        assert_close(kept(snn, x, chunk=chunk), whole, 1e-6)


def test_the_views_agree(network, x):
    decoded, signed = (kept(sg.build(network, spikes=view), x) for view in VIEWS)
    assert_close(signed, decoded, 1e-5)


def test_a_reset_and_a_plain_run_forget(network, x):
    snn = sg.build(network)
    first = kept(snn, x)
    assert not torch.equal(kept(snn, x)["classes"], first["classes"])
    snn.reset()
    assert snn.seen is None
    assert_same(kept(snn, x), first)
    sg.run(snn, x[0])
    assert_same(kept(snn, x), first)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_streams_side_by_side_are_each_alone(network, x, simulator):
    snn = sg.build(network, simulator)
    together = kept(snn, x)
    for i in range(STREAMS):
        snn.reset()
        alone = kept(snn, x[:, i : i + 1])
        assert_close(alone, {k: y[:, i : i + 1] for k, y in together.items()}, 1e-6)


# -- several steps a frame -------------------------------------------------------------------------


def halving(network):
    """T = 3, step sizes that halve: v is kept, but the schedule starts anew at each frame."""
    return network.replace(time_steps=3).with_nodes(
        {
            node.name: replace(node, schedule=sg.ExponentialSchedule(1.0, 0.5))
            for node in network.of(SignGDNeuron)
        }
    )


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_the_schedule_starts_anew_at_every_frame(network, x, simulator, view):
    plan = halving(network)
    assert not in_blocks(plan)
    snn = sg.build(plan, simulator, spikes=view)
    y = kept(snn, x, 1, 3)
    assert list(y) == [1, 3] and y[3]["classes"].shape == (FRAMES, STREAMS, 4)
    snn.reset()
    frame_by_frame = [kept(snn, frame.unsqueeze(0), 1, 3) for frame in x]
    for t in (1, 3):
        joined = {k: torch.cat([each[t][k] for each in frame_by_frame]) for k in y[t]}
        assert_same(joined, y[t])
    definition = by_definition(plan, x, view)
    assert_close(y[3], definition, 1e-5)


def by_definition(plan, x, view):
    """Steps of the pure-torch definitions, their states handed on with t = 0 by hand."""
    from spikingjelly_signgd.exporters.hdf5.definition import DefinitionNetwork

    module, state, outputs = DefinitionNetwork(plan, view), None, []
    for frame in x:
        if state is not None:
            neurons = {name: s._replace(t=0) for name, s in state.neurons.items()}
            state = state._replace(neurons=neurons)
        for _ in range(plan.time_steps):
            with torch.no_grad():
                y, state = module(frame, state)
        outputs.append(y)
    return {k: torch.stack([y[k] for y in outputs]) for k in outputs[0]}


def test_constant_steps_run_in_blocks_whatever_t(network, x):
    few = {node.name: replace(node, members=1) for node in network.of(SignGDNeuron)}
    plan = network.with_nodes(few).replace(time_steps=3)
    assert in_blocks(plan)
    snn = sg.build(plan)
    block = kept(snn, x, 1, 2, 3)
    snn.reset()
    single = kept(snn, x, 1, 2, 3, chunk=1)
    for t in block:
        assert_close(single[t], block[t], 1e-6)
    assert not torch.equal(block[1]["map"], block[3]["map"])


def test_real_valued_coding_keeps_what_it_decodes(model, x):
    images = torch.randn(32, 2, 6, 6, generator=generator(7))
    plan = sg.convert(model, images, time_steps=4, tune=False, input_coding="real")
    (encoder,) = plan.of(Encoder)
    assert encoder.frame == KEPT
    snn = sg.build(plan)
    still = x[:1].expand(6, *x.shape[1:])
    y = kept(snn, still)["classes"]
    want = model(x[0])["classes"]
    errors = (y - want).flatten(1).norm(dim=1)
    assert errors[-1] < errors[0]


# -- what starts anew, and what is refused ---------------------------------------------------------


@pytest.fixture(scope="module")
def group_network():
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6, 4)),
    ).eval()
    images = torch.randn(32, 2, 6, 6, generator=generator(7))
    options = {"method": "group", "time_steps": 3, "members": 4, "tune": False}
    return sg.convert(model, images, **options)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_group_networks_start_anew_at_every_frame(group_network, x, simulator):
    assert {node.frame for node in group_network.of(Timed)} == {ANEW}
    snn = sg.build(group_network, simulator)
    y = kept(snn, x, 1, 3)
    for frame, *found in zip(x, y[1], y[3], strict=True):
        alone = sg.run(snn, frame, (1, 3))
        assert torch.equal(alone[1], found[0]) and torch.equal(alone[3], found[1])


class Accumulating(Neuron):
    """A kind from elsewhere, which says nothing of frames: it starts anew."""


def test_kinds_from_elsewhere_start_anew():
    assert Accumulating(name="a", function=NONLINEARITIES["relu"]).frame == ANEW


def with_momentum(network):
    name = "gelu"
    return network.with_nodes({name: replace(network[name], momentum=0.9, members=1, dead_zone=0)})


def test_momentum_is_refused_by_name(network, x):
    with pytest.raises(sg.InputError, match="'gelu': its momentum .* stream=True"):
        kept(sg.build(with_momentum(network)), x)


def relu_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"input_coding": "poisson"}, "'input.encode': Poisson coding"),
        ({"method": "subgradient"}, "'2': its v is a mean"),
    ],
)
def test_what_works_by_rates_is_refused_by_name(x, options, reason):
    images = torch.randn(32, 2, 6, 6, generator=generator(7))
    plan = sg.convert(relu_model(), images, time_steps=4, tune=False, **options)
    with pytest.raises(sg.InputError, match=reason):
        kept(sg.build(plan), x)


def test_the_spike_view_takes_a_plan_for_streams(network, x):
    snn = sg.build(network.replace(stream=False), spikes="signed")
    with pytest.raises(sg.InputError, match=r"network\.replace\(stream=True\)"):
        kept(snn, x)


def test_bad_input_says_what_to_do(network, x):
    snn = sg.build(network)
    with pytest.raises(sg.InputError, match=r"sequence=True .* x\.unsqueeze\(0\)"):
        sg.run(snn, x[0], keep_state=True)
    kept(snn, x)
    for other in (x[:, :1], torch.cat([x, x], 1)):
        with pytest.raises(sg.InputError, match=r"a frame is \[.*, 2, 6, 6\] now.*snn.reset\(\)"):
            kept(snn, other)
    with pytest.raises(sg.InputError, match="the input is"):
        kept(snn, x[..., :5])
    with pytest.raises(sg.InputError, match="T is 0"):
        kept(snn, x[:0])
    with pytest.raises(sg.InputError, match="NaN"):
        kept(snn, x * torch.nan)
    with pytest.raises(sg.InputError, match="chunk is a number"):
        kept(snn, x, chunk=0)
    assert snn.seen.frames == FRAMES


# -- whole numbers, and networks that feed themselves ----------------------------------------------


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, mask):
        return self.outer(torch.sigmoid(self.inner(x)) * mask.float())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_masks_stay_the_same(simulator, view):
    torch.manual_seed(5)
    model = Masked().eval().requires_grad_(False)
    mask = torch.arange(8).expand(STREAMS, 8) < torch.tensor([[8], [5], [2]])
    images = {"x": torch.randn(STREAMS, 6, generator=generator(7)), "mask": mask}
    plan = for_streams(sg.convert(model, images, time_steps=1, members=7, tune=False))
    frames = clip(shape=(6,))
    x = {"x": frames, "mask": mask.expand(FRAMES, *mask.shape)}
    snn = sg.build(plan, simulator, spikes=view)
    y = kept(snn, x)
    error = (y - model(frames, mask)).norm() / model(frames, mask).norm()
    assert error < 0.05
    with pytest.raises(sg.InputError, match=r"'mask' holds integers.*snn.reset\(\)"):
        kept(snn, {"x": frames, "mask": ~x["mask"]})


class Remembering(nn.Module):
    """h' = tanh(W x + U h), and a read-out of it."""

    def __init__(self):
        super().__init__()
        self.w, self.u, self.out = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x, h):
        h = torch.tanh(self.w(x) + self.u(h))
        return {"y": self.out(h), "h": h}


@pytest.fixture(scope="module")
def remembering():
    torch.manual_seed(6)
    model = Remembering().eval().requires_grad_(False)
    data = {name: torch.randn(32, n, generator=generator(n)) for name, n in (("x", 6), ("h", 8))}
    options = {"time_steps": 1, "members": 8, "tune": False, "input_coding": "spike"}
    plan = for_streams(sg.convert(model, data, **options))
    return model, plan.replace(carries={"h": plan.outputs["h"]})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_what_a_network_feeds_itself_is_that_of_the_frame_before(remembering, simulator, view):
    model, plan = remembering
    x = clip(shape=(6,))
    snn = sg.build(plan, simulator, spikes=view)
    y = kept(snn, x)
    h, want = torch.zeros(STREAMS, 8), []
    for frame in x:
        found = model(frame, h)
        h = found["h"]
        want.append(found["y"])
    error = (y["y"] - torch.stack(want)).norm() / torch.stack(want).norm()
    assert error < 0.05
    snn.reset()
    parts = [kept(snn, {"x": part}) for part in (x[:1], x[1:])]
    assert_same({k: torch.cat([part[k] for part in parts]) for k in y}, y)
    fed = torch.cat([torch.zeros(1, STREAMS, 8), y["h"][:-1]])  # the same, fed from outside
    other = sg.build(plan.replace(carries={}), simulator, spikes=view)
    assert_same(kept(other, {"x": x, "h": fed}, chunk=1), y)


def test_what_it_begins_with_goes_with_the_first_frame(remembering):
    _, plan = remembering
    snn, x, h = sg.build(plan), clip(shape=(6,)), torch.full((STREAMS, 8), 0.5)
    zeros = kept(snn, x[:1])
    snn.reset()
    other = kept(snn, {"x": x[:1], "h": h.unsqueeze(0)})
    assert not torch.equal(other["y"], zeros["y"])
    for given in ({"x": x[:1], "h": h.unsqueeze(0)}, {"x": x, "h": h.expand(FRAMES, STREAMS, 8)}):
        with pytest.raises(sg.InputError, match="feeds 'h' itself: leave it out"):
            kept(snn, given)
        snn.reset()


class Leaning(SignGDNeuron):
    """A kind from elsewhere with the dynamics of signGD neurons."""

    kind = "leaning"


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_kind_from_elsewhere_is_kept_where_it_says_so(network, x, simulator):
    node = halving(network)["gelu"]
    given = {f.name: getattr(node, f.name) for f in fields(node)}
    plan, other = halving(network), halving(network).with_nodes({"gelu": Leaning(**given)})
    snn, want = sg.build(other, simulator), kept(sg.build(plan, simulator), x)
    y = kept(snn, x)
    assert_close(y, want, 0.05)  # its f is computed by torch's own erf
    kept(snn, x[:5])
    state, later = snn.state(), kept(snn, x[5:])
    snn.load_state(through_a_file(state))
    assert_same(kept(snn, x[5:]), later)


def test_what_is_carried_is_checked(remembering, group_network):
    _, plan = remembering
    for carries, reason in (
        ({"z": plan.outputs["h"]}, "no input is 'z'"),
        ({"h": "nowhere"}, "no node is called 'nowhere'"),
        ({"h": plan.outputs["y"]}, "a node of the same shape"),
    ):
        with pytest.raises(sg.InputError, match=reason):
            plan.replace(carries=carries)
    assert plan.with_nodes({}).carries == plan.carries and plan.with_nodes({}).stream
    with pytest.raises(sg.InputError, match="feeds all its inputs itself"):
        alone = plan.replace(carries={"h": plan.outputs["h"], "x": "x"})
        kept(sg.build(alone), clip(shape=(6,)))


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_still_image_sends_nothing_from_the_second_frame_on(network, x, simulator):
    snn = sg.build(network, simulator)
    sent = []
    still = x[:1].expand(4, *x.shape[1:])
    with listening(snn, lambda each: sent.append(each.events.spikes.flatten(1).sum(1))):
        y = kept(snn, still)
    total = torch.stack(sent).sum(0)
    assert total[0] > 0 and total[1:].sum() == 0
    assert torch.equal(y["map"][0], y["map"][3])


# -- the state as a value --------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("other", SIMULATORS)
def test_a_state_goes_on_elsewhere(network, x, simulator, other, view):
    snn = sg.build(network, simulator, spikes=view)
    kept(snn, x[:5])
    state = through_a_file(snn.state())
    assert state["frames"] == 5
    want = kept(snn, x[5:])
    elsewhere = sg.build(network, other, spikes=view)
    elsewhere.load_state(state)
    assert_same(kept(elsewhere, x[5:]), want)
    assert elsewhere.seen.frames == FRAMES
    snn.load_state(state)  # which nobody has changed meanwhile
    assert_same(kept(snn, x[5:]), want)


def test_a_state_goes_on_in_the_network_of_a_file(network, x, tmp_path):
    pytest.importorskip("h5py")
    sg.save(network, tmp_path / "net.h5")
    snn, other = sg.build(network), sg.build(sg.load(tmp_path / "net.h5"), "norse")
    kept(snn, x[:3])
    other.load_state(snn.state())
    assert_same(kept(other, x[3:]), kept(snn, x[3:]))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_states_of_masks_and_of_what_is_carried(remembering, simulator, view):
    _, plan = remembering
    x = clip(shape=(6,))
    snn = sg.build(plan, simulator, spikes=view)
    kept(snn, x[:5])
    copied, state = copy.deepcopy(snn), through_a_file(snn.state())
    want = kept(snn, x[5:])
    assert_same(kept(copied, x[5:]), want)
    snn.reset()
    snn.load_state(state)
    assert_same(kept(snn, x[5:]), want)


def test_states_that_do_not_fit_are_refused(network, remembering, x):
    snn = sg.build(network)
    with pytest.raises(sg.InputError, match="no frame of a stream"):
        snn.state()
    kept(snn, x)
    state = snn.state()
    with pytest.raises(sg.InputError, match="that of another network"):
        sg.build(remembering[1]).load_state(state)
    weights = {"last": replace(network["last"], tensors={**network["last"].tensors})}
    weights["last"].tensors["weight"] = weights["last"].tensors["weight"] * 1.01
    with pytest.raises(sg.InputError, match="other weights"):
        sg.build(network.with_nodes(weights)).load_state(state)
    with pytest.raises(sg.InputError, match='one of spikes="decoded", but .*spikes="signed"'):
        sg.build(network, spikes="signed").load_state(state)
    with pytest.raises(sg.InputError, match="of version 7"):
        snn.load_state({**state, "version": 7})
    with pytest.raises(sg.InputError, match="but it is list"):
        snn.load_state([])
    with pytest.raises(sg.InputError, match="incomplete"):
        snn.load_state({**state, "neurons": {"gelu": []}})
    snn.load_state(state)
    with pytest.raises(sg.InputError, match="a frame is"):
        kept(snn, x[:, :2])


# -- as users of the simulators run them -----------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikingjelly_runs_frames_itself(network, x, view, step_mode):
    snn = sg.build(network, spikes=view, step_mode=step_mode)
    want = kept(snn, x, chunk=1)
    functional.reset_net(snn)
    with torch.no_grad():
        if step_mode == "s":
            y = [snn(frame) for frame in x]
            y = {k: torch.stack([each[k] for each in y]) for k in y[0]}
        else:
            y = snn(x)
    assert_close(y, want, 1e-6)
    functional.reset_net(snn)
    assert snn.state_kept is None and snn.seen is None


@pytest.mark.parametrize("view", VIEWS)
def test_norse_takes_frames_and_hands_the_state_on(network, x, view):
    snn = sg.build(network, "norse", spikes=view)
    want = kept(snn, x, chunk=1)
    state, y = None, []
    with torch.no_grad():
        for frame in x:
            out, state = snn(frame, state)
            y.append(out)
    y = {k: torch.stack([each[k] for each in y]) for k in y[0]}
    assert_close(y, want, 1e-6)


# -- live use --------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_watch_is_a_run_frame_by_frame(network, x, simulator, view):
    snn = sg.build(network, simulator, spikes=view)
    want = kept(snn, x, chunk=1)
    with sg.watch(snn) as w:
        assert w.frames == 0
        found = []
        for f, frame in enumerate(x):
            found.append(w(frame))
            assert w.frames == f + 1
        assert_same({k: torch.stack([y[k] for y in found]) for k in want}, want)
        w.reset()
        assert w.frames == 0
        assert_same(w(x[0]), found[0])
    assert snn.seen is None


def test_a_watch_of_one_stream_takes_frames_without_a_batch(network, remembering, x):
    with sg.watch(sg.build(network)) as w:
        alone = [w(frame[0]) for frame in x]
    with sg.watch(sg.build(network)) as w:
        batch = [w(frame[:1]) for frame in x]
    assert alone[0]["classes"].shape == (4,)
    for one, other in zip(alone, batch, strict=True):
        assert_same(one, {k: y[0] for k, y in other.items()})
    with sg.watch(sg.build(remembering[1])) as w:  # which feeds itself h
        frame = torch.randn(6, generator=generator(1))
        assert w({"x": frame})["y"].shape == w(frame)["y"].shape == (3,)


def test_a_watch_goes_on_from_a_state(network, x):
    snn = sg.build(network)
    with sg.watch(snn) as w:
        for frame in x[:5]:
            w(frame)
        state = through_a_file(w.state())
        want = [w(frame) for frame in x[5:]]
    with sg.watch(sg.build(network, "norse"), state=state) as w:
        assert w.frames == 5
        for frame, y in zip(x[5:], want, strict=True):
            assert_same(w(frame), y)


def counted(snn, x):
    """By the rules of ``count_operations``, of each frame: spikes, and additions of a weight."""
    found = []
    for frame in x:
        sent = {}
        with listening(snn, lambda each: sent.update({each.node.name: each})):  # noqa: B023
            kept(snn, frame.unsqueeze(0))
        spikes = {k: s.events.spikes.double() for k, s in sent.items() if s.events is not None}
        counts = cost.Counts(snn.network, 1, same=False)
        counts.add(spikes, frame.shape[0], 0)
        found.append(counts.at(1))
    return found


@pytest.mark.parametrize("view", VIEWS)
def test_operations_are_counted_as_sent(network, x, view):
    snn = sg.build(network, spikes=view)
    want = counted(snn, x)
    with sg.watch(snn) as w:
        for frame, operations in zip(x, want, strict=True):
            w(frame)
            found = w.operations
            assert found.spikes == pytest.approx(operations.spikes, rel=1e-12)
            assert found.synaptic == pytest.approx(operations.synaptic, rel=1e-6)
            assert found.neurons == operations.neurons
            assert found.source_macs == operations.source_macs + operations.source_multiplies
        assert set(found.spikes_of) == set(network.names())
        json.dumps(found.to_dict())
        assert f"frame {FRAMES - 1}:" in str(found)


def test_operations_of_pooled_spikes_and_of_several_steps(group_network, x):
    snn, other = sg.build(group_network), sg.build(group_network)
    with sg.watch(snn) as w:
        for frame in x[:3]:
            w(frame)
            want = sg.analysis.count_operations(other, frame, 3)
            assert w.operations.spikes == pytest.approx(want.spikes, rel=1e-12)
            assert w.operations.synaptic == pytest.approx(want.synaptic, rel=1e-6)


def test_a_still_camera_costs_nothing(network, x):
    with sg.watch(sg.build(network)) as w:
        w(x[0])
        assert w.operations.spikes > 0
        w(x[0])
        assert w.operations.spikes == w.operations.synaptic == w.operations.rate == 0


def test_a_watch_says_what_does_not_fit(network, group_network, x):
    with pytest.raises(sg.InputError, match="watch takes the module"):
        sg.watch(network)
    with pytest.raises(sg.InputError, match="watch: this network cannot run on streams"):
        sg.watch(sg.build(with_momentum(network)))
    snn = sg.build(network)
    with sg.watch(snn) as w:
        with pytest.raises(sg.InputError, match="none was processed"):
            _ = w.operations
        w(x[0])
        with pytest.raises(sg.InputError, match=r"a frame is \[1, 2, 6, 6\] now"):
            w(x[0, 0])
        with pytest.raises(sg.InputError, match="the input is"):
            w(x[0, 0, 0])
        with pytest.raises(sg.InputError, match="NaN"):
            w(x[0] * torch.nan)
        snn.mode = "ann"
        with pytest.raises(sg.InputError, match='mode is "ann"|mode is .ann'):
            w(x[0])


# -- no drift (benchmarks/drift.py runs a million steps) -------------------------------------------


def test_what_is_integrated_stays_what_was_sent(network):
    x = clip(frames=2_000, change=0.02)
    snn = sg.build(network, spikes="signed")
    y = kept(snn, x)
    assert drift.distance(snn, x[-1]) < 1e-12
    assert_close(y, kept(sg.build(network), x), 1e-2)
    rounding = sg.build(network.replace(stream=False), spikes="signed")
    rounding.advance(x)  # sums in float32, which are what drifts
    state = rounding.advance(x)[1]
    rounding.state_kept = state
    assert drift.distance(rounding, x[-1]) > 1e-6


@pytest.mark.parametrize("view", VIEWS)
def test_v_is_a_whole_number_of_the_finest_step(network, x, view):
    snn = sg.build(network, spikes=view)
    kept(snn, x)
    for node in network.of(SignGDNeuron):
        v = snn.neuron(node.name).v.double() - torch.as_tensor(node.resting).double()
        number = v / (torch.as_tensor(node.scale).double() * node.finest)
        assert bool((number == number.round()).all()) and number.abs().max() > 2, node.name


def test_both_views_send_the_same(network):
    x = clip(frames=300, change=0.02)
    numbers = []
    for view in VIEWS:
        snn, sent = sg.build(network, spikes=view), []
        with listening(snn, lambda each: sent.append(each.events.number)):  # noqa: B023
            kept(snn, x)
        numbers.append(sent)
    differ = sum(int((a != b).sum()) for a, b in zip(*numbers, strict=True))
    total = sum(a.numel() for a in numbers[0])
    assert differ <= 1e-3 * total, (differ, total)
    assert sum(int((a != 0).sum()) for a in numbers[0]) > 0.01 * total


def test_the_op_counter_says_what_it_takes(network, x):
    # which came with spikingjelly 2
    op_counter = pytest.importorskip("spikingjelly_signgd.plugins.op_counter", exc_type=ImportError)
    with pytest.raises(sg.InputError, match=r"build\(network.replace\(stream=False\)"):
        op_counter.count(sg.build(network, spikes="signed"), x[0], 1)
    plain = sg.build(network.replace(stream=False), spikes="signed")
    assert op_counter.count(plain, x[0], 1).synaptic > 0


# -- other sizes -----------------------------------------------------------------------------------


def test_streams_of_another_size(model):
    images = torch.randn(32, 2, 6, 6, generator=generator(7))
    options = {"time_steps": 1, "members": 7, "tune": False, "input_coding": "spike"}
    plan = for_streams(sg.convert(model, images, sizes=[(2, 8, 8)], **options))
    large = clip(shape=(2, 8, 8))
    for view in VIEWS:
        snn = sg.build(plan, spikes=view)
        y = kept(snn, large)
        error = (y["map"].flatten(0, 1) - model(large.flatten(0, 1))["map"]).norm()
        assert error / y["map"].norm() < 0.05
        with pytest.raises(sg.InputError, match=r"a frame is \[3, 2, 6, 6\] now"):
            kept(snn, clip())
        state = snn.state()
        want = kept(snn, large)
        snn.load_state(state)
        assert_same(kept(snn, large), want)
    with sg.watch(sg.build(plan)) as w:
        w(large[0, 0])
        one, of_large = w.operations, w.operations.source_macs
        w.reset()
        w(clip()[0, 0])
        assert of_large > w.operations.source_macs and one.neurons > w.operations.neurons


# -- what ends a frame in the middle, and what comes between two of them ---------------------------


def break_last(snn, monkeypatch):
    """The last layer raises, after all neurons before it have run."""

    def fail(*_, **__):
        raise KeyboardInterrupt

    last = snn.operations["last"]
    monkeypatch.setattr(last, "over_time", fail)
    monkeypatch.setattr(last, "forward", fail)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("seen", [0, 4])
def test_a_call_that_fails_leaves_the_stream_as_it_was(
    network, x, simulator, view, seen, monkeypatch
):
    snn = sg.build(network, simulator, spikes=view)
    w = sg.watch(snn)
    before = [w(frame) for frame in x[:seen]]
    for run in (lambda: kept(snn, x[-4:], chunk=1), lambda: kept(snn, x[-4:]), lambda: w(x[-1])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_last(snn, patch)
            run()
        assert w.frames == seen
    found = before + [w(frame) for frame in x[seen:]]
    w.reset()
    want = [w(frame) for frame in x]
    for y, z in zip(found, want, strict=True):
        assert_same(y, z)


def test_a_silent_frame_that_fails_ends_the_stream(model, monkeypatch):
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    x = clip(shape=(6,))
    snn = sg.build(sg.convert(net, x, stream=True))
    w = sg.watch(snn, silent=True)
    first = [w(frame) for frame in x[:3]]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            type(w.silence.plan), "show", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        w(x[3])
    with pytest.raises(sg.InputError, match="the last frame was interrupted"):
        w(x[3])
    w.reset()
    for frame, y in zip(x, first, strict=False):
        assert torch.equal(w(frame), y)
    snn.reset()  # of the module itself, which the watch follows
    assert torch.equal(w(x[0]), first[0])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_weights_that_change_end_a_stream(network, x, simulator, view):
    snn = sg.build(network, simulator, spikes=view)
    kept(snn, x[:4])
    state, weights = snn.state(), copy.deepcopy(snn.state_dict())
    other = {k: v * 1.5 if k.endswith("weight") else v for k, v in weights.items()}
    nn.ModuleList([snn]).load_state_dict({f"0.{k}": v for k, v in other.items()})
    with pytest.raises(sg.InputError, match="weights were loaded"):
        kept(snn, x[4:])
    with pytest.raises(sg.InputError, match="other weights"):
        snn.load_state(state)
    snn.reset()
    y = kept(snn, x)
    fresh = sg.build(network, "norse", spikes=view)
    fresh.load_state_dict({k: v for k, v in other.items() if k.startswith("operations")}, False)
    assert_same(y, kept(fresh, x))
    fresh.load_state(snn.state())
    snn.load_state_dict(weights)  # and back: the digest is that of the tensors as they are
    snn.load_state(state)
    assert snn.seen.frames == 4


def test_spikingjelly_counts_its_own_frames(network, x, monkeypatch):
    snn = sg.build(network)
    with torch.no_grad():
        for frame in x[:3]:
            snn(frame)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_last(snn, patch)
            snn(x[3])
        functional.set_step_mode(snn, "m")
        snn(x[3:5])
    assert snn.seen.frames == snn.state()["frames"] == 5
    y = kept(snn, x[5:])
    snn.reset()
    assert_close(y, {k: each[5:] for k, each in kept(snn, x).items()}, 1e-6)


def test_few_samples_calibrate_group_neurons_with_averages(group_network):
    """The fixture is such a plan, whose half is not made again."""
    assert group_network.of(Average)


DAMAGES = [
    *({name: None} for name in ("network", "view", "frames", "neurons", "sums", "whole")),
    {"neurons": {}},
    {"neurons": []},
    {"neurons": None, "view": ["decoded"]},
    {"view": []},
    {"frames": "x"},
    {"frames": -3},
    {"frames": True},
    {"shapes": {}},
    {"shapes": {"input": "wide"}},
    {"whole": []},
    {"network": torch.zeros(2)},
]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_states_are_refused(network, x, simulator, damage):
    snn = sg.build(network, simulator)
    kept(snn, x[:2])
    state = {k: v for k, v in {**snn.state(), **damage}.items() if v is not None}
    other = sg.build(network, simulator)
    kept(other, x[:2])
    with pytest.raises(sg.InputError, match="load_state: "):
        snn.load_state(state)
    assert_same(kept(snn, x[2:4]), kept(other, x[2:4]))  # as if nothing had been loaded


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_states_of_some_neurons_or_not_of_numbers_are_refused(network, x, simulator):
    snn = sg.build(network, simulator)
    kept(snn, x[:2])
    state = snn.state()
    (name, v), *others = state["neurons"].items()
    for neurons in (dict(others), {**dict(others), name: []}, {**dict(others), name: v + v}):
        with pytest.raises(sg.InputError, match="incomplete"):
            snn.load_state({**state, "neurons": neurons})
    with pytest.raises(sg.InputError, match="'neurons' of the state holds NaN"):
        snn.load_state({**state, "neurons": {**dict(others), name: [v[0] * torch.nan]}})
    snn.load_state(state)


@pytest.mark.parametrize("silent", [False, True])
def test_a_second_watch_of_a_stream_is_refused(silent):
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    x = clip(shape=(6,))
    plan = sg.convert(net, x, stream=True)
    with sg.watch(sg.build(plan), silent=silent) as w:
        want = [w(frame) for frame in x]
    snn = sg.build(plan)
    other = sg.watch(snn, silent=silent)
    with sg.watch(snn, silent=silent) as w:
        assert torch.equal(w(x[0]), want[0])
        for call in (lambda: sg.watch(snn), lambda: other(x[5]), other.reset, other.state):
            with pytest.raises(sg.InputError, match="another watch .* has processed 1 frames"):
                call()
        other.__exit__(None, None, None)
        assert torch.equal(w(x[1]), want[1])
    assert torch.equal(other(x[0]), want[0])  # the first has ended
    snn.reset()
    assert torch.equal(sg.watch(snn, silent=silent)(x[0]), want[0])


def test_a_frame_of_no_streams_is_refused(network, x):
    w = sg.watch(sg.build(network))
    with pytest.raises(sg.InputError, match="at least one, but it is"):
        w(x[0][:0])


@pytest.mark.parametrize("begin", [0.0, 0.5])
def test_evaluate_compares_with_the_source_and_its_own_memory(remembering, begin):
    model, plan = remembering
    x, h = clip(shape=(6,)), torch.full((STREAMS, 8), begin)
    snn = sg.build(plan)
    frames = [{"x": x[0], "h": h} if begin else x[0], *x[1:]]
    first = kept(snn, {"x": x[:1], "h": h.unsqueeze(0)})
    rest = kept(snn, x[1:])
    want, error, norm = [], 0.0, 0.0
    for frame in x:
        want.append(model(frame, h))
        h = want[-1]["h"]
    for name in want[0]:
        source = torch.stack([y[name] for y in want])
        error += float((torch.cat([first[name], rest[name]]) - source).square().sum())
        norm += float(source.square().sum())
    for mode in (snn.source, sg.build(plan, "norse").source):
        found = sg.evaluate(snn, frames, keep_state=True, reference=mode)
        assert found.error[0] == pytest.approx((error / norm) ** 0.5, rel=1e-3)
    with pytest.raises(sg.InputError, match="feeds 'h' itself, .* Remembering.* starts again"):
        sg.evaluate(snn, frames, keep_state=True, reference=model)
    outside = snn.source(x=x[0], h=want[0]["h"])  # as any other model is called
    assert_close(outside, model(x[0], want[0]["h"]), 1e-6)
    with pytest.raises(sg.InputError):
        sg.evaluate(snn, [x[0], x[1][:1]], keep_state=True)
    assert snn.seen is None


def test_a_view_that_a_network_has_not_is_an_input_error(network, group_network):
    for name in SIMULATORS:
        with pytest.raises(sg.InputError, match="is available for signGD neurons only"):
            sg.build(group_network, name, spikes="signed")
        with pytest.raises(sg.InputError, match='spikes is "decoded" or "signed"'):
            sg.build(network, name, spikes="both")


def test_what_begins_anew_forgets_the_stream(network, x):
    """The list of docs/streams.md."""
    snn = sg.build(network)
    for forget in (
        lambda: sg.run(snn, x[0]),
        lambda: sg.evaluate(snn, [x[0]]),
        lambda: sg.evaluate(snn, list(x), keep_state=True),
        lambda: sg.analysis.count_operations(snn, x[0], 1),
        lambda: sg.watch(snn),
        snn.reset,
        lambda: functional.reset_net(snn),
    ):
        kept(snn, x[:2])
        forget()
        assert snn.seen is None and snn.state_kept is None
