"""JSON passed through as it comes: the same value, however cut, and always closable."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.text.dialects import JsonReader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=8,
)  # fmt: skip


def read(text: str, cut: int) -> tuple[str, JsonReader]:
    reader = JsonReader()
    return reader.push(text[:cut]) + reader.push(text[cut:]), reader


@settings(derandomize=True, max_examples=400, deadline=None)
@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.integers(0, 60))
def test_valid_json_passes(value: object, indent: int | None, ascii_only: bool, cut: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    passed, reader = read(text, cut)
    whole = passed + reader.finish()
    assert json.loads(whole) == value
    assert not reader.broken and not reader.rest


@settings(derandomize=True, max_examples=400, deadline=None)
@given(VALUES, st.integers(0, 60))
def test_cut_json_can_be_closed(value: object, cut: int) -> None:
    reader = JsonReader()
    passed = reader.push(json.dumps(value)[:cut])
    json.loads(passed + reader.finish())


JUNK = st.text(alphabet='{}[]",:\\u1e-0 \ntruefalsn\x01', max_size=30)


@settings(derandomize=True, max_examples=800, deadline=None)
@given(JUNK, st.integers(0, 30))
def test_junk_becomes_json_and_a_rest(text: str, cut: int) -> None:
    passed, reader = read(text, cut)
    closed = passed + reader.finish()
    json.loads(closed)
    once = JsonReader()
    assert once.push(text) + once.finish() == closed
    assert text.endswith(reader.rest)


def test_depth_is_bounded() -> None:
    reader = JsonReader()
    passed = reader.push("[" * 5000)
    assert reader.broken and len(passed) == 64
    assert json.loads(passed + reader.finish()) is not None
