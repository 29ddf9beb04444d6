"""What a user asked for: a spec, on a cluster, perhaps one cell of it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.cluster import Profile
from pipeline.specfile import Loaded


@dataclass(frozen=True)
class Request:
    """The arguments of a verb."""

    loaded: Loaded
    cluster: str  # the profile's name
    profile: Profile
    run: str | None = None  # RUN=cell: a folder name or a unique prefix
