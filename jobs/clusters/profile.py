"""Cluster profiles: what a site offers, allows and charges, and what the user asks of it. Torch-free.

Later wins: `jobs/clusters/NAME.yaml`, `~/.config/labelgrid/clusters/NAME.yaml` (alone for a profile of the
user's own), `~/.config/labelgrid/config.yaml` (its `cluster:` for every cluster), the account from
LABELGRID_ACCOUNT or SBATCH_ACCOUNT, and `--set cluster.key=value`. No account stands in a committed file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.errors import SpecError
from pipeline.spec import Count, Positive, Section
from pipeline.spec.reading import assign, raise_mistakes, split_override
from pipeline.spec.renamed import renamed
from pipeline.spec.strict_yaml import Document, Mistake, Place, read
from pipeline.storage.files import display_path

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
    """Any other option of sbatch, by its long name, e.g. `{reservation: course}`."""


class Partition(Section):
    """What a partition allows; a request beyond it is refused before it is submitted."""

    max_min: Count
    """The longest time limit, in minutes."""
    gres: str | None = None
    """The kind of GPU that a request must name, e.g. `gpu:v100`. null: the partition has no GPUs."""


class Billing(Section):
    """What an hour of what is reserved costs, as the site publishes it."""

    unit: str
    """The name of the billing unit, e.g. `BU`."""
    gpu_hour: float = 0.0
    """Units for an hour of a GPU."""
    core_hour: float = 0.0
    """Units for an hour of a CPU core."""
    mem_gib_hour: float = 0.0
    """Units for an hour of a GiB of memory."""
    nvme_gib_hour: float = 0.0
    """Units for an hour of a GiB of local disk (`nvme` in `gres`)."""


class Profile(Section):
    """A cluster: what it offers, and what jobs ask of it. In a profile file, or `--set cluster.KEY=VALUE`."""

    scheduler: Literal["slurm", "local"]
    """`slurm` submits jobs with sbatch, `local` starts processes on this machine."""
    retired: str | None = None
    """A note printed at every submission, e.g. that the cluster was shut down."""
    account: str | None = None
    """The project that jobs are charged to. LABELGRID_ACCOUNT or SBATCH_ACCOUNT go before a profile file."""
    account_required: bool = False
    """Refuses a submission without an account."""
    partitions: dict[str, Partition] = Field(default_factory=dict)
    """The known partitions by name. {}: requests are not checked before they are submitted."""
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
    """Jobs that a user may have queued; a larger grid puts more cells into a job. null: no limit."""
    requeue: bool = True
    """Jobs that are stopped go back to the queue. false where the site forbids it: see `continuations`."""
    max_timeouts: Count = 50
    """How often a job may run into its time limit and be requeued."""
    continuations: Count = 3
    """Where `requeue` is false: jobs queued behind each array to go on with unfinished cells."""
    signal_s: Count = 120
    """Seconds between the warning and the time limit, to save in; at most half of the time limit."""
    billing: Billing | None = None
    """The site's prices, for estimates and `run.budget_units`. null: no costs are shown."""

    def job_account(self, name: str) -> str | None:
        """The account of every job; a SpecError says where to put it when the site needs one."""
        if self.account is None and self.account_required:
            raise SpecError(
                f"cluster {name}: jobs need a project account; export LABELGRID_ACCOUNT=project_..., or write "
                f"`cluster: {{account: ...}}` in {display_path(config_dir() / 'config.yaml')}, "
                'or SET="cluster.account=..."'
            )
        return self.account


def config_dir() -> Path:
    """The user's own folder for profiles and defaults."""
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "labelgrid"


def default_cluster() -> str:
    """LABELGRID_CLUSTER, else `default_cluster` of the user's config.yaml, else local."""
    named = os.environ.get("LABELGRID_CLUSTER")
    return named or str(_config().value.get("default_cluster", "local"))


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """The profile `name` with the user's settings; a SpecError lists every mistake with its place."""
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
    if account := os.environ.get("LABELGRID_ACCOUNT") or os.environ.get("SBATCH_ACCOUNT"):
        document.value["account"] = account
    for text in overrides:
        key, value = split_override(text, document)
        if key[1:]:
            assign(document.value, key[1:], value)
            document.places[key[1:]] = Place(f"--set {text}")
    try:
        profile = Profile.model_validate(document.value)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            known_keys = ", ".join(Profile.model_fields) if len(item["loc"]) == 1 else ""
            key, text = item["loc"], item["msg"]
            if item["type"] == "extra_forbidden":
                text = renamed(("cluster", *key)) or f"unknown key; known: {known_keys}"
            document.mistakes.append(Mistake(document.place(key), key, f"{text} (got {item['input']!r})"))
    if document.mistakes:
        raise_mistakes(paths[-1], document.mistakes)
    return profile


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


def gpu_count(gres: str | None, gpus_per_node: int | None) -> int:
    """GPUs a job asks for."""
    match = re.search(r"gpu(?::[\w.]+)??:(\d+)(?:,|$)", gres or "")
    return gpus_per_node or (int(match[1]) if match else 1 if "gpu" in (gres or "") else 0)


def cost_per_hour(resources: Resources, profile: Profile) -> float:
    """Billing units for an hour of what a job reserves."""
    price = profile.billing
    if price is None:
        return 0.0
    nvme = re.search(r"nvme:(\d+)", resources.gres or "")
    return (
        price.gpu_hour * gpu_count(resources.gres, resources.gpus_per_node)
        + price.core_hour * resources.cpus
        + price.mem_gib_hour * (resources.mem_gb or 0)
        + price.nvme_gib_hour * (int(nvme[1]) if nvme else 0)
    )
