"""The server's life: listen, load, serve, drain, leave.

    SIGTERM ──> not ready, new work refused ──> what runs finishes, up to a limit ──> exit 0

Knows the order of things. Does not know endpoints or the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator, Sequence

import uvicorn
import uvloop

from mserve.core import EngineConfig, SetupError
from mserve.server.app import create_app
from mserve.server.protocol import BoundedHttp
from mserve.server.service import Service
from mserve.server.supervisor import Supervisor

log = logging.getLogger(__name__)

_POLL_S = 0.02


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded. Raises ``SetupError`` naming the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.args[-1]}",
            hint="choose another --port (0 takes a free one) or --host",
        ) from None


def run_server(
    service: Service,
    listener: socket.socket,
    engine: EngineConfig,
    engine_command: Sequence[str],
) -> None:
    """Serve until told to stop. Raises ``SetupError`` if the engine cannot start."""
    uvloop.run(_Run(service, listener, Supervisor(service, engine_command, engine)).main())


class _Run:
    def __init__(self, service: Service, listener: socket.socket, supervisor: Supervisor) -> None:
        self._service = service
        self._listener = listener
        self._supervisor = supervisor
        self._server = _Uvicorn(
            uvicorn.Config(
                create_app(service),
                http=BoundedHttp,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )
        self._told_to_stop = asyncio.Event()
        self._told_twice = asyncio.Event()

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        supervising = asyncio.create_task(self._supervisor.run())
        stopping = asyncio.create_task(self._told_to_stop.wait())
        try:
            await asyncio.wait(
                {serving, supervising, stopping}, return_when=asyncio.FIRST_COMPLETED
            )
            await self._drain()
        finally:
            stopping.cancel()
            await self._supervisor.stop()
            self._server.should_exit = True
            await serving
            self._service.close()
        await supervising

    def _on_signal(self) -> None:
        """The first signal drains; a second one does not wait."""
        self._service.draining = True
        if self._told_to_stop.is_set():
            self._told_twice.set()
        self._told_to_stop.set()

    async def _drain(self) -> None:
        client = self._service.client
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._service.config.shutdown_timeout_s):
                while client.num_open and not self._told_twice.is_set():
                    await asyncio.sleep(_POLL_S)
        if client.num_open:
            log.warning("%d requests did not finish in time", client.num_open)
            client.end_all("the server is shutting down", code="server_shutting_down")
            await asyncio.sleep(_POLL_S)


class _Uvicorn(uvicorn.Server):
    """Signals are ours: uvicorn's own handling would close the listener before the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
