"""What to type: `make VERB SPEC=...` in a checkout, `labelgrid VERB SPEC ...` anywhere else. Torch-free.

Every text that names a command asks here, so that nobody is told to use a Makefile that is not there.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SPEC = "SPEC"  # stands for a spec that the text does not know


def typed(
    verb: str, spec: str = _SPEC, *, cluster: str = "", settings: Sequence[str] = (), run: str = ""
) -> str:
    """The command as it works where one stands; `spec=""` for a verb that takes none."""
    options = [option("cluster", cluster)] if cluster else []
    options += [option("set", *settings)] if settings else []
    options += [option("run", run)] if run else []
    if in_checkout(Path.cwd()):
        named = [f"SPEC={shlex.quote(spec)}"] if spec not in ("", _SPEC) else []
        return " ".join([f"make {verb}", *named, *options])
    return " ".join([f"labelgrid {verb}", *([shlex.quote(spec)] if spec else []), *options])


def option(name: str, *values: str) -> str:
    """An option of a verb as it is typed where one stands: `RUN=sgd` or `--run sgd`."""
    if not in_checkout(Path.cwd()):
        return f"--{name} {shlex.join(values)}"
    text = " ".join(values)
    return f"{name.upper()}=" + (f'"{text}"' if name == "set" else text)


@cache
def in_checkout(folder: Path) -> bool:
    """Whether `make` knows the verbs in this folder."""
    try:
        return "m jobs" in (folder / "Makefile").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
