"""The `Predictor`: checkpoints and the decision rule of what was selected, for pictures of an application."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.decoding import Preparation, reason
from pipeline.data.image_files import HEIC_ENDINGS, REFUSED
from pipeline.data.inputs import to_input
from pipeline.data.sources import READ_ERRORS, open_source
from pipeline.errors import CheckpointError, DataError, PipelineError
from pipeline.evaluation.prediction import load_scorer, own_code_of
from pipeline.evaluation.selection import Selection
from pipeline.metrics.decision_rule import DecisionRule, Validation, mean_scores
from pipeline.metrics.multilabel import Scores
from pipeline.models.build import head_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.fusing import fuse_conv_bn
from pipeline.models.heads import Csra
from pipeline.models.scoring import Scorer
from pipeline.predictor.export import export
from pipeline.predictor.pictures import Picture, is_several, packed_pixels
from pipeline.predictor.results import Prediction, Predictions
from pipeline.spec import EvaluateSpec
from pipeline.spec.reading import read_spec
from pipeline.storage.files import near_names
from pipeline.storage.run_dir import ExperimentDir, RunDir
from pipeline.storage.typed import typed

# B batch, H W pixels, C channels, K labels, D features
Packed = list[npt.NDArray[np.uint8]]  # a picture (H, W, C) or a batch (B, H, W, C), in each preparation


class Predictor:
    """A cell's best checkpoint, or those of an ensemble, ready to score pictures.

    `labels` are those of all scores, in their order; `preprocessing` says what each member wants of a picture.
    """

    def __init__(
        self, runs: Sequence[RunDir], evaluate: EvaluateSpec, device: str, made_by: str = ""
    ) -> None:
        self.cells = [run.name for run in runs]
        self.made_by = (
            made_by  # the spec and --set of the evaluation that selected them; "" for a cell of one's own
        )
        bests = [load_checkpoint(run.verify(run.checkpoint_best)) for run in runs]
        validation = Validation.mean(map(Validation.read, runs))
        self.rule = DecisionRule.fit(evaluate, validation.scores_NK, validation.targets_NK)
        self.labels: list[str] = bests[0]["labels"]
        self.members: list[dict[str, Any]] = [best["preprocessing"] for best in bests]
        self._head_names = [best["model_spec"]["name"] for best in bests]
        scorers = [
            load_scorer(best, device, own_code_of(run, best)) for run, best in zip(runs, bests, strict=True)
        ]
        # as scoring fuses them
        self.scorers = [replace(scorer, net=fuse_conv_bn(scorer.net)) for scorer in scorers]
        self.batch_size = 64

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 64,
        threads: int | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Predictor:
        """Load what an experiment has selected (a cell or an ensemble), or the cell in `folder`.

        The decision rule is that of the evaluation, or of its own spec for a single cell; `thresholds` replace its
        thresholds, by label. `device` is auto, cpu or cuda. `batch_size` pictures are scored at a time, which bounds
        the memory. `threads` sets the CPU threads of torch in the whole process (None: as they are). Raises
        CheckpointError where there is no finished cell, PipelineError for a label or device that is not there.
        """
        path = Path(folder)
        if path.suffix in (".yaml", ".yml"):
            results = path.with_suffix("")
            first = "" if results.is_dir() else f"; run `{typed('grid', str(path))}` first"
            raise CheckpointError(
                f'{path}: is a spec; its results are loaded: Predictor.load("{results}"){first}'
            )
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: there is no such folder{near_names(path)}; name an experiment's or a cell's"
            )
        if device not in ("auto", "cpu", "cuda"):
            raise PipelineError(f'device={device!r}: write device="auto", "cpu" or "cuda"')
        if device == "cuda" and not torch.cuda.is_available():
            raise PipelineError(
                f'device="cuda": torch {torch.__version__} sees no GPU here; write device="cpu", or "auto"'
            )
        if threads is not None:
            torch.set_num_threads(threads)
        selection = Selection.read(ExperimentDir(path))
        if selection.cells:
            runs = [RunDir(path / name) for name in selection.cells]
            found = cls(runs, selection.evaluate, device, selection.made_by)
        else:
            run = RunDir(path)
            if not run.manifest.exists():
                raise CheckpointError(
                    f"{path}: has no selected cell and is not a cell's folder; run `{typed('grid')}`, or name "
                    "a cell's folder"
                )
            found = cls([run], read_spec(run.spec).spec.evaluate, device)
        found.batch_size = batch_size
        return found.with_thresholds(thresholds) if thresholds else found

    def __repr__(self) -> str:
        made = f", ranked by {self.made_by}" if self.made_by else ""
        return f"<Predictor of {', '.join(self.cells)}{made}: {len(self.labels)} labels, {self.rule.text}>"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the first member wants of a picture: `packed_px`, `resize`, `range`, `image_px`, `mean` and so on."""
        return self.members[0]

    @property
    def preparations(self) -> list[Preparation]:
        """The ways in which the members' pictures were packed, each once."""
        return list(dict.fromkeys(map(_preparation, self.members)))

    @property
    def thresholds(self) -> dict[str, float] | None:
        """The calibrated score from which each label is decided on; None where the rule has no thresholds."""
        if self.rule.thresholds_K is None:
            return None
        return dict(zip(self.labels, self.rule.thresholds_K.tolist(), strict=True))

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Predictor:
        """The same with other thresholds of some labels; those that are not named keep theirs."""
        unknown = [label for label in thresholds if label not in self.labels]
        if unknown:
            raise PipelineError(
                f"{', '.join(unknown)}: no such label; the labels are {', '.join(self.labels)}"
            )
        before = self.thresholds
        if before is None and len(thresholds) < len(self.labels):
            raise PipelineError(f"the rule ({self.rule.text}) has no thresholds: give one for every label")
        values = [float(thresholds.get(label, (before or {}).get(label, 0))) for label in self.labels]
        found = copy.copy(self)
        found.rule = replace(
            self.rule,
            thresholds_K=np.array(values, np.float32),
            text=f"{self.rule.text}; {len(thresholds)} set by hand",
        )
        return found

    @overload
    def __call__(self, picture: Picture) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is iterable too
    @overload
    def __call__(self, picture: Iterable[Picture]) -> list[Prediction]: ...
    def __call__(self, picture: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """Predict one picture, or several (a list or an iterator), whose predictions come as a list.

        A picture is a path, the bytes of a file, an open binary file, a Pillow image, or a numpy array (H, W, 3) of
        uint8. Raises DataError where one cannot be decoded, naming it.
        """
        if is_several(picture):
            packed = (self._packed(one, i) for i, one in enumerate(picture))
            return [found for batch in self._batches(packed) for found in self._decided(self._score(batch))]
        return self._decided(self._score([one[None] for one in self._packed(cast(Picture, picture))]))[0]

    def stream(self, pictures: Iterable[Picture]) -> Predictions:
        """(name, prediction) of pictures that are taken one after the other; a broken one does not end it.

        The name is the path, or the position of what has none.
        """

        def make(broken: dict[str, str]) -> Iterator[tuple[str, Prediction]]:
            named = ((self._name(one, i), one) for i, one in enumerate(pictures))
            return self._predicted(((name, partial(_itself, one)) for name, one in named), broken)

        return Predictions(make)

    def folder(self, source: str | Path) -> Predictions:
        """(name, prediction) of every picture in a folder, .zip or .tar, in the order of their names.

        Broken ones are left out, and listed in `.broken` of what is returned.
        """

        def make(broken: dict[str, str]) -> Iterator[tuple[str, Prediction]]:
            opened = open_source(Path(source))
            try:
                formats = Image.registered_extensions()
                known = {ending for ending, name in formats.items() if name not in REFUSED} | HEIC_ENDINGS
                names = sorted(name for name in opened.members if Path(name).suffix.lower() in known)
                if not names:
                    raise DataError(f"{source}: holds no picture")
                yield from self._predicted(((name, partial(opened.read, name)) for name in names), broken)
            finally:
                opened.close()

        return Predictions(make)

    @torch.inference_mode()
    def score(self, images_BHWC: npt.NDArray[np.uint8]) -> Scores:
        """Scores (B, K) of pictures of the packed size, as `packed.gather` gives them."""
        if len(self.preparations) > 1:
            raise PipelineError(
                "the members were packed at different sizes; call the predictor with pictures"
            )
        return self._score([images_BHWC])

    def embeddings(self, pictures: Picture | Iterable[Picture]) -> npt.NDArray[np.float32]:
        """(B, D): what the head of the network sees of each picture; of an ensemble side by side."""
        several = pictures if is_several(pictures) else [cast(Picture, pictures)]
        packed = (self._packed(one, i) for i, one in enumerate(several))
        return np.concatenate([self._embedded(batch) for batch in self._batches(packed)])

    def export(self, path: str | Path) -> Path:
        """Write the product as one file that needs no Labelgrid: `.pt2` (torch.export) or `.onnx`; see `export`."""
        return export(self, Path(path))

    @staticmethod
    def _name(picture: object, position: int) -> str:
        return str(picture) if isinstance(picture, str | Path) else f"picture {position}"

    def _packed(self, picture: Picture, position: int | None = None) -> Packed:
        name = "" if position is None else self._name(picture, position)
        return packed_pixels(picture, self.preparations, name)

    def _batches(self, pictures: Iterator[Packed]) -> Iterator[Packed]:
        """Up to `batch_size` pictures at a time: (B, H, W, C) in each preparation."""
        while some := list(islice(pictures, self.batch_size)):
            yield [np.stack(same) for same in zip(*some, strict=True)]

    def _predicted(
        self, named: Iterable[tuple[str, Callable[[], Picture]]], broken: dict[str, str]
    ) -> Iterator[tuple[str, Prediction]]:
        names: list[str] = []

        def packed() -> Iterator[Packed]:
            for name, read in named:
                try:
                    found = packed_pixels(read(), self.preparations, name)
                except (DataError, TypeError, FileNotFoundError) as error:
                    broken[name] = str(error)
                except READ_ERRORS as error:
                    broken[name] = f"{name}: cannot be decoded: {reason(error)}"
                else:
                    names.append(name)
                    yield found

        for batch in self._batches(packed()):
            yield from zip(names, self._decided(self._score(batch)), strict=True)
            names.clear()

    def _inputs(self, batch: Packed) -> Iterator[tuple[Scorer, Tensor]]:
        """Each member with its input."""
        by_preparation = dict(zip(self.preparations, batch, strict=True))
        for scorer, member in zip(self.scorers, self.members, strict=True):
            images = torch.from_numpy(np.require(by_preparation[_preparation(member)], requirements="W"))
            yield scorer, to_input(images.to(scorer.execution.device), *scorer.input_kind)

    @torch.inference_mode()
    def _score(self, batch: Packed) -> Scores:
        logits = [scorer.logits(inputs).cpu() for scorer, inputs in self._inputs(batch)]
        return mean_scores([torch.sigmoid(logits_BK).numpy() for logits_BK in logits])

    @torch.inference_mode()
    def _embedded(self, batch: Packed) -> npt.NDArray[np.float32]:
        found: list[Tensor] = []
        for (scorer, inputs), name in zip(self._inputs(batch), self._head_names, strict=True):
            head = head_of(scorer.net, name)
            pooled = head.pooled if isinstance(head, Csra) else _itself
            hook = head.register_forward_pre_hook(
                lambda _, arguments, pooled=pooled: found.append(
                    pooled(arguments[0]).flatten(1).float().cpu()
                )
            )
            with hook:
                replace(scorer, flips=False).logits(inputs)
        return torch.cat(found, dim=1).numpy()

    def _decided(self, scores_BK: Scores) -> list[Prediction]:
        return [
            Prediction(
                dict(zip(self.labels, scores_K.tolist(), strict=True)),
                [label for label, decision in zip(self.labels, decisions_K, strict=True) if decision],
            )
            for scores_K, decisions_K in zip(scores_BK, self.rule(scores_BK), strict=True)
        ]


def _itself(value: Any) -> Any:
    return value


def _preparation(member: Mapping[str, Any]) -> Preparation:
    ends = member["range"]
    return Preparation(
        member["packed_px"],
        member["resize"],
        None if ends is None else (ends[0], ends[1]),
        member.get("packed_interpolation", "bilinear"),
    )
