"""MSA's main branch: each token attends to the tokens of its chosen blocks up to itself.

The cost per token is that of K blocks, whatever the context. Two orders of work, one result:

    by row     few tokens: copy each token's blocks side by side, attend once
    by block   many tokens: for each block the tokens that chose it, joined by log-sum-exp;
               a block is read once per chunk instead of once per token

Legend: S spans, L tokens of each, H query heads, G KV heads, D head width, N blocks, K chosen.
"""

from __future__ import annotations

import torch

from mserve.core import BLOCK_TOKENS
from mserve.kernels.attend import attend, join
from mserve.kernels.cache_plane import CachePlane
from mserve.kernels.gather_blocks import gather_blocks, one_block

_ROW_SCRATCH_BLOCKS = 512  # gathered (block, head) pairs at once: 32 MiB of bf16 keys and values
_TOKENS_PER_BLOCK = 4  # mean readers of a block from which going by block is faster


def sparse_attention(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """``query`` [S, L, H, D] against planes [blocks, G, BLOCK_TOKENS, D]; gives [S, L, H, D].

    ``blocks`` [S, N] int64 by logical number; ``positions`` [S, L] int64; ``chosen`` [S, L, G, K]
    logical numbers, each at most once per list and at least one, -1 at the end.
    """
    num_spans, length, num_heads, width = query.shape
    groups, chosen_width = chosen.shape[2:]
    rows = query.view(num_spans * length, groups, num_heads // groups, width)
    if num_spans == 1 and length * chosen_width >= _TOKENS_PER_BLOCK * blocks.shape[1]:
        output = _by_block(rows, key_plane, value_plane, blocks[0], positions[0], chosen[0], scale)
    else:
        physical = blocks.gather(1, chosen.clamp_min(0).view(num_spans, -1)).view(
            -1, *chosen.shape[2:]
        )
        output = _by_row(
            rows, key_plane, value_plane, physical, positions.flatten(), chosen.flatten(0, 1), scale
        )
    return output.reshape(query.shape).to(query.dtype)


def _by_row(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    physical: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Rows R = S * L: ``query`` [R, G, H/G, D], ``physical`` and ``chosen`` [R, G, K]."""
    num_rows, groups, chosen_width = chosen.shape
    output = torch.empty(query.shape, dtype=torch.float32, device=query.device)
    offsets = torch.arange(BLOCK_TOKENS, device=query.device)
    chunk = max(1, _ROW_SCRATCH_BLOCKS // (groups * chosen_width))
    for start in range(0, num_rows, chunk):
        here = slice(start, start + chunk)
        tables = physical[here].transpose(0, 1)
        keys = gather_blocks(key_plane, tables, query.dtype)
        values = gather_blocks(value_plane, tables, query.dtype)
        picked = chosen[here, :, :, None]
        token = picked * BLOCK_TOKENS + offsets
        visible = (picked >= 0) & (token <= positions[here, None, None, None])
        visible = visible.flatten(2).transpose(0, 1)[:, :, None]
        partial, _ = attend(query[here].transpose(0, 1), keys, values, visible, scale)
        output[here] = partial.transpose(0, 1)
    return output


def _by_block(
    query: torch.Tensor,
    key_plane: CachePlane,
    value_plane: CachePlane,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One span of L tokens: ``query`` [L, G, H/G, D], ``blocks`` [N], ``chosen`` [L, G, K]."""
    length, groups, per_group, width = query.shape
    rows = query.transpose(0, 1).contiguous()
    output = torch.zeros((groups, length, per_group, width), device=query.device)
    log_sum = torch.full((groups, length, per_group), -torch.inf, device=query.device)
    own = positions[0] // BLOCK_TOKENS
    physical = blocks.tolist()
    for group, block, tokens in _readers(chosen, blocks.shape[0]):
        stored = physical[block]
        visible = None
        if block >= own:
            offsets = torch.arange(BLOCK_TOKENS, device=query.device)
            seen = block * BLOCK_TOKENS + offsets <= positions[tokens, None]
            visible = seen.repeat_interleave(per_group, dim=0)[None, None]
        partial, partial_log_sum = attend(
            rows[group].index_select(0, tokens).view(1, 1, -1, width),
            one_block(key_plane, stored, group, query.dtype)[None, None],
            one_block(value_plane, stored, group, query.dtype)[None, None],
            visible,
            scale,
        )
        joined = join(
            (output[group].index_select(0, tokens), log_sum[group].index_select(0, tokens)),
            (partial.view(-1, per_group, width), partial_log_sum.view(-1, per_group)),
        )
        output[group].index_copy_(0, tokens, joined[0])
        log_sum[group].index_copy_(0, tokens, joined[1])
    return output.transpose(0, 1)


def _readers(chosen: torch.Tensor, num_blocks: int) -> list[tuple[int, int, torch.Tensor]]:
    """(group, logical block, tokens that chose it, ascending) for every block chosen at all."""
    length, groups, chosen_width = chosen.shape
    lists = chosen.permute(1, 0, 2)
    offsets = torch.arange(groups, device=chosen.device)[:, None, None] * num_blocks
    keys = torch.where(lists >= 0, lists + offsets, groups * num_blocks).flatten()
    order = keys.argsort(stable=True)
    tokens = order // chosen_width % length
    readers = []
    end = 0
    for key, count in enumerate(torch.bincount(keys, minlength=groups * num_blocks).tolist()):
        start, end = end, end + count
        if count and key < groups * num_blocks:
            readers.append((key // num_blocks, key % num_blocks, tokens[start:end]))
    return readers
