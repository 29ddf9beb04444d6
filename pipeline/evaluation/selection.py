"""The selected cell of an experiment, and whether its tables belong to its cells. No numpy.

Planning and status read this module; `pipeline.evaluation.experiment` writes what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.errors import SubmissionError
from pipeline.evaluation.leaderboard import best_cell, read_leaderboard
from pipeline.evaluation.leaderboard_text import format_comparisons, format_table, recipes
from pipeline.spec import EvaluateSpec, SubmissionSpec
from pipeline.spec.identity import digest
from pipeline.storage.files import read_json, sha256_file, write_json
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import read_table
from pipeline.storage.typed import option, typed

FORMAT = 3  # of the tables: an experiment evaluated in another format is evaluated again
ENSEMBLE = "ensemble"  # the row and folder of several cells' mean scores
TestImages = tuple[Path, Path | None]  # the packed set, and the split if that names the rows to predict


class Selection(BaseModel):
    """`selected.json`: what the last evaluation was made of and found, and the cells of the submission.

    As it is without arguments, nothing is ranked.
    """

    model_config = ConfigDict(frozen=True)

    inputs: str = ""  # `EvaluationInputs.digest`
    made_by: str = ""  # the spec and SET of that evaluation
    select_by: str = ""
    evaluate: EvaluateSpec = EvaluateSpec()
    monitor: str = ""
    packed: Path | None = None  # the images and
    split: Path | None = None  # the rows of the baselines
    comparable: bool = True  # all cells were validated on the same images
    absent_labels: tuple[str, ...] = ()  # without a validation image
    ensemble: tuple[str, ...] = ()  # the cells of `submission.cells`; none: the best cell alone
    problem: str | None = None  # why `submission.cells` cannot be fulfilled
    codes: tuple[str, ...] = ()  # digests of the code the cells ran on
    mixed_hardware: str = ""  # in what the cells' precisions and devices differ
    tables: dict[str, str] = {}  # file name -> SHA-256
    cell: str | None = None  # the selected row of the leaderboard
    cells: tuple[str, ...] = ()  # whose mean scores make the submission
    value: float | None = None  # of `select_by`
    picked_by: Literal["best", "user", "ensemble"] = "best"
    splits: int = 1  # that each recipe was validated on
    left_out: tuple[str, ...] = ()  # complete cells that were validated on other images or labels

    @property
    def user_pick(self) -> str | None:
        """The cell that a person selected."""
        return self.cell if self.picked_by == "user" else None

    @classmethod
    def read(cls, experiment: ExperimentDir) -> Selection:
        """What was written; `Selection()` where the file is missing, or damaged, which is printed."""
        try:
            return cls.model_validate(read_json(experiment.selected))
        except OSError:
            return cls()
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            print(
                f"{experiment.selected}: is damaged ({reason}); "
                "cells are ranked again, and your own pick is lost"
            )
            return cls()

    def write(self, experiment: ExperimentDir) -> None:
        """Into `selected.json`."""
        write_json(experiment.selected, self.model_dump(mode="json"))

    def resolve(self, experiment: ExperimentDir, picked: str | None) -> Selection:
        """With the cell `picked` while it has finished, else the ensemble, else the best cell selected."""
        rows = read_leaderboard(experiment.leaderboard)
        finished = {row["cell"]: row for row in rows if row["state"] == "done"}
        how = "user"
        chosen: Mapping[str, str] | None = finished.get(picked or "")
        cells: tuple[str, ...] = (chosen["cell"],) if chosen else ()
        if chosen is None and self.ensemble:
            how, cells = ENSEMBLE, self.ensemble
            chosen = next(row for row in rows if row["cell"] == ENSEMBLE)
        elif chosen is None:
            how, chosen = "best", None if self.problem else best_cell(rows)
            cells = (chosen["cell"],) if chosen else ()
        name, value = (chosen["cell"], float(chosen[self.select_by])) if chosen else (None, None)
        return self.model_copy(update={"cell": name, "cells": cells, "value": value, "picked_by": how})


@dataclass(frozen=True)
class EvaluationInputs:
    """What a leaderboard is made of: cells as (folder name, identity), the rule, the data.

    `others` are complete cells of the experiment that are not of this grid: those of an earlier spec or SET.
    """

    experiment: ExperimentDir
    cells: tuple[tuple[str, str], ...]
    evaluate: EvaluateSpec
    submission: SubmissionSpec
    data_digests: tuple[str, ...]
    others: tuple[tuple[str, str], ...] = ()
    made_by: str = ""  # `experiments/x.yaml --set ...`

    @property
    def digest(self) -> str:
        """Of all that the leaderboard depends on: equal inputs need no new evaluation."""
        both = [*self.cells, *self.others]
        runs = [(RunDir(self.experiment.path / name), identity) for name, identity in both]
        cells = [
            (run.name, run.why_not_done(identity), run.digests_of(run.scores_val)[0] or None)
            for run, identity in runs
        ]
        return digest(
            [
                FORMAT,
                cells,
                self.made_by,
                self.evaluate.model_dump(mode="json"),
                self.submission.model_dump(mode="json"),
                list(self.data_digests),
            ]
        )

    @property
    def is_done(self) -> bool:
        """True when leaderboard, selection and report exist and were made from these inputs."""
        selection = Selection.read(self.experiment)
        made = selection.inputs == self.digest and self.experiment.report.exists()
        return made and selection.tables == tables(self.experiment)


def format_leaderboard(experiment: ExperimentDir, select_by: str) -> str:
    """The leaderboard as text."""
    selection = Selection.read(experiment)
    rows = read_leaderboard(experiment.leaderboard)
    table = format_table(rows, select_by, [selection.cell or "", *selection.cells])
    comparisons = format_comparisons(read_table(experiment.comparisons))
    table += f"\n{comparisons}" if comparisons else ""
    if selection.splits > 1:
        table += f"\nmeans over {selection.splits} splits; differences between recipes are not tested"
    if selection.cell and any(len(recipe.rows) > 1 for recipe in recipes(rows)):
        why = {"user": "your pick", "best": "the best of the best recipe"}.get(
            selection.picked_by, "ensemble"
        )
        table += f"\nselected: {selection.cell} ({why})"
    if any(row.get("in_grid") == "no" for row in rows):
        table += f"\nnote: cells of an earlier spec or --set are ranked too; this grid is {selection.made_by}"
    if selection.left_out:
        table += (
            f"\nnote: validated on other images or labels, and not ranked: {', '.join(selection.left_out)}"
        )
    if selection.ensemble:
        table += f"\n{ENSEMBLE}: mean scores of {', '.join(selection.ensemble)}"
    if selection.ensemble and selection.user_pick:
        table += (
            f"\nnote: the submission is of your pick {selection.user_pick} alone, not of submission.cells; "
            f"`{typed('select')}` takes the pick back"
        )
    if selection.problem:
        table += f"\nnote: {selection.problem}"
    if selection.absent_labels:
        absent = ", ".join(selection.absent_labels)
        table += f"\nnote: no validation image has the label {absent}: left out of the macro averages"
    if not selection.comparable:
        table += "\nnote: these cells were validated on different images; compare them with care"
    if len(selection.codes) > 1:
        versions = ", ".join(code[:8] for code in selection.codes)
        table += (
            f"\nnote: these cells come from different code ({versions}); `{typed('retry')}` trains one again"
        )
    if selection.mixed_hardware:
        table += f"\nnote: {selection.mixed_hardware}"
    return table


def select_cell(experiment: ExperimentDir, picked: RunDir | None) -> str:
    """Select `picked`, or without it the best cell again; returns its folder name.

    Raises SubmissionError where that cell has no row with metrics in the leaderboard.
    """
    selection = Selection.read(experiment)
    if not selection.select_by:
        raise SubmissionError(f"{experiment.path}: nothing is ranked yet; run `{typed('grid')}` first")
    if selection.tables != tables(experiment):
        raise SubmissionError(
            f"{experiment.leaderboard}: is damaged or edited; `{typed('grid')}` writes it again"
        )
    chosen = selection.resolve(experiment, picked.name if picked else None)
    if picked is not None and chosen.user_pick is None:
        rows = read_leaderboard(experiment.leaderboard)
        known = ", ".join(row["cell"] for row in rows if row["state"] == "done") or "none"
        raise SubmissionError(
            f"{option('run', picked.name)}: is not a finished cell of this leaderboard; finished: {known}"
        )
    if chosen.cell is None:
        raise SubmissionError(
            chosen.problem or f"{experiment.leaderboard}: no cell has finished; see their logs"
        )
    chosen.write(experiment)
    return chosen.cell


def selected_cells(experiment: ExperimentDir) -> list[RunDir]:
    """The cells whose mean scores make the submission; a SubmissionError where there are none yet."""
    selection = Selection.read(experiment)
    if not selection.cells:
        raise SubmissionError(
            selection.problem
            or f"{experiment.path}: no cell is selected; run `{typed('grid')}`, and see the logs of its cells"
        )
    return [RunDir(experiment.path / name) for name in selection.cells]


def tables(experiment: ExperimentDir) -> dict[str, str]:
    """The digest of each existing table."""
    tables = (experiment.leaderboard, experiment.seeds, experiment.comparisons)
    return {path.name: sha256_file(path) for path in tables if path.exists()}
