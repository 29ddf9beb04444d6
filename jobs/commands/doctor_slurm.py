"""What `doctor` tries on a Slurm cluster: the very scripts that would be sent, and the set-up they run."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jobs.clusters.billing import cost_per_hour, unit_of
from jobs.commands import submit
from jobs.commands.doctor import TORCH, Check
from jobs.commands.request import Request
from jobs.planning.plan import Plan
from jobs.slurm.batches import Batch
from jobs.slurm.commands import SlurmSilentError, ask, clean_environment, this_cluster
from jobs.slurm.options import Options
from jobs.slurm.refusals import explain_refusal, refuse_early
from pipeline.errors import PipelineError
from pipeline.storage.provenance import code

_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
_NODE_S = 600.0  # that a job of a minute may wait for its node


def slurm_checks(request: Request, plan: Plan) -> Iterator[Check]:
    """Every check, each whatever the others find."""
    profile = request.profile
    if profile.retired:
        yield Check("cluster", False, profile.retired)
    for note in submit.environment_notes():
        yield Check("environment", "inside job" not in note, note)
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        yield Check("slurm", False, f"{', '.join(missing)}: not on PATH: is this a login node?")
        if "sbatch" in missing:
            return
    yield from _answers()
    try:
        batches = _batches(request, plan)
        refuse_early(profile, request.cluster, batches, plan.experiment.slurm)
        account = f", account {profile.account} ({profile.account_source})" if profile.account else ""
        yield Check("profile", True, f"{request.cluster} allows what is requested{account}")
    except PipelineError as error:
        yield Check("profile", False, str(error))
        return
    for note in submit.idle_gpus(batches):
        yield Check("GPUs", True, f"note: {note}")
    frozen = plan.experiment.code / f"code-{code()['digest'][:12]}.zip"
    options = submit.options_of(request, plan, frozen)
    for batch in batches:
        yield _test_only(options, batch)
    yield _set_up_here(options)
    if request.on_node:
        yield from _on_node(request, options)


def _answers() -> Iterator[Check]:
    try:
        cluster = this_cluster()
        hides = "; it may hide the jobs of others" if cluster.hides_jobs else ""
        yield Check(
            "slurm", True, f"answers; cluster {cluster.name}, arrays of up to {cluster.max_array}{hides}"
        )
        ask("squeue", "--me", "-h", "-o", "%i")
    except PipelineError as error:
        yield Check("slurm", False, str(error))
    try:
        ask("sacct", "-X", "-n", "-j", "1")
        yield Check("accounting", True, "answers")
    except SlurmSilentError as error:
        result = f"{error}: how jobs ended and what they cost will not be known; everything else works"
        yield Check("accounting", True, f"note: {result}")


def _batches(request: Request, plan: Plan) -> list[Batch]:
    """What `submission` would send, or `grid` where there is nothing to predict; of a complete grid the final job."""
    grid_status = submit.grid_status_of(request, plan)
    both = bool(plan.tests) and len(plan.tests) == len(plan.cells)
    return submit.build_all(request, plan, grid_status, submission=both)


def _test_only(options: Options, batch: Batch) -> Check:
    """What sbatch says of the very script, but for the jobs it would wait for, which are not there."""
    output = _sbatch(_without_folder(options.script(replace(batch, after=()))), "--test-only")
    text = output.stderr.strip() or output.stdout.strip()
    lines = [line.removeprefix("sbatch: ").strip() for line in text.splitlines() if line.strip()]
    if output.returncode:
        return Check(f"a {batch.key} job", False, explain_refusal(text, batch, options.cluster))
    return Check(f"a {batch.key} job", True, lines[-1] if lines else "accepted")


def _without_folder(script: str) -> str:
    """The script without the folder of a launch, which may not be there yet: doctor makes none."""
    return re.sub(r"(?m)^#SBATCH --(chdir|output)=.*\n", "", script)


def _sbatch(script: str, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sbatch", *arguments],
        input=script,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=timeout_s,
    )


def _set_up_here(options: Options) -> Check:
    """The set-up lines and the python of a job, in one shell of this machine."""
    done = subprocess.run(["bash", "-c", _shell(options)], capture_output=True, text=True)
    return _result("set-up here", done.returncode, done.stdout, done.stderr)


def _shell(options: Options) -> str:
    python = options.profile.python or shlex.quote(sys.executable)
    return "\n".join(["set -e", *options.profile.setup, f"{python} -c {shlex.quote(TORCH)}"])


def _result(what: str, status: int, output: str, errors: str) -> Check:
    said = (
        output.strip().splitlines()
        if not status
        else errors.strip().splitlines() or output.strip().splitlines()
    )
    return Check(what, status == 0, said[-1] if said else f"status {status}")


def _on_node(request: Request, options: Options) -> Iterator[Check]:
    """The same in a job of one minute, which costs something."""
    profile = request.profile
    minute = profile.train.model_copy(update={"time_min": 1})
    hourly = cost_per_hour(minute, profile)
    at_most = "an unknown amount" if hourly is None else f"{hourly / 60:.2f} {unit_of(minute, profile)}"
    print(f"trying a node: a job of one minute for at most {at_most}; it waits for its turn", flush=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".doctor-") as folder:
        log, trial = Path(folder) / "log.txt", Batch("doctor", (None,), minute)
        head = _without_folder(options.script(trial).split("# setup")[0])
        script = f"{head}#SBATCH --output={log}\n{_shell(options)}\n"
        try:
            done = _sbatch(script, "--wait", timeout_s=_NODE_S)
        except subprocess.TimeoutExpired:
            yield Check(
                "set-up on a node", False, f"its job did not end within {_NODE_S:.0f} s; it is cancelled"
            )
            return
        finally:  # also at Ctrl-C: a job that nobody waits for would be in no ledger
            with contextlib.suppress(SlurmSilentError):
                ask("scancel", "--me", f"--name={options.name(trial)}")
        output = log.read_text(errors="replace") if log.exists() else done.stderr
        yield _result("set-up on a node", done.returncode, output, output)
