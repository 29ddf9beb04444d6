"""The table of verbs, and where each is done: on this machine, or through Slurm."""

from __future__ import annotations

from collections.abc import Callable

from jobs.commands import manage, run, show, submit
from jobs.commands.request import Request


def _grid(request: Request) -> int:
    """Run or submit every missing cell, then rank all of them."""
    return run.grid(request) if request.profile.scheduler == "local" else submit.grid(request)


def _submission(request: Request) -> int:
    """Everything up to the checked submission.csv of the selected cell."""
    return run.submission(request) if request.profile.scheduler == "local" else submit.submission(request)


VERBS: dict[str, Callable[[Request], int]] = {
    "wrangle": run.wrangle,
    "grid": _grid,
    "evaluate": run.evaluate,
    "select": run.select,
    "predict": run.predict,
    "submission": _submission,
    "report": run.report,
    "status": show.status,
    "plan": show.plan,
    "doctor": show.doctor,
    "logs": show.logs,
    "cancel": manage.cancel,
    "retry": manage.retry,
    "prune": manage.prune,
}
