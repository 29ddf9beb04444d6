"""Evaluate an experiment: decide, measure and rank every finished cell, and select one. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import Split, read_split
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation.cell import baselines, measure
from pipeline.evaluation.kept import CellEvaluation, kept, key_of
from pipeline.evaluation.leaderboard import (
    COMPARISON_COLUMNS,
    METRIC_COLUMNS,
    SEED_COLUMNS,
    Row,
    rank,
    write_leaderboard,
)
from pipeline.evaluation.measuring import evaluate_cells
from pipeline.evaluation.mixed_hardware import mixed_hardware
from pipeline.evaluation.recipes import named
from pipeline.evaluation.selection import ENSEMBLE, EvaluationInputs, Selection, tables
from pipeline.metrics.bootstrap import Contender, compare, over_seeds
from pipeline.metrics.decision_rule import Validation
from pipeline.spec import LOWER_IS_BETTER, METRICS, EvaluateSpec, TopCells
from pipeline.storage.files import read_json_or_empty, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import write_table

_POINTS = frozenset(name for name in METRIC_COLUMNS if not name.endswith(("_lo", "_hi")))
_COMPARED = 20  # recipes, the best ones
Sets = Sequence[tuple[Path, Path]]  # packed sets and splits, in the order of the cells


def evaluate_experiment(
    inputs: EvaluationInputs, *, monitor: str, sets: Sets, reasons: Mapping[str, str]
) -> None:
    """Write report.json of every finished cell, the tables and selected.json.

    An incomplete cell gets a row with its reason and does not stop the others. `reasons` explains cells
    whose own process could not record why it ended. Complete cells of an earlier spec or SET are ranked
    too where they were validated on the same images; the others are named in the selection.
    """
    experiment, evaluate = inputs.experiment, inputs.evaluate
    # training verified every byte of the pixels; here only labels are used
    parts = [(PackedSet.open(packed, verify=False), read_split(split)) for packed, split in sets]
    same = {_validation_of(packed, split).digest for packed, split in parts}
    own, rows = _measure_cells(inputs.cells, inputs, reasons)
    others, _ = _measure_cells(inputs.others, inputs, {}, only=same | {cell.images for cell in own})
    finished = named([*own, *others], {name for name, _ in inputs.cells})
    rows += [cell.row for cell in finished]
    rows += _baselines(experiment, parts, [split.stem for _, split in sets])
    ensemble = _ensemble(inputs, finished)
    rows += [ensemble.evaluated.row] if ensemble.evaluated else []
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    measured: dict[str, list[CellEvaluation]] = {}
    for cell in finished:
        measured.setdefault(cell.row.recipe, []).append(cell)
    _write_seeds(experiment, measured)
    validated = {frozenset(cell.images for cell in group) for group in measured.values()}
    extra = {ENSEMBLE: [ensemble.evaluated]} if ensemble.evaluated else {}
    # resampling images compares what was validated on the same ones
    paired = len(validated) <= 1 and all(len(digests) == 1 for digests in validated)
    _write_comparisons(experiment, measured | extra if paired else {}, evaluate.select_by)
    ranked = {cell.row.cell for cell in finished}
    runs = [RunDir(experiment.path / cell.row.cell) for cell in finished]
    selection = Selection(
        inputs=inputs.digest,
        made_by=inputs.made_by,
        select_by=evaluate.select_by,
        evaluate=evaluate,
        monitor=monitor,
        packed=sets[0][0],
        split=sets[0][1],
        comparable=len(validated) <= 1,
        splits=max((len(digests) for digests in validated), default=1),
        absent_labels=tuple(sorted({label for cell in finished for label in cell.absent})),
        ensemble=ensemble.members,
        problem=ensemble.problem,
        codes=tuple(sorted({run.code_digest() for run in runs})),
        mixed_hardware=mixed_hardware(runs),
        tables=tables(experiment),
        left_out=tuple(name for name, _ in inputs.others if name not in ranked),
    )
    selection.resolve(experiment, Selection.read(experiment).user_pick).write(experiment)


def _measure_cells(
    cells: Sequence[tuple[str, str]],
    inputs: EvaluationInputs,
    reasons: Mapping[str, str],
    only: Collection[str] | None = None,
) -> tuple[list[CellEvaluation], list[Row]]:
    """Finished cells (with `only`, those validated on one of these), and the rows of those that are not."""
    runs = {name: RunDir(inputs.experiment.path / name) for name, _ in cells}
    unfinished = {name: runs[name].why_not_done(identity) for name, identity in cells}
    complete = [run for name, run in runs.items() if unfinished[name] is None]
    found = dict(zip(complete, evaluate_cells(complete, inputs.evaluate, only), strict=True))
    measured: list[CellEvaluation] = []
    rows: list[Row] = []
    for name, run in runs.items():
        cell, reason = found.get(run), unfinished[name]
        if isinstance(cell, CellEvaluation):
            measured.append(cell)
        elif isinstance(cell, CheckpointError):
            rows.append(_row_without_metrics(name, str(cell), known=True))
        elif reason is not None:
            why = _why(reason, reasons.get(name))
            rows.append(_row_without_metrics(name, why, known=why != reason or name in reasons))
    return measured, rows


def _validation_of(packed: PackedSet, split: Split) -> Validation:
    """The validation images of a split, with scores of 0."""
    targets_NK = packed.labels_NK[split.validation]
    ids = [packed.ids[row] for row in split.validation]
    return Validation(ids, list(packed.labels), np.zeros(targets_NK.shape, np.float32), targets_NK)


def _baselines(
    experiment: ExperimentDir, parts: Sequence[tuple[PackedSet, Split]], names: Sequence[str]
) -> list[Row]:
    """Two rows; of several splits their means, and two for each. They are measured once for the same labels."""
    labels = [packed.labels_NK[rows] for packed, split in parts for rows in (split.train, split.validation)]
    key = key_of(EvaluateSpec(), [f"{each.shape} {sha256(each.tobytes()).hexdigest()}" for each in labels])
    known = read_json_or_empty(experiment.baselines)
    if known.get("key") != key:
        measured = [{row.cell: dict(row.metrics) for row in baselines(packed, s)} for packed, s in parts]
        known = {"key": key, "of_splits": measured}
        write_json(experiment.baselines, known)
    each = [[Row(name, "baseline", metrics=m) for name, m in rows.items()] for rows in known["of_splits"]]
    if len(each) == 1:
        return each[0]
    means = [
        Row(
            rows[0].cell,
            "baseline",
            metrics={key: _mean(rows, key) for key in rows[0].metrics if key in _POINTS},
        )
        for rows in zip(*each, strict=True)
    ]
    return means + [
        replace(row, cell=f"{row.cell}-{name}")
        for name, rows in zip(names, each, strict=True)
        for row in rows
    ]


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row.metrics[key] for row in rows]))


@dataclass(frozen=True)
class _Ensemble:
    members: tuple[str, ...] = ()  # empty: the best cell alone
    evaluated: CellEvaluation | None = None
    problem: str | None = None  # why `submission.cells` cannot be fulfilled


def _ensemble(inputs: EvaluationInputs, finished: Sequence[CellEvaluation]) -> _Ensemble:
    """The cells of `submission.cells`, and their mean scores decided and measured like a cell's."""
    cells, evaluate = inputs.submission.cells, inputs.evaluate
    rows = rank([cell.row for cell in finished], evaluate.select_by)
    images = {cell.row.cell: cell.images for cell in finished}
    if cells == "best" or not rows:
        return _Ensemble()
    if isinstance(cells, TopCells):
        same = images[rows[0].cell]
        members = [row.cell for row in rows if images[row.cell] == same][: cells.top]
    else:
        members = [row.cell for row in rows if row.cell.startswith(cells)]
        for prefix in cells:
            if not any(name.startswith(prefix) for name in members):
                known = ", ".join(row.cell for row in rows)
                return _Ensemble(
                    problem=f"submission.cells: no finished cell starts with {prefix!r}; finished: {known}"
                )
    run = RunDir(inputs.experiment.path / ENSEMBLE)
    runs = [RunDir(inputs.experiment.path / name) for name in members]
    key = key_of(evaluate, [digest for member in runs for digest in member.digests_of(member.scores_val)])
    found = kept(run, key, evaluate.select_by, ENSEMBLE)
    if found is None:
        try:
            validation = Validation.mean(map(Validation.read, runs))
        except (SubmissionError, CheckpointError) as error:
            return _Ensemble(problem=str(error))
        found = measure(run, ENSEMBLE, validation, evaluate, key)
    return _Ensemble(tuple(members), found)


