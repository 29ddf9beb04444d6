"""On a real cluster: what jobs have cost stands beside what was estimated."""

import re

import pytest

from tests.slurm.conftest import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm-away")]

BILLING = "cluster.billing={unit: BU, gpu_hour: 3600, core_hour: 36}"  # a GPU second is one unit


def accounted(lab):
    """Units of every job of the project that is over, counted from sacct alone."""
    columns = "ElapsedRaw,AllocTRES,WorkDir"
    lines = lab.slurm("sacct", "-X", "-D", "-a", "-n", "-P", "-S", "now-1day", "-o", columns).splitlines()
    rows = [line.split("|") for line in lines if str(lab.root) in line]
    return sum(int(seconds) * (("gres/gpu=1" in tres) + 0.01) for seconds, tres, _ in rows)


def test_what_jobs_have_cost_stands_beside_the_estimate_in_status_and_report(lab):
    some = lab("grid: {seeds: [1, 2]}", epochs=2)
    printed = some.ok("grid", BILLING)
    # two cells of 240 min, the final job of 60 min
    assert (
        f"cost: at most {2 * 240 * 60 * 1.01 + 60 * 60 * 0.01:.1f} BU with every job to its time limit"
        in printed
    )
    some.settle()
    spec = some.root / "experiments" / "x.yaml"
    spec.write_text(spec.read_text().replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    printed = some.ok("grid", BILLING)
    assert "(1 of 1 cells by their estimate, all other jobs to their time limits)" in printed, printed
    some.settle()
    shown = some.until(
        lambda: re.search(r"cost so far: ([\d.]+) BU for all jobs", some.ok("status", BILLING))
    )
    assert float(shown[1]) == pytest.approx(accounted(some), abs=0.11)
    printed = some.ok("status", BILLING)
    assert re.search(r" [\d.]+ BU \(estimate [\d.]+\) ", printed), printed
    assert "were estimated for 1 cell" in printed
    page = some.experiment.report.read_text()
    assert len(re.findall(r"[\d.]+ BU \(estimate [\d.]+\)", page)) == 1
    assert len(re.findall(r">[\d.]+ BU<", page)) == 2, "no estimate was there for the first two"
    costs = [event for event in some.events("cost") if event["cells"]]
    assert len({event["job"] for event in costs}) == len(costs) == 3
    status, printed = some.run("grid", BILLING, "train.epochs=3", "run.budget_units=30", base=SETTINGS)
    assert status == 2
    assert re.search(
        r"run.budget_units allows 30 BU; [\d.]+ are spent, 0.0 may go to cells that are queued", printed
    )
