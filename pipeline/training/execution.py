"""What a cell's arithmetic runs on: chosen at its first start, kept by the later ones."""

from __future__ import annotations

from dataclasses import replace

from pipeline.distributed.group import Group
from pipeline.errors import TrainingError
from pipeline.models.device import ExecutionConfig
from pipeline.spec import RunSpec
from pipeline.storage.run_dir import RunDir
from pipeline.training.state import TrainState


def execution_of(
    spec: RunSpec, precision: str, state: TrainState | None, run: RunDir, group: Group
) -> ExecutionConfig:
    """As it was begun. A CPU in a job that has a GPU is refused: hours of it would be paid for nothing."""
    chosen = ExecutionConfig.choose(
        spec.device, precision, spec.threads, deterministic=spec.deterministic, compiled=spec.compile
    )
    # of GPUs of two kinds, all ranks take what the first one's has
    chosen = replace(chosen, precision=group.from_leader(chosen.precision), ranks=group.size)
    if state is None:
        return chosen
    begun = ExecutionConfig(**state.execution)
    for name in ("precision", "deterministic", "compiled"):
        if getattr(begun, name) != getattr(chosen, name):
            print(f"goes on with {name} {getattr(begun, name)}, as it was begun", flush=True)
    if begun.device == "cpu" and chosen.device == "cuda":
        raise TrainingError(
            f"was begun on a CPU (step {state.step}), and here is a GPU: to go on on the CPU set run.device=cpu, "
            f"to begin anew on the GPU delete {run.path}"
        )
    if begun.ranks != chosen.ranks:
        processes = "1 process" if chosen.ranks == 1 else f"{chosen.ranks} processes"
        print(
            f"goes on with {processes}, begun with {begun.ranks} (run.gpus_per_cell): the same batches, "
            "other rounding, and other draws of dropout from here on",
            flush=True,
        )
        # bits differ in any case; with the threads of before, more processes would want more than there are cores
        earlier = (*begun.earlier_ranks, begun.ranks)
        begun = replace(begun, ranks=chosen.ranks, earlier_ranks=earlier, threads=chosen.threads)
    # another start may find more memory; only with the same parts of a batch are the bits the same
    return begun if begun.deterministic else replace(begun, micro_batch=None)
