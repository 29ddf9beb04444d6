"""Submission to Slurm through submitit: batches with native dependencies; refusals explained."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import ledger
from jobs.clusters.profile import Profile, Resources, cost_per_hour, gpu_count
from jobs.planning.tasks import resources_for
from jobs.slurm.batches import Batch
from jobs.slurm.job import FinalJob
from jobs.slurm.queue import cancel
from pipeline.errors import LaunchError, SpecError
from pipeline.storage.run_dir import ExperimentDir

# what sbatch says -> the likely cause and what to type
_REFUSALS = (
    (
        r"AssocMaxSubmitJobLimit|AssocGrpSubmitJobsLimit|QOSMaxSubmitJobPerUserLimit",
        "too many jobs are queued already, or the account is missing, used up or not yours here; look with "
        "`squeue --me` and `sacctmgr show assoc user=$USER format=Account,Partition,MaxJobs,MaxSubmit -p`; "
        'SET="cluster.max_submit=N" packs more cells into fewer jobs',
    ),
    (
        r"[Ii]nvalid account|no account given",
        'name your project: export LABELGRID_ACCOUNT=... or SET="cluster.account=..."',
    ),
    (r"time limit is invalid", 'ask for less time (SET="cluster.train.time_min=...") or another partition'),
    (
        r"node configuration is not available",
        'this partition has no node with that (`sinfo -o "%P %G"`); correct SET="cluster.train.gres=..." '
        "and cluster.train.partition",
    ),
    (r"[Mm]emory specification", 'ask for less memory: SET="cluster.train.mem_gb=..."'),
    (r"[Ii]nvalid job array|array size|INDEX", 'the array is too long here: SET="cluster.max_array=..."'),
    (r"[Ii]nvalid qos", 'choose another: SET="cluster.train.qos=..."'),
    (
        r"[Ii]nvalid partition|No partition specified",
        'name one that exists: SET="cluster.train.partition=... cluster.cpu.partition=..."',
    ),
    (r"[Nn]ode count", "this partition gives one node a job; ask for no more"),
    (
        r"[Uu]nable to contact|Connection refused|timed out|configuration source",
        "Slurm does not answer; try again later",
    ),
)


def refuse_early(profile: Profile, cluster: str, batches: Sequence[Batch]) -> None:
    """What the profile knows to be impossible, before sbatch is asked; a SpecError lists all of it."""
    profile.job_account(cluster)
    wrong = [f"{batch.key}: {what}" for batch in batches for what in _impossible(batch.resources, profile)]
    if wrong:
        unique = "\n  ".join(dict.fromkeys(wrong))
        raise SpecError(f"cluster {cluster} cannot give what is requested:\n  {unique}")


def _impossible(resources: Resources, profile: Profile) -> Iterator[str]:
    if not profile.partitions or resources.partition is None:
        return
    allowed = profile.partitions.get(resources.partition)
    if allowed is None:
        yield f"no partition {resources.partition!r}; known: {', '.join(profile.partitions)}"
        return
    if resources.time_min > allowed.max_min:
        yield f"{resources.time_min} min; {resources.partition} allows {allowed.max_min} (time_min)"
    gres = resources.gres or ""
    if "gpu" in gres and (allowed.gres is None or allowed.gres not in gres):
        yield f"gres {gres}; {resources.partition} has {allowed.gres or 'no GPUs'}"
    gpus = gpu_count(resources.gres, resources.gpus_per_node)
    if profile.gpus_per_node and gpus > profile.gpus_per_node:
        yield f"{gpus} GPUs; a node has {profile.gpus_per_node}"
    share = gpus * (profile.cores_per_gpu or resources.cpus)
    if gpus and resources.cpus > share:
        yield f"{resources.cpus} cores; {gpus} GPUs come with {share}; lower cpus"


@contextlib.contextmanager
def launch_lock(experiment: ExperimentDir) -> Iterator[None]:
    """One submission of an experiment at a time; a second waits, and then sees the first one's jobs."""
    experiment.path.mkdir(parents=True, exist_ok=True)
    with (experiment.path / ".submit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Submitter:
    """Where and how batches are submitted."""

    profile: Profile
    cluster: str
    experiment: ExperimentDir
    code: Path  # the snapshot jobs import from
    code_digest: str

    def submit(self, batches: Sequence[Batch]) -> dict[str, list[str]]:
        """Job ids by batch key. All or none: a refusal cancels what was queued before it, and leaves no file."""
        ids: dict[str, list[str]] = {}
        events: list[dict[str, Any]] = []
        folder = self.experiment.slurm
        before = set(folder.iterdir()) if folder.exists() else set()
        try:
            for batch in batches:
                tasks = [_with_cell_jobs(task, events) for task in batch.tasks]
                ids[batch.key] = self._sbatch(batch, tasks, ids)
                events += self._events(batch, ids[batch.key])
        except BaseException:  # Ctrl-C too: half a sweep must not stay queued
            cancel(job.split("_")[0] for jobs in ids.values() for job in jobs)
            for path in set(folder.iterdir()) - before if folder.exists() else ():
                path.unlink()
            raise
        ledger.append_all(self.experiment.ledger, events)
        return ids

    def script(self, batch: Batch) -> str:
        """The sbatch script to the letter, with `<key>` for ids that are not known yet."""
        from submitit.slurm.slurm import _make_sbatch_string

        parameters = self.parameters(batch, {})
        if len(batch.tasks) > 1:
            parameters["map_count"] = len(batch.tasks)
        command = f"{self._python()} -u -m submitit.core._submit {shlex.quote(str(self.experiment.slurm))}"
        return _make_sbatch_string(command=command, folder=self.experiment.slurm, **parameters)

    def parameters(self, batch: Batch, ids: dict[str, list[str]]) -> dict[str, Any]:
        """The settings handed to submitit."""
        resources = batch.resources
        extra: dict[str, Any] = {"chdir": str(self.experiment.slurm), **resources.sbatch}
        extra["requeue" if batch.requeue else "no-requeue"] = True
        before = [job for key in batch.after for job in ids.get(key, [key if key.isdigit() else f"<{key}>"])]
        # arrays by their id alone: one dependency instead of a thousand
        waits = list(dict.fromkeys(job.split("_")[0] for job in before))
        if waits:
            extra["kill-on-invalid-dep"] = "yes"
        settings = {
            "job_name": f"labelgrid-{self.experiment.path.name}-{batch.key}",
            "account": self.profile.job_account(self.cluster),
            "partition": resources.partition,
            "time": resources.time_min,
            "cpus_per_task": resources.cpus,
            "mem": f"{resources.mem_gb * 1024:.0f}M" if resources.mem_gb else None,
            "gres": resources.gres,
            "gpus_per_node": resources.gpus_per_node,
            "qos": resources.qos,
            "constraint": resources.constraint,
            # the frozen code, and nothing of the folder the job starts in
            "setup": [*self.profile.setup, f"export PYTHONPATH={shlex.quote(str(self.code))}"],
            "signal_delay_s": min(self.profile.signal_s, 30 * resources.time_min),
            "dependency": f"{batch.condition}:{':'.join(waits)}" if waits else None,
            "array_parallelism": batch.throttle,
            "stderr_to_stdout": True,
            "srun_args": [
                f"--cpus-per-task={resources.cpus}"
            ],  # newer Slurm no longer hands them on by itself
            "additional_parameters": extra,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _sbatch(self, batch: Batch, tasks: Sequence[Any], ids: dict[str, list[str]]) -> list[str]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = SlurmExecutor(
                self.experiment.slurm, max_num_timeout=self.profile.max_timeouts, python=self._python()
            )
            executor.update_parameters(**self.parameters(batch, ids))
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except (FailedJobError, FailedSubmissionError) as error:
            raise LaunchError(explain_refusal(str(error), batch, self.cluster)) from error
        except RuntimeError as error:
            raise LaunchError(f"{error} (CLUSTER=local runs on this machine)") from error
        return [job.job_id for job in jobs]

    def _python(self) -> str:
        return self.profile.python or shlex.quote(sys.executable)

    def _price(self, resources: Resources, concurrent_cells: int) -> dict[str, Any]:
        """What an hour of one of so many cells costs, where the site's prices are known."""
        price = self.profile.billing
        return (
            {"cost_per_hour": cost_per_hour(resources, self.profile) / concurrent_cells, "unit": price.unit}
            if price
            else {}
        )

    def _events(self, batch: Batch, jobs: Sequence[str]) -> list[dict[str, Any]]:
        common = {"event": "submitted", "cluster": self.cluster, "code": self.code_digest}
        if not batch.cells:
            submits = any(isinstance(task, FinalJob) and task.submission for task in batch.tasks)
            stage = {"stage": batch.key, "packed": list(batch.packs), "submission": submits}
            return [common | stage | {"jobs": list(jobs)}]
        return [
            common
            | {"cell": c.run.name, "identity": c.identity, "jobs": [job], "mem_gb": batch.resources.mem_gb}
            | self._price(batch.resources, min(resources_for(c, self.profile).concurrent_cells, len(cells)))
            for job, cells in zip(jobs, batch.cells, strict=True)
            for c in cells
        ]


def _with_cell_jobs(task: Any, events: Sequence[dict[str, Any]]) -> Any:
    """The final job learns which job each cell has, to ask Slurm about those that cannot say why they ended."""
    if not isinstance(task, FinalJob):
        return task
    known = dict(task.cell_jobs) | {e["cell"]: e["jobs"][-1] for e in events if "cell" in e}
    return replace(task, cell_jobs=tuple(known.items()))


def explain_refusal(error: str, batch: Batch, cluster: str) -> str:
    """sbatch's refusal with its likely cause and what to type."""
    messages = [line.split("error:")[-1].strip() for line in error.splitlines() if "error:" in line.lower()]
    text = "; ".join(dict.fromkeys(messages)) or error.strip()[-300:]
    hint = next(
        (hint for pattern, hint in _REFUSALS if re.search(pattern, text)), "ask your site, or see `make plan`"
    )
    return f"cluster {cluster} refuses {batch.key}: {text}\n  {hint}"
