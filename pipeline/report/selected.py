"""What is known of the selected cell alone: its labels, confusion, calibration, and pictures. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.packed import PackedSet
from pipeline.deciding import Rule, Validation
from pipeline.errors import CheckpointError, DataError
from pipeline.files import read_json
from pipeline.pictures import jpeg
from pipeline.report import figures
from pipeline.report.facts import Facts
from pipeline.report.figures import Plots
from pipeline.report.page import Table, note, plain
from pipeline.rundir import RunDir
from pipeline.spec import EvaluateSpec
from pipeline.thresholds import Decisions, Scores

_COLUMNS = ("label", "support", "predicted", "precision", "recall", "f1", "ap", "threshold")
_CONFUSION = "In per cent. A pair bright on the right but dark on the left is seen together where it is not."
_CALIBRATION = "All labels together. On the dashed line a score is a probability."
_EACH = 12
_PX = 128
_EPS = 1e-6


@dataclass(frozen=True)
class Judged:
    """Validation images under one cell: ids, labels, scores, decisions, truth."""

    ids: list[str]
    labels: list[str]
    scores_NK: Scores
    decisions_NK: Decisions
    targets_NK: Decisions

    @property
    def likelihood(self) -> npt.NDArray[np.float64]:
        """Log-likelihood of each image's labels under its scores."""
        right_NK = np.where(self.targets_NK == 1, self.scores_NK, 1 - self.scores_NK.astype(np.float64))
        return np.asarray(np.log(np.maximum(right_NK, _EPS)).sum(axis=1))


def selected_cell(facts: Facts, plots: Plots, table: Callable[[str, Table], str]) -> list[tuple[str, str]]:
    """(heading, HTML) of its sections; none before it is evaluated. `table` keeps a table and gives its HTML."""
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
    ids, labels, scores_NK = validation.ids, validation.labels, validation.scores_NK
    targets_NK = validation.targets_NK
    entries, found = report["per_label"], report.get("calibration", {})
    rule_of = Rule.fit(evaluate, scores_NK, targets_NK)
    judged = Judged(ids, labels, scores_NK, rule_of(scores_NK), targets_NK)
    rows = [[plain(entry.get(column)) for column in _COLUMNS] for entry in entries]
    curves = plots.add("pr_curves", "precision and recall of each label",
                       lambda: figures.pr_curves(entries, scores_NK, targets_NK))  # fmt: skip
    confusion = plots.add("confusion", "co-occurrence and confusion of labels",
                          lambda: figures.confusion(labels, judged.decisions_NK, targets_NK))  # fmt: skip
    calibration = plots.add("calibration", "reliability", lambda: figures.calibration(found))
    which = note(f"Of the selected cell, {escape(run.name)}; {len(ids)} validation images.")
    rule = note(f"Decided by: {escape(report['threshold'])}. The diamond is what the decisions come to.")
    return [
        ("Labels", which + table("labels", Table(_COLUMNS, rows)) + rule + curves),
        ("Confusion", confusion and confusion + note(_CONFUSION)),
        ("Calibration", calibration and calibration + note(_CALIBRATION)),
        ("Gallery", gallery(judged, Path(facts.selected.get("packed") or "-"))),
    ]


def gallery(judged: Judged, packed_dir: Path) -> str:
    """Three rows of thumbnails out of the packed set; a sentence where that is not at hand."""
    try:
        packed = PackedSet.open(packed_dir, verify=False)
    except DataError:
        return note(
            f"The packed images ({escape(str(packed_dir))}) are not at hand, so there are no pictures."
        )
    row_of = {image: row for row, image in enumerate(packed.ids)}
    known = np.array([image in row_of for image in judged.ids], bool)
    likelihood_N = judged.likelihood
    right_N = (judged.decisions_NK == judged.targets_NK).all(axis=1)
    bearing_N = judged.targets_NK.any(axis=1)
    best = _first(np.argsort(-likelihood_N, kind="stable"), right_N & bearing_N & known)
    worst = _first(np.argsort(likelihood_N, kind="stable"), known)
    error_NK = np.abs(judged.scores_NK - judged.targets_NK) * (judged.decisions_NK != judged.targets_NK)
    surest = _first(np.argsort(-error_NK.max(axis=1), kind="stable"), (error_NK.max(axis=1) > 0) & known)
    groups = (
        ("Best: all labels right, by likelihood, among images that bear one", best),
        ("Worst: the least likely labels under their scores", worst),
        ("Most confident mistakes: the highest score without the label, or the lowest with it", surest),
    )
    html = []
    for title, chosen in groups:
        if chosen:
            pixels = packed.gather([row_of[judged.ids[i]] for i in chosen])
            figures = [_figure(judged, i, image_HWC) for i, image_HWC in zip(chosen, pixels, strict=True)]
            html.append(f"<h3>{title}</h3><div class=gallery>{''.join(figures)}</div>")
    return "".join(html)


def _first(order: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in order if allowed[i]][:_EACH]


def _figure(judged: Judged, i: int, image_HWC: npt.NDArray[np.uint8]) -> str:
    data = base64.b64encode(jpeg(Image.fromarray(image_HWC), _PX)).decode()
    decided, true, scores = judged.decisions_NK[i] == 1, judged.targets_NK[i] == 1, judged.scores_NK[i]
    parts = [
        _said("ok", "✓", judged.labels, decided & true, scores),
        _said("wrong", "✗ not", judged.labels, decided & ~true, scores),
        _said("wrong", "missed", judged.labels, ~decided & true, scores),
    ]
    said = "<br>".join(part for part in parts if part) or "no label, rightly"
    name = escape(judged.ids[i])
    image = f'<img src="data:image/jpeg;base64,{data}" alt="image {name}">'
    return f"<figure>{image}<figcaption>{name}<br>{said}</figcaption></figure>"


def _said(
    kind: str,
    mark: str,
    labels: Sequence[str],
    chosen: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float32],
) -> str:
    names = ", ".join(f"{escape(labels[k])} {scores[k]:.2f}" for k in np.flatnonzero(chosen).tolist())
    return f"<span class={kind}>{mark} {names}</span>" if names else ""
