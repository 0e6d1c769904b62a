"""CPU kernels in C++, behind the signatures of the torch references.

    build.py     compiles cpp/ into a shared library; needs a C++ compiler, nothing of Python
    library.py   loads it, chooses instruction set and threads
    ops.py       the ops on tensors
    cpp/         the library: no torch, no Python, no OpenMP

Every row of every op has the same bits alone and in any batch, on any number of threads.
"""

from mserve.kernels.native.build import BuildError, ensure_built
from mserve.kernels.native.library import (
    NativeUnavailable,
    available_isas,
    isa,
    library,
    num_threads,
    set_num_threads,
    use_isa,
)
from mserve.kernels.native.ops import (
    NativeError,
    gated_mlp,
    gemma_rms_norm,
    linear,
    norm_rope,
    paged_attention,
    read,
    rms_norm,
    rms_norm_rope,
    route,
    run_experts,
    select_blocks,
    sparse_attention,
    sum_squares,
    write_kv,
)

__all__ = [
    "BuildError",
    "NativeError",
    "NativeUnavailable",
    "available_isas",
    "ensure_built",
    "gated_mlp",
    "gemma_rms_norm",
    "isa",
    "library",
    "linear",
    "norm_rope",
    "num_threads",
    "paged_attention",
    "read",
    "rms_norm",
    "rms_norm_rope",
    "route",
    "run_experts",
    "select_blocks",
    "set_num_threads",
    "sparse_attention",
    "sum_squares",
    "use_isa",
    "write_kv",
]
