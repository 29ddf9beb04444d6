"""The plots, each drawn once with matplotlib: as SVG in the page, as PDF and PNG for a paper. Torch-free."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.metrics.multilabel import Decisions, Scores
from pipeline.report.facts import CellFacts, Facts
from pipeline.storage.files import atomic_write

# Okabe & Ito's colours, which colour-blind readers can distinguish; dashes for readers who see no colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B0A100")
_DASHES = ("-", "--", ":")
_INK = "#010203"  # becomes the page's own text colour
_GREY = "#8C8C8C"
_TOP = 8  # curves with a colour and a name of their own
_GREY_CURVES = 200
_FOREST = 30
_PANELS = 6
_LABELS = 24
_STYLE: dict[Any, Any] = {  # matplotlib names every key in its type
    "svg.fonttype": "none", "pdf.fonttype": 42, "path.simplify_threshold": 0.5,
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.2, "grid.linewidth": 0.6,
    **{f"{what}color": _INK for what in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")},
}  # fmt: skip


class Plots:
    """The figures of one report, by file name, in the order they were drawn."""

    def __init__(self) -> None:
        self.drawn: dict[str, Figure] = {}

    def add(self, name: str, what: str, draw: Callable[[], Figure | None]) -> str:
        """Draw one; its SVG for the page, empty where there is nothing to draw. `what` is its text alternative."""
        with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
            figure = draw()
            if figure is None:
                return ""
            self.drawn[name] = figure
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue().partition("<svg ")[2].replace(_INK, "currentColor")
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
        return f'<div class="wide"><svg role="img" aria-label="{what}" {svg}</div>'

    def save(self, folder: Path) -> None:
        """Every figure as PDF and PNG."""
        for name, figure in self.drawn.items():
            for kind, settings in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": 200})):
                with mpl.rc_context(_STYLE), atomic_write(folder / f"{name}.{kind}") as file:
                    figure.savefig(file, format=kind, **settings)


def leaderboard(facts: Facts) -> Figure | None:
    """The best cells with their 95 % intervals, beside the baselines."""
    cells = [cell for cell in facts.cells if cell.value(facts.by) is not None][:_FOREST]
    if not cells:
        return None
    figure = Figure(figsize=(9, 0.9 + 0.24 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    for y, cell in enumerate(cells):
        value = cell.value(facts.by) or 0.0
        low, high = cell.value(f"{facts.by}_lo"), cell.value(f"{facts.by}_hi")
        colour = COLOURS[1] if facts.best and cell.name == facts.best.name else COLOURS[0]
        if low is not None and high is not None:
            axes.plot((low, high), (y, y), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([value], [y], "D" if colour == COLOURS[1] else "o", color=colour, markersize=5,
                  gid=f"tip:{cell.name} {value:.4f}")  # fmt: skip
    for row, line in zip(facts.baselines, ("--", ":"), strict=False):
        axes.axvline(float(row[facts.by]), color=_GREY, linestyle=line, label=row["cell"])
    axes.set_yticks(range(len(cells)), [cell.name for cell in cells], fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlabel(
        f"{facts.by} on validation, 95 % interval" + (" (lower is better)" if facts.lower_is_better else "")
    )
    if facts.baselines:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def curves(facts: Facts) -> Figure | None:
    """Loss of both splits and the metric of the best epoch, of all cells; the best of them in colour."""
    cells = [cell for cell in facts.cells if cell.epochs]
    if not cells:
        return None
    panels = ("train/loss", "validation/loss", f"validation/{facts.curve_by}")
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    step = max(1, -(-(len(cells) - _TOP) // _GREY_CURVES))
    for axes, tag in zip(figure.subplots(1, 3), panels, strict=True):
        for cell in cells[_TOP::step]:
            _curve(axes, cell, tag, color=_GREY, linewidth=0.6, alpha=0.5)
        for i, cell in list(enumerate(cells[:_TOP]))[::-1]:
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]}
            _curve(axes, cell, tag, label=cell.name, linewidth=1.6, **look)
        axes.set_title(tag)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if "loss" in tag:
            _without_outliers(axes, [value for cell in cells for _, value in cell.curve(tag)])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], loc="outside lower center", ncols=3 if max(map(len, names)) < 36 else 2
    )
    return figure


def _curve(axes: Axes, cell: CellFacts, tag: str, **look: Any) -> None:
    points = cell.curve(tag)
    if points:
        marker = "." if len(points) < 3 else None
        axes.plot(*zip(*points, strict=True), marker=marker, gid=f"tip:{cell.name}", **look)


def _without_outliers(axes: Axes, values: Sequence[float]) -> None:
    """Limit the axis: a cell that diverged would flatten all other curves."""
    high = float(np.percentile(values, 98)) if values else 0.0
    if high and max(values) > 3 * high:
        axes.set_ylim(top=1.1 * high)


def effects(facts: Facts) -> Figure | None:
    """The ranking metric against each setting in which cells differ: dots are cells, the bar their mean."""
    shown = {name: groups for name, groups in facts.axes.items() if len(groups) <= 20 or _numbers(groups)}
    keys = list(shown)[:_PANELS]
    if not keys or not any(cell.value(facts.by) is not None for cell in facts.cells):
        return None
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.3 * columns + 0.4, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, key in zip(panels.flat, keys, strict=False):
        axes.set_title(key[:44])
        if len(shown[key]) > 20:
            _many(axes, facts, shown[key])
            continue
        for x, cells in enumerate(shown[key].values()):
            values = [value for cell in cells if (value := cell.value(facts.by)) is not None]
            if values:
                spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
                axes.plot(x + np.asarray(spread), values, "o", color=COLOURS[0], markersize=3.5, alpha=0.6)
                axes.plot([x - 0.3, x + 0.3], [np.mean(values)] * 2, color=COLOURS[1], linewidth=2)
        names = [name[:24] for name in shown[key]]
        crowded = sum(map(len, names)) > 24
        turned = {"rotation": 30, "ha": "right"} if crowded else {}
        axes.set_xticks(range(len(names)), names, fontsize=8, **turned)
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(facts.by)
    return figure


def _numbers(texts: Iterable[str]) -> list[float]:
    """The values of a setting where all are numbers, else nothing."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return []


