"""Cluster profiles: what a site offers, allows and charges, and what the user asks of it. Torch-free.

Later wins: `jobs/clusters/NAME.yaml`, `~/.config/labelgrid/clusters/NAME.yaml` (alone for a profile of the
user's own), `~/.config/labelgrid/config.yaml` (its `cluster:` for every cluster), the environment (the account
from LABELGRID_ACCOUNT, else SBATCH_ACCOUNT), the spec (`run.account`), and `--set cluster.key=value`. No account
stands in a committed file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from jobs.clusters.billing import Billing
from pipeline.errors import SpecError
from pipeline.spec import Count, Positive, Section
from pipeline.spec.explaining import unknown_key
from pipeline.spec.reading import assign, raise_mistakes, split_override
from pipeline.spec.reference import describe, parts
from pipeline.spec.strict_yaml import Document, Mistake, Place, read
from pipeline.storage.files import display_path
from pipeline.storage.typed import option

SHIPPED = Path(__file__).resolve().parent


class Resources(Section):
    """What one job asks for."""

    partition: str | None = None
    """The Slurm partition. null: the site's default."""
    time_min: Count = 60
    """The time limit, in minutes. Training saves before it and goes on in the next run of the job."""
    cpus: Count = 4
    """CPU cores."""
    mem_gb: Positive | None = None
    """Memory, in GiB. null: what the site gives by itself."""
    gres: str | None = None
    """Slurm's generic resources, e.g. `gpu:v100:1,nvme:100`. null: none."""
    gpus_per_node: Count | None = None
    """GPUs, where a site wants that instead of `gres`."""
    qos: str | None = None
    """The quality of service. null: the site's default."""
    constraint: str | None = None
    """Features that the node must have, as Slurm's `--constraint`. null: any node."""
    sbatch: dict[str, Any] = Field(default_factory=dict)
    """Any other option of sbatch by its long name, e.g. `{reservation: course}`; an empty value drops ours."""


class Partition(Section):
    """What a partition allows; a request beyond it is refused before it is submitted."""

    max_min: Count
    """The longest time limit, in minutes."""
    gres: str | None = None
    """The kind of GPU that a request must name, e.g. `gpu:v100`. null: none, or GPUs without a name."""
    min_gpus: Count | None = None
    """The fewest GPUs of a job. null: no limit."""
    max_gpus: Count | None = None
    """The most GPUs of a job. null: those of a node."""
    billing: Billing | None = None
    """The prices of this partition. null: those of the profile."""


class Profile(Section):
    """A cluster: what it offers, and what jobs ask of it. In a profile file, or `--set cluster.KEY=VALUE`."""

    scheduler: Literal["slurm", "local"]
    """`slurm` submits jobs with sbatch, `local` starts processes on this machine."""
    retired: str | None = None
    """A note printed at every submission, e.g. that the cluster was shut down."""
    account: str | None = None
    """The project that jobs are charged to. The environment and the spec's `run.account` go before a file."""
    account_required: bool = False
    """Refuses a submission without an account."""
    partitions: dict[str, Partition] = Field(default_factory=dict)
    """The known partitions by name; Slurm is asked of others. {}: requests are not checked before sbatch."""
    cores_per_gpu: Count | None = None
    """CPU cores that come with a GPU; a request for more is refused. null: not checked."""
    gpus_per_node: Count | None = None
    """GPUs of a node; a request for more is refused. null: not checked."""
    train: Resources = Resources()
    """What a training job asks for; `run.resources` changes it for some cells."""
    cpu: Resources = Resources()
    """What jobs without training ask for: wrangle and evaluate."""
    setup: tuple[str, ...] = ()
    """Shell lines before a job's command, e.g. `module load pytorch/2.9`."""
    python: str | None = None
    """The command that starts Python in a job. null: the Python that submits."""
    scratch: tuple[str, ...] = ()
    """Variables that name a node's local disk, e.g. `$TMPDIR`. Data is copied to the first one that is set."""
    data_root: str | None = None
    """A folder for packed data outside the project, e.g. on a large disk; `data/packed` becomes a link."""
    runs_root: str | None = None
    """A folder for results outside the project; `experiments/<name>` becomes a link."""
    max_parallel: Count = 16
    """Training jobs of an array that run at once."""
    cells_per_job: Count = 1
    """Cells that one job trains, one after another or `concurrent_cells` at once."""
    concurrent_cells: Count = 1
    """Cells of a job at the same time, sharing its GPU and cores. Use it where a cell leaves the GPU idle."""
    max_array: Count | None = None
    """The longest job array. null: what `scontrol show config` says."""
    max_submit: Count | None = None
    """Jobs that a user may have queued; a larger grid puts more cells into a job, and fewer jobs behind it."""
    requeue: bool = True
    """Jobs that are stopped go back to the queue. false where the site forbids it: see `continuations`."""
    max_timeouts: Count = 50
    """How often a job may run into its time limit and be requeued."""
    continuations: Count = 3
    """Where `requeue` is false: jobs queued behind each job to go on with its cells if they are not finished."""
    signal_s: Count = 120
    """Seconds between the warning and the time limit, to save in; at most half of the time limit."""
    billing: Billing | None = None
    """The site's prices, for estimates and `run.budget_units`. null: costs are unknown, and a budget refuses."""
    _account_from: str = PrivateAttr("")

    @property
    def account_source(self) -> str:
        """Where the account was read, "" where there is none."""
        return self._account_from if self.account else ""

    def job_account(self, name: str) -> str | None:
        """The account of every job; a SpecError says where to put it when the site needs one."""
        if self.account is None and self.account_required:
            raise SpecError(
                f"cluster {name}: jobs need a project account; export LABELGRID_ACCOUNT=project_..., or write "
                f"`cluster: {{account: ...}}` in {display_path(config_dir() / 'config.yaml')}, "
                f"or {option('set', 'cluster.account=...')}"
            )
        return self.account


