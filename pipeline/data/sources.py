"""Files of a folder, a .zip or a .tar, read in place, never unpacked. Torch- and numpy-free."""

from __future__ import annotations

import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import DataError

MAX_MEMBER_BYTES = 1 << 30  # of an image or label file once inflated: more is an archive bomb or a mistake
MAX_MEMBERS = 20_000_000

# zipfile and tarfile raise all of these on damage: a future zip version, an offset before the start, a cut field
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, ValueError, struct.error)
# what reading a member can raise where an archive or a disk is damaged
READ_ERRORS = (OSError, zlib.error, RuntimeError, *DAMAGE)


class Source:
    """A folder or archive: its members by name (`/` between the parts), their bytes and checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: list[str] = []

    def read(self, member: str) -> bytes:
        """The bytes of a member; one of READ_ERRORS when they are damaged."""
        raise NotImplementedError

    def checksum(self, member: str) -> tuple[int, int]:
        """(size in bytes, CRC-32): the same for the same file in a folder, a zip and a tar."""
        body = self.read(member)
        return len(body), zlib.crc32(body)

    def close(self) -> None:
        """Close the archive's file."""


class _Folder(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # a listing must see every file or fail: an unreadable folder is not an empty one
        self.members = [
            str((folder / name).relative_to(path)).replace("\\", "/")
            for folder, _, names in _walk(path)
            for name in names
        ]

    def read(self, member: str) -> bytes:
        path = self.path / member
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")  # reading a pipe or device might never end
        _refuse_huge(status.st_size)
        return path.read_bytes()


class _Zip(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._archive = zipfile.ZipFile(path)
        entries = (entry for entry in self._archive.infolist() if entry.filename)  # damage can empty a name
        self._entries = {entry.filename: entry for entry in entries if not entry.is_dir()}
        self.members = list(self._entries)

    def read(self, member: str) -> bytes:
        _refuse_huge(self._entries[member].file_size)
        return self._archive.read(member)

    def checksum(self, member: str) -> tuple[int, int]:
        entry = self._entries[member]  # from the archive's directory: nothing is decompressed
        return entry.file_size, entry.CRC

    def close(self) -> None:
        self._archive.close()


class _Tar(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with tarfile.open(path, "r:") as archive:
            entries = {entry.name.removeprefix("./"): entry for entry in archive if entry.isfile()}
        self._places = {name: (entry.offset_data, entry.size) for name, entry in entries.items()}
        self._file: IO[bytes] = path.open("rb")
        self.members = list(entries)

    def read(self, member: str) -> bytes:
        offset, size = self._places[member]
        _refuse_huge(size)
        self._file.seek(offset)
        body = self._file.read(size)
        if len(body) < size:
            raise EOFError(f"{size - len(body)} bytes are missing at its end")
        return body

    def close(self) -> None:
        self._file.close()


def open_source(path: str | Path) -> Source:
    """The folder or archive at `path`; a DataError names it where it is missing, damaged or of another kind."""
    path = Path(path)
    kinds: dict[str, Callable[[Path], Source]] = {".zip": _Zip, ".tar": _Tar}
    try:
        kind = _Folder if path.is_dir() else kinds.get(path.suffix)
        if kind is not None:
            source = kind(path)
            if len(source.members) > MAX_MEMBERS:
                raise DataError(
                    f"{path}: holds {len(source.members):,} files, more than {MAX_MEMBERS:,}; divide it"
                )
            return source
        path.stat()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such folder or archive; correct the path, or fetch it"
        ) from error
    except DAMAGE as error:
        size = path.stat().st_size
        raise DataError(
            f"{path}: cut short or not a {path.suffix} archive ({error}; {size:,} bytes); copy it here again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    remedy = (
        "unpack it to a .tar" if path.name.endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")) else "pack it"
    )
    raise DataError(
        f"{path}: not a folder, .zip or .tar; {remedy} (a compressed tar cannot be read in place)"
    )


def fingerprint(path: Path) -> list[object]:
    """Metadata that changes when the source changes; an archive is not opened for it.

    Raises DataError where the source does not exist.
    """
    if path.is_file():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    # a dangling link is an image that cannot be read; it must not end the listing
    states = ((name, _stat(path / name)) for name in sorted(open_source(path).members))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def match_members(members: Iterable[str], pattern: str, field: str) -> list[tuple[str, str]]:
    """(value of `{field}`, member) of every member that ends in `pattern`, e.g. `images/im{id}.jpg`.

    Only as many parts of a path are compared as the pattern has, so that an archive's top folder need
    not be named. Hidden files (`._im1.jpg`, `__MACOSX/`) do not count.
    """
    before, after = (re.escape(part) for part in pattern.split("{" + field + "}"))
    wanted = re.compile(f"(?:.*/)?{before}([^/]+){after}")
    found = []
    for member in members:
        match = wanted.fullmatch(member)
        if match and not any(part.startswith((".", "__MACOSX")) for part in member.split("/")):
            found.append((match[1], member))
    return found


@dataclass(frozen=True)
class ImageRef:
    """One image of a source: its id, its name in a submission, and its member in the source."""

    id: str
    name: str
    member: str


def list_images(
    source: Source, pattern: str, image_list: str | None = None
) -> tuple[list[ImageRef], list[str]]:
    """The images of a source in natural order (im2 before im10), or in the order of `image_list`.

    Also returns the entries of `image_list` that name no image. Raises DataError where nothing matches,
    or where two files would be the same image.
    """
    by_id: dict[str, ImageRef] = {}
    id_in_name = "{id}" in pattern.rsplit("/", 1)[-1]
    for found, member in match_members(source.members, pattern, "id"):
        if found in by_id:
            raise DataError(f"{source.path}: {by_id[found].member} and {member} are both image {found}")
        try:
            member.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{source.path}: the file name {member!r} is not UTF-8; rename it") from error
        by_id[found] = ImageRef(found, member.rsplit("/", 1)[-1] if id_in_name else found, member)
    if not by_id:
        some = ", ".join(sorted(source.members)[:3]) or "nothing"
        raise DataError(
            f"{source.path}: no file is named {pattern!r}; correct data.images (it holds {some}, ...)"
        )
    images = sorted(by_id.values(), key=lambda image: natural_key(image.id))
    if image_list is None:
        return images, []
    find = finder(images)
    rows = [(reference, find(reference)) for reference in read_list(Path(image_list))]
    chosen = dict.fromkeys(row for _, row in rows if row is not None)
    return [images[row] for row in chosen], [reference for reference, row in rows if row is None]


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts digits as numbers: 2 before 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part]


def finder(images: Sequence[ImageRef]) -> Callable[[str], int | None]:
    """A function from an image's id, name, path, or id as a number (7 for 0007) to its row."""
    rows: dict[str, int] = {}
    for row, image in enumerate(images):
        if image.id.isdecimal():
            rows.setdefault(str(int(image.id)), row)
    for row, image in enumerate(images):
        rows.update({image.id: row, image.name: row, image.member: row})

    def find(reference: str) -> int | None:
        row = rows.get(reference)
        if row is None and "/" in reference:
            row = rows.get(reference.rsplit("/", 1)[-1])
        if row is None and reference.isdecimal():
            row = rows.get(str(int(reference)))
        return row

    return find


def read_list(path: Path) -> list[str]:
    """The lines of a text file of ids or names, without empty lines."""
    try:
        return parse_list(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; it is a text file of ids, one a line") from error


def parse_list(body: bytes) -> list[str]:
    """Like `read_list`, of bytes; ValueError where they are not text."""
    return [line.strip() for line in body.decode("utf-8-sig").splitlines() if line.strip()]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        return path.lstat()


def _walk(path: Path) -> Iterable[tuple[Path, list[str], list[str]]]:
    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link to a folder above it, which would never end
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Path(folder), folders, names


def _refuse_huge(size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise OSError(f"is {size / 1e9:.1f} GB large, more than {MAX_MEMBER_BYTES / 1e9:.1f} GB")
