"""From a YAML file and overrides to a checked spec: every mistake at once, each with its place and remedy."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import SpecError
from pipeline.spec import Spec, expand_path
from pipeline.spec.explaining import explain, plain_key
from pipeline.spec.fields import TAGS, held
from pipeline.spec.reference import Part, describe, parts
from pipeline.spec.strict_yaml import (
    BOOLEAN_TRAPS,
    Document,
    KeyPath,
    Mistake,
    Place,
    parse,
    read,
    scalar,
    space_missing,
)
from pipeline.storage.files import display_path


@dataclass(frozen=True)
class Loaded:
    """A checked spec with the plain tree it was made of (the grid is expanded from that)."""

    spec: Spec
    document: Document
    path: Path
    root: Path  # the project's root: relative paths in the spec start here
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The spec and its settings, as typed in the project; without `run.*`, which changes no result."""
        path = self.path.resolve()
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        kept = [text for text in self.overrides if not text.startswith("run.")]
        return shlex.join([str(inside), *(["--set", *kept] if kept else [])])

    def place(self, key: str, settings: Container[str] = ()) -> Place:
        """Where a dotted key was written; `settings` are the keys that the grid assigned."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            if (assigned := ".".join(parts[:length])) in settings:
                listed = [
                    path for path in self.document.places if path[:1] == ("grid",) and path[-1] == assigned
                ]
                return self.document.place(listed[0] if listed else ("grid",))
        return self.document.place(tuple(parts))


def project_root(spec_path: Path) -> Path:
    """The folder above `experiments/` that holds the spec; for a spec elsewhere, the current folder."""
    folder = spec_path.resolve().parent
    return folder.parent if folder.name == "experiments" else Path.cwd()


def read_spec(path: Path, overrides: Sequence[str] = (), root: Path | None = None) -> Loaded:
    """Read, override and check the spec at `path`; raises SpecError listing every mistake found.

    An override is `key.path=value`, its value read as YAML (`train.optimizer.lr=1e-3`).
    """
    root = (root or project_root(path)).resolve()
    document = read(path, name=display_path(path))
    if document.mistakes and document.value is None:
        raise_mistakes(path, document.mistakes)
    if not isinstance(document.value, dict):
        place = Place(display_path(path), 1)
        raise_mistakes(path, [Mistake(place, (), "a spec is a mapping of keys, e.g. `data:` and `train:`")])
    sets = _split_overrides(overrides, document)
    _override(document, [(key, value) for key, value in sets if key == ("data",)])
    _include_data(document, root)
    _override(document, [(key, value) for key, value in sets if key and key != ("data",)])
    document.value.setdefault("name", path.stem)
    spec = check(document.value, document, root)
    if document.mistakes:
        raise_mistakes(path, document.mistakes)
    assert spec is not None
    return Loaded(spec, document, path, root, tuple(overrides))


def check(
    tree: dict[str, Any], document: Document, root: Path, assigned_at: Mapping[KeyPath, Place] | None = None
) -> Spec | None:
    """`tree` as a Spec, or None with the mistakes added to `document`.

    A mistake at or below a key of `assigned_at` (what a grid entry set) is placed there.
    """
    try:
        return Spec.model_validate(tree, context={"root": root})
    except ValidationError as error:
        known = {mistake.key for mistake in document.mistakes}
        for item in error.errors(include_url=False):
            key = plain_key(tree, item["loc"])
            if key in known:
                continue
            places = [place for path, place in (assigned_at or {}).items() if key[: len(path)] == path]
            place = places[-1] if places else document.place(key)
            document.mistakes.append(Mistake(place, key, explain(item, tree, key, spec_parts())))
        return None


def raise_mistakes(path: Path, mistakes: Sequence[Mistake]) -> None:
    """One SpecError that lists every mistake, in the order of the file."""
    merged: dict[tuple[Place, KeyPath], Mistake] = {}
    for mistake in mistakes:  # the members of a union each complain about the same value
        known = merged.get((mistake.place, mistake.key))
        text = f"{known.text}; or {mistake.text}" if known and known.text != mistake.text else mistake.text
        merged[mistake.place, mistake.key] = Mistake(mistake.place, mistake.key, text)
    unique = sorted(merged.values(), key=lambda m: (m.place.line == 0, m.place.line))
    count = "1 mistake" if len(unique) == 1 else f"{len(unique)} mistakes"
    raise SpecError("\n".join([f"{display_path(path)}: {count}", *(f"  {mistake}" for mistake in unique)]))


def assign(tree: dict[str, Any], key: KeyPath, value: Any) -> None:
    """Set `value` at `key` in place, making mappings on the way; a mapping already there is replaced.

    Where a spec leaves a section of a union out, the default member keeps its name: `train.optimizer.lr`
    is that of the default optimizer.
    """
    for length, part in enumerate(key[:-1], 1):
        child = tree.get(part) if isinstance(part, str) else None
        child = _default_tag(key[:length]) if child is None else child
        tree[str(part)] = child = dict(child) if isinstance(child, dict) else {}
        tree = child
    tree[str(key[-1])] = value


@functools.cache
def _default_tag(key: KeyPath) -> dict[str, str]:
    """What chooses the default member of the union at `key`, e.g. {name: adam}; {} where there is none."""
    sections: list[type[BaseModel]] = [Spec]
    default: Any = None
    for part in key:
        field = sections[0].model_fields.get(str(part)) if sections else None
        if field is None:
            return {}
        default = field.get_default(call_default_factory=True)
        sections = list(held(field.annotation))
    if len(sections) < 2 or not isinstance(default, BaseModel):
        return {}
    return {tag: getattr(default, tag) for tag in TAGS if tag in type(default).model_fields}


def is_key(key: str) -> bool:
    """Whether a spec can have this dotted key, in any member of a union."""
    sections: list[type[BaseModel]] = [Spec]
    for part in key.split("."):
        found = [
            field for s in sections for name, field in s.model_fields.items() if part == (field.alias or name)
        ]
        if not found:
            return False
        if any(field.annotation == dict[str, Any] for field in found):
            return True  # and whatever the user's own code calls its options
        sections = [section for field in found for section in held(field.annotation)]
    return True


@functools.cache
def spec_parts() -> tuple[Part, ...]:
    """Every section of a spec with its keys in words."""
    return tuple(parts(describe(Spec)))


def dump(spec: Spec) -> str:
    """The spec as YAML that reads back to the same spec."""
    return yaml.dump(
        spec.model_dump(mode="json", by_alias=True), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file, for editors. `name` and inline `data` may be left to the reader."""
    schema = describe(Spec)
    schema["required"] = [key for key in schema.get("required", []) if key != "name"]
    in_a_file = {"type": "string", "format": "path", "description": "a file that holds the mapping"}
    inline = schema["properties"]["data"]
    schema["properties"]["data"] = {"description": inline.pop("description"), "anyOf": [inline, in_a_file]}
    schema["title"] = "Labelgrid spec"
    return schema


