"""An experiment in Python, for a notebook: its leaderboard, curves, scores and report.

    from pipeline.results import Experiment

    experiment = Experiment("experiments/demo")
    experiment  # the leaderboard
    experiment.curves()["validation/loss"]  # of the selected cell; curves("lr0.01") of another

It reads files, also while a sweep runs, and writes none. Only `predictor()` imports torch.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import CheckpointError, PipelineError, SpecError
from pipeline.evaluation.leaderboard_text import shown_settings
from pipeline.evaluation.recipes import settings_of
from pipeline.evaluation.selection import ENSEMBLE, Selection, format_leaderboard
from pipeline.metrics.decision_rule import Validation
from pipeline.report.page import Table
from pipeline.spec.names import short
from pipeline.storage.files import display_path, sha256_file
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import read_table
from pipeline.storage.typed import typed

if TYPE_CHECKING:
    from pipeline.predictor import Predictor

# N images, K labels
Rows = list[dict[str, Any]]
_TEXTS = frozenset({"cell", "state", "error", "recipe", "a", "b", "metric", "covers", "verdict"})
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf")
_SHOWN = ("f1_micro", "f1_macro", "map_macro", "exact_match")


@dataclass(frozen=True)
class ValidationScores:
    """Scores and true labels of the validation images, under a cell's best checkpoint."""

    ids: npt.NDArray[np.str_]  # (N,)
    labels: npt.NDArray[np.str_]  # (K,)
    scores: npt.NDArray[np.float32]  # (N, K), in [0, 1]
    targets: npt.NDArray[np.uint8]  # (N, K), 0 or 1


@dataclass(frozen=True)
class ReportPage:
    """The report, which a notebook shows in a frame of its own."""

    path: Path
    height_px: int

    def __repr__(self) -> str:
        return f"<report {display_path(self.path)}: a notebook shows it; else open it in a browser>"

    def _repr_html_(self) -> str:
        """The page in a frame: its styles and its script stay out of the notebook."""
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width: 100%; height: {self.height_px}px; '
            'border: 0"></iframe>'
        )