def _write_seeds(experiment: ExperimentDir, measured: Mapping[str, Sequence[CellEvaluation]]) -> None:
    """Mean and spread of every recipe that has several seeds or splits; no file where there is none."""
    table = [
        {
            "cell": name,
            "seeds": len(group),
            "splits": len({cell.images for cell in group}),
            **over_seeds([cell.row.metrics for cell in group], METRICS),
        }
        for name, group in sorted(measured.items())
        if len(group) > 1
    ]
    if table:
        write_table(experiment.seeds, SEED_COLUMNS, table)
    else:
        experiment.seeds.unlink(missing_ok=True)


def _write_comparisons(
    experiment: ExperimentDir, measured: Mapping[str, Sequence[CellEvaluation]], metric: str
) -> None:
    """Compare the best recipes in pairs; the seeds of one count together."""
    contenders = []
    for name, group in measured.items():
        values = tuple(cell.row.metrics[metric] for cell in group)
        resampled_R = np.mean([cell.resampled_R for cell in group], axis=0)
        contenders.append(Contender(name, values, resampled_R))
    lower = metric in LOWER_IS_BETTER
    contenders.sort(key=lambda c: (c.value if lower else -c.value, c.name))
    table = compare(contenders[:_COMPARED], metric, lower_is_better=lower)
    write_table(experiment.comparisons, COMPARISON_COLUMNS, table)


def _row_without_metrics(name: str, why: str, *, known: bool) -> Row:
    """The state that `why` begins with (`failed`, `diverged`), else `failed` if `known`, else `missing`."""
    state, _, error = why.partition(": ")
    if state in ("failed", "diverged"):
        return Row(name, state, error=error)
    return Row(name, "failed" if known else "missing", error=why)


def _why(reason: str, known: str | None) -> str:
    """The cell's own reason, unless it only says that it was killed and `known` says more."""
    explained = reason.startswith(("failed: ", "diverged: ")) and not reason.startswith("failed: killed by")
    return reason if explained or not known else known
