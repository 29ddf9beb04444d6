"""What a launch may cost. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jobs.clusters.billing import cost_per_hour, unit_of
from jobs.clusters.profile import Profile
from jobs.planning.cost import cell_hours
from jobs.planning.plan import Plan, PlannedCell
from jobs.planning.status import CellStatus
from jobs.planning.tasks import resources_for
from jobs.slurm.batches import Batch
from jobs.slurm.costs import Units, in_words


@dataclass
class Forecast:
    """What jobs will cost, by unit: cells by finished ones of their kind, everything else at its time limit."""

    known: int = 0  # cells whose time can be told
    cells: int = 0
    about: Units = field(default_factory=lambda: defaultdict(float))
    most: Units = field(default_factory=lambda: defaultdict(float))  # every job to its time limit, once
    unknown: list[str] = field(default_factory=list)  # partitions without a known price
    trained_in: set[str] = field(default_factory=set)  # the units of training jobs
    of_cells: dict[str, float] = field(default_factory=dict)  # units of each cell whose time can be told

    def text(self) -> str:
        """One line."""
        if self.unknown:
            return f"cost: unknown (no price is known of {', '.join(dict.fromkeys(self.unknown))})"
        most = f"at most {in_words(self.most)} with every job to its time limit"
        if not self.known:
            return f"cost: {most}; no estimate"
        rest = f"{self.known} of {self.cells} cells by their estimate, all other jobs to their time limits"
        return f"cost: about {in_words(self.about)} ({rest}); {most}"


def forecast(plan: Plan, profile: Profile, batches: Iterable[Batch], cluster: str) -> Forecast:
    """What these jobs will cost."""
    batches = list(batches)
    cells = [cell for batch in batches for group in batch.cells for cell in group]
    hours = cell_hours(plan, profile, cells, cluster)
    found = Forecast()
    for batch in batches:
        hourly = cost_per_hour(batch.resources, profile)
        if hourly is None:
            found.unknown.append(f"partition {batch.resources.partition or 'that the site chooses'}")
            continue
        unit, limit = unit_of(batch.resources, profile), batch.resources.time_min / 60
        found.most[unit] += hourly * limit * len(batch.tasks)
        if not batch.cells:
            found.about[unit] += hourly * limit
        for group in batch.cells:
            at_once = min(resources_for(group[0], profile).concurrent_cells, len(group))
            taken = {c.run.name: hours[c.run.name] / at_once for c in group if c.run.name in hours}
            if batch.condition == "each":  # goes on only with what the job before it has left
                found.about[unit] += 0.0 if len(taken) == len(group) else hourly * limit
                continue
            found.about[unit] += hourly * (sum(taken.values()) if len(taken) == len(group) else limit)
            found.cells += len(group)
            found.known += len(taken)
            found.trained_in.add(unit)
            found.of_cells |= {name: hourly * share for name, share in taken.items()}
    return found


def committed(plan: Plan, profile: Profile, cells: Sequence[CellStatus], cluster: str) -> Units:
    """What the jobs of cells that are queued or running already may still cost."""
    hours = cell_hours(plan, profile, [cell.planned for cell in cells], cluster)
    jobs: dict[str | None, list[PlannedCell]] = {}
    for cell in cells:
        jobs.setdefault(cell.job, []).append(cell.planned)
    found: Units = defaultdict(float)
    for group in jobs.values():
        own = resources_for(group[0], profile)
        known = [hours[c.run.name] for c in group if c.run.name in hours]
        limit = own.train.time_min / 60
        taken = sum(known) / min(own.concurrent_cells, len(group)) if len(known) == len(group) else limit
        found[unit_of(own.train, profile)] += taken * (cost_per_hour(own.train, profile) or 0.0)
    return found
