"""Strict YAML: values with the place they came from, and YAML 1.1's traps refused by name.

PyYAML alone keeps the last of two equal keys, reads `on` as True and `3e-4` as a string. Here scalars
follow YAML 1.2's core schema, and a duplicate key or a bare on/off/yes/no is a mistake with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_NODE_LIMIT = 200_000  # aliases are expanded, so a "YAML bomb" is stopped by counting
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_SPACE = re.compile(r"([A-Za-z_][\w.-]+):([^\s/].*)", re.DOTALL)  # not a URL
_SPECIAL = {".inf": float("inf"), "-.inf": float("-inf"), "+.inf": float("inf"), ".nan": float("nan")}
BOOLEAN_TRAPS = frozenset({"on", "off", "yes", "no", "y", "n"})
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and its line, or a command-line override."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Mistake:
    """One thing wrong: the key, what is wrong with which value, and what to do about it."""

    place: Place
    key: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.key)}: {self.text}" if self.key else f"{self.place}: {self.text}"


@dataclass
class Document:
    """A YAML document as plain values (mappings are dicts, sequences are tuples), with places."""

    value: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, key: KeyPath) -> Place:
        """The place of `key`, of what was set below it, or of the nearest ancestor that has one."""
        if key and key not in self.places:
            below = (place for other, place in self.places.items() if other[: len(key)] == key)
            if place := next(below, None):
                return place
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, Place("spec"))


def dotted(key: KeyPath) -> str:
    """`("grid", "cells", 2, "lr")` -> `grid.cells[2].lr`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar by YAML 1.2's core schema; `3e-4` is a float, `on` stays a string."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _SPECIAL.get(text.lower(), text)


def parse(text: str, file: str, prefix: KeyPath = ()) -> Document:
    """Parse one YAML document; what is wrong with it is collected in `.mistakes`, never raised."""
    document = Document(value=None)
    start = Place(file, 1)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = " ".join(filter(None, (error.context, error.problem)))
        document.mistakes.append(
            _slip(text, file, line) or Mistake(Place(file, line), (), f"not valid YAML: {problem}")
        )
        return document
    except (yaml.YAMLError, ValueError) as error:
        document.mistakes.append(Mistake(start, (), f"not valid YAML: {str(error).splitlines()[0]}"))
        return document
    if node is not None:
        try:
            document.value = _Builder(document, file).build(node, prefix)
        except RecursionError:
            document.mistakes.append(Mistake(start, (), "nested too deeply (or an alias holds itself)"))
        except _TooLargeError:
            text = f"expands to more than {_NODE_LIMIT:,} values; write a smaller file"
            document.mistakes.append(Mistake(start, (), text))
    return document


def read(path: Path, name: str | None = None, prefix: KeyPath = ()) -> Document:
    """Parse the file at `path`; `name` is its name in messages. An unreadable file is a mistake."""
    name = name or str(path)
    if text := _no_spec(path):
        return Document(value=None, mistakes=[Mistake(Place(name), (), text)])
    try:
        return parse(path.read_text(encoding="utf-8"), name, prefix)
    except UnicodeDecodeError as error:
        text = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        text = f"cannot be read: {error.strerror or error}{_others(path, error)}"
    return Document(value=None, mistakes=[Mistake(Place(name), (), text)])


def _no_spec(path: Path) -> str:
    """What to type instead of a folder or an archive; "" for anything else."""
    if path.suffix.lower() in (".zip", ".tar") and path.is_file():
        return f"is an archive, not a spec; `labelgrid init {path}` writes one for its images"
    if not path.is_dir():
        return ""
    beside, inside = path.with_name(f"{path.name}.yaml"), sorted(path.glob("[!.]*.yaml"))
    if beside.exists():
        return f"is the folder of an experiment, not its spec; did you mean {beside}?"
    if inside:
        return f"is a folder, not a spec; did you mean {inside[0]}?"
    return f"is a folder, not a spec; `labelgrid init {path}` writes one for its images"


def space_missing(text: str) -> str:
    """What to say of `key:value`, which YAML reads as one word; "" of anything else."""
    match = _NO_SPACE.fullmatch(text)
    return f"a space is missing after the colon; write `{match[1]}: {match[2]}`" if match else ""


