"""What a Messages request may say. ``null`` is the same as absence everywhere.

Blocks and tools stay plain objects: clients add fields of betas that we do not know. Knows names
and types. Does not know what they lead to (``request``).
"""

from __future__ import annotations

from typing import Any

import msgspec

Blocks = str | list[dict[str, Any]]


class InputMessage(msgspec.Struct, kw_only=True):
    role: str
    content: Blocks


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """What the prompt is made of."""

    model: str | None = None
    messages: list[InputMessage]
    system: Blocks | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
