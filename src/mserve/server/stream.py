"""Answers over HTTP: server-sent events or one body, and the client that may leave meanwhile.

An API writes its answers as *payloads*, small JSON objects in order. A stream sends each as it
comes; a whole answer is the fold of the same payloads, so the two cannot differ. Knows ASGI. Does
not know what payloads say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mserve.core import MserveError
from mserve.server.errors import internal_error, openai_body
from mserve.server.generation import ChoiceUpdate, ClientGoneError, Generation

STALLED_READER_S = 60.0
"""A client that takes nothing for so long is treated as gone. Until then its unread tokens are
all that it costs."""

SILENCE_S = 15.0
"""After so long without an event a sign of life is sent: proxies cut what is silent."""

Payload: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode

# Characters that JSON lets stand and at which text, unlike a stream of events, may end a line.
_LINE_ENDS = [(end.encode(), rb"\u%04x" % ord(end)) for end in "\x85\u2028\u2029"]


def event(payload: Any) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + _one_line(payload) + b"\n\n"


def named_event(payload: Payload) -> bytes:
    """A server-sent event named after the payload's ``type``."""
    name: str = payload["type"]
    return b"event: " + name.encode() + b"\ndata: " + _one_line(payload) + b"\n\n"


def _one_line(payload: Any) -> bytes:
    """JSON that is one line to every client: many split what they have decoded (httpx does) and
    would find half an event before a line separator of the answer."""
    line = _encode(payload)
    for end, escaped in _LINE_ENDS:
        line = line.replace(end, escaped)
    return line


class StreamForm(msgspec.Struct, frozen=True):
    """How one API puts payloads into a stream."""

    encode: Callable[[Payload], bytes]
    failure: Callable[[MserveError], bytes]
    """What is sent when an answer fails after its status was."""
    end: bytes = b""
    sign_of_life: bytes = b": still here\n\n"  # a comment, which clients skip


OPENAI_STREAM = StreamForm(
    encode=event,
    failure=lambda error: event(openai_body(error)),
    end=b"data: [DONE]\n\n",
)


class AnswerForm(Protocol):
    """Writes one generation in the form of one API."""

    def begin(self) -> list[Payload]:
        """Before anything was generated."""

    def update(self, update: ChoiceUpdate) -> list[Payload]: ...

    def end(self) -> list[Payload]:
        """After all choices have finished."""

    def fold(self) -> Fold:
        """An empty one."""


class Fold(Protocol):
    """Puts payloads together as a client would."""

    def add(self, payload: Payload) -> None: ...

    def whole(self) -> Payload: ...


async def payloads(generation: Generation, form: AnswerForm) -> AsyncGenerator[list[Payload], None]:
    """All payloads of one answer, those that belong together at once."""
    yield form.begin()
    async for update in generation.updates():
        if batch := form.update(update):
            yield batch
    yield form.end()


async def folded(generation: Generation, form: AnswerForm) -> Payload:
    """The whole answer."""
    fold = form.fold()
    async for batch in payloads(generation, form):
        for payload in batch:
            fold.add(payload)
    return fold.whole()


@contextlib.contextmanager
def closing_on_disconnect(receive: Receive, close: Callable[[], None]) -> Iterator[None]:
    """``close`` runs as soon as the client is gone, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        close()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        close()


class EventStream(Response):
    """A 200 whose body is events. Whatever fails after that is told as an event, then the end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        form: StreamForm = OPENAI_STREAM,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._form = form
        self._num_sent = 0
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with closing_on_disconnect(receive, self._close):
            try:
                await self._send_events(send)
                last = self._form.end
            except MserveError as error:
                last = self._form.failure(error) + self._form.end
            except (ClientGoneError, TimeoutError):
                return
            except Exception as error:
                log.error("an answer failed on its way out", exc_info=error)
                last = self._form.failure(internal_error()) + self._form.end
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALLED_READER_S):
                    await send(_body(last, more=False))

    async def _send_events(self, send: Send) -> None:
        """Raises ``TimeoutError`` when the reader takes nothing any more."""
        async with asyncio.timeout(None) as stall, contextlib.aclosing(self._events):
            watch = asyncio.get_running_loop().create_task(self._watch(send, stall))
            try:
                async for data in self._events:
                    self._is_sending = True
                    await send(_body(data, more=True))
                    self._is_sending = False
                    self._num_sent += 1
            finally:
                watch.cancel()

    async def _watch(self, send: Send, stall: asyncio.Timeout) -> None:
        """Breaks silence and notices a stall. One wake-up per interval, since a timer for each
        event would cost a fifth of all that a token costs here."""
        interval_s = min(SILENCE_S, STALLED_READER_S)
        stalled_s = 0.0
        while stalled_s < STALLED_READER_S:
            before = self._num_sent
            await asyncio.sleep(interval_s)
            if self._num_sent != before:
                stalled_s = 0.0
            elif self._is_sending:
                stalled_s += interval_s
            else:
                try:
                    async with asyncio.timeout(STALLED_READER_S):
                        await send(_body(self._form.sign_of_life, more=True))
                except TimeoutError:
                    break
        stall.reschedule(asyncio.get_running_loop().time())


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def json_response(payload: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(payload), media_type="application/json", headers=dict(headers or {}))


async def encoded(
    batches: AsyncGenerator[list[Payload], None], form: StreamForm
) -> AsyncGenerator[bytes, None]:
    """One piece of the body per batch."""
    async with contextlib.aclosing(batches):
        async for batch in batches:
            if batch:
                yield b"".join(map(form.encode, batch))


async def respond(
    http: Request,
    generation: Generation,
    form: AnswerForm,
    *,
    streamed: bool,
    headers: Mapping[str, str],
    stream_form: StreamForm = OPENAI_STREAM,
) -> Response:
    """The answer as events or as one body. Closes the generation, whatever happens."""
    if streamed:
        pieces = encoded(payloads(generation, form), stream_form)
        return EventStream(pieces, generation.close, headers, stream_form)
    with closing_on_disconnect(http.receive, generation.close):
        try:
            return json_response(await folded(generation, form), headers)
        except ClientGoneError:
            # Nobody will read it; 499 is what proxies log for a client that left.
            return Response(status_code=499)
