"""What every key means: the text under each field of a section, read from the source only when asked for."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipeline.spec.fields import IMPORT_PATH, MARKS, OWN, held

# how pydantic spells the limits of a number inside a list -> JSON Schema
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_RANGES = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_TYPES = {"integer": "whole number", "string": "text", "null": "`null`"}


@dataclass(frozen=True)
class Key:
    """One key of a section, in words."""

    name: str
    values: str  # type and range
    default: str  # as YAML; "" where there is none to show
    required: bool
    text: str


@dataclass(frozen=True)
class Part:
    """One section: where it stands, the key and value that choose it in a union (or ""), its text and keys."""

    path: str
    tag: str
    choice: str
    text: str
    keys: tuple[Key, ...]


def describe(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a section, every key of it and of what it holds with its text as `description`."""
    schema = model.model_json_schema()
    sections = {section.__name__: section for section in _sections(model)}
    for name, node in ((model.__name__, schema), *schema.get("$defs", {}).items()):
        texts = _texts(sections[name])
        for key, field in node["properties"].items():
            if key in texts:
                field["description"] = texts[key]
            elif "const" in field:
                field["description"] = f"Chooses this section. {node['description'].splitlines()[0]}"
            for mark in MARKS:
                field.pop(mark, None)
    _name_limits(schema)
    return schema


def parts(schema: dict[str, Any], path: str = "") -> Iterator[Part]:
    """Every section of a described schema, each before those it holds. `path` is where the schema stands.

    One that all members of a union hold comes once, behind them.
    """
    found = [*_parts(schema, schema.get("$defs", {}), path)]
    yield from reversed(dict.fromkeys(reversed(found)))


# ---------------------------------------------------------------- reading


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    for section in held(annotation):
        yield section
        for field in section.model_fields.values():
            yield from _sections(field.annotation)


def _texts(section: type[BaseModel]) -> dict[str, str]:
    """Key -> the text under it, in the section or in one it is derived from."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            texts |= _module_texts(base.__module__).get(base.__name__, {})
    return texts


@functools.cache
def _module_texts(name: str) -> dict[str, dict[str, str]]:
    tree = ast.parse(inspect.getsource(sys.modules[name]))  # from a zip of the code too
    return {node.name: _field_texts(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _field_texts(section: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for field, below in itertools.pairwise(section.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            texts[ast.unparse(field.target).rstrip("_")] = inspect.cleandoc(ast.literal_eval(below.value))
    return texts


def _name_limits(node: Any) -> None:
    if isinstance(node, dict):
        for short, name in _LIMITS.items():
            if isinstance(node.get(short), int | float):
                node[name] = node.pop(short)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _name_limits(child)


# ---------------------------------------------------------------- in words


def _parts(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[Part]:
    fields: dict[str, Any] = node["properties"]
    required = node.get("required", ())
    keys = tuple(
        Key(
            name, _values(field, definitions), _default(field), name in required, field.get("description", "")
        )
        for name, field in fields.items()
        if not _chosen_by(field)
    )
    yield Part(path, *_tag(node), node["description"], keys)
    for name, field in fields.items():
        for suffix, section in _held(field, definitions):
            yield from _parts(section, definitions, f"{path}.{name}{suffix}".lstrip("."))


def _held(node: Any, definitions: dict[str, Any], suffix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections a value may be or hold, and what their keys have before them: [] in a list."""
    if "$ref" in node:
        yield suffix, definitions[node["$ref"].rsplit("/", 1)[1]]
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from _held(option, definitions, suffix)
    if node.get("items"):
        yield from _held(node["items"], definitions, suffix + "[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _held(node["additionalProperties"], definitions, suffix + ".NAME")


def _values(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What may be written: type and range in words."""
    if "oneOf" in node:
        sections = [definitions[option["$ref"].rsplit("/", 1)[1]] for option in node["oneOf"]]
        return f"section with `{_tag(sections[0])[0]}` {_either([_tag(section)[1] for section in sections])}"
    if options := [*node.get("anyOf", ()), *node.get("allOf", ())]:
        literals = [f"`{value}`" for option in options for value in _literals(option)]
        return _either([*literals, *(_values(o, definitions) for o in options if not _literals(o))])
    if literals := [f"`{value}`" for value in _literals(node)]:
        return _either(literals)
    if "$ref" in node:
        return "section"
    kind = node.get("type", "")
    if kind == "array" and "prefixItems" in node:
        return f"[{', '.join(_values(item, definitions) for item in node['prefixItems'])}]"
    if kind == "array":
        return f"list of {_several(node['items'], definitions)}" if node.get("items") else "list"
    if kind == "object":
        value = node.get("additionalProperties")
        return f"mapping to {_several(value, definitions)}" if isinstance(value, dict) else "mapping"
    return f"{node.get('format') or _TYPES.get(kind, kind)} {_range(node)}".rstrip()


def _several(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    words = _values(node, definitions)
    return f"{words}s" if words in ("section", "mapping", "list") else words


def _literals(node: dict[str, Any]) -> list[Any]:
    if node.get("type") == "boolean":
        return ["true", "false"]
    return list(node.get("enum", [node["const"]] if "const" in node else []))


def _tag(section: dict[str, Any]) -> tuple[str, str]:
    """The key and value that choose a section of a union; both "" where it is none."""
    fields: dict[str, Any] = section["properties"]
    return next(
        ((key, f"`{name}`") for key, field in fields.items() if (name := _chosen_by(field))), ("", "")
    )


def _chosen_by(field: dict[str, Any]) -> str:
    """The value of a key that chooses its section, or what such values look like; "" of any other key."""
    return OWN if field.get("pattern") == IMPORT_PATH else str(field.get("const", ""))


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _range(node: dict[str, Any]) -> str:
    limits = {word: f"{node[name]:.10g}" for name, word in _RANGES.items() if name in node}
    if limits.keys() == {"at least", "at most"}:
        return f"from {limits['at least']} to {limits['at most']}"
    return " and ".join(f"{word} {limit}" for word, limit in limits.items())


def _default(field: dict[str, Any]) -> str:
    """The default as YAML; of a section what chooses it, as its own keys have defaults."""
    if "default" not in field:
        return "{}" if field.get("type") == "object" else ""
    value = field["default"]
    if isinstance(value, dict):
        # where a function chooses, pydantic does not say by which key
        tag = field.get("discriminator", {}).get("propertyName", "name")
        return str(value[tag]) if "oneOf" in field else ""
    return _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    plain = isinstance(value, str) and value.strip()
    return str(value) if plain else json.dumps(value)
