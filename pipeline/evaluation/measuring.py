"""The finished cells of an experiment: read where they are measured already, else measured on all cores. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from pipeline.errors import CheckpointError, PipelineError
from pipeline.evaluation.cell import evaluate_cell, kept_cell
from pipeline.evaluation.kept import CellEvaluation
from pipeline.spec import EvaluateSpec
from pipeline.storage.host import cores, memory_available
from pipeline.storage.processes import in_processes
from pipeline.storage.run_dir import RunDir

_FEW = 2**22  # bytes of scores that are measured sooner than processes start
_PROCESS = 2**28  # bytes a process needs
_PER_BYTE = 32  # and for each byte of a cell's scores: a few times what is measured
Found = CellEvaluation | CheckpointError | None


def evaluate_cells(
    runs: Sequence[RunDir], evaluate: EvaluateSpec, only: Collection[str] | None = None
) -> list[Found]:
    """Of each run what was found, or the error that names its damaged artifact; results do not depend on the cores.

    With `only`, cells that were validated on none of these (`Validation.digest`) are None. A process holds
    the scores of one cell at a time, and returns none. Raises PipelineError where one dies.
    """
    found: dict[RunDir, Found] = {run: _kept(run, evaluate) for run in runs}
    missing = [run for run in runs if found[run] is None]
    try:
        found |= zip(missing, _measured(missing, evaluate, only), strict=True)
    except BrokenProcessPool as error:
        raise PipelineError(
            f"{runs[0].path.parent}: a process that measured cells died, probably out of memory; give the "
            "evaluation more memory, or fewer cores (what is measured already is kept)"
        ) from error
    foreign = [
        run
        for run, cell in found.items()
        if only is not None and isinstance(cell, CellEvaluation) and cell.images not in only
    ]
    return list((found | dict.fromkeys(foreign)).values())


def _measured(
    runs: Sequence[RunDir], evaluate: EvaluateSpec, only: Collection[str] | None
) -> Iterator[Found]:
    calls = [(run, evaluate, only) for run in runs]
    workers = _workers([run.scores_val.stat().st_size for run in runs if run.scores_val.exists()])
    return in_processes(_measure, calls, workers) if workers > 1 else (_measure(*call) for call in calls)


def _workers(sizes: Sequence[int]) -> int:
    """How many processes measure cells whose scores have these bytes; 1: this one."""
    if sum(sizes) < _FEW:
        return 1
    return min(cores(), len(sizes), memory_available() // (_PROCESS + _PER_BYTE * max(sizes)))


def _kept(run: RunDir, evaluate: EvaluateSpec) -> Found:
    try:
        return kept_cell(run, evaluate)
    except CheckpointError as error:
        return error


def _measure(run: RunDir, evaluate: EvaluateSpec, only: Collection[str] | None) -> Found:
    try:
        return evaluate_cell(run, evaluate, only)
    except CheckpointError as error:
        return error
