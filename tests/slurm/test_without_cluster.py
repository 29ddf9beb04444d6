"""Profiles: what wins over what, and mistakes in them; drafts, refusals and Slurm's answers without a cluster."""

import os
import subprocess
from pathlib import Path

import pytest

from jobs.clusters.billing import cost_per_hour, gpu_count
from jobs.clusters.profile import SHIPPED, default_cluster, load_profile
from jobs.commands.doctor import _quota
from jobs.commands.submit import link_storage
from jobs.planning.cost import _kind
from jobs.planning.plan import make_plan
from jobs.planning.status import CellStatus, GridStatus
from jobs.slurm.batches import build_batches
from jobs.slurm.endings import accounted_state, queued_state
from jobs.slurm.queue import expand, seconds
from jobs.slurm.refusals import explain_refusal, refuse_early
from pipeline.errors import SpecError
from pipeline.models.device import ExecutionConfig
from pipeline.spec import TrainSpec
from pipeline.spec.reading import read_spec
from tests.cells import project


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without anything of the person who runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("LABELGRID_ACCOUNT", "SBATCH_ACCOUNT", "LABELGRID_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "config" / "labelgrid"
    (folder / "clusters").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_every_shipped_profile_reads_and_holds_no_account(name):
    profile = load_profile(name)
    assert profile.account is None
    if profile.partitions:
        for asked in (profile.train, profile.cpu):
            assert asked.time_min <= profile.partitions[asked.partition].max_min
    assert (SHIPPED / f"{name}.yaml").read_text().startswith("# ")


def test_puhti_asks_as_puhti_s_users_do():
    puhti = load_profile("puhti")
    assert puhti.train.gres == "gpu:v100:1,nvme:100"
    assert "31 July 2026" in puhti.retired
    # 60 a GPU, 1 a core, 0.1 a GiB, 0.006 a GiB of local disk
    assert cost_per_hour(puhti.train, puhti) == pytest.approx(60 + 10 + 6.4 + 0.6)


def test_lumi_keeps_miopen_s_caches_off_lustre_a_job_each():
    setup = load_profile("lumi").setup
    shown = 'echo "$MIOPEN_USER_DB_PATH $MIOPEN_CUSTOM_CACHE_DIR $PYTORCH_MIOPEN_SUGGEST_NHWC"'
    place = f"/tmp/labelgrid-test-{os.getpid()}-miopen-cache-77"
    environment = {**os.environ, "USER": f"labelgrid-test-{os.getpid()}", "SLURM_JOB_ID": "77"}
    lines = "\n".join(["set -eu", *setup, f"{shown}; rmdir {place}"])
    done = subprocess.run(["bash", "-c", lines], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [place, place, "1"]


def test_what_wins_over_what(home, monkeypatch):
    (home / "clusters" / "puhti.yaml").write_text("train: {cpus: 5}\nmax_parallel: 3\n")
    (home / "config.yaml").write_text(
        "default_cluster: puhti\ncluster: {account: project_1, max_parallel: 4}\n"
    )
    profile = load_profile("puhti", ["cluster.train.time_min=30"])
    assert (profile.train.cpus, profile.train.gres, profile.train.time_min) == (5, "gpu:v100:1,nvme:100", 30)
    assert (profile.max_parallel, profile.account) == (4, "project_1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "project_2")
    assert load_profile("puhti").account == "project_2"
    monkeypatch.setenv("LABELGRID_ACCOUNT", "project_3")
    assert load_profile("puhti").account == "project_3"
    assert load_profile("puhti", ["cluster.account=project_4"]).account == "project_4"
    assert default_cluster() == "puhti"
    monkeypatch.setenv("LABELGRID_CLUSTER", "roihu")
    assert default_cluster() == "roihu"


def test_a_profile_of_one_s_own_is_one_file(home):
    (home / "clusters" / "triton.yaml").write_text("scheduler: slurm\ntrain: {partition: gpu, gres: gpu:1}\n")
    assert load_profile("triton").train.partition == "gpu"


def test_without_any_setting_it_is_this_machine():
    assert default_cluster() == "local"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("scheduler: slurm\ntrain: {cpu: 3}\n", r"mine.yaml:2: train.cpu: unknown key"),
        ("scheduler: pbs\n", r"mine.yaml:1: scheduler: "),
        ("scheduler: slurm\nmax_parallel: many\n", r"mine.yaml:2: max_parallel: .*got 'many'"),
        ("scheduler: slurm\nscheduler: slurm\n", r"mine.yaml:2"),
    ],
)
def test_mistakes_in_a_profile_have_their_place(home, text, error):
    (home / "clusters" / "mine.yaml").write_text(text)
    with pytest.raises(SpecError, match=error):
        load_profile("mine")


def test_mistakes_in_settings_have_theirs(home):
    with pytest.raises(SpecError, match=r"--set cluster.train.cpu=3: train.cpu: unknown key"):
        load_profile("slurm", ["cluster.train.cpu=3"])
    (home / "config.yaml").write_text("clusters: {}\n")
    with pytest.raises(SpecError, match=r"config.yaml:1: clusters: known: default_cluster, cluster"):
        load_profile("slurm")


def test_a_name_where_settings_belong_is_told_with_an_account_too(home, monkeypatch):
    (home / "config.yaml").write_text("default_cluster: slurm\ncluster: puhti\n")
    monkeypatch.setenv("LABELGRID_ACCOUNT", "project_1")
    with pytest.raises(SpecError, match=r"config.yaml:2: cluster: holds settings of a profile, such as acc"):
        load_profile("slurm")


def test_an_unknown_cluster_names_those_known():
    with pytest.raises(
        SpecError, match=r"unknown cluster 'puthi'; known: local, lumi, mahti, puhti, roihu, slurm"
    ):
        load_profile("puthi")


# ---------------------------------------------------------------- drafts


@pytest.fixture
def plan(tmp_path, drawn_zip):
    def make(text, **train):
        return make_plan(read_spec(project(tmp_path, drawn_zip, text, **train)))

    return make


def drafted(plan, profile, wrangle_jobs=None):
    cells = [CellStatus(cell, "pending") for cell in plan.cells]
    grid_status = GridStatus(cells, wrangle_jobs or {})
    return build_batches(plan, profile, grid_status, max_array=1000, submission=False)


def shape(batches):
    return [(batch.key, len(batch.tasks), batch.after, batch.condition) for batch in batches]


def test_a_draft_is_wrangle_then_one_array_then_the_closing(plan):
    batches = drafted(plan("grid: {seeds: [1, 2, 3]}"), load_profile("slurm"))
    assert shape(batches) == [
        ("wrangle", 1, (), "afterok"),
        ("train-1", 3, ("wrangle",), "afterok"),
        ("final", 1, ("train-1",), "afterany"),
    ]


def test_data_that_another_job_packs_already_is_waited_for(plan):
    planned = plan("grid: {seeds: [1, 2]}")
    packed = [str(data.packed) for data in (*planned.datasets, *planned.tests.values())]
    batches = drafted(planned, load_profile("slurm"), wrangle_jobs=dict.fromkeys(packed, "17"))
    assert shape(batches)[0] == ("train-1", 2, ("17",), "afterok")


def test_the_test_set_is_packed_and_compared_before_any_cell_begins(plan):
    planned = plan("grid: {seeds: [1, 2]}")
    wrangle, cells, _ = drafted(planned, load_profile("slurm"))
    assert [type(task).__name__ for task in wrangle.tasks[0].tasks] == [
        *("WrangleTask", "WrangleTask", "OverlapTask")
    ]
    (test,) = {data.packed for data in planned.tests.values()}
    assert wrangle.packs == (str(planned.datasets[0].packed), str(test))
    assert cells.after == ("wrangle",)
    # the training set is another job's: the comparison waits for that
    of_others = {str(planned.datasets[0].packed): "17"}
    wrangle, cells, _ = drafted(planned, load_profile("slurm"), wrangle_jobs=of_others)
    assert (wrangle.packs, wrangle.after) == ((str(test),), ("17",))
    assert cells.after == ("17", "wrangle")


def test_cells_of_different_resources_go_in_arrays_of_their_own(plan):
    text = (
        "grid: {axes: {train.model.name: [cnn2, cnn3]}, seeds: [1, 2]}\n"
        "run: {resources: [{when: {train.model.name: cnn3}, mem_gb: 32, time_min: 5}]}"
    )
    batches = [batch for batch in drafted(plan(text), load_profile("slurm")) if batch.cells]
    assert [(len(b.tasks), b.resources.mem_gb, b.resources.time_min) for b in batches] == [
        (2, 16, 240),
        (2, 32, 5),
    ]


def test_jobs_in_flight_keep_the_closing_waiting(plan):
    planned = plan("grid: {seeds: [1, 2, 3]}")
    new, *others = planned.cells
    jobs = ["41_0", "40"]
    cells = [CellStatus(cell, "active", job=job) for cell, job in zip(others, jobs, strict=True)]
    grid_status = GridStatus([CellStatus(new, "pending"), *cells])
    batches = build_batches(planned, load_profile("slurm"), grid_status, max_array=1000, submission=False)
    assert [len(batch.tasks) for batch in batches if batch.cells] == [1]
    assert batches[-1].after == ("train-1", "40", "41")


@pytest.mark.parametrize(("limit", "per_job"), [(9, 1), (6, 2), (4, 4), (3, 7)])
def test_a_limit_on_jobs_puts_more_cells_into_each(plan, limit, per_job):
    profile = load_profile("slurm", [f"cluster.max_submit={limit}"])
    (array,) = (b for b in drafted(plan("grid: {seeds: [1, 2, 3, 4, 5, 6, 7]}"), profile) if b.cells)
    assert max(len(task.tasks) for task in array.tasks) == per_job
    assert len(array.tasks) + 2 <= limit
    assert sum(len(cells) for cells in array.cells) == 7


def test_what_cannot_fit_is_refused(plan):
    with pytest.raises(SpecError, match=r"2 cells do not fit: 2 other jobs are queued or needed, and"):
        drafted(plan("grid: {seeds: [1, 2]}"), load_profile("slurm", ["cluster.max_submit=2"]))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ([], r"jobs need a project account; export LABELGRID_ACCOUNT"),
        (
            ["cluster.account=p", "cluster.train.partition=small"],
            r"gres gpu:v100:1,nvme:100; small has no GPUs",
        ),
        (
            ["cluster.account=p", "cluster.train.sbatch={account: q}"],
            r"sbatch: account is set for you; write",
        ),
        (["cluster.account=p", "cluster.train.sbatch={mem: 9G}"], r"sbatch: mem is written as mem_gb"),
        (["cluster.account=p", "cluster.train.partition=gputest"], r"720 min; gputest allows 15"),
        (["cluster.account=p", "cluster.train.gres=gpu:a100:1"], r"gres gpu:a100:1; gpu has gpu:v100"),
        (["cluster.account=p", "cluster.train.gres=gpu:v100:8"], r"8 GPUs; a node has 4"),
        (["cluster.account=p", "cluster.train.cpus=11"], r"11 cores; 1 GPUs come with 10; lower cpus"),
    ],
)
def test_what_a_profile_knows_to_be_impossible_is_refused_before_sbatch(plan, settings, error):
    profile = load_profile("puhti", settings)
    with pytest.raises(SpecError, match=error):
        refuse_early(profile, "puhti", drafted(plan("grid: {seeds: [1]}"), profile), Path("/x"))


