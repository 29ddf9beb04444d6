"""A project killed at random moments of every stage, on this machine, ends as one that never was.

LABELGRID_KILLS (default 6, `make torture`: 200) says how many times in all, LABELGRID_SEED which moments.
"""

import os
from collections import Counter

import pytest

from tests.torture.chain import differences, outcome, torture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torture")]

KILLS = int(os.environ.get("LABELGRID_KILLS", "6"))
SEED = int(os.environ.get("LABELGRID_SEED", "0"))
PER_PROJECT = 20  # then the outcome is compared, and a new project begun


@pytest.fixture(scope="module")
def straight(undisturbed):
    """What comes of a project that nobody disturbs."""
    return outcome(undisturbed[1])


def test_whatever_is_killed_whenever_the_outcome_is_the_same(straight, tmp_path, drawn_zip):
    hits, project = Counter(), 0
    while hits.total() < KILLS:
        root = tmp_path / f"p{project}"
        hits += torture(root, drawn_zip, min(PER_PROJECT, KILLS - hits.total()), seed=1000 * SEED + project)
        assert differences(straight, outcome(root)) == [], f"project {project} of seed {SEED}"
        project += 1
    print(f"\n{hits.total()} kills in {project} projects survived: {dict(hits)}")
    assert hits["train"] > 0
