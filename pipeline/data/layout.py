"""Paths and identities of packed data sets, and whether one is complete. Torch- and numpy-free.

Planning asks for these, so they are computed from metadata: the CRCs in a zip's directory, sizes of
files. Digests that need the content of a folder or tar are cached until a file there changes. What only
shows a plan does not look at every file of a large folder for that (`pipeline/data/looks.py`).
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.contents import UNREADABLE, contents_path, remember_contents
from pipeline.data.images import list_images
from pipeline.data.labels import find_file, label_members
from pipeline.data.looks import MANY, Look, last_look, remember_look, state_of
from pipeline.data.parts import Part, Sources, labels_of, parts_of, settings_of, tables_of
from pipeline.data.sources import Folder, Source, fingerprint, read_list
from pipeline.errors import PipelineError
from pipeline.progress import report
from pipeline.spec import DataSpec, GivenSplit, LabelsSpec, ListSplit, TestSpec
from pipeline.spec.identity import canonical, digest
from pipeline.storage.files import read_json_or_empty, write_json

PACK_VERSION = 2  # raise it when equal sources would be packed into other pixels or labels
SPLIT_VERSION = 1
DATASET, LABELS, REPORT = "dataset.json", "labels.npy", "wrangle_report.json"
INDEX = "index.npz"  # sets packed before 27 November 2026 lack it, and have INDEX_CSV alone
INDEX_CSV = "index.csv"  # the same, for people
FEATURES = "features"  # beside them: kept features, which are made again where they are missing


def origin(data: DataSpec, *, test: bool) -> DataSpec | TestSpec:
    """The section that says where images and labels come from: `data` itself, or `data.test`."""
    part = data.test if test else data
    assert part is not None
    return part


@dataclass(frozen=True)
class PackedIdentity:
    """A readable name of a packed set, and the digest of everything its content depends on."""

    slug: str
    digest: str
    made_of: str = field(default="", compare=False)  # digest of the settings and the state of every source
    look: Look | None = field(default=None, compare=False)  # relied on instead of a look at every file


def packed_identity(
    data: DataSpec, cache: Path, *, test: bool = False, every_file: bool = True
) -> PackedIdentity:
    """The identity of the packed set a spec asks for: content and settings, never paths.

    Raises DataError where a source is missing or damaged. `cache` is a folder for digests. Without
    `every_file` a folder of many files counts as unchanged while its directories and label files are.
    """
    parts = parts_of(data, test=test)
    paths = {part.source for part in parts} | {part.labels_source for part in parts if part.labels}
    tables = {} if test else tables_of(data)
    paths |= {path for path, _ in tables.values()}
    lists = [list_digest(part.image_list) for part in parts]
    settings: dict[str, Any] = {"version": PACK_VERSION, "size_px": data.size_px, "resize": data.resize}
    if data.interpolation != "bilinear":  # sets of the first way keep their names
        settings["interpolation"] = data.interpolation
    settings |= _range(data, cache, test=test, every_file=every_file)
    slug = f"{_slug(parts[0].source)}-{data.size_px}px"
    described: list[Any] = [settings, list(settings_of(parts)), list(tables)]
    described += [[file for _, file in tables.values()], lists]
    asked = digest([*described, [str(path.resolve()) for path in sorted(paths)]])
    look = last_look(cache, asked, every_file=every_file)
    if look is not None and contents_path(cache, look.digest).exists():
        return PackedIdentity(slug, look.digest, look.made_of, None if every_file else look)

    def compute(sources: Sources) -> tuple[str, bool]:
        content = [_content(part, sources) for part in parts]
        content += [_table_content(key, *table, sources) for key, table in tables.items()]
        images = [entry for part in content for entry in part["images"]]
        labels = [entry for part in content for entry in part["labels"]]
        value = digest([settings, content])
        chosen = {**settings, "labels": [part["settings"] for part in content]}
        remember_contents(
            cache,
            value,
            chosen,
            [[i, n, *sums] for i, n, _, *sums in images],
            [[n, *sums] for n, _, *sums in labels],
        )
        return value, all(entry[-1] != UNREADABLE for entry in [*images, *labels])

    with Sources() as sources:
        began = time.time()
        seen = [[str(path.resolve()), fingerprint(path, sources)] for path in sorted(paths)]
        made_of = digest([*described, seen])
        value, known = _remembered(cache, made_of, lambda: compute(sources))
        folders = [folder for path in sorted(paths) if isinstance(folder := sources.opened(path), Folder)]
        files = sum(len(folder.members) for folder in folders)
        if known and files > MANY:
            places = [place for folder in folders for place in folder.directories]
            places += [path for path in paths if path.is_file()]
            places += _label_places(parts, tables, sources)
            remember_look(cache, asked, Look(value, made_of, files, began), places)
    return PackedIdentity(slug, value, made_of)


def _content(part: Part, sources: Sources) -> dict[str, Any]:
    """What the pixels and labels of a part depend on: files with their checksums, never the source's path.

    The images' own paths count, as references may name them; so does the label file's folder.
    """
    source = sources(part.source)
    images = list_images(source, part.images, part.image_list, part.key).chosen
    labels = labels_of(part, sources)
    files: list[tuple[str, str]] = []
    if labels is not None:
        files = label_members(sources(part.labels_source), labels, part.key)
    beside = part.labels_source == part.source
    listed, doing = [], f"reading {part.source.name}, image"
    for number, image in enumerate(images, 1):
        report(doing, number, len(images))
        listed.append([image.id, image.name, image.member, *_checksum(source, image.member)])
    return {
        "split": part.split,
        "images": listed,
        "settings": _settings(labels),
        "labels": [
            [
                label,
                member.rpartition("/")[0] if beside else "",
                *_checksum(sources(part.labels_source), member),
            ]
            for label, member in files
        ],
    }


def _table_content(key: str, path: Path, file: str, sources: Sources) -> dict[str, Any]:
    """A table that divides the images belongs to the set: another one must make another split."""
    member = find_file(sources(path), file, f"{key}.file")
    return {"images": [], "settings": None, "labels": [[key, "", *_checksum(sources(path), member)]]}


def _label_places(parts: list[Part], tables: dict[str, tuple[Path, str]], sources: Sources) -> Iterator[Path]:
    """The label files and tables in folders, which people overwrite in place."""
    for part in parts:
        folder = sources.opened(part.labels_source)
        labels = labels_of(part, sources) if isinstance(folder, Folder) else None
        if isinstance(folder, Folder) and labels is not None:
            yield from (folder.place(member) for _, member in label_members(folder, labels, part.key))
    for key, (path, file) in tables.items():
        folder = sources.opened(path)
        if isinstance(folder, Folder):
            yield folder.place(find_file(folder, file, f"{key}.file"))


def packed_path(data_root: Path, identity: PackedIdentity) -> Path:
    """`data/packed/<slug>-<hash8>`; a set of equal content packed under another slug is used as it is."""
    folder = data_root / "packed"
    path = folder / f"{identity.slug}-{identity.digest[:8]}"
    if not path.exists():
        for other in sorted(folder.glob(f"*-{identity.digest[:8]}")):
            if is_complete(other, identity.digest):
                return other
    return path


def is_complete(packed_dir: Path, expected_digest: str) -> bool:
    """True when every file of the set has its full size and the set has the expected digest."""
    dataset = read_dataset(packed_dir)
    if dataset is None or dataset["digest"] != expected_digest:
        return False
    with contextlib.suppress(OSError):
        return all((packed_dir / n).stat().st_size == f["bytes"] for n, f in dataset["files"].items())
    return False


def read_dataset(packed_dir: Path) -> dict[str, Any] | None:
    """`dataset.json`, None where it is missing or unreadable."""
    dataset = read_json_or_empty(packed_dir / DATASET)
    return dataset if dataset.get("version") == PACK_VERSION else None


def split_identity(data: DataSpec) -> str:
    """Digest of how the images are divided: the method, the lists' content, the negative images.

    The parts of a given split, and the tables of columns, belong to the packed set's own digest.
    """
    split: dict[str, Any] = canonical(data.split)
    if isinstance(data.split, GivenSplit):
        split = {name: value for name, value in split.items() if name not in ("validation", "test")}
    for section in (split, split.get("group", {})):
        section.pop("source", None)
        section.pop("file", None)
    if isinstance(data.split, ListSplit):
        for name in ("train", "validation", "test"):
            split[name] = list_digest(getattr(data.split, name))
    return digest([SPLIT_VERSION, split, canonical(data.negatives)])


def split_path(packed_dir: Path, data: DataSpec) -> Path:
    """Where the rows of each split are stored."""
    return packed_dir / f"split-{data.split.method}-{split_identity(data)[:8]}.json"


def list_digest(path: str | None) -> str | None:
    """Digest of a list file's entries; a DataError where it cannot be read."""
    return None if path is None else _list_digest(path, *state_of(Path(path)))


