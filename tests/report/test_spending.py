"""What cells and jobs cost, as the report shows it."""

from pipeline.report.spending import Spending, spending_of_cells, total_text

PRICED = {"event": "submitted", "cell": "a", "cost_per_hour": 70.0, "unit": "BU"}


def cost(job, units, *cells, unit="BU"):
    return {
        "event": "cost",
        "name": "n",
        "job": job,
        "cells": list(cells),
        "hours": 1.0,
        "units": units,
        "unit": unit,
    }


def test_what_slurm_accounted_goes_before_training_time_and_stands_beside_the_estimate():
    events = [PRICED, PRICED | {"cell": "b", "estimate": 9.0}, cost("1", 4.0, "b"), cost("2", 8.0, "b", "c")]
    found = spending_of_cells(events)
    assert found == {"a": Spending(None, None, 70.0, "BU"), "b": Spending(8.0, 9.0, 70.0, "BU")}
    assert found["a"].text(0.1) == "~7.00 BU"
    assert found["b"].text(0.1) == "8.00 BU (estimate 9.00)"
    assert Spending().text(1.0) == ""


def test_the_total_is_of_all_jobs_by_unit():
    events = [PRICED, cost("1", 4.0, "a"), cost("2", 0.5), cost("3", 2.0, unit="CPU BU"), cost("4", None)]
    assert total_text(events) == "4.5 BU, 2.0 CPU BU"
    assert total_text([PRICED]) == ""
