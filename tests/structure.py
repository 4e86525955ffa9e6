"""The structure of the package in figures, by its source text: ``python tests/structure.py``.

With ``--base REV`` the figures of a commit beside those of the working tree, as a table:

* questions about the kind of a node from outside its room: ``isinstance`` and ``type() is`` with a
  class of nodes, ``.kind ==``, ``.kind in``, ``match`` on a node or its kind;
* loops that interpret the graph: over ``nodes``, making each node's value of those of its inputs;
* the files in which one of a family is spelled out, of those with most such files;
* lines of the package's Python files, circles among its modules, imports against the layers.

Nothing of the package is imported.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APART = ("tests", "examples", "benchmarks", "docs")  # what is not the package
PACKAGE = "spikingjelly_signgd"

NODES = ("Input", "Constant", "Linear", "Function", "Neuron", "SignGDNeuron", "GroupNeuron",
         "Growth", "SubgradientNeuron", "Encoder", "Average", "NEURON_NODES")  # fmt: skip
# where a kind is at home: its dynamics, and the description that holds it
ROOMS = ("neurons/", "network.py", "core/network.py", "core/walk.py")
OTHERS = ("nn", "nir", "torch", "fx", "ast")  # nn.Linear, nir.Input are no nodes of ours

# from the top down: a folder imports those below it alone, folders of one row not each other
LAYERS = (("cli",), ("plugins",), ("analysis",), ("converters", "exporters"), ("core",),
          ("neurons",), ("errors", "names"))  # fmt: skip
# the modules that lay in the root before there were folders for them
AT_HOME = {"network": "core", "network_module": "core", "operations": "core", "running": "core",
           "anytime": "core", "progress": "core"}  # fmt: skip

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "a nonlinearity": ("gelu", "silu", "softplus", "hardswish", "mish", "elu"),
    "a linear operation": ("upsample", "avg_pool", "einsum", "conv_transpose"),
    "a simulator": ("norse",),
    "a format": ("nir", "lava"),
    "a neuron kind": ("subgradient", "growth"),
}
SPELLED = {
    "growth": {"Growth", "growth"},
    "subgradient": {"SubgradientNeuron", "subgradient"},
}


@dataclass
class Figures:
    lines: int = 0
    questions: dict[str, int] = field(default_factory=dict)
    isinstances: int = 0
    loops: list[str] = field(default_factory=list)
    spelled: dict[str, list[str]] = field(default_factory=dict)
    circles: list[list[str]] = field(default_factory=list)
    against: list[str] = field(default_factory=list)


def sources(revision: str | None) -> dict[str, str]:
    """The package's Python files by path, of the working tree or of a commit."""
    if revision is None:
        listed = git("ls-files", "-co", "--exclude-standard", "*.py").split()
        texts = {path: (ROOT / path).read_text() for path in listed if (ROOT / path).exists()}
    else:
        listed = git("ls-tree", "-r", "--name-only", revision).split()
        texts = {p: git("show", f"{revision}:{p}") for p in listed if p.endswith(".py")}
    return {p: t for p, t in texts.items() if p.split("/")[0] not in APART and p != "setup.py"}


def git(*command: str) -> str:
    return subprocess.run(
        ["git", *command], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def measure(texts: Mapping[str, str]) -> Figures:
    found = Figures(lines=sum(len(text.splitlines()) for text in texts.values()))
    trees = {path: ast.parse(text) for path, text in texts.items()}
    for path, tree in trees.items():
        asked = list(questions(tree))
        if asked and not path.startswith(ROOMS):
            found.questions[path] = len(asked)
            found.isinstances += asked.count("isinstance")
        found.loops += [f"{path}:{line}" for line in interpreters(tree)]
    for family, members in FAMILIES.items():
        files = {member: spelled(member, texts, trees) for member in members}
        found.spelled[family] = max(files.values(), key=len)
    imports = {module(path): edges(path, tree, texts) for path, tree in trees.items()}
    found.circles = circles({name: at_load for name, (at_load, _) in imports.items()})
    found.against = [
        f"{name} imports {other}"
        for name, (_, all_of_it) in sorted(imports.items())
        for other in sorted(all_of_it)
        if not allowed(name, other)
    ]
    return found


def questions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "isinstance" and len(node.args) == 2 and of_nodes(node.args[1]):
                yield "isinstance"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(s, ast.Attribute) and s.attr == "kind" for s in sides) and any(
                words(s) & KINDS for s in sides
            ):
                yield "kind"
            elif any(is_type_call(s) for s in sides) and any(of_nodes(s) for s in sides):
                yield "type"
        elif isinstance(node, ast.Match):
            if any(
                isinstance(part, ast.MatchClass) and of_nodes(part.cls)
                for case in node.cases
                for part in ast.walk(case.pattern)
            ) or (isinstance(node.subject, ast.Attribute) and node.subject.attr == "kind"):
                yield "match"


