"""Plans for streams: what converts, how steps are chosen, and the theorems of stream_plans.md."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import passes, tracking
from spikingjelly_signgd.converters.clips import segments
from spikingjelly_signgd.core.network import SignGDNeuron
from spikingjelly_signgd.core.spikes import listening
from spikingjelly_signgd.neurons.nonlinearities import NONLINEARITIES
from spikingjelly_signgd.neurons.signgd import (
    SignGDParameters,
    SignGDState,
    signgd_multi_step,
    signgd_step,
)
from spikingjelly_signgd.neurons.signgd.sparse import count, sparse_step

EXACT = torch.float64


class Seeing(nn.Module):
    """A convolution and a layer of GELUs, of images 2 x 8 x 8."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Linear(6, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(nn.functional.gelu(self.second(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Seeing().eval()


def images(number, seed=0):
    noise = torch.randn(number, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, 1, 1) * 3


MOTION = sg.Motion(pixels=0.3, frames=6)


@pytest.fixture(scope="module")
def clips():
    return MOTION.clips(images(12))


@pytest.fixture(scope="module")
def network(model, clips):
    return sg.convert(model, clips, stream=True)


# -- what converts ---------------------------------------------------------------------------------


def test_a_plan_for_streams(network):
    assert network.stream
    assert network.time_steps == 1
    neurons = network.of(SignGDNeuron)
    assert [n.inputs for n in neurons][0] == (network.input.name,)  # the input is coded
    assert len(neurons) == 3
    assert {n.schedule for n in neurons} == {sg.ConstantSchedule(1.0)}
    assert {n.dead_zone for n in neurons} == {sg.DEAD_ZONE}
    assert network.provenance["stream"]["weight"] == 0.008
    assert network.provenance["planned"]["frames"] == 6


def last_steps(node):
    return torch.as_tensor(node.scale, dtype=EXACT) * node.schedule(1) * node.finest


def test_steps_have_twelve_bits_and_reach_the_range(network):
    for node in network.of(SignGDNeuron):
        last = last_steps(node)
        mantissa = torch.frexp(last)[0] * 2**tracking.BITS
        assert torch.equal(mantissa, mantissa.round())
        seen = network.statistics.get(node.name)
        if seen is not None:
            largest = torch.maximum(seen["maximum"].abs(), seen["minimum"].abs())
            assert bool((last * (2**node.members - 1) >= largest).all())
            assert bool((largest.max() / last < 2**11).all())


def test_stills_move_as_they_are_said_to(model, network):
    moved = sg.convert(model, images(12), stream=MOTION)
    for have, want in zip(moved.of(SignGDNeuron), network.of(SignGDNeuron), strict=True):
        assert torch.equal(torch.as_tensor(have.scale), torch.as_tensor(want.scale))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_mode_the_caller_is_in(model, clips, network, mode):
    with mode():
        again = sg.convert(model, clips, stream=True)
    for have, want in zip(again.of(SignGDNeuron), network.of(SignGDNeuron), strict=True):
        assert torch.equal(torch.as_tensor(have.scale), torch.as_tensor(want.scale))


def test_clips_may_be_batches_with_targets(model, clips, network):
    parts = [(clips[:, :6], torch.zeros(6)), (clips[:, 6:], torch.zeros(6))]
    again = sg.convert(model, parts, stream=True)
    for have, want in zip(again.of(SignGDNeuron), network.of(SignGDNeuron), strict=True):
        assert torch.equal(torch.as_tensor(have.scale), torch.as_tensor(want.scale))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x, which):
        return self.linear(torch.relu(x + self.table(which)))


def test_several_inputs_whole_numbers_are_of_a_stream():
    x = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    which = (torch.arange(8) % 5).expand(6, 8)
    torch.manual_seed(0)
    model = Two().eval()
    planned = sg.convert(model, {"x": x, "which": which}, stream=True)
    assert planned.stream
    frames = {"x": x, "which": which}
    have = sg.run(sg.build(planned), frames, sequence=True, keep_state=True)[1]
    want = torch.stack([model(a, b) for a, b in zip(x, which, strict=True)]).detach()
    assert float((have - want).norm() / want.norm()) < 0.06


def test_a_dearer_addition_makes_coarser_steps(model, clips, network):
    dear = sg.convert(model, clips, stream=True, objective=0.1)
    cheap = network.provenance["stream"]["expected"]
    expected = dear.provenance["stream"]["expected"]
    assert expected["additions"] < cheap["additions"]
    assert expected["error"] > cheap["error"]


