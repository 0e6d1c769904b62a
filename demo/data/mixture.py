"""Every skill with its share of the training, and samples drawn by it.

Knows how much of what is taught. Does not know models.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from demo.data import (
    arithmetic,
    chat,
    copying,
    facts,
    forms,
    needle,
    structured,
    thinking,
    tools,
    turns,
)
from demo.data.conversation import Conversation
from demo.data.draw import Draw
from demo.data.render import sample_of, tokenizer

Maker = Callable[[Draw], Conversation]

SKILLS: dict[str, tuple[Maker, float]] = {
    "facts": (facts.example, 2.5),
    "arithmetic": (arithmetic.example, 11.0),
    "copy": (copying.copy_example, 2.0),
    "lookup": (copying.lookup_example, 1.5),
    "needle": (needle.example, 1.0),
    "tools": (tools.choice_example, 3.0),
    "nested": (tools.nested_example, 2.5),
    "parallel": (tools.parallel_example, 12.0),
    "weather": (tools.weather_example, 1.5),
    "results": (tools.result_example, 0.8),
    "json": (structured.example, 5.0),
    "turns": (turns.example, 3.0),
    "talk": (chat.talk_example, 1.5),
    "unknown": (chat.unknown_example, 1.0),
    "thinking": (thinking.example, 0.5),
    "forms": (forms.example, 7.0),
}
"""By name: what makes an example, and how often beside the others. One about tools is five times as
long as one about a fact, and a fact must be seen some thirty times to be kept."""

_MAX_LONG_NEEDLES = 24
_MAX_NEEDLE_TOKENS = 12000
_NEEDLE_ROOM = 250  # tokens of a needle's example beside its filler


def training_sample(
    rng: random.Random, max_tokens: int, *, skill: str | None = None
) -> tuple[list[int], list[int]]:
    """Token ids and loss mask, both of the same length, at most ``max_tokens`` (300 or more) of
    them. ``skill`` is drawn by its share unless it is given. Never makes what a test asks."""
    draw = Draw(rng)
    while True:
        name = skill or rng.choices(list(SKILLS), [share for _, share in SKILLS.values()])[0]
        made = sample_of(maker_of(name, max_tokens)(draw))
        if len(made.token_ids) <= max_tokens:
            return made.token_ids, made.loss_mask


def long_sample(rng: random.Random, num_tokens: int) -> tuple[list[int], list[int]]:
    """Needles in a text of about ``num_tokens``, many: the text is what costs."""
    made = sample_of(needle.example(Draw(rng), num_tokens, max_needles=_MAX_LONG_NEEDLES))
    return made.token_ids, made.loss_mask


@functools.cache
def word_tokens() -> tuple[int, ...]:
    """Ids of the tokens that words, keys and numbers are made of, with and without a blank before
    them: what there is to look back for. Half of the vocabulary never occurs anywhere."""
    pieces = [word for kind in copying.KINDS for word in kind] + [str(digit) for digit in range(10)]
    ids: set[int] = set()
    for piece in pieces:
        for text in (piece, f" {piece}"):
            ids.update(tokenizer().encode(text, add_special_tokens=False))
    return tuple(sorted(ids))


def held_out_conversation(rng: random.Random, skill: str, **options: Any) -> Conversation:
    """One that the model was not taught. ``options`` are those of the skill's maker."""
    return partial(SKILLS[skill][0], **options)(Draw(rng, held_out=True))


def maker_of(skill: str, max_tokens: int) -> Maker:
    """Makes examples of the skill that mostly keep to ``max_tokens``."""
    make = SKILLS[skill][0]
    if skill == "needle":
        room = min(max_tokens, _MAX_NEEDLE_TOKENS) - _NEEDLE_ROOM
        return partial(needle.example, max_tokens=max(room, 50))
    return make
