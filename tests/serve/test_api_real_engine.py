"""Formats, forced calls and thinking budgets over a real engine: a toy's random weights would never
write JSON, end their thinking or call a tool of their own accord."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import openai
import pydantic
import pytest

from mserve.cli.chat_server import started
from mserve.toy import write_toy

BUDGET = 5
FLAGS = ["--dtype", "float32", "--kv-cache-memory-bytes", "64M", "--max-model-len", "2048"]
ASKED: Any = [{"role": "user", "content": "Where, and is it warm?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days", "hourly"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "get_weather", "parameters": PARAMETERS}
THINKING = {"thinking_token_budget": BUDGET}


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]
    is_warm: bool


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    toy = tmp_path_factory.mktemp("toys") / "m2"
    write_toy(toy, arch="m2", vocab_size=1500, num_layers=2, hidden_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        with started(toy, FLAGS, lambda stage, fraction: None) as server:
            yield server.url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("seed", range(3))
def test_a_pydantic_model_is_parsed(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(
        model="m2", messages=ASKED, response_format=Place, seed=seed, extra_body=THINKING
    )
    assert isinstance(answer.choices[0].message.parsed, Place)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    # The closer is a token of the thinking that it ends.
    assert answer.usage.completion_tokens_details.reasoning_tokens == BUDGET + 1


def test_responses_parse_too(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="m2", input="Where?", text_format=Place, extra_body=THINKING
    )
    assert isinstance(answer.output_parsed, Place)
    assert [item.type for item in answer.output] == ["reasoning", "message"]


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_can_be_forced(url: str, choice: str, stream: bool) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    body = {
        "messages": ASKED,
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": named if choice == "named" else choice,
        "parallel_tool_calls": False,
        "stream": stream,
        "seed": 3,
        **THINKING,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    if stream:
        blocks = [b.removeprefix("data: ") for b in response.text.split("\n\n") if "{" in b]
        choices = [c for b in blocks for c in json.loads(b)["choices"]]
        pieces = [p for c in choices for p in c["delta"].get("tool_calls", ())]
        text = "".join(p["function"]["arguments"] for p in pieces)
        reason = choices[-1]["finish_reason"]
    else:
        (whole,) = response.json()["choices"]
        (call,) = whole["message"]["tool_calls"]
        text, reason = call["function"]["arguments"], whole["finish_reason"]
    arguments = json.loads(text)
    assert set(arguments) == set(PARAMETERS["properties"])  # type: ignore[arg-type]
    assert arguments["city"] in ("Oslo", "Rome")
    assert arguments["days"] in range(1, 10)
    assert isinstance(arguments["hourly"], bool)
    assert reason == ("stop" if choice == "named" else "tool_calls")


def test_messages_force_calls_and_keep_budgets(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        message = client.messages.create(
            model="m2",
            max_tokens=300,
            messages=ASKED,
            tools=[{"name": "get_weather", "input_schema": PARAMETERS}],
            tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
            thinking={"type": "enabled", "budget_tokens": 1024},
            extra_body={"thinking": {"type": "enabled", "budget_tokens": BUDGET}},
        )
    assert message.stop_reason == "tool_use"
    assert message.content[-1].input["city"] in ("Oslo", "Rome")  # type: ignore[union-attr]
    assert [block.type for block in message.content] == ["thinking", "tool_use"]


def test_a_bad_schema_is_the_callers_error(url: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}
    body = {"messages": ASKED, "response_format": form, **THINKING}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_schema"
