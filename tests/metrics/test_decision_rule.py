"""Rules that turn scores into decisions, against brute force, enumeration and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from pipeline.metrics.calibration import ece, fit_calibration
from pipeline.metrics.decision_rule import DecisionRule, out_of_fold_decisions
from pipeline.metrics.expected_f1 import maximise_expected_f1
from pipeline.metrics.multilabel import all_metrics
from pipeline.metrics.thresholds import decide, tune
from pipeline.spec import EvaluateSpec


@st.composite
def problems(draw, labels=2):
    images = draw(st.integers(1, 7))
    bits = npst.arrays(np.uint8, (images, labels), elements=st.integers(0, 1))
    scores = draw(npst.arrays(np.uint8, (images, labels), elements=st.integers(0, 8))).astype(np.float32) / 8
    return scores, draw(bits)


def best_by_trying(metric, scores, actual):
    cuts = [np.append(np.unique(column), 2.0) for column in scores.T]
    tried = (decide(scores, np.array(cut, np.float32)) for cut in itertools.product(*cuts))
    return max(all_metrics(scores, predicted, actual)[metric] for predicted in tried)


@given(problems())
def test_thresholds_for_micro_f1_are_the_best_there_are(problem):
    scores, actual = problem
    present = actual.any(axis=0)  # an absent label keeps 0.5
    scores = np.where(present, scores, 0)
    reached = all_metrics(scores, decide(scores, tune("f1_micro", scores, actual)), actual)["f1_micro"]
    assert reached == pytest.approx(best_by_trying("f1_micro", scores, actual))


@given(npst.arrays(np.float32, (5, 2), elements=st.floats(0, 1, width=16)))
def test_probabilities_may_stand_for_labels_and_are_cut_at_half_of_the_f1_they_reach(scores):
    def expected_f1(predicted, chance):
        sizes = predicted.sum() + chance.sum(dtype=np.float64)
        return 2 * (predicted * chance).sum(dtype=np.float64) / sizes if sizes else 0.0

    micro, macro = (decide(scores, tune(metric, scores, scores)) for metric in ("f1_micro", "f1_macro"))
    cuts = [np.append(np.unique(column), 2.0) for column in scores.T]
    every = [decide(scores, np.array(cut, np.float32)) for cut in itertools.product(*cuts)]
    reached = expected_f1(micro, scores)
    assert reached == pytest.approx(max(expected_f1(predicted, scores) for predicted in every))
    for k in range(2):
        best = max(expected_f1(predicted[:, k], scores[:, k]) for predicted in every)
        assert expected_f1(macro[:, k], scores[:, k]) == pytest.approx(best)
    assert (scores[micro == 1] >= reached / 2 - 1e-6).all()
    assert (scores[micro == 0] <= reached / 2 + 1e-6).all()


def test_a_rule_on_what_is_expected_uses_labels_for_the_calibration_alone():
    scores, actual = overconfident(images=200)
    settings = {"threshold": "per_label", "tune_for": "f1_micro", "calibrate": "platt"}
    rule, on_labels = (
        DecisionRule.fit(EvaluateSpec(tune_on=on, **settings), scores, actual)
        for on in ("expected", "labels")
    )
    chance = rule.calibration(scores)
    np.testing.assert_array_equal(rule.thresholds_K, tune("f1_micro", chance, chance))
    assert (rule.thresholds_K != on_labels.thresholds_K).all()
    assert "expected f1_micro" in rule.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threshold": 0.4, "calibrate": "platt"}, "tunes thresholds, not 0.4; write per_label"),
        ({"threshold": "per_label"}, "takes scores for probabilities; write calibrate: platt"),
        (
            {"threshold": "per_label", "calibrate": "platt", "tune_for": "f1_samples_empty1"},
            "knows f1_micro and f1_macro, not f1_samples_empty1; .*or threshold: expected_f1",
        ),
    ],
)
def test_what_has_no_expectation_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        EvaluateSpec(tune_on="expected", **settings)


@pytest.mark.parametrize("metric", ["f1_samples_empty0", "f1_samples_empty1"])
def test_no_single_threshold_improves_those_for_f1_per_image(metric):
    rng = np.random.default_rng(0)
    for _ in range(20):
        actual = (rng.random((30, 4)) < 0.25).astype(np.uint8)
        scores = np.round(0.4 * actual + 0.6 * rng.random(actual.shape), 1).astype(np.float32)
        tuned = tune(metric, scores, actual)
        reached = all_metrics(scores, decide(scores, tuned), actual)[metric]
        for k, cut in itertools.product(range(4), np.append(np.unique(scores), 2)):
            changed = tuned.copy()
            changed[k] = cut
            assert all_metrics(scores, decide(scores, changed), actual)[metric] <= reached + 1e-9
        for other in ("f1_macro", "f1_micro"):
            predicted = decide(scores, tune(other, scores, actual))
            assert all_metrics(scores, predicted, actual)[metric] <= reached + 1e-9


@given(npst.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)), st.sampled_from([0.0, 1.0]))
def test_no_decision_has_a_higher_expected_f1(scores, empty_f1):
    every = np.array(list(itertools.product([0, 1], repeat=4)))
    sizes = every.sum(1)[:, None] + every.sum(1)
    f1 = np.where(sizes == 0, empty_f1, 2 * (every @ every.T) / np.maximum(sizes, 1))  # decision x truth
    chance = np.prod(
        np.where(every[None], scores[:, None].astype(float), 1 - scores[:, None].astype(float)), axis=2
    )
    expected = chance @ f1.T  # image x decision
    predicted = maximise_expected_f1(scores, empty_f1)
    index = (predicted * [8, 4, 2, 1]).sum(1)
    np.testing.assert_allclose(expected[np.arange(3), index], expected.max(axis=1), atol=1e-9)


def test_a_rightly_blank_image_is_worth_what_is_said():
    unsure = np.full((1, 3), 0.2, np.float32)
    assert maximise_expected_f1(unsure, 1.0).sum() == 0
    assert maximise_expected_f1(unsure, 0.0).sum() == 3
    assert maximise_expected_f1(np.zeros((1, 3), np.float32), 0.0).sum() == 0


def overconfident(images=3000, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, (images, 3))
    actual = (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(np.uint8)
    return (1 / (1 + np.exp(-(2.5 * z + 1)))).astype(np.float32), actual


def test_platt_scaling_is_scikit_learn_s_regression_on_platt_s_targets():
    scores, actual = overconfident()
    found = fit_calibration("platt", scores, actual)
    logit = np.log(scores / (1 - scores.astype(float)))
    for k in range(3):
        positives = int(actual[:, k].sum())
        high, low = (positives + 1) / (positives + 2), 1 / (len(actual) - positives + 2)
        soft = np.where(actual[:, k], high, low)  # a soft target is two rows with weights
        model = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000)
        x = np.concatenate([logit[:, [k]]] * 2)
        model.fit(x, np.repeat([1, 0], len(actual)), sample_weight=np.concatenate([soft, 1 - soft]))
        assert found.slope_K[k] == pytest.approx(model.coef_[0, 0], rel=1e-3)
        assert found.intercept_K[k] == pytest.approx(model.intercept_[0], rel=5e-3)
    assert found.slope_K == pytest.approx(0.4, abs=0.05)


def test_calibration_makes_scores_probabilities_and_leaves_what_it_knows_nothing_of():
    scores, actual = overconfident()
    assert ece(fit_calibration("platt", scores, actual)(scores), actual) < 0.02 < ece(scores, actual)
    temperature = fit_calibration("temperature", scores, actual)
    assert (temperature.intercept_K == 0).all()
    assert ece(temperature(scores), actual) < ece(scores, actual)
    absent = fit_calibration("platt", scores, np.zeros_like(actual))
    np.testing.assert_array_equal(absent(scores), scores)
    separable = np.array([[0.1], [0.2], [0.8]], np.float32)
    assert np.isfinite(
        fit_calibration("temperature", separable, (separable > 0.5).astype(np.uint8)).slope_K
    ).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.5},
        {"threshold": "per_label", "tune_for": "f1_samples_empty1"},
        {"threshold": "per_label", "tune_for": "f1_micro", "tune_on": "expected", "calibrate": "platt"},
        {"threshold": "expected_f1", "calibrate": "platt"},
    ],
)
def test_cross_fitting_decides_each_image_by_a_rule_that_never_saw_it(settings):
    scores, actual = overconfident(images=200)
    evaluate = EvaluateSpec(**settings)
    predicted, calibrated = out_of_fold_decisions(evaluate, scores, actual)
    flipped = actual.copy()
    flipped[0] = 1 - flipped[0]  # what is true of an image does not reach its own decision
    again, _ = out_of_fold_decisions(evaluate, scores, flipped)
    np.testing.assert_array_equal(predicted[0], again[0])
    rule = DecisionRule.fit(evaluate, scores, actual)
    assert calibrated.shape == rule.calibration(scores).shape
    assert (rule(scores) == predicted).mean() > 0.9
