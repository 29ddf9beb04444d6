"""How the images of a source may be described: name patterns, and folders of parts. Torch- and numpy-free."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pipeline.data.images import is_image

PART_WORDS = {"train": "train|training", "validation": "val|valid|validation|dev", "test": "test|testing"}
_PARTS = {
    part: re.compile(rf"(?i)({words})([ _-]?(set|images?|imgs?|data|\d{{4}}))?")
    for part, words in PART_WORDS.items()
}
_GROUP = re.compile(r"(?:^|/)((?:patient|subject|person|scene|case|video)[_-]?\d+)/")


def below(root: str, files: Sequence[str]) -> list[str]:
    """The images among `files` that lie in the folder `root`."""
    return [file for file in files if file.startswith(root + "/") and is_image(file)]


def roots_of(files: Sequence[str]) -> dict[str, str]:
    """train, validation and test -> its folder, where nearly all images lie in such folders and some in train."""
    roots: dict[str, str] = {}
    inside = 0
    for file in files:
        parts = file.split("/")[:-1]
        for depth, folder in enumerate(parts):
            part = next((part for part, pattern in _PARTS.items() if pattern.fullmatch(folder)), None)
            if part is not None:
                root = "/".join(parts[: depth + 1])
                inside += roots.setdefault(part, root) == root
                break
    told = len(roots) > 1 and "train" in roots and inside >= 0.95 * len(files)
    return roots if told else {}


def patterns_of(files: Sequence[str]) -> list[str]:
    """Name patterns that may describe the images, the likeliest first: of all, then of their largest folders."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(file.rpartition("/")[0], []).append(file)
    common = os.path.commonpath(list(folders)) if len(folders) > 1 and "" not in folders else ""
    common = next(iter(folders)) if len(folders) == 1 else common
    patterns = [_pattern(common, files, flat=len(folders) == 1)]
    if len(folders) > 1:
        patterns.append(_pattern("", files, flat=True))
        tops: dict[str, list[str]] = {}
        for file in files:
            first, *below = file[len(common) :].lstrip("/").split("/")
            tops.setdefault(f"{common}/{first}".lstrip("/") if below else common, []).append(file)
        large = [(top, held) for top, held in tops.items() if top and len(held) > 0.3 * len(files)]
        for top, held in large:
            flat = all(file.rpartition("/")[0] == top for file in held)
            patterns.append(_pattern(top, held, flat=flat))
    return list(dict.fromkeys(patterns))


def _pattern(folder: str, files: Sequence[str], *, flat: bool) -> str:
    """`images/im{id}.jpg` for images/im1.jpg and the like; a prefix stays out of the ids only before digits."""
    endings = {file.rpartition(".")[2].lower() for file in files}
    stems = [file.rpartition("/")[2].rpartition(".")[0] for file in files]
    prefix = re.sub(r"\d+$", "", common_start(stems)) if flat else ""
    if re.search(r"\d", prefix) or not all(stem[len(prefix) :].isdecimal() for stem in stems):
        prefix = ""
    ending = endings.pop() if len(endings) == 1 else "*"
    return f"{folder}/{prefix}{{id}}.{ending}".lstrip("/")


def group_pattern(files: Sequence[str]) -> str | None:
    """`(patient\\d+)/` where every image lies in the folder of a patient, a scene or the like."""
    groups = [match and match[1] for match in map(_GROUP.search, files)]
    if not all(groups) or not 1 < len(set(groups)) < len(groups):
        return None
    return "(" + re.sub(r"\d+$", r"\\d+", groups[0] or "") + ")/"


def common_start(texts: Sequence[str]) -> str:
    """The characters that all texts begin with."""
    return os.path.commonprefix(list(texts))  # noqa: RUF071 - characters are meant, not parts of paths
