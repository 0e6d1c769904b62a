"""Tiny models with random weights and a bare driver, for tests of everything above the kernels.

Knows hub names through the models' own pieces. Does not know files, plans or rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mserve.checkpoint.spec import (
    ActivationSpec,
    IndexSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    kv_layout,
)
from mserve.core import blocks_for
from mserve.layers import Batch, KVCache
from mserve.models import Model, build_model
from mserve.parallel import Groups

CPU = torch.device("cpu")


def m2_spec(
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    num_layers: int = 2,
    num_experts: int = 6,
    experts_per_token: int = 3,
    vocab_size: int = 101,
    hidden_size: int = 48,
    head_dim: int = 16,
    rotary_dim: int = 8,
) -> ModelSpec:
    return ModelSpec(
        family="m2",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
        qk_norm="full_width",
        activation=ActivationSpec(kind="silu"),
        layers=(LayerSpec("full", "moe"),) * num_layers,
        dense_intermediate_size=0,
        moe=MoeSpec(
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            intermediate_size=32,
            shared_intermediate_size=0,
            routed_scaling_factor=1.0,
        ),
        index=None,
        dtype="float32",
        bos_token_id=None,
        eos_token_ids=(0,),
    )


def m3_spec(
    *,
    num_heads: int = 8,
    num_kv_heads: int = 2,
    layers: str = "fd sm",
    topk_blocks: int = 3,
    local_blocks: int = 1,
    init_blocks: int = 0,
    vocab_size: int = 101,
    hidden_size: int = 48,
    head_dim: int = 16,
    rotary_dim: int = 8,
    num_experts: int = 4,
) -> ModelSpec:
    """``layers`` lists a pair per layer: full or sparse attention, dense or moe MLP."""
    return ModelSpec(
        family="m3",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
        qk_norm="per_head",
        activation=ActivationSpec(kind="swiglu_oai", alpha=1.702, limit=7.0, beta=1.0),
        layers=tuple(
            LayerSpec(
                "sparse" if attention == "s" else "full",
                "moe" if mlp == "m" else "dense",
            )
            for attention, mlp in layers.split()
        ),
        dense_intermediate_size=64,
        moe=MoeSpec(
            num_experts=num_experts,
            experts_per_token=2,
            intermediate_size=32,
            shared_intermediate_size=32,
            routed_scaling_factor=2.0,
        ),
        index=IndexSpec(
            num_heads=num_kv_heads,
            head_dim=head_dim,
            topk_blocks=topk_blocks,
            local_blocks=local_blocks,
            init_blocks=init_blocks,
        ),
        dtype="float32",
        bos_token_id=None,
        eos_token_ids=(0,),
    )


def random_tensors(spec: ModelSpec, seed: int) -> dict[str, torch.Tensor]:
    """A random checkpoint of ``spec`` by hub name, fp32."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    # On one rank every piece covers the whole of its source.
    for piece in build_model(spec, Groups(), torch.float32, CPU).pieces():
        if piece.source not in tensors:
            values = torch.empty(piece.destination.shape)
            randomise(piece.source, values, spec, generator)
            tensors[piece.source] = values
    return tensors


def randomise(name: str, tensor: torch.Tensor, spec: ModelSpec, generator: torch.Generator) -> None:
    """Values in place that show a forgotten weight: norms are not one, biases not zero."""
    noise = torch.randn(tensor.shape, generator=generator)
    if "norm" in name:
        tensor.copy_(0.2 * noise + (1.0 if spec.family == "m2" else 0.0))
    elif "e_score_correction_bias" in name:
        tensor.copy_(0.1 * noise)
    elif "embed_tokens" in name:
        tensor.copy_(noise)
    else:
        tensor.copy_(noise / tensor.shape[-1] ** 0.5)


def load_model(
    spec: ModelSpec,
    tensors: Mapping[str, torch.Tensor],
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Our model of ``spec`` filled from ``tensors`` by hub name, every one of them used."""
    model = build_model(spec, groups or Groups(), dtype, CPU)
    unused = set(tensors)
    for piece in model.pieces():
        if piece.optional and piece.source not in tensors:
            continue
        piece.destination.copy_(tensors[piece.source][piece.source_slice])
        unused.discard(piece.source)
    if groups is None and unused:
        raise AssertionError(f"no piece reads {sorted(unused)[:3]}")
    return model


def new_cache(spec: ModelSpec, num_blocks: int, dtype: str = "float32", ranks: int = 1) -> KVCache:
    """Blocks full of NaN, as what a pool holds before a block is cleared may be anything."""
    cache = KVCache(kv_layout(spec, ranks=ranks, dtype=dtype), num_blocks, CPU)
    cache.pool.fill_(0xFF)
    return cache


class Session:
    """One model with a cache, driven span by span. Block ids are handed out from a shuffled
    list, so that neighbours in a sequence are not neighbours in the pool."""

    def __init__(
        self, spec: ModelSpec, model: Model, num_blocks: int = 128, dtype: str = "float32"
    ) -> None:
        self.model = model
        self.cache = new_cache(spec, num_blocks, dtype)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(num_blocks))
        self._free = order.tolist()

    def blocks(self, num_tokens: int) -> list[int]:
        """Blocks for ``num_tokens`` more tokens of some sequence."""
        return [self._free.pop() for _ in range(blocks_for(num_tokens))]

    def hidden(self, spans: Sequence[tuple[Sequence[int], int, Sequence[int]]]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.forward(Batch.build(spans, CPU), self.cache)

    def logits(self, spans: Sequence[tuple[Sequence[int], int, Sequence[int]]]) -> torch.Tensor:
        """Scores of every row, in span order."""
        with torch.inference_mode():
            scores = self.model.logits(self.hidden(spans))
        assert scores is not None
        return scores

    def prompt(self, token_ids: Sequence[int], chunks: Sequence[int] = ()) -> torch.Tensor:
        """Logits of a whole new sequence, computed in ``chunks`` and then the rest at once."""
        block_ids = self.blocks(len(token_ids))
        results, start = [], 0
        for length in (*chunks, len(token_ids)):
            if part := token_ids[start : start + length]:
                results.append(self.logits([(part, start, block_ids)]))
                start += len(part)
        return torch.cat(results)


def random_tokens(length: int, seed: int, vocab_size: int = 101) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, (length,), generator=generator).tolist()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
