"""A file from the internet: resumed where it broke off, checked before it has its name. Torch-free."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.progress import report
from pipeline.storage.files import atomic_write, sha256_file, write_failed
from pipeline.storage.ownership import owned_in_turn

DIGEST_SUFFIX = ".sha256"  # of the small file beside a download, as sha256sum writes it
_TRIES = 5
_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_LONGEST_S = 6 * 3600.0  # that a process waits for another that fetches the same
_RETRIED = (408, 429)  # of the answers below 500: too slow, too often
# what the hub of Hugging Face says of a file before it sends the reader to where the bytes are
_ANNOUNCED = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?')


class TransferError(Exception):
    """A file that did not come: the reason in words; `status` and `headers` of the answer, `kept` bytes so far."""

    def __init__(self, reason: str, kept: int, status: int = 0, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.kept, self.status, self.headers = kept, status, headers or {}


class WrongContentError(Exception):
    """A file that came and is not what was wanted; it is deleted."""


def download(
    url: str, path: Path, check: Callable[[Path, str], str], *, token: str = "", pause_s: float = 2.0
) -> None:
    """Fetch `url` as `path`, unless it is there; its SHA-256 is written beside it.

    `check` is given the file and its SHA-256 and says what is wrong with it ("": nothing). A digest that the
    server announces (Hugging Face's `x-linked-etag`) is compared too. A broken transfer goes on where it stopped,
    in this call and in a later one; of several processes one fetches, and the others wait. `token` goes to
    the host of `url` alone. Raises TransferError, WrongContentError, or PipelineError where the disk fails.
    """
    if path.exists():
        return
    with owned_in_turn(path.with_name(f".{path.name}.lock"), path.name, wait_s=_LONGEST_S):
        if path.exists():  # the other one has fetched it
            return
        try:
            _fetch(_Source(url, token, path.name), path, check, pause_s)
        except OSError as error:
            raise PipelineError(write_failed(path, error)) from error


def digest_beside(path: Path) -> str:
    """The SHA-256 that was written when the file came; "" where none was."""
    try:
        words = path.with_name(path.name + DIGEST_SUFFIX).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return ""
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else ""


def write_digest(path: Path, digest: str) -> None:
    """Beside the file, for `digest_beside` and `sha256sum -c`."""
    with atomic_write(path.with_name(path.name + DIGEST_SUFFIX), "w") as file:
        file.write(f"{digest}  {path.name}\n")


def _fetch(source: _Source, path: Path, check: Callable[[Path, str], str], pause_s: float) -> None:
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    _complete(source, part, pause_s)
    digest = sha256_file(part)
    wrong = _problem(source, digest) or check(part, digest)
    if wrong and resumed:  # it may have begun with another version of the file
        part.unlink()
        _complete(source, part, pause_s)
        digest = sha256_file(part)
        wrong = _problem(source, digest) or check(part, digest)
    if wrong:
        part.unlink()
        raise WrongContentError(wrong)
    write_digest(path, digest)
    part.replace(path)


def _problem(source: _Source, digest: str) -> str:
    wrong = source.announced not in ("", digest)
    return f"its SHA-256 is {digest}, the server announced {source.announced}" if wrong else ""


def _complete(source: _Source, part: Path, pause_s: float) -> None:
    """Append to `part` until it is whole."""
    for tries_left in reversed(range(_TRIES)):
        try:
            source.append_to(part)
            return
        except (OSError, http.client.HTTPException) as error:  # urllib's own are OSErrors
            if getattr(error, "filename", None) and not isinstance(error, urllib.error.URLError):
                raise  # the disk, not the network
            status = 0
            if isinstance(error, urllib.error.HTTPError):
                status = error.code
                error.close()
            if (0 < status < 500 and status not in _RETRIED) or not tries_left:
                kept = part.stat().st_size if part.exists() else 0
                reason = str(error if status else getattr(error, "reason", None) or error)
                raise TransferError(reason, kept, status, getattr(error, "headers", None)) from error
            time.sleep(pause_s)


class _Source(urllib.request.HTTPRedirectHandler):
    """An address, and what its servers say of the file on the way to it."""

    def __init__(self, url: str, token: str, name: str) -> None:
        self.url, self.token, self.name = url, token, name
        self.announced = ""
        self._opener = urllib.request.build_opener(self)

    def append_to(self, part: Path) -> None:
        """Add to `part` what is still missing; an OSError when the connection ends too early."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": f"labelgrid/{__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 -- addresses are the callers' tables'
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            answer = self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing is left to send
                error.close()
                return
            raise
        with answer:
            self._listen(answer.headers)
            resumed = answer.status == 206
            have = have if resumed else 0  # a server that ignores ranges sends all of it again
            total = have + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if resumed else "wb") as file:
                self._copy(answer, file, have, total)
            if total > have and part.stat().st_size < total:
                raise ConnectionError(
                    f"the connection ended after {part.stat().st_size:,} of {total:,} bytes"
                )

    def _copy(self, answer: http.client.HTTPResponse, file: IO[bytes], have: int, total: int) -> None:
        while block := answer.read1(
            _BLOCK
        ):  # what has arrived; read() would lose it when the connection breaks
            try:
                file.write(block)
                file.flush()
            except OSError as error:  # which does not say that it is the disk's
                error.filename = file.name
                raise
            have += len(block)
            report(f"downloading {self.name}, MB", have // 10**6, total // 10**6, unit="MB")

    def _listen(self, headers: Message) -> None:
        if found := _ANNOUNCED.fullmatch(headers.get("x-linked-etag") or ""):
            self.announced = found[1]

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        """The request to the next address, with the token where that is the same server's."""
        *_, headers, url = answer
        self._listen(headers)
        following = super().redirect_request(req, *answer)
        if following is not None and self.token and _server(url) == _server(req.full_url):
            following.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return following


def _server(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
