"""`submission.csv`: written and read again a part at a time, however many rows it has. Torch-free."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from pipeline.errors import SubmissionError
from pipeline.storage.files import atomic_write

# N images, K labels, P of the images in a part, B bytes of 8 decisions
VALUES = 1 << 20  # decisions or scores at a time


def part_rows(labels: int) -> int:
    """How many images make a part."""
    return max(1, VALUES // max(labels, 1))


class BitRows:
    """Decisions (N, K) of 0 and 1 as bits, an eighth of their bytes; a slice gives bytes again."""

    def __init__(self, bits_NB: npt.NDArray[np.uint8], labels: int) -> None:
        self._bits_NB, self._labels = bits_NB, labels

    def __len__(self) -> int:
        return len(self._bits_NB)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]:
        return np.unpackbits(self._bits_NB[rows], axis=1, count=self._labels)


Decided = npt.NDArray[np.uint8] | BitRows  # (N, K)


def replace_submission(
    path: Path, labels: Sequence[str], names: Sequence[str], bits_NB: npt.NDArray[np.uint8]
) -> str | None:
    """Write and check the submission; the name under which another one that stood there is kept."""
    with contextlib.ExitStack() as opened:
        before = opened.enter_context(path.open("rb")) if path.exists() else None
        decisions_NK = BitRows(bits_NB, len(labels))
        write_submission(path, names, labels, decisions_NK)
        check_submission(path, names, labels, decisions_NK)
        if before is None or os.fstat(before.fileno()).st_size == 0 or _same_bytes(before, path):
            return None
        date = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(os.fstat(before.fileno()).st_mtime))
        kept = path.with_name(f"{path.stem}-{date}{path.suffix}")
        before.seek(0)
        with atomic_write(kept) as file:
            shutil.copyfileobj(before, file)
        return kept.name


def _same_bytes(one: IO[bytes], path: Path) -> bool:
    with path.open("rb") as other:
        while (part := one.read(1 << 20)) == other.read(1 << 20):
            if not part:
                return True
    return False


def write_submission(path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: Decided) -> None:
    """`ids,<label>,...` and a row of 0/1 per image, atomically, as `csv.writer` writes it."""
    with atomic_write(path) as file:
        file.write(_lines([["ids", *labels]])[0].encode())
        for some, decisions_PK in _parts(names, labels, decisions_NK):
            cells = np.full((len(some), 2 * len(labels) + 1), ord(","), np.uint8)
            cells[:, 1::2] = decisions_PK + ord("0")
            cells[:, -1] = ord("\n")
            quoted = [line[:-2].encode() for line in _lines([name, ""] for name in some)]
            body, width = cells.tobytes(), cells.shape[1]
            file.writelines(
                part for i, name in enumerate(quoted) for part in (name, body[i * width : (i + 1) * width])
            )


def check_submission(path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: Decided) -> None:
    """Read the file again: columns, ids, their order, values; SubmissionError names the first difference."""
    if not _reads_as(path, names, labels, decisions_NK):
        _refuse_difference(path, names, labels, decisions_NK)


def _reads_as(path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: Decided) -> bool:
    """Whether each row is an id as `csv.reader` reads it, then a comma and a digit per label, as decided."""
    width = 2 * len(labels) + 1
    header = ["ids", *labels]
    with path.open("rb") as file:
        if _read([_record(file, "".join(labels))]) != [header]:
            return False
        for some, decisions_PK in _parts(names, labels, decisions_NK):
            records = [_record(file, name) for name in some]
            ends = b"".join(record[-width:] for record in records)
            if len(ends) != width * len(some):
                return False
            ends_PW = np.frombuffer(ends, np.uint8).reshape(len(some), width)
            whole = (ends_PW[:, :-1:2] == ord(",")).all() and (ends_PW[:, -1] == ord("\n")).all()
            right = (ends_PW[:, 1::2] - ord("0") == decisions_PK).all() and (decisions_PK <= 1).all()
            if not (whole and right and _read(record[:-width] for record in records) == [[n] for n in some]):
                return False
        return not file.read(1)


def _refuse_difference(
    path: Path, names: Sequence[str], labels: Sequence[str], decisions_NK: Decided
) -> None:
    """The first difference, by `csv.reader` alone; none where the file only has another form."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        count = sum(1 for _ in reader)
    if header != ["ids", *labels]:
        raise SubmissionError(f"{path}: the header is {header}, expected {['ids', *labels]}")
    if count != len(names):
        raise SubmissionError(f"{path}: {count} rows for {len(names)} test images")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        decided = (pair for part in _parts(names, labels, decisions_NK) for pair in zip(*part, strict=True))
        for i, (row, (name, decisions_K)) in enumerate(zip(reader, decided, strict=True)):
            if row != [name, *map(str, decisions_K.tolist())] or not set(row[1:]) <= {"0", "1"}:
                raise SubmissionError(f"{path}:{i + 2}: {row} is not the row of {name}")


def _parts(
    names: Sequence[str], labels: Sequence[str], decisions_NK: Decided
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    """(names, decisions (P, K)) of the images, a part at a time."""
    if len(names) != len(decisions_NK):
        raise ValueError(f"{len(names)} names for {len(decisions_NK)} rows")
    rows = part_rows(len(labels))
    for start in range(0, len(names), rows):
        stop = min(start + rows, len(names))
        yield [names[i] for i in range(start, stop)], decisions_NK[start:stop]


class _Lines(list[str]):
    """What `csv.writer` writes, a row an item."""

    def write(self, line: str) -> None:
        self.append(line)


def _lines(rows: Iterable[Sequence[str]]) -> list[str]:
    lines = _Lines()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines


def _record(file: IO[bytes], text: str) -> bytes:
    """The bytes of one row, where `text` is in it with all of the row's line breaks."""
    return b"".join(file.readline() for _ in range(1 + text.count("\n")))


def _read(rows: Iterable[bytes]) -> list[list[str]]:
    """Rows by `csv.reader`, each complete by itself; none where one is not."""
    try:
        return list(csv.reader((row.decode() for row in rows), strict=True))
    except (csv.Error, UnicodeDecodeError):
        return []