def _slip(text: str, file: str, line: int) -> Mistake | None:
    """The slip of the hand at or before a line that the parser stumbled over, where there is a known one."""
    written = text.splitlines()[:line]
    for number, here in reversed([*enumerate(written, 1)][-2:]):
        if "\t" in here[: len(here) - len(here.lstrip())]:
            return Mistake(Place(file, number), (), "a tab in the indentation; use spaces")
        if missing := space_missing(here.strip().removeprefix("- ")):
            return Mistake(Place(file, number), (), missing)
    return None


def _others(path: Path, error: OSError) -> str:
    """Which file may have been meant by one that is not there: of this name, or of a near one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return ""
    where = "" if path.is_absolute() else f" in {Path.cwd()}, where a relative path starts"
    likely = dict.fromkeys((path.parent, path.parent / "experiments", Path("experiments")))
    folders = [folder for folder in likely if folder.is_dir()]
    files = {str(other): other.name for folder in folders for other in sorted(folder.glob("[!.]*.yaml"))}
    names = [path.name, f"{path.name}.yaml", f"{path.stem}.yaml"]
    meant = [file for file, name in files.items() if name in names]
    near = get_close_matches(path.stem, [Path(name).stem for name in files.values()], n=1)
    meant += [file for file, name in files.items() if Path(name).stem in near]
    if meant:
        return f"{where}; did you mean {meant[0]}?"
    beside = [name for file, name in files.items() if Path(file).parent == path.parent] or [*files]
    return f"{where}; beside it there are {', '.join(beside[:12])}" if beside else where


class _TooLargeError(Exception):
    pass


class _Builder:
    def __init__(self, document: Document, file: str) -> None:
        self.document = document
        self.file = file
        self.nodes = 0

    def build(self, node: yaml.Node, key: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > _NODE_LIMIT:
            raise _TooLargeError
        place = Place(self.file, node.start_mark.line + 1)
        self.document.places.setdefault(key, place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.build(child, (*key, i)) for i, child in enumerate(node.value))
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, key, place)

    def _scalar(self, node: yaml.ScalarNode, key: KeyPath, place: Place) -> Any:
        if node.tag not in _PLAIN_TAGS:
            self._mistake(place, key, f"the tag {node.tag} is not supported; write a plain value")
            return None
        if node.style:
            return node.value
        if node.value.lower() in BOOLEAN_TRAPS:
            fix = f"write true or false, or '{node.value}' in quotes for the word"
            self._mistake(place, key, f"`{node.value}` is a boolean to some YAML readers; {fix}")
            return None
        return scalar(node.value)

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for name, (key_node, value_node) in self._pairs(node, key).items():
            here, line = (*key, name), key_node.start_mark.line + 1
            if not key_node.style and name.lower() in BOOLEAN_TRAPS:
                text = f"the key `{name}` is a boolean to some YAML readers; put it in quotes"
                self._mistake(Place(self.file, line), here, text)
            self.document.places[here] = Place(self.file, line)
            mapping[name] = self.build(value_node, here)
        return mapping

    def _pairs(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, tuple[yaml.ScalarNode, yaml.Node]]:
        """A mapping's own keys, then those that it merges and has not (YAML 1.1's `<<`; of several the first)."""
        own: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        merged: yaml.Node | None = None
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            place = Place(self.file, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self._mistake(place, key, "a key must be a word")
            elif key_node.value in lines:
                text = f"the key is written twice (first on line {lines[key_node.value]}); remove one"
                self._mistake(place, (*key, key_node.value), text)
            else:
                lines[key_node.value] = place.line
                if key_node.tag == _MERGE:
                    merged = value_node
                else:
                    own[key_node.value] = key_node, value_node
        parts = [] if merged is None else merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                place = Place(self.file, part.start_mark.line + 1)
                self._mistake(place, (*key, "<<"), "merges a mapping, as `<<: *name`, or a list of them")
                continue
            self.nodes += len(part.value)
            if self.nodes > _NODE_LIMIT:
                raise _TooLargeError
            own = self._pairs(part, key) | own
        return own

    def _mistake(self, place: Place, key: KeyPath, text: str) -> None:
        self.document.mistakes.append(Mistake(place, key, text))


_MERGE = "tag:yaml.org,2002:merge"  # a bare `<<`
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)
