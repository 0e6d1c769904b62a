"""Ranks 1 to n-1 as child processes, and how a plan reaches them.

    rank 0   plan ──pipe──> rank 1, rank 2, ...     then all run it, meeting in collectives

A child's standard input carries its launch and then every plan, as msgpack frames. The pipe is
also what ties the lives together: it ends with rank 0, however that one dies, and a child leaves
at its end. A collective would carry a plan as well, but waiting in one has a time limit, and an
idle server may wait for days. In the other direction, a child that dies closes its connections,
so the collective that the others are in breaks instead of hanging.

Knows processes and frames. Does not know what a plan does (``runner``) or what a rank loads
(``load``); ``rank_main`` is the child's side.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from io import FileIO, RawIOBase
from pathlib import Path
from typing import BinaryIO

import msgspec

import mserve
from mserve.capacity import Threads
from mserve.core import EngineConfig, EngineError, SetupError, StepPlan, StepResult
from mserve.engine.loop import Runner

_LENGTH_BYTES = 4
_EXIT_WAIT_S = 5.0
HELLO = b"\n"
"""What a child writes to its standard output once it is about to meet the others."""


class RankLaunch(msgspec.Struct, frozen=True):
    """First frame to a child."""

    config: EngineConfig
    rank: int
    size: int
    init_method: str
    num_blocks: int
    threads: Threads


class RankProcesses:
    """The children of rank 0. They leave when ``close`` is called or this process ends."""

    def __init__(
        self,
        config: EngineConfig,
        init_method: str,
        *,
        num_blocks: int,
        threads: Sequence[Threads],
    ) -> None:
        """Start all children, with ``threads`` by rank, and wait until each can be met.
        ``SetupError`` if one cannot."""
        size = config.parallel.tensor_parallel_size
        self._closing = False
        self._children: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                child = _spawn()
                self._children.append(child)
                launch = RankLaunch(config, rank, size, init_method, num_blocks, threads[rank])
                _send(child, rank, msgspec.msgpack.encode(launch))
            for rank, child in enumerate(self._children, start=1):
                if _output(child).read(len(HELLO)) != HELLO:
                    raise EngineError(f"rank {rank} is gone")
        except EngineError as error:
            self.close()
            raise SetupError(f"{error.message} before it was ready; its log says why") from None

    def send(self, plan: bytes) -> None:
        """``EngineError`` if a child is gone."""
        for rank, child in enumerate(self._children, start=1):
            _send(child, rank, plan)

    def watch(self, on_death: Callable[[int], None]) -> None:
        """Call ``on_death`` with the rank, from another thread, when a child dies unasked."""
        for rank, child in enumerate(self._children, start=1):
            threading.Thread(
                target=self._await_death, args=(rank, child, on_death), daemon=True
            ).start()

    def _await_death(
        self, rank: int, child: subprocess.Popen[bytes], on_death: Callable[[int], None]
    ) -> None:
        child.wait()
        if not self._closing:
            on_death(rank)

    def kill(self) -> None:
        """End all children at once; whoever watches them hears of it."""
        for child in self._children:
            child.kill()
            child.wait()

    def close(self) -> None:
        """End all children. Safe to call twice."""
        self._closing = True
        for child in self._children:
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
        for child in self._children:
            try:
                child.wait(_EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class RankedRunner:
    """Rank 0's runner with the other ranks behind it: each plan goes to all."""

    def __init__(self, runner: Runner, ranks: RankProcesses) -> None:
        self._runner = runner
        self._ranks = ranks
        self._encoder = msgspec.msgpack.Encoder()

    def run(self, plan: StepPlan) -> StepResult:
        """``EngineError`` from the first step on that did not run on all ranks: they may have
        stopped at different collectives, and the next plan would mix up two steps."""
        self._ranks.send(self._encoder.encode(plan))
        try:
            return self._runner.run(plan)
        except BaseException:
            self._ranks.kill()
            raise


def rendezvous() -> tempfile.TemporaryDirectory[str]:
    """A private folder; ``init_method`` names a file in it. A file needs no free port, and no
    other user can join."""
    return tempfile.TemporaryDirectory(prefix="mserve-ranks-")


def init_method(folder: str) -> str:
    return f"file://{Path(folder) / 'rendezvous'}"


def stay_on_this_machine() -> None:
    """Ranks listen on the loopback interface only. torch reads this from the environment; a name
    that is already set (ranks on a network of their own) stays."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def leave_signals_to_the_front_end() -> None:
    """A terminal or service manager signals all processes at once, but only the front end knows
    how to drain. The others go when it says so, or when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def raw_standard_input() -> RawIOBase:
    """Standard input without a buffer: a thread that waits in a buffered read holds a lock that
    the interpreter wants at exit, and it aborts when it cannot have it."""
    return FileIO(0, "rb", closefd=False)


def read_frame(stream: RawIOBase) -> bytes | None:
    """The next frame, or None at the end of the stream."""
    header = _read_exactly(stream, _LENGTH_BYTES)
    if header is None:
        return None
    return _read_exactly(stream, int.from_bytes(header, "big"))


def _read_exactly(stream: RawIOBase, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        piece = stream.read(num_bytes - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _spawn() -> subprocess.Popen[bytes]:
    # A child runs the code that this process runs, whether that is installed or on a path.
    paths = [str(Path(mserve.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "mserve.engine.rank_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _send(child: subprocess.Popen[bytes], rank: int, frame: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)
        child.stdin.flush()
    except (BrokenPipeError, ValueError):
        raise EngineError(f"rank {rank} is gone") from None


def _output(child: subprocess.Popen[bytes]) -> BinaryIO:
    assert child.stdout is not None
    return child.stdout  # type: ignore[return-value]
