"""One HTTP request's answers: prompts x choices fanned out, their tokens made text.

    prompts ──> requests ──> OutputStream ──> Answer per choice ──> ChoiceUpdate

Whoever holds a ``Generation`` closes it; closing early aborts what still runs and counts it as
aborted. Knows text, events, counting and when a choice is over. Does not know the APIs that write
them (``chat``, ``responses``, ``messages``, ``completions``).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from mserve.core import (
    FinishReason,
    Request,
    RequestError,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)
from mserve.observe import FinishedRequest
from mserve.server.errors import error_of_output
from mserve.server.prompts import Prompt
from mserve.server.repetition import RepetitionWatch
from mserve.server.sampling import check_context, for_choice
from mserve.server.service import Service
from mserve.text import Answer, CallFinished, ContentDelta, Event, OutputParser, PlainParser
from mserve.wire import Ready, now_s

log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The reader left; there is nobody to answer."""


class ChoiceUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived for one choice."""

    index: int
    events: list[Event]
    is_first: bool  # of its choice
    token_ids: list[int]
    texts: list[str]  # characters that each token completed
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    finish_reason: str | None
    stop_reason: int | str | None  # the stop string or stop id that ended it; None for eos

    @property
    def content(self) -> str:
        """All that is said, thinking and calls apart."""
        return "".join(event.text for event in self.events if isinstance(event, ContentDelta))


class Usage(msgspec.Struct, frozen=True):
    """Tokens so far. A prompt counts once, however many choices it has."""

    prompt: int
    cached: int  # of the prompt
    completion: int
    reasoning: int  # of the completion

    def openai(self) -> dict[str, Any]:
        """As the two completions APIs spell it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class _Choice:
    """One running answer and its account."""

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        request: Request,
        service: Service,
        parser: OutputParser,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.request = request
        self.answer = Answer(service.text.tokenizer, request.sampling, parser)
        self.repetition = RepetitionWatch(service.config.repetition_tokens)
        self.num_tokens = 0
        self.num_reasoning = 0
        self.num_cached = 0
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.finished = False


