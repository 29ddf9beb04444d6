"""Pretrained weights, fetched ahead where the internet is, and checked. Imports torchvision only for its names."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, PipelineError, SpecError
from pipeline.models.hub import Published, hub_token, published
from pipeline.spec import ModelSpec
from pipeline.spec.licences import licence_of
from pipeline.spec.timm_catalogue import PREFIX
from pipeline.storage.downloading import (
    DIGEST_SUFFIX,
    TransferError,
    WrongContentError,
    digest_beside,
    download,
    write_digest,
)
from pipeline.storage.files import sha256_file

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")  # as torch.hub names files


def fetch_weights(model: ModelSpec, folder: Path, *, pause_s: float = 2.0) -> Path | None:
    """The file of a model's weights: None for `none`, the file itself, or in `folder` what is published by name.

    What torchvision or timm publishes is downloaded unless it is there, and must match the digest in its name,
    or the one that came with it, which stands beside it. A file that a person put there gets one.
    Raises SpecError for a name that is not known, CheckpointError when it cannot be fetched or differs.
    """
    found = _published(model)
    if found is None:
        return None if model.weights == "none" else Path(model.weights)
    path = folder / found.file
    if not path.exists():
        _download(found, path, pause_s)
        return path
    check_weights(path)
    return path


def check_weights(path: Path) -> None:
    """Compare a file with the digests in its name and beside it; raises CheckpointError where it differs."""
    digest = sha256_file(path)
    if not digest.startswith(_promised(path.name)):
        raise CheckpointError(f"{path}: is not what its name promises; delete it, to fetch it again")
    beside = digest_beside(path)
    if beside not in ("", digest):
        raise CheckpointError(
            f"{path}: differs from its digest in {path.name}{DIGEST_SUFFIX}; delete both, to fetch it again"
        )
    if not beside:
        with contextlib.suppress(PipelineError):  # a folder of others
            write_digest(path, digest)


def weights_path(model: ModelSpec, folder: Path) -> Path | None:
    """Where `fetch_weights` puts or finds what is published by name; None of other weights."""
    found = _published(model)
    return None if found is None else folder / found.file


def weights_facts(model: ModelSpec, path: Path | None) -> dict[str, Any] | None:
    """What a cell says of the weights that it began with; None of random ones."""
    if path is None:
        return None
    return {
        "file": path.name,
        "sha256": digest_beside(path),
        "licence": licence_of(model.name, model.weights),
    }


def _published(model: ModelSpec) -> Published | None:
    if model.name.startswith(PREFIX):
        return published(model.name) if model.weights == "pretrained" else None
    if not model.named_weights:
        return None
    url = _url(model)
    return Published(url, url.rsplit("/", 1)[-1])


def _download(found: Published, path: Path, pause_s: float) -> None:
    def problem(_: Path, digest: str) -> str:
        promised = _promised(path.name)
        return "" if digest.startswith(promised) else f"its SHA-256 begins with {digest[: len(promised)]}"

    try:
        download(found.url, path, problem, token=hub_token() if found.page else "", pause_s=pause_s)
    except WrongContentError as error:
        raise CheckpointError(f"{found.url}: is not what its name promises ({error}); try again") from error
    except TransferError as error:
        raise CheckpointError(_refused(found, path, error)) from error


def _refused(found: Published, path: Path, error: TransferError) -> str:
    """Why it cannot be fetched, and what to do."""
    by_hand = (
        f"put the file at {path} (where there is internet: `curl -fL -o {path.name} {found.url}`), "
        "or set train.model.weights to a file of yours or to none"
    )
    is_unknown = error.headers.get("X-Error-Code") == "RepoNotFound"  # the hub says 401 of what is not there
    if found.page and error.status in (401, 403) and not is_unknown:
        return (
            f"{found.url}: the hub refuses it ({error}); accept its licence at {found.page}, set HF_TOKEN to a "
            f"token of your account and run this again, or {by_hand}"
        )
    if error.status in (401, 403, 404, 410):
        return f"{found.url}: is not there ({error}); name other weights, or {by_hand}"
    kept = f", {error.kept:,} bytes are kept" if error.kept else ""
    return f"{found.url}: cannot be fetched ({error}{kept}); run this verb on a login node with internet, or {by_hand}"


def _promised(name: str) -> str:
    found = _DIGEST_IN_NAME.search(name)
    return found[1] if found else ""


def _url(model: ModelSpec) -> str:
    from torchvision.models import get_model_weights

    known = get_model_weights(model.name)
    if model.weights not in known.__members__:
        names = ", ".join(known.__members__)
        raise SpecError(f"train.model.weights: {model.name} has no weights {model.weights!r}; known: {names}")
    return str(known[model.weights].url)
