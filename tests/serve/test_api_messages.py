"""The Messages API: blocks, signatures, pings, limits and errors."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from in_process import MODEL, TOOL, InProcess, events_of

from mserve.server import stream
from mserve.server.replay import signature_of

PATH = "/v1/messages"
ASKED: list[Any] = [{"role": "user", "content": "What is the weather?"}]
TOOLS = [{"name": TOOL["name"], "input_schema": TOOL["parameters"]}]
THINKS = "<mm:think>Hm.\n so</mm:think>"
MARK = "]<]minimax[>["
CALL = (
    f'{MARK}<tool_call>\n{MARK}<invoke name="get_weather">{MARK}<city>Oslo{MARK}</city>'
    f"{MARK}</invoke>\n{MARK}</tool_call>"
)


def post(server: InProcess, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 500, "messages": ASKED, **fields}
    response = server.post(PATH, body)
    assert response.status_code == 200, response.text
    return response


def test_the_form_of_an_answer() -> None:
    server = InProcess("m3", THINKS + "Look." + CALL, num_cached=30)
    message = post(server, tools=TOOLS, thinking={"type": "adaptive"}).json()
    thinking, text, call = message["content"]
    assert thinking == {
        "type": "thinking",
        "thinking": "Hm.\n so",
        "signature": signature_of("Hm.\n so"),
    }
    assert text == {"type": "text", "text": "Look."}
    assert call.pop("id").startswith("toolu_")
    assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Oslo"}}
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    usage = message["usage"]
    num_prompt = len(server.engine.requests[0].prompt_token_ids)
    assert usage["cache_read_input_tokens"] == 30
    assert usage["input_tokens"] == num_prompt - 30
    assert usage["output_tokens"] == len(server.engine.reply) + 1


def test_a_stream_tells_the_final_usage_in_its_last_delta() -> None:
    server = InProcess("m3", "Yes.", num_cached=30)
    whole = post(server).json()
    start, *_, delta, stop = events_of(post(server, stream=True))
    assert delta["usage"] == whole["usage"]
    assert start["message"]["usage"]["output_tokens"] == 0
    assert stop == {"type": "message_stop"}


def test_silence_is_filled_with_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_S", 0.01)
    events = events_of(post(InProcess("m3", "Yes.", pause_s=0.1), stream=True))
    assert sum(event["type"] == "ping" for event in events) > 2
    assert events[-1]["type"] == "message_stop"


def test_blocks_come_back_as_they_were() -> None:
    assistant = [
        {"type": "thinking", "thinking": "Hm.\n so", "signature": signature_of("Hm.\n so")},
        {"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
    ]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": False}
    user = [
        {**result, "content": [{"type": "text", "text": "rain"}]},
        {"type": "text", "text": "And tomorrow?"},
    ]
    server = InProcess("m3", "Sun.")
    messages = [*ASKED, {"role": "assistant", "content": assistant}]
    response = post(server, messages=[*messages, {"role": "user", "content": user}], tools=TOOLS)
    assert f"]~b]ai\n{THINKS}Look.{CALL}[e~[" in server.prompt
    assert server.prompt.index("<response>rain</response>") < server.prompt.index("And tomorrow?")
    assert "x-mserve-ignored" not in response.headers


def test_a_changed_thinking_block_is_noticed() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": signature_of("Hm. ")}
    foreign = {"type": "thinking", "thinking": "Ah.", "signature": "EqQBCgIYAhIM"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    blocks = [thinking, foreign, hidden, {"type": "text", "text": "Hi."}]
    messages = [*ASKED, {"role": "assistant", "content": blocks}, *ASKED]
    response = post(InProcess("m3", "Yes."), messages=messages)
    assert response.headers["x-mserve-ignored"] == (
        "messages[1].content[0].signature, messages[1].content[2].redacted_thinking"
    )


def test_a_claude_code_like_request() -> None:
    """Betas, fields and tools that we do not know, and system text in every place."""
    body = {
        "model": MODEL,
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=a1b2;"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [*ASKED, {"role": "system", "content": "Stay calm."}],
        "tools": [*TOOLS, {"type": "web_search_20250305", "name": "web_search"}],
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": []},
        "output_config": {"effort": "medium"},
        "metadata": {"user_id": "u"},
        "stream": True,
    }
    server = InProcess("m3", THINKS + "Fine.")
    headers = {"anthropic-beta": "a-1,b-2", "anthropic-version": "2023-06-01"}
    response = server.post(PATH + "?beta=true", body, headers=headers)
    assert response.status_code == 200, response.text
    ignored = response.headers["x-mserve-ignored"].split(", ")
    assert ignored == ["context_management", "metadata", "tools.1.web_search_20250305"]
    assert "billing" not in server.prompt
    assert "You are an agent." in server.prompt
    assert "Stay calm." in server.prompt
    assert events_of(response)[-2]["delta"]["stop_reason"] == "end_turn"
    assert response.headers["request-id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, "]~b]ai\n</mm:think>"),
        ({"thinking": {"type": "disabled"}}, "]~b]ai\n</mm:think>"),
        ({"thinking": {"type": "adaptive"}}, "]~b]ai\n"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "]~b]ai\n<mm:think>"),
    ],
    ids=str,
)
def test_thinking_is_off_until_it_is_asked_for(fields: dict[str, Any], ending: str) -> None:
    server = InProcess("m3", "Yes.")
    post(server, **fields)
    assert server.prompt.endswith(ending)
    budget = server.engine.requests[0].sampling.thinking_budget
    assert (budget is None) == ("budget_tokens" not in str(fields))


def test_how_answers_end() -> None:
    server = InProcess("m3", "One. Two. Three.")
    ended = post(server, stop_sequences=["Two"]).json()
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("stop_sequence", "Two")
    assert ended["content"] == [{"type": "text", "text": "One. "}]
    assert post(server, max_tokens=2).json()["stop_reason"] == "max_tokens"
    num_prompt = len(server.engine.requests[-1].prompt_token_ids)
    small = InProcess("m3", "One. Two. Three.", max_model_len=num_prompt + 3)
    full = post(small, max_tokens=32_000).json()
    assert full["stop_reason"] == "model_context_window_exceeded"
    assert full["usage"]["output_tokens"] == 3


def test_tokens_are_counted_without_the_engine() -> None:
    server = InProcess("m3", "Yes.")
    body = {"model": MODEL, "messages": ASKED, "tools": TOOLS, "system": "Be brief."}
    counted = server.post(f"{PATH}/count_tokens", body).json()
    assert server.engine.requests == []
    post(server, **body)
    assert counted == {"input_tokens": len(server.engine.requests[0].prompt_token_ids)}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, '"image"'),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}}, '"f"'),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"temperature": 7}, "temperature"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(fields: dict[str, Any], told: str) -> None:
    body = {"model": MODEL, "max_tokens": 5, "messages": ASKED, **fields}
    response = InProcess("m3", "Yes.").post(PATH, body)
    assert response.status_code == 400, response.text
    refusal = response.json()
    assert (refusal["type"], refusal["error"]["type"]) == ("error", "invalid_request_error")
    assert told in refusal["error"]["message"]
    assert refusal["request_id"] == response.headers["request-id"]


def test_every_error_has_the_envelope() -> None:
    server = InProcess("m3", "Yes.")
    body = {"model": MODEL, "max_tokens": 5, "messages": ASKED}

    async def ask(client: httpx.AsyncClient) -> dict[str, httpx.Response]:
        asked = {
            "not_found_error": await client.post(PATH, json={**body, "model": "gpt"}),
            "invalid_request_error": await client.post(
                PATH, content=b"{", headers={"content-type": "application/json"}
            ),
        }
        server.service.draining = True
        asked["overloaded_error"] = await client.post(PATH, json=body)
        return asked

    statuses = {"not_found_error": 404, "invalid_request_error": 400, "overloaded_error": 529}
    for kind, response in server.ask(ask).items():
        assert response.status_code == statuses[kind]
        assert response.json()["error"]["type"] == kind
    wrong_key = InProcess("m3", "Yes.")
    wrong_key.config = {"api_keys": ("secret",)}
    refused = wrong_key.post(PATH, body, headers={"x-api-key": "guess"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    accepted = wrong_key.post(PATH, body, headers={"x-api-key": "secret"})
    assert accepted.status_code == 200
