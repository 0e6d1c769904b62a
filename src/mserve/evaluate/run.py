"""All questions, some at a time. Knows neither files nor terminals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mserve.core import EngineError, RequestError, SetupError
from mserve.evaluate.client import Answer, AskClient
from mserve.evaluate.judge import judge
from mserve.evaluate.suite import Case


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """``number``: the case's place in its suite, from 0. ``unanswered``: why there is no answer.
    ``wrong``: what is wrong with the one there is; ``None``: nothing."""

    suite: str
    number: int
    case: Case
    answer: Answer
    wrong: str | None = None
    unanswered: str | None = None


async def run_cases(
    client: AskClient,
    suites: Mapping[str, Mapping[int, Case]],
    *,
    model: str,
    settings: Mapping[str, Any],
    concurrency: int,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Ask every case of every suite, ``concurrency`` at a time; the outcomes in their order. Cases
    stand under their places.

    ``settings`` hold for every request that does not say otherwise (temperature, say). A question
    that the server refuses or fails on is unanswered, and so is all that is left when the server
    is gone. Raises ``SetupError`` if it has answered nothing by then.
    """
    slots = asyncio.Semaphore(concurrency)
    has_answered = False
    gone: str | None = None

    async def outcome(suite: str, number: int, case: Case) -> Outcome:
        nonlocal has_answered, gone
        async with slots:
            answer, unanswered = Answer(), gone
            try:
                if gone is None:
                    answer = await client.ask({**settings, **case.request, "model": model})
                    has_answered = True
            except (RequestError, EngineError) as error:
                unanswered = error.message
            except SetupError as error:
                if not has_answered:
                    raise
                unanswered = gone = error.message
        made = Outcome(
            suite=suite,
            number=number,
            case=case,
            answer=answer,
            wrong=None if unanswered else judge(case.check, answer),
            unanswered=unanswered,
        )
        report(made)
        return made

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(outcome(name, number, case))
                for name, cases in suites.items()
                for number, case in cases.items()
            ]
    except* Exception as errors:  # the first is the one to tell; the others follow from it
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]
