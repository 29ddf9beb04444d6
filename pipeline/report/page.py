"""HTML of the page: one file without any request, readable without JavaScript, in the dark, and on paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #8882; --best: #e69f0030;
  --link: light-dark(#0059a8, #7cc0ff); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 0 auto; padding: 1rem 1rem 4rem;
  background: light-dark(#fff, #16181b); color: light-dark(#1b1d20, #e4e6e8); }
h1 { margin: .5rem 0; } h2 { margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
a { color: var(--link); } nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.wide { overflow-x: auto; } p.note { color: light-dark(#5c6066, #a3a8ae); max-width: 60rem; margin: .4rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.cards div { background: var(--quiet); border-radius: .5rem; padding: .6rem .9rem; overflow-wrap: anywhere; }
.cards b { display: block; font-size: 1.3rem; line-height: 1.3; } .cards small { display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } td small { opacity: .75; }
tr.best { background: var(--best); font-weight: 600; } tr.baseline { font-style: italic; } tr.failed { opacity: .7; }
.sortable th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--quiet); padding: .6rem; }
svg { max-width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
.tip:hover path, .tip:hover use { stroke-width: 4px !important; opacity: 1 !important; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .8rem; }
.gallery figure { margin: 0; font-size: .82em; line-height: 1.35; }
.gallery img { width: 100%; border-radius: .3rem; display: block; }
.ok { color: light-dark(#00694c, #35c79a); } .wrong { color: light-dark(#b34700, #ff9d5c); }
@media (max-width: 40rem) { .wide svg { min-width: 40rem; } }
@media print { body { font-size: 10px; max-width: none; background: #fff; color: #000; } nav, summary { display: none; }
  h2 { break-after: avoid; } figure, svg, .cards, tr { break-inside: avoid; }
  .wide { overflow: visible; } th { position: static; } }
"""
_SCRIPT = """
document.querySelectorAll('table').forEach(table => {
  table.classList.add('sortable');
  table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') !== 'descending', body = table.tBodies[0];
    const key = row => { const text = row.cells[column]?.textContent ?? '', number = parseFloat(text);
      return isNaN(number) ? text : number; };
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    [...body.rows].map(row => [key(row), row]).sort(([a], [b]) => {
      const order = typeof a === typeof b ? (a > b) - (a < b) : typeof a === 'number' ? 1 : -1;
      return down ? -order : order; }).forEach(([, row]) => body.append(row));
  }));
});
"""
_LEFT = " class=text"
_NUMBER = re.compile(r"[+-]?\d[\d.:]*\b(?!-)")  # a number comes first: set to the right


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; `kinds` are the rows' classes. The same rows become a CSV."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: Sequence[str] = field(default_factory=tuple)

    def html(self, shown: int = 50) -> str:
        """The table; rows beyond `shown` are folded away."""
        kinds = self.kinds or [""] * len(self.rows)
        texts = [not any(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            f"<tr{f' class={kind}' if kind else ''}>" + "".join(map(_entry, row, texts)) + "</tr>"
            for kind, row in zip(kinds, self.rows, strict=True)
        ]
        head = "".join(
            f"<th{_LEFT if text else ''}>{escape(column)}</th>"
            for column, text in zip(self.columns, texts, strict=True)
        )
        folded = lines[shown:]
        html = _grid(head, lines[:shown])
        return html + (fold(f"{len(folded)} more", _grid(head, folded)) if folded else "")


def _grid(head: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _entry(text: str, is_text: bool) -> str:
    return f"<td{_LEFT if is_text else ''}>{escape(text)}</td>"


def plain(value: Any) -> str:
    """A number, a count by name, or nothing, as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def fold(summary: str, html: str) -> str:
    """Something to open by a click."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def note(text: str) -> str:
    """A paragraph of explanation; `text` is HTML."""
    return f"<p class=note>{text}</p>"


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """(heading, large text, small text) side by side."""
    return "<div class=cards>" + "".join(
        f"<div>{escape(head)}<b>{escape(large)}</b><small>{escape(small)}</small></div>"
        for head, large, small in entries
    ) + "</div>"  # fmt: skip


def page(title: str, top: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page of (heading, HTML); an empty section is left out."""
    there = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in there)
    parts = [f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{body}</section>' for name, body in there]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{top}<nav>{links}</nav>" + "\n".join(parts)
        + f"<script>{_SCRIPT}</script></html>\n"
    )  # fmt: skip


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
