"""Take in what a step gave: tokens, ends, blocks that are now full.

Knows when a request is over and why. Does not know how the next step is made (``plan``) or what
becomes of the outputs.
"""

from __future__ import annotations

from mserve.core import (
    BLOCK_TOKENS,
    FinishReason,
    RequestOutput,
    RowResult,
    Span,
    TokenLogprobs,
)
from mserve.scheduler.live import LiveRequest
from mserve.scheduler.rows import RunningRows


def settle_span(
    live: LiveRequest, span: Span, given: RowResult | None, rows: RunningRows, now_s: float
) -> RequestOutput | None:
    """Advance ``live`` by one computed span. The output has a finish reason if this ended it;
    there is none if the span neither sampled nor ended anything."""
    live.computed = span.start + span.length
    if live.computed >= (live.num_sealed + 1) * BLOCK_TOKENS:
        rows.seal(live)
    if given is not None and given.prompt_logprobs:
        live.collect_prompt_logprobs(span.start, given.prompt_logprobs)
    if span.samples:
        return _take_tokens(live, given, now_s)
    if live.max_output_tokens == 0 and live.computed == len(live.tokens):
        return RequestOutput(
            request_id=live.request_id,
            prompt_logprobs=_prompt_logprobs(live),
            num_cached_tokens=live.num_cached_tokens,
            finish_reason=FinishReason.LENGTH,
            times=live.times(now_s),
        )
    return None


def _take_tokens(live: LiveRequest, given: RowResult | None, now_s: float) -> RequestOutput:
    if given is None or not given.token_ids:
        return live.cut_short(
            FinishReason.ERROR, now_s, error="the model step returned no token for this request"
        )
    request = live.request
    first = live.first_token_s is None
    if first:
        live.first_token_s = now_s
    reason = None
    num_output = live.num_output_tokens
    num_taken = 0
    for token_id in given.token_ids:
        live.tokens.append(token_id)
        num_taken += 1
        # As the runner masks it: an end is possible once min_tokens came before it.
        if token_id in live.stop_ids and num_output + num_taken > request.sampling.min_tokens:
            reason = FinishReason.STOP
            break
        if num_output + num_taken >= live.max_output_tokens:
            reason = FinishReason.LENGTH
            break
    return RequestOutput(
        request_id=request.request_id,
        new_token_ids=list(given.token_ids[:num_taken]),
        logprobs=list(given.logprobs[:num_taken]) if given.logprobs else None,
        prompt_logprobs=_prompt_logprobs(live) if first else None,
        num_cached_tokens=live.num_cached_tokens if first else 0,
        finish_reason=reason,
        stop_token_id=live.tokens[-1] if reason is FinishReason.STOP else None,
        times=live.times(now_s) if reason else None,
    )


def _prompt_logprobs(live: LiveRequest) -> list[TokenLogprobs | None] | None:
    return live.prompt_logprobs if live.wants_prompt_logprobs else None
