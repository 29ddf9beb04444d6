"""The plots, each drawn once with matplotlib: as SVG in the page, as PDF and PNG for a paper. Torch-free."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.facts import CellFacts, Facts
from pipeline.report.page import figure as figure_of
from pipeline.storage.files import atomic_write

# Okabe & Ito's colours, which colour-blind readers can distinguish; dashes for readers who see no colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B0A100")
_DASHES = ("-", "--", ":")
_INK = "#010203"  # becomes the page's own text colour
GREY = "#8C8C8C"
_TOP = 8  # curves with a colour and a name of their own
_GREY_CURVES = 200
_FOREST = 30
_PANELS = 6
_WIDE = 20  # the largest over the smallest value, from which an axis is logarithmic
_BASELINES = ("baseline-blank", "baseline-prior")
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

    def add(self, name: str, what: str, draw: Callable[[], Figure | None]) -> Markup:
        """Draw one; its SVG for the page, empty where there is nothing to draw. `what` is its text alternative."""
        with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
            figure = draw()
            if figure is None:
                return Markup()
            self.drawn[name] = figure
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue().partition("<svg ")[2].replace(_INK, "currentColor")
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
        return figure_of(f'<svg role="img" aria-label="{what}" {svg}')

    def save(self, folder: Path) -> None:
        """Every figure as PDF and PNG."""
        for name, figure in self.drawn.items():
            for kind, settings in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": 200})):
                with mpl.rc_context(_STYLE), atomic_write(folder / f"{name}.{kind}") as file:
                    figure.savefig(file, format=kind, **settings)


def leaderboard(facts: Facts) -> Figure | None:
    """The best cells with their 95 % intervals; baselines that lie far below are named beside the plot."""
    cells = [cell for cell in facts.cells if cell.value(facts.by) is not None][:_FOREST]
    if not cells:
        return None
    figure = Figure(figsize=(7, 1.1 + 0.24 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    ends: list[float] = []
    for y, cell in enumerate(cells):
        value = cell.value(facts.by) or 0.0
        low, high = cell.value(f"{facts.by}_lo"), cell.value(f"{facts.by}_hi")
        colour = COLOURS[1] if facts.best and cell.name == facts.best.name else COLOURS[0]
        if low is not None and high is not None:
            axes.plot((low, high), (y, y), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([value], [y], "D" if colour == COLOURS[1] else "o", color=colour, markersize=5,
                  gid=f"tip:{cell.name} {value:.4f}")  # fmt: skip
        ends += [end for end in (low, value, high) if end is not None]
    margin = 0.08 * (max(ends) - min(ends)) or 0.01
    left, right = min(ends) - margin, max(ends) + margin
    for row, line in zip(
        [row for row in facts.baselines if row["cell"] in _BASELINES], ("--", ":"), strict=False
    ):
        value = float(row[facts.by])
        where = "" if left <= value <= right else ", beyond the plot"
        axes.axvline(value, color=GREY, linestyle=line, label=f"{row['cell']} {value:.3f}{where}")
    axes.set_xlim(left, right)
    axes.set_yticks(range(len(cells)), [cut(cell.name, 34) for cell in cells], fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlabel(
        f"{facts.by} on validation, 95 % interval" + (" (lower is better)" if facts.lower_is_better else "")
    )
    if facts.baselines:
        figure.legend(loc="outside upper center", ncols=1)
    return figure


def cut(text: str, length: int) -> str:
    """At most so many characters; what is cut ends in an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def curves(facts: Facts) -> Figure | None:
    """Both losses, the metric of the best epoch and the learning rate, of all cells; the best of them in colour."""
    cells = [cell for cell in facts.cells if cell.epochs]
    if not cells:
        return None
    panels = ("train/loss", "validation/loss", f"validation/{facts.curve_by}", "train/lr")
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    step = max(1, -(-(len(cells) - _TOP) // _GREY_CURVES))
    for axes, tag in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for cell in cells[_TOP::step]:
            _curve(axes, cell, tag, color=GREY, linewidth=0.6, alpha=0.5)
        for i, cell in list(enumerate(cells[:_TOP]))[::-1]:
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]}
            _curve(axes, cell, tag, label=cut(cell.name, 44), linewidth=1.6, **look)
        axes.set_title("learning rate" if tag == "train/lr" else tag.replace("/", " "))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        values = [value for cell in cells for _, value in cell.curve(tag)]
        if "loss" in tag:
            _without_outliers(axes, values)
        elif tag == "train/lr" and values and min(values) > 0 and max(values) > _WIDE * min(values):
            axes.set_yscale("log")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], loc="outside lower center", ncols=2 if max(map(len, names)) < 40 else 1
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
        axes.set_title(cut(key, 44))
        if len(_numbers(shown[key])) > 2:
            _on_a_scale(axes, facts, shown[key])
            continue
        for x, cells in enumerate(shown[key].values()):
            values = [value for cell in cells if (value := cell.value(facts.by)) is not None]
            if values:
                spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
                axes.plot(x + np.asarray(spread), values, "o", color=COLOURS[0], markersize=3.5, alpha=0.6)
                axes.plot([x - 0.3, x + 0.3], [np.mean(values)] * 2, color=COLOURS[1], linewidth=2)
        names = [cut(name, 24) for name in shown[key]]
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


def _on_a_scale(axes: Axes, facts: Facts, groups: Mapping[str, Sequence[CellFacts]]) -> None:
    """Numbers where they lie, with a line through the means; logarithmic where they are spread so."""
    points, means = [], []
    for x, cells in zip(_numbers(groups), groups.values(), strict=True):
        values = [value for cell in cells if (value := cell.value(facts.by)) is not None]
        points += [(x, value) for value in values]
        means += [(x, float(np.mean(values)))] if values else []
    if not points:
        return
    axes.plot(*zip(*sorted(means), strict=True), color=COLOURS[1], linewidth=1.5)
    axes.plot(*zip(*points, strict=True), "o", color=COLOURS[0], markersize=3.5, alpha=0.6)
    numbers = [x for x, _ in means]
    if min(numbers) > 0 and max(numbers) >= _WIDE * min(numbers):
        axes.set_xscale("log")
