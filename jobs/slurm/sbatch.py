"""Submission to Slurm through submitit: batches with native dependencies, all of them or none."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs import ledger
from jobs.clusters.billing import cost_per_hour, unit_of
from jobs.planning.cost import device_of
from jobs.planning.tasks import resources_for
from jobs.slurm.batches import Batch
from jobs.slurm.commands import SlurmSilentError, own_environment, this_cluster
from jobs.slurm.job import FinalJob
from jobs.slurm.options import Options, want_of
from jobs.slurm.queue import await_end, cancel, find
from jobs.slurm.records import Proof, Submitted, completed, this_user, write_intent, write_withdrawn
from jobs.slurm.refusals import explain_refusal
from jobs.slurm.sent import compare, queued
from pipeline.errors import LaunchError, PipelineError
from pipeline.storage.files import write_failed
from pipeline.storage.ownership import owned_in_turn
from pipeline.storage.run_dir import ExperimentDir
from pipeline.storage.typed import option

_TRIES = 3  # of one sbatch that Slurm did not answer
_LAST_WORDS_S = 10.0  # that a cancelled job may need to end, writing its files until then


@contextlib.contextmanager
def launch_lock(experiment: ExperimentDir) -> Iterator[None]:
    """One launch of an experiment at a time; a second waits, and then sees the first one's jobs."""
    with owned_in_turn(experiment.path / ".launch.lock", "a launch"):
        yield


def tasks_of(
    numbers: Mapping[str, Iterable[str]], proofs: Mapping[str, Proof], sizes: Mapping[str, int]
) -> list[Submitted]:
    """Each task of an array by its own number, as the queue lists them; all by the job's name."""
    return [
        Submitted(number if sizes.get(name, 1) < 2 else f"{number}_{task}", proofs[name])
        for name, same in numbers.items()
        for number in same
        for task in range(sizes.get(name, 1))
    ]


