"""One turn of a conversation, whichever API asked for it.

    chat completions ──┐
    responses ─────────┼──> Turn ──> prompt, parser, sampling ──> Generation
    messages ──────────┘             (``prepare``)

Messages keep the form that chat completions give them, since that is what chat templates read;
every spelling of reasoning is still allowed in them. Knows what can be asked. Does not know the
APIs, templates or the engine.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mserve.core import RequestError, SamplingParams
from mserve.text import ThinkingMode
from mserve.text.grammar import MAX_NAME_CHARS, check_names

MAX_TOOLS = 2048


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments; ``None``: the caller gave none."""
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """In the form that chat templates read."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class ToolChoice(msgspec.Struct, frozen=True):
    """``name`` goes with "named"."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


class TextFormat(msgspec.Struct, frozen=True):
    """What the content must be, by the name that chat completions give the field and in their
    form: ``response_format`` or ``structured_outputs``."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def is_free(self) -> bool:
        form = self.response_format
        return not self.structured_outputs and (form is None or form.get("type") == "text")


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks of the model."""

    messages: list[dict[str, Any]]
    sampling: SamplingParams
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    text_format: TextFormat = TextFormat()
    thinking: dict[str, Any] = {}
    """Switches of thinking by the names under which the request carried them."""
    thinking_default: ThinkingMode | None = None
    """Of this API, for a request that says nothing; ``None``: the template's own."""
    template_variables: dict[str, Any] = {}
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    priority: int = 0
    cache_salt: str = ""
    notes: tuple[str, ...] = ()
    """What the request carried and this server passes over, by place."""


def check_tools(tools: tuple[Tool, ...], choice: ToolChoice) -> None:
    """Raise ``RequestError`` for tools that cannot be told apart or named, or a choice of none."""
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"at most {MAX_TOOLS} tools are allowed", param="tools")
    names = [tool.name for tool in tools]
    check_names(names)
    if choice.mode == "named" and choice.name not in names:
        raise RequestError(
            f'tool_choice names "{(choice.name or "")[:MAX_NAME_CHARS]}", which is no tool of '
            "this request",
            param="tool_choice",
        )
    if choice.mode == "required" and not tools:
        raise RequestError(
            "tool_choice asks for a call, but there are no tools", param="tool_choice"
        )
