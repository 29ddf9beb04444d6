"""What a cell on several GPUs asks of a cluster, costs and is told by plan and doctor; nothing is started."""

import subprocess
import time

import pytest

from jobs.clusters.billing import cost_per_hour, requested
from jobs.clusters.profile import load_profile
from jobs.local.ranks import Ranks, joint_status
from jobs.planning.cost import better_apart, device_of
from jobs.planning.plan import make_plan
from jobs.planning.status import CellStatus, GridStatus
from jobs.planning.tasks import resources_for
from jobs.slurm.batches import build_batches
from jobs.slurm.refusals import refuse_early
from jobs.stages import EXIT_DEVICE_FAILED, EXIT_FAILED, EXIT_RANK_LOST, EXIT_STOPPED
from pipeline.errors import SpecError
from pipeline.spec import RunSpec
from pipeline.spec.reading import read_spec
from tests.cells import jobs, packed_project

EIGHT = "run: {gpus_per_cell: 8, nodes_per_cell: 2}"


@pytest.fixture
def planned(tmp_path, drawn_zip, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return make_plan(read_spec(packed_project(tmp_path, drawn_zip, EIGHT)))


def batches(plan, profile):
    status = GridStatus(cells=[CellStatus(cell, "pending", "new") for cell in plan.cells])
    return build_batches(plan, profile, status, max_array=1000, submission=False)


def test_gpus_cores_memory_nodes_and_price_are_those_of_all_its_gpus(planned):
    profile = load_profile("roihu", ["cluster.train.mem_gb=100", "cluster.train.partition=gputest"], "p")
    train = resources_for(planned.cells[0], profile).train
    assert (train.gres, train.cpus, train.mem_gb, train.sbatch) == ("gpu:gh200:4", 288, 400, {"nodes": 2})
    assert requested(train).gpus == 8
    assert cost_per_hour(train, profile) == 8 * 200
    assert device_of(train) == "gpu:gh200:4 on 2 nodes"
    named = load_profile("roihu", ["cluster.train.gres=gpu:gh200:4,nvme:100", "cluster.train.cpus=200"], "p")
    train = resources_for(planned.cells[0], named).train
    assert (train.gres, train.cpus) == ("gpu:gh200:4,nvme:100", 200)  # asked for already

    (job,) = batches(planned, profile)[0].tasks
    assert (job.ranks, job.nodes, job.concurrent_cells) == (4, 2, 1)


def test_a_submission_predicts_with_the_gpus_that_a_cell_has_on_one_node(planned):
    """The others would wait for the leaderboard; without a submission nothing is predicted."""
    profile = load_profile("roihu", ["cluster.train.mem_gb=100", "cluster.concurrent_cells=1"], "p")
    status = GridStatus(cells=[CellStatus(cell, "pending", "new") for cell in planned.cells])
    for submission, gres, gpus in ((True, "gpu:gh200:4", 4), (False, profile.cpu.gres, None)):
        final = build_batches(planned, profile, status, max_array=1000, submission=submission)[-1]
        assert final.resources.gres == gres
        assert "nodes" not in final.resources.sbatch
        (job,) = final.tasks
        assert job.ranks == 4
        if gpus:
            assert requested(final.resources).gpus == gpus
            assert final.resources.mem_gb == 100 * gpus


def test_what_a_partition_or_node_does_not_give_is_refused(planned, tmp_path):
    few = load_profile("roihu", account="p")  # a partition of one node
    with pytest.raises(SpecError, match="8 GPUs; gpumedium has 4"):
        refuse_early(few, "roihu", batches(planned, few), tmp_path)
    plan = make_plan(read_spec(planned.loaded.path, ["run.nodes_per_cell=1"]))
    large = load_profile("roihu", ["cluster.train.partition=gpularge"], "p")
    with pytest.raises(SpecError, match=r"8 GPUs; a node has 4: .* by run\.nodes_per_cell"):
        refuse_early(large, "roihu", batches(plan, large), tmp_path)
    crowded = load_profile("roihu", ["cluster.concurrent_cells=2", "cluster.cells_per_job=2"], "p")
    with pytest.raises(SpecError, match=r"concurrent_cells: 2: cells over several nodes .*; set it to 1"):
        batches(planned, crowded)


@pytest.mark.parametrize(
    ("each", "missing", "at_once", "better"),
    [
        (1, 7, 4, False),
        (4, 1, 1, False),
        (4, 4, 1, True),
        (4, 2, 1, False),
        (2, 4, 2, True),
        (2, 2, 2, False),
    ],
)
def test_plan_says_where_a_gpu_for_each_cell_ends_sooner(each, missing, at_once, better):
    """Of 4 GPUs in all: four cells of one GPU end with one on four, which exchanges more; two would idle."""
    assert (better_apart(RunSpec(gpus_per_cell=each), missing, at_once) is not None) is better


def test_plan_and_doctor_look_at_the_gpus_of_this_machine(tmp_path, drawn_zip, monkeypatch):
    grid = "grid: {seeds: [0, 1, 2, 3]}\nrun: {gpus_per_cell: 2}"
    spec = packed_project(tmp_path, drawn_zip, grid)
    status, printed = jobs("plan", spec, cwd=tmp_path, CUDA_VISIBLE_DEVICES="0,1")
    assert status == 0, printed
    assert "they would end sooner with a GPU for each cell" in printed
    _, printed = jobs("doctor", spec, cwd=tmp_path, CUDA_VISIBLE_DEVICES="0")
    assert "run.gpus_per_cell: 2: this machine has 1; lower it" in printed


@pytest.mark.parametrize(("first", "lost"), [("exit 3", True), (f"exit {EXIT_STOPPED}", False)])
def test_where_one_is_gone_the_others_do_not_stay(tmp_path, monkeypatch, first, lost):
    monkeypatch.setattr("jobs.local.ranks.LOST_S", 0.2)
    other = f"trap 'exit {EXIT_STOPPED}' TERM; while true; do sleep 0.05; done"
    logs = [tmp_path / name for name in ("log.txt", "log-rank1.txt")]
    for log in logs:
        log.touch()
    ranks = Ranks(
        [subprocess.Popen(["sh", "-c", script], start_new_session=True) for script in (other, first)],
        logs,
        (tmp_path / "meeting.json", "word"),
    )
    while (status := ranks.poll()) is None:
        time.sleep(0.01)
    assert status == (EXIT_RANK_LOST if lost else EXIT_STOPPED)
    assert (ranks.first_bad is not None) is lost


@pytest.mark.parametrize(
    ("statuses", "leads", "joint"),
    [
        ([0, 0], True, 0),
        ([0, -9], True, 0),  # killed once the first one was through
        ([EXIT_FAILED, EXIT_RANK_LOST], True, EXIT_FAILED),
        ([EXIT_STOPPED, EXIT_STOPPED], True, EXIT_STOPPED),
        ([-9, EXIT_RANK_LOST], True, EXIT_RANK_LOST),
        ([EXIT_RANK_LOST, EXIT_DEVICE_FAILED], True, EXIT_DEVICE_FAILED),
        ([-9], True, -9),  # the only one
        ([-9], False, EXIT_RANK_LOST),
        ([0, EXIT_STOPPED], False, EXIT_STOPPED),
        ([EXIT_FAILED, 0], False, EXIT_RANK_LOST),
    ],
)
def test_processes_of_a_cell_end_with_one_status(statuses, leads, joint):
    assert joint_status(statuses, leads=leads) == joint
