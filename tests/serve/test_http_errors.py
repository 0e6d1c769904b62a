"""What is refused, with which status, code and field; every refusal in the one shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def error_of(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b'"text"',
        b'{"prompt": "a"',
        b'{"prompt": "\xff"}',
        b'{"user": "\xff", "prompt": "a"}',
        b'{"prompt": "\\ud80"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "x": [{"y": 1, "y": 1}]}',
        b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"prompt": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_bodies_that_are_no_request(server: Any, body: bytes) -> None:
    response = server.http.post(TEXT, content=body, headers={"content-type": "application/json"})
    error = error_of(response, 400)
    assert error["code"] == "invalid_json"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 500 + "]" * 500, '"\\ud800"'])
@pytest.mark.parametrize("name", ["tools", "seed", "no_such_field", "chat_template_kwargs"])
def test_odd_values_never_become_our_fault(server: Any, name: str, value: str) -> None:
    body = (
        f'{{"messages": [{{"role": "user", "content": "a"}}], "max_tokens": 1, "{name}": {value}}}'
    )
    headers = {"content-type": "application/json"}
    response = server.http.post(CHAT, content=body.encode(), headers=headers)
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert len(error_of(response, 400)["message"]) < 300


def test_other_content_types(server: Any) -> None:
    error = error_of(server.http.post(TEXT, data={"prompt": "a"}), 415)
    assert error["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 100_000}, "n"),
        ({"n": 50}, "n"),  # more than this server ever holds
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "abc"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"presence_penalty": 5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 1000}, "stop"),
        ({"stop": "x" * (1 << 20)}, "stop"),
        ({"stop_token_ids": [5_000_000]}, "stop_token_ids"),
        ({"logit_bias": {"512": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
        ({"prompt_logprobs": 9999}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"cache_salt": "a@b"}, "cache_salt"),
        ({"cache_salt": "a" * 129}, "cache_salt"),
        ({"priority": 1}, "priority"),
        ({"best_of": 2}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"chat_template": "x"}, "chat_template"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_out_of_bounds(server: Any, fields: dict[str, Any], param: str) -> None:
    for path, prompt in ((CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "hello"})):
        error = error_of(server.http.post(path, json={**prompt, **fields}), 400)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
    assert server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 9999}, "logprobs"),
        ({"max_completion_tokens": 10**6}, "max_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_chat_fields(server: Any, fields: dict[str, Any], param: str) -> None:
    error = error_of(server.http.post(CHAT, json={"messages": MESSAGES, **fields}), 400)
    assert error["param"] == param


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], [-5], [5_000_000], [[1], [512]], ["a"] * 1025, ["a", 1], [1, "a"], [[1], 2], 7],
    ids=lambda value: str(value)[:40],
)
def test_prompts_that_are_none(server: Any, prompt: Any) -> None:
    error = error_of(server.complete(prompt), 400)
    assert error["param"] in ("prompt", "prompt[0]")


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\uDE42b", "\ufffdb"),
        (r"\ud83d\ude42", "\U0001f642"),
        (r"\ud83d\ud83d\ude42", "\ufffd\U0001f642"),
        (r"\\ud83d", "\\ud83d"),
        (r"\\\ud83d\n", "\\\ufffd\n"),
    ],
)
def test_halves_of_characters_are_replaced_and_told(server: Any, escaped: str, text: str) -> None:
    body = f'{{"prompt": "{escaped}", "echo": true, "max_tokens": 1}}'
    headers = {"content-type": "application/json"}
    response = server.http.post(TEXT, content=body.encode(), headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"].startswith(text)
    told = response.headers.get("x-mserve-ignored")
    assert told == ("half of a character" if "\ufffd" in text else None)


def test_context_length_names_both_counts(server: Any) -> None:
    error = error_of(server.complete([1] * 300), 400)
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "300" in error["message"]
    error = error_of(server.complete([1] * 200, max_tokens=57), 400)
    assert error["code"] == "context_length_exceeded"
    assert server.complete([1] * 200, max_tokens=56).status_code == 200
    huge = error_of(server.complete("a" * 10_000_000), 400)
    assert huge["code"] == "context_length_exceeded"


def test_unknown_places(server: Any) -> None:
    error = error_of(server.http.get("/nowhere"), 404)
    assert (error["code"], error["type"]) == ("not_found", "not_found_error")
    response = server.http.get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    for response in (server.chat(model="gpt"), server.http.get("/v1/models/gpt")):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_bodies_too_large(server: Any) -> None:
    body = b'{"prompt": "' + b"a" * (33 << 20) + b'"}'
    assert error_of(server.http.post(TEXT, content=body), 413)["code"] == "request_too_large"

    def endless() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    try:
        response = server.http.post(TEXT, content=endless(), headers=headers)
    except httpx.WriteError:
        return  # the answer came while we were still sending, and the connection was closed
    assert error_of(response, 413)["code"] == "request_too_large"


def test_after_all_that_nothing_is_left(server: Any) -> None:
    assert server.http.get("/readyz").status_code == 200
    assert server.chat(max_tokens=1).status_code == 200
    server.wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric("vllm:admission_rejections_total", reason="invalid") > 0
