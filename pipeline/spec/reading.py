"""From a YAML file and overrides to a checked spec: every mistake at once, each with its place and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import SpecError
from pipeline.spec import Spec, expand_path
from pipeline.spec.reference import describe
from pipeline.spec.renamed import renamed
from pipeline.spec.strict_yaml import BOOLEAN_TRAPS, Document, KeyPath, Mistake, Place, parse, read, scalar
from pipeline.storage.files import display_path

_TAGS = ("name", "format", "method")  # the keys that choose between the members of a union


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
        """The spec and the SET it was read with, as typed in the project; without `run.*`, which changes no result."""
        path = self.path.resolve()
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        kept = [text for text in self.overrides if not text.startswith("run.")]
        settings = f' SET="{" ".join(kept)}"' if kept else ""
        return f"SPEC={inside}{settings}"


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
    sets = [split_override(text, document) for text in overrides]
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
            key = _plain_key(tree, item["loc"])
            if key in known:
                continue
            places = [place for path, place in (assigned_at or {}).items() if key[: len(path)] == path]
            place = places[-1] if places else document.place(key)
            document.mistakes.append(Mistake(place, key, _explain(dict(item), tree, key)))
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
    """Set `value` at `key` in place, making mappings on the way; a mapping already there is replaced."""
    for part in key[:-1]:
        child = tree.get(part) if isinstance(part, str) else None
        tree[str(part)] = child = dict(child) if isinstance(child, dict) else {}
        tree = child
    tree[str(key[-1])] = value


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
    key_text, equals, value_text = text.partition("=")
    place = Place(f"--set {text}")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key_text.strip()):
        document.mistakes.append(Mistake(place, (), "write key.path=value, e.g. train.epochs=3"))
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
    included = read(path, name=display_path(path), prefix=("data",))
    document.mistakes += included.mistakes
    document.places.update(included.places)
    document.value["data"] = included.value
    if not isinstance(included.value, dict) and not included.mistakes:
        text = "the file must hold the mapping that stands under `data:`"
        document.mistakes.append(Mistake(Place(display_path(path), 1), ("data",), text))


# ---------------------------------------------------------------- explaining


def _plain_key(tree: Any, location: tuple[str | int, ...]) -> KeyPath:
    """pydantic's location without the union tags it holds: `optimizer.adam.lr` -> `optimizer.lr`."""
    key: list[str | int] = []
    for part in location:
        if isinstance(tree, dict) and part not in tree and part in [tree.get(tag) for tag in _TAGS]:
            continue
        key.append(part)
        if isinstance(tree, dict):
            tree = tree.get(str(part))
        elif isinstance(tree, tuple) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            tree = None
    while key and isinstance(key[-1], str) and re.search(r"[\[(-]", key[-1]):
        key.pop()  # pydantic names the member of a plain union ("literal['keep','drop']"): not a key
    return tuple(key)


_EXPECTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "string_type": "text", "bool_type": "true or false",
    "tuple_type": "a list, e.g. [a, b]", "dict_type": "a mapping",
    "model_type": "a mapping of keys", "model_attributes_type": "a mapping of keys",
}  # fmt: skip


def _explain(item: dict[str, Any], tree: Any, key: KeyPath) -> str:
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        known = sorted(_known_keys(tree, key[:-1]))
        return renamed(key, known) or f"unknown key{_did_you_mean(str(key[-1]), known)}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "union_tag_not_found":
        old = [renamed((*key, name)) for name in value] if isinstance(value, dict) else []
        return "; ".join(
            filter(None, [f"needs the key {context['discriminator']} (got {_short(value)})", *old])
        )
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        what = context["discriminator"].strip("'")
        return f"unknown {what} {context['tag']!r}{_did_you_mean(context['tag'], known)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"got {_short(value)}{_did_you_mean(str(value), known)}"
    if kind == "value_error":
        shown = "" if isinstance(value, dict) else f" (got {_short(value)})"
        return f"{context['error']}{shown}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_short(value)}"
    message = item["msg"].replace("Input should be ", "expected ", 1)
    return f"{message}, got {_short(value)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ";"
    return f"{hint} known: {', '.join(known)}" if len(known) <= 24 else hint


def _known_keys(tree: Any, key: KeyPath) -> set[str]:
    """The keys the section at `key` may hold, out of the JSON Schema (tags choose union members)."""
    node: Any = Spec.model_json_schema()
    definitions = node["$defs"]
    for part in key:
        if isinstance(part, int):  # a list's items are looked for below
            tree = tree[part] if isinstance(tree, tuple) and part < len(tree) else None
            continue
        options = _options(node, definitions, tree)
        node = {"anyOf": [option["properties"][part] for option in options if part in option["properties"]]}
        tree = tree.get(part) if isinstance(tree, dict) else None
    return {name for option in _options(node, definitions, tree) for name in option["properties"]}


def _options(node: Any, definitions: dict[str, Any], tree: Any) -> list[dict[str, Any]]:
    """The sections that `node` may be: those whose tag is the tree's, all where it has none of theirs."""
    options = list(_sections(node, definitions))
    return [option for option in options if _tag_matches(option, tree)] or options


def _sections(node: Any, definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _sections(definitions[node["$ref"].rsplit("/", 1)[1]], definitions)
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from _sections(option, definitions)
    if node.get("items"):
        yield from _sections(node["items"], definitions)
    if "properties" in node:
        yield node


def _tag_matches(section: dict[str, Any], tree: Any) -> bool:
    for tag in _TAGS:
        const = section["properties"].get(tag, {}).get("const")
        if const is not None:
            default = section["properties"][tag].get("default")
            return bool(const == (tree.get(tag, default) if isinstance(tree, dict) else None))
    return True


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would not read back as text (PyYAML itself follows 1.1)."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = scalar(text) is text and text.lower() not in BOOLEAN_TRAPS
    style = None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
