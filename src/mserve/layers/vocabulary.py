"""The two ends of a model that are as tall as the vocabulary, split over ranks by token id.

Splitting the embedding too costs one all-reduce per step and saves a rank 2.5 GB on M3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from mserve.kernels import embedding, linear, uninitialized
from mserve.layers.shard import EVERY
from mserve.parallel import Group
from mserve.weights import Piece


class _VocabularyRows:
    """Rows of this rank: equal parts, the last one shorter if the ranks do not divide."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        group: Group,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.group = group
        self.vocab_size = vocab_size
        self.height = -(-vocab_size // group.size)
        first = min(group.rank * self.height, vocab_size)
        self.rows = slice(first, min(first + self.height, vocab_size))
        self.weight = uninitialized((self.rows.stop - first, hidden_size), dtype, device)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(self.weight, name, (self.rows, EVERY))


class Embedding(_VocabularyRows):
    """Token ids to vectors."""

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 below the vocabulary size to [T, hidden], the same on every rank."""
        if self.group.size == 1:
            return embedding(token_ids, self.weight)
        local = token_ids - self.rows.start
        here = (local >= 0) & (local < len(self.weight))
        vectors = embedding(torch.where(here, local, 0), self.weight)
        return self.group.all_reduce_sum(vectors * here[:, None])


class Head(_VocabularyRows):
    """Hidden states to a score per token id."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """[R, hidden] to [R, vocab] fp32 on rank 0, None on the others."""
        scores = linear(hidden, self.weight, torch.float32)
        if self.group.size == 1:
            return scores
        gathered = self.group.gather(pad(scores, (0, self.height - len(self.weight))))
        return None if gathered is None else gathered[:, : self.vocab_size]
