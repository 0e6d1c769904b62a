"""Keeps one engine process alive: starts it, listens for its end, starts it again.

    start ──> loading ──> ready ──> died ──> wait 1, 2, 4 ... 30 s ──> start
                 └── refused or died at the first start: over, nothing to go back to

Knows processes. Does not know requests: the client ends them when the engine goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from mserve.core import EngineConfig, SetupError
from mserve.server.service import Service
from mserve.wire import EngineLaunch, Phase, SocketLink, encode_launch

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0
_EXIT_PATIENCE_S = 5.0  # for an engine that was asked to leave


class Supervisor:
    """Owns the engine process of one service."""

    def __init__(self, service: Service, command: Sequence[str], config: EngineConfig) -> None:
        """``command`` starts a program that reads an ``EngineLaunch`` from its input."""
        self._service = service
        self._command = list(command)
        self._config = config
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._was_ready = False

    async def run(self) -> None:
        """Until ``stop``. Raises ``SetupError`` if the engine never became ready."""
        delay_s = _FIRST_DELAY_S
        while True:
            became_ready = await self._live_once()
            if self._stopping.is_set():
                return
            if not self._was_ready:
                raise self._first_start_error()
            if became_ready:
                delay_s = _FIRST_DELAY_S
            log.error("the engine process died; starting it again in %.0f s", delay_s)
            if await self._told_to_stop_within(delay_s):
                return
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            self._service.metrics.engine_restarted()

    async def stop(self) -> None:
        """Ask the engine to exit; one that does not, or still loads, is made to."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        if self._service.client.ready is not None:
            self._service.client.shutdown()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_PATIENCE_S):
                    await process.wait()
                    return
        _kill_group(process)
        await process.wait()

    async def _told_to_stop_within(self, delay_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _live_once(self) -> bool:
        """One engine process from start to end; whether it became ready."""
        link = SocketLink()
        client = self._service.client
        try:
            # Its own session: Ctrl-C in a terminal must reach the server alone, which drains. And
            # its own place for temporary files: what it leaves when it is killed goes with them.
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(link.directory)},
            )
        except OSError:
            link.close()
            raise
        self._process = process
        client.attach(link)
        try:
            assert process.stdin is not None
            launch = EngineLaunch(self._config, link.inbox, link.outbox)
            if self._stopping.is_set():
                return False  # told so while the process was being made
            process.stdin.write(encode_launch(launch))
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            await process.wait()
            link.drain()  # its last words may still be in the socket
            return client.ready is not None
        finally:
            _kill_group(process)  # ranks that outlived their first
            self._process = None
            self._was_ready |= client.ready is not None
            phase = Phase.RESTARTING if self._was_ready else client.status.phase
            client.detach("the engine process died; it is being restarted", phase=phase)

    def _first_start_error(self) -> SetupError:
        failed = self._service.client.status.failed
        if failed is not None:
            return SetupError(failed.message, hint=failed.hint)
        return SetupError(
            "the engine process died while it was loading",
            hint="its output above says why; a silent death is often the system out of memory",
        )


def _kill_group(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
