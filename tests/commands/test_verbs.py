"""The verbs as a user types them, on one machine: `python -m jobs <verb> SPEC`."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.commands.verbs import VERBS
from jobs.local.endings import last_error
from pipeline.data.drawn import LABELS
from pipeline.data.inputs import to_input
from pipeline.data.layout import split_identity
from pipeline.data.packed import PackedSet
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.spec import IMAGENET, ModelSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.ownership import owned
from tests.cells import PATIENCE_S, clean_environment, is_signalled, jobs, packed_project, paused, project
from tests.conftest import ROOT

ONE_WORKER = pytest.mark.xdist_group("verbs")  # that which makes `finished`
GRID = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 0.1}]}}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, drawn_zip):
    """A project whose grid of two cells went to its submission: (spec, folder of results, what was printed)."""
    root = tmp_path_factory.mktemp("project")
    text = f"{GRID}\nevaluate: {{threshold: per_label, tune_for: f1_macro}}"
    spec = project(root, drawn_zip, text, epochs=6, model={"name": "cnn2"})
    status, printed = jobs("submission", spec, cwd=root)
    assert status == 0, printed
    return spec, root / "experiments" / "x", printed


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.slow
@ONE_WORKER
def test_one_command_goes_from_a_zip_to_a_checked_submission(finished):
    _, results, printed = finished
    header, *rows = rows_of(results / "submission.csv")
    assert header == ["ids", *LABELS]
    assert [row[0] for row in rows] == [f"im{i}.jpg" for i in range(241, 281)]
    assert {value for row in rows for value in row[1:]} <= {"0", "1"}
    assert "40 images x 14 labels" in printed
    assert "the true labels of these images are known: f1_micro" in printed
    promised = {"ledger.jsonl", "leaderboard.csv", "report.html", "selected.json", "submission.csv"}
    assert promised <= {path.name for path in results.iterdir()}
    leaderboard = rows_of(results / "leaderboard.csv")
    assert {row[0] for row in leaderboard[1:]} >= {"baseline-blank", "baseline-prior"}
    assert len(leaderboard) == 5


@pytest.mark.slow
@ONE_WORKER
def test_the_submission_is_what_the_best_checkpoint_says(finished):
    """Scores of every test image, computed here again from the stored pictures and weights."""
    _, results, _ = finished
    cell = results / json.loads((results / "selected.json").read_text())["cell"]
    best = load_checkpoint(cell / "checkpoint_best.pt")
    (folder,) = (results.parent.parent / "data" / "packed").glob("drawn-test-*")
    images = torch.from_numpy(PackedSet.open(folder).gather(np.arange(40)))
    net = build_model(ModelSpec(name="cnn2"), 14, 32)
    net.load_state_dict(best["model"])
    with torch.inference_mode():
        scores_NK = torch.sigmoid(net.eval()(to_input(images, 32, IMAGENET))).numpy()
    with np.load(cell / "scores_test.npz") as stored:
        np.testing.assert_allclose(stored["scores"], scores_NK, atol=0.02)  # bfloat16 where the CPU has it
        decided = stored["scores"] >= np.array(best["thresholds"]["per_label"], np.float32)
    written = np.array([[int(value) for value in row[1:]] for row in rows_of(results / "submission.csv")[1:]])
    np.testing.assert_array_equal(written, decided)


@pytest.mark.slow
@ONE_WORKER
def test_doing_it_again_starts_nothing_and_changes_nothing(finished):
    spec, results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    status, printed = jobs("grid", spec, cwd=results.parent.parent)
    assert status == 0
    assert "2 cells, 0 to run" in printed
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("verb", "light"),
    [
        ("submission", ""),
        ("plan", "numpy pipeline.metrics.multilabel"),
        ("status", "numpy pipeline.metrics.multilabel"),
    ],
)
@pytest.mark.slow
@ONE_WORKER
def test_doing_it_again_and_looking_import_only_what_they_need(finished, verb, light):
    spec, results, _ = finished
    code = (
        "import sys; from jobs.cli import main; status = main([sys.argv[1], sys.argv[2]]);"
        "print(status, [m for m in sys.argv[3:] if m in sys.modules])"
    )
    names = ["torch", "torchvision", "tensorboard", "PIL", "matplotlib", *light.split()]
    command = [sys.executable, "-c", code, verb, str(spec), *names]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=results.parent.parent, env=clean_environment()
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.slow
@ONE_WORKER
def test_another_cell_can_be_picked_for_the_submission(finished):
    spec, results, _ = finished
    root = results.parent.parent
    best = json.loads((results / "selected.json").read_text())["cell"]
    (other,) = (row[0] for row in rows_of(results / "leaderboard.csv") if row[1] == "done" and row[0] != best)
    before = (results / "submission.csv").read_bytes()
    assert jobs("select", spec, "--run", other[:4], cwd=root) == (0, f"selected: {other}\n")
    status, printed = jobs("submission", spec, cwd=root)
    assert status == 0
    assert f"from {other}" in printed
    assert (results / "submission.csv").read_bytes() != before
    assert jobs("select", spec, cwd=root) == (0, f"selected: {best}\n")
    status, _ = jobs("submission", spec, cwd=root)
    assert (results / "submission.csv").read_bytes() == before


@pytest.mark.slow
@ONE_WORKER
def test_a_longer_run_is_another_cell_and_the_shorter_one_stays(finished):
    spec, results, _ = finished
    status, printed = jobs(
        "grid", spec, "--set", "train.epochs=1", "run.parallel=1", "name=x", cwd=results.parent.parent
    )
    assert status == 0
    assert "2 cells, 2 to run" in printed
    status, printed = jobs("grid", spec, cwd=results.parent.parent)
    assert "2 cells, 0 to run" in printed
    assert (results / "submission.csv").exists()


@pytest.mark.slow
@ONE_WORKER
def test_the_ledger_tells_what_was_started_and_how_it_ended(finished):
    _, results, _ = finished
    events = [(row["event"], row.get("status")) for row in read_jsonl(results / "ledger.jsonl")]
    assert events.count(("queued", None)) >= 2
    assert ("ended", 0) in events


# ---------------------------------------------------------------- failures


@pytest.mark.slow
def test_one_failing_cell_is_reported_and_the_others_finish(tmp_path, drawn_zip):
    (tmp_path / "broken.pth").write_text("no weights")
    text = (
        "grid: {cells: [{train.optimizer: {name: adam}}, {train.model: {name: cnn2, weights: broken.pth}},"
        " {train.optimizer: {name: adadelta}}]}"
    )
    spec = packed_project(tmp_path, drawn_zip, text, epochs=1)
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    assert "FAIL" in printed
    assert "broken.pth: cannot be read as weights" in printed
    rows = {row[0]: row for row in rows_of(tmp_path / "experiments" / "x" / "leaderboard.csv")}
    states = sorted(row[1] for row in rows.values())
    assert states == ["baseline", "baseline", "done", "done", "failed", "state"]
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    assert "3 cells, 1 to run" in printed


@pytest.mark.slow
def test_a_cell_that_diverges_is_ranked_as_such_and_held_back_until_retried(tmp_path, drawn_zip):
    text = "grid: {axes: {train.optimizer: [{name: adam}, {name: sgd, lr: 1e30}]}}"
    spec = packed_project(tmp_path, drawn_zip, text, epochs=1)
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    rows = {row[1]: row for row in rows_of(tmp_path / "experiments" / "x" / "leaderboard.csv")}
    assert rows.keys() == {"state", "done", "baseline", "diverged"}
    cell = rows["diverged"][0]
    assert cell.startswith("sgd")
    assert "not finite" in rows["diverged"][2] or "loss became" in rows["diverged"][2]
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    assert "2 cells, 0 to run" in printed
    assert f"{cell}: held back: diverged: " in printed
    assert f"`labelgrid retry SPEC --run {cell}` trains it anew" in printed
    assert "1 finished cells are complete" in jobs("doctor", spec, cwd=tmp_path)[1]
    assert jobs("retry", spec, "--run", cell, cwd=tmp_path)[0] == 0
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 1
    assert "2 cells, 1 to run" in printed


@pytest.mark.slow  # doctor asks torch in a process of its own
def test_doctor_refuses_groups_of_parameters_that_the_network_does_not_have(tmp_path, drawn_zip):
    groups = "[[{parameters: 0.*, lr_factor: 2}], [{parameters: layer4.*, lr_factor: 2}]]"
    text = f"grid: {{axes: {{train.optimizer.groups: {groups}}}}}"
    spec = packed_project(tmp_path, drawn_zip, text, model={"name": "cnn2"})
    status, printed = jobs("doctor", spec, cwd=tmp_path)
    assert status == 1
    assert "ok network: cnn2 at 32 px, all is trained" in " ".join(printed.split())
    said = (
        "FAIL network: train.optimizer.groups: 'layer4.*' matches no parameter; they begin with 0, 1, 4, 5, 8"
    )
    assert said in " ".join(printed.split())


@pytest.mark.slow
def test_a_killed_cell_says_so_and_is_gone_on_with(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, epochs=4)
    process = background("grid", spec, cwd=tmp_path)
    with paused(tmp_path / "experiments" / "x") as (cell,):
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "killed by SIGKILL (out of memory?)" in printed
    assert json.loads((cell / "manifest.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_ctrl_c_saves_stops_and_leaves_no_process(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, f"{GRID}\nrun: {{parallel: 2, threads: 1}}", epochs=4)
    process = background("grid", spec, cwd=tmp_path)
    with paused(tmp_path / "experiments" / "x", count=2) as (cell, _):
        running = children(process.pid)
        assert len(running) == 2
        process.send_signal(signal.SIGINT)
        while not all(map(is_signalled, running)):
            time.sleep(0.02)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert re.search(r"\.\.\.\. 1/\d \S+: paused, resumes at epoch \d+  ", printed)
    assert "FAIL" not in printed
    assert "paused; `labelgrid grid experiments/x.yaml` goes on from here" in printed
    assert "Traceback" not in printed
    assert not any(alive(child) for child in running)
    assert (cell / "checkpoint_last.pt").exists()
    status, printed = jobs("grid", spec, "--set", "run.save_every_min=5", cwd=tmp_path)
    assert status == 0, printed
    epochs = [row["epoch"] for row in read_jsonl(cell / "metrics.jsonl") if "validation/loss" in row]
    assert epochs == list(range(1, 5))


@ONE_WORKER
def test_a_second_grid_on_a_running_one_says_so_and_changes_nothing(tmp_path, finished):
    shutil.copytree(finished[0].parent.parent, tmp_path, dirs_exist_ok=True)
    spec, results = tmp_path / "experiments" / "x.yaml", tmp_path / "experiments" / "x"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    with owned(results, "this grid"):
        status, printed = jobs("grid", spec, "--set", "train.epochs=3", cwd=tmp_path)
    assert status == 2
    place = rf"process {os.getpid()} on \S+ works on this grid already since \d\d:\d\d"
    assert re.search(place + r"; `WATCH=1 labelgrid status \S+ --set train.epochs=3` shows it", printed)
    after = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.slow
def test_ctrl_c_in_a_submission_ends_it_without_a_file(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, epochs=1)
    assert jobs("grid", spec, cwd=tmp_path)[0] == 0
    process = background("submission", spec, "--set", "train.epochs=200", cwd=tmp_path)
    (old,) = (tmp_path / "experiments" / "x").glob("*/metrics.jsonl")
    deadline = time.monotonic() + PATIENCE_S
    while (
        len(list((tmp_path / "experiments" / "x").glob("*/metrics.jsonl"))) < 2
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert old.exists()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "`labelgrid submission experiments/x.yaml --set train.epochs=200` goes on from here" in printed
    assert "predict" not in printed
    assert not (tmp_path / "experiments" / "x" / "submission.csv").exists()


@pytest.mark.slow
def test_a_stopped_wrangle_leaves_nothing_behind(tmp_path, photos):
    with zipfile.ZipFile(photos, "a") as archive:
        body = archive.read("images/im1.jpg")
        for i in range(20, 6000):
            archive.writestr(f"images/im{i}.jpg", body)
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "x.yaml").write_text(
        f"data: {{source: {photos}, images: 'images/im{{id}}.jpg', size_px: 128}}\n"
    )
    process = background("wrangle", folder / "x.yaml", cwd=tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("data/packed/.*/images-000.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, printed
    assert list((tmp_path / "data" / "packed").iterdir()) == []
    assert "error:" not in printed


def test_an_old_error_in_the_log_is_no_reason_of_a_new_end(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: the loss became nan\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("RuntimeError: something else\n")
    assert last_error(log, start) == "RuntimeError: something else"


@pytest.mark.parametrize("axis", ["data.split", "data.resize"])
@pytest.mark.slow
def test_each_cell_predicts_the_test_images_of_its_own_data(tmp_path, drawn_zip, axis):
    spec = project(tmp_path, drawn_zip, epochs=1)
    text = spec.read_text()
    if axis == "data.split":
        text = "\n".join(line for line in text.splitlines() if "  test:" not in line)
        splits = ", ".join(f"{{method: random, validation: 0.2, test: 0.3, seed: {seed}}}" for seed in (1, 2))
        text += f"\ngrid: {{axes: {{data.split: [{splits}]}}}}\n"
    else:
        text += "\ngrid: {axes: {data.resize: [squash, crop]}}\n"
    spec.write_text(text)
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    results = tmp_path / "experiments" / "x"
    selected = json.loads((results / "selected.json").read_text())["cell"]
    (other,) = {path.parent.name for path in results.glob("*/manifest.json")} - {selected}
    for name in (selected, other):
        if name == other:
            assert jobs("submission", spec, "--run", name, cwd=tmp_path)[0] == 0
        if axis == "data.split":
            cell = read_spec(results / name / "spec.yaml", root=tmp_path).spec
            (split,) = tmp_path.glob(f"data/packed/*/split-random-{split_identity(cell.data)[:8]}.json")
            rows = json.loads(split.read_text())["rows"]
            expected = [f"im{row + 1}.jpg" for row in rows["test"]]
            assert [row[0] for row in rows_of(results / "submission.csv")[1:]] == expected


@pytest.mark.slow
def test_when_the_starter_is_killed_its_cells_save_and_stop(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, epochs=500)
    process = background("grid", spec, cwd=tmp_path)
    with paused(tmp_path / "experiments" / "x") as (cell,):
        (child,) = children(process.pid)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
    assert "saved" in (cell / "log.txt").read_text()


def background(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=clean_environment(),
    )


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["grid", "experiments/nothing.yaml"], "experiments/nothing.yaml: cannot be read"),
        (["grid", "{spec}", "--cluster", "puthi"], "unknown cluster 'puthi'; known: local"),
        (["grid", "{spec}", "--set", "train.epoch=3"], "train.epoch: unknown key; did you mean `epochs`?"),
        (["grid", "{spec}", "--set", "train.model.weights=w.pth"], "w.pth cannot be read"),
        (["grid", "{spec}", "--set", "data.source=gone.zip"], "gone.zip: there is no such folder or archive"),
        (["select", "{spec}", "--run", "adam"], "--run adam: no cell starts with that"),
        (["predict", "{spec}"], "no cell is selected; run `labelgrid grid SPEC`"),
    ],
)
def test_the_likely_mistakes_are_answered_in_one_line_without_a_traceback(
    tmp_path, drawn_zip, arguments, error
):
    spec = project(tmp_path, drawn_zip)
    status, printed = jobs(*(word.format(spec=spec) for word in arguments), cwd=tmp_path)
    assert status == 2
    assert error in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "data" / "packed").exists()


def test_a_submission_without_test_images_is_refused_before_any_training(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip)
    text = spec.read_text()
    spec.write_text("\n".join(line for line in text.splitlines() if "  test:" not in line))
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 2
    assert (
        "x.yaml: there are no images to predict; write `test: {source: FOLDER, labels: none}` under data, with the "
        "folder of your new pictures, or keep some of the others for it by data.split.test: 0.1\n"
    ) in printed


@pytest.mark.slow
def test_bad_images_stop_the_grid_at_wrangle_with_the_whole_reason(tmp_path, photos):
    with zipfile.ZipFile(photos, "a") as archive:
        archive.writestr("images/im13.jpg", "this is no picture")
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "x.yaml").write_text(
        f"data: {{source: {photos}, images: 'images/im{{id}}.jpg', size_px: 16}}\n"
    )
    status, printed = jobs("grid", folder / "x.yaml", cwd=tmp_path)
    assert status == 1
    assert "1 of 13 images cannot be decoded" in printed
    assert "images/im13.jpg: not an image file that Pillow knows" in printed


@pytest.mark.slow
def test_the_last_part_of_the_split_can_be_the_test_set(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, epochs=1)
    text = "\n".join(line for line in spec.read_text().splitlines() if "  test:" not in line)
    spec.write_text(
        text.replace("  size_px: 32", "  size_px: 32\n  split: {method: ordered, validation: 0.2, test: 0.1}")
    )
    status, printed = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, printed
    rows = rows_of(tmp_path / "experiments" / "x" / "submission.csv")
    assert [row[0] for row in rows[1:]] == [f"im{i}.jpg" for i in range(217, 241)]


# ---------------------------------------------------------------- make


def make(*arguments):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )


def test_bare_make_lists_every_verb_and_only_what_works():
    listed = {line.split()[1] for line in make().stdout.splitlines()}
    verbs = {name for name, verb in VERBS.items() if verb.takes_spec}
    others = [
        "help",
        "setup",
        "demo",
        "data",
        "models",
        "check",
        "test",
        "coverage",
        "lint",
        "torture",
        "bench",
        "bench-gpu",
        "pictures",
    ]
    assert listed == {*others, *verbs}


def test_a_verb_without_a_spec_says_how_to_name_one():
    done = make("grid", "-o", ".venv/.ready")
    assert done.returncode != 0
    assert "error: name a spec: make grid SPEC=experiments/demo.yaml" in done.stdout


def test_make_passes_everything_on():
    done = make("-n", "grid", "SPEC=a.yaml", "CLUSTER=local", "SET=train.epochs=3 train.seed=1", "RUN=adam")
    assert "-m jobs grid 'a.yaml' --cluster local --set train.epochs=3 train.seed=1 --run adam" in done.stdout
