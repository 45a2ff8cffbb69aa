"""YAML 1.2's core schema, and no key twice."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.settings.yaml_text import parse_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, word) for word in ("NO", "no", "yes", "on", "off", "y", "10:00", "1:30", "2026-01-01", "0b11", "=")],
        *[("true", True), ("False", False), ("~", None), ("null", None), ("", None), ("01500", 1500), ("0x5DC", 1500)],
        *[
            ("0o17", 15),
            ("-3", -3),
            ("+4", 4),
            ("1e3", 1000.0),
            ("1.5e+3", 1500.0),
            (".5", 0.5),
            ("-.inf", -float("inf")),
        ],
        *[('"5"', "5"), ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")],
    ],
)
def test_what_a_plain_scalar_is(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}")
    assert found == {"key": value} and isinstance(found, dict)
    assert type(found["key"]) is type(value)


@given(plain)
def test_what_pyyaml_writes_reads_back(value: object) -> None:
    """Homes and deployments are written by PyYAML, which quotes by YAML 1.1: more, never less."""
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize("text", ["a: 1\na: 2", "c: {x: {y: 1, y: 2}}", '"a": 1\na: 2', "- {k: 1, j: 2, k: 1}"])
def test_a_key_that_is_there_twice_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="is there twice; keep one"):
        parse_yaml(text)


def test_merged_keys_may_be_given_again_and_aliases_may_repeat() -> None:
    text = "a: {q: &x {<<: &y {b: 1, d: 3}, b: 2}}\nc: {<<: *x, d: 4}\ne: [*y, *y]"
    assert parse_yaml(text) == {
        "a": {"q": {"b": 2, "d": 3}},
        "c": {"b": 2, "d": 4},
        "e": [{"b": 1, "d": 3}, {"b": 1, "d": 3}],
    }


def test_an_alias_of_itself_ends() -> None:
    found = parse_yaml("a: &x {b: *x}")
    assert isinstance(found, dict) and found["a"]["b"] is found["a"]
