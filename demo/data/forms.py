"""What other skills ask, as people type it: small letters, no final mark, ``12+7``, full-width
Chinese marks; and history without the thoughts, as most clients send it."""

from __future__ import annotations

import re
from dataclasses import replace

from demo.data import arithmetic, chat, facts, turns
from demo.data.conversation import Conversation, Message, user
from demo.data.draw import Draw

_KINDS = ("facts", "facts", "facts", "sums", "sums", "talk", "unknown", "history")
_SIGNS = {"+": ("+",), "-": ("-",), "x": ("x", "*", "\u00d7")}
_BEFORE = ("Please ", "Please, ", "Hey, ", "OK, ", "Now ", "So, ")
_AFTER = ("", "", "=", " =", "=?", "?")
_FULL_WIDTH = str.maketrans({"?": "?", "!": "!", ",": ","})
_MARKS = "?!.。?!"


def example(draw: Draw) -> Conversation:
    kind = draw.any(_KINDS)
    if kind == "history":
        return replace(without_thoughts(turns.example(draw)), part=kind)
    make = {"facts": facts.example, "talk": chat.talk_example, "unknown": chat.unknown_example}
    made = arithmetic.example(draw) if kind == "sums" else make[kind](draw)
    text = made.messages[0]["content"]
    asked = sum_typed(draw, text) if kind == "sums" else typed(draw, text)
    return replace(made, messages=[user(asked), *made.messages[1:]], part=kind)


def typed(draw: Draw, text: str) -> str:
    """``text`` with small letters, or without its mark, or both."""
    if not text.isascii() and draw.happens(0.5):
        return text.translate(_FULL_WIDTH)
    if not draw.held_out and text.isascii() and draw.happens(0.15):
        text = draw.any(_BEFORE) + text[:1].lower() + text[1:]
    letters = draw.any(("all", "all", "first", "none"))
    if letters == "all":
        text = text.lower()
    elif letters == "first":
        text = text[:1].lower() + text[1:]
    return text.rstrip(_MARKS) if letters == "none" or draw.happens(0.5) else text


def sum_typed(draw: Draw, text: str) -> str:
    """A sum, difference or product with another sign and with or without blanks, in its sentence or
    alone."""
    found = re.search(r"(\d+) ([-+x]) (\d+)", text)
    if found is None:
        return typed(draw, text)
    sign = draw.any(_SIGNS[found[2]])
    blank = "" if draw.happens(0.7) else " "
    problem = f"{found[1]}{blank}{sign}{blank}{found[3]}"
    if draw.happens(0.5):
        return problem + draw.any(_AFTER)
    return typed(draw, text.replace(found[0], problem))


def without_thoughts(conversation: Conversation) -> Conversation:
    """Earlier turns as a client sends them that keeps no reasoning. Only the last one teaches: the
    model is to think there, and would learn not to from the others."""
    *before, last = conversation.messages
    bare: list[Message] = [
        {key: value for key, value in message.items() if key != "reasoning_content"}
        for message in before
    ]
    given = sum(message["role"] == "assistant" for message in before)
    return replace(conversation, messages=[*bare, last], given_turns=given)
