"""A submission of several cells, as typed: mean scores, one rule, the user's pick before both."""

import csv

import numpy as np
import pytest

from pipeline.metrics.decision_rule import DecisionRule
from pipeline.predictor import Predictor
from pipeline.spec import EvaluateSpec
from tests.cells import jobs, project

pytestmark = pytest.mark.slow

BACKBONES = """grid:
  cells:
    - {train.model.name: mobilenet_v3_small, train.image_px: 48}
    - {train.model.name: timm/test_vit, train.image_px: 64, train.model.head: {name: csra}}
evaluate: {threshold: expected_f1, calibrate: platt}
submission: {cells: {top: 2}}
"""
TEXT = """grid: {seeds: [0, 1]}
evaluate: {threshold: expected_f1, calibrate: platt}
submission: {cells: {top: 2}}
"""


def decisions(folder):
    with (folder / "submission.csv").open(newline="") as file:
        return np.array([[int(value) for value in row[1:]] for row in list(csv.reader(file))[1:]])


def mean(folder, name, cells):
    found = [np.load(folder / cell / name)["scores"] for cell in cells]
    return np.mean(found, axis=0, dtype=np.float64).astype(np.float32)


def expected(folder, cells):
    rule_of = mean(folder, "scores_val.npz", cells)
    targets = np.load(folder / cells[0] / "scores_val.npz")["targets"]
    rule = DecisionRule.fit(EvaluateSpec(threshold="expected_f1", calibrate="platt"), rule_of, targets)
    return rule(mean(folder, "scores_test.npz", cells))


def predicted_as_submitted(model, test, folder, cells):
    """What `Predictor` makes of a folder, whose scores must be the mean of the cells'; the order of its names."""
    found = [prediction for _, prediction in model.folder(test)]
    scores = np.array([list(prediction.scores.values()) for prediction in found])
    with np.load(folder / cells[0] / "scores_test.npz") as file:
        order = np.argsort(file["names"])
    np.testing.assert_allclose(scores, mean(folder, "scores_test.npz", cells)[order], atol=1e-5)
    return found, order


def test_a_submission_averages_its_cells_until_the_user_picks_one(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip, TEXT, epochs=2)
    status, text = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, text
    folder = tmp_path / "experiments" / "x"
    cells = sorted(path.parent.name for path in folder.glob("*/scores_val.npz"))
    assert len(cells) == 2
    assert "from the mean scores of" in text
    np.testing.assert_array_equal(decisions(folder), expected(folder, cells))
    model = Predictor.load(folder, device="cpu")  # in Python the same mean, the same rule
    found, order = predicted_as_submitted(model, drawn_zip.test, folder, cells)
    labels = [[label in one.labels for label in model.labels] for one in found]
    np.testing.assert_array_equal(labels, decisions(folder)[order])

    assert jobs("select", spec, "--run", cells[0], cwd=tmp_path)[0] == 0
    status, text = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, text
    assert f"from {cells[0]}, highest expected F1" in text
    assert (
        f"note: the submission is of your pick {cells[0]} alone, not of submission.cells; `labelgrid select"
        in text
    )
    np.testing.assert_array_equal(decisions(folder), expected(folder, cells[:1]))


def test_members_of_other_backbones_sizes_and_inputs_are_averaged(tmp_path, drawn_zip):
    """torchvision's at 48 px and timm's at 64, each on pictures normalised as its own weights want them."""
    spec = project(tmp_path, drawn_zip, BACKBONES, epochs=1)
    status, text = jobs("submission", spec, cwd=tmp_path)
    assert status == 0, text
    folder = tmp_path / "experiments" / "x"
    cells = sorted(path.parent.name for path in folder.glob("*/scores_val.npz"))
    assert [name.partition("-")[0] for name in cells] == ["mobilenet_v3_small", "test_vit"]
    np.testing.assert_array_equal(decisions(folder), expected(folder, cells))
    model = Predictor.load(folder, device="cpu")
    assert {(one.image_px, one.preprocessing.mean[0]) for one in model.scorers} == {(48, 0.485), (64, 0.5)}
    found, order = predicted_as_submitted(model, drawn_zip.test, folder, cells)
    scores = np.array([list(prediction.scores.values()) for prediction in found])
    one = np.load(folder / cells[0] / "scores_test.npz")["scores"]
    assert not np.allclose(scores, one[order], atol=1e-3)  # it is no member's alone
