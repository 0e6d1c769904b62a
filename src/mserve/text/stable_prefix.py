"""Keeps the beginning of a conversation's prompt the same from turn to turn.

A cached prefix serves up to the first token that differs, so one number that some client counts
down at the head of its system text costs a whole prompt per turn. Each rule below undoes one such
habit and may be switched off by name:

    billing_header   drops the line that Claude Code puts first; its hash changes every request
    token_budget     drops its count of tokens left from system text; it changes every request
                     and old copies stay (the price: the model does not see the count)

``KeptThinking`` is an opt-in for M2, whose template shows thinking only after the last user
message and so rewrites the past at every user turn. Knows messages and what clients write. Does
not know the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from mserve.text.dialects import Dialect

_BILLING_HEADER: Final = re.compile(r"\s*x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*;)+\s*")
_TOKEN_BUDGET: Final = re.compile(r"\s{0,4}<total_tokens>\d+ tokens left</total_tokens>")

Messages = Sequence[Mapping[str, Any]]


def drop_billing_header(messages: Messages) -> Messages:
    """At the beginning of a leading system text, or as a part of its own there."""
    if not messages or messages[0].get("role") not in ("system", "developer"):
        return messages
    head = _edited(messages[0], lambda text: text[_end_of_header(text) :])
    return [head, *messages[1:]]


def drop_token_budget(messages: Messages) -> Messages:
    """In system and developer texts, wherever they stand. Users may write what they like."""
    return [
        _edited(message, lambda text: _TOKEN_BUDGET.sub("", text))
        if message.get("role") in ("system", "developer")
        else message
        for message in messages
    ]


STABLE_PREFIX_RULES: Final[dict[str, Callable[[Messages], Messages]]] = {
    "billing_header": drop_billing_header,
    "token_budget": drop_token_budget,
}


def with_stable_prefix(
    messages: Messages, rules: Collection[str] = STABLE_PREFIX_RULES.keys()
) -> Messages:
    """``messages`` as they came, after ``rules``; before ``normalised``."""
    for name, rule in STABLE_PREFIX_RULES.items():
        if name in rules:
            messages = rule(messages)
    return messages


class KeptThinking:
    """Thinking of earlier turns, kept in the prompt of a template that would drop it.

    Whatever the template does, it copies content: so the thinking goes through it as a short
    placeholder at the beginning of the content, and ``restored`` puts the text in its place.
    """

    def __init__(
        self,
        messages: Messages,
        dialect: Dialect,
        quote: Callable[[str], str] = lambda text: text,
    ) -> None:
        """``messages``: ``normalised``. Use ``self.messages`` for rendering. ``quote`` is what
        keeps the thinking, which meets no template, from spelling control tokens."""
        self._quote = quote
        self._texts: dict[str, str] = {}
        self._placeholder = _unused("kept", messages)
        last_user = max(
            (i for i, message in enumerate(messages) if message["role"] == "user"), default=-1
        )
        self.messages = [
            self._held(message, dialect) if number < last_user else dict(message)
            for number, message in enumerate(messages)
        ]

    def restored(self, prompt: str) -> str:
        for placeholder, text in self._texts.items():
            prompt = prompt.replace(placeholder, text)
        return prompt

    def _held(self, message: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
        held = dict(message)
        if message["role"] == "assistant" and isinstance(message["content"], str):
            thinking = held.pop("reasoning_content", "")
            if thinking:
                placeholder = f"[{self._placeholder}:{len(self._texts)}]"
                self._texts[placeholder] = (
                    dialect.think_open
                    + dialect.after_think_open
                    + self._quote(thinking)
                    + dialect.before_think_close
                    + dialect.think_close
                    + dialect.after_think_close
                )
                held["content"] = placeholder + held["content"]
        return held


def _unused(word: str, messages: Messages) -> str:
    """A word that no message holds."""
    texts = repr(messages)
    number = 0
    while f"{word}{number}" in texts:
        number += 1
    return f"{word}{number}"


def _end_of_header(text: str) -> int:
    header = _BILLING_HEADER.match(text)
    return 0 if header is None else header.end()


def _edited(message: Mapping[str, Any], edit: Callable[[str], str]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": edit(content)}
    if not isinstance(content, list):
        return message
    parts = [
        {**part, "text": edit(part["text"])}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
        for part in content
    ]
    return {**message, "content": parts}
