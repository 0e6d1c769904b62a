"""Norms of the residual stream and of queries and keys, with their weights.

Legend: T tokens, H query heads, G KV heads, D head width, C rotated pairs; heads of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from mserve.kernels import gemma_rms_norm, mean_squares, norm_rope, rms_norm, rms_norm_rope
from mserve.layers.shard import EVERY, HeadShare
from mserve.parallel import Group
from mserve.weights import Piece

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine [T, C] fp32 of a step's positions."""


class Norm(Protocol):
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def pieces(self, name: str) -> Iterator[Piece]: ...


class RmsNorm:
    """M2: normalise, round, multiply."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.eps = eps
        self.weight = torch.empty(width, dtype=dtype, device=device)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, self.weight, self.eps)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(self.weight, name, (EVERY,))


class GemmaRmsNorm:
    """M3: weights centred on zero, kept in fp32, rounded after the multiply."""

    def __init__(self, width: int, eps: float, device: torch.device) -> None:
        self.eps = eps
        self.weight = torch.empty(width, dtype=torch.float32, device=device)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return gemma_rms_norm(hidden, self.weight, self.eps)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(self.weight, name, (EVERY,))


class QueryKeyNorm(Protocol):
    """Norm and rotary embedding of projected queries and keys."""

    def __call__(
        self, query_key: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From [T, (H + G) * D] to queries [T, H, D] and keys [T, G, D]."""
        ...

    def pieces(self, query_name: str, key_name: str) -> Iterator[Piece]: ...


class PerHeadNorm:
    """M3: every head normed over its own width by a weight that all query heads share, and one
    that all key heads share."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, device: torch.device
    ) -> None:
        self.num_heads = num_heads
        self.eps = eps
        # One row per head, so that queries and keys are one call.
        self.weight = torch.empty(
            (num_heads + num_kv_heads, head_dim), dtype=torch.float32, device=device
        )

    def __call__(
        self, query_key: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = norm_rope(
            query_key.unflatten(-1, self.weight.shape), self.weight, self.eps, *angles
        )
        return heads[:, : self.num_heads], heads[:, self.num_heads :]

    def pieces(self, query_name: str, key_name: str) -> Iterator[Piece]:
        for head, row in enumerate(self.weight):
            yield Piece(row, query_name if head < self.num_heads else key_name, (EVERY,))


class FullWidthNorm:
    """M2: queries of all heads normed as one vector, keys as another, over all ranks' heads.

    The price under tensor parallelism is one small all-reduce per layer: two means per token.
    """

    def __init__(
        self,
        total_heads: int,
        total_kv_heads: int,
        head_dim: int,
        eps: float,
        share: HeadShare,
        group: Group,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.head_dim = head_dim
        self.eps = eps
        self.share = share
        self.group = group
        self.query_weight = torch.empty(share.num_heads * head_dim, dtype=dtype, device=device)
        self.key_weight = torch.empty(share.num_kv_heads * head_dim, dtype=dtype, device=device)
        self.counts = (total_heads * head_dim, total_kv_heads * head_dim)

    def __call__(
        self, query_key: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor]:
        split = len(self.query_weight)
        means = mean_squares(query_key, split, self.counts)
        if not self.share.counts_kv:
            means[:, 1] = 0.0  # a copied head is summed by the first rank that holds it
        means = self.group.all_reduce_sum(means)
        heads = query_key.unflatten(-1, (-1, self.head_dim))
        first_key = split // self.head_dim
        return (
            rms_norm_rope(heads[:, :first_key], means[:, 0], self.query_weight, self.eps, *angles),
            rms_norm_rope(heads[:, first_key:], means[:, 1], self.key_weight, self.eps, *angles),
        )

    def pieces(self, query_name: str, key_name: str) -> Iterator[Piece]:
        width = self.head_dim
        first = self.share.first_head * width
        yield Piece(self.query_weight, query_name, (slice(first, first + len(self.query_weight)),))
        first = self.share.first_kv_head * width
        yield Piece(self.key_weight, key_name, (slice(first, first + len(self.key_weight)),))