# ---------------------------------------------------------------- reading


def split_override(text: str, document: Document) -> tuple[KeyPath, Any]:
    """`a.b=value` as key and value, its place noted in `document`; a mistake there gives the key ()."""
    key_text, _, value_text = text.partition("=")
    place = Place(f"--set {text}")
    if wrong := _wrong_setting(text):
        document.mistakes.append(Mistake(place, (), wrong))
        return (), None
    key: KeyPath = tuple(key_text.strip().split("."))
    if value_text[:1] in "[{'\"":
        inline = parse(value_text, f"--set {text}", key)
        document.mistakes += inline.mistakes
        value = inline.value
    else:
        value = scalar(value_text)
    document.places[key] = place
    return key, value


def _wrong_setting(text: str) -> str:
    """What is wrong with the writing of one setting; "" where nothing is."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key.strip()):
        return "write key.path=value, without spaces, e.g. train.epochs=3"
    if value and value[0] in "[{'\"":
        opened = sum(map(value.count, "[{")) - sum(map(value.count, "]}"))
        if opened > 0 or (value[0] in "'\"" and value[-1:] != value[0]):
            return f"ends at a space inside its value; write none there, or quote the whole: '{key}=[a, b]'"
    elif re.match(r"[^/]*?[,;](\s*$|\s*[A-Za-z_][\w.-]*=)", value):
        return f"separate settings by spaces: {re.sub(r'[,;]+', ' ', text).strip()}"
    return ""


def _split_overrides(texts: Sequence[str], document: Document) -> list[tuple[KeyPath, Any]]:
    """All settings; what follows one that a space cut in two, up to its end, is no mistake of its own."""
    found, is_rest = [], False
    for text in texts:
        if is_rest and "=" not in text:
            continue
        found.append(split_override(text, document))
        is_rest = "=" in text and bool(_wrong_setting(text))
    return found


def _override(document: Document, sets: Sequence[tuple[KeyPath, Any]]) -> None:
    for key, value in sets:
        assign(document.value, key, value)


def _include_data(document: Document, root: Path) -> None:
    """`data: experiments/data/x.yaml` stands for that file's content, so that specs share a data set."""
    value = document.value.get("data")
    if not isinstance(value, str):
        return
    try:
        path = Path(expand_path(value, root))
    except ValueError as error:
        document.mistakes.append(Mistake(document.place(("data",)), ("data",), str(error)))
        return
    if not path.exists() and (missing := space_missing(value)):
        document.mistakes.append(Mistake(document.place(("data",)), ("data",), missing))
        return
    included = read(path, name=display_path(path), prefix=("data",))
    document.mistakes += included.mistakes
    document.places.update(included.places)
    document.value["data"] = included.value
    if not isinstance(included.value, dict) and not included.mistakes:
        text = "the file must hold the mapping that stands under `data:`"
        document.mistakes.append(Mistake(Place(display_path(path), 1), ("data",), text))


# ---------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would not read back as text (PyYAML itself follows 1.1)."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = scalar(text) is text and text.lower() not in BOOLEAN_TRAPS
    style = None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
