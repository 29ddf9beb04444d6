"""Bootstrap, paired comparisons and calibration against scikit-learn, brute force and closed forms."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pipeline.metrics import resampling
from pipeline.metrics.bootstrap import (
    Contender,
    bootstrap,
    compare,
    holm,
    intervals,
    over_seeds,
    two_sided_p,
)
from pipeline.metrics.calibration import Calibration, reliability
from pipeline.metrics.multilabel import all_metrics, average_precision
from pipeline.metrics.resampling import image_keys, resample_weights, weighted_average_precision
from pipeline.seeding import seeded
from pipeline.spec import METRICS


def sample(images=300, seed=0):
    rng = np.random.default_rng(seed)
    actual = (rng.random((images, 5)) < [0.4, 0.2, 0.1, 0.05, 0]).astype(np.uint8)
    scores = np.round(0.3 * actual + 0.7 * rng.random(actual.shape), 2).astype(np.float32)  # with ties
    return scores, (scores > 0.5).astype(np.uint8), actual


def weights_of(images):
    """(N, R)"""
    return np.concatenate(list(resample_weights(images)), axis=1)


def test_a_resample_is_the_metric_of_the_images_drawn():
    scores, predicted, actual = sample()
    resampled = bootstrap(scores, predicted, actual)
    for r in (0, 17, 999):
        rows = np.repeat(np.arange(len(actual)), weights_of(len(actual))[:, r])
        expected = all_metrics(scores[rows], predicted[rows], actual[rows])
        assert {name: resampled[name][r] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_the_draws_are_the_rows_of_one_multinomial_however_many_are_held(monkeypatch):
    """Cells are compared by them, and those of earlier versions with those of this one."""
    expected_RN = seeded(0, "bootstrap", 40).multinomial(40, np.full(40, 1 / 40), 1000)
    np.testing.assert_array_equal(weights_of(40).T, expected_RN)
    whole = bootstrap(*sample(images=40))
    monkeypatch.setattr(resampling, "_HELD", 40 * 300)
    assert [part.shape[1] for part in resample_weights(40)] == [300, 300, 300, 100]
    np.testing.assert_array_equal(weights_of(40).T, expected_RN)
    in_parts = bootstrap(*sample(images=40))
    for name in METRICS:
        np.testing.assert_allclose(in_parts[name], whole[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("heaviest", [15, 4000])
def test_sums_of_weights_do_not_overflow(heaviest):
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((500, 1), dtype=np.float32), 2)
    actual = (rng.random(scores.shape) < 0.3).astype(np.uint8)
    weights = np.full((500, 3), heaviest, np.uint8 if heaviest < 16 else np.uint16)
    weights[:, 1] = rng.integers(0, heaviest, 500)
    keys = np.sort(image_keys(scores, actual).ravel())
    expected = [sk.average_precision_score(actual, scores, sample_weight=weight_N) for weight_N in weights.T]
    np.testing.assert_allclose(weighted_average_precision(weights, keys), expected, atol=1e-12)


def test_the_bootstrap_takes_a_few_bytes_a_score(monkeypatch):
    """An index of 8 bytes, a float32 of each resample, or counts of 4 kB an image would be seen here."""
    monkeypatch.setattr(resampling, "RESAMPLES", 64)
    scores, predicted, actual = (np.tile(part, (50, 4)) for part in sample())
    list(resample_weights(len(actual)))
    tracemalloc.start()
    bootstrap(scores, predicted, actual)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * scores.size + 2**25


def test_weighted_average_precision_is_scikit_learn_s():
    scores, predicted, actual = sample()
    weight_N = weights_of(len(actual))[:, 3]
    present = actual.any(axis=0)
    expected = sk.average_precision_score(actual[:, present], scores[:, present], sample_weight=weight_N)
    assert bootstrap(scores, predicted, actual)["map_macro"][3] == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_mean_is_the_closed_form_s():
    scores, predicted, actual = sample(images=2000)
    found = intervals(bootstrap(scores, predicted, actual))
    exact = (predicted == actual).all(axis=1)
    half = 1.96 * exact.std() / math.sqrt(len(exact))
    assert found["exact_match_lo"] == pytest.approx(exact.mean() - half, abs=0.004)
    assert found["exact_match_hi"] == pytest.approx(exact.mean() + half, abs=0.004)


def test_holm_by_hand_and_against_bonferroni():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    p = np.random.default_rng(0).random(20) ** 3
    assert all(h <= min(1, 20 * q) for h, q in zip(holm(p), p, strict=True))


def test_p_is_that_of_a_paired_z_test_and_equals_are_not_told_apart():
    rng = np.random.default_rng(0)
    right_N = rng.random((2, 3000)) < [[0.72], [0.70]]
    weights_RN = weights_of(3000).T.astype(float)
    a, b = (
        Contender(name, (row.mean(),), weights_RN @ row / 3000)
        for name, row in zip("ab", right_N, strict=True)
    )
    (row,) = compare([b, a], "exact_match", lower_is_better=False)
    difference_N = right_N[0].astype(float) - right_N[1]
    z = difference_N.mean() / (difference_N.std() / math.sqrt(3000))
    assert (row["a"], row["b"]) == ("a", "b")
    assert row["p"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=0.25)
    (same,) = compare([a, Contender("c", a.values, a.resampled_R)], "exact_match", lower_is_better=False)
    assert (same["p"], same["verdict"]) == (1, "no significant difference")


def test_seeds_that_scatter_make_a_difference_less_sure():
    flat = np.full(10, 0.0)
    calm = [Contender("a", (0.60, 0.60), flat + 0.6), Contender("b", (0.5, 0.5), flat + 0.5)]
    wild = [Contender("a", (0.75, 0.45), flat + 0.6), Contender("b", (0.5, 0.5), flat + 0.5)]
    assert compare(calm, "f1_micro", lower_is_better=False)[0]["verdict"] == "a is better"
    assert compare(wild, "f1_micro", lower_is_better=False)[0]["verdict"] == "no significant difference"
    assert compare(calm, "hamming_loss", lower_is_better=True)[0]["a"] == "b"
    assert over_seeds([{"x": 1.0}, {"x": 3.0}], ["x"]) == pytest.approx({"x_mean": 2, "x_sd": math.sqrt(2)})


def test_scores_that_are_probabilities_have_no_calibration_error():
    rng = np.random.default_rng(0)
    scores = rng.random((20000, 3)).astype(np.float32)
    actual = (rng.random(scores.shape) < scores).astype(np.uint8)
    found = reliability(scores, actual)
    assert found["ece"] < 0.01
    assert reliability(scores**2, actual)["ece"] > 0.1
    share, mean = zip(*[(row["share_true"], row["mean_score"]) for row in found["reliability"]], strict=True)
    assert share == pytest.approx(mean, abs=0.02)
    assert reliability(np.ones((2, 2), np.float32), np.ones((2, 2), np.uint8))["ece"] == 0


def test_calibration_copies_some_rows_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, 50), dtype=np.float32)
    actual = (rng.random(scores.shape) < scores).astype(np.uint8)
    calibration = Calibration(np.full(50, 0.7), np.full(50, -0.1))
    whole, error = calibration(scores), reliability(scores, actual)["ece"]
    monkeypatch.setattr("pipeline.metrics.calibration._AT_ONCE", 30_000)
    tracemalloc.start()
    in_parts, error_in_parts = calibration(scores), reliability(scores, actual)["ece"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(in_parts, whole)
    assert error_in_parts == pytest.approx(error, abs=1e-12)
    assert peak / scores.size < 8


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 10, 200, 50_000, np.inf])
def test_student_s_t_is_scipy_s(freedom):
    for t in (0.0, 0.5, 1.9, 4.3, 12.7, 40.0):
        expected = 2 * (stats.t.sf(t, freedom) if np.isfinite(freedom) else stats.norm.sf(t))
        assert two_sided_p(t, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_are_told_apart_in_five_of_a_hundred_sweeps(seeds):
    """By simulation: 15, 10 and 7 % of them under a normal distribution."""
    rng = np.random.default_rng(seeds)
    sweeps, wrong = 4000, 0
    images_R = rng.normal(size=400)
    for _ in range(sweeps):
        # scores of a recipe: luck of training, and of the images, which is smaller and partly shared
        both = [Contender(n, tuple(rng.normal(0, 0.02, seeds)), 0.003 * images_R * (n == "a")) for n in "ab"]
        a, b = (
            (c.name, tuple(np.add(c.values, rng.normal(0, 0.003) * (c.name == "a"))), c.resampled_R)
            for c in both
        )
        (row,) = compare([Contender(*a), Contender(*b)], "f1_micro", lower_is_better=False)
        wrong += row["p"] < 0.05
    assert 0.02 <= wrong / sweeps <= 0.065


def test_a_recipe_with_one_seed_is_never_called_better():
    rng = np.random.default_rng(0)
    once, thrice = (0.9,), (0.5, 0.51, 0.49)
    noise_R = rng.normal(0, 0.001, 500)
    for values, covers, verdict in (
        (((0.9,), (0.5,)), "images", "a leads on these images"),
        ((once, thrice), "images, seeds of one", "a leads on these images"),
        (((0.9, 0.91, 0.89), thrice), "images and seeds", "a is better"),
    ):
        (row,) = compare(
            [Contender("a", values[0], noise_R), Contender("b", values[1], -noise_R)],
            "f1_micro",
            lower_is_better=False,
        )
        assert (row["covers"], row["verdict"]) == (covers, verdict)


def test_counts_beyond_float32_are_exact():
    """2**24 is the largest whole number below which float32 can count by ones."""
    scores = 2**24 + 2**22
    rng = np.random.default_rng(0)
    scores_N = np.linspace(1, 0, scores, dtype=np.float32)
    actual_N = rng.random(scores) < 0.001
    actual_N1 = actual_N[:, None].astype(np.uint8)
    keys = np.sort(image_keys(scores_N[:, None], actual_N1).ravel())
    (weighted,) = weighted_average_precision(np.ones((scores, 1), np.uint8), keys)
    (plain,) = average_precision(scores_N[:, None], actual_N1)
    assert weighted == pytest.approx(plain, rel=1e-12)
