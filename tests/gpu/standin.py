"""A GPU's ways without a GPU: fake CUDA tensors for what only runs forward, a strict CPU for what also learns.

Fake tensors (torch._subclasses) have shapes, types and a device, and no values: mixed devices, `.item()`, `bool()`
and `nonzero` raise. They have no backward and no streams without a driver, so that the training step runs on
CPU tensors, by the functions of the GPU's way, under a mode that fails on whatever would wait for a GPU.
"""

import contextlib
import functools
import traceback
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.data import augment, colour, inputs, pixel_cache, transfer, warping
from pipeline.models import features, scoring
from pipeline.training import feeds

MODULES = (transfer, inputs, colour, pixel_cache, augment, warping, scoring, features, feeds)
# each asks the GPU for a value, and so waits until it has done all before
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


def replaced(patch, **functions):
    """These functions in every module that has imported them."""
    for module in MODULES:
        for name, function in functions.items():
            if hasattr(module, name):
                patch.setattr(module, name, function)


class Mode(FakeTensorMode):
    """One for all copies of a network."""

    def __deepcopy__(self, memo):
        return self


@contextlib.contextmanager
def fake_gpu(patch):
    """A maker of tensors on a GPU that is not there; what the pipeline sends to "cuda" goes there too."""
    mode = Mode()

    def to_device(values, device):
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        if tensor.device.type != "cpu":
            return tensor
        return (tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)).to(device)

    replaced(
        patch,
        to_device=to_device,
        one_ahead=lambda make, device: make(),
        one_behind=lambda made: iter(made),
        fits_on_gpu=lambda size: False,
        pinned_bytes=lambda shape: np.empty(shape, np.uint8),
    )
    patch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # fake tensors cannot be moved within one
    caches = (inputs._constants, inputs._affine, colour._weights)
    for cache in caches:
        cache.cache_clear()
    with mode, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copy.deepcopy
        yield to_device
    for cache in caches:  # of fake tensors
        cache.cache_clear()


def onto(to_device, net):
    """A network that was built on the CPU, with fake parameters and buffers on the GPU."""
    for module in net.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = to_device(value, "cuda").detach()
                module._parameters[name] = nn.Parameter(fake)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = to_device(value, "cuda")
    return net


def _waits(name, *_):
    raise AssertionError(f"Tensor.{name} waits for the GPU")


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU would have to answer before the host goes on."""

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        for name in ("tolist", "numpy", "cpu"):  # which a CPU answers without an operation
            self._patch.setattr(torch.Tensor, name, functools.partial(_waits, name))
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            raise AssertionError(f"{function} waits for the GPU")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def strict_cpu(patch):
    """CPU tensors take the GPU's way; yields a counter of what is sent to the device, by the line that sends it."""
    sent, send = Counter(), transfer.to_device

    def to_device(values, device):
        frames = [f for f in traceback.extract_stack()[:-1] if "pipeline" in f.filename]
        sent[f"{frames[-1].name}"] += 1
        return send(values, device)

    replaced(patch, to_device=to_device, on_threads=lambda images: False)
    yield sent
