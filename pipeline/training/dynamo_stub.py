"""A stand-in for `torch._dynamo`, the front of `torch.compile`, which training does not use.

torch's optimizers and torchvision import it for three functions that do nothing outside of compiled code: 860
modules, a second of a process's start and 150 MB of its memory. The stub answers those three, with torch's own
signatures; whatever else is asked of it, it gives way to the real package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_PACKAGE, _UTILS = "torch._dynamo", "torch._dynamo.utils"


def disable(
    fn: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True
) -> Any:
    """The decorated function itself, or a decorator that returns it: nothing here is compiled."""

    def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    return undecorated if fn is None else fn


def graph_break(msg: str = "") -> None:
    """Does nothing: there is no graph to break."""


def is_compile_supported(device_type: Any) -> bool:
    """False: torchvision then takes the way that is not compiled."""
    return False


STANDS_IN_FOR: dict[str, tuple[Callable[..., Any], ...]] = {
    _PACKAGE: (disable, graph_break),
    _UTILS: (is_compile_supported,),
}


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # those who look through all modules ask each for its __file__; only a module within asks for the path
        if name.startswith("__") and (self.__name__, name) != (_PACKAGE, "__path__"):
            raise AttributeError(name)
        for module in (_PACKAGE, _UTILS):
            if isinstance(sys.modules.get(module), _Stub):
                del sys.modules[module]
        return getattr(importlib.import_module(self.__name__), name)


def install_dynamo_stub() -> None:
    """Put the stub in place of `torch._dynamo`, unless that is imported already."""
    if _PACKAGE not in sys.modules:
        for name, functions in STANDS_IN_FOR.items():
            stub = _Stub(name)
            vars(stub).update({function.__name__: function for function in functions})
            sys.modules[name] = stub
