"""What the terminal shows while a server starts: progress, then where it is and how to call it.

A bar where somebody watches, a line now and then where a log is written. Knows the engine's
messages. Does not know how anything starts.
"""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mserve.core import BLOCK_TOKENS
from mserve.wire import EngineStatus, Phase, Ready

_MAX_LINES = 15
_CLOSING_LINES = 3
_PROGRESS_INTERVAL_S = 10.0  # between lines in a log; a quick start leaves none


class StartDisplay:
    """A status listener for one server. The start lines go to stdout, progress to stderr."""

    def __init__(self, model: str, url: str) -> None:
        self._model = model
        self._url = url
        self._num_lines = 0
        self._num_reported = 0
        self._last_progress_s = time.monotonic()
        self._announced = False
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("starting", total=1.0, detail="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, status: EngineStatus, ready: Ready | None) -> None:
        if status.phase is Phase.READY and ready is not None and not self._announced:
            self._announced = True
            self._progress.stop()
            self._announce(ready)
        elif status.phase is Phase.LOADING:
            self._report(status.loading.report)
            self._show(status)

    def say(self, line: str) -> None:
        """One start line."""
        self._num_lines += 1
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _show(self, status: EngineStatus) -> None:
        loading = status.loading
        self._progress.update(
            self._bar,
            description=loading.stage,
            completed=loading.fraction,
            detail=loading.detail,
        )
        if self._progress.disable and self._progress_is_due():
            line = f"{loading.stage} {loading.fraction:.0%} {loading.detail}"
            sys.stderr.write(line.rstrip() + "\n")
            sys.stderr.flush()

    def _progress_is_due(self) -> bool:
        now = time.monotonic()
        due = now - self._last_progress_s >= _PROGRESS_INTERVAL_S
        if due:
            self._last_progress_s = now
        return due

    def _report(self, lines: list[str]) -> None:
        """Say those of the engine's lines that are new, while there is room."""
        room = _MAX_LINES - _CLOSING_LINES - self._num_lines
        new = lines[self._num_reported :][: max(0, room)]
        self._num_reported += len(new)
        for line in new:
            self.say(line)

    def _announce(self, ready: Ready) -> None:
        self._report(ready.report)
        tokens = ready.num_blocks * BLOCK_TOKENS
        self.say(
            f"{self._model}: context {ready.max_model_len:,} tokens, {ready.num_blocks:,} blocks "
            f"({tokens:,} tokens), {ready.max_num_seqs} requests at once"
        )
        self.say(f"ready at {self._url}/v1")
        self.say(
            f"try: curl {self._url}/v1/chat/completions -H 'content-type: application/json' "
            """-d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}'"""
        )
