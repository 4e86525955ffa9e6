"""Messages, docstrings and pages use the words of the field: a table of phrases not to write."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

INSTEAD = {
    # in the place of a word of the field
    r"\bmend(ed|s)?\b(?!\"? is )": "fix",
    r"tak(e|es|ing|en) (\w+ )?spikes? back|spikes are taken back": "negative spikes",
    r"\bat home\b": "defined in, supported by",
    r"who listens?\b|all who\b|whoever": "receivers, callers",
    r"handed on whole": "sent as one integer",
    r"\bdealt\b|\bdeals? (batches|samples|pieces)": "distributed",
    r"truth values?": "booleans",
    r"tells? apart|told apart": "distinguish",
    r"that bargain|this bargain": "trade-off",
    r"is not told|are not told": "is not sent, is not reported",
    r"\b(go|goes|going|gone) on from\b": "continue from, resume from",
    # sentences that are no English
    r"(?<![Tt]here )\b(is|are) none\b(?! of)": "is not one",
    r"(?<![Tt]here )\b(is|are) no (file|model|network|number|tensor|clip|word|place)\b": "is not a",
    r"what is bad about it|what is at fault": "the cause",
    r"\banew\b(?![\":])": "again",
    r"nobody|somebody|anybody": "say who or what",
    r"\bas it is handed\b|is handed\b|handed in\b": "receives, is given",
    r"begins? with nothing|from nothing": "from the initial state",
    r"\bof ours\b|Source: ours|\b(is|are) ours\b": "of this package, new here",
    r"runs? on no streams": "cannot run on streams",
    r"\bas ever\b": "as usual",
    r"back what (it|they) (has |have )?sent|called back": "negative spikes",
    r"handed on\b": "sent, passed",
    r"meant to be\b": "should be",
    r"[Ww]hat is (left|known) is\b|[Ww]hat it takes is\b": "name the thing",
    r"by saying\b": "sends nothing",
    r"in the bill|to the bill": "to the cost",
    r"does not pay\b|\bIt pays\b": "is faster, is not faster",
    r"descended on": "tuned",
}
PRIVATE = re.compile("|".join(f"(?:{phrase})" for phrase in INSTEAD))

FOLDERS = ("analysis", "cli", "converters", "core", "examples", "exporters", "neurons", "plugins")
# what changed in a release is quoted as it was
OLD = {"CHANGELOG.md", "benchmarks/RESULTS.md"}


def tracked(*patterns: str) -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", *patterns]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def texts(path: str) -> Iterator[tuple[int, str]]:
    """The lines of prose of a file: string literals of Python, Markdown without code blocks."""
    content = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        blank = re.sub(r"(?ms)^ *```.*?^ *```$", lambda m: "\n" * m[0].count("\n"), content)
        yield from enumerate(re.sub(r"`[^`\n]*`", "", blank).split("\n"), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            text = re.sub(r"`[^`\n]*`", "", node.value)
            for number, line in enumerate(text.split("\n")):
                yield node.lineno + number, line


def found(path: str) -> list[str]:
    return [
        f"{path}:{number}: {match[0]!r} in {line.strip()!r}"
        for number, line in texts(path)
        if (match := PRIVATE.search(line))
    ]


CHECKED = [
    path
    for path in tracked("*.py", "*.md")
    if path.startswith((*(f"{folder}/" for folder in FOLDERS), "docs/")) and path not in OLD
]


def test_the_table_finds_what_it_is_for():
    for text in ("the mend is", "may take spikes back", "'x' is none.", "batches are dealt here"):
        assert PRIVATE.search(text), text
    assert len(CHECKED) > 200


@pytest.mark.parametrize("folder", sorted({path.partition("/")[0] for path in CHECKED}))
def test_words_of_the_field(folder):
    lines = [line for path in CHECKED if path.startswith(f"{folder}/") for line in found(path)]
    assert not lines, "see INSTEAD in this file:\n" + "\n".join(lines)