# ---------------------------------------------------------------- Slurm's answers


def test_pending_arrays_of_sacct_are_expanded():
    assert expand("12_[0-2,5%3]") == ["12_0", "12_1", "12_2", "12_5"]
    assert expand("12_[7]") == ["12_7"]
    assert expand("12_3") == ["12_3"]
    assert expand("12") == ["12"]


def test_slurm_s_clock():
    assert [seconds(text) for text in ("0:07", "1:02:03", "2-00:00:01", "INVALID")] == [7, 3723, 172801, 0]


@pytest.mark.parametrize(
    ("state", "active", "words"),
    [
        (accounted_state("PENDING"), True, ""),
        (accounted_state("COMPLETED", exit_code="0:0"), False, ""),
        (accounted_state("OUT_OF_MEMORY", exit_code="0:125"), False, "out of memory"),
        (accounted_state("CANCELLED", exit_code="0:0"), False, "cancelled"),
        (accounted_state("FAILED", exit_code="9:0"), False, "killed by SIGKILL (out of memory?)"),
        (
            accounted_state("FAILED", exit_code="0:53"),
            False,
            "could not start (its folder is not reachable from the node)",
        ),
        (accounted_state("FAILED", exit_code="1:0"), False, "ended with status 1:0"),
        (queued_state("PREEMPTED"), False, "preempted"),
        (queued_state("REQUEUE_HOLD"), True, ""),
        (queued_state("FAILED", "NonZeroExitCode"), False, "failed"),
        (queued_state("FAILED", "RaisedSignal:9(Killed)"), False, "killed by SIGKILL (out of memory?)"),
        (queued_state("CANCELLED"), False, "cancelled"),
        (accounted_state(""), True, ""),
    ],
)
def test_states_in_words(state, active, words):
    assert state.active is active
    assert state.ending == words


