"""The reference of all keys, for the terminal (`jobs keys`) and as docs/spec.md (`jobs reference`)."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from jobs.clusters.profile import Profile
from pipeline.errors import SpecError
from pipeline.spec.reading import json_schema
from pipeline.spec.reference import Key, Part, describe, parts
from pipeline.spec.renamed import RENAMED, renamed

_WIDTH = 110
_INTRO = """# Every key of a spec

This page is made from the texts under the fields in `pipeline/spec/` and `jobs/clusters/profile.py`, by
`python -m jobs reference > docs/spec.md`. In the terminal, `python -m jobs keys train.augment` shows the keys of a
section, and `python -m jobs schema > spec.schema.json` gives an editor the same texts.

A section is a mapping of keys. Where a section has several kinds, one key (`name`, `method` or `format`)
chooses among them. A key in a list is shown with `[]`, and `NAME` stands for a name of your own.
"""


def reference() -> str:
    """docs/spec.md: a heading a section, and under it its keys with type, range, default and text."""
    groups: dict[tuple[str, str, str, tuple[Key, ...]], list[str]] = {}
    for part in _all_parts():  # equal sections are written once, with every place they stand in
        groups.setdefault((part.tag, part.choice, part.text, part.keys), []).append(part.path)
    lines = [_INTRO]
    for (tag, choice, text, keys), paths in groups.items():
        where = ", ".join(f"`{path}`" for path in paths if path) or "The file itself"
        level = "##" if "." not in paths[0] else "###"
        lines += [f"{level} {where}" + (f" with `{tag}: {choice.strip('`')}`" if tag else ""), "", text, ""]
        lines += [f"- **`{key.name}`** ({_facts(key)}): {_one_line(key.text)}" for key in keys]
        lines += [""] * bool(keys)
    lines += ["## Keys of version 0.1", "", "They are refused with their new name, until 0.4.", ""]
    lines += [f"- `{old}` is now `{new}`" for old, new in RENAMED.items()]
    return "\n".join(lines)


def keys(prefix: str | None) -> str:
    """The sections there are; with a prefix the keys at and below it. A SpecError for one that is not there."""
    found = list(_all_parts())
    if prefix is None:
        return "\n".join(_overview(found))
    sections = [part for part in found if part.path and _below(part.path, prefix)]
    if sections:
        return "\n".join(line for part in sections for line in _section(part))
    single = [
        (part, key) for part in found for key in part.keys if _plain(_path(part, key)) == _plain(prefix)
    ]
    if single:
        return "\n".join(line for part, key in single for line in (_title(part), *_key(key)))
    if text := renamed(prefix.split(".")):
        raise SpecError(f"{prefix}: {text}")
    known = list(dict.fromkeys([part.path for part in found] + [_path(p, k) for p in found for k in p.keys]))
    same = [path for path in known if path.rsplit(".", 1)[-1] == prefix]
    close = same or get_close_matches(prefix, known, n=1)
    sections_known = ", ".join(dict.fromkeys(part.path for part in found if part.path))
    hint = (
        f"did you mean {' or '.join(f'`{path}`' for path in close)}?" if close else f"known: {sections_known}"
    )
    raise SpecError(f"{prefix}: unknown key; {hint}")


def _all_parts() -> Iterator[Part]:
    yield from parts(json_schema())
    yield from parts(describe(Profile), "cluster")


def _path(part: Part, key: Key) -> str:
    return f"{part.path}.{key.name}".lstrip(".")


def _plain(path: str) -> str:
    return path.replace("[]", "")


def _below(path: str, prefix: str) -> bool:
    return f"{_plain(path)}.".startswith(f"{_plain(prefix)}.")


def _facts(key: Key) -> str:
    default = f"; default `{key.default}`" if key.default else ""
    return f"{key.values}; required" if key.required else key.values + default


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _overview(found: Sequence[Part]) -> Iterator[str]:
    """A line a section: what it is, or its kinds."""
    kinds: dict[str, list[Part]] = {}
    for part in found:
        kinds.setdefault(part.path, []).append(part)
    width = max(map(len, kinds))
    for path, kind in kinds.items():
        choices = f"{kind[0].tag}: {', '.join(part.choice for part in kind)}"
        text = choices.replace("`", "") if kind[0].tag else kind[0].text.splitlines()[0]
        yield f"{path or '(the file)':<{width}}  {text}"
    yield "\n`keys train.augment` shows the keys of a section, docs/spec.md all of them"


def _title(part: Part) -> str:
    return " ".join(filter(None, (part.path, part.tag and f"{part.tag}: {part.choice.strip('`')}")))


def _section(part: Part) -> Iterator[str]:
    yield f"{_title(part) or '(the file)'}: {_one_line(part.text)}"
    for key in part.keys:
        yield from _key(key)
    yield ""


def _key(key: Key) -> Iterator[str]:
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    facts = re.sub("`", "", _facts(key))
    yield from textwrap.wrap(f"{key.name}  ({facts})", width, initial_indent="  ", subsequent_indent="    ")
    yield from textwrap.wrap(_one_line(key.text), width, initial_indent="      ", subsequent_indent="      ")
