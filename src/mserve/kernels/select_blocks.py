"""MSA's block selection: for each token and KV group, the blocks its main branch may read.

    score of a block     the largest index_query . index_key over its tokens, in fp32; a NaN does
                         not count, and a block that has no score is not chosen by it
    always chosen        the last ``local_blocks`` up to the token's own, the first ``init_blocks``;
                         all that the token sees where these are no more than it may choose
    ties                 the lower block id

A token's choice depends on tokens up to its own only, so any chunking gives the same one.
Legend: S spans, L tokens of each, G KV groups, W index width, N blocks, K chosen.
"""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS
from mserve.kernels.cache_plane import CachePlane
from mserve.kernels.exact_top_k import exact_top_k
from mserve.kernels.gather_blocks import gather_blocks

_SEGMENT_BLOCKS = 64
_CHUNK_ROWS = 1024  # tokens x groups: 32 MiB of token scores at once with the segment above


def select_blocks(
    index_query: torch.Tensor,
    index_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    *,
    topk_blocks: int,
    local_blocks: int,
    init_blocks: int,
) -> torch.Tensor:
    """Logical block numbers [S, L, G, K], ascending, then -1; K = min(topk_blocks, N).

    ``index_query`` [S, L, G, W]; ``index_plane`` [blocks, 1, BLOCK_TOKENS, W]; ``blocks`` [S, N]
    int64; ``positions`` [S, L] int64, consecutive. No list holds a block twice or a block that
    starts after its token.
    """
    num_spans, length, groups, _ = index_query.shape
    width = min(topk_blocks, blocks.shape[1])
    chosen = torch.empty((num_spans, length, groups, width), dtype=torch.int64)
    chosen = chosen.to(blocks.device)
    chunk = max(1, _CHUNK_ROWS // groups)
    last = int(positions[:, 0].max())
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        here = positions[:, start:end]
        visible_blocks = (last + end - 1) // BLOCK_TOKENS + 1
        if visible_blocks <= topk_blocks:
            picked = _all_visible(here, width)[:, :, None]
        else:
            scores = _block_scores(
                index_query[:, start:end],
                index_plane,
                blocks[:, :visible_blocks],
                here,
                own_block=local_blocks == 0,
            )
            _force(scores, here, local_blocks, init_blocks)
            all_fit = (here // BLOCK_TOKENS < width)[..., None, None]
            picked = torch.where(
                all_fit, _all_visible(here, width)[:, :, None], _best(scores, width)
            )
        chosen[:, start:end] = picked
    return chosen


def _all_visible(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Every block up to each token's own, [S, L, width], -1 after them."""
    numbers = torch.arange(width, device=positions.device)
    return torch.where(numbers <= positions[..., None] // BLOCK_TOKENS, numbers, -1)


def _block_scores(
    index_query: torch.Tensor,
    index_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    *,
    own_block: bool,
) -> torch.Tensor:
    """Scores [S, L, G, N] fp32 of the blocks before each token's own, -inf from there on.

    With ``own_block`` the block of the token itself is scored too, over its tokens so far; it
    need not be where local blocks are forced.
    """
    num_spans, length, groups, index_width = index_query.shape
    num_blocks = blocks.shape[1]
    query = index_query.reshape(num_spans, length * groups, index_width).float()
    scores = torch.empty(
        (num_spans, length, groups, num_blocks), dtype=torch.float32, device=query.device
    )
    for start in range(0, num_blocks, _SEGMENT_BLOCKS):
        segment = blocks[:, start : start + _SEGMENT_BLOCKS]
        keys = gather_blocks(index_plane, segment, torch.float32)[0]
        products = torch.matmul(query, keys.transpose(1, 2))
        products = products.view(num_spans, length, groups, -1, BLOCK_TOKENS)
        if own_block:
            first = start * BLOCK_TOKENS
            key_positions = torch.arange(first, first + keys.shape[1], device=keys.device)
            future = key_positions > positions[..., None]
            future = future.view(num_spans, length, 1, -1, BLOCK_TOKENS)
            products = products.masked_fill_(future, -torch.inf)
        products = products.masked_fill_(products.isnan(), -torch.inf)
        scores[..., start : start + segment.shape[1]] = products.amax(-1)
    numbers = torch.arange(num_blocks, device=query.device)
    own = (positions // BLOCK_TOKENS)[:, :, None, None]
    return scores.masked_fill_(numbers > own if own_block else numbers >= own, -torch.inf)


def _force(
    scores: torch.Tensor, positions: torch.Tensor, local_blocks: int, init_blocks: int
) -> None:
    """Raise the blocks that are always chosen above every score, in place."""
    numbers = torch.arange(scores.shape[-1], device=scores.device)
    own = (positions // BLOCK_TOKENS)[:, :, None, None]
    forced = (numbers > own - local_blocks) | (numbers < init_blocks)
    scores.masked_fill_(forced & (numbers <= own), torch.inf)


def _best(scores: torch.Tensor, width: int) -> torch.Tensor:
    """The ``width`` best ids of scores [S, L, G, N], ascending; -1 for those scored -inf."""
    num_blocks = scores.shape[-1]
    flat = scores.view(-1, num_blocks)
    ids = exact_top_k(flat, width)
    never = flat.gather(1, ids) == -torch.inf
    ids = ids.masked_fill(never, num_blocks).sort(-1).values
    return ids.masked_fill(ids == num_blocks, -1).view(*scores.shape[:-1], width)