KINDS = {"input", "static", "constant", "linear", "function", "signgd", "group", "growth",
         "subgradient", "encoder", "average"}  # fmt: skip


def words(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and type(n.value) is str}


def of_nodes(node: ast.AST) -> bool:
    """Whether an expression names a class of nodes of ours."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            if part.value.id in OTHERS:
                return False
        if isinstance(part, ast.Name) and part.id in NODES:
            return True
        if isinstance(part, ast.Attribute) and part.attr in NODES:
            return True
    return False


def is_type_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


def interpreters(tree: ast.AST) -> Iterator[int]:
    """Lines of loops over nodes that read the values of a node's inputs and store its own."""
    for loop in ast.walk(tree):
        if not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Name):
            continue
        if not re.search(r"\bnodes\b", ast.unparse(loop.iter)):
            continue
        name = loop.target.id
        body = "\n".join(ast.unparse(part) for part in loop.body)
        reads = re.search(rf"\[\w+\] for \w+ in {name}\.inputs", body)
        stores = re.search(rf"\[{name}\.name\](\[[^]]*\])? (=|\|=)", body)
        if reads and stores:
            yield loop.lineno


def spelled(member: str, texts: Mapping[str, str], trees: Mapping[str, ast.Module]) -> list[str]:
    """The files whose code, not their comments or docstrings, names it."""
    wanted = SPELLED.get(member, {member})
    return sorted(path for path, tree in trees.items() if wanted & names(tree))


def names(tree: ast.Module) -> set[str]:
    said: set[str] = set()
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            said.add(node.id)
        elif isinstance(node, ast.Attribute):
            said.add(node.attr)
        elif isinstance(node, ast.alias):
            said.update(node.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            said.update(node.module.split("."))
        elif isinstance(node, ast.Constant) and id(node) not in documentation:
            if isinstance(node.value, str) and len(node.value) < 60:
                said.update(re.findall(r"\w+", node.value))
    return said


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def edges(path: str, tree: ast.Module, texts: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """The modules of the package that a file imports: as it is loaded, and in all."""
    known = {module(p) for p in texts}
    base = path.removesuffix(".py").split("/")[:-1]
    later = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for part in ast.walk(node)
    }
    types = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in ast.walk(node)
    }
    at_load, in_all = set(), set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        start = base[: len(base) - node.level + 1]
        whole = ".".join([*start, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            inner = f"{whole}.{alias.name}" if whole else alias.name
            other = inner if inner in known else whole
            if other and other != module(path):
                if id(node) not in types:
                    in_all.add(other)
                if id(node) not in later:
                    at_load.add(other)
    return at_load, in_all


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other when loaded, as strongly connected parts of two or more."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = []
            while True:
                part.append(stack.pop())
                if part[-1] == name:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def folder(name: str) -> str:
    first = name.split(".")[0]
    return AT_HOME.get(first, first)


def allowed(name: str, other: str) -> bool:
    """Whether ``name`` may import ``other``: of its own folder, or of a layer below it."""
    rows = {part: i for i, row in enumerate(LAYERS) for part in row}
    mine, theirs = folder(name), folder(other)
    return mine not in rows or mine == theirs or rows.get(theirs, -1) > rows[mine]


def report(figures: Mapping[str, Figures]) -> str:
    rows = [
        ("lines of the package", lambda f: f"{f.lines:,}"),
        ("questions about a node's kind", lambda f: sum(f.questions.values())),
        ("  of these isinstance", lambda f: f.isinstances),
        ("loops that interpret the graph", lambda f: len(f.loops)),
        *(
            (f"files that spell {family}", lambda f, family=family: len(f.spelled[family]))
            for family in FAMILIES
        ),
        ("circles among modules", lambda f: len(f.circles)),
        ("imports against the layers", lambda f: len(f.against)),
    ]
    lines = ["| | " + " | ".join(figures) + " |", "|---|" + "---:|" * len(figures)]
    for name, value in rows:
        lines.append(f"| {name} | " + " | ".join(str(value(f)) for f in figures.values()) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", metavar="REV", help="a commit to stand beside the working tree")
    parser.add_argument("--all", action="store_true", help="the places, too")
    given = parser.parse_args()
    figures = {given.base: measure(sources(given.base))} if given.base else {}
    figures["now"] = now = measure(sources(None))
    print(report(figures))
    if given.all:
        asked = sorted(now.questions.items())
        print("\nquestions:", *(f"  {n:3d} {path}" for path, n in asked), sep="\n")
        print("\nloops:", *(f"  {place}" for place in now.loops), sep="\n")
        for family, files in now.spelled.items():
            print(f"\n{family}:", *(f"  {path}" for path in files), sep="\n")
        print("\ncircles:", *(f"  {' '.join(part)}" for part in now.circles), sep="\n")
        print("\nagainst the layers:", *(f"  {line}" for line in now.against), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
