"""The text of the spec that `init` writes: a `data:` section with a small recipe, and what each line means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.spec.strict_yaml import BOOLEAN_TRAPS, scalar

_MEANS = {
    "onehot_csv": "a row per image, and a column per label that holds 0 or 1",
    "list_csv": "a row per image, and a column that lists its labels",
    "id_lists": "a text file per label, which lists the images that have it",
    "coco": "COCO's instances: an image has a label if an object of that category is in it",
    "jsonl": "a JSON object a line: an image and its labels",
    "voc": "Pascal VOC: a text file per label, with -1, 0 or 1 for each image",
    "vectors": "a text file per label with a 0 or 1 per image; `order` names the images",
    "celeba": "CelebA: a file name and -1 or 1 for each label",
    "folders": "the folder of an image is its label; copies of a picture in several folders are joined",
}
_SPLITS = {
    "stratified": "a fifth of the images validates, with its share of every label; test: 0.1 keeps some to predict",
    "column": "a column of the table says which image trains and which validates",
    "lists": "text files say which image trains and which validates",
    "given": "the images came divided: these validate, those of `images` above train",
}


@dataclass(frozen=True)
class Recipe:
    """What a first grid trains: sides in pixels, images in a step, and whether pictures are mirrored."""

    size_px: int
    batch_size: int
    mirror: bool


def spec_text(
    section: Mapping[str, Any], recipe: Recipe, source: str, spec: str, unsure: Sequence[str]
) -> str:
    """The YAML of a spec with comments; `section` holds paths as they shall stand there."""
    doubts = "".join(f"#           - {' '.join(text.split())}\n" for text in unsure)
    if doubts:
        doubts = (
            "# Unsure:   compare with `labelgrid inspect`, which draws images with their labels\n" + doubts
        )
    labels, split = section["labels"], section["split"]
    data = [
        ("source", "a folder, .zip or .tar: read where it lies, never changed"),
        ("images", "the images' names; {id} stands for what differs"),
        ("image_list", ""),
        ("labels", _MEANS[labels["format"]]),
        (
            "range",
            "pictures of more than 8 bits: the smallest value of the set becomes black, the largest white",
        ),
        ("split", _SPLITS[split["method"]]),
        ("set_aside", "how much of the images or entries may be left out; mend the files, and lower it"),
        ("test", "the images that `labelgrid submission` predicts"),
    ]
    lines = [_line(key, section[key], comment) for key, comment in data if key in section]
    if "test" not in section:
        lines.append(
            "  # test: {source: new-photos, labels: none}  # other images, which `submission` labels\n"
        )
    return f"""\
# Question: which learning rate is better for a small network on {source}?
# Command:  labelgrid grid {spec}
# Cost:     minutes on a laptop for a few thousand images; `labelgrid plan {spec}` says what would run.
{doubts}\
# `labelgrid keys data.labels` explains a key, docs/spec.md all of them.
data:
{"".join(lines)}\
  size_px: {recipe.size_px}  # the side of the stored pictures; 256 for train.image_px: 224 below
  negatives: {{train: keep}}  # images without a label train too; a number keeps that fraction, if they are too many
train:
  model: {{name: cnn3, head_bias: prior}}  # small and without a download, to see that all works
  image_px: {recipe.size_px}
  # For photographs in earnest, a pretrained network is far better: write these lines instead of the two above
  # (14 MB are fetched once). On a GPU, trainable: all without cached_views is better still; experiments/best.yaml.
  # model: {{name: mobilenet_v2, weights: IMAGENET1K_V1, trainable: head, head_bias: prior}}
  # image_px: 224
  # cached_views: 1
  augment: {{hflip: {0.5 if recipe.mirror else 0}}}  # mirrors half of the pictures; 0 where sides differ, as in text
  optimizer: {{name: adam, lr: 1e-3}}
  epochs: 10  # the best one is kept; more where the curves still rise at the end
  batch_size: {recipe.batch_size}
grid:
  axes: {{train.optimizer.lr: [1e-3, 3e-3]}}  # each value is a training; add keys and values to compare
evaluate: {{threshold: per_label, select_by: f1_micro}}  # from which score on a label counts, and what ranks the cells
"""


def _line(key: str, value: Any, comment: str) -> str:
    """A key of `data:`; a mapping has a line for each of its keys."""
    end = f"  # {comment}" if comment else ""
    if not isinstance(value, Mapping):
        return f"  {key}: {flow(value)}{end}\n"
    return f"  {key}:{end}\n" + "".join(f"    {name}: {flow(inner)}\n" for name, inner in value.items())


def flow(value: Any) -> str:
    """A value as YAML in one line, quoted where it would be read as something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(name)}: {flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[\w./][\w./-]*", value, re.ASCII)
    if plain and scalar(value) is value and value.lower() not in BOOLEAN_TRAPS:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
