"""What is wrong with a value of a section, in words that say what to write instead. Imported on a mistake alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pipeline.spec.fields import OWN, TAGS
from pipeline.spec.other_words import keys_for
from pipeline.spec.own_code import is_own
from pipeline.spec.reference import Part
from pipeline.spec.renamed import renamed
from pipeline.spec.strict_yaml import KeyPath, dotted, space_missing

_EXPECTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "string_type": "text", "bool_type": "true or false",
    "tuple_type": "a list, e.g. [a, b]", "dict_type": "a mapping",
    "model_type": "a mapping of keys", "model_attributes_type": "a mapping of keys",
}  # fmt: skip
_PREFIX = 2  # letters that make a beginning of a key a near one


def plain_key(tree: Any, location: tuple[str | int, ...]) -> KeyPath:
    """pydantic's location without the union tags it holds: `optimizer.adam.lr` -> `optimizer.lr`."""
    key: list[str | int] = []
    for part in location:
        if isinstance(tree, dict) and part not in tree and part in [OWN, *(tree.get(tag) for tag in TAGS)]:
            continue
        key.append(part)
        tree = _item(tree, part)
    while key and isinstance(key[-1], str) and re.search(r"[\[(-]", key[-1]):
        key.pop()  # pydantic names the member of a plain union ("literal['keep','drop']"): not a key
    return tuple(key)


def explain(item: Mapping[str, Any], tree: Any, key: KeyPath, parts: Sequence[Part]) -> str:
    """One of pydantic's errors at `key` of `tree`, whose sections are `parts`, in our words."""
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        return unknown_key(tree, key, parts)
    if kind == "missing":
        return "is missing; add it"
    if kind == "union_tag_not_found":
        return _without_tag(_tag_key(context), tree, key, value, parts)
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        what = _tag_key(context)
        return f"unknown {what} {context['tag']!r}{_did_you_mean(context['tag'], known)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        if not known:  # numbers
            return f"expected {context['expected']}, got {_short(value)}"
        return f"got {_short(value)}{_did_you_mean(str(value), known)}"
    if kind == "value_error":
        shown = "" if isinstance(value, dict) else f" (got {_short(value)})"
        return f"{context['error']}{shown}"
    if kind == "float_type" and isinstance(value, bool):
        return _no_switch(tree, key, value, parts)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_short(value)}{_as_section(tree, key, value, parts)}"
    message = item["msg"].replace("Input should be ", "expected ", 1)
    return f"{message}, got {_short(value)}"


def _tag_key(context: Mapping[str, Any]) -> str:
    """The key that chooses among sections; pydantic names a function where names of users' code are chosen by it."""
    word = str(context["discriminator"]).strip("'")
    return "name" if word.endswith("()") else word


def unknown_key(tree: Any, key: KeyPath, parts: Sequence[Part]) -> str:
    """Of a key that its section does not have: what was meant, by its meaning first, then by its spelling.

    A key of another section, or of another member of the union, is named with its place.
    """
    *above, name = key
    word, section = str(name), dotted(tuple(above))
    if missing := space_missing(word):
        return missing
    chosen, others = sections_at(tree, tuple(above), parts)
    known = sorted({found for part in chosen for found in _names(part)})
    if old := renamed(key, known):
        return old
    paths = list(
        dict.fromkeys(f"{part.path}.{found}".lstrip(".") for part in parts for found in _names(part))
    )
    if "." in word:
        return _dotted_name(section, word, paths)
    if meant := _meant(keys_for(word), section, known, paths):
        return f"unknown key; did you mean {meant}?"
    if members := [part for part in others if word in _names(part)]:
        have, here = (
            " and ".join(part.choice for part in members),
            " or ".join(part.choice for part in chosen),
        )
        return f"unknown key: it is one of {have}; {here} has {', '.join(known)}"
    # the same key in another section, the nearest one; `grid` holds keys of all sections
    elsewhere = [path for path in paths if path.rpartition(".")[2] == word]
    if meant := _meant(elsewhere, section, known, paths):
        return f"unknown key; did you mean {meant}?"
    near = [found for found in known if len(word) >= _PREFIX and found.startswith(word)]
    if near or get_close_matches(word, known, n=1):
        return f"unknown key{_did_you_mean(word, known, near)}"
    all_names = {path.rpartition(".")[2]: path for path in reversed(paths)}
    similar = get_close_matches(word, all_names, n=1, cutoff=0.8)
    if similar:
        return f"unknown key; did you mean {_meant([all_names[similar[0]]], section, known, paths)}?"
    return f"unknown key{_did_you_mean(word, known)}"


