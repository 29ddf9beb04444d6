"""Evaluate a whole experiment: every finished cell decided, measured and ranked, one selected. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.deciding import Validation
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation import Evaluated, baselines, evaluate_cell, measure
from pipeline.files import sha256_file, write_json
from pipeline.identity import digest
from pipeline.leaderboard import (
    COMPARISON_COLUMNS,
    SEED_COLUMNS,
    Row,
    best_cell,
    format_comparisons,
    format_table,
    rank,
    read_leaderboard,
    read_table,
    write_leaderboard,
    write_table,
)
from pipeline.metrics import METRICS
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.spec import LOWER_IS_BETTER, EvaluateSpec, SubmissionSpec, TopCells
from pipeline.statistics import Contender, compare, over_seeds

FORMAT = 2  # of the tables: an experiment evaluated by another format is evaluated anew
ENSEMBLE = "ensemble"  # the row and folder of several cells' mean scores
_COMPARED = 20  # cells, the best ones


@dataclass(frozen=True)
class Evaluation:
    """What a leaderboard is made of: cells as (folder name, identity, name without the seed), the rule, the data."""

    experiment: ExperimentDir
    cells: tuple[tuple[str, str, str], ...]
    evaluate: EvaluateSpec
    submission: SubmissionSpec
    data_digests: tuple[str, ...]

    @property
    def inputs(self) -> str:
        """Digest of all that the leaderboard depends on: equal inputs need no new evaluation."""
        runs = [(RunDir(self.experiment.path / name), identity) for name, identity, _ in self.cells]
        cells = [(run.name, run.why_not_done(identity), _scores_digest(run)) for run, identity in runs]
        return digest(
            [
                FORMAT,
                cells,
                self.evaluate.model_dump(mode="json"),
                self.submission.model_dump(mode="json"),
                list(self.data_digests),
            ]
        )

    @property
    def is_done(self) -> bool:
        """True when leaderboard, selection and report are there and made of just these inputs."""
        selected = self.experiment.read_selected()
        made = selected.get("inputs") == self.inputs and self.experiment.report.exists()
        return made and selected.get("tables") == _tables(self.experiment)


def evaluate_experiment(
    evaluation: Evaluation,
    *,
    best_by: str,
    packed_dir: Path,
    split_file: Path,
    reasons: Mapping[str, str],
) -> None:
    """Write report.json of every finished cell, the tables (`pipeline.leaderboard`), selected.json, report.html.

    A cell that is not whole has a row that says why, and stops nobody; `reasons` knows more than its
    manifest, where its process could not say.
    """
    experiment, evaluate = evaluation.experiment, evaluation.evaluate
    rows: list[Row] = []
    measured: dict[str, list[Evaluated]] = {}  # by name without the seed
    codes: set[str] = set()
    for name, identity, without_seed in evaluation.cells:
        run = RunDir(experiment.path / name)
        reason = run.why_not_done(identity)
        try:
            if reason is not None:
                raise CheckpointError(_why(reason, reasons.get(name)))
            found = evaluate_cell(run, evaluate)
        except CheckpointError as error:
            rows.append(_row_without_metrics(name, str(error), known=str(error) != reason or name in reasons))
            continue
        rows.append(found.row)
        codes.add(run.code_digest())
        measured.setdefault(without_seed, []).append(found)
    # every byte of the pixels was verified where they were read; here only labels are used
    rows += baselines(PackedSet.open(packed_dir, verify=False), read_split(split_file))
    ensemble = _ensemble(evaluation, measured)
    rows += [ensemble.found.row] if ensemble.found else []
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    _write_seeds(experiment, measured)
    comparable = len({found.validation.digest for group in measured.values() for found in group}) <= 1
    together = {ENSEMBLE: [ensemble.found]} if ensemble.found else {}
    _write_comparisons(experiment, measured | together if comparable else {}, evaluate.select_by)
    absent = sorted({label for group in measured.values() for found in group for label in found.absent})
    selected = experiment.read_selected() | {
        "inputs": evaluation.inputs,
        "select_by": evaluate.select_by,
        "evaluate": evaluate.model_dump(mode="json"),
        "best_by": best_by,
        "packed": str(packed_dir),
        "split": str(split_file),
        "comparable": comparable,
        "absent_labels": absent,
        "ensemble": ensemble.members,
        "problem": ensemble.problem,
        "codes": sorted(codes),
        "tables": _tables(experiment),
    }
    write_json(experiment.selected, _choose(experiment, selected, None))
    _write_report(experiment, [name for name, _, _ in evaluation.cells])


@dataclass(frozen=True)
class _Ensemble:
    members: list[str] = field(default_factory=list)  # none: the best cell alone
    found: Evaluated | None = None
    problem: str | None = None  # why what `submission.cells` asks for cannot be


def _ensemble(evaluation: Evaluation, measured: Mapping[str, Sequence[Evaluated]]) -> _Ensemble:
    """The cells of `submission.cells`, and their mean scores decided and measured like a cell's."""
    cells, evaluate = evaluation.submission.cells, evaluation.evaluate
    rows = rank([found.row for group in measured.values() for found in group], evaluate.select_by)
    by_name = {found.row.cell: found.validation for group in measured.values() for found in group}
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
    run = RunDir(evaluation.experiment.path / ENSEMBLE)
    run.path.mkdir(exist_ok=True)
    return _Ensemble(members, measure(run, ENSEMBLE, validation, evaluate))


