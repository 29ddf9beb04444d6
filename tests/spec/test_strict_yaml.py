"""The YAML reader: YAML 1.2's scalars, places, and YAML 1.1's traps by name."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec.strict_yaml import dotted, parse, scalar


def mistakes(text):
    return [str(mistake) for mistake in parse(text, "x.yaml").mistakes]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("-7", -7), ("+3", 3), ("0", 0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("1:30", "1:30"), ("2026-11-01", "2026-11-01"), ("0x10", "0x10"), ("1_000", "1_000"), ("e5", "e5"),
        ("-.inf", -math.inf),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)
    if text:
        assert parse(f"key: {text}", "x").value == {"key": value}


def test_a_quoted_scalar_is_text():
    assert parse("a: '3'\nb: \"true\"\nc: 'on'", "x").value == {"a": "3", "b": "true", "c": "on"}


@pytest.mark.parametrize("word", ["on", "off", "yes", "No", "y", "N"])
def test_a_bare_boolean_word_is_refused_with_its_line(word):
    (text,) = mistakes(f"a: 1\nb: {word}\n")
    assert text.startswith("x.yaml:2: b: ")
    assert f"`{word}`" in text
    assert "true or false" in text
    assert mistakes(f"{word}: 1")[0].startswith(f"x.yaml:1: {word}: ")


def test_a_duplicate_key_is_refused_and_names_both_lines():
    (text,) = mistakes("a:\n  lr: 1\n  b: 2\n  lr: 3\n")
    assert text == "x.yaml:4: a.lr: the key is written twice (first on line 2); remove one"


def test_places_are_the_lines_of_keys():
    document = parse("a: 1\nb:\n  - x\n  - {c: 3}\n", "x.yaml")
    assert str(document.place(("b", 1, "c"))) == "x.yaml:4"
    assert str(document.place(("b", 1, "unknown", "deeper"))) == "x.yaml:4"
    assert str(document.place(("a",))) == "x.yaml:1"
    assert dotted(("b", 1, "c")) == "b[1].c"


def test_sequences_become_tuples_and_anchors_expand():
    document = parse("base: &b {x: 1}\nlist: [*b, *b]\n", "x")
    assert document.value == {"base": {"x": 1}, "list": ({"x": 1}, {"x": 1})}


def test_a_merge_key_takes_what_the_mapping_does_not_write_itself():
    text = "- &a {lr: 1, crop: [0, 1]}\n- &b {lr: 2, px: 3}\n- px: 4\n  <<: [*a, *b]\n- {'<<': 5}"
    document = parse(text, "x.yaml")
    assert not document.mistakes
    assert document.value[2] == {"px": 4, "lr": 1, "crop": (0, 1)}  # the first of several that has a key
    assert list(document.value[3]) == ["<<"]  # in quotes it is a key like any other
    assert str(document.place((2, "px"))) == "x.yaml:3"
    assert str(document.place((2, "lr"))) == "x.yaml:1"  # where it is written


@pytest.mark.parametrize("value", ["5", "[5]", "[[{lr: 1}]]", ""])
def test_a_merge_key_of_no_mapping_is_refused_with_its_line(value):
    (mistake,) = parse(f"a: 1\n<<: {value}", "x.yaml").mistakes
    assert str(mistake).startswith("x.yaml:2: <<: merges a mapping, as `<<: *name`, or a list of them")


def test_a_merge_key_written_twice_is_refused():
    (mistake,) = parse("<<: {a: 1}\n<<: {b: 1}", "x.yaml").mistakes
    assert "written twice (first on line 1)" in str(mistake)


def test_a_bomb_of_aliases_is_stopped_by_counting():
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)]
    (text,) = mistakes("\n".join(lines))
    assert "expands to more than" in text


@pytest.mark.parametrize(
    "text",
    ["a: [1,", "a: b: c", "\tx: 1", "a: &x [*x]", "? [1, 2]\n: 3", "a: !!python/name:os.system x", "a: \x00"],
)
def test_what_is_not_a_plain_document_is_one_clear_mistake(text):
    (said,) = mistakes(text)
    assert said.startswith("x.yaml:")


# libyaml does not join JSON's escaped surrogate pairs
words = st.text(st.characters(max_codepoint=0xD7FF), max_size=20)  # nor are keys over 1,024 bytes simple
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(words, children, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(words, values, max_size=4))
def test_json_reads_back_as_itself(value):
    """JSON is YAML 1.2 where every text is quoted."""
    import json

    def tuples(item):
        if isinstance(item, list):
            return tuple(tuples(child) for child in item)
        return {key: tuples(child) for key, child in item.items()} if isinstance(item, dict) else item

    document = parse(json.dumps(value), "x")
    assert document.mistakes == []
    assert document.value == tuples(value)


@given(st.text())
def test_any_text_is_read_or_refused_never_a_crash(text):
    document = parse(text, "x")
    assert document.mistakes or document.value is not ...


def test_safe_dump_of_pyyaml_reads_back():
    value = {"a": 1, "b": {"c": [1.5, "x y", None, True]}}
    assert parse(yaml.safe_dump(value), "x").value == {"a": 1, "b": {"c": (1.5, "x y", None, True)}}