class Experiment:
    """What the folder of an experiment holds; every access reads the files anew.

    A cell is named by its folder, or by a beginning that no other cell has; without a name, the selected
    cell is meant. What is not there, or is damaged, raises a PipelineError.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        path = path.with_suffix("") if path.suffix == ".yaml" else path
        if (path / "manifest.json").exists():
            raise SpecError(f"{path}: is a cell's folder; name its experiment, {path.parent}")
        if not _is_experiment(path):
            known = (
                ", ".join(sorted(p.name for p in path.parent.glob("*") if _is_experiment(p))) or "none yet"
            )
            raise SpecError(f"{path}: there is no such experiment; in {path.parent}/: {known}")
        self.folder = ExperimentDir(path)
        self.name = path.name

    def __repr__(self) -> str:
        selection = self.selection
        if not selection.select_by:
            return f"<Experiment {self.name}: {len(self.cells)} cells, nothing is ranked yet>"
        self._table(self.folder.leaderboard)
        return format_leaderboard(self.folder, selection.select_by)

    def _repr_html_(self) -> str:
        """The leaderboard as a table, the selected rows marked with `*`."""
        selection = self.selection
        if not selection.select_by:
            return html.escape(repr(self))
        by, rows = selection.select_by, self._table(self.folder.leaderboard)
        keys = shown_settings(rows)
        metrics = [by, f"{by}_lo", f"{by}_hi", *(name for name in _SHOWN if name != by)]
        chosen = {selection.cell, *selection.cells}
        lines = [
            [f"* {row['cell']}" if row["cell"] in chosen else row["cell"], row["state"]]
            + [row[f"set/{key}"] for key in keys]
            + [f"{float(row[name]):.4f}" if row.get(name) else "" for name in metrics]
            for row in rows
        ]
        return str(Table(["cell", "state", *map(short, keys), *metrics], lines).html())

    @property
    def cells(self) -> list[str]:
        """The names of all cells that have begun, those of the leaderboard first, in its order."""
        begun = {spec.parent.name for spec in self.folder.path.glob("*/spec.yaml")}
        ranked = [row["cell"] for row in read_table(self.folder.leaderboard)]
        return [*(name for name in ranked if name in begun), *sorted(begun.difference(ranked))]

    @property
    def selection(self) -> Selection:
        """What the last evaluation was made of and found; its `select_by` is "" where nothing is ranked."""
        return Selection.read(self.folder)

    @property
    def selected(self) -> str:
        """The selected cell, or `ensemble`; the cells of that are `selection.cells`."""
        selection = self._ranked()
        if selection.cell is None:
            raise CheckpointError(f"{self.folder.path}: {selection.problem or 'no cell has finished'}")
        return selection.cell

    @property
    def leaderboard(self) -> Rows:
        """A row for each cell and baseline, the best recipe first; numbers are numbers, what is not there is None."""
        return _typed(self._table(self.folder.leaderboard))

    @property
    def seeds(self) -> Rows:
        """Mean and standard deviation of each recipe of several seeds or splits; no row where there is none."""
        return _typed(self._table(self.folder.seeds))

    @property
    def comparisons(self) -> Rows:
        """The best recipes, two by two: the difference, its 95 % interval, and whether it is sure."""
        return _typed(self._table(self.folder.comparisons))

    def leaderboard_frame(self) -> Any:
        """The leaderboard as a pandas DataFrame; a PipelineError where pandas is not installed."""
        if find_spec("pandas") is None:
            raise PipelineError(
                "leaderboard_frame() needs pandas: pip install pandas; `leaderboard` has the same rows without it"
            )
        return import_module("pandas").DataFrame(self.leaderboard)

    def settings(self, cell: str | None = None) -> dict[str, Any]:
        """The resolved spec of a cell as dotted keys: `train.optimizer.lr` -> 0.001."""
        run = self._run(cell)
        found = settings_of(RunDir(_checked(run, run.spec).parent))
        if not found:
            raise CheckpointError(f"{run.spec}: cannot be read")
        return found

    def curves(self, cell: str | None = None) -> dict[str, npt.NDArray[np.float64]]:
        """`epoch`, and every tag of metrics.jsonl by epoch, each (E,); NaN where an epoch lacks it."""
        run = self._run(cell)
        epochs = [row for row in read_jsonl(_checked(run, run.metrics)) if "validation/loss" in row]
        tags = dict.fromkeys(["epoch", *(tag for row in epochs for tag in row)])
        return {tag: np.array([row.get(tag, np.nan) for row in epochs], np.float64) for tag in tags}

    def scores(self, cell: str | None = None) -> ValidationScores:
        """Of the validation images, verified against the cell's manifest; those of an ensemble are its mean."""
        selection = self.selection
        ensemble = selection.ensemble and (cell or self.selected) == ENSEMBLE
        runs = (
            [RunDir(self.folder.path / name) for name in selection.ensemble]
            if ensemble
            else [self._run(cell)]
        )
        found = Validation.mean([Validation.read(run) for run in runs])
        return ValidationScores(
            np.array(found.ids, np.str_), np.array(found.labels, np.str_), found.scores_NK, found.targets_NK
        )

    def report(self, height_px: int = 800) -> ReportPage:
        """report.html, shown by a notebook as the result of a cell."""
        if not self.folder.report.exists():
            raise CheckpointError(
                f"{self.folder.report}: is not written yet; run `{typed('report', self._spec)}`"
            )
        return ReportPage(self.folder.report, height_px)

    def predictor(self, device: str = "auto") -> Predictor:
        """What is selected, a cell or an ensemble, ready to label pictures."""
        self.selected  # noqa: B018 - raises where nothing is selected
        from pipeline.predictor import Predictor

        return Predictor.load(self.folder.path, device=device)

    @property
    def _spec(self) -> str:
        return display_path(self.folder.path.with_suffix(".yaml"))

    def _ranked(self) -> Selection:
        selection = self.selection
        if not selection.select_by:
            raise CheckpointError(
                f"{self.folder.path}: nothing is ranked yet; run `{typed('evaluate', self._spec)}`"
            )
        return selection

    def _table(self, path: Path) -> list[dict[str, str]]:
        """The rows of a table, as the evaluation wrote it."""
        tables = self._ranked().tables
        if path.exists() != (path.name in tables) or (
            path.exists() and sha256_file(path) != tables[path.name]
        ):
            raise CheckpointError(
                f"{path}: is missing, damaged or edited; `{typed('evaluate', self._spec)}` writes it again"
            )
        return read_table(path)

    def _run(self, cell: str | None) -> RunDir:
        name = self.selected if cell is None else cell
        cells = self.cells
        if name == ENSEMBLE and name not in cells:
            members = ", ".join(self.selection.ensemble) or "none"
            raise SpecError(f"{name}: has no training of its own; name one of its cells: {members}")
        found = [name] if name in cells else [one for one in cells if one.startswith(name)]
        if len(found) != 1:
            problem = f"{len(found)} cells start with that" if found else "no cell starts with that"
            raise SpecError(
                f"{name}: {problem} in {self.folder.path}; cells: {', '.join(found or cells) or 'none yet'}"
            )
        return RunDir(self.folder.path / found[0])


def _is_experiment(path: Path) -> bool:
    return (path / "ledger.jsonl").exists() or any(path.glob("*/spec.yaml"))


def _checked(run: RunDir, path: Path) -> Path:
    """A file of a cell: verified once the cell has finished, as it is while it trains."""
    return run.verify(path) if run.read_manifest().get("state") == "done" else path


def _typed(rows: list[dict[str, str]]) -> Rows:
    return [{name: _value(name, text) for name, text in row.items()} for row in rows]


def _value(name: str, text: str) -> Any:
    """A number, True or False, text, or None where there is nothing."""
    if name in _TEXTS or not text:
        return text or None
    if name == "in_grid":
        return text == "yes"
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text
