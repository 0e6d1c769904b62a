"""From Responses input to a ``Turn``: items become messages.

    reasoning, message, function_call, function_call ──> one assistant message
    function_call_output                             ──> a tool message

Item and tool types that we do not run are passed over with a note: agents send whole shelves of
them and need none. Knows the request's fields. Does not know how an answer is written (``encode``).
"""

from __future__ import annotations

import json
from typing import Any

from mserve.core import RequestError, SamplingParams
from mserve.server.chat import text_of
from mserve.server.replay import unpacked
from mserve.server.responses.schema import InputFields, ResponsesRequest
from mserve.server.sampling import turn_sampling
from mserve.server.turn import TextFormat, Tool, ToolChoice, Turn, check_tools
from mserve.wire import Ready

Item = dict[str, Any]

_ROLES = ("assistant", "developer", "system", "user")  # may be asked for any JSON
_INCLUDED = ("reasoning.encrypted_content", "message.output_text.logprobs")
_SWITCHES = ("enable_thinking", "thinking_mode", "thinking", "thinking_token_budget")
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "seed"),
)


def responses_turn(
    request: InputFields, earlier: list[Item], defaults: SamplingParams, ready: Ready
) -> Turn:
    """``earlier``: items of the response that this one continues. Raises ``RequestError``."""
    notes: list[str] = []
    tools = _tools(request.tools or [], notes)
    choice = _tool_choice(request.tool_choice)
    check_tools(tools, choice)
    items = [*earlier, *input_items(request)]
    if not items:
        raise RequestError("input is empty", param="input")
    messages = _messages(items, notes)
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    switches = {name: getattr(request, name) for name in _SWITCHES}
    if request.reasoning is not None:
        effort, budget = request.reasoning.effort, request.reasoning.max_tokens
        switches["reasoning_effort"] = effort
        switches["thinking_token_budget"] = budget or switches["thinking_token_budget"]
    if request.truncation not in (None, "auto", "disabled"):
        raise RequestError('truncation must be "auto" or "disabled"', param="truncation")
    if request.truncation == "auto":
        notes.append("truncation")
    if isinstance(request, ResponsesRequest):
        notes += [f"include.{name}" for name in request.include or () if name not in _INCLUDED]
    text = request.text.format if request.text is not None else None
    return Turn(
        messages=messages,
        sampling=turn_sampling(defaults, ready, _sampling_values(request)),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text_format=TextFormat(_response_format(text)),
        thinking={name: value for name, value in switches.items() if value is not None},
        template_variables=request.chat_template_kwargs or {},
        notes=tuple(notes),
    )


def input_items(request: InputFields) -> list[Item]:
    """The request's own items; a plain string is one user message."""
    if isinstance(request.input, str):
        return [{"type": "message", "role": "user", "content": request.input}]
    return request.input or []


def _sampling_values(request: InputFields) -> dict[str, Any]:
    if not isinstance(request, ResponsesRequest):
        return {}
    values = {name: getattr(request, name) for name in _SAMPLING}
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise RequestError("max_output_tokens must be at least 1", param="max_output_tokens")
    values["max_tokens"] = request.max_output_tokens
    if request.stop is not None:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        values["stop"] = tuple(stops)
    if "message.output_text.logprobs" in (request.include or ()) or request.top_logprobs:
        values["logprobs"] = request.top_logprobs or 0
    return values


def _messages(items: list[Item], notes: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    said: dict[str, Any] | None = None  # the assistant message that items are added to
    for number, item in enumerate(items):
        where = f"input[{number}]"
        kind = item.get("type") or "message"
        if kind == "message" and item.get("role") != "assistant":
            said = None
            messages.append(_message(item, where))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            said = None
            messages.append(_tool_result(item, where))
        elif kind in ("reasoning", "message", "function_call", "custom_tool_call"):
            if said is None or _begins_anew(said, kind):
                said = {"role": "assistant", "content": ""}
                messages.append(said)
            _add(said, kind, item, where, notes)
        elif kind == "item_reference":
            raise RequestError(
                f"{where}: items cannot be referred to; send them, or previous_response_id",
                param=where,
                code="unsupported_parameter",
            )
        else:
            notes.append(f"input.{number}.{kind}")
    return messages


def _begins_anew(said: dict[str, Any], kind: str) -> bool:
    """Whether an item of ``kind`` starts another assistant turn after ``said``."""
    if kind == "reasoning":
        return bool(said["content"] or said.get("tool_calls"))
    return kind == "message" and bool(said.get("tool_calls"))


def _message(item: Item, where: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    if item.get("content") is None:
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    return {"role": role, "content": text_of(item["content"], f"{where}.content")}


def _tool_result(item: Item, where: str) -> dict[str, Any]:
    output = item.get("output")
    text = output if isinstance(output, str) else None
    if text is None:
        listed = isinstance(output, list)
        text = text_of(output, f"{where}.output") if listed else json.dumps(output)
    return {"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": text}


def _add(said: dict[str, Any], kind: str, item: Item, where: str, notes: list[str]) -> None:
    match kind:
        case "message":
            said["content"] += text_of(item.get("content"), f"{where}.content")
        case "reasoning":
            text = _reasoning_text(item, where)
            if text is None:
                notes.append(f"{where}.encrypted_content")
            else:
                said["reasoning_content"] = said.get("reasoning_content", "") + text
        case _:
            arguments = item.get("arguments") if kind == "function_call" else item.get("input")
            function = {"name": _string(item, "name", where), "arguments": arguments or "{}"}
            call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)


def _reasoning_text(item: Item, where: str) -> str | None:
    """The reasoning, byte for byte; ``None`` if the item holds only what another server sealed."""
    sealed = item.get("encrypted_content")
    if isinstance(sealed, str) and (text := unpacked(sealed)) is not None:
        return text
    for field, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
        parts = item.get(field)
        if isinstance(parts, list) and parts:
            texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == kind]
            return "".join(text for text in texts if isinstance(text, str))
    return None if sealed else ""


def _string(item: Item, field: str, where: str) -> str:
    value = item.get(field)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where}.{field} is missing", param=f"{where}.{field}")
    return value


def _tools(given: list[dict[str, Any]], notes: list[str]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for number, tool in enumerate(given):
        where = f"tools[{number}]"
        kind = tool.get("type")
        if kind != "function":
            notes.append(f"tools.{number}.{kind}")
            continue
        parameters = tool.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise RequestError(f"{where}.parameters must be an object", param=where)
        description = tool.get("description")
        tools.append(
            Tool(
                name=_string(tool, "name", where),
                description=description if isinstance(description, str) else None,
                parameters=parameters,
                strict=tool.get("strict") is True,
            )
        )
    return tuple(tools)


def _tool_choice(choice: str | dict[str, Any] | None) -> ToolChoice:
    match choice:
        case None | "auto":
            return ToolChoice()
        case "none":
            return ToolChoice("none")
        case "required":
            return ToolChoice("required")
        case {"type": "function", "name": str(name)}:
            return ToolChoice("named", name)
    raise RequestError(
        'tool_choice must be "auto", "none", "required" or name a function', param="tool_choice"
    )


def _response_format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    """``text.format`` in the form of chat completions, which nests the schema."""
    match text:
        case {"type": "json_schema", **fields}:
            return {"type": "json_schema", "json_schema": fields}
    return text
