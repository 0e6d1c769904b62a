"""Chat completions: tools, thinking and their many spellings, over a scripted model."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from in_process import MODEL, TOOL, InProcess, events_of

from mserve.text import JinjaChatTemplate

PATH = "/v1/chat/completions"
ASKED: list[Any] = [{"role": "user", "content": "What is the weather?"}]
TOOLS = [{"type": "function", "function": TOOL}]
MARK = "]<]minimax[>["
CALL = (
    f'{MARK}<tool_call>\n{MARK}<invoke name="get_weather">{MARK}<city>Oslo{MARK}</city>'
    f"{MARK}</invoke>\n{MARK}</tool_call>"
)


def post(server: InProcess, **fields: Any) -> Any:
    response = server.post(PATH, {"messages": ASKED, **fields})
    assert response.status_code == 200, response.text
    return response


def error(server: InProcess, **fields: Any) -> Any:
    response = server.post(PATH, {"messages": ASKED, **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_arguments_leave_while_they_are_generated() -> None:
    text = "x" * 300
    call = CALL.replace("Oslo", " ".join(text))
    events = events_of(post(InProcess("m3", call), tools=TOOLS, stream=True))
    pieces = [
        piece["function"]["arguments"]
        for event in events
        for choice in event["choices"]
        for piece in choice["delta"].get("tool_calls", ())
    ]
    assert len(pieces) > 100
    assert json.loads("".join(pieces)) == {"city": " ".join(text)}


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("both", {"reasoning", "reasoning_content"}),
        ("reasoning", {"reasoning"}),
        ("reasoning_content", {"reasoning_content"}),
    ],
)
def test_the_name_of_thinking_can_be_chosen(field: str, names: set[str]) -> None:
    for stream in (False, True):
        server = InProcess("m2", "Hm.\n</think>\n\nYes.")
        server.config = {"reasoning_field": field}
        response = post(server, stream=stream)
        if stream:
            deltas = [c["delta"] for e in events_of(response) for c in e["choices"]]
            told = {name for delta in deltas for name in delta} - {"role", "content"}
            assert all("content" in delta for delta in deltas)
        else:
            told = set(response.json()["choices"][0]["message"]) - {"role", "content"}
        assert told == names


def test_thinking_can_be_left_out() -> None:
    server = InProcess("m2", "Hm.\n</think>\n\nYes.")
    message = post(server, include_reasoning=False).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes."}


def test_usage_tells_cached_and_thinking_tokens() -> None:
    server = InProcess("m2", "Hm, well.\n</think>\n\nYes.", num_cached=5)
    usage = post(server).json()["usage"]
    encode = server.text.tokenizer.encode
    thought = encode("Hm, well.\n</think>", add_special_tokens=False)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(thought)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5
    assert usage["completion_tokens"] == len(server.engine.reply) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "Hm.\n so"},
        {"reasoning": "Hm.\n so"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm.\n so"}]},
        {"content": "<mm:think>Hm.\n so</mm:think>Look."},
        {
            "content": [
                {"type": "thinking", "thinking": "Hm.\n so"},
                {"type": "text", "text": "Look."},
            ]
        },
    ],
    ids=["reasoning_content", "reasoning", "details", "inline", "blocks"],
)
def test_thinking_comes_back_byte_for_byte(thought: dict[str, Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather"}}
    call["function"]["arguments"] = '{"city": "Oslo"}'
    messages = [
        *ASKED,
        {"role": "assistant", "content": "Look.", "tool_calls": [call], **thought},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    server = InProcess("m3", "Fine.")
    post(server, messages=messages, tools=TOOLS)
    assert f"<mm:think>Hm.\n so</mm:think>Look.{CALL}[e~[" in server.prompt
    assert "<response>rain</response>" in server.prompt


def test_broken_arguments_that_come_back_do_not_end_the_session() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather"}}
    call["function"]["arguments"] = '{"city": "Os'
    messages = [*ASKED, {"role": "assistant", "tool_calls": [call]}]
    server = InProcess("m3", "Fine.")
    post(server, messages=messages, tools=TOOLS)
    assert f"{MARK}<city>Os{MARK}</city>" in server.prompt


@pytest.mark.parametrize("call_id", [{}, ["c"], 7, None])
def test_odd_ids_of_calls_that_come_back_are_none(call_id: Any) -> None:
    call = {"id": call_id, "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [*ASKED, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": call_id, "content": "rain"})
    server = InProcess("m3", "Fine.")
    post(server, messages=messages, tools=TOOLS)
    assert CALL in server.prompt


LONG = "a word " * 5000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": LONG}]},
        {"messages": [*ASKED, {"role": "assistant", "content": "", "reasoning": LONG}, *ASKED]},
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "function_call": {"name": "f", "arguments": f'{{"a":"{LONG}'},
                },
            ]
        },
        {"tools": [{"type": "function", "function": {**TOOL, "description": LONG}}]},
        {},
    ],
    ids=["content", "reasoning", "arguments", "tools", "nothing"],
)
def test_long_requests_do_not_hold_up_streams(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is long about them, they are decoded and rendered in another thread."""
    threads: list[threading.Thread] = []
    render = JinjaChatTemplate.render

    def noted(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.current_thread())
        return render(*args, **kwargs)

    monkeypatch.setattr(JinjaChatTemplate, "render", noted)
    post(InProcess("m3", "Fine.", max_model_len=100_000), **fields)
    assert [thread is threading.main_thread() for thread in threads] == [not fields]


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("depth", [64, 250, 600])
def test_depth_is_refused_or_rendered(arch: str, depth: int) -> None:
    """As far as a call can be nested it can be sent back; beyond, nothing breaks."""
    nested = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "c1", "function": {"name": "get_weather", "arguments": nested}}
    tool = {"type": "function", "function": {"name": "f", "parameters": "HERE"}}
    for fields in (
        {"messages": [*ASKED, {"role": "assistant", "tool_calls": [call]}]},
        {"messages": ASKED, "tools": [tool]},
    ):
        body = json.dumps(fields).replace('"HERE"', nested)

        async def ask(client: httpx.AsyncClient, body: str = body) -> httpx.Response:
            headers = {"content-type": "application/json"}
            return await client.post(PATH, content=body, headers=headers)

        response = InProcess(arch, "Fine.").ask(ask)
        assert response.status_code in ((200,) if depth == 64 else (200, 400)), response.text


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, "]~b]ai\n"),
        ({"thinking": {"type": "disabled"}}, "]~b]ai\n</mm:think>"),
        ({"thinking": {"type": "enabled"}}, "]~b]ai\n<mm:think>"),
        ({"enable_thinking": False}, "]~b]ai\n</mm:think>"),
        ({"reasoning_effort": "none"}, "]~b]ai\n</mm:think>"),
        ({"reasoning": {"effort": "none"}}, "]~b]ai\n</mm:think>"),
        ({"chat_template_kwargs": {"thinking_mode": "enabled"}}, "]~b]ai\n<mm:think>"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "]~b]ai\n</mm:think>"),
    ],
    ids=str,
)
def test_every_switch_of_thinking_reaches_m3(fields: dict[str, Any], ending: str) -> None:
    server = InProcess("m3", "Yes.")
    response = post(server, **fields)
    assert server.prompt.endswith(ending)
    assert "x-mserve-warning" not in response.headers
    assert "x-mserve-ignored" not in response.headers


