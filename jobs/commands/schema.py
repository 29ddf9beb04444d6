"""The JSON Schema of a spec, printed."""

from __future__ import annotations

import json

from pipeline.spec.reading import json_schema


def schema() -> int:
    """Print the JSON Schema of a spec, for completion in an editor."""
    print(json.dumps(json_schema(), indent=1))
    return 0
