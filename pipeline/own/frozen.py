"""The user's own code, imported from its frozen copy; what goes wrong in it is told by its file and line.

Copies of several versions can be in use at once (the members of an ensemble): each has modules of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pipeline.errors import CheckpointError, PipelineError, TrainingError
from pipeline.own.source import late_import
from pipeline.spec import OwnCall

_modules: dict[Path, dict[str, ModuleType]] = {}  # of each copy in use, by name


def own_function(code: Path | None, call: OwnCall, given: int) -> Callable[..., Any]:
    """What a spec names, its options bound; it is called with `given` values.

    `code` is the frozen copy. Raises CheckpointError where that is gone, TrainingError for what is wrong in it.
    """
    if code is None or not code.exists():
        raise CheckpointError(
            f"{call.key}: {call.name}: its code is not here ({code or 'no frozen copy'}); copy the whole folder of the "
            "cell, which holds it as own_code.zip"
        )
    module, _, name = call.name.partition(":")
    with telling(call.key), _importing(code):
        found = getattr(importlib.import_module(module), name, None)
    for imported in _modules[code].values():
        _refuse_late_imports(call.key, imported)
    if not callable(found):
        raise TrainingError(f"{call.key}: {module} has no function {name!r}; correct its name")
    try:
        inspect.signature(found).bind(*[None] * given, **call.options)
    except TypeError as error:
        raise TrainingError(
            f"{call.key}: {call.name}{inspect.signature(found)} cannot be called: {error}; it is given {given} values "
            f"and the options {dict(call.options)}"
        ) from error
    except ValueError:  # what is written in C does not tell what it takes
        pass
    return functools.partial(found, **call.options)


@contextlib.contextmanager
def telling(key: str) -> Iterator[None]:
    """Errors of the user's code become a TrainingError of one line, which begins with the key of the spec."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PipelineError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise TrainingError(f"{key}: {in_own_code(error) or _said(error)}; correct it there") from error


def in_own_code(error: BaseException) -> str | None:
    """`mylab/nets.py:12 (in build): NameError: ...` of an error that arose in or under such code; else None."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if name := _inside(frame.filename):
            inside = "" if frame.name == "<module>" else f" (in {frame.name})"
            return f"{name}:{frame.lineno}{inside}: {_said(error)}"
    if isinstance(error, SyntaxError) and (name := _inside(error.filename or "")):
        return f"{name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    return None


def _inside(path: str) -> str:
    """The path within the frozen copy that holds it; "" where none does."""
    return next((path[len(f"{code}/") :] for code in _modules if path.startswith(f"{code}/")), "")


def _said(error: BaseException) -> str:
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        text += " (it is neither installed nor in the package itself)"
    return text


@contextlib.contextmanager
def _importing(code: Path) -> Iterator[None]:
    """What is imported comes from this copy; modules of the same names that were there before are there again after.

    Ours stay where nothing else could be meant by their names: compilers look modules up.
    """
    with zipfile.ZipFile(code) as archive:
        tops = {name.partition("/")[0].removesuffix(".py") for name in archive.namelist()}
    others = _taken(tops)
    sys.modules.update(_modules.setdefault(code, {}))
    importlib.invalidate_caches()
    sys.path.insert(0, str(code))
    try:
        yield
    finally:
        sys.path.remove(str(code))
        _modules[code] = ours = _taken(tops)
        if not others and not any(map(importlib.util.find_spec, tops)):
            others = ours
        sys.modules.update(others)


def _taken(tops: set[str]) -> dict[str, ModuleType]:
    """The modules of these packages, which are no longer in Python's table."""
    names = [name for name in sys.modules if name.partition(".")[0] in tops]
    return {name: sys.modules.pop(name) for name in names}


def _refuse_late_imports(key: str, module: ModuleType) -> None:
    """What runs long after its import, beside another version of its package, must have all it needs by then."""
    path = getattr(module, "__file__", None)
    if path is None:
        return  # a folder without __init__.py
    top, loader = module.__name__.partition(".")[0], cast(Any, module.__loader__)
    line = late_import(loader.get_source(module.__name__), top)  # inspect has none of an empty __init__.py
    if line is not None:
        raise TrainingError(
            f"{key}: {_inside(path)}:{line}: imports {top} inside a function; import it at the top of the file"
        )
