"""Continuation jobs where a site forbids requeueing: a job whose cells are complete takes its own out of the queue."""

from __future__ import annotations

import os
import re

from jobs.slurm.commands import ask, this_cluster
from jobs.slurm.queue import cancel
from jobs.slurm.records import Proof, Submitted, this_user
from pipeline.errors import LaunchError

_MOST = 100


def release() -> None:
    """Inside a job whose cells are all complete: cancel the jobs that wait to go on with them. Never raises.

    They would find nothing to do, but wait for a GPU first, and the leaderboard with them.
    """
    name = os.environ.get("SLURM_JOB_NAME", "")
    match = re.fullmatch(r"(.*-train-\d+)(?:-more-(\d+))?-([0-9a-f]{6})", name)
    if match is None:
        return
    later = [f"{match[1]}-more-{run}-{match[3]}" for run in range(int(match[2] or 0) + 1, _MOST)]
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        names = ",".join([name, *later])
        listed = ask("squeue", "-a", "--me", "-h", "-r", "-o", "%i|%T|%j|%Z", f"--name={names}")
        rows = [line.split("|", 3) for line in listed.splitlines() if line.count("|") >= 3]
        folder = next((row[3] for row in rows if row[2] == name), "")  # of this very job
        mine = [
            (number, called)
            for number, state, called, where in rows
            if state == "PENDING"
            and (where == folder and called != name)
            and (task is None or number.endswith(f"_{task}"))
        ]
        cluster = this_cluster().name if mine else ""
        proofs = [(number, Proof(cluster, called, this_user(), folder)) for number, called in mine]
        for problem in cancel(Submitted(number, proof) for number, proof in proofs).values():
            print(f"note: {problem}", flush=True)
    except LaunchError as error:  # they end by themselves, once they have begun
        print(f"note: continuation jobs stay queued ({error})", flush=True)
