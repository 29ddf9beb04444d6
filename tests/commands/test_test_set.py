"""The test set beside the training set: its log, and its pictures that training has too."""

from tests.cells import jobs, project


def test_the_log_of_each_packed_set_has_its_own_name(tmp_path, drawn_zip):
    spec = project(tmp_path, drawn_zip)
    status, printed = jobs("wrangle", spec, cwd=tmp_path)
    assert status == 0, printed
    logs = {path.name: path.read_text() for path in (tmp_path / "experiments/x/logs").iterdir()}
    packed = {path.name.rsplit("-", 2)[0]: path.name for path in (tmp_path / "data/packed").iterdir()}
    training = next(text for name, text in logs.items() if name.startswith(f"wrangle-{packed['drawn']}-"))
    assert "240 images" in training
    assert "split: train 192, validation 48" in training
    assert "40 images" in logs[f"wrangle-{packed['drawn-test']}.txt"]
