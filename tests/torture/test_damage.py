"""Every artifact of a finished project, cut short or with a flipped bit: named, and never used."""

import contextlib
import json
import random
import shutil
import zipfile

import numpy as np
import pytest

from jobs.local.snapshot import _is_complete
from jobs.planning.plan import make_plan
from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import PipelineError
from pipeline.evaluation.kept import kept, key_of
from pipeline.evaluation.selection import Selection, select_cell
from pipeline.evaluation.submission import is_predicted
from pipeline.models.checkpoint import load_checkpoint
from pipeline.report.model_card import is_unedited
from pipeline.spec import METRICS
from pipeline.spec.reading import read_spec
from pipeline.storage.files import read_json
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torture")]

FLIPS = 40


@pytest.fixture(scope="module")
def project(undisturbed):
    plan = make_plan(read_spec(undisturbed[0]))
    return plan, RunDir(plan.experiment.path / Selection.read(plan.experiment).cell)


def refused(use, path):
    """Whether using a damaged file is refused, by an error that names it."""
    said = ""
    try:
        use()
    except PipelineError as error:
        said = str(error)
    except ValueError as error:
        said = f"{path.name}: {error}"  # read_json's: its callers name the file
    assert not said or path.name in said
    return bool(said)


def arrays(path):
    with path.open("rb") as opened, np.load(opened) as file:
        return {name: file[name].tolist() for name in file.files}


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def places(plan, run):
    """name -> (file, what says whether its damage is noticed)"""
    data, experiment = plan.datasets[0], plan.experiment
    test = plan.tests[run.name]
    identity = next(cell.identity for cell in plan.cells if cell.run == run)
    packed, found = data.packed, {}

    def opening(name):
        return packed / name, lambda: refused(lambda: PackedSet.open(packed), packed / name)

    for name in ("images-000.npy", "labels.npy", "index.npz", "index.csv", "wrangle_report.json"):
        found[name] = opening(name)
    found["dataset.json"] = (packed / "dataset.json", lambda: data.reason == "damaged")
    found["split"] = (data.split, lambda: refused(lambda: read_split(data.split), data.split))
    for path in (run.checkpoint_last, run.checkpoint_previous, run.checkpoint_best):
        found[path.name] = (path, lambda path=path: refused(lambda: load_checkpoint(path), path))
    found["manifest.json"] = (
        run.manifest,
        lambda: run.why_not_done(identity) == "artifact damaged: manifest.json",
    )
    for path in (run.spec, run.provenance, run.metrics, run.scores_val):
        found[path.name] = (path, lambda path=path: refused(lambda: run.verify(path), path))
    found["report.json"] = (run.report, lambda: refused(lambda: read_json(run.report), run.report))
    found["MODEL_CARD.md"] = (run.card, lambda: not is_unedited(run.card))
    whole_bytes, whole = run.scores_test.read_bytes(), arrays(run.scores_test)

    def predicted_anew():
        """Or a flip in a date of the zip's directory, which leaves every score as it was."""
        if not is_predicted(run, test.packed, test.split):
            return True
        return run.scores_test.read_bytes() != whole_bytes and arrays(run.scores_test) == whole

    found["scores_test.npz"] = (run.scores_test, predicted_anew)

    rule = plan.loaded.spec.evaluate
    key = key_of(rule, run.digests_of(run.scores_val, run.spec))
    whole_kept = run.evaluation.read_bytes()
    whole_arrays = {name: kept(run, key, name).resampled_R.tolist() for name in METRICS}

    def measured_anew():
        """Or a flip in a date of the zip's directory, which leaves every array as it was."""
        cells = {name: kept(run, key, name) for name in METRICS}
        if None in cells.values():
            return True
        same = {name: cell.resampled_R.tolist() for name, cell in cells.items()} == whole_arrays
        return run.evaluation.read_bytes() != whole_kept and same

    found["evaluation.npz"] = (run.evaluation, measured_anew)
    found["baselines.json"] = (
        experiment.baselines,
        lambda: refused(lambda: read_json(experiment.baselines), experiment.baselines),
    )

    def ranked_anew():
        return not plan.evaluation.is_done and refused(
            lambda: select_cell(experiment, None), experiment.leaderboard
        )

    for path in (experiment.leaderboard, experiment.comparisons):
        found[path.name] = (path, ranked_anew)
    found["selected.json"] = (experiment.selected, lambda: not plan.evaluation.is_done)
    found["data.json"] = (
        experiment.data,
        lambda: refused(lambda: read_json(experiment.data), experiment.data),
    )
    found["test_metrics.json"] = (
        experiment.test_metrics,
        lambda: refused(lambda: read_json(experiment.test_metrics), experiment.test_metrics),
    )
    events = read_jsonl(experiment.ledger)

    def only_true_lines():
        """What is left of the ledger is true; a flip in the checksum's own name leaves its line true."""
        left = read_jsonl(experiment.ledger)
        return left != events and all(any(e.items() <= row.items() for e in events) for row in left)

    found["ledger.jsonl"] = (experiment.ledger, only_true_lines)
    (code,) = experiment.code.glob("code-*.zip")
    whole_zip, whole_code = code.read_bytes(), members(code)

    def packed_anew():
        """Or a flip in what the zip's directory says of itself, which leaves every file as it was."""
        if not _is_complete(code):
            return True
        return code.read_bytes() != whole_zip and members(code) == whole_code

    found["code.zip"] = (code, packed_anew)
    return found


