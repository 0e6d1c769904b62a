"""One operation per file, as plain functions on tensors; no parameters, no batching policy.

Each file holds the reference in torch; ``native`` holds the CPU's C++ with the same arguments, and
``choose`` says which of the two runs.
"""

from mserve.kernels.activation import GatedActivation, silu_gated, swiglu_oai
from mserve.kernels.choose import (
    KernelChoice,
    choose_kernels,
    find_kernels,
    gated_mlp,
    gemma_rms_norm,
    linear,
    norm_rope,
    paged_attention,
    rms_norm,
    rms_norm_rope,
    route,
    run_experts,
    select_blocks,
    sparse_attention,
    sum_squares,
    use_kernels,
    write_kv,
)
from mserve.kernels.exact_top_k import exact_top_k
from mserve.kernels.rms_norm import rms_norm_given
from mserve.kernels.rope import rope, rope_angles

__all__ = [
    "GatedActivation",
    "KernelChoice",
    "choose_kernels",
    "exact_top_k",
    "find_kernels",
    "gated_mlp",
    "gemma_rms_norm",
    "linear",
    "norm_rope",
    "paged_attention",
    "rms_norm",
    "rms_norm_given",
    "rms_norm_rope",
    "rope",
    "rope_angles",
    "route",
    "run_experts",
    "select_blocks",
    "silu_gated",
    "sparse_attention",
    "sum_squares",
    "swiglu_oai",
    "use_kernels",
    "write_kv",
]
