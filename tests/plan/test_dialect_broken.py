"""Answers that are cut, malformed or misplaced: the stream stays valid and keeps every word."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from dialect_cases import DIALECTS, answer, call_of, real_ids, tools
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dialect_round_trip import collected, events_of, tokens_of

from mserve.text import DialectParser, Finished, Start, Tools

NS = "]<]minimax[>["
F = Tools(
    {
        "f": {
            "type": "object",
            "properties": {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "o": {"type": "object", "properties": {"a": {"type": "string"}}},
                "l": {"type": "array", "items": {"type": "string"}},
                "ol": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"a": {"type": "integer"}}},
                },
            },
            "additionalProperties": False,
        },
        "g": {"type": "object", "properties": {"n": {"type": ["integer", "string"]}}},
    }
)


def parse(
    arch: str,
    text: str,
    *,
    start: Start = Start.CONTENT,
    tools: Tools | None = F,
    real: bool = True,
) -> dict[str, Any]:
    """``real``: markers are tokens of their own; else everything is spelled out."""
    dialect = DIALECTS[arch]
    if real:
        parser = DialectParser(dialect, start, tools, marker_ids=real_ids(arch))
        events = events_of(parser, tokens_of(arch, text))
    else:
        events = events_of(DialectParser(dialect, start, tools), list(text))
    got = collected(events)
    last = events[-1]
    assert isinstance(last, Finished)
    return {**got, "left_open": last.left_open}


def arguments(got: dict[str, Any], index: int = 0) -> Any:
    return json.loads(got["calls"][index]["arguments"])


def m2(*parameters: str, name: str = "f") -> str:
    inner = "".join(f"{parameter}\n" for parameter in parameters)
    return f'\n<minimax:tool_call>\n<invoke name="{name}">\n{inner}</invoke>\n</minimax:tool_call>'


def m3(inner: str, name: str = "f") -> str:
    body = f'{NS}<invoke name="{name}">{inner}{NS}</invoke>\n'
    return f"{NS}<tool_call>\n{body}{NS}</tool_call>"


def param(name: str, value: str) -> str:
    return f'<parameter name="{name}">{value}</parameter>'


def element(name: str, value: str) -> str:
    return f"{NS}<{name}>{value}{NS}</{name}>"


# --- thinking ---

THINK = {"m2": ("<think>", "</think>"), "m3": ("<mm:think>", "</mm:think>")}


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("real", [True, False])
def test_thinking_rules(arch: str, real: bool) -> None:
    opener, closer = THINK[arch]

    def sorted_as(text: str, start: Start) -> tuple[str, str, str]:
        got = parse(arch, text, start=start, real=real)
        return got["reasoning"], got["content"], got["left_open"]

    assert sorted_as(f"why{closer}so", Start.THINKING) == ("why", "so", "nothing")
    assert sorted_as(f"{opener}why{closer}so", Start.THINKING) == ("why", "so", "nothing")
    assert sorted_as("only thoughts", Start.THINKING) == ("only thoughts", "", "thinking")
    assert sorted_as(f"{opener}why{closer}so", Start.EITHER) == ("why", "so", "nothing")
    assert sorted_as(f"{opener}why{closer}so", Start.CONTENT) == ("why", "so", "nothing")
    assert sorted_as("plain", Start.EITHER) == ("", "plain", "nothing")
    assert sorted_as(f"{closer}so", Start.CONTENT) == ("", "so", "nothing")
    assert sorted_as(f"why{closer}{closer}so", Start.THINKING) == ("why", "so", "nothing")
    assert sorted_as(f"{closer}", Start.THINKING) == ("", "", "nothing")


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_a_think_marker_amid_content_counts_only_if_real(arch: str) -> None:
    opener, closer = THINK[arch]
    text = f"one {opener}two{closer} three {closer}four"
    got = parse(arch, text, real=True)
    assert (got["reasoning"], got["content"]) == ("two", "one  three four")
    assert parse(arch, text, real=False)["content"] == text


def test_m2_blanks_beside_markers_belong_to_the_template() -> None:
    text = "a\n\n</think>\n\n\nb\n" + m2(param("s", "x"))
    got = parse("m2", text, start=Start.THINKING)
    assert (got["reasoning"], got["content"]) == ("a\n", "\nb\n")
    again = answer(
        "m2",
        {"content": "\nb\n", "reasoning_content": "a\n", "tool_calls": [call_of("f", {"s": "x"})]},
    )
    assert again == text


def test_append_think_keeps_everything_in_content() -> None:
    from mserve.text.dialects.names import M2_APPEND_THINK

    for pieces in (["why\n</think>\n\nso" + m2(param("s", "x"))], None):
        text = "why\n</think>\n\nso" + m2(param("s", "x"))
        parser = DialectParser(M2_APPEND_THINK, Start.THINKING, F)
        got = collected(events_of(parser, pieces or list(text)))
        assert (got["reasoning"], got["content"]) == ("", "<think>why\n</think>\n\nso")
        assert arguments(got) == {"s": "x"}


# --- calls that are whole, in unusual places ---


@pytest.mark.parametrize("real", [True, False])
def test_a_call_inside_thinking_ends_thinking(real: bool) -> None:
    for arch, block in (("m2", m2(param("s", "x"))), ("m3", m3(element("s", "x")))):
        closer = THINK[arch][1]
        got = parse(arch, f"hm{block}{closer}done", start=Start.THINKING, real=real)
        assert (got["reasoning"], got["content"], arguments(got)) == ("hm", "done", {"s": "x"})


def test_spelled_talk_about_calls_inside_thinking_is_thinking() -> None:
    block = m2(param("s", "x"), name="somebody")
    got = parse("m2", f"like{block}\n</think>\n\nok", start=Start.THINKING, real=False)
    assert (got["reasoning"], got["content"], got["calls"]) == (f"like{block}", "ok", [])


@pytest.mark.parametrize("real", [True, False])
def test_an_unknown_tool_is_read_without_a_schema(real: bool) -> None:
    for arch, block in (
        ("m2", m2(param("q", "3"), param("r", "x 3"), param("t", '{"a": [1]}'), name="new")),
        (
            "m3",
            m3(
                element("q", "3")
                + element("r", "x 3")
                + element("t", element("a", element("item", "1"))),
                name="new",
            ),
        ),
    ):
        got = parse(arch, block, real=real)
        assert got["calls"][0]["name"] == "new"
        assert arguments(got) == {"q": 3, "r": "x 3", "t": {"a": [1]}}


@pytest.mark.parametrize("real", [True, False])
def test_without_tools_markup_is_content(real: bool) -> None:
    for arch, block in (("m2", m2(param("s", "x"))), ("m3", m3(element("s", "x")))):
        got = parse(arch, f"see{block}", tools=None, real=real)
        assert (got["content"], got["calls"]) == (f"see{block}", [])


@pytest.mark.parametrize("real", [True, False])
def test_a_block_without_a_call_is_content(real: bool) -> None:
    for arch, opener in (("m2", "<minimax:tool_call>"), ("m3", NS + "<tool_call>")):
        for rest in ("\nnothing", "", " <invoke", '<invoke name="'):
            got = parse(arch, f"see {opener}{rest}", real=real)
            assert got["calls"] == []
            text = got["content"]
            assert text == f"see {opener}{rest}" or (real and text.strip() == "see")


# --- M2: values that hold markup ---


@pytest.mark.parametrize(
    "value",
    [
        "a</parameter>b",
        "</parameter>\n</parameter>",
        'x</parameter>\n<parameter name="unknown">y',
        'x</parameter>\n<parameter name="s">again',
        "x</parameter>\n</invoke>\nmore",
        'x</parameter>\n</invoke>\n<invoke name="nobody">',
        "</invoke>",
        "x</invoke>\n",
        "<parameter",
        "\n\n  x  \n",
    ],
)
@pytest.mark.parametrize("real", [True, False])
def test_m2_values_that_hold_markup(value: str, real: bool) -> None:
    got = parse("m2", m2(param("s", value), param("n", "3")), real=real)
    assert arguments(got) == {"s": value, "n": 3}
    flagged = any("holds" in problem for problem in got["calls"][0]["finished"].problems)
    assert flagged == ("</" in value)


def test_m2_a_spelled_end_of_block_is_text_where_the_block_is_real() -> None:
    spelled = "</parameter>\n</invoke>\n</minimax:tool_call>"
    text = m2(param("s", f"doc: {spelled} end"))
    parser = DialectParser(
        DIALECTS["m2"],
        Start.CONTENT,
        F,
        marker_ids={1: "<minimax:tool_call>", 2: "</minimax:tool_call>"},
    )
    head, tail = text.split("<minimax:tool_call>")[1], "</minimax:tool_call>"
    inner = head.removesuffix(tail)
    events = events_of(
        parser, [(1, "<minimax:tool_call>"), *((0, char) for char in inner), (2, tail)]
    )
    assert arguments(collected(events)) == {"s": f"doc: {spelled} end"}


def test_m2_json_does_not_end_within_its_strings() -> None:
    for held in ("</parameter>\n</invoke>\n</minimax", "</parameter></invoke>", "</parameter>"):
        value = {"a": held, "b": 1}
        got = parse("m2", m2(param("o", json.dumps(value)), param("n", "3")))
        assert arguments(got) == {"o": value, "n": 3}


def test_m2_json_that_never_ends_takes_nothing_of_what_follows() -> None:
    block = m2(param("o", '{"a": "x'), param("n", "3"))
    for real in (True, False):
        got = parse("m2", block + m2(param("s", "y")), real=real)
        assert arguments(got) == {"o": {"a": "x"}, "n": 3}
        assert arguments(got, 1) == {"s": "y"}
        assert got["calls"][0]["finished"].problems == ("o does not fit its schema",)


def test_text_that_only_begins_like_json_streams() -> None:
    one = Tools({"f": {"properties": {"k": {"anyOf": [{"type": "object"}, {"type": "string"}]}}}})
    parser = DialectParser(DIALECTS["m3"], Start.CONTENT, one)
    text = f'{NS}<tool_call>{NS}<invoke name="f">{NS}<k>{{ margin: 0; }}'
    sent = "".join(getattr(event, "text", "") for char in text for event in parser.push_text(char))
    assert sent == '{"k":"{ margin: 0; }'


# --- M3: values that hold markup ---


@pytest.mark.parametrize(
    "value",
    [f"a{NS}b", f"{NS}", f"{NS}<b>c", f"{NS}</b>", f"x{NS}<item>y{NS}</item>", f"{NS}{NS}<"],
)
@pytest.mark.parametrize("real", [True, False])
def test_m3_strings_that_hold_the_mark(value: str, real: bool) -> None:
    got = parse("m3", m3(element("s", value) + element("n", "3")), real=real)
    assert arguments(got) == {"s": value, "n": 3}


def test_m3_a_spelled_mark_is_text_where_the_block_is_real() -> None:
    dialect = DIALECTS["m3"]
    value = f"x{NS}</s>{NS}</invoke>"
    inner = f'{NS}\0<tool_call>{NS}\0<invoke name="f">{NS}\0<s>{value}{NS}\0</s>{NS}\0</invoke>'
    parser = DialectParser(dialect, Start.CONTENT, F, marker_ids={1: NS})
    tokens = [
        (1, NS) if part == f"{NS}\0" else (0, part)
        for part in re.split(f"({re.escape(NS)}\0)", inner)
    ]
    assert arguments(collected(events_of(parser, tokens))) == {"s": value}


def test_m3_lists_written_as_repeated_elements() -> None:
    inner = element("l", "x") + element("l", "y") + element("n", "1")
    assert arguments(parse("m3", m3(inner))) == {"l": ["x", "y"], "n": 1}
    inner = element("ol", element("a", "1")) + element("ol", element("a", "2"))
    assert arguments(parse("m3", m3(inner))) == {"ol": [{"a": 1}, {"a": 2}]}
    assert arguments(parse("m3", m3(element("l", '["x", "y"]')))) == {"l": ["x", "y"]}
    one = element("l", element("item", "x"))
    assert arguments(parse("m3", m3(one))) == {"l": ["x"]}
    assert arguments(parse("m3", m3(element("l", "")))) == {"l": []}


def test_m3_a_repeated_element_does_not_replace_what_was_sent() -> None:
    got = parse("m3", m3(element("s", "first") + element("s", "second")))
    assert arguments(got) == {"s": "first"}
    assert got["content"] == "second"
    assert got["calls"][0]["finished"].problems == ("s is repeated",)


def test_m2_a_parameter_given_twice() -> None:
    got = parse("m2", m2(param("n", "1"), param("n", "2"), param("s", "x")))
    assert (arguments(got), got["content"]) == ({"n": 1, "s": "x"}, "2")
    assert got["calls"][0]["finished"].problems == ("n is repeated",)
    twice = m2(param("s", "1"), param("s", "2"))
    assert arguments(parse("m2", twice)) == {"s": f"1</parameter>\n{param('s', '2')[:-12]}"}


def test_json_that_breaks_is_closed_and_the_rest_is_content() -> None:
    for arch, block in (
        ("m2", m2(param("o", '{"a": "x" oops'))),
        ("m3", m3(element("o", '{"a": "x" oops'))),
    ):
        got = parse(arch, block)
        assert (arguments(got), got["content"]) == ({"o": {"a": "x"}}, "oops")


def test_m3_depth_is_bounded() -> None:
    deep = "x"
    for _ in range(300):
        deep = element("a", deep)
    got = parse("m3", m3(deep, name="new"), real=False)
    value, depth = arguments(got), 0
    while isinstance(value, dict):
        value, depth = value["a"], depth + 1
    assert depth == 64
    assert isinstance(value, str) and "x" in value
    assert any("nested deeper" in problem for problem in got["calls"][0]["finished"].problems)


def test_m3_missing_ends_are_supplied() -> None:
    inner = f"{NS}<o>{NS}<a>x{NS}</o>" + element("n", "1")
    got = parse("m3", m3(inner))
    assert arguments(got) == {"o": {"a": "x"}, "n": 1}
    assert not got["calls"][0]["finished"].incomplete
    text = f'{NS}<tool_call>{NS}<invoke name="f">{NS}<s>x{NS}</tool_call>after'
    got = parse("m3", text)
    assert (arguments(got), got["content"]) == ({"s": "x"}, "after")


def test_m3_keys_that_are_no_tags() -> None:
    schema = {"properties": {"a>b": {"type": "string"}, "a": {"type": "string"}, "": {}}}
    inner = element("a>b", "1") + element("a", "2") + element("", "3")
    for real in (True, False):
        got = parse("m3", m3(inner), tools=Tools({"f": schema}), real=real)
        assert arguments(got) == {"a>b": "1", "a": "2", "": 3}


# --- types ---


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["null", "string"]}, "null", None),
        ({"type": ["null", "string"]}, "nullable", "nullable"),
        ({"type": ["integer", "string"]}, "3", 3),
        ({"type": ["integer", "string"]}, " 3", " 3"),
        ({"type": ["integer", "string"]}, "3 apples", "3 apples"),
        ({"type": ["integer", "string"]}, "3.0", "3.0"),
        ({"type": "integer"}, " 3\n", 3),
        ({"type": "integer"}, "3.0", 3.0),
        ({"type": "integer"}, "3.5", "3.5"),
        ({"type": "integer"}, "three", "three"),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "string", "nullable": True}, "null", "null"),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"type": "integer"}, "null", "null"),
        ({"enum": ["1", 1, None]}, "1", "1"),
        ({"enum": [1, "1"]}, "1", 1),
        ({"enum": [1, "x"]}, "y", "y"),
        ({"const": 5}, "5", 5),
        ({"anyOf": [{"type": "object"}, {"type": "string"}]}, "{x", "{x"),
        ({"anyOf": [{"type": "object"}, {"type": "string"}]}, '{"x": 1}', {"x": 1}),
        ({"type": "object"}, "{'x': 1}", {}),
        ({"type": "object"}, '{"x": 1,}', {"x": 1}),
        ({"type": "object"}, '{"x": "a\nb\\d"}', {"x": "a\nb\\d"}),
        ({"type": "object"}, '{"x": True}', {"x": True}),
        ({"type": "object"}, '{"x": [1, ', {"x": [1]}),
        ({"$ref": "#/nowhere"}, "3", 3),
        ({"$ref": "https://elsewhere"}, "x", "x"),
        ({}, "007", "007"),
        ({}, '"quoted"', '"quoted"'),
        ({}, "NaN", "NaN"),
        ({}, "[1, 2", "[1, 2"),
        ({}, "-", "-"),
        ({}, "", ""),
        (True, "1", 1),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}]}, "4", 4),
        ({"allOf": [{"type": "integer"}, {"type": ["string", "integer"]}]}, "4", 4),
    ],
)
def test_values_by_schema(schema: Any, text: str, value: Any) -> None:
    one = Tools({"f": {"type": "object", "properties": {"k": schema}}})
    for arch, block in (("m2", m2(param("k", text))), ("m3", m3(element("k", text)))):
        for real in (True, False):
            got = arguments(parse(arch, block, tools=one, real=real))
            assert repr(got) == repr({"k": value}), arch


# --- cut anywhere, and noise ---


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(derandomize=True, max_examples=60, deadline=None)
@given(tools())
def test_cut_at_any_token(arch: str, made: tuple[Any, Any]) -> None:
    schema, value = made
    text = answer(
        arch, {"content": "C", "reasoning_content": "R", "tool_calls": [call_of("f", value)]}
    )
    schemas, tokens = Tools({"f": schema}), tokens_of(arch, text)
    for end in range(len(tokens)):
        parser = DialectParser(DIALECTS[arch], Start.THINKING, schemas, marker_ids=real_ids(arch))
        events = events_of(parser, tokens[:end])
        got = collected(events)
        assert "R".startswith(got["reasoning"].rstrip("\n"))
        assert "C".startswith(got["content"].rstrip("\n"))
        last = events[-1]
        assert isinstance(last, Finished)
        incomplete = [call["finished"].incomplete for call in got["calls"]]
        assert (last.left_open == "call") == any(incomplete)


NOISE = {
    "m2": ("<think>", "</think>", "\n<minimax:tool_call>", "</minimax:tool_call>", "\n", " ",
           '<invoke name="f">', '<invoke name="g">', "</invoke>", '<parameter name="s">',
           '<parameter name="n">', '<parameter name="o">', "</parameter>", "<", "{", '{"a":"',
           '"', "}", "</"),
    "m3": ("<mm:think>", "</mm:think>", NS + "<tool_call>", NS + "</tool_call>", "\n", " ",
           NS + '<invoke name="f">', NS + '<invoke name="g">', NS + "</invoke>", NS + "<s>",
           NS + "</s>", NS + "<n>", NS + "</n>", NS + "<o>", NS + "</o>", NS + "<a>", NS + "</a>",
           NS + "<l>", NS + "</l>", NS + "<item>", NS + "</item>", NS, "<", "{", "[", "</", "]<]"),
}  # fmt: skip


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(derandomize=True, max_examples=700, deadline=None)
@given(st.data())
def test_noise_loses_no_word_and_cuts_do_not_matter(arch: str, data: st.DataObject) -> None:
    pieces = data.draw(
        st.lists(st.one_of(st.just("word"), st.sampled_from(NOISE[arch])), max_size=24)
    )
    numbered = [f"w{i}w" if piece == "word" else piece for i, piece in enumerate(pieces)]
    numbered.append("> end")  # so that no word is in a tag that never ends
    text = "".join(numbered)
    start = data.draw(st.sampled_from(Start))
    results = []
    for feeding in ([text], list(text), numbered):
        got = collected(events_of(DialectParser(DIALECTS[arch], start, F), feeding))
        results.append([(call["name"], call["arguments"]) for call in got["calls"]])
        results[-1] += [(got["reasoning"], got["content"])]
    assert results[0] == results[1] == results[2]
    real = parse(arch, text, start=start)
    shown = [*map(str, results[0])]
    shown_real = [real["reasoning"], real["content"], *(c["arguments"] for c in real["calls"])]
    for word in re.findall(r"w\d+w", text):
        assert any(word in part for part in shown)
        assert any(word in part for part in shown_real)


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.data())
def test_noise_of_real_markers_is_encodable_and_cuts_do_not_matter(
    arch: str, data: st.DataObject
) -> None:
    """Markers that are tokens beside the same spelled out, within a call as often as before one.
    What comes out is text that JSON can carry, and does not depend on how words are cut."""
    dialect = DIALECTS[arch]
    ids = dict(enumerate(dialect.markers))
    opening = {"m2": [(2, ids[2]), '\n<invoke name="f">\n'], "m3": [(0, NS), "<tool_call>\n"]}[arch]
    if arch == "m3":
        opening += [(0, NS), '<invoke name="f">']
    noise = ("word", *NOISE[arch], *dialect.markers, "<k>", "<think", "1e999", "\n<tool_call>")
    piece = st.one_of(st.sampled_from(sorted(ids.items())), st.sampled_from(noise))
    drawn = data.draw(st.lists(piece, max_size=24))
    pieces = [*(opening if data.draw(st.booleans()) else []), *drawn]
    start = data.draw(st.sampled_from(Start))
    results = []
    for cut in (False, True):
        parser = DialectParser(dialect, start, F, marker_ids=ids)
        events: list[Any] = []
        for one in pieces:
            if isinstance(one, tuple):
                events += parser.push(*one)
            else:
                for text in one if cut else [one]:
                    events += parser.push_text(text)
        got = collected([*events, *parser.finish()])
        calls = [(call["name"], call["arguments"]) for call in got["calls"]]
        results.append((got["reasoning"], got["content"], calls))
        for _, text in calls:
            assert isinstance(msgspec.json.decode(text), dict)
        assert msgspec.json.decode(msgspec.json.encode(results[-1])) is not None
    assert results[0] == results[1]


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_blanks_after_a_dropped_marker_are_those_that_follow_it(arch: str) -> None:
    dialect = DIALECTS[arch]
    parser = DialectParser(dialect, Start.CONTENT, None, marker_ids={1: dialect.think_close})
    events: list[Any] = [*parser.push_text("one "), *parser.push(1, dialect.think_close)]
    for text in ("two", "\n\n", "three"):
        events += parser.push_text(text)
    assert collected([*events, *parser.finish()])["content"] == "one two\n\nthree"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_m3_a_real_marker_in_a_key_makes_it_no_tag(number: int) -> None:
    ids = dict(enumerate(DIALECTS["m3"].markers))
    parser = DialectParser(DIALECTS["m3"], Start.CONTENT, F, marker_ids=ids)
    events: list[Any] = []
    for piece in ("<tool_call>", '<invoke name="f">', ("<s", "x>"), "</invoke>", "</tool_call>"):
        events += parser.push(0, NS)
        if isinstance(piece, tuple):
            events += [*parser.push_text(piece[0]), *parser.push(number, ids[number])]
            piece = piece[1]
        events += parser.push_text(piece)
    got = collected([*events, *parser.finish()])
    assert msgspec.json.encode(got["content"]) and "x>" in got["content"]
    assert arguments(got) == {}


def test_numbers_that_no_float_holds_are_none() -> None:
    block = m2(param("a", "1e999"), param("b", "-9e9999"), param("c", "1e99"), name="new")
    assert arguments(parse("m2", block)) == {"a": "1e999", "b": "-9e9999", "c": 1e99}


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_long_runs_of_anything_are_read_in_one_pass(arch: str) -> None:
    """Each of these would take hours if a push cost as much as what came before."""
    opening = {"m2": m2(param("s", "|")), "m3": m3(element("s", "|"))}[arch].partition("|")[0]
    untyped = opening.replace('"f"', '"new"')
    for begin in ("", opening, untyped, opening + f"</parameter>{NS}</s>"):
        for run in (" ", "\n", "<", "1", "]<]", '{"a":', "</parameter>", NS, "["):
            parser = DialectParser(DIALECTS[arch], Start.CONTENT, F)
            pieces = [begin, *([run * 4] * 6_000)]
            got = collected(events_of(parser, pieces))
            values = [json.loads(call["arguments"]) for call in got["calls"]]
            sent = got["content"] + "".join(str(v) for value in values for v in value.values())
            between_elements = begin.endswith("</s>") and run == NS  # marks there are no text
            assert between_elements or run.strip() in sent


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/properties/k"},
        {"anyOf": [{"$ref": "#/properties/k"}] * 30},
        {"allOf": [{"anyOf": [{"$ref": "#/properties/k"}, {"type": "null"}]}] * 9},
        {"type": [["string"]], "properties": 3, "items": [{}], "enum": "x", "anyOf": {}},
    ],
)
def test_schemas_that_lead_nowhere_say_nothing(schema: Any) -> None:
    odd = Tools({"f": {"type": "object", "properties": {"k": schema}}})
    got = parse("m3", m3(element("k", "a word")), tools=odd)
    assert arguments(got) == {"k": "a word"}


# --- latency ---


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_argument_bytes_leave_within_two_tokens(arch: str) -> None:
    value = "def f(x):\n    return x < 3 and x > 1  # 'so' \"it\" is\n" * 5
    call = call_of("f", {"o": {"a": value}} if arch == "m3" else {"s": value})
    tokens = tokens_of(arch, answer(arch, {"content": "", "tool_calls": [call]}))
    parser = DialectParser(DIALECTS[arch], Start.THINKING, F, marker_ids=real_ids(arch))
    read, sent, shown_after = "", "", []
    for token in tokens:
        read += token[1]
        sent += "".join(getattr(event, "text", "") for event in parser.push(*token))
        shown_after.append((read, sent))
    begin = shown_after[-1][0].index(value)
    checked = 0
    for (earlier, _), (_, sent) in zip(shown_after, shown_after[2:], strict=False):
        generated = earlier[begin:][: len(value)]
        if generated:
            assert json.dumps(generated, ensure_ascii=False)[1:-1] in sent
            checked += 1
    assert checked > 50