@dataclass
class Launch:
    """One launch: what is queued, and how it is taken back."""

    options: Options
    estimates: dict[str, float] = field(default_factory=dict)  # units of each cell, where they can be told
    ids: dict[str, list[str]] = field(default_factory=dict)  # by batch key
    notes: list[str] = field(default_factory=list)  # what the site has changed
    intents: dict[str, Proof] = field(default_factory=dict)  # as what each batch is handed to sbatch
    unwanted: list[Submitted] = field(default_factory=list)  # what Slurm took without saying so
    sizes: dict[str, int] = field(default_factory=dict)  # tasks of each job, by its name

    def submit(self, batches: Sequence[Batch]) -> dict[str, list[str]]:
        """Job ids by batch key. All or none: whatever breaks off cancels what was queued, and leaves no file.

        The ledger has the intent of each job before sbatch. What is still there after a break that could not be
        tidied up (no Slurm, a kill) is found by the next launch, by its name.
        """
        folder = self.options.folder
        before = set(folder.iterdir()) if folder.exists() else set()
        proofs: dict[str, Proof] = {}
        cluster = this_cluster().name
        with own_environment():
            executor = self._executor()
            try:
                for batch in batches:
                    proofs[batch.key] = self.intents[batch.key] = self._proof(batch, cluster)
                    self.sizes[proofs[batch.key].name] = len(batch.tasks)
                    write_intent(self._ledger, proofs[batch.key], list(self._lines(batch)))
                    self.ids[batch.key] = self._sbatch(executor, batch, proofs[batch.key])
                events = self._checked(batches, proofs)
                ledger.append_all(self._ledger, events)
            except BaseException:  # Ctrl-C too: half a sweep must not stay queued
                numbers = self._take_back(proofs)
                for path in set(folder.iterdir()) - before if folder.exists() else ():
                    job = re.match(r"\d+(?=_)", path.name)  # others' jobs go on writing here
                    if job is None or job[0] in numbers:
                        path.unlink(missing_ok=True)
                raise
        return self.ids

    @property
    def _ledger(self) -> Any:
        return self.options.experiment.ledger

    def _proof(self, batch: Batch, cluster: str) -> Proof:
        return Proof(cluster, self.options.name(batch), this_user(), str(self.options.folder))

    def _executor(self) -> Any:
        from submitit import SlurmExecutor

        try:
            return SlurmExecutor(
                self.options.folder,
                max_num_timeout=self.options.profile.max_timeouts,
                python=self.options.python,
            )
        except RuntimeError as error:
            raise LaunchError(f"{error} ({option('cluster', 'local')} runs on this machine)") from error

    def _sbatch(self, executor: Any, batch: Batch, proof: Proof) -> list[str]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor.parameters.clear()
        executor.update_parameters(**self.options.parameters(batch, self.ids))
        for attempt in range(1, _TRIES + 1):
            try:
                with executor.batch():
                    jobs = [executor.submit(task) for task in batch.tasks]
                return [job.job_id for job in jobs]
            except OSError as error:  # submitit's files
                raise PipelineError(write_failed(self.options.folder, error)) from error
            except (FailedJobError, FailedSubmissionError) as error:
                text = explain_refusal(str(error), batch, self.options.cluster)
                if "does not answer" not in text or attempt == _TRIES:
                    raise LaunchError(text) from error
                time.sleep(2.0**attempt)
                # Slurm may have taken the job all the same
                numbers = find([proof], time.strftime("%Y-%m-%dT%H:%M:%S"))
                taken = tasks_of(numbers, {proof.name: proof}, self.sizes)
                self.unwanted += taken
                cancel(taken)
        raise AssertionError("unreachable")

    def _checked(self, batches: Sequence[Batch], proofs: dict[str, Proof]) -> list[dict[str, Any]]:
        """The lines for the ledger, once the queue has been compared with the plan."""
        numbers = {key: jobs[0].split("_")[0] for key, jobs in self.ids.items()}
        try:
            found = queued(list(numbers.values()))
        except SlurmSilentError as error:
            found = {}
            self.notes.append(f"the queue was not compared with the plan ({error})")
        events: list[dict[str, Any]] = []
        for batch in batches:
            number, intent = numbers[batch.key], proofs[batch.key]
            actual = found[number].proof(intent) if number in found else intent
            if actual.name != intent.name:
                self.notes.append(f"{batch.key}: the site calls it {actual.name} instead of {intent.name}")
                self.sizes[actual.name] = len(batch.tasks)
            proofs[batch.key] = actual  # by which it is cancelled, if it comes to that
            events += completed(self._lines(batch), actual, number, intent.name)
        self.notes += compare(batches, found, numbers, self.options.profile)
        return events

    def _take_back(self, proofs: dict[str, Proof]) -> set[str]:
        """Cancel what is queued of this launch, and return its numbers; what may be left is printed."""
        names = {proof.name: proof for proof in (*self.intents.values(), *proofs.values())}
        numbers = {proofs[key].name: [ids[0].split("_")[0]] for key, ids in self.ids.items()}
        jobs = set(tasks_of(numbers, names, self.sizes))
        try:
            numbers = find(names.values(), time.strftime("%Y-%m-%dT%H:%M:%S"))
            jobs |= {*tasks_of(numbers, names, self.sizes), *self.unwanted}
            left = list(cancel(jobs).values())
            await_end(jobs, _LAST_WORDS_S)
        except LaunchError as error:
            left = [f"{error}; these may still be queued: scancel --me --name={','.join(names)}"]
        for problem in left if names else ():
            print(f"error: not cancelled: {problem}", file=sys.stderr, flush=True)
        if not left:
            with contextlib.suppress(PipelineError):  # the ledger itself may be what cannot be written
                write_withdrawn(self._ledger, [proof.name for proof in self.intents.values()])
        return {job.job.split("_")[0] for job in jobs}

    def _lines(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """What the ledger says of a batch, but for its number: a line for each cell, or one for a stage."""
        options, array = self.options, len(batch.tasks) > 1
        common = {"cluster": options.cluster, "code": options.code_digest}
        if not batch.cells:
            submits = any(isinstance(task, FinalJob) and task.submission for task in batch.tasks)
            yield common | {"stage": batch.key, "packed": list(batch.packs), "submission": submits}
            return
        for task, cells in enumerate(batch.cells):
            for cell in cells:
                own = resources_for(cell, options.profile)
                want = want_of(own, options.code_digest)
                yield common | {
                    "cell": cell.run.name,
                    "identity": cell.identity,
                    "settings": want.settings,
                    "mem_gb": want.mem_gb,
                    **({"task": task} if array else {}),
                    **self._price(own, min(own.concurrent_cells, len(cells))),
                    **(
                        {"estimate": self.estimates[cell.run.name]} if cell.run.name in self.estimates else {}
                    ),
                }

    def _price(self, own: Any, concurrent_cells: int) -> dict[str, Any]:
        """What an hour of one of so many cells costs, where the site's prices are known, and on what it runs."""
        hourly = cost_per_hour(own.train, own)
        device = {
            "device": device_of(own.train),
            "partition": own.train.partition,
        }
        if hourly is None:
            return device
        return device | {"cost_per_hour": hourly / concurrent_cells, "unit": unit_of(own.train, own)}
