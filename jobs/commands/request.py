"""What a user asked for: a spec, on a cluster, perhaps one cell of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from jobs.clusters.profile import Profile
from pipeline.spec.reading import Loaded
from pipeline.storage.files import display_path


@dataclass(frozen=True)
class Request:
    """The arguments of a verb."""

    loaded: Loaded
    cluster: str  # the profile's name
    profile: Profile
    run: str | None = None  # RUN=cell: a folder name or a unique prefix
    overrides: tuple[str, ...] = ()  # as given by SET, in their order
    names_cluster: bool = False  # whether the cluster was named for this command
    verb: str = "grid"  # what was typed
    for_submission: bool = False  # plan: show what `submission` would send
    on_node: bool = False  # doctor: try the set-up on a node of the cluster too

    def command(self, verb: str | None = None, *, run: str | None = None) -> str:
        """What to type for another verb (default: the same) on this request: with its SET and its CLUSTER."""
        words = [f"make {verb or self.verb} SPEC={shlex.quote(display_path(self.loaded.path))}"]
        words += [f"CLUSTER={self.cluster}"] if self.names_cluster else []
        words += [f'SET="{" ".join(self.overrides)}"'] if self.overrides else []
        words += [f"RUN={run}"] if run else []
        return " ".join(words)
