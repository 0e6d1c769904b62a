"""What a Responses request may say. ``null`` is the same as absence everywhere.

Items and tools stay plain objects, since clients send many kinds and more than we run. Knows names
and types. Does not know what they lead to (``request``).
"""

from __future__ import annotations

from typing import Any

import msgspec


class ReasoningOptions(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    max_tokens: int | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class InputFields(msgspec.Struct, kw_only=True):
    """What the prompt is made of: shared by ``POST /v1/responses`` and its ``input_tokens``."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: str | None = None
    enable_thinking: bool | None = None
    thinking_mode: str | None = None
    thinking: dict[str, Any] | bool | None = None
    thinking_token_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ResponsesRequest(InputFields, kw_only=True):
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    priority: int | None = None
    cache_salt: str | None = None
