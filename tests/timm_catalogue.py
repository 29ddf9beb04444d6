"""Write pipeline/spec/timm_models.tsv from the installed timm: `python tests/timm_catalogue.py`.

A row per set of published weights, `<architecture>.<tag>`, and one per architecture without any. `hub` is `=`
where it is `timm/<name>`. GFLOPs (multiplications with an addition, as papers count them, at the model's own
size) and parameters are counted on torch's meta device, which computes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "pipeline" / "spec" / "timm_models.tsv"
COLUMNS = ["name", "px", "fixed", "interpolation", "mean", "std", "licence", "hub", "params_m", "gflops"]


def rows() -> list[list[str]]:
    """The catalogue, sorted by name."""
    import timm

    found = []
    for architecture in timm.list_models():
        names = [architecture]
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        names = sorted(name for name in tagged if name.split(".")[0] == architecture) or [architecture]
        params_m, gflops = "", ""  # counted by count()
        for name in names:
            found.append([*_row(name, timm.get_pretrained_cfg(name)), params_m, gflops])
    return sorted(found)


def _row(name: str, cfg: Any) -> list[str]:
    numbers = [",".join(f"{value!r}" for value in part) for part in (cfg.mean, cfg.std)]
    hub = "=" if cfg.hf_hub_id == f"timm/{name}" else cfg.hf_hub_id or ""
    fixed = "fixed" if cfg.fixed_input_size else ""
    return [
        name,
        str(cfg.input_size[-1]),
        fixed,
        cfg.interpolation,
        *numbers,
        cfg.license or "",
        hub,
    ]


if __name__ == "__main__":
    body = "\n".join("\t".join(row) for row in [COLUMNS, *rows()])
    TARGET.write_text(body + "\n")
    print(f"{TARGET}: {body.count(chr(10))} models", file=sys.stderr)
