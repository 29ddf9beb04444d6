"""Evaluate an experiment: decide, measure and rank every finished cell, and select one. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import Split, read_split
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation.cell import CellEvaluation, baselines, evaluate_cell, measure
from pipeline.evaluation.leaderboard import (
    COMPARISON_COLUMNS,
    METRIC_COLUMNS,
    SEED_COLUMNS,
    Row,
    rank,
    write_leaderboard,
)
from pipeline.evaluation.recipes import named
from pipeline.evaluation.selection import ENSEMBLE, EvaluationInputs, Selection, tables
from pipeline.metrics.bootstrap import Contender, compare, over_seeds
from pipeline.metrics.decision_rule import Validation
from pipeline.spec import LOWER_IS_BETTER, METRICS, TopCells
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
    others, _ = _measure_cells(
        inputs.others, inputs, {}, only=same | {cell.validation.digest for cell in own}
    )
    finished = named([*own, *others], experiment, {name for name, _ in inputs.cells})
    rows += [cell.row for cell in finished]
    rows += _baselines(parts, [split.stem for _, split in sets])
    ensemble = _ensemble(inputs, finished)
    rows += [ensemble.evaluated.row] if ensemble.evaluated else []
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    measured: dict[str, list[CellEvaluation]] = {}
    for cell in finished:
        measured.setdefault(cell.row.recipe, []).append(cell)
    _write_seeds(experiment, measured)
    validated = {frozenset(cell.validation.digest for cell in group) for group in measured.values()}
    extra = {ENSEMBLE: [ensemble.evaluated]} if ensemble.evaluated else {}
    # resampling images compares what was validated on the same ones
    paired = len(validated) <= 1 and all(len(digests) == 1 for digests in validated)
    _write_comparisons(experiment, measured | extra if paired else {}, evaluate.select_by)
    ranked = {cell.row.cell for cell in finished}
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
        codes=tuple(sorted({RunDir(experiment.path / cell).code_digest() for cell in ranked})),
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
    measured: list[CellEvaluation] = []
    rows: list[Row] = []
    for name, identity in cells:
        run = RunDir(inputs.experiment.path / name)
        reason = run.why_not_done(identity)
        try:
            if reason is not None:
                raise CheckpointError(_why(reason, reasons.get(name)))
            if only is None or Validation.read(run).digest in only:
                measured.append(evaluate_cell(run, inputs.evaluate))
        except CheckpointError as error:
            rows.append(_row_without_metrics(name, str(error), known=str(error) != reason or name in reasons))
    return measured, rows


def _validation_of(packed: PackedSet, split: Split) -> Validation:
    """The validation images of a split, with scores of 0."""
    targets_NK = packed.labels_NK[split.validation]
    ids = [packed.ids[row] for row in split.validation]
    return Validation(ids, list(packed.labels), np.zeros(targets_NK.shape, np.float32), targets_NK)


def _baselines(parts: Sequence[tuple[PackedSet, Split]], names: Sequence[str]) -> list[Row]:
    """Two rows; of several splits their means, and two for each."""
    each = [baselines(packed, split) for packed, split in parts]
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
    by_name = {cell.row.cell: cell.validation for cell in finished}
    if cells == "best" or not rows:
        return _Ensemble()
    if isinstance(cells, TopCells):
        same = by_name[rows[0].cell].digest
        members = [row.cell for row in rows if by_name[row.cell].digest == same][: cells.top]
    else:
        members = [row.cell for row in rows if row.cell.startswith(cells)]
        for prefix in cells:
            if not any(name.startswith(prefix) for name in members):
                known = ", ".join(row.cell for row in rows)
                return _Ensemble(
                    problem=f"submission.cells: no finished cell starts with {prefix!r}; finished: {known}"
                )
    try:
        validation = Validation.mean([by_name[name] for name in members])
    except SubmissionError as error:
        return _Ensemble(problem=str(error))
    run = RunDir(inputs.experiment.path / ENSEMBLE)
    run.path.mkdir(exist_ok=True)
    return _Ensemble(tuple(members), measure(run, ENSEMBLE, validation, evaluate))


def _write_seeds(experiment: ExperimentDir, measured: Mapping[str, Sequence[CellEvaluation]]) -> None:
    """Mean and spread of every recipe that has several seeds or splits; no file where there is none."""
    table = [
        {
            "cell": name,
            "seeds": len(group),
            "splits": len({cell.validation.digest for cell in group}),
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
