"""What a plan shows is kept for equal inputs; what could not be read for a moment is not."""

from pipeline.data.remembered import remembered


def test_a_value_is_computed_once_and_an_empty_one_again(tmp_path):
    made = []

    def compute(value):
        return lambda: made.append(value) or value

    assert remembered(tmp_path, "counts", [1], compute({})) == {}  # the disk did not answer
    assert remembered(tmp_path, "counts", [1], compute({"a": 2})) == {"a": 2}
    assert remembered(tmp_path, "counts", [1], compute({"a": 3})) == {"a": 2}
    assert made == [{}, {"a": 2}]
