"""Sections about the selected cell: its labels, confusion, calibration, and pictures. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.packed import PackedSet
from pipeline.errors import CheckpointError, DataError
from pipeline.metrics.decision_rule import DecisionRule, Validation
from pipeline.metrics.multilabel import Decisions
from pipeline.report import figures
from pipeline.report.facts import Facts
from pipeline.report.figures import Plots
from pipeline.report.page import Table, note, plain
from pipeline.spec import EvaluateSpec
from pipeline.storage.files import read_json
from pipeline.storage.run_dir import RunDir
from pipeline.tracking.pictures import jpeg

_COLUMNS = ("label", "support", "predicted", "precision", "recall", "f1", "ap", "threshold")
_CONFUSION = (
    "In per cent. Bright on the right but dark on the left: predicted together, but rarely true together."
)
_CALIBRATION = "All labels together. On the dashed line a score is a probability."
_EACH = 12
_PX = 128
_EPS = 1e-6


def selected_cell(facts: Facts, plots: Plots, table: Callable[[str, Table], str]) -> list[tuple[str, str]]:
    """(heading, HTML) of its sections; none before it is evaluated. `table` stores a table, returns its HTML."""
    if facts.best is None:
        return []
    run, chosen = RunDir(facts.experiment.path / facts.best.name), facts.selected
    try:
        report = read_json(run.report)
        evaluate = EvaluateSpec.model_validate(chosen["evaluate"])
        cells = [Validation.read(RunDir(facts.experiment.path / name)) for name in chosen["cells"]]
    except (OSError, ValueError, KeyError, CheckpointError):
        return []
    validation = Validation.mean(cells)
    labels, scores_NK, targets_NK = validation.labels, validation.scores_NK, validation.targets_NK
    decisions_NK = DecisionRule.fit(evaluate, scores_NK, targets_NK)(scores_NK)
    entries, result = report["per_label"], report.get("calibration", {})
    rows = [[plain(entry.get(column)) for column in _COLUMNS] for entry in entries]
    curves = plots.add("pr_curves", "precision and recall of each label",
                       lambda: figures.pr_curves(entries, scores_NK, targets_NK))  # fmt: skip
    confusion = plots.add("confusion", "co-occurrence and confusion of labels",
                          lambda: figures.confusion(labels, decisions_NK, targets_NK))  # fmt: skip
    calibration = plots.add("calibration", "reliability", lambda: figures.calibration(result))
    which = note(f"Of the selected cell, {escape(run.name)}; {len(validation.ids)} validation images.")
    rule = note(f"Decided by: {escape(report['threshold'])}. The diamond marks the decisions.")
    return [
        ("Labels", which + table("labels", Table(_COLUMNS, rows)) + rule + curves),
        ("Confusion", confusion and confusion + note(_CONFUSION)),
        ("Calibration", calibration and calibration + note(_CALIBRATION)),
        ("Gallery", gallery(validation, decisions_NK, Path(facts.selected.get("packed") or "-"))),
    ]


def gallery(validation: Validation, decisions_NK: Decisions, packed_dir: Path) -> str:
    """Three rows of thumbnails from the packed set; a sentence where it is not available."""
    try:
        packed = PackedSet.open(packed_dir, verify=False)
    except DataError:
        return note(
            f"The packed images ({escape(str(packed_dir))}) are not available, so there are no pictures."
        )
    row_of = {image: row for row, image in enumerate(packed.ids)}
    known_N = np.array([image in row_of for image in validation.ids], bool)
    scores_NK, targets_NK = validation.scores_NK, validation.targets_NK
    score_of_truth_NK = np.where(targets_NK == 1, scores_NK, 1 - scores_NK.astype(np.float64))
    likelihood_N = np.log(np.maximum(score_of_truth_NK, _EPS)).sum(axis=1)
    right_N = (decisions_NK == targets_NK).all(axis=1) & targets_NK.any(axis=1)
    error_N = (np.abs(scores_NK - targets_NK) * (decisions_NK != targets_NK)).max(axis=1)
    best = _first(-likelihood_N, right_N & known_N)
    worst = _first(likelihood_N, known_N)
    surest = _first(-error_N, (error_N > 0) & known_N)
    groups = (
        ("Best: all labels correct, by likelihood, among images with a label", best),
        ("Worst: the true labels are least likely under the scores", worst),
        ("Most confident mistakes: the highest score without the label, or the lowest with it", surest),
    )
    html = []
    for title, chosen in groups:
        if chosen:
            pixels = packed.gather([row_of[validation.ids[i]] for i in chosen])
            figures = [
                _figure(validation, decisions_NK[i], i, image_HWC)
                for i, image_HWC in zip(chosen, pixels, strict=True)
            ]
            html.append(f"<h3>{title}</h3><div class=gallery>{''.join(figures)}</div>")
    return "".join(html)


def _first(key_N: npt.NDArray[np.floating], allowed_N: npt.NDArray[np.bool_]) -> list[int]:
    order = np.argsort(key_N, kind="stable")
    return [int(i) for i in order[allowed_N[order]][:_EACH]]


def _figure(
    validation: Validation, decisions_K: npt.NDArray[np.uint8], i: int, image_HWC: npt.NDArray[np.uint8]
) -> str:
    data = base64.b64encode(jpeg(Image.fromarray(image_HWC), _PX)).decode()
    predicted, actual, scores = decisions_K == 1, validation.targets_NK[i] == 1, validation.scores_NK[i]
    parts = []
    for kind, mark, chosen in (
        ("ok", "✓", predicted & actual),
        ("wrong", "✗ false positive", predicted & ~actual),
        ("wrong", "✗ false negative", ~predicted & actual),
    ):
        labels = [f"{escape(validation.labels[k])} {scores[k]:.2f}" for k in np.flatnonzero(chosen)]
        if labels:
            parts.append(f"<span class={kind}>{mark} {', '.join(labels)}</span>")
    caption = "<br>".join(parts) or "no label, correctly"
    name = escape(validation.ids[i])
    image = f'<img src="data:image/jpeg;base64,{data}" alt="image {name}">'
    return f"<figure>{image}<figcaption>{name}<br>{caption}</figcaption></figure>"