def test_what_a_model_cannot_do_is_said() -> None:
    response = post(InProcess("m2", "Hm.\n</think>\n\nYes."), thinking={"type": "disabled"})
    assert "cannot be disabled" in response.headers["x-mserve-warning"]
    assert response.json()["choices"][0]["message"]["reasoning"] == "Hm."


def test_a_thinking_budget_reaches_the_engine() -> None:
    for arch, is_open in (("m2", True), ("m3", False)):
        server = InProcess(arch, "Yes.")
        post(server, thinking_token_budget=7)
        budget = server.engine.requests[0].sampling.thinking_budget
        assert budget is not None
        names = {
            i: server.text.tokenizer.token_bytes(i).decode()
            for i in (budget.open_id, budget.close_id)
        }
        dialect = server.text.dialect
        assert dialect is not None
        assert names == {budget.open_id: dialect.think_open, budget.close_id: dialect.think_close}
        assert (budget.max_tokens, budget.is_open) == (7, is_open)


def test_tools_that_nobody_here_runs_are_passed_over() -> None:
    tools = [{"type": "web_search"}, *TOOLS, {"type": "custom", "custom": {"name": "x"}}]
    server = InProcess("m3", "Yes.")
    response = post(server, tools=tools)
    assert response.headers["x-mserve-ignored"] == "tools.0.web_search, tools.2.custom"
    assert '"name": "get_weather"' in server.prompt


