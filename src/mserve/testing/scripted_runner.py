"""A runner without a model: it says what a script says, and believes nothing of the plan.

It keeps rows as the real runner does, and remembers of every block which tokens of whom were
written into it. A plan that reads a block before it is full, reads somebody else's block, or gives
one block to two writers raises ``PlanContractError`` in the very step. What it knows of blocks it
knows from plans alone; it shares no code with the scheduler.

Knows the contract of ``core.plan``. Does not know why a plan looks as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mserve.core import BLOCK_TOKENS, RowResult, RowStart, Span, StepPlan, StepResult, TokenLogprobs

Script = Callable[[str, int], int]
"""(request id, position in prompt and output) -> token id at that position."""


class PlanContractError(AssertionError):
    """The plan broke the contract between scheduler and runner."""


@dataclass(slots=True, eq=False)
class _Writing:
    """What one row wrote into one block: its tokens from ``number * BLOCK_TOKENS`` on."""

    row_tokens: list[int]  # all tokens of the writing row; only ever grows
    number: int  # of the block in that row's table
    filled: int = 0  # tokens written

    @property
    def end(self) -> int:
        return self.number * BLOCK_TOKENS + self.filled


@dataclass(slots=True)
class _Row:
    start: RowStart
    tokens: list[int]
    computed: int
    table: list[tuple[int, _Writing]] = field(default_factory=list)
    num_shared: int = 0  # leading blocks that are only read


class ScriptedRunner:
    """Runs plans against ``script``.

    ``fails`` maps request ids to reasons: such a request fails in its next span, once.
    ``max_num_seqs`` and ``max_num_batched_tokens``, if given, are checked in every plan.
    """

    def __init__(
        self,
        script: Script,
        *,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        self._script = script
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._rows: dict[int, _Row] = {}
        self._blocks: dict[int, _Writing] = {}
        self._step = 0
        self.fails: dict[str, str] = {}
        self.tokens_computed = 0

    def run(self, plan: StepPlan) -> StepResult:
        """Check and carry out ``plan``. Raises ``PlanContractError``."""
        self._check_plan(plan)
        for start in plan.starts:
            self._start_row(start)
        # All blocks change hands before any span runs, so that the order of spans cannot hide
        # that two of them use one block.
        for span in plan.spans:
            self._append_blocks(span)
        results = []
        failed_rows = {}
        for span in plan.spans:
            row = self._rows[span.row]
            self._check_span(span, row)
            reason = self.fails.pop(row.start.request_id, None)
            if reason is not None:
                failed_rows[span.row] = reason
                continue
            self._write(span, row)
            result = self._answer(span, row)
            if result is not None:
                results.append(result)
        return StepResult(plan.step, tuple(results), failed_rows)

    def _check_plan(self, plan: StepPlan) -> None:
        _require(plan.step > self._step, f"step {plan.step} after step {self._step}")
        self._step = plan.step
        rows = [span.row for span in plan.spans]
        _require(len(rows) > 0, "a plan without spans")
        _require(len(set(rows)) == len(rows), "two spans for one row")
        started = {start.row for start in plan.starts}
        _require(len(started) == len(plan.starts), "one row started twice")
        _require(started <= set(rows), "a row was started and got no span")
        _require(
            self._max_num_seqs is None or max(rows) < self._max_num_seqs,
            f"row {max(rows)} is beyond max_num_seqs",
        )
        _require(
            self._max_num_batched_tokens is None or plan.num_tokens <= self._max_num_batched_tokens,
            f"{plan.num_tokens} tokens are more than the budget",
        )

    def _start_row(self, start: RowStart) -> None:
        _require(0 < start.num_prompt_tokens <= len(start.token_ids), "a row without a prompt")
        row = _Row(
            start,
            list(start.token_ids),
            computed=len(start.block_ids) * BLOCK_TOKENS,
            num_shared=len(start.block_ids),
        )
        _require(row.computed < len(row.tokens), "nothing is left to compute for a new row")
        for number, block_id in enumerate(start.block_ids):
            writing = self._blocks.get(block_id)
            _require(writing is not None, f"block {block_id} is reused, but was never written")
            assert writing is not None
            end = (number + 1) * BLOCK_TOKENS
            _require(
                writing.end == end, f"block {block_id} is reused before it is full, or elsewhere"
            )
            # The whole prefix counts: the same 128 tokens after others are other keys and values.
            _require(
                writing.row_tokens[:end] == row.tokens[:end],
                f"block {block_id} holds another prefix than {start.request_id} has",
            )
            row.table.append((block_id, writing))
        self._rows[start.row] = row

    def _append_blocks(self, span: Span) -> None:
        row = self._rows.get(span.row)
        _require(row is not None, f"row {span.row} was never started")
        assert row is not None
        for block_id in span.new_block_ids:
            writing = _Writing(row.tokens, len(row.table))
            self._blocks[block_id] = writing  # whoever still uses the old one will notice
            row.table.append((block_id, writing))

    def _check_span(self, span: Span, row: _Row) -> None:
        who = f"row {span.row} ({row.start.request_id})"
        end = span.start + span.length
        _require(span.length > 0, f"{who}: an empty span")
        _require(span.start == row.computed, f"{who}: from {span.start}, computed {row.computed}")
        _require(end <= len(row.tokens), f"{who}: to {end}, known are {len(row.tokens)} tokens")
        _require(end <= len(row.table) * BLOCK_TOKENS, f"{who}: the block table ends before {end}")
        _require(
            not span.samples or end == len(row.tokens), f"{who}: samples before its last token"
        )
        for block_id, writing in row.table:
            _require(
                self._blocks[block_id] is writing, f"{who}: block {block_id} went to another row"
            )

    def _write(self, span: Span, row: _Row) -> None:
        position = span.start
        end = span.start + span.length
        while position < end:
            number = position // BLOCK_TOKENS
            block_id, writing = row.table[number]
            _require(number >= row.num_shared, f"block {block_id} is shared and written")
            _require(writing.end == position, f"block {block_id} is not filled in order")
            stop = min(end, (number + 1) * BLOCK_TOKENS)
            writing.filled += stop - position
            position = stop
        row.computed = end
        self.tokens_computed += span.length

    def _answer(self, span: Span, row: _Row) -> RowResult | None:
        sampling = row.start.sampling
        sampled: tuple[int, ...] = ()
        if span.samples:
            sampled = (self._script(row.start.request_id, len(row.tokens)),)
            row.tokens.extend(sampled)
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if sampling.prompt_logprobs is not None:
            stop = min(span.start + span.length, row.start.num_prompt_tokens - 1)
            prompt_logprobs = tuple(
                scripted_logprob(row.tokens[position + 1], position + 1)
                for position in range(span.start, stop)
            )
        if not sampled and not prompt_logprobs:
            return None
        logprobs: tuple[TokenLogprobs, ...] = ()
        if sampling.logprobs is not None:
            logprobs = tuple(scripted_logprob(token, len(row.tokens) - 1) for token in sampled)
        return RowResult(span.row, sampled, logprobs, prompt_logprobs)


def scripted_logprob(token_id: int, position: int) -> TokenLogprobs:
    """What the scripted runner reports for ``token_id`` at ``position``: tells them apart."""
    return TokenLogprobs(token_id, -float(position), 1, [])


def _require(condition: bool, violation: str) -> None:
    if not condition:
        raise PlanContractError(violation)