def test_the_expected_error_is_about_what_is_measured(network):
    """First order, and neurons that err apart: within a factor of two."""
    expected = network.provenance["stream"]["expected"]["error"]
    assert 0.5 < network.provenance["planned"]["error"] / expected < 2


def test_a_range_and_members_that_are_asked_for(model, clips, network):
    asked = sg.convert(model, clips, stream=True, scale=2.0, members=6)
    coder, *others = asked.of(SignGDNeuron)
    assert coder.members == network.of(SignGDNeuron)[0].members  # it is followed at once
    for node in others:
        assert node.members == 6
        if node.name in asked.statistics:
            assert float(last_steps(node)) * 63 == pytest.approx(2.0, rel=2**-12)


@pytest.mark.parametrize(("members", "price"), [(1, 1e-4), (1, 0.008), (2, 1e-4)])
def test_steps_are_those_of_the_members_that_are_asked_for(model, clips, members, price):
    """Fine steps of few members would not follow what moves."""
    asked = sg.convert(model, clips, stream=True, members=members, objective=price)
    error = asked.provenance["planned"]["error"]
    assert 0.5 < error / asked.provenance["stream"]["expected"]["error"] < 2


@pytest.mark.parametrize("members", [None, 1])
def test_a_plan_that_is_far_off_names_what_brings_it_closer(model, clips, monkeypatch, members):
    monkeypatch.setattr(passes, "OFF", 0.0)
    with pytest.warns(sg.converters.PlanWarning) as warned:
        sg.convert(model, clips, stream=True, members=members, objective=1e-4)
    (said,) = [str(w.message) for w in warned if "Choose" in str(w.message)]
    assert "objective=2.5e-05" in said  # lower than it is
    assert ("more members" in said) == (members is not None)


def test_a_mean_to_rest_at_is_a_whole_number_of_steps(model, clips):
    for node in sg.convert(model, clips, stream=True, resting="mean").of(SignGDNeuron):
        whole = torch.as_tensor(node.resting, dtype=EXACT) / last_steps(node)
        assert torch.equal(whole, whole.round())
        if node.inputs[0] != "input":
            assert bool(whole.any())


def test_an_input_is_silent_at_the_sensors_noise(model, clips):
    deviation = 0.05
    planned = sg.convert(model, clips, stream=True, noise=deviation)
    coder = planned.of(SignGDNeuron)[0]
    assert (coder.dead_zone - 0.5) * float(last_steps(coder)) >= 2 * deviation * (1 - 2**-11)
    generator = torch.Generator().manual_seed(0)
    noise = deviation * torch.randn(30, 4, 2, 8, 8, generator=generator).clamp(-1.9, 1.9)
    sent = digits(planned, images(4, seed=3) + noise)[coder.name]
    assert int(sent[2:].sum(0).max()) == 1  # at most one digit each, and then none


def digits(network, frames):
    """By neuron what is sent in each frame [F, N, ...]."""
    sent = {}
    snn = sg.build(network)
    with listening(snn, lambda s: sent.setdefault(s.node.name, []).append(s.events.spikes)):
        sg.run(snn, frames, sequence=True, keep_state=True)
    return {name: torch.cat(parts) for name, parts in sent.items()}


def test_a_still_image_sends_nothing_after_two_frames(network):
    still = images(8, seed=1).expand(10, 8, 2, 8, 8)
    for sent in digits(network, still).values():
        assert int(sent[0].sum()) > 0
        assert int(sent[2:].sum()) == 0


def test_outputs_follow_the_source(model, network):
    frames = sg.Motion(pixels=0.3, frames=20, seed=5).clips(images(16, seed=2))
    have = sg.run(sg.build(network), frames, sequence=True, keep_state=True)[1]
    want = torch.stack([model(frame) for frame in frames]).detach()
    assert float((have - want).norm() / want.norm()) < 0.06


# -- what does not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 0.5}, "momentum"),
        ({"method": "subgradient"}, "baseline"),
        ({"input_coding": "poisson"}, "Poisson"),
        ({"dead_zone": 0.0}, "dead zone"),
        ({"dead_zone": {"last": 0.0}}, "dead zone"),
        ({"schedule": sg.ConstantSchedule(1.0)}, "schedule"),
        ({"tune": True}, "not learned"),
        ({"tune_seconds": 3.0}, "not learned"),
        ({"preset": "paper"}, "paper"),
        ({"noise": -1.0}, "noise"),
        ({"noise": "2 %"}, "noise"),
    ],
)
def test_options_without_a_place_in_a_stream(model, clips, options, said):
    with pytest.raises(sg.InputError, match=said):
        sg.convert(model, clips, stream=True, **options)


