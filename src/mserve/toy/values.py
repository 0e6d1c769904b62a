"""Seeded random values for a tensor, by its name: random, but no value is trivial.

Norms are not one, the routing bias is not zero and the head is loud enough for stable greedy
tokens, so that code which forgets one of them gives other text. A tensor's values depend on seed
and name alone, whatever is written around it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mserve.toy.shape import Arch

Shape = tuple[int, ...]

_CHUNK_VALUES = 4 << 20  # drawn at once, so that a tensor of any size needs 50 MB


def tensor_bytes(name: str, shape: Shape, dtype: str, arch: Arch, seed: int) -> Iterator[bytes]:
    """The values of one tensor as little-endian bytes, in chunks."""
    mean, deviation = _distribution(name, shape, arch)
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    left = int(np.prod(shape))
    while left:
        count = min(left, _CHUNK_VALUES)
        values = generator.standard_normal(count, dtype=np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        yield _encode(values, name, dtype)
        left -= count


def stored_dtype(name: str, dtype: str) -> str:
    """The dtype a tensor is stored in: the published files keep the router in fp32."""
    return "float32" if _is_router(name) else dtype


def _is_router(name: str) -> bool:
    return name.endswith(("block_sparse_moe.gate.weight", "e_score_correction_bias"))


def _distribution(name: str, shape: Shape, arch: Arch) -> tuple[float, float]:
    """Mean and standard deviation. Linears keep activations at about unit scale."""
    parts = name.split(".")
    vision = "vision_tower" in parts
    unit = float(np.prod(shape[1:])) ** -0.5
    if name.endswith("e_score_correction_bias"):
        return 0.0, 0.05
    if parts[-1] == "bias":
        return 0.0, 0.02
    if "norm" in parts[-2] or "layrnorm" in parts[-2]:
        centred_on_zero = arch == "m3" and not vision
        return (0.0 if centred_on_zero else 1.0), 0.1
    if parts[-2] == "lm_head":  # logits with a spread of about 3
        return 0.0, 3.0 * unit
    if parts[-2] == "embed_tokens":
        return 0.0, 0.5
    if _is_router(name):
        return 0.0, unit
    if arch == "m3" and parts[-2] in ("down_proj", "w2"):
        # (up + 1) and the routing scale of 2 make M3's MLPs loud: undamped, one flipped expert
        # changes every logit and bf16 agrees with fp32 on few tokens.
        return 0.0, 0.7 * 0.25 * unit
    return 0.0, 0.7 * unit


def _encode(values: NDArray[np.float32], name: str, dtype: str) -> bytes:
    if dtype == "float32":
        return values.astype("<f4").tobytes()
    bits = _to_bfloat16(values)
    if _is_router(name):
        # fp32 by type, bf16 by value: a program that rounds the router routes the same.
        return (bits.astype("<u4") << 16).astype("<u4").tobytes()
    return bits.astype("<u2").tobytes()


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves of the fp32 bit patterns, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)
