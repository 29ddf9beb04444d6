"""Evaluate a whole experiment: every finished cell decided, measured and ranked, one selected. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.packed import PackedSet
from pipeline.data.splits import read_split
from pipeline.errors import CheckpointError, SubmissionError
from pipeline.evaluation import baselines, evaluate_cell
from pipeline.files import write_json
from pipeline.leaderboard import Row, best_cell, format_table, read_leaderboard, write_leaderboard
from pipeline.report import write_report
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.spec import EvaluateSpec


def evaluate_experiment(
    experiment: ExperimentDir,
    cells: Sequence[tuple[str, str]],
    evaluate: EvaluateSpec,
    *,
    best_by: str,
    packed_dir: Path,
    split_file: Path,
    inputs: str,
) -> None:
    """Write report.json of every finished cell, leaderboard.csv, selected.json and report.html.

    `cells` are (folder name, identity); `inputs` is the digest of all this is made of. A cell that is
    not whole has a row that says why, and stops nobody.
    """
    rows: list[Row] = []
    validated_on: dict[str, str] = {}
    for name, identity in cells:
        run = RunDir(experiment.path / name)
        reason = run.why_not_done(identity)
        try:
            if reason is not None:
                raise CheckpointError(reason)
            row, validation = evaluate_cell(run, evaluate)
        except CheckpointError as error:
            text = str(error)
            state, error_text = ("failed", text[8:]) if text.startswith("failed: ") else ("missing", text)
            rows.append(Row(name, state, error=error_text))
            continue
        rows.append(row)
        validated_on[name] = str(hash((tuple(validation.ids), validation.targets_NK.tobytes())))
    # every byte of the pixels was verified where they were read; here only labels are used
    rows += baselines(PackedSet.open(packed_dir, verify=False), read_split(split_file))
    write_leaderboard(experiment.leaderboard, rows, evaluate.select_by)
    selected = _read_selected(experiment) | {
        "inputs": inputs,
        "select_by": evaluate.select_by,
        "best_by": best_by,
        "packed": str(packed_dir),
        "split": str(split_file),
        "comparable": len(set(validated_on.values())) <= 1,
    }
    write_json(experiment.selected, _choose(experiment, selected, None))
    write_report(experiment)


def is_evaluated(experiment: ExperimentDir, inputs: str) -> bool:
    """True when leaderboard, selection and report are there and made of just these inputs."""
    made = (experiment.leaderboard, experiment.report)
    return _read_selected(experiment).get("inputs") == inputs and all(path.exists() for path in made)


def show(experiment: ExperimentDir, select_by: str) -> str:
    """The leaderboard as text."""
    selected = _read_selected(experiment)
    table = format_table(read_leaderboard(experiment.leaderboard), select_by, selected.get("cell"))
    if selected.get("comparable", True):
        return table
    return f"{table}\nnote: these cells were validated on different images; compare them with care"


def select_cell(experiment: ExperimentDir, picked: RunDir | None) -> str:
    """Select `picked`, or without it the best cell again; returns its folder name.

    Raises SubmissionError where that cell has no row with metrics in the leaderboard.
    """
    chosen = _choose(experiment, _read_selected(experiment) | {"picked_by": "best"}, picked)
    if "cell" not in chosen:
        raise SubmissionError(f"{experiment.leaderboard}: no cell has finished; see their logs")
    write_json(experiment.selected, chosen)
    write_report(experiment)
    return str(chosen["cell"])


def selected_cell(experiment: ExperimentDir) -> RunDir:
    """The cell the submission is made of; a SubmissionError where there is none yet."""
    cell = _read_selected(experiment).get("cell")
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


def _read_selected(experiment: ExperimentDir) -> dict[str, Any]:
    try:
        selected = json.loads(experiment.selected.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return selected if isinstance(selected, dict) else {}
