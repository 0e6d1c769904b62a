"""What requests may say, field by field. ``null`` is the same as absence everywhere.

Knows names and types, and which fields would change the meaning of an answer without being
supported. Does not know bounds (``core.SamplingParams``) or what the fields lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """Shared by chat and text completions."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None


Prompts = str | list[str | int | list[int]]
"""One text, texts, one list of ids, or lists of ids."""


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: Prompts
    logprobs: int | None = None
    echo: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A ``prompt``, or ``messages`` to be rendered by the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


def _empty(value: Any) -> bool:
    return not value


def _never(value: Any) -> bool:
    return False


HARMLESS: dict[str, Callable[[Any], bool]] = {
    "tools": _empty,
    "functions": _empty,
    "tool_choice": lambda value: value in ("none", "auto"),
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: isinstance(value, dict) and value.get("type") == "text",
    "structured_outputs": _empty,
    "guided_json": _never,
    "guided_regex": _never,
    "guided_choice": _never,
    "guided_grammar": _never,
    "suffix": _empty,
    "bad_words": _empty,
    "allowed_token_ids": _never,
    "logits_processors": _empty,
    "logit_processors": _empty,
    "use_beam_search": _empty,
    "continue_final_message": _empty,
    "truncate_prompt_tokens": _never,
    "stop_regex": _empty,
    "prompt_embeds": _never,
    "chat_template": _never,
    "documents": _empty,
    "mm_processor_kwargs": _empty,
    "media_io_kwargs": _empty,
    "kv_transfer_params": _empty,
    "modalities": lambda value: value == ["text"],
    "audio": _empty,
    "web_search_options": _never,
    "prompt": _empty,
    "conversation": _empty,
}
"""Fields that would change the answer and that an endpoint does not act on. A request that carries
one is refused, unless its value asks for nothing."""