def _many(axes: Axes, facts: Facts, groups: Mapping[str, Sequence[CellFacts]]) -> None:
    """Many values, as of a random search, on a numeric scale instead of a place for each."""
    numbers = _numbers(groups)
    pairs = [
        (x, cell.value(facts.by)) for x, cells in zip(numbers, groups.values(), strict=True) for cell in cells
    ]
    points = [(x, value) for x, value in pairs if value is not None]
    axes.plot(*zip(*points, strict=True), "o", color=COLOURS[0], markersize=3, alpha=0.5)
    if min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        axes.set_xscale("log")


def pr_curves(entries: Sequence[dict[str, Any]], scores_NK: Scores, targets_NK: Decisions) -> Figure | None:
    """Precision against recall of each label; the diamond marks its decisions."""
    shown = sorted(range(len(entries)), key=lambda k: -entries[k]["support"])[:_LABELS]
    shown = sorted(k for k in shown if entries[k]["support"])
    if not shown:
        return None
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.75 * columns + 0.4, 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, k in zip(panels.flat, shown, strict=False):
        order = np.argsort(-scores_NK[:, k], kind="stable")
        hits = targets_NK[order, k].cumsum(dtype=np.int64)
        ranks = np.append(np.geomspace(1, len(hits), 60), np.linspace(1, len(hits), 40))
        points = np.unique(ranks.astype(int)) - 1  # the first few matter most
        axes.plot(hits[points] / hits[-1], hits[points] / (points + 1), color=COLOURS[0], linewidth=1.4)
        axes.axhline(hits[-1] / len(hits), color=_GREY, linestyle=":", linewidth=1)
        axes.plot(entries[k]["recall"], entries[k]["precision"], "D", color=COLOURS[1], markersize=4)
        axes.set_title(f"{entries[k]['label'][:18]}\nAP {entries[k]['ap']:.2f}", fontsize=8)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    return figure


def confusion(labels: Sequence[str], decisions_NK: Decisions, targets_NK: Decisions) -> Figure | None:
    """How often labels occur together, beside how often one is wrongly predicted where the other is true."""
    shown = np.sort(np.argsort(-targets_NK.sum(axis=0), kind="stable")[:40])
    actual, predicted = (array[:, shown].astype(np.float64) for array in (targets_NK, decisions_NK))
    count_K = np.maximum(actual.sum(axis=0), 1)
    together_KK = actual.T @ actual / count_K[:, None]
    without_KK = np.maximum(actual.T @ (1 - actual), 1)
    confused_KK = actual.T @ (predicted * (1 - actual)) / without_KK
    names = [labels[k][:14] for k in shown]
    side = 1.4 + 0.23 * len(names)
    figure = Figure(figsize=(2 * side + 0.6, side + 0.4), layout="constrained")
    panels = (
        (together_KK, "of images with the row's label,\nfraction that has the column's"),
        (
            confused_KK,
            "of images with the row's label, not the column's,\nfraction predicted with the column's",
        ),
    )
    for axes, (matrix_KK, title) in zip(figure.subplots(1, 2), panels, strict=True):
        _heat(figure, axes, matrix_KK, names)
        axes.set_title(title, fontsize=8)
    return figure


def _heat(figure: Figure, axes: Axes, matrix_KK: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    off_KK = matrix_KK.copy()
    np.fill_diagonal(off_KK, np.nan)
    top = float(np.nanmax(off_KK)) if len(names) > 1 else 1.0
    shown = axes.imshow(off_KK, cmap="cividis", vmin=0, vmax=top or 1.0, interpolation="none")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, shrink=0.7)
    if len(names) <= 20:
        for row, column in np.argwhere(np.nan_to_num(off_KK) >= 0.02):
            value = off_KK[row, column]
            ink = "white" if value < 0.6 * top else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=ink)


def calibration(result: dict[str, Any]) -> Figure | None:
    """The fraction of true labels against the mean score, and the histogram of scores."""
    bins = result.get("reliability") or []
    if not bins:
        return None
    figure = Figure(figsize=(6.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    left.plot([b["mean_score"] for b in bins], [b["share_true"] for b in bins], "o-", color=COLOURS[0])
    left.set(xlabel="mean score", ylabel="fraction true", xlim=(0, 1), ylim=(0, 1))
    left.set_title(f"expected calibration error {result['ece']:.4f}")
    widths = [b["high"] - b["low"] for b in bins]
    right.bar([b["low"] for b in bins], [b["count"] for b in bins], widths, align="edge", color=COLOURS[0],
              edgecolor="white")  # fmt: skip
    right.set(xlabel="score", ylabel="scores", yscale="log", xlim=(0, 1))
    return figure


def label_counts(counts: dict[str, int], images: int) -> Figure | None:
    """Images that have each label."""
    if not counts or not images:
        return None
    top = sorted(counts.items(), key=lambda item: -item[1])[:40]
    figure = Figure(figsize=(6, 0.6 + 0.19 * len(top)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(top)), [count for _, count in top], color=COLOURS[0])
    for y, (_, count) in enumerate(top):
        axes.text(count, y, f" {count} ({100 * count / images:.1f} %)", va="center", fontsize=7)
    axes.set_yticks(range(len(top)), [label for label, _ in top], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("images")
    axes.margins(x=0.18)
    return figure
