"""Bytes of weights on one rank, by what they are for, from shapes alone.

Follows how the layers split: query heads, widths and experts evenly; KV heads and the index heads
beside them until each rank has one; the vocabulary by rows, rounded up; the index key, the router
and the norms whole on every rank. The router is fp32; norms, which are tiny, are counted as such.
"""

from __future__ import annotations

from math import prod

from mserve.checkpoint import (
    ModelSpec,
    expected_tensors,
    is_expert,
    is_matrix,
    shape_on_rank,
    stored_bytes,
)
from mserve.core import DTYPE_BYTES

Shape = tuple[int, ...]


def weight_bytes(
    spec: ModelSpec, *, ranks: int, dtype: str, expert_parallel: bool = False
) -> dict[str, int]:
    """Bytes by part on one of ``ranks``, in the order of a forward pass. Parts of no bytes are
    left out. ``dtype`` is that of what is not quantized."""
    totals = dict.fromkeys(_PARTS, 0)
    for name, shape in expected_tensors(spec).items():
        if is_matrix(name):
            kind = spec.quantization.format_of(name)
            if not (expert_parallel and is_expert(name)):
                shape = shape_on_rank(name, shape, spec, ranks)
            elif _expert_number(name) >= spec.moe.num_experts // ranks:
                continue  # whole, on another rank
            num_bytes = stored_bytes(shape, kind, dtype)
        else:
            num_bytes = _other_bytes(name, shape, ranks, dtype)
        totals[_part(name)] += num_bytes
    return {part: total for part, total in totals.items() if total}


def _expert_number(name: str) -> int:
    path = name.split(".")
    return int(path[path.index("experts") + 1])


def _other_bytes(name: str, shape: Shape, ranks: int, dtype: str) -> int:
    part = _part(name)
    if part in ("embedding", "head"):
        return -(-shape[0] // ranks) * shape[1] * DTYPE_BYTES[dtype]
    return prod(shape) * DTYPE_BYTES["float32"]


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
