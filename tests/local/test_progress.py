"""What a run shows while it works: exact lines of given states, at what pace, in a terminal and elsewhere."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from jobs.local.lines import fitted, shortened, span, work_in_words
from jobs.local.pace import Left, Pace, time_left
from jobs.local.progress import Progress, shown
from jobs.stages.reports import REPORTS_TO, Reports
from pipeline import progress as reporting
from pipeline.progress import BATCH, State, begin_epoch, report
from tests.cells import PATIENCE_S, clean_environment, one_cell, packed_project, run_here, train_task
from tests.conftest import ROOT

NAME = "adam-lr0.001"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Screen(io.StringIO):
    """Takes what a terminal would be sent; `last` is what it shows since it was last erased."""

    def isatty(self):
        return True

    @property
    def last(self):
        return self.getvalue().rpartition("\x1b[J")[2].splitlines()


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Progress, "plain_said", float("-inf"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("COLUMNS", "80")
    return Clock()


def batch(done, at, epoch=1, epochs=5, images=None, total=469):
    return State(BATCH, done, total, 31 * done if images is None else images, "images", epoch, epochs, at)


# what is reported, and when it is looked at -> the words, most important first
STATES = [
    ([], 1003.0, ["starting", "3 s"]),
    ([State("reading the packed images", at=1004.0)], 1006.0, ["reading the packed images", "2 s"]),
    ([State("packing image", 64, 4000, 64, at=1001.0)], 1002.0, ["packing image 64 of 4,000"]),
    (
        [State("packing image", 100, 4000, 100, at=1001.0), State("packing image", 1900, 4000, 1900, at=1003.0)],
        1004.0,
        ["packing image 1,900 of 4,000", "900 images/s"],
    ),
    (
        [State("downloading x, MB", 5, 0, 5, "MB", at=1001.0), State("downloading x, MB", 8, 0, 8, "MB", at=1003.0)],
        1004.0,
        ["downloading x, MB 8", "1.5 MB/s"],
    ),
    ([batch(1, 1001.0, 2)], 1002.0, ["epoch 2/5", "batch 1 of 469"]),
    ([batch(20, 1001.0, 2), batch(120, 1101.0, 2)], 1102.0, ["epoch 2/5", "batch 120 of 469", "31 images/s"]),
    # another kind of work has a speed of its own
    ([batch(468, 1001.0), batch(469, 1002.0), State("scoring image", 0, 600, 0, epoch=1, epochs=5, at=1003.0)], 1004.0,
     ["epoch 1/5", "scoring image 0 of 600"]),
]  # fmt: skip


@pytest.mark.parametrize(("states", "now", "words"), STATES)
def test_a_state_in_words(states, now, words):
    pace = Pace(1000.0)
    for state in states:
        pace.take(state)
    assert work_in_words(pace, now) == words


WORK = ["epoch 2/5", "batch 120 of 469", "31 images/s"]


@pytest.mark.parametrize("width", range(8, 100))
def test_a_line_of_any_width_is_not_too_long_and_cuts_no_number(width):
    line = fitted("8 min left  3/7 cells", "adamw-constant", WORK, width)
    assert len(line) <= width
    assert {*re.findall(r"\d[\d/]*", line)} <= {"8", "3/7", "2/5", "120", "469", "31"}


FITTED = [
    (79, "8 min left  3/7 cells  adam-lr0.001: epoch 2/5, batch 120 of 469, 31 images/s"),
    (76, "8 min left  3/7 cells  adam....001: epoch 2/5, batch 120 of 469, 31 images/s"),
    (73, "8 min left  3/7 cells  adam-lr0.001: epoch 2/5, batch 120 of 469"),
    (61, "8 min left  3/7 cells  ada...001: epoch 2/5, batch 120 of 469"),
    (60, "8 min left  3/7 cells  adam-lr0.001: epoch 2/5"),
    (42, "8 min left  3/7 cells  epoch 2/5"),
    (31, "8 min left  3/7 cells"),
    (20, "epoch 2/5"),
]


@pytest.mark.parametrize(("width", "line"), FITTED)
def test_what_goes_where_a_line_does_not_fit(width, line):
    assert fitted("8 min left  3/7 cells", NAME, list(WORK), width) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (40.4, "40 s"), (89, "89 s"), (90, "2 min"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)  # fmt: skip
def test_a_span_in_words(seconds, words):
    assert span(seconds) == words


def test_a_name_is_shortened_in_its_middle():
    assert shortened("adam-lr0.001-constant-0e934cae", 15) == "adam-l...934cae"
    assert shortened("short", 5) == "short"


def paced(*states, began=1000.0):
    pace = Pace(began)
    for state in states:
        pace.take(state)
    return pace


def test_the_time_left_is_that_of_the_whole_grid():
    half = paced(batch(1, 1010.0, 1, 2, total=100), batch(1, 1110.0, 2, 2, total=100))  # an epoch in 100 s
    assert half.left_s(1110.0) == pytest.approx(99)
    assert half.left_s(1120.0) == pytest.approx(89)  # it counts down between reports
    assert time_left([(half, 1)], [], [], 1110.0) == Left(pytest.approx(99))
    # two wait behind it, each as long as it will have taken in all: 110 s + 99 s
    assert time_left([(half, 1)], [1, 1], [], 1110.0) == Left(pytest.approx(99 + 2 * 209))
    # two places, three waiting: the places take turns
    assert time_left([(half, 1), (half, 1)], [1, 1, 1], [], 1110.0) == Left(pytest.approx(99 + 2 * 209))
    # one of two cells that waits takes twice a cell
    assert time_left([(half, 2)], [2], [], 1110.0) == Left(pytest.approx(99 + 209))
    # one that has only begun takes as long as one that has ended
    assert time_left([(paced(), 1)], [1], [50.0], 1020.0) == Left(30 + 50)


def test_what_is_not_known_is_not_made_up():
    assert time_left([(paced(), 1)], [1], [], 1020.0) is None
    made = [State("features of view 0, image", done, 100, done, at=1000.0 + done / 5) for done in (0, 50)]
    features = paced(*made)
    assert time_left([(features, 1)], [1], [], 1010.0) == Left(10, at_least=True)  # and then the epochs
    assert Pace(1000.0).work_left_s(1001.0) is None
    # an epoch taken up in its middle: what an earlier attempt did is no speed of this one
    resumed = paced(batch(400, 1000.0), batch(410, 1010.0))
    assert resumed.per_s == 31
    assert resumed.work_left_s(1010.0) == pytest.approx(59)


def test_a_grid_in_a_terminal_of_80_columns(clock, tmp_path):
    row = {
        "epoch": 1,
        "validation/loss": 0.4,
        "validation/map_macro": 0.69,
        "best_epoch": 1,
        "best_value": 0.69,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"train/loss": 0.5}) + "\n")
    screen, news = Screen(), []
    progress = Progress("cells", 7, out=screen, clock=clock)
    progress.started(NAME, {NAME: tmp_path / "metrics.jsonl"})
    progress.follow(NAME, lambda: [news.pop(0)] if news else [])
    progress.tick()
    assert screen.last[0] == "0/7 cells  adam-lr0.001: starting, 0 s"  # at once
    for at, done in ((1010.0, 20), (1110.0, 120)):
        clock.now = at
        news.append(batch(done, at, 2))
        progress.tick()
    assert screen.last == [
        "29 min left  0/7 cells  adam-lr0.001: epoch 2/5, batch 120 of 469, 31 images/s",
        "    adam-lr0.001: best map_macro 0.6900 in epoch 1, loss 0.5000",
    ]
    progress.tick()
    assert screen.getvalue().count("29 min") == 1  # not redrawn before it is due
    progress.ended(NAME, "done")
    assert screen.last == ["  ok   1/7 adam-lr0.001: done  best map_macro 0.6900 in epoch 1  (110 s)"]


def test_several_processes_have_a_line_each_and_few_rows_keep_the_first(clock, monkeypatch):
    screen = Screen()
    progress = Progress("cells", 4, out=screen, clock=clock)
    progress.started("a +1", {"a": None, "b": None})
    progress.started("c +1", {"c": None, "d": None})
    progress.tick()
    assert screen.last == ["0/4 cells", "  a +1: starting, 0 s", "  c +1: starting, 0 s"]
    monkeypatch.setenv("LINES", "4")
    clock.now += 1
    progress.tick()
    assert screen.last == ["0/4 cells", "  a +1: starting, 1 s"]


@pytest.mark.parametrize(("terminal", "term"), [(False, "xterm"), (True, "dumb")])
def test_elsewhere_a_plain_line_at_most_every_30_s(clock, monkeypatch, terminal, term):
    monkeypatch.setenv("TERM", term)
    out = Screen() if terminal else io.StringIO()
    said = []
    for stage in ("wrangle photos", "evaluate"):  # one program, whatever it runs
        progress = Progress("stages", 1, out=out, clock=clock)
        progress.started(stage, {stage: None})
        for _ in range(600):
            before = len(out.getvalue())
            progress.tick()
            if len(out.getvalue()) > before:
                said.append(clock.now - 1000)
            clock.now += 0.1
        progress.ended(stage, "done")
    assert [round(at) for at in said] == [1, 31, 61, 91]
    assert out.getvalue().splitlines() == [
        "  .... wrangle photos: starting, 1 s",
        "  .... wrangle photos: starting, 31 s",
        "  ok   1/1 wrangle photos: done  (60 s)",
        "  .... evaluate: starting, 1 s",
        "  .... evaluate: starting, 31 s",
        "  ok   1/1 evaluate: done  (60 s)",
    ]
    assert "\x1b" not in out.getvalue()


def test_own_work_is_shown_and_taken_away(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    with shown():
        report("drawing x.zip, image", 1, 400)
        assert screen.last == ["drawing x.zip, image 1 of 400"]
    assert screen.last == []
    report("drawing x.zip, image", 2, 400)  # nobody listens any more
    assert screen.last == []


def test_counts_between_are_told_now_and_then_and_ends_at_once(told, monkeypatch):
    monkeypatch.setattr(reporting, "_EVERY_S", 1e9)
    begin_epoch(2, 5)
    for done in range(1, 101):
        report(BATCH, done, 100)
    report("scoring image", 0, 50)
    begin_epoch(3, 5)
    report(BATCH, 1, 100)
    assert [(s.doing, s.done, s.epoch) for s in told] == [
        (BATCH, 1, 2), (BATCH, 100, 2), ("scoring image", 0, 2), (BATCH, 1, 3)
    ]  # fmt: skip


# ---------------------------------------------------------------- from a process to the one that started it

CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from jobs.stages.reports import report_to_parent
from pipeline import progress
report_to_parent()
progress._EVERY_S = 0
for done in range(1, int(sys.argv[1]) + 1):
    progress.report("packing image", done, 10**6)
import os
print("LABELGRID_REPORTS_TO" in os.environ)
"""


