"""Which labels count and what they are called: `only`, `except`, `rename`, `none`. Torch- and numpy-free."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches

from pipeline.data.labels.table import LabelTable, as_list, some
from pipeline.data.labels.text_table import matches
from pipeline.errors import DataError
from pipeline.spec import LabelNames

# columns and lists that are seldom labels, though a column may hold 0 and 1 and a list may hold ids
SELDOM_LABELS = frozenset({
    "split", "set", "subset", "fold", "is_train", "is_test", "is_valid", "is_val", "train", "val", "valid",
    "validation", "test", "trainval", "all", "classes", "labels", "readme",
})  # fmt: skip


def choose_labels(table: LabelTable, names: LabelNames) -> LabelTable:
    """The table with the labels that the spec chooses, under its names; changes `table`.

    Raises DataError where the spec names a label that is not there, or none is left.
    """
    none, out = _chosen(table, names.none, "none"), _chosen(table, names.except_, "except")
    renames = dict(names.rename)
    _chosen(table, renames, "rename")
    if names.only is not None:
        _chosen(table, names.only, "only")
        kept = [label for pattern in names.only for label in table.labels if matches(label, pattern)]
    else:
        kept = table.labels
    kept = [label for label in dict.fromkeys(kept) if label not in none | out]
    labels = list(dict.fromkeys(renames.get(label, label) for label in kept))
    if not labels:
        raise DataError(f"{table.place}: no label is left; correct data.labels.only, except or none")
    new = {label: labels.index(renames.get(label, label)) for label in kept}
    number = [new.get(label, -1) for label in table.labels]
    if none:
        count = sum(table.labels[label] in none for label in table.label_P)
        table.notes.append(f"{some(sorted(none))}: means no label, as labels.none says ({count}x)")
    for target, count in Counter(renames.get(label, label) for label in kept).items():
        if count > 1:
            joined = [label for label in kept if renames.get(label, label) == target]
            table.notes.append(f"{some(joined)} are joined as {target!r}")
    if number != list(range(len(number))):
        pairs = zip(table.row_P, table.label_P, strict=True)
        table.row_P = array("q", (row for row, label in pairs if number[label] >= 0))
        table.label_P = array("q", (number[label] for label in table.label_P if number[label] >= 0))
    table.read_from = {
        renames.get(label, label): place for label, place in table.read_from.items() if label in new
    }
    table.labels = labels
    table.notes += alike(labels)
    odd = [label for label in labels if label.casefold() in SELDOM_LABELS]
    if odd and names.only is None:
        table.notes.append(
            f"{some(odd)} may be no label but a split or a list of something; if so, write "
            f"labels.except: {as_list(odd)}"
        )
    return table


def alike(labels: Iterable[str]) -> list[str]:
    """A note for labels that differ by case, spaces or Unicode form only."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        plain = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())
        groups.setdefault(plain, []).append(label)
    return [
        f"the labels {' and '.join(map(repr, group))} differ by their writing only; labels.rename joins them"
        for group in groups.values()
        if len(group) > 1
    ]


def _chosen(table: LabelTable, patterns: Iterable[str], key: str) -> set[str]:
    """The labels that names or patterns choose; each must choose one."""
    chosen: set[str] = set()
    for pattern in patterns:
        found = [label for label in table.labels if matches(label, pattern)]
        if not found:
            near = get_close_matches(pattern, table.labels, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise DataError(
                f"{table.place}: data.labels.{key} names the label {pattern!r}, which is not there{hint} "
                f"It has {some(table.labels)}"
            )
        chosen.update(found)
    return chosen
