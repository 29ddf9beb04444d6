"""Files that a spec names and that are not there: told with the key, its place, and the nearest names. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, SpecError
from pipeline.spec import DataSpec
from pipeline.spec.identity import flatten
from pipeline.spec.reading import Loaded
from pipeline.spec.strict_yaml import Place
from pipeline.storage.files import near_names, sha256_file


@contextlib.contextmanager
def naming_the_key(
    loaded: Loaded, data: DataSpec, settings: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """What is said of a file that is not there begins with the key that names it, and where it is written."""
    try:
        yield
    except DataError as error:
        for key, value in flatten({"data": data.model_dump()}).items():
            if isinstance(value, str) and str(error).startswith(f"{value}: ") and not Path(value).exists():
                raise DataError(f"{loaded.place(key, settings or {})}: {key}: {error}") from error
        raise


def weights_digest(path: Path, place: Place) -> str:
    """SHA-256 of a weights file; `place` is where the spec names it."""
    try:
        return sha256_file(path)
    except OSError as error:
        near = near_names(path) if isinstance(error, FileNotFoundError) else ""
        raise SpecError(
            f"{place}: train.model.weights: {path} cannot be read ({error.strerror}){near}; correct the path, or "
            "name published weights, e.g. IMAGENET1K_V1, or write none"
        ) from error
