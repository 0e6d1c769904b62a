"""What one KV block is made of: the planes of all layers, back to back.

    block  │ layer 0: key, value │ layer 1: key, value │ layer 3: key, value, index_key │ ...
    plane  │ [heads, BLOCK_TOKENS, width] of one dtype, contiguous

An int8 plane has one of factors beside it, fp32 of width 1.

One block is one contiguous run of bytes, so copying a block to host, disk or a peer is one copy
whatever the model. Knows sizes and offsets; does not know tensors or devices.
"""

from __future__ import annotations

import msgspec

from mserve.core.blocks import BLOCK_TOKENS

DTYPE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e8m0fnu": 1,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}

_ALIGNMENT_BYTES = 64  # a cache line, so that every plane starts aligned for vector loads


class Plane(msgspec.Struct, frozen=True):
    """One cached quantity of one layer on this rank: ``heads`` x BLOCK_TOKENS x ``width``."""

    layer: int
    kind: str  # "key", "value" or "index_key"; with "_scale", the factors of one of these
    heads: int
    width: int
    dtype: str

    @property
    def block_bytes(self) -> int:
        return self.heads * BLOCK_TOKENS * self.width * DTYPE_BYTES[self.dtype]


class KVLayout(msgspec.Struct, frozen=True):
    """The planes of one block, in storage order."""

    planes: tuple[Plane, ...]

    def offsets(self) -> dict[tuple[int, str], int]:
        """Byte offset of each plane inside a block, by (layer, kind)."""
        offsets: dict[tuple[int, str], int] = {}
        position = 0
        for plane in self.planes:
            offsets[plane.layer, plane.kind] = position
            position += _aligned(plane.block_bytes)
        return offsets

    @property
    def block_bytes(self) -> int:
        """Bytes of one whole block, alignment included."""
        return sum(_aligned(plane.block_bytes) for plane in self.planes)

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of one block summed per plane kind, for the memory plan."""
        totals: dict[str, int] = {}
        for plane in self.planes:
            totals[plane.kind] = totals.get(plane.kind, 0) + _aligned(plane.block_bytes)
        return totals


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
