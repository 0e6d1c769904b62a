"""One operation per file, as plain functions on tensors; no parameters, no batching policy.

Each file holds the reference in torch; ``native`` holds the CPU's C++ with the same arguments, and
``choose`` says which of the two runs.
"""

from mserve.kernels.activation import GatedActivation, silu_gated, swiglu_oai
from mserve.kernels.cache_plane import CachePlane, ScaledPlane
from mserve.kernels.choose import (
    KernelChoice,
    activate,
    choose_kernels,
    draw,
    embedding,
    find_kernels,
    gated_mlp,
    gemma_rms_norm,
    linear,
    mean_squares,
    norm_rope,
    paged_attention,
    residual_sum,
    rms_norm,
    rms_norm_rope,
    rope_angles,
    route,
    run_experts,
    select_blocks,
    sparse_attention,
    use_kernels,
    write_kv,
)
from mserve.kernels.compare import compared_kernels
from mserve.kernels.draw import DrawRules
from mserve.kernels.exact_top_k import exact_top_k
from mserve.kernels.linear_fp8_block import FP8_BLOCK, dequantize_fp8_block, linear_fp8_block
from mserve.kernels.linear_int8 import (
    StaticInputs,
    linear_int8,
    linear_int8_static,
    quantize_tokens,
)
from mserve.kernels.linear_mxfp8 import MXFP8_GROUP, dequantize_mxfp8, linear_mxfp8
from mserve.kernels.matrix import (
    Fp8BlockMatrix,
    Int8Matrix,
    Int8StaticMatrix,
    Matrix,
    Mxfp8Matrix,
)
from mserve.kernels.memory import uninitialized
from mserve.kernels.moe import sum_experts
from mserve.kernels.random import uniform
from mserve.kernels.ranking import best, rank_of
from mserve.kernels.rms_norm import rms_norm_given
from mserve.kernels.rope import rope, rope_frequencies

__all__ = [
    "FP8_BLOCK",
    "MXFP8_GROUP",
    "CachePlane",
    "DrawRules",
    "Fp8BlockMatrix",
    "GatedActivation",
    "Int8Matrix",
    "Int8StaticMatrix",
    "KernelChoice",
    "Matrix",
    "Mxfp8Matrix",
    "ScaledPlane",
    "StaticInputs",
    "activate",
    "best",
    "choose_kernels",
    "compared_kernels",
    "dequantize_fp8_block",
    "dequantize_mxfp8",
    "draw",
    "embedding",
    "exact_top_k",
    "find_kernels",
    "gated_mlp",
    "gemma_rms_norm",
    "linear",
    "linear_fp8_block",
    "linear_int8",
    "linear_int8_static",
    "linear_mxfp8",
    "mean_squares",
    "norm_rope",
    "paged_attention",
    "quantize_tokens",
    "rank_of",
    "residual_sum",
    "rms_norm",
    "rms_norm_given",
    "rms_norm_rope",
    "rope",
    "rope_angles",
    "rope_frequencies",
    "route",
    "run_experts",
    "select_blocks",
    "silu_gated",
    "sparse_attention",
    "sum_experts",
    "swiglu_oai",
    "uniform",
    "uninitialized",
    "use_kernels",
    "write_kv",
]
