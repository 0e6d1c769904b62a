"""A server of our own, for a chat or an evaluation: ``mserve serve`` as a child, gone afterwards.

Knows processes. Does not know what is said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mserve.cli.chat_client import ChatClient
from mserve.core import SetupError

_STOP_S = 10.0
_LOG_LINES_SHOWN = 4


@contextlib.contextmanager
def served(
    checkpoint: Path, flags: Sequence[str], report: Callable[[str, float], None]
) -> Iterator[str]:
    """Yield the URL of a server for ``checkpoint`` that is ready; stop it on leaving.

    The child has a session of its own, so Ctrl-C stops an answer and not the server. Raises
    ``SetupError`` with the server's last lines when it does not come up.
    """
    port = _free_port()
    with tempfile.TemporaryFile() as log:
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
            yield url
        finally:
            _stop(child)


def _free_port() -> int:
    # Another process may take it before the child does; then the child says so and exits.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    if child.poll() is None:
        return
    written = os.pread(log, 1 << 20, 0).decode(errors="replace").strip().splitlines()
    lines = [line.removeprefix("error: ") for line in written[-_LOG_LINES_SHOWN:]]
    raise SetupError("\n".join(lines) or f"the server exited with code {child.returncode}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
