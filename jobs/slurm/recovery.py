"""Launches that broke off: what they queued is found by its name, and taken over or cancelled. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from jobs import ledger
from jobs.slurm.commands import this_cluster
from jobs.slurm.queue import cancel, find
from jobs.slurm.records import Event, Proof, Submitted, completed, open_intents, this_user, write_withdrawn
from jobs.slurm.sbatch import tasks_of
from pipeline.storage.jsonl import read_jsonl
from pipeline.storage.run_dir import ExperimentDir
from pipeline.storage.typed import typed


def recover(experiment: ExperimentDir) -> list[str]:
    """What was found, one line each; raises LaunchError where Slurm does not answer. Under the launch lock."""
    intents = open_intents(read_jsonl(experiment.ledger))
    if not intents:
        return []
    here, me = this_cluster().name, this_user()
    found = [(proof, event) for proof, event in intents if proof.cluster == here]
    numbers = find([proof for proof, _ in found], min(str(event["time"]) for _, event in intents))
    notes = []
    for proof, event in intents:
        if proof.name not in numbers and (proof.cluster, proof.user) != (here, me):
            notes.append(
                f"{proof.name}: {proof.user} began to submit it on {proof.cluster}; only they can say what "
                f"is queued there; their `{typed('grid')}` settles it"
            )
        else:
            notes += _settle(experiment, proof, event, numbers.get(proof.name, []))
    return notes


def _settle(experiment: ExperimentDir, proof: Proof, event: Event, numbers: list[str]) -> Iterator[str]:
    """Of several jobs of one name (sbatch was tried again) at most one has its files."""
    size = 1 + max((int(line.get("task") or 0) for line in event["lines"]), default=0)
    taken_over = False
    problems: dict[Submitted, str] = {}
    for number in numbers:
        jobs = tasks_of({proof.name: [number]}, {proof.name: proof}, {proof.name: size})
        if all((experiment.slurm / f"{job.job}_submitted.pkl").exists() for job in jobs):
            ledger.append_all(experiment.ledger, completed(event["lines"], proof, number))
            yield f"job {number} ({proof.name}) was queued by a launch that broke off; it is taken over"
            taken_over = True
            continue
        problems |= cancel(jobs)  # its own files were never written: it could only fail
        yield f"job {number} ({proof.name}) was queued by a launch that broke off; it is cancelled"
    if not problems and not taken_over:
        write_withdrawn(experiment.ledger, [proof.name])
    yield from problems.values()
