"""Rules that turn scores into decisions, against brute force, enumeration and scikit-learn."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from pipeline.metrics.calibration import ece, fit_calibration
from pipeline.metrics.decision_rule import DecisionRule, Validation, out_of_fold_decisions
from pipeline.metrics.expected_f1 import maximise_expected_f1, quadrature
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


def general_maximiser(p_NK, empty_f1):
    """Dembczynski, Waegeman, Cheng & Huellermeier (2011): the gain of each label among m, of any m, summed up."""
    images, labels = p_NK.shape
    sizes = np.arange(1, labels + 1)
    # joint[n, k, s - 1]: the probability that label k is true and s labels are
    joint = np.stack([p_NK[:, [k]] * numbers_true(np.delete(p_NK, k, axis=1)) for k in range(labels)], axis=1)
    gain = joint @ (2 / (sizes[:, None] + sizes[None, :]))
    order = np.argsort(-gain, axis=1, kind="stable")
    best = np.take_along_axis(gain, order, axis=1)
    negative = empty_f1 * np.prod(1 - p_NK, axis=1)
    per_size = [negative, *(best[:, : m + 1, m].sum(axis=1) for m in range(labels))]
    chosen = np.argmax(np.stack(per_size, axis=1) - 1e-12 * np.arange(labels + 1), axis=1)
    decisions = np.zeros((images, labels), np.uint8)
    for n, m in enumerate(chosen):
        decisions[n, order[n, :m, m - 1]] = 1
    return decisions


def numbers_true(p_NK):
    """(N, K + 1): the probability of each number of true labels (Poisson binomial)."""
    counts = np.zeros((len(p_NK), p_NK.shape[1] + 1))
    counts[:, 0] = 1
    for k, p_N in enumerate(p_NK.T):
        counts[:, 1 : k + 2] = counts[:, 1 : k + 2] * (1 - p_N)[:, None] + counts[:, : k + 1] * p_N[:, None]
        counts[:, 0] *= 1 - p_N
    return counts


@pytest.mark.parametrize("labels", [1, 2, 12, 13, 40])
@pytest.mark.parametrize("empty_f1", [0.0, 1.0])
def test_expected_f1_decides_as_the_general_maximiser(labels, empty_f1):
    rng = np.random.default_rng(labels)
    for scores in (
        rng.random((200, labels)) ** 6,
        rng.random((200, labels)) ** 0.2,
        rng.choice([0, 0.02, 0.1, 0.3, 0.5, 1], (200, labels)),  # of tied scores all or none
    ):
        scores = scores.astype(np.float32)
        expected = general_maximiser(scores.astype(float), empty_f1)
        np.testing.assert_array_equal(maximise_expected_f1(scores, empty_f1), expected)


@pytest.mark.parametrize("labels", [1, 5, 12, 13, 100, 1000, 5000])
def test_the_nodes_integrate_every_power_of_the_integrand(labels):
    x_Q, weight_Q = quadrature(labels)
    powers = np.arange(2 * labels)
    found = np.array([weight_Q @ np.exp(power * np.log1p(-x_Q)) for power in powers])
    np.testing.assert_allclose(found * (powers + 1), 1, rtol=0, atol=4e-15)


def test_expected_f1_of_many_labels_is_bounded_in_memory():
    rng = np.random.default_rng(0)
    scores = (rng.random((40, 2000)) ** 8).astype(np.float32)
    tracemalloc.start()
    predicted = maximise_expected_f1(scores)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25  # the general maximiser holds 8 x 2000 x 2000 bytes of an image
    lowest_chosen = np.where(predicted == 1, scores, 2).min(axis=1)
    assert (lowest_chosen > np.where(predicted == 0, scores, -1).max(axis=1)).all()


def test_thresholds_for_f1_per_image_take_a_few_bytes_a_score():
    scores, actual = (np.tile(part, (1, 40)) for part in overconfident(images=500))
    tracemalloc.start()
    tune("f1_samples_empty1", scores, actual)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / scores.size < 14


def test_equal_validations_have_equal_digests_and_each_is_made_once(monkeypatch):
    def validation(ids="ab", labels="xyz", targets=((0, 1, 1), (1, 0, 0))):
        targets_NK = np.array(targets, np.uint8)
        return Validation(list(ids), list(labels), np.zeros(targets_NK.shape, np.float32), targets_NK)

    first = validation()
    assert first.digest == validation().digest
    others = (
        validation(ids="ba"),
        validation(labels="xzy"),
        validation(targets=((0, 1, 1), (1, 0, 1))),
        validation(ids="abc", labels="xy", targets=((0, 1), (1, 1), (0, 0))),
    )
    assert len({first.digest, *(other.digest for other in others)}) == 5
    monkeypatch.setattr("pipeline.metrics.decision_rule.digest", None)
    assert first.digest


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
