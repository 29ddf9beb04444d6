"""From the host to a device without waiting for it: pinned copies, numbers of an epoch sent once, a batch ahead.

A copy from ordinary memory makes the host wait until the GPU has done all that was asked of it before; one from
pinned memory does not. Every copy of a step goes through `to_device`, so that they can be counted. On a CPU
nothing is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# N positions of an epoch, B those of a batch, X what else an array holds
Item = TypeVar("Item")


def to_device(values: npt.NDArray[Any] | Tensor, device: str | torch.device) -> Tensor:
    """The values on the device: the same memory on a CPU, else a pinned copy that nobody waits for."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if torch.device(device).type == tensor.device.type:
        return tensor
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def pinned_bytes(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An array to read pixels into, from which `to_device` copies without another copy before."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


class EpochTable:
    """Numbers (N, ...) of an epoch's positions: numpy on the host, and on a device from the first batch on."""

    def __init__(self, values_NX: npt.NDArray[Any]) -> None:
        self.values_NX = values_NX
        self._on: dict[torch.device, Tensor] = {}

    def at(self, span: slice, device: torch.device) -> Tensor:
        """(B, ...) those of a batch, on the device."""
        if device not in self._on:
            self._on[device] = to_device(self.values_NX, device)
        return self._on[device][span]


def one_ahead(make: Callable[[], Iterator[Item]], device: str) -> Iterator[Item]:
    """What `make` yields, on a GPU the next one made on a stream beside the one that computes.

    Items are tuples of tensors. On a CPU they are made when they are asked for.
    """
    if device == "cpu":
        yield from make()
        return
    main, side = torch.cuda.current_stream(), _side_stream()
    side.wait_stream(main)  # what the items are made of may still be on its way
    items = make()

    def launch() -> tuple[Item, torch.cuda.Event] | None:
        with torch.cuda.stream(side):
            item = next(items, None)
            return None if item is None else (item, side.record_event())

    following = launch()
    while following is not None:
        item, ready = following
        following = launch()
        main.wait_event(ready)
        for tensor in _tensors(item):
            tensor.record_stream(main)  # its memory is not used again before the step is done with it
        yield item


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for the process: what torch's allocator keeps for a stream serves no other."""
    return torch.cuda.Stream()


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _tensors(part)


def one_behind(made: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each tensor on the host, handed out once the device has been asked for the next one."""
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for tensor in made:
        if tensor.device.type == "cpu":  # it is there
            yield tensor
            continue
        # into pinned memory, so that the host goes on
        copied = tensor.to("cpu", non_blocking=True), torch.cuda.current_stream().record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copied
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(host: Tensor, event: torch.cuda.Event) -> Tensor:
    event.synchronize()
    return host


def tensors_to_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, of a GPU's without waiting: `wait_for_copies` does."""
    return {name: value.to("cpu", non_blocking=True, copy=True) for name, value in state.items()}


def wait_for_copies() -> None:
    """Until what was copied to the host is there."""
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