class Generation:
    """Submits on construction; iterate ``updates`` once."""

    def __init__(
        self,
        service: Service,
        request_id: str,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        new_parser: Callable[[], OutputParser] = PlainParser,
        parallel_calls: bool = True,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        """Without ``parallel_calls`` a choice ends with its first call. Raises ``RequestError`` for
        what cannot fit, ``OverloadedError`` for what cannot now."""
        ready = service.admit()
        self._service = service
        self.sampling = sampling
        self._parallel_calls = parallel_calls
        self.request_id = request_id
        self._num_choices = sampling.n
        self._arrival_s = now_s()
        for prompt in prompts:
            check_context(len(prompt.token_ids), sampling, ready)
        _check_count(len(prompts) * sampling.n, ready)
        self._choices: dict[str, _Choice] = {}
        for number, prompt in enumerate(prompts):
            for choice in range(sampling.n):
                index = number * sampling.n + choice
                request = Request(
                    request_id=f"{request_id}-{index}",
                    prompt_token_ids=prompt.token_ids,
                    sampling=for_choice(sampling, choice),
                    priority=priority,
                    arrival_s=self._arrival_s,
                    cache_salt=cache_salt,
                )
                self._choices[request.request_id] = _Choice(
                    index, prompt, request, service, new_parser()
                )
        self._stream = service.client.submit([c.request for c in self._choices.values()])

    @property
    def num_choices(self) -> int:
        """Over all prompts."""
        return len(self._choices)

    def prompt_of(self, index: int) -> Prompt:
        return self._choices[f"{self.request_id}-{index}"].prompt

    async def updates(self) -> AsyncIterator[ChoiceUpdate]:
        """Until every choice has finished. Raises the error that ended one, or
        ``ClientGoneError`` after ``close``."""
        async for output in self._stream:
            choice = self._choices[output.request_id]
            if _failed(output):
                self._finish(choice, "error")
                raise error_of_output(output)
            yield self._update(choice, output)
        if not all(choice.finished for choice in self._choices.values()):
            raise ClientGoneError

    def usage(self) -> Usage:
        choices = self._choices.values()
        first_choices = [c for c in choices if c.index % self._num_choices == 0]
        return Usage(
            prompt=sum(len(choice.prompt.token_ids) for choice in first_choices),
            cached=sum(choice.num_cached for choice in first_choices),
            completion=sum(choice.num_tokens for choice in choices),
            reasoning=sum(choice.num_reasoning for choice in choices),
        )

    def close(self) -> None:
        """Abort what has not finished: the message to the engine is on its way on return."""
        self._stream.close()
        for choice in self._choices.values():
            if not choice.finished:
                self._finish(choice, "abort")

    def _update(self, choice: _Choice, output: RequestOutput) -> ChoiceUpdate:
        piece = choice.answer.push(
            output.new_token_ids,
            last=output.finish_reason is not None,
            stop_token_id=output.stop_token_id,
        )
        is_first = choice.num_tokens == 0
        choice.num_reasoning += piece.num_reasoning_tokens
        self._count(choice, piece.num_tokens, output.num_cached_tokens)
        finish_reason: str | None = output.finish_reason
        stop_reason: int | str | None = None
        if output.stop_token_id in choice.request.sampling.stop_token_ids:
            stop_reason = output.stop_token_id
        events = piece.events
        if piece.stop is not None:
            finish_reason, stop_reason = FinishReason.STOP, piece.stop
        elif not self._parallel_calls and (cut := _end_of_call(events)) is not None:
            events, finish_reason = events[:cut], FinishReason.STOP
        elif finish_reason is None and choice.repetition.push(output.new_token_ids):
            events, finish_reason = [*events, *choice.answer.finish()], "repetition"
        if finish_reason is not None and output.finish_reason is None:
            self._stream.drop(output.request_id)
        if finish_reason is not None:
            self._finish(choice, str(finish_reason))
        return ChoiceUpdate(
            index=choice.index,
            events=events,
            is_first=is_first,
            token_ids=output.new_token_ids[: piece.num_tokens],
            texts=piece.texts,
            logprobs=None if output.logprobs is None else output.logprobs[: piece.num_tokens],
            prompt_logprobs=output.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )

    def _count(self, choice: _Choice, num_tokens: int, num_cached: int) -> None:
        choice.num_cached += num_cached
        if not num_tokens:
            return
        now = now_s()
        choice.num_tokens += num_tokens
        since_last_s = None if choice.last_token_s is None else now - choice.last_token_s
        self._service.metrics.tokens_arrived(num_tokens, since_last_s)
        if choice.first_token_s is None:
            choice.first_token_s = now
        choice.last_token_s = now

    def _finish(self, choice: _Choice, reason: str) -> None:
        choice.finished = True
        first_s = choice.first_token_s
        finished = FinishedRequest(
            reason=reason,
            num_prompt_tokens=len(choice.prompt.token_ids),
            num_output_tokens=choice.num_tokens,
            num_choices=self._num_choices,
            max_tokens=choice.request.sampling.max_tokens,
            first_token_s=None if first_s is None else first_s - self._arrival_s,
            total_s=now_s() - self._arrival_s,
        )
        self._service.metrics.request_finished(finished)
        if self._service.config.log_requests:
            log.info(
                "%s %s: %d prompt tokens (%d cached), %d output tokens, %.2f s",
                choice.request.request_id,
                reason,
                finished.num_prompt_tokens,
                choice.num_cached,
                finished.num_output_tokens,
                finished.total_s,
            )


def _end_of_call(events: list[Event]) -> int | None:
    """How many of ``events`` there are up to the end of a whole call."""
    for number, event in enumerate(events, start=1):
        if isinstance(event, CallFinished) and not event.incomplete:
            return number
    return None


def _failed(output: RequestOutput) -> bool:
    """Ended by the engine rather than by the answer. We hear no abort that we asked for, so one
    that arrives means that the engine is going away."""
    return output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT)


def _check_count(count: int, ready: Ready) -> None:
    """What could never be admitted at once is the caller's to change, not to retry."""
    most = ready.max_num_seqs + ready.max_waiting
    if count > most:
        raise RequestError(
            f"prompts x n is {count}; this server holds at most {most} at once", param="n"
        )
