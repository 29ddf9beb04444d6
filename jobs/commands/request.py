"""What a user asked for: a spec, on a cluster, perhaps one cell of it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.clusters.profile import Profile
from pipeline.spec.reading import Loaded
from pipeline.storage.files import display_path
from pipeline.storage.typed import typed


@dataclass(frozen=True)
class Request:
    """The arguments of a verb."""

    loaded: Loaded
    cluster: str  # the profile's name
    profile: Profile
    run: str | None = None  # a cell: its folder or a unique prefix
    overrides: tuple[str, ...] = ()  # as given by SET, in their order
    names_cluster: bool = False  # whether the cluster was named for this command
    verb: str = "grid"  # what was typed
    for_submission: bool = False  # plan: show what `submission` would send
    on_node: bool = False  # doctor: try the set-up on a node of the cluster too

    def command(self, verb: str | None = None, *, run: str | None = None) -> str:
        """What to type for another verb (default: the same) on this request: with its settings and its cluster."""
        return typed(
            verb or self.verb,
            display_path(self.loaded.path),
            cluster=self.cluster if self.names_cluster else "",
            settings=self.overrides,
            run=run or "",
        )
