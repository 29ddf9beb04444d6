"""`data`: download public data sets; a broken download resumes, a file is verified before it is named."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import DataError, PipelineError
from pipeline.progress import report
from pipeline.storage.files import atomic_write, sha256_file, write_failed
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
_TRIES = 5
_BLOCK = 1 << 20
_TIMEOUT_S = 60.0


def download(files: Sequence[Remote], folder: Path, *, pause_s: float = 2.0) -> list[Path]:
    """Fetch what is missing in `folder`; returns all paths.

    A broken transfer resumes where it stopped, in this call and in a later one. A file gets its name only
    when it is complete and matches its digest; otherwise a DataError names the address.
    """
    return [_fetch(file, folder, pause_s) for file in files]


def _fetch(remote: Remote, folder: Path, pause_s: float) -> Path:
    path = folder / remote.name
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tries_left in reversed(range(_TRIES)):
            try:
                _continue(remote, part)
                break
            except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
                if getattr(error, "filename", None) and not isinstance(error, urllib.error.URLError):
                    raise  # the disk, not the network
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused or not tries_left:
                    raise DataError(_broke_off(remote, part, error)) from error
                time.sleep(pause_s)
        _verify(remote, part)
        digest = sha256_file(part)
        with atomic_write(path.with_name(path.name + ".sha256"), "w") as file:
            file.write(f"{digest}  {path.name}\n")
        part.replace(path)
    except OSError as error:
        raise PipelineError(write_failed(path, error)) from error
    return path


def _continue(remote: Remote, part: Path) -> None:
    """Append to `part` what is still missing; an OSError when the connection ends too early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 -- addresses are the table's
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310 -- the same address
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            error.close()
            return
        raise
    with answer:
        resumed = answer.status == 206
        have = have if resumed else 0  # a server that ignores ranges sends all of it again
        total = have + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if resumed else "wb") as file:
            _copy(answer, file, remote.name, have, total)
        if total > have and part.stat().st_size < total:
            raise ConnectionError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _copy(answer: http.client.HTTPResponse, file: IO[bytes], name: str, have: int, total: int) -> None:
    while block := answer.read1(_BLOCK):  # what has arrived; read() would lose it when the connection breaks
        file.write(block)
        have += len(block)
        report(f"downloading {name}, MB", have // 10**6, total // 10**6, unit="MB")


def _verify(remote: Remote, part: Path) -> None:
    if remote.md5 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        problem = "" if found == remote.md5 else f"its MD5 is {found}, expected {remote.md5}"
    else:
        try:
            with zipfile.ZipFile(part) as archive:
                broken = archive.testzip()
        except zipfile.BadZipFile as error:
            broken = str(error)
        problem = "" if broken is None else f"the archive is damaged: {broken}"
    if problem:
        part.unlink()
        raise DataError(
            f"{remote.url}: the download is not the expected file ({problem}); it was deleted, "
            f"run `{typed('data', '')}` again"
        )


def _broke_off(remote: Remote, part: Path, error: Exception) -> str:
    have = part.stat().st_size if part.exists() else 0
    kept = f"; {have:,} bytes are kept, and `{typed('data', '')}` resumes from there" if have else ""
    reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
    return (
        f"{remote.url}: cannot be fetched: {reason}{kept}; without internet, copy the file to {part.parent}"
    )
