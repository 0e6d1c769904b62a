"""One answer, told by three APIs, streamed and whole: the same thinking, words and calls.

What the model writes is scripted token by token, well formed and broken; what each API must say
of it is written down beside it, so that the APIs are judged by the same words.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx
import pytest
from in_process import MODEL, TOOL, InProcess, events_of

MARK = "]<]minimax[>["
MARKERS = ("think>", "tool_call", "invoke", MARK)
MODES = ("m2", "enabled", "disabled", "adaptive")
APIS = ("chat", "responses", "messages")


class Told(NamedTuple):
    """An answer, whichever API told it. ``end``: stop, calls or cut."""

    reasoning: str
    content: str
    calls: list[tuple[str, Any]]
    end: str


def call(mode: str, city: str) -> str:
    """One call as the model writes it, without the block around it."""
    if mode == "m2":
        return (
            f'<invoke name="get_weather">\n<parameter name="city">{city}</parameter>\n</invoke>\n'
        )
    return f'{MARK}<invoke name="get_weather">{MARK}<city>{city}{MARK}</city>{MARK}</invoke>\n'


def block(mode: str, *cities: str) -> str:
    calls = "".join(call(mode, city) for city in cities)
    if mode == "m2":
        return f"\n<minimax:tool_call>\n{calls}</minimax:tool_call>"
    return f"{MARK}<tool_call>\n{calls}{MARK}</tool_call>"


def thinking(mode: str, text: str) -> str:
    """``text`` as the beginning of an answer, in a mode that thinks."""
    match mode:
        case "m2":
            return f"{text}\n</think>\n\n"
        case "enabled":
            return f"{text}</mm:think>"
        case "adaptive":
            return f"<mm:think>{text}</mm:think>"
    return ""


def scenes(mode: str) -> dict[str, tuple[str, Told]]:
    """By name: what the model writes with tools at hand, and what that says."""
    think = thinking(mode, "Hm, so.")
    thought = "Hm, so." if think else ""
    one, two = ("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome\n"})
    whole = block(mode, "Oslo")
    cut = whole[: whole.index("Oslo") + 2]
    return {
        "words": (think + "Hi there.", Told(thought, "Hi there.", [], "stop")),
        "call": (think + whole, Told(thought, "", [one], "calls")),
        "words, calls": (
            think + "Let me see." + block(mode, "Oslo", "Rome\n"),
            Told(thought, "Let me see.", [one, two], "calls"),
        ),
        "call cut by eos": (
            think + "Look:" + cut,
            Told(thought, "Look:", [("get_weather", {"city": "Os"})], "cut"),
        ),
    }


def request_body(api: str, mode: str, *, choice: str, tools: bool, stream: bool) -> dict[str, Any]:
    asked = "What is the weather?"
    body: dict[str, Any] = {"model": MODEL, "stream": stream}
    switch = {} if mode == "m2" else {"thinking": {"type": mode}}
    body |= switch
    function = {"type": "function", **TOOL}
    named = {"type": "function", "name": TOOL["name"]}
    match api:
        case "chat":
            body["messages"] = [{"role": "user", "content": asked}]
            body["tools"] = [{"type": "function", "function": TOOL}]
            named_chat = {"type": "function", "function": {"name": TOOL["name"]}}
            body["tool_choice"] = named_chat if choice == "named" else choice
        case "responses":
            body |= {"input": asked, "tools": [function]}
            body["tool_choice"] = named if choice == "named" else choice
        case "messages":
            schema = {"name": TOOL["name"], "input_schema": TOOL["parameters"]}
            body |= {"max_tokens": 500, "tools": [schema]}
            body["messages"] = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
            kinds = {"auto": "auto", "required": "any", "named": "tool", "none": "none"}
            name = {"name": TOOL["name"]} if choice == "named" else {}
            body["tool_choice"] = {"type": kinds[choice], **name}
    if not tools:
        del body["tools"], body["tool_choice"]
    return body


PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def told(api: str, response: httpx.Response, *, stream: bool) -> Told:
    assert response.status_code == 200, response.text
    readers = {
        ("chat", False): chat_whole,
        ("chat", True): chat_streamed,
        ("responses", False): responses_whole,
        ("responses", True): responses_streamed,
        ("messages", False): messages_whole,
        ("messages", True): messages_streamed,
    }
    return readers[api, stream](response)


def chat_whole(response: httpx.Response) -> Told:
    (choice,) = response.json()["choices"]
    message = choice["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    calls = [
        (c["function"]["name"], json.loads(c["function"]["arguments"]))
        for c in message.get("tool_calls", ())
    ]
    ends = {"stop": "stop", "tool_calls": "calls", "length": "cut"}
    end = ends[choice["finish_reason"]]
    return Told(message.get("reasoning", ""), message["content"] or "", calls, end)


def chat_streamed(response: httpx.Response) -> Told:
    reasoning, content, end = "", "", ""
    calls: dict[int, list[str]] = {}
    for chunk in events_of(response):
        for choice in chunk["choices"]:
            delta = choice["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            reasoning += delta.get("reasoning", "")
            content += delta.get("content") or ""
            for piece in delta.get("tool_calls", ()):
                if piece["index"] not in calls:
                    assert (piece["type"], piece["function"]["arguments"]) == ("function", "")
                    assert piece["id"].startswith("call_")
                    calls[piece["index"]] = [piece["function"]["name"], ""]
                else:
                    assert set(piece) == {"index", "function"}
                    calls[piece["index"]][1] += piece["function"]["arguments"]
            if choice["finish_reason"]:
                ends = {"stop": "stop", "tool_calls": "calls", "length": "cut"}
                end = ends[choice["finish_reason"]]
    assert response.text.endswith("data: [DONE]\n\n")
    assert list(calls) == list(range(len(calls)))
    return Told(reasoning, content, [(n, json.loads(a)) for n, a in calls.values()], end)


def of_output(response: dict[str, Any]) -> Told:
    reasoning, content = "", ""
    calls: list[tuple[str, Any]] = []
    for item in response["output"]:
        match item["type"]:
            case "reasoning":
                reasoning += "".join(part["text"] for part in item["content"])
            case "message":
                content += "".join(part["text"] for part in item["content"])
            case "function_call":
                calls.append((item["name"], json.loads(item["arguments"])))
    cut = response["status"] == "incomplete"
    assert bool(response["incomplete_details"]) == cut
    return Told(reasoning, content, calls, "cut" if cut else "calls" if calls else "stop")


def responses_whole(response: httpx.Response) -> Told:
    return of_output(response.json())


def responses_streamed(response: httpx.Response) -> Told:
    events = events_of(response)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert events[-1]["type"] == f"response.{final['status']}"
    for index, item in enumerate(final["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1] == {
            **own[-1],
            "type": "response.output_item.done",
            "item": {**item, "status": own[-1]["item"]["status"]},
        }
        deltas = "".join(event["delta"] for event in own if "delta" in event)
        done = next(
            e for e in own if e["type"].endswith((".text.done", "_text.done", "arguments.done"))
        )
        assert deltas == done.get("text", done.get("arguments"))
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
    return of_output(final)


STOPS = {"end_turn": "stop", "tool_use": "calls", "max_tokens": "cut"}


def of_blocks(message: dict[str, Any]) -> Told:
    reasoning = "".join(b["thinking"] for b in message["content"] if b["type"] == "thinking")
    content = "".join(b["text"] for b in message["content"] if b["type"] == "text")
    calls = [(b["name"], b["input"]) for b in message["content"] if b["type"] == "tool_use"]
    return Told(reasoning, content, calls, STOPS[message["stop_reason"]])


def messages_whole(response: httpx.Response) -> Told:
    message = response.json()
    assert message["id"].startswith("msg_")
    return of_blocks(message)


def messages_streamed(response: httpx.Response) -> Told:
    start, ping, *events = events_of(response)
    assert (start["type"], ping) == ("message_start", {"type": "ping"})
    message = start["message"]
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block_, delta = message["content"][event["index"]], event["delta"]
                assert event["index"] == len(message["content"]) - 1
                for name, target in (
                    ("thinking", "thinking"),
                    ("text", "text"),
                    ("partial_json", "json"),
                ):
                    block_[target] = block_.get(target, "") + delta.get(name, "")
            case "message_delta":
                message |= event["delta"]
    assert events[-1] == {"type": "message_stop"}
    for block_ in message["content"]:
        if block_["type"] == "tool_use":
            assert block_["id"].startswith("toolu_")
            block_["input"] = json.loads(block_["json"] or "{}")
    return of_blocks(message)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", MODES)
def test_tools(mode: str, api: str, choice: str, stream: bool) -> None:
    for written, said in scenes(mode).values():
        for spelled, at_once in ((False, 1), (True, 1), (False, 7)):
            arch = "m2" if mode == "m2" else "m3"
            server = InProcess(arch, written, spelled=spelled, tokens_per_message=at_once)
            body = request_body(api, mode, choice=choice, tools=True, stream=stream)
            answer = told(api, server.post(PATHS[api], body), stream=stream)
            if choice == "named" and api == "chat" and said.end == "calls":
                said = said._replace(end="stop")
            assert answer == said
            assert not any(marker in answer.reasoning + answer.content for marker in MARKERS)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", MODES)
def test_no_tools(mode: str, api: str, stream: bool) -> None:
    think = thinking(mode, "  Is it?\nYes. ")
    written = think + "Yes.\n  It is. é"
    server = InProcess("m2" if mode == "m2" else "m3", written)
    body = request_body(api, mode, choice="auto", tools=False, stream=stream)
    answer = told(api, server.post(PATHS[api], body), stream=stream)
    thought = "  Is it?\nYes. " if think else ""
    assert answer == Told(thought, "Yes.\n  It is. é", [], "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", MODES)
def test_schema(mode: str, api: str, stream: bool) -> None:
    """The format is asked of the engine, holds for the content alone, and leaves calls possible."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    form = {"name": "place", "schema": schema, "strict": True}
    fields: dict[str, Any] = {
        "chat": {"response_format": {"type": "json_schema", "json_schema": form}},
        "responses": {"text": {"format": {"type": "json_schema", **form}}},
        "messages": {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }[api]
    think = thinking(mode, "Hm.")
    written = '{"city": "Oslo"}'
    for tools in (False, True):
        server = InProcess("m2" if mode == "m2" else "m3", think + written)
        body = request_body(api, mode, choice="auto", tools=tools, stream=stream)
        answer = told(api, server.post(PATHS[api], body | fields), stream=stream)
        assert answer == Told("Hm." if think else "", written, [], "stop")
        constraint = server.engine.requests[0].sampling.constraint
        assert constraint is not None
        thinks_first = bool(constraint.after) and "think" in constraint.after[0].ends_with
        assert thinks_first == (mode != "disabled")


@pytest.mark.parametrize("api", APIS)
def test_markup_without_tools_is_text(api: str) -> None:
    """Nothing may be called, so nothing is: what the model wrote is shown as it is."""
    written = "So: " + block("enabled", "Oslo")
    body = request_body(api, "disabled", choice="auto", tools=False, stream=False)
    answer = told(api, InProcess("m3", written).post(PATHS[api], body), stream=False)
    assert answer == Told("", written, [], "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("at_once", [1, 120])
def test_one_call_where_only_one_is_wanted(api: str, stream: bool, at_once: int) -> None:
    calls = block("enabled", "Oslo", "Rome", "Paris") + "And so on. " * 20
    server = InProcess("m3", calls, tokens_per_message=at_once)
    body = request_body(api, "disabled", choice="auto", tools=True, stream=stream)
    if api == "messages":
        body["tool_choice"]["disable_parallel_tool_use"] = True
    else:
        body["parallel_tool_calls"] = False
    answer = told(api, server.post(PATHS[api], body), stream=stream)
    assert answer == Told("", "", [("get_weather", {"city": "Oslo"})], "calls")
    assert server.engine.aborted, "the engine must not go on with calls that nobody gets"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("limit", [1, 3, 9, 16, 24])
def test_cut_by_length(api: str, stream: bool, limit: int) -> None:
    """However short, the stream is well formed and says that it was cut."""
    server = InProcess("m3", thinking("enabled", "Hm.") + "Let me see." + block("enabled", "Oslo"))
    body = request_body(api, "enabled", choice="auto", tools=True, stream=stream)
    name = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[api]
    answer = told(api, server.post(PATHS[api], {**body, name: limit}), stream=stream)
    assert answer.end == "cut"
    assert "Hm.".startswith(answer.reasoning)
    assert "Let me see.".startswith(answer.content)
