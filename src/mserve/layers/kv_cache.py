"""The pool of KV blocks as tensors: one buffer, and a view of each plane.

Knows the layout of a block and the device. Does not know which block belongs to whom (``cache``).
"""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS, KVLayout
from mserve.kernels import CachePlane, ScaledPlane, uninitialized


class KVCache:
    """``num_blocks`` blocks of ``layout``. What one holds before it is cleared means nothing."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        # Not zeroed: the system then hands out pages as blocks are first used, instead of most of
        # the machine's memory being written before the first request (about 1 s per GB).
        self.pool = uninitialized((num_blocks, layout.block_bytes), torch.uint8, device)
        offsets = layout.offsets()
        self._stored: dict[tuple[int, str], torch.Tensor] = {}
        for plane in layout.planes:
            name = (plane.layer, plane.kind)
            stored = self.pool[:, offsets[name] : offsets[name] + plane.block_bytes]
            self._stored[name] = stored.view(getattr(torch, plane.dtype)).unflatten(
                1, (plane.heads, BLOCK_TOKENS, plane.width)
            )

    def plane(self, layer: int, kind: str) -> CachePlane:
        """View [num_blocks, heads, BLOCK_TOKENS, width] of one layer's "key", "value" or
        "index_key". A block's part is contiguous; the stride between blocks is a whole block."""
        values = self._stored[layer, kind]
        scales = self._stored.get((layer, f"{kind}_scale"))
        return values if scales is None else ScaledPlane(values, scales)

    def clear(self, block_ids: torch.Tensor) -> None:
        """Zero ``block_ids`` [n] int64.

        A block is cleared in the step that writes its first slot. Kernels then may read a whole
        block and mask the unwritten end: no stale bits of another request can be a NaN that
        survives a weight of zero. The price is one extra write per cached byte.
        """
        if block_ids.numel():
            self.pool.index_fill_(0, block_ids, 0)
