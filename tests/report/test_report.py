"""The report: what a real Chromium shows of it, its files, half-way through a sweep, and with a thousand cells."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from pipeline.evaluation.leaderboard import read_leaderboard
from pipeline.evaluation.selection import Selection
from pipeline.report import write_report
from pipeline.report.selected import confusions
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir
from tests.cells import PATIENCE_S, clean_environment, jobs, project
from tests.conftest import ROOT
from tests.sweep import make_sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("report")]

SECTIONS = (
    *(
        "Leaderboard",
        "Training",
        "Settings",
        "Labels",
        "Confusion",
        "Calibration",
        "Gallery",
        "Data",
        "Cells",
    ),
    "Provenance",
    "Words",
)
FIGURES = {
    "leaderboard",
    "curves",
    "settings",
    "pr_curves",
    "thresholds",
    "confusion",
    "calibration",
    "label_counts",
}
_FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def address(finished):
    return (finished / "report.html").as_uri()


def test_the_page_shows_what_was_found(browser, address, finished):
    page = browser.page(address)
    text = page.text()
    assert [name for name in SECTIONS if name not in text] == []
    rows = read_leaderboard(finished / "leaderboard.csv")
    for row in rows:
        assert row["cell"] in text
        assert f"{float(row['f1_micro']):.4f}" in text
    best = Selection.read(ExperimentDir(finished)).cell
    low, high = (
        float(next(row for row in rows if row["cell"] == best)[f"f1_micro_{end}"]) for end in ("lo", "hi")
    )
    assert f"{low:.4f} – {high:.4f}" in text
    assert page.value("document.querySelectorAll('svg').length") == len(FIGURES)
    for label in json.loads((finished / best / "report.json").read_text())["per_label"]:
        assert label["label"] in text
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert page.value("document.images.length") > 10
    assert page.value(broken) == 0
    assert f"labelgrid grid experiments/x/{best}/spec.yaml" in text
    page.close()


def test_no_request_leaves_the_page_and_nothing_complains(browser, address):
    page = browser.page(address)
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    assert [url for url in page.requests if url.startswith("file:")] == [address]
    assert page.complaints == []
    page.close()


def test_the_page_says_the_same_without_javascript(browser, address):
    with_script = browser.page(address)
    without = browser.page(address, script=False)
    assert with_script.value("document.querySelector('table').className") == "sortable"
    page = without.call("DOM.getDocument", depth=-1, pierce=True)
    assert _texts(page["root"]) == _texts(with_script.call("DOM.getDocument", depth=-1)["root"])
    with_script.close()
    without.close()


def _texts(node):
    own = [node["nodeValue"].strip()] if node["nodeType"] == 3 else []
    return [text for text in own if text] + [t for child in node.get("children", ()) for t in _texts(child)]


def test_a_click_on_a_heading_sorts(browser, address, finished):
    page = browser.page(address)
    table = (
        "[...document.querySelectorAll('table')].find(table => table.rows[0].cells[0].textContent === 'cell')"
    )
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent))"
    page.value(f"{table}.querySelectorAll('th')[1].click()")
    falling = page.value(column)
    page.value(f"{table}.querySelectorAll('th')[1].click()")
    assert falling == sorted(falling, reverse=True) == page.value(column)[::-1]
    assert len(falling) == 6
    page.close()


def test_on_a_phone_the_plot_shows_the_cells_and_the_first_column_stays_readable(browser, address):
    page = browser.page(address, width=390, height=900)
    column = "document.querySelector('#leaderboard td:first-child')"
    assert 100 < page.value(f"{column}.getBoundingClientRect().width") < 200
    assert page.value(f"getComputedStyle({column}).position") == "sticky"
    dots = page.value(
        "[...document.querySelectorAll('#leaderboard svg .tip')].map(dot => dot.getBoundingClientRect())"
        ".filter(box => box.left > 0 && box.right < innerWidth).length"
    )
    assert dots >= 2
    page.close()


@pytest.mark.parametrize("width", [380, 1300])
def test_it_fits_screens_narrow_and_wide_in_the_light_and_in_the_dark(browser, address, width):
    for dark in (False, True):
        page = browser.page(address, width=width, dark=dark)
        assert page.value(_FITS)
        paper, ink = (
            sum(map(int, re.findall(r"\d+", page.value(f"getComputedStyle({of}).{what}"))[:3]))
            for of, what in (
                ("document.body", "backgroundColor"),
                ("document.querySelector('svg text')", "fill"),
            )
        )
        assert (ink - paper > 300) if dark else (paper - ink > 300)
        page.close()


def test_it_prints(browser, address):
    page = browser.page(address)
    body = page.pdf()
    assert body.startswith(b"%PDF")
    assert len(body) > 50_000
    page.close()


def test_figures_and_tables_are_files_too(finished):
    folder = finished / "figures"
    for name in FIGURES:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "labels.csv").open(newline="") as file:
        labels = list(csv.DictReader(file))
    best = Selection.read(ExperimentDir(finished)).cell
    report = json.loads((finished / best / "report.json").read_text())
    assert [row["label"] for row in labels] == [entry["label"] for entry in report["per_label"]]
    assert (finished / "report.html").stat().st_size < 5_000_000


def test_half_way_through_a_sweep_the_page_shows_what_is_there(browser, finished, tmp_path):
    experiment = ExperimentDir(tmp_path / "half")
    cells = sorted(path.parent for path in finished.glob("*/manifest.json"))[:2]
    for cell in cells:
        shutil.copytree(cell, experiment.path / cell.name)
    running = experiment.path / cells[1].name
    RunDir(running).write_manifest(RunDir(running).read_manifest()["identity"], "started")
    lines = (running / "metrics.jsonl").read_text().splitlines()
    newest = next(i for i, line in enumerate(lines) if "validation/loss" in line)
    (running / "metrics.jsonl").write_text("\n".join(lines[: newest + 1]) + "\n")
    write_report(experiment, [cells[0].name, running.name, "not-begun-00000000"])
    page = browser.page(experiment.report.as_uri())
    text = page.text()
    assert "1 of 3 done" in text
    assert "unfinished, epoch 1/2" in text
    assert "not-begun-00000000" in text
    assert "validation map_macro" in text
    page.close()


def test_the_command_of_a_cell_trains_just_that_cell_anew(finished, drawn_zip, tmp_path):
    project(tmp_path, drawn_zip)
    cell = next(path.parent for path in sorted(finished.glob("*/manifest.json")))
    spec = tmp_path / "cell.yaml"
    shutil.copy(cell / "spec.yaml", spec)
    status, printed = jobs("plan", spec, cwd=tmp_path)
    assert status == 0, printed
    assert cell.name.rsplit("-", 1)[-1] in printed


def test_a_thousand_cells_stay_small(browser, finished, tmp_path):
    experiment = make_sweep(finished, tmp_path / "sweep", 1000)
    write_report(experiment)
    assert experiment.report.stat().st_size < 5_000_000
    page = browser.page(experiment.report.as_uri())
    text = page.text()
    assert "1000 of 1000 done" in text
    assert [name for name in SECTIONS if name not in text] == []
    assert all(row["cell"] in text for row in read_leaderboard(experiment.leaderboard))
    page.close()


def test_five_thousand_labels_stay_small_and_the_page_says_where_all_are(finished, tmp_path):
    labels = 5000
    experiment = make_sweep(finished, tmp_path / "sweep", 3, labels=labels)
    write_report(experiment, files=True)
    html = experiment.report.read_text()
    assert len(html) < 1_500_000
    run = RunDir(experiment.path / Selection.read(experiment).cell)
    assert f"The 200 labels with the lowest F1; all {labels} are in " in html
    assert f"The 200 labels rarest in validation; all {labels} are in " in html
    entries = json.loads(run.report.read_text())["per_label"]
    assert len(entries) == labels
    worst = sorted(entries, key=lambda entry: entry["f1"] if entry["support"] else 2)[:200]
    section = html.partition("<h2>Labels</h2>")[2].partition("<h2>")[0]
    assert set(re.findall(r"<td[^>]*>(label \d+)</td>", section)) == {entry["label"] for entry in worst}
    with (experiment.figures / "labels.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == labels
    with (experiment.figures / "splits.csv").open(newline="") as file:
        assert len(next(csv.reader(file))) == 3 + labels


def test_pairs_of_confused_labels_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    targets_NK, decisions_NK = (rng.random((2, 90, 23)) < 0.3).astype(np.uint8)
    labels = [f"l{k}" for k in range(23)]
    whole = confusions(labels, decisions_NK, targets_NK)
    monkeypatch.setattr("pipeline.report.selected._CHUNK", 5)
    assert confusions(labels, decisions_NK, targets_NK) == whole
    wrong = {
        (a, b): int((targets_NK[:, a] & decisions_NK[:, b] & ~targets_NK[:, b] & 1).sum())
        for a in range(23)
        for b in range(23)
    }
    expected = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:15]
    assert [row[:3] for row in whole] == [[f"l{a}", f"l{b}", str(n)] for (a, b), n in expected]


def test_drawing_imports_no_torch(finished):
    code = (
        "import sys; from pathlib import Path; from pipeline.report import write_report; "
        "from pipeline.storage.run_dir import ExperimentDir; write_report(ExperimentDir(Path(sys.argv[1]))); "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True, env=clean_environment(), cwd=ROOT)


# ---------------------------------------------------------------- TensorBoard


@pytest.fixture(scope="module")
def tensorboard(finished):
    """Its address, on the experiment."""
    arguments = ["--logdir", str(finished), "--port", "0", "--host", "127.0.0.1", "--load_fast", "false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(),
    )
    address = None
    while address is None:
        line = process.stdout.readline()
        assert line, "TensorBoard did not start"
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        address = found and found[0]
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{address}data/runs") as answer:
            if len(json.load(answer)) == 4:
                break
        time.sleep(0.5)
    yield address
    process.terminate()
    process.communicate(timeout=PATIENCE_S)


def test_tensorboard_shows_scalars_of_every_run(browser, tensorboard, finished):
    names = [path.parent.name for path in finished.glob("*/manifest.json")]
    page = browser.page(f"{tensorboard}#scalars")
    page.wait_for(["train", "validation", *(name[:20] for name in names)])
    with urllib.request.urlopen(f"{tensorboard}data/plugin/scalars/tags") as answer:
        tags = json.load(answer)
    assert sorted(tags) == sorted(names)  # and no run beside them
    assert len({tuple(sorted(of_run)) for of_run in tags.values()}) == 1
    row = next(row for row in read_jsonl(finished / names[0] / "metrics.jsonl") if "validation/loss" in row)
    assert set(row) - {"step", "epoch", "best_epoch", "best_value"} <= set(tags[names[0]])
    page.close()


def test_tensorboard_opens_on_what_matters_and_says_what_was_asked(browser, tensorboard, finished):
    name = next(path.parent.name for path in finished.glob("*/manifest.json"))
    with urllib.request.urlopen(f"{tensorboard}data/plugin/scalars/tags") as answer:
        tags = sorted(json.load(answer)[name])
    first = [tag for tag in tags if tag.startswith("0_overview/")]
    assert tags[: len(first)] == first
    assert {tag.partition("/")[2] for tag in first} == {
        "train_loss", "validation_loss", "validation_map_macro", "train_lr",
    }  # fmt: skip
    groups = {tag.partition("/")[0] for tag in tags}
    assert groups == {"0_overview", "best", "train", "validation"}  # single points in a group of their own
    assert sorted(tag for tag in tags if tag.startswith("best/"))[0] == "best/0_f1_micro"
    page = browser.page(f"{tensorboard}#text")
    page.wait_for(["about/spec", "optimizer"])
    page.close()


def test_tensorboard_shows_settings_and_results_side_by_side(browser, tensorboard, finished):
    page = browser.page(f"{tensorboard}#hparams")
    page.wait_for(["train.optimizer.lr", "train.seed", "validation/f1_micro", "0.0010000", "0.010000"])
    page.close()


def test_tensorboard_shows_pr_curves_and_pictures(browser, tensorboard, finished):
    best = Selection.read(ExperimentDir(finished)).cell
    label = json.loads((finished / best / "report.json").read_text())["per_label"][0]["label"]
    page = browser.page(f"{tensorboard}#pr_curves")
    page.wait_for([best[:20], f"validation/{label}"])
    page.close()
    page = browser.page(f"{tensorboard}#images")
    page.wait_for(["augmented/first_batch", "false_negatives/"])
    page.close()
