"""What an answer says, in order and by kind: the seam between a model's markup and the APIs.

    ReasoningDelta*  ContentDelta*  (CallStarted ArgumentsDelta* CallFinished)*  Finished

Any of the first three kinds may come again. Between ``CallStarted`` and its ``CallFinished`` come
only that call's ``ArgumentsDelta``s. Their texts together are at any time a prefix of one valid
JSON object, and in the end exactly ``CallFinished.arguments``. ``Finished`` comes once, last.
Knows shapes only.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """More of what the model thinks. ``text`` is never empty."""

    text: str


class ContentDelta(msgspec.Struct, frozen=True, gc=False):
    """More of what the model says. ``text`` is never empty."""

    text: str


class CallStarted(msgspec.Struct, frozen=True, gc=False):
    """A tool call begins. ``index`` counts the calls of one answer from 0; ``id`` is unique."""

    index: int
    name: str
    id: str


class ArgumentsDelta(msgspec.Struct, frozen=True, gc=False):
    """More JSON of the arguments of call ``index``. ``text`` is never empty."""

    index: int
    text: str


class CallFinished(msgspec.Struct, frozen=True):
    """Call ``index`` is over.

    ``incomplete``: the answer ended within it. What was open has been closed, so ``arguments``
    is a valid JSON object even then, but it must not be taken for what the model meant to send.
    ``problems``: what in the markup was resolved by a rule rather than as written; for logs.
    """

    index: int
    arguments: str
    incomplete: bool = False
    problems: tuple[str, ...] = ()


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The answer is over. ``left_open``: what the model had begun and not ended."""

    left_open: Literal["nothing", "thinking", "call"]


Event: TypeAlias = (
    ReasoningDelta | ContentDelta | CallStarted | ArgumentsDelta | CallFinished | Finished
)
