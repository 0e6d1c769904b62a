"""What the runner remembers of each running request from step to step.

    row  ->  token ids, block table, sampling numbers, counts for penalties

A plan names rows by number, so a decode step carries a few integers per request and the rest is
here. Numbers that every sampled row needs are columns over all rows, read by one indexed access;
what differs in length is a record per row. Knows plans' words; does not know tensors or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mserve.core import RowStart, SamplingParams
from mserve.runner.thinking import ThinkingClock
from mserve.sampler import TokenCounts

_SEED_BITS = (1 << 64) - 1


class GrowingIds:
    """Integers that are appended to and never removed. Doubles its storage, so appending is
    amortised constant and ``view`` is free."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._length = len(ids)
        self._storage = np.empty(self._length + 64, dtype=np.int64)
        self._storage[: self._length] = ids

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> np.ndarray:
        """The ids so far, int64, not copied."""
        return self._storage[: self._length]

    def __getitem__(self, index: int) -> int:
        value: int = self._storage[index]
        return value

    def append(self, value: int) -> None:
        if self._length == len(self._storage):
            self._storage = np.concatenate([self._storage, np.empty_like(self._storage)])
        self._storage[self._length] = value
        self._length += 1

    def extend(self, ids: Sequence[int]) -> None:
        for value in ids:
            self.append(value)


@dataclass(slots=True, eq=False)
class Row:
    """One running request, equal to no other. What its sampling does not need is ``None``."""

    sampling: SamplingParams
    num_prompt_tokens: int
    tokens: GrowingIds
    blocks: GrowingIds
    forbidden: np.ndarray  # int64 ids that cannot be sampled before min_tokens
    counts: TokenCounts | None
    bias: tuple[np.ndarray, np.ndarray] | None  # int64 ids, float64 amounts
    thinking: ThinkingClock | None

    @classmethod
    def begin(cls, start: RowStart) -> Row:
        sampling = start.sampling
        tokens = GrowingIds(start.token_ids)
        known, prompt = tokens.view, start.num_prompt_tokens
        penalised = (
            sampling.repetition_penalty != 1.0
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
        )
        bias_ids = np.fromiter(sampling.logit_bias.keys(), dtype=np.int64)
        bias_amounts = np.fromiter(sampling.logit_bias.values(), dtype=np.float64)
        return cls(
            sampling=sampling,
            num_prompt_tokens=prompt,
            tokens=tokens,
            blocks=GrowingIds(start.block_ids),
            forbidden=np.asarray(start.forbidden_until_min_tokens, dtype=np.int64),
            counts=TokenCounts(known[:prompt], known[prompt:]) if penalised else None,
            bias=(bias_ids, bias_amounts) if sampling.logit_bias else None,
            thinking=None
            if sampling.thinking_budget is None
            else ThinkingClock(sampling.thinking_budget, known[prompt:].tolist()),
        )

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


class RowTable:
    """All rows of an engine, ``num_rows`` of them. The columns are [num_rows]."""

    def __init__(self, num_rows: int) -> None:
        self._rows: list[Row | None] = [None] * num_rows
        self.temperature = np.zeros(num_rows)
        self.top_p = np.ones(num_rows)
        self.min_p = np.zeros(num_rows)
        self.top_k = np.zeros(num_rows, dtype=np.int64)
        self.seeds = np.zeros(num_rows, dtype=np.uint64)
        self.num_outputs = np.zeros(num_rows, dtype=np.int64)
        self.edited = np.zeros(num_rows, dtype=bool)  # a penalty, bias, min_tokens or budget is set
        self.scored = np.zeros(num_rows, dtype=bool)  # logprobs are asked for
        self.plain = [True] * num_rows  # logits and the numbers above are all that matters

    def __getitem__(self, row: int) -> Row:
        state = self._rows[row]
        assert state is not None, f"row {row} was not started"
        return state

    def start(self, start: RowStart) -> None:
        """Replace all that was known of the row."""
        row, state, sampling = start.row, Row.begin(start), start.sampling
        self._rows[row] = state
        self.temperature[row] = sampling.temperature
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self.top_k[row] = sampling.top_k
        self.seeds[row] = start.seed & _SEED_BITS  # any integer is a seed
        self.num_outputs[row] = state.num_output_tokens
        restrained = sampling.min_tokens > 0 and len(state.forbidden) > 0
        self.edited[row] = restrained or any(
            edit is not None for edit in (state.counts, state.bias, state.thinking)
        )
        self.scored[row] = sampling.logprobs is not None
        constrained = sampling.constraint is not None
        self.plain[row] = not (self.edited[row] or self.scored[row] or constrained)

    def append(self, row: int, token_id: int) -> None:
        """The row's successor token was sampled."""
        state = self[row]
        state.tokens.append(token_id)
        if state.counts is not None:
            state.counts.add(token_id)
        if state.thinking is not None:
            state.thinking.add(token_id)
        self.num_outputs[row] += 1
