"""The user's own code as plan sees it: found, checked by its source, frozen; never run, and without torch."""

import subprocess
import sys
import zipfile

import pytest

from jobs.planning.plan import make_plan
from pipeline.errors import SpecError
from pipeline.own.source import OwnFiles, digest_of_zip, kept_copy
from pipeline.spec.reading import read_spec
from tests.cells import clean_environment, jobs, packed_project
from tests.own import lab

# (a setting, files that differ) -> what plan says
WRONG = [
    ("train.model.name=mylab.nets", {}, "unknown model; "),
    (
        "train.model.name=mylab:nets:x",
        {},
        "code of your own is named package.module:function, e.g. mylab.nets:build",
    ),
    (
        "train.model.name=mylab.net:build",
        {},
        "--set train.model.name=mylab.net:build: train.model: there is no mylab/net.py in HERE; did you mean "
        "`mylab.nets`?",
    ),
    (
        "train.model.name=mylab.nets:bild",
        {},
        "train.model: mylab/nets.py: has no function 'bild'; did you mean `build`?",
    ),
    (
        "train.model={name: mylab.nets:build, options: {widht: 3}}",
        {},
        "train.model: mylab/nets.py:16: build does not take the option 'widht'; it takes width",
    ),
    (
        "train.model.name=mylab.nets:build",
        {"nets": "def build(num_labels, image_px, depth):\n    pass\n"},
        "mylab/nets.py:1: build needs the option 'depth'; write options: {depth: ...}",
    ),
    (
        "train.model.name=mylab.nets:build",
        {"nets": "def build(num_labels):\n    pass\n"},
        "mylab/nets.py:1: build takes 1 values before its options, and is given 2",
    ),
    (
        "train.loss.name=mylab.losses:bce",
        {"losses": "def bce(logits, targets)\n    pass\n"},
        "train.loss: mylab/losses.py:1: SyntaxError: expected ':'",
    ),
    (
        "train.augment.own={name: other.changes:noise}",
        {},
        "train.augment.own: there is no other/changes.py in HERE; code of your own lies beside `experiments/`",
    ),
    (
        "train.loss.name=json.x:y",
        {},
        "json is a name of Labelgrid's or Python's own; call your package otherwise",
    ),
    ("train.loss={name: focal, options: {a: 1}}", {}, "train.loss.options: unknown key: it is one of"),
    ("train.model.options={depth: 3}", {}, "options are those of a network of your own; cnn3 has none"),
    (
        "train.model={name: mylab.nets:build, weights: IMAGENET1K_V1}",
        {},
        "a network of your own has no published weights; write weights: none or a file",
    ),
]


@pytest.mark.parametrize(("setting", "changed", "said"), WRONG)
def test_what_is_wrong_is_said_by_plan_in_one_sentence_with_its_place(
    tmp_path, drawn_zip, setting, changed, said
):
    spec = packed_project(tmp_path, drawn_zip)
    lab.write(tmp_path, **changed)
    status, printed = jobs("plan", spec, "--set", setting, cwd=tmp_path)
    assert status == 2
    assert said in printed.replace(str(tmp_path), "HERE")
    assert "Traceback" not in printed


def plan_of(root, spec, *settings):
    return make_plan(read_spec(spec, settings, root=root)).cells


def test_changed_code_is_another_cell_and_no_other_file_is(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip)
    own = "train.model.name=mylab.nets:build"
    lab.write(tmp_path)
    (plain,), (before,) = plan_of(tmp_path, spec), plan_of(tmp_path, spec, own)
    assert plain.code is None
    (tmp_path / "mylab" / "__pycache__").mkdir()
    for name in ("mylab/__pycache__/nets.pyc", "mylab/.nets.py.swp", "other.py"):
        (tmp_path / name).write_text("x")
    assert plan_of(tmp_path, spec, own)[0].identity == before.identity
    (tmp_path / "mylab" / "blocks.py").write_text("x = 1\n")  # of its package: perhaps it is imported
    assert plan_of(tmp_path, spec, own)[0].identity != before.identity
    assert plan_of(tmp_path, spec)[0].identity == plain.identity


def test_options_are_an_axis_and_may_be_excluded(tmp_path, drawn_zip):
    grid = "grid: {axes: {train.model.options.width: [4, 8, 16]}, exclude: [{train.model.options.width: 8}]}"
    spec = packed_project(tmp_path, drawn_zip, grid, model={"name": "mylab.nets:build"})
    lab.write(tmp_path)
    cells = plan_of(tmp_path, spec)
    assert [cell.cell.spec.train.model.options["width"] for cell in cells] == [4, 16]
    assert [cell.run.name.rpartition("-")[0] for cell in cells] == [
        "mylab.nets_build-width4",
        "mylab.nets_build-width16",
    ]


def test_a_plan_does_not_run_the_code(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip)
    lab.write(tmp_path, nets="raise RuntimeError\ndef build(num_labels, image_px):\n    pass\n")
    assert len(plan_of(tmp_path, spec, "train.model.name=mylab.nets:build")) == 1


def test_a_frozen_copy_is_of_what_was_planned(tmp_path):
    lab.write(tmp_path)
    (tmp_path / "alone.py").write_text("x = 1\n")
    files = OwnFiles.read(tmp_path, ["mylab", "alone"])
    path = files.freeze(tmp_path / "code")
    assert digest_of_zip(path) == files.digest
    assert {"mylab/", "mylab/nets.py", "alone.py"} < set(zipfile.ZipFile(path).namelist())
    body = path.read_bytes()
    path.write_bytes(body[:-50])
    assert files.freeze(tmp_path / "code").read_bytes() == body  # a damaged one is made again
    path.unlink()
    (tmp_path / "alone.py").write_text("x = 2\n")
    with pytest.raises(SpecError, match="alone, mylab changed while cells were planned"):
        files.freeze(tmp_path / "code")


def test_a_cell_keeps_its_copy(tmp_path):
    lab.write(tmp_path)
    files = OwnFiles.read(tmp_path, ["mylab"])
    frozen, kept = files.freeze(tmp_path / "code"), tmp_path / "cell" / "own_code.zip"
    assert kept_copy(frozen, kept) == kept
    frozen.unlink()
    assert digest_of_zip(kept_copy(frozen, kept)) == files.digest
    kept.write_bytes(b"x")
    with pytest.raises(Exception, match="is gone or damaged"):
        kept_copy(frozen, kept)


def test_a_package_with_data_is_refused(tmp_path):
    lab.write(tmp_path)
    with (tmp_path / "mylab" / "images.bin").open("wb") as file:
        file.truncate(21_000_000)
    with pytest.raises(SpecError, match="mylab: holds more than 20 MB or 2,000 files"):
        OwnFiles.read(tmp_path, ["mylab"])


def test_planning_own_code_imports_no_torch(tmp_path, drawn_zip):
    spec = packed_project(tmp_path, drawn_zip, model={"name": "mylab.nets:build"})
    lab.write(tmp_path)
    code = (
        "import sys; from jobs.cli import main; assert main(['plan', sys.argv[1]]) == 0;"
        "print([name for name in ('torch', 'numpy', 'mylab') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, spec],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
