"""The user's own code as files: found in the project, read by its syntax tree, packed into one zip. Torch-free."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import CheckpointError, SpecError
from pipeline.storage.files import atomic_write

_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that equal code is equal bytes
_MOST_BYTES, _MOST_FILES = 20_000_000, 2_000
_PROJECT = ("data", "experiments", "jobs", "pipeline")  # names that are taken


@dataclass(frozen=True)
class OwnFiles:
    """The packages (or single modules) of a project that a cell is made with, as they are now."""

    root: Path
    tops: tuple[str, ...]
    digest: str

    @classmethod
    def read(cls, root: Path, tops: Iterable[str]) -> OwnFiles:
        """Raises SpecError where a package is too large to be code."""
        names = tuple(sorted(set(tops)))
        return cls(root, names, digest_of(_contents(root, names)))

    def frozen_in(self, folder: Path) -> Path:
        """Where its frozen copy lies, once `freeze` has made it."""
        return folder / f"own-{self.digest[:16]}.zip"

    def freeze(self, folder: Path) -> Path:
        """The zip of exactly this code in `folder`; raises SpecError where the files have changed since then."""
        path = self.frozen_in(folder)
        if path.exists() and digest_of_zip(path) == self.digest:
            return path
        files = _contents(self.root, self.tops)
        if digest_of(files) != self.digest:
            raise SpecError(
                f"{self.root}: {', '.join(self.tops)} changed while cells were planned; run the same command again"
            )
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            # Python finds a package without __init__.py only where its folder is an entry of the zip
            folders = {f"{folder}/": b"" for name in files for folder in PurePosixPath(name).parents[:-1]}
            for name, content in sorted((folders | files).items()):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        return path


def kept_copy(frozen: Path, kept: Path) -> Path:
    """`kept`, the cell's own copy of a `frozen` one, made where it is missing; it outlives the frozen one.

    Raises CheckpointError where neither is whole.
    """
    wanted = frozen.stem.removeprefix("own-")
    if not digest_of_zip(kept).startswith(wanted):
        if not digest_of_zip(frozen).startswith(wanted):
            raise CheckpointError(f"{frozen}: is gone or damaged; the same command makes it anew")
        with atomic_write(kept) as file:
            file.write(frozen.read_bytes())
    return kept


def digest_of(files: Mapping[str, bytes]) -> str:
    """Hex SHA-256 of names and contents, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return sha.hexdigest()


def digest_of_zip(path: Path) -> str:
    """The same of a frozen copy; "" where it is damaged or gone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return digest_of({name: archive.read(name) for name in archive.namelist() if name[-1] != "/"})
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error):
        return ""


def _contents(root: Path, tops: Iterable[str]) -> dict[str, bytes]:
    """Path in the project -> content: every file of the packages but hidden ones and Python's caches."""
    found: dict[str, bytes] = {}
    size = 0
    for top in tops:
        for path in _files(root, top):
            found[path.relative_to(root).as_posix()] = content = path.read_bytes()
            size += len(content)
            if size > _MOST_BYTES or len(found) > _MOST_FILES:
                raise SpecError(
                    f"{root / top}: holds more than {_MOST_BYTES / 1e6:g} MB or {_MOST_FILES:,} files, which all "
                    "belong to a cell's code; keep data outside of the package"
                )
    return dict(sorted(found.items()))


def _files(root: Path, top: str) -> Iterator[Path]:
    if not (root / top).is_dir():
        yield root / f"{top}.py"
        return
    for folder, folders, names in os.walk(root / top):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        yield from (
            Path(folder, name) for name in sorted(names) if name[0] != "." and not name.endswith(".pyc")
        )


# ---------------------------------------------------------------- checked without being run


