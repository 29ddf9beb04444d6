"""The table of verbs: for each its group, its help, an example, its arguments, and the function that does it.

Functions are named, not imported, so that `--help` and a mistyped verb are answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Arguments = Mapping[str, Mapping[str, Any]]  # an argument's name -> how argparse is to read it

SPEC_ARGUMENTS: Arguments = {
    "spec": {
        "metavar": "SPEC",
        "type": Path,
        "help": "The YAML file of the experiment. Example: experiments/demo.yaml",
    },
    "--cluster": {
        "metavar": "NAME",
        "help": "The profile of the machine or cluster that runs the work. Default: LABELGRID_CLUSTER, then "
        "default_cluster of your config.yaml, then local. Example: --cluster roihu",
    },
    "--set": {
        "metavar": "KEY=VALUE",
        "action": "append",
        "nargs": "*",
        "default": [],
        "help": "Keys of the spec, or of the profile after `cluster.`, with other values for this call. "
        "Example: --set train.epochs=3 cluster.account=project_1",
    },
    "--run": {
        "metavar": "CELL",
        "help": "One cell: its folder's name or a unique prefix of it. Example: --run sgd",
    },
}


@dataclass(frozen=True)
class Verb:
    """What a user can ask for."""

    group: str
    help: str  # a sentence
    example: str  # what is typed after the program's name
    function: (
        str  # module:name under jobs.commands; takes the Request, or `arguments` where those are its own
    )
    on_slurm: str | None = None  # the same for a profile whose scheduler is Slurm, where that differs
    arguments: Arguments = field(default_factory=lambda: SPEC_ARGUMENTS)
    more: Arguments = field(default_factory=dict)  # options beside these

    @property
    def takes_spec(self) -> bool:
        """Whether it is asked of a spec."""
        return self.arguments is SPEC_ARGUMENTS


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "Run",
        "Draw a data set and run the whole pipeline on it: no Slurm, no download, no GPU.",
        "demo",
        "demo:demo",
        arguments={},
    ),
    "init": Verb(
        "Run",
        "Look at images and labels, recognise their format, and write a spec that runs.",
        "init photos.zip labels.csv --yes",
        "init:init",
        arguments={
            "source": {
                "metavar": "SOURCE",
                "type": Path,
                "help": "The folder, .zip or .tar of the images. It is only read. Example: photos.zip",
            },
            "labels": {
                "metavar": "LABELS",
                "type": Path,
                "nargs": "?",
                "help": "The file, folder or archive of the labels. Default: looked for in SOURCE, then beside it. "
                "Example: labels.csv",
            },
            "--yes": {
                "action": "store_true",
                "help": "Ask nothing, take the defaults and say them. Example: --yes",
            },
            "--output": {
                "metavar": "SPEC",
                "type": Path,
                "help": "The spec to write. Default: experiments/ and the name of SOURCE. "
                "Example: --output experiments/mine.yaml",
            },
            "--force": {
                "action": "store_true",
                "help": "Replace a spec that is there already. Example: --force",
            },
        },
    ),
    "grid": Verb(
        "Run",
        "Run or submit every missing cell, then rank all of them.",
        "grid experiments/optimizers.yaml --set train.epochs=3",
        "run:grid",
        on_slurm="submit:grid",
    ),
    "submission": Verb(
        "Run",
        "Do everything up to the checked submission.csv of the selected cell.",
        "submission experiments/optimizers.yaml --cluster roihu",
        "run:submission",
        on_slurm="submit:submission",
    ),
    "evaluate": Verb(
        "Run",
        "Choose the thresholds of the finished cells, measure them and rank them.",
        "evaluate experiments/demo.yaml --set evaluate.select_by=map_macro",
        "run:evaluate",
    ),
    "select": Verb(
        "Run",
        "Pick the cell of the submission; without --run, the best on validation.",
        "select experiments/demo.yaml --run sgd",
        "run:select",
    ),
    "predict": Verb(
        "Run",
        "Score the test images with the selected cell, or with the cell of --run.",
        "predict experiments/demo.yaml",
        "run:predict",
    ),
    "status": Verb(
        "Look",
        "Show the state, epoch, best value and job of every cell; WATCH=1 in the environment repeats it.",
        "status experiments/optimizers.yaml --cluster roihu",
        "show:status",
    ),
    "plan": Verb(
        "Look",
        "Show what grid would do: cells, scripts, hours, cost.",
        "plan experiments/optimizers.yaml --cluster roihu",
        "show:plan",
        more={
            "--submission": {
                "action": "store_true",
                "help": "Show what `submission` would send instead of `grid`. Example: --submission",
            }
        },
    ),
    "inspect": Verb(
        "Look",
        "Say how the labels were read, and write twelve images with their labels as one picture.",
        "inspect experiments/demo.yaml",
        "show:inspect",
    ),
    "report": Verb(
        "Look",
        "Write report.html again from what is finished, with its figures and tables as files.",
        "report experiments/demo.yaml",
        "run:report",
    ),
    "logs": Verb(
        "Look",
        "Print the end of a cell's log; without --run, of every cell that failed.",
        "logs experiments/demo.yaml --run sgd",
        "show:logs",
    ),
    "doctor": Verb(
        "Look",
        "Check what a grid needs: packages, data, weights, disk, and Slurm on a cluster.",
        "doctor experiments/optimizers.yaml --cluster roihu",
        "show:doctor",
        more={
            "--node": {
                "action": "store_true",
                "help": "Also try set-up lines, Python and torch in a job of one minute; its price is shown first. "
                "Example: --node",
            }
        },
    ),
    "cancel": Verb(
        "Manage",
        "Cancel the queued and running jobs of a spec, or of the cell of --run.",
        "cancel experiments/optimizers.yaml --cluster roihu --run sgd",
        "manage:cancel",
    ),
    "retry": Verb(
        "Manage",
        "Move the cell of --run aside, so that grid trains it from its first step.",
        "retry experiments/demo.yaml --run sgd",
        "manage:retry",
    ),
    "prune": Verb(
        "Manage",
        "Delete what neither a selection nor a resume needs, and packed sets that nobody here needs.",
        "prune experiments/demo.yaml",
        "prune:prune",
    ),
    "data": Verb(
        "Data",
        "Download MIRFLICKR-25000 and its annotations.",
        "data --folder data/raw",
        "data:data",
        arguments={
            "--folder": {
                "metavar": "FOLDER",
                "type": Path,
                "default": Path("data/raw"),
                "help": "Where the files go. Default: data/raw. Example: --folder /scratch/me/raw",
            }
        },
    ),
    "wrangle": Verb(
        "Data",
        "Pack the images and labels that a spec needs.",
        "wrangle experiments/demo.yaml",
        "run:wrangle",
    ),
    "models": Verb(
        "Reference",
        "Search the networks and weights of torchvision and timm: parameters, GFLOPs, size, licence.",
        "models convnext tiny --weights",
        "models:models",
        arguments={
            "patterns": {
                "metavar": "PATTERN",
                "nargs": "*",
                "help": "Words that a name has, or whole names with `*`. Default: the families are counted. "
                "Example: 'vit_small*dinov3*'",
            },
            "--sort": {
                "metavar": "BY",
                "choices": ("name", "params", "gflops"),
                "default": "name",
                "help": "name, params or gflops. Default: name. Example: --sort gflops",
            },
            "--all": {
                "action": "store_true",
                "dest": "show_all",
                "help": "Show all that fit instead of the first 40. Example: --all",
            },
            "--weights": {
                "action": "store_true",
                "help": "Only those with published weights. Example: --weights",
            },
            "--here": {
                "action": "store_true",
                "help": "Only those whose weights are in data/weights. Example: --here",
            },
        },
    ),
    "keys": Verb(
        "Reference",
        "Explain the keys of a spec: range, default, and when to use each.",
        "keys train.augment",
        "reference:keys",
        arguments={
            "prefix": {
                "metavar": "PREFIX",
                "nargs": "?",
                "help": "A section or a key. Default: all sections. Example: train.optimizer.lr",
            }
        },
    ),
    "reference": Verb(
        "Reference",
        "Print the page of all keys, docs/spec.md.",
        "reference > docs/spec.md",
        "reference:reference",
        arguments={},
    ),
    "schema": Verb(
        "Reference",
        "Print the JSON Schema of a spec, for completion in an editor.",
        "schema > spec.schema.json",
        "schema:schema",
        arguments={},
    ),
}

_TRAIN = "`grid` trains every missing cell"
_RESUME = "`grid` resumes what was interrupted and does not repeat what is complete"
_MEASURE = "`evaluate` measures and ranks the finished cells"
_TEST = "`predict` scores the test images, `evaluate` measures the finished cells"
_DELETE = "`prune` deletes what neither a selection nor a resume needs"
_START = "`init SOURCE` writes a spec for your own images, `demo` shows a whole run"
_CANCEL = "`cancel` ends jobs on a cluster; on this machine Ctrl-C does"
_STATUS = "`status` shows how every cell stands"
_PLAN = "`plan` shows what `grid` would do"
_PACK = "`wrangle` packs the images and labels of a spec"
_HELP = "`--help` lists the verbs, `VERB --help` explains one"

# What other tools call it -> what it is called here.
OTHER_NAMES = {
    **dict.fromkeys(("train", "fit", "run", "start", "sweep", "search"), _TRAIN),
    **dict.fromkeys(("submit", "launch", "sbatch"), "`grid SPEC --cluster NAME` submits every missing cell"),
    **dict.fromkeys(("resume", "continue", "restart"), _RESUME),
    **dict.fromkeys(("eval", "validate", "score", "rank", "leaderboard"), _MEASURE),
    "test": _TEST,
    **dict.fromkeys(("infer", "inference"), "`predict` scores the test images"),
    **dict.fromkeys(("clean", "delete", "remove", "rm", "gc"), _DELETE),
    **dict.fromkeys(("new", "create", "setup", "quickstart"), _START),
    **dict.fromkeys(("stop", "kill", "abort"), _CANCEL),
    **dict.fromkeys(("list", "ls", "show", "ps", "watch", "progress", "queue"), _STATUS),
    **dict.fromkeys(("check", "diagnose"), "`doctor` checks what a grid needs, " + _PLAN),
    **dict.fromkeys(("dry-run", "dryrun", "estimate", "cost"), _PLAN),
    **dict.fromkeys(("prepare", "preprocess", "pack", "convert", "split"), _PACK),
    "download": "`data` downloads MIRFLICKR-25000",
    **dict.fromkeys(("plot", "plots", "figures", "results"), "`report` writes report.html, its figures too"),
    **dict.fromkeys(("zoo", "networks", "architectures"), "`models` lists networks and published weights"),
    "tensorboard": "TensorBoard is a program of its own: `tensorboard --logdir experiments/`",
    "help": _HELP,
    "version": "`--version` prints it",
}
