"""A folder per label. Torch- and numpy-free."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.labels.table import LabelNumbers, LabelTable, sort_labels
from pipeline.data.references import ImageRef
from pipeline.errors import DataError
from pipeline.spec import FolderLabels


def read_folders(images: Sequence[ImageRef], place: str, labels: FolderLabels) -> LabelTable:
    """Each image has the label that the folder above it is called."""
    numbers = LabelNumbers()
    table = LabelTable([], place, lists_all_labels=True, merge_copies=True)
    for image in images:
        parts = image.member.split("/")
        if len(parts) <= labels.level:
            raise DataError(
                f"{place}: {image.member} has no folder {labels.level} above it, so no label; "
                "correct labels.level or the images' name pattern"
            )
        table.add(image.member, [numbers[parts[-1 - labels.level]]])
    return sort_labels(table, numbers)
