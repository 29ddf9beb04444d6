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
from pipeline.spec.strict_yaml import Document, Mistake, Place, read
from pipeline.storage.files import display_path

SHIPPED = Path(__file__).resolve().parent


class Resources(Section):
    """What one job asks for."""

    partition: str | None = None
    time_min: Count = 60
    cpus: Count = 4
    mem_gb: Positive | None = None  # None: the site's own share
    gres: str | None = None  # e.g. gpu:v100:1,nvme:100
    gpus_per_node: Count | None = None  # where a site wants that instead of gres
    qos: str | None = None
    constraint: str | None = None
    sbatch: dict[str, Any] = Field(default_factory=dict)  # any other sbatch option


class Partition(Section):
    """What a partition allows."""

    max_min: Count
    gres: str | None = None  # the kind of GPU a request must name


class Billing(Section):
    """What an hour of what is reserved costs."""

    unit: str
    gpu_hour: float = 0.0
    core_hour: float = 0.0
    mem_gib_hour: float = 0.0
    nvme_gib_hour: float = 0.0


class Profile(Section):
    """One cluster."""

    scheduler: Literal["slurm", "local"]
    retired: str | None = None  # said at every submission
    account: str | None = None
    account_required: bool = False
    partitions: dict[str, Partition] = Field(default_factory=dict)
    cores_per_gpu: Count | None = None
    gpus_per_node: Count | None = None
    train: Resources = Resources()
    cpu: Resources = Resources()  # wrangle, evaluate
    setup: tuple[str, ...] = ()  # shell lines before a job's command
    python: str | None = None  # default: the one that submits
    scratch: tuple[str, ...] = ()  # node-local folders, the first that is set is used
    data_root: str | None = None  # where packed data lives; default: data/ of the project
    runs_root: str | None = None  # where run folders live; experiments/<name> is then a link
    max_parallel: Count = 16  # array tasks at once
    cells_per_job: Count = 1  # in one allocation
    concurrent_cells: Count = 1  # of those at once, sharing its GPU and cores
    max_array: Count | None = None  # default: what `scontrol show config` says
    max_submit: Count | None = None  # jobs a user may have queued
    requeue: bool = True  # False: continuation jobs by dependency
    max_timeouts: Count = 50  # time limits a cell may run into
    continuations: Count = 3  # where requeue is not allowed
    signal_s: Count = 120  # warning before the time limit
    billing: Billing | None = None

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
            text = f"unknown key; known: {known_keys}" if item["type"] == "extra_forbidden" else item["msg"]
            key = item["loc"]
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
