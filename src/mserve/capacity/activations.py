"""Memory of a step beside weights and cache: what lives at once at its widest point.

An estimate from shapes: the formulas below count the tensors that exist together, not every
short-lived copy; the share of memory that ``memory_utilization`` leaves free covers those.
"""

from __future__ import annotations

from mserve.checkpoint import ModelSpec, heads_on_rank
from mserve.core import DTYPE_BYTES

_FP32_BYTES = 4

# Of torch: block gathers, masks and partial results of attention, whose chunks are bounded.
TORCH_SCRATCH_BYTES = 256 << 20
# What the interpreter, its libraries and the allocator keep after a load and some steps of native
# kernels, beyond the formulas: measured, docs/log.md.
_PROCESS_BYTES = 96 << 20
# Of a native thread: attention's tiles and, for each score of a row, a candidate of the draw.
_THREAD_BYTES = 1 << 20
_CANDIDATE_BYTES = 8
# Rows that become floats first where a processor does not multiply bf16, or with AVX2 are put into
# the order of e4m3 codes: so many, or as many as a cache holds (cpp/dot.h).
_FLOAT_ROWS = 24
_FLOAT_ROWS_BYTES = 272 << 10

# fp32 scores, and for sampling their sorted copy, its ids (8 bytes) and probabilities.
_LOGIT_BYTES = 4 + 4 + 8 + 4


def scratch_bytes(spec: ModelSpec, *, native_threads: int | None) -> int:
    """Bytes that do not grow with the tokens of a step: where ``native_threads`` compute all of it,
    or torch a part."""
    if native_threads is None:
        return TORCH_SCRATCH_BYTES
    linear = max(spec.hidden_size, spec.num_heads * spec.head_dim)
    experts = max(
        spec.hidden_size,
        spec.dense_intermediate_size,
        spec.moe.intermediate_size,
        spec.moe.shared_intermediate_size,
    )
    thread = _THREAD_BYTES + spec.vocab_size * _CANDIDATE_BYTES
    thread += _float_rows_bytes(linear) + _float_rows_bytes(experts)
    return _PROCESS_BYTES + native_threads * thread


def _float_rows_bytes(width: int) -> int:
    return max(_FLOAT_ROWS * (width + 32) * _FP32_BYTES, _FLOAT_ROWS_BYTES)


def activation_bytes(spec: ModelSpec, *, num_tokens: int, ranks: int, dtype: str) -> int:
    """Bytes that one step of ``num_tokens`` tokens adds on one of ``ranks``:

      3 x tokens x hidden                     residual, its normed copy, a half's output
    + the wider of
        tokens x (3 x queries + 4 x kv)       projection, normed and rotated copies, result
        tokens x per_token x 3 x intermediate
          + tokens x (2 x hidden, fp32)       gate, up and product of each choice; the sum
        tokens x 3 x dense_intermediate
    """
    item_bytes = DTYPE_BYTES[dtype]
    queries = spec.num_heads // ranks * spec.head_dim
    kv = heads_on_rank(spec.num_kv_heads, ranks) * spec.head_dim
    attention = (3 * queries + 4 * kv) * item_bytes
    moe = (
        3 * spec.moe.experts_per_token * spec.moe.intermediate_size // ranks * item_bytes
        + 2 * spec.hidden_size * _FP32_BYTES
    )
    dense = 3 * spec.dense_intermediate_size // ranks * item_bytes
    stream = 3 * spec.hidden_size * item_bytes
    return num_tokens * (stream + max(attention, moe, dense))


def logits_bytes(spec: ModelSpec, *, num_rows: int) -> int:
    """Bytes of scores and sampling for ``num_rows`` rows: rows x vocabulary x 20."""
    return num_rows * spec.vocab_size * _LOGIT_BYTES
