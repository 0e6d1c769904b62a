"""The one record between deciding and computing: what a step computes, and what came of it.

A running request owns a *row*: a small number under which the runner keeps the request's token
ids, block table and sampling state from step to step. A plan names rows, so a decode step for 256
requests is 256 small spans, and a token that the last step sampled need not travel back first:
step n+1 can be planned while step n still runs.

    row's tokens   [ computed in earlier steps | this span      | known, not yet computed ]
                   0                           start            start + length            known

There is no prefill or decode: a prompt chunk, one decoded token and a run of drafts are all
"a span to compute". A plan is frozen and complete when it is made; every rank runs the same one.
"""

from __future__ import annotations

import msgspec

from mserve.core.request import SamplingParams, TokenLogprobs


class RowStart(msgspec.Struct, frozen=True, kw_only=True):
    """A request takes a row (first admission, or again after preemption). Replaces the row's
    state entirely."""

    row: int
    request_id: str
    token_ids: list[int]  # prompt, and after preemption the output so far
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int  # the request's own, or one drawn at admission
    forbidden_until_min_tokens: tuple[int, ...] = ()  # ids masked while below min_tokens
    block_ids: tuple[int, ...] = ()  # blocks found in the prefix cache, in order


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Compute ``length`` tokens of ``row`` from position ``start`` on.

    ``new_block_ids`` are appended to the row's block table before the span runs; the table then
    covers position ``start + length - 1``, and often more: a row gets the blocks of all its known
    tokens with its first span. With ``samples``, the span ends at the row's last known
    token and the runner samples its successor and appends it to the row's tokens.
    """

    row: int
    start: int
    length: int
    samples: bool
    new_block_ids: tuple[int, ...] = ()


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step for all ranks. Spans are in schedule order, at most one per row."""

    step: int
    starts: tuple[RowStart, ...]
    spans: tuple[Span, ...]

    @property
    def num_tokens(self) -> int:
        return sum(span.length for span in self.spans)


class RowResult(msgspec.Struct, frozen=True):
    """What one span gave. A span that does not sample gives one only for prompt logprobs."""

    row: int
    token_ids: tuple[int, ...] = ()  # sampled, in order (one without speculation)
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per sampled token, if asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """If asked for: entry j scores token ``start + 1 + j`` of the prompt, for the span's
    positions whose successor is still a prompt token."""


class StepResult(msgspec.Struct, frozen=True):
    """The runner's answer to a plan."""

    step: int
    rows: tuple[RowResult, ...]
    failed_rows: dict[int, str] = {}  # row -> reason; only these requests end in an error
