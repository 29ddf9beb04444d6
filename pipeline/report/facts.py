"""The facts of an experiment, read from its files, during a sweep as well as after it. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.evaluation.recipes import settings_of
from pipeline.evaluation.selection import Selection
from pipeline.report.spending import Spending, spending_of_cells, total_text
from pipeline.spec import LOWER_IS_BETTER
from pipeline.spec.names import short, text, varied
from pipeline.storage.files import read_json_or_empty
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.tables import read_table

LABELS = 200  # on the page; all are in the file that it names
_TOGETHER = 3  # so many settings are named of those that change together


@dataclass(frozen=True)
class CellFacts:
    """One cell: its row of the leaderboard (empty before it is ranked), and the content of its folder."""

    name: str
    state: str  # done, failed, diverged, missing, ensemble, or unfinished (running or killed)
    error: str
    row: dict[str, str]
    settings: dict[str, Any]  # dotted key -> value
    epochs: list[dict[str, Any]]
    provenance: dict[str, Any]
    spending: Spending

    def value(self, metric: str) -> float | None:
        """A metric of the leaderboard; None where the cell is not ranked."""
        return float(self.row[metric]) if self.row.get(metric) else None

    def interval(self, metric: str) -> str:
        """Its 95 % interval as text; "" where there is none."""
        low, high = self.value(f"{metric}_lo"), self.value(f"{metric}_hi")
        return f"{low:.4f} – {high:.4f}" if low is not None and high is not None else ""

    def curve(self, tag: str) -> list[tuple[float, float]]:
        """(epoch, value) of a tag of metrics.jsonl."""
        return [(row["epoch"], row[tag]) for row in self.epochs if row.get(tag) is not None]

    @cached_property
    def hours(self) -> float:
        """Hours of training: steps times their mean seconds, epoch by epoch; scoring and start-up not counted."""
        seconds, before = 0.0, 0
        for row in self.epochs:
            seconds += (row["step"] - before) * row.get("train/seconds_per_step", 0.0)
            before = row["step"]
        return seconds / 3600

    def best_epoch(self, by: str) -> tuple[int, float] | None:
        """(epoch, value) of the best epoch by a metric of validation; of equal values the one kept, or the first."""
        if self.epochs and self.epochs[-1].get("best_epoch") and by == self.settings.get("train.monitor"):
            return int(self.epochs[-1]["best_epoch"]), float(self.epochs[-1]["best_value"])
        curve = self.curve(f"validation/{by}")
        pick = min if by in LOWER_IS_BETTER else max
        epoch, value = pick(curve, key=lambda point: point[1]) if curve else (0, 0.0)
        return (int(epoch), value) if curve else None

    def falls(self, tag: str, since: float) -> bool:
        """Whether a curve is lower at its end than at epoch `since`."""
        curve = dict(self.curve(tag))
        return bool(curve) and since in curve and curve[max(curve)] < curve[since]

    @property
    def device(self) -> str:
        """`cpu` or `cuda`, as chosen at its first start; empty where unknown."""
        return str(self.provenance.get("execution", {}).get("device", ""))


@dataclass(frozen=True)
class Facts:
    """An experiment: cells (the best first), baselines, and the data behind them."""

    experiment: ExperimentDir
    selection: Selection
    cells: list[CellFacts]
    baselines: list[dict[str, str]]
    seeds: list[dict[str, str]]
    comparisons: list[dict[str, str]]
    by: str  # the metric that ranks
    curve_by: str  # the metric that picks a cell's best epoch
    best: CellFacts | None  # the selected cell
    axes: dict[str, dict[str, list[CellFacts]]]  # setting -> value -> cells, where they differ
    rows: list[dict[str, str]]  # the whole leaderboard
    test: dict[str, Any]  # test_metrics.json; {} where no test label is known
    spent: str = ""  # billing units of all jobs that are over, "" where they are not known

    @property
    def trained(self) -> list[CellFacts]:
        """The cells without the ensemble of some of them."""
        return [cell for cell in self.cells if cell.state != "ensemble"]

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower value of `by` is better."""
        return self.by in LOWER_IS_BETTER

    def split_counts(self) -> dict[str, dict[str, Any]]:
        """Images and labels of each split; {} before data is packed."""
        return dict(_json(self.selection.split or Path("-")).get("counts", {}))

    def validation_counts(self) -> dict[str, int]:
        """Validation images of each label."""
        found: dict[str, int] = self.split_counts().get("validation", {}).get("labels", {})
        return found

    def wrangle_report(self) -> dict[str, Any]:
        """The report of wrangle; {} where the packed set is not available."""
        return _json((self.selection.packed or Path("-")) / "wrangle_report.json")