def child(reports, number):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(number), str(ROOT)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {REPORTS_TO: str(reports.descriptor)},
        pass_fds=(reports.descriptor,),
    )


def test_reports_come_in_order_through_a_pipe():
    with Reports() as reports:
        process = child(reports, 20)
        reports.given()
        assert process.communicate(timeout=PATIENCE_S)[0] == "False\n"  # no child of its own finds it
        assert [state.done for state in reports.read()] == [*range(1, 21)]
        assert reports.read() == []


def test_nobody_waits_for_one_that_does_not_read():
    with Reports() as reports:
        process = child(reports, 20_000)  # more than a pipe holds
        reports.given()
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        done = [state.done for state in reports.read()]
    assert 100 < len(done) < 20_000
    assert done == [*range(1, len(done) + 1)]  # whole lines; those that found no room are dropped


def test_work_goes_on_when_the_reader_is_gone():
    reports = Reports()
    process = child(reports, 20_000)
    reports.close()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_a_cell_reports_every_batch_and_reads_no_tensor_for_it(tmp_path, drawn_zip, told, monkeypatch):
    import torch

    def trained(name):
        cell = one_cell(packed_project(tmp_path / name, drawn_zip, "run: {threads: 1}", epochs=2))
        assert run_here(train_task(cell), cell.run.log) == 0

    read = []
    for way in ("item", "__float__", "__bool__", "numpy", "tolist"):
        real = getattr(torch.Tensor, way)
        monkeypatch.setattr(
            torch.Tensor,
            way,
            lambda self, *rest, real=real, **how: (read.append(1), real(self, *rest, **how))[1],
        )
    trained("heard")
    batches = [(state.epoch, state.epochs, state.done, state.total) for state in told if state.doing == BATCH]
    steps = batches[0][3]
    assert batches == [(epoch, 2, done, steps) for epoch in (1, 2) for done in range(1, steps + 1)]
    scored = [state.epoch for state in told if state.doing.startswith("scoring")]
    assert {*scored} == {1, 2}
    heard = len(read)
    reporting.listen(None)
    read.clear()
    trained("unheard")
    assert len(read) == heard


