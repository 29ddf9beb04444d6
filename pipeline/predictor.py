"""A trained cell in Python, three lines from an image to its labels.

    from pipeline.predictor import Predictor

    model = Predictor.load("experiments/demo")  # its selected cell; a cell's own folder works too
    print(model("photo.jpg").labels, model("photo.jpg").scores)

Pictures are packed, scored and decided by the functions that wrangle, evaluate and submission use.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline.checkpoint import load_checkpoint
from pipeline.data.augment import to_input
from pipeline.data.decoding import DECODE_ERRORS, decode, to_pixels
from pipeline.data.sources import open_source
from pipeline.device import Settled
from pipeline.errors import CheckpointError, DataError, PipelineError
from pipeline.folding import folded
from pipeline.prediction import load_network
from pipeline.rundir import ExperimentDir, RunDir
from pipeline.thresholds import Scores, decide

# B batch, H W pixels, C channels, K labels
_CARD = "labelgrid.json"  # inside an exported file


@dataclass(frozen=True)
class Prediction:
    """Scores by label, in [0, 1], and the labels decided on."""

    scores: dict[str, float]
    labels: list[str]


class Predictor:
    """One cell's best checkpoint, ready to score pictures."""

    def __init__(self, best: dict[str, Any], thresholds_K: npt.NDArray[np.float32], device: str) -> None:
        self.labels: list[str] = best["labels"]
        self.thresholds_K = thresholds_K
        self.preprocessing: dict[str, Any] = best["preprocessing"]
        self.settled = Settled.choose(device, best["precision"], None)
        self.settled.apply()
        self.net = folded(load_network(best, self.settled).eval())  # as scoring folds it

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Predictor:
        """Of an experiment's selected cell, or of the cell in `folder`; a CheckpointError where there is none.

        The thresholds are those evaluate decided by, or before it ran those tuned at the end of training.
        """
        path = Path(folder)
        selected = ExperimentDir(path).read_selected().get("cell")
        run = RunDir(path / selected) if selected else RunDir(path)
        if not run.manifest.exists():
            raise CheckpointError(
                f"{path}: has no selected cell and is none; run `make grid`, or name a cell's folder"
            )
        best = load_checkpoint(run.verify(run.checkpoint_best))
        try:
            entries = json.loads(run.report.read_text(encoding="utf-8"))["per_label"]
            thresholds = [entry["threshold"] for entry in entries]
        except (OSError, ValueError, KeyError):
            thresholds = best["thresholds"]["per_label"]
        return cls(best, np.array(thresholds, np.float32), device)

    def __call__(self, image: str | Path | bytes | Image.Image) -> Prediction:
        """Predict one picture: a path, the bytes of a file, or an image as Pillow opened it.

        Raises DataError where it cannot be decoded.
        """
        return self._decided(self.score(self._pixels(image)[None]))[0]

    def folder(self, source: str | Path, batch_size: int = 64) -> Iterator[tuple[str, Prediction]]:
        """(name, prediction) of every picture in a folder, .zip or .tar, in the order of their names."""
        opened = open_source(Path(source))
        known = Image.registered_extensions()
        names = sorted(name for name in opened.members if Path(name).suffix.lower() in known)
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            pixels = np.stack([self._pixels(opened.read(name), name) for name in part])
            yield from zip(part, self._decided(self.score(pixels)), strict=True)
        opened.close()

    @torch.inference_mode()
    def score(self, images_BHWC: npt.NDArray[np.uint8]) -> Scores:
        """Scores (B, K) of pictures of the packed size, as `packed.gather` gives them."""
        images = torch.from_numpy(np.require(images_BHWC, requirements="W")).to(self.settled.device)
        with self.settled.autocast():
            logits_BK = self.net(to_input(images, self.preprocessing["image_px"]))
        return np.asarray(torch.sigmoid(logits_BK.float()).cpu().numpy())

    def export(self, path: str | Path) -> Path:
        """Write a file that needs no Labelgrid: `.pt2` (torch.export) or `.onnx`.

        Its input is uint8 (batch, H, W, 3) at the packed size, its output scores (batch, K) in float32; the
        labels, thresholds and preprocessing are inside, as JSON: `labelgrid.json` of a .pt2, the property
        `labelgrid` of an .onnx.
        """
        path = Path(path)
        if path.suffix not in (".pt2", ".onnx"):
            raise PipelineError(f"{path}: the name must end in .pt2 or .onnx")
        if path.suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
            raise PipelineError(
                f"{path}: needs two more packages: pip install onnx onnxscript; or export a .pt2"
            )
        side = self.preprocessing["packed_px"]
        module = _Exported(copy.deepcopy(self.net), self.preprocessing).eval()
        module = module.to("cpu", torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        thresholds = [float(value) for value in self.thresholds_K]
        card = json.dumps(
            {"labels": self.labels, "thresholds": thresholds, "preprocessing": self.preprocessing}
        )
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files={_CARD: card})
        else:
            converted = torch.onnx.export(program, verbose=False)
            assert converted is not None
            converted.model.metadata_props["labelgrid"] = card
            converted.save(path)
        return path

    def _pixels(
        self, image: str | Path | bytes | Image.Image, name: str = "the image"
    ) -> npt.NDArray[np.uint8]:
        size_px, resize = self.preprocessing["packed_px"], self.preprocessing["resize"]
        try:
            if isinstance(image, Image.Image):
                return to_pixels(image, size_px, resize)
            if not isinstance(image, bytes):
                name, image = str(image), Path(image).read_bytes()
            return decode(image, size_px, resize)
        except DECODE_ERRORS as error:
            raise DataError(f"{name}: cannot be decoded: {error}") from error

    def _decided(self, scores_BK: Scores) -> list[Prediction]:
        return [
            Prediction(
                dict(zip(self.labels, scores_K.tolist(), strict=True)),
                [label for label, decision in zip(self.labels, decisions_K, strict=True) if decision],
            )
            for scores_K, decisions_K in zip(scores_BK, decide(scores_BK, self.thresholds_K), strict=True)
        ]


class _Exported(nn.Module):
    """From packed pixels to scores, by torch's own operators alone; `to_input` takes faster ways."""

    def __init__(self, net: nn.Module, preprocessing: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.image_px = net, preprocessing["image_px"]
        self.mean, self.std = (  # plain parameters: constants of the program
            nn.Parameter(255 * torch.tensor(preprocessing[name]).view(1, 3, 1, 1)) for name in ("mean", "std")
        )

    def forward(self, images_BHWC: Tensor) -> Tensor:
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
        if images_BCHW.shape[-1] != self.image_px:
            size = (self.image_px, self.image_px)
            images_BCHW = functional.interpolate(images_BCHW, size, mode="bilinear", antialias=True)
        return torch.sigmoid(self.net((images_BCHW - self.mean) / self.std))