def test_gpus_are_counted_in_any_spelling():
    counts = [gpu_count(gres, None) for gres in ("gpu:v100:2,nvme:100", "gpu:4", "gpu", "nvme:100", None)]
    assert counts == [2, 4, 1, 0, 0]
    assert gpu_count(None, 8) == 8


def test_the_cluster_s_most_puzzling_refusal_is_explained(plan):
    (batch, *_) = drafted(plan("grid: {seeds: [1]}"), load_profile("slurm"))
    said = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting"
    text = explain_refusal(said, batch, "puhti")
    assert "AssocMaxSubmitJobLimit" in text
    assert "the account is missing, used up or not yours here" in text


def test_runs_and_packed_data_live_where_the_profile_says_and_links_lead_there(plan, tmp_path):
    planned = plan("grid: {seeds: [1]}")
    settings = [f"cluster.runs_root={tmp_path}/scratch/runs", f"cluster.data_root={tmp_path}/scratch/data"]
    profile = load_profile("slurm", settings)
    for _ in range(2):
        link_storage(planned, profile)
    assert (tmp_path / "experiments" / "x").resolve() == tmp_path / "scratch" / "runs" / "x"
    assert (tmp_path / "data" / "packed").resolve() == tmp_path / "scratch" / "data" / "packed"
    (tmp_path / "experiments" / "x").unlink()
    (tmp_path / "experiments" / "x").mkdir()
    with pytest.raises(
        SpecError, match=r"experiments/x: exists already; move it to .*scratch/runs/x and link it"
    ):
        link_storage(planned, profile)