def test_stream_is_a_truth_value_or_a_motion(model, clips):
    for other in ("stills", 0, None):
        with pytest.raises(sg.InputError, match="Motion"):
            sg.convert(model, clips, stream=other)
    with pytest.raises(sg.InputError, match="stream=True"):
        sg.convert(model, images(8), noise=0.1)


@pytest.mark.parametrize(
    "clip",
    [
        images(8),  # stills, which the model fails on
        images(8).flatten(1),  # no frames of streams
        MOTION.clips(images(4))[:3],  # too short
        MOTION.clips(images(4)) * math.nan,
        [],
    ],
)
def test_no_clips(model, clip):
    with pytest.raises(sg.CalibrationError):
        sg.convert(model, clip, stream=True)


def test_stills_where_clips_are_expected_are_told_the_way(model):
    with pytest.raises(sg.CalibrationError, match=r"stream=sg\.Motion"):
        sg.convert(model, images(8), stream=True)


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 3},
        {"pixels": -1},
        {"noise": math.inf},
        {"pixels": 16},  # a whole way to and fro, which would stand still
        {"pixels": 0.1, "reach": 0},
    ],
)
def test_motion_out_of_range(options):
    with pytest.raises(sg.InputError, match="Motion"):
        sg.Motion(**options)


def test_as_far_as_the_reach_images_move():
    clip = sg.Motion(pixels=2, reach=2).clips(images(4))
    assert float((clip[1:] - clip[:-1]).abs().flatten(1).mean(1).min()) > 0.01
    assert sg.Motion(pixels=0, reach=0).clips(images(4)).shape == (8, *images(4).shape)


def test_what_is_no_image_does_not_move(model):
    with pytest.raises(sg.CalibrationError, match="images"):
        sg.Motion().clips(torch.zeros(4, 3))
    with pytest.raises(sg.CalibrationError, match="no image to move"):
        sg.convert(model, images(4)[:0], stream=sg.Motion())


class Looked(torch.nn.Module):
    """A value for each row that whole numbers name."""

    def __init__(self):
        super().__init__()
        self.rows, self.last = torch.nn.Embedding(4, 5), torch.nn.Linear(5, 2)

    def forward(self, x, i):
        return self.last(torch.relu(x * self.rows(i)))


def test_whole_numbers_that_change_from_frame_to_frame_are_refused():
    """As run does, but before a plan is made of what cannot be run."""
    x, i = torch.rand(6, 2, 5), torch.randint(0, 4, (1, 2)).expand(6, 2)
    network = sg.convert(Looked().eval(), {"x": x, "i": i}, stream=True)
    assert len(sg.run(sg.build(network), {"x": x, "i": i}, sequence=True, keep_state=True)[1]) == 6
    i = torch.cat([i[:5], (i[5:] + 1) % 4])
    with pytest.raises(sg.CalibrationError, match="'i' of a clip .* but they change"):
        sg.convert(Looked().eval(), {"x": x, "i": i}, stream=True)


@pytest.mark.parametrize("clip", [torch.float16, torch.uint8])
def test_what_is_wrong_with_the_type_of_a_clip_is_no_matter_of_motion(model, clips, clip):
    with pytest.raises(sg.CalibrationError) as caught:
        sg.convert(model, (255 * clips).to(clip), stream=True)
    assert "Motion" not in str(caught.value)


def test_a_plan_for_streams_is_not_tuned(network):
    with pytest.raises(sg.InputError, match="chosen on clips"):
        sg.tune(network, images(64))
    with pytest.raises(sg.InputError, match="still inputs"):
        sg.fine_tune(network, images(64))


# -- pieces of it ----------------------------------------------------------------------------------


def test_motion_moves_by_so_many_pixels():
    """On two slopes it is seen how far an image moved, to and fro."""
    along = torch.arange(32.0).expand(32, 32)
    slopes = torch.stack([along, along.T]).unsqueeze(0)
    moved = sg.Motion(pixels=0.25, frames=40, reach=4.0).clips(slopes)[:, 0, :, 16, 16]
    way = (moved[1:] - moved[:-1]).square().sum(1).sqrt()
    assert float(way.max()) == pytest.approx(0.25, abs=1e-3)
    assert int((way < 0.24).sum()) <= 2  # where it turns
    assert float((moved - 16).square().sum(1).sqrt().max()) <= 4 + 1e-3


