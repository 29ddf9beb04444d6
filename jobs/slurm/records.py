"""Jobs in the ledger: the intent before sbatch, what was submitted after it, and what proves a number to be a job.

A number alone proves nothing: it is of one cluster, wraps, begins again when a cluster's state is reset, and may
be a stranger's. A job is ours where its cluster, name, user and working folder are those it was submitted with;
the name ends in letters of this one launch. Lines without that proof are never believed. Torch-free.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import ledger

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Proof:
    """What a job was submitted as."""

    cluster: str  # Slurm's ClusterName
    name: str
    user: str
    folder: str  # where it starts


@dataclass(frozen=True)
class Submitted:
    """A job of a ledger: `12`, or `12_3` of an array."""

    job: str
    proof: Proof


def this_user() -> str:
    """Who submits, as Slurm calls them."""
    try:
        return getpass.getuser() if not hasattr(os, "getuid") else _name_of(os.getuid())
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


def _name_of(uid: int) -> str:
    import pwd

    return pwd.getpwuid(uid).pw_name


def proof_of(event: Event) -> Proof | None:
    """Of a line of the ledger; None where it has none."""
    found = event.get("proof")
    try:
        return Proof(**{str(key): str(value) for key, value in dict(found or {}).items()})
    except (TypeError, ValueError):
        return None


def submitted_jobs(event: Event) -> list[Submitted]:
    """The jobs of a `submitted` line that can be proven."""
    proof = proof_of(event)
    if event.get("event") != "submitted" or proof is None:
        return []
    return [Submitted(str(job), proof) for job in event.get("jobs", ())]


def write_intent(path: Path, proof: Proof, lines: Sequence[Event]) -> None:
    """Before sbatch: what `lines` will say of the job once its number is known."""
    ledger.append(path, "intent", proof=asdict(proof), lines=list(lines))


def write_withdrawn(path: Path, names: Iterable[str]) -> None:
    """Nothing of these intents is queued."""
    ledger.append(path, "withdrawn", names=sorted(names))


def completed(lines: Iterable[Event], proof: Proof, job: str, intent: str = "") -> list[dict[str, Any]]:
    """The `submitted` lines of an intent: job `job`, each line with its own task where the job is an array.

    `intent` is the name in the intent, where a site has given the job another one.
    """
    return [
        {
            **{key: value for key, value in line.items() if key != "task"},
            "event": "submitted",
            "proof": asdict(proof),
            "intent": intent or proof.name,
            "jobs": [job if line.get("task") is None else f"{job}_{line['task']}"],
        }
        for line in lines
    ]


def open_intents(events: Iterable[Event]) -> list[tuple[Proof, Event]]:
    """Intents of which the ledger does not say what came of them: their launch broke off."""
    found: dict[str, tuple[Proof, Event]] = {}
    for event in events:
        proof = proof_of(event)
        if event["event"] == "intent" and proof is not None:
            found[proof.name] = (proof, event)
        elif event["event"] == "submitted" and proof is not None:
            found.pop(str(event.get("intent", proof.name)), None)
        elif event["event"] == "withdrawn":
            for name in event.get("names", ()):
                found.pop(name, None)
    return list(found.values())
