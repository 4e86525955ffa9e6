"""The kernels' C sources and what surrounds them: functions, types, operators, compilation."""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from spikingjelly_signgd.errors import BackendUnavailable
from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ExponentialSchedule,
    GroupNeuronParameters,
    GrowthState,
    Nonlinearity,
    SignGDParameters,
    SignGDState,
    group_multi_step,
    growth_multi_step,
    running_sum,
    signgd_choice,
    signgd_multi_step,
)
from spikingjelly_signgd.neurons.kernels import arguments, build, cpu, launch
from spikingjelly_signgd.neurons.signgd import function_choice
from spikingjelly_signgd.neurons.surrogate import KINDS, Surrogate

SCHEDULE = ExponentialSchedule(0.5, 0.9)
OPERATORS = torch.ops.spikingjelly_signgd
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


# -- functions in C against torch -----------------------------------------------------------------

NEAR = [
    ("elu", {}),
    ("elu", {"alpha": 1.5, "scale": 1.2, "input_scale": 0.7}),
    ("selu", {}),
    ("celu", {"alpha": 0.3}),
    ("celu", {"alpha": 2.7}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("sigmoid_gelu", {}),
    ("silu", {}),
    ("mish", {}),
    ("softplus", {}),
    ("softplus", {"beta": 3.0, "threshold": 10.0}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("exp", {}),
    ("sqrt", {}),  # torch's on a CPU is MKL's, which is not rounded exactly
    ("divide_by_sqrt", {"floor": 0.1}),
]
EXACT = [
    ("identity", {}),
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {"negative_slope": 0.1}),
    ("hardswish", {}),
    ("hardsigmoid", {}),
    ("clamp", {"min": -0.3, "max": 1.7}),
    ("qcfs", {"v_threshold": 1.7, "levels": 5}),
    ("abs", {}),
    ("square", {}),
    ("rsqrt", {}),
    ("reciprocal", {}),
    ("prelu", {"weight": torch.tensor(0.3)}),
    ("maximum", {}),
    ("minimum", {}),
    ("mul", {}),
    ("div", {}),
    ("div", {"floor": 0.3}),
]
LIMIT = 4  # ulp, the exact value between the two
LIMITS = {"mish": 6, "gelu": 8}  # of these many operations; gelu's is from the exact value


def case_name(case) -> str:
    given = (f"{a.item():.1f}" if isinstance(a, Tensor) else str(a) for a in case[1].values())
    return "-".join([case[0], *given])


def finite(x: Tensor) -> Tensor:
    """As float64, infinity as 2^128, which is an ulp above the largest float32."""
    return x.double().clamp(-(2.0**128), 2.0**128)


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next larger float32, as float64."""
    size = x.abs().clamp(max=torch.finfo(torch.float32).max)
    return finite(size.nextafter(torch.full_like(size, torch.inf))) - size.double()


def unit(name: str, x: Tensor, f: Tensor) -> Tensor:
    """An ulp of f; of x / 2 for gelu, where 1 + erf or 1 + tanh cancels; where f is x times a
    factor that underflows, an ulp of the factor times x."""
    if name == "gelu":
        return ulp(x / 2)
    if name in ("sigmoid_gelu", "silu", "mish"):
        return ulp(f).maximum(x.abs().double() * 2.0**-149)
    return ulp(f)


def sweep(arity: int) -> tuple[Tensor, ...]:
    """Every 8191st float32, and closely those where functions bend. In pairs at random."""
    bits = torch.arange(-(2**31), 2**31, 8191).int()
    x = torch.cat([bits.view(torch.float32), torch.linspace(-120, 120, 2**18)])
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([x[~x.isnan()], torch.linspace(-1, 1, 2**17), odd])
    near = (torch.randn(2**18) * 2, torch.randn(2**18) * 2)
    others = (torch.cat([x[torch.randperm(len(x))], near[k]]) for k in range(arity))
    return (x,) if arity == 1 else tuple(others)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(case, x): f by each instruction set that this machine has, compiled as the package
    compiles them, and for this machine alone as a user's row is."""
    folder = tmp_path_factory.mktemp("functions")
    rows = {case_name(case): NONLINEARITIES[case[0]].in_c(case[1]) for case in NEAR + EXACT}
    keys = list(dict.fromkeys(row.key for row in rows.values() if row is not None))
    face = 'extern "C" __attribute__((visibility("default"))) '
    code = ['#include "functions.cuh"', build.rows_source(map(build.Function.from_key, keys))]
    code += [
        f"{face}void f{i}(const float *x, const float *p, float *out, long long n) {{\n"
        f"  for (long long j = 0; j < n; ++j)\n"
        f"    out[j] = Row{i}::of(x + j * Row{i}::arguments, p);\n}}"
        for i in range(len(keys))
    ]
    sets = (*build.SETS_X86, build.SET_ANY, ("native", ("-march=native",), "true"))
    if build.platform.machine() not in ("x86_64", "AMD64"):
        sets = sets[-2:]
    code += [f"{face}int has_{name}() {{ return {test}; }}" for name, _, test in sets]
    source = folder / "functions.cpp"
    source.write_text("\n".join(code) + "\n")
    libraries = {}
    for name, flags, _ in reversed(sets):
        path = folder / f"{name}.so"
        command = [*(build.compiler() or ()), *build.FLAGS, *flags, f"-I{build.HERE}", str(source)]
        subprocess.run([*command, "-shared", "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
        if getattr(libraries.get("any", library), f"has_{name}")():
            libraries[name] = library

    def run(case, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
        row = rows[case_name(case)]
        assert row is not None
        numbers = (ctypes.c_float * 8)(*row.numbers)
        beside = torch.stack([*x, *(a.expand_as(x[0]) for a in row.tensors)], 1)
        found = {}
        for name, library in libraries.items():
            out = torch.empty(len(beside))
            pointers = [ctypes.c_void_p(a.data_ptr()) for a in (beside, out)]
            function = getattr(library, f"f{keys.index(row.key)}")
            function(pointers[0], numbers, pointers[1], ctypes.c_longlong(len(beside)))
            found[name] = out
        return found

    return run


@needs_compiler
@pytest.mark.parametrize("case", NEAR + EXACT, ids=case_name)
def test_functions_are_torchs_within_a_few_ulp(compiled, case):
    """The same number from every instruction set; exactly torch's where each operation rounds."""
    name, given = case
    args = sweep(NONLINEARITIES[name].arity)
    if case == ("gelu", {}):  # beyond, torch's x (1 + erf) overflows before it is halved
        args = (args[0][args[0].abs() < 1e38],)
    x = args[0]
    found = compiled(case, args)
    f = NONLINEARITIES[name](*args, **given)
    got = found.pop("any")
    assert found, "only one set of instructions"
    for other, values in found.items():
        same = (values.view(torch.int32) == got.view(torch.int32)) | (values.isnan() & got.isnan())
        assert bool(same.all()), f"{other} differs at {x[~same][:5].tolist()}"
    assert torch.equal(got.isnan(), f.isnan()), f"NaN at {x[got.isnan() != f.isnan()][:5].tolist()}"
    if case in EXACT:
        assert torch.equal(got.nan_to_num(7.0), f.nan_to_num(7.0))
        return
    limit = LIMITS.get(case_name(case), LIMIT)
    if case == ("gelu", {}):  # torch's own on a CPU is 10 of these off the exact value
        f = NONLINEARITIES[name](x.double())
    number = ~got.isnan()
    x, got, f = x[number], got[number], f[number]
    error = (finite(got) - finite(f)).abs() / unit(name, x, got)
    worst = int(error.argmax())
    assert float(error[worst]) <= limit, f"{float(error[worst]):.1f} ulp at {float(x[worst])!r}"


def test_the_builder_reads_the_table_as_python_does():
    """Built without importing the package, the library has every row, with each of its words."""
    keys = {function.key for function in build.table_functions()}
    for name, row in NONLINEARITIES.items():
        if not row.code:
            assert row.in_c({}) is None
            continue
        tensors = {k: torch.zeros(1) for k, default in row.parameters.items() if default is None}
        words = [v for v in row.parameters.values() if isinstance(v, tuple)]
        for word in words[0] if words else (None,):
            choice = {"approximate": word} if word else {}
            found = row.in_c(tensors | choice)
            assert found is not None and found.key in keys, name
            assert found.key in cpu.library().kernels, f"{name} is not in the library: build again"
            again = build.Function.from_key(found.key)
            assert again.key == found.key
            assert len(again.arguments) == row.arity + len(tensors)
            assert len(again.parameters) == len(found.numbers)


def test_an_argument_that_the_code_does_not_take_leaves_f_to_torch():
    gelu, clamp = NONLINEARITIES["gelu"], NONLINEARITIES["clamp"]
    assert gelu.in_c({"approximate": "quick"}) is None
    assert gelu.in_c({"inplace": True}) is None
    assert clamp.in_c({"min": torch.zeros(3)}) is None
    assert NONLINEARITIES["prelu"].in_c({}) is None
    none, number = clamp.in_c({"min": None}), clamp.in_c({"min": 1})
    assert none is not None and none.numbers == (-torch.inf, torch.inf)
    assert number is not None and number.numbers == (1.0, torch.inf)


# -- types in memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_number_is_read_exactly(dtype):
    """All 65536 patterns, subnormal and infinite too, in order and with a stride."""
    x = torch.arange(-(2**15), 2**15).short().view(dtype)
    expected = x.float()
    for seen in (x, torch.stack([x, x], 1)[:, 0]):
        got = running_sum(seen[None], torch.full((2**16,), -0.0), "cpu")[0]
        assert torch.equal(got.isnan(), expected.isnan())
        same = got.view(torch.int32) == expected.view(torch.int32)
        assert bool((same | got.isnan()).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_outputs_are_rounded_to_nearest_even(dtype):
    """The signed output is + or - the scale: numbers over the whole range, and every tie."""
    halves = torch.arange(1, 2**15).short().view(dtype).float()
    halves = halves[halves < torch.inf]
    between = ((halves[1:].double() + halves[:-1].double()) / 2).float()
    near = [x.nextafter(torch.tensor(y)) for x in (halves, between) for y in (0.0, torch.inf)]
    some = torch.arange(1, 0x7F800001, 4099).int().view(torch.float32)
    size = torch.cat([halves, between, *near, some])
    size = size[size > 0]
    p = SignGDParameters(NONLINEARITIES["identity"], ExponentialSchedule(1.0, 1.0), scale=size)
    for target, sign in ((1.0, 1.0), (-1.0, -1.0)):
        x = torch.full((1, size.numel()), target)
        state = SignGDState(torch.zeros(size.numel()))
        got = signgd_multi_step((x,), state, p, output="signed", dtype=dtype, backend="cpu")
        expected = (size * sign).to(dtype)
        assert torch.equal(got.y[0].view(torch.int16), expected.view(torch.int16))
    state = SignGDState(torch.full((5,), torch.nan))
    p = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE)
    assert bool(signgd_multi_step((torch.zeros(1, 5).to(dtype),), state, p).y.isnan().all())


# -- operators ------------------------------------------------------------------------------------


def operator_arguments(layout: str):
    """Name, arguments, and which of them want a gradient, for every operator."""

    def drawn(*shape: int) -> Tensor:
        x = torch.randn(shape)
        if layout == "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] if layout == "strided" else x

    x, y, v, scale = drawn(5, 3, 4), drawn(5, 3, 4), drawn(3, 4), torch.rand(3, 1)
    schedule = SignGDParameters(NONLINEARITIES["mul"], SCHEDULE).schedule_name
    product = NONLINEARITIES["mul"].in_c({})
    assert product is not None
    key, text = product.key, "sigmoid"
    for zone, theta in ((None, 0.0), (None, 0.6), (scale / 2, 0.0)):
        yield (
            "signgd",
            (
                *([x, y], [v, v.clone()], v, scale, zone, theta, key, [], True, 1, schedule, 0.5),
                *(2, "signed", torch.bfloat16, True, True),
            ),
        )
    for members in (1, 3):
        yield (
            "signgd",
            (
                *([x, y[:, :1]], [], v, None, None, 0.0, key, [], False, members),
                *(schedule, 1.0, 0),
                *("decoded", torch.float32, False, members > 1),
            ),
        )
    yield "group", (x, v, None, None, 3, 0.4, True, torch.int8, True)
    yield "group", (x.half(), v, None, None, 3, 0.4, False, torch.float32, False)
    thetas = torch.rand(4) + 0.1
    yield "group", (x, v, torch.zeros_like(v), thetas, 3, 0.0, True, torch.int8, True)
    yield "group", (x, v, torch.zeros_like(v), None, 3, 0.4, False, torch.float32, False)
    yield "group", (x, v, None, thetas, 3, 0.0, False, torch.float32, True)
    wants = x.clone().requires_grad_(), v.clone().requires_grad_()
    yield "group_train", (*wants, 3, 0.4, text, 4.0, False)
    yield "group_gradient", (x, v, y, 3, 0.4, text, 4.0, True)
    for zone, theta in ((None, 0.0), (None, 0.6), (scale / 2, 0.0)):
        of, after = (zone, theta), (schedule, 1.0, 0)
        yield "track", (*wants, scale, *of, True, *after, False, text, 4.0)
        yield "track", (*wants, None, *of, True, *after, True, text, 4.0)
        yield "track_gradient", (x, v, y, y, v, scale, *of, *after, True, text, 4.0)
    yield "running_sum", wants


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_operators_are_what_torch_compile_takes_them_for(layout):
    """Schema, shapes, strides and types without data, registered gradient, dynamic sizes."""
    seen = set()
    for name, operands in operator_arguments(layout):
        torch.library.opcheck(getattr(OPERATORS, name).default, operands)
        seen.add(name)
    own = {name for name in dir(OPERATORS) if not name.startswith("_")} - {"name", "qcfs"}
    assert seen >= own - {"get_qualified_name"}, own - seen


def test_an_operator_without_neurons_makes_empty_tensors():
    x, v = torch.zeros(5, 0, 3), torch.zeros(0, 3)
    x.requires_grad_()
    p = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE)
    for done in (
        group_multi_step(x, v, GroupNeuronParameters(2), surrogate=Surrogate()),
        signgd_multi_step((x,), SignGDState(v), p, surrogate=Surrogate()),
    ):
        assert done.y.shape == x.shape
        (grad,) = torch.autograd.grad(done.y.sum(), x)
        assert grad.shape == x.shape


GELU = SignGDParameters(NONLINEARITIES["gelu"], SCHEDULE, scale=torch.rand(6) + 0.5)
THREE = SignGDParameters(NONLINEARITIES["gelu"], SCHEDULE, scale=torch.rand(6) + 0.5, members=3)
SPARSE = replace(THREE, dead_zone=torch.arange(6) / 8)
ONE_SPARSE = replace(GELU, dead_zone=2 / 3)
GROUP = GroupNeuronParameters(3)
SIGNED = GroupNeuronParameters(3, torch.rand(6) + 0.5, torch.rand(6), signed=True)


def inference(x, v, t):
    done = signgd_multi_step(
        (x * 2,), SignGDState(v, t), GELU, output="signed", keep_v=True, keep_spikes=True
    )
    return done.y, done.state.v, done.v_seq, done.spike_seq


def spike_view(x, v, t):
    done = signgd_multi_step((x * 2,), SignGDState(v, t), GELU, x=(v,))
    return done.y, done.state.v, *done.x


def several_signs(x, v, t):
    done = signgd_multi_step(
        (x * 2,), SignGDState(v, t), THREE, x=(v,), keep_v=True, keep_spikes=True
    )
    return done.y, done.state.v, done.v_seq, done.spike_seq, *done.x


def dead_zones(x, v, t):
    done = signgd_multi_step(
        (x * 2,), SignGDState(v, t), SPARSE, x=(v,), keep_v=True, keep_spikes=True
    )
    return done.y, done.state.v, done.v_seq, done.spike_seq, *done.x


def dead_zone_training(x, v, t):
    done = signgd_multi_step((x * 2,), SignGDState(v, t), ONE_SPARSE, surrogate=Surrogate())
    return done.y, done.state.v


def signed_groups(x, v, t):
    done = group_multi_step(x * 2, v, SIGNED, sent=torch.zeros_like(v), keep_v=True)
    return done.y, done.v, done.v_seq, done.sent


def growth(x, v, t):
    start = GrowthState((v, v * 2), torch.maximum(v, v * 2))
    done = growth_multi_step((x, x.flip(0)), start, NONLINEARITIES["maximum"])
    return done.y, done.state.last, *done.state.totals


def groups(x, v, t):
    done = group_multi_step(x * 2, v, GROUP, keep_v=True)
    return done.y, done.v, done.v_seq, running_sum(x * 2, v)


def training(x, v, t):
    done = signgd_multi_step((x * 2,), SignGDState(v, t), GELU, surrogate=Surrogate())
    return done.y, done.state.v


def spike_view_training(x, v, t):
    done = signgd_multi_step(
        (x * 2,), SignGDState(v, t), GELU, x=(v,), output="signed", surrogate=Surrogate()
    )
    return done.y, done.state.v, *done.x


def group_training(x, v, t):
    done = group_multi_step(x * 2, v, GROUP, surrogate=Surrogate("atan"))
    return done.y, done.v


@pytest.mark.parametrize(
    "function",
    [
        *(inference, spike_view, several_signs, dead_zones, groups, signed_groups, growth),
        *(training, spike_view_training, dead_zone_training, group_training),
    ],
    ids=lambda f: f.__name__,
)
def test_one_graph_serves_every_number_of_steps(function):
    """torch.compile, whole graph: T, batch and t of the state change, one compilation more."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    trains = function.__name__.endswith("training")
    for steps, batch, t in ((5, 3, 0), (7, 4, 5), (9, 2, 12), (300, 6, 3)):
        leaves = [torch.randn(steps, batch, 6), torch.randn(batch, 6)]
        for leaf in leaves:
            leaf.requires_grad_(trains)
        found = [run(*leaves, t) for run in (compiled, function)]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
        if trains:
            grads = [torch.autograd.grad(sum(a.sum() for a in y), leaves) for y in found]
            torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2
    torch._dynamo.reset()


# -- building -------------------------------------------------------------------------------------


def own_row(code: str, function=torch.square, **parameters) -> Nonlinearity:
    return Nonlinearity("own", function, code=code, parameters=parameters)


@pytest.fixture
def cache_folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spikingjelly_signgd"


def run_row(row, backend="auto", **given):
    torch.manual_seed(0)
    p = SignGDParameters(row, SCHEDULE, arguments=given)
    x_seq = tuple(torch.randn(7, 3, 5) for _ in range(row.arity))
    state = SignGDState(torch.randn(3, 5))
    done = signgd_multi_step(x_seq, state, p, backend=backend, keep_spikes=True)
    return done, signgd_multi_step(x_seq, state, p, backend="torch", keep_spikes=True), p


@needs_compiler
def test_a_users_function_is_compiled_once_and_kept(cache_folder, monkeypatch):
    """In the kernel, both views, with number and tensor parameters, equal to its definition."""

    def bent(x, y, slope=0.5, *, edge):
        return torch.where(x < edge, slope * x, y.abs())

    row = Nonlinearity(
        "bent",
        bent,
        arity=2,
        code="x < edge ? slope * x : fabsf(y)",
        parameters={"edge": None, "slope": 0.5},
    )
    edge = torch.randn(5)
    got, expected, p = run_row(row, "cpu", edge=edge, slope=0.25)
    assert function_choice("cpu", torch.zeros(1), p) == ("cpu", "")
    assert torch.equal(got.y, expected.y) and torch.equal(got.spike_seq, expected.spike_seq)
    (library,) = cache_folder.iterdir()
    assert library.suffix == ".so"
    # another process finds it: nothing is compiled again
    cpu.library_for.cache_clear()
    monkeypatch.setattr(cpu, "build", lambda *_, **__: pytest.fail("compiled again"))
    again, _, _ = run_row(row, "cpu", edge=edge, slope=0.25)
    assert torch.equal(again.y, expected.y)


@needs_compiler
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_code_that_does_not_compile_is_the_users_to_fix(cache_folder, backend):
    row = own_row("squared(x)")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"(?s)'squared\(x\)' does not compile. Fix"):
            run_row(row, backend)
    with pytest.raises(BackendUnavailable, match="squared.* was not declared|undeclared"):
        function_choice(backend, torch.zeros(1), SignGDParameters(row, SCHEDULE))
    assert not list(cache_folder.glob("*.so"))
    run_row(row, "torch")
    for code in ('x + "1"', "x; }", "x \\", "x\n"):
        with pytest.raises(ValueError, match="one expression without quotes, braces"):
            build.Function(code, ("x",))


@pytest.mark.parametrize("how", ["CXX", "PATH"])
def test_without_a_compiler_torch_computes_f_and_says_so(cache_folder, monkeypatch, tmp_path, how):
    if how == "CXX":
        monkeypatch.setenv("CXX", "/nonexistent/c++ -m64")
    else:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    fix = r"install g\+\+ or clang\+\+, or set CXX"
    with pytest.raises(build.NoCompiler, match=fix):
        build.build(tmp_path / "library.so", [])
    row = own_row("x * x + 0.0f * x")
    got, expected, p = run_row(row, "auto")
    assert torch.equal(got.y, expected.y) and torch.equal(got.spike_seq, expected.spike_seq)
    choice = function_choice("auto", torch.zeros(1), p)
    assert choice.backend == "torch" and re.search(fix, choice.reason)
    assert signgd_choice("auto", torch.zeros(1), p) == ("cpu", "")
    with pytest.raises(BackendUnavailable, match=f"backend='cpu'.*{fix}"):
        run_row(row, "cpu")
    relu, expected, _ = run_row(NONLINEARITIES["relu"], "cpu")  # from the package's library
    assert torch.equal(relu.y, expected.y)


def test_a_cache_folder_that_cannot_be_written_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = cpu._cache_folder()
    assert os.access(folder, os.W_OK) and tmp_path not in folder.parents


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setitem(cpu._STRUCTURES, "group", arguments.Sum)
    with pytest.raises(BackendUnavailable, match="other sources.*of 'group' have .* again with"):
        cpu.Library(build.LIBRARY)


@needs_compiler
def test_a_library_of_an_earlier_version_is_refused(monkeypatch, tmp_path):
    """Of kernels that were changed since, and one from before libraries told their sources."""
    monkeypatch.setattr(cpu, "sources", lambda: "0" * 32)
    with pytest.raises(BackendUnavailable, match="other sources.*, not 00000000. Build it again"):
        cpu.Library(build.LIBRARY)
    empty = tmp_path / "_cpu.so"
    command = [*(build.compiler() or []), "-shared", "-x", "c++", "/dev/null", "-o", str(empty)]
    subprocess.run(command, check=True)
    with pytest.raises(BackendUnavailable, match="other sources.*digest none, not"):
        cpu.Library(empty)


def test_a_change_of_any_source_is_seen(monkeypatch, tmp_path):
    for path in (*build.HERE.glob("*.cuh"), *build.HERE.glob("*.cpp"), *build.HERE.glob("*.h")):
        shutil.copy(path, tmp_path)
    shutil.copy(build.__file__, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    seen = {build.sources()}
    for name in ("group.cuh", "cpu.h", "dispatch.cpp", "build.py"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        seen.add(build.sources())
    assert len(seen) == 5


OWN_THREADS = """
import ctypes, sys
path, arguments, offsets, neurons, steps = sys.argv[1], *map(eval, sys.argv[2:])
library = ctypes.CDLL(path)
library.kernel_name.restype = ctypes.c_char_p
(kernel,) = (i for i in range(library.kernel_count()) if library.kernel_name(i) == b"sum")
assert not hasattr(ctypes.CDLL(None), "GOMP_parallel")
x = (ctypes.c_float * (steps * neurons))(*range(steps * neurons))
start, y = (ctypes.c_float * neurons)(), (ctypes.c_float * (steps * neurons))()
structure = ctypes.create_string_buffer(arguments)
for offset, array in zip(offsets, (x, start, y)):
    ctypes.c_void_p.from_buffer(structure, offset).value = ctypes.addressof(array)
for threads in (1, 2, 3, 8):
    ctypes.memset(y, 0, ctypes.sizeof(y))
    library.kernel_run(kernel, structure, ctypes.c_longlong(neurons), threads)
    assert y[:neurons] == x[:neurons] and y[-1] == x[-1] + x[neurons - 1], threads
    assert y[neurons:] == [a + b for a, b in zip(x[:neurons], x[neurons:])], threads
"""


def test_without_openmp_the_library_has_threads_of_its_own():
    """In a process without torch, whose threads it otherwise borrows."""
    neurons, steps = 3 * 4096 + 17, 2
    x, v = torch.zeros(steps, neurons), torch.zeros(neurons)
    space, found = arguments.describe(v, [(x, True), (v, False)])
    whole = bytes(arguments.Sum(space, *found, None, steps, 0))
    inside = arguments.Operand.data.offset
    offsets = [arguments.Sum.x.offset + inside, arguments.Sum.start.offset + inside]
    offsets.append(arguments.Sum.y.offset)
    values = [str(build.LIBRARY), *map(repr, (whole, offsets, neurons, steps))]
    subprocess.run([sys.executable, "-c", OWN_THREADS, *values], check=True)


def test_more_than_a_kernel_takes_is_left_to_torch():
    x, v = torch.zeros(2, 3), torch.zeros(3)
    tensors = {f"w{i}": None for i in range(4)}
    row = own_row("x + w0 + w1 + w2 + w3", lambda x, **w: x + sum(w.values()), **tensors)
    p = SignGDParameters(row, SCHEDULE, arguments={name: torch.ones(3) for name in tensors})
    expected = signgd_multi_step((x,), SignGDState(v), p, backend="torch")
    assert torch.equal(signgd_multi_step((x,), SignGDState(v), p).y, expected.y)


# -- memory and undefined behaviour ---------------------------------------------------------------


# nothing is far, inputs are fetched ahead, outputs are written past the caches
FAR = ((2**40, 2**40), (1, 2**40), (1, 1))


def drive(library: Path, fault: str = "") -> None:
    """Every kernel on odd sizes, layouts and types, by 1 to 3 threads; beside the definitions."""
    own: Any = cpu.Library(library)
    replaced: list[Any] = [cpu, launch]
    replaced[0].library = lambda: own
    if fault == "overrun":
        run = own._run
        own._run = lambda i, a, neurons, threads: run(i, a, neurons + 64, threads)
    assert launch.FAR
    row, prelu = NONLINEARITIES["mul"], NONLINEARITIES["prelu"]
    for size, threads, dtype in itertools.product(
        ((1,), (3, 5), (2, 4097)), (1, 3), (torch.float32, torch.bfloat16)
    ):
        replaced[0]._threads = lambda _, n=threads: n  # however little there is to do
        steps = 300 if len(size) == 1 else 3
        wide = torch.randn(steps, *size[:-1], 2 * size[-1] + 1).to(dtype)
        dense = wide[..., : size[-1]].contiguous()
        v, channel = torch.randn(size), torch.rand(size[-1]) + 0.5
        exact = dtype == torch.float32
        for x, replaced[1].FAR in itertools.product(
            (dense, wide[..., 1::2], wide[:1, ..., 1::2].expand_as(dense)), FAR
        ):
            for start, output in itertools.product((None, (v, v)), ("decoded", "signed")):
                p = SignGDParameters(row, SCHEDULE, scale=channel)
                args, state = (x, x[:, :1] if start is None else x), SignGDState(v)
                for keep in (False, True):
                    options: dict[str, Any] = {"x": start, "output": output}
                    options |= {"keep_v": keep, "keep_spikes": keep}
                    done = signgd_multi_step(args, state, p, backend="cpu", **options)
                    if exact and steps < 300:
                        again = signgd_multi_step(args, state, p, backend="torch", **options)
                        assert torch.equal(done.y, again.y)
            for name in ("relu", "gelu", "qcfs", "prelu"):
                given: dict[str, Any] = {"weight": channel} if name == "prelu" else {}
                q = SignGDParameters(NONLINEARITIES[name], SCHEDULE, 0.5, 0.0, given)
                signgd_multi_step((x,), SignGDState(v), q, backend="cpu", dtype=torch.float16)
            zones: tuple[Any, ...] = (2 / 3, channel - 0.5)
            for members, zone in itertools.product((1, 8), zones):
                q = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE, 0.5, members=members)
                q = replace(q, dead_zone=zone)
                for keep in (False, True):
                    signgd_multi_step((x,), SignGDState(v), q, backend="cpu", keep_spikes=keep)
            for members in (1, 5):
                g = GroupNeuronParameters(members, 1.3)
                group_multi_step(x, v, g, backend="cpu")
                group_multi_step(x, v, g, counts=True, dtype=torch.int8, backend="cpu", keep_v=True)
            running_sum(x, v, "cpu")
            leaves = [x.clone().requires_grad_(), v.clone().requires_grad_()]
            for kind in KINDS:
                surrogate = Surrogate(kind)
                y = group_multi_step(leaves[0], leaves[1], g, surrogate=surrogate).y
                q = SignGDParameters(prelu, SCHEDULE, channel, 0.0, {"weight": channel})
                state = SignGDState(leaves[1])
                for output in ("decoded", "signed"):
                    z = signgd_multi_step(
                        leaves[:1], state, q, output=output, surrogate=surrogate
                    ).y
                    torch.autograd.grad(y.sum() + z.sum(), leaves, retain_graph=True)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> tuple[Path, str]:
    """The kernels compiled to stop at the first error, and what is to be loaded before Python."""
    runtimes = []
    for name in ("libasan.so", "libstdc++.so.6"):  # the second, so that the first finds its throw
        command = [*(build.compiler() or ["false"]), f"-print-file-name={name}"]
        runtimes.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    if not all(os.path.isabs(runtime) for runtime in runtimes):
        pytest.skip("the compiler has no libasan.so")
    rows = [NONLINEARITIES[name].in_c({}) for name in ("mul", "relu", "gelu", "qcfs")]
    rows.append(NONLINEARITIES["prelu"].in_c({"weight": torch.zeros(1)}))
    path = tmp_path_factory.mktemp("sanitized") / "kernels.so"
    build.build(
        path,
        [build.Function.from_key(row.key) for row in rows if row is not None],
        native=True,
        extra=("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    )
    return path, " ".join(runtimes)


@needs_compiler
@pytest.mark.parametrize("fault", [pytest.param("", marks=pytest.mark.slow), "overrun"])
def test_no_kernel_reads_or_writes_beside_its_tensors(sanitized, fault):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, which do find an overrun."""
    path, runtimes = sanitized
    environment = os.environ | {"LD_PRELOAD": runtimes, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, __file__, str(path), fault],
        env=environment,
        capture_output=True,
        text=True,
    )
    if fault:
        assert done.returncode != 0 and "ERROR: AddressSanitizer" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2])
