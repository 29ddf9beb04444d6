"""HTML of the page: one file without any request, readable without JavaScript, in the dark, and on paper.

Texts become HTML in `page.html` alone, which escapes them: a label or a file name may be anything.
"""

from __future__ import annotations

import functools
import pkgutil
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

_NUMBER = re.compile(r"[+-]?\d[\d.:]*\b(?!-)")  # starts with a number: aligned to the right


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; `kinds` are the rows' classes. The same rows become a CSV.

    Entries that are one of `anchors` link to that cell; with `is_target` the rows are what they link to.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: Sequence[str] = field(default_factory=tuple)
    anchors: Collection[str] = ()
    is_target: bool = False

    def only(self, columns: Sequence[int]) -> Table:
        """With these columns."""
        rows = [[row[i] for i in columns] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in columns], rows=rows)

    def html(self, shown: int = 50) -> Markup:
        """The table; rows beyond `shown` are folded away."""
        kinds = self.kinds or [""] * len(self.rows)
        texts = [not any(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.columns))]
        lines = list(zip(kinds, self.rows, strict=True))
        rest = (texts, self.anchors, self.is_target)
        html = _made("grid", self.columns, lines[:shown], *rest)
        beyond = lines[shown:]
        more = fold(f"{len(beyond)} more", _made("grid", self.columns, beyond, *rest)) if beyond else ""
        return html + more


def plain(value: Any) -> str:
    """A number, a count by name, or nothing, as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def fold(summary: str, html: Markup) -> Markup:
    """A part of the page that a click opens."""
    return _made("fold", summary, html)


def note(text: str) -> Markup:
    """A paragraph of explanation."""
    return _made("note", text)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return _made("heading", text)


def paragraph(text: str) -> Markup:
    """A paragraph of the page's own size."""
    return _made("paragraph", text)


def source(text: str) -> Markup:
    """Text as it is in a file."""
    return _made("source", text)


def figure(svg: str) -> Markup:
    """An SVG that matplotlib has drawn, whose texts it has escaped."""
    return _made("figure", Markup(svg))  # noqa: S704


def cards(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """(heading, large text, small text) side by side."""
    return _made("cards", entries)


def gallery(title: str, pictures: Sequence[Any]) -> Markup:
    """Small pictures with `jpeg` (base64), `name`, `loss` and `lines` of (class, text)."""
    return _made("gallery", title, pictures)


def top(question: str, made: str, sentence: str, following: Sequence[str]) -> Markup:
    """The head of the page: what was asked, when and from what it was made, the answer, what to do next."""
    return _made("top", question, made, sentence, following)


def glossary(words: Sequence[tuple[str, str]]) -> Markup:
    """(word, meaning), one below the other."""
    return _made("glossary", words)


def page(title: str, head: Markup, sections: Sequence[tuple[str, Markup]]) -> str:
    """The whole page of (heading, HTML); an empty section is left out."""
    existing = [(name.lower().replace(" ", "-"), name, body) for name, body in sections if body]
    css, js = Markup(_asset("page.css")), Markup(_asset("page.js"))  # noqa: S704 - this folder's own
    return f"{_made('page', title, head, existing, css, js)}\n"


def _made(macro: str, *values: Any) -> Markup:
    return Markup(getattr(_macros(), macro)(*values))  # noqa: S704 - the template has escaped it


@functools.cache
def _macros() -> Any:
    return Environment(autoescape=True).from_string(_asset("page.html")).module


def _asset(name: str) -> str:
    """A file beside this one, also where the code runs from a zip."""
    return (pkgutil.get_data(__name__, name) or b"").decode()
