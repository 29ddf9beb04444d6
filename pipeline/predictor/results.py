"""What a predictor finds: of one picture, and of many, some of which may be broken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import DataError

_NAMED = 3  # broken pictures in a warning


@dataclass(frozen=True)
class Prediction:
    """Scores by label, in [0, 1], and the labels decided on."""

    scores: dict[str, float]
    labels: list[str]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """(label, score) of the `count` highest scores, whether decided on or not."""
        return sorted(self.scores.items(), key=lambda pair: -pair[1])[:count]

    def to_dict(self) -> dict[str, Any]:
        """`{"scores": {label: score}, "labels": [...]}`, ready for JSON."""
        return asdict(self)


class Predictions(Iterable[tuple[str, Prediction]]):
    """(name, prediction) of many pictures, made batch by batch while one goes through them.

    A broken picture is left out and listed in `broken` (name -> reason); at the end a warning counts them.
    """

    def __init__(self, make: Callable[[dict[str, str]], Iterator[tuple[str, Prediction]]]) -> None:
        self._make = make
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Prediction]]:
        self.broken.clear()
        found = 0
        for pair in self._make(self.broken):
            found += 1
            yield pair
        if self.broken:
            some = "; ".join(list(self.broken.values())[:_NAMED])
            rest = f" and {len(self.broken) - _NAMED} more" if len(self.broken) > _NAMED else ""
            text = f"{len(self.broken)} of {found + len(self.broken)} pictures are left out: {some}{rest}"
            if not found:
                raise DataError(text)
            warnings.warn(text, stacklevel=2)
