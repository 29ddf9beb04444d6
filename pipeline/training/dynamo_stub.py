"""torch without its compiler, for which training has no use.

torch's optimizers and torchvision import `torch._dynamo`, the front of `torch.compile`, for three functions that
do nothing outside of compiled code: 860 modules, a second of a process's start and 150 MB of its memory. A
stand-in answers those three; whatever else is asked of it, it makes way for the real one.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_PACKAGE, _UTILS = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # those who look through all modules ask each for its __file__; only a module within asks for the path
        if name.startswith("__") and (self.__name__, name) != (_PACKAGE, "__path__"):
            raise AttributeError(name)
        for module in (_PACKAGE, _UTILS):
            if isinstance(sys.modules.get(module), _StandIn):
                del sys.modules[module]
        return getattr(importlib.import_module(self.__name__), name)


def install_dynamo_stub() -> None:
    """From here on this process does without `torch._dynamo`, unless it is there or something asks for more of it."""
    if _PACKAGE not in sys.modules:
        package, utils = _StandIn(_PACKAGE), _StandIn(_UTILS)
        vars(package).update(disable=lambda function, *_, **__: function, graph_break=lambda *_, **__: None)
        vars(utils).update(is_compile_supported=lambda device: False)
        sys.modules.update({_PACKAGE: package, _UTILS: utils})
