"""Chat completions as the openai client sees them. The scripted engine echoes the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

PROMPT = "[user]hello<end>[ai]"  # as the test's template renders it
PROMPT_TOKENS = 13  # "hell" is one token and so is "<end>"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def events_of(response: httpx.Response) -> list[Any]:
    """The events of a finished stream; it must end as streams end."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=HELLO, max_tokens=8)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "scripted")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "[user]hello"
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == PROMPT_TOKENS + 8
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_without_max_tokens_the_answer_ends_at_eos(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=HELLO)
    assert answer.choices[0].message.content == "[user]hello"
    assert answer.choices[0].finish_reason == "stop"


def test_without_eos_the_answer_fills_the_context(server: Any) -> None:
    answer = server.chat(ignore_eos=True, model=None).json()
    assert answer["usage"]["total_tokens"] == 256
    assert answer["choices"][0]["finish_reason"] == "length"


def test_stream_has_the_same_text(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    first, *middle, last = stream
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == "[user]hello"
    assert [c.choices[0].finish_reason for c in middle if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in (first, *middle))
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 9  # eos counts
    assert len({chunk.id for chunk in (first, *middle, last)}) == 1


def test_continuous_usage(server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(server.chat(stream=True, stream_options=options, max_tokens=5))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert all(event["usage"]["prompt_tokens"] == PROMPT_TOKENS for event in events)


def test_stop_string_is_hidden_and_named(server: Any) -> None:
    (choice,) = server.chat(stop=["er]he", "zzz"]).json()["choices"]
    assert choice["message"]["content"] == "[us"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "er]he")
    shown = server.chat(stop="er]", include_stop_str_in_output=True).json()["choices"][0]
    assert shown["message"]["content"] == "[user]"


def test_stop_string_aborts_in_the_engine(server: Any) -> None:
    server.chat(stop="[u", ignore_eos=True)
    server.wait_for(lambda: server.metric("vllm:num_requests_running") == 0)


def test_stop_token_is_named_by_id(server: Any) -> None:
    (choice,) = server.chat(stop_token_ids=[ord("]")]).json()["choices"]
    assert choice["message"]["content"] == "[user"
    assert choice["stop_reason"] == ord("]")


def test_choices_of_one_prompt(server: Any) -> None:
    answer = server.chat(n=3, max_tokens=4).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer["usage"]["completion_tokens"] == 12
    events = events_of(server.chat(n=3, max_tokens=4, stream=True))
    for index in range(3):
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in mine) == "[use"
        assert mine[-1]["finish_reason"] == "length"


def test_logprobs(server: Any) -> None:
    (choice,) = server.chat(logprobs=True, top_logprobs=2, max_tokens=3).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["[", "u", "s"]
    assert [entry["bytes"] for entry in entries] == [[91], [117], [115]]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
    streamed = events_of(server.chat(logprobs=True, max_tokens=3, stream=True))
    pieces = [e["choices"][0]["logprobs"]["content"] for e in streamed[1:]]
    assert [entry["token"] for piece in pieces for entry in piece] == ["[", "u", "s"]


def test_prompt_logprobs(server: Any) -> None:
    answer = server.chat(prompt_logprobs=1, max_tokens=1).json()
    entries = answer["prompt_logprobs"]
    assert len(entries) == PROMPT_TOKENS
    assert entries[0] is None
    assert entries[1][str(ord("u"))]["decoded_token"] == "u"
    assert entries[1][str(ord("u"))]["rank"] == 1


def test_token_ids_on_request(server: Any) -> None:
    answer = server.chat(return_token_ids=True, max_tokens=3).json()
    assert answer["prompt_token_ids"][:3] == list(b"[us")
    assert answer["choices"][0]["token_ids"] == list(b"[us")


def test_content_parts_are_joined(server: Any) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answer = server.http.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    ).json()
    assert answer["choices"][0]["message"]["content"] == "[user]hello"


def test_template_variables_reach_the_template_and_no_further(server: Any) -> None:
    kwargs = {"mood": "glad", "messages": [], "bos_token": "x"}
    response = server.chat(chat_template_kwargs=kwargs, return_token_ids=True, max_tokens=1)
    prompt = bytes(i for i in response.json()["prompt_token_ids"] if i < 256).decode()
    assert prompt.endswith("[ai]glad")
    assert response.headers["x-mserve-ignored"] == (
        "chat_template_kwargs.bos_token, chat_template_kwargs.messages"
    )


def test_a_refusal_by_the_template_is_a_400(server: Any) -> None:
    messages = [{"role": "user", "content": "refuse me"}]
    response = server.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "chat_template_error"
    assert "as you wish" in response.json()["error"]["message"]


def test_fields_without_effect_are_listed(server: Any) -> None:
    response = server.chat(user="me", store=False, tools=[], max_tokens=1)
    assert response.status_code == 200
    assert response.headers["x-mserve-ignored"] == "store, user"
    assert "x-mserve-ignored" not in server.chat(max_tokens=1).headers


def test_an_engine_error_is_told_in_both_forms(server: Any) -> None:
    text = "\N{DELETE}"
    whole = server.chat(text)
    assert whole.status_code == 500
    assert whole.json()["error"] == {
        "message": "the step failed",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    *_, last = events_of(server.chat(text, stream=True))
    assert last["error"]["code"] == "engine_error"
