"""Requests over a link: the front end's view of the engine.

    submit ──> OutputStream ──> finished     one per HTTP request, over all its choices
                    └── close ──> Abort      the reader left: the engine hears it at once

Knows which requests are open and what the engine last said of itself. Does not know HTTP, text or
how the engine process is kept alive. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from mserve.core import FinishReason, NotReadyError, QueueFullError, Request, RequestOutput
from mserve.wire.link import Link
from mserve.wire.messages import (
    Abort,
    EngineStats,
    Failed,
    FromEngine,
    Loading,
    Outputs,
    Ready,
    Shutdown,
    Submit,
)


class Phase(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"  # the engine died after it had been ready
    FAILED = "failed"


class EngineStatus(msgspec.Struct, frozen=True):
    """What the engine last said of its own life."""

    phase: Phase = Phase.LOADING
    loading: Loading = Loading("start", 0.0)
    failed: Failed | None = None


class EngineObserver(Protocol):
    """Told about everything that arrives, for metrics and the terminal."""

    def status_changed(self, status: EngineStatus) -> None: ...

    def step_done(self, stats: EngineStats) -> None: ...

    def request_finished(self, output: RequestOutput) -> None: ...


class OutputStream:
    """Outputs of the requests submitted together, in order of arrival.

    A reader that falls behind finds at most one output per request: later ones are merged into
    it, so a stalled client costs the tokens it has not read and nothing more.
    """

    def __init__(self, request_ids: Sequence[str], abort: Callable[[list[str]], None]) -> None:
        self._unfinished = set(request_ids)
        self._abort = abort
        self._pending: dict[str, RequestOutput] = {}
        self._arrival = asyncio.Event()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._pending:
            if not self._unfinished:
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()
        return self._pending.pop(next(iter(self._pending)))

    def drop(self, request_id: str) -> None:
        """No more of this one; the engine is told if it was still running."""
        self._pending.pop(request_id, None)
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._abort([request_id])

    def close(self) -> None:
        """No more of any; a waiting reader sees the end. Safe to call twice."""
        self._pending.clear()
        self._arrival.set()
        if self._unfinished:
            unfinished = sorted(self._unfinished)
            self._unfinished.clear()
            self._abort(unfinished)

    def put(self, output: RequestOutput) -> None:
        """Called by the client for each output that arrives."""
        waiting = self._pending.get(output.request_id)
        self._pending[output.request_id] = output if waiting is None else merged(waiting, output)
        if output.finish_reason is not None:
            self._unfinished.discard(output.request_id)
        self._arrival.set()


class EngineClient:
    """Submits requests over the current link and hands their outputs to their streams."""

    def __init__(self, observer: EngineObserver) -> None:
        self.status = EngineStatus()
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self._observer = observer
        self._link: Link | None = None
        self._streams: dict[str, OutputStream] = {}

    @property
    def num_open(self) -> int:
        """Requests that wait or run."""
        return len(self._streams)

    def attach(self, link: Link) -> None:
        """Talk to a new engine process."""
        self._link = link
        link.open(self._receive)

    def detach(self, message: str, *, phase: Phase = Phase.RESTARTING) -> None:
        """The engine is gone: every open request ends now with an error."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self.ready = None
        self.stats = EngineStats()
        self._change(EngineStatus(phase, failed=self.status.failed))
        self.end_all(message, code="engine_restarting")

    def end_all(self, message: str, *, code: str) -> None:
        """End every open request with an error, telling the engine if there still is one."""
        streams, self._streams = self._streams, {}
        if self._link is not None and streams:
            self._link.send(Abort(list(streams)))
        for request_id, stream in streams.items():
            output = RequestOutput(
                request_id=request_id,
                finish_reason=FinishReason.ERROR,
                error=message,
                error_code=code,
            )
            stream.put(output)
            self._observer.request_finished(output)

    def submit(self, requests: Sequence[Request]) -> OutputStream:
        """Raises ``NotReadyError`` while there is no engine, ``QueueFullError`` when its rows and
        queue are taken. The count is exact, since nobody else submits."""
        if self._link is None or self.ready is None:
            raise NotReadyError(not_ready_message(self.status))
        room = self.ready.max_num_seqs + self.ready.max_waiting - self.num_open
        if len(requests) > room:
            raise QueueFullError(f"{self.num_open} requests are running or waiting; try again")
        stream = OutputStream([request.request_id for request in requests], self._abort)
        for request in requests:
            self._streams[request.request_id] = stream
        self._link.send(Submit(list(requests)))
        return stream

    def shutdown(self, drain_s: float = 0.0) -> None:
        """Ask the engine to finish and exit."""
        if self._link is not None:
            self._link.send(Shutdown(drain_s))

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._streams.pop(request_id, None)
        if self._link is not None:
            self._link.send(Abort(request_ids))

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Outputs():
                self._receive_outputs(message)
            case Loading():
                phase = Phase.LOADING if self.status.phase is Phase.LOADING else Phase.RESTARTING
                self._change(EngineStatus(phase, loading=message))
            case Ready():
                self.ready = message
                self.stats = EngineStats(
                    num_free_blocks=message.num_blocks, num_blocks=message.num_blocks
                )
                self._change(EngineStatus(Phase.READY))
            case Failed():
                self._change(EngineStatus(Phase.FAILED, failed=message))

    def _receive_outputs(self, message: Outputs) -> None:
        self.stats = message.stats
        self._observer.step_done(message.stats)
        for output in message.outputs:
            finished = output.finish_reason is not None
            if finished:
                self._observer.request_finished(output)
                stream = self._streams.pop(output.request_id, None)
            else:
                stream = self._streams.get(output.request_id)
            if stream is not None:  # else: aborted here, and the engine's last words crossed it
                stream.put(output)

    def _change(self, status: EngineStatus) -> None:
        self.status = status
        self._observer.status_changed(status)


def not_ready_message(status: EngineStatus) -> str:
    """One sentence on why there is no engine to talk to."""
    match status.phase:
        case Phase.LOADING:
            percent = round(100 * status.loading.fraction)
            return f"the model is loading: {status.loading.stage} {percent}%"
        case Phase.FAILED if status.failed is not None:
            return f"the engine failed: {status.failed.message}"
        case _:
            return "the engine is restarting"


def merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two consecutive outputs of one request as one. Takes over ``first``'s lists."""
    first.new_token_ids.extend(second.new_token_ids)
    if first.logprobs is not None and second.logprobs is not None:
        first.logprobs.extend(second.logprobs)
    return RequestOutput(
        request_id=first.request_id,
        new_token_ids=first.new_token_ids,
        logprobs=first.logprobs if first.logprobs is not None else second.logprobs,
        prompt_logprobs=first.prompt_logprobs or second.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens or second.num_cached_tokens,
        finish_reason=second.finish_reason,
        stop_token_id=second.stop_token_id,
        error=second.error,
        error_code=second.error_code,
        times=second.times,
    )


def now_s() -> float:
    """The clock of ``Request.arrival_s``, shared by all processes of one machine."""
    return time.monotonic()
