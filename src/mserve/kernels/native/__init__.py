"""CPU kernels in C++, behind the signatures of the torch references.

    build.py     compiles cpp/ into a shared library; needs a C++ compiler, nothing of Python
    library.py   loads it, chooses instruction set and threads
    matrix_ops.py, row_ops.py, cache_ops.py   the ops on tensors
    bounds.py    sizes that the library takes
    placement.py memory near the worker that reads it
    tape.py      a step's ops recorded, and played back in one call
    cpp/         the library: no torch, no Python, no OpenMP

Every row of every op has the same bits alone and in any batch, on any number of threads.
"""

from mserve.kernels.native.bounds import Sizes, beyond_bounds
from mserve.kernels.native.build import BuildError, ensure_built
from mserve.kernels.native.cache_ops import (
    paged_attention,
    select_blocks,
    sparse_attention,
    write_kv,
)
from mserve.kernels.native.library import (
    NativeError,
    NativeUnavailable,
    available_isas,
    isa,
    library,
    num_threads,
    set_num_threads,
    use_isa,
)
from mserve.kernels.native.matrix_ops import gated_mlp, linear, run_experts
from mserve.kernels.native.placement import interleave, touch_rows
from mserve.kernels.native.row_ops import (
    activate,
    draw,
    embedding,
    gemma_rms_norm,
    mean_squares,
    norm_rope,
    read,
    residual_sum,
    rms_norm,
    rms_norm_rope,
    rope_angles,
    route,
)
from mserve.kernels.native.tape import Arena, Tape, record

__all__ = [
    "Arena",
    "BuildError",
    "NativeError",
    "NativeUnavailable",
    "Sizes",
    "Tape",
    "activate",
    "available_isas",
    "beyond_bounds",
    "draw",
    "embedding",
    "ensure_built",
    "gated_mlp",
    "gemma_rms_norm",
    "interleave",
    "isa",
    "library",
    "linear",
    "mean_squares",
    "norm_rope",
    "num_threads",
    "paged_attention",
    "read",
    "record",
    "residual_sum",
    "rms_norm",
    "rms_norm_rope",
    "rope_angles",
    "route",
    "run_experts",
    "select_blocks",
    "set_num_threads",
    "sparse_attention",
    "touch_rows",
    "use_isa",
    "write_kv",
]
