"""Code of the user's own in a spec: `package.module:function`, and the options it is called with. Torch-free."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.spec.fields import IMPORT_PATH, OWN, Section


class Options(dict[str, Any]):
    """Keyword arguments, hashable as sections are."""

    def __hash__(self) -> int:  # type: ignore[override]  # it is never changed after reading
        return hash(json.dumps(self, sort_keys=True, default=str))


class OwnCall(NamedTuple):
    """A function of the user's and its options, at a key of the spec."""

    key: str
    name: str
    options: Options

    @property
    def top(self) -> str:
        """The package (or single module) that holds it."""
        return self.name.partition(":")[0].partition(".")[0]


def is_own(name: str) -> bool:
    """Whether a name is that of code of the user's own."""
    return ":" in name


def checked_path(name: Any) -> Any:
    """A validator: a name with a colon is an import path."""
    if isinstance(name, str) and is_own(name) and not re.fullmatch(IMPORT_PATH, name):
        raise ValueError(f"code of your own is named {OWN}, e.g. mylab.nets:build")
    return name


OptionsOf = Annotated[dict[str, Any], AfterValidator(Options)]


class OwnCode(Section):
    """A function of your own, in a package beside `experiments/` (docs/extending.md)."""

    name: Annotated[str, Field(pattern=IMPORT_PATH), BeforeValidator(checked_path)]
    """`package.module:function`, found in the project's folder."""
    options: OptionsOf = Field(default_factory=Options)
    """Keyword arguments of the function."""


def own_calls(model: Any, loss: Any, augmentation: OwnCode | None) -> tuple[OwnCall, ...]:
    """Of the sections of a recipe, those that name code of the user's own."""
    named = (("train.model", model), ("train.loss", loss), ("train.augment.own", augmentation))
    return tuple(
        OwnCall(key, section.name, Options(section.options))
        for key, section in named
        if section is not None and is_own(section.name)
    )


def refuse_misfits(name: str, options: Any, trainable: str) -> None:
    """Raises ValueError where a network of the user's own, or another one, is asked for what it cannot have."""
    if not is_own(name):
        if options:
            raise ValueError(f"options are those of a network of your own; {name} has none")
    elif trainable == "last_stage":
        raise ValueError("the stages of a network of your own are not known; name a part, e.g. blocks.3")
