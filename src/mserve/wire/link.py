"""The front end's end of the wire to one engine process, on an asyncio loop.

Knows sockets and the message codec; one link lives as long as one engine process, so that nothing
a dead engine said can reach its successor. Does not know requests (``client``).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from mserve.wire.messages import FromEngine, ToEngine, decode_from_engine, encode

log = logging.getLogger(__name__)

_MAX_IPC_PATH_BYTES = 90  # the kernel's limit for a socket path is 107, file name included


class Link(Protocol):
    """What a client needs of a connection to an engine."""

    def open(self, receive: Callable[[FromEngine], None]) -> None:
        """Start to hand arriving messages to ``receive``, on the running loop."""

    def send(self, message: ToEngine) -> None:
        """Never blocks; the message has left this thread on return."""

    def close(self) -> None: ...


class SocketLink:
    """Binds two zmq sockets in ``directory``, which only this user can enter and which is removed
    with all that it holds when the link is closed."""

    def __init__(self) -> None:
        self.directory = _private_directory()
        self.inbox = f"ipc://{self.directory}/to-engine"
        self.outbox = f"ipc://{self.directory}/from-engine"
        self._context = zmq.Context(io_threads=1)
        self._push = self._context.socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        for socket in (self._push, self._pull):
            socket.set_hwm(0)  # bounded by the number of open requests
            socket.setsockopt(zmq.LINGER, 0)
        self._push.bind(self.inbox)
        self._pull.bind(self.outbox)
        self._receive: Callable[[FromEngine], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, receive: Callable[[FromEngine], None]) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor(), self.drain)
        self.drain()

    def send(self, message: ToEngine) -> None:
        self._push.send(encode(message), zmq.NOBLOCK)

    def drain(self) -> None:
        """Deliver everything that has arrived. zmq signals its descriptor once per burst, so
        stopping early would strand the rest."""
        while not self._pull.closed:
            try:
                data = self._pull.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_from_engine(data)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("dropped %d bytes that are no message: %s", len(data), error)
                continue
            if self._receive is not None:
                self._receive(message)

    def close(self) -> None:
        if self._pull.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor())
        self._context.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _descriptor(self) -> int:
        return int(self._pull.getsockopt(zmq.FD))


def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="mserve-"))  # mode 0700
    if len(str(directory).encode()) > _MAX_IPC_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="mserve-", dir="/tmp"))
    return directory
