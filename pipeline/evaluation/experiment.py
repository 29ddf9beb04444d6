"""Evaluate an experiment: decide, measure and rank every finished cell, and select one. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation.cell import CellEvaluation, baselines, evaluate_cell, measure
from pipeline.evaluation.leaderboard import COMPARISON_COLUMNS, SEED_COLUMNS, Row, rank, write_leaderboard
from pipeline.evaluation.selection import ENSEMBLE, EvaluationInputs, Selection, tables
from pipeline.metrics.bootstrap import Contender, compare, over_seeds
from pipeline.metrics.decision_rule import Validation
from pipeline.spec import LOWER_IS_BETTER, METRICS, TopCells
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import write_table

_COMPARED = 20  # cells, the best ones


def evaluate_experiment(
    inputs: EvaluationInputs,
    *,
    monitor: str,
    packed_dir: Path,
    split_file: Path,
    reasons: Mapping[str, str],
) -> None:
    """Write report.json of every finished cell, the tables and selected.json.

    An incomplete cell gets a row with its reason and does not stop the others. `reasons` explains cells
    whose own process could not record why it ended.
    """
    experiment, evaluate = inputs.experiment, inputs.evaluate
    measured, rows = _measure_cells(inputs, reasons)
    finished = [cell for group in measured.values() for cell in group]
    # training verified every byte of the pixels; here only labels are used
    rows += baselines(PackedSet.open(packed_dir, verify=False), read_split(split_file))
    ensemble = _ensemble(inputs, finished)
    rows += [ensemble.evaluated.row] if ensemble.evaluated else []
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    _write_seeds(experiment, measured)
    comparable = len({cell.validation.digest for cell in finished}) <= 1
    extra = {ENSEMBLE: [ensemble.evaluated]} if ensemble.evaluated else {}
    _write_comparisons(experiment, measured | extra if comparable else {}, evaluate.select_by)
    selection = Selection(
        inputs=inputs.digest,
        select_by=evaluate.select_by,
        evaluate=evaluate,
        monitor=monitor,
        packed=packed_dir,
        split=split_file,
        comparable=comparable,
        absent_labels=tuple(sorted({label for cell in finished for label in cell.absent})),
        ensemble=ensemble.members,
        problem=ensemble.problem,
        codes=tuple(sorted({RunDir(experiment.path / cell.row.cell).code_digest() for cell in finished})),
        tables=tables(experiment),
    )
    selection.resolve(experiment, Selection.read(experiment).user_pick).write(experiment)


def _measure_cells(
    inputs: EvaluationInputs, reasons: Mapping[str, str]
) -> tuple[dict[str, list[CellEvaluation]], list[Row]]:
    """Finished cells by name without the seed, and the row of every cell."""
    measured: dict[str, list[CellEvaluation]] = {}
    rows: list[Row] = []
    for name, identity, without_seed in inputs.cells:
        run = RunDir(inputs.experiment.path / name)
        reason = run.why_not_done(identity)
        try:
            if reason is not None:
                raise CheckpointError(_why(reason, reasons.get(name)))
            evaluated = evaluate_cell(run, inputs.evaluate)
        except CheckpointError as error:
            rows.append(_row_without_metrics(name, str(error), known=str(error) != reason or name in reasons))
            continue
        rows.append(evaluated.row)
        measured.setdefault(without_seed, []).append(evaluated)
    return measured, rows


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
    """Mean and spread of every cell that was trained with several seeds; no file where there is none."""
    table = [
        {
            "cell": name,
            "seeds": len(group),
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
    """Compare the best cells in pairs; the seeds of a cell count as one."""
    contenders = []
    for name, group in measured.items():
        values = tuple(cell.row.metrics[metric] for cell in group)
        resampled_R = np.mean([cell.resampled_R for cell in group], axis=0)
        contenders.append(Contender(name if len(group) > 1 else group[0].row.cell, values, resampled_R))
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
