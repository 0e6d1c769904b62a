"""What is done to each number or each head: norms, rotation, the clamped SwiGLU.

Compiled, because eager torch reads and writes every step of such a chain. ``compile_pointwise``
turns that on; tests and small runs need no compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gemma_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root mean square norm over the last dimension, times one plus ``weight``, rounded once."""
    return _kernels["gemma_norm"](x, weight, eps, dtype)


def norm_and_rotate(heads: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Norm of each head of [.., heads, D] with its row of ``weight``, then rotation of its first
    dimensions, pairs half of them apart; ``cos`` and ``sin`` [N, 1, pairs]."""
    return _kernels["norm_and_rotate"](heads, weight, cos, sin, eps)


def causal_softmax(scores: Tensor, scale: float) -> Tensor:
    """Softmax of ``scale`` times [.., queries, keys] over the keys up to each query's place."""
    return _kernels["causal_softmax"](scores, scale)


def swiglu(both: Tensor, alpha: float, limit: float) -> Tensor:
    """[.., gate | up] to (up + 1) * gate * sigmoid(alpha * gate): the gate is cut above ``limit``,
    up on both sides."""
    return _kernels["swiglu"](both, alpha, limit)


def weighted_swiglu(both: Tensor, weight: Tensor, alpha: float, limit: float) -> Tensor:
    """``swiglu`` of rows, each times its ``weight`` [rows, 1]."""
    return _kernels["weighted_swiglu"](both, weight, alpha, limit)


def compile_pointwise() -> None:
    """Compile for the shapes that come; each function once, any number of rows."""
    for name, function in _eager.items():
        _kernels[name] = torch.compile(function, dynamic=True)


def _gemma_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    x = x.float()
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * scale * (1 + weight)).to(dtype)


def _norm_and_rotate(heads: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    x = heads.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(turned, -1).to(heads.dtype)


def _causal_softmax(scores: Tensor, scale: float) -> Tensor:
    places = torch.arange(scores.shape[-1])
    seen = places <= places[:, None]
    return torch.where(seen, scores.float() * scale, -torch.inf).softmax(-1).to(scores.dtype)


def _swiglu(both: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = both.float().chunk(2, -1)
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(both.dtype)


def _weighted_swiglu(both: Tensor, weight: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = both.float().chunk(2, -1)
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate) * weight).to(both.dtype)


_eager = {
    "gemma_norm": _gemma_norm,
    "norm_and_rotate": _norm_and_rotate,
    "causal_softmax": _causal_softmax,
    "swiglu": _swiglu,
    "weighted_swiglu": _weighted_swiglu,
}
_kernels = dict(_eager)
