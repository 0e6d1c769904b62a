"""What one example is: a conversation that ends in the answer the model should give, and how to
tell whether another answer is as good.

Messages have the form of chat completions, since that is what the server's template reads. Knows
nothing of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ThinkingMode = Literal["enabled", "disabled", "adaptive"]
MODES: tuple[ThinkingMode, ...] = ("adaptive", "adaptive", "enabled", "disabled")
"""To draw from: the default comes up as often as the two others together."""
Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """``messages``: every assistant's turn among them is one that the model should produce, but for
    the ``given_turns`` first.

    ``check``: what an answer to all but the last message must satisfy, in the form that
    ``mserve eval`` reads (``mserve.evaluate.Check``).
    """

    messages: list[Message]
    check: dict[str, Any]
    part: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    mode: ThinkingMode = "adaptive"
    response_format: dict[str, Any] | None = None
    given_turns: int = 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, *, thinking: str = "", calls: list[Message] | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def call(name: str, arguments: dict[str, Any], number: int = 0) -> Message:
    """The ``number``-th call of its turn."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def tool_result(text: str, number: int = 0) -> Message:
    """What the ``number``-th call of the turn before gave."""
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}