def _write_seeds(experiment: ExperimentDir, measured: Mapping[str, Sequence[Evaluated]]) -> None:
    """Mean and spread of every cell that was trained with several seeds; no file where none was."""
    table = [
        {"cell": name, "seeds": len(group), **over_seeds([found.row.metrics for found in group], METRICS)}
        for name, group in sorted(measured.items())
        if len(group) > 1
    ]
    if table:
        write_table(experiment.seeds, SEED_COLUMNS, table)
    else:
        experiment.seeds.unlink(missing_ok=True)


def _write_comparisons(
    experiment: ExperimentDir, measured: Mapping[str, Sequence[Evaluated]], metric: str
) -> None:
    """The best cells two by two, the seeds of one taken together."""
    contenders = []
    for name, group in measured.items():
        values = tuple(found.row.metrics[metric] for found in group)
        resampled_R = np.mean([found.resampled_R for found in group], axis=0)
        contenders.append(Contender(name if len(group) > 1 else group[0].row.cell, values, resampled_R))
    lower = metric in LOWER_IS_BETTER
    contenders.sort(key=lambda c: (c.value if lower else -c.value, c.name))
    table = compare(contenders[:_COMPARED], metric, lower_is_better=lower)
    write_table(experiment.comparisons, COMPARISON_COLUMNS, table)


def show(experiment: ExperimentDir, select_by: str) -> str:
    """The leaderboard as text."""
    selected = experiment.read_selected()
    table = format_table(
        read_leaderboard(experiment.leaderboard),
        select_by,
        [selected.get("cell", ""), *selected.get("cells", ())],
    )
    told = format_comparisons(read_table(experiment.comparisons))
    table += f"\n{told}" if told else ""
    if selected.get("ensemble"):
        table += f"\n{ENSEMBLE}: mean scores of {', '.join(selected['ensemble'])}"
    if selected.get("problem"):
        table += f"\nnote: {selected['problem']}"
    if selected.get("absent_labels"):
        absent = ", ".join(selected["absent_labels"])
        table += f"\nnote: no validation image bears {absent}: left out of the macro averages"
    if not selected.get("comparable", True):
        table += "\nnote: these cells were validated on different images; compare them with care"
    if len(selected.get("codes", ())) > 1:
        versions = ", ".join(code[:8] for code in selected["codes"])
        table += f"\nnote: these cells come from different code ({versions}); `make retry` trains one anew"
    return table


