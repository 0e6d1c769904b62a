"""The check before serving: one layer of each kind and both ends, computed by both sets of kernels.

A kind is an attention, an MLP and the forms their weights are stored in, so each format of a
checkpoint is checked on its real weights. The context is long enough that block selection drops
blocks. Costs one layer's reference per kind.
"""

from __future__ import annotations

import numpy as np
import torch

from mserve.core import BLOCK_TOKENS
from mserve.kernels import DrawRules, compared_kernels, draw, write_kv
from mserve.layers.batch import Batch
from mserve.layers.decoder import Decoder, DecoderLayer
from mserve.layers.kv_cache import KVCache

_TOKENS = 3
_SPARE_BLOCKS = 3  # beyond what selection keeps
# One row of each way: the highest, the whole vocabulary, a nucleus.
_DRAWN = DrawRules(
    temperature=np.array([0.0, 1.5, 1.5]),
    top_k=np.zeros(_TOKENS, dtype=np.int64),
    top_p=np.array([1.0, 1.0, 0.9]),
    min_p=np.zeros(_TOKENS),
    seeds=np.zeros(_TOKENS, dtype=np.uint64),
    positions=np.arange(_TOKENS),
)


def check_kernels(decoder: Decoder, cache: KVCache) -> list[int]:
    """Raises ``SetupError`` where the chosen kernels and the reference disagree. Returns the
    numbers of the layers it computed. Leaves the cache cleared."""
    first_of_kind: dict[tuple[str, ...], int] = {}
    for number, layer in enumerate(decoder.layers):
        first_of_kind.setdefault(_kind(layer), number)
    for number in first_of_kind.values():
        _check_layer(decoder, number, cache)
    return list(first_of_kind.values())


def _kind(layer: DecoderLayer) -> tuple[str, ...]:
    attention, mlp = layer.attention, layer.mlp
    parts = (mlp, attention.projection, attention.output, mlp.gate_up, mlp.down)
    return (
        "full" if attention.index is None else "sparse",
        *(type(part).__name__ for part in parts),
    )


def _check_layer(decoder: Decoder, number: int, cache: KVCache) -> None:
    layer = decoder.layers[number]
    device = cache.pool.device
    kept = 0 if layer.attention.index is None else layer.attention.index.spec.topk_blocks
    num_blocks = min(cache.num_blocks, kept + _SPARE_BLOCKS)
    context = num_blocks * BLOCK_TOKENS - BLOCK_TOKENS // 2
    batch = Batch.build([([0] * _TOKENS, context - _TOKENS, range(num_blocks))], device)
    blocks = torch.arange(num_blocks, device=device)
    cache.clear(blocks)
    generator = torch.Generator().manual_seed(number)
    with compared_kernels("model.embed_tokens"):
        like = decoder.embedding(batch.token_ids)
    _fill(cache, number, context, like, generator)
    hidden = torch.randn(like.shape, generator=generator).to(like)
    scores = torch.randn((_TOKENS, 1000), generator=generator).to(device)
    with compared_kernels(layer.name):
        layer(hidden, batch, decoder.angles(batch.positions), cache)
        draw(scores, _DRAWN)
    cache.clear(blocks)


def _fill(
    cache: KVCache, layer: int, context: int, like: torch.Tensor, generator: torch.Generator
) -> None:
    """Random keys, values and index keys, of the precision of ``like``, before ``context``."""
    slots = torch.arange(context, device=like.device)
    for plane in cache.layout.planes:
        if plane.layer == layer and plane.kind in ("key", "value", "index_key"):
            values = torch.randn((context, plane.heads, plane.width), generator=generator)
            write_kv(cache.plane(layer, plane.kind), slots, values.to(like))
