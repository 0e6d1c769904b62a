"""The wire without sockets: an engine in a thread of this process, for tests and embedding.

The two ends behave as ``SocketLink`` and ``EnginePort`` do, and messages pass through the same
codec, so what works here is what can be said between processes.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable

from mserve.wire.messages import (
    FromEngine,
    ToEngine,
    decode_from_engine,
    decode_to_engine,
    encode,
)


class LocalPort:
    """The engine's end; used from the engine's thread."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._deliver: Callable[[bytes], None] | None = None
        self._early: list[bytes] = []

    def poll(self, timeout_s: float | None = 0.0) -> list[ToEngine]:
        """As ``EnginePort.poll``."""
        messages: list[ToEngine] = []
        try:
            messages.append(decode_to_engine(self._inbox.get(timeout_s != 0, timeout_s or None)))
            while True:
                messages.append(decode_to_engine(self._inbox.get_nowait()))
        except queue.Empty:
            return messages

    def send(self, message: FromEngine) -> None:
        data = encode(message)
        if self._deliver is None:
            self._early.append(data)
        else:
            self._deliver(data)


class LocalLink:
    """The front end's end; used on an asyncio loop."""

    def __init__(self, port: LocalPort) -> None:
        self._port = port
        self._open = False

    def open(self, receive: Callable[[FromEngine], None]) -> None:
        loop = asyncio.get_running_loop()
        self._open = True

        def arrive(data: bytes) -> None:
            if self._open:
                receive(decode_from_engine(data))

        def deliver(data: bytes) -> None:
            if self._open and not loop.is_closed():
                loop.call_soon_threadsafe(arrive, data)

        self._port._deliver = deliver
        while self._port._early:
            arrive(self._port._early.pop(0))

    def send(self, message: ToEngine) -> None:
        self._port._inbox.put(encode(message))

    def close(self) -> None:
        self._open = False


def local_pair() -> tuple[LocalLink, LocalPort]:
    """Two ends that talk to each other."""
    port = LocalPort()
    return LocalLink(port), port
