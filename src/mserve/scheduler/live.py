"""One request from its arrival to its finished output.

    tokens   [ prompt                  | output so far       ]
    tokens   [ computed                         | pending    ]
             0                                  computed     len(tokens)
    table    [ block | block | block | block | block ]   covers every known token while it runs
             [ sealed        | being filled          ]
             0               num_sealed

Knows its own tokens, blocks and progress. Does not know the other requests.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from mserve.core import (
    BLOCK_TOKENS,
    BlockName,
    EngineError,
    FinishReason,
    Request,
    RequestOutput,
    RequestTimes,
    RowStart,
    TokenLogprobs,
    next_name,
    root_name,
)


@dataclass(slots=True, eq=False)
class LiveRequest:
    """``row`` is None and ``table`` empty while it waits; progress then means nothing and is set
    anew when it gets a row. Tokens, names and collected prompt logprobs outlive a preemption."""

    request: Request
    number: int  # in order of arrival
    priority: int  # lower runs first; 0 for all under FCFS
    seed: int
    max_output_tokens: int
    stop_ids: frozenset[int]
    arrival_s: float
    tokens: array[int]  # 4 bytes each: a full queue of long prompts stays small
    row: int | None = None
    computed: int = 0
    table: list[int] = field(default_factory=list)
    unsent_block_ids: tuple[int, ...] = ()  # claimed, and not yet in a span
    num_sealed: int = 0
    names: list[BlockName] = field(default_factory=list)
    num_cached_tokens: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None

    @property
    def num_reusable_tokens(self) -> int:
        """Leading tokens that need not be computed if their blocks exist.

        The last token always is: its output is what comes next. With prompt logprobs, so is every
        token from the one that scores the next missing entry on.
        """
        if self.wants_prompt_logprobs and len(self.prompt_logprobs) < self.num_prompt_tokens:
            return len(self.prompt_logprobs) - 1
        return len(self.tokens) - 1

    def name_blocks(self, model_id: str) -> None:
        """Bring ``names`` up to the last block that the known tokens fill."""
        name = self.names[-1] if self.names else root_name(self.request.cache_salt, model_id)
        for number in range(len(self.names), len(self.tokens) // BLOCK_TOKENS):
            start = number * BLOCK_TOKENS
            name = next_name(name, self.tokens[start : start + BLOCK_TOKENS])
            self.names.append(name)

    def row_start(self, block_ids: tuple[int, ...]) -> RowStart:
        """The record under which the runner takes it in, with the cached ``block_ids``."""
        assert self.row is not None
        sampling = self.request.sampling
        forbidden = tuple(sorted(self.stop_ids)) if sampling.min_tokens else ()
        return RowStart(
            row=self.row,
            request_id=self.request_id,
            token_ids=self.tokens.tolist(),
            num_prompt_tokens=self.num_prompt_tokens,
            sampling=sampling,
            seed=self.seed,
            forbidden_until_min_tokens=forbidden,
            block_ids=block_ids,
        )

    def collect_prompt_logprobs(self, start: int, entries: tuple[TokenLogprobs, ...]) -> None:
        """Keep what a span from position ``start`` scored; entry j belongs to ``start + 1 + j``.
        Entries from before a preemption are not taken twice."""
        already = len(self.prompt_logprobs) - (start + 1)
        self.prompt_logprobs.extend(entries[already:])

    def times(self, now_s: float) -> RequestTimes:
        """Marks at the end, ``now_s``. A mark that was never reached is the end itself."""
        return RequestTimes(
            arrival_s=self.arrival_s,
            scheduled_s=now_s if self.scheduled_s is None else self.scheduled_s,
            first_token_s=now_s if self.first_token_s is None else self.first_token_s,
            finished_s=now_s,
        )

    def cut_short(
        self,
        reason: FinishReason,
        now_s: float,
        *,
        error: str | None = None,
    ) -> RequestOutput:
        """The finished output of a request that ends for another reason than its tokens."""
        return RequestOutput(
            request_id=self.request_id,
            num_cached_tokens=self.num_cached_tokens if self.first_token_s is None else 0,
            finish_reason=reason,
            error=error,
            error_code=None if error is None else EngineError.code,
            times=self.times(now_s),
        )
