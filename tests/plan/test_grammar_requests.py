"""What requests may ask for, what is refused and how, and the process that tries grammars."""

import asyncio
import json
import os
import signal

import psutil
import pytest
from grammar_cases import Writer, family

from mserve.core import MAX_GRAMMAR_CHARS, Constraint, RequestError, SamplingParams
from mserve.text.dialects import Start
from mserve.text.grammar import GrammarChecker, NamedTool, Tool, constraint_for
from mserve.text.grammar.schema import clean

GRAMMAR = {"grammar": 'root ::= "yes" | "no" [0-9]+'}


def asked(start=Start.CONTENT, family_name="m3", **fields):
    who = family(family_name)
    return constraint_for(who.dialect, who.marker_ids, start, **fields)


def nested(levels):
    schema = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def tool(schema):
    return {"tools": [Tool("f", schema)], "tool_choice": "required"}


REFUSED = {
    "unclosed regex": ({"regex": "("}, "regex"),
    "look-around": ({"regex": "(?=a)b"}, "regex"),
    "regex of nested counts": ({"regex": "((a{1,1000}){1,1000}){1,1000}"}, "regex"),
    "grammar of nested counts": ({"grammar": 'start: ("a"{1,9999}){1,9999}'}, "grammar"),
    "long regex": ({"regex": "a" * 70_000}, "regex"),
    "unknown type": ({"json": {"type": "frob"}}, "json"),
    "reference loop": ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}}, "json"),
    "dangling reference": ({"json": {"$ref": "#/nope"}}, "json"),
    "remote reference": ({"json": {"$ref": "http://example.org/schema"}}, "json"),
    "200 levels": ({"json": nested(200)}, "json"),
    "5 MB": ({"json": {"description": "x" * 5_000_000}}, "json"),
    "nothing fits": ({"json": False}, "json"),
    "empty range": ({"json": {"type": "integer", "minimum": 5, "maximum": 2}}, "json"),
    "pattern": ({"json": {"type": "string", "pattern": "("}}, "json"),
    "schema as broken text": ({"json": "{"}, "json"),
    "unclosed group": ({"grammar": "root ::= ("}, "grammar"),
    "deep grammar": ({"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000}, "grammar"),
    "deep EBNF": ({"grammar": "root ::= " + "(" * 9000}, "grammar"),
    "unknown rule": ({"grammar": "start: nope"}, "grammar"),
    "tool pattern": (tool({"properties": {"a": {"type": "string", "pattern": "("}}}), "tools"),
    "tool schema": (tool({"type": 5}), "tools.0.parameters"),
    "no call fits": (tool({"properties": {"a": {"enum": []}}}), "tools.0.parameters"),
}


@pytest.fixture(scope="module")
def checker():
    checker = GrammarChecker(family("m3").facts)
    yield checker
    checker.close()


def tried(checker, fields):
    found = asked(**fields)
    asyncio.run(checker.check(found))
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_and_named(checker, case):
    fields, param = REFUSED[case]
    if "tools" not in fields:
        fields, param = {"structured_outputs": fields}, f"structured_outputs.{param}"
    with pytest.raises(RequestError) as caught:
        tried(checker, fields)
    assert caught.value.code == "invalid_schema"
    assert caught.value.param == param
    assert len(caught.value.message) < 300 and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [Tool("f")], "tool_choice": NamedTool("g")}, "tool_choice"),
        ({"tools": [Tool("f"), Tool("f")]}, "tools[1]"),
        ({"tools": [Tool("a\nb")]}, "tools[0]"),
        ({"tools": [Tool(f"f{n}") for n in range(513)], "tool_choice": "required"}, "tools"),
    ],
)
def test_fields_that_make_no_sense_are_named(fields, param):
    with pytest.raises(RequestError) as caught:
        asked(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {"json_object": False, "regex": None}},
        {"tools": [Tool("f", {"type": "object"})]},
    ],
)
def test_what_asks_for_nothing_is_free(fields):
    assert asked(**fields) is None


