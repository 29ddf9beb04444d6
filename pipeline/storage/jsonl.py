"""Files of one JSON object a line, as `metrics.jsonl` and `ledger.jsonl` are. Torch-free."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The complete lines of `path`, [] where it is not there.

    A line cut short by a kill is left out, and one that does not fit its `crc`, where it has one.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            crc = row.pop("crc", None)
            if crc in (None, _crc(row)):
                rows.append(row)
            else:
                print(f"{path}: ignoring a damaged line: {line[:80]}", file=sys.stderr)
    return rows


def with_checksum(row: Mapping[str, Any]) -> str:
    """The line of a row, with a checksum of itself as `crc`."""
    return json.dumps({**row, "crc": _crc(row)})


def _crc(row: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(row).encode())