def test_long_clips_are_cut():
    clip = torch.arange(20.0).view(20, 1, 1).expand(20, 2, 3)
    found = segments([clip], 8, 32)
    assert found.shape == (8, 4, 3)
    assert found[0, :, 0].tolist() == [0, 0, 8, 8]
    assert segments([clip], 8, 2).shape == (8, 2, 3)


def test_tracked_counts_what_the_step_sends_and_misses():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 2, 4, generator=generator).cumsum(1)
    gradients = torch.randn(3, 5, 2, 4, generator=generator)
    node = SignGDNeuron(
        name="n", inputs=("x",), shape=(), function=NONLINEARITIES["identity"],
        schedule=sg.ConstantSchedule(1.0), dead_zone=2 / 3,
    )  # fmt: skip
    sent, error = tracking.tracked(node, values, gradients, 0.25)
    v, want_sent, want_error = torch.zeros(3, 2, 4), torch.zeros(3), torch.zeros(3)
    size, theta = torch.tensor(0.25 * 2 ** (tracking.MOST - 1)), torch.tensor(2 / 3)
    for frame in range(5):
        code, v = sparse_step(values[:, frame], size, theta, v, tracking.MOST)
        want_sent += count(code).float().mean((1, 2)) / 4 if frame else 0
        off = ((v - values[:, frame]) * gradients[:, frame]).sum(2)
        want_error += off.square().mean(1) / 5
    assert torch.allclose(sent.float(), want_sent)
    assert torch.allclose(error.float(), want_error, rtol=1e-4)


# -- the theorems ----------------------------------------------------------------------------------

zones = st.sampled_from([1 / 2, 0.6, 2 / 3, 3 / 4, 0.9])
member_counts = st.integers(1, 8)
SLACK = 1e-9


def follow(targets, theta, members, v=0.0):
    """v and digits of a neuron with c_m = 1 that follows ``targets``."""
    states, sent, v = [], [], torch.tensor([v], dtype=EXACT)
    size = torch.tensor(2.0 ** (members - 1), dtype=EXACT)
    for target in targets:
        wanted, zone = torch.tensor([target], dtype=EXACT), torch.tensor(theta, dtype=EXACT)
        code, v = sparse_step(wanted, size, zone, v, members)
        states.append(float(v))
        sent.append(int(count(code)))
    return states, sent


@given(zones, member_counts, st.data())
def test_bound_under_change(theta, members, data):
    """A target that is held and moves by up to 2^m - 1 last steps a frame is held."""
    most = 2.0**members - 1
    rho = max(theta, 1 - theta)
    begun = data.draw(st.floats(-rho, rho))
    moves = data.draw(st.lists(st.floats(-most, most), min_size=1, max_size=8))
    targets = [begun + sum(moves[: i + 1]) for i in range(len(moves))]
    states, _ = follow(targets, theta, members)
    for v, target in zip(states, targets, strict=True):
        assert abs(v - target) <= rho + SLACK


@given(zones, st.integers(1, 6), st.floats(0, 400), st.floats(0, 0.9))
def test_frames_to_recover_after_a_cut(theta, members, cut, share):
    """ceil(D / (2^m - 1)) frames, and where the target goes on moving by delta
    1 + ceil((D - J) / (J - delta)); no frame fewer where the cut is a whole number of them."""
    reach, rho = 2.0**members - 1, max(theta, 1 - theta)
    drift = share * reach
    frames = 1 + max(0, math.ceil((cut - reach) / (reach - drift) - SLACK))
    targets = [cut + drift * i for i in range(frames + 3)]
    states, _ = follow(targets, theta, members)
    for v, target in list(zip(states, targets, strict=True))[frames - 1 :]:
        assert abs(v - target) <= rho + 1e-6


@given(st.integers(1, 6), st.integers(2, 5))
def test_the_frames_to_recover_are_needed(members, frames):
    reach = 2.0**members - 1
    cut = frames * reach
    states, _ = follow([cut] * frames, 2 / 3, members)
    assert abs(states[frames - 2] - cut) > 2 / 3
    assert abs(states[frames - 1] - cut) <= 2 / 3


@given(
    st.sampled_from([0.6, 2 / 3, 3 / 4, 0.9]),
    st.integers(1, 6),
    st.floats(-30, 30),
    st.lists(st.floats(-1, 1), min_size=3, max_size=30),
)
def test_noise_gate(theta, members, level, noise):
    """Noise of an amplitude of (theta - 1/2) c_m: after the frame in which the target is held at
    most one more digit, and then none."""
    amplitude = theta - 0.5 - SLACK
    held = 1 + math.ceil((abs(level) + 1) / (2.0**members - 1))
    targets = [level] * held + [level + amplitude * share for share in noise]
    _, sent = follow(targets, theta, members)
    assert sum(sent[held:]) <= 1


