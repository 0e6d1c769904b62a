"""Bytes of weights on one rank, by what they are for, from shapes alone.

Follows how the layers split: query heads, widths and experts evenly; KV heads and the index heads
beside them until each rank has one; the vocabulary by rows, rounded up; the index key, the router
and the norms whole on every rank. The router is fp32; norms, which are tiny, are counted as such.
"""

from __future__ import annotations

from math import prod

from mserve.checkpoint import ModelSpec, expected_tensors, heads_on_rank
from mserve.core import DTYPE_BYTES

_FP32_BYTES = DTYPE_BYTES["float32"]


def weight_bytes(spec: ModelSpec, *, ranks: int, dtype: str) -> dict[str, int]:
    """Bytes by part on one of ``ranks``, in the order of a forward pass. Parts of no bytes are
    left out."""
    totals = dict.fromkeys(_PARTS, 0)
    for name, shape in expected_tensors(spec).items():
        part = _part(name)
        item_bytes = _FP32_BYTES if part in ("router", "norms") else DTYPE_BYTES[dtype]
        totals[part] += _elements_on_rank(name, shape, spec, ranks) * item_bytes
    return {part: total for part, total in totals.items() if total}


_PARTS = (
    "embedding",
    "attention",
    "index branch",
    "dense MLPs",
    "router",
    "routed experts",
    "shared experts",
    "norms",
    "head",
)


def _part(name: str) -> str:
    components = name.split(".")
    if components[0] == "lm_head":
        return "head"
    if components[1] == "embed_tokens":
        return "embedding"
    if "norm" in components[-2]:
        return "norms"
    if "experts" in components:
        return "routed experts"
    if "shared_experts" in components:
        return "shared experts"
    if "block_sparse_moe" in components:
        return "router"
    if "mlp" in components:
        return "dense MLPs"
    return "index branch" if components[-2].startswith("index_") else "attention"


def _elements_on_rank(name: str, shape: tuple[int, ...], spec: ModelSpec, ranks: int) -> int:
    part, layer_part = _part(name), name.split(".")[-2]
    if part in ("embedding", "head"):
        return -(-shape[0] // ranks) * shape[1]
    if part in ("norms", "router") or layer_part == "index_k_proj":
        return prod(shape)
    if layer_part in ("k_proj", "v_proj", "index_q_proj"):
        return prod(shape) * heads_on_rank(spec.num_kv_heads, ranks) // spec.num_kv_heads
    return prod(shape) // ranks
