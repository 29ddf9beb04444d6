"""Whether the cells of a grid were computed alike: at one precision, on one kind of device. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.recipes import settings_of
from pipeline.storage.files import read_json_or_empty
from pipeline.storage.run_dir import RunDir

_CPU, _UNNAMED = "CPU", "GPU"  # older cells do not name theirs


@dataclass(frozen=True)
class _Execution:
    run: RunDir
    precision: str
    device: str
    ranks: tuple[int, ...] = (1,)  # one number after the other, where it changed

    @property
    def chosen(self) -> bool:
        """Whether the precision is the machine's choice, not the spec's."""
        return settings_of(self.run).get("train.precision") == "auto"


def mixed_hardware(runs: Sequence[RunDir]) -> str:
    """What finished cells were computed on where that differs, and what names one for all; "" where it does not.

    By how many processes, where it is not one: what a network draws itself depends on it.
    """
    executions = [found for run in runs if (found := _execution(run)) is not None]
    return "; ".join(filter(None, [_different(executions), _by_ranks(executions)]))


def _by_ranks(executions: Sequence[_Execution]) -> str:
    numbers = sorted({one.ranks for one in executions})
    if numbers in ([], [(1,)]):
        return ""
    groups = [[one for one in executions if one.ranks == number] for number in numbers]
    parts = [f"{', then '.join(map(str, group[0].ranks))} ({_count(group)})" for group in groups]
    return (
        f"cells were trained by several processes each: {', '.join(parts)}; what networks draw themselves (dropout) "
        "depends on that number, run.gpus_per_cell"
    )


def _different(executions: Sequence[_Execution]) -> str:
    differ = len({one.precision for one in executions}) > 1  # a thousand specs are not read for nothing
    chosen = [one for one in executions if one.chosen] if differ else []
    precisions = dict.fromkeys(one.precision for one in chosen)
    if len(precisions) > 1:
        groups = [[one for one in chosen if one.precision == precision] for precision in precisions]
        parts = [f"{group[0].precision} ({_count(group)}, {_devices(group)})" for group in groups]
        return f"cells were trained at different precisions: {', '.join(parts)}; train.precision names one for all"
    devices = dict.fromkeys(one.device for one in executions)
    # a GPU without a name may be any of the others
    if len(devices.keys() - {_UNNAMED}) > 1 or devices.keys() >= {_CPU, _UNNAMED}:
        groups = [[one for one in executions if one.device == device] for device in devices]
        parts = [f"{group[0].device} ({_count(group)})" for group in groups]
        return (
            f"cells were trained on different hardware: {', '.join(parts)}; run.device, or gres and constraint in "
            "run.resources, name one for all"
        )
    return ""


def _execution(run: RunDir) -> _Execution | None:
    """Of its newest start; None where that is not known."""
    facts = read_json_or_empty(run.provenance)
    execution, hardware = facts.get("execution") or {}, facts.get("hardware") or {}
    if not execution:
        return None
    device = _CPU if execution.get("device") == "cpu" else str(hardware.get("name", _UNNAMED))
    ranks = (*execution.get("earlier_ranks", ()), execution.get("ranks", 1))
    return _Execution(run, str(execution.get("precision")), device, tuple(map(int, ranks)))


def _devices(group: Sequence[_Execution]) -> str:
    return " and ".join(dict.fromkeys(one.device for one in group))


def _count(group: Sequence[_Execution]) -> str:
    return f"{len(group)} cell{'' if len(group) == 1 else 's'}"
