"""Which GPUs this process may use, found without torch, and what tells a process of its own GPU. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

from pipeline.errors import LaunchError

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
PER_GPU = "LABELGRID_PROCESSES_PER_GPU"  # how many of our processes share the GPU: each takes its part of the memory
NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU
KFD = Path("/sys/class/kfd/kfd/topology/nodes")  # a folder for each CPU and AMD GPU
DEVICES = Path("/dev")

_NAME = re.compile(r"\d+|(?:GPU|MIG)-\S+")
_LISTED = re.compile(r"\s*(?P<kind>GPU|MIG)\s.*\(UUID: (?P<uuid>[^)\s]+)\)")
# any of these is the user's own; torch 2.4 knows no name but the first, and 2.9 obeys no other
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, each as the variable names it that `gpu_environment` sets."""
    named = {name: _names(os.environ[name]) for name in (CUDA, HIP, ROCR) if name in os.environ}
    if not is_amd():
        return named[CUDA] if CUDA in named else _listed_by_nvidia() or _nvidia_devices()
    if ROCR in named:  # comes first; HIP then counts within its list, and so do we
        within = tuple(str(i) for i in range(len(named[ROCR])))
        return _up_to(named[HIP], len(within)) if HIP in named else within
    for name in (HIP, CUDA):  # HIP obeys CUDA's variable where its own is not set
        if name in named:
            return named[name]
    return tuple(str(i) for i in range(len(_amd_nodes())))


def usable_gpus(device: str) -> tuple[str, ...]:
    """The GPUs for cells of `run.device`; a LaunchError where it is `cuda` and there is none."""
    gpus = () if device == "cpu" else visible_gpus()
    if device == "cuda" and not gpus:
        raise LaunchError(
            f"run.device: cuda needs a GPU, and none is found: {_looked_at()}; {CUDA}=0 ({HIP}=0 on AMD) names one "
            "by hand, run.device=auto trains on the CPU where there is none"
        )
    return gpus


def gpu_environment(gpu: str, processes: int) -> dict[str, str | None]:
    """The variables of a process that uses one GPU beside `processes` - 1 others; None: not set."""
    amd = is_amd()
    # one of the two alone: HIP obeys both, and programs that read them differ in which goes first
    own: dict[str, str | None] = {HIP: gpu, CUDA: None} if amd else {CUDA: gpu, HIP: None}
    if not amd and not any(name in os.environ for name in _ALLOCATOR):
        # what is freed can be joined again, so less memory is lost in holes; on AMD it is young, and was seen to hang
        own[_ALLOCATOR[0]] = "expandable_segments:True"
    return own | {PER_GPU: str(processes)}


def is_amd() -> bool:
    """Whether its GPUs are AMD's.

    The machine goes before the variables: Slurm may set all of them, whatever the GPUs are.
    """
    nvidia, amd = bool(_nvidia_devices()), bool(_amd_nodes())
    if nvidia != amd:
        return amd
    return HIP in os.environ or (ROCR in os.environ and CUDA not in os.environ)


def _names(text: str) -> tuple[str, ...]:
    """The GPUs of a variable: it ends at its first invalid entry, and one that repeats itself names none."""
    names: list[str] = []
    for name in map(str.strip, text.split(",")):
        if not _NAME.fullmatch(name):  # -1, NoDevFiles, none, void
            break
        if name in names:
            return ()
        names.append(name)
    return tuple(names)


def _up_to(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Those before the first number that there is no GPU of."""
    invalid = (i for i, name in enumerate(names) if name.isdigit() and int(name) >= count)
    return names[: next(invalid, len(names))]


def _listed_by_nvidia() -> tuple[str, ...]:
    """What nvidia-smi lists; a GPU with MIG instances can be used as these alone."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if listed.returncode:
        return ()
    gpus: list[list[str]] = []  # each GPU and its instances
    for line in listed.stdout.splitlines():
        if found := _LISTED.match(line):
            if found["kind"] == "GPU":
                gpus.append([])
            if gpus:
                gpus[-1].append(found["uuid"])
    if any(len(names) > 1 for names in gpus):  # beside instances, CUDA numbers whole GPUs in its own way
        return tuple(name for names in gpus for name in names[1:] or names)
    return tuple(str(i) for i in range(len(gpus)))


def _nvidia_devices() -> tuple[str, ...]:
    """By the driver, for a container without nvidia-smi; GPUs whose device is not in the container do not count."""
    count = 0
    with contextlib.suppress(OSError):
        for path in sorted(NVIDIA.iterdir()):
            found = re.search(r"Device Minor:\s*(\d+)", _text(path / "information"))
            count += found is None or (DEVICES / f"nvidia{found[1]}").exists()
    return tuple(str(i) for i in range(count))


def _amd_nodes() -> list[Path]:
    """The nodes of the AMD driver that are GPUs: they have SIMD units, and a device this process may see."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(KFD.iterdir()):
            facts = dict(re.findall(r"^(\w+) (\d+)$", _text(path / "properties"), re.MULTILINE))
            minor = facts.get("drm_render_minor")
            there = minor is None or (DEVICES / "dri" / f"renderD{minor}").exists()
            if int(facts.get("simd_count", 0)) and there:
                found.append(path)
    return found


def _looked_at() -> str:
    """What names no GPU, for people."""
    named = [f"{name}={os.environ[name]!r}" for name in (CUDA, HIP, ROCR) if name in os.environ]
    if named:
        return f"{' and '.join(named)} {'names' if len(named) == 1 else 'name'} none"
    return f"{CUDA}, {HIP} and {ROCR} are not set, `nvidia-smi -L` lists none, nor do {NVIDIA} and {KFD}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a GPU of another job: the driver refuses
        return ""
