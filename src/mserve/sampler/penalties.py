"""Changes to logits before a token is chosen: penalties, bias, forbidden ids, grammars.

All but the last touch few of a row's entries, so a batch of them is three flat arrays (row, id,
how), and all rows change in one indexed operation. A grammar touches whole rows. Knows rows of
logits; does not know requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class LogitEdit(Protocol):
    """New values for the entries (``rows[i]``, ``ids[i]``), int64 [N]; for whole ``rows`` where
    ``ids`` is None, values then being [N, vocabulary]."""

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def ids(self) -> np.ndarray | None: ...
    def changed(self, values_N: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Penalties:
    """Repetition divides a positive logit and multiplies a negative one, once per id seen in
    prompt or output. Frequency is subtracted per occurrence in the output, presence once if
    there is any. Pairs (row, id) are distinct; all arrays are [N]."""

    rows: np.ndarray
    ids: np.ndarray
    output_counts: np.ndarray
    repetition: np.ndarray
    presence: np.ndarray
    frequency: np.ndarray

    def changed(self, values_N: Tensor) -> Tensor:
        repetition, counts = _like(self.repetition, values_N), _like(self.output_counts, values_N)
        values_N = torch.where(values_N > 0, values_N / repetition, values_N * repetition)
        values_N = values_N - counts * _like(self.frequency, values_N)
        return values_N - (counts > 0) * _like(self.presence, values_N)


@dataclass(frozen=True, slots=True)
class Bias:
    """``amounts`` [N] are added. Pairs (row, id) are distinct."""

    rows: np.ndarray
    ids: np.ndarray
    amounts: np.ndarray

    def changed(self, values_N: Tensor) -> Tensor:
        return values_N + _like(self.amounts, values_N)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """These ids cannot be chosen."""

    rows: np.ndarray
    ids: np.ndarray

    def changed(self, values_N: Tensor) -> Tensor:
        return torch.full_like(values_N, -torch.inf)


@dataclass(frozen=True, slots=True)
class Forced:
    """These ids are chosen, at any temperature: next to the largest finite number every other
    logit weighs nothing. At most one per row, and the last edit."""

    rows: np.ndarray
    ids: np.ndarray

    def changed(self, values_N: Tensor) -> Tensor:
        return torch.full_like(values_N, torch.finfo(values_N.dtype).max)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Nothing else can be chosen: bit i % 32 of ``masks[r, i // 32]`` says that ``rows[r]`` may
    take id i. int32 [R, words]; ids beyond the words may not be taken."""

    rows: np.ndarray
    masks: np.ndarray
    ids: None = None

    def changed(self, values_RV: Tensor) -> Tensor:
        masks = torch.from_numpy(self.masks).to(values_RV.device)
        places = torch.arange(32, dtype=torch.int32, device=values_RV.device)
        bits = (masks[:, :, None] >> places).bitwise_and_(1).bool().flatten(1)
        count = min(bits.shape[1], values_RV.shape[1])
        allowed = torch.zeros_like(values_RV, dtype=torch.bool)
        allowed[:, :count] = bits[:, :count]
        return values_RV.masked_fill(~allowed, -torch.inf)


@contextmanager
def edited(logits_RV: Tensor, edits: Sequence[LogitEdit]) -> Iterator[None]:
    """Apply ``edits`` in order and in place, and put the old values back at the end.

    Log-probabilities are of the raw logits, and a copy of them would cost as much memory as the
    logits do; the entries touched are few, but for rows under a grammar.
    """
    undo: list[tuple[Tensor, Tensor | slice, Tensor]] = []
    for edit in edits:
        rows = torch.from_numpy(edit.rows).to(logits_RV.device)
        every = edit.ids is None
        ids = slice(None) if every else torch.from_numpy(edit.ids).to(logits_RV.device)
        before = logits_RV[rows, ids]
        undo.append((rows, ids, before))
        logits_RV[rows, ids] = edit.changed(before)
    try:
        yield
    finally:
        for rows, ids, before in reversed(undo):
            logits_RV[rows, ids] = before


class TokenCounts:
    """The distinct ids of one request's tokens, and how often each occurs in its output.

    Grows by one token at constant cost, since a step must not go over the whole context again.
    """

    def __init__(self, prompt_ids: np.ndarray, output_ids: np.ndarray) -> None:
        distinct, first = np.unique(np.concatenate([prompt_ids, output_ids]), return_inverse=True)
        self._length = len(distinct)
        self._ids = distinct.astype(np.int64)
        self._counts = np.bincount(first[len(prompt_ids) :], minlength=self._length)
        self._index = {token_id: index for index, token_id in enumerate(distinct.tolist())}

    def add(self, token_id: int) -> None:
        """One more output token."""
        index = self._index.get(token_id)
        if index is None:
            index = self._index[token_id] = self._length
            if index == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros(index + 16, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(index + 16, np.int64)])
            self._ids[index] = token_id
            self._length += 1
        self._counts[index] += 1

    @property
    def ids(self) -> np.ndarray:
        """Distinct ids of prompt and output, int64 [N]."""
        return self._ids[: self._length]

    @property
    def output_counts(self) -> np.ndarray:
        """Occurrences in the output, int64 [N]."""
        return self._counts[: self._length]


def _like(array: np.ndarray, values: Tensor) -> Tensor:
    return torch.from_numpy(array).to(values.device, values.dtype)
