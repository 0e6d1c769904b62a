"""Messages as clients send them, made what chat templates read.

Templates raise, or drop text in silence, on what they do not expect; so each difference that
clients show is resolved here, once, whatever the API:

- reasoning, in any spelling, becomes ``reasoning_content``, byte for byte;
- arguments become objects: cut JSON is closed, what is none is passed on as text;
- leading system and developer messages become one system message; a later one joins the user or
  tool message before it, so that nothing before it in the prompt changes;
- tool results stand in the order of their calls; one without a call is what a user says;
- content is a string unless it holds more than text.

Knows the chat completions form of messages. Does not know templates or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mserve.core import RequestError
from mserve.text.dialects import DIALECTS, JsonReader

Message = dict[str, Any]

_TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_REASONING_PARTS: Final = {"thinking": "thinking", "reasoning": "text", "reasoning_text": "text"}
_SILENT_PARTS: Final = frozenset({"redacted_thinking"})
_MEDIA_PARTS: Final = frozenset({"image", "image_url", "video", "video_url"})
_PARAGRAPH: Final = "\n\n"


def normalised(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Raises ``RequestError`` for a role or a part of content that has no meaning here."""
    made: list[Message] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        match message.get("role"):
            case "system" | "developer":
                _add_system(made, _text(message, where))
            case "user":
                made.append({"role": "user", "content": _content(message, where)})
            case "assistant":
                made.append(_assistant(message, where))
            case "tool" | "function":
                _add_result(made, message, where)
            case _:
                raise RequestError(
                    f"{where}.role must be system, developer, user, assistant or tool",
                    param=f"{where}.role",
                )
    _order_results(made)
    return made


def arguments_of(arguments: object) -> dict[str, Any]:
    """A call's arguments as an object, whatever came back of them."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if not isinstance(arguments, str):
        return {} if arguments is None else {"arguments": arguments}
    if not arguments.strip():
        return {}
    value = _loaded(arguments)
    if isinstance(value, str):  # encoded twice
        value = _loaded(value)
    if value is None:
        value = _closed(arguments)
    return value if isinstance(value, dict) else {"arguments": arguments}


def split_thinking(text: str) -> tuple[str, str] | None:
    """Thinking that stands at the beginning of a content, and the rest; ``None`` if none does.

    Blanks that the dialect's template writes beside the markers belong to neither.
    """
    for dialect in DIALECTS.values():
        begun = text.lstrip()
        has_opener = begun.startswith(dialect.think_open)
        # M2's opener stands in the prompt, so clients that keep the raw answer lack it.
        if not has_opener and (dialect.mode_variable is not None or dialect.think_open in text):
            continue
        thinking, closer, rest = begun.partition(dialect.think_close)
        if not closer:
            continue
        if has_opener:
            thinking = thinking.removeprefix(dialect.think_open)
            thinking = thinking.removeprefix(dialect.after_think_open)
        return thinking.removesuffix(dialect.before_think_close), _without(
            rest, dialect.after_think_close
        )
    return None


def _without(text: str, blanks: str) -> str:
    """``text`` without as much of ``blanks`` as it begins with."""
    while blanks and text.startswith(blanks[0]):
        text, blanks = text[1:], blanks[1:]
    return text


def _add_system(made: list[Message], text: str) -> None:
    if not made:
        made.append({"role": "system", "content": text})
    elif not text.strip():
        return
    elif made[-1]["role"] in ("system", "user", "tool"):
        made[-1]["content"] = _joined(made[-1]["content"], text)
    else:
        made.append({"role": "user", "content": text})


def _joined(content: Any, text: str) -> Any:
    if isinstance(content, list):
        return [*content, {"type": "text", "text": _PARAGRAPH + text}]
    return content + _PARAGRAPH + text if content else text


def _add_result(made: list[Message], message: Mapping[str, Any], where: str) -> None:
    calls = next((known for known in reversed(made) if known["role"] != "tool"), {})
    content = _content(message, where)
    if not calls.get("tool_calls"):
        made.append({"role": "user", "content": content})
        return
    result = {"role": "tool", "content": content}
    for name in ("tool_call_id", "name"):
        if isinstance(message.get(name), str):
            result[name] = message[name]
    made.append(result)


def _order_results(messages: list[Message]) -> None:
    """Neither dialect writes ids: the order alone says which result is whose."""
    for number, message in enumerate(messages):
        calls = enumerate(message.get("tool_calls", ()))
        order = {call["id"]: i for i, call in calls if call["id"] is not None}
        end = number + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        results = messages[number + 1 : end]
        if all(result.get("tool_call_id") in order for result in results):
            results.sort(key=lambda result: order[result["tool_call_id"]])
            messages[number + 1 : end] = results


def _assistant(message: Mapping[str, Any], where: str) -> Message:
    made: Message = {"role": "assistant", "content": _content(message, where)}
    reasoning = _reasoning(message)
    if isinstance(made["content"], str) and (split := split_thinking(made["content"])):
        inline, made["content"] = split
        reasoning = reasoning or inline
    if reasoning:
        made["reasoning_content"] = reasoning
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    if calls:
        made["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)
        ]
    return made


def _call(call: object, where: str) -> Message:
    """With name and arguments both where chat completions have them and at the top, since
    templates read either."""
    if isinstance(call, Mapping):
        function = call.get("function") or call.get("custom") or call
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name:
            if "input" in function:  # a custom tool's free text, or a Messages block
                given = function["input"]
                arguments = {"input": given} if isinstance(given, str) else arguments_of(given)
            else:
                arguments = arguments_of(function.get("arguments"))
            inner = {"name": name, "arguments": arguments}
            call_id = call.get("id") if isinstance(call.get("id"), str) else None
            return {"id": call_id, "type": "function", "function": inner, **inner}
    raise RequestError(f"{where} has no function name", param=where)


def _reasoning(message: Mapping[str, Any]) -> str:
    """From whichever field has it; the same reasoning often comes in several."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            return str(message[name])
    found = _texts(message.get("reasoning_details"), ("text", "summary"))
    if found:
        return found
    content = message.get("content")
    if not isinstance(content, list):
        return ""
    blocks = [part for part in content if isinstance(part, dict)]
    return "".join(
        _texts([part], (key,))
        for part in blocks
        if (key := _REASONING_PARTS.get(str(part.get("type")))) is not None
    )


