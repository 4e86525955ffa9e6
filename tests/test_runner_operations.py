"""The runner's operations, functions and step sizes are torch's, in double and single precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_operations import CASES, arguments, every_operation

import spikingjelly_signgd as sg
from spikingjelly_signgd.core import operations
from spikingjelly_signgd.core.operations import LINEAR, forms
from spikingjelly_signgd.exporters.hdf5 import kinds, runner_functions, runner_operations
from spikingjelly_signgd.exporters.hdf5.runner_functions import FUNCTIONS, erf, step_size
from spikingjelly_signgd.neurons.schedules import SCHEDULES

CLOSE = {torch.float64: 1e-12, torch.float32: 2e-5}


def assert_same(op, inputs, attributes, tensors, batch, dtype=torch.float64):
    inputs = [x.to(dtype) for x in inputs]
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    arrays = [x.numpy() for x in inputs], attributes, {k: v.numpy() for k, v in tensors.items()}
    for name in ("apply", "apply_linear"):
        want = getattr(operations, name)(op, inputs, attributes, tensors, batch).numpy()
        have = getattr(runner_operations, name)(op, *arrays, batch)
        assert (have.shape, have.dtype) == (want.shape, want.dtype), (name, attributes)
        np.testing.assert_allclose(have, want, rtol=CLOSE[dtype], atol=CLOSE[dtype])


def test_no_operation_function_or_schedule_is_missing():
    assert set(runner_operations.OPERATIONS) == set(forms.FORMS) == set(LINEAR)
    assert set(FUNCTIONS) == set(sg.NONLINEARITIES)
    assert set(kinds.SCHEDULES) == set(SCHEDULES)
    assert {op for op, _, _ in CASES} == set(LINEAR)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_operation
def test_an_operation(case, dtype):
    for batch in (1, 3):
        inputs, attributes, tensors = arguments(case, 1, batch, [False] * len(case[2]))
        assert_same(case[0], inputs, attributes, tensors, batch, dtype)


def drawn(*choices):
    """One of each, seeded by the test."""
    return [choice[int(torch.randint(len(choice), ()))] for choice in choices]


@pytest.mark.parametrize("trial", range(40))
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_convolutions_of_any_shape(op, trial):
    torch.manual_seed(trial)
    n, groups, bias = drawn((1, 2, 3), (1, 2, 3), (True, False))
    per_dimension = lambda *values: [drawn(values)[0] for _ in range(n)]  # noqa: E731
    kernel, stride = per_dimension(1, 2, 3), per_dimension(1, 2, 3)
    dilation, padding = per_dimension(1, 2), per_dimension(0, 1, 2)
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    fan_in, fan_out = 2 * groups, 3 * groups
    shape = (fan_out, 2, *kernel)
    if op == "conv_transpose":
        shape = (fan_in, 3, *kernel)
        pairs = zip(stride, dilation, strict=True)
        attributes["output_padding"] = [drawn(range(max(s, d)))[0] for s, d in pairs]
    tensors = {"weight": torch.randn(shape)} | ({"bias": torch.randn(fan_out)} if bias else {})
    x = torch.randn(2, fan_in, *per_dimension(5, 6, 7))
    assert_same(op, [x], attributes, tensors, 2)


@pytest.mark.parametrize("trial", range(40))
def test_poolings_of_any_shape(trial):
    torch.manual_seed(trial)
    n, ceil, count, divisor = drawn((1, 2, 3), (True, False), (True, False), (None, None, 5))
    kernel = [drawn((1, 2, 3, 4))[0] for _ in range(n)]
    stride = [drawn((1, 2, 3, 5))[0] for _ in range(n)]
    padding = [drawn(range(k // 2 + 1))[0] for k in kernel]
    x = torch.randn(2, 3, *[drawn((5, 6, 7, 9))[0] for _ in range(n)])
    attributes = {
        "kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil,
        "count_include_pad": count, "divisor_override": divisor if n > 1 else None,
    }  # fmt: skip
    assert_same("avg_pool", [x], attributes, {}, 2)
    size = [drawn((1, 2, 3, 5, 8))[0] for _ in range(n)]
    assert_same("adaptive_avg_pool", [x], {"output_size": size}, {}, 2)
    x = x.double()
    dilation = [drawn((1, 2))[0] for _ in range(n)]
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    reach = [d * (k - 1) - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if all(r < size for r, size in zip(reach, x.shape[2:], strict=True)):
        want = pool(x, kernel, stride, padding, dilation, ceil_mode=ceil)
        options = kernel, stride, padding, dilation, ceil
        assert np.array_equal(FUNCTIONS["max_pool"](x.numpy(), *options), want.numpy())
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[n - 1]
    have = FUNCTIONS["adaptive_max_pool"](x.numpy(), size)
    assert np.array_equal(have, pool(x, size).numpy())


@pytest.mark.parametrize("mode", ["nearest", "linear", "align"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_size_of_upsampling(mode, dtype):
    for old in (1, 2, 3, 7, 10, 49):
        for new in (*range(1, 23), 49, 98, 147, 1000):
            x = torch.randn(2, 3, old)
            attributes = {"size": [new], "mode": "nearest" if mode == "nearest" else "linear"}
            if mode != "nearest":
                attributes["align_corners"] = mode == "align"
            assert_same("upsample", [x], attributes, {}, 2, dtype)


# arguments of each row beyond the defaults
ARGUMENTS = {
    "leaky_relu": [{}, {"negative_slope": 0.3}, {"negative_slope": -0.5}],
    "prelu": [{"weight": torch.tensor([0.1, -0.4, 1.7])}],
    "elu": [{}, {"alpha": 0.7, "scale": 1.3, "input_scale": 0.5}],
    "celu": [{}, {"alpha": 0.6}],
    "gelu": [{}, {"approximate": "none"}, {"approximate": "tanh"}],
    "softplus": [{}, {"beta": 2.5, "threshold": 3.0}],
    "clamp": [{}, {"min": -0.3, "max": None}, {"min": None, "max": 0.6}, {"min": 0.5, "max": 0.1},
              {"min": -float("inf"), "max": 0.4}],
    "qcfs": [{"v_threshold": 0.9, "levels": 8}, {"v_threshold": 2.0, "levels": 1}],
    "pow": [{"exponent": 3.0}, {"exponent": -1.5, "floor": 0.2}, {"exponent": 0.5, "floor": None}],
    **{row: [{}, {"floor": 0.05}, {"floor": None}]
       for row in ("sqrt", "rsqrt", "reciprocal", "div", "divide_by_sqrt")},
    "max_pool": [{"kernel_size": (2,), "stride": (1,), "padding": (1,), "dilation": (1,)}],
    "adaptive_max_pool": [{"output_size": (2,)}],
    "amax": [{"dim": (-1,), "keepdim": True}, {"dim": (0, -1)}],
    "softmax": [{"dim": -1}, {"dim": -2}],
    "log_softmax": [{"dim": -1}, {"dim": -2}],
    "layer_norm": [{"dims": 1, "eps": 1e-5}, {"dims": 2, "eps": 0.1}],
    "vector_norm": [{"dim": (-1,), "keepdim": True}, {"dim": (-2, -1)}],
    "normalize": [{"dim": (-1,), "eps": 1e-12}, {"dim": (-2,), "eps": 3.0}],
    "rms_norm": [{"dims": 1, "eps": 1e-5}, {"dims": 2, "eps": 0.1}],
}  # fmt: skip
PLACES = torch.cat([torch.linspace(-9, 9, 901), torch.tensor([0.0, 1e-30, -1e-8, 40.0, -60.0])])


# those of matrices: test_attention.py; those with masks: test_inputs.py
OTHERS = ("matmul", "attention", "masked_softmax", "masked_attention")


@pytest.mark.parametrize("name", [n for n in sg.NONLINEARITIES if n not in OTHERS])
def test_a_function(name):
    row = sg.NONLINEARITIES[name]
    arity = row.arity or 3
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        x = [PLACES.to(dtype), PLACES.flip(0).to(dtype), PLACES.roll(400).to(dtype)][:arity]
        x = [torch.stack([a, a + 0.25, -a], -1) for a in x]
        for given in ARGUMENTS.get(name, [{}]):
            given = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
            want = row(*x, **given).numpy()
            arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
            with np.errstate(all="ignore"):
                have = FUNCTIONS[name](*(a.numpy() for a in x), **arrays)
            assert (have.dtype, have.shape) == (want.dtype, want.shape)
            np.testing.assert_allclose(have, want, rtol=40 * tolerance, atol=tolerance)


def test_erf_is_right_to_the_last_place_of_a_double():
    x = np.concatenate([np.linspace(-7, 7, 20_001), 10.0 ** np.arange(-300, 3, 7)])
    want = torch.erf(torch.from_numpy(x)).numpy()
    assert np.abs(erf(x) - want).max() <= 2.3e-16
    np.testing.assert_allclose(erf(x), want, rtol=5e-16, atol=0)


SCHEDULE_EXAMPLES = [
    sg.ExponentialSchedule(0.15, 0.95),
    sg.InverseSchedule(2.0, delay=1.0),
    sg.ConstantSchedule(0.1),
    sg.ListSchedule((0.5, 0.25, 0.125)),
]


@pytest.mark.parametrize("schedule", SCHEDULE_EXAMPLES, ids=lambda s: s.kind)
def test_step_sizes_are_the_same_bits(schedule):
    assert {s.kind for s in SCHEDULE_EXAMPLES} == set(SCHEDULES)
    for t in range(1, 4):
        assert step_size(schedule.to_dict(), t) == schedule(t)


def test_windows_of_adaptive_pooling_cover_the_input():
    for size in range(1, 12):
        for out in range(1, 12):
            found = runner_functions.parts(size, out)
            assert found[0].start == 0 and found[-1].stop == size
            assert all(p.stop > p.start for p in found)
