"""HTML of the page: one file without any request, readable without JavaScript, in the dark, and on paper."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

_NUMBER = re.compile(r"[+-]?\d[\d.:]*\b(?!-)")  # starts with a number: aligned to the right


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
            f"<tr{f' class={kind}' if kind else ''}>{_entries('td', row, texts)}</tr>"
            for kind, row in zip(kinds, self.rows, strict=True)
        ]
        head = _entries("th", self.columns, texts)
        beyond = lines[shown:]
        html = _grid(head, lines[:shown])
        return html + (fold(f"{len(beyond)} more", _grid(head, beyond)) if beyond else "")


def _grid(head: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _entries(tag: str, entries: Sequence[str], texts: Sequence[bool]) -> str:
    pairs = zip(entries, texts, strict=True)
    return "".join(
        f"<{tag}{' class=text' if is_text else ''}>{escape(entry)}</{tag}>" for entry, is_text in pairs
    )


def plain(value: Any) -> str:
    """A number, a count by name, or nothing, as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def fold(summary: str, html: str) -> str:
    """A part of the page that a click opens."""
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
    existing = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in existing)
    parts = [
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{body}</section>' for name, body in existing
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{_asset('page.css')}</style>"
        f"<h1>{escape(title)}</h1>{top}<nav>{links}</nav>" + "\n".join(parts)
        + f"<script>\n{_asset('page.js')}</script></html>\n"
    )  # fmt: skip


def _asset(name: str) -> str:
    """A file beside this one, also where the code runs from a zip."""
    return (pkgutil.get_data(__name__, name) or b"").decode()


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
