"""The GPU path without a GPU: NVRTC compiles its sources, g++ runs them thread by thread.

NVRTC is the wheel nvidia-cuda-nvrtc, which needs no driver. For the rest see cuda_on_host.py.
"""

import ctypes
import functools
import importlib.util
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import cuda_on_host
import pytest
import torch
from cuda_on_host import gpu_on_host
from gpu_checks import CHECKS, EXACT, NEAR, Place, Skipped

from spikingjelly_signgd.errors import BackendUnavailable
from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ConstantSchedule,
    GroupNeuronParameters,
    Nonlinearity,
    SignGDParameters,
    SignGDState,
    group_multi_step,
    signgd_multi_step,
)
from spikingjelly_signgd.neurons.kernels import arguments, build, gpu, launch
from spikingjelly_signgd.neurons.surrogate import KINDS

ROOT = Path(__file__).parent.parent
needs_nvrtc = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC is a wheel for Linux")
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
ROWS = {function.key: function for function in build.table_functions()}
RELU = build.Function("at_least(x, 0.0f)", ("x",))
GELU = build.Function("gelu_none(x)", ("x",))
KERNELS = {**{name: name for name in gpu._KERNELS}, **ROWS}
FEW = ["group", "group_gradient", "tracking_gradient", "sum", RELU.key, GELU.key]
PLAIN = gpu.constants(arguments.SignGD(fires_at_tie=1, signs=1))
EVERYTHING = PLAIN | {
    **{"OUTPUT": 1, "TIE": 0, "COUNTS": 1, "DETACH_RESET": 1, "SIGNED_OUTPUT": 1},
    **{"KEEP_H": 1, "KEEP_V": 1, "KEEP_SPIKES": 1, "SCALED": 1, "INTEGRATED": 1},
}
SEVERAL = EVERYTHING | {"MEMBERS": 8, "KEEP_H": 0, "BY_CHANNEL": 1, "TAKES_BACK": 1}


# -- compiled by NVRTC ----------------------------------------------------------------------------


@functools.cache
def nvrtc() -> ctypes.CDLL:
    found = importlib.util.find_spec("nvidia")
    places = [] if found is None else list(found.submodule_search_locations or [])
    libraries = [path for place in places for path in Path(place).glob("*/lib/libnvrtc.so.*")]
    assert libraries, "pip install nvidia-cuda-nvrtc, as `make test` does"
    return ctypes.CDLL(str(sorted(libraries)[-1]))


