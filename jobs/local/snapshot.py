"""Frozen code: one zip of `pipeline/` and `jobs/` per state of the code, which processes import from.

What runs is what was submitted: later edits, and edits while a job waits or is requeued, do not reach it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

from pipeline.storage.files import atomic_write
from pipeline.storage.provenance import CODE_FILE, code, code_files

_EPOCH = (1980, 1, 1, 0, 0, 0)


def snapshot(folder: Path) -> Path:
    """The zip of the code as it is now, in `folder`; an equal one that is there is used again."""
    here = Path(__file__).resolve().parents[2]
    if here.suffix == ".zip":
        return here  # a job that starts others hands its own code on
    facts = code()
    path = folder / f"code-{facts['digest'][:12]}.zip"
    if not _is_complete(path):
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for source in code_files():
                # a fixed date, so that equal code is equal bytes
                archive.writestr(zipfile.ZipInfo(str(source.relative_to(here)), _EPOCH), source.read_bytes())
            archive.writestr(zipfile.ZipInfo(f"pipeline/{CODE_FILE}", _EPOCH), json.dumps(facts))
    return path


def _is_complete(path: Path) -> bool:
    """Python imports from a zip without looking at its checksums, so they are looked at here."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error):
        return False