def read_facts(experiment: ExperimentDir, planned: Sequence[str]) -> Facts:
    """Everything about the `planned` cells; without them, about those of the leaderboard or the folder."""
    selection = Selection.read(experiment)
    rows = read_table(experiment.leaderboard)
    baselines = [row for row in rows if row["state"] == "baseline"]
    by_name = {row["cell"]: row for row in rows if row["state"] != "baseline"}
    existing = planned or by_name or sorted(p.parent.name for p in experiment.path.glob("*/spec.yaml"))
    names = dict.fromkeys([*by_name, *existing])  # those of the leaderboard come first, in its order
    events = read_jsonl(experiment.ledger)
    spent = spending_of_cells(events)
    cells = [
        _cell(RunDir(experiment.path / name), by_name.get(name, {}), spent.get(name, Spending()))
        for name in names
    ]
    spec = next((cell.settings for cell in cells if cell.settings), {})
    monitor = str(spec.get("train.monitor", "map_macro"))
    by = str(selection.select_by or spec.get("evaluate.select_by", monitor))
    best = next((cell for cell in cells if cell.name == selection.cell), None)
    seeds, comparisons = read_table(experiment.seeds), read_table(experiment.comparisons)
    return Facts(
        experiment, selection, cells, baselines, seeds, comparisons, by, monitor, best, _axes(cells), rows,
        read_json_or_empty(experiment.test_metrics), total_text(events),
    )  # fmt: skip


def smallest(keys: Sequence[float]) -> list[int]:
    """The places of the `LABELS` smallest, in their own order."""
    return sorted(sorted(range(len(keys)), key=keys.__getitem__)[:LABELS])


def _cell(run: RunDir, row: dict[str, str], spending: Spending) -> CellFacts:
    manifest = run.read_manifest()
    manifest_state = str(manifest.get("state", "missing"))
    state = row.get("state") or manifest_state
    if manifest_state == "started" and state in (
        "missing",
        manifest_state,
    ):  # perhaps after the leaderboard was written
        state = "unfinished"
    return CellFacts(
        name=run.name,
        state=state,
        error=row.get("error") or str(manifest.get("error", "")),
        row=row,
        settings=settings_of(run),
        epochs=[line for line in read_jsonl(run.metrics) if "validation/loss" in line],
        provenance=_json(run.provenance),
        spending=spending,
    )


def _axes(cells: Sequence[CellFacts]) -> dict[str, dict[str, list[CellFacts]]]:
    """Settings of data and training in which the cells differ, each with the cells of every value.

    Settings that always change together are one axis. A setting that only some cells have, like an optimizer's
    momentum, belongs to the setting that brings it.
    """
    known = [cell for cell in cells if cell.settings]
    everywhere = set.intersection(*(set(cell.settings) for cell in known)) if known else set()
    alike: dict[tuple[int, ...], list[str]] = {}
    for key in varied([cell.settings for cell in known]):
        if key not in everywhere:
            continue
        texts = [json.dumps(cell.settings.get(key)) for cell in known]
        numbers = {one: i for i, one in enumerate(dict.fromkeys(texts))}
        if len(numbers) > 1:
            alike.setdefault(tuple(numbers[one] for one in texts), []).append(key)
    axes = {}
    for together in alike.values():
        keys_shown = together[:_TOGETHER]
        groups: dict[str, list[CellFacts]] = {}
        for cell in sorted(known, key=lambda cell: [_order(cell.settings.get(key)) for key in keys_shown]):
            values = [cell.settings[key] for key in keys_shown if cell.settings.get(key) is not None]
            groups.setdefault(", ".join(map(text, values)) or "-", []).append(cell)
        axes[", ".join(map(short, keys_shown))] = groups
    return axes


def _order(value: Any) -> tuple[bool, bool, float, str]:
    """Numbers by size, then texts, then what is not set."""
    number = isinstance(value, int | float)
    return value is None, not number, float(value) if number else 0.0, str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
