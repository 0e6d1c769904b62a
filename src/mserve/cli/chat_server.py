"""A server of our own, for a chat or an evaluation: ``mserve serve`` as a child, gone afterwards.

Knows processes. Does not know what is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from mserve.cli.chat_client import ChatClient
from mserve.core import SetupError

_STOP_S = 10.0
_ENDING_S = 0.2
_LOG_LINES_SHOWN = 4
_LOG_BYTES_READ = 1 << 16
_ADDRESS = ("--host", "--port")


@dataclasses.dataclass(frozen=True)
class Server:
    """Where one is. ``check`` raises ``SetupError`` with the last lines of one that we started and
    that has ended; of another's we know nothing."""

    url: str
    check: Callable[[], None] = lambda: None


@contextlib.contextmanager
def started(
    checkpoint: Path, flags: Sequence[str], report: Callable[[str, float], None]
) -> Iterator[Server]:
    """Yield a server for ``checkpoint`` that is ready; stop it on leaving, also by a signal.

    The child has a session of its own, so Ctrl-C stops an answer and not the server. Raises
    ``SetupError`` for flags that would put it elsewhere, and with the server's last lines when it
    does not come up.
    """
    for flag in flags:
        if flag.partition("=")[0] in _ADDRESS:
            raise SetupError(
                f"{flag.partition('=')[0]} cannot be chosen for a server that is only there "
                "meanwhile",
                hint="start it with `mserve serve`, and give its URL",
            )
    port = _free_port()
    with _leaving_by_signals(), tempfile.TemporaryFile() as log:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        child = subprocess.Popen(
            [sys.executable, "-m", "mserve.cli.main", "serve", str(checkpoint), *where, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(child, port, log.fileno())
            with ChatClient(url) as client:
                client.wait_until_ready(_alive(child, log.fileno(), report))
            yield Server(url, lambda: _check_later(child, log.fileno()))
        finally:
            _stop(child)


def _free_port() -> int:
    # Another process may take it before the child does; then the child says so and exits.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _leaving_by_signals() -> Iterator[None]:
    """``SystemExit`` for signals that would end this process on the spot, its child left behind."""
    if threading.current_thread() is not threading.main_thread():  # which alone may do that
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(child: subprocess.Popen[bytes], port: int, log: int) -> None:
    """Until the child listens."""
    while True:
        _check(child, log)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)


def _alive(
    child: subprocess.Popen[bytes], log: int, report: Callable[[str, float], None]
) -> Callable[[str, float], None]:
    def check_and_report(stage: str, fraction: float) -> None:
        _check(child, log)
        report(stage, fraction)

    return check_and_report


def _check(child: subprocess.Popen[bytes], log: int) -> None:
    """While it starts: its last lines say what is wrong."""
    if child.poll() is not None:
        raise SetupError("\n".join(_last_lines(log)) or _end_of(child))


def _check_later(child: subprocess.Popen[bytes], log: int) -> None:
    """When an answer failed. A process lets go of its connections a moment before it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_ENDING_S)
        raise SetupError("\n".join([_end_of(child), *_last_lines(log)]))


def _end_of(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return (
        f"the server exited with code {code}" if code >= 0 else f"signal {-code} ended the server"
    )


def _last_lines(log: int) -> list[str]:
    num_bytes = os.fstat(log).st_size
    tail = os.pread(log, _LOG_BYTES_READ, max(0, num_bytes - _LOG_BYTES_READ))
    lines = tail.decode(errors="replace").strip().splitlines()
    return [line.removeprefix("error: ") for line in lines[-_LOG_LINES_SHOWN:]]


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
