"""Answers over HTTP: server-sent events or one body, and the client that may leave meanwhile.

Knows ASGI. Does not know what the events say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mserve.core import MserveError
from mserve.server.errors import error_body
from mserve.server.generation import ClientGoneError, Generation

STALLED_READER_S = 60.0
"""A client that takes nothing for so long is treated as gone. Until then its unread tokens are
all that it costs."""

DONE = b"data: [DONE]\n\n"


def event(payload: Any) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


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
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with closing_on_disconnect(receive, self._close):
            try:
                async with contextlib.aclosing(self._events):
                    async for data in self._events:
                        await _send_body(send, data, more=True)
                await _send_body(send, DONE, more=False)
            except MserveError as error:
                await _send_body(send, event(error_body(error)) + DONE, more=False)
            except (ClientGoneError, TimeoutError):
                return


async def _send_body(send: Send, data: bytes, *, more: bool) -> None:
    async with asyncio.timeout(STALLED_READER_S):
        await send({"type": "http.response.body", "body": data, "more_body": more})


def json_response(payload: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(payload), media_type="application/json", headers=dict(headers or {})
    )


class AnswerShape(Protocol):
    """Writes one generation in the form of one API."""

    async def whole(self) -> dict[str, Any]: ...

    def events(self) -> AsyncGenerator[bytes, None]: ...


async def respond(
    http: Request,
    generation: Generation,
    shape: AnswerShape,
    *,
    streamed: bool,
    headers: Mapping[str, str],
) -> Response:
    """The answer as events or as one body. Closes the generation, whatever happens."""
    if streamed:
        return EventStream(shape.events(), generation.close, headers)
    with closing_on_disconnect(http.receive, generation.close):
        try:
            return json_response(await shape.whole(), headers)
        except ClientGoneError:
            # Nobody will read it; 499 is what proxies log for a client that left.
            return Response(status_code=499)
