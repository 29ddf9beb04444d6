"""The tutorial is true: its files and commands, in order in an empty folder, print what the page shows.

A block of `python` or `yaml` is a file, whose name stands in its first line. A block of `console` has commands
after `$`, each with its output; `...` stands for the rest of a line, or for any lines. Other blocks are not run.
Scores, seconds and the eight digits of an identity differ between machines, and so may the order of a leaderboard,
which differences are significant, and what is said of them;
how many lines of progress (`....`) come depends on how busy the machine is.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cells import PATIENCE_S, clean_environment, jobs
from tests.conftest import ROOT

TEXT = (ROOT / "docs/tutorial.md").read_text()
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_ROW = re.compile(r"(?:\* )?\d+ (?=\S+\s+\d\.\d{4})")  # of a leaderboard: its rank, before name and score
_VERDICT = re.compile(r"no significant difference between: |on these images \S+ is significantly above: ")
_VARIES = {
    r"\.\.\.": r".*",
    r"-[0-9a-f]{8}\b": r"-[0-9a-f]{8}",
    r"-?\d\.\d{4}": r"-?\d\.\d{4}",
    r"\d+ s\b": r"\d+ s",
    r"\s+": r"\s+",
}


def lines_of(text):
    """The lines, stripped, without progress; rows of a leaderboard without their ranks, by name; one verdict."""
    lines, rows = [], []
    for line in [*map(str.strip, text.strip().splitlines()), None]:
        if line is not None and line.startswith(".... "):
            continue
        if line is not None and _ROW.match(line):
            rows.append(_ROW.sub("", line))
            continue
        lines += sorted(rows)
        rows = []
        told = line if line is None or not _VERDICT.match(line) else "(a verdict)"
        if told != "(a verdict)" or lines[-1:] != [told]:
            lines.append(told)
    return lines[:-1]


def pattern_of(line):
    """What a printed line must match to be this line of the page."""
    parts = re.split(f"({'|'.join(_VARIES)})", line)
    return "".join(
        next((new for old, new in _VARIES.items() if re.fullmatch(old, part)), re.escape(part))
        for part in parts
    )


def is_shown(printed, page):
    """Whether the output of a command is what the page shows."""
    patterns = [r"(?:.*\n)*" if line == "..." else f"{pattern_of(line)}\n" for line in lines_of(page)]
    return re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in lines_of(printed))) is not None


def steps():
    """("file", name, text) and ("command", command, output) in the order of the page."""
    for kind, body in _BLOCK.findall(TEXT):
        if kind in ("python", "yaml"):
            yield "file", re.match(r"# (\S+)\n", body)[1], body
        if kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
                command, _, output = part.partition("\n")
                yield "command", command, output


def run(command, folder):
    """(exit status, what was printed) of a command of the page."""
    if command.startswith("labelgrid "):
        return jobs(*shlex.split(command)[1:], cwd=folder)  # in this process: a start costs seconds
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**clean_environment(), "PATH": path},
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_the_commands_of_the_tutorial_print_what_it_shows(tmp_path):
    done = 0
    for kind, first, second in steps():
        if kind == "file":
            path = tmp_path / first
            path.parent.mkdir(exist_ok=True)
            path.write_text(second)
            continue
        status, printed = run(first, tmp_path)
        assert status == 0, f"{first}\n{printed}"
        assert is_shown(printed, second), f"$ {first}\nthe page:\n{second}\nprinted:\n{printed}"
        done += 1
    assert done >= 10  # the page has its steps, and they were found


def test_what_differs_between_machines_is_allowed_and_nothing_else():
    page = "photos-96px-8764af25:  (10 s)\n...\n* 1 a-lr0.1-11111111  0.5430 x\n  2 b-22222222 0.5263\nend: ... ok"
    same = (
        "photos-96px-00000000: (7 s)\n1\n2\n* 1 b-44444444 0.7001\n  2 a-lr0.1-33333333 0.6999 x\nend: 12 ok"
    )
    assert is_shown(same, page)
    assert is_shown(page, page)
    assert is_shown(f"  .... packing, 3 s\n{same}", page)
    for old, new in (
        ("photos", "images"),
        ("lr0.1", "lr0.2"),
        (" x", " y"),
        (" ok", " failed"),
        ("end", "one\nend"),
    ):
        assert not is_shown(same.replace(old, new), page), (old, new)
    assert not is_shown(same.rpartition("\n")[0], page)


def test_which_differences_are_significant_is_a_machine_s_own():
    tied, above = "no significant difference between: a, b", "on these images b is significantly above: c"
    page = f"begun\n{tied}\n(method)"
    for printed in (f"begun\n{above}\n(method)", f"begun\n{tied}\n{above}\n(method)", page):
        assert is_shown(printed, page)
    assert not is_shown("begun\n(method)", page)
    assert not is_shown(f"begun\n{above}\nfailed\n(method)", page)
