"""Requests that cannot be: what is known to be impossible before sbatch is asked, and sbatch's refusals explained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.clusters.billing import gpu_count, requested
from jobs.clusters.profile import Partition, Profile, Resources
from jobs.slurm.batches import Batch
from jobs.slurm.commands import SlurmSilentError, ask
from pipeline.errors import SpecError
from pipeline.storage.typed import option, typed

# what sbatch says -> the likely cause and what to type, in the words of make
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
# options of sbatch that are set by a field of their own, from which plan, price and checks are made
_OWN_FIELDS = {
    **dict.fromkeys(("account", "A"), "cluster.account, or run.account"),
    **dict.fromkeys(("partition", "qos", "constraint", "gres", "gpus-per-node"), "the field of this name"),
    "time": "time_min",
    "mem": "mem_gb",
    "cpus-per-task": "cpus",
    "cpus-per-gpu": "cpus",
    "mem-per-cpu": "mem_gb",
    "mem-per-gpu": "mem_gb",
}
_OURS = (
    "job-name",
    "array",
    "output",
    "error",
    "chdir",
    "wrap",
    "export",
    "ntasks",
    "ntasks-per-node",
    "D",
    "J",
    "clusters",  # the profile and SLURM_CLUSTERS say which one
    "M",
)


def refuse_early(profile: Profile, cluster: str, batches: Sequence[Batch], folder: Path) -> None:
    """What is known to be impossible, before sbatch is asked; a SpecError lists all of it.

    `folder` is where the jobs start and write.
    """
    profile.job_account(cluster)
    if "%" in str(folder):
        raise SpecError(
            f"{folder}: Slurm would expand the % in this path (and write the jobs' logs elsewhere); "
            "move the project to a path without it"
        )
    wrong = [f"{batch.key}: {what}" for batch in batches for what in _impossible(batch.resources, profile)]
    if wrong:
        unique = "\n  ".join(dict.fromkeys(wrong))
        raise SpecError(f"cluster {cluster} cannot give what is requested:\n  {unique}")


def _impossible(resources: Resources, profile: Profile) -> Iterator[str]:
    yield from _misplaced(resources)
    if not profile.partitions or resources.partition is None:
        return
    allowed = profile.partitions.get(resources.partition) or _asked(resources.partition)
    if allowed is None:  # sbatch will know
        return
    if isinstance(allowed, str):
        yield f"{allowed}; known: {', '.join(profile.partitions)}"
        return
    if resources.time_min > allowed.max_min:
        yield f"{resources.time_min} min; {resources.partition} allows {allowed.max_min} (time_min)"
    gres = resources.gres or ""
    listed = resources.partition in profile.partitions
    if listed and "gpu" in gres and (allowed.gres is None or not gres.startswith(allowed.gres)):
        yield f"gres {gres}; {resources.partition} has {allowed.gres or 'no GPUs'}"
    on_node = gpu_count(resources.gres, resources.gpus_per_node)
    gpus = requested(resources).gpus
    if allowed.max_gpus and gpus > allowed.max_gpus:
        yield f"{gpus} GPUs; {resources.partition} has {allowed.max_gpus}"
    elif profile.gpus_per_node and on_node > profile.gpus_per_node:
        yield (
            f"{on_node} GPUs; a node has {profile.gpus_per_node}: a cell is spread over several by run.nodes_per_cell"
        )
    if allowed.min_gpus and gpus < allowed.min_gpus:
        yield f"{gpus} GPUs; {resources.partition} gives no fewer than {allowed.min_gpus}"
    share = on_node * (profile.cores_per_gpu or resources.cpus)
    if on_node and resources.cpus > share:
        yield f"{resources.cpus} cores; {on_node} GPUs come with {share}; lower cpus"


def _misplaced(resources: Resources) -> Iterator[str]:
    """Options that would change what is shown and billed behind the back of plan."""
    for key, value in resources.sbatch.items():
        name = key.replace("_", "-")
        if name in _OURS or name in ("account", "A"):
            yield f"sbatch: {key} is set for you" + (
                f"; write {_OWN_FIELDS[name]}" if name in _OWN_FIELDS else "; leave it out"
            )
        elif name in _OWN_FIELDS and value not in (None, "", False):
            yield f"sbatch: {key} is written as {_OWN_FIELDS[name]}, so that plan and price know it"


def _asked(partition: str) -> Partition | str | None:
    """A partition that the profile does not list, as Slurm describes it; words where there is none."""
    try:
        listed = ask("sinfo", "-a", "-h", "-p", partition, "-o", "%P|%l", patience_s=2)
    except SlurmSilentError:
        return None
    if not listed.strip():
        return f"no partition {partition!r} here (sinfo)"
    longest = 0
    for line in listed.splitlines():
        days, _, clock = line.partition("|")[2].strip().rpartition("-")
        if not clock[:1].isdigit():  # infinite
            return None
        parts = [int(part) for part in clock.split(":")]
        hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
        longest = max(longest, 1440 * int(days or 0) + 60 * hours + minutes)
    return Partition(max_min=longest) if longest else None


def explain_refusal(error: str, batch: Batch, cluster: str) -> str:
    """sbatch's refusal with its likely cause and what to type."""
    messages = [line.split("error:")[-1].strip() for line in error.splitlines() if "error:" in line.lower()]
    text = "; ".join(dict.fromkeys(messages)) or error.strip()[-300:]
    hint = next(
        (hint for pattern, hint in _REFUSALS if re.search(pattern, text)),
        f"ask your site, or see `{typed('plan')}`",
    )
    hint = re.sub(r'SET="(.*?)"', lambda found: option("set", *found[1].split()), hint)
    return f"cluster {cluster} refuses {batch.key}: {text}\n  {hint}"
