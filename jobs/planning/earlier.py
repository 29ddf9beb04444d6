"""What the finished cells of an earlier spec or --set mean for a plan. Torch- and numpy-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jobs.planning.plan import Plan, PlannedCell
from pipeline.errors import PipelineError
from pipeline.evaluation.selection import Selection
from pipeline.spec import Spec
from pipeline.spec.identity import canonical, digest
from pipeline.spec.reading import read_spec
from pipeline.storage.files import read_json_or_empty
from pipeline.storage.run_dir import RunDir
from pipeline.storage.tables import read_table


def longer(plan: Plan) -> list[str]:
    """Of new cells that differ from a complete one in `train.epochs` or their own code alone: that they start anew."""
    new = [cell for cell in plan.cells if cell.reason == "new"]
    trained: dict[str, tuple[str, int, str]] = {}
    for name, _ in plan.others() if new else ():
        run = RunDir(plan.experiment.path / name)
        with contextlib.suppress(PipelineError, OSError):
            spec = read_spec(run.spec, root=plan.root).spec
            code = str(read_json_or_empty(run.provenance).get("own_code", ""))
            trained[_but_for_epochs(spec)] = name, spec.train.epochs, code
    found = ((cell, trained.get(_but_for_epochs(cell.cell.spec))) for cell in new)
    return [text for cell, before in found if before and (text := _starts_anew(cell, *before))]


def _starts_anew(cell: PlannedCell, name: str, epochs: int, code: str) -> str:
    """Empty where what differs is neither epochs nor code: data, or a file of weights."""
    if cell.code is not None and cell.code.digest != code:
        tops = ", ".join(cell.code.tops)
        return f"{cell.run.name}: {name} is of other code in {tops}, so this is another cell and starts anew"
    now = cell.cell.spec.train.epochs
    if now == epochs:
        return ""
    return (
        f"{cell.run.name}: {epochs} epochs of it are trained in {name}, but a run of {now} is another cell and "
        "starts anew"
    )


def forgotten(plan: Plan) -> Iterator[str]:
    """That the cells ranked last are of other settings of this spec, while cells of this plan are missing."""
    if not plan.missing:
        return
    spec, _, settings = Selection.read(plan.experiment).made_by.partition(" --set ")
    here, _, now = plan.loaded.command.partition(" --set ")
    if spec != here or not settings or settings == now:
        return
    rows = read_table(plan.experiment.leaderboard)
    ranked = {row["cell"] for row in rows if row.get("in_grid") == "yes"}
    if number := sum(name in ranked for name, _ in plan.others()):
        cells, they = ("cell", "it") if number == 1 else ("cells", "them")
        yield (
            f"{number} finished {cells} of this spec {'is' if number == 1 else 'are'} of --set {settings}; "
            f"repeat it to go on with {they}"
        )


def _but_for_epochs(spec: Spec) -> str:
    train = spec.train.model_copy(update={"epochs": 1})
    return digest([canonical(spec.data), canonical(train)])
