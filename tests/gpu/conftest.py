import pytest

from pipeline.data.packed import PackedSet
from pipeline.data.pixel_cache import forget_pixels
from pipeline.data.splits import read_split
from pipeline.training.attempt import Attempt
from pipeline.training.learner import CellData, Learner
from tests.cells import one_cell, project


@pytest.fixture
def learner(tmp_path, drawn_zip, drawn):
    """A maker of learners, in this process, on the drawn set; equal settings are the same cell."""
    made = []
    _, folder, split_file = drawn
    split = read_split(split_file)
    # features beside the tests' own project: others copy the drawn set
    packed, features = PackedSet.open(folder), tmp_path / "features"
    data = CellData(packed, split.train, split.validation, features)
    forget_pixels()

    def make(*settings, weights=None, **train):
        spec = project(tmp_path, drawn_zip, name="x", **{"precision": "fp32", **train})
        cell = one_cell(spec, "run.threads=1", *settings)
        made.append(Learner(cell.cell.spec, Attempt(cell.run, cell.identity), data, weights=weights))
        return made[-1]

    yield make
    forget_pixels()
    for each in made:
        each.tracker.close()
