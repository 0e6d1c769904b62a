"""MiniMax-M3: the keys of config.json and what they mean, in both spellings.

The published file nests the text model under ``text_config`` and its sparse attention under
``sparse_attention_config``; a file that was saved again spells both flat (``index_*``,
``layer_types``, ``mlp_layer_types``). A text-only export has no ``text_config``. A value given in
both spellings must agree: a loader that trusts one of them may run the model dense or with
another selection, which reads as fluent nonsense.

Layer kinds, counts of chosen, local and initial blocks and of experts are data.
"""

from __future__ import annotations

from typing import Literal

from mserve.checkpoint.keys import Keys
from mserve.checkpoint.rope import read_rope
from mserve.checkpoint.shared_keys import (
    check_shared_keys,
    read_dtype,
    read_heads,
    read_num_experts,
)
from mserve.checkpoint.spec import ActivationSpec, IndexSpec, LayerSpec, ModelSpec, MoeSpec
from mserve.core import BLOCK_TOKENS

_ATTENTION: dict[str, Literal["full", "sparse"]] = {
    "full_attention": "full",
    "minimax_m3_sparse": "sparse",
}
_MLP: dict[str, Literal["dense", "moe"]] = {"dense": "dense", "sparse": "moe"}

_RELEASED_INDEX_HEAD_DIM = 128


def read_minimax_m3(config: Keys) -> ModelSpec:
    """The spec of an M3's text model; ``CheckpointError`` for a key we cannot honour."""
    config.expect("tie_word_embeddings", False)
    text = config.section("text_config") or config
    check_shared_keys(text)
    # A re-saved file says "silu" and still means the clamped SwiGLU with alpha and limit.
    text.expect("hidden_act", "swigluoai", "silu")
    text.expect("qk_norm_type", "per_head")
    text.expect("use_gemma_norm", True)
    text.expect("attention_output_gate", False)
    text.expect("n_shared_experts", 1)
    heads = read_heads(text)
    rope = read_rope(text, heads.head_dim)
    layers = _read_layers(text)
    num_experts, experts_per_token = read_num_experts(text)
    intermediate_size = text.integer("intermediate_size")
    vocab_size = text.integer("vocab_size")
    bos = _token_ids(config, text, "bos_token_id", vocab_size)
    return ModelSpec(
        family="m3",
        vocab_size=vocab_size,
        hidden_size=text.integer("hidden_size"),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        rotary_dim=rope.rotary_dim,
        rope_theta=rope.theta,
        rms_norm_eps=text.number("rms_norm_eps"),
        max_position_embeddings=text.integer("max_position_embeddings"),
        qk_norm="per_head",
        activation=ActivationSpec(
            kind="swiglu_oai",
            alpha=text.number("swiglu_alpha", 1.702),
            limit=text.number("swiglu_limit", 7.0),
            beta=text.number("swiglu_beta", 1.0),
        ),
        layers=layers,
        dense_intermediate_size=(
            text.integer("dense_intermediate_size")
            if any(layer.mlp == "dense" for layer in layers)
            else 0
        ),
        moe=MoeSpec(
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            intermediate_size=intermediate_size,
            shared_intermediate_size=text.integer("shared_intermediate_size", intermediate_size),
            routed_scaling_factor=text.number("routed_scaling_factor", 2.0),
        ),
        index=_read_index(text, layers, heads.num_kv_heads, rope.rotary_dim),
        dtype=read_dtype(text if "dtype" in text or "torch_dtype" in text else config),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=_token_ids(config, text, "eos_token_id", vocab_size),
        num_mtp_layers=text.integer("num_mtp_modules", 0, at_least=0),
    )


def _token_ids(config: Keys, text: Keys, key: str, vocab_size: int) -> tuple[int, ...]:
    """The text model's own, or those beside it."""
    return text.token_ids(key, vocab_size) or config.token_ids(key, vocab_size)


