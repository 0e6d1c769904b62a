"""A scripted engine that speaks the wire: what the front end's tests run against.

It answers every prompt with a script (by default the prompt itself, again and again), as slowly
and as badly as it is told. Knows the wire and nothing of models. Run as a process it takes a
``Script`` as one JSON argument and its ``EngineLaunch`` from standard input, as the engine does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from mserve.core import (
    FinishReason,
    Request,
    RequestOutput,
    RequestTimes,
    TokenLogprobs,
)
from mserve.wire import (
    Abort,
    EnginePort,
    EngineStats,
    Failed,
    FromEngine,
    Loading,
    LocalPort,
    Outputs,
    Ready,
    Shutdown,
    Submit,
    read_launch,
)


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine behaves. Times in seconds."""

    reply_token_ids: list[int] = []  # empty: echo the prompt
    eos_token_id: int | None = None  # ends the reply where the script contains it
    token_delay_s: float = 0.0
    load_s: float = 0.0
    fail_load: str | None = None  # refuse to start with this message
    max_model_len: int = 256
    vocab_size: int = 512
    max_num_seqs: int = 4
    max_waiting: int = 16
    num_cached_tokens: int = 0
    crash_token_id: int | None = None  # a prompt that holds it kills the process
    error_token_id: int | None = None  # a prompt that holds it ends in an engine error
    abort_log: str | None = None  # ids of aborted requests are appended to this file


class _Running:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.num_output = 0
        self.scheduled_s = time.monotonic()
        self.first_token_s = 0.0


class FakeEngine:
    """One token per running request and step, first come first served."""

    def __init__(self, script: Script, port: EnginePort | LocalPort) -> None:
        self._script = script
        self._port = port
        self._waiting: list[Request] = []
        self._running: list[_Running] = []
        self._hits = 0
        self._queries = 0
        self._drain_until_s: float | None = None

    def load(self) -> None:
        for percent in (0, 50, 100):
            self._port.send(Loading("weights", percent / 100))
            time.sleep(self._script.load_s / 3)
        self._port.send(
            Ready(
                max_model_len=self._script.max_model_len,
                vocab_size=self._script.vocab_size,
                num_blocks=8 * self._script.max_num_seqs,
                max_num_seqs=self._script.max_num_seqs,
                max_waiting=self._script.max_waiting,
                report=["scripted engine"],
            )
        )

    def serve(self) -> None:
        """Until told to shut down."""
        while True:
            idle = not self._running and not self._waiting
            if self._drain_until_s is not None and (
                idle or time.monotonic() >= self._drain_until_s
            ):
                return
            for message in self._port.poll(None if idle else self._script.token_delay_s):
                self._obey(message)
            self._step()

    def _obey(self, message: Submit | Abort | Shutdown) -> None:
        match message:
            case Submit(requests):
                if any(self._script.crash_token_id in r.prompt_token_ids for r in requests):
                    os._exit(9)
                self._waiting.extend(requests)
            case Abort(request_ids):
                self._abort(set(request_ids))
            case Shutdown(drain_s):
                self._drain_until_s = time.monotonic() + drain_s

    def _abort(self, request_ids: set[str]) -> None:
        gone = [r.request_id for r in self._waiting if r.request_id in request_ids]
        gone += [r.request.request_id for r in self._running if r.request.request_id in request_ids]
        self._waiting = [r for r in self._waiting if r.request_id not in request_ids]
        self._running = [r for r in self._running if r.request.request_id not in request_ids]
        if self._script.abort_log is not None:
            with Path(self._script.abort_log).open("a") as log:
                log.writelines(f"{request_id}\n" for request_id in gone)
        self._send(
            [
                RequestOutput(request_id=request_id, finish_reason=FinishReason.ABORT)
                for request_id in gone
            ]
        )

    def _step(self) -> None:
        while self._waiting and len(self._running) < self._script.max_num_seqs:
            self._running.append(_Running(self._waiting.pop(0)))
        if not self._running:
            return
        outputs = [self._advance(running) for running in self._running]
        self._running = [
            running
            for running, output in zip(self._running, outputs, strict=True)
            if output.finish_reason is None
        ]
        self._send(outputs)

    def _advance(self, running: _Running) -> RequestOutput:
        request, script = running.request, self._script
        prompt, sampling = request.prompt_token_ids, request.sampling
        if script.error_token_id in prompt:
            return RequestOutput(
                request_id=request.request_id,
                finish_reason=FinishReason.ERROR,
                error="the step failed",
                error_code="engine_error",
            )
        first = running.num_output == 0
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if first:
            running.first_token_s = time.monotonic()
            self._queries += len(prompt)
            self._hits += script.num_cached_tokens
            if sampling.prompt_logprobs is not None:
                prompt_logprobs = [None]
                prompt_logprobs += [scored(t, sampling.prompt_logprobs) for t in prompt[1:]]
        limit = script.max_model_len - len(prompt)
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens)
        new: list[int] = []
        if running.num_output < limit:
            reply = script.reply_token_ids or prompt
            new = [reply[running.num_output % len(reply)]]
            running.num_output += 1
        finish, stop_token_id = None, None
        if new and running.num_output >= sampling.min_tokens:
            ends = new[0] in sampling.stop_token_ids
            ends |= new[0] == script.eos_token_id and not sampling.ignore_eos
            if ends:
                finish, stop_token_id = FinishReason.STOP, new[0]
        if finish is None and running.num_output >= limit:
            finish = FinishReason.LENGTH
        return RequestOutput(
            request_id=request.request_id,
            new_token_ids=new,
            logprobs=None
            if sampling.logprobs is None
            else [scored(token_id, sampling.logprobs) for token_id in new],
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=script.num_cached_tokens if first else 0,
            finish_reason=finish,
            stop_token_id=stop_token_id,
            times=None
            if finish is None
            else RequestTimes(
                request.arrival_s, running.scheduled_s, running.first_token_s, time.monotonic()
            ),
        )

    def _send(self, outputs: list[RequestOutput]) -> None:
        num_blocks = 8 * self._script.max_num_seqs
        stats = EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_free_blocks=num_blocks - len(self._running),
            num_blocks=num_blocks,
            prefix_query_tokens_total=self._queries,
            prefix_hit_tokens_total=self._hits,
            step_tokens=len(outputs),
        )
        message: FromEngine = Outputs(outputs, stats)
        self._port.send(message)


def scored(token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities that depend on the token alone, so that a test can predict them."""
    logprob = -0.25 * (1 + token_id % 7)
    top = [(token_id + i, logprob - i) for i in range(num_top)]
    return TokenLogprobs(token_id, logprob, 1, top)


def main() -> None:
    script = msgspec.json.decode(sys.argv[1], type=Script)
    launch = read_launch(sys.stdin.buffer)
    threading.Thread(target=_exit_with_front_end, daemon=True).start()
    with EnginePort(launch.inbox, launch.outbox) as port:
        if script.fail_load is not None:
            port.send(Failed(script.fail_load, hint="change it"))
            raise SystemExit(2)
        engine = FakeEngine(script, port)
        engine.load()
        engine.serve()


def _exit_with_front_end() -> None:
    # Raw reads: a daemon thread inside a buffered stream would hold its lock at exit.
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
