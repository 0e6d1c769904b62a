"""The life of an engine between "ready" and the end of its process: serve until told to stop.

    poll ──> submit, abort ──> step ──> send ──> poll ...      while there is work
    poll (blocking) ... quiet for a moment ──> audit, once     while there is none

Knows messages, draining and idleness. Does not know sockets (``wire``), what a step does
(``loop``), or how the engine was built (``startup``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from mserve.core import NotReadyError, Request, RequestOutput
from mserve.engine.loop import Engine, refusal
from mserve.wire import Abort, Failed, FromEngine, Outputs, Ready, Shutdown, Submit, ToEngine

logger = logging.getLogger(__name__)

# Quiet for this long, the engine audits its books: after a burst, but not between two requests
# of one client. The audit takes about 1 us per block, and a request may arrive meanwhile.
_QUIET_S = 0.2
_IDLE_POLL_S = 5.0


class Port(Protocol):
    """The engine's end of the line to the front end."""

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """All messages that are there; waits up to ``timeout_s`` for the first one."""
        ...

    def send(self, message: FromEngine) -> None: ...


def serve(
    engine: Engine, port: Port, ready: Ready, clock: Callable[[], float] = time.monotonic
) -> None:
    """Announce ``ready``, then work until a ``Shutdown`` has been carried out.

    An error outside a model step means that the books cannot be trusted: it is reported as
    ``Failed`` and raised, for the process to end and be started anew.
    """
    port.send(ready)
    try:
        _Service(engine, port, clock).run()
    except Exception:
        logger.exception("the engine broke")
        port.send(Failed("the engine stopped after an internal error; its log says more"))
        raise


class _Service:
    def __init__(self, engine: Engine, port: Port, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._port = port
        self._clock = clock
        self._deadline_s: float | None = None  # set by Shutdown

    def run(self) -> None:
        audited = True
        while not self._is_over():
            if self._engine.has_work:
                self._take(self._port.poll(0.0))
                self._report(self._engine.step())
                audited = False
                continue
            messages = self._port.poll(_IDLE_POLL_S if audited else _QUIET_S)
            if not messages and not audited:
                self._engine.audit()
                audited = True
            self._take(messages)
        self._report(self._engine.abort_all())

    def _is_over(self) -> bool:
        if self._deadline_s is None:
            return False
        return not self._engine.has_work or self._clock() >= self._deadline_s

    def _take(self, messages: list[ToEngine]) -> None:
        outputs: list[RequestOutput] = []
        for message in messages:
            match message:
                case Submit(requests):
                    outputs += self._submit(requests)
                case Abort(request_ids):
                    outputs += self._engine.abort(request_ids)
                case Shutdown(drain_s):
                    self._deadline_s = self._clock() + drain_s
        if outputs:
            self._report(outputs)

    def _submit(self, requests: list[Request]) -> list[RequestOutput]:
        if self._deadline_s is not None:
            error = NotReadyError("the server is shutting down; send the request elsewhere")
            return [refusal(request, error, self._clock()) for request in requests]
        return self._engine.submit(requests)

    def _report(self, outputs: list[RequestOutput]) -> None:
        self._port.send(Outputs(outputs, self._engine.stats()))
