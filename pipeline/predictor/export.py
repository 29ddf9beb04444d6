"""The product as one file: from RGB pixels of any size to scores and decided labels, without Labelgrid."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.decoding import Preparation
from pipeline.errors import PipelineError
from pipeline.metrics.decision_rule import DecisionRule
from pipeline.metrics.expected_f1 import quadrature
from pipeline.models.scoring import Scorer
from pipeline.predictor.resizing import resized
from pipeline.storage.files import flush, write_failed

if TYPE_CHECKING:
    from pipeline.predictor.predictor import Predictor

# B batch, H W pixels, C channels, K labels, Q nodes
CARD = "labelgrid.json"  # inside a .pt2; the property `labelgrid` of an .onnx
OUTSIDE = (
    "decoding a file to RGB of 8 bits: as Pillow does at full size. Predictor lets libjpeg halve large JPEGs, as the "
    "training set was; give it the decoded array to get what this file gives",
    "turning a picture upright, as its EXIF orientation says (PIL.ImageOps.exif_transpose)",
    "transparency: transparent pixels show white",
    "grey pictures become RGB; of more than 8 bits, `preprocessing.range` becomes 0 to 255",
)


def export(predictor: Predictor, path: Path) -> Path:
    """Write a file that needs no Labelgrid: `.pt2` (torch.export) or `.onnx`, for inputs of any size and batch.

    Its input `images` is uint8 (batch, height, width, 3) in RGB. Its outputs are `scores` (batch, K) in float32 and
    `labels` (batch, K) of 0 and 1, as the decision rule decides. Resizing, normalisation, every member of an ensemble,
    calibration and thresholds are in its graph. A card in JSON names the labels, the rule, the preprocessing, and the
    steps that stay outside. Computed in float32. Raises PipelineError before anything is computed where the file
    cannot be written or packages are missing.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise PipelineError(f"{path}: the name must end in .pt2 or .onnx")
    if not path.parent.is_dir():
        raise PipelineError(f"{path}: the folder {path.parent} is not there; make it, or write another path")
    if path.suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise PipelineError(f"{path}: needs two more packages: pip install onnx onnxscript; or export a .pt2")
    preparations = [_preparation(member) for member in predictor.members]
    module = Product(copy.deepcopy(predictor.scorers), preparations, predictor.rule).eval()
    module = module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs leave memory_format out
    example = torch.zeros(2, 80, 96, 3, dtype=torch.uint8)
    shape = {i: torch.export.Dim(name) for i, name in enumerate(("batch", "height", "width"))}
    program = torch.export.export(module, (example,), dynamic_shapes={"images": shape})
    card = json.dumps(card_of(predictor))
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # the suffix matters to both writers
    try:
        if path.suffix == ".pt2":
            torch.export.save(program, partial, extra_files={CARD: card})
        else:
            converted = torch.onnx.export(
                program, input_names=["images"], output_names=["scores", "labels"], verbose=False
            )
            assert converted is not None
            converted.model.metadata_props["labelgrid"] = card
            converted.save(partial)
        flush(partial)
        partial.replace(path)
    except OSError as error:
        raise PipelineError(write_failed(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def card_of(predictor: Predictor) -> dict[str, Any]:
    """What the numbers of an exported file mean, ready for JSON."""
    return {
        "labels": predictor.labels,
        "rule": predictor.rule.as_dict(),
        "cells": predictor.cells,
        "preprocessing": predictor.preprocessing,
        "members": predictor.members,
        "input": "images: uint8 (batch, height, width, 3), RGB, upright; any size",
        "outputs": {"scores": "(batch, labels) in [0, 1]", "labels": "(batch, labels) of 0 and 1"},
        "outside": OUTSIDE,
    }


def _preparation(member: dict[str, Any]) -> Preparation:
    interpolation = member.get("packed_interpolation", "bilinear")
    return Preparation(member["packed_px"], member["resize"], interpolation=interpolation)


class Product(nn.Module):
    """Pixels (B, H, W, 3) to scores (B, K) and decisions (B, K), with torch's operators alone."""

    def __init__(
        self, scorers: Sequence[Scorer], preparations: Sequence[Preparation], rule: DecisionRule
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(scorer.net.float() for scorer in scorers)
        self.preparations = list(preparations)
        self.sides = [
            (scorer.image_px, scorer.preprocessing.interpolation, scorer.flips) for scorer in scorers
        ]
        self.means, self.stds = (  # plain parameters: constants of the program
            nn.ParameterList(255 * torch.tensor(value).view(1, 3, 1, 1) for value in values)
            for values in zip(*(scorer.preprocessing[:2] for scorer in scorers), strict=True)
        )
        self.decide = Decisions(rule)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(scores, labels) of uint8 pictures."""
        packed = {each: resized(images, each) for each in dict.fromkeys(self.preparations)}
        scores = []
        parts = zip(self.nets, self.preparations, self.sides, self.means, self.stds, strict=True)
        for net, preparation, (image_px, interpolation, flips), mean, std in parts:
            images_BCHW = packed[preparation]
            if preparation.size_px != image_px:
                size = (image_px, image_px)
                images_BCHW = functional.interpolate(images_BCHW, size, mode=interpolation, antialias=True)
                if interpolation == "bicubic":
                    images_BCHW = images_BCHW.clamp(0, 255)
            inputs_BCHW = (images_BCHW - mean) / std
            logits_BK = net(inputs_BCHW)
            if flips:
                logits_BK = (logits_BK + net(inputs_BCHW.flip(3))) / 2
            scores.append(torch.sigmoid(logits_BK).double())
        scores_BK = (torch.stack(scores).mean(dim=0)).float()
        return scores_BK, self.decide(scores_BK)


class Decisions(nn.Module):
    """`DecisionRule` with torch's operators: calibration in double precision, then thresholds or expected F1."""

    slope_K: Tensor
    intercept_K: Tensor
    thresholds_K: Tensor
    x_Q: Tensor
    weight_Q: Tensor

    def __init__(self, rule: DecisionRule) -> None:
        super().__init__()
        self.empty_f1 = rule.empty_f1
        self.is_calibrated = bool((rule.calibration.slope_K != 1).any() or rule.calibration.intercept_K.any())
        x_Q, weight_Q = quadrature(len(rule.calibration.slope_K))
        constants = {
            "slope_K": rule.calibration.slope_K,
            "intercept_K": rule.calibration.intercept_K,
            "x_Q": x_Q,
            "weight_Q": weight_Q,
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))
        thresholds_K = rule.thresholds_K
        self.has_thresholds = thresholds_K is not None
        self.register_buffer(
            "thresholds_K", torch.from_numpy(np.array(0.5 if thresholds_K is None else thresholds_K))
        )

    def forward(self, scores_BK: Tensor) -> Tensor:
        """(B, K) uint8 of 0 and 1."""
        if self.is_calibrated:
            inside = scores_BK.double().clamp(1e-7, 1 - 1e-7)
            logits_BK = torch.log(inside) - torch.log1p(-inside)
            scores_BK = torch.sigmoid(self.slope_K * logits_BK + self.intercept_K).float()
        if self.has_thresholds:
            return (scores_BK >= self.thresholds_K).to(torch.uint8)
        return self._maximise_expected_f1(scores_BK.double())

    def _maximise_expected_f1(self, scores_BK: Tensor) -> Tensor:
        """As `pipeline.metrics.expected_f1`, which explains it."""
        labels = scores_BK.shape[1]
        p_BK = torch.topk(scores_BK, labels, dim=1).values
        either_BQK = 1 - p_BK[:, None, :] * self.x_Q[:, None]
        sums_BQK = torch.cumsum(p_BK[:, None, :] / either_BQK, 2)
        sizes_K = torch.arange(1, labels + 1, dtype=torch.float64)
        powers_QK = torch.exp(torch.log1p(-self.x_Q)[:, None] * sizes_K)
        product_BQ = torch.exp(torch.log(either_BQK).sum(2)) * self.weight_Q
        expected_BK = 2 * (product_BQ[:, None, :] @ (sums_BQK * powers_QK))[:, 0]
        negative_B1 = self.empty_f1 * torch.exp(torch.log1p(-p_BK).sum(1, keepdim=True))
        expected_BM = torch.cat([negative_B1, expected_BK - 1e-12 * sizes_K], dim=1)
        size_B1 = torch.argmax(expected_BM, 1, keepdim=True)
        # the highest scores; of those equal to the last of them, the first ones
        last_B1 = p_BK.gather(1, (size_B1 - 1).clamp(min=0))
        above_BK, equal_BK = scores_BK > last_B1, (scores_BK == last_B1).to(torch.int64)
        places_B1 = size_B1 - above_BK.to(torch.int64).sum(1, keepdim=True)
        chosen_BK = above_BK | ((equal_BK > 0) & (torch.cumsum(equal_BK, 1) <= places_B1))
        return (chosen_BK & (size_B1 > 0)).to(torch.uint8)
