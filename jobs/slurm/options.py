"""A batch as options of sbatch: what submitit is told, and the script that comes of it. Torch-free."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.clusters.billing import requested
from jobs.clusters.profile import Profile
from jobs.planning.status import Want
from jobs.slurm.batches import Batch
from jobs.slurm.job import HOLD, SETUP
from pipeline.spec.identity import digest
from pipeline.storage.run_dir import ExperimentDir


@dataclass(frozen=True)
class Options:
    """What every job of a launch has in common."""

    profile: Profile
    cluster: str  # the profile's name
    experiment: ExperimentDir
    code: Path  # the snapshot jobs import from
    code_digest: str
    token: str  # of this launch, in the name of each of its jobs

    def name(self, batch: Batch) -> str:
        """The job's name, which no other launch gives."""
        return f"labelgrid-{self.experiment.path.name}-{batch.key}-{self.token}"

    @property
    def folder(self) -> Path:
        """Where jobs start, and submitit keeps its files."""
        return self.experiment.slurm

    @property
    def python(self) -> str:
        """What starts Python in a job."""
        return f"{HOLD} {self.profile.python or shlex.quote(sys.executable)}"

    def script(self, batch: Batch, ids: Mapping[str, Sequence[str]] | None = None) -> str:
        """The sbatch script to the letter, with `<key>` for numbers that are not known yet."""
        from submitit.slurm.slurm import _make_sbatch_string

        parameters = self.parameters(batch, ids or {})
        if len(batch.tasks) > 1:
            parameters["map_count"] = len(batch.tasks)
        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        return _make_sbatch_string(command=command, folder=self.folder, **parameters)

    def parameters(self, batch: Batch, ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The settings handed to submitit."""
        resources = batch.resources
        own = {key.replace("_", "-"): value for key, value in resources.sbatch.items()}
        theirs = own.pop("dependency", None)
        first = batch.condition != "each"  # a continuation waits for a job that has waited for theirs
        depends = ",".join(filter(None, [_dependency(batch, ids), theirs if first else None]))
        several = requested(resources).nodes > 1
        extra: dict[str, Any] = {"chdir": str(self.folder)}
        extra["requeue" if batch.requeue else "no-requeue"] = True
        if depends:
            extra["kill-on-invalid-dep"] = "yes"
        dropped = {key for key, value in own.items() if value in (None, "", False)}
        extra = {key: value for key, value in (extra | own).items() if key not in dropped}
        settings = {
            "job_name": self.name(batch),
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
            "setup": [*SETUP, *self.profile.setup, f"export PYTHONPATH={shlex.quote(str(self.code))}"],
            "signal_delay_s": min(batch.signal_s, 30 * resources.time_min),
            "dependency": depends or None,
            "array_parallelism": batch.throttle,
            "stderr_to_stdout": True,
            # one on each node, which starts the processes there: those of a node then see each other's GPUs
            "ntasks_per_node": 1 if several else None,
            "srun_args": [
                f"--cpus-per-task={resources.cpus}",  # newer Slurm no longer hands them on by itself
                *(["--kill-on-bad-exit=1"] if several else []),
            ],
            "additional_parameters": extra,
        }
        kept = {n: v for n, v in settings.items() if v is not None and n.replace("_", "-") not in dropped}
        return kept | ({"wckey": None} if "wckey" in dropped else {})


def _dependency(batch: Batch, ids: Mapping[str, Sequence[str]]) -> str:
    before = [job for key in batch.after for job in ids.get(key, [key if key[:1].isdigit() else f"<{key}>"])]
    # arrays by their id alone: one dependency instead of a thousand
    waits = ":".join(dict.fromkeys(job.split("_")[0] for job in before))
    if not waits:
        return ""
    if batch.condition == "each" and len(batch.tasks) > 1:
        # a task that ends well lets its own continuation begin; of those that were killed, or failed, Slurm can
        # only say so once the whole array is over
        return f"aftercorr:{waits}?afterany:{waits}"
    return f"{'afterany' if batch.condition == 'each' else batch.condition}:{waits}"


def want_of(profile: Profile, code_digest: str) -> Want:
    """How a cell of these resources would be run now: a job that failed is tried again once any of it differs."""
    train = profile.train
    settings = [code_digest, list(profile.setup), profile.python, list(profile.scratch), train.model_dump()]
    return Want(digest(settings), train.mem_gb)
