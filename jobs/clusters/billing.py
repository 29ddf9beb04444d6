"""What an hour of what a job reserves costs, by the site's published prices. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.spec import Count, Positive, Section

if TYPE_CHECKING:
    from jobs.clusters.profile import Profile, Resources


class Billing(Section):
    """What an hour of what is reserved costs, as the site publishes it."""

    unit: str
    """The name of the billing unit, e.g. `BU`."""
    rule: Literal["sum", "max"] = "sum"
    """`sum` adds the prices of GPUs, cores and memory, `max` takes the highest of them; disk is added to both."""
    gpu_hour: float = 0.0
    """Units for an hour of a GPU."""
    core_hour: float = 0.0
    """Units for an hour of a CPU core."""
    mem_gib_hour: float = 0.0
    """Units for an hour of a GiB of memory."""
    nvme_gib_hour: float = 0.0
    """Units for an hour of a GiB of local disk (`nvme` in `gres`)."""
    cores_per_gpu: Count | None = None
    """So many cores, or a part of them, are billed as a GPU where they are more than the GPUs. null: never."""
    mem_gib_per_gpu: Positive | None = None
    """So much memory, or a part of it, is billed as a GPU where it is more than the GPUs. null: never."""
    node_hour: float | None = None
    """Units for an hour of a node, where nodes are given whole. null: only what is asked for is billed."""


@dataclass(frozen=True)
class Reserved:
    """What a job has for itself."""

    gpus: int = 0
    cores: int = 1
    mem_gib: float = 0.0
    nvme_gib: int = 0
    nodes: int = 1


def gpu_count(gres: str | None, gpus_per_node: int | None) -> int:
    """GPUs a job asks for."""
    match = re.search(r"gpu(?::[\w.]+)??:(\d+)(?:,|$)", gres or "")
    return gpus_per_node or (int(match[1]) if match else 1 if "gpu" in (gres or "") else 0)


def requested(resources: Resources) -> Reserved:
    """What a job of these resources asks for, other options of sbatch included."""
    options = {key.replace("_", "-"): value for key, value in resources.sbatch.items()}
    nodes = max(1, _number(options.get("nodes", options.get("N"))))
    gpus = nodes * gpu_count(resources.gres, resources.gpus_per_node)
    more = max(_number(options.get(key)) for key in ("gpus", "G", "gpus-per-task", "gpus-per-node"))
    nvme = re.search(r"nvme:(\d+)", resources.gres or "")
    return Reserved(
        gpus=max(gpus, more),
        cores=nodes * resources.cpus,
        mem_gib=nodes * (resources.mem_gb or 0),
        nvme_gib=nodes * int(nvme[1]) if nvme else 0,
        nodes=nodes,
    )


def _number(value: object) -> int:
    found = re.search(r"(\d+)$", str(value)) if value is not None else None
    return int(found[1]) if found else 0


def billing_of(partition: str | None, profile: Profile) -> Billing | None:
    """The prices of a partition: its own, else the profile's; None where they are not known.

    Those of a profile are those of the partitions it lists. Of several partitions (`a,b`) the dearest decides.
    """
    if not profile.partitions:
        return profile.billing
    found = [profile.partitions.get(name) for name in (partition or "").split(",")]
    priced = [known.billing or profile.billing for known in found if known is not None]
    known = [billing for billing in priced if billing is not None]
    return max(known, key=_dearness) if len(known) == len(found) else None


def _dearness(billing: Billing) -> float:
    return max(billing.gpu_hour, billing.core_hour, billing.node_hour or 0.0)


def price(reserved: Reserved, billing: Billing) -> float | None:
    """Units for an hour; None where no price is known of what is reserved: nothing is free."""
    if billing.node_hour is not None:
        return billing.node_hour * reserved.nodes
    gpus = reserved.gpus
    if gpus and billing.cores_per_gpu:
        gpus = max(gpus, math.ceil(reserved.cores / billing.cores_per_gpu))
    if gpus and billing.mem_gib_per_gpu:
        gpus = max(gpus, math.ceil(reserved.mem_gib / billing.mem_gib_per_gpu))
    parts = (
        billing.gpu_hour * gpus,
        billing.core_hour * reserved.cores,
        billing.mem_gib_hour * reserved.mem_gib,
    )
    units = (max if billing.rule == "max" else sum)(parts) + billing.nvme_gib_hour * reserved.nvme_gib
    return units or None


def cost_per_hour(resources: Resources, profile: Profile) -> float | None:
    """Units for an hour of a job of these resources; None where no price is known."""
    billing = billing_of(resources.partition, profile)
    whole = resources.sbatch.get("exclusive") not in (
        None,
        "",
        False,
    )  # nodes of a size that only Slurm knows
    if billing is None or (whole and billing.node_hour is None):
        return None
    return price(requested(resources), billing)


def unit_of(resources: Resources, profile: Profile) -> str:
    """What that is counted in, "" where no price is known."""
    billing = billing_of(resources.partition, profile)
    return billing.unit if billing else ""


def reserved_by(tres: str) -> Reserved:
    """Slurm's `cpu=10,mem=64G,node=1,gres/gpu=1`, as squeue and sacct print it."""
    found = dict(part.split("=", 1) for part in tres.split(",") if "=" in part)
    amount = re.match(r"(\d+(?:\.\d+)?)([KMGTP]?)", found.get("mem", "0"))
    scale = {"K": 2.0**-20, "M": 2.0**-10, "": 2.0**-10, "G": 1.0, "T": 1024.0, "P": 1024.0**2}
    kinds = [_leading(count) for name, count in found.items() if name.startswith("gres/gpu:")]
    return Reserved(
        gpus=_leading(found.get("gres/gpu")) or sum(kinds),
        cores=_leading(found.get("cpu")) or 1,
        mem_gib=float(amount[1]) * scale[amount[2]] if amount else 0.0,
        nvme_gib=_leading(found.get("gres/nvme")),
        nodes=_leading(found.get("node")) or 1,
    )


def _leading(text: str | None) -> int:
    """The number that a text begins with: `100G` of a disk is 100."""
    found = re.match(r"\d+", text or "")
    return int(found[0]) if found else 0
