"""COCO's instances files, and JSON lines as Hugging Face's image folders have them. Torch- and numpy-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.data.labels.table import LabelNumbers, LabelTable, sort_labels
from pipeline.errors import DataError
from pipeline.spec import JsonLinesLabels


def read_coco(text: str, place: str) -> LabelTable:
    """Read images, categories and annotations; an image has a label if an annotation of it has the category."""
    try:
        content: Any = json.loads(text)
        images = [(image["id"], str(image["file_name"])) for image in content["images"]]
        categories = [(category["id"], str(category["name"])) for category in content["categories"]]
        pairs = dict.fromkeys((entry["category_id"], entry["image_id"]) for entry in content["annotations"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{place}: not a COCO instances file ({what}); it holds images, categories and annotations"
        ) from error
    rows = _numbers(images, "images", place)
    columns = _numbers(categories, "categories", place)
    names = [name for _, name in categories]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{place}: two categories have the name {twice!r}; rename one")
    table = LabelTable(names, place, references=[name for _, name in images])
    for category, image in pairs:
        if category not in columns:
            raise DataError(f"{place}: an annotation has the category {category}, which is not listed")
        if image not in rows:
            rows[image] = len(table.references)
            table.references.append(f"image id {image}")
        table.row_P.append(rows[image])
        table.label_P.append(columns[category])
    return table


def _numbers(named: list[tuple[Any, str]], what: str, place: str) -> dict[Any, int]:
    """Id -> position; a DataError names every id that two have."""
    numbers: dict[Any, int] = {}
    twice = []
    for number, (key, name) in enumerate(named):
        if numbers.setdefault(key, number) != number:
            twice.append(f"id {key}: {named[numbers[key]][1]!r} and {name!r}")
    if twice:
        more = f" ({len(twice)} such)" if len(twice) > 1 else ""
        raise DataError(
            f"{place}: two {what} have one id, so annotations could mean either: {'; '.join(twice[:5])}{more}"
        )
    return numbers


def read_jsonl(text: str, place: str, labels: JsonLinesLabels) -> LabelTable:
    """Read an object a line; labels are a list, or a mapping of every label to 0 or 1."""
    numbers = LabelNumbers()
    table = LabelTable([], place, one_row_an_image=True)
    for line, entry in _objects(text, place):
        name = _value(entry, labels.id_key)
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise DataError(
                f"{place}:{line}: has no file name under {labels.id_key!r}; correct labels.id_key ({_keys(entry)})"
            )
        found = _value(entry, labels.labels_key)
        if isinstance(found, dict) and all(value in (0, 1) for value in found.values()):
            for label in found:
                _ = numbers[label]
            found = [label for label, value in found.items() if value]
        if not isinstance(found, list) or not all(isinstance(item, str | int) for item in found):
            raise DataError(
                f"{place}:{line}: {labels.labels_key!r} is {json.dumps(found)[:60]}, not a list of labels; correct "
                f"labels.labels_key ({_keys(entry)})"
            )
        table.add(str(name), sorted({numbers[str(item)] for item in found}), line)
    if not table.references:
        raise DataError(f"{place}: is empty; it needs a JSON object per image")
    return sort_labels(table, numbers)


def _objects(text: str, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            entry = json.loads(written)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}:{line}: not JSON ({error}); it needs a JSON object a line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{place}:{line}: {written.strip()[:60]!r} is not a JSON object")
        yield line, entry


def _value(entry: Any, key: str) -> Any:
    for part in key.split("."):
        entry = entry.get(part) if isinstance(entry, dict) else None
    return entry


def _keys(entry: dict[str, Any]) -> str:
    return f"its keys are {', '.join(map(repr, entry))}"
