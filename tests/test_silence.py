"""The silent path: kernels do what their definition does, and that is what the dense path does."""

import resource
import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from networks import load_network
from random_networks import RandomNetwork
from test_operations import CASES, arguments
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.core.module import LinearOperation, key
from spikingjelly_signgd.core.network import Linear, SignGDNeuron
from spikingjelly_signgd.core.operations import LINEAR, apply, moves
from spikingjelly_signgd.core.silence import SilentSession
from spikingjelly_signgd.core.silent_steps import Kept, Program
from spikingjelly_signgd.core.silent_walk import SilentWalk
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.neurons import choice
from spikingjelly_signgd.neurons.kernels import silence as compiled

SIMULATORS = ("spikingjelly", "norse")
SHARES = (0.05, 0.0, 0.5, 1.0, 0.02, 0.2)  # of changed inputs, frame after frame
# an operation of dyadic numbers is exact in float32, but for what divides
INEXACT = ("mean", "avg_pool", "adaptive_avg_pool", "upsample", "add")


def generator(seed):
    return torch.Generator().manual_seed(seed)


# -- single operations -----------------------------------------------------------------------------


class Alone:
    """One operation, with the steps that make it, and its inputs."""

    def __init__(self, case, batch, values, attributes, tensors, kernels):
        node = Linear(name="node", op=case[0], attributes=attributes, tensors=tensors)
        module = SimpleNamespace(
            network=SimpleNamespace(), operations={key("node"): LinearOperation(node)},
            functions={}, neurons={},
        )  # fmt: skip
        plan = SilentWalk(module, torch.empty(batch, 1), {}, kernels)
        self.inputs = [Kept(value) for value in values]
        self.out = plan.linear(node, self.inputs)
        self.steps = plan.steps
        self.program = Program(plan.steps, kernels)

    def show(self, places, values):
        for x, at, new in zip(self.inputs, places, values, strict=True):
            x.struct.changed = 0
            x.put(at, new)
        self.program.run()
        return self.out


def dyadic(value):
    """A multiple of 1/16, whose sums of products are exact in float32."""
    return (value * 16).round() / 16 if value.is_floating_point() else value


