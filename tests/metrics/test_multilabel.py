"""Metrics against scikit-learn, on random and on degenerate input; thresholds; baselines."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn import metrics as sk

from pipeline.metrics.decision_rule import out_of_fold_decisions
from pipeline.metrics.multilabel import (
    absent_labels,
    all_metrics,
    average_precision,
    image_metrics,
    label_counts,
    per_label,
)
from pipeline.metrics.thresholds import decide, tune_per_label
from pipeline.spec import METRICS, EvaluateSpec


def oracle(scores, predicted, actual):
    """The same names out of scikit-learn."""
    values = {}
    functions = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    for name, function in functions.items():
        for average in ("micro", "weighted", "samples"):
            values[f"{name}_{average}"] = function(actual, predicted, average=average, zero_division=0)
        # absent labels are left out of macro averages
        each = function(actual, predicted, average=None, zero_division=0)[actual.any(axis=0)]
        values[f"{name}_macro"] = each.mean() if len(each) else 0
    values["f1_samples_empty0"] = values.pop("f1_samples")
    values["f1_samples_empty1"] = sk.f1_score(actual, predicted, average="samples", zero_division=1)
    present = actual.any(axis=0)
    values["map_macro"] = (
        sk.average_precision_score(actual[:, present], scores[:, present], average="macro")
        if present.any()
        else 0
    )
    values["map_micro"] = sk.average_precision_score(actual.ravel(), scores.ravel()) if present.any() else 0
    values["label_accuracy"] = 1 - sk.hamming_loss(actual, predicted)
    values["hamming_loss"] = sk.hamming_loss(actual, predicted)
    values["exact_match"] = sk.accuracy_score(actual, predicted)
    rows = [
        sk.f1_score(t, d, average="weighted", zero_division=0) for t, d in zip(actual, predicted, strict=True)
    ]
    values["f1_weighted_both_classes"] = np.mean(rows)
    return values


@st.composite
def problems(draw):
    images, labels = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    bits = npst.arrays(np.uint8, (images, labels), elements=st.integers(0, 1))
    # few distinct scores, so that ties are common
    scores = draw(npst.arrays(np.uint8, (images, labels), elements=st.integers(0, 8))).astype(np.float32) / 8
    return scores, draw(bits), draw(bits)


def compare(scores, predicted, actual):
    ours = all_metrics(scores, predicted, actual)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle(scores, predicted, actual)
    assert set(ours) == set(METRICS) == set(expected) | {"f1_soft_samples"}
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.slow
@given(problems())
def test_every_metric_is_scikit_learn_s_on_small_and_degenerate_input(problem):
    compare(*problem)


def test_every_metric_is_scikit_learn_s_on_a_large_sample():
    rng = np.random.default_rng(0)
    actual = (rng.random((700, 14)) < np.geomspace(0.3, 0.004, 14)).astype(np.uint8)
    scores = (0.3 * actual + 0.7 * rng.random(actual.shape)).astype(np.float32)
    compare(scores, decide(scores, np.full(14, 0.5)), actual)
    tied = np.round(scores, 1)
    compare(tied, decide(tied, np.full(14, 0.5)), actual)


@pytest.mark.parametrize(("images", "labels"), [(20_000, 30), (400, 1500), (1, 3), (256, 1)])
def test_what_is_counted_in_bytes_and_chunks_is_counted_right(images, labels):
    rng = np.random.default_rng(0)
    actual = (rng.random((images, labels)) < 0.9).astype(np.uint8)
    predicted = np.ones_like(actual)
    counts = label_counts(predicted, actual)
    np.testing.assert_array_equal(counts.true_positives, actual.sum(axis=0, dtype=np.int64))
    np.testing.assert_array_equal(counts.predicted, np.full(labels, images))
    scores = rng.random(actual.shape, dtype=np.float32)
    per_image = image_metrics(scores, predicted, actual)
    np.testing.assert_array_equal(per_image["label_accuracy"], (predicted == actual).mean(axis=1))
    np.testing.assert_array_equal(per_image["exact_match"], (predicted == actual).all(axis=1))
    positives = (scores.astype(float) * actual).sum(axis=1)
    soft = 2 * positives / (scores.sum(axis=1, dtype=float) + actual.sum(axis=1))
    np.testing.assert_allclose(per_image["f1_soft_samples"], soft, atol=1e-9)


def test_metrics_take_a_few_bytes_a_score():
    """Every epoch asks for them: an index of 8 bytes a score, or a copy as float64, would be seen here."""
    rng = np.random.default_rng(0)
    actual = (rng.random((20_000, 50)) < 0.05).astype(np.uint8)
    scores = rng.random(actual.shape, dtype=np.float32)
    predicted = decide(scores, np.full(50, 0.5))
    tracemalloc.start()
    all_metrics(scores, predicted, actual)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / scores.size < 12


def test_only_probabilities_are_ranked():
    actual = np.array([[1], [0]], np.uint8)
    assert average_precision(np.array([[-0.0], [0.0]], np.float32), actual).tolist() == [0.5]
    for wrong in (-0.1, np.nan):
        with pytest.raises(ValueError, match="negative or not a number"):
            average_precision(np.array([[wrong], [0.5]], np.float32), actual)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("truth", [0, 1])
def test_all_blank_and_all_full(value, truth):
    shape = (5, 3)
    compare(
        np.full(shape, value, np.float32), np.full(shape, value, np.uint8), np.full(shape, truth, np.uint8)
    )


def test_blank_images_count_by_both_conventions():
    actual = np.array([[0, 0], [1, 0]], np.uint8)
    values = all_metrics(actual.astype(np.float32), actual, actual)
    assert (values["f1_samples_empty0"], values["f1_samples_empty1"]) == (0.5, 1.0)


def test_the_original_s_soft_f1_by_hand():
    scores = np.array([[0.8, 0.4], [0.5, 0.5]], np.float32)
    actual = np.array([[1, 0], [0, 0]], np.uint8)
    precision, recall = 0.8 / 1.2, 0.8
    expected = 2 * precision * recall / (precision + recall) / 2  # the blank image has F1 0
    assert all_metrics(scores, actual, actual)["f1_soft_samples"] == pytest.approx(expected, abs=1e-6)


def test_a_blank_guess_scores_high_with_both_classes_counted():
    actual = np.zeros((10, 14), np.uint8)
    actual[:5, 0] = 1
    values = all_metrics(np.zeros(actual.shape, np.float32), np.zeros_like(actual), actual)
    assert values["f1_weighted_both_classes"] > 0.9
    assert values["f1_micro"] == 0


def test_the_table_per_label_agrees_with_the_averages():
    rng = np.random.default_rng(1)
    actual = (rng.random((50, 3)) < [0.5, 0.2, 0.0]).astype(np.uint8)
    scores = rng.random((50, 3), dtype=np.float32)
    predicted = decide(scores, np.full(3, 0.5))
    rows = per_label(["a", "b", "c"], scores, predicted, actual, np.full(3, 0.5, np.float32))
    assert np.mean([row["f1"] for row in rows if row["support"]]) == pytest.approx(
        all_metrics(scores, predicted, actual)["f1_macro"]
    )
    assert rows[2]["ap"] is None
    assert absent_labels(["a", "b", "c"], actual) == ["c"]
    assert np.isnan(average_precision(scores, actual)[2])


# ---------------------------------------------------------------- thresholds


@given(problems())
def test_no_threshold_beats_the_tuned_one(problem):
    scores, _, actual = problem
    tuned = tune_per_label(scores, actual)
    predicted = decide(scores, tuned)
    candidates = np.unique(np.concatenate([scores.ravel(), [0.0, 0.5, 1.0]]))
    for k in range(actual.shape[1]):
        of_each = sk.f1_score(  # a column for each candidate
            np.repeat(actual[:, [k]], len(candidates), axis=1),
            (scores[:, [k]] >= candidates).astype(np.uint8),
            average=None,
            zero_division=0,
        )
        assert sk.f1_score(actual[:, k], predicted[:, k], zero_division=0) == pytest.approx(max(of_each))
    assert all(tuned[k] == 0.5 for k in range(actual.shape[1]) if not actual[:, k].any())


def test_neighbouring_scores_are_told_apart():
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    scores, actual = np.array([[low], [high]], np.float32), np.array([[0], [1]], np.uint8)
    assert decide(scores, tune_per_label(scores, actual)).tolist() == [[0], [1]]


def test_cross_fitting_does_not_flatter_noise():
    rng = np.random.default_rng(0)
    actual = (rng.random((200, 20)) < 0.02).astype(np.uint8)
    scores = rng.random(actual.shape, dtype=np.float32)
    flattered = decide(scores, tune_per_label(scores, actual))
    honest, _ = out_of_fold_decisions(EvaluateSpec(threshold="per_label"), scores, actual)
    f1 = [
        sk.f1_score(actual, predicted, average="macro", zero_division=0) for predicted in (flattered, honest)
    ]
    assert f1[1] < 0.6 * f1[0]
    again, _ = out_of_fold_decisions(EvaluateSpec(threshold="per_label"), scores, actual)
    np.testing.assert_array_equal(honest, again)
