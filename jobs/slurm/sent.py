"""What the queue holds after sbatch, compared with what was planned: nothing else may be billed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.clusters.billing import Reserved, billing_of, price, requested, reserved_by
from jobs.clusters.profile import Profile
from jobs.slurm.batches import Batch
from jobs.slurm.commands import ask
from jobs.slurm.queue import seconds
from jobs.slurm.records import Proof
from pipeline.errors import LaunchError

_COLUMNS = {
    "JobArrayID": 40,
    "Account": 80,
    "Partition": 120,
    "TimeLimit": 20,
    "tres-alloc": 300,
    "QOS": 60,
    "UserName": 60,
    "Name": 300,
    "WorkDir": 2000,
}
_DEARER = 1.05  # by so much before it is no rounding


@dataclass(frozen=True)
class Queued:
    """A job as Slurm holds it."""

    account: str
    partition: str
    time_s: int
    reserved: Reserved
    qos: str
    user: str
    name: str
    folder: str

    def proof(self, intent: Proof) -> Proof:
        """What proves it from now on: a site may have renamed it."""
        return Proof(intent.cluster, self.name, self.user, self.folder)


def queued(numbers: Sequence[str]) -> dict[str, Queued]:
    """Jobs (arrays as a whole) by their number, as the queue holds them; raises SlurmSilentError."""
    columns = ",".join(f"{name}:{width}|" for name, width in _COLUMNS.items())
    found: dict[str, Queued] = {}
    for line in ask("squeue", "-a", "-h", "-j", ",".join(numbers), "-O", columns).splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) > len(_COLUMNS):
            number, account, partition, limit, tres, *rest = fields
            times = (account, partition, seconds(limit), reserved_by(tres))
            found.setdefault(number.split("_")[0], Queued(*times, *rest[:4]))
    return found


def compare(
    batches: Sequence[Batch], found: Mapping[str, Queued], numbers: Mapping[str, str], profile: Profile
) -> list[str]:
    """What a site has changed, one line each; a LaunchError where it is another account, or dearer."""
    notes: list[str] = []
    for batch in batches:
        held = found.get(numbers[batch.key])
        if held is None:
            continue  # it has ended already: nothing of it can be stopped
        wrong = list(_wrong(batch, held, profile))
        if wrong:
            raise LaunchError(
                f"{batch.key} was queued as something else than planned: {'; '.join(wrong)}. All jobs of this "
                "launch are cancelled; ask the site what changes its jobs, or write into the profile what it makes"
            )
        notes += [f"{batch.key}: {note}" for note in _changed(batch, held)]
    return list(dict.fromkeys(notes))


def _wrong(batch: Batch, held: Queued, profile: Profile) -> Iterator[str]:
    if profile.account and held.account and held.account.lower() != profile.account.lower():
        yield f"account {held.account} instead of {profile.account}"
    asked, has = requested(batch.resources), held.reserved
    if has.gpus > asked.gpus:
        yield f"{has.gpus} GPUs instead of {asked.gpus}"
    if has.nodes > asked.nodes:
        yield f"{has.nodes} nodes instead of {asked.nodes}"
    if not held.time_s:
        yield "no time limit"
    if batch.resources.sbatch.get("exclusive"):
        return  # whole nodes were asked for
    planned, got = (
        billing_of(partition, profile) for partition in (batch.resources.partition, held.partition)
    )
    if planned and got and planned.unit != got.unit:
        yield f"partition {held.partition}, which is billed in {got.unit} instead of {planned.unit}"
    elif planned and got and not has.gpus > asked.gpus:
        # where Slurm counts hardware threads, each core is two
        cores = asked.cores if has.cores <= 2 * asked.cores else has.cores
        before, now = price(asked, planned), price(replace(has, cores=cores), got)
        if before and now and now > _DEARER * before:
            yield f"{now:g} {got.unit} an hour instead of {before:g}"
    elif has.cores > 2 * asked.cores or (asked.mem_gib and has.mem_gib > 2 * asked.mem_gib):
        yield f"{has.cores} cores and {has.mem_gib:g} GiB instead of {asked.cores} and {asked.mem_gib:g}"
    if held.time_s > _DEARER * 60 * batch.resources.time_min + 60:
        yield f"a time limit of {held.time_s // 60} min instead of {batch.resources.time_min}"


def _changed(batch: Batch, held: Queued) -> Iterator[str]:
    asked, has = requested(batch.resources), held.reserved
    if batch.resources.partition is None or held.partition != batch.resources.partition:
        yield f"Slurm chose partition {held.partition}"
    if batch.resources.qos and held.qos != batch.resources.qos:
        yield f"it runs under QOS {held.qos} instead of {batch.resources.qos}"
    for what, before, now in (
        ("minutes", batch.resources.time_min, held.time_s / 60),
        ("cores", asked.cores, has.cores),
        ("GPUs", asked.gpus, has.gpus),
        ("GiB of memory", round(asked.mem_gib, 2), round(has.mem_gib, 2)),
    ):
        if before and now and before != now:
            yield f"{now:g} {what} instead of {before:g}"
