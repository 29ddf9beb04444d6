"""The table of verbs, and where each is done: on this machine, or through Slurm."""

from __future__ import annotations

from collections.abc import Callable

from jobs.commands import manage as steering
from jobs.commands import run as here
from jobs.commands import show as looking
from jobs.commands import submit as remote
from jobs.commands.request import Request


def _grid(request: Request) -> int:
    """Run or submit every missing cell, then rank all of them."""
    return here.grid(request) if request.profile.scheduler == "local" else remote.grid(request)


def _submission(request: Request) -> int:
    """Everything up to the checked submission.csv of the selected cell."""
    return here.submission(request) if request.profile.scheduler == "local" else remote.submission(request)


VERBS: dict[str, Callable[[Request], int]] = {
    "wrangle": here.wrangle,
    "grid": _grid,
    "evaluate": here.evaluate,
    "select": here.select,
    "predict": here.predict,
    "submission": _submission,
    "report": here.report,
    "status": looking.status,
    "plan": looking.plan,
    "doctor": looking.doctor,
    "logs": looking.logs,
    "cancel": steering.cancel,
    "retry": steering.retry,
    "prune": steering.prune,
}
