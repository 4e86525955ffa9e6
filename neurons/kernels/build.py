"""Compiles the kernels for the CPU: for the package when it is built, and for a user's function.

Needs the standard library alone, since the package is built where torch may be absent: the C
expressions of the table of nonlinearities are read from its source.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "nonlinearities.py"
ARGUMENTS = ("x", "y", "z")
# no contraction: a fused multiply-add rounds unlike torch. Traps and errno are never looked at.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LIBRARY = HERE / "_cpu.so"  # of the package; ctypes loads it, so one serves every Python
# instruction sets, the best first: name, the compiler's flags, when a processor has it
_WIDE = ("-mprefer-vector-width=512",)
SETS_X86: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "v4",
        ("-march=x86-64-v4", *_WIDE),
        '__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && '
        '__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")',
    ),
    (
        "v3",
        ("-march=x86-64-v3",),
        '__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && '
        '__builtin_cpu_supports("bmi2")',
    ),
)
SET_ANY: tuple[str, tuple[str, ...], str] = ("any", (), "true")


class NoCompiler(RuntimeError):
    """There is no C++ compiler, or what stands in CXX cannot be run."""


@dataclass(frozen=True)
class Function:
    """A function in C: an expression over its arguments, tensors first, then its parameters."""

    code: str
    arguments: tuple[str, ...]
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(character in self.code for character in '"\\\n{}'):
            raise ValueError(
                "a row's C code is one expression without quotes, braces or backslashes, but it "
                f"is {self.code!r}."
            )

    @property
    def key(self) -> str:
        """Names and code in one line."""
        return f"({', '.join(self.arguments)}; {', '.join(self.parameters)}) {self.code}"

    @classmethod
    def from_key(cls, key: str) -> Function:
        names, code = key[1:].split(") ", 1)
        arguments, parameters = (part.strip() for part in names.split(";"))
        return cls(
            code,
            tuple(arguments.split(", ")),
            tuple(parameters.split(", ")) if parameters else (),
        )

    def struct(self, name: str) -> str:
        """The struct that ``signgd_block`` is instantiated with."""
        values = [f"{a} = a[{k}]" for k, a in enumerate(self.arguments)]
        values += [f"{p} = p[{k}]" for k, p in enumerate(self.parameters)]
        return (
            f"struct {name} {{\n"
            f"  enum {{ arguments = {len(self.arguments)} }};\n"
            "  DEVICE float of(const float *a, const float *p) {\n"
            "    (void)p;\n"
            f"    const float {', '.join(values)};\n"
            f"    return {self.code};\n"
            "  }\n};\n"
        )


def kernel_function(
    code: str, arity: int, parameters: dict[str, object], choice: dict[str, str] | None = None
) -> Function:
    """The function of a row. A parameter of default None is a tensor, one argument more; one whose
    default is a tuple of words stands in the code in braces, replaced by ``choice``."""
    tensors = tuple(name for name, default in parameters.items() if default is None)
    words = {name for name, default in parameters.items() if isinstance(default, tuple)}
    numbers = tuple(name for name in parameters if name not in words and name not in tensors)
    for name, word in (choice or {}).items():
        code = code.replace(f"{{{name}}}", word)
    return Function(code, ARGUMENTS[:arity] + tensors, numbers)


def table_functions(table: Path = TABLE) -> Iterator[Function]:
    """The functions of every row of the table that has C code."""
    for node in ast.walk(ast.parse(table.read_text())):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Nonlinearity"):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "code" not in keywords:
            continue
        code = ast.literal_eval(keywords["code"])
        arity = ast.literal_eval(keywords["arity"]) if "arity" in keywords else 1
        parameters: dict[str, object] = {}
        declared = keywords.get("parameters")
        if isinstance(declared, ast.Dict):
            for key, value in zip(declared.keys, declared.values, strict=True):
                number = not isinstance(value, (ast.Constant, ast.Tuple))  # such as -inf
                name = ast.literal_eval(key) if key is not None else ""
                parameters[name] = 0.0 if number else ast.literal_eval(value)
        words = {k: v for k, v in parameters.items() if isinstance(v, tuple)}
        for choice in product(*words.values()):
            yield kernel_function(code, arity, parameters, dict(zip(words, choice, strict=True)))


def sources() -> str:
    """A digest of what every library is made from; it carries it, and another is refused."""
    digest = hashlib.sha256()
    files = [path for ending in ("cuh", "cpp", "h") for path in HERE.glob(f"*.{ending}")]
    for path in sorted([*files, HERE / "build.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def compiler() -> list[str] | None:
    """The C++ compiler, as words of a command line; the variable CXX goes first."""
    if command := shlex.split(os.environ.get("CXX", "")):
        return command
    found = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return next(([path] for path in found if path), None)


def build(
    output: Path,
    functions: Iterable[Function],
    *,
    native: bool = False,
    extra: Sequence[str] = (),
) -> None:
    """Writes the library ``output`` with all kernels, the signGD ones for each of ``functions``.

    For every instruction set in turn, or with ``native`` for that of this machine alone. Raises
    NoCompiler, or RuntimeError with the compiler's output where it fails.
    """
    command = compiler()
    if command is None:
        raise NoCompiler("no C++ compiler was found: install g++ or clang++, or set CXX.")
    better = SETS_X86 if platform.machine() in ("x86_64", "AMD64") else ()
    if native:
        better = tuple(("native", ("-march=native", *wide), "true") for wide in (_WIDE, ()))
    sets = [*(each for each in better if _takes(command, each[1])), SET_ANY]
    sets = sets[:1] if native else sets
    rows = {function.key: function for function in functions}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        folder = Path(scratch)
        (folder / "rows.inc").write_text(rows_source(rows.values()))
        lines = [f"MACRO({name}, {supported})" for name, _, supported in sets]
        (folder / "sets.inc").write_text(
            f'#define SETS(MACRO) {" ".join(lines)}\n#define SOURCES "{sources()}"\n'
        )
        flags = [*FLAGS, *extra, f"-I{folder}", f"-I{HERE}"]
        objects = [str(folder / "dispatch.o")]
        commands = [[*command, *flags, "-c", str(HERE / "dispatch.cpp"), "-o", objects[0]]]
        for name, march, _ in sets:
            objects.append(str(folder / f"{name}.o"))
            source = ["-c", str(HERE / "cpu.cpp"), "-o", objects[-1]]
            commands.append([*command, *flags, *march, f"-DISA={name}", *source])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        library = str(folder / output.name)
        _run([*command, "-shared", "-pthread", *extra, *objects, "-o", library])
        os.replace(library, output)


def _takes(command: list[str], flags: Sequence[str]) -> bool:
    """Whether the compiler knows the flags: older ones lack the newer instruction sets."""
    try:
        _run([*command, *flags, "-x", "c++", "-fsyntax-only", os.devnull])
    except NoCompiler:
        raise
    except RuntimeError:
        return False
    return True


def rows_source(functions: Iterable[Function]) -> str:
    """rows.inc: a struct for each function, and ROWS(MACRO) over all of them."""
    named = [(f"Row{i}", function) for i, function in enumerate(functions)]
    structs = "\n".join(function.struct(name) for name, function in named)
    rows = " ".join(f'MACRO("{function.key}", {name})' for name, function in named)
    return f"{structs}\n#define ROWS(MACRO) {rows}\n"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NoCompiler(
            f"the C++ compiler {command[0]!r} cannot be run ({error}): install g++ or clang++, or "
            "set CXX to one."
        ) from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
