"""MiniMax-M3, the text model.

What is special: most layers are block-sparse (MSA): an index branch chooses, per KV group, the
few blocks of 128 tokens that the main branch reads; queries and keys are normed per head; norm
weights are centred on zero; a few first layers have a dense MLP, the others routed experts beside
a shared one. Which layer is which is data.

Checkpoint names, after ``language_model.``: as M2, with ``self_attn.index_{q,k}_{proj,norm}`` on
sparse layers, ``mlp.{gate,up,down}_proj`` on dense ones, ``block_sparse_moe.shared_experts``.
"""

from __future__ import annotations

from functools import partial

import torch

from mserve.checkpoint.spec import ModelSpec
from mserve.kernels import rope_angles, rope_frequencies
from mserve.layers import (
    Attention,
    BlockIndex,
    Decoder,
    DecoderLayer,
    Embedding,
    GatedMlp,
    GemmaRmsNorm,
    Head,
    PerHeadNorm,
    SparseMoe,
    gated_activation,
    head_share,
)
from mserve.parallel import Groups
from mserve.weights import Storage


def minimax_m3(
    spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """This rank's share of an M3, parameters unset."""
    storage = Storage(spec.quantization, dtype, device)
    return Decoder(
        embedding=Embedding(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        layers=tuple(_layer(number, spec, groups, storage) for number in range(len(spec.layers))),
        norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        head=Head(spec.vocab_size, spec.hidden_size, groups.tensor, dtype, device),
        angles=partial(
            rope_angles, frequencies=rope_frequencies(spec.rope_theta, spec.rotary_dim, device)
        ),
    )


def _layer(number: int, spec: ModelSpec, groups: Groups, storage: Storage) -> DecoderLayer:
    name, device = f"model.layers.{number}", storage.device
    return DecoderLayer(
        name=name,
        attention_norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        attention=_attention(f"{name}.self_attn", number, spec, groups, storage),
        mlp_norm=GemmaRmsNorm(spec.hidden_size, spec.rms_norm_eps, device),
        mlp=(
            SparseMoe(f"{name}.block_sparse_moe", spec, groups, storage)
            if spec.layers[number].mlp == "moe"
            else _dense_mlp(f"{name}.mlp", spec, groups, storage)
        ),
        group=groups.tensor,
    )


def _attention(
    name: str, number: int, spec: ModelSpec, groups: Groups, storage: Storage
) -> Attention:
    share = head_share(spec.num_heads, spec.num_kv_heads, groups.tensor)
    qk_norm = PerHeadNorm(
        share.num_heads, share.num_kv_heads, spec.head_dim, spec.rms_norm_eps, storage.device
    )
    index = None
    if spec.layers[number].attention == "sparse":
        assert spec.index is not None
        index = BlockIndex(spec.index, share, spec.rms_norm_eps, storage.device)
    return Attention(name, number, spec, share, qk_norm, index, storage)


def _dense_mlp(name: str, spec: ModelSpec, groups: Groups, storage: Storage) -> GatedMlp:
    return GatedMlp(
        name,
        spec.hidden_size,
        spec.dense_intermediate_size,
        gated_activation(spec.activation),
        groups.tensor,
        storage,
    )
