"""From a chat completion request to a ``Turn``.

Knows the request's fields. Does not know templates or how an answer is written (``encode``).
"""

from __future__ import annotations

from typing import Any

from mserve.core import RequestError, SamplingParams
from mserve.server.chat.schema import THINKING_SWITCHES, ChatRequest, ChatTool
from mserve.server.sampling import chat_sampling
from mserve.server.turn import TextFormat, Tool, ToolChoice, Turn, check_tools
from mserve.wire import Ready

# Tuples, since what is looked up in them may be any JSON.
ROLES = ("assistant", "developer", "function", "system", "tool", "user")
_MEDIA = ("image", "image_url", "video", "video_url", "input_audio", "file")


def chat_turn(request: ChatRequest, defaults: SamplingParams, ready: Ready) -> Turn:
    """Raises ``RequestError`` naming the field."""
    tools, notes = _tools(request.tools or [])
    choice = _tool_choice(request.tool_choice)
    check_tools(tools, choice)
    switches = {name: getattr(request, name) for name in THINKING_SWITCHES}
    return Turn(
        messages=read_messages(request.messages),
        sampling=chat_sampling(request, defaults, ready),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text_format=TextFormat(request.response_format, request.structured_outputs),
        thinking={name: value for name, value in switches.items() if value is not None},
        template_variables=request.chat_template_kwargs or {},
        add_generation_prompt=request.add_generation_prompt is not False,
        add_special_tokens=request.add_special_tokens is True,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        notes=notes,
    )


def read_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as they came, each of a role that exists and without media."""
    if not messages:
        raise RequestError("messages is empty", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise RequestError(f"{where}.role is missing", param=f"{where}.role")
    if role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content = message.get("content")
    if content is None and role not in ("assistant", "tool"):
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") in _MEDIA:
            raise _unsupported_part(part["type"], f"{where}.content")
    return message


def text_of(content: Any, param: str) -> str:
    """Content as one string: text parts are joined, other parts are refused."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{param} must be a string or a list of parts", param=param)
    return "".join(_part_text(part, param) for part in content)


def _part_text(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise RequestError(f"{param}: a part needs a type", param=param)
    if kind not in ("text", "input_text", "output_text", "refusal"):
        raise _unsupported_part(kind, param)
    text = part.get("refusal") if kind == "refusal" else part.get("text")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{param}: the text of a part must be a string", param=param)
    return text or ""


def _unsupported_part(kind: str, param: str) -> RequestError:
    return RequestError(
        f'content of type "{kind[:100]}" is not supported',
        param=param,
        code="unsupported_parameter",
    )


def _tools(given: list[ChatTool]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The functions, and a note for each tool of a type that we do not run."""
    tools: list[Tool] = []
    notes: list[str] = []
    for number, tool in enumerate(given):
        if tool.type != "function":
            notes.append(f"tools.{number}.{tool.type}")
        elif tool.function is None:
            where = f"tools[{number}].function"
            raise RequestError(f"{where} is missing", param="tools")
        else:
            function = tool.function
            tools.append(
                Tool(
                    name=function.name,
                    description=function.description,
                    parameters=function.parameters,
                    strict=function.strict is True,
                )
            )
    return tuple(tools), tuple(notes)


def _tool_choice(choice: str | dict[str, Any] | None) -> ToolChoice:
    match choice:
        case None | "auto":
            return ToolChoice()
        case "none":
            return ToolChoice("none")
        case "required" | "any":
            return ToolChoice("required")
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("named", name)
    raise RequestError(
        'tool_choice must be "auto", "none", "required" or name a function', param="tool_choice"
    )
