"""Test labels meet those that were trained: by their names, whatever the order, and differences are said."""

import numpy as np
import pytest

from pipeline.evaluation.submission import score_test
from pipeline.metrics.multilabel import all_metrics

TRAINED = ["dog", "sky", "tree"]
SCORES = np.array([[0.9, 0.2, 0.4], [0.1, 0.7, 0.8], [0.6, 0.1, 0.3]], np.float32)
DECISIONS = (SCORES >= 0.5).astype(np.uint8)
TRUTH = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0]], np.uint8)


def scored(labels, truth_NK):
    metrics, lines = score_test(TRAINED, SCORES, DECISIONS, labels, np.asarray(truth_NK, np.uint8))
    return metrics, "\n".join(lines)


def test_equal_labels_are_scored_and_nothing_else_is_said():
    metrics, text = scored(TRAINED, TRUTH)
    assert metrics == all_metrics(SCORES, DECISIONS, TRUTH)
    assert text.startswith("  the true labels of these images are known: f1_micro ")
    assert "\n" not in text


def test_another_order_gives_the_same_score():
    metrics, text = scored(["tree", "dog", "sky"], TRUTH[:, [2, 0, 1]])
    assert metrics == all_metrics(SCORES, DECISIONS, TRUTH)
    assert "\n" not in text


def test_a_trained_label_that_the_test_set_lacks_counts_as_absent_and_is_named():
    metrics, text = scored(["tree", "dog"], TRUTH[:, [2, 0]])
    assert metrics == all_metrics(SCORES, DECISIONS, TRUTH * np.array([1, 0, 1], np.uint8))
    assert "  not among the test labels, so counted as absent from every test image: sky" in text


def test_a_test_label_that_was_not_trained_is_left_out_and_named():
    extra = np.hstack([TRUTH, np.ones((3, 2), np.uint8)])
    metrics, text = scored([*TRAINED, "cat", "sun"], extra)
    assert metrics == all_metrics(SCORES, DECISIONS, TRUTH)
    assert "  not trained, so left out of the score: cat, sun" in text


@pytest.mark.parametrize(("labels", "said"), [(["Dog", "Tree"], "no name in common"), ([], "")])
def test_without_a_common_label_there_is_no_score(labels, said):
    metrics, text = scored(labels, np.ones((3, len(labels))))
    assert metrics is None
    assert said in text
    if labels:
        assert "trained: dog, sky, tree; in the test set: Dog, Tree" in text
    else:
        assert text == ""
