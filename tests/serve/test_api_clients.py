"""The openai and anthropic clients, end to end, over real server processes with scripted models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from in_process import TOOL, InProcess

from mserve.toy import write_toy

MARK = "]<]minimax[>["
THINKS = "<mm:think>Let me see.</mm:think>"
CALL = (
    f'{MARK}<tool_call>\n{MARK}<invoke name="get_weather">{MARK}<city>Oslo{MARK}</city>'
    f"{MARK}<days>3{MARK}</days>{MARK}</invoke>\n{MARK}</tool_call>"
)
ASKED: Any = [{"role": "user", "content": "What is the weather?"}]
CHAT_TOOLS: Any = [{"type": "function", "function": TOOL}]
RESPONSES_TOOLS: Any = [{"type": "function", **TOOL}]
MESSAGES_TOOLS: Any = [{"name": TOOL["name"], "input_schema": TOOL["parameters"]}]
WEATHER = {"city": "Oslo", "days": 3}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "m3"
    write_toy(folder, arch="m3", vocab_size=1500)
    return folder


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Any], toy: Path) -> Any:
    """Its model thinks, says a few words and calls a tool, whatever it is asked."""
    reply = InProcess("m3", THINKS + "One moment." + CALL).engine
    script = {
        "reply_token_ids": [*reply.reply, reply.eos],
        "eos_token_id": reply.eos,
        "vocab_size": 1500,
        "max_model_len": 2048,
        "num_cached_tokens": 20,
    }
    return start_server(script, folder=toy, dialect="minimax_m3")


@pytest.fixture
def openai_client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def test_openai_models(openai_client: openai.OpenAI) -> None:
    (model,) = openai_client.models.list().data
    assert openai_client.models.retrieve(model.id).id == model.id == "m3"
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.models.retrieve("gpt")
    assert caught.value.code == "model_not_found"


def test_openai_chat_stream_helper(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="m3", messages=ASKED, tools=CHAT_TOOLS, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == WEATHER
    assert final.usage is not None
    assert final.usage.completion_tokens_details is not None
    assert final.usage.completion_tokens_details.reasoning_tokens


def test_openai_chat_named_tool(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="m3",
        messages=ASKED,
        tools=CHAT_TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    assert answer.choices[0].finish_reason == "stop"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    assert message.model_dump()["reasoning_content"] == "Let me see."


def test_openai_responses(openai_client: openai.OpenAI) -> None:
    answer = openai_client.responses.create(model="m3", input="Weather?", tools=RESPONSES_TOOLS)
    assert answer.status == "completed"
    assert answer.output_text == "One moment."
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 20
    again = openai_client.responses.retrieve(answer.id)
    assert again.output_text == answer.output_text
    following = openai_client.responses.create(
        model="m3", input="And now?", previous_response_id=answer.id
    )
    assert following.usage is not None
    assert following.usage.input_tokens > answer.usage.input_tokens - 200
    openai_client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(answer.id)


def test_openai_responses_stream_helper(openai_client: openai.OpenAI) -> None:
    with openai_client.responses.stream(
        model="m3", input="Weather?", tools=RESPONSES_TOOLS
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    thought = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    assert (said, thought) == ("One moment.", "Let me see.")
    snapshots = [e.snapshot for e in events if e.type == "response.function_call_arguments.delta"]
    assert json.loads(snapshots[-1]) == WEATHER
    assert final.output_text == "One moment."


def test_openai_input_tokens_and_cancel(openai_client: openai.OpenAI) -> None:
    counted = openai_client.responses.input_tokens.count(model="m3", input="Weather?")
    assert counted.input_tokens > 10
    waiting = openai_client.responses.create(model="m3", input="Weather?", background=True)
    assert openai_client.responses.cancel(waiting.id).status in ("cancelled", "completed")


def test_openai_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="m3", messages=ASKED, temperature=7)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.responses.create(model="gpt", input="Hello")
    assert missing.value.code == "model_not_found"


def test_anthropic_message(anthropic_client: anthropic.Anthropic) -> None:
    message = anthropic_client.messages.create(
        model="m3",
        max_tokens=300,
        messages=ASKED,
        tools=MESSAGES_TOOLS,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == WEATHER  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"
    assert message.usage.cache_read_input_tokens == 20
    history: Any = [*ASKED, {"role": "assistant", "content": message.content}]
    result = {"type": "tool_result", "tool_use_id": message.content[2].id, "content": "rain"}  # type: ignore[union-attr]
    history.append({"role": "user", "content": [result]})
    following = anthropic_client.messages.create(
        model="m3", max_tokens=300, messages=history, tools=MESSAGES_TOOLS
    )
    assert following.usage.input_tokens > message.usage.input_tokens


def test_anthropic_stream_helper(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="m3",
        max_tokens=300,
        messages=ASKED,
        tools=MESSAGES_TOOLS,
        thinking={"type": "adaptive"},
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "thinking" in kinds
    assert "signature" in kinds
    assert "input_json" in kinds
    thinking, text, call = final.content
    assert (thinking.thinking, text.text) == ("Let me see.", "One moment.")  # type: ignore[union-attr]
    assert thinking.signature  # type: ignore[union-attr]
    assert call.input == WEATHER  # type: ignore[union-attr]


def test_anthropic_count_models_and_errors(anthropic_client: anthropic.Anthropic) -> None:
    counted = anthropic_client.messages.count_tokens(model="m3", messages=ASKED)
    assert counted.input_tokens > 10
    models = anthropic_client.models.list()
    assert not models.has_next_page()
    (model,) = models.data
    assert anthropic_client.models.retrieve(model.id).display_name == "m3"
    with pytest.raises(anthropic.NotFoundError) as caught:
        anthropic_client.messages.create(model="claude", max_tokens=5, messages=ASKED)
    assert caught.value.request_id
    with pytest.raises(anthropic.BadRequestError):
        anthropic_client.messages.create(model="m3", max_tokens=0, messages=ASKED)


def test_a_client_that_leaves_stops_the_engine(start_server: Callable[..., Any], toy: Path) -> None:
    """Whichever API it was reading."""
    script = {"vocab_size": 1500, "max_model_len": 2048, "token_delay_s": 0.02}
    slow = start_server(script, folder=toy, dialect="minimax_m3")
    bodies = {
        "/v1/chat/completions": {"messages": ASKED},
        "/v1/responses": {"input": "Hello"},
        "/v1/messages": {"messages": ASKED, "max_tokens": 900},
    }
    for path, body in bodies.items():
        with slow.http.stream("POST", path, json={**body, "stream": True}) as response:
            next(response.iter_lines())
        slow.wait_for(lambda: slow.metric("vllm:num_requests_running") == 0, 5)
