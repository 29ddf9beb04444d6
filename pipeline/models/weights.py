"""Pretrained weights, fetched ahead where the internet is, and checked."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

from pipeline.errors import CheckpointError, SpecError
from pipeline.spec import ModelSpec
from pipeline.storage.files import sha256_file


def fetch_weights(model: ModelSpec, folder: Path) -> Path | None:
    """The file of a model's weights: None for `none`, the file itself, or torchvision's in `folder`.

    What torchvision names is downloaded unless it is there, and must match the digest in its name.
    Raises SpecError for a name torchvision does not know, CheckpointError when it cannot be fetched.
    """
    if model.weights == "none":
        return None
    if model.weights_file is not None:
        return Path(model.weights_file)
    url = _url(model)
    path = folder / url.rsplit("/", 1)[-1]
    from torch.hub import HASH_REGEX, download_url_to_file

    match = HASH_REGEX.search(path.name)
    if path.exists():
        if match and not sha256_file(path).startswith(match[1]):
            raise CheckpointError(f"{path}: is not what its name promises; delete it, to fetch it again")
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # into a temporary file, renamed once its digest fits
        download_url_to_file(url, str(path), match[1] if match else None, progress=False)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"{url}: cannot be fetched ({reason}); run this verb where there is internet (a login node), "
            f"or put the file at {path}, or set train.model.weights to a file of yours or to none"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"{url}: is not what its name promises ({error}); try again") from error
    return path


def _url(model: ModelSpec) -> str:
    from torchvision.models import get_model_weights

    known = get_model_weights(model.name)
    if model.weights not in known.__members__:
        names = ", ".join(known.__members__)
        raise SpecError(f"train.model.weights: {model.name} has no weights {model.weights!r}; known: {names}")
    return str(known[model.weights].url)
