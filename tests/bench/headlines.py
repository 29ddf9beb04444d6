"""The figures that have a goal: kept in docs/performance.json, tabled and drawn beside those of the last release."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import ROOT, table

KEPT = ROOT / "docs" / "performance.json"
PICTURE = ROOT / "docs" / "performance.webp"


@dataclass(frozen=True)
class Headline:
    """A measured value beside its goal: at least that, or at most."""

    value: float
    goal: float
    unit: str = "x"
    at_most: bool = False

    @property
    def margin(self) -> float:
        """How many times better than the goal; below 1 it is missed."""
        return self.goal / self.value if self.at_most else self.value / self.goal

    @property
    def text(self) -> str:
        return f"{self.value:.4g} {self.unit}"


measured: dict[str, Headline] = {}


def headline(
    name: str, values: Sequence[float], goal: float, *, unit: str = "x", at_most: bool = False
) -> None:
    """Note the median of `values` under a name that stays the same from run to run."""
    measured[name] = Headline(statistics.median(values), goal, unit, at_most)


def against(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratios of measurements taken next to each other."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def keep() -> str:
    """Merge what was measured into the file, draw all of it; the table, with the last release's figures."""
    kept = read(KEPT.read_text()) if KEPT.exists() else {}
    kept |= measured
    KEPT.write_text(json.dumps({name: asdict(one) for name, one in kept.items()}, indent=1) + "\n")
    draw(kept, PICTURE)
    tag, before = last_release()
    rows = [
        [
            name,
            f"{'<=' if one.at_most else '>='} {one.goal:g} {one.unit}",
            one.text,
            "met" if one.margin >= 1 else "missed",
            before[name].text if name in before else "",
        ]
        for name, one in kept.items()
    ]
    return table(["what", "goal", "measured", "", f"at {tag}" if tag else "no release yet"], rows)


def last_release() -> tuple[str, dict[str, Headline]]:
    """Its tag and figures; empty where nothing was released."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    tag = git("describe", "--tags", "--abbrev=0")
    text = git("show", f"{tag}:{KEPT.relative_to(ROOT)}") if tag else ""
    return tag, read(text) if text else {}


def read(text: str) -> dict[str, Headline]:
    return {name: Headline(**one) for name, one in json.loads(text).items()}


def draw(figures: dict[str, Headline], path: Path) -> None:
    """One bar a figure: how many times better than its goal, which is the line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.36 * len(figures)), dpi=100, layout="constrained")
    axes = figure.subplots()
    margins = [one.margin for one in figures.values()]
    places = range(len(figures), 0, -1)
    colours = ["#0072b2" if margin >= 1 else "#d55e00" for margin in margins]
    axes.barh(places, [margin - 1 for margin in margins], left=1, color=colours, height=0.6)
    for place, one in zip(places, figures.values(), strict=True):
        side = "left" if one.margin >= 1 else "right"
        axes.annotate(one.text, (one.margin, place), (4 if side == "left" else -4, 0), textcoords="offset points",
                      ha=side, va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(places, list(figures), fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, 0.7 * min(margins)), 1.5 * max(margins))
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times better than the goal (orange: missed), the figure itself beside its bar")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
