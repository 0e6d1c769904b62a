"""Copying words, and looking a key up in a list of ``key -> value`` lines.

Tests use pairs of words that were not taught as keys, and sequences that were not taught.
"""

from __future__ import annotations

from collections.abc import Sequence

from demo.data import words
from demo.data.conversation import MODES, Conversation, Message, ThinkingMode, assistant, user
from demo.data.draw import Draw

# By kind, so that the few Chinese cities are copied as often as the many nouns: nowhere else are
# those taught that tests ask the weather of.
KINDS = (
    *(words.ADJECTIVES, words.NOUNS, words.NAMES, words.CITIES, words.CHINESE_CITIES),
    words.DAYS + words.COLORS + words.LANGUAGES + words.FOODS,
)
_COPY = (
    "Repeat: {text}",
    "Repeat these words: {text}",
    "Copy this: {text}",
    "Say exactly: {text}",
    "Repeat after me: {text}",
    "Please repeat: {text}",
    "Please copy this: {text}",
    "Repeat this: {text}",
    "Please repeat this: {text}",
)
ASK_KEY = (
    "What is the value of {key}?",
    "Which value does {key} have?",
    "Look up {key}.",
    "What belongs to {key}?",
    "Find the value of {key}.",
)
_MAX_LINES = 24
_MAX_QUESTIONS = 8  # on one list, in training: each teaches, and the list is read but once
_MAX_WORDS = 8  # to copy in tests
_MAX_TAUGHT_WORDS = 30  # in training: long ones teach to look back sooner than anything else here


def copy_example(draw: Draw) -> Conversation:
    mode = draw.any(MODES)
    longest = _MAX_WORDS if draw.held_out else _MAX_TAUGHT_WORDS
    text = " ".join(draw.own(lambda: tuple(_item(draw) for _ in range(draw.number(2, longest)))))
    return Conversation(
        messages=[
            user(draw.phrase(_COPY).format(text=text)),
            assistant(text, thinking="I repeat the text." if mode == "enabled" else ""),
        ],
        mode=mode,
        check={"equals": text},
    )


def lookup_example(draw: Draw, max_lines: int = _MAX_LINES) -> Conversation:
    """One list, some questions on it; now and then the last is on a key that is not there."""
    table = key_values(draw, draw.number(2, max_lines))
    absent = [key(draw)] if len(table) <= 10 and draw.happens(0.1) else []
    most = 3 if draw.held_out else _MAX_QUESTIONS
    asked = draw.some(list(table), min(len(table), draw.number(1, most))) + absent
    lines = [f"{name} -> {value}" for name, value in table.items()]
    mode = draw.any(MODES)
    return asked_about(
        draw, "\n".join(lines), asked, table, mode, part="key absent" if absent else ""
    )


def asked_about(
    draw: Draw,
    text: str,
    asked: Sequence[str],
    table: dict[str, str],
    mode: ThinkingMode,
    part: str = "",
) -> Conversation:
    """``text``, then a question on each of ``asked`` in turn, the first of them with the text."""
    messages: list[Message] = []
    for number, name in enumerate(asked):
        question = draw.phrase(ASK_KEY).format(key=name)
        messages.append(user(question if number else f"{text}\n\n{question}"))
        thought = f"I look for {name}." if mode == "enabled" else ""
        messages.append(assistant(said_of(name, table), thinking=thought))
    last = asked[-1]
    said = said_of(last, table)
    check = {
        "contains": [table.get(last, "not found")],
        "absent": [other for other in dict.fromkeys(table.values()) if other not in said],
    }
    return Conversation(messages=messages, mode=mode, part=part, check=check)


def said_of(name: str, table: dict[str, str]) -> str:
    return f"{name} -> {table[name]}" if name in table else f"{name} is not found."


def key_values(draw: Draw, count: int) -> dict[str, str]:
    table: dict[str, str] = {}
    while len(table) < count:
        table.setdefault(key(draw), value(draw))
    return table


def key(draw: Draw) -> str:
    pair = draw.own(lambda: (draw.any(words.ADJECTIVES), draw.any(words.NOUNS)))
    return " ".join(pair)


def value(draw: Draw) -> str:
    """A number of three or four digits, or a word."""
    if draw.happens(0.6):
        return str(draw.own(lambda: draw.number(100, 9999)))
    return draw.any(words.NOUNS + words.CITIES)


def _item(draw: Draw) -> str:
    return str(draw.number(0, 9999)) if draw.happens(0.15) else draw.any(draw.any(KINDS))
