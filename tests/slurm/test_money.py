"""Prices, estimates, the budget as a cap, accounts, and what jobs ask for per stage. Mostly without a cluster."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.clusters.billing import (
    Billing,
    Reserved,
    billing_of,
    cost_per_hour,
    price,
    requested,
    reserved_by,
    unit_of,
)
from jobs.clusters.profile import Resources, load_profile
from jobs.commands.request import Request
from jobs.commands.submit import _over, build_all, idle_gpus
from jobs.planning.plan import find_cell, make_plan
from jobs.planning.status import CellStatus, GridStatus, JobState
from jobs.slurm.batches import build_batches
from jobs.slurm.endings import ENDING
from jobs.slurm.forecast import forecast
from jobs.slurm.options import Options
from jobs.slurm.refusals import refuse_early
from jobs.slurm.sent import Queued, compare
from pipeline.errors import LaunchError, SpecError
from pipeline.spec.reading import read_spec
from pipeline.storage.jsonl import with_checksum
from tests.cells import jobs, project

PUHTI = {"gpu_hour": 60, "core_hour": 1, "mem_gib_hour": 0.1, "nvme_gib_hour": 0.006}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without anything of the person who runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("LABELGRID_ACCOUNT", "SBATCH_ACCOUNT", "LABELGRID_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config" / "labelgrid").mkdir(parents=True)
    return tmp_path / "config" / "labelgrid"


@pytest.fixture
def plan(tmp_path, drawn_zip):
    def make(text="", **train):
        return make_plan(read_spec(project(tmp_path, drawn_zip, text, **train)))

    return make


def drafted(plan, profile, *, submission=False, active=()):
    cells = [CellStatus(cell, "active" if cell in active else "pending", job="7") for cell in plan.cells]
    return build_batches(plan, profile, GridStatus(cells), max_array=1000, submission=submission)


# ---------------------------------------------------------------- prices


@pytest.mark.parametrize(
    ("cluster", "asks", "units"),
    [
        # hpc-billing: small, 4 cores and 16 GiB for 2 hours cost 12 CPU BU; 2 GPUs for 5 hours 2000 GPU BU
        ("roihu", {"partition": "small", "cpus": 4, "mem_gb": 16}, (12 / 2, "CPU BU")),
        ("roihu", {"partition": "gpumedium", "gres": "gpu:gh200:2", "cpus": 144}, (2000 / 5, "GPU BU")),
        ("roihu", {"partition": "medium", "cpus": 4, "mem_gb": 16}, (288, "CPU BU")),  # whole nodes
        ("roihu", {"partition": "hugemem", "cpus": 1, "mem_gb": 480}, (120, "CPU BU")),
        # LUMI's billing page: 2 GCDs for 24 hours 24 GPU-h, 1 GCD and 128 GB the same, 4 whole nodes 384
        ("lumi", {"partition": "small-g", "gpus_per_node": 2, "cpus": 14, "mem_gb": 60}, (24 / 24, "GPU-h")),
        ("lumi", {"partition": "small-g", "gpus_per_node": 1, "cpus": 7, "mem_gb": 128}, (24 / 24, "GPU-h")),
        ("lumi", {"partition": "dev-g", "gpus_per_node": 1, "cpus": 17}, (1.5, "GPU-h")),
        (
            "lumi",
            {"partition": "standard-g", "gpus_per_node": 1, "sbatch": {"nodes": 4}},
            (384 / 24, "GPU-h"),
        ),
        ("lumi", {"partition": "small", "cpus": 4, "mem_gb": 32}, (384 / 24, "CPU-core-h")),
        ("puhti", {"partition": "gpu", "gres": "gpu:v100:1,nvme:100", "cpus": 10, "mem_gb": 64}, (77, "BU")),
    ],
)
def test_prices_are_those_of_the_sites_own_examples(cluster, asks, units):
    profile, resources = load_profile(cluster), Resources.model_validate(asks)
    assert (cost_per_hour(resources, profile), unit_of(resources, profile)) == (
        pytest.approx(units[0]),
        units[1],
    )


@pytest.mark.parametrize(
    ("cluster", "asks"),
    [
        ("lumi", {"partition": "largemem", "cpus": 4, "mem_gb": 900}),  # not in the guide
        ("roihu", {"partition": "small", "sbatch": {"exclusive": True}}),
        ("mahti", {"partition": "small", "cpus": 8}),  # only GPUs have a price there
        ("puhti", {"cpus": 8}),  # the site's default, whichever that is
    ],
)
def test_a_price_that_is_not_known_is_no_price(cluster, asks):
    assert cost_per_hour(Resources.model_validate(asks), load_profile(cluster)) is None


def test_what_has_no_price_has_cost_nothing_that_is_known():
    mahti = load_profile("mahti")
    assert price(reserved_by("cpu=8,mem=16G,node=1"), billing_of("small", mahti)) is None


def test_of_several_partitions_the_dearest_decides():
    both = Resources.model_validate({"partition": "small,hugemem", "cpus": 10})
    assert cost_per_hour(both, load_profile("roihu")) == 120


def test_what_a_job_asks_for_and_what_slurm_says_it_has_are_read_alike():
    asked = Resources(gres="gpu:v100:2,nvme:100", cpus=20, mem_gb=64, sbatch={"nodes": 2})
    assert requested(asked) == Reserved(gpus=4, cores=40, mem_gib=128, nvme_gib=200, nodes=2)
    says = "billing=40,cpu=40,gres/gpu:v100=4,gres/gpu=4,gres/nvme=200,mem=128G,node=2"
    assert reserved_by(says) == requested(asked)
    assert reserved_by("cpu=1,mem=1500M,node=1").mem_gib == pytest.approx(1500 / 1024)
    assert reserved_by("cpu=2,gres/nvme=100G,mem=,node=").nvme_gib == 100
    assert reserved_by("") == Reserved()
    assert reserved_by("cpu=2,mem=1T,node=1,gres/gpu:a100=3").gpus == 3
    assert requested(Resources(sbatch={"gpus": "a100:3"})).gpus == 3
    assert price(Reserved(gpus=1, cores=10, mem_gib=64, nvme_gib=100), Billing(unit="BU", **PUHTI)) == 77


# ---------------------------------------------------------------- the budget

BILLING = "cluster.billing={unit: BU, gpu_hour: 60, core_hour: 1}"
GPU = (
    "cluster.train.gres=gpu:1",
    "cluster.train.cpus=10",
    "cluster.train.time_min=120",
    "cluster.cpu.cpus=6",
)


def test_without_an_estimate_the_worst_case_counts_with_every_stage(plan):
    profile = load_profile("slurm", [BILLING, *GPU])
    cost = forecast(planned := plan("grid: {seeds: [1, 2, 3]}"), profile, drafted(planned, profile), "slurm")
    assert cost.known == 0
    # wrangle 1 h x 6, three cells 2 h x 70, final job 1 h x 6
    assert cost.most == {"BU": 6 + 3 * 2 * 70 + 6} == cost.about
    assert cost.text() == "cost: at most 432.0 BU with every job to its time limit; no estimate"
    chained = load_profile("slurm", [BILLING, *GPU, "cluster.requeue=false", "cluster.continuations=2"])
    assert forecast(planned, chained, drafted(planned, chained), "slurm").most["BU"] == 12 + 3 * 3 * 140


def finished(plan, cell, *, device, seconds_an_epoch=36.0):
    """As a cell looks that was trained on the cluster: its curve, and its line in the ledger."""
    cell.run.path.mkdir(parents=True, exist_ok=True)
    images = 192 + 48 // 3
    rows = [
        {"epoch": e, "validation/loss": 1.0, "train/images_per_s": images / seconds_an_epoch} for e in (1, 2)
    ]
    cell.run.metrics.write_text("".join(with_checksum(row) + "\n" for row in rows))
    cell.run.write_manifest(cell.identity, "done")
    event = {"event": "submitted", "cell": cell.run.name, "identity": cell.identity, "jobs": ["1"]}
    line = with_checksum(event | {"cluster": "slurm", "device": device}) + "\n"
    with plan.experiment.ledger.open("a") as file:
        file.write(line)


@pytest.mark.parametrize(("device", "known"), [("gpu:1", 2), ("gpu:a100:1", 0), ("cpu", 0)])
def test_an_estimate_comes_from_cells_of_the_same_kind_of_device(plan, device, known, tmp_path, drawn_zip):
    text = "grid: {seeds: [1, 2, 3]}"
    planned = plan(text)
    assert jobs("wrangle", "experiments/x.yaml", cwd=tmp_path)[0] == 0
    finished(planned, planned.cells[0], device=device)
    planned = make_plan(planned.loaded)
    assert len(planned.missing) == 2
    profile = load_profile("slurm", [BILLING, *GPU])
    cells = [CellStatus(c, "done" if c.reason is None else "pending") for c in planned.cells]
    batches = build_batches(planned, profile, GridStatus(cells), max_array=9, submission=False)
    cost = forecast(planned, profile, batches, "slurm")
    assert cost.known == known
    hours = (30 + 2 * 36) / 3600 if known else 2.0
    assert cost.about["BU"] == pytest.approx(2 * hours * 70 + 6)
    assert ("about" in cost.text()) == bool(known)


def grid(tmp_path, drawn_zip, budget, *settings):
    project(tmp_path, drawn_zip, f"grid: {{seeds: [1, 2, 3]}}\nrun: {{budget_units: {budget}}}")
    return jobs("grid", "experiments/x.yaml", "--cluster", "slurm", "--set", *settings, cwd=tmp_path)


def test_a_budget_refuses_what_may_cost_more_and_what_has_no_price(tmp_path, drawn_zip):
    status, printed = grid(tmp_path, drawn_zip, 431, BILLING, *GPU)
    assert status == 2
    assert "experiments/x.yaml: run.budget_units allows 431 BU; 0.0 are spent, 0.0 may go to cells" in printed
    assert "the jobs to submit may take 432.0 (cost: at most 432.0 BU" in printed
    status, printed = grid(tmp_path, drawn_zip, 431, *GPU)
    assert status == 2
    assert (
        "allows 431, but the cost: unknown (no price is known of partition that the site chooses)" in printed
    )
    status, printed = grid(tmp_path, drawn_zip, 432, BILLING, *GPU)
    assert "budget" not in printed
    assert "Could not detect" in printed or "srun" in printed or "sbatch" in printed or "cluster" in printed


def test_what_is_spent_counts_against_the_budget(tmp_path, drawn_zip):
    (tmp_path / "experiments" / "x").mkdir(parents=True)
    event = {"event": "cost", "name": "n", "job": "1", "cells": [], "hours": 1.0, "units": 10.0, "unit": "BU"}
    (tmp_path / "experiments" / "x" / "ledger.jsonl").write_text(with_checksum(event) + "\n")
    status, printed = grid(tmp_path, drawn_zip, 440, BILLING, *GPU)
    assert status == 2
    assert "10.0 are spent" in printed


# ---------------------------------------------------------------- accounts


def test_the_account_of_the_command_line_goes_before_spec_environment_config_and_profile(
    tmp_path, drawn_zip, home, monkeypatch
):
    (home / "clusters").mkdir()
    (home / "clusters" / "mine.yaml").write_text("scheduler: slurm\naccount: of_profile\n")
    spec = project(tmp_path, drawn_zip, "run: {account: of_spec}")

    def account(*settings):
        _, printed = jobs("plan", "experiments/x.yaml", "--cluster", "mine", "--set", *settings, cwd=tmp_path)
        return re.search(r"^account: (.*)$", printed, re.MULTILINE)[1]

    assert account("cluster.account=of_line") == "of_line (--set cluster.account=of_line)"
    monkeypatch.setenv("LABELGRID_ACCOUNT", "of_labelgrid")
    monkeypatch.setenv("SBATCH_ACCOUNT", "of_sbatch")
    (home / "config.yaml").write_text("cluster: {account: of_config}\n")
    assert account("run.threads=1") == "of_spec (run.account of the spec)"
    spec.write_text(spec.read_text().replace("run: {account: of_spec}", ""))
    assert account("run.threads=1") == "of_labelgrid (LABELGRID_ACCOUNT)"
    monkeypatch.delenv("LABELGRID_ACCOUNT")
    assert account("run.threads=1") == "of_sbatch (SBATCH_ACCOUNT)"
    monkeypatch.delenv("SBATCH_ACCOUNT")
    assert account("run.threads=1").startswith("of_config (")
    assert account("run.threads=1").endswith("config.yaml:1)")
    (home / "config.yaml").unlink()
    assert account("run.threads=1").startswith("of_profile (")


# ---------------------------------------------------------------- what a job asks for


def script(plan, batch, *settings):
    profile = load_profile("slurm", settings)
    options = Options(profile, "slurm", plan.experiment, Path("/code.zip"), "digest", "abc123")
    (found,) = (b for b in drafted(plan, profile, submission=True) if b.key == batch)
    return options.script(found)


def test_every_stage_has_its_own_resources_and_options(plan):
    rules = [
        "{stage: wrangle, partition: small, cpus: 16, sbatch: {nice: 100}}",
        "{qos: fast, constraint: a100, gpus_per_node: 2, gres: '', sbatch: {reservation: course}}",
        "{stage: final, time_min: 5, sbatch: {mail-type: END}}",
    ]
    planned = plan(f"run: {{resources: [{', '.join(rules)}]}}")
    wrangle, train, final = (
        script(planned, key, "cluster.train.gres=gpu:1") for key in ("wrangle", "train-1", "final")
    )
    for line in ("partition=small", "cpus-per-task=16", "nice=100"):
        assert f"#SBATCH --{line}\n" in wrangle
        assert f"#SBATCH --{line}\n" not in train + final
    for line in ("qos=fast", "constraint=a100", "gpus-per-node=2", "reservation=course"):
        assert f"#SBATCH --{line}\n" in train
        assert f"#SBATCH --{line}\n" not in wrangle + final
    assert "gres" not in train
    assert "#SBATCH --mail-type=END\n" in final
    assert "#SBATCH --time=5\n" in final
    assert "mail" not in wrangle + train
    with pytest.raises(
        SpecError, match=r"when, cells_per_job and concurrent_cells are of cells; the final job has"
    ):
        plan("run: {resources: [{stage: final, cells_per_job: 2}]}")


def test_a_dependency_joins_ours_and_empty_values_drop_an_option(plan):
    planned = plan("grid: {seeds: [1, 2]}")
    plain = script(planned, "train-1")
    assert "#SBATCH --dependency='afterok:<wrangle>'\n" in plain
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in plain
    assert "#SBATCH --wckey=submitit\n" in plain
    joined = script(planned, "train-1", "cluster.train.sbatch={dependency: 'afterok:17'}")
    assert "#SBATCH --dependency='afterok:<wrangle>,afterok:17'\n" in joined
    dropped = script(
        planned,
        "train-1",
        "cluster.train.sbatch={kill_on_invalid_dep: null, wckey: '', requeue: false, mem: ''}",
    )
    for option in ("kill-on-invalid-dep", "wckey", "requeue", "mem"):
        assert f"#SBATCH --{option}" not in dropped


def test_a_continuation_waits_for_its_own_task_and_counts_against_the_limit(plan):
    planned = plan(f"grid: {{seeds: {list(range(21))}}}")
    settings = ["cluster.requeue=false", "cluster.continuations=3"]
    text = script(planned, "train-1-more-2", *settings)
    assert "#SBATCH --dependency='aftercorr:<train-1-more-1>?afterany:<train-1-more-1>'\n" in text
    batches = drafted(planned, load_profile("slurm", [*settings, "cluster.max_submit=24"]))
    assert sum(len(batch.tasks) for batch in batches) <= 24
    assert sum(len(cells) for batch in batches[1:2] for cells in batch.cells) == 21
    with pytest.raises(SpecError, match=r"2 other jobs .* allows 5 .* or lower cluster\.continuations"):
        drafted(planned, load_profile("slurm", [*settings, "cluster.max_submit=5"]))


def test_a_continuation_that_is_tried_by_itself_waits_for_nothing(plan):
    profile = load_profile("slurm", ["cluster.requeue=false"])
    planned = plan("grid: {seeds: [1, 2]}")
    (batch,) = (b for b in drafted(planned, profile) if b.key == "train-1-more-1")
    options = Options(profile, "slurm", planned.experiment, Path("/code.zip"), "digest", "abc123")
    assert "dependency" not in options.script(replace(batch, after=()))


def test_without_scontrol_continuation_jobs_are_queued(plan, tmp_path, monkeypatch, capsys):
    for name in ("sbatch", "squeue"):
        (tmp_path / "only").mkdir(exist_ok=True)
        (tmp_path / "only" / name).write_text("#!/bin/sh\n")
        (tmp_path / "only" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "only"))
    planned = plan("grid: {seeds: [1, 2]}")
    request = Request(planned.loaded, "slurm", load_profile("slurm", ["cluster.max_array=9"]))
    grid_status = GridStatus([CellStatus(cell, "pending") for cell in planned.cells])
    keys = [batch.key for batch in build_all(request, planned, grid_status, submission=False)]
    assert keys == ["wrangle", "train-1", *(f"train-1-more-{n}" for n in (1, 2, 3)), "final"]
    assert "continuation jobs are queued instead" in capsys.readouterr().out


def test_a_job_that_no_queue_lists_does_not_hold_its_cell_for_ever(plan):
    (cell,) = plan().cells
    stale = CellStatus(cell, "active", job="7", state=JobState(ENDING, active=True, is_ending=True))
    assert _over(stale).kind == "pending"
    running = CellStatus(cell, "active", job="7", state=JobState("running", active=True))
    assert _over(running) == running


def test_idle_gpus_and_a_percent_sign_are_said(plan, tmp_path):
    planned = plan("grid: {seeds: [1, 2, 3, 4]}")
    four = load_profile("slurm", ["cluster.train.gres=gpu:v100:4"])
    (note,) = idle_gpus(drafted(planned, four))
    assert "reserves 4 GPUs and trains 1 at once, on 1 GPU each: 3 stay idle" in note
    shared = ["cluster.train.gres=gpu:v100:4", "cluster.cells_per_job=4", "cluster.concurrent_cells=4"]
    assert idle_gpus(drafted(planned, load_profile("slurm", shared))) == []
    with pytest.raises(SpecError, match=r"Slurm would expand the % in this path"):
        refuse_early(four, "slurm", drafted(planned, four), tmp_path / "100%j" / "slurm")


def test_a_partition_that_a_profile_does_not_list_is_asked_from_slurm(plan, tmp_path, monkeypatch):
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(
        '#!/bin/sh\n[ "$4" = hidden ] && echo \'hidden|1-00:00:00\'\n[ "$4" = hidden ] || true\n'
    )
    sinfo.chmod(0o755)
    planned = plan()

    def refused(partition, minutes):
        settings = [
            f"cluster.train.partition={partition}",
            f"cluster.train.time_min={minutes}",
            "cluster.account=p",
        ]
        profile = load_profile("puhti", settings)
        refuse_early(profile, "puhti", drafted(planned, profile), tmp_path)

    refused("hidden", 9999)  # no sinfo here: sbatch will know
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    refused("hidden", 1440)
    with pytest.raises(SpecError, match=r"1441 min; hidden allows 1440"):
        refused("hidden", 1441)
    with pytest.raises(SpecError, match=r"no partition 'nowhere' here \(sinfo\); known: gputest"):
        refused("nowhere", 10)


@pytest.mark.parametrize(
    ("held", "error"),
    [
        ({"account": "other"}, "account other instead of mine"),
        ({"reserved": Reserved(gpus=4, cores=10, mem_gib=64)}, "4 GPUs instead of 1"),
        ({"reserved": Reserved(gpus=1, cores=40, mem_gib=64)}, "100 BU an hour instead of 70"),
        ({"reserved": Reserved(gpus=1, cores=10, mem_gib=64, nodes=2)}, "2 nodes instead of 1"),
        ({"time_s": 90 * 60}, "a time limit of 90 min instead of 60"),
        ({"time_s": 0}, "no time limit"),
        # in threads, as some sites count
        ({"account": "MINE", "time_s": 61 * 60, "reserved": Reserved(1, 20, 64.0)}, None),
    ],
)
def test_what_is_queued_is_compared_with_what_was_planned(plan, held, error):
    settings = ["cluster.account=mine", BILLING, "cluster.train.gres=gpu:1", "cluster.train.cpus=10"]
    profile = load_profile("slurm", [*settings, "cluster.train.mem_gb=64", "cluster.train.time_min=60"])
    (batch,) = (batch for batch in drafted(plan(), profile) if batch.cells)
    facts = {"account": "mine", "partition": "gpu", "time_s": 3600, "reserved": Reserved(1, 10, 64.0)}
    found = {"7": Queued(**(facts | held), qos="normal", user="me", name="n", folder="/f")}
    if error is None:
        assert compare([batch], found, {"train-1": "7"}, profile) == [
            "train-1: Slurm chose partition gpu",
            "train-1: 61 minutes instead of 60",
            "train-1: 20 cores instead of 10",
        ]
    else:
        with pytest.raises(LaunchError, match=re.escape(error)):
            compare([batch], found, {"train-1": "7"}, profile)


def test_a_cell_is_found_by_its_name_before_it_has_a_folder(plan):
    planned = plan("grid: {axes: {train.optimizer: [{name: adam}, {name: adamw}, {name: sgd, lr: 0.1}]}}")
    assert find_cell(planned, "sgd").name.startswith("sgd-")
    with pytest.raises(SpecError, match=r"RUN=adam: 2 cells start with that: adam-"):
        find_cell(planned, "adam")
