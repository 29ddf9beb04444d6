"""`report.html`: one self-contained page about an experiment, from the files that are there. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.files import atomic_write
from pipeline.jsonl import read_jsonl
from pipeline.leaderboard import read_leaderboard
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.spec import LOWER_IS_BETTER

_SHOWN = (
    "f1_micro", "f1_macro", "f1_weighted", "f1_samples_empty0", "f1_samples_empty1", "map_macro",
    "label_accuracy", "exact_match", "f1_micro_at50", "f1_micro_labelled",
)  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --best: #2a78; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.best { background: var(--best); }
tr.baseline { font-style: italic; } tr.failed { opacity: .7; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
"""
# Okabe & Ito's colours, told apart by colour-blind readers too
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def write_report(experiment: ExperimentDir) -> None:
    """Write the page anew; raises CheckpointError where there is no leaderboard yet."""
    rows = read_leaderboard(experiment.leaderboard)
    selected = experiment.read_selected()
    best = selected.get("cell")
    parts = [
        f"<h1>{escape(experiment.path.name)}</h1>",
        _summary(rows, selected),
        "<h2>Leaderboard</h2>",
        _leaderboard(rows, best),
        "<h2>Training</h2>",
        _curves(experiment, rows, selected.get("best_by", "f1_micro")),
    ]
    report = RunDir(experiment.path / str(best)).report
    if best and report.exists():
        parts += [f"<h2>Labels of {escape(best)}</h2>", _labels(json.loads(report.read_text()))]
    parts += [_data(selected)]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(experiment.path.name)}</title><style>{_STYLE}</style>"
        + "\n".join(parts)
        + "</html>\n"
    )
    with atomic_write(experiment.report, "w") as file:
        file.write(page)


def _summary(rows: Sequence[dict[str, str]], selected: dict[str, Any]) -> str:
    cells = [row for row in rows if not row["cell"].startswith("baseline-")]
    done = [row for row in cells if row["state"] == "done"]
    text = f"{len(done)} of {len(cells)} cells finished."
    if selected.get("cell"):
        how = (
            "picked by hand"
            if selected["picked_by"] == "user"
            else f"best on validation by {selected['select_by']}"
        )
        text += f" Selected: <b>{escape(selected['cell'])}</b> ({how}, {selected['value']:.4f})."
    return f"<p>{text}</p>"


def _leaderboard(rows: Sequence[dict[str, str]], best: str | None) -> str:
    body = []
    for row in rows:
        kind = "best" if row["cell"] == best else "baseline" if row["cell"].startswith("baseline-") else ""
        if row["state"] in ("done", "baseline"):
            cells = [f"{float(row[name]):.4f}" if row.get(name) else "" for name in _SHOWN]
        else:
            kind, cells = "failed", [f"{row['state']}: {row['error']}", *[""] * (len(_SHOWN) - 1)]
        body.append((kind, [row["cell"], *cells]))
    note = (
        "<p>All validation images under the spec's decision rule (cross-fitted where thresholds were tuned); "
        "<code>_at50</code>: threshold 0.5; <code>_labelled</code>: only images that bear a label. "
        "An image without any true or predicted label counts 0 in <code>empty0</code>, 1 in <code>empty1</code>; "
        f"lower is better for {', '.join(sorted(LOWER_IS_BETTER - {'loss'}))}.</p>"
    )
    return _table(["cell", *_SHOWN], body) + note


def _labels(report: dict[str, Any]) -> str:
    columns = ("label", "support", "predicted", "precision", "recall", "f1", "ap", "threshold")
    body = []
    for entry in report["per_label"]:
        shown = [entry.get(name) for name in columns]
        body.append(
            ("", [f"{v:.3f}" if isinstance(v, float) else "" if v is None else str(v) for v in shown])
        )
    return _table(columns, body)


def _curves(experiment: ExperimentDir, rows: Sequence[dict[str, str]], by: str) -> str:
    series = []
    for row in rows:
        metrics = RunDir(experiment.path / row["cell"]).metrics
        points = _epochs(metrics, f"validation/{by}")
        if points:
            series.append((row["cell"], points))
    return _plot(series, f"validation {by}") if series else "<p>No epoch is finished yet.</p>"


def _epochs(path: Path, tag: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[tag]) for row in read_jsonl(path) if tag in row]


def _plot(series: Sequence[tuple[str, list[tuple[float, float]]]], title: str) -> str:
    width, height, left, bottom, right = 640, 320, 50, 30, 330
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_high, y_low, y_high = max(max(xs), 2), min(ys), max(ys)
    span = (y_high - y_low) or 1.0

    def at(x: float, y: float) -> str:
        across = left + (x - 1) / (x_high - 1) * (width - left - 10)
        return f"{across:.1f},{(height - bottom) - (y - y_low) / span * (height - bottom - 25):.1f}"

    shapes = [f"<text x={left} y=14>{escape(title)}</text>"]
    for y in (y_low, (y_low + y_high) / 2, y_high):
        level = at(1, y).split(",")[1]
        shapes.append(
            f"<line x1={left} x2={width - 10} y1={level} y2={level} stroke=currentColor opacity=.2 />"
        )
        shapes.append(f"<text x={left - 6} y={level} dy=4 text-anchor=end>{y:.3f}</text>")
    shapes.append(f"<text x={left} y={height - 8}>epoch 1</text>")
    shapes.append(f"<text x={width - 10} y={height - 8} text-anchor=end>{x_high:g}</text>")
    for i, (name, points) in enumerate(series[:40]):
        colour = _COLOURS[i % len(_COLOURS)]
        dash = ("", "6 3", "2 3")[i // len(_COLOURS) % 3]
        path = " ".join(at(x, y) for x, y in points)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        shapes.append(f'<polyline points="{path}" fill="none" {stroke} />')
        y = 24 + 16 * i
        shapes.append(f"<line x1={width + 10} x2={width + 34} y1={y} y2={y} {stroke} />")
        shapes.append(f"<text x={width + 40} y={y + 4}>{escape(name[:44])}</text>")
    height = max(height, 24 + 16 * min(len(series), 40))
    return (
        f'<svg viewBox="0 0 {width + right} {height}" width="{width + right}" role="img" '
        f'aria-label="{escape(title)}">' + "".join(shapes) + "</svg>"
    )


def _data(selected: dict[str, Any]) -> str:
    split = Path(selected.get("split") or "")
    report = Path(selected.get("packed") or "") / "wrangle_report.json"
    parts = []
    if split.is_file():
        counts = json.loads(split.read_text())["counts"]
        columns = ["split", *next(iter(counts.values()), {})]
        body = [("", [name, *map(_plain, entry.values())]) for name, entry in counts.items()]
        parts += ["<h2>Data</h2>", _table(columns, body)]
    if report.is_file():
        text = escape(json.dumps(json.loads(report.read_text()), indent=1)[:20_000])
        parts.append(f"<details><summary>wrangle report</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr class='{kind}'>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>"
        for kind, cells in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
