"""`models`: names found by words and patterns, what is known of them, and whether their weights are at hand."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from jobs.cli import main
from jobs.commands.doctor_weights import weights_checks
from jobs.planning.plan import make_plan
from pipeline.spec import ModelSpec
from pipeline.spec.reading import read_spec
from tests.cells import jobs, project
from tests.conftest import ROOT


def listed(tmp_path, *arguments):
    status, printed = jobs("models", *arguments, cwd=tmp_path)
    assert status == 0, printed
    return printed.splitlines()


def names(lines):
    """Those of the table: what stands before its numbers."""
    return [line[2:].split("  ")[0].strip() for line in lines[1:-1] if line[2:3].strip()]


def test_without_a_word_families_are_counted_in_80_columns(tmp_path):
    lines = listed(tmp_path)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 25
    text = "\n".join(lines)
    assert "torchvision: 54 networks, 82 published weights" in text
    assert "resnet 12" in text
    assert "smaller families (--all)" in text
    assert len(listed(tmp_path, "--all")) > len(lines)


def test_words_must_all_be_in_a_name_and_one_pattern_must_be_the_whole(tmp_path):
    found = names(listed(tmp_path, "convnext", "tiny", "fb"))
    assert "timm/convnext_tiny.fb_in22k" in found
    assert all("convnext" in name and "tiny" in name and "fb" in name for name in found)
    patterns = names(listed(tmp_path, "resnet18 *", "timm/resnet34.*"))
    assert patterns[0] == "resnet18 IMAGENET1K_V1"
    assert {name.split(".")[0] for name in patterns[1:]} == {"timm/resnet34"}


def test_a_line_says_size_licence_and_what_is_known(tmp_path):
    head, row, spec = listed(tmp_path, "resnet50 IMAGENET1K_V2")
    assert head.split() == ["name", "M", "params", "GFLOPs", "MB", "px", "licence"]
    assert row.split() == ["resnet50", "IMAGENET1K_V2", "25.6", "4.09", "103", "224", "-"]
    assert spec == "in a spec: train: {model: {name: resnet50, weights: IMAGENET1K_V2}}"
    row = listed(tmp_path, "convnextv2_tiny.fcmae")[1]
    assert row.split() == [
        *("timm/convnextv2_tiny.fcmae_ft_in22k_in1k", "28.6", "4.46", "115", "224", "cc-by-nc-4.0")
    ]


def test_long_lists_end_with_how_many_more_there_are(tmp_path):
    lines = listed(tmp_path, "vit", "--weights")
    assert len(lines) == 1 + 40 + 2
    more = int(lines[-2].split()[0])
    assert lines[-2].endswith("more: `models vit --weights --all`, or more words")
    assert len(listed(tmp_path, "vit", "--weights", "--all")) == 1 + 40 + more + 1


def test_they_are_sorted_by_size_or_cost(tmp_path):
    def column(by, place):
        rows = listed(tmp_path, "IMAGENET1K_V1", "--sort", by)[1:-2]
        return [float(row.split()[place].replace(",", "")) for row in rows]

    assert column("params", 2) == sorted(column("params", 2))
    assert column("gflops", 3) == sorted(column("gflops", 3))


def test_what_is_at_hand_is_marked(tmp_path):
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    for name in ("resnet34-b627a593.pth", "resnet34.a1_in1k.safetensors"):
        (folder / name).write_bytes(b"")
    lines = listed(tmp_path, "resnet34")
    assert [line[2:].split("  ")[0] for line in lines if line.startswith("* ")] == [
        *("resnet34 IMAGENET1K_V1", "timm/resnet34.a1_in1k")
    ]
    assert "*: its weights are in data/weights" in lines
    assert names(listed(tmp_path, "--here"))[:2] == ["resnet34 IMAGENET1K_V1", "timm/resnet34.a1_in1k"]


def test_in_a_terminal_no_line_is_wider_than_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["models", "eupe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  timm/vit_small_plus_patch16_dinov3_qkvb.lvd1689m" not in lines
    assert any(line.endswith("…") for line in lines)


def test_a_name_that_nothing_fits_leads_to_the_nearest(tmp_path):
    status, printed = jobs("models", "convnext_tinny", cwd=tmp_path)
    assert status == 2
    assert "convnext_tinny: no such network; the nearest names: timm/convnext_tiny" in printed


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from jobs.cli import main; main(['models', 'resnet', '--all']);"
        "print([m for m in ('torch', 'torchvision', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# ---------------------------------------------------------------- plan and doctor


def plan_of(tmp_path, drawn_zip, model):
    return make_plan(read_spec(project(tmp_path, drawn_zip, model=model), root=tmp_path))


SWAG = {"name": "vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}


def test_plan_says_in_one_line_that_a_licence_forbids_commercial_use(tmp_path, drawn_zip):
    status, printed = jobs("plan", project(tmp_path, drawn_zip, model=SWAG), cwd=tmp_path)
    assert status == 0, printed
    note = "the licence of the weights of vit_b_16, cc-by-nc-4.0, forbids commercial use"
    assert f"note: {note}\n" in printed
    free = project(tmp_path, drawn_zip, model={"name": "resnet34", "weights": "IMAGENET1K_V1"})
    assert "licence" not in jobs("plan", free, cwd=tmp_path)[1]


def test_doctor_says_whether_weights_are_at_hand_and_right(tmp_path, drawn_zip):
    plan = plan_of(tmp_path, drawn_zip, {"name": "resnet34", "weights": "IMAGENET1K_V1"})
    ((what, ok, result),) = weights_checks(plan)
    assert (what, ok) == ("weights", True)
    assert result.startswith("resnet34 IMAGENET1K_V1: not there yet; `make grid` fetches them")
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    (folder / "resnet34-b627a593.pth").write_bytes(b"cut short")
    ((_, ok, result),) = weights_checks(plan)
    assert not ok
    assert "is not what its name promises" in result
    several = "grid: {axes: {train.model.trainable: [head, all]}}"
    spec = project(tmp_path, drawn_zip, several, model={"name": "resnet34", "weights": "IMAGENET1K_V1"})
    assert len([*make_plan(read_spec(spec)).named_weights()]) == 1  # one file, whatever is trained of it
    said = [result for what, _, result in weights_checks(plan_of(tmp_path, drawn_zip, SWAG))]
    assert "forbids commercial use" in said[-1]


def plan_of_timm(root, *names):
    """What the checks read of a plan."""
    models = [ModelSpec.model_construct(name=name, weights="pretrained") for name in names]
    cells = [
        SimpleNamespace(cell=SimpleNamespace(spec=SimpleNamespace(train=SimpleNamespace(model=m))))
        for m in models
    ]
    return SimpleNamespace(cells=cells, root=root, named_weights=lambda: models)


def test_weights_of_timm_are_found_by_their_name(tmp_path):
    file = tmp_path / "data" / "weights" / "resnet34.a1_in1k.safetensors"
    plan = plan_of_timm(tmp_path, "timm/resnet34.a1_in1k")
    assert "not there yet" in next(weights_checks(plan))[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert [*weights_checks(plan)] == [
        ("weights", True, f"timm/resnet34.a1_in1k pretrained: at hand, {file}")
    ]
    file.write_bytes(b"others")
    ((_, ok, result),) = weights_checks(plan)
    assert not ok
    assert "differs from its digest" in result


@pytest.mark.slow
def test_doctor_asks_the_installed_timm_about_names_newer_than_the_catalogue(tmp_path):
    ((what, ok, result),) = weights_checks(plan_of_timm(tmp_path, "timm/qqq"))
    assert (what, ok) == ("weights", False)
    assert "timm has no timm/qqq; `labelgrid models` counts its names" in result
