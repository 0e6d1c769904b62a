"""The check before serving: one layer of each kind and both ends, computed by both sets of kernels.

A kind is an attention, an MLP and the forms their weights are stored in, so each form of a
checkpoint is checked on its real weights. Steps are of few rows and of many, which are other code,
and the context is long enough that block selection drops blocks. Costs the reference of one layer
per kind for the most rows, and of its attention for each step.
"""

from __future__ import annotations

import numpy as np
import torch

from mserve.core import BLOCK_TOKENS
from mserve.kernels import DrawRules, compared_kernels, draw, write_kv
from mserve.layers.batch import Batch
from mserve.layers.decoder import Decoder, DecoderLayer, Mlp
from mserve.layers.kv_cache import KVCache
from mserve.layers.mlp import GatedMlp, SparseMoe
from mserve.weights import first_experts, forms, gated_mlp

# Tokens of each span of a step: prefill of one request and of two, a short span, decoding of
# several requests and of one. The most rows come first, as products are compared there.
_STEPS = ((40,), (8, 8), (3,), (1, 1, 1), (1,))
_ROWS = sum(_STEPS[0])
_SPARE_BLOCKS = 3  # beyond what selection keeps
_DRAWN_ROWS = 3
# One row of each way: the highest, the whole vocabulary, a nucleus.
_DRAWN = DrawRules(
    temperature=np.array([0.0, 1.5, 1.5]),
    top_k=np.zeros(_DRAWN_ROWS, dtype=np.int64),
    top_p=np.array([1.0, 1.0, 0.9]),
    min_p=np.zeros(_DRAWN_ROWS),
    seeds=np.zeros(_DRAWN_ROWS, dtype=np.uint64),
    positions=np.arange(_DRAWN_ROWS),
)


def check_kernels(decoder: Decoder, cache: KVCache) -> list[int]:
    """Returns the numbers of the layers it computed. Leaves the cache cleared.

    Raises:
        SetupError: the chosen kernels and the reference disagree.
        CheckpointError: weights that were computed are NaN or infinite.
    """
    first_of_kind: dict[tuple[object, ...], int] = {}
    for number, layer in enumerate(decoder.layers):
        first_of_kind.setdefault(_kind(layer), number)
    generator = torch.Generator().manual_seed(0)
    device = cache.pool.device
    ids = torch.linspace(0, decoder.embedding.vocab_size - 1, _ROWS, device=device).long()
    with compared_kernels("model.embed_tokens"):
        like = decoder.embedding(ids)
    hidden = torch.randn(like.shape, generator=generator).to(like)
    blocks = torch.arange(_num_blocks(decoder, cache), device=device)
    cache.clear(blocks)
    for number in first_of_kind.values():
        _check_layer(decoder, number, cache, len(blocks), hidden, generator)
    cache.clear(blocks)
    with compared_kernels("model.norm"):
        normed = [decoder.norm(hidden[: sum(step)]) for step in _STEPS]
    with compared_kernels("lm_head"):
        decoder.logits(normed[0])
    scores = torch.randn((_DRAWN_ROWS, 1000), generator=generator).to(device)
    with compared_kernels("the draw of tokens"):
        draw(scores, _DRAWN)
    return list(first_of_kind.values())


def _kind(layer: DecoderLayer) -> tuple[object, ...]:
    attention, mlp = layer.attention, layer.mlp
    return (
        attention.index is None,
        forms(attention.projection),
        forms(attention.output),
        *_kind_of_mlp(mlp),
    )


def _kind_of_mlp(mlp: Mlp) -> tuple[object, ...]:
    if isinstance(mlp, GatedMlp):
        return forms(mlp.gate_up), forms(mlp.down)
    assert isinstance(mlp, SparseMoe)
    shared = () if mlp.shared is None else _kind_of_mlp(mlp.shared)
    return ("experts", frozenset(first_experts(mlp.gate_up, mlp.down)), *shared)


def _num_blocks(decoder: Decoder, cache: KVCache) -> int:
    """Blocks of a context, half of the last one empty, of which selection drops some."""
    indexes = [layer.attention.index for layer in decoder.layers]
    kept = max((index.spec.topk_blocks for index in indexes if index is not None), default=0)
    return min(cache.num_blocks, kept + _SPARE_BLOCKS)


def _check_layer(
    decoder: Decoder,
    number: int,
    cache: KVCache,
    num_blocks: int,
    hidden: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Every step of ``_STEPS`` through layer ``number``, at the end of a context in the first
    ``num_blocks`` of the cache. A step of T tokens takes the first T rows of ``hidden``."""
    layer = decoder.layers[number]
    context = num_blocks * BLOCK_TOKENS - BLOCK_TOKENS // 2
    _fill(cache, number, context, hidden, generator)
    with compared_kernels(layer.name):
        _check_experts(layer.mlp, hidden)
        for step in _STEPS:
            batch = _batch(step, context, num_blocks, hidden.device)
            layer(hidden[: sum(step)], batch, decoder.angles(batch.positions), cache)


def _check_experts(mlp: Mlp, hidden: torch.Tensor) -> None:
    """One expert of each form: where they differ, chance might choose none of a form, and would
    give each few rows."""
    if isinstance(mlp, SparseMoe):
        for expert in first_experts(mlp.gate_up, mlp.down).values():
            gated_mlp(hidden, mlp.gate_up[expert], mlp.down[expert], mlp.activation)


def _batch(step: tuple[int, ...], context: int, num_blocks: int, device: torch.device) -> Batch:
    """The last tokens of ``context``, as spans that share their blocks."""
    ends = [context - sum(step[number + 1 :]) for number in range(len(step))]
    spans = [
        ([0] * length, end - length, range(num_blocks))
        for length, end in zip(step, ends, strict=True)
    ]
    return Batch.build(spans, device)


def _fill(
    cache: KVCache, layer: int, context: int, like: torch.Tensor, generator: torch.Generator
) -> None:
    """Random keys, values and index keys, of the precision of ``like``, before ``context``."""
    slots = torch.arange(context, device=like.device)
    for plane in cache.layout.planes:
        if plane.layer == layer and plane.kind in ("key", "value", "index_key"):
            values = torch.randn((context, plane.heads, plane.width), generator=generator)
            write_kv(cache.plane(layer, plane.kind), slots, values.to(like))