def test_no_choice_of_tool_keeps_the_prompt_and_forbids_the_call() -> None:
    server = InProcess("m3", "Yes.")
    post(server, tools=TOOLS)
    post(server, tools=TOOLS, tool_choice="none")
    free, bound = server.engine.requests
    assert free.prompt_token_ids == bound.prompt_token_ids
    assert free.sampling.constraint is None
    assert bound.sampling.constraint is not None


def test_two_thousand_tools_may_be_called() -> None:
    tools = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(2000)]
    call = CALL.replace("get_weather", "f1999")
    server = InProcess("m3", call, max_model_len=1_000_000)
    (choice,) = post(server, tools=tools).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "f1999"
    post(server, tools=tools, tool_choice="none")
    named = {"type": "function", "function": {"name": "f7"}}
    post(server, tools=tools, tool_choice=named)
    assert error(server, tools=tools, tool_choice="required")["param"] == "tools"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
        ),
        ({"tools": [*TOOLS, *TOOLS]}, "tools[1]"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a" * 257}}]}, "tools[0]"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking_token_budget": -7}, "thinking_token_budget"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    refusal = error(InProcess("m3", "Yes."), **fields)
    assert refusal["param"] == param
    assert refusal["type"] == "invalid_request_error"


def test_choices_have_their_own_parsers() -> None:
    server = InProcess("m3", "<mm:think>Hm.</mm:think>Yes." + CALL)
    for stream in (False, True):
        response = post(server, n=3, tools=TOOLS, stream=stream)
        if stream:
            chunks = [c for e in events_of(response) for c in e["choices"]]
            ends = {c["index"]: c["finish_reason"] for c in chunks if c["finish_reason"]}
            assert ends == dict.fromkeys(range(3), "tool_calls")
            starts = [c for c in chunks for p in c["delta"].get("tool_calls", ()) if "id" in p]
            assert sorted(c["index"] for c in starts) == [0, 1, 2]
        else:
            choices = response.json()["choices"]
            assert [c["message"]["reasoning"] for c in choices] == ["Hm."] * 3
            ids = {c["message"]["tool_calls"][0]["id"] for c in choices}
            assert len(ids) == 3


def test_stop_strings_see_what_is_written() -> None:
    server = InProcess("m3", "<mm:think>Hm.</mm:think>One. Two. Three.")
    (choice,) = post(server, stop=["Three"], model=MODEL).json()["choices"]
    assert choice["message"]["content"] == "One. Two. "
    assert choice["message"]["reasoning"] == "Hm."
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "Three")


def test_a_stop_string_that_begins_in_a_marker_does_not_break_it() -> None:
    """The end of the marker is held back, as it could become the stop string."""
    server = InProcess("m3", "<mm:think>Hm.</mm:think>Yes.")
    message = post(server, stop=[">never"]).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")


def test_an_answer_in_a_loop_ends_where_that_is_asked_for() -> None:
    server = InProcess("m3", "</mm:think>" + "again and " * 100)
    server.config = {"repetition_tokens": 64}
    (choice,) = post(server).json()["choices"]
    assert choice["finish_reason"] == "repetition"
    assert 16 <= len(choice["message"]["content"].split()) < 100
    server.config = {}
    assert post(server).json()["choices"][0]["finish_reason"] == "stop"
