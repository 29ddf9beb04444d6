"""The words of version 0.1 are gone: one idea, one word, the field's word."""

import re

import pytest

from tests.conftest import ROOT
from tests.project.test_policy import TRACKED

# where the old keys are answered with the new ones, and where the change is told
ALLOWED = {
    *("CHANGELOG.md", "docs/spec.md", "pipeline/spec/renamed.py", "tests/spec/test_renamed.py"),
    *("tests/spec/test_reference.py", "tests/project/test_words.py"),
}
TEXTS = [
    path
    for path in TRACKED
    if path.suffix in (".py", ".md", ".yaml", ".cfg", ".toml", ".js", ".css") and str(path) not in ALLOWED
]
OLD = {
    "spec keys": (
        r"lr_backbone|final_share|up_share|start_share|max_bad_share|mix_share|save_share|average_flips|score_px"
        r"|feature_views|head_first_epochs|best_by|erase_area|clip_norm|side_by_side|data\.unlabelled|grid\.together"
        r"|sampling\.blanks|augment\.(?:trivial|erase)"
    ),
    "classes": (
        r"Settled|Standing|Overview|SubmitError|Evaluated|Together|Closing|UnlabelledSpec|PictureFeed"
    ),
    "functions": (
        r"kept_apart|cross_fitted|pixels_on|leave_compiler_out|is_whole|submitting|logits_together|score_together"
        r"|with_room|found_json|learning_part|start_at_prior|on_this_machine|process_of|stream_of|redraw"
    ),
    "variables": r"bearers|twins|blank_[NK]+|blank_f1|blank_share|flying|sealed",
    "modules": (
        r"pipeline\.(?:files|specfile|yamlfile|rundir|deciding|uncompiled|folding|residence|saving|stopping|feeding"
        r"|experiment|learner|statistics)|jobs\.(?:here|remote|looking|steering|health|standing|draft|allocation"
        r"|scheduler|together|graph|verbs|demo|request|cluster)\b"
    ),
    "tags": r"mistakes_(?:invented|missed)|invented",
    "messages": (
        r"saved, starting again goes on|nothing runs here|nothing like them has finished|passed over"
        r"|is no packed|is no UTF-8|are no weights|is no number|is in flight|was here; watching|really better"
        r"|told apart|bears? (?:no|a|the|any) label"
    ),
    "docs": r"looking\.md|Looking and steering|What was tried, and what was only read",
}


@pytest.mark.parametrize("kind", OLD)
def test_no_word_of_the_old_vocabulary_is_left(kind):
    assert TEXTS
    pattern = re.compile(rf"(?<![\w.])(?:{OLD[kind]})(?!\w)")
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
