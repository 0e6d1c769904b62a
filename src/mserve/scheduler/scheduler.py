"""The scheduler's front: add and abort, plan and settle.

    add ──> WaitingQueue ──admit──> RunningRows ──settle──> finished output
                 ^                      │
                 └────── preempt ───────┘

Every request that ``add`` accepts gets exactly one output with a finish reason, from ``settle`` or
from ``abort``. Decides with counters only (no clock, no hash order, no randomness but the seeds it
draws), so the same calls give the same plans.

Knows requests, budgets and blocks. Does not know tensors, text, sockets or how a plan is run.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Iterable
from random import Random

from mserve.cache import BlockLedger
from mserve.core import (
    CapacityError,
    ContextLengthError,
    EngineError,
    FinishReason,
    QueueFullError,
    Request,
    RequestError,
    RequestOutput,
    SchedulerConfig,
    SetupError,
    StepPlan,
    StepResult,
    blocks_for,
)
from mserve.scheduler.live import LiveRequest
from mserve.scheduler.plan import admit, lay_spans, secure_blocks
from mserve.scheduler.queue import WaitingQueue
from mserve.scheduler.rows import RunningRows
from mserve.scheduler.settle import settle_span
from mserve.wire import EngineStats


class Scheduler:
    """Decides what each step computes. Not thread-safe: the engine loop owns it.

    Runs at most ``min(max_num_seqs, max_num_batched_tokens)`` requests at once, so that each one
    gets a token in every step: a row without a token would only hold blocks.

    Args:
        max_model_len: tokens of prompt and output together.
        eos_token_ids: end the output unless the request ignores them.
        model_id: the weights' identity; blocks of different ones are never mixed up.
        seed: of the seeds drawn for requests that bring none.
        clock: seconds, monotonic; only for the marks in outputs and stats.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        ledger: BlockLedger,
        *,
        max_model_len: int,
        eos_token_ids: Collection[int] = (),
        model_id: str = "",
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        enable_prefix_caching: bool = True,
    ) -> None:
        _check_limits(config, ledger, max_model_len)
        self._by_priority = config.policy == "priority"
        self._budget = config.max_num_batched_tokens
        self._max_model_len = max_model_len
        self._eos_token_ids = frozenset(eos_token_ids)
        self._seeds = Random(seed)
        self._clock = clock
        self._enable_prefix_caching = enable_prefix_caching
        self._waiting = WaitingQueue()
        self._rows = RunningRows(
            ledger,
            num_rows=min(config.max_num_seqs, config.max_num_batched_tokens),
            model_id=model_id,
            enable_prefix_caching=enable_prefix_caching,
        )
        # A bound on all of them, so that a burst into an idle engine may fill the rows as well as
        # the queue, and the front end can count along.
        self._max_live = self._rows.num_rows + config.max_waiting
        self._live: dict[str, LiveRequest] = {}
        self._num_arrivals = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._prefix_query_tokens = 0
        self._prefix_hit_tokens = 0
        self._step_started_s = 0.0
        self._step_s = 0.0
        self._step_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    @property
    def request_ids(self) -> list[str]:
        """Of all that wait or run, in order of arrival."""
        return list(self._live)

    def add(self, request: Request) -> None:
        """Queue ``request``.

        Raises:
            QueueFullError: as many run and wait as may.
            ContextLengthError: it could not run to its end within the context.
            RequestError: it has no tokens, ids that are no ids, or the id of a live request.
        """
        if request.request_id in self._live:
            raise RequestError(f"a request with id {request.request_id!r} is already running")
        max_output_tokens = self._max_output_tokens(request)
        tokens = _packed(request.prompt_token_ids)
        if len(self._live) >= self._max_live:
            raise QueueFullError(f"{len(self._live)} requests are running or waiting; try again")
        sampling = request.sampling
        stop_ids = frozenset(sampling.stop_token_ids)
        live = LiveRequest(
            request=request,
            number=self._num_arrivals,
            priority=request.priority if self._by_priority else 0,
            seed=self._seeds.getrandbits(63) if sampling.seed is None else sampling.seed,
            max_output_tokens=max_output_tokens,
            stop_ids=stop_ids if sampling.ignore_eos else stop_ids | self._eos_token_ids,
            arrival_s=request.arrival_s or self._clock(),
            tokens=tokens,
        )
        self._num_arrivals += 1
        self._live[request.request_id] = live
        self._waiting.put(live)

    def _max_output_tokens(self, request: Request) -> int:
        num_prompt = len(request.prompt_token_ids)
        max_tokens = request.sampling.max_tokens
        limit = self._max_model_len
        if num_prompt == 0:
            raise RequestError("the prompt is empty", param="prompt")
        if num_prompt + (1 if max_tokens is None else min(max_tokens, 1)) > limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens, which leaves no room in a context of "
                f"{limit}; shorten it",
                param="prompt",
            )
        if max_tokens is None:
            return limit - num_prompt
        if num_prompt + max_tokens > limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens and max_tokens is {max_tokens}, together "
                f"more than the context of {limit}; ask for at most {limit - num_prompt}",
                param="max_tokens",
            )
        return max_tokens

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End these now, blocks and all, whether they wait or run; ids of requests that have
        already ended are passed over. Returns their finished outputs."""
        now_s = self._clock()
        outputs = []
        for request_id in request_ids:
            live = self._live.pop(request_id, None)
            if live is None:
                continue
            if live.row is None:
                self._waiting.remove(live)
            else:
                self._rows.leave(live)
            outputs.append(live.cut_short(FinishReason.ABORT, now_s))
        return outputs

    def plan(self) -> StepPlan | None:
        """The next step, or None if there is no work. Must be settled before the next one."""
        if not self._live:
            return None
        now_s = self._step_started_s = self._clock()
        self._num_preemptions += secure_blocks(self._rows, self._waiting)
        starts = []
        for live, start in admit(self._rows, self._waiting):
            if live.scheduled_s is None:
                self._mark_scheduled(live, now_s)
            starts.append(start)
        spans = lay_spans(self._rows, self._budget)
        self._num_steps += 1
        return StepPlan(self._num_steps, tuple(starts), spans)

    def _mark_scheduled(self, live: LiveRequest, now_s: float) -> None:
        live.scheduled_s = now_s
        if self._enable_prefix_caching and not live.wants_prompt_logprobs:
            live.num_cached_tokens = live.computed
            self._prefix_query_tokens += live.num_prompt_tokens
            self._prefix_hit_tokens += live.computed

    def settle(self, plan: StepPlan, result: StepResult) -> list[RequestOutput]:
        """Take in the runner's answer; blocks of requests that end here are free on return.

        Returns one output for every request that got a token or ended, in schedule order.

        Raises:
            EngineError: ``result`` answers another plan.
        """
        if not plan.step == result.step == self._num_steps:
            raise EngineError(
                f"step {self._num_steps} was to be settled, not {plan.step} with {result.step}"
            )
        now_s = self._clock()
        given_by_row = {given.row: given for given in result.rows}
        outputs = []
        for span in plan.spans:
            live = self._rows.get(span.row)
            if live is None:  # aborted while the step ran
                continue
            if span.row in result.failed_rows:
                failure = result.failed_rows[span.row]
                output = live.cut_short(FinishReason.ERROR, now_s, error=failure)
            else:
                given = given_by_row.get(span.row)
                settled = settle_span(live, span, given, self._rows, now_s)
                if settled is None:
                    continue
                output = settled
            outputs.append(output)
            if output.finish_reason is not None:
                self._end(live, output.finish_reason)
        self._step_tokens = plan.num_tokens
        self._step_s = now_s - self._step_started_s
        return outputs

    def _end(self, live: LiveRequest, reason: FinishReason) -> None:
        del self._live[live.request_id]
        if reason is FinishReason.ERROR:
            self._rows.leave_in_doubt(live)
        else:
            self._rows.leave(live)

    def stats(self) -> EngineStats:
        """State now, and totals since start."""
        ledger = self._rows.ledger
        return EngineStats(
            num_running=len(self._rows),
            num_waiting=len(self._waiting),
            num_free_blocks=ledger.num_claimable,
            num_blocks=ledger.num_blocks,
            preemptions_total=self._num_preemptions,
            prefix_query_tokens_total=self._prefix_query_tokens,
            prefix_hit_tokens_total=self._prefix_hit_tokens,
            steps_total=self._num_steps,
            step_tokens=self._step_tokens,
            step_s=self._step_s,
        )

    def audit(self) -> None:
        """Check ledger, tables, rows and queue against each other. O(blocks), for idle times.

        Raises:
            EngineError: says what does not agree.
        """
        self._rows.audit()
        if len(self._rows) + len(self._waiting) != len(self._live):
            raise EngineError("a request neither runs nor waits, or does both")


def _packed(token_ids: list[int]) -> array[int]:
    try:
        return array("I", token_ids)
    except (OverflowError, TypeError):
        raise RequestError(
            "the prompt holds something that is no token id", param="prompt"
        ) from None


def _check_limits(config: SchedulerConfig, ledger: BlockLedger, max_model_len: int) -> None:
    for name, least in (("max_num_seqs", 1), ("max_num_batched_tokens", 1), ("max_waiting", 0)):
        if getattr(config, name) < least:
            raise SetupError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if max_model_len < 1:
        raise SetupError(f"max_model_len must be at least 1, got {max_model_len}")
    needed = blocks_for(max_model_len)
    if needed > ledger.num_blocks:
        raise CapacityError(
            f"a context of {max_model_len} tokens needs {needed} KV blocks, and there are "
            f"{ledger.num_blocks}",
            hint="lower --max-model-len or give the cache more memory",
        )
