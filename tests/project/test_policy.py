"""Habits of this project that a machine can check."""

import ast
import io
import re
import subprocess
import tokenize
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jobs.commands.verbs import VERBS
from pipeline import __version__
from tests.conftest import ROOT

TRACKED = [
    Path(name)
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout.splitlines()
    if (ROOT / name).exists()
]
SOURCES = [path for path in TRACKED if path.suffix == ".py" and path.parts[0] in ("pipeline", "jobs")]
TEXTS = [path for path in TRACKED if path.suffix == ".md"]


def lines_of_code(text):
    """Lines that are no blank, comment or docstring (of a module, class, function or field)."""
    lines = set()
    silent = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def functions(text):
    return [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def parameters(function):
    """Names of the parameters, without `self` and `cls`."""
    of = function.args
    named = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
    return [parameter.arg for parameter in named if parameter.arg not in ("self", "cls")]


def test_files_and_functions_stay_small():
    texts = {path: (ROOT / path).read_text() for path in SOURCES}
    assert texts
    assert {path for path, text in texts.items() if len(text.splitlines()) > 320} == set()
    # the loop is one visible function
    limits = {(Path("pipeline/training/loop.py"), "train"): 120}
    found = [(path, function) for path, text in texts.items() for function in functions(text)]
    lengths = {(path, one.name, one.lineno): one.end_lineno - one.lineno + 1 for path, one in found}
    assert {where: n for where, n in lengths.items() if n > limits.get(where[:2], 60)} == {}
    assert {(path, one.name): len(parameters(one)) for path, one in found if len(parameters(one)) > 6} == {}
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "misc", "common")]


def test_the_code_stays_small():
    # 9,400 lines when this was set; the rest is for features. Raising it is a decision: say why.
    # The last two thousand: jobs among other people's (proof, recovery, prices, checks of what is queued), and
    # GPUs (nothing waits for a copy, memory that runs out, features in parts, devices of other makers)
    assert sum(lines_of_code((ROOT / path).read_text()) for path in SOURCES) <= 25_000


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_links_and_named_files_of_the_texts_exist(path):
    text = (ROOT / path).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / path.parent / target).exists(), target
    for name in re.findall(r"`((?:pipeline|jobs|tests|docs|experiments)/[\w./-]+\.(?:py|md|yaml))`", text):
        assert (ROOT / name).exists(), name


def test_commands_of_the_texts_name_verbs_that_exist():
    verbs = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    named = {verb for path in TEXTS for verb in re.findall(r"\bmake (\w+)", (ROOT / path).read_text())}
    assert named
    assert named <= verbs
    options = r"(?:labelgrid|-m jobs) (\w+)"
    named = {verb for path in TEXTS for verb in re.findall(options, (ROOT / path).read_text())}
    assert named
    assert named <= VERBS.keys()


def test_the_version_stands_in_the_citation_and_heads_the_changelog():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.M) == [__version__]
    assert re.findall(r"^## \[(.+)\]$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == __version__


def test_nothing_large_is_tracked():
    assert {
        path: (ROOT / path).stat().st_size for path in TRACKED if (ROOT / path).stat().st_size > 200_000
    } == {}


def test_versions_of_the_lock_lie_in_the_ranges_users_may_have():
    lock = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
    lock = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    for text in requires("labelgrid") or ():
        requirement = Requirement(text)
        assert requirement.specifier.contains(lock[requirement.name.lower()]), requirement
