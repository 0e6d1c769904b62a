"""What a chat completion request may say. ``null`` is the same as absence everywhere.

Knows names and types. Does not know bounds, or what the fields lead to (``request``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from mserve.server.schema import GenerationFields


class Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, kw_only=True):
    """``function`` goes with the type of that name; other types are passed over."""

    type: str = "function"
    function: Function | None = None


class ChatRequest(GenerationFields, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[ChatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    include_reasoning: bool | None = None

    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_mode: str | None = None
    thinking: dict[str, Any] | bool | None = None
    thinking_budget: int | None = None
    thinking_token_budget: int | None = None
    reasoning_split: bool | None = None


THINKING_SWITCHES = (
    "reasoning_effort",
    "reasoning",
    "enable_thinking",
    "thinking_mode",
    "thinking",
    "thinking_budget",
    "thinking_token_budget",
)