def _texts(items: object, keys: Sequence[str]) -> str:
    """The first of ``keys`` that is a string, of each item."""
    found = []
    for item in items if isinstance(items, list) else ():
        texts = (item.get(key) for key in keys) if isinstance(item, dict) else iter((item,))
        found.append(next((text for text in texts if isinstance(text, str)), ""))
    return "".join(found)


def _text(message: Mapping[str, Any], where: str) -> str:
    content = _content(message, where)
    if not isinstance(content, str):
        raise RequestError(f"{where}.content must be text", param=f"{where}.content")
    return content


def _content(message: Mapping[str, Any], where: str) -> str | list[Message]:
    """A string if there is only text, else a list of parts."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a text or a list", param=f"{where}.content")
    parts = [part for item in content if (part := _part(item, where)) is not None]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: object, where: str) -> Message | None:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and isinstance(kind, str):
        if kind in _TEXT_PARTS:
            text = part.get(_TEXT_PARTS[kind])
            return {"type": "text", "text": text if isinstance(text, str) else ""}
        if kind in _REASONING_PARTS or kind in _SILENT_PARTS:
            return None
        if kind in _MEDIA_PARTS:
            return part
    shown = f'"{kind[:100]}"' if isinstance(kind, str) else "without a type"
    raise RequestError(
        f"{where}.content: a part {shown} is not supported",
        param=f"{where}.content",
        code="unsupported_parameter",
    )


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _closed(text: str) -> Any:
    """JSON that was cut off, closed; ``None`` if it is broken otherwise."""
    reader = JsonReader()
    begun = reader.push(text)
    if reader.broken or not begun:
        return None
    return _loaded(begun + reader.finish())
