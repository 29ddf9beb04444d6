"""The command line itself: help, mistaken verbs, exit statuses, and what it is called."""

import configparser
import gc
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.commands.verbs import OTHER_NAMES, VERBS
from jobs.local.snapshot import snapshot
from pipeline import __version__
from tests.cells import clean_environment
from tests.conftest import ROOT

MODULE = [sys.executable, "-m", "jobs"]


def run(command, **settings):
    settings = {"cwd": ROOT, "env": clean_environment(), **settings}
    return subprocess.run(command, capture_output=True, text=True, **settings)


# ---------------------------------------------------------------- help


def test_without_a_verb_the_verbs_are_listed_by_group_and_the_status_is_2(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for group in {verb.group for verb in VERBS.values()}:
        listed = re.search(rf"^{group}:\n((?:  .*\n)+)", err, re.M)[1]
        assert re.findall(r"^  (\S+)", listed, re.M) == [
            n for n, verb in VERBS.items() if verb.group == group
        ]


def test_help_is_the_same_list_on_standard_output(capsys):
    main([])
    expected = capsys.readouterr().err
    assert main(["--help"]) == 0
    assert capsys.readouterr() == (expected, "")


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_and_each_option_has_a_sentence_and_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    verb = VERBS[name]
    assert re.fullmatch(r"[A-Z].*\.", verb.help)
    assert verb.help in text
    assert f" {verb.example}" in text
    for argument, settings in verb.arguments.items():
        assert settings["help"] in text, argument
        assert "Example: " in settings["help"], argument


@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_each_verb_reaches_its_function_for_this_cluster(name, monkeypatch):
    verb, calls = VERBS[name], []
    on_slurm = "--cluster roihu" in verb.example

    def record(*arguments, **named):
        calls.append((arguments, named, gc.isenabled()))
        return 7

    function = verb.on_slurm if on_slurm and verb.on_slurm else verb.function
    monkeypatch.setattr("jobs.commands." + function.replace(":", "."), record)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LABELGRID_CLUSTER", raising=False)
    gc.disable()  # as the entry point does
    try:
        assert main(shlex.split(verb.example.split(" >")[0])) == 7
    finally:
        gc.enable()
    ((arguments, named, collecting),) = calls
    assert collecting
    if verb.takes_spec:
        (request,) = arguments
        assert request.cluster == ("roihu" if on_slurm else "local")
        assert request.run == ("sgd" if "--run sgd" in verb.example else None)
        assert str(request.loaded.path) in verb.example
    else:
        named_files = {"source": Path("photos.zip"), "labels": Path("labels.csv")}
        own = {
            "data": {"folder": Path("data/raw")},
            "keys": {"prefix": "train.augment"},
            "models": {
                "patterns": ["convnext", "tiny"],
                "sort": "name",
                "show_all": False,
                "weights": True,
                "here": False,
            },
            "init": {**named_files, "yes": True, "output": None, "force": False},
        }
        assert named == own.get(name, {})


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["train", "experiments/demo.yaml"], "no verb `train`; `grid` trains every missing cell"),
        (["Resume"], "no verb `Resume`; `grid` resumes what was interrupted"),
        (["test"], "no verb `test`; `predict` scores the test images"),
        (["gird"], "no verb `gird`; did you mean `grid`?"),
        (["submision"], "no verb `submision`; did you mean `submission`?"),
        (["zebra"], "no verb `zebra`\n"),
        (["--cluster", "roihu", "grid"], "the verb comes first, `--cluster` is an option"),
        (["grid"], "the following arguments are required: SPEC"),
        (["grid", "experiments/demo.yaml", "--cells", "3"], "unrecognized arguments: --cells 3"),
        (["grid", "nothing.yaml"], "error: nothing.yaml: 1 mistake"),
    ],
)
def test_a_mistake_is_answered_on_standard_error_with_status_2(arguments, answer, capsys, cluster_free):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert answer in err


def test_names_of_other_tools_are_no_verbs_and_lead_to_one():
    assert not OTHER_NAMES.keys() & VERBS.keys()
    for name, answer in OTHER_NAMES.items():
        named = re.match(r"`([\w-]+)", answer)
        assert name == "tensorboard" or named[1] in {*VERBS, "--help", "--version"}, name


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("arguments", [["schema"], ["--version"]], ids=["much", "little"])
def test_nothing_is_said_when_the_reader_of_a_pipe_has_gone(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*MODULE, *arguments], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, env=clean_environment()
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_another_broken_pipe_is_an_error_of_ours(monkeypatch, capfd):
    def broken():
        raise BrokenPipeError

    monkeypatch.setattr("jobs.commands.schema.schema", broken)
    with pytest.raises(BrokenPipeError):
        main(["schema"])


def test_ctrl_c_is_answered_with_how_to_go_on(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.commands.schema.schema", stopped)
    assert main(["schema"]) == 128 + signal.SIGINT
    assert capsys.readouterr() == (
        "",
        "Interrupted. Run the same command to resume; completed work is not repeated.\n",
    )


# ---------------------------------------------------------------- what it is called


def test_the_version_is_known_without_an_installation_and_in_frozen_code(tmp_path):
    expected = f"labelgrid {__version__}\n"
    assert run([sys.executable, "-S", "-m", "jobs", "--version"], env={}).stdout == expected
    frozen = {"PYTHONPATH": str(snapshot(tmp_path))}
    assert run([*MODULE, "--version"], cwd=tmp_path, env=frozen).stdout == expected


def test_the_console_script_is_the_same_program_under_its_own_name(tmp_path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, module, function = re.fullmatch(
        r"\s*(\w+) = ([\w.]+):(\w+)", setup["options.entry_points"]["console_scripts"]
    ).groups()
    script = tmp_path / name  # as pip writes it
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
        f"if __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    script.chmod(0o755)
    as_script, as_module = run([script, "--help"]), run([*MODULE, "--help"])
    assert as_script.stdout.startswith("usage: labelgrid VERB")
    assert as_module.stdout.startswith(f"usage: {sys.executable} -m jobs VERB")
    assert as_script.stdout == as_module.stdout.replace(f"{sys.executable} -m jobs", "labelgrid")
    mistaken = run([script, "train"])
    assert (mistaken.returncode, mistaken.stdout) == (2, "")
    assert "`grid` trains every missing cell\n`labelgrid --help` lists the verbs\n" in mistaken.stderr


def test_another_tool_s_verb_is_answered_mistyped_too(capsys):
    assert main(["trian", "experiments/demo.yaml"]) == 2
    assert "no verb `trian`; `grid` trains every missing cell" in capsys.readouterr().err
