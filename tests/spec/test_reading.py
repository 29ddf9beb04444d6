"""Reading a spec: every mistake at once, each with file, line, key, value and remedy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.spec.reading import dump, json_schema, project_root, read_spec
from pipeline.spec.strict_yaml import read

ROOT = Path(__file__).parents[2]
MINIMAL = "data: {source: images.zip}\n"


@pytest.fixture
def write(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()

    def writer(text, name="x.yaml"):
        path = folder / name
        path.write_text(text)
        return path

    return writer


def refused(path, *overrides):
    with pytest.raises(SpecError) as caught:
        read_spec(path, overrides)
    return str(caught.value)


def test_a_minimal_spec_has_every_default(write):
    loaded = read_spec(write(MINIMAL))
    assert loaded.spec.name == "x"
    assert loaded.spec.train.optimizer.name == "adam"
    assert loaded.root == loaded.path.parent.parent


def test_five_mistakes_are_reported_at_once_with_their_lines(write):
    text = refused(
        write(
            "data:\n  source: a.zip\n  size_px: 4\n"
            "train:\n  epoch: 3\n  optimizer: {name: adamm}\n  batch_size: many\n  model: {name: resnet35}\n"
        )
    )
    assert text.splitlines()[0].endswith("x.yaml: 5 mistakes")
    assert "x.yaml:3: data.size_px: expected greater than or equal to 8, got 4" in text
    assert "x.yaml:5: train.epoch: unknown key; did you mean `epochs`?" in text
    assert "x.yaml:6: train.optimizer: unknown name 'adamm'; did you mean `adam`?" in text
    assert "x.yaml:7: train.batch_size: expected a whole number, got 'many'" in text
    assert "x.yaml:8: train.model.name: unknown model; did you mean `resnet50`? (got 'resnet35')" in text


# (what stands in the file, what the error must say): also the documentation of the errors
BAD = [
    ("data: {source: ~nosuchuser/a.zip}", "write the path without ~user"),
    (
        "data: {source: a.zip, test: {source: b.zip, labels: {format: id_lists, files: x.txt}}}",
        "labels.files 'x.txt' must hold {label} once",
    ),
    ("data: {source: a.zip}\ntrain: {optimizer: {name: adam, betas: [0.9, 1.0]}}", "less than 1"),
    (
        "data: {source: a.zip}\ntrain: {model: {name: resnet34, weights: DEFAULT}}",
        "name the weights, e.g. IMAGENET1K_V1",
    ),
    ("data: {source: a.zip}\ntrain: {epochs: 3.5}", "train.epochs: expected a whole number, got 3.5"),
    ("data: {source: a.zip}\ntrain: {epochs: true}", "train.epochs: expected a whole number, got True"),
    ("data: {source: a.zip}\ntrain: {epochs: '3'}", "train.epochs: expected a whole number, got '3'"),
    ("data: {source: a.zip}\ntrain: {optimizer: {lr: 0.1}}", "train.optimizer: needs the key 'name'"),
    (
        "data: {source: a.zip}\ntrain: {optimizer: {name: adam, alpha: 0.9}}",
        "train.optimizer.alpha: unknown key",
    ),
    ("data: {source: a.zip}\ntrain: {optimizer: {name: sgd, lr: -1}}", "expected greater than 0, got -1"),
    (
        "data: {source: a.zip}\ntrain: {optimizer: {name: sgd, lr: fast}}",
        "train.optimizer.lr: expected a number, got 'fast'",
    ),
    (
        "data: {source: a.zip}\ntrain: {optimizer: {name: sgd, lr: .inf}}",
        "train.optimizer.lr: expected a finite number",
    ),
    ("data: {source: a.zip}\ntrain: {monitor: f1}", "train.monitor: got 'f1'; known: f1_micro, f1_macro"),
    (
        "data: {source: a.zip}\ntrain: {augment: {crop: [1, 0.3]}}",
        "crop is [smallest, largest] above 0, got [1, 0.3]",
    ),
    (
        "data: {source: a.zip}\ntrain: {model: {name: cnn3, trainable: head}}",
        "head on random weights learns nothing",
    ),
    (
        "data: {source: a.zip}\ntrain: {model: {name: cnn3, weights: IMAGENET1K_V1}}",
        "cnn3 has no published weights",
    ),
    ("data: {source: a.zip}\nevaluate: {threshold: per_labels}", "did you mean `per_label`?"),
    ("data: {source: a.zip, images: im.jpg}", "must hold {id} once"),
    (
        "data: {source: a.zip, split: {method: ordered, validation: 0.7, test: 0.3}}",
        "leave some for training",
    ),
    (
        "data: {source: a.zip, split: {method: ranges, train: 1-x, validation: 5-6}}",
        "write first-last, e.g. 1-15000",
    ),
    ("data: {source: $NO_SUCH_VARIABLE/a.zip}", "the variable $NO_SUCH_VARIABLE is not set; export it"),
    ("train: {}", "data: is missing; add it"),
    ("data:", "data: expected a mapping of keys, got nothing"),
    ("- 1", "a spec is a mapping of keys"),
    ("", "a spec is a mapping of keys"),
    ("data: {source: a.zip}\nname: ../up", "name: "),
    (
        "data: {source: a.zip}\nrun: {resources: [{cpus: 2}, {cpu: 2}]}",
        "run.resources[1].cpu: unknown key; did you mean `cpus`?",
    ),
    ("data: no_such_file.yaml", "no_such_file.yaml: cannot be read"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_wrong_spec_says_what_to_do(write, text, said):
    assert said in refused(write(text))


def test_a_missing_file_and_a_binary_one_are_named(write, tmp_path):
    assert "cannot be read: No such file" in refused(tmp_path / "none.yaml")
    path = write("x", name="other.yaml")
    assert refused(path.parent / "none.yaml").endswith(
        "No such file or directory; beside it there are other.yaml"
    )
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refused(path)


def test_an_override_replaces_and_is_named_when_wrong(write):
    path = write(MINIMAL + "train: {epochs: 5, optimizer: {name: sgd, lr: 0.1}}\n")
    spec = read_spec(path, ["train.epochs=3", "train.optimizer.lr=1e-3", "data.size_px=64"]).spec
    assert (spec.train.epochs, spec.train.optimizer.lr, spec.data.size_px) == (3, 1e-3, 64)
    assert spec.train.optimizer.name == "sgd"
    whole = read_spec(path, ["train.optimizer={name: adamw, lr: 3e-4}"]).spec
    assert (whole.train.optimizer.name, whole.train.optimizer.lr) == ("adamw", 3e-4)
    assert "--set train.epoch=3: train.epoch: unknown key; did you mean `epochs`?" in refused(
        path, "train.epoch=3"
    )
    assert "write key.path=value" in refused(path, "epochs")


def test_quoted_numbers_are_numbers_in_float_fields(write):
    spec = read_spec(write(MINIMAL + 'train: {optimizer: {name: sgd, lr: "3e-4"}}\n')).spec
    assert spec.train.optimizer.lr == 3e-4


def test_paths_expand_variables_and_start_at_the_root(write, monkeypatch, tmp_path):
    monkeypatch.setenv("PHOTOS", str(tmp_path / "photos"))
    spec = read_spec(
        write("data: {source: $PHOTOS/a.zip, labels: {format: onehot_csv, file: l.csv, source: l}}")
    ).spec
    assert spec.data.source == str(tmp_path / "photos" / "a.zip")
    assert spec.data.labels.source == str(tmp_path / "l")
    assert spec.data.labels.file == "l.csv"


def test_data_may_stand_in_a_file_of_its_own_and_be_switched_and_changed(write, tmp_path):
    (tmp_path / "a.yaml").write_text("source: a.zip\nsize_px: 64\n")
    (tmp_path / "b.yaml").write_text("source: b.zip\nsize: 64\n")
    path = write("data: a.yaml\n")
    assert read_spec(path).spec.data.size_px == 64
    assert read_spec(path, ["data.size_px=32", "data=a.yaml"]).spec.data.size_px == 32
    assert "b.yaml:2: data.size: unknown key" in refused(path, "data=b.yaml")


def test_a_dumped_spec_reads_back_as_itself(write):
    text = MINIMAL + (
        "train: {optimizer: {name: adamw, eps: 1e-8, betas: [0.9, 0.95]}, augment: {crop: [0.35, 1]}}\n"
        "evaluate: {threshold: per_label}\n"
    )
    spec = read_spec(write(text)).spec
    odd = spec.model_copy(update={"data": spec.data.model_copy(update={"images": "1e5{id}"}), "name": "1e3"})
    for original in (spec, odd):
        assert read_spec(write(dump(original), "y.yaml")).spec == original


def test_every_shipped_spec_reads_and_matches_the_exported_schema(monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")

    monkeypatch.setenv("LABELGRID_SHARED", "shared")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    specs = sorted((ROOT / "experiments").glob("*.yaml"))
    assert len(specs) >= 4
    for path in specs:
        read_spec(path)
        # as editors read it: by YAML 1.2, where 1e-3 is a number
        jsonschema.validate(json.loads(json.dumps(read(path, name=path.name).value)), schema)
        header = path.read_text().split("\ndata:")[0]
        assert "Question:" in header
        assert "Command:" in header
        assert "Cost:" in header
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"data": {"source": "a"}, "train": {"epoch": 1}}, schema)


def test_reading_and_expanding_a_spec_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from pathlib import Path; from pipeline.spec.reading import read_spec;"
        "from pipeline.spec.grid import expand_grid;"
        f"expand_grid(read_spec(Path({str(ROOT / 'experiments' / 'optimizers.yaml')!r})));"
        "print([m for m in ('torch', 'numpy', 'PIL', 'torchvision', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_root_is_above_experiments_and_else_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_root(tmp_path / "p" / "experiments" / "x.yaml") == tmp_path / "p"
    assert project_root(tmp_path / "p" / "x.yaml") == tmp_path
