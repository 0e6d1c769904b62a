"""Keys that M2 and M3 share: what both rely on, head counts, experts, precision."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mserve.checkpoint.keys import Keys


class Heads(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_dim: int


def check_shared_keys(config: Keys) -> None:
    """Refuse what neither model implements; an absent key means what the releases say."""
    config.expect("tie_word_embeddings", False)
    config.expect("use_qk_norm", True)
    config.expect("use_routing_bias", True)
    config.expect("scoring_func", "sigmoid")
    config.expect("norm_topk_prob", True)
    config.expect("attention_bias", False)


def read_heads(config: Keys) -> Heads:
    """Head counts; every KV head serves the same number of query heads."""
    heads = Heads(
        config.integer("num_attention_heads"),
        config.integer("num_key_value_heads"),
        config.integer("head_dim"),
    )
    if heads.num_heads % heads.num_kv_heads:
        config.refuse("num_key_value_heads", f"a divisor of {heads.num_heads} attention heads")
    return heads


def read_num_experts(config: Keys) -> tuple[int, int]:
    """Experts of a layer, and how many of them each token uses."""
    num_experts = config.integer("num_local_experts")
    per_token = config.integer("num_experts_per_tok")
    if per_token > num_experts:
        config.refuse("num_experts_per_tok", f"at most the {num_experts} experts there are")
    return num_experts, per_token


def read_dtype(config: Keys) -> Literal["bfloat16", "float32"]:
    """What the file claims; ``open_checkpoint`` goes by the tensors themselves."""
    key = "dtype" if "dtype" in config else "torch_dtype"
    return config.choice(key, _DTYPES) if key in config else "bfloat16"


_DTYPES: dict[str, Literal["bfloat16", "float32"]] = {
    "bfloat16": "bfloat16",
    "float32": "float32",
}
