"""The engine's end of the wire: a blocking poll for what to do, a send for what came of it.

Knows sockets and the message codec. Does not know what a message leads to. Bytes that are no
message are dropped and logged, never trusted: nothing here can execute what it receives.
"""

from __future__ import annotations

import logging
from typing import Self

import msgspec
import zmq

from mserve.wire.messages import FromEngine, ToEngine, decode_to_engine, encode

log = logging.getLogger(__name__)

_LINGER_MS = 2000  # a last Failed or Outputs must leave before the process does


class EnginePort:
    """Connects to a front end that has bound ``inbox`` and ``outbox`` (see ``SocketLink``)."""

    def __init__(self, inbox: str, outbox: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._pull = self._context.socket(zmq.PULL)
        self._push = self._context.socket(zmq.PUSH)
        for socket in (self._pull, self._push):
            # No bound here: the number of open requests bounds both directions, and a full
            # socket would stall the engine's loop for one slow client.
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._pull.connect(inbox)
        self._push.connect(outbox)

    def poll(self, timeout_s: float | None = 0.0) -> list[ToEngine]:
        """All messages that have arrived, in order; waits up to ``timeout_s`` for the first
        (``None``: as long as it takes)."""
        timeout_ms = None if timeout_s is None else max(0, round(timeout_s * 1000))
        if not self._pull.poll(timeout_ms):
            return []
        messages: list[ToEngine] = []
        while True:
            try:
                data = self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(decode_to_engine(data))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("dropped %d bytes that are no message: %s", len(data), error)

    def send(self, message: FromEngine) -> None:
        """Never blocks."""
        self._push.send(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Waits a moment for sent messages to leave."""
        self._context.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