def config_dir() -> Path:
    """The user's own folder for profiles and defaults."""
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "labelgrid"


def default_cluster() -> str:
    """LABELGRID_CLUSTER, else `default_cluster` of the user's config.yaml, else local."""
    named = os.environ.get("LABELGRID_CLUSTER")
    return named or str(_config().value.get("default_cluster", "local"))


def load_profile(name: str, overrides: Sequence[str] = (), account: str | None = None) -> Profile:
    """The profile `name` with the user's settings; a SpecError lists every mistake with its place.

    `account` is that of the spec.
    """
    folders = (SHIPPED, config_dir() / "clusters")
    paths = [path for folder in folders if (path := folder / f"{name}.yaml").exists()]
    if not paths or not re.fullmatch(r"[\w.-]+", name):
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        raise SpecError(
            f"unknown cluster {name!r}; known: {', '.join(known)}; a profile of your own is a file "
            f"{display_path(folders[1])}/{name}.yaml"
        )
    document = Document({})
    for path in paths:
        _merge(document, read(path, name=display_path(path)))
    user = _config()
    places = {key[1:]: place for key, place in user.places.items() if key[:1] == ("cluster",)}
    if settings := user.value.get("cluster"):
        _merge(document, Document(settings, places))
    _set_account(document, account)
    for text in overrides:
        key, value = split_override(text, document)
        if key[1:]:
            assign(document.value, key[1:], value)
            document.places[key[1:]] = Place(f"--set {text}")
    try:
        profile = Profile.model_validate(document.value)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            key, text = item["loc"], item["msg"]
            if item["type"] == "extra_forbidden":
                text = unknown_key({}, ("cluster", *key), tuple(parts(describe(Profile), "cluster")))
            document.mistakes.append(Mistake(document.place(key), key, f"{text} (got {item['input']!r})"))
    if not document.mistakes and profile.scheduler == "local":
        other = option("cluster", "NAME")
        remedy = f"what this machine does is in run.parallel, run.threads and run.device; or name a cluster by {other}"
        text = f"has no effect: cluster {name} has no Slurm; {remedy}"
        document.mistakes += [Mistake(Place(f"--set {setting}"), (), text) for setting in overrides]
    if document.mistakes:
        raise_mistakes(paths[-1], document.mistakes)
    profile._account_from = str(document.places.get(("account",), ""))
    return profile


def _set_account(document: Document, of_spec: str | None) -> None:
    """From the spec, else from the environment, else as the files say."""
    found = {name: os.environ.get(name) for name in ("LABELGRID_ACCOUNT", "SBATCH_ACCOUNT")}
    for place, account in {"run.account of the spec": of_spec, **found}.items():
        if account:
            document.value["account"] = account
            document.places[("account",)] = Place(place)
            return


def _config() -> Document:
    path = config_dir() / "config.yaml"
    if not path.exists():
        return Document({})
    document = read(path, name=display_path(path))
    settings = document.value if isinstance(document.value, dict) else {"?": None}
    for key in sorted(settings.keys() - {"default_cluster", "cluster"}):
        document.mistakes.append(Mistake(document.place((key,)), (key,), "known: default_cluster, cluster"))
    if not isinstance(settings.get("cluster") or {}, dict):
        remedy = "holds settings of a profile, such as account; default_cluster names one"
        document.mistakes.append(Mistake(document.place(("cluster",)), ("cluster",), remedy))
    if document.mistakes:
        raise_mistakes(path, document.mistakes)
    return document


def _merge(document: Document, other: Document) -> None:
    """Later files change single keys of earlier ones, also within a section."""
    document.mistakes += other.mistakes
    document.places.update(other.places)
    document.value = _merged(document.value or {}, other.value or {})


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above
