"""The selected cell of an experiment, and whether its tables belong to its cells. No numpy.

Planning and status read this module; `pipeline.evaluation.experiment` writes what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SubmissionError
from pipeline.evaluation.leaderboard import best_cell, format_comparisons, format_table, read_leaderboard
from pipeline.spec import EvaluateSpec, SubmissionSpec
from pipeline.spec.identity import digest
from pipeline.storage.files import sha256_file, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import read_table

FORMAT = 2  # of the tables: an experiment evaluated in another format is evaluated again
ENSEMBLE = "ensemble"  # the row and folder of several cells' mean scores


@dataclass(frozen=True)
class EvaluationInputs:
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
        """True when leaderboard, selection and report exist and were made from these inputs."""
        selected = self.experiment.read_selected()
        made = selected.get("inputs") == self.inputs and self.experiment.report.exists()
        return made and selected.get("tables") == tables(self.experiment)


def format_leaderboard(experiment: ExperimentDir, select_by: str) -> str:
    """The leaderboard as text."""
    selected = experiment.read_selected()
    table = format_table(
        read_leaderboard(experiment.leaderboard),
        select_by,
        [selected.get("cell", ""), *selected.get("cells", ())],
    )
    comparisons = format_comparisons(read_table(experiment.comparisons))
    table += f"\n{comparisons}" if comparisons else ""
    if selected.get("ensemble"):
        table += f"\n{ENSEMBLE}: mean scores of {', '.join(selected['ensemble'])}"
    if selected.get("problem"):
        table += f"\nnote: {selected['problem']}"
    if selected.get("absent_labels"):
        absent = ", ".join(selected["absent_labels"])
        table += f"\nnote: no validation image has the label {absent}: left out of the macro averages"
    if not selected.get("comparable", True):
        table += "\nnote: these cells were validated on different images; compare them with care"
    if len(selected.get("codes", ())) > 1:
        versions = ", ".join(code[:8] for code in selected["codes"])
        table += f"\nnote: these cells come from different code ({versions}); `make retry` trains one again"
    return table


def select_cell(experiment: ExperimentDir, picked: RunDir | None) -> str:
    """Select `picked`, or without it the best cell again; returns its folder name.

    Raises SubmissionError where that cell has no row with metrics in the leaderboard.
    """
    selected = experiment.read_selected()
    if "select_by" not in selected:
        raise SubmissionError(f"{experiment.path}: nothing is ranked yet; run `make grid` first")
    if selected.get("tables") != tables(experiment):
        raise SubmissionError(f"{experiment.leaderboard}: is damaged or edited; `make grid` writes it again")
    chosen = resolve_selection(experiment, selected | {"picked_by": "best"}, picked)
    if "cell" not in chosen:
        raise SubmissionError(
            chosen.get("problem") or f"{experiment.leaderboard}: no cell has finished; see their logs"
        )
    write_json(experiment.selected, chosen)
    rewrite_report(experiment)
    return str(chosen["cell"])


def rewrite_report(experiment: ExperimentDir, planned: Sequence[str] = ()) -> None:
    """Write report.html again; `planned` names all cells of the grid."""
    from pipeline.report import write_report  # it imports matplotlib, which planning does not need

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


def resolve_selection(
    experiment: ExperimentDir, selected: dict[str, Any], picked: RunDir | None
) -> dict[str, Any]:
    """`selected` with the user's pick while it is valid, else the requested ensemble, else the best cell."""
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


def tables(experiment: ExperimentDir) -> dict[str, str]:
    """The digest of each existing table."""
    tables = (experiment.leaderboard, experiment.seeds, experiment.comparisons)
    return {path.name: sha256_file(path) for path in tables if path.exists()}


def _scores_digest(run: RunDir) -> str | None:
    found = run.read_manifest().get("files", {}).get(run.scores_val.name, {}).get("sha256")
    return str(found) if found else None
