"""Evaluate a whole experiment: every finished cell decided, measured and ranked, one selected. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation import baselines, evaluate_cell
from pipeline.files import write_json
from pipeline.identity import digest
from pipeline.leaderboard import Row, best_cell, format_table, read_leaderboard, write_leaderboard
from pipeline.report import write_report
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.spec import EvaluateSpec


@dataclass(frozen=True)
class Evaluation:
    """What a leaderboard is made of: cells as (folder name, identity), the rule, the data."""

    experiment: ExperimentDir
    cells: tuple[tuple[str, str], ...]
    evaluate: EvaluateSpec
    data_digests: tuple[str, ...]

    @property
    def inputs(self) -> str:
        """Digest of all that the leaderboard depends on: equal inputs need no new evaluation."""
        runs = [(RunDir(self.experiment.path / name), identity) for name, identity in self.cells]
        cells = [(run.name, run.why_not_done(identity), _scores_digest(run)) for run, identity in runs]
        return digest([cells, self.evaluate.model_dump(mode="json"), list(self.data_digests)])

    @property
    def is_done(self) -> bool:
        """True when leaderboard, selection and report are there and made of just these inputs."""
        made = (self.experiment.leaderboard, self.experiment.report)
        return self.experiment.read_selected().get("inputs") == self.inputs and all(p.exists() for p in made)


def evaluate_experiment(
    evaluation: Evaluation,
    *,
    best_by: str,
    packed_dir: Path,
    split_file: Path,
    reasons: Mapping[str, str],
) -> None:
    """Write report.json of every finished cell, leaderboard.csv, selected.json and report.html.

    A cell that is not whole has a row that says why, and stops nobody; `reasons` knows more than its
    manifest, where its process could not say.
    """
    experiment, evaluate = evaluation.experiment, evaluation.evaluate
    rows: list[Row] = []
    validated_on: set[int] = set()
    codes: set[str] = set()
    for name, identity in evaluation.cells:
        run = RunDir(experiment.path / name)
        reason = run.why_not_done(identity)
        try:
            if reason is not None:
                raise CheckpointError(_why(reason, reasons.get(name)))
            row, validation = evaluate_cell(run, evaluate)
        except CheckpointError as error:
            rows.append(_row_without_metrics(name, str(error), known=str(error) != reason or name in reasons))
            continue
        rows.append(row)
        codes.add(run.code_digest())
        validated_on.add(hash((tuple(validation.ids), validation.targets_NK.tobytes())))
    # every byte of the pixels was verified where they were read; here only labels are used
    rows += baselines(PackedSet.open(packed_dir, verify=False), read_split(split_file))
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    selected = experiment.read_selected() | {
        "inputs": evaluation.inputs,
        "select_by": evaluate.select_by,
        "best_by": best_by,
        "packed": str(packed_dir),
        "split": str(split_file),
        "comparable": len(validated_on) <= 1,
        "codes": sorted(codes),
    }
    write_json(experiment.selected, _choose(experiment, selected, None))
    write_report(experiment)


def show(experiment: ExperimentDir, select_by: str) -> str:
    """The leaderboard as text."""
    selected = experiment.read_selected()
    table = format_table(read_leaderboard(experiment.leaderboard), select_by, selected.get("cell"))
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
    chosen = _choose(experiment, selected | {"picked_by": "best"}, picked)
    if "cell" not in chosen:
        raise SubmissionError(f"{experiment.leaderboard}: no cell has finished; see their logs")
    write_json(experiment.selected, chosen)
    write_report(experiment)
    return str(chosen["cell"])


def selected_cell(experiment: ExperimentDir) -> RunDir:
    """The cell the submission is made of; a SubmissionError where there is none yet."""
    cell = experiment.read_selected().get("cell")
    if not cell:
        raise SubmissionError(
            f"{experiment.path}: no cell is selected; run `make grid`, and see the logs of its cells"
        )
    return RunDir(experiment.path / cell)


def _choose(experiment: ExperimentDir, selected: dict[str, Any], picked: RunDir | None) -> dict[str, Any]:
    """`selected` with the user's pick while it is valid, else with the best cell."""
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
    for key in ("cell", "value", "picked_by"):
        selected.pop(key, None)
    if chosen is not None:
        selected["cell"] = chosen["cell"]
        selected["picked_by"] = "user" if name else "best"
        selected["value"] = float(chosen[selected["select_by"]])
    return selected


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