def compiled(kernel, constants, architecture: int) -> tuple[str, str]:
    """PTX and the log, with what ptxas says. The options are CuPy's beside our own."""
    library, program = nvrtc(), ctypes.c_void_p()
    text = gpu.source(kernel, constants).encode()
    options = [*gpu.OPTIONS, f"-arch=sm_{architecture}", "--device-as-default-execution-space"]
    options += ["--ptxas-options=-v"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    assert not library.nvrtcCreateProgram(ctypes.byref(program), text, b"", 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(options), encoded)
    log = _text(library, program, "ProgramLog")
    assert not failed, log
    ptx = _text(library, program, "PTX")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    assert not getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    assert not getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def assert_sound(ptx: str, log: str) -> None:
    assert ".visible .entry run(" in ptx
    for word in ("fma", ".ftz", ".approx", ".f64"):  # each would round unlike the definition
        assert word not in ptx, word
    assert ".local" not in ptx, "an array of one lane, or the arguments, in memory"
    assert re.findall(r"ld\.global(?!\.nc)\S*", ptx) == [], "a load that waits for stores"
    assert "warning" not in log, log
    assert ptx.count("ld.global.nc") >= 4, "no loads of several steps at once"


def resources(log: str) -> tuple[int, int]:
    """Bytes of stack and spills, and registers."""
    bytes_ = re.findall(r"(\d+) bytes (?:stack frame|spill)", log)
    (registers,) = re.findall(r"Used (\d+) registers", log)
    return sum(map(int, bytes_)), int(registers)


@needs_nvrtc
@pytest.mark.parametrize("constants", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_compiles(name, constants):
    assert_sound(*compiled(KERNELS[name], constants, 90))


@needs_nvrtc
@pytest.mark.parametrize("name", FEW)
def test_kernels_of_several_signs_and_signed_groups_compile(name):
    assert_sound(*compiled(KERNELS[name], SEVERAL, 90))
    for some in ({"MEMBERS": 2}, {"BY_CHANNEL": 1}, {"TAKES_BACK": 1}):
        assert_sound(*compiled(KERNELS[name], PLAIN | some, 75))


@needs_nvrtc
@pytest.mark.parametrize("name", [RELU.key, "tracking_gradient"])
def test_kernels_of_dead_zones_compile(name):
    assert_sound(*compiled(KERNELS[name], EVERYTHING | {"SPARSE": 2, "MEMBERS": 8}, 90))
    for some in ({"SPARSE": 1}, {"SPARSE": 1, "MEMBERS": 12, "SCALED": 1}):
        assert_sound(*compiled(KERNELS[name], PLAIN | some, 75))
    stack, registers = resources(compiled(KERNELS[name], PLAIN | {"SPARSE": 1}, 90)[1])
    assert stack == 0 and registers * 2048 <= 65536


@needs_nvrtc
@pytest.mark.parametrize("name", FEW)
def test_kernels_compile_for_every_architecture(name):
    count = ctypes.c_int()
    nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc().nvrtcGetSupportedArchs(known)
    for architecture in sorted({75, 80, 86, 89, 90, 100, max(known)}):
        assert_sound(*compiled(KERNELS[name], PLAIN, architecture))


@needs_nvrtc
@pytest.mark.parametrize("name", [RELU.key, "group"])
def test_kernels_compile_for_every_type(name):
    for source, target in product(range(3), range(4)):
        types = {"INPUT_TYPE": source, "OUTPUT_TYPE": target}
        assert_sound(*compiled(KERNELS[name], PLAIN | types, 75))


@needs_nvrtc
@pytest.mark.parametrize("name", ["group_gradient", "tracking_gradient"])
def test_gradients_compile_for_every_surrogate(name):
    for surrogate in range(len(KINDS)):
        assert_sound(*compiled(name, PLAIN | {"SURROGATE": surrogate}, 90))


@needs_nvrtc
@pytest.mark.parametrize("name", [RELU.key, GELU.key, "group", "sum"])
@pytest.mark.parametrize("several", [{}, {"MEMBERS": 4, "BY_CHANNEL": 1, "TAKES_BACK": 1}])
def test_all_threads_of_a_multiprocessor_find_registers(name, several):
    stack, registers = resources(compiled(KERNELS[name], PLAIN | several, 90)[1])
    assert stack == 0
    assert registers * 2048 <= 65536


# -- run by g++ -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    os.environ["CUDA_ON_HOST_CACHE"] = str(tmp_path_factory.mktemp("kernels"))
    with gpu_on_host(stream=1234):
        yield
    del os.environ["CUDA_ON_HOST_CACHE"]
    torch.set_num_threads(threads)


def test_every_row_with_code_is_checked():
    checked = set()
    for name, given in (*EXACT, *NEAR):
        found = NONLINEARITIES[name].in_c(given)
        assert found is not None, name
        checked.add(found.key)
    assert checked == set(ROWS)


@needs_compiler
@pytest.mark.parametrize("name", CHECKS)
def test_kernels_for_gpus_are_the_definition(name, on_host):
    try:
        CHECKS[name](Place(torch.device("cpu")))
    except Skipped as reason:
        pytest.skip(str(reason))


@needs_compiler
def test_the_checks_fail_for_a_kernel_that_is_off_by_a_rounding(monkeypatch):
    source = gpu.source

    def off(name, constants):
        text = source(name, constants)
        return text.replace("h = v[i] + x[i]", "h = v[i] + x[i] * 1.0000001f")

    monkeypatch.setattr(gpu, "source", off)
    with gpu_on_host(), pytest.raises(AssertionError, match="values differ"):
        CHECKS["group m = 3"](Place(torch.device("cpu")))


@needs_compiler
def test_a_launch_covers_all_neurons_on_torchs_stream(on_host):
    cuda_on_host.launched.clear()
    p = SignGDParameters(NONLINEARITIES["relu"], ConstantSchedule(0.125))
    signgd_multi_step([torch.randn(600, 1003)], SignGDState(torch.zeros(1003)), p)
    assert cuda_on_host.launched == [(4, gpu.BLOCK, 1234)] * 3  # of 256 steps each
    group_multi_step(torch.randn(4, 0), torch.zeros(0), GroupNeuronParameters(2))
    assert len(cuda_on_host.launched) == 3


@needs_compiler
def test_a_kernel_is_compiled_once_for_what_it_is_used_for(on_host):
    gpu._kernel.cache_clear()
    p = GroupNeuronParameters(2)
    for members in (1, 2, 3):
        for size in (5, 7):
            group_multi_step(
                torch.randn(4, size), torch.zeros(size), GroupNeuronParameters(members)
            )
    assert gpu._kernel.cache_info().misses == 1
    group_multi_step(torch.randn(4, 5), torch.zeros(5), p, keep_v=True)
    group_multi_step(torch.randn(4, 5).half(), torch.zeros(5), p)
    assert gpu._kernel.cache_info().misses == 3


@needs_compiler
def test_a_row_that_does_not_compile_names_its_code_and_the_log_once(on_host):
    row = Nonlinearity("mine", torch.relu, code="at_least(x, lowest_of_all)")
    p = SignGDParameters(row, ConstantSchedule(0.125))
    with pytest.raises(BackendUnavailable) as caught:
        signgd_multi_step([torch.randn(4, 5)], SignGDState(torch.zeros(5)), p)
    message = str(caught.value)
    assert "'at_least(x, lowest_of_all)' does not compile. Fix the row's code" in message
    assert message.count("error: ") == 1 and "lowest_of_all" in message.split("says:")[1]
    assert caught.value.__suppress_context__


@pytest.mark.slow
@needs_compiler
def test_memory_and_arithmetic_are_sound():
    """Every kernel once with the sanitizers of g++, which end the process."""
    command = build.compiler()
    libraries = [
        subprocess.run(
            [*command, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(path) for path in libraries):
        pytest.skip("the compiler has no sanitizers")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "CUDA_ON_HOST_FLAGS": "-O0 -fsanitize=address,undefined -fno-sanitize-recover=all",
    }
    checks = [
        "mul",
        "layouts",
        "sums",
        "m = 3",
        "dead zones m = 4",
        "group, atan",
        "signGD, straight_through",
    ]
    done = run_benchmark("--no-times", "--checks", *checks, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout


# -- what surrounds them --------------------------------------------------------------------------


def run_benchmark(*options: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", "--host", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **more)


@needs_compiler
def test_the_benchmark_runs_without_a_gpu():
    done = run_benchmark("--checks", "sums", "graph")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped: it needs a GPU" in done.stdout
    assert done.stdout.endswith("2 checks, failed: none\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_needs_a_gpu_or_says_so():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--host" in done.stderr


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install cupy-cuda12x or cupy-cuda13x" in launch.PROVIDERS["cuda"].missing(None)
    modules = cuda_on_host.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert gpu.missing(RELU) == ""
    monkeypatch.setattr(modules["cupy"].cuda.nvrtc, "getVersion", no_nvrtc)
    assert "pip install nvidia-cuda-nvrtc" in gpu.missing(None)
    monkeypatch.setattr(modules["cupy"], "is_available", lambda: False)
    assert "finds no GPU" in gpu.missing(None)


def no_nvrtc() -> None:
    raise RuntimeError('Failure finding "libnvrtc.so.13"')
