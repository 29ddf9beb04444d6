"""The shipped specs on the real photographs, shrunken: wrangle, sweep, ImageNet weights, submission."""

import csv
import shutil

import pytest

from tests.cells import jobs
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SMALL = (
    *("data=experiments/data/mirflickr10k.yaml", "data.image_list=ids.txt", "data.size_px=32"),
    *("data.split.train=1-240", "data.split.validation=241-320", "train.epochs=1"),
)


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """A copy of the shipped specs, so that results lie elsewhere."""
    folder = tmp_path_factory.mktemp("real")
    specs = shutil.ignore_patterns("*-*", "ledger*", "logs", "*.csv", "*.html", "selected.json")
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=specs)
    (folder / "ids.txt").write_text("".join(f"{i}\n" for i in range(1, 321)))
    return folder


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_seven_optimizers_to_a_submission_of_500_rows(root, shared):
    settings = (*SMALL, "train.image_px=32", "grid.seeds=[0]")
    status, printed = jobs(
        "submission",
        "experiments/optimizers.yaml",
        "--set",
        *settings,
        cwd=root,
        LABELGRID_SHARED=str(shared),
    )
    assert status == 0, printed
    results = root / "experiments" / "optimizers"
    rows = read_csv(results / "submission.csv")
    assert [row["ids"] for row in rows] == [f"im{i}.jpg" for i in range(20001, 20501)]
    header = "ids,baby,bird,car,clouds,dog,female,flower,male,night,people,portrait,river,sea,tree"
    assert ",".join(rows[0]) == header
    cells = [row for row in read_csv(results / "leaderboard.csv") if row["state"] == "done"]
    assert len(cells) == 2 * 7  # trained with and without negative images
    assert len({row["f1_micro"] for row in cells}) > 1


def test_imagenet_weights_from_a_file_head_only_and_whole(root, shared):
    settings = (
        *SMALL,
        *("train.model.name=mobilenet_v2", f"train.model.weights={shared}/weights/mobilenet_v2-imagenet.pth"),
        *("train.image_px=64", "name=pretrained", "run.save_every_min=60"),
        "grid={cells: [{train.model.trainable: head}, {train.model.trainable: all}]}",
    )
    status, printed = jobs(
        "grid", "experiments/architectures.yaml", "--set", *settings, cwd=root, LABELGRID_SHARED=str(shared)
    )
    assert status == 0, printed
    rows = {row["cell"]: row for row in read_csv(root / "experiments" / "pretrained" / "leaderboard.csv")}
    prior = float(rows["baseline-prior"]["map_macro"])
    for name in ("mobilenet_v2-head", "mobilenet_v2-all"):
        (cell,) = (row for cell, row in rows.items() if cell.startswith(name))
        assert float(cell["map_macro"]) > 1.3 * prior, printed
