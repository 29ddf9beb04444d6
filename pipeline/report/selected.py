"""Sections about the selected cell: its labels, confusion, calibration, and pictures. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from pipeline.data.packed import PackedSet
from pipeline.errors import CheckpointError, DataError
from pipeline.metrics.calibration import ece
from pipeline.metrics.decision_rule import DecisionRule, Validation
from pipeline.metrics.multilabel import Decisions
from pipeline.report import label_figures as figures
from pipeline.report.facts import LABELS, Facts, smallest
from pipeline.report.figures import Plots
from pipeline.report.page import Table, note, plain
from pipeline.report.page import gallery as pictures_of
from pipeline.storage.files import display_path, read_json
from pipeline.storage.run_dir import RunDir
from pipeline.tracking.pictures import jpeg

_COLUMNS = ("label", "support", "predicted", "precision", "recall", "f1", "ap", "threshold", "ece")
_CONFUSED = 15  # pairs of labels
_CHUNK = 256  # labels whose pairs are counted at once
_NAMED = 12  # labels beneath a picture, of each kind
_CONFUSION = (
    "In per cent. Bright on the right but dark on the left: predicted together, but rarely true together."
)
_CALIBRATION = (
    "All labels together. On the dashed line a score is a probability. "
    "The table of labels has the error of each (ece)."
)
_AGAINST = (
    "The dashed line is the threshold in use. A flat top means that the exact threshold matters little."
)
_PAIR = ("true label", "decided too, though absent", "images", "of those with the first and not the second")
_EACH = 12
_PX = 128
_EPS = 1e-6


def selected_cell(facts: Facts, plots: Plots, table: Callable[..., Markup]) -> list[tuple[str, Markup]]:
    """(heading, HTML) of its sections; none before it is evaluated. `table` is `Report._table`."""
    if facts.best is None:
        return []
    run, selection = RunDir(facts.experiment.path / facts.best.name), facts.selection
    try:
        report = read_json(run.report)
        runs = [RunDir(facts.experiment.path / name) for name in selection.cells]
        validation = Validation.mean(map(Validation.read, runs))
    except (OSError, ValueError, CheckpointError):
        return []
    labels, scores_NK, targets_NK = validation.labels, validation.scores_NK, validation.targets_NK
    decisions_NK = DecisionRule.fit(selection.evaluate, scores_NK, targets_NK)(scores_NK)
    entries, result = report["per_label"], report.get("calibration", {})
    for k, entry in enumerate(entries):
        entry["ece"] = ece(scores_NK[:, k : k + 1], targets_NK[:, k : k + 1])
    rows = [[plain(entry.get(column)) for column in _COLUMNS] for entry in entries]
    curves = plots.add("pr_curves", "precision and recall of each label",
                       lambda: figures.pr_curves(entries, scores_NK, targets_NK))  # fmt: skip
    confusion = plots.add("confusion", "co-occurrence and confusion of labels",
                          lambda: figures.confusion(labels, decisions_NK, targets_NK))  # fmt: skip
    calibration = plots.add("calibration", "reliability", lambda: figures.calibration(result))
    against = plots.add("thresholds", "F1, precision and recall of each label against its threshold",
                        lambda: figures.thresholds(entries, scores_NK, targets_NK))  # fmt: skip
    which = note(f"Of the selected cell, {run.name}; {len(validation.ids)} validation images.")
    # a label without an image has no F1
    shown = smallest([entry["f1"] if entry["support"] else 2 for entry in entries])
    if len(entries) > LABELS:
        which += note(
            f"The {LABELS} labels with the lowest F1; all {len(entries)} are in {display_path(run.report)}."
        )
    per_label = table("labels", Table(_COLUMNS, rows), on_page=Table(_COLUMNS, [rows[k] for k in shown]))
    rule = note(f"Decided by: {report['threshold']}. The diamond marks the decisions.")
    tuned = against and against + note(_AGAINST)
    ranked = table("confusions", Table(_PAIR, confusions(labels, decisions_NK, targets_NK)))
    return [
        ("Labels", which + per_label + rule + curves + tuned),
        ("Confusion", confusion and confusion + note(_CONFUSION) + ranked),
        ("Calibration", calibration and calibration + note(_CALIBRATION)),
        ("Gallery", gallery(validation, decisions_NK, selection.packed or Path("-"))),
    ]


def confusions(labels: Sequence[str], decisions_NK: Decisions, targets_NK: Decisions) -> list[list[str]]:
    """The label that is most often decided where another one is true and it is not, one row a pair."""
    actual_NK, wrong_NK = targets_NK.astype(np.float32), (decisions_NK > targets_NK).astype(np.float32)
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(labels), _CHUNK):  # never all pairs at once; counts are exact below 2**24
        wrong_CK = actual_NK[:, start : start + _CHUNK].T @ wrong_NK
        for place in np.argsort(-wrong_CK, axis=None, kind="stable")[:_CONFUSED]:
            a, b = divmod(int(place), len(labels))
            found.append((-float(wrong_CK[a, b]), start + a, b))
    rows = []
    for wrong, a, b in sorted(found)[:_CONFUSED]:
        if wrong:
            chances = float(actual_NK[:, a] @ (1 - actual_NK[:, b]))
            rows.append([labels[a], labels[b], f"{-wrong:.0f}", f"{-100 * wrong / chances:.0f} %"])
    return rows


def gallery(validation: Validation, decisions_NK: Decisions, packed_dir: Path) -> Markup:
    """Three rows of thumbnails from the packed set; a sentence where it is not available."""
    try:
        packed = PackedSet.open(packed_dir, verify=False)
    except DataError:
        return note(f"The packed images ({packed_dir}) are not available, so there are no pictures.")
    wanted = set(validation.ids)
    row_of = {image: row for row, image in enumerate(packed.ids) if image in wanted}
    known_N = np.array([image in row_of for image in validation.ids], bool)
    scores_NK, targets_NK = validation.scores_NK, validation.targets_NK
    score_of_truth_NK = np.where(targets_NK == 1, scores_NK, 1 - scores_NK.astype(np.float64))
    loss_N = -np.log(np.maximum(score_of_truth_NK, _EPS)).mean(axis=1)
    right_N = (decisions_NK == targets_NK).all(axis=1) & targets_NK.any(axis=1)
    error_N = (np.abs(scores_NK - targets_NK) * (decisions_NK != targets_NK)).max(axis=1)
    groups = (
        (
            "Best: all labels correct, the lowest loss, among images with a label",
            _first(loss_N, right_N & known_N),
        ),
        (
            "Worst: the highest loss (the true labels are least likely under the scores)",
            _first(-loss_N, known_N),
        ),
        (
            "Most confident mistakes: the highest score without the label, or the lowest with it",
            _first(-error_N, (error_N > 0) & known_N),
        ),
    )
    html = []
    for title, chosen in groups:
        if chosen:
            rows = [row_of[validation.ids[i]] for i in chosen]
            pictures = [
                {
                    "jpeg": base64.b64encode(jpeg(Image.fromarray(image_HWC), _PX)).decode(),
                    "name": packed.names[row],
                    "loss": f"{loss_N[i]:.3f}",
                    "lines": _lines(validation, decisions_NK[i], i),
                }
                for i, row, image_HWC in zip(chosen, rows, packed.gather(rows), strict=True)
            ]
            html.append(pictures_of(title, pictures))
    return Markup().join(html)


def _first(key_N: npt.NDArray[np.floating], allowed_N: npt.NDArray[np.bool_]) -> list[int]:
    order = np.argsort(key_N, kind="stable")
    return [int(i) for i in order[allowed_N[order]][:_EACH]]


def _lines(validation: Validation, decisions_K: npt.NDArray[np.uint8], i: int) -> list[tuple[str, str]]:
    """(class, text) of what was decided rightly and wrongly."""
    predicted, actual, scores = decisions_K == 1, validation.targets_NK[i] == 1, validation.scores_NK[i]
    lines = []
    for kind, mark, chosen in (
        ("ok", "✓", predicted & actual),
        ("wrong", "✗ false positive", predicted & ~actual),
        ("wrong", "✗ false negative", ~predicted & actual),
    ):
        places = np.flatnonzero(chosen)
        labels = [f"{validation.labels[k]} {scores[k]:.2f}" for k in places[:_NAMED]]
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        if labels:
            lines.append((kind, f"{mark} {', '.join(labels)}{more}"))
    return lines or [("ok", "no label, correctly")]
