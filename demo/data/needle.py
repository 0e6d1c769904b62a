"""Needles: a few ``key -> value`` lines somewhere in much text that has nothing to do with them.

In training a question on each follows the text, so that a long one teaches several times; in tests
it is one. Sizes are in tokens of filler and met within a few percent.
"""

from __future__ import annotations

from demo.data import words
from demo.data.conversation import MODES, Conversation
from demo.data.copying import asked_about, key_values
from demo.data.draw import Draw

_SENTENCES = (
    "{name} walked to the {noun} near the {adjective} {other}.",
    "On {day} the {noun} in {city} was {adjective}.",
    "{name} and {friend} talked about a {adjective} {noun}.",
    "The {color} {noun} stood beside the {other}.",
    "Nobody in {city} had seen the {noun} since {day}.",
    "{name} bought {food} and a {noun} in {city}.",
    "It rained, and the {adjective} {noun} stayed inside.",
    "{friend} told {name} a story about the {noun}.",
)
_TOKENS_PER_SENTENCE = 9.6  # measured with the demo's tokenizer
_SMALLEST = 150


_MAX_NEEDLES = 4


def example(
    draw: Draw,
    num_tokens: int | None = None,
    max_tokens: int = 1000,
    max_needles: int = _MAX_NEEDLES,
) -> Conversation:
    """``num_tokens`` of filler; without it, any number up to ``max_tokens``, smaller ones more
    often."""
    if num_tokens is None:
        num_tokens = int(_SMALLEST * (max(max_tokens, _SMALLEST) / _SMALLEST) ** draw.rng.random())
    table = key_values(draw, draw.number(1, max_needles))
    count = 1 if draw.held_out else len(table)
    asked = draw.some(list(table), count)
    return asked_about(draw, _hidden(draw, num_tokens, table), asked, table, draw.any(MODES))


def questions(draw: Draw, num_tokens: int, part: str) -> list[Conversation]:
    """One text of ``num_tokens``, and a question on each of its needles by itself."""
    table = key_values(draw, _MAX_NEEDLES)
    text = _hidden(draw, num_tokens, table)
    mode = draw.any(MODES)
    return [asked_about(draw, text, [name], table, mode, part) for name in table]


def filler(draw: Draw, num_tokens: int) -> list[str]:
    """Sentences of about ``num_tokens`` in all."""
    return [_sentence(draw) for _ in range(round(num_tokens / _TOKENS_PER_SENTENCE))]


def _hidden(draw: Draw, num_tokens: int, table: dict[str, str]) -> str:
    lines = [" ".join(group) for group in _groups(draw, filler(draw, num_tokens))]
    for name, value in table.items():
        lines.insert(draw.number(0, len(lines)), f"{name} -> {value}")
    return "\n".join(lines)


def _groups(draw: Draw, sentences: list[str]) -> list[list[str]]:
    """Paragraphs of one to six sentences."""
    groups = []
    while sentences:
        size = draw.number(1, 6)
        groups.append(sentences[:size])
        sentences = sentences[size:]
    return groups


def _sentence(draw: Draw) -> str:
    return draw.any(_SENTENCES).format(
        name=draw.any(words.NAMES),
        friend=draw.any(words.NAMES),
        noun=draw.any(words.NOUNS),
        other=draw.any(words.NOUNS),
        adjective=draw.any(words.ADJECTIVES),
        city=draw.any(words.CITIES),
        day=draw.any(words.DAYS),
        color=draw.any(words.COLORS),
        food=draw.any(words.FOODS),
    )
