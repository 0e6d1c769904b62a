"""Whatever a model writes under a constraint keeps to the schema, once the front end has read it.

The oracle is jsonschema. The model knows only the mask.
"""

import json

import jsonschema
import pytest
from grammar_cases import ARGUMENTS, SCHEMAS, Writer, family
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mserve.core import RequestError
from mserve.matcher import Follower
from mserve.text import CallFinished, CallStarted, ContentDelta
from mserve.text.dialects import Start
from mserve.text.grammar import NamedTool, Tool, constraint_for

PLACES = [
    ("m2", Start.THINKING),
    ("m3", Start.THINKING),
    ("m3", Start.CONTENT),
    ("m3", Start.EITHER),
]
examples = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    phases=[Phase.generate],  # a failure is short as it is, and shrinking is slow
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def constrained(who, start, **asked):
    """``None`` where nothing can be written: that is refused, and so never sampled."""
    try:
        return constraint_for(who.dialect, who.marker_ids, start, **asked)
    except RequestError as error:
        assert error.code == "invalid_schema"
        return None


def written(who, constraint, seed, patience=60):
    try:
        return Writer(who, seed, patience).write(constraint)
    except RequestError as error:
        assert error.code == "invalid_schema"  # the checker would have refused it
        return None


def content_of(events):
    return "".join(event.text for event in events if isinstance(event, ContentDelta))


def calls_of(events):
    names = [event.name for event in events if isinstance(event, CallStarted)]
    ends = [event for event in events if isinstance(event, CallFinished)]
    assert len(names) == len(ends)
    return list(zip(names, ends, strict=True))


@pytest.mark.parametrize(("name", "start"), PLACES)
@examples
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 30))
def test_answers_keep_to_their_schema(name, start, schema, seed):
    who = family(name)
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    found = constrained(who, start, response_format=asked)
    token_ids = found and written(who, found.constraint, seed)
    if not token_ids:
        return
    events = who.events(token_ids, start)
    jsonschema.validate(json.loads(content_of(events)), schema)


@pytest.mark.parametrize("further", [True, {"type": "integer"}, {"type": ["null", "string"]}])
@pytest.mark.parametrize("declared", [{}, {"properties": {"a": {"type": "boolean"}}}])
def test_parameters_beyond_the_declared_ones_keep_to_the_schema(further, declared):
    who = family("m2")
    arguments = {"type": "object", "additionalProperties": further, **declared}
    tools = [Tool("f", arguments)]
    found = constrained(who, Start.CONTENT, tools=tools, tool_choice="required")
    keys = set()
    for seed in range(40):
        for _, end in calls_of(
            who.events(written(who, found.constraint, seed), Start.CONTENT, tools)
        ):
            jsonschema.validate(json.loads(end.arguments), arguments)
            keys |= set(json.loads(end.arguments))
    assert keys - {"a"}


@pytest.mark.parametrize(("name", "start"), PLACES)
@examples
@given(arguments=ARGUMENTS, seed=st.integers(0, 1 << 30), choice=st.integers(0, 2))
def test_calls_keep_to_their_schema(name, start, arguments, seed, choice):
    who = family(name)
    tools = [Tool("get-it", arguments), Tool("noop")]
    tool_choice = ["required", NamedTool("get-it"), NamedTool("noop")][choice]
    found = constrained(
        who, start, tools=tools, tool_choice=tool_choice, parallel_tool_calls=seed % 2 == 0
    )
    token_ids = found and written(who, found.constraint, seed)
    if not token_ids:
        return
    events = who.events(token_ids, start, tools)
    calls = calls_of(events)
    assert calls and (seed % 2 == 0 or len(calls) == 1)
    assert not content_of(events).strip()
    for called, end in calls:
        assert not end.incomplete
        # A JSON string may spell a closing tag; that it was told apart is worth a note.
        assert all(problem.endswith(" holds </parameter>") for problem in end.problems)
        if isinstance(tool_choice, NamedTool):
            assert called == tool_choice.name
        values = json.loads(end.arguments)
        jsonschema.validate(values, arguments if called == "get-it" else {"maxProperties": 0})


STRING_OR_LIST = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array"}]}
LIST_OR_OBJECT = {
    "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "properties": {"k": {}}}]
}
SMALL_OR_STRING = {"anyOf": [{"type": "integer", "maximum": 2}, {"type": "string"}]}


def can_write(who, schema, value):
    """Whether a call can have ``value``, markup included, as its one argument."""
    tools = [Tool("f", {"type": "object", "properties": {"a": schema}, "required": ["a"]})]
    found = constrained(who, Start.CONTENT, tools=tools, tool_choice="required")
    dialect, mark = who.dialect, who.dialect.mark
    opening, closing = ("<a>", "</a>") if mark else ('\n<parameter name="a">', "</parameter>\n")
    text = (
        f'{dialect.tag(dialect.block_open)}\n{mark}<invoke name="f">{mark}{opening}{value}'
        f"{mark}{closing}{mark}</invoke>\n{dialect.tag(dialect.block_close)}"
    )
    follower = Follower(found.constraint, who.vocabulary)
    for token_id in [*who.encode(text), who.eos_id]:
        try:
            follower.accept(token_id)
        except RequestError:
            return False
    return True


@pytest.mark.parametrize(
    ("name", "schema", "value", "expected"),
    [
        (name, *case)
        for name in ("m2", "m3")
        for case in (
            ({"type": ["string", "integer"]}, "12", True),
            (SMALL_OR_STRING, "2", True),
            (SMALL_OR_STRING, "12", False),  # would be read as the integer
            (SMALL_OR_STRING, "a 12", True),
            ({"type": "string"}, " \n", True),
            ({"type": "string"}, "", True),
            ({"type": "integer"}, " 1", False),
            ({"type": "integer"}, "-" + "9" * 100, True),
            ({"type": "integer"}, "9" * 400, False),  # would be read as a string
            ({"type": "number"}, "1.7976931348623157e99", True),
            ({"type": "number"}, "1e400", False),
            ({"type": "number", "minimum": 0}, "0.5", True),
            ({"type": ["number", "null"]}, "null", True),
            ({"enum": ["1", 1, None]}, "null", True),
            ({"type": ["string", "null"]}, "anything", True),
            ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "aa", True),
            ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "aaa", False),
            (
                {"type": "object", "additionalProperties": {"type": "integer"}},
                '{\n  "k": 1\n}',
                True,
            ),
            ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"k": "v"}', False),
        )
    ]
    + [
        ("m2", {"type": "string"}, "a</parameter>b", False),
        ("m3", STRING_OR_LIST, "", False),  # would be read as a string that is too short
        ("m3", STRING_OR_LIST, "]<]minimax[>[<item>x]<]minimax[>[</item>", True),
        ("m3", {"type": "array"}, "", True),
        ("m3", LIST_OR_OBJECT, "", False),  # would be read as a list that is too short
        ("m3", LIST_OR_OBJECT, "]<]minimax[>[<k>x]<]minimax[>[</k>", True),
    ],
)
def test_values_are_written_only_as_they_are_read(name, schema, value, expected):
    assert can_write(family(name), schema, value) is expected