def late_import(source: str, top: str) -> int | None:
    """The line where a function imports `top` when it is called; None where all is imported with the module."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [top if node.level else node.module or ""]
            else:
                continue
            if any(name.partition(".")[0] == top for name in imported):
                return node.lineno
    return None


def check_call(root: Path, name: str, options: Mapping[str, Any], given: int) -> None:
    """Whether `package.module:function` is there and takes `given` values and these options, by its source alone.

    Raises SpecError with the file and line of what is wrong.
    """
    module, _, function = name.partition(":")
    path = _module_file(root, module)
    shown = path.relative_to(root)
    try:
        tree = ast.parse(path.read_bytes(), str(shown))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise SpecError(f"{shown}{line}: {type(error).__name__}: {getattr(error, 'msg', error)}") from error
    names = dict(_names(tree.body))
    if function not in names and "*" not in names:
        near = get_close_matches(function, names, n=1)
        functions = [n for n, node in names.items() if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(functions) or 'none'}"
        raise SpecError(f"{shown}: has no function {function!r}; {hint}")
    node = names.get(function)
    if isinstance(node, ast.FunctionDef):
        _check_arguments(node, f"{shown}:{node.lineno}: {function}", options, given)


def _module_file(root: Path, module: str) -> Path:
    top, *inner = module.split(".")
    if top in _PROJECT or top in sys.stdlib_module_names:
        whose = (
            "a folder of every project" if top in _PROJECT[:2] else "a name of Labelgrid's or Python's own"
        )
        raise SpecError(f"{top} is {whose}; call your package otherwise")
    base = root.joinpath(top, *inner)
    for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if path.is_file():
            _refuse_installed(root, top)
            return path
    wanted = base.relative_to(root).with_suffix(".py")
    there = sorted(path.stem for path in base.parent.glob("*.py") if path.stem not in ("__init__", "setup"))
    near = get_close_matches(base.name, there, n=1)
    if near:
        hint = f"did you mean `{'.'.join([top, *inner][:-1] + near)}`?"
    else:
        hint = (
            f"its folder holds {', '.join(there)}" if there else "code of your own lies beside `experiments/`"
        )
    raise SpecError(f"there is no {wanted} in {root}; {hint}")


def _refuse_installed(root: Path, top: str) -> None:
    """A package of the same name that others import would be hidden by it, or hide it."""
    spec = PathFinder.find_spec(top)  # on the disk: a copy that this process has imported is none of them
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    outside = [
        place for place in places if place and not Path(place).resolve().is_relative_to(root.resolve())
    ]
    if outside and len(outside) == len([place for place in places if place]):
        raise SpecError(f"{top} is also installed ({outside[0]}); call your package otherwise")


def _names(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """What a module binds at its top level, also under `if` and `try`; `*` for a star import."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (((alias.asname or alias.name).partition(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (one for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
            yield from ((one.id, node) for one in names)
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _names(getattr(node, part, ()))
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            yield from _names(handler.body)


def _check_arguments(node: ast.FunctionDef, where: str, options: Mapping[str, Any], given: int) -> None:
    of = node.args
    positional = [argument.arg for argument in (*of.posonlyargs, *of.args)]
    if node.decorator_list:
        return  # which may change what it takes
    if len(positional) < given and of.vararg is None:
        raise SpecError(f"{where} takes {len(positional)} values before its options, and is given {given}")
    left = positional[max(given, len(of.posonlyargs)) :]
    known = [*left, *(argument.arg for argument in of.kwonlyargs)]
    if of.kwarg is None and (unknown := [name for name in options if name not in known]):
        raise SpecError(
            f"{where} does not take the option {unknown[0]!r}; it takes {', '.join(known) or 'no options'}"
        )
    needed = positional[given : len(positional) - len(of.defaults)]
    needed += [a.arg for a, value in zip(of.kwonlyargs, of.kw_defaults, strict=True) if value is None]
    if missing := [name for name in needed if name not in options]:
        raise SpecError(f"{where} needs the option {missing[0]!r}; write options: {{{missing[0]}: ...}}")