@pytest.mark.parametrize("numbers", ["real", "dyadic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_operation_takes_what_changed_as_it_takes_all(case, numbers):
    batch = 2
    values, attributes, tensors = arguments(case, 0, batch, [False] * len(case[2]))
    if numbers == "dyadic":
        values = [dyadic(value) for value in values]
        tensors = {name: dyadic(tensor) for name, tensor in tensors.items()}
    kernel, torch_ = (
        Alone(case, batch, values, attributes, tensors, kernels) for kernels in (True, False)
    )
    for frame, share in enumerate(SHARES):
        places, changed = [], []
        for x in kernel.inputs:
            draw = torch.rand(x.size, generator=generator(frame))
            places.append((draw < share).nonzero().squeeze(1))
            new = torch.randn(x.size, generator=generator(frame + 100))[places[-1]]
            changed.append(dyadic(new) if numbers == "dyadic" else new)
        y, defined = kernel.show(places, changed), torch_.show(places, changed)
        assert torch.equal(y.data, defined.data)
        assert torch.equal(y.changed, defined.changed)
        given = [x.tensor for x in kernel.inputs]
        if numbers == "dyadic" and case[0] not in INEXACT or moves(case[0], attributes):
            whole = apply(case[0], given, attributes, tensors, batch)
            torch.testing.assert_close(y.tensor, whole, rtol=0, atol=0)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
        exact = apply(case[0], [x.double() for x in given], attributes, wide, batch)
        torch.testing.assert_close(y.tensor.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kernels", [True, False])
def test_infinity_does_not_stay_in_a_sum(kernels):
    weight = torch.randn(3, 4, generator=generator(0))
    given = torch.zeros(2, 4), {}, {"weight": weight}
    alone = Alone(("linear",), 2, [given[0]], *given[1:], kernels)
    place = torch.tensor([1])
    y = alone.show([place], [torch.tensor([torch.inf])])
    assert not y.tensor[0].isfinite().any() and y.tensor[1].isfinite().all()
    y = alone.show([place], [torch.tensor([2.0])])
    torch.testing.assert_close(y.tensor[0], 2 * weight[:, 1])


def test_every_operation_is_among_them_and_most_have_an_update():
    assert {case[0] for case in CASES} == set(LINEAR)
    hops = set()
    for case in CASES:
        values, attributes, tensors = arguments(case, 0, 2, [False] * len(case[2]))
        alone = Alone(case, 2, values, attributes, tensors, True)
        hops |= {case[0] for step in alone.steps if step.kind == "hop"}
    # a weight without, or of more, dimensions; a batch in the channels; a broadcast
    assert hops <= {"conv", "matmul", "affine", "add", "mean", "sum"}


# -- networks --------------------------------------------------------------------------------------


def for_streams(network, members=8, dead_zone=2 / 3):
    """A plan of one step a frame, whose v is exact in float32."""
    nodes = {}
    for node in network.of(SignGDNeuron):
        node = replace(node, members=members)
        size = torch.as_tensor(node.scale, dtype=torch.double) * node.schedule(1)
        bits = 2.0 ** (size.log2().floor() - 11)
        size = (size / bits).round() * bits
        finest = size * node.finest
        resting = (torch.as_tensor(node.resting, dtype=torch.double) / finest).round() * finest
        nodes[node.name] = replace(
            node, schedule=sg.ConstantSchedule(1.0), scale=size.float(), resting=resting.float(),
            dead_zone=dead_zone,
        )  # fmt: skip
    return network.with_nodes(nodes).replace(stream=True, time_steps=1)


def converted(model, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sg.convert(model.eval(), x, time_steps=1, members=8, tune=False, **options)


@cache
def random_plan(seed, **options):
    torch.manual_seed(seed)
    model = RandomNetwork(seed)
    coding = ("real", "spike")[seed % 2]
    network = converted(model, torch.rand(8, 2, 4, 4), input_coding=coding)
    return for_streams(network, **options)


def clip(streams, shape, seed=0):
    """Still, a part that moves, noise everywhere, a cut, frozen, and back: [F, B, ...]."""
    one, two = torch.rand(2, streams, *shape, generator=generator(seed))
    moved = one.clone()
    moved[..., : shape[-1] // 2, :1] += 0.1
    noisy = moved + 0.02 * torch.randn(moved.shape, generator=generator(seed + 1))
    frames = [one, one, moved, moved, noisy, two, two, two, two, one, moved, one]
    return torch.stack(frames)


def dense(network, frames, simulator="spikingjelly"):
    snn = sg.build(network, simulator)
    return sg.run(snn, frames, 1, sequence=True, keep_state=True)[1]


def silent(network, frames, simulator="spikingjelly", **options):
    session = SilentSession(sg.build(network, simulator), **options)
    return torch.stack([session(frame) for frame in frames]), session


def kept_values(session):
    return [step.out.data for step in session.plan.steps]


@pytest.mark.parametrize("break_even", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_kernels_are_their_definition_and_the_dense_path_to_rounding(seed, break_even):
    """Rounding may move a sign, and v then differs by its finest step: seldom, and for a while."""
    network, frames = random_plan(seed), clip(3, (2, 4, 4), seed)
    y, session = silent(network, frames, break_even=break_even)
    z, defined = silent(network, frames, break_even=break_even, backend="torch")
    assert torch.equal(y, z)
    for ours, theirs in zip(kept_values(session), kept_values(defined), strict=True):
        assert torch.equal(ours, theirs)
    whole = dense(network, frames)
    torch.testing.assert_close(y, whole, rtol=1e-5, atol=0.02 * float(whole.abs().max()))
    assert (y - whole).abs().median() < 1e-5


@pytest.mark.parametrize("dead_zone", [0.0, 1 / 3, 1 / 2, torch.tensor(0.9)])
def test_neurons_stay_awake_until_they_are_silent(dead_zone):
    """Below 1/2 a neuron may fire for ever, without a dead zone it does."""
    network, frames = random_plan(2, dead_zone=dead_zone), clip(2, (2, 4, 4))
    frames = torch.cat([frames, frames[-1:].expand(6, *frames.shape[1:])])
    y, _ = silent(network, frames, break_even=1)
    whole = dense(network, frames)
    torch.testing.assert_close(y, whole, rtol=1e-5, atol=0.02 * float(whole.abs().max()))


def of_dyadic_weights(network):
    """Sums of the products of exact v and such weights are exact in float64, in any order."""

    def rounded(value):
        return (value * 64).round() / 64 if value.is_floating_point() else value

    nodes = {
        node.name: replace(node, tensors={k: rounded(v) for k, v in node.tensors.items()})
        for node in network.of(Linear)
    }
    return network.with_nodes(nodes)


class Dyadic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1, stride=2)
        self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.d = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(x + self.c(torch.relu(self.b(x))))
        return self.d(x.flatten(1))


def test_where_all_sums_are_exact_it_is_the_dense_path_bit_for_bit():
    torch.manual_seed(0)
    frames = (clip(2, (2, 8, 8)) * 64).round() / 64
    network = converted(Dyadic(), frames[0], input_coding="real")
    nodes = {
        node.name: replace(node, schedule=sg.ConstantSchedule(1.0), scale=2.0**-1, resting=0.0,
                           dead_zone=2 / 3, members=4)
        for node in network.of(SignGDNeuron)
    }  # fmt: skip
    network = of_dyadic_weights(network.with_nodes(nodes).replace(stream=True))
    whole = dense(network, frames)
    for break_even in (0.0, 0.2, 1.0):
        y, _ = silent(network, frames, break_even=break_even)
        assert torch.equal(y, whole)


class Normed(nn.Module):
    """Rows of 13, pooling of several windows and dilations, functions without an update."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 13, 3, padding=1), nn.LayerNorm(13)
        self.b = nn.Conv2d(13, 5, 1)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 3, 2, 1)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = nn.functional.max_pool2d(torch.relu(self.b(x)), 2, 1, 0, 2)
        return torch.softmax(x.flatten(1), -1)


@pytest.mark.parametrize("break_even", [0.0, 0.5, 1.0])
def test_norms_and_pooling(break_even):
    torch.manual_seed(0)
    frames = clip(2, (2, 8, 8))
    network = for_streams(converted(Normed(), torch.rand(16, 2, 8, 8), input_coding="spike"))
    y, session = silent(network, frames, break_even=break_even)
    z, defined = silent(network, frames, break_even=break_even, backend="torch")
    assert torch.equal(y, z)
    for ours, theirs in zip(kept_values(session), kept_values(defined), strict=True):
        assert torch.equal(ours, theirs)
    assert {"norm", "largest", "hop"} <= {step.kind for step in session.plan.steps}
    torch.testing.assert_close(y, dense(network, frames), rtol=1e-3, atol=1e-3)


class RowsAndColumns(nn.Module):
    """Two views of one square map, of one shape, in other orders."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.rows, self.columns = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = torch.relu(self.a(x))
        columns = self.columns(x.transpose(2, 3)).transpose(2, 3)
        return torch.relu(self.rows(x) + columns).mean((2, 3))


def test_rows_and_columns_of_a_square_map():
    torch.manual_seed(0)
    frames = clip(2, (2, 8, 8))
    network = converted(RowsAndColumns(), torch.rand(16, 2, 8, 8), input_coding="spike")
    network = for_streams(network)
    y, _ = silent(network, frames, break_even=1)
    torch.testing.assert_close(y, dense(network, frames), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "simulator"),
    [(name, "spikingjelly") for name in ("resnet", "vgg", "mixer")]
    + [
        pytest.param(name, "norse", marks=pytest.mark.slow)
        for name in ("convnext", "vit", "resmlp")
    ],
)
def test_example_networks(name, simulator):
    frames = clip(1, (1, 8, 8), seed=3)
    network = for_streams(converted(load_network(name, "digits"), torch.rand(16, 1, 8, 8)))
    y, session = silent(network, frames, simulator)
    whole = dense(network, frames, simulator)
    assert (y - whole).abs().max() < 1e-4 * whole.abs().max()
    for _ in range(3):
        session(frames[-1])
    assert not any(session.shares.values())  # nothing is left to do


def test_a_still_image_is_not_computed_again():
    network = random_plan(4)
    session = SilentSession(sg.build(network, "spikingjelly"), break_even=1)
    frame = clip(1, (2, 4, 4))[0]
    first = [session(frame) for _ in range(8)][-1]
    work = [struct.work for struct in session.plan.program.structs]
    assert not any(work)
    assert torch.equal(session(frame), first)


def test_a_long_stream_stays_where_the_dense_path_is_and_takes_no_memory():
    """10^4 frames of updates, without one refresh."""
    network = random_plan(1)
    moves = clip(1, (2, 4, 4))
    session = SilentSession(sg.build(network, "spikingjelly"), break_even=1)
    memory = []
    for t in range(10_000):
        session(moves[t % 5])
        if t % 5000 == 4999:
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert memory[1] - memory[0] < 1024  # KiB; a frame that stayed would take 40 MiB
    sums = [step for step in session.plan.steps if step.sums is not None]
    assert sums
    for step in sums:
        torch.testing.assert_close(step.sums, step.compute().double(), rtol=1e-6, atol=1e-6)


# -- the state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_the_state_is_taken_and_given_back(simulator):
    network, frames = random_plan(3), clip(2, (2, 4, 4))
    snn = sg.build(network, simulator)
    before = sg.run(snn, frames[:4], 1, sequence=True, keep_state=True)[1]
    session = SilentSession(snn)
    during = torch.stack([session(frame) for frame in frames[4:8]])
    session.give_back()
    after = sg.run(snn, frames[8:], 1, sequence=True, keep_state=True)[1]
    assert snn.seen.frames == len(frames)
    whole = dense(network, frames, simulator)
    torch.testing.assert_close(torch.cat([before, during, after]), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_watch_counts_what_it_counts_without(simulator):
    network, frames = random_plan(5), clip(2, (2, 4, 4))
    with (
        sg.watch(sg.build(network, simulator)) as one,
        sg.watch(sg.build(network, simulator), silent=True) as two,
    ):
        for frame in frames:
            torch.testing.assert_close(two(frame), one(frame), rtol=1e-4, atol=1e-4)
            assert two.operations == one.operations
        state = two.state()
        assert state["frames"] == len(frames)
        for name, tensors in one.state()["neurons"].items():
            torch.testing.assert_close(state["neurons"][name], tensors, rtol=1e-4, atol=1e-4)
        assert torch.equal(two(frame[0:2]), two(frame))
        two.reset()
        assert two(frame[0]).shape == (3,)


def test_an_interrupted_frame_is_not_gone_on_from(monkeypatch):
    torch.manual_seed(0)
    frames = clip(2, (2, 8, 8))
    network = for_streams(converted(Normed(), torch.rand(16, 2, 8, 8), input_coding="spike"))
    w = sg.watch(sg.build(network), silent=True)
    w(frames[0])
    state = w.state()
    (softmax,) = (s for s in w.silence.plan.steps if s.kind == "hop" and "softmax" in s.name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(softmax, "compute", _interrupted)
        w(frames[5])
    for use in (lambda: w(frames[5]), w.state, lambda: w.operations):
        with pytest.raises(sg.InputError, match="interrupted"):
            use()
    whole = dense(network, frames[[0, 5, 6]])
    w.snn.load_state(state)
    for frame, y in zip(frames[[5, 6]], whole[1:], strict=True):
        torch.testing.assert_close(w(frame), y, rtol=1e-3, atol=1e-3)
    w.reset()
    torch.testing.assert_close(w(frames[0]), whole[0], rtol=1e-3, atol=1e-3)


def _interrupted():
    raise KeyboardInterrupt


def loaded(w, state):
    w.snn.load_state(state)


def forgotten(w, _):
    w.snn.reset()


def run_between(w, _):
    sg.run(w.snn, clip(2, (2, 4, 4))[1], 1)


def counted_between(w, _):
    count_operations(w.snn, clip(2, (2, 4, 4))[1], 1)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("change", [loaded, forgotten, run_between, counted_between])
def test_a_state_that_others_changed_is_where_it_goes_on(change, simulator):
    """As the dense watch does."""
    network, frames, found = random_plan(5), clip(2, (2, 4, 4)), []
    for silence in (False, True):
        w = sg.watch(sg.build(network, simulator), silent=silence)
        y = [w(frame) for frame in frames[:2]]
        state = w.state()
        y += [w(frame) for frame in frames[4:6]]
        change(w, state)
        y += [w(frame) for frame in frames[2:5]]
        found.append((torch.stack(y), w.frames, w.state()["neurons"]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_no_frame_and_a_frame_that_was_forgotten_are_said(silent):
    frame = clip(2, (2, 4, 4))[0]
    for bad in ([1], None, {}, torch.tensor(1.0)):
        w = sg.watch(sg.build(random_plan(5)), silent=silent)
        for _ in range(2):  # the first, and a later one
            with pytest.raises(sg.InputError):
                w(bad)
            w(frame)
    w.snn.reset()
    with pytest.raises(sg.InputError, match="none was processed"):
        _ = w.operations


def test_a_network_made_double_is_refused():
    frames = clip(2, (2, 4, 4))
    w = sg.watch(sg.build(random_plan(5)), silent=True)
    w(frames[0])
    w.snn.double()
    with pytest.raises(sg.InputError, match="float64"):
        w(frames[1])


def test_whoever_listens_hears_what_is_sent():
    network, frames = random_plan(5), clip(2, (2, 4, 4))
    one, two = (sg.build(network, "spikingjelly") for _ in range(2))
    heard: tuple = ([], [])
    with sg.watch(one, silent=True) as w, listening(one, heard[0].append):
        for frame in frames:
            w(frame)
    with listening(two, heard[1].append):
        for frame in frames.unsqueeze(1):
            sg.run(two, frame, 1, sequence=True, keep_state=True)
    assert len(heard[0]) == len(heard[1]) > len(frames)
    for ours, theirs in zip(*heard, strict=True):
        assert ours.node.name == theirs.node.name
        assert (ours.events is None) == (theirs.events is None)
        if ours.events is not None:
            assert torch.equal(ours.events.number.flatten(), theirs.events.number.flatten())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"spikes": "signed"}, "decoded form"), ({"trainable": True}, "gradient")],
)
def test_networks_without_a_silent_path_say_why(options, message):
    snn = sg.build(random_plan(0), "spikingjelly", **options)
    with pytest.raises(sg.InputError, match=message):
        SilentSession(snn)
    with pytest.raises(sg.InputError, match=message):
        sg.watch(snn, silent=True)
    assert sg.watch(snn, silent="auto").silence is None


def test_without_kernels_it_is_the_dense_path_that_runs(monkeypatch):
    """The definition takes a hundred times as long."""
    network, frames = random_plan(0), clip(2, (2, 4, 4))
    with monkeypatch.context() as patch:
        patch.setattr(choice, "_missing", lambda _: "they were not built")
        snn = sg.build(network, "spikingjelly")
        with pytest.raises(sg.InputError, match="they were not built"):
            sg.watch(snn, silent=True)
        assert sg.watch(snn, silent="auto").silence is None
        SilentSession(snn, backend="torch")(frames[0])
    assert sg.watch(snn, silent="auto").silence is not None


@pytest.mark.parametrize("first", [True, False])
def test_frames_inside_inference_mode_and_outside(first):
    network, frames = random_plan(4), clip(2, (2, 4, 4))
    session = SilentSession(sg.build(network, "spikingjelly"))
    y = []
    for t, frame in enumerate(frames):
        with torch.inference_mode((t % 2 == 0) == first):
            y.append(session(frame).clone())
    whole = dense(network, frames)
    torch.testing.assert_close(torch.stack(y), whole, rtol=1e-4, atol=1e-4)


def test_a_frame_may_be_a_dict_in_every_frame():
    network, frames = random_plan(4), clip(2, (2, 4, 4))
    with sg.watch(sg.build(network), silent=True) as w:
        plain = [w(frame) for frame in frames[:3]]
        w.reset()
        named = [w({network.input.name: frame}) for frame in frames[:3]]
    torch.testing.assert_close(torch.stack(plain), torch.stack(named))


def test_bad_input_is_refused_with_the_fix():
    session = SilentSession(sg.build(random_plan(0), "spikingjelly"))
    frame = clip(2, (2, 4, 4))[0]
    session(frame)
    with pytest.raises(sg.InputError, match="Reset"):
        session(frame[:1])
    with pytest.raises(sg.InputError, match="NaN"):
        session(frame * torch.nan)
    with pytest.raises(sg.InputError, match="a tensor, not str"):
        session("frame")
    with pytest.raises(sg.InputError, match="int64"):
        session(frame.long())
    with pytest.raises(sg.InputError, match="share"):
        SilentSession(sg.build(random_plan(0), "spikingjelly"), break_even=2)
    with pytest.raises(sg.InputError, match="time_steps"):
        sg.watch(sg.build(random_plan(0), "spikingjelly"), 2, silent=True)
    for value in ("yes", 1, torch.ones(2)):
        with pytest.raises(sg.InputError, match="'auto'"):
            sg.watch(sg.build(random_plan(0), "spikingjelly"), silent=value)


def test_a_library_of_an_earlier_version_is_a_reason(monkeypatch):
    class Earlier:
        face = object()

    monkeypatch.setattr(compiled, "library", Earlier)
    compiled.runner.cache_clear()
    try:
        net, x = nn.Sequential(nn.Linear(6, 8), nn.GELU()), torch.rand(4, 2, 6)
        snn = sg.build(sg.convert(net, x, stream=True))
        with pytest.raises(sg.InputError, match="built from other sources"):
            sg.watch(snn, silent=True)
        with sg.watch(snn, silent="auto") as w:
            assert w(x[0]).shape == (2, 8)
    finally:
        compiled.runner.cache_clear()
