"""`ledger.jsonl`: what was started and how it ended, one JSON object a line, only ever appended to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.storage.jsonl import with_checksum


def append(ledger: Path, event: str, **details: Any) -> None:
    """Add one event with the time."""
    append_all(ledger, [{"event": event, **details}])


def append_all(ledger: Path, events: Iterable[Mapping[str, Any]]) -> None:
    """Add events in a single write, so that two processes never mix their lines."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    text = "".join(with_checksum({"time": now, **event}) + "\n" for event in events)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(text)
