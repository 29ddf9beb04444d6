"""The user's own code that cells name: found and read, never run. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import SpecError
from pipeline.own.source import OwnFiles, check_call
from pipeline.spec import OwnCall
from pipeline.spec.grid import Cell
from pipeline.spec.reading import Loaded

_GIVEN = 2  # values, before the options: labels and pixels, logits and targets, pictures and a generator


def freeze_own(codes: Iterable[OwnFiles | None], folder: Path) -> None:
    """Put the frozen copies of what cells are made with into `folder`, from which they run."""
    for code in dict.fromkeys(filter(None, codes)):
        code.freeze(folder)


class OwnCodes:
    """The code of a grid's cells, each package read once."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._read: dict[frozenset[str], OwnFiles] = {}
        self._checked: set[OwnCall] = set()

    def of(self, cell: Cell) -> OwnFiles | None:
        """What a cell is made with; None without any. Raises SpecError with the place of what is wrong in the spec."""
        calls = cell.spec.train.own_calls
        if not calls:
            return None
        try:
            for call in calls:
                at = call.key
                if call not in self._checked:
                    check_call(self._loaded.root, call.name, call.options, _GIVEN)
                    self._checked.add(call)
            tops = frozenset(call.top for call in calls)
            if tops not in self._read:
                self._read[tops] = OwnFiles.read(self._loaded.root, tops)
        except SpecError as error:
            raise SpecError(f"{self._loaded.place(at, cell.settings)}: {at}: {error}") from error
        return self._read[tops]
