"""Running one plan: forward, logits where they are needed, sample, remember.

This file must stay short enough to hold in mind, since every token of every request passes here.
What may not enter, and where it goes instead:

- which requests run, and which tokens or blocks they get: ``scheduler``;
- how a row's state is kept: ``rows``; what its grammar allows: ``constrained``;
- how inputs are laid out: ``batch``;
- what a model computes: ``models`` and ``layers``; how a token is chosen: ``sampler``;
- which processes the ranks are and how a plan reaches them: ``engine``.

Every rank runs every plan and keeps the same rows; only rank 0 has logits, so it samples and the
others receive its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from mserve.core import RowResult, Span, StepPlan, StepResult, TokenLogprobs
from mserve.kernels import DrawRules, draw
from mserve.layers import Batch, KVCache
from mserve.matcher import Vocabulary
from mserve.models import Model
from mserve.parallel import Group
from mserve.runner.batch import build_batch, sampling_inputs
from mserve.runner.constrained import ConstrainedRows
from mserve.runner.decoding import Decoded, DecodingSteps
from mserve.runner.memory import is_out_of_memory
from mserve.runner.rows import RowTable
from mserve.sampler import sample, score

# Prompt log-probabilities need logits at every position; this many are held at once (64 MiB).
_LOGITS_PER_CHUNK = 1 << 24

_NOT_A_NUMBER = "the model's output for this request is not a finite number"
_OUT_OF_MEMORY = "memory ran out while this request was computed"


@dataclass(frozen=True, slots=True)
class _Computed:
    """What some spans gave, before any row has changed."""

    tokens: dict[int, int]  # row -> sampled token
    logprobs: dict[int, TokenLogprobs]
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]]
    failed: dict[int, str]


class Runner:
    """Executes plans on one rank."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        group: Group,
        *,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        vocabulary: Vocabulary | None = None,
        record_decoding: bool = False,
    ) -> None:
        """``vocabulary``: for grammars; only rank 0 needs one. With ``record_decoding`` steps of
        decoding are recorded and played back: for native kernels on a single rank."""
        self._model = model
        self._cache = cache
        self._group = group
        self._rows = RowTable(num_rows)
        self._constrained = ConstrainedRows(vocabulary)
        self._vocab_size = vocab_size
        self._device = device
        self._decoding = DecodingSteps(self._decode) if record_decoding else None

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every span of ``plan``. A request that fails alone is named in ``failed_rows``;
        anything else that goes wrong raises, and the plan's rows are then undefined. Only rank
        0's result says what failed and carries log-probabilities."""
        for start in plan.starts:
            self._rows.start(start)
            self._constrained.start(start)
        for span in plan.spans:
            self._rows[span.row].blocks.extend(span.new_block_ids)
        parts = self._compute_together(plan.spans)
        for part in parts:
            for row, token_id in part.tokens.items():
                self._rows.append(row, token_id)
                self._constrained.append(row, token_id)
        return _result(plan.step, parts)

    def _compute_together(self, spans: Sequence[Span]) -> list[_Computed]:
        """All spans at once or, where memory does not suffice for that, one after the other."""
        try:
            return [self._compute(spans)]
        except (RuntimeError, MemoryError) as error:
            # Ranks must take every collective together, so one of several cannot retry alone.
            if self._group.size > 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler, where the error no longer keeps the failed attempt's tensors.
        return [self._compute_alone(span) for span in spans]

    def _compute_alone(self, span: Span) -> _Computed:
        """One span of a plan that did not fit as a whole. What the plan wrote before it failed is
        written again, with the same values."""
        try:
            return self._compute((span,))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _Computed({}, {}, {}, {span.row: _OUT_OF_MEMORY})

    def _compute(self, spans: Sequence[Span]) -> _Computed:
        computed = _Computed({}, {}, {}, {})
        if self._decoding is not None and all(span.samples for span in spans):
            decoded = self._decoding.run(spans, self._rows, self._cache.clear)
            if decoded is not None:
                self._choose([span.row for span in spans], decoded, computed)
                return computed
        self._compute_any(spans, computed)
        return computed

    @torch.inference_mode()
    def _compute_any(self, spans: Sequence[Span], computed: _Computed) -> None:
        """Spans of any lengths, whatever they ask for."""
        batch = build_batch(spans, self._rows, self._device)
        hidden = self._model.forward(batch, self._cache)
        self._sample(spans, batch, hidden, computed)
        self._score_prompts(spans, batch, hidden, computed)

    @torch.inference_mode()
    def _decode(self, batch: Batch, rules: DrawRules) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [T, vocab] of every token of ``batch``, the highest of each row, and the ids that
        ``rules`` give."""
        logits = self._model.logits(self._model.forward(batch, self._cache))
        assert logits is not None
        return logits, *draw(logits, rules)

    def _choose(self, row_numbers: list[int], decoded: Decoded, computed: _Computed) -> None:
        """A successor for every row: of plain ones, what was drawn while they were decoded."""
        plain = self._rows.plain
        others = [place for place, row in enumerate(row_numbers) if not plain[row]]
        computed.tokens.update(zip(row_numbers, decoded.token_ids, strict=True))
        for row, value in zip(row_numbers, decoded.highest, strict=True):
            if not isfinite(value) and plain[row]:
                computed.tokens[row] = 0
                computed.failed[row] = _NOT_A_NUMBER
        if others:
            whole = len(others) == len(row_numbers)
            logits = decoded.logits if whole else decoded.logits[torch.tensor(others)]
            numbers = np.asarray([row_numbers[place] for place in others])
            self._sample_rows(numbers, logits, computed)

    @torch.inference_mode()
    def _sample_rows(self, row_numbers: np.ndarray, logits: Tensor, computed: _Computed) -> None:
        """A token for every row by its own rules, and what is known of it."""
        inputs = sampling_inputs(row_numbers, self._rows)
        edits, unfollowed = self._constrained.edits(row_numbers)
        sampled = sample(logits, replace(inputs, edits=[*inputs.edits, *edits]))
        for place in torch.nonzero(sampled.failed)[:, 0].tolist():
            computed.failed[int(row_numbers[place])] = _NOT_A_NUMBER
        computed.failed.update(unfollowed)
        self._score_samples(row_numbers, logits, sampled.token_ids, computed)
        computed.tokens.update(zip(row_numbers.tolist(), sampled.token_ids.tolist(), strict=True))

    def _sample(
        self, spans: Sequence[Span], batch: Batch, hidden: Tensor, computed: _Computed
    ) -> None:
        """A successor for the last token of every span that samples."""
        chosen = [i for i, span in enumerate(spans) if span.samples]
        if not chosen:
            return
        row_numbers = np.asarray([spans[i].row for i in chosen])
        last_rows = [batch.spans[i].first_row + batch.spans[i].length - 1 for i in chosen]
        logits = self._model.logits(hidden[torch.tensor(last_rows, device=self._device)])
        if logits is not None:
            self._sample_rows(row_numbers, logits, computed)
        rows = row_numbers.tolist()
        token_ids = torch.tensor([computed.tokens.get(row, 0) for row in rows], device=self._device)
        self._group.broadcast(token_ids)
        computed.tokens.update(zip(rows, token_ids.tolist(), strict=True))

    def _score_samples(
        self, row_numbers: np.ndarray, logits: Tensor, token_ids: Tensor, computed: _Computed
    ) -> None:
        places = np.flatnonzero(self._rows.scored[row_numbers])
        if not len(places):
            return
        rows = row_numbers[places].tolist()
        num_top = [self._rows[row].sampling.logprobs or 0 for row in rows]
        index = torch.from_numpy(places).to(self._device)
        scores = score(logits[index], token_ids[index], num_top)
        computed.logprobs.update(zip(rows, scores, strict=True))

    def _score_prompts(
        self, spans: Sequence[Span], batch: Batch, hidden: Tensor, computed: _Computed
    ) -> None:
        """Prompt log-probabilities of the spans whose request asks for them."""
        for span, place in zip(spans, batch.spans, strict=True):
            row = self._rows[span.row]
            num_top = row.sampling.prompt_logprobs
            # The last prompt token has no successor in the prompt.
            end = min(span.start + span.length, row.num_prompt_tokens - 1)
            if num_top is None or end <= span.start:
                continue
            successors = torch.tensor(row.tokens.view[span.start + 1 : end + 1])
            states = hidden[place.first_row : place.first_row + end - span.start]
            computed.prompt_logprobs[span.row] = self._scores(states, successors, num_top)

    def _scores(self, hidden: Tensor, token_ids: Tensor, num_top: int) -> tuple[TokenLogprobs, ...]:
        """``token_ids`` [n] scored by the logits of ``hidden`` [n, hidden], in bounded memory."""
        scores: list[TokenLogprobs] = []
        rows_per_chunk = max(1, _LOGITS_PER_CHUNK // self._vocab_size)
        for first in range(0, len(token_ids), rows_per_chunk):
            chunk = slice(first, first + rows_per_chunk)
            logits = self._model.logits(hidden[chunk])
            if logits is not None:
                ids = token_ids[chunk].to(self._device)
                scores += score(logits, ids, [num_top] * len(ids))
        return tuple(scores)


def _result(step: int, parts: Sequence[_Computed]) -> StepResult:
    rows: list[RowResult] = []
    failed: dict[int, str] = {}
    for part in parts:
        failed.update(part.failed)
        for row in dict.fromkeys([*part.tokens, *part.prompt_logprobs]):
            if row in part.failed:
                continue
            token = part.tokens.get(row)
            logprobs = part.logprobs.get(row)
            rows.append(
                RowResult(
                    row=row,
                    token_ids=() if token is None else (token,),
                    logprobs=() if logprobs is None else (logprobs,),
                    prompt_logprobs=part.prompt_logprobs.get(row, ()),
                )
            )
    return StepResult(step, tuple(rows), failed)
