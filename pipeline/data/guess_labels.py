"""Every way to read the label files of a data set, from looking at them. Torch- and numpy-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.guess_images import common_start
from pipeline.data.guess_table import NamesImage, Reading, table_readings
from pipeline.data.labels.names import SELDOM_LABELS
from pipeline.data.labels.table import read_text, some
from pipeline.data.sources import Source, is_hidden
from pipeline.errors import DataError

LABEL_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
_SAMPLE = 200  # entries of a file that are looked at
_TRAIN, _VALIDATION, _TEST = (
    re.compile(rf"(?i)({words})([ _-]?(list|ids|images|files))?")
    for words in ("train|training", "val|valid|validation|dev", "test|testing")
)


@dataclass
class Looked:
    """What label files were found to be."""

    readings: list[Reading] = field(default_factory=list)
    split: dict[str, Any] = field(default_factory=dict)  # of lists or a partition file; lists are members
    unsure: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # "file: why it is no label file that can be read"


@dataclass(frozen=True)
class _Entries:
    member: str
    lines: list[str]
    kind: str  # ids, flags (VOC), values (NUS-WIDE), empty or other


def look_at_labels(
    source: Source, members: Sequence[str], names_image: NamesImage, images: Sequence[str] = ()
) -> Looked:
    """The readings of all files among `members` that may hold labels, and the split that they tell.

    `images` are some of the images' names, for what is said of a file that names none of them.
    """
    looked = Looked()
    texts = []
    for member in sorted(m for m in members if m.lower().endswith(LABEL_ENDINGS) and not is_hidden(m)):
        folder = member.rpartition("/")[0]

        def names(text: str, folder: str = folder) -> bool:
            return names_image(text) or names_image(f"{folder}/{text}")

        try:
            text = read_text(source, member)
        except DataError as error:
            looked.refused.append(str(error).removeprefix(f"{source.path}/"))
            continue
        entries = _entries(text, member, names) if member.lower().endswith(".txt") else None
        of_many = entries is not None and entries.kind in ("flags", "values")
        found = [] if of_many else list(_of_file(text, member, names))
        if entries is not None and not found:
            texts.append(entries)
        elif not found:
            looked.refused.append(f"{member}: {_why_not(text, member, images)}")
        looked.readings += found
    _partition(looked, texts)
    _lists(looked, texts)
    for folder in dict.fromkeys(text.member.rpartition("/")[0] for text in texts):
        _of_folder(looked, folder, texts)
    if (others := [text.member for text in texts if text.kind == "other"]) and not looked.readings:
        looked.refused.append(f"{some(others, 2)}: not lists of images (YOLO's boxes: convert them to COCO)")
    return looked


def _of_file(text: str, member: str, names_image: NamesImage) -> Iterator[Reading]:
    """The readings of a file that holds all labels."""
    if member.lower().endswith(".json"):
        content = _json(text)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            telling = "instances" in member or "annotations" in member
            yield Reading({"format": "coco", "file": member}, 10 if telling else 9)
    elif member.lower().endswith((".jsonl", ".ndjson")):
        yield from _jsonl(text, member, names_image)
    elif member.lower().endswith(".txt") and _is_celeba(text):
        yield Reading({"format": "celeba", "file": member}, 10)
    else:
        yield from table_readings(text, member, names_image)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_celeba(text: str) -> bool:
    lines = text.split("\n", 3)
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        return False
    return len(lines[1].split()) == len(lines[2].split()) - 1 and {"1", "-1"}.issuperset(lines[2].split()[1:])


def _jsonl(text: str, member: str, names_image: NamesImage) -> Iterator[Reading]:
    objects = [_json(line) for line in text.splitlines()[:_SAMPLE] if line.strip()]
    if not objects or not all(isinstance(entry, dict) for entry in objects):
        return
    values: dict[str, list[Any]] = {}
    for entry in objects:
        inner = {
            f"{k}.{i}": v for k, value in entry.items() if isinstance(value, dict) for i, v in value.items()
        }
        for key, value in (entry | inner).items():
            values.setdefault(key, []).append(value)
    ids = {
        k: sum(isinstance(v, str | int) and names_image(str(v)) for v in held) for k, held in values.items()
    }
    best = max(ids, key=lambda key: ids[key])
    if not ids[best]:
        return
    for key, held in values.items():
        lists = all(isinstance(v, list) and all(isinstance(i, str | int) for i in v) for v in held)
        flags = all(isinstance(v, dict) and v and all(x in (0, 1) for x in v.values()) for v in held)
        if (lists or flags) and len(held) == len(objects):
            labels = {"format": "jsonl", "file": member, "id_key": best, "labels_key": key}
            yield Reading(labels, 9 + ("label" in key.lower()))


def _why_not(text: str, member: str, images: Sequence[str]) -> str:
    if member.lower().endswith(".json"):
        return (
            "not COCO's instances (images, annotations, categories)"
            if _json(text) is not None
            else "not JSON"
        )
    if member.lower().endswith((".jsonl", ".ndjson")):
        return "no key of its objects names an image, or none is a list of labels"
    first, *rows = [line.strip() for line in text.split("\n", 4)[:4]]
    held = [re.split(r"[,;\t|]", row)[0].strip('"')[:40] for row in rows if row]
    called = [image.rpartition("/")[2] for image in images]
    both = f"; its rows begin with {some(held)}, and the images are called {some(called)}" if held else ""
    return f"no column of it names an image and another labels (it begins {first[:60]!r}{both})"


# ---------------------------------------------------------------- a text file per label, and lists


def _entries(text: str, member: str, names_image: NamesImage) -> _Entries:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sample = [line.split() for line in lines[:_SAMPLE]]
    if not lines:
        kind = "empty"
    elif len(lines) > 2 and {"0", "1", "-1"}.issuperset(lines):
        kind = "values"
    elif all(
        len(words) == 2 and words[1] in ("-1", "0", "1", "2") and names_image(words[0]) for words in sample
    ):
        kind = "flags"
    else:
        kind = "ids" if 2 * sum(map(names_image, lines[:_SAMPLE])) > len(sample) else "other"
    return _Entries(member, lines, kind)


def _stem(member: str) -> str:
    return member.rpartition("/")[2].rpartition(".")[0]


def _partition(looked: Looked, texts: list[_Entries]) -> None:
    """CelebA's file of 0, 1 and 2; it leaves `texts`."""
    for text in [text for text in texts if text.kind == "flags" and "partition" in text.member.lower()]:
        texts.remove(text)
        values = {line.split()[1] for line in text.lines}
        if {"0", "1"} <= values <= {"0", "1", "2"}:
            written = {"file": text.member, "delimiter": "space", "header": False}
            looked.split = {"method": "column", "column": "2", **written}