@pytest.mark.parametrize("theta", [0.6, 2 / 3, 0.9])
@pytest.mark.parametrize(("wider", "heard"), [(0.99, False), (1.01, True)])
def test_the_noise_gate_is_as_wide_as_it_can_be(theta, wider, heard):
    """Somewhere among levels 1 % more goes on sending for ever, and 1 % less nowhere."""
    levels, size = torch.linspace(-1, 1, 401, dtype=EXACT), torch.tensor(8.0, dtype=EXACT)
    zone, v = torch.tensor(theta, dtype=EXACT), torch.zeros(401, dtype=EXACT)
    sent = []
    for frame in range(40):
        noise = wider * (theta - 0.5) * (1 - 2 * (frame % 2))
        code, v = sparse_step(levels + noise, size, zone, v, 4)
        sent.append(count(code))
    assert bool(torch.stack(sent[20:]).any()) is heard


@given(zones, member_counts, st.floats(-100, 100))
def test_a_target_that_rests_is_silent_once_it_is_held(theta, members, level):
    held = max(1, math.ceil(abs(level) / (2.0**members - 1)))
    _, sent = follow([level] * (held + 4), theta, members)
    assert sum(sent[held + 1 :]) == 0


# -- no drift --------------------------------------------------------------------------------------


def wandering(frames, largest, seed):
    """Targets [frames, 16] that wander within ``largest``, with jumps."""
    generator = torch.Generator().manual_seed(seed)
    moves = 0.02 * largest * torch.randn(frames, 16, generator=generator)
    moves += (
        largest
        * torch.randn(frames, 16, generator=generator)
        * (torch.rand(frames, 16, generator=generator) < 0.01)
    )
    x = torch.zeros(16)
    out = []
    for move in moves:
        x = (x + move).clamp(-largest, largest)
        out.append(x)
    return torch.stack(out)


def assert_whole(v, resting, last, n):
    """v = resting + n c_m, each bit."""
    for have, begun, step, number in zip(
        v.tolist(), resting.tolist(), last.tolist(), n.tolist(), strict=True
    ):
        assert Fraction(have) == Fraction(begun) + int(number) * Fraction(step)


def test_v_is_a_whole_number_of_steps_after_ten_thousand():
    generator = torch.Generator().manual_seed(1)
    last = tracking.exact(0.001 + 0.01 * torch.rand(16, generator=generator))
    resting = (torch.randn(16, generator=generator) * 100).round() * last
    members = 5
    p = SignGDParameters(
        NONLINEARITIES["identity"], sg.ConstantSchedule(1.0), last * 2.0 ** (members - 1), resting,
        members=members, dead_zone=2 / 3,
    )  # fmt: skip
    x = wandering(10_000, 1.9, 2)
    done = signgd_multi_step((x,), SignGDState(resting.clone()), p, keep_spikes=True)
    d = (done.spike_seq & 0xFFFF) - (done.spike_seq >> 16)
    n = -d.long().sum(0)
    assert_whole(done.state.v, resting, last, n)
    weighted = signgd_multi_step((x,), SignGDState(resting.clone()), p, output="signed").y
    total = weighted.double().sum(0) + resting.double()
    assert torch.equal(total, done.state.v.double())  # what is sent adds up to v


def test_the_pure_torch_step_has_no_drift_either():
    last, members = tracking.exact(torch.tensor([0.0037, 0.21])), 6
    p = SignGDParameters(
        NONLINEARITIES["identity"], sg.ConstantSchedule(1.0), last * 32, members=members,
        dead_zone=2 / 3,
    )  # fmt: skip
    state, n = SignGDState(torch.zeros(2)), torch.zeros(2, dtype=torch.long)
    for x in wandering(2_000, 1.0, 3)[:, :2]:
        code, state = signgd_step((x * last * 2000,), state, p)
        n -= ((code & 0xFFFF) - (code >> 16)).long()
    assert_whole(state.v, torch.zeros(2), last, n)


@given(st.floats(1e-20, 1e20))
def test_steps_are_rounded_to_twelve_bits(step):
    rounded = float(tracking.exact(torch.tensor(step, dtype=torch.float32)))
    assert rounded == pytest.approx(step, rel=2**-12)
    assert (math.frexp(rounded)[0] * 2**12).is_integer()
