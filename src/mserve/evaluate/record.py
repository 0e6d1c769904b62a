"""What a run of ``mserve eval`` leaves behind: one JSON object, enough to compare two runs and to
see what was answered wrong.

Knows its fields; does not know files.
"""

from __future__ import annotations

from typing import Any

import msgspec

import mserve
from mserve.evaluate.run import Outcome
from mserve.evaluate.tally import FloorResult, Score


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A case, by its place in the suite's file from 0, and the answer that failed it."""

    suite: str
    number: int
    part: str
    wrong: str
    content: str
    reasoning: str
    calls: tuple[dict[str, Any], ...]
    finish_reason: str | None


class Unanswered(msgspec.Struct, frozen=True, kw_only=True):
    """A case, by its place as in ``Wrong``, and why it got no answer."""

    suite: str
    number: int
    part: str
    reason: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``started``: ISO 8601, UTC. ``tasks``: what lm-eval says of its tasks, as it says it.
    ``stopped``: why not all was asked; ``None``: all was."""

    mserve_version: str = mserve.__version__
    target: str
    model: str
    started: str
    duration_s: float
    settings: dict[str, Any]
    scores: dict[str, Score]
    floors: tuple[FloorResult, ...] = ()
    completion_tokens: int = 0
    wrong: tuple[Wrong, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()
    stopped: str | None = None
    tasks: dict[str, Any] = {}

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def wrong_of(outcome: Outcome) -> Wrong:
    return Wrong(
        suite=outcome.suite,
        number=outcome.number,
        part=outcome.case.part,
        wrong=outcome.wrong or "",
        content=outcome.answer.content,
        reasoning=outcome.answer.reasoning,
        calls=outcome.answer.calls,
        finish_reason=outcome.answer.finish_reason,
    )


def unanswered_of(outcome: Outcome) -> Unanswered:
    return Unanswered(
        suite=outcome.suite,
        number=outcome.number,
        part=outcome.case.part,
        reason=outcome.unanswered or "",
    )
