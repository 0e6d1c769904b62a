"""Tries grammars before the engine sees them, in processes that can be killed.

    check ──> tried before? ──> a worker, up to 5 s ──> used from now on
                                     │ too long, too much memory
                                     └──> killed, and the request refused

A grammar is a program from a caller. The engine follows only what a worker has been able to begin,
with the same limits. Knows processes and time. Does not know grammars.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

import mserve
from mserve.core import EngineError, RequestError
from mserve.matcher import VocabularyFacts
from mserve.text.grammar.constraint import Constrained
from mserve.text.grammar.frames import read_frame, write_frame

CHECK_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 60.0
_NUM_WORKERS = 2  # one can be busy with a bad grammar without making the good ones wait
_NUM_REMEMBERED = 1024


class GrammarChecker:
    """Workers start when they are first needed and end with this process."""

    def __init__(
        self, facts: VocabularyFacts | None, *, timeout_s: float = CHECK_TIMEOUT_S
    ) -> None:
        """``facts``: ``None`` where the checkpoint has no tokenizer; all is refused then."""
        self._facts = facts
        self._timeout_s = timeout_s
        self._tried: OrderedDict[bytes, None] = OrderedDict()
        self._threads = ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="grammar-check")
        self._local = threading.local()
        self._workers: list[_Worker] = []

    async def check(self, constrained: Constrained) -> None:
        """Raises ``RequestError`` ``invalid_schema`` if the grammar cannot be used."""
        if self._facts is None:
            raise RequestError(
                "this checkpoint has no tokenizer.json, which structured output needs",
                param=constrained.param,
                code="no_tokenizer",
            )
        grammar = constrained.constraint.grammar
        key = blake2b(grammar.encode(), digest_size=16).digest()
        if key not in self._tried:
            loop = asyncio.get_running_loop()
            wrong = await loop.run_in_executor(self._threads, self._try, self._facts, grammar)
            if wrong:
                raise RequestError(wrong, param=constrained.param, code="invalid_schema")
        self._tried[key] = None
        self._tried.move_to_end(key)
        if len(self._tried) > _NUM_REMEMBERED:
            self._tried.popitem(last=False)

    def close(self) -> None:
        """End the workers. Whoever still waits for one is told that it is gone."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.clear_away()

    def _try(self, facts: VocabularyFacts, grammar: str) -> str:
        """In a thread with a worker of its own."""
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is None or worker.gone:
            worker = self._local.worker = _Worker(facts)
            self._workers = [one for one in self._workers if not one.gone] + [worker]
        return worker.try_grammar(grammar, self._timeout_s)


class _Worker:
    def __init__(self, facts: VocabularyFacts) -> None:
        # A child runs the code that this process runs, whether that is installed or on a path.
        paths = [str(Path(mserve.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self.gone = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mserve.text.grammar.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        if self._exchanged(msgspec.msgpack.encode(facts), _START_TIMEOUT_S) is None:
            raise EngineError("the process that tries grammars did not start")

    def try_grammar(self, grammar: str, timeout_s: float) -> str:
        """What is wrong with it; empty if nothing is."""
        reply = self._exchanged(grammar.encode(), timeout_s)
        if reply is None:
            return f"the grammar takes too much time or memory (limit {timeout_s:.0f} s, 1 GiB)"
        return reply.decode()

    def kill(self) -> None:
        """From any thread. Whoever waits for a reply hears that there is none."""
        self.gone = True
        self._process.kill()

    def clear_away(self) -> None:
        """Once nobody waits any more."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()

    def _exchanged(self, frame: bytes, timeout_s: float) -> bytes | None:
        """The reply, or ``None`` if there was none in time; the process is gone then."""
        alarm = threading.Timer(timeout_s, self.kill)
        alarm.start()
        try:
            write_frame(_pipe(self._process.stdin), frame)
            reply = read_frame(_pipe(self._process.stdout))
        except BrokenPipeError:
            reply = None
        finally:
            alarm.cancel()
        if reply is None:
            self.clear_away()
        return reply


def _pipe(pipe: object) -> BinaryIO:
    assert pipe is not None
    return pipe  # type: ignore[return-value]
