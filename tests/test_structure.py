"""The structure of the package (docs/architecture.md), held to what it is: a fact has one home."""

import ast

import pytest
import structure


@pytest.fixture(scope="module")
def now():
    return structure.measure(structure.sources(None))


def test_nodes_say_themselves_what_is_asked_of_their_kind(now):
    assert sum(now.questions.values()) <= 60, now.questions


def test_one_walk_and_the_runner_interpret_networks(now):
    assert len(now.loops) <= 3, now.loops


def test_no_circles_and_no_imports_against_the_layers(now):
    assert not now.circles and not now.against


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("isinstance(node, GroupNeuron)", ["isinstance"]),
        ("isinstance(node, (Linear, nodes.Constant))", ["isinstance"]),
        ("isinstance(layer, nn.Linear)", []),
        ("type(node) is Function", ["type"]),
        ("node.kind == 'signgd'", ["kind"]),
        ("node.kind in ('group', 'growth')", ["kind"]),
        ("array.dtype.kind == 'f'", []),
        ("match node:\n    case GroupNeuron():\n        pass", ["match"]),
    ],
)
def test_what_counts_as_a_question(code, asked):
    assert list(structure.questions(ast.parse(code))) == asked


def test_circles_and_interpreters_are_found():
    assert structure.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    loop = (
        "for node in network.nodes:\n"
        "    inputs = [values[name] for name in node.inputs]\n"
        "    values[node.name] = run(node, inputs)\n"
    )
    assert list(structure.interpreters(ast.parse(loop))) == [1]
    assert not structure.allowed("core.running", "plugins.norse")
    assert structure.allowed("plugins.norse", "core.running")