def sections_at(tree: Any, key: KeyPath, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """(the sections that may stand at `key`, the other members of its union); all where the tree names none."""
    path = re.sub(r"\[\d+\]", "[]", dotted(key))
    for part in key:
        tree = _item(tree, part)
    found = [part for part in parts if part.path == path]
    chosen = [
        part for part in found if not part.tag or part.choice == _choice(_item(tree, part.tag))
    ] or found
    return chosen, [part for part in found if part not in chosen]


def _choice(name: Any) -> str:
    return f"`{OWN if isinstance(name, str) and is_own(name) else name}`"


# ---------------------------------------------------------------- parts of a text


def _meant(keys: Sequence[str], section: str, known: Sequence[str], paths: Sequence[str]) -> str:
    """The first of `keys` in the section itself, else the nearest one elsewhere, as it must be written; or ""."""
    section = re.sub(r"\[\d+\]", "[]", section)
    inside = [key for key in keys if key.rpartition(".")[2] in known]
    if inside:
        return f"`{max(inside, key=lambda key: key.rpartition('.')[0] == section).rpartition('.')[2]}`"
    elsewhere = [key for key in keys if key in paths and key.rpartition(".")[0] != section]
    if not elsewhere:
        return ""
    best = min(elsewhere, key=lambda key: (-_shared(key, section), key.count(".")))
    return (
        f"`axes: {{{best}: [...]}}`"
        if section == "grid" and best.startswith(("data", "train"))
        else f"`{best}`"
    )


def _shared(key: str, section: str) -> int:
    """How many parts of a path two keys begin with."""
    pairs = zip(key.split("."), section.split("."), strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(section.split(".")))


def _dotted_name(section: str, word: str, paths: Sequence[str]) -> str:
    first, *rest = word.split(".")
    nested = f"{first}: " + "".join(f"{{{part}: " for part in rest) + "..." + "}" * len(rest)
    known = f"{section}.{word}".lstrip(".") in paths
    return f"unknown key; in a file {'' if known else 'keys are '}nested: `{nested}`; dots are for --set and grid"


def _without_tag(tag: str, tree: Any, key: KeyPath, value: Any, parts: Sequence[Part]) -> str:
    """Of a section that does not say which member of its union it is; its unknown keys are explained too."""
    chosen, _ = sections_at(tree, key, parts)
    said = [
        f"needs the key {tag!r} (got {_short(value)}); known: {', '.join(p.choice.strip('`') for p in chosen)}"
    ]
    known = {name for part in chosen for name in _names(part)}
    for name in value if isinstance(value, dict) else ():
        if name not in known:
            why = unknown_key(tree, (*key, name), parts)
            said.append(why if why.startswith("`") else f"{name}: {why}")
    return "; ".join(said)


def _no_switch(tree: Any, key: KeyPath, value: bool, parts: Sequence[Part]) -> str:
    """Of true or false where a number says how much."""
    *above, name = key
    chosen, _ = sections_at(tree, tuple(above), parts)
    field = next((field for part in chosen for field in part.keys if field.name == name), None)
    if field is None:
        return f"expected a number, got {value}"
    off = "; 0 is off" if not value else f", e.g. {_example(field.default)}"
    return f"expected a {field.values}{off}, got {value} ({_first_sentence(field.text)})"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!et al)\. ", text.splitlines()[0])[0].rstrip(".")


def _example(default: str) -> str:
    return "0.5" if default in ("", "0", "null", "0.0") else default


def _as_section(tree: Any, key: KeyPath, value: Any, parts: Sequence[Part]) -> str:
    """How to write a word as a section: `optimizer: sgd` -> {name: sgd}; `source:a.zip` wants its space."""
    if not isinstance(value, str):
        return ""
    if missing := space_missing(value):
        return f"; {missing}"
    chosen, _ = sections_at(tree, key, parts)
    tags = [part.tag for part in chosen if part.tag] or [
        n for part in chosen for n in _names(part) if n in TAGS
    ]
    return f"; write {{{tags[0]}: {value}}}" if tags else ""


def _names(part: Part) -> Iterator[str]:
    if part.tag:
        yield part.tag
    yield from (key.name for key in part.keys)


def _item(tree: Any, part: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(str(part))
    return tree[part] if isinstance(tree, tuple) and isinstance(part, int) and part < len(tree) else None


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(word: str, known: Sequence[str], near: Sequence[str] = ()) -> str:
    close = [*near, *get_close_matches(word, known, n=1)]
    hint = f"; did you mean `{close[0]}`?" if close else ";"
    return f"{hint} known: {', '.join(known)}" if len(known) <= 24 else hint
