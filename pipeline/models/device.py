"""Device, precision and threads of a cell: chosen once, stored with it, reused on resume."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import TrainingError

_NAMES = {"cpu": "CPU", "cuda": "GPU"}
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
    deterministic: bool = False  # of a GPU; a CPU is in any case
    compiled: bool = False
    ranks: int = 1  # processes that share a batch; another number rounds differently
    earlier_ranks: tuple[int, ...] = ()  # the numbers it was trained by before this one

    @classmethod
    def choose(
        cls,
        device: str,
        precision: str,
        threads: int | None,
        *,
        deterministic: bool = False,
        compiled: bool = False,
    ) -> ExecutionConfig:
        """Resolve `auto`: the GPU if there is one; bf16 where the hardware has it, else fp16 on a GPU."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            if device == "cpu" and os.environ.get("SLURM_JOB_GPUS"):
                print(
                    f"warning: Slurm gave this job a GPU, torch {torch.__version__} sees none (another CUDA, or no "
                    "driver?); training on the CPU. docs/clusters.md says which builds serve which GPUs",
                    flush=True,
                )
        _refuse_without(device)
        if precision == "auto":
            precision = _best_precision(device)
        return cls(
            device=device,
            precision=precision,
            threads=threads or torch.get_num_threads(),
            deterministic=deterministic,
            compiled=compiled,
        )

    @classmethod
    def for_scoring(cls, device: str, trained_in: str) -> ExecutionConfig:
        """The precision that a network was trained in where this device has it, else fp32, and says so."""
        chosen = cls.choose(device, trained_in, None)
        if has_precision(chosen.device, trained_in):
            return chosen
        _say_once(f"trained in {trained_in}, which this {_NAMES[chosen.device]} lacks: scored in fp32")
        return replace(chosen, precision="fp32")

    def apply(self) -> None:
        """Set the process up; raises TrainingError where the device is not there."""
        _refuse_without(self.device)
        if self.device == "cpu" and self.precision == "fp16":
            raise TrainingError("train.precision fp16 needs a GPU; use auto, bf16 or fp32 on a CPU")
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = not self.deterministic  # the fastest may differ from start to start
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        # pictures are made by matrix products in fp32; some containers round those of all programs
        torch.backends.cuda.matmul.allow_tf32 = False
        if self.device == "cuda" and self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)  # what has no such algorithm is named
        if self.device == "cuda" and not has_precision("cuda", self.precision):
            _say_once(f"train.precision {self.precision}: this GPU emulates it, slower than fp16 or fp32")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision, or nothing for fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_AMP[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler, enabled for fp16 only."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "fp16")


def _refuse_without(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            f"this cell runs on a GPU, and torch {torch.__version__} sees none here; set run.device=cpu or use a GPU"
        )


def _best_precision(device: str) -> str:
    return next(each for each in ("bf16", "fp16", "fp32") if has_precision(device, each))


def has_precision(device: str, precision: str) -> bool:
    """Whether a device computes in it; a CPU or GPU without bf16 emulates it, and a CPU has no fp16."""
    if precision == "bf16":
        if device == "cuda":  # of AMD, those that torch still serves all have it
            return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
        return bool(_BF16_FLAGS & _cpu_flags())
    return precision == "fp32" or device == "cuda"


@functools.cache
def _say_once(text: str) -> None:
    print(text, flush=True)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
