"""Native ops that treat every row by itself: norms, rotation, routing, activation, and the ends
of a step.

Each function has the arguments and the result of the reference of its name in ``mserve.kernels``.
Knows tensors; does not know layers or when to use which implementation.
"""

from __future__ import annotations

import numpy as np
import torch

from mserve.kernels.activation import GatedActivation
from mserve.kernels.draw import DrawRules
from mserve.kernels.native.bounds import MAX_CHOSEN_EXPERTS, MAX_HEAD_WIDTH
from mserve.kernels.native.demands import (
    ACTIVATIONS,
    contiguous,
    heads_contiguous,
    same_dtype,
    typed,
)
from mserve.kernels.native.library import NativeError, check, library


def read(x: torch.Tensor) -> None:
    """Read all of ``x`` on all threads and forget it: timing this gives the read bandwidth."""
    contiguous(x)
    check(library().mserve_read(x.data_ptr(), x.numel() * x.element_size() // 4))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M2's norm of ``x`` [..., D] by ``weight`` [D] of its dtype."""
    return _norm(x, weight, eps, 0, same_dtype(x, weight))


def gemma_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """M3's norm of ``x`` [..., D] by fp32 ``weight`` [D], centred on zero."""
    typed(weight, torch.float32)
    return _norm(x, weight, eps, 1, same_dtype(x))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, kind: int, dtype: int) -> torch.Tensor:
    contiguous(x, weight)
    width = weight.shape[0]
    out = torch.empty_like(x)
    check(
        library().mserve_rms_norm(
            x.data_ptr(), weight.data_ptr(), out.data_ptr(),
            x.numel() // width, width, eps, kind, dtype,
        )
    )  # fmt: skip
    return out


def norm_rope(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """``x`` [T, N, D], whose tokens may lie apart, normed by fp32 ``weight`` [N, D] and turned by
    the angles [T, C]. D is at most 1024."""
    typed(weight, torch.float32)
    return _norm_rope(x, 0, 0, weight, eps, cos, sin, 1)


def rms_norm_rope(
    x: torch.Tensor,
    mean_square: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """The same by M2's norm of known ``mean_square`` [T]; ``weight`` [N * D] has x's dtype."""
    typed(weight, x.dtype), typed(mean_square, torch.float32)
    pointer, stride = mean_square.data_ptr(), mean_square.stride(0)
    return _norm_rope(x, pointer, stride, weight, eps, cos, sin, 0)


def _norm_rope(
    x: torch.Tensor,
    mean_square: int,
    mean_square_stride: int,
    weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kind: int,
) -> torch.Tensor:
    tokens, heads, width = x.shape
    heads_contiguous(x)
    if width > MAX_HEAD_WIDTH:
        raise NativeError(f"norm_rope: heads are at most {MAX_HEAD_WIDTH} wide, not {width}")
    contiguous(weight, cos, sin)
    typed(cos, torch.float32), typed(sin, torch.float32)
    out = torch.empty((tokens, heads, width), dtype=x.dtype)
    check(
        library().mserve_norm_rope(
            x.data_ptr(), weight.data_ptr(), mean_square, cos.data_ptr(), sin.data_ptr(),
            out.data_ptr(), tokens, heads, width, cos.shape[1], x.stride(0), mean_square_stride,
            eps, kind, same_dtype(x),
        )
    )  # fmt: skip
    return out


def mean_squares(x: torch.Tensor, split: int, counts: tuple[int, int]) -> torch.Tensor:
    """Sums of squares of ``x`` [T, D] before and from column ``split``, over ``counts``: [T, 2]
    fp32."""
    tokens, width = x.shape
    if width > 1 and x.stride(1) != 1:
        raise NativeError("mean_squares: the rows of x must be contiguous")
    means = torch.empty((tokens, 2), dtype=torch.float32)
    check(
        library().mserve_mean_squares(
            x.data_ptr(), means.data_ptr(), tokens, split, width, x.stride(0), *counts,
            same_dtype(x),
        )
    )  # fmt: skip
    return means


def embedding(token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows [T, hidden] of ``weight`` [V, hidden]. ``IndexError`` if an id is not below V."""
    tokens, (height, width) = len(token_ids), weight.shape
    contiguous(token_ids, weight), typed(token_ids, torch.int64)
    out = torch.empty((tokens, width), dtype=weight.dtype)
    check(
        library().mserve_embedding(
            token_ids.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, height, width,
            same_dtype(weight),
        )
    )  # fmt: skip
    return out


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, C] fp32 of ``positions`` [T] int64 times ``frequencies`` [C] fp32."""
    contiguous(positions, frequencies)
    typed(positions, torch.int64), typed(frequencies, torch.float32)
    shape = (len(positions), len(frequencies))
    cosine = torch.empty(shape, dtype=torch.float32)
    sine = torch.empty(shape, dtype=torch.float32)
    check(
        library().mserve_rope_angles(
            positions.data_ptr(), frequencies.data_ptr(), cosine.data_ptr(), sine.data_ptr(), *shape
        )
    )
    return cosine, sine


def activate(gate_up: torch.Tensor, activation: GatedActivation) -> torch.Tensor:
    """From ``gate_up`` [T, 2I] to [T, I] of the same dtype."""
    contiguous(gate_up)
    dtype, (rows, both) = same_dtype(gate_up), gate_up.shape
    out = torch.empty((rows, both // 2), dtype=gate_up.dtype)
    check(
        library().mserve_activate(
            gate_up.data_ptr(), out.data_ptr(), rows, both // 2, dtype,
            ACTIVATIONS[activation.kind], activation.alpha, activation.limit, activation.beta,
        )
    )  # fmt: skip
    return out


def residual_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x`` [T, hidden] plus ``y`` of the same shape and dtype."""
    contiguous(x, y)
    dtype, (rows, width) = same_dtype(x, y), x.shape
    out = torch.empty((rows, width), dtype=x.dtype)
    check(
        library().mserve_residual_sum(
            x.data_ptr(), y.data_ptr(), out.data_ptr(), rows, width, dtype
        )
    )
    return out


def draw(logits: torch.Tensor, rules: DrawRules) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of ``logits`` [R, V] fp32, NaN in a row that has one, and a token id of each row,
    int64 [R]. A recording reads the arrays of ``rules`` anew at every play."""
    contiguous(logits), typed(logits, torch.float32)
    rows, width = logits.shape
    highest = torch.empty(rows, dtype=torch.float32)
    ids = torch.empty(rows, dtype=torch.int64)
    numbers = [
        np.ascontiguousarray(array, dtype)  # itself where it is so already
        for array, dtype in (
            (rules.temperature, np.float64),
            (rules.top_k, np.int64),
            (rules.top_p, np.float64),
            (rules.min_p, np.float64),
            (rules.seeds, np.uint64),
            (rules.positions, np.int64),
        )
    ]
    check(
        library().mserve_draw(
            logits.data_ptr(), *(array.ctypes.data for array in numbers),
            highest.data_ptr(), ids.data_ptr(), rows, width,
        )
    )  # fmt: skip
    return highest, ids


def route(
    hidden: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, k: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, k] int64, ascending, and weights [T, k] fp32, summing to ``scale``."""
    tokens, width = hidden.shape
    contiguous(hidden, gate, bias)
    typed(gate, torch.float32), typed(bias, torch.float32)
    if k > MAX_CHOSEN_EXPERTS:
        raise NativeError(f"route: at most {MAX_CHOSEN_EXPERTS} experts per token, not {k}")
    ids = torch.empty((tokens, k), dtype=torch.int64)
    weights = torch.empty((tokens, k), dtype=torch.float32)
    check(
        library().mserve_route(
            hidden.data_ptr(), gate.data_ptr(), bias.data_ptr(), ids.data_ptr(),
            weights.data_ptr(), tokens, width, gate.shape[0], k, scale, same_dtype(hidden),
        )
    )  # fmt: skip
    return ids, weights
