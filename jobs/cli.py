"""The command line: `python -m jobs <verb> SPEC [--cluster NAME] [--set key=value ...] [--run CELL]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.clusters.profile import default_cluster, load_profile
from jobs.commands.request import Request
from jobs.commands.verbs import VERBS
from pipeline.errors import PipelineError
from pipeline.spec.reading import read_spec


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; 0 when everything asked for is done, 1 when something failed, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        command = verbs.add_parser(name, help=(verb.__doc__ or "").splitlines()[0])
        command.add_argument("spec", type=Path, metavar="SPEC")
        command.add_argument("--cluster", metavar="NAME", help="a profile; default: local")
        command.add_argument("--set", action="append", nargs="*", default=[], metavar="KEY=VALUE")
        command.add_argument("--run", metavar="CELL", help="a cell's folder name or a unique prefix of it")
    verbs.add_parser("demo", help="draw a data set and run the whole pipeline on it")
    data = verbs.add_parser("data", help="download MIRFLICKR-25000 and its annotations")
    data.add_argument("--folder", type=Path, default=Path("data/raw"))
    verbs.add_parser("schema", help="print the JSON Schema of a spec, for editors")
    keys = verbs.add_parser("keys", help="print what the keys of a spec mean")
    keys.add_argument("prefix", nargs="?", metavar="PREFIX", help="e.g. train.augment; default: all sections")
    verbs.add_parser("reference", help="print the reference of all keys: docs/spec.md")
    options = parser.parse_args(arguments)
    try:
        return _dispatch(options)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _dispatch(options: argparse.Namespace) -> int:
    if options.verb == "demo":
        from jobs.commands.demo import demo

        return demo()
    if options.verb == "data":
        from pipeline.data.download import MIRFLICKR, download

        for path in download(MIRFLICKR, options.folder):
            print(path)
        return 0
    if options.verb == "schema":
        import json

        from pipeline.spec.reading import json_schema

        print(json.dumps(json_schema(), indent=1))
        return 0
    if options.verb in ("keys", "reference"):
        from jobs.commands.reference import keys, reference

        print(reference() if options.verb == "reference" else keys(options.prefix))
        return 0
    overrides = [text for texts in options.set for text in texts]
    of_cluster = [text for text in overrides if text.startswith("cluster.")]
    name = options.cluster or default_cluster()
    profile = load_profile(name, of_cluster)
    loaded = read_spec(options.spec, [text for text in overrides if text not in of_cluster])
    return VERBS[options.verb](Request(loaded, name, profile, options.run))
