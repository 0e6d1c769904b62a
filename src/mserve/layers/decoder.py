"""A pre-norm decoder: embedding, layers of two halves, final norm, head.

What is inside a half is the model file's business; here is only the order, the residual stream
and the one all-reduce after each half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from mserve.kernels import residual_sum
from mserve.layers.attention import Attention
from mserve.layers.batch import Batch
from mserve.layers.kv_cache import KVCache
from mserve.layers.norm import Angles, Norm
from mserve.layers.vocabulary import Embedding, Head
from mserve.parallel import Group
from mserve.weights import Piece


class Mlp(Protocol):
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def pieces(self) -> Iterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer on this rank, which the checkpoint calls ``name``."""

    name: str
    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    group: Group

    def __call__(
        self, hidden: torch.Tensor, batch: Batch, angles: Angles, cache: KVCache
    ) -> torch.Tensor:
        part = self.attention(self.attention_norm(hidden), batch, angles, cache)
        hidden = residual_sum(hidden, self.group.all_reduce_sum(part))
        part = self.mlp(self.mlp_norm(hidden))
        return residual_sum(hidden, self.group.all_reduce_sum(part))

    def pieces(self) -> Iterator[Piece]:
        yield from self.attention_norm.pieces(f"{self.name}.input_layernorm.weight")
        yield from self.attention.pieces()
        yield from self.mlp_norm.pieces(f"{self.name}.post_attention_layernorm.weight")
        yield from self.mlp.pieces()


@dataclass(frozen=True, slots=True)
class Decoder:
    """One rank's share of a model. ``angles`` gives the rotary angles of positions [T]."""

    embedding: Embedding
    layers: tuple[DecoderLayer, ...]
    norm: Norm
    head: Head
    angles: Callable[[torch.Tensor], Angles]

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Hidden states [T, hidden] after the final norm; writes the batch's keys and values."""
        cache.clear(batch.opened_blocks)
        angles = self.angles(batch.positions)
        hidden = self.embedding(batch.token_ids)
        for layer in self.layers:
            hidden = layer(hidden, batch, angles, cache)
        return self.norm(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Scores [R, vocab] fp32 of ``hidden`` [R, hidden] on rank 0, None on the others."""
        return self.head(hidden)

    def pieces(self) -> Iterator[Piece]:
        """Every part of every parameter of this rank, in the checkpoint's order."""
        yield from self.embedding.pieces("model.embed_tokens.weight")
        for layer in self.layers:
            yield from layer.pieces()
        yield from self.norm.pieces("model.norm.weight")
        yield from self.head.pieces("lm_head.weight")
