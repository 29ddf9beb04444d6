"""Checkpoints that appear complete or not at all, carry their own digest, and never execute code when read.

The file is torch's own zip (`torch.load(path, weights_only=True)` opens it); its SHA-256 stands in the
zip's comment, so that a flipped bit anywhere is found before anything is used.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError
from pipeline.storage.files import atomic_write
from pipeline.storage.write_behind import Writer

_PREFIX = b"labelgrid sha256 "
_COMMENT_LENGTH = len(_PREFIX) + 64


def save_checkpoint(
    path: Path, state: dict[str, Any], *, keep_as: Path | None = None, writer: Writer | None = None
) -> None:
    """Write `state` (tensors and plain values) atomically; what stood there is kept as `keep_as`.

    With a `writer` that works behind, this returns with a copy of the state, and the writer has the file to do.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    if writer is None:
        _write(path, body, keep_as)
    else:
        writer(lambda: _write(path, body, keep_as))


def _write(path: Path, body: memoryview, keep_as: Path | None) -> None:
    # a zip ends with the length of its comment, so the comment can be added behind it
    sha = hashlib.sha256(body[:-2])
    length = _COMMENT_LENGTH.to_bytes(2, "little")
    sha.update(length)
    with atomic_write(path, keep_as=keep_as) as file:
        file.write(body[:-2])
        file.write(length + _PREFIX + sha.hexdigest().encode())


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The state in `path`; raises CheckpointError naming the file when it is missing or damaged."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    comment = body[-_COMMENT_LENGTH:]
    found = hashlib.sha256(memoryview(body)[:-_COMMENT_LENGTH]).hexdigest()
    if comment != _PREFIX + found.encode():
        raise CheckpointError(f"{path}: is damaged (its digest does not match its content)")
    try:
        state = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from error
    assert isinstance(state, dict)
    return state


def load_newest(last: Path, previous: Path, identity: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest undamaged training state of this identity, and what was wrong with those it ignored.

    (None, []) where there is nothing yet. A state of another identity raises CheckpointError.
    """
    problems = []
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if state["identity"] != identity:
            raise CheckpointError(
                f"{path}: belongs to the cell {state['identity'][:8]}, this is {identity[:8]}; "
                f"move {path.parent} away or delete it"
            )
        return state, problems
    return None, problems