def _lists(looked: Looked, texts: Sequence[_Entries]) -> None:
    """Lists of training and validation images."""
    lists = [text for text in texts if text.kind == "ids"]
    named: dict[str, list[_Entries]] = {}
    for part, pattern in {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}.items():
        named[part] = [text for text in lists if pattern.fullmatch(_stem(text.member))]
    entries = [set(texts[0].lines) for texts in named.values() if texts]
    distinct = sum(map(len, entries)) == len(set().union(*entries))
    if not looked.split and named["train"] and named["validation"] and distinct:
        looked.split = {
            "method": "lists",
            **{part: texts[0].member for part, texts in named.items() if texts},
        }
        return
    seeming = [text.member for text in lists if re.search(r"(?i)train|val|test", _stem(text.member))]
    if seeming and not looked.split:
        looked.unsure.append(
            f"{some(seeming)} may be the publisher's split, which is not used; see data.split.method: lists"
        )


def _of_folder(looked: Looked, folder: str, texts: Sequence[_Entries]) -> None:
    """The readings of a folder with a text file per label."""
    inside = [text for text in texts if text.member.rpartition("/")[0] == folder]
    of_kind = {kind: [text for text in inside if text.kind == kind] for kind in ("flags", "values", "ids")}
    if of_kind["flags"]:
        ends: dict[str, list[_Entries]] = {}
        for text in of_kind["flags"]:
            stem, underscore, end = _stem(text.member).rpartition("_")
            ends.setdefault(underscore + end if stem else "", []).append(text)
        end = max(ends, key=lambda end: sum(len(text.lines) for text in ends[end]))
        looked.readings.append(Reading({"format": "voc", "files": _join(folder, f"{{label}}{end}.txt")}, 9))
    if of_kind["values"]:
        _vectors(looked, folder, of_kind["values"], texts)
    labels = [text for text in of_kind["ids"] if not _is_list(text)]
    if labels:
        looked.readings.append(_id_lists(folder, labels, inside))