@pytest.mark.parametrize("fields", [
    {"structured_outputs": {"regex": "(.*a.{20}){20}"}},
    {"structured_outputs": {"grammar": 'start: a\na: a a | "x" |'}},
    {"structured_outputs": {"json": {"enum": [f"x{n}" for n in range(9000)]}}},
    {"structured_outputs": GRAMMAR},
    {"structured_outputs": {"json": '{"type": "object"}', "disable_any_whitespace": True}},
    {"response_format": {"type": "json_object"}},
])  # fmt: skip
def test_what_is_large_but_bounded_is_followed(checker, fields):
    assert tried(checker, fields).constraint.grammar


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"regex": r"^\d{3}-[a-f]+$"}, lambda text: text[3] == "-" and text[:3].isdigit()),
        ({"choice": ["left", 'le"ft\n', "right"]}, ["left", 'le"ft\n', "right"].__contains__),
        (GRAMMAR, lambda text: text == "yes" or (text[:2] == "no" and text[2:].isdigit())),
        ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
        (
            {"json": {"type": "array", "items": {"type": "null"}}, "disable_any_whitespace": True},
            lambda text: " " not in text and set(json.loads(text)) <= {None},
        ),
    ],
)
def test_answers_take_the_form_that_was_asked_for(fields, fits):
    who = family("m3")
    found = asked(structured_outputs=fields)
    for seed in range(15):
        token_ids = Writer(who, seed, patience=12).write(found.constraint)
        assert fits(who.text(token_ids[:-1]))


def test_a_schema_and_tools_leave_the_model_the_choice():
    who = family("m2")
    found = asked(
        Start.CONTENT,
        "m2",
        response_format={"type": "json_object"},
        tools=[Tool("f")],
    )
    answers = [who.text(Writer(who, seed).write(found.constraint)).lstrip() for seed in range(30)]
    assert {answer[0] for answer in answers} == {"{", "<"}


def test_keywords_without_effect_are_passed_over_and_told():
    schema = {
        "title": "t",
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string", "format": "frob", "not": {"const": "x"}},
    }
    found = asked(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert found.passed_over == tuple(
        f"response_format.{k}" for k in ("format", "not", "uniqueItems")
    )
    cleaned = clean(schema, "p").schema
    assert cleaned == {"type": "array", "items": {"type": "string"}}
    assert clean({"const": None, "nullable": True}, "p").schema == {
        "anyOf": [{"const": None}, {"type": "null"}]
    }


def test_many_tools_are_followed_and_too_many_are_not(checker):
    properties = {f"key{n}": {"type": ["string", "integer"]} for n in range(100)}
    tools = [Tool(f"tool_{n}", {"properties": properties if n == 0 else {}}) for n in range(500)]
    tried(checker, {"tools": tools, "tool_choice": "required"})
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}}
    with pytest.raises(RequestError, match="cannot be used"):
        tried(checker, {"structured_outputs": {"json": wide}})


def test_recursive_tools_are_written_out_down_to_a_bound(checker):
    tree = {
        "$defs": {
            "t": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
            }
        },
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/t"}},
        "required": ["root"],
    }
    tried(checker, tool(tree))
    endless = {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
    }
    with pytest.raises(RequestError, match="no call of f"):
        asked(**tool(endless))


def test_a_worker_that_hangs_is_killed_and_replaced():
    """Stopped, a worker answers never, as one would that computes for ever."""

    async def scenario():
        others = set(psutil.Process().children())
        checker = GrammarChecker(family("m3").facts, timeout_s=2.0)
        try:
            await checker.check(asked(structured_outputs={"regex": "a"}))
            (worker,) = set(psutil.Process().children()) - others
            os.kill(worker.pid, signal.SIGSTOP)
            slow, quick = (asked(structured_outputs={"regex": regex}) for regex in "bc")
            checks = [checker.check(slow), checker.check(quick)]
            outcomes = await asyncio.gather(*checks, return_exceptions=True)
            refused = [outcome for outcome in outcomes if outcome is not None]
            assert [error.code for error in refused] == ["invalid_schema"]
            assert "too much time" in refused[0].message
            assert not worker.is_running()
            await checker.check(asked(structured_outputs={"regex": "d"}))
        finally:
            checker.close()

    asyncio.run(scenario())


def test_what_was_tried_is_not_tried_again():
    async def scenario():
        checker = GrammarChecker(family("m3").facts, timeout_s=5.0)
        found = asked(structured_outputs={"regex": "a"})
        await checker.check(found)
        checker.close()
        await checker.check(found)

    asyncio.run(scenario())


def test_without_a_tokenizer_nothing_can_be_followed():
    with pytest.raises(RequestError) as caught:
        asyncio.run(GrammarChecker(None).check(asked(structured_outputs={"regex": "a"})))
    assert caught.value.code == "no_tokenizer"


@pytest.mark.parametrize(("field", "value"), [("min_tokens", 1), ("ignore_eos", True)])
def test_the_grammar_alone_says_where_an_answer_ends(field, value):
    sampling = SamplingParams(constraint=Constraint(grammar="start: "), **{field: value})
    with pytest.raises(RequestError) as caught:
        sampling.validate(100)
    assert caught.value.param == field
    with pytest.raises(RequestError, match="too large"):
        SamplingParams(constraint=Constraint(grammar=" " * (MAX_GRAMMAR_CHARS + 1))).validate(100)
