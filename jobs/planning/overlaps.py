"""Whether test sets have pictures of training: asked before anything is trained, again once both are packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs.planning.plan import Plan, PlannedData, data_root
from pipeline.data.overlap import find_equal_files, find_overlap, judge, uses_every_image
from pipeline.spec import DataSpec
from pipeline.storage.files import display_path


def with_own_test(plan: Plan, data: Iterable[PlannedData]) -> Iterator[tuple[PlannedData, PlannedData]]:
    """Each training set that has a test set of its own, with that."""
    for each in data:
        test = plan.test_of(each.data) if each.data.test is not None else None
        if test is not None:
            yield each, test


def check_test_sets(plan: Plan) -> list[str]:
    """What to say of test images that training has; raises DataError where they are not allowed.

    Exact where both sets are packed. Before, equal files are looked for: they are refused at once where
    every image is surely used, else said, since the split decides.
    """
    notes: dict[str, None] = {}
    for trained, test in with_own_test(plan, plan.datasets):
        note = (
            _packed(trained, test)
            if trained.reason is None and test.reason is None
            else _files(plan, trained, test)
        )
        if note is not None:
            notes[note] = None
    return list(notes)


def _packed(trained: PlannedData, test: PlannedData) -> str | None:
    return judge(trained.data, find_overlap(trained.packed, trained.split_file, test.packed))


def _files(plan: Plan, trained: PlannedData, test: PlannedData) -> str | None:
    data: DataSpec = trained.data
    digests = data_root(plan.root) / "digests"
    found = find_equal_files(digests, trained.packed_digest, test.packed_digest)
    if found is None or uses_every_image(data):
        return judge(data, found) if found is not None else None
    if not found.count:
        return None
    source = display_path(Path(data.source))
    return (
        f"data.test: {found.count:,} of its {found.of:,} images are files of {source} too; "
        f"whether they are used decides data.split, so they are looked at again once packed\n{found.named(data)}"
    )
