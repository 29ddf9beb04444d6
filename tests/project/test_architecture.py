"""docs/architecture.md says what is true: its drawing, and the size of each wing."""

import configparser
import re

from tests.conftest import ROOT
from tests.project.test_policy import SOURCES, lines_of_code

TEXT = (ROOT / "docs/architecture.md").read_text()


def contract():
    """The rows of the import contract, each a list of wings."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (layers,) = (s["layers"] for s in config.values() if s.get("type") == "layers")
    return [row.replace("|", " ").split() for row in layers.strip().splitlines()]


def test_the_drawing_is_the_import_contract():
    (drawing,) = re.findall(r"```\n(jobs\.__main__.*?)```", TEXT, re.S)
    rows = [re.findall(r"(?:^|\| )((?:jobs|pipeline)\.\w+)", line) for line in drawing.splitlines()]
    assert [row for row in rows if row] == contract()


def test_the_sizes_of_the_wings_are_true():
    told = {wing: int(lines) for wing, lines in re.findall(r"^\| `([\w.]+)` \| (\d+) \|", TEXT, re.M)}
    counted = {}
    for wing in (wing for row in contract() for wing in row):
        path = wing.replace(".", "/")
        files = [file for file in SOURCES if file.as_posix().startswith((f"{path}/", f"{path}.py"))]
        counted[wing] = sum(lines_of_code((ROOT / file).read_text()) for file in files)
    assert told.keys() == counted.keys()
    assert all(counted.values())
    far = {w: (told[w], n) for w, n in counted.items() if abs(told[w] - n) > max(0.1 * n, 32)}
    assert not far, f"correct the lines of docs/architecture.md (told, counted): {far}"
