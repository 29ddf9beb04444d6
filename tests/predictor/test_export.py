"""An exported file decides as Predictor does, on real photographs, in a runtime that knows nothing of torch."""

import io
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.metrics.calibration import Calibration
from pipeline.metrics.decision_rule import DecisionRule
from pipeline.predictor import Predictor
from pipeline.predictor.export import Decisions
from tests.cells import jobs
from tests.conftest import ROOT

PHOTOS, PX = 200, 64
SPEC = f"""
data:
  source: {{source}}
  images: images/im{{{{id}}}}.jpg
  image_list: {{listed}}
  size_px: {PX}
train: {{{{image_px: 64, batch_size: 32, epochs: 2, precision: fp32, optimizer: {{{{name: adam, lr: 3e-3}}}}}}}}
grid: {{{{axes: {{{{train.model: [{{{{name: cnn3}}}}, {{{{name: cnn2}}}}]}}}}}}}}
evaluate: {{{{calibrate: platt, threshold: RULE}}}}
submission: {{{{cells: {{{{top: 2}}}}}}}}
"""


@pytest.mark.parametrize(
    ("calibrate", "threshold"), [("none", 0.3), ("platt", "per_label"), ("platt", "expected_f1")]
)
def test_the_rule_in_the_graph_decides_as_the_rule(calibrate, threshold):
    rng = np.random.default_rng(0)
    labels = 14
    kind = Calibration(np.ones(labels), np.zeros(labels))
    if calibrate == "platt":
        kind = Calibration(rng.uniform(0.5, 2, labels), rng.normal(size=labels))
    thresholds = None
    if threshold != "expected_f1":
        thresholds = (
            np.full(labels, threshold, np.float32) if threshold == 0.3 else rng.random(labels, np.float32)
        )
    rule = DecisionRule("a rule", kind, thresholds, empty_f1=1.0)
    scores = rng.beta(0.4, 1.5, (3000, labels)).astype(np.float32)
    scores[:50] = np.round(scores[:50], 1)  # equal ones too
    found = Decisions(rule)(torch.from_numpy(scores)).numpy()
    np.testing.assert_array_equal(found, rule(scores))


def ranked(root, rule, shared):
    """The grid, its cells decided by this rule."""
    spec = root / "experiments" / "real.yaml"
    text = SPEC.format(source=shared / "data" / "mirflickr-10k.zip", listed=root / "listed.txt")
    spec.write_text(text.replace("RULE", rule))
    status, printed = jobs("grid", spec, cwd=root)
    assert status == 0, printed


@pytest.fixture(scope="module")
def trained(shared, tmp_path_factory):
    """A project with two cells on 300 real photographs."""
    root = tmp_path_factory.mktemp("real")
    (root / "listed.txt").write_text("\n".join(map(str, range(1, 301))))
    (root / "experiments").mkdir()
    ranked(root, "per_label", shared)
    return root


@pytest.fixture(scope="module", params=["per_label", "expected_f1"])
def model(request, trained, shared, tmp_path_factory):
    """Both cells together, decided by a rule."""
    root = trained
    if request.param != "per_label":
        root = tmp_path_factory.mktemp("again")
        shutil.copytree(trained, root, dirs_exist_ok=True)
        ranked(root, request.param, shared)
    return Predictor.load(root / "experiments" / "real", device="cpu")


@pytest.fixture(scope="module")
def arrays(shared):
    """Photographs that no cell has seen, decoded at full size."""
    with zipfile.ZipFile(shared / "data" / "mirflickr-test-500.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:PHOTOS]
        return [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]


@pytest.mark.slow
def test_onnxruntime_decides_as_predictor_on_real_photographs(model, arrays, tmp_path):
    """At their own size and at six times the packed one, in batches and one by one."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        str(model.export(tmp_path / "model.onnx")), providers=["CPUExecutionProvider"]
    )
    (card,) = [session.get_modelmeta().custom_metadata_map["labelgrid"]]
    card = json.loads(card)
    assert card["labels"] == model.labels
    assert any("upright" in step for step in card["outside"])
    assert [one.name for one in session.get_outputs()] == ["scores", "labels"]
    large = [
        np.asarray(Image.fromarray(a).resize((6 * PX, 6 * PX), Image.Resampling.BICUBIC)) for a in arrays
    ]
    for pictures, at_once in ((arrays, 8), (large, 1)):
        wanted = model(pictures)
        decided, scores = [], []
        for start in range(0, len(pictures), at_once):
            batch = np.stack(pictures[start : start + at_once])
            some, decisions = session.run(["scores", "labels"], {"images": batch})
            decided += [
                [label for label, one in zip(model.labels, row, strict=True) if one] for row in decisions
            ]
            scores += list(some)
        assert decided == [one.labels for one in wanted]
        np.testing.assert_allclose(scores, [list(one.scores.values()) for one in wanted], atol=1e-5)


@pytest.mark.slow
def test_the_example_of_the_docs_runs(model, shared, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    (example,) = [
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/results.md").read_text(), re.S)
        if "onnxruntime" in block
    ]  # fmt: skip
    with zipfile.ZipFile(shared / "data" / "mirflickr-test-500.zip") as archive:
        (tmp_path / "photo.jpg").write_bytes(archive.read("images/im20001.jpg"))
    model.export(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(example, {})
    assert eval(capsys.readouterr().out) == model("photo.jpg").labels


@pytest.mark.slow
def test_a_path_is_decided_as_its_array_but_for_what_libjpeg_halves(model, arrays, tmp_path):
    """How far apart the two decodes are, where a JPEG is six times the packed size."""
    far, differ = [], 0
    for array in arrays[:100]:
        large = Image.fromarray(array).resize((6 * PX, 6 * PX), Image.Resampling.BICUBIC)
        large.save(tmp_path / "large.jpg", quality=95)
        path, pixels = model(tmp_path / "large.jpg"), model(np.asarray(Image.open(tmp_path / "large.jpg")))
        far += [abs(path.scores[label] - pixels.scores[label]) for label in model.labels]
        differ += path.labels != pixels.labels
    # docs/results.md has the figures: 0.003 on average, and 12 and 0 of 100 pictures
    assert np.mean(far) < 0.005
    assert differ <= 20