def _is_list(text: _Entries) -> bool:
    name = _stem(text.member).casefold()
    parts = any(pattern.fullmatch(name) for pattern in (_TRAIN, _VALIDATION, _TEST))
    return parts or name in SELDOM_LABELS or "list" in name or "train" in name


def _vectors(looked: Looked, folder: str, labels: list[_Entries], texts: Sequence[_Entries]) -> None:
    length = len(labels[0].lines)
    orders = [text for text in texts if text.kind == "ids" and len(text.lines) == length]
    if not orders:
        looked.refused.append(
            f"{some([text.member for text in labels], 2)}: a 0 or 1 for each of {length} images, but no file names "
            f"the {length} images in that order; add one (a name a line)"
        )
        return
    files = _join(folder, _pattern([_stem(text.member) for text in labels]))
    looked.readings.append(Reading({"format": "vectors", "files": files, "order": orders[0].member}, 8))


def _id_lists(folder: str, labels: list[_Entries], inside: Sequence[_Entries]) -> Reading:
    """MIRFLICKR has `baby.txt` and `baby_r1.txt`, a narrower choice: then those with the ending are read."""
    stems = [_stem(text.member) for text in labels]
    unsure = []
    pattern = _pattern(stems)
    known = set(stems)
    ends = {stem.rpartition("_")[2] for stem in stems if stem.rpartition("_")[0] in known}
    for end in ends:
        both = [stem for stem in stems if stem.endswith(f"_{end}") and stem.rpartition("_")[0] in known]
        if len(both) > 1:
            pattern = f"{{label}}_{end}.txt"
            unsure.append(f"each of {some(both, 3)} has a file without _{end} too; those are not read")
            break
    before, after = pattern.removesuffix(".txt").split("{label}")
    matched = [_stem(text.member) for text in inside]
    matched = [stem for stem in matched if stem.startswith(before) and stem.endswith(after)]
    lists = [text for text in inside if _is_list(text) or text.kind == "other"]
    out = [_stem(text.member) for text in lists if _stem(text.member) in matched]
    out = [stem[len(before) : len(stem) - len(after)] for stem in out]
    section: dict[str, Any] = {"format": "id_lists", "files": _join(folder, pattern)}
    if out:
        section["except"] = out
        unsure.append(f"{some(out)}: taken for lists of something, not for labels")
    return Reading(section, 6 if len(labels) > 1 else 3, tuple(unsure))


def _pattern(stems: Sequence[str]) -> str:
    """`Labels_{label}.txt` for Labels_dog and Labels_tree: what is common, up to a mark."""
    if len(stems) < 2:
        return "{label}.txt"
    before = re.sub(r"[^_-]*$", "", common_start(stems))
    after = re.sub(r"[^_-]*$", "", common_start([stem[::-1] for stem in stems]))[::-1]
    return f"{before}{{label}}{after}.txt"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