# ---------------------------------------------------------------- whole runs


def in_terminal(command, cwd, columns):
    """What a command sends to a terminal of so many columns."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(cwd)
        os.environ.update(clean_environment() | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"})
        os.execv(command[0], command)
    sent = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sent.decode()


@pytest.mark.slow
def test_a_grid_in_a_real_terminal(tmp_path, drawn_zip):
    spec = packed_project(
        tmp_path, drawn_zip, "grid: {seeds: [1, 2]}\nrun: {parallel: 1, threads: 1}", epochs=3
    )
    status, sent = in_terminal([sys.executable, "-m", "jobs", "grid", str(spec)], tmp_path, 80)
    assert status == 0, sent
    live = [
        line for block in re.findall(r"(?:\x1b\[\d+F\x1b\[J)([^\x1b]*)", sent) for line in block.splitlines()
    ]
    live = [line for line in live if not line.startswith(("  ok ", "train:", "report:", "curves:"))]
    cells = [line for line in live if "/2 cells" in line]
    assert cells
    assert max(map(len, cells)) < 80
    assert any(re.search(r"epoch \d/3, (batch \d+ of \d+|scoring image \d+ of \d+)", line) for line in cells)
    assert any(re.match(r"\d+ s left  \d/2 cells  ", line) for line in cells)
    assert "starting" in sent.partition("epoch")[0]


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_of_it_behind(tmp_path, drawn_zip):
    """Reports go through a pipe: the files of a run that was killed and resumed are those of one that was not."""
    spec = packed_project(
        tmp_path, drawn_zip, "grid: {seeds: [1, 2]}\nrun: {parallel: 1, threads: 1}", epochs=2
    )
    command = [sys.executable, "-m", "jobs", "grid", str(spec)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    folder, deadline = tmp_path / "experiments" / "x", time.monotonic() + PATIENCE_S
    while not list(folder.glob("*/checkpoint_last*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = [
        {re.sub(r"tfevents.*", "tfevents", path.name) for path in cell.iterdir()} - {"MODEL_CARD.md"}
        for cell in folder.iterdir()  # the card lies beside the selected cell alone
        if (cell / "manifest.json").exists()
    ]
    assert len(files) == 2
    assert files[0] == files[1]
    assert not [path for path in tmp_path.rglob("*") if "progress" in path.name or path.name == "reports"]
