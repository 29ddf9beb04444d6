"""Files of a folder, a .zip or a .tar, read in place, never unpacked. Torch- and numpy-free."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.errors import DataError
from pipeline.storage.files import near_names

MAX_MEMBER_BYTES = 1 << 30  # of a file that is read at once, inflated: more is an archive bomb or a mistake
MAX_MEMBERS = 20_000_000
_ENCRYPTED, _SAYS_UTF8 = 0x1, 0x800  # flags of a zip's entry
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_COMPRESSIONS = {
    9: "Deflate64 (of Windows, for large files)",
    93: "Zstandard",
    98: "PPMd",
    99: "AES encryption",
}
Entry = TypeVar("Entry")

# zipfile and tarfile raise all of these on damage: a future zip version, an offset before the start, a cut field
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, ValueError, struct.error)
# what reading a member can raise where an archive or a disk is damaged
READ_ERRORS = (OSError, zlib.error, RuntimeError, *DAMAGE)


class Source:
    """A folder or archive: its members by name (`/` between the parts), their bytes and checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: list[str] = []
        self.directories: list[Path] = []  # of a folder, itself among them

    def read(self, member: str) -> bytes:
        """The bytes of a member; one of READ_ERRORS when they are damaged."""
        raise NotImplementedError

    def open(self, member: str) -> IO[bytes]:
        """The bytes of a member of any size as a stream; reading it raises one of READ_ERRORS too."""
        raise NotImplementedError

    def checksum(self, member: str) -> tuple[int, int]:
        """(size in bytes, CRC-32): the same for the same file in a folder, a zip and a tar."""
        body = self.read(member)
        return len(body), zlib.crc32(body)

    def close(self) -> None:
        """Close the archive's file."""


class Folder(Source):
    """A folder with all folders in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # a listing must see every file or fail: an unreadable folder is not an empty one
        self._files = _by_name(path, ((name.replace("\\", "/"), name) for name in self._names()))
        self.members = list(self._files)

    def _names(self) -> Iterator[str]:
        for folder, _, names in _walk(self.path):
            self.directories.append(folder)
            above = "" if folder == self.path else f"{folder.relative_to(self.path)}/"
            yield from (above + name for name in names)

    def place(self, member: str) -> Path:
        """Where a file lies."""
        return self.path / self._files[member]

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """(name, size, mtime) of every file; of a link that leads nowhere its own."""
        top = f"{self.path}/"
        states = ((name, _stat(top + self._files[name])) for name in sorted(self.members))
        return [(name, state.st_size, state.st_mtime_ns) for name, state in states]

    def read(self, member: str) -> bytes:
        """Its bytes; OSError of what is not a regular file."""
        path = self._regular(member)
        _refuse_huge(path.stat().st_size)
        return path.read_bytes()

    def open(self, member: str) -> IO[bytes]:
        """Its bytes, as they are read; OSError of what is not a regular file."""
        return self._regular(member).open("rb")

    def _regular(self, member: str) -> Path:
        path = self.place(member)
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")  # reading a pipe or device might never end
        return path


class _Zip(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._archive = zipfile.ZipFile(path)
        # damage can empty a name; of an entry that was written twice the last one counts
        entries = {entry.filename: entry for entry in self._archive.infolist() if entry.filename}
        files = [entry for entry in entries.values() if not entry.filename.endswith(("/", "\\"))]
        for entry in files:
            _refuse_unreadable(path, entry)
        self._entries = _by_name(path, ((_zip_name(entry), entry) for entry in files))
        self.members = list(self._entries)

    def read(self, member: str) -> bytes:
        _refuse_huge(self._entries[member].file_size)
        return self._archive.read(self._entries[member])

    def open(self, member: str) -> IO[bytes]:
        return self._archive.open(self._entries[member])

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

    def open(self, member: str) -> IO[bytes]:
        return io.BufferedReader(_Span(self._file.fileno(), *self._places[member]))

    def close(self) -> None:
        self._file.close()


class _Span(io.RawIOBase):
    """Some bytes of a file that stays open as long as they are read."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._start, self._next, self._end = descriptor, offset, offset, offset + size

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._next - self._start

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._end - self._next]
        count = os.preadv(self._descriptor, [view], self._next) if view else 0
        if view and not count:
            raise EOFError(f"{self._end - self._next} bytes are missing at its end")
        self._next += count
        return count


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name with `/` between its parts; one that is UTF-8 without saying so is read as UTF-8."""
    name = entry.filename
    if not entry.flag_bits & _SAYS_UTF8 and not name.isascii():
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _refuse_unreadable(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise DataError(f"{path}: {entry.filename} is encrypted; unpack it, and pack it without a password")
    if entry.compress_type not in _READABLE:
        kind = _COMPRESSIONS.get(entry.compress_type, f"compression method {entry.compress_type}")
        raise DataError(
            f"{path}: {entry.filename} is compressed by {kind}, which Python cannot read; unpack it, and "
            "pack it with `zip -0` (images gain nothing from compression)"
        )


def _by_name(path: Path, named: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    """Name -> entry; two files whose names differ by back slashes only are refused."""
    entries: dict[str, Entry] = {}
    for name, entry in named:
        if name in entries:
            raise DataError(f"{path}: two files are named {name}, one of them with back slashes; rename one")
        entries[name] = entry
    return entries


def open_source(path: str | Path) -> Source:
    """The folder or archive at `path`; a DataError names it where it is missing, damaged or of another kind."""
    path = Path(path)
    kinds: dict[str, Callable[[Path], Source]] = {".zip": _Zip, ".tar": _Tar}
    try:
        kind = Folder if path.is_dir() else kinds.get(path.suffix.lower())
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
            f"{path}: there is no such folder or archive{near_names(path)}; correct the path, or fetch it"
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


def fingerprint(path: Path, opened: Callable[[Path], Source] = open_source) -> Sequence[object]:
    """Metadata that changes when the source changes; an archive is not opened for it.

    Raises DataError where the source does not exist.
    """
    if path.is_file():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    folder = opened(path)
    assert isinstance(folder, Folder)
    return folder.fingerprint()


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
        if match and not is_hidden(member):
            found.append((match[1], member))
    return found


def is_hidden(member: str) -> bool:
    """Whether a file or a folder above it is hidden, or is what macOS adds to a zip."""
    return (member[0] == "." or "/." in member or "__MACOSX" in member) and any(
        part.startswith((".", "__MACOSX")) for part in member.split("/")
    )


def read_list(path: Path) -> list[str]:
    """The lines of a text file of ids or names, without empty lines."""
    try:
        return parse_list(path.read_bytes())
    except OSError as error:
        near = near_names(path) if isinstance(error, FileNotFoundError) else ""
        reason = f"{error.strerror}{near}; it is a text file of ids, one a line"
        raise DataError(f"{path}: cannot be read: {reason}") from error
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}; it is a text file of ids, one a line") from error


def parse_list(body: bytes) -> list[str]:
    """Like `read_list`, of bytes; ValueError where they are not text."""
    return [line.strip() for line in body.decode("utf-8-sig").splitlines() if line.strip()]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes longer than this
    except FileNotFoundError:
        return os.lstat(path)  # a dangling link is an image that cannot be read; it must not end the listing


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
