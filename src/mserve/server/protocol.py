"""HTTP as uvicorn reads it, with bounds on what comes before the body.

A request's head is kept in memory until it is complete, so one that never ends would be a leak
that any stranger can open. Knows bytes on a connection. Does not know routes.
"""

from __future__ import annotations

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mserve.server.errors import HTTPError, openai_body

MAX_URL_BYTES = 8 << 10
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 256
HEAD_TIMEOUT_S = 30.0


class BoundedHttp(HttpToolsProtocol):
    """Answers 414, 431 or 408 in the one shape of errors and closes the connection."""

    _refusal: HTTPError | None = None
    _in_head = False
    _in_body = False
    _num_heads = 0
    _head_bytes = 0  # of the head that is not complete
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        in_body, num_heads = self._in_body, self._num_heads - self._in_head
        super().data_received(data)
        # All of ``data`` is of this head, unless it also holds a body before it.
        if self._in_head and not in_body and self._num_heads - num_heads == 1:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large(self.url))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._num_heads += 1
        self._head_bytes = 0
        if self._head_timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_timer()
        head_bytes = sum(len(name) + len(value) for name, value in self.headers)
        too_many = len(self.headers) > MAX_HEADERS or head_bytes > MAX_HEAD_BYTES
        if too_many or len(self.url) > MAX_URL_BYTES:
            self._refusal = _too_large(self.url)
            raise self._refusal  # the parser stops, and has us answer by ``send_400_response``
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or HTTPError(400, "this is no valid HTTP request"))

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._time_out)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_out(self) -> None:
        self._refuse(HTTPError(408, f"no request arrived within {HEAD_TIMEOUT_S:.0f} s"))

    def _refuse(self, error: HTTPError) -> None:
        """Answer and hang up; what still arrives is not read."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(openai_body(error))
        self.transport.write(
            STATUS_LINE[error.status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()


def _too_large(url: bytes) -> HTTPError:
    if len(url) > MAX_URL_BYTES:
        return HTTPError(414, f"the URL is longer than {MAX_URL_BYTES} bytes")
    return HTTPError(
        431, f"more than {MAX_HEADERS} headers, or more than {MAX_HEAD_BYTES >> 10} KB of them"
    )
