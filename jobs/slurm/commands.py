"""Slurm's commands, in an environment that holds nothing of other jobs, with bounded patience. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LaunchError
from pipeline.storage.typed import option

# Options in disguise: `sbatch` obeys them before the lines of a script, `squeue` and `sacct` in how they print, and
# those of the job that we may be in lead submitit to another job's files.
_OPTIONS = (
    *("SBATCH_", "SLURM_", "SLURMD_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_"),
    "SCONTROL_",
    "SUBMITIT_",
)
_KEPT = {"SLURM_CONF", "SLURM_CLUSTERS"}  # where Slurm is, and which of its clusters is meant
_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
_TIMEOUT_S = 60.0
_PATIENCE_S = 8.0  # for an answer that may come at the next try
_TRANSIENT = re.compile(
    r"[Uu]nable to contact|[Cc]onnection refused|timed? ?out|[Cc]onnect failure|try again|temporarily|"
    r"[Ss]ocket|[Pp]roblem talking|[Cc]ommunication"
)


class SlurmSilentError(LaunchError):
    """A command of Slurm that is not there, or that gives no answer."""


def foreign_options(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that would change what is submitted or printed."""
    return {
        name: value for name, value in environment.items() if name.startswith(_OPTIONS) and name not in _KEPT
    }


def clean_environment() -> dict[str, str]:
    """This process's environment without such variables."""
    dropped = foreign_options(os.environ)
    return {name: value for name, value in os.environ.items() if name not in dropped}


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """This process without such variables; they are put back afterwards."""
    dropped = foreign_options(os.environ)
    for name in dropped:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(dropped)


def ask(*command: str, patience_s: float = _PATIENCE_S) -> str:
    """What a command prints; a SlurmSilentError once it has failed, where trying again may help for `patience_s`."""
    environment = clean_environment()
    end, wait_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, env=environment
            )
        except OSError as error:
            raise SlurmSilentError(
                f"{command[0]}: {'not found' if isinstance(error, FileNotFoundError) else error.strerror}; "
                f"is this a Slurm login node? ({option('cluster', 'local')} runs on this machine)"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SlurmSilentError(
                f"{command[0]}: no answer in {_TIMEOUT_S:.0f} s; Slurm is busy, try again later"
            ) from error
        if not done.returncode:
            return done.stdout
        lines = [
            line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()
        ]
        said = " ".join(" ".join(lines).split()) or f"status {done.returncode}"
        if not _TRANSIENT.search(said) or time.monotonic() + wait_s > end:
            raise SlurmSilentError(f"{command[0]}: {said[:300]}")
        time.sleep(wait_s)
        wait_s *= 2


@dataclass(frozen=True)
class Cluster:
    """What a cluster says of itself."""

    name: str  # its ClusterName; job numbers mean something only together with it
    hides_jobs: bool = True  # whether it may hide the jobs of others (PrivateData)
    max_array: int = 1000  # the most tasks of an array


def this_cluster() -> Cluster:
    """The cluster that Slurm's commands speak of here; a LaunchError where its name cannot be found out."""
    named = os.environ.get("SLURM_CLUSTERS", "")
    if "," in named or named == "all":
        raise LaunchError(
            f"SLURM_CLUSTERS={named} means several clusters; name one, as job numbers are of one cluster"
        )
    said = ""
    try:
        text = ask("scontrol", "show", "config", patience_s=2)
    except SlurmSilentError as error:
        said = str(error)
    else:
        facts = {
            key.strip(): value.strip()
            for key, _, value in (line.partition("=") for line in text.splitlines())
        }
        if name := facts.get("ClusterName"):
            size = facts.get("MaxArraySize", "")
            private = facts.get("PrivateData", "none")
            return Cluster(name, "jobs" in private, int(size) - 1 if size.isdigit() else 1000)
    # inside a job Slurm says it; elsewhere its configuration does, also where scontrol is missing
    name = named or os.environ.get("SLURM_CLUSTER_NAME") or _configured_name()
    if not name:
        raise SlurmSilentError(
            f"the name of this cluster is not known ({said or 'scontrol does not say it'}); "
            f"is this a login node of a Slurm cluster? ({option('cluster', 'local')} runs on this machine)"
        )
    return Cluster(name)


def _configured_name() -> str | None:
    for path in (os.environ.get("SLURM_CONF"), *_CONFIGURATIONS):
        with contextlib.suppress(OSError):
            found = re.search(
                r"(?im)^\s*ClusterName\s*=\s*(\S+)", Path(path or "").read_text(errors="replace")
            )
            if found:
                return found[1]
    return None