def select_cell(experiment: ExperimentDir, picked: RunDir | None) -> str:
    """Select `picked`, or without it the best cell again; returns its folder name.

    Raises SubmissionError where that cell has no row with metrics in the leaderboard.
    """
    selected = experiment.read_selected()
    if "select_by" not in selected:
        raise SubmissionError(f"{experiment.path}: nothing is ranked yet; run `make grid` first")
    if selected.get("tables") != _tables(experiment):
        raise SubmissionError(f"{experiment.leaderboard}: is damaged or edited; `make grid` writes it anew")
    chosen = _choose(experiment, selected | {"picked_by": "best"}, picked)
    if "cell" not in chosen:
        raise SubmissionError(
            chosen.get("problem") or f"{experiment.leaderboard}: no cell has finished; see their logs"
        )
    write_json(experiment.selected, chosen)
    _write_report(experiment)
    return str(chosen["cell"])


def _write_report(experiment: ExperimentDir, planned: Sequence[str] = ()) -> None:
    from pipeline.report import write_report  # which draws, with what planning need not import

    write_report(experiment, planned)


def selected_cells(experiment: ExperimentDir) -> list[RunDir]:
    """The cells whose mean scores make the submission; a SubmissionError where there are none yet."""
    selected = experiment.read_selected()
    if not selected.get("cells"):
        raise SubmissionError(
            selected.get("problem")
            or f"{experiment.path}: no cell is selected; run `make grid`, and see the logs of its cells"
        )
    return [RunDir(experiment.path / name) for name in selected["cells"]]


def _choose(experiment: ExperimentDir, selected: dict[str, Any], picked: RunDir | None) -> dict[str, Any]:
    """`selected` with the user's pick while it is valid, else the ensemble asked for, else the best cell."""
    rows = read_leaderboard(experiment.leaderboard)
    done = {row["cell"]: row for row in rows if row["state"] == "done"}
    if picked is not None and picked.name not in done:
        known = ", ".join(done) or "none"
        raise SubmissionError(
            f"RUN={picked.name}: is not a finished cell of this leaderboard; finished: {known}"
        )
    by_user = selected.get("cell") if selected.get("picked_by") == "user" else None
    name = picked.name if picked is not None else by_user if by_user in done else None
    chosen = done[name] if name else best_cell(rows)
    how = "user" if name else "best"
    cells = [chosen["cell"]] if chosen else []
    if how == "best" and selected.get("ensemble"):
        how, cells = ENSEMBLE, selected["ensemble"]
        chosen = next(row for row in rows if row["cell"] == ENSEMBLE)
    elif how == "best" and selected.get("problem"):
        chosen = None
    for key in ("cell", "cells", "value", "picked_by"):
        selected.pop(key, None)
    if chosen is not None:
        selected["cell"], selected["cells"] = chosen["cell"], cells
        selected["picked_by"] = how
        selected["value"] = float(chosen[selected["select_by"]])
    return selected


def _tables(experiment: ExperimentDir) -> dict[str, str]:
    """The digest of each table that is there."""
    tables = (experiment.leaderboard, experiment.seeds, experiment.comparisons)
    return {path.name: sha256_file(path) for path in tables if path.exists()}


def _row_without_metrics(name: str, why: str, *, known: bool) -> Row:
    """`failed` or `diverged` as `why` begins, `failed` where the reason is known, else `missing`."""
    state, _, error = why.partition(": ")
    if state in ("failed", "diverged"):
        return Row(name, state, error=error)
    return Row(name, "failed" if known else "missing", error=why)


def _why(reason: str, known: str | None) -> str:
    """What the cell itself said, unless it only says that it was killed and somebody knows more."""
    said = reason.startswith(("failed: ", "diverged: ")) and not reason.startswith("failed: killed by")
    return reason if said or not known else known


def _scores_digest(run: RunDir) -> str | None:
    found = run.read_manifest().get("files", {}).get(run.scores_val.name, {}).get("sha256")
    return str(found) if found else None
