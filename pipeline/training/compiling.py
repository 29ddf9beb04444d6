"""`run.compile`: a network's training passes through torch.compile, so that resuming gives the same bits."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError

_KINDS = 256  # of code for one network class: cells of a process, times sizes of a batch


def compiled(net: nn.Module) -> nn.Module:
    """The network compiled, with its own parameters; raises TrainingError where there is no compiler.

    Each size of a batch gets code of its own: code that serves several sizes would be made only once a second
    size is met, and a resumed cell meets sizes in another order.
    """
    # for a GPU, Triton compiles C
    for variable, names in (("CXX", ("c++", "g++", "clang++")), ("CC", ("cc", "gcc", "clang"))):
        if not (os.environ.get(variable) or any(map(shutil.which, names))):
            raise TrainingError(
                f"run.compile: torch.compile needs a compiler, and {', '.join(names)} are not to be found; load one "
                f"(module load gcc), name one in {variable}, or set run.compile=false"
            )
    config: Any = torch._dynamo.config
    limit = (
        "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    )  # before torch 2.6
    setattr(config, limit, _KINDS)  # beyond it torch goes on without, in other bits
    found: Any = torch.compile(net, dynamic=False)
    assert isinstance(found, nn.Module)
    return found
