"""The command line: `labelgrid VERB ...`, which is `python -m jobs VERB ...`."""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from jobs.commands.verbs import OTHER_NAMES, VERBS
from pipeline import __version__
from pipeline.errors import PipelineError

WRONG_REQUEST = 2
INTERRUPTED = 128 + signal.SIGINT  # what shells call the end by a signal
NOBODY_READS = 128 + signal.SIGPIPE

_STATUSES = """\
exit status:
  0  everything asked for is done, or queued
  1  a cell or a stage failed, or you stopped it: the same command goes on from there
  2  the request cannot be carried out; the message says why"""
_OF_TRAINING = ("cv2", "tensorboard", "matplotlib", "jinja2", "submitit")  # modules of labelgrid[train]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; 0 when everything asked for is done, 1 when something failed, 2 for a wrong request."""
    try:
        status = _answer(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if not _is_read(stream)]
        if not closed:
            raise  # another pipe, which is an error of ours
        for stream in closed:  # `| head` has read enough; the last flush of the interpreter must not complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return NOBODY_READS
    return status


def _answer(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_REQUEST
    except PermissionError as error:  # of a folder that several people share
        print(
            f"error: {error.filename}: {error.strerror}; ask its owner, or use a project of your own",
            file=sys.stderr,
        )
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("Interrupted. Run the same command to resume; completed work is not repeated.", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    program = _program()
    if not arguments:
        print(_overview(program), file=sys.stderr)
        return WRONG_REQUEST
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(_overview(program))
        return 0
    if name == "--version":
        print(f"labelgrid {__version__}")
        return 0
    if name not in VERBS:
        print(f"error: {_unknown(name)}\n`{program} --help` lists the verbs", file=sys.stderr)
        return WRONG_REQUEST
    try:
        options = _parser(program, name).parse_args(rest)
    except SystemExit as end:  # argparse has said why
        return int(end.code or 0)
    result = _call(name, options)
    if isinstance(result, str):
        print(result)
        return 0
    return result


def _call(name: str, options: argparse.Namespace) -> int | str:
    verb = VERBS[name]
    if (verb.takes_spec or name == "demo") and (missing := [m for m in _OF_TRAINING if find_spec(m) is None]):
        print(
            f"error: {', '.join(missing)} not found: this install only predicts; "
            "pip install 'labelgrid[train]', or `make setup` in a checkout",
            file=sys.stderr,
        )
        return WRONG_REQUEST
    if not verb.takes_spec:
        return _started(verb.function)(**vars(options))
    from jobs.clusters.profile import default_cluster, load_profile
    from jobs.commands.request import Request
    from pipeline.spec.reading import read_spec
    from pipeline.storage.files import share_with_group

    overrides = [text for texts in options.set for text in texts]
    of_cluster = [text for text in overrides if text.startswith("cluster.")]
    cluster = options.cluster or default_cluster()
    loaded = read_spec(options.spec, [text for text in overrides if text not in of_cluster])
    profile = load_profile(cluster, of_cluster, loaded.spec.run.account)
    share_with_group(loaded.root / "experiments")
    on_slurm = verb.on_slurm if profile.scheduler == "slurm" else None
    return _started(on_slurm or verb.function)(
        Request(
            loaded,
            cluster,
            profile,
            options.run,
            tuple(overrides),
            names_cluster=options.cluster is not None,
            verb=name,
            for_submission=getattr(options, "submission", False),
            on_node=getattr(options, "node", False),
        )
    )


def _started(function: str) -> Callable[..., int | str]:
    """The function `module:name` of jobs.commands; with its import the start is over."""
    module, _, name = function.partition(":")
    found: Callable[..., int | str] = getattr(import_module(f"jobs.commands.{module}"), name)
    gc.enable()
    return found


# ---------------------------------------------------------------- texts


def _program() -> str:
    """What the user typed to start this."""
    typed = Path(sys.argv[0])
    return f"{sys.orig_argv[0]} -m jobs" if typed.name == "__main__.py" else typed.name


def _parser(program: str, name: str) -> argparse.ArgumentParser:
    verb = VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"{program} {name}",
        description=verb.help,
        epilog=f"example:\n  {program} {verb.example}\n\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument, settings in (*verb.arguments.items(), *verb.more.items()):
        parser.add_argument(argument, **settings)
    return parser


def _overview(program: str) -> str:
    groups: dict[str, list[str]] = {}
    for name, verb in VERBS.items():
        groups.setdefault(verb.group, []).append(f"  {name:<11} {verb.help}")
    listed = "\n\n".join("\n".join((f"{group}:", *lines)) for group, lines in groups.items())
    return (
        f"usage: {program} VERB ...\n\n"
        "Train multi-label image classifiers as a grid of experiments: wrangle, train, evaluate, predict.\n\n"
        f"{listed}\n\n"
        f"examples:\n  {program} demo\n  {program} grid --help\n  {program} --version\n\n{_STATUSES}"
    )


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"the verb comes first, `{name}` is an option"
    meant = OTHER_NAMES.get(name.lower())
    if meant is None and (near := difflib.get_close_matches(name.lower(), [*VERBS, *OTHER_NAMES], n=1)):
        meant = OTHER_NAMES.get(near[0], f"did you mean `{near[0]}`?")
    return f"no verb `{name}`" + (f"; {meant}" if meant else "")


def _is_read(stream: TextIO) -> bool:
    """Whether the other end of its pipe is open; a flush tells nothing once Python has dropped what it held."""
    poll = select.poll()
    poll.register(stream, 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
