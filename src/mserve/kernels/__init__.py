"""One operation per file, as plain functions on tensors; no parameters, no batching policy.

Each file holds the reference in torch. A faster version of an operation takes the same arguments.
"""

from mserve.kernels.activation import silu_gated, swiglu_oai
from mserve.kernels.exact_top_k import exact_top_k
from mserve.kernels.moe import run_experts
from mserve.kernels.norm_rope import norm_rope
from mserve.kernels.paged_attention import paged_attention
from mserve.kernels.rms_norm import gemma_rms_norm, rms_norm, rms_norm_given
from mserve.kernels.rope import rope, rope_angles
from mserve.kernels.router import route
from mserve.kernels.select_blocks import select_blocks
from mserve.kernels.sparse_attention import sparse_attention
from mserve.kernels.write_kv import write_kv

__all__ = [
    "exact_top_k",
    "gemma_rms_norm",
    "norm_rope",
    "paged_attention",
    "rms_norm",
    "rms_norm_given",
    "rope",
    "rope_angles",
    "route",
    "run_experts",
    "select_blocks",
    "silu_gated",
    "sparse_attention",
    "swiglu_oai",
    "write_kv",
]
