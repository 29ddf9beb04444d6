"""A trained cell in Python, three lines from an image to its labels.

    from pipeline.predictor import Predictor

    model = Predictor.load("experiments/demo")  # its selected cell; a cell's own folder works too
    print(model("photo.jpg").labels, model("photo.jpg").scores)

Pictures are packed, scored and decided by the functions that wrangle, evaluate and submission use.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.decoding import Preparation, decode, reason, to_pixels
from pipeline.data.image_files import HEIC_ENDINGS, REFUSED
from pipeline.data.inputs import to_input
from pipeline.data.sources import open_source
from pipeline.errors import CheckpointError, DataError, PipelineError
from pipeline.evaluation.prediction import load_scorer
from pipeline.evaluation.selection import Selection
from pipeline.metrics.decision_rule import DecisionRule, Validation, mean_scores
from pipeline.metrics.multilabel import Scores
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.scoring import Scorer
from pipeline.spec import EvaluateSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.run_dir import ExperimentDir, RunDir

# B batch, H W pixels, C channels, K labels
_CARD = "labelgrid.json"  # inside an exported file


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever reading one picture raises becomes a DataError with its name."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded: {reason(error)}") from error


@dataclass(frozen=True)
class Prediction:
    """Scores by label, in [0, 1], and the labels decided on."""

    scores: dict[str, float]
    labels: list[str]


class Predictor:
    """A cell's best checkpoint, or those of an ensemble, ready to score pictures."""

    def __init__(
        self, runs: Sequence[RunDir], evaluate: EvaluateSpec, device: str, made_by: str = ""
    ) -> None:
        self.cells = [run.name for run in runs]
        self.made_by = (
            made_by  # the spec and SET of the evaluation that selected them; "" for a cell of one's own
        )
        bests = [load_checkpoint(run.verify(run.checkpoint_best)) for run in runs]
        validation = Validation.mean([Validation.read(run) for run in runs])
        self.rule = DecisionRule.fit(evaluate, validation.scores_NK, validation.targets_NK)
        self.labels: list[str] = bests[0]["labels"]
        self.preprocessing: dict[str, Any] = bests[0]["preprocessing"]
        scorers = [load_scorer(best, device) for best in bests]
        self.scorers = [
            replace(scorer, net=fuse_conv_bn(scorer.net)) for scorer in scorers
        ]  # as scoring fuses them

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Predictor:
        """Load what an experiment has selected (a cell or an ensemble), or the cell in `folder`.

        The decision rule is that of the evaluation, or of its own spec for a single cell. Raises
        CheckpointError where there is no finished cell.
        """
        path = Path(folder)
        selection = Selection.read(ExperimentDir(path))
        if selection.cells:
            runs = [RunDir(path / name) for name in selection.cells]
            return cls(runs, selection.evaluate, device, selection.made_by)
        run = RunDir(path)
        if not run.manifest.exists():
            raise CheckpointError(
                f"{path}: has no selected cell and is not a cell's folder; run `make grid`, or name a cell's folder"
            )
        return cls([run], read_spec(run.spec).spec.evaluate, device)

    def __repr__(self) -> str:
        made = f", ranked by {self.made_by}" if self.made_by else ""
        return f"<Predictor of {', '.join(self.cells)}{made}: {len(self.labels)} labels, {self.rule.text}>"

    def __call__(self, image: str | Path | bytes | Image.Image) -> Prediction:
        """Predict one picture: a path, the bytes of a file, or an image as Pillow opened it.

        Raises DataError where it cannot be decoded.
        """
        return self._decided(self.score(self._pixels(image)[None]))[0]

    def folder(self, source: str | Path, batch_size: int = 64) -> Iterator[tuple[str, Prediction]]:
        """(name, prediction) of every picture in a folder, .zip or .tar, in the order of their names."""
        opened = open_source(Path(source))
        formats = Image.registered_extensions()
        known = {ending for ending, name in formats.items() if name not in REFUSED} | HEIC_ENDINGS
        names = sorted(name for name in opened.members if Path(name).suffix.lower() in known)
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            pixels = []
            for name in part:
                with _naming(name):
                    body = opened.read(name)
                pixels.append(self._pixels(body, name))
            yield from zip(part, self._decided(self.score(np.stack(pixels))), strict=True)
        opened.close()

    @torch.inference_mode()
    def score(self, images_BHWC: npt.NDArray[np.uint8]) -> Scores:
        """Scores (B, K) of pictures of the packed size, as `packed.gather` gives them."""
        images = torch.from_numpy(np.require(images_BHWC, requirements="W"))
        logits = [
            s.logits(to_input(images.to(s.execution.device), *s.input_kind)).cpu() for s in self.scorers
        ]
        return mean_scores([torch.sigmoid(logits_BK).numpy() for logits_BK in logits])

    def export(self, path: str | Path) -> Path:
        """Write a file that needs no Labelgrid: `.pt2` (torch.export) or `.onnx`.

        Its input is uint8 (batch, H, W, 3) at the packed size, its output scores (batch, K) in float32; the
        labels, decision rule and preprocessing are inside, as JSON: `labelgrid.json` of a .pt2, the property
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
        module = _Exported(copy.deepcopy(self.scorers)).eval()
        module = module.to("cpu", torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs leave memory_format out
        example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        card = json.dumps(
            {"labels": self.labels, "rule": self.rule.as_dict(), "preprocessing": self.preprocessing}
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
        packed = self.preprocessing
        preparation = Preparation(packed["packed_px"], packed["resize"], packed["range"])
        if isinstance(image, str | Path):
            name = str(image)
        with _naming(name):
            if isinstance(image, Image.Image):
                return to_pixels(image, preparation)
            return decode(image if isinstance(image, bytes) else Path(image).read_bytes(), preparation)

    def _decided(self, scores_BK: Scores) -> list[Prediction]:
        return [
            Prediction(
                dict(zip(self.labels, scores_K.tolist(), strict=True)),
                [label for label, decision in zip(self.labels, decisions_K, strict=True) if decision],
            )
            for scores_K, decisions_K in zip(scores_BK, self.rule(scores_BK), strict=True)
        ]


class _Exported(nn.Module):
    """Packed pixels to scores with torch's operators alone; `to_input` is faster but cannot be exported."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(scorer.net for scorer in scorers)
        self.sides = [(scorer.image_px, scorer.flips) for scorer in scorers]
        self.means, self.stds = (  # plain parameters: constants of the program
            nn.ParameterList(255 * torch.tensor(value).view(1, 3, 1, 1) for value in values)
            for values in zip(*(scorer.normalisation for scorer in scorers), strict=True)
        )

    def forward(self, images_BHWC: Tensor) -> Tensor:
        packed_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
        scores = []
        parts = zip(self.nets, self.sides, self.means, self.stds, strict=True)
        for net, (image_px, flips), mean, std in parts:
            images_BCHW = packed_BCHW
            if images_BCHW.shape[-1] != image_px:
                size = (image_px, image_px)
                images_BCHW = functional.interpolate(images_BCHW, size, mode="bilinear", antialias=True)
            inputs_BCHW = (images_BCHW - mean) / std
            logits_BK = net(inputs_BCHW)
            if flips:
                logits_BK = (logits_BK + net(inputs_BCHW.flip(3))) / 2
            scores.append(torch.sigmoid(logits_BK))
        return torch.stack(scores).mean(dim=0)
