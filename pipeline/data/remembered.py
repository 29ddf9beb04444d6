"""What plans show of a data set, kept under a digest of all that it was made of. Torch- and numpy-free."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.spec.identity import digest
from pipeline.storage.files import read_json_or_empty, write_json


def remembered(cache: Path, kind: str, made_of: Any, compute: Callable[[], Any]) -> Any:
    """The JSON value that `compute` gave for an equal `made_of`, in this version.

    Neither an error nor an empty value is kept: a disk that did not answer for a moment must not be remembered.
    """
    key = digest([__version__, kind, made_of])
    path = cache / f"{kind}-{key[:32]}.json"
    known = read_json_or_empty(path)
    if known.get("key") != key:
        value = compute()
        if not value:
            return value
        known = {"key": key, "value": value}
        with contextlib.suppress(PipelineError):  # without a writable cache it is computed each time
            write_json(path, known)
    return known["value"]
