"""Write pipeline/spec/torchvision_models.tsv from the installed torchvision: `python tests/torchvision_catalogue.py`.

A row per network that a spec can name and its published weights, torchvision's default first. Torchvision gives
sizes in MiB, the table in MB.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.spec.model_names import HEAD_OF

TARGET = Path(__file__).parents[1] / "pipeline" / "spec" / "torchvision_models.tsv"
COLUMNS = ["name", "weights", "px", "params_m", "gflops", "file_mb", "file", "licence"]


def rows() -> list[list[str]]:
    """The whole table."""
    from torchvision.models import get_model_weights

    found = []
    for name in HEAD_OF:
        known = get_model_weights(name)
        for one in dict.fromkeys([known.DEFAULT, *known]):
            meta = one.meta
            licence = "cc-by-nc-4.0" if "SWAG" in one.name else ""  # torchvision names none of the others
            found.append(
                [name, one.name, str(one.transforms().crop_size[0]), f"{meta['num_params'] / 1e6:.4g}",
                 f"{meta['_ops']:.3g}", f"{meta['_file_size'] * 1.048576:.0f}", one.url.rsplit("/", 1)[-1], licence]
            )  # fmt: skip
    return found


if __name__ == "__main__":
    TARGET.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows()]))
