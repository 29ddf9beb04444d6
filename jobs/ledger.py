"""`ledger.jsonl`: what was started and how it ended, one JSON object a line, only ever appended to."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import write_failed
from pipeline.storage.jsonl import with_checksum


def append(ledger: Path, event: str, **details: Any) -> None:
    """Add one event with the time."""
    append_all(ledger, [{"event": event, **details}])


def append_all(ledger: Path, events: Iterable[Mapping[str, Any]]) -> None:
    """Add events in a single write, so that two processes never mix their lines; a PipelineError where that fails.

    A line that an earlier write left cut short is closed first, so that it takes none of these with it.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    text = "".join(with_checksum({"time": now, **event}) + "\n" for event in events)
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                text = text if file.read(1) == b"\n" else "\n" + text
            body = text.encode()
            if file.write(body) < len(body):  # a full disk takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise PipelineError(write_failed(ledger, error)) from error
