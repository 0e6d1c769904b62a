"""What a chat template renders comes back from the parser, however the text is cut."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from dialect_cases import (
    DIALECTS,
    answer,
    call_of,
    canonical,
    expected,
    real_ids,
    tokenizer,
    tools,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.text import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Detokenizer,
    DialectParser,
    Event,
    Finished,
    ReasoningDelta,
    Start,
    Tools,
)

Token = tuple[int, str]
TEXTS = st.lists(
    st.sampled_from(["Hi", " ", "\n", "<", "</", "]<]", "a<b", "ё", "<invoke", "\n\n", "."]),
    max_size=4,
).map("".join)


def tokens_of(arch: str, text: str) -> list[Token]:
    detokenizer = Detokenizer(tokenizer(arch))
    ids = tokenizer(arch).encode(text, add_special_tokens=False)
    return [(token_id, detokenizer.push(token_id)) for token_id in ids]


def events_of(parser: DialectParser, pieces: Iterable[str | Token]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.push_text(piece) if isinstance(piece, str) else parser.push(*piece)
    return [*events, *parser.finish()]


def collected(events: Sequence[Event]) -> dict[str, Any]:
    """Everything by kind; checks on the way that the events keep their promises."""
    reasoning, content = "", ""
    calls: list[dict[str, Any]] = []
    open_call = False
    for event in events:
        match event:
            case ReasoningDelta(text):
                assert text and not open_call
                reasoning += text
            case ContentDelta(text):
                assert text and not open_call
                content += text
            case CallStarted(index, name, call_id):
                assert index == len(calls) and not open_call
                assert call_id not in {call["id"] for call in calls}
                calls.append({"name": name, "id": call_id, "arguments": ""})
                open_call = True
            case ArgumentsDelta(index, text):
                assert text and open_call and index == len(calls) - 1
                calls[-1]["arguments"] += text
            case CallFinished(index, arguments):
                assert open_call and index == len(calls) - 1
                assert arguments == calls[-1]["arguments"]
                assert isinstance(json.loads(arguments), dict)
                calls[-1]["finished"] = event
                open_call = False
    assert [event for event in events if isinstance(event, Finished)] == [events[-1]]
    assert not open_call
    return {"reasoning": reasoning, "content": content, "calls": calls}


def random_cuts(text: str, seed: int) -> list[str]:
    source = random.Random(seed)
    borders = sorted({0, len(text), *(source.randrange(len(text) + 1) for _ in range(12))})
    return [text[start:end] for start, end in itertools.pairwise(borders)]


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(derandomize=True, max_examples=1250, deadline=None)
@given(st.lists(tools(), min_size=1, max_size=2), TEXTS, TEXTS, st.integers(0, 2**32))
def test_round_trip(
    arch: str, made: list[tuple[Any, Any]], reasoning: str, content: str, seed: int
) -> None:
    """Four feedings of each: 10,000 cases. Alone or in parallel calls, with and without words."""
    reasoning = reasoning.strip() or "why"
    content = content if content.strip() else ""
    calls = [call_of(f"tool {number}", value) for number, (_, value) in enumerate(made)]
    text = answer(arch, {"content": content, "reasoning_content": reasoning, "tool_calls": calls})
    schemas = Tools({f"tool {number}": schema for number, (schema, _) in enumerate(made)})
    tokens = tokens_of(arch, text)
    feedings: list[tuple[list[Any], dict[int, str]]] = [
        ([text], {}),
        (list(text), {}),
        (random_cuts(text, seed), {}),
        (tokens, real_ids(arch)),
    ]
    for pieces, ids in feedings:
        parser = DialectParser(DIALECTS[arch], Start.THINKING, schemas, marker_ids=ids)
        got = collected(events_of(parser, pieces))
        assert got["reasoning"] == reasoning
        assert got["content"] == content
        assert [call["name"] for call in got["calls"]] == [c["function"]["name"] for c in calls]
        for call, (_, value) in zip(got["calls"], made, strict=True):
            assert canonical(json.loads(call["arguments"])) == canonical(expected(arch, value))
            assert not call["finished"].incomplete
