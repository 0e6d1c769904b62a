"""The architecture of one checkpoint as plain numbers: what its ``config.json`` means.

Everything a model, a memory plan or a cache layout needs to know, with the family's spellings
already resolved. Knows shapes; does not know tensors, files or how anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from mserve.core import KVLayout, ParallelConfig, Plane, SetupError


class LayerSpec(msgspec.Struct, frozen=True):
    attention: Literal["full", "sparse"]
    mlp: Literal["dense", "moe"]


class IndexSpec(msgspec.Struct, frozen=True, kw_only=True):
    """MSA's index branch: one query head per KV group, one key head shared by all groups."""

    num_heads: int
    head_dim: int
    topk_blocks: int
    local_blocks: int
    init_blocks: int


class MoeSpec(msgspec.Struct, frozen=True, kw_only=True):
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int  # 0: no shared expert
    routed_scaling_factor: float


class ActivationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """``silu``: silu(gate) * up. ``swiglu_oai``: (clamp(up) + beta) * g * sigmoid(alpha * g)
    with g = min(gate, limit)."""

    kind: Literal["silu", "swiglu_oai"]
    alpha: float = 0.0
    limit: float = 0.0
    beta: float = 0.0


WeightFormat = Literal["plain", "mxfp8", "fp8", "int8", "int8_static"]
"""``fp8`` has blocks of 128 x 128; ``int8`` quantizes activations per token, ``int8_static`` by
factors of the file."""


class QuantSpec(msgspec.Struct, frozen=True):
    """How the matrices of attention, MLPs and experts are stored in memory. All other tensors
    (embedding, head, router, norms) are never quantized."""

    format: WeightFormat = "plain"
    exceptions: Mapping[str, WeightFormat] = {}  # logical names of those stored otherwise
    on_load: bool = False  # the file holds plain values, which are converted while they are loaded

    def format_of(self, name: str) -> WeightFormat:
        """Format of the matrix with the logical name ``name``."""
        return self.exceptions.get(name, self.format)


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A MiniMax text model."""

    family: Literal["m2", "m3"]
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    qk_norm: Literal["full_width", "per_head"]
    activation: ActivationSpec
    layers: tuple[LayerSpec, ...]
    dense_intermediate_size: int  # 0: no dense layers
    moe: MoeSpec
    index: IndexSpec | None  # None: no sparse layers
    dtype: Literal["bfloat16", "float32"]  # of the checkpoint's linears
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: QuantSpec = QuantSpec()
    num_mtp_layers: int = 0  # draft layers a file may hold after the last one; never loaded


def heads_on_rank(num_heads: int, ranks: int) -> int:
    """Heads of ``num_heads`` that each of ``ranks`` holds; a head is replicated only when there
    are more ranks than heads."""
    return max(1, num_heads // ranks)


def check_ranks(spec: ModelSpec, parallel: ParallelConfig) -> None:
    """``SetupError`` unless the model can be split over the ranks: heads and widths evenly, KV
    heads too or copied evenly, and with expert parallelism whole experts instead of widths."""
    ranks, moe = parallel.tensor_parallel_size, spec.moe
    if parallel.enable_expert_parallel:
        experts = ("num_local_experts", moe.num_experts)
    else:
        experts = ("the width of an expert", moe.intermediate_size)
    for what, count in (
        ("num_attention_heads", spec.num_heads),
        ("the width of a dense layer", spec.dense_intermediate_size),
        ("the width of the shared expert", moe.shared_intermediate_size),
        experts,
    ):
        if count % ranks:
            raise SetupError(
                f"{what}, {count}, cannot be split over {ranks} ranks",
                hint=f"use a --tensor-parallel-size that divides {count}",
            )
    kv_heads = spec.num_kv_heads
    if kv_heads % ranks and ranks % kv_heads:
        raise SetupError(
            f"num_key_value_heads, {kv_heads}, neither splits over {ranks} ranks nor divides them",
            hint=f"use a --tensor-parallel-size that divides {kv_heads} or is a multiple of it",
        )


def kv_layout(
    spec: ModelSpec, *, ranks: int = 1, dtype: str, index_dtype: str | None = None
) -> KVLayout:
    """Planes of one block on one of ``ranks`` tensor-parallel ranks: keys and values of ``dtype``,
    index keys of ``index_dtype``, by default the same.

    K and V are split by KV head; the single index key head is on every rank, since every
    group's selection reads it.
    """
    kv_heads = heads_on_rank(spec.num_kv_heads, ranks)
    planes: list[Plane] = []
    for number, layer in enumerate(spec.layers):
        for kind in ("key", "value"):
            planes += _planes(number, kind, kv_heads, spec.head_dim, dtype)
        if layer.attention == "sparse":
            assert spec.index is not None
            index_width, index_type = spec.index.head_dim, index_dtype or dtype
            planes += _planes(number, "index_key", 1, index_width, index_type)
    return KVLayout(tuple(planes))


def _planes(layer: int, kind: str, heads: int, width: int, dtype: str) -> Iterator[Plane]:
    yield Plane(layer, kind, heads, width, dtype)
    if dtype == "int8":
        yield Plane(layer, f"{kind}_scale", heads, 1, "float32")
