"""What a cell is: a digest of everything that can change its result, and of nothing else. Torch-free."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.spec import IMAGENET, TrainSpec, needs_decisions


def canonical(section: BaseModel) -> dict[str, Any]:
    """The fields that differ from the default they were introduced with, nested likewise.

    A default that changes later must name the first one: `Field(default=new,
    json_schema_extra={"introduced": old})`. A tag (`name: adam`) always stays in.
    """
    result: dict[str, Any] = {}
    for name, introduced in _introduced(type(section)):
        value = getattr(section, name)
        is_tag = name in ("name", "format", "method")
        if is_tag or introduced is PydanticUndefined or value != introduced:
            result[name.rstrip("_")] = _canonical_value(value)
    return result


def _canonical_value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_canonical_value(item) for item in value]
    return canonical(value) if isinstance(value, BaseModel) else value


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `dotted.key -> value`; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@functools.cache
def _introduced(section: type[BaseModel]) -> list[tuple[str, Any]]:
    """Each field of the identity and its first default."""
    found = []
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("identity") is not False:
            default = field.get_default(call_default_factory=True)
            found.append((name, extra.get("introduced", default)))
    return found


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value; equal values give equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def pixel_versions(train: TrainSpec, *, is_augmented: bool = True) -> dict[str, Any]:
    """What of this program's making of inputs differs from its first way; empty where nothing does.

    `is_augmented` is False of pictures as they are scored. A change of pixels raises the version of the
    cells it reaches, and of them alone: they are trained again, and no features of both kinds are mixed.
    """
    augment, versions = train.augment, dict[str, Any]()
    is_sampled = augment.crop is not None or augment.rotate_deg != 0
    # the sharpness operation ran in half precision where features were cached
    was_rounded = train.cached_views is not None and augment.trivial_augment
    if is_augmented and (is_sampled or was_rounded):
        versions["augment_version"] = 2
    mean, std, interpolation = train.model.preprocessing
    if (mean, std) != IMAGENET[:2]:
        versions["normalisation"] = (mean, std)
    if interpolation != IMAGENET.interpolation:
        versions["interpolation"] = interpolation
    return versions


def _rule_versions(train: TrainSpec) -> dict[str, Any]:
    """What of the choice of the best epoch differs from its first way."""
    # ties keep the lower loss, and epochs without a decision do not wait; other monitors hardly tie
    return {"monitor_version": 2} if needs_decisions(train.monitor) else {}


def cell_identity(
    train: TrainSpec, data_digest: str, weights_digest: str | None, code_digest: str | None = None
) -> str:
    """The identity of a cell: its training settings, the content of its data, its weights file, its user's own code."""
    settings = canonical(train) | pixel_versions(train) | _rule_versions(train)
    if weights_digest is not None:
        settings["model"] = canonical(train.model) | {"weights": f"sha256:{weights_digest}"}
    if code_digest is not None:
        settings["own_code"] = code_digest
    return digest({"data": data_digest, "train": settings})
