"""From a Messages request to a ``Turn``: blocks become messages.

    thinking, text, tool_use  ──> one assistant message
    tool_result, text         ──> tool messages, then a user message

Knows the request's fields. Does not know how an answer is written (``encode``).
"""

from __future__ import annotations

import json
from typing import Any

from mserve.core import RequestError, SamplingParams
from mserve.server.messages.schema import (
    Blocks,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
)
from mserve.server.replay import is_replayed_exactly
from mserve.server.sampling import turn_sampling
from mserve.server.turn import TextFormat, Tool, ToolChoice, Turn, check_tools
from mserve.wire import Ready

_ROLES = frozenset({"user", "assistant", "system"})
_PASSED_OVER = frozenset({"redacted_thinking", "server_tool_use", "container_upload"})


def messages_turn(request: CountTokensRequest, defaults: SamplingParams, ready: Ready) -> Turn:
    """Raises ``RequestError`` naming the field."""
    notes: list[str] = []
    tools = _tools(request.tools or [], notes)
    choice, parallel = _tool_choice(request.tool_choice)
    check_tools(tools, choice)
    messages: list[dict[str, Any]] = []
    if request.system:
        text = text_of_blocks(request.system, "system")
        messages.append({"role": "system", "content": text})
    if not request.messages:
        raise RequestError("messages is empty", param="messages")
    for number, message in enumerate(request.messages):
        messages += _messages(message, f"messages[{number}]", notes)
    config = request.output_config or {}
    thinking: dict[str, Any] = {}
    if request.thinking is not None:
        thinking["thinking"] = request.thinking
    if isinstance(config.get("effort"), str):
        thinking["reasoning_effort"] = config["effort"]
    return Turn(
        messages=messages,
        sampling=turn_sampling(defaults, ready, _sampling_values(request)),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        text_format=TextFormat(_response_format(config.get("format"))),
        thinking=thinking,
        thinking_default="disabled",
        notes=tuple(notes),
    )


def text_of_blocks(content: Blocks, where: str) -> str:
    """Blocks that may only be text, as one string."""
    if isinstance(content, str):
        return content
    return "\n".join(_text(block, f"{where}[{i}]") for i, block in enumerate(content))


def _sampling_values(request: CountTokensRequest) -> dict[str, Any]:
    if not isinstance(request, MessagesRequest):
        return {}
    if request.max_tokens < 1:
        raise RequestError("max_tokens must be at least 1", param="max_tokens")
    return {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": tuple(request.stop_sequences or ()),
    }


def _messages(message: InputMessage, where: str, notes: list[str]) -> list[dict[str, Any]]:
    if message.role not in _ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(sorted(_ROLES))}", param=f"{where}.role"
        )
    content = message.content
    if isinstance(content, str):
        return [{"role": message.role, "content": content}]
    blocks = [(block, f"{where}.content[{i}]") for i, block in enumerate(content)]
    match message.role:
        case "assistant":
            return [_assistant(blocks, notes)]
        case "user":
            return _user(blocks, notes)
    return [{"role": "system", "content": text_of_blocks(content, where)}]


def _assistant(blocks: list[tuple[dict[str, Any], str]], notes: list[str]) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, where in blocks:
        match block.get("type"):
            case "thinking":
                text = block.get("thinking")
                signature = block.get("signature")
                if not isinstance(text, str):
                    raise RequestError(f"{where}.thinking is missing", param=where)
                if isinstance(signature, str) and is_replayed_exactly(text, signature) is False:
                    notes.append(f"{where}.signature")
                reasoning.append(text)
            case "tool_use":
                arguments = block.get("input")
                function = {
                    "name": _string(block, "name", where),
                    "arguments": {} if arguments is None else arguments,
                }
                call_id = _string(block, "id", where)
                calls.append({"id": call_id, "type": "function", "function": function})
            case kind if _is_passed_over(kind):
                notes.append(f"{where}.{kind}")
            case _:
                texts.append(_text(block, where))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def _user(blocks: list[tuple[dict[str, Any], str]], notes: list[str]) -> list[dict[str, Any]]:
    """Results come first: a tool's answer must follow its call."""
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for block, where in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            results.append(
                {
                    "role": "tool",
                    "tool_call_id": _string(block, "tool_use_id", where),
                    "content": text_of_blocks(block.get("content") or "", f"{where}.content"),
                }
            )
        elif _is_passed_over(kind):
            notes.append(f"{where}.{kind}")
        else:
            texts.append(_text(block, where))
    if texts or not results:
        results.append({"role": "user", "content": "\n".join(texts)})
    return results


def _is_passed_over(kind: Any) -> bool:
    """Blocks that tell of tools we do not run, or that nobody here can read."""
    if not isinstance(kind, str):
        return False
    return kind in _PASSED_OVER or (kind.endswith("_tool_result") and kind != "tool_result")


def _text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    source = block.get("source") if isinstance(block, dict) else None
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        block = {"text": source.get("data")}
    elif kind != "text":
        raise RequestError(
            f'{where}: a block of type "{str(kind)[:100]}" is not supported',
            param=where,
            code="unsupported_parameter",
        )
    return _string(block, "text", where, empty=True)


def _string(block: dict[str, Any], field: str, where: str, *, empty: bool = False) -> str:
    value = block.get(field)
    if not isinstance(value, str) or not (value or empty):
        raise RequestError(f"{where}.{field} is missing", param=f"{where}.{field}")
    return value


def _tools(given: list[dict[str, Any]], notes: list[str]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for number, tool in enumerate(given):
        kind = tool.get("type") or "custom"
        if kind != "custom":  # a tool that its provider runs
            notes.append(f"tools.{number}.{kind}")
            continue
        where = f"tools[{number}]"
        schema = tool.get("input_schema")
        if schema is not None and not isinstance(schema, dict):
            raise RequestError(f"{where}.input_schema must be an object", param=where)
        description = tool.get("description")
        tools.append(
            Tool(
                name=_string(tool, "name", where),
                description=description if isinstance(description, str) else None,
                parameters=schema,
                strict=tool.get("strict") is True,
            )
        )
    return tuple(tools)


def _tool_choice(choice: dict[str, Any] | None) -> tuple[ToolChoice, bool]:
    """The choice, and whether calls may be parallel."""
    if choice is None:
        return ToolChoice(), True
    parallel = choice.get("disable_parallel_tool_use") is not True
    match choice:
        case {"type": "auto"}:
            return ToolChoice(), parallel
        case {"type": "none"}:
            return ToolChoice("none"), parallel
        case {"type": "any"}:
            return ToolChoice("required"), parallel
        case {"type": "tool", "name": str(name)}:
            return ToolChoice("named", name), parallel
    raise RequestError(
        'tool_choice.type must be "auto", "any", "none", or "tool" with a name',
        param="tool_choice",
    )


def _response_format(given: Any) -> dict[str, Any] | None:
    """``output_config.format`` in the form of chat completions."""
    match given:
        case None:
            return None
        case {"type": "json_schema", "schema": schema}:
            nested = {"name": "output", "schema": schema, "strict": True}
            return {"type": "json_schema", "json_schema": nested}
    raise RequestError(
        "output_config.format must be a json_schema: " + json.dumps(given)[:100],
        param="output_config.format",
    )
