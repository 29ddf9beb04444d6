"""Device, precision and threads of a cell: chosen once, stored with it, reused on resume."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import TrainingError

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
# instructions without which a CPU emulates bfloat16, slower than float32
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})


@dataclass(frozen=True)
class ExecutionConfig:
    """What the arithmetic of a cell runs on; equal settings give equal bits on the same CPU kind."""

    device: str  # cpu or cuda
    precision: str  # fp32, bf16 or fp16
    threads: int
    micro_batch: int | None = None  # images at a time, where the GPU has no room for the whole batch

    @classmethod
    def choose(cls, device: str, precision: str, threads: int | None) -> ExecutionConfig:
        """Resolve `auto`: the GPU if there is one; bf16 where the hardware has it, else fp16 on a GPU."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            if device == "cpu" and os.environ.get("SLURM_JOB_GPUS"):
                print(
                    f"warning: Slurm gave this job a GPU, torch {torch.__version__} sees none (another CUDA, or no "
                    "driver?); training on the CPU. docs/clusters.md says which builds serve which GPUs",
                    flush=True,
                )
        if precision == "auto":
            precision = _best_precision(device)
        return cls(device=device, precision=precision, threads=threads or torch.get_num_threads())

    def apply(self) -> None:
        """Set the process up; raises TrainingError where the device is not there."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise TrainingError(
                "this cell runs on a GPU, and torch sees none here; set run.device=cpu or use a GPU"
            )
        if self.device == "cpu" and self.precision == "fp16":
            raise TrainingError("train.precision fp16 needs a GPU; use auto, bf16 or fp32 on a CPU")
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = False  # the fastest algorithm may differ from start to start
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision, or nothing for fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_AMP[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler, enabled for fp16 only."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "fp16")


def _best_precision(device: str) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "bf16" if _BF16_FLAGS & _cpu_flags() else "fp32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