NAMES = [
    *(
        "images-000.npy",
        "labels.npy",
        "index.npz",
        "index.csv",
        "wrangle_report.json",
        "dataset.json",
        "split",
    ),
    *("checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt", "manifest.json", "spec.yaml"),
    *("provenance.json", "metrics.jsonl", "scores_val.npz", "report.json", "scores_test.npz"),
    *("evaluation.npz", "baselines.json"),
    *("leaderboard.csv", "comparisons.csv", "selected.json", "ledger.jsonl", "code.zip", "data.json"),
    *("test_metrics.json", "MODEL_CARD.md"),
]


def says_the_same(one, other):
    """Whether both are the same JSON: the 17th digit of a number may be another and the number the same."""
    try:
        return [json.loads(line) for line in one.splitlines()] == [
            json.loads(line) for line in other.splitlines()
        ]
    except ValueError:
        with contextlib.suppress(ValueError):
            return json.loads(one) == json.loads(other)
    return False


def test_only_a_digit_that_no_number_shows_is_the_same():
    assert says_the_same(b'{"a": 0.18264833754897572}\n', b'{"a": 0.18264833754897573}\n')
    assert says_the_same(b'{\n "a": 0.18264833754897572\n}', b'{\n "a": 0.18264833754897573\n}')
    assert not says_the_same(b'{"a": 0.18264833754897572}\n', b'{"a": 0.18264833754897672}\n')
    assert not says_the_same(b"no json", b"no json")


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_noticed(project, tmp_path, name):
    path, noticed = places(*project)[name]
    body = path.read_bytes()
    assert not noticed(), "it says damaged of a whole file"
    kept = shutil.copy2(path, tmp_path / "kept")
    rng = random.Random(name)
    missed = []
    try:
        for size in (0, 1, len(body) // 2, len(body) - 2):
            path.write_bytes(body[:size])
            if not noticed():
                missed.append(f"cut to {size}")
        for _ in range(FLIPS):
            at, bit = rng.randrange(len(body)), rng.randrange(8)
            flipped = body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]
            path.write_bytes(flipped)
            if not noticed() and not says_the_same(body, flipped):
                missed.append(f"bit {bit} of byte {at}: {body[max(0, at - 15) : at + 15]!r}")
    finally:
        shutil.copy2(kept, path)
    assert missed == []


def test_every_artifact_is_in_this_list(project):
    plan, run = project
    files = {path.name for path in run.path.iterdir()} | {
        path.name for path in plan.experiment.path.iterdir()
    }
    files |= {path.name for path in plan.datasets[0].packed.iterdir() if not path.name.startswith("split")}
    for pages in ("log.txt", "report.html", "submission.csv", "logs", "code", "report"):
        files.discard(pages)  # for people, or written anew and checked by every `make submission`
    files = {name for name in files if not name.startswith((".", "events.", "figures"))}
    files -= {cell.run.name for cell in plan.cells}
    assert files <= set(NAMES), files - set(NAMES)