@functools.lru_cache(maxsize=64)
def _list_digest(path: str, *_: int) -> str:
    """Of a list in the state that the further arguments tell: a plan asks several times for each cell."""
    return digest(read_list(Path(path)))


def _range(data: DataSpec, cache: Path, *, test: bool, every_file: bool) -> dict[str, Any]:
    """What the values of deep pictures depend on; nothing for `full`, which older sets were packed with."""
    if data.range == "full":
        return {}
    if test and data.range == "auto":  # the test pictures get the range of the training pictures
        return {"range": ["auto", packed_identity(data, cache, every_file=every_file).digest]}
    return {"range": data.range}


def _settings(labels: LabelsSpec | None) -> dict[str, Any] | None:
    if labels is None:
        return None
    moved = ("source", "file", "files", "order")
    return {name: value for name, value in canonical(labels).items() if name not in moved}


def _checksum(source: Source, member: str) -> tuple[int, int]:
    try:
        return source.checksum(member)
    except (OSError, EOFError):
        return UNREADABLE, UNREADABLE  # wrangle will report it and set it aside


def _remembered(cache: Path, key: str, compute: Callable[[], tuple[str, bool]]) -> tuple[str, bool]:
    """The digest under `key`, and whether it may be remembered."""
    path = cache / f"{key[:32]}.json"
    known = read_json_or_empty(path)
    if known.get("key") == key and contents_path(cache, known["digest"]).exists():
        return str(known["digest"]), True
    value, trusted = compute()
    if not trusted:
        return value, False  # a disk that cannot be read now may work next time
    with contextlib.suppress(PipelineError):  # without a writable cache this only takes longer
        write_json(path, {"key": key, "digest": value})
    return value, True


def _slug(source: Path) -> str:
    return (
        re.sub(r"[^A-Za-z0-9._]+", "-", source.stem if source.suffix else source.name).strip("-.") or "data"
    )
