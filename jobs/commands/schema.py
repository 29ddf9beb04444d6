"""The JSON Schema of a spec, as text."""

from __future__ import annotations

import json

from pipeline.spec.reading import json_schema


def schema() -> str:
    """The JSON Schema of a spec, for completion in an editor."""
    return json.dumps(json_schema(), indent=1)
