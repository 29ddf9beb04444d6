"""Resampled means are exact sums: the number of BLAS threads cannot change a bit of them."""

import os
import subprocess
import sys

import numpy as np

from pipeline.metrics.bootstrap import _means
from tests.conftest import ROOT

DRAW = """
import numpy as np
from pipeline.metrics.bootstrap import bootstrap
rng = np.random.default_rng(0)
scores, targets = rng.random((3000, 6), np.float32), (rng.random((3000, 6)) < 0.2).astype(np.uint8)
found = bootstrap(scores, (scores > 0.5).astype(np.uint8), targets)
print(hash(b"".join(found[name].tobytes() for name in sorted(found))))
"""


def test_the_order_of_addition_does_not_matter():
    rng = np.random.default_rng(1)
    weights_NR, values_N = rng.integers(0, 6, (3000, 40), np.uint8), rng.random(3000)
    order = rng.permutation(3000)
    one = _means(weights_NR, {"a": values_N})["a"]
    np.testing.assert_array_equal(one, _means(weights_NR[order], {"a": values_N[order]})["a"])
    exact = weights_NR.T.astype(np.longdouble) @ values_N.astype(np.longdouble) / 3000
    np.testing.assert_allclose(one, exact.astype(np.float64), atol=1e-11)


def test_threads_do_not_change_a_bit():
    found = set()
    for threads in ("1", "2", "4"):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1
