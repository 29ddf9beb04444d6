"""Write pipeline/spec/timm_models.tsv from the installed timm: `nice -n 19 python tests/timm_catalogue.py`.

A row per set of published weights, `<architecture>.<tag>`, timm's default of an architecture first, and one per
architecture without any. Empty `interpolation` is bicubic; `input` is a word of `NORMALISATIONS` or mean and
std; `hub` is `=` where it is `timm/<name>`, and an address where no hub has the weights.

Parameters (with the published head) and GFLOPs (multiplications with an addition, as papers count them, for a
square picture of `px`) are counted on torch's meta device, which computes nothing. A model that cannot be built
there has neither. Counting all takes an hour; numbers in the table are kept (`--all` counts all again), and it
is written every minute, so that a broken-off call goes on.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.models.installed_timm import installed_model
from pipeline.spec.timm_catalogue import NORMALISATIONS, PREFIX

TARGET = Path(__file__).parents[1] / "pipeline" / "spec" / "timm_models.tsv"
COLUMNS = ["name", "px", "fixed", "interpolation", "input", "licence", "hub", "params_m", "gflops"]
_WRITE_EVERY_S = 60.0


def rows() -> list[list[str]]:
    """Every column but the last two."""
    import timm

    tagged = defaultdict(list)
    for name in timm.list_models(pretrained=True):
        tagged[name.split(".")[0]].append(name)
    found = []
    for architecture in sorted(timm.list_models()):
        default = installed_model(architecture).name
        names = sorted(tagged[architecture], key=lambda name: (name != default, name))
        found += [_row(name) for name in names or [architecture]]
    return found


def _row(name: str) -> list[str]:
    import timm

    assert timm.get_pretrained_cfg(name).hf_hub_filename is None, name  # all are called model.safetensors
    model = installed_model(name)
    assert "@" not in model.hub, name  # or a revision
    words = [word for word, known in NORMALISATIONS.items() if known == model.preprocessing[:2]]
    return [
        name,
        str(model.image_px),
        "fixed" if model.is_fixed else "",
        "" if model.preprocessing.interpolation == "bicubic" else model.preprocessing.interpolation,
        words[0] if words else ",".join(repr(value) for part in model.preprocessing[:2] for value in part),
        model.licence,
        "=" if model.hub == PREFIX + name else model.hub,
    ]


def build(name: str, px: int) -> Any:
    """A network on the meta device, for pictures of `px`."""
    import timm
    import torch

    height, width = timm.get_pretrained_cfg(name).input_size[1:]
    options = {} if height == width else {"img_size": px}
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False, **options)
    return net.eval().requires_grad_(False)  # FlopCounterMode trips over gradients within torch.no_grad


def params_m(net: Any) -> str:
    """Millions of parameters, to four digits."""
    return _digits(sum(part.numel() for part in net.parameters()) / 1e6, 4)


def gflops(net: Any, px: int) -> str:
    """Of one picture."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, px, px, device="meta"))
    return _digits(counter.get_total_flops() / 2e9, 3)


def _digits(value: float, count: int) -> str:
    """So many significant digits, without an exponent."""
    return f"{float(f'{value:.{count}g}'):g}"


def _counted(name: str, px: int) -> list[str]:
    found = []
    try:
        net = build(name, px)
        found.append(params_m(net))
        found.append(gflops(net, px))
    except Exception as error:  # noqa: BLE001 -- a thousand networks fail in their own ways
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr, flush=True)
    return [*found, "", ""][:2]


def main(*, again: bool) -> None:
    """Write the table, then count what it lacks."""
    import timm
    import torch

    torch.set_num_threads(1)
    timm.layers.set_fused_attn(False)  # its products are counted wherever it runs
    known = {} if again else {tuple(row[:2]): row[-2:] for row in read()}
    table = [[*row, *known.get((row[0], row[1]), ["", ""])] for row in rows()]
    done: dict[tuple[Any, ...], list[str]] = {}  # equal networks are counted once
    last = time.monotonic()
    for row in table:
        name, px = row[0], int(row[1])
        key = name.split(".")[0], px, timm.get_pretrained_cfg(name).num_classes
        if not row[-1]:
            row[-2:] = done.get(key) or _counted(name, px)
        done[key] = row[-2:]
        if time.monotonic() - last > _WRITE_EVERY_S:
            write(table)
            last = time.monotonic()
            print(f"{table.index(row)} of {len(table)}", file=sys.stderr, flush=True)
    write(table)
    empty = sum(not row[-1] for row in table)
    print(f"{TARGET}: {len(table)} models, {empty} could not be counted", file=sys.stderr)


def read() -> list[list[str]]:
    """The rows of the table as it is."""
    header, *lines = TARGET.read_text().splitlines()
    return [line.split("\t") for line in lines] if header.split("\t") == COLUMNS else []


def write(table: list[list[str]]) -> None:
    """The whole table."""
    TARGET.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *table]))


if __name__ == "__main__":
    main(again="--all" in sys.argv)
