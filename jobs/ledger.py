"""`ledger.jsonl`: what was started and how it ended, one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def append(ledger: Path, event: str, **details: Any) -> None:
    """Add one event with the time; a single write, so that two processes never mix their lines."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details})
    with ledger.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
