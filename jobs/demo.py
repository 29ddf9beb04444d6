"""`make demo`: draw a data set and take it through the whole pipeline."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.cluster import load_profile
from jobs.graph import data_root
from jobs.here import submission
from jobs.request import Request
from pipeline.files import shown
from pipeline.specfile import read_spec

SPEC = Path(__file__).resolve().parent.parent / "experiments" / "demo.yaml"


def demo() -> int:
    """Draw, wrangle, train, evaluate, submit; say what to look at and what to type next."""
    from pipeline.data.drawn import draw

    started = time.monotonic()
    loaded = read_spec(SPEC)
    drawn = draw(data_root(loaded.root) / "raw")
    print(f"drawn: {shown(drawn.train)} and {shown(drawn.test)}", flush=True)
    status = submission(Request(loaded, "local", load_profile("local")))
    if status:
        return status  # stopped or failed, which has been said: there may be nothing to look at
    results = loaded.root / "experiments" / loaded.spec.name
    spec = shown(SPEC)
    print(f"""
{time.monotonic() - started:.0f} s. Look at:
  {shown(results)}/report.html
  {shown(results)}/submission.csv
Type next:
  make grid SPEC={spec} SET="train.epochs=20"     a longer run; what is whole is not done again
  make select SPEC={spec} RUN=<cell>              another cell for the submission
  .venv/bin/tensorboard --logdir experiments/     the curves
  make data                                       MIRFLICKR-25000, for experiments/optimizers.yaml""")
    return status
