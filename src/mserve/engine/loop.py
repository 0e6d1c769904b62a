"""The engine: plan, run, settle. ``step`` is the map of the whole system.

What may not enter this file: anything about tensors or devices (``runner``), about order, budgets
or blocks (``scheduler``), about sockets, draining or process life (``process``), about ranks
(``ranks``), and any second kind of step. If a feature seems to need a branch here, it belongs into
one of the three verbs.

Knows the order of the three, and that a request which was refused or failed still gets its one
finished output. Does not know how any of them works; torch is not imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from mserve.core import (
    FinishReason,
    MserveError,
    Request,
    RequestOutput,
    RequestTimes,
    StepPlan,
    StepResult,
)
from mserve.scheduler import Scheduler
from mserve.wire import EngineStats

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Computes plans, one after the other, and keeps the rows' state between them."""

    def run(self, plan: StepPlan) -> StepResult: ...


class Engine:
    """One scheduler, one runner. Not thread-safe: one loop calls all of this."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._clock = clock

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def submit(self, requests: Iterable[Request]) -> list[RequestOutput]:
        """Queue ``requests``. One that is refused is answered here, with ERROR and the reason."""
        refusals = []
        for request in requests:
            try:
                self._scheduler.add(request)
            except MserveError as error:
                refusals.append(refusal(request, error, self._clock()))
        return refusals

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End these now and free their blocks; returns their finished outputs."""
        return self._scheduler.abort(request_ids)

    def abort_all(self) -> list[RequestOutput]:
        return self._scheduler.abort(self._scheduler.request_ids)

    def step(self) -> list[RequestOutput]:
        """One round for everybody. Returns what it gave; empty also when there was no work."""
        plan = self._scheduler.plan()
        if plan is None:
            return []
        result = self._run(plan)
        return self._scheduler.settle(plan, result)

    def _run(self, plan: StepPlan) -> StepResult:
        """A step that breaks as a whole ends the requests in it; the engine goes on."""
        try:
            return self._runner.run(plan)
        except Exception as error:
            logger.exception("step %d failed", plan.step)
            reason = str(error) if isinstance(error, MserveError) else "the model step failed"
            return StepResult(plan.step, (), {span.row: reason for span in plan.spans})

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def audit(self) -> None:
        """Raises ``EngineError`` if the books are wrong."""
        self._scheduler.audit()


def refusal(request: Request, error: MserveError, now_s: float) -> RequestOutput:
    """The finished output of a request that never entered the queue."""
    return RequestOutput(
        request_id=request.request_id,
        finish_reason=FinishReason.ERROR,
        error=error.message,
        error_code=error.code,
        times=RequestTimes(request.arrival_s or now_s, now_s, now_s, now_s),
    )