@pytest.mark.parametrize(
    ("said", "ok", "found"),
    [
        ("/scratch 1000000 0 260000000 - 100 0 500000 -", True, "265.2 GB left, 499,900 files left"),
        ("/scratch 1000000 0 0 - 499950* 0 500000 -", False, "space without limit, 50 files left"),
        ("/scratch: no such project", None, ""),
    ],
)
def test_doctor_reads_a_lustre_project_s_quota(said, ok, found, tmp_path, drawn_zip, monkeypatch):
    # there is no Lustre to ask here: its command is played by one that answers as its manual says
    (tmp_path / "bin").mkdir()
    lfs = tmp_path / "bin" / "lfs"
    lfs.write_text(f'#!/bin/sh\n[ "$1" = project ] && echo "4711 P $3" || echo "{said}"\n')
    lfs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    plan = make_plan(read_spec(project(tmp_path, drawn_zip)))
    plan.experiment.path.mkdir()
    checks = [(check.ok, check.result) for check in _quota(plan)]
    assert checks == ([(ok, f"{found} (lfs quota)")] if ok is not None else [])


def test_a_gpu_that_torch_cannot_see_is_said(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert ExecutionConfig.choose("auto", "fp32", 1).device == "cpu"
    assert "sees none" in capsys.readouterr().out


def test_cells_on_kept_features_say_nothing_of_the_speed_of_others():
    model = {"name": "resnet18", "weights": "w.pth", "trainable": "head"}
    plain, kept, again = (
        TrainSpec.model_validate({"model": model, "cached_views": views}) for views in (None, 1, 4)
    )
    assert _kind(plain) != _kind(kept) == _kind(again)