def _read_layers(text: Keys) -> tuple[LayerSpec, ...]:
    num_layers = text.integer("num_hidden_layers")
    nested = text.section("sparse_attention_config")

    attention: tuple[Literal["full", "sparse"], ...] | None = None
    if nested is not None:
        nested.expect("use_sparse_attention", True)
        flags = nested.integers("sparse_attention_freq", num_layers)
        _check_no_index_value(nested, flags)
        attention = tuple("sparse" if flag else "full" for flag in flags)
    if "layer_types" in text or attention is None:
        flat = text.names("layer_types", num_layers, _ATTENTION)
        if attention is not None and attention != flat:
            text.refuse("layer_types", "the same layers as sparse_attention_freq")
        attention = flat

    mlp: tuple[Literal["dense", "moe"], ...] | None = None
    if "moe_layer_freq" in text:
        mlp = tuple("moe" if f else "dense" for f in text.integers("moe_layer_freq", num_layers))
    if "mlp_layer_types" in text or mlp is None:
        flat_mlp = text.names("mlp_layer_types", num_layers, _MLP)
        if mlp is not None and mlp != flat_mlp:
            text.refuse("mlp_layer_types", "the same layers as moe_layer_freq")
        mlp = flat_mlp
    return tuple(LayerSpec(a, m) for a, m in zip(attention, mlp, strict=True))


def _check_no_index_value(nested: Keys, sparse: tuple[int, ...]) -> None:
    """No published M3 has a value path in its index branch; we have none either."""
    key = "sparse_disable_index_value"
    if key not in nested:
        return
    disabled = nested.integers(key, len(sparse))
    if any(flag and not off for flag, off in zip(sparse, disabled, strict=True)):
        nested.refuse(key, "1 on every sparse layer")


def _read_index(
    text: Keys, layers: tuple[LayerSpec, ...], num_kv_heads: int, rotary_dim: int
) -> IndexSpec | None:
    if all(layer.attention == "full" for layer in layers):
        return None
    nested = text.section("sparse_attention_config")

    def either(flat: str, legacy: str, default: int | None = None, *, at_least: int = 1) -> int:
        if nested is None or legacy not in nested:
            return text.integer(flat, default, at_least=at_least)
        value = nested.integer(legacy, at_least=at_least)
        if flat in text and text.integer(flat, at_least=at_least) != value:
            text.refuse(flat, f"the same as sparse_attention_config.{legacy}, {value}")
        return value

    block_tokens = either("index_block_size", "sparse_block_size", BLOCK_TOKENS)
    if block_tokens != BLOCK_TOKENS:
        owner, key = (text, "index_block_size")
        if nested is not None and "sparse_block_size" in nested:
            owner, key = (nested, "sparse_block_size")
        owner.refuse(key, str(BLOCK_TOKENS))
    if nested is not None:
        nested.expect("sparse_score_type", "max")
    index = IndexSpec(
        num_heads=either("index_n_heads", "sparse_num_index_heads"),
        head_dim=either("index_head_dim", "sparse_index_dim", _RELEASED_INDEX_HEAD_DIM),
        topk_blocks=either("index_topk_blocks", "sparse_topk_blocks"),
        local_blocks=either("index_local_blocks", "sparse_local_block", 1, at_least=0),
        init_blocks=either("index_init_blocks", "sparse_init_block", 0, at_least=0),
    )
    if index.num_heads != num_kv_heads:
        text.refuse("num_key_value_heads", f"one per index head, {index.num_heads}")
    if index.head_dim < rotary_dim:
        text.refuse("rotary_dim", f"at most the index head width, {index.head_dim}")
    if index.local_blocks + index.init_blocks > index.topk_blocks:
        forced = f"{index.local_blocks} local and {index.init_blocks} initial"
        owner, key = (text, "index_topk_blocks")
        if nested is not None and "sparse_topk_blocks" in nested:
            owner, key = (nested, "sparse_topk_blocks")
        owner.refuse(key, f"at least the forced blocks, {forced}")
    return index
