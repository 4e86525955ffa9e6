"""The definitions: schedules, the table of nonlinearities, steps against their equations."""

import itertools
import json

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

import spikingjelly_signgd as sg
from spikingjelly_signgd.converters import default_schedule
from spikingjelly_signgd.neurons import (
    SubgradientParameters,
    SubgradientState,
    group_step,
    nonlinearity,
    scan,
    schedule_from_dict,
    signgd_decoded_step,
    signgd_initial_state,
    signgd_step,
    subgradient_step,
)
from spikingjelly_signgd.neurons.nonlinearities import max_pool
from spikingjelly_signgd.neurons.signgd import signgd_start_state

SCHEDULES = [
    sg.ExponentialSchedule(0.15, 0.95),
    sg.InverseSchedule(2.0, delay=1.0),
    sg.ConstantSchedule(0.1),
    sg.ListSchedule((0.5, 0.25, 0.125)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_schedule_survives_json(schedule):
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule and again(3) == schedule(3)


def test_schedules_are_their_formulas_at_any_step():
    assert sg.ExponentialSchedule(0.15, 0.95)(2000) == 0.15 * 0.95**1999
    assert sg.InverseSchedule(2.0, delay=1.0)(4999) == 2.0 / 5000
    assert sg.ListSchedule((0.5, 0.25))(2) == 0.25
    with pytest.raises(ValueError, match="step 3 .* 2 step sizes"):
        sg.ListSchedule((0.5, 0.25))(3)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_step_sizes_are_positive(bad):
    makers = (sg.ConstantSchedule, sg.InverseSchedule, lambda x: sg.ListSchedule((0.1, x)))
    for make in (*makers, lambda x: sg.ExponentialSchedule(0.1, x)):
        with pytest.raises(ValueError, match="positive"):
            make(bad)


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_default_schedule_can_track(time_steps, depth):
    """eta(t + 1) >= eta(t) / 2, without which a neuron can be left behind for good."""
    schedule = default_schedule(time_steps, depth)
    assert 0.5 <= schedule.decay < 1
    assert 0.3 <= sum(schedule(t) for t in range(1, time_steps + 1)) <= 2.0001


def test_ties_are_those_of_the_published_mechanisms():
    fire = {"relu", "square", "exp", "mul"}
    silent = {"leaky_relu", "gelu", "abs", "maximum", "div", "divide_by_sqrt"}
    for name in fire | silent:
        row = sg.NONLINEARITIES[name]
        p = sg.SignGDParameters(row, sg.ConstantSchedule(0.5))
        x = {"exp": (torch.zeros(1),), "div": (torch.zeros(1), torch.ones(1))}.get(
            name, (torch.zeros(1),) * (row.arity or 1)
        )
        if name == "divide_by_sqrt":
            x = (torch.zeros(1), torch.ones(1))
        state = signgd_initial_state(p.target(*x), p)._replace(v=p.target(*x))
        fires, after = signgd_step(x, state, p)
        assert bool(fires) == (name in fire), name
        assert float(after.v - state.v) == (-0.5 if name in fire else 0.5)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: s.kind)
def test_the_tracking_lemma(schedule):
    """A constant target within the reach is held to within eta(t) once it has been crossed."""
    target = torch.linspace(-0.9, 0.9, 101, dtype=torch.float64)
    p = sg.SignGDParameters(nonlinearity(torch.tanh), schedule)
    x = torch.atanh(target)
    v_seq, _ = scan(
        signgd_decoded_step, [(x,)] * 200, signgd_initial_state(torch.zeros_like(x), p), p
    )
    error = (v_seq - target).abs()
    eta = torch.tensor([schedule(t) for t in range(1, 201)], dtype=torch.float64)
    crossed = (torch.diff(torch.sign(v_seq - target), dim=0) != 0).cumsum(0) > 0
    assert crossed[-1].all()
    held = error[1:] <= eta[1:, None] * (1 + 1e-12) + 1e-15
    assert bool((held | ~crossed).all())


def test_the_step_is_its_equation_word_for_word():
    """v - eta s sigma, computed by hand in numbers, in float32 and with a scale by channel."""
    torch.manual_seed(3)
    x, v = torch.randn(5, 4), torch.randn(5, 4)
    scale = torch.rand(4) + 0.1
    p = sg.SignGDParameters(nonlinearity("gelu"), sg.ConstantSchedule(0.3), scale=scale)
    fires, after = signgd_step((x,), signgd_initial_state(v, p)._replace(v=v), p)
    target = F.gelu(x)
    for i, j in itertools.product(range(5), range(4)):
        assert bool(fires[i, j]) == bool(v[i, j] > target[i, j])
        step = 0.3 * scale[j]
        expected = v[i, j] - step if fires[i, j] else v[i, j] + step
        assert after.v[i, j] == expected


def test_the_subgradient_baseline_is_a_rate():
    """v(t) = S(t) / (t + 1) with S the number of spikes, and it approaches ReLU clipped at 1."""
    x = torch.tensor([-0.5, 0.0, 0.3, 0.8, 1.7], dtype=torch.float64)
    p, state = SubgradientParameters(), SubgradientState(torch.zeros_like(x))
    count = torch.zeros_like(x)
    for t in range(1, 401):
        fires, state = subgradient_step(x, state, p)
        count += fires
        torch.testing.assert_close(state.v, count / (t + 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(state.v, x.clamp(0, 1), rtol=0, atol=5e-3)


def test_max_pooling_is_torchs_for_every_option():
    generator = torch.Generator().manual_seed(0)
    compared = 0
    options = itertools.product(
        [(7, 9), (8, 6), (12, 5)],
        [(2, 2), (3, 2), (4, 3)],
        [(2, 2), (1, 1), (3, 2)],
        [(0, 0), (1, 1), (1, 0)],
        [(1, 1), (2, 1)],
        [False, True],
    )
    for size, kernel, stride, padding, dilation, ceil_mode in options:
        x = torch.randn(2, 3, *size, generator=generator) - 3
        try:
            expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
        except RuntimeError:  # padding beyond half a window, or no window at all
            continue
        assert torch.equal(max_pool(x, kernel, stride, padding, dilation, ceil_mode), expected)
        compared += 1
    assert compared > 250


def test_a_decoded_variance_below_its_floor_stays_finite():
    row = sg.NONLINEARITIES["divide_by_sqrt"]
    y = torch.tensor([-1.0, 0.0, 4.0])
    out = row(torch.ones(3), y, floor=1e-4)
    torch.testing.assert_close(out, torch.tensor([100.0, 100.0, 0.5]))


def test_group_step_takes_any_memory_format():
    p = sg.GroupNeuronParameters(4, 1.0)
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    v = torch.full_like(x, p.v_initial)
    out, _ = group_step(x, v, p)
    expected, _ = group_step(x.contiguous(), v.contiguous(), p)
    assert torch.equal(out, expected)


def test_unknown_functions_are_refused():
    with pytest.raises(ValueError, match="no nonlinearity is called 'rleu'"):
        nonlinearity("rleu")
    with pytest.raises(TypeError):
        nonlinearity(3)
    with pytest.raises(ValueError, match="scale"):
        sg.SignGDParameters(nonlinearity("relu"), SCHEDULES[0], scale=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="momentum"):
        sg.SignGDParameters(nonlinearity("relu"), SCHEDULES[0], momentum=1.0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)], ids=str)
def test_no_start_changes_another(shape):
    p, x = sg.SignGDParameters(nonlinearity("relu"), sg.ConstantSchedule(1.0)), torch.ones(shape)
    for _ in range(2):
        v = signgd_start_state((x,), x, p).v
        assert torch.equal(v, torch.zeros(shape))
        try:
            v.add_(5.0)
        except RuntimeError as error:  # torch's, of one number expanded
            assert x.numel() > 1 and "single memory location" in str(error)
