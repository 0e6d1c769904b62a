"""What an answer must have, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.evaluate import Answer, Check, judge

CALL = {"name": "f", "arguments": {"a": 1, "b": [True, "x"]}}
OTHER = {"name": "g", "arguments": {}}


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (Check(equals="a b"), Answer(content=" a b\n"), Answer(content="a b c")),
        (Check(contains=("932",)), Answer(content="= 932."), Answer(content="= 1932.")),
        (Check(contains=("Rome",)), Answer(content="**Rome**"), Answer(content="Romeo")),
        (Check(contains=("上海",)), Answer(content="我在上海市"), Answer(content="我在北京")),
        (Check(contains=("a", "b")), Answer(content="b, a"), Answer(content="a")),
        (Check(absent=("7", "8")), Answer(content="= 78"), Answer(content="7 or 8")),
        (Check(contains=("9",), absent=("8",)), Answer(content="9"), Answer(content="8, 9")),
        (Check(equals="a"), Answer(content="a"), Answer(content="a", finish_reason="length")),
        (Check(), Answer(finish_reason="stop"), Answer(finish_reason="length")),
        (Check(json={"a": 1}), Answer(content='{"a":1}'), Answer(content='{"a": true}')),
        (Check(json={"a": 1}), Answer(content=' {"a": 1}'), Answer(content='{"a": 1')),
        (Check(json=None), Answer(content="null"), Answer(content="")),
        (Check(calls=(CALL, OTHER)), Answer(calls=(OTHER, CALL)), Answer(calls=(CALL,))),
        (Check(calls=(CALL,)), Answer(calls=(CALL,)), Answer(calls=(CALL, CALL))),
        (Check(calls=()), Answer(), Answer(calls=(OTHER,))),
        (Check(thinks=True), Answer(reasoning="so"), Answer(reasoning=" \n")),
        (Check(thinks=False), Answer(), Answer(reasoning="so")),
    ],
)
def test_checks(check: Check, right: Answer, wrong: Answer) -> None:
    assert judge(check, right) is None
    assert judge(check, wrong)


NUMBERS = st.integers(0, 10**6).map(str)


@given(
    NUMBERS, st.sampled_from(["{}", "= {}.", "**{}**", "({})", "$:{},", "是{}。", "约{}度", "[{}]"])
)
def test_a_number_is_found_among_what_is_no_part_of_it(number: str, around: str) -> None:
    assert judge(Check(contains=(number,)), Answer(content=around.format(number))) is None


OTHER_NUMBERS = ["-{}", "\u2212{}", "= -{}.", "负{}", "1{}", "{}1", "1.{}", ".{}", "0,{}", "{}.5"]
OTHER_NUMBERS += ["{},000", "x{}", "{}nd", "é{}", "{}я", "{}万", "٣{}"]


@given(NUMBERS, st.sampled_from(OTHER_NUMBERS))
def test_a_number_is_not_found_in_another(number: str, other: str) -> None:
    assert judge(Check(contains=(number,)), Answer(content=other.format(number)))
    assert judge(Check(absent=(number,)), Answer(content=other.format(number))) is None


@pytest.mark.parametrize(
    ("wanted", "content", "is_there"),
    [
        ("-238", "It is -238.", True),
        ("-238", "It is \u2212238.", True),
        ("-238", "500-238", False),
        (".5", "about .5.", True),
        (".5", "about 2.5.", False),
        ("2.5", "about 2.5.", True),
        ("2.5", "about 12.5", False),
        ("7", "7, 8 and 9", True),
        ("7", "not 17, but 7", True),
        ("7", "Well...7", True),
        ("cafe", "le cafe\u0301", False),
        ("café", "le cafe\u0301", True),
        ("Oslo", "яOslo Oslo", True),
        ("Oslo", "яOslo", False),
        ("Paris", "首都是Paris。", True),
        ("Paris", "Parisя", False),
        ("巴黎", "首都是巴黎市", True),
        ("巴黎", "Paris是巴黎Paris", True),
        ("क", "कि", False),
        ("Rome", "☀\ufe0fRome", True),
        ("Rome", "_Rome_", True),
        ("Hello!", "Hello!You", True),
    ],
)
def test_a_word_is_found_where_no_letter_goes_on(wanted: str, content: str, is_there: bool) -> None:
    assert (judge(Check(contains=(wanted,)), Answer(content=content)) is None) == is_there
