"""The plots about labels: thresholds, precision and recall, confusion, calibration, counts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.metrics.multilabel import Decisions, Scores
from pipeline.report.figures import COLOURS, GREY, cut

_LABELS = 24


def thresholds(entries: Sequence[dict[str, Any]], scores_NK: Scores, targets_NK: Decisions) -> Figure | None:
    """F1, precision and recall of each label against its threshold; the one in use dashed."""
    grid_T = np.linspace(0, 1, 101)
    panels = _label_panels(entries)
    if panels is None:
        return None
    figure, shown = panels
    for axes, k in shown:
        order = np.sort(scores_NK[:, k])
        true = np.sort(scores_NK[targets_NK[:, k] == 1, k])
        decided_T = len(order) - np.searchsorted(order, grid_T, side="left")
        hits_T = len(true) - np.searchsorted(true, grid_T, side="left")
        precision_T = np.divide(hits_T, decided_T, out=np.zeros(len(grid_T)), where=decided_T > 0)
        f1_T = 2 * hits_T / np.maximum(decided_T + len(true), 1)
        axes.plot(grid_T, precision_T, color=COLOURS[2], linewidth=1, label="precision")
        axes.plot(grid_T, hits_T / len(true), color=COLOURS[4], linewidth=1, label="recall")
        axes.plot(grid_T, f1_T, color=COLOURS[0], linewidth=1.6, label="F1")
        if entries[k].get("threshold") is not None:
            axes.axvline(entries[k]["threshold"], color=COLOURS[1], linestyle="--", linewidth=1)
        axes.set_title(cut(entries[k]["label"], 18), fontsize=8)
    figure.supxlabel("threshold", fontsize=9)
    figure.legend(*shown[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _label_panels(entries: Sequence[dict[str, Any]]) -> tuple[Figure, list[tuple[Axes, int]]] | None:
    """A figure with a panel for each of the most frequent labels: (axes, label); None where none is present."""
    shown = sorted(range(len(entries)), key=lambda k: -entries[k]["support"])[:_LABELS]
    shown = sorted(k for k in shown if entries[k]["support"])
    if not shown:
        return None
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.75 * columns + 0.4, 1.75 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    return figure, list(zip(panels.flat, shown, strict=False))


def pr_curves(entries: Sequence[dict[str, Any]], scores_NK: Scores, targets_NK: Decisions) -> Figure | None:
    """Precision against recall of each label; the diamond marks its decisions."""
    panels = _label_panels(entries)
    if panels is None:
        return None
    figure, shown = panels
    for axes, k in shown:
        order = np.argsort(-scores_NK[:, k], kind="stable")
        hits = targets_NK[order, k].cumsum(dtype=np.int64)
        ranks = np.append(np.geomspace(1, len(hits), 60), np.linspace(1, len(hits), 40))
        points = np.unique(ranks.astype(int)) - 1  # the first few matter most
        axes.plot(hits[points] / hits[-1], hits[points] / (points + 1), color=COLOURS[0], linewidth=1.4)
        axes.axhline(hits[-1] / len(hits), color=GREY, linestyle=":", linewidth=1)
        axes.plot(entries[k]["recall"], entries[k]["precision"], "D", color=COLOURS[1], markersize=4)
        axes.set_title(f"{cut(entries[k]['label'], 18)}\nAP {entries[k]['ap']:.2f}", fontsize=8)
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
    names = [cut(labels[k], 14) for k in shown]
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
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
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
    axes.set_yticks(range(len(top)), [cut(label, 40) for label, _ in top], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("images")
    axes.margins(x=0.18)
    return figure
