"""What a user asked for: a spec, on a cluster, perhaps one cell of it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.clusters.profile import Profile
from pipeline.spec.reading import Loaded


@dataclass(frozen=True)
class Request:
    """The arguments of a verb."""

    loaded: Loaded
    cluster: str  # the profile's name
    profile: Profile
    run: str | None = None  # RUN=cell: a folder name or a unique prefix
