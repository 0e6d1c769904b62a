"""Attention of one layer: one fused projection, norm and rotation, cache write, attend, output.

    projection rows   [ q heads | k heads | v heads | index q heads | index k ]   of this rank

Legend: T tokens, H query heads, G KV heads, D head width; heads of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mserve.checkpoint.spec import IndexSpec, ModelSpec
from mserve.core import BLOCK_TOKENS
from mserve.kernels import (
    CachePlane,
    paged_attention,
    select_blocks,
    sparse_attention,
    write_kv,
)
from mserve.layers.batch import Batch, SpanGroup
from mserve.layers.kv_cache import KVCache
from mserve.layers.norm import Angles, PerHeadNorm, QueryKeyNorm
from mserve.layers.shard import HeadShare
from mserve.weights import Part, Piece, Storage


class Attention:
    """This rank's heads of layer ``layer``, which the checkpoint calls ``name``. With ``index`` it
    is block-sparse."""

    def __init__(
        self,
        name: str,
        layer: int,
        spec: ModelSpec,
        share: HeadShare,
        qk_norm: QueryKeyNorm,
        index: BlockIndex | None,
        storage: Storage,
    ) -> None:
        self.name = name
        self.layer = layer
        self.head_dim = spec.head_dim
        self.scale = spec.head_dim**-0.5
        self.share = share
        self.qk_norm = qk_norm
        self.index = index
        width = spec.head_dim
        # Rows of the fused projection: queries and keys together, values, index branch.
        self.row_counts = [
            (share.num_heads + share.num_kv_heads) * width,
            share.num_kv_heads * width,
            0 if index is None else index.num_rows,
        ]
        hidden = slice(0, spec.hidden_size)
        query_rows = slice(share.first_head * width, (share.first_head + share.num_heads) * width)
        kv_rows = slice(
            share.first_kv_head * width, (share.first_kv_head + share.num_kv_heads) * width
        )
        projections = [("q_proj", query_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)]
        if index is not None:
            projections += [
                ("index_q_proj", index.query_rows),
                ("index_k_proj", slice(0, index.head_dim)),
            ]
        self.projection = storage.matrix(
            *(Part(f"{name}.{source}.weight", rows, hidden) for source, rows in projections)
        )
        self.output = storage.matrix(Part(f"{name}.o_proj.weight", hidden, query_rows))

    def __call__(
        self, hidden: torch.Tensor, batch: Batch, angles: Angles, cache: KVCache
    ) -> torch.Tensor:
        """From [T, hidden] to this rank's part of the sum over ranks, [T, hidden]."""
        query_key, value, index_rows = self.projection.linear(hidden).split(self.row_counts, -1)
        query, key = self.qk_norm(query_key, angles)
        keys, values = cache.plane(self.layer, "key"), cache.plane(self.layer, "value")
        write_kv(keys, batch.slots, key)
        write_kv(values, batch.slots, value.unflatten(-1, (-1, self.head_dim)))
        index_query = None
        if self.index is not None:
            # Index keys are written even where nothing is scored yet: later tokens will read them.
            index_query, index_key = self.index.norm(index_rows, angles)
            write_kv(cache.plane(self.layer, "index_key"), batch.slots, index_key)

        parts = []
        for group in batch.groups:
            place = (keys, values, group.blocks, group.positions)
            if self.index is None or self.index.sees_all(group):
                part = paged_attention(group.take(query), *place, self.scale)
            else:
                assert index_query is not None
                chosen = self.index.select(index_query, cache.plane(self.layer, "index_key"), group)
                part = sparse_attention(group.take(query), *place, chosen, self.scale)
            parts.append(part)
        attended = batch.join(parts)
        return self.output.linear(attended.flatten(1))

    def pieces(self) -> Iterator[Piece]:
        yield from self.projection.pieces()
        yield from self.output.pieces()
        yield from self.qk_norm.pieces(f"{self.name}.q_norm.weight", f"{self.name}.k_norm.weight")
        if self.index is not None:
            yield from self.index.norm.pieces(
                f"{self.name}.index_q_norm.weight", f"{self.name}.index_k_norm.weight"
            )


class BlockIndex:
    """MSA's index branch: which blocks each token's KV groups may read.

    One query head per KV group of this rank; the one key head is on every rank, since each
    group's choice reads it.
    """

    def __init__(
        self, index: IndexSpec, share: HeadShare, eps: float, device: torch.device
    ) -> None:
        self.spec = index
        self.head_dim = index.head_dim
        self.num_rows = (share.num_kv_heads + 1) * index.head_dim
        first = share.first_kv_head * index.head_dim
        self.query_rows = slice(first, first + share.num_kv_heads * index.head_dim)
        self.norm = PerHeadNorm(share.num_kv_heads, 1, index.head_dim, eps, device)

    def sees_all(self, group: SpanGroup) -> bool:
        """Whether every token of ``group`` has so few blocks that all of them are chosen."""
        return group.max_context <= self.spec.topk_blocks * BLOCK_TOKENS

    def select(
        self, index_query: torch.Tensor, index_plane: CachePlane, group: SpanGroup
    ) -> torch.Tensor:
        """Logical block numbers [S, L, G, K] for the tokens of ``group``."""
        return select_blocks(
            group.take(index_query),
            index_plane,
            group.blocks,
            group.positions,
            topk_blocks=self.spec.topk_blocks,
            local_blocks=self.spec.local_blocks,
            init_blocks=self.spec.init_blocks,
        )
