"""Memory of a step beside weights and cache: what lives at once at its widest point.

An estimate from shapes: the formulas below count the tensors that exist together, not every
short-lived copy; the share of memory that ``memory_utilization`` leaves free covers those.
"""

from __future__ import annotations

from mserve.checkpoint import ModelSpec, heads_on_rank
from mserve.core import DTYPE_BYTES

_FP32_BYTES = 4

# Block gathers, masks and partial results of the attention kernels, whose chunks are bounded.
SCRATCH_BYTES = 256 << 20

# fp32 scores, and for sampling their sorted copy, its ids (8 bytes) and probabilities.
_LOGIT_BYTES = 4 + 4 + 8 + 4


def activation_bytes(spec: ModelSpec, *, num_tokens: int, ranks: int, dtype: str) -> int:
    """Bytes of one step of ``num_tokens`` tokens on one of ``ranks``:

      3 x tokens x hidden                     residual, its normed copy, a half's output
    + the wider of
        tokens x (3 x queries + 4 x kv)       projection, normed and rotated copies, result
        tokens x per_token x 3 x intermediate
          + tokens x (2 x hidden, fp32)       gate, up and product of each choice; the sum
        tokens x 3 x dense_intermediate
    + SCRATCH_BYTES
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
    return num_tokens * (stream + max(attention, moe, dense)) + SCRATCH_BYTES


def logits_bytes(spec: ModelSpec, *, num_rows: int) -> int:
    """Bytes of scores and sampling for ``num_rows`` rows: rows x vocabulary x 20."""
    return num_rows * spec.vocab_size * _LOGIT_BYTES
