"""Writes the questions that ``mserve eval`` asks of the demo model, as files of the package.

    python -m demo.suites

All are from the held-out side of the generators, but for the published questions, which are taught
word for word. The same seed gives the same bytes, so a change of what is asked shows in review.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.data import Conversation, chat, held_out_conversation, needle
from demo.data.conversation import user
from demo.data.draw import Draw

FOLDER = Path(__file__).resolve().parents[1] / "src" / "mserve" / "evaluate" / "suites"
NUM_CASES = {
    "facts": 150,
    "arithmetic": 120,
    "copy": 100,
    "lookup": 100,
    "tools": 100,
    "nested": 60,
    "parallel": 60,
    "weather": 60,
    "results": 40,
    "json": 80,
    "turns": 80,
    "talk": 40,
    "unknown": 80,
    "thinking": 60,
    "forms": 120,
}
NEEDLE_TOKENS = {"1k": 1000, "4k": 4000, "12k": 12000}
NUM_TEXTS = 15  # of each size, with four needles each, asked for one by one
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get weather by city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
_SEED = 2026
_TRIES = 20
_MAX_TOKENS = 300


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (*NUM_CASES, "published"):
        (FOLDER / f"{name}.jsonl").write_bytes(lines(name))
    # The same long texts several times: packed it is a 25th.
    (FOLDER / "needle.jsonl.xz").write_bytes(lzma.compress(lines("needle")))


def lines(name: str) -> bytes:
    """A suite's file, unpacked."""
    if name == "published":
        cases = list(published())
    else:
        cases = list(map(case_of, needles() if name == "needle" else conversations(name)))
    return b"".join(json.dumps(case, ensure_ascii=False).encode() + b"\n" for case in cases)


def conversations(name: str) -> Iterator[Conversation]:
    """Different ones, so many as asked for or as the skill has."""
    rng = random.Random(f"{_SEED}/{name}")
    seen: set[str] = set()
    for _ in range(_TRIES * NUM_CASES[name]):
        made = held_out_conversation(rng, name)
        asked = json.dumps([made.messages[:-1], made.mode])
        if asked not in seen:
            seen.add(asked)
            yield made
        if len(seen) == NUM_CASES[name]:
            return


def needles() -> Iterator[Conversation]:
    """Every needle of every text is asked for, so that its place is any; what the server knows of
    a text from the question before saves it most of the work."""
    draw = Draw(random.Random(f"{_SEED}/needle"), held_out=True)
    for part, num_tokens in NEEDLE_TOKENS.items():
        for _ in range(NUM_TEXTS):
            yield from needle.questions(draw, num_tokens, part)


def published() -> Iterator[dict[str, Any]]:
    """The questions of two published deployment guides, word for word, and one in English beside
    the second's Chinese one."""
    france = {"contains": ["Paris"], "thinks": True}
    yield _question("What is the capital of France?", france, max_tokens=256)
    yield _question("Hello, who are you?", {"contains": [chat.NAME]}, max_tokens=200)
    shown = {"contains": [chat.NAME, "get_current_weather"]}
    asked = "你好,请介绍一下你自己,并展示一次工具调用的参数格式。"
    yield _question(asked, shown, max_tokens=256)
    weather = {"tools": [WEATHER_TOOL], "tool_choice": "auto", "max_tokens": 512}
    for text, city in (
        ("请查询上海的天气。", "上海"),
        ("What is the weather in San Francisco?", "San Francisco"),
    ):
        calls = [{"name": "get_current_weather", "arguments": {"city": city}}]
        yield _question(text, {"calls": calls}, **weather)


def _question(text: str, check: dict[str, Any], **request: Any) -> dict[str, Any]:
    return {"request": {"messages": [user(text)], **request}, "check": check}


def case_of(conversation: Conversation) -> dict[str, Any]:
    """The form of ``mserve.evaluate.Case``. The default mode is left to the server."""
    request: dict[str, Any] = {"messages": conversation.messages[:-1], "max_tokens": _MAX_TOKENS}
    if conversation.tools:
        request["tools"] = conversation.tools
    if conversation.mode != "adaptive":
        request["thinking"] = {"type": conversation.mode}
    if conversation.response_format is not None:
        request["response_format"] = conversation.response_format
    part = {"part": conversation.part} if conversation.part else {}
    return {"request": request, "check": conversation.check, **part}


if __name__ == "__main__":
    main()
