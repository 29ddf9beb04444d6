"""The question that the header of a spec asks. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path


def question(spec: Path) -> str:
    """What the header of a spec asks (`# Question: ...`, over several lines of comment); "" without one."""
    try:
        lines = spec.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    asked: list[str] = []
    for line in lines:
        begins = re.match(r"#\s*Question:\s*(.*)", line)
        goes_on = re.match(r"#\s{3,}(\S.*)", line) if asked else None
        if begins or goes_on:
            asked.append((begins or goes_on)[1])  # type: ignore[index]  # one of them matched
        elif asked:
            break
    said = " ".join(asked)
    return said[:1].upper() + said[1:]
