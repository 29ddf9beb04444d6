"""What cells and jobs cost in billing units, by the ledger: accounted, estimated, or computed from training time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spending:
    """Of one cell; every part None where it is not known."""

    accounted: float | None = None  # by Slurm: elapsed time x what was reserved x price
    estimate: float | None = None  # when it was last submitted
    per_hour: float | None = None
    unit: str = ""

    def text(self, hours: float) -> str:
        """Of a cell that trained for `hours`."""
        estimated = f" (estimate {self.estimate:.2f})" if self.estimate is not None else ""
        if self.accounted is not None:
            return f"{self.accounted:.2f} {self.unit}{estimated}"
        return f"~{hours * self.per_hour:.2f} {self.unit}{estimated}" if self.per_hour else ""


def spending_of_cells(events: Iterable[Mapping[str, Any]]) -> dict[str, Spending]:
    """Of each cell (by folder name) that was submitted where prices are known."""
    accounted: defaultdict[str, float] = defaultdict(float)
    found: dict[str, Spending] = {}
    for event in events:
        if event["event"] == "cost" and event.get("units") is not None:
            for cell in event["cells"]:
                accounted[cell] += event["units"] / len(event["cells"])
        elif "cell" in event and event.get("cost_per_hour"):
            hourly, unit = float(event["cost_per_hour"]), str(event["unit"])
            found[event["cell"]] = Spending(None, event.get("estimate"), hourly, unit)
    return {
        cell: Spending(accounted.get(cell), spent.estimate, spent.per_hour, spent.unit)
        for cell, spent in found.items()
    }


def total_text(events: Iterable[Mapping[str, Any]]) -> str:
    """What all jobs that are over have cost, stages included; "" where that is not known."""
    units: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event["event"] == "cost" and event.get("units") is not None:
            units[event["unit"]] += event["units"]
    return ", ".join(f"{value:.1f} {unit}" for unit, value in units.items())


def clock(hours: float) -> str:
    """`h:mm:ss`, "" of nothing."""
    minutes, seconds = divmod(round(3600 * hours), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if hours else ""
