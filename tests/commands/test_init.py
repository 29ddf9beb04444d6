"""`init`: from a look at images and labels to a spec that runs, or a sentence on why there is none."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data.reading import read_data
from pipeline.spec.reading import read_spec
from tests.cells import clean_environment, jobs
from tests.commands import test_layouts as layouts
from tests.conftest import encoded, jpeg, write_zip
from tests.data.test_cases import READ, REFUSED, labels_of

TABLE = "file,dog,tree\n" + "".join(f"im{i}.jpg,{i % 2},{int(i % 3 == 0)}\n" for i in range(1, 13))
TRUTH = {f"im{i}.jpg": [n for n, has in (("dog", i % 2), ("tree", i % 3 == 0)) if has] for i in range(1, 13)}


def folder(tmp_path, files, name="set"):
    """A folder of name -> bytes or text; names of images alone get pictures."""
    for i, (path, body) in enumerate(files.items()):
        target = tmp_path / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        body = jpeg(i) if body is None else body
        target.write_bytes(body if isinstance(body, bytes) else body.encode())
    return tmp_path / name


def images(template="im{}.jpg", numbers=range(1, 13)):
    return {template.format(i): None for i in numbers}


def init(tmp_path, source, *arguments):
    """(what was printed, the data section that was written, what the readers make of it); `plan` accepts it."""
    status, printed = jobs("init", source, *arguments, "--yes", cwd=tmp_path)
    assert status == 0, printed
    path = re.search(r"^written: (.*)$", printed, re.M)[1]
    planned, said = jobs("plan", tmp_path / path, cwd=tmp_path)
    assert planned == 0, said
    data = read_spec(tmp_path / path).spec.data
    return printed, data, read_data(data)


def refused(tmp_path, *arguments):
    status, printed = jobs("init", *arguments, cwd=tmp_path)
    assert status == 2
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("experiments/*"))
    return printed


# ---------------------------------------------------------------- layouts that people have


@pytest.mark.parametrize("name", sorted({*READ, *REFUSED} - {"nuswide_silent"}))
def test_each_case_is_read_as_it_should_be(shared, tmp_path, name):
    _, data, read = init(tmp_path, shared / "cases/data" / name)
    truth = shared / "cases/data" / f"{name}.truth.json"
    if truth.exists():
        assert labels_of(read) == {image: sorted(has) for image, has in json.loads(truth.read_text()).items()}
    assert len(read.images) == 24
    expected = {
        "chexpert": ["No Finding", "Edema", "Pneumonia"],
        "empty_image_list": ["dog"],
        "nuswide_imagelist": ["dog", "tree"],
        "roboflow_coco": ["dog", "tree"],
    }
    assert read.labels == expected.get(name, read.labels)
    assert data.range == ("auto" if name == "png16_12bit" else "full")


def test_values_without_the_order_of_the_images_are_refused(shared, tmp_path):
    printed = refused(tmp_path, shared / "cases/data/nuswide_silent", "--yes")
    assert "a 0 or 1 for each of 24 images, but no file names the 24 images in that order; add one" in printed


def test_real_photographs_in_an_archive(shared, tmp_path):
    printed, data, read = init(tmp_path, shared / "data/mirflickr-10k.zip")
    assert (len(read.images), len(read.labels), data.size_px) == (10_000, 14, 128)
    with zipfile.ZipFile(shared / "data/mirflickr-10k.zip") as archive:
        lists = {label: archive.read(f"annotations/{label}.txt").split() for label in read.labels}
    assert read.labels_NK.sum(axis=0).tolist() == [len(set(ids)) for ids in lists.values()]
    dogs = {f"im{int(i)}.jpg" for i in lists["dog"]}
    assert {image for image, has in labels_of(read).items() if "dog" in has} == dogs
    assert "unsure" not in printed


@pytest.mark.parametrize(
    ("make", "validation", "test"),
    [
        (layouts.coco, 6, 3),
        (layouts.hugging_face, 6, 3),
        (layouts.voc, None, None),
        (layouts.celeba, None, None),
        (layouts.chexpert, None, None),
        (layouts.open_images, None, None),
    ],
)
def test_a_published_layout_is_read_with_its_split(tmp_path, make, validation, test):
    root = tmp_path / "set"
    root.mkdir()
    section, _ = make(root)
    _, data, read = init(tmp_path, root)
    for image, row in zip(read.images, read.labels_NK, strict=True):
        number = layouts._number(root, image.member)
        has = [
            label
            for label, present in zip(read.labels, row, strict=True)
            if present and label != "No Finding"
        ]
        assert has == layouts.has(number)
    method = section["split"]["method"]
    assert data.split.method == ("stratified" if method == "random" else method)
    assert read.splits.count("validation") == (validation or 0)
    assert (data.test is not None) == (test is not None)
    if test:
        assert len(read_data(data, test=True).images) == test
    if make is layouts.chexpert:
        assert data.split.group.pattern == r"(patient\d+)/"


def test_the_drawn_set(tmp_path, drawn_zip):
    _, data, read = init(tmp_path, drawn_zip.train)
    assert (data.images, data.labels.files) == ("images/im{id}.jpg", "annotations/{label}.txt")
    assert (len(read.images), len(read.labels), data.size_px) == (240, 14, 32)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_folder_and_an_archive_are_read_alike_and_not_touched(tmp_path, kind):
    source = folder(tmp_path, {**images("photos/im{}.jpg"), "labels.csv": TABLE})
    if kind == "zip":
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.*")}
        source = write_zip(tmp_path / "s.zip", files)
    elif kind == "tar":
        with tarfile.open(tmp_path / "s.tar", "w") as archive:
            archive.add(source, "top")
        source = tmp_path / "s.tar"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    printed, _, read = init(tmp_path, source)
    assert labels_of(read) == TRUTH
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "images: 12, " in printed
    assert "2 labels: dog 6, tree 4" in printed
    assert re.search(r"example: .*im1.jpg -> dog$", printed, re.M)
    assert re.search(r"  labelgrid plan experiments/\w+.yaml", printed)


@pytest.mark.parametrize("named", [True, False])
def test_labels_may_lie_beside_the_images(tmp_path, named):
    source = write_zip(tmp_path / "photos.zip", {f"im{i}.jpg": jpeg(i) for i in range(1, 13)})
    (tmp_path / "labels.csv").write_text(TABLE)
    printed, data, read = init(tmp_path, source, *([tmp_path / "labels.csv"] if named else []))
    assert labels_of(read) == TRUTH
    assert data.labels.source == str(tmp_path)
    assert ("unsure: the labels lie beside photos.zip" in printed) != named
    assert "\n  source: photos.zip  #" in (tmp_path / "experiments/photos.yaml").read_text()


def test_labels_may_be_an_archive_of_their_own(tmp_path):
    source = folder(tmp_path, images())
    lists = {
        "dog_r1.txt": "1\n3\n",
        "dog.txt": "1\n",
        "tree_r1.txt": "3\n5\n",
        "tree.txt": "5\n",
        "README.txt": "Read me",
    }
    printed, data, read = init(tmp_path, source, write_zip(tmp_path / "a.zip", lists))
    assert data.labels.files == "{label}_r1.txt"
    assert labels_of(read)["im3.jpg"] == ["dog", "tree"]
    assert "has a file without _r1 too" in printed


def test_images_of_one_name_in_every_part_get_the_labels_of_their_part(tmp_path):
    parts = {"train": range(1, 9), "val": range(9, 13)}
    files = {}
    for part, numbers in parts.items():
        files |= {f"{part}/{i}.jpg": None for i in range(1, len(numbers) + 1)}
        files[f"{part}.csv"] = "file,tags\n" + "".join(
            f"{i}.jpg,{part}|{'ab'[i % 2]}\n" for i in range(1, len(numbers) + 1)
        )
    source = folder(tmp_path, files)
    _, data, read = init(tmp_path, source)
    assert (data.labels.file, data.split.validation.labels.file) == ("train.csv", "val.csv")
    assert read.labels == ["a", "b", "train"]
    train = read.labels_NK[:, 2].astype(bool)
    assert [split == "train" for split in read.splits] == train.tolist()


def test_test_images_without_labels_do_not_get_those_of_training(tmp_path):
    files = {f"{part}/{i}.jpg": None for part in ("train", "test") for i in range(1, 9)}
    lines = [json.dumps({"file_name": f"{i}.jpg", "labels": ["ab"[i % 2]]}) for i in range(1, 9)]
    source = folder(tmp_path, {**files, "train/metadata.jsonl": "\n".join(lines)})
    _, data, read = init(tmp_path, source)
    assert len(read.images) == 8
    assert data.test.labels == "none"


def test_test_images_in_folders_of_labels_stay_out_of_training(tmp_path):
    files = {
        f"{part}/{label}/{i}.jpg": None for part in ("train", "test") for label in "ab" for i in range(5)
    }
    _, data, read = init(tmp_path, folder(tmp_path, files))
    assert {image.member.split("/")[0] for image in read.images} == {"train"}
    assert {image.member.split("/")[0] for image in read_data(data, test=True).images} == {"test"}


def test_a_picture_that_is_none_of_the_images_stays_out(tmp_path):
    source = folder(tmp_path, {**images("pics/im{}.jpg"), "logo.png": None, "l.csv": TABLE})
    _, data, read = init(tmp_path, source)
    assert (data.images, len(read.images)) == ("pics/im{id}.jpg", 12)


def test_a_folder_per_label_is_read_where_no_label_file_is(tmp_path):
    source = folder(tmp_path, {**images("dog/{}.jpg", range(5)), **images("tree/{}.jpg", range(7))})
    printed, data, read = init(tmp_path, source)
    assert data.labels.format == "folders"
    assert read.labels_NK.sum(axis=0).tolist() == [5, 7]
    assert "unsure: the folder of an image is taken for its label" in printed
    assert "unsure: every image has exactly one label" in printed


def rows(header, row):
    return "\n".join([*([header] if header else []), *(f"im{i}.jpg,{row(i)}" for i in range(1, 13))])


BEARS = ("polar bear", "brown bear", "cat")
TABLES = {
    "caption": (
        rows("file,caption,tags", lambda i: f"{i} a photo {i * 7},{'dog|hot dog' if i % 2 else 'tree'}"),
        ["dog", "hot dog", "tree"],
        "",
    ),
    "spaces": (
        rows("file,kind", lambda i: BEARS[i % 3]),
        ["brown bear", "cat", "polar bear"],
        "part of a label's name: 'brown bear' is one label",
    ),
    "header": (rows("", lambda i: f"{i % 2},{int(i > 4)}"), ["column2", "column3"], "has no header"),
    "yes": (
        rows("file,a,b", lambda i: f"{'yes' if i % 2 else 'no'},{'' if i > 4 else 'yes'}"),
        ["a", "b"],
        "empty (8x) are taken for",
    ),
    "group": (
        rows("id,patient_id,a,b,size", lambda i: f"{i // 2},{i % 2},{int(i > 4)},{i * 1.5}"),
        ["a", "b"],
        "",
    ),
    "split": (
        rows("name,tags,split", lambda i: f"{'dog tree' if i % 3 else 'tree'},{'train' if i < 9 else 'val'}"),
        ["dog", "tree"],
        "spaces are taken to part labels: 'dog tree' is 2 labels",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(tmp_path, kind):
    table, labels, said = TABLES[kind]
    source = folder(tmp_path, {**images(), "l.csv": table})
    printed, data, read = init(tmp_path, source)
    assert read.labels == labels
    assert said in printed
    assert len(read.images) == 12
    assert (getattr(data.split.group, "column", None) == "patient_id") == (kind == "group")
    assert data.split.method == ("column" if kind == "split" else "stratified")


@pytest.mark.parametrize(
    ("column", "yes", "no", "sizes"),
    [("is_train", "yes", "no", (8, 4)), ("is_valid", "1", "0", (4, 8)), ("is_train", "1", "1", (10, 2))],
)
def test_a_column_of_a_split_is_used_where_it_divides(tmp_path, column, yes, no, sizes):
    table = rows(f"file,a,b,{column}", lambda i: f"{i % 2},{int(i > 4)},{yes if i < 9 else no}")
    printed, _, read = init(tmp_path, folder(tmp_path, {**images(), "l.csv": table}))
    assert read.labels == ["a", "b"]
    assert f"): train {sizes[0]}, validation {sizes[1]}\n" in printed
    if yes == no:
        assert "columns of the table that seem to divide the images are not used" in printed
    else:
        assert f"unsure: the column {column!r} is taken for the split" in printed


def test_what_is_left_out_is_said_and_allowed_no_further_than_it_must_be(tmp_path):
    table = "".join(line + "\n" for line in TABLE.splitlines()[:10]) + "gone.jpg,1,0\n"
    source = folder(tmp_path, {**images(), "l.csv": table})
    printed, data, read = init(tmp_path, source)
    assert len(read.images) == 9
    assert (data.set_aside.without_row, data.set_aside.unknown_references) == (0.25, 0.1)
    assert "unsure: 3 of 12 images have no row in the label file" in printed
    assert "unsure: 1 of 10 entries of the label file name no image, e.g. " in printed


def test_a_second_way_to_read_the_labels_is_named(tmp_path):
    other = TABLE.replace("dog", "cat")
    source = folder(tmp_path, {**images(), "a.csv": TABLE, "b.csv": other})
    printed, data, _ = init(tmp_path, source)
    assert data.labels.file == "a.csv"
    assert "unsure: labels could also be read from b.csv (onehot_csv, 2 labels: cat, tree)" in printed


def test_deep_pictures_get_their_range(tmp_path):
    deep = encoded(Image.fromarray(np.full((20, 20), 4000, np.uint16)), "PNG")
    source = folder(
        tmp_path, {f"im{i}.png": deep for i in range(1, 13)} | {"l.csv": TABLE.replace("jpg", "png")}
    )
    printed, data, _ = init(tmp_path, source)
    assert (data.range, data.size_px) == ("auto", 16)
    assert "unsure: pictures have more than 8 bits" in printed


# ---------------------------------------------------------------- the file


def test_the_spec_reads_with_the_lines_for_photographs_too(tmp_path):
    init(tmp_path, folder(tmp_path, {**images(), "l.csv": TABLE}))
    path = tmp_path / "experiments/set.yaml"
    text = path.read_text()
    small = re.search(r"  model:.*\n  image_px:.*\n", text)[0]
    path.write_text(
        re.sub(r"^  # (model|image_px|cached_views):", r"  \1:", text.replace(small, ""), flags=re.M)
    )
    train = read_spec(path).spec.train
    assert (train.model.name, train.image_px, train.cached_views) == ("mobilenet_v2", 224, 1)


def test_a_spec_that_is_there_is_replaced_only_when_asked(tmp_path):
    source = folder(tmp_path, {**images(), "l.csv": TABLE})
    (tmp_path / "experiments").mkdir()
    spec = tmp_path / "experiments/set.yaml"
    spec.write_text("mine")
    status, printed = jobs("init", source, "--yes", cwd=tmp_path)
    assert (status, spec.read_text()) == (2, "mine")
    assert (
        "experiments/set.yaml: is there already; choose another name by --output, or replace it by --force"
        in printed
    )
    init(tmp_path, source, "--output", "experiments/other.yaml")
    assert spec.read_text() == "mine"
    init(tmp_path, source, "--force")
    assert spec.read_text() != "mine"


def test_names_that_yaml_or_a_path_could_take_for_something_else(tmp_path):
    table = TABLE.replace("dog", "no").replace("tree", "null").replace("file", "on: #x")
    meta = "\n".join(f"{line},{'12:30' if i else 'yes'}" for i, line in enumerate(table.splitlines()))
    source = folder(tmp_path, {**images("a b/im{}.jpg"), "l.csv": meta}, name="my photos #1")
    _, data, read = init(tmp_path, source)
    assert (read.labels, data.labels.ignore) == (["no", "null"], ("yes",))
    assert (tmp_path / "experiments/my-photos-1.yaml").exists()


# ---------------------------------------------------------------- questions


def asked(tmp_path, monkeypatch, source, answers):
    """Questions that a terminal shows, and the data section that comes of the answers."""
    questions = []

    def answer(question):
        questions.append(question)
        return answers[len(questions) - 1]

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("jobs.commands.init.sys.stdout.isatty", lambda: True, raising=False)
    from jobs.commands import init as module

    monkeypatch.chdir(tmp_path)
    assert module.init(source, None, yes=False, output=None, force=True) == 0
    return questions, read_spec(tmp_path / "experiments/set.yaml").spec


def test_a_terminal_is_asked_three_questions_at_most(tmp_path, monkeypatch):
    table = TABLE.replace("tree", "No Finding")
    source = folder(tmp_path, {**images(), "a.csv": TABLE, "b.csv": table})
    questions, spec = asked(tmp_path, monkeypatch, source, ["2", "yes", "no"])
    assert len(questions) == 3
    assert (spec.data.labels.file, spec.data.labels.none) == ("b.csv", ("No Finding",))
    assert spec.train.augment.hflip == 0
    questions, spec = asked(tmp_path, monkeypatch, source, ["", ""])
    assert len(questions) == 2
    assert (spec.data.labels.file, spec.train.augment.hflip) == ("a.csv", 0.5)


def test_nobody_is_asked_where_there_is_no_terminal_or_with_yes(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    source = folder(tmp_path, {**images(), "a.csv": TABLE, "b.csv": TABLE.replace("dog", "cat")})
    assert jobs("init", source, cwd=tmp_path)[0] == 0
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert jobs("init", source, "--yes", "--force", cwd=tmp_path)[0] == 0


# ---------------------------------------------------------------- wrong input


def test_images_without_labels_are_refused_with_the_formats_that_are_known(tmp_path):
    source = folder(tmp_path, {**images(), "notes.json": "{}", "sizes.csv": "width,height\n3,4\n5,6\n"})
    printed = refused(tmp_path, source, "--yes")
    assert "12 images, and no labels that can be read in " in printed
    assert f"labelgrid init {source} LABELS" in printed
    assert "COCO's instances, JSON lines, Pascal VOC's ImageSets" in printed
    assert "notes.json: not COCO's instances" in printed
    assert "sizes.csv: no column of it names an image" in printed


@pytest.mark.parametrize(
    ("files", "labels", "said"),
    [
        (
            {"a.txt": "x"},
            None,
            "holds no image (jpg, png, webp, tif, ...), but a.txt; name the folder, .zip or .tar",
        ),
        ({"p.zip": "x"}, None, "holds no image, but p.zip; name the archive: "),
        (images(), "gone.csv", "gone.csv: there is no such file or folder"),
        (images(), "l.pdf", "l.pdf: no label file that can be read; known: .csv"),
        (
            images() | {f"ann/im{i}.xml": "<x/>" for i in range(3)},
            None,
            "VOC's XML boxes are not read: convert them",
        ),
        (
            images() | {f"im{i}.txt": f"{i % 2} 0.5 0.5 0.1 0.1\n" for i in range(3)},
            None,
            "im0.txt, im1.txt and 1 more: ",
        ),
    ],
)
def test_other_wrong_input(tmp_path, files, labels, said):
    source = folder(tmp_path, files)
    (tmp_path / "l.pdf").touch()
    assert said in refused(tmp_path, source, *([tmp_path / labels] if labels else []))


def test_a_source_that_is_not_there_or_damaged(tmp_path):
    assert "gone.zip: there is no such file or folder" in refused(tmp_path, tmp_path / "gone.zip")
    (tmp_path / "bad.zip").write_text("no zip")
    assert "cut short or not a .zip archive" in refused(tmp_path, tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    assert "holds no image" in refused(tmp_path, tmp_path / "x.zip")
    (tmp_path / "$HOME").mkdir()
    assert "a spec reads $ in a path as a variable" in refused(tmp_path, tmp_path / "$HOME")
    assert "a spec is a .yaml file" in refused(tmp_path, tmp_path, "--output", "x.txt")


def test_it_does_not_import_torch(tmp_path):
    source = folder(tmp_path, {**images(), "l.csv": TABLE})
    code = "import sys; from jobs.cli import main; print(main(['init', sys.argv[1], '--yes']), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_a_member_of_the_source_is_not_mistaken_for_a_file_here(tmp_path):
    """`labels.csv` lies in the zip, and another one of that name where the command is typed."""
    files = {f"im{i}.jpg": jpeg(i) for i in range(1, 13)}
    files["labels.csv"] = "image,labels\n" + "".join(
        f"im{i}.jpg,{'dog' if i < 7 else 'tree'}\n" for i in range(1, 13)
    )
    source = write_zip(tmp_path / "photos.zip", files)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "labels.csv").write_text("image,labels\nim1.jpg,cat\n")
    status, printed = jobs("init", source, "--yes", "--output", "photos.yaml", cwd=tmp_path / "experiments")
    assert status == 0, printed
    assert "file: labels.csv" in (tmp_path / "experiments" / "photos.yaml").read_text()


def spreadsheet(tmp_path, *rows, column="People"):
    """A folder of 12 pictures, and a table of two labels and notes as people write them."""
    (tmp_path / "photos").mkdir()
    for i in range(1, 13):
        (tmp_path / "photos" / f"DSC_{i}.JPG").write_bytes(jpeg(i))
    lines = [f"Filename;{column};Tree;Notes", *(f"DSC_{i}.JPG;{row}" for i, row in enumerate(rows, 1))]
    (tmp_path / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    return jobs("init", "photos", "labels.csv", "--yes", cwd=tmp_path)


@pytest.mark.parametrize(
    ("yes", "no"), [("x", ""), ("X", "0"), ("ja", "nein"), ("✓", ""), ("yes", "no"), ("x", "-")]
)
def test_a_spreadsheet_says_who_has_a_label_in_many_ways(tmp_path, yes, no):
    status, printed = spreadsheet(
        tmp_path, *(f"{yes if i < 6 else no};{yes if i % 2 else no};seen {i}" for i in range(12))
    )
    assert status == 0, printed
    assert "2 labels: People 6, Tree 6" in printed
    assert "unsure: not taken for labels: the columns Notes" in printed


def test_a_slip_in_a_column_is_said_and_not_swallowed(tmp_path):
    cells = ["yes"] * 6 + ["no"] * 5 + ["?"]
    status, printed = spreadsheet(
        tmp_path, *(f"{cell};{'yes' if i % 2 else 'no'};" for i, cell in enumerate(cells))
    )
    assert status == 0, printed
    assert "unsure: the column 'People' is left out: 11 cells say who has it, and '?' (1x) do not" in printed


# ---------------------------------------------------------------- what a newcomer types first


def test_swapped_arguments_change_places_and_it_is_said(tmp_path):
    source = folder(tmp_path, images())
    (tmp_path / "labels.csv").write_text(TABLE)
    printed, _, read = init(tmp_path, "labels.csv", "set")
    assert labels_of(read) == TRUTH
    assert "note: the images come first: set is taken for them, labels.csv for their labels\n" in printed
    assert (tmp_path / "experiments/set.yaml").exists()
    archive = write_zip(tmp_path / "a.zip", {"labels.csv": TABLE})
    with_labels = (
        f"{archive}: holds no image, but {source} does; the images come first: labelgrid init {source} "
    )
    assert with_labels in jobs("init", archive, source, cwd=tmp_path)[1]
    said = "labels.csv: looks like labels; name the folder, .zip or .tar of the images before it"
    assert said in jobs("init", "labels.csv", cwd=tmp_path)[1]


def test_a_path_that_is_not_there_is_said_before_a_spec_that_is(tmp_path):
    source = folder(tmp_path, images())
    (tmp_path / "labels.csv").write_text(TABLE)
    (tmp_path / "experiments").mkdir()
    for name in ("set", "sett"):
        (tmp_path / f"experiments/{name}.yaml").write_text("mine")
    for words, said in (
        (("sett",), "sett: there is no such file or folder; the nearest names there: set; correct the path"),
        (
            (source, "labls.csv"),
            "labls.csv: there is no such file or folder; the nearest names there: labels.csv;",
        ),
    ):
        status, printed = jobs("init", *words, cwd=tmp_path)
        assert (status, said in printed) == (2, True), printed


def test_a_linked_folder_has_its_labels_where_the_link_lies_or_where_it_leads(tmp_path):
    elsewhere = tmp_path / "disk"
    real = folder(elsewhere, images(), name="set17")
    project = tmp_path / "project"
    project.mkdir()
    (project / "photos").symlink_to(real)
    (elsewhere / "labels.csv").write_text(TABLE.replace("dog", "cat"))
    assert init(project, "photos")[2].labels == ["cat", "tree"]
    (project / "labels.csv").write_text(TABLE)
    assert labels_of(init(project, "photos", "--force")[2]) == TRUTH
    text = (project / "experiments/photos.yaml").read_text()
    assert "\n  source: photos  #" in text
    (project / "linked.csv").symlink_to(elsewhere / "labels.csv")
    assert init(project, "photos", "linked.csv", "--force")[2].labels == ["cat", "tree"]


def test_names_that_match_no_file_are_shown_beside_those_of_the_files(tmp_path):
    source = folder(tmp_path, images("IMG_{}.jpg"))
    (tmp_path / "labels.csv").write_text(TABLE.replace("im", "photo-a"))
    said = (
        "labels.csv: no column of it names an image and another labels (it begins 'file,dog,tree'; its rows begin "
        "with photo-a1.jpg, photo-a2.jpg, photo-a3.jpg, and the images are called IMG_1.jpg, IMG_2.jpg, IMG_3.jpg)"
    )
    for words in ((source,), (source, tmp_path / "labels.csv")):
        assert said in refused(tmp_path, *words)


@pytest.mark.parametrize("ending", ["xlsx", "ods"])
def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path, ending):
    source = folder(tmp_path, images())
    (tmp_path / f"labels.{ending}").write_bytes(b"PK")
    assert f"labels.{ending}: is a spreadsheet; save it as CSV UTF-8 (" in refused(
        tmp_path, source, tmp_path / f"labels.{ending}"
    )
    assert f"; labels.{ending} is a spreadsheet: save it as CSV UTF-8 (" in refused(tmp_path, source)


def test_a_table_that_is_not_utf8_is_told_how_to_become_so(tmp_path):
    source = folder(tmp_path, images())
    (tmp_path / "labels.csv").write_bytes(TABLE.replace("tree", "bäume").encode("latin-1"))
    said = "save it as UTF-8 (a spreadsheet: as CSV UTF-8), or convert it, e.g. by iconv -f LATIN1 -t UTF-8"
    assert said in refused(tmp_path, source, tmp_path / "labels.csv")
    assert said in refused(tmp_path, source)


def test_a_column_of_train_and_test_divides_though_it_has_no_validation(tmp_path):
    table = rows("file,a,b,split", lambda i: f"{i % 2},{int(i > 4)},{'train' if i < 9 else 'test'}")
    printed, data, read = init(tmp_path, folder(tmp_path, {**images(), "l.csv": table}))
    assert read.labels == ["a", "b"]
    assert (data.split.method, data.split.column, data.split.validation) == ("column", "split", ("test",))
    assert "): train 8, validation 4\n" in printed
    assert "unsure: the column 'split' has no validation: its images of test validate" in printed
