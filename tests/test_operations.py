"""Linear operations over a block of time steps are each step in turn, whatever the layout."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.converters.lowering import HANDLERS
from spikingjelly_signgd.core.checks import integer
from spikingjelly_signgd.core.network import Linear
from spikingjelly_signgd.core.operations import (
    LINEAR,
    Operation,
    Size,
    apply,
    apply_linear,
    apply_over_time,
    resolve,
)
from spikingjelly_signgd.exporters.hdf5 import Runner

PRODUCTS = {"conv", "conv_transpose", "linear", "matmul", "einsum"}  # rounding follows the size
B = "1*batch"


def conv(n, groups=1, bias=True, **options):
    attributes = {
        "stride": [1] * n, "padding": [0] * n, "dilation": [1] * n, "groups": groups, **options
    }  # fmt: skip
    return attributes, {"weight": (6, 4 // groups, *[2] * n)} | ({"bias": (6,)} if bias else {})


def conv_transpose(n, groups=1, bias=True, **options):
    attributes, tensors = conv(n, groups, bias, **{"output_padding": [0] * n, **options})
    return attributes, tensors | {"weight": (4, 6 // groups, *[2] * n)}


def avg_pool(n, kernel=2, **options):
    return {
        "kernel_size": [kernel] * n, "stride": [2] * n, "padding": [0] * n, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": None, **options,
    }, {}  # fmt: skip


def upsample(mode, *size, **options):
    return {"size": list(size), "mode": mode, **options}, {}


def pad(mode, *widths, value=0.0):
    return {"pad": list(widths), "mode": mode, "value": value}, {}


def cut(dim, start, stop, step=1):
    return {"dim": dim, "start": start, "stop": stop, "step": step}, {}


def reduce(dim, keepdim=False):
    return {"dim": dim, "keepdim": keepdim}, {}


def affine(*shape, **tensors):
    return {"shape": list(shape)}, tensors


def add(first=1.0, second=1.0):
    return {"coefficients": [first, second]}, {}


def to(*shape):
    return {"shape": list(shape)}, {}


# operation, (attributes, shapes of the tensors), shapes of the inputs at one step
Case = tuple[str, tuple[dict[str, Any], dict[str, Any]], list[tuple[Size, ...]]]
IMAGE = (B, 4, 5, 5)
CASES: list[Case] = [
    ("conv", conv(1), [(B, 4, 7)]),
    ("conv", conv(2), [IMAGE]),
    ("conv", conv(3), [(B, 4, 3, 4, 3)]),
    ("conv", conv(2, bias=False), [IMAGE]),
    ("conv", conv(2, groups=2, stride=[2, 1], padding=[1, 0], dilation=[1, 2]), [IMAGE]),
    ("conv", conv(2, padding="same", dilation=[2, 2]), [IMAGE]),
    ("conv", conv(2), [("2*batch", 4, 5, 5)]),
    ("conv", conv(2), [(4, 5, 5)]),
    ("conv", conv(1), [(4, "6*batch")]),
    ("conv_transpose", conv_transpose(1), [(B, 4, 7)]),
    ("conv_transpose", conv_transpose(2), [IMAGE]),
    ("conv_transpose", conv_transpose(3), [(B, 4, 2, 3, 2)]),
    ("conv_transpose", conv_transpose(2, groups=2, stride=[2, 2], padding=[1, 0],
     output_padding=[1, 0], dilation=[2, 1]), [("3*batch", 4, 5, 5)]),
    ("conv_transpose", conv_transpose(2, bias=False), [(4, 5, 5)]),
    ("linear", ({}, {"weight": (6, 4), "bias": (6,)}), [(B, 4)]),
    ("linear", ({}, {"weight": (6, 4)}), [(B, 4)]),
    ("linear", ({}, {"weight": (6, 4), "bias": (6,)}), [(5, B, 4)]),
    ("linear", ({}, {"weight": (6, 4), "bias": (6,)}), [(B, 2, 3, 4)]),
    ("linear", ({}, {"weight": (6, 4), "bias": (6,)}), [("5*batch", 4)]),
    ("linear", ({}, {"weight": (6, 4), "bias": (6,)}), [(4,)]),
    *[("matmul", ({"side": "right"}, {"weight": shape}), [x])
      for shape in [(4,), (4, 6), (3, 4, 6), (2, 3, 4, 6), (5, 1, 3, 4, 6)]
      for x in [(4,), ("3*batch", 4), (B, 3, 5, 4)]
      if len(shape) < 3 or x != ("3*batch", 4) and len(shape) != 4],
    *[("matmul", ({"side": "left"}, {"weight": shape}), [x])
      for shape in [(4,), (6, 4), (3, 6, 4), (2, 3, 6, 4), (5, 1, 3, 6, 4)]
      for x in [(4,), (4, B), (B, 3, 4, 5)] if x != (B, 3, 4, 5) or len(shape) != 4],
    ("matmul", ({"side": "right"}, {"weight": (3, 4, 6)}), [("5*batch", 4)]),
    ("matmul", ({"side": "left"}, {"weight": (3, 6, 4)}), [(4, "5*batch")]),
    ("einsum", ({"equation": "bnc,dc->bnd", "position": 0}, {"weight": (6, 4)}), [(B, 5, 4)]),
    ("einsum", ({"equation": "dc, nbc -> bnd", "position": 1}, {"weight": (6, 4)}), [(5, B, 4)]),
    ("einsum", ({"equation": "...c,dc->...d", "position": 0}, {"weight": (6, 4)}), [(B, 5, 4)]),
    ("einsum", ({"equation": "...c,...dc->...d", "position": 0}, {"weight": (2, 1, 6, 4)}),
     [(B, 4)]),
    ("einsum", ({"equation": "zc,Ac", "position": 0}, {"weight": (6, 4)}), [(B, 4)]),
    ("einsum", ({"equation": "dc,...c", "position": 1}, {"weight": (6, 4)}), [(B, 5, 4)]),
    ("einsum", ({"equation": "bhnc,hcd->bnhd", "position": 0}, {"weight": (2, 4, 3)}),
     [(B, 2, 5, 4)]),
    ("affine", affine(B, 4, weight=(4,), bias=(4,)), [(B, 4)]),
    ("affine", affine(B, 4, 5, 5, weight=(4, 1, 1), bias=(4, 1, 1)), [IMAGE]),
    ("affine", affine(B, 4, weight=()), [(B, 4)]),
    ("affine", affine(B, 4, bias=()), [(B, 4)]),
    ("affine", affine(B, 4), [(B, 4)]),
    ("affine", affine(5, B, 4, weight=(5, 1, 4), bias=(4,)), [(5, B, 4)]),
    ("affine", affine(5, B, 4, weight=(5, 1, 4), bias=(4,)), [(B, 4)]),
    ("affine", affine(B, 5, 4, weight=(), bias=(5, 4)), [(B, 1, 1)]),
    ("affine", affine(3, B, 5, 4, bias=(3, 1, 5, 1)), [(B, 1, 4)]),
    ("affine", affine(3, 5, 4, weight=(4,), bias=(3, 5, 1)), [()]),
    ("add", add(), [(B, 5, 4), (B, 5, 4)]),
    ("add", add(1.0, -1.0), [(B, 5, 4), (B, 5, 1)]),
    ("add", add(1.0, 0.3), [(B, 5, 4), (B, 5, 4)]),
    ("add", add(-2.5, 0.7), [(B, 5, 4), (B, 5, 4)]),
    ("add", add(), [(5, B, 4), (B, 4)]),
    ("add", add(1.0, -1.0), [(B, 4), (5, B, 4)]),
    ("add", add(), [(4,), (3, B, 5, 4)]),
    ("add", add(), [(B, 1, 4), (5, 1)]),
    ("add", add(), [(), (B, 4)]),
    ("avg_pool", avg_pool(1), [(B, 4, 7)]),
    ("avg_pool", avg_pool(2), [IMAGE]),
    ("avg_pool", avg_pool(3), [(B, 4, 4, 3, 5)]),
    ("avg_pool", avg_pool(1, 3, padding=[1], ceil_mode=True), [(4, "6*batch")]),
    ("avg_pool", avg_pool(2, 3, padding=[1, 1], ceil_mode=True, count_include_pad=False), [IMAGE]),
    ("avg_pool", avg_pool(2, 3, stride=[1, 3], divisor_override=5), [("2*batch", 4, 6, 6)]),
    ("avg_pool", avg_pool(2), [(4, 5, 5)]),
    ("adaptive_avg_pool", ({"output_size": [3]}, {}), [(B, 4, 7)]),
    ("adaptive_avg_pool", ({"output_size": [2, 3]}, {}), [IMAGE]),
    ("adaptive_avg_pool", ({"output_size": [1, 1]}, {}), [("2*batch", 4, 5, 5)]),
    ("adaptive_avg_pool", ({"output_size": [2, 1, 2]}, {}), [(B, 4, 3, 4, 5)]),
    ("adaptive_avg_pool", ({"output_size": [2, 3]}, {}), [(4, 5, 5)]),
    *[(op, reduce(dim, keepdim), [x])
      for op in ("mean", "sum") for keepdim in (False, True)
      for dim, x in [([-1], (B, 5, 64)), ([1], (B, 5, 4)), ([-2, -1], IMAGE), ([0, -1], (5, B, 4)),
                     ([0], (49, "2*batch", 4)), ([-3, -2, -1], (B, 5, 4)), ([], ())]],
    ("reshape", to(B, 20), [(B, 5, 4)]),
    ("reshape", to("5*batch", 4), [(B, 5, 4)]),
    ("reshape", to(5, B, 2, 2), [("5*batch", 4)]),
    ("reshape", to(B, 1, 4), [(B, 4)]),
    ("expand", to(B, 5, 4), [(B, 1, 4)]),
    ("expand", to(5, B, 4), [(B, 4)]),
    ("expand", to("2*batch", 4), [()]),
    ("expand", to("2*batch", 3, 1, 4), [(3, 1, 1)]),
    ("permute", ({"dims": [0, 2, 1]}, {}), [(B, 5, 4)]),
    ("permute", ({"dims": [-1, 0, -2, 1]}, {}), [(3, B, 5, 4)]),
    ("cat", ({"dim": -1}, {}), [(B, 5, 4), (B, 5, 2)]),
    ("cat", ({"dim": 1}, {}), [(B, 1, 4), (B, 5, 4), (B, 2, 4)]),
    ("cat", ({"dim": 0}, {}), [(5, B, 4), (2, B, 4)]),
    ("cat", ({"dim": -2}, {}), [("2*batch", 1), ("2*batch", 1)]),
    ("slice", cut(-1, 1, 4), [(B, 4, 5)]),
    ("slice", cut(1, 0, 4, 2), [(B, 4, 5)]),
    ("slice", cut(0, 2, 3), [(5, B, 4)]),
    ("slice", cut(-2, 0, "2*batch"), [("2*batch", 4)]),
    ("index", ({"dim": -1}, {"index": [3, 0, 0]}), [(B, 5, 4)]),
    ("index", ({"dim": 1}, {"index": [4, 3, 2, 1, 0]}), [(B, 5, 4)]),
    ("index", ({"dim": 0}, {"index": [1]}), [(2, B, 4)]),
    ("pad", pad("constant", 1, 2, value=0.7), [(B, 4)]),
    ("pad", pad("constant", 0, 0, 2, 0, 0, 1), [(3, 2, B, 4)]),
    ("pad", pad("constant", -1, 1, value=-3.0), [IMAGE]),
    ("pad", pad("reflect", 1, 2), [("3*batch", 4)]),
    ("pad", pad("reflect", 1, 2), [(B, 4, 5)]),
    ("pad", pad("reflect", 1, 2, 0, 1), [IMAGE]),
    ("pad", pad("replicate", 1, 2, 0, 1), [(4, 5, 5)]),
    ("pad", pad("replicate", 1, 0, 0, 1, 1, 1), [(B, 4, 3, 2, 3)]),
    ("pad", pad("circular", 1, 2, 0, 1), [("2*batch", 4, 5, 5)]),
    ("upsample", upsample("nearest", 9), [(B, 4, 5)]),
    ("upsample", upsample("nearest", 10, 7), [IMAGE]),
    ("upsample", upsample("nearest", 4, 5, 6), [(B, 4, 2, 3, 3)]),
    ("upsample", upsample("linear", 9, align_corners=False), [(B, 4, 5)]),
    ("upsample", upsample("bilinear", 9, 3, align_corners=True), [("2*batch", 4, 5, 5)]),
    ("upsample", upsample("trilinear", 4, 5, 6, align_corners=False), [(B, 4, 2, 3, 3)]),
]  # fmt: skip


def name_of(case):
    op, (attributes, _), inputs = case
    values = [str(v) for v in attributes.values()]
    return " ".join([op, *values, "of", *map(str, inputs)]).replace("'", "").replace("*", "")


every_operation = pytest.mark.parametrize("case", CASES, ids=name_of)


def made(shape, layout="contiguous"):
    """Random, its first dimension first in memory too: as a block of time steps is."""
    if layout == "contiguous" or len(shape) < 3:
        return torch.randn(shape)
    if layout == "reversed":
        return torch.randn(shape[0], *shape[:0:-1]).permute(0, *range(len(shape) - 1, 0, -1))
    if layout == "channels last":
        return torch.randn(*shape[:2], *shape[3:], shape[2]).movedim(-1, 2)
    return torch.randn(*shape, 3)[..., 1]  # "gaps"


def arguments(case, steps, batch, in_time, layout="contiguous"):
    """Inputs, attributes and tensors as ``apply_over_time`` takes them."""
    _, (attributes, shapes), inputs = case
    tensors = {
        k: made(s) / 8 if isinstance(s, tuple) else torch.tensor(s) for k, s in shapes.items()
    }  # small, so that sums of products are of the size that the tolerance is for
    values = [
        made((*[steps] * led, *resolve(shape, batch)), layout)
        for shape, led in zip(inputs, in_time, strict=True)
    ]
    return values, attributes, tensors


def combinations(case):
    """Which inputs change with time: every choice but none."""
    return [c for c in product([True, False], repeat=len(case[2])) if any(c)]


def assert_each_step_in_turn(op, values, in_time, attributes, tensors, batch, linear_part=False):
    one_step = apply_linear if linear_part else apply
    steps = next(v.shape[0] for v, led in zip(values, in_time, strict=True) if led)
    rows = [[v[t] if led else v for v, led in zip(values, in_time, strict=True)]
            for t in range(steps)]  # fmt: skip
    expected = torch.stack([one_step(op, row, attributes, tensors, batch) for row in rows])
    out = apply_over_time(op, values, in_time, attributes, tensors, batch, linear_part)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if op in PRODUCTS else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(out, expected, **tolerance, equal_nan=batch == 0)


def test_every_operation_is_tested_over_time():
    assert {op for op, _, _ in CASES} == set(LINEAR)


@pytest.mark.parametrize("layout", ["contiguous", "reversed", "channels last", "gaps"])
@every_operation
def test_a_block_is_each_step_in_turn(case, layout):
    for steps, batch, in_time, linear_part in product(
        (1, 3), (1, 4), combinations(case), (False, True)
    ):
        values, attributes, tensors = arguments(case, steps, batch, in_time, layout)
        before = [value.clone() for value in [*values, *tensors.values()]]
        assert_each_step_in_turn(case[0], values, in_time, attributes, tensors, batch, linear_part)
        for old, now in zip(before, [*values, *tensors.values()], strict=True):
            assert torch.equal(old, now), "an argument was changed in place"


@every_operation
def test_the_linear_part_is_what_zero_does_not_give(case):
    in_time = [True] * len(case[2])
    values, attributes, tensors = arguments(case, 3, 4, in_time)
    zeros = [torch.zeros_like(value) for value in values]
    whole, constant = (
        apply_over_time(case[0], v, in_time, attributes, tensors, 4) for v in (values, zeros)
    )
    part = apply_over_time(case[0], values, in_time, attributes, tensors, 4, linear_part=True)
    torch.testing.assert_close(part, whole - constant, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c[2][0][:1] == (B,)], ids=name_of)
def test_an_empty_batch(case):
    for steps, in_time in product((1, 3), combinations(case)):
        values, attributes, tensors = arguments(case, steps, 0, in_time)
        assert_each_step_in_turn(case[0], values, in_time, attributes, tensors, 0)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def copies(case):
    """A product of two batches of matrices, or of an operand turned round, is on copies in torch;
    circular padding copies the image first."""
    op, (attributes, tensors), _ = case
    return (
        op == "einsum"
        or (op == "matmul" and len(tensors["weight"]) > 2)
        or attributes.get("mode") == "circular"
    )


@pytest.mark.parametrize("case", [c for c in CASES if not copies(c)], ids=name_of)
def test_a_contiguous_block_is_not_copied(case):
    for in_time in combinations(case):
        values, attributes, tensors = arguments(case, 3, 4, in_time)
        with Calls() as calls:
            apply_over_time(case[0], values, in_time, attributes, tensors, 4)
        assert not {"clone", "copy_", "contiguous", "_to_copy"} & set(calls.names), calls.names


@pytest.mark.parametrize("op", ["reshape", "expand", "permute", "slice"])
def test_what_only_moves_indices_is_a_view(op):
    for case in (case for case in CASES if case[0] == op):
        (value,), attributes, tensors = arguments(case, 3, 4, [True])
        out = apply_over_time(op, [value], [True], attributes, tensors, 4)
        assert out.untyped_storage().data_ptr() == value.untyped_storage().data_ptr(), case


def test_an_affine_operation_rounds_twice():
    """A fused multiply-add would keep 2^-46 of the product."""
    x, weight = torch.full((2, 3, 8), 1 + 2.0**-23), torch.full((8,), 1 - 2.0**-23)
    tensors, attributes = {"weight": weight, "bias": torch.full((8,), -1.0)}, {"shape": [3, 8]}
    out = apply_over_time("affine", [x], [True], attributes, tensors, 1)
    assert torch.equal(out, torch.zeros(2, 3, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    x, weight, bias = torch.randn(3, 2, 4, dtype=dtype), torch.randn(4, dtype=dtype), torch.ones(4)
    for tensors in ({"weight": weight, "bias": weight}, {"weight": weight, "bias": bias}):
        out = apply_over_time("affine", [x], [True], {"shape": [2, 4]}, tensors, 2)
        torch.testing.assert_close(out, x * weight + tensors["bias"], rtol=0, atol=0)


@pytest.mark.parametrize("op", LINEAR)
def test_one_compiled_graph_for_every_number_of_steps_and_samples(op):
    torch._dynamo.reset()
    case = next(case for case in CASES if case[0] == op and any(B in shape for shape in case[2]))
    in_time = [True] * len(case[2])
    compiles = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(apply_over_time, backend=compiles, fullgraph=True, dynamic=True)
    counts = []
    for steps, batch in [(13, 11), (17, 19), (7, 23)]:  # unlike the other sizes
        values, attributes, tensors = arguments(case, steps, batch, in_time)
        block = op, values, in_time, attributes, tensors, batch
        torch.testing.assert_close(compiled(*block), apply_over_time(*block))
        counts.append(compiles.frame_count)
    assert counts == counts[:1] * 3, "compiled anew for another shape"


# -- an operation added by a caller ---------------------------------------------------------------


class Cumulative(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).cumsum(-1))


@pytest.fixture
def cumulative(monkeypatch):
    """A row, and which ATen operation becomes it."""
    row = Operation(
        {"dim": integer},
        run=lambda x, a, w, batch, time: x[0].cumsum(a["dim"]),
        numpy=lambda x, a, w, batch: np.cumsum(x[0], a["dim"]),
    )
    monkeypatch.setitem(LINEAR, "cumsum", row)
    monkeypatch.setitem(
        HANDLERS,
        torch.ops.aten.cumsum,
        lambda low, x, dim: low.linear("cumsum", [x], low.shape(), None, dim=dim),
    )


@pytest.mark.spikingjelly
@pytest.mark.parametrize("method", ["signgd", "group"])
def test_an_operation_added_by_a_caller(cumulative, method, tmp_path):
    torch.manual_seed(0)
    model, x = Cumulative(), torch.randn(16, 4)
    network = sg.convert(model, x, method=method, time_steps=64, tune=False)
    assert "cumsum" in {node.op for node in network.of(Linear)}
    snn = sg.build(network)
    out = sg.run(snn, x, 64)[64]
    torch.testing.assert_close(out, model(x).detach(), atol=0.1, rtol=0)
    assert count_operations(snn, x).synaptic_events > 0
    sg.save(network, tmp_path / "network.h5")
    torch.testing.assert_close(sg.run(sg.build(sg.load(tmp_path / "network.h5")), x, 64)[64], out)
    runner = Runner(tmp_path / "network.h5")
    np.testing.assert_allclose(runner.run(x.numpy(), 64).outputs[64], out, atol=1e-3)


def test_an_operation_without_a_numpy_form_is_named(cumulative, tmp_path, monkeypatch):
    network = sg.convert(Cumulative(), torch.randn(16, 4))
    sg.save(network, tmp_path / "network.h5")
    monkeypatch.setitem(LINEAR, "cumsum", replace(LINEAR["cumsum"], numpy=None))
    with pytest.raises(sg.FormatError, match="'cumsum' has no NumPy form; give its row one"):
        Runner(tmp_path / "network.h5").run(np.zeros((1, 4), np.float32))
