"""`data`: download public data sets; a broken download resumes, a file is verified before it is named."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.storage import downloading
from pipeline.storage.typed import typed


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its name here, its address, and the MD5 its owner publishes, if any."""

    name: str
    url: str
    md5: str | None


_LIACS = "http://press.liacs.nl/mirflickr"
MIRFLICKR = (
    Remote(
        "mirflickr25k.zip", f"{_LIACS}/mirflickr25k.v3b/mirflickr25k.zip", "a23d0a8564ee84cda5622a6c2f947785"
    ),
    # no digest is published for the annotations: the archive's CRCs are checked, and its SHA-256 is stored
    Remote(
        "mirflickr25k_annotations_v080.zip",
        f"{_LIACS}/mirflickr25k.v3b/mirflickr25k_annotations_v080.zip",
        None,
    ),
)


def download(files: Sequence[Remote], folder: Path, *, pause_s: float = 2.0) -> list[Path]:
    """Fetch what is missing in `folder`; returns all paths.

    A broken transfer resumes where it stopped, in this call and in a later one. A file gets its name only
    when it is complete and matches its digest; otherwise a DataError names the address.
    """
    return [_fetch(file, folder, pause_s) for file in files]


def _fetch(remote: Remote, folder: Path, pause_s: float) -> Path:
    path = folder / remote.name
    try:
        downloading.download(remote.url, path, lambda part, _: _problem(remote, part), pause_s=pause_s)
    except downloading.TransferError as error:
        kept = (
            f"; {error.kept:,} bytes are kept, and `{typed('data', '')}` resumes from there"
            if error.kept
            else ""
        )
        raise DataError(
            f"{remote.url}: cannot be fetched: {error}{kept}; without internet, copy the file to {folder}"
        ) from error
    except downloading.WrongContentError as error:
        raise DataError(
            f"{remote.url}: the download is not the expected file ({error}); it was deleted, "
            f"run `{typed('data', '')}` again"
        ) from error
    return path


def _problem(remote: Remote, part: Path) -> str:
    if remote.md5 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return "" if found == remote.md5 else f"its MD5 is {found}, expected {remote.md5}"
    try:
        with zipfile.ZipFile(part) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        broken = str(error)
    return "" if broken is None else f"the archive is damaged: {broken}"
